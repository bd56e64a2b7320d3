"""Things that answer: ONNX Runtime as the reference, and fusile's own targets, all called in one way."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import fusile.driver as driver
from fusile.errors import UsageError
from fusile.options import Options
from fusile.report import Progress
from fusile.runtime.dlpack import from_dlpack
from fusile.runtime.module import Array, Port, Value, element_of
from fusile.tools.emit import emit

Run = Callable[[Mapping[str, Value]], list[Value]]
"""Answers all outputs in graph order for inputs by name, in graph order."""

_count = itertools.count()


def onnxruntime() -> ModuleType:
    """The real onnxruntime. Raises UsageError where it is not installed, or fusile stands in its place."""
    present = sys.modules.get("onnxruntime")
    face = sys.modules.get("fusile.as_onnxruntime")
    if present is not None and face is not None and face.is_face(present):
        raise UsageError(
            "There is no reference to compare with",
            why="fusile.as_onnxruntime() has put fusile in onnxruntime's place",
            todo="Run verify and bench in another process",
        )
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UsageError(
            "ONNX Runtime, the reference, is not installed", todo="pip install fusile[verify]"
        ) from error


def reference_session(model: str | bytes, threads: int = 1, optimised: bool = False) -> Any:
    """An onnxruntime session on the CPU, with all its optimisations or none.

    Raises UsageError where onnxruntime refuses the model.
    """
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise UsageError("ONNX Runtime, the reference, refuses the model", why=_first_line(error)) from error


def reference_saturates() -> bool:
    """Whether ONNX Runtime's products of u8 and s8 saturate here, as they do on x86 CPUs without VNNI (its
    documentation on quantisation): it adds pairs of them in 16 bits.
    """
    import onnx

    a, b = np.full((1, 4), 255, np.uint8), np.full((4, 1), 127, np.int8)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
            "products",
            [
                onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, a.shape),
                onnx.helper.make_tensor_value_info("b", onnx.TensorProto.INT8, b.shape),
            ],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, 1])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 21)],
        ir_version=10,
    )
    (found,) = reference_session(model.SerializeToString()).run(None, {"a": a, "b": b})
    return int(found[0, 0]) != 4 * 255 * 127


def reference_run(session: Any) -> Run:
    """The session as a Run; what it refuses is a UsageError."""

    def run(feeds: Mapping[str, Value]) -> list[Value]:
        try:
            answers: list[Value] = session.run(None, dict(feeds))
        except Exception as error:  # onnxruntime's errors share no base class
            raise UsageError(
                "ONNX Runtime, the reference, refuses the inputs",
                why=_first_line(error),
                todo="Give sizes with dims= (--dims) or values with inputs= (--inputs)",
            ) from error
        return answers

    return run


def session_ports(session: Any) -> tuple[Port, ...]:
    """The inputs of an onnxruntime session as ports."""
    return tuple(session_port(argument) for argument in session.get_inputs())


def session_port(argument: Any) -> Port:
    """One of onnxruntime's input or output descriptions as a port."""
    code = element_of(argument.type)
    if code is None:
        return Port(argument.name, argument.type, None, None)
    return Port.tensor(
        argument.name, code, [dim if isinstance(dim, (int, str)) else None for dim in argument.shape]
    )


def target_run(source: Any, options: Options, progress: Progress) -> Run:
    """The model on one of fusile's targets: compiled, or emitted as source and imported."""
    if options.target in _FRAMEWORK_MODULES:
        _demand(options.target)
        return _emitted(source, options)
    module = driver.compile(source, options, progress)
    names = module.signature.names
    return lambda feeds: list(module.run([feeds.get(name) for name in names]))


_FRAMEWORK_MODULES = {"torch": ("torch",), "keras": ("keras", "tensorflow")}
"""What emitted source of a target imports."""


def _demand(target: str) -> None:
    """Raises UsageError where a framework is not installed."""
    missing = [name for name in _FRAMEWORK_MODULES[target] if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"The target {target} needs {' and '.join(missing)}, which is not installed",
            todo=f"pip install fusile[{target}]",
        )


def _emitted(source: Any, options: Options) -> Run:
    """The emitted source of a framework target, loaded from a folder that lives as long as the Run."""
    folder = tempfile.TemporaryDirectory(prefix="fusile_emitted_")
    emit(source, options.target, folder.name, options)
    module = _import(Path(folder.name) / "model.py")
    network = module.load()
    call = _call_torch if options.target == "torch" else _call_keras
    if options.target == "torch":
        network = network.eval()

    def run(feeds: Mapping[str, Value], _folder: object = folder) -> list[Value]:
        return call(network, list(feeds.values()))

    return run


def _import(path: Path) -> Any:
    name = f"fusile_emitted_{os.getpid()}_{next(_count)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(path)!r} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _call_torch(network: Any, values: list[Value]) -> list[Value]:
    import torch

    def tensor(value: Value) -> Any:
        if isinstance(value, list):
            return [tensor(part) for part in value]
        if not isinstance(value, np.ndarray) or value.dtype == object:
            return value
        value = np.array(value)
        if value.dtype.kind == "V" or value.dtype.name.startswith(("bfloat", "float8")):
            small = getattr(torch, value.dtype.name)
            return torch.from_numpy(value.view(f"u{value.itemsize}")).view(small)
        return torch.from_numpy(value)

    def array(value: Any) -> Value:
        if isinstance(value, (list, tuple)):
            return [array(part) for part in value]
        return from_dlpack(value.detach().cpu().contiguous()) if isinstance(value, torch.Tensor) else value

    with torch.no_grad():
        answer = network(*map(tensor, values))
    return [array(value) for value in (answer if isinstance(answer, tuple) else (answer,))]


def _call_keras(network: Any, values: list[Value]) -> list[Value]:
    import keras

    def tensor(value: Value) -> Any:
        if isinstance(value, list):
            return [tensor(part) for part in value]
        if isinstance(value, np.ndarray) and value.dtype == object:
            import tensorflow

            return tensorflow.constant(value)
        return None if value is None else keras.ops.convert_to_tensor(value)

    def array(value: Any) -> Value:
        if isinstance(value, list):
            return [array(part) for part in value]
        made: Array | None = None if value is None else np.asarray(keras.ops.convert_to_numpy(value))
        return made

    answer = network(*map(tensor, values))
    return [array(value) for value in (answer if isinstance(answer, tuple) else (answer,))]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
