"""From a model to a module: the pipelines, top to bottom."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fusile.ir.loops import Kernel, kernel_text
from fusile.ir.plan import Plan, Variant, plan_text
from fusile.ir.tensor import Program, Stage
from fusile.ir.text import program_text
from fusile.options import Options
from fusile.backends.native import scalars
from fusile.passes import fuse, inline, layout, pack, strict
from fusile.passes.finish import finish
from fusile.passes.fuse import Group
from fusile.passes.inline import Log
from fusile.passes.lower import lower as lower_group
from fusile.passes.plan_memory import arguments, build_plan
from fusile.passes.to_tensor import defined, lower
from fusile.report import Progress
from fusile.schedule import cpu
from fusile.schedule.tiles import Registers
from fusile.target import TargetSpec


@dataclass(slots=True)
class Trace:
    """What a compilation leaves behind for people: the log of fusion, and every stage as numbered text where a folder is given."""

    folder: Path | None = None
    log: Log = field(default_factory=Log)
    count: int = 0

    def text(self, name: str, make: Callable[[], str]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.count:02d}_{name}.txt").write_text(make(), encoding="utf-8")
        self.count += 1


def graph(source: Any, options: Options) -> ir.Model:
    """The canonical graph of a model, with operators that have no definition expanded into their function bodies."""
    from fusile import frontend
    from fusile.graph.cleanup import clean_up

    model = frontend.load(source, dims=dict(options.dims))
    frontend.expand(model, defined)
    clean_up(model)
    strict.check_graph("clean_up", model)
    return model


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

TILED: tuple[tuple[str, ProgramPass], ...] = (
    ("layout", lambda p, s: layout.choose(p, s.log)),
    ("inline", lambda p, s: inline.inline(p, s.log, s.same)),
    ("pack", lambda p, s: pack.pack(p, s.registers, s.log)),
    ("lanes", lambda p, s: pack.split_reductions(p, 4 * s.lanes, s.log)),
)
"""Levels 1 and 2: layouts, inlining, panels for contractions, lanes for reductions."""

PIPELINES: dict[int, tuple[tuple[str, ProgramPass], ...]] = {0: PLAIN, 1: TILED, 2: TILED}


def tensor_program(source: Any, options: Options, target: TargetSpec, trace: Trace) -> tuple[Program, list[Group]]:
    """The grouped tensor program of a model."""
    program = lower(graph(source, options))
    strict.check_program("to_tensor", None, program)
    trace.text("program", lambda: program_text(program))
    settings = Settings(options, target, trace.log)
    for name, step in PIPELINES[options.opt_level]:
        before, program = program, step(program, settings)
        strict.check_program(name, before, program)
        trace.text(name, lambda p=program: program_text(p))  # type: ignore[misc]
    return program, fuse.group(program, trace.log, settings.same)


def plan(source: Any, options: Options, target: TargetSpec, trace: Trace) -> Plan:
    """The plan of a model for the native backend."""
    program, groups = tensor_program(source, options, target, trace)
    kernels: list[tuple[Kernel, Kernel]] = []
    printable = scalars.capabilities(target)

    def lowered(group: Group) -> tuple[Variant, ...]:
        naive = lower_group(group, f"kernel{len(kernels)}")
        strict.check_lowered(group, naive)
        scheduled = cpu.schedule(naive, target) if options.opt_level else naive
        strict.check_kernel("schedule", naive, scheduled)
        fast = finish(scheduled, printable)
        strict.check_kernel("finish", scheduled, fast, proofs=False)
        kernels.append((naive, fast))
        return (Variant(None, fast, arguments(fast)),)

    made = build_plan(program, groups, lowered)
    strict.check_plan(program, made)
    trace.text("loops", lambda: "\n".join(kernel_text(n) for n, _ in kernels))
    trace.text("schedule", lambda: "\n".join(kernel_text(f) for _, f in kernels))
    trace.text("plan", lambda: plan_text(made))
    return made


def target_of(options: Options) -> TargetSpec:
    from fusile import target

    if options.cpu == "native" and options.target_triple is None:
        return target.host()
    return target.for_cpu(options.cpu, options.target_triple)


def compile(source: Any, options: Options, progress: Progress) -> Any:
    """A module in this process."""
    from fusile.backends.native import module as native
    from fusile.runtime.module import ModelInfo
    from fusile.runtime.workers import start_workers

    start_workers()
    target = target_of(options)
    trace = Trace(Path(os.fspath(options.dump_ir)) if options.dump_ir else None)
    made = plan(source, options, target, trace)
    built = native.build(made, target, progress)
    for name, text in built.texts.items():
        trace.text(f"llvm_{name}", lambda t=text: t)  # type: ignore[misc]
    image = native.load(native.assemble(built))
    weights = native.pack_weights(made, image, progress)
    return native.NativeModule(image, weights, built.interface, options.threads or os.cpu_count() or 1, ModelInfo())


