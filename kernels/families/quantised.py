"""Quantised operators: integer arithmetic is exact, and rounding to the result's type is stated once
(`quantised`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusile.ir import index as ix
from fusile.ir.expr import Const, Expr, apply, cast, const, eq, maximum, minimum, select
from fusile.ir.tensor import Tensor, compute
from fusile.ir.types import F32, I32, U8, DType
from fusile.kernels.families.contraction import matmul
from fusile.kernels.families.elementwise import converted, dtype_of, unary
from fusile.kernels.families.reduction import reduced
from fusile.kernels.families.window import biased, convolve, window
from fusile.kernels.registry import Context, Malformed, op
from fusile.kernels.shapes import normal_axis


def quantised(v: Expr, zero_point: Expr | None, to: DType) -> Expr:
    """A float rounded to the nearest whole number (ties to even), moved by the zero point, saturated to an
    integer type.
    """
    out = apply("round", v)
    if not _is_zero(zero_point):
        assert zero_point is not None
        out = out + cast(zero_point, v.dtype)
    low = -(1 << (to.bits - 1)) if to.kind == "i" else 0
    high = (1 << (to.bits - (to.kind == "i"))) - 1
    out = minimum(maximum(out, const(low, v.dtype)), const(high, v.dtype))
    return cast(out if to.bits >= 8 else cast(out, I32), to)


def _is_zero(zero_point: Expr | None) -> bool:
    return zero_point is None or (isinstance(zero_point, Const) and zero_point.value == 0)


def _centred(v: Expr, zero_point: Expr | None) -> Expr:
    """v minus the zero point, in 32-bit integers."""
    wide = cast(v, I32)
    if _is_zero(zero_point):
        return wide
    assert zero_point is not None
    return wide - cast(zero_point, I32)


def parameter(t: Tensor, i: Sequence[Expr], axis: int, block: int = 0) -> Expr:
    """A scale or zero point for the element at i: one for all, one per slice along an axis, or one per block
    of it.
    """
    if t.rank == 0:
        return t[()]
    if t.rank == 1:
        return t[const(0) if ix.number(t.shape[0]) == 1 else i[axis]]
    return t[tuple(k // block if j == axis and block else k for j, k in enumerate(i))]


def _axis(x: Tensor, scale: Tensor, axis: int) -> int:
    single = scale.rank == 0 or (scale.rank == 1 and ix.number(scale.shape[0]) == 1)
    return 0 if single else normal_axis(axis, x.rank)


@op("QuantizeLinear", keeps_types=True)
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    to = zero_point.dtype if zero_point is not None else dtype_of(output_dtype) if output_dtype else U8
    at = _axis(x, scale, axis)
    inner = dtype_of(precision) if precision else x.dtype if x.dtype.is_float else scale.dtype

    def body(*i: Expr) -> Expr:
        v = cast(x[i], inner) / cast(parameter(scale, i, at, block_size), inner)
        shift = None if zero_point is None else parameter(zero_point, i, at, block_size)
        if to.is_int:
            return quantised(v, shift, to)
        return converted(
            v if _is_zero(shift) or shift is None else v + cast(shift, inner), to, bool(saturate)
        )

    return compute(x.shape, body, name="quantize")


@op("DequantizeLinear", keeps_types=True)
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    to = dtype_of(output_dtype) if output_dtype else scale.dtype
    at = _axis(x, scale, axis)
    inner = scale.dtype if scale.dtype.bits >= 32 else F32

    def body(*i: Expr) -> Expr:
        shift = None if zero_point is None else parameter(zero_point, i, at, block_size)
        if x.dtype.is_int:
            v = cast(_centred(x[i], shift), inner)
        else:
            v = cast(x[i], inner)
            v = v if shift is None else v - cast(shift, inner)
        return cast(v * cast(parameter(scale, i, at, block_size), inner), to)

    return compute(x.shape, body, name="dequantize")


@op("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, ...]:
    """To unsigned bytes over the range of x widened to hold 0; also the scale and the zero point."""
    every = range(x.rank)
    low, high = (reduced(x, every, kind, keep=False, name=kind) for kind in ("min", "max"))

    def range_of() -> Expr:
        return (maximum(high[()], 0) - minimum(low[()], 0)) / const(255.0, x.dtype)

    width = compute((), range_of, name="width")
    zero_width = const(0, x.dtype)
    scale = compute((), lambda: select(eq(width[()], zero_width), const(1, x.dtype), width[()]), name="scale")

    def zero() -> Expr:
        shift = apply("round", -minimum(low[()], 0) / scale[()])
        return cast(minimum(maximum(shift, 0), const(255, x.dtype)), U8)

    point = compute((), zero, name="zero_point")
    y = unary(x, lambda v: quantised(v / scale[()], point[()], U8), "quantize")
    return y, scale, point


# ---- matrix products ----


def _matrix(x: Tensor, zero_point: Tensor | None, along: int) -> Tensor:
    """x minus its zero point (one, or one per row or column, `along` counted from the end), in 32-bit
    integers.
    """

    def body(*i: Expr) -> Expr:
        return _centred(x[i], None if zero_point is None else _entry(zero_point, i, x.rank + along))

    return compute(x.shape, body, name="centred")


def _entry(t: Tensor, i: Sequence[Expr], at: int) -> Expr:
    if t.rank <= 1:
        return parameter(t, i, at)
    own = i[len(i) - t.rank :]
    return t[tuple(const(0) if ix.number(n) == 1 else k for k, n in zip(own, t.shape, strict=True))]


@op("MatMulInteger")
def matmul_integer(
    ctx: Context, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    return matmul(ctx, _matrix(a, a_zero, -2), _matrix(b, b_zero, -1))


@op("QLinearMatMul")
def qlinear_matmul(
    ctx: Context,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    total = matmul(ctx, _matrix(a, a_zero, -2), _matrix(b, b_zero, -1))

    def body(*i: Expr) -> Expr:
        # Rows and columns of the result stand where those of the inputs do.
        factor = (
            _entry(a_scale, i, len(i) - 2) * _entry(b_scale, i, len(i) - 1) / _entry(y_scale, i, len(i) - 2)
        )
        v = cast(total[i], F32) * cast(factor, F32)
        return quantised(v, _entry(y_zero, i, len(i) - 2), y_zero.dtype)

    return compute(total.shape, body, name="qlinear_matmul")


# ---- convolutions ----


def _integer_conv(
    ctx: Context,
    x: Tensor,
    w: Tensor,
    x_zero: Tensor | None,
    w_zero: Tensor | None,
    *,
    auto_pad: str,
    group: int,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
) -> Tensor:
    if x.rank < 3 or w.rank != x.rank:
        raise Malformed(f"takes tensors of one rank of at least 3, not {x.rank} and {w.rank}")
    slide = window(
        x.shape[2:], w.shape[2:], strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad
    )
    return convolve(ctx, _per_channel(x, x_zero, 1), _per_channel(w, w_zero, 0), slide, group)


def _per_channel(x: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    def body(*i: Expr) -> Expr:
        return _centred(x[i], None if zero_point is None else parameter(zero_point, i, axis))

    return compute(x.shape, body, name="centred")


@op("ConvInteger")
def conv_integer(
    ctx: Context,
    x: Tensor,
    w: Tensor,
    x_zero: Tensor | None = None,
    w_zero: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    return _integer_conv(
        ctx,
        x,
        w,
        x_zero,
        w_zero,
        auto_pad=auto_pad,
        group=group,
        dilations=dilations,
        pads=pads,
        strides=strides,
    )


@op("QLinearConv")
def qlinear_conv(
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
    dilations: Sequence[int] | None = None,
    group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    total = biased(
        _integer_conv(
            ctx,
            x,
            w,
            x_zero,
            w_zero,
            auto_pad=auto_pad,
            group=group,
            dilations=dilations,
            pads=pads,
            strides=strides,
        ),
        b,
    )
    at: Callable[[Tensor, Expr], Expr] = lambda t, o: parameter(t, (o,), 0)  # noqa: E731
    zero = (const(0),)
    factor = compute(
        (w.shape[0],),
        lambda o: parameter(x_scale, zero, 0) * at(w_scale, o) / parameter(y_scale, zero, 0),
        name="factor",
    )

    def body(*i: Expr) -> Expr:
        return quantised(cast(total[i], F32) * factor[i[1]], parameter(y_zero, zero, 0), y_zero.dtype)

    return compute(total.shape, body, name="qlinear_conv")
