"""Modules that ONNX Runtime computes, and can be told to be wrong: stand-ins for a target under test."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from fusile.errors import Gap, InvalidModelError, RunError, UnsupportedError, UsageError
from fusile.options import Options
from fusile.report import CheckReport, ExplainReport, KernelNote, OperatorUse, Progress
from fusile.runtime.module import ModelInfo, Module, Port, Signature, Value
from fusile.tools.engines import session_port

Spoil = Mapping[str, float]
"""What to add to the values of these names, where they are outputs."""


class FakeModule(Module):
    """ONNX Runtime behind the Module protocol."""

    def __init__(self, model: bytes, spoil: Spoil | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.signature = Signature([session_port(argument) for argument in self._session.get_inputs()])
        self.outputs: tuple[Port, ...] = tuple(map(session_port, self._session.get_outputs()))
        meta = self._session.get_modelmeta()
        self.info = ModelInfo(
            meta.graph_name,
            meta.producer_name,
            meta.domain,
            meta.description,
            meta.graph_description,
            meta.version,
            meta.custom_metadata_map,
        )
        self._spoil = spoil or {}

    def run(self, feeds: Sequence[Value]) -> list[Value]:
        ready = self.signature.check(feeds)
        try:
            answers = self._session.run(None, dict(zip(self.signature.names, ready)))
        except Exception as error:
            raise RunError(str(error).splitlines()[0]) from error
        for place, port in enumerate(self.outputs):
            if port.name in self._spoil:
                answers[place] = answers[place] + answers[place].dtype.type(self._spoil[port.name])
        return answers

    def save(
        self, path: str | os.PathLike[str], *, embed: bool = True, linker: str | None = None
    ) -> tuple[Path, ...]:
        files = (Path(path), Path(path).with_suffix(".h"), Path(path).with_suffix(".py"))
        for file in files:
            file.write_text("/* written by fusile */\n")
        return files


def read(source: Any) -> onnx.ModelProto:
    if isinstance(source, onnx.ModelProto):
        return source
    try:
        raw = source if isinstance(source, bytes) else Path(source).read_bytes()
        model = onnx.load_model_from_string(raw)
        onnx.checker.check_model(model)
        return model
    except onnx.checker.ValidationError as error:
        if "No Op registered for " in str(error):
            operator = str(error).partition("No Op registered for ")[2].split()[0]
            node = next(node for node in model.graph.node if node.op_type == operator)
            raise UnsupportedError(Gap(operator, node.domain, node.name)) from error
        raise InvalidModelError("The model breaks ONNX's rules", why=str(error).splitlines()[0]) from error
    except Exception as error:
        raise InvalidModelError("The file is no ONNX model", where=str(source)[:80]) from error


def fix_dims(model: onnx.ModelProto, dims: Mapping[str, int]) -> bytes:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    known = set()
    for value in (*fixed.graph.input, *fixed.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            known.add(dim.dim_param)
            if dim.dim_param in dims:
                dim.dim_value = dims[dim.dim_param]
    for name in dims:
        if name not in known:
            raise UsageError(f"The model has no dimension {name!r}")
    return bytes(fixed.SerializeToString())


class FakeDriver:
    """`fusile.driver` by ONNX Runtime."""

    def compile(self, source: Any, options: Options, progress: Progress) -> Module:
        progress("compiling")
        return FakeModule(fix_dims(read(source), options.dims))

    build = compile

    def check(self, source: Any, options: Options) -> CheckReport:
        try:
            model = read(source)
        except UnsupportedError as error:
            used = tuple(OperatorUse(gap.op_type, gap.domain, 1, False) for gap in error.gaps)
            return CheckReport("model", options.target, (), (), used, error.gaps)
        module = FakeModule(fix_dims(model, options.dims))
        counts: dict[tuple[str, str], int] = {}
        for node in model.graph.node:
            counts[node.op_type, node.domain] = counts.get((node.op_type, node.domain), 0) + 1
        used = tuple(OperatorUse(*name, count) for name, count in counts.items())
        return CheckReport("model", options.target, module.inputs, module.outputs, used)

    def explain(self, source: Any, options: Options) -> ExplainReport:
        nodes = read(source).graph.node
        kernels = tuple(KernelNote(f"k{i}", (n.name,), (n.op_type,)) for i, n in enumerate(nodes))
        return ExplainReport("model", options.target, options.opt_level, kernels)

    def load(self, path: str | os.PathLike[str], threads: int | None = None) -> Module:
        raise UsageError(f"{str(path)!r} is no module of fusile's")
