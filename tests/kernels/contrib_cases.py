"""ONNX Runtime's operators, at least five cases each: the first of an operator is its plainest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from edge_cases import f32, i8, u8
from operator_models import Array, Case

MICROSOFT = "com.microsoft"


def case(
    op: str,
    name: str,
    inputs: Sequence[Array | None],
    fixed: Sequence[int] = (),
    outputs: int = 1,
    **more: Any,
) -> Case:
    """A case of an operator; what is not a field of Case is an attribute. Trailing None are left out."""
    given = list(inputs)
    while given and given[-1] is None:
        given.pop()
    fields: dict[str, Any] = {
        k: more.pop(k) for k in ("domain", "symbolic", "tolerance", "axes") if k in more
    }
    return Case(name, op, tuple(given), more, tuple(fixed), outputs, **{"domain": MICROSOFT, **fields})


def scale(value: float) -> Array:
    return np.array(value, np.float32)


def byte(value: int) -> Array:
    return np.array(value, np.uint8)


def signed(value: int) -> Array:
    return np.array(value, np.int8)


def i32(*values: int) -> Array:
    return np.array(values, np.int32)


def numbers(low: int, high: int, *shape: int, dtype: Any = np.int32, seed: int = 0) -> Array:
    return np.random.default_rng([seed, high, *shape]).integers(low, high, shape).astype(dtype)


def positive(*shape: int, low: float = 0.01, high: float = 0.1, seed: int = 3) -> Array:
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(np.float32)


# ---- activations, normalisations, products ----


def activations() -> Iterator[Case]:
    wide = np.linspace(-9, 9, 181, dtype=np.float32)
    for k, x in enumerate((f32(3, 4), wide, f32(2, 3, 5), f32(1), f32(2, 0, 3))):
        yield case("Gelu", f"{k}", [x])
        yield case("QuickGelu", f"{k}", [x])
        yield case("FastGelu", f"{k}", [x])
    yield case("QuickGelu", "alpha", [f32(3, 4)], alpha=0.7)
    yield case("FastGelu", "bias", [f32(2, 3, 4), f32(4)])
    yield case("FastGelu", "weights", [f32(3, 4), f32(4)], fixed=[1])
    for k, shape in enumerate(((3, 4), (2, 3, 4), (1, 4), (2, 1, 3, 4), (4,))):
        yield case("BiasGelu", f"{k}", [f32(*shape), f32(4)], fixed=[1] if k % 2 else [])


def normalisations() -> Iterator[Case]:
    x, h = f32(2, 3, 8), 8
    for name, more in (
        ("plain", {}),
        ("epsilon", {"epsilon": 0.01}),
        ("axis", {"axis": 2}),
        ("last", {"axis": -1}),
        ("stash", {"stash_type": 1}),
    ):
        yield case("SimplifiedLayerNormalization", name, [x, f32(h)], domain="", **more)
    yield case("SimplifiedLayerNormalization", "two_axes", [x, f32(3, h)], domain="", axis=1)
    yield case("SkipLayerNormalization", "plain", [x, f32(2, 3, 8, seed=1), f32(h)])
    yield case("SkipLayerNormalization", "beta", [x, f32(2, 3, 8, seed=1), f32(h), f32(h, seed=2)])
    yield case("SkipLayerNormalization", "bias", [x, f32(2, 3, 8, seed=1), f32(h), None, f32(h)], epsilon=0.1)
    yield case("SkipLayerNormalization", "flat_skip", [x, f32(3, h), f32(h), f32(h)], [2, 3])
    yield case("SkipLayerNormalization", "one_skip", [x, f32(1, 3, h), f32(h), f32(h), f32(h)], [2, 3, 4])
    for name, bias in (("plain", None), ("bias", f32(h))):
        inputs = [x, f32(2, 3, 8, seed=1), f32(h), bias]
        yield case("SkipSimplifiedLayerNormalization", name, inputs)
        yield case("SkipSimplifiedLayerNormalization", name + "_fixed", inputs, [2, 3], epsilon=1e-5)
    yield case("SkipSimplifiedLayerNormalization", "tokens", [f32(5, h), f32(5, h, seed=1), f32(h)])
    yield from embeddings()


def embeddings() -> Iterator[Case]:
    ids, kinds = numbers(0, 10, 2, 5), numbers(0, 2, 2, 5)
    tables = [f32(10, 8), f32(6, 8), f32(2, 8)]
    ends = [f32(8), f32(8, seed=1)]
    fixed = [2, 3, 4, 5, 6]
    op = "EmbedLayerNormalization"
    yield case(op, "plain", [ids, kinds, *tables, *ends], fixed, 2)
    yield case(op, "no_kinds", [ids, None, *tables[:2], None, *ends], fixed, 2, epsilon=0.01)
    yield case(op, "mask", [ids, kinds, *tables, *ends, numbers(0, 2, 2, 5, seed=1)], fixed, 2)
    yield case(op, "sum", [ids, kinds, *tables, *ends, numbers(0, 2, 2, 5, seed=1)], fixed, 3)
    yield case(op, "positions", [ids, kinds, *tables, *ends, None, numbers(0, 6, 2, 5)], fixed, 2)
    yield case(op, "one_row", [ids, kinds, *tables, *ends, None, numbers(0, 6, 1, 5)], fixed, 2)


def embeddings_of_bytes() -> Iterator[Case]:
    op, ids, kinds = "QEmbedLayerNormalization", numbers(0, 10, 2, 5), numbers(0, 2, 2, 5)

    def one(
        name: str, mask: Array | None = None, segments: bool = True, signed_: bool = False, **more: Any
    ) -> Case:
        draw, zero = (i8, signed(3)) if signed_ else (u8, byte(120))
        tables = [draw(10, 8), draw(6, 8), draw(2, 8) if segments else None, draw(8), draw(8, seed=1)]
        scales = [scale(0.01 * k) if segments or k != 3 else None for k in range(1, 6)]
        zeros = [zero if segments or k != 2 else None for k in range(5)]
        inputs = [ids, kinds if segments else None, *tables, mask, *scales, *zeros]
        fixed = [2, 3, 4, 5, 6, *range(8, 18)]
        return case(op, name, inputs, fixed, 2, **more)

    yield one("plain", numbers(0, 2, 2, 5, seed=1))
    yield one("no_mask")
    yield one("no_kinds", numbers(0, 2, 2, 5, seed=1), segments=False)
    yield one("signed", numbers(0, 2, 2, 5, seed=1), signed_=True)
    yield one("epsilon", epsilon=0.1)


def products() -> Iterator[Case]:
    forms: list[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
        ("plain", (3, 4), (4, 5), {}),
        ("left", (2, 4, 3), (4, 5), {"transA": 1, "alpha": 0.5}),
        ("right", (2, 3, 4), (2, 5, 4), {"transB": 1}),
        ("both", (2, 4, 3), (2, 5, 4), {"transA": 1, "transB": 1}),
        ("factor", (2, 3, 4), (4, 5), {"alpha": -2.0}),
    ]
    for name, a, b, more in forms:
        yield case("FusedMatMul", name, [f32(*a), f32(*b)], **more)
        yield case("TransposeMatMul", name, [f32(*a), f32(*b)], **more)
    yield case("FusedMatMul", "batch", [f32(3, 2, 4), f32(2, 4, 5)], transBatchA=1)
    every = {"transA": 1, "transB": 1, "transBatchA": 1, "transBatchB": 1}
    yield case("FusedMatMul", "everything", [f32(4, 2, 6, 3), f32(5, 2, 6, 4)], **every)
    yield case("FusedMatMul", "vector", [f32(4), f32(5, 4)], transA=1, transB=1)
    for name, more in (
        ("Relu", {}),
        ("LeakyRelu", {"activation_alpha": 0.2}),
        ("Sigmoid", {"transB": 1}),
        ("Tanh", {"alpha": 0.5, "beta": 2.0}),
        ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}),
        ("Elu", {"activation_alpha": 0.7, "transA": 1}),
    ):
        a = f32(6, 3) if more.get("transA") else f32(3, 6)
        b = f32(4, 6) if more.get("transB") else f32(6, 4)
        yield case("FusedGemm", name, [a, b, f32(4)], [1, 2], activation=name, **more)
    yield case("FusedGemm", "no_bias", [f32(3, 6), f32(6, 4)], activation="Relu")


def convolutions() -> Iterator[Case]:
    x, w = f32(2, 3, 8, 7), f32(4, 3, 3, 3)
    for name, params in (
        ("Relu", None),
        ("Sigmoid", None),
        ("Tanh", None),
        ("LeakyRelu", [0.1]),
        ("Clip", [0.0, 6.0]),
        ("HardSigmoid", [0.2, 0.5]),
    ):
        more = {} if params is None else {"activation_params": params}
        yield case("FusedConv", name, [x, w, f32(4)], [1, 2], activation=name, pads=[1, 1, 1, 1], **more)
    yield case("FusedConv", "sum", [x, w, f32(4), f32(2, 4, 6, 5)], [1, 2], activation="Relu")
    yield case("FusedConv", "grouped", [x, f32(6, 1, 3, 3), f32(6)], [1, 2], group=3, strides=[2, 2])
    yield case(
        "FusedConv", "same", [x, w, None], [1], auto_pad="SAME_UPPER", strides=[2, 2], activation="Relu"
    )
    op, y = "ConvTransposeWithDynamicPads", f32(1, 2, 5, 5)
    filters = f32(2, 3, 3, 3)
    for name, pads, more in (
        ("plain", [0, 0, 0, 0], {}),
        ("padded", [1, 0, 1, 1], {"strides": [2, 2]}),
        ("extra", [1, 1, 1, 1], {"strides": [2, 2], "output_padding": [1, 1]}),
        ("dilated", [1, 1, 1, 1], {"dilations": [2, 2]}),
    ):
        yield case(op, name, [y, filters, np.array(pads, np.int64), f32(3)], [1, 2, 3], **more)
    yield case(op, "no_bias", [y, filters, np.array([0, 1, 1, 0], np.int64)], [1, 2])


# ---- attention ----

B, S, N, H = 2, 5, 4, 16
D = N * H


def bits(*shape: int) -> Array:
    """A mask that lets every row see its first key."""
    return numbers(0, 2, *shape) | (np.arange(shape[-1]) == 0).astype(np.int32)


def attentions() -> Iterator[Case]:
    def one(
        name: str,
        mask: Array | None = None,
        past: int = 0,
        added: Array | None = None,
        bias: bool = True,
        rows: int = S,
        values: int = D,
        outputs: int = 1,
        **more: Any,
    ) -> Case:
        width = 2 * D + values
        weights, b = f32(12, width) * 0.3, f32(width) if bias else None
        state = f32(2, B, N, past, H) if past else None
        inputs = [f32(B, rows, 12), weights, b, mask, state, added]
        return case("Attention", name, inputs, [1, 2], outputs, num_heads=N, axes=(0, 1), **more)

    yield one("plain")
    yield one("no_bias", bias=False)
    yield one("causal", unidirectional=1)
    yield one("ends", i32(3, 5))
    yield one("ends_and_starts", i32(3, 5, 1, 2))
    yield one("keys", bits(B, S))
    yield one("pairs", bits(B, S, S), unidirectional=1)
    yield one("past", past=3, outputs=2, unidirectional=1)
    yield one("past_masked", bits(B, S + 3), past=3, outputs=2)
    yield one("one_token", past=3, outputs=2, rows=1, unidirectional=1)
    yield one("present", outputs=2)
    yield one("narrow_values", values=32, qkv_hidden_sizes=[D, D, 32])
    yield one("scale", added=f32(1, N, S, S), scale=0.3)
    yield one("soft_mask", bits(B, S), mask_filter_value=-1.0)
    yield one("bias_per_batch", bits(B, S), added=f32(B, 1, S, S), unidirectional=1)


def multi_heads() -> Iterator[Case]:
    op, longer = "MultiHeadAttention", 7
    q, k, v = f32(B, S, D), f32(B, longer, D, seed=1), f32(B, longer, D, seed=2)
    own_k, own_v = f32(B, S, D, seed=1), f32(B, S, D, seed=2)
    past = [f32(B, N, 3, H), f32(B, N, 3, H, seed=1)]

    def one(name: str, inputs: Sequence[Array | None], outputs: int = 1, **more: Any) -> Case:
        return case(op, name, inputs, outputs=outputs, num_heads=N, axes=(0, 1), **more)

    yield one("plain", [q, k, v])
    yield one("bias", [q, k, f32(B, longer, 32), f32(2 * D + 32)])
    yield one("encoder", [q, f32(B, N, longer, H), f32(B, N, longer, H, seed=1)])
    yield one("encoder_bias", [q, f32(B, N, longer, H), f32(B, N, longer, H, seed=1), f32(3 * D)])
    yield one("ends", [q, k, v, None, i32(3, 7)])
    yield one("keys", [q, k, v, None, bits(B, longer)])
    yield one("pairs", [q, k, v, None, bits(B, S, longer)])
    yield one("past", [q, own_k, own_v, None, None, None, *past], 3)
    every = [q, own_k, own_v, f32(3 * D), bits(B, S + 3), f32(1, 1, S, S + 3), *past]
    yield one("everything", every, 3, unidirectional=1)
    yield one("present", [q, own_k, own_v], 3, scale=0.2)


def decoders() -> Iterator[Case]:
    op, longest = "DecoderMaskedMultiHeadAttention", 9
    caches = [f32(B, N, longest, H), f32(B, N, longest, H, seed=1)]
    rows = [f32(B, 1, D, seed=k) for k in range(3)]

    def one(name: str, past: int, mask: Array | None = None, added: Array | None = None, **more: Any) -> Case:
        bias = more.pop("bias", None)
        inputs = [*rows, mask, added, *caches, i32(past), None, None, bias]
        return case(op, name, inputs, outputs=3, num_heads=N, past_present_share_buffer=1, axes=(0,), **more)

    yield one("plain", 4)
    yield one("start", 0)
    yield one("mask", 4, bits(B, 5))
    yield one("scores", 4, None, f32(1, N, 1, 5), scale=0.3)
    yield one("bias", 8, bias=f32(3 * D))
    cross = [rows[0], f32(B, N, 7, H), f32(B, N, 7, H, seed=1), bits(B, 7)]
    yield case(op, "cross", cross, num_heads=N, axes=(0,))


def rotations() -> Iterator[Case]:
    def one(name: str, x: Array, positions: Array, half: int, **more: Any) -> Case:
        return case(
            "RotaryEmbedding",
            name,
            [x, positions, f32(20, half), f32(20, half, seed=1)],
            [2, 3],
            axes=(0, 1),
            **more,
        )

    flat, by_head = f32(B, S, D), f32(B, N, S, H)
    rows, start = numbers(0, 20, B, S, dtype=np.int64), np.array([3], np.int64)
    yield one("plain", flat, rows, H // 2)
    yield one("start", flat, start, H // 2)
    yield one("interleaved", flat, rows, H // 2, interleaved=1)
    yield one("by_head", by_head, rows, H // 2)
    yield one("part", flat, rows, 4, num_heads=N, rotary_embedding_dim=8)
    yield one("part_interleaved", by_head, rows, 4, num_heads=N, rotary_embedding_dim=8, interleaved=1)
    yield one("scale", flat, start, H // 2, scale=2.0)


def grouped_queries() -> Iterator[Case]:
    def one(
        name: str,
        rows: int,
        past: int = 0,
        *,
        ends: Sequence[int] | None = None,
        groups: int = 2,
        buffer: int = 0,
        packed: bool = False,
        rotate: bool = False,
        positions: Array | None = None,
        added: Array | None = None,
        sink: Array | None = None,
        outputs: int = 3,
        **more: Any,
    ) -> Case:
        total = past + rows
        q = f32(B, rows, (N + 2 * groups) * H if packed else D)
        k, v = (None if packed else f32(B, rows, groups * H, seed=s) for s in (1, 2))
        held = buffer or past
        caches = [f32(B, groups, held, H, seed=s) if held else None for s in (3, 4)]
        waves = [f32(20, H // 2, seed=s) if rotate else None for s in (5, 6)]
        lengths = i32(*(ends or [total - 1] * B))
        inputs = [q, k, v, *caches, lengths, np.array(total, np.int32), *waves, positions, added, sink]
        if rotate:
            more["do_rotary"] = 1
        return case(
            "GroupQueryAttention",
            name,
            inputs,
            [6, 7, 8],
            outputs,
            num_heads=N,
            kv_num_heads=groups,
            axes=(0, 1) if past else (0,),
            **more,
        )

    yield one("prompt", 5)
    yield one("token", 1, 4)
    yield one("packed", 5, packed=True, rotate=True)
    yield one("rotated", 1, 4, rotate=True)
    yield one("interleaved", 5, rotate=True, rotary_interleaved=1)
    yield one("ragged", 1, 4, ends=[2, 4])
    yield one("window", 5, local_window_size=2)
    yield one("window_token", 1, 6, local_window_size=3)
    yield one("softcap", 5, softcap=2.0)
    yield one("smooth", 5, smooth_softmax=1)
    yield one("sink", 5, sink=f32(N))
    yield one("all_heads", 5, groups=4, scale=0.2)
    yield one("one_group", 5, groups=1)
    yield one("buffer", 1, 4, buffer=10, rotate=True)
    yield one("buffer_prompt", 5, buffer=10)
    yield one("positions", 1, 4, rotate=True, positions=np.array([[3], [4]], np.int64))
    yield one("scores", 5, added=f32(1, N, 5, 5))
    yield one("both_ways", 5, causal=0)
    yield one("no_cache_read", 5, outputs=1)


def quantised_attentions() -> Iterator[Case]:
    def one(
        name: str,
        mask: Array | None = None,
        past: int = 0,
        columns: bool = False,
        zero: int = 128,
        outputs: int = 1,
        **more: Any,
    ) -> Case:
        scales = positive(3 * D, low=0.002, high=0.004) if columns else scale(0.003)
        zeros = np.zeros(3 * D if columns else (), np.int8)
        inputs = [
            u8(B, S, 12), i8(12, 3 * D), f32(3 * D), scale(0.02), scales, mask, byte(zero), zeros,
            f32(2, B, N, past, H) if past else None,
        ]  # fmt: skip
        fixed = [1, 2, 3, 4, 6, 7]
        return case("QAttention", name, inputs, fixed, outputs, num_heads=N, tolerance=1e-4, **more)

    yield one("plain")
    yield one("columns", columns=True)
    yield one("causal", unidirectional=1)
    yield one("ends", i32(3, 5), zero=100)
    yield one("keys", bits(B, S))
    yield one("past", past=3, outputs=2, unidirectional=1)


# ---- between attention and recurrence ----


def linear_attentions() -> Iterator[Case]:
    def one(
        name: str, rule: str, q: int = 2, kv: int = 2, time: int = 5, past: bool = False, each: bool = False
    ) -> Case:
        sizes = 4, 6
        decay = -positive(2, time, kv * (sizes[0] if each else 1)) if "gated" in rule else None
        beta = positive(2, time, kv, low=0.1, high=0.9) if "delta" in rule else None
        inputs = [
            f32(2, time, q * sizes[0]), f32(2, time, kv * sizes[0], seed=1) * 0.5,
            f32(2, time, kv * sizes[1], seed=2), f32(2, kv, *sizes) if past else None, decay, beta,
        ]  # fmt: skip
        more = {"q_num_heads": q, "kv_num_heads": kv, "update_rule": rule, "axes": (0, 1)}
        return case("LinearAttention", name, inputs, outputs=2, **more)

    for rule in ("linear", "gated", "delta", "gated_delta"):
        yield one(rule, rule, past=True)
    yield one("start", "gated_delta")
    yield one("shared", "gated_delta", q=4, past=True)
    yield one("per_row", "gated", each=True, past=True)
    yield one("one_token", "gated_delta", time=1, past=True)
    op, a = "LinearAttentionGate", f32(2, 5, 4)
    yield case(op, "plain", [a, f32(4), -positive(4)])
    yield case(op, "rate", [a, f32(4), -positive(4), f32(2, 5, 4, seed=1)], outputs=2)
    yield case(op, "fixed", [a, f32(4), -positive(4), f32(2, 5, 4, seed=1)], [1, 2], 2)
    yield case(op, "one", [f32(1, 1, 1), f32(1), -positive(1)])
    yield case(op, "far", [a * 40, f32(4), -positive(4)])
    op, x, w = "CausalConvWithState", f32(2, 6, 9), f32(6, 1, 4)
    yield case(op, "plain", [x, w], [1], 2)
    yield case(op, "past", [x, w, f32(6), f32(2, 6, 3)], [1, 2], 2)
    yield case(op, "silu", [x, w, f32(6), f32(2, 6, 3)], outputs=2, activation="silu", axes=(0, 2))
    yield case(op, "dilated", [x, w, None, f32(2, 6, 6)], [1], 2, dilation=2)
    yield case(op, "last", [f32(2, 9, 6), w, f32(6), f32(2, 3, 6)], [1, 2], 2, channels_last=1)
    yield case(op, "token", [f32(2, 6, 1), w, f32(6), f32(2, 6, 3)], [1, 2], 2, activation="swish")


def gates() -> Iterator[Case]:
    x, gate = f32(2, 3, 8), f32(2, 3, 8, seed=1)
    op = "GatedRMSNorm"
    yield case(op, "plain", [x, f32(8), gate])
    yield case(op, "heads", [x, f32(4), gate], [1])
    yield case(op, "sigmoid", [x, f32(8), gate], activation="sigmoid")
    yield case(op, "swish", [x, f32(2), gate], activation="swish", epsilon=0.1)
    yield case(op, "flat", [f32(5, 8), f32(8), f32(5, 8, seed=1)])
    op, grouped = "BranchwiseRMSNorm", f32(2, 3, 4, 8)
    yield case(op, "plain", [grouped], axes=(0, 1))
    yield case(op, "shared", [grouped, f32(8)], axes=(0, 1))
    yield case(op, "own", [grouped, f32(4, 8)], axes=(0, 1))
    yield case(op, "flat", [f32(2, 3, 32), f32(32)], num_branches=4, axes=(0, 1))
    yield case(op, "epsilon", [f32(2, 3, 32), f32(8)], num_branches=4, epsilon=0.1, axes=(0, 1))
    for k, shape in enumerate(((3, 4), (2, 3, 4), (7,))):
        yield case("ScaledSiLU", f"{k}", [f32(*shape)], alpha=1.7)
    yield case("ScaledSiLU", "input", [f32(3, 4), scale(0.6)], alpha=9.0)
    yield case("ScaledSiLU", "plain", [f32(3, 4)])
    for k, shape in enumerate(((3, 4), (2, 3, 4), (1, 4), (2, 2, 3, 4), (5, 1))):
        inputs = [f32(*shape), f32(*shape, seed=1), f32(*shape[:-1], 1, seed=2)]
        yield case("GatedAdd", f"{k}", inputs)
    positions = numbers(0, 20, 3, B, S, dtype=np.int64)
    waves, fixed = [f32(20, H // 2), f32(20, H // 2, seed=1)], [2, 3]
    op, flat, by_head = "MRotaryEmbedding", f32(B, S, D), f32(B, N, S, H)
    more = {"mrope_section": [4, 2, 2], "num_heads": N, "axes": (0, 1)}
    yield case(op, "plain", [flat, positions, *waves], fixed, **more)
    yield case(op, "thirds", [flat, positions, *waves], fixed, mrope_layout=1, **more)
    yield case(op, "by_head", [by_head, positions, *waves], fixed, **more)
    yield case(op, "interleaved", [flat, positions, *waves], fixed, interleaved=1, **more)
    yield case(op, "one_section", [flat, positions, *waves], fixed, **{**more, "mrope_section": [8, 0, 0]})


# ---- bytes ----


def pairs_of_bytes() -> Iterator[Case]:
    for op in ("QLinearAdd", "QLinearMul"):
        every = [np.repeat(np.arange(256), 256), np.tile(np.arange(256), 256)]
        for name, kind, zeros in (
            ("every_byte", np.uint8, (10, 128, 33)),
            ("every_signed", np.int8, (10, 0, -7)),
            ("no_zeros", np.int8, (0, 0, 0)),
        ):
            a, b = (x.astype(np.uint8).view(kind) for x in every)
            z = [np.array(v, kind) for v in zeros]
            inputs = [a, scale(0.033), z[0], b, scale(0.071), z[1], scale(0.052), z[2]]
            yield case(op, name, inputs, [1, 2, 4, 5, 6, 7])
        more = [scale(0.04), byte(3), u8(4, seed=1), scale(0.2), byte(6), scale(0.1), byte(9)]
        yield case(op, "broadcast", [u8(3, 1), *more])
        yield case(op, "scalar", [u8(3, 5), scale(0.04), byte(3), byte(77), *more[3:]], [3])
        yield case(op, "columns", [u8(3, 4), *more], [1, 2, 4, 5, 6, 7])


def maps_of_bytes() -> Iterator[Case]:
    every, all_signed = u8(256), np.arange(-128, 128).astype(np.int8)
    for op, more in (("QLinearSigmoid", {}), ("QLinearLeakyRelu", {"alpha": 0.3})):
        parameters = [scale(0.05), byte(120), scale(0.03), byte(7)]
        yield case(op, "plain", [every, *parameters], [1, 2, 3, 4], **more)
        yield case(op, "signed", [all_signed, scale(0.05), signed(3), scale(0.03), signed(-9)], **more)
        yield case(op, "no_first_zero", [every, scale(0.02), None, scale(0.03), byte(0)], **more)
        yield case(op, "defaults", [u8(2, 3, 4), *parameters])
        yield case(op, "coarse", [all_signed, scale(0.9), signed(0), scale(0.5), signed(0)], **more)


def joined_bytes() -> Iterator[Case]:
    a, b = u8(3, 40), u8(2, 40, seed=1)
    first, second = [a, scale(0.05), byte(3)], [b, scale(0.02), byte(9)]
    op = "QLinearConcat"
    yield case(op, "plain", [scale(0.04), byte(44), *first, *second], [0, 1], axis=0, symbolic=False)
    yield case(op, "one", [scale(0.04), byte(44), *first], [0, 1], axis=-1, symbolic=False)
    same = [a, scale(0.04), byte(44)]
    yield case(op, "same", [scale(0.04), byte(44), *same, *same], [0, 1], axis=1, symbolic=False)
    signs = [i8(2, 5), scale(0.1), signed(-3), i8(2, 4), scale(0.2), signed(5)]
    yield case(op, "signed", [scale(0.15), signed(1), *signs], [0, 1], axis=1, symbolic=False)
    yield case(op, "three", [scale(0.03), byte(0), *first, *second, *first], axis=0, symbolic=False)
    op, test = "QLinearWhere", numbers(0, 2, 300, dtype=np.bool_)
    x, y, z = (
        [u8(300), scale(0.05), byte(3)],
        [u8(300, seed=1), scale(0.02), byte(9)],
        [scale(0.04), byte(44)],
    )
    yield case(op, "plain", [test, *x, *y, *z])
    yield case(op, "fixed", [test, *x, *y, *z], [2, 3, 5, 6, 7, 8])
    yield case(op, "broadcast", [numbers(0, 2, 3, 1, dtype=np.bool_), u8(4), *x[1:], u8(3, 4), *y[1:], *z])
    yield case(op, "same", [test, *x, u8(300, seed=1), *x[1:], *x[1:]])
    s = [scale(0.05), signed(-3)]
    yield case(op, "signed", [test, i8(300), *s, i8(300, seed=1), *s, scale(0.1), signed(9)])


def softmaxes_of_bytes() -> Iterator[Case]:
    op, share = "QLinearSoftmax", [scale(1 / 256), byte(0)]
    yield case(op, "plain", [u8(30, 40), scale(0.05), byte(3), *share], axis=-1, opset=13)
    yield case(op, "flattened", [u8(30, 4, 5), scale(0.05), byte(3), *share], axis=1, opset=12)
    yield case(op, "inner", [u8(6, 40, 3), scale(0.1), byte(3), *share], axis=1, opset=13)
    yield case(op, "signed", [i8(30, 40), scale(0.1), signed(3), scale(1 / 256), signed(-128)], opset=13)
    yield case(op, "no_zero", [u8(30, 40), scale(0.02), None, *share], opset=13)
    yield case(op, "moved", [u8(8, 40), scale(0.02), byte(0), scale(1 / 128), byte(5)], opset=13)


def windows_of_bytes() -> Iterator[Case]:
    more = [scale(0.05), byte(3), scale(0.02), byte(7)]
    op = "QLinearAveragePool"
    for last in (0, 1):
        kind = {"channels_last": last}
        name = "last" if last else "first"
        x = u8(2, 9, 8, 3)
        yield case(op, name, [x, *more], kernel_shape=[3, 2], strides=[2, 1], **kind)
        padded = {"kernel_shape": [3, 2], "pads": [1, 1, 0, 0], "strides": [2, 2], **kind}
        yield case(op, f"{name}_padded", [x, *more], **padded)
        yield case(op, f"{name}_counted", [x, *more], count_include_pad=1, ceil_mode=1, **padded)
        s = [scale(0.05), signed(3), scale(0.02), signed(7)]
        yield case(op, f"{name}_signed", [i8(2, 9, 8, 3), *s], kernel_shape=[2, 2], **kind)
        op_all = "QLinearGlobalAveragePool"
        yield case(op_all, name, [x, *more], **kind)
        yield case(op_all, f"{name}_signed", [i8(2, 9, 8, 33), *s], [1, 2, 3, 4], **kind)
        yield case(op_all, f"{name}_3d", [u8(1, 4, 5, 6, 3), *more], **kind)
        x = u8(2, 9, 8, 4) if last else u8(2, 4, 9, 8)
        # Seven bits where channels come last: that kernel of ONNX Runtime saturates pairs of products on CPUs
        # without VNNI, whatever it is told (see exact_products.py).
        w = [i8(6, 4, 3, 3) // 2, positive(6), np.zeros(6, np.int8), scale(3.0), byte(7)]
        bias, fixed = numbers(-1000, 1000, 6), range(1, 9)
        yield case("QLinearConv", name, [x, *more[:2], *w, bias], fixed, pads=[1, 1, 1, 1], **kind)
        yield case("QLinearConv", f"{name}_strided", [x, *more[:2], *w], fixed, strides=[2, 2], **kind)
        deep = [i8(4, 1, 3, 3), positive(4), np.zeros(4, np.int8), scale(1.0), byte(100)]
        yield case("QLinearConv", f"{name}_depthwise", [x, *more[:2], *deep], fixed, group=4, **kind)
    op, x = "NhwcMaxPool", u8(2, 9, 8, 3)
    yield case(op, "plain", [x], kernel_shape=[3, 3])
    yield case(op, "padded", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 0])
    yield case(op, "ceil", [x], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    yield case(op, "signed", [i8(2, 9, 8, 3)], kernel_shape=[2, 3], dilations=[2, 1])
    yield case(op, "same", [x], kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
    yield case(op, "1d", [u8(2, 9, 3)], kernel_shape=[3])


def products_of_bytes() -> Iterator[Case]:
    op = "MatMulIntegerToFloat"
    columns, zeros = positive(6), numbers(-5, 5, 6, dtype=np.int8)
    a, b = u8(3, 8), i8(8, 6)
    yield case(op, "plain", [a, u8(8, 6), scale(0.05), scale(0.1)])
    yield case(op, "signed", [i8(3, 8), b, scale(0.05), scale(0.1), signed(4)])
    yield case(op, "columns", [u8(3, 5, 8), b, scale(0.05), columns, byte(3), zeros, f32(6)])
    yield case(op, "fixed", [a, b, scale(0.05), columns, byte(3), zeros, f32(6)], range(1, 7))
    yield case(op, "bias", [a, b, scale(0.05), scale(0.1), None, None, f32(6)])
    op = "DynamicQuantizeMatMul"
    yield case(op, "plain", [f32(3, 8), u8(8, 6), scale(0.1)])
    yield case(op, "columns", [f32(3, 5, 8), b, columns, zeros, f32(6)], [1, 2, 3, 4])
    yield case(op, "zero", [f32(3, 8), u8(8, 6), scale(0.1), byte(120)], [1, 2, 3])
    yield case(op, "bias", [f32(3, 8), b, scale(0.1), None, f32(6)])
    yield case(op, "constant_rows", [np.zeros((3, 8), np.float32), b, scale(0.1)])
    op, fixed = "QGemm", range(1, 9)
    c = numbers(-1000, 1000, 6)
    left, right = [a, scale(0.05), byte(3)], [b, columns, np.zeros(6, np.int8)]
    yield case(op, "plain", [*left, *right, c, scale(2.0), byte(9)], fixed)
    yield case(op, "float", [*left, *right, c], fixed, alpha=0.5)
    turned = [u8(8, 3), scale(0.05), byte(3), u8(6, 8), scale(0.1), byte(7)]
    yield case(op, "turned", [*turned, c.reshape(1, 6), scale(2.0), byte(9)], fixed, transA=1, transB=1)
    yield case(op, "no_bias", [*left, *right, None, scale(2.0), byte(9)], fixed)
    yield case(op, "moving", [*left, *right, c, scale(2.0), byte(9)])
    op = "MatMulInteger16"
    for k, (m, depth, n) in enumerate(((3, 4, 5), (1, 8, 1), (2, 3, 2), (6, 7, 8), (4, 1, 4))):
        x, y = (numbers(-99, 99, *s, dtype=np.int16) for s in ((m, depth), (depth, n)))
        yield case(op, f"{k}", [x, y])


def conversions() -> Iterator[Case]:
    x = f32(3, 4) * 3
    q, d = "QuantizeLinear", "DequantizeLinear"
    yield case(q, "plain", [x, scale(0.1), byte(3)])
    yield case(q, "signed", [x, scale(0.1), signed(-3)])
    yield case(q, "columns", [x, positive(4), u8(4)], [1, 2], axis=1)
    yield case(q, "rows", [x, positive(3), u8(3)], axis=0)
    yield case(q, "wide", [x, scale(0.001), np.array(100, np.uint16)])
    yield case(d, "plain", [u8(3, 4), scale(0.1), byte(3)])
    yield case(d, "no_zero", [i8(3, 4), scale(0.1)])
    yield case(d, "columns", [u8(3, 4), positive(4), u8(4)], axis=1)
    yield case(d, "rows", [i8(3, 4), positive(3), i8(3)], [1, 2], axis=0)
    yield case(d, "wide", [numbers(-999, 999, 3, 4), scale(0.1)])


# ---- weights of few bits ----


def few_bits() -> Iterator[Case]:
    def one(
        name: str,
        k: int = 40,
        n: int = 6,
        width: int = 4,
        block: int = 16,
        zeros: str = "",
        bias: bool = False,
        lead: tuple[int, ...] = (3,),
        order: bool = False,
        flat: bool = False,
        **more: Any,
    ) -> Case:
        blocks = -(-k // block)
        given = {
            "": None,
            "packed": u8(n, -(-blocks * width // 8), seed=1),
            "float": positive(n, blocks, low=3, high=9),
        }[zeros]
        scales = positive(n, blocks)
        if flat:
            scales, given = scales.ravel(), None if given is None else given.ravel()
        mixed = (np.arange(k) * 7 % blocks).astype(np.int32) if order else None
        inputs = [f32(*lead, k), u8(n, blocks, block * width // 8), scales, given, mixed]
        inputs.append(f32(n) if bias else None)
        attributes = {"K": k, "N": n, "bits": width, "block_size": block, **more}
        return case("MatMulNBits", name, inputs, range(1, 6), **attributes)

    yield one("plain")
    yield one("packed_zeros", zeros="packed", bias=True, lead=(2, 3))
    yield one("float_zeros", zeros="float")
    yield one("bytes", width=8)
    yield one("bytes_zeros", width=8, zeros="packed")
    yield one("two_bits", width=2, block=32)
    yield one("two_bits_zeros", width=2, zeros="packed")
    yield one("flat", zeros="packed", flat=True)
    yield one("mixed_blocks", order=True)
    yield one("large", k=300, n=33, block=128)
    yield one("level_1", accuracy_level=1, k=64)
    yield one("level_4", accuracy_level=4, k=64, n=32, tolerance=2e-2)
    for kind in (0, 1):
        for k, n, block, lead in ((64, 8, 16, (3,)), (32, 5, 32, (2, 2)), (128, 3, 64, (1,))):
            inputs = [f32(*lead, k), u8(k * n // 2), positive(k * n // block)]
            attributes = {"K": k, "N": n, "block_size": block, "quant_type": kind}
            yield case("MatMulBnb4", f"{kind}_{k}", inputs, [1, 2], **attributes)
    op, rows = "GatherBlockQuantized", np.array([[0, 3], [-1, 2]], np.int64)
    more = {"fixed": [0, 2, 3], "block_size": 16}
    yield case(op, "bytes_of_two", [u8(5, 16), rows, positive(5, 2)], bits=4, **more)
    yield case(op, "with_zeros", [u8(5, 16), rows, positive(5, 2), u8(5, 1)], bits=4, **more)
    yield case(op, "bytes", [u8(5, 32), rows.astype(np.int32), positive(5, 2)], bits=8, **more)
    yield case(op, "two_bits", [u8(5, 16), rows, positive(5, 4), u8(5, 1)], bits=2, **more)
    four = numbers(-8, 8, 5, 32).astype(ml_dtypes.int4)
    yield case(op, "int4", [four, rows, positive(5, 2)], **more)
    table, zeros = (numbers(0, 16, *s).astype(ml_dtypes.uint4) for s in ((32, 5), (2, 5)))
    axes = {"gather_axis": 1, "quantize_axis": 0}
    yield case(op, "other_axes", [table, rows, positive(2, 5), zeros], **axes, **more)


def recurrences() -> Iterator[Case]:
    def one(
        name: str,
        time: int = 5,
        batch: int = 1,
        width: int = 6,
        hidden: int = 7,
        ways: int = 1,
        kind: Any = np.int8,
        columns: bool = False,
        bias: bool = True,
        lengths: Array | None = None,
        states: bool = False,
        peepholes: bool = False,
        **more: Any,
    ) -> Case:
        weights = [u8(ways, rows, 4 * hidden, seed=s).view(kind) for s, rows in enumerate((width, hidden))]
        shape = (ways, 4 * hidden) if columns else (ways,)
        parameters = []
        for s in range(2):
            zero = np.full(shape, 0 if kind == np.int8 else 128, kind)
            parameters += [positive(*shape, low=0.002, high=0.006, seed=s), zero]
        inputs = [
            f32(time, batch, width), *weights, f32(ways, 8 * hidden) if bias else None, lengths,
            *(f32(ways, batch, hidden, seed=s) if states else None for s in range(2)),
            f32(ways, 3 * hidden) if peepholes else None, *parameters,
        ]  # fmt: skip
        fixed = [1, 2, 8, 9, 10, 11]
        return case("DynamicQuantizeLSTM", name, inputs, fixed, 3, hidden_size=hidden, **more)

    yield one("plain")
    yield one("columns", columns=True)
    yield one("unsigned", kind=np.uint8)
    yield one("both_ways", ways=2, direction="bidirectional")
    yield one("backwards", direction="reverse", states=True, peepholes=True)
    yield one("batch", batch=3)
    yield one("coupled", bias=False, clip=0.5, input_forget=1)
    yield one("lengths", batch=3, lengths=i32(5, 3, 2), tolerance=5e-3)


# ---- plain tensors ----


def tensors() -> Iterator[Case]:
    for k, (m, n, depth, metric) in enumerate(
        ((4, 3, 5, "euclidean"), (4, 3, 5, "sqeuclidean"), (1, 1, 1, "euclidean"), (2, 9, 17, "euclidean"))
    ):
        yield case("CDist", f"{k}", [f32(m, depth), f32(n, depth, seed=1)], metric=metric)
    yield case("CDist", "double", [f32(4, 5).astype(np.float64), f32(3, 5).astype(np.float64)])
    for name, x, more in (
        ("plain", f32(4, 9), {"size": 3}),
        ("step", f32(4, 9), {"size": 3, "step": 2}),
        ("inner", f32(4, 9, 2), {"dim": 1, "size": 4}),
        ("whole", f32(4, 9), {"size": 9}),
        ("integers", numbers(0, 9, 3, 8), {"dim": 0, "size": 2}),
    ):
        yield case("UnfoldTensor", name, [x], **more)
    boxes = np.array([[0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9], [-0.2, 0.3, 0.5, 1.2], [0.9, 0.8, 0.1, 0.2]])
    of = i32(0, 1, 1, 0)
    for mode in ("bilinear", "nearest"):
        for size in ((4, 5), (1, 3), (1, 1)):
            inputs = [f32(2, 3, 7, 6), boxes.astype(np.float32), of, i32(*size)]
            name = f"{mode}_{size[0]}x{size[1]}"
            yield case("CropAndResize", name, inputs, [3], mode=mode, extrapolation_value=0.5)
    swaps = np.eye(4, dtype=np.float32)[[2, 0, 3, 1]]
    for name, x in (
        ("plain", f32(4, 4)),
        ("one", f32(1, 1)),
        ("stack", f32(2, 3, 5, 5)),
        ("swaps", swaps),
        ("double", f32(6, 6).astype(np.float64)),
    ):
        yield case("Inverse", name, [x], tolerance=1e-4)
    for size in (1, 2, 3, 4, 12):
        words = numbers(0, 4, 3, 12, dtype=np.int64)
        yield case("NGramRepeatBlock", f"{size}", [words, f32(3, 4)], ngram_size=size)
    hashed = numbers(-999, 999, 50)
    yield case("MurmurHash3", "plain", [hashed])
    yield case("MurmurHash3", "signed", [hashed], positive=0)
    yield case("MurmurHash3", "seed", [hashed], seed=42)
    yield case("MurmurHash3", "unsigned", [hashed.view(np.uint32)])
    yield case("MurmurHash3", "matrix", [numbers(-5, 5, 3, 4)], seed=7, positive=0)


def spellings() -> Iterator[Case]:
    def i64(*values: int) -> Array:
        return np.array(values, np.int64)

    for upper in (0, 1):
        for k in (-1, 0, 2):
            yield case("Trilu", f"{upper}_{k}", [f32(3, 4), np.array(k, np.int64)], [1], upper=upper)
    for name, axis in (("first", 0), ("middle", 1), ("last", 2), ("end", -1), ("before", -2)):
        yield case("ExpandDims", name, [f32(2, 3), np.array(axis, np.int32)], [1])
    pads = i64(1, 0, 2, 1)
    yield case("Pad", "plain", [f32(3, 4), pads], [1])
    yield case("Pad", "value", [f32(3, 4), pads.reshape(1, 4), np.array([2.0], np.float32)], [1])
    yield case("Pad", "reflect", [f32(3, 4), pads], [1], mode="reflect")
    yield case("Pad", "edge", [f32(3, 4), pads], [1], mode="edge")
    yield case("Pad", "negative", [f32(3, 4), i64(-1, 0, 0, -1)], [1])
    for name, bounds in (
        ("plain", ([1.0], [4.0])),
        ("step", (1.0, 4.0, 0.5)),
        ("down", (4.0, 1.0, -1.0)),
        ("empty", (4.0, 1.0, 1.0)),
    ):
        yield case("Range", name, [np.array(v, np.float32) for v in bounds], [0, 1, 2], symbolic=False)
    yield case("Range", "integers", [np.array(v, np.int64) for v in (1, 9, 2)], [0, 1, 2], symbolic=False)
    for mode in ("bilinear", "nearest", "bicubic"):
        for padding in ("zeros", "border", "reflection"):
            inputs = [f32(1, 2, 5, 5), f32(1, 4, 4, 2)]
            yield case("GridSample", f"{mode}_{padding}", inputs, mode=mode, padding_mode=padding)
    yield case("GridSample", "aligned", [f32(1, 2, 5, 5), f32(1, 4, 4, 2)], align_corners=1)
    for name, shape, where in (
        ("elements", (3, 4), [[0, 1], [2, 2]]),
        ("rows", (3, 4), [[1], [0]]),
        ("one", (3, 4), [1, 2]),
        ("deep", (3, 4, 2), [[[0, 1]], [[2, 3]]]),
        ("all", (2, 2), [[[0, 0], [0, 1]], [[1, 0], [1, 1]]]),
    ):
        yield case("GatherND", name, [f32(*shape), np.array(where, np.int64)])


TABLES = (
    activations, normalisations, embeddings_of_bytes, products, convolutions, attentions, multi_heads, decoders, rotations,
    grouped_queries, linear_attentions, gates, quantised_attentions, pairs_of_bytes, maps_of_bytes, joined_bytes, softmaxes_of_bytes,
    windows_of_bytes, products_of_bytes, conversions, few_bits, recurrences, tensors, spellings,
)  # fmt: skip
CASES = [c for table in TABLES for c in table()]


def firsts(count: int) -> list[Case]:
    """The first cases of every operator."""
    seen: dict[str, list[Case]] = {}
    for one in CASES:
        seen.setdefault(one.op, []).append(one)
    return [one for cases in seen.values() for one in cases[:count]]


# ---- judging ----

INEXACT = frozenset({"QLinearAdd", "QLinearMul", "QLinearSoftmax", "QLinearSigmoid"})
"""Operators whose result may miss ONNX Runtime's by one step: its kernels add and multiply floats in an order
of their own, with or without fused steps, or go through a table of floats.
"""


def assert_close(case: Case, got: list[Array], wanted: list[Array]) -> None:
    """Types and shapes the same; integers exact, or within a step for the inexact ones."""
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if ours.dtype.kind in "biu":
            away = np.abs(ours.astype(np.int64) - theirs.astype(np.int64))
            assert int(away.max(initial=0)) <= (case.op in INEXACT)
            assert np.count_nonzero(away) <= max(1, away.size // 200)
        else:
            finite = theirs[np.isfinite(theirs)].astype(np.float64)
            largest = max(float(np.abs(finite).max(initial=0.0)), 1e-3)
            limit = case.tolerance * (100 if ours.dtype.itemsize == 2 else 1)
            wide = [a.astype(np.float64) for a in (ours, theirs)]
            np.testing.assert_allclose(wide[0], wide[1], rtol=limit, atol=limit * largest)
