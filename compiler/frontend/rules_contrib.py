"""Rules for ONNX Runtime's own operators that only spell standard ones differently.

What its optimiser joins (a convolution and its activation, a skip and its normalisation) is taken apart
again: fusion is decided here from access maps, and every backend knows the parts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fusile.frontend.rules import EVER, Rule, Site

MICROSOFT = "com.microsoft"
BLOCKED = "com.microsoft.nchwc"
"""The domain of operators on a memory layout of one machine."""


# ---- activations ----


def _activated(site: Site, y: ir.Value, name: str, parameters: list[float | None]) -> ir.Value:
    """y under the activation that a fused node names; its parameters in ONNX Runtime's order."""

    def number(k: int, default: float) -> float:
        found = parameters[k] if k < len(parameters) else None
        return default if found is None else found

    match name:
        case "":
            return y
        case "Relu" | "Sigmoid" | "Tanh" | "Softsign" | "Softplus" | "Gelu" | "HardSwish":
            return site.emit(name, [y])
        case "LeakyRelu":
            return site.emit(name, [y], alpha=number(0, 0.01))
        case "Elu":
            return site.emit(name, [y], alpha=number(0, 1.0))
        case "HardSigmoid":
            return site.emit(name, [y], alpha=number(0, 0.2), beta=number(1, 0.5))
        case "ThresholdedRelu":
            return site.emit(name, [y], alpha=number(0, 1.0))
        case "Clip":
            x = site.required(0)
            bounds = [
                site.like(number(k, (-1) ** (k + 1) * float(np.finfo(np.float32).max)), x, role)
                for k, role in enumerate(("min", "max"))
            ]
            return site.emit(name, [y, *bounds])
    site.unsupported(f"the activation {name!r}", "Save the optimised model with less optimisation")


def fused_conv(site: Site) -> None:
    """FusedConv(x, w, b, z) is activation(Conv(x, w, b) + z)."""
    kept = {"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"}
    node = site.node
    y = site.emit("Conv", [site.required(0), site.required(1), site.input(2)])
    conv = site.emitted[-1]
    for name, attribute in node.attributes.items():
        if name in kept:
            conv.attributes[name] = attribute
    skip = site.input(3)
    if skip is not None:
        y = site.emit("Add", [y, skip])
    given = node.attributes.get("activation_params")
    parameters: list[float | None] = [] if given is None else list(given.as_floats())
    site.replace(_activated(site, y, site.get_string("activation") or "", parameters))


def fused_gemm(site: Site) -> None:
    """FusedGemm is activation(Gemm)."""
    y = site.emit("Gemm", [site.required(0), site.required(1), site.input(2)])
    for name in ("alpha", "beta", "transA", "transB"):
        if name in site.node.attributes:
            site.emitted[-1].attributes[name] = site.node.attributes[name]
    parameters = [site.get_float(f"activation_{name}") for name in ("alpha", "beta", "gamma")]
    site.replace(_activated(site, y, site.get_string("activation") or "", parameters))


def gelu(site: Site) -> None:
    site.replace(site.emit("Gelu", [site.required(0)], approximate="none"))


def bias_gelu(site: Site) -> None:
    total = site.emit("Add", [site.required(0), site.required(1)])
    site.replace(site.emit("Gelu", [total], approximate="none"))


def fast_gelu(site: Site) -> None:
    x, bias = site.required(0), site.input(1)
    total = x if bias is None else site.emit("Add", [x, bias])
    site.replace(site.emit("Gelu", [total], approximate="tanh"))


def quick_gelu(site: Site) -> None:
    alpha = site.get_float("alpha")
    site.replace(site.emit("Swish", [site.required(0)], alpha=1.702 if alpha is None else alpha))


# ---- normalisations ----


def _epsilon(site: Site, default: float) -> float:
    given = site.get_float("epsilon")
    return default if given is None else given


