"""Building the plan: which steps in which order, and where every tensor lies.

Tensors of which all elements follow from the weights are worked out once, when the module is built
(`prepare`). The others share one arena: tensors that are not alive at the same time may share bytes. Where
all sizes are numbers, each gets the lowest offset that is free during its life (greedy by size, as in
Pisarchyk and Lee 2020, "Efficient Memory Management for Deep Neural Net Inference"); with symbolic sizes,
tensors share slots whose sizes are worked out when run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fusile.ir import index as ix
from fusile.ir.control import made_late
from fusile.ir.expr import Const, Dim, Expr, apply, as_expr, const, free, substitute
from fusile.ir.loops import Kernel
from fusile.ir.plan import Call, Check, Control, Define, Place, Plan, PrepareStep, Step, Variant
from fusile.ir.tensor import (
    Branch,
    Compute,
    Dependences,
    DimDefinition,
    Loop,
    Program,
    Tensor,
    stage_reads,
    stage_sizes,
)
from fusile.ir.types import storage_bytes
from fusile.passes import access
from fusile.passes.fuse import Group

ALIGN = 64
NOMINAL = 64
"""What a symbolic size is taken to be where slots of unlike sizes are compared."""

Lowered = Callable[[Group], tuple[Variant, ...]]
Inner = Callable[[Program, frozenset[int]], Plan]
"""The plan of a program within the program, which makes the memory of the outputs of these numbers."""


def bytes_of(t: Tensor) -> Expr:
    """Bytes of a tensor, rounded up to whole cache lines: at least one line, unless sizes of zero alone could
    make it less. A difference of sizes may be negative before it is checked.
    """
    size = (t.size * storage_bytes(t.dtype) + (ALIGN - 1)) // ALIGN
    safe = ix.number(size) is None and ix.never_negative(ix.poly(size))
    return (size if safe else apply("max", size, const(1))) * ALIGN


def split_constant(groups: Sequence[Group], outputs: Collection[Tensor]) -> tuple[list[Group], list[Group]]:
    """(groups that follow from weights alone, the others). Outputs are written by every run."""
    fixed: set[Tensor] = set()
    early: list[Group] = []
    late: list[Group] = []
    for g in groups:
        own = set(g.outs)
        reads = [t for s in g.stages for t in stage_reads(s) if t not in own]
        constant = all(t.data is not None or t in fixed for t in reads) and not any(t in outputs for t in own)
        if reads and constant and all(isinstance(s, Compute) and not stage_sizes(s) for s in g.stages):
            fixed.update(own)
            early.append(g)
        else:
            late.append(g)
    return early, late


def alias_of(group: Group) -> Tensor | None:
    """The tensor that a group only renames: one stage that reads every element where it writes it."""
    if len(group.stages) != 1 or not isinstance(group.stages[0], Compute):
        return None
    s = group.stages[0]
    reads = access.reads(s.body)
    if not access.is_view(s) or len(reads) != 1 or reads[0].source.dtype is not s.out.dtype:
        return None
    here: Expr = as_expr(0)
    for d, a in enumerate(s.axes):
        if ix.number(a.extent) != 1:
            here = here + a * ix.product(s.out.shape[d + 1 :])
    source: Tensor = reads[0].source
    return source if access.address(reads[0]) is here and source.size is s.out.size else None


@dataclass(slots=True)
class _Life:
    """A tensor's memory: which step makes it, which uses it last."""

    tensor: Tensor
    first: int
    last: int


