"""Odd files that ONNX Runtime accepts: fusile accepts them too, and answers alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import fusile
from fusile.errors import InvalidModelError

T = TensorProto
X = np.array([[1.5, -2.0, 3.0], [0.0, 4.0, -5.5]], np.float32)


@dataclass
class Odd:
    """A file and what it is fed; `path` is where it lies, where it has other files beside it."""

    model: onnx.ModelProto
    feeds: dict[str, Any] = field(default_factory=lambda: {"x": X})


Builder = Callable[[Path], Odd]
ODD: dict[str, Builder] = {}


def odd(function: Builder) -> Builder:
    ODD[function.__name__] = function
    return function


def tensor(name: str, dims: Sequence[Any] | None = ("N", 3), element: int = T.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, dims)


def weights(name: str = "w", values: Any = (1, -2, 3), dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    initializers: Sequence[TensorProto] = (),
    *,
    opset: int = 17,
    ir_version: int = 8,
    imports: Sequence[tuple[str, int]] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "g", list(inputs or [tensor("x")]), list(outputs or [tensor("y")]), list(initializers)
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(*pair) for pair in imports)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=list(functions))


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """Names are separated by blanks; - is no name."""

    def names(text: str) -> list[str]:
        return ["" if name == "-" else name for name in text.split()]

    return helper.make_node(op, names(inputs), names(outputs), **attributes)


ADD_RELU = (node("Add", "x w", "t"), node("Relu", "t", "y"))


# ---- order, names


@odd
def nodes_in_reverse_order(folder: Path) -> Odd:
    return Odd(model(ADD_RELU[::-1], initializers=[weights()]))


@odd
def one_name_for_all_nodes(folder: Path) -> Odd:
    return Odd(
        model([node("Add", "x w", "t", name="n"), node("Relu", "t", "y", name="n")], initializers=[weights()])
    )


def _strange(names: Sequence[str]) -> onnx.ModelProto:
    x, w, t, y = names
    nodes = [helper.make_node("Add", [x, w], [t], name=t), helper.make_node("Relu", [t], [y], name=y)]
    return model(nodes, [tensor(x)], [tensor(y)], [weights(w)])


STRANGE = {
    "digits": ("1", "2", "387", "4"),
    "blanks": ("an input", " ", "a  b", "y "),
    "quotes": ('"x"', "'w'", "`t`", '"""'),
    "lines": ("x\n1", "w\r\n", "t\t", "y\n\n"),
    "json": ('{"a": [1, 2]}', "[null]", '{"b": "\\n"}', "{}"),
    "unicode": ("größe", "重み", "🙂", "ÿ\u0301"),
    "paths": ("/a/b/c", "../w", "C:\\t", "onnx::Flatten_0"),
    "code": ("__import__('os')", "%s%n", "${x}", "x; y"),
    "keywords": ("class", "def", "None", "self"),
    "same but case": ("x", "X", "xX", "Xx"),
    "same when cleaned": ("a.b", "a_b", "a/b", "a:b"),
    "long": ("x" * 3000, "w" * 300, "t" * 5000, "y" * 3000),
    "llvm": ("@f", "%1", "!0", "\\22"),
}
for _label, _names in STRANGE.items():
    ODD[f"names: {_label}"] = lambda folder, names=_names: Odd(_strange(names), {names[0]: X})


@odd
def an_input_named_as_a_value_inside_of_a_branch(folder: Path) -> Odd:
    def branch(op: str) -> onnx.GraphProto:
        return helper.make_graph([node(op, "x", "t"), node("Neg", "t", op)], op, [], [tensor(op, ["N", 3])])

    nodes = [
        node("If", "c", "r", then_branch=branch("Relu"), else_branch=branch("Abs")),
        node("Add", "r u", "y"),
    ]
    inputs = [tensor("x"), tensor("u"), tensor("c", [], T.BOOL)]
    return Odd(model(nodes, inputs), {"x": X, "u": X, "c": np.array(True)})


# ---- declared shapes


@odd
def a_declared_output_of_another_size(folder: Path) -> Odd:
    return Odd(model(ADD_RELU, outputs=[tensor("y", ["N", 7])], initializers=[weights()]))


@odd
def a_declared_value_of_another_size(folder: Path) -> Odd:
    made = model(ADD_RELU, initializers=[weights()])
    made.graph.value_info.append(tensor("t", ["N", 9]))
    return Odd(made)


@odd
def an_output_without_a_shape(folder: Path) -> Odd:
    return Odd(model(ADD_RELU, outputs=[tensor("y", None)], initializers=[weights()]))


