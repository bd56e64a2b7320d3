"""The weights file: one safetensors file for the PyTorch module, the Keras module and the native compiler.

The header holds `fusile.format` and, under each tensor's name, a JSON record {initializer, perm, role,
folded, alias_of, storage} (see `fusile.graph.tensors.Weight`). Tensors are written one at a time, in an
order that depends on nothing but the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from fusile.errors import UsageError, show_name, show_names
from fusile.graph.tensors import FOLDED, Weight, aliases

FORMAT = "1"
_FORMAT_KEY = "fusile.format"
_MOST_HEADER = 100_000_000
_CODES: Mapping[ir.DataType, str] = {
    ir.DataType.BOOL: "BOOL",
    ir.DataType.UINT8: "U8",
    ir.DataType.INT8: "I8",
    ir.DataType.INT16: "I16",
    ir.DataType.UINT16: "U16",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.INT32: "I32",
    ir.DataType.UINT32: "U32",
    ir.DataType.FLOAT: "F32",
    ir.DataType.DOUBLE: "F64",
    ir.DataType.INT64: "I64",
    ir.DataType.UINT64: "U64",
    ir.DataType.COMPLEX64: "C64",
    ir.DataType.FLOAT8E4M3FN: "F8_E4M3",
    ir.DataType.FLOAT8E5M2: "F8_E5M2",
    ir.DataType.FLOAT8E8M0: "F8_E8M0",
}
_PACKED = frozenset(
    {ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2, ir.DataType.FLOAT4E2M1}
)


# ---- writing -----------------------------------------------------------------------------------------


def write(path: Path, model: ir.Model, known: Mapping[str, Weight]) -> None:
    """Write the weights of a recognised graph. The file appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            _write(file, model, known)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write(file: BinaryIO, model: ir.Model, known: Mapping[str, Weight]) -> None:
    ordered = sorted(known.values(), key=lambda w: w.name)
    header: dict[str, Any] = {"__metadata__": header_of([*ordered, *aliases(model, known)])}
    offset = 0
    for weight in ordered:
        held = _held(model, weight)
        code, shape, size = stored_form(held, weight)
        header[weight.name] = {"dtype": code, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for weight in ordered:
        held = _held(model, weight)
        if held.dtype in _PACKED or weight.perm is None:
            file.write(held.tobytes())
        else:
            file.write(np.ascontiguousarray(laid_out(np.asarray(held.numpy()), weight.perm)).tobytes())


def header_of(records: Iterable[Weight]) -> dict[str, str]:
    """The metadata of the file."""
    out = {_FORMAT_KEY: FORMAT}
    for weight in records:
        record = asdict(weight)
        name = record.pop("name")
        out[name] = json.dumps(record, separators=(",", ":"))
    return out


def _held(model: ir.Model, weight: Weight) -> ir.TensorProtocol:
    held = model.graph.initializers[weight.initializer].const_value
    assert held is not None
    return held


def stored_form(held: ir.TensorProtocol, weight: Weight) -> tuple[str, list[int], int]:
    shape = [int(n) for n in held.shape.numpy()]
    if held.dtype in _PACKED:
        return "U8", [held.nbytes], held.nbytes
    if held.dtype not in _CODES:
        raise UsageError(
            f"The weight {show_name(weight.initializer)} cannot be stored",
            why=f"safetensors has no type for {held.dtype.name}",
        )
    if weight.perm is not None:
        shape = [shape[axis] for axis in weight.perm]
    return _CODES[held.dtype], shape, held.nbytes


def laid_out(data: np.ndarray, perm: Sequence[int]) -> np.ndarray:
    """An initialiser's data with its axes in the file's order; axes that `perm` leaves out have size 1."""
    dropped = tuple(axis for axis in range(data.ndim) if axis not in perm)
    rest = [axis for axis in range(data.ndim) if axis not in dropped]
    return np.transpose(np.squeeze(data, dropped), [rest.index(axis) for axis in perm])


def back(data: np.ndarray, perm: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """A tensor of the file in its initialiser's layout."""
    order = sorted(range(len(perm)), key=lambda i: perm[i])
    return np.transpose(data, order).reshape(tuple(shape))


# ---- reading -----------------------------------------------------------------------------------------


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, Weight], dict[str, dict[str, Any]], int]:
    """The records of a weights file, its tensors (dtype, shape, data_offsets), and where the data begins.

    Raises UsageError where the file is no weights file.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > min(_MOST_HEADER, os.path.getsize(path)):
                raise ValueError("its header is larger than the file")
            header = json.loads(file.read(size))
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, dict) for v in header.values()):
            raise ValueError("its header is not one of tensors")
    except OSError as error:
        raise UsageError(f"The weights file {show_name(str(path))} cannot be read", why=str(error)) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{show_name(str(path))} is no safetensors file", why=str(error)) from None
    if metadata.get(_FORMAT_KEY) != FORMAT:
        return {}, header, 8 + size
    records = {}
    for name, text in metadata.items():
        if name != _FORMAT_KEY:
            records[name] = _record(name, text)
    return records, header, 8 + size


def _record(name: str, text: str) -> Weight:
    try:
        found = json.loads(text)
        perm, folded = found.get("perm"), found.get("folded") or ()
        return Weight(
            name,
            str(found.get("initializer", name)),
            found.get("role", "param"),
            None if perm is None else tuple(int(axis) for axis in perm),
            tuple(str(item) for item in folded),
            found.get("alias_of"),
            found.get("storage"),
        )
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise UsageError(
            f"The record of the tensor {show_name(name)} in the weights file is broken"
        ) from None


def problems(records: Mapping[str, Weight], found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Why a file with the tensors `found` does not fit a module that expects others: one sentence each."""
    have, want = set(found), set(expected)
    out, explained = [], set()
    for name in sorted(want - have):
        folded, bare = name + FOLDED, name.removesuffix(FOLDED)
        if folded in have:
            record = records.get(folded)
            into = ", ".join(record.folded) if record is not None and record.folded else "another layer"
            out.append(
                f"{show_name(name)}: the file has {show_name(folded)}, into which {into} is folded;"
                " a module that keeps them apart cannot take it"
            )
            explained.add(folded)
        elif bare != name and bare in have:
            out.append(
                f"{show_name(bare)}: this module has the normalisation after it folded in, the file has not"
            )
            explained.add(bare)
        else:
            out.append(f"{show_name(name)} is missing")
    aliases_ = {name for name, record in records.items() if record.alias_of is not None}
    unknown = sorted(have - want - explained - aliases_)
    if unknown:
        out.append(f"the module has no {show_names(unknown)}")
    return out


def load_into(module: Any, path: str | os.PathLike[str]) -> None:
    """Load a weights file into an original PyTorch module, by its own parameter names.

    Raises UsageError, and changes nothing, where tensors are missing, unknown, of another shape, or have
    something folded into them that the module keeps apart.
    """
    from safetensors.torch import load_file

    records, header, _ = read_header(path)
    state = module.state_dict()
    optional = {name for name in state if name.endswith("num_batches_tracked")}
    constants = {name for name, record in records.items() if record.role == "constant"}
    wrong = problems(records, set(header) - constants, set(state) - optional)
    if not wrong:
        for name in sorted(set(header) & set(state)):
            if list(header[name]["shape"]) != list(state[name].shape):
                wrong.append(
                    f"{show_name(name)} has the shape {header[name]['shape']}, not {list(state[name].shape)}"
                )
    if wrong:
        raise UsageError(
            f"The weights file {show_name(str(path))} does not fit the module",
            why="; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""),
            todo="Load it into the module that was emitted with it",
        )
    loaded = load_file(path)
    module.load_state_dict({**state, **{name: loaded[name] for name in state if name in loaded}})
