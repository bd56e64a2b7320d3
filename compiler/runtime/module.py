"""A compiled model as the caller sees it: its ports, how it is called, and how its feeds are checked."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np

from fusile.dims import NAMELESS
from fusile.errors import RunError, UsageError, show_name, show_names, show_word
from fusile.ir.types import BY_CODE, numpy_dtype
from fusile.runtime.dlpack import from_dlpack

Array = np.ndarray[Any, np.dtype[Any]]
Value = Any
"""An array; a list for a sequence, a dict for a map, None for an absent optional."""
Shape = tuple[int | str | None, ...]

TENSOR_NAMES: dict[int, str] = {
    1: "float", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string",
    9: "bool", 10: "float16", 11: "double", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128",
    16: "bfloat16", 17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz",
    21: "uint4", 22: "int4", 23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2",
}  # fmt: skip
"""ONNX's number of an element type, and its name within `tensor(...)`."""


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a compiled model.

    `type` is ONNX's name of the type, such as `tensor(float)` or `seq(tensor(int64))`. `dtype` is the
    numpy (or ml_dtypes) type of a tensor's elements, `object` for strings, and None for what is no
    tensor. A dimension in `shape` is a size, a symbol's name, or None where the model says nothing;
    `shape` itself is None where the rank is unknown and for what is no tensor; that of an optional tensor is
    the tensor's.
    """

    name: str
    type: str
    dtype: np.dtype[Any] | None
    shape: Shape | None

    @classmethod
    def tensor(cls, name: str, element: int, shape: Sequence[int | str | None] | None) -> Port:
        """A tensor port from ONNX's number of the element type."""
        dims = None if shape is None else tuple(shape)
        return cls(name, f"tensor({TENSOR_NAMES[element]})", numpy_dtype(BY_CODE[element]), dims)

    @property
    def optional(self) -> bool:
        return self.type.startswith("optional(")

    def __str__(self) -> str:
        if self.shape is None:
            return f"{show_name(self.name)}: {self.type}"
        return f"{show_name(self.name)}: {self.type}{_shape_text(self.shape)}"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model says about itself. `overridable` are the initialisers that it lists as inputs too: name,
    type as ONNX calls it, shape.
    """

    graph_name: str = ""
    producer_name: str = ""
    domain: str = ""
    description: str = ""
    graph_description: str = ""
    version: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    overridable: Sequence[tuple[str, str, Sequence[int]]] = ()


Fault = Literal["count", "missing", "unknown", "kind", "dtype", "rank", "dims", "symbol"]


class FeedError(RunError):
    """A feed does not fit the model. `fault` says in which way, `name` at which input.

    `expected` and `got` are the two types, ranks, shapes or lists of names that differ.
    """

    def __init__(
        self, fault: Fault, name: str, what: str, *, expected: object, got: object, todo: str | None = None
    ) -> None:
        self.fault: Fault = fault
        self.name = name
        self.expected = expected
        self.got = got
        super().__init__(what, why=f"expected {_said(expected)}, got {_said(got)}", todo=todo)


def _said(value: object) -> str:
    return _shape_text(value) if isinstance(value, tuple) else str(value)


def _shape_text(shape: Sequence[int | str | None]) -> str:
    return f"[{', '.join('?' if dim is None else show_word(str(dim)) for dim in shape)}]"


@dataclass(frozen=True, slots=True)
class _Row:
    """What one input must look like, worked out once."""

    port: Port
    dtype: np.dtype[Any] | None
    rank: int
    static: tuple[int, ...] | None
    fixed: tuple[tuple[int, int], ...]
    symbols: tuple[tuple[int, str], ...]


class Signature:
    """The inputs of a module: puts a call's arguments in graph order and checks them."""

    def __init__(self, ports: Sequence[Port]) -> None:
        self.ports = tuple(ports)
        self.names = tuple(port.name for port in ports)
        named = (dim for port in self.ports for dim in port.shape or () if isinstance(dim, str))
        uses = Counter(dim for dim in named if dim not in NAMELESS)
        shared = frozenset(symbol for symbol, count in uses.items() if count > 1)
        self._rows = tuple(_row(port, shared) for port in ports)

    def arrange(self, args: Sequence[object], named: Mapping[str, object]) -> list[object]:
        """The values of a call in graph order: positional ones first, then by name, or one dict of all.

        Raises FeedError for a missing, an unknown or a doubled input.
        """
        if len(args) == 1 and not named and self._is_dict_of_feeds(args[0]):
            named, args = cast("Mapping[str, object]", args[0]), ()
        if len(args) > len(self.names):
            raise FeedError(
                "count",
                "",
                "Too many inputs",
                expected=f"{len(self.names)} ({show_names(self.names)})",
                got=len(args),
            )
        given = dict(zip(self.names, args))
        for name in named:
            if name in given:
                raise FeedError(
                    "unknown", name, f"Input {show_name(name)} is given twice", expected="one", got="two"
                )
            if name not in self.names:
                raise self.unknown(name)
        given.update(named)
        missing = [port.name for port in self.ports if port.name not in given and not port.optional]
        if missing:
            raise self.missing(missing, list(given))
        return [given.get(name) for name in self.names]

    def unknown(self, name: str) -> FeedError:
        """The error for a name that is none of the inputs."""
        return FeedError(
            "unknown",
            name,
            f"The model has no input {show_name(name)}",
            expected=show_names(self.names),
            got=show_name(name),
        )

    def missing(self, names: Sequence[str], given: Sequence[str]) -> FeedError:
        """The error for inputs that got no value."""
        return FeedError(
            "missing",
            names[0],
            f"Input {show_names(names)} is missing",
            expected=show_names(self.names),
            got=show_names(given) if given else "nothing",
            todo="Give every input a value",
        )

    def check(self, feeds: Sequence[object]) -> list[Value]:
        """The feeds as C-contiguous arrays of the declared types, in graph order; copies only what must be.

        Lists and numbers become arrays of the declared type, tensors of other libraries are read where
        they are. Raises FeedError where the kind, type, rank or a dimension does not fit, or where two
        dimensions with one name differ.
        """
        if len(feeds) != len(self._rows):
            raise FeedError(
                "count", "", "The number of inputs is wrong", expected=len(self._rows), got=len(feeds)
            )
        ready: list[Value] = []
        sizes: dict[str, tuple[int, Port]] = {}
        for value, row in zip(feeds, self._rows):
            if row.dtype is None:
                ready.append(_other(value, row.port))
                continue
            array = value if type(value) is np.ndarray else _read(value, row)
            if array.dtype != row.dtype or not array.flags.carray:
                array = _settle(array, row)
            shape = array.shape
            if shape != row.static:
                _check_shape(shape, row, sizes)
            ready.append(array)
        return ready

    def _is_dict_of_feeds(self, value: object) -> bool:
        if not isinstance(value, Mapping):
            return False
        takes_map = len(self.ports) == 1 and self.ports[0].type.startswith(("map(", "optional(map("))
        return not takes_map or set(value) == set(self.names)


