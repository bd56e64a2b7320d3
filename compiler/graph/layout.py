"""Channels-last inside: one pass decides for every value of rank 3 or more how its axes lie.

Operators with windows want their channels last; operators that name no axis, or whose axes can be renamed,
follow their neighbours; everything else keeps ONNX's order. The cheapest choice is a minimum cut: a node of
the network per operator (two per Transpose), an edge for every value that would have to be transposed
between operators that chose differently. Inputs and outputs of the graph keep their layout.

What was decided is written into the graph: `channels_last` on operators with windows or a channel axis,
renamed axes on the others, a Transpose where the layouts meet, `fusile::Arrange` (aligned, then permuted) on
constants, and permuted shapes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fusile.graph.recognise import DOMAIN, constant, dims, initialiser, integer, producer, single

_MUCH = 1 << 40

WINDOWS = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "AveragePool",
        "LpPool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "GlobalLpPool",
        "Resize",
        "LRN",
        "DepthToSpace",
        "SpaceToDepth",
    }
)
"""Operators that are computed with channels last."""
CHANNELS = frozenset({"BatchNormalization", "InstanceNormalization", "GroupNormalization"})
"""Operators with a channel axis that may lie anywhere."""
ELEMENTWISE = frozenset(
    (
        "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor"
        " Cast Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid"
        " HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not"
        " Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub"
        " Sum Swish Tan Tanh ThresholdedRelu Where Xor"
    ).split()
)
AXIS = frozenset({"Concat", "Split", "Softmax", "LogSoftmax", "Hardmax", "LpNormalization"})
"""Operators with one `axis` attribute that keep the rank."""
REDUCTIONS = frozenset(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum"
    " ReduceSumSquare".split()
)
_AXES_INPUT: Mapping[str, int] = {**dict.fromkeys(REDUCTIONS, 1), "Slice": 3, "Pad": 3}
_SCALAR_INPUTS: Mapping[str, frozenset[int]] = {
    "Clip": frozenset({1, 2}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Pad": frozenset({1, 2, 3}),
    "Split": frozenset({1}),
    **dict.fromkeys(REDUCTIONS, frozenset({1})),
}
"""Inputs that are no tensors of the operator's shape."""


def last_order(rank: int) -> tuple[int, ...]:
    """ONNX's axes in channels-last order: batch, spatial axes, channels."""
    return (0, *range(2, rank), 1)


def first_order(rank: int) -> tuple[int, ...]:
    """Channels-last axes in ONNX's order."""
    return (0, rank - 1, *range(1, rank - 1))


def channels_last(model: ir.Model) -> ir.Model:
    """Give every operator of a recognised graph the layout that needs the fewest transposes, in place."""
    _batch_first(model)
    for graph in (model.graph, *model.graph.subgraphs()):
        _Rewriter(graph, _plan(graph)).run()
    cancel_transposes(model)
    RemoveUnusedNodesPass()(model)
    return model


# ---- which side --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Plan:
    """Nodes whose inputs, or outputs, lie with channels last."""

    inside: set[ir.Node] = field(default_factory=set)
    outside: set[ir.Node] = field(default_factory=set)


def rank_of(value: ir.Value | None) -> int:
    """The rank of a value; 0 where unknown."""
    return len(value.shape) if value is not None and value.shape is not None else 0


