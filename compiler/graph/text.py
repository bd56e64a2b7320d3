"""A canonical graph as text for people: every name quoted where it is odd, no data of any tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from fusile.errors import show_name

_LONGEST = 16


def graph_text(model: ir.Model) -> str:
    """The graph with its inputs, initialisers and nodes in order, one a line."""
    versions = ", ".join(f"{domain or 'ai.onnx'} {n}" for domain, n in sorted(model.opset_imports.items()))
    return "\n".join([f"# opset {versions}", *_graph(model.graph, "")]) + "\n"


def _graph(graph: ir.Graph, indent: str) -> Iterator[str]:
    yield f"{indent}graph {_name(graph.name)}:"
    inner = indent + "  "
    for value in graph.inputs:
        yield f"{inner}input {_value(value)}"
    for value in graph.initializers.values():
        yield f"{inner}initialiser {_value(value)}"
    for node in graph:
        yield from _node(node, inner)
    for value in graph.outputs:
        yield f"{inner}output {_value(value)}"


def _node(node: ir.Node, indent: str) -> Iterator[str]:
    results = ", ".join(_value(value) for value in node.outputs)
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    inputs = ", ".join("-" if value is None else _name(value.name) for value in node.inputs)
    plain: list[str] = []
    graphs: list[ir.Graph] = []
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs.append(attribute.as_graph())
        else:
            plain.append(f"{_name(name)}={_attribute(attribute)}")
    listed = f" {{{', '.join(plain)}}}" if plain else ""
    yield f"{indent}{results} = {_name(operator)}({inputs}){listed}    # {_name(node.name)}"
    for graph in graphs:
        yield from _graph(graph, indent + "  ")


def _attribute(attribute: ir.Attr) -> str:
    value = attribute.value
    if isinstance(value, ir.TensorProtocol):
        return f"{value.dtype.name.lower()}{list(value.shape)}"
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > _LONGEST:
        return f"{list(value[:_LONGEST])!r} and {len(value) - _LONGEST} more"
    return show_name(value) if isinstance(value, str) else repr(value)


def _value(value: ir.Value) -> str:
    if value.dtype is None:
        return _name(value.name)
    kind = value.dtype.name.lower()
    if value.shape is None:
        return f"{_name(value.name)}: {kind}"
    dims = (_name(d.value) if isinstance(d, ir.SymbolicDim) else str(d) for d in value.shape)
    return f"{_name(value.name)}: {kind}[{', '.join(dims)}]"


def _name(name: str | None) -> str:
    if name and name.isprintable() and not set(name) & set(" ,()[]{}='\"#"):
        return name
    return show_name(name)
