"""The backends as functions: a model in, a function from inputs to outputs (in graph order) out."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import fusile

Run = Callable[[Sequence[Any]], list[Any]]
_count = itertools.count()


def native(model: onnx.ModelProto) -> Run:
    session = fusile.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return lambda xs: list(session.run(None, dict(zip(names, xs))))


def numba(model: onnx.ModelProto) -> Run:
    module = fusile.compile(model, target="numba")
    return lambda xs: list(module.run(list(xs)))


def torch(model: onnx.ModelProto) -> Run:
    import torch as t

    module = _emitted(model, "torch").eval()

    def tensor(x: Any) -> Any:
        if x is None or isinstance(x, str):
            return x
        if isinstance(x, list):
            return [tensor(v) for v in x]
        x = np.array(x)
        special = x.dtype.kind == "V" or x.dtype.name.startswith(("bfloat", "float8"))
        small = getattr(t, x.dtype.name, None) if special else None
        return t.from_numpy(x) if small is None else t.from_numpy(x.view(f"u{x.itemsize}")).view(small)

    def array(y: Any) -> Any:
        if isinstance(y, (list, tuple)):
            return [array(v) for v in y]
        if not isinstance(y, t.Tensor):
            return y
        y, name = y.detach().cpu(), str(y.dtype).removeprefix("torch.")
        if name.startswith(("bfloat", "float8")):
            import ml_dtypes

            bits = getattr(t, f"uint{8 * y.element_size()}")
            return y.contiguous().view(bits).numpy().view(getattr(ml_dtypes, name))
        return y.numpy()

    def run(xs: Sequence[Any]) -> list[Any]:
        with t.no_grad():
            out = module(*(tensor(x) for x in xs))
        return [array(y) for y in (out if isinstance(out, tuple) else (out,))]

    return run


def keras(model: onnx.ModelProto) -> Run:
    import tensorflow as tf

    module = _emitted(model, "keras")

    def tensor(x: Any) -> Any:
        return [tensor(v) for v in x] if isinstance(x, list) else x if x is None else tf.constant(x)

    def array(y: Any) -> Any:
        return [array(v) for v in y] if isinstance(y, list) else None if y is None else np.asarray(y)

    def run(xs: Sequence[Any]) -> list[Any]:
        out = module(*(tensor(x) for x in xs))
        return [array(y) for y in (out if isinstance(out, tuple) else (out,))]

    return run


def _emitted(model: onnx.ModelProto, to: str) -> Any:
    with tempfile.TemporaryDirectory(prefix="conformance_") as folder:
        fusile.emit(model, to=to, out=folder)
        name = f"conformance_{to}_{next(_count)}"
        spec = importlib.util.spec_from_file_location(name, Path(folder) / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module.load()


ENGINES: dict[str, Callable[[onnx.ModelProto], Run]] = {
    "native": native,
    "numba": numba,
    "torch": torch,
    "keras": keras,
}
