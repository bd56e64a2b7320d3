"""Branches and loops as stages of a tensor program: what a definition says, and which sizes follow.

A size of a result is the one that the bodies agree on, where they do and where it is known outside; any other
is worked out by the stage, which writes it down as an element of a small tensor that the size is defined by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from fusile.ir import index as ix
from fusile.ir.expr import Const, Dim, Expr, const, dim, free, load
from fusile.ir.tensor import Body, Branch, DimDefinition, Loop, Program, Tensor, stage_sizes
from fusile.ir.types import BOOL, I64

Refuse = Callable[[str], Exception]
"""Makes the exception for what does not fit, out of a sentence."""


def parameters(program: Program) -> tuple[Dim, ...]:
    """The sizes that a program mentions and does not define: they are given from outside."""
    found: set[Dim] = set()
    for s in program.stages:
        found |= stage_sizes(s)
        found -= {d for d in getattr(s, "defines", ()) if isinstance(d, Dim)}
    shapes = [e for t in (*program.inputs, *program.outputs) for e in t.shape]
    values = [d.value for d in program.dim_definitions]
    for e in (*shapes, *values, *(r.condition for r in program.requirements)):
        found |= {d for d in free(e) if isinstance(d, Dim)}
    found -= {d.dim for d in program.dim_definitions}
    return tuple(sorted(found, key=lambda d: d.name))


def made_late(t: Tensor) -> bool:
    """Whether a branch or a loop finds out the size of a tensor, and makes its memory."""
    s = t.stage
    return isinstance(s, (Branch, Loop)) and any(d in s.defines for e in t.shape for d in free(e))


class _Sizes:
    """Sizes that a stage finds out: new dims, and the tensor that holds their values."""

    def __init__(self, site: str) -> None:
        self.site = site
        self.dims: list[Dim] = []

    def new(self) -> Dim:
        made = dim(f"size_{self.site}_{len(self.dims)}")
        self.dims.append(made)
        return made

    def tensor(self) -> Tensor | None:
        return Tensor("sizes", I64, (const(len(self.dims)),)) if self.dims else None

    def definitions(self, held: Tensor | None) -> list[DimDefinition]:
        if held is None:
            return []
        return [DimDefinition(d, load(held, (const(k),)), self.site) for k, d in enumerate(self.dims)]


def unlike_ranks(then: Body, other: Body) -> bool:
    """Whether results of two branches differ in their number of dimensions."""
    a, b = then.program.outputs, other.program.outputs
    return len(a) == len(b) and any(x.rank != y.rank for x, y in zip(a, b, strict=True))


def branch(
    site: str, condition: Tensor, then: Body, other: Body, refuse: Refuse
) -> tuple[list[Tensor], list[DimDefinition]]:
    """The results of one of two bodies, which take nothing but what they read, and definitions of their
    sizes. Refuses results whose number, types or ranks differ.
    """
    a, b = then.program.outputs, other.program.outputs
    if len(a) != len(b):
        raise refuse(f"its branches have {len(a)} and {len(b)} outputs")
    sizes = _Sizes(site)
    results = []
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.dtype is not y.dtype:
            raise refuse(f"output {k} is {x.dtype} in one branch and {y.dtype} in the other")
        if x.rank != y.rank:
            raise refuse(f"output {k} has {x.rank} dimensions in one branch and {y.rank} in the other")
        shared = {*then.program.parameters, *other.program.parameters}
        shape = [
            e if e is f and free(e) <= shared else sizes.new() for e, f in zip(x.shape, y.shape, strict=True)
        ]
        results.append(Tensor("result", x.dtype, tuple(shape)))
    held = sizes.tensor()
    stage = Branch(condition, then, other, tuple(results), tuple(sizes.dims), held)
    for t in stage.outs:
        t.stage = stage
    return results, sizes.definitions(held)


def loop(
    site: str,
    trip: Expr | None,
    start: Tensor | None,
    initial: Sequence[Tensor],
    trace: Callable[[Dim, Sequence[Tensor]], Body],
    conditional: bool,
    refuse: Refuse,
) -> tuple[list[Tensor], list[Tensor], list[DimDefinition]]:
    """The last states and the collected values of a loop, and definitions of their sizes.

    `trace(step, states)` makes the body for states of given shapes. It is called again while it answers
    states of other sizes than it was given: a size that does not stay the same becomes one that moves.
    Refuses states whose number, types or ranks change.
    """
    step = dim(f"step_{site}")
    moving: dict[tuple[int, int], Dim] = {}
    while True:
        states = [_state(k, t, moving) for k, t in enumerate(initial)]
        body = trace(step, states)
        answers = list(body.program.outputs)
        proceed = conditional and not _always(answers[0])
        then = answers[conditional : conditional + len(initial)]
        if len(then) < len(initial):
            raise refuse(f"its body answers {len(then)} of {len(initial)} states")
        if not _let_move(site, states, then, moving, refuse):
            break
    if conditional and (answers[0].dtype is not BOOL or ix.number(answers[0].size) != 1):
        raise refuse("its condition is not one bool")
    if trip is None and not proceed:
        raise refuse("it never ends")
    inside = {step, *moving.values()}
    sizes = _Sizes(site)
    finals = [
        Tensor("final", t.dtype, tuple(sizes.new() if (k, d) in moving else e for d, e in enumerate(t.shape)))
        for k, t in enumerate(initial)
    ]
    known = trip is not None and not proceed and start is None
    collected = []
    for t in answers[conditional + len(initial) :]:
        steady = all(_outside(e, body, inside) for e in t.shape)
        count = trip if known and trip is not None and steady else sizes.new()
        shape = (count, *(e if _outside(e, body, inside) else sizes.new() for e in t.shape))
        collected.append(Tensor("collected", t.dtype, shape))
    held = sizes.tensor()
    stage = Loop(
        step, trip, start, tuple(initial), body, conditional, tuple((d, *at) for at, d in moving.items()),
        tuple(finals), tuple(collected), tuple(sizes.dims), held,
    )  # fmt: skip
    for t in stage.outs:
        t.stage = stage
    return finals, collected, sizes.definitions(held)


def _state(k: int, t: Tensor, moving: dict[tuple[int, int], Dim]) -> Tensor:
    return Tensor(f"state{k}", t.dtype, tuple(moving.get((k, d), e) for d, e in enumerate(t.shape)))


def _always(t: Tensor) -> bool:
    """Whether a condition is known to be true."""
    return t.known is not None and all(isinstance(e, Const) and bool(e.value) for e in t.known)


def _let_move(
    site: str,
    states: Sequence[Tensor],
    then: Sequence[Tensor],
    moving: dict[tuple[int, int], Dim],
    refuse: Refuse,
) -> bool:
    """Give a dim of its own to every size that changes in a step; whether there is a new one."""
    before = len(moving)
    for k, (x, y) in enumerate(zip(states, then, strict=True)):
        if x.dtype is not y.dtype:
            raise refuse(f"state {k} is {x.dtype} before a step and {y.dtype} after it")
        if x.rank != y.rank:
            raise refuse(f"state {k} has {x.rank} dimensions before a step and {y.rank} after it")
        for d, (e, f) in enumerate(zip(x.shape, y.shape, strict=True)):
            if e is not f and (k, d) not in moving:
                moving[k, d] = dim(f"moving_{site}_{k}_{d}")
    return len(moving) > before


def _outside(e: Expr, body: Body, inside: Iterable[Expr]) -> bool:
    """Whether a size within a body is known outside too."""
    return free(e) <= {*body.program.parameters} - {*inside}
