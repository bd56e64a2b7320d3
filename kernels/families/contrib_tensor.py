"""The rest of ONNX Runtime's operators on plain tensors: distances, crops, windows, inverses, hashes (domain
com.microsoft).
"""

from __future__ import annotations

from collections.abc import Sequence

from fusile.ir import index as ix
from fusile.ir.expr import (
    Expr,
    apply,
    as_expr,
    cast,
    const,
    eq,
    guard,
    logical_not,
    maximum,
    minimum,
    select,
)
from fusile.ir.tensor import Tensor, compute, reduce_max, reduce_min, reduce_sum, scan, scatter
from fusile.ir.types import F32, I32, I64, U32
from fusile.kernels.families.contrib_qlinear import MICROSOFT
from fusile.kernels.families.elementwise import unary
from fusile.kernels.registry import Context, Malformed, Unsupported, op
from fusile.kernels.shapes import checked_index, normal_axis


@op("CDist", MICROSOFT)
def c_dist(ctx: Context, a: Tensor, b: Tensor, *, metric: str = "sqeuclidean") -> Tensor:
    """The distances of every row of a [m, n] to every row of b [k, n], from differences: nothing cancels."""
    if metric not in ("sqeuclidean", "euclidean"):
        raise Unsupported(f"the metric {metric!r}", "use euclidean or sqeuclidean, as ONNX Runtime does")
    if a.rank != 2 or b.rank != 2:
        raise Malformed(f"takes matrices, not ranks {a.rank} and {b.rank}")
    ctx.require(eq(a.shape[1], b.shape[1]), f"rows of {a.shape[1]} and of {b.shape[1]}")

    def square(i: Expr, j: Expr) -> Expr:
        return reduce_sum((a.shape[1],), lambda k: (a[i, k] - b[j, k]) * (a[i, k] - b[j, k]))

    y = compute((a.shape[0], b.shape[0]), square, name="square")
    return y if metric == "sqeuclidean" else unary(y, lambda v: apply("sqrt", v), "distance")


@op("UnfoldTensor", MICROSOFT)
def unfold_tensor(x: Tensor, *, dim: int = -1, size: int, step: int = 1) -> Tensor:
    """Windows of a dimension, whose elements stand in a new last one."""
    at = normal_axis(dim, x.rank)
    if size < 1 or step < 1:
        raise Malformed(f"windows of {size} every {step}")
    count = (x.shape[at] - size) // step + 1
    return compute(
        (*x.shape[:at], count, *x.shape[at + 1 :], size),
        lambda *i: x[(*i[:at], i[at] * step + i[-1], *i[at + 1 : -1])],
        name="unfold",
    )


@op("CropAndResize", MICROSOFT)
def crop_and_resize(
    ctx: Context,
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    crop_size: Tensor,
    *,
    mode: str = "bilinear",
    extrapolation_value: float = 0.0,
) -> Tensor:
    """Boxes [y1, x1, y2, x2] in parts of the image x [n, c, h, w], each resized to the crop size."""
    if mode not in ("bilinear", "nearest"):
        raise Malformed(f"the mode {mode!r}")
    out = [ctx.extent(v) for v in ctx.values(crop_size)]
    space = x.shape[2:]

    def place(r: Expr, k: int, p: Expr) -> Expr:
        """Where position p of the crop lies in the image, along dimension k."""
        begin, end = rois[r, k], rois[r, k + 2]
        last = cast(space[k] - 1, x.dtype)
        steps = cast(out[k] - 1, x.dtype)
        between = begin * last + cast(p, x.dtype) * ((end - begin) * last / steps)
        many = select(eq(p, 0), begin * last, select(eq(p, out[k] - 1), end * last, between))
        n = ix.number(out[k])
        middle = (begin + end) * 0.5 * last
        return middle if n == 1 else many if n is not None else select(eq(out[k], 1), middle, many)

    where = [
        compute((rois.shape[0], out[k]), lambda r, p, k=k: place(r, k, p), name="place") for k in range(2)
    ]

    def whole(v: Expr, k: int) -> Expr:
        return minimum(maximum(cast(v, I64), const(0)), space[k] - 1)

    def body(r: Expr, c: Expr, i: Expr, j: Expr) -> Expr:
        image = checked_index(ctx, batch_indices, (r,), x.shape[0])
        at = [where[0][r, i], where[1][r, j]]
        test = logical_not(at[0] < 0) & logical_not(at[1] < 0)
        for v, n in zip(at, space, strict=True):
            test = test & (v <= cast(n - 1, x.dtype))
        if mode == "nearest":
            value = x[image, c, *(whole(apply("floor", v + 0.5), k) for k, v in enumerate(at))]
        else:
            low = [whole(apply("floor", v), k) for k, v in enumerate(at)]
            high = [whole(apply("ceil", v), k) for k, v in enumerate(at)]
            part = [v - apply("floor", v) for v in at]

            def row(y: Expr) -> Expr:
                left, right = x[image, c, y, low[1]], x[image, c, y, high[1]]
                return left + (right - left) * part[1]

            top, bottom = row(low[0]), row(high[0])
            value = top + (bottom - top) * part[0]
        return select(test, value, const(extrapolation_value, x.dtype))

    return compute((rois.shape[0], x.shape[1], *out), body, name="crop")


