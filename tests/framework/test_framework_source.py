"""What emitted files look like: formatted, linted, deterministic, harmless whatever the names; and their printer."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from framework_models import (
    FRAMEWORKS,
    Array,
    Draw,
    agrees,
    call,
    conv_net,
    emit,
    model,
    module_of,
    node,
    transformer,
)
from onnx import TensorProto

from fusile.backends.framework.code import Name, Var, code, layout, literal, name
from fusile.backends.framework.code import call as call_
from fusile.backends.framework.source import Body
from fusile.errors import UnsupportedError

NETS = {"conv": conv_net, "transformer": transformer}


@pytest.mark.parametrize("to", FRAMEWORKS)
@pytest.mark.parametrize("net", NETS)
def test_golden(net: str, to: str, tmp_path: Path, golden: Callable[..., None]) -> None:
    emit(NETS[net]()[0], to, tmp_path)
    golden((tmp_path / "model.py").read_text(), ".py")


@pytest.mark.parametrize("to", FRAMEWORKS)
def test_emitted_twice_is_equal(to: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        emit(transformer()[0], to, tmp_path / folder)
    for file in ("model.py", "weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("to", FRAMEWORKS)
def test_emitted_source_is_formatted(to: str, tmp_path: Path) -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    for net, make in NETS.items():
        emit(make()[0], to, tmp_path / net)
    source, _ = _hostile()
    emit(source, to, tmp_path / "hostile")
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run([ruff, *command, "--isolated", str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


NAMES = (
    'x"); import os; os.system("true") #',
    "line\nbreak",
    '"""',
    "class",
    "self",
    "é à ∑",
    "a.b",
    "a_b",
    "a/b:0",
    "training",
    "0",
    "\\",
    "torch",
    "ops",
)


def _hostile() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A chain of additions whose inputs, weights and values have hostile, colliding names."""
    d = Draw(9)
    feeds = {given: d(2, 3) for given in NAMES[:7]}
    weights = {given + " weight": d(3) for given in NAMES}
    nodes, value = [], NAMES[0]
    for index, other in enumerate([*NAMES[1:7], *weights]):
        made = "y\n\"'" if index == len(NAMES) + 5 else f"{other}\r{index}"
        nodes.append(node("Add", [value, other], [made], name=f'"""\n{index}'))
        value = made
    nodes.append(node("Identity", [value], ['out"""\n']))
    made_model = model(nodes, feeds, weights, ['out"""\n'])
    made_model.graph.name = '"""\nimport os\n"""'
    made_model.graph.doc_string = "'''\"\"\""
    return made_model, feeds


@pytest.mark.parametrize("to", FRAMEWORKS)
def test_hostile_names_are_harmless(to: str, tmp_path: Path) -> None:
    source, feeds = _hostile()
    agrees(source, feeds, to, tmp_path)
    tree = ast.parse((tmp_path / "model.py").read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert "os" not in imported
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in ("os", "eval", "exec")]


@pytest.mark.parametrize("to", FRAMEWORKS)
def test_imports_are_the_framework_numpy_and_safetensors(to: str, tmp_path: Path) -> None:
    emit(transformer()[0], to, tmp_path)
    tree = ast.parse((tmp_path / "model.py").read_text())
    roots = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    roots |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    own = {"torch"} if to == "torch" else {"keras", "tensorflow", "numpy"}
    assert roots - set(sys.stdlib_module_names) <= own | {"safetensors"}


