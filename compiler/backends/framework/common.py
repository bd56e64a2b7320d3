"""What the framework backends share: the walk over the graph, names, layers, tensors and dims.

A framework is a table of rows, one per operator. A row gets a `Site` (a node and the printer around it) and
answers an expression for its output, or one per output; it may declare layers. The printer follows shape
arithmetic itself (`host.py`), so rows see sizes as expressions over dims.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, TypeAlias

import numpy as np
import onnx_ir as ir

from fusile.backends.framework import host as ht
from fusile.backends.framework.host import HostArray, Scalar
from fusile.backends.framework.source import Body, Code, Name, Plain, Targets, Var, code, name, short_float
from fusile.errors import Gap, UnsupportedError
from fusile.escape import identifier
from fusile.graph import tensors as tn
from fusile.graph.tensors import Weight
from fusile.ir import expr as ex
from fusile.passes.to_tensor import parse_dim

Row: TypeAlias = Callable[["Site"], "Code | Sequence[Code | None]"]
Size: TypeAlias = "int | ex.Expr"


class Refusal(Exception):
    """A row cannot print this node; becomes a gap in the list that the user sees."""

    def __init__(self, reason: str, way_out: str = "") -> None:
        self.reason = reason
        self.way_out = way_out
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Place:
    """How a tensor of the module comes from an initialiser.

    The piece `part` of it, its gates put in the order `gates` along the first axis, its axes in the order
    `axes`, in `shape`. With `halves` the two halves of the piece are added (a bias that ONNX keeps twice).
    """

    value: ir.Value
    axes: tuple[int, ...] = ()
    part: tuple[int | tuple[int, int], ...] = ()
    gates: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    halves: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """An attribute of the module: its name, what makes it, and for Keras the shape it is built with."""

    attribute: str
    constructor: Code
    build: Code | None = None
    assign: bool = True


@dataclass(frozen=True, slots=True)
class Framework:
    """What differs between frameworks outside the rows."""

    name: str
    rows: Mapping[str, Row]
    size: Callable[[Code, int], Code]
    """The size of one axis of a tensor."""
    sizes: Callable[[Code], Code]
    """All sizes of a tensor, to be unpacked."""
    constant: Callable[[Printer, HostArray], Code]
    """A tensor of numbers that stand in the source."""
    parameter: Callable[[Printer, str, Weight, tuple[int, ...], ir.DataType], Layer]
    """A tensor of the module that belongs to no layer."""
    reserved: frozenset[str]
    """Names that variables may not have."""
    attributes: frozenset[str]
    """Names that attributes of the module may not have."""
    permute: Callable[[Code, tuple[int, ...]], Code]
    reshape: Callable[[Code, tuple[int, ...]], Code]
    cast: Callable[[Code, ir.DataType], Code]
    scalar: Callable[[Code, ir.DataType], Code]
    """A size beside a tensor of some type."""


@dataclass(slots=True)
class Printer:
    """One walk over a recognised graph. `run` fills the body, the layers and the tensors."""

    model: ir.Model
    framework: Framework
    weights: Mapping[str, Weight]
    body: Body = field(init=False)
    layers: list[Layer] = field(default_factory=list)
    tensors: dict[str, tuple[Weight, Place]] = field(default_factory=dict)
    helpers: dict[str, None] = field(default_factory=dict)
    arguments: list[Var] = field(default_factory=list)
    _known: dict[ir.Value, Code | HostArray] = field(default_factory=dict)
    _attributes: set[str] = field(default_factory=set)
    _made: dict[object, str] = field(default_factory=dict)
    _owners: dict[str, tuple[Code, Place]] = field(default_factory=dict)
    _input_dims: dict[str, tuple[int, int]] = field(default_factory=dict)
    _dim_vars: dict[str, Var] = field(default_factory=dict)
    _opaque: dict[str, tuple[ir.Value, int]] = field(default_factory=dict)
    _prefix: tuple[str, ...] = ()
    gaps: list[Gap] = field(default_factory=list)

    # ---- the walk --------------------------------------------------------------------------------

    def run(self) -> None:
        """Print every node. Raises UnsupportedError with all gaps at once."""
        self._attributes |= self.framework.attributes
        self._prefix = _common_prefix(w.name for w in self.weights.values() if not tn.is_generic(w.name))
        self._begin()
        for node in self.model.graph:
            self._node(node)
        if self.gaps:
            raise UnsupportedError(self.gaps)
        outputs = [self.tensor(value) for value in self.model.graph.outputs]
        self.body.result = outputs[0] if len(outputs) == 1 else code(tuple(outputs))
        self._bind_input_dims()

    def _begin(self) -> None:
        taken = set(self.framework.reserved)
        for index, value in enumerate(self.model.graph.inputs):
            var = Var(identifier(_short_path(str(value.name)), taken), fixed=True)
            taken.add(var.hint)
            self.arguments.append(var)
            self._known[value] = Name(var)
            for axis, size in enumerate(value.shape or ()):
                if isinstance(size, ir.SymbolicDim) and size.value is not None:
                    self._input_dims.setdefault(size.value, (index, axis))
        self.body = Body(tuple(self.arguments), self.framework.reserved)

    def _node(self, node: ir.Node) -> None:
        if node.op_type == "Arrange" and node.domain == "fusile":
            self._known[node.outputs[0]] = self._arranged(node)
            return
        known = [self.host(value) for value in node.inputs]
        arrays = self._shape(node) if node.op_type == "Shape" else ht.evaluate(node, known)
        if arrays is not None:
            for value, array in zip(node.outputs, arrays, strict=False):
                self._known[value] = array
            return
        row = self.framework.rows.get(node.op_type) if node.domain in ("", "fusile") else None
        if any(v is not None and not v.is_initializer() and v not in self._known for v in node.inputs):
            return  # downstream of a gap that is listed already
        try:
            if row is None:
                raise Refusal(f"no row for this operator in the {self.framework.name} backend")
            answer = row(Site(self, node))
        except Refusal as refusal:
            opset = self.model.opset_imports.get(node.domain)
            where = (node.op_type, node.domain, str(node.name or ""), opset)
            self.gaps.append(Gap(*where, refusal.reason, refusal.way_out))
            return
        results = [answer] if isinstance(answer, Code) else list(answer)
        for value, result in zip(node.outputs, results, strict=False):
            if result is not None:
                self._known[value] = self.body.let(result, hint_of(node, value))

    def _shape(self, node: ir.Node) -> list[HostArray] | None:
        """The sizes of a value; a channels-last value lists them in the order of `perm`."""
        value = node.inputs[0]
        if value is None or value.shape is None:
            return None
        sizes = [self.dim(value, axis) for axis in range(len(value.shape))]
        perm = node.attributes.get("perm")
        if perm is not None:
            sizes = [sizes[axis] for axis in perm.as_ints()]
        start, end = node.attributes.get("start"), node.attributes.get("end")
        sizes = sizes[start.as_int() if start else 0 : end.as_int() if end else None]
        return [ht.array(sizes, ir.DataType.INT64, (len(sizes),))]

    def _arranged(self, node: ir.Node) -> Code | HostArray:
        """A constant that the layout pass brought to another rank and order: done once, on loading."""
        value = node.inputs[0]
        assert value is not None
        perm, shape = node.attributes["perm"].as_ints(), tuple(node.attributes["shape"].as_ints())
        array = self.host(value)
        if array is not None:
            return HostArray(array.elements.transpose(perm).reshape(shape), array.dtype)
        return self.parameter(value, Place(value, tuple(perm), shape=shape))

    # ---- values ----------------------------------------------------------------------------------

    def host(self, value: ir.Value | None) -> HostArray | None:
        """A value as a host array, where it is one."""
        if value is None:
            return None
        found = self._known.get(value)
        if isinstance(found, HostArray):
            return found
        if found is None and value.is_initializer() and str(value.name) not in self.weights:
            held = value.const_value
            if held is not None and held.dtype is not ir.DataType.STRING and held.size <= ht.MOST:
                array = ht.array(held.numpy().astype(object), held.dtype, tuple(held.shape.numpy()))
                self._known[value] = array
                return array
        return None

    def tensor(self, value: ir.Value) -> Code:
        """A value as a tensor of the framework."""
        array = self.host(value)
        if array is not None:
            made = self.framework.constant(self, array)
            return made if isinstance(made, Name) else self.body.let(made, "constant")
        found = self._known.get(value)
        if isinstance(found, Code):
            return found
        if value.is_initializer() and str(value.name) in self.weights:
            return self.parameter(value)
        raise Refusal(
            f"the input {value.name!r} is a constant of type {value.dtype} that the framework cannot hold"
        )

    def parameter(self, value: ir.Value, wanted: Place | None = None) -> Code:
        """A weight in the initialiser's own form, or in the wanted one: a tensor of the module, or of a layer."""
        weight = self.weights[str(value.name)]
        held = value.const_value
        assert held is not None
        own = tuple(int(n) for n in held.shape.numpy())
        wanted = Place(value) if wanted is None else wanted
        if weight.initializer not in self._owners:
            self._own(value, weight, wanted, own)
        made, place = self._owners[weight.initializer]
        if place == wanted:
            return made
        if place.part or place.gates or place.halves:
            raise Refusal("the weight is shared with a layer that keeps it in another form")
        if place.shape:
            made = self.framework.reshape(made, tuple(own[axis] for axis in place.axes) or own)
        made = self.framework.permute(made, _inverse(place.axes)) if place.axes else made
        made = self.framework.permute(made, wanted.axes) if wanted.axes else made
        return self.framework.reshape(made, wanted.shape) if wanted.shape else made

    def _own(self, value: ir.Value, weight: Weight, place: Place, own: tuple[int, ...]) -> None:
        """Make a weight a tensor of the module."""
        attribute = self.attribute(weight.name.removesuffix(tn.FOLDED))
        shape = place.shape or tuple(own[axis] for axis in place.axes) or own
        held = value.const_value
        assert held is not None
        self.layers.append(self.framework.parameter(self, attribute, weight, shape, held.dtype))
        dropped = weight.perm is not None and len(weight.perm) != len(own)
        stored = Place(value, place.axes, shape=place.shape or (own if dropped else ()))
        self.tensors[attribute] = (weight, stored)
        self._owners[weight.initializer] = (name(f"self.{attribute}"), place)

    def layer(
        self, stem: str, constructor: Code, tensors: Mapping[str, Place], build: Plain | None = None
    ) -> Code | None:
        """An attribute `self.stem` that holds a layer; the same layer of the same weights is made once.

        None where something else of the module holds one of the weights already.
        """
        key = (constructor.text({}), tuple((suffix, place) for suffix, place in tensors.items()))
        if tensors and key in self._made:
            return name(f"self.{self._made[key]}")
        if any(str(place.value.name) in self._owners for place in tensors.values()):
            return None
        attribute = self.attribute(stem)
        self._made[key] = attribute
        self.layers.append(Layer(attribute, constructor, None if build is None else code(build)))
        for suffix, place in tensors.items():
            weight = self.weights[str(place.value.name)]
            path = f"{attribute}.{suffix}"
            self.tensors[path] = (weight, place)
            self._owners.setdefault(weight.initializer, (name(f"self.{path}"), place))
        return name(f"self.{attribute}")

    def attribute(self, stem: str) -> str:
        """A free attribute name for something called `stem` in the model."""
        parts = tuple(_short_path(stem).split("."))
        if parts[: len(self._prefix)] == self._prefix and len(parts) > len(self._prefix):
            parts = parts[len(self._prefix) :]
        made = identifier("_".join(parts), self._attributes)
        self._attributes.add(made)
        return made

    # ---- dims ------------------------------------------------------------------------------------

    def dim(self, value: ir.Value, axis: int) -> Size:
        """The size of one axis: a number, or an expression over dims."""
        assert value.shape is not None
        size = value.shape[axis]
        if isinstance(size, int):
            return size
        text = size.value
        if text is not None:
            parsed = parse_dim(size)
            if all(isinstance(d, ex.Dim) and d.name in self._input_dims for d in ex.free(parsed)):
                return parsed
        key = text if text is not None else f"{value.name}#{axis}"
        self._opaque.setdefault(key, (value, axis))
        return ex.dim(key)

    def size(self, size: Scalar) -> Code:
        """A size as source. Raises Refusal for what has no plain spelling."""
        if not isinstance(size, ex.Expr):
            return code(size)
        if isinstance(size, ex.Const):
            return code(size.value)
        if isinstance(size, ex.Dim):
            return Name(self._dim_var(size.name))
        if isinstance(size, ex.Apply):
            return self._apply(size)
        raise Refusal(f"a size is computed in a way that has no spelling: {size!r}")

    def _apply(self, size: ex.Apply) -> Code:
        if size.op in ("min", "max"):
            return name(size.op)(*(self.size(a) for a in size.args))
        if size.op == "neg":
            return -self.size(size.args[0])
        if size.op == "abs":
            return name("abs")(self.size(size.args[0]))
        if size.op == "add":
            first, second = size.args
            negative = _negated(second)
            if negative is not None:
                return self.size(first) - self.size(negative)
            if _negated(first) is not None:
                return self.size(second) - self.size(_negated(first) or 0)
        signs = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%", "div": "//"}
        if size.op not in signs:
            raise Refusal(f"a size is computed with {size.op!r}, which has no plain spelling")
        return self.size(size.args[0]).binary(signs[size.op], self.size(size.args[1]))

    def _dim_var(self, symbol: str) -> Var:
        found = self._dim_vars.get(symbol)
        if found is None:
            value, axis = self._dim_source(symbol)
            found = Var(_dim_hint(symbol, axis, len(value.shape or ())), tensor=False)
            self._dim_vars[symbol] = found
            if symbol not in self._input_dims:
                self.body.unpack(self.framework.size(self.tensor(value), axis), found)
        return found

    def _dim_source(self, symbol: str) -> tuple[ir.Value, int]:
        if symbol in self._input_dims:
            index, axis = self._input_dims[symbol]
            return self.model.graph.inputs[index], axis
        return self._opaque[symbol]

    def _bind_input_dims(self) -> None:
        """`batch, seq = x.shape` at the top, for the dims of inputs that are used."""
        used: dict[int, dict[int, Var]] = {}
        for symbol, var in self._dim_vars.items():
            if symbol in self._input_dims:
                index, axis = self._input_dims[symbol]
                used.setdefault(index, {})[axis] = var
        first = Body()
        for index, axes in sorted(used.items()):
            argument = Name(self.arguments[index])
            if len(axes) == 1:
                ((axis, var),) = axes.items()
                first.unpack(self.framework.size(argument, axis), var)
            else:
                rank = len(self.model.graph.inputs[index].shape or ())
                targets: Targets = tuple(axes.get(axis) for axis in range(rank))
                first.unpack(self.framework.sizes(argument), targets)
        self.body.statements[:0] = first.statements


