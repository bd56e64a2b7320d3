"""Layers and activations recovered from the pieces that exporters break them into.

Each rule looks at the last node of a pattern and answers the node that replaces it, or None; what is left
over is removed as unused. A rule states its algebra in its docstring. Operators of our own are in the
domain `fusile`: `Linear(x, weight, bias?)` with `transposed` (the weight is [out, in] as in PyTorch),
`GroupNormalization` with weights of any shape that has C elements, `LSTM` and `GRU` with `merged` (the
first output is [time, batch, directions * hidden]), `Gelu`, `Swish` and others as in ONNX itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience
from onnx_ir.passes.common import RemoveUnusedNodesPass

DOMAIN = "fusile"
"""The domain of operators that this file makes and ONNX does not have."""

_SMALL = 64
Rule: TypeAlias = Callable[[ir.Node], ir.Node | None]


def recognise(model: ir.Model) -> ir.Model:
    """Replace every pattern that RULES know, in place, and remove what nothing uses; answers the model."""
    RemoveUnusedNodesPass()(model)
    separate_copies(model)
    for rule, operators in RULES:
        for node in list(model.graph):
            if node.op_type not in operators or node.graph is None:
                continue
            made = rule(node)
            if made is None:
                continue
            made.metadata_props.update(node.metadata_props)
            kept = made.outputs[: len(node.outputs)]
            convenience.replace_nodes_and_values(model.graph, node, [node], [made], node.outputs, kept)
        RemoveUnusedNodesPass()(model)
    separate_layers(model)
    return model


# ---- looking at nodes --------------------------------------------------------------------------------


def initialiser(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor that a value always is, or None."""
    return value.const_value if value is not None and value.is_initializer() else None


def constant(value: ir.Value | None, most: int = _SMALL) -> np.ndarray | None:
    """The data of a constant of at most `most` elements, or None."""
    held = initialiser(value)
    if held is None or math.prod(held.shape.numpy()) > most or held.dtype is ir.DataType.STRING:
        return None
    return np.asarray(held.numpy())


def scalar(value: ir.Value | None) -> float | None:
    """The number that a one-element constant holds, or None."""
    data = constant(value, 1)
    return float(data.ravel()[0]) if data is not None and data.size == 1 else None


