"""The canonical form, judged differentially: a model means the same before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from frontend_models import assert_same, chain, info, model, run
from onnx import TensorProto, helper, numpy_helper

from fusile.errors import InvalidModelError, UnsupportedError
from fusile.frontend import CANONICAL_OPSET, load, resolve
from fusile.graph.cleanup import clean_up
from fusile.graph.proto import to_proto

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Old:
    """One node of an old opset: its inputs (arrays in `weights` are initialisers), what becomes of it."""

    op_type: str
    opset: int
    feeds: tuple[np.ndarray, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[np.ndarray | None, ...] = ()
    becomes: tuple[str, ...] = ()
    outputs: int = 1
    domain: str = ""
    symbolic: bool = False
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op_type}-{self.opset}{'-' if self.note else ''}{self.note}"

    def model(self) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        feeds = {f"x{index}": array for index, array in enumerate(self.feeds)}
        weights = {f"w{index}": array for index, array in enumerate(self.weights) if array is not None}
        names = [*feeds, *("" if array is None else f"w{index}" for index, array in enumerate(self.weights))]
        outputs = [f"y{index}" for index in range(self.outputs)]
        node = helper.make_node(self.op_type, names, outputs, "node", domain=self.domain, **self.attributes)
        inputs = [
            info(
                name,
                [None] * array.ndim if self.symbolic else array.shape,
                helper.np_dtype_to_tensor_dtype(array.dtype),
            )
            for name, array in feeds.items()
        ]
        domains = {self.domain: 1} if self.domain else {}
        return model([node], inputs, outputs, opset=self.opset, weights=weights, domains=domains), feeds


IMAGE = floats(1, 4, 9, 8)
CHANNELS = tuple(floats(4) for _ in range(3)) + (np.abs(floats(4)) + 0.5,)
ELEMENTS = tuple(floats(4, 9, 8) for _ in range(3)) + (np.abs(floats(4, 9, 8)) + 0.5,)
BOXES = np.array([[0, 0, 5, 5], [1, 2, 7, 6]], np.float32)
SAME = {"kernel_shape": [3, 2], "strides": [2, 3]}

OLD_FORMS = (
    Old("Add", 6, (floats(2, 3, 4, 5),), {"broadcast": 1, "axis": 1}, (floats(3, 4),), note="axis"),
    Old("Mul", 6, (floats(2, 3, 4),), {"broadcast": 1}, (floats(4),), note="suffix"),
    Old("PRelu", 6, (IMAGE,), {}, (floats(4),)),
    Old("Cast", 5, (floats(3),), {"to": "INT32"}, note="name"),
    Old("Clip", 10, (floats(9),), {"min": -0.5, "max": 0.25}),
    Old("Clip", 6, (floats(9),), {"max": 0.25}, note="one-sided"),
    Old("Slice", 9, (IMAGE,), {"starts": [1, -3], "ends": [4, 100], "axes": [1, 3]}),
    Old("Slice", 1, (IMAGE,), {"starts": [0, 1], "ends": [1, 3]}, note="no-axes"),
    Old("Pad", 2, (IMAGE,), {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 2.5}),
    Old("Pad", 10, (IMAGE,), {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "mode": "reflect"}, note="reflect"),
    Old("Split", 2, (IMAGE,), {"axis": 2, "split": [2, 7]}, outputs=2),
    Old("Split", 11, (IMAGE,), {"axis": 3}, outputs=2, note="even"),
    Old("Split", 13, (IMAGE,), {"axis": 3}, outputs=4, note="even"),
    Old("Squeeze", 11, (floats(1, 3, 1),), {"axes": [-1]}),
    Old("Squeeze", 9, (floats(1, 3, 1),), note="all"),
    Old("Unsqueeze", 11, (floats(3),), {"axes": [0, 2]}),
    Old("ReduceSum", 11, (IMAGE,), {"axes": [1, -1], "keepdims": 0}),
    Old("ReduceMean", 17, (IMAGE,), {"axes": [2]}),
    Old("ReduceMax", 13, (IMAGE,), {"keepdims": 0}, note="all"),
    Old("TopK", 9, (floats(3, 7),), {"k": 2, "axis": 1}, outputs=2),
    Old("GridSample", 16, (IMAGE, floats(1, 3, 3, 2)), {"mode": "bicubic"}),
    Old("GridSample", 16, (IMAGE, floats(1, 3, 3, 2)), note="default"),
    Old(
        "Scatter", 9, (np.zeros((3, 3), np.float32),), {"axis": 1}, (np.array([[2], [0], [1]]), floats(3, 1))
    ),
    Old("Upsample", 7, (IMAGE,), {"scales": [1.0, 1.0, 2.0, 3.0]}, becomes=("Resize",)),
    Old("Upsample", 9, (IMAGE,), {"mode": "linear"}, (np.array([1, 1, 2, 2], np.float32),)),
    Old("Resize", 10, (IMAGE,), {}, (np.array([1, 1, 2.5, 1.5], np.float32),), note="grow"),
    Old("Resize", 10, (IMAGE,), {}, (np.array([1, 1, 0.4, 0.7], np.float32),), note="shrink"),
    Old("Resize", 10, (IMAGE,), {}, (np.array([1, 1, 0.4, 2.2], np.float32),), note="both"),
    Old("Resize", 10, (IMAGE,), {"mode": "linear"}, (np.array([1, 1, 0.4, 2.2], np.float32),), note="linear"),
    Old(
        "Resize",
        11,
        (IMAGE,),
        {"mode": "cubic", "coordinate_transformation_mode": "align_corners"},
        (np.zeros(0, np.float32), np.zeros(0, np.float32), np.array([1, 4, 5, 11])),
        note="sizes",
    ),
    Old(
        "Resize",
        11,
        (IMAGE,),
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"},
        (np.array([0, 0, 0.1, 0.2, 1, 1, 0.9, 0.8], np.float32), np.array([1, 1, 2, 2], np.float32)),
        note="roi",
    ),
    Old("BatchNormalization", 7, (IMAGE,), {}, CHANNELS),
    Old("BatchNormalization", 6, (IMAGE,), {"is_test": 1}, CHANNELS, note="test"),
    Old("BatchNormalization", 7, (IMAGE,), {"spatial": 0}, ELEMENTS, note="elements"),
    Old("Dropout", 9, (floats(3),), {"ratio": 0.9}, becomes=("Identity",)),
    Old("Dropout", 12, (floats(3),), {}, (np.array(0.9, np.float32),), becomes=("Identity",)),
    Old("Dropout", 10, (floats(3),), outputs=2, becomes=("Dropout",), note="mask"),
    Old("Softmax", 11, (floats(2, 3, 4),), {"axis": 1}, becomes=("Shape", "Flatten", "Softmax", "Reshape")),
    Old("Softmax", 11, (floats(2, 3, 4),), {"axis": 0}, symbolic=True, note="all"),
    Old("Softmax", 12, (floats(2, 3, 4),), {"axis": -1}, becomes=("Softmax",), note="last"),
    Old("Softmax", 9, (floats(2, 5, 1, 1),), becomes=("Softmax",), note="ones"),
    Old("LogSoftmax", 11, (floats(2, 3, 4),)),
    Old("Hardmax", 11, (floats(2, 3, 4),)),
    Old("GroupNormalization", 18, (IMAGE,), {"num_groups": 2}, (floats(2), floats(2))),
    Old("RoiAlign", 10, (IMAGE,), {"output_height": 2, "output_width": 3}, (BOXES, np.array([0, 0]))),
    Old("RoiAlign", 16, (IMAGE,), {"output_height": 2}, (BOXES, np.array([0, 0])), note="half-pixel"),
    Old("GlobalLpPool", 2, (np.abs(IMAGE),), {"p": 3}),
    Old("GRU", 7, (floats(5, 2, 3),), {"hidden_size": 2}, (floats(1, 6, 3), floats(1, 6, 2)), outputs=2),
    Old("ConstantOfShape", 9, (), {}, (np.array([2, 3]),)),
    Old(
        "LabelEncoder",
        11,
        (np.array(["b", "c", "?"], object),),
        {"classes_strings": ["a", "b", "c"], "default_int64": 7},
        domain="ai.onnx.ml",
    ),
    Old("MaxPool", 9, (IMAGE,), {"auto_pad": "SAME_UPPER", **SAME}, note="same"),
    Old("MaxPool", 12, (IMAGE,), {"auto_pad": "SAME_LOWER", "ceil_mode": 1, **SAME}, note="same-ceil"),
    Old("MaxPool", 12, (IMAGE,), {"auto_pad": "VALID", "ceil_mode": 1, **SAME}, note="valid-ceil"),
    Old("AveragePool", 11, (IMAGE,), {"auto_pad": "SAME_LOWER", **SAME}, note="same"),
    Old("AveragePool", 7, (IMAGE,), {"auto_pad": "VALID", **SAME}, note="valid"),
    Old(
        "Conv",
        11,
        (IMAGE,),
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
        (floats(2, 4, 4, 3),),
        note="same",
    ),
    Old(
        "Conv",
        11,
        (IMAGE,),
        {"auto_pad": "SAME_LOWER"},
        (floats(2, 4, 4, 2),),
        symbolic=True,
        note="stride-1",
    ),
    Old(
        "Conv",
        11,
        (IMAGE,),
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        (floats(2, 4, 4, 2),),
        symbolic=True,
    ),
    Old("Conv", 1, (IMAGE,), {"dilations": [2, 1]}, (floats(2, 4, 2, 2), floats(2)), note="dilated"),
    Old(
        "ConvTranspose",
        11,
        (IMAGE,),
        {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
        (floats(4, 2, 5, 4),),
        symbolic=True,
        note="same",
    ),
    Old(
        "ConvTranspose",
        11,
        (IMAGE,),
        {"output_shape": [19, 17], "strides": [2, 2]},
        (floats(4, 2, 4, 4),),
        note="shape",
    ),
)


@pytest.mark.parametrize("case", OLD_FORMS, ids=str)
def test_an_old_form_means_the_same(case: Old) -> None:
    proto, feeds = case.model()
    loaded = load(proto)
    assert loaded.graph.opset_imports[""] == CANONICAL_OPSET
    if case.becomes:
        assert tuple(node.op_type for node in loaded.graph) == case.becomes
    by_hand = WANTED.get(str(case))
    wanted = list(by_hand(*case.feeds, *case.weights)) if by_hand else run(proto, feeds)
    assert_same(run(to_proto(loaded), feeds), wanted, 1e-5, 1e-5)
    clean_up(loaded)
    assert_same(run(to_proto(loaded), feeds), wanted, 1e-5, 1e-5)


# What those forms mean that are too old for both libraries, or on which they disagree.
WANTED: dict[str, Any] = {
    "Dropout-10-mask": lambda x: [x, np.ones(3, bool)],
    "Add-6-axis": lambda a, b: [a + b[:, :, None]],
    "Mul-6-suffix": lambda a, b: [a * b],
    "PRelu-6": lambda x, s: [np.where(x < 0, x * s[:, None, None], x)],
    "Cast-5-name": lambda x: [x.astype(np.int32)],
    "Slice-1-no-axes": lambda x: [x[0:1, 1:3]],
    "BatchNormalization-6-test": lambda x, s, b, m, v: [
        (x - m[:, None, None]) / np.sqrt(v[:, None, None] + 1e-5) * s[:, None, None] + b[:, None, None]
    ],
    "BatchNormalization-7-elements": lambda x, s, b, m, v: [(x - m) / np.sqrt(v + 1e-5) * s + b],
}


def test_softmax_and_dropout_follow_declared_types_of_half_precision() -> None:
    node = helper.make_node("Clip", ["x"], ["y"], min=-1.0, max=1.0)
    proto = model([node], [info("x", [3], TensorProto.FLOAT16)], ["y"], opset=10)
    for value in load(proto).graph.initializers.values():
        assert value.dtype is not None and value.dtype.name == "FLOAT16"


def test_a_bound_of_unknown_type_is_cast() -> None:
    nodes = [
        helper.make_node("Mystery", ["x"], ["h"], domain="com.example"),
        helper.make_node("Clip", ["h"], ["y"], max=1.0),
    ]
    proto = model(nodes, [info("x", [3])], ["y"], opset=10, domains={"com.example": 1})
    assert [node.op_type for node in load(proto).graph] == ["Mystery", "CastLike", "Clip"]


def test_what_lacked_shapes_is_resolved_once_they_are_there() -> None:
    nodes = [
        helper.make_node("Mystery", ["x"], ["h"], domain="com.example"),
        helper.make_node("Softmax", ["h"], ["s"], axis=2),
        helper.make_node("Conv", ["s", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2]),
    ]
    proto = model(
        nodes, [info("x")], ["y"], opset=11, domains={"com.example": 1}, weights={"w": floats(2, 3, 4)}
    )
    loaded = load(proto)
    assert [node.op_type for node in loaded.graph][1:5] == ["Shape", "Flatten", "Softmax", "Reshape"]
    for value in loaded.graph[0].outputs:
        value.shape = ir.Shape(["batch", 3, 10])
    loaded.graph[-1].inputs[0].shape = ir.Shape(["batch", 3, 10])  # type: ignore[union-attr]
    resolve(loaded)
    assert [node.op_type for node in loaded.graph] == ["Mystery", "Softmax", "Conv"]
    assert loaded.graph[1].attributes["axis"].as_int() == 2
    assert loaded.graph[2].attributes["auto_pad"].as_string() == "NOTSET"
    assert tuple(loaded.graph[2].attributes["pads"].as_ints()) == (1, 1)


def test_ranks_that_the_file_leaves_out_are_inferred() -> None:
    nodes = [helper.make_node("Exp", ["x"], ["h"]), helper.make_node("Softmax", ["h"], ["y"], axis=2)]
    graph = load(model(nodes, [info("x", ["a", "b", "c"])], ["y"], opset=11)).graph
    assert [node.op_type for node in graph] == ["Exp", "Softmax"]


def test_defaults_are_those_of_the_version_that_was_used() -> None:
    axis = {}
    for opset in (11, 13):
        node = helper.make_node("Softmax", ["x"], ["y"])
        axis[opset] = (
            load(model([node], [info("x", [2, 3, 1])], ["y"], opset=opset)).graph[0].attributes["axis"]
        )
    assert (axis[11].as_int(), axis[13].as_int()) == (1, -1)


def test_windows_have_all_their_attributes() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    weights = {"w": floats(8, 3, 3, 5)}
    conv = load(model([node], [info("x", [1, 3, 9, 9])], ["y"], weights=weights)).graph[0]
    found = {name: item.value for name, item in conv.attributes.items()}
    assert found == {
        "auto_pad": "NOTSET",
        "dilations": (1, 1),
        "group": 1,
        "kernel_shape": (3, 5),
        "pads": (0, 0, 0, 0),
        "strides": (1, 1),
    }


def test_training_forms_stay() -> None:
    bn = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y", "rm", "rv"], training_mode=1)
    inputs = [info("x", [2, 4, 3]), *(info(name, [4]) for name in "sbmv")]
    node = load(model([bn], inputs, ["y", "rm", "rv"], opset=15)).graph[0]
    assert len(node.outputs) == 3
    old = helper.make_node("BatchNormalization", list("xsbmv"), ["y", "m1", "v1", "m2", "v2"])
    node = load(model([old], inputs, ["y", "m1", "v1"], opset=9)).graph[0]
    assert (len(node.outputs), node.attributes["training_mode"].as_int()) == (3, 1)
    drop = helper.make_node("Dropout", ["x", "", "t"], ["y"])
    weights = {"t": np.array(True)}
    assert load(model([drop], [info("x", [2])], ["y"], weights=weights)).graph[0].op_type == "Dropout"


def test_scan_of_opset_8_works_along_each_entry() -> None:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["s", "x"], ["t"]),
            helper.make_node("Identity", ["t"], ["o"]),
        ],
        "body",
        [info("s", [2]), info("x", [2])],
        [info("t", [2]), info("o", [2])],
    )
    node = helper.make_node("Scan", ["", "s0", "xs"], ["sn", "os"], num_scan_inputs=1, body=body)
    inputs = [info("s0", [3, 2]), info("xs", [3, 4, 2])]
    proto = model([node], inputs, [info("sn", [3, 2]), info("os", [3, 4, 2])], opset=8)
    state, xs = floats(3, 2), floats(3, 4, 2)
    wanted = state[:, None] + np.cumsum(xs, 1)
    assert_same(run(to_proto(load(proto)), {"s0": state, "xs": xs}), [wanted[:, -1], wanted], 1e-4, 1e-5)


def function(name: str, nodes: list[onnx.NodeProto], opset: int = 18, **kwargs: Any) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["a"], ["b"], nodes, imports, **kwargs)


def test_functions_are_inlined_with_their_own_opsets_and_attributes() -> None:
    inner = function("Inner", [helper.make_node("Softmax", ["a"], ["b"])], opset=11)
    scaled = helper.make_node("LeakyRelu", ["s"], ["b"], "leaky")
    attribute = onnx.AttributeProto(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    scaled.attribute.append(attribute)
    outer = function(
        "Outer",
        [helper.make_node("Inner", ["a"], ["s"], "inner", domain="own"), scaled],
        attributes=["slope"],
    )
    nodes = [
        helper.make_node("Outer", ["x"], ["h"], "first", domain="own", slope=0.5),
        helper.make_node("Outer", ["h"], ["y"], "second", domain="own"),
    ]
    proto = model(
        nodes, [info("x", [2, 3])], [info("y", [2, 3])], functions=[inner, outer], domains={"own": 1}
    )
    loaded = load(proto)
    assert [node.op_type for node in loaded.graph] == ["Softmax", "LeakyRelu"] * 2
    assert [node.name for node in loaded.graph][:2] == ["first/inner/Softmax", "first/leaky"]
    slopes = [node.attributes["alpha"].as_float() for node in loaded.graph if node.op_type == "LeakyRelu"]
    assert slopes == [0.5, pytest.approx(0.01)]
    assert loaded.graph.outputs[0].name == "y"
    assert set(loaded.graph.opset_imports) == {""}


def test_a_function_may_return_its_input() -> None:
    echo = function("Echo", [helper.make_node("Relu", ["a"], ["unused"])])
    del echo.output[:]
    echo.output.append("a")
    node = helper.make_node("Echo", ["x"], ["y"], domain="own")
    proto = model([node], [info("x", [2])], [info("y", [2])], functions=[echo], domains={"own": 1})
    x = floats(2)
    assert_same(run(to_proto(load(proto)), {"x": x}), [x])


def test_every_gap_is_reported_at_once() -> None:
    nodes = [
        helper.make_node("Gelu", ["x"], ["h"], "one"),
        helper.make_node("Add", ["h", "x"], ["y"], "two"),
        helper.make_node("Mish", ["y"], ["z"], "three"),
    ]
    with pytest.raises(UnsupportedError) as caught:
        load(model(nodes, [info("x", [2])], ["z"], opset=13))
    assert [gap.node for gap in caught.value.gaps] == ["one", "three"]
    assert "version 20" in str(caught.value) and caught.value.exit_code == 3


def test_an_opset_of_the_future_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="opset 99"):
        load(chain(opset=99))


@pytest.mark.parametrize(
    ("node", "word"),
    [
        (helper.make_node("Relu", ["x"], ["y"], "n", alpha=1.0), "alpha"),
        (helper.make_node("Softmax", ["x"], ["y"], "n", axis=1.0), "axis"),
        (helper.make_node("Transpose", ["x", "x"], ["y"], "n"), "inputs"),
        (helper.make_node("Add", ["x", ""], ["y"], "n"), "inputs"),
        (helper.make_node("Concat", ["x"], ["y"], "n"), "axis"),
    ],
)
def test_a_node_that_breaks_its_schema_is_invalid(node: onnx.NodeProto, word: str) -> None:
    with pytest.raises(InvalidModelError, match=rf"'n'.*{word}"):
        load(model([node], [info("x", [2])], ["y"]))


def test_operators_nobody_defines_are_left_alone() -> None:
    node = helper.make_node("Mystery", ["x"], ["y"], "n", domain="com.example", depth=3)
    loaded = load(model([node], [info("x", [2])], ["y"], domains={"com.example": 2}))
    assert loaded.graph[0].domain == "com.example"
    assert loaded.graph.opset_imports["com.example"] == 2


def test_identities_go_where_nothing_changes() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["y"]),
        helper.make_node("Identity", ["x"], ["z"]),
        helper.make_node("Neg", ["w"], ["dead"]),
    ]
    proto = model(nodes, [info("x", [2])], [info("y", [2]), info("z", [2])], weights={"w": floats(2)})
    loaded = load(proto)
    clean_up(loaded)
    assert [node.op_type for node in loaded.graph] == ["Relu", "Identity"]
    assert [value.name for value in loaded.graph.outputs] == ["y", "z"]
    assert not loaded.graph.initializers
    x = floats(2)
    assert_same(run(to_proto(loaded), {"x": x}), [np.maximum(x, 0), x])


def test_weights_of_the_same_name_in_main_and_branch_do_not_meet() -> None:
    def branch(number: float) -> onnx.GraphProto:
        weight = numpy_helper.from_array(np.array([number], np.float32), "w")
        return helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["s"])], "b", [], [info("s", [1])], [weight]
        )

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch(1.0), else_branch=branch(2.0))
    add = helper.make_node("Add", ["y", "w"], ["z"])
    inputs = [info("x", [1]), info("c", [], TensorProto.BOOL)]
    proto = model([node, add], inputs, [info("z", [1])], weights={"w": np.array([10.0], np.float32)})
    for condition, wanted in ((True, 11), (False, 12)):
        feeds = {"x": np.zeros(1, np.float32), "c": np.array(condition)}
        assert_same(run(to_proto(load(proto)), feeds), [np.array([wanted])])


def test_a_fixed_size_is_put_into_the_sums_over_it() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]>
    g (float[past, 4] x, float["past + 1", 4] y) => (float["2 * past + 1", 4] z) {
        z = Concat <axis = 0> (x, y)
    }"""
    model = load(onnx.parser.parse_model(text), dims={"past": 3})
    assert [list(value.shape or ()) for value in model.graph.inputs] == [[3, 4], [4, 4]]


def test_dimensions_that_exporters_leave_nameless_need_not_be_equal() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]> g (float[n, 3, "?", "?"] x) => (float[n, 3, h, w] y) { y = Relu (x) }"""
    (x,) = load(onnx.parser.parse_model(text)).graph.inputs
    assert x.shape is not None
    first, _, third, fourth = (str(dim) for dim in x.shape)
    assert first == "n"
    assert third != fourth
