"""Legalisation: total integer operations, casts, operations that a target lacks, contraction; what changes
and what stays."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation import Array, argument, evaluate, every_exponent, fma, same

from fusile.capabilities import CORE, FUNCTIONS, INTEGER_FLOOR, INTEGER_REM, LIBM, SIMPLE, Capabilities
from fusile.errors import UnsupportedError
from fusile.ir import interpret
from fusile.ir.expr import Apply, Const, Expr, apply, axis, cast, const, dim, guard, nodes, raw_apply, select
from fusile.ir.types import BOOL, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType, numpy_dtype
from fusile.passes.legalise import Legaliser, contract, legalise, violations

TARGET = Capabilities()
BARE = Capabilities(operations=CORE, typed_operations=frozenset())
SATURATING = Capabilities(saturating_casts=True)
FLOORS = Capabilities(typed_operations=LIBM | INTEGER_REM | INTEGER_FLOOR)
REMAINDERS = ["simple", "bare", "floors", "fma"]
TARGETS = {"simple": TARGET, "bare": BARE, "floors": FLOORS}
PARTIAL = ("div", "rem", "floordiv", "mod", "shl", "shr")
INTEGERS = (I8, I16, I32, I64, U8, U16, U32, U64)


def legal(e: Expr, target: Capabilities = TARGET) -> Expr:
    out = legalise(e, target)
    assert not violations(out, target), violations(out, target)
    assert legalise(out, target) is out
    return out


def edges(t: DType) -> Array:
    """The numbers where integer operations go wrong, of an integer type."""
    info = np.iinfo(numpy_dtype(t))
    near = [0, 1, 2, 3, 5, 7, 8, 10, 31, 32, 63, 64, 100, info.max, info.max - 1, info.max // 2]
    return np.unique(
        np.array(
            [v for n in near for v in (n, -n, info.min + n) if info.min <= v <= info.max], numpy_dtype(t)
        )
    )


def pairs(t: DType) -> tuple[Array, Array]:
    a, b = np.meshgrid(edges(t), edges(t))
    return a.ravel(), b.ravel()


def exact(op: str, a: int, b: int, t: DType) -> int:
    """The stated meaning, on Python's integers."""
    match op:
        case "div" | "rem" if b == 0:
            out = 0
        case "div":
            out = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        case "rem":
            out = abs(a) % abs(b) * (-1 if a < 0 else 1)
        case "floordiv":
            out = a // b if b else 0
        case "mod":
            out = a % b if b else 0
        case "shl":
            out = a << b if 0 <= b < t.bits else 0
        case "shr":
            out = a >> b if 0 <= b < t.bits else (-1 if a < 0 else 0)
        case _:
            out = a**b if b >= 0 else (a if b % 2 else 1) if abs(a) == 1 else 0
    low = np.iinfo(numpy_dtype(t)).min
    return (out - int(low)) % (1 << t.bits) + int(low)


def is_partial(e: Expr, **values: Array) -> bool:
    """Whether an operation inside e is undefined on hardware for the given arguments."""
    for n in nodes(e):
        if not isinstance(n, Apply) or not n.dtype.is_int or n.op not in PARTIAL:
            continue
        b = evaluate(n.args[1], **values).astype(object)
        if n.op in ("shl", "shr"):
            bad = (b < 0) | (b >= n.dtype.bits)
        else:
            bad = (b == 0) | (b == -1)
        if np.any(bad):
            return True
    return False


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("t", INTEGERS, ids=str)
@pytest.mark.parametrize("op", PARTIAL)
def test_integer_operations_are_total(op: str, t: DType, target: Capabilities) -> None:
    a, b = pairs(t)
    e = legal(apply(op, argument(t), argument(t, "y")), target)
    wanted = [exact(op, int(p), int(q), t) for p, q in zip(a, b)]
    assert evaluate(e, x=a, y=b).tolist() == wanted
    assert not is_partial(e, x=a, y=b)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("t", [I8, I32, I64, U8, U64], ids=str)
