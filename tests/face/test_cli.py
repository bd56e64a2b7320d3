"""The command line: exit codes, messages without tracebacks, and what each command prints and writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from fusile import cli

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Runs `fusile ARGUMENTS` in an empty folder; answers exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fusile", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(left.value.code or 0), out, err

    return run


def test_help_lists_the_commands(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for command in ("check", "compile", "emit", "run", "verify", "bench", "explain", "cache"):
        assert command in out


def test_version(call: Call) -> None:
    assert call("--version")[1].startswith("fusile 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["check"],
        ["check", "MODEL", "--no-such-flag"],
        ["check", "nowhere.onnx"],
        ["check", "."],
        ["check", "MODEL", "--dims", "N"],
        ["check", "MODEL", "--dims", "N=two"],
        ["check", "MODEL", "--dims", "M=2"],
        ["check", "MODEL", "--target", "abacus"],
        ["compile", "MODEL", "--target", "torch"],
        ["compile", "MODEL", "-O7"],
        ["compile", "MODEL", "--threads", "0"],
        ["compile", "MODEL", "--precision", "fp8"],
        ["compile", "MODEL", "--cpu", "a b"],
        ["emit", "MODEL", "--to", "abacus"],
        ["run", "MODEL", "--inputs", "nowhere.npy"],
        ["run", "MODEL", "-o", "out.txt"],
        ["verify", "MODEL", "--seed", "one"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_wrong_usage_ends_with_2(call: Call, small_path: Path, arguments: list[str]) -> None:
    code, _, err = call(*(small_path if part == "MODEL" else part for part in arguments))
    assert code == 2, err
    assert err.strip()


def test_truncated_file_is_a_message(call: Call, small_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(small_bytes[:-40])
    code, _, err = call("check", path)
    assert (code, err.startswith("fusile: error: ")) == (2, True)


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"not a model at all", b"\xff" * 100])
def test_files_that_are_no_models(call: Call, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    code, _, err = call("compile", path)
    assert (code, err.startswith("fusile: error: ")) == (2, True)
    assert not list(tmp_path.glob("*.so"))


def test_unknown_operator_ends_with_3_and_names_the_node(call: Call, tmp_path: Path, node_model: Any) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(node_model("NoSuchOperator", name="the guilty one"))
    code, out, _ = call("check", path)
    assert code == 3
    assert "NoSuchOperator" in out
    code, _, err = call("compile", path)
    assert code == 3
    assert "NoSuchOperator" in err
    assert "'the guilty one'" in err
    assert "(opset 18)" in err  # what the file says, not the canonical form
    assert "Replace or decompose the node before export" in err
    assert "docs/" not in err


def test_a_framework_without_a_form_names_the_targets_that_have_one(call: Call, tmp_path: Path) -> None:
    node = helper.make_node("MaxRoiPool", ["x", "r"], ["y"], name="roi", pooled_shape=[2, 2])
    path = tmp_path / "model.onnx"
    rows = {"Frobnicate": "Replace or decompose the node", "MaxRoiPool": "fusile check --target native"}
    for op_type, way_out in rows.items():
        node.op_type = op_type
        graph = helper.make_graph(
            [node],
            "g",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 8, 8]),
                helper.make_tensor_value_info("r", TensorProto.FLOAT, [3, 5]),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 2, 2, 2])],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        for words in (("check", path, "--target", "torch"), ("emit", path, "--to", "torch", "-o", "source")):
            code, out, err = call(*words)
            told = " ".join((out + err).split())
            assert code == 3
            assert "the torch source has no form of this operator yet" in told
            assert way_out in told


@pytest.mark.parametrize("name", ["a\"b'c", "two\nlines", "\x1b[31mred", "; import os", "../../x"])
def test_names_cannot_play_tricks(call: Call, tmp_path: Path, node_model: Any, name: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(node_model("NoSuchOperator", name=name))
    code, out, err = call("compile", path)
    assert code == 3
    assert "\x1b" not in out + err
    assert repr(name) in err
    path.write_bytes(node_model("Relu", name=name, value=name))
    code, out, _ = call("run", path)
    assert code == 0
    assert "\x1b" not in out
    assert repr(name) in out


def test_check_prints_ports_and_operators(call: Call, small_path: Path) -> None:
    code, out, _ = call("check", small_path)
    assert code == 0
    for text in ("can be compiled for native", "'x': tensor(float)[N, 3]", "'z'", "Add", "Relu"):
        assert text in out
    code, out, _ = call("check", small_path, "--json")
    told = json.loads(out)
    assert (told["supported"], told["nodes"], told["inputs"][0]["shape"]) == (True, 2, ["N", 3])


def test_compile_writes_three_files_and_only_ours_are_overwritten(call: Call, small_path: Path) -> None:
    code, out, _ = call("compile", small_path, "-o", "m.so")
    assert code == 0
    assert [Path(name).exists() for name in ("m.so", "m.h", "m.py")] == [True] * 3
    assert "m.so" in out
    assert call("compile", small_path, "-o", "m.so")[0] == 0
    mine = Path("m.py")
    mine.write_text("print('somebody wrote this')\n")
    code, _, err = call("compile", small_path, "-o", "m.so")
    assert code == 2
    assert "'m.py' exists and was not written by fusile" in err
    assert mine.read_text() == "print('somebody wrote this')\n"
    assert call("compile", small_path, "-o", "m.so", "--force")[0] == 0


def test_run_takes_files_and_draws_the_rest(call: Call, small_path: Path) -> None:
    x = np.array([[1, 2, 3]], np.float32)
    np.save("x.npy", x)
    np.savez("feeds.npz", x=x)
    for source in ("x.npy", "x=x.npy", "feeds.npz"):
        code, out, _ = call("run", small_path, "--inputs", source, "--json")
        assert code == 0
        assert json.loads(out) == {"z": [[2, 0, 6]], "y": [[2, 0, 6]]}
    code, _, err = call("run", small_path, "--dims", "N=2", "--seed", "3", "-o", "out.npz")
    assert code == 0
    assert "'x' was drawn (seed 3)" in err
    with np.load("out.npz") as archive:
        assert archive["z"].shape == (2, 3)
        assert sorted(archive.files) == ["y", "z"]
    assert call("run", small_path, "-o", "out.npz")[0] == 2
    assert call("run", small_path, "-o", "out.npz", "--force")[0] == 0


def test_run_with_wrong_feeds(call: Call, small_path: Path) -> None:
    np.save("x.npy", np.zeros((1, 4), np.float32))
    code, _, err = call("run", small_path, "--inputs", "x.npy")
    assert code == 2
    assert "expected [N, 3], got [1, 4]" in err
    code, _, err = call("run", small_path, "--inputs", "q=x.npy")
    assert code == 2
    assert "no input 'q'" in err
    np.save("bad.npy", np.array([{}], object), allow_pickle=True)
    assert call("run", small_path, "--inputs", "x=bad.npy")[0] == 2


def test_index_outside_a_table_is_a_message_with_the_node(call: Call, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"], name="look up")],
        "g",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor("table", TensorProto.FLOAT, [4], [1, 2, 3, 4])],
    )
    path = tmp_path / "gather.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    np.save("i.npy", np.array([0, 9]))
    code, _, err = call("run", path, "--inputs", "i.npy")
    assert code == 2
    assert err.startswith("fusile: error: ")
    assert "look up" in err
    assert call("run", path)[0] == 0  # drawn indices are drawn again until they fit


def test_explain(call: Call, small_path: Path) -> None:
    code, out, _ = call("explain", small_path)
    assert code == 0
    assert "kernel" in out
    assert json.loads(call("explain", small_path, "--json")[1])["opt_level"] == 2


def test_explain_tells_what_is_stored_and_what_is_saved(call: Call, tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 18]>
        g (float[n, 8, 56, 56] x, float[8, 8, 3, 3] w) => (float[n, 8, 1, 1] y, float[n] m) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w)
            r = Relu (c)
            y = GlobalAveragePool (r)
            f = Flatten (x)
            m = ReduceMax <keepdims = 0> (f, a)
        }""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "a"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    out = " ".join(call("explain", path)[1].split())
    assert "of memory traffic per run with every symbolic size 1, more with larger sizes" in out
    assert "r is stored: it finishes" in out
    report = json.loads(call("explain", path, "--json")[1])
    assert (report["saved_bytes"], report["saved_at_one"]) == (None, 2 * 4 * 8 * 56 * 56)
    assert [group["why"] for group in report["groups"]] == ["c is never stored"]
    assert all(refusal["nodes"] for refusal in report["refusals"])
    for note in report["notes"]:
        made, _, within = note.partition(" is computed with ")
        assert made != within  # every stage has a name of its own
    fixed = json.loads(call("explain", path, "--dims", "n=2", "--json")[1])
    assert fixed["saved_bytes"] == 2 * report["saved_at_one"]


def test_cache(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("FUSILE_CACHE_DIR", str(folder))
    assert str(folder) in call("cache")[1]
    assert json.loads(call("cache", "--json")[1])["persistent"] is True
    assert call("cache", "clear")[0] == 0


def test_a_fault_of_ours_is_short_and_says_how_to_see_more(
    call: Call, small_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("fusile.check", broken, raising=False)
    code, _, err = call("check", small_path)
    assert code == cli.INTERNAL_ERROR
    assert err.splitlines()[0] == "fusile: internal error: ZeroDivisionError: a fault"
    assert "-v" in err


def test_emit_writes_source_and_only_its_own_is_overwritten(call: Call, small_path: Path) -> None:
    code, out, _ = call("emit", small_path, "--to", "torch", "-o", "source")
    assert code == 0
    assert "parameters (1): 'w'" in out
    assert sorted(path.name for path in Path("source").iterdir()) == ["model.py", "weights.safetensors"]
    assert call("emit", small_path, "--to", "torch", "-o", "source")[0] == 0
    Path("source/model.py").write_text("mine = True\n")
    code, _, err = call("emit", small_path, "--to", "torch", "-o", "source")
    assert (code, "was not written by fusile" in err) == (2, True)
    assert call("emit", small_path, "--to", "torch", "-o", "source", "--force")[0] == 0
    code, out, _ = call("emit", small_path, "--to", "torch", "-o", "source", "--json")
    assert json.loads(out)["parameters"] == [["w", [3]]]
    code, _, err = call("emit", small_path, "--to", "torch", "-o", str(small_path))
    assert (code, "is a file, not a folder" in err) == (2, True)


def test_a_place_that_cannot_be_written_is_a_message(call: Call, small_path: Path) -> None:
    code, _, err = call("run", small_path, "-o", "no/such/folder/out.npz")
    assert (code, "No such file or directory" in err) == (2, True)
