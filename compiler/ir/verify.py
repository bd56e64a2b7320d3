"""The promises of the tensor program and of loop kernels, checked. Tests run these after every pass; a broken
promise is an InternalError that names the stage or the kernel. The promises of plans are in
`fusile.ir.verify_plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fusile.ir import index as ix
from fusile.ir.expr import REDUCTIONS, Apply, Axis, Dim, Expr, Load, Reduce, free, loads
from fusile.ir.loops import Alloc, Buffer, For, If, Kernel, Kind, Stmt, Store, stmt_exprs, walk, written
from fusile.ir.tensor import (
    Branch,
    Compute,
    Dependences,
    Extern,
    Loop,
    Program,
    Scan,
    Scatter,
    Stage,
    Tensor,
    stage_reads,
    stage_sizes,
)
from fusile.ir.types import BOOL, I64
from fusile.ir.verify_plan import verify_plan
from fusile.ir.wellformed import check_axes, check_expr, check_size, check_type, fail, named, same_size, shown

__all__ = ["independent", "verify_kernel", "verify_plan", "verify_program"]

_UPDATES = frozenset({"set", "add", "mul", "min", "max"})

# ---- tensor program ------------------------------------------------------------------------------


def verify_program(program: Program) -> None:
    """Check a tensor program: every tensor is defined once and before it is read, every axis and every size
    is bound, types and shapes agree, reductions stand at the root. Raises InternalError.
    """
    _ProgramCheck(program).run()


class _ProgramCheck:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.where = f"program {named(program.name)}"
        self.defined: set[Tensor] = set(program.inputs)
        self.dims: set[Expr] = set()
        self.needs: dict[Tensor, frozenset[Expr]] = {}
        self.dependences = Dependences(program.dim_definitions)

    def run(self) -> None:
        p = self.program
        self._inputs()
        for s in p.stages:
            self._record_needs(s)
        self._dims()
        for s in p.stages:
            self._stage(s)
        if len(p.outputs) != len(p.output_names):
            fail(self.where, f"{len(p.outputs)} outputs have {len(p.output_names)} names")
        for t in p.outputs:
            self._read(t, f"output {named(t.name)}")
        for r in p.requirements:
            where = f"requirement of {named(r.origin)}"
            check_type(r.condition, BOOL, "a requirement", where)
            check_expr(r.condition, self.dims, where)

    def _inputs(self) -> None:
        p = self.program
        if len(self.defined) != len(p.inputs):
            fail(self.where, "a tensor is an input twice")
        self.dims |= {*p.parameters, *(e for t in p.inputs for e in t.shape if isinstance(e, Dim))}
        for t in p.inputs:
            for e in t.shape:
                check_size(e, self.dims, f"input {named(t.name)}")

    def _record_needs(self, s: Stage) -> None:
        """The sizes that working out a tensor takes."""
        own: set[Expr] = set(stage_sizes(s))
        for t in stage_reads(s):
            own |= self.needs.get(t, frozenset())
        for t in s.outs:
            self.needs[t] = frozenset(own)

    def _dims(self) -> None:
        made = {t for s in self.program.stages for t in s.outs} | self.defined
        for d in self.program.dim_definitions:
            where = f"dimension {named(d.dim.name)} of {named(d.origin)}"
            if d.dim in self.dims:
                fail(where, "a size is defined twice")
            check_type(d.value, I64, "a size", where)

            def readable(x: Load, where: str = where) -> None:
                t = x.source
                if not isinstance(t, Tensor) or (t not in made and t.data is None):
                    fail(where, f"{named(t.name)} is read and nothing defines it")
                late = self.needs.get(t, frozenset()) - self.dims
                if late:
                    names = ", ".join(sorted(repr(x) for x in late))
                    fail(
                        where,
                        f"{named(t.name)} is read, which needs sizes that are not known before: {names}",
                    )

            check_expr(d.value, self.dims, where, readable)
            self.dims.add(d.dim)

    def _read(self, t: object, where: str) -> None:
        if not isinstance(t, Tensor):
            fail(where, f"a {type(t).__name__} is read in a tensor program")
        if t not in self.defined and t.data is None:
            fail(where, f"{named(t.name)} is read before it is defined")

    def _stage(self, s: Stage) -> None:
        where = f"stage {', '.join(named(t.name) for t in s.outs)} of {named(s.origin)}"
        for t in self.dependences.of_sizes(s):
            if t not in self.defined and t.data is None:
                fail(where, f"a size is worked out from {named(t.name)}, which is defined later")
        match s:
            case Compute():
                self._compute(s, where, frozenset(), self.defined)
            case Scatter():
                self._scatter(s, where)
            case Scan():
                self._scan(s, where)
            case Branch() | Loop():
                self._control(s, where)
            case Extern():
                self._extern(s, where)
        for t in s.outs:
            if t in self.defined:
                fail(where, f"{named(t.name)} is defined twice")
            if t.data is not None:
                fail(where, f"{named(t.name)} is given with the model and defined by a stage")
            self.defined.add(t)

    def _space(self, out: Tensor, axes: Sequence[Axis], where: str) -> None:
        """Axes run over the shape of what they define."""
        check_axes(axes, where)
        if len(axes) != out.rank:
            fail(where, f"{len(axes)} axes define {named(out.name)} of rank {out.rank}")
        for e, a in zip(out.shape, axes, strict=True):
            check_size(e, self.dims, where)
            if not same_size(e, a.extent):
                fail(where, f"the axis {named(a.name)} runs to {a.extent!r} along an extent of {e!r}")

    def _compute(self, s: Compute, where: str, fixed: frozenset[Expr], defined: set[Tensor]) -> None:
        self._space(s.out, s.axes, where)
        check_type(s.body, s.out.dtype, f"the value of {named(s.out.name)}", where)
        scope: set[Expr] = {*self.dims, *s.axes, *fixed}
        body = s.body
        if isinstance(body, Reduce):
            if body.kind not in REDUCTIONS:
                fail(where, f"{body.kind!r} is no reduction")
            if not body.axes:
                fail(where, "a reduction has no axes")
            check_axes((*s.axes, *body.axes), where)
            for a in body.axes:
                check_size(a.extent, self.dims, where)
            scope |= set(body.axes)
            check_type(body.body, body.dtype, "what is reduced", where)
            body = body.body

        def read(x: Load) -> None:
            if x.source not in defined:
                self._read(x.source, where)

        check_expr(body, scope, where, read)

    def _scatter(self, s: Scatter, where: str) -> None:
        self._space(s.out, s.axes, where)
        check_axes((*s.axes, *s.updates), where)
        for a in s.updates:
            check_size(a.extent, self.dims, where)
        if s.kind not in _UPDATES:
            fail(where, f"{s.kind!r} is no update")
        if len(s.index) != s.out.rank:
            fail(where, f"an update of {named(s.out.name)} of rank {s.out.rank} has {len(s.index)} indices")

        def read(x: Load) -> None:
            self._read(x.source, where)

        check_type(s.initial, s.out.dtype, "the initial value", where)
        check_expr(s.initial, {*self.dims, *s.axes}, where, read)
        check_type(s.value, s.out.dtype, "the value of an update", where)
        check_type(s.condition, BOOL, "the condition of an update", where)
        for i in s.index:
            check_type(i, I64, "the index of an update", where)
        for e in (*s.index, s.value, s.condition):
            check_expr(e, {*self.dims, *s.updates}, where, read)

    def _scan(self, s: Scan, where: str) -> None:
        check_size(s.time.extent, self.dims, where)
        inner = set(self.defined)
        for c in s.carried:
            if c.now in inner:
                fail(where, f"the state {named(c.now.name)} is defined twice")
            self._read(c.initial, where)
            inner.add(c.now)
        reads = set(stage_reads(s))
        for b in s.body:
            self._compute(b, f"{where}, step {named(b.out.name)}", frozenset([s.time]), inner)
            inner.add(b.out)
        for c in s.carried:
            self._inner(c.then, inner, reads, where)
            for t in (c.initial, c.then):
                _alike(c.now, t, t.shape, where)
        states = set(s.carried)
        for outer, t in s.collected:
            self._inner(t, inner, reads, where)
            _alike(outer, t, (s.time.extent, *t.shape), where)
        for outer, c in s.finals:
            if c not in states:
                fail(where, f"{named(outer.name)} is the last value of a state of another scan")
            _alike(outer, c.now, c.now.shape, where)

    def _control(self, s: Branch | Loop, where: str) -> None:
        for t in stage_reads(s):
            self._read(t, where)
        own: frozenset[Expr] = frozenset(s.local) if isinstance(s, Loop) else frozenset()
        for body in s.bodies:
            for d in body.program.parameters:
                if d not in self.dims and d not in own:
                    fail(where, f"a body needs the size {named(d.name)}, which is not known")
            for inner, outer in zip(body.program.inputs[len(body.own) :], body.captured, strict=True):
                _alike(inner, outer, outer.shape, where)
            verify_program(body.program)
        for t in s.outs:
            for e in t.shape:
                check_size(e, {*self.dims, *s.defines}, where)
        if (s.sizes is None) != (not s.defines):
            fail(where, "sizes that are found out have no place")
        if isinstance(s, Loop):
            given = len(s.body.own)
            if given != len(s.initial) or given != len(s.finals):
                fail(where, f"{len(s.initial)} states begin, {given} are handed over, {len(s.finals)} end")
            if s.trip is not None:
                check_size(s.trip, self.dims, where)

    def _extern(self, s: Extern, where: str) -> None:
        """Each buffer of the body is as the tensor that it stands for, reads are not written, and the loops
        are a kernel.
        """
        tensors = (*s.outs, *s.reads)
        if len(s.arrays) != len(tensors):
            fail(where, f"{len(s.arrays)} buffers stand for {len(tensors)} tensors")
        for t, b in zip(tensors, s.arrays, strict=True):
            if b.dtype is not t.dtype or len(b.shape) != t.rank or not all(map(same_size, b.shape, t.shape)):
                fail(where, f"the buffer of {named(t.name)} is no buffer of {shown(t)}", shown(b))
        for t in s.reads:
            self._read(t, where)
        changed = written(s.body) & set(s.arrays[len(s.outs) :])
        if changed:
            fail(where, f"{', '.join(sorted(named(b.name) for b in changed))} is read and written")
        sizes = stage_sizes(s)
        if sizes - self.dims:
            fail(where, f"sizes that nothing defines: {', '.join(sorted(map(repr, sizes - self.dims)))}")
        dims = tuple(sorted(sizes, key=lambda d: d.name))
        verify_kernel(Kernel(where, s.arrays, dims, s.body))

    def _inner(self, t: Tensor, inner: set[Tensor], reads: set[Tensor], where: str) -> None:
        """What a step hands on is its own, or known to be read from outside."""
        if t not in inner and t.data is None:
            fail(where, f"{named(t.name)} is handed on and no step defines it")
        if (t in self.defined or t.data is not None) and t not in reads:
            fail(
                where,
                f"{named(t.name)} is handed on from outside, which the scan does not count among its reads",
            )


def _alike(a: Tensor, b: Tensor, shape: Sequence[Expr], where: str) -> None:
    if a.dtype is not b.dtype:
        fail(where, f"{named(a.name)} of type {a.dtype} takes {named(b.name)} of type {b.dtype}")
    if len(a.shape) != len(shape) or not all(map(same_size, a.shape, shape)):
        fail(where, f"{named(a.name)} has the shape {shown(list(a.shape))}, takes {shown(list(shape))}")


# ---- loop kernels --------------------------------------------------------------------------------


def verify_kernel(kernel: Kernel, proofs: bool = True) -> None:
    """Check a loop kernel: axes are bound by a loop around them, buffers are parameters or allocated in
    scope, indices have a buffer's rank, and loops that are no plain ones have iterations that are provably
    independent. Raises InternalError.

    The proof is conservative: each iteration must stay within elements of its own in every buffer that it
    writes. Without `proofs` independence is taken for granted, as for legalised kernels, whose indices are
    shifts and masks that prove nothing.
    """
    _KernelCheck(kernel, proofs).run()


class _KernelCheck:
    def __init__(self, kernel: Kernel, proofs: bool) -> None:
        self.kernel = kernel
        self.proofs = proofs
        self.where = f"kernel {kernel.name}"
        self.axes: list[Axis] = []
        self.lockstep: list[For] = []
        self.buffers: set[Buffer] = set(kernel.params)
        self.allocated: set[Buffer] = set()
        self.dims: frozenset[Expr] = frozenset(kernel.dims)

    def run(self) -> None:
        k = self.kernel
        if len(self.buffers) != len(k.params) or len(self.dims) != len(k.dims):
            fail(self.where, "a parameter is listed twice")
        for b in k.params:
            if b.scope != "param":
                fail(self.where, f"the parameter {named(b.name)} is {b.scope} memory")
            self._sizes(b)
        self._body(k.body, True)

    def _sizes(self, b: Buffer) -> None:
        for n in b.shape:
            check_size(n, self.dims, f"{self.where}, buffer {named(b.name)}")

    def _body(self, body: Sequence[Stmt], outermost: bool) -> None:
        here: list[Buffer] = []
        for s in body:
            match s:
                case Alloc():
                    self._alloc(s.buffer, here)
                case Store():
                    self._store(s)
                case If():
                    check_type(s.condition, BOOL, "a condition", self.where)
                    self._expr(s.condition)
                    self._body(s.body, False)
                case For():
                    self._for(s, outermost, body)
        self.buffers.difference_update(here)

    def _alloc(self, b: Buffer, here: list[Buffer]) -> None:
        if b in self.allocated or b in self.buffers:
            fail(self.where, f"{named(b.name)} is allocated twice")
        if b.scope not in ("local", "scratch"):
            fail(self.where, f"{named(b.name)} is allocated as {b.scope} memory")
        self._sizes(b)
        if b.scope == "local" and any(ix.number(n) is None for n in b.shape):
            fail(self.where, f"the local {named(b.name)} has no constant shape", shown(b))
        self.allocated.add(b)
        self.buffers.add(b)
        here.append(b)

    def _store(self, s: Store) -> None:
        b = s.buffer
        self._in_scope(b, "written")
        if b.constant:
            fail(self.where, f"{named(b.name)} is constant and written")
        if len(s.index) != len(b.shape):
            fail(self.where, f"{named(b.name)} of rank {len(b.shape)} is written at {len(s.index)} indices")
        check_type(s.value, b.dtype, f"what is stored in {named(b.name)}", self.where)
        for i in s.index:
            check_type(i, I64, f"an index into {named(b.name)}", self.where)
        for e in stmt_exprs(s):
            self._expr(e)

    def _in_scope(self, b: object, verb: str) -> None:
        if not isinstance(b, Buffer):
            fail(self.where, f"a {type(b).__name__} is {verb} in a kernel", shown(b))
        if b not in self.buffers:
            fail(self.where, f"{named(b.name)} is {verb} where it is neither a parameter nor allocated")

    def _expr(self, e: Expr) -> None:
        check_expr(e, {*self.dims, *self.axes}, self.where, lambda x: self._in_scope(x.source, "read"))

    def _for(self, s: For, outermost: bool, beside: Sequence[Stmt]) -> None:
        name = f"the {s.kind.value} loop over {named(s.axis.name)}"
        if s.axis in self.axes:
            fail(self.where, f"{name} is inside another one over the same axis")
        check_type(s.axis.extent, I64, f"the extent of {name}", self.where)
        self._expr(s.axis.extent)
        inside = [x.axis for x in self.lockstep]
        varies = {x.axis for x in self.lockstep} & free(s.axis.extent)
        if inside and (varies or loads(s.axis.extent)):
            fail(
                self.where,
                f"the extent of {name} differs between iterations side by side",
                shown(s.axis.extent),
            )
        match s.kind:
            case Kind.PARALLEL | Kind.BLOCK:
                self._grid(s, name, outermost, beside)
            case Kind.VECTOR | Kind.JAM:
                self._fixed(s, name)
        if s.kind is not Kind.SERIAL and self.proofs:
            independent(s, self.where)
        self.axes.append(s.axis)
        if s.kind in (Kind.VECTOR, Kind.JAM):
            self.lockstep.append(s)
        deeper = s.kind in (Kind.PARALLEL, Kind.BLOCK) and len(s.body) == 1
        self._body(s.body, deeper)
        self.axes.pop()
        if s.kind in (Kind.VECTOR, Kind.JAM):
            self.lockstep.pop()

    def _grid(self, s: For, name: str, outermost: bool, beside: Sequence[Stmt]) -> None:
        if not outermost:
            fail(self.where, f"{name} is not outermost and perfectly nested")
        if any(isinstance(x, Alloc) for x in beside):
            fail(self.where, f"{name} stands beside memory of one task")
        check_size(s.axis.extent, self.dims, f"{self.where}, {name}")

    def _fixed(self, s: For, name: str) -> None:
        count = ix.number(s.axis.extent)
        if count is None or count < 1:
            fail(self.where, f"{name} has no constant extent", shown(s.axis.extent))
        if s.kind is Kind.VECTOR and any(x.kind is Kind.VECTOR for x in self.lockstep):
            fail(self.where, f"{name} is inside another vector loop")


# ---- independence --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Access:
    """An access to a buffer, and the conditions that hold there."""

    buffer: Buffer
    index: tuple[Expr, ...]
    conditions: tuple[Expr, ...]

    def known(self) -> list[ix.Poly]:
        """What is at least 0 there."""
        return [p for c in self.conditions for p in _holds(c)]


def independent(loop: For, where: str) -> None:
    """Raise InternalError unless every iteration of a loop provably stays within elements of its own, in
    every buffer that the loop writes and that is not an iteration's own.
    """
    if ix.number(loop.axis.extent) in (0, 1):
        return
    lockstep = loop.kind in (Kind.VECTOR, Kind.JAM)
    own = {
        s.buffer
        for s in walk(loop.body)
        if isinstance(s, Alloc) and not (lockstep and s.buffer.scope == "scratch")
    }
    changed = written(loop.body)
    inner = {s.axis for s in walk(loop.body) if isinstance(s, For)}
    places: dict[Buffer, list[_Access]] = {}
    for access in _accesses(loop.body, ()):
        if access.buffer in changed and access.buffer not in own:
            places.setdefault(access.buffer, []).append(access)
    for buffer, found in places.items():
        known = [x.known() for x in found]
        views = [list(view) for view in zip(*(x.index for x in found), strict=True)]
        views.append([buffer.address(x.index) for x in found])
        if not any(_apart(view, known, loop.axis, inner, changed) for view in views):
            fail(
                where,
                f"iterations of the {loop.kind.value} loop over {named(loop.axis.name)} may meet in "
                f"{named(buffer.name)}",
                "; ".join(dict.fromkeys(shown(list(x.index)) for x in found)),
            )


def _accesses(body: Iterable[Stmt], conditions: tuple[Expr, ...]) -> Iterator[_Access]:
    for s in body:
        for e in stmt_exprs(s):
            yield from _reads(e, conditions)
        match s:
            case Store():
                yield _Access(s.buffer, s.index, conditions)
            case For():
                yield from _accesses(s.body, conditions)
            case If():
                yield from _accesses(s.body, (*conditions, s.condition))


def _reads(e: Expr, conditions: tuple[Expr, ...]) -> Iterator[_Access]:
    """The reads of an expression; the first arm of a select is read where its condition holds."""
    seen: set[tuple[Expr, tuple[Expr, ...]]] = set()
    pending = [(e, conditions)]
    while pending:
        x, known = pending.pop()
        if (x, known) in seen:
            continue
        seen.add((x, known))
        if isinstance(x, Load):
            yield _Access(x.source, x.index, known)
        if isinstance(x, Apply) and x.op == "select":
            test, yes, no = x.args
            # Only what says something counts: the ways through a chain of selects double with every link.
            says = any(True for _ in _holds(test))
            pending += [(test, known), (yes, (*known, test) if says else known), (no, known)]
        else:
            pending += [(c, known) for c in x.children]


def _holds(condition: Expr) -> Iterator[ix.Poly]:
    """What is at least 0 where a condition holds."""
    if isinstance(condition, Apply) and condition.op == "and":
        for c in condition.args:
            yield from _holds(c)
    elif isinstance(condition, Apply) and condition.op in ("lt", "le") and condition.args[0].dtype is I64:
        a, b = condition.args
        difference = ix.add(ix.poly(b), ix.poly(a), -1)
        yield ix.add(difference, {(): -1}) if condition.op == "lt" else difference


def _apart(
    positions: Sequence[Expr],
    known: Sequence[Sequence[ix.Poly]],
    a: Axis,
    inner: set[Axis],
    changed: set[Buffer],
) -> bool:
    """Whether positions with different values of `a` differ, whatever the values of the inner axes.

    Every position must be o + k a + low + m h, with o, k and m the same for all, 0 <= low < k and
    k a + low < m (as where m is k times the extent of a): then a is a digit of the position.
    """
    found: list[tuple[ix.Poly, ix.Poly, ix.Poly]] = []
    for e in positions:
        parts = _parts(e, a, inner)
        if parts is None or any(x.source in changed for x in loads(e)):
            return False
        found.append(parts)
    factor = found[0][0]
    if any(f != factor for f, _, _ in found):  # where it is not positive, no low is below it
        return False
    shared = {m: c for m, c in found[0][1].items() if all(o.get(m) == c for _, o, _ in found)}
    rests = [ix.add(ix.add(rest, outer), shared, -1) for _, outer, rest in found]
    first = min(rest.get((), 0) for rest in rests)
    rests = [ix.add(rest, {(): -first}) for rest in rests]
    span = ix.multiply(factor, ix.poly(a.extent))
    digit = ix.multiply(factor, {(a,): 1})
    return any(
        all(
            _is_digit(rest, factor, digit, m, m is span, holds)
            for rest, holds in zip(rests, known, strict=True)
        )
        for m in (span, *_strides(rests, inner))
    )


def _is_digit(
    rest: ix.Poly, factor: ix.Poly, digit: ix.Poly, modulus: ix.Poly, fits: bool, known: Sequence[ix.Poly]
) -> bool:
    """Whether what multiples of `modulus` leave of `rest` is at least 0 and below `factor`, and together with
    the digit below the modulus (`fits`: it is).
    """
    _, low = ix.split(rest, modulus)
    above = ix.add(low, {(): 1})
    return (
        _at_least_0(low, known)
        and _at_least_0(ix.add(factor, above, -1), known)
        and (fits or _at_least_0(ix.add(ix.add(modulus, digit, -1), above, -1), known))
    )


def _strides(rests: Iterable[ix.Poly], inner: set[Axis]) -> list[ix.Poly]:
    """The factors of inner axes: what a multiple of the span may be."""
    found: list[ix.Poly] = []
    for rest in rests:
        for b in sorted(
            {x for m in rest for x in m if x in inner and isinstance(x, Axis)}, key=lambda x: x.uid
        ):
            stride = ix.coefficient(ix.expr(rest), b)
            if stride is not None and ix.poly(stride) not in found:
                found.append(ix.poly(stride))
    return found


def _at_least_0(p: ix.Poly, known: Iterable[ix.Poly]) -> bool:
    return ix.nonnegative(p) or any(ix.nonnegative(ix.add(p, k, -1)) for k in known)


def _parts(e: Expr, a: Axis, inner: Iterable[Axis]) -> tuple[ix.Poly, ix.Poly, ix.Poly] | None:
    """(k, o, r) with e = o + k a + r, where o depends on neither `a` nor the inner axes and r holds the rest
    and the plain number; None where e is not linear in a.
    """
    factor: ix.Poly = {}
    outer: ix.Poly = {}
    rest: ix.Poly = {}
    within = frozenset(inner)
    for monomial, c in ix.poly(e).items():
        names: frozenset[Expr] = frozenset().union(*(free(x) for x in monomial)) if monomial else frozenset()
        if a in monomial:
            left = list(monomial)
            left.remove(a)
            if any(a in free(x) or free(x) & within for x in left):
                return None
            factor = ix.add(factor, {tuple(left): c})
        elif a in names:
            return None
        elif names & within or not monomial:
            rest = ix.add(rest, {monomial: c})
        else:
            outer = ix.add(outer, {monomial: c})
    return factor, outer, rest
