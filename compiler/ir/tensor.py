"""The tensor program: meaning without an order.

A program is a list of stages; each defines one tensor (or several) from others. The kinds of stage:

    Compute   T[i, j] = expression, or T[i, j] = sum(k) expression      (`compute`, `reduce_sum`, …)
    Scan      a few stages repeated along time, with carried state      (`scan`)
    Scatter   T = initial; for u in updates: T[index(u)] op= value(u)   (`scatter`)
    Branch    one of two programs, chosen when run                      (`control.branch`)
    Loop      a program repeated while a condition holds                (`control.loop`)
    Extern    loops that are written out, for what the others cannot say (`fusile.ir.extern`)

Extents are integers or symbolic expressions. A size that is known only when the model runs is a Dim with a
definition in `Program.dim_definitions`. The functions here are the language in which `fusile.kernels` defines
operators.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fusile.ir import index as ix
from fusile.ir.expr import (
    Axis,
    Const,
    Dim,
    Expr,
    Load,
    Number,
    Reduce,
    as_expr,
    axis,
    cast,
    const,
    dim,
    free,
    load,
    loads,
    nodes,
    reduce_over,
    select,
    substitute,
)
from fusile.ir.loops import Buffer, Stmt, dims_of
from fusile.ir.types import I64, DType

Shape = tuple[Expr, ...]
_serial = itertools.count()


@dataclass(eq=False, slots=True)
class Tensor:
    """A named, typed value: `shape` (extents), and at most one of: a defining stage, data known while
    compiling, or neither (an input).

    `data` is a thunk for a constant's numpy array (weights are read late, or never); `known` holds the
    elements, in row-major order, of a small tensor whose every element is an expression over dims (shape
    arithmetic). `unrounded` are the float32 values whose roundings to a 16-bit type these are.
    """

    name: str
    dtype: DType
    shape: Shape
    stage: Stage | None = None
    data: Callable[[], np.ndarray] | None = None
    known: tuple[Expr, ...] | None = None
    unrounded: Tensor | None = None
    uid: int = field(default_factory=lambda: next(_serial))

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Expr:
        return ix.product(self.shape)

    def __getitem__(self, index: Any) -> Expr:
        """One element. Scalars constant while compiling become literals."""
        idx = index if isinstance(index, tuple) else (index,)
        if len(idx) != self.rank:
            raise TypeError(f"{self.name} has rank {self.rank}, indexed with {len(idx)}")
        if self.known is not None and len(self.known) == 1:
            return self.known[0]
        return load(self, idx)

    def __repr__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(repr, self.shape))}]"


@dataclass(frozen=True, eq=False, slots=True)
class Compute:
    """`out[axes] = body`; `body` may be a Reduce at its root.

    `origin` is the ONNX node's name, `op` its type (for people only).
    """

    out: Tensor
    axes: tuple[Axis, ...]
    body: Expr
    origin: str = ""
    op: str = ""

    @property
    def outs(self) -> tuple[Tensor, ...]:
        return (self.out,)

    @property
    def reduction(self) -> Reduce | None:
        return self.body if isinstance(self.body, Reduce) else None


@dataclass(frozen=True, eq=False, slots=True)
class Carried:
    """State of a scan: `now` is read inside the step, starts as `initial`, and becomes `then` after each
    step.
    """

    now: Tensor
    initial: Tensor
    then: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Scan:
    """`for time: body; carried`. `collected` pairs an outer tensor with the step's tensor that fills its
    slice [time, …]; `finals` pairs an outer tensor with the carried state whose last value it takes. Numpy
    meaning: run the body in a loop.
    """

    time: Axis
    carried: tuple[Carried, ...]
    body: tuple[Compute, ...]
    collected: tuple[tuple[Tensor, Tensor], ...]
    finals: tuple[tuple[Tensor, Carried], ...]
    origin: str = ""
    op: str = ""

    @property
    def outs(self) -> tuple[Tensor, ...]:
        return tuple(t for t, _ in self.collected) + tuple(t for t, _ in self.finals)


@dataclass(frozen=True, eq=False, slots=True)
class Scatter:
    """`out[axes] = initial`, then for each `updates` in row-major order, where `condition`: `out[index] op=
    value`. `kind` is set | add | mul | min | max.
    """

    out: Tensor
    axes: tuple[Axis, ...]
    initial: Expr
    updates: tuple[Axis, ...]
    index: tuple[Expr, ...]
    value: Expr
    condition: Expr
    kind: str
    origin: str = ""
    op: str = ""

    @property
    def outs(self) -> tuple[Tensor, ...]:
        return (self.out,)


@dataclass(frozen=True, eq=False, slots=True)
class Body:
    """A program within a stage. Its inputs are what the stage hands it, then what it reads from outside:
    `captured[k]` is the outer tensor of the k-th last of them.
    """

    program: Program
    captured: tuple[Tensor, ...]

    @property
    def own(self) -> tuple[Tensor, ...]:
        """The inputs that the stage hands over."""
        return self.program.inputs[: len(self.program.inputs) - len(self.captured)]


@dataclass(frozen=True, eq=False, slots=True)
class Branch:
    """`results = then() if condition else other()`; `condition` has one element.

    Sizes of results that are not known before are `defines`, and the stage writes them into `sizes`, in that
    order.
    """

    condition: Tensor
    then: Body
    other: Body
    results: tuple[Tensor, ...]
    defines: tuple[Dim, ...] = ()
    sizes: Tensor | None = None
    origin: str = ""
    op: str = ""

    @property
    def outs(self) -> tuple[Tensor, ...]:
        return self.results if self.sizes is None else (*self.results, self.sizes)

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.then, self.other)

    @property
    def given(self) -> tuple[Tensor, ...]:
        return (self.condition,)


@dataclass(frozen=True, eq=False, slots=True)
class Loop:
    """`state = initial; while go and n < trip: n += 1; go, state, new = body(n, state); collected += [new]`

    `step` is n within the body, from 1 on. `trip` None is no bound, `start` None is true. The body answers
    the condition first where `conditional`, then the next states, then what is collected. `moving` are the
    sizes of a state that may change from step to step: (dim within the body, state, dimension). `finals` are
    the last states, `collected` have a leading dimension of the number of steps. Sizes that are not known
    before are `defines`, and the stage writes them into `sizes`, in that order.
    """

    step: Dim
    trip: Expr | None
    start: Tensor | None
    initial: tuple[Tensor, ...]
    body: Body
    conditional: bool
    moving: tuple[tuple[Dim, int, int], ...]
    finals: tuple[Tensor, ...]
    collected: tuple[Tensor, ...]
    defines: tuple[Dim, ...] = ()
    sizes: Tensor | None = None
    origin: str = ""
    op: str = ""

    @property
    def outs(self) -> tuple[Tensor, ...]:
        made = (*self.finals, *self.collected)
        return made if self.sizes is None else (*made, self.sizes)

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.body,)

    @property
    def given(self) -> tuple[Tensor, ...]:
        return self.initial if self.start is None else (self.start, *self.initial)

    @property
    def local(self) -> frozenset[Dim]:
        """The sizes that only the body knows."""
        return frozenset([self.step, *(d for d, _, _ in self.moving)])


@dataclass(frozen=True, eq=False, slots=True)
class Extern:
    """`outs` are what the loops `body` leave in memory: sorting, and searches that end when the data says.

    `arrays` are the buffers that stand in the body for the outs and then for `reads`, in order. Every element
    of the outs is written. Outermost loops whose iterations are provably independent run in parallel, as in
    any kernel. `meaning` answers the outs' arrays, given those of the reads: the same in numpy, said in
    another way.
    """

    outs: tuple[Tensor, ...]
    reads: tuple[Tensor, ...]
    arrays: tuple[Buffer, ...]
    body: tuple[Stmt, ...]
    meaning: Callable[..., Sequence[np.ndarray]]
    origin: str = ""
    op: str = ""


Stage = Compute | Scan | Scatter | Branch | Loop | Extern


@dataclass(frozen=True, eq=False, slots=True)
class DimDefinition:
    """`dim = value`, worked out by the plan when run; `value` may load elements of tensors.

    Refused below 0, naming `origin`.
    """

    dim: Dim
    value: Expr
    origin: str


@dataclass(frozen=True, eq=False, slots=True)
class Requirement:
    """A condition on dims that the plan checks before anything that depends on it; `reason` says what is
    wrong otherwise.
    """

    condition: Expr
    origin: str
    reason: str


@dataclass(frozen=True, eq=False, slots=True)
class Program:
    """Stages in an order in which every tensor is defined before it is read, by a stage or by the definition
    of a size that a stage mentions. `parameters` are sizes that the program is given beside its inputs.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    output_names: tuple[str, ...]
    stages: tuple[Stage, ...]
    dim_definitions: tuple[DimDefinition, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    parameters: tuple[Dim, ...] = ()

    def with_stages(self, stages: Iterable[Stage]) -> Program:
        return replace(self, stages=tuple(stages))


def stage_reads(stage: Stage) -> list[Tensor]:
    """The tensors that a stage reads from outside itself, each once, in order."""
    found: dict[Tensor, None] = {}
    inner: set[Tensor] = set()

    def scan_loads(e: Expr) -> None:
        for n in nodes(e):
            if isinstance(n, Load) and n.source not in inner:
                found[n.source] = None

    match stage:
        case Compute():
            scan_loads(stage.body)
        case Scatter():
            for e in (stage.initial, *stage.index, stage.value, stage.condition):
                scan_loads(e)
        case Scan():
            inner |= {c.now for c in stage.carried} | {s.out for s in stage.body}
            for c in stage.carried:
                found[c.initial] = None
            for s in stage.body:
                scan_loads(s.body)
        case Branch() | Loop():
            found.update(dict.fromkeys((*stage.given, *(t for b in stage.bodies for t in b.captured))))

        case Extern():
            return list(dict.fromkeys(stage.reads))
    return list(found)


def stage_sizes(stage: Stage) -> set[Dim]:
    """The symbolic sizes that a stage mentions: in its shapes, its axes, and what it works out."""
    exprs: list[Expr] = [e for t in stage.outs for e in t.shape]
    match stage:
        case Compute():
            reduced = stage.reduction.axes if stage.reduction is not None else ()
            exprs += [stage.body, *(a.extent for a in reduced)]
        case Scatter():
            exprs += [stage.initial, *stage.index, stage.value, stage.condition]
            exprs += [a.extent for a in stage.updates]
        case Scan():
            exprs.append(stage.time.extent)
            return _dims_in(exprs).union(*(stage_sizes(s) for s in stage.body))
        case Branch():
            return _dims_in(exprs).union(*(b.program.parameters for b in stage.bodies)) - {*stage.defines}
        case Loop():
            exprs += [] if stage.trip is None else [stage.trip]
            own = stage.local.union(stage.defines)
            return _dims_in(exprs).union(stage.body.program.parameters) - own
        case Extern():
            return {*dims_of(stage.body, stage.arrays)}
    return _dims_in(exprs)


def _dims_in(exprs: Iterable[Expr]) -> set[Dim]:
    return {d for e in exprs for d in free(e) if isinstance(d, Dim)}


class Dependences:
    """What has to be made before a stage can run: what it reads, and what its sizes are worked out from."""

    def __init__(self, definitions: Iterable[DimDefinition]) -> None:
        self._reads: dict[Expr, tuple[Tensor, ...]] = {}
        for d in definitions:  # in an order in which sizes are defined before they are used
            above = [t for x in free(d.value) for t in self._reads.get(x, ())]
            self._reads[d.dim] = tuple(dict.fromkeys([*above, *(x.source for x in loads(d.value))]))

    def of_size(self, size: Expr) -> tuple[Tensor, ...]:
        """The tensors that a size is worked out from, each once."""
        return self._reads.get(size, ())

    def of_sizes(self, stage: Stage) -> list[Tensor]:
        """The tensors that the sizes of a stage are worked out from, each once."""
        if not self._reads:
            return []
        own = sorted(stage_sizes(stage), key=lambda d: d.name)
        return list(dict.fromkeys(t for d in own for t in self.of_size(d)))

    def __call__(self, stage: Stage) -> list[Tensor]:
        return list(dict.fromkeys([*stage_reads(stage), *self.of_sizes(stage)]))


# ---- the language of definitions ---------------------------------------------------------------------------


def as_shape(extents: Iterable[Expr | int]) -> Shape:
    return tuple(as_expr(e) for e in extents)


def _define(name: str, axes: tuple[Axis, ...], body: Expr) -> Tensor:
    out = Tensor(name, body.dtype, tuple(a.extent for a in axes))
    out.stage = Compute(out, axes, body)
    return out


def _hoist(body: Expr, axes: tuple[Axis, ...], name: str) -> Expr:
    """Give every Reduce below the root a stage of its own over the axes it depends on."""
    if isinstance(body, Reduce):
        return reduce_over(body.kind, body.axes, _hoist(body.body, axes + body.axes, name))
    inner = _outermost_reductions(body)
    if not inner:
        return body
    mapping: dict[Expr, Expr] = {}
    for n in inner:
        own = tuple(a for a in axes if a in free(n))
        fresh = tuple(axis(a.name, a.extent) for a in own)
        renamed = substitute(n, dict(zip(own, fresh, strict=True)))
        reduced = _define(f"{name}_sum", fresh, _hoist(renamed, fresh, name))
        mapping[n] = load(reduced, own)
    return substitute(body, mapping)


def _outermost_reductions(body: Expr) -> list[Reduce]:
    """The reductions in an expression that stand in no other one."""
    found: dict[Reduce, None] = {}
    seen: set[Expr] = set()
    pending = [body]
    while pending:
        x = pending.pop()
        if x in seen:
            continue
        seen.add(x)
        if isinstance(x, Reduce):
            found[x] = None
        else:
            pending.extend(reversed(x.children))
    return list(found)


def compute(
    shape: Iterable[Expr | int],
    body: Callable[..., Expr | Number],
    *,
    name: str = "t",
    dtype: DType | None = None,
) -> Tensor:
    """`T[i, j, …] = body(i, j, …)` over `shape`. Reductions inside the body become stages of their own."""
    extents = as_shape(shape)
    axes = tuple(axis(f"i{k}", e) for k, e in enumerate(extents))
    # An axis of extent 1 has one value; writing it as 0 keeps access maps free of it.
    arguments = tuple(const(0) if ix.number(a.extent) == 1 else a for a in axes)
    value = body(*arguments)
    value = as_expr(value, dtype or I64)
    if dtype is not None:
        value = cast(value, dtype)
    return _define(name, axes, _hoist(value, axes, name))


def reduction(kind: str, extents: Iterable[Expr | int], body: Callable[..., Expr]) -> Expr:
    """`kind(k, l, …) body(k, l, …)` as an expression, for use inside `compute`.

    `kind`: sum | prod | max | min.
    """
    axes = tuple(axis(f"k{n}", e) for n, e in enumerate(as_shape(extents)))
    live = tuple(a for a in axes if ix.number(a.extent) != 1)
    value = body(*(a if a in live else const(0) for a in axes))
    return reduce_over(kind, live, value) if live else value


def reduce_sum(extents: Iterable[Expr | int], body: Callable[..., Expr]) -> Expr:
    return reduction("sum", extents, body)


def reduce_max(extents: Iterable[Expr | int], body: Callable[..., Expr]) -> Expr:
    return reduction("max", extents, body)


def reduce_min(extents: Iterable[Expr | int], body: Callable[..., Expr]) -> Expr:
    return reduction("min", extents, body)


def constant(value: np.ndarray, name: str = "c") -> Tensor:
    """A tensor whose data is known while compiling."""
    from fusile.ir.types import from_numpy

    array = np.asarray(value)
    t = Tensor(name, from_numpy(array.dtype), as_shape(array.shape), data=lambda: array)
    if array.size <= 1024 and t.dtype.kind in "biuf" and t.dtype.bits >= 8:
        t.known = tuple(
            const(v, t.dtype)
            for v in array.astype(np.float64 if t.dtype.kind == "f" else array.dtype).ravel().tolist()
        )
    return t


def from_exprs(
    elements: Sequence[Expr], shape: Iterable[Expr | int], dtype: DType, name: str = "known"
) -> Tensor:
    """A small tensor whose elements are expressions over dims."""
    shape = as_shape(shape)
    strides = [ix.product(shape[k + 1 :]) for k in range(len(shape))]

    def pick(*idx: Expr) -> Expr:
        out = elements[-1] if elements else const(0, dtype)
        flat = sum((i * s for i, s in zip(idx, strides, strict=True)), const(0))
        for n in reversed(range(len(elements) - 1)):
            out = select(flat < n + 1, elements[n], out)
        return out

    t = compute(shape, pick, name=name, dtype=dtype)
    t.known = tuple(elements)
    return t


def scan(
    steps: Expr | int,
    initial: Sequence[Tensor],
    step: Callable[..., tuple[Sequence[Tensor], Sequence[Tensor]]],
    *,
    name: str = "scan",
) -> tuple[list[Tensor], list[Tensor]]:
    """A recurrence along time. `step(time, *state) -> (next state, collected)`, all tensors made with
    `compute`; time is the index expression of the step. Answers (stacked collected tensors, each with a
    leading axis of `steps`; final states).
    """
    time = axis("time", steps)
    now = [Tensor(f"{name}_state{k}", t.dtype, t.shape) for k, t in enumerate(initial)]
    then, collected = step(time, *now)
    carried = tuple(Carried(a, b, c) for a, b, c in zip(now, initial, then, strict=True))
    body = stages_between([*then, *collected], stop=set(now), inside=time)
    stacked = [Tensor(f"{name}_out{k}", t.dtype, (time.extent, *t.shape)) for k, t in enumerate(collected)]
    finals = [Tensor(f"{name}_final{k}", c.now.dtype, c.now.shape) for k, c in enumerate(carried)]
    stage = Scan(
        time,
        carried,
        body,
        tuple(zip(stacked, collected, strict=True)),
        tuple(zip(finals, carried, strict=True)),
    )
    for t in (*stacked, *finals):
        t.stage = stage
    return stacked, finals


def stages_between(results: Iterable[Tensor], stop: set[Tensor], inside: Axis) -> tuple[Compute, ...]:
    """The compute stages that lead to `results` and depend on `stop` or on the axis `inside`, in order."""
    order: dict[Stage, None] = {}
    depends: dict[Tensor, bool] = {}

    def visit(t: Tensor) -> bool:
        if t in stop:
            return True
        if t in depends:
            return depends[t]
        needs = False
        if isinstance(t.stage, Compute):
            reads = [visit(r) for r in stage_reads(t.stage)]
            needs = any(reads) or inside in free(t.stage.body)
            if needs:
                order[t.stage] = None
        depends[t] = needs
        return needs

    for t in results:
        if not visit(t) and isinstance(t.stage, Compute):
            order[t.stage] = None
    return tuple(s for s in order if isinstance(s, Compute))


def scatter(
    initial: Callable[..., Expr],
    shape: Iterable[Expr | int],
    updates: Iterable[Expr | int],
    index: Callable[..., Sequence[Expr]],
    value: Callable[..., Expr],
    *,
    kind: str = "set",
    condition: Callable[..., Expr] | None = None,
    name: str = "scatter",
) -> Tensor:
    """`T[i…] = initial(i…)`, then for u in `updates`, in order, where condition(u…): `T[index(u…)] kind=
    value(u…)`.
    """
    axes = tuple(axis(f"i{k}", e) for k, e in enumerate(as_shape(shape)))
    ups = tuple(axis(f"u{k}", e) for k, e in enumerate(as_shape(updates)))
    from fusile.ir.types import BOOL

    first, new = initial(*axes), value(*ups)
    test = condition(*ups) if condition else const(True, BOOL)
    out = Tensor(name, first.dtype, tuple(a.extent for a in axes))
    out.stage = Scatter(out, axes, first, ups, tuple(index(*ups)), new, test, kind)
    return out


def collect(outputs: Sequence[Tensor], definitions: Iterable[DimDefinition] = ()) -> tuple[Stage, ...]:
    """Every stage that `outputs` depend on, in dependence order (iterative: graphs are deep). Stages whose
    sizes are worked out when run come after what `definitions` read.
    """
    needs = Dependences(definitions)
    order: dict[Stage, None] = {}
    seen: set[Stage] = set()
    stack: list[tuple[Stage, bool]] = [(t.stage, False) for t in reversed(outputs) if t.stage is not None]
    while stack:
        stage, done = stack.pop()
        if done:
            order[stage] = None
        elif stage not in seen:
            seen.add(stage)
            stack.append((stage, True))
            stack.extend(
                (t.stage, False)
                for t in reversed(needs(stage))
                if t.stage is not None and t.stage not in seen
            )
    return tuple(order)


__all__ = [
    "Body",
    "Branch",
    "Carried",
    "Compute",
    "Const",
    "Dim",
    "DimDefinition",
    "Extern",
    "Loop",
    "Program",
    "Requirement",
    "Scan",
    "Scatter",
    "Shape",
    "Stage",
    "Tensor",
    "as_shape",
    "collect",
    "compute",
    "constant",
    "dim",
    "from_exprs",
    "reduce_max",
    "reduce_min",
    "reduce_sum",
    "reduction",
    "scan",
    "scatter",
    "stage_reads",
    "stages_between",
]
