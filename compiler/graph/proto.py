"""A graph back to ONNX's own message, map types included."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import onnx
import onnx_ir as ir
from onnx_ir import serde

from fusile.graph.types import MapType


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as a ModelProto; weights are copied into it. Raises ValueError past protobuf's 2 GiB."""
    mapped = {value: value.type for value in _values(model) if _has_map(value.type)}
    try:
        for value in mapped:
            value.type = None
        proto = serde.serialize_model(model)
    finally:
        for value, found in mapped.items():
            value.type = found
    types = {value.name: type_proto(found) for value, found in mapped.items() if found is not None}
    for graph in _graphs(proto.graph):
        for infos in (graph.input, graph.output, graph.value_info):
            for info in infos:
                if info.name in types:
                    info.type.CopyFrom(types[info.name])
    return proto


def type_proto(found: ir.TypeProtocol | MapType, shape: ir.ShapeProtocol | None = None) -> onnx.TypeProto:
    """A type, with the shape of the tensors in it, as a TypeProto."""
    proto = onnx.TypeProto()
    match found:
        case MapType():
            proto.map_type.key_type = int(found.key)
            proto.map_type.value_type.CopyFrom(type_proto(found.value, shape))
        case ir.SequenceType():
            proto.sequence_type.elem_type.CopyFrom(type_proto(_inner(found), shape))
        case ir.OptionalType():
            proto.optional_type.elem_type.CopyFrom(type_proto(_inner(found), shape))
        case _:
            serde.serialize_type_into(proto, found)
            if shape is not None:
                serde.serialize_shape_into(proto, shape)
    return proto


def type_of_proto(proto: onnx.TypeProto) -> ir.TypeProtocol | None:
    """The type that a TypeProto names, None where it names none."""
    match proto.WhichOneof("value"):
        case "sequence_type":
            inner = type_of_proto(proto.sequence_type.elem_type)
            return None if inner is None else ir.SequenceType(inner)
        case "optional_type":
            inner = type_of_proto(proto.optional_type.elem_type)
            return None if inner is None else ir.OptionalType(inner)
        case "map_type":
            inner = type_of_proto(proto.map_type.value_type)
            if inner is None:
                return None
            return cast(ir.TypeProtocol, MapType(ir.DataType(proto.map_type.key_type), inner))
    return serde.deserialize_type_proto_for_type(proto)


def _inner(found: ir.SequenceType | ir.OptionalType) -> ir.TypeProtocol:
    inner = found.elem_type
    assert not isinstance(inner, ir.DataType)
    return inner


def _has_map(found: object) -> bool:
    while isinstance(found, ir.SequenceType | ir.OptionalType):
        found = found.elem_type
    return isinstance(found, MapType)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.inputs
        yield from graph.outputs
        for node in graph:
            yield from node.outputs


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)
