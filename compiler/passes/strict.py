"""What FUSILE_VERIFY asks of a compilation: 1, every level is verified after every pass; 2, small programs
and kernels are also interpreted before and after it on random inputs, and must agree. Used by tests and for
hunting bugs of fusile; a failure is an InternalError.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from fusile.errors import InternalError, RunError
from fusile.graph.verify import verify_graph
from fusile.ir.expr import Axis, Dim, Expr, free
from fusile.ir.interpret import Array, Interpreter, evaluate, run_program
from fusile.ir.loops import Buffer, For, If, Kernel, Stmt, written
from fusile.ir.plan import Plan
from fusile.ir.run_loops import fresh, run_kernel, run_plan
from fusile.ir.tensor import Branch, Compute, Extern, Loop, Program, Scan, Scatter, Stage, Tensor
from fusile.ir.types import BOOL, F16, F32, F64, DType, from_numpy, numpy_dtype
from fusile.ir.verify import verify_kernel, verify_plan, verify_program
from fusile.passes.fuse import Group

SIZES: tuple[tuple[int, ...], ...] = ((3, 2, 5, 4, 1), (19, 1, 2, 3, 33), (1, 1, 1, 1, 1))
"""What symbolic sizes are tried as, in turn."""
MOST_POINTS = 200_000
"""Points of a program that are interpreted, as arrays."""
MOST_STEPS = 20_000
"""Stores of a kernel that are interpreted, one after another."""
_TOLERANCE = {F64: 1e-9, F32: 2e-4, F16: 2e-2}
"""Largest difference allowed, of the largest value: passes may take sums in another order."""


def level() -> int:
    """0 to 2, out of the environment."""
    text = os.environ.get("FUSILE_VERIFY", "0")
    return int(text) if text.isdigit() else 0


def _naming(step: str, check: Callable[[], None]) -> None:
    """Run a check; a failure says after which step it was found."""
    try:
        check()
    except InternalError as e:
        raise InternalError(f"After {step}: {e.what}", where=e.where, why=e.why) from e


# ---- what the driver calls -----------------------------------------------------------------------


def check_graph(step: str, model: ir.Model) -> None:
    if level() >= 1:
        _naming(step, lambda: verify_graph(model))


def check_program(step: str, before: Program | None, after: Program) -> None:
    """After a pass from one tensor program to another (`before` None: the pass made it out of something
    else). A program within another is run by the plan of the whole only.
    """
    if level() >= 1:
        _naming(step, lambda: verify_program(after))
    if level() >= 2 and before is not None and before is not after and not before.parameters:
        same_program(step, before, after)


def check_lowered(group: Group, kernel: Kernel) -> None:
    """After a group of stages became a naive kernel."""
    if level() >= 1:
        _naming("lower", lambda: verify_kernel(kernel))
    if level() >= 2:
        same_group(group, kernel)


def check_kernel(step: str, before: Kernel, after: Kernel, proofs: bool = True) -> None:
    """After a rewrite of a kernel; without `proofs` loops that were proven independent before it are taken to
    be so still.
    """
    if level() >= 1:
        _naming(step, lambda: verify_kernel(after, proofs))
    if level() >= 2 and before is not after:
        same_kernel(step, before, after)


def check_plan(program: Program, plan: Plan) -> None:
    """After everything has its place."""
    if level() >= 1:
        _naming("plan_memory", lambda: verify_plan(plan))
    if level() >= 2:
        same_plan(program, plan)


# ---- agreement -----------------------------------------------------------------------------------


def same_program(step: str, before: Program, after: Program) -> int:
    """Both programs answer alike on random inputs, for a few sizes; programs that are too large are left out.
    How often they ran.
    """
    ran = 0
    for sizes in SIZES:
        feeds = random_feeds(before.inputs, sizes)
        if feeds is None or max(points(before, sizes), points(after, sizes)) > MOST_POINTS:
            continue
        outcome = _outcome(lambda feeds=feeds: run_program(before, feeds))  # type: ignore[misc]
        if outcome is not None:
            names = [repr(n) for n in before.output_names]
            _agree(f"After {step}", names, outcome, run_program(after, feeds))
            ran += 1
    return ran


def same_plan(program: Program, plan: Plan) -> int:
    """The plan answers as the program does, on random inputs; plans that take too many steps are left out.
    How often they ran.
    """
    ran = 0
    for sizes in SIZES:
        feeds = random_feeds(program.inputs, sizes)
        if feeds is None or points(program, sizes) > MOST_STEPS:
            continue
        outcome = _outcome(lambda feeds=feeds: run_program(program, feeds))  # type: ignore[misc]
        if outcome is not None:
            names = [repr(n) for n in program.output_names]
            _agree("After plan_memory", names, outcome, run_plan(plan, feeds))
            ran += 1
    return ran


def same_group(group: Group, kernel: Kernel) -> int:
    """A naive kernel writes what the interpreter finds for its stages. How often they ran."""
    ran = 0
    tensors = kernel.notes["tensors"]
    assert isinstance(tensors, Mapping)
    for sizes in SIZES:
        dims: dict[Expr, Any] = {d: np.int64(n) for d, n in _assigned(kernel.dims, sizes).items()}
        work = sum(stage_points(s, dims) for s in group.stages)
        if work > MOST_STEPS:
            continue
        machine = Interpreter(dims)
        arrays = _kernel_arrays(kernel, dims)
        own = {t for s in group.stages for t in s.outs}
        machine.arrays.update({tensors[b]: a.copy() for b, a in arrays.items() if tensors[b] not in own})

        def interpret(machine: Interpreter = machine, own: set[Tensor] = own) -> list[Array]:
            for s in group.stages:
                machine.run(s)
            return [machine.arrays[tensors[b]] for b in kernel.params if tensors[b] in own]

        outcome = _outcome(interpret)
        if outcome is not None:
            run_kernel(kernel, arrays, {d: int(dims[d]) for d in kernel.dims})
            outs = [b for b in kernel.params if tensors[b] in own]
            _agree(f"After lower, {kernel.name}", [b.name for b in outs], outcome, [arrays[b] for b in outs])
            ran += 1
    return ran


def same_kernel(step: str, before: Kernel, after: Kernel) -> int:
    """Both kernels leave the same in memory, on random inputs, for a few sizes; kernels that take too long
    are left out. How often they ran.
    """
    ran = 0
    if [b.name for b in before.params] != [b.name for b in after.params]:
        raise InternalError(f"After {step}: {after.name} takes other parameters than before")
    dims_of = dict.fromkeys((*before.dims, *after.dims))
    for sizes in SIZES:
        dims: dict[Expr, Any] = {d: np.int64(n) for d, n in _assigned(dims_of, sizes).items()}
        if max(_steps(before.body, dims), _steps(after.body, dims)) > MOST_STEPS:
            continue
        first = _kernel_arrays(before, dims)
        second = {b: first[a].copy() for a, b in zip(before.params, after.params, strict=True)}

        def run(dims: Mapping[Expr, Any] = dims, first: Mapping[Buffer, Array] = first) -> list[Array]:
            run_kernel(before, first, {d: int(dims[d]) for d in before.dims})
            return [first[b] for b in before.params]

        outcome = _outcome(run, bool(before.dims))
        if outcome is not None:
            run_kernel(after, second, {d: int(dims[d]) for d in after.dims})
            got = [second[b].view(first[a].dtype) for a, b in zip(before.params, after.params, strict=True)]
            _agree(f"After {step}, {after.name}", [b.name for b in after.params], outcome, got)
            ran += 1
    return ran


def _outcome(run: Callable[[], list[Array]], unrelated: bool = False) -> list[Array] | None:
    """What a run answers; None where the random inputs do not make sense to it (`unrelated`: sizes
    neither)."""
    try:
        return run()
    except RunError:
        return None
    except InternalError:
        if unrelated:
            return None
        raise


def _agree(step: str, names: Sequence[str], wanted: Sequence[Array], got: Sequence[Array]) -> None:
    for name, a, b in zip(names, wanted, got, strict=True):
        why = difference(a, b)
        if why:
            raise InternalError(f"{step}: {name} is another than before", why=why)


def difference(a: Array, b: Array) -> str:
    """What differs between two arrays, beyond rounding; "" where nothing does."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"
    if a.dtype.kind in "biu":
        wrong = a != b
    else:
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x)
        scale = float(np.max(np.abs(x[finite]), initial=1.0))
        limit = _TOLERANCE.get(from_numpy(a.dtype), 0.1)
        with np.errstate(invalid="ignore"):
            close = (np.abs(x - y) <= limit * scale) | (x == y) | (np.isnan(x) & np.isnan(y))
        wrong = ~close
    if not np.any(wrong):
        return ""
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    count = np.count_nonzero(wrong)
    return f"{count} of {a.size} elements differ, the first at {list(at)}: {a[at]} became {b[at]}"


