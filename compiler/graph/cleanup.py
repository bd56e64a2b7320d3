"""Passes on the canonical graph that remove what does nothing. None of them changes an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
import onnx_ir as ir

_Option = onnx.defs.OpSchema.FormalParameterOption

_SMALL = 4096


def clean_up(model: ir.Model) -> None:
    """Drop identities, dead nodes, their unread optional outputs and unread initialisers, in place."""
    drop_identities(model)
    drop_dead(model)


def same_value(node: ir.Node) -> ir.Value | None:
    """The value that an Identity hands on; None for every other node."""
    return node.inputs[0] if node.op_type == "Identity" and node.domain == "" else None


def drop_identities(model: ir.Model) -> None:
    """Identity(x) is x. Stays where it stands between a graph's outputs and its inputs, or an outer graph."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in tuple(graph):
            source, result = same_value(node), node.outputs[0]
            if source is None:
                continue
            if result.is_graph_output():
                # The output keeps its name; the source must be a node's, of this graph, and no output itself.
                producer = source.producer()
                if producer is None or producer.graph is not graph or source.is_graph_output():
                    continue
                name, result.name = result.name, None
                source.name = name
            if source.type is None:
                source.type = result.type
            if source.shape is None:
                source.shape = result.shape
            result.replace_all_uses_with(source, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def drop_dead(model: ir.Model) -> None:
    """Drop nodes whose outputs nothing reads, their unread optional outputs, and unread initialisers."""
    _drop_dead_nodes(model.graph)
    for name, value in tuple(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]


def _drop_dead_nodes(graph: ir.Graph) -> None:
    # Backwards, so that what only dead nodes read is dead when its turn comes.
    for node in reversed(tuple(graph)):
        if not any(_is_read(value) for value in node.outputs):
            graph.remove(node, safe=True)
            for inner in _inner_graphs(node):
                _release(inner)
            continue
        for inner in _inner_graphs(node):
            _drop_dead_nodes(inner)
        _drop_unread_outputs(node)


def _release(graph: ir.Graph) -> None:
    """Let the nodes of a graph that is gone read nothing any more."""
    for node in tuple(graph.all_nodes()):
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)


def _drop_unread_outputs(node: ir.Node) -> None:
    """Drop the trailing outputs that are optional and unread."""
    count = len(node.outputs)
    if count < 2 or _is_read(node.outputs[-1]):
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, domain=node.domain)
    except onnx.defs.SchemaError:
        return
    training = node.attributes.get_int("training_mode", 0) if "training_mode" in schema.attributes else 0
    if training or len(schema.outputs) < count:
        return
    while (
        count > 1
        and schema.outputs[count - 1].option == _Option.Optional
        and not _is_read(node.outputs[count - 1])
    ):
        count -= 1
    node.resize_outputs(count)


def take_branches(model: ir.Model, flags: Mapping[ir.Value, bool]) -> bool:
    """Put the branch that is taken in the place of every If of the main graph whose condition is in `flags`,
    in place. Answers whether there was one.
    """
    graph, found = model.graph, False
    for node in tuple(graph):
        condition = node.inputs[0] if node.op_type == "If" and node.domain == "" else None
        if condition is None or condition not in flags:
            continue
        taken, other = ("then_branch", "else_branch") if flags[condition] else ("else_branch", "then_branch")
        branch = node.attributes[taken].as_graph()
        _release(node.attributes[other].as_graph())
        results = list(branch.outputs)
        branch.outputs.clear()
        for key, value in tuple(branch.initializers.items()):
            del branch.initializers[key]
            graph.register_initializer(value)
        for inner in tuple(branch):
            branch.remove(inner)
            graph.insert_before(node, inner)
        for result, old in zip(results, node.outputs, strict=True):
            same = ir.node("Identity", [result], name=f"{node.name}_{old.name}", version=node.version)
            new, name = same.outputs[0], old.name
            old.name, new.name, new.type = None, name, result.type or old.type
            graph.insert_before(node, same)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        found = True
    return found


def merge_initializers(model: ir.Model) -> None:
    """Equal initialisers of up to 4 KiB become one, in place: exporters give each node its own constants.

    For kernels only. Where a model is trained further, equal is not tied: all biases start as zeros.
    """
    first: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}
    for name, value in tuple(model.graph.initializers.items()):
        tensor = value.const_value
        if (
            tensor is None
            or tensor.dtype == ir.DataType.STRING
            or tensor.nbytes > _SMALL
            or value.is_graph_output()
        ):
            continue
        shape = tuple(int(dim) for dim in tensor.shape.numpy())
        same = first.setdefault((tensor.dtype, shape, tensor.tobytes()), value)
        if same is not value:
            value.replace_all_uses_with(same)
            del model.graph.initializers[name]


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _inner_graphs(node: ir.Node) -> Iterable[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
