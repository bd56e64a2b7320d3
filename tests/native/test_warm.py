"""The cache: what a warm start loads, what counts as the same model; nothing stale is ever served."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import native_models as models
import numpy as np
import onnx
import pytest
from native_models import Reference, assert_close, noise
from onnx import TensorProto, helper, numpy_helper

import fusile
from fusile import artefacts
from fusile.options import make_options

LIBRARIES = (
    "onnx onnx_ir ml_dtypes numba llvmlite jinja2 rich typer onnxruntime safetensors google.protobuf sympy "
    "subprocess"
)
COMPILER = "driver frontend kernels passes schedule backends.native.llvm runtime.workers runtime.link"
HEAVY = [*LIBRARIES.split(), *(f"fusile.{name}" for name in COMPILER.split())]

SESSION = f"""
import json, sys, time
import numpy as np
start = time.perf_counter()
import fusile
options = fusile.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = fusile.InferenceSession(sys.argv[1], options)
ready = time.perf_counter() - start
answer = session.run(None, {{"x": np.ones((2, 96), np.float32)}})[0]
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps({{"heavy": heavy, "seconds": ready, "sum": float(answer.sum()),
    "info": session.get_modelmeta().graph_name}}))
"""


def start(path: Path, threads: int = 1, **environment: str) -> dict[str, Any]:
    """A session in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(path), str(threads)],
        capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def entries(cache: Path, kind: str) -> set[str]:
    folder = cache / kind
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_warm_session_loads_neither_compiler_nor_readers(
    tmp_path: Path, fresh_cache: Path, threads: int
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models.matmuls())
    cold = start(path, threads)
    assert "fusile.driver" in cold["heavy"]
    warm = start(path, threads)
    assert warm["heavy"] == []
    assert (warm["sum"], warm["info"]) == (cold["sum"], "made")
    assert warm["seconds"] < cold["seconds"]


def test_the_cache_can_be_turned_off(tmp_path: Path, fresh_cache: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models.matmuls())
    told = start(path, FUSILE_CACHE="0")
    assert "fusile.driver" in told["heavy"]
    assert "fusile.driver" in start(path, FUSILE_CACHE="0")["heavy"]
    assert not list(fresh_cache.iterdir())


def test_bytes_protos_and_files_of_one_model_are_one(tmp_path: Path, fresh_cache: Path) -> None:
    model = models.matmuls()
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    x = noise(1, 2, 96)
    first = fusile.compile(model)(x)
    for source in (path, str(path), onnx.load_model_from_string(model), bytearray(model)):
        assert artefacts.find(artefacts.plain(source), make_options()) is not None
        np.testing.assert_array_equal(fusile.compile(source)(x)[0], first[0])
    assert len(entries(fresh_cache, "model")) == len(entries(fresh_cache, "code")) == 1


def test_other_weights_share_the_code(fresh_cache: Path, reference: Reference) -> None:
    x = {"x": noise(1, 2, 3, 13, 17)}
    for seed in (0, 100):
        model = models.conv_net(seed)
        assert_close(fusile.compile(model)(**x), reference(model, x))
    assert len(entries(fresh_cache, "code")) == 1
    assert len(entries(fresh_cache, "weights")) == len(entries(fresh_cache, "model")) == 2


@pytest.mark.parametrize(
    "change",
    [{"opt_level": 1}, {"denormals": "keep"}, {"dims": {"rows": 3}}, {"cpu": "x86-64-v2"}, {"seed": 5}],
    ids=str,
)
def test_options_that_shape_code_have_entries_of_their_own(fresh_cache: Path, change: dict[str, Any]) -> None:
    model = models.matmuls()
    fusile.compile(model)
    assert artefacts.find(model, make_options(**change)) is None
    fusile.compile(model, **change)
    assert artefacts.find(model, make_options(**change)) is not None
    assert len(entries(fresh_cache, "model")) == 2


def test_threads_do_not_shape_code(fresh_cache: Path) -> None:
    model = models.matmuls()
    fusile.compile(model, threads=1)
    assert artefacts.find(model, make_options(threads=2)) is not None


def with_shape(size: list[int]) -> bytes:
    return models.make(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape")],
        {"x": (TensorProto.FLOAT, [6])},
        {"y": (TensorProto.FLOAT, size)},
        {"shape": np.array(size, np.int64)},
    )


def test_small_constants_shape_code(fresh_cache: Path) -> None:
    x = noise(1, 6)
    for size in ([2, 3], [3, 2]):
        np.testing.assert_array_equal(fusile.compile(with_shape(size))(x)[0], x.reshape(size))


