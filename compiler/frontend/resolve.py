"""What the canonical form had to leave open for want of shapes, decided once they are inferred."""

from __future__ import annotations

import onnx_ir as ir

from fusile.frontend.inline import take_over
from fusile.frontend.windows import WINDOWED, settle_node

_SOFTMAXES = frozenset({"Softmax", "LogSoftmax", "Hardmax"})


def resolve(model: ir.Model) -> None:
    """Resolve auto_pad, missing kernel shapes and flattened softmaxes, in place.

    For a canonical model whose values have inferred shapes: they are taken to be right. Nodes that stay as
    they are have dimensions that matter and are symbolic.
    """
    for node in list(model.graph.all_nodes()):
        if node.domain != "":
            continue
        if node.op_type in WINDOWED:
            settle_node(node, None)
        elif node.op_type == "Reshape":
            _join_softmax(node)


def softmax_axis(shape: ir.ShapeProtocol, axis: int) -> int | None:
    """The one long axis that softmax over all dimensions from `axis` on is about; None if there are more."""
    rank = len(shape)
    long = [index for index in range(axis % max(rank, 1), rank) if shape[index] != 1]
    if len(long) > 1:
        return None
    return long[0] if long else rank - 1


def _join_softmax(reshape: ir.Node) -> None:
    """Reshape(Softmax(Flatten(x, k)), Shape(x)) is Softmax(x, axis) if x has one long dimension from k on."""
    softmax, shape = _producer(reshape, 0), _producer(reshape, 1)
    if softmax is None or shape is None or softmax.op_type not in _SOFTMAXES or shape.op_type != "Shape":
        return
    flatten = _producer(softmax, 0)
    if flatten is None or flatten.op_type != "Flatten" or flatten.inputs[0] is not shape.inputs[0]:
        return
    x, graph = shape.inputs[0], reshape.graph
    partial = shape.attributes.get_int("start", 0) or "end" in shape.attributes
    if (
        x is None
        or x.shape is None
        or graph is None
        or partial
        or softmax.attributes.get_int("axis", -1) not in (-1, 1)
    ):
        return
    axis = softmax_axis(x.shape, flatten.attributes.get_int("axis", 1))
    if axis is None:
        return
    joined = ir.Node(
        "", softmax.op_type, [x], [ir.AttrInt64("axis", axis)], num_outputs=1, name=f"{reshape.name}/joined"
    )
    reshape.prepend(joined)
    take_over(reshape.outputs[0], joined.outputs[0])
    graph.remove(reshape, safe=True)
    for node in (softmax, flatten, shape):
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output() and node.graph is not None:
            node.graph.remove(node, safe=True)


def _producer(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return value.producer() if value is not None else None
