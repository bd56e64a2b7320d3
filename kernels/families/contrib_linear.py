"""ONNX Runtime's products with transposes and factors, and its convolution whose padding is an input."""

from __future__ import annotations

from collections.abc import Sequence

from fusile.ir.expr import const
from fusile.ir.tensor import Tensor
from fusile.kernels.families.contraction import matmul
from fusile.kernels.families.contrib_qlinear import MICROSOFT
from fusile.kernels.families.elementwise import unary
from fusile.kernels.families.movement import transpose
from fusile.kernels.families.window import conv_transpose
from fusile.kernels.registry import Context, op


def _turned(x: Tensor, last: int, batch: int) -> Tensor:
    """x with its first dimension moved behind those of the batch where asked, and its last two swapped."""
    order = list(range(x.rank))
    if batch and x.rank > 2:
        order[:-1] = [*order[1:-1], order[0]]
    if last and x.rank > 1:
        order[-2:] = [order[-1], order[-2]]
    return transpose(x, perm=order)


@op("FusedMatMul", MICROSOFT)
def fused_matmul(
    ctx: Context,
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """alpha * A' B'. A vector stays one."""
    y = matmul(ctx, _turned(a, transA, transBatchA), _turned(b, transB, transBatchB))
    return y if alpha == 1.0 else unary(y, lambda v: v * const(alpha, v.dtype), "scaled")


@op("TransposeMatMul", MICROSOFT)
def transpose_matmul(
    ctx: Context, a: Tensor, b: Tensor, *, alpha: float = 1.0, transA: int = 0, transB: int = 0
) -> Tensor:
    return fused_matmul(ctx, a, b, alpha=alpha, transA=transA, transB=transB)


@op("ConvTransposeWithDynamicPads", MICROSOFT)
def conv_transpose_with_dynamic_pads(
    ctx: Context,
    x: Tensor,
    w: Tensor,
    pads: Tensor | None = None,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    output_padding: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    return conv_transpose(
        ctx,
        x,
        w,
        b,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        output_padding=output_padding,
        pads=ctx.numbers(pads, "the list of paddings") or None,
        strides=strides,
    )
