"""Operators that move elements without changing them: each is a stage of one load with index arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from fusile.ir import index as ix
from fusile.ir.expr import Const, Expr, apply, as_expr, const, eq, inside, maximum, minimum, ne, select
from fusile.ir.tensor import Shape, Tensor, compute, from_exprs
from fusile.ir.types import I64
from fusile.kernels.late import is_late, late_axes, named, with_ones, without
from fusile.kernels.registry import Context, Malformed, op
from fusile.kernels.shapes import broadcast, broadcast_read, normal_axes, normal_axis, reshaped

_FAR = 10**9
"""Bounds of a slice from here on mean `to the end`, whatever the size is."""


@op("Shape")
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    extents = x.shape[slice(start, end)]
    return from_exprs(extents, (len(extents),), I64, "shape")


@op("Size")
def size(x: Tensor) -> Tensor:
    return from_exprs((x.size,), (), I64, "size")


# ---- reshaping ----


@op("Reshape")
def reshape(ctx: Context, x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    given = ctx.values(shape)
    out: list[Expr | None] = []
    for k, v in enumerate(given):
        n = ix.number(v)
        if n == 0 and not allowzero:
            if k >= x.rank:
                raise Malformed(
                    f"dimension {k} of the new shape copies one that a tensor of rank {x.rank} lacks"
                )
            out.append(x.shape[k])
        elif n is not None and n < 0:
            out.append(None)
        elif ix.nonnegative(ix.poly(v)):
            out.append(v)
        else:
            out.append(_size_when_run(ctx, x, given, k, bool(allowzero)))
    if out.count(None) > 1:
        raise Malformed(f"two dimensions of the new shape {given} are left open")
    if None in out:
        rest = ix.product(e for e in out if e is not None)
        out[out.index(None)] = _quotient(ctx, x.size, rest)
    extents = tuple(e for e in out if e is not None)
    ctx.require(eq(x.size, ix.product(extents)), f"{x.size} elements do not fit the shape {extents}")
    return reshaped(x, extents)


def _quotient(ctx: Context, total: Expr, part: Expr) -> Expr:
    whole, left = ix.split(ix.poly(total), ix.poly(part))
    if not left and ix.number(part) != 0:
        return ix.expr(whole)
    if ix.number(total) is not None and ix.number(part) is not None:
        if ix.number(part) == 0:
            return const(0)
        raise Malformed(f"{total} elements do not divide into {part}")
    return total // part


def _size_when_run(ctx: Context, x: Tensor, given: Sequence[Expr], k: int, allowzero: bool) -> Expr:
    """A dimension that only the run knows: it may turn out to be -1 or 0, with their special meaning."""
    rest = as_expr(1)
    for j, v in enumerate(given):
        if j != k:
            copied = x.shape[j] if j < x.rank and not allowzero else v
            rest = rest * select(eq(v, 0), copied, v)
    value = given[k]
    if not allowzero and k < x.rank:
        value = select(eq(value, 0), x.shape[k], value)
    return ctx.size(select(given[k] < 0, x.size // rest, value), "reshape")


@op("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    if not -x.rank <= axis <= x.rank:
        raise Malformed(f"axis {axis} is outside a tensor of rank {x.rank}")
    at = axis + x.rank if axis < 0 else axis
    return reshaped(x, (ix.product(x.shape[:at]), ix.product(x.shape[at:])), "flatten")


def _is_one(ctx: Context, n: Expr) -> bool:
    """Whether a dimension goes because its size is 1; for a symbol as the rest of the model asks."""
    known = ix.number(n)
    return ctx.assume(eq(n, 1), usually=False) if known is None else known == 1


@op("Squeeze")
def squeeze(ctx: Context, x: Tensor, axes: Tensor | None = None) -> Tensor:
    if axes is None:
        drop = tuple(k for k, n in enumerate(x.shape) if _is_one(ctx, n))
    elif is_late(axes):
        flags = named(ctx, axes, x.rank)
        for f, n in zip(flags, x.shape, strict=True):
            ctx.require(eq(select(f, n, const(1)), 1), f"a dimension of the size {n} cannot be dropped")
        return reshaped(x, without(ctx, x.shape, flags, len(ctx.values(axes))), "squeeze")
    else:
        drop = normal_axes(ctx.numbers(axes, "the list of axes"), x.rank)
    for k in drop:
        ctx.require(
            eq(x.shape[k], 1), f"dimension {k} has the size {x.shape[k]}, not 1, and cannot be dropped"
        )
    keep = [k for k in range(x.rank) if k not in drop]

    def body(*i: Expr) -> Expr:
        at = dict(zip(keep, i, strict=True))
        return x[tuple(at.get(k, const(0)) for k in range(x.rank))]

    return compute([x.shape[k] for k in keep], body, name="squeeze")


@op("Unsqueeze")
def unsqueeze(ctx: Context, x: Tensor, axes: Tensor) -> Tensor:
    if is_late(axes):
        flags = named(ctx, axes, x.rank + len(ctx.values(axes)))
        return reshaped(x, with_ones(ctx, x.shape, flags), "unsqueeze")
    given = ctx.numbers(axes, "the list of axes")
    rank = x.rank + len(given)
    new = normal_axes(given, rank)
    keep = [k for k in range(rank) if k not in new]
    extents = [x.shape[keep.index(k)] if k in keep else const(1) for k in range(rank)]
    return compute(extents, lambda *i: x[tuple(i[k] for k in keep)], name="unsqueeze")


@op("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    order = tuple(perm) if perm is not None else tuple(reversed(range(x.rank)))
    if sorted(order) != list(range(x.rank)):
        raise Malformed(f"{order} is no order of {x.rank} dimensions")
    if order == tuple(range(x.rank)):
        return x
    return compute(
        [x.shape[k] for k in order],
        lambda *i: x[tuple(i[order.index(k)] for k in range(x.rank))],
        name="transpose",
    )


@op("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = _four(x)
    b = blocksize
    depth = c // (b * b)

    def body(i: Expr, o: Expr, y: Expr, z: Expr) -> Expr:
        u, v = y % b, z % b
        channel = (u * b + v) * depth + o if mode == "DCR" else (o * b + u) * b + v
        return x[i, channel, y // b, z // b]

    return compute((n, depth, h * b, w * b), body, name="depth_to_space")


@op("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = _four(x)
    b = blocksize

    def body(i: Expr, o: Expr, y: Expr, z: Expr) -> Expr:
        if mode == "DCR":
            block, channel = o // c, o % c
        else:
            block, channel = o % (b * b), o // (b * b)
        return x[i, channel, y * b + block // b, z * b + block % b]

    return compute((n, c * (b * b), h // b, w // b), body, name="space_to_depth")


def _four(x: Tensor) -> Shape:
    if x.rank != 4:
        raise Malformed(f"takes a tensor of rank 4, not {x.rank}")
    return x.shape


# ---- repeating ----


@op("Expand")
def expand(ctx: Context, x: Tensor, shape: Tensor) -> Tensor:
    target = [ctx.extent(v) for v in ctx.values(shape)]
    for k, n in enumerate(x.shape, len(target) - x.rank):
        size = ix.number(n)
        if k >= 0 and size not in (None, 1) and ix.number(target[k]) is None:
            # Only 1 and the size itself are allowed here, and both mean the size.
            reason = f"the size {n} does not expand to {target[k]}"
            ctx.require(eq(target[k], n) | eq(target[k], 1), reason)
            target[k] = n
    extents = broadcast(ctx, x.shape, tuple(target))
    if len(extents) == x.rank and all(a is b for a, b in zip(extents, x.shape, strict=True)):
        return x
    return compute(extents, lambda *i: broadcast_read(x, i), name="expand")


@op("Tile")
def tile(ctx: Context, x: Tensor, repeats: Tensor) -> Tensor:
    counts = tuple(ctx.extent(v) for v in ctx.values(repeats))
    if len(counts) != x.rank:
        raise Malformed(f"{len(counts)} repeats for a tensor of rank {x.rank}")
    extents = [n * r for n, r in zip(x.shape, counts, strict=True)]

    def body(*i: Expr) -> Expr:
        return x[tuple(k if ix.number(r) == 1 else k % n for k, n, r in zip(i, x.shape, counts, strict=True))]

    return compute(extents, body, name="tile")


# ---- cutting and joining ----


@op("Slice")
def slice_(
    ctx: Context,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    first, last = ctx.values(starts), ctx.values(ends)
    if is_late(axes) or is_late(steps):
        return _sliced_late(ctx, x, first, last, axes, steps)
    where = ctx.numbers(axes, "the list of axes") if axes is not None else tuple(range(len(first)))
    by = ctx.numbers(steps, "the list of steps") if steps is not None else (1,) * len(first)
    if not len(first) == len(last) == len(where) == len(by):
        raise Malformed("starts, ends, axes and steps differ in length")
    cut: dict[int, tuple[Expr, Expr, Expr]] = {k: (as_expr(0), as_expr(1), n) for k, n in enumerate(x.shape)}
    for a, b, k, step in zip(first, last, where, by, strict=True):
        axis = normal_axis(k, x.rank)
        cut[axis] = _bounds(a, b, step, x.shape[axis])
    if all(ix.number(a) == 0 and n is x.shape[k] and ix.number(s) == 1 for k, (a, s, n) in cut.items()):
        return x
    extents = [cut[k][2] for k in range(x.rank)]
    return compute(
        extents, lambda *i: x[tuple(cut[k][0] + i[k] * cut[k][1] for k in range(x.rank))], name="slice"
    )


def _sliced_late(
    ctx: Context,
    x: Tensor,
    first: Sequence[Expr],
    last: Sequence[Expr],
    axes: Tensor | None,
    steps: Tensor | None,
) -> Tensor:
    """A slice whose axes or steps only the run knows."""
    at = [const(k) for k in range(len(first))] if axes is None else late_axes(ctx, axes, x.rank)
    by = [const(1) for _ in first] if steps is None else list(ctx.values(steps))
    if not len(first) == len(last) == len(at) == len(by):
        raise Malformed("starts, ends, axes and steps differ in length")
    cut = []
    for k, n in enumerate(x.shape):
        begin, end, step, touched = as_expr(0), n, as_expr(1), False
        for a, b, axis, s in zip(first, last, at, by, strict=True):
            mine = eq(axis, k)
            if not (isinstance(mine, Const) and not mine.value):
                begin, end, step = select(mine, a, begin), select(mine, b, end), select(mine, s, step)
                touched = True
        cut.append(_bounds_late(ctx, begin, end, step, n) if touched else (as_expr(0), as_expr(1), n))
    return compute(
        [count for _, _, count in cut],
        lambda *i: x[tuple(begin + j * step for j, (begin, step, _) in zip(i, cut, strict=True))],
        name="slice",
    )


def _bounds_late(ctx: Context, start: Expr, end: Expr, step: Expr, n: Expr) -> tuple[Expr, Expr, Expr]:
    """`_bounds` for a step that only the run knows."""
    ctx.require(ne(step, 0), "the step of a slice is 0")
    low, high = select(step < 0, const(-1), const(0)), select(step < 0, n - 1, n)
    first, last = _clamped(start, n, low, high), _clamped(end, n, low, high)
    way = select(step < 0, const(-1), const(1))
    count = maximum(ix.ceil_div((last - first) * way, maximum(step * way, as_expr(1))), as_expr(0))
    return first, step, ctx.size(count, "slice")


def _bounds(start: Expr, end: Expr, step: int, n: Expr) -> tuple[Expr, Expr, Expr]:
    """(first position, step, count) of a slice of a dimension of size n, with numpy's rules."""
    if step == 0:
        raise Malformed("the step of a slice is 0")
    size, a, b = ix.number(n), ix.number(start), ix.number(end)
    if size is not None and a is not None and b is not None:
        r = range(*slice(a, None if step < 0 and b < -size else b, step).indices(size))
        return const(r.start if len(r) else 0), const(step), const(len(r))
    low, high = (as_expr(0), n) if step > 0 else (as_expr(-1), n - 1)
    first = _clamped(start, n, low, high)
    last = _clamped(end, n, low, high)
    count = ix.ceil_div(last - first, step) if step > 0 else ix.ceil_div(first - last, -step)
    return first, const(step), maximum(count, as_expr(0))