@odd
def an_output_of_another_symbol(folder: Path) -> Odd:
    return Odd(model(ADD_RELU, outputs=[tensor("y", ["M", "K"])], initializers=[weights()]))


@odd
def negative_dimensions(folder: Path) -> Odd:
    return Odd(model(ADD_RELU, [tensor("x", [-1, -1])], [tensor("y", [-1, -1])], [weights()]))


@odd
def nameless_dimensions_of_many_sizes(folder: Path) -> Odd:
    return Odd(model([node("MatMul", "x v", "y")], [tensor("x", ["?", "?"]), tensor("v", ["?", "?"])],
                     [tensor("y", ["?", "?"])]), {"x": X, "v": np.ones((3, 5), np.float32)})  # fmt: skip


@odd
def a_dimension_that_is_arithmetic(folder: Path) -> Odd:
    return Odd(model(ADD_RELU, [tensor("x", ["2*N", "k - 1"])], [tensor("y", ["2*N", "k - 1"])], [weights()]))


@odd
def unused_inputs(folder: Path) -> Odd:
    inputs = [tensor("u", [4]), tensor("x"), tensor("s", ["a"], T.INT64)]
    return Odd(
        model(ADD_RELU, inputs, initializers=[weights()]),
        {"u": np.zeros(4, np.float32), "x": X, "s": np.array([1, 2])},
    )


# ---- initialisers


@odd
def initializers_among_the_inputs(folder: Path) -> Odd:
    return Odd(model(ADD_RELU, [tensor("x"), tensor("w", [3])], initializers=[weights()]))


@odd
def initializers_among_the_inputs_of_an_old_file(folder: Path) -> Odd:
    return Odd(model(ADD_RELU, [tensor("x"), tensor("w", [3])], initializers=[weights()], ir_version=3))


@odd
def unused_initializers(folder: Path) -> Odd:
    return Odd(model(ADD_RELU, initializers=[weights(), weights("v", np.ones((50, 50)))]))


@odd
def an_initializer_that_is_an_output(folder: Path) -> Odd:
    return Odd(model(ADD_RELU, outputs=[tensor("y"), tensor("w", [3])], initializers=[weights()]))


@odd
def an_input_that_is_an_output(folder: Path) -> Odd:
    return Odd(model(ADD_RELU, outputs=[tensor("x"), tensor("y")], initializers=[weights()]))


@odd
def only_an_input_that_is_an_output(folder: Path) -> Odd:
    return Odd(model([], outputs=[tensor("x")]))


@odd
def only_constants(folder: Path) -> Odd:
    constant = node("Constant", "", "y", value=weights("", [[1, 2, 3]]))
    return Odd(model([constant], [tensor("x")], [tensor("y", [1, 3])]))


@odd
def no_inputs_at_all(folder: Path) -> Odd:
    made = model([node("Relu", "w", "y")], outputs=[tensor("y", [3])], initializers=[weights()])
    del made.graph.input[:]
    return Odd(made, {})


@odd
def a_constant_in_many_attributes(folder: Path) -> Odd:
    nodes = [
        node("Constant", "", "a", value_float=2.5),
        node("Constant", "", "b", value_floats=[1.0, 2.0, 3.0]),
        node("Constant", "", "s", value_ints=[-1, 3]),
        node("Mul", "x a", "t"),
        node("Add", "t b", "u"),
        node("Reshape", "u s", "y"),
    ]
    return Odd(model(nodes))


@odd
def halves_that_are_cast_up(folder: Path) -> Odd:
    nodes = [node("Cast", "h", "w", to=T.FLOAT), node("MatMul", "x w", "y")]
    half = weights("h", np.linspace(-1, 1, 12).reshape(3, 4), np.float16)
    return Odd(model(nodes, outputs=[tensor("y", ["N", 4])], initializers=[half]))


@odd
def bytes_that_are_cast_up(folder: Path) -> Odd:
    nodes = [node("Cast", "q", "c", to=T.FLOAT), node("Mul", "c s", "w"), node("MatMul", "x w", "y")]
    numbers = [weights("q", np.arange(-6, 6).reshape(3, 4), np.int8), weights("s", 0.125)]
    return Odd(model(nodes, outputs=[tensor("y", ["N", 4])], initializers=numbers))


@odd
def constants_that_are_no_numbers(folder: Path) -> Odd:
    values = weights("w", [np.nan, np.inf, -np.inf])
    return Odd(model([node("Mul", "x w", "t"), node("Max", "t x", "y")], initializers=[values]))


