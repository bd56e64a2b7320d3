"""Operators without a row as printed tensor programs, and rows that ONNX's own cases cover."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from framework_models import FRAMEWORKS, Draw, agrees, call, close, model, module_of, node, reference
from node_cases import run_case
from onnx import TensorProto, helper

import fusile
from fusile.backends.framework import keras, torch

BACKENDS = {"torch": torch, "keras": keras}

ROWS = """
    if if_seq if_opt loop11 loop13_seq loop16_seq_none scan_sum scan9_multi_state
    sequence_insert_at_front sequence_insert_at_back sequence_map_add_2_sequences
    sequence_map_extract_shapes split_to_sequence_1 split_to_sequence_nokeepdims
    optional_get_element_sequence optional_has_element_empty_optional_input
    optional_has_element_empty_no_input_tensor_input identity_sequence
    affine_grid_2d affine_grid_3d_align_corners dft dft_irfft col2im_pads col2im_5d
    cumprod_2d_axis_0 cumprod_1d_reverse_exclusive melweightmatrix
    nonmaxsuppression_two_batches nonmaxsuppression_center_point_box_format
    nonmaxsuppression_limit_output_size unique_not_sorted_without_axis unique_sorted_with_axis_3d
    unique_sorted_with_negative_axis top_k_uint64 training_dropout_zero_ratio_mask
    quantizelinear_axis dequantizelinear_uint16 tfidfvectorizer_tf_batch_uniandbigrams_skip5
    attention_4d_causal layer_normalization_2d_axis0
"""
TORCH = "cast_FLOAT_to_FLOAT8E5M2FNUZ cast_no_saturate_FLOAT_to_FLOAT8E4M3FN quantizelinear_e5m2 add_uint64"
KERAS = """
    string_concat_broadcasting string_split_consecutive_delimiters regex_full_match_email_domain
    strnormalizer_export_monday_insensintive_upper_twodim strnormalizer_export_monday_empty_output
    ai_onnx_ml_label_encoder_string_int ai_onnx_ml_label_encoder_tensor_mapping
    image_decoder_decode_png_rgb image_decoder_decode_bmp_rgb
"""
CASES = [
    *((name, to) for name in ROWS.split() for to in FRAMEWORKS),
    *((name, "torch") for name in TORCH.split()),
    *((name, "keras") for name in KERAS.split()),
]


@pytest.mark.parametrize(("name", "to"), CASES)
def test_case_of_the_onnx_project(name: str, to: str, tmp_path: Path) -> None:
    run_case(name, to, tmp_path)


# ---- printed programs: what no row is asked for --------------------------------------------------

PRINTED = """
    lppool_2d_pads maxunpool_export_with_output_shape roialign_aligned_true gridsample_bicubic
    gridsample_volumetric_nearest_align_corners_1 det_nd lstm_with_peepholes gru_batchwise
    nonzero_example compress_1 scatternd_multiply scatter_elements_with_reduction_max
    tensorscatter qlinearmatmul_3D_int8_float32 matmulinteger convinteger_with_padding
    dynamicquantizelinear_max_adjusted deform_conv_with_mask_bias resize_upsample_sizes_cubic
    max_uint16 mod_mixed_sign_int8 pow_types_int32_int32 div_uint32 bitshift_right_uint64
    gelu_tanh_2 argmax_default_axis_example where_long_example
    concat_3d_axis_1 softmax_axis_1 transpose_all_permutations_3 einsum_batch_matmul
