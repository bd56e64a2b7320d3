"""Counting n-grams of integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusile.ir.expr import Expr, cast, const, eq, maximum, select
from fusile.ir.tensor import Tensor, compute, constant, reduce_sum
from fusile.ir.types import F32, I64
from fusile.kernels.families.elementwise import unary
from fusile.kernels.families.scores import table
from fusile.kernels.ngrams import pool_of
from fusile.kernels.registry import Malformed, Unsupported, op

MOST_SUMS = 256
"""Pairs of a length and a distance that are counted one by one."""


@op("TfIdfVectorizer")
def tf_idf_vectorizer(
    x: Tensor,
    *,
    mode: str,
    min_gram_length: int,
    max_gram_length: int,
    max_skip_count: int,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] = (),
    pool_strings: Sequence[str] = (),
    weights: Sequence[float] = (),
) -> Tensor:
    """How often every n-gram of the pool is in a row, weighed as the mode says; skipped elements count."""
    if not 1 <= x.rank <= 2 or not x.dtype.is_int or pool_strings:
        raise Malformed(f"takes a vector or a matrix of integers and a pool of them, not {x}")
    pool = pool_of(
        tuple(pool_int64s), tuple(ngram_counts), tuple(ngram_indexes), min_gram_length, max_gram_length
    )
    factors = pool.factors(mode, weights)
    lead, width = x.shape[:-1], x.shape[-1]
    total: Tensor | None = None
    sums = 0
    for n, grams in pool.grams.items():
        for layer in _layers(grams):
            wanted = np.zeros((pool.width, n), np.int64)
            counted = np.zeros(pool.width, bool)
            for gram, column in layer:
                wanted[column], counted[column] = gram, True
            held, live = constant(wanted, "grams"), table(counted, "counted", np.bool_)
            for step in range(1, 2 if n == 1 else max_skip_count + 2):
                sums += 1
                if sums > MOST_SUMS:
                    raise Unsupported(
                        f"n-grams up to length {max_gram_length} with up to {max_skip_count} skips",
                        f"up to {MOST_SUMS} combinations are compiled",
                    )
                total = _added(x, lead, width, held, live, n, step, total)
    if total is None:
        return compute((*lead, pool.width), lambda *_: const(0, F32), name="counts")
    out = unary(total, lambda v: cast(v, F32), "counts")
    if mode == "IDF":
        out = unary(total, lambda v: select(v > 0, const(1, F32), const(0, F32)), "present")
    if factors is None:
        return out
    by = table(factors, "weights")
    return compute(out.shape, lambda *i: out[i] * by[i[-1]], name="weighed")


def _layers(grams: Sequence[tuple[tuple[int, ...], int]]) -> list[list[tuple[tuple[int, ...], int]]]:
    """The n-grams in lists in which every column is named once."""
    layers: list[list[tuple[tuple[int, ...], int]]] = []
    seen: dict[int, int] = {}
    for gram, column in grams:
        k = seen.get(column, 0)
        seen[column] = k + 1
        if k == len(layers):
            layers.append([])
        layers[k].append((gram, column))
    return layers


def _added(
    x: Tensor,
    lead: tuple[Expr, ...],
    width: Expr,
    held: Tensor,
    live: Tensor,
    n: int,
    step: int,
    total: Tensor | None,
) -> Tensor:
    """The counts so far and those of n-grams whose elements are `step` apart."""
    starts = maximum(width - (n - 1) * step, const(0))

    def count(*i: Expr) -> Expr:
        def found(at: Expr) -> Expr:
            same = live[i[-1]]
            for k in range(n):
                same = same & eq(cast(x[(*i[:-1], at + k * step)], I64), held[i[-1], const(k)])
            return select(same, const(1), const(0))

        return reduce_sum((starts,), found)

    own = compute((*lead, held.shape[0]), count, name="found")
    if total is None:
        return own
    before = total
    return compute(own.shape, lambda *i: before[i] + own[i], name="total")
