"""ONNX Runtime's operators on quantised tensors, element by element and over windows (domain com.microsoft).

They take tensors of 8 bits with a scale and a zero point each. Where a result falls between two bytes, its
rounding follows ONNX Runtime's own order of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, cast, const, maximum, minimum, select
from fusile.ir.tensor import Tensor, compute, reduce_sum
from fusile.ir.types import F32, I32, DType
from fusile.kernels.families import activation
from fusile.kernels.families.elementwise import unary
from fusile.kernels.families.movement import concat, transpose
from fusile.kernels.families.quantised import qlinear_conv, quantised
from fusile.kernels.families.reduction import reduced
from fusile.kernels.families.window import window
from fusile.kernels.registry import Context, Malformed, op
from fusile.kernels.shapes import broadcast, broadcast_read, normal_axis, padded

MICROSOFT = "com.microsoft"


def single(t: Tensor) -> Expr:
    """The element of a tensor of one."""
    return t[tuple(const(0) for _ in range(t.rank))]


def zero_of(t: Tensor | None) -> Expr:
    """A zero point as an i32, 0 where it is left out."""
    return const(0, I32) if t is None else cast(single(t), I32)


def saturated(v: Expr, to: DType) -> Expr:
    """A float rounded to the nearest whole number (ties to even), saturated to a type of 8 bits."""
    low = -(1 << (to.bits - 1)) if to.kind == "i" else 0
    top = (1 << (to.bits - (to.kind == "i"))) - 1
    return cast(minimum(maximum(apply("round", v), const(low, v.dtype)), const(top, v.dtype)), to)


def real(v: Expr, scale: Tensor, zero: Tensor | None) -> Expr:
    """What a quantised element stands for."""
    return cast(cast(v, I32) - zero_of(zero), F32) * single(scale)


def stored(v: Expr, scale: Tensor, zero: Tensor | None, to: DType) -> Expr:
    """A number in a quantised type."""
    return quantised(v / single(scale), None if zero is None else single(zero), to)


# ---- element by element ----


@op("QLinearAdd", MICROSOFT)
def qlinear_add(
    ctx: Context,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    c_scale: Tensor,
    c_zero: Tensor | None = None,
) -> Tensor:
    """The zero points of all three join into one number, to which the scaled bytes are added."""
    shape = broadcast(ctx, a.shape, b.shape)
    factors = [
        compute((), lambda s=s: single(s) / single(c_scale), name="factor") for s in (a_scale, b_scale)
    ]

    def fixed() -> Expr:
        zeros = [cast(zero_of(z), F32) for z in (a_zero, b_zero, c_zero)]
        return zeros[2] - (factors[0][()] * zeros[0] + factors[1][()] * zeros[1])

    shift = compute((), fixed, name="shift")

    def body(*i: Expr) -> Expr:
        first, second = (cast(broadcast_read(t, i), F32) for t in (a, b))
        inner = apply("fma", second, factors[1][()], shift[()])
        return saturated(apply("fma", first, factors[0][()], inner), a.dtype)

    return compute(shape, body, name="qlinear_add")


@op("QLinearMul", MICROSOFT)
def qlinear_mul(
    ctx: Context,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    c_scale: Tensor,
    c_zero: Tensor | None = None,
) -> Tensor:
    shape = broadcast(ctx, a.shape, b.shape)
    factor = compute((), lambda: single(a_scale) * single(b_scale) / single(c_scale), name="factor")

    def body(*i: Expr) -> Expr:
        first, second = (cast(broadcast_read(t, i), I32) - zero_of(z) for t, z in ((a, a_zero), (b, b_zero)))
        return saturated(cast(first * second, F32) * factor[()] + cast(zero_of(c_zero), F32), a.dtype)

    return compute(shape, body, name="qlinear_mul")


def _mapped(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None,
    f: Callable[[Expr], Expr],
    name: str,
) -> Tensor:
    return unary(x, lambda v: stored(f(real(v, x_scale, x_zero)), y_scale, y_zero, x.dtype), name)


@op("QLinearSigmoid", MICROSOFT)
def qlinear_sigmoid(
    x: Tensor, x_scale: Tensor, x_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None
) -> Tensor:
    return _mapped(x, x_scale, x_zero, y_scale, y_zero, activation.sigmoid_of, "qlinear_sigmoid")


@op("QLinearLeakyRelu", MICROSOFT)
def qlinear_leaky_relu(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    alpha: float = 0.01,
) -> Tensor:
    return _mapped(
        x, x_scale, x_zero, y_scale, y_zero, lambda v: activation.leaky_of(v, alpha), "qlinear_leaky_relu"
    )


@op("QLinearWhere", MICROSOFT)
def qlinear_where(
    ctx: Context,
    condition: Tensor,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    y: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    z_scale: Tensor,
    z_zero: Tensor,
) -> Tensor:
    shape = broadcast(ctx, condition.shape, x.shape, y.shape)

    def body(*i: Expr) -> Expr:
        yes = real(broadcast_read(x, i), x_scale, x_zero)
        no = real(broadcast_read(y, i), y_scale, y_zero)
        return stored(select(broadcast_read(condition, i), yes, no), z_scale, z_zero, x.dtype)

    return compute(shape, body, name="qlinear_where")


@op("QLinearConcat", MICROSOFT)
def qlinear_concat(ctx: Context, y_scale: Tensor, y_zero: Tensor, *xs: Tensor, axis: int) -> Tensor:
    """Tensors, each followed by its scale and zero point, brought to one scale and joined."""
    if not xs or len(xs) % 3:
        raise Malformed(f"takes a scale and a zero point with every tensor, and has {len(xs)} inputs")
    parts = [
        _mapped(x, scale, zero, y_scale, y_zero, lambda v: v, "requantise")
        for x, scale, zero in zip(xs[0::3], xs[1::3], xs[2::3], strict=True)
    ]
    return concat(ctx, *parts, axis=axis)


@op("QLinearSoftmax", MICROSOFT)
def qlinear_softmax(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    axis: int | None = None,
    opset: int,
) -> Tensor:
    """Shares of 1 / y_scale, which is taken to be a whole number; before opset 13 over all dimensions from
    `axis` on.
    """
    at = normal_axis((1 if opset < 13 else -1) if axis is None else axis, x.rank)
    axes = list(range(at, x.rank)) if opset < 13 else [at]
    top = reduced(x, axes, "max", keep=True, name="max")

    def kept(i: Sequence[Expr]) -> tuple[Expr, ...]:
        return tuple(const(0) if k in axes else j for k, j in enumerate(i))

    def power(*i: Expr) -> Expr:
        below = cast(x[i], I32) - cast(top[kept(i)], I32)
        return apply("exp", cast(below, F32) * single(x_scale))

    e = compute(x.shape, power, name="exp")
    total = reduced(e, axes, "sum", keep=True, name="sum")
    steps = compute((), lambda: apply("floor", 1 / single(y_scale)), name="steps")

    def share(*i: Expr) -> Expr:
        return quantised(
            e[i] * steps[()] / total[kept(i)], None if y_zero is None else single(y_zero), x.dtype
        )

    return compute(x.shape, share, name="qlinear_softmax")


# ---- windows ----


def _first(x: Tensor) -> Tensor:
    """A tensor with channels last as one with channels first."""
    return transpose(x, perm=(0, x.rank - 1, *range(1, x.rank - 1)))


def _last(x: Tensor) -> Tensor:
    return transpose(x, perm=(0, *range(2, x.rank), 1))


@op("QLinearConv", MICROSOFT)
def qlinear_conv_of_layout(
    ctx: Context,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    channels_last: int = 0,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """QLinearConv; with `channels_last` x and the result are [n, …, c]. Filters are [o, c, …] either way."""
    y = qlinear_conv(
        ctx,
        _first(x) if channels_last else x,
        x_scale,
        x_zero,
        w,
        w_scale,
        w_zero,
        y_scale,
        y_zero,
        b,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    return _last(y) if channels_last else y


@op("QLinearAveragePool", MICROSOFT)
def qlinear_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The mean over a window of what the bytes stand for. Windows that count their padding count all of it,
    even what only ceil_mode adds.
    """
    wide = unary(_first(x) if channels_last else x, lambda v: real(v, x_scale, x_zero), "dequantise")
    space = wide.shape[2:]
    slide = window(
        space,
        kernel_shape,
        strides=strides,
        dilations=None,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=bool(ceil_mode),
    )
    p = padded(wide, slide.before, slide.after, 0)

    def sum_at(n: Expr, c: Expr, *s: Expr) -> Expr:
        return reduce_sum(slide.kernel, lambda *r: p[(n, c, *slide.at(s, r))])

    total = compute((*wide.shape[:2], *slide.out), sum_at, name="sum")

    def counted(s: Sequence[Expr]) -> Expr:
        count: Expr = const(1)
        for at, k, step, before, n in zip(s, slide.kernel, slide.strides, slide.before, space, strict=True):
            begin = at * step - before
            inner = minimum(begin + k, n) - maximum(begin, const(0))
            count = count * (k if count_include_pad else inner)
        return count

    def finish(n: Expr, c: Expr, *s: Expr) -> Expr:
        v = total[(n, c, *s)] / cast(counted(s), F32)
        return saturated(v / single(y_scale) + cast(zero_of(y_zero), F32), x.dtype)

    y = compute(total.shape, finish, name="qlinear_average_pool")
    return _last(y) if channels_last else y


@op("QLinearGlobalAveragePool", MICROSOFT)
def qlinear_global_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    *,
    channels_last: int = 0,
) -> Tensor:
    """An exact sum of bytes, scaled once."""
    axes = list(range(1, x.rank - 1)) if channels_last else list(range(2, x.rank))
    count = ix.product([x.shape[k] for k in axes])
    total = reduced(x, axes, "sum", keep=True, of=lambda v: cast(v, I32) - zero_of(x_zero), name="sum")
    factor = compute((), lambda: single(x_scale) / (single(y_scale) * cast(count, F32)), name="factor")
    return unary(
        total, lambda v: quantised(cast(v, F32) * factor[()], single(y_zero), x.dtype), "qlinear_global_pool"
    )