@op("Inverse", MICROSOFT)
def inverse(ctx: Context, x: Tensor) -> Tensor:
    """Elimination with row exchanges of matrices beside the identity, a column per step of a scan."""
    if x.rank < 2:
        raise Malformed(f"takes matrices, not rank {x.rank}")
    n = x.shape[-1]
    ctx.require(eq(n, x.shape[-2]), f"a matrix of {x.shape[-2]} rows and {n} columns has no inverse")
    kind = x.dtype if x.dtype.bits >= 32 else F32
    lead = x.shape[:-2]

    def beside(*i: Expr) -> Expr:
        *b, r, c = i
        one = select(eq(c - n, r), const(1, kind), const(0, kind))
        return select(c < n, cast(x[(*b, r, minimum(c, n - 1))], kind), one)

    start = compute((*lead, n, n * 2), beside, name="beside")

    def step(time: Expr, a: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        def below(b: Sequence[Expr], r: Expr) -> Expr:
            return select(r < time, const(-1, kind), apply("abs", a[(*b, r, time)]))

        best = compute(lead, lambda *b: reduce_max((n,), lambda r: below(b, r)), name="best")
        row = compute(
            lead,
            lambda *b: reduce_min((n,), lambda r: select(logical_not(below(b, r) < best[b]), r, n - 1)),
            name="row",
        )

        def swapped(*i: Expr) -> Expr:
            *b, r, c = i
            other = row[tuple(b)]
            source = select(eq(r, time), other, select(eq(r, other), time, r))
            return a[(*b, minimum(maximum(source, const(0)), n - 1), c)]

        p = compute(a.shape, swapped, name="swapped")

        def eliminated(*i: Expr) -> Expr:
            *b, r, c = i
            pivot = p[(*b, time, c)] / p[(*b, time, time)]
            return select(eq(r, time), pivot, p[i] - p[(*b, r, time)] * pivot)

        return [compute(a.shape, eliminated, name="eliminated")], []

    _, (done,) = scan(n, [start], step, name="inverse")
    return compute(x.shape, lambda *i: cast(done[(*i[:-1], i[-1] + n)], x.dtype), name="inverse")


@op("NGramRepeatBlock", MICROSOFT)
def ngram_repeat_block(ctx: Context, input_ids: Tensor, scores: Tensor, *, ngram_size: int) -> Tensor:
    """Scores with -inf at every token that would repeat an n-gram of its row."""
    batch, length = input_ids.shape
    if ngram_size < 1:
        raise Malformed(f"n-grams of {ngram_size} tokens")
    count = maximum(length - (ngram_size - 1), const(0))
    words = scores.shape[1]

    def repeated(b: Expr, i: Expr) -> Expr:
        test = as_expr(0) <= i
        for k in range(ngram_size - 1):
            test = test & eq(input_ids[b, i + k], input_ids[b, length - (ngram_size - 1) + k])
        return test

    return scatter(
        lambda b, v: scores[b, v],
        scores.shape,
        (batch, count),
        lambda b, i: (b, guard(cast(input_ids[b, i + (ngram_size - 1)], I64), words, ctx.site)),
        lambda b, i: const(float("-inf"), scores.dtype),
        condition=repeated,
        name="blocked",
    )


@op("MurmurHash3", MICROSOFT)
def murmur_hash_3(x: Tensor, *, positive: int = 1, seed: int = 0) -> Tensor:
    """The 32-bit hash of every element's four bytes."""
    if x.dtype not in (I32, U32):
        raise Unsupported(f"the hash of {x.dtype}", "hash integers of 32 bits")

    def turned(v: Expr, by: int) -> Expr:
        return apply("shl", v, const(by, U32)) | apply("shr", v, const(32 - by, U32))

    def mixed(v: Expr, shift: int) -> Expr:
        return apply("xor", v, apply("shr", v, const(shift, U32)))

    def body(v: Expr) -> Expr:
        k = turned(cast(v, U32) * const(0xCC9E2D51, U32), 15) * const(0x1B873593, U32)
        h = turned(apply("xor", const(seed & 0xFFFFFFFF, U32), k), 13) * 5 + const(0xE6546B64, U32)
        h = mixed(apply("xor", h, const(4, U32)), 16) * const(0x85EBCA6B, U32)
        h = mixed(mixed(h, 13) * const(0xC2B2AE35, U32), 16)
        return h if positive else cast(h, I32)

    return unary(x, body, "hash")
