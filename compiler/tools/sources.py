"""Models in the forms that tools need: a file or bytes for an engine, a ModelProto to cut and extend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusile.errors import InvalidModelError, UsageError

if TYPE_CHECKING:
    import onnx

_MAX_BYTES = 2**31 - 1


def model_name(source: Any) -> str:
    """What to call a model in reports."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source).name
    graph = getattr(source, "graph", None)
    return str(getattr(graph, "name", "") or "model")


def existing(path: str | os.PathLike[str]) -> str:
    """The path of a model file. Raises UsageError where there is none."""
    if not Path(path).is_file():
        raise UsageError(
            f"There is no model file {str(path)!r}", why="it is a folder" if Path(path).is_dir() else None
        )
    return os.fspath(path)


def as_file_or_bytes(source: Any) -> str | bytes:
    """The model as an engine takes it: a path as it is, everything else as bytes."""
    if isinstance(source, (str, os.PathLike)):
        return existing(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    return serialised(as_proto(source))


def as_proto(source: Any) -> onnx.ModelProto:
    """A copy of the model as a ModelProto with its weights in it.

    Raises InvalidModelError for bytes that are no model, UsageError for another type.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if isinstance(source, (str, os.PathLike)):
            return onnx.load(existing(source), format="protobuf")
        if isinstance(source, (bytes, bytearray, memoryview)):
            return onnx.load_model_from_string(bytes(source))
    except DecodeError as error:
        raise InvalidModelError(f"{model_name(source)!r} is no ONNX model", why=str(error)) from error
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return copy
    import onnx_ir

    if isinstance(source, onnx_ir.Model):
        return onnx_ir.to_proto(source)
    raise UsageError(
        f"A {type(source).__name__} is no model", todo="Give a path, bytes, a ModelProto or an onnx_ir.Model"
    )


def serialised(model: onnx.ModelProto) -> bytes:
    """The model as bytes. Raises UsageError above protobuf's limit of 2 GB."""
    if model.ByteSize() > _MAX_BYTES:
        raise UsageError(
            "The model is larger than 2 GB, the most that one protobuf message holds",
            todo="Give the path of a file whose weights are external",
        )
    return bytes(model.SerializeToString())


def weight_types(source: Any) -> list[str]:
    """The element types among the initialisers, by ONNX's names in lower case. External data stays unread."""
    import onnx

    if isinstance(source, (str, os.PathLike)):
        model = onnx.load(existing(source), format="protobuf", load_external_data=False)
    else:
        model = as_proto(source)
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    return sorted(onnx.TensorProto.DataType.Name(kind).lower() for kind in kinds)
