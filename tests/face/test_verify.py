"""verify finds differences and the first node that makes one; bench measures and judges what it measured."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from face_fakes import FakeModule, read
from onnx import TensorProto, helper, numpy_helper

import fusile
from fusile.errors import UsageError
from fusile.options import Options
from fusile.report import Progress, silent
from fusile.runtime.module import Port, Value
from fusile.tools.agreement import Tolerance, compare, error
from fusile.tools.arrays import read_arrays, write_arrays, write_npz
from fusile.tools.engines import target_run
from fusile.tools.inputs import draw, draw_accepted

Run = Callable[[Mapping[str, Value]], list[Value]]


@pytest.fixture(scope="module")
def chain() -> onnx.ModelProto:
    """x -> MatMul -> + bias -> Relu -> + offset -> Sigmoid, and a second output off the road."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h0"], name="multiply"),
            helper.make_node("Add", ["h0", "bias"], ["h1"], name="add bias"),
            helper.make_node("Relu", ["h1"], ["h2"], name="relu"),
            helper.make_node("Add", ["h2", "offset"], ["h3"], name="add offset"),
            helper.make_node("Sigmoid", ["h3"], ["y"], name="sigmoid"),
            helper.make_node("Neg", ["x"], ["z"], name="off the road"),
        ],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 8]),
        ],
        [
            numpy_helper.from_array(rng.standard_normal((8, 4)).astype(np.float32), "w"),
            numpy_helper.from_array(np.zeros(4, np.float32), "bias"),
            numpy_helper.from_array(np.zeros(4, np.float32), "offset"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def target_with_fault(weight: str, unless_stored: str | None = None) -> Callable[..., Run]:
    """A target that takes a wrong value for one weight, perhaps only while a certain value is not stored."""

    def target_run(source: Any, options: Options, progress: Progress) -> Run:
        model = onnx.ModelProto()
        model.CopyFrom(read(source))
        if unless_stored not in [output.name for output in model.graph.output]:
            for tensor in model.graph.initializer:
                if tensor.name == weight:
                    wrong = numpy_helper.to_array(tensor) + np.float32(0.5)
                    tensor.CopyFrom(numpy_helper.from_array(wrong, weight))
        module = FakeModule(model.SerializeToString())
        return lambda feeds: module.run(list(feeds.values()))

    return target_run


def test_a_right_target_agrees(chain: onnx.ModelProto) -> None:
    report = fusile.verify(chain, seeds=(0, 1), dim_sets=[{"batch": 1}, {"batch": 5}])
    assert report.ok
    assert report.require() is report
    assert [case.name for case in report.cases][:2] == ["seed 0, batch=1", "seed 1, batch=1"]
    assert all(output.error < 1e-5 for case in report.cases for output in case.outputs)


@pytest.mark.parametrize(("weight", "node"), [("w", "multiply"), ("bias", "add bias")])
def test_the_first_node_that_differs_is_found(
    chain: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, weight: str, node: str
) -> None:
    monkeypatch.setattr("fusile.tools.verify.target_run", target_with_fault(weight))
    report = fusile.verify(chain)
    assert not report.ok
    assert report.first is not None
    assert (report.first.node, report.first.alone) == (node, True)
    assert [output.ok for output in report.cases[0].outputs] == [False, True]
    json.dumps(report.to_json())
    with pytest.raises(fusile.DifferenceError, match=node) as raised:
        report.require()
    assert raised.value.exit_code == 1


def test_a_fault_of_fusion_is_told_from_one_of_an_operator(
    chain: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusile.tools.verify.target_run", target_with_fault("bias", unless_stored="h1"))
    report = fusile.verify(chain)
    assert report.first is not None
    assert (report.first.node, report.first.alone) == ("relu", False)
    assert "-O1" in str(report.first)


def test_tolerances_decide(chain: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusile.tools.verify.target_run", target_with_fault("offset"))
    assert not fusile.verify(chain, search=False, atol=1e-3).ok
    assert fusile.verify(chain, search=False, atol=1.0).ok
    assert fusile.verify(chain, search=False, bound=10.0).ok


def test_verify_on_the_command_line(
    chain: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fusile import cli

    path = tmp_path / "chain.onnx"
    onnx.save(chain, path)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fusile", "verify", str(path), *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), capsys.readouterr().out

    code, out = call("--seed", "0,1", "--dims", "batch=2;batch=3")
    assert code == 0
    assert "agrees" in out
    monkeypatch.setattr("fusile.tools.verify.target_run", target_with_fault("bias"))
    code, out = call()
    assert code == 1
    assert "first difference at node 'add bias' (Add)" in out
    code, out = call("--json")
    assert (code, json.loads(out)["first_difference"]["node"]) == (1, "add bias")


def test_without_onnxruntime_the_message_says_what_to_install(
    chain: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(fusile.UsageError, match=r"pip install fusile\[verify\]"):
        fusile.verify(chain)


@pytest.mark.parametrize(
    ("got", "want", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, math.nan], [1.0, math.nan], 0.0),
        ([1.0, math.inf], [1.0, math.inf], 0.0),
        ([1.0, 0.0], [1.0, math.nan], math.inf),
        ([1.0, -math.inf], [1.0, math.inf], math.inf),
        ([3.0, 4.0], [3.0, 3.0], 1 / 3),
        ([], [], 0.0),
    ],
)
def test_error_of_floats(got: list[float], want: list[float], expected: float) -> None:
    assert error(np.array(got), np.array(want)) == pytest.approx(expected)


def test_small_columns_beside_large_ones_count() -> None:
    want = np.ones((32, 2))
    want[:, 0] *= 100
    got = want.copy()
    got[:, 1] += 1
    assert error(got, want) > 0.05


def test_errors_of_other_types() -> None:
    assert error(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    assert error(np.array(["a", "b"]), np.array(["a", "c"], object)) == 0.5
    tolerance = Tolerance()
    assert compare("v", [np.zeros(2)], [np.zeros(2)], tolerance).ok
    assert compare("v", {1: 2.0}, {1: 2.0}, tolerance).ok
    assert compare("v", None, None, tolerance).ok
    for got, why in (
        (np.zeros(3, np.float32), "shape"),
        (np.zeros(2), "type"),
        (None, "nothing"),
        ([np.zeros(2)], "list"),
    ):
        difference = compare("v", got, np.zeros(2, np.float32), tolerance)
        assert not difference.ok
        assert why in difference.why


def test_drawn_inputs_follow_declarations() -> None:
    ports = [
        Port.tensor("image", 1, ["N", 3, "H", "W"]),
        Port.tensor("input_ids", 7, ["N", "seq"]),
        Port.tensor("attention_mask", 7, ["N", "seq"]),
        Port.tensor("position_ids", 7, ["N", "seq"]),
        Port.tensor("token_type_ids", 7, ["N", "seq"]),
        Port.tensor("flag", 9, []),
        Port.tensor("text", 8, [2]),
        Port.tensor("cache", 16, ["N", "past + 1"]),
    ]
    values = draw(ports, 0, {"N": 2, "seq": 5, "past": 6})
    assert [values[port.name].shape for port in ports] == [
        (2, 3, 64, 64), (2, 5), (2, 5), (2, 5), (2, 5), (), (2,), (2, 7),
    ]  # fmt: skip
    assert [values[port.name].dtype for port in ports] == [port.dtype for port in ports]
    assert values["attention_mask"].min() == 1
    assert not values["token_type_ids"].any()
    np.testing.assert_array_equal(values["position_ids"][0], np.arange(5))
    again = draw(ports, 0, {"N": 2, "seq": 5, "past": 6})
    assert all(np.array_equal(values[name], again[name]) for name in values)
    with pytest.raises(fusile.UsageError, match="elements"):
        draw(ports[:1], 0, {"H": 10**6, "W": 10**6})


def test_indices_are_drawn_until_they_fit() -> None:
    def look_up(feeds: Mapping[str, Value]) -> Value:
        return np.arange(4)[feeds["i"]]

    feeds, answer = draw_accepted([Port.tensor("i", 7, [50])], 0, {}, look_up, (IndexError,))
    np.testing.assert_array_equal(feeds["i"], answer)
    with pytest.raises(ZeroDivisionError):
        draw_accepted([Port.tensor("i", 7, [5])], 0, {}, lambda feeds: 1 // 0, (ZeroDivisionError,))


def test_arrays_survive_a_file(tmp_path: Path) -> None:
    import ml_dtypes

    values = {
        "file": np.arange(3, dtype=np.float32),
        "a/b:c ../d": np.array(5),
        "half": np.array([1.5], ml_dtypes.bfloat16),
        "four": np.array([-3], ml_dtypes.int4),
        "words": np.array(["ä", "b"], object),
    }
    write_arrays(tmp_path / "a.npz", values)
    back = read_arrays(tmp_path / "a.npz")
    assert list(back) == list(values)
    for name, value in values.items():
        assert back[name].dtype == value.dtype
        assert back[name].tolist() == value.tolist()
    write_npz(tmp_path / "b.npz", values)
    with np.load(tmp_path / "b.npz", allow_pickle=False) as archive:
        assert archive["half"].dtype == np.float32
        assert archive["file"].tolist() == [0, 1, 2]


@pytest.mark.slow
def test_bench_on_a_small_model(chain: onnx.ModelProto) -> None:
    report = fusile.bench(chain, rounds=2, burst=0.02, dims={"batch": 4}, threads=1)
    assert [row.engine for row in report.rows] == ["fused", "unfused", "onnxruntime"]
    for row in report.rows:
        assert not row.failed
        assert 0 < row.min_ms <= row.median_ms <= row.p90_ms
        assert row.runs >= 8
        assert row.error is not None
        assert row.error < 1e-5
    assert report.ratio("unfused") > 0
    assert report.table().row_count == 3
    json.dumps(report.to_json())


@pytest.mark.slow
def test_bench_does_not_praise_wrong_answers(chain: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusile.tools.bench._error", lambda answers, wants: 0.5)
    report = fusile.bench(chain, rounds=1, burst=0.01)
    assert not report.ok
    assert report.rows[0].failed == "error 5.0e-01 above 0.001"
    report.table()


def test_bench_refuses_targets_that_it_cannot_measure(chain: onnx.ModelProto) -> None:
    with pytest.raises(fusile.UsageError, match="'torch'"):
        fusile.bench(chain, target="torch")


def test_rounding_that_a_model_multiplies_is_no_difference() -> None:
    steps = 16  # each doubles what rounding did, about: y = 3.9 x (1 - x)
    nodes = [helper.make_node("Sigmoid", ["x"], ["s0"])]
    for k in range(steps):
        nodes.append(helper.make_node("Sub", ["one", f"s{k}"], [f"d{k}"]))
        nodes.append(helper.make_node("Mul", [f"s{k}", f"d{k}"], [f"m{k}"]))
        nodes.append(helper.make_node("Mul", [f"m{k}", "rate"], [f"s{k + 1}"]))
    graph = helper.make_graph(
        nodes,
        "logistic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [512])],
        [helper.make_tensor_value_info(f"s{steps}", TensorProto.FLOAT, [512])],
        [
            numpy_helper.from_array(np.float32(1), "one"),
            numpy_helper.from_array(np.float32(3.9), "rate"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    report = fusile.verify(model)
    (output,) = report.cases[0].outputs
    assert report.ok
    assert output.error > 1e-3
    assert "to rounding" in output.why
    assert not fusile.verify(model, bound=1e-3, search=False).ok  # a bound that is given is taken as it is


def test_sizes_that_are_sums_fit_to_the_symbols_in_them() -> None:
    ports = [
        Port("mask", "tensor(float)", np.dtype(np.float32), (1, "past + 1")),
        Port("keys", "tensor(float)", np.dtype(np.float32), (4, "past", 8)),
    ]
    drawn = {name: np.shape(value) for name, value in draw(ports, 0).items()}
    assert drawn["mask"][1] == drawn["keys"][1] + 1


@pytest.mark.parametrize("target", ["torch", "keras"])
def test_a_framework_that_is_missing_is_named(
    target: str, small_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=f"pip install fusile.{target}."):
        target_run(small_path, Options(target=target), silent)


def test_a_reference_that_saturates_is_said() -> None:
    """On CPUs without VNNI ONNX Runtime adds pairs of u8·s8 products in 16 bits; where it does not, all agree."""
    w = numpy_helper.from_array(np.full((32, 4), 127, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 32])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [2, 4])],
        [w],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    report = fusile.verify(model, inputs={"x": np.full((2, 32), 250, np.uint8)})
    assert report.ok or "saturate on this CPU" in report.search
