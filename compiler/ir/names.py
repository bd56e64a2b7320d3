"""Names and expressions as text. Names come out of models that nobody vouches for: what is not a plain word
is quoted and escaped, and two things of one name are told apart.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Protocol

from fusile.ir.expr import Apply, Axis, Const, Dim, Expr, Guard, Load, Reduce, const
from fusile.ir.types import BOOL, F32, I64

_PLAIN = re.compile(r"(?!\d)[A-Za-z0-9_./:]+")
_LONGEST = 160
_SHARED = 40
"""A part of an expression that occurs more than once is said once, below it, where its text is longer than
this.
"""

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "floordiv": "//",
    "mod": "%",
    "lt": "<",
    "le": "<=",
    "eq": "==",
    "ne": "!=",
    "and": "&",
    "or": "|",
    "xor": "^",
    "shl": "<<",
    "shr": ">>",
}


def _literal(c: Const) -> str:
    """i64, bool and f32 as they are, others with their type; floats with the fewest digits that say which
    they are.
    """
    if c.dtype is I64 or c.dtype is BOOL:
        return str(c.value)
    text = repr(c.value)
    if c.dtype.is_float and math.isfinite(c.value):
        shorter = (repr(float(f"{c.value:.{digits}g}")) for digits in range(1, 17))
        text = next((t for t in shorter if const(float(t), c.dtype) is c), text)
    return text if c.dtype is F32 else f"{c.dtype}({text})"


class Named(Protocol):
    @property
    def name(self) -> str: ...


def plain(name: str) -> str:
    """A name for text: itself where it is a word, else quoted, in ASCII and on one line."""
    if _PLAIN.fullmatch(name) and len(name) <= _LONGEST:
        return name
    text = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return json.dumps(text.encode("utf-8", "replace").decode("utf-8"))


def comment(text: str) -> str:
    """Words out of a model for the end of a line."""
    return text if text.isascii() and text.isprintable() and len(text) <= _LONGEST else plain(text)


class Names:
    """A name of its own for everything in one text; `inside` opens a scope, whose names are free again
    outside it.
    """

    def __init__(self) -> None:
        self._given: dict[Named, str] = {}
        self._taken: set[str] = set()

    def inside(self) -> Names:
        out = Names()
        out._given, out._taken = dict(self._given), set(self._taken)
        return out

    def of(self, thing: Named) -> str:
        """The name of a tensor, a buffer, an axis or a size: its own, or with a number where that is
        taken."""
        found = self._given.get(thing)
        if found is None:
            base = found = plain(thing.name)
            number = 2
            while found in self._taken:
                found, number = f"{base}~{number}", number + 1
            self._taken.add(found)
            self._given[thing] = found
        return found


class _Unscoped(Names):
    """Every name as it is."""

    def of(self, thing: Named) -> str:
        return plain(thing.name)


def expr_text(e: Expr, names: Names | None = None) -> str:
    """An expression in infix form on one line; types are shown where a literal or a cast would leave them
    open.
    """
    text, shared = expr_parts(e, names)
    return f"{text} where {'; '.join(shared)}" if shared else text


def expr_parts(e: Expr, names: Names | None = None) -> tuple[str, list[str]]:
    """(text, what its shared parts are, in order): long parts that occur more than once are said once."""
    writer = _Writer(names or _Unscoped(), e)
    return writer.text(e), writer.shared


class _Writer:
    def __init__(self, names: Names, root: Expr) -> None:
        self.names = names
        self.shared: list[str] = []
        self.done: dict[Expr, str] = {}
        self.uses: Counter[Expr] = Counter([root])
        pending = [root]
        while pending:
            for c in pending.pop().children:
                self.uses[c] += 1
                if self.uses[c] == 1:
                    pending.append(c)

    def text(self, e: Expr) -> str:
        known = self.done.get(e)
        if known is not None:
            return known
        out = self._node(e)
        if self.uses[e] > 1 and len(out) > _SHARED:
            name = f"%{len(self.shared) + 1}"
            self.shared.append(f"{name} = {out}")
            out = name
        self.done[e] = out
        return out

    def _node(self, e: Expr) -> str:
        match e:
            case Const():
                return _literal(e)
            case Axis() | Dim():
                return self.names.of(e)
            case Load():
                return f"{self.names.of(e.source)}[{', '.join(map(self.text, e.index))}]"
            case Guard():
                return f"guard({self.text(e.index)}, {self.text(e.extent)})"
            case Reduce():
                axes = ", ".join(f"{self.names.of(a)}: {self.text(a.extent)}" for a in e.axes)
                return f"{e.kind}({axes}) {self.text(e.body)}"
            case Apply():
                return self._apply(e)
        raise TypeError(f"no text form for {type(e).__name__}")

    def _apply(self, e: Apply) -> str:
        args = [self.text(a) for a in e.args]
        if e.op in _INFIX and len(args) == 2:
            return f"({args[0]} {_INFIX[e.op]} {args[1]})"
        if e.op in ("cast", "bitcast"):
            return f"{e.dtype}({args[0]})" if e.op == "cast" else f"bits_{e.dtype}({args[0]})"
        return f"{e.op}({', '.join(args)})"