@odd
def infinite_masks(folder: Path) -> Odd:
    nodes = [node("Where", "c x m", "t"), node("Softmax", "t", "y", axis=-1)]
    mask = [weights("c", [True, False, True], np.bool_), weights("m", -np.inf)]
    return Odd(model(nodes, initializers=mask))


@odd
def sparse_initializers(folder: Path) -> Odd:
    made = model([node("MatMul", "x w", "y")], outputs=[tensor("y", ["N", 4])])
    values, indices = weights("w", [2, -1]), weights("", [1, 10], np.int64)
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 4]))
    return Odd(made)


@odd
def sparse_initializers_by_coordinates(folder: Path) -> Odd:
    made = model([node("MatMul", "x w", "y")], outputs=[tensor("y", ["N", 4])])
    values, indices = weights("w", [2, -1]), weights("", [[0, 1], [2, 3]], np.int64)
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 4]))
    return Odd(made)


@odd
def empty_initializers(folder: Path) -> Odd:
    return Odd(model([node("Concat", "x e", "y", axis=0)], initializers=[weights("e", np.zeros((0, 3)))]))


@odd
def scalars_everywhere(folder: Path) -> Odd:
    nodes = [node("Mul", "x a", "t"), node("ReduceSum", "t", "y", keepdims=0)]
    return Odd(
        model(nodes, [tensor("x", [])], [tensor("y", [])], [weights("a", 3)]), {"x": np.array(2, np.float32)}
    )


def _typed(element: int, values: Any, raw: bool) -> TensorProto:
    """A tensor in raw_data or in the field of its type."""
    made = helper.make_tensor("w", element, [len(values)], values)
    if raw:
        array = numpy_helper.to_array(made)
        made = TensorProto(name="w", data_type=element, dims=[len(values)], raw_data=array.tobytes())
    return made


STORED = {
    "float": (T.FLOAT, [1.5, -2, 3]), "double": (T.DOUBLE, [1.5, -2, 3]), "float16": (T.FLOAT16, [1.5, -2, 3]),
    "bfloat16": (T.BFLOAT16, [1.5, -2, 3]), "int8": (T.INT8, [-1, 2, 3]), "uint8": (T.UINT8, [1, 2, 255]),
    "int16": (T.INT16, [-300, 2, 3]), "uint16": (T.UINT16, [1, 2, 65535]), "int32": (T.INT32, [-1, 2, 3]),
    "uint32": (T.UINT32, [1, 2, 3]), "int64": (T.INT64, [-1, 2, 1 << 40]), "uint64": (T.UINT64, [1, 2, 3]),
    "bool": (T.BOOL, [True, False, True]), "float8e4m3fn": (T.FLOAT8E4M3FN, [1.5, -2, 3]),
    "float8e5m2": (T.FLOAT8E5M2, [1.5, -2, 3]),
}  # fmt: skip


def _stored(label: str, raw: bool) -> Builder:
    element, values = STORED[label]
    nodes = [node("Cast", "w", "c", to=T.FLOAT), node("Add", "x c", "y")]
    return lambda folder: Odd(
        model(nodes, initializers=[_typed(element, values, raw)], opset=19, ir_version=9)
    )


for _label in STORED:
    ODD[f"{_label} in its field"] = _stored(_label, False)
    ODD[f"{_label} as raw data"] = _stored(_label, True)


# ---- nodes


@odd
def a_value_that_is_two_outputs_of_use(folder: Path) -> Odd:
    nodes = [*ADD_RELU, node("Identity", "y", "z"), node("Identity", "y", "u")]
    return Odd(model(nodes, outputs=[tensor("y"), tensor("z"), tensor("u")], initializers=[weights()]))


@odd
def outputs_that_nobody_wants(folder: Path) -> Odd:
    nodes = [node("Split", "x", "a b c", axis=1), node("MaxPool", "i", "p -", kernel_shape=[1]),
             node("Squeeze", "b", "y")]  # fmt: skip
    inputs = [tensor("x", [2, 3]), tensor("i", [1, 1, 4])]
    feeds = {"x": X, "i": np.ones((1, 1, 4), np.float32)}
    return Odd(model(nodes, inputs, [tensor("y", None)], opset=13), feeds)


@odd
def empty_names_for_what_is_left_out(folder: Path) -> Odd:
    nodes = [node("Clip", "x - hi", "t"), node("Clip", "t lo -", "u"), node("Clip", "u - -", "y")]
    return Odd(model(nodes, initializers=[weights("hi", 2), weights("lo", -1)]))


