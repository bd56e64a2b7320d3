"""Values of the host at the door: the names of their types, checks of what comes in, copies of what goes
out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from fusile.graph.types import MapType
from fusile.ir.types import BY_CODE, numpy_dtype
from fusile.runtime.module import TENSOR_NAMES, Array, FeedError, Port, Value, type_of

_STRING = int(ir.DataType.STRING)


def type_name(found: Any) -> str:
    """ONNX's name of a type, such as `seq(tensor(float))`."""
    if isinstance(found, MapType):
        return f"map({TENSOR_NAMES[int(found.key)]},{type_name(found.value)})"
    match found:
        case ir.SequenceType():
            return f"seq({type_name(_inner(found))})"
        case ir.OptionalType():
            return f"optional({type_name(_inner(found))})"
        case ir.SparseTensorType():
            return f"sparse_tensor({TENSOR_NAMES[int(found.dtype)]})"
    return f"tensor({TENSOR_NAMES[int(found.dtype)]})"


def _inner(found: ir.SequenceType | ir.OptionalType) -> ir.TypeProtocol:
    inner = found.elem_type
    assert not isinstance(inner, ir.DataType)
    return inner


def dtype_of(element: int) -> np.dtype[Any]:
    """The numpy type of an ONNX element type; strings are objects."""
    return np.dtype(object) if element == _STRING else numpy_dtype(BY_CODE[element])


def element_of(found: Any) -> np.dtype[Any] | None:
    """The numpy type of the elements of a tensor, or of the tensors in a sequence, an optional or a map."""
    if isinstance(found, MapType):
        return element_of(found.value)
    if isinstance(found, (ir.SequenceType, ir.OptionalType)):
        return element_of(found.elem_type)
    if not isinstance(found, ir.TensorType) or int(found.dtype) not in TENSOR_NAMES:
        return None
    return dtype_of(int(found.dtype))


def port_of(name: str, found: Any, dims: Sequence[int | str | None] | None) -> Port:
    """The port of a value. `dims` are those of a tensor, or of the tensor in an optional."""
    if isinstance(found, ir.TensorType):
        dtype = dtype_of(int(found.dtype))
        return Port(name, type_name(found), dtype, None if dims is None else tuple(dims))
    if not isinstance(found, ir.OptionalType) or not isinstance(_inner(found), ir.TensorType):
        dims = None
    return Port(name, type_name(found), None, None if dims is None else tuple(dims))


def settled(value: Value, found: Any, name: str) -> Value:
    """A feed with what is inside of it checked: strings are str, elements of sequences arrays of their type.

    Raises FeedError.
    """
    match found:
        case ir.OptionalType():
            return None if value is None else settled(value, _inner(found), name)
        case ir.SequenceType():
            if not isinstance(value, (list, tuple)):
                raise _wrong(name, found, type(value).__name__)
            return [settled(item, _inner(found), name) for item in value]
    if isinstance(found, MapType):
        if not isinstance(value, Mapping):
            raise _wrong(name, found, type(value).__name__)
        return dict(value)
    element = int(found.dtype)
    array = value if isinstance(value, np.ndarray) else np.asarray(value)
    if element == _STRING:
        return _texts(array, found, name)
    wanted = dtype_of(element)
    if array.dtype != wanted:
        if isinstance(value, (np.ndarray, np.generic)):
            raise _wrong(name, found, type_of(array))
        array = array.astype(wanted)
    return array if array.flags.carray else array.copy(order="C")


def _texts(array: Array, found: Any, name: str) -> Array:
    """An array of str; bytes are read as UTF-8."""
    if array.dtype.kind in "UT":
        return array.astype(object)
    if array.dtype.kind not in "OS":
        raise _wrong(name, found, type_of(array))
    if all(type(item) is str for item in array.flat):
        return array if array.dtype == object else array.astype(object)
    out = np.empty(array.shape, object)
    flat = out.reshape(-1)
    for place, item in enumerate(array.flat):
        if not isinstance(item, (str, bytes)):
            raise _wrong(name, found, f"an element of type {type(item).__name__}")
        flat[place] = text(item)
    return out


def text(item: str | bytes) -> str:
    """A string of a model or of a feed as text."""
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)


def _wrong(name: str, found: Any, got: str) -> FeedError:
    return FeedError(
        "kind",
        name,
        f"Input {name!r} holds something of the wrong kind",
        expected=type_name(found),
        got=got,
    )


def constant(tensor: ir.TensorProtocol) -> Array:
    """The elements of an initialiser, strings as str."""
    array = tensor.numpy()
    if tensor.dtype != ir.DataType.STRING:
        return array
    out = np.empty(array.shape, object)
    out.reshape(-1)[:] = [text(item) for item in array.flat]
    return out


def fresh(results: Sequence[Value], known: Iterable[Value]) -> list[Value]:
    """Results whose arrays are the caller's alone: those that share memory with `known` values or with each
    other are copied.
    """
    taken = {id(_owner(array)) for value in known for array in _arrays(value)}

    def own(value: Value) -> Value:
        if isinstance(value, list):
            return [own(item) for item in value]
        if isinstance(value, dict):
            return {key: own(item) for key, item in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        owner = id(_owner(value))
        if owner in taken:
            value = value.copy(order="C")
            owner = id(value)
        taken.add(owner)
        return value if value.flags.c_contiguous else value.copy(order="C")

    made = [own(value) for value in results]
    return made


def _owner(array: Array) -> object:
    """The object that an array's memory belongs to."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return base


def _arrays(value: Value) -> Iterable[Array]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _arrays(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _arrays(item)
