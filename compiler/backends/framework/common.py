"""What the framework backends share: the walk over the graph, names, layers, tensors and dims.

A framework is a table of rows, one per operator. A row gets a `Site` (a node and the printer around it) and
answers an expression for its output, or one per output; it may declare layers. The printer follows shape
arithmetic itself (`host.py`), so rows see sizes as expressions over dims.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from fusile.backends.framework import host as ht
from fusile.backends.framework.code import Code, Name, Plain, Targets, Ternary, Var, code, name
from fusile.backends.framework.host import HostArray, Scalar
from fusile.backends.framework.naming import common_prefix, dim_hint, hint_of, short_path
from fusile.backends.framework.refusal import Refusal
from fusile.backends.framework.source import Body
from fusile.errors import Gap, UnsupportedError
from fusile.escape import identifier
from fusile.graph import tensors as tn
from fusile.graph.opsets import file_opset
from fusile.graph.tensors import Weight
from fusile.ir import expr as ex
from fusile.passes.to_tensor import defined, parse_dim

if TYPE_CHECKING:
    from fusile.backends.framework.site import Site
    from fusile.backends.framework.vocabulary import Words

Row: TypeAlias = Callable[["Site"], "Code | Sequence[Code | None]"]
Size: TypeAlias = "int | ex.Expr"


_LONGEST = 56
"""Characters of an attribute's name, of which the end tells more."""


class Listed(Exception):
    """The gaps inside a node's graph are listed already."""


def captured(graph: ir.Graph) -> list[ir.Value]:
    """The values around a graph that its nodes, or graphs inside them, read; constants left out."""
    inside = {graph, *graph.subgraphs()}
    found: dict[ir.Value, None] = {}
    read = [v for node in graph.all_nodes() for v in node.inputs]
    for value in [*read, *(v for g in inside for v in g.outputs)]:
        if value is not None and not value.is_initializer() and value.graph not in inside:
            found[value] = None
    return list(found)


def no_form(node: ir.Node, framework: str) -> tuple[str, str]:
    """Why an operator without a row cannot be written as source of a framework, and a way out."""
    reason = f"the {framework} source has no form of this operator yet"
    if defined(node.domain, node.op_type):
        return reason, "The targets native, numba and cuda take it: see `fusile check --target native`"
    if _on_host(node):
        return reason, "A module in a process takes it (fusile.compile): see `fusile check --target native`"
    return reason, "Replace or decompose the node before export, or ask for the operator"


def _on_host(node: ir.Node) -> bool:
    """Whether the host part of the kernel backends takes an operator."""
    from fusile.kernels.host.registry import HOST_OPERATORS

    return (node.domain, node.op_type) in HOST_OPERATORS


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
class Method:
    """A graph inside a node as a method of the module: what calls it, and what it is given from around."""

    function: Code
    given: tuple[Code, ...]


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
    words: Callable[[], Words]
    """What printed tensor programs are written in."""
    avoids: Callable[[ir.Node], bool] = lambda node: False
    """Whether a row's operations do not take the types of a node."""


