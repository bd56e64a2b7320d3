"""A node and the printer around it: what a row works with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import onnx_ir as ir

from fusile.backends.framework.code import Code, Plain, Targets, code, name, short_float
from fusile.backends.framework.common import Place, Printer, Size
from fusile.backends.framework.host import HostArray, Scalar
from fusile.backends.framework.naming import snake
from fusile.backends.framework.refusal import Refusal
from fusile.graph import tensors as tn


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

    def has_rank(self, index: int = 0) -> bool:
        """Whether the rank of an input is known while printing."""
        return self.value(index).shape is not None

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

    def axis_word(self, default: int = -1, of: int = 0) -> int:
        """The `axis` attribute as it is written: -1 for the last; counted as given if the rank is unknown."""
        if not self.has_rank(of):
            return self.integer("axis", default)
        axis = self.axis(default, of)
        return -1 if axis == self.rank(of) - 1 else axis

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
        """What a layer is called: after its weight, else the module around the node, else its operator."""
        weight = self.weight(index)
        if weight is not None:
            text = weight.name.removesuffix(tn.FOLDED)
            short = re.sub(r"[._/]?(weight|kernel|scale|gamma|w_\d+|W)$", "", text)
            if short and not tn.is_generic(text):
                return short
        return tn.scope(self.node) or snake(self.node.op_type)

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
