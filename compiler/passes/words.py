"""Values and the machine words that hold them, as integer expressions: small floats, packed integers, bools.

A value of a small float type that a target does not compute in is a word of as many bits (f4e2m1: a u4 in the
low bits of a u8); converting it is integer arithmetic on the word. A packed word is a u8 that holds two 4-bit
or four 2-bit values, the first in the lowest bits. None of this relies on denormal numbers: it is right with
and without flushing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusile.ir.expr import Apply, Expr, apply, cast, const, eq, ne, select
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
    I8,
    I64,
    U4,
    U8,
    U16,
    U32,
    U64,
    DType,
    storage_of,
)  # fmt: skip

INFINITY = 0x7F800000
QUIET_NAN = 0x7FC00000
WORDS: dict[int, DType] = {4: U8, 8: U8, 16: U16}


@dataclass(frozen=True, slots=True)
class SmallFloat:
    """A float of a sign, an exponent and `mantissa` bits. Codes are without the sign: `top` is the largest
    finite one, `over` what larger numbers become, `nan` what NaN becomes. `unsigned_zero`: the code of -0 is
    the one NaN, and there is no other."""

    mantissa: int
    bias: int
    top: int
    over: int
    nan: int
    unsigned_zero: bool = False

    @property
    def shift(self) -> int:
        """By how much its mantissa is shorter than that of f32."""
        return 23 - self.mantissa


SMALL: dict[DType, SmallFloat] = {
    F16: SmallFloat(10, 15, 0x7BFF, 0x7C00, 0x7E00),
    F8E5M2: SmallFloat(2, 15, 0x7B, 0x7C, 0x7E),
    F8E4M3FN: SmallFloat(3, 7, 0x7E, 0x7F, 0x7F),
    F8E5M2FNUZ: SmallFloat(2, 16, 0x7F, 0x80, 0x80, unsigned_zero=True),
    F8E4M3FNUZ: SmallFloat(3, 8, 0x7F, 0x80, 0x80, unsigned_zero=True),
    F4E2M1: SmallFloat(1, 1, 7, 7, 0),
}


def view(x: Expr, dtype: DType) -> Expr:
    """The bits of a value as another type of the same width; a view of a view is one view. The bits of a bool
    are those of its byte.
    """
    while isinstance(x, Apply) and x.op == "bitcast":
        x = x.args[0]
    if x.dtype is not dtype and BOOL in (x.dtype, dtype):
        return view(cast(x, U8), dtype) if x.dtype is BOOL else ne(view(x, U8), 0)
    return x if x.dtype is dtype else apply("bitcast", x, dtype=dtype)


def as_word(x: Expr) -> Expr:
    """The word that holds a value of a small float type: u16 or u8."""
    return cast(view(x, U4), U8) if x.dtype is F4E2M1 else view(x, WORDS[x.dtype.bits])


def as_value(word: Expr, dtype: DType) -> Expr:
    """The value of a small float type that a word holds."""
    return view(cast(word, U4), dtype) if dtype is F4E2M1 else view(word, dtype)


def _u32(value: int) -> Expr:
    return const(value & 0xFFFFFFFF, U32)


def _shl(x: Expr, by: int) -> Expr:
    return apply("shl", x, const(by, x.dtype)) if by else x


def _shr(x: Expr, by: int) -> Expr:
    return apply("shr", x, const(by, x.dtype)) if by else x


# ---- small floats ------------------------------------------------------------------------------------------


def widen(x: Expr) -> Expr:
    """A value of a small float type in f32, exactly."""
    u = cast(as_word(x), U32)
    if x.dtype is BF16:
        return view(_shl(u, 16), F32)
    if x.dtype is F8E8M0:
        low = select(eq(u, 0), _u32(1 << 22), _shl(u, 23))
        return view(select(eq(u, 255), _u32(QUIET_NAN), low), F32)
    f = SMALL[x.dtype]
    half = 1 << (x.dtype.bits - 1)
    size = u & _u32(half - 1)
    shifted = _shl(size, f.shift)
    # Below the normal numbers: the mantissa behind a leading one, less that one; float subtraction
    # normalises.
    behind_one = view(shifted + _u32((128 - f.bias) << 23), F32) - 2.0 ** (1 - f.bias)
    bits = select(size < (1 << f.mantissa), view(behind_one, U32), shifted + _u32((127 - f.bias) << 23))
    sign = _shl(u & _u32(half), 32 - x.dtype.bits)
    if f.unsigned_zero:
        return view(select(eq(u, half), _u32(QUIET_NAN), bits | sign), F32)
    if f.over > f.top and f.over != f.nan:
        bits = select(size < f.over, bits, shifted | _u32(INFINITY))
    elif f.over == f.nan:
        bits = select(eq(size, f.nan), _u32(QUIET_NAN), bits)
    return view(bits | sign, F32)


def narrow(x: Expr, dtype: DType) -> Expr:
    """An f32 value in a small float type, rounded to nearest even; out of range as ml_dtypes' astype
    answers."""
    bits = view(x, U32)
    size = bits & _u32(0x7FFFFFFF)
    if dtype is BF16:
        rounded = _shr(bits + _u32(0x7FFF) + (_shr(bits, 16) & _u32(1)), 16)
        quiet = _shr(bits, 16) & _u32(0x8000) | _u32(0x7FC0)
        return as_value(cast(select(_u32(INFINITY) < size, quiet, rounded), U16), dtype)
    if dtype is F8E8M0:
        return as_value(cast(_exponent_alone(bits), U8), dtype)
    f = SMALL[dtype]
    # Below the normal numbers: adding a power of two puts the last bit of the result into the last bit of the
    # sum.
    power = 24 - f.bias - f.mantissa
    small = view(view(size, F32) + 2.0**power, U32) - _u32((127 + power) << 23)
    half_less = (1 << (f.shift - 1)) - 1
    normal = _shr(size + _u32(((f.bias - 127) << 23) + half_less) + (_shr(size, f.shift) & _u32(1)), f.shift)
    code = select(size < ((128 - f.bias) << 23), small, normal)
    code = select(_u32(f.top) < code, _u32(f.over), code)
    half = 1 << (dtype.bits - 1)
    sign = _shr(bits, 32 - dtype.bits) & _u32(half)
    is_nan = _u32(INFINITY) < size
    if f.unsigned_zero:
        code = select(code - _u32(1) < half - 1, code | sign, code)
    elif dtype is F4E2M1:  # there is no NaN; ml_dtypes answers 0 with the other sign
        code = select(is_nan, apply("xor", sign, _u32(half)), code | sign)
    elif f.nan != f.over:
        code = select(is_nan, _u32(f.nan), code) | sign
    else:
        code = code | sign
    return as_value(cast(code, WORDS[dtype.bits]), dtype)


def _exponent_alone(bits: Expr) -> Expr:
    """The code of f8e8m0, 2^(code - 127): ties round up, except that 2^-127 itself is 0; NaN where there is
    no such number."""
    denormal = select(bits < (1 << 23), _u32(0), _u32(1))
    code = _shr(bits + _u32(0x3FFFFF) + denormal, 23)
    return select(bits - _u32(1) < INFINITY, code, _u32(255))


def rounded_to_odd(x: Expr) -> Expr:
    """An f64 value in f32, inexact ones with an odd last bit, so that a second rounding to 22 bits or less
    is right."""
    bits = view(x, U64)
    mask = (1 << 29) - 1
    dropped = bits & const(mask, U64)
    kept = bits & const(~mask & 0xFFFFFFFFFFFFFFFF, U64)
    return cast(view(kept | select(eq(dropped, 0), const(0, U64), const(1 << 29, U64)), F64), F32)


def word_of(value: float, dtype: DType) -> Expr:
    """A literal of a small float type."""
    import numpy as np

    from fusile.ir.types import numpy_dtype

    with np.errstate(over="ignore"):
        word = (
            np.array(value, np.float64)
            .astype(numpy_dtype(dtype))
            .view(np.uint16 if dtype.bits == 16 else np.uint8)
        )
    return as_value(const(int(word), WORDS[dtype.bits]), dtype)


# ---- words in memory ---------------------------------------------------------------------------------------


def lanes(dtype: DType) -> int:
    """How many values one word holds."""
    return storage_of(dtype).lanes


def unpack(word: Expr, lane: Expr | int, dtype: DType) -> Expr:
    """Value number `lane` (a number or an i64 expression, 0 <= lane < lanes(dtype)) of a packed u8 word."""
    width = dtype.bits
    by = cast(lane * width, U8) if isinstance(lane, Expr) else const(lane * width, U8)
    low = apply("shr", word, by) & const((1 << width) - 1, U8)
    if dtype is F4E2M1:
        return as_value(low, dtype)
    if dtype.kind == "i":
        up = const(8 - width, U8)
        low = apply("shr", view(apply("shl", low, up), I8), const(8 - width, I8))
    return cast(low, dtype)


def pack(values: Sequence[Expr]) -> Expr:
    """One u8 word of as many values of a packed type as it holds."""
    dtype = values[0].dtype
    width = dtype.bits
    word: Expr = const(0, U8)
    for lane, value in enumerate(values):
        low = (as_word(value) if dtype.is_float else cast(value, U8)) & const((1 << width) - 1, U8)
        word = _shl(low, lane * width) if lane == 0 else word | _shl(low, lane * width)
    return word


def replace_lane(word: Expr, lane: Expr | int, value: Expr) -> Expr:
    """A packed word with one value changed."""
    width = value.dtype.bits
    by = cast(lane * width, U8) if isinstance(lane, Expr) else const(lane * width, U8)
    mask = const((1 << width) - 1, U8)
    low = (as_word(value) if value.dtype.is_float else cast(value, U8)) & mask
    return (word & apply("not", apply("shl", mask, by))) | apply("shl", low, by)


def from_storage(word: Expr, dtype: DType, lane: Expr | int = 0) -> Expr:
    """The value of a type in a word of its storage (types.storage_of): what a load of the word means."""
    if dtype is BOOL:
        return ne(word, 0)
    if dtype.bits < 8:
        return unpack(word, lane, dtype)
    return view(word, dtype)


def to_storage(value: Expr) -> Expr:
    """The word that keeps a value where a word keeps one: what a store writes. Packed types: see `pack` and
    `replace_lane`."""
    if value.dtype is BOOL:
        return cast(value, U8)
    assert value.dtype.bits >= 8, f"{value.dtype} shares its words"
    return view(value, storage_of(value.dtype).word)


def lane_of(position: Expr, dtype: DType) -> tuple[Expr, Expr]:
    """(word, lane) of an element position in packed memory."""
    assert position.dtype is I64
    return position // lanes(dtype), position % lanes(dtype)
