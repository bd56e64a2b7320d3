"""Rewrites for targets whose compiler vectorises innermost loops alone: bring the contiguous axis inside,
keep its accumulators in a row.

Each rewrite keeps the meaning of what it rewrites, or refuses with a ScheduleError. Iterations of a sunk loop
are independent and run in their old order each, so results keep their bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from fusile.ir import index as ix
from fusile.ir.expr import Apply, Axis, Const, Expr, Load, apply, axis, const, free, load, nodes, substitute
from fusile.ir.loops import (
    Alloc,
    Buffer,
    For,
    If,
    Stmt,
    Store,
    accesses,
    stmt_exprs,
    substitute_stmts,
    walk,
)
from fusile.schedule.rewrites import ScheduleError

Body = tuple[Stmt, ...]


# ---- changing statements -------------------------------------------------------------------------


def change(
    body: Iterable[Stmt], access: Callable[[Buffer, tuple[Expr, ...]], tuple[Buffer, tuple[Expr, ...]]]
) -> Body:
    """The same statements with every access, read or written, put elsewhere. Allocs of moved buffers are the
    caller's business.
    """

    def read(x: Load) -> Expr:
        buffer, index = access(x.source, x.index)
        return load(buffer, index)

    def expr(e: Expr) -> Expr:
        return substitute(e, {}, read)

    out: list[Stmt] = []
    for s in body:
        match s:
            case Store():
                buffer, index = access(s.buffer, tuple(map(expr, s.index)))
                out.append(replace(s, buffer=buffer, index=index, value=expr(s.value)))
            case If():
                out.append(If(expr(s.condition), change(s.body, access)))
            case For():
                out.append(replace(s, body=change(s.body, access)))
            case Alloc():
                out.append(s)
    return tuple(out)


def drop_units(body: Body) -> Body:
    """for i in 1: S(i)  ->  S(0), and a local dimension of extent 1 goes."""
    mapping: dict[Expr, Expr] = {
        s.axis: const(0) for s in walk(body) if isinstance(s, For) and ix.number(s.axis.extent) == 1
    }

    def unwrap(stmts: Iterable[Stmt]) -> Body:
        out: list[Stmt] = []
        for s in stmts:
            match s:
                case For() if s.axis in mapping:
                    out.extend(unwrap(s.body))
                case For() | If():
                    out.append(replace(s, body=unwrap(s.body)))
                case _:
                    out.append(s)
        return tuple(out)

    body = substitute_stmts(unwrap(body), mapping) if mapping else body
    return _squeeze(body)


def _squeeze(body: Body) -> Body:
    """Locals without their dimensions of extent 1."""
    kept: dict[Buffer, tuple[Buffer, tuple[int, ...]]] = {}
    for s in walk(body):
        if isinstance(s, Alloc) and any(ix.number(n) == 1 for n in s.buffer.shape):
            b = s.buffer
            dims = tuple(d for d, n in enumerate(b.shape) if ix.number(n) != 1)
            kept[b] = (Buffer(b.name, b.dtype, tuple(b.shape[d] for d in dims), b.scope), dims)
    if not kept:
        return body

    def access(b: Buffer, index: tuple[Expr, ...]) -> tuple[Buffer, tuple[Expr, ...]]:
        if b not in kept:
            return b, index
        new, dims = kept[b]
        return new, tuple(index[d] for d in dims)

    return _swap_allocs(change(body, access), {b: new for b, (new, _) in kept.items()})


def _swap_allocs(body: Iterable[Stmt], to: Mapping[Buffer, Buffer]) -> Body:
    out: list[Stmt] = []
    for s in body:
        match s:
            case Alloc():
                out.append(Alloc(to.get(s.buffer, s.buffer)))
            case For() | If():
                out.append(replace(s, body=_swap_allocs(s.body, to)))
            case _:
                out.append(s)
    return tuple(out)


def split(loop: For, width: int) -> For:
    """for i in N: S(i)  ->  for t in ceil(N / w): for l in min(w, N - t w): S(t w + l)"""
    n = loop.axis.extent
    tile = axis(f"{loop.axis.name}_tile", ix.ceil_div(n, width))
    rest = ix.number(n % width)
    extent: Expr = const(width) if rest == 0 else apply("min", const(width), n - tile * width)
    lane = axis("lane", extent)
    return For(
        tile,
        (For(lane, substitute_stmts(loop.body, {loop.axis: tile * width + lane}), loop.kind),),
        loop.kind,
    )


def most(extent: Expr) -> Expr:
    """A bound of a loop's extent that does not depend on other loops."""
    if isinstance(extent, Apply) and extent.op == "min":
        return next((a for a in extent.args if isinstance(a, Const)), extent)
    return extent


