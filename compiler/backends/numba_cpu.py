"""Numba on a CPU: a model as Python source whose loops Numba compiles, and that source run in this
process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from fusile.backends.framework.emit import EmitReport
from fusile.backends.numba.build import Dump, Pass, Settings, build, no_dump
from fusile.backends.numba.folder import write_folder
from fusile.backends.numba.kernels import Cpu, Use, tasks
from fusile.backends.numba.module import NumbaModule
from fusile.backends.numba.plan import Words
from fusile.backends.numba.source import Target, print_module
from fusile.capabilities import FUNCTIONS
from fusile.ir.expr import Expr
from fusile.ir.loops import Kernel
from fusile.ir.plan import Plan
from fusile.options import Options
from fusile.passes import inline, lanes, layout, pack
from fusile.runtime.module import ModelInfo
from fusile.schedule import numba_cpu as rules
from fusile.schedule.interchange import drop_units
from fusile.schedule.tiles import Registers

LANES = 16
"""Partial sums of a reduction along contiguous memory."""
PANELS = Registers(32, 3)
"""Makes panels of 64 columns: accumulators are a row in the first-level cache, which LLVM vectorises for any
width of vectors."""

PLAIN: tuple[tuple[str, Pass], ...] = (("inline", lambda p, s: inline.inline(p, s.log, s.same)),)
"""Level 0: one kernel per operator, as it is defined."""

ALONE: tuple[tuple[str, Pass], ...] = (
    ("turn", lambda p, s: layout.within_operators(p, s.log)),
    ("inline", lambda p, s: inline.inline(p, s.log, s.same)),
    ("pack", lambda p, s: pack.pack(p, PANELS, s.log, s.options.precision)),
    ("lanes", lambda p, s: lanes.split_reductions(p, LANES, s.log)),
)
"""Level 1: every operator as well as it can be alone, between tensors in the layouts of the model."""

FUSED: tuple[tuple[str, Pass], ...] = (
    ("columns", lambda p, s: layout.merge_columns(p, s.log)),
    ("layout", lambda p, s: layout.choose(p, s.log)),
    ("inline", lambda p, s: inline.inline(p, s.log, s.same)),
    ("pack", lambda p, s: pack.pack(p, PANELS, s.log, s.options.precision)),
    ("lanes", lambda p, s: lanes.split_reductions(p, LANES, s.log)),
)
"""Level 2: layouts over the whole graph, inlining, panels for contractions, lanes for reductions."""

PIPELINES: dict[int, tuple[tuple[str, Pass], ...]] = {0: PLAIN, 1: ALONE, 2: FUSED}


def _imports(names: Sequence[str]) -> list[str]:
    """Rounding from numpy, what f64 takes from the C library from math."""
    plain = [n for n in names if not n.endswith("_f64")]
    wide = [f"{n.removesuffix('_f64')} as {n}" for n in names if n.endswith("_f64")]
    out = [f"from math import {', '.join(wide)}"] if wide else []
    return [*out, f"from numpy import {', '.join(plain)}"] if plain else out


def _launch(use: Use, kernel: Kernel, text: Callable[[Expr], str]) -> tuple[str, list[str]]:
    count = tasks(kernel)
    name = use.function.name
    return (name, []) if count is None else ("spread", [name, text(count)])


TARGET = Target(
    name="numba",
    dialect=Cpu(),
    words=Words(
        launch=_launch,
        around=("w", "spread"),
        from_arena="np.ndarray({shape}, {dtype}, arena, {start})",
        empty="np.empty({shape}, {dtype})",
        copy="{array}.copy()",
        assign="np.copyto({to}, {array})",
        item="{array}.item()",
        stack="np.stack({rows})",
    ),
    printed=FUNCTIONS,
    of_bits=True,
    imports=_imports,
)


def plan_of(model: ir.Model, options: Options, dump: Dump = no_dump) -> Plan:
    """The plan of a canonical graph whose operators all have definitions."""
    schedule = rules.schedule if options.opt_level else lambda k: k.with_body(drop_units(k.body))
    return build(model, Settings(options), PIPELINES[options.opt_level], schedule, dump)


def module(plan: Plan, options: Options, info: ModelInfo | None = None, dump: Dump = no_dump) -> NumbaModule:
    """A plan as a module in this process. Kernels compile when they are first called."""
    printed = print_module(plan, TARGET, options, cache=False)
    dump("source", lambda: printed.text)
    return NumbaModule(
        plan, printed.text, printed.raw, info or ModelInfo(), (options.threads or os.cpu_count(),)
    )


def emit(model: ir.Model, folder: Path, options: Options) -> EmitReport:
    """Write `model.py` and `weights.safetensors` into a folder, both or neither; answers what was written."""
    return write_folder(model, folder, options, plan_of, TARGET)


__all__ = ["PIPELINES", "TARGET", "emit", "module", "plan_of"]
