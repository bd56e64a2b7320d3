"""The n-grams that a TfIdfVectorizer counts, out of its attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fusile.kernels.registry import Malformed, Unsupported

MOST_COLUMNS = 1 << 24
"""Columns of a result."""


@dataclass(frozen=True, eq=False, slots=True)
class Pool:
    """`grams` by length: the n-grams and the columns that they are counted in, of `width`. `columns` are
    those of all n-grams, in order.
    """

    grams: Mapping[int, tuple[tuple[tuple[Any, ...], int], ...]]
    columns: tuple[int, ...]
    width: int

    def factors(self, mode: str, weights: Sequence[float]) -> np.ndarray | None:
        """What the count of every column is multiplied by; None for nothing."""
        if mode not in ("TF", "IDF", "TFIDF"):
            raise Malformed(f"mode is {mode!r}, and should be TF, IDF or TFIDF")
        if mode == "TF" or not weights:
            return None
        if len(weights) != len(self.columns):
            raise Malformed(f"{len(weights)} weights for {len(self.columns)} n-grams")
        out = np.zeros(self.width, np.float32)
        out[list(self.columns)] = weights
        return out


@lru_cache(maxsize=16)
def pool_of(
    pool: tuple[Any, ...], counts: tuple[int, ...], columns: tuple[int, ...], shortest: int, longest: int
) -> Pool:
    """The n-grams of lengths `shortest` to `longest`; `counts` says where those of each length begin.

    Raises Malformed where the lists do not fit each other.
    """
    if not pool or not columns or not 1 <= shortest <= longest <= len(counts):
        raise Malformed(f"n-grams of lengths {shortest} to {longest}, of which {len(counts)} are listed")
    if min(columns) < 0:
        raise Malformed(f"the column {min(columns)} is negative")
    width = max(columns) + 1
    if width > MOST_COLUMNS:
        raise Unsupported(f"a result of {width} columns", f"up to {MOST_COLUMNS} are made")
    found: dict[int, tuple[tuple[tuple[Any, ...], int], ...]] = {}
    number = 0
    for n, (start, end) in enumerate(zip(counts, (*counts[1:], len(pool)), strict=True), 1):
        if not 0 <= start <= end <= len(pool) or (end - start) % n:
            raise Malformed(f"{n}-grams lie from {start} to {end} of {len(pool)}")
        grams = [pool[at : at + n] for at in range(start, end, n)]
        if number + len(grams) > len(columns):
            raise Malformed(f"more n-grams than the {len(columns)} columns that are named")
        if len(set(grams)) != len(grams):
            raise Malformed(f"one of the {n}-grams is there twice")
        if shortest <= n <= longest:
            found[n] = tuple(zip(grams, columns[number : number + len(grams)], strict=True))
        number += len(grams)
    return Pool(found, columns, width)
