"""InferenceSession beside the real onnxruntime: same metadata, same answers, same errors."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as real_errors

import fusile
from fusile import session_errors

X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


@pytest.fixture(scope="module")
def pair(small_bytes: bytes) -> tuple[Any, Any]:
    """The same model here and there."""
    return fusile.InferenceSession(small_bytes), onnxruntime.InferenceSession(small_bytes)


def test_ports_are_described_alike(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    for mine, other in zip(
        ours.get_inputs() + ours.get_outputs(), theirs.get_inputs() + theirs.get_outputs(), strict=True
    ):
        assert (mine.name, mine.type, mine.shape) == (other.name, other.type, other.shape)


@pytest.mark.parametrize(
    "field",
    [
        "producer_name",
        "graph_name",
        "domain",
        "description",
        "graph_description",
        "version",
        "custom_metadata_map",
    ],
)
def test_metadata_is_alike(pair: tuple[Any, Any], field: str) -> None:
    ours, theirs = (session.get_modelmeta() for session in pair)
    assert getattr(ours, field) == getattr(theirs, field)


@pytest.mark.parametrize("names", [None, [], ["y"], ["y", "z"], ["y", "y"]])
def test_answers_are_alike(pair: tuple[Any, Any], names: list[str] | None) -> None:
    ours, theirs = (session.run(names, {"x": X}) for session in pair)
    assert isinstance(ours, list)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)
        assert mine.dtype == other.dtype


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"x": X, "u": X},
        {"x": X, "w": X},
        {"x": X.astype(np.float64)},
        {"x": X[0]},
        {"x": np.zeros((2, 4), np.float32)},
        {"x": np.zeros((2, 0), np.float32)},
        {"x": object()},
        [X],
    ],
    ids=["nothing", "unknown", "initialiser", "type", "rank", "dims", "empty", "object", "list"],
)
def test_wrong_feeds_raise_what_onnxruntime_raises(pair: tuple[Any, Any], feeds: Any) -> None:
    ours, theirs = pair
    with pytest.raises(Exception) as expected:
        theirs.run(None, feeds)
    with pytest.raises(Exception) as got:
        ours.run(None, feeds)
    assert got.type.__name__ == expected.type.__name__
    if not isinstance(expected.value, RuntimeError):
        assert str(got.value) == str(expected.value)


def test_unknown_output_raises_what_onnxruntime_raises(pair: tuple[Any, Any]) -> None:
    ours, theirs = pair
    with pytest.raises(real_errors.InvalidArgument) as expected:
        theirs.run(["q"], {"x": X})
    with pytest.raises(session_errors.InvalidArgument) as got:
        ours.run(["q"], {"x": X})
    assert str(got.value) == str(expected.value)


@pytest.mark.parametrize(
    "feed",
    [[[1, 2, 3]], np.asfortranarray(X), X.astype(">f4"), np.broadcast_to(np.float32(1), (2, 3))],
    ids=["list", "fortran", "big-endian", "broadcast"],
)
def test_odd_feeds_are_taken(pair: tuple[Any, Any], feed: Any) -> None:
    want = np.maximum(np.asarray(feed, np.float32) + np.array([1, -2, 3], np.float32), 0)
    np.testing.assert_array_equal(pair[0].run(["z"], {"x": feed})[0], want)


def test_outputs_are_fresh(pair: tuple[Any, Any]) -> None:
    session = pair[0]
    first = session.run(None, {"x": X})
    kept = [value.copy() for value in first]
    session.run(None, {"x": X + 5})
    for value, copy in zip(first, kept):
        np.testing.assert_array_equal(value, copy)


def test_many_threads_share_a_session(pair: tuple[Any, Any]) -> None:
    session, wrong = pair[0], []

    def work(number: int) -> None:
        feed = np.full((1 + number % 5, 3), number, np.float32)
        for _ in range(20):
            if not np.array_equal(session.run(["y"], {"x": feed})[0], feed + [1, -2, 3]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda o, p, n: o.InferenceSession("/nowhere/model.onnx"), "NoSuchFile"),
        (lambda o, p, n: o.InferenceSession(p[:-40]), "InvalidProtobuf"),
        (lambda o, p, n: o.InferenceSession(p[:50]), "InvalidArgument"),
        (lambda o, p, n: o.InferenceSession(b""), "InvalidArgument"),
        (lambda o, p, n: o.InferenceSession(5), "TypeError"),
        (lambda o, p, n: o.InferenceSession(n("NoSuchOperator")), "InvalidGraph"),
        (lambda o, p, n: o.InferenceSession(n("Relu", "org.example.custom")), "Fail"),
    ],
    ids=["no-file", "truncated", "no-graph", "empty", "number", "unknown-operator", "unknown-domain"],
)
def test_models_that_cannot_be_loaded(
    build: Callable[..., Any], error: str, small_bytes: bytes, node_model: Any
) -> None:
    for face in (onnxruntime, fusile):
        with pytest.raises(Exception) as raised:
            build(face, small_bytes, node_model)
        assert raised.type.__name__ == error, face.__name__


@pytest.mark.parametrize("left", [None, 100], ids=["missing", "cut"])
def test_data_beside_a_model_that_are_not_there(left: int | None, tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [weight],
    )
    path, data = tmp_path / "model.onnx", tmp_path / "w.bin"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location=data.name, size_threshold=10)
    if left is None:
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:left])
    for face in (onnxruntime, fusile):
        with pytest.raises(Exception) as raised:
            face.InferenceSession(str(path))
        assert raised.type.__name__ == "Fail", face.__name__


def test_session_options_hold_what_onnxruntimes_hold() -> None:
    ours, theirs = fusile.SessionOptions(), onnxruntime.SessionOptions()
    for name in (n for n in dir(theirs) if not n.startswith("_") and not callable(getattr(theirs, n))):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert int(mine) == int(other) if hasattr(other, "__members__") else mine == other, name
    for face in (ours, theirs):
        with pytest.raises(AttributeError):
            face.no_such_option = 1
        with pytest.raises(TypeError):
            face.intra_op_num_threads = "many"
        with pytest.raises(TypeError):
            face.graph_optimization_level = 99
        with pytest.raises(RuntimeError):
            face.get_session_config_entry("never.set")


def test_levels_and_enumerations_have_onnxruntimes_names_and_numbers() -> None:
    for name in ("GraphOptimizationLevel", "ExecutionMode", "ExecutionOrder"):
        ours, theirs = getattr(fusile, name), getattr(onnxruntime, name)
        assert {m: int(v) for m, v in theirs.__members__.items()} == {
            m: int(v) for m, v in ours.__members__.items()
        }


def test_options_reach_the_compiler() -> None:
    options = fusile.SessionOptions()
    options.intra_op_num_threads = 3
    options.graph_optimization_level = fusile.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.precision = "bf16"
    options.add_free_dimension_override_by_name("N", 4)
    options.add_session_config_entry("session.set_denormal_as_zero", "0")
    made = options.to_options("native", 5)
    assert (made.threads, made.opt_level, made.precision, dict(made.dims)) == (3, 1, "bf16", {"N": 4})
    assert (made.denormals, made.seed, made.target) == ("keep", 5, "native")


@pytest.mark.parametrize(("level", "expected"), [(0, 0), (1, 1), (2, 2), (3, 2), (99, 2)])
def test_optimisation_levels(level: int, expected: int) -> None:
    assert fusile.GraphOptimizationLevel(level).opt_level == expected


def test_free_dimension_override(small_bytes: bytes) -> None:
    shapes = []
    for face in (fusile, onnxruntime):
        options = face.SessionOptions()
        options.add_free_dimension_override_by_name("N", 4)
        session = face.InferenceSession(small_bytes, options)
        shapes.append(session.get_inputs()[0].shape)
        with pytest.raises(Exception, match="index: 0 Got: 2 Expected: 4"):
            session.run(None, {"x": X})
    assert shapes[0] == shapes[1] == [4, 3]


def test_refused_options_say_why(small_bytes: bytes) -> None:
    options = fusile.SessionOptions()
    with pytest.raises(session_errors.NotImplemented, match="foreign kernels"):
        options.register_custom_ops_library("x.so")
    options.optimized_model_filepath = "out.onnx"
    with pytest.raises(session_errors.InvalidArgument, match="optimized_model_filepath"):
        fusile.InferenceSession(small_bytes, options)
    options = fusile.SessionOptions()
    options.precision = "fp8"
    with pytest.raises(session_errors.InvalidArgument, match="fp8"):
        fusile.InferenceSession(small_bytes, options)


def test_providers(small_bytes: bytes) -> None:
    session = fusile.InferenceSession(small_bytes, providers=["CPUExecutionProvider"])
    assert session.get_providers() == ["CPUExecutionProvider"]
    with pytest.warns(UserWarning, match="'NoSuchProvider' is not in available provider names"):
        session = fusile.InferenceSession(
            small_bytes, providers=["NoSuchProvider", ("CPUExecutionProvider", {"a": 1})]
        )
    assert session.get_provider_options() == {"CPUExecutionProvider": {"a": "1"}}
    assert fusile.get_available_providers()[-1] == "CPUExecutionProvider"


def test_cuda_alone_without_cuda_is_an_error(small_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusile.session._cuda_works", lambda: False)
    with (
        pytest.warns(UserWarning),
        pytest.raises(session_errors.EPFail, match="CUDAExecutionProvider was asked for alone"),
    ):
        fusile.InferenceSession(small_bytes, providers=["CUDAExecutionProvider"])
    with pytest.warns(UserWarning):
        session = fusile.InferenceSession(
            small_bytes, providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_terminated_run(pair: tuple[Any, Any]) -> None:
    texts = []
    for face, session in zip((fusile, onnxruntime), pair):
        options = face.RunOptions()
        options.terminate = True
        with pytest.raises(Exception) as raised:
            session.run(None, {"x": X}, options)
        texts.append((raised.type.__name__, str(raised.value)))
    assert texts[0] == texts[1]


def test_ort_values(pair: tuple[Any, Any]) -> None:
    for face, session in zip((fusile, onnxruntime), pair):
        value = face.OrtValue.ortvalue_from_numpy(X)
        described = (
            value.data_type(),
            value.shape(),
            value.device_name(),
            value.is_tensor(),
            value.element_type(),
        )
        assert described == ("tensor(float)", [2, 3], "cpu", True, 1)
        assert value.data_ptr() == X.ctypes.data
        answer = session.run_with_ort_values(["z"], {"x": value})
        np.testing.assert_array_equal(answer[0].numpy(), np.maximum(X + [1, -2, 3], 0))
        with pytest.raises(ValueError, match="Required inputs"):
            session.run_with_ort_values(None, {})
        blank = face.OrtValue.ortvalue_from_shape_and_type((2, 3), np.float32)
        blank.update_inplace(X)
        np.testing.assert_array_equal(blank.numpy(), X)
        with pytest.raises(RuntimeError, match="does not match the size"):
            blank.update_inplace(X[0])


def test_io_binding(pair: tuple[Any, Any]) -> None:
    want = np.maximum(X + np.array([1, -2, 3], np.float32), 0)
    for session in pair:
        binding = session.io_binding()
        binding.bind_cpu_input("x", X)
        binding.bind_output("z")
        session.run_with_iobinding(binding)
        np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], want)
        out = np.empty((2, 3), np.float32)
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, np.float32, (2, 3), X.ctypes.data)
        binding.bind_output("z", "cpu", 0, np.float32, (2, 3), out.ctypes.data)
        session.run_with_iobinding(binding)
        np.testing.assert_array_equal(out, want)
        assert binding.get_outputs()[0].shape() == [2, 3]
        with pytest.raises(RuntimeError, match="Failed to find NodeArg with name: foo"):
            session.io_binding().bind_cpu_input("foo", X)


def test_binding_that_does_not_fit_is_refused(pair: tuple[Any, Any]) -> None:
    binding = pair[0].io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_ortvalue_output("z", fusile.OrtValue.ortvalue_from_shape_and_type((3, 3), np.float32))
    with pytest.raises(session_errors.InvalidArgument, match=r"bound to float32\[3, 3\]"):
        pair[0].run_with_iobinding(binding)


def test_run_async(pair: tuple[Any, Any]) -> None:
    for session in pair:
        done, told = threading.Event(), []
        session.run_async(None, {"x": X}, lambda *args: (told.append(args), done.set()), "mine")  # noqa: B023
        assert done.wait(10)
        outputs, mine, error = told[0]
        assert (len(outputs), mine, error) == (2, "mine", "")


def test_profile_is_a_chrome_trace(small_bytes: bytes, tmp_path: Path) -> None:
    import json

    options = fusile.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = fusile.InferenceSession(small_bytes, options)
    session.run(None, {"x": X})
    events = json.loads(Path(session.end_profiling()).read_text())
    assert [event["name"] for event in events] == [
        "model_loading_array",
        "session_initialization",
        "model_run",
    ]
    assert all(event["ph"] == "X" and event["dur"] >= 0 for event in events)
    assert session.end_profiling() == ""


def test_a_cache_that_cannot_be_used_is_an_error_of_the_session(
    small_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUSILE_CACHE", raising=False)
    monkeypatch.setenv("FUSILE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("")
    with pytest.raises(session_errors.InvalidArgument, match="cannot be used: Not a directory"):
        fusile.InferenceSession(small_path)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fusile.artefacts.compile", full)
    with pytest.raises(session_errors.Fail, match=r"could not be made ready: .*No space left"):
        fusile.InferenceSession(small_path)