@odd
def nodes_that_nobody_uses(folder: Path) -> Odd:
    nodes = [*ADD_RELU, node("Exp", "t", "e"), node("Neg", "e", "f")]
    return Odd(model(nodes, initializers=[weights()]))


@odd
def identities_all_the_way(folder: Path) -> Odd:
    nodes = [node("Identity", f"{'x' if i == 0 else f'i{i - 1}'}", f"i{i}") for i in range(40)]
    return Odd(model([*nodes, node("Identity", "i39", "y")]))


@odd
def attributes_for_tools(folder: Path) -> Odd:
    nodes = [node("Relu", "x", "y", doc_string="why", name="r")]
    nodes[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File x")
    return Odd(model(nodes, ir_version=10))


# ---- the model around it


@odd
def private_domains_that_nobody_uses(folder: Path) -> Odd:
    more = [("com.example.private", 1), ("ai.onnx.ml", 3), ("com.microsoft", 1), ("org.pytorch.aten", 7)]
    return Odd(model(ADD_RELU, initializers=[weights()], imports=more))


@odd
def a_doc_string_of_megabytes(folder: Path) -> Odd:
    made = model(ADD_RELU, initializers=[weights()])
    made.doc_string = "so much to say " * 200_000
    made.graph.doc_string = "and more " * 100_000
    made.graph.node[0].doc_string = "\0\x01" * 500_000
    return Odd(made)


@odd
def metadata_with_json(folder: Path) -> Odd:
    made = model(ADD_RELU, initializers=[weights()])
    helper.set_model_props(made, {"names": '{"0": "person", "1": "a \\"b\\""}', "": "", "k\n": "v\0"})
    return Odd(made)


@odd
def local_functions_within_functions(folder: Path) -> Odd:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    inner = helper.make_function("local", "Twice", ["a"], ["b"], [node("Add", "a a", "b")], opsets)
    outer = helper.make_function(
        "local",
        "More",
        ["a"],
        ["c"],
        [node("Twice", "a", "t", domain="local"), node("Relu", "t", "c")],
        opsets,
    )
    made = model([node("More", "x", "y", domain="local")], imports=[("local", 1)], functions=[inner, outer])
    return Odd(made)


for _version in range(3, 14):
    ODD[f"IR version {_version}"] = lambda folder, version=_version: Odd(
        model(
            ADD_RELU, [tensor("x"), tensor("w", [3])], initializers=[weights()], ir_version=version, opset=9
        )
    )
for _version in range(7, 29):
    ODD[f"opset {_version}"] = lambda folder, version=_version: Odd(
        model([*ADD_RELU[:1], node("Softmax", "t", "y", axis=-1)], initializers=[weights()], opset=version,
              ir_version=8)
    )  # fmt: skip


# ---- data in other files


def _outside(folder: Path, tensor: TensorProto, name: str, offset: int | None, length: bool) -> TensorProto:
    """The tensor with its data in a file, where others may lie already."""
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.seek(offset or 0)
        file.write(data)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    if offset is not None:
        tensor.external_data.add(key="offset", value=str(offset))
    if length:
        tensor.external_data.add(key="length", value=str(len(data)))
    return tensor


MATRIX = np.linspace(-1, 1, 3 * 70).reshape(3, 70)


def _product(initializers: Sequence[TensorProto]) -> Odd:
    nodes = [node("MatMul", "x w", "t"), node("Add", "t b", "y")]
    return Odd(model(nodes, outputs=[tensor("y", ["N", 70])], initializers=initializers))


@odd
def data_at_an_offset(folder: Path) -> Odd:
    return _product([_outside(folder, weights("w", MATRIX), "d.bin", 4096, True),
                     _outside(folder, weights("b", MATRIX[0]), "d.bin", 17, True)])  # fmt: skip


@odd
def data_without_offset_or_length(folder: Path) -> Odd:
    return _product([_outside(folder, weights("w", MATRIX), "w", None, False),
                     _outside(folder, weights("b", MATRIX[0]), "b.data", None, True)])  # fmt: skip


@odd
def data_in_a_folder_below(folder: Path) -> Odd:
    return _product([_outside(folder, weights("w", MATRIX), "data/w.bin", 0, True), weights("b", MATRIX[0])])


@odd
def data_with_a_checksum(folder: Path) -> Odd:
    stored = _outside(folder, weights("w", MATRIX), "w.bin", 0, True)
    stored.external_data.add(key="checksum", value="0" * 40)
    return _product([stored, weights("b", MATRIX[0])])


@odd
def two_tensors_over_the_same_data(folder: Path) -> Odd:
    first = _outside(folder, weights("w", MATRIX), "w.bin", 0, True)
    second = weights("b", MATRIX[0])
    return _product([first, _outside(folder, second, "w.bin", 0, True)])


# ---- the test


@pytest.mark.parametrize("name", ODD)
def test_odd_files_answer_alike(name: str, tmp_path: Path) -> None:
    case = ODD[name](tmp_path)
    path = tmp_path / "model.onnx"
    path.write_bytes(case.model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        theirs = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        want = theirs.run(None, case.feeds)
    except Exception as error:
        pytest.skip(f"ONNX Runtime does not take it: {str(error)[:100]}")
    ours = fusile.InferenceSession(str(path))
    assert [(p.name, p.type) for p in ours.get_inputs()] == [(p.name, p.type) for p in theirs.get_inputs()]
    assert [(p.name, p.type) for p in ours.get_outputs()] == [(p.name, p.type) for p in theirs.get_outputs()]
    for mine, other in zip(ours.run(None, case.feeds), want, strict=True):
        assert mine.dtype == other.dtype and mine.shape == other.shape
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
    if any(np.ndim(feed) == 2 and "N" in str(case.model.graph.input) for feed in case.feeds.values()):
        empty = {
            key: np.asarray(feed)[:0] if np.ndim(feed) == 2 else feed for key, feed in case.feeds.items()
        }
        for mine, other in zip(ours.run(None, empty), theirs.run(None, empty), strict=True):
            assert mine.shape == other.shape


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "data/../../w.bin", "C:\\w.bin"])
def test_data_outside_of_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "w.bin").write_bytes(MATRIX.astype(np.float32).tobytes())
    stored = TensorProto(name="w", data_type=T.FLOAT, dims=MATRIX.shape, data_location=TensorProto.EXTERNAL)
    stored.external_data.add(key="location", value=location)
    path = tmp_path / "in" / "model.onnx"
    path.write_bytes(_product([stored, weights("b", MATRIX[0])]).model.SerializeToString())
    with pytest.raises(fusile.UnsafeModelError):
        fusile.compile(path)


