"""Names of values and nodes: unique in the whole model, never empty, the model's own where possible."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from fusile.dims import NAMELESS, fix, parse
from fusile.errors import InvalidModelError, UnknownDimensionError, UsageError, show_name, show_names

_LONGEST = 200

UNNAMED_AXES = "fusile.unnamed_axes"
"""Under this key an input's `meta` has the axes whose symbols were made up here, with what the file calls
them, if anything."""


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph and those inside of its nodes, outer before inner."""
    yield model.graph
    yield from model.graph.subgraphs()


class Names:
    """The names in use in a model, and fresh ones."""

    def __init__(self, model: ir.Model) -> None:
        self._values: set[str] = set()
        self._nodes: set[str] = set()
        self._counts: Counter[str] = Counter()
        for graph in all_graphs(model):
            self._values.update(value.name for value in graph.inputs if value.name)
            self._values.update(graph.initializers)
            for node in graph:
                self._nodes.add(node.name or "")
                self._values.update(value.name for value in node.outputs if value.name)

    def value(self, base: str) -> str:
        """A name for a value: `base`, or base_1, base_2, ... where that is taken."""
        return self._fresh(base or "value", self._values)

    def node(self, base: str) -> str:
        """A name for a node, likewise."""
        return self._fresh(base or "node", self._nodes)

    def _fresh(self, base: str, taken: set[str]) -> str:
        base = base[-_LONGEST:]
        name = base
        while name in taken:
            self._counts[base] += 1
            name = f"{base}_{self._counts[base]}"
        taken.add(name)
        return name


def settle_names(model: ir.Model) -> None:
    """Make all names of values and of nodes unique and non-empty, in place.

    Inputs, outputs and initialisers keep theirs before others do; outputs that a node does not make ("")
    are given names where more outputs follow, and are dropped where none do.
    """
    graph = model.graph
    values: set[str] = set()
    counts: Counter[str] = Counter()
    done: set[ir.Value] = set()

    def settle(value: ir.Value, base: str) -> None:
        if value in done:
            return
        done.add(value)
        name = wanted = value.name or base
        while name in values:
            counts[wanted] += 1
            name = f"{wanted}_{counts[wanted]}"
        values.add(name)
        if value.name != name:
            value.name = name

    _settle_nodes(model)
    for index, value in enumerate(graph.inputs):
        settle(value, f"input_{index}")
    for index, value in enumerate(graph.outputs):
        settle(value, f"output_{index}")
    for value in tuple(graph.initializers.values()):
        settle(value, "initializer")
    for inner in all_graphs(model):
        for index, value in enumerate(inner.inputs):
            settle(value, f"{inner.name or 'graph'}_input_{index}")
        for node in inner:
            _drop_omitted(node)
            for index, value in enumerate(node.outputs):
                settle(value, f"{node.name}_out{index}")


def _settle_nodes(model: ir.Model) -> None:
    taken: set[str] = set()
    counts: Counter[str] = Counter()
    for graph in all_graphs(model):
        for node in graph:
            made = node.outputs[0].name if node.outputs else ""
            name = wanted = node.name or (f"{node.op_type}_{made}" if made else node.op_type)
            while name in taken:
                counts[wanted] += 1
                name = f"{wanted}_{counts[wanted]}"
            taken.add(name)
            if node.name != name:
                node.name = name


def _drop_omitted(node: ir.Node) -> None:
    """Drop trailing outputs without a name and trailing inputs that are not there."""
    outputs = len(node.outputs)
    while outputs > 1 and not node.outputs[outputs - 1].name and not node.outputs[outputs - 1].uses():
        outputs -= 1
    node.resize_outputs(outputs)
    inputs = len(node.inputs)
    while inputs and node.inputs[inputs - 1] is None:
        inputs -= 1
    node.resize_inputs(inputs)


