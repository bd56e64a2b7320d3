"""The command line: exit codes, messages without tracebacks, and what each command prints and writes."""

from __future__ import annotations

import errno
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

import fusile
from fusile import cli
from fusile.tools.explain import amount, counted

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
        ["verify", "MODEL", "--seed", "-1"],
        ["verify", "MODEL", "--bound", "-1"],
        ["verify", "MODEL", "--atol", "nan"],
        ["check", ""],
        ["compile", ""],
        ["compile", "MODEL", "-o", ""],
        ["compile", "MODEL", "-o", "."],
        ["compile", "MODEL", "-o", "/", "--force"],
        ["compile", "MODEL", "-o", "m.bin"],
        ["compile", "MODEL", "-o", "no/folder/m.so"],
        ["compile", "MODEL", "--tune"],
        ["emit", "MODEL", "--to", "torch", "-o", ""],
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
    path = tmp_path / "model.onnx"
    rows = {"Frobnicate": "Replace or decompose the node", "StringNormalizer": "fusile check --target native"}
    for op_type, way_out in rows.items():
        graph = helper.make_graph(
            [helper.make_node(op_type, ["x"], ["y"], name="node")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.STRING, [3])],
            [helper.make_tensor_value_info("y", TensorProto.STRING, [None])],
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
    code, out, err = call("run", small_path, "-o", "no/such/folder/out.npz", "-v")
    assert (code, out) == (2, "")
    assert err == (  # no step was taken before
        "fusile: error: There is no folder 'no/such/folder'. Make it, or give another name with -o.\n"
    )


def test_messages_name_the_place_that_was_asked_for(
    call: Call, small_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "locked")
    Path("locked").mkdir()
    for arguments in (
        ("compile", "-o", "locked/m.so"),
        ("run", "-o", "locked/y.npz"),
        ("emit", "--to", "torch", "-o", "locked/deep/source"),
    ):
        code, _, err = call(arguments[0], small_path, *arguments[1:])
        assert code == 2
        assert "locked' cannot be written to" in err
    assert list(Path("locked").iterdir()) == []
    with pytest.raises(fusile.UsageError, match="name of the folder is empty"):
        fusile.emit(small_path, "torch", "")
    code, _, err = call("emit", small_path, "--to", "torch", "-o", small_path / "source")
    assert (code, f"{str(small_path)!r} is a file" in err) == (2, True)


def test_a_library_is_not_written_where_nothing_can_be(small_path: Path, tmp_path: Path) -> None:
    module = fusile.compile(small_path)
    for place in (tmp_path, Path("/")):
        with pytest.raises(fusile.UsageError, match=r"model\.so"):
            module.save(place)
    with pytest.raises(fusile.UsageError, match=r"/proc'? (cannot be written to|does not exist)"):
        module.save("/proc/m.so")


