"""Weights that replace a model's own: a safetensors file, by the names in its header or by those of the
source.

A file that fusile wrote says of each tensor which initialiser it is, and how it lies there. Any other file
is taken by the names that the emitted modules would use, which are those of the model's source where they
are known. A tensor into which an exporter folded a normalisation is another tensor than the original:
neither takes the other's place.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fusile import frontend
from fusile.backends.framework import torch
from fusile.backends.framework import weights as wf
from fusile.backends.framework.forms import kept
from fusile.backends.framework.shapes import fill_in
from fusile.errors import UsageError, show_name
from fusile.frontend.storage import MappedTensor
from fusile.frontend.structure import is_weight
from fusile.graph.cleanup import clean_up
from fusile.graph.recognise import recognise
from fusile.graph.tensors import Weight, weights
from fusile.options import Options

_COUNTERS = "num_batches_tracked"
"""A module's own statistics that no graph has."""
_COPY = re.compile(r"(.+)\.copy\d+_*")
_SHOWN = 6


def replace(model: ir.Model, source: Any, options: Options) -> bool:
    """Put the tensors of the file that options name in the place of a canonical graph's initialisers.

    Answers whether any of them shapes the code. Raises UsageError where the file does not fit the model:
    tensors that are missing, unknown, of another type or shape, or folded on one side only.
    """
    assert options.weights is not None
    path = Path(options.weights)
    known = _known(source, options)
    records, header, start = wf.read_header(path)
    places = _places(known, records, header, path)
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    shaping = False
    for weight, entry in places:
        own = weight.initializer
        value = model.graph.initializers.get(own)
        if value is None or value.const_value is None:
            _refuse_parted(model, weight, entry, data, start, path)
            continue
        held = value.const_value
        tensor = _tensor(weight, held, entry, data, start, path)
        count = math.prod(int(n) for n in held.shape.numpy())
        if not is_weight(int(held.dtype), count) and not np.array_equal(tensor.numpy(), held.numpy()):
            shaping = True
        value.const_value = tensor
    return shaping


def _known(source: Any, options: Options) -> Mapping[str, Weight]:
    """Every stored tensor of the model as an emitted module knows it, by its initialiser."""
    rows = torch.FRAMEWORK.rows
    model = frontend.load(source, dims=dict(options.dims))
    frontend.expand(model, kept(rows))
    clean_up(model)
    fill_in(model)
    recognise(model)
    return weights(model)


def _places(
    known: Mapping[str, Weight],
    records: Mapping[str, Weight],
    header: Mapping[str, dict[str, Any]],
    path: Path,
) -> list[tuple[Weight, dict[str, Any]]]:
    """Which tensor of the file goes where."""
    constants = {weight.name for weight in known.values() if weight.role == "constant"}
    have = {name for name in header if not name.endswith(_COUNTERS)}
    want = {weight.name for weight in known.values()}
    wrong = wf.problems(records, have, want - (constants - have))
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UsageError(
            f"The weights in {str(path)!r} are not weights of this model",
            why="; ".join(wrong[:_SHOWN]) + more,
            todo="Compile the model that the file was trained from",
        )
    found = []
    for weight in known.values():
        if weight.name in header:
            recorded = records.get(weight.name)
            found.append((recorded if recorded is not None else weight, header[weight.name]))
    return found


def _tensor(
    weight: Weight, held: ir.TensorProtocol, entry: Mapping[str, Any], data: mmap.mmap, start: int, path: Path
) -> ir.TensorProtocol:
    """A tensor of the file in its initialiser's layout, read when it is asked for."""
    shape = tuple(int(n) for n in held.shape.numpy())
    _check_perm(weight, shape, path)
    code, stored, size = wf.stored_form(held, weight)
    begin, end = _span(entry, len(data) - start)
    if entry["dtype"] != code or list(entry["shape"]) != stored or end - begin != size:
        raise UsageError(
            f"The tensor {show_name(weight.name)} in {str(path)!r} does not fit",
            why=f"it is {entry['dtype']}{entry['shape']}, and the model has {code}{stored}",
        )
    perm = weight.perm
    if perm is None:
        return MappedTensor(data, start + begin, size, held.dtype, shape, name=weight.initializer, path=path)
    turned = MappedTensor(data, start + begin, size, held.dtype, stored, name=weight.initializer, path=path)

    def back() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(wf.back(turned.numpy(), perm, shape)), dtype=held.dtype)

    return ir.LazyTensor(back, held.dtype, ir.Shape(shape), name=weight.initializer)


def _check_perm(weight: Weight, shape: tuple[int, ...], path: Path) -> None:
    """A file's header may say anything: `perm` must name axes once each, and leave out those of size 1
    only.
    """
    perm = weight.perm
    if perm is None:
        return
    left = [size for axis, size in enumerate(shape) if axis not in perm]
    if (
        len(set(perm)) != len(perm)
        or not all(0 <= axis < len(shape) for axis in perm)
        or any(n != 1 for n in left)
    ):
        raise UsageError(
            f"The record of {show_name(weight.name)} in {str(path)!r} is broken",
            why=f"axes {list(perm)} of a tensor of shape {list(shape)}",
        )


def _span(entry: Mapping[str, Any], size: int) -> tuple[int, int]:
    try:
        begin, end = (int(offset) for offset in entry["data_offsets"])
        if 0 <= begin <= end <= size and isinstance(entry["shape"], list):
            return begin, end
    except (KeyError, TypeError, ValueError):
        pass
    raise UsageError("The weights file is broken", why=f"an entry of its header says {str(entry)[:200]}")


def _refuse_parted(
    model: ir.Model, weight: Weight, entry: Mapping[str, Any], data: mmap.mmap, start: int, path: Path
) -> None:
    """A layer's own copy of a tensor that the model's file keeps once: it may be there, and must not
    differ.
    """
    shared = _COPY.fullmatch(weight.initializer)
    value = model.graph.initializers.get(shared.group(1)) if shared else None
    held = value.const_value if value is not None else None
    if held is not None:
        found = _tensor(weight, held, entry, data, start, path)
        if np.array_equal(found.numpy(), held.numpy()):
            return
    raise UsageError(
        f"The tensor {show_name(weight.name)} in {str(path)!r} has no place in the model",
        why="the model's file keeps one tensor for several layers, which were trained apart"
        if held is not None
        else f"its file has no initialiser {show_name(weight.initializer)}",
        todo="Export the trained module to ONNX, and compile that",
    )
