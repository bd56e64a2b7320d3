"""How far two answers are apart, and how far is still agreement: the one place where tolerances stand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fusile.runtime.module import Array, Value

DEFAULT_BOUND = 1e-3
LEAST_SCALE = 1e-6
"""The least root mean square that counts: 1e-10 where 0 is expected is no difference."""
BOUNDS: Mapping[str, float] = {"float16": 1e-2, "bfloat16": 5e-2, "8-bit integers": 2e-2, "bf16": 5e-2}
"""Wider bounds: results in float16 and bfloat16, 8-bit quantised weights, and matrix work in bfloat16."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What counts as agreement: numpy's rtol and atol where they are given, else `bound` on `error`."""

    bound: float = DEFAULT_BOUND
    rtol: float | None = None
    atol: float | None = None

    @property
    def elementwise(self) -> bool:
        return self.rtol is not None or self.atol is not None

    def __str__(self) -> str:
        if self.elementwise:
            return f"rtol {self.rtol or 0:g}, atol {self.atol or 0:g}"
        return f"{self.bound:g} of the root mean square"


@dataclass(frozen=True, slots=True)
class Difference:
    """One value compared.

    `error` is infinite where kind, type, shape, NaN or infinity differ (`why` says which). `at` is the
    index of the largest difference, and `got` and `want` are the two numbers there.
    """

    name: str
    ok: bool
    error: float
    largest: float = 0.0
    at: tuple[int, ...] = ()
    got: str = ""
    want: str = ""
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        plain = asdict(self)
        plain["error"] = self.error if math.isfinite(self.error) else None
        plain["largest"] = self.largest if math.isfinite(self.largest) else None
        return plain


def compare(name: str, got: Value, want: Value, tolerance: Tolerance) -> Difference:
    """Compare one value with what it should be."""
    why = _unlike(got, want)
    if why:
        return Difference(name, False, math.inf, math.inf, why=why)
    if want is None:
        return Difference(name, True, 0.0)
    if isinstance(want, (list, tuple, Mapping)):
        keys = list(want) if isinstance(want, Mapping) else range(len(want))
        parts = [compare(f"{name}[{key!r}]", got[key], want[key], tolerance) for key in keys]
        return max(parts, key=lambda part: part.error, default=Difference(name, True, 0.0))
    g, w = np.asarray(got), np.asarray(want)
    size = error(g, w)
    at = _worst_place(g, w)
    largest = _largest(g, w)
    ok = (
        _close(g, w, tolerance) if tolerance.elementwise and w.dtype.kind in "fc" else size <= tolerance.bound
    )
    told = (str(g[at]), str(w[at])) if w.size else ("", "")
    return Difference(name, bool(ok), size, largest, at, *told)


def error(got: Array, want: Array) -> float:
    """The distance of two arrays of one shape and type.

    For floats the largest difference over the root mean square of what is expected, over the whole
    array and, ten times looser, over each slice along each axis (of 2 to 4096 slices, 16 elements or
    more each), so that small columns beside large ones count. No scale is below LEAST_SCALE. For
    integers, booleans and strings the share that differs. Infinite where NaNs or infinities are not in
    the same places.
    """
    if want.size == 0:
        return 0.0
    if want.dtype.kind in "OSUT":
        return float(np.mean(got.astype(str) != want.astype(str)))
    if not _is_inexact(want):
        return float(np.mean(got != want))
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    g, w = got.astype(wide), want.astype(wide)
    finite = np.isfinite(w)
    if not np.array_equal(np.isnan(g), np.isnan(w)) or not np.array_equal(np.isfinite(g), finite):
        return math.inf
    infinite = np.isinf(w)
    if wide is np.float64 and np.any(g[infinite] != w[infinite]):
        return math.inf
    gap = np.abs(np.where(finite, g, 0) - np.where(finite, w, 0))
    power = np.abs(np.where(finite, w, 0)) ** 2
    scale = math.sqrt(power.sum() / max(1, int(finite.sum()))) + LEAST_SCALE
    worst = float(gap.max()) / scale
    for axis in range(w.ndim):
        count = w.shape[axis]
        if not 1 < count <= 4096 or w.size < 16 * count:
            continue
        others = tuple(other for other in range(w.ndim) if other != axis)
        local = np.sqrt(power.sum(others) / np.maximum(1, finite.sum(others)))
        worst = max(
            worst, 0.1 * float((gap.max(others) / np.maximum(local, max(1e-3 * scale, LEAST_SCALE))).max())
        )
    return worst


