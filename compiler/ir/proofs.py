"""Proofs about index arithmetic: bounds of polynomials, and what follows from them.

Symbolic sizes are taken as at least 1, and so are the extents of axes: code under a loop runs only where no
extent is zero. A proof that fails says nothing.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Iterable, Mapping

from fusile.ir.expr import Apply, Axis, Dim, Expr, const, free, nodes
from fusile.ir.poly import Monomial, Poly, add, multiply, number, poly, rank, without


@functools.lru_cache(maxsize=1 << 16)
def _bound(atom: Expr, upper: bool) -> Poly | None:
    """A bound of one atom: of an axis in terms of its extent, of others in terms of dims alone; or None."""
    if isinstance(atom, Dim):
        return {(atom,): 1}
    if isinstance(atom, Axis):
        return add(poly(atom.extent), {(): -1}) if upper else {}
    if not isinstance(atom, Apply):
        return None
    a, b = atom.args[0], atom.args[-1]
    if (atom.op == "mod" or (atom.op == "rem" and nonnegative(poly(a)))) and positive(poly(b)):
        return extreme(add(poly(b), {(): -1}), True) if upper else {}
    if atom.op in ("floordiv", "div") and positive(poly(b)):
        return _quotient_bound(atom, upper)
    if atom.op in ("min", "max"):
        bounds = [extreme(poly(x), upper) for x in (a, b)]
        if (atom.op == "min") == upper:
            return _either(bounds, upper)
        if not upper and all(x is not None and _dims_nonnegative(x) for x in bounds):
            return {}
    return None


def _either(bounds: Iterable[Poly | None], upper: bool) -> Poly | None:
    """The better of two bounds that both hold, as far as one can tell: one that is not negative from below,
    else a number."""
    known = [x for x in bounds if x is not None]
    if not upper and any(map(_dims_nonnegative, known)):
        return next(x for x in known if _dims_nonnegative(x))
    numbers = [x for x in known if set(x) <= {()}]
    if numbers:
        pick = min if upper else max
        return pick(numbers, key=lambda x: x.get((), 0))
    return known[0] if known else None


def _quotient_bound(atom: Apply, upper: bool) -> Poly | None:
    """Of a quotient by something positive: a number where there is one."""
    a, b = poly(atom.args[0]), poly(atom.args[1])
    signed = not nonnegative(a)
    if signed and (upper or atom.op == "div"):
        return None
    found = extreme(a, upper)
    if upper and found is not None and set(found) <= {()}:
        return _number(found.get((), 0) // max(1, _least(extreme(b, False)) or 1))
    if not upper and set(b) == {()}:
        least = _least(found)
        if least is not None:
            return _number(least // b[()])
    return found if upper else None if signed else {}


def _least(p: Mapping[Monomial, int] | None) -> int | None:
    """The least value of a polynomial in dims that grows with all of them: for sizes of 1."""
    if p is None or any(c < 0 for m, c in p.items() if m):
        return None
    return sum(p.values())


def _number(n: int) -> Poly:
    return {(): n} if n else {}


def extreme(p: Mapping[Monomial, int], upper: bool) -> Poly | None:
    """A bound of a polynomial in terms of dims alone, or None where none is known."""
    found = _resolved(p, upper, _Quotients.BOUNDED)
    return found if found is not None else _resolved(p, upper, _Quotients.CANCELLED)


_MOST_ATOMS = 64
_MOST_FACTOR = 1 << 20
_MOST_PARTS = 16


class _Quotients(enum.Enum):
    """What becomes of x // d in a bound: its own bound; x / d where a multiple of d stands before it; or that
    after everything has been multiplied by d, which keeps signs only.
    """

    BOUNDED = 0
    CANCELLED = 1
    SCALED = 2


def _resolved(p: Mapping[Monomial, int], upper: bool, how: _Quotients) -> Poly | None:
    """A bound of p (SCALED: of a positive multiple of it) in terms of dims alone, or None.

    One atom after the other gives way to its bound; what cancels meanwhile is gone.
    """
    from fusile.ir import index as ix

    out: Mapping[Monomial, int] | None = p
    factor = 1
    for _ in range(_MOST_ATOMS):
        assert out is not None
        atoms = _atoms(out)
        if not atoms:
            return dict(out)
        turns = {a: (*_turn(a, atoms), rank(a)) for a in atoms}
        atom = min(atoms, key=turns.__getitem__)
        by = _divisor(atom) if how is _Quotients.SCALED else 1
        if factor * by <= _MOST_FACTOR and any(atom in m and c % by for m, c in out.items()):
            out, factor = multiply(out, {(): by}), factor * by
        out = _without_atom(out, atom, upper, how is not _Quotients.BOUNDED)
        if out is None:
            return None
        out = ix.recombined(out)
    return None


def _divisor(atom: Expr) -> int:
    if isinstance(atom, Apply) and atom.op == "floordiv":
        return max(1, number(atom.args[1]) or 1)
    return 1


def _turn(atom: Expr, atoms: Iterable[Expr]) -> tuple[int, int, int]:
    """Quotients of axes before the axes, an axis before those that its extent depends on, quotients of sizes
    last; what is larger before what may be a part of it, coarse quotients before fine ones.
    """
    if not isinstance(atom, Axis):
        return 0 if _over_axes(atom) else 3, -len(nodes(atom)), -_divisor(atom)
    inside = any(b is not atom and isinstance(b, Axis) and mentions(b.extent, atom) for b in atoms)
    return 2 if inside else 1, 0, 0


def _over_axes(e: Expr) -> bool:
    return any(isinstance(x, Axis) for x in free(e))


def _without_atom(p: Mapping[Monomial, int], atom: Expr, upper: bool, cancels: bool) -> Poly | None:
    """A bound of p in which an atom does not occur (a quotient may leave what is divided), or None."""
    out: Poly = {}
    for monomial, c in p.items():
        if atom not in monomial:
            out = add(out, {monomial: c})
            continue
        rest = list(monomial)
        rest.remove(atom)
        # The bound of one factor is one of the product only where no other factor can be negative.
        if not all(map(_never_negative, rest)):
            return None
        above = upper == (c > 0)
        term = _cancelled(atom, tuple(rest), c, above, _atoms(p) - {atom}) if cancels else None
        if term is None:
            bound = _bound(atom, above)
            if bound is None:
                return None
            term = multiply({tuple(rest): c}, bound)
        out = add(out, term)
    return out


@functools.lru_cache(maxsize=1 << 16)
def _never_negative(atom: Expr) -> bool:
    low = _bound(atom, False)
    return low is not None and _dims_nonnegative(low)


def _cancelled(atom: Expr, rest: Monomial, c: int, upper: bool, others: Iterable[Expr]) -> Poly | None:
    """Of d * (x // d), with d > 0: at most x, at least x - (d - 1).

    A part of d will do: g * (x // (g h)) leaves x // h, best one that is among the `others`. None where the
    factor has no part of d in it.
    """
    if not (isinstance(atom, Apply) and atom.op == "floordiv" and positive(poly(atom.args[1]))):
        return None
    x, divisor = atom.args[0], poly(atom.args[1])
    if set(divisor) == {()}:
        return _part_cancelled(x, divisor[()], rest, c, upper, others)
    if len(divisor) != 1:
        return None
    ((by, k),) = divisor.items()
    left = without(rest, by)
    if left is None or c % k:
        return None
    return multiply({left: c // k}, poly(x) if upper else add(poly(x), add(divisor, {(): -1}), -1))


def _part_cancelled(
    x: Expr, d: int, rest: Monomial, c: int, upper: bool, others: Iterable[Expr]
) -> Poly | None:
    """`_cancelled` for a divisor that is a number."""
    from fusile.ir import index as ix

    known = set(others)
    parts = [g for g in range(math.gcd(c, d), 1, -1) if math.gcd(c, d) % g == 0]
    quotients = {g: poly(ix.divide("floordiv", x, const(d // g))) for g in parts[:_MOST_PARTS]}
    whole = next((g for g in quotients if g in (d, abs(c))), None)
    chosen = next((g for g, q in quotients.items() if g != d and _atoms(q) and _atoms(q) <= known), whole)
    if chosen is None:
        return None
    bound = quotients[chosen] if upper else add(quotients[chosen], {(): 1 - chosen})
    return multiply({rest: c // chosen}, bound)


def _atoms(p: Mapping[Monomial, int]) -> set[Expr]:
    return {a for m in p for a in m if not isinstance(a, Dim)}


def _dims_nonnegative(p: Mapping[Monomial, int]) -> bool:
    """Whether a polynomial in dims is >= 0 for all dims >= 1: the signs after putting 1 + d for every dim."""
    if all(c >= 0 for c in p.values()):
        return True
    shifted: Poly = {}
    for monomial, c in p.items():
        term: Poly = {(): c}
        for atom in monomial:
            term = multiply(term, {(): 1, (atom,): 1})
        shifted = add(shifted, term)
    return all(c >= 0 for c in shifted.values())


def nonnegative(p: Mapping[Monomial, int]) -> bool:
    """Whether p >= 0 is provable."""
    return not p or _nonnegative(frozenset(p.items()))


@functools.lru_cache(maxsize=1 << 16)
def _nonnegative(terms: frozenset[tuple[Monomial, int]]) -> bool:
    p = dict(terms)
    for how in _Quotients:
        found = _resolved(p, False, how)
        if found is not None and _dims_nonnegative(found):
            return True
        if how is _Quotients.BOUNDED and not any(_divides(a) for a in _every_atom(p)):
            break
    return False


def _divides(atom: Expr) -> bool:
    return isinstance(atom, Apply) and atom.op == "floordiv"


def _every_atom(p: Mapping[Monomial, int]) -> Iterable[Expr]:
    """The atoms of a polynomial, and those of the extents of its axes."""
    for monomial in p:
        for atom in monomial:
            yield atom
            if isinstance(atom, Axis):
                yield from _every_atom(poly(atom.extent))


def positive(p: Mapping[Monomial, int]) -> bool:
    """Whether p > 0 is provable."""
    return nonnegative(add(p, {(): -1}))


def above_zero(p: Mapping[Monomial, int] | Expr) -> bool:
    """Whether p > 0 even where sizes are 0."""
    low = extreme(poly(p) if isinstance(p, Expr) else p, False)
    return low is not None and low.get((), 0) > 0 and all(c >= 0 for c in low.values())


def never_negative(p: Mapping[Monomial, int]) -> bool:
    """Whether p >= 0 where it may be asked: inside the loops over the axes in it, which run where no size is
    0, or anywhere where there are none.
    """
    if any(isinstance(a, Axis) for a in _every_atom(p)):
        return nonnegative(p)
    low = extreme(p, False)
    return not p or (low is not None and all(c >= 0 for c in low.values()))


def within(index: Expr, extent: Expr) -> bool:
    """Whether 0 <= index < extent is provable."""
    p = poly(index)
    return nonnegative(p) and positive(add(poly(extent), p, -1))


def compare(op: str, a: Expr, b: Expr) -> bool | None:
    """The truth of an i64 comparison, where it is provable."""
    difference = add(poly(b), poly(a), -1)  # b - a
    if op in ("eq", "ne"):
        if set(difference) <= {()}:
            return (difference.get((), 0) == 0) == (op == "eq")
        if above_zero(difference) or above_zero(add({}, difference, -1)):
            return op == "ne"
        if any(isinstance(x, Axis) for m in difference for x in m) and (
            positive(difference) or positive(add({}, difference, -1))
        ):
            return op == "ne"
        return None
    true_if = difference if op == "le" else add(difference, {(): -1})
    if never_negative(true_if):
        return True
    if never_negative(add({(): -1}, true_if, -1)):
        return False
    return None


def mentions(e: Expr, at: Axis) -> bool:
    return at in free(e)
