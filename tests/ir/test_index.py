"""Index arithmetic: what is simplified has the same value, and what is proven is true, for sizes of 1 too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusile.ir import index as ix
from fusile.ir.expr import Axis, Const, Dim, Expr, Guard, apply, axis, const, dim, guard
from fusile.ir.interpret import evaluate

Tree = tuple[Any, ...]
Values = dict[Expr, int]

N, M = dim("n"), dim("m")
AXES: tuple[Axis, ...] = (
    axis("a", 4),
    axis("b", 6),
    axis("c", N),
    axis("d", M),
    axis("e", N * M),
    axis("f", ix.ceil_div(N, 4)),
    axis("g", N + 2),
    axis("h", 1),
)
OPS = ("add", "sub", "mul", "floordiv", "mod", "div", "rem", "min", "max")


def _truncated(a: int, b: int) -> int:
    return 0 if b == 0 else (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)


MEANING = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b if b else 0,
    "mod": lambda a, b: a % b if b else 0,
    "div": _truncated,
    "rem": lambda a, b: a - b * _truncated(a, b) if b else 0,
    "min": min,
    "max": max,
}

leaves = st.one_of(
    st.integers(-9, 17).map(lambda c: ("const", c)),
    st.sampled_from(AXES).map(lambda a: ("leaf", a)),
    st.sampled_from((N, M)).map(lambda d: ("leaf", d)),
)


def _grown(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    divisors = st.one_of(st.integers(1, 9).map(lambda c: ("const", c)), st.just(("leaf", N)), children)
    return st.one_of(
        st.tuples(st.sampled_from(("add", "sub", "mul", "min", "max")), children, children),
        st.tuples(st.sampled_from(("floordiv", "mod", "div", "rem")), children, divisors),
    )


trees = st.recursive(leaves, _grown, max_leaves=8)
linear = st.recursive(
    leaves,
    lambda children: st.tuples(st.sampled_from(("add", "sub", "mul")), children, children),
    max_leaves=6,
)
numbers = st.sampled_from((2, 3, 4, 16))


@st.composite
def tiled(draw: st.DrawFn) -> Tree:
    """A number cut into tiles, as schedules do: multiples of quotients, remainders, and what is between."""
    x, k = draw(st.one_of(leaves, linear)), ("const", draw(numbers))
    whole, rest = ("floordiv", x, k), ("mod", x, k)
    parts = [
        whole,
        rest,
        ("mul", whole, k),
        ("sub", x, ("mul", whole, k)),
        ("floordiv", rest, ("const", draw(numbers))),
    ]
    a, b = draw(st.sampled_from(parts)), draw(st.one_of(st.sampled_from([*parts, x]), leaves))
    return (draw(st.sampled_from(("add", "sub"))), ("mul", ("const", draw(st.integers(-3, 3))), a), b)


anything = st.one_of(trees, tiled())


def built(t: Tree) -> Expr:
    match t:
        case ("const", c):
            return const(c)
        case ("leaf", e):
            return e  # type: ignore[no-any-return]
        case (op, a, b):
            return apply(op, built(a), built(b))
    raise AssertionError(t)


def meaning(t: Tree, values: Mapping[Expr, int]) -> int:
    match t:
        case ("const", c):
            return int(c)
        case ("leaf", e):
            return values[e]
        case (op, a, b):
            return MEANING[op](meaning(a, values), meaning(b, values))
    raise AssertionError(t)


@st.composite
def assignments(draw: st.DrawFn) -> Values:
    """Sizes of at least 1, and axes within their extents."""
    values: Values = {d: draw(st.integers(1, 9)) for d in (N, M)}
    for a in AXES:
        values[a] = draw(st.integers(0, valued(a.extent, values) - 1))
    return values


def valued(e: Expr, values: Mapping[Expr, int]) -> int:
    return int(evaluate(e, {k: np.int64(v) for k, v in values.items()}, lambda *_: None))


samples = st.lists(assignments(), min_size=1, max_size=6)
more = settings(max_examples=150, deadline=None)


@more
@given(anything, samples)
def test_simplification_keeps_the_value(t: Tree, many: list[Values]) -> None:
    e = built(t)
    for values in many:
        assert valued(e, values) == meaning(t, values)


@more
@given(linear, numbers)
def test_quotient_and_remainder_become_the_number_again(t: Tree, k: int) -> None:
    e = built(t)
    assert (e // k) * k + e % k is e
    assert e % k + k * (e // k) is e
    assert (e // N) * N + e % N is e


@more
@given(anything, numbers, samples)
def test_quotient_and_remainder_have_the_value_of_the_number(t: Tree, k: int, many: list[Values]) -> None:
    e = built(t)
    for values in many:
        for d in (const(k), N, M - 3):
            if valued(d, values):
                assert valued((e // d) * d + e % d, values) == meaning(t, values)


@more
@given(anything, samples)
def test_proofs_are_true(t: Tree, many: list[Values]) -> None:
    e = built(t)
    p = ix.poly(e)
    low, high = ix.extreme(p, False), ix.extreme(p, True)
    for values in many:
        true = meaning(t, values)
        assert not ix.nonnegative(p) or true >= 0
        assert not ix.positive(p) or true > 0
        assert low is None or valued(ix.expr(low), values) <= true
        assert high is None or valued(ix.expr(high), values) >= true


@more
@given(anything, anything, samples)
def test_comparisons_are_true(s: Tree, t: Tree, many: list[Values]) -> None:
    a, b = built(s), built(t)
    inside = ix.within(a, b)
    known = {op: ix.compare(op, a, b) for op in ("lt", "le", "eq", "ne")}
    for values in many:
        x, y = meaning(s, values), meaning(t, values)
        assert not inside or 0 <= x < y
        for op, truth in {"lt": x < y, "le": x <= y, "eq": x == y, "ne": x != y}.items():
            assert known[op] in (None, truth), op


@more
@given(trees, trees, samples)
def test_split_and_product(s: Tree, t: Tree, many: list[Values]) -> None:
    p, d = ix.poly(built(s)), ix.poly(built(t))
    whole, rest = ix.split(p, d)
    again = ix.expr(ix.add(ix.multiply(whole, d), rest))
    for values in many:
        assert valued(again, values) == meaning(s, values)
        assert valued(ix.product([built(s), built(t)]), values) == meaning(s, values) * meaning(t, values)


@more
@given(trees, st.sampled_from(AXES), samples)
def test_coefficients_are_slopes(t: Tree, at: Axis, many: list[Values]) -> None:
    c = ix.coefficient(built(t), at)
    if c is None:
        return
    for values in many:
        extent = valued(at.extent, values)
        first = {**values, at: 0}
        for k in range(extent):
            slope = valued(c, values) * k
            assert meaning(t, {**values, at: k}) - meaning(t, first) == slope


A, B, C, D, E, F, G, H = AXES
PROVEN: dict[str, bool] = {
    "digits": (A * 6 + B) // 6 is A and (A * 6 + B) % 6 is B,
    "symbolic digits": (C * M + D) // M is C and (C * M + D) % M is D,
    "nested quotients": (E // 4) // 3 is E // 12,
    "digits of digits": E // M * M + E % M is E,
    "multiples": (C * 8) // 4 is C * 2,
    "a tile": ix.within(F * 4 - 3, N) is False and ix.within(F, N),
    "whole tiles": ix.within(axis("io", N // 16) * 16 + axis("ii", 16), N),
    "rest of tiles": ix.within((N // 16) * 16 + axis("ir", N % 16), N),
    "two rests": ix.within((N // 32) * 32 + ((N % 32) // 8) * 8 + axis("r", (N % 32) % 8), N),
    "panel": ix.positive(
        ix.poly(
            ix.ceil_div(N, 8) * 8 * 5 - axis("p", ix.ceil_div(N, 8)) * 40 - axis("k", 5) * 8 - axis("l", 8)
        )
    ),
    "remainder": ix.within(E % N, N) and ix.within(G % 5, 5 + const(0)),
    "less": ix.compare("lt", C, N) is True and ix.compare("le", N, C) is False,
    "not decided": ix.compare("lt", C, M) is None and ix.compare("eq", C, D) is None,
    "clamped": ix.nonnegative(ix.poly(apply("max", C - 3, 0)))
    and not ix.nonnegative(ix.poly(apply("min", C - 3, 5))),
    "minimum of both": apply("min", C, N) is C and apply("max", C, const(0)) is C,
    "one element": H + 0 is H and ix.within(H, const(1)),
}


@pytest.mark.parametrize("what", PROVEN)
def test_what_passes_rely_on(what: str) -> None:
    assert PROVEN[what]


def test_canonical_forms_are_one_object() -> None:
    x = A // 3 + B % 4
    assert x * (A // 3) is (A // 3) * x
    # Atoms that read alike and are not the same keep one order.
    one, other = axis("i", 7), axis("i", 7)
    assert (one // 2) * (other // 2) is (other // 2) * (one // 2)
    assert isinstance((one // 2) * (other // 2) - (other // 2) * (one // 2), Const)


def test_numbers_wrap_as_i64() -> None:
    big = const(1 << 62) * A * 4
    assert isinstance(big, Const) and big.value == 0


def test_a_quotient_by_what_may_be_zero_stays() -> None:
    x = dim("x")
    by = M - N  # may be 0, where x // 0 and x mod 0 are 0
    e = (x // by) * by + x % by
    assert valued(e, {x: 5, N: 2, M: 2}) == 0
    assert isinstance(x, Dim)


def test_checks_stay_where_a_size_may_be_zero() -> None:
    assert isinstance(guard(const(0), N, "node"), Guard)
    assert isinstance(guard(N - 1, N, "node"), Guard)
    assert guard(const(2), const(3), "node") is const(2)
    assert guard(C, N, "node") is C
    assert isinstance(guard(C + 1, N, "node"), Guard)
