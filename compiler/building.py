"""New modules: compiling the code, packing the weights, and leaving both in the cache.

A model whose structure was compiled before, with other weights, only has its weights packed.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusile import artefacts
from fusile.artefacts import Code, RawName, Shelf, runs_here
from fusile.backends.native import build as native
from fusile.backends.native.module import ForeignModule, Memory
from fusile.backends.native.plan import raw_bytes
from fusile.errors import UnsettledError, UsageError
from fusile.ir.plan import Plan
from fusile.ir.tensor import Tensor
from fusile.loading import Loaded, face_of, needs_host, read, structure_of
from fusile.options import Options
from fusile.report import Progress, silent
from fusile.runtime.abi import PlanInterface
from fusile.runtime.cache import Cache, open_cache
from fusile.runtime.image import Image, load_image
from fusile.runtime.link import link_image
from fusile.runtime.module import Module
from fusile.runtime.native_support import support_objects
from fusile.runtime.weights_file import new_weights_file
from fusile.target import TargetSpec, host

_LARGE = 64
"""Nodes of a graph that is not left to the next collection of garbage."""

Planner = Callable[[Loaded], Plan]
"""Makes the plan of a model, for the options and the target of the job."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be compiled: the model as it was given, for whom, how its plan is made, and who wants to
    know. `region` says that it is a part of what the host runs, which has no host part of its own.
    """

    source: Any
    options: Options
    target: TargetSpec
    plan: Planner
    progress: Progress
    keep_text: Callable[[str, str], None]
    region: bool = False

    @property
    def denormals(self) -> bool:
        return self.options.denormals == "keep"


def build(job: Job) -> Module:
    """A new module. Its parts go into the cache where there is one."""
    here = runs_here(job.target)
    shelf = artefacts.open_shelf(job.source, job.options, job.target) if here else None
    job.progress("reading the model")
    loaded = read(job.source, job.options)
    if needs_host(loaded.model):
        from fusile import host

        module: Module = host.build(loaded, job.options, job.target, job.progress)
    elif not here:
        module = _foreign(job, loaded)
    else:
        try:
            module = _uncached(job, loaded) if shelf is None else _cached(job, loaded, shelf)
        except UnsettledError:
            if job.region:
                raise
            from fusile import host

            module = host.build(loaded, job.options, job.target, job.progress)
    loaded.watch.release()
    large = sum(1 for _ in loaded.model.graph.all_nodes()) > _LARGE
    del loaded
    if large:  # graphs are full of cycles, and those of small ones may wait for their turn
        gc.collect()
    return module


def objects(job: Job, interface: PlanInterface) -> native.Objects:
    """The objects of a module that was compiled before, compiled again. Raises UsageError where they are
    others.
    """
    if job.source is not None:
        built = native.build(job.plan(read(job.source, job.options)), job.target, silent, job.denormals)
        if built.interface == interface:
            return built.objects
    raise UsageError(
        "The module cannot be written to a file any more",
        why="what it is linked from has left the cache",
        todo="Compile the model again",
    )


# ---- three ways --------------------------------------------------------------------------------------


def _cached(job: Job, loaded: Loaded, shelf: Shelf) -> Module:
    """A module whose code and weights are in the cache, or come to be there."""
    shape = structure_of(job.source)
    files = shelf.beside(shape.external)
    if files is None:
        return _uncached(job, loaded)
    shared, own = shelf.code_keys(shape.digest, files)
    alone = loaded.replaced_shapes or not shape.whole
    code = None
    if job.options.dump_ir is None:
        code = artefacts.find_code(shelf.cache, own)
        if code is None and not alone:
            code = artefacts.find_code(shelf.cache, shared)
    if code is None:
        new = _compile(job, loaded)
        code = new.keep(shelf.cache, own if alone or loaded.watch.read else shared)
    weights_key = shelf.weights_key(code.key, files) if code.interface.weights_bytes else None
    packed = None
    if weights_key is not None:
        packed = _pack_into_cache(job, loaded, code, shelf.cache, weights_key)
    if artefacts.state_of(job.source) == shelf.state:
        shelf.keep(code.key, weights_key, files)
    saver = artefacts.Linked(code, packed, job.target, job.source, job.options)
    return artefacts.open_module(code, packed, job.options, shelf.cache, saver)


def _uncached(job: Job, loaded: Loaded) -> Module:
    """A module that nothing remembers, with its weights in memory of this process."""
    new = _compile(job, loaded)
    weights = _pack_into_memory(job, loaded, new, load_image(new.code.image))
    saver = artefacts.Linked(new.code, weights, job.target, None, job.options, new.objects)
    return artefacts.open_module(new.code, weights, job.options, open_cache(), saver)


def _foreign(job: Job, loaded: Loaded) -> Module:
    """A module for another machine. Its weights are packed by the same kernels, compiled for this one."""
    made = job.plan(loaded)
    built = native.build(made, job.target, job.progress, job.denormals)
    packer = native.build(replace(made, steps=()), host(), silent)
    image = load_image(link_image([*support_objects(host(), open_cache()), *packer.objects]))
    face = face_of(loaded, built.interface)
    new = _New(Code(b"", built.interface, face), built.objects, *_steps(made, loaded))
    weights = _pack_into_memory(job, loaded, new, image)
    saver = artefacts.Linked(new.code, weights, job.target, None, job.options, new.objects)
    return ForeignModule(face, job.target.triple, saver)


# ---- code --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _New:
    """Code that was compiled just now, and where the raw tensors of its packing steps are."""

    code: Code
    objects: native.Objects
    steps: list[list[RawName]]
    constants: bytes

    def keep(self, cache: Cache, key: str) -> Code:
        return artefacts.keep_code(cache, key, self.code, self.objects, self.steps, self.constants)


def _compile(job: Job, loaded: Loaded) -> _New:
    with ThreadPoolExecutor(1) as beside:  # the support code is compiled while kernels are printed
        support = beside.submit(support_objects, job.target, open_cache())
        job.progress("planning")
        made = job.plan(loaded)
        built = native.build(made, job.target, job.progress, job.denormals)
        for name, text in built.texts.items():
            job.keep_text(f"llvm_{name}", text)
        image = link_image([*support.result(), *built.objects])
    code = Code(image, built.interface, face_of(loaded, built.interface))
    return _New(code, built.objects, *_steps(made, loaded))


def _steps(made: Plan, loaded: Loaded) -> tuple[list[list[RawName]], bytes]:
    """Where raw tensors are: initialisers by name; constants of the compiler's own, one after another."""
    constants = bytearray()
    places: dict[Tensor, RawName] = {}
    for step in made.prepare:
        for tensor in step.raw:
            name = loaded.watch.name_of(tensor.data)
            if name is not None:
                places[tensor] = name
            elif tensor not in places:
                data = raw_bytes(tensor)
                places[tensor] = (len(constants), len(data))
                constants += data
    return [[places[tensor] for tensor in step.raw] for step in made.prepare], bytes(constants)