def _clamped(bound: Expr, n: Expr, low: Expr, high: Expr) -> Expr:
    known = ix.number(bound)
    if known is not None and abs(known) >= _FAR:
        return high if known > 0 else low
    if known is not None:
        return maximum(bound + n, low) if known < 0 else minimum(bound, high)
    wrapped = select(bound < 0, bound + n, bound)
    return minimum(maximum(wrapped, low), high)


def joined(parts: Sequence[Tensor], axis: int, name: str = "concat") -> Tensor:
    """Tensors one after another along an axis."""
    parts = [p for p in parts if ix.number(p.shape[axis]) != 0] or list(parts[:1])
    if len(parts) == 1:
        return parts[0]
    offsets = list(accumulate((p.shape[axis] for p in parts), initial=as_expr(0)))
    extents = (*parts[0].shape[:axis], offsets[-1], *parts[0].shape[axis + 1 :])

    def body(*i: Expr) -> Expr:
        at = i[axis]
        out = _shifted(parts[-1], i, axis, offsets[-2])
        for part, begin, end in reversed(list(zip(parts[:-1], offsets[:-2], offsets[1:-1], strict=True))):
            out = select(at < end, _shifted(part, i, axis, begin), out)
        return out

    return compute(extents, body, name=name)


def _shifted(x: Tensor, i: Sequence[Expr], axis: int, begin: Expr) -> Expr:
    return x[(*i[:axis], i[axis] - begin, *i[axis + 1 :])]


