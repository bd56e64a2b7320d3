"""Small floats and packed integers as integer expressions, against ml_dtypes and numpy."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation import Array, argument, evaluate, every_exponent, same

from fusile.capabilities import Capabilities, casts_between
from fusile.ir.expr import Apply, Expr, apply, cast, const, nodes, select
from fusile.ir.types import (
    BF16,
    BOOL,
    F4E2M1,
    F8E4M3FN,
    F8E4M3FNUZ,
    F8E5M2,
    F8E5M2FNUZ,
    F8E8M0,
    F16,
    F32,
    F64,
    I2,
    I4,
    I8,
    I32,
    I64,
    U2,
    U4,
    U8,
    U16,
    DType,
    numpy_dtype,
)
from fusile.passes import words
from fusile.passes.legalise import legalise, violations

TARGET = Capabilities()
EIGHT_BITS = (F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0)
SMALL_FLOATS = (F16, BF16, *EIGHT_BITS, F4E2M1)
PACKED = (I4, U4, I2, U2)
PACKED_OPERATIONS = "add sub mul div rem mod min max shl shr xor lt eq".split()


def legal(e: Expr, target: Capabilities = TARGET) -> Expr:
    out = legalise(e, target)
    assert not violations(out, target)
    assert legalise(out, target) is out
    return out


def codes(t: DType) -> Array:
    """Every value of a small type."""
    word = np.uint16 if t.bits == 16 else np.uint8
    return np.arange(1 << t.bits, dtype=word).view(numpy_dtype(t))


def halfway(t: DType) -> Array:
    """Every value of a small float type, every number halfway between two, their neighbours in f32, and
    more."""
    exact = codes(t).astype(np.float32)
    exact = np.unique(exact[np.isfinite(exact)])
    middle = ((exact[1:].astype(np.float64) + exact[:-1]) / 2).astype(np.float32)
    x = np.concatenate([exact, middle, every_exponent(64)])
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))])
    tiny = np.arange(0, 1 << 23, 997, dtype=np.uint32).view(np.float32)
    return np.concatenate([x, tiny, -tiny, np.array([np.inf, -np.inf, np.nan, -np.nan, 0, -0.0], np.float32)])


def as_bits(a: Array) -> Array:
    return a.view(np.uint16 if a.dtype.itemsize == 2 else np.uint8)


@pytest.mark.parametrize("t", SMALL_FLOATS, ids=str)
def test_to_f32(t: DType) -> None:
    x = codes(t)
    got = evaluate(legal(cast(argument(t), F32)), x=x)
    assert same(got, x.astype(np.float32)).all()


@pytest.mark.parametrize("t", SMALL_FLOATS, ids=str)
def test_from_f32(t: DType) -> None:
    x = halfway(t)
    with np.errstate(all="ignore"):
        wanted = x.astype(numpy_dtype(t))
    got = evaluate(legal(cast(argument(F32), t)), x=x)
    alike = as_bits(got) == as_bits(wanted)
    if t is F16:  # numpy keeps the bits of a NaN
        alike |= np.isnan(got) & np.isnan(wanted)
    assert alike.all(), [(v, g, w) for v, g, w in zip(x[~alike], got[~alike], wanted[~alike])][:10]


@pytest.mark.parametrize("t", SMALL_FLOATS, ids=str)
def test_from_f64_and_integers(t: DType) -> None:
    x = halfway(t).astype(np.float64)
    x = np.concatenate([x, np.nextafter(x, np.inf), np.nextafter(x, -np.inf)])
    with np.errstate(all="ignore"):
        wanted = x.astype(numpy_dtype(t))
    got = evaluate(legal(cast(argument(F64), t)), x=x)
    alike = (as_bits(got) == as_bits(wanted)) | (np.isnan(x) & np.isnan(got.astype(np.float32)))
    assert alike.all(), [(v, g, w) for v, g, w in zip(x[~alike], got[~alike], wanted[~alike])][:10]
    ends = np.array([2**31 - 1, -(2**31), 123456789])
    n = np.concatenate([np.arange(-(1 << 17), 1 << 17), ends]).astype(np.int32)
    with np.errstate(all="ignore"):
        wanted = n.astype(np.float32).astype(numpy_dtype(t))
    assert (as_bits(evaluate(legal(cast(argument(I32), t)), x=n)) == as_bits(wanted)).all()


@pytest.mark.parametrize("source", SMALL_FLOATS, ids=str)
@pytest.mark.parametrize("to", [F16, BF16, F8E5M2, F8E4M3FNUZ], ids=str)
def test_between_small_floats(source: DType, to: DType) -> None:
    x = codes(source)
    with np.errstate(all="ignore"):
        wanted = x.astype(np.float32).astype(numpy_dtype(to))
    got = evaluate(legal(cast(argument(source), to)), x=x)
    nan = np.isnan(got.astype(np.float32)) & np.isnan(wanted.astype(np.float32))
    assert ((as_bits(got) == as_bits(wanted)) | nan).all()


@pytest.mark.parametrize("t", [F16, BF16], ids=str)
@pytest.mark.parametrize("op", ["add", "sub", "mul", "div", "min", "max", "lt", "le", "eq", "ne"])
def test_binary_arithmetic(t: DType, op: str) -> None:
    draw = np.random.default_rng(2)
    every = codes(t)
    x, y = draw.choice(every, 200_000), draw.choice(every, 200_000)
    target = Capabilities()
    with np.errstate(all="ignore"):
        wanted = evaluate(apply(op, argument(t), argument(t, "y")), x=x, y=y)
    got = evaluate(legal(apply(op, argument(t), argument(t, "y")), target), x=x, y=y)
    if wanted.dtype == np.bool_:
        assert (got == wanted).all()
    else:
        assert same(got.astype(np.float32), wanted.astype(np.float32)).all()


@pytest.mark.parametrize("t", [F16, BF16], ids=str)
@pytest.mark.parametrize("op", ["neg", "abs", "sqrt", "floor", "ceil", "trunc", "round"])
def test_unary_arithmetic(t: DType, op: str) -> None:
    x = codes(t)
    wide = evaluate(apply(op, argument(F32)), x=x.astype(np.float32)).astype(numpy_dtype(t))
    got = evaluate(legal(apply(op, argument(t))), x=x)
    assert same(got.astype(np.float32), wide.astype(np.float32)).all()


def test_functions_of_small_floats() -> None:
    x = codes(F16)[:0x7C00]
    got = evaluate(legal(apply("tanh", argument(F16))), x=x).astype(np.float64)
    wanted = np.tanh(x.astype(np.float64)).astype(np.float16).astype(np.float64)
    assert (np.abs(got - wanted) <= np.spacing(wanted.astype(np.float16)).astype(np.float64)).all()
    assert (got == wanted).mean() > 0.999


def test_native_casts_stay() -> None:
    target = Capabilities(storage_casts=casts_between((F16,)))
    e = legal(argument(F16) + argument(F16, "y"), target)
    assert {n.op for n in nodes(e) if isinstance(n, Apply)} == {"add", "cast"}
    e = legal(cast(argument(F64), F16), target)
    assert (
        e.op == "cast"
        and e.args[0].dtype is F32
        and "bitcast" in {n.op for n in nodes(e) if isinstance(n, Apply)}
    )


def test_native_arithmetic_stays() -> None:
    target = Capabilities(computes=Capabilities().computes | {F16}, has_fma=True)
    e = apply("fma", argument(F16), argument(F16, "y"), 1.0)
    assert legal(e, target) is e
    wide = legal(apply("exp", argument(F16)), target)
    assert wide.op == "cast" and wide.dtype is F16


def test_small_float_selection_and_literals_are_words() -> None:
    e = legal(select(argument(BOOL, "c"), argument(BF16), 0.1))
    assert {n.dtype for n in nodes(e) if isinstance(n, Apply) and n.op != "bitcast"} <= {BOOL, U16}
    got = evaluate(e, c=np.array([True, False]), x=codes(BF16)[3:5])
    assert as_bits(got).tolist() == [3, 0x3DCD]


# ---- packed words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [*PACKED, F4E2M1], ids=str)
def test_unpack(t: DType) -> None:
    word = np.arange(256, dtype=np.uint8)
    per_word = words.lanes(t)
    for lane in range(per_word):
        wanted = ((word >> (lane * t.bits)) & ((1 << t.bits) - 1)).view(np.uint8)
        if t.kind == "i":
            wanted = (wanted.astype(np.int16) ^ (1 << (t.bits - 1))) - (1 << (t.bits - 1))
        if t is F4E2M1:
            wanted = wanted.view(numpy_dtype(t)).astype(np.float32)
        e = legal(cast(words.unpack(argument(U8), lane, t), F32))
        assert same(evaluate(e, x=word), wanted.astype(np.float32)).all()
        moving = legal(cast(words.unpack(argument(U8), argument(I64, "lane"), t), F32))
        assert same(evaluate(moving, x=word, lane=np.int64(lane)), wanted.astype(np.float32)).all()


@pytest.mark.parametrize("t", [*PACKED, F4E2M1], ids=str)
def test_pack_is_the_inverse(t: DType) -> None:
    word = np.arange(256, dtype=np.uint8)
    x = argument(U8)
    again = legal(words.pack([words.unpack(x, lane, t) for lane in range(words.lanes(t))]))
    assert (evaluate(again, x=word) == word).all()
    for lane in range(words.lanes(t)):
        changed = legal(words.replace_lane(x, argument(I64, "lane"), words.unpack(argument(U8, "y"), 0, t)))
        got = evaluate(changed, x=word, y=np.full(256, 0xFF, np.uint8), lane=np.int64(lane))
        assert (got == (word | ((1 << t.bits) - 1) << (lane * t.bits))).all()


def test_storage_of_whole_words() -> None:
    x = np.array([0, 1, 255], np.uint8)
    assert evaluate(words.from_storage(argument(U8), BOOL), x=x).tolist() == [False, True, True]
    assert evaluate(words.to_storage(argument(BOOL)), x=np.array([True, False])).tolist() == [1, 0]
    word = argument(U16)
    assert words.to_storage(words.from_storage(word, BF16)) is word


@pytest.mark.parametrize("t", PACKED, ids=str)
@pytest.mark.parametrize("op", PACKED_OPERATIONS)
def test_packed_arithmetic(t: DType, op: str) -> None:
    """In bytes, wrapped to the width: the meaning is that of whole numbers modulo 2^bits."""
    low, high = (0, 1 << t.bits) if t.kind == "u" else (-(1 << (t.bits - 1)), 1 << (t.bits - 1))
    a, b = (v.ravel() for v in np.meshgrid(np.arange(low, high), np.arange(low, high)))
    word = numpy_dtype(U8 if t.kind == "u" else I8)
    x, y = a.astype(word).astype(numpy_dtype(t)), b.astype(word).astype(numpy_dtype(t))
    e = legal(apply(op, argument(t), argument(t, "y")))
    got = evaluate(e, x=x, y=y)
    wide = evaluate(apply(op, argument(I64), argument(I64, "y")), x=a.astype(np.int64), y=b.astype(np.int64))
    if op in ("shl", "shr"):  # the width is the packed one
        wide = np.where((b < 0) | (b >= t.bits), 0 if op == "shl" else np.where(a < 0, -1, 0), wide)
    if op not in ("lt", "eq"):
        wide = (wide - low) % (1 << t.bits) + low
    assert (got.astype(np.int64) == wide).all()


@pytest.mark.parametrize("t", PACKED, ids=str)
def test_casts_to_packed_integers(t: DType) -> None:
    low, high = (0, (1 << t.bits) - 1) if t.kind == "u" else (-(1 << (t.bits - 1)), (1 << (t.bits - 1)) - 1)
    numbers = [0, -0.5, 0.99, 1.5, -1.5, 7.9, 8, -8.9, 15.9, 16, 300, -300, np.inf, -np.inf, np.nan]
    x = np.array(numbers, np.float32)
    wanted = np.trunc(np.clip(np.where(np.isnan(x), 0, x), low, high))
    got = evaluate(legal(cast(argument(F32), t)), x=x)
    assert (got.astype(np.float32) == wanted).all()
    n = np.arange(-300, 300, dtype=np.int32)
    got = evaluate(legal(cast(argument(I32), t)), x=n)
    assert (got.astype(np.int32) == (n - low) % (1 << t.bits) + low).all()


def test_packed_literals_stay() -> None:
    e = const(-3, I4)
    assert legalise(e, TARGET) is e


def test_bits_of_bools_are_those_of_their_bytes() -> None:
    x = np.array([True, False])
    assert evaluate(legal(apply("bitcast", argument(BOOL), dtype=U8)), x=x).tolist() == [1, 0]
    assert evaluate(legal(apply("bitcast", argument(BOOL), dtype=I8)), x=x).tolist() == [1, 0]
    words_of = np.array([0, 1], np.uint8)
    assert evaluate(legal(apply("bitcast", argument(U8), dtype=BOOL)), x=words_of).tolist() == [False, True]
    for e in (apply("bitcast", argument(BOOL), dtype=U8), apply("bitcast", argument(U8), dtype=BOOL)):
        assert not any(isinstance(n, Apply) and n.op == "bitcast" for n in nodes(legal(e)))
