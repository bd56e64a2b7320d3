"""ONNX Runtime's attention of decoders (domain com.microsoft): rotary embeddings and GroupQueryAttention."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, as_expr, cast, const, eq, guard, inside, maximum, select
from fusile.ir.tensor import Tensor, compute
from fusile.ir.types import F32, I64
from fusile.kernels.families.contrib_attention import (
    Scoring,
    attend,
    by_head,
    heads_of,
    scale_of,
    size_of_head,
)
from fusile.kernels.families.contrib_qlinear import MICROSOFT, single
from fusile.kernels.families.reduction import mean
from fusile.kernels.registry import Context, Malformed, Unsupported, op

# ---- rotation ----


def rotated(
    ctx: Context,
    x: Tensor,
    position: Callable[[Expr, Expr, Expr], Expr],
    cosine: Tensor,
    sine: Tensor,
    *,
    interleaved: bool,
) -> Tensor:
    """x [batch, heads, s, size] with pairs of its first 2 * cosine.shape[1] columns turned by the angle of
    their position: neighbours where interleaved, else one of each half. The position is given by batch, s
    and the column of the caches.
    """
    half, limit = cosine.shape[1], cosine.shape[0]
    turned = half * 2

    def body(b: Expr, n: Expr, s: Expr, h: Expr) -> Expr:
        if interleaved:
            column, other, first = h // 2, select(eq(h % 2, 0), h + 1, h - 1), eq(h % 2, 0)
        else:
            first = h < half
            column, other = select(first, h, h - half), select(first, h + half, h - half)
        test = inside((h, turned))
        inner = select(test, column, const(0))
        row = guard(position(b, s, inner), limit, ctx.site)
        v = x[b, n, s, select(test, other, const(0))] * sine[row, inner]
        out = x[b, n, s, h] * cosine[row, inner] + select(first, -v, v)
        return out if turned is x.shape[3] else select(test, out, x[b, n, s, h])

    return compute(x.shape, body, name="rotated")


@op("RotaryEmbedding", MICROSOFT)
def rotary_embedding(
    ctx: Context,
    x: Tensor,
    position_ids: Tensor,
    cosine: Tensor,
    sine: Tensor,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """x is [batch, heads, s, size], or [batch, s, heads * size]; positions are [batch, s], or where they
    begin.
    """
    if x.rank not in (3, 4) or cosine.rank != 2:
        raise Malformed(f"takes a tensor of rank 3 or 4 and caches of rank 2, not {x.rank} and {cosine.rank}")

    def position(b: Expr, s: Expr, _: Expr) -> Expr:
        if position_ids.rank == 2:
            return cast(position_ids[b, s], I64)
        return cast(single(position_ids), I64) + s

    heads = num_heads if rotary_embedding_dim else 0
    return _of_any_rank(ctx, x, position, cosine, sine, interleaved=bool(interleaved), heads=heads)


def _of_any_rank(
    ctx: Context,
    x: Tensor,
    position: Callable[[Expr, Expr, Expr], Expr],
    cosine: Tensor,
    sine: Tensor,
    *,
    interleaved: bool,
    heads: int,
) -> Tensor:
    """`rotated` for x by head, or with its heads (0: as wide as the caches) beside each other."""
    if x.rank == 4:
        return rotated(ctx, x, position, cosine, sine, interleaved=interleaved)
    width = x.shape[2]
    size = size_of_head(width, heads) if heads else cosine.shape[1] * 2
    count = ix.number(width // size)
    if count is None:
        raise Unsupported("an unknown number of heads", "fix the width by `--dims`")
    y = rotated(ctx, heads_of(x, 0, count, size), position, cosine, sine, interleaved=interleaved)
    return compute(x.shape, lambda b, s, j: y[b, j // size, s, j % size], name="joined")


@op("MRotaryEmbedding", MICROSOFT)
def m_rotary_embedding(
    ctx: Context,
    x: Tensor,
    position_ids: Tensor,
    cosine: Tensor,
    sine: Tensor,
    *,
    mrope_section: Sequence[int],
    mrope_layout: int = 0,
    interleaved: int = 0,
    num_heads: int = 0,
) -> Tensor:
    """Rotation by three positions [3, batch, s] (time, height, width), each of which has some columns of the
    caches: one section after another, or every third column.
    """
    if len(mrope_section) != 3:
        raise Malformed(f"{len(mrope_section)} sections")
    time, height, width = mrope_section

    def position(b: Expr, s: Expr, column: Expr) -> Expr:
        if mrope_layout:
            second = eq(column % 3, 1) & (column < height * 3)
            third = eq(column % 3, 2) & (column < width * 3)
            stream = select(second, const(1), select(third, const(2), const(0)))
        else:
            after = select(column < time + height, const(1), const(2))
            stream = select(column < time, const(0), after)
        return cast(position_ids[stream, b, s], I64)

    return _of_any_rank(ctx, x, position, cosine, sine, interleaved=bool(interleaved), heads=num_heads)


# ---- attention ----


def _normalised(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Every head over its root mean square."""
    wide = compute(x.shape, lambda *i: cast(x[i], F32), name="wide")
    square = mean(wide, [3], keep=True, of=lambda v: v * v, name="square")

    def body(b: Expr, n: Expr, s: Expr, h: Expr) -> Expr:
        factor = 1 / apply("sqrt", square[b, n, s, const(0)] + epsilon)
        return cast(wide[b, n, s, h] * factor * cast(weight[h], F32), x.dtype)

    return compute(x.shape, body, name="normalised")