@op("Concat")
def concat(ctx: Context, *xs: Tensor, axis: int) -> Tensor:
    parts = [x for x in xs if x is not None]
    at = normal_axis(axis, parts[0].rank)
    for x in parts[1:]:
        if x.rank != parts[0].rank:
            raise Malformed(f"tensors of rank {parts[0].rank} and {x.rank} cannot be joined")
        for k in range(x.rank):
            if k != at:
                reason = f"dimension {k} of the joined tensors differs: {parts[0].shape[k]} and {x.shape[k]}"
                ctx.require(eq(parts[0].shape[k], x.shape[k]), reason)
    return joined(parts, at)


@op("Split")
def split(
    ctx: Context,
    x: Tensor,
    split: Tensor | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    outputs: int = 1,
) -> list[Tensor]:
    at = normal_axis(axis, x.rank)
    n = x.shape[at]
    if split is not None:
        sizes = [ctx.extent(v) for v in ctx.values(split)]
        ctx.require(eq(sum(sizes, as_expr(0)), n), f"the parts {sizes} do not add up to {n}")
    else:
        count = num_outputs or outputs
        if count != outputs:
            raise Malformed(f"{count} parts for {outputs} outputs")
        part = ix.ceil_div(n, count)
        sizes = [part] * (count - 1) + [n - part * (count - 1)]
        sizes = [ctx.extent(s) for s in sizes]
    offsets = list(accumulate(sizes, initial=as_expr(0)))
    return [_cut(x, at, begin, width) for begin, width in zip(offsets[:-1], sizes, strict=True)]


