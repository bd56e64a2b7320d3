"""Recovered layers, layouts and names: what the graph passes for the frameworks make of small graphs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from framework_models import FRAMEWORKS, Array, Draw, agrees, conv_net, emit, model, node
from onnx import TensorProto

from fusile.frontend import load
from fusile.graph.layout import channels_last
from fusile.graph.recognise import recognise
from fusile.graph.tensors import is_generic, scopes
from fusile.passes.to_tensor import infer

D = Draw(11)


def recognised(source: onnx.ModelProto) -> ir.Model:
    graph = load(source)
    infer(graph)
    return recognise(graph)


def operators(graph: ir.Model) -> Counter[str]:
    return Counter(node_.op_type for node_ in graph.graph)


def number(value: float) -> Array:
    return np.array(value, dtype=np.float32)


def chain(*steps: tuple[str, list[str]], **attributes: dict[str, object]) -> list[onnx.NodeProto]:
    """Nodes named by their outputs: ("Op out", inputs)."""
    nodes = []
    for text, inputs in steps:
        op, out = text.split()
        nodes.append(node(op, inputs, [out], **attributes.get(out, {})))
    return nodes


PATTERNS: dict[str, tuple[list[onnx.NodeProto], dict[str, Array], dict[str, Array], dict[str, int]]] = {
    "linear": (
        chain(("MatMul a", ["x", "w"]), ("Add y", ["b", "a"])),
        {"x": D(2, 3, 4)},
        {"w": D(4, 5), "b": D(5)},
        {"Linear": 1},
    ),
    "linear_turned": (
        chain(("Transpose t", ["w"]), ("MatMul y", ["x", "t"]), t={"perm": [1, 0]}),
        {"x": D(2, 3, 4)},
        {"w": D(5, 4)},
        {"Linear": 1},
    ),
    "gelu": (
        chain(
            ("Div a", ["x", "r"]),
            ("Erf b", ["a"]),
            ("Add c", ["b", "o"]),
            ("Mul d", ["x", "c"]),
            ("Mul y", ["d", "h"]),
        ),
        {"x": D(2, 5)},
        {"r": number(2**0.5), "o": number(1), "h": number(0.5)},
        {"Gelu": 1},
    ),
    "gelu_tanh": (
        chain(
            ("Pow a", ["x", "three"]),
            ("Mul b", ["a", "k"]),
            ("Add c", ["x", "b"]),
            ("Mul d", ["c", "s"]),
            ("Tanh e", ["d"]),
            ("Add f", ["e", "o"]),
            ("Mul g", ["x", "h"]),
            ("Mul y", ["g", "f"]),
        ),
        {"x": D(2, 5)},
        {
            "three": number(3),
            "k": number(0.044715),
            "s": number((2 / np.pi) ** 0.5),
            "o": number(1),
            "h": number(0.5),
        },
        {"Gelu": 1},
    ),
    "swish": (chain(("Sigmoid a", ["x"]), ("Mul y", ["x", "a"])), {"x": D(2, 5)}, {}, {"Swish": 1}),
    "hard_swish": (
        chain(
            ("Add a", ["x", "three"]),
            ("Clip b", ["a", "low", "six"]),
            ("Mul c", ["x", "b"]),
            ("Div y", ["c", "six"]),
        ),
        {"x": D(2, 5)},
        {"three": number(3), "low": number(0), "six": number(6)},
        {"HardSwish": 1},
    ),
    "layer_norm": (
        chain(
            ("ReduceMean m", ["x", "last"]),
            ("Sub c", ["x", "m"]),
            ("Pow p", ["c", "two"]),
            ("ReduceMean v", ["p", "last"]),
            ("Add e", ["v", "eps"]),
            ("Sqrt s", ["e"]),
            ("Div n", ["c", "s"]),
            ("Mul g", ["n", "w"]),
            ("Add y", ["g", "b"]),
        ),
        {"x": D(2, 3, 8)},
        {"last": np.array([-1]), "two": number(2), "eps": number(1e-5), "w": D(8), "b": D(8)},
        {"LayerNormalization": 1},
    ),
    "rms_norm": (
        chain(
            ("Mul p", ["x", "x"]),
            ("ReduceMean v", ["p", "last"]),
            ("Add e", ["v", "eps"]),
            ("Sqrt s", ["e"]),
            ("Reciprocal i", ["s"]),
            ("Mul n", ["x", "i"]),
            ("Mul y", ["w", "n"]),
        ),
        {"x": D(2, 3, 8)},
        {"last": np.array([-1]), "eps": number(1e-5), "w": D(8)},
        {"RMSNormalization": 1},
    ),
    "group_norm": (
        chain(
            ("Reshape a", ["x", "grouped"]),
            ("InstanceNormalization n", ["a", "ones", "zeros"]),
            ("Reshape r", ["n", "back"]),
            ("Mul s", ["r", "w"]),
            ("Add y", ["s", "b"]),
        ),
        {"x": D(2, 6, 4, 4)},
        {
            "grouped": np.array([0, 3, -1]),
            "back": np.array([2, 6, 4, 4]),
            "ones": np.ones(3, "f4"),
            "zeros": np.zeros(3, "f4"),
            "w": D(6, 1, 1),
            "b": D(6, 1, 1),
        },
        {"GroupNormalization": 1},
    ),
    "picked": (
        chain(("Slice a", ["x", "one", "two", "zero"]), ("Squeeze y", ["a", "zero"])),
        {"x": D(3, 4)},
        {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])},
        {"Gather": 1},
    ),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_is_recovered(name: str) -> None:
    nodes, feeds, weights, left = PATTERNS[name]
    assert operators(recognised(model(nodes, feeds, weights))) == left


@pytest.mark.parametrize("to", FRAMEWORKS)
@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_agrees(name: str, to: str, tmp_path: Path) -> None:
    nodes, feeds, weights, _ = PATTERNS[name]
    agrees(model(nodes, feeds, weights), feeds, to, tmp_path, 1e-4)


def test_near_misses_stay_as_they_are() -> None:
    nodes = chain(("Sigmoid a", ["x"]), ("Mul y", ["z", "a"]))
    assert operators(recognised(model(nodes, {"x": D(2, 5), "z": D(2, 5)}))) == {"Sigmoid": 1, "Mul": 1}
    nodes = chain(("MatMul a", ["x", "w"]), ("Add y", ["a", "b"]))
    left = operators(recognised(model(nodes, {"x": D(3, 4)}, {"w": D(4, 5), "b": D(3, 1)})))
    assert left == {"Linear": 1, "Add": 1}


# ---- layout ------------------------------------------------------------------------------------------


def transposes(source: onnx.ModelProto) -> int:
    return operators(channels_last(recognised(source)))["Transpose"]


def test_a_plain_conv_net_turns_its_input_alone() -> None:
    assert transposes(conv_net()[0]) == 1


def test_transposes_of_the_model_vanish() -> None:
    """NHWC in, as from TensorFlow: Transpose, Conv, Transpose, Add, Transpose, Conv, Transpose."""
    nodes = [
        node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        node("Conv", ["a", "w"], ["b"], pads=[1, 1, 1, 1]),
        node("Transpose", ["b"], ["c"], perm=[0, 2, 3, 1]),
        node("Add", ["c", "bias"], ["d"]),
        node("Relu", ["d"], ["e"]),
        node("Transpose", ["e"], ["f"], perm=[0, 3, 1, 2]),
        node("Conv", ["f", "w"], ["g"], pads=[1, 1, 1, 1]),
        node("Transpose", ["g"], ["y"], perm=[0, 2, 3, 1]),
    ]
    assert transposes(model(nodes, {"x": D(1, 6, 6, 4)}, {"w": D(4, 4, 3, 3), "bias": D(4)})) == 0


LAYOUTS = {
    "tokens": [
        node("Conv", ["x", "w"], ["a"]),
        node("Reshape", ["a", "flat"], ["b"]),
        node("Transpose", ["b"], ["c"], perm=[0, 2, 1]),
        node("MatMul", ["c", "m"], ["d"]),
        node("Transpose", ["d"], ["e"], perm=[0, 2, 1]),
        node("Reshape", ["e", "square"], ["f"]),
        node("Conv", ["f", "w"], ["y"]),
    ],
    "axes": [
        node("Conv", ["x", "w"], ["a"]),
        node("Concat", ["a", "a", "k"], ["b"], axis=1),
        node("Split", ["b"], ["c", "d", "e"], axis=1, num_outputs=3),
        node("Slice", ["d", "one", "big", "two"], ["f"]),
        node("Pad", ["f", "pads"], ["g"]),
        node("ReduceMean", ["g", "spatial"], ["h"]),
        node("Softmax", ["h"], ["i"], axis=1),
        node("Mul", ["c", "i"], ["j"]),
        node("Add", ["j", "gain"], ["y"]),
    ],
    "shape": [
        node("Conv", ["x", "w"], ["a"]),
        node("Shape", ["a"], ["s"], start=2),
        node("Cast", ["s"], ["t"], to=1),
        node("ReduceSum", ["t"], ["u"], keepdims=0),
        node("Mul", ["a", "u"], ["b"]),
        node("ReduceMax", ["b", "spatial"], ["c"], keepdims=0),
        node("Unsqueeze", ["c", "spatial"], ["d"]),
        node("Sub", ["b", "d"], ["e"]),
        node("GlobalAveragePool", ["e"], ["f"]),
        node("Squeeze", ["f", "spatial"], ["y"]),
    ],
    "mixed": [
        node("Conv", ["x", "w"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("MatMul", ["b", "m6"], ["c"]),
        node("Add", ["c", "a"], ["d"]),
        node("Conv", ["d", "w"], ["y"]),
    ],
}
LAYOUT_WEIGHTS = {
    "w": D(4, 4, 1, 1),
    "m": D(4, 4),
    "m6": D(6, 6),
    "flat": np.array([0, 4, -1]),
    "square": np.array([2, 4, 5, 6]),
    "k": D(2, 4, 5, 6),
    "one": np.array([1]),
    "two": np.array([3]),
    "big": np.array([2**31 - 1]),
    "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2]),
    "spatial": np.array([2, 3]),
    "gain": D(4, 1, 1),
}


@pytest.mark.parametrize(("name", "most"), [("tokens", 2), ("axes", 2), ("shape", 1), ("mixed", 4)])
def test_layout_is_cheap_and_right(name: str, most: int, tmp_path: Path) -> None:
    nodes = LAYOUTS[name]
    used = {given for node_ in nodes for given in node_.input}
    weights = {given: array for given, array in LAYOUT_WEIGHTS.items() if given in used}
    feeds = {"x": D(2, 4, 5, 6)}
    source = model(nodes, {"x": (TensorProto.FLOAT, [2, 4, 5, 6])}, weights)
    assert transposes(source) <= most
    agrees(source, feeds, "keras", tmp_path)


# ---- names -------------------------------------------------------------------------------------------


def test_scopes() -> None:
    made = ir.node("MatMul", [], name="/features/features.0/features.0.1/MatMul")
    assert scopes(made)[-1] == "features.0.1"
    made = ir.node("MatMul", [], name="/m/layer.0/attn/q_lin/MatMul")
    assert scopes(made)[-1] == "m.layer.0.attn.q_lin"
    made = ir.node("Conv", [], name="node_conv")
    made.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'layer1', 'layer1.0.conv1', 'conv2d']"
    assert scopes(made)[-1] == "layer1.0.conv1"
    made.metadata_props["pkg.torch.onnx.name_scopes"] = "__import__('os')"
    assert scopes(made) == []


def test_generic_names() -> None:
    assert all(
        is_generic(n)
        for n in ("val_12", "onnx::MatMul_7", "/a/Constant_3_output_0", "12", "const_fold_opt__1")
    )
    assert not any(is_generic(n) for n in ("layer1.0.weight", "fc.bias", "cls_token", "conv2d_1.w_0"))


def test_folded_names_come_from_the_exporter(tmp_path: Path) -> None:
    made = node("Conv", ["x", "conv1.weight", "conv1.weight_bias"])
    for key, value in (
        ("pkg.torch.onnx.name_scopes", "['', 'layer1', 'layer1.bn1', '_native_batch_norm']"),
        ("pkg.torch.onnx.class_hierarchy", "['Net', 'torch.nn.modules.batchnorm.BatchNorm2d', 'aten']"),
        ("pkg.onnxscript.rewriter.rule_name", "FuseBatchNormIntoConv"),
    ):
        made.metadata_props.add(key=key, value=value)
    report = emit(
        model([made], {"x": D(1, 3, 8, 8)}, {"conv1.weight": D(4, 3, 3, 3), "conv1.weight_bias": D(4)}),
        "torch",
        tmp_path,
    )
    assert [name for name, _ in report.parameters] == ["conv1.weight.folded", "conv1.bias.folded"]
    from fusile.backends.framework.weights import read_header

    records, _, _ = read_header(tmp_path / "weights.safetensors")
    assert records["conv1.weight.folded"].folded == ("layer1.bn1",)
