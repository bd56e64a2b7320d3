"""Files that ONNX Runtime writes: models saved by its optimiser and by its quantiser, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fusile
from fusile.errors import UnsupportedError

ort = pytest.importorskip("onnxruntime")
LEVELS = ort.GraphOptimizationLevel
WIDTH, HEADS = 32, 4


class Builder:
    """A graph under construction: nodes, and weights that come from one seed."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(7)

    def weight(self, *shape: int, factor: float = 0.3) -> str:
        values = (self.random.standard_normal(shape) * factor).astype(np.float32)
        return self.constant(values)

    def constant(self, values: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"{op.lower()}{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=names[0], **attributes))
        return names[0]

    def model(self, x: tuple[str, int, list[int | str]], y: str) -> onnx.ModelProto:
        name, kind, shape = x
        given = helper.make_tensor_value_info(name, kind, shape)
        graph = helper.make_graph(
            self.nodes,
            "made",
            [given],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def transformer() -> onnx.ModelProto:
    """A block as exporters write it: layer norms and gelus in pieces, heads by Reshape and Transpose."""
    b = Builder()
    shape = b.constant(np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
    flat = b.constant(np.array([0, 0, WIDTH], np.int64))

    def projected(x: str) -> str:
        return b("Add", b("MatMul", x, b.weight(WIDTH, WIDTH)), b.weight(WIDTH))

    def norm(x: str) -> str:
        middle = b("Sub", x, b("ReduceMean", x, axes=[-1]))
        square = b("ReduceMean", b("Pow", middle, b.constant(np.array(2, np.float32))), axes=[-1])
        root = b("Sqrt", b("Add", square, b.constant(np.array(1e-5, np.float32))))
        scaled = b("Mul", b("Div", middle, root), b.weight(WIDTH))
        return b("Add", scaled, b.weight(WIDTH))

    def heads(x: str, perm: list[int]) -> str:
        return b("Transpose", b("Reshape", projected(x), shape), perm=perm)

    q, v = heads("x", [0, 2, 1, 3]), heads("x", [0, 2, 1, 3])
    k = heads("x", [0, 2, 3, 1])
    scores = b("Div", b("MatMul", q, k), b.constant(np.array(8**0.5, np.float32)))
    mixed = b("Transpose", b("MatMul", b("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    x = norm(b("Add", projected(b("Reshape", mixed, flat)), "x"))
    h = b("Add", b("MatMul", x, b.weight(WIDTH, 64)), b.weight(64))
    bent = b(
        "Add",
        b("Erf", b("Div", h, b.constant(np.array(2**0.5, np.float32)))),
        b.constant(np.array(1, np.float32)),
    )
    h = b("Mul", b("Mul", h, bent), b.constant(np.array(0.5, np.float32)))
    out = b("Add", b("MatMul", h, b.weight(64, WIDTH)), b.weight(WIDTH))
    gate = b("Mul", out, b("Sigmoid", out))
    return b.model(("x", TensorProto.FLOAT, ["batch", "seq", WIDTH]), norm(b("Add", gate, x)))


def residual() -> onnx.ModelProto:
    """Convolutions, batch norms, a skip, pools and a classifier."""
    b = Builder()

    def conv(x: str, inner: int, outer: int, size: int = 3, act: str = "Relu", **more: object) -> str:
        pads = [size // 2] * 4
        y = b("Conv", x, b.weight(outer, inner, size, size), b.weight(outer), pads=pads, **more)
        return b(act, y) if act else y

    x = conv("x", 3, 16, strides=[2, 2])
    x = b("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = conv(conv(x, 16, 16), 16, 16, act="")
    x = b("Relu", b("Add", y, x))
    x = b("Mul", x, b("Sigmoid", b("GlobalAveragePool", x)))
    x = b("Concat", x, conv(x, 16, 16, 1, "LeakyRelu"), axis=1)
    x = b("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = b("Flatten", b("GlobalAveragePool", x))
    return b.model(
        ("x", TensorProto.FLOAT, ["batch", 3, 32, 32]), b("Gemm", x, b.weight(32, 10), b.weight(10))
    )


def recurrent() -> onnx.ModelProto:
    """An embedding, an LSTM in both directions, and a classifier of its states."""
    b = Builder()
    x = b("Transpose", b("Gather", b.weight(20, 12), "x"), perm=[1, 0, 2])
    weights = [b.weight(2, 64, 12), b.weight(2, 64, 16), b.weight(2, 128)]
    y = b("LSTM", x, *weights, outputs=1, hidden_size=16, direction="bidirectional")
    y = b("Reshape", b("Transpose", y, perm=[2, 0, 1, 3]), b.constant(np.array([0, 0, 32], np.int64)))
    y = b("Relu", b("Add", b("MatMul", y, b.weight(32, 24)), b.weight(24)))
    return b.model(("x", TensorProto.INT64, [1, "seq"]), b("MatMul", y, b.weight(24, 5)))


MODELS = {"transformer": transformer, "residual": residual, "recurrent": recurrent}
SIZES = ({"batch": 1, "seq": 6}, {"batch": 3, "seq": 9})


def feeds(model: onnx.ModelProto, sizes: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    (x,) = model.graph.input
    t = x.type.tensor_type
    shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in t.shape.dim]
    random = np.random.default_rng(seed)
    if t.elem_type == TensorProto.INT64:
        return {x.name: random.integers(0, 20, shape)}
    return {x.name: random.standard_normal(shape).astype(np.float32)}


class Calibration:
    """Two batches for the quantiser."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = iter([feeds(model, SIZES[0], s) for s in range(2)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def optimised(source: Path, level: object) -> Path:
    """The file that ONNX Runtime writes for a model at a level of optimisation."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    made = source.with_suffix(".optimised.onnx")
    options.optimized_model_filepath = str(made)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return made


def agree(path: Path, model: onnx.ModelProto, tolerance: float) -> frozenset[str]:
    """Check a file at two shapes with one module; the operators of ONNX Runtime's domain in it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = LEVELS.ORT_DISABLE_ALL
    theirs = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    ours = fusile.InferenceSession(str(path))
    for sizes in SIZES:
        values = feeds(model, sizes, seed=5)
        (wanted,), (got,) = theirs.run(None, values), ours.run(None, values)
        limit = tolerance * float(np.abs(wanted).max())
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=limit)
    return frozenset(n.op_type for n in onnx.load(path).graph.node if n.domain == "com.microsoft")


@pytest.mark.parametrize(
    ("name", "level", "written"),
    [
        (
            "transformer",
            LEVELS.ORT_ENABLE_EXTENDED,
            {"FusedMatMul", "SkipLayerNormalization", "BiasGelu", "QuickGelu"},
        ),
        ("transformer", LEVELS.ORT_ENABLE_ALL, {"FusedMatMul", "BiasGelu"}),
        ("residual", LEVELS.ORT_ENABLE_EXTENDED, {"FusedConv"}),
        ("recurrent", LEVELS.ORT_ENABLE_EXTENDED, set()),
    ],
)
def test_optimised(tmp_path: Path, name: str, level: object, written: set[str]) -> None:
    model = MODELS[name]()
    source = tmp_path / f"{name}.onnx"
    onnx.save(model, source)
    assert written <= agree(optimised(source, level), model, 1e-4)


def quantised(source: Path, model: onnx.ModelProto, how: str) -> Path:
    """The file that ONNX Runtime's quantiser writes."""
    from onnxruntime import quantization

    made = source.with_suffix(f".{how}.onnx")
    if how == "dynamic":
        # Seven bits, which ONNX Runtime advises for CPUs whose sums of products saturate (those without VNNI).
        quantization.quantize_dynamic(
            str(source), str(made), weight_type=quantization.QuantType.QInt8, reduce_range=True
        )
        return made
    form = quantization.QuantFormat.QDQ if how == "qdq" else quantization.QuantFormat.QOperator
    quantization.quantize_static(
        str(source), str(made), Calibration(model), quant_format=form, per_channel=True
    )
    return made


@pytest.mark.parametrize(
    ("name", "how", "written", "more"),
    [
        ("residual", "qdq", set(), {"QLinearGlobalAveragePool", "QLinearSigmoid"}),
        ("residual", "operators", {"QLinearAdd", "QLinearConcat", "QLinearLeakyRelu", "QGemm"}, set()),
        ("residual", "dynamic", set(), set()),
        ("transformer", "dynamic", set(), {"DynamicQuantizeMatMul"}),
        ("recurrent", "dynamic", {"DynamicQuantizeLSTM"}, {"DynamicQuantizeLSTM", "DynamicQuantizeMatMul"}),
    ],
)
def test_quantised(tmp_path: Path, name: str, how: str, written: set[str], more: set[str]) -> None:
    """The quantised file, and what the optimiser then makes of it. A step of a byte may fall either way."""
    model = MODELS[name]()
    source = tmp_path / f"{name}.onnx"
    onnx.save(model, source)
    small = quantised(source, model, how)
    assert written <= agree(small, model, 2e-2)
    assert more <= agree(optimised(small, LEVELS.ORT_ENABLE_EXTENDED), model, 2e-2)


def test_blocked_layouts_are_refused_with_the_way_out(tmp_path: Path) -> None:
    source = tmp_path / "residual.onnx"
    onnx.save(residual(), source)
    made = optimised(source, LEVELS.ORT_ENABLE_ALL)
    if not any(n.domain == "com.microsoft.nchwc" for n in onnx.load(made).graph.node):
        pytest.skip("this machine's ONNX Runtime has no blocked layout")
    with pytest.raises(UnsupportedError, match="ORT_ENABLE_EXTENDED"):
        fusile.compile(str(made))
