"""PyTorch layers: rows of operators that carry weights, and of pooling and resizing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from fusile.backends.framework import torch_moves
from fusile.backends.framework.code import Code, Name, Plain, Var, call, code, short_float
from fusile.backends.framework.common import Layer, Place, Printer, Row
from fusile.backends.framework.site import Site
from fusile.backends.framework.torch_moves import permute, run_list
from fusile.backends.framework.torch_rows import dtype
from fusile.backends.framework.windows import (
    ResizePlan,
    Window,
    axis_options,
    normalised,
    resize_plan,
    resize_settings,
    window,
)
from fusile.backends.framework.words import plain, without_defaults
from fusile.graph.tensors import Weight


def typed(kind: ir.DataType) -> dict[str, Plain]:
    """`dtype=` for layers that are not of float32."""
    return {} if kind is ir.DataType.FLOAT else {"dtype": dtype(kind)}


def parameter(
    printer: Printer, attribute: str, weight: Weight, shape: tuple[int, ...], kind: ir.DataType
) -> Layer:
    """A tensor of the module outside layers: a parameter, a buffer, or a constant beside them."""
    zeros = call("torch.zeros", *(shape or ((),)), **typed(kind))
    if weight.role == "param":
        return Layer(attribute, call("nn.Parameter", zeros))
    extra: dict[str, Plain] = {} if weight.role == "buffer" else {"persistent": False}
    return Layer(attribute, call("self.register_buffer", attribute, zeros, **extra), assign=False)


# ---- convolution -------------------------------------------------------------------------------------


def padded(n: Site, x: Code, w: Window, fill: float = 0.0) -> tuple[Code, list[int]]:
    """x, padded by itself where symmetric padding does not do, and the padding left to the layer."""
    if w.same:
        extra: list[Plain] = [] if not fill else [fill]
        helper = n.helper("pad_same")
        return helper(x, w.kernel, w.strides, w.dilations, w.same == "SAME_LOWER", *extra), [0] * w.dims
    if w.before == w.after:
        return x, w.before
    pads: list[Plain] = []
    for low, high in zip(reversed(w.before), reversed(w.after), strict=True):
        pads += [low, high]
    value: dict[str, Plain] = {"value": fill} if fill else {}
    return call("F.pad", x, tuple(pads), **value), [0] * w.dims


def conv(n: Site) -> Code:
    w = window(n)
    x, padding = padded(n, n.tensor(), w)
    settings = without_defaults(
        {
            "stride": plain(w.strides),
            "padding": plain(padding),
            "dilation": plain(w.dilations),
            "groups": n.integer("group", 1),
        },
        {"stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    )
    if w.dims > 3:
        n.refuse(f"a convolution over {w.dims} axes")
    layer = None
    if n.roles(1) == ["param"]:
        out, inner = n.fixed(1, 0), n.fixed(1, 1) * n.integer("group", 1)
        rest = settings | _no_bias(n) | typed(n.dtype(1))
        made = call(f"nn.Conv{w.dims}d", inner, out, plain(w.kernel), **rest)
        layer = n.layer(n.stem(), made, _weight_bias(n))
    return layer(x) if layer else call(f"F.conv{w.dims}d", x, n.tensor(1), *_bias(n), **settings)


def _weight_bias(n: Site, axes: tuple[int, ...] = ()) -> dict[str, Place]:
    places = {"weight": Place(n.value(1), axes=axes)}
    if n.has(2):
        places["bias"] = Place(n.value(2), shape=_flat(n, 2))
    return places


def _flat(n: Site, index: int) -> tuple[int, ...]:
    """The shape of a weight with all its elements along one axis, where it is another."""
    return () if n.rank(index) == 1 else (math.prod(n.fixed(index, axis) for axis in range(n.rank(index))),)


def _bias(n: Site) -> list[Code]:
    return [n.tensor(2)] if n.has(2) else []


def _no_bias(n: Site) -> dict[str, Plain]:
    return {} if n.has(2) else {"bias": False}


def conv_transpose(n: Site) -> Code:
    w = window(n)
    extra = n.integers("output_padding", [0] * w.dims)
    if w.dims > 3:
        n.refuse(f"a convolution over {w.dims} axes")
    reach = [(k - 1) * d + 1 for k, d in zip(w.kernel, w.dilations, strict=True)]
    before, after = w.before, w.after
    if w.same or n.node.attributes.get("output_shape") is not None:
        before, after = _transposed_pads(n, w, extra, reach)
    symmetric = before == after and min(before) >= 0
    fits = all(e < max(s, d) for e, s, d in zip(extra, w.strides, w.dilations, strict=True))
    settings = without_defaults(
        {
            "stride": plain(w.strides),
            "padding": plain(before) if symmetric else 0,
            "output_padding": plain(extra) if fits else 0,
            "groups": n.integer("group", 1),
            "dilation": plain(w.dilations),
        },
        {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1},
    )
    if not fits:
        n.refuse(f"an output padding of {extra} beside strides of {w.strides}")
    x, layer = n.tensor(), None
    if n.roles(1) == ["param"]:
        out, inner = n.fixed(1, 1) * n.integer("group", 1), n.fixed(1, 0)
        rest = settings | _no_bias(n) | typed(n.dtype(1))
        made = call(f"nn.ConvTranspose{w.dims}d", inner, out, plain(w.kernel), **rest)
        layer = n.layer(n.stem(), made, _weight_bias(n))
    y = layer(x) if layer else call(f"F.conv_transpose{w.dims}d", x, n.tensor(1), *_bias(n), **settings)
    if symmetric:
        return y
    crop: list[Plain] = []
    for low, high in zip(reversed(before), reversed(after), strict=True):
        crop += [-low, -high]
    return call("F.pad", y, tuple(crop))


def _transposed_pads(n: Site, w: Window, extra: list[int], reach: list[int]) -> tuple[list[int], list[int]]:
    """Pads from the wanted output sizes: total = stride * (in - 1) + extra + reach - out."""
    wanted = n.integers("output_shape")
    if wanted:
        sizes = [n.fixed(0, axis + 2) for axis in range(w.dims)]
        total = [
            s * (i - 1) + e + r - o
            for s, i, e, r, o in zip(w.strides, sizes, extra, reach, wanted[-w.dims :], strict=True)
        ]
    else:
        total = [e + r - s for s, e, r in zip(w.strides, extra, reach, strict=True)]
    upper = n.string("auto_pad") == "SAME_UPPER"
    small = [t // 2 for t in total]
    large = [t - t // 2 for t in total]
    return (small, large) if upper else (large, small)


# ---- linear, embedding -------------------------------------------------------------------------------


def linear(n: Site) -> Code:
    transposed = bool(n.integer("transposed"))
    outer, inner = (n.fixed(1, 0), n.fixed(1, 1)) if transposed else (n.fixed(1, 1), n.fixed(1, 0))
    made = call("nn.Linear", inner, outer, **_no_bias(n), **typed(n.dtype(1)))
    layer = n.layer(n.stem(), made, _weight_bias(n, () if transposed else (1, 0)))
    if layer:
        return layer(n.tensor())
    turned = n.tensor(1) if transposed else permute(n.tensor(1), (1, 0))
    return call("F.linear", n.tensor(), turned, *_bias(n))


def gather(n: Site) -> Code:
    """An embedding where a trained matrix is looked up by computed indices, else indexing."""
    if n.roles(0) != ["param"] or n.rank(0) != 2 or n.axis(0) != 0 or n.host(1) is not None:
        return torch_moves.gather(n)
    made = call("nn.Embedding", n.fixed(0, 0), n.fixed(0, 1), **typed(n.dtype(0)))
    layer = n.layer(n.stem(0), made, {"weight": Place(n.value(0))})
    return layer(n.tensor(1)) if layer else call("F.embedding", n.tensor(1), n.tensor(0))


# ---- normalisation -----------------------------------------------------------------------------------


def batch_norm(n: Site) -> Code | Sequence[Code | None]:
    channels, rank = n.fixed(1, 0), n.rank()
    epsilon, momentum = n.real("epsilon", 1e-5), round(1.0 - n.real("momentum", 0.9), 7)
    if n.integer("training_mode"):
        return _batch_norm_training(n, epsilon, n.real("momentum", 0.9))
    layer = None
    if 2 <= rank <= 5:
        settings = without_defaults({"eps": epsilon, "momentum": momentum}, {"eps": 1e-5, "momentum": 0.1})
        made = call(f"nn.BatchNorm{max(1, rank - 2)}d", channels, **settings, **typed(n.dtype(1)))
        names = ("weight", "bias", "running_mean", "running_var")
        places = {word: Place(n.value(i + 1)) for i, word in enumerate(names)}
        layer = n.layer(n.stem(), made, places, buffers=names[2:])
    if layer:
        return layer(n.tensor())
    return call("F.batch_norm", n.tensor(), *(n.tensor(i) for i in (3, 4, 1, 2)), eps=epsilon)


def _batch_norm_training(n: Site, epsilon: float, momentum: float) -> Sequence[Code | None]:
    """Normalise by the batch and answer the running statistics after it."""
    x, axes = n.tensor(), tuple(axis for axis in range(n.rank()) if axis != 1)
    y = call("F.batch_norm", x, None, None, n.tensor(1), n.tensor(2), training=True, eps=epsilon)
    mean = n.tensor(3) * momentum + x.method("mean", axes) * short_float(1 - momentum)
    spread = x.method("var", axes, correction=0)
    return [y, mean, n.tensor(4) * momentum + spread * short_float(1 - momentum)]


def layer_norm(n: Site) -> Code | Sequence[Code | None]:
    sizes, epsilon = normalised(n), n.real("epsilon", 1e-5)
    shape: Plain = sizes[0] if len(sizes) == 1 else tuple(sizes)
    fits = n.shape(1) == sizes and (not n.has(2) or n.shape(2) == sizes)
    if n.used(1) or n.used(2):
        return _layer_norm_parts(n, len(sizes), epsilon)
    if fits:
        settings = without_defaults({"eps": epsilon}, {"eps": 1e-5})
        made = call("nn.LayerNorm", shape, **settings, **_no_bias(n), **typed(n.dtype(1)))
        places = {"weight": Place(n.value(1)), **({"bias": Place(n.value(2))} if n.has(2) else {})}
        layer = n.layer(n.stem(), made, places)
        if layer:
            return layer(n.tensor())
        return call("F.layer_norm", n.tensor(), tuple(sizes), n.tensor(1), *_bias(n), eps=epsilon)
    out = call("F.layer_norm", n.tensor(), tuple(sizes), eps=epsilon) * n.tensor(1)
    return out + n.tensor(2) if n.has(2) else out


def _layer_norm_parts(n: Site, count: int, epsilon: float) -> Sequence[Code | None]:
    """The mean and the inverse deviation are outputs too."""
    x, axes = n.tensor(), tuple(range(n.rank() - count, n.rank()))
    mean = n.let(x.method("mean", axes, keepdim=True), "mean")
    centred = n.let(x - mean, "centred")
    inverse = n.let(
        (centred.method("square").method("mean", axes, keepdim=True) + epsilon).method("rsqrt"), "inverse"
    )
    out = centred * inverse * n.tensor(1)
    return [out + n.tensor(2) if n.has(2) else out, mean, inverse]


def rms_norm(n: Site) -> Code:
    sizes, epsilon = normalised(n), n.real("epsilon", 1e-5)
    shape: Plain = sizes[0] if len(sizes) == 1 else tuple(sizes)
    made = call("nn.RMSNorm", shape, eps=epsilon, **typed(n.dtype(1)))
    layer = n.layer(n.stem(), made, {"weight": Place(n.value(1))}) if n.shape(1) == sizes else None
    if layer:
        return layer(n.tensor())
    return call("F.rms_norm", n.tensor(), tuple(sizes), eps=epsilon) * n.tensor(1)


def group_norm(n: Site) -> Code:
    groups, epsilon = n.integer("num_groups", 1), n.real("epsilon", 1e-5)
    channels = math.prod(n.fixed(1, axis) for axis in range(n.rank(1)))
    settings = without_defaults({"eps": epsilon}, {"eps": 1e-5})
    made = call("nn.GroupNorm", groups, channels, **settings, **typed(n.dtype(1)))
    places = {"weight": Place(n.value(1), shape=_flat(n, 1)), "bias": Place(n.value(2), shape=_flat(n, 2))}
    layer = n.layer(n.stem(), made, places)
    if layer:
        return layer(n.tensor())
    weight, bias = (n.tensor(i).method("flatten") if _flat(n, i) else n.tensor(i) for i in (1, 2))
    return call("F.group_norm", n.tensor(), groups, weight, bias, eps=epsilon)


def instance_norm(n: Site) -> Code:
    dims, epsilon = n.rank() - 2, n.real("epsilon", 1e-5)
    settings = without_defaults({"eps": epsilon}, {"eps": 1e-5})
    made = call(f"nn.InstanceNorm{dims}d", n.fixed(1, 0), **settings, affine=True, **typed(n.dtype(1)))
    layer = n.layer(n.stem(), made, _weight_bias(n)) if 1 <= dims <= 3 else None
    if layer:
        return layer(n.tensor())
    return call("F.instance_norm", n.tensor(), weight=n.tensor(1), bias=n.tensor(2), eps=epsilon)


def local_response(n: Site) -> Code:
    size = n.integer("size", 1)
    alpha, beta, bias = n.real("alpha", 1e-4), n.real("beta", 0.75), n.real("bias", 1.0)
    if size % 2:
        return call("F.local_response_norm", n.tensor(), size, alpha=alpha, beta=beta, k=bias)
    x = n.tensor()
    pads = (0, 0) * (n.rank() - 2) + ((size - 1) // 2, size // 2)
    near = call("F.pad", x.method("square"), pads).method("unfold", 1, size, 1).method("sum", -1)
    return x / (near * short_float(alpha / size) + bias).method("pow", beta)


# ---- pooling and resizing ----------------------------------------------------------------------------


def max_pool(n: Site) -> Code | Sequence[Code | None]:
    w = window(n)
    tight = all(2 * p <= k for p, k in zip(w.before, w.kernel, strict=True)) and w.before == w.after
    x, padding = padded(n, n.tensor(), w, float("-inf")) if not tight or w.same else (n.tensor(), w.before)
    if padding == w.before and not tight:
        pads = [
            p for low, high in zip(reversed(w.before), reversed(w.after), strict=True) for p in (low, high)
        ]
        x, padding = call("F.pad", n.tensor(), tuple(pads), value=float("-inf")), [0] * w.dims
    settings = without_defaults(
        {
            "stride": plain(w.strides),
            "padding": plain(padding),
            "dilation": plain(w.dilations),
            "ceil_mode": bool(n.integer("ceil_mode")),
        },
        {"stride": plain(w.kernel), "padding": 0, "dilation": 1, "ceil_mode": False},
    )
    if n.used(1):
        return _max_pool_indices(n, w, settings, x, padding)
    made = call(f"nn.MaxPool{w.dims}d", plain(w.kernel), **settings)
    return _stateless(n, made)(x)


def _stateless(n: Site, made: Code) -> Code:
    """A layer without weights, called after the module around the node."""
    layer = n.layer(n.stem(99), made, {})
    assert layer is not None
    return layer


def _max_pool_indices(
    n: Site, w: Window, settings: dict[str, Plain], x: Code, padding: Sequence[int]
) -> Sequence[Code | None]:
    """Indices count over the whole input, channels and batch included."""
    if list(padding) != w.before:
        n.refuse("indices of a max-pooling with uneven pads")
    y, at = Var("pooled"), Var("indices")
    n.unpack(call(f"F.max_pool{w.dims}d", x, plain(w.kernel), **settings, return_indices=True), (y, at))
    plane = n.let(Name(at).attribute("shape")[slice(None, 2)].method("numel"), "planes", tensor=False)
    shape: Plain = (-1, n.dim(0, 1), *(1 for _ in range(w.dims)))
    offset = call("torch.arange", plane, device=x.attribute("device")).method("reshape", shape)
    area: Code = n.dim(0, 2)
    for axis in range(1, w.dims):
        area = area * n.dim(0, axis + 2)
    found: Code = Name(at)
    if n.integer("storage_order") and w.dims == 2:  # columns first
        found = found % n.dim(0, 3) * n.dim(0, 2) + found // n.dim(0, 3)
    return [Name(y), found + offset * area]


def average_pool(n: Site) -> Code:
    w = window(n)
    counted = bool(n.integer("count_include_pad"))
    ceil = bool(n.integer("ceil_mode"))
    tight = all(2 * p <= k for p, k in zip(w.before, w.kernel, strict=True)) and w.before == w.after
    if not tight or w.same or any(d != 1 for d in w.dilations) or (ceil and counted and any(w.before)):
        helper = n.helper("average_pool")
        pads: Plain = w.same or tuple(w.before + w.after)
        return helper(n.tensor(), w.kernel, w.strides, pads, w.dilations, counted, ceil)
    settings = without_defaults(
        {
            "stride": plain(w.strides),
            "padding": plain(w.before),
            "ceil_mode": ceil,
            "count_include_pad": counted if any(w.before) else True,
        },
        {"stride": plain(w.kernel), "padding": 0, "ceil_mode": False, "count_include_pad": True},
    )
    made = call(f"nn.AvgPool{w.dims}d", plain(w.kernel), **settings)
    return _stateless(n, made)(n.tensor())


def global_pool(kind: str) -> Row:
    """Average and maximum over all spatial axes."""

    def row(n: Site) -> Code:
        dims = n.rank() - 2
        if 1 <= dims <= 3:
            return call(f"F.adaptive_{kind}_pool{dims}d", n.tensor(), 1)
        return n.tensor().method("mean" if kind == "avg" else "amax", tuple(range(2, n.rank())), keepdim=True)

    return row


def lp_pool(n: Site) -> Code:
    """The p-th root of the sum of p-th powers: an average of powers, times the size of the window."""
    w, p = window(n), n.integer("p", 2)
    if n.integer("ceil_mode"):
        n.refuse("an Lp pooling that rounds sizes up")
    pads: Plain = w.same or tuple(w.before + w.after)
    powers = n.tensor().method("abs").method("pow", p)
    mean = n.helper("average_pool")(powers, w.kernel, w.strides, pads, w.dilations, True, False)
    return (mean * math.prod(w.kernel)).method("pow", short_float(1 / p))


def global_lp_pool(n: Site) -> Code:
    return call(
        "torch.linalg.vector_norm", n.tensor(), n.integer("p", 2), tuple(range(2, n.rank())), keepdim=True
    )


def resize(n: Site) -> Code:
    plan = resize_plan(n)
    if plan is None:
        return _resize_run(n)
    x = n.tensor()
    if not plan.axes:
        return x
    spatial = list(range(2, n.rank()))
    word = _interpolation(plan, len(spatial)) if plan.axes == spatial and plan.simple else ""
    if not word:
        return _resize_axes(n, plan)
    settings: dict[str, Plain] = {"mode": word}
    settings |= {"align_corners": True} if plan.coordinates == "align_corners" else {}
    if plan.scales is not None:
        return call("F.interpolate", x, scale_factor=_plain_floats(plan.scales), **settings)
    assert plan.sizes is not None
    return call("F.interpolate", x, tuple(n.size(s) for s in plan.sizes), **settings)


def _interpolation(plan: ResizePlan, dims: int) -> str:
    """What `F.interpolate` calls a mode, or nothing where it has no word for it."""
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}.get(dims, "")
    cubic = "bicubic" if dims == 2 else ""
    words = {
        ("nearest", "floor", "asymmetric"): "nearest" if linear else "",
        ("nearest", "round_prefer_ceil", "half_pixel"): "nearest-exact" if linear else "",
        ("linear", "", "half_pixel"): linear,
        ("linear", "", "align_corners"): linear,
        ("cubic", "", "half_pixel"): cubic,
        ("cubic", "", "align_corners"): cubic,
    }
    return words.get(plan.kind(), "")


def _plain_floats(values: Sequence[float]) -> Plain:
    short = [int(v) if v == int(v) else v for v in values]
    return short[0] if len(set(short)) == 1 else tuple(short)


def _resize_axes(n: Site, plan: ResizePlan) -> Code:
    """Any mode and coordinates: one small matrix per axis."""
    x = n.tensor()
    for position, axis in enumerate(plan.axes):
        size, options = axis_options(n, plan, position)
        x = n.let(n.helper("resize_axis")(x, axis, size, **options))
    return x


def _resize_run(n: Site) -> Code:
    """Scales or sizes that are computed when the module runs."""
    rank = n.rank()
    axes: list[Plain] = [a % rank for a in n.integers("axes", range(rank))]
    given = [run_list(n, i) if n.has(i) else code([]) for i in (2, 3)]
    policy, settings = n.string("keep_aspect_ratio_policy", "stretch"), resize_settings(n)
    roi = run_list(n, 1) if settings.get("coordinates") == "tf_crop_and_resize" else code([])
    return n.helper("resize_run")(n.tensor(), axes, *given, policy, roi, **settings)


LAYERS: Mapping[str, Row] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Linear": linear,
    "Gather": gather,
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LRN": local_response,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": global_pool("avg"),
    "GlobalMaxPool": global_pool("max"),
    "GlobalLpPool": global_lp_pool,
    "Resize": resize,
}
"""One row per operator that is a layer of PyTorch."""
