"""From a model to a module: the pipelines, top to bottom."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fusile import artefacts, building, reports
from fusile.artefacts import target_of
from fusile.backends.native import scalars
from fusile.backends.native.build import Objects
from fusile.building import Job
from fusile.errors import UnsettledError, UsageError
from fusile.graph.text import graph_text
from fusile.ir import alike
from fusile.ir.loops import Buffer, Kernel, kernel_text
from fusile.ir.plan import Plan, Variant, plan_text
from fusile.ir.tensor import Program, Stage
from fusile.ir.text import program_text
from fusile.loading import Loaded, model_name, needs_host, read
from fusile.options import Options
from fusile.passes import fuse, inline, lanes, layout, pack, strict, winograd
from fusile.passes.finish import finish
from fusile.passes.fuse import Group
from fusile.passes.inline import Log
from fusile.passes.lower import lower as lower_group
from fusile.passes.plan_memory import arguments, build_plan
from fusile.passes.to_tensor import lower
from fusile.report import ExplainReport, Progress, silent
from fusile.runtime.abi import PlanInterface
from fusile.runtime.module import Module
from fusile.schedule import cpu
from fusile.schedule.tiles import Registers
from fusile.target import TargetSpec


@dataclass(slots=True)
class Trace:
    """What a compilation leaves behind for people: the log of fusion, and every stage as numbered text
    where a folder is given.
    """

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
    """The canonical graph of a model, with operators that have no definition expanded into their function
    bodies.
    """
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


PLAIN: tuple[tuple[str, ProgramPass], ...] = (("inline", lambda p, s: inline.inline(p, s.log, s.same)),)
"""Level 0: one kernel per operator, as it is defined."""

ALONE: tuple[tuple[str, ProgramPass], ...] = (
    ("turn", lambda p, s: layout.within_operators(p, s.log)),
    ("inline", lambda p, s: inline.inline(p, s.log, s.same)),
    ("pack", lambda p, s: pack.pack(p, s.registers, s.log, s.options.precision)),
    ("lanes", lambda p, s: lanes.split_reductions(p, 4 * s.lanes, s.log)),
)
"""Level 1: every operator tiled and vectorised as well as it can be alone, between tensors in the layouts
of the model.
"""

FUSED: tuple[tuple[str, ProgramPass], ...] = (
    ("columns", lambda p, s: layout.merge_columns(p, s.log)),
    ("layout", lambda p, s: layout.choose(p, s.log)),
    ("winograd", lambda p, s: winograd.winograd(p, s.log) if s.options.precision == "fp32" else p),
    ("inline", lambda p, s: inline.inline(p, s.log, s.same)),
    ("pack", lambda p, s: pack.pack(p, s.registers, s.log, s.options.precision)),
    ("lanes", lambda p, s: lanes.split_reductions(p, 4 * s.lanes, s.log)),
)
"""Level 2: layouts over the whole graph, inlining, panels for contractions, lanes for reductions."""

PIPELINES: dict[int, tuple[tuple[str, ProgramPass], ...]] = {0: PLAIN, 1: ALONE, 2: FUSED}


def tensor_program(
    source: Any, options: Options, target: TargetSpec, trace: Trace
) -> tuple[Program, list[Group]]:
    """The grouped tensor program of a model."""
    canonical = graph(source, options)
    trace.text("graph", lambda: graph_text(canonical))
    program = lower(canonical, options.seed)
    strict.check_program("to_tensor", None, program)
    trace.text("program", lambda: program_text(program))
    trace.program = program
    program, trace.groups = _grouped(program, Settings(options, target, trace.log), trace.text)
    return program, trace.groups


def _grouped(
    program: Program, settings: Settings, text: Callable[[str, Callable[[], str]], None]
) -> tuple[Program, list[Group]]:
    """A tensor program after its pipeline, in groups. `text` receives the levels."""
    for name, step in PIPELINES[settings.options.opt_level]:
        before, program = program, step(program, settings)
        strict.check_program(name, before, program)
        text(name, functools.partial(program_text, program))
    groups = fuse.group(program, settings.log, settings.same)
    text("groups", lambda: fuse.groups_text(groups))
    return program, groups


def plan(source: Any, options: Options, target: TargetSpec, trace: Trace) -> Plan:
    """The plan of a model for the native backend."""
    program, groups = tensor_program(source, options, target, trace)
    kernels: list[tuple[Kernel, Kernel]] = []
    count = itertools.count()
    before: dict[object, tuple[Variant, ...]] = {}
    again: list[str] = []
    printable = scalars.capabilities(target)

    settings = Settings(options, target, trace.log)
    outside = {t.name for t in (*program.inputs, *program.outputs)}

    def own(b: Buffer) -> bool:
        """Whether a buffer lies in memory of ours, which is aligned."""
        return b.name not in outside

    def lowered(group: Group) -> tuple[Variant, ...]:
        naive = lower_group(group, f"kernel{next(count)}")
        strict.check_lowered(group, naive)
        key = alike.key(naive), tuple(map(own, naive.params)), alike.guard_sites(naive)
        if key in before:
            again.append(f"{naive.name} is {before[key][0].kernel.name} over other tensors")
            return tuple(repeated(v, naive) for v in before[key])
        made: list[Variant] = []
        for guard, scheduled in cpu.variants(naive, target, own) if options.opt_level else ((None, naive),):
            strict.check_kernel("schedule", naive, scheduled)
            fast = finish(scheduled, printable)
            strict.check_kernel("finish", scheduled, fast, proofs=False)
            kernels.append((naive, fast))
            made.append(Variant(guard, fast, arguments(fast)))
        before[key] = tuple(made)
        return before[key]

    def inner(within: Program, makes: frozenset[int]) -> Plan:
        """The plan of a branch or of a loop's body, which goes the same road."""
        within, parts = _grouped(within, settings, lambda name, make: None)
        trace.groups.extend(parts)
        outside.update(t.name for t in (*within.inputs, *within.outputs))
        return build_plan(within, parts, lowered, inner, makes)

    made = build_plan(program, groups, lowered, inner)
    strict.check_plan(program, made)
    trace.text("loops", lambda: "\n".join([*(kernel_text(n) for n, _ in kernels), *again]))
    trace.text("schedule", lambda: "\n".join([*(kernel_text(f) for _, f in kernels), *again]))
    trace.text("plan", lambda: plan_text(made))
    return made


