"""Hostile models are refused with the right error, fast, in little memory; strange ones are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from frontend_models import chain, info, model
from hostile_models import CASES, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from fusile.errors import FusileError, show_name
from fusile.frontend import load


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(name: str, tmp_path: Path) -> None:
    path = write(name, tmp_path)
    _, error, word = CASES[name]
    with pytest.raises(FusileError) as caught:
        load(path)
    assert type(caught.value) is error
    assert word in str(caught.value)


def test_refusing_takes_less_than_a_second_and_200_megabytes(tmp_path: Path) -> None:
    for name in CASES:
        write(name, tmp_path / name)
    script = Path(__file__).with_name("hostile_models.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(CASES)
    assert [row for row in rows if float(row[1]) >= 1 or int(row[2]) >= 200] == []
    assert done.stderr == ""


def test_nothing_outside_of_the_folder_is_opened_by_a_model_in_a_linked_folder(tmp_path: Path) -> None:
    """The user's own path may lead through links; only what the model names may not."""
    real = tmp_path / "real"
    real.mkdir()
    (real / "model.onnx").write_bytes(chain().SerializeToString())
    link = tmp_path / "link"
    link.symlink_to(real)
    assert load(link / "model.onnx").graph.num_nodes() == 3


@pytest.mark.parametrize(
    "name", ["a\nimport os", "'; os.abort() #", '"""', "\\", "\x1b[2J", "\u202e", "n" * 5000]
)
def test_hostile_names_are_read_and_shown_on_one_line(name: str) -> None:
    node = helper.make_node("Relu", ["x"], [name], name)
    loaded = load(model([node], [info("x", ["dim" + name])], [info(name, [1])]))
    assert loaded.graph[0].name == name and loaded.graph.outputs[0].name == name
    shown = show_name(name)
    assert shown.isprintable() and len(shown) <= 120
    broken = model([helper.make_node("Relu", [name], ["y"], name)], [], ["y"])
    with pytest.raises(FusileError) as caught:
        load(broken)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damage_anywhere_gives_our_errors_or_a_model(data: st.DataObject) -> None:
    content = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert", "drop"])):
            case "set":
                content[at] = data.draw(st.integers(0, 255))
            case "cut":
                del content[at + 1 :]
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case "drop":
                del content[at]
        if not content:
            break
    try:
        load(bytes(content))
    except FusileError as error:
        assert str(error)


def sample() -> bytes:
    """A small model with most kinds of things in it."""
    branch = helper.make_graph([helper.make_node("Relu", ["h"], ["r"])], "b", [], [info("r", [2])])
    nodes = [
        helper.make_node("Constant", [], ["k"], value_floats=[1.0, 2.0]),
        helper.make_node("Add", ["x", "k"], ["a"], "add"),
        helper.make_node("Clip", ["a"], ["c"], min=-1.0, max=1.0),
        helper.make_node("Own", ["c"], ["h"], domain="own"),
        helper.make_node("If", ["b"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Softmax", ["i"], ["s"], axis=0),
        helper.make_node("Mul", ["s", "w"], ["y"]),
    ]
    imports = [helper.make_opsetid("", 10)]
    own = helper.make_function("own", "Own", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], imports)
    proto = model(
        nodes,
        [info("x", ["n"]), info("b", [], 9)],
        [info("y", [2])],
        opset=10,
        weights={"w": np.ones(2, np.float32), "large": np.ones(300, np.float32)},
        functions=[own],
        domains={"own": 1},
    )
    return bytes(proto.SerializeToString())


SAMPLE = sample()


def test_the_sample_is_whole() -> None:
    assert load(SAMPLE).graph.num_nodes() == 6