def simplified_layer_norm(site: Site) -> None:
    """SimplifiedLayerNormalization is RMSNormalization, which came to the standard later."""
    if site.used(1):
        site.unsupported("its inverse deviation is read", "Export the model for inference")
    stash = site.get_int("stash_type", 1)
    axis = site.get_int("axis", -1)
    assert stash is not None and axis is not None
    y = site.emit(
        "RMSNormalization",
        [site.required(0), site.required(1)],
        axis=axis,
        epsilon=_epsilon(site, 1e-5),
        stash_type=stash,
    )
    site.replace(y)


def _skipped(site: Site, bias: ir.Value | None) -> ir.Value:
    x = site.emit("Add", [site.required(0), site.required(1)])
    return x if bias is None else site.emit("Add", [x, bias])


def skip_layer_norm(site: Site) -> None:
    """SkipLayerNormalization(x, skip, gamma, beta, bias) normalises x + skip + bias, and puts out the sum."""
    total = _skipped(site, site.input(4))
    inputs = [total, site.required(2), site.input(3)]
    count = 3 if site.used(1) or site.used(2) else 1
    results = site.emit_many("LayerNormalization", inputs, count, axis=-1, epsilon=_epsilon(site, 1e-12))
    site.replace(*results, *[None] * (3 - count), total)


def skip_simplified_layer_norm(site: Site) -> None:
    if site.used(1) or site.used(2):
        site.unsupported("its statistics are read", "Export the model for inference")
    total = _skipped(site, site.input(3))
    y = site.emit("RMSNormalization", [total, site.required(2)], axis=-1, epsilon=_epsilon(site, 1e-12))
    site.replace(y, None, None, total)


def embed_layer_norm(site: Site) -> None:
    """EmbedLayerNormalization: the sum of word, position and segment embeddings, normalised."""
    ids, segments, words, positions, kinds = (site.input(k) for k in range(5))
    gamma, beta, mask, position_ids = (site.input(k) for k in range(5, 9))
    total = site.emit("Gather", [words, ids], axis=0)
    if position_ids is not None:
        where = site.emit("Gather", [positions, position_ids], axis=0)
    else:
        length = site.emit("Shape", [ids], start=1, end=2)
        zero, axes = site.ints_constant([0], "zero"), site.ints_constant([0], "axes")
        where = site.emit("Slice", [positions, zero, length, axes])
    total = site.emit("Add", [total, where])
    if kinds is not None:
        total = site.emit("Add", [total, site.emit("Gather", [kinds, segments], axis=0)])
    y = site.emit("LayerNormalization", [total, gamma, beta], axis=-1, epsilon=_epsilon(site, 1e-12))
    ones = mask if mask is not None else site.emit("Mul", [ids, site.constant(np.int32(0), "none")])
    if mask is not None:
        ones = site.emit("Cast", [site.emit("Equal", [mask, site.constant(np.int32(1), "one")])], to=6)
    count = site.emit("ReduceSum", [ones, site.ints_constant([1], "row")], keepdims=0)
    site.replace(y, count, total)


# ---- the same under another name ----


def _renamed(name: str) -> Callable[[Site], None]:
    """A rule for an operator that the standard has taken over as it was."""

    def rule(site: Site) -> None:
        outputs = site.emit_many(name, list(site.node.inputs), len(site.node.outputs))
        site.emitted[-1].attributes.update(site.node.attributes)
        site.replace(*outputs)

    return rule


def grid_sample(site: Site) -> None:
    """GridSample's modes were called after images."""
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(site.get_string("mode") or "bilinear", "nearest")
    y = site.emit(
        "GridSample",
        [site.required(0), site.required(1)],
        mode=mode,
        padding_mode=site.get_string("padding_mode") or "zeros",
        align_corners=site.get_int("align_corners", 0) or 0,
    )
    site.replace(y)


def _flat(site: Site, value: ir.Value, role: str, scalar: bool = False) -> ir.Value:
    """A value of one row as a list, or of one element as a scalar."""
    shape = site.ints_constant([] if scalar else [-1], role)
    return site.emit("Reshape", [value, shape], allowzero=0)


