"""A region: nodes between steps of the host, compiled like a model of their own for the types they meet."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import serde

from fusile.errors import InvalidModelError, RunError, UnsettledError, UnsupportedError
from fusile.ir.types import BY_CODE, numpy_dtype
from fusile.runtime.module import TENSOR_NAMES, Array, Module

Source = bytes | ir.Model
Compile = Callable[[Source], Module]

LARGEST_BYTES = 2**30
"""Weights up to this size go into the bytes of a region, by which the cache knows it."""
SMALL = 64
"""Elements that may shape the code, such as axes, come in tensors up to this size."""
MOST_MODULES = 64
"""Specialisations of one region that are kept, the latest ones."""
_STRING = 8


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a tensor ahead of a run: ONNX's number of its type, and for each dimension a size, a
    name, or None. `sure` says that a run cannot meet anything else.
    """

    element: int
    dims: tuple[int | str | None, ...]
    sure: bool


class Detail(IntEnum):
    """How much of an input a module is specialised for."""

    RANK = 0
    ONES = 1
    SIZES = 2
    VALUES = 3


@dataclass(frozen=True, slots=True)
class Template:
    """The nodes of a region as a model without the types of its inputs. `copied` says whether its sources
    hold the weights, up to a limit.
    """

    name: str
    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: tuple[ir.Value, ...]
    opsets: tuple[tuple[str, int], ...]
    ir_version: int
    copied: bool = True

    def source(self, given: Sequence[Known | Array]) -> Source:
        """The model for inputs that are known, or whose values are put in; in bytes where they can hold
        it.
        """
        model = onnx.ModelProto(ir_version=self.ir_version)
        for domain, version in self.opsets:
            model.opset_import.add(domain=domain, version=version)
        graph = model.graph
        graph.name = self.name
        graph.node.extend(self.nodes)
        for place, (name, known) in enumerate(zip(self.inputs, given)):
            if isinstance(known, Known):
                info = graph.input.add(name=name)
                info.type.tensor_type.elem_type = known.element
                info.type.tensor_type.shape.SetInParent()
                for axis, size in enumerate(known.dims):
                    dim = info.type.tensor_type.shape.dim.add()
                    if isinstance(size, int):
                        dim.dim_value = size
                    else:
                        dim.dim_param = size or f"host_{place}_{axis}"
            else:
                graph.initializer.append(onnx.numpy_helper.from_array(known, name))
        for name in self.outputs:
            graph.output.add(name=name)
        held = [value for value in self.constants if value.const_value is not None]
        size = sum(value.const_value.nbytes for value in held if value.const_value is not None)
        if size > LARGEST_BYTES or not self.copied:
            return self._with_weights(model, held)
        for value in held:
            assert value.const_value is not None
            tensor = serde.serialize_tensor(value.const_value)
            tensor.name = str(value.name)
            graph.initializer.append(tensor)
        return bytes(model.SerializeToString())

    def _with_weights(self, proto: onnx.ModelProto, held: Sequence[ir.Value]) -> ir.Model:
        """The model with its weights where they lie."""
        for value in held:
            assert value.const_value is not None
            info = proto.graph.input.add(name=str(value.name))
            info.type.tensor_type.elem_type = int(value.const_value.dtype)
            info.type.tensor_type.shape.SetInParent()
            for n in value.const_value.shape.numpy():
                info.type.tensor_type.shape.dim.add(dim_value=int(n))
        model = serde.deserialize_model(proto)
        by_name = {str(value.name): value for value in held}
        for value in [v for v in model.graph.inputs if v.name in by_name]:
            model.graph.inputs.remove(value)
            value.const_value = by_name[str(value.name)].const_value
            model.graph.register_initializer(value)
        return model