def _cached(past: Tensor | None, new: Tensor, before: Callable[[Expr], Expr], rows: Expr) -> Tensor:
    """The first before(b) rows of the past and then the new ones, in `rows` rows; zeros after them."""
    batch, groups, count, size = new.shape

    def body(b: Expr, g: Expr, t: Expr, h: Expr) -> Expr:
        row = t - before(b)
        out = select(inside((row, count)), new[b, g, row, h], const(0, new.dtype))
        if past is None:
            return out
        return select((t < before(b)) & inside((t, past.shape[2])), past[b, g, t, h], out)

    return compute((batch, groups, rows, size), body, name="cache")


def _by_heads(
    query: Tensor, key: Tensor | None, value: Tensor | None, heads: int, groups: int
) -> tuple[Tensor, Tensor, Tensor, Expr]:
    """(queries, keys, values) [batch, heads, rows, size] and that size; without keys all lie in the query."""
    if groups < 1 or heads % groups:
        raise Malformed(f"{heads} heads do not divide into {groups} groups")
    if key is None or value is None:
        size = size_of_head(query.shape[2], heads + 2 * groups)
        sources = [(query, as_expr(0)), (query, size * heads), (query, size * (heads + groups))]
    else:
        size = size_of_head(query.shape[2], heads)
        sources = [(query, as_expr(0)), (key, as_expr(0)), (value, as_expr(0))]
    q, k, v = (
        heads_of(t, begin, n, size) for (t, begin), n in zip(sources, (heads, groups, groups), strict=True)
    )
    return q, k, v, size


def _sink(weights: Tensor | None, smooth: bool) -> Callable[[Expr], Expr] | None:
    """What joins the scores of a head in its softmax and takes no value: a weight, or 0."""
    if weights is not None:
        return lambda head: cast(weights[head], F32)
    return (lambda head: const(0.0, F32)) if smooth else None


@op("GroupQueryAttention", MICROSOFT)
def group_query_attention(
    ctx: Context,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    seqlens_k: Tensor,
    total_sequence_length: Tensor,
    cos_cache: Tensor | None = None,
    sin_cache: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_bias: Tensor | None = None,
    head_sink: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    q_norm_weight: Tensor | None = None,
    k_norm_weight: Tensor | None = None,
    query_seqlens: Tensor | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    causal: int = 1,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    softcap: float = 0.0,
    local_window_size: int = -1,
    smooth_softmax: int = -1,
    qk_output: int = 0,
    qk_norm_epsilon: float = 1e-6,
    q_norm_epsilon: float | None = None,
    k_norm_epsilon: float | None = None,
    k_quant_type: str = "NONE",
    v_quant_type: str = "NONE",
    sliding_window_cache: int = 0,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """Attention of new tokens to those of the past and themselves. A sequence b has seqlens_k[b] + 1 tokens,
    of which the new ones are the last, or all where this is the first call.
    """
    if k_quant_type != "NONE" or v_quant_type != "NONE" or k_scale is not None or v_scale is not None:
        raise Unsupported("a quantised cache", "export with a cache of floats")
    if sliding_window_cache or query_seqlens is not None:
        raise Unsupported("a sliding cache, or new tokens with padding", "export without them")
    batch, rows = query.shape[:2]
    q, k, v, size = _by_heads(query, key, value, num_heads, kv_num_heads)
    if q_norm_weight is not None and k_norm_weight is not None:
        q = _normalised(q, q_norm_weight, qk_norm_epsilon if q_norm_epsilon is None else q_norm_epsilon)
        k = _normalised(k, k_norm_weight, qk_norm_epsilon if k_norm_epsilon is None else k_norm_epsilon)
    (total,) = ctx.values(total_sequence_length)
    total = ctx.extent(total, "total")
    first = eq(rows, total)

    def before(b: Expr) -> Expr:
        return select(first, const(0), cast(seqlens_k[b], I64) + 1 - rows)

    if do_rotary:
        if cos_cache is None or sin_cache is None:
            raise Malformed("rotation without its caches")

        def position(b: Expr, s: Expr, _: Expr) -> Expr:
            if position_ids is None:
                return before(b) + s
            start = cast(position_ids[const(0), const(0)], I64) + s
            return select(first, start, cast(position_ids[b, s], I64))

        q, k = (
            rotated(ctx, t, position, cos_cache, sin_cache, interleaved=bool(rotary_interleaved))
            for t in (q, k)
        )
    held = total if past_key is None else maximum(total, past_key.shape[2])
    present_k, present_v = _cached(past_key, k, before, held), _cached(past_value, v, before, held)

    def visible(b: Expr, s: Expr, t: Expr) -> Expr:
        if not causal:
            return t <= cast(seqlens_k[b], I64)
        end = before(b) + s
        test = t <= end
        return test & (end - local_window_size < t) if local_window_size > 0 else test

    sink = _sink(head_sink, smooth_softmax == 1)
    how = Scoring(scale_of(scale, size), attention_bias, None, visible, softcap, sink)
    keys, values = (
        compute((batch, kv_num_heads, total, size), lambda *i, t=t: t[i], name="seen")
        for t in (present_k, present_v)
    )
    done = attend(q, keys, values, how)
    if outputs < 4:
        return (done.output, present_k, present_v)[:outputs]
    shown = done.shares
    if qk_output == 1:
        raw = done.scores
        shown = compute(
            raw.shape,
            lambda b, g, r, s, t: select(visible(b, s, t), raw[b, g, r, s, t], const(0, raw.dtype)),
            name="shown",
        )
    return done.output, present_k, present_v, by_head(shown, query.dtype)
