"""ONNX models in, canonical graphs out."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from fusile.frontend.canonical import canonicalise
from fusile.frontend.expand import expand
from fusile.frontend.names import settle_dims
from fusile.frontend.reader import Source, read
from fusile.frontend.resolve import resolve
from fusile.frontend.rules import CANONICAL_OPSET


def load(source: Source, *, dims: Mapping[str, int] | None = None) -> ir.Model:
    """Read a model and bring it to the canonical form.

    `source` is a path, bytes, an onnx.ModelProto or an onnx_ir.Model, none of which is changed. `dims` fixes
    symbolic dimensions by name. Weights stay in the file until they are asked for.

    The result has one graph with unique names, nodes in topological order, no model-local functions, all
    constants as initialisers of the main graph and every standard operator in the form of opset
    CANONICAL_OPSET with its default attributes. Shapes and types of values between nodes are those that the
    file declares, and may be wrong.

    Raises UsageError (no such file, no such dimension), InvalidModelError (broken), UnsafeModelError
    (refused), UnsupportedError (an old operator without a newer form, an opset that is too new).
    """
    model = read(source)
    overridable = _overridable(model)
    canonicalise(model)
    model.meta[OVERRIDABLE] = overridable
    settle_dims(model, dims)
    return model


OVERRIDABLE = "fusile.overridable"
"""Under this key a loaded model's `meta` lists the initialisers that the file names as inputs too: their
name, number of the type, shape. They are constants of the canonical graph.
"""

_FIRST_OVERRIDABLE = 4  # before this IR version every initialiser had to be listed as an input


def _overridable(model: ir.Model) -> list[tuple[str, int, list[int]]]:
    if model.ir_version < _FIRST_OVERRIDABLE:
        return []
    return [
        (str(value.name), int(tensor.dtype), [int(size) for size in tensor.shape.numpy()])
        for value in model.graph.inputs
        if (tensor := value.const_value) is not None
    ]


__all__ = ["CANONICAL_OPSET", "OVERRIDABLE", "Source", "canonicalise", "expand", "load", "read", "resolve"]
