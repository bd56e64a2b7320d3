"""The table of edge cases, by family."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from operator_models import Array, Case


def f32(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def ints(*values: int, dtype: Any = np.int64) -> Array:
    return np.array(values, dtype)


def i64(values: Any) -> Array:
    return np.array(values, np.int64)


def u8(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).integers(0, 256, shape).astype(np.uint8)


def i8(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).integers(-128, 128, shape).astype(np.int8)


def conv(name: str, x: Array, w: Array, bias: bool = False, op: str = "Conv", **attributes: Any) -> Case:
    outputs = w.shape[0] if op == "Conv" else w.shape[1] * attributes.get("group", 1)
    return Case(name, op, (x, w, f32(outputs)) if bias else (x, w), attributes, fixed=(1, 2), tolerance=1e-5)


CONVOLUTIONS = [
    conv("1d", f32(2, 3, 9), f32(4, 3, 3), True, pads=[1, 1]),
    conv("2d_strided", f32(2, 3, 9, 8), f32(4, 3, 3, 3), True, pads=[1, 0, 2, 1], strides=[2, 3]),
    conv("2d_dilated", f32(1, 3, 9, 8), f32(4, 3, 3, 2), dilations=[2, 3]),
    conv("3d", f32(1, 2, 5, 6, 4), f32(3, 2, 2, 3, 1), strides=[1, 2, 1], pads=[0, 1, 0, 1, 1, 0]),
    conv("pointwise", f32(2, 3, 5, 5), f32(4, 3, 1, 1), True),
    conv("pointwise_strided", f32(2, 3, 5, 6), f32(4, 3, 1, 1), strides=[2, 2]),
    conv("grouped", f32(2, 6, 7, 7), f32(4, 3, 3, 3), True, group=2, pads=[1, 1, 1, 1]),
    conv("depthwise", f32(2, 4, 7, 7), f32(4, 1, 3, 3), True, group=4, strides=[2, 2]),
    conv("depthwise_twofold", f32(1, 3, 7, 7), f32(6, 1, 3, 3), group=3, pads=[1, 1, 1, 1]),
    conv("same_upper", f32(1, 2, 7, 8), f32(3, 2, 4, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    conv("same_lower", f32(1, 2, 7, 8), f32(3, 2, 4, 3), auto_pad="SAME_LOWER", strides=[2, 3]),
    conv("valid", f32(1, 2, 7, 8), f32(3, 2, 4, 3), auto_pad="VALID"),
]


def transposed(name: str, x: Array, w: Array, bias: bool = False, **attributes: Any) -> Case:
    return conv(name, x, w, bias, "ConvTranspose", **attributes)


TRANSPOSED = [
    transposed("1d", f32(1, 2, 5), f32(2, 3, 3), True, strides=[2]),
    transposed("unit_stride", f32(1, 2, 4, 5), f32(2, 3, 3, 3), pads=[1, 1, 1, 1]),
    transposed("twice", f32(1, 2, 4, 5), f32(2, 3, 2, 2), True, strides=[2, 2]),
    transposed("k4s2p1", f32(2, 3, 4, 5), f32(3, 2, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1]),
    transposed(
        "k3s2_extra",
        f32(1, 2, 4, 5),
        f32(2, 3, 3, 3),
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        output_padding=[1, 1],
    ),
    transposed("gaps", f32(1, 2, 4, 5), f32(2, 3, 2, 2), strides=[3, 3], output_padding=[1, 2]),
    transposed("dilated", f32(1, 2, 4, 5), f32(2, 3, 3, 2), dilations=[2, 2]),
    transposed("dilated_strided", f32(1, 2, 4, 5), f32(2, 3, 3, 2), dilations=[2, 3], strides=[2, 2]),
    transposed("grouped", f32(1, 4, 4, 5), f32(4, 3, 3, 3), True, group=2, strides=[2, 1]),
    transposed("3d", f32(1, 2, 3, 3, 3), f32(2, 2, 2, 2, 2), strides=[2, 2, 2]),
    transposed("same_upper", f32(1, 2, 4, 5), f32(2, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    transposed("same_lower", f32(1, 2, 4, 5), f32(2, 3, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
    transposed("output_shape", f32(1, 2, 4, 5), f32(2, 3, 3, 3), strides=[3, 2], output_shape=[12, 10]),
    transposed("asymmetric", f32(1, 2, 4, 5), f32(2, 3, 4, 3), strides=[2, 2], pads=[0, 1, 2, 1]),
]


def pool(op: str, name: str, x: Array, outputs: int = 1, **attributes: Any) -> Case:
    return Case(name, op, (x,), attributes, outputs=outputs, opset=22)


POOLS = [
    pool("MaxPool", "1d", f32(1, 2, 9), kernel_shape=[3], strides=[2]),
    pool("MaxPool", "padded", f32(1, 2, 9, 7) - 5, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    pool("MaxPool", "ceil", f32(1, 2, 9, 8), kernel_shape=[2, 3], strides=[2, 3], ceil_mode=1),
    pool("MaxPool", "ceil_skipped", f32(1, 1, 4, 4), kernel_shape=[1, 1], strides=[3, 3], ceil_mode=1),
    pool("MaxPool", "dilated", f32(1, 2, 9, 8), kernel_shape=[2, 3], dilations=[2, 2]),
    pool("MaxPool", "same", f32(1, 2, 9, 8), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    pool("MaxPool", "3d", f32(1, 2, 5, 4, 6), kernel_shape=[2, 2, 2], strides=[2, 1, 2]),
    pool("MaxPool", "bytes", u8(1, 2, 6, 6), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    pool("MaxPool", "indices", f32(2, 2, 7, 6), 2, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    pool("MaxPool", "indices_ties", np.ones((1, 2, 4, 4), np.float32), 2, kernel_shape=[2, 2]),
    pool("MaxPool", "column_major", f32(2, 2, 7, 6), 2, kernel_shape=[3, 2], storage_order=1, strides=[2, 2]),
    pool("AveragePool", "plain", f32(1, 2, 8, 8), kernel_shape=[2, 2], strides=[2, 2]),
    pool("AveragePool", "padded", f32(1, 2, 8, 7), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    pool(
        "AveragePool", "counted", f32(1, 2, 8, 7), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    pool("AveragePool", "ceil", f32(1, 2, 8, 7), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    pool(
        "AveragePool",
        "ceil_padded",
        f32(1, 2, 8, 7),
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 0, 0, 1],
        ceil_mode=1,
    ),
    pool(
        "AveragePool",
        "ceil_counted",
        f32(1, 2, 8, 7),
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        ceil_mode=1,
        count_include_pad=1,
    ),
    pool("AveragePool", "dilated", f32(1, 2, 9, 9), kernel_shape=[2, 3], dilations=[3, 2], pads=[1, 1, 1, 1]),
    pool("AveragePool", "same", f32(1, 2, 9, 8), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    pool("LpPool", "two", f32(1, 2, 8, 7), kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    pool("LpPool", "three", np.abs(f32(1, 2, 8, 7)), kernel_shape=[3, 2], p=3),
    pool("GlobalAveragePool", "2d", f32(2, 3, 4, 5)),
    pool("GlobalMaxPool", "3d", f32(2, 3, 4, 2, 3)),
    Case("one", "GlobalLpPool", (f32(2, 3, 4, 5),), {"p": 1}),
]

PRODUCTS = [
    Case("matrices", "MatMul", (f32(4, 5), f32(5, 3))),
    Case("stacks", "MatMul", (f32(2, 1, 4, 5), f32(3, 5, 2))),
    Case("vector_matrix", "MatMul", (f32(5), f32(2, 5, 3))),
    Case("matrix_vector", "MatMul", (f32(2, 4, 5), f32(5))),
    Case("vectors", "MatMul", (f32(5), f32(5))),
    Case("integers", "MatMul", (ints(1, 2, 3, 4, dtype=np.int32).reshape(2, 2), np.eye(2, dtype=np.int32))),
    Case("empty", "MatMul", (f32(3, 0), f32(0, 2))),
    Case(
        "all", "Gemm", (f32(5, 4), f32(3, 5), f32(3)), {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}
    ),
    Case("plain", "Gemm", (f32(4, 5), f32(5, 3))),
    Case("column", "Gemm", (f32(4, 5), f32(5, 3), f32(4, 1)), {"beta": 0.25}),
    Case("scalar", "Gemm", (f32(4, 5), f32(5, 3), np.float32(2.0).reshape(()))),
    *(
        Case(
            text.replace(",", "_").replace("->", "_to_").replace(".", "o"),
            "Einsum",
            operands,
            {"equation": text},
        )
        for text, operands in {
            "ij,jk->ik": (f32(3, 4), f32(4, 5)),
            "bij,bkj->bik": (f32(2, 3, 4), f32(2, 5, 4)),
            "bhid,bhjd->bhij": (f32(2, 2, 3, 4), f32(2, 2, 5, 4)),
            "ij->j": (f32(3, 4),),
            "ii->i": (f32(4, 4),),
            "i,j->ij": (f32(3), f32(4)),
            "ij,jk,kl->il": (f32(3, 4), f32(4, 5), f32(5, 2)),
            "...ij,...jk->...ik": (f32(2, 3, 4), f32(2, 4, 5)),
            "ij,ij": (f32(3, 4), f32(3, 4)),
        }.items()
    ),
    Case("three", "Det", (f32(2, 3, 3),), opset=22),
    Case("needs_exchange", "Det", (np.array([[0, 1, 2], [1, 0, 3], [4, -3, 8]], np.float32),), opset=22),
]

CUTS = [
    Case("backwards", "Slice", (f32(6, 5), i64([-1]), i64([-7]), i64([0]), i64([-2])), fixed=(1, 2, 3, 4)),
    Case("far", "Slice", (f32(6, 5), i64([1, -3]), i64([2**62, 1000])), fixed=(1, 2)),
    Case("empty", "Slice", (f32(6, 5), i64([4]), i64([2]), i64([1])), fixed=(1, 2, 3)),
    Case("stepped", "Slice", (f32(7, 5), i64([-6]), i64([6]), i64([0]), i64([2])), fixed=(1, 2, 3, 4)),
    Case("from_the_end", "Slice", (f32(6, 5), i64([-2]), i64([-1]), i64([1])), fixed=(1, 2, 3)),
    Case("past_the_start", "Slice", (f32(6, 5), i64([-20]), i64([-4]), i64([0])), fixed=(1, 2, 3)),
    Case("bounds_when_run", "Slice", (f32(6, 5), i64([-4]), i64([5]), i64([0])), fixed=(3,)),
    Case("three", "Concat", (f32(2, 3), f32(2, 1), f32(2, 4)), {"axis": -1}, symbolic=True),
    Case("empty_part", "Concat", (f32(2, 3), f32(2, 0), f32(2, 4)), {"axis": 1}),
    Case("uneven", "Split", (f32(7, 2),), {"axis": 0, "num_outputs": 3}, outputs=3),
    Case("named", "Split", (f32(2, 7), i64([2, 0, 5])), {"axis": -1}, fixed=(1,), outputs=3),
    Case("when_run", "Split", (f32(2, 7), i64([2, 0, 5])), {"axis": -1}, outputs=3),
    Case("reflect", "Pad", (f32(4, 5), i64([3, 1, 2, 4])), {"mode": "reflect"}, fixed=(1,)),
    Case("edge", "Pad", (f32(4, 5), i64([3, 1, 2, 7])), {"mode": "edge"}, fixed=(1,)),
    Case("wrap", "Pad", (f32(4, 5), i64([3, 1, 2, 4])), {"mode": "wrap"}, fixed=(1,)),
    Case("cropped", "Pad", (f32(6, 5), i64([-1, 2, 1, -3])), {"mode": "constant"}, fixed=(1,)),
    Case("value", "Pad", (f32(4, 5), i64([1, 2]), np.array(-1.5, np.float32), i64([1])), fixed=(1, 2, 3)),
    Case("when_run", "Pad", (f32(4, 5), i64([1, 0, 2, 3]))),
    Case("tile", "Tile", (f32(2, 3), i64([2, 3])), fixed=(1,)),
    Case("up", "Expand", (f32(3, 1), i64([2, 1, 4])), fixed=(1,)),
    Case("when_run", "Expand", (f32(3, 1), i64([2, 1, 4])), symbolic=False),
    Case("upper", "Trilu", (f32(4, 5), np.array(1)), {"upper": 1}, fixed=(1,)),
    Case("lower", "Trilu", (f32(2, 4, 3), np.array(-1)), {"upper": 0}, fixed=(1,)),
    Case("crd", "DepthToSpace", (f32(1, 8, 2, 3),), {"blocksize": 2, "mode": "CRD"}),
    Case("dcr", "DepthToSpace", (f32(1, 8, 2, 3),), {"blocksize": 2}),
    Case("two", "SpaceToDepth", (f32(1, 2, 4, 6),), {"blocksize": 2}),
    Case("lengths", "ReverseSequence", (f32(4, 3), i64([1, 4, 2])), {"time_axis": 0, "batch_axis": 1}),
    Case("zero_copies", "Reshape", (f32(2, 3, 4), i64([0, -1, 2])), fixed=(1,)),
    Case("merge", "Reshape", (f32(2, 3, 4), i64([-1, 4])), fixed=(1,)),
    Case("split", "Reshape", (f32(2, 12), i64([-1, 3, 2, 2])), fixed=(1,)),
    Case("when_run", "Reshape", (f32(2, 3, 4), i64([0, -1]))),
    Case("allow_zero", "Reshape", (f32(0, 3), i64([3, 0])), {"allowzero": 1}, fixed=(1,)),
    Case("negative_axis", "Flatten", (f32(2, 3, 4),), {"axis": -1}),
    Case("first_axis", "Flatten", (f32(2, 3, 4),), {"axis": 0}),
    Case("permuted", "Transpose", (f32(2, 3, 4),), {"perm": [2, 0, 1]}),
    Case("two", "Squeeze", (f32(1, 3, 1), i64([0, -1])), fixed=(1,)),
    Case("every", "Squeeze", (f32(1, 3, 1),), symbolic=False),
    Case("ends", "Unsqueeze", (f32(3, 2), i64([0, -1])), fixed=(1,)),
    Case("floats", "Range", (np.float32(1), np.float32(-2.2), np.float32(-0.5)), fixed=(0, 1, 2)),
    Case("integers", "Range", (np.int64(10), np.int64(3), np.int64(-3)), fixed=(0, 1, 2)),
    Case("when_run", "Range", (np.int64(10), np.int64(3), np.int64(-3)), symbolic=False),
    Case("floats_when_run", "Range", (np.float32(1), np.float32(2.2), np.float32(0.5)), symbolic=False),
]

INDICES = [
    Case("negative", "Gather", (f32(5, 3), i64([[0, -1], [-5, 2]])), {"axis": 0}),
    Case("constant", "Gather", (f32(5, 3), i64([2, -1])), {"axis": 1}, fixed=(1,)),
    Case("scalar", "Gather", (f32(5, 3), np.array(1)), {"axis": 1}),
    Case("int32", "Gather", (f32(5, 3), ints(1, -2, dtype=np.int32)), {"axis": 0}),
    Case("negative", "GatherElements", (f32(4, 3), i64([[0, -1, 2], [1, 1, -4]])), {"axis": 0}),
    Case("batched", "GatherND", (f32(2, 3, 4), i64([[[1], [-1]], [[0], [2]]])), {"batch_dims": 1}),
    Case("deep", "GatherND", (f32(2, 3, 4), i64([[0, 1], [-1, -1]]))),
    Case(
        "add", "ScatterElements", (f32(4, 3), i64([[0, -1, 0], [0, 1, 3]]), f32(2, 3)), {"reduction": "add"}
    ),
    Case("set", "ScatterElements", (f32(4, 3), i64([[0, -1, 1]]), f32(1, 3)), {"axis": 0}),
    Case(
        "max",
        "ScatterElements",
        (f32(3, 4), i64([[0, 0], [1, 1]]), f32(2, 2)),
        {"axis": 1, "reduction": "max"},
    ),
    Case("rows", "ScatterND", (f32(4, 3), i64([[1], [-1]]), f32(2, 3))),
    Case("min", "ScatterND", (f32(4, 3), i64([[1, 1], [1, 1]]), f32(2)), {"reduction": "min"}),
    Case("mul", "ScatterND", (f32(4, 3), i64([[1, 1], [1, 1]]), f32(2)), {"reduction": "mul"}),
    Case("negative", "OneHot", (i64([0, -1, 7, 2]), np.array(4), f32(2)), {"axis": 0}, fixed=(1,)),
    Case("last", "OneHot", (i64([[0, 3], [1, 2]]), np.array(4), f32(2)), fixed=(1,)),
    Case("depth_when_run", "OneHot", (i64([0, 1]), i64([3]), f32(2)), symbolic=False),
    Case("diagonal", "EyeLike", (f32(3, 5),), {"k": 1, "dtype": 6}),
    Case("matrix", "NonZero", (np.array([[1, 0, 2], [0, 0, 3]], np.float32),)),
    Case("none", "NonZero", (np.zeros((2, 2), np.float32),)),
    Case("flat", "Compress", (f32(2, 3), np.array([False, True, True, False, True]))),
    Case("rows", "Compress", (f32(3, 2), np.array([True, False, True])), {"axis": 0}),
]

NUMBERS = np.array([-3.5, -1.0, -0.0, 0.0, 0.5, 1.5, 2.5, 100.0, np.inf, -np.inf, np.nan], np.float32)


def unary(op: str, x: Array = NUMBERS, name: str = "numbers", **attributes: Any) -> Case:
    return Case(name, op, (x,), attributes, opset=22)


ELEMENTWISE = [
    *(
        unary(op)
        for op in (
            "Relu",
            "Sigmoid",
            "Tanh",
            "Exp",
            "Abs",
            "Neg",
            "Sign",
            "Floor",
            "Ceil",
            "Round",
            "Sqrt",
            "Log",
            "Reciprocal",
            "IsNaN",
            "IsInf",
            "Softplus",
            "Softsign",
            "Elu",
            "Selu",
            "Celu",
            "LeakyRelu",
            "HardSigmoid",
            "HardSwish",
            "ThresholdedRelu",
            "Gelu",
            "Erf",
            "Atan",
        )
    ),
    *(
        unary(op, f32(40) * 2, "normal")
        for op in ("Sin", "Cos", "Tan", "Sinh", "Cosh", "Asinh", "Erf", "Mish", "Gelu")
    ),
    *(unary(op, np.linspace(-0.99, 0.99, 23, dtype=np.float32), "unit") for op in ("Asin", "Acos", "Atanh")),
    unary("Acosh", np.linspace(1, 9, 23, dtype=np.float32), "above_one"),
    unary("Gelu", f32(40), "tanh", approximate="tanh"),
    unary("IsInf", NUMBERS, "positive", detect_negative=0),
    unary("Shrink", f32(20), "soft", lambd=0.5, bias=0.5),
    unary("LeakyRelu", f32(20), "steep", alpha=1.5),
    unary("Sign", ints(-3, 0, 4), "integers"),
    unary("BitwiseNot", ints(-3, 0, 4), "integers"),
    unary("Abs", ints(-3, 0, -128, dtype=np.int8), "bytes"),
    Case("broadcast", "Add", (f32(3, 1, 2), f32(4, 1))),
    Case("truncated", "Div", (ints(7, -7, 7, -7), ints(2, 2, -2, -2))),
    Case("python", "Mod", (ints(7, -7, 7, -7), ints(3, 3, -3, -3))),
    Case("c", "Mod", (ints(7, -7, 7, -7), ints(3, 3, -3, -3)), {"fmod": 1}),
    Case("floats", "Mod", (f32(8) * 5, f32(8, seed=1)), {"fmod": 1}),
    Case("right", "BitShift", (u8(6), ints(0, 1, 2, 3, 4, 7, dtype=np.uint8)), {"direction": "RIGHT"}),
    Case("left", "BitShift", (u8(6), ints(0, 1, 2, 3, 4, 7, dtype=np.uint8)), {"direction": "LEFT"}),
    *(
        Case(f"exponent_{e}", "Pow", (np.abs(f32(3, 4)) + 0.1, np.array(e, np.float32)), fixed=(1,))
        for e in (2, 3, 4, 0.5, -0.5, -1, 1, 0, 2.5)
    ),
    Case("tensors", "Pow", (np.abs(f32(5)), f32(5, seed=1))),
    Case("integer_base", "Pow", (ints(2, -3, 5), ints(3, 3, 0))),
    Case("integers", "Pow", (ints(2, -3, 5, 0, -1, 7), ints(62, 3, 0, 0, 2**40 + 1, 1))),
    Case("integer_exponent", "Pow", (f32(3), ints(2, 3, 0))),
    Case("both", "Clip", (f32(20), np.array(-0.5, np.float32), np.array(0.5, np.float32)), fixed=(1, 2)),
    Case("upper", "Clip", (f32(20), None, np.array(0.5, np.float32))),
    Case("crossed", "Clip", (f32(20), np.array(0.5, np.float32), np.array(-0.5, np.float32))),
    Case("nan", "Max", (NUMBERS, NUMBERS[::-1].copy(), np.zeros(11, np.float32))),
    Case("nan", "Min", (NUMBERS, NUMBERS[::-1].copy())),
    Case("three", "Mean", (f32(3, 2), f32(2), f32(3, 1))),
    Case("broadcast", "Where", (f32(3, 1) > 0, f32(4), f32(3, 4))),
    Case("per_channel", "PRelu", (f32(2, 3, 4), f32(3, 1))),
    Case("nan", "Greater", (NUMBERS, NUMBERS[::-1].copy())),
    Case("integers", "Less", (ints(1, 2, 3), ints(2, 2, 2))),
    *(
        Case(f"{source}_to_{to}", "Cast", (np.array([0, 1, 3, 100], source),), {"to": to})
        for source, to in itertools.product(
            ("float32", "int64", "uint8", "bool", "float16"), (1, 2, 3, 6, 7, 9, 10, 11)
        )
    ),
    Case("wraps", "Cast", (ints(300, -1, 70000),), {"to": 2}),
    Case("truncates", "Cast", (np.array([-1.9, 1.9, 0.5], np.float32),), {"to": 7}),
]


def axes(*values: int) -> Array:
    return i64(list(values))


REDUCTIONS = [
    *(
        Case(f"{op}_axes", op, (np.abs(f32(3, 4, 5)) + 0.1, axes(-1, 0)), {"keepdims": keep}, fixed=(1,))
        for op, keep in itertools.product(
            (
                "ReduceSum",
                "ReduceMean",
                "ReduceMax",
                "ReduceMin",
                "ReduceProd",
                "ReduceL1",
                "ReduceL2",
                "ReduceLogSum",
                "ReduceLogSumExp",
                "ReduceSumSquare",
            ),
            (0, 1),
        )
    ),
    Case("all", "ReduceSum", (f32(3, 4),), {"keepdims": 0}),
    Case("nothing", "ReduceSum", (f32(3, 4),), {"noop_with_empty_axes": 1}),
    Case("minus_infinity", "ReduceLogSumExp", (np.full((2, 3), -np.inf, np.float32), axes(1)), fixed=(1,)),
    Case("large", "ReduceLogSumExp", (f32(2, 3) * 200, axes(1)), fixed=(1,)),
    Case("integers", "ReduceMax", (ints(1, 5, 3, -2).reshape(2, 2), axes(0)), fixed=(1,)),
    Case("bytes", "ReduceMin", (u8(3, 4), axes(1)), fixed=(1,)),
    Case("ties", "ArgMax", (np.array([[1, 3, 3], [2, 2, 2]], np.float32),), {"axis": 1}),
    Case(
        "last", "ArgMax", (np.array([[1, 3, 3], [2, 2, 2]], np.float32),), {"axis": 1, "select_last_index": 1}
    ),
    Case("dropped", "ArgMin", (f32(3, 4, 2),), {"axis": -2, "keepdims": 0}),
    Case("large", "Softmax", (f32(3, 5) * 300,)),
    Case("middle", "Softmax", (f32(3, 5, 2),), {"axis": 1}),
    Case("old", "Softmax", (f32(3, 5, 2),), {"axis": 1}, opset=11),
    Case("large", "LogSoftmax", (f32(3, 5) * 300,)),
    Case("first", "Hardmax", (np.array([[1, 3, 3], [2, 2, 2]], np.float32),)),
    *(
        Case(f"{e}{r}", "CumSum", (f32(3, 4), np.array(1)), {"exclusive": e, "reverse": r}, fixed=(1,))
        for e, r in itertools.product((0, 1), (0, 1))
    ),
    Case("integers", "CumSum", (ints(1, 2, 3), np.array(0)), fixed=(1,)),
]

NORMALISATIONS = [
    Case(
        "plain",
        "BatchNormalization",
        (f32(2, 3, 4), f32(3), f32(3, seed=1), f32(3, seed=2), np.abs(f32(3)) + 0.1),
    ),
    Case("plain", "InstanceNormalization", (f32(2, 3, 4, 5), f32(3), f32(3, seed=1)), {"epsilon": 1e-2}),
    Case("last", "LayerNormalization", (f32(2, 3, 4), f32(4), f32(4, seed=1))),
    Case("two_axes", "LayerNormalization", (f32(2, 3, 4), f32(3, 4)), {"axis": 1}),
    Case("statistics", "LayerNormalization", (f32(2, 3, 4), f32(4)), outputs=3),
    Case("groups", "GroupNormalization", (f32(2, 6, 4), f32(6), f32(6, seed=1)), {"num_groups": 3}),
    Case(
        "old_groups",
        "GroupNormalization",
        (f32(2, 6, 4), f32(3), f32(3, seed=1)),
        {"num_groups": 3},
        opset=18,
    ),
    Case("one", "LpNormalization", (f32(3, 4),), {"p": 1, "axis": 0}),
    Case("two", "LpNormalization", (f32(3, 4),), {"p": 2}),
    Case("plain", "LRN", (f32(2, 7, 3, 2),), {"size": 3, "alpha": 0.5}),
    Case("other_power", "LRN", (f32(2, 7, 3, 2),), {"size": 5, "beta": 0.5, "bias": 2.0}),
    Case("plain", "MeanVarianceNormalization", (f32(2, 3, 4, 5),)),
]

SCALE = np.array(0.04, np.float32)
QUANTISED = [
    Case("one", "QuantizeLinear", (f32(3, 4) * 9, SCALE, np.array(7, np.uint8))),
    Case(
        "ties",
        "QuantizeLinear",
        (np.array([0.5, 1.5, 2.5, -0.5], np.float32), np.array(1, np.float32), np.array(3, np.int8)),
    ),
    Case("per_row", "QuantizeLinear", (f32(3, 4), np.abs(f32(3)) / 20 + 0.01, i8(3)), {"axis": 0}),
    Case("signed", "QuantizeLinear", (f32(3, 4) * 9, SCALE), {"output_dtype": 3}),
    Case(
        "blocks",
        "QuantizeLinear",
        (f32(4, 6), np.abs(f32(2, 6)) / 20 + 0.01, i8(2, 6)),
        {"axis": 0, "block_size": 2},
    ),
    Case("one", "DequantizeLinear", (u8(3, 4), SCALE, np.array(7, np.uint8))),
    Case("per_column", "DequantizeLinear", (i8(3, 4), np.abs(f32(4)), i8(4)), {"axis": 1}),
    Case("int32", "DequantizeLinear", (ints(1, -5, 1000, dtype=np.int32), SCALE)),
    Case("range", "DynamicQuantizeLinear", (f32(3, 4),), outputs=3),
    Case("positive", "DynamicQuantizeLinear", (np.abs(f32(3, 4)) + 1,), outputs=3),
    Case("zero", "DynamicQuantizeLinear", (np.zeros((2, 2), np.float32),), outputs=3),
    Case("zero_points", "MatMulInteger", (u8(3, 4), i8(4, 5), np.array(9, np.uint8), np.array(-2, np.int8))),
    Case("per_column", "MatMulInteger", (u8(3, 4), i8(4, 5), np.array(9, np.uint8), i8(5))),
    Case("plain", "MatMulInteger", (u8(2, 3, 4), u8(4, 5))),
    Case(
        "padded",
        "ConvInteger",
        (u8(1, 2, 5, 5), u8(3, 2, 3, 3), np.array(9, np.uint8)),
        {"pads": [1, 1, 1, 1]},
    ),
    Case(
        "one",
        "QLinearMatMul",
        (
            u8(3, 4),
            SCALE,
            np.array(9, np.uint8),
            u8(4, 5),
            SCALE,
            np.array(100, np.uint8),
            np.array(0.5, np.float32),
            np.array(128, np.uint8),
        ),
    ),
    Case(
        "per_channel",
        "QLinearConv",
        (
            u8(1, 2, 5, 5),
            SCALE,
            np.array(9, np.uint8),
            i8(3, 2, 3, 3),
            np.abs(f32(3)) / 20 + 0.01,
            np.zeros(3, np.int8),
            np.array(1.5, np.float32),
            np.array(120, np.uint8),
            ints(5, -900, 300, dtype=np.int32),
        ),
        {"pads": [1, 1, 1, 1]},
        fixed=(3, 4, 5, 8),
    ),
]

SAMPLING = [
    *(
        Case(
            f"{mode}_{padding}_{align}",
            "GridSample",
            (f32(2, 2, 4, 5), f32(2, 3, 4, 2) * 1.2),
            {"mode": mode, "padding_mode": padding, "align_corners": align},
            opset=20,
            tolerance=1e-4,
        )
        for mode, padding, align in itertools.product(
            ("linear", "nearest", "cubic"), ("zeros", "border", "reflection"), (0, 1)
        )
    ),
    Case("3d", "GridSample", (f32(1, 2, 3, 4, 5), f32(1, 2, 3, 4, 3)), opset=20, tolerance=1e-4),
    *(
        Case(
            f"{mode}_{transform}",
            "RoiAlign",
            (f32(2, 3, 8, 8), np.array([[0, 0, 5, 5], [1.5, 2, 9, 7]], np.float32), ints(1, 0)),
            {
                "mode": mode,
                "coordinate_transformation_mode": transform,
                "sampling_ratio": 2,
                "output_height": 3,
                "output_width": 2,
                "spatial_scale": 0.8,
            },
        )
        for mode, transform in itertools.product(("avg", "max"), ("half_pixel", "output_half_pixel"))
    ),
    Case(
        "bins",
        "MaxRoiPool",
        (f32(2, 3, 8, 8), np.array([[0, 0, 0, 5, 5], [1, 1, 2, 9, 7]], np.float32)),
        {"pooled_shape": [3, 2], "spatial_scale": 0.8},
    ),
    Case(
        "overlapping",
        "Col2Im",
        (f32(1, 2 * 6, 12), i64([5, 5]), i64([2, 3])),
        {"pads": [0, 0, 0, 0]},
        fixed=(1, 2),
    ),
    Case("real", "DFT", (f32(2, 9, 1),), {"onesided": 1}, opset=20, tolerance=1e-4),
    Case("complex", "DFT", (f32(2, 8, 2),), opset=20, tolerance=1e-4, symbolic=False),
    Case("inverse", "DFT", (f32(2, 6, 2),), {"inverse": 1}, opset=20, tolerance=1e-4, symbolic=False),
    Case("longer", "DFT", (f32(2, 6, 1), np.array(8)), fixed=(1,), opset=20, tolerance=1e-4, symbolic=False),
    Case("shorter", "DFT", (f32(2, 6, 1), np.array(4)), fixed=(1,), opset=20, tolerance=1e-4, symbolic=False),
    Case(
        "frames",
        "STFT",
        (f32(2, 20, 1), np.array(3), np.hanning(8).astype(np.float32)),
        fixed=(1, 2),
        tolerance=1e-4,
    ),
    Case(
        "whole",
        "MaxUnpool",
        (f32(1, 1, 2, 2), i64([[[[5, 7], [13, 15]]]])),
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    ),
]


def with_ties(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).integers(-3, 4, shape).astype(np.float32)


def topk(name: str, x: Array, k: int, **attributes: Any) -> Case:
    return Case(name, "TopK", (x, ints(k)), attributes, fixed=(1,), outputs=2)


def suppress(name: str, boxes: Array, scores: Array, *limits: Array, **attributes: Any) -> Case:
    return Case(name, "NonMaxSuppression", (boxes, scores, *limits), attributes)


_BOXES = np.random.default_rng(3).random((2, 9, 4)).astype(np.float32)
_SCORES = np.round(np.random.default_rng(4).random((2, 3, 9)), 1).astype(np.float32)
_HALF = np.array([0.4], np.float32)

ORDERED = [
    topk("few", with_ties(3, 20), 2),
    topk("most", with_ties(3, 20), 17, largest=0),
    topk("all_of_two_blocks", with_ties(2, 37), 37, axis=-1),
    topk("outer_axis", with_ties(18, 3), 5, axis=0),
    topk("none", with_ties(3, 4), 0),
    topk("one_of_one", with_ties(3, 1), 1),
    topk("wide_integers", np.array([[2**62, -(2**62), 2**62 - 1, 0, 2**33]]), 4),
    topk("doubles", f32(2, 9).astype(np.float64), 3, largest=0),
    Case("k_when_run", "TopK", (with_ties(3, 20), ints(6)), {"axis": 1}, outputs=2),
    Case("sorted", "Unique", (with_ties(4, 7),), outputs=4),
    Case("as_they_come", "Unique", (with_ties(4, 7),), {"sorted": 0}, outputs=4),
    Case("slices", "Unique", ((with_ties(6, 2) > 0).astype(np.int64),), {"axis": 0}, outputs=4),
    Case(
        "columns", "Unique", ((with_ties(2, 9) > 0).astype(np.float32),), {"axis": -1, "sorted": 0}, outputs=4
    ),
    Case("nothing", "Unique", (np.zeros(0, np.float32),), outputs=4),
    suppress("corners", _BOXES, _SCORES, ints(4), _HALF, _HALF),
    suppress("centres", _BOXES, _SCORES, ints(4), _HALF, center_point_box=1),
    suppress("no_limit", _BOXES, _SCORES),
]

CASES: list[Case] = [
    *CONVOLUTIONS,
    *TRANSPOSED,
    *POOLS,
    *PRODUCTS,
    *CUTS,
    *INDICES,
    *ORDERED,
    *ELEMENTWISE,
    *REDUCTIONS,
    *NORMALISATIONS,
    *QUANTISED,
    *SAMPLING,
]