def _row(port: Port, shared: frozenset[str]) -> _Row:
    """The row of a port; of its symbols those that other dimensions share, for only they can differ."""
    shape = port.shape
    if shape is None:
        return _Row(port, port.dtype, -1, None, (), ())
    fixed = tuple((axis, dim) for axis, dim in enumerate(shape) if isinstance(dim, int))
    symbols = tuple((axis, dim) for axis, dim in enumerate(shape) if isinstance(dim, str) and dim in shared)
    static = cast("tuple[int, ...]", shape) if len(fixed) == len(shape) else None
    return _Row(port, port.dtype, len(shape), static, fixed, symbols)


def _read(value: object, row: _Row) -> Array:
    """An array out of anything that is not exactly an ndarray."""
    port = row.port
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        try:
            return from_dlpack(value)
        except BufferError as refusal:
            raise FeedError(
                "kind",
                port.name,
                f"Input {show_name(port.name)} cannot be read in place",
                expected=port.type,
                got=f"{type(value).__name__} ({refusal})",
                todo="Give a detached tensor in CPU memory",
            ) from refusal
    if isinstance(value, (list, tuple, int, float, complex, str)):
        return _from_python(value, row)
    if value is not None and hasattr(value, "__array__"):
        return np.asarray(value)
    raise _wrong_kind(port, value)


