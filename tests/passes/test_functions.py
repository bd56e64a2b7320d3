"""The functions of fusile.passes.functions against f64 references, over all of f32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from evaluation import Array, argument, evaluate, every_exponent, fma, same, ulps

from fusile.capabilities import FUNCTIONS, Capabilities
from fusile.ir import interpret
from fusile.ir.expr import Apply, apply, nodes
from fusile.ir.types import F32
from fusile.passes.functions import UNARY
from fusile.passes.legalise import legalise, violations

FMA = Capabilities(has_fma=True)
NO_FMA = Capabilities()
POINTS = 400_000


@dataclass(frozen=True)
class Case:
    """A function: its reference, where it must be accurate, where most points go, and how many operations it
    may have."""

    reference: Callable[[Array], Array]
    domain: tuple[float, float]
    focus: tuple[float, float]
    operations: int
    bound: float


erf = np.vectorize(math.erf, otypes=[np.float64])
EVERYWHERE = (-math.inf, math.inf)
CASES: dict[str, Case] = {
    "exp": Case(np.exp, (-87.3365, 88.7228), (-90, 90), 15, 1.5),
    "log": Case(np.log, (0, math.inf), (0.3, 3), 29, 1.3),
    "sin": Case(np.sin, (-1e5, 1e5), (-20, 20), 17, 1.8),
    "cos": Case(np.cos, (-1e5, 1e5), (-20, 20), 19, 1.8),
    "tan": Case(np.tan, (-1e5, 1e5), (-20, 20), 24, 1.8),
    "asin": Case(np.arcsin, (-1, 1), (-1, 1), 19, 1.5),
    "acos": Case(np.arccos, (-1, 1), (-1, 1), 19, 1.5),
    "atan": Case(np.arctan, EVERYWHERE, (-10, 10), 19, 1.95),
    "tanh": Case(np.tanh, EVERYWHERE, (-10, 10), 20, 1.95),
    "erf": Case(erf, EVERYWHERE, (-4.5, 4.5), 26, 1.7),
}


def with_fma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interpret.NUMPY, "fma", fma)


def points(case: Case, seed: int) -> Array:
    draw = np.random.default_rng(seed)
    x = np.concatenate([every_exponent(1024, seed), draw.uniform(*case.focus, POINTS).astype(np.float32)])
    return x[(x >= case.domain[0]) & (x <= case.domain[1])]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("target", "loss"), [(FMA, 0.0), (NO_FMA, 0.5)], ids=["fma", "no-fma"])
def test_accuracy(name: str, target: Capabilities, loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with_fma(monkeypatch)
    case = CASES[name]
    e = legalise(apply(name, argument(F32)), target)
    assert not violations(e, target)
    x = points(case, 1)
    with np.errstate(all="ignore"):
        wanted = case.reference(x.astype(np.float64))
    error = np.where(np.abs(wanted) >= 2.0**-126, ulps(evaluate(e, x=x), wanted), 0)
    worst = int(np.argmax(error))
    assert error[worst] <= case.bound + loss, f"{error[worst]:.3f} ulp at {x[worst]!r}"


@pytest.mark.parametrize("name", CASES)
def test_operation_count(name: str) -> None:
    e = legalise(apply(name, argument(F32)), FMA)
    counted = [n for n in nodes(e) if isinstance(n, Apply) and n.op != "bitcast"]
    assert len(counted) <= CASES[name].operations


SPECIAL = np.array(
    [
        0.0,
        -0.0,
        1,
        -1,
        0.5,
        -0.5,
        2,
        -2,
        math.inf,
        -math.inf,
        math.nan,
        1e30,
        -1e30,
        1e-30,
        -1e-30,
        1e-40,
        -1e-40,
    ]
    + [
        88.72283,
        88.72284,
        89,
        1000,
        -87.33,
        -103,
        -110,
        -1000,
        3.4028235e38,
        -3.4028235e38,
        2.0**-126,
        1.0000001,
    ]
    + [0.99999994, -1.0000001, 0.55, 0.54999995, 4.0, 10.0, math.pi, math.pi / 2],
    np.float32,
)


@pytest.mark.parametrize("name", CASES)
def test_special_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_fma(monkeypatch)
    case = CASES[name]
    x = SPECIAL
    if name in ("sin", "cos", "tan"):
        x = x[~(np.isfinite(x) & (np.abs(x) > 1e15))]
    with np.errstate(all="ignore"):
        wanted = case.reference(x.astype(np.float64))
        rounded = wanted.astype(np.float32)
    got = evaluate(legalise(apply(name, argument(F32)), FMA), x=x)
    near = (ulps(got, wanted) <= 2) & (np.signbit(got) == np.signbit(rounded))
    # A result below the normal numbers may be flushed.
    flushed = (np.abs(wanted) < 2.0**-126) & (got == 0)
    bad = ~(same(got, rounded) | near | flushed)
    assert not bad.any(), list(zip(x[bad], got[bad], rounded[bad]))


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
@pytest.mark.parametrize("target", [FMA, NO_FMA], ids=["fma", "no-fma"])
def test_large_angles(name: str, target: Capabilities, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fma accurate up to 1e14; without it up to 2e7. Beyond that still what a sine can be."""
    with_fma(monkeypatch)
    e = legalise(apply(name, argument(F32)), target)
    x = np.exp(np.random.default_rng(3).uniform(math.log(1e5), math.log(1e14), 30000)).astype(np.float32)
    x = x if target.has_fma else x[x < 2e7]
    wanted = np.array([getattr(math, name)(float(v)) for v in x])
    assert ulps(evaluate(e, x=x), wanted).max() <= (2 if target.has_fma else 3)
    huge = every_exponent(64)
    huge = huge[np.abs(huge) > 1e12]
    got = evaluate(e, x=huge)
    assert np.isfinite(got).all()
    assert name == "tan" or np.abs(got).max() <= 1


