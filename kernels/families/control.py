"""Control flow: If, Loop and Scan, whose bodies become programs within the program.

Where the numbers are known while compiling, nothing is left to decide: a known condition leaves one branch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from fusile.ir import control
from fusile.ir import index as ix
from fusile.ir.expr import Const, Dim, Expr, apply, const
from fusile.ir.tensor import Body, Tensor, compute, from_exprs
from fusile.ir.types import BOOL, I64
from fusile.kernels.registry import Context, Malformed, Subgraph, Unsettled, op

ENDLESS = 1 << 62
"""A bound of a loop from here on is no bound: exporters write the largest integer for none."""


def _refusal(what: str, condition: Tensor | None = None) -> Exception:
    """What cannot be a tensor program; unlike ranks can be one for a condition that is seen."""
    if "dimensions" in what:
        asked = "" if condition is None else condition.name
        return Unsettled(what, "Give both the same number of dimensions", asked)
    return Malformed(what)


def _truth(t: Tensor | None) -> bool | None:
    """The value of a condition where it is known while compiling."""
    if t is None or t.known is None or len(t.known) != 1 or not isinstance(t.known[0], Const):
        return None
    return bool(t.known[0].value)


@op("If", keeps_types=True)
def if_(ctx: Context, condition: Tensor, *, then_branch: Subgraph, else_branch: Subgraph) -> Sequence[Tensor]:
    """The outputs of one of two graphs (ONNX If-25)."""
    if condition.dtype is not BOOL or ix.number(condition.size) not in (1, None):
        raise Malformed(f"its condition is {condition!r}, not one bool")
    ctx.require(apply("eq", condition.size, const(1)), "a condition is not one bool")
    known = _truth(condition)
    if known is not None:
        return (then_branch if known else else_branch).inline(())
    then, other = (g.trace((), lambda outer: ()) for g in (then_branch, else_branch))
    if condition.known is not None and control.unlike_ranks(then, other):
        (held,) = condition.known
        return (then_branch if ctx.assume(held) else else_branch).inline(())
    refusal = functools.partial(_refusal, condition=condition)
    results, definitions = control.branch(ctx.site, condition, then, other, refusal)
    ctx.dim_definitions.extend(definitions)
    return results


@op("Loop", keeps_types=True)
def loop(
    ctx: Context,
    trip: Tensor | None = None,
    condition: Tensor | None = None,
    *initial: Tensor,
    body: Subgraph,
) -> Sequence[Tensor]:
    """States carried from step to step, and what every step adds to the outputs (ONNX Loop-25)."""
    if body.inputs != 2 + len(initial):
        raise Malformed(f"its body takes {body.inputs} inputs, and {2 + len(initial)} are handed over")
    bound: Expr | None = None
    if trip is not None:
        (value,) = ctx.values(trip)
        number = ix.number(value)
        if number is None or number < ENDLESS:
            bound = ctx.extent(apply("max", value, const(0)), "steps")
    known = _truth(condition)
    if known is False:
        bound = const(0)
    if condition is not None and known is None and (condition.dtype is not BOOL or condition.rank > 1):
        raise Malformed(f"its condition is {condition!r}, not one bool")

    def trace(step: Dim, states: Sequence[Tensor]) -> Body:
        number = from_exprs([step - 1], (), I64, "iteration")
        going = from_exprs([const(True, BOOL)], (), BOOL, "condition")
        return body.trace(states, lambda outer: (number, going, *states))

    start = condition if known is None else None
    finals, collected, definitions = control.loop(ctx.site, bound, start, initial, trace, True, _refusal)
    ctx.dim_definitions.extend(definitions)
    return [*finals, *collected]


@op("Scan", keeps_types=True)
def scan(
    ctx: Context,
    *inputs: Tensor,
    body: Subgraph,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] = (),
    scan_input_directions: Sequence[int] = (),
    scan_output_axes: Sequence[int] = (),
    scan_output_directions: Sequence[int] = (),
) -> Sequence[Tensor]:
    """A body over the slices of its inputs (ONNX Scan-25): states first, then what it scans."""
    count = len(inputs) - num_scan_inputs
    if count < 0 or not num_scan_inputs or body.inputs != len(inputs):
        raise Malformed(f"it scans {num_scan_inputs} of {len(inputs)} inputs, its body takes {body.inputs}")
    initial, scanned = inputs[:count], inputs[count:]
    axes = [_axis(x.rank, a) for x, a in zip(scanned, scan_input_axes or (0,) * len(scanned), strict=True)]
    back = scan_input_directions or (0,) * len(scanned)
    steps = scanned[0].shape[axes[0]]
    for x, a in zip(scanned, axes, strict=True):
        ctx.require(apply("eq", x.shape[a], steps), "what is scanned has unlike lengths")

    def trace(step: Dim, states: Sequence[Tensor]) -> Body:
        def slices(outer: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
            made = [
                _slice(outer(x), a, steps - step if turned else step - 1)
                for x, a, turned in zip(scanned, axes, back, strict=True)
            ]
            return (*states, *made)

        return body.trace(states, slices)

    finals, collected, definitions = control.loop(ctx.site, steps, None, initial, trace, False, _refusal)
    ctx.dim_definitions.extend(definitions)
    places = scan_output_axes or (0,) * len(collected)
    turned = scan_output_directions or (0,) * len(collected)
    laid = [
        _moved(t, _axis(t.rank, a), bool(back)) for t, a, back in zip(collected, places, turned, strict=True)
    ]
    return [*finals, *laid]


def _axis(rank: int, axis: int) -> int:
    if not -rank <= axis < rank:
        raise Malformed(f"the axis {axis} is outside {rank} dimensions")
    return axis % rank


def _slice(x: Tensor, axis: int, at: Expr) -> Tensor:
    """x[…, at, …]."""
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    return compute(shape, lambda *i: x[(*i[:axis], at, *i[axis:])], name="slice")


def _moved(t: Tensor, axis: int, back: bool) -> Tensor:
    """What was collected, with the steps along `axis`, the last one first where they go `back`."""
    if not axis and not back:
        return t
    steps, rest = t.shape[0], t.shape[1:]
    shape = (*rest[:axis], steps, *rest[axis:])

    def at(*i: Expr) -> Expr:
        n = steps - 1 - i[axis] if back else i[axis]
        return t[(n, *i[:axis], *i[axis + 1 :])]

    return compute(shape, at, name="turned")
