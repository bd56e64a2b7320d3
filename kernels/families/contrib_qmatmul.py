"""ONNX Runtime's products of quantised matrices (domain com.microsoft): the sums are exact integers."""

from __future__ import annotations

from fusile.ir.expr import Expr, cast
from fusile.ir.tensor import Tensor, compute
from fusile.ir.types import F32, I32
from fusile.kernels.families.contraction import gemm
from fusile.kernels.families.contrib_qlinear import MICROSOFT, single
from fusile.kernels.families.quantised import dynamic_quantize_linear, matmul_integer, parameter, quantised
from fusile.kernels.registry import Context, op
from fusile.kernels.shapes import broadcast, broadcast_read


@op("MatMulIntegerToFloat", MICROSOFT)
def matmul_integer_to_float(
    ctx: Context,
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """MatMulInteger times the scales (those of b one for all or per column), plus a bias per column."""
    total = matmul_integer(ctx, a, b, _scalar(a_zero), b_zero)

    def body(*i: Expr) -> Expr:
        factor = single(a_scale) * _per_column(b_scale, i)
        v = cast(cast(total[i], F32) * cast(factor, F32), a_scale.dtype)
        return v if bias is None else v + bias[i[-1]]

    return compute(total.shape, body, name="matmul")


def _scalar(t: Tensor | None) -> Tensor | None:
    return None if t is None else t if not t.rank else compute((), lambda: single(t), name="zero")


def _per_column(t: Tensor, i: tuple[Expr, ...]) -> Expr:
    return parameter(t, i, len(i) - 1) if t.rank <= 1 else broadcast_read(t, i)


@op("DynamicQuantizeMatMul", MICROSOFT)
def dynamic_quantize_matmul(
    ctx: Context,
    a: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """A product whose left side is quantised over its own range first."""
    bytes_, scale, zero = dynamic_quantize_linear(a)
    return matmul_integer_to_float(ctx, bytes_, b, scale, b_scale, zero, b_zero, bias)


@op("MatMulInteger16", MICROSOFT)
def matmul_integer_16(ctx: Context, a: Tensor, b: Tensor) -> Tensor:
    return matmul_integer(ctx, a, b)


@op("QGemm", MICROSOFT)
def qgemm(
    ctx: Context,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero: Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha * A' B' + C with C in the units of the product; floats where no scale of the result is given."""
    left = compute(a.shape, lambda *i: cast(a[i], I32) - cast(single(a_zero), I32), name="centred")

    def centred(*i: Expr) -> Expr:
        return cast(b[i], I32) - cast(parameter(b_zero, i, 0 if transB else 1), I32)

    right = compute(b.shape, centred, name="centred")
    total = gemm(ctx, left, right, transA=transA, transB=transB)
    if c is not None:
        broadcast(ctx, c.shape, total.shape)

    def factor(j: Expr) -> Expr:
        v = single(a_scale) * parameter(b_scale, (j,), 0)
        v = v if alpha == 1.0 else v * alpha
        return v if y_scale is None else v / single(y_scale)

    factors = compute((total.shape[1],), factor, name="factor")

    def body(i: Expr, j: Expr) -> Expr:
        v = total[i, j] if c is None else total[i, j] + broadcast_read(c, (i, j))
        wide = cast(v, F32) * factors[j]
        if y_scale is None or y_zero is None:
            return wide
        return quantised(wide, single(y_zero), y_zero.dtype)

    return compute(total.shape, body, name="qgemm")