class _Planner:
    def __init__(
        self,
        program: Program,
        groups: Sequence[Group],
        lowered: Lowered,
        inner: Inner | None,
        makes: frozenset[int],
    ) -> None:
        self.program = program
        self.inner, self.makes = inner, makes
        self.early, self.late = split_constant(groups, set(program.outputs))
        self.lowered = lowered
        self.same: dict[Tensor, Tensor] = {}
        self.places: dict[Tensor, Place] = {}
        self.steps: list[Step] = []
        self.defined: set[Expr] = set()
        self.made: set[Tensor] = set()
        self.needs = Dependences(program.dim_definitions)
        self.definitions: dict[Expr, DimDefinition] = {d.dim: d for d in program.dim_definitions}
        self.fixed = {t for g in self.early for t in g.outs}

    def home(self, t: Tensor) -> Tensor:
        while t in self.same:
            t = self.same[t]
        return t

    def build(self) -> Plan:
        p = self.program
        symbols = self._symbols()
        self.defined |= set(symbols)
        self._alias()
        self._checks()
        for g in self.late:
            if self._is_alias(g):
                self.made.update(g.outs)
            else:
                self._call(g)
        for d in p.dim_definitions:
            self._define(d.dim)
        self._checks()
        for k, t in enumerate(p.inputs):
            self.places[self.home(t)] = Place("input", k)
        for k, t in enumerate(p.outputs):
            self.places[self.home(t)] = Place("output", k)
        weights, prepare = self._prepare()
        weights, prepare = self._inner_weights(weights, prepare)
        steps, arena = self._arena()
        for t in list(self.same):
            self.places[t] = self.places[self.home(t)]
        return Plan(
            p.name, p.inputs, p.outputs, p.output_names, symbols, steps, self.places, arena, weights, prepare,
            self.makes,
        )  # fmt: skip

    def _symbols(self) -> tuple[Dim, ...]:
        found: dict[Dim, None] = dict.fromkeys(self.program.parameters)
        for t in self.program.inputs:
            for e in t.shape:
                if isinstance(e, Dim):
                    found[e] = None
        return tuple(found)

    # ---- steps ---------------------------------------------------------------------------------------------

    def _alias(self) -> None:
        taken = set(self.program.inputs) | self.fixed
        taken |= {t for s in self.program.stages if isinstance(s, (Branch, Loop)) for t in s.outs}
        outputs = set(self.program.outputs)
        self.aliases: set[Group] = set()
        for g in self.late:
            source = alias_of(g)
            if source is None or source.data is not None or source in self.fixed:
                continue
            out, source = g.outs[0], self.home(source)
            if out not in outputs:
                self.same[out] = source
            elif source not in taken and source not in outputs:
                self.same[source] = out
            else:
                continue
            self.aliases.add(g)

    def _is_alias(self, g: Group) -> bool:
        return g in self.aliases

    def _define(self, d: Expr) -> None:
        """The definition of a size and of all that it is made of, before its first use; and of the sizes that
        it is required to fit, so that the check comes before that use too.
        """
        definition = self.definitions.get(d)
        if d in self.defined or definition is None:
            return
        for x in _by_name(free(definition.value)):
            self._define(x)
        if d in self.defined:  # by a requirement of what it is made of
            return
        self.steps.append(Define(definition.dim, definition.value, definition.origin))
        self.defined.add(d)
        for r in self.program.requirements:
            beside = free(r.condition)
            if d in beside and all(x in self.defined or self._can_be_known(x) for x in beside):
                for x in _by_name(beside):
                    self._define(x)
        self._checks()

    def _can_be_known(self, d: Expr) -> bool:
        """Whether all that a size is worked out from is made by now."""
        return d in self.definitions and all(t.stage is None or t in self.made for t in self.needs.of_size(d))

    def _checks(self) -> None:
        """Requirements all of whose sizes are known by now."""
        done = {s.condition for s in self.steps if isinstance(s, Check)}
        for r in self.program.requirements:
            if r.condition not in done and all(x in self.defined for x in free(r.condition)):
                self.steps.append(Check(r.condition, r.origin, r.reason))

    def _control(self, stage: Branch | Loop) -> None:
        for d in _by_name(stage_sizes(stage)):
            self._define(d)
        assert self.inner is not None, "a program within a program needs a plan"
        makes = _made_by_bodies(stage)
        inner = self.inner
        plans = tuple(inner(b.program, made) for b, made in zip(stage.bodies, makes, strict=True))
        self.steps.append(Control(stage, plans))
        self.made.update(stage.outs)

    def _call(self, g: Group) -> None:
        first = g.stages[0]
        if isinstance(first, (Branch, Loop)):
            return self._control(first)
        variants = self.lowered(g)
        for v in variants:
            for d in v.kernel.dims:
                self._define(d)
        for t in g.outs:
            for e in t.shape:
                for d in _by_name(free(e)):
                    self._define(d)
        self.steps.append(Call(variants))
        self.made.update(g.outs)

    # ---- memory --------------------------------------------------------------------------------------------

    def _late_known(self, t: Tensor) -> bool:
        """Whether a tensor's size is known only in the middle of a run."""
        symbols = set(self._symbols())
        return any(isinstance(d, Dim) and d not in symbols for e in t.shape for d in free(e))

    def _arena(self) -> tuple[tuple[Step, ...], Expr]:
        lives: dict[Tensor, _Life] = {}
        for n, s in enumerate(self.steps):
            used: list[Tensor] = []
            if isinstance(s, Call):
                used = [self.home(t) for v in s.variants for t in v.arguments]
            elif isinstance(s, Define):
                used = [self.home(x.source) for x in access.loads(s.value)]
            elif isinstance(s, Control):
                used = [self.home(t) for t in (*stage_reads(s.stage), *s.stage.outs)]
            for t in used:
                if t in self.places or t.data is not None:
                    continue
                life = lives.setdefault(t, _Life(t, n, n))
                life.last = n
        late = [x for x in lives.values() if self._late_known(x.tensor)]
        early = [x for x in lives.values() if not self._late_known(x.tensor)]
        for k, x in enumerate(late):
            self.places[x.tensor] = Place("temp", k)
        arena = (
            self._static(early)
            if all(isinstance(bytes_of(x.tensor), Const) for x in early)
            else self._slots(early)
        )
        fresh_outputs = {
            self.home(t) for k, t in enumerate(self.program.outputs) if self._late_known(t) or k in self.makes
        }
        steps: list[Step] = []
        made: set[Tensor] = set()
        for n, s in enumerate(self.steps):
            if isinstance(s, (Call, Control)):
                if isinstance(s, Call):
                    used = list(dict.fromkeys(self.home(t) for v in s.variants for t in v.arguments))
                else:
                    made.update(t for t in s.stage.outs if made_late(t))
                    used = list(dict.fromkeys(map(self.home, s.stage.outs)))
                fresh = [
                    t
                    for t in used
                    if t not in made and (t in fresh_outputs or any(x.tensor is t for x in late))
                ]
                made.update(fresh)
                release = [x.tensor for x in late if x.last == n]
                s = replace(s, fresh=tuple(fresh), release=tuple(release))
            steps.append(s)
        return tuple(steps), arena

    def _static(self, lives: list[_Life]) -> Expr:
        placed: list[tuple[int, int, _Life]] = []
        top = 0
        for x in sorted(lives, key=lambda x: (-(ix.number(bytes_of(x.tensor)) or 0), x.first)):
            size = ix.number(bytes_of(x.tensor)) or ALIGN
            at = 0
            for offset, end, other in sorted(placed, key=lambda p: p[0]):
                if other.first > x.last or other.last < x.first:
                    continue
                if at + size <= offset:
                    break
                at = max(at, end)
            placed.append((at, at + size, x))
            top = max(top, at + size)
            self.places[x.tensor] = Place("arena", 0, const(at))
        return const(top)

    def _slots(self, lives: list[_Life]) -> Expr:
        slots: list[tuple[int, int, list[Tensor]]] = []  # last step of the slot's user, bytes, users
        for x in sorted(lives, key=lambda x: x.first):
            size = _nominal(bytes_of(x.tensor))
            free_ones = [n for n, slot in enumerate(slots) if slot[0] < x.first]
            best = min(free_ones, key=lambda n: abs(slots[n][1] - size), default=None)
            if best is None:
                slots.append((x.last, size, [x.tensor]))
            else:
                _, most, users = slots[best]
                slots[best] = (x.last, max(most, size), [*users, x.tensor])
        at: Expr = as_expr(0)
        for _, _, users in slots:
            sizes = list(dict.fromkeys(bytes_of(t) for t in users))
            largest = sizes[0]
            for other in sizes[1:]:
                largest = apply("max", largest, other)
            for t in users:
                self.places[t] = Place("arena", 0, at)
            at = at + largest
        return at

    # ---- weights -------------------------------------------------------------------------------------------

    def _prepare(self) -> tuple[int, tuple[PrepareStep, ...]]:
        wanted: dict[Tensor, None] = {}
        for s in self.steps:
            used = [t for v in s.variants for t in v.arguments] if isinstance(s, Call) else []
            if isinstance(s, Define):
                used = [x.source for x in access.loads(s.value)]
            if isinstance(s, Control):
                used = stage_reads(s.stage)
            for t in used:
                if t.data is not None or t in self.fixed:
                    wanted[t] = None
        total = 0
        for t in wanted:
            self.places[t] = Place("weights", 0, const(total))
            total += ix.number(bytes_of(t)) or ALIGN
        steps = [PrepareStep((t,), (), (t,)) for t in wanted if t.data is not None]
        return total, (*steps, *self._packing(set(wanted)))

    def _inner_weights(
        self, total: int, prepare: tuple[PrepareStep, ...]
    ) -> tuple[int, tuple[PrepareStep, ...]]:
        """The weights of plans within this one go behind its own; what both read is kept once."""
        steps = list(prepare)
        for n, s in enumerate(self.steps):
            if not isinstance(s, Control):
                continue
            plans = []
            for plan in s.plans:
                held = {t: p for t, p in self.places.items() if t.data is not None and p.kind == "weights"}
                moved = _rebased(plan, total, held)
                for step in plan.prepare:
                    if step.copies and step.copies[0] in held:
                        continue
                    steps.append(step)
                    used = [t for c in step.calls for v in c.variants for t in v.arguments]
                    for t in (*step.copies, *used):
                        if t in moved.places:
                            self.places[t] = moved.places[t]
                total += plan.weights_bytes
                plans.append(moved)
            self.steps[n] = replace(s, plans=tuple(plans))
        return total, tuple(steps)

    def _packing(self, wanted: set[Tensor]) -> list[PrepareStep]:
        """Constant groups, joined where one reads what another makes."""
        maker = {t: g for g in self.early for t in g.outs}
        needed: set[Group] = set()
        pending = [maker[t] for t in wanted if t in maker]
        while pending:
            g = pending.pop()
            if g not in needed:
                needed.add(g)
                pending.extend(
                    maker[t] for s in g.stages for t in stage_reads(s) if t in maker and maker[t] is not g
                )
        leader = {g: g for g in needed}

        def find(g: Group) -> Group:
            while leader[g] is not g:
                g = leader[g]
            return g

        for g in needed:
            for s in g.stages:
                for t in stage_reads(s):
                    if t in maker and maker[t] in needed:
                        leader[find(maker[t])] = find(g)
        together: dict[Group, list[Group]] = {}
        for g in self.early:
            if g in needed:
                together.setdefault(find(g), []).append(g)
        out = []
        for members in together.values():
            calls = tuple(Call(self.lowered(g)) for g in members)
            raw = dict.fromkeys(
                t for c in calls for v in c.variants for t in v.arguments if t.data is not None
            )
            temps = {
                t
                for c in calls
                for v in c.variants
                for t in v.arguments
                if t.data is None and t not in wanted
            }
            for k, t in enumerate(sorted(temps, key=lambda t: t.uid)):
                self.places.setdefault(t, Place("temp", k))
            out.append(PrepareStep(tuple(raw), calls))
        return out


