"""ONNX Runtime's operators on native modules: a sample of the table, one module for two shapes, inputs left
out and outputs that nothing reads, and layouts that are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from contrib_cases import MICROSOFT, assert_close, firsts, numbers
from edge_cases import f32
from onnx import TensorProto, helper, numpy_helper
from operator_models import Array, Case, by_onnxruntime, feeds, one_node

import fusile
from fusile.errors import UnsupportedError

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("case", firsts(1), ids=str)
def test_case(case: Case) -> None:
    module = fusile.compile(one_node(case, symbols=case.symbolic))
    values = feeds(case)
    got = module(*(values[port.name] for port in module.inputs))
    assert_close(case, [np.asarray(y) for y in got], by_onnxruntime(one_node(case), values))


# ---- one module, two shapes ----


def model(
    op: str,
    inputs: dict[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: dict[str, Array],
    order: Sequence[str],
    **attributes: object,
) -> onnx.ModelProto:
    """A node whose inputs, named in order, are graph inputs or constants; a name '' leaves one out."""
    node = helper.make_node(op, order, outputs, domain=MICROSOFT, **attributes)
    integers = {"ids", "mask", "seqlens", "total", "positions"}
    infos = [
        helper.make_tensor_value_info(
            name,
            TensorProto.INT64
            if name == "positions"
            else TensorProto.INT32
            if name in integers
            else TensorProto.FLOAT,
            shape,
        )
        for name, shape in inputs.items()
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs if name]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "one", infos, results, tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


HEADS, SIZE = 4, 16
WIDTH = HEADS * SIZE


def attention() -> onnx.ModelProto:
    inputs = {
        "x": ["batch", "seq", 12],
        "mask": ["batch", "past + seq"],
        "past": [2, "batch", HEADS, "past", SIZE],
    }
    constants = {"w": f32(12, 3 * WIDTH) * 0.3, "b": f32(3 * WIDTH)}
    order = ["x", "w", "b", "mask", "past"]
    return model("Attention", inputs, ["y", "present"], constants, order, num_heads=HEADS, unidirectional=1)


def multi_head() -> onnx.ModelProto:
    inputs = {
        "q": ["batch", "seq", WIDTH],
        "k": ["batch", "keys", WIDTH],
        "v": ["batch", "keys", WIDTH],
        "mask": ["batch", "keys"],
    }
    return model("MultiHeadAttention", inputs, ["y"], {}, ["q", "k", "v", "", "mask"], num_heads=HEADS)


def grouped() -> onnx.ModelProto:
    cache = ["batch", 2, "past", SIZE]
    inputs = {
        "q": ["batch", "seq", WIDTH],
        "k": ["batch", "seq", 2 * SIZE],
        "v": ["batch", "seq", 2 * SIZE],
        "past_k": cache,
        "past_v": cache,
        "seqlens": ["batch"],
        "total": [],
    }
    constants = {"cos": f32(32, SIZE // 2), "sin": f32(32, SIZE // 2, seed=1)}
    more = {"num_heads": HEADS, "kv_num_heads": 2, "do_rotary": 1}
    order = [*inputs, *constants]
    return model("GroupQueryAttention", inputs, ["y", "present_k", "present_v"], constants, order, **more)


def rotation() -> onnx.ModelProto:
    inputs = {"x": ["batch", "seq", WIDTH], "positions": ["batch", "seq"]}
    constants = {"cos": f32(32, SIZE // 2), "sin": f32(32, SIZE // 2, seed=1)}
    return model("RotaryEmbedding", inputs, ["y"], constants, [*inputs, *constants])


def skip_norm() -> onnx.ModelProto:
    inputs = {"x": ["batch", "seq", 32], "skip": ["batch", "seq", 32]}
    constants = {"gamma": f32(32), "bias": f32(32, seed=1)}
    order = ["x", "skip", "gamma", "", "bias"]
    return model("SkipLayerNormalization", inputs, ["y", "", "", "sum"], constants, order)


def few_bits() -> onnx.ModelProto:
    constants = {"b": numbers(0, 256, 24, 4, 8, dtype=np.uint8), "scales": f32(24, 4)}
    more = {"K": 64, "N": 24, "bits": 4, "block_size": 16}
    return model("MatMulNBits", {"x": ["batch", "seq", 64]}, ["y"], constants, ["x", "b", "scales"], **more)


def lstm() -> onnx.ModelProto:
    zero = np.zeros(1, np.int8)
    constants = {
        "w": numbers(-128, 128, 1, 6, 28, dtype=np.int8),
        "r": numbers(-128, 128, 1, 7, 28, dtype=np.int8),
        "ws": np.array([0.004], np.float32),
        "wz": zero,
        "rs": np.array([0.003], np.float32),
        "rz": zero,
    }
    order = ["x", "w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"]
    inputs = {"x": ["seq", "batch", 6]}
    return model("DynamicQuantizeLSTM", inputs, ["y", "", "c"], constants, order, hidden_size=7)


def embedding() -> onnx.ModelProto:
    constants = {"words": f32(10, 8), "places": f32(16, 8), "gamma": f32(8), "beta": f32(8, seed=1)}
    inputs = {"ids": ["batch", "seq"], "mask": ["batch", "seq"]}
    order = ["ids", "", "words", "places", "", "gamma", "beta", "mask"]
    return model("EmbedLayerNormalization", inputs, ["y", "count"], constants, order)


def drawn(of: onnx.ModelProto, sizes: dict[str, int]) -> dict[str, Array]:
    """Inputs for the sizes of symbols."""
    out: dict[str, Array] = {}
    for value in of.graph.input:
        shape = []
        for d in value.type.tensor_type.shape.dim:
            parts = [p.strip() for p in d.dim_param.split("+")] if d.dim_param else []
            shape.append(sum(sizes[p] for p in parts) if parts else d.dim_value)
        name = value.name
        if name == "seqlens":
            out[name] = np.full(shape, sizes["past"] + sizes["seq"] - 1, np.int32)
        elif name == "total":
            out[name] = np.array(sizes["past"] + sizes["seq"], np.int32)
        elif name in ("ids", "mask", "positions"):
            kind = np.int64 if name == "positions" else np.int32
            out[name] = numbers(0, 2 if name == "mask" else 8, *shape, dtype=kind)
        else:
            out[name] = f32(*shape)
    return out


@pytest.mark.parametrize(
    "build", [attention, multi_head, grouped, rotation, skip_norm, few_bits, lstm, embedding]
)
def test_one_module_for_two_shapes(build: object) -> None:
    of = build()  # type: ignore[operator]
    module = fusile.compile(of)
    for sizes in (
        {"batch": 2, "seq": 1, "past": 5, "keys": 7},
        {"batch": 1, "seq": 6, "past": 3, "keys": 4},
        {"batch": 3, "seq": 1, "past": 1, "keys": 1},
    ):
        values = drawn(of, sizes)
        wanted = by_onnxruntime(of, values)
        got = module(*(values[port.name] for port in module.inputs))
        for ours, theirs in zip(got, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_blocked_layouts_are_refused_with_the_way_out() -> None:
    node = helper.make_node("ReorderInput", ["x"], ["y"], domain="com.microsoft.nchwc")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, 4, 4])
    graph = helper.make_graph([node], "blocked", [x], [helper.make_empty_tensor_value_info("y")])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft.nchwc", 1)]
    with pytest.raises(UnsupportedError, match="ORT_ENABLE_EXTENDED"):
        fusile.compile(helper.make_model(graph, opset_imports=opsets, ir_version=10))