# ---- weights -----------------------------------------------------------------------------------------


def _pack_into_cache(job: Job, loaded: Loaded, code: Code, cache: Cache, key: str) -> Path:
    """The file of packed weights, filled in place through a map of it."""
    entry = cache.get("weights", key)
    if entry is None:
        loaded.watch.stop()
        names, constants = code.steps()
        steps = [[loaded.raw(name, constants) for name in step] for step in names]
        image = load_image(code.image, verify=False)

        def fill(folder: Path) -> None:
            size, layout = code.interface.weights_bytes, code.interface.layout_key
            with new_weights_file(folder / artefacts.PACKED, size, layout) as (address, release):

                def let_go() -> None:
                    release()
                    loaded.let_go()

                native.pack(image, steps, address, job.progress, let_go)

        entry = cache.put("weights", key, fill)
    return entry.path(artefacts.PACKED)


def _pack_into_memory(job: Job, loaded: Loaded, new: _New, image: Image) -> Memory | None:
    """Packed weights in memory of this process, or None where there are none."""
    size = new.code.interface.weights_bytes
    if not size:
        return None
    loaded.watch.stop()
    anchor = ctypes.c_char.from_buffer(mmap.mmap(-1, size))
    address = ctypes.addressof(anchor)
    steps = [[loaded.raw(name, new.constants) for name in step] for step in new.steps]
    native.pack(image, steps, address, job.progress, loaded.let_go)
    return Memory(address, size, anchor)
