"""Resampling along each axis on its own: nearest, linear and cubic, as Resize defines them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fusile.ir import index as ix
from fusile.ir.expr import Const, Expr, apply, cast, const, eq, inside, maximum, minimum, select
from fusile.ir.tensor import Tensor, compute, constant, reduce_sum
from fusile.ir.types import F32, F64, I64, numpy_dtype
from fusile.kernels.registry import Context, Malformed, op
from fusile.kernels.shapes import MOST_TABULATED, normal_axis


@dataclass(frozen=True, slots=True)
class Plan:
    """How Resize reads along an axis."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    outside: bool
    """Whether weights of positions outside count as 0 and the others are scaled to 1."""
    extrapolation: float
    antialias: bool


@dataclass(frozen=True, slots=True)
class Axis:
    """One resized axis: its sizes, the scale (output per input) and the region of interest, numbers or
    expressions.
    """

    at: int
    old: Expr
    new: Expr
    scale: float | None
    scale_when_run: Expr | None
    region: tuple[Expr, Expr]

    @property
    def fixed(self) -> tuple[int, int, float] | None:
        """(old size, new size, scale), where all are numbers, and the region too."""
        old, new = ix.number(self.old), ix.number(self.new)
        if old is None or new is None or max(old, new) > MOST_TABULATED or self.scale_when_run is not None:
            return None
        if not all(isinstance(r, Const) for r in self.region):
            return None
        return old, new, self.scale if self.scale is not None else new / max(old, 1)

    @property
    def bounds(self) -> tuple[float, float]:
        """The region, where it is `fixed`."""
        first, last = (float(r.value) for r in self.region if isinstance(r, Const))
        return first, last

    @property
    def factor(self) -> Expr:
        """Output per input."""
        if self.scale is not None:
            return const(self.scale, F32)
        if self.scale_when_run is not None:
            return self.scale_when_run
        return cast(self.new, F32) / cast(self.old, F32)


