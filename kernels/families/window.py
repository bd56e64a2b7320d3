"""Convolutions: sums of products over a window that slides along the last dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusile.ir import index as ix
from fusile.ir.expr import Expr, as_expr, const, eq, inside, maximum, minimum, select
from fusile.ir.tensor import Shape, Tensor, compute, reduce_sum
from fusile.kernels.registry import Context, Malformed, op
from fusile.kernels.shapes import padded, reshaped


@dataclass(frozen=True, slots=True)
class Window:
    """How a window slides: per dimension its size, step, spacing, the padding before and after, and the
    number of positions.
    """

    kernel: tuple[Expr, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[Expr, ...]
    after: tuple[Expr, ...]
    out: tuple[Expr, ...]

    def at(self, position: Sequence[Expr], offset: Sequence[Expr]) -> tuple[Expr, ...]:
        """The index into the padded tensor of one element of the window at `position`."""
        return tuple(
            p * s + k * d for p, s, k, d in zip(position, self.strides, offset, self.dilations, strict=True)
        )


def window(
    space: Shape,
    kernel: Sequence[Expr | int],
    *,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    ceil_mode: bool = False,
) -> Window:
    """The window of a convolution or a pool over `space`. Raises Malformed where the lists do not fit."""
    rank = len(space)
    steps, gaps = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    around = tuple(pads or (0,) * (2 * rank))
    sizes = tuple(as_expr(k) for k in kernel)
    if not len(sizes) == len(steps) == len(gaps) == rank or len(around) != 2 * rank:
        raise Malformed(f"kernel, strides, dilations or pads do not have {rank} dimensions")
    if any(s < 1 for s in (*steps, *gaps)):
        raise Malformed("a stride or dilation is below 1")
    before: list[Expr] = []
    after: list[Expr] = []
    out: list[Expr] = []
    for k, n in enumerate(space):
        reach = (sizes[k] - 1) * gaps[k] + 1
        s = steps[k]
        low, high = as_expr(around[k]), as_expr(around[k + rank])
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            count = ix.ceil_div(n, s)
            total = maximum((count - 1) * s + reach - n, as_expr(0))
            low = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            high = total - low
        elif auto_pad == "VALID":
            low = high = as_expr(0)
            count = (n - reach) // s + 1
        elif ceil_mode:
            # The last window has to begin inside the tensor or the padding before it.
            count = minimum(ix.ceil_div(n + low + high - reach, s) + 1, ix.ceil_div(n + low, s))
            high = maximum((count - 1) * s + reach - n - low, as_expr(0))
        else:
            count = (n + low + high - reach) // s + 1
        known = ix.number(count)
        if known is not None and known < 0:
            raise Malformed(f"a window that reaches over {reach} does not fit a size of {n}")
        before.append(low)
        after.append(high)
        out.append(count)
    return Window(sizes, steps, gaps, tuple(before), tuple(after), tuple(out))


def biased(y: Tensor, bias: Tensor | None) -> Tensor:
    """y plus a bias per channel, as a stage of its own."""
    return y if bias is None else compute(y.shape, lambda *i: y[i] + bias[i[1]], name="bias")


def convolve(ctx: Context, x: Tensor, weight: Tensor, slide: Window, group: int) -> Tensor:
    """The convolution without bias; `x` is not padded yet.

    Grouped ones go over [n, g, o, …] and are viewed as [n, g * o, …].
    """
    filters, each, *_ = weight.shape
    ctx.require(eq(x.shape[1], each * group), f"{x.shape[1]} channels, but {group} groups of {each}")
    p = padded(x, slide.before, slide.after, 0)
    n, out, kernel = x.shape[0], slide.out, slide.kernel
    m = ix.number(filters)
    if group < 1 or (m is not None and m % group):
        raise Malformed(f"{filters} filters do not divide into {group} groups")
    if group == 1:

        def plain(i: Expr, o: Expr, *s: Expr) -> Expr:
            return reduce_sum((each, *kernel), lambda c, *r: p[(i, c, *slide.at(s, r))] * weight[(o, c, *r)])

        return compute((n, filters, *out), plain, name="conv")
    if m == group and ix.number(each) == 1:

        def depthwise(i: Expr, o: Expr, *s: Expr) -> Expr:
            return reduce_sum(kernel, lambda *r: p[(i, o, *slide.at(s, r))] * weight[(o, const(0), *r)])

        return compute((n, filters, *out), depthwise, name="conv")
    per = filters // group

    def grouped(i: Expr, g: Expr, o: Expr, *s: Expr) -> Expr:
        return reduce_sum(
            (each, *kernel),
            lambda c, *r: p[(i, g * each + c, *slide.at(s, r))] * weight[(g * per + o, c, *r)],
        )

    return reshaped(compute((n, group, per, *out), grouped, name="conv"), (n, filters, *out), "groups")


@op("Conv")
def conv(
    ctx: Context,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """[n, c, …] with filters [o, c / group, …]."""
    if x.rank < 3 or w.rank != x.rank:
        raise Malformed(f"takes tensors of one rank of at least 3, not {x.rank} and {w.rank}")
    slide = window(
        x.shape[2:], w.shape[2:], strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad
    )
    return biased(convolve(ctx, x, w, slide, group), b)


# ---- transposed ----


def _transposed_padding(
    space: Shape,
    reach: Sequence[Expr],
    strides: Sequence[int],
    extra: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
    output_shape: Sequence[int] | None,
) -> tuple[list[Expr], list[Expr]]:
    """(padding before, output size) of a transposed convolution."""
    rank = len(space)
    around = tuple(pads or (0,) * (2 * rank))
    before: list[Expr] = []
    out: list[Expr] = []
    for k, n in enumerate(space):
        full = (n - 1) * strides[k] + reach[k] + extra[k]
        if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            want = (
                n * strides[k]
                if output_shape is None
                else as_expr(output_shape[len(output_shape) - rank + k])
            )
            total = maximum(full - want, as_expr(0))
            before.append(total // 2 if auto_pad == "SAME_UPPER" else total - total // 2)
            out.append(want)
        elif auto_pad == "VALID":
            before.append(as_expr(0))
            out.append(full)
        else:
            before.append(as_expr(around[k]))
            out.append(full - around[k] - around[k + rank])
    return before, out


def _spread(w: Tensor, dilations: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Filters with zeros between their elements, and after them up to a multiple of the stride."""
    kernel = w.shape[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    extents = [ix.ceil_div(r, s) * s for r, s in zip(reach, strides, strict=True)]
    if all(a is b for a, b in zip(extents, kernel, strict=True)):
        return w

    def body(i: Expr, j: Expr, *r: Expr) -> Expr:
        at = tuple(a // d for a, d in zip(r, dilations, strict=True))
        test = inside(*zip(at, kernel, strict=True))
        for a, d in zip(r, dilations, strict=True):
            if d > 1:
                test = test & eq(a % d, 0)
        return select(test, w[(i, j, *at)], const(0, w.dtype))

    return compute((*w.shape[:2], *extents), body, name="spread")


@op("ConvTranspose")
def conv_transpose(
    ctx: Context,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Filters [c, o / group, …]. Output position q * stride + phase meets only the filter elements phase + t
    * stride, so the sum goes over [n, g, o, q, phase, …] with plain index maps; a view then cuts the padding
    off.
    """
    rank = x.rank - 2
    if rank < 1 or w.rank != x.rank:
        raise Malformed(f"takes tensors of one rank of at least 3, not {x.rank} and {w.rank}")
    steps, gaps = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], gaps, strict=True)]
    before, out = _transposed_padding(
        x.shape[2:], reach, steps, output_padding or (0,) * rank, pads, auto_pad, output_shape or None
    )
    ctx.require(eq(x.shape[1], w.shape[0]), f"{x.shape[1]} channels, but filters for {w.shape[0]}")
    n, c, m = x.shape[0], w.shape[0], w.shape[1]
    each = c // group
    filters = _spread(w, gaps, steps)
    turns = [e // s for e, s in zip(filters.shape[2:], steps, strict=True)]
    blocks = [
        maximum(size + t - 1, (o - 1 + p) // s + 1)
        for size, t, o, p, s in zip(x.shape[2:], turns, out, before, steps, strict=True)
    ]
    wide = padded(
        x, [t - 1 for t in turns], [q - size for q, size in zip(blocks, x.shape[2:], strict=True)], 0
    )

    def body(i: Expr, g: Expr, o: Expr, *s: Expr) -> Expr:
        block, phase = s[0::2], s[1::2]

        def element(k: Expr, *t: Expr) -> Expr:
            at = tuple(q - r + e - 1 for q, r, e in zip(block, t, turns, strict=True))
            tap = tuple(f + r * step for f, r, step in zip(phase, t, steps, strict=True))
            return wide[(i, g * each + k, *at)] * filters[(g * each + k, o, *tap)]

        return reduce_sum((each, *turns), element)

    paired = [e for pair in zip(blocks, steps, strict=True) for e in pair]
    y = compute((n, group, m, *paired), body, name="conv")

    def view(i: Expr, o: Expr, *s: Expr) -> Expr:
        at: list[Expr] = []
        for h, p, step in zip(s, before, steps, strict=True):
            at += [(h + p) // step, (h + p) % step]
        return y[(i, o // m, o % m, *at)]

    return biased(compute((n, m * group, *out), view, name="phases"), b)