def settle_dims(model: ir.Model, dims: Mapping[str, int] | None) -> None:
    """Name the unnamed and negative dimensions of inputs, then fix those in `dims`, in place.

    Raises UsageError for a name that the model has not, or a size that is none.
    """
    known: dict[str, None] = {}
    for graph in all_graphs(model):
        for value in graph.inputs:
            for dim in value.shape or ():
                if isinstance(dim, ir.SymbolicDim) and dim.value and dim.value not in NAMELESS:
                    known[dim.value] = None
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = _named(value, known)
    unknown = [name for name in dims or {} if name not in known]
    if unknown:
        raise UnknownDimensionError(unknown, show_names(known, 20) if known else "none")
    for name, size in (dims or {}).items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise UsageError(
                f"Dimension {show_name(name)} cannot be {size!r}", todo="Give an integer from 0 up"
            )
    if dims:
        _fix_dims(model, dims)
    _name_arithmetic(model, known)


def _fix_dims(model: ir.Model, dims: Mapping[str, int]) -> None:
    """Put sizes in for names, in all shapes."""
    for graph in all_graphs(model):
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            if value.shape is not None:
                value.shape = ir.Shape(
                    [
                        fix(dim.value, dims) if isinstance(dim, ir.SymbolicDim) and dim.value else dim
                        for dim in value.shape
                    ]
                )


def _name_arithmetic(model: ir.Model, known: dict[str, None]) -> None:
    """Give inputs a symbol for each dimension that is arithmetic over names which no dimension has alone:
    nothing says what those are.
    """
    shapes = [value.shape for value in model.graph.inputs if value.shape is not None]
    names = {dim.value for shape in shapes for dim in shape if isinstance(dim, ir.SymbolicDim)}
    made: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            text = dim.value if isinstance(dim, ir.SymbolicDim) else None
            tree = parse(text) if text else None
            if text is None or tree is None or isinstance(tree, ast.Name):
                continue
            if any(isinstance(part, ast.Name) and part.id not in names for part in ast.walk(tree)):
                if text not in made:
                    made[text] = _new_symbol(value, axis, known)
                assert value.shape is not None
                shape = list(value.shape)
                shape[axis] = ir.SymbolicDim(made[text])
                value.shape = ir.Shape(shape)
                value.meta.setdefault(UNNAMED_AXES, {})[axis] = text


def _new_symbol(value: ir.Value, axis: int, known: dict[str, None]) -> str:
    symbol = f"{value.name}_d{axis}"
    while symbol in known:
        symbol += "_"
    known[symbol] = None
    return symbol


def _named(value: ir.Value, known: dict[str, None]) -> ir.Shape:
    """The shape of an input with a symbol for every dimension whose size is not given."""
    found: list[int | ir.SymbolicDim] = []
    assert value.shape is not None
    for axis, dim in enumerate(value.shape):
        named = isinstance(dim, ir.SymbolicDim) and dim.value and dim.value not in NAMELESS
        if named or (isinstance(dim, int) and dim >= 0):
            found.append(dim)
            continue
        found.append(ir.SymbolicDim(_new_symbol(value, axis, known)))
        said = dim.value if isinstance(dim, ir.SymbolicDim) else None
        value.meta.setdefault(UNNAMED_AXES, {})[axis] = said or None
    return ir.Shape(found)


def sort_nodes(graph: ir.Graph) -> None:
    """Sort a graph and those inside topologically, in place. Raises InvalidModelError that names a cycle."""
    try:
        graph.sort()
    except ValueError as error:
        cycle = _cycle(graph)
        raise InvalidModelError(
            "The graph has a cycle",
            why=" -> ".join(show_name(node.name or node.op_type) for node in cycle[:20]),
        ) from error


def _cycle(graph: ir.Graph) -> list[ir.Node]:
    """Nodes that wait for each other, the first again at the end. Inner graphs are part of their node."""
    state: dict[ir.Node, int] = {}
    for start in graph.all_nodes():
        if start in state:
            continue
        path: list[tuple[ir.Node, Iterator[ir.Node]]] = [(start, _needs(start))]
        state[start] = 1
        while path:
            node, needs = path[-1]
            following = next(needs, None)
            if following is None:
                state[node] = 2
                path.pop()
            elif state.get(following) == 1:
                nodes = [item for item, _ in path]
                return [*nodes[nodes.index(following) :], following][::-1]
            elif following not in state:
                state[following] = 1
                path.append((following, _needs(following)))
    return []


def _needs(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None:
            yield producer
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from graph
