"""The promises of the canonical graph, checked: what the frontend ends, nothing behind it has to think of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from fusile.errors import InternalError, show_name


def verify_graph(model: ir.Model, opset: int | None = None) -> None:
    """Check a canonical graph. Raises InternalError.

    It has one opset (`opset` where given), unique names, nodes after what they read, constants as
    initialisers with data, no references to attributes of functions and no functions.
    """
    if opset is not None and model.opset_imports.get("", opset) != opset:
        _fail("the graph", f"standard operators are of opset {model.opset_imports.get('')}, not {opset}")
    if model.functions:
        _fail("the model", f"{len(model.functions)} functions are not inlined")
    _Check().graph(model.graph, set())


def _fail(where: str, what: str) -> None:
    raise InternalError(what, where=where)


class _Check:
    def __init__(self) -> None:
        self.values: set[str] = set()
        self.nodes: set[str] = set()

    def graph(self, graph: ir.Graph, outer: set[ir.Value]) -> None:
        """One graph and, with what it defines, the graphs inside it."""
        where = f"graph {show_name(graph.name)}"
        known = set(outer)
        for v in graph.inputs:
            if v.const_value is not None or (v.name in graph.initializers):
                _fail(where, f"the input {show_name(v.name)} is also an initialiser")
            self._define(v, known, where)
        for name, v in graph.initializers.items():
            if v.const_value is None:
                _fail(where, f"the initialiser {show_name(name)} has no data")
            if v.name != name:
                _fail(where, f"the initialiser {show_name(v.name)} is listed as {show_name(name)}")
            self._define(v, known, where)
        for node in graph:
            self._node(node, known)
        for v in graph.outputs:
            if v not in known:
                _fail(where, f"the output {show_name(v.name)} is defined nowhere")

    def _define(self, v: ir.Value, known: set[ir.Value], where: str) -> None:
        if not v.name:
            _fail(where, "a value has no name")
        elif v.name in self.values:
            _fail(where, f"two values are called {show_name(v.name)}")
        else:
            self.values.add(v.name)
        known.add(v)

    def _node(self, node: ir.Node, known: set[ir.Value]) -> None:
        where = f"node {show_name(node.name)} ({node.op_type})"
        if not node.name:
            _fail(where, "a node has no name")
        elif node.name in self.nodes:
            _fail(where, "two nodes have this name")
        else:
            self.nodes.add(node.name)
        if node.op_type == "Constant" and node.domain == "":
            _fail(where, "a constant is a node and no initialiser")
        for k, v in enumerate(node.inputs):
            if v is not None and v not in known:
                _fail(where, f"input {k} ({show_name(v.name)}) is not defined before")
        for a in node.attributes.values():
            if a.is_ref():
                _fail(where, f"the attribute {show_name(a.name)} stands for one of a function")
        for inner in _inner_graphs(node):
            self.graph(inner, known)
        for v in node.outputs:
            self._define(v, known, where)


def _inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    for a in node.attributes.values():
        if a.type == ir.AttributeType.GRAPH:
            yield a.as_graph()
        elif a.type == ir.AttributeType.GRAPHS:
            graphs: Iterable[ir.Graph] = a.as_graphs()
            yield from graphs
