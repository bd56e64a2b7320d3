"""A session's model with changes: initialisers that were given or that are fed, and dimensions by denotation.

The model is edited as a message, and keeps reading the files beside it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusile.errors import InvalidModelError, UsageError, show_name
from fusile.runtime.module import Array


@dataclass(frozen=True, slots=True)
class Edits:
    """What changes: `values` of initialisers by name, `fed` initialisers that become inputs, sizes of
    dimensions by `denotation`.
    """

    values: Mapping[str, Array] = field(default_factory=dict)
    fed: frozenset[str] = frozenset()
    denotations: Mapping[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.values or self.fed or self.denotations)


def edited(source: str | bytes, edits: Edits) -> Any:
    """The model with the edits made: bytes, or an onnx_ir.Model where it has data in other files.

    Raises UsageError for an initialiser that is not there or of another type or shape, InvalidModelError for
    a file that is no model.
    """
    from fusile.light import import_onnx_ir

    import_onnx_ir()
    import onnx
    from google.protobuf.message import DecodeError, EncodeError

    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        model = onnx.ModelProto()
        model.ParseFromString(data)
    except DecodeError as error:
        raise InvalidModelError("The model is truncated or is not an ONNX file", why=str(error)) from error
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, array in edits.values.items():
        if name not in initializers:
            raise UsageError(f"The model has no initialiser {show_name(name)} that could be replaced")
        _replace(initializers[name], array)
    for place in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[place].name in edits.fed:
            del model.graph.initializer[place]
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.denotation in edits.denotations:
                dim.dim_value = edits.denotations[dim.denotation]
    try:
        data = bytes(model.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise UsageError("The changed model is larger than a message can be", why=str(error)) from error
    outside = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    if not outside or not isinstance(source, (str, os.PathLike)):
        return data
    from fusile.frontend.reader import read_beside

    return read_beside(data, Path(source).parent)


def _replace(tensor: Any, array: Array) -> None:
    import onnx

    made = onnx.numpy_helper.from_array(array, tensor.name)
    if made.data_type != tensor.data_type or list(made.dims) != list(tensor.dims):
        word = onnx.TensorProto.DataType.Name
        raise UsageError(
            f"Initialiser {show_name(tensor.name)} is given another type or shape",
            why=f"{word(made.data_type)} {list(made.dims)} for {word(tensor.data_type)} {list(tensor.dims)}",
        )
    tensor.CopyFrom(made)
