"""Every step from the graph to the plan keeps the meaning: small models, all levels, sizes fixed and open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from program_table import PROGRAMS, Small

from fusile import driver
from fusile.backends.native import scalars
from fusile.ir.loops import Kernel
from fusile.ir.plan import Variant
from fusile.ir.tensor import Program
from fusile.ir.verify import verify_kernel, verify_plan, verify_program
from fusile.options import Options
from fusile.passes import fuse, inline, strict
from fusile.passes.finish import finish
from fusile.passes.fuse import Group
from fusile.passes.inline import Log
from fusile.passes.lower import lower as lower_group
from fusile.passes.plan_memory import arguments, build_plan
from fusile.passes.to_tensor import lower
from fusile.schedule import cpu, cuda, numba_cpu
from fusile.target import TargetSpec, for_cpu

LINUX = "x86_64-unknown-linux-gnu"
CONFIGURATIONS: tuple[tuple[int, str, bool], ...] = (
    (0, "x86-64-v3", False),
    (0, "x86-64-v3", True),
    (1, "x86-64-v2", False),
    (1, "x86-64-v2", True),
    (2, "x86-64-v3", False),
    (2, "x86-64-v3", True),
    (2, "x86-64-v4", True),
)
"""Optimisation level, CPU (vectors of 4, 8 and 16 lanes), and whether sizes stay symbols."""


@dataclass
class Compilation:
    """One model on its way down, with what every step made."""

    target: TargetSpec
    program: Program
    settings: driver.Settings


def name(configuration: tuple[int, str, bool]) -> str:
    level, cpu_name, symbolic = configuration
    return f"O{level}-{cpu_name}-{'symbolic' if symbolic else 'static'}"


@pytest.fixture(params=CONFIGURATIONS, ids=name)
def configuration(request: pytest.FixtureRequest) -> tuple[int, str, bool]:
    found: tuple[int, str, bool] = request.param
    return found


@pytest.fixture(params=PROGRAMS, ids=str)
def start(request: pytest.FixtureRequest, configuration: tuple[int, str, bool]) -> Compilation:
    small: Small = request.param
    level, cpu_name, symbolic = configuration
    options = Options(opt_level=level, dims={} if symbolic else dict(small.sizes))  # type: ignore[arg-type]
    target = for_cpu(cpu_name, LINUX)
    program = lower(driver.graph(small.model(), options))
    verify_program(program)
    return Compilation(target, program, driver.Settings(options, target, Log()))


def passes(c: Compilation) -> Iterator[tuple[str, Program, Program]]:
    program = c.program
    for name, step in driver.PIPELINES[c.settings.options.opt_level]:
        before, program = program, step(program, c.settings)
        yield name, before, program


def test_passes_keep_the_meaning(start: Compilation) -> None:
    for name, before, after in passes(start):
        verify_program(after)
        assert strict.same_program(name, before, after)


def test_kernels_and_plans_keep_the_meaning(start: Compilation) -> None:
    program = start.program
    for _, _, after in passes(start):
        program = after
    kernels: list[Kernel] = []
    target = start.target
    printable = scalars.capabilities(target)
    checked = 0

    def lowered(group: Group) -> tuple[Variant, ...]:
        nonlocal checked
        naive = lower_group(group, f"kernel{len(kernels)}")
        verify_kernel(naive)
        checked += strict.same_group(group, naive)
        scheduled = cpu.schedule(naive, target) if start.settings.options.opt_level else naive
        verify_kernel(scheduled)
        checked += strict.same_kernel("schedule", naive, scheduled)
        fast = finish(scheduled, printable)
        verify_kernel(fast, proofs=False)
        checked += strict.same_kernel("finish", scheduled, fast)
        kernels.append(fast)
        return (Variant(None, scheduled, arguments(scheduled)),)

    groups = fuse.group(program, start.settings.log, start.settings.same)
    plan = build_plan(program, groups, lowered)
    verify_plan(plan)
    assert checked >= 2 * len(kernels), "most kernels are small enough to be interpreted"
    assert strict.same_plan(start.program, plan)


@pytest.mark.parametrize("schedule", [cuda.schedule, numba_cpu.schedule], ids=["cuda", "numba"])
@pytest.mark.parametrize("small", PROGRAMS, ids=str)
def test_schedules_of_other_targets_keep_the_meaning(
    small: Small, schedule: Callable[[Kernel], Kernel]
) -> None:
    options = Options()
    settings = driver.Settings(options, for_cpu("x86-64-v3", LINUX), Log())
    program = inline.inline(lower(driver.graph(small.model(), options)), settings.log, settings.same)
    for group in fuse.group(program, settings.log, settings.same):
        naive = lower_group(group, "kernel")
        scheduled = schedule(naive)
        verify_kernel(scheduled)
        strict.same_kernel("schedule", naive, scheduled)
