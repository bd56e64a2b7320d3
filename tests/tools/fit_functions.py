"""Fits the polynomials of fusile.passes.functions and prints their tables:  python
tests/tools/fit_functions.py

A table minimises max |weight(t) * (sum c_k t^k - target(t))| over an interval. Least squares on Chebyshev
nodes, each node's weight multiplied by its error again and again (Lawson's method), tends to the minimax
solution. Coefficients are then rounded to f32 from the lowest up; after each rounding the others are fitted
again to what is left. Targets are written so that they lose no digits in f64 or in numpy's long double.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Function = Callable[[Array], Array]
NODES = 2000


@dataclass(frozen=True)
class Fit:
    """A table of `count` coefficients to compute, the first of which are `given`."""

    name: str
    target: Function
    weight: Function
    interval: tuple[float, float]
    count: int
    given: tuple[float, ...] = ()
    rounded: bool = True


def series(terms: Callable[[int], float], t: Array, count: int = 40) -> Array:
    wide = np.asarray(t, np.longdouble)
    return np.asarray(sum(terms(k) * wide**k for k in range(count)), np.float64)


def joined(limit: float, small: Array, t: Array, large: Array) -> Array:
    return np.where(np.abs(t) < limit, small, large).astype(np.float64)


def exp_tail(r: Array) -> Array:
    """(e^r - 1 - r) / r^2"""
    return series(lambda k: 1 / math.factorial(k + 2), r)


def log_tail(f: Array) -> Array:
    """(log(1 + f) - f) / f^2"""
    wide = np.asarray(f, np.longdouble)
    near = series(lambda k: (-1) ** (k + 1) / (k + 2), f)
    return joined(0.1, near, f, (np.log1p(wide) - wide) / wide**2)


def log2_slope(f: Array) -> Array:
    """log2(1 + f) / f"""
    return np.asarray(1 / math.log(2) + f * log_tail(f) / math.log(2))


def sin_tail(z: Array) -> Array:
    """(sin r / r - 1) / z with z = r^2"""
    return series(lambda k: (-1) ** (k + 1) / math.factorial(2 * k + 3), z)


def tan_tail(z: Array) -> Array:
    """(tan r / r - 1) / z: sin and cos as series, so that nothing cancels"""
    cosine = series(lambda k: (-1) ** k / math.factorial(2 * k), z)
    # sin r - r cos r = r * z * sum (-1)^k z^k (1 / (2k+2)! - 1 / (2k+3)!)
    rest = series(lambda k: (-1) ** k * (1 / math.factorial(2 * k + 2) - 1 / math.factorial(2 * k + 3)), z)
    return rest / cosine


def atan_tail(z: Array) -> Array:
    """(atan r / r - 1) / z"""
    r = np.sqrt(np.asarray(z, np.longdouble))
    near = series(lambda k: (-1) ** (k + 1) / (2 * k + 3), z)
    return joined(0.02, near, z, (np.arctan(r) / r - 1) / np.maximum(z, 1e-30))


def asin_tail(z: Array) -> Array:
    """(asin r / r - 1) / z"""
    return series(lambda k: math.comb(2 * k + 2, k + 1) / 4 ** (k + 1) / (2 * k + 3), z, 60)


def erfc_slope(y: Array) -> Array:
    """log(erfc y) / y"""
    small = np.log1p(-np.array([math.erf(v) for v in y]))
    large = np.log(np.array([math.erfc(v) for v in y]))
    return joined(0.5, small, y, large) / y


def erfc_weight(y: Array) -> Array:
    """By how much a relative error of erf follows from one of the slope."""
    return np.array([v * math.erfc(v) / math.erf(v) for v in y])


def odd(function: Function) -> Function:
    """The weight of a tail in z = r^2 for the relative error of function(r)."""
    return lambda z: z * np.sqrt(z) / function(np.sqrt(z))


LN2, ROOT = math.log(2), math.sqrt(2)
TINY = 1e-7
ERF0 = -2 / math.sqrt(math.pi)
ERF0_HIGH = float(np.float32(ERF0))
FITS = (
    Fit("EXP", exp_tail, lambda r: r * r / np.exp(r), (-1e-5, LN2 + 1e-5), 5),
    Fit("EXPM1", exp_tail, lambda r: r * r / np.exp(r), (-0.5001 * LN2, 0.5001 * LN2), 5),
    Fit(
        "EXP2", lambda r: LN2 + r * LN2**2 * exp_tail(r * LN2), lambda r: abs(r) / 2**r, (-0.5001, 0.5001), 6
    ),
    Fit("LOG", log_tail, lambda f: abs(f * f / np.log1p(f)), (1 / ROOT - 1, ROOT - 1), 8, given=(-0.5,)),
    Fit("LOG2", log2_slope, lambda f: 1 / log2_slope(f), (1 / ROOT - 1, ROOT - 1), 12, rounded=False),
    Fit("SIN", sin_tail, odd(np.sin), (TINY, (math.pi / 2) ** 2), 4),
    Fit("TAN", tan_tail, odd(np.tan), (TINY, (math.pi / 4) ** 2), 6),
    Fit("ATAN", atan_tail, odd(np.arctan), (TINY, 1.0), 8),
    Fit("ASIN", asin_tail, odd(np.arcsin), (TINY, 0.3025), 5),
    Fit("ERF", lambda y: erfc_slope(y) - ERF0_HIGH, erfc_weight, (1e-4, 3.93), 9, given=(ERF0 - ERF0_HIGH,)),
)


def minimax(fit: Fit, known: list[float], rounds: int = 100) -> list[float]:
    """The coefficients that follow the `known` ones."""
    low, high = fit.interval
    t = (low + high) / 2 + (high - low) / 2 * np.cos((np.arange(NODES) + 0.5) * math.pi / NODES)
    weight = fit.weight(t)
    wanted = (fit.target(t) - sum(c * t**k for k, c in enumerate(known))) * weight
    basis = np.stack([t**k * weight for k in range(len(known), fit.count)], 1)
    size = np.abs(basis).max(0)
    node = np.full(NODES, 1 / NODES)
    best = (math.inf, np.zeros(0))
    for _ in range(rounds):
        root = np.sqrt(node)
        c = np.linalg.lstsq(basis / size * root[:, None], wanted * root, rcond=None)[0]
        error = np.abs(basis / size @ c - wanted)
        worst = float(error.max())
        best = min(best, (worst, c / size), key=lambda pair: pair[0])
        node = node * (error / worst + 1e-3)
        node /= node.sum()
    return [float(c) for c in best[1]]


def table(fit: Fit) -> tuple[list[float], float]:
    """The coefficients and their largest weighted error."""
    known = list(fit.given)
    while len(known) < fit.count:
        rest = minimax(fit, known)
        known += [float(np.float32(rest[0]))] if fit.rounded else rest
    t = np.linspace(*fit.interval, 20011)
    error = fit.weight(t) * (sum(c * t**k for k, c in enumerate(known)) - fit.target(t))
    return known, float(np.abs(error).max())


def main() -> None:
    for fit in FITS:
        coefficients, error = table(fit)
        shown = [str(np.float32(c)) if fit.rounded else f"{c:.16g}" for c in coefficients]
        print(f"{fit.name} = ({', '.join(shown)})  # error 2^{math.log2(error):.1f}")


if __name__ == "__main__":
    main()
