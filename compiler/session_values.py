"""OrtValue, OrtDevice and IOBinding of the session face: values that stay in place, and bound buffers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fusile.ir.types import BY_CODE, numpy_dtype
from fusile.runtime.dlpack import from_dlpack
from fusile.runtime.module import TENSOR_NAMES, Array, Value, type_of
from fusile.session_errors import InvalidArgument

if TYPE_CHECKING:
    from fusile.session import InferenceSession

_CPU_NAMES = ("cpu", "cuda_pinned", "cpu_pinned")


def _on_cpu(device: str) -> None:
    if device.lower() not in _CPU_NAMES:
        raise InvalidArgument(
            f"Memory on device {device!r} cannot be bound: values of this session live in CPU memory; "
            "copy them with .cpu() or numpy() first"
        )


class OrtDevice:
    """A place for memory. Only the CPU is one here."""

    def __init__(self, device_type: str = "cpu", device_id: int = 0) -> None:
        _on_cpu(device_type)
        self._id = device_id

    @staticmethod
    def make(ort_device_name: str, device_id: int, vendor_id: int = -1) -> OrtDevice:
        """The device of a name."""
        return OrtDevice(ort_device_name, device_id)

    @staticmethod
    def cpu() -> int:
        """The number of the CPU's device type."""
        return 0

    def device_type(self) -> int:
        """The number of the device's type: 0, the CPU."""
        return 0

    def device_id(self) -> int:
        return self._id

    def device_vendor_id(self) -> int:
        return 0

    def device_mem_type(self) -> int:
        return 0


class OrtValue:
    """A tensor, or a sequence of tensors, in CPU memory."""

    def __init__(self, value: Value) -> None:
        self._value = value

    @staticmethod
    def ortvalue_from_numpy(numpy_obj: Array, device_type: str = "cpu", device_id: int = 0) -> OrtValue:
        """A value over the array's own memory."""
        _on_cpu(device_type)
        return OrtValue(np.asarray(numpy_obj, order="C"))

    @staticmethod
    def ortvalue_from_numpy_with_onnx_type(data: Array, onnx_element_type: int) -> OrtValue:
        """A value over the array's memory, read as ONNX's element type (such as bfloat16 kept as uint16)."""
        return OrtValue(np.asarray(data, order="C").view(numpy_dtype(BY_CODE[onnx_element_type])))

    @staticmethod
    def ortvalue_from_shape_and_type(
        shape: Sequence[int], element_type: Any = np.float32, device_type: str = "cpu", device_id: int = 0
    ) -> OrtValue:
        """A value of a shape and type with undefined contents."""
        _on_cpu(device_type)
        return OrtValue(np.empty(tuple(shape), _dtype(element_type)))

    @staticmethod
    def from_dlpack(data: object, is_bool_tensor: bool = False) -> OrtValue:
        """A value over the memory of an object with `__dlpack__`."""
        array = from_dlpack(data)
        return OrtValue(array.view(np.bool_) if is_bool_tensor else array)

    def numpy(self) -> Array:
        """The tensor as an array over the same memory. Raises RuntimeError for a sequence."""
        if not self.is_tensor():
            raise RuntimeError("Only OrtValues that are Tensors are currently supported")
        array: Array = self._value
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **arguments: Any) -> object:
        return self.numpy().__dlpack__(**arguments)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def data_ptr(self) -> int:
        """The address of the first element."""
        return int(self.numpy().ctypes.data)

    def device_name(self) -> str:
        return "cpu"

    def shape(self) -> list[int]:
        return list(self.numpy().shape)

    def data_type(self) -> str:
        """ONNX's name of the type."""
        if self.is_tensor():
            return type_of(self._value)
        inner = type_of(np.asarray(self._value[0])) if self._value else "tensor(float)"
        return f"seq({inner})"

    def element_type(self) -> int:
        """ONNX's number of the element type."""
        name = self.data_type().removeprefix("tensor(").removesuffix(")")
        return next(code for code, word in TENSOR_NAMES.items() if word == name)

    def tensor_size_in_bytes(self) -> int:
        return int(self.numpy().nbytes)

    def has_value(self) -> bool:
        return self._value is not None

    def is_tensor(self) -> bool:
        return isinstance(self._value, np.ndarray)

    def is_tensor_sequence(self) -> bool:
        return isinstance(self._value, list)

    def is_sparse_tensor(self) -> bool:
        return False

    @staticmethod
    def ort_value_from_sparse_tensor(sparse_tensor: object) -> OrtValue:
        """Refused: values are dense. Raises RuntimeError."""
        raise RuntimeError("Sparse tensors are no values here: give the tensor dense")

    def as_sparse_tensor(self) -> object:
        """Refused: values are dense. Raises RuntimeError."""
        raise RuntimeError("The OrtValue holds no sparse tensor")

    def update_inplace(self, np_arr: Array) -> None:
        """Overwrite the contents. Raises RuntimeError where the size differs."""
        array = self.numpy()
        if array.nbytes != np_arr.nbytes:
            raise RuntimeError("The input size of numpy arrays does not match the size of the OrtValue.")
        array[...] = np_arr.reshape(array.shape)


