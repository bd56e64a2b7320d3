"""Tensors of other libraries as numpy arrays over the same memory, through the DLPack protocol."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CPU_DEVICES = frozenset({1, 3, 11, 13})  # plain, pinned for CUDA or ROCm, and CUDA managed memory

# DLPack's (type code, bits) for the types that numpy has no name for, and what ml_dtypes calls them
_SMALL_TYPES = {
    (4, 16): "bfloat16",
    (10, 8): "float8_e4m3fn",
    (11, 8): "float8_e4m3fnuz",
    (12, 8): "float8_e5m2",
    (13, 8): "float8_e5m2fnuz",
    (14, 8): "float8_e8m0fnu",
}


class _Tensor(ctypes.Structure):
    """The head of a DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Held:
    """Memory of another library under numpy's array interface; its capsule keeps the memory alive."""

    def __init__(self, interface: dict[str, Any], capsule: object) -> None:
        self.__array_interface__ = interface
        self.capsule = capsule


def from_dlpack(value: Any) -> np.ndarray[Any, Any]:
    """A numpy array over the memory of an object with `__dlpack__`, without a copy.

    Raises BufferError where the memory is on another device, needs a gradient or has a type without a
    counterpart in numpy and ml_dtypes.
    """
    device, number = value.__dlpack_device__()
    if int(device) not in CPU_DEVICES:
        raise BufferError(f"the tensor lives on device type {int(device)} number {number}, not on the CPU")
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError) as refusal:
        array = _small_type(value)
        if array is None:
            raise BufferError(str(refusal)) from refusal
        return array


def _small_type(value: Any) -> np.ndarray[Any, Any] | None:
    try:
        capsule = value.__dlpack__()
    except (BufferError, RuntimeError, TypeError):
        return None
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
    name = _SMALL_TYPES.get((tensor.code, tensor.bits))
    if name is None or tensor.lanes != 1:
        return None
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, name))
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = None
    if tensor.strides:
        strides = tuple(tensor.strides[axis] * dtype.itemsize for axis in range(tensor.ndim))
    interface = {
        "version": 3,
        "shape": shape,
        "strides": strides,
        "typestr": f"<u{dtype.itemsize}",
        "data": ((tensor.data or 0) + tensor.byte_offset, True),
    }
    if 0 in shape:
        return np.empty(shape, dtype)
    array: np.ndarray[Any, Any] = np.asarray(_Held(interface, capsule)).view(dtype)
    return array
