"""ONNX Runtime's parts of models between attention and recurrence (domain com.microsoft): linear attention, a
convolution with state, gates and the norms beside them.
"""

from __future__ import annotations

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, cast, const, eq
from fusile.ir.tensor import Tensor, as_shape, compute, reduce_sum, scan
from fusile.ir.types import F32
from fusile.kernels.families.activation import sigmoid_of, softplus_of
from fusile.kernels.families.contrib_attention import scale_of, size_of_head
from fusile.kernels.families.contrib_qlinear import MICROSOFT, single
from fusile.kernels.families.elementwise import filled, unary
from fusile.kernels.families.movement import joined, transpose
from fusile.kernels.registry import Context, Malformed, Unsupported, op


def _silu(v: Expr) -> Expr:
    return v * sigmoid_of(v)


# ---- linear attention ----


@op("LinearAttention", MICROSOFT)
def linear_attention(
    ctx: Context,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    state_window: int = 0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, ...]:
    """A state [batch, heads, k, v] that every token decays, corrects by what it holds for its key, and reads.

    Tokens are [batch, time, heads * size].
    """
    if update_rule not in ("linear", "gated", "delta", "gated_delta"):
        raise Malformed(f"the rule {update_rule!r}")
    if state_window:
        raise Unsupported("states of several tokens", "export with state_window=0")
    gated, corrects = update_rule.startswith("gated"), update_rule.endswith("delta")
    if (gated and decay is None) or (corrects and beta is None):
        raise Malformed(f"the rule {update_rule!r} without its gates")
    batch, time = query.shape[:2]
    rows, columns = size_of_head(key.shape[2], kv_num_heads), size_of_head(value.shape[2], kv_num_heads)
    heads = max(q_num_heads, kv_num_heads)
    per_query, per_state = heads // q_num_heads, heads // kv_num_heads
    factor = scale_of(scale, rows)
    shape = as_shape((batch, kv_num_heads, rows, columns))
    start = filled(shape, 0.0, F32, "start")
    if past_state is not None:
        for n, m in zip(past_state.shape, shape, strict=True):
            ctx.require(eq(n, m), "the past state has other sizes than the tokens ask for")
        start = compute(shape, lambda *i: cast(past_state[i], F32), name="start")

    def entry(t: Tensor, b: Expr, at: Expr, column: Expr) -> Expr:
        return cast(t[b, at, column], F32)

    def step(at: Expr, state: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        kept = state
        if gated:
            assert decay is not None
            gates, each = decay, ix.number(decay.shape[2]) != kv_num_heads

            def decayed(b: Expr, n: Expr, i: Expr, j: Expr) -> Expr:
                g = entry(gates, b, at, n * rows + i if each else n)
                return state[b, n, i, j] * apply("exp", g)

            kept = compute(shape, decayed, name="decayed")
        wanted = compute(
            (batch, kv_num_heads, columns),
            lambda b, n, j: entry(value, b, at, n * columns + j),
            name="wanted",
        )
        if corrects:
            assert beta is not None
            rates, several = beta, ix.number(beta.shape[2]) != 1
            held = compute(
                wanted.shape,
                lambda b, n, j: reduce_sum(
                    (rows,), lambda i: kept[b, n, i, j] * entry(key, b, at, n * rows + i)
                ),
                name="held",
            )
            target = wanted
            wanted = compute(
                held.shape,
                lambda b, n, j: (
                    (target[b, n, j] - held[b, n, j]) * entry(rates, b, at, n if several else const(0))
                ),
                name="correction",
            )
        new = compute(
            shape,
            lambda b, n, i, j: kept[b, n, i, j] + entry(key, b, at, n * rows + i) * wanted[b, n, j],
            name="state",
        )

        def read(b: Expr, o: Expr, j: Expr) -> Expr:
            return reduce_sum(
                (rows,),
                lambda i: entry(query, b, at, (o // per_query) * rows + i) * new[b, o // per_state, i, j],
            )

        return [new], [compute((batch, heads, columns), read, name="read")]

    (reads,), (final,) = scan(time, [start], step, name="linear_attention")
    kind = query.dtype
    y = compute(
        (batch, time, columns * heads),
        lambda b, t, c: cast(reads[t, b, c // columns, c % columns] * factor, kind),
        name="linear_attention",
    )
    state_kind = past_state.dtype if past_state is not None else kind
    return y, unary(final, lambda v: cast(v, state_kind), "state")


@op("LinearAttentionGate", MICROSOFT)
def linear_attention_gate(
    a: Tensor, dt_bias: Tensor, decay_scale: Tensor, b: Tensor | None = None, *, outputs: int = 1
) -> tuple[Tensor, ...]:
    def body(*i: Expr) -> Expr:
        v = softplus_of(cast(a[i], F32) + dt_bias[i[-1]])
        return cast(decay_scale[i[-1]] * v, a.dtype)

    decay = compute(a.shape, body, name="decay")
    if outputs < 2:
        return (decay,)
    if b is None:
        raise Malformed("an update rate without its input")
    rate = unary(b, lambda v: cast(sigmoid_of(cast(v, F32)), v.dtype), "rate")
    return decay, rate


@op("CausalConvWithState", MICROSOFT)
def causal_conv_with_state(
    ctx: Context,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    past_state: Tensor | None = None,
    *,
    activation: str = "none",
    channels_last: int = 0,
    dilation: int = 1,
    ndim: int = 1,
    state_window: int = 0,
) -> tuple[Tensor, ...]:
    """A convolution of every channel over itself and what came before: x [batch, c, time], filters [c, 1,
    taps]. The state is what the next call needs to see.
    """
    if ndim != 1 or x.rank != 3 or state_window:
        raise Unsupported(
            "more than one dimension, or states of several tokens", "use ndim=1 without windows"
        )
    if activation not in ("none", "silu", "swish"):
        raise Malformed(f"the activation {activation!r}")
    wide = transpose(x, perm=(0, 2, 1)) if channels_last else x
    batch, channels, length = wide.shape
    ctx.require(eq(channels, weight.shape[0]), f"{channels} channels, but filters for {weight.shape[0]}")
    taps = weight.shape[2]
    held = (taps - 1) * dilation
    before = filled((batch, channels, held), 0.0, x.dtype, "zeros")
    if past_state is not None:
        before = transpose(past_state, perm=(0, 2, 1)) if channels_last else past_state
    whole = joined([before, wide], 2, "whole")

    def body(b: Expr, c: Expr, t: Expr) -> Expr:
        return reduce_sum((taps,), lambda k: weight[c, const(0), k] * whole[b, c, t + k * dilation])

    total = compute(wide.shape, body, name="conv")

    def finish(b: Expr, c: Expr, t: Expr) -> Expr:
        v = total[b, c, t] if bias is None else total[b, c, t] + bias[c]
        return v if activation == "none" else _silu(v)

    y = compute(wide.shape, finish, name="causal_conv")
    state = compute((batch, channels, held), lambda b, c, t: whole[b, c, t + length], name="state")
    return (transpose(y, perm=(0, 2, 1)), transpose(state, perm=(0, 2, 1))) if channels_last else (y, state)


# ---- norms and gates ----


def _inverse_roots(x: Tensor, size: Expr, epsilon: float) -> Tensor:
    """1 / root mean square of every `size` elements of the last dimension, as [..., groups]."""
    groups = x.shape[-1] // size

    def square(*i: Expr) -> Expr:
        def element(k: Expr) -> Expr:
            v = cast(x[(*i[:-1], i[-1] * size + k)], F32)
            return v * v

        return reduce_sum((size,), element)

    total = compute((*x.shape[:-1], groups), square, name="square")
    return unary(total, lambda v: 1 / apply("sqrt", v / cast(size, F32) + epsilon), "inverse")


@op("GatedRMSNorm", MICROSOFT)
def gated_rms_norm(
    x: Tensor, scale: Tensor, gate: Tensor, *, activation: str = "silu", epsilon: float = 1e-5
) -> Tensor:
    """Every scale.shape[0] elements over their root mean square, under a gate."""
    if activation not in ("silu", "swish", "sigmoid"):
        raise Malformed(f"the activation {activation!r}")
    size = scale.shape[0]
    roots = _inverse_roots(x, size, epsilon)

    def body(*i: Expr) -> Expr:
        v = cast(x[i], F32) * roots[(*i[:-1], i[-1] // size)] * cast(scale[i[-1] % size], F32)
        g = cast(gate[i], F32)
        return cast(v * (sigmoid_of(g) if activation == "sigmoid" else _silu(g)), x.dtype)

    return compute(x.shape, body, name="gated_norm")


@op("BranchwiseRMSNorm", MICROSOFT)
def branchwise_rms_norm(
    x: Tensor, scale: Tensor | None = None, *, epsilon: float = 1e-5, num_branches: int = 0
) -> Tensor:
    """[…, branches, size], or […, branches * size] where their number is given."""
    size = size_of_head(x.shape[-1], num_branches) if num_branches else x.shape[-1]
    roots = _inverse_roots(x, size, epsilon)

    def body(*i: Expr) -> Expr:
        v = cast(x[i], F32) * roots[(*i[:-1], i[-1] // size)]
        if scale is not None:
            branch = i[-1] // size if num_branches else i[-2]
            column = i[-1] % size
            if scale.rank == 2:
                factor = scale[branch, column]
            else:
                n = ix.number(scale.shape[0])
                one = scale.shape[0] is size or (n is not None and n == ix.number(size))
                factor = scale[column if one else branch * size + column]
            v = v * cast(factor, F32)
        return cast(v, x.dtype)

    return compute(x.shape, body, name="branch_norm")


@op("ScaledSiLU", MICROSOFT)
def scaled_silu(x: Tensor, scale: Tensor | None = None, *, alpha: float = 1.0) -> Tensor:
    def body(v: Expr) -> Expr:
        factor = const(alpha, F32) if scale is None else cast(single(scale), F32)
        z = cast(factor * cast(v, F32), v.dtype)
        return z * cast(sigmoid_of(cast(z, F32)), v.dtype)

    return unary(x, body, "scaled_silu")


@op("GatedAdd", MICROSOFT)
def gated_add(x: Tensor, y: Tensor, gate: Tensor, gate_weight: Tensor | None = None) -> Tensor:
    if gate_weight is not None:
        raise Unsupported("a gate that is projected inside", "export the projection as a MatMul")
    return compute(x.shape, lambda *i: x[i] + y[i] * gate[(*i[:-1], const(0))], name="gated_add")
