"""The exceptions of the session face, under onnxruntime's names and in its wording."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from fusile.errors import (
    ExternalDataError,
    FusileError,
    InvalidModelError,
    RunError,
    UnsupportedError,
    UsageError,
)
from fusile.runtime.module import FeedError


class Status(Exception):
    """Base of the errors that carry one of onnxruntime's status codes; catch the subclasses."""

    code: ClassVar[int]
    word: ClassVar[str]

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(f"[ONNXRuntimeError] : {self.code} : {self.word} : {message}")


class Fail(Status):
    """Anything that no other class names."""

    code, word = 1, "FAIL"


class InvalidArgument(Status):
    """A wrong feed, name or option."""

    code, word = 2, "INVALID_ARGUMENT"


class NoSuchFile(Status):
    """The model's file is not there."""

    code, word = 3, "NO_SUCHFILE"


class NoModel(Status):
    """There is no model."""

    code, word = 4, "NO_MODEL"


class EngineError(Status):
    """The engine could not be set up."""

    code, word = 5, "ENGINE_ERROR"


class RuntimeException(Status):
    """A run failed inside the engine."""

    code, word = 6, "RUNTIME_EXCEPTION"


class InvalidProtobuf(Status):
    """The bytes are no ONNX model."""

    code, word = 7, "INVALID_PROTOBUF"


class ModelLoaded(Status):
    """A model was loaded twice."""

    code, word = 8, "MODEL_LOADED"


class NotImplemented(Status):
    """The model is valid and there is no code for something in it."""

    code, word = 9, "NOT_IMPLEMENTED"


class InvalidGraph(Status):
    """The model's graph breaks ONNX's rules."""

    code, word = 10, "INVALID_GRAPH"


class EPFail(Status):
    """An execution provider failed."""

    code, word = 11, "EP_FAIL"


class ModelLoadCanceled(Status):
    """Loading was cancelled. Never raised here."""

    code, word = 12, "MODEL_LOAD_CANCELED"


class ModelRequiresCompilation(Status):
    """A model must be compiled first. Never raised here."""

    code, word = 13, "MODEL_REQUIRES_COMPILATION"


class NotFound(Status):
    """Something was not found. Never raised here."""

    code, word = 14, "NOT_FOUND"


ERRORS: tuple[type[Status], ...] = (
    Fail,
    InvalidArgument,
    NoSuchFile,
    NoModel,
    EngineError,
    RuntimeException,
    InvalidProtobuf,
    ModelLoaded,
    NotImplemented,
    InvalidGraph,
    EPFail,
    ModelLoadCanceled,
    ModelRequiresCompilation,
    NotFound,
)

_FAULTS: Mapping[str, type[Status]] = {
    "Nodes read values that nothing defines": InvalidArgument,
    "A node reads a value that nothing defines": InvalidArgument,
    "The graph has a cycle": Fail,
    " does not fit its inputs": Fail,
    " is not a file": InvalidProtobuf,
}
"""How onnxruntime classes faults of a model, by a part of what fusile says."""

_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "com.microsoft")
_PARSED_AGAIN = 64 << 20


def load_error(error: FusileError, source: str | bytes) -> Status:
    """What onnxruntime would raise where fusile could not load or compile a model."""
    prefix = f"Load model from {source} failed:" if isinstance(source, str) else ""
    if isinstance(error, UnsupportedError):
        return _unsupported(error, prefix)
    if isinstance(error, ExternalDataError):
        return Fail(prefix + str(error))
    for part, kind in _FAULTS.items():
        if part in str(error).splitlines()[0]:
            return kind(prefix + str(error))
    if isinstance(error, InvalidModelError):
        return _broken(source)(prefix + str(error))
    if isinstance(error, UsageError):
        return InvalidArgument(str(error))
    return Fail(prefix + str(error))


def run_error(error: RunError) -> Exception:
    """What onnxruntime would raise where a run failed, or its feeds did not fit."""
    if not isinstance(error, FeedError):
        return InvalidArgument(f"Non-zero status code returned while running the model. {error}")
    match error.fault:
        case "dtype":
            return InvalidArgument(
                f"Unexpected input data type. Actual: ({error.got}) , expected: ({error.expected})"
            )
        case "rank":
            return InvalidArgument(
                f"Invalid rank for input: {error.name} Got: {_length(error.got)} Expected: "
                f"{_length(error.expected)} Please fix either the inputs/outputs or the model."
            )
        case "dims":
            return InvalidArgument(
                f"Got invalid dimensions for input: {error.name} for the following indices\n"
                f"{_wrong_dims(error)} Please fix either the inputs/outputs or the model."
            )
        case "kind":
            return Fail(str(error)) if "NoneType" in str(error.got) else RuntimeError(str(error))
        case _:
            return InvalidArgument(str(error))


def _unsupported(error: UnsupportedError, prefix: str) -> Status:
    """onnxruntime tells an operator that ONNX does not know from one that has no kernel."""
    import onnx.defs

    if not error.gaps:
        return Fail(f"{prefix}{error}")
    for gap in error.gaps:
        if gap.domain not in _KNOWN_DOMAINS:
            return Fail(f"{prefix}{error}")
        if gap.domain != "com.microsoft" and not onnx.defs.has(
            gap.op_type, gap.domain.removeprefix("ai.onnx")
        ):
            known_elsewhere = gap.domain and onnx.defs.has(gap.op_type, gap.domain)
            if not known_elsewhere:
                return InvalidGraph(f"{prefix}{error}")
    return NotImplemented(f"{prefix}{error}")


def _broken(source: str | bytes) -> type[Status]:
    """How onnxruntime would call a broken model: no protobuf, one without a graph, or a bad graph.

    A large file is taken to be one with a bad graph.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if isinstance(source, str):
            with open(source, "rb") as file:
                source = file.read(_PARSED_AGAIN + 1)
        if len(source) > _PARSED_AGAIN:
            return InvalidGraph
        model = onnx.ModelProto()
        model.ParseFromString(source)
        return InvalidGraph if model.HasField("graph") else InvalidArgument
    except (DecodeError, OSError):
        return InvalidProtobuf


def _length(shape: object) -> int:
    return len(shape) if isinstance(shape, tuple) else 0


def _wrong_dims(error: FeedError) -> str:
    expected, got = error.expected, error.got
    if not isinstance(expected, tuple) or not isinstance(got, tuple):
        return ""
    wrong = (
        (axis, have, want)
        for axis, (have, want) in enumerate(zip(got, expected))
        if isinstance(want, int) and have != want
    )
    return "".join(f" index: {axis} Got: {have} Expected: {want}\n" for axis, have, want in wrong)
