"""From a model to a module: the pipelines, top to bottom."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fusile import artefacts, reports
from fusile.artefacts import Code, Shelf, runs_here, target_of
from fusile.backends.native import build as native
from fusile.backends.native import scalars
from fusile.backends.native.module import ForeignModule, Memory
from fusile.backends.native.plan import raw_bytes
from fusile.errors import Gap, UnsupportedError, UsageError
from fusile.ir.loops import Buffer, Kernel, kernel_text
from fusile.ir.plan import Plan, Variant, plan_text
from fusile.ir.tensor import Program, Stage, Tensor
from fusile.ir.text import program_text
from fusile.loading import Loaded, face_of, model_name, read, structure_of
from fusile.options import Options
from fusile.passes import fuse, inline, layout, pack, strict
from fusile.passes.finish import finish
from fusile.passes.fuse import Group
from fusile.passes.inline import Log
from fusile.passes.lower import lower as lower_group
from fusile.passes.plan_memory import arguments, build_plan
from fusile.passes.to_tensor import lower
from fusile.report import CheckReport, ExplainReport, Progress, silent
from fusile.runtime.abi import PlanInterface
from fusile.runtime.cache import Cache, open_cache
from fusile.runtime.image import Image, load_image
from fusile.runtime.link import link_image
from fusile.runtime.module import Module
from fusile.runtime.native_support import support_objects
from fusile.runtime.weights_file import new_weights_file
from fusile.runtime.workers import start_workers
from fusile.schedule import cpu
from fusile.schedule.tiles import Registers
from fusile.target import TargetSpec, host


@dataclass(slots=True)
class Trace:
    """What a compilation leaves behind for people: the log of fusion, and every stage as numbered text where a folder is given."""

    folder: Path | None = None
    log: Log = field(default_factory=Log)
    count: int = 0
    program: Program | None = None
    groups: list[Group] = field(default_factory=list)

    def text(self, name: str, make: Callable[[], str]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.count:02d}_{name}.txt").write_text(make(), encoding="utf-8")
        self.count += 1


def graph(source: Any, options: Options) -> ir.Model:
    """The canonical graph of a model, with operators that have no definition expanded into their function bodies."""
    return source.model if isinstance(source, Loaded) else read(source, options).model


ProgramPass = Callable[[Program, "Settings"], Program]


@dataclass(frozen=True, slots=True)
class Settings:
    """What passes may look at."""

    options: Options
    target: TargetSpec
    log: Log

    @property
    def lanes(self) -> int:
        return self.target.vector_bytes // 4

    def same(self, a: Stage, b: Stage) -> bool:
        """Whether two stages may share a kernel: below level 2 only those of one ONNX node."""
        return self.options.opt_level == 2 or (a.origin == b.origin and a.op == b.op)

    @property
    def registers(self) -> Registers:
        return Registers(self.lanes, self.target.vector_registers)


PLAIN: tuple[tuple[str, ProgramPass], ...] = (
    ("inline", lambda p, s: inline.inline(p, s.log, s.same)),
)
"""Level 0: one kernel per operator, as it is defined."""

ALONE: tuple[tuple[str, ProgramPass], ...] = (
    ("turn", lambda p, s: layout.within_operators(p, s.log)),
    ("inline", lambda p, s: inline.inline(p, s.log, s.same)),
    ("pack", lambda p, s: pack.pack(p, s.registers, s.log)),
    ("lanes", lambda p, s: pack.split_reductions(p, 4 * s.lanes, s.log)),
)
"""Level 1: every operator tiled and vectorised as well as it can be alone, between tensors in the layouts of the model."""

FUSED: tuple[tuple[str, ProgramPass], ...] = (
    ("columns", lambda p, s: layout.merge_columns(p, s.log)),
    ("layout", lambda p, s: layout.choose(p, s.log)),
    ("inline", lambda p, s: inline.inline(p, s.log, s.same)),
    ("pack", lambda p, s: pack.pack(p, s.registers, s.log)),
    ("lanes", lambda p, s: pack.split_reductions(p, 4 * s.lanes, s.log)),
)
"""Level 2: layouts over the whole graph, inlining, panels for contractions, lanes for reductions."""

PIPELINES: dict[int, tuple[tuple[str, ProgramPass], ...]] = {0: PLAIN, 1: ALONE, 2: FUSED}


def tensor_program(source: Any, options: Options, target: TargetSpec, trace: Trace) -> tuple[Program, list[Group]]:
    """The grouped tensor program of a model."""
    program = lower(graph(source, options))
    strict.check_program("to_tensor", None, program)
    trace.text("program", lambda: program_text(program))
    trace.program = program
    settings = Settings(options, target, trace.log)
    for name, step in PIPELINES[options.opt_level]:
        before, program = program, step(program, settings)
        strict.check_program(name, before, program)
        trace.text(name, lambda p=program: program_text(p))  # type: ignore[misc]
    trace.groups = fuse.group(program, trace.log, settings.same)
    return program, trace.groups


def plan(source: Any, options: Options, target: TargetSpec, trace: Trace) -> Plan:
    """The plan of a model for the native backend."""
    program, groups = tensor_program(source, options, target, trace)
    kernels: list[tuple[Kernel, Kernel]] = []
    printable = scalars.capabilities(target)

    outside = {t.name for t in (*program.inputs, *program.outputs)}

    def own(b: Buffer) -> bool:
        """Whether a buffer lies in memory of ours, which is aligned."""
        return b.name not in outside

    def lowered(group: Group) -> tuple[Variant, ...]:
        naive = lower_group(group, f"kernel{len(kernels)}")
        strict.check_lowered(group, naive)
        made: list[Variant] = []
        for guard, scheduled in cpu.variants(naive, target, own) if options.opt_level else ((None, naive),):
            strict.check_kernel("schedule", naive, scheduled)
            fast = finish(scheduled, printable)
            strict.check_kernel("finish", scheduled, fast, proofs=False)
            kernels.append((naive, fast))
            made.append(Variant(guard, fast, arguments(fast)))
        return tuple(made)

    made = build_plan(program, groups, lowered)
    strict.check_plan(program, made)
    trace.text("loops", lambda: "\n".join(kernel_text(n) for n, _ in kernels))
    trace.text("schedule", lambda: "\n".join(kernel_text(f) for _, f in kernels))
    trace.text("plan", lambda: plan_text(made))
    return made


def compile(source: Any, options: Options, progress: Progress) -> Module:
    """A module of the model: one that was compiled before where the cache has it, else a new one."""
    return artefacts.compile(source, options, progress)


def build(source: Any, options: Options, progress: Progress) -> Module:
    """A new module. Its parts go into the cache."""
    if options.target != "native":
        raise UsageError(
            f"There are no modules for the target {options.target!r} in this process",
            todo=f"Write its source with fusile.emit(model, to={options.target!r}, out=...)",
        )
    target = target_of(options)
    trace = Trace(Path(options.dump_ir) if options.dump_ir else None)
    start_workers()
    shelf = artefacts.open_shelf(source, options, target) if runs_here(target) else None
    progress("reading the model")
    loaded = read(source, options)
    if not runs_here(target):
        return _foreign(loaded, options, target, trace, progress)
    if shelf is None:
        return _uncached(loaded, options, target, trace, progress)
    module = _cached(shelf, source, loaded, options, target, trace, progress)
    del loaded
    gc.collect()  # graphs hold the model's file in cycles, and its pages count as this process's memory
    return module


def _cached(
    shelf: Shelf, source: Any, loaded: Loaded, options: Options, target: TargetSpec, trace: Trace, progress: Progress
) -> Module:
    """A module whose code and weights are, or come to be, in the cache."""
    shape = structure_of(source)
    files = shelf.beside(shape.external)
    if files is None:
        return _uncached(loaded, options, target, trace, progress)
    shared, own = shelf.code_keys(shape.digest)
    code = None
    if trace.folder is None:
        code = artefacts.find_code(shelf.cache, own)
        if code is None and shape.whole and not loaded.replaced_shapes:
            code = artefacts.find_code(shelf.cache, shared)
    if code is None:
        new = _compile(loaded, options, target, trace, progress)
        alone = loaded.watch.read or loaded.replaced_shapes or not shape.whole
        code = new.keep(shelf.cache, own if alone else shared)
    loaded.watch.stop()
    weights_key = shelf.weights_key(code.key, files) if code.interface.weights_bytes else None
    packed = None
    if weights_key is not None:
        packed = _pack_into_cache(shelf.cache, weights_key, code, loaded, progress)
    if artefacts.state_of(source) == shelf.state:
        shelf.keep(code.key, weights_key, files)
    saver = artefacts.Linked(code, packed, target, source, options)
    return artefacts.open_module(code, packed, options, shelf.cache, saver)


def _pack_into_cache(cache: Cache, key: str, code: Code, loaded: Loaded, progress: Progress) -> Path:
    """The file of packed weights, written in place through a map of it."""
    entry = cache.get("weights", key)
    if entry is None:
        names, constants = code.steps()
        steps = [[loaded.raw(name, constants) for name in step] for step in names]
        image = load_image(code.image, verify=False)

        def fill(folder: Path) -> None:
            place = folder / artefacts.PACKED
            size, layout = code.interface.weights_bytes, code.interface.layout_key
            with new_weights_file(place, size, layout) as address:
                native.pack(image, steps, address, progress)

        entry = cache.put("weights", key, fill)
    return entry.path(artefacts.PACKED)


def _uncached(loaded: Loaded, options: Options, target: TargetSpec, trace: Trace, progress: Progress) -> Module:
    """A module that nothing remembers, with its weights in memory of this process."""
    new = _compile(loaded, options, target, trace, progress)
    weights = _pack_into_memory(new, load_image(new.code.image), loaded, progress)
    saver = artefacts.Linked(new.code, weights, target, None, options, new.objects)
    return artefacts.open_module(new.code, weights, options, open_cache(), saver)


def _foreign(loaded: Loaded, options: Options, target: TargetSpec, trace: Trace, progress: Progress) -> Module:
    """A module for another machine. Its weights are packed by the same kernels, compiled for this one."""
    made = plan(loaded, options, target, trace)
    built = native.build(made, target, progress, options.denormals == "keep")
    packer = native.build(replace(made, steps=()), host(), silent)
    image = load_image(link_image([*support_objects(host(), open_cache()), *packer.objects]))
    face = face_of(loaded, built.interface)
    new = _New(Code(b"", built.interface, face), built.objects, *_steps(made, loaded))
    weights = _pack_into_memory(new, image, loaded, progress)
    saver = artefacts.Linked(new.code, weights, target, None, options, new.objects)
    return ForeignModule(face, target.triple, saver)


@dataclass(frozen=True, slots=True)
class _New:
    """Code that was compiled just now."""

    code: Code
    objects: native.Objects
    steps: list[list[artefacts.RawName]]
    constants: bytes

    def keep(self, cache: Cache, key: str) -> Code:
        return artefacts.keep_code(cache, key, self.code, self.objects, self.steps, self.constants)


def _compile(loaded: Loaded, options: Options, target: TargetSpec, trace: Trace, progress: Progress) -> _New:
    """The code of a model, and what packing its weights takes."""
    cache = open_cache()
    with ThreadPoolExecutor(1) as beside:  # the support code is compiled while kernels are printed
        support = beside.submit(support_objects, target, cache)
        progress("compiling")
        made = plan(loaded, options, target, trace)
        built = native.build(made, target, progress, options.denormals == "keep")
        for name, text in built.texts.items():
            trace.text(f"llvm_{name}", lambda t=text: t)  # type: ignore[misc]
        image = link_image([*support.result(), *built.objects])
    code = Code(image, built.interface, face_of(loaded, built.interface))
    return _New(code, built.objects, *_steps(made, loaded))


def _steps(made: Plan, loaded: Loaded) -> tuple[list[list[artefacts.RawName]], bytes]:
    """Where the raw tensors of a plan's packing steps are: initialisers by name, constants of ours one after another."""
    constants = bytearray()
    places: dict[Tensor, artefacts.RawName] = {}
    for step in made.prepare:
        for tensor in step.raw:
            name = loaded.watch.name_of(tensor.data)
            if tensor not in places and name is None:
                data = raw_bytes(tensor)
                places[tensor] = (len(constants), len(data))
                constants += data
            elif name is not None:
                places[tensor] = name
    return [[places[tensor] for tensor in step.raw] for step in made.prepare], bytes(constants)


