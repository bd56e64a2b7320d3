"""16-bit floats: rounded between operators, summed in float32 inside them, carried on from weights."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx.parser
import pytest
from operator_models import Case, by_onnxruntime, feeds, interpreted, one_node

HALVES = [np.float16, ml_dtypes.bfloat16]


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]>\n{text}')


@pytest.mark.parametrize("half", HALVES)
def test_a_sum_is_float32(half: type) -> None:
    """4,096 ones: a sum in float16 stops at 2,048, one in bfloat16 at 256."""
    ones = np.ones((2, 4096), half)
    (got,) = interpreted(one_node(Case("", "ReduceSum", (ones, np.array([1])), fixed=(1,))), [ones])
    assert got.dtype == half
    assert np.all(got.astype(np.float32) == 4096)


def test_a_product_is_rounded_before_the_next_operator() -> None:
    text = (
        "g (float16[64] x, float16[64] y, float16[64] z) => (float16[64] w) { p = Mul (x, y) w = Sub (p, z) }"
    )
    x, y = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float16)
    (got,) = interpreted(model(text), [x, y, x * y])
    assert np.all(got == 0)


def test_a_cast_rounds() -> None:
    text = "g (float[64] x) => (float[64] y) { h = Cast <to = 10> (x) y = Cast <to = 1> (h) }"
    x = np.random.default_rng(2).standard_normal(64).astype(np.float32)
    (got,) = interpreted(model(text), [x])
    np.testing.assert_array_equal(got, x.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    "case",
    [
        Case("weights", "MatMul", (np.linspace(-2, 2, 24).astype(np.float16).reshape(4, 6),) * 1
             + (np.linspace(-1, 3, 18).astype(np.float16).reshape(6, 3),), fixed=(1,)),
        Case("moved", "Transpose", (np.arange(6).astype(np.float16).reshape(2, 3),)),
        Case("shares", "Softmax", (np.linspace(-2, 2, 24).astype(np.float16).reshape(4, 6),)),
        Case("activation", "Gelu", (np.linspace(-3, 3, 50).astype(np.float16),)),
    ],
    ids=str,
)  # fmt: skip
def test_as_onnxruntime(case: Case) -> None:
    (wanted,) = by_onnxruntime(one_node(case), feeds(case))
    (got,) = interpreted(one_node(case), list(feeds(case).values()))
    assert got.dtype == wanted.dtype == np.float16
    np.testing.assert_allclose(got.astype(float), wanted.astype(float), rtol=2e-3, atol=1e-6)


def test_values_of_weights_are_carried_in_float32() -> None:
    """(x W) W^-1 loses what one rounding loses, at the output."""
    rng = np.random.default_rng(3)
    w = (np.eye(8) + rng.standard_normal((8, 8)) * 0.1).astype(np.float16)
    v = np.linalg.inv(w.astype(np.float64)).astype(np.float16)
    graph = model("g (float16[4, 8] x) => (float16[4, 8] y) { p = MatMul (x, w) y = MatMul (p, v) }")
    graph.graph.initializer.extend([onnx.numpy_helper.from_array(a, n) for a, n in ((w, "w"), (v, "v"))])
    x = rng.standard_normal((4, 8)).astype(np.float16)
    (got,) = interpreted(graph, [x])
    exact = x.astype(np.float64) @ w.astype(np.float64) @ v.astype(np.float64)
    np.testing.assert_allclose(got.astype(float), exact, rtol=6e-4, atol=3e-5)
