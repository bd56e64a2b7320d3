"""If, Loop and Scan in compiled modules: the answers of ONNX Runtime, for every target and level."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from control_table import MODELS, f, model, n

import fusile


def expected(name: str, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model(name).SerializeToString(), options)
    return list(session.run(None, feeds))


@pytest.mark.parametrize("target", ["native", "numba"])
@pytest.mark.parametrize("name", MODELS)
def test_control_flow_answers_as_onnxruntime(name: str, target: str) -> None:
    module = fusile.compile(model(name), target=target)
    for feeds in MODELS[name][1]:
        want = expected(name, feeds)
        got = module.run([feeds[p.name] for p in module.inputs])
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("name", ["if_other_sizes", "loop_with_weights", "loop_with_if", "scan_with_state"])
def test_control_flow_at_lower_levels(name: str, level: int) -> None:
    module = fusile.compile(model(name), opt_level=level)
    for feeds in MODELS[name][1]:
        got = module.run([feeds[p.name] for p in module.inputs])
        for a, b in zip(got, expected(name, feeds), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_every_level_agrees_with_the_interpreter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSILE_VERIFY", "2")
    monkeypatch.setenv("FUSILE_CACHE", "0")
    fusile.compile(model(name))


def test_a_node_in_a_body_is_named_when_it_fails() -> None:
    made = model("loop_reads_rows")
    loop = next(x for x in made.graph.node if x.op_type == "Loop")
    gather = next(x for x in loop.attribute[0].g.node if x.op_type == "Gather")
    gather.name = "row_of"
    loop.input[0] = "far"
    made.graph.input.append(onnx.helper.make_tensor_value_info("far", onnx.TensorProto.INT64, []))
    module = fusile.compile(made)
    assert module.run([f(4, 3), n(4)])[1].shape == (3,)
    with pytest.raises(fusile.RunError, match="row_of"):
        module.run([f(4, 3), n(5)])


def test_slices_of_unlike_shapes_are_refused() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]> g (int64 m, float[N] x) => (float[M, K] y) {
        none, y = Loop (m, , x) <
            body = b (int64 i, bool c, float[K] s) => (bool c2, float[L] s2, float[L] row) {
                c2 = Identity(c)
                s2 = Concat<axis = 0>(s, x)
                row = Neg(s2)
            }
        >
    }"""
    for target in ("native", "numba"):
        with pytest.raises(fusile.RunError):
            fusile.compile(onnx.parser.parse_model(text), target=target).run([n(3), f(2)])


def test_scanned_inputs_of_unlike_lengths_are_refused() -> None:
    with pytest.raises(fusile.FusileError):
        fusile.compile(model("scan_axes_and_directions")).run([f(3, 5), f(4, 2)])
