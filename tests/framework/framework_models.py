"""Small models for the tests of the framework backends; emitting, loading and running them."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fusile.backends.framework import keras, torch
from fusile.backends.framework.emit import EmitReport
from fusile.frontend import load
from fusile.passes.to_tensor import infer

FRAMEWORKS = ("torch", "keras")
_BACKENDS = {"torch": torch, "keras": keras}
_numbers = itertools.count()
Array = np.ndarray[Any, Any]


def node(
    op: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array | tuple[int, Sequence[int | str]]],
    weights: Mapping[str, Array] | None = None,
    outputs: Sequence[str] = ("y",),
    *,
    opset: int = 21,
) -> onnx.ModelProto:
    """A model of one graph; an input is given by an example or by its type and dims."""
    infos = []
    for name, given in inputs.items():
        if isinstance(given, tuple):
            infos.append(helper.make_tensor_value_info(name, given[0], list(given[1])))
        else:
            kind = helper.np_dtype_to_tensor_dtype(given.dtype)
            infos.append(helper.make_tensor_value_info(name, kind, list(given.shape)))
    graph = helper.make_graph(
        list(nodes),
        "small",
        infos,
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(made)


def emit(source: onnx.ModelProto, to: str, folder: Path) -> EmitReport:
    """What the tool does: canonical form, types, source."""
    canonical = load(source)
    infer(canonical)
    return _BACKENDS[to].emit(canonical, folder)


def module_of(folder: Path) -> ModuleType:
    """The emitted module, imported under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"emitted_{next(_numbers)}", folder / "model.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


def call(to: str, net: Any, feeds: Sequence[Array]) -> list[Array]:
    """The answers of a loaded module for inputs in graph order."""
    if to == "torch":
        import torch as framework

        with framework.no_grad():
            out = net(*(framework.from_numpy(np.array(x)) for x in feeds))
        return [np.asarray(y) for y in (out if isinstance(out, tuple) else (out,))]
    import tensorflow

    out = net(*(tensorflow.constant(x) for x in feeds))
    return [np.asarray(y) for y in (out if isinstance(out, tuple) else (out,))]