def _from_python(value: object, row: _Row) -> Array:
    """Lists and numbers carry no type of their own: they get the declared one, if it holds their values."""
    port = row.port
    try:
        plain = np.asarray(value)
        if plain.size == 0:
            return plain.astype(row.dtype)
        if row.dtype is not None and plain.dtype.kind in "fc" and row.dtype.kind in "biu":
            raise _wrong_kind(port, value)
        return np.asarray(value, dtype=row.dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise FeedError(
            "kind",
            port.name,
            f"Input {show_name(port.name)} cannot become an array",
            expected=port.type,
            got=f"{type(value).__name__} ({error})",
            todo="Give a numpy array",
        ) from error


def _settle(array: Array, row: _Row) -> Array:
    """The array in native byte order, aligned and contiguous, or a FeedError about its type."""
    port = row.port
    if array.dtype != row.dtype:
        strings = row.dtype == np.dtype(object) and array.dtype.kind in "UTS"
        if strings and array.dtype.kind == "S":
            array = np.char.decode(array, "utf-8")
        if not strings and array.dtype.newbyteorder("=") != row.dtype:
            raise FeedError(
                "dtype",
                port.name,
                f"Input {show_name(port.name)} has the wrong type",
                expected=port.type,
                got=type_of(array),
                todo=f"Convert it with .astype({_numpy_name(row.dtype)})",
            )
        array = array.astype(cast("np.dtype[Any]", row.dtype))
    if not array.flags.c_contiguous or not array.flags.aligned:
        array = array.copy(order="C")
    return array


def _check_shape(shape: tuple[int, ...], row: _Row, sizes: dict[str, tuple[int, Port]]) -> None:
    port = row.port
    if row.rank < 0:
        return
    if len(shape) != row.rank:
        raise FeedError(
            "rank",
            port.name,
            f"Input {show_name(port.name)} has the wrong number of dimensions",
            expected=port.shape,
            got=shape,
        )
    if any(shape[axis] != size for axis, size in row.fixed):
        raise FeedError(
            "dims",
            port.name,
            f"Input {show_name(port.name)} has the wrong shape",
            expected=port.shape,
            got=shape,
        )
    for axis, symbol in row.symbols:
        size, first = sizes.setdefault(symbol, (shape[axis], port))
        if size != shape[axis]:
            raise FeedError(
                "symbol",
                port.name,
                f"Dimension {show_name(symbol)} has two sizes",
                expected=f"{size} as in input {show_name(first.name)}",
                got=f"{shape[axis]} in dimension {axis} of input {show_name(port.name)}",
            )


def _other(value: object, port: Port) -> Value:
    """A feed that is no plain tensor: a sequence, a map, an optional. Its elements are checked by the run."""
    inner = port.type.removeprefix("optional(")
    if value is None and port.optional:
        return None
    if inner.startswith("seq(") and isinstance(value, (list, tuple)):
        return list(value)
    if inner.startswith("map(") and isinstance(value, Mapping):
        return dict(value)
    if port.optional and inner.startswith("tensor("):
        return value if isinstance(value, np.ndarray) else np.asarray(value)
    raise _wrong_kind(port, value)


def _wrong_kind(port: Port, value: object) -> FeedError:
    return FeedError(
        "kind",
        port.name,
        f"Input {show_name(port.name)} is of the wrong kind",
        expected=port.type,
        got=f"an object of type {type(value).__name__}",
        todo="Give a numpy array, or anything with __dlpack__",
    )


def _numpy_name(dtype: np.dtype[Any] | None) -> str:
    return f"ml_dtypes.{dtype.name}" if dtype is not None and dtype.kind == "V" else f"np.{dtype}"


def type_of(array: Array) -> str:
    """ONNX's name of an array's type, or numpy's where ONNX has none."""
    dtype = array.dtype
    if dtype.kind in "UTS":
        return "tensor(string)"
    for code, name in TENSOR_NAMES.items():
        if numpy_dtype(BY_CODE[code]) == dtype:
            return f"tensor({name})"
    return str(dtype)


def element_of(type_name: str) -> int | None:
    """ONNX's number of the element type in a type's name; None for what is no tensor."""
    return next((code for code, name in TENSOR_NAMES.items() if type_name == f"tensor({name})"), None)


class Module(Protocol):
    """A compiled model. `run` may be called from any number of threads; its answers are fresh arrays.

    Derive from it: `__call__`, `inputs` and iteration over the ports come with it.
    """

    signature: Signature
    outputs: tuple[Port, ...]
    info: ModelInfo

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self.signature.ports

    def run(self, feeds: Sequence[Value]) -> list[Value]:
        """All outputs in graph order for feeds in graph order, checked by `signature.check`.

        Raises FeedError for wrong feeds and RunError, with the node's name, where the data makes a node
        fail.
        """
        ...

    def save(
        self, path: str | os.PathLike[str], *, embed: bool = True, linker: str | None = None
    ) -> tuple[Path, ...]:
        """Write the module to files and return their paths. Raises UsageError where it has no file form.

        The weights lie in the library, or with `embed=False` in a file beside it. `linker` is the program to
        link with.
        """
        ...

    def __call__(self, *args: Value, **named: Value) -> tuple[Value, ...]:
        """All outputs in graph order, always as a tuple.

        Takes numpy arrays, Python lists, and anything with `__dlpack__` without a copy, by position, by
        name, or as one dict.
        """
        return tuple(self.run(self.signature.arrange(args, named)))


def port_named(ports: Sequence[Port], name: str) -> Port:
    """The port of a name; UsageError lists those there are."""
    for port in ports:
        if port.name == name:
            return port
    raise UsageError(
        f"There is no port {show_name(name)}", todo=f"The names are {show_names(p.name for p in ports)}"
    )


def symbols_of(ports: Sequence[Port]) -> Iterator[str]:
    """The names of the symbolic dimensions, each once, in the order of appearance."""
    seen: set[str] = set()
    for port in ports:
        for dim in port.shape or ():
            if isinstance(dim, str) and dim not in seen:
                seen.add(dim)
                yield dim
