"""Operators on strings, maps and images against onnxruntime, as compiled models."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import pytest
from classical_cases import ML
from onnx import TensorProto, helper
from operator_models import Array, Case, assert_same, by_onnxruntime, feeds, one_node
from text_cases import BY_PATTERN, CASES

import fusile
from fusile.errors import RunError

ort = pytest.importorskip("onnxruntime")


def agrees(case: Case) -> None:
    model = one_node(case)
    wanted = by_onnxruntime(model, feeds(case))
    got = fusile.compile(model).run(list(feeds(case).values()))
    assert len(got) == len(wanted)
    for ours, theirs in zip(map(np.asarray, got), wanted, strict=True):
        assert ours.shape == theirs.shape
        if theirs.dtype.kind == "O":
            assert ours.dtype == object
            assert ours.tolist() == theirs.tolist()
        else:
            assert_same([ours], [theirs], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_text(case: Case) -> None:
    agrees(case)


@pytest.mark.parametrize("case", BY_PATTERN, ids=str)
def test_patterns(case: Case) -> None:
    pytest.importorskip("re2")
    agrees(case)


def test_a_pattern_that_is_none_is_refused() -> None:
    pytest.importorskip("re2")
    model = one_node(Case("", "RegexFullMatch", (np.array(["a"], object),), {"pattern": "(a"}, opset=20))
    with pytest.raises(RunError, match="pattern"):
        fusile.compile(model).run([np.array(["a"], object)])


def test_a_pattern_of_exponential_backtracking_ends() -> None:
    pytest.importorskip("re2")
    x = np.array(["a" * 5000 + "!"], object)
    model = one_node(Case("", "RegexFullMatch", (x,), {"pattern": "(a+)+(a|aa)*b"}, opset=20))
    assert fusile.compile(model).run([x])[0].tolist() == [False]


def test_a_locale_that_there_is_not_is_no_error() -> None:
    x = np.array(["Ab"], object)
    model = one_node(Case("", "StringNormalizer", (x,), {"case_change_action": "LOWER", "locale": "xx_YY"}))
    assert fusile.compile(model).run([x])[0].tolist() == ["ab"]


def test_case_is_that_of_unicode() -> None:
    x = np.array(["ÜBER", "Straße", "Σ"], object)
    for action, wanted in (("LOWER", ["über", "straße", "σ"]), ("UPPER", ["ÜBER", "STRAßE", "Σ"])):
        model = one_node(Case("", "StringNormalizer", (x,), {"case_change_action": action}))
        assert fusile.compile(model).run([x])[0].tolist() == wanted


# ---- maps --------------------------------------------------------------------------------------------


def of_map(op: str, key: int, value: int, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(op, ["x"], ["y"], domain=ML, **attributes)
    kind = helper.make_map_type_proto(key, helper.make_tensor_type_proto(value, None))
    graph = helper.make_graph(
        [node], "map", [helper.make_value_info("x", kind)], [helper.make_empty_tensor_value_info("y")]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


NUMBERS, NAMES = {3: 1.5, 0: -2.25, 7: 4.0}, {"a": 1.5, "c": -2.0}
MAPS: list[tuple[str, int, int, Any, dict[str, Any]]] = [
    ("CastMap", TensorProto.INT64, TensorProto.FLOAT, NUMBERS, {"cast_to": "TO_FLOAT"}),
    ("CastMap", TensorProto.INT64, TensorProto.FLOAT, NUMBERS, {"cast_to": "TO_INT64"}),
    ("CastMap", TensorProto.INT64, TensorProto.FLOAT, NUMBERS, {"map_form": "SPARSE", "max_map": 9}),
    ("DictVectorizer", TensorProto.STRING, TensorProto.FLOAT, NAMES, {"string_vocabulary": ["c", "b", "a"]}),
    ("DictVectorizer", TensorProto.INT64, TensorProto.FLOAT, NUMBERS, {"int64_vocabulary": [0, 1, 3, 7]}),
]


@pytest.mark.parametrize(("op", "key", "value", "given", "attributes"), MAPS)
def test_maps(op: str, key: int, value: int, given: Any, attributes: dict[str, Any]) -> None:
    model = of_map(op, key, value, **attributes)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"x": given})[0]
    got = np.asarray(fusile.compile(model).run([given])[0])
    assert got.dtype == wanted.dtype
    assert got.tolist() == wanted.tolist()


_INT, _TEXT, _DOUBLE = TensorProto.INT64, TensorProto.STRING, TensorProto.DOUBLE
UNFED: list[tuple[str, int, int, Any, dict[str, Any], list[Any]]] = [
    ("CastMap", _INT, _TEXT, {1: "2", 0: "3"}, {"cast_to": "TO_FLOAT"}, [3.0, 2.0]),
    ("CastMap", _INT, _TEXT, {1: "2", 0: "3"}, {"cast_to": "TO_STRING"}, ["3", "2"]),
    ("DictVectorizer", _INT, _TEXT, {1: "x"}, {"int64_vocabulary": [0, 1]}, ["", "x"]),
    ("DictVectorizer", _TEXT, _INT, {"a": 3}, {"string_vocabulary": ["b", "a"]}, [0, 3]),
    ("DictVectorizer", _TEXT, _INT, {}, {"string_vocabulary": ["b", "a"]}, [0, 0]),
    ("DictVectorizer", _INT, _DOUBLE, {1: 0.1}, {"int64_vocabulary": [1, 0]}, [0.1, 0.0]),
    ("DictVectorizer", _TEXT, _DOUBLE, {"a": np.float32(0.5)}, {"string_vocabulary": ["a"]}, [0.5]),
]
"""Maps that onnxruntime takes from no Python program."""


@pytest.mark.parametrize(("op", "key", "value", "given", "attributes", "wanted"), UNFED)
def test_other_maps(
    op: str, key: int, value: int, given: Any, attributes: dict[str, Any], wanted: list[Any]
) -> None:
    got = np.asarray(fusile.compile(of_map(op, key, value, **attributes)).run([given])[0])
    assert got.tolist() == [wanted]
    if op == "DictVectorizer":
        assert got.dtype == helper.tensor_dtype_to_np_dtype(value)


@pytest.mark.parametrize("labels", [{"classlabels_strings": ["a", "b"]}, {"classlabels_int64s": [7, 3]}])
def test_maps_of_scores(labels: dict[str, Any]) -> None:
    x = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]], np.float32)
    node = helper.make_node("ZipMap", ["x"], ["y"], domain=ML, **labels)
    key = TensorProto.STRING if "classlabels_strings" in labels else TensorProto.INT64
    kind = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    output = helper.make_value_info("y", helper.make_sequence_type_proto(kind))
    graph = helper.make_graph(
        [node], "zip", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])], [output]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ML, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert fusile.compile(model).run([x])[0] == session.run(None, {"x": x})[0]


# ---- images ------------------------------------------------------------------------------------------


def decoded(encoded: bytes, pixel_format: str = "RGB") -> Array:
    x = np.frombuffer(encoded, np.uint8)
    model = one_node(Case("", "ImageDecoder", (x,), {"pixel_format": pixel_format}, opset=20))
    return np.asarray(fusile.compile(model).run([x])[0])


def picture(mode: str, form: str, size: tuple[int, int] = (5, 4)) -> tuple[bytes, Any]:
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    made = image.fromarray(noise, "RGBA").convert(mode)
    held = io.BytesIO()
    made.save(held, form)
    return held.getvalue(), made


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
@pytest.mark.parametrize("pixel_format", ["RGB", "BGR", "Grayscale"])
def test_pictures(mode: str, pixel_format: str) -> None:
    encoded, made = picture(mode, "PNG")
    wanted = np.asarray(made.convert("L" if pixel_format == "Grayscale" else "RGB"))
    wanted = wanted.reshape(*wanted.shape[:2], -1)
    np.testing.assert_array_equal(
        decoded(encoded, pixel_format), wanted[..., ::-1] if pixel_format == "BGR" else wanted
    )


def test_what_is_no_picture_decodes_to_nothing() -> None:
    encoded, _ = picture("RGB", "PNG")
    assert decoded(b"no picture").shape == (0, 0, 3)
    assert decoded(encoded[: len(encoded) // 2]).size == 0


def test_a_picture_of_too_many_pixels_is_refused() -> None:
    image = pytest.importorskip("PIL.Image")
    held = io.BytesIO()
    image.new("1", (20000, 20000)).save(held, "PNG")
    with pytest.raises(RunError, match="image"):
        decoded(held.getvalue())
