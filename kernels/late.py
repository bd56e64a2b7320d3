"""Axes that only the run knows: which dimensions an operator works along, as sizes and positions that depend
on their values. Ranks stay known while compiling, because the number of axes is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusile.ir import index as ix
from fusile.ir.expr import Expr, as_expr, const, eq, logical_not, ne, select
from fusile.ir.tensor import Shape, Tensor, compute
from fusile.ir.types import BOOL
from fusile.kernels.registry import Context, Malformed
from fusile.kernels.shapes import reshaped


def late_axes(ctx: Context, axes: Tensor, rank: int) -> list[Expr]:
    """Axes counted from the front, as expressions; checked to lie inside the rank when run."""
    out = []
    for v in ctx.values(axes):
        ctx.require((as_expr(-rank) <= v) & (v < rank), f"an axis is outside a tensor of rank {rank}")
        out.append(select(v < 0, v + rank, v))
    if len(out) > rank:
        raise Malformed(f"{len(out)} axes of a tensor of rank {rank}")
    return out


def named(ctx: Context, axes: Tensor, rank: int) -> list[Expr]:
    """For each dimension, whether the axes name it; checked to name none twice when run."""
    at = late_axes(ctx, axes, rank)
    for j, a in enumerate(at):
        for b in at[:j]:
            ctx.require(ne(a, b), f"an axis of {axes.name} is named twice")
    out = []
    for k in range(rank):
        flag: Expr = const(False, BOOL)
        for a in at:
            flag = flag | eq(a, k)
        out.append(flag)
    return out


def _rest(flags: Sequence[Expr]) -> list[Expr]:
    """For each dimension, how many that are not named stand before it."""
    out = [as_expr(0)]
    for f in flags[:-1]:
        out.append(out[-1] + select(f, const(0), const(1)))
    return out


def without(ctx: Context, shape: Shape, flags: Sequence[Expr], count: int) -> Shape:
    """The sizes of the dimensions that are not named; `count` dimensions are."""
    before = _rest(flags)

    def size(j: int) -> Expr:
        total = as_expr(0)
        for n, f, b in zip(shape, flags, before, strict=True):
            total = total + select(logical_not(f) & eq(b, j), n, const(0))
        return ctx.size(total, "kept")

    return tuple(size(j) for j in range(len(shape) - count))


def with_ones(ctx: Context, shape: Shape, flags: Sequence[Expr]) -> Shape:
    """The shape with new dimensions of size 1 at the named positions."""
    out = []
    for f, b in zip(flags, _rest(flags), strict=True):
        total = as_expr(0)
        for j, n in enumerate(shape):
            total = total + select(eq(b, j), n, const(0))
        out.append(ctx.size(select(f, const(1), total), "spread"))
    return tuple(out)


def reduced_along(
    ctx: Context,
    x: Tensor,
    axes: Tensor,
    keep: bool,
    f: Callable[[Tensor, tuple[int, ...], bool], Tensor],
) -> Tensor:
    """A reduction `f(x, axes, keep)` along axes that only the run knows: every dimension becomes one of the
    result and a reduced one, of which one has the size 1.
    """
    flags = named(ctx, axes, x.rank)
    stays = [ctx.size(select(b, const(1), n), "stays") for b, n in zip(flags, x.shape, strict=True)]
    goes = [ctx.size(select(b, n, const(1)), "goes") for b, n in zip(flags, x.shape, strict=True)]
    rank = x.rank
    apart = compute(
        (*stays, *goes),
        lambda *i: x[tuple(a + b for a, b in zip(i[:rank], i[rank:], strict=True))],
        name="apart",
    )
    out = f(apart, tuple(range(rank, 2 * rank)), False)
    if keep:
        return out
    return reshaped(out, without(ctx, x.shape, flags, len(ctx.values(axes))))


def around(ctx: Context, shape: Shape, axis: Expr) -> tuple[Expr, Expr, Expr]:
    """How many elements stand before an axis, along it, and behind it."""
    before, along, behind = as_expr(1), as_expr(0), as_expr(1)
    for k, n in enumerate(shape):
        before = before * select(const(k) < axis, n, const(1))
        along = along + select(eq(axis, k), n, const(0))
        behind = behind * select(axis < k, n, const(1))
    return ctx.size(before, "before"), ctx.size(along, "along"), ctx.size(behind, "behind")


def is_late(axes: Tensor | None) -> bool:
    """Whether the elements of a tensor of axes are known only when run."""
    if axes is None or ix.number(axes.size) == 0:
        return False
    return axes.known is None or any(ix.number(v) is None for v in axes.known)