def _cut(x: Tensor, axis: int, begin: Expr, width: Expr) -> Tensor:
    if width is x.shape[axis] and ix.number(begin) == 0:
        return x
    extents = (*x.shape[:axis], width, *x.shape[axis + 1 :])
    return compute(extents, lambda *i: x[(*i[:axis], i[axis] + begin, *i[axis + 1 :])], name="split")


@op("Pad")
def pad(
    ctx: Context,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    given = ctx.values(pads)
    if axes is not None and is_late(axes):
        at = late_axes(ctx, axes, x.rank)
        if len(given) != 2 * len(at):
            raise Malformed(f"{len(given)} pads for {len(at)} axes")
        sides = (given[: len(at)], given[len(at) :])
        spread = [
            sum((select(eq(a, k), p, const(0)) for a, p in zip(at, side, strict=True)), as_expr(0))
            for side in sides
            for k in range(x.rank)
        ]
        return _padded(ctx, x, spread, range(x.rank), value, mode)
    where = (
        range(x.rank)
        if axes is None
        else [normal_axis(a, x.rank) for a in ctx.numbers(axes, "the list of axes")]
    )
    return _padded(ctx, x, given, where, value, mode)


def _padded(
    ctx: Context, x: Tensor, given: Sequence[Expr], where: Sequence[int], value: Tensor | None, mode: str
) -> Tensor:
    """x with the given pads, those at the beginnings first, on some dimensions."""
    if len(given) != 2 * len(where):
        raise Malformed(f"{len(given)} pads for {len(where)} axes")
    low = {k: given[j] for j, k in enumerate(where)}
    high = {k: given[j + len(where)] for j, k in enumerate(where)}
    changed = [k for k in range(x.rank) if any(ix.number(p.get(k, as_expr(0))) != 0 for p in (low, high))]
    if not changed:
        return x
    extents = [n + low.get(k, 0) + high.get(k, 0) for k, n in enumerate(x.shape)]
    extents = [ctx.extent(e) for e in extents]
    fill = const(0, x.dtype) if value is None else value[tuple(const(0) for _ in range(value.rank))]

    def body(*i: Expr) -> Expr:
        at = [j - low[k] if k in changed else j for k, j in enumerate(i)]
        if mode == "constant":
            return select(inside(*((at[k], x.shape[k]) for k in changed)), x[tuple(at)], fill)
        for k in changed:
            at[k] = _reflected(mode, at[k], x.shape[k], low[k], high[k])
        return x[tuple(at)]

    return compute(extents, body, name="pad")


def _reflected(mode: str, at: Expr, n: Expr, low: Expr, high: Expr) -> Expr:
    match mode:
        case "edge":
            return minimum(maximum(at, as_expr(0)), n - 1)
        case "wrap":
            return at % n
        case "reflect":
            before, after, size = ix.number(low), ix.number(high), ix.number(n)
            once = before is not None and after is not None and size is not None and max(before, after) < size
            if once:
                back = at if after is not None and after <= 0 else select(at < n, at, (n - 1) * 2 - at)
                return back if before is not None and before <= 0 else select(at < 0, -at, back)
            turn = apply("mod", at, maximum((n - 1) * 2, as_expr(1)))
            return select(turn < n, turn, (n - 1) * 2 - turn)
    raise Malformed(f"Pad with mode {mode!r}")


@op("CenterCropPad")
def center_crop_pad(ctx: Context, x: Tensor, shape: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    target = [ctx.extent(v) for v in ctx.values(shape)]
    where = list(range(x.rank)) if axes is None else [normal_axis(a, x.rank) for a in axes]
    extents = list(x.shape)
    shift: dict[int, Expr] = {}
    for k, n in zip(where, target, strict=True):
        old = x.shape[k]
        shift[k] = select(n < old, (old - n) // 2, -((n - old) // 2))
        extents[k] = n
    live = [k for k in where if extents[k] is not x.shape[k]]

    def body(*i: Expr) -> Expr:
        at = [j + shift[k] if k in live else j for k, j in enumerate(i)]
        return select(inside(*((at[k], x.shape[k]) for k in live)), x[tuple(at)], const(0, x.dtype))

    return compute(extents, body, name="crop")


@op("Trilu")
def trilu(ctx: Context, x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    (shift,) = ctx.values(k) if k is not None else (as_expr(0),)

    def body(*i: Expr) -> Expr:
        keep = i[-2] + shift <= i[-1] if upper else i[-1] <= i[-2] + shift
        return select(keep, x[i], const(0, x.dtype))

    return compute(x.shape, body, name="trilu")


@op("ReverseSequence")
def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    def body(*i: Expr) -> Expr:
        n, t = lengths[i[batch_axis]], i[time_axis]
        at = select(t < n, n - 1 - t, t)
        return x[tuple(at if k == time_axis else j for k, j in enumerate(i))]

    return compute(x.shape, body, name="reverse")
