"""Emitted source: what it looks like, that it runs alone, and that names out of a model do no harm in it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numba_models import close, inputs_of
from onnx import numpy_helper
from operator_models import by_onnxruntime
from program_table import BY_NAME

import fusile

ALONE = """
import sys
import numpy as np
import model
feeds = np.load("feeds.npz")
m = model.load()
np.savez("answers.npz", *m(*[feeds[name] for name, _, _ in model.INPUTS]))
print([name for name in ("fusile", "onnx", "onnxruntime", "llvmlite.ir.nothing") if name in sys.modules])
"""


def emitted(folder: Path, model: onnx.ModelProto, to: str = "numba", **options: object) -> str:
    fusile.emit(model, to, folder, **options)  # type: ignore[arg-type]
    return (folder / "model.py").read_text()


@pytest.mark.parametrize("to", ["numba", "cuda"])
def test_golden(tmp_path: Path, golden: Callable[..., None], to: str) -> None:
    golden(emitted(tmp_path, BY_NAME["conv_relu"].model(), to), ".py")


def test_the_same_model_gives_the_same_text(tmp_path: Path) -> None:
    texts = {emitted(tmp_path / str(k), BY_NAME["attention"].model()) for k in range(2)}
    assert len(texts) == 1


@pytest.mark.parametrize("to", ["numba", "cuda"])
def test_the_folder_runs_alone(tmp_path: Path, to: str) -> None:
    model = BY_NAME["batch_norm"].model()
    values = inputs_of(model, {"N": 2})
    emitted(tmp_path, model, to)
    np.savez(tmp_path / "feeds.npz", **values)
    simulated = {"NUMBA_ENABLE_CUDASIM": "1"} if to == "cuda" else {}
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        cwd=tmp_path,
        env={**os.environ, **simulated, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "[]"
    with np.load(tmp_path / "answers.npz") as answers:
        close([answers[name] for name in answers.files], by_onnxruntime(model, values))


def test_the_command_line_is_said(tmp_path: Path) -> None:
    text = emitted(tmp_path, BY_NAME["softmax"].model(), dims={"N": 2, "S": 5}, opt_level=1)
    assert "fusile emit MODEL.onnx --to numba --dims N=2,S=5 -O1" in text
    assert "graph sha256:" in text


HOSTILE = (
    '"""\nimport os; os._exit(7)\n"""',
    "x'); __import__('os')._exit(7); ('",
    "lambda",
    "np",
    "error",
    "run",
    "a\\\nb",
    "w.w",
    "\u202e\x00\x01",
    "range",
)


def test_hostile_names_are_harmless(tmp_path: Path) -> None:
    x = onnx.helper.make_tensor_value_info(HOSTILE[0], 1, [HOSTILE[1], 4])
    i = onnx.helper.make_tensor_value_info(HOSTILE[2], 7, [2])
    y = onnx.helper.make_tensor_value_info(HOSTILE[3], 1, None)
    nodes = [
        onnx.helper.make_node("Add", [HOSTILE[0], HOSTILE[4]], [HOSTILE[5]], name=HOSTILE[6]),
        onnx.helper.make_node("Gather", [HOSTILE[5], HOSTILE[2]], [HOSTILE[7]], name=HOSTILE[0]),
        onnx.helper.make_node("Exp", [HOSTILE[7]], [HOSTILE[3]], name=HOSTILE[9]),
    ]
    weight = numpy_helper.from_array(np.arange(4, dtype=np.float32), HOSTILE[4])
    graph = onnx.helper.make_graph(nodes, HOSTILE[8], [x, i], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    for to in ("numba", "cuda"):
        text = emitted(tmp_path / to, model, to)
        names = {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
        assert "__import__" not in names
        assert "os" not in names
    module = fusile.compile(model, target="numba")
    values = [np.ones((3, 4), np.float32), np.array([2, 0])]
    wanted = np.exp(np.ones((2, 4), np.float32) + np.arange(4, dtype=np.float32))
    np.testing.assert_allclose(np.asarray(module(*values)[0]), wanted, rtol=1e-6)


def test_lines_are_short(tmp_path: Path) -> None:
    for name in ("attention", "resize", "lstm"):
        text = emitted(tmp_path / name, BY_NAME[name].model())
        assert max(map(len, text.splitlines())) <= 120, name
