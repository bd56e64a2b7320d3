"""Random operators: known answers of the generators, distributions, and the same numbers on every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from operator_models import Array, Case, interpreted, one_node

import fusile
from fusile.ir.expr import const
from fusile.ir.interpret import evaluate
from fusile.ir.types import U32
from fusile.kernels import philox

ONES = 0xFFFFFFFF
N = 40_000

KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
"""Known answers that the generator's authors publish with it (Random123, philox4x32 of 10 rounds)."""


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN)
def test_known_answers(counter: Any, key: Any, wanted: Any) -> None:
    got = philox.philox(tuple(const(c, U32) for c in counter), key)  # type: ignore[arg-type]
    assert tuple(int(evaluate(w, {}, lambda *_: None)) for w in got) == wanted


def source(op: str, name: str = "draw", **attributes: Any) -> onnx.ModelProto:
    """A model of one node without inputs."""
    node = helper.make_node(op, [], ["y0"], name=name, **attributes)
    graph = helper.make_graph([node], "draws", [], [helper.make_empty_tensor_value_info("y0")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def natively(model: onnx.ModelProto, *values: Array, **options: Any) -> list[Array]:
    return [np.asarray(y) for y in fusile.compile(model, **options).run(list(values))]


def normal(x: Array) -> Array:
    return np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])


def distance(draws: Array, cumulative: Callable[[Array], Array]) -> float:
    """How far the draws are from a distribution (Kolmogorov and Smirnov), times the root of their number:
    above 1.95 once in a thousand times.
    """
    x = np.sort(draws.astype(np.float64).ravel())
    steps = np.arange(1, x.size + 1) / x.size
    return float(np.max(np.abs(cumulative(x) - steps)) * math.sqrt(x.size))


@pytest.mark.parametrize("dtype", [1, 11])
def test_distributions(dtype: int) -> None:
    (even,) = natively(source("RandomUniform", shape=[N], low=-1.0, high=3.0, dtype=dtype))
    assert even.dtype == helper.tensor_dtype_to_np_dtype(dtype)
    assert even.min() >= -1 and even.max() < 3
    assert distance(even, lambda x: (x + 1) / 4) < 1.95
    (bell,) = natively(source("RandomNormal", shape=[N], mean=2.0, scale=3.0, dtype=dtype))
    assert abs(bell.mean() - 2) < 0.06 and abs(bell.std() - 3) < 0.04
    assert distance((bell - 2) / 3, normal) < 1.95
    assert abs(np.corrcoef(bell[:-1], bell[1:])[0, 1]) < 0.02


def test_nodes_and_seeds_draw_apart() -> None:
    first, other = source("RandomUniform", shape=[100]), source("RandomUniform", "other", shape=[100])
    one = natively(first)[0]
    np.testing.assert_array_equal(natively(first)[0], one)
    for different in (natively(other)[0], natively(first, seed=1)[0]):
        assert np.count_nonzero(different == one) == 0
    own = [
        natively(source("RandomUniform", name, shape=[100], seed=3.0), seed=k)[0]
        for name, k in (("a", 0), ("b", 9))
    ]
    np.testing.assert_array_equal(own[0], own[1])


def test_bernoulli_and_multinomial() -> None:
    chances = np.repeat(np.array([0.0, 0.3, 1.0], np.float32), N).reshape(3, N)
    (got,) = natively(one_node(Case("", "Bernoulli", (chances,), opset=22)), chances)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.mean(axis=1), [0, 0.3, 1], atol=0.012)
    weights = np.log(np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 1e-12]], np.float32))
    case = Case("", "Multinomial", (weights,), {"sample_size": N, "dtype": 7}, opset=22)
    (classes,) = natively(one_node(case), weights)
    assert classes.dtype == np.int64
    shares = [np.bincount(row, minlength=3) / N for row in classes]
    np.testing.assert_allclose(shares, [[0.1, 0.2, 0.7], [0.5, 0.5, 0]], atol=0.012)


@pytest.mark.parametrize("seed", [None, 5])
def test_dropout_while_training(seed: int | None) -> None:
    x = np.random.default_rng(0).standard_normal((200, 100)).astype(np.float32)
    inputs = (x, np.array(0.25, np.float32), np.array(True))
    attributes = {} if seed is None else {"seed": seed}
    y, kept = natively(one_node(Case("", "Dropout", inputs, attributes, outputs=2, opset=22)), *inputs)
    np.testing.assert_allclose(y, np.where(kept, x / 0.75, 0), rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 0.015
    if seed is not None:  # as ONNX's cases are drawn
        np.testing.assert_array_equal(kept, np.random.RandomState(seed).uniform(0, 1, x.shape) >= 0.25)
    quiet = (x, inputs[1], np.array(False))
    y, kept = natively(one_node(Case("", "Dropout", quiet, attributes, outputs=2, opset=22)), *quiet)
    np.testing.assert_array_equal(y, x)
    assert kept.all()


@pytest.mark.parametrize("op", ["RandomUniform", "RandomNormal"])
def test_backends_draw_the_same(op: str) -> None:
    model = source(op, shape=[7, 300])
    (wanted,) = natively(model)
    atol = 0 if op == "RandomUniform" else 1e-5
    np.testing.assert_allclose(interpreted(model, [])[0], wanted, rtol=0, atol=atol)
    np.testing.assert_allclose(natively(model, target="numba")[0], wanted, rtol=0, atol=atol)
    np.testing.assert_allclose(natively(model, threads=1, opt_level=0)[0], wanted, rtol=0, atol=atol)
