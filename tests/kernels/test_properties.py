"""Recurrent layers and Resize over random attributes and sizes, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from operator_models import Case, assert_same, by_onnxruntime, feeds, interpreted, one_node

from fusile.errors import UnsupportedError

pytest.importorskip("onnxruntime")
FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}


def compare(case: Case, symbols: bool, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    wanted = by_onnxruntime(one_node(case), feeds(case))
    got = interpreted(one_node(case, symbols), list(feeds(case).values()))
    assert_same(got, wanted, rtol, atol)


@st.composite
def recurrent_cases(draw: st.DrawFn) -> Case:
    op = draw(st.sampled_from(sorted(GATES)))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    ways = 2 if direction == "bidirectional" else 1
    time, batch, width, hidden = (draw(st.integers(1, 5)) for _ in range(4))
    rng = np.random.default_rng(draw(st.integers(0, 9)))

    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.3).astype(np.float32)

    def maybe(value: np.ndarray) -> np.ndarray | None:
        return value if draw(st.booleans()) else None

    rows = GATES[op] * hidden
    inputs: list[np.ndarray | None] = [
        random(time, batch, width),
        random(ways, rows, width),
        random(ways, rows, hidden),
        maybe(random(ways, 2 * rows)),
        maybe(rng.integers(1, time + 1, batch).astype(np.int32)),
        maybe(random(ways, batch, hidden)),
    ]
    attributes: dict[str, Any] = {"direction": direction, "hidden_size": hidden}
    if op == "LSTM":
        inputs += [maybe(random(ways, batch, hidden)), maybe(random(ways, 3 * hidden))]
        attributes["input_forget"] = draw(st.integers(0, 1))
    if op == "GRU":
        attributes["linear_before_reset"] = draw(st.integers(0, 1))
    if draw(st.booleans()):
        attributes["clip"] = 0.5
    if draw(st.booleans()):
        names = st.sampled_from(["Sigmoid", "Tanh", "Relu", "Softsign"])
        attributes["activations"] = [draw(names) for _ in range(FUNCTIONS[op] * ways)]
    return Case("drawn", op, tuple(inputs), attributes, fixed=(1, 2, 3, 7), outputs=3 if op == "LSTM" else 2)


@FEW
@given(recurrent_cases(), st.booleans())
def test_recurrent(case: Case, symbols: bool) -> None:
    compare(case, symbols)


@st.composite
def resize_cases(draw: st.DrawFn) -> Case:
    mode = draw(st.sampled_from(["nearest", "linear", "cubic"]))
    modes = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
    coordinates = draw(st.sampled_from(modes))
    shape = (1, 2, draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    x = np.random.default_rng(draw(st.integers(0, 9))).standard_normal(shape).astype(np.float32)
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        roundings = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
        attributes["nearest_mode"] = draw(st.sampled_from(roundings))
    if mode == "cubic":
        attributes["cubic_coeff_a"] = draw(st.sampled_from([-0.75, -0.5]))
        attributes["exclude_outside"] = draw(st.integers(0, 1))
    if mode != "nearest":
        attributes["antialias"] = draw(st.integers(0, 1))
    attributes["axes"] = [2, 3]
    if draw(st.booleans()):
        scales = np.array(
            [draw(st.sampled_from([0.5, 0.75, 1.0, 1.5, 2.0, 3.0])) for _ in range(2)], np.float32
        )
        exact = [n * s for n, s in zip(shape[2:], scales, strict=True)]
        assume(all(n >= 1 for n in exact))
        # The standard takes the size before it is rounded down here, onnxruntime the one after.
        assume(coordinates != "align_corners" or all(n == int(n) for n in exact))
        inputs = (x, None, scales)
    else:
        sizes = np.array([draw(st.integers(1, 15)) for _ in range(2)])
        # onnxruntime works positions out with a rounded scale, which decides ties by its rounding error.
        assume(
            mode != "nearest"
            or all(np.float32(b / a) == b / a for a, b in zip(shape[2:], sizes, strict=True))
        )
        inputs = (x, None, None, sizes)
    return Case("drawn", "Resize", inputs, attributes, fixed=(1, 2, 3), opset=19)


@FEW
@given(resize_cases(), st.booleans())
def test_resize(case: Case, symbols: bool) -> None:
    try:
        compare(case, symbols)
    except UnsupportedError:
        assume(not symbols)
        raise


@pytest.mark.parametrize("length", [1, 2, 7, 16, 96, 1000])
def test_waves_of_a_length_that_only_the_run_knows(length: int) -> None:
    """The transform of an impulse is a wave: each of its elements is the float next to it, or the one after
    that, against numpy in twice the precision; what is 0 or 1 is so exactly.
    """
    at = length * 5 // 7
    signal = np.zeros((1, length, 1), np.float32)
    signal[0, at] = 1
    case = Case("impulse", "STFT", (signal, np.array(1), None, np.array(length)), {"onesided": 0}, fixed=(1,))
    (got,) = interpreted(one_node(case), list(feeds(case).values()))
    turns = np.arange(length) * at % length / length
    wanted = np.stack([np.cos(2 * np.pi * turns), -np.sin(2 * np.pi * turns)], axis=-1)
    wanted = np.where(np.abs(wanted) < 1e-12, 0, wanted)
    np.testing.assert_allclose(got[0, 0], wanted, rtol=2.5e-7, atol=0)
