"""Node cases of the ONNX project on native modules, by the mechanism of ours that each of them takes."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase as NodeCase

import fusile

MECHANISMS: dict[str, str] = {
    "sizes worked out when run": """
        hannwindow blackmanwindow_symmetric_expanded split_variable_parts_1d_opset18
        split_variable_parts_2d_opset13 split_zero_size_splits_opset18 reshape_one_dim
    """,
    "sizes that go with empty loops": "tril_zero triu_zero",
    "powers of integers": "pow_types_int32_int32 pow_types_int64_int64 pow_types_int64_float32",
    "elements below eight bits": """
        cast_FLOAT_to_INT4 cast_FLOAT16_to_UINT4 cast_INT4_to_FLOAT cast_UINT4_to_UINT8 cast_INT4_to_INT8
        dequantizelinear_int2 dequantizelinear_uint2 dequantizelinear_int4 quantizelinear_int4
        quantizelinear_uint2 quantizelinear_float4e2m1 cast_FLOAT_to_FLOAT4E2M1
    """,
    "bits of bools": "bitcast_bool_to_uint8",
    "waves of a length that only the run knows": "stft",
    "remainders of floats": """
        mod_float16_mixed_sign_fmod_0 mod_float32_mixed_sign_fmod_0 mod_float64_mixed_sign_fmod_0
        mod_float_edge_cases_fmod_0_float32 mod_mixed_sign_float32 gridsample_reflection_padding
    """,
}
CASES = [(mechanism, name) for mechanism, names in MECHANISMS.items() for name in names.split()]


@functools.cache
def node_cases() -> dict[str, NodeCase]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_model_tests(kind="node")}


def array(value: object) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


@pytest.mark.parametrize(("mechanism", "name"), CASES, ids=lambda word: word.replace(" ", "_"))
def test_node_case(mechanism: str, name: str) -> None:
    case = node_cases()[f"test_{name}"]
    module = fusile.compile(case.model)
    for given, wanted in case.data_sets:
        got = module(*map(array, given))
        for ours, theirs in zip(got, map(array, wanted), strict=True):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            if theirs.dtype.kind in "biu":
                np.testing.assert_array_equal(ours, theirs)
            else:
                wide = [a.astype(np.float64) for a in (ours, theirs)]
                np.testing.assert_allclose(*wide, rtol=case.rtol, atol=case.atol)