def test_odd_functions_are_odd(monkeypatch: pytest.MonkeyPatch) -> None:
    with_fma(monkeypatch)
    x = points(CASES["tanh"], 5)
    x = x[np.abs(x) < 1e14]
    for name in ("tanh", "erf", "atan", "tan", "sin"):
        e = legalise(apply(name, argument(F32)), FMA)
        assert (evaluate(e, x=-x) == -evaluate(e, x=x)).all(), name


@pytest.mark.parametrize("target", [FMA, NO_FMA], ids=["fma", "no-fma"])
def test_sigmoid_is_finite_everywhere(target: Capabilities, monkeypatch: pytest.MonkeyPatch) -> None:
    with_fma(monkeypatch)
    x = argument(F32)
    e = legalise(1.0 / (1.0 + apply("exp", -x)), target)
    v = np.concatenate([every_exponent(256), np.linspace(-110, 110, 200_001, dtype=np.float32)])
    v = np.append(v, np.array([math.inf, -math.inf], np.float32))
    with np.errstate(over="ignore"):
        wanted = 1 / (1 + np.exp(-v.astype(np.float64)))
    got = evaluate(e, x=v)
    assert ((got >= 0) & (got <= 1)).all()
    assert np.where(wanted > 1e-37, ulps(got, wanted), 0).max() <= 3.5
    assert got[-2:].tolist() == [1.0, 0.0]
    assert np.isnan(evaluate(e, x=np.float32(math.nan)))


def powers(seed: int = 0, count: int = 150_000) -> tuple[Array, Array]:
    draw = np.random.default_rng(seed)
    bases = [
        np.exp(draw.uniform(-87, 88, count)),
        draw.uniform(0.5, 2, count),
        1 + draw.uniform(-1e-4, 1e-4, count),
        -np.round(draw.uniform(0, 20, count)),
        2.0 ** draw.integers(-149, 127, count) * draw.uniform(1, 2, count),
    ]
    exponents = [
        draw.uniform(-2, 2, count),
        draw.uniform(-120, 120, count),
        draw.uniform(-8e5, 8e5, count),
        np.round(draw.uniform(-20, 20, count)),
        draw.uniform(-1.2, 1.2, count),
    ]
    return np.concatenate(bases).astype(np.float32), np.concatenate(exponents).astype(np.float32)


@pytest.mark.parametrize(("target", "bound"), [(FMA, 1.2), (NO_FMA, 1.7)], ids=["fma", "no-fma"])
def test_power_accuracy(target: Capabilities, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with_fma(monkeypatch)
    e = legalise(apply("pow", argument(F32), argument(F32, "y")), target)
    assert not violations(e, target)
    x, y = powers()
    with np.errstate(all="ignore"):
        wanted = np.power(x.astype(np.longdouble), y.astype(np.longdouble)).astype(np.float64)
    got = evaluate(e, x=x, y=y)
    normal = (np.abs(wanted) >= 2.0**-126) & (np.abs(wanted) < 3.4028235e38)
    assert ulps(got[normal], wanted[normal]).max() <= bound
    assert np.isinf(got[np.abs(wanted) > 3.4028237e38]).all()
    assert (got[np.abs(wanted) < 1e-46] == 0).all()


def test_power_special_values(monkeypatch: pytest.MonkeyPatch) -> None:
    with_fma(monkeypatch)
    more = np.array([3, -3, 16777217, 16777215, -16777215, -0.3, 1.5], np.float32)
    x, y = (v.ravel() for v in np.meshgrid(np.append(SPECIAL, more), np.append(SPECIAL, more)))
    with np.errstate(all="ignore"):
        wanted = np.power(x, y)
    got = evaluate(legalise(apply("pow", argument(F32), argument(F32, "y")), FMA), x=x, y=y)
    near = (ulps(got, wanted.astype(np.float64)) <= 2) & (np.signbit(got) == np.signbit(wanted))
    bad = ~(same(got, wanted) | near)
    assert not bad.any(), list(zip(x[bad], y[bad], got[bad], wanted[bad]))[:20]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0, 4.0, -1.0, -2.0, 0.5, -0.5, 2.5, -3.0])
def test_constant_powers(exponent: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with_fma(monkeypatch)
    x = np.concatenate([every_exponent(256), SPECIAL[np.abs(SPECIAL) != np.float32(1e-40)]])
    with np.errstate(all="ignore"):
        wanted = np.power(x.astype(np.float64), exponent)
        rounded = np.power(x, np.full_like(x, exponent))
    got = evaluate(legalise(apply("pow", argument(F32), exponent), FMA), x=x)
    near = (ulps(got, wanted) <= 2) & (np.signbit(got) == np.signbit(wanted))
    bad = ~(same(got, rounded) | near | (np.abs(wanted) < 2.0**-126) & (np.abs(got) <= 2.0**-126))
    assert not bad.any(), list(zip(x[bad], got[bad], rounded[bad]))[:20]


def test_every_function_has_an_expansion() -> None:
    assert set(UNARY) | {"pow"} == FUNCTIONS
