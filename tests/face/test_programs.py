"""Programs that use onnxruntime, run on it and on fusile: they must come to the same end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fusile.as_onnxruntime import face

Program = Callable[[Any, Path], Any]
"""Takes the package, and a folder of its own; answers plain values, or raises."""

X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2
PROGRAMS: dict[str, Program] = {}
OWN_WORDS = "options raise"
"""Programs whose errors are of the same class, in other words."""


def program(function: Program) -> Program:
    PROGRAMS[function.__name__] = function
    return function


def model(
    nodes: list[onnx.NodeProto] | None = None,
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    initializers: list[onnx.TensorProto] | None = None,
    opset: int = 18,
) -> bytes:
    """A small model: by default y = x + w, z = relu(y) over float[N, 3]."""
    tensor = helper.make_tensor_value_info
    default = nodes is None
    graph = helper.make_graph(
        nodes or [helper.make_node("Add", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
        "g",
        inputs or [tensor("x", TensorProto.FLOAT, ["N", 3])],
        outputs or [tensor("y", TensorProto.FLOAT, ["N", 3]), tensor("z", TensorProto.FLOAT, ["N", 3])],
        initializers or ([numpy_helper.from_array(np.array([1, -2, 3], np.float32), "w")] if default else []),
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    made.producer_name, made.model_version = "tests", 3
    return bytes(made.SerializeToString())


def overridable() -> bytes:
    """y = x + w, where w is an input with a default."""
    tensor = helper.make_tensor_value_info
    return model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [tensor("x", TensorProto.FLOAT, ["N", 3]), tensor("w", TensorProto.FLOAT, [3])],
        [tensor("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.array([1, -2, 3], np.float32), "w")],
    )


def one(op: str, ports: list[Any], element: int = TensorProto.FLOAT) -> bytes:
    tensor = helper.make_tensor_value_info
    return model(
        [helper.make_node(op, ["x"], ["y"])], [tensor("x", element, ports)], [tensor("y", element, ports)]
    )


# ---- ports


@program
def shapes(o: Any, folder: Path) -> Any:
    found = []
    for dims in (["N", 3], [None, 3], ["?", "?"], [-1, 2], ["", 1], [], [0, 2], ["a b", "N*2"], ["N", "N"]):
        session = o.InferenceSession(one("Relu", dims))
        found += [[(p.name, p.type, p.shape) for p in (*session.get_inputs(), *session.get_outputs())]]
    return found


@program
def element_types(o: Any, folder: Path) -> Any:
    found = []
    for element in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16):
        session = o.InferenceSession(one("Identity", ["N"], element))
        found.append((session.get_inputs()[0].type, session.get_outputs()[0].type))
    return found


@program
def a_port_prints(o: Any, folder: Path) -> Any:
    return [str(p) for p in o.InferenceSession(model()).get_inputs()]


@program
def overridable_initializers(o: Any, folder: Path) -> Any:
    session = o.InferenceSession(overridable())
    listed = [(p.name, p.type, p.shape) for p in session.get_overridable_initializers()]
    return listed, [p.name for p in session.get_inputs()], session.run(None, {"x": X})


@program
def an_initializer_is_overridden(o: Any, folder: Path) -> Any:
    session = o.InferenceSession(overridable())
    first = session.run(None, {"x": X, "w": np.array([5, 6, 7], np.float32)})
    return first, session.run(None, {"x": X})


@program
def metadata(o: Any, folder: Path) -> Any:
    meta = o.InferenceSession(model()).get_modelmeta()
    names = "producer_name graph_name domain description graph_description version custom_metadata_map"
    return [getattr(meta, name) for name in names.split()]


@program
def metadata_that_is_not_there(o: Any, folder: Path) -> Any:
    proto = onnx.load_model_from_string(model())
    proto.ClearField("model_version")
    proto.ClearField("producer_name")
    meta = o.InferenceSession(proto.SerializeToString()).get_modelmeta()
    return meta.version, meta.producer_name, meta.domain


# ---- runs


@program
def outputs_by_name(o: Any, folder: Path) -> Any:
    session = o.InferenceSession(model())
    return [session.run(names, {"x": X}) for names in (None, [], ["z"], ["z", "y"], ["y", "y"], ("z",))]


@program
def positional_and_named_arguments(o: Any, folder: Path) -> Any:
    session = o.InferenceSession(path_or_bytes=model(), sess_options=o.SessionOptions(), providers=None)
    return session.run(output_names=["z"], input_feed={"x": X}, run_options=o.RunOptions())


@program
def feeds_of_other_kinds(o: Any, folder: Path) -> Any:
    session = o.InferenceSession(model())
    feeds = (X.tolist(), np.asfortranarray(X), X[:, ::-1], np.broadcast_to(np.float32(2), (2, 3)))
    return [session.run(["y"], {"x": feed}) for feed in feeds]


@program
def an_ort_value_is_fed(o: Any, folder: Path) -> Any:
    return o.InferenceSession(model()).run(None, {"x": o.OrtValue.ortvalue_from_numpy(X)})


@program
def raise_missing(o: Any, folder: Path) -> Any:
    o.InferenceSession(model()).run(None, {})


@program
def unknown_input(o: Any, folder: Path) -> Any:
    o.InferenceSession(model()).run(None, {"x": X, "u": X})


@program
def unknown_output(o: Any, folder: Path) -> Any:
    o.InferenceSession(model()).run(["q"], {"x": X})


@program
def a_wrong_type(o: Any, folder: Path) -> Any:
    o.InferenceSession(model()).run(None, {"x": X.astype(np.int64)})


@program
def a_wrong_rank(o: Any, folder: Path) -> Any:
    o.InferenceSession(model()).run(None, {"x": X[0]})


@program
def wrong_dims(o: Any, folder: Path) -> Any:
    o.InferenceSession(model()).run(None, {"x": np.zeros((2, 5), np.float32)})


@program
def raise_none(o: Any, folder: Path) -> Any:
    o.InferenceSession(model()).run(None, {"x": None})


@program
def raise_text(o: Any, folder: Path) -> Any:
    o.InferenceSession(model()).run(None, {"x": np.array([["a", "b", "c"]])})


@program
def nothing_in_it(o: Any, folder: Path) -> Any:
    return o.InferenceSession(model()).run(None, {"x": np.zeros((0, 3), np.float32)})


@program
def run_options(o: Any, folder: Path) -> Any:
    options = o.RunOptions()
    options.log_severity_level, options.logid = 3, "mine"
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    said = options.get_run_config_entry("memory.enable_memory_arena_shrinkage")
    return said, o.InferenceSession(model()).run(None, {"x": X}, options)


@program
def terminated(o: Any, folder: Path) -> Any:
    options = o.RunOptions()
    options.terminate = True
    o.InferenceSession(model()).run(None, {"x": X}, options)


@program
def run_with_ort_values(o: Any, folder: Path) -> Any:
    session = o.InferenceSession(model())
    value = o.OrtValue.ortvalue_from_numpy(X)
    answers = session.run_with_ort_values(None, {"x": value})
    return [
        (a.numpy(), a.shape(), a.data_type(), a.device_name(), a.is_tensor(), a.has_value()) for a in answers
    ]


@program
def run_async(o: Any, folder: Path) -> Any:
    session, done, told = o.InferenceSession(model()), threading.Event(), []

    def callback(results: Any, data: Any, error: str) -> None:
        told.append((list(results), data, error))
        done.set()

    options = o.SessionOptions()
    options.intra_op_num_threads = 2
    session = o.InferenceSession(model(), options)
    session.run_async(["z"], {"x": X}, callback, {"my": "data"})
    assert done.wait(20)
    return told


# ---- binding


@program
def io_binding(o: Any, folder: Path) -> Any:
    session = o.InferenceSession(model())
    binding = session.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_output("z")
    binding.bind_output(name="y", device_type="cpu", device_id=0)
    session.run_with_iobinding(binding)
    first = binding.copy_outputs_to_cpu()
    values = [(v.numpy(), v.shape()) for v in binding.get_outputs()]
    binding.clear_binding_inputs()
    binding.clear_binding_outputs()
    return first, values, len(binding.get_outputs())


@program
def binding_to_memory(o: Any, folder: Path) -> Any:
    session = o.InferenceSession(model())
    out = np.empty((2, 3), np.float32)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, X.shape, X.ctypes.data)
    binding.bind_output("z", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    binding.synchronize_inputs()
    session.run_with_iobinding(binding, o.RunOptions())
    binding.synchronize_outputs()
    return out


@program
def binding_of_values(o: Any, folder: Path) -> Any:
    session = o.InferenceSession(model())
    given = o.OrtValue.ortvalue_from_numpy(X.copy(), "cpu", 0)
    taken = o.OrtValue.ortvalue_from_shape_and_type([2, 3], np.float32, "cpu", 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", given)
    binding.bind_ortvalue_output("z", taken)
    for _ in range(2):
        session.run_with_iobinding(binding)
        given.update_inplace(X + 1)
    return taken.numpy()


@program
def raise_unknown_bound_input(o: Any, folder: Path) -> Any:
    o.InferenceSession(model()).io_binding().bind_cpu_input("q", X)


@program
def raise_unknown_bound_output(o: Any, folder: Path) -> Any:
    session = o.InferenceSession(model())
    binding = session.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_output("q")
    session.run_with_iobinding(binding)


# ---- values


@program
def ort_values(o: Any, folder: Path) -> Any:
    found = []
    for dtype in "f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8 ?".split():
        array = np.ones((2, 1), dtype)
        value = o.OrtValue.ortvalue_from_numpy(array)
        found.append(
            (
                value.data_type(),
                value.element_type(),
                value.shape(),
                value.numpy().copy(),
                value.tensor_size_in_bytes(),
            )
        )
        blank = o.OrtValue.ortvalue_from_shape_and_type((3, 2), np.dtype(dtype).type)
        found.append((blank.data_type(), blank.shape(), blank.is_sparse_tensor(), blank.is_tensor_sequence()))
    return found


@program
def ort_values_by_onnx_type(o: Any, folder: Path) -> Any:
    found = []
    for element in (TensorProto.BFLOAT16, TensorProto.FLOAT16):
        blank = o.OrtValue.ortvalue_from_shape_and_type((3, 2), element)
        over = o.OrtValue.ortvalue_from_numpy_with_onnx_type(np.zeros((2,), np.uint16), element)
        found.append((blank.data_type(), blank.shape(), over.data_type(), over.element_type(), over.shape()))
    return found


@program
def dlpack(o: Any, folder: Path) -> Any:
    value = o.OrtValue.ortvalue_from_numpy(X)
    again = o.OrtValue.from_dlpack(X)
    return value.__dlpack_device__(), again.numpy(), type(value.__dlpack__()).__name__


@program
def ort_value_as_array(o: Any, folder: Path) -> Any:
    return np.asarray(o.OrtValue.ortvalue_from_numpy(X))


@program
def raise_update_of_another_size(o: Any, folder: Path) -> Any:
    o.OrtValue.ortvalue_from_numpy(X.copy()).update_inplace(X[0])


@program
def devices(o: Any, folder: Path) -> Any:
    device = o.OrtDevice.make("cpu", 0)
    return device.device_id(), device.device_type()


@program
def values_of_a_session(o: Any, folder: Path) -> Any:
    value = o.InferenceSession(model()).create_ortvalue_from_shape_and_type((2, 2), np.float32, "cpu")
    return value.shape(), value.data_type(), value.device_name()


@program
def two_sessions_share_bound_memory(o: Any, folder: Path) -> Any:
    first, second = o.InferenceSession(model()), o.InferenceSession(one("Neg", ["N", 3]))
    between = o.OrtValue.ortvalue_from_shape_and_type((2, 3), np.float32)
    before, after = first.io_binding(), second.io_binding()
    before.bind_cpu_input("x", X)
    before.bind_ortvalue_output("z", between)
    after.bind_ortvalue_input("x", between)
    after.bind_output("y")
    first.run_with_iobinding(before)
    second.run_with_iobinding(after)
    return after.copy_outputs_to_cpu()


@program
def threads_share_a_session(o: Any, folder: Path) -> Any:
    session, found = o.InferenceSession(model()), {}

    def work(number: int) -> None:
        for _ in range(5):
            found[number] = session.run(["y"], {"x": np.full((number, 3), number, np.float32)})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return sorted((number, _plain(answer)) for number, answer in found.items())


# ---- options


@program
def all_options(o: Any, folder: Path) -> Any:
    options = o.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = 1, 1
    options.execution_mode = o.ExecutionMode.ORT_PARALLEL
    options.execution_order = o.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = o.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level, options.log_verbosity_level, options.logid = 3, 0, "me"
    options.enable_mem_pattern = options.enable_mem_reuse = options.enable_cpu_mem_arena = False
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    said = options.get_session_config_entry("session.intra_op.allow_spinning")
    return said, options.has_providers(), o.InferenceSession(model(), options).run(None, {"x": X})


@program
def enumerations(o: Any, folder: Path) -> Any:
    return [
        (
            kind,
            member.name,
            int(member),
            member.value,
            str(member),
            repr(member),
            member == kind_of(int(member)),
        )
        for kind in ("GraphOptimizationLevel", "ExecutionMode", "ExecutionOrder")
        for kind_of in [getattr(o, kind)]
        for member in kind_of.__members__.values()
    ]


@program
def options_wrong_type(o: Any, folder: Path) -> Any:
    o.SessionOptions().intra_op_num_threads = "two"


@program
def a_dimension_by_name(o: Any, folder: Path) -> Any:
    options = o.SessionOptions()
    options.add_free_dimension_override_by_name("N", 2)
    session = o.InferenceSession(model(), options)
    return [p.shape for p in (*session.get_inputs(), *session.get_outputs())], session.run(None, {"x": X})


@program
def an_unknown_dimension_by_name(o: Any, folder: Path) -> Any:
    options = o.SessionOptions()
    options.add_free_dimension_override_by_name("batch", 2)
    return o.InferenceSession(model(), options).get_inputs()[0].shape


@program
def a_dimension_by_denotation(o: Any, folder: Path) -> Any:
    proto = onnx.load_model_from_string(model())
    for port in (*proto.graph.input, *proto.graph.output):
        port.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    options = o.SessionOptions()
    options.add_free_dimension_override_by_denotation("DATA_BATCH", 2)
    session = o.InferenceSession(proto.SerializeToString(), options)
    return [p.shape for p in (*session.get_inputs(), *session.get_outputs())]


@program
def an_initializer_given(o: Any, folder: Path) -> Any:
    options = o.SessionOptions()
    value = o.OrtValue.ortvalue_from_numpy(np.array([10, 20, 30], np.float32))
    options.add_initializer("w", value)
    return o.InferenceSession(model(), options).run(None, {"x": X})


@program
def external_initializers_given(o: Any, folder: Path) -> Any:
    proto = onnx.load_model_from_string(model())
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere.bin")
    options = o.SessionOptions()
    value = o.OrtValue.ortvalue_from_numpy(np.array([10, 20, 30], np.float32))
    options.add_external_initializers(["w"], [value])
    return o.InferenceSession(proto.SerializeToString(), options).run(None, {"x": X})


@program
def default_loggers(o: Any, folder: Path) -> Any:
    return o.set_default_logger_severity(3), o.set_default_logger_verbosity(0), o.set_seed(7)


@program
def raise_default_logger_severity(o: Any, folder: Path) -> Any:
    o.set_default_logger_severity(9)


# ---- providers


@program
def providers(o: Any, folder: Path) -> Any:
    found: list[Any] = [o.get_device(), "CPUExecutionProvider" in o.get_available_providers()]
    for wanted in (
        None,
        ["CPUExecutionProvider"],
        [("CPUExecutionProvider", {"use_arena": "1"})],
        ["CPUExecutionProvider", "CPUExecutionProvider"],
    ):
        session = o.InferenceSession(model(), providers=wanted)
        found += [session.get_providers(), sorted(session.get_provider_options())]
    return found


@program
def provider_options_apart(o: Any, folder: Path) -> Any:
    session = o.InferenceSession(model(), providers=["CPUExecutionProvider"], provider_options=[{}])
    session.disable_fallback()
    session.enable_fallback()
    session.set_providers(["CPUExecutionProvider"])
    return session.get_providers(), session.run(None, {"x": X})


@program
def provider_options_of_another_length(o: Any, folder: Path) -> Any:
    o.InferenceSession(model(), providers=["CPUExecutionProvider"], provider_options=[{}, {}])


@program
def providers_of_a_wrong_kind(o: Any, folder: Path) -> Any:
    o.InferenceSession(model(), providers=[3])


@program
def provider_options_of_a_wrong_kind(o: Any, folder: Path) -> Any:
    o.InferenceSession(model(), providers=[("CPUExecutionProvider", 5)])


# ---- files


@program
def a_path(o: Any, folder: Path) -> Any:
    path = folder / "m.onnx"
    path.write_bytes(model())
    return [o.InferenceSession(p).run(None, {"x": X}) for p in (path, str(path))]


@program
def raise_no_file(o: Any, folder: Path) -> Any:
    o.InferenceSession(str(folder / "none.onnx"))


@program
def raise_a_folder(o: Any, folder: Path) -> Any:
    o.InferenceSession(str(folder))


@program
def raise_an_empty_file(o: Any, folder: Path) -> Any:
    (folder / "m.onnx").write_bytes(b"")
    o.InferenceSession(folder / "m.onnx")


@program
def raise_a_text_file(o: Any, folder: Path) -> Any:
    (folder / "m.onnx").write_bytes(b"this is no model, is it? " * 40)
    o.InferenceSession(folder / "m.onnx")


@program
def raise_truncated_bytes(o: Any, folder: Path) -> Any:
    o.InferenceSession(model()[:-40])


@program
def raise_a_number(o: Any, folder: Path) -> Any:
    o.InferenceSession(3)


@program
def raise_model_proto(o: Any, folder: Path) -> Any:
    o.InferenceSession(onnx.load_model_from_string(model()))


@program
def raise_unknown_operator(o: Any, folder: Path) -> Any:
    o.InferenceSession(one("NoSuchOperator", [2]))


@program
def raise_a_cycle(o: Any, folder: Path) -> Any:
    o.InferenceSession(
        model(
            [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])],
            outputs=[helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 3])],
        )
    )


@program
def raise_a_value_from_nowhere(o: Any, folder: Path) -> Any:
    o.InferenceSession(
        model(
            [helper.make_node("Add", ["x", "nowhere"], ["a"])],
            outputs=[helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 3])],
        )
    )


@program
def raise_types_that_do_not_fit(o: Any, folder: Path) -> Any:
    ports = [helper.make_tensor_value_info(n, t, [2]) for n, t in (("a", 1), ("b", 7), ("y", 1))]
    o.InferenceSession(model([helper.make_node("Add", ["a", "b"], ["y"])], ports[:2], ports[2:]))


@program
def raise_a_missing_attribute(o: Any, folder: Path) -> Any:
    ports = [helper.make_tensor_value_info(n, 1, [2]) for n in ("x", "y")]
    o.InferenceSession(model([helper.make_node("Cast", ["x"], ["y"])], ports[:1], ports[1:]))


@program
def raise_an_opset_to_come(o: Any, folder: Path) -> Any:
    o.InferenceSession(model(opset=99))


@program
def optimized_model(o: Any, folder: Path) -> Any:
    options = o.SessionOptions()
    return options.optimized_model_filepath


# ---- profiling


@program
def profile(o: Any, folder: Path) -> Any:
    options = o.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "trace")
    session = o.InferenceSession(model(), options)
    session.run(None, {"x": X})
    started = session.get_profiling_start_time_ns() > 0
    path = Path(session.end_profiling())
    events = json.loads(path.read_text())
    ours = [e for e in events if e["name"] in ("model_loading_array", "session_initialization", "model_run")]
    keys = sorted({key for e in events for key in e})
    kinds = sorted({(e["cat"], e["ph"]) for e in events if e["cat"] == "Session"})
    suffix = path.name.startswith("trace_") and path.name.endswith(".json")
    return started, [e["name"] for e in ours], keys, kinds, suffix, all(type(e["dur"]) is int for e in events)


@program
def no_profile(o: Any, folder: Path) -> Any:
    return o.InferenceSession(model()).get_profiling_start_time_ns() >= 0


# ---- modules


@program
def error_classes(o: Any, folder: Path) -> Any:
    state = o.capi.onnxruntime_pybind11_state
    names = (
        "Fail InvalidArgument NoSuchFile NoModel EngineError RuntimeException InvalidProtobuf ModelLoaded "
        "NotImplemented InvalidGraph EPFail NotFound ModelLoadCanceled ModelRequiresCompilation"
    )
    return [(name, issubclass(getattr(state, name), Exception)) for name in names.split()]


@program
def caught_by_its_class(o: Any, folder: Path) -> Any:
    state = o.capi.onnxruntime_pybind11_state
    try:
        o.InferenceSession(model()).run(["q"], {"x": X})
    except state.InvalidArgument as error:
        return str(error)
    return None


@program
def version(o: Any, folder: Path) -> Any:
    return type(o.__version__), o.get_version_string() == o.__version__, len(o.__version__.split("."))


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_come_to_the_same_end(name: str, tmp_path: Path) -> None:
    real = onnxruntime
    ours = face()["onnxruntime"]
    ends = []
    for package, folder in ((real, tmp_path / "theirs"), (ours, tmp_path / "ours")):
        folder.mkdir()
        ends.append(_end(PROGRAMS[name], package, folder, name.split("_")[0] in OWN_WORDS.split()))
    theirs, mine = ends
    assert mine == theirs


def _end(run: Program, package: Any, folder: Path, own_words: bool) -> Any:
    """What a program comes to, as values that can be compared."""
    package.set_default_logger_severity(4)
    try:
        return _plain(run(package, folder))
    except Exception as error:
        return type(error).__name__, "" if own_words else str(error)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, dict) else value
