"""Sizes of zero: an empty batch, an empty sequence, arithmetic over sizes that may be nothing."""

from __future__ import annotations

import native_models as models
import numpy as np
import onnx.parser
import pytest
from native_models import Array, Reference, assert_close

import fusile
from fusile.errors import RunError

SHAPES = """<ir_version: 9, opset_import: ["" : 18]>
g (float[n, 4] x) => (float[4] s, int64[1] k, int64[1] l, bool[1] e) {
    axis = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    s = ReduceSum <keepdims = 0> (x, axis)
    size = Shape <end = 1> (x)
    k = Max (size, one)
    l = Min (size, one)
    nothing = Sub (one, one)
    e = Equal (size, nothing)
}"""
CASES: dict[str, tuple[bytes, dict[str, Array]]] = {
    "conv_net": (models.conv_net(), {"x": np.zeros((0, 3, 13, 17), np.float32)}),
    "matmuls": (models.matmuls(), {"x": np.zeros((0, 96), np.float32)}),
    "nonzero": (models.nonzero(), {"x": np.zeros((0, 7), np.float32)}),
    "shapes": (
        onnx.parser.parse_model(SHAPES).SerializeToString(),
        {"x": np.zeros((0, 4), np.float32)},
    ),
}


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_nothing_gives_what_onnxruntime_gives(name: str, level: int, reference: Reference) -> None:
    model, feeds = CASES[name]
    for threads in (1, 2):
        answers = fusile.compile(model, opt_level=level, threads=threads)(**feeds)
        assert_close(answers, reference(model, feeds))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_recurrent_net_takes_an_empty_batch(level: int) -> None:
    """ONNX Runtime, no reference here, ends its process on it."""
    module = fusile.compile(models.lstm(), opt_level=level, threads=2)
    some, none = (module(np.zeros((9, n, 5), np.float32)) for n in (1, 0))
    assert [value.size for value in none] == [0] * len(some)
    assert [value.ndim for value in none] == [value.ndim for value in some]


ONE_LESS = {
    "ConstantOfShape": "y = ConstantOfShape (less)",
    "Expand": "a = Constant <value_float = 0.0> () y = Expand (a, less)",
    "Tile": "a = Constant <value_floats = [0.0]> () y = Tile (a, less)",
}


WINDOWS = {
    "Conv": "w = Constant <value = float[1, 1, 3] {1.0, 2.0, 3.0}> () y = Conv (x, w)",
    "MaxPool": "y = MaxPool <kernel_shape = [3]> (x)",
    "AveragePool": "y = AveragePool <kernel_shape = [3]> (x)",
    "Pad": "by = Constant <value_ints = [0, 0, -2, 0, 0, 0]> () y = Pad (x, by)",
}


@pytest.mark.parametrize("name", WINDOWS)
def test_less_than_a_window_is_refused(name: str, reference: Reference) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]> g (float[1, 1, n] x) => (float[1, 1, m] y) {{
            {WINDOWS[name]}
        }}"""
    ).SerializeToString()
    module = fusile.compile(model)
    feeds = {"x": np.arange(5, dtype=np.float32).reshape(1, 1, 5)}
    assert_close(module(**feeds), reference(model, feeds))
    assert module(np.zeros((1, 1, 2), np.float32))[0].shape == (1, 1, 0)
    for n in (0, 1):
        with pytest.raises(RunError):
            module(np.zeros((1, 1, n), np.float32))


@pytest.mark.parametrize("name", ONE_LESS)
def test_one_less_than_a_size_may_be_no_size(name: str, reference: Reference) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 18]> g (float[n] x) => (float[m] y) {{
            one = Constant <value_ints = [1]> ()
            size = Shape (x)
            less = Sub (size, one)
            {ONE_LESS[name]}
        }}"""
    ).SerializeToString()
    module = fusile.compile(model)
    for n in (5, 1):
        feeds = {"x": np.zeros(n, np.float32)}
        assert_close(module(**feeds), reference(model, feeds))
    with pytest.raises(RunError):
        module(np.zeros(0, np.float32))