def reference(source: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """ONNX Runtime's answers with its optimisations off, else those of ONNX's own evaluator."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(source.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception:  # what ONNX Runtime does not take, ONNX's own evaluator does
        return [np.asarray(y) for y in ReferenceEvaluator(source).run(None, dict(feeds))]
    return [np.asarray(y) for y in session.run(None, dict(feeds))]


def close(got: Sequence[Array], want: Sequence[Array], bound: float = 1e-5) -> None:
    """Equal types, shapes and, within `bound` of the largest value, numbers."""
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape, f"{g.dtype}{g.shape}, expected {w.dtype}{w.shape}"
        if w.dtype.kind in "biu":
            assert np.array_equal(g, w)
        else:
            scale = float(np.max(np.abs(w[np.isfinite(w)]), initial=1.0))
            assert np.allclose(g, w, rtol=bound, atol=bound * scale, equal_nan=True), np.max(np.abs(g - w))


def agrees(
    source: onnx.ModelProto, feeds: Mapping[str, Array], to: str, folder: Path, bound: float = 1e-5
) -> Any:
    """Emit, load and compare with ONNX Runtime; answers the loaded module."""
    emit(source, to, folder)
    net = module_of(folder).load()
    close(call(to, net, list(feeds.values())), reference(source, feeds), bound)
    return net


class Draw:
    """Random arrays of one seed."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, *shape: int, dtype: str = "float32") -> Array:
        return np.asarray(self.rng.standard_normal(shape)).astype(dtype)

    def positive(self, *shape: int) -> Array:
        return np.asarray(self.rng.uniform(0.5, 2.0, shape)).astype("float32")

    def integers(self, low: int, high: int, *shape: int) -> Array:
        return np.asarray(self.rng.integers(low, high, shape))


def conv_net() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Convolutions with a folded and with a separate normalisation, a squeeze-and-excite gate, a residual, a head."""
    d = Draw(1)
    weights = {
        "stem.0.weight": d(8, 3, 3, 3) * 0.3,
        "stem.0.weight_bias": d(8),
        "stem.1.weight": d.positive(8),
        "stem.1.bias": d(8),
        "stem.1.running_mean": d(8),
        "stem.1.running_var": d.positive(8),
        "dw.weight": d(8, 1, 3, 3) * 0.3,
        "dw.bias": d(8),
        "gate.weight": d(8, 8, 1, 1) * 0.3,
        "gate.bias": d(8),
        "head.weight": d(5, 8) * 0.3,
        "head.bias": d(5),
    }
    nodes = [
        node("Conv", ["x", "stem.0.weight", "stem.0.weight_bias"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node(
            "BatchNormalization",
            ["a", *(f"stem.1.{w}" for w in ("weight", "bias", "running_mean", "running_var"))],
            ["b"],
        ),
        node("Relu", ["b"], ["c"]),
        node("Conv", ["c", "dw.weight", "dw.bias"], ["d"], pads=[1, 1, 1, 1], group=8),
        node("HardSwish", ["d"], ["e"]),
        node("GlobalAveragePool", ["e"], ["f"]),
        node("Conv", ["f", "gate.weight", "gate.bias"], ["g"]),
        node("HardSigmoid", ["g"], ["h"], alpha=1 / 6),
        node("Mul", ["e", "h"], ["i"]),
        node("Add", ["i", "c"], ["j"]),
        node("MaxPool", ["j"], ["k"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["k"], ["l"]),
        node("Flatten", ["l"], ["m"]),
        node("Gemm", ["m", "head.weight", "head.bias"], ["y"], transB=1),
    ]
    made = model(nodes, {"x": (TensorProto.FLOAT, ["batch", 3, 16, 16])}, weights)
    return made, {"x": d(2, 3, 16, 16)}


def transformer() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """One encoder layer with renamed, transposed weights and a tied output matrix, as an exporter leaves it."""
    d, width, heads = Draw(2), 16, 2
    weights: dict[str, Array] = {
        "m.embed.weight": d(30, width),
        "m.norm.weight": d.positive(width),
        "m.norm.bias": d(width),
        "heads": np.array([0, 0, heads, width // heads], dtype=np.int64),
        "joined": np.array([0, 0, width], dtype=np.int64),
        "scale": np.array(0.25, dtype=np.float32),
    }
    nodes = [node("Gather", ["m.embed.weight", "ids"], ["x"])]
    for index, word in enumerate("qkv"):
        weights[f"onnx::MatMul_{index}"] = d(width, width) * 0.3
        weights[f"m.attn.{word}.bias"] = d(width)
        nodes += [
            _named("MatMul", ["x", f"onnx::MatMul_{index}"], [f"{word}0"], f"/m/attn/{word}/MatMul"),
            _named("Add", [f"m.attn.{word}.bias", f"{word}0"], [f"{word}1"], f"/m/attn/{word}/Add"),
            node("Reshape", [f"{word}1", "heads"], [f"{word}2"]),
            node("Transpose", [f"{word}2"], [f"{word}3"], perm=[0, 2, 3, 1] if word == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        node("MatMul", ["q3", "k3"], ["s0"]),
        node("Mul", ["s0", "scale"], ["s1"]),
        node("Softmax", ["s1"], ["s2"]),
        node("MatMul", ["s2", "v3"], ["o0"]),
        node("Transpose", ["o0"], ["o1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["o1", "joined"], ["o2"]),
        node("Add", ["o2", "x"], ["o3"]),
        node("LayerNormalization", ["o3", "m.norm.weight", "m.norm.bias"], ["o4"]),
        node("Transpose", ["m.embed.weight"], ["turned"], perm=[1, 0]),
        node("MatMul", ["o4", "turned"], ["y"]),
    ]
    made = model(nodes, {"ids": (TensorProto.INT64, ["batch", "seq"])}, weights)
    return made, {"ids": d.integers(0, 30, 2, 7)}


def _named(op: str, inputs: Sequence[str], outputs: Sequence[str], name: str) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), name=name)
