"""Numbers of the Mersenne Twister MT19937, in the order and the form in which numpy's RandomState draws them.

M. Matsumoto and T. Nishimura, "Mersenne Twister: A 623-dimensionally equidistributed uniform pseudo-random
number generator", ACM TOMACS 8(1), 1998. ONNX's own cases of Dropout are drawn so where the node has a seed.
Each number follows from those before it, so one task draws them all.
"""

from __future__ import annotations

import numpy as np

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, cast, const, eq, load, select
from fusile.ir.extern import Writer, extern
from fusile.ir.loops import Buffer
from fusile.ir.tensor import Tensor, compute
from fusile.ir.types import F64, U32

_WORDS, _MIDDLE = 624, 397
_FIRST = 1812433253
_TWIST = 0x9908B0DF


def _bits(op: str, a: Expr, b: int) -> Expr:
    return apply(op, a, const(b, U32))


def _xor(a: Expr, b: Expr) -> Expr:
    return apply("xor", a, b)


def uniform(seed: int, count: Expr) -> Tensor:
    """`count` numbers of type f64, evenly out of 0 <= x < 1: numpy's RandomState(seed).random_sample."""

    def write(w: Writer, out: Buffer, _: Buffer) -> None:
        state = w.array("state", [_WORDS], U32)
        word = w.local("word", seed & 0xFFFFFFFF, U32)
        with w.loop("i", _WORDS) as i:
            w.store(state, [i], word.value)
            mixed = _xor(word.value, _bits("shr", word.value, 30))
            word.set(mixed * const(_FIRST, U32) + cast(i + 1, U32))
        with w.loop("turn", ix.ceil_div(count * 2, _WORDS)) as turn:
            _twist(w, state)
            with w.loop("k", _WORDS // 2) as k, w.when(turn * (_WORDS // 2) + k < count):
                high = cast(_bits("shr", _tempered(w, load(state, [k * 2])), 5), F64)
                low = cast(_bits("shr", _tempered(w, load(state, [k * 2 + 1])), 6), F64)
                number = (high * const(2.0**26, F64) + low) * const(2.0**-53, F64)
                w.store(out, [turn * (_WORDS // 2) + k], number)

    def meaning(n: np.ndarray) -> list[np.ndarray]:
        return [np.random.RandomState(seed & 0xFFFFFFFF).random_sample(int(n))]

    size = compute((), lambda: count + 0, name="count")
    (out,) = extern([((count,), F64, "uniform")], [size], write, meaning)
    return out


def _twist(w: Writer, state: Buffer) -> None:
    """The next 624 words."""
    with w.loop("i", _WORDS) as i:
        here, after = load(state, [i]), load(state, [(i + 1) % _WORDS])
        y = w.local("y", apply("or", _bits("and", here, 1 << 31), _bits("and", after, (1 << 31) - 1)), U32)
        odd = select(eq(_bits("and", y.value, 1), const(0, U32)), const(0, U32), const(_TWIST, U32))
        far = load(state, [(i + _MIDDLE) % _WORDS])
        w.store(state, [i], _xor(_xor(far, _bits("shr", y.value, 1)), odd))


def _tempered(w: Writer, word: Expr) -> Expr:
    y = w.local("y", word, U32)
    y.set(_xor(y.value, _bits("shr", y.value, 11)))
    y.set(_xor(y.value, _bits("and", _bits("shl", y.value, 7), 0x9D2C5680)))
    y.set(_xor(y.value, _bits("and", _bits("shl", y.value, 15), 0xEFC60000)))
    return _xor(y.value, _bits("shr", y.value, 18))
