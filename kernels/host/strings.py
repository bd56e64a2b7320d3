"""Operators on text: joining, splitting, changing case, matching patterns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fusile.kernels.host.registry import Refused, host_op
from fusile.kernels.registry import Malformed, Unsupported

Array = np.ndarray[Any, np.dtype[Any]]


def texts(values: Iterable[str], shape: Sequence[int]) -> Array:
    """A tensor of strings."""
    listed = list(values)
    out = np.empty(len(listed), object)
    out[:] = listed
    return out.reshape(tuple(shape))


def padded_rows(rows: Sequence[Sequence[str]], shape: Sequence[int], fill: str) -> Array:
    """Lists of strings as a last dimension, which is as long as the longest."""
    width = max(map(len, rows), default=0)
    out = np.full((len(rows), width), fill, object)
    for k, row in enumerate(rows):
        out[k, : len(row)] = list(row)
    return out.reshape((*shape, width))


@host_op("StringConcat")
def string_concat(x: Array, y: Array) -> Array:
    return np.asarray(x + y, object)


@host_op("StringSplit")
def string_split(x: Array, *, delimiter: str = "", maxsplit: int | None = None) -> tuple[Array, Array]:
    """(the parts of every string on a last dimension, filled up with empty strings; how many there are)"""
    most = -1 if maxsplit is None else maxsplit
    rows = [text.split(delimiter or None, most) for text in x.ravel().tolist()]
    counts = np.array([len(row) for row in rows], np.int64).reshape(x.shape)
    return padded_rows(rows, x.shape, ""), counts


# ---- case --------------------------------------------------------------------------------------------


def _lower(text: str) -> str:
    return _each(text, str.lower)


def _upper(text: str) -> str:
    return _each(text, str.upper)


def _each(text: str, change: Callable[[str], str]) -> str:
    """Changed letter by letter, as C's libraries do; letters that would become several stay (ß)."""
    if text.isascii():
        return change(text)
    return "".join(c if len(d := change(c)) != 1 else d for c in text)


_CASES: dict[str, Callable[[str], str]] = {"LOWER": _lower, "UPPER": _upper, "NONE": lambda text: text}


@lru_cache(maxsize=64)
def _stops(words: tuple[str, ...], compared: str) -> frozenset[str]:
    return frozenset(map(_CASES[compared], words))


@host_op("StringNormalizer")
def string_normalizer(
    x: Array,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    stopwords: Sequence[str] = (),
) -> Array:
    """The strings of a vector, or of a matrix of one row, that are no stop words, with their case changed. An
    empty string where none is left. Case is that of Unicode, whatever locale the model names.
    """
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1):
        raise Refused(f"takes the shape [C] or [1, C], not {list(x.shape)}")
    if not x.size:  # none left is one empty string; of none to begin with ONNX says nothing
        raise Refused(f"takes at least one string, not the shape {list(x.shape)}")
    if case_change_action not in _CASES:
        raise Malformed(f"case_change_action is {case_change_action!r}")
    compared = "NONE" if is_case_sensitive else "UPPER" if case_change_action == "UPPER" else "LOWER"
    stops = _stops(tuple(stopwords), compared)
    as_compared, change = _CASES[compared], _CASES[case_change_action]
    kept = [change(t) for t in x.ravel().tolist() if not stops or as_compared(t) not in stops] or [""]
    return texts(kept, (1,) * (x.ndim - 1) + (len(kept),))


# ---- patterns ----------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def compiled(text: str) -> Any:
    """A pattern of RE2, which matches in time linear in the text. Raises Malformed for what is none."""
    try:
        import re2
    except ImportError as error:
        raise Unsupported(
            "a pattern, and the library google-re2 is not installed", "pip install google-re2"
        ) from error
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(text, options)
    except re2.error as error:
        raise Malformed(f"the pattern {text!r} is none of RE2: {error}") from error


@host_op("RegexFullMatch")
def regex_full_match(x: Array, *, pattern: str = "") -> Array:
    matches = compiled(pattern).fullmatch
    return np.array([matches(t) is not None for t in x.ravel().tolist()], bool).reshape(x.shape)