# ---- independence --------------------------------------------------------------------------------


def check_independent(loop: For) -> None:
    """Refuse a loop of which two iterations may touch one element that one of them writes.

    Every buffer that the body writes and does not allocate must be accessed, everywhere in the body, so that
    in some dimension the index is c * axis + r with the same c and the same values of outer loops, and with
    0 <= r < c where loops inside vary r.
    """
    own = {s.buffer for s in walk(loop.body) if isinstance(s, Alloc)}
    inner = {s.axis for s in walk(loop.body) if isinstance(s, For)}
    written = {s.buffer for s in walk(loop.body) if isinstance(s, Store)} - own
    places: dict[Buffer, set[tuple[Expr, ...]]] = {}
    for b, index, _ in accesses(loop.body):
        if b in written:
            places.setdefault(b, set()).add(index)
    for b, found in places.items():
        if not any(_moves([i[d] for i in found], loop.axis, inner) for d in range(len(b.shape))):
            raise ScheduleError(f"iterations of {loop.axis.name} may meet in {b.name}")


def _moves(indices: list[Expr], a: Axis, inner: set[Axis]) -> bool:
    """Whether index expressions of one dimension keep the iterations of a loop apart."""
    fixed: set[tuple[int, Expr]] = set()
    for i in indices:
        c = ix.coefficient(i, a)
        step = None if c is None else ix.number(c)
        if not step or step < 0:
            return False
        rest = ix.poly(i - a * step)
        varies = {m: k for m, k in rest.items() if any(x in inner for atom in m for x in free(atom))}
        if varies and not ix.within(ix.expr(varies), const(step)):
            return False
        # Without loops inside, equal remainders keep iterations apart whatever their size.
        fixed.add((step, ix.expr({m: k for m, k in rest.items() if m not in varies})))
    return len(fixed) == 1


def independent(loop: For) -> bool:
    try:
        check_independent(loop)
    except ScheduleError:
        return False
    return True


# ---- sinking -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sink:
    """The distribution of one loop over the statements of its body."""

    loop: For
    wanted: Callable[[For], bool]
    allocated: list[Buffer] = field(default_factory=list)

    def run(self) -> Body:
        out = self.spread(self.loop.body)
        pieces = [s for s in walk(out) if isinstance(s, For) and s.axis is self.loop.axis]
        used = {b: [p for p in pieces if any(x is b for x, _, _ in accesses(p.body))] for b in self.allocated}
        alone = {b for b, where in used.items() if len(where) == 1}
        out = self._home(out, alone)
        return self._expand(out, [b for b in self.allocated if b not in alone])

    def spread(self, body: Iterable[Stmt]) -> Body:
        out: list[Stmt] = []
        run: list[Stmt] = []

        def flush() -> None:
            if run:
                out.append(For(self.loop.axis, tuple(run), self.loop.kind))
                run.clear()

        for s in body:
            match s:
                case Alloc():
                    self.allocated.append(s.buffer)
                    out.append(s)
                case For() if self.wanted(s) and self.loop.axis not in free(s.axis.extent):
                    flush()
                    out.append(replace(s, body=self.spread(s.body)))
                case _:
                    run.append(s)
        flush()
        return tuple(out)

    def _home(self, body: Iterable[Stmt], alone: set[Buffer]) -> Body:
        """Buffers that one piece alone uses stay as they are, inside it."""
        out: list[Stmt] = []
        for s in body:
            match s:
                case Alloc() if s.buffer in alone:
                    pass
                case For() if s.axis is self.loop.axis:
                    mine = dict.fromkeys(b for b, _, _ in accesses(s.body) if b in alone)
                    out.append(replace(s, body=(*(Alloc(b) for b in mine), *s.body)))
                case For():
                    out.append(replace(s, body=self._home(s.body, alone)))
                case _:
                    out.append(s)
        return tuple(out)

    def _expand(self, body: Body, buffers: list[Buffer]) -> Body:
        extent = most(self.loop.axis.extent)
        to = {b: Buffer(b.name, b.dtype, (*b.shape, extent), b.scope) for b in buffers}

        def access(b: Buffer, index: tuple[Expr, ...]) -> tuple[Buffer, tuple[Expr, ...]]:
            return (to[b], (*index, self.loop.axis)) if b in to else (b, index)

        return _swap_allocs(change(body, access), to)


def sink(loop: For, wanted: Callable[[For], bool]) -> Body:
    """Bring a loop inside the loops that are `wanted`, with a row for every local that has to outlive a piece
    of it:

    for j: local a; a = 0; for k: a += f(j, k); y[j] = a
      ->  local a[J]; for j: a[j] = 0;  for k: for j: a[j] += f(j, k);  for j: y[j] = a[j]

    Refuses a loop whose iterations depend on each other.
    """
    check_independent(loop)
    return _Sink(loop, wanted).run()


