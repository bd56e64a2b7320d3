"""Keras layers: rows of operators that carry weights, and of pooling and resizing. Channels lie last."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from fusile.backends.framework import keras_moves
from fusile.backends.framework.code import Code, Name, Plain, Var, call, code, short_float
from fusile.backends.framework.common import Layer, Place, Printer, Row
from fusile.backends.framework.keras_rows import dtype, run_list
from fusile.backends.framework.site import Site
from fusile.backends.framework.windows import (
    Window,
    axis_options,
    normalised,
    resize_plan,
    resize_settings,
    window,
)
from fusile.backends.framework.words import index, plain, without_defaults
from fusile.graph.tensors import Weight


def typed(kind: ir.DataType) -> dict[str, Plain]:
    """`dtype=` for layers that are not of float32."""
    return {} if kind is ir.DataType.FLOAT else {"dtype": dtype(kind)}


def parameter(
    printer: Printer, attribute: str, weight: Weight, shape: tuple[int, ...], kind: ir.DataType
) -> Layer:
    """A tensor of the module outside layers."""
    given: dict[str, Plain] = {"shape": shape, "initializer": "zeros", **typed(kind)}
    given |= {} if weight.role == "param" else {"trainable": False}
    return Layer(attribute, call("self.add_weight", **given, name=attribute))


def build_shape(rank: int, *last_sizes: int) -> tuple[int | None, ...]:
    return (None,) * (rank - len(last_sizes)) + last_sizes


# ---- convolution -------------------------------------------------------------------------------------


def same_padding(n: Site, w: Window) -> bool:
    """Whether Keras' `same` pads as the window does."""
    sizes = n.onnx_shape()[2:]
    for k, s, d, low, high, size in zip(
        w.kernel, w.strides, w.dilations, w.before, w.after, sizes, strict=True
    ):
        reach = (k - 1) * d + 1
        if s == 1:
            total = reach - 1
        elif isinstance(size, int):
            total = max(0, (-(-size // s) - 1) * s + reach - size)
        else:
            return False
        if (low, high) != (total // 2, total - total // 2):
            return False
    return True


def padded(n: Site, w: Window, fill: float = 0.0) -> tuple[Code, str]:
    """The input, padded by itself where the layer's own padding does not do, and the layer's padding."""
    x = n.tensor()
    if w.same == "SAME_UPPER":
        return x, "same"
    if w.same:
        return n.helper("pad_same")(x, w.kernel, w.strides, w.dilations, *([fill] if fill else [])), "valid"
    if not any(w.before) and not any(w.after):
        return x, "valid"
    if same_padding(n, w):
        return x, "same"
    widths = ((0, 0), *zip(w.before, w.after, strict=True), (0, 0))
    return call("ops.pad", x, widths, constant_values=fill if fill else None), "valid"


def conv(n: Site) -> Code:
    w, group = window(n), n.integer("group", 1)
    if w.dims > 3:
        n.refuse(f"a convolution over {w.dims} axes")
    x, padding = padded(n, w)
    # Strides beside dilations, or uneven ones, are no word of TensorFlow: compute every step, keep some.
    both = any(s > 1 for s in w.strides) and any(d > 1 for d in w.dilations)
    both |= len(set(w.strides)) > 1 and _depthwise(n, w, group)
    if both and padding == "same":
        x, padding = (
            call("ops.pad", n.tensor(), ((0, 0), *zip(w.before, w.after, strict=True), (0, 0))),
            "valid",
        )
    strides = [1] * w.dims if both else w.strides
    settings = without_defaults(
        {"strides": plain(strides), "padding": padding, "dilation_rate": plain(w.dilations)},
        {"strides": 1, "padding": "valid", "dilation_rate": 1},
    )
    out, inner = n.fixed(1, 0), n.fixed(1, 1)
    layer = None
    if n.roles(1) == ["param"]:
        layer = _conv_layer(n, w, settings, out, inner, group)
    y = layer(x) if layer else _conv_plain(n, w, x, settings)
    if not both:
        return y
    return index(y, {a + 1: slice(None, None, s) for a, s in enumerate(w.strides) if s > 1}, w.dims + 2)


def _conv_layer(
    n: Site, w: Window, settings: dict[str, Plain], out: int, inner: int, group: int
) -> Code | None:
    spatial = tuple(range(2, w.dims + 2))
    rest: dict[str, Plain] = {} if n.has(2) else {"use_bias": False}
    rest |= typed(n.dtype(1))
    bias = {"bias": Place(n.value(2))} if n.has(2) else {}
    if _depthwise(n, w, group):
        multiplier = out // group
        depth = settings | ({"depth_multiplier": multiplier} if multiplier > 1 else {})
        made = call(f"layers.DepthwiseConv{w.dims}D", plain(w.kernel), **depth, **rest)
        shape = (*w.kernel, group, multiplier) if multiplier > 1 else ()
        places = {"kernel": Place(n.value(1), axes=(*spatial, 0, 1), shape=shape), **bias}
    else:
        grouped: dict[str, Plain] = {"groups": group} if group > 1 else {}
        made = call(f"layers.Conv{w.dims}D", out, plain(w.kernel), **settings, **grouped, **rest)
        places = {"kernel": Place(n.value(1), axes=(*spatial, 1, 0)), **bias}
    return n.layer(n.stem(), made, places, build_shape(w.dims + 2, inner * group))


def _depthwise(n: Site, w: Window, group: int) -> bool:
    """Whether a convolution is one per channel, which has layers of its own."""
    return group > 1 and n.fixed(1, 1) == 1 and w.dims < 3


def _conv_plain(n: Site, w: Window, x: Code, settings: dict[str, Plain]) -> Code:
    kernel = n.turned(1, (*range(2, w.dims + 2), 1, 0))
    y = call("ops.conv", x, kernel, **settings, data_format="channels_last")
    return y + n.tensor(2) if n.has(2) else y


def conv_transpose(n: Site) -> Code:
    """The whole result of the transposed convolution, cut to what the pads leave."""
    w, group = window(n), n.integer("group", 1)
    if w.dims > 3:
        n.refuse(f"a convolution over {w.dims} axes")
    if any(d > 1 for d in w.dilations):
        n.refuse("a transposed convolution with dilations, which TensorFlow does not have on every CPU")
    extra = n.integers("output_padding", [0] * w.dims)
    before, after = _transposed_pads(n, w, extra)
    settings = without_defaults({"strides": plain(w.strides)}, {"strides": 1})
    x, layer, out = n.tensor(), None, n.fixed(1, 1)
    if group == 1 and n.roles(1) == ["param"]:
        axes = (*range(2, w.dims + 2), 1, 0)
        places = {"kernel": Place(n.value(1), axes=axes)}
        places |= {"bias": Place(n.value(2))} if n.has(2) and not any(extra) else {}
        rest: dict[str, Plain] = {} if "bias" in places else {"use_bias": False}
        made = call(
            f"layers.Conv{w.dims}DTranspose", out, plain(w.kernel), **settings, **rest, **typed(n.dtype(1))
        )
        layer = n.layer(n.stem(), made, places, build_shape(w.dims + 2, n.fixed(1, 0)))
    if layer:
        y, bias_left = layer(x), n.has(2) and any(extra)
    else:
        y, bias_left = _conv_transpose_plain(n, w, x, settings, group), n.has(2)
    # Keras' own length is in * stride where the kernel is shorter than the stride.
    excess = [max(0, s - r) for s, r in zip(w.strides, w.kernel, strict=True)]
    y = _fit(y, before, [a + e for a, e in zip(after, excess, strict=True)], extra)
    return y + n.tensor(2) if bias_left else y


def _fit(y: Code, before: Sequence[int], cut: Sequence[int], extra: Sequence[int]) -> Code:
    """Cut the ends off, or lengthen the result by zeros where output_padding asks for more."""
    rank = len(before) + 2
    ends = [e - c for e, c in zip(extra, cut, strict=True)]
    slices: dict[int, Plain | slice] = {}
    for axis, (low, end) in enumerate(zip(before, ends, strict=True)):
        if low > 0 or end < 0:
            slices[axis + 1] = slice(low if low > 0 else None, end if end < 0 else None)
    y = index(y, slices, rank)
    widths = [(max(0, -low), max(0, end)) for low, end in zip(before, ends, strict=True)]
    if any(a or b for a, b in widths):
        y = call("ops.pad", y, ((0, 0), *widths, (0, 0)))
    return y


def _transposed_pads(n: Site, w: Window, extra: list[int]) -> tuple[list[int], list[int]]:
    wanted = n.integers("output_shape")
    if not wanted and not w.same:
        return w.before, w.after
    if wanted:
        sizes = n.onnx_shape()[2:]
        total = []
        for s, i, e, r, o in zip(w.strides, sizes, extra, w.kernel, wanted[-w.dims :], strict=True):
            if not isinstance(i, int):
                n.refuse("output_shape over an axis whose size is not fixed")
            total.append(s * (i - 1) + e + r - o)
    else:
        total = [e + r - s for s, e, r in zip(w.strides, extra, w.kernel, strict=True)]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (small, large) if n.string("auto_pad") == "SAME_UPPER" else (large, small)


def _conv_transpose_plain(n: Site, w: Window, x: Code, settings: dict[str, Plain], group: int) -> Code:
    axes = (*range(2, w.dims + 2), 1, 0)
    whole: dict[str, Plain] = {"padding": "valid", "strides": 1, **settings, "data_format": "channels_last"}
    if group == 1:
        return call("ops.conv_transpose", x, n.turned(1, axes), **whole)
    return n.helper("conv_transpose_groups")(x, n.turned(1, axes), group, **whole)


# ---- linear, embedding -------------------------------------------------------------------------------


def _flat(n: Site, i: int) -> tuple[int, ...]:
    return () if n.rank(i) == 1 else (math.prod(n.fixed(i, axis) for axis in range(n.rank(i))),)


def linear(n: Site) -> Code:
    transposed = bool(n.integer("transposed"))
    outer, inner = (n.fixed(1, 0), n.fixed(1, 1)) if transposed else (n.fixed(1, 1), n.fixed(1, 0))
    rest: dict[str, Plain] = {} if n.has(2) else {"use_bias": False}
    places = {"kernel": Place(n.value(1), axes=(1, 0) if transposed else ())}
    places |= {"bias": Place(n.value(2), shape=_flat(n, 2))} if n.has(2) else {}
    made = call("layers.Dense", outer, **rest, **typed(n.dtype(1)))
    layer = n.layer(n.stem(), made, places, (None, inner))
    if layer:
        return layer(n.tensor())
    weight = n.turned(1, (1, 0)) if transposed else n.tensor(1)
    y = call("ops.matmul", n.tensor(), weight)
    return y + n.tensor(2) if n.has(2) else y


def gather(n: Site) -> Code:
    """An embedding where a trained matrix is looked up by computed indices, else taking."""
    if n.roles(0) != ["param"] or n.rank(0) != 2 or n.axis(0) != 0 or n.host(1) is not None:
        return keras_moves.gather(n)
    made = call("layers.Embedding", n.fixed(0, 0), n.fixed(0, 1), **typed(n.dtype(0)))
    layer = n.layer(n.stem(0), made, {"embeddings": Place(n.value(0))}, (None,))
    return layer(n.tensor(1)) if layer else keras_moves.gather(n)


# ---- normalisation -----------------------------------------------------------------------------------


def batch_norm(n: Site) -> Code | Sequence[Code | None]:
    channels, rank = n.fixed(1, 0), n.rank()
    epsilon, momentum = n.real("epsilon", 1e-5), n.real("momentum", 0.9)
    axis = rank - 1 if n.channels_last or rank == 2 else 1
    if n.integer("training_mode"):
        return _batch_norm_training(n, axis, epsilon, momentum)
    settings = without_defaults(
        {"axis": -1 if axis == rank - 1 else axis, "momentum": momentum, "epsilon": epsilon},
        {"axis": -1, "momentum": 0.99, "epsilon": 1e-3},
    )
    made = call("layers.BatchNormalization", **settings, **typed(n.dtype(1)))
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    places = {word: Place(n.value(i + 1)) for i, word in enumerate(names)}
    sizes = [None] * rank
    build: list[Plain] = [*sizes]
    build[axis] = channels
    layer = n.layer(n.stem(), made, places, tuple(build), buffers=names[2:])
    if layer:
        return layer(n.tensor())
    return _normalise(n, axis, n.tensor(3), n.tensor(4), epsilon)


def _channel_shaped(n: Site, value: Code, axis: int) -> Code:
    rank = n.rank()
    return (
        value
        if axis == rank - 1
        else call("ops.reshape", value, tuple(-1 if a == axis else 1 for a in range(rank)))
    )


def _normalise(n: Site, axis: int, mean: Code, spread: Code, epsilon: float) -> Code:
    scale = n.let(n.tensor(1) * call("ops.rsqrt", spread + epsilon), "scale")
    shift = n.tensor(2) - mean * scale
    return n.tensor() * _channel_shaped(n, scale, axis) + _channel_shaped(n, shift, axis)


def _batch_norm_training(n: Site, axis: int, epsilon: float, momentum: float) -> Sequence[Code | None]:
    """Normalise by the batch and answer the running statistics after it."""
    axes = tuple(a for a in range(n.rank()) if a != axis)
    mean = n.let(call("ops.mean", n.tensor(), axis=axes), "mean")
    spread = n.let(call("ops.var", n.tensor(), axis=axes), "variance")
    rest = short_float(1 - momentum)
    y = _normalise(n, axis, mean, spread, epsilon)
    return [y, n.tensor(3) * momentum + mean * rest, n.tensor(4) * momentum + spread * rest]


def layer_norm(n: Site) -> Code | Sequence[Code | None]:
    sizes, epsilon, rank = normalised(n), n.real("epsilon", 1e-5), n.rank()
    axes = tuple(range(rank - len(sizes), rank))
    fits = n.shape(1) == sizes and (not n.has(2) or n.shape(2) == sizes)
    if fits and not n.used(1) and not n.used(2):
        settings: dict[str, Plain] = {} if len(axes) == 1 else {"axis": list(axes)}
        settings |= without_defaults({"epsilon": epsilon}, {"epsilon": 1e-3})
        settings |= {} if n.has(2) else {"center": False}
        made = call("layers.LayerNormalization", **settings, **typed(n.dtype(1)))
        places = {"gamma": Place(n.value(1)), **({"beta": Place(n.value(2))} if n.has(2) else {})}
        layer = n.layer(n.stem(), made, places, build_shape(rank, *sizes))
        if layer:
            return layer(n.tensor())
    word: Plain = -1 if len(axes) == 1 else axes
    x = n.tensor()
    mean = n.let(call("ops.mean", x, axis=word, keepdims=True), "mean")
    centred = n.let(x - mean, "centred")
    spread = call("ops.mean", call("ops.square", centred), axis=word, keepdims=True)
    inverse = n.let(call("ops.rsqrt", spread + epsilon), "inverse")
    out = centred * inverse * n.tensor(1)
    return [out + n.tensor(2) if n.has(2) else out, mean, inverse][: len(n.node.outputs)]


def rms_norm(n: Site) -> Code:
    sizes, epsilon, rank = normalised(n), n.real("epsilon", 1e-5), n.rank()
    if n.shape(1) == sizes and len(sizes) == 1:
        made = call("layers.RMSNormalization", epsilon=epsilon, **typed(n.dtype(1)))
        layer = n.layer(n.stem(), made, {"scale": Place(n.value(1))}, build_shape(rank, *sizes))
        if layer:
            return layer(n.tensor())
    axes = tuple(range(rank - len(sizes), rank))
    spread = call("ops.mean", call("ops.square", n.tensor()), axis=axes, keepdims=True)
    return n.tensor() * call("ops.rsqrt", spread + epsilon) * n.tensor(1)


def group_norm(n: Site) -> Code:
    groups, epsilon = n.integer("num_groups", 1), n.real("epsilon", 1e-5)
    return _grouped(n, groups, epsilon)


def instance_norm(n: Site) -> Code:
    return _grouped(n, -1, n.real("epsilon", 1e-5))


def _grouped(n: Site, groups: int, epsilon: float) -> Code:
    rank = n.rank()
    axis = rank - 1 if n.channels_last else 1
    channels = math.prod(n.fixed(1, a) for a in range(n.rank(1)))
    settings: dict[str, Plain] = {} if axis == rank - 1 else {"axis": axis}
    settings |= without_defaults({"epsilon": epsilon}, {"epsilon": 1e-3})
    made = call("layers.GroupNormalization", groups, **settings, **typed(n.dtype(1)))
    places = {"gamma": Place(n.value(1), shape=_flat(n, 1)), "beta": Place(n.value(2), shape=_flat(n, 2))}
    build: list[Plain] = [None] * rank
    build[axis] = channels
    layer = n.layer(n.stem(), made, places, tuple(build))
    if layer:
        return layer(n.tensor())
    weights = [call("ops.reshape", n.tensor(i), (-1,)) if _flat(n, i) else n.tensor(i) for i in (1, 2)]
    count = channels if groups == -1 else groups
    return n.helper("group_norm")(n.tensor(), *weights, count, epsilon, axis)


def local_response(n: Site) -> Code:
    size = n.integer("size", 1)
    alpha, beta, bias = n.real("alpha", 1e-4), n.real("beta", 0.75), n.real("bias", 1.0)
    return n.helper("local_response")(n.tensor(), size, short_float(alpha / size), beta, bias)


# ---- pooling and resizing ----------------------------------------------------------------------------


def _stateless(n: Site, made: Code) -> Code:
    layer = n.layer(n.stem(99), made, {})
    assert layer is not None
    return layer


def max_pool(n: Site) -> Code | Sequence[Code | None]:
    w = window(n)
    if n.used(1):
        both = Var("pooled"), Var("indices")
        n.unpack(_pool_by_steps(n, w, "max_pool_indices", columns=bool(n.integer("storage_order"))), both)
        return [Name(v) for v in both]
    if (
        any(d != 1 for d in w.dilations)
        or n.integer("ceil_mode")
        or w.dims > 3
        or not n.dtype().is_floating_point()
    ):
        return _pool_by_steps(n, w, "max_pool")
    x, padding = padded(n, w, float("-inf"))
    settings = without_defaults({"strides": plain(w.strides), "padding": padding}, {"padding": "valid"})
    return _stateless(n, call(f"layers.MaxPooling{w.dims}D", plain(w.kernel), **settings))(x)


def _pool_by_steps(n: Site, w: Window, helper: str, **flags: bool) -> Code:
    """Pooling with dilations, sizes rounded up, or pads that no layer has."""
    pads: Plain = w.same or (tuple(w.before), tuple(w.after))
    words: dict[str, Plain] = {word: True for word, on in flags.items() if on}
    words |= {"ceil": True} if n.integer("ceil_mode") else {}
    return n.helper(helper)(n.tensor(), w.kernel, w.strides, w.dilations, pads, **words)


def average_pool(n: Site) -> Code:
    w, counted = window(n), bool(n.integer("count_include_pad"))
    if any(d != 1 for d in w.dilations) or n.integer("ceil_mode") or w.dims > 3:
        return _pool_by_steps(n, w, "average_pool", count_pads=counted)
    padless = not any(w.before) and not any(w.after) and not w.same
    padding = (
        "same" if not padless and (w.same == "SAME_UPPER" or (not w.same and same_padding(n, w))) else "valid"
    )
    x = n.tensor()
    if not padless and (counted or padding == "valid"):
        if not counted or w.same:
            return _pool_by_steps(n, w, "average_pool", count_pads=counted)
        x, padding = call("ops.pad", x, ((0, 0), *zip(w.before, w.after, strict=True), (0, 0))), "valid"
    settings = without_defaults({"strides": plain(w.strides), "padding": padding}, {"padding": "valid"})
    return _stateless(n, call(f"layers.AveragePooling{w.dims}D", plain(w.kernel), **settings))(x)


def global_pool(function: str) -> Row:
    def row(n: Site) -> Code:
        axes = tuple(range(1, n.rank() - 1)) if n.channels_last else tuple(range(2, n.rank()))
        return call(function, n.tensor(), axis=axes if len(axes) > 1 else axes[0], keepdims=True)

    return row


def lp_pool(n: Site) -> Code:
    n.refuse("Lp pooling has no word in Keras")


def global_lp_pool(n: Site) -> Code:
    p, axes = n.integer("p", 2), tuple(range(1, n.rank() - 1))
    powers = call(
        "ops.sum", call("ops.power", call("ops.abs", n.tensor()), float(p)), axis=axes, keepdims=True
    )
    return call("ops.power", powers, short_float(1.0 / p))


def resize(n: Site) -> Code:
    plan = resize_plan(n)
    x, rank = n.tensor(), n.rank()
    if plan is None:
        return _resize_run(n)
    if not plan.axes:
        return x
    whole = plan.scales is not None and all(s == int(s) and s >= 1 for s in plan.scales)
    if rank == 4 and plan.axes == [2, 3] and plan.simple and not plan.antialias and whole:
        word = {("nearest", "floor", "asymmetric"): "nearest", ("linear", "", "half_pixel"): "bilinear"}.get(
            plan.kind()
        )
        if word is not None:
            assert plan.scales is not None
            scale = plain([int(s) for s in plan.scales])
            settings = without_defaults({"interpolation": word}, {"interpolation": "nearest"})
            return _stateless(n, call("layers.UpSampling2D", scale, **settings))(x)
    for position, axis in enumerate(plan.axes):
        size, options = axis_options(n, plan, position)
        own = (0, rank - 1, *range(1, rank - 1))[axis] if n.channels_last else axis
        x = n.let(n.helper("resize_axis")(x, own, size, **options))
    return x


def _resize_run(n: Site) -> Code:
    """Scales or sizes that are computed when the model runs."""
    rank = n.rank()
    places = (0, rank - 1, *range(1, rank - 1)) if n.channels_last else range(rank)
    axes: list[Plain] = [places[a % rank] for a in n.integers("axes", range(rank))]
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
    "GlobalAveragePool": global_pool("ops.mean"),
    "GlobalMaxPool": global_pool("ops.max"),
    "GlobalLpPool": global_lp_pool,
    "Resize": resize,
}
"""One row per operator that is a layer of Keras."""