def scaled(factor: float, count: int) -> bytes:
    """y = x * s, with the same number `count` times: a scalar is part of the code, many are weights."""
    scale = np.full(() if count == 1 else (count,), factor, np.float32)
    return models.make(
        [helper.make_node("Mul", ["x", "s"], ["y"], name="mul")],
        {"x": (TensorProto.FLOAT, [40])}, {"y": (TensorProto.FLOAT, [40])}, {"s": scale},
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 40])
def test_scalars_and_weights_are_never_mixed_up(fresh_cache: Path, count: int) -> None:
    x = noise(1, 40)
    for factor in (2.0, 3.0, 2.0):
        np.testing.assert_array_equal(fusile.compile(scaled(factor, count))(x)[0], x * np.float32(factor))
    assert len(entries(fresh_cache, "code")) == (2 if count == 1 else 1)


def test_a_file_that_changes_is_another_model(tmp_path: Path, fresh_cache: Path) -> None:
    path, x = tmp_path / "model.onnx", noise(1, 40)
    for factor in (2.0, 3.0):
        path.write_bytes(scaled(factor, 40))
        np.testing.assert_array_equal(fusile.compile(path)(x)[0], x * np.float32(factor))


def write_external(folder: Path, factor: float) -> Path:
    model = onnx.load_model_from_string(scaled(factor, 40))
    path = folder / "model.onnx"
    (folder / "weights.bin").unlink(missing_ok=True)  # else the data are appended to it
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=False,
    )
    return path


def test_files_beside_the_model_count(tmp_path: Path, fresh_cache: Path) -> None:
    x, model = noise(1, 40), b""
    for factor in (2.0, 3.0):
        path = write_external(tmp_path, factor)
        assert model in (b"", path.read_bytes())  # the model's own file stays as it is
        model = path.read_bytes()
        for _ in range(2):
            np.testing.assert_array_equal(fusile.compile(path)(x)[0], x * np.float32(factor))
        assert artefacts.find(path, make_options()) is not None
    assert len(entries(fresh_cache, "code")) == 1
    (tmp_path / "weights.bin").unlink()
    assert artefacts.find(path, make_options()) is None
    with pytest.raises(fusile.InvalidModelError, match="missing"):
        fusile.compile(path)


def test_small_constants_beside_the_model_shape_its_code_too(tmp_path: Path, fresh_cache: Path) -> None:
    x = noise(1, 6)
    for size in ([2, 3], [3, 2]):
        path = tmp_path / "model.onnx"
        (tmp_path / "weights.bin").unlink(missing_ok=True)
        model = onnx.load_model_from_string(with_shape(size))
        del model.graph.output[0].type.tensor_type.shape.dim[:]  # so that both files are equal
        model.graph.output[0].type.tensor_type.ClearField("shape")
        onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        np.testing.assert_array_equal(fusile.compile(path)(x)[0], x.reshape(size))


@pytest.mark.parametrize("kind", ["model", "code", "weights", "objects", "support"])
def test_damaged_or_missing_entries_are_made_again(
    tmp_path: Path, fresh_cache: Path, kind: str, reference: Reference
) -> None:
    model, x = models.matmuls(), {"x": noise(1, 3, 96)}
    path = tmp_path / "source.onnx"
    path.write_bytes(model)
    fusile.compile(path, threads=1)
    for folder in (fresh_cache / kind).iterdir():
        for file in folder.iterdir():
            if file.name != "manifest.json":
                file.write_bytes(file.read_bytes()[:-1] + b"?")
    module = fusile.compile(path, threads=1)
    assert_close(module(**x), reference(model, x))
    assert module.save(tmp_path / "model.so")


def test_a_module_out_of_the_cache_can_be_saved(tmp_path: Path, fresh_cache: Path) -> None:
    path, x = tmp_path / "source.onnx", noise(1, 3, 96)
    path.write_bytes(models.matmuls())
    fusile.compile(path)
    warm = fusile.compile(path)
    for folder in (fresh_cache / "objects").iterdir():
        (folder / "manifest.json").unlink()  # as if it had been pruned
    warm.save(tmp_path / "model.so")
    np.testing.assert_array_equal(fusile.load(tmp_path / "model.so")(x)[0], warm(x)[0])


def test_dumps_are_written_although_the_cache_knows_the_model(tmp_path: Path, fresh_cache: Path) -> None:
    model = models.matmuls()
    fusile.compile(model)
    fusile.compile(model, dump_ir=tmp_path / "dump")
    names = {path.name.partition("_")[2] for path in (tmp_path / "dump").iterdir()}
    assert {"graph.txt", "program.txt", "groups.txt", "plan.txt", "llvm_plan.txt"} <= names
    (graph,) = (tmp_path / "dump").glob("*_graph.txt")
    assert "= MatMul(" in graph.read_text()
    assert len(graph.read_text()) < 2000  # no weights in it


