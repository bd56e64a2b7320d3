"""The last step before printing a kernel: packed types lie in bytes, sums of products become fma, and every
expression is one that the target prints.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fusile.capabilities import Capabilities
from fusile.ir.expr import Expr, Load, load, substitute
from fusile.ir.loops import Alloc, Buffer, For, If, Kernel, Stmt, Store, dims_of, map_exprs, walk
from fusile.ir.types import storage_of
from fusile.passes import words
from fusile.passes.legalise import Legaliser, contract


def finish(kernel: Kernel, target: Capabilities) -> Kernel:
    """A kernel whose expressions are all legal for `target`. Raises UnsupportedError for an operation that it
    can in no way compute.
    """
    kernel = in_bytes(kernel)
    legalise = Legaliser(target, kernel.origins[-1] if kernel.origins else "")
    body = map_exprs(kernel.body, lambda e: legalise(contract(e) if target.has_fma else e))
    made = kernel.with_body(body)
    dims = dims_of(body, kernel.params)
    assert set(dims) <= set(kernel.dims), f"legalising {kernel.name} needs sizes that it did not have"
    # Where there is nothing to loop over, sizes may have gone with the loops.
    return made if dims == kernel.dims else replace(made, dims=dims)


def in_bytes(kernel: Kernel) -> Kernel:
    """The kernel over bytes where a buffer holds a type below eight bits: the low bits of a byte are the
    value, the others mean nothing when it is read and are 0 when it is written. The same object where there
    is no such buffer.
    """
    made: dict[Buffer, Buffer] = {}
    allocated = (s.buffer for s in walk(kernel.body) if isinstance(s, Alloc))
    if not any(map(_is_packed, (*kernel.params, *allocated))):
        return kernel

    def of(b: Buffer) -> Buffer:
        if not _is_packed(b):
            return b
        if b not in made:
            made[b] = Buffer(b.name, storage_of(b.dtype).word, b.shape, b.scope, b.constant)
        return made[b]

    def read(x: Load) -> Expr:
        held = of(x.source)
        return x if held is x.source else words.from_storage(load(held, x.index), x.dtype)

    def expr(e: Expr) -> Expr:
        return substitute(e, {}, read)

    def visit(body: Iterable[Stmt]) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for s in body:
            match s:
                case Store():
                    held, value = of(s.buffer), expr(s.value)
                    value = value if held is s.buffer else words.pack([value])
                    out.append(replace(s, buffer=held, index=tuple(map(expr, s.index)), value=value))
                case If():
                    out.append(If(expr(s.condition), visit(s.body)))
                case For():
                    out.append(replace(s, body=visit(s.body)))
                case Alloc():
                    out.append(Alloc(of(s.buffer)))
        return tuple(out)

    params = tuple(map(of, kernel.params))
    body = visit(kernel.body)
    tensors = kernel.notes.get("tensors")
    notes = dict(kernel.notes)
    if isinstance(tensors, dict):
        notes["tensors"] = {of(b): t for b, t in tensors.items()}
    return replace(kernel, params=params, body=body, notes=notes)


def _is_packed(b: Buffer) -> bool:
    return 0 < b.dtype.bits < 8
