"""Folding means what the interpreter says, for every operation and type; so do the rules of `apply`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusile.ir.expr import OPS, Const, Expr, Load, apply, cast, const, load, raw_apply
from fusile.ir.fold import fold
from fusile.ir.interpret import evaluate
from fusile.ir.tensor import Tensor
from fusile.ir.types import (
    BF16,
    BOOL,
    F16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    DType,
    numpy_dtype,
)

INTEGERS = (I8, I16, I32, I64, U8, U16, U32, U64)
FLOATS = (F32, F64, F16, BF16)
BITS = ("and", "or", "xor", "not")
ARITHMETIC = ("add", "sub", "mul", "div", "mod", "rem", "fma", "neg", "abs", "min", "max", "pow")
COMPARISONS = ("lt", "le", "eq", "ne")
ROUNDING = ("floor", "ceil", "trunc", "round", "sqrt")
CURVES = ("exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "tanh", "erf")

CASES: tuple[tuple[str, DType], ...] = (
    *(
        (op, t)
        for t in INTEGERS
        for op in (*ARITHMETIC, *BITS, *COMPARISONS, "floordiv", "shl", "shr", "select")
    ),
    *((op, t) for t in FLOATS for op in (*ARITHMETIC, *COMPARISONS, *ROUNDING, *CURVES, "select")),
    *((op, BOOL) for op in (*BITS, *COMPARISONS, "select")),
)


def values(t: DType) -> st.SearchStrategy[Any]:
    """Numbers of a type, the ones at its ends often."""
    if t is BOOL:
        return st.booleans()
    if t.is_int:
        low = -(1 << (t.bits - 1)) if t.kind == "i" else 0
        high = low + (1 << t.bits) - 1
        ends = [low, low + 1, high, 0, 1, 2, 7, t.bits - 1, t.bits, *([-1, -2] if low else [])]
        return st.one_of(st.sampled_from(ends), st.integers(low, high))
    width = {F64: 64, F32: 32}.get(t, 16)
    ends = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, math.inf, -math.inf, math.nan]
    return st.one_of(st.sampled_from(ends), st.floats(width=width, allow_nan=False))


def truth(e: Expr) -> Any:
    return evaluate(e, {}, lambda *_: None)


def same(a: Any, b: Any) -> bool:
    """Equal bits, or both NaN."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype:
        return False
    if a.dtype.kind not in "biu":
        x, y = float(a), float(b)
        return (math.isnan(x) and math.isnan(y)) or (x == y and math.copysign(1, x) == math.copysign(1, y))
    return bool(a == b)


@pytest.mark.parametrize(("op", "t"), CASES, ids=lambda x: str(x))
def test_literals_fold_to_what_the_operation_means(op: str, t: DType) -> None:
    @settings(max_examples=15, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        count = OPS[op].arity
        types = (BOOL, t, t) if op == "select" else (t,) * count
        args = tuple(const(data.draw(values(x)), x) for x in types)
        result = BOOL if OPS[op].result == "bool" else t
        folded = apply(op, *args)
        assert folded.dtype is result
        if isinstance(folded, Const):
            assert same(truth(folded), truth(raw_apply(op, args, result))), f"{op} of {args}"

    check()


@pytest.mark.parametrize("to", (*INTEGERS, *FLOATS, BOOL), ids=str)
@pytest.mark.parametrize("source", (*INTEGERS, *FLOATS, BOOL), ids=str)
def test_casts_fold_to_what_they_mean(source: DType, to: DType) -> None:
    @settings(max_examples=15, deadline=None)
    @given(values(source))
    def check(value: Any) -> None:
        literal = const(value, source)
        folded = cast(literal, to)
        if isinstance(folded, Const):
            assert same(truth(folded), truth(raw_apply("cast", (literal,), to)))

    check()


@pytest.mark.parametrize("t", (F32, F16, BF16), ids=str)
def test_a_literal_holds_what_its_type_can(t: DType) -> None:
    held = const(0.1, t)
    assert held.value == float(np.asarray(0.1).astype(numpy_dtype(t)))
    assert const(held.value, t) is held


@pytest.mark.parametrize(("op", "t"), [c for c in CASES if OPS[c[0]].arity == 2], ids=lambda x: str(x))
def test_rules_for_one_literal_keep_the_meaning(op: str, t: DType) -> None:
    """x + 0, x * 1, …: what `apply` makes of a loaded value and a literal has the plain node's value."""

    @settings(max_examples=15, deadline=None)
    @given(values(t), values(t), st.booleans())
    def check(held: Any, literal: Any, turned: bool) -> None:
        # Index arithmetic is taken not to leave i64.
        if t is I64 and (abs(held) >= 1 << 31 or abs(literal) >= 1 << 31):
            return
        x = load(Tensor("x", t, ()), ())
        args = (const(literal, t), x) if turned else (x, const(literal, t))

        def value(e: Expr) -> Any:
            def read(_: Load, index: list[Any]) -> Any:
                return np.asarray(held).astype(numpy_dtype(t))

            return evaluate(e, {}, read)

        plain = raw_apply(op, args, BOOL if OPS[op].result == "bool" else t)
        assert same(value(apply(op, *args)), value(plain)), f"{op} of {args}"

    check()


def test_what_is_left_to_the_target() -> None:
    assert fold("exp", (1.0,), F32, F32) is None
    assert fold("div", (1.0, 0.0), F32, F32) is None
    assert isinstance(apply("exp", const(1.0, F32)), Const) is False


@pytest.mark.parametrize(
    ("op", "args", "words"),
    [
        ("add", (const(1, I32), const(1, I64)), "different types"),
        ("neg", (const(1), const(1)), "takes 1 arguments"),
        ("select", (const(1), const(1), const(2)), "condition of type i64"),
    ],
)
def test_badly_typed_operations_are_refused(op: str, args: tuple[Expr, ...], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        apply(op, *args)


def test_expressions_have_no_truth() -> None:
    with pytest.raises(TypeError, match="not known while compiling"):
        bool(load(Tensor("x", I64, ()), ()) < 3)
