"""Arrays in .npz files: any names, any of ONNX's element types, never a pickle."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusile.errors import UsageError, show_name
from fusile.runtime.module import Array, Value

_TYPES = "fusile.types.json"


def write_arrays(path: str | os.PathLike[str], values: Mapping[str, Value]) -> None:
    """Write arrays so that `read_arrays` gives them back with their types, in their order.

    Raises UsageError for a value that is no array.
    """
    kinds: list[tuple[str, str]] = []
    with zipfile.ZipFile(path, "w") as archive:
        for place, (name, value) in enumerate(values.items()):
            array = _array(name, value)
            kinds.append((name, array.dtype.name))
            _write(archive, str(place), _plain(array))
        archive.writestr(_TYPES, json.dumps(kinds))


def read_arrays(path: str | os.PathLike[str]) -> dict[str, Array]:
    """What `write_arrays` wrote."""
    with zipfile.ZipFile(path) as archive:
        kinds = json.loads(archive.read(_TYPES))
        return {name: _typed(_read(archive, str(place)), kind) for place, (name, kind) in enumerate(kinds)}


def write_npz(path: str | os.PathLike[str], values: Mapping[str, Value]) -> None:
    """Write arrays under their own names for `np.load`; types that numpy lacks become float32 or int32.

    Raises UsageError for a value that is no array.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in values.items():
            array = _array(name, value)
            if array.dtype.kind == "V":
                array = array.astype(np.float32 if "float" in array.dtype.name else np.int32)
            _write(archive, name, array.astype(str) if array.dtype == object else array)


def _array(name: str, value: Value) -> Array:
    if not isinstance(value, np.ndarray):
        raise UsageError(f"{show_name(name)} is no tensor", why=f"it is a {type(value).__name__}")
    return value


def _plain(array: Array) -> Array:
    """Text for strings, and bytes for the types that numpy has no name for."""
    if array.dtype == object:
        return array.astype(str)
    return array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array


def _typed(array: Array, kind: str) -> Array:
    if kind == "object":
        return array.astype(object)
    if array.dtype.name == kind:
        return array
    import ml_dtypes

    return array.view(np.dtype(getattr(ml_dtypes, kind)))


def _write(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def _read(archive: zipfile.ZipFile, name: str) -> Any:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)
