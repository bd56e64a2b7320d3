"""Sorting along the last axis, by whole numbers that carry their own position.

A *word* is an i64: a key of 32 bits above the 32 bits of the element's position. Words are all different, so
sorting them needs no rule for ties, and the positions of equal keys stay in order. Keys of 64 bits are sorted
twice, by the lower half and then by the upper one.

Sorting is a bottom-up merge sort. Blocks of BLOCK elements are sorted by insertion, then runs are merged in
passes over two arrays. Within a pass the result falls into pieces of BLOCK elements that know nothing of each
other: where a piece begins in the two runs is found by bisection (S. Odeh, O. Green, Z. Mwassi, O. Shmueli
and Y. Birk, "Merge Path", IPDPSW 2012), and so the pieces are the work of the threads of a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, cast, const, eq, load, maximum, minimum, ne, select
from fusile.ir.extern import Local, Writer, extern
from fusile.ir.loops import Buffer
from fusile.ir.tensor import Tensor, compute
from fusile.ir.types import BOOL, F32, F64, I32, I64, U64
from fusile.kernels.registry import Unsupported

BLOCK = 16
"""Elements that are sorted by insertion, and elements of a piece of a merge; a power of two."""
LAST = (1 << 63) - 1
"""A word that comes after all others."""
MOST_KEPT = 32
"""Results up to which the smallest words are picked out in one pass, without sorting the others."""
PICK_FROM = 2048
"""Elements of a row of which the smallest are picked out at once; longer rows are taken in parts."""

Less = Callable[[Writer, Expr, Expr], Expr]
"""Writes what it takes to compare two elements of the array that is sorted; answers whether the first comes
first.
"""


def by_value(w: Writer, a: Expr, b: Expr) -> Expr:
    """Words in ascending order."""
    return a < b


# ---- keys ----------------------------------------------------------------------------------------


def key(value: Expr, descending: bool = False) -> Expr:
    """A whole number of type i64 that orders as the value does: NaNs are alike and above all numbers, zeros
    of both signs are alike. Numbers of up to 32 bits have keys of 32 bits.
    """
    t = value.dtype
    if t.kind == "f":
        wide = F64 if t.bits > 32 else F32
        bits = I64 if wide is F64 else I32
        v = cast(value, wide)
        top = const((1 << (bits.bits - 1)) - 1, bits)
        raw = apply("bitcast", v, dtype=bits)
        ordered = select(raw < const(0, bits), apply("xor", raw, top), raw)
        ordered = select(eq(v, const(0.0, wide)), const(0, bits), ordered)
        out = cast(select(ne(v, v), top, ordered), I64)
    elif t is U64:
        out = apply("xor", cast(value, I64), const(-(1 << 63)))
    elif t.kind == "u" and t.bits == 32:
        out = cast(value, I64) - (1 << 31)
    elif t.kind in "biu":
        out = cast(value, I64)
    else:
        raise Unsupported(f"values of type {t} have no order", "")
    return apply("not", out) if descending else out


def _word(k: Expr, position: Expr) -> Expr:
    return apply("or", apply("shl", k, const(32)), position)


def word(value: Expr, position: Expr, descending: bool = False) -> Expr:
    """The word of a value of up to 32 bits."""
    return _word(key(value, descending), position)


def _place(word: Expr) -> Expr:
    """The position that a word carries."""
    return apply("and", word, const((1 << 32) - 1))


def words_of(x: Tensor, descending: bool = False) -> Tensor:
    """The words of values of up to 32 bits, along the last axis."""
    return compute(x.shape, lambda *i: word(x[i], i[-1], descending), name="words")


def wide(x: Tensor) -> bool:
    """Whether keys of this type take 64 bits."""
    return x.dtype.bits > 32


def places_of(words: Tensor) -> Tensor:
    """The positions that words carry."""
    return compute(words.shape, lambda *i: _place(words[i]), name="order")


def argsort(x: Tensor, descending: bool = False) -> Tensor:
    """The positions along the last axis in the order of the values, i64; equal values stay in order. NaN is
    above all numbers.
    """
    if not wide(x):
        return places_of(sort_words(words_of(x, descending)))
    keys = compute(x.shape, lambda *i: key(x[i], descending), name="keys")
    half = const((1 << 32) - 1)
    lower = compute(x.shape, lambda *i: _word(apply("and", keys[i], half) - (1 << 31), i[-1]), name="lower")
    first = places_of(sort_words(lower))

    def upper(*i: Expr) -> Expr:
        at = within(first[i], x.shape[-1])
        return _word(apply("shr", keys[(*i[:-1], at)], const(32)), i[-1])

    second = places_of(sort_words(compute(x.shape, upper, name="upper")))

    def both(*i: Expr) -> Expr:
        return first[(*i[:-1], within(second[i], x.shape[-1]))]

    return compute(x.shape, both, name="order")


def within(position: Expr, n: Expr) -> Expr:
    """A position that is known to be inside, said so that it can be seen."""
    return maximum(minimum(position, n - 1), const(0))


# ---- the sort ------------------------------------------------------------------------------------


def sort_words(words: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Words in ascending order along the last axis; of each row only the first `lengths`, where given (the
    others come out as LAST).
    """
    reads = [words] if lengths is None else [words, lengths]

    def write(w: Writer, out: Buffer, given: Buffer, count: Buffer | None = None) -> None:
        with w.loops(given.shape[:-1]) as row:
            n: Expr = given.shape[-1]
            if count is not None:
                n = w.local("n", minimum(load(count, row), n)).value
                with w.loop("i", given.shape[-1]) as i:
                    w.store(out, (*row, i), const(LAST))
            other = w.array("other", [given.shape[-1]], I64)
            merge_sort(w, out, row, other, n, by_value, lambda i: load(given, (*row, i)))

    def meaning(given: np.ndarray, count: np.ndarray | None = None) -> list[np.ndarray]:
        kept = given.copy()
        if count is not None:
            kept[np.arange(given.shape[-1]) >= count[..., None]] = LAST
        return [np.sort(kept, axis=-1)]

    (out,) = extern([(words.shape, I64, "sorted")], reads, write, meaning)
    return out