@pytest.mark.parametrize("to", ["torch", "keras", "numba", "cuda"])
def test_a_refused_emit_leaves_no_folder(call: Call, tmp_path: Path, node_model: Any, to: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(node_model("NoSuchOperator"))
    assert call("emit", path, "--to", to, "-o", "source")[0] == 3
    assert not Path("source").exists()


def test_an_emit_that_cannot_write_leaves_no_folder(
    call: Call, small_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.py.part")

    monkeypatch.setattr("fusile.backends.framework.weights.write", full)
    code, _, err = call("emit", small_path, "--to", "torch", "-o", "source")
    assert (code, ".part" in err, "'source' cannot be written to: No space left" in err) == (2, False, True)
    assert not Path("source").exists()


def test_a_compiled_library_has_no_build_flags(call: Call, small_path: Path) -> None:
    assert call("compile", small_path, "-o", "m.so")[0] == 0
    for flags in (["--target", "native"], ["--precision", "bf16"], ["-O0"], ["--weights", "w"]):
        code, _, err = call("run", "m.so", *flags)
        assert code == 2
        assert flags[0][:2] in err
        assert "a compiled module already has these fixed" in err
    assert call("run", "m.so", "--cpu", "native")[0] == 2
    code, out, _ = call("run", "m.so", "--dims", "N=2", "--threads", "1", "--json")
    assert (code, len(json.loads(out)["z"])) == (0, 2)
    code, _, err = call("run", "m.so", "--dims", "M=2")
    assert (code, "Its open dimensions are 'N'" in err) == (2, True)


def test_verify_sees_a_model_with_our_own_reader_first(
    call: Call, small: onnx.ModelProto, small_path: Path, node_model: Any
) -> None:
    pytest.importorskip("onnxruntime")
    foreign = onnx.ModelProto()
    foreign.CopyFrom(small)
    weight = foreign.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../outside")
    for content, expected, words in (
        (foreign.SerializeToString(), 4, "outside of its folder"),
        (node_model("NoSuchOperator"), 3, "at node 'the node'"),
        (small_path.read_bytes()[:-40], 2, "truncated"),
        (b"no model at all", 2, "not an ONNX file"),
    ):
        Path("odd.onnx").write_bytes(content)
        code, _, err = call("verify", "odd.onnx")
        assert (code, words in err, "ONNX Runtime" in err) == (expected, True, False), err
    Path("model.json").write_bytes(small_path.read_bytes())  # a name does not make it text
    assert call("verify", "model.json")[0] == 0


def test_names_of_dimensions_and_models_cannot_play_tricks(call: Call) -> None:
    evil = "d\x1b[31m\x07\nx"
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], [evil], name=evil), helper.make_node("Exp", [evil], ["y"])],
        evil,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [evil, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [evil, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, "[red]m.onnx")
    for command in ("check", "explain", "verify", "run"):
        code, out, err = call(command, "[red]m.onnx")
        assert code == 0
        assert not {"\x1b", "\x07"} & set(out + err)
        assert "\nx" not in out + err
        assert command == "run" or "[red]m.onnx" in out
    assert f"tensor(float)[{evil!r}, 3]" in call("check", "[red]m.onnx")[1]
    np.save("x.npy", np.zeros((1, 4), np.float32))
    assert f"expected [{evil!r}, 3], got [1, 4]" in call("run", "[red]m.onnx", "--inputs", "x.npy")[2]


def test_help_says_what_is_true(call: Call) -> None:
    assert "70 a fault in fusile itself" in " ".join(call("--help")[1].split())
    assert 'the extra "verify"' in call("verify", "--help")[1]
    out = call("bench", "--help")[1]
    line = next(line for line in out.splitlines() if "--threads" in line)
    assert ("default: 1" in line, "all CPUs" in line) == (True, False)


def test_tools_list_their_own_options(small_path: Path) -> None:
    with pytest.raises(fusile.UsageError, match=r"no option of fusile\.bench.*rounds, burst, inputs, target"):
        fusile.bench(small_path, round=3)
    with pytest.raises(fusile.UsageError, match=r"'opt_level' is no option of fusile\.bench"):
        fusile.bench(small_path, opt_level=1)
    with pytest.raises(fusile.UsageError, match=r"no option of fusile\.verify.*seeds, dim_sets"):
        fusile.verify(small_path, seed_list=[1])


def test_kernel_commands_offer_kernel_targets(call: Call, small_path: Path) -> None:
    for command in ("compile", "run", "bench", "explain"):
        code, _, err = call(command, small_path, "--target", "foo")
        assert (code, "Choose one of native, numba, cuda." in err) == (2, True)
        assert call(command, small_path, "--target", "torch")[0] == 2
    with pytest.raises(fusile.UsageError, match="Choose one of native, numba, cuda"):
        fusile.compile(small_path, target="foo")


def test_failures_are_json_where_that_was_asked_for(call: Call, tmp_path: Path, node_model: Any) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(node_model("NoSuchOperator"))
    code, out, err = call("compile", path, "--json")
    told = json.loads(out)
    assert (code, told["ok"], told["exit"]) == (3, False, 3)
    assert told["gaps"][0]["op_type"] == "NoSuchOperator"
    assert told["error"] in err
    assert json.loads(call("check", path, "--json")[1])["supported"] is False
    for arguments in (["check", "nowhere.onnx"], ["check", path, "--no-such-flag"], ["run", path, "-O", "9"]):
        code, out, err = call(*arguments, "--json")
        told = json.loads(out)
        assert (code, told["ok"], told["exit"], bool(told["error"])) == (2, False, 2, True)
        assert err


def test_verbose_shows_the_steps(call: Call, small_path: Path) -> None:
    code, out, err = call("compile", small_path, "-o", "m.so", "-v")
    assert code == 0
    assert re.search(r"^fusile: writing the module: [0-9.]+ s$", err, re.MULTILINE)
    assert "writing the module" not in out


def test_counts_are_words(call: Call, tmp_path: Path, node_model: Any) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(node_model("Relu"))
    assert "  1 node, 0 parameters in 0 B" in call("check", path)[1]
    assert counted(amount(2_500_000, ""), "parameter") == "2.5 M parameters"


def test_the_cache_says_why_it_keeps_nothing(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FUSILE_CACHE", "0")
    assert "nothing is kept between runs: FUSILE_CACHE=0" in call("cache")[1]
    monkeypatch.delenv("FUSILE_CACHE")
    monkeypatch.delenv("FUSILE_CACHE_DIR", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="No cache folder"):
        code, out, _ = call("cache")
    assert (code, "No cache folder can be used" in out, "FUSILE_CACHE=0" in out) == (0, True, False)
