"""Tokens and counts of n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fusile.kernels.host.registry import Refused, host_op
from fusile.kernels.host.strings import compiled, padded_rows
from fusile.kernels.ngrams import Pool, pool_of
from fusile.kernels.registry import Malformed

Array = np.ndarray[Any, np.dtype[Any]]

_START, _END = "\x02", "\x03"
"""Tokens around a text, where the node asks for them."""


@host_op("Tokenizer", "com.microsoft")
def tokenizer(
    x: Array,
    *,
    mark: int,
    mincharnum: int,
    pad_value: str,
    separators: Sequence[str] = (),
    tokenexp: str = "",
) -> Array:
    """The tokens of every string on a last dimension: its characters, what lies between separators (patterns
    that split one after another), or what matches a pattern.
    """
    if x.ndim not in (1, 2):
        raise Refused(f"takes the shape [C] or [N, C], not {list(x.shape)}")
    if bool(separators) == bool(tokenexp) or mincharnum < 1:
        raise Malformed("has both of separators and tokenexp, or none, or mincharnum below 1")
    if not x.size:
        return np.empty((*x.shape[:-1], 0), object)
    listed = x.ravel().tolist()
    if tuple(separators) == ("",):
        if mincharnum > 1:
            raise Malformed("splits into characters, and mincharnum is above 1")
        rows = [list(text) for text in listed]
    elif separators:
        rows = [_between(text, separators, mincharnum) for text in listed]
    else:
        rows = [_matches(text, tokenexp, mincharnum) for text in listed]
    if mark and any(rows):
        rows = [[_START, *row, _END] for row in rows]
    return padded_rows(rows, x.shape, pad_value)


def _between(text: str, separators: Sequence[str], least: int) -> list[str]:
    row = [text]
    for separator in separators:
        found: list[str] = []
        search = compiled(separator).search
        for part in row:
            at = 0
            while at <= len(part):
                m = search(part, at)
                end = len(part) if m is None else m.start()
                if end - at >= least:
                    found.append(part[at:end])
                if m is None:
                    break
                at = m.end() if m.end() > m.start() else m.start() + 1
        row = found
    return row


def _matches(text: str, tokens: str, least: int) -> list[str]:
    if len(text) < least:
        return []
    found: list[str] = []
    search, at = compiled(tokens).search, 0
    while at <= len(text):
        m = search(text, at)
        if m is None:
            break
        if m.end() - m.start() >= least:
            found.append(text[m.start() : m.end()])
            at = m.end()
        else:
            at = m.start() + 1
    return found


@lru_cache(maxsize=16)
def _places(pool: Pool) -> dict[tuple[str, ...], int]:
    return {gram: column for grams in pool.grams.values() for gram, column in grams}


@host_op("TfIdfVectorizer")
def tf_idf_vectorizer(
    x: Array,
    *,
    mode: str,
    min_gram_length: int,
    max_gram_length: int,
    max_skip_count: int,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_strings: Sequence[str] = (),
    weights: Sequence[float] = (),
) -> Array:
    """How often every n-gram of the pool is in a row of strings, weighed as the mode says."""
    if x.ndim not in (1, 2):
        raise Refused(f"takes a vector or a matrix, not the shape {list(x.shape)}")
    pool = pool_of(
        tuple(pool_strings), tuple(ngram_counts), tuple(ngram_indexes), min_gram_length, max_gram_length
    )
    places = _places(pool)
    rows = x.tolist() if x.ndim == 2 else [x.tolist()]
    counts = np.zeros((len(rows), pool.width), np.float32)
    for row, total in zip(rows, counts, strict=True):
        for n in pool.grams:
            for step in range(1, 2 if n == 1 else max_skip_count + 2):
                last = len(row) - (n - 1) * step
                if last <= 0:
                    break
                for at in range(last):
                    column = places.get(tuple(row[at : at + (n - 1) * step + 1 : step]))
                    if column is not None:
                        total[column] += 1
    factors = pool.factors(mode, weights)
    out = (counts > 0).astype(np.float32) if mode == "IDF" else counts
    out = out if factors is None else out * factors
    return out if x.ndim == 2 else out[0]
