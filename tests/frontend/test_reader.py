"""Reading models: sources, weights that stay in their files, types, names, dimensions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from frontend_models import FLOAT, INT64, assert_same, chain, info, model, run
from onnx import TensorProto, helper, numpy_helper

from fusile.errors import InvalidModelError, UsageError
from fusile.frontend import CANONICAL_OPSET, load, read
from fusile.frontend.storage import MappedTensor, SparseTensor
from fusile.frontend.wire import strip
from fusile.graph.proto import to_proto
from fusile.graph.types import MapType


def linear(rows: int = 64, columns: int = 32, seed: int = 0) -> onnx.ModelProto:
    weight = np.random.default_rng(seed).standard_normal((columns, rows)).astype(np.float32)
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        [info("x", ["n", columns])],
        [info("y", ["n", rows])],
        weights={"w": weight},
    )


def test_a_model_of_the_collection_loads(model_path: Path) -> None:
    loaded = load(model_path)
    names = [value.name for node in loaded.graph.all_nodes() for value in node.outputs]
    names += [value.name for value in loaded.graph.inputs] + list(loaded.graph.initializers)
    assert all(names) and len(set(names)) == len(names)
    assert loaded.graph.opset_imports[""] == CANONICAL_OPSET
    assert not loaded.functions
    if model_path.stat().st_size < 2**26:
        onnx.checker.check_model(to_proto(loaded))


@pytest.mark.parametrize("kind", ["path", "string", "bytes", "proto", "ir"])
def test_every_source_gives_the_same_model(kind: str, tmp_path: Path) -> None:
    proto = linear()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    sources = {
        "path": path,
        "string": str(path),
        "bytes": path.read_bytes(),
        "proto": proto,
        "ir": ir.from_proto(proto),
    }
    loaded = load(sources[kind])
    x = np.ones((2, 32), np.float32)
    assert_same(run(to_proto(loaded), {"x": x}), run(proto, {"x": x}))
    assert proto == linear()


def test_sources_are_not_changed() -> None:
    proto = model(
        [
            helper.make_node("Dropout", ["x"], ["a"], "same"),
            helper.make_node("Softmax", ["a"], ["y"], "same"),
        ],
        [info("x", [2, 3])],
        ["y"],
        opset=11,
    )
    source = ir.from_proto(proto)
    before = ir.to_proto(source).SerializeToString(deterministic=True)
    load(source)
    load(proto)
    assert ir.to_proto(source).SerializeToString(deterministic=True) == before


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(linear(), path)
    tensor = load(path).graph.initializers["w"].const_value
    assert isinstance(tensor, MappedTensor)
    assert tensor.path == path
    wanted = numpy_helper.to_array(linear().graph.initializer[0])
    np.testing.assert_array_equal(tensor.numpy(), wanted)
    assert (
        path.read_bytes()[tensor.offset : tensor.offset + tensor.length]
        == wanted.tobytes()
        == tensor.tobytes()
    )


def test_weights_of_a_large_file_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(linear(8192, 4096), path)  # 128 MiB
    script = (
        "import sys, time, fusile.frontend as frontend\n"
        "from frontend_models import peak_mib\n"
        "before, start = peak_mib(), time.perf_counter()\n"
        "model = frontend.load(sys.argv[1])\n"
        "print(peak_mib() - before, time.perf_counter() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    grown, seconds = map(float, done.stdout.split())
    assert grown < 32 and seconds < 1


@pytest.mark.parametrize("location", ["weights.bin", "inner/weights.bin", "./weights.bin"])
def test_external_data_is_mapped(location: str, tmp_path: Path) -> None:
    proto = linear()
    data = proto.graph.initializer[0].raw_data
    file = tmp_path / location
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"\0" * 64 + data)
    make_external(proto.graph.initializer[0], location, offset=64, length=len(data))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    tensor = load(path).graph.initializers["w"].const_value
    assert isinstance(tensor, MappedTensor)
    assert tensor.tobytes() == data


def make_external(tensor: onnx.TensorProto, location: str, **numbers: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    for key, value in numbers.items():
        tensor.external_data.add(key=key, value=str(value))


def test_external_data_without_a_path_says_so() -> None:
    proto = linear()
    make_external(proto.graph.initializer[0], "weights.bin", offset=0, length=8192)
    with pytest.raises(UsageError, match=r"path of the model"):
        load(proto.SerializeToString())


def test_float_data_and_double_data_are_mapped_too() -> None:
    proto = linear()
    tensor = proto.graph.initializer[0]
    tensor.float_data.extend(numpy_helper.to_array(tensor).ravel())
    tensor.ClearField("raw_data")
    found = load(proto.SerializeToString()).graph.initializers["w"].const_value
    assert isinstance(found, MappedTensor)
    np.testing.assert_array_equal(found.numpy(), numpy_helper.to_array(tensor))


@pytest.mark.parametrize(
    "dtype",
    [TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1, TensorProto.INT2, TensorProto.UINT2],
)
def test_packed_types_unpack_from_the_file(dtype: int) -> None:
    bits = 2 if dtype in (TensorProto.INT2, TensorProto.UINT2) else 4
    data = np.random.default_rng(1).integers(0, 256, 2048 * bits // 4, np.uint8).tobytes()
    tensor = TensorProto(name="w", data_type=dtype, dims=[64, 64], raw_data=data)
    proto = model([helper.make_node("Identity", ["w"], ["y"])], [], ["y"], opset=25)
    proto.graph.initializer.append(tensor)
    found = load(proto.SerializeToString()).graph.initializers["w"].const_value
    assert isinstance(found, MappedTensor)
    np.testing.assert_array_equal(found.numpy().view(np.uint8), ir.from_proto(tensor).numpy().view(np.uint8))


@pytest.mark.parametrize("linear_indices", [True, False])
def test_sparse_initialisers_become_dense_when_read(linear_indices: bool) -> None:
    values = helper.make_tensor("w", FLOAT, [2], [1.0, 2.0])
    indices = [1, 5] if linear_indices else [0, 1, 1, 2]
    dims = [2] if linear_indices else [2, 2]
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("", INT64, dims, indices), [2, 3])
    proto = model([helper.make_node("Identity", ["w"], ["y"])], [], ["y"])
    proto.graph.sparse_initializer.append(sparse)
    tensor = load(proto).graph.initializers["w"].const_value
    assert isinstance(tensor, SparseTensor)
    np.testing.assert_array_equal(tensor.numpy(), [[0, 1, 0], [0, 0, 2]])


def test_a_sparse_constant_is_an_initialiser() -> None:
    values = helper.make_tensor("", FLOAT, [1], [3.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("", INT64, [1], [2]), [4])
    proto = model([helper.make_node("Constant", [], ["y"], sparse_value=sparse)], [], [info("y", [4])])
    value = load(proto).graph.outputs[0].const_value
    assert value is not None
    np.testing.assert_array_equal(value.numpy(), [0, 0, 3, 0])


def test_map_types_are_kept_both_ways() -> None:
    node = helper.make_node("ZipMap", ["x"], ["y"], "zip", domain="ai.onnx.ml", classlabels_int64s=[1, 2])
    element = helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, []))
    output = helper.make_value_info("y", helper.make_sequence_type_proto(element))
    proto = model([node], [info("x", [None, 2])], [output], domains={"ai.onnx.ml": 1})
    loaded = load(proto)
    found = loaded.graph.outputs[0].type
    assert isinstance(found, ir.SequenceType) and isinstance(found.elem_type, MapType)
    assert found.elem_type.key == ir.DataType.INT64
    x = np.eye(2, dtype=np.float32)
    assert run(to_proto(loaded), {"x": x}) == run(proto, {"x": x})


def test_initialisers_among_the_inputs_are_no_inputs() -> None:
    proto = linear()
    proto.graph.input.append(info("w", [32, 64]))
    assert [value.name for value in load(proto).graph.inputs] == ["x"]


def test_of_initialisers_with_one_name_the_last_counts() -> None:
    proto = linear(seed=1)
    proto.graph.initializer.append(linear(seed=2).graph.initializer[0])
    tensor = load(proto).graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.tobytes() == linear(seed=2).graph.initializer[0].raw_data


def test_nodes_are_sorted_named_and_strange_names_kept() -> None:
    names = ["quote\"'", "new\nline", "{}", "x:0", "387", "ü\t"]
    nodes = [helper.make_node("Relu", [names[i]], [names[i + 1]], "same") for i in range(len(names) - 1)]
    proto = model(nodes[::-1], [info(names[0], [2])], [info(names[-1], [2])])
    graph = load(proto).graph
    assert [node.outputs[0].name for node in graph] == names[1:]
    assert len({node.name for node in graph}) == len(nodes)


def test_names_of_inner_graphs_become_unique() -> None:
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["v"], "n")], "b", [], [info("v", [2])])
    nodes = [
        helper.make_node("Neg", ["x"], ["v"], "n"),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["v", "y"], ["z"]),
    ]
    proto = model(nodes, [info("x", [2]), info("c", [], TensorProto.BOOL)], [info("z", [2])])
    loaded = load(proto)
    names = [value.name for node in loaded.graph.all_nodes() for value in node.outputs]
    assert len(set(names)) == len(names) == 5
    feeds = {"x": np.array([-1.0, 2.0], np.float32), "c": np.array(True)}
    assert_same(run(to_proto(loaded), feeds), run(proto, feeds))


def test_constants_in_branches_are_initialisers_of_the_main_graph() -> None:
    def branch(number: float) -> onnx.GraphProto:
        constant = helper.make_node("Constant", [], ["k"], value_floats=[number])
        return helper.make_graph([constant], "b", [], [info("k", [1])])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch(1.0), else_branch=branch(2.0))
    proto = model([node], [info("c", [], TensorProto.BOOL)], [info("y", [1])])
    loaded = load(proto)
    assert len(loaded.graph.initializers) == 2
    assert {item.op_type for item in loaded.graph.all_nodes()} == {"If", "Identity"}
    for condition in (True, False):
        feeds = {"c": np.array(condition)}
        assert_same(run(to_proto(loaded), feeds), run(proto, feeds))


def test_omitted_outputs_are_dropped_or_named() -> None:
    node = helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], "lstm", hidden_size=2)
    weights = {"w": np.ones((1, 8, 3), np.float32), "r": np.ones((1, 8, 2), np.float32)}
    lstm = load(model([node], [info("x", [4, 1, 3])], ["h"], weights=weights)).graph[0]
    assert [value.name for value in lstm.outputs] == ["lstm_out0", "h"]
    pool = helper.make_node("MaxPool", ["x"], ["y", ""], kernel_shape=[2])
    assert len(load(model([pool], [info("x", [1, 1, 4])], ["y"])).graph[0].outputs) == 1


def test_dimensions_get_names_and_can_be_fixed() -> None:
    proto = model(
        [helper.make_node("Add", ["x", "y"], ["z"])],
        [info("x", ["batch", None, 3]), info("y", ["batch", -1, 3])],
        [info("z", ["batch", None, 3])],
    )
    graph = load(proto).graph
    assert [str(dim) for dim in graph.inputs[0].shape or ()] == ["batch", "x_d1", "3"]
    assert [str(dim) for dim in graph.inputs[1].shape or ()] == ["batch", "y_d1", "3"]
    graph = load(proto, dims={"batch": 2, "y_d1": 5}).graph
    assert list(graph.inputs[1].shape or ()) == [2, 5, 3]
    assert (graph.outputs[0].shape or ())[0] == 2
    with pytest.raises(UsageError, match="'batch'"):
        load(proto, dims={"Batch": 2})
    with pytest.raises(UsageError, match="integer"):
        load(proto, dims={"batch": -2})


def test_files_of_other_formats_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for content, word in [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\x03\x04rest", "zip"),
        (b"    ORTMxxxx", "ONNX Runtime"),
        (b"", "empty"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InvalidModelError, match=word):
            load(path)
    for missing in (tmp_path / "none.onnx", tmp_path, "nul\0nul"):
        with pytest.raises(UsageError):
            load(missing)
    with pytest.raises(UsageError, match="int"):
        load(3)  # type: ignore[arg-type]


def test_stripping_leaves_a_small_message_that_says_the_same() -> None:
    data = linear().SerializeToString()
    small = strip(data, "key")
    assert len(small) < 1000
    proto = onnx.ModelProto.FromString(small)
    tensor = proto.graph.initializer[0]
    entries = {entry.key: entry.value for entry in tensor.external_data}
    assert tensor.name == "w" and list(tensor.dims) == [32, 64] and entries["location"] == "key"
    begin = int(entries["offset"])
    assert data[begin : begin + int(entries["length"])] == linear().graph.initializer[0].raw_data


def test_reading_alone_keeps_the_opset() -> None:
    assert read(chain(opset=11)).graph.opset_imports[""] == 11
