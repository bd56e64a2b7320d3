"""From a plan to native code: printing and compiling its kernels, linking an image, packing weights."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fusile.backends.native.plan import Kernels, PlanPrinter, raw_bytes
from fusile.errors import FusileError
from fusile.ir.plan import Plan
from fusile.ir.tensor import Tensor
from fusile.report import Progress
from fusile.runtime import abi
from fusile.runtime.image import Image
from fusile.runtime.module import Array
from fusile.runtime.workers import compile_objects
from fusile.target import TargetSpec, available_cores

Objects = tuple[tuple[str, bytes], ...]
"""Relocatable objects by name."""
Raw = Callable[[], bytes | Array]
"""Gives the bytes of an initialiser as kernels read them: its own memory where that will do, else a copy."""


@dataclass(frozen=True, slots=True)
class Built:
    """What compiling a plan gives: the objects of kernels and plan, what the plan says of itself, the LLVM
    IR.
    """

    objects: Objects
    interface: abi.PlanInterface
    texts: Mapping[str, str]


def build(
    plan: Plan, target: TargetSpec, progress: Progress, denormals: bool = False, level: int = 3
) -> Built:
    """Print and compile every kernel of a plan, and the plan. Kernels are compiled while others are
    printed.
    """
    kernels = Kernels(target)
    flags = 0 if denormals else abi.FLUSH_DENORMALS
    with _Compiler(target, level) as compiler:
        every = (*plan.kernels(), *plan.prepare_kernels())
        for done, kernel in enumerate(every):
            progress("compiling kernels", done, len(every))
            kernels.add(kernel)
            compiler.add(kernels.texts)
        printer = PlanPrinter(plan, kernels, flags)
        texts = {"plan": printer.text(), **kernels.texts}
        compiler.add(texts)
        objects = compiler.objects()
    return Built(tuple((name, objects[name]) for name in texts), printer.interface(), texts)


_HELD_BYTES = 64 << 20

_BATCH = 24 << 10
"""Texts are handed over once there is so much of them, since starting a worker takes longer than compiling
that."""


class _Compiler:
    """Hands texts to compile workers as they come, a batch at a time; LLVM is in other processes, so threads
    may wait for it.
    """

    def __init__(self, target: TargetSpec, level: int) -> None:
        self._target, self._level = target, level
        self._threads = ThreadPoolExecutor(available_cores(), thread_name_prefix="fusile-compile")
        self._batch: dict[str, str] = {}
        self._waiting: list[tuple[tuple[str, ...], Future[list[bytes]]]] = []
        self._known: set[str] = set()

    def __enter__(self) -> _Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def add(self, texts: Mapping[str, str]) -> None:
        """Have those compiled that are new."""
        for name in texts:
            if name not in self._known:
                self._known.add(name)
                self._batch[name] = texts[name]
                if sum(map(len, self._batch.values())) >= _BATCH:
                    self._submit()

    def objects(self) -> dict[str, bytes]:
        """All objects by name. Raises CompileError for the first text that LLVM refuses."""
        self._submit()
        return {
            name: made
            for names, waiting in self._waiting
            for name, made in zip(names, waiting.result(), strict=True)
        }

    def _submit(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, {}
            made = self._threads.submit(compile_objects, list(batch.values()), self._target, self._level, 1)
            self._waiting.append((tuple(batch), made))


def raw_of(tensor: Tensor) -> Raw:
    """The bytes of a constant tensor, when they are asked for."""
    return lambda: raw_bytes(tensor)


def pack(
    image: Image,
    steps: Sequence[Sequence[Raw]],
    address: int,
    progress: Progress,
    let_go: Callable[[], None] = lambda: None,
) -> None:
    """Fill the packed weights at an address (aligned to 64, all zeros) by the module's own code.

    `steps` are those of the plan: the raw tensors of each group, which are held one group at a time.
    `let_go` is called now and then when nothing is held, to release pages of files that have been read or
    written: mapped pages count as the process's memory until somebody else needs them.
    """
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    prepare = image.function("api_prepare", number, pointer, number, pointer, pointer)
    since = 0
    for step, tensors in enumerate(steps):
        progress("packing weights", step, len(steps))
        held = [_bytes_of(raw()) for raw in tensors]
        raws = (pointer * max(1, len(held)))(*(array.ctypes.data for array in held))
        status = prepare(None, step, raws, address)
        if status:
            raise FusileError("The weights could not be packed", why=_said(status))
        since += sum(array.nbytes for array in held)
        del held
        if since > _HELD_BYTES:
            since = 0
            let_go()
    let_go()


def _bytes_of(raw: bytes | Array) -> Array:
    """Raw data as bytes in memory, never none."""
    if isinstance(raw, np.ndarray) and raw.nbytes:
        return raw.reshape(-1).view(np.uint8)
    return np.frombuffer(raw or bytes(1), np.uint8) if isinstance(raw, bytes) else np.zeros(1, np.uint8)


def _said(status: int) -> str:
    known = {int(code): code.name.lower().replace("_", " ") for code in abi.Status}
    return known.get(status, f"status {status}")


def steps_of(plan: Plan) -> Iterator[tuple[Tensor, ...]]:
    """The raw tensors of each packing step of a plan."""
    for step in plan.prepare:
        yield step.raw
