"""Grouping: stages that share their outer loops become one kernel.

A group has a domain, the outer axes that all its stages run over; whatever a stage reads of the group at
the same point of the domain needs no memory outside the iteration. Legality is read off access maps;
profit is the bytes not stored and loaded; every refusal is a sentence in the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fusile.ir import index as ix
from fusile.ir.expr import Axis, Expr, const, free
from fusile.ir.tensor import Compute, Dependences, Program, Stage, Tensor, stage_reads
from fusile.ir.types import storage_bytes
from fusile.passes import access
from fusile.passes.inline import Log, consumers

MOST_PRIVATE_BYTES = 1 << 18
"""What one iteration of a domain may keep to itself: an eighth of a usual second-level cache."""
FEWEST_POINTS = 2
"""A domain with fewer points than this is not worth the work of many stages done in one thread, unless all of
it is small.
"""


MOST_ALONE = 1_000_000
"""Simple operations of one point of a domain that is as good as one point: about a quarter of a millisecond
on one thread while the others wait.
"""

MOST_LANES = 256
"""Partial results of a reduction that was split over lanes, at most."""


@dataclass(eq=False, slots=True)
class Group:
    """Stages of one kernel in order. `domain[s]` are the axes of stage s that are the shared outer loops, in
    the group's order.
    """

    stages: list[Stage]
    domain: dict[Stage, tuple[Axis, ...]] = field(default_factory=dict)
    internal: set[Tensor] = field(default_factory=set)

    @property
    def heavy(self) -> bool:
        """Whether the group holds a contraction, whose domain is tiled as a whole."""
        return any(isinstance(s, Compute) and access.contraction(s) is not None for s in self.stages)

    @property
    def outs(self) -> list[Tensor]:
        return [t for s in self.stages for t in s.outs]


class _Grouper:
    def __init__(self, program: Program, log: Log, same: Callable[[Stage, Stage], bool]) -> None:
        self.program, self.log, self.same = program, log, same
        self.groups: list[Group] = []
        self.home: dict[Tensor, int] = {}
        self.before: list[int] = []  # per group, a bit set of the groups that it depends on
        self.readers: dict[Tensor, list[int]] = {}
        self.needs = Dependences(program.dim_definitions)
        self.known: dict[Tensor, bool] = {}

    def run(self) -> list[Group]:
        for stage in self.program.stages:
            self._place(stage)
        self._find_internal()
        return self._ordered()

    def _place(self, stage: Stage) -> None:
        made_by = [self.home[t] for t in self.needs(stage) if t in self.home]
        chosen: int | None = None
        if isinstance(stage, Compute):
            for g in sorted(set(made_by), reverse=True):
                why = self._try(g, stage, made_by)
                if why is None:
                    chosen = g
                    break
                self.log.refused.append(
                    f"{stage.out.name} is not computed with {self.groups[g].outs[-1].name}: {why}"
                )
            if chosen is None:
                chosen = self._sibling(stage, made_by)
        if chosen is None:
            chosen = len(self.groups)
            domain = stage.axes if isinstance(stage, Compute) else ()
            self.groups.append(Group([stage], {stage: domain}))
            self.before.append(0)
        self._record(chosen, stage, made_by)

    def _constant(self, t: Tensor) -> bool:
        return access.constant(t, self.known)

    def _record(self, g: int, stage: Stage, made_by: list[int]) -> None:
        for t in stage.outs:
            self.home[t] = g
        for t in stage_reads(stage):
            self.readers.setdefault(t, []).append(g)
        needs = 0
        for p in made_by:
            if p != g:
                needs |= (1 << p) | self.before[p]
        if needs & ~self.before[g]:
            self.before[g] |= needs
            for other, deps in enumerate(self.before):
                if deps >> g & 1:
                    self.before[other] |= needs

    def _try(self, g: int, stage: Compute, made_by: list[int]) -> str | None:
        """Join a stage to group g: None when done, else why not."""
        group = self.groups[g]
        if not all(isinstance(s, Compute) for s in group.stages):
            return "a scan or scatter is a kernel of its own"
        if self._constant(group.outs[0]) and not self._constant(stage.out):
            return "that follows from the weights, and is worked out when the module is built"
        if not self.same(group.stages[-1], stage):
            return "one kernel per operator at this level"
        if access.contraction(stage) is not None:
            return "a contraction is tiled on its own"
        if any(p != g and self.before[p] >> g & 1 for p in made_by):
            return "what it also reads depends on that kernel"
        if any(self.home.get(t) == g for t in self.needs.of_sizes(stage)):
            return "its sizes are known only after that kernel"
        mapping, lost, why = self._align(group, stage)
        if why:
            return why
        wide = {q for q in lost if ix.number(group.domain[group.stages[0]][q].extent) != 1}
        if wide:
            why = self._shrinkable(group, stage, wide)
            if why:
                return why
        if group.heavy and _crossed(group, stage, mapping):
            return "it writes its dimensions in another order than the tile has them"
        if _tiled(group) and any(ix.number(a.extent) != 1 and a not in mapping.values() for a in stage.axes):
            return "it writes several elements for each point of a tile"
        keep = [q for q in range(len(group.domain[group.stages[0]])) if q not in lost]
        for s, axes in group.domain.items():
            group.domain[s] = tuple(axes[q] for q in keep)
        group.domain[stage] = tuple(mapping[q] for q in keep)
        group.stages.append(stage)
        self.log.made.append(f"{stage.out.name} is computed with {group.stages[0].outs[0].name}")
        return None

    def _align(self, group: Group, stage: Compute) -> tuple[dict[int, Axis], set[int], str]:
        """Which axis of the stage runs along each axis of the domain, and which domain axes have none."""
        points = len(group.domain[group.stages[0]])
        mapping: dict[int, Axis] = {}
        lost: set[int] = set()
        own = {t: s for s in group.stages for t in s.outs}
        outer = set(stage.axes)
        for x in access.loads(stage.body):
            s = own.get(x.source)
            if not isinstance(s, Compute):
                continue
            for q in range(points):
                at = x.index[s.axes.index(group.domain[s][q])]
                if ix.number(group.domain[s][q].extent) == 1 and ix.number(at) == 0:
                    continue
                if not (isinstance(at, Axis) and at in outer and at.extent is group.domain[s][q].extent):
                    lost.add(q)
                elif mapping.setdefault(q, at) is not at:
                    return {}, set(), "it reads two points of the shared domain at once"
        for q in range(points):
            if q not in mapping and q not in lost:
                spare = [a for a in stage.axes if ix.number(a.extent) == 1 and a not in mapping.values()]
                if not spare or ix.number(group.domain[group.stages[0]][q].extent) != 1:
                    lost.add(q)
                else:
                    mapping[q] = spare[0]
        if len(set(mapping.values())) != len(mapping):
            return {}, set(), "one of its axes would run along two of the domain"
        return mapping, lost, ""

    def _shrinkable(self, group: Group, stage: Compute, lost: set[int]) -> str:
        """Why the domain may not be cut down to the axes that the stage shares ("" where it may)."""
        first = group.stages[0]
        axes = group.domain[first]
        if group.heavy:
            return "it needs more than one point of a tiled contraction"
        kept = [a for q, a in enumerate(axes) if q not in lost]
        points = ix.number(ix.product(a.extent for a in kept))
        private = ix.number(ix.product(axes[q].extent for q in lost))
        made = ix.poly(ix.product(a.extent for a in axes))
        folds = ix.positive(ix.add(made, ix.poly(stage.out.size), -1))
        if stage.reduction is None and (private is None or private > MOST_LANES or not folds):
            return "it reads other points than it writes"
        if any(isinstance(s, Compute) and _slides(s) for s in (*group.stages, stage)):
            return "a sliding window is tiled over all its points"
        if private is not None and private * storage_bytes(stage.out.dtype) > MOST_PRIVATE_BYTES:
            return f"{private} elements would be kept per iteration"
        if not kept or (points is not None and points < FEWEST_POINTS and (private or 0) > 4096):
            return "nothing would be left to run in parallel"
        if _known(a.extent for a in kept) < FEWEST_POINTS and max(map(_work, group.stages)) > MOST_ALONE:
            return "much work would be left to one thread where a symbolic size is one"
        return ""

    def _sibling(self, stage: Compute, made_by: list[int]) -> int | None:
        """A recent group of reductions over the same tensor with the same domain."""
        r = stage.reduction
        if r is None or access.contraction(stage) is not None:
            return None
        for x in access.reads(r.body):
            for g in reversed(self.readers.get(x.source, [])[-4:]):
                group = self.groups[g]
                if group.heavy or any(self.before[p] >> g & 1 or p == g for p in made_by):
                    continue
                last = group.stages[-1]
                if self._constant(group.outs[0]) and not self._constant(stage.out):
                    continue
                if not (isinstance(last, Compute) and last.reduction is not None and self.same(last, stage)):
                    continue
                if len(group.domain[last]) == len(stage.axes) and all(
                    a.extent is b.extent for a, b in zip(group.domain[last], stage.axes, strict=True)
                ):
                    group.domain[stage] = stage.axes
                    group.stages.append(stage)
                    self.log.made.append(
                        f"{stage.out.name} shares the pass over {x.source.name} with {last.out.name}"
                    )
                    return g
        return None

    def _find_internal(self) -> None:
        kept = set(self.program.outputs) | {
            x.source for d in self.program.dim_definitions for x in access.loads(d.value)
        }
        readers = consumers(self.program.stages)
        for g, group in enumerate(self.groups):
            for t in group.outs:
                if t not in kept and readers.get(t) and all(self.home[r.outs[0]] == g for r in readers[t]):
                    group.internal.add(t)

    def _ordered(self) -> list[Group]:
        """Groups in an order in which everything is made before it is read."""
        done: set[int] = set()
        order: list[Group] = []

        def visit(start: int) -> None:
            stack = [start]
            while stack:
                g = stack[-1]
                waiting = [
                    p
                    for s in self.groups[g].stages
                    for t in self.needs(s)
                    if (p := self.home.get(t, g)) != g and p not in done
                ]
                if g in done:
                    stack.pop()
                elif waiting:
                    stack.extend(waiting)
                else:
                    done.add(g)
                    order.append(self.groups[g])
                    stack.pop()

        for g in range(len(self.groups)):
            visit(g)
        return order


def _known(extents: Iterable[Expr]) -> int:
    """The product of extents, symbolic ones taken as one."""
    return math.prod(ix.number(n) or 1 for n in extents)


def _work(stage: Stage) -> int:
    """Simple operations of a stage, symbolic sizes taken as one."""
    if not isinstance(stage, Compute):
        return 0
    r = stage.reduction
    body, reduced = (stage.body, ()) if r is None else (r.body, r.axes)
    return access.cost(body) * _known(a.extent for a in (*stage.axes, *reduced))


def _crossed(group: Group, stage: Compute, mapping: dict[int, Axis]) -> bool:
    """Whether a stage runs over the shared axes in another order than the first stage does."""
    first = group.stages[0]
    assert isinstance(first, Compute)
    wide = [q for q, a in enumerate(group.domain[first]) if ix.number(a.extent) != 1]
    theirs = sorted(wide, key=lambda q: first.axes.index(group.domain[first][q]))
    mine = sorted(wide, key=lambda q: stage.axes.index(mapping[q]))
    return theirs != mine


def _tiled(group: Group) -> bool:
    """Whether neighbouring points of the domain share what they read, and so are computed side by side."""
    return group.heavy or any(isinstance(s, Compute) and _slides(s) for s in group.stages)


def _slides(stage: Compute) -> bool:
    return access.is_window(stage) and not _in_lanes(stage)


def _in_lanes(stage: Compute) -> bool:
    """Whether a reduction only reads like a window because it was split over lanes: at k * lanes + lane."""
    r = stage.reduction
    assert r is not None
    for x in access.reads(r.body):
        for i in x.index:
            outer = [a for a in stage.axes if a in free(i)]
            inner = [a for a in r.axes if a in free(i)]
            if not (outer and inner):
                continue
            if len(outer) != 1 or len(inner) != 1 or ix.coefficient(i, outer[0]) is not const(1):
                return False
            if ix.coefficient(i, inner[0]) is not outer[0].extent:
                return False
    return True


def groups_text(groups: Iterable[Group]) -> str:
    """Groups for people: the loops that their stages share, the stages, and what needs no memory outside."""
    lines = []
    for number, each in enumerate(groups):
        first = each.domain[each.stages[0]]
        lines.append(f"group {number} over [{', '.join(f'{a.name}: {a.extent!r}' for a in first)}]:")
        for stage in each.stages:
            made = ", ".join(t.name + (" (kept inside)" if t in each.internal else "") for t in stage.outs)
            lines.append(f"  {made}    # {stage.op} {stage.origin}")
    return "\n".join(lines) + "\n"


def group(program: Program, log: Log, same: Callable[[Stage, Stage], bool]) -> list[Group]:
    """The kernels of a program, as groups of stages, in an order in which they can run."""
    return _Grouper(program, log, same).run()
