"""Reductions over lanes: one along contiguous memory becomes one per lane and a small tree over the lanes.

A stated reassociation: sums are taken in `lanes` interleaved parts, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fusile.ir import index as ix
from fusile.ir.expr import (
    REDUCTIONS,
    Apply,
    Axis,
    Expr,
    Load,
    apply,
    axis,
    const,
    load,
    nodes,
    reduce_over,
    select,
    substitute,
)
from fusile.ir.interpret import identity
from fusile.ir.tensor import Compute, Program, Stage, Tensor
from fusile.passes import access
from fusile.passes.inline import Log
from fusile.passes.pack import oriented

FEWEST_LANES = 16
"""Lanes that are worth it where they are all of what lies side by side."""


def split_reductions(program: Program, lanes: int, log: Log) -> Program:
    """Split reductions whose contiguous axis is reduced, and whose result has no contiguous axis of its own,
    over lanes.
    """
    out: list[Stage] = []
    for s in program.stages:
        if not isinstance(s, Compute) or oriented(s) is not None:
            out.append(s)
            continue
        apart = _apart(s)
        chosen = _contiguous_axis(apart)
        if chosen is None:
            out.append(s)
        else:
            out.extend(_split(apart, chosen, lanes))
            log.made.append(f"{s.out.name} is reduced in {lanes} lanes")
    return program.with_stages(out)


def _apart(s: Compute) -> Compute:
    """The stage with a reduced axis in two where a digit of it walks contiguous memory and the rest does not:
    reduce(k: H L) f(k)  ->  reduce(h: H, l: L) f(h L + l)

    A layout that puts channels innermost leaves such an axis where a model reshapes channels and pixels into
    one (group normalisation).
    """
    r = s.reduction
    if r is None or _contiguous_axis(s) is not None:
        return s
    for a in r.axes:
        n = ix.number(a.extent)
        for divisor in _divisors(r.body, a):
            if n is None or n % divisor or not 1 < divisor < n:
                continue
            high, low = axis(f"{a.name}h", n // divisor), axis(f"{a.name}l", divisor)
            axes = tuple(x for b in r.axes for x in ((high, low) if b is a else (b,)))
            body = substitute(r.body, {a: high * divisor + low})
            split = Compute(s.out, s.axes, reduce_over(r.kind, axes, body), s.origin, s.op)
            if _contiguous_axis(split) is not None:
                return split
    return s


def _divisors(body: Expr, a: Axis) -> Iterator[int]:
    """What an axis is divided by inside the indices of reads."""
    found: dict[int, None] = {}
    for x in access.reads(body):
        for e in (e for i in x.index for e in nodes(i)):
            if isinstance(e, Apply) and e.op in ("floordiv", "mod") and e.args[0] is a:
                divisor = ix.number(e.args[1])
                if divisor is not None:
                    found[divisor] = None
    return iter(found)


def _contiguous_axis(s: Compute) -> Axis | None:
    """The reduced axis along which all reads are contiguous: long enough to fill lanes by itself, or next to
    an axis of the result, so that neighbouring elements of the result share their lanes.
    """
    r = s.reduction
    if r is None:
        return None
    along = [x for x in access.reads(r.body) if ix.number(x.source.size) != 1]
    for a in r.axes:
        n = ix.number(a.extent)
        if n is not None and n < FEWEST_LANES and not (n > 1 and _beside(s, along, a, n)):
            continue
        if any(access.stride(x, a) == 1 for x in along) and all(access.stride(x, a) in (0, 1) for x in along):
            return a
    return None


def _beside(s: Compute, along: Sequence[Load], a: Axis, n: int) -> bool:
    """Whether an axis of the result steps over just the n elements of a reduced axis that is not alone."""
    assert s.reduction is not None
    others = ix.number(ix.product(x.extent for x in s.reduction.axes if x is not a))
    return others != 1 and any(
        access.stride(x, a) == 1 and any(access.stride(x, b) == n for b in s.axes) for x in along
    )


def _split(s: Compute, along: Axis, lanes: int) -> list[Stage]:
    r = s.reduction
    assert r is not None
    n = ix.number(along.extent)
    while n is not None and lanes > n:
        lanes //= 2
    combine = REDUCTIONS[r.kind]
    neutral = const(identity(r.kind, s.out.dtype), s.out.dtype)
    fresh = [axis(a.name, a.extent) for a in s.axes]
    lane = axis("lane", lanes)
    step = axis(along.name, along.extent // lanes)
    others = tuple(a for a in r.axes if a is not along)
    places: dict[Expr, Expr] = dict(zip(s.axes, fresh, strict=True))
    body = substitute(r.body, {**places, along: step * lanes + lane})
    stages: list[Stage] = []

    def define(suffix: str, axes: Sequence[Axis], value: Expr) -> Tensor:
        t = Tensor(s.out.name + suffix, s.out.dtype, tuple(a.extent for a in axes))
        t.stage = Compute(t, tuple(axes), value, s.origin, s.op)
        stages.append(t.stage)
        return t

    part = define("_lanes", (*fresh, lane), reduce_over(r.kind, (*others, step), body))
    rest = along.extent % lanes
    if ix.number(rest) != 0:
        fresh = [axis(a.name, a.extent) for a in s.axes]
        lane = axis("lane", lanes)
        places = dict(zip(s.axes, fresh, strict=True))
        tail = substitute(r.body, {**places, along: (along.extent // lanes) * lanes + lane})
        if others:
            fresh_others = [axis(a.name, a.extent) for a in others]
            tail = substitute(tail, dict(zip(others, fresh_others, strict=True)))
            tail = reduce_over(r.kind, fresh_others, select(lane < rest, tail, neutral))
            extra = define("_tail", (*fresh, lane), tail)
            fresh2, lane2 = [axis(a.name, a.extent) for a in s.axes], axis("lane", lanes)
            part = define(
                "_lanes_all",
                (*fresh2, lane2),
                apply(combine, load(part, (*fresh2, lane2)), load(extra, (*fresh2, lane2))),
            )
        else:
            both = apply(combine, load(part, (*fresh, lane)), select(lane < rest, tail, neutral))
            part = define("_lanes_all", (*fresh, lane), both)
    while lanes > 2:
        lanes //= 2
        fresh, lane = [axis(a.name, a.extent) for a in s.axes], axis("lane", lanes)
        part = define(
            f"_half{lanes}",
            (*fresh, lane),
            apply(combine, load(part, (*fresh, lane)), load(part, (*fresh, lane + lanes))),
        )
    last = (
        apply(combine, load(part, (*s.axes, const(0))), load(part, (*s.axes, const(1))))
        if lanes == 2
        else load(part, (*s.axes, const(0)))
    )
    stages.append(Compute(s.out, s.axes, last, s.origin, s.op))
    s.out.stage = stages[-1]
    return stages