@pytest.mark.parametrize("divisor", [-8, -3, -1, 0, 1, 2, 3, 7, 8, 64])
@pytest.mark.parametrize("op", ["div", "rem", "floordiv", "mod"])
def test_division_by_constants(op: str, divisor: int, t: DType, target: Capabilities) -> None:
    if divisor < 0 and t.kind == "u":
        pytest.skip("no such literal")
    a = edges(t)
    e = legal(apply(op, argument(t), divisor), target)
    assert evaluate(e, x=a).tolist() == [exact(op, int(p), divisor, t) for p in a]
    if divisor not in (0, -1):
        assert "select" not in {n.op for n in nodes(e) if isinstance(n, Apply)} or op in ("floordiv", "mod")


@pytest.mark.parametrize("by", [-1, 0, 1, 7, 8, 31, 32, 63, 64])
@pytest.mark.parametrize("op", ["shl", "shr"])
@pytest.mark.parametrize("t", [I8, I32, I64], ids=str)
def test_shifts_by_constants(t: DType, op: str, by: int) -> None:
    a = edges(t)
    e = legal(apply(op, argument(t), by))
    assert evaluate(e, x=a).tolist() == [exact(op, int(p), by, t) for p in a]


@pytest.mark.parametrize("t", [I8, I32, I64, U8, U64], ids=str)
def test_integer_powers(t: DType) -> None:
    a, b = pairs(t)
    e = legal(apply("pow", argument(t), argument(t, "y")), BARE)
    small = np.abs(b.astype(object)) <= 64
    wanted = [exact("pow", int(p), int(q), t) for p, q in zip(a[small], b[small])]
    assert evaluate(e, x=a[small], y=b[small]).tolist() == wanted
    for n in (0, 1, 2, 3, 10, *(() if t.kind == "u" else (-1, -2, -3))):
        e = legal(apply("pow", argument(t), n))
        assert evaluate(e, x=edges(t)).tolist() == [exact("pow", int(p), n, t) for p in edges(t)]
    products = [n for n in nodes(legal(apply("pow", argument(t), 10))) if isinstance(n, Apply)]
    assert [n.op for n in products].count("mul") == 4


@pytest.mark.parametrize("t", INTEGERS, ids=str)
@pytest.mark.parametrize("op", ["neg", "abs", "not", "min", "max", "ne"])
def test_integer_operations_that_a_target_lacks(op: str, t: DType) -> None:
    a, b = pairs(t)
    binary = op in ("min", "max", "ne")
    e = apply(op, argument(t), *([argument(t, "y")] if binary else []))
    values = {"x": a, "y": b} if binary else {"x": a}
    assert (evaluate(legal(e, BARE), **values) == evaluate(e, **values)).all()


@pytest.mark.parametrize("t", [F32, F64], ids=str)
@pytest.mark.parametrize("op", ["neg", "abs", "floor", "ceil", "trunc", "round", "min", "max", "ne"])
def test_float_operations_that_a_target_lacks(op: str, t: DType) -> None:
    edge = np.array([np.inf, -np.inf, np.nan, 0, -0.0], np.float32)
    x = np.concatenate([every_exponent(32), np.arange(-20, 20, 0.25, np.float32), edge])
    x = x.astype(numpy_dtype(t))
    y = np.roll(x, 3)
    binary = op in ("min", "max", "ne")
    e = apply(op, argument(t), *([argument(t, "y")] if binary else []))
    values = {"x": x, "y": y} if binary else {"x": x}
    got, wanted = evaluate(legal(e, BARE), **values), evaluate(e, **values)
    assert (got == wanted).all() if op == "ne" else same(got, wanted).all()


