"""Evaluates expressions over arrays for the tests of this folder, with an fma that rounds once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusile.ir import interpret
from fusile.ir.expr import Expr, load, loads
from fusile.ir.types import DType, from_numpy

Array = np.ndarray
SMALLEST_NORMAL = np.float32(2.0**-126)


@dataclass(eq=False)
class Argument:
    """A tensor for a Load to read."""

    name: str
    dtype: DType


def argument(dtype: DType, name: str = "x") -> Expr:
    return load(Argument(name, dtype), ())


def evaluate(e: Expr, **values: Any) -> Array:
    """The value of an expression whose loads read the arrays given by the names of their sources."""
    arrays = {name: np.asarray(value) for name, value in values.items()}
    for x in loads(e):
        assert from_numpy(arrays[x.source.name].dtype) is x.dtype
    with np.errstate(all="ignore"):
        out = interpret.evaluate(e, {}, lambda x, _: arrays[x.source.name])
    return np.broadcast_to(out, np.broadcast_shapes(np.shape(out), *(a.shape for a in arrays.values())))


def _two_products(a: Array, b: Array) -> tuple[Array, Array]:
    """a * b in f64 as a sum of two numbers, exactly."""

    def halves(x: Array) -> tuple[Array, Array]:
        scaled = x * 134217729.0
        high = scaled - (scaled - x)
        return high, x - high

    product = a * b
    (ah, al), (bh, bl) = halves(a), halves(b)
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, rounded once (in f64 nearly so)."""
    if np.result_type(a, b, c) == np.float32:
        wide = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
        return np.asarray(wide.astype(np.float32))
    a, b, c = np.broadcast_arrays(a, b, c)
    product, rest = _two_products(a, b)
    total = product + c
    moved = total - product
    lost = (product - (total - moved)) + (c - moved)
    out = total + (lost + rest)
    return np.where(np.isfinite(out) & (out != 0), out, a * b + c)


def ulps(got: Array, wanted: Array) -> Array:
    """How many units in the last place of f32 lie between an f32 result and the true value in f64."""
    with np.errstate(all="ignore"):
        near = np.maximum(np.abs(wanted.astype(np.float32)), SMALLEST_NORMAL)
        return np.asarray(np.abs(got.astype(np.float64) - wanted) / np.spacing(near).astype(np.float64))


def every_exponent(per_exponent: int, seed: int = 0) -> Array:
    """Normal f32 numbers of both signs, equally many of each exponent."""
    draw = np.random.default_rng(seed)
    exponents = np.repeat(np.arange(1, 255, dtype=np.uint32), per_exponent) << np.uint32(23)
    positive = (exponents | draw.integers(0, 1 << 23, exponents.size, dtype=np.uint32)).view(np.float32)
    return np.concatenate([positive, -positive])


def same(got: Array, wanted: Array) -> Array:
    """Where two float arrays agree to the sign of zero; any NaN is as good as another."""
    got, wanted = np.broadcast_arrays(got, wanted)
    return np.isnan(got) & np.isnan(wanted) | (got == wanted) & (np.signbit(got) == np.signbit(wanted))
