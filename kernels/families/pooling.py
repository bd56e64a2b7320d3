"""Pools: a reduction over a sliding window, or over all of the space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, as_expr, cast, const, eq, inside, maximum, minimum, select
from fusile.ir.interpret import identity
from fusile.ir.tensor import Tensor, compute, constant, reduction, scatter
from fusile.ir.types import numpy_dtype
from fusile.kernels.families.elementwise import unary
from fusile.kernels.families.reduction import mean, reduced
from fusile.kernels.families.window import Window, window
from fusile.kernels.registry import Context, op
from fusile.kernels.shapes import MOST_TABULATED, checked_index, flat_index, padded, reshaped


def _pooled(x: Tensor, slide: Window, kind: str, fill: float, name: str) -> Tensor:
    p = padded(x, slide.before, slide.after, fill)

    def body(n: Expr, c: Expr, *s: Expr) -> Expr:
        return reduction(kind, slide.kernel, lambda *r: p[(n, c, *slide.at(s, r))])

    return compute((*x.shape[:2], *slide.out), body, name=name)


@op("MaxPool")
def max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    slide = window(
        x.shape[2:],
        kernel_shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=bool(ceil_mode),
    )
    y = _pooled(x, slide, "max", identity("max", x.dtype), "max_pool")
    return (y,) if outputs < 2 else (y, _where_largest(x, y, slide, storage_order))


def _where_largest(x: Tensor, y: Tensor, slide: Window, storage_order: int) -> Tensor:
    """The flat position in x of the first largest element of every window."""
    space = x.shape[2:]

    def body(n: Expr, c: Expr, *s: Expr) -> Expr:
        def position(*r: Expr) -> Expr:
            at = tuple(a - b for a, b in zip(slide.at(s, r), slide.before, strict=True))
            order, sizes = (at[::-1], space[::-1]) if storage_order else (at, space)
            flat = (n * x.shape[1] + c) * ix.product(space) + flat_index(order, sizes)
            hit = inside(*zip(at, space, strict=True)) & eq(x[(n, c, *at)], y[(n, c, *s)])
            return select(hit, flat, x.size)

        return reduction("min", slide.kernel, position)

    found = compute(y.shape, body, name="where")
    # A window of nothing but NaN has no largest element; its position has to be one all the same.
    return compute(y.shape, lambda *i: minimum(found[i], maximum(x.size - 1, const(0))), name="indices")


def _pairs(pads: Sequence[int] | None, rank: int) -> Iterable[tuple[Expr | int, Expr | int]]:
    """Padding before and after, per dimension."""
    around = pads or (0,) * (2 * rank)
    return zip(around[:rank], around[rank:], strict=True)


@op("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    slide = window(
        x.shape[2:],
        kernel_shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=bool(ceil_mode),
    )
    total = _pooled(x, slide, "sum", 0, "sum")
    same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    own: Iterable[tuple[Expr | int, Expr | int]] = zip(slide.before, slide.after, strict=True)
    around = own if same else _pairs(pads, x.rank - 2)
    # The positions that count: the tensor alone, or with its padding, but never what only ceil_mode adds.
    spans: list[tuple[Expr, Expr]] = [
        (-as_expr(low), n + high) if count_include_pad else (as_expr(0), n)
        for n, (low, high) in zip(x.shape[2:], around, strict=True)
    ]
    factors = [_share(slide, k, low, high, x) for k, (low, high) in enumerate(spans)]

    def body(n: Expr, c: Expr, *s: Expr) -> Expr:
        v = total[(n, c, *s)]
        whole = 1.0
        for k, factor in enumerate(factors):
            if isinstance(factor, float):
                whole *= factor
            elif isinstance(factor, Tensor):
                v = v * factor[s[k]]
            else:
                v = v / cast(_count(slide, k, s[k], *spans[k]), x.dtype)
        return v if whole == 1.0 else v * const(whole, x.dtype)

    return compute(total.shape, body, name="average_pool")


def _count(slide: Window, k: int, position: Expr, low: Expr, high: Expr) -> Expr:
    """How many elements of the window at `position` lie in low .. high - 1 along dimension k (at least 1)."""
    start = position * slide.strides[k] - slide.before[k]
    gap = slide.dilations[k]
    first = maximum(ix.ceil_div(low - start, gap), const(0))
    last = minimum(ix.ceil_div(high - start, gap), slide.kernel[k])
    return maximum(last - first, const(1))


def _share(slide: Window, k: int, low: Expr, high: Expr, x: Tensor) -> float | Tensor | None:
    """1 / the number of elements that count along dimension k: one number, a table by position, or None where
    sizes are symbols.
    """
    kernel, n = ix.number(slide.kernel[k]), ix.number(slide.out[k])
    begin, end, before = ix.number(low), ix.number(high), ix.number(slide.before[k])
    if kernel is not None and ix.number(slide.after[k]) == 0 and before == 0:
        return 1.0 / kernel
    if kernel is None or n is None or n * kernel > MOST_TABULATED:
        return None
    if begin is None or end is None or before is None:
        return None
    taps = np.arange(n)[:, None] * slide.strides[k] - before + np.arange(kernel)[None, :] * slide.dilations[k]
    counts = np.maximum(((taps >= begin) & (taps < end)).sum(axis=1), 1)
    if np.all(counts == counts[0]) and n:
        return 1.0 / float(counts[0])
    return constant((1.0 / counts).astype(numpy_dtype(x.dtype)), "share")


@op("LpPool")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    slide = window(
        x.shape[2:],
        kernel_shape,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        ceil_mode=bool(ceil_mode),
    )
    total = _pooled(unary(x, lambda v: _power(v, p), "power"), slide, "sum", 0, "sum")
    return unary(total, lambda v: _root(v, p), "lp_pool")


def _power(v: Expr, p: int) -> Expr:
    if p == 1:
        return apply("abs", v)
    return v * v if p == 2 else apply("pow", apply("abs", v), const(p, v.dtype))


def _root(v: Expr, p: int) -> Expr:
    if p == 1:
        return v
    return apply("sqrt", v) if p == 2 else apply("pow", v, const(1.0 / p, v.dtype))


@op("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    return mean(x, range(2, x.rank), keep=True)


@op("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    return reduced(x, range(2, x.rank), "max", keep=True)


@op("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    total = reduced(x, range(2, x.rank), "sum", keep=True, of=lambda v: _power(v, p))
    return unary(total, lambda v: _root(v, p), "lp_pool")


# ---- the way back ----


@op("MaxUnpool")
def max_unpool(
    ctx: Context,
    x: Tensor,
    indices: Tensor,
    output_shape: Tensor | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The elements of x put back where MaxPool found them, by flat positions; 0 elsewhere."""
    rank = x.rank - 2
    around, steps = tuple(pads or (0,) * (2 * rank)), tuple(strides or (1,) * rank)
    space = [
        (n - 1) * steps[k] - around[k] - around[k + rank] + kernel_shape[k] for k, n in enumerate(x.shape[2:])
    ]
    inner = (*x.shape[:2], *space)
    total = ix.product(inner)
    flat = scatter(
        lambda *_: const(0, x.dtype),
        (total,),
        x.shape,
        lambda *u: (checked_index(ctx, indices, u, total),),
        lambda *u: x[u],
        name="unpooled",
    )
    y = reshaped(flat, inner)
    if output_shape is None:
        return y
    wanted = tuple(ctx.extent(v) for v in ctx.values(output_shape))
    after = [b - a for a, b in zip(inner, wanted, strict=True)]
    return padded(y, [0] * len(after), after, 0)


@op("Col2Im")
def col_to_im(
    ctx: Context,
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Overlapping columns [n, c * block, positions] summed into an image [n, c, …]."""
    space = tuple(ctx.extent(v) for v in ctx.values(image_shape))
    block = tuple(ctx.extent(v) for v in ctx.values(block_shape))
    slide = window(space, block, strides=strides, dilations=dilations, pads=pads, auto_pad="NOTSET")
    area = ix.product(block)

    def body(n: Expr, c: Expr, *s: Expr) -> Expr:
        def element(*r: Expr) -> Expr:
            at = [h + p - k * d for h, p, k, d in zip(s, slide.before, r, slide.dilations, strict=True)]
            where = [a // step for a, step in zip(at, slide.strides, strict=True)]
            test = inside(*zip(where, slide.out, strict=True))
            for a, step in zip(at, slide.strides, strict=True):
                test = test & eq(a % step, 0)
            row = c * area + flat_index(r, block)
            return select(test, x[n, row, flat_index(where, slide.out)], const(0, x.dtype))

        return reduction("sum", block, element)

    return compute((x.shape[0], x.shape[1] // area, *space), body, name="col2im")
