"""The structure of a model's file: everything but the data of its weights, as one digest.

Two files of one structure are compiled to the same code and differ in packed weights alone. The walk reads
lengths and small fields and steps over weights, so it costs next to nothing on a large model.

A tensor is a weight when nobody asks for its values while a model is compiled: a float of more than
FEWEST_FLOATS elements, or anything else of more than FEWEST_INTEGERS. Small integers are sizes and axes, a
few floats are scales and bounds; they shape the code. `Watch` sees to it that the rule holds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from fusile.frontend.limits import MAX_DEPTH
from fusile.frontend.storage import MappedTensor, release_pages
from fusile.frontend.wire import Buffer, Field, fields

FEWEST_FLOATS = 9
"""From this many elements on, floats are weights."""
FEWEST_INTEGERS = 1025
"""From this many elements on, everything else but strings is a weight."""

_FLOATS = frozenset({1, 10, 11, 14, 15, 16, 17, 18, 19, 20, 23, 24})
_STRING = 8
_LENGTH, _VARINT = 2, 0

# Fields that lead to tensors: message -> field number -> message. What an attribute is depends on its node.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "constant": {5: "value"},
    "attribute": {6: "graph", 11: "graph"},
    "value": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_OP_TYPE = 4
_DIMS, _DATA_TYPE, _EXTERNAL_DATA = 1, 2, 13
_DATA = frozenset({4, 5, 7, 9, 10, 11})


@dataclass(frozen=True, slots=True)
class Structure:
    """`digest` says what shapes the code; `external` are the files that the model names for tensor data.

    `whole` is False where values that shape the code lie in such a file, so that the digest does not hold
    them.
    """

    digest: str
    external: tuple[str, ...]
    whole: bool


def is_weight(element: int, count: int) -> bool:
    """Whether a tensor of an ONNX element type and a number of elements is a weight."""
    if element == _STRING:
        return False
    return count >= (FEWEST_FLOATS if element in _FLOATS else FEWEST_INTEGERS)


def structure(buffer: Buffer) -> Structure:
    """The structure of the model in `buffer`. Raises InvalidModelError where the bytes are no message."""
    view = memoryview(buffer)
    try:
        walk = _Walk(buffer, view)
        walk.message("model", 0, len(buffer), 0)
        return walk.result(len(buffer))
    finally:
        view.release()


@dataclass(slots=True)
class _Walk:
    """Feeds what is kept to one digest, and to another where how much was left out."""

    buffer: Buffer
    view: memoryview
    kept: Any = field(default_factory=hashlib.sha256)
    gaps: Any = field(default_factory=hashlib.sha256)
    at: int = 0
    external: dict[str, None] = field(default_factory=dict)
    whole: bool = True

    def result(self, end: int) -> Structure:
        self.kept.update(self.view[self.at : end])
        digest = hashlib.sha256(self.kept.digest() + self.gaps.digest()).hexdigest()
        return Structure(digest, tuple(self.external), self.whole)

    def omit(self, start: int, end: int) -> None:
        self.kept.update(self.view[self.at : start])
        self.gaps.update(start.to_bytes(8, "little") + (end - start).to_bytes(8, "little"))
        self.at = end

    def message(self, kind: str, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            return  # the reader refuses it
        if kind == "tensor":
            self.tensor(start, end)
            return
        if kind == "node" and self._is_constant(start, end):
            kind = "constant"
        children = _CHILDREN[kind]
        for found in fields(self.buffer, start, end):
            child = children.get(found.number)
            if child is not None and found.kind == _LENGTH:
                self.message(child, found.begin, found.end, depth + (child == "graph"))

    def _is_constant(self, start: int, end: int) -> bool:
        """Whether a node is a Constant: it becomes an initialiser. Other nodes read their attributes."""
        for found in fields(self.buffer, start, end):
            if found.number == _OP_TYPE and found.kind == _LENGTH:
                return bytes(self.view[found.begin : found.end]) == b"Constant"
        return False

    def tensor(self, start: int, end: int) -> None:
        """Step over the data of a tensor that is a weight; note the file of one that lies elsewhere."""
        data: list[Field] = []
        count, element, outside = 1, 0, False
        for found in fields(self.buffer, start, end):
            if found.number == _DIMS:
                count *= math.prod(self._integers(found))
            elif found.number == _DATA_TYPE and found.kind == _VARINT:
                element = found.value
            elif found.number == _EXTERNAL_DATA and found.kind == _LENGTH:
                outside = True
                self._external(found.begin, found.end)
            elif found.number in _DATA:
                data.append(found)
        if is_weight(element, count):
            for found in data:
                self.omit(found.begin, found.end)
        elif outside:
            self.whole = False

    def _integers(self, found: Field) -> Iterator[int]:
        """A repeated integer: one value, or several packed ones."""
        if found.kind == _VARINT:
            yield found.value
            return
        at = found.begin
        while found.kind == _LENGTH and at < found.end:
            value, shift = 0, 0
            while at < found.end:
                byte = self.buffer[at]
                at += 1
                value |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    break
            yield value

    def _external(self, start: int, end: int) -> None:
        """Note the location in an entry (key, value) of external data."""
        texts = {f.number: bytes(self.view[f.begin : f.end]) for f in fields(self.buffer, start, end)}
        if texts.get(1) == b"location":
            self.external[texts.get(2, b"").decode("utf-8", "replace")] = None


class Watch:
    """Notes which weights are read while a model is compiled, although the rule says that none is.

    Where `read` is not empty at the end, the code depends on them, and belongs to these weights alone.
    `tensors` are the initialisers by name, numbers of any kind; they are readable until `release`.
    """

    def __init__(self, model: ir.Model) -> None:
        self.read: set[str] = set()
        self.tensors: dict[str, ir.TensorProtocol] = {}
        self._held: dict[str, ir.TensorProtocol] = {}
        self._owners: dict[int, str] = {}
        self._on = True
        for name, value in model.graph.initializers.items():
            held = value.const_value
            if held is not None and held.dtype is not ir.DataType.STRING:
                self._held[name] = held
                value.const_value = self.tensors[name] = self._watched(name, held)

    def stop(self) -> None:
        """From here on weights are read to be packed."""
        self._on = False

    def end(self, model: ir.Model) -> None:
        """Put the initialisers' own tensors back into the model, which may outlive `release`."""
        for name, held in self._held.items():
            if name in model.graph.initializers:
                model.graph.initializers[name].const_value = held

    def release(self) -> None:
        """Let go of the data, and so of the files that they are in, whoever still holds a part of the
        model.
        """
        self._held.clear()

    def let_go(self) -> None:
        """Release the pages of files that weights are mapped from; a later read brings them back."""
        maps = {
            id(held.buffer): held.buffer for held in self._held.values() if isinstance(held, MappedTensor)
        }
        for buffer in maps.values():
            release_pages(buffer)

    def name_of(self, data: object) -> str | None:
        """The initialiser whose `numpy` this is, or None."""
        return self._owners.get(id(getattr(data, "__self__", None)))

    def _watched(self, name: str, held: ir.TensorProtocol) -> ir.TensorProtocol:
        weight = is_weight(int(held.dtype), math.prod(int(n) for n in held.shape.numpy()))

        def read() -> ir.TensorProtocol:
            if weight and self._on:
                self.read.add(name)
            return self._held[name]

        made = ir.LazyTensor(read, held.dtype, ir.Shape(held.shape.numpy()), name=held.name)
        self._owners[id(made)] = name
        return made
