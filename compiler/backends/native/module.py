"""Native modules in this process: instances of loaded code, the contexts of their runs, and calling them.

Reads and imports nothing but numpy and the runtime: a session that comes from the cache is made of this file.
What a call needs besides its arrays (a context with its working memory, the structs of inputs and outputs) is
kept between calls, one set per call that is under way; a call on the shapes of the one before only writes
pointers.
"""

from __future__ import annotations

import collections
import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fusile.errors import FusileError, InternalError, RunError, UsageError, show_name
from fusile.ir.types import BY_CODE, numpy_dtype
from fusile.runtime import abi
from fusile.runtime.image import Image
from fusile.runtime.module import Array, ModelInfo, Module, Port, Signature, Value
from fusile.target import available_cores

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Code:
    """The functions of a module's C interface, bound to code in memory, which they keep there."""

    create: Function
    destroy: Function
    context_create: Function
    context_destroy: Function
    shapes: Function
    run: Function
    release: Function
    last_error: Function


def image_code(image: Image) -> Code:
    """The interface of an in-process image; `create` takes the pool that sessions share."""

    def function(name: str, result: Any, arguments: str) -> Function:
        found: Function = image.function(name, result, *(_KINDS[letter] for letter in arguments))
        return found

    return Code(function("fusile_create", ctypes.c_int32, "splppp"), *_others(function, "api"))


def library_code(path: str, prefix: str) -> Code:
    """The interface of a .so file, whose instances have pools of their own. Raises OSError where it cannot
    be loaded, AttributeError where it has no functions of this prefix.
    """
    library = ctypes.CDLL(path)

    def function(name: str, result: Any, arguments: str) -> Function:
        found: Any = library[name]
        found.restype, found.argtypes = result, [_KINDS[letter] for letter in arguments]
        return found  # type: ignore[no-any-return]

    create = function(f"{prefix}_create", ctypes.c_int32, "splpp")
    return Code(
        lambda weights, address, size, host, pool, out: create(weights, address, size, host, out),
        *_others(function, prefix),
    )


_KINDS = {"p": ctypes.c_void_p, "s": ctypes.c_char_p, "i": ctypes.c_int32, "l": ctypes.c_int64}


def _others(function: Callable[[str, Any, str], Function], prefix: str) -> tuple[Function, ...]:
    number, pointer = ctypes.c_int32, ctypes.c_void_p
    return (
        function(f"{prefix}_destroy", None, "p"),
        function(f"{prefix}_context_create", pointer, "pi"),
        function(f"{prefix}_context_destroy", None, "p"),
        function(f"{prefix}_shapes", number, "ppp"),
        function(f"{prefix}_run", number, "pppp"),
        function(f"{prefix}_release", None, "pp"),
        function(f"{prefix}_last_error", number, "pp"),
    )


@dataclass(frozen=True, slots=True)
class Memory:
    """Packed weights in memory of this process: an address aligned to 64 bytes, and what keeps it alive."""

    address: int
    bytes: int
    keep: object


class Instance:
    """An instance of native code with its weights: a weights file, which it maps, or memory, or none.

    It lives until nothing refers to it or to a context of it. Raises FusileError where it cannot start.
    """

    def __init__(self, code: Code, weights: Path | Memory | None, pool: int | None = None) -> None:
        made = ctypes.c_void_p()
        path = os.fsencode(weights) if isinstance(weights, Path) else None
        held = weights if isinstance(weights, Memory) else Memory(0, 0, None)
        status = code.create(path, held.address or None, held.bytes, None, pool, ctypes.byref(made))
        if status or not made.value:
            raise FusileError(
                "A native module could not start",
                where=str(weights) if path else None,
                why=_STATUS_TEXTS.get(status, f"status {status}"),
                todo="Compile the model again" if path else None,
            )
        self.code = code
        self.address: int = made.value
        # The arguments keep the code and the weights alive until the instance is gone.
        weakref.finalize(self, _destroy, code.destroy, made.value, weights).atexit = False

    def context(self, threads: int) -> Context:
        """A context for runs with this many threads. Raises MemoryError."""
        made = self.code.context_create(self.address, threads)
        if not made:
            raise MemoryError("no memory for the context of a run")
        return Context(self, made)


class Context:
    """What one run at a time uses: working memory that stays between runs, and the last error."""

    def __init__(self, instance: Instance, address: int) -> None:
        self.address = address
        weakref.finalize(self, _destroy, instance.code.context_destroy, address, instance).atexit = False


def _destroy(function: Function, address: int, _keep: object) -> None:
    function(address)


class Saver(Protocol):
    """Writes a module to files; see `fusile.backends.native.files.write`."""

    def __call__(
        self, path: str | os.PathLike[str], *, embed: bool = True, linker: str | None = None
    ) -> tuple[Path, ...]: ...