def merge_sort(
    w: Writer,
    out: Buffer,
    row: Sequence[Expr],
    other: Buffer,
    n: Expr,
    less: Less,
    given: Callable[[Expr], Expr],
) -> None:
    """Write the sort of `n` elements `given(i)` into `out[row, :n]`; `other` is memory for as many."""
    lead = tuple(row)
    with w.loop("block", ix.ceil_div(n, BLOCK)) as block:
        _insert(w, out, lead, block * BLOCK, n, less, given)
    passes = w.local("passes", 0)
    reach = w.local("reach", BLOCK)
    with w.loop("k", 14):
        passes.set(passes.value + cast(reach.value < n, I64))
        reach.set(reach.value * 4)
    width = w.local("width", BLOCK)
    with w.loop("pass", passes.value) as turn:
        _merge(w, (out, lead), (other, ()), n, width, turn * 2 + 5, less)
        width.set(width.value * 2)
        _merge(w, (other, ()), (out, lead), n, width, turn * 2 + 6, less)
        width.set(width.value * 2)


def _insert(
    w: Writer,
    out: Buffer,
    row: tuple[Expr, ...],
    start: Expr,
    n: Expr,
    less: Less,
    given: Callable[[Expr], Expr],
) -> None:
    """Sort a block by insertion: what is carried along changes places with all that come after it."""
    with w.loop("i", BLOCK) as i, w.when(start + i < n):
        carried = w.local("carried", given(start + i), out.dtype)
        with w.loop("j", i) as j:
            here = w.local("here", load(out, (*row, start + j)), out.dtype)
            first = w.local("first", less(w, carried.value, here.value), BOOL)
            w.store(out, (*row, start + j), select(first.value, carried.value, here.value))
            carried.set(select(first.value, here.value, carried.value))
        w.store(out, (*row, start + i), carried.value)


