"""Operators whose positions come from data: gathering, scattering, one-hot, and the ones whose size the data
decides.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusile.ir import index as ix
from fusile.ir.expr import Expr, as_expr, cast, const, eq, inside, maximum, minimum, ne, select
from fusile.ir.tensor import Tensor, compute, scan, scatter
from fusile.ir.types import I64
from fusile.kernels.families.elementwise import dtype_of, filled
from fusile.kernels.registry import Context, Malformed, Unsettled, op
from fusile.kernels.shapes import checked_index, literal, normal_axis


@op("Gather")
def gather(ctx: Context, x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    at = normal_axis(axis, x.rank)
    if not x.rank:
        raise Malformed("a scalar has nothing to gather from")

    def body(*i: Expr) -> Expr:
        where = checked_index(ctx, indices, i[at : at + indices.rank], x.shape[at])
        return x[(*i[:at], where, *i[at + indices.rank :])]

    return compute((*x.shape[:at], *indices.shape, *x.shape[at + 1 :]), body, name="gather")


@op("GatherElements")
def gather_elements(ctx: Context, x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    at = normal_axis(axis, x.rank)

    def body(*i: Expr) -> Expr:
        return x[(*i[:at], checked_index(ctx, indices, i, x.shape[at]), *i[at + 1 :])]

    return compute(indices.shape, body, name="gather")


@op("GatherND")
def gather_nd(ctx: Context, x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    depth = ix.number(indices.shape[-1]) if indices.rank else None
    if depth is None:
        raise Unsettled("indices whose last dimension is not a constant", "fix the input by `--dims`")
    if depth + batch_dims > x.rank:
        raise Malformed(
            f"indices of {depth} numbers into a tensor of rank {x.rank} with {batch_dims} batch dimensions"
        )
    lead = indices.rank - 1

    def body(*i: Expr) -> Expr:
        where = [
            checked_index(ctx, indices, (*i[:lead], const(k)), x.shape[batch_dims + k]) for k in range(depth)
        ]
        return x[(*i[:batch_dims], *where, *i[lead:])]

    return compute((*indices.shape[:-1], *x.shape[batch_dims + depth :]), body, name="gather")


_SCATTER_KINDS = {"none": "set", "add": "add", "mul": "mul", "min": "min", "max": "max"}


@op("ScatterElements")
def scatter_elements(
    ctx: Context, x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    at = normal_axis(axis, x.rank)

    def where(*u: Expr) -> Sequence[Expr]:
        return (*u[:at], checked_index(ctx, indices, u, x.shape[at]), *u[at + 1 :])

    return scatter(
        lambda *i: x[i], x.shape, indices.shape, where, lambda *u: updates[u], kind=_SCATTER_KINDS[reduction]
    )


@op("Scatter")
def scatter_old(ctx: Context, x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0) -> Tensor:
    return scatter_elements(ctx, x, indices, updates, axis=axis)


@op("ScatterND")
def scatter_nd(
    ctx: Context, x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none"
) -> Tensor:
    depth = ix.number(indices.shape[-1]) if indices.rank else None
    if depth is None:
        raise Unsettled("indices whose last dimension is not a constant", "fix the input by `--dims`")
    lead = indices.rank - 1

    def where(*u: Expr) -> Sequence[Expr]:
        found = [checked_index(ctx, indices, (*u[:lead], const(k)), x.shape[k]) for k in range(depth)]
        return (*found, *u[lead:])

    extents = (*indices.shape[:-1], *x.shape[depth:])
    return scatter(
        lambda *i: x[i], x.shape, extents, where, lambda *u: updates[u], kind=_SCATTER_KINDS[reduction]
    )


@op("TensorScatter")
def tensor_scatter(
    ctx: Context,
    past: Tensor,
    update: Tensor,
    write: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    """A cache with new rows written from a start per batch entry on."""
    at = normal_axis(axis, past.rank)
    n = past.shape[at]

    def body(*i: Expr) -> Expr:
        start = as_expr(0) if write is None else cast(write[i[0]], I64)
        k = i[at] - start
        if mode == "circular":
            k = k % n
        test = inside((k, update.shape[at]))
        return select(test, update[(*i[:at], k, *i[at + 1 :])], past[i])

    return compute(past.shape, body, name="tensor_scatter")


@op("OneHot", keeps_types=True)
def one_hot(ctx: Context, indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    count = literal(depth)
    if count is not None:
        n: Expr = const(int(count))
    elif depth.dtype.is_int:
        n = ctx.extent(ctx.values(depth)[0], "depth")
    else:
        n = ctx.size(cast(depth[tuple(const(0) for _ in range(depth.rank))], I64), "depth")
    rank = indices.rank + 1
    at = normal_axis(axis, rank)

    def body(*i: Expr) -> Expr:
        v = cast(indices[(*i[:at], *i[at + 1 :])], I64)
        return select(eq(select(v < 0, v + n, v), i[at]), values[const(1)], values[const(0)])

    return compute((*indices.shape[:at], n, *indices.shape[at:]), body, name="one_hot")


@op("EyeLike", keeps_types=True)
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    kind = x.dtype if dtype is None else dtype_of(dtype)
    if x.rank != 2:
        raise Malformed(f"takes a matrix, not rank {x.rank}")
    return compute(x.shape, lambda i, j: select(eq(j - i, k), const(1, kind), const(0, kind)), name="eye")


# ---- sizes that the data decides ----


def _positions(count: Expr, test: Tensor) -> tuple[Tensor, Tensor]:
    """For a flat bool tensor: how many elements before each are true, and how many there are (a scalar)."""
    start = filled((), 0, I64, "start")

    def step(time: Expr, total: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        then = compute((), lambda: total[()] + cast(test[time], I64), name="total")
        return [then], [compute((), lambda: total[()] + 0, name="before")]

    (before,), (total,) = scan(count, [start], step, name="count")
    return before, total


def _row(before: Expr, n: Expr) -> Expr:
    """The row that an element goes to. It is below n wherever the test holds; said so that it can be seen."""
    return maximum(minimum(before, n - 1), const(0))


def _digits(flat: Expr, shape: Sequence[Expr]) -> list[Expr]:
    out: list[Expr] = []
    for k, n in enumerate(shape):
        digit = flat // ix.product(shape[k + 1 :])
        out.append(digit % n if k else digit)
    return out


@op("NonZero")
def non_zero(ctx: Context, x: Tensor) -> Tensor:
    shape = x.shape or (as_expr(1),)
    flat = ix.product(shape)

    def element(i: Expr) -> Expr:
        v = x[tuple(_digits(i, shape))] if x.rank else x[()]
        return ne(v, const(0, x.dtype))

    test = compute((flat,), element, name="test")
    before, total = _positions(flat, test)
    n = ctx.size(total[()], "nonzero")
    rank = len(shape)

    def coordinate(r: Expr, f: Expr) -> Expr:
        digits = _digits(f, shape)
        out = digits[-1]
        for k in reversed(range(rank - 1)):
            out = select(r < k + 1, digits[k], out)
        return out

    return scatter(
        lambda *_: as_expr(0),
        (rank, n),
        (rank, flat),
        lambda r, f: (r, _row(before[f], n)),
        coordinate,
        condition=lambda r, f: test[f],
        name="nonzero",
    )


@op("Compress")
def compress(ctx: Context, x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    source = x
    if axis is None:
        source = compute((x.size,), lambda i: x[tuple(_digits(i, x.shape))], name="flat")
    at = normal_axis(axis or 0, source.rank)
    count = minimum(condition.shape[0], source.shape[at])
    before, total = _positions(count, condition)
    n = ctx.size(total[()], "compress")
    shape = (*source.shape[:at], n, *source.shape[at + 1 :])
    updates = (*source.shape[:at], count, *source.shape[at + 1 :])
    return scatter(
        lambda *_: const(0, x.dtype),
        shape,
        updates,
        lambda *u: (*u[:at], _row(before[u[at]], n), *u[at + 1 :]),
        lambda *u: source[u],
        condition=lambda *u: condition[u[at]],
        name="compress",
    )
