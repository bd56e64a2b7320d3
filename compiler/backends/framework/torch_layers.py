"""PyTorch layers: rows of operators that carry weights, and of pooling and resizing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from fusile.backends.framework import torch_moves
from fusile.backends.framework.common import Layer, Place, Printer, Row, Site
from fusile.backends.framework.source import Code, Name, Plain, Var, call, code, short_float
from fusile.backends.framework.torch_moves import permute, run_list
from fusile.backends.framework.torch_rows import dtype
from fusile.backends.framework.windows import (
    ResizePlan,
    Window,
    axis_options,
    is_zero_state,
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
    """x, padded by itself where a layer's symmetric padding does not do, and the padding left to the layer."""
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


def batch_norm(n: Site) -> Code | list[Code | None]:
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


def _batch_norm_training(n: Site, epsilon: float, momentum: float) -> list[Code | None]:
    """Normalise by the batch and answer the running statistics after it."""
    x, axes = n.tensor(), tuple(axis for axis in range(n.rank()) if axis != 1)
    y = call("F.batch_norm", x, None, None, n.tensor(1), n.tensor(2), training=True, eps=epsilon)
    mean = n.tensor(3) * momentum + x.method("mean", axes) * short_float(1 - momentum)
    spread = x.method("var", axes, correction=0)
    return [y, mean, n.tensor(4) * momentum + spread * short_float(1 - momentum)]


def normalised(n: Site) -> list[int]:
    """Sizes of the axes that a layer norm normalises, taken from its weight where the input leaves them open."""
    axis, sizes = n.axis(-1), n.shape()
    own = n.shape(1) if n.has(1) else []
    out = []
    for index in range(axis, n.rank()):
        size = sizes[index]
        if not isinstance(size, int):
            other = own[index - n.rank()] if n.rank() - index <= len(own) else None
            if not isinstance(other, int):
                n.refuse(f"the size of the normalised axis {index} is not fixed")
            size = other
        out.append(size)
    return out


def layer_norm(n: Site) -> Code | list[Code | None]:
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


def _layer_norm_parts(n: Site, count: int, epsilon: float) -> list[Code | None]:
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


# ---- recurrence --------------------------------------------------------------------------------------

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""ONNX's gates (i o f c, z r h) in PyTorch's order (i f g o, r z n)."""
_PLAIN_ACTIVATIONS = {
    "LSTM": ["sigmoid", "tanh", "tanh"],
    "GRU": ["sigmoid", "tanh"],
    "RNN": ["tanh"],
}


def recurrent(n: Site) -> list[Code | None]:
    kind = n.node.op_type
    places = _recurrent_places(n, kind)
    if places is None:
        return recurrent_helper(n)
    both, backward = n.string("direction", "forward") == "bidirectional", n.string("direction") == "reverse"
    hidden, first = n.fixed(2, 2), bool(n.integer("layout"))
    settings: dict[str, Plain] = {"bidirectional": True} if both else {}
    if kind == "RNN" and activations(n)[:1] == ["relu"]:
        settings["nonlinearity"] = "relu"
    settings |= {} if n.has(3) else {"bias": False}
    settings |= {"batch_first": True} if first else {}
    made = call(f"nn.{kind}", n.fixed(1, 2), hidden, **settings, **typed(n.dtype(1)))
    layer = n.layer(recurrent_stem(n), made, places)
    if layer is None:
        return recurrent_helper(n)
    x = n.tensor().method("flip", 1 if first else 0) if backward else n.tensor()
    state = _state(n, kind, first)
    y, h, c = Var("outputs"), Var("hidden"), Var("cell")
    n.unpack(layer(x, *([state] if state is not None else [])), (y, (h, c) if kind == "LSTM" else h))
    out: Code = Name(y).method("flip", 1 if first else 0) if backward else Name(y)
    if n.node.domain != "fusile":
        out = out.method("unflatten", -1, (2, hidden)) if both else out.method("unsqueeze", 2)
        out = out if first else out.method("transpose", 1, 2)
    ends = [permute(Name(v), (1, 0, 2)) if first else Name(v) for v in (h, c)]
    return [out, ends[0], ends[1] if kind == "LSTM" else None][: len(n.node.outputs)]


def recurrent_stem(n: Site) -> str:
    """Recurrent weights are stacked under made-up names: the scope tells more."""
    from fusile.graph.tensors import scope

    return scope(n.node) or n.stem(1)


def plain_activations(kind: str) -> list[str]:
    """What ONNX's recurrent operators use unless told otherwise, in one direction."""
    return list(_PLAIN_ACTIVATIONS[kind])


def activations(n: Site) -> list[str]:
    """The activations of a recurrence, as many as its directions need; the schema's default lists more."""
    held = n.node.attributes.get("activations")
    directions = 2 if n.string("direction", "forward") == "bidirectional" else 1
    count = directions * len(_PLAIN_ACTIVATIONS[n.node.op_type])
    return [] if held is None else [a.lower() for a in held.as_strings()][:count]