def test_every_gap_at_once(tmp_path: Path) -> None:
    nodes = [
        node("StringNormalizer", ["s"], ["t"], name="first"),
        node("Mystery", ["x"], ["a"], name="second", domain="some.where"),
        node("Relu", ["a"], ["b"]),
        node("Mystery", ["x"], ["y"], name="third", domain="some.where"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "small",
        [
            onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]),
            onnx.helper.make_tensor_value_info("s", TensorProto.STRING, [2]),
        ],
        [onnx.ValueInfoProto(name=name_) for name_ in ("y", "b", "t")],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("some.where", 1)]
    source = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    from fusile.backends.framework import torch
    from fusile.frontend import load

    with pytest.raises(UnsupportedError) as error:
        torch.emit(load(source), tmp_path)
    assert [gap.node for gap in error.value.gaps] == ["first", "second", "third"]
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", FRAMEWORKS)
def test_shape_arithmetic_is_plain_python(to: str, tmp_path: Path) -> None:
    """Shape -> Gather -> Mul -> Concat -> Reshape prints as sizes."""
    d = Draw(2)
    weights = {
        "zero": np.array(0),
        "one": np.array(1),
        "four": np.array([4]),
        "axis": np.array([0]),
        "rest": np.array([-1]),
    }
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]),
        node("Gather", ["shape", "one"], ["seq"]),
        node("Mul", ["batch", "seq"], ["both"]),
        node("Unsqueeze", ["both", "axis"], ["both1"]),
        node("Concat", ["both1", "four", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["r"]),
        node("Relu", ["r"]),
    ]
    source = model(nodes, {"x": (TensorProto.FLOAT, ["batch", "seq", 8])}, weights)
    net = agrees(source, {"x": d(2, 3, 8)}, to, tmp_path)
    text = (tmp_path / "model.py").read_text()
    assert "batch, seq, _ = x.shape" in text if to == "torch" else "batch, seq, _ = ops.shape(x)" in text
    assert "batch * seq, 4, -1" in text
    assert call(to, net, [d(5, 2, 8)])[0].shape == (10, 4, 2)


def test_keras_model_in_a_traced_function(tmp_path: Path) -> None:
    import tensorflow

    source, feeds = transformer()
    emit(source, "keras", tmp_path)
    net = module_of(tmp_path).load()
    traced = tensorflow.function(net, input_signature=[tensorflow.TensorSpec((None, None), "int64")])
    for ids in (feeds["ids"], feeds["ids"][:1, :3]):
        assert np.allclose(traced(tensorflow.constant(ids)), net(tensorflow.constant(ids)), atol=1e-5)


# ---- the printer -------------------------------------------------------------------------------------


def test_precedence() -> None:
    a, b, c = name("a"), name("b"), name("c")
    for made, text in (
        ((a + b) * c, "(a + b) * c"),
        (a + b * c, "a + b * c"),
        (a - (b - c), "a - (b - c)"),
        (a / b / c, "a / b / c"),
        (-(a + b), "-(a + b)"),
        ((-a).method("abs"), "(-a).abs()"),
        (code(3) * a, "3 * a"),
        (a * -2.0, "a * -2.0"),
        (a.binary("&", b).binary("==", c), "a & b == c"),
        (a.binary("==", b).binary("&", c), "(a == b) & c"),
        (a[1:, ..., None, ::2], "a[1:, ..., None, ::2]"),
        (a[b + 1 :], "a[b + 1 :]"),
        (code((1,)), "(1,)"),
        (code(float("-inf")), 'float("-inf")'),
        (code(1e-5), "1e-05"),
    ):
        assert made.text({}) == text
        ast.parse(text, mode="eval")


@pytest.mark.parametrize("text", ["", 'a"b', "a'b", "\n\\", "é", "\x00", "a'\"b"])
def test_literals_read_back(text: str) -> None:
    made = literal(text)
    assert ast.literal_eval(made) == text and made.isascii() and "\n" not in made


def test_long_lines_break_at_brackets() -> None:
    made = call_("function_with_a_long_name", *(name(f"argument_number_{i}") for i in range(5)), flag=True)
    lines = layout("x = ", made, "", 4, {})
    assert lines[0] == "    x = function_with_a_long_name(" and lines[-1] == "    )"
    assert lines[-2] == "        flag=True,"


def test_names_of_a_body() -> None:
    x = Var("x", fixed=True)
    body = Body((x,))
    first = body.let(call_("f", Name(x)), "first")
    second = body.let(call_("g", first, first), "second")
    body.let(call_("unread", second), "unread")
    kept = body.let(call_("h", second), "kept")
    body.result = kept + second
    assert body.lines(0) == ["x = f(x)", "x = g(x, x)", "return h(x) + x"]
