"""Inlining: a stage that is cheap to repeat is written into the stages that read it.

Correct for any pointwise stage (`T[i] = e(i)` may always be read as `e`); whether it pays is decided from
costs and access maps.
Every refusal is a sentence in the log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fusile.ir import index as ix
from fusile.ir.expr import Expr, Load, Reduce, free, reduce_over, substitute
from fusile.ir.tensor import Branch, Compute, Extern, Loop, Program, Scan, Scatter, Stage, Tensor, stage_reads
from fusile.passes import access

CHEAP = 4
"""Simple operations that are repeated rather than stored and loaded again."""

MOST_REPEATED = 64
"""Operations of a stage that reads nothing which are repeated in all its readers."""
FEW_READS = 4
"""Reads at one point that are as well done across memory as a copy that turns the result."""
DEEPEST = 8
"""Reads that stand in each other's indices; the work of compiling grows faster than their number."""


@dataclass(slots=True)
class Log:
    """What fusion did and did not do, as sentences, per tensor."""

    made: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def consumers(stages: tuple[Stage, ...]) -> dict[Tensor, list[Stage]]:
    found: dict[Tensor, list[Stage]] = {}
    for s in stages:
        for t in stage_reads(s):
            found.setdefault(t, []).append(s)
    return found


def inline(program: Program, log: Log, same: Callable[[Stage, Stage], bool]) -> Program:
    """Write producers into consumers wherever it pays; `same` says whether two stages may share a kernel at
    all (optimisation level).
    """
    readers = consumers(program.stages)
    kept = set(program.outputs) | {x.source for d in program.dim_definitions for x in access.loads(d.value)}
    bodies: dict[Tensor, Compute] = {}
    reduced = {s.out for s in program.stages if isinstance(s, Compute) and s.reduction is not None}
    known: dict[Tensor, bool] = {}
    out: list[Stage] = []
    for stage in program.stages:
        rewritten = rewrite_reads(stage, bodies)
        if isinstance(rewritten, Compute) and rewritten.reduction is None and rewritten.out not in kept:
            why = _finishes(rewritten, readers.get(rewritten.out, []), reduced)
            if why is None:
                why = _once(rewritten, readers.get(rewritten.out, []), known)
            if why is None:
                why = refusal(rewritten, readers.get(rewritten.out, []), same)
            if why is None:
                bodies[rewritten.out] = rewritten
                log.made.append(f"{rewritten.out.name} is computed where it is read")
                continue
            if why:
                log.refused.append(f"{rewritten.out.name} is stored: {why}")
        out.append(rewritten)
    return program.with_stages(out)


def _finishes(stage: Compute, readers: list[Stage], reduced: set[Tensor]) -> str | None:
    """Why a stage that can be finished where a reduction leaves its result in registers is not moved away
    from there; None if it is none.
    """
    if access.is_view(stage):
        return None
    whole = [x.source for x in access.reads(stage.body) if x.source in reduced and _along(x, stage)]
    if not whole:
        return None
    for r in readers:
        if isinstance(r, Compute) and not all(
            _along(x, r) for x in access.reads(r.body) if x.source is stage.out
        ):
            return f"it finishes {whole[0].name} in registers"
    return None


def _once(stage: Compute, readers: list[Stage], known: dict[Tensor, bool]) -> str | None:
    """Why a stage is worked out when the module is built; None where it is not."""
    if access.is_view(stage) or not access.constant(stage.out, known):
        return None
    if all(access.constant(t, known) for r in readers for t in r.outs):
        return None
    return "it follows from the weights, and is worked out when the module is built"


def _along(x: Load, stage: Compute) -> bool:
    """Whether a read goes along the stage's own axes, element by element."""
    return len(x.index) == len(stage.axes) and all(
        i is a or (ix.number(i) == 0 and ix.number(a.extent) == 1)
        for i, a in zip(x.index, stage.axes, strict=True)
    )


def rewrite_reads(stage: Stage, bodies: dict[Tensor, Compute]) -> Stage:
    """The stage with every read of a tensor in `bodies` replaced by its body."""
    if not any(t in bodies for t in stage_reads(stage)):
        return stage

    def read(x: Load) -> Expr:
        source = bodies.get(x.source)
        if source is None:
            return x
        return substitute(source.body, dict(zip(source.axes, x.index, strict=True)))

    def change(e: Expr) -> Expr:
        if isinstance(e, Reduce):
            return reduce_over(e.kind, e.axes, substitute(e.body, {}, read))
        return substitute(e, {}, read)

    match stage:
        case Branch() | Loop():
            return stage
        case Compute():
            return Compute(stage.out, stage.axes, change(stage.body), stage.origin, stage.op)
        case Scatter():
            return Scatter(
                stage.out, stage.axes, change(stage.initial), stage.updates, tuple(map(change, stage.index)),
                change(stage.value), change(stage.condition), stage.kind, stage.origin, stage.op,
            )  # fmt: skip
        case Scan():
            body = tuple(Compute(s.out, s.axes, change(s.body), s.origin, s.op) for s in stage.body)
            return Scan(
                stage.time, stage.carried, body, stage.collected, stage.finals, stage.origin, stage.op
            )
        case Extern():
            return stage


