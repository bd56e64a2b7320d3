"""What fusile raises: every error says what, where, why and what to do, and carries its exit code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

_SHOWN_NAME = 120
_SHOWN_GAPS = 40


def show_name(name: str | None, limit: int = _SHOWN_NAME) -> str:
    """A name out of a model, quoted for one line of text: no newlines or control signs, cut at `limit`."""
    if not name:
        return "(unnamed)"
    text = repr(name)
    return text if len(text) <= limit else f"{text[: limit - 4]}...{text[0]}"


def show_names(names: Iterable[str | None], limit: int = 8) -> str:
    """Up to `limit` quoted names with commas, and how many more there are."""
    every = list(names)
    shown = ", ".join(show_name(name) for name in every[:limit])
    return shown if len(every) <= limit else f"{shown} and {len(every) - limit} more"


def show_text(text: str, kept: str = "") -> str:
    """Text that words out of a model stand in, for a terminal: control signs and line breaks become escapes,
    except for those in `kept`.
    """
    return "".join(sign if sign.isprintable() or sign in kept else repr(sign)[1:-1] for sign in text)


def show_word(word: str, limit: int = _SHOWN_NAME) -> str:
    """A word out of a model that is shown without quotes, such as a dimension or an operator: itself where
    it is plain, else as a quoted name.
    """
    return word if word.isprintable() and len(word) <= limit else show_name(word, limit)


class FusileError(Exception):
    """Base of all errors that fusile raises on purpose.

    `what` is one sentence. `where` is the ONNX node, value or file that it is about, `why` the reason,
    `todo` what the user can do; each may be left out and each becomes a part of the message.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self, what: str, *, where: str | None = None, why: str | None = None, todo: str | None = None
    ) -> None:
        self.what = what
        self.where = where
        self.why = why
        self.todo = todo
        super().__init__(self._message())

    def _message(self) -> str:
        text = self.what.rstrip(".")
        if self.where:
            text += f" ({self.where})"
        if self.why:
            text += f": {self.why.rstrip('.')}"
        text += "."
        if self.todo:
            text += f" {self.todo.rstrip('.')}."
        return text


class UsageError(FusileError):
    """The caller asked for something that makes no sense: a wrong option, a missing file, an unknown name."""


class InvalidModelError(FusileError):
    """The model breaks the rules of the ONNX format: truncated, cyclic, names that nothing defines."""


class ExternalDataError(InvalidModelError):
    """The model's own file is well, but data that it keeps in another file are missing or cut short."""


class UnsafeModelError(FusileError):
    """The model was refused because reading it would touch foreign files or exhaust the machine."""

    exit_code: ClassVar[int] = 4


class RunError(FusileError):
    """A run failed: wrong feeds, an index out of range in the data, a size that overflows.

    `node` is the name of the ONNX node that failed, where there is one.
    """

    def __init__(
        self, what: str, *, node: str | None = None, why: str | None = None, todo: str | None = None
    ) -> None:
        self.node = node
        super().__init__(what, where=f"node {show_name(node)}" if node else None, why=why, todo=todo)


class DifferenceError(FusileError):
    """Two answers that should agree do not."""

    exit_code: ClassVar[int] = 1


class InternalError(FusileError):
    """A bug of fusile: a level of the compiler broke one of its own promises (see `fusile.ir.verify`)."""

    exit_code: ClassVar[int] = 70

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None) -> None:
        todo = "This is a bug of fusile, not of the model: please report it together with the model"
        super().__init__(what, where=where, why=why, todo=todo)


@dataclass(frozen=True, slots=True)
class Gap:
    """One thing in a model that cannot be compiled: which operator, at which node, why, and a way out."""

    op_type: str
    domain: str = ""
    node: str = ""
    opset: int | None = None
    reason: str = "no definition of this operator"
    way_out: str = ""

    def __str__(self) -> str:
        operator = f"{self.domain}::{self.op_type}" if self.domain else self.op_type
        text = show_word(operator)
        if self.opset is not None:
            text += f" (opset {self.opset})"
        text += f" at node {show_name(self.node)}: {self.reason.rstrip('.')}."
        return f"{text} {self.way_out.rstrip('.')}." if self.way_out else text


class UnsupportedError(FusileError):
    """The model is valid and fusile has no way to compile it; `gaps` lists every place at once."""

    exit_code: ClassVar[int] = 3

    def __init__(self, gaps: Gap | Sequence[Gap], what: str = "", *, todo: str | None = None) -> None:
        self.gaps: tuple[Gap, ...] = (gaps,) if isinstance(gaps, Gap) else tuple(gaps)
        if not what:
            count = len(self.gaps)
            what = "One node is not supported" if count == 1 else f"{count} nodes are not supported"
        super().__init__(what, todo=todo)

    def _message(self) -> str:
        lines = [f"  {gap}" for gap in self.gaps[:_SHOWN_GAPS]]
        if len(self.gaps) > _SHOWN_GAPS:
            lines.append(f"  and {len(self.gaps) - _SHOWN_GAPS} more, which `fusile check` lists")
        text = "\n".join([f"{self.what.rstrip('.')}:", *lines]) if lines else f"{self.what.rstrip('.')}."
        return f"{text}\n{self.todo.rstrip('.')}." if self.todo else text


class UnsettledError(UnsupportedError):
    """Every gap closes once sizes or elements of tensors are known that the model does not say: where inputs
    are seen, it can be compiled for them. `values` are the names of tensors whose elements are asked for.
    """

    def __init__(self, gaps: Gap | Sequence[Gap], values: Iterable[str]) -> None:
        self.values = frozenset(values)
        super().__init__(gaps)


class UnknownDimensionError(UsageError):
    """A size was given for dimensions that the model has not. `names` are these."""

    def __init__(self, names: Sequence[str], known: str) -> None:
        self.names = tuple(names)
        word = "dimension" if len(names) == 1 else "dimensions"
        super().__init__(f"The model has no {word} {show_names(names)}", todo=f"It has {known}")
