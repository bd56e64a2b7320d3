"""emit: a model as source code of a framework or of Numba."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fusile import driver, frontend
from fusile.errors import UsageError
from fusile.graph.cleanup import clean_up
from fusile.loading import read
from fusile.options import SOURCE_TARGETS, Options
from fusile.tools.outputs import claim_folder

if TYPE_CHECKING:
    import onnx_ir as ir

    from fusile.backends.framework.emit import EmitReport

_FRAMEWORKS: Mapping[str, str] = {
    "torch": "fusile.backends.framework.torch",
    "keras": "fusile.backends.framework.keras",
}
_KERNELS: Mapping[str, str] = {
    "numba": "fusile.backends.numba_cpu",
    "cuda": "fusile.backends.numba_cuda",
}
_WRITTEN = ("model.py", "weights.safetensors")


def emit(
    source: Any, to: str, out: str | os.PathLike[str], options: Options, *, force: bool = False
) -> EmitReport:
    """Write a model as source code into a folder; the report names the files and what the weights are.

    Raises UsageError for an unknown `to`, for options that source code has no use for and for files in
    the folder that fusile did not write, UnsupportedError with every operator that has no form there.
    """
    if to not in SOURCE_TARGETS:
        raise UsageError(
            f"There is no source code for {to!r}", todo=f"Choose one of {', '.join(SOURCE_TARGETS)}"
        )
    options = options.with_(target=to)
    _refuse_unused(options)
    backend = importlib.import_module(_FRAMEWORKS.get(to) or _KERNELS[to])
    if to in _KERNELS:
        loaded = read(source, options)
        with driver.without_host(loaded, options, f"{to} source"):
            folder = claim_folder(out, _WRITTEN, force)
            return cast("EmitReport", backend.emit(loaded.model, Path(folder), options))
    model = frontend.load(source, dims=options.dims)
    _prepare(model, backend.FRAMEWORK.rows)
    folder = claim_folder(out, _WRITTEN, force)
    return cast("EmitReport", backend.emit(model, Path(folder), options))


def _prepare(model: ir.Model, rows: Mapping[str, object]) -> None:
    """Expand what the framework has no word for by ONNX's definitions, and fill in shapes and types."""
    from fusile.backends.framework.forms import kept
    from fusile.backends.framework.shapes import fill_in

    frontend.expand(model, kept(rows))
    clean_up(model)
    fill_in(model)


def _refuse_unused(options: Options) -> None:
    if options.weights is not None:
        raise UsageError(
            "emit writes the model's own weights",
            todo="Put trained weights in the place of weights.safetensors in the folder",
        )
    if options.target in _FRAMEWORKS and options.precision != "fp32":
        raise UsageError(
            f"Source for {options.target} has no precision of its own",
            todo="Convert the loaded module with the framework's means",
        )
