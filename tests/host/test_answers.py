"""Graphs with strings, sequences, optionals and control flow against ONNX Runtime and ONNX's own cases."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from host_models import MODELS, HostModel
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase as NodeCase

import fusile


def reference(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    found: list[Any] = session.run(None, feeds)
    return found


def check_equal(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, list):
        assert isinstance(ours, list)
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            check_equal(a, b)
    elif theirs is None:
        assert ours is None
    else:
        assert isinstance(ours, np.ndarray)
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if theirs.dtype.kind in "biuO":
            assert ours.tolist() == theirs.tolist()
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def check_model(model: HostModel, target: str) -> None:
    proto = model.proto()
    module = fusile.compile(proto, target=target)
    for feeds in model.runs(np.random.default_rng(0)):
        check_equal(list(module(feeds)), reference(proto, feeds))


@pytest.mark.parametrize("name", MODELS, ids=lambda name: name.replace(" ", "_"))
def test_graph_answers_as_onnxruntime(name: str) -> None:
    check_model(MODELS[name], "native")


@pytest.mark.parametrize(
    "name", ["an If in a Loop with values from around both", "axes out of the data", "split, map, and join"]
)
def test_graph_answers_on_numba(name: str) -> None:
    check_model(MODELS[name], "numba")


NODE_CASES = """
    sequence_insert_at_back sequence_insert_at_front sequence_map_add_2_sequences
    sequence_map_identity_1_sequence_1_tensor_expanded sequence_map_extract_shapes
    optional_has_element_empty_no_input_optional_input optional_has_element_optional_input
    optional_get_element_sequence optional_get_element_tensor
    identity_sequence identity_opt split_to_sequence_1 split_to_sequence_2 split_to_sequence_nokeepdims
    loop11 loop13_seq loop16_seq_none if if_seq if_opt scan_sum scan9_sum range_int32_type_negative_delta_expanded
    equal_string equal_string_broadcast reduce_sum_negative_axes_keepdims_random unsqueeze_two_axes slice_neg_steps
"""


@functools.cache
def node_cases() -> dict[str, NodeCase]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_model_tests(kind="node")}


def value(given: Any) -> Any:
    if isinstance(given, list):
        return [value(item) for item in given]
    if isinstance(given, onnx.TensorProto):
        return numpy_helper.to_array(given)
    if isinstance(given, onnx.SequenceProto):
        return numpy_helper.to_list(given)
    if isinstance(given, onnx.OptionalProto):
        return value(numpy_helper.to_optional(given))
    return None if given is None else np.asarray(given)


@pytest.mark.parametrize("name", NODE_CASES.split())
def test_node_case(name: str) -> None:
    case = node_cases()[f"test_{name}"]
    module = fusile.compile(case.model)
    for given, wanted in case.data_sets:
        for ours, theirs in zip(module(*map(value, given)), map(value, wanted), strict=True):
            check_equal(ours, theirs)
