"""Native modules in process: building the image and the packed weights, and calling them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusile.backends.native.plan import Kernels, PlanPrinter, raw_bytes
from fusile.errors import FusileError, RunError
from fusile.ir.plan import Plan
from fusile.ir.types import BY_CODE, numpy_dtype
from fusile.runtime import abi
from fusile.runtime.image import Image, load_image
from fusile.runtime.link import link_image
from fusile.runtime.module import Module, ModelInfo, Port, Signature
from fusile.runtime.native_support import interface_text, support_text
from fusile.runtime.workers import compile_objects
from fusile.target import TargetSpec

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Built:
    """What compiling a plan gives: object files by name, the interface, and how weights are packed."""

    objects: tuple[tuple[str, bytes], ...]
    interface: abi.PlanInterface
    texts: Mapping[str, str]


def build(plan: Plan, target: TargetSpec, progress: Callable[..., None], opt_level: int = 3) -> Built:
    """Print and compile every kernel of a plan, and the plan."""
    kernels = Kernels(target)
    for k in (*plan.kernels(), *plan.prepare_kernels()):
        kernels.add(k)
    printer = PlanPrinter(plan, kernels)
    texts = {"plan": printer.text(), **kernels.texts, "support": support_text(target), "interface": interface_text()}
    progress("Compile kernels", 0, len(texts))
    objects = compile_objects(list(texts.values()), target, opt_level)
    return Built(tuple(zip(texts, objects, strict=True)), printer.interface(), texts)


def pack_weights(plan: Plan, image: Image, progress: Callable[..., None]) -> Array:
    """The packed weights of a plan, aligned to 64 bytes: its own `prepare`, one group of initialisers at a time."""
    packed = aligned_bytes(plan.weights_bytes)
    prepare = image.function("api_prepare", ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
    for k, step in enumerate(plan.prepare):
        progress("Pack weights", k, len(plan.prepare))
        held = [np.frombuffer(raw_bytes(t) or b"\0", np.uint8) for t in step.raw]
        raw = (ctypes.c_void_p * max(1, len(held)))(*(a.ctypes.data for a in held))
        status = prepare(None, k, raw, packed.ctypes.data)
        if status:
            raise FusileError("The weights could not be packed", why=abi.Status(status).name.lower().replace("_", " "))
    return packed


def aligned_bytes(size: int) -> Array:
    """Zeroed bytes whose address is a multiple of 64."""
    block = np.zeros(max(size, 1) + 64, np.uint8)
    start = -block.ctypes.data % 64
    return block[start : start + max(size, 1)]


class NativeModule(Module):
    """A compiled model in this process. Threads may run it at the same time, each in a context of its own."""

    def __init__(self, image: Image, weights: Array, interface: abi.PlanInterface, threads: int, info: ModelInfo, pool: int | None = None) -> None:
        self._image, self._weights, self._interface = image, weights, interface
        self.signature = Signature(tuple(Port.tensor(p.name, p.dtype, p.dims) for p in interface.inputs))
        self.outputs = tuple(Port.tensor(p.name, p.dtype, p.dims) for p in interface.outputs)
        self.info = info
        self._threads = threads
        self._instance = ctypes.c_void_p()
        create = image.function("fusile_create", ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        status = create(None, weights.ctypes.data, interface.weights_bytes, None, pool, ctypes.byref(self._instance))
        if status:
            raise FusileError("The module could not start", why=abi.Status(status).name.lower().replace("_", " "))
        self._run = image.function("api_run", ctypes.c_int32, *[ctypes.c_void_p] * 4)
        self._context_create = image.function("api_context_create", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
        self._last_error = image.function("api_last_error", ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
        self._shapes = image.function("api_shapes", ctypes.c_int32, *[ctypes.c_void_p] * 3)
        self._release = image.function("api_release", None, ctypes.c_void_p, ctypes.c_void_p)
        self._dtypes = [numpy_dtype(BY_CODE[p.dtype]) for p in interface.outputs]
        self._local = threading.local()

    def _context(self) -> int:
        found = getattr(self._local, "context", None)
        if found is None:
            found = self._local.context = self._context_create(self._instance, self._threads)
            if not found:
                raise MemoryError("no memory for a context")
        context: int = found
        return context

    def run(self, feeds: Sequence[Any]) -> list[Array]:
        """The outputs, in graph order, for the inputs in graph order. Raises FeedError for feeds that do not fit, RunError for what the data does."""
        arrays = self.signature.check(feeds)
        inputs = (abi.Tensor * max(1, len(arrays)))()
        for slot, a, port in zip(inputs, arrays, self._interface.inputs, strict=False):
            _fill(slot, a, port.dtype)
        outputs = (abi.Tensor * max(1, len(self.outputs)))()
        context = self._context()
        self._shapes(self._instance, inputs, outputs)
        made: list[Array | None] = []
        for slot, dtype, port in zip(outputs, self._dtypes, self._interface.outputs, strict=False):
            rank = len(port.dims)
            shape = tuple(slot.dims[:rank])
            if any(n < 0 for n in shape):
                slot.data, slot.capacity = None, 0
                made.append(None)
            else:
                a: Array = np.empty(shape, dtype)
                slot.data, slot.capacity = a.ctypes.data, a.nbytes
                made.append(a)
            slot.dtype, slot.rank = port.dtype, rank
        status = self._run(self._instance, context, inputs, outputs)
        if status:
            raise self._error(context)
        return [self._taken(slot, dtype, port) if a is None else a for slot, a, dtype, port in zip(outputs, made, self._dtypes, self._interface.outputs, strict=False)]

    def _taken(self, slot: Any, dtype: np.dtype[Any], port: abi.Port) -> Array:
        """A copy of an output that the module allocated, whose memory goes back."""
        shape = tuple(slot.dims[: len(port.dims)])
        count = int(np.prod(shape)) if shape else 1
        out: Array = np.empty(shape, dtype)
        if count:
            ctypes.memmove(out.ctypes.data, slot.data, count * dtype.itemsize)
        self._release(self._instance, slot.data)
        return out

    def _error(self, context: int) -> RunError:
        report = abi.ErrorReport()
        self._last_error(context, ctypes.byref(report))
        node = report.node.decode("utf-8", "replace")
        code = abi.Status(report.code) if report.code in set(abi.Status) else abi.Status.INTERNAL
        why = {
            abi.Status.BAD_ARGUMENT: f"sizes do not fit ({report.a})",
            abi.Status.OUT_OF_RANGE: f"index {report.a} is out of range, the extent is {report.b}",
            abi.Status.OUT_OF_MEMORY: f"{report.a} bytes could not be allocated",
        }.get(code, code.name.lower().replace("_", " "))
        return RunError("The run failed", where=f"node {node!r}" if node else None, why=why, todo="Look at the values fed to the model")


def _fill(slot: Any, a: Array, dtype: int) -> None:
    slot.data = a.ctypes.data
    slot.dtype, slot.rank = dtype, a.ndim
    slot.capacity = a.nbytes
    for d, n in enumerate(a.shape):
        slot.dims[d] = n


def assemble(built: Built) -> bytes:
    """The in-process image of a built plan."""
    return link_image(built.objects)


def load(image: bytes) -> Image:
    return load_image(image)