def test_denormal_weights_take_no_slow_path() -> None:
    """Products of denormal numbers are flushed: as quick as others, and as good as zero."""
    size = 512
    seconds = []
    for scale in (1.0, 1e-40):
        matrix = weights("w", np.random.default_rng(0).random((size, size)) * scale)
        nodes = [node("MatMul", "x w", "y")]
        made = model(nodes, [tensor("x", ["N", size])], [tensor("y", ["N", size])], [matrix])
        module = fusile.compile(made, threads=1)
        x = np.full((64, size), 0.5, np.float32)
        best = min(_seconds(lambda module=module, x=x: module(x)) for _ in range(7))
        seconds.append(best)
        answer = np.asarray(module(x))
        assert np.isfinite(answer).all() and (scale == 1.0 or np.abs(answer).max() < 1e-36)
    assert seconds[1] < 8 * seconds[0] + 0.01


def _seconds(call: Callable[[], Any]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def test_undefined_element_types_are_worked_out() -> None:
    """ONNX Runtime, no reference here, refuses the output's."""
    nothing = [tensor(name, element=T.UNDEFINED) for name in "ty"]
    nodes = [node("Neg", "x", "t"), node("Abs", "t", "y")]
    graph = helper.make_graph(nodes, "g", [tensor("x")], nothing[1:], value_info=nothing[:1])
    module = fusile.compile(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert module.outputs[0].type == "tensor(float)"
    np.testing.assert_array_equal(module(X)[0], np.abs(X))
    graph.input[0].CopyFrom(tensor("x", element=T.UNDEFINED))
    with pytest.raises(InvalidModelError, match="elements of no type"):
        fusile.compile(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_bfloat16_weights_keep_their_bits() -> None:
    values = np.array([1.0, 3.140625, -2.5], ml_dtypes.bfloat16)
    made = model([node("Identity", "w", "y")], outputs=[tensor("y", [3], T.BFLOAT16)],
                 initializers=[_typed(T.BFLOAT16, [1.0, 3.140625, -2.5], True)])  # fmt: skip
    answer = fusile.InferenceSession(made.SerializeToString()).run(None, {"x": X})[0]
    assert answer.view(np.uint16).tolist() == values.view(np.uint16).tolist()