def repeated(made: Variant, naive: Kernel) -> Variant:
    """What became of a kernel, for the tensors of another one that differs from it in names alone."""
    tensors = dict(zip(made.kernel.params, arguments(naive), strict=True))
    notes = {**made.kernel.notes, "tensors": tensors}
    kernel = replace(made.kernel, name=naive.name, origins=naive.origins, notes=notes)
    return Variant(made.guard, kernel, arguments(kernel))


def compile(source: Any, options: Options, progress: Progress) -> Module:
    """A module of the model: one that was compiled before where the cache has it, else a new one."""
    return artefacts.compile(source, options, progress)


def build(source: Any, options: Options, progress: Progress, region: bool = False) -> Module:
    """A new module. Its parts go into the cache. A `region` is a part of what the host runs: where it needs
    to see its inputs, it raises UnsettledError.
    """
    if options.target in ("numba", "cuda"):
        return _in_python(source, options, progress, region)
    if options.target != "native":
        raise UsageError(
            f"There are no modules for the target {options.target!r} in this process",
            todo=f"Write its source with fusile.emit(model, to={options.target!r}, out=...)",
        )
    return building.build(_job(source, options, progress, region))


def _in_python(source: Any, options: Options, progress: Progress, region: bool) -> Module:
    """A module whose kernels are Python source for Numba; its pipelines stand in the backend."""
    if options.target == "cuda":
        from fusile.backends import numba_cuda as backend
    else:
        from fusile.backends import numba_cpu as backend  # type: ignore[no-redef]
    loaded = read(source, options)
    if needs_host(loaded.model):
        from fusile import host

        return host.build(loaded, options, target_of(options), progress)
    trace = Trace(Path(options.dump_ir) if options.dump_ir else None)
    try:
        made = backend.plan_of(loaded.model, options, trace.text)
    except UnsettledError:
        if region:
            raise
        from fusile import host

        return host.build(loaded, options, target_of(options), progress)
    return backend.module(made, options, loaded.info, trace.text)


def objects(source: Any, options: Options, interface: PlanInterface) -> Objects:
    """The objects of a module that was compiled before, compiled again."""
    return building.objects(_job(source, options, silent), interface)


def _job(source: Any, options: Options, progress: Progress, region: bool = False) -> Job:
    target = target_of(options)
    trace = Trace(Path(options.dump_ir) if options.dump_ir else None)
    return Job(
        source,
        options,
        target,
        lambda loaded: plan(loaded, options, target, trace),
        progress,
        lambda name, text: trace.text(name, lambda: text),
        region,
    )


@contextmanager
def without_host(loaded: Loaded, options: Options, what: str) -> Iterator[None]:
    """Around work that makes `what` of a model, in which the host part has no form: raises UnsupportedError
    with everything that needs it.
    """
    if not needs_host(loaded.model):
        try:
            yield
            return
        except UnsettledError:
            pass
    from fusile import host

    raise host.without_form(host.examine(loaded, options), what)


def explain(source: Any, options: Options) -> ExplainReport:
    """What compiling a model makes of it, and why. Nothing is compiled to machine code."""
    trace = Trace()
    loaded = read(artefacts.plain(source), options)
    with without_host(loaded, options, "kernels"):
        made = plan(loaded, options, target_of(options), trace)
    return reports.explain(model_name(source), options, trace.program, trace.groups, made, trace.log)


def load(path: str | os.PathLike[str], threads: int | None = None) -> Module:
    """A module out of a .so file that `save` wrote."""
    from fusile.backends.native import files

    return files.load(Path(path), threads)
