"""Groups of stages to naive loop kernels: correct, in order, and nothing more. Schedules make them fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fusile.ir import index as ix
from fusile.ir.expr import REDUCTIONS, Axis, Expr, Load, Reduce, apply, axis, const, load, substitute
from fusile.ir.interpret import identity
from fusile.ir.loops import Alloc, Buffer, For, If, Kernel, Stmt, Store, accesses, dims_of, with_buffers
from fusile.ir.tensor import Compute, Extern, Scan, Scatter, Tensor, stage_reads
from fusile.ir.types import storage_bytes
from fusile.passes import access
from fusile.passes.fuse import Group

MOST_LOCAL_BYTES = 8192
"""A private tensor up to this size lives on the stack, a larger one (or one of unknown size) in the scratch
memory of the task.
"""

MOST_ADDED = 128
"""Terms that one accumulator of a sum takes, about."""
MOST_IN_ORDER = 1024
"""Terms up to which the sum of one tensor along one axis keeps the order of its elements."""
NOMINAL = 64
"""What a symbolic size is taken to be where the length of a sum is guessed."""


@dataclass(slots=True)
class _Memory:
    """Which buffer stands for which tensor, inside one kernel."""

    buffers: dict[Tensor, Buffer] = field(default_factory=dict)
    private: dict[Tensor, tuple[int, ...]] = field(default_factory=dict)
    """For tensors kept inside an iteration: the dimensions that they still have."""

    def of(self, t: Tensor) -> Buffer:
        if t not in self.buffers:
            self.buffers[t] = Buffer(t.name, t.dtype, t.shape, "param", t.data is not None)
        return self.buffers[t]

    def keep(self, t: Tensor, dims: tuple[int, ...]) -> Buffer:
        shape = tuple(t.shape[d] for d in dims)
        count = ix.number(ix.product(shape))
        small = count is not None and count * storage_bytes(t.dtype) <= MOST_LOCAL_BYTES
        self.private[t] = dims
        self.buffers[t] = Buffer(t.name, t.dtype, shape, "local" if small else "scratch")
        return self.buffers[t]

    def place(self, t: Tensor, index: Sequence[Expr]) -> tuple[Buffer, tuple[Expr, ...]]:
        dims = self.private.get(t)
        return self.of(t), tuple(index) if dims is None else tuple(index[d] for d in dims)

    def read(self, x: Load) -> Expr:
        if isinstance(x.source, Buffer):
            return x
        buffer, index = self.place(x.source, x.index)
        return load(buffer, index)

    def expr(self, e: Expr, places: dict[Expr, Expr]) -> Expr:
        return substitute(e, places, self.read)


def lower(group: Group, name: str) -> Kernel:
    """The naive kernel of a group."""
    memory = _Memory()
    if len(group.stages) == 1 and isinstance(group.stages[0], Scan):
        body = _scan(group.stages[0], memory)
    elif len(group.stages) == 1 and isinstance(group.stages[0], Scatter):
        body = _scatter(group.stages[0], memory)
    elif len(group.stages) == 1 and isinstance(group.stages[0], Extern):
        body = _extern(group.stages[0], memory)
    else:
        body = _nest(group, memory)
    params: dict[Buffer, None] = {}
    for buffer, _, _ in accesses(body):
        if buffer.scope == "param":
            params[buffer] = None
    origins = tuple(dict.fromkeys(s.origin for s in group.stages if s.origin))
    tensors: dict[Buffer, Tensor] = {}
    for t, b in memory.buffers.items():
        tensors.setdefault(b, t)  # a tensor that lies where another goes comes after it
    as_written = any(isinstance(s, Extern) for s in group.stages)
    notes = {"tensors": tensors, **({"as_written": True} if as_written else {})}
    return Kernel(name, tuple(params), dims_of(body, params), body, origins, notes=notes)


def _nest(group: Group, memory: _Memory) -> tuple[Stmt, ...]:
    """Loops over the domain around the stages in order."""
    stages = [s for s in group.stages if isinstance(s, Compute)]
    last = stages[-1]
    # The loops run in the order of the last stage's dimensions: what leaves the kernel is written in order.
    points = sorted(range(len(group.domain[last])), key=lambda q: last.axes.index(group.domain[last][q]))
    shared = tuple(axis(group.domain[last][q].name, group.domain[last][q].extent) for q in points)
    inner: list[Stmt] = []
    allocated: set[Buffer] = set()
    reuse = _reusable(group, stages)
    for t, home in reuse.items():
        memory.buffers[t] = memory.of(home)
    for s in stages:
        places: dict[Expr, Expr] = {group.domain[s][q]: a for q, a in zip(points, shared, strict=True)}
        if s.out in group.internal and s.out not in reuse:
            mine = {group.domain[s][q] for q in points}
            buffer = memory.keep(s.out, tuple(d for d, a in enumerate(s.axes) if a not in mine))
            if buffer not in allocated:
                allocated.add(buffer)
                inner.append(Alloc(buffer))
        inner.extend(_stage(s, places, memory))
    body: tuple[Stmt, ...] = tuple(inner)
    for a in reversed(shared):
        body = (For(a, body),)
    return body


def _reusable(group: Group, stages: list[Compute]) -> dict[Tensor, Tensor]:
    """Internal tensors that may lie where a later result of the same shape goes, which overwrites each
    element after its last use.
    """
    found: dict[Tensor, Tensor] = {}
    for s in stages:
        t = s.out
        if t not in group.internal or len(group.domain[s]) == len(s.axes):
            continue
        readers = [r for r in stages if any(x.source is t for x in access.loads(r.body))]
        final = readers[-1]
        o = final.out
        if (
            o in group.internal
            or o.dtype is not t.dtype
            or o.shape != t.shape
            or final.reduction is not None
            or o in found.values()
        ):
            continue
        if all(
            all(i is a for i, a in zip(x.index, final.axes, strict=True))
            for x in access.loads(final.body)
            if x.source is t
        ):
            found[t] = o
    return found


def _stage(s: Compute, places: dict[Expr, Expr], memory: _Memory) -> list[Stmt]:
    """The loops of one stage over its private axes."""
    places = dict(places)
    private: list[Axis] = []
    for a in s.axes:
        if a not in places and ix.number(a.extent) == 1:
            places[a] = const(0)
        elif a not in places:
            fresh = axis(a.name, a.extent)
            places[a] = fresh
            private.append(fresh)
    index = [places[a] for a in s.axes]
    buffer, at = memory.place(s.out, index)
    r = s.reduction
    body: list[Stmt] = (
        _reduced(s, r, buffer, at, places, memory)
        if r is not None
        else [Store(buffer, at, memory.expr(s.body, places))]
    )
    for a in reversed(private):
        body = [For(a, tuple(body))]
    return body


def _reduced(
    s: Compute, r: Reduce, buffer: Buffer, at: tuple[Expr, ...], places: dict[Expr, Expr], memory: _Memory
) -> list[Stmt]:
    """A scalar accumulator, its loops, and the result."""
    direct = buffer.scope == "local" and not buffer.shape
    total = buffer if direct else Buffer(f"{s.out.name}_acc", s.out.dtype, (), "local")
    fresh: dict[Expr, Axis] = {a: axis(a.name, a.extent) for a in r.axes}
    value = memory.expr(r.body, {**places, **fresh})
    body = _accumulate(total, r, [fresh[a] for a in r.axes], value)
    out: list[Stmt] = [] if direct else [Alloc(total)]
    out += [Store(total, (), const(identity(r.kind, s.out.dtype), s.out.dtype)), *body]
    if not direct:
        out.append(Store(buffer, at, load(total, ())))
    return out


def _accumulate(total: Buffer, r: Reduce, axes: list[Axis], value: Expr) -> list[Stmt]:
    """total op= value over the axes. A long sum of floats is taken in blocks whose sums are added up, so that
    rounding errors grow with the length of a block and the number of blocks, not with their product
    (N. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2).

    The sum of one tensor along one axis that is not very long keeps the order of its elements, as it does in
    numpy and ONNX Runtime: formulas that subtract two such sums (the mean of squares and the square of the
    mean) turn another order into another answer.
    """
    short = len(axes) == 1 and (ix.number(axes[0].extent) or 0) <= MOST_IN_ORDER
    in_order = short and len({x.source for x in access.loads(r.body)}) == 1
    cut = _cut(axes) if r.kind == "sum" and total.dtype.is_float and not in_order else None
    if cut is None:
        return _around(axes, [Store(total, (), apply(REDUCTIONS[r.kind], load(total, ()), value))])
    at, width = cut
    outer, a, inside = axes[:at], axes[at], axes[at + 1 :]

    def block(start: Expr, n: int) -> list[Stmt]:
        part = Buffer(f"{total.name}_part", total.dtype, (), "local")
        within = [axis(a.name, n)] if n > 1 else []
        term = substitute(value, {a: start + within[0] if within else start})
        return [
            Alloc(part),
            Store(part, (), const(0, total.dtype)),
            *_around([*within, *inside], [Store(part, (), load(part, ()) + term)]),
            Store(total, (), load(total, ()) + load(part, ())),
        ]

    blocks = axis(a.name if width == 1 else f"{a.name}b", a.extent // width)
    body: list[Stmt] = [For(blocks, tuple(block(blocks * width, width)))]
    rest = (ix.number(a.extent) or 0) % width
    if rest:
        last = axis(f"{a.name}e", 1)
        body.append(For(last, tuple(block((a.extent // width) * width + last, rest))))
    return _around(outer, body)


def _cut(axes: Sequence[Axis]) -> tuple[int, int] | None:
    """Where a sum over nested axes falls into blocks: the axis that is cut, and how many of its positions a
    block takes; None where the sum is short, or one loop of unknown length.
    """
    inside = 1
    for at in range(len(axes) - 1, -1, -1):
        n = ix.number(axes[at].extent)
        size = NOMINAL if n is None else n
        if inside * size > MOST_ADDED:
            fits = 1 if n is None else MOST_ADDED // inside
            near = (*range(fits, fits // 2, -1), *range(fits + 1, 2 * fits + 1))
            width = next((w for w in near if size % w == 0), fits)
            if width < size:
                return at, width
            return (at - 1, 1) if at else None
        inside *= size
    return None


def _around(axes: Sequence[Axis], body: list[Stmt]) -> list[Stmt]:
    for a in reversed(axes):
        body = [For(a, tuple(body))]
    return body


def _copy(to: Buffer, source: Buffer, lead_to: tuple[Expr, ...] = ()) -> list[Stmt]:
    axes = [axis(f"i{k}", n) for k, n in enumerate(source.shape)]
    body: list[Stmt] = [Store(to, (*lead_to, *axes), load(source, axes))]
    for a in reversed(axes):
        body = [For(a, tuple(body))]
    return body


def _scan(s: Scan, memory: _Memory) -> tuple[Stmt, ...]:
    """State in scratch, a serial loop over time, the steps' stages in order inside."""
    body: list[Stmt] = []
    then_of: dict[Tensor, Buffer] = {}
    for c in s.carried:
        memory.buffers[c.now] = Buffer(c.now.name, c.now.dtype, c.now.shape, "scratch")
        body.append(Alloc(memory.buffers[c.now]))
        body.extend(_copy(memory.buffers[c.now], memory.of(c.initial)))
    made = {b.out for b in s.body}
    for b in s.body:
        memory.buffers[b.out] = Buffer(b.out.name, b.out.dtype, b.out.shape, "scratch")
        body.append(Alloc(memory.buffers[b.out]))
    time = axis(s.time.name, s.time.extent)
    step: list[Stmt] = []
    for b in s.body:
        step.extend(_stage(b, {s.time: time}, memory))
    for outer, inner in s.collected:
        step.extend(_copy(memory.of(outer), memory.of(inner), (time,)))
    for k, c in enumerate(s.carried):
        # States may exchange places, so all are read before any is written.
        if c.then in made:
            then_of[c.now] = memory.of(c.then)
        else:
            held = Buffer(f"{c.now.name}_next{k}", c.now.dtype, c.now.shape, "scratch")
            body.append(Alloc(held))
            step.extend(_copy(held, memory.of(c.then)))
            then_of[c.now] = held
    for c in s.carried:
        step.extend(_copy(memory.of(c.now), then_of[c.now]))
    body.append(For(time, tuple(step)))
    for outer, c in s.finals:
        body.extend(_copy(memory.of(outer), memory.of(c.now)))
    return tuple(body)


