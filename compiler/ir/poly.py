"""Polynomials: maps from monomials (sorted tuples of atoms) to integer coefficients.

Atoms are axes, dims and whatever is not a sum or a product (a quotient, a remainder, a loaded value, …).
"""

from __future__ import annotations

from collections.abc import Mapping

from fusile.ir.expr import Apply, Axis, Const, Dim, Expr, nodes

Monomial = tuple[Expr, ...]
Poly = dict[Monomial, int]


def rank(atom: Expr) -> tuple[int, str, tuple[int, ...]]:
    """The place of an atom in a monomial. Atoms that read alike are told apart by their axes, in the order in
    which these were made.
    """
    known: tuple[int, str, tuple[int, ...]] | None = atom._rank
    if known is None:
        known = atom._rank = _ranked(atom)
    return known


def _ranked(atom: Expr) -> tuple[int, str, tuple[int, ...]]:
    if isinstance(atom, Dim):
        return (0, atom.name, ())
    if isinstance(atom, Axis):
        return (1, atom.name, (atom.uid,))
    return (2, repr(atom), tuple(x.uid for x in nodes(atom) if isinstance(x, Axis)))


def _times(a: Monomial, b: Monomial) -> Monomial:
    return tuple(sorted(a + b, key=rank)) if a and b else a or b


def add(a: Mapping[Monomial, int], b: Mapping[Monomial, int], scale: int = 1) -> Poly:
    out = dict(a)
    for m, c in b.items():
        total = out.get(m, 0) + scale * c
        if total:
            out[m] = total
        else:
            out.pop(m, None)
    return out


def multiply(a: Mapping[Monomial, int], b: Mapping[Monomial, int]) -> Poly:
    out: Poly = {}
    for m, c in a.items():
        for n, d in b.items():
            out = add(out, {_times(m, n): c * d})
    return out


def poly(e: Expr | int) -> Poly:
    """The polynomial of an i64 expression. The result is shared: do not change it."""
    if isinstance(e, int):
        return {(): e} if e else {}
    if e._poly is not None:
        known: Poly = e._poly
        return known
    if isinstance(e, Const):
        out: Poly = {(): int(e.value)} if e.value else {}
    elif isinstance(e, Apply) and e.op == "add":
        out = add(poly(e.args[0]), poly(e.args[1]))
    elif isinstance(e, Apply) and e.op == "sub":
        out = add(poly(e.args[0]), poly(e.args[1]), -1)
    elif isinstance(e, Apply) and e.op == "mul":
        out = multiply(poly(e.args[0]), poly(e.args[1]))
    elif isinstance(e, Apply) and e.op == "neg":
        out = add({}, poly(e.args[0]), -1)
    else:
        out = {(e,): 1}
    e._poly = out
    return out


def number(e: Expr | int) -> int | None:
    """The value of a constant i64 expression, else None."""
    if isinstance(e, int):
        return e
    return int(e.value) if isinstance(e, Const) else None


def split(p: Mapping[Monomial, int], divisor: Mapping[Monomial, int]) -> tuple[Poly, Poly]:
    """p = whole * divisor + rest, with the terms in `whole` that the divisor divides visibly."""
    if p == divisor:
        return {(): 1}, {}
    if len(divisor) != 1:
        return _long_division(p, divisor)
    ((by, k),) = divisor.items()
    whole: Poly = {}
    rest: Poly = {}
    for monomial, c in p.items():
        left = without(monomial, by)
        if left is not None:
            q, r = divmod(c, k)
            if not monomial and not by:  # a plain number: keep the remainder in 0 .. k-1
                whole, rest = add(whole, {(): q}) if q else whole, add(rest, {(): r}) if r else rest
                continue
            if r == 0:
                whole = add(whole, {left: q})
                continue
        rest = add(rest, {monomial: c})
    return whole, rest


_MOST_STEPS = 64


def _long_division(p: Mapping[Monomial, int], divisor: Mapping[Monomial, int]) -> tuple[Poly, Poly]:
    """`split` by a divisor of several terms: its leading term is divided out of p as long as it occurs."""
    if not divisor:
        return {}, dict(p)
    by = max(divisor, key=_degree)
    k = divisor[by]
    whole: Poly = {}
    rest = dict(p)
    for _ in range(_MOST_STEPS):
        for monomial in sorted(rest, key=_degree, reverse=True):
            left = without(monomial, by)
            if left is not None and rest[monomial] % k == 0:
                quotient = {left: rest[monomial] // k}
                whole, rest = add(whole, quotient), add(rest, multiply(quotient, divisor), -1)
                break
        else:
            return whole, rest
    return {}, dict(p)


def _degree(m: Monomial) -> tuple[int, list[tuple[int, str, tuple[int, ...]]]]:
    return (len(m), [rank(a) for a in m])


def without(monomial: Monomial, by: Monomial) -> Monomial | None:
    """The monomial over `by`, or None where it does not divide."""
    left = list(monomial)
    for atom in by:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)
