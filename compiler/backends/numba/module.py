"""Emitted source in this process: a Module around it, and its weights straight from the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusile.backends.numba.scalars import word
from fusile.errors import RunError, UsageError
from fusile.ir import index as ix
from fusile.ir.expr import Const, Dim
from fusile.ir.plan import Plan
from fusile.ir.tensor import Tensor
from fusile.ir.types import DType, numpy_dtype
from fusile.runtime.module import Array, ModelInfo, Module, Port, Signature, Value


def port(name: str, t: Tensor) -> Port:
    """An input or output as its users see it."""
    dims = [ix.number(e) if isinstance(e, Const) else e.name if isinstance(e, Dim) else None for e in t.shape]
    return Port.tensor(name, t.dtype.code, dims)


def words_of(array: Array, t: Tensor) -> Array:
    """An array as kernels read it: types that Numba lacks as words of their size."""
    want = np.dtype(numpy_dtype(word(t.dtype)))
    if t.dtype.is_int and t.dtype.bits < 8:  # the upper bits of its byte mean nothing
        return np.ascontiguousarray(array.astype(want))
    made = np.ascontiguousarray(array).reshape(np.shape(array))
    return made if made.dtype == want else made.view(want)


def _answer(words: Array, t: DType) -> Array:
    """An array of kernels as the caller gets it."""
    made = numpy_dtype(t)
    return words.astype(made) if t.is_int and t.bits < 8 else words.view(made)


def raw_weights(known: Mapping[str, Tensor]) -> Callable[[str], Array]:
    """Initialisers by name, read when they are asked for."""

    def raw(name: str) -> Array:
        t = known[name]
        assert t.data is not None
        return words_of(t.data(), t)

    return raw


class NumbaModule(Module):
    """A model whose kernels Numba compiles when they are first called."""

    def __init__(
        self,
        plan: Plan,
        text: str,
        raw: Mapping[str, Tensor],
        info: ModelInfo,
        arguments: tuple[Any, ...] = (),
    ) -> None:
        namespace: dict[str, Any] = {"__name__": "fusile_numba_model"}
        exec(compile(text, "<fusile: kernels for Numba>", "exec"), namespace)
        self.source = text
        self.signature = Signature(tuple(port(t.name, t) for t in plan.inputs))
        self.outputs = tuple(port(n, t) for n, t in zip(plan.output_names, plan.outputs, strict=True))
        self.info = info
        self._inputs = plan.inputs
        self._types = [t.dtype for t in plan.outputs]
        self._error: type[Exception] = namespace["RunError"]
        self._model = namespace["Model"](raw_weights(raw), *arguments)

    def run(self, feeds: Sequence[Value]) -> list[Value]:
        """The outputs, in graph order, for the inputs in graph order.

        Raises FeedError for feeds that do not fit, RunError where the data makes a node fail.
        """
        arrays = [words_of(a, t) for a, t in zip(self.signature.check(feeds), self._inputs, strict=True)]
        try:
            answers = self._model.run(arrays)
        except self._error as e:
            node = getattr(e, "node", "")
            raise RunError(
                "The run failed",
                node=node or None,
                why=str(getattr(e, "why", e)),
                todo="Look at the values fed to the model",
            ) from None
        return [_answer(np.asarray(a), t) for a, t in zip(answers, self._types, strict=True)]

    def save(
        self, path: str | os.PathLike[str], *, embed: bool = True, linker: str | None = None
    ) -> tuple[Path, ...]:
        """Refuses with a UsageError: this module's file form is its source."""
        raise UsageError(
            "A module for Numba has no library file",
            todo="Write its source with fusile.emit(model, to=..., out=...)",
        )
