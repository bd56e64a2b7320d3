"""The ONNX project's node cases on emitted modules."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from framework_models import module_of
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase as NodeCase

import fusile


@functools.cache
def node_cases() -> dict[str, NodeCase]:
    """Every node case by its name without `test_`."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    return {case.name.removeprefix("test_"): case for case in found if case.model is not None}


def decoded(value: Any) -> Any:
    """A stored value: arrays, lists of them for sequences, None for an absent optional."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    if isinstance(value, list):
        return [decoded(v) for v in value]
    return value if value is None else np.asarray(value)


def given_to(to: str, value: Any) -> Any:
    """A decoded value as the framework takes it."""
    if value is None or isinstance(value, list):
        return value if value is None else [given_to(to, v) for v in value]
    if to == "keras":
        import tensorflow

        return tensorflow.constant(value)
    import torch

    array = np.array(value)
    if array.dtype.kind == "V" or array.dtype.name.startswith(("bfloat", "float8")):
        bits = torch.from_numpy(array.view(f"u{array.itemsize}"))
        return bits.view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)


def answered(value: Any) -> Any:
    """What an emitted module answers, as arrays, lists and None."""
    if value is None or isinstance(value, (list, tuple)):
        return value if value is None else [answered(v) for v in value]
    name = str(getattr(value, "dtype", "")).removeprefix("torch.")
    if name.startswith(("bfloat", "float8")) and type(value).__module__.startswith("torch"):
        import ml_dtypes
        import torch

        bits = getattr(torch, f"uint{8 * value.element_size()}")
        return value.contiguous().view(bits).numpy().view(getattr(ml_dtypes, name))
    return np.asarray(value)


def equal(got: Any, want: Any, rtol: float, atol: float) -> None:
    """Equal kinds, types, shapes and, within the case's tolerances, values."""
    if want is None or isinstance(want, list):
        assert (got is None) == (want is None)
        if want is not None:
            assert len(got) == len(want)
            for g, w in zip(got, want, strict=True):
                equal(g, w, rtol, atol)
        return
    want = np.asarray(want)
    assert got.shape == want.shape
    if want.dtype.kind in "OSU":
        assert [s if isinstance(s, str) else s.decode() for s in got.ravel()] == [*want.ravel()]
        return
    assert got.dtype == want.dtype
    if want.dtype.kind in "biu":
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=atol)


def run_case(name: str, to: str, folder: Path) -> str:
    """Emit a case's model, run it on its data and compare; answers the source."""
    case = node_cases()[name]
    fusile.emit(case.model, to=to, out=folder)
    net = module_of(folder).load()
    for parameter in net.parameters() if to == "torch" else ():
        parameter.requires_grad_(False)
    for inputs, outputs in case.data_sets:
        got: Sequence[Any] | Any = net(*(given_to(to, decoded(v)) for v in inputs))
        got = got if isinstance(got, tuple) else (got,)
        assert len(got) == len(outputs)
        for ours, theirs in zip(got, outputs, strict=True):
            equal(answered(ours), decoded(theirs), case.rtol, case.atol)
    return (folder / "model.py").read_text()