def _scatter(s: Scatter, memory: _Memory) -> tuple[Stmt, ...]:
    places: dict[Expr, Expr] = {a: axis(a.name, a.extent) for a in (*s.axes, *s.updates)}
    out = memory.of(s.out)
    first: list[Stmt] = [Store(out, tuple(places[a] for a in s.axes), memory.expr(s.initial, places))]
    for a in reversed(s.axes):
        at = places[a]
        assert isinstance(at, Axis)
        first = [For(at, tuple(first))]
    index = tuple(memory.expr(i, places) for i in s.index)
    value = memory.expr(s.value, places)
    if s.kind != "set":
        value = apply(s.kind, load(out, index), value)
    update: list[Stmt] = [If(memory.expr(s.condition, places), (Store(out, index, value),))]
    for a in reversed(s.updates):
        at = places[a]
        assert isinstance(at, Axis)
        update = [For(at, tuple(update))]
    return (*first, *update)


def _extern(s: Extern, memory: _Memory) -> tuple[Stmt, ...]:
    """The loops as they are, over the memory of the tensors."""
    tensors = (*s.outs, *s.reads)
    return with_buffers(s.body, {b: memory.of(t) for b, t in zip(s.arrays, tensors, strict=True)})


def group_reads(group: Group) -> list[Tensor]:
    """The tensors that a group reads from outside itself."""
    own = set(group.outs)
    return list(dict.fromkeys(t for s in group.stages for t in stage_reads(s) if t not in own))