def data_inputs(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """Computed inputs of rank 3 or more that have a layout: of layers the first alone."""
    inputs = node.inputs[:1] if node.op_type in WINDOWS or node.op_type in CHANNELS else node.inputs
    return [
        (index, value)
        for index, value in enumerate(inputs)
        if value is not None and not value.is_initializer() and rank_of(value) >= 3
    ]


def _kind(node: ir.Node) -> str:
    """How an operator takes part: `last`, `free`, `turn` (a Transpose), `reader` (only its input has a
    layout), `maker` (only its output has one), or `first`.
    """
    op, rank = node.op_type, rank_of(node.inputs[0] if node.inputs else None)
    if op in WINDOWS:
        return "last" if rank >= 3 else "first"
    if op in CHANNELS:
        return "free" if rank >= 3 else "first"
    if op == "Transpose":
        return "turn" if rank >= 3 else "first"
    if op == "Shape" and node.domain == "":
        return "reader" if rank >= 3 else "first"
    if op == "Unsqueeze":
        return (
            "maker"
            if rank == 2 and _axes(node, 1, rank_of(node.outputs[0])) == _spatial(node.outputs[0])
            else "first"
        )
    if op == "Squeeze":
        return "reader" if rank >= 3 and _axes(node, 1, rank) == _spatial(node.inputs[0]) else "first"
    if op in ("Flatten", "Reshape") and rank >= 3 and _joins_units(node):
        return "reader"
    if op == "Reshape" and rank >= 3 and _keeps_channels(node):
        return "free"
    if op in REDUCTIONS and rank >= 3:
        return _reduction_kind(node, rank)
    if op in ELEMENTWISE or op in AXIS or op in ("Slice", "Pad"):
        return "free" if _moves_freely(node) else "first"
    return "first"


def _reduction_kind(node: ir.Node, rank: int) -> str:
    axes = _axes(node, 1, rank)
    if axes is None or len(node.inputs) < 2 or node.inputs[1] is None:
        return "first"
    if integer(node, "keepdims", 1):
        return "free"
    return "reader" if axes == _spatial(node.inputs[0]) else "first"


def _spatial(value: ir.Value | None) -> list[int]:
    return list(range(2, rank_of(value)))


def _axes(node: ir.Node, index: int, rank: int) -> list[int] | None:
    data = constant(node.inputs[index]) if len(node.inputs) > index else None
    return sorted(int(a) % rank for a in data.ravel()) if data is not None and rank else None


def _joins_units(node: ir.Node) -> bool:
    """Whether a reshape turns [N, C, 1, 1] into [N, C]: the same elements in either layout."""
    shape, made = dims(node.inputs[0]), dims(node.outputs[0])
    if shape is None or made is None or len(made) != 2 or any(size != 1 for size in shape[2:]):
        return False
    wanted = constant(node.inputs[1]) if node.op_type == "Reshape" else None
    copies = wanted is not None and wanted.size == 2 and int(wanted.ravel()[1]) == 0
    return made[1] == shape[1] and isinstance(shape[1], int) and not copies


def _keeps_channels(node: ir.Node) -> bool:
    """Whether a reshape only joins or splits spatial axes: [N, C, H, W] to [N, C, H * W] or back."""
    shape, made = dims(node.inputs[0]), dims(node.outputs[0])
    if shape is None or made is None or len(made) < 3 or shape[1] != made[1] or not isinstance(shape[1], int):
        return False
    if shape[0] is None or shape[0] != made[0]:
        return False
    wanted = constant(node.inputs[1])
    return wanted is None or not np.any(wanted.ravel()[2:] == 0)


def _moves_freely(node: ir.Node) -> bool:
    """Whether all tensors have one rank, or broadcast from constants, and the axes are known."""
    rank = max((rank_of(v) for v in (*node.inputs, *node.outputs)), default=0)
    skipped = _SCALAR_INPUTS.get(node.op_type, frozenset())
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if index in skipped:
            if index == _AXES_INPUT.get(node.op_type) and constant(value) is None:
                return False
            if node.op_type == "Pad" and index == 1 and constant(value) is None:
                return False
            continue
        own = rank_of(value)
        if own == rank or _is_single(value):
            continue
        if initialiser(value) is None:
            return False
    return rank >= 3 and all(rank_of(v) == rank for v in node.outputs)


def _is_single(value: ir.Value) -> bool:
    """One element whatever the dims."""
    shape = dims(value)
    return shape is not None and all(size == 1 for size in shape)


def _plan(graph: ir.Graph) -> _Plan:
    network = _Network()
    kinds = {node: _kind(node) for node in graph}
    for node, kind in kinds.items():
        if kind == "last":
            network.edge((node, "in"), _LAST, _MUCH)
            network.edge((node, "out"), _LAST, _MUCH)
        elif kind == "first":
            network.edge(_FIRST, (node, "in"), _MUCH)
            network.edge(_FIRST, (node, "out"), _MUCH)
        elif kind == "free":
            network.edge((node, "in"), (node, "out"), _MUCH)
            network.edge((node, "out"), (node, "in"), _MUCH)
        elif kind == "turn":
            _turn(network, node)
    for value in _values(graph):
        maker = value.producer()
        source = (maker, "out") if maker is not None else _FIRST
        readers: list[_Point] = [
            (u.node, "in") for u in value.uses() if (u.idx, value) in data_inputs(u.node)
        ]
        if value.is_graph_output() or any(u.node.graph is not graph for u in value.uses()):
            readers.append(_FIRST)  # graphs inside nodes choose for themselves
        network.value(value, source, readers)
    last = network.last_side()
    return _Plan(
        {node for node in graph if (node, "in") in last}, {node for node in graph if (node, "out") in last}
    )


def _values(graph: ir.Graph) -> list[ir.Value]:
    every = [*graph.inputs, *(out for node in graph for out in node.outputs)]
    return [value for value in every if rank_of(value) >= 3]


def _turn(network: _Network, node: ir.Node) -> None:
    """A Transpose that brings channels last, or back, vanishes where one of its sides chooses that layout."""
    rank = rank_of(node.inputs[0])
    perm = tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else ()
    to_first = perm == first_order(rank) and (rank > 3 or _feeds_windows(node))
    if to_first:
        network.edge(_FIRST, (node, "in"), _MUCH)
        network.edge((node, "out"), _LAST, 1)
    elif perm == last_order(rank):
        network.edge(_FIRST, (node, "out"), _MUCH)
        network.edge((node, "in"), _LAST, 1)


def _feeds_windows(node: ir.Node) -> bool:
    """With three axes both orders are one permutation: look where the result goes."""
    readers = [use.node for use in node.outputs[0].uses()]
    return any(
        r.op_type in WINDOWS
        or r.op_type in CHANNELS
        or (r.op_type == "Reshape" and rank_of(r.outputs[0]) > 3)
        for r in readers
    )


_Point: TypeAlias = object
_FIRST, _LAST = "first", "last"


class _Network:
    """A flow network whose minimum cut separates `first` from `last`."""

    def __init__(self) -> None:
        self.capacity: dict[_Point, dict[_Point, int]] = {_FIRST: {}, _LAST: {}}

    def edge(self, a: _Point, b: _Point, capacity: int) -> None:
        row = self.capacity.setdefault(a, {})
        row[b] = row.get(b, 0) + capacity
        self.capacity.setdefault(b, {}).setdefault(a, 0)

    def value(self, key: object, source: _Point, readers: Sequence[_Point]) -> None:
        """One transpose serves all readers on the other side, whichever side that is."""
        others = [reader for reader in readers if reader != source]
        if not others:
            return
        to_last, to_first = (key, "to last"), (key, "to first")
        self.edge(source, to_last, 1)
        self.edge(to_first, source, 1)
        for reader in others:
            self.edge(to_last, reader, _MUCH)
            self.edge(reader, to_first, _MUCH)

    def last_side(self) -> set[_Point]:
        """What is cut off with `last` after as much flow as there is: no more than need be."""
        while True:
            came: dict[_Point, _Point] = {_LAST: _LAST}
            queue: deque[_Point] = deque([_LAST])
            while queue and _FIRST not in came:
                at = queue.popleft()
                for before in self.capacity[at]:  # every edge has its reverse in the table
                    if self.capacity[before][at] > 0 and before not in came:
                        came[before] = at
                        queue.append(before)
            if _FIRST not in came:
                return set(came)
            self._push(came)

    def _push(self, came: Mapping[_Point, _Point]) -> None:
        path: list[tuple[_Point, _Point]] = []
        at: _Point = _FIRST
        while at != _LAST:
            path.append((at, came[at]))
            at = came[at]
        amount = min(self.capacity[a][b] for a, b in path)
        for a, b in path:
            self.capacity[a][b] -= amount
            self.capacity[b][a] += amount


# ---- writing it down ---------------------------------------------------------------------------------


@dataclass(slots=True)
class _Rewriter:
    graph: ir.Graph
    plan: _Plan
    turned: dict[tuple[ir.Value, bool], ir.Value] = field(default_factory=dict)
    count: int = 0

    def run(self) -> None:
        for node in list(self.graph):
            last_in, last_out = node in self.plan.inside, node in self.plan.outside
            kept = {index: value for index, value in data_inputs(node)}
            for index, value in kept.items():
                maker = value.producer()
                is_last = maker is not None and maker in self.plan.outside
                if is_last != last_in:
                    node.replace_input_with(index, self._converted(value, last_in))
            if last_in or last_out:
                self._rename(node, last_in, last_out)
            for value in node.outputs if last_out else ():
                if value.shape is not None and len(value.shape) >= 3:
                    value.shape = _permuted(value.shape, last_order(len(value.shape)))
        self._read_inside()
        for value in list(self.graph.outputs):
            maker = value.producer()
            if maker is not None and maker in self.plan.outside and rank_of(value) >= 3:
                turned = self._converted(value, False)
                value.name, turned.name = turned.name, value.name
                self.graph.outputs[self.graph.outputs.index(value)] = turned

    def _read_inside(self) -> None:
        """Graphs inside nodes read values of this one in ONNX's order."""
        inner = [graph for graph in self.graph.subgraphs() if graph is not self.graph]
        made = [v for node in self.plan.outside for v in node.outputs if rank_of(v) >= 3] if inner else []
        for value in made:
            for use in list(value.uses()):
                if use.node.graph is not self.graph:
                    use.node.replace_input_with(use.idx, self._converted(value, False))
            for graph in inner:
                for index, output in enumerate(list(graph.outputs)):
                    if output is value:
                        graph.outputs[index] = self._converted(value, False)

    def _converted(self, value: ir.Value, to_last: bool) -> ir.Value:
        """The value in the other layout, made once."""
        found = self.turned.get((value, to_last))
        if found is None:
            rank = rank_of(value)
            order = last_order(rank) if to_last else first_order(rank)
            node = ir.node(
                "Transpose", [value], {"perm": list(order)}, name=self._name(str(value.name), "turned")
            )
            found = node.outputs[0]
            found.name, found.type = self._name(str(value.name), "turned"), value.type
            assert value.shape is not None
            found.shape = _permuted(value.shape, order)
            maker = value.producer()
            if maker is not None and maker.graph is self.graph:
                self.graph.insert_after(maker, node)
            else:
                self.graph.insert_before(next(iter(self.graph)), node)
            self.turned[value, to_last] = found
        return found

    def _name(self, stem: str, what: str) -> str:
        self.count += 1
        return f"{stem}.{what}{self.count}"

    def _rename(self, node: ir.Node, last_in: bool, last_out: bool) -> None:
        op = node.op_type
        rank = (
            rank_of(node.outputs[0])
            if op == "Reshape"
            else max(rank_of(v) for v in (*node.inputs[:1], *node.outputs))
        )
        order = last_order(rank)
        if op in WINDOWS or op in CHANNELS:
            node.attributes["channels_last"] = ir.AttrInt64("channels_last", 1)
        elif op == "Transpose":
            self._compose(node, rank, last_in, last_out)
        elif op == "Reshape" and last_out:
            self._reorder_shape(node, order)
        elif op == "Shape":
            node.attributes["perm"] = ir.AttrInt64s("perm", list(first_order(rank)))
        elif op == "Unsqueeze" or op == "Squeeze" or (op in REDUCTIONS and not integer(node, "keepdims", 1)):
            self._set_axes(node, 1, list(range(1, rank - 1)))
        elif op in AXIS:
            axis = integer(node, "axis", 0 if op in ("Concat", "Split") else -1) % rank
            node.attributes["axis"] = ir.AttrInt64("axis", order.index(axis))
        elif op in REDUCTIONS:
            axes = _axes(node, 1, rank)
            assert axes is not None
            self._set_axes(node, 1, sorted(order.index(a) for a in axes))
        elif op in ("Slice", "Pad"):
            self._rename_listed(node, rank, order)
        if last_in and op != "Transpose":
            self._arrange_constants(node, rank, order)

    def _reorder_shape(self, node: ir.Node, order: tuple[int, ...]) -> None:
        """The target of a reshape in the other order: numbers now, computed ones by a Gather."""
        target, x = node.inputs[1], node.inputs[0]
        wanted = constant(target)
        assert target is not None and x is not None and x.shape is not None
        if wanted is not None:
            sizes = [int(n) for n in wanted.ravel()]
            if sizes[1] == 0:
                sizes[1] = int(node.outputs[0].shape[1])  # type: ignore[index, arg-type]
            made = self._constant(
                f"{node.name}.shape", np.array([sizes[axis] for axis in order], dtype=np.int64)
            )
        else:
            picks = self._constant(f"{node.name}.order", np.array(order, dtype=np.int64))
            gather = ir.node("Gather", [target, picks], {"axis": 0}, name=self._name(str(node.name), "shape"))
            made = gather.outputs[0]
            made.name, made.type, made.shape = gather.name, target.type, target.shape
            self.graph.insert_before(node, gather)
        node.replace_input_with(1, made)

    def _compose(self, node: ir.Node, rank: int, last_in: bool, last_out: bool) -> None:
        perm = list(node.attributes["perm"].as_ints())
        if last_in:  # axis p of ONNX's order is axis order.index(p) of what is there
            perm = [last_order(rank).index(p) for p in perm]
        if last_out:
            perm = [perm[axis] for axis in last_order(rank)]
        node.attributes["perm"] = ir.AttrInt64s("perm", perm)

    def _rename_listed(self, node: ir.Node, rank: int, order: tuple[int, ...]) -> None:
        given = constant(node.inputs[3]) if len(node.inputs) > 3 else None
        if given is not None:
            axes = [int(a) % rank for a in given.ravel()]
        else:
            count = (dims(node.inputs[1]) or (rank,))[0]
            axes = list(range(count if node.op_type == "Slice" and isinstance(count, int) else rank))
        self._set_axes(node, 3, [order.index(a) for a in axes])

    def _set_axes(self, node: ir.Node, index: int, axes: list[int]) -> None:
        while len(node.inputs) <= index:
            node.resize_inputs(len(node.inputs) + 1)
        node.replace_input_with(index, self._constant(f"{node.name}.axes", np.array(axes, dtype=np.int64)))

    def _constant(self, name: str, data: np.ndarray) -> ir.Value:
        made = ir.Value(
            name=self._name(name, "c"),
            shape=ir.Shape(data.shape),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.tensor(data),
        )
        self.graph.register_initializer(made)
        return made

    def _arrange_constants(self, node: ir.Node, rank: int, order: tuple[int, ...]) -> None:
        """Constants broadcast from the right: bring them to the full rank, then into the other order."""
        skipped = _SCALAR_INPUTS.get(node.op_type, frozenset())
        several = node.op_type in ELEMENTWISE or node.op_type == "Concat"
        for index, value in enumerate(node.inputs if several else node.inputs[:1]):
            if value is None or initialiser(value) is None or index in skipped:
                continue
            own = [int(n) for n in initialiser(value).shape.numpy()]  # type: ignore[union-attr]
            if all(size == 1 for size in own):
                continue
            aligned = [1] * (rank - len(own)) + own
            arranged = [aligned[axis] for axis in order]
            lead = rank - len(own)
            perm = [axis - lead for axis in order if axis >= lead]
            made = ir.node(
                "Arrange",
                [value],
                {"perm": perm, "shape": arranged},
                domain=DOMAIN,
                name=self._name(str(value.name), "arranged"),
            )
            out = made.outputs[0]
            out.name, out.type, out.shape = made.name, value.type, ir.Shape(arranged)
            self.graph.insert_before(node, made)
            node.replace_input_with(index, out)


def _permuted(shape: ir.Shape, order: Sequence[int]) -> ir.Shape:
    return ir.Shape([shape[axis] for axis in order])


# ---- recurrent layers and what is left over ----------------------------------------------------------


def _batch_first(model: ir.Model) -> None:
    """Merged recurrent layers read and write [batch, time, features]; the transposes become nodes."""
    graph = model.graph
    for node in list(graph):
        if node.op_type not in ("LSTM", "GRU", "RNN") or node.domain != DOMAIN or integer(node, "layout", 0):
            continue
        node.attributes["batch_first"] = ir.AttrInt64("batch_first", 1)
        x, y = node.inputs[0], node.outputs[0]
        assert x is not None
        before = ir.node("Transpose", [x], {"perm": [1, 0, 2]}, name=f"{node.name}.batch_first")
        before.outputs[0].name, before.outputs[0].type = f"{x.name}.{node.name}.batch_first", x.type
        before.outputs[0].shape = _permuted(x.shape, (1, 0, 2)) if x.shape is not None else None
        graph.insert_before(node, before)
        node.replace_input_with(0, before.outputs[0])
        after = ir.node("Transpose", [y], {"perm": [1, 0, 2]}, name=f"{node.name}.time_first")
        made = after.outputs[0]
        made.name, made.type, made.shape = f"{y.name}.time_first", y.type, y.shape
        convenience.replace_all_uses_with(y, made, replace_graph_outputs=True)
        after.replace_input_with(0, y)
        y.shape = _permuted(y.shape, (1, 0, 2)) if y.shape is not None else None
        graph.insert_after(node, after)


def cancel_transposes(model: ir.Model) -> None:
    """transpose(f(transpose(x, p)), q)  ->  transpose(f(x), p[q])   for elementwise f"""
    for node in list(model.graph):
        if node.op_type != "Transpose" or node.graph is None or "perm" not in node.attributes:
            continue
        x, perm = node.inputs[0], list(node.attributes["perm"].as_ints())
        while x is not None:
            chain = _unary_chain(x)
            inner = producer(chain[0].inputs[0] if chain else x, "Transpose")
            if inner is None or "perm" not in inner.attributes or (chain and not single(inner.outputs[0])):
                break
            first = list(inner.attributes["perm"].as_ints())
            perm = [first[axis] for axis in perm]
            if chain:
                chain[0].replace_input_with(0, inner.inputs[0])
                for made in (unary.outputs[0] for unary in chain):
                    if made.shape is not None:
                        made.shape = _permuted(made.shape, [first.index(axis) for axis in range(len(first))])
            else:
                x = inner.inputs[0]
        assert x is not None
        out = node.outputs[0]
        if perm == sorted(perm) and not (
            out.is_graph_output() and (x.is_graph_input() or x.is_graph_output())
        ):
            _bypass(model.graph, node, x)
        else:
            node.replace_input_with(0, x)
            node.attributes["perm"] = ir.AttrInt64s("perm", perm)
    RemoveUnusedNodesPass()(model)


def _unary_chain(value: ir.Value) -> list[ir.Node]:
    """Elementwise nodes of one operand that lead to a value which nothing else reads, in their order."""
    chain: list[ir.Node] = []
    node = value.producer()
    while node is not None and node.op_type in ELEMENTWISE and single(node.outputs[0]):
        if rank_of(node.inputs[0]) < 3 or any(v is not None and rank_of(v) > 0 for v in node.inputs[1:]):
            break
        if node.inputs[0] is None or node.inputs[0].is_initializer():
            break
        chain.insert(0, node)
        node = node.inputs[0].producer()
    return chain


def _bypass(graph: ir.Graph, node: ir.Node, x: ir.Value) -> None:
    out = node.outputs[0]
    if out.is_graph_output():
        name = out.name
        out.name = f"{name}.unturned"
        x.name = name
    convenience.replace_all_uses_with(out, x, replace_graph_outputs=True)
    graph.remove(node, safe=True)
