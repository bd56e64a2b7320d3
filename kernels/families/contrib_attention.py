"""ONNX Runtime's attention (domain com.microsoft): Attention, MultiHeadAttention, QAttention,
DecoderMaskedMultiHeadAttention, and the core that they share with GroupQueryAttention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, as_expr, cast, const, eq, inside, maximum, minimum, select
from fusile.ir.tensor import Tensor, compute, reduce_sum
from fusile.ir.types import F32, F64, I64, DType
from fusile.kernels.families.contraction import matmul
from fusile.kernels.families.contrib_qlinear import MICROSOFT
from fusile.kernels.families.contrib_qmatmul import matmul_integer_to_float
from fusile.kernels.families.movement import joined
from fusile.kernels.families.reduction import reduced, softmax_over
from fusile.kernels.registry import Context, Malformed, Unsupported, op

Mask = Callable[[Expr, Expr, Expr], Expr]
"""What is added to a score, by batch, position of the query and position of the key."""

LOWEST = -3.4028234663852886e38
"""The lowest float32: what ONNX Runtime puts where nothing may be seen."""


# ---- the core ----


@dataclass(frozen=True, slots=True)
class Scoring:
    """How scores are worked out: the factor, a bias [b or 1, heads or 1, s, t], a mask that is added, a test
    of what may be seen, a soft limit (0: none), and a score per head that takes its share and nothing else.
    """

    scale: float
    bias: Tensor | None = None
    mask: Mask | None = None
    visible: Mask | None = None
    softcap: float = 0.0
    sink: Callable[[Expr], Expr] | None = None


@dataclass(frozen=True, slots=True)
class Attended:
    """Scores and shares, both [batch, groups, heads of a group, s, t], and the result [batch, s, heads *
    size].
    """

    scores: Tensor
    shares: Tensor
    output: Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, how: Scoring) -> Attended:
    """Attention of q [batch, heads, s, size] to k and v [batch, groups, t, size], a group of heads each."""
    batch, heads, rows, size = q.shape
    groups, length = k.shape[1], k.shape[2]
    each = heads // groups
    wide = q.dtype if q.dtype in (F32, F64) else F32

    def head(g: Expr, r: Expr) -> Expr:
        return g * each + r

    def product(b: Expr, g: Expr, r: Expr, s: Expr, t: Expr) -> Expr:
        return reduce_sum((size,), lambda h: cast(q[b, head(g, r), s, h], wide) * cast(k[b, g, t, h], wide))

    raw = compute((batch, groups, each, rows, length), product, name="product")

    def score(b: Expr, g: Expr, r: Expr, s: Expr, t: Expr) -> Expr:
        out = raw[b, g, r, s, t] * how.scale
        if how.softcap > 0:
            out = apply("tanh", out / how.softcap) * how.softcap
        if how.bias is not None:
            out = out + cast(_spread(how.bias, (b, head(g, r), s, t)), wide)
        return out if how.mask is None else out + cast(how.mask(b, s, t), wide)

    scores = compute(raw.shape, score, name="scores")
    seen = scores
    if how.visible is not None:
        test = how.visible

        def hidden(b: Expr, g: Expr, r: Expr, s: Expr, t: Expr) -> Expr:
            return select(test(b, s, t), scores[b, g, r, s, t], const(LOWEST, wide))

        seen = compute(raw.shape, hidden, name="seen")
    inside = Context("")  # within the operator nothing is rounded
    shares = softmax_over(inside, seen, 4) if how.sink is None else _with_sink(seen, how.sink, head)

    def mixed(b: Expr, g: Expr, r: Expr, s: Expr, h: Expr) -> Expr:
        return reduce_sum((length,), lambda t: shares[b, g, r, s, t] * cast(v[b, g, t, h], wide))

    y = compute((batch, groups, each, rows, v.shape[3]), mixed, name="mixed")

    def view(b: Expr, s: Expr, j: Expr) -> Expr:
        n = j // v.shape[3]
        return cast(y[b, n // each, n % each, s, j % v.shape[3]], q.dtype)

    return Attended(scores, shares, compute((batch, rows, heads * v.shape[3]), view, name="attention"))


def _spread(t: Tensor, index: Sequence[Expr]) -> Expr:
    """An element of a tensor whose first dimensions may be 1."""
    return t[tuple(const(0) if ix.number(n) == 1 else i for i, n in zip(index, t.shape, strict=True))]


def _with_sink(x: Tensor, sink: Callable[[Expr], Expr], head: Callable[[Expr, Expr], Expr]) -> Tensor:
    """Softmax with one more score per head, which takes a share of its own."""
    lead = x.shape[:4]
    most = reduced(x, [4], "max", keep=False, name="max")
    top = compute(lead, lambda b, g, r, s: maximum(most[b, g, r, s], sink(head(g, r))), name="top")
    e = compute(x.shape, lambda *i: apply("exp", x[i] - top[i[:4]]), name="exp")
    total = reduced(e, [4], "sum", keep=False, name="sum")

    def all_of(b: Expr, g: Expr, r: Expr, s: Expr) -> Expr:
        return total[b, g, r, s] + apply("exp", sink(head(g, r)) - top[b, g, r, s])

    whole = compute(lead, all_of, name="whole")
    return compute(x.shape, lambda *i: e[i] / whole[i[:4]], name="softmax")


def by_head(t: Tensor, kind: DType) -> Tensor:
    """[batch, groups, heads of a group, s, t] as [batch, heads, s, t]."""
    batch, groups, each, rows, length = t.shape
    return compute(
        (batch, groups * each, rows, length),
        lambda b, n, s, k: cast(t[b, n // each, n % each, s, k], kind),
        name="by_head",
    )


def heads_of(x: Tensor, first: Expr | int, heads: int, size: Expr, bias: Tensor | None = None) -> Tensor:
    """Heads out of the last dimension of x [batch, s, …], from column `first` on, as [batch, heads, s, size].

    The bias has entries for the same columns.
    """

    def body(b: Expr, n: Expr, s: Expr, h: Expr) -> Expr:
        column = n * size + h + first
        return x[b, s, column] if bias is None else x[b, s, column] + bias[column]

    return compute((x.shape[0], heads, x.shape[1], size), body, name="heads")


def size_of_head(width: Expr, heads: int) -> Expr:
    """The part of a width that belongs to one head. Raises Malformed where heads do not divide it."""
    n = ix.number(width)
    if heads < 1 or (n is not None and n % heads):
        raise Malformed(f"{heads} heads do not divide a width of {width}")
    return width // heads


def scale_of(given: float, size: Expr) -> float:
    """The factor of the scores: the given one, or 1 / sqrt(size)."""
    if given:
        return given
    n = ix.number(size)
    if n is None:
        raise Unsupported("heads whose size is not a constant", "fix the size by `--dims`")
    return 1.0 / math.sqrt(max(n, 1))


# ---- masks ----


def _mask(
    ctx: Context, given: Tensor | None, batch: Expr, past: Expr, length: Expr, *, causal: bool, filler: float
) -> Mask | None:
    """The mask that ONNX Runtime makes of its forms of mask: per key and batch [b, t], per pair [b, s, t],
    ends [b], or ends and then starts [2 b]. What causality hides is lowest, not added.
    """
    if given is None and not causal:
        return None
    hidden, shown = const(filler, F32), const(0.0, F32)

    def padding(b: Expr, s: Expr, t: Expr) -> Expr:
        if given is None:
            return shown
        if given.rank == 3:
            return select(cast(given[b, s, t], I64) > 0, shown, hidden)
        if given.rank == 2:
            return select(cast(given[b, t], I64) > 0, shown, hidden)
        out = select(t < cast(given[b], I64), shown, hidden)
        count = given.shape[0]
        if count is batch:
            return out
        start = cast(given[minimum(b + batch, count - 1)], I64)
        return select(eq(count, batch * 2) & (t < start), hidden, out)

    if given is not None:
        if given.rank not in (1, 2, 3):
            raise Unsupported(f"a mask of rank {given.rank}", "use a mask of rank 1, 2 or 3")
        if given.rank == 1:
            count = given.shape[0]
            fits = eq(count, batch) | eq(count, batch * 2)
            ctx.require(fits, f"{count} lengths for {batch} sequences")
        if given.rank > 1:
            ctx.require(eq(given.shape[-1], length), f"a mask for {given.shape[-1]} of {length} keys")

    def body(b: Expr, s: Expr, t: Expr) -> Expr:
        out = padding(b, s, t)
        return select(past + s < t, const(LOWEST, F32), out) if causal else out

    return body


# ---- operators ----


def _past_and_new(past: Tensor | None, which: int | None, new: Tensor) -> Tensor:
    """Keys or values of the past, [2, b, n, t, h] or [b, n, t, h], followed by the new ones."""
    if past is None:
        return new
    kept = past
    if which is not None:
        kept = compute(past.shape[1:], lambda b, n, t, h: past[which, b, n, t, h], name="past")
    return joined([kept, new], 2, "present")


def _stacked(k: Tensor, v: Tensor) -> Tensor:
    return compute((2, *k.shape), lambda w, *i: select(w < 1, k[i], v[i]), name="present")


def _self_attention(
    ctx: Context,
    qkv: Tensor,
    bias: Tensor | None,
    sizes: Sequence[Expr],
    mask_index: Tensor | None,
    past: Tensor | None,
    attention_bias: Tensor | None,
    *,
    num_heads: int,
    scale: float,
    unidirectional: int,
    mask_filter_value: float,
    outputs: int,
) -> tuple[Tensor, ...]:
    """Attention over projected q, k and v, which lie beside each other in qkv [batch, s, …]."""
    batch, rows = qkv.shape[:2]
    parts = [size_of_head(width, num_heads) for width in sizes]
    starts = [as_expr(0), sizes[0], sizes[0] + sizes[1]]
    q, k, v = (heads_of(qkv, begin, num_heads, size, bias) for begin, size in zip(starts, parts, strict=True))
    before = past.shape[3] if past is not None else as_expr(0)
    k, v = _past_and_new(past, 0, k), _past_and_new(past, 1, v)
    mask = _mask(
        ctx, mask_index, batch, before, before + rows, causal=bool(unidirectional), filler=mask_filter_value
    )
    how = Scoring(scale_of(scale, parts[0]), attention_bias, mask)
    y = attend(q, k, v, how).output
    return (y, _stacked(k, v)) if outputs > 1 else (y,)


@op("Attention", MICROSOFT)
def attention(
    ctx: Context,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    *,
    num_heads: int,
    qkv_hidden_sizes: Sequence[int] | None = None,
    scale: float = 0.0,
    unidirectional: int = 0,
    mask_filter_value: float = -10000.0,
    do_rotary: int = 0,
    past_present_share_buffer: int = 0,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """Self-attention with the projection of x [batch, s, in] by [in, q + k + v] inside."""
    if do_rotary or past_present_share_buffer or past_sequence_length is not None:
        raise Unsupported(
            "rotation or a shared cache inside Attention, which ONNX Runtime's CPU kernel lacks too",
            "export with GroupQueryAttention, or without shared buffers",
        )
    if x.rank != 3 or weights.rank != 2:
        raise Malformed(f"takes x of rank 3 and weights of rank 2, not {x.rank} and {weights.rank}")
    width = weights.shape[1]
    sizes = [as_expr(n) for n in qkv_hidden_sizes] if qkv_hidden_sizes else [width // 3] * 3
    return _self_attention(
        ctx,
        matmul(ctx, x, weights),
        bias,
        sizes,
        mask_index,
        past,
        attention_bias,
        num_heads=num_heads,
        scale=scale,
        unidirectional=unidirectional,
        mask_filter_value=mask_filter_value,
        outputs=outputs,
    )


@op("QAttention", MICROSOFT)
def q_attention(
    ctx: Context,
    x: Tensor,
    weights: Tensor,
    bias: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    mask_index: Tensor | None = None,
    x_zero: Tensor | None = None,
    weight_zero: Tensor | None = None,
    past: Tensor | None = None,
    *,
    num_heads: int,
    scale: float = 0.0,
    unidirectional: int = 0,
    mask_filter_value: float = -10000.0,
    do_rotary: int = 0,
    past_present_share_buffer: int = 0,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """Attention whose projection is a product of bytes."""
    if do_rotary or past_present_share_buffer:
        raise Unsupported("rotation or a shared cache inside QAttention", "export without them")
    qkv = matmul_integer_to_float(ctx, x, weights, x_scale, weight_scale, x_zero, weight_zero)
    width = weights.shape[1] // 3
    return _self_attention(
        ctx,
        qkv,
        bias,
        [width] * 3,
        mask_index,
        past,
        None,
        num_heads=num_heads,
        scale=scale,
        unidirectional=unidirectional,
        mask_filter_value=mask_filter_value,
        outputs=outputs,
    )


def _queries_keys_values(
    query: Tensor, key: Tensor | None, value: Tensor | None, bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as [batch, heads, s, size], out of all the forms in which MultiHeadAttention takes them."""
    if query.rank == 5 or (key is not None and key.rank == 5):
        return _packed(query, key, bias)
    width = query.shape[2]
    if key is None:  # q, k and v beside each other
        size = size_of_head(width // 3, heads)
        part = size * heads
        q, k, v = (heads_of(query, part * n, heads, size, bias) for n in range(3))
        return q, k, v
    if value is None:
        raise Malformed("keys without values")
    q = heads_of(query, 0, heads, size_of_head(width, heads), bias)
    if key.rank == 4:  # of an encoder, projected and by head already
        return q, key, value
    k, v = (
        heads_of(t, 0, heads, size_of_head(t.shape[2], heads), _from(bias, begin, t.shape[2]))
        for t, begin in ((key, width), (value, width + key.shape[2]))
    )
    return q, k, v


def _from(bias: Tensor | None, begin: Expr, width: Expr) -> Tensor | None:
    return None if bias is None else compute((width,), lambda j: bias[begin + j], name="bias")


def _packed(query: Tensor, key: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v out of [batch, s, heads, 3, size], or k and v out of [batch, s, heads, 2, size]."""
    source = query if query.rank == 5 else key
    assert source is not None
    heads, size = source.shape[2], source.shape[4]
    width = heads * size

    def part(n: int, column: int) -> Tensor:
        def body(b: Expr, h: Expr, s: Expr, d: Expr) -> Expr:
            v = source[b, s, h, n, d]
            return v if bias is None else v + bias[width * column + h * size + d]

        return compute((source.shape[0], heads, source.shape[1], size), body, name="heads")

    if source is query:
        return part(0, 0), part(1, 1), part(2, 2)
    count = ix.number(heads)
    if count is None:
        raise Unsupported("packed keys of an unknown number of heads", "fix the number by `--dims`")
    return heads_of(query, 0, count, size, bias), part(0, 1), part(1, 2)


@op("MultiHeadAttention", MICROSOFT)
def multi_head_attention(
    ctx: Context,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    cache_indirection: Tensor | None = None,
    *,
    num_heads: int,
    scale: float = 0.0,
    unidirectional: int = 0,
    mask_filter_value: float = -10000.0,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    if cache_indirection is not None:
        raise Unsupported("a cache shared by beams", "export the decoder without beam search inside")
    if past_sequence_length is not None:
        raise Unsupported("a cache written in place", "export the decoder with a cache that grows")
    q, k, v = _queries_keys_values(query, key, value, bias, num_heads)
    before = past_key.shape[2] if past_key is not None else as_expr(0)
    k, v = _past_and_new(past_key, None, k), _past_and_new(past_value, None, v)
    mask = _mask(
        ctx,
        key_padding_mask,
        q.shape[0],
        before,
        k.shape[2],
        causal=bool(unidirectional),
        filler=mask_filter_value,
    )
    done = attend(q, k, v, Scoring(scale_of(scale, q.shape[3]), attention_bias, mask))
    return (done.output, k, v, by_head(done.scores, q.dtype))[:outputs]


@op("DecoderMaskedMultiHeadAttention", MICROSOFT)
def decoder_masked_multi_head_attention(
    ctx: Context,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    mask_index: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    beam_width: Tensor | None = None,
    cache_indirection: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    num_heads: int,
    scale: float = 0.0,
    mask_filter_value: float = -10000.0,
    outputs: int = 1,
) -> tuple[Tensor | None, ...]:
    """One new token: its key and value are written into caches [batch, heads, longest, size] after those of
    the past.
    """
    if cache_indirection is not None:
        raise Unsupported("a cache shared by beams", "export the decoder without beam search inside")
    q, k, v = _queries_keys_values(query, key, value, bias, num_heads)
    caches: tuple[Tensor | None, Tensor | None] = (None, None)
    if past_key is not None and past_value is not None:
        if past_sequence_length is None:
            raise Malformed("a cache without the length of the past")
        (before,) = ctx.values(past_sequence_length)
        total = ctx.extent(before + 1, "total")
        k, v = _written(past_key, k, before), _written(past_value, v, before)
        ctx.require(total <= past_key.shape[2], f"no room for a token in a cache of {past_key.shape[2]}")
        caches = (k, v)
        k, v = _begin(k, total), _begin(v, total)
    mask = _mask(ctx, mask_index, q.shape[0], as_expr(0), k.shape[2], causal=False, filler=mask_filter_value)
    done = attend(q, k, v, Scoring(scale_of(scale, q.shape[3]), attention_bias, mask))
    return (done.output, *caches, by_head(done.scores, q.dtype))[:outputs]


def _written(cache: Tensor, new: Tensor, at: Expr) -> Tensor:
    """A cache with the rows of `new` written from row `at` on."""

    def body(b: Expr, n: Expr, t: Expr, h: Expr) -> Expr:
        row = t - at
        return select(inside((row, new.shape[2])), new[b, n, row, h], cache[b, n, t, h])

    return compute(cache.shape, body, name="cache")


def _begin(t: Tensor, rows: Expr) -> Tensor:
    return compute((*t.shape[:2], rows, t.shape[3]), lambda *i: t[i], name="begin")