class IOBinding:
    """Inputs and outputs bound to buffers once and run many times with `session.run_with_iobinding`."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self._inputs: dict[str, Value] = {}
        self._outputs: dict[str, Array | None] = {}
        self._results: list[OrtValue] = []

    def bind_cpu_input(self, name: str, arr_on_cpu: Array) -> None:
        """Bind an input to an array."""
        self._known_input(name)
        self._inputs[name] = arr_on_cpu

    def bind_input(
        self,
        name: str,
        device_type: str,
        device_id: int,
        element_type: Any,
        shape: Sequence[int],
        buffer_ptr: int,
    ) -> None:
        """Bind an input to memory at an address, which stays the caller's."""
        self._known_input(name)
        _on_cpu(device_type)
        self._inputs[name] = _memory(buffer_ptr, shape, element_type)

    def bind_ortvalue_input(self, name: str, ortvalue: OrtValue) -> None:
        """Bind an input to a value."""
        self._known_input(name)
        self._inputs[name] = ortvalue._value

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None:
        """Ask for an output: into memory at an address, or without one into an array made by the run."""
        _on_cpu(device_type)
        self._known_output(name)
        bound = buffer_ptr is not None and shape is not None
        self._outputs[name] = _memory(buffer_ptr or 0, shape or (), element_type) if bound else None

    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None:
        """Ask for an output, to be written into a value."""
        self._known_output(name)
        self._outputs[name] = ortvalue.numpy()

    def clear_binding_inputs(self) -> None:
        self._inputs.clear()

    def clear_binding_outputs(self) -> None:
        self._outputs.clear()
        self._results.clear()

    def synchronize_inputs(self) -> None:
        """Nothing to wait for in CPU memory."""

    def synchronize_outputs(self) -> None:
        """Nothing to wait for in CPU memory."""

    def get_outputs(self) -> list[OrtValue]:
        """The outputs of the last run, in the order in which they were bound."""
        return list(self._results)

    def copy_outputs_to_cpu(self) -> list[Value]:
        """The outputs of the last run as arrays of their own."""
        return [value._value.copy() if value.is_tensor() else value._value for value in self._results]

    def run(self, run_options: Any = None) -> None:
        """Run the session on what is bound; InvalidArgument where an output does not fit its buffer."""
        names = list(self._outputs)
        answers = self._session.run(names, self._inputs, run_options) if names else []
        self._results = []
        for name, answer in zip(names, answers):
            buffer = self._outputs[name]
            if buffer is None:
                self._results.append(OrtValue(answer))
                continue
            if buffer.shape != answer.shape or buffer.dtype != answer.dtype:
                raise InvalidArgument(
                    f"Output {name} is bound to {buffer.dtype}{list(buffer.shape)}, and the model answers "
                    f"{answer.dtype}{list(answer.shape)}"
                )
            buffer[...] = answer
            self._results.append(OrtValue(buffer))

    def get_outputs_as_ortvaluevector(self) -> list[OrtValue]:
        """The outputs of the last run."""
        return self.get_outputs()

    def _known_output(self, name: str) -> None:
        if name not in {port.name for port in self._session.get_outputs()}:
            raise RuntimeError(f"Error in execution: Invalid output name: {name}")

    def _known_input(self, name: str) -> None:
        if name not in {port.name for port in self._session.get_inputs()}:
            raise RuntimeError(f"Failed to find NodeArg with name: {name} in the def list")


def _dtype(element_type: Any) -> np.dtype[Any]:
    """A numpy dtype from a numpy type or from ONNX's number of one."""
    if isinstance(element_type, int) and not isinstance(element_type, bool):
        return numpy_dtype(BY_CODE[element_type])
    dtype: np.dtype[Any] = np.dtype(element_type)
    return dtype


def _memory(address: int, shape: Sequence[int], element_type: Any) -> Array:
    """An array over memory that the caller keeps alive."""
    dtype = _dtype(np.float32 if element_type is None else element_type)
    size = int(np.prod(tuple(shape), dtype=np.int64)) * dtype.itemsize
    if size == 0:
        return np.empty(tuple(shape), dtype)
    block = (ctypes.c_uint8 * size).from_address(int(address))
    array: Array = np.ctypeslib.as_array(block).view(dtype).reshape(tuple(shape))
    return array
