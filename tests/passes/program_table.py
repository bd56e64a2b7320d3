"""Small models, each a few operators that people combine, over symbolic sizes that tests fix or leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

Weights = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Small:
    """A graph in ONNX's own text form. `weights` are random initialisers by shape, `numbers` constants by
    value; `sizes` fixes the symbols.
    """

    name: str
    text: str
    weights: Weights = field(default_factory=dict)
    numbers: Mapping[str, list[int] | list[float]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def model(self) -> onnx.ModelProto:
        graph = onnx.parser.parse_graph(self.text)
        rng = np.random.default_rng(7)
        for name, shape in self.weights.items():
            value = rng.standard_normal(shape).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(value, name))
        for name, numbers in self.numbers.items():
            whole = all(isinstance(n, int) for n in numbers)
            array = np.asarray(numbers, np.int64 if whole else np.float32)
            graph.initializer.append(numpy_helper.from_array(array, name))
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


PROGRAMS: tuple[Small, ...] = (
    Small(
        "conv_relu",
        """g (float[N, 3, 6, 5] x) => (float[N, 8, 6, 5] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            y = Relu (c)
        }""",
        {"w": (8, 3, 3, 3), "b": (8,)},
        sizes={"N": 1},
    ),
    Small(
        "conv_strided_add",
        """g (float[1, 4, H, 7] x, float[1, 6, P, 4] r) => (float y) {
            c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)
            s = Add (c, r)
            y = Sigmoid (s)
        }""",
        {"w": (6, 4, 3, 3)},
        sizes={"H": 7, "P": 4},
    ),
    Small(
        "depthwise",
        """g (float[N, 6, 5, 5] x) => (float y) {
            c = Conv <group = 6, pads = [1, 1, 1, 1]> (x, w, b)
            h = HardSwish (c)
            y = Conv (h, p)
        }""",
        {"w": (6, 1, 3, 3), "b": (6,), "p": (5, 6, 1, 1)},
        sizes={"N": 2},
    ),
    Small(
        "matmul_add_gelu",
        """g (float[N, S, 12] x) => (float y) {
            m = MatMul (x, w)
            a = Add (m, b)
            y = Gelu (a)
        }""",
        {"w": (12, 21), "b": (21,)},
        sizes={"N": 2, "S": 7},
    ),
    Small(
        "mlp",
        """g (float[N, 9] x) => (float y) {
            a = Gemm <transB = 1> (x, w, b)
            r = Relu (a)
            y = Gemm (r, v)
        }""",
        {"w": (17, 9), "b": (17,), "v": (17, 10)},
        sizes={"N": 5},
    ),
    Small(
        "softmax",
        "g (float[N, S] x) => (float y) { y = Softmax <axis = -1> (x) }",
        sizes={"N": 3, "S": 37},
    ),
    Small(
        "softmax_inner",
        "g (float[N, S, 4] x) => (float y) { y = Softmax <axis = 1> (x) }",
        sizes={"N": 2, "S": 9},
    ),
    Small(
        "layernorm",
        """g (float[N, S, 24] x) => (float y) {
            n = LayerNormalization <axis = -1> (x, scale, bias)
            y = Add (n, x)
        }""",
        {"scale": (24,), "bias": (24,)},
        sizes={"N": 2, "S": 3},
    ),
    Small(
        "concat_slice",
        """g (float[N, 3, S] x, float[N, 5, S] y) => (float z, float w) {
            c = Concat <axis = 1> (x, y)
            z = Slice (c, starts, ends, axes, steps)
            e = Exp (c)
            w = Slice (e, starts2, ends2, axes)
        }""",
        numbers={
            "starts": [1],
            "ends": [7],
            "axes": [1],
            "steps": [2],
            "starts2": [2],
            "ends2": [100],
        },
        sizes={"N": 2, "S": 6},
    ),
    Small(
        "reshape_transpose",
        """g (float[N, S, 12] x) => (float y) {
            a = Reshape (x, heads)
            t = Transpose <perm = [0, 2, 1, 3]> (a)
            n = Neg (t)
            u = Transpose <perm = [0, 2, 1, 3]> (n)
            r = Reshape (u, flat)
            y = Add (r, x)
        }""",
        numbers={"heads": [0, 0, 3, 4], "flat": [0, 0, -1]},
        sizes={"N": 2, "S": 5},
    ),
    Small(
        "pooling",
        """g (float[N, 3, 7, 7] x) => (float y, float z) {
            p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)
            a = AveragePool <kernel_shape = [2, 2], strides = [1, 1], pads = [0, 0, 1, 1]> (p)
            y = Relu (a)
            z = GlobalAveragePool (a)
        }""",
        sizes={"N": 2},
    ),
    Small(
        "lstm",
        """g (float[S, N, 5] x) => (float y, float h, float c) {
            y, h, c = LSTM <hidden_size = 6, direction = "bidirectional"> (x, w, r, b)
        }""",
        {"w": (2, 24, 5), "r": (2, 24, 6), "b": (2, 48)},
        sizes={"S": 4, "N": 3},
    ),
    Small(
        "gru",
        """g (float[S, N, 5] x) => (float y) {
            y, h = GRU <hidden_size = 3, linear_before_reset = 1> (x, w, r)
        }""",
        {"w": (1, 9, 5), "r": (1, 9, 3)},
        sizes={"S": 3, "N": 2},
    ),
    Small(
        "group_norm",
        """g (float[N, 2, 3, 3] x) => (float y) {
            c = Conv (x, w)
            s = Reshape (c, groups)
            n = InstanceNormalization (s, scale, shift)
            b = Reshape (n, back)
            y = Relu (b)
        }""",
        {"w": (8, 2, 2, 2), "scale": (2,), "shift": (2,)},
        {"groups": [0, 2, -1], "back": [0, 8, 2, 2]},
        sizes={"N": 1},
    ),
    Small(
        "resize",
        """g (float[N, 2, 4, 5] x) => (float y, float z) {
            y = Resize <mode = "linear"> (x, , scales)
            z = Resize <mode = "nearest"> (x, , twice)
        }""",
        numbers={"scales": [1.0, 1.0, 1.5, 2.0], "twice": [1.0, 1.0, 2.0, 2.0]},
        sizes={"N": 1},
    ),
    Small(
        "gather",
        """g (int64[N, 4] i, float[S, 6] table, float[N, 4, 6] d) => (float y) {
            e = Gather <axis = 0> (table, i)
            y = Mul (e, d)
        }""",
        sizes={"N": 2, "S": 5},
    ),
    Small(
        "reductions",
        """g (float[N, S, 33] x) => (float a, float b, float c, float d) {
            a = ReduceMax <keepdims = 0> (x, last)
            m = ReduceMean <keepdims = 1> (x, last)
            s = Sub (x, m)
            b = ReduceSumSquare <keepdims = 0> (s, last)
            c = ReduceSum <keepdims = 0> (x, first)
            d = ReduceMean <keepdims = 0> (x)
        }""",
        numbers={"last": [2], "first": [0, 1]},
        sizes={"N": 2, "S": 5},
    ),
    Small(
        "attention",
        """g (float[N, S, 8] x) => (float y) {
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            qh = Reshape (q, heads)
            kh = Reshape (k, heads)
            vh = Reshape (v, heads)
            qt = Transpose <perm = [0, 2, 1, 3]> (qh)
            kt = Transpose <perm = [0, 2, 3, 1]> (kh)
            vt = Transpose <perm = [0, 2, 1, 3]> (vh)
            s = MatMul (qt, kt)
            d = Mul (s, scale)
            p = Softmax <axis = -1> (d)
            o = MatMul (p, vt)
            t = Transpose <perm = [0, 2, 1, 3]> (o)
            r = Reshape (t, flat)
            y = Add (r, x)
        }""",
        {"wq": (8, 8), "wk": (8, 8), "wv": (8, 8)},
        {"heads": [0, 0, 2, 4], "flat": [0, 0, 8], "scale": [0.5]},
        sizes={"N": 1, "S": 6},
    ),
    Small(
        "batch_norm",
        """g (float[N, 4, 3, 3] x) => (float y) {
            c = Conv (x, w)
            n = BatchNormalization (c, scale, bias, mean, var)
            r = Relu (n)
            y = MaxPool <kernel_shape = [2, 2]> (r)
        }""",
        {"w": (5, 4, 1, 1), "scale": (5,), "bias": (5,), "mean": (5,)},
        {"var": [1.0, 0.5, 2.0, 1.5, 0.25]},
        sizes={"N": 2},
    ),
    Small(
        "scatter",
        """g (float[N, 4] x, int64[N, 2] i, float[N, 2] u) => (float y) {
            s = ScatterElements <axis = 1, reduction = "add"> (x, i, u)
            y = Relu (s)
        }""",
        sizes={"N": 3},
    ),
    Small(
        "nonzero",
        """g (float[N, 3] x) => (int64 y, float z) {
            r = Relu (x)
            y = NonZero (r)
            t = Transpose <perm = [1, 0]> (y)
            z = GatherND (x, t)
        }""",
        sizes={"N": 4},
    ),
    Small(
        "shapes",
        """g (float[N, S, 4] x) => (float y, float z) {
            s = Shape <start = 1, end = 2> (x)
            l = Sub (s, one)
            y = Slice (x, l, s, one)
            e = Concat <axis = 0> (four, s)
            b = Expand (v, e)
            z = ReduceSum (b, one)
        }""",
        {"v": (4, 1)},
        {"one": [1], "four": [4]},
        sizes={"N": 2, "S": 3},
    ),
    Small(
        "integers",
        """g (int64[N, 5] a, int64[N, 5] b) => (int64 y, float z) {
            d = Div (a, b)
            m = Mod (a, b)
            s = Add (d, m)
            c = CumSum (s, one)
            t = Less (a, b)
            y = Where (t, c, s)
            f = Cast <to = 1> (c)
            z = Sqrt (f)
        }""",
        numbers={"one": [1]},
        sizes={"N": 3},
    ),
)
BY_NAME = {p.name: p for p in PROGRAMS}