@pytest.mark.parametrize("op", ["rem", "mod"])
@pytest.mark.parametrize("target", [TARGET, BARE, FLOORS, Capabilities(has_fma=True)], ids=REMAINDERS)
def test_float_remainders(op: str, target: Capabilities, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interpret.NUMPY, "fma", fma)
    draw = np.random.default_rng(4)
    x = [draw.normal(0, 100, 100_000), np.round(draw.normal(0, 30, 50_000)), every_exponent(8)[:3000]]
    y = [draw.normal(0, 3, 100_000), np.round(draw.normal(0, 6, 50_000)), np.full(3000, 0.7)]
    edge = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 4, -4, 2], np.float32)
    p, q = (v.ravel() for v in np.meshgrid(edge, edge))
    a, b = np.concatenate([*x, p]).astype(np.float32), np.concatenate([*y, q]).astype(np.float32)
    finite = np.isfinite(a) & np.isfinite(b) & (b != 0)
    keep = ~finite | (np.abs(a.astype(np.float64)) < 2.0**28 * np.abs(b.astype(np.float64)))
    a, b = a[keep], b[keep]
    e = apply(op, argument(F32), argument(F32, "y"))
    bad = ~same(evaluate(legal(e, target), x=a, y=b), evaluate(e, x=a, y=b))
    assert not bad.any(), list(zip(a[bad], b[bad]))[:10]


@pytest.mark.parametrize("target", [TARGET, BARE, SATURATING], ids=["simple", "bare", "saturating"])
@pytest.mark.parametrize("source", [F32, F64], ids=str)
@pytest.mark.parametrize("t", INTEGERS, ids=str)
def test_float_to_integer(t: DType, source: DType, target: Capabilities) -> None:
    info = np.iinfo(numpy_dtype(t))
    near = [0.99, -0.99, 1.5, -1.5, np.inf, -np.inf, np.nan, 1e30, -1e30]
    ends = np.array([float(info.min), float(info.max), 0, -0.0, *near])
    x = np.concatenate([ends, np.nextafter(ends, np.inf), np.nextafter(ends, -np.inf), ends + 1, ends - 1])
    x = x.astype(numpy_dtype(source))
    e = cast(argument(source), t)
    out = legal(e, target)
    assert (evaluate(out, x=x) == evaluate(e, x=x)).all()
    if target.saturating_casts:
        assert out is e
        return
    for n in nodes(out):  # what reaches the hardware is in range
        if isinstance(n, Apply) and n.op == "cast" and n.args[0].dtype.is_float:
            reached = np.trunc(evaluate(n.args[0], x=x).astype(np.longdouble))
            assert (reached >= info.min).all() and (reached <= np.longdouble(info.max)).all()


def test_casts_to_bool_compare() -> None:
    x = np.array([0, -0.0, 0.1, np.nan], np.float32)
    e = legal(cast(argument(F32), BOOL))
    assert e.op == "ne"
    assert evaluate(e, x=x).tolist() == [False, False, True, True]


@pytest.mark.parametrize("op", ["and", "or", "xor", "min", "max", "lt", "le", "eq", "ne", "not"])
@pytest.mark.parametrize("target", [TARGET, BARE], ids=["simple", "bare"])
def test_bools(op: str, target: Capabilities) -> None:
    x, y = np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    e = apply(op, argument(BOOL), *([] if op == "not" else [argument(BOOL, "y")]))
    values = {"x": x} if op == "not" else {"x": x, "y": y}
    assert (evaluate(legal(e, target), **values) == evaluate(e, **values)).all()


# ---- what stays --------------------------------------------------------------------------------------------


def test_unchanged_expressions_are_the_same_objects() -> None:
    x, y, i = argument(F32), argument(F32, "y"), argument(I64, "i")
    n = dim("n")
    for e in (x + y, select(x < y, x, y), guard(i, n, "Gather_0"), i * n + 3, apply("sqrt", x), cast(i, F32)):
        assert legalise(e, TARGET) is e


def test_common_parts_are_made_once() -> None:
    x = argument(F32)
    shared = apply("exp", x)
    run = Legaliser(TARGET)
    assert run(shared + 1.0).args[0] is run(shared)
    assert run(shared) is legalise(shared, TARGET)


def test_deep_chains() -> None:
    e = argument(F32)
    for _ in range(2000):
        e = apply("abs", apply("max", e, 0.5) * e + 1.0)
    assert legalise(e, TARGET) is e
    fused = contract(e)
    assert legalise(fused, Capabilities(has_fma=True)) is fused


