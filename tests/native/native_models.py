"""Small models that the tests of native modules make for themselves, and what feeds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = Mapping[str, Array]
Reference = Callable[[bytes | str, Feeds], list[Any]]
"""ONNX Runtime's answers."""

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def make(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int | str | None]]],
    outputs: Mapping[str, tuple[int, Sequence[int | str | None] | None]],
    weights: Mapping[str, Array],
) -> bytes:
    """A model of opset 18 as bytes."""
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info(name, *port) for name, port in inputs.items()],
        [helper.make_tensor_value_info(name, *port) for name, port in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def noise(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv_net(seed: int = 0) -> bytes:
    """Convolution, pooling, convolution in groups, mean, matrix; the batch is a symbol."""
    node = helper.make_node
    return make(
        [
            node("Conv", ["x", "w1", "b1"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["b"], name="relu1"),
            node("MaxPool", ["b"], ["c"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
            node("Conv", ["c", "w2"], ["d"], name="conv2", group=4, pads=[1, 1, 1, 1], strides=[2, 2]),
            node("GlobalAveragePool", ["d"], ["e"], name="mean"),
            node("Flatten", ["e"], ["f"], name="flatten"),
            node("Gemm", ["f", "w3", "b3"], ["y"], name="gemm", transB=1),
        ],
        {"x": (FLOAT, ["batch", 3, 13, 17])},
        {"y": (FLOAT, ["batch", 10]), "d": (FLOAT, ["batch", 8, 3, 4])},
        {
            "w1": noise(seed + 1, 12, 3, 3, 3),
            "b1": noise(seed + 2, 12),
            "w2": noise(seed + 3, 8, 3, 3, 3),
            "w3": noise(seed + 4, 10, 8),
            "b3": noise(seed + 5, 10),
        },
    )


def lstm() -> bytes:
    """An LSTM in both directions over symbolic time and batch."""
    return make(
        [
            helper.make_node(
                "LSTM",
                ["x", "w", "r", "b"],
                ["y", "h"],
                name="lstm",
                hidden_size=9,
                direction="bidirectional",
            )
        ],
        {"x": (FLOAT, ["time", "batch", 5])},
        {"y": (FLOAT, ["time", 2, "batch", 9]), "h": (FLOAT, [2, "batch", 9])},
        {"w": noise(1, 2, 36, 5), "r": noise(2, 2, 36, 9), "b": noise(3, 2, 72)},
    )


def nonzero() -> bytes:
    """Where x is positive, and those elements: sizes that depend on data."""
    node = helper.make_node
    return make(
        [
            node("Greater", ["x", "zero"], ["p"], name="positive"),
            node("NonZero", ["p"], ["where"], name="find"),
            node("Transpose", ["where"], ["places"], name="turn"),
            node("GatherND", ["x", "places"], ["values"], name="take"),
            node("Mul", ["values", "two"], ["doubled"], name="double"),
        ],
        {"x": (FLOAT, ["rows", 7])},
        {"where": (INT64, [2, None]), "doubled": (FLOAT, [None])},
        {"zero": np.array(0, np.float32), "two": np.array(2, np.float32)},
    )


def gather() -> bytes:
    """Rows of a table by index."""
    return make(
        [helper.make_node("Gather", ["table", "i"], ["y"], name="look up")],
        {"i": (INT64, ["n"])},
        {"y": (FLOAT, ["n", 6])},
        {"table": noise(1, 11, 6)},
    )


def matmuls(seed: int = 0, size: int = 96) -> bytes:
    """Three layers with a softmax: enough work for several threads."""
    node = helper.make_node
    return make(
        [
            node("MatMul", ["x", "w1"], ["a"], name="first"),
            node("Tanh", ["a"], ["b"], name="tanh"),
            node("MatMul", ["b", "w2"], ["c"], name="second"),
            node("Softmax", ["c"], ["y"], name="softmax", axis=-1),
            node("ReduceSum", ["b", "axes"], ["s"], name="sum", keepdims=0),
        ],
        {"x": (FLOAT, ["rows", size])},
        {"y": (FLOAT, ["rows", size]), "s": (FLOAT, ["rows"])},
        {
            "w1": noise(seed + 1, size, 4 * size),
            "w2": noise(seed + 2, 4 * size, size),
            "axes": np.array([-1], np.int64),
        },
    )


def assert_close(found: Any, wanted: Any, bound: float = 1e-4) -> None:
    """Integers are equal, floats within a share of their root mean square."""
    for mine, other in zip(found, wanted, strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        if other.dtype.kind != "f":
            np.testing.assert_array_equal(mine, other)
        elif other.size:
            scale = float(np.sqrt(np.mean(np.square(other, dtype=np.float64)))) + 1e-12
            assert float(np.abs(mine.astype(np.float64) - other).max()) <= bound * scale
