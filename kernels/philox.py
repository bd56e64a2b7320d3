"""Random numbers out of counters: Philox4x32-10, as integer expressions.

J. Salmon, M. Moraes, R. Dror and D. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. Four words
of 32 bits come from a counter of four words under a key of two, without any state: element `i` of stream `s`
under seed `k` is the same number on every backend, for any number of threads, and however often it is worked
out.
"""

from __future__ import annotations

import struct
import zlib

from fusile.ir.expr import Expr, apply, cast, const
from fusile.ir.types import F32, F64, U32, U64, DType

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = (1 << 32) - 1

Key = tuple[int, int]
"""64 bits that choose a generator, and a stream of it."""
Words = tuple[Expr, Expr, Expr, Expr]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Four random words (u32) for a counter of four words and a key of two."""
    a, b, c, d = counter
    for n in range(_ROUNDS):
        k0, k1 = ((key[j] + n * _WEYL[j]) & _LOW for j in (0, 1))
        high0, low0 = _product(_MULTIPLIERS[0], a)
        high1, low1 = _product(_MULTIPLIERS[1], c)
        a, b, c, d = _xor(_xor(high1, b), const(k0, U32)), low1, _xor(_xor(high0, d), const(k1, U32)), low0
    return a, b, c, d


def _xor(a: Expr, b: Expr) -> Expr:
    return apply("xor", a, b)


def _product(a: int, b: Expr) -> tuple[Expr, Expr]:
    """The upper and the lower half of a product of 32 by 32 bits."""
    whole = const(a, U64) * cast(b, U64)
    return cast(apply("shr", whole, const(32, U64)), U32), cast(whole, U32)


def key_of(seed: float | None, start: int, site: str) -> Key:
    """The generator of a node: of its own seed where it has one (then nodes of equal seeds draw the same
    numbers), else of the seed that the model is compiled with, in a stream by the node's name.
    """
    if seed is not None:
        return struct.unpack("<I", struct.pack("<f", seed))[0] | 1 << 63, 0
    return start, zlib.crc32(site.encode()) + 1


def words(key: Key, position: Expr, draw: int = 0) -> Words:
    """The random words of an element, by its position (i64); `draw` numbers the draws of one element."""
    place = cast(position, U64)
    counter = (
        cast(place, U32),
        cast(apply("shr", place, const(32, U64)), U32),
        const(key[1] & _LOW, U32),
        const(draw, U32),
    )
    return philox(counter, (key[0] & _LOW, key[0] >> 32))


def uniform(random: Words, dtype: DType, first: int = 0) -> Expr:
    """A number evenly out of 0 <= x < 1: of 24 random bits in f32, 53 in f64 (from two words)."""
    high = apply("shr", random[first], const(8 if dtype is F32 else 5, U32))
    if dtype is F32:
        return cast(high, F32) * const(2.0**-24, F32)
    low = cast(apply("shr", random[first + 1], const(6, U32)), F64)
    return (cast(high, F64) * const(2.0**26, F64) + low) * const(2.0**-53, F64)


def normal(random: Words, dtype: DType) -> Expr:
    """A number of the standard normal distribution (G. Box and M. Muller, 1958), out of two even ones."""
    one = uniform(random, dtype)
    radius = apply("sqrt", apply("log", const(1.0, dtype) - one) * const(-2.0, dtype))
    return radius * apply("cos", uniform(random, dtype, 2) * const(6.283185307179586, dtype))
