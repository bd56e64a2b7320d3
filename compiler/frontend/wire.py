"""A walk over the bytes of an .onnx file that leaves its large tensors where they are.

Protobuf copies everything it parses. `strip` copies a model's bytes without the data of its large
tensors: in their place stand external-data entries whose location is a key that only this call knows,
with the offset and the length of the data inside the file. What comes back is small and goes to protobuf.

The walk knows six message types and, of those, the fields that can hold a tensor; all else is copied as
it is and judged by protobuf. Lengths and depths are checked against the buffer before they are used.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fusile.errors import InvalidModelError, UnsafeModelError
from fusile.frontend.limits import MAPPED_BYTES, MAX_DEPTH

Buffer = mmap.mmap | bytes

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FLOAT, _DOUBLE = 1, 11

# Fields that may hold a tensor: message -> field number -> message.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}

# AttributeProto: floats, ints and strings. Trees have hundreds of thousands, one field each, and no tensor.
_PLAIN_LISTS = frozenset({7, 8, 9})

# TensorProto: field number of packed data that lie in memory as the tensor does -> its data type (None: any).
_DATA_FIELDS: dict[int, int | None] = {9: None, 4: _FLOAT, 10: _DOUBLE}
_DATA_TYPE, _SEGMENT, _DATA_LOCATION = 2, 3, 14


class Field(NamedTuple):
    """One field of a message: [start, end) with its key, [begin, end) the payload, `value` of a varint."""

    number: int
    kind: int
    start: int
    begin: int
    end: int
    value: int


def strip(buffer: Buffer, key: str) -> bytes:
    """The model in `buffer` without its large tensor data, as bytes for protobuf.

    Tensors whose data were left out are external, at location `key`. Raises InvalidModelError where
    the bytes are no message, UnsafeModelError where graphs are nested deeper than MAX_DEPTH.
    """
    view = memoryview(buffer)
    try:
        pieces = _Stripper(buffer, view, key).message("model", 0, len(buffer), 0)
        return bytes(view) if pieces is None else b"".join(pieces)
    finally:
        view.release()


def nested_graphs(buffer: bytes) -> int:
    """How deep graphs are nested in the model in `buffer`, at most MAX_DEPTH + 1."""
    deepest = 0
    stack = [("model", 0, len(buffer), 0)]
    while stack:
        message, start, end, depth = stack.pop()
        deepest = max(deepest, depth)
        if depth > MAX_DEPTH:
            break
        for field in fields(buffer, start, end):
            child = _CHILDREN[message].get(field.number)
            if child is not None and field.kind == _LENGTH:
                stack.append((child, field.begin, field.end, depth + (child == "graph")))
    return deepest


def fields(buffer: Buffer, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in buffer[start:end]. Raises InvalidModelError where they overrun it."""
    at = start
    while at < end:
        key, begin = _varint(buffer, at, end)
        number, kind = key >> 3, key & 7
        value = 0
        if kind == _VARINT:
            value, stop = _varint(buffer, begin, end)
        elif kind == _LENGTH:
            length, begin = _varint(buffer, begin, end)
            stop = begin + length
        elif kind == _FIXED32:
            stop = begin + 4
        elif kind == _FIXED64:
            stop = begin + 8
        else:
            raise _broken(at, f"wire type {kind}")
        if stop > end:
            raise _broken(at, f"field {number} needs {stop - end} bytes more than there are")
        if number == 0:
            raise _broken(at, "field number 0")
        yield Field(number, kind, at, begin, stop, value)
        at = stop


def _varint(buffer: Buffer, at: int, end: int) -> tuple[int, int]:
    """The varint at `at` and the position after it."""
    if at < end and (value := buffer[at]) < 0x80:  # most are of one byte
        return value, at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _broken(at, "a number is cut off")
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _broken(at, "a number is longer than ten bytes")


def _broken(at: int, why: str) -> InvalidModelError:
    return InvalidModelError(
        "The model is truncated or is not an ONNX file",
        where=f"byte {at}",
        why=why,
        todo="Fetch or export the file again",
    )


@dataclass(frozen=True, slots=True)
class _Stripper:
    buffer: Buffer
    view: memoryview
    key: str

    def message(self, kind: str, start: int, end: int, depth: int) -> list[bytes | memoryview] | None:
        """The message in [start, end) without tensor data, in pieces, or None where nothing was left out."""
        if depth > MAX_DEPTH:
            raise UnsafeModelError(
                "The model's graphs are nested too deep",
                where=f"byte {start}",
                why=f"fusile reads {MAX_DEPTH} levels",
            )
        if kind == "tensor":
            return self.tensor(start, end)
        children = _CHILDREN[kind]
        pieces: list[bytes | memoryview] = []
        kept = start
        for field in fields(self.buffer, start, end):
            if kind == "attribute" and field.number in _PLAIN_LISTS:
                return None
            child = children.get(field.number)
            # What is smaller than the smallest mapped tensor holds none.
            if child is None or field.kind != _LENGTH or field.end - field.begin < MAPPED_BYTES:
                continue
            inner = self.message(child, field.begin, field.end, depth + (child == "graph"))
            if inner is None:
                continue
            pieces += (
                self.view[kept : field.start],
                _encoded(field.number << 3 | _LENGTH),
                _encoded(sum(map(len, inner))),
                *inner,
            )
            kept = field.end
        if not pieces:
            return None
        return [*pieces, self.view[kept:end]]

    def tensor(self, start: int, end: int) -> list[bytes | memoryview] | None:
        """A tensor's pieces, with a reference in place of its data."""
        data: Field | None = None
        data_type = 0
        for field in fields(self.buffer, start, end):
            if field.number == _DATA_TYPE and field.kind == _VARINT:
                data_type = field.value
            elif field.number in (_SEGMENT, _DATA_LOCATION):
                return None  # in parts, or external already
            elif field.number in _DATA_FIELDS and field.kind == _LENGTH:
                if data is not None:
                    return None  # in several chunks, which protobuf knows how to join
                data = field
        if data is None or data.end - data.begin < MAPPED_BYTES:
            return None
        wanted = _DATA_FIELDS[data.number]
        if wanted is not None and wanted != data_type:
            return None  # complex numbers, or a broken tensor: the checks after parsing tell
        reference = _reference(self.key, data.begin, data.end - data.begin)
        return [self.view[start : data.start], self.view[data.end : end], reference]


def _reference(key: str, offset: int, length: int) -> bytes:
    """The fields of TensorProto that say where the data are: external_data entries and data_location."""
    entries = (("location", key), ("offset", str(offset)), ("length", str(length)))
    text = b""
    for name, value in entries:
        entry = _text(1, name) + _text(2, value)
        text += _encoded(13 << 3 | _LENGTH) + _encoded(len(entry)) + entry
    return text + _encoded(_DATA_LOCATION << 3 | _VARINT) + b"\x01"


def _text(number: int, value: str) -> bytes:
    data = value.encode()
    return _encoded(number << 3 | _LENGTH) + _encoded(len(data)) + data


def _encoded(value: int) -> bytes:
    """`value` as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
