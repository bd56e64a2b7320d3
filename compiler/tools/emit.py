"""emit: a model as source code of a framework or of Numba."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusile import frontend
from fusile.errors import UsageError
from fusile.options import SOURCE_TARGETS, Options
from fusile.tools.outputs import claim_folder

_BACKENDS: Mapping[str, str] = {
    "torch": "fusile.backends.framework.torch",
    "keras": "fusile.backends.framework.keras",
    "numba": "fusile.backends.numba_cpu",
    "cuda": "fusile.backends.numba_cuda",
}
_WRITTEN = ("model.py", "weights.safetensors")


def emit(
    source: Any, to: str, out: str | os.PathLike[str], options: Options, *, force: bool = False
) -> tuple[Path, ...]:
    """Write a model as source code into a folder, and return the files.

    Raises UsageError for an unknown `to` and for files in the folder that fusile did not write,
    UnsupportedError where an operator has no form there.
    """
    if to not in _BACKENDS:
        raise UsageError(
            f"There is no source code for {to!r}", todo=f"Choose one of {', '.join(SOURCE_TARGETS)}"
        )
    options = options.with_(target=to)
    model = frontend.load(source, dims=options.dims)
    folder = claim_folder(out, _WRITTEN, force)
    backend = importlib.import_module(_BACKENDS[to])
    backend.emit(model, folder, options)
    return tuple(sorted(path for path in folder.iterdir() if path.is_file()))
