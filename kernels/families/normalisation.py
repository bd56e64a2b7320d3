"""Normalisations: statistics as stages of their own, then one stage that applies them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, cast, const, eq, select
from fusile.ir.tensor import Tensor, compute, reduce_sum
from fusile.ir.types import BY_CODE, F32, F64, DType
from fusile.kernels.families.elementwise import unary
from fusile.kernels.families.reduction import averaged, mean, reduced
from fusile.kernels.registry import Malformed, op
from fusile.kernels.shapes import broadcast_read, normal_axes, normal_axis, padded


def _as(x: Tensor, kind: DType) -> Tensor:
    return x if x.dtype is kind else unary(x, lambda v: cast(v, kind), "cast")


def _wide(kind: DType) -> DType:
    """The type in which values of a float type are summed."""
    return F32 if kind.bits < 32 else kind


def _inverse_root(variance: Tensor, epsilon: float) -> Tensor:
    return unary(variance, lambda v: 1 / apply("sqrt", v + epsilon), "inverse")


def _kept(i: Sequence[Expr], axes: Sequence[int]) -> tuple[Expr, ...]:
    return tuple(const(0) if k in axes else j for k, j in enumerate(i))


def moments(x: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and variance (of centred elements) over axes, which stay with extent 1."""
    middle = mean(x, axes, keep=True)
    centred = compute(x.shape, lambda *i: x[i] - middle[_kept(i, axes)], name="centred")
    return middle, mean(centred, axes, keep=True, of=lambda v: v * v, name="variance")


def _of_sum(x: Tensor, axes: Sequence[int], f: Callable[[Expr], Expr]) -> Callable[[Expr], Expr]:
    """f of the mean that a sum over axes of x makes, in float64: there is one for many elements, all of which
    its rounding errors would move.
    """
    mean_of = averaged([x.shape[k] for k in axes])
    return lambda v: cast(f(mean_of(cast(v, F64))), v.dtype)


