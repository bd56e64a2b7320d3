"""What users meet around the host part: ports, errors, unknown ranks, the cache, files, reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from host_models import MODELS, HostModel, normal, scalar, strings, whole
from onnx import TensorProto, helper

import fusile
from fusile.errors import RunError, UnsupportedError
from fusile.runtime.module import FeedError

RNG = np.random.default_rng(1)


def unranked(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A model from x to y, where the rank of x is unknown."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_model(
        helper.make_graph(list(nodes), "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)]
    )


def test_an_unknown_rank_is_compiled_for_when_it_is_seen() -> None:
    module = fusile.compile(
        unranked(
            helper.make_node("Neg", ["x"], ["n"]), helper.make_node("ReduceMax", ["n"], ["y"], axes=[-1])
        )
    )
    for shape in ((3,), (2, 3), (4, 5), (2, 1, 2)):
        x = normal(RNG, *shape)
        np.testing.assert_allclose(module(x)[0], (-x).max(-1, keepdims=True), rtol=1e-5)
    assert module.inputs[0].shape is None


def test_ports_name_the_types_of_onnx() -> None:
    module = fusile.compile(MODELS["a loop that collects into a sequence"].proto())
    assert [port.type for port in module.outputs] == ["seq(tensor(float))", "tensor(float)"]
    module = fusile.compile(MODELS["an optional that may be absent"].proto())
    port = module.inputs[0]
    assert (port.name, port.type, port.optional) == ("x", "optional(tensor(float))", True)


def test_an_optional_input_may_be_left_out() -> None:
    module = fusile.compile(MODELS["an optional that may be absent"].proto())
    d = normal(RNG, 2)
    np.testing.assert_allclose(module(d=d)[0], np.abs(d))
    np.testing.assert_allclose(module(None, d)[0], np.abs(d))


def test_a_session_serves_sequences_and_strings() -> None:
    session = fusile.InferenceSession(MODELS["strings pass through"].proto().SerializeToString())
    assert [item.type for item in session.get_inputs()] == ["tensor(string)", "tensor(int64)"]
    y, size = session.run(None, {"s": ["a", "b"], "i": [1]})
    assert (y.tolist(), size.tolist()) == (["b", "a", "b"], [3])
    y, _ = session.run(None, {"s": np.array([b"a", "b"], object), "i": [0]})
    assert y.tolist() == ["a", "a", "b"]


ERRORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a position outside of a sequence": (
        "g (seq(float[n]) xs, int64 at) => (float[k] x) { x = SequenceAt(xs, at) }",
        {"xs": [normal(RNG, 2)], "at": scalar(4)},
        "position 4 is outside of a sequence of 1",
    ),
    "text that is no number": (
        "g (string[n] s) => (float[n] x) { x = Cast<to = 1>(s) }",
        {"s": strings("1", "one")},
        "'one' is no number",
    ),
    "an index outside of strings": (
        "g (string[n] s, int64[k] i) => (string[k] x) { x = Gather(s, i) }",
        {"s": strings("a"), "i": whole(1)},
        "an index is outside",
    ),
    "iterations of different shapes": (
        """g (int64 n, float[k] a) => (float[t,m] all) {
            go = Constant<value = bool {1}>()
            b, all = Loop<body = g2 (int64 i, bool c, float[p] v) => (bool c2, float[q] w, float[q] out) {
                c2 = Identity(c)
                w = Concat<axis = 0>(v, a)
                out = Identity(w)
            }>(n, go, a)
        }""",
        {"n": scalar(2), "a": normal(RNG, 2)},
        "Sizes do not fit together",
    ),
    "sizes that do not fit": (
        """g (seq(float[n]) xs) => (float[m] y) {
            none = Constant<value_int = 0>()
            last = Constant<value_int = 1>()
            a = SequenceAt(xs, none)
            b = SequenceAt(xs, last)
            y = Mul(a, b)
        }""",
        {"xs": [normal(RNG, 2), normal(RNG, 3)]},
        "do not fit together",
    ),
}


@pytest.mark.parametrize("name", ERRORS, ids=lambda name: name.replace(" ", "_"))
def test_errors_name_the_node(name: str) -> None:
    text, feeds, says = ERRORS[name]
    proto = HostModel(text, lambda rng: []).proto()
    for k, node in enumerate(proto.graph.node):
        node.name = f"node{k}_{node.op_type}"
    with pytest.raises(RunError, match=says) as caught:
        fusile.compile(proto)(feeds)
    assert caught.value.node
    assert caught.value.node.startswith("node")


def test_a_wrong_element_of_a_sequence_is_a_feed_error() -> None:
    module = fusile.compile(MODELS["a sequence comes in and goes out"].proto())
    with pytest.raises(FeedError, match="'xs'"):
        module([np.zeros(2, np.int32)], scalar(0))


def test_answers_are_fresh() -> None:
    module = fusile.compile(MODELS["branches that are outer values"].proto())
    x, z = normal(RNG, 3), normal(RNG, 3)
    y, _ = module(np.array(False), x, z)
    assert not np.shares_memory(x, y)
    held = module(np.array(True), x, z)[1]
    held[:] = 7
    assert module(np.array(True), x, z)[1].tolist() == [1, 2]


def test_a_second_start_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("FUSILE_CACHE_DIR", str(folder))
    model = MODELS["an If in a Loop with values from around both"]
    feeds = model.runs(RNG)[0]
    first = fusile.compile(model.proto())(feeds)
    monkeypatch.setattr("fusile.backends.native.build.build", None)
    np.testing.assert_array_equal(fusile.compile(model.proto())(feeds)[0], first[0])


def test_a_file_is_refused_with_the_nodes(tmp_path: Path) -> None:
    module = fusile.compile(MODELS["a sequence comes in and goes out"].proto())
    with pytest.raises(UnsupportedError, match="SequenceAt") as caught:
        module.save(tmp_path / "m.so")
    assert caught.value.exit_code == 3


UNREAD: dict[str, tuple[onnx.TypeProto, Any]] = {
    "strings": (helper.make_tensor_type_proto(TensorProto.STRING, ["n"]), strings("a", "b")),
    "strings of any rank": (helper.make_tensor_type_proto(TensorProto.STRING, None), strings("a")),
    "a sequence": (
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2])),
        [normal(RNG, 2)],
    ),
    "an optional": (
        helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2, "n"])),
        normal(RNG, 2, 3),
    ),
    "an optional sequence": (
        helper.make_optional_type_proto(
            helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
        ),
        [normal(RNG, 2)],
    ),
}


def with_unread(kind: onnx.TypeProto, *more: onnx.NodeProto) -> onnx.ModelProto:
    """The negative of x, with an input s that only `more` nodes read."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"]), *more],
        "g",
        [ports[0], helper.make_value_info("s", kind)],
        [ports[1], *(helper.make_value_info(node.output[0], kind) for node in more)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("name", UNREAD)
def test_an_input_that_nothing_reads_may_be_of_any_type(name: str, tmp_path: Path) -> None:
    kind, value = UNREAD[name]
    proto = with_unread(kind)
    feeds = {"x": normal(RNG, 2), "s": value}
    sessions = [
        maker(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        for maker in (fusile.InferenceSession, onnxruntime.InferenceSession)
    ]
    ours, theirs = (
        [[(p.name, p.type, p.shape) for p in (*s.get_inputs(), *s.get_outputs())], *s.run(None, feeds)]
        for s in sessions
    )
    assert ours[0] == theirs[0]
    np.testing.assert_array_equal(ours[1], theirs[1])
    with pytest.raises(UnsupportedError, match=r"'s'.*is a value of the host part.*Leave it out"):
        fusile.compile(proto).save(tmp_path / "m.so")
    assert "'s'" in " ".join(fusile.check(proto).notes)


WITHOUT_FORM = {
    "explain": lambda proto, folder: fusile.explain(proto),
    "numba": lambda proto, folder: fusile.emit(proto, "numba", folder / "n"),
    "cuda": lambda proto, folder: fusile.emit(proto, "cuda", folder / "c"),
    "another machine": lambda proto, folder: fusile.compile(proto, target_triple="aarch64-linux-gnu"),
}
WANTED = {
    "nodes": (MODELS["a loop that collects into a sequence"].proto(), {"SequenceEmpty", "Loop"}),
    "a table of strings": (
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 2]>
            g (string[n] s) => (int64[n] y) {
                y = ai.onnx.ml.LabelEncoder<keys_strings = ["a"], values_int64s = [1]>(s)
            }"""
        ),
        {"LabelEncoder"},
    ),
    "strings that pass": (
        with_unread(UNREAD["strings"][0], helper.make_node("Identity", ["s"], ["t"])),
        {"Input"},
    ),
    "an unknown rank": (unranked(helper.make_node("Neg", ["x"], ["y"])), {"Input"}),
}


@pytest.mark.parametrize("what", WITHOUT_FORM)
@pytest.mark.parametrize("name", WANTED)
def test_what_has_no_host_part_says_what_needs_one(name: str, what: str, tmp_path: Path) -> None:
    proto, wanted = WANTED[name]
    with pytest.raises(UnsupportedError, match="needs the host part of a process") as caught:
        WITHOUT_FORM[what](proto, tmp_path)
    assert wanted <= {gap.op_type for gap in caught.value.gaps}
    assert all(gap.node and gap.reason for gap in caught.value.gaps)
    assert "Run it in a process with fusile.compile" in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("command", [["explain"], ["emit", "--to", "numba"]])
def test_the_command_line_refuses_what_needs_the_host_part(command: list[str], tmp_path: Path) -> None:
    onnx.save(MODELS["a loop that collects into a sequence"].proto(), tmp_path / "m.onnx")
    ended = subprocess.run(
        [sys.executable, "-m", "fusile.cli", *command, "m.onnx", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 3, ended.stderr
    told = json.loads(ended.stdout)
    assert (told["ok"], told["exit"]) == (False, 3)
    assert (
        "for seq(tensor(float))" in next(g for g in told["gaps"] if g["op_type"] == "SequenceEmpty")["reason"]
    )
    assert "SequenceEmpty" in ended.stderr and "Run it in a process" in ended.stderr


def test_an_unknown_operator_is_named_beside_known_ones() -> None:
    proto = MODELS["a sequence comes in and goes out"].proto()
    proto.opset_import.add(domain="acme", version=1)
    proto.graph.node.append(helper.make_node("Strange", ["x"], ["q"], "odd", domain="acme"))
    proto.graph.output.append(helper.make_tensor_value_info("q", TensorProto.FLOAT, None))
    with pytest.raises(UnsupportedError, match="acme::Strange"):
        fusile.compile(proto)


def test_check_tells_of_the_host_part() -> None:
    report = fusile.check(MODELS["split, map, and join"].proto())
    assert report.supported
    assert "SplitToSequence" in " ".join(report.notes)
    report = fusile.check(MODELS["axes out of the data"].proto())
    assert report.supported
    assert "axes" in " ".join(report.notes)
    report = fusile.check(unranked(helper.make_node("Neg", ["x"], ["y"])))
    assert report.supported
    assert "unknown rank" in " ".join(report.notes)


def test_a_plain_graph_never_loads_the_host_part() -> None:
    code = """
import sys, numpy as np, onnx.parser, fusile
m = onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 17]> g (float[n] x) => (float[n] y) { y = Neg(x) }')
fusile.compile(m)(np.zeros(2, np.float32))
print([name for name in sys.modules if name.startswith(('fusile.host', 'fusile.kernels.host'))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_normalising_no_strings_is_refused_as_onnxruntime_does() -> None:
    node = helper.make_node("StringNormalizer", ["x"], ["y"], name="lower", case_change_action="LOWER")
    ports = [helper.make_tensor_value_info(name, TensorProto.STRING, [None]) for name in "xy"]
    made = helper.make_model(
        helper.make_graph([node], "g", ports[:1], ports[1:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    module = fusile.compile(made)
    assert module.run([np.array(["A"], object)])[0].tolist() == ["a"]
    with pytest.raises(RunError, match="at least one string") as caught:
        module.run([np.zeros(0, object)])
    assert caught.value.node == "lower"