def _pack_into_memory(new: _New, image: Image, loaded: Loaded, progress: Progress) -> Memory | None:
    size = new.code.interface.weights_bytes
    if not size:
        return None
    loaded.watch.stop()
    block = mmap.mmap(-1, size)
    anchor = ctypes.c_char.from_buffer(block)
    address = ctypes.addressof(anchor)
    native.pack(image, [[loaded.raw(raw, new.constants) for raw in step] for step in new.steps], address, progress)
    return Memory(address, size, anchor)


def objects(source: Any, options: Options, interface: PlanInterface) -> native.Objects:
    """The objects of a module that was compiled before, compiled again. Raises UsageError where they are others."""
    if source is not None:
        target = target_of(options)
        made = plan(source, options, target, Trace())
        built = native.build(made, target, silent, options.denormals == "keep")
        if built.interface == interface:
            return built.objects
    raise UsageError(
        "The module cannot be written: what it is linked from has left the cache", todo="Compile the model again"
    )


def check(source: Any, options: Options) -> CheckReport:
    """What compiling a model would meet. Raises for a broken or unsafe model, never for operators without a form here."""
    try:
        loaded = read(artefacts.plain(source), options)
    except UnsupportedError as error:
        return reports.unread(model_name(source), options, error.gaps)
    try:
        program: Program | None = lower(loaded.model)
        gaps: tuple[Gap, ...] = ()
    except UnsupportedError as error:
        program, gaps = None, error.gaps
    return reports.check(model_name(source), options, loaded, program, gaps)


def explain(source: Any, options: Options) -> ExplainReport:
    """What compiling a model makes of it, and why. Nothing is compiled to machine code."""
    trace = Trace()
    loaded = read(artefacts.plain(source), options)
    made = plan(loaded, options, target_of(options), trace)
    return reports.explain(model_name(source), options, trace.program, trace.groups, made, trace.log)


def load(path: str | os.PathLike[str]) -> Module:
    """A module out of a .so file that `save` wrote."""
    from fusile.backends.native import files

    return files.load(Path(path))
