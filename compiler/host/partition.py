"""Which nodes of a graph are steps of the host, and how the others form regions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fusile.graph.cleanup import same_value
from fusile.graph.types import is_numeric
from fusile.passes.to_tensor import takes


@dataclass(frozen=True, slots=True)
class HostPart:
    """One node that the host runs; `reads` are its inputs and what its graphs read from around them."""

    node: ir.Node
    reads: tuple[ir.Value, ...]


@dataclass(frozen=True, slots=True)
class RegionPart:
    """Nodes that are compiled together, in order. `constants` are the initialisers that they read."""

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...]


Part = HostPart | RegionPart


def needs_host(node: ir.Node) -> bool:
    """Whether a node cannot be part of a region: the tensor program does not define it, with its graphs, or
    it reads or makes what is no tensor of numbers.

    A value without a type is a tensor, unless a step of the host made it.
    """
    if not takes(node):
        return True
    for value in (*node.inputs, *node.outputs):
        if value is None or is_numeric(value.type):
            continue
        if value.type is not None:
            return True
        producer = value.producer()
        if producer is not None and producer is not node and not takes(producer):
            return True
    return False


def inner_graphs(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """The graphs that a node holds, by the names of its attributes."""
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()


def reads_of(node: ir.Node) -> list[ir.Value]:
    """What a node reads: its inputs, and what its graphs read from around it, each once."""
    found = dict.fromkeys(value for value in node.inputs if value is not None)
    for _, graph in inner_graphs(node):
        found.update(dict.fromkeys(captured(graph)))
    return list(found)


def captured(graph: ir.Graph) -> list[ir.Value]:
    """What a graph and the graphs in it read from around it."""
    inside = {graph, *graph.subgraphs()}
    found: dict[ir.Value, None] = {}
    for node in graph.all_nodes():
        found.update(
            {value: None for value in node.inputs if value is not None and value.graph not in inside}
        )
    found.update({value: None for value in graph.outputs if value.graph not in inside})
    return list(found)


def forward_identities(model: ir.Model) -> dict[ir.Value, ir.Value]:
    """Let every node read past Identity nodes, in place. Answers which value each of their results is."""
    source: dict[ir.Value, ir.Value] = {}
    for graph in (model.graph, *model.graph.subgraphs()):  # outer before inner, so sources are settled
        for node in graph:
            given = same_value(node)
            if given is None:
                continue
            result = node.outputs[0]
            source[result] = source.get(given, given)
            for use in tuple(result.uses()):
                use.node.replace_input_with(use.idx, source[result])
    return source


def partition(
    graph: ir.Graph,
    results: Sequence[ir.Value],
    same: Mapping[ir.Value, ir.Value],
    seen: Collection[str] = (),
) -> list[Part]:
    """The steps of a graph in an order in which they can run.

    `results` are the values that leave it; `same` the results of Identity nodes, which are no steps. Every
    node has a level: a region holds all the nodes of one level, and a step of the host after a region is of
    the next level. So there are as few regions as the steps between them allow. What reads a value in `seen`
    comes after the region that makes it, too: it is compiled for the value's elements.
    """
    nodes = [node for node in graph if not any(value in same for value in node.outputs)]
    reads = {node: reads_of(node) for node in nodes}
    hosted = {node: needs_host(node) for node in nodes}
    level: dict[ir.Node, int] = {}
    for node in nodes:
        level[node] = 0
        for value in reads[node]:
            producer = value.producer()
            if producer is not None and producer in level:
                later = not hosted[producer] and (hosted[node] or value.name in seen)
                level[node] = max(level[node], level[producer] + later)
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        for value in reads[node]:
            readers.setdefault(value, []).append(node)
    leaving = set(results)
    parts: list[Part] = []
    for depth in range(max(level.values(), default=-1) + 1):
        here = [node for node in nodes if level[node] == depth]
        parts += [HostPart(node, tuple(reads[node])) for node in here if hosted[node]]
        inside = {node: None for node in here if not hosted[node]}
        if inside:
            parts.append(_region(tuple(inside), reads, readers, leaving))
    return parts


def _region(
    nodes: tuple[ir.Node, ...],
    reads: Mapping[ir.Node, Sequence[ir.Value]],
    readers: Mapping[ir.Value, Sequence[ir.Node]],
    leaving: set[ir.Value],
) -> RegionPart:
    inside = set(nodes)
    made = [value for node in nodes for value in node.outputs]
    own = set(made)
    read = dict.fromkeys(value for node in nodes for value in reads[node] if value not in own)
    return RegionPart(
        nodes,
        tuple(value for value in read if not value.is_initializer()),
        tuple(v for v in made if v in leaving or any(n not in inside for n in readers.get(v, ()))),
        tuple(value for value in read if value.is_initializer()),
    )
