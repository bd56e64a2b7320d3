"""Rewrites of loops. Each keeps the meaning of what it rewrites, or refuses with a ScheduleError.

A loop here is a `For` statement; a rewrite answers the statements that take its place. Data loops (whose
iterations write different elements) may be split, reordered, jammed and vectorised; accumulation loops keep
their order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

from fusile.errors import InternalError
from fusile.ir import index as ix
from fusile.ir.expr import Apply, Axis, Const, Expr, Load, as_expr, axis, const, free, nodes, substitute
from fusile.ir.loops import (
    Alloc,
    Buffer,
    For,
    If,
    Kind,
    Stmt,
    Store,
    accesses,
    map_exprs,
    stmt_exprs,
    substitute_stmts,
    walk,
    written,
)
from fusile.ir.verify import independent


class ScheduleError(Exception):
    """A rewrite that would change the meaning; says which loop and why."""


Body = tuple[Stmt, ...]


def place(body: Body, at: Axis, value: Expr) -> Body:
    """The body for one value of an axis, simplified, with loops and locals of its own."""
    return substitute_stmts(body, {at: value})


def split(loop: For, factor: int, outer: Kind = Kind.SERIAL, inner: Kind = Kind.SERIAL) -> Body:
    """for i in N: S(i)  ->  for io in N // f: for ii in f: S(io * f + ii);  for ir in N mod f: S((N // f) * f
    + ir)

    The second loop is left out where f divides N.
    """
    n = loop.axis.extent
    name = loop.axis.name
    out: list[Stmt] = []
    whole, rest = n // factor, n % factor
    if ix.number(whole) != 0:
        io, ii = axis(f"{name}o", whole), axis(f"{name}i", factor)
        out.append(For(io, (For(ii, place(loop.body, loop.axis, io * factor + ii), inner),), outer))
    if ix.number(rest) != 0:
        ir = axis(f"{name}r", rest)
        out.append(For(ir, place(loop.body, loop.axis, whole * factor + ir), loop.kind))
    return tuple(out)


def vectorise(loop: For, lanes: int, jam: int) -> Body:
    """for i in N: S(i)  ->  for io in N // (jam lanes): jam j: vector l: S((io jam + j) lanes + l), then what
    is left over.

    What is left over is one register tile under a mask where N is a number, and a loop of masked vectors
    where it is not. Refuses a loop whose iterations may touch the same element.
    """
    check_independent(loop)
    n = loop.axis.extent
    known = ix.number(n)
    if known is not None and known <= lanes and known & (known - 1) == 0:
        if known == 1:
            return place(loop.body, loop.axis, const(0))
        lane = axis("lane", known)
        return (For(lane, place(loop.body, loop.axis, lane), Kind.VECTOR),)
    if known is not None:
        jam = max(1, min(jam, known // lanes))
    step = lanes * jam
    whole, rest = n // step, n % step
    out: list[Stmt] = []
    if ix.number(whole) != 0:
        io = axis(f"{loop.axis.name}o", whole)
        out.append(For(io, tile(loop, lambda at: io * step + at, lanes, jam, None)))
    if ix.number(rest) != 0:
        left = ix.number(rest)
        if left is not None:
            out.extend(
                tile(
                    loop, lambda at: whole * step + at, lanes, -(-left // lanes), n if left % lanes else None
                )
            )
        else:
            ir = axis(f"{loop.axis.name}r", ix.ceil_div(rest, lanes))
            out.append(For(ir, tile(loop, lambda at: whole * step + ir * lanes + at, lanes, 1, n)))
    return tuple(out)


def tile(loop: For, position: Callable[[Expr], Expr], lanes: int, jam: int, limit: Expr | None) -> Body:
    """jam j in J: vector l in L: if position < limit: S(position(j L + l))"""
    lane = axis("lane", lanes)
    j = axis(f"{loop.axis.name}j", jam)
    at = position(j * lanes + lane) if jam > 1 else position(lane)
    body = place(loop.body, loop.axis, at)
    if limit is not None:
        body = (If(at < limit, body),)
    body = (For(lane, body, Kind.VECTOR),)
    return (For(j, body, Kind.JAM),) if jam > 1 else body


def collapse(outer: For) -> For | None:
    """for i in N: for j in M: S(i, j)  ->  for f in N M: S(f // M, f mod M), where every access is linear in
    f; None where one is not.
    """
    if len(outer.body) != 1 or not isinstance(outer.body[0], For) or outer.kind is not outer.body[0].kind:
        return None
    inner = outer.body[0]
    if outer.axis in free(inner.axis.extent):
        return None
    m = inner.axis.extent
    f = axis(outer.axis.name + inner.axis.name, outer.axis.extent * m)
    if ix.number(inner.axis.extent) == 1:
        return For(f, substitute_stmts(inner.body, {outer.axis: f, inner.axis: const(0)}), outer.kind)
    body = substitute_stmts(inner.body, {outer.axis: f // m, inner.axis: f % m})
    for s in walk(body):
        for e in (s.value,) if isinstance(s, Store) else stmt_exprs(s):
            if not _linear_outside_reads(e, f):
                return None
    for buffer, index, _ in accesses(body):
        if not buffer.shape:
            continue
        address = buffer.address(index)
        if f in free(address) and ix.coefficient(address, f) is None:
            return None
    return For(f, body, outer.kind)


def _linear_outside_reads(e: Expr, f: Axis) -> bool:
    """Whether an axis occurs in the value of an expression only inside the indices of reads (conditions on
    digits would be slow).
    """
    if e is f:
        return False
    if isinstance(e, Load) or not e.children:
        return True
    return all(_linear_outside_reads(c, f) for c in e.children)


def reorder(loops: Sequence[Axis], wanted: Sequence[Axis]) -> tuple[Axis, ...]:
    """A permutation of perfectly nested data loops; refuses where an extent depends on another loop."""
    if set(loops) != set(wanted):
        raise ScheduleError("reorder needs the same loops")
    for a in loops:
        if any(b in free(a.extent) for b in loops):
            raise ScheduleError(f"the extent of {a.name} depends on another loop")
    return tuple(wanted)


def partition(loop: For, at: Sequence[int]) -> Body:
    """for i in N: S(i)  ->  for i in b1: S(i); for i in b2 - b1: S(b1 + i); …  for boundaries 0 < b1 < b2 < …
    < N.
    """
    n = ix.number(loop.axis.extent)
    assert n is not None
    bounds = [0, *sorted(b for b in set(at) if 0 < b < n), n]
    out: list[Stmt] = []
    for low, high in itertools.pairwise(bounds):
        i = axis(loop.axis.name, high - low)
        out.append(For(i, place(loop.body, loop.axis, as_expr(low) + i), loop.kind))
    return tuple(out)


def boundaries(loop: For) -> list[int]:
    """The values of an axis at which conditions in the body change, where conditions compare the axis with a
    number.
    """
    found: set[int] = set()
    for s in walk(loop.body):
        for e in stmt_exprs(s):
            for n in nodes(e):
                if isinstance(n, Apply) and n.op in ("lt", "le") and loop.axis in free(n):
                    p = ix.add(
                        ix.poly(n.args[1]), ix.poly(n.args[0]), -1
                    )  # true where p > 0 (lt) or p >= 0 (le)
                    c = p.get((loop.axis,))
                    if c in (1, -1) and set(p) <= {(), (loop.axis,)}:
                        k = p.get((), 0)
                        if c == -1:  # k - i > 0
                            found.add(k if n.op == "lt" else k + 1)
                        else:  # i + k > 0
                            found.add(1 - k if n.op == "lt" else -k)
    return sorted(found)


def check_independent(loop: For) -> None:
    """Refuse a loop in which two iterations may write one element, or one reads what another writes
    (accumulators of its own aside).
    """
    own: set[Buffer] = {s.buffer for s in walk(loop.body) if isinstance(s, Alloc)}
    for s in walk(loop.body):
        if isinstance(s, Store) and s.buffer not in own and not moves(s, loop.axis):
            raise ScheduleError(f"iterations of {loop.axis.name} write one element of {s.buffer.name}")
    if _crosses(loop, own):
        try:
            independent(loop, "schedule")
        except InternalError as e:
            raise ScheduleError(e.what) from None


def _crosses(loop: For, own: set[Buffer]) -> bool:
    """Whether a loop touches a buffer that it writes at several places, which takes a proof."""
    places: dict[Buffer, set[tuple[Expr, ...]]] = {}
    for b, index, _ in accesses(loop.body):
        if b not in own:
            places.setdefault(b, set()).add(index)
    return any(len(places[b]) > 1 for b in written(loop.body) if b not in own)


def moves(s: Store, a: Axis) -> bool:
    """Whether a store goes to a different element for every value of an axis."""
    if not s.buffer.shape:
        return False
    c = ix.coefficient(s.buffer.address(s.index), a)
    return c is not None and ix.number(c) != 0


def stride(buffer: Buffer, index: tuple[Expr, ...], a: Axis) -> int | None:
    """The stride of an access along an axis: a number of elements, or None where it is none."""
    if not buffer.shape:
        return 0
    address = buffer.address(index)
    if a not in free(address):
        return 0
    c = ix.coefficient(address, a)
    return None if c is None else ix.number(c)


def simplify(body: Body) -> Body:
    """Conditions known to hold are dropped, loops of one iteration put in place, empty loops left out."""
    out: list[Stmt] = []
    for s in map_exprs(body, lambda e: substitute(e, {})):
        match s:
            case If(condition=Const(value=value)):
                out.extend(simplify(s.body) if value else ())
            case If():
                out.append(If(s.condition, simplify(s.body)))
            case For():
                n = ix.number(s.axis.extent)
                if n == 0:
                    continue
                if n == 1 and s.kind is not Kind.VECTOR and not any(isinstance(x, Alloc) for x in s.body):
                    out.extend(simplify(place(s.body, s.axis, const(0))))
                else:
                    out.append(replace(s, body=simplify(s.body)))
            case _:
                out.append(s)
    return tuple(out)
