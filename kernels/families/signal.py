"""Fourier transforms as contractions with a matrix of cosines and sines, and the mel filter bank."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, as_expr, cast, const, eq, select
from fusile.ir.tensor import Tensor, compute, constant, reduce_sum
from fusile.ir.types import F32, F64, I64, DType, numpy_dtype
from fusile.kernels.families.elementwise import dtype_of
from fusile.kernels.late import around, is_late, late_axes
from fusile.kernels.registry import Context, Malformed, Unsettled, op
from fusile.kernels.shapes import MOST_TABULATED, literal, normal_axis, reshaped


def _waves(rows: Expr, columns: Expr, period: Expr, kind: DType) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi k n / period, as [rows, columns]; exact at multiples of a turn."""
    size = ix.number(period)
    if size is not None and size <= MOST_TABULATED:
        angle = 2 * math.pi * np.arange(max(size, 1)) / max(size, 1)
        tables = [constant(f(angle).astype(numpy_dtype(kind)), "wave") for f in (np.cos, np.sin)]
        cosine, sine = (
            compute((rows, columns), lambda k, n, t=t: t[(k * n) % period], name="waves") for t in tables
        )
        return cosine, sine

    work = F64 if kind is F64 else F32

    def wave(quarters: int) -> Tensor:
        """cos of the angle, turned back by quarters. What is left of an angle after its nearest quarter turn,
        in integers, is at most an eighth of a turn: a float loses nothing that the result would have.
        """

        def body(k: Expr, n: Expr) -> Expr:
            place = (k * n) % period
            nearest = (place * 8 + period) // (period * 2)
            rest = cast(place * 4 - nearest * period, work) / cast(period, work) * (math.pi / 2)
            turn = (nearest - quarters) % 4
            value = select(eq(turn % 2, 0), apply("cos", rest), apply("sin", rest))
            return cast(select((turn < 1) | (turn > 2), value, -value), kind)

        return compute((rows, columns), body, name="waves")

    return wave(0), wave(1)


def _transformed(
    x: Tensor, axis: int, length: Expr, rows: Expr, *, inverse: bool, real_out: bool = False
) -> Tensor:
    """The sum over n of x[…, n, …] times a wave, for rows k; x has a last dimension of 1 (real) or 2
    (complex).
    """
    n = x.shape[axis]
    given, wanted = ix.number(n), ix.number(length)
    # A longer transform reads zeros past the end; a shorter one stops early.
    taps = const(min(given, wanted)) if given is not None and wanted is not None else length
    cosine, sine = _waves(rows, taps, length, x.dtype)
    parts = ix.number(x.shape[-1])
    if parts is None:
        raise Unsettled("a spectrum whose last dimension is not a constant", "fix it by `--dims`")
    is_complex = parts == 2

    def total(wave: Tensor, part: int, i: tuple[Expr, ...]) -> Expr:
        def element(k: Expr) -> Expr:
            v = x[(*i[:axis], k, *i[axis + 1 : -1], const(part))]
            if taps is length and given != wanted and n is not length:
                v = select(k < n, v, const(0, x.dtype))
            return v * wave[i[axis], k]

        return reduce_sum((taps,), element)

    shape = (*x.shape[:axis], rows, *x.shape[axis + 1 : -1])
    sign = 1 if inverse else -1

    def part(imaginary: bool) -> Tensor:
        def body(*i: Expr) -> Expr:
            at = (*i, const(0))
            if not imaginary:
                real = total(cosine, 0, at)
                return real + total(sine, 1, at) * -sign if is_complex else real
            turned = total(sine, 0, at) * sign
            return total(cosine, 1, at) + turned if is_complex else turned

        return compute(shape, body, name="imaginary" if imaginary else "real")

    re, im = part(False), None if real_out else part(True)
    factor = 1 / cast(length, x.dtype) if inverse else None

    def body(*i: Expr) -> Expr:
        v = re[i[:-1]] if im is None else select(i[-1] < 1, re[i[:-1]], im[i[:-1]])
        return v if factor is None else v * factor

    return compute((*shape, 1 if real_out else 2), body, name="transform")


