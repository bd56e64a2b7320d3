"""Gradient, judged by torch's autograd: small networks and every way in which an index map is turned round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper
from operator_models import Array, interpreted

import fusile

torch = pytest.importorskip("torch")
F = torch.nn.functional
TRAINING = "ai.onnx.preview.training"


def f32(*shape: int) -> Array:
    return np.random.default_rng([1, *shape]).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """Statements that make y out of x and others, which of them are differentiated by, and y in torch."""

    name: str
    text: str
    values: Mapping[str, Array]
    by: Sequence[str]
    torch: Callable[..., Any]
    numbers: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def model(self) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in self.values.items()
        ]
        body = onnx.parser.parse_graph(f"g () => () {{ {self.text} }}").node
        nodes = [
            *body,
            helper.make_node(
                "Gradient", self.by, [f"d{x}" for x in self.by], domain=TRAINING, xs=self.by, y="y"
            ),
        ]
        constants = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in self.numbers.items()]
        outputs = [helper.make_empty_tensor_value_info(f"d{x}") for x in self.by]
        graph = helper.make_graph(nodes, "gradient", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(TRAINING, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def wanted(self) -> list[Array]:
        tensors = {k: torch.tensor(v, requires_grad=v.dtype.kind == "f") for k, v in self.values.items()}
        self.torch(**tensors).sum().backward()
        return [tensors[x].grad.numpy() for x in self.by]


CASES = [
    Case("sum", "y = Add (a, b)", {"a": f32(), "b": f32()}, ["a", "b"], lambda a, b: a + b),
    Case(
        "network",
        """h = Gemm (x, w, b)  r = Relu (h)  o = MatMul (r, v)  s = Softmax (o)  p = Mul (s, t)
        y = ReduceSum <keepdims = 0> (p)""",
        {"x": f32(5, 7), "w": f32(7, 6), "b": f32(6), "v": f32(6, 4), "t": f32(5, 4)},
        ["x", "w", "b", "v"],
        lambda x, w, b, v, t: F.softmax(F.relu(x @ w + b) @ v, -1) * t,
    ),
    Case(
        "convolution",
        """h = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)  r = Tanh (h)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)  q = Flatten (p)  y = MatMul (q, v)""",
        {"x": f32(2, 3, 8, 8), "w": f32(4, 3, 3, 3), "b": f32(4), "v": f32(16, 3)},
        ["x", "w", "b", "v"],
        lambda x, w, b, v: F.max_pool2d(torch.tanh(F.conv2d(x, w, b, 2, 1)), 2).flatten(1) @ v,
    ),
    Case(
        "dilated_groups",
        "h = Conv <pads = [2, 2, 2, 2], dilations = [2, 2], group = 2> (x, w)  y = Mul (h, h)",
        {"x": f32(2, 4, 7, 6), "w": f32(6, 2, 3, 3)},
        ["x", "w"],
        lambda x, w: F.conv2d(x, w, None, 1, 2, 2, 2) ** 2,
    ),
    Case(
        "transposed",
        "h = ConvTranspose <strides = [2, 2]> (x, w)  y = Mul (h, h)",
        {"x": f32(2, 4, 5, 6), "w": f32(4, 3, 3, 3)},
        ["x", "w"],
        lambda x, w: F.conv_transpose2d(x, w, None, 2) ** 2,
    ),
    Case(
        "means",
        "h = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)  y = Mul (h, h)",
        {"x": f32(2, 4, 7, 7)},
        ["x"],
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False) ** 2,
    ),
    Case(
        "normalised",
        "h = LayerNormalization (x, g, b)  e = Erf (h)  y = Mul (e, h)",
        {"x": f32(3, 5, 8), "g": f32(8), "b": f32(8)},
        ["x", "g", "b"],
        lambda x, g, b: torch.erf(F.layer_norm(x, (8,), g, b)) * F.layer_norm(x, (8,), g, b),
    ),
    Case(
        "moved",
        """t = Transpose <perm = [2, 0, 1]> (x)  r = Reshape (t, shape)
        c = Slice (r, start, end, axis, step)  d = Concat <axis = 0> (c, c)  y = Mul (d, d)""",
        {"x": f32(4, 5, 6)},
        ["x"],
        lambda x: (lambda r: torch.cat([r, r]) ** 2)(x.permute(2, 0, 1).reshape(10, 12).flip(0)[::2]),
        {"shape": [10, 12], "start": [9], "end": [-100], "axis": [0], "step": [-2]},
    ),
    Case(
        "gathered",
        "g = Gather (x, i)  y = Exp (g)",
        {"x": f32(5, 3), "i": np.array([0, 2, 2, 4])},
        ["x"],
        lambda x, i: torch.exp(x[i]),
    ),
    Case(
        "broadcast",
        "e = Expand (x, shape)  g = Sigmoid (e)  y = Pow (g, p)",
        {"x": f32(3, 1), "p": np.abs(f32(2, 3, 4))},
        ["x", "p"],
        lambda x, p: torch.sigmoid(x.expand(2, 3, 4)) ** p,
        {"shape": [2, 3, 4]},
    ),
    Case(
        "attention",
        """t = Transpose <perm = [0, 2, 1]> (k)  s = MatMul (q, t)  a = Softmax <axis = -1> (s)
        o = MatMul (a, v)  y = Mul (o, o)""",
        {"q": f32(2, 5, 4), "k": f32(2, 6, 4), "v": f32(2, 6, 3)},
        ["q", "k", "v"],
        lambda q, k, v: (F.softmax(q @ k.transpose(1, 2), -1) @ v) ** 2,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_torch(case: Case) -> None:
    got = interpreted(case.model(), list(case.values.values()))
    for ours, theirs in zip(got, case.wanted(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[8]], ids=str)
def test_natively(case: Case) -> None:
    got = fusile.compile(case.model()).run(list(case.values.values()))
    for ours, theirs in zip(got, case.wanted(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * max(1, np.abs(theirs).max()))


def nested(text: str, opset: int = 18) -> onnx.ModelProto:
    graph = onnx.parser.parse_graph(text)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(TRAINING, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_the_gradient_of_a_gradient() -> None:
    model = nested(
        f"""g (float[3] x) => (float[3] d) {{
            q = Mul (x, x)  y = Mul (q, x)
            s = {TRAINING}.Gradient <xs = ["x"], y = "y"> (x)
            d = {TRAINING}.Gradient <xs = ["x"], y = "s"> (x)
        }}"""
    )
    x = np.array([1, -2, 3], np.float32)
    np.testing.assert_allclose(interpreted(model, [x])[0], 6 * x)


def test_at_other_values_than_those_of_the_graph() -> None:
    model = nested(
        f"""g (float[3] x, float[3] z) => (float[3] d) {{
            h = Sin (x)  y = Mul (h, h)
            d = {TRAINING}.Gradient <xs = ["h"], y = "y"> (z)
        }}"""
    )
    x, z = np.array([[1, -2, 3], [4, 5, 6]], np.float32)
    np.testing.assert_allclose(interpreted(model, [x, z])[0], 2 * z)


def test_what_cannot_be_differentiated_says_so() -> None:
    model = nested(
        f"""g (float[3] x, int64[2] i, float[2] u) => (float[3] d) {{
            y = ScatterElements (x, i, u)
            d = {TRAINING}.Gradient <xs = ["x"], y = "y"> (x)
        }}"""
    )
    with pytest.raises(fusile.UnsupportedError, match="a choice by data"):
        interpreted(model, [np.ones(3, np.float32), np.array([0, 1]), np.ones(2, np.float32)])


def test_through_the_choice_of_the_largest() -> None:
    model = nested(
        f"""g (float[4] x) => (float[4] d) {{
            k = Constant <value_ints = [2]> ()
            y, _i = TopK (x, k)
            d = {TRAINING}.Gradient <xs = ["x"], y = "y"> (x)
        }}"""
    )
    got = interpreted(model, [np.array([3, 1, 4, 2], np.float32)])
    np.testing.assert_array_equal(got[0], [1, 0, 1, 0])


def test_a_name_of_nothing_is_refused() -> None:
    model = nested(
        f"""g (float[3] x) => (float[3] d) {{
            d = {TRAINING}.Gradient <xs = ["x"], y = "lost"> (x)
        }}"""
    )
    with pytest.raises(fusile.InvalidModelError, match="lost"):
        interpreted(model, [np.ones(3, np.float32)])