def test_weights_are_mapped_and_not_copied(tmp_path: Path, fresh_cache: Path) -> None:
    """A warm session's own memory does not grow with the weights."""
    size = 1500
    model = models.make(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        {"x": (TensorProto.FLOAT, ["rows", size])}, {"y": (TensorProto.FLOAT, ["rows", size])},
        {"w": noise(1, size, size)},
    )  # fmt: skip
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    code = f"""
import sys, numpy as np, fusile
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
x = np.ones((1, {size}), np.float32)
before = anonymous()
module = fusile.compile(sys.argv[1], threads=1)
module(x)
print(anonymous() - before)
"""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
    assert int(done.stdout) < 9000 // 2  # kB; the weights take 9000


def test_many_processes_fill_one_cache(tmp_path: Path, fresh_cache: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models.matmuls())
    command = [sys.executable, "-c", SESSION, str(path), "1"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sums = {json.loads(process.communicate()[0])["sum"] for process in running}
    assert len(sums) == 1
    assert len(entries(fresh_cache, "weights")) == 1


def test_a_repeated_start_does_not_hash_the_model_again(
    tmp_path: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models.matmuls())
    time.sleep(1.1)  # a file that changed within the last second may change again unseen
    fusile.compile(path)
    monkeypatch.setattr("hashlib.file_digest", None)
    digest = artefacts.digest_of(path, artefacts.open_cache())
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_models_of_one_text_and_other_types_differ(fresh_cache: Path, reference: Reference) -> None:
    """What the digest of a structure steps over is weights alone: their types and shapes count."""
    for shape in ([4, 10], [2, 20]):
        model = models.make(
            [helper.make_node("ReduceSum", ["w", "axes"], ["s"], name="sum", keepdims=0),
             helper.make_node("Add", ["x", "s"], ["y"], name="add")],
            {"x": (TensorProto.FLOAT, [shape[0]])}, {"y": (TensorProto.FLOAT, [shape[0]])},
            {"w": noise(1, *shape), "axes": np.array([1], np.int64)},
        )  # fmt: skip
        feeds: Mapping[str, Any] = {"x": noise(2, shape[0])}
        assert_close(fusile.compile(model)(**feeds), reference(model, feeds))
    assert len(entries(fresh_cache, "code")) == 2


def test_what_counts_as_a_weight() -> None:
    from fusile.frontend.structure import is_weight

    counts = {TensorProto.FLOAT: 9, TensorProto.BFLOAT16: 9, TensorProto.INT64: 1025, TensorProto.UINT8: 1025}
    for element, count in counts.items():
        assert not is_weight(element, count - 1)
        assert is_weight(element, count)
    assert not is_weight(TensorProto.STRING, 10**6)


def test_weights_that_are_read_while_compiling_bind_the_code_to_them(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator that looks at its weights is noticed: its code serves no others."""
    from fusile.kernels.registry import OPERATORS, Operator
    from fusile.passes.to_tensor import defined

    assert defined("", "Mul")
    known = OPERATORS["", "Mul"]

    def looking(*given: Any) -> Any:
        assert float(given[-1].data()[0]) in (2.0, 3.0)
        return known.function(*given)

    looks = Operator(
        "", "Mul", looking, known.takes_context, False, known.attributes, known.inputs, known.required
    )
    monkeypatch.setitem(OPERATORS, ("", "Mul"), looks)
    x = noise(1, 40)
    for factor in (2.0, 3.0, 2.0):
        np.testing.assert_array_equal(fusile.compile(scaled(factor, 40))(x)[0], x * np.float32(factor))
    assert len(entries(fresh_cache, "code")) == 2


def test_a_constant_node_is_a_weight_too(fresh_cache: Path) -> None:
    x = noise(1, 40)
    for factor in (2.0, 3.0):
        held = numpy_helper.from_array(np.full(40, factor, np.float32), "held")
        model = models.make(
            [helper.make_node("Constant", [], ["s"], name="constant", value=held),
             helper.make_node("Mul", ["x", "s"], ["y"], name="mul")],
            {"x": (TensorProto.FLOAT, [40])}, {"y": (TensorProto.FLOAT, [40])}, {},
        )  # fmt: skip
        np.testing.assert_array_equal(fusile.compile(model)(x)[0], x * np.float32(factor))
    assert len(entries(fresh_cache, "code")) == 1