@dataclass(frozen=True, slots=True)
class Face:
    """What people see of a module: its ports with their names in the model, and what the model says about
    itself.
    """

    inputs: tuple[abi.Port, ...]
    outputs: tuple[abi.Port, ...]
    info: ModelInfo = field(default_factory=ModelInfo)


class NativeModule(Module):
    """A compiled model in this process. Threads may run it at the same time, each call in a context of its
    own.

    `interface` is what the code says of its ports, `face` what is shown of them: symbols that the compiler
    made up for unnamed dimensions are None there.
    """

    def __init__(
        self,
        instance: Instance,
        interface: abi.PlanInterface,
        face: Face,
        threads: int,
        saver: Saver | None = None,
    ) -> None:
        self.signature = Signature([Port.tensor(p.name, p.dtype, p.dims) for p in face.inputs])
        self.outputs = tuple(Port.tensor(p.name, p.dtype, p.dims) for p in face.outputs)
        self.info = face.info
        self.threads = threads
        self._instance = instance
        self._interface = interface
        self._saver = saver
        # More than there are processors are made where more calls are under way, but not kept.
        self._idle: collections.deque[_Call] = collections.deque()
        self._most_idle = available_cores()

    def run(self, feeds: Sequence[Value]) -> list[Value]:
        """All outputs in graph order for feeds in graph order, as fresh arrays.

        Raises FeedError for feeds that do not fit, RunError with the node's name for what the data does.
        """
        arrays = self.signature.check(feeds)
        try:
            call = self._idle.pop()
        except IndexError:
            call = _Call(self._instance, self._interface, self.threads)
        try:
            return call.run(arrays)
        finally:
            if len(self._idle) < self._most_idle:
                self._idle.append(call)

    def save(
        self, path: str | os.PathLike[str], *, embed: bool = True, linker: str | None = None
    ) -> tuple[Path, ...]:
        """Write X.so with X.h and X.py beside it: all of them, or, where that fails, none.

        The weights lie in the library, or with `embed=False` in X.weights. `linker` is the program to link
        with. Raises UsageError where there is no linker, or where the module came from a file itself.
        """
        if self._saver is None:
            raise UsageError(
                "A module that was loaded from a file cannot be written again",
                todo="Copy the files, or compile the model again",
            )
        return self._saver(path, embed=embed, linker=linker)


class ForeignModule(Module):
    """A model compiled for another machine: it can be saved, and run there."""

    def __init__(self, face: Face, target: str, saver: Saver) -> None:
        self.signature = Signature([Port.tensor(p.name, p.dtype, p.dims) for p in face.inputs])
        self.outputs = tuple(Port.tensor(p.name, p.dtype, p.dims) for p in face.outputs)
        self.info = face.info
        self._target, self._saver = target, saver

    def run(self, feeds: Sequence[Value]) -> list[Value]:
        """Raises UsageError, always."""
        raise UsageError(
            "The module cannot run on this machine",
            why=f"it is compiled for {self._target}",
            todo="Save it, and load it there",
        )

    def save(
        self, path: str | os.PathLike[str], *, embed: bool = True, linker: str | None = None
    ) -> tuple[Path, ...]:
        """As NativeModule.save; needs a linker for the other machine."""
        return self._saver(path, embed=embed, linker=linker)


@dataclass(slots=True)
class _Result:
    """One output: its type and its shape in the run that is under way, None while data decides it."""

    dtype: np.dtype[Any]
    rank: int
    shape: tuple[int, ...] | None = None