Run = tuple[Buffer, tuple[Expr, ...]]
"""An array, and the row of it."""


def _merge(w: Writer, source: Run, to: Run, n: Expr, width: Local, steps: Expr, less: Less) -> None:
    """Merge pairs of sorted runs of `width` elements, in pieces; `steps` bisections find a piece's place."""

    def read(at: Expr) -> Expr:
        return load(source[0], (*source[1], within(at, n)))

    with w.loop("piece", ix.ceil_div(n, BLOCK)) as piece:
        start = piece * BLOCK
        both = width.value * 2
        base = w.local("base", apply("and", start, -both)).value
        middle = w.local("middle", minimum(base + width.value, n)).value
        end = w.local("end", minimum(base + both, n)).value
        along = w.local("along", start - base).value
        low = w.local("low", maximum(along - (end - middle), 0))
        high = w.local("high", minimum(along, middle - base))
        with w.loop("step", steps), w.when(low.value < high.value):
            half = w.local("half", (low.value + high.value) // 2).value
            left = w.local("left", read(base + half), source[0].dtype).value
            right = w.local("right", read(middle + along - 1 - half), source[0].dtype).value
            first = w.local("first", less(w, left, right), BOOL).value
            low.set(select(first, half + 1, low.value))
            high.set(select(first, high.value, half))
        one = w.local("one", base + low.value)
        two = w.local("two", middle + along - low.value)
        with w.loop("j", BLOCK) as j, w.when(start + j < n):
            left = w.local("left", read(one.value), source[0].dtype).value
            right = w.local("right", read(two.value), source[0].dtype).value
            before = less(w, left, right) | (end <= two.value)
            first = w.local("first", before & (one.value < middle), BOOL).value
            w.store(to[0], (*to[1], start + j), select(first, left, right))
            one.set(one.value + cast(first, I64))
            two.set(two.value + select(first, const(0), const(1)))


# ---- the smallest few ----------------------------------------------------------------------------


def smallest_words(words: Tensor, k: int) -> Tensor:
    """The `k` smallest words along the last axis in order (LAST where there are fewer). Long rows are taken
    in parts first, so that there is work for many threads.
    """
    n = ix.number(words.shape[-1])
    if n is not None and n > PICK_FROM:
        width = PICK_FROM // 8
        parts = -(-n // width)
        lead = words.shape[:-1]

        def part(*i: Expr) -> Expr:
            at = i[-2] * width + i[-1]
            return select(at < n, words[(*i[:-2], minimum(at, n - 1))], const(LAST))

        picked = smallest_words(compute((*lead, parts, width), part, name="parts"), k)
        words = compute((*lead, parts * k), lambda *i: picked[(*i[:-1], i[-1] // k, i[-1] % k)], name="few")

    def write(w: Writer, out: Buffer, given: Buffer) -> None:
        with w.loops(given.shape[:-1]) as row:
            kept = w.array("kept", [k], I64, "local")
            with w.loop("j", k) as j:
                w.store(kept, [j], const(LAST))
            with w.loop("i", given.shape[-1]) as i:
                word = w.local("word", load(given, (*row, i)))
                with w.when(word.value < load(kept, [const(k - 1)])), w.loop("j", k) as j:
                    here = w.local("here", load(kept, [j]))
                    w.store(kept, [j], minimum(here.value, word.value))
                    word.set(maximum(here.value, word.value))
            with w.loop("j", k) as j:
                w.store(out, (*row, j), load(kept, [j]))

    def meaning(given: np.ndarray) -> list[np.ndarray]:
        room = np.full((*given.shape[:-1], k), LAST)
        return [np.sort(np.concatenate([given, room], axis=-1), axis=-1)[..., :k]]

    (out,) = extern([((*words.shape[:-1], k), I64, "smallest")], [words], write, meaning)
    return out
