"""Index arithmetic: integer expressions in a canonical polynomial form, with the proofs that simplification
and access maps need.

A polynomial maps monomials (sorted tuples of atoms) to integer coefficients; atoms are axes, dims and
whatever is not a sum or a product (a quotient, a remainder, a loaded value, …). Equal polynomials are equal
values, so `(i*4 + j) // 4` becomes `i` where j < 4. Proofs take symbolic sizes as at least 1: code under a
loop runs only where no extent is zero.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Mapping

from fusile.ir.expr import Apply, Axis, Const, Dim, Expr, apply, as_expr, const, raw_apply
from fusile.ir.types import I64

Monomial = tuple[Expr, ...]
Poly = dict[Monomial, int]
POLYNOMIAL = frozenset({"add", "sub", "mul", "neg", "floordiv", "mod", "div", "rem", "min", "max"})


def _rank(atom: Expr) -> tuple[int, str, tuple[int, ...]]:
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
    from fusile.ir.expr import nodes

    return (2, repr(atom), tuple(x.uid for x in nodes(atom) if isinstance(x, Axis)))


def _times(a: Monomial, b: Monomial) -> Monomial:
    return tuple(sorted(a + b, key=_rank)) if a and b else a or b


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


def expr(p: Mapping[Monomial, int]) -> Expr:
    """The canonical expression of a polynomial."""
    p = _recombined(_in_range(p))
    terms = sorted(p.items(), key=lambda t: (-len(t[0]), [_rank(a) for a in t[0]]))
    out: Expr | None = None
    for monomial, c in terms:
        term: Expr | None = None
        for atom in monomial:
            term = atom if term is None else raw_apply("mul", (term, atom), I64)
        if term is None:
            term = const(c)
        elif c != 1:
            term = raw_apply("mul", (term, const(c)), I64)
        out = term if out is None else raw_apply("add", (out, term), I64)
    if out is None:
        return const(0)
    if out._poly is None:
        out._poly = dict(p)
    return out


def _in_range(p: Mapping[Monomial, int]) -> Mapping[Monomial, int]:
    """The same value with all factors in i64, where arithmetic wraps."""
    if all(-(1 << 63) <= c < 1 << 63 for c in p.values()):
        return p
    wrapped = {m: (c + (1 << 63)) % (1 << 64) - (1 << 63) for m, c in p.items()}
    return {m: c for m, c in wrapped.items() if c}


def _recombined(p: Mapping[Monomial, int]) -> Mapping[Monomial, int]:
    """d * (x // d) + x mod d  ->  x, and d * (x / d) + x rem d  ->  x, where d > 0"""
    for monomial, c in p.items():
        for atom in monomial:
            if not (isinstance(atom, Apply) and atom.op in _QUOTIENTS and positive(poly(atom.args[1]))):
                continue
            x = atom.args[0]
            rest = list(monomial)
            rest.remove(atom)
            wanted = _wanted(p, tuple(rest), c, atom)
            if wanted is not None:
                out = add(add(p, wanted, -1), {monomial: c}, -1)
                return _recombined(add(out, multiply({tuple(rest): c}, poly(x))))
    return p


_QUOTIENTS = {"mod": "floordiv", "rem": "div"}


def _wanted(p: Mapping[Monomial, int], rest: Monomial, c: int, remainder: Apply) -> Poly | None:
    """The terms of p that are rest * c * d * (x // d), in whichever of its forms they stand there."""
    x, d = remainder.args
    op = _QUOTIENTS[remainder.op]

    def quotient(a: Expr, b: Expr) -> Expr:
        # The truncating forms are what legalisation makes: as they stand.
        return _divide(op, a, b) if op == "floordiv" else raw_apply(op, (a, b), I64)

    wanted = multiply({rest: c}, multiply(poly(quotient(x, d)), poly(d)))
    if wanted and all(p.get(m) == k for m, k in wanted.items()):
        return wanted
    beside = multiply({rest: c}, poly(d))
    for monomial, k in p.items():
        for atom in monomial:
            if not (isinstance(atom, Apply) and atom.op == op):
                continue
            others = list(monomial)
            others.remove(atom)
            factor, left = split(poly(atom.args[1]), poly(d))
            # y // (g d) is (y // g) // d, and y // g may be written as x is.
            if (
                beside == {tuple(others): k}
                and factor
                and not left
                and quotient(atom.args[0], expr(factor)) is x
            ):
                return {monomial: k}
    return None


def arithmetic(op: str, args: tuple[Expr, ...]) -> Expr:
    """An i64 operation out of POLYNOMIAL, simplified."""
    if op == "neg":
        return expr(add({}, poly(args[0]), -1))
    a, b = args
    match op:
        case "add":
            return expr(add(poly(a), poly(b)))
        case "sub":
            return expr(add(poly(a), poly(b), -1))
        case "mul":
            return expr(multiply(poly(a), poly(b)))
        case "floordiv" | "mod":
            return _divide(op, a, b)
        case "div" | "rem":
            if nonnegative(poly(a)) and positive(poly(b)):
                return _divide("floordiv" if op == "div" else "mod", a, b)
            return raw_apply(op, args, I64)
    difference = add(poly(a), poly(b), -1)
    if nonnegative(difference):
        return b if op == "min" else a
    if nonnegative(add({}, difference, -1)):
        return a if op == "min" else b
    return raw_apply(op, args, I64)


@functools.lru_cache(maxsize=1 << 16)
def _divide(op: str, a: Expr, b: Expr) -> Expr:
    divisor = poly(b)
    if not positive(divisor):
        return raw_apply(op, (a, b), I64)
    if divisor == {(): 1}:
        return a if op == "floordiv" else const(0)
    whole, rest = split(poly(a), divisor)
    small = nonnegative(rest) and positive(add(divisor, rest, -1))
    if op == "mod" and small:
        return expr(rest)
    if small:
        return expr(whole)
    digits = _digits(rest, number(b))
    if digits is not None:
        step, upper, lower = digits
        part = _divide(op, expr(upper), const((number(b) or 0) // step))
        if op == "mod":
            return expr(add(multiply({(): step}, poly(part)), lower))
        return expr(add(whole, poly(part)))
    if op == "mod":
        return raw_apply("mod", (expr(rest), b), I64)
    nested = _quotient_and_number(rest)
    if nested is not None:
        inner, c = nested
        tail = apply("floordiv", inner.args[0] + c * inner.args[1], inner.args[1] * b)
    else:
        tail = raw_apply("floordiv", (expr(rest), b), I64)
    return expr(add(whole, poly(tail)))


def _quotient_and_number(p: Mapping[Monomial, int]) -> tuple[Apply, int] | None:
    """(q, c) where p is q + c, a quotient by something positive and a number: (x // d + c) // e is
    (x + c d) // (d e).
    """
    terms = [(m, c) for m, c in p.items() if m]
    if len(terms) != 1 or terms[0][1] != 1 or len(terms[0][0]) != 1:
        return None
    atom = terms[0][0][0]
    if not (isinstance(atom, Apply) and atom.op == "floordiv" and positive(poly(atom.args[1]))):
        return None
    return atom, p.get((), 0)


def _digits(p: Mapping[Monomial, int], divisor: int | None) -> tuple[int, Poly, Poly] | None:
    """p as step * upper + lower with 0 <= lower < step, where step > 1 divides the divisor: the largest such
    step. Then p // divisor is upper // (divisor / step), and p mod divisor is step * (upper mod …) + lower.
    """
    if divisor is None:
        return None
    for step in sorted({abs(c) for m, c in p.items() if m and abs(c) > 1 and divisor % c == 0}, reverse=True):
        if step == divisor:
            continue
        upper, lower = split(p, {(): step})
        if upper and nonnegative(lower) and positive(add({(): step}, lower, -1)):
            return step, upper, lower
    return None


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
        left = _without(monomial, by)
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
            left = _without(monomial, by)
            if left is not None and rest[monomial] % k == 0:
                quotient = {left: rest[monomial] // k}
                whole, rest = add(whole, quotient), add(rest, multiply(quotient, divisor), -1)
                break
        else:
            return whole, rest
    return {}, dict(p)


def _degree(m: Monomial) -> tuple[int, list[tuple[int, str, tuple[int, ...]]]]:
    return (len(m), [_rank(a) for a in m])


def _without(monomial: Monomial, by: Monomial) -> Monomial | None:
    """The monomial over `by`, or None where it does not divide."""
    left = list(monomial)
    for atom in by:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left)


# ---- proofs ------------------------------------------------------------------------------------------------


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
    out: Mapping[Monomial, int] | None = p
    factor = 1
    for _ in range(_MOST_ATOMS):
        assert out is not None
        atoms = {a for m in out for a in m if not isinstance(a, Dim)}
        if not atoms:
            return dict(out)
        turns = {a: (*_turn(a, atoms), _rank(a)) for a in atoms}
        atom = min(atoms, key=turns.__getitem__)
        by = _divisor(atom) if how is _Quotients.SCALED else 1
        if factor * by <= _MOST_FACTOR and any(atom in m and c % by for m, c in out.items()):
            out, factor = multiply(out, {(): by}), factor * by
        out = _without_atom(out, atom, upper, how is not _Quotients.BOUNDED)
        if out is None:
            return None
        out = _recombined(out)
    return None


def _divisor(atom: Expr) -> int:
    if isinstance(atom, Apply) and atom.op == "floordiv":
        return max(1, number(atom.args[1]) or 1)
    return 1


def _turn(atom: Expr, atoms: Iterable[Expr]) -> tuple[int, int, int]:
    """Quotients of axes before the axes, an axis before those that its extent depends on, quotients of sizes
    last; what is larger before what may be a part of it, coarse quotients before fine ones.
    """
    from fusile.ir.expr import nodes

    if not isinstance(atom, Axis):
        return 0 if _over_axes(atom) else 3, -len(nodes(atom)), -_divisor(atom)
    inside = any(b is not atom and isinstance(b, Axis) and _mentions(b.extent, atom) for b in atoms)
    return 2 if inside else 1, 0, 0


def _over_axes(e: Expr) -> bool:
    from fusile.ir.expr import free

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
        term = _cancelled(atom, tuple(rest), c, above) if cancels else None
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


def _cancelled(atom: Expr, rest: Monomial, c: int, upper: bool) -> Poly | None:
    """Of d * (x // d), with d > 0: at most x, at least x - (d - 1). A part of d, as in g * (x // (g h)),
    leaves x // h. None for another product.
    """
    if not (isinstance(atom, Apply) and atom.op == "floordiv" and positive(poly(atom.args[1]))):
        return None
    divisor = poly(atom.args[1])
    if len(divisor) != 1:
        return None
    ((by, k),) = divisor.items()
    left = _without(rest, by)
    x = poly(atom.args[0])
    part = abs(c)
    if not by and c % k and k % part == 0 and part > 1:
        quotient = poly(_divide("floordiv", atom.args[0], const(k // part)))
        return multiply({rest: c // part}, quotient if upper else add(quotient, {(): 1 - part}))
    if left is None or c % k:
        return None
    return multiply({left: c // k}, x if upper else add(x, add(divisor, {(): -1}), -1))


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
    if nonnegative(true_if):
        return True
    if positive(add({}, true_if, -1)):
        return False
    return None


# ---- words for other files ---------------------------------------------------------------------------------


def number(e: Expr | int) -> int | None:
    """The value of a constant i64 expression, else None."""
    if isinstance(e, int):
        return e
    return int(e.value) if isinstance(e, Const) else None


def coefficient(e: Expr, at: Axis) -> Expr | None:
    """The factor of an axis in an index expression: a constant, a product of sizes, or None where it is not
    linear in the axis.
    """
    out: Poly = {}
    for monomial, c in poly(e).items():
        if at in monomial:
            rest = list(monomial)
            rest.remove(at)
            if any(not _of_dims(x) for x in rest):
                return None
            out = add(out, {tuple(rest): c})
        elif any(at in x.children or _mentions(x, at) for x in monomial):
            return None
    return expr(out)


def _of_dims(e: Expr) -> bool:
    """Whether an atom is a size: made of dims and numbers alone."""
    from fusile.ir.expr import Load, free, nodes

    return isinstance(e, Dim) or (
        all(isinstance(v, Dim) for v in free(e)) and not any(isinstance(n, Load) for n in nodes(e))
    )


def _mentions(e: Expr, at: Axis) -> bool:
    from fusile.ir.expr import free

    return at in free(e)


def product(values: Iterable[Expr | int]) -> Expr:
    """The product of sizes."""
    out: Poly = {(): 1}
    for v in values:
        out = multiply(out, poly(as_expr(v)))
    return expr(out)


def ceil_div(a: Expr | int, b: Expr | int) -> Expr:
    a, b = as_expr(a), as_expr(b)
    return (a + b - 1) // b
