"""Operators that ONNX defines by other operators, replaced by those definitions.

Some definitions are fixed; others are built for a node from its attributes and its inputs' types. The
types are those of the graph's values, or ONNX's inference where the graph has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir import serde

from fusile.errors import InvalidModelError, UnsafeModelError, show_name
from fusile.frontend.canonical import canonicalise_nodes, lift_constants
from fusile.frontend.inline import instantiate, normal_imports, stamp_versions
from fusile.frontend.limits import MAX_DEPTH, MAX_NODES
from fusile.frontend.names import Names, settle_names
from fusile.frontend.rules import CANONICAL_OPSET
from fusile.frontend.types import infer_types
from fusile.graph.proto import type_proto

Known = Callable[[str, str], bool]


def expand(model: ir.Model, known: Known) -> list[ir.Node]:
    """Replace nodes that `known(domain, op_type)` denies by ONNX's definition of them, in place.

    What a definition consists of is expanded too where that is unknown. Returns the nodes that are left
    and unknown: nothing defines them. The model must be canonical, and is so afterwards.

    Raises InvalidModelError where a definition does not fit its node.
    """
    wave = [node for node in model.graph.all_nodes() if not known(node.domain, node.op_type)]
    if not wave:
        return []
    left: list[ir.Node] = []
    names = Names(model)
    count = 0
    for _ in range(MAX_DEPTH):
        untyped = any(_is_built(node) and not all(map(_is_typed, node.inputs)) for node in wave)
        types = infer_types(model) if untyped else {}
        fresh: list[ir.Node] = []
        for node in wave:
            function = _definition(node, types)
            if function is None:
                left.append(node)
                continue
            fresh += _expanded(model, node, function, names)
            if len(fresh) + count > MAX_NODES:
                raise UnsafeModelError("The model has too many nodes once its operators are expanded")
        count += len(fresh)
        wave = [node for node in fresh if not known(node.domain, node.op_type)]
        if not wave:
            settle_names(model)
            return left
    raise UnsafeModelError("Definitions are nested too deep", where=f"node {show_name(wave[0].name)}")


def _expanded(model: ir.Model, node: ir.Node, function: ir.Function, names: Names) -> list[ir.Node]:
    """Put a definition in place of a node; returns the new nodes, in canonical form."""
    stamp_versions(function.all_nodes(), normal_imports(function.opset_imports), {"": CANONICAL_OPSET})
    body = instantiate(node, function)
    lift_constants(model, names, body)
    return canonicalise_nodes(model, [item for item in body if item.graph is not None], names)


def _is_typed(value: ir.Value | None) -> bool:
    return value is None or value.type is not None


def _is_built(node: ir.Node) -> bool:
    """Whether the definition of a node depends on the types of its inputs."""
    schema = _schema(node)
    return schema is not None and bool(schema.has_context_dependent_function)


def _schema(node: ir.Node) -> Any:
    """The schema of a node's operator, None where ONNX has none. The stubs of onnx lack what is used here."""
    try:
        if node.domain == "":
            return onnx.defs.get_schema(node.op_type, CANONICAL_OPSET, "")
        return onnx.defs.get_schema(node.op_type, domain=node.domain)
    except onnx.defs.SchemaError:
        return None


def _definition(node: ir.Node, types: Mapping[str, onnx.TypeProto]) -> ir.Function | None:
    """ONNX's definition of a node's operator, None where there is none."""
    schema = _schema(node)
    if schema is None or not (schema.has_function or schema.has_context_dependent_function):
        return None
    if schema.has_context_dependent_function:
        version = max(v for v in schema.context_dependent_function_opset_versions if v <= CANONICAL_OPSET)
        given = [_input_type(value, types) for value in node.inputs]
        text = serde.serialize_node(node).SerializeToString()
        data = schema.get_context_dependent_function_with_opset_version(version, text, given)
    else:
        version = max(v for v in schema.function_opset_versions if v <= CANONICAL_OPSET)
        data = schema.get_function_with_opset_version(version)
    if not data:
        return None
    try:
        function = onnx.FunctionProto.FromString(data)
        del function.output[len(node.outputs) :]  # those that the node has not are made by nothing
        _pass_outer_values(node, function)
        return serde.deserialize_function(function)
    except Exception as error:
        raise InvalidModelError(
            f"ONNX's definition of {node.op_type} does not fit a node",
            where=f"node {show_name(node.name)}",
            why=str(error),
        ) from error


def _pass_outer_values(node: ir.Node, function: onnx.FunctionProto) -> None:
    """Make inputs of what a definition reads from around its node.

    A node with a graph, such as SequenceMap, has it put into its definition, and the graph may read values
    from around the node, which the definition of an operator cannot see.
    """
    graphs = [item.as_graph() for item in node.attributes.values() if item.type == ir.AttributeType.GRAPH]
    if not graphs:
        return
    outer: dict[str, ir.Value] = {}
    for graph in graphs:
        inside = {graph, *graph.subgraphs()}
        for inner in graph.all_nodes():
            outer.update(
                {value.name or "": value for value in inner.inputs if value and value.graph not in inside}
            )
    formals = len(function.input)
    inputs = [*node.inputs, *[None] * (formals - len(node.inputs)), *outer.values()]
    function.input.extend(outer)
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs[formals:], formals):
        node.replace_input_with(index, value)


def _input_type(value: ir.Value | None, types: Mapping[str, onnx.TypeProto]) -> bytes:
    if value is None:
        return b""
    if value.type is not None:
        return bytes(type_proto(value.type, value.shape).SerializeToString())
    found = types.get(value.name or "")
    return bytes(found.SerializeToString()) if found is not None else b""