def refusal(stage: Compute, readers: list[Stage], same: Callable[[Stage, Stage], bool]) -> str | None:
    """Why a pointwise stage is not written into its readers: None where it is, "" where there is nothing to
    say.
    """
    if not readers:
        return ""
    for r in readers:
        if not same(stage, r):
            return "one kernel per operator at this level"
        if not isinstance(r, Compute):
            if isinstance(r, Extern):
                return "loops that are written out read it"
            if isinstance(r, Scan) and any(stage.out is c.initial for c in r.carried):
                return "it is the initial state of a scan"
            if isinstance(r, (Branch, Loop)):
                return "a program of its own reads it"
            if not access.is_view(stage):
                return "a scan reads it at every step"
    if access.read_depth(stage.body) > DEEPEST:
        return f"it follows more than {DEEPEST} reads one after another"
    view = access.is_view(stage)
    if not access.loads(stage.body) and access.cost(stage.body) <= MOST_REPEATED:
        return None
    price, twisted = access.cost(stage.body), access.index_cost(stage.body)
    for r in readers:
        if isinstance(r, Compute):
            why = _refusal_by(stage, r, view, price, twisted, len(readers))
            if why is not None:
                return why
    return None


def _refusal_by(
    stage: Compute, reader: Compute, view: bool, price: int, twisted: int, readers: int
) -> str | None:
    c = access.contraction(reader)
    if c is not None:
        if not view:
            return f"{reader.out.name} would work it out once for every output that shares it"
        if twisted:
            return f"its index map is too expensive for the inner loop of {reader.out.name}"
        if _scatters(stage, reader, c):
            return f"{reader.out.name} would stride through memory in its inner loop"
        return None
    if view and not (twisted and reader.reduction is not None and access.is_window(reader)):
        return None
    repeats = _repeats(stage, reader)
    if repeats is None or repeats > 1:
        if price <= CHEAP and not access.index_cost(stage.body) and (repeats or 99) <= 9:
            return None
        return f"{reader.out.name} reads every element {repeats or 'an unknown number of'} times"
    if price > CHEAP and _turned(stage, reader):
        return f"{reader.out.name}, which runs along another dimension, would stride through what it reads"
    if readers > 1 and (price > CHEAP or len(access.reads(stage.body)) > 2):
        return f"{readers} stages read it and it costs {price} operations"
    return None


def _scatters(stage: Compute, reader: Compute, c: access.Contraction) -> bool:
    """Whether a contraction reads the stage along a reduced axis without gaps, and would not read what the
    stage is a view of so.
    """
    source = stage.body
    if not isinstance(source, Load):
        return False
    for x in (c.left, c.right):
        if x.source is stage.out:
            direct = substitute(source, dict(zip(stage.axes, x.index, strict=True)))
            if isinstance(direct, Load) and any(
                access.stride(x, k) == 1 != access.stride(direct, k) for k in c.k
            ):
                return True
    return False


def _turned(stage: Compute, reader: Compute) -> bool:
    """Whether a stage reads several elements side by side along its last axis, and its reader runs along
    another.
    """
    last = next((d for d in reversed(range(len(stage.axes))) if ix.number(stage.axes[d].extent) != 1), None)
    lane = next((a for a in reversed(reader.axes) if ix.number(a.extent) != 1), None)
    if last is None or lane is None:
        return False
    beside = [x for x in access.reads(stage.body) if access.stride(x, stage.axes[last]) == 1]
    if len(beside) <= FEW_READS:
        return False
    return any(x.source is stage.out and lane not in free(x.index[last]) for x in access.loads(reader.body))


def _repeats(stage: Compute, reader: Compute) -> int | None:
    """How often `reader` evaluates each element of the stage, where it is known."""
    total = [a.extent for a in reader.axes]
    if reader.reduction is not None:
        total += [a.extent for a in reader.reduction.axes]
    count = sum(x.source is stage.out for x in access.loads(reader.body))
    mine, theirs = ix.poly(stage.out.size), ix.poly(ix.product(total))
    if mine == theirs:
        return count
    whole, rest = ix.split(theirs, mine)
    if rest or set(whole) != {()}:
        # A slice reads less than everything; anything else is not known.
        read = {a for x in access.loads(reader.body) if x.source is stage.out for a in free(x)}
        return count if read >= {a for a in free(reader.body)} and not _larger(theirs, mine) else None
    return whole[()] * count


def _larger(a: ix.Poly, b: ix.Poly) -> bool:
    return not ix.nonnegative(ix.add(b, a, -1))