def bound_for(values: Sequence[Value], weights: Sequence[str], precision: str) -> tuple[float, str]:
    """The bound for a model, and why it is that: by the types of its answers, its weights and its precision.

    `weights` are the names of the element types among the initialisers.
    """
    kinds = {str(np.asarray(value).dtype) for value in values if isinstance(value, np.ndarray)}
    if precision == "bf16" or "bfloat16" in kinds | set(weights):
        return BOUNDS["bf16"], "matrix work or values in bfloat16"
    if {"int8", "uint8", "int4", "uint4"} & set(weights):
        return BOUNDS["8-bit integers"], "quantised weights"
    if "float16" in kinds | set(weights):
        return BOUNDS["float16"], "float16 values"
    return DEFAULT_BOUND, "the default"


def _unlike(got: Value, want: Value) -> str:
    """Why two values cannot be compared number by number, or nothing."""
    if want is None or got is None:
        return "" if want is None and got is None else f"expected {_kind(want)}, got {_kind(got)}"
    if isinstance(want, Mapping) or isinstance(got, Mapping):
        same = isinstance(want, Mapping) and isinstance(got, Mapping) and got.keys() == want.keys()
        return "" if same else "the maps have different keys"
    if isinstance(want, (list, tuple)) or isinstance(got, (list, tuple)):
        if not isinstance(want, (list, tuple)) or not isinstance(got, (list, tuple)):
            return f"expected {_kind(want)}, got {_kind(got)}"
        return "" if len(want) == len(got) else f"expected {len(want)} elements, got {len(got)}"
    g, w = np.asarray(got), np.asarray(want)
    if g.shape != w.shape:
        return f"expected shape {list(w.shape)}, got {list(g.shape)}"
    both_text = g.dtype.kind in "OSUT" and w.dtype.kind in "OSUT"
    return "" if g.dtype == w.dtype or both_text else f"expected type {w.dtype}, got {g.dtype}"


def _kind(value: Value) -> str:
    return "nothing" if value is None else type(value).__name__


def _is_inexact(array: Array) -> bool:
    return array.dtype.kind in "fc" or "float" in array.dtype.name


def _close(got: Array, want: Array, tolerance: Tolerance) -> bool:
    return bool(
        np.allclose(got, want, rtol=tolerance.rtol or 0.0, atol=tolerance.atol or 0.0, equal_nan=True)
    )


def _gap(got: Array, want: Array) -> Array:
    if want.dtype.kind in "OSUT":
        return np.asarray(got.astype(str) != want.astype(str), np.float64)
    if not _is_inexact(want) and want.dtype.kind not in "iu":
        return np.asarray(got != want, np.float64)
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    g, w = got.astype(wide), want.astype(wide)
    with np.errstate(invalid="ignore"):
        gap = np.abs(g - w)
    alike = (np.isnan(g) & np.isnan(w)) | (np.isinf(w) & (g == w))
    return np.where(alike, 0.0, np.where(np.isnan(gap), np.inf, gap))


def _largest(got: Array, want: Array) -> float:
    return float(_gap(got, want).max()) if want.size else 0.0


def _worst_place(got: Array, want: Array) -> tuple[int, ...]:
    if not want.size:
        return ()
    return tuple(int(place) for place in np.unravel_index(int(_gap(got, want).argmax()), want.shape))