@dataclass(frozen=True, slots=True)
class Site:
    """A node and the printer around it: what a row works with."""

    printer: Printer
    node: ir.Node
    compute: ir.DataType | None = None
    """The type in which tensors are read, where it is not their own."""

    def cast(self, kind: ir.DataType) -> Site:
        """The same node with its tensors read in another type."""
        return Site(self.printer, self.node, kind)

    def refuse(self, reason: str, way_out: str = "") -> NoReturn:
        raise Refusal(reason, way_out)

    # ---- inputs ----------------------------------------------------------------------------------

    def value(self, index: int) -> ir.Value:
        found = self.node.inputs[index] if index < len(self.node.inputs) else None
        if found is None:
            self.refuse(f"input {index} is missing")
        return found

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def used(self, output: int) -> bool:
        """Whether anything reads an output."""
        if output >= len(self.node.outputs):
            return False
        value = self.node.outputs[output]
        return bool(value.uses()) or value.is_graph_output()

    def tensor(self, index: int = 0) -> Code:
        """An input as a tensor."""
        found = self.printer.tensor(self.value(index))
        return found if self.compute is None else self.printer.framework.cast(found, self.compute)

    def turned(self, index: int, axes: tuple[int, ...]) -> Code:
        """An input with its axes in another order; a weight is put so on loading."""
        value = self.value(index)
        if value.is_initializer() and str(value.name) in self.printer.weights:
            identity = axes == tuple(range(len(axes)))
            return self.printer.parameter(value, Place(value, () if identity else axes))
        return self.printer.framework.permute(self.tensor(index), axes)

    def operand(self, index: int) -> Code:
        """An input as a tensor, or as a plain number where that gives the same result."""
        array = self.printer.host(self.value(index))
        if array is not None and len(array.flat) == 1:
            others = [v for i, v in enumerate(self.node.inputs) if v is not None and i != index]
            ranks = [len(v.shape) for v in others if v.shape is not None and self.printer.host(v) is None]
            if ranks and max(ranks) >= array.elements.ndim:
                made = self.number(array)
                return made if array.is_constant else self.printer.framework.scalar(made, self.dtype(index))
        return self.tensor(index)

    def number(self, array: HostArray) -> Code:
        """The only element of a host array as a literal or size."""
        element = array.flat[0]
        if isinstance(element, float) and array.dtype is not ir.DataType.DOUBLE:
            return code(short_float(element))
        return self.printer.size(element)

    def host(self, index: int) -> HostArray | None:
        return self.printer.host(self.value(index)) if self.has(index) else None

    def constant(self, index: int) -> np.ndarray | None:
        """The data of an input that is a literal constant, else None."""
        array = self.host(index)
        return array.numpy() if array is not None and array.is_constant else None

    def scalar(self, index: int) -> float | None:
        """The number in a one-element literal constant, else None."""
        data = self.constant(index)
        return float(data.ravel()[0]) if data is not None and data.size == 1 else None

    def ints(self, index: int, what: str) -> list[int]:
        """Constant integers of an input. Refuses where they are computed when run."""
        data = self.constant(index)
        if data is None:
            self.refuse(f"{what} are computed when the model runs", "make them constants of the model")
        return [int(v) for v in data.ravel()]

    def sizes(self, index: int) -> list[Scalar] | None:
        """Elements of an input that are known as numbers or sizes, else None."""
        array = self.host(index)
        return None if array is None else array.flat

    def dtype(self, index: int = 0) -> ir.DataType:
        if self.compute is not None:
            return self.compute
        found = self.value(index).dtype
        if found is None:
            self.refuse(f"the type of input {index} is not known")
        return found

    def result_dtype(self, output: int = 0) -> ir.DataType:
        return self.node.outputs[output].dtype or self.dtype(0)

    def rank(self, index: int = 0) -> int:
        shape = self.value(index).shape
        if shape is None:
            self.refuse(f"the rank of input {index} is not known", "give the model's inputs shapes")
        return len(shape)

    def shape(self, index: int = 0) -> list[Size]:
        return [self.printer.dim(self.value(index), axis) for axis in range(self.rank(index))]

    @property
    def channels_last(self) -> bool:
        return bool(self.integer("channels_last"))

    def onnx_shape(self, index: int = 0) -> list[Size]:
        """The sizes of an input in ONNX's order of axes."""
        sizes = self.shape(index)
        return [sizes[0], sizes[-1], *sizes[1:-1]] if self.channels_last else sizes

    def fixed(self, index: int, axis: int) -> int:
        """A size that must be a number."""
        size = self.shape(index)[axis]
        if not isinstance(size, int):
            self.refuse(f"the size of axis {axis} of input {index} is not fixed")
        return size

    def dim(self, index: int, axis: int) -> Code:
        """The size of one axis of an input as source."""
        return self.printer.size(self.printer.dim(self.value(index), axis % self.rank(index)))

    def size(self, size: Scalar) -> Code:
        return self.printer.size(size)

    # ---- attributes ------------------------------------------------------------------------------

    def integer(self, attribute: str, default: int = 0) -> int:
        held = self.node.attributes.get(attribute)
        return default if held is None else held.as_int()

    def real(self, attribute: str, default: float = 0.0) -> float:
        held = self.node.attributes.get(attribute)
        return default if held is None else short_float(held.as_float())

    def string(self, attribute: str, default: str = "") -> str:
        held = self.node.attributes.get(attribute)
        return default if held is None else held.as_string()

    def integers(self, attribute: str, default: Sequence[int] = ()) -> list[int]:
        held = self.node.attributes.get(attribute)
        return list(default) if held is None else [int(v) for v in held.as_ints()]

    def axis(self, default: int = -1, of: int = 0) -> int:
        """The `axis` attribute, counted from the front."""
        return self.integer("axis", default) % max(1, self.rank(of))

    # ---- what a row makes ------------------------------------------------------------------------

    def let(self, value: Code, hint: str = "x", tensor: bool = True) -> Code:
        return self.printer.body.let(value, hint, tensor)

    def unpack(self, value: Code, targets: Targets) -> None:
        self.printer.body.unpack(value, targets)

    def helper(self, function: str) -> Code:
        """A function that is printed into the file when a row needs it."""
        self.printer.helpers[function] = None
        return name(function)

    def weight(self, index: int) -> tn.Weight | None:
        """The record of an input that is a weight, else None."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        return (
            self.printer.weights.get(str(value.name))
            if value is not None and value.is_initializer()
            else None
        )

    def roles(self, *indices: int) -> list[str]:
        """What these inputs are in the weights file, absent ones left out; an empty string for no weight."""
        found = [self.weight(index) for index in indices if self.has(index)]
        return ["" if weight is None else weight.role for weight in found]

    def stem(self, index: int = 1) -> str:
        """What a layer is called: after its weight, else after the module around the node, else its operator."""
        weight = self.weight(index)
        if weight is not None:
            text = weight.name.removesuffix(tn.FOLDED)
            short = re.sub(r"[._/]?(weight|kernel|scale|gamma|w_\d+|W)$", "", text)
            if short and not tn.is_generic(text):
                return short
        return tn.scope(self.node) or _snake(self.node.op_type)

    def layer(
        self,
        stem: str,
        constructor: Code,
        tensors: Mapping[str, Place],
        build: Plain | None = None,
        buffers: tuple[str, ...] = (),
    ) -> Code | None:
        """An attribute that holds a layer, or None where its tensors are not ones that a layer holds.

        They must be parameters (those in `buffers`, buffers) that no other part of the module has.
        """
        for suffix, place in tensors.items():
            weight = self.printer.weights.get(str(place.value.name)) if place.value.is_initializer() else None
            if weight is None or weight.role != ("buffer" if suffix in buffers else "param"):
                return None
        return self.printer.layer(stem, constructor, tensors, build)


# ---- names -------------------------------------------------------------------------------------------

_TAIL = frozenset(
    {
        "readvariableop",
        "biasadd",
        "conv2d",
        "conv1d",
        "matmul",
        "reshape",
        "kernel",
        "bias",
        "tensordot",
        "einsum",
        "add",
        "mul",
    }
)


def _short_path(text: str) -> str:
    """The telling end of a path such as `model/dense_1/BiasAdd/ReadVariableOp:0`; other names as they are."""
    if "/" not in text and ";" not in text:
        return text.replace(":", "_") if text.endswith(":0") is False else text[:-2]
    parts = [part for part in text.split(";")[0].removesuffix(":0").split("/") if part]
    while len(parts) > 1 and parts[-1].split(":")[0].lower() in _TAIL:
        parts.pop()
    return "_".join(parts[-2:]).replace(".", "_") or text


def _common_prefix(names: Iterator[str] | Sequence[str]) -> tuple[str, ...]:
    """The leading components that all dotted names share, short of their last two."""
    split = [tuple(n.removesuffix(tn.FOLDED).split(".")) for n in names]
    dotted = [parts for parts in split if len(parts) > 1]
    if len(dotted) < 2:
        return ()
    shared = dotted[0][:-2]
    for parts in dotted:
        while shared and parts[: len(shared)] != shared:
            shared = shared[:-1]
        shared = shared[: max(0, len(parts) - 2)]
    return shared


def _snake(text: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower()


def hint_of(node: ir.Node, value: ir.Value) -> str:
    """A name for a value where the natural one is taken: its module, else its operator."""
    inner = tn.scope(node).rsplit(".", 2)[-2:]
    found = inner[-1] if not inner[-1][:1].isdigit() else "_".join(inner)
    return _snake(found) or _HINTS.get(node.op_type, _snake(node.op_type))


_HINTS = {
    **dict.fromkeys(
        ("GroupNormalization", "LayerNormalization", "RMSNormalization", "BatchNormalization"), "norm"
    ),
    "InstanceNormalization": "norm",
    "ConstantOfShape": "filled",
    "MatMul": "product",
    "Transpose": "turned",
    "Reshape": "shaped",
}


def _dim_hint(symbol: str, axis: int, rank: int) -> str:
    if re.fullmatch(r"[A-Za-z][A-Za-z_]*", symbol) and len(symbol) <= 24:
        return symbol
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z]+)*", symbol) and len(symbol) <= 24:
        return symbol
    if axis == 0:
        return "batch"
    if rank >= 4:
        return {rank - 1: "width", rank - 2: "height"}.get(axis, "channels")
    return "length" if axis == 1 else "features"


def _negated(e: Scalar) -> Scalar | None:
    """The expression with its sign turned, where it is visibly negative."""
    if isinstance(e, ex.Const):
        return -int(e.value) if e.value < 0 else None
    if isinstance(e, ex.Apply) and e.op == "mul" and isinstance(e.args[1], ex.Const) and e.args[1].value < 0:
        return ex.apply("mul", e.args[0], -int(e.args[1].value))
    return None


def _inverse(axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(axes)), key=lambda i: axes[i]))


def stored_axes(weight: Weight, place: Place) -> tuple[int, ...]:
    """The file's axes in the module's order; () where they are the same."""
    rank = len(place.axes) or (len(weight.perm) if weight.perm is not None else 0)
    if not rank or (weight.perm is not None and place.axes and len(weight.perm) != len(place.axes)):
        return ()
    axes = place.axes or tuple(range(rank))
    if weight.perm is not None and len(weight.perm) == rank:
        axes = tuple(weight.perm.index(axis) for axis in axes)
    return () if axes == tuple(range(rank)) else axes
