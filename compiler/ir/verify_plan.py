"""The promises of plans, checked: everything is worked out before it is used, and memory in use belongs to
one tensor alone.

Distances between arena tensors of symbolic size are not proven but worked out for a few sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusile.ir.control import made_late
from fusile.ir.expr import Dim, Expr, Load, free, loads
from fusile.ir.interpret import evaluate
from fusile.ir.loops import Buffer, Kernel, written
from fusile.ir.plan import Call, Check, Control, Define, Place, Plan, PrepareStep, Variant
from fusile.ir.poly import number
from fusile.ir.tensor import Loop, Tensor, stage_reads
from fusile.ir.types import BOOL, storage_bytes, storage_of
from fusile.ir.wellformed import check_expr, check_size, check_type, fail, named, same_size

ALIGN = 64
_SAMPLES: tuple[tuple[int, ...], ...] = ((1,), (2,), (7,), (64,), (3, 5, 2, 17, 1), (33, 1, 96, 4, 260))
"""Sizes tried for symbolic dims, in turn."""


def verify_plan(plan: Plan) -> None:
    """Check a plan: sizes are defined before they are used, every tensor that a kernel takes has a place and
    is written before it is read, arena tensors alive at the same time do not overlap, packed weights are
    disjoint and all written, outputs too. Raises InternalError.
    """
    _PlanCheck(plan).run()


@dataclass(slots=True)
class _Life:
    """Memory of the arena: one of its tensors, and the first and last step that use it."""

    tensor: Tensor
    first: int
    last: int


class _PlanCheck:
    def __init__(self, plan: Plan, within: _PlanCheck | None = None) -> None:
        self.plan = plan
        self.within = within
        self.where = f"plan {named(plan.name)}"
        self.dims: set[Expr] = set(plan.symbols)
        self.early: set[Expr] = set(plan.symbols)
        self.filled: set[Place] = set() if within is None else {*within.weights}
        self.written_outputs: set[int] = set()
        self.live: set[Place] = set()
        self.lives: dict[Place, _Life] = {}

    def run(self) -> None:
        p = self.plan
        for d in (x for t in p.inputs for e in t.shape for x in free(e)):
            if d not in self.early:
                fail(self.where, f"the dimension {named(getattr(d, 'name', ''))} of an input has no value")
        if self.within is None:
            for k, step in enumerate(p.prepare):
                self._prepare(step, f"{self.where}, prepare {k}")
            self._weights()
        for k, t in enumerate(p.inputs):
            place = p.places.get(t)
            if place is not None and place.kind == "input":
                if place.number != k:
                    fail(self.where, f"input {k} lies where input {place.number} is")
                self.filled.add(place)
        self._early()
        self._steps()
        self._outputs()
        self._arena()

    @property
    def weights(self) -> set[Place]:
        """The places of weights that are filled."""
        return {place for place in self.filled if place.kind == "weights"}

    # ---- packing ---------------------------------------------------------------------------------

    def _prepare(self, step: PrepareStep, where: str) -> None:
        for t in step.raw:
            if t.data is None:
                fail(where, f"{named(t.name)} is packed and has no data")
        for t in step.copies:
            if t not in step.raw:
                fail(where, f"{named(t.name)} is copied and not among the raw tensors")
            self.filled.add(self._place(t, where, ("weights",)))
        temps: set[Place] = set()
        for c in step.calls:
            self._variants(c, where)
            for v in c.variants:
                self._fits(v, where)
                if v.kernel.dims:
                    fail(where, f"{v.kernel.name} packs weights and needs sizes of a run")
                changed = written(v.kernel.body)
                for b, t in zip(v.kernel.params, v.arguments, strict=True):
                    if t.data is not None:
                        if t not in step.raw or b in changed:
                            fail(where, f"{named(t.name)} is given with the model and not raw, or written")
                        continue
                    place = self._place(t, where, ("weights", "temp"))
                    known = temps if place.kind == "temp" else self.filled
                    if b in changed:
                        known.add(place)
                    elif place not in known:
                        fail(where, f"{v.kernel.name} reads {named(t.name)} before it is written")

    def _weights(self) -> None:
        spans: list[tuple[int, int, Tensor]] = []
        for t, place in self.plan.places.items():
            if place.kind != "weights":
                continue
            if place not in self.filled:
                fail(self.where, f"no prepare step writes the weights {named(t.name)}")
            start = self._number(place.offset, {})
            self._aligned(start, t)
            spans.append((start, start + self._bytes(t, {}), t))
        spans.sort(key=lambda x: x[:2])
        for (_, end, a), (start, _, b) in itertools.pairwise(spans):
            if start < end:
                fail(self.where, f"the weights {named(a.name)} and {named(b.name)} overlap")
        if spans and max(end for _, end, _ in spans) > self.plan.weights_bytes:
            fail(self.where, f"weights end beyond {self.plan.weights_bytes} bytes")

    # ---- steps -----------------------------------------------------------------------------------

    def _early(self) -> None:
        """Sizes that follow from the inputs' alone, in the order of their definitions."""
        for s in self.plan.steps:
            if isinstance(s, Define) and not loads(s.value) and free(s.value) <= self.early:
                self.early.add(s.dim)
        check_size(self.plan.arena, self.early, f"{self.where}, arena")

    def _steps(self) -> None:
        for n, s in enumerate(self.plan.steps):
            where = f"{self.where}, step {n}"
            match s:
                case Define():
                    where = f"{where}, size {named(s.dim.name)} of {named(s.origin)}"
                    if s.dim in self.dims:
                        fail(where, "a size is defined twice")

                    def read(x: Load, n: int = n, where: str = where) -> None:
                        self._read(x.source, n, where)

                    check_expr(s.value, self.dims, where, read)
                    self.dims.add(s.dim)
                case Check():
                    check_type(s.condition, BOOL, "a requirement", where)
                    check_expr(s.condition, self.dims, f"{where}, check of {named(s.origin)}")
                case Call():
                    self._call(s, n, where)
                case Control():
                    self._control(s, n, where)

    def _read(self, t: object, n: int, where: str) -> None:
        if not isinstance(t, Tensor):
            fail(where, f"a {type(t).__name__} is read in a plan")
        place = self._used(t, n, where)
        if place not in self.filled and not _is_empty(t):
            fail(where, f"{named(t.name)} is read before it is written")

    def _used(self, t: Tensor, n: int, where: str) -> Place:
        place = self._place(t, where, ("input", "output", "weights", "arena", "temp"))
        if place.kind == "temp" and place not in self.live:
            fail(where, f"the temporary {named(t.name)} is used while it has no memory")
        if place.kind == "arena":
            life = self.lives.setdefault(place, _Life(t, n, n))
            life.last = n
        return place

    def _call(self, s: Call, n: int, where: str) -> None:
        where = f"{where} ({', '.join(v.kernel.name for v in s.variants)})"
        self._variants(s, where)
        self._fresh(s, where)
        filled: set[Place] = set()
        for v in s.variants:
            if v.guard is not None:
                check_expr(v.guard, self.dims, where)
            lost = set(v.kernel.dims) - self.dims
            if lost:
                fail(
                    where,
                    f"{v.kernel.name} needs the size "
                    f"{named(min(d.name for d in lost if isinstance(d, Dim)))} too early",
                )
            self._fits(v, where)
            filled |= self._arguments(v, n, where)
        self.filled |= filled
        self.written_outputs |= {p.number for p in filled if p.kind == "output"}
        self._release(s, where)

    def _control(self, s: Control, n: int, where: str) -> None:
        for t in stage_reads(s.stage):
            self._read(t, n, where)
        self._fresh(s, where)
        for t in s.stage.outs:
            place = self._place(t, where, ("output", "arena", "temp"))
            if made_late(t):
                self.live.add(place)
            self._used(t, n, where)
            self.filled.add(place)
            if place.kind == "output":
                self.written_outputs.add(place.number)
        own = s.stage.local if isinstance(s.stage, Loop) else frozenset()
        for plan in s.plans:
            for d in plan.symbols:
                if d not in self.dims and d not in own:
                    fail(where, f"a plan within needs the size {named(d.name)} too early")
            _PlanCheck(plan, within=self).run()
        self._release(s, where)

    def _fresh(self, s: Call | Control, where: str) -> None:
        for t in s.fresh:
            place = self._place(t, where, ("temp", "output"))
            if place in self.live:
                fail(where, f"{named(t.name)} is given memory twice")
            for e in t.shape:
                check_size(e, self.dims, where)
            self.live.add(place)

    def _release(self, s: Call | Control, where: str) -> None:
        for t in s.release:
            place = self._place(t, where, ("temp",))
            if place not in self.live:
                fail(where, f"{named(t.name)} is released while it has no memory")
            self.live.discard(place)

    def _arguments(self, v: Variant, n: int, where: str) -> set[Place]:
        """Check what a kernel reads and writes; the places that it fills."""
        changed = written(v.kernel.body)
        seen: dict[Place, Buffer] = {}
        filled: set[Place] = set()
        for b, t in zip(v.kernel.params, v.arguments, strict=True):
            place = self._used(t, n, where)
            other = seen.setdefault(place, b)
            if other is not b and (b in changed or other in changed):
                fail(
                    where,
                    f"{named(b.name)} and {named(other.name)} are one memory, which {v.kernel.name} writes",
                )
            if b in changed:
                if place.kind in ("input", "weights"):
                    fail(where, f"{v.kernel.name} writes {named(t.name)}, which is {place.kind}")
                filled.add(place)
            elif place not in self.filled and not _is_empty(t):
                fail(where, f"{v.kernel.name} reads {named(t.name)} before it is written")
        return filled

    def _variants(self, c: Call, where: str) -> None:
        if not c.variants or c.variants[-1].guard is not None:
            fail(where, "no variant of a call holds for all sizes")
        for v in c.variants[:-1]:
            if v.guard is None:
                fail(where, f"{v.kernel.name} holds for all sizes and stands before other variants")
            check_type(v.guard, BOOL, "a guard", where)

    def _fits(self, v: Variant, where: str) -> None:
        """Arguments have the types and shapes of the kernel's parameters."""
        kernel: Kernel = v.kernel
        if len(v.arguments) != len(kernel.params):
            fail(where, f"{kernel.name} takes {len(kernel.params)} tensors, is given {len(v.arguments)}")
        for b, t in zip(kernel.params, v.arguments, strict=True):
            if b.dtype is not t.dtype and b.dtype is not storage_of(t.dtype).word:
                fail(where, f"{named(t.name)} of type {t.dtype} is given as {b.dtype}")
            if len(b.shape) != len(t.shape) or not all(map(same_size, b.shape, t.shape)):
                fail(where, f"{named(t.name)} has the shape {t.shape}, {kernel.name} takes {b.shape}")

    def _place(self, t: Tensor, where: str, kinds: Sequence[str]) -> Place:
        place = self.plan.places.get(t)
        if place is None:
            fail(where, f"{named(t.name)} has no place")
        if place.kind not in kinds:
            fail(where, f"{named(t.name)} lies in {place.kind}, not in {' or '.join(kinds)}")
        return place

    # ---- memory ----------------------------------------------------------------------------------

    def _outputs(self) -> None:
        if len(self.plan.outputs) != len(self.plan.output_names):
            fail(self.where, f"{len(self.plan.outputs)} outputs have {len(self.plan.output_names)} names")
        for k, t in enumerate(self.plan.outputs):
            place = self._place(t, self.where, ("output",))
            if place.number != k:
                fail(self.where, f"output {k} ({named(t.name)}) lies where output {place.number} is")
            if k not in self.written_outputs and not _is_empty(t):
                fail(self.where, f"output {k} ({named(t.name)}) is never written")
            late = {d for e in t.shape for d in free(e)} - self.early
            if late and place not in self.live:
                fail(
                    self.where,
                    f"output {k} ({named(t.name)}) is never given memory, its size is known too late",
                )

    def _arena(self) -> None:
        for env in self._sizes():
            total = self._number(self.plan.arena, env)
            spans: list[tuple[int, int, _Life]] = []
            for place, life in self.lives.items():
                start = self._number(place.offset, env)
                size = self._bytes(life.tensor, env)
                self._aligned(start, life.tensor)
                if start < 0 or start + size > total:
                    fail(
                        self.where,
                        f"{named(life.tensor.name)} ends at {start + size} in an arena of {total} "
                        f"bytes{_for(env)}",
                    )
                spans.append((start, start + size, life))
            self._overlaps(spans, env)

    def _overlaps(self, spans: list[tuple[int, int, _Life]], env: Mapping[Expr, Any]) -> None:
        spans.sort(key=lambda x: x[:2])
        for k, (start, end, a) in enumerate(spans):
            for other, _, b in spans[k + 1 :]:
                if other >= end:
                    break
                if start < end and a.first <= b.last and b.first <= a.last:
                    names = f"{named(a.tensor.name)} and {named(b.tensor.name)}"
                    fail(
                        self.where,
                        f"{names} are alive at the same time and share bytes from {other}{_for(env)}",
                    )

    def _sizes(self) -> Iterable[dict[Expr, Any]]:
        """A few values of the symbols, with what follows from them."""
        for sample in _SAMPLES if self.plan.symbols else _SAMPLES[:1]:
            env: dict[Expr, Any] = {
                d: np.int64(sample[k % len(sample)]) for k, d in enumerate(self.plan.symbols)
            }
            for s in self.plan.steps:
                if isinstance(s, Define) and s.dim in self.early:
                    env[s.dim] = np.int64(self._number(s.value, env))
            if all(env[d] >= 0 for d in env):
                yield env

    def _number(self, e: Expr, env: Mapping[Expr, Any]) -> int:
        return int(evaluate(e, dict(env), lambda *_: None))

    def _bytes(self, t: Tensor, env: Mapping[Expr, Any]) -> int:
        count = 1
        for n in t.shape:
            count *= self._number(n, env)
        return count * storage_bytes(t.dtype)

    def _aligned(self, start: int, t: Tensor) -> None:
        if start % ALIGN:
            fail(self.where, f"{named(t.name)} starts at byte {start}, not at a multiple of {ALIGN}")


def _is_empty(t: Tensor) -> bool:
    """Whether a tensor has no elements, so that nobody has to write them."""
    return number(t.size) == 0


def _for(env: Mapping[Expr, Any]) -> str:
    return f" where {', '.join(f'{d!r} = {n}' for d, n in env.items())}" if env else ""