@op("DFT")
def dft(
    ctx: Context,
    x: Tensor,
    dft_length: Tensor | None = None,
    axis: Tensor | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Tensor:
    if axis is not None and is_late(axis):
        return _along_late_axis(ctx, x, dft_length, axis, inverse, onesided)
    at = normal_axis(ctx.numbers(axis, "the axis")[0] if axis is not None else -2, x.rank)
    if at == x.rank - 1:
        raise Malformed("the last dimension holds real and imaginary parts")
    n = x.shape[at]
    if inverse and onesided:
        length = ctx.values(dft_length)[0] if dft_length is not None else (n - 1) * 2
        return _transformed(_mirrored(x, at, length), at, length, length, inverse=True, real_out=True)
    length = ctx.extent(ctx.values(dft_length)[0]) if dft_length is not None else n
    rows = length // 2 + 1 if onesided else length
    return _transformed(x, at, length, rows, inverse=bool(inverse))


def _along_late_axis(
    ctx: Context, x: Tensor, dft_length: Tensor | None, axis: Tensor, inverse: int, onesided: int
) -> Tensor:
    """The transform along an axis that only the run knows: along the middle one of three."""
    (at,) = late_axes(ctx, axis, x.rank)
    ctx.require(at < x.rank - 1, "the last dimension holds real and imaginary parts")
    flat = reshaped(x, (*around(ctx, x.shape[:-1], at), x.shape[-1]))
    middle = constant(np.array(1), "axis")
    out = dft(ctx, flat, dft_length, middle, inverse=inverse, onesided=onesided)
    sizes = [ctx.size(select(eq(at, k), out.shape[1], n), "dft") for k, n in enumerate(x.shape[:-1])]
    return reshaped(out, (*sizes, out.shape[-1]))


def _mirrored(x: Tensor, axis: int, length: Expr) -> Tensor:
    """A one-sided spectrum filled up with the conjugates of its first half."""

    def body(*i: Expr) -> Expr:
        k = i[axis]
        back = k < length // 2 + 1
        at = select(back, k, length - k)
        v = select(at < x.shape[axis], x[(*i[:axis], at, *i[axis + 1 :])], const(0, x.dtype))
        # The first element, and the middle one of an even length, are real.
        real = (k < 1) | ((length - k) <= k) & (k <= (length - k))
        turned = select(real, const(0, x.dtype), select(back, v, -v))
        return select(i[-1] < 1, v, turned)

    return compute((*x.shape[:axis], length, *x.shape[axis + 1 :]), body, name="mirrored")


@op("STFT")
def stft(
    ctx: Context,
    signal: Tensor,
    frame_step: Tensor,
    window: Tensor | None = None,
    frame_length: Tensor | None = None,
    *,
    onesided: int = 1,
) -> Tensor:
    (step,) = ctx.values(frame_step)
    if frame_length is not None:
        (length,) = ctx.values(frame_length)
    elif window is not None:
        length = window.shape[0]
    else:
        raise Malformed("neither a window nor a frame length is given")
    batch, samples = signal.shape[:2]
    last = signal.shape[2] if signal.rank == 3 else as_expr(1)
    frames = (samples - length) // step + 1

    def body(b: Expr, f: Expr, k: Expr, c: Expr) -> Expr:
        v = signal[(b, f * step + k, c) if signal.rank == 3 else (b, f * step + k)]
        return v if window is None else v * window[k]

    framed = compute((batch, frames, length, last), body, name="frames")
    return _transformed(framed, 2, length, length // 2 + 1 if onesided else length, inverse=False)


@op("MelWeightMatrix")
def mel_weight_matrix(
    ctx: Context,
    num_mel_bins: Tensor,
    dft_length: Tensor,
    sample_rate: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    output_datatype: int = 1,
) -> Tensor:
    """A table where the five numbers are constants, else worked out when run."""
    sizes = (num_mel_bins, dft_length, sample_rate)
    ctx.floats(low), ctx.floats(high)
    edges = [literal(low), literal(high)]
    if any(map(is_late, sizes)) or edges[0] is None or edges[1] is None:
        return _mel_when_run(ctx, sizes, low, high, dtype_of(output_datatype))
    counts = [ctx.numbers(t, "a size of the filter bank")[0] for t in sizes]
    bins, length, rate = counts
    if min(counts) < 1 or bins * length > MOST_TABULATED * 16:
        raise Malformed(f"a filter bank of {bins} bins over a transform of {length} at {rate} Hz")
    mel = [2595 * math.log10(1 + e / 700) for e in edges if e is not None]
    points = np.arange(bins + 2) * ((mel[1] - mel[0]) / (bins + 2)) + mel[0]
    at = np.floor((length + 1) * (700 * (10 ** (points / 2595) - 1)) / rate).astype(int)
    out = np.zeros((length // 2 + 1, bins))
    for k in range(bins):
        left, centre, right = at[k : k + 3]
        if centre == left:
            out[centre, k] = 1
        else:
            out[left : centre + 1, k] = np.arange(centre - left + 1) / (centre - left)
        if right > centre:
            out[centre:right, k] = np.arange(right - centre, 0, -1) / (right - centre)
    return constant(out.astype(numpy_dtype(dtype_of(output_datatype))), "mel")


def _mel_when_run(ctx: Context, sizes: Sequence[Tensor], low: Tensor, high: Tensor, kind: DType) -> Tensor:
    (bins,), (length,), (rate,) = (ctx.values(t) for t in sizes)
    for n in (bins, length, rate):
        ctx.require(const(0) < n, f"a filter bank of {bins} bins over a transform of {length} at {rate} Hz")
    bins = ctx.extent(bins)

    def in_mel(t: Tensor) -> Expr:
        hertz = cast(t[tuple(const(0) for _ in range(t.rank))], F64)
        return apply("log", hertz / 700.0 + 1.0) * (2595 / math.log(10))

    def edge(k: Expr) -> Expr:
        point = cast(k, F64) * ((in_mel(high) - in_mel(low)) / cast(bins + 2, F64)) + in_mel(low)
        hertz = (apply("pow", const(10.0, F64), point / 2595.0) - 1.0) * 700.0
        return cast(apply("floor", cast(length + 1, F64) * hertz / cast(rate, F64)), I64)

    at = compute((bins + 2,), edge, name="edges")

    def weight(r: Expr, k: Expr) -> Expr:
        left, centre, right = at[k], at[k + 1], at[k + 2]
        one, zero = const(1, F64), const(0, F64)
        falling = cast(right - r, F64) / cast(right - centre, F64)
        rising = select((left <= r) & (r <= centre), cast(r - left, F64) / cast(centre - left, F64), zero)
        before = select(eq(centre, left), select(eq(r, centre), one, zero), rising)
        return cast(select((centre <= r) & (r < right), falling, before), kind)

    return compute((ctx.extent(length) // 2 + 1, bins), weight, name="mel")
