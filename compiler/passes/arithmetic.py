"""Legalisation of arithmetic: total integer operations on partial hardware, and operations that a target
lacks by ones that it has.

Guards are recognised when they are met again, so that legalising twice changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from fusile.capabilities import Capabilities
from fusile.ir import index as ix
from fusile.ir.expr import (
    Apply,
    Const,
    Expr,
    apply,
    cast,
    const,
    eq,
    logical_not,
    maximum,
    minimum,
    ne,
    raw_apply,
    select,
)
from fusile.ir.types import F32, F64, I2, I4, I8, I16, I32, I64, U2, U4, U8, U16, U32, U64, DType

_UNSIGNED = {8: U8, 16: U16, 32: U32, 64: U64}
_INTEGERS = (I2, I4, I8, I16, I32, U2, U4, U8, U16, U32)
DIVISIONS = frozenset({"div", "rem", "floordiv", "mod"})
_MANTISSA = {F32: 24, F64: 53}


def on_integers(e: Apply, target: Capabilities) -> Expr:
    """One step for an operation on integers that the target computes in."""
    if e.op in DIVISIONS:
        return _division(e, target)
    if e.op in ("shl", "shr"):
        return _shift(e)
    if e.op == "pow" and isinstance(e.args[1], Const):
        return _integer_power(e.args[0], int(e.args[1].value))
    if e.op == "fma":
        return apply("add", apply("mul", e.args[0], e.args[1]), e.args[2])
    if target.prints(e.op, e.args[-1].dtype):
        return e
    a, b = e.args[0], e.args[-1]
    match e.op:
        case "neg":
            return raw_apply("sub", (const(0, e.dtype), a), e.dtype)
        case "abs":
            return a if e.dtype.kind == "u" else select(a < 0, apply("neg", a), a)
        case "not":
            return apply("xor", a, -1 if e.dtype.kind == "i" else (1 << e.dtype.bits) - 1)
        case "floor" | "ceil" | "trunc" | "round":
            return a
        case "pow":
            return _any_integer_power(a, b)
    return _by_comparison(e, target)


def on_floats(e: Apply, target: Capabilities) -> Expr:
    """One step for an operation on floats, other than a function, that the target computes in."""
    if target.prints(e.op, e.args[-1].dtype):
        return e
    a = e.args[0]
    if e.args[-1].dtype not in _MANTISSA:
        t = e.args[-1].dtype
        out = apply(e.op, *(cast(x, F32) if x.dtype is t else x for x in e.args))
        return cast(out, t) if e.dtype is t else out
    match e.op:
        case "fma":
            return apply("add", apply("mul", e.args[0], e.args[1]), e.args[2])
        case "neg":
            return _with_bits(a, "xor", _sign_mask(e.dtype))
        case "abs":
            return _with_bits(a, "and", ~_sign_mask(e.dtype))
        case "round":
            return _rounded(a)
        case "floor":
            r = apply("round", a)
            return _sign_kept(select(a < r, r - 1.0, r), a)
        case "ceil":
            return apply("neg", apply("floor", apply("neg", a)))
        case "trunc":
            return _sign_kept(apply("floor", apply("abs", a)), a)
    return _by_comparison(e, target)


def _by_comparison(e: Apply, target: Capabilities) -> Expr:
    a, b = e.args[0], e.args[-1]
    match e.op:
        case "min":
            return select(b < a, b, a)
        case "max":
            return select(a < b, b, a)
        case "ne":
            return logical_not(eq(a, b))
    raise AssertionError(f"{e.op} of {e.args[-1].dtype} has no expansion")


# ---- integers ----------------------------------------------------------------------------------------------


def _division(e: Apply, target: Capabilities) -> Expr:
    """A division or remainder in terms of ones whose divisor is neither 0 nor -1.

    x / 0 and x mod 0 are 0; x / -1 is -x, which wraps for the smallest x; x mod -1 is 0.
    """
    a, b = e.args
    t = e.dtype
    if not _safe_divisor(b):
        one = const(1, t)
        safe = one if isinstance(b, Const) else raw_apply("select", (_partial(b), one, b), t)
        inner = raw_apply(e.op, (a, safe), t)
        if e.op in ("rem", "mod"):
            return inner
        negated = raw_apply("sub", (const(0, t), a), t)
        quotient = inner if t.kind == "u" else select(eq(b, -1), negated, inner)
        return select(eq(b, 0), const(0, t), quotient)
    if e.op in ("floordiv", "mod"):
        return _floored(e.op, a, b, t.kind == "u", target)
    if e.op == "rem" and not target.prints("rem", t):
        return _remainder(a, b)
    return e


def index_division(e: Apply, a: Expr, b: Expr, target: Capabilities) -> Expr | None:
    """An i64 division whose divisor is provably positive, over its legalised arguments a and b; None where
    nothing is proved.

    The proofs need the arguments as they were (e.args): shifts and truncating divisions are opaque to index
    arithmetic.
    """
    if not ix.positive(ix.poly(e.args[1])):
        return None
    if e.op in ("floordiv", "mod"):
        return _floored(e.op, a, b, ix.nonnegative(ix.poly(e.args[0])), target)
    if e.op == "rem" and not target.prints("rem", I64):
        return _remainder(a, b)
    return raw_apply(e.op, (a, b), I64)


def _remainder(a: Expr, b: Expr) -> Expr:
    t = a.dtype
    return raw_apply("sub", (a, raw_apply("mul", (raw_apply("div", (a, b), t), b), t)), t)


def _partial(b: Expr) -> Expr:
    zero = eq(b, 0)
    return zero if b.dtype.kind == "u" else zero | eq(b, -1)


def _safe_divisor(b: Expr) -> bool:
    if isinstance(b, Const):
        return b.value not in (0, -1)
    if isinstance(b, Apply) and b.op == "select" and isinstance(b.args[1], Const) and b.args[1].value == 1:
        return b.args[0] is _partial(b.args[2])
    partial = _partial(b)
    return (isinstance(partial, Const) and not partial.value) or (b.dtype is I64 and ix.positive(ix.poly(b)))


def _floored(op: str, a: Expr, b: Expr, truncates: bool, target: Capabilities) -> Expr:
    """floor(a / b) and a mod b by truncating operations; shifts and masks where b is a power of two.

    `truncates`: neither number is negative, so that truncation is the same.
    """
    t = a.dtype
    # Not `apply`: it would make the i64 forms floored again.
    if target.prints(op, t):
        return raw_apply(op, (a, b), t)
    if isinstance(b, Const) and b.value > 0 and int(b.value).bit_count() == 1:
        if op == "mod":
            return apply("and", a, const(int(b.value) - 1, t))
        return apply("shr", a, const(int(b.value).bit_length() - 1, t))
    quotient = raw_apply("div", (a, b), t)
    rest = raw_apply("rem", (a, b), t) if target.prints("rem", t) else _remainder(a, b)
    if truncates:
        return quotient if op == "floordiv" else rest
    # Truncation went up where there is a rest whose sign is not the divisor's.
    up = ne(rest, 0) & (apply("xor", rest, b) < 0)
    if op == "mod":
        return select(up, rest + b, rest)
    return quotient - select(up, const(1, t), const(0, t))


def _shift(e: Apply) -> Expr:
    """Shifts past the width: 0, or copies of the sign."""
    a, b = e.args
    t, width = e.dtype, e.dtype.bits
    if isinstance(b, Const):
        if 0 <= b.value < width:
            return e
        return apply("shr", a, const(width - 1, t)) if e.op == "shr" and t.kind == "i" else const(0, t)
    masks = [m for m in b.args if isinstance(m, Const)] if isinstance(b, Apply) and b.op == "and" else []
    if any(0 <= m.value < width for m in masks):
        return e
    unsigned = b if t.kind == "u" else apply("bitcast", b, dtype=_UNSIGNED[width])
    inside = unsigned < const(width, unsigned.dtype)
    amount = b if e.op == "shl" or t.kind == "u" else select(inside, b, const(width - 1, t))
    shifted = apply(e.op, a, amount & const(width - 1, t))
    return shifted if amount is not b else select(inside, shifted, const(0, t))


def _integer_power(a: Expr, n: int) -> Expr:
    """a to a constant power by squaring; a negative one is 0 unless |a| is 1."""
    t = a.dtype
    if n < 0:
        negative = const(-1 if n % 2 else 1, t)
        return select(eq(a, 1), const(1, t), select(eq(a, -1), negative, const(0, t)))
    out: Expr | None = None
    square = _opaque(a)
    while n:
        if n & 1:
            out = square if out is None else out * square
        n >>= 1
        if n:
            square = square * square
    return const(1, t) if out is None else _closed(out, t)


def _any_integer_power(a: Expr, n: Expr) -> Expr:
    """a to any power: one multiplication for every bit of the exponent that can be set."""
    t = a.dtype
    signed = t.kind == "i"
    square, bits = _opaque(a), _opaque(n)
    one = const(1, square.dtype)
    out: Expr = one
    for bit in range(t.bits - signed):
        # square where the bit is set, else 1: all ones or none keep or clear what is above 1
        is_set = apply("shr", bits, const(bit, bits.dtype)) & one
        out = out * (((square - one) & apply("neg", is_set)) + one)
        square = square * square
    out = _closed(out, t)
    if not signed:
        return out
    alternating = select(ne(apply("and", n, const(1, t)), 0), const(-1, t), const(1, t))
    negative = select(eq(a, 1), const(1, t), select(eq(a, -1), alternating, const(0, t)))
    return select(n < 0, negative, out)


def _opaque(a: Expr) -> Expr:
    """An i64 number as a u64 one: index arithmetic would write out the polynomial that a power of it is."""
    return apply("bitcast", a, dtype=U64) if a.dtype is I64 else a


def _closed(a: Expr, t: DType) -> Expr:
    return a if a.dtype is t else apply("bitcast", a, dtype=t)


# ---- floats ------------------------------------------------------------------------------------------------


def _word(t: DType) -> DType:
    return I32 if t is F32 else I64


def _sign_mask(t: DType) -> int:
    return -(1 << (t.bits - 1))


def _with_bits(x: Expr, op: str, mask: int) -> Expr:
    word = _word(x.dtype)
    return apply("bitcast", apply(op, apply("bitcast", x, dtype=word), const(mask, word)), dtype=x.dtype)


def _sign_kept(magnitude: Expr, x: Expr) -> Expr:
    """A number of the sign of x or 0, with the sign bit of x."""
    t, word = x.dtype, _word(x.dtype)
    sign = apply("bitcast", x, dtype=word) & const(_sign_mask(t), word)
    return apply("bitcast", apply("bitcast", magnitude, dtype=word) | sign, dtype=t)


def _rounded(x: Expr) -> Expr:
    """To nearest even: adding 2^23 (2^52) leaves no fraction bits; larger numbers have none."""
    limit = 2.0 ** (_MANTISSA[x.dtype] - 1)
    size = apply("abs", x)
    return select(size < limit, _sign_kept((size + limit) - limit, x), x)


def constant_power(x: Expr, exponent: float) -> Expr | None:
    """x to a power that a few exact operations compute (within 1.5 ulp, special values as C's pow), else
    None."""
    match exponent:
        case 0.0:
            return const(1.0, x.dtype)
        case 1.0:
            return x
        case 2.0:
            return x * x
        case 3.0:
            return x * x * x
        case 4.0:
            return (x * x) * (x * x)
        case -1.0:
            return 1.0 / x
        case -2.0:  # not 1 / (x * x), which flushes to infinity early
            return (1.0 / x) * (1.0 / x)
        case 0.5 | -0.5:
            # pow(-inf, 0.5) is infinity and pow(-0, 0.5) is +0
            root = select(eq(x, -math.inf), const(math.inf, x.dtype), apply("sqrt", x) + 0.0)
            return root if exponent > 0 else 1.0 / root
    return None


def float_remainder(e: Apply) -> Expr:
    """C's fmod and the floored modulo in f32 and f64.

    f32 is computed in f64, exactly for |a / b| < 2^29; f64 by the formula a - b * trunc(a / b), where a
    target has no fmod.
    """
    a, b = e.args
    if e.op == "mod":
        rest = apply("rem", a, b)
        moved = select(apply("xor", rest < 0.0, b < 0.0), rest + b, rest)
        return select(eq(rest, 0.0), _sign_kept(const(0.0, e.dtype), b), moved)
    if e.dtype is F32:
        x, y = cast(a, F64), cast(b, F64)
    else:
        x, y = a, b
    # A quotient of more than 53 bits leaves a rest of several y; the second step brings it below.
    rest = _less_multiples(_less_multiples(x, y), y)
    rest = select(eq(apply("abs", y), math.inf) & (apply("abs", x) < math.inf), x, rest)
    rest = cast(rest, e.dtype)
    return select(eq(rest, 0.0), _sign_kept(const(0.0, e.dtype), a), rest)


def _less_multiples(x: Expr, y: Expr) -> Expr:
    return apply("fma", apply("neg", apply("trunc", x / y)), y, x)


# ---- floats to integers ------------------------------------------------------------------------------------


def _limits(t: DType) -> tuple[int, int]:
    return (0, (1 << t.bits) - 1) if t.kind == "u" else (-(1 << (t.bits - 1)), (1 << (t.bits - 1)) - 1)


def _clamped(x: Expr, t: DType) -> Expr:
    """x within the range of t, 0 for NaN."""
    low, high = _limits(t)
    within = minimum(maximum(x, float(low)), float(high))
    return select(eq(x, x), within, const(0.0, x.dtype))


def _inside(x: Expr, t: DType) -> Expr:
    low, high = _limits(t)
    return apply("le", const(float(low), x.dtype), x) & (x < float(high + 1))


def _argument(e: Expr, depth: int) -> Expr | None:
    """The x of a guard made above."""
    for _ in range(depth):
        if not isinstance(e, Apply):
            return None
        e = e.args[0]
    return e


def is_clamped(e: Expr, types: Iterable[DType], legal: Callable[[Expr], Expr]) -> bool:
    """Whether e is a cast of a float that is visibly within the range of one of the types: a guard made
    below, then legalised."""
    if not (isinstance(e, Apply) and e.op == "cast"):
        return False
    x = _argument(e.args[0], 2)  # select(eq(x, x), ...)
    if x is None or x.dtype is not e.args[0].dtype or x.dtype not in _MANTISSA:
        return False
    return any(e.args[0] is legal(_clamped(x, t)) for t in types)


def clamped_to_integer(x: Expr, t: DType, carrier: DType) -> Expr:
    """x truncated into the range of t, as a value of the wider type `carrier`."""
    x = x if x.dtype in _MANTISSA else cast(x, F32)
    return cast(_clamped(x, t), carrier)


def float_to_integer(e: Apply, legal: Callable[[Expr], Expr]) -> Expr:
    """A saturating cast, 0 for NaN, by one whose argument is in range."""
    x, t = e.args[0], e.dtype
    if x.dtype not in _MANTISSA:
        return cast(cast(x, F32), t)
    low, high = _limits(t)
    if t.bits - (t.kind == "i") <= _MANTISSA[x.dtype]:  # both limits are floats
        narrower = [n for n in _INTEGERS if n.kind == t.kind and n.bits <= t.bits]
        return e if is_clamped(e, narrower, legal) else cast(_clamped(x, t), t)
    if isinstance(x, Apply) and x.op == "select" and x.args[0] is _inside(x.args[1], t):
        return e
    guarded = cast(raw_apply("select", (_inside(x, t), x, const(0.0, x.dtype)), x.dtype), t)
    above = select(apply("le", const(float(high + 1), x.dtype), x), const(high, t), guarded)
    return above if t.kind == "u" else select(x < float(low), const(low, t), above)
