"""The ONNX project's backend cases: models, inputs, and the outputs that they are to have."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")
Value = Any
"""An array, a list for a sequence, None for an absent optional."""


@dataclass(frozen=True)
class Case:
    """One case. `load` answers the model and its data sets: inputs and outputs in graph order."""

    kind: str
    name: str
    operator: str
    """The operator that the case is about: that of its first node that is no constant, with its domain."""
    rtol: float
    atol: float
    load: Callable[[], tuple[onnx.ModelProto, list[tuple[list[Value], list[Value]]]]]

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.name}"


@functools.cache
def cases() -> tuple[Case, ...]:
    """Every case, in the order of kinds and names."""
    from onnx.backend.test.loader import load_model_tests

    found: list[Case] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in KINDS[:-1]:
            for case in load_model_tests(kind=kind):
                found.append(_case(kind, case))
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    for path in sorted(folder.glob("*.onnx")):
        found.append(Case("light", path.stem, "", 1e-3, 1e-5, functools.partial(_light, path)))
    return tuple(found)


def _case(kind: str, case: Any) -> Case:
    model = case.model
    if model is None:
        model = onnx.load(str(Path(case.model_dir) / "model.onnx"), load_external_data=False)
        load: Callable[[], Any] = functools.partial(_stored, Path(case.model_dir))
    else:
        load = functools.partial(_built, case)
    return Case(kind, case.name.removeprefix("test_"), _about(model), case.rtol, case.atol, load)


def _about(model: onnx.ModelProto) -> str:
    nodes = [node for node in model.graph.node if node.op_type != "Constant"] or list(model.graph.node)
    if not nodes:
        return ""
    domain = nodes[0].domain if nodes[0].domain != "ai.onnx" else ""
    return f"{domain}::{nodes[0].op_type}" if domain else nodes[0].op_type


def _built(case: Any) -> tuple[onnx.ModelProto, list[tuple[list[Value], list[Value]]]]:
    sets = [
        ([_value(x) for x in given], [_value(y) for y in wanted]) for given, wanted in case.data_sets or ()
    ]
    return case.model, sets


def _value(x: Any) -> Value:
    match x:
        case onnx.TensorProto():
            return numpy_helper.to_array(x)
        case onnx.SequenceProto():
            return numpy_helper.to_list(x)
        case onnx.OptionalProto():
            return numpy_helper.to_optional(x)
        case list():
            return [_value(v) for v in x]
        case None:
            return None
    return np.asarray(x)


def _stored(folder: Path) -> tuple[onnx.ModelProto, list[tuple[list[Value], list[Value]]]]:
    model = onnx.load(str(folder / "model.onnx"))
    sets = []
    for data in sorted(folder.glob("test_data_set_*")):
        inputs = _read(data, "input", model.graph.input)
        sets.append((inputs, _read(data, "output", model.graph.output)))
    return model, sets


def _read(folder: Path, word: str, ports: Sequence[onnx.ValueInfoProto]) -> list[Value]:
    values = []
    for k, port in enumerate(ports):
        path = folder / f"{word}_{k}.pb"
        if not path.exists():
            break
        which = port.type.WhichOneof("value")
        made = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}
        message = made.get(which or "", onnx.TensorProto)()
        message.ParseFromString(path.read_bytes())
        values.append(_value(message))
    return values


def _light(path: Path) -> tuple[onnx.ModelProto, list[tuple[list[Value], list[Value]]]]:
    model = onnx.load(str(path))
    fixed = {w.name for w in model.graph.initializer}
    port = next(i for i in model.graph.input if i.name not in fixed)
    shape = [d.dim_value for d in port.type.tensor_type.shape.dim]
    x = (np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)).astype(np.float32)
    wanted = onnx.TensorProto()
    wanted.ParseFromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    return model, [([x], [numpy_helper.to_array(wanted)])]


def difference(got: Value, want: Value, rtol: float, atol: float) -> str | None:
    """None where a value is the wanted one in kind, type, shape and number, else the first difference."""
    if want is None:
        return None if got is None else "expected an absent optional"
    if isinstance(want, list):
        if not isinstance(got, (list, tuple)) or len(got) != len(want):
            return f"expected a sequence of {len(want)}"
        found = (difference(g, w, rtol, atol) for g, w in zip(got, want, strict=True))
        return next((f"[{k}] {d}" for k, d in enumerate(found) if d), None)
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    if want.dtype.kind in "OSU":
        return None if np.array_equal(got.astype(str), want.astype(str)) else "strings differ"
    if got.dtype != want.dtype:
        return f"type {got.dtype}, expected {want.dtype}"
    if want.dtype.kind in "biu":
        return None if np.array_equal(got, want) else f"{np.sum(got != want)} of {want.size} differ"
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    g, w = got.astype(wide), want.astype(wide)
    if not np.allclose(g, w, rtol=rtol, atol=atol, equal_nan=True):
        with np.errstate(invalid="ignore"):
            return f"differs by {np.nanmax(np.abs(g - w)):.3g}"
    return None


# ---- which types a case has ---------------------------------------------------------------------------

_T = onnx.TensorProto
_NUMBERS = {
    _T.BOOL, _T.INT8, _T.INT16, _T.INT32, _T.INT64, _T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64, _T.FLOAT16,
    _T.FLOAT, _T.DOUBLE, _T.BFLOAT16, _T.COMPLEX64, _T.COMPLEX128,
}  # fmt: skip
FRAMEWORK_TYPES = {
    "torch": _NUMBERS | {_T.FLOAT8E4M3FN, _T.FLOAT8E5M2, _T.FLOAT8E4M3FNUZ, _T.FLOAT8E5M2FNUZ},
    "keras": _NUMBERS | {_T.STRING},
}
"""Element types that a framework has; for the kernel backends every type counts."""


def element_types(found: onnx.TypeProto) -> set[int]:
    """The element types within a type."""
    match found.WhichOneof("value"):
        case "tensor_type":
            return {found.tensor_type.elem_type}
        case "sequence_type":
            return element_types(found.sequence_type.elem_type)
        case "optional_type":
            return element_types(found.optional_type.elem_type)
        case "map_type":
            return {found.map_type.key_type} | element_types(found.map_type.value_type)
    return set()


def fits(case: Case, backend: str) -> bool:
    """Whether a backend has the types of a case's inputs and outputs."""
    have = FRAMEWORK_TYPES.get(backend)
    if have is None:
        return True
    model, _ = case.load()
    ports = (*model.graph.input, *model.graph.output)
    return all(element_types(port.type) <= have for port in ports)