def operations(e: Expr) -> set[str]:
    return {n.op for n in nodes(e) if isinstance(n, Apply)}


def test_provable_index_arithmetic_has_no_guards() -> None:
    n = dim("n")
    i = axis("i", 1000)
    assert operations(legalise(i // 3, TARGET)) == {"div"}
    assert operations(legalise(i % 3, TARGET)) == {"rem"}
    assert operations(legalise(i // 8, TARGET)) == {"shr"}
    assert operations(legalise(i % 8, TARGET)) == {"and"}
    assert operations(legalise(i // n, TARGET)) == {"div"}
    assert operations(legalise((i - 1) // n, TARGET)) >= {"div", "rem"}
    assert legalise(i // n, FLOORS) is i // n
    # The proof is about the divisor as it was: (n + 3) // 4 becomes a shift, of which index arithmetic knows
    # nothing.
    blocks = (n + 3) // 4 + 1
    assert operations(legalise(i % blocks, TARGET)) == {"rem", "shr", "add"}
    assert "select" in operations(legalise(i // argument(I64), TARGET))


def test_f64_functions_stay_where_the_target_calls_a_library() -> None:
    for name in sorted(FUNCTIONS):
        e = apply(name, argument(F64), *([argument(F64, "y")] if name == "pow" else []))
        assert legalise(e, TARGET) is e
        with pytest.raises(UnsupportedError, match=f"'my_node'.*{name} of f64"):
            legalise(e, BARE, "my_node")


def test_functions_that_a_target_prints_stay() -> None:
    target = Capabilities(operations=SIMPLE | FUNCTIONS)
    e = apply("tanh", argument(F32))
    assert legalise(e, target) is e


def test_fma_without_the_instruction() -> None:
    x, y = argument(F32), argument(F32, "y")
    e = apply("fma", x, y, 1.0)
    assert legalise(e, TARGET) is x * y + 1.0
    assert legalise(e, Capabilities(has_fma=True)) is e
    i = argument(I32, "i")
    assert legalise(apply("fma", i, i, 1), Capabilities(has_fma=True)) is i * i + 1


def test_capabilities_must_hold_the_core() -> None:
    with pytest.raises(ValueError, match="must print select"):
        Capabilities(operations=SIMPLE - {"select"})
    with pytest.raises(ValueError, match="must compute in f64"):
        Capabilities(computes=Capabilities().computes - {F64})
    assert INTEGER_REM.isdisjoint(LIBM)


# ---- contraction -------------------------------------------------------------------------------------------


def test_contraction() -> None:
    x, y, acc = argument(F32), argument(F32, "y"), argument(F32, "acc")
    assert contract(acc + x * y) is apply("fma", x, y, acc)
    assert contract(x * y + acc) is apply("fma", x, y, acc)
    assert contract(x * y - acc) is apply("fma", x, y, apply("neg", acc))
    assert contract(acc - x * y) is apply("fma", apply("neg", x), y, acc)
    assert contract((acc + x * y) + x * x) is apply("fma", x, x, apply("fma", x, y, acc))
    for e in (x + y, x * y, argument(I32) + argument(I32, "y") * 3):
        assert contract(e) is e
    i, j = argument(I64, "i"), argument(I64, "j")
    assert contract(i * j + 1) is i * j + 1


def test_contraction_of_doubles_rounds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interpret.NUMPY, "fma", fma)
    x = argument(F64)
    v = np.array([1 + 2.0**-30])
    assert evaluate(x * x - 1.0, x=v) != evaluate(contract(x * x - 1.0), x=v)


def test_contraction_leaves_index_arithmetic_and_literals() -> None:
    e = raw_apply("add", (const(1.5, F32), raw_apply("mul", (argument(F32), const(2.0, F32)), F32)), F32)
    fused = contract(e)
    assert isinstance(fused, Apply) and fused.op == "fma" and isinstance(fused.args[2], Const)