def expand_dims(site: Site) -> None:
    axis = site.emit("Cast", [_flat(site, site.required(1), "list")], to=7)
    site.replace(site.emit("Unsqueeze", [site.required(0), axis]))


def pad(site: Site) -> None:
    value = site.input(2)
    inputs = [
        site.required(0),
        _flat(site, site.required(1), "list"),
        None if value is None else _flat(site, value, "scalar", scalar=True),
    ]
    site.replace(site.emit("Pad", inputs, mode=site.get_string("mode") or "constant"))


def range_(site: Site) -> None:
    start, limit = (_flat(site, site.required(k), f"scalar{k}", scalar=True) for k in range(2))
    step = site.input(2)
    delta = site.like(1, start, "one") if step is None else _flat(site, step, "scalar2", scalar=True)
    site.replace(site.emit("Range", [start, limit, delta]))


def unique(site: Site) -> None:
    """Unique without sorting: the elements, where each of x stands among them, how often each occurs."""
    y, _, inverse, counts = site.emit_many("Unique", [site.required(0)], 4, sorted=0)
    site.replace(y, inverse, counts)


def quantise_axis(name: str) -> Callable[[Site], None]:
    """QuantizeLinear and DequantizeLinear with an axis that matters for lists of scales alone."""

    def rule(site: Site) -> None:
        axis = site.get_int("axis", 1)
        assert axis is not None
        site.replace(site.emit(name, list(site.node.inputs), axis=axis))

    return rule


def nhwc_max_pool(site: Site) -> None:
    """NhwcMaxPool is MaxPool over tensors with channels last."""
    kernel = site.get_ints("kernel_shape") or ()
    rank = len(kernel) + 2
    first = site.emit("Transpose", [site.required(0)], perm=(0, rank - 1, *range(1, rank - 1)))
    y = site.emit("MaxPool", [first])
    site.emitted[-1].attributes.update(site.node.attributes)
    site.replace(site.emit("Transpose", [y], perm=(0, *range(2, rank), 1)))


def refuse_blocked(site: Site) -> None:
    """Operators on blocked layouts, which a file optimised for one machine holds."""
    site.unsupported(
        "its tensors lie in blocks of channels, as the machine wanted them where the file was saved",
        "Save the optimised model at GraphOptimizationLevel.ORT_ENABLE_EXTENDED, or give fusile the original",
    )


def _rule(name: str, apply: Callable[[Site], None], domain: str = MICROSOFT) -> Rule:
    return Rule(name, EVER, apply, domain)


RULES: tuple[Rule, ...] = (
    _rule("FusedConv", fused_conv),
    _rule("FusedGemm", fused_gemm),
    _rule("Gelu", gelu),
    _rule("BiasGelu", bias_gelu),
    _rule("FastGelu", fast_gelu),
    _rule("QuickGelu", quick_gelu),
    _rule("SimplifiedLayerNormalization", simplified_layer_norm, ""),
    _rule("SimplifiedLayerNormalization", simplified_layer_norm),
    _rule("LayerNormalization", _renamed("LayerNormalization")),
    _rule("SkipLayerNormalization", skip_layer_norm),
    _rule("SkipSimplifiedLayerNormalization", skip_simplified_layer_norm),
    _rule("EmbedLayerNormalization", embed_layer_norm),
    *(_rule(name, _renamed(name)) for name in ("Trilu", "GatherND")),
    *(_rule(name, quantise_axis(name)) for name in ("QuantizeLinear", "DequantizeLinear")),
    _rule("GridSample", grid_sample),
    _rule("ExpandDims", expand_dims),
    _rule("Pad", pad),
    _rule("Range", range_),
    _rule("Unique", unique),
    _rule("NhwcMaxPool", nhwc_max_pool),
    *(
        _rule(name, refuse_blocked, BLOCKED)
        for name in (
            "AveragePool",
            "Conv",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "MaxPool",
            "ReorderInput",
            "ReorderOutput",
            "Upsample",
        )
    ),
)
