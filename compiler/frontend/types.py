"""Types that a file leaves out, from ONNX's own inference: for what must be known before ours can run."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx_ir import serde

from fusile.graph.proto import to_proto, type_of_proto

Types = dict[str, onnx.TypeProto]

_INFERENCE_BYTES = 1024

_OF_STRINGS = frozenset({("com.microsoft", "Tokenizer")})
"""Operators that ONNX's inference does not know and that make strings."""


def infer_types(model: ir.Model) -> Types:
    """The types of values by name, as ONNX's inference finds them. Large weights stay where they are."""
    copy = model.clone()
    for name, value in tuple(copy.graph.initializers.items()):
        if value.const_value is not None and value.const_value.nbytes > _INFERENCE_BYTES:
            del copy.graph.initializers[name]
            copy.graph.inputs.append(value)
    for node in copy.graph.all_nodes():
        if (node.domain, node.op_type) in _OF_STRINGS and node.outputs[0].type is None:
            node.outputs[0].type = ir.TensorType(ir.DataType.STRING)
    try:
        proto = onnx.shape_inference.infer_shapes(to_proto(copy), check_type=False, strict_mode=False)
    except Exception:  # it helps where it can, and its errors are about what nobody asked for
        proto = to_proto(copy)
    found: Types = {}
    stack = [proto.graph]
    while stack:
        graph = stack.pop()
        for infos in (graph.input, graph.output, graph.value_info):
            found.update({info.name: info.type for info in infos if info.type.WhichOneof("value")})
        for tensor in graph.initializer:
            found[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        for node in graph.node:
            stack += [item.g for item in node.attribute if item.type == onnx.AttributeProto.GRAPH]
    return found


def declare_missing(model: ir.Model) -> None:
    """Give values between nodes and inputs of inner graphs without a declared type or shape those that
    inference finds, in place.
    """
    found = infer_types(model)
    made = [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in [*made, *(value for graph in model.graph.subgraphs() for value in graph.inputs)]:
        proto = found.get(value.name or "")
        if proto is None:
            continue
        if value.type is None:
            value.type = type_of_proto(proto)
        if value.shape is None and proto.WhichOneof("value") == "tensor_type":
            value.shape = serde.deserialize_type_proto_for_shape(proto)