# ---- inputs and amounts --------------------------------------------------------------------------


def random_array(shape: Sequence[int], dtype: DType, rng: np.random.Generator) -> Array:
    """Numbers that most operators make sense of: small ones, indices below 2."""
    if dtype is BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_int:
        return rng.integers(0, 2, shape).astype(numpy_dtype(dtype))
    return rng.standard_normal(shape).astype(numpy_dtype(dtype))


def _assigned(dims: Iterable[Expr], sizes: Sequence[int]) -> dict[Expr, int]:
    ordered = sorted((d for d in dims if isinstance(d, Dim)), key=lambda d: d.name)
    return {d: sizes[k % len(sizes)] for k, d in enumerate(ordered)}


def random_feeds(inputs: Sequence[Tensor], sizes: Sequence[int], seed: int = 0) -> list[Array] | None:
    """Random inputs where symbols are `sizes`; None where a type cannot be made up or a size comes out
    negative.
    """
    if any(t.dtype.kind not in "biuf" or t.dtype.bits < 8 for t in inputs):
        return None
    dims: dict[Expr, Any] = dict(_assigned({d for t in inputs for e in t.shape for d in free(e)}, sizes))
    rng = np.random.default_rng(seed)
    shapes = [[_count(e, dims) for e in t.shape] for t in inputs]
    if any(n < 0 for shape in shapes for n in shape):
        return None
    return [random_array(shape, t.dtype, rng) for t, shape in zip(inputs, shapes, strict=True)]


