"""How kernels print for Numba on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from fusile.backends.numba.kernels import KernelPrinter, atom, collapsed
from fusile.ir import index as ix
from fusile.ir.loops import Alloc, Buffer, For, Kernel, Kind
from fusile.schedule.cuda import Launch


def launch_of(kernel: Kernel) -> Launch:
    """How a scheduled kernel is started."""
    found = kernel.notes["launch"]
    assert isinstance(found, Launch)
    return found


@dataclass(frozen=True, slots=True)
class Gpu:
    """Numba on a GPU: rows are blocks, points and shared-out loops are threads, locals lie in the thread, the
    block or given memory."""

    static_shapes: bool = True

    def before(self, kernel: Kernel) -> tuple[str, ...]:
        return ()

    def scratch(self, kernel: Kernel) -> tuple[Buffer, ...]:
        return launch_of(kernel).scratch

    def alloc(self, p: KernelPrinter, buffer: Buffer, shape: str, word: str) -> str:
        where = "shared" if buffer in launch_of(p.kernel).shared else "local"
        if ix.number(ix.product(buffer.shape)) == 0:  # to Numba a size of 0 means one that the launch decides
            shape = f"({', '.join(['1'] * len(buffer.shape))},)"
        return f"cuda.{where}.array({shape}, {word})"

    def loops(self, p: KernelPrinter, s: For) -> bool:
        if s.kind is Kind.BLOCK:
            _, inside = collapsed(s)
            p.body(x for x in inside if isinstance(x, Alloc))  # shared memory is there once, before the rows
            self._numbered(p, s, "row", "cuda.blockIdx.x", "cuda.gridDim.x")
            return True
        if s.kind is not Kind.THREAD:
            return False
        if launch_of(p.kernel).form == "points":
            self._numbered(p, s, "point", "cuda.grid(1)", "cuda.gridsize(1)")
            return True
        if s in launch_of(p.kernel).barriers:
            p.lines.add("cuda.syncthreads()")
        if ix.number(s.axis.extent) == 1:
            p.lines.add("if cuda.threadIdx.x == 0:")
            p.nested(s.body)
        else:
            self._numbered(p, s, "element", "cuda.threadIdx.x", "cuda.blockDim.x")
        p.lines.add("cuda.syncthreads()")
        return True

    def _numbered(self, p: KernelPrinter, s: For, name: str, first: str, step: str) -> None:
        """Collapsed loops whose iterations are numbered and shared out."""
        loops, inside = collapsed(s)
        extents = [p.extent(x) for x in loops]
        number = p.axis(s.axis) if len(loops) == 1 else p.names.fresh(name)
        p.lines.add(f"for {number} in range({first}, {' * '.join(map(atom, extents))}, {step}):")
        p.lines.depth += 1
        if len(loops) > 1:
            p.digits(number, loops, extents)
        p.body(x for x in inside if not (s.kind is Kind.BLOCK and isinstance(x, Alloc)))
        p.lines.depth -= 1
        for x in loops:
            p.names.release(x.axis)
        if len(loops) > 1:
            p.names.taken.discard(number)