@functools.cache
def element_of_dtype(dtype: np.dtype[Any]) -> int | None:
    """ONNX's number of a numpy type of numbers, None where it has none."""
    return next(
        (code for code in TENSOR_NAMES if code != _STRING and numpy_dtype(BY_CODE[code]) == dtype), None
    )


Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A module, and which values it takes; the others are put into its code."""

    module: Module
    places: tuple[int, ...] | None = None

    def run(self, values: Sequence[Any]) -> list[Any]:
        return self.module.run(values if self.places is None else [values[at] for at in self.places])


class Region:
    """Runs a region, compiling it for what it has not met: types and ranks, never shapes.

    Two things make it look closer. An operator whose form depends on a size or on values, such as axes, is
    compiled for those, where they are few integers. And two sizes that differ in a run, one of which is 1,
    broadcast: code for sizes of 1 is code of its own.
    """

    def __init__(self, template: Template, compile: Compile) -> None:
        self._template = template
        self._compile = compile
        self._lock = threading.Lock()
        self._modules: dict[Key, _Fitted] = {}
        self._details: dict[Key, tuple[Detail, ...]] = {}
        self._prepared: dict[Key, _Fitted] = {}

    @property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        return self._template.nodes

    def prepare(self, known: Sequence[Known]) -> Module:
        """Compile ahead of any run. Raises what compiling raises."""
        module = self._compile(self._template.source(known))
        key = tuple((numpy_dtype(BY_CODE[k.element]), len(k.dims)) for k in known)
        self._prepared[key] = _Fitted(module)
        return module

    def could_settle(self, error: UnsettledError) -> bool:
        """Whether what is open depends on the inputs, and is settled once they are seen."""
        return bool(self._behind(error))

    def run(self, values: Sequence[Any]) -> list[Any]:
        """The outputs for the inputs. Raises RunError."""
        try:
            key: Key = tuple([(value.dtype, value.ndim) for value in values])
        except AttributeError:
            raise RunError(
                "A node got a value that is no tensor", node=self._template.nodes[0].name
            ) from None
        details = self._details.get(key)
        module = self._prepared.get(key) if details is None else None
        if module is None:
            module = self._module(key, details or (Detail.RANK,) * len(values), values)
        try:
            return module.run(values)
        except RunError:
            closer = self._closer(key, values)
            if closer is None:
                raise
            result = self._module(key, closer, values).run(values)
            self._details[key] = tuple(map(max, closer, self._details.get(key, closer)))
            return result

    def _closer(self, key: Key, values: Sequence[Array]) -> tuple[Detail, ...] | None:
        """Details that tell sizes of 1 from others, where a run has such and did not tell them."""
        details = self._details.get(key, (Detail.RANK,) * len(values))
        closer = tuple(max(d, Detail.ONES) for d in details)
        if closer == details or not any(1 in v.shape for v, d in zip(values, details) if d < Detail.ONES):
            return None
        return closer

    def _module(self, key: Key, details: tuple[Detail, ...], values: Sequence[Array]) -> _Fitted:
        full = (key, *(_description(v, d) for v, d in zip(values, details)))
        module = self._modules.get(full)
        if module is not None:
            return module
        with self._lock:
            module = self._modules.get(full)
            if module is None:
                details, module = self._specialised(details, values)
                self._details[key] = details
                full = (key, *(_description(v, d) for v, d in zip(values, details)))
                while len(self._modules) >= MOST_MODULES:
                    del self._modules[next(iter(self._modules))]
                self._modules[full] = module
        return module

    def _specialised(
        self, details: tuple[Detail, ...], values: Sequence[Array]
    ) -> tuple[tuple[Detail, ...], _Fitted]:
        """A module for values, in no more detail than needed."""
        while True:
            try:
                given = [_given(v, d, self._template) for v, d in zip(values, details)]
                places = tuple(at for at, d in enumerate(details) if d < Detail.VALUES)
                module = self._compile(self._template.source(given))
                return details, _Fitted(module, None if len(places) == len(values) else places)
            except InvalidModelError as error:
                raise RunError(
                    "A part of the model does not fit the values that it met",
                    node=self._template.nodes[0].name,
                    why=str(error),
                ) from error
            except UnsupportedError as error:
                closer = self._settling(error, details, values) if isinstance(error, UnsettledError) else None
                if closer is None:
                    gap = error.gaps[0]
                    raise RunError(
                        f"{gap.op_type} cannot be compiled for the values that it met",
                        node=gap.node,
                        why=gap.reason,
                        todo=gap.way_out or None,
                    ) from error
                details = closer

    def _settling(
        self, error: UnsettledError, details: tuple[Detail, ...], values: Sequence[Array]
    ) -> tuple[Detail, ...] | None:
        """More detail of the inputs that an open size or value depends on; None where there is no more.

        Code for values comes first where values are asked for, code for sizes of 1 and for all sizes where
        sizes are: that is one compilation per shape, and the last resort.
        """
        behind = self._behind(error)
        few = [place for place in behind if values[place].ndim <= 1 and values[place].size <= SMALL]
        whole = [place for place in few if values[place].dtype.kind in "iu"]
        long = [place for place in behind if values[place].ndim]
        by_value = [(whole, Detail.SIZES), (whole, Detail.VALUES), (few, Detail.VALUES)]
        by_size = [(long, Detail.ONES), (long, Detail.SIZES)]
        for places, detail in by_value + by_size if error.values else by_size + by_value:
            closer = tuple(max(d, detail) if at in places else d for at, d in enumerate(details))
            if closer != details:
                return closer
        return None

    def _behind(self, error: UnsettledError) -> list[int]:
        """The inputs that the open values depend on, or else the nodes in the error."""
        nodes = set() if error.values else {gap.node for gap in error.gaps}
        reached = set(error.values)
        for node in reversed(self._template.nodes):
            if node.name in nodes or any(name in reached for name in node.output):
                reached.update(node.input)
        return [place for place, name in enumerate(self._template.inputs) if name in reached]


def _description(value: Array, detail: Detail) -> object:
    match detail:
        case Detail.RANK:
            return None
        case Detail.ONES:
            return tuple([n == 1 for n in value.shape])
        case Detail.SIZES:
            return value.shape
    return value.shape, value.tobytes()


def _given(value: Array, detail: Detail, template: Template) -> Known | Array:
    if detail == Detail.VALUES:
        return value
    element = element_of_dtype(value.dtype)
    if element is None:
        raise RunError(
            "A node got a value of a type that it does not take",
            node=template.nodes[0].name,
            why=f"elements of type {value.dtype}",
        )
    dims: tuple[int | None, ...] = (None,) * value.ndim
    if detail == Detail.ONES:
        dims = tuple(1 if n == 1 else None for n in value.shape)
    elif detail == Detail.SIZES:
        dims = value.shape
    return Known(element, dims, False)
