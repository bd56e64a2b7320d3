"""Which kernels are one: a key that two kernels share where they differ in names alone.

A network repeats its layers, and printing a kernel costs far more than reading it.
"""

from __future__ import annotations

from collections.abc import Iterable

from fusile.ir.expr import Apply, Axis, Const, Dim, Expr, Guard, Load, nodes
from fusile.ir.loops import Alloc, Buffer, For, If, Kernel, Stmt, Store, stmt_exprs, walk

Key = tuple[object, ...]


def key(kernel: Kernel) -> Key:
    """The kernel with buffers, axes and sites numbered in order of appearance; sizes keep their names."""
    reader = _Reader()
    for buffer in kernel.params:
        reader.buffer(buffer)
    for dim in kernel.dims:
        reader.expr(dim)
    reader.body(kernel.body)
    return tuple(reader.words)


def guard_sites(kernel: Kernel) -> tuple[str, ...]:
    """The ONNX nodes whose indices a kernel checks, in order of appearance."""
    found: dict[str, None] = {}
    for s in walk(kernel.body):
        for e in stmt_exprs(s):
            for n in nodes(e):
                if isinstance(n, Guard):
                    found[n.site] = None
    return tuple(found)


class _Reader:
    """Writes down every expression, buffer and site once, at its first appearance, and its number from then
    on.
    """

    def __init__(self) -> None:
        self.words: list[object] = []
        self._numbers: dict[object, int] = {}

    def body(self, statements: Iterable[Stmt]) -> None:
        for s in statements:
            match s:
                case For():
                    axis = self.expr(s.axis)
                    self.words.append(("for", axis, s.kind, len(s.body)))
                    self.body(s.body)
                case If():
                    condition = self.expr(s.condition)
                    self.words.append(("if", condition, len(s.body)))
                    self.body(s.body)
                case Alloc():
                    self.words.append(("alloc", self.buffer(s.buffer)))
                case Store():
                    index = tuple(map(self.expr, s.index))
                    self.words.append(("store", self.buffer(s.buffer), index, self.expr(s.value), s.stream))

    def buffer(self, b: Buffer) -> int:
        if b not in self._numbers:
            shape = tuple(map(self.expr, b.shape))
            self._enter(b, ("buffer", b.dtype, shape, b.scope, b.constant))
        return self._numbers[b]

    def expr(self, e: Expr) -> int:
        if e not in self._numbers:
            self._enter(e, self._word(e))
        return self._numbers[e]

    def _word(self, e: Expr) -> object:
        match e:
            case Const():
                return ("const", e.dtype, repr(e.value))
            case Axis():
                return ("axis", self.expr(e.extent))
            case Dim():
                return ("dim", e.name)
            case Load():
                return ("load", self.buffer(e.source), *map(self.expr, e.index))
            case Apply():
                return (e.op, e.dtype, *map(self.expr, e.args))
            case Guard():
                return ("guard", self.expr(e.index), self.expr(e.extent), self._site(e.site))
        raise TypeError(f"{type(e).__name__} is no expression of a loop kernel")

    def _site(self, name: str) -> int:
        if ("site", name) not in self._numbers:
            self._enter(("site", name), "site")
        return self._numbers["site", name]

    def _enter(self, thing: object, word: object) -> None:
        self._numbers[thing] = len(self.words)
        self.words.append(word)
