"""Loop kernels to LLVM IR text.

The printer runs a kernel's body for a set of *instances* at once: the iterations of `jam` loops, side by
side, each over the lanes of the enclosing `vector` loop. What does not depend on a jam axis or on the lane is
computed once and shared; serial loops inside are printed once for all instances. There is no optimisation
here beyond that sharing: it is what the loop kinds mean.

From the bottom up: `function` holds the text, `operations` prints instructions over values, `memory` accesses
to buffers, `values` expressions, `statements` loops and branches. Here a kernel becomes functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fusile.backends.native.function import METADATA, Function, Instance, Module, Value
from fusile.backends.native.statements import Statements
from fusile.backends.native.values import Values
from fusile.ir import alike
from fusile.ir import index as ix
from fusile.ir.expr import Axis, Expr, as_expr
from fusile.ir.loops import Alloc, Buffer, For, Kernel, Kind, Stmt, Store, walk, written
from fusile.ir.types import I64, storage_bytes


@dataclass(frozen=True, slots=True)
class Part:
    """One function of a kernel: a parallel nest (count of its tasks) or everything in one task (count 1)."""

    symbol: str
    count: Expr
    axes: tuple[Axis, ...]
    body: tuple[Stmt, ...]


def parts(kernel: Kernel, symbol: str) -> list[Part]:
    """A kernel as functions that run one after another; parallel nests become task loops."""
    if any(isinstance(s, Alloc) for s in kernel.body) or not any(
        isinstance(s, For) and s.kind is Kind.PARALLEL for s in kernel.body
    ):
        return [Part(symbol, as_expr(1), (), kernel.body)]
    out: list[Part] = []
    for k, s in enumerate(kernel.body):
        axes: list[Axis] = []
        body: tuple[Stmt, ...] = (s,)
        while len(body) == 1 and isinstance(body[0], For) and body[0].kind is Kind.PARALLEL:
            axes.append(body[0].axis)
            body = body[0].body
        out.append(Part(f"{symbol}_{k}", ix.product(a.extent for a in axes), tuple(axes), body))
    return out


def scratch_layout(body: Iterable[Stmt]) -> tuple[dict[Buffer, Expr], Expr]:
    """Byte offsets of scratch buffers in the scratch memory of a task, and its size."""
    total: Expr = as_expr(0)
    offsets: dict[Buffer, Expr] = {}
    for s in walk(body):
        if isinstance(s, Alloc) and s.buffer.scope == "scratch":
            offsets[s.buffer] = total
            size = ix.product(s.buffer.shape) * storage_bytes(s.buffer.dtype)
            total = total + ((size + 127) // 64) * 64
    return offsets, total


class FunctionPrinter(Function):
    """Prints one part of a kernel as a function `void name(ptr frame, i64 begin, i64 end, ptr scratch)`."""

    def __init__(self, module: Module, kernel: Kernel, part: Part, sites: Sequence[str]) -> None:
        super().__init__(module, part.symbol, written(kernel.body))
        self.kernel, self.part, self.sites = kernel, part, tuple(sites)
        offsets, _ = scratch_layout(kernel.body)
        self.values = Values(self, offsets)

    def value(self, e: Expr, i: Instance) -> Value:
        """Print what is not printed yet of an expression, for one instance."""
        return self.values.value(e, i)

    def function(self) -> str:
        self._frame()
        statements = Statements(self, self.values)
        if self.part.axes:
            statements.tasks(self.part.axes, self.part.body)
        else:
            statements.run(self.part.body, [Instance(())])
        if any(isinstance(s, Store) and s.stream for s in walk(self.part.body)):
            # Streaming stores are not ordered by what ends a parallel loop.
            self.lines.append("  fence seq_cst")
        arguments = "ptr noalias %frame, i64 %begin, i64 %end, ptr noalias %scratch"
        head = f"define hidden void @{self.symbol}({arguments}) nounwind {{"
        return "\n".join([head, "entry:", *self.entry, *self.lines, "  ret void", "}", ""])

    def _frame(self) -> None:
        """What the frame holds: the error, then parameters, sizes and the numbers of sites."""
        self._slot(0, "ptr", "%error")
        k = 1
        for b in self.kernel.params:
            self._slot(k, "ptr", f"%p{k}")
            self.pointers[b] = f"%p{k}"
            k += 1
        for d in self.kernel.dims:
            self._slot(k, "i64", f"%d{k}")
            self.memo.put(d, Value(f"%d{k}", I64))
            k += 1
        for site in self.sites:
            self._slot(k, "i64", f"%s{k}")
            self.values.sites[site] = f"%s{k}"
            k += 1

    def _slot(self, k: int, llvm_type: str, name: str) -> None:
        self.entry.append(f"  {name}_at = getelementptr i64, ptr %frame, i64 {k}")
        self.entry.append(f"  {name} = load {llvm_type}, ptr {name}_at, align 8, !invariant.load !0")


def print_kernel(module: Module, kernel: Kernel, symbol: str) -> list[Part]:
    """Print a legal kernel into a module; answers its parts in the order in which they run."""
    found = parts(kernel, symbol)
    sites = alike.guard_sites(kernel)
    for part in found:
        module.functions.append(FunctionPrinter(module, kernel, part, sites).function())
    return found


__all__ = [
    "METADATA",
    "FunctionPrinter",
    "Instance",
    "Module",
    "Part",
    "Value",
    "parts",
    "print_kernel",
    "scratch_layout",
]