def _coordinates(plan: Plan, old: int, new: int, scale: float, region: tuple[float, float]) -> np.ndarray:
    """The position in the input, a float, of every output position."""
    i = np.arange(new, dtype=np.float64)
    width = scale * old  # the output's size before rounding down
    match plan.coordinates:
        case "asymmetric":
            return i / scale
        case "half_pixel":
            return (i + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (i + 0.5) / scale - 0.5 if new > 1 else np.zeros(new)
        case "align_corners":
            return i * (old - 1) / (width - 1) if width > 1 else np.zeros(new)
        case "half_pixel_symmetric":
            centre, adjusted = old / 2, new / width if width else 1.0
            return centre * (1 - adjusted) + (i + 0.5) / scale - 0.5
        case "tf_half_pixel_for_nn":
            return (i + 0.5) / scale
        case "tf_crop_and_resize":
            first, last = region
            if width <= 1:
                return np.full(new, 0.5 * (first + last) * (old - 1))
            return first * (old - 1) + i * (last - first) * (old - 1) / (width - 1)
    raise Malformed(f"the coordinate transformation {plan.coordinates!r}")


def _coordinate(plan: Plan, axis: Axis, i: Expr) -> Expr:
    """The same as an expression, for sizes that are symbols."""
    at = cast(i, F32)
    old, new = cast(axis.old, F32), cast(axis.new, F32)
    scale = axis.factor
    width = new if axis.scale is None and axis.scale_when_run is None else scale * old
    match plan.coordinates:
        case "asymmetric":
            return at / scale
        case "half_pixel":
            return (at + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return select(const(1) < axis.new, (at + 0.5) / scale - 0.5, const(0, F32))
        case "align_corners":
            return select(const(1.0, F32) < width, at * (old - 1.0) / (width - 1.0), const(0, F32))
        case "half_pixel_symmetric":
            return old * 0.5 * (1.0 - new / width) + (at + 0.5) / scale - 0.5
        case "tf_half_pixel_for_nn":
            return (at + 0.5) / scale
        case "tf_crop_and_resize":
            first, last = axis.region
            spread = first * (old - 1.0) + at * (last - first) * (old - 1.0) / (width - 1.0)
            return select(const(1.0, F32) < width, spread, (first + last) * (old - 1.0) * 0.5)
    raise Malformed(f"the coordinate transformation {plan.coordinates!r}")


def _beyond(plan: Plan, axis: Axis, where: Expr, v: Expr) -> Expr:
    """What an output element is whose position in the input may lie outside it."""
    if plan.coordinates != "tf_crop_and_resize":
        return v
    outside = (where < 0) | (cast(axis.old - 1, F32) < where)
    return select(outside, const(plan.extrapolation, v.dtype), v)


# ---- nearest ----

_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda v: np.ceil(v - 0.5),
    "round_prefer_ceil": lambda v: np.floor(v + 0.5),
}


def _rounded(v: Expr, how: str) -> Expr:
    match how:
        case "floor" | "ceil":
            out = apply(how, v)
        case "round_prefer_floor":
            out = apply("ceil", v - 0.5)
        case _:
            out = apply("floor", v + 0.5)
    return cast(out, I64)


def _nearest(x: Tensor, axis: Axis, plan: Plan) -> Tensor:
    """One load; where the size grows by a whole factor, at an integer quotient."""
    if plan.nearest not in _ROUNDINGS:
        raise Malformed(f"the rounding {plan.nearest!r}")
    at = axis.at
    whole = _whole_factor(axis, plan)
    near, outside = (None, None) if whole is not None else _nearest_table(axis, plan)
    step = None if near is None else _stride(near, ix.number(axis.old) or 0)
    table = None if near is None else constant(near, "nearest")
    mask = constant(outside, "outside") if outside is not None and outside.any() else None

    def position(i: Expr) -> Expr:
        if whole is not None:
            return i // whole
        if step is not None:
            return i * step
        if table is not None:
            return table[i]
        found = _rounded(_coordinate(plan, axis, i), plan.nearest)
        return minimum(maximum(found, const(0)), axis.old - 1)

    def body(*i: Expr) -> Expr:
        v = x[(*i[:at], position(i[at]), *i[at + 1 :])]
        if axis.fixed is None and whole is None:
            return _beyond(plan, axis, _coordinate(plan, axis, i[at]), v)
        return v if mask is None else select(mask[i[at]], const(plan.extrapolation, x.dtype), v)

    return compute((*x.shape[:at], axis.new, *x.shape[at + 1 :]), body, name="nearest")


def _nearest_table(axis: Axis, plan: Plan) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The position of every output element, and where it lies outside; None where sizes are symbols."""
    if axis.fixed is None:
        return None, None
    old, new, scale = axis.fixed
    found = _coordinates(plan, old, new, scale, axis.bounds)
    outside = (found < 0) | (found > old - 1) if plan.coordinates == "tf_crop_and_resize" else None
    # The quotient of two floats may miss a whole number by its rounding error.
    near = np.clip(_ROUNDINGS[plan.nearest](np.round(found, 9)), 0, max(old - 1, 0)).astype(np.int64)
    return near, outside


def _whole_factor(axis: Axis, plan: Plan) -> int | None:
    """f where output position i reads input position i // f."""
    old, new = ix.number(axis.old), ix.number(axis.new)
    scale = axis.scale
    if scale is None and axis.scale_when_run is None and old and new is not None:
        scale = new / old
    if scale is None or not float(scale).is_integer() or scale < 1 or axis.new is not axis.old * int(scale):
        return None
    f = int(scale)
    # Any f positions behave alike, so one period decides.
    centred = plan.coordinates in (
        "half_pixel",
        "pytorch_half_pixel",
        "half_pixel_symmetric",
    ) and plan.nearest.startswith("round")
    plain = plan.coordinates in ("asymmetric", "tf_half_pixel_for_nn") and plan.nearest == "floor"
    if plan.coordinates == "pytorch_half_pixel" and not (new or 0) > 1:
        return None
    return f if centred or plain or (f == 1 and plan.coordinates in ("asymmetric", "half_pixel")) else None


def _stride(near: np.ndarray, old: int) -> int | None:
    """s where position i reads i * s (a size divided by a whole number)."""
    if len(near) < 2 or near[0] != 0:
        return None
    step = int(near[1])
    return step if step > 1 and np.array_equal(near, np.arange(len(near)) * step) and near[-1] < old else None


# ---- linear and cubic ----


def _cubic_weight(t: np.ndarray, a: float) -> np.ndarray:
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _taps(
    plan: Plan, old: int, new: int, scale: float, region: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(positions [new, taps], weights [new, taps], outside [new]) of every output position along an axis."""
    found = _coordinates(plan, old, new, scale, region)
    reach = 1.0 if plan.mode == "linear" else 2.0
    shrink = min(scale, 1.0) if plan.antialias else 1.0
    reach /= shrink
    first = np.floor(found).astype(np.int64) - math.ceil(reach) + 1
    positions = first[:, None] + np.arange(2 * math.ceil(reach))[None, :]
    distance = (positions - found[:, None]) * shrink
    if plan.mode == "linear":
        weights = np.maximum(1.0 - np.abs(distance), 0.0)
    else:
        weights = _cubic_weight(distance, plan.cubic)
    if plan.outside or plan.antialias:
        inside = (positions >= 0) & (positions < old)
        if plan.outside:
            weights = np.where(inside, weights, 0.0)
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total == 0, 1.0, total)
    beyond = (
        (found < 0) | (found > old - 1) if plan.coordinates == "tf_crop_and_resize" else np.zeros(new, bool)
    )
    return np.clip(positions, 0, max(old - 1, 0)), weights, beyond


def _weighted(ctx: Context, x: Tensor, axis: Axis, plan: Plan) -> Tensor:
    """A weighted sum of taps along an axis."""
    at, fixed = axis.at, axis.fixed
    shape = (*x.shape[:at], axis.new, *x.shape[at + 1 :])
    if fixed is None and (plan.antialias or plan.outside):
        return _scaled_weights_when_run(ctx, x, axis, plan)
    if fixed is None:
        return compute(shape, _weights_when_run(x, axis, plan), name=plan.mode)
    positions, weights, beyond = _taps(plan, *fixed, axis.bounds)
    count = positions.shape[1]
    mask = constant(beyond, "outside") if beyond.any() else None
    kind = numpy_dtype(x.dtype) if x.dtype.is_float else np.dtype(np.float32)

    def read(i: Sequence[Expr], position: Expr, weight: Expr) -> Expr:
        v = x[(*i[:at], position, *i[at + 1 :])]
        return (v if x.dtype.is_float else cast(v, F32)) * weight

    if count <= 4:  # a few loads side by side, with one table for each
        tables = [
            (constant(positions[:, k].copy(), "position"), constant(weights[:, k].astype(kind), "weight"))
            for k in range(count)
        ]

        def body(*i: Expr) -> Expr:
            terms = [read(i, p[i[at]], w[i[at]]) for p, w in tables]
            return _finish(x, plan, mask, i[at], sum(terms[1:], terms[0]))

        return compute(shape, body, name=plan.mode)
    position, weight = constant(positions, "position"), constant(weights.astype(kind), "weight")
    total = compute(
        shape,
        lambda *i: reduce_sum((count,), lambda k: read(i, position[i[at], k], weight[i[at], k])),
        name=plan.mode,
    )
    if mask is None and total.dtype is x.dtype:
        return total
    return compute(shape, lambda *i: _finish(x, plan, mask, i[at], total[i]), name=plan.mode)


def _finish(x: Tensor, plan: Plan, mask: Tensor | None, i: Expr, v: Expr) -> Expr:
    if mask is not None:
        v = select(mask[i], const(plan.extrapolation, v.dtype), v)
    return v if v.dtype is x.dtype else cast(apply("round", v), x.dtype)


def _weights_when_run(x: Tensor, axis: Axis, plan: Plan) -> Callable[..., Expr]:
    at = axis.at
    kind = x.dtype if x.dtype.is_float else F32

    def body(*i: Expr) -> Expr:
        where = _coordinate(plan, axis, i[at])
        base = apply("floor", where)
        t, first = where - base, cast(base, I64)
        weights = [1.0 - t, t] if plan.mode == "linear" else _cubic_at(t, plan.cubic)
        out: Expr | None = None
        for k, w in enumerate(weights):
            p = minimum(maximum(first + (k - len(weights) // 2 + 1), const(0)), axis.old - 1)
            term = cast(x[(*i[:at], p, *i[at + 1 :])], kind) * cast(w, kind)
            out = term if out is None else out + term
        assert out is not None
        return _finish(x, plan, None, i[at], _beyond(plan, axis, where, out))

    return body


def _scaled_weights_when_run(ctx: Context, x: Tensor, axis: Axis, plan: Plan) -> Tensor:
    """Weights scaled to a sum of 1, of as many taps as the factor asks for: `_taps` for sizes that are
    symbols.
    """
    at = axis.at
    kind = x.dtype if x.dtype.is_float else F32
    shrink = minimum(axis.factor, const(1.0, F32)) if plan.antialias else const(1.0, F32)
    reach = const(1.0 if plan.mode == "linear" else 2.0, F32)
    half = ctx.size(cast(apply("ceil", reach / shrink), I64), "taps")

    def tap(i: Expr, k: Expr) -> tuple[Expr, Expr]:
        """A position, and its weight."""
        where = _coordinate(plan, axis, i)
        place = cast(apply("floor", where), I64) - half + 1 + k
        distance = apply("abs", (cast(place, F32) - where) * shrink)
        if plan.mode == "linear":
            weight = maximum(1.0 - distance, const(0, F32))
        else:
            weight = _cubic_weight_of(distance, plan.cubic)
        if plan.outside:
            weight = select(inside((place, axis.old)), weight, const(0, F32))
        return minimum(maximum(place, const(0)), axis.old - 1), weight

    def norm(i: Expr) -> Expr:
        return reduce_sum((half * 2,), lambda k: tap(i, k)[1])

    total = compute((axis.new,), norm, name="norm")

    def body(*i: Expr) -> Expr:
        def part(k: Expr) -> Expr:
            position, weight = tap(i[at], k)
            return cast(x[(*i[:at], position, *i[at + 1 :])], kind) * cast(weight, kind)

        return reduce_sum((half * 2,), part)

    shape = (*x.shape[:at], axis.new, *x.shape[at + 1 :])
    sums = compute(shape, body, name=plan.mode)

    def scaled(*i: Expr) -> Expr:
        n = total[i[at]]
        v = sums[i] / cast(select(eq(n, const(0, F32)), const(1, F32), n), kind)
        return _finish(x, plan, None, i[at], _beyond(plan, axis, _coordinate(plan, axis, i[at]), v))

    return compute(shape, scaled, name="scaled")


def _cubic_weight_of(d: Expr, a: float) -> Expr:
    """`_cubic_weight` as an expression of a distance of at least 0."""
    near = (d * (a + 2) - (a + 3)) * d * d + 1.0
    far = ((d - 5.0) * d + 8.0) * d * a - 4 * a
    return select(d <= 1.0, near, select(d < 2.0, far, const(0, F32)))


def _cubic_at(t: Expr, a: float) -> list[Expr]:
    """The four weights at a distance t from the second tap."""

    def near(d: Expr) -> Expr:
        return (d * (a + 2) - (a + 3)) * d * d + 1.0

    def far(d: Expr) -> Expr:
        return ((d - 5.0) * d + 8.0) * d * a - 4 * a

    return [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]


# ---- the operator ----


def _axes_of(
    ctx: Context,
    x: Tensor,
    axes: Sequence[int] | None,
    scales: Tensor | None,
    sizes: Tensor | None,
    roi: Tensor | None,
    policy: str,
    crop: bool,
) -> list[Axis]:
    where = list(range(x.rank)) if axes is None else [normal_axis(a, x.rank) for a in axes]
    whole = (const(0, F32), const(1, F32))
    regions = _regions(ctx, roi, len(where)) if crop else [whole] * len(where)
    if sizes is not None and ix.number(sizes.shape[0]) != 0:
        return _by_sizes(ctx, x, where, ctx.values(sizes), regions, policy)
    if scales is None:
        raise Malformed("neither scales nor sizes are given")
    factors = ctx.floats(scales)
    count = ix.number(scales.shape[0])
    if count != len(where):
        raise Malformed(f"{count} scales for {len(where)} axes")
    out: list[Axis] = []
    for k, at in enumerate(where):
        n = x.shape[at]
        if factors is not None:
            out.append(Axis(at, n, _scaled(ctx, n, factors[k]), factors[k], None, regions[k]))
        else:
            v = scales.known[k] if scales.known is not None else scales[const(k)]
            new = cast(apply("floor", cast(n, F32) * v), I64)
            out.append(Axis(at, n, ctx.size(new, "resize"), None, v, regions[k]))
    return out


def _scaled(ctx: Context, n: Expr, factor: float) -> Expr:
    """floor(n * factor), in integers where the factor is a simple fraction."""
    size = ix.number(n)
    if size is not None:
        return const(math.floor(size * factor))
    if factor.is_integer():
        return n * int(factor)
    if (1.0 / factor).is_integer():
        return n // int(1.0 / factor)
    return cast(apply("floor", cast(n, F32) * factor), I64)


def _by_sizes(
    ctx: Context,
    x: Tensor,
    where: Sequence[int],
    sizes: Sequence[Expr],
    regions: Sequence[tuple[Expr, Expr]],
    policy: str,
) -> list[Axis]:
    if len(sizes) != len(where):
        raise Malformed(f"{len(sizes)} sizes for {len(where)} axes")
    if policy == "stretch":
        return [
            Axis(at, x.shape[at], ctx.extent(n), None, None, r)
            for at, n, r in zip(where, sizes, regions, strict=True)
        ]
    numbers = [(ix.number(x.shape[at]), ix.number(n)) for at, n in zip(where, sizes, strict=True)]
    ratios = [b / a for a, b in numbers if a is not None and b is not None]
    if len(ratios) != len(numbers):
        return _by_late_sizes(ctx, x, where, sizes, regions, policy)
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [
        Axis(at, x.shape[at], const(math.floor(scale * (a or 0) + 0.5)), scale, None, r)
        for at, (a, _), r in zip(where, numbers, regions, strict=True)
    ]


def _by_late_sizes(
    ctx: Context,
    x: Tensor,
    where: Sequence[int],
    sizes: Sequence[Expr],
    regions: Sequence[tuple[Expr, Expr]],
    policy: str,
) -> list[Axis]:
    """One factor for all axes, of sizes that only the run knows."""
    factor: Expr | None = None
    for at, n in zip(where, sizes, strict=True):
        ratio = cast(n, F64) / cast(x.shape[at], F64)
        pick = minimum if policy == "not_larger" else maximum
        factor = ratio if factor is None else pick(factor, ratio)
    assert factor is not None
    out = []
    for at, region in zip(where, regions, strict=True):
        new = ctx.size(cast(apply("floor", cast(x.shape[at], F64) * factor + 0.5), I64), "resize")
        out.append(Axis(at, x.shape[at], new, None, cast(factor, F32), region))
    return out


def _regions(ctx: Context, roi: Tensor | None, count: int) -> list[tuple[Expr, Expr]]:
    if roi is None or ix.number(roi.size) != 2 * count:
        raise Malformed(f"the region of interest takes {2 * count} numbers")
    known = ctx.floats(roi)
    values = [cast(roi[const(k)], F32) if known is None else const(known[k], F32) for k in range(2 * count)]
    return [(values[k], values[k + count]) for k in range(count)]


@op("Resize")
def resize(
    ctx: Context,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Axis by axis: the weights of all modes are products of weights per axis."""
    if mode not in ("nearest", "linear", "cubic"):
        raise Malformed(f"the mode {mode!r}")
    # A weight outside is always left out under antialias, as the reference does.
    plan = Plan(
        mode,
        coordinate_transformation_mode,
        nearest_mode,
        cubic_coeff_a,
        bool(exclude_outside),
        extrapolation_value,
        bool(antialias),
    )
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    out = x
    for axis in _axes_of(ctx, x, axes, scales, sizes, roi, keep_aspect_ratio_policy, crop):
        if axis.new is axis.old and not crop and axis.scale in (None, 1.0):
            continue
        out = _nearest(out, axis, plan) if mode == "nearest" else _weighted(ctx, out, axis, plan)
    return out