# ---- invariants ----------------------------------------------------------------------------------


def raise_allocs(body: Body) -> Body:
    """for i: local a[n]; S  ->  local a[n]; for i: S, for arrays whose size does not depend on loops, out of
    serial loops.
    """

    def visit(stmts: Iterable[Stmt], outside: list[Buffer], axes: frozenset[Axis]) -> Body:
        out: list[Stmt] = []
        for s in stmts:
            match s:
                case Alloc() if s.buffer.shape and not any(
                    a in free(n) for n in s.buffer.shape for a in axes
                ):
                    outside.append(s.buffer)
                case For() | If():
                    inside = axes | {s.axis} if isinstance(s, For) else axes
                    out.append(replace(s, body=visit(s.body, outside, inside)))
                case _:
                    out.append(s)
        return tuple(out)

    found: list[Buffer] = []
    rest = visit(body, found, frozenset())
    return (*(Alloc(b) for b in found), *rest)


@dataclass(frozen=True, eq=False, slots=True)
class _Held:
    """An expression that a loop does not change, and the scalar that holds it."""

    buffer: Buffer
    value: Expr


def hoist(body: Body, may_be_empty: Callable[[For], bool]) -> Body:
    """for l: y[l] += x[k] * w[l]  ->  local v = x[k]; for l: y[l] += v * w[l]

    Reads that a loop does not change are made before it, unless the loop writes what they read, they are made
    under a condition, or the loop may have no iterations.
    """
    out, floating = _hoisted(body, may_be_empty)
    assert not floating
    return out


def _hoisted(
    body: Iterable[Stmt], may_be_empty: Callable[[For], bool], loop: For | None = None
) -> tuple[Body, list[_Held]]:
    """The body, and what should be made before the loop around it."""
    out: list[Stmt] = []
    outside: list[_Held] = []
    barred = _changed(loop) if loop is not None else set()
    inside = {s.axis for s in walk(loop.body) if isinstance(s, For)} if loop is not None else set()

    def leaves(e: Expr) -> bool:
        return loop is not None and not _depends(e, {loop.axis, *inside}, barred)

    def pull(e: Expr, certain: bool) -> Expr:
        if loop is None or (isinstance(e, Load) and not e.source.shape):
            return e
        if certain and _reads(e) and leaves(e):
            known = next((h for h in outside if h.value is e), None)
            if known is None:
                known = _Held(Buffer(_hint(e), e.dtype, (), "local"), e)
                outside.append(known)
            return load(known.buffer, ())
        if not e.children or (isinstance(e, Apply) and e.op == "select" and not certain):
            return e
        changed: dict[Expr, Expr] = {}
        for k, c in enumerate(e.children):
            lazy = isinstance(e, Apply) and e.op == "select" and k > 0
            changed[c] = pull(c, certain and not lazy)
        return _with_children(e, changed)

    for s in body:
        match s:
            case For():
                inner, held = _hoisted(s.body, may_be_empty, None if may_be_empty(s) else s)
                for h in held:
                    if leaves(h.value):
                        outside.append(h)
                    else:
                        out += [Alloc(h.buffer), Store(h.buffer, (), h.value)]
                out.append(replace(s, body=inner))
            case If():
                inner, held = _hoisted(s.body, may_be_empty)
                out.append(If(pull(s.condition, True), inner))
            case Store():
                out.append(replace(s, index=tuple(pull(i, True) for i in s.index), value=pull(s.value, True)))
            case _:
                out.append(s)
    return tuple(out), outside


def _with_children(e: Expr, changed: Mapping[Expr, Expr]) -> Expr:
    from fusile.ir.expr import rebuild

    return rebuild(e, tuple(changed[c] for c in e.children))


def _reads(e: Expr) -> bool:
    return any(isinstance(n, Load) and n.source.shape for n in nodes(e))


def _hint(e: Expr) -> str:
    return "at" if e.dtype.kind in "iu" else "v"


def _changed(loop: For) -> set[object]:
    return {s.buffer for s in walk(loop.body) if isinstance(s, (Store, Alloc))}


def _depends(e: Expr, axes: set[Axis], buffers: set[object]) -> bool:
    return any(a in free(e) for a in axes) or any(
        isinstance(n, Load) and n.source in buffers for n in nodes(e)
    )


def statements(body: Body) -> int:
    """How many statements a body has, loops included: a measure of the time that compiling it takes."""
    return sum(1 + sum(len(nodes(e)) for e in stmt_exprs(s)) // 8 for s in walk(body))