def _kernel_arrays(kernel: Kernel, dims: Mapping[Expr, Any]) -> dict[Buffer, Array]:
    """Random parameters for a kernel; new memory for what it only writes."""
    rng = np.random.default_rng(0)
    changed = written(kernel.body)
    out: dict[Buffer, Array] = {}
    for b in kernel.params:
        shape = [max(0, _count(e, dims)) for e in b.shape]
        out[b] = fresh(shape, b.dtype) if b in changed else random_array(shape, b.dtype, rng)
    return out


def _count(e: Expr, dims: Mapping[Expr, Any]) -> int:
    """A size; symbols without a value count as 4."""
    env: dict[Expr, Any] = {x: np.int64(0 if isinstance(x, Axis) else dims.get(x, 4)) for x in free(e)}
    return int(evaluate(e, env, lambda *_: np.int64(4)))


def points(program: Program, sizes: Sequence[int]) -> int:
    """Points of all stages of a program where symbols are `sizes`."""
    dims: dict[Expr, Any] = dict(
        _assigned({d for t in program.inputs for e in t.shape for d in free(e)}, sizes)
    )
    return sum(stage_points(s, dims) for s in program.stages)


def stage_points(s: Stage, dims: Mapping[Expr, Any]) -> int:
    """Points of a stage, reduced axes included."""
    match s:
        case Compute():
            reduced = s.reduction.axes if s.reduction is not None else ()
            return _product([a.extent for a in (*s.axes, *reduced)], dims)
        case Scatter():
            return _product([a.extent for a in s.axes], dims) + _product([a.extent for a in s.updates], dims)
        case Scan():
            return _count(s.time.extent, dims) * sum(stage_points(b, dims) for b in s.body)
        case Branch():
            return sum(stage_points(x, dims) for b in s.bodies for x in b.program.stages)
        case Loop():
            steps = MOST_POINTS if s.trip is None else _count(s.trip, dims)
            return max(0, steps) * sum(stage_points(x, dims) for x in s.body.program.stages)
        case Extern():
            return _steps(s.body, dims)


def _product(extents: Iterable[Expr], dims: Mapping[Expr, Any]) -> int:
    out = 1
    for e in extents:
        out *= max(0, _count(e, dims))
    return out


def _steps(body: Iterable[Stmt], dims: Mapping[Expr, Any]) -> int:
    """Statements that a body runs."""
    total = 0
    for s in body:
        match s:
            case For():
                total += max(0, _count(s.axis.extent, dims)) * _steps(s.body, dims)
            case If():
                total += _steps(s.body, dims)
            case _:
                total += 1
    return total