def producer(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """The node that makes a value, if its operator is one of these and the value is its first output."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in operators and node.outputs[0] is value else None


def single(value: ir.Value) -> bool:
    """Whether exactly one node input reads the value, and no graph output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def integer(node: ir.Node, attribute: str, default: int) -> int:
    """An integer attribute."""
    held = node.attributes.get(attribute)
    return default if held is None else held.as_int()


def number(node: ir.Node, attribute: str, default: float) -> float:
    """A float attribute."""
    held = node.attributes.get(attribute)
    return default if held is None else held.as_float()


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """The shape of a value: integers, names of symbols, None where unknown; None without a rank."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def make(
    like: ir.Node, operator: str, inputs: list[ir.Value | None], domain: str = "", **attributes: object
) -> ir.Node:
    """A node that takes the place of another: its name, as many outputs."""
    return ir.node(operator, inputs, attributes, domain=domain, num_outputs=len(like.outputs), name=like.name)  # type: ignore[arg-type]


def sides(node: ir.Node) -> Iterator[tuple[ir.Value | None, ir.Value | None]]:
    """Both orders of the inputs of a commutative node."""
    first, second = node.inputs
    yield first, second
    yield second, first


def factors(value: ir.Value | None) -> list[ir.Value]:
    """What a chain of multiplications multiplies; a product with another reader counts as one factor."""
    node = producer(value, "Mul")
    if value is None or node is None:
        return [] if value is None else [value]
    parts = []
    for inner in node.inputs:
        deeper = producer(inner, "Mul") is not None and inner is not None and single(inner)
        parts += factors(inner) if deeper else [inner] if inner is not None else []
    return parts


def split_factors(value: ir.Value | None) -> tuple[list[ir.Value], float]:
    """The factors of a product that are no numbers, and the product of those that are."""
    rest, product = [], 1.0
    for factor in factors(value):
        held = scalar(factor)
        if held is None:
            rest.append(factor)
        else:
            product *= held
    return rest, product


def near(value: float | None, wanted: float) -> bool:
    """Equal to float32 precision."""
    return value is not None and math.isclose(value, wanted, rel_tol=1e-5)


# ---- weights that an exporter merged or renamed ------------------------------------------------------


def separate_copies(model: ir.Model) -> None:
    """Give every layer its own tensor where an exporter kept one for several because they began equal.

    Biases of zeros and scales of ones are merged by value on export, sometimes through an Identity that
    still carries the lost name. Only tensors with one value throughout are taken apart: others are equal
    because their source ties them, and stay tied.
    """
    from fusile.graph.tensors import ALIASES

    graph = model.graph
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Identity" else None
        if source is None or not source.is_initializer() or node.outputs[0].is_graph_output():
            continue
        out = node.outputs[0]
        if _is_filled(source):
            kept = _copy(graph, source, str(out.name))
        else:
            kept = source
            others = [source.metadata_props.get(ALIASES, ""), str(out.name).replace("\n", " ")]
            source.metadata_props[ALIASES] = "\n".join(filter(None, others))
        convenience.replace_all_uses_with(out, kept)
        graph.remove(node, safe=True)


def separate_layers(model: ir.Model) -> None:
    """The same for layers that read one initialiser directly."""
    from fusile.graph.tensors import LAYER_INPUTS

    graph = model.graph
    for value in list(graph.initializers.values()):
        slots = [(u.node, u.idx) for u in value.uses() if u.idx in LAYER_INPUTS.get(u.node.op_type, ())]
        if len(slots) < 2 or len(slots) != len(value.uses()) or not _is_filled(value):
            continue
        seen: dict[object, ir.Value] = {}
        for node, index in slots:
            beside = tuple(
                str(v.name)
                for i, v in enumerate(node.inputs)
                if v is not None and i != index and v.is_initializer() and not _is_filled(v)
            )
            key = (node.op_type, beside) if beside else node
            own = seen.get(key)
            if own is None:
                own = value if not seen else _copy(graph, value, f"{value.name}.copy{len(seen)}")
                seen[key] = own
            if own is not value:
                node.replace_input_with(index, own)


def _is_filled(value: ir.Value) -> bool:
    """Whether a small float tensor has one value throughout."""
    data = constant(value, 1 << 16)
    return (
        data is not None
        and data.size > 0
        and data.dtype.kind == "f"
        and bool(np.all(data == data.ravel()[0]))
    )


def _copy(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    while name in graph.initializers:
        name += "_"
    made = ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
    graph.register_initializer(made)
    return made


def picked(node: ir.Node) -> ir.Node | None:
    """squeeze(x[i : i + 1], axis)  ->  Gather(x, i)"""
    cut = producer(node.inputs[0], "Slice")
    if (
        cut is None
        or len(cut.inputs) < 4
        or len(node.inputs) < 2
        or node.graph is None
        or not single(cut.outputs[0])
    ):
        return None
    starts, stops, axes, gone = (constant(v) for v in (*cut.inputs[1:4], node.inputs[1]))
    steps = constant(cut.inputs[4]) if len(cut.inputs) > 4 else np.ones(1)
    if any(a is None or a.size != 1 for a in (starts, stops, axes, gone, steps)):
        return None
    start, stop, axis, out, step = (int(a.ravel()[0]) for a in (starts, stops, axes, gone, steps))  # type: ignore[union-attr]
    rank = len(dims(cut.inputs[0]) or ())
    last = start == -1 and stop >= 2**31 - 1
    if (
        not rank
        or step != 1
        or axis % rank != out % rank
        or not ((stop - start == 1 and (start >= 0 or stop < 0)) or last)
    ):
        return None
    index = ir.Value(
        name=f"{node.name}.index",
        shape=ir.Shape(()),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(np.array(start, dtype=np.int64)),
    )
    assert isinstance(node.graph, ir.Graph)
    node.graph.register_initializer(index)
    return make(node, "Gather", [cut.inputs[0], index], axis=axis % rank)


# ---- layers ------------------------------------------------------------------------------------------


def linear(node: ir.Node) -> ir.Node | None:
    """x @ W  ->  Linear(x, W);  x @ transpose(V)  ->  Linear(x, V, transposed)   for a 2-d constant weight"""
    x, weight = node.inputs
    transposed = 0
    turned = producer(weight, "Transpose")
    if turned is not None and len(dims(turned.inputs[0]) or ()) == 2:
        weight, transposed = turned.inputs[0], 1
    rank = len(dims(x) or ())
    if initialiser(weight) is None or len(dims(weight) or ()) != 2 or rank < 2 or _is_table(weight):
        return None
    return make(node, "Linear", [x, weight], DOMAIN, transposed=transposed)


def linear_bias(node: ir.Node) -> ir.Node | None:
    """Linear(x, W) + b  ->  Linear(x, W, b)   for a constant b along the last axis."""
    for product, bias in sides(node):
        layer = producer(product, "Linear")
        if layer is None or len(layer.inputs) != 2 or product is None or not single(product):
            continue
        held, weight = initialiser(bias), dims(layer.inputs[1])
        assert weight is not None
        out = weight[0] if integer(layer, "transposed", 0) else weight[1]
        if held is None or bias is None:
            continue
        shape = tuple(int(n) for n in held.shape.numpy())
        if shape and shape[-1] == out == math.prod(shape) and len(shape) <= len(dims(product) or ()):
            turned = integer(layer, "transposed", 0)
            return make(node, "Linear", [*layer.inputs, bias], DOMAIN, transposed=turned)
    return None


def gemm(node: ir.Node) -> ir.Node | None:
    """Gemm with constant weight and bias, alpha = beta = 1 and x as it is  ->  Linear"""
    x, weight, *rest = node.inputs
    bias = rest[0] if rest else None
    plain = number(node, "alpha", 1.0) == 1.0 and number(node, "beta", 1.0) == 1.0
    if not plain or integer(node, "transA", 0) or initialiser(weight) is None:
        return None
    transposed = integer(node, "transB", 0)
    out = (dims(weight) or (None, None))[0 if transposed else 1]
    if bias is not None:
        held = initialiser(bias)
        shape = tuple(int(n) for n in held.shape.numpy()) if held is not None else ()
        if not shape or shape[-1] != out or math.prod(shape) != out:
            return None
    return make(
        node, "Linear", [x, weight, *([bias] if bias is not None else [])], DOMAIN, transposed=transposed
    )


def group_norm(node: ir.Node) -> ir.Node | None:
    """reshape(InstanceNorm(reshape(x, [N, G, -1])), shape(x)) * w + b  ->  GroupNormalization(x, w, b)"""
    for scaled, bias in sides(node):
        product = producer(scaled, "Mul")
        if product is None:
            continue
        for back, weight in sides(product):
            x, groups, epsilon = _ungrouped(back)
            shape = dims(x)
            if x is None or shape is None or not all(_along_channels(p, shape) for p in (weight, bias)):
                continue
            return make(
                node, "GroupNormalization", [x, weight, bias], DOMAIN, num_groups=groups, epsilon=epsilon
            )
    return None


def _ungrouped(back: ir.Value | None) -> tuple[ir.Value | None, int, float]:
    reshaped = producer(back, "Reshape")
    norm = producer(reshaped.inputs[0], "InstanceNormalization") if reshaped is not None else None
    grouped = producer(norm.inputs[0], "Reshape") if norm is not None else None
    if norm is None or grouped is None:
        return None, 0, 0.0
    ones, zeros = constant(norm.inputs[1], 4096), constant(norm.inputs[2], 4096)
    shape = dims(grouped.outputs[0])
    if ones is None or zeros is None or not np.all(ones == 1) or np.any(zeros) or len(shape or ()) != 3:
        return None, 0, 0.0
    x = grouped.inputs[0]
    same = dims(x) == dims(back) and None not in (dims(x) or (None,))
    return (x if same else None), ones.size, number(norm, "epsilon", 1e-5)


def _along_channels(weight: ir.Value | None, shape: tuple[int | str | None, ...]) -> bool:
    """Whether a constant broadcasts over axis 1 of a value of that shape alone."""
    held = initialiser(weight)
    if held is None or len(shape) < 2:
        return False
    own = tuple(int(n) for n in held.shape.numpy())
    aligned = (1,) * (len(shape) - len(own)) + own
    return len(aligned) == len(shape) and aligned[1] == shape[1] == math.prod(own)


def layer_norm(node: ir.Node) -> ir.Node | None:
    """c / sqrt(mean(c^2) + e) * w + b with c = x - mean(x)  ->  LayerNormalization(x, w, b)"""
    for scaled, bias in sides(node):
        product = producer(scaled, "Mul")
        if product is None:
            continue
        for normal, weight in sides(product):
            quotient = producer(normal, "Div")
            centred = producer(quotient.inputs[0], "Sub") if quotient is not None else None
            if quotient is None or centred is None:
                continue
            x, mean = centred.inputs
            squared, epsilon = _root_mean_square(quotient.inputs[1])
            if squared is not centred.outputs[0] or _mean_of(mean) is not x or epsilon is None:
                continue
            last = (dims(x) or (None,))[-1]
            if all(
                len(dims(p) or ()) == 1 and (dims(p) or ())[0] == last and initialiser(p)
                for p in (weight, bias)
            ):
                return make(
                    node, "LayerNormalization", [x, weight, bias], axis=-1, epsilon=epsilon, stash_type=1
                )
    return None


def rms_norm(node: ir.Node) -> ir.Node | None:
    """x / sqrt(mean(x^2) + e) * w  ->  RMSNormalization(x, w)   over the last axis"""
    for normal, weight in sides(node):
        if initialiser(weight) is None or len(dims(weight) or ()) != 1:
            continue
        for x, root in _quotients(normal):
            squared, epsilon = _root_mean_square(root)
            if squared is None or squared is not x or epsilon is None or dims(x) is None:
                continue
            if (dims(x) or (None,))[-1] == (dims(weight) or (0,))[0]:
                return make(node, "RMSNormalization", [x, weight], axis=-1, epsilon=epsilon, stash_type=1)
    return None


def _quotients(value: ir.Value | None) -> Iterator[tuple[ir.Value | None, ir.Value | None]]:
    """Numerator and denominator of a / b, also where it is written a * (1 / b)."""
    node = producer(value, "Div", "Mul")
    if node is not None and node.op_type == "Div":
        yield node.inputs[0], node.inputs[1]
    elif node is not None:
        for x, inverse in sides(node):
            inverted = producer(inverse, "Reciprocal")
            if inverted is not None:
                yield x, inverted.inputs[0]


def _root_mean_square(value: ir.Value | None) -> tuple[ir.Value | None, float | None]:
    """x and e of sqrt(mean(x^2) + e)."""
    root = producer(value, "Sqrt")
    total = producer(root.inputs[0], "Add") if root is not None else None
    for mean, epsilon in sides(total) if total is not None else ():
        held, square = scalar(epsilon), producer(_mean_of(mean), "Pow", "Mul")
        if held is None or square is None:
            continue
        x, other = square.inputs
        if other is x if square.op_type == "Mul" else scalar(other) == 2:
            return x, held
    return None, None


def _mean_of(value: ir.Value | None) -> ir.Value | None:
    """x of mean(x) over the last axis, kept."""
    node = producer(value, "ReduceMean")
    rank = len(dims(node.inputs[0]) or ()) if node is not None else 0
    if node is None or not rank or len(node.inputs) < 2 or not integer(node, "keepdims", 1):
        return None
    axes = constant(node.inputs[1])
    return node.inputs[0] if axes is not None and [int(a) % rank for a in axes] == [rank - 1] else None


# ---- activations -------------------------------------------------------------------------------------


def swish(node: ir.Node) -> ir.Node | None:
    """x * sigmoid(x)  ->  Swish(x);  x * HardSigmoid(x, 1/6, 1/2)  ->  HardSwish(x)"""
    for x, gate in sides(node):
        gated = producer(gate, "Sigmoid", "HardSigmoid")
        if gated is None or gated.inputs[0] is not x or x is None:
            continue
        if gated.op_type == "Sigmoid":
            return make(node, "Swish", [x], alpha=1.0)
        if near(number(gated, "alpha", 0.2), 1 / 6) and near(number(gated, "beta", 0.5), 0.5):
            return make(node, "HardSwish", [x])
    return None


def hard_swish(node: ir.Node) -> ir.Node | None:
    """x * clip(x + 3, 0, 6) / 6  ->  HardSwish(x)"""
    if node.op_type == "Div":
        divisor = scalar(node.inputs[1])
        rest, factor = factors(node.inputs[0]), 1.0 / divisor if divisor else 0.0
    else:
        rest, factor = split_factors(node.outputs[0])
    if len(rest) != 2 or not near(factor, 1 / 6):
        return None
    for x, clipped in (rest, rest[::-1]):
        clip = producer(clipped, "Clip")
        if (
            clip is None
            or len(clip.inputs) < 3
            or (scalar(clip.inputs[1]), scalar(clip.inputs[2])) != (0.0, 6.0)
        ):
            continue
        shifted = producer(clip.inputs[0], "Add")
        if shifted is not None and any(a is x and scalar(b) == 3.0 for a, b in sides(shifted)):
            return make(node, "HardSwish", [x])
    return None


def gelu(node: ir.Node) -> ir.Node | None:
    """x / 2 * (1 + erf(x / sqrt(2)))  ->  Gelu(x)

    x / 2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))  ->  Gelu(x, tanh)
    """
    rest, factor = split_factors(node.outputs[0])
    if len(rest) != 2 or not near(factor, 0.5):
        return None
    for x, gate in (rest, rest[::-1]):
        total = producer(gate, "Add")
        for bell, one in sides(total) if total is not None else ():
            curve = producer(bell, "Erf", "Tanh")
            if curve is None or not near(scalar(one), 1.0):
                continue
            if curve.op_type == "Erf" and _is_scaled(curve.inputs[0], x, math.sqrt(0.5)):
                return make(node, "Gelu", [x], approximate="none")
            if curve.op_type == "Tanh" and _is_cubic(curve.inputs[0], x):
                return make(node, "Gelu", [x], approximate="tanh")
    return None


def _is_scaled(value: ir.Value | None, x: ir.Value, wanted: float) -> bool:
    node = producer(value, "Div")
    if node is not None:
        divisor = scalar(node.inputs[1])
        return node.inputs[0] is x and bool(divisor) and near(1.0 / (divisor or 1.0), wanted)
    rest, factor = split_factors(value)
    return len(rest) == 1 and rest[0] is x and near(factor, wanted)


def _is_cubic(value: ir.Value | None, x: ir.Value) -> bool:
    """sqrt(2/pi) * (x + 0.044715 * x^3)"""
    rest, factor = split_factors(value)
    total = producer(rest[0], "Add") if len(rest) == 1 else None
    if total is None or not near(factor, math.sqrt(2 / math.pi)):
        return False
    for plain, cubed in sides(total):
        powers, scale = split_factors(cubed)
        if plain is not x or not near(scale, 0.044715):
            continue
        power = producer(powers[0], "Pow") if len(powers) == 1 else None
        if power is not None and power.inputs[0] is x and scalar(power.inputs[1]) == 3:
            return True
        if len(powers) == 3 and all(p is x for p in powers):
            return True
    return False


# ---- recurrent layers --------------------------------------------------------------------------------


def merged_recurrence(node: ir.Node) -> ir.Node | None:
    """reshape(transpose(Y, [0, 2, 1, 3]), [T, B, D * H])  ->  Y of a merged layer

    squeeze(Y, 1)  ->  Y of a merged layer   with one direction
    """
    if node.op_type == "Reshape":
        turned = producer(node.inputs[0], "Transpose")
        if turned is None or list(turned.attributes["perm"].as_ints()) != [0, 2, 1, 3]:
            return None
        y = turned.inputs[0]
    else:
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None or axes.tolist() != [1]:
            return None
        y = node.inputs[0]
    layer = producer(y, "LSTM", "GRU", "RNN")
    shape, own = dims(node.outputs[0]), dims(y)
    if layer is None or y is None or not single(y) or layer.domain == DOMAIN or integer(layer, "layout", 0):
        return None
    if node.op_type == "Reshape" and (not single(turned.outputs[0]) or not _keeps_steps(own, shape)):  # type: ignore[union-attr]
        return None
    _merge(layer, node)
    return None


def _keeps_steps(
    own: tuple[int | str | None, ...] | None, shape: tuple[int | str | None, ...] | None
) -> bool:
    """Whether [T, D, B, H] became [T, B, D * H]."""
    if own is None or shape is None or len(own) != 4 or len(shape) != 3:
        return False
    time, directions, batch, hidden = own
    if not isinstance(directions, int) or not isinstance(hidden, int) or shape[2] != directions * hidden:
        return False
    return None not in (time, batch) and (shape[0] == time or shape[1] == batch)


def _merge(layer: ir.Node, last: ir.Node) -> None:
    """The layer anew, with the value after `last` as its first output."""
    made = ir.node(
        layer.op_type,
        list(layer.inputs),
        dict(layer.attributes),
        domain=DOMAIN,
        num_outputs=len(layer.outputs),
        name=layer.name,
    )
    made.metadata_props.update(layer.metadata_props)
    graph = layer.graph
    assert graph is not None
    values = [last.outputs[0], *layer.outputs[1:]]
    for old, new in zip(values, made.outputs, strict=True):
        new.type, new.shape, new.name = old.type, old.shape, old.name
    convenience.replace_all_uses_with(values, list(made.outputs), replace_graph_outputs=True)
    graph.insert_before(layer, made)


def _is_table(weight: ir.Value | None) -> bool:
    from fusile.graph.tensors import is_named_buffer

    return weight is not None and is_named_buffer(str(weight.name))


_ADD, _MUL = frozenset({"Add"}), frozenset({"Mul"})
RULES: tuple[tuple[Rule, frozenset[str]], ...] = (
    (group_norm, _ADD),
    (layer_norm, _ADD),
    (rms_norm, _MUL),
    (gelu, _MUL),
    (swish, _MUL),
    (hard_swish, frozenset({"Mul", "Div"})),
    (gemm, frozenset({"Gemm"})),
    (linear, frozenset({"MatMul"})),
    (linear_bias, _ADD),
    (merged_recurrence, frozenset({"Reshape", "Squeeze"})),
    (picked, frozenset({"Squeeze"})),
)
"""In the order in which they run; `linear_bias` needs what `linear` made."""

Attributes: TypeAlias = Mapping[str, ir.Attr]
