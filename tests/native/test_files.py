"""Modules as files: saved whole or not at all, loaded again, made for other machines."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import native_models as models
import numpy as np
import onnx
import pytest
from native_models import assert_close, noise
from onnx import TensorProto, helper

import fusile
from fusile import cli
from fusile.errors import FusileError, UsageError
from fusile.target import host

X = noise(1, 5, 96)

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    fusile.compile(models.matmuls()).save(tmp_path / "model.so")
    return tmp_path / "model.so"


def test_a_saved_module_loads_and_runs_alike(saved: Path) -> None:
    first, loaded = fusile.compile(models.matmuls()), fusile.load(saved)
    assert [str(port) for port in loaded.inputs] == [str(port) for port in first.inputs]
    assert [str(port) for port in loaded.outputs] == [str(port) for port in first.outputs]
    assert_close(loaded(X), first(X), 0)
    with pytest.raises(fusile.RunError, match="wrong shape"):
        loaded(X[:, :9])


def test_a_renamed_library_loads(saved: Path, tmp_path: Path) -> None:
    place = tmp_path / "other name.so"
    saved.rename(place)
    assert_close(fusile.load(place)(X), fusile.compile(models.matmuls())(X), 0)


def test_a_library_that_was_written_anew_is_loaded_anew(tmp_path: Path) -> None:
    """The system's loader knows libraries by their names alone."""
    for seed in (0, 10, 20):
        module = fusile.compile(models.matmuls(seed))
        files = module.save(tmp_path / "model.so")
        assert_close(fusile.load(files[0])(X), module(X), 0)


@pytest.mark.parametrize("code", [TensorProto.INT4, TensorProto.UINT4])
def test_elements_under_a_byte_pass_through_a_library(tmp_path: Path, code: int) -> None:
    ports = {"x": (code, ["n"])}, {"y": (TensorProto.FLOAT, ["n"])}
    nodes = [helper.make_node("DequantizeLinear", ["x", "s"], ["y"], name="dequantise")]
    proto = onnx.load_model_from_string(models.make(nodes, *ports, {"s": np.array(0.5, np.float32)}))
    proto.opset_import[0].version, proto.ir_version = 21, 10
    module = fusile.compile(proto)
    x = np.array([0, 1, 7, 3, 5], onnx.helper.tensor_dtype_to_np_dtype(code))
    for one in (module, fusile.load(module.save(tmp_path / "model.so")[0])):
        np.testing.assert_array_equal(one(x)[0], [0, 0.5, 3.5, 1.5, 2.5])


def test_python_imports_it_with_numpy_alone(saved: Path) -> None:
    np.save(saved.with_name("x.npy"), X)
    code = (
        "import sys, numpy, model\n"
        "numpy.save('y.npy', model.load()(numpy.load('x.npy'))[0])\n"
        "print(*(name for name in sys.modules if name.partition('.')[0] in ('fusile', 'onnx', 'llvmlite')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=saved.parent, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
    np.testing.assert_array_equal(np.load(saved.with_name("y.npy")), fusile.compile(models.matmuls())(X)[0])


def test_weights_beside_the_library(tmp_path: Path) -> None:
    module = fusile.compile(models.matmuls())
    files = module.save(tmp_path / "model.so", embed=False)
    assert [file.name for file in files] == ["model.so", "model.h", "model.py", "model.weights"]
    assert_close(fusile.load(files[0])(X), module(X), 0)
    files[3].rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"Put 'model.weights' beside it"):
        fusile.load(files[0])
    (tmp_path / "elsewhere").rename(files[3])
    files[3].write_bytes(files[3].read_bytes()[:-64])
    with pytest.raises(FusileError, match="could not start"):
        fusile.load(files[0])


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b"text_abi_version\0", b"\x7fELF" + bytes(60)])
def test_files_that_are_no_modules_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.so"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"is no module|cannot be loaded"):
        fusile.load(path)
    with pytest.raises(UsageError, match="no file"):
        fusile.load(tmp_path / "nowhere.so")


def test_a_library_that_was_cut_short_is_refused(saved: Path, tmp_path: Path) -> None:
    """The system's loader would map what is not there, and the process die of it."""
    whole = saved.read_bytes()
    for length in (70, 1000, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / f"cut{length}.so"
        cut.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"cannot be loaded.*shorter than its own headers"):
            fusile.load(cut)


@pytest.mark.parametrize("threads", [None, 3])
def test_the_wrapper_keeps_the_number_of_threads(tmp_path: Path, threads: int | None) -> None:
    for again in range(2):  # compiled, and out of the cache
        files = fusile.compile(models.matmuls(), threads=threads).save(tmp_path / f"model{again}.so")
        assert f"_THREADS = {threads or 0} " in files[2].read_text()


def test_a_failing_linker_leaves_nothing(tmp_path: Path) -> None:
    module: Any = fusile.compile(models.matmuls())
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    broken.chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(FusileError, match="out of order"):
        module.save(place / "model.so", linker=str(broken))
    with pytest.raises(UsageError, match="not there"):
        module.save(place / "model.so", linker="no-such-linker")
    with pytest.raises(UsageError, match=r"Call it 'model.so'"):
        module.save(place / "model.onnx")
    assert not list(place.iterdir())


def test_a_loaded_module_is_not_written_again(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="loaded from a file"):
        fusile.load(saved).save(tmp_path / "again.so")


ELSEWHERE = "aarch64-unknown-linux-gnu" if host().arch == "x86_64" else "x86_64-unknown-linux-gnu"
OTHER_CPU = "armv8-a" if host().arch == "x86_64" else "x86-64-v3"


def test_another_machine_is_compiled_for_and_not_run_on(tmp_path: Path) -> None:
    module = fusile.compile(models.conv_net(), target_triple=ELSEWHERE, cpu=OTHER_CPU)
    assert module.inputs[0].shape == ("batch", 3, 13, 17)
    with pytest.raises(UsageError, match=f"compiled for {ELSEWHERE}"):
        module(noise(1, 1, 3, 13, 17))
    if shutil.which(f"{ELSEWHERE.split('-')[0]}-linux-gnu-gcc") is None:
        with pytest.raises(UsageError, match="needs a linker"):
            module.save(tmp_path / "model.so")


def test_the_command_line_compiles_runs_and_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(models.matmuls())
    np.save("x.npy", X)

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fusile", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        assert left.value.code == 0, err
        return out

    assert "net.so" in call("compile", "net.onnx")
    assert "beside.weights" in call("compile", "net.onnx", "-o", "beside.so", "--weights-beside")
    for library in ("net.so", "beside.so"):
        call("run", library, "--inputs", "x.npy", "-o", "y.npz", "--force")
        with np.load("y.npz") as archive:
            np.testing.assert_array_equal(archive["y"], fusile.compile(models.matmuls())(X)[0])
    assert "can be compiled" in call("check", "net.onnx")
    assert "second" in call("explain", "net.onnx")