@dataclass(slots=True)
class Printer:
    """One walk over a recognised graph. `run` fills the body, the layers and the tensors."""

    model: ir.Model
    framework: Framework
    weights: dict[str, Weight]
    site: Callable[[Printer, ir.Node], Site]
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
    methods: list[tuple[str, Body, str]] = field(default_factory=list)
    """Name, body and docstring of the methods beside the forward function."""
    functions: list[list[str]] = field(default_factory=list)
    """The lines of the functions that stand before the module."""
    _printed: dict[tuple[str, ...], str] = field(default_factory=dict)
    _function_names: set[str] = field(default_factory=set)

    # ---- the walk --------------------------------------------------------------------------------

    def run(self) -> None:
        """Print every node. Raises UnsupportedError with all gaps at once."""
        self._attributes |= self.framework.attributes
        self._function_names |= self.framework.reserved
        self._prefix = common_prefix(w.name for w in self.weights.values() if not tn.is_generic(w.name))
        self._begin()
        for node in self.model.graph:
            self._node(node)
        if self.gaps:
            raise UnsupportedError(self.gaps)
        outputs = [self.tensor(value) for value in self.model.graph.outputs]
        self.body.result = outputs[0] if len(outputs) == 1 else code(tuple(outputs))
        self._bind_input_dims()
        self.body.reserved |= self._function_names

    def _begin(self) -> None:
        taken = set(self.framework.reserved)
        for index, value in enumerate(self.model.graph.inputs):
            var = Var(identifier(short_path(str(value.name)), taken), fixed=True)
            taken.add(var.hint)
            self._function_names.add(var.hint)
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
        if any(v is not None and not v.is_initializer() and v not in self._known for v in node.inputs):
            return  # downstream of a gap that is listed already
        try:
            answer = self._answer(self.site(self, node))
        except Listed:
            return
        except Refusal as refusal:
            opset = file_opset(self.model, node.domain)
            where = (node.op_type, node.domain, str(node.name or ""), opset)
            self.gaps.append(Gap(*where, refusal.reason, refusal.way_out))
            return
        results = [answer] if isinstance(answer, Code) else list(answer)
        for value, result in zip(node.outputs, results, strict=False):
            if result is not None:
                self._known[value] = self.body.let(result, hint_of(node, value))

    def _answer(self, site: Site) -> Code | Sequence[Code | None]:
        """What the row of a node makes, or where it has none that takes it, its tensor program."""
        from fusile.backends.framework.printing import program

        node = site.node
        label = node.op_type if node.domain in ("", "fusile") else f"{node.domain}::{node.op_type}"
        row = self.framework.rows.get(label)
        if row is None:
            return program(site)
        if self.framework.avoids(node):
            try:
                return program(site)
            except Refusal:
                return row(site)
        try:
            return row(site)
        except Refusal:
            if defined(node.domain, node.op_type):
                with contextlib.suppress(Refusal):
                    return program(site)
            raise

    def names(self) -> frozenset[str]:
        """Names of functions of the file."""
        return frozenset(self._function_names)

    def function_name(self, hint: str) -> str:
        """A free name for a function of the file."""
        return identifier(hint, self._function_names)

    def function(self, hint: str, lines: Callable[[str], list[str]], before: Sequence[str] = ()) -> Code:
        """A function of the file, after those that it calls. One that is there already is not made again."""
        key = tuple(lines(""))
        if not before and key in self._printed:
            return name(self._printed[key])
        made = self._printed[key] = self.function_name(hint)
        self.functions += [*([list(before)] if before else []), lines(made)]
        return name(made)

    # ---- graphs inside nodes ---------------------------------------------------------------------

    def inlined(self, graph: ir.Graph) -> list[Code]:
        """The outputs of a graph that is always taken, its nodes printed where they stand."""
        self._nodes(graph)
        return [self.tensor(value) for value in graph.outputs]

    def _nodes(self, graph: ir.Graph) -> None:
        before = len(self.gaps)
        for node in graph:
            self._node(node)
        if len(self.gaps) > before:
            raise Listed

    def method(self, graph: ir.Graph, hint: str, single: bool = False) -> Method:
        """Print a graph as a method. It answers a tuple, or with `single` its only output."""
        outer = captured(graph)
        held = {v: self.host(v) for v in outer}
        known = {v: array for v, array in held.items() if array is not None and array.is_constant}
        outer = [v for v in outer if v not in known]
        given = tuple(self.tensor(v) for v in outer)
        names = set(self.framework.reserved) | {"self"}
        formals = [*graph.inputs, *outer]
        variables = [Var(identifier(short_path(str(v.name)), names), fixed=True) for v in formals]
        title = self.attribute(hint)
        kept = (self.body, self._known, self._input_dims, self._dim_vars, self._opaque, self.arguments)
        self.body = Body(tuple(variables), self.framework.reserved)
        self._known = {**known, **{v: Name(var) for v, var in zip(formals, variables, strict=True)}}
        self._input_dims, self._dim_vars, self._opaque, self.arguments = {}, {}, {}, variables
        self._function_names |= {var.hint for var in variables}
        try:
            self._nodes(graph)
            results = tuple(self.tensor(value) for value in graph.outputs)
            self.body.result = results[0] if single else code(results)
            self.methods.append((title, self.body, f"A graph inside of the model: {title}."))
        finally:
            self.body, self._known, self._input_dims, self._dim_vars, self._opaque, self.arguments = kept
        return Method(name(f"self.{title}"), given)

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
        """A weight in the initialiser's own form or in the wanted one: what holds it in the module."""
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

    def table(self, array: np.ndarray, kind: ir.DataType) -> Code:
        """A table that a definition works with, as a constant of the weights file."""
        held, count = self.model.graph.initializers, len(self.weights)
        while f"table_{count}" in held:
            count += 1
        own = f"table_{count}"
        value = ir.Value(
            name=own,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(kind),
            const_value=ir.tensor(array, dtype=kind, name=own),
        )
        self.model.graph.register_initializer(value)
        self.weights[own] = Weight(own, own, "constant")
        return self.parameter(value)

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
        parts = tuple(short_path(stem).split("."))
        if parts[: len(self._prefix)] == self._prefix and len(parts) > len(self._prefix):
            parts = parts[len(self._prefix) :]
        made = identifier("_".join(parts)[-_LONGEST:], self._attributes)
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
        if size.op == "select":
            return Ternary(*(self.size(a) for a in size.args))
        if size.op == "cast":
            return self.size(size.args[0])
        signs = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%", "div": "//"}
        signs |= {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "and": "&", "or": "|"}
        if size.op not in signs:
            raise Refusal(f"a size is computed with {size.op!r}, which has no plain spelling")
        return self.size(size.args[0]).binary(signs[size.op], self.size(size.args[1]))

    def _dim_var(self, symbol: str) -> Var:
        found = self._dim_vars.get(symbol)
        if found is None:
            value, axis = self._dim_source(symbol)
            found = Var(dim_hint(symbol, axis, len(value.shape or ())), tensor=False)
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
