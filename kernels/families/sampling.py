"""Sampling at positions that come from data: GridSample, RoiAlign, deformable convolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from fusile.ir.expr import Expr, apply, cast, const, eq, inside, maximum, minimum, select
from fusile.ir.tensor import Tensor, compute, reduce_sum, reduction
from fusile.ir.types import I64
from fusile.kernels.families.window import biased, window
from fusile.kernels.registry import Context, Malformed, Unsupported, op
from fusile.kernels.shapes import checked_index

Read = Callable[..., Expr]


def _clamped(i: Expr, n: Expr) -> Expr:
    return minimum(maximum(i, const(0)), n - 1)


def _whole(v: Expr) -> Expr:
    return cast(apply("floor", v), I64)


def interpolated(
    read: Read, at: Sequence[Expr], weights: Callable[[Expr], Sequence[Expr]], first: int
) -> Expr:
    """The weighted sum of the elements around a position; `first` is the offset of the first tap from its
    floor.
    """
    bases = [apply("floor", v) for v in at]
    rows = [weights(v - b) for v, b in zip(at, bases, strict=True)]
    starts = [cast(b, I64) + first for b in bases]
    total: Expr | None = None
    for taps in product(*(range(len(r)) for r in rows)):
        term = read(*(s + k for s, k in zip(starts, taps, strict=True)))
        for row, k in zip(rows, taps, strict=True):
            term = term * row[k]
        total = term if total is None else total + term
    assert total is not None
    return total


def linear_weights(t: Expr) -> list[Expr]:
    return [1 - t, t]


def cubic_weights(t: Expr) -> list[Expr]:
    """The weights of four taps at a distance t from the second, for a = -0.75."""
    a = -0.75

    def near(d: Expr) -> Expr:
        return (d * (a + 2) - (a + 3)) * d * d + 1

    def far(d: Expr) -> Expr:
        return ((d - 5) * d + 8) * d * a - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


# ---- GridSample ----


def _reflected(v: Expr, low: Expr, high: Expr) -> Expr:
    """v mirrored at both borders until it lies between them."""
    width = high - low
    offset = apply("mod", v - low, width * 2)
    back = select(width < offset, width * 2 - offset, offset) + low
    return select(const(0, v.dtype) < width, back, low)


def _borders(n: Expr, v: Expr, align: bool) -> tuple[Expr, Expr]:
    size = cast(n, v.dtype)
    return (const(0, v.dtype), size - 1) if align else (const(-0.5, v.dtype), size - 0.5)


@op("GridSample")
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """x [n, c, …] at the positions of grid [n, …, d], whose last dimension counts from the innermost
    dimension of x.
    """
    space = x.shape[2:]
    if grid.rank != x.rank or padding_mode not in ("zeros", "border", "reflection"):
        raise Malformed(f"a grid of rank {grid.rank} for a tensor of rank {x.rank}, padding {padding_mode!r}")
    if len(space) > 3:
        raise Unsupported(f"GridSample over {len(space)} dimensions", "up to three are compiled")
    align = bool(align_corners)

    def body(n: Expr, c: Expr, *s: Expr) -> Expr:
        at: list[Expr] = []
        for k, size in enumerate(space):
            g = grid[(n, *s, const(len(space) - 1 - k))]
            length = cast(size, g.dtype)
            v = (g + 1) * 0.5 * (length - 1) if align else ((g + 1) * length - 1) * 0.5
            if mode == "nearest":
                v = apply("round", v)
            at.append(_padded(v, size, padding_mode, align) if mode != "cubic" else v)

        def read(*i: Expr) -> Expr:
            if padding_mode == "reflection" and mode == "cubic":
                wide = [cast(k, grid.dtype) for k in i]
                i = tuple(
                    cast(_reflected(w, *_borders(m, w, align)), I64) for w, m in zip(wide, space, strict=True)
                )
            close = tuple(_clamped(k, m) for k, m in zip(i, space, strict=True))
            v = x[(n, c, *close)]
            return (
                select(inside(*zip(i, space, strict=True)), v, const(0, x.dtype))
                if padding_mode == "zeros"
                else v
            )

        if mode == "nearest":
            return read(*(cast(v, I64) for v in at))
        weights, first = (linear_weights, 0) if mode in ("linear", "bilinear") else (cubic_weights, -1)
        return interpolated(read, at, lambda t: [cast(w, x.dtype) for w in weights(t)], first)

    return compute((x.shape[0], x.shape[1], *grid.shape[1:-1]), body, name="grid_sample")


def _padded(v: Expr, size: Expr, how: str, align: bool) -> Expr:
    if how == "reflection":
        v = _reflected(v, *_borders(size, v, align))
    if how in ("border", "reflection"):
        return minimum(maximum(v, 0), cast(size, v.dtype) - 1)
    return v


# ---- RoiAlign ----


@op("AffineGrid")
def affine_grid(ctx: Context, theta: Tensor, size: Tensor, *, align_corners: int = 0) -> Tensor:
    """Positions [n, (depth,) height, width, 2 or 3] of an affine map. -1 and 1 are the corners of the output,
    or the outer edges of its elements (ONNX AffineGrid-20).
    """
    extents = [ctx.extent(n, "size") for n in ctx.values(size)[2:]]
    if len(extents) not in (2, 3) or theta.rank != 3:
        raise Malformed(f"takes the sizes of an image or a volume, and matrices, not {len(extents)} sizes")

    def place(at: Expr, n: Expr) -> Expr:
        where, count = cast(at, theta.dtype), cast(n, theta.dtype)
        if align_corners:  # a single element has no corners, and lies at the first
            return select(n < 2, const(-1, theta.dtype), 2 * where / maximum(count - 1, 1) - 1)
        return (2 * where + 1) / count - 1

    def body(*i: Expr) -> Expr:
        b, *at, row = i
        total = theta[b, row, const(len(extents))]
        for k, (a, n) in enumerate(zip(reversed(at), reversed(extents), strict=True)):
            total = total + theta[b, row, const(k)] * place(a, n)
        return total

    return compute((theta.shape[0], *extents, len(extents)), body, name="grid")


@op("RoiAlign")
def roi_align(
    ctx: Context,
    x: Tensor,
    rois: Tensor,
    batches: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Regions [k, (x1, y1, x2, y2)] cut into bins of a fixed number of samples each."""
    if sampling_ratio <= 0:
        raise Unsupported(
            "RoiAlign whose number of samples depends on the data", "set sampling_ratio above 0"
        )
    half = coordinate_transformation_mode == "half_pixel"
    ratio, sizes, kind = sampling_ratio, (output_height, output_width), x.dtype

    def position(r: Expr, k: int, cell: Expr, sample: Expr) -> Expr:
        """Along dimension k (0: y, 1: x)."""
        low, high = (rois[r, const(c)] * spatial_scale - (0.5 if half else 0.0) for c in (1 - k, 3 - k))
        length = high - low if half else maximum(high - low, 1)
        step = length / const(sizes[k], kind)
        return low + cast(cell, kind) * step + (cast(sample, kind) + 0.5) * step / const(ratio, kind)

    def body(r: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        batch = checked_index(ctx, batches, (r,), x.shape[0])
        point = _mean_of_corners if mode == "avg" else _largest_of_corners

        def sample(i: Expr, j: Expr) -> Expr:
            return point(x, batch, c, (position(r, 0, h, i), position(r, 1, w, j)))

        return reduction("sum" if mode == "avg" else "max", (ratio, ratio), sample)

    y = compute((rois.shape[0], x.shape[1], *sizes), body, name="roi_align")
    if mode != "avg" or ratio == 1:
        return y
    return compute(y.shape, lambda *i: y[i] * const(1.0 / (ratio * ratio), kind), name="mean")


def _near(x: Tensor, at: Sequence[Expr]) -> tuple[Expr, list[Expr]]:
    """(whether a position counts at all, the position moved into the image)."""
    sizes = [cast(n, x.dtype) for n in x.shape[2:]]
    test = inside()
    for v, n in zip(at, sizes, strict=True):
        test = test & (const(-1, x.dtype) <= v) & (v <= n)
    return test, [minimum(maximum(v, 0), n - 1) for v, n in zip(at, sizes, strict=True)]


def _mean_of_corners(x: Tensor, batch: Expr, c: Expr, at: Sequence[Expr]) -> Expr:
    test, near = _near(x, at)

    def read(*i: Expr) -> Expr:
        return x[(batch, c, *(_clamped(k, n) for k, n in zip(i, x.shape[2:], strict=True)))]

    return select(test, interpolated(read, near, linear_weights, 0), const(0, x.dtype))


def _largest_of_corners(x: Tensor, batch: Expr, c: Expr, at: Sequence[Expr]) -> Expr:
    """The largest weighted corner, which is what the standard's maximum goes over."""
    test, near = _near(x, at)
    bases = [apply("floor", v) for v in near]
    rows = [linear_weights(v - b) for v, b in zip(near, bases, strict=True)]
    best: Expr | None = None
    for j, k in product(range(2), range(2)):
        corner = zip(bases, (j, k), x.shape[2:], strict=True)
        v = x[(batch, c, *(_clamped(cast(b, I64) + d, n) for b, d, n in corner))] * rows[0][j] * rows[1][k]
        best = v if best is None else maximum(best, v)
    assert best is not None
    return select(test, best, const(0, x.dtype))


@op("MaxRoiPool")
def max_roi_pool(
    ctx: Context, x: Tensor, rois: Tensor, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0
) -> Tensor:
    """The largest element of every bin of regions [k, (batch, x1, y1, x2, y2)]; empty bins are 0."""
    from fusile.ir.interpret import identity

    space = x.shape[2:]
    least = const(identity("max", x.dtype), x.dtype)

    def bounds(r: Expr, k: int, cell: Expr) -> tuple[Expr, Expr]:
        low, high = (
            cast(apply("floor", rois[r, const(c)] * spatial_scale + 0.5), I64) for c in (2 - k, 4 - k)
        )
        step = cast(maximum(high - low + 1, const(1)), x.dtype) / const(pooled_shape[k], x.dtype)
        first = _whole(cast(cell, x.dtype) * step)
        last = cast(apply("ceil", cast(cell + 1, x.dtype) * step), I64)
        return tuple(minimum(maximum(b + low, const(0)), space[k]) for b in (first, last))  # type: ignore[return-value]

    def body(r: Expr, c: Expr, h: Expr, w: Expr) -> Expr:
        rows, columns = bounds(r, 0, h), bounds(r, 1, w)
        numbers = compute((rois.shape[0],), lambda k: cast(rois[k, const(0)], I64), name="batch")
        batch = checked_index(ctx, numbers, (r,), x.shape[0])

        def element(i: Expr, j: Expr) -> Expr:
            test = (rows[0] <= i) & (i < rows[1]) & (columns[0] <= j) & (j < columns[1])
            return select(test, x[batch, c, i, j], least)

        return reduction("max", space, element)

    y = compute((rois.shape[0], x.shape[1], *pooled_shape), body, name="roi_pool")
    return compute(y.shape, lambda *i: select(eq(y[i], least), const(0, x.dtype), y[i]), name="roi_pool")


# ---- deformable convolution ----


@op("DeformConv")
def deform_conv(
    ctx: Context,
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """A convolution whose taps are moved by `offset` [n, og * r * s * 2, h, w] and weighted by `mask`;
    outside is 0.
    """
    if x.rank != 4:
        raise Unsupported(f"DeformConv over {x.rank - 2} dimensions", "two are compiled")
    slide = window(
        x.shape[2:], w.shape[2:], strides=strides, dilations=dilations, pads=pads, auto_pad="NOTSET"
    )
    n, c = x.shape[:2]
    kh, kw = slide.kernel
    each = c // offset_group

    def sampled(i: Expr, k: Expr, r: Expr, s: Expr, *at: Expr) -> Expr:
        tap = ((k // each) * kh + r) * kw + s
        where = [
            cast(p - pad, x.dtype) + offset[(i, tap * 2 + d, *at)]
            for d, (p, pad) in enumerate(zip(slide.at(at, (r, s)), slide.before, strict=True))
        ]

        def read(*j: Expr) -> Expr:
            close = tuple(_clamped(q, m) for q, m in zip(j, x.shape[2:], strict=True))
            return select(inside(*zip(j, x.shape[2:], strict=True)), x[(i, k, *close)], const(0, x.dtype))

        v = interpolated(read, where, linear_weights, 0)
        return v if mask is None else v * mask[(i, tap, *at)]

    taps = compute((n, c, kh, kw, *slide.out), sampled, name="taps")
    filters, depth = w.shape[:2]
    per = filters // group

    def body(i: Expr, o: Expr, *at: Expr) -> Expr:
        start = const(0) if group == 1 else (o // per) * depth
        return reduce_sum((depth, kh, kw), lambda k, r, s: taps[(i, start + k, r, s, *at)] * w[o, k, r, s])

    return biased(compute((n, filters, *slide.out), body, name="conv"), b)
