"""ONNX Runtime's weights in blocks of few bits, each block with a scale of its own (domain com.microsoft)."""

from __future__ import annotations

import numpy as np

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, as_expr, cast, const, eq, guard, select
from fusile.ir.tensor import Tensor, compute, constant, reduce_sum
from fusile.ir.types import F32, I32, I64, U8
from fusile.kernels.families.contrib_qlinear import MICROSOFT
from fusile.kernels.registry import Context, Malformed, Unsupported, op
from fusile.kernels.shapes import normal_axis, reshaped


def _unpacked(byte: Expr, position: Expr, bits: int) -> Expr:
    """Element `position` of a byte that holds 8 / bits of them, the first in its low bits, as an i32."""
    if bits == 8:
        return cast(byte, I32)
    shift = cast((position % (8 // bits)) * bits, I32)
    return apply("shr", cast(byte, I32), shift) & const((1 << bits) - 1, I32)


def _checked_bits(bits: int) -> None:
    if bits not in (2, 4, 8):
        raise Unsupported(f"weights of {bits} bits", "quantise the weights to 2, 4 or 8 bits")


def _of_blocks(t: Tensor, rows: int, columns: int) -> Tensor:
    """A list of parameters as [rows, columns], as which it may be given too."""
    return t if t.rank == 2 else reshaped(t, (as_expr(rows), as_expr(columns)))


@op("MatMulNBits", MICROSOFT)
def matmul_n_bits(
    ctx: Context,
    a: Tensor,
    b: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    bits: int = 4,
    block_size: int,
    weight_prepacked: int = 0,
) -> Tensor:
    """a[…, K] times the transpose of [N, K] weights, which lie in b as [N, blocks, bytes].

    Zero points are bytes packed like the weights, or one number per block in the type of a; they stand in the
    middle of the range where there are none. `g_idx` names the block of every k where blocks are mixed.
    """
    _checked_bits(bits)
    if weight_prepacked:
        raise Unsupported("weights packed for another machine", "save the model without packed weights")
    if K < 1 or N < 1 or block_size < 1:
        raise Malformed(f"weights of {N} rows of {K}, in blocks of {block_size}")
    ctx.require(eq(a.shape[-1], K), f"rows of {a.shape[-1]}, but weights for {K}")
    blocks = -(-K // block_size)
    each = block_size * bits // 8
    packed = b if b.rank == 3 else reshaped(b, (as_expr(N), as_expr(blocks), as_expr(each)))
    factors = _of_blocks(scales, N, blocks)
    per_byte = 8 // bits

    def shift(n: Expr, block: Expr) -> Expr:
        if zero_points is None:
            return const(1 << (bits - 1), F32)
        if zero_points.dtype is not U8:
            return cast(_of_blocks(zero_points, N, blocks)[n, block], F32)
        row = _of_blocks(zero_points, N, -(-blocks // per_byte))
        return cast(_unpacked(row[n, block // per_byte], block, bits), F32)

    def weight(n: Expr, k: Expr) -> Expr:
        block, within = k // block_size, k % block_size
        q = cast(_unpacked(packed[n, block, within // per_byte], within, bits), F32)
        if g_idx is not None:
            block = guard(cast(g_idx[k], I64), blocks, ctx.site)
        return cast((q - shift(n, block)) * cast(factors[n, block], F32), a.dtype)

    w = compute((N, K), weight, name="weight")
    lead = a.shape[:-1]

    def product(*i: Expr) -> Expr:
        return reduce_sum((K,), lambda k: a[(*i[:-1], k)] * w[i[-1], k])

    y = compute((*lead, N), product, name="matmul")
    return y if bias is None else compute(y.shape, lambda *i: y[i] + bias[i[-1]], name="bias")


_FP4 = (0.0, 0.0052083333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""The values of the codes of bitsandbytes: floats of 4 bits, and the quantiles of a normal distribution."""


@op("MatMulBnb4", MICROSOFT)
def matmul_bnb4(
    ctx: Context,
    a: Tensor,
    b: Tensor,
    absmax: Tensor,
    *,
    K: int,
    N: int,
    block_size: int,
    quant_type: int,
    transB: int = 1,
) -> Tensor:
    """a[…, K] times weights of 4-bit codes, counted through [N, K], two in a byte with the first one high."""
    if quant_type not in (0, 1):
        raise Malformed(f"the quantisation type {quant_type} is neither 0 (FP4) nor 1 (NF4)")
    if not transB:
        raise Unsupported("weights that are not transposed", "quantise the weights as [N, K]")
    ctx.require(eq(a.shape[-1], K), f"rows of {a.shape[-1]}, but weights for {K}")
    table = _NF4 if quant_type else (*_FP4, *(-v for v in _FP4))
    codes = constant(np.array(table, np.float32), "codes")
    flat = b if b.rank == 1 else reshaped(b, (b.size,))

    def weight(n: Expr, k: Expr) -> Expr:
        at = n * K + k
        code = apply("shr", cast(flat[at // 2], I32), cast((1 - at % 2) * 4, I32)) & const(15, I32)
        return cast(codes[cast(code, I64)] * cast(absmax[at // block_size], F32), a.dtype)

    w = compute((N, K), weight, name="weight")
    return compute(
        (*a.shape[:-1], N),
        lambda *i: reduce_sum((K,), lambda k: a[(*i[:-1], k)] * w[i[-1], k]),
        name="matmul",
    )


@op("GatherBlockQuantized", MICROSOFT)
def gather_block_quantized(
    x: Tensor,
    indices: Tensor,
    scales: Tensor,
    zero_points: Tensor | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> Tensor:
    """Rows of a quantised table, as numbers. An index outside the table gives zeros.

    Bytes hold 8 / bits elements along the last axis; other types one each.
    """
    at, along = normal_axis(gather_axis, x.rank), normal_axis(quantize_axis, x.rank)
    _checked_bits(bits)
    per_byte = 8 // bits if x.dtype is U8 else 1
    if per_byte > 1 and along != x.rank - 1:
        raise Malformed("bytes of several elements lie along the last axis alone")
    size = x.shape[along] * per_byte
    block = block_size if block_size else size
    rows = x.shape[at]

    def element(t: Tensor, i: tuple[Expr, ...]) -> Expr:
        if t.dtype is not U8:
            return cast(cast(t[i], I32) if t.dtype.is_int else t[i], F32)
        byte = t[(*i[:along], i[along] // per_byte, *i[along + 1 :])]
        return cast(_unpacked(byte, i[along], bits), F32)

    def body(*i: Expr) -> Expr:
        index = cast(indices[i[at : at + indices.rank]], I64)
        index = select(index < 0, index + rows, index)
        test = (const(0) <= index) & (index < rows)
        place = (*i[:at], select(test, index, const(0)), *i[at + indices.rank :])
        group = (*place[:along], place[along] // block, *place[along + 1 :])
        shift: Expr = const(1 << (bits - 1), F32) if x.dtype is U8 else const(0, F32)
        if zero_points is not None:
            shift = element(zero_points, group)
        own = tuple(const(0) if ix.number(n) == 1 else k for k, n in zip(group, scales.shape, strict=True))
        v = (element(x, place) - shift) * cast(scales[own], F32)
        return select(test, cast(v, scales.dtype), const(0, scales.dtype))

    extents = [*x.shape[:at], *indices.shape, *x.shape[at + 1 :]]
    extents[along if along < at else along + indices.rank - 1] = size
    return compute(extents, body, name="gather")