def standardised(x: Tensor, axes: Sequence[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + epsilon) over axes; also the mean and 1 / the root."""
    middle = unary(reduced(x, axes, "sum", keep=True, name="sum"), _of_sum(x, axes, lambda v: v), "mean")
    centred = compute(x.shape, lambda *i: x[i] - middle[_kept(i, axes)], name="centred")
    squares = reduced(centred, axes, "sum", keep=True, of=lambda v: v * v, name="squares")
    inverse = unary(squares, _of_sum(x, axes, lambda v: 1 / apply("sqrt", v + epsilon)), "inverse")
    y = compute(x.shape, lambda *i: (x[i] - middle[_kept(i, axes)]) * inverse[_kept(i, axes)], name="normal")
    return y, middle, inverse


@op("BatchNormalization", keeps_types=True)
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> tuple[Tensor, ...]:
    """x * factor[c] + shift[c], the two made once from the statistics."""
    if training_mode:
        return _batch_statistics(x, scale, bias, running_mean, running_var, epsilon, momentum)
    return (_affine(x, scale, bias, running_mean, running_var, epsilon),)


def _affine(
    x: Tensor, scale: Tensor, bias: Tensor, middle: Tensor, variance: Tensor, epsilon: float
) -> Tensor:
    kind = _wide(scale.dtype if scale.dtype.bits >= x.dtype.bits else x.dtype)
    scale, bias, middle, variance = (_as(t, kind) for t in (scale, bias, middle, variance))
    factor = compute(scale.shape, lambda c: scale[c] / apply("sqrt", variance[c] + epsilon), name="factor")
    shift = compute(scale.shape, lambda c: bias[c] - middle[c] * factor[c], name="shift")

    def body(*i: Expr) -> Expr:
        c = i[1] if x.rank > 1 else const(0)
        return cast(cast(x[i], kind) * factor[c] + shift[c], x.dtype)

    return compute(x.shape, body, name="batch_norm")


def _batch_statistics(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    epsilon: float,
    momentum: float,
) -> tuple[Tensor, ...]:
    kind = running_mean.dtype
    wide = _as(x, _wide(kind))
    axes = [k for k in range(x.rank) if k != 1]
    middle, variance = moments(wide, axes)

    def channel(t: Tensor) -> Tensor:
        return compute(
            scale.shape,
            lambda c: t[tuple(c if k == 1 else const(0) for k in range(x.rank))],
            name="statistic",
        )

    def mixed(old: Tensor, new: Tensor) -> Tensor:
        def body(c: Expr) -> Expr:
            return cast(cast(old[c], _wide(kind)) * momentum + new[c] * (1.0 - momentum), kind)

        return compute(scale.shape, body, name="running")

    now = channel(middle), channel(variance)
    y = _affine(x, scale, bias, *now, epsilon)
    return y, mixed(running_mean, now[0]), mixed(running_var, now[1])


@op("InstanceNormalization")
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    y, _, _ = standardised(x, range(2, x.rank), epsilon)
    return compute(x.shape, lambda *i: y[i] * scale[i[1]] + bias[i[1]], name="instance_norm")


@op("LayerNormalization", keeps_types=True)
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    axes = range(normal_axis(axis, x.rank), x.rank)
    y, middle, inverse = standardised(_as(x, _stash(x, stash_type)), axes, epsilon)

    def body(*i: Expr) -> Expr:
        out = cast(y[i], x.dtype) * broadcast_read(scale, i)
        return out if bias is None else out + broadcast_read(bias, i)

    return (compute(x.shape, body, name="layer_norm"), middle, inverse)[:outputs]


def _stash(x: Tensor, code: int) -> DType:
    """The type in which statistics are worked out: the asked one, unless the input or float32 is finer."""
    kind = _wide(BY_CODE.get(code, F32))
    return kind if kind.bits > x.dtype.bits else x.dtype


@op("RMSNormalization", keeps_types=True)
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    axes = range(normal_axis(axis, x.rank), x.rank)
    wide = _as(x, _stash(x, stash_type))
    inverse = _inverse_root(mean(wide, axes, keep=True, of=lambda v: v * v, name="square"), epsilon)

    def body(*i: Expr) -> Expr:
        return cast(wide[i] * inverse[_kept(i, axes)], x.dtype) * broadcast_read(scale, i)

    return compute(x.shape, body, name="rms_norm")


@op("GroupNormalization", keeps_types=True)
def group_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    n, c, *space = x.shape
    each = c // num_groups
    wide = _as(x, _stash(x, stash_type))

    def per_group(of: Tensor, square: bool, name: str) -> Tensor:
        def body(i: Expr, g: Expr) -> Expr:
            def element(k: Expr, *s: Expr) -> Expr:
                v = of[(i, g * each + k, *s)]
                return v * v if square else v

            return reduce_sum((each, *space), element)

        total = compute((n, num_groups), body, name="sum")
        return unary(total, averaged((each, *space)), name)

    middle = per_group(wide, False, "mean")
    centred = compute(x.shape, lambda i, k, *s: wide[(i, k, *s)] - middle[i, k // each], name="centred")
    inverse = _inverse_root(per_group(centred, True, "variance"), epsilon)

    def finish(i: Expr, k: Expr, *s: Expr) -> Expr:
        v = cast(centred[(i, k, *s)] * inverse[i, k // each], x.dtype)
        at = k if ix.number(scale.shape[0]) != num_groups or ix.number(c) == num_groups else k // each
        return v * scale[at] + bias[at]

    return compute(x.shape, finish, name="group_norm")


@op("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    if p not in (1, 2):
        raise Malformed(f"p is 1 or 2, not {p}")
    at = normal_axis(axis, x.rank)
    of = (lambda v: apply("abs", v)) if p == 1 else (lambda v: v * v)
    norm = reduced(x, [at], "sum", keep=True, of=of, name="norm")
    if p == 2:
        norm = unary(norm, lambda v: apply("sqrt", v), "norm")

    def body(*i: Expr) -> Expr:
        n = norm[_kept(i, [at])]
        zero = const(0, x.dtype)
        return select(eq(n, zero), zero, x[i] / n)

    return compute(x.shape, body, name="lp_norm")


@op("LRN")
def lrn(x: Tensor, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int) -> Tensor:
    square = unary(x, lambda v: v * v, "square")
    before, rest = (size - 1) // 2, [0] * (x.rank - 2)
    wide = padded(square, [before, *rest], [size - 1 - before, *rest], 0)
    total = compute(
        x.shape, lambda n, c, *s: reduce_sum((size,), lambda k: wide[(n, c + k, *s)]), name="window"
    )

    def body(*i: Expr) -> Expr:
        base = total[i] * (alpha / size) + bias
        if beta == 0.75:  # x ** 0.75 by roots
            root = apply("sqrt", base)
            return x[i] / (root * apply("sqrt", root))
        return x[i] / apply("pow", base, const(beta, x.dtype))

    return compute(x.shape, body, name="lrn")


@op("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    over = normal_axes(axes, x.rank)
    middle, variance = moments(x, over)

    def body(*i: Expr) -> Expr:
        at = _kept(i, over)
        return (x[i] - middle[at]) / (apply("sqrt", variance[at]) + 1e-9)

    return compute(x.shape, body, name="mvn")