class _Call:
    """The state of one call at a time: a context, the structs of its tensors, the shapes that stand in
    them.
    """

    __slots__ = (
        "_context", "_inputs", "_instance", "_names", "_outputs", "_places", "_reasons", "_results", "_run",
        "_shapes", "_slots", "_targets",
    )  # fmt: skip

    def __init__(self, instance: Instance, interface: abi.PlanInterface, threads: int) -> None:
        inputs, outputs = interface.inputs, interface.outputs
        self._instance, self._reasons = instance, interface.reasons
        self._context = instance.context(threads)
        self._run = instance.code.run
        self._inputs = (abi.Tensor * max(1, len(inputs)))()
        self._outputs = (abi.Tensor * max(1, len(outputs)))()
        self._places = (
            instance.address,
            self._context.address,
            ctypes.addressof(self._inputs),
            ctypes.addressof(self._outputs),
        )
        self._slots = list(self._inputs)[: len(inputs)]
        self._targets = list(self._outputs)[: len(outputs)]
        self._results = [_Result(numpy_dtype(BY_CODE[port.dtype]), len(port.dims)) for port in outputs]
        self._shapes: list[tuple[int, ...]] | None = None
        self._names = [port.name for port in inputs]
        for slot, port in zip(self._slots, inputs):
            slot.dtype, slot.rank = port.dtype, len(port.dims)

    def run(self, arrays: Sequence[Array]) -> list[Value]:
        shapes = [array.shape for array in arrays]
        if shapes != self._shapes:
            self._enter(arrays, shapes)
        for slot, array in zip(self._slots, arrays):
            slot.data = _address(array)
        made: list[Array | None] = []
        for target, result in zip(self._targets, self._results):
            if result.shape is None:
                target.data, target.capacity = None, 0
                made.append(None)
            else:
                array = np.empty(result.shape, result.dtype)
                target.data = _address(array)
                made.append(array)
        if self._run(*self._places):
            raise self._error()
        return [
            self._taken(target, result) if array is None else array
            for array, target, result in zip(made, self._targets, self._results)
        ]

    def _enter(self, arrays: Sequence[Array], shapes: list[tuple[int, ...]]) -> None:
        """Write the inputs' shapes, and ask for those of the outputs."""
        self._shapes = None
        for slot, array in zip(self._slots, arrays):
            slot.capacity = array.nbytes
            for axis, size in enumerate(array.shape):
                slot.dims[axis] = size
        if self._instance.code.shapes(self._instance.address, self._inputs, self._outputs):
            raise self._misfit()
        for target, result in zip(self._targets, self._results):
            shape = tuple(target.dims[: result.rank])
            result.shape = shape if min(shape, default=0) >= 0 else None
            if result.shape is not None:
                target.capacity = result.dtype.itemsize * _product(shape)
        self._shapes = shapes

    def _misfit(self) -> RunError:
        """The error of shapes that do not fit: a run that meets it at once tells what it is."""
        for target in self._targets:
            target.data, target.capacity = None, 0
        for slot in self._slots:
            slot.data = 64  # somewhere: sizes are looked at before memory
        if not self._run(*self._places):
            raise InternalError("Shapes were refused that a run takes")
        return self._error()

    def _taken(self, target: Any, result: _Result) -> Array:
        """A copy of an output that the module allocated, whose memory goes back."""
        array = np.empty(tuple(target.dims[: result.rank]), result.dtype)
        if array.nbytes:
            ctypes.memmove(array.ctypes.data, target.data, array.nbytes)
        self._instance.code.release(self._instance.address, target.data)
        return array

    def _error(self) -> RunError:
        report = abi.ErrorReport()
        self._instance.code.last_error(self._context.address, ctypes.byref(report))
        node = report.node.decode("utf-8", "replace")
        return run_error(report.code, node, report.a, report.b, self._names, self._reasons)


_STATUS_TEXTS = {
    abi.Status.BAD_ARGUMENT: "its weights are missing, or belong to another build",
    abi.Status.OUT_OF_MEMORY: "there is no memory for it",
}


def run_error(
    code: int, node: str, a: int, b: int, inputs: Sequence[str] = (), reasons: Sequence[str] = ()
) -> RunError:
    """What a failed run raises, from the record that native code left (see `abi.Status` for `a` and `b`)."""
    what, why = "A run failed in native code", f"status {code} ({a}, {b})"
    todo = "This is a fault of fusile: report it together with the model"
    match code:
        case abi.Status.BAD_ARGUMENT:
            what, why = "Sizes do not fit together", "the model relates them in another way"
            todo = "Look at the shapes fed to the model"
            if b == abi.REASON and 0 <= a < len(reasons):
                why = reasons[a]
            elif node and a != -1:
                why = f"a size would be {a}"
            elif not node and 0 <= a < len(inputs):
                why = f"dimension {b} of input {show_name(inputs[a])} contradicts the others"
        case abi.Status.OUT_OF_RANGE:
            what, why = "An index is out of range", f"it is {a}, and the extent {b}"
            todo = "Look at the values fed to the model"
        case abi.Status.ZERO_DIVISION:
            what, why = "A division by zero", "a divisor, or a size, is 0"
            todo = "Look at the values fed to the model"
        case abi.Status.OUT_OF_MEMORY:
            what, why = "There is not enough memory for the run", f"{a} bytes could not be allocated"
            todo = "Feed smaller inputs"
        case abi.Status.SIZE_OVERFLOW:
            what, why, todo = "A tensor is too large", "its size in bytes overflows", "Feed smaller inputs"
    return RunError(what, node=node or None, why=why, todo=todo)


def _product(shape: Sequence[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


_first_byte = ctypes.c_char.from_buffer


def _address(array: Array) -> int:
    """Where an array's elements begin. The quick way serves writable arrays of types that Python knows."""
    try:
        return ctypes.addressof(_first_byte(array))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):
        place: int = array.ctypes.data
        return place
