"""How a rule brings one operator from an older version to a newer: the rule's type and its tools.

A rule is a row (operator, version that ends the quirk, function). The function gets a `Site`: one node
in its graph, which it changes in place or replaces by others. New nodes are of the canonical version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from fusile.errors import Gap, InvalidModelError, UnsupportedError, show_name
from fusile.frontend.inline import take_over
from fusile.frontend.names import Names

CANONICAL_OPSET = 28
"""The version of the standard operators in a canonical graph."""

EVER = CANONICAL_OPSET + 1
"""The `before` of a rule for every version: for what no version changed and one form is enough for."""

AttrValue = int | float | str | Sequence[int] | Sequence[float] | Sequence[str] | ir.Graph


@dataclass(frozen=True, slots=True)
class Rule:
    """`apply` brings nodes of `op_type` from a version below `before` to the form that `before` has."""

    op_type: str
    before: int
    apply: Callable[[Site], None]
    domain: str = ""


class Site:
    """One node that a rule works on."""

    def __init__(self, node: ir.Node, model: ir.Model, names: Names) -> None:
        self.node = node
        self.model = model
        self.names = names
        self.emitted: list[ir.Node] = []
        self.replaced = False

    # What is there

    def input(self, index: int) -> ir.Value | None:
        """The input at `index`, None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def required(self, index: int) -> ir.Value:
        """The input at `index`. Raises InvalidModelError where it is left out."""
        value = self.input(index)
        if value is None:
            raise InvalidModelError(
                f"{self.node.op_type} needs input {index}", where=f"node {show_name(self.node.name)}"
            )
        return value

    def get_int(self, name: str, default: int | None = None) -> int | None:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def get_ints(self, name: str) -> tuple[int, ...] | None:
        attribute = self.node.attributes.get(name)
        return None if attribute is None else tuple(attribute.as_ints())

    def get_float(self, name: str) -> float | None:
        attribute = self.node.attributes.get(name)
        return None if attribute is None else attribute.as_float()

    def get_string(self, name: str) -> str | None:
        attribute = self.node.attributes.get(name)
        return None if attribute is None else attribute.as_string()

    def rank(self, value: ir.Value | None) -> int | None:
        """The rank of a value, None where nothing declares it."""
        return None if value is None or value.shape is None else len(value.shape)

    def used(self, index: int) -> bool:
        """Whether anything reads the output at `index`."""
        if index >= len(self.node.outputs):
            return False
        value = self.node.outputs[index]
        return bool(value.uses()) or value.is_graph_output()

    def unsupported(self, reason: str, way_out: str = "Export the model with opset 13 or newer") -> NoReturn:
        raise UnsupportedError(gap(self.node, reason, way_out))

    # What changes

    def set(self, name: str, value: AttrValue | None) -> None:
        """Set an attribute; None removes it."""
        if value is None:
            self.node.attributes.pop(name, None)
        else:
            self.node.attributes[name] = attribute(name, value)

    def drop(self, *names: str) -> None:
        for name in names:
            self.node.attributes.pop(name, None)

    def set_input(self, index: int, value: ir.Value | None) -> None:
        if index >= len(self.node.inputs):
            self.node.resize_inputs(index + 1)
        self.node.replace_input_with(index, value)

    def set_inputs(self, *values: ir.Value | None) -> None:
        self.node.resize_inputs(len(values))
        for index, value in enumerate(values):
            self.node.replace_input_with(index, value)

    def trim_outputs(self, count: int) -> None:
        """Drop the outputs from `count` on, which nothing reads."""
        if len(self.node.outputs) > count:
            self.node.resize_outputs(count)

    def constant(self, array: Any, role: str) -> ir.Value:
        """A new initialiser of the main graph, named after the node and its role there."""
        name = self.names.value(f"{self.node.name}/{role}")
        return add_initializer(self.model, ir.tensor(np.asarray(array), name=name), name)

    def ints_constant(self, values: Sequence[int], role: str) -> ir.Value:
        return self.constant(np.array(values, np.int64), role)

    def like(self, number: float, other: ir.Value, role: str) -> ir.Value:
        """A scalar of the type of `other`, whether or not that is known yet."""
        if other.dtype is not None and other.dtype != ir.DataType.UNDEFINED:
            return self.constant(np.array(number).astype(other.dtype.numpy()), role)
        return self.emit("CastLike", [self.constant(np.array(number, np.float32), role), other])

    def emit(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: AttrValue) -> ir.Value:
        """A new node of one output before this one; its output."""
        return self.emit_many(op_type, inputs, 1, **attributes)[0]

    def emit_many(
        self, op_type: str, inputs: Sequence[ir.Value | None], outputs: int, **attributes: AttrValue
    ) -> Sequence[ir.Value]:
        made = [attribute(name, value) for name, value in attributes.items()]
        return self.emit_node("", op_type, CANONICAL_OPSET, inputs, made, outputs)

    def emit_node(
        self,
        domain: str,
        op_type: str,
        version: int | None,
        inputs: Sequence[ir.Value | None],
        attributes: Sequence[ir.Attr],
        outputs: int = 1,
    ) -> Sequence[ir.Value]:
        """A new node of any domain and version before this one; its outputs."""
        node = ir.Node(
            domain,
            op_type,
            inputs,
            attributes,
            num_outputs=outputs,
            version=version,
            name=self.names.node(f"{self.node.name}/{op_type}"),
        )
        for index, value in enumerate(node.outputs):
            value.name = self.names.value(f"{node.name}_out{index}")
        self.node.prepend(node)
        self.emitted.append(node)
        return node.outputs

    def replace(self, *values: ir.Value | None) -> None:
        """Replace the node: its outputs are `values`, each made by a node that was emitted here; None for
        what nothing reads.
        """
        for old, new in zip(self.node.outputs, values):
            if new is not None:
                take_over(old, new)
        graph = self.node.graph
        assert graph is not None
        graph.remove(self.node, safe=True)
        self.replaced = True


def attribute(name: str, value: AttrValue) -> ir.Attr:
    """An attribute from a Python value. An empty list is one of integers."""
    match value:
        case ir.Graph():
            return ir.AttrGraph(name, value)
        case str():
            return ir.AttrString(name, value)
        case float():
            return ir.AttrFloat32(name, value)
        case int():
            return ir.AttrInt64(name, value)
    items: list[Any] = list(value)
    if items and isinstance(items[0], str):
        return ir.AttrStrings(name, [str(item) for item in items])
    if items and isinstance(items[0], float):
        return ir.AttrFloat32s(name, [float(item) for item in items])
    return ir.AttrInt64s(name, [int(item) for item in items])


def add_initializer(model: ir.Model, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """A new initialiser of the main graph, visible in all graphs."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def gap(node: ir.Node, reason: str, way_out: str = "") -> Gap:
    """What is missing to compile `node`."""
    return Gap(node.op_type, node.domain, node.name or "", node.version, reason, way_out)