def _recurrent_places(n: Site, kind: str) -> dict[str, Place] | None:
    """Where the weights of `nn.LSTM` and its like lie, or None where that layer cannot express the node."""
    directions = 2 if n.string("direction", "forward") == "bidirectional" else 1
    acts, normal = activations(n), _PLAIN_ACTIVATIONS[kind] * directions
    relu = kind == "RNN" and acts == ["relu"] * directions
    plain_form = (not acts or acts == normal or relu) and n.node.attributes.get("clip") is None
    plain_form &= not n.integer("input_forget") and not n.has(4) and not n.has(7)
    plain_form &= kind != "GRU" or bool(n.integer("linear_before_reset"))
    if not plain_form:
        return None
    gates, rows = _GATES[kind], n.fixed(1, 1)
    order = gates if len(gates) > 1 else ()
    out = {}
    for d in range(directions):
        end = "_l0_reverse" if d else "_l0"
        out[f"weight_ih{end}"] = Place(n.value(1), part=(d,), gates=order)
        out[f"weight_hh{end}"] = Place(n.value(2), part=(d,), gates=order)
        if n.has(3):
            out[f"bias_ih{end}"] = Place(n.value(3), part=(d, (0, rows)), gates=order)
            out[f"bias_hh{end}"] = Place(n.value(3), part=(d, (rows, 2 * rows)), gates=order)
    return out


def _state(n: Site, kind: str, first: bool) -> Code | None:
    """The initial state, where it is more than zeros."""
    indices = [i for i in ((5, 6) if kind == "LSTM" else (5,)) if n.has(i)]
    if all(is_zero_state(n.printer, n.value(i)) for i in indices):
        return None
    states = []
    for i in (5, 6) if kind == "LSTM" else (5,):
        state = n.tensor(i) if n.has(i) else call("torch.zeros_like", n.tensor(indices[0]))
        states.append(permute(state, (1, 0, 2)) if first else state)
    return code(tuple(states)) if kind == "LSTM" else states[0]


def recurrent_helper(n: Site) -> list[Code | None]:
    """A recurrence that no layer has: written out, one direction at a time."""
    kind, directions = n.node.op_type, n.fixed(2, 0)
    acts = activations(n) or _PLAIN_ACTIVATIONS[kind] * directions
    if not set(acts) <= {"sigmoid", "tanh", "relu"}:
        n.refuse(f"activations {', '.join(acts)} in a recurrence")
    per = len(acts) // directions
    nested = tuple(tuple(acts[d * per : (d + 1) * per]) for d in range(directions))
    held = n.node.attributes.get("clip")
    x = permute(n.tensor(), (1, 0, 2)) if n.integer("layout") else n.tensor()
    given: dict[str, Plain] = {"bias": n.tensor(3)} if n.has(3) else {}
    given |= {"lengths": n.tensor(4)} if n.has(4) else {}
    for index, word in ((5, "hidden"), (6, "cell")):
        if n.has(index) and (index == 5 or kind == "LSTM") and not is_zero_state(n.printer, n.value(index)):
            given[word] = permute(n.tensor(index), (1, 0, 2)) if n.integer("layout") else n.tensor(index)
    if kind == "LSTM":
        given |= {"peepholes": n.tensor(7)} if n.has(7) else {}
        given |= {"coupled": True} if n.integer("input_forget") else {}
    given |= {"reset_after": True} if kind == "GRU" and n.integer("linear_before_reset") else {}
    given |= {"clip": short_float(held.as_float())} if held is not None else {}
    direction = n.string("direction", "forward")
    call_ = n.helper(kind.lower())(x, n.tensor(1), n.tensor(2), nested, direction, **given)
    targets = [Var("outputs"), Var("hidden"), Var("cell")][: 3 if kind == "LSTM" else 2]
    n.unpack(call_, tuple(targets))
    y: Code = Name(targets[0])
    if n.node.domain == "fusile":
        y = y.method("transpose", 1, 2).method("flatten", 2)
    elif n.integer("layout"):
        y = y.method("permute", 2, 0, 1, 3)
    ends = [permute(Name(t), (1, 0, 2)) if n.integer("layout") else Name(t) for t in targets[1:]]
    return [y, *ends][: len(n.node.outputs)]


# ---- pooling and resizing ----------------------------------------------------------------------------


def max_pool(n: Site) -> Code | list[Code | None]:
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
) -> list[Code | None]:
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
    "LSTM": recurrent,
    "GRU": recurrent,
    "RNN": recurrent,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": global_pool("avg"),
    "GlobalMaxPool": global_pool("max"),
    "GlobalLpPool": global_lp_pool,
    "Resize": resize,
}
"""One row per operator that is a layer of PyTorch."""
