"""Numba on a GPU: a model as Python source whose kernels Numba compiles for CUDA, that source run in this
process, and its PTX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fusile.backends.framework.emit import EmitReport
from fusile.backends.numba.build import Dump, Pass, Settings, build, no_dump
from fusile.backends.numba.folder import write_folder
from fusile.backends.numba.gpu import Gpu, launch_of
from fusile.backends.numba.kernels import Use
from fusile.backends.numba.module import NumbaModule
from fusile.backends.numba.plan import Words
from fusile.backends.numba.scalars import word
from fusile.backends.numba.source import Target, print_module
from fusile.errors import UsageError
from fusile.ir.expr import Expr
from fusile.ir.loops import Kernel
from fusile.ir.plan import Plan
from fusile.options import Options
from fusile.passes import inline, lanes, layout, pack
from fusile.runtime.module import ModelInfo
from fusile.schedule import cuda as rules
from fusile.schedule.tiles import Registers

LANES = 64
"""Partial sums of a reduction along contiguous memory: one per thread."""
PANELS = Registers(32, 3)
"""Makes panels of 64 columns: neighbouring threads read neighbouring elements."""

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
"""Level 2: layouts over the whole graph, inlining, contiguous operands, one partial sum per thread."""

PIPELINES: dict[int, tuple[tuple[str, Pass], ...]] = {0: PLAIN, 1: ALONE, 2: FUSED}

_SIMULATED = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "pow": "power"}
"""Functions that numpy calls otherwise."""
_LIBDEVICE = {
    "rint": "rintf",
    "rint_f64": "rint",
    "bits_i32": "float_as_int",
    "i32_of_bits": "float_as_int",
    "f32_of_bits": "int_as_float",
    "bits_i64": "double_as_longlong",
    "f64_of_bits": "longlong_as_double",
}
"""Functions of the device library that have no other name."""


def _imports(names: Sequence[str]) -> list[str]:
    """Functions from the device's mathematics, or from numpy where the simulator runs the kernels as plain
    Python."""
    simulated: list[str] = []
    real: list[str] = []
    plain = [n for n in names if not n.startswith(("bits_", "rint")) and not n.endswith("_of_bits")]
    if plain:
        from_numpy = [f"{_SIMULATED[n]} as {n}" if n in _SIMULATED else n for n in plain if n != "erf"]
        simulated += [f"from numpy import {', '.join(from_numpy)}"] if from_numpy else []
        simulated += ["from math import erf"] if "erf" in plain else []
        real.append(f"from math import {', '.join(plain)}")
    for n in names:
        if n in plain:
            continue
        if n.startswith("rint"):
            simulated.append(f"from numpy import rint as {n}")
            real.append(f"{n} = libdevice.{_LIBDEVICE[n]}")
        else:
            lines = _views(n)
            simulated += lines[0]
            real += lines[1]
    if not names:
        return []
    needs = ["from numba.cuda import libdevice", ""] if any("libdevice" in x for x in real) else []
    return [
        "if SIMULATED:",
        *(f"    {x}" for x in simulated),
        "else:",
        *(f"    {x}" if x else "" for x in [*needs, *real]),
    ]


_FLOAT = {"32": ("np.float32", "np.int32"), "64": ("np.float64", "np.int64")}


def _views(name: str) -> tuple[list[str], list[str]]:
    """`bits_i32` and its like: (for the simulator, for the device)."""
    kind = name.removeprefix("bits_") if name.startswith("bits_") else name.removesuffix("_of_bits")
    bits = kind[1:]
    real, whole = _FLOAT[bits]
    if name.startswith("bits_"):
        to = f"np.{'u' if kind[0] == 'u' else ''}int{bits}"
        device = f"{to}(libdevice.{_LIBDEVICE['bits_i' + bits]}(x))"
        return _function(name, f"{real}(x).view({to})"), [*_function(name, device, helper=True)]
    device = f"libdevice.{_LIBDEVICE[name]}({whole}(x))"
    return _function(name, f"x.astype({whole}).view({real})"), [*_function(name, device, helper=True)]


def _function(name: str, body: str, helper: bool = False) -> list[str]:
    return ["", *(["@helper"] if helper else []), f"def {name}(x):", f"    return {body}", ""]


def _launch(use: Use, kernel: Kernel, text: Callable[[Expr], str]) -> tuple[str, list[str]]:
    launch = launch_of(kernel)
    blocks = f"blocks_for({text(launch.count)})" if launch.form == "points" else text(launch.blocks)
    return f"{use.function.name}[{blocks}, THREADS]", []


TARGET = Target(
    name="cuda",
    dialect=Gpu(),
    words=Words(
        launch=_launch,
        around=("w",),
        from_arena="at(arena, {start}, {shape}, {dtype})",
        empty="cuda.device_array({shape}, {dtype})",
        copy="copied({array})",
        assign="{to}.copy_to_device({array})",
        item="{array}.copy_to_host().item()",
        stack="cuda.to_device(np.stack([row.copy_to_host() for row in {rows}]))",
    ),
    printed=frozenset(),
    of_bits=False,
    imports=_imports,
    host="_on_host",
)


def plan_of(model: ir.Model, options: Options, dump: Dump = no_dump) -> Plan:
    """The plan of a canonical graph whose operators all have definitions."""
    return build(model, Settings(options), PIPELINES[options.opt_level], rules.schedule, dump)


def module(plan: Plan, options: Options, info: ModelInfo | None = None, dump: Dump = no_dump) -> NumbaModule:
    """A plan as a module in this process, on the current GPU or in Numba's simulator.

    Raises UsageError where there is neither.
    """
    printed = print_module(plan, TARGET, options, cache=False)
    dump("source", lambda: printed.text)
    _require_device()
    return NumbaModule(plan, printed.text, printed.raw, info or ModelInfo())


def _require_device() -> None:
    try:
        from numba import cuda
    except ImportError as e:
        raise UsageError(
            "Numba's CUDA target is not installed", why=str(e), todo="pip install fusile[cuda]"
        ) from None
    if not cuda.is_available():  # type: ignore[no-untyped-call]
        raise UsageError(
            "There is no CUDA device here",
            todo="Run where there is one, or in Numba's simulator with NUMBA_ENABLE_CUDASIM=1",
        )


def emit(model: ir.Model, folder: Path, options: Options) -> EmitReport:
    """Write `model.py` and `weights.safetensors` into a folder, both or neither; answers what was written."""
    return write_folder(model, folder, options, plan_of, TARGET)


def compile_ptx(plan: Plan, cc: tuple[int, int] = (9, 0)) -> dict[str, str]:
    """The PTX of every kernel of a plan, by the name of its function; needs no GPU.

    A function that several element types share is there once for each of them, with a number behind its name.
    """
    from numba import cuda, types

    printed = print_module(plan, TARGET, Options(target="cuda"), cache=False)
    namespace = _device_namespace(cc)
    text = "\n\n".join(
        [
            "\n".join([*printed.types, *TARGET.imports(printed.imports)]),
            *printed.helpers,
            *(f.text for f in printed.functions),
        ]
    )
    exec(compile(text, "<fusile: kernels for CUDA>", "exec"), namespace)
    found: dict[str, set[tuple[Any, ...]]] = {}
    for use in printed.uses.values():
        arrays = [
            types.Array(_numba_type(word(b.dtype).name), len(b.shape) + (b in use.scratch), "C")
            for b in use.params
        ]
        error = [types.Array(types.int64, 1, "C")] if use.function.checks else []
        extra = [_numba_type(e.dtype.name) for e in use.extra]
        found.setdefault(use.function.name, set()).add((*arrays, *error, *extra))
    out: dict[str, str] = {}
    for name, signatures in found.items():
        for k, signature in enumerate(sorted(signatures, key=str)):
            ptx, _ = cuda.compile_ptx(  # type: ignore[attr-defined, no-untyped-call]
                namespace[name], signature, cc=cc
            )
            out[name if k == 0 else f"{name}_{k + 1}"] = ptx
    return out


def _numba_type(name: str) -> Any:
    from numba import types

    letters = {"i": "int", "u": "uint", "f": "float"}
    return types.boolean if name == "bool" else getattr(types, letters[name[0]] + name[1:])


def _device_namespace(cc: tuple[int, int]) -> dict[str, Any]:
    """What kernels and helpers refer to, with device functions that compile for `cc` without asking a
    device."""
    import numpy as np
    from numba import cuda
    from numba.cuda.compiler import compile_cuda
    from numba.cuda.dispatcher import CUDADispatcher

    class DeviceFunction(CUDADispatcher):
        def compile_device(self, args: Any, return_type: Any = None) -> Any:
            if args not in self.overloads:
                made = compile_cuda(self.py_func, return_type, args, cc=cc, nvvm_options={"opt": 3})
                self.overloads[args] = made
                made.target_context.insert_user_function(made.entry_point, made.fndesc, [made.library])
            return self.overloads[args]

    def helper(function: Any) -> Any:
        return DeviceFunction(  # type: ignore[no-untyped-call]
            function, targetoptions={"device": True, "opt": True}
        )

    return {
        "np": np,
        "cuda": cuda,
        "SIMULATED": False,
        "helper": helper,
        "kernel": lambda function: function,
        "__name__": "kernels",
    }
