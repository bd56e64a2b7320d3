"""Types and shapes of every value of a graph, those of graphs inside nodes included.

They come from the operators' definitions; where there is none, from the file and from ONNX's own inference.
A size that a loop changes is a symbol of its own; a value whose rank a loop changes has no shape.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx_ir import serde

from fusile.errors import InvalidModelError
from fusile.frontend.types import Types, infer_types
from fusile.ir.expr import Const, Dim, Expr, dim
from fusile.ir.tensor import Tensor, as_shape
from fusile.ir.types import BOOL, BY_CODE, I64, DType
from fusile.passes.to_tensor import _Lowering, defined, parse_dim

_MOST_WALKS = 4
TAKEN = "fusile.taken"
"""Of an If: the attribute with the branch that is always taken. The other has no types."""


def fill_in(model: ir.Model) -> None:
    """Give every value its type and shape, in place; what cannot be told keeps what it had."""
    odd = any(_graphs(node) or not defined(node.domain, node.op_type) for node in model.graph.all_nodes())
    if not odd:
        _Walk(model, {}).run()
        odd = any(value.type is None or value.shape is None for node in model.graph for value in node.outputs)
    if odd:
        _Walk(model, infer_types(model)).run()


def _graphs(node: ir.Node) -> list[ir.Graph]:
    return [
        item.as_graph()
        for item in node.attributes.values()
        if not item.is_ref() and item.type == ir.AttributeType.GRAPH
    ]


class _Walk:
    def __init__(self, model: ir.Model, found: Types) -> None:
        self.lowering = _Lowering(model, model.graph)
        self.tensors = self.lowering.tensors
        self.found = found
        self._fresh = itertools.count()

    def run(self) -> None:
        graph = self.lowering.graph
        for value in graph.inputs:
            self.declare(value)
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype is not ir.DataType.STRING:
                self.lowering._constant(value)
        self.graph(graph)

    def graph(self, graph: ir.Graph) -> None:
        for node in graph:
            for value in node.outputs:
                self.tensors.pop(str(value.name), None)
            inner = _graphs(node)
            if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 1:
                self._as_its_weight(node.inputs[0], self._tensor(node.inputs[1]))
            if inner:
                self._control(node, inner)
            elif defined(node.domain, node.op_type) and all(
                v is None or str(v.name) in self.tensors for v in node.inputs
            ):
                self._defined(node)
            for value in node.outputs:
                t = self.tensors.get(str(value.name))
                if t is None:
                    self.declare(value)
                else:
                    self._write(value, t)

    def _as_its_weight(self, value: ir.Value | None, weight: Tensor | None) -> None:
        """A convolution says how many dimensions a value has of which nothing else does."""
        if value is not None and weight is not None and self._tensor(value) is None:
            self._bind(
                value, Tensor(str(value.name), weight.dtype, as_shape(self.fresh() for _ in weight.shape))
            )

    def _defined(self, node: ir.Node) -> None:
        try:
            self.lowering._node(node)
        except InvalidModelError:
            strings = any(t is not None and t.dtype.kind == "s" for t in map(self._tensor, node.inputs))
            if node.graph is self.lowering.graph and not strings:
                raise  # definitions are of tensors of numbers: of strings a row knows more
            # A branch that is never taken may be made for other shapes.

    def declare(self, value: ir.Value) -> None:
        """Take the type that the file or ONNX's inference gives a value."""
        proto = self.found.get(str(value.name))
        if proto is not None and b"map_type" in _kinds(proto):
            proto = None  # there is no type for it in the graph
        if proto is not None and value.type is None:
            value.type = serde.deserialize_type_proto_for_type(proto)
        if proto is not None and value.shape is None:
            value.shape = serde.deserialize_type_proto_for_shape(proto)
        if not isinstance(value.type, ir.TensorType) or value.shape is None:
            return
        if int(value.type.dtype) not in BY_CODE:
            return
        sizes = [
            self.fresh() if not isinstance(d, int) and d.value is None else parse_dim(d) for d in value.shape
        ]
        self._bind(value, Tensor(str(value.name), BY_CODE[int(value.type.dtype)], as_shape(sizes)))

    def fresh(self) -> Expr:
        """A size that nothing else has."""
        return dim(f"size_{next(self._fresh)}")

    def _bind(self, value: ir.Value, t: Tensor) -> None:
        self.tensors[str(value.name)] = t
        self._write(value, t)

    @staticmethod
    def _write(value: ir.Value, t: Tensor) -> None:
        value.dtype = ir.DataType(t.dtype.code)
        value.shape = ir.Shape([_graph_dim(e) for e in t.shape])

    # ---- graphs inside nodes ---------------------------------------------------------------------

    def _control(self, node: ir.Node, inner: Sequence[ir.Graph]) -> None:
        if node.op_type == "If" and node.domain == "":
            test = self._tensor(node.inputs[0])
            if test is not None and test.known is not None and isinstance(test.known[0], Const):
                branch = "then_branch" if test.known[0].value else "else_branch"
                node.meta[TAKEN] = branch
                inner = [node.attributes[branch].as_graph()]
            for graph in inner:
                self.graph(graph)
            for k, value in enumerate(node.outputs):
                self._merge(value, [self._tensor(graph.outputs[k]) for graph in inner], inner[0].outputs[k])
        elif node.op_type in ("Loop", "Scan") and node.domain == "":
            self._repeated(node, inner[0], node.op_type == "Loop")
        else:
            for graph in inner:
                self.graph(graph)

    def _tensor(self, value: ir.Value | None) -> Tensor | None:
        return None if value is None else self.tensors.get(str(value.name))

    def _merge(self, value: ir.Value, made: Sequence[Tensor | None], like: ir.Value) -> None:
        """The type that a value has whichever of several tensors it is."""
        known = [t for t in made if t is not None]
        if len(made) == 1 and known:
            self._bind(value, known[0])
            return
        if len(known) == len(made) and len({(t.dtype, t.rank) for t in known}) == 1:
            first, rest = known[0], known[1:]
            sizes = [
                n if all(t.shape[k] is n for t in rest) else self.fresh() for k, n in enumerate(first.shape)
            ]
            self._bind(value, Tensor(str(value.name), first.dtype, as_shape(sizes)))
            return
        value.shape = None
        if known:
            value.dtype = ir.DataType(known[0].dtype.code)
        elif value.type is None and like.type is not None:
            value.type = like.type

    def _repeated(self, node: ir.Node, body: ir.Graph, loop: bool) -> None:
        fixed = 2 if loop else 0
        if loop:
            for value, kind in zip(body.inputs, (I64, BOOL), strict=False):
                self._formal(value, kind, ())
        scanned = 0 if loop else node.attributes["num_scan_inputs"].as_int()
        states = node.inputs[fixed : len(node.inputs) - scanned]
        formals = body.inputs[fixed : fixed + len(states)]
        results = body.outputs[1 if loop else 0 :]
        for initial, formal in zip(states, formals, strict=True):
            self._start(initial, formal)
        if scanned:
            self._slices(node, body, scanned)
        for _ in range(_MOST_WALKS):
            self.graph(body)
            if not [1 for f, r in zip(formals, results, strict=False) if self._widened(f, r)]:
                break
        for value, formal in zip(node.outputs, formals, strict=False):
            t = self._tensor(formal)
            if t is not None:
                self._bind(value, Tensor(str(value.name), t.dtype, t.shape))
            else:
                value.shape = None
                value.type = formal.type if formal.type is not None else value.type
        axes = [] if loop else self._axes(node, "scan_output_axes", len(node.outputs) - len(states))
        for k, value in enumerate(node.outputs[len(states) :]):
            row = self._tensor(results[len(states) + k])
            if row is not None:
                sizes: list[Expr] = list(row.shape)
                at = axes[k] if axes else 0
                sizes.insert(at % (row.rank + 1), self.fresh())
                self._bind(value, Tensor(str(value.name), row.dtype, as_shape(sizes)))

    @staticmethod
    def _axes(node: ir.Node, attribute: str, count: int) -> list[int]:
        held = node.attributes.get(attribute)
        return [int(a) for a in held.as_ints()] if held is not None and held.as_ints() else [0] * count

    def _start(self, value: ir.Value | None, formal: ir.Value) -> None:
        """What a loop's state is at first: the outer value's type."""
        t = self._tensor(value)
        if t is not None:
            self._formal(formal, t.dtype, t.shape)
        elif value is not None and value.type is not None:
            formal.type, formal.shape = value.type, None

    def _slices(self, node: ir.Node, body: ir.Graph, scanned: int) -> None:
        axes = self._axes(node, "scan_input_axes", scanned)
        pairs = zip(node.inputs[-scanned:], body.inputs[-scanned:], axes, strict=True)
        for value, formal, axis in pairs:
            t = self._tensor(value)
            if t is not None and t.rank:
                sizes = list(t.shape)
                del sizes[axis % t.rank]
                self._formal(formal, t.dtype, sizes)

    def _formal(self, value: ir.Value, kind: DType, shape: Sequence[Expr]) -> None:
        self._bind(value, Tensor(str(value.name), kind, as_shape(shape)))

    def _widened(self, formal: ir.Value, result: ir.Value) -> bool:
        """Make the state's type one that the body's result has too; whether that changed it."""
        now, then = self._tensor(formal), self._tensor(result)
        if now is None or (then is not None and then.shape == now.shape and then.dtype is now.dtype):
            return False
        if then is None or then.rank != now.rank:
            self.tensors.pop(str(formal.name), None)
            formal.shape = None
            return True
        sizes = [
            a if a is b or _is_fresh(a) else self.fresh() for a, b in zip(now.shape, then.shape, strict=True)
        ]
        if sizes == list(now.shape):
            return False
        self._formal(formal, now.dtype, sizes)
        return True


def _kinds(proto: onnx.TypeProto) -> bytes:
    """The names of the kinds that a type is nested of."""
    kind = proto.WhichOneof("value") or ""
    inner = getattr(proto, kind).elem_type if kind in ("sequence_type", "optional_type") else None
    return kind.encode() + (b" " + _kinds(inner) if inner is not None else b"")


def _is_fresh(e: Expr) -> bool:
    return isinstance(e, Dim) and e.name.startswith("size_")


def _graph_dim(e: Expr) -> int | ir.SymbolicDim:
    if isinstance(e, Const):
        return int(e.value)
    return ir.SymbolicDim(e.name if isinstance(e, Dim) else repr(e))
