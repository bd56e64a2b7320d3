"""The functions of the public face: each takes a model, keyword options, and says no with a FusileError."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fusile.light import import_onnx_ir
from fusile.options import KERNEL_TARGETS, OPTIONS, check_kernel_target, make_options, make_options_of
from fusile.report import CheckReport, ExplainReport, Progress, silent
from fusile.runtime.module import Module, Value

if TYPE_CHECKING:
    from fusile.backends.framework.emit import EmitReport
    from fusile.tools.bench import BenchReport
    from fusile.tools.verify import VerifyReport

Source = Any
"""A path, bytes, an onnx.ModelProto or an onnx_ir.Model."""


def compile(source: Source, *, progress: Progress = silent, **options: Any) -> Module:
    """Compile a model into a module that is called with arrays.

    `options` are the fields of `fusile.Options`: `target` ("native", "numba" or "cuda"), `dims`,
    `threads`, `precision`, `opt_level`, `cpu`, `target_triple`, `weights` and others. Raises
    UnsupportedError with every gap at once, InvalidModelError for a broken file and UnsafeModelError for
    one that reaches beyond its folder.
    """
    from fusile import artefacts

    target = options.get("target", "native")
    check_kernel_target(target, f"Use fusile.emit(model, to={target!r}, out=...)")
    return artefacts.compile(source, make_options(**options), progress)


def check(source: Source, **options: Any) -> CheckReport:
    """What compiling the model would meet: coverage, size, what would not work and why. Reads no weights."""
    import_onnx_ir()
    from fusile import checking

    return checking.check(source, make_options(**options))


def explain(source: Source, **options: Any) -> ExplainReport:
    """Kernels, fusion groups, the bytes they save, and every refusal with its reason."""
    import_onnx_ir()
    from fusile import driver

    check_kernel_target(options.get("target", "native"), f"explain knows {', '.join(KERNEL_TARGETS)}")
    return driver.explain(source, make_options(**options))


def load(path: str | os.PathLike[str], *, threads: int | None = None) -> Module:
    """Load a native module that `Module.save` or `fusile compile` wrote. `threads` is how many a run uses
    (None: the CPUs that this process may use).
    """
    import_onnx_ir()
    from fusile import driver

    return driver.load(path, make_options(threads=threads).threads)


def emit(
    source: Source, to: str, out: str | os.PathLike[str], *, force: bool = False, **options: Any
) -> EmitReport:
    """Write the model as source code ("torch", "keras", "numba" or "cuda") into a folder.

    The report names the files and lists parameters, buffers and constants. For the frameworks the folder
    holds `model.py` and `weights.safetensors`, and `model.load()` returns the module with its weights.
    Files that fusile did not write are overwritten only with `force`.
    """
    import_onnx_ir()
    from fusile.tools import emit as tool

    return tool.emit(source, to, out, make_options(**options), force=force)


def verify(
    source: Source,
    *,
    seeds: Sequence[int] = (0,),
    dim_sets: Sequence[Mapping[str, int]] = (),
    inputs: Mapping[str, Value] | Sequence[str] = (),
    bound: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    search: bool = True,
    progress: Progress = silent,
    **options: Any,
) -> VerifyReport:
    """Compare a target's answers ("torch" and "keras" too) with ONNX Runtime's; needs `fusile[verify]`.

    Agreement is an error of at most `bound` of the root mean square (by default 1e-3, wider for float16
    and quantised models), or numpy's `rtol` and `atol`. On a difference `report.first` is the first
    node that differs. `report.require()` raises where an answer differs.
    """
    from fusile.tools.verify import Question
    from fusile.tools.verify import verify as tool

    question = Question(seeds, dim_sets, inputs, bound, rtol, atol, search)
    own = ("seeds", "dim_sets", "inputs", "bound", "rtol", "atol", "search")
    made = make_options_of("fusile.verify", OPTIONS, own, options)
    return tool(source, made, question, progress)


def bench(
    source: Source,
    *,
    rounds: int = 7,
    burst: float = 0.25,
    inputs: Mapping[str, Value] | Sequence[str] = (),
    progress: Progress = silent,
    **options: Any,
) -> BenchReport:
    """Time the model fused, unfused and in ONNX Runtime, taking turns, and compare their answers."""
    from fusile.tools.bench import TAKEN, Plan
    from fusile.tools.bench import bench as tool

    check_kernel_target(options.get("target", "native"), f"bench measures {', '.join(KERNEL_TARGETS)}")
    made = make_options_of("fusile.bench", TAKEN, ("rounds", "burst", "inputs"), options)
    return tool(source, made, Plan(rounds, burst, inputs), progress)
