"""From a canonical graph to a plan for Numba: the part of the road that its two targets share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from fusile.escape import identifier
from fusile.graph.text import graph_text
from fusile.ir.loops import Kernel, kernel_text
from fusile.ir.plan import Plan, Variant, plan_text
from fusile.ir.tensor import Program, Stage
from fusile.ir.text import program_text
from fusile.options import Options
from fusile.passes import fuse, strict
from fusile.passes.fuse import Group
from fusile.passes.inline import Log
from fusile.passes.lower import lower as lower_group
from fusile.passes.plan_memory import arguments, build_plan
from fusile.passes.to_tensor import lower

Dump = Callable[[str, Callable[[], str]], None]
"""Receives the name of a level and a function that makes its text."""


def no_dump(name: str, make: Callable[[], str]) -> None:
    """Keeps nothing."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What passes may look at."""

    options: Options
    log: Log = field(default_factory=Log)

    def same(self, a: Stage, b: Stage) -> bool:
        """Whether two stages may share a kernel: below level 2 only those of one ONNX node."""
        return self.options.opt_level == 2 or (a.origin == b.origin and a.op == b.op)


Pass = Callable[[Program, Settings], Program]


def build(
    model: ir.Model,
    settings: Settings,
    passes: tuple[tuple[str, Pass], ...],
    schedule: Callable[[Kernel], Kernel],
    dump: Dump,
) -> Plan:
    """The plan of a canonical graph whose operators all have definitions."""
    dump("graph", lambda: graph_text(model))
    program = lower(model, settings.options.seed)
    strict.check_program("to_tensor", None, program)
    dump("program", lambda: program_text(program))

    def grouped(program: Program, dump: Dump) -> tuple[Program, list[Group]]:
        for name, step in passes:
            before, program = program, step(program, settings)
            strict.check_program(name, before, program)
            dump(name, functools.partial(program_text, program))
        groups = fuse.group(program, settings.log, settings.same)
        dump("groups", lambda: fuse.groups_text(groups))
        return program, groups

    program, groups = grouped(program, dump)
    kernels: list[tuple[Kernel, Kernel]] = []

    def lowered(group: Group) -> tuple[Variant, ...]:
        naive = lower_group(group, kernel_name(group))
        strict.check_lowered(group, naive)
        fast = schedule(naive)
        strict.check_kernel("schedule", naive, fast)
        kernels.append((naive, fast))
        return (Variant(None, fast, arguments(fast)),)

    def inner(within: Program, makes: frozenset[int]) -> Plan:
        """The plan of a branch or of a loop's body, which goes the same road."""
        return build_plan(*grouped(within, no_dump), lowered, inner, makes)

    plan = build_plan(program, groups, lowered, inner)
    strict.check_plan(program, plan)
    dump("loops", lambda: "\n".join(kernel_text(n) for n, _ in kernels))
    dump("schedule", lambda: "\n".join(kernel_text(f) for _, f in kernels))
    dump("plan", lambda: plan_text(plan))
    return plan


def kernel_name(group: Group) -> str:
    """The operators of a group in words."""
    words = list(dict.fromkeys(_snake(s.op) for s in group.stages if s.op))
    shown = words if len(words) <= 4 else [*words[:3], words[-1]]
    return identifier("_".join(shown) or "kernel", set())


def _snake(name: str) -> str:
    out = ""
    for k, c in enumerate(name):
        if c.isupper() and k and not name[k - 1].isupper():
            out += "_"
        out += c.lower()
    return out
