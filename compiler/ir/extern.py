"""Writing the loops of an Extern stage: statements in the order in which they are called for.

def fill(w: Writer, out: Buffer, x: Buffer) -> None:
    with w.loop("i", x.shape[0]) as i:
        seen = w.local("seen", 0)
        with w.when(load(x, [i]) < 0):
            seen.set(const(1))
        w.store(out, [i], seen.value)

(flags,) = extern([((n,), I64, "flags")], [x], fill, lambda x: [(x < 0).astype(np.int64)])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from fusile.ir.expr import Axis, Expr, Number, as_expr, axis, load
from fusile.ir.loops import Alloc, Buffer, For, If, Stmt, Store
from fusile.ir.tensor import Extern, Tensor, as_shape
from fusile.ir.types import I64, DType

Form = tuple[Iterable[Expr | int], DType, str]
"""Shape, type and name of a tensor that an Extern stage makes."""


@dataclass(frozen=True, slots=True)
class Local:
    """A variable of one iteration."""

    writer: Writer
    buffer: Buffer

    @property
    def value(self) -> Expr:
        """What it holds where the expression is evaluated."""
        return load(self.buffer, ())

    def set(self, value: Expr | Number) -> None:
        self.writer.store(self.buffer, (), as_expr(value, self.buffer.dtype))


class Writer:
    """Collects statements; loops and conditions hold what is written inside their `with`."""

    def __init__(self) -> None:
        self._open: list[list[Stmt]] = [[]]

    @property
    def body(self) -> tuple[Stmt, ...]:
        return tuple(self._open[0])

    @contextmanager
    def loop(self, name: str, extent: Expr | int) -> Iterator[Axis]:
        """for name in extent"""
        over = axis(name, extent)
        self._open.append([])
        yield over
        inside = tuple(self._open.pop())
        self._open[-1].append(For(over, inside))

    @contextmanager
    def loops(self, extents: Iterable[Expr | int]) -> Iterator[tuple[Axis, ...]]:
        """Nested loops, one for each extent."""
        over = tuple(axis(f"i{k}", n) for k, n in enumerate(extents))
        self._open.append([])
        yield over
        inside: list[Stmt] = self._open.pop()
        for a in reversed(over):
            inside = [For(a, tuple(inside))]
        self._open[-1].extend(inside)

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """if condition"""
        self._open.append([])
        yield
        inside = tuple(self._open.pop())
        self._open[-1].append(If(condition, inside))

    def store(self, buffer: Buffer, index: Sequence[Expr], value: Expr) -> None:
        self._open[-1].append(Store(buffer, tuple(index), value))

    def local(self, name: str, value: Expr | Number, dtype: DType = I64) -> Local:
        """A variable, alive until the end of the loop or condition that is open."""
        first = as_expr(value, dtype)
        made = Local(self, Buffer(name, first.dtype, (), "local"))
        self._open[-1].append(Alloc(made.buffer))
        made.set(first)
        return made

    def array(self, name: str, shape: Iterable[Expr | int], dtype: DType, scope: str = "scratch") -> Buffer:
        """Memory of a task, or with the scope "local" of an iteration (of constant shape)."""
        made = Buffer(name, dtype, as_shape(shape), scope)
        self._open[-1].append(Alloc(made))
        return made


def extern(
    outs: Sequence[Form],
    reads: Sequence[Tensor],
    write: Callable[..., None],
    meaning: Callable[..., Sequence[np.ndarray]],
) -> tuple[Tensor, ...]:
    """The tensors that loops make. `write` is called with a Writer, the buffers of the outs and those of the
    reads; `meaning` answers the arrays of the outs, given those of the reads.
    """
    made = tuple(Tensor(name, dtype, as_shape(shape)) for shape, dtype, name in outs)
    arrays = tuple(Buffer(t.name, t.dtype, t.shape) for t in (*made, *reads))
    writer = Writer()
    write(writer, *arrays)
    stage = Extern(made, tuple(reads), arrays, writer.body, meaning)
    for t in made:
        t.stage = stage
    return made
