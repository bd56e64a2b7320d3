"""Index arithmetic: integer expressions in a canonical polynomial form, with the proofs that simplification
and access maps need.

A polynomial maps monomials (sorted tuples of atoms) to integer coefficients; atoms are axes, dims and
whatever is not a sum or a product (a quotient, a remainder, a loaded value, …). Equal polynomials are equal
values, so `(i*4 + j) // 4` becomes `i` where j < 4. Proofs take symbolic sizes as at least 1: code under a
loop runs only where no extent is zero.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from fusile.ir.expr import Apply, Axis, Dim, Expr, apply, as_expr, const, raw_apply
from fusile.ir.poly import Monomial, Poly, add, multiply, number, poly, rank, split
from fusile.ir.proofs import (
    above_zero,
    compare,
    extreme,
    mentions,
    never_negative,
    nonnegative,
    positive,
    within,
)
from fusile.ir.types import I64

__all__ = [
    "POLYNOMIAL", "Monomial", "Poly", "above_zero", "add", "arithmetic", "ceil_div", "coefficient", "compare",
    "divide", "expr", "extreme", "multiply", "never_negative", "nonnegative", "number", "poly", "positive",
    "product", "recombined", "split", "within",
]  # fmt: skip

POLYNOMIAL = frozenset({"add", "sub", "mul", "neg", "floordiv", "mod", "div", "rem", "min", "max"})


def expr(p: Mapping[Monomial, int]) -> Expr:
    """The canonical expression of a polynomial."""
    p = recombined(_in_range(p))
    terms = sorted(p.items(), key=lambda t: (-len(t[0]), [rank(a) for a in t[0]]))
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


def recombined(p: Mapping[Monomial, int]) -> Mapping[Monomial, int]:
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
                return recombined(add(out, multiply({tuple(rest): c}, poly(x))))
    return p


_QUOTIENTS = {"mod": "floordiv", "rem": "div"}


def _wanted(p: Mapping[Monomial, int], rest: Monomial, c: int, remainder: Apply) -> Poly | None:
    """The terms of p that are rest * c * d * (x // d), in whichever of its forms they stand there."""
    x, d = remainder.args
    op = _QUOTIENTS[remainder.op]

    def quotient(a: Expr, b: Expr) -> Expr:
        # The truncating forms are what legalisation makes: as they stand.
        return divide(op, a, b) if op == "floordiv" else raw_apply(op, (a, b), I64)

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
            return divide(op, a, b)
        case "div" | "rem":
            if nonnegative(poly(a)) and positive(poly(b)):
                return divide("floordiv" if op == "div" else "mod", a, b)
            return raw_apply(op, args, I64)
    difference = add(poly(a), poly(b), -1)
    if never_negative(difference):
        return b if op == "min" else a
    if never_negative(add({}, difference, -1)):
        return a if op == "min" else b
    return raw_apply(op, args, I64)


@functools.lru_cache(maxsize=1 << 16)
def divide(op: str, a: Expr, b: Expr) -> Expr:
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
        part = divide(op, expr(upper), const((number(b) or 0) // step))
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


# ---- words for other files ---------------------------------------------------------------------------------


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
        elif any(at in x.children or mentions(x, at) for x in monomial):
            return None
    return expr(out)


def _of_dims(e: Expr) -> bool:
    """Whether an atom is a size: made of dims and numbers alone."""
    from fusile.ir.expr import Load, free, nodes

    return isinstance(e, Dim) or (
        all(isinstance(v, Dim) for v in free(e)) and not any(isinstance(n, Load) for n in nodes(e))
    )


def product(values: Iterable[Expr | int]) -> Expr:
    """The product of sizes."""
    out: Poly = {(): 1}
    for v in values:
        out = multiply(out, poly(as_expr(v)))
    return expr(out)


def ceil_div(a: Expr | int, b: Expr | int) -> Expr:
    a, b = as_expr(a), as_expr(b)
    return (a + b - 1) // b