def _made_by_bodies(stage: Branch | Loop) -> list[frozenset[int]]:
    """Per body the outputs whose memory it makes, because their sizes are known only then."""
    if isinstance(stage, Branch):
        made = frozenset(k for k, t in enumerate(stage.results) if made_late(t))
        return [made, made]
    before = int(stage.conditional)
    states = {before + k for _, k, _ in stage.moving}
    first = before + len(stage.finals)
    slices = {
        first + k
        for k, t in enumerate(stage.collected)
        if any(d in stage.defines for e in t.shape[1:] for d in free(e))
    }
    return [frozenset(states | slices)]


def _rebased(plan: Plan, base: int, held: Mapping[Tensor, Place]) -> Plan:
    """A plan whose weights begin at `base`, apart from those that are kept elsewhere already."""
    places = {
        t: held[t] if t in held else (Place("weights", 0, p.offset + base) if p.kind == "weights" else p)
        for t, p in plan.places.items()
    }
    steps = tuple(
        replace(s, plans=tuple(_rebased(p, base, held) for p in s.plans)) if isinstance(s, Control) else s
        for s in plan.steps
    )
    return replace(plan, places=places, steps=steps)


def _by_name(sizes: Iterable[Expr]) -> list[Dim]:
    """Sizes in the same order in every process."""
    return sorted((d for d in sizes if isinstance(d, Dim)), key=lambda d: d.name)


def _nominal(e: Expr) -> int:
    """A size with every symbol at its nominal value."""
    out = substitute(e, {d: const(NOMINAL) for d in free(e)})
    return ix.number(out) or ALIGN


def build_plan(
    program: Program,
    groups: Sequence[Group],
    lowered: Lowered,
    inner: Inner | None = None,
    makes: frozenset[int] = frozenset(),
) -> Plan:
    """The plan of a grouped program; `lowered` gives the kernel variants of a group, `inner` the plan of a
    program within it, where there is one. `makes` are the outputs whose memory the plan makes.
    """
    return _Planner(program, groups, lowered, inner, makes).build()


def arguments(kernel: Kernel) -> tuple[Tensor, ...]:
    """The tensors of a lowered kernel's parameters, in order."""
    tensors = kernel.notes["tensors"]
    assert isinstance(tensors, dict)
    return tuple(tensors[b] for b in kernel.params)