"""


@pytest.mark.parametrize("to", FRAMEWORKS)
@pytest.mark.parametrize("name", PRINTED.split())
def test_program_agrees_without_rows(
    name: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = BACKENDS[to]
    monkeypatch.setattr(backend, "FRAMEWORK", dataclasses.replace(backend.FRAMEWORK, rows={}))
    text = run_case(name, to, tmp_path)
    assert "as a tensor program" in text
    imported = {
        alias.name.split(".")[0]
        for part in ast.walk(ast.parse(text))
        if isinstance(part, (ast.Import, ast.ImportFrom))
        for alias in (part.names if isinstance(part, ast.Import) else [ast.alias(part.module or "")])
    }
    allowed = {"torch", "keras", "tensorflow", "numpy", "safetensors"}
    assert imported <= allowed | {"itertools", "json", "math", "collections", "operator", "pathlib", "typing"}


@pytest.mark.parametrize("to", FRAMEWORKS)
def test_one_function_serves_equal_nodes(to: str, tmp_path: Path) -> None:
    nodes = [node("LpPool", ["x"], ["a"], kernel_shape=[2], pads=[1, 0], p=3), node("Relu", ["a"], ["b"])]
    nodes += [node("LpPool", ["b"], ["y"], kernel_shape=[2], pads=[1, 0], p=3)]
    x = Draw(3)(1, 2, 8)
    made = model(nodes, {"x": x}, opset=21)
    backend = BACKENDS[to]
    rows = {op: row for op, row in backend.FRAMEWORK.rows.items() if op != "LpPool"}
    texts = []
    for folder in ("one", "two"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend, "FRAMEWORK", dataclasses.replace(backend.FRAMEWORK, rows=rows))
            fusile.emit(made, to=to, out=tmp_path / folder)
        texts.append((tmp_path / folder / "model.py").read_text())
    assert texts[0] == texts[1]
    assert texts[0].count("ONNX's LpPool") == 1
    net = module_of(tmp_path / "one").load()
    close(call(to, net, [x]), reference(made, {"x": x}))


# ---- graphs inside nodes ---------------------------------------------------------------------------


def branches(names: tuple[str, str, str]) -> onnx.ModelProto:
    """An If whose branches read a weight and a value around them; `names` are the names that it uses."""
    x, weight, inner = names
    then = helper.make_graph(
        [node("MatMul", [x, weight], [inner]), node("Relu", [inner], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, [2, 4])],
    )
    other = helper.make_graph(
        [node("MatMul", ["doubled", weight], ["e"])],
        "else",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, [2, 4])],
    )
    nodes = [
        node("Add", [x, x], ["doubled"]),
        node("ReduceSum", [x], ["total"], keepdims=0),
        node("Greater", ["total", "zero"], ["test"]),
        node("If", ["test"], ["y"], then_branch=then, else_branch=other),
    ]
    weights = {weight: Draw(5)(4, 4), "zero": np.array(0, dtype=np.float32)}
    return model(nodes, {x: (TensorProto.FLOAT, [2, 4])}, weights)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("to", FRAMEWORKS)
def test_branches_read_what_is_around_them(sign: int, to: str, tmp_path: Path) -> None:
    made = branches(("x", "w", "inner"))
    agrees(made, {"x": sign * np.abs(Draw(4)(2, 4))}, to, tmp_path)


@pytest.mark.parametrize("to", FRAMEWORKS)
def test_hostile_names_inside_graphs_are_harmless(to: str, tmp_path: Path) -> None:
    x = '"""; import os; os.abort() #'
    made = branches((x, "self", "then_branch\n    exit()"))
    agrees(made, {x: np.abs(Draw(4)(2, 4))}, to, tmp_path)


@pytest.mark.parametrize("to", FRAMEWORKS)
def test_loop_carries_grows_and_stops(to: str, tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            node("Concat", ["state", "step_row"], ["grown"], axis=0),
            node("ReduceSum", ["grown"], ["row"], keepdims=0),
            node("Add", ["row", "offset"], ["shifted"]),
            node("Less", ["shifted", "limit"], ["on"]),
        ],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("keep", TensorProto.BOOL, []),
            info("state", TensorProto.FLOAT, ["n"]),
        ],
        [
            info("on", TensorProto.BOOL, []),
            info("grown", TensorProto.FLOAT, ["m"]),
            info("shifted", TensorProto.FLOAT, []),
        ],
    )
    nodes = [
        node("Abs", ["x"], ["start"]),
        node("Loop", ["count", "", "start"], ["last", "rows"], body=body),
        node("Neg", ["last"], ["y"]),
    ]
    weights = {
        "count": np.array(9, dtype=np.int64),
        "step_row": np.array([1.0], dtype=np.float32),
        "offset": np.array(0.5, dtype=np.float32),
        "limit": np.array(6.0, dtype=np.float32),
    }
    made = model(nodes, {"x": (TensorProto.FLOAT, [2])}, weights, ("y", "rows"))
    agrees(made, {"x": np.array([0.5, -0.25], dtype=np.float32)}, to, tmp_path)


# ---- check ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", FRAMEWORKS)
def test_check_counts_printed_programs_and_names_gaps(to: str) -> None:
    x = np.zeros((1, 2, 8), dtype=np.float32)
    printed = model([node("LpPool", ["x"], kernel_shape=[2])], {"x": x}, opset=21)
    assert fusile.check(printed, target=to).supported
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]), onnx.ValueInfoProto(name="y")
    odd = helper.make_node("Odd", ["x"], ["y"], domain="nobody")
    graph = helper.make_graph([odd], "odd", [info[0]], [info[1]])
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("nobody", 1)]
    unknown = helper.make_model(graph, opset_imports=domains, ir_version=10)
    report = fusile.check(unknown, target=to)
    assert [gap.op_type for gap in report.gaps] == ["Odd"]
