"""Modules as files, driven from C: right for every size, clean under valgrind, and whole when memory runs
out.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import native_models as models
import numpy as np
import onnx
import pytest
from native_models import Array, Reference, assert_close, noise

import fusile
from fusile.target import host

PROGRAM = Path(__file__).with_name("run_model.c")
BASELINE = "x86-64-v3" if host().arch == "x86_64" else "armv8-a"
"""Valgrind knows no instructions beyond these."""
VALGRIND = shutil.which("valgrind") is not None

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

CASES: Mapping[str, tuple[Callable[[], bytes], list[dict[str, Array]]]] = {
    "conv_net": (models.conv_net, [{"x": noise(n, n, 3, 13, 17)} for n in (1, 3)]),
    "lstm": (models.lstm, [{"x": noise(n, 4 + n, n, 5)} for n in (1, 6)]),
    "nonzero": (models.nonzero, [{"x": noise(n, n, 7) - shift} for n, shift in ((5, 0), (40, 0), (2, 9))]),
    "gather": (models.gather, [{"i": np.array(i, np.int64)} for i in ([3, 0, 10], [-1] * 37, [])]),
    "matmuls": (models.matmuls, [{"x": noise(n, n, 96)} for n in (1, 33)]),
}  # fmt: skip

Program = Callable[..., subprocess.CompletedProcess[str]]


def write_tensors(path: Path, arrays: Sequence[Array]) -> None:
    with path.open("wb") as file:
        for array in arrays:
            code = int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
            file.write(struct.pack(f"<iiq{array.ndim}q", code, array.ndim, array.nbytes, *array.shape))
            file.write(np.ascontiguousarray(array).tobytes())


def read_tensors(path: Path) -> list[Array]:
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        code, rank, size = struct.unpack_from("<iiq", data, at)
        shape = struct.unpack_from(f"<{rank}q", data, at + 16)
        at += 16 + 8 * rank
        dtype = onnx.helper.tensor_dtype_to_np_dtype(code)
        found.append(np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape))
        at += size
    return found


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Program]:
    """Compiles a model and the C program for it; answers a function that runs it on sets of feeds."""

    def build(source: Any, embed: bool = True, **options: Any) -> Program:
        module = fusile.compile(source, cpu=BASELINE, **options)
        files = module.save(tmp_path / "model.so", embed=embed)
        executable = tmp_path / "run_model"
        sanitize = [] if VALGRIND else ["-fsanitize=address"]
        command = ["cc", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-O1", *sanitize]
        command += [
            str(PROGRAM),
            f"-I{tmp_path}",
            str(files[0]),
            f"-Wl,-rpath,{tmp_path}",
            "-o",
            str(executable),
        ]
        subprocess.run(command, check=True)
        weights = "-" if embed or len(files) < 4 else str(files[3])

        def run(
            what: str, sets: Sequence[Mapping[str, Array]], threads: int = 1, checked: bool = True
        ) -> subprocess.CompletedProcess[str]:
            names = module.signature.names
            write_tensors(tmp_path / "in", [feeds[name] for feeds in sets for name in names])
            checker = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=all"]
            line = [str(executable), what, str(threads), weights, str(tmp_path / "in"), str(tmp_path / "out")]
            return subprocess.run(
                [*(checker if VALGRIND and checked else []), *line],
                capture_output=True,
                text=True,
                check=False,
            )

        return run

    return build


def compare(tmp_path: Path, source: Any, sets: Sequence[Mapping[str, Array]], reference: Reference) -> None:
    found = read_tensors(tmp_path / "out")
    wanted = [answer for feeds in sets for answer in reference(source, feeds)]
    assert_close(found, wanted)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("level", [0, 2])
def test_a_c_program_gets_onnxruntimes_answers(
    program: Callable[..., Program], tmp_path: Path, reference: Reference, name: str, level: int
) -> None:
    make, sets = CASES[name]
    run = program(make(), opt_level=level)
    done = run("run", sets)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr
    compare(tmp_path, make(), sets, reference)


@pytest.mark.parametrize("embed", [True, False], ids=["embedded", "beside"])
def test_threads_and_weights_beside(
    program: Callable[..., Program], tmp_path: Path, reference: Reference, embed: bool
) -> None:
    make, sets = CASES["matmuls"]
    done = program(make(), embed)("run", sets, threads=3)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr
    compare(tmp_path, make(), sets, reference)


@pytest.mark.parametrize("name", CASES)
def test_an_allocation_that_fails_is_a_status_and_leaves_nothing(
    program: Callable[..., Program], name: str
) -> None:
    make, sets = CASES[name]
    done = program(make())("fail", sets, threads=2)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


@pytest.mark.parametrize("bad", [11, -12, 2**62])
@pytest.mark.parametrize("at", [0, 20, 39])
def test_an_index_out_of_range_names_the_node(program: Callable[..., Program], bad: int, at: int) -> None:
    indices = np.zeros(40, np.int64)
    indices[at] = bad
    done = program(models.gather())("run", [{"i": indices}])
    told = bad + 11 if bad < 0 else bad
    assert (done.stdout, done.returncode) == (f"error 2 at 'look up' ({told}, 11)\n", 0), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50_tv", "bilstm_gru_ts17"])
def test_whole_models(
    program: Callable[..., Program],
    tmp_path: Path,
    reference: Reference,
    request: pytest.FixtureRequest,
    name: str,
) -> None:
    folder = request.config.getoption("--models")
    path = Path(folder or os.devnull) / f"{name}.onnx"
    if folder is None or not path.is_file():
        pytest.skip("needs --models with the folder of the model")
    ports = fusile.check(path).inputs
    rng = np.random.default_rng(0)
    sets = []
    for batch in (1, 2):
        feeds = {}
        for port in ports:
            shape = [
                batch if axis == 0 else d if isinstance(d, int) else 12
                for axis, d in enumerate(port.shape or ())
            ]
            values = rng.standard_normal(shape) if port.dtype == np.float32 else rng.integers(0, 30, shape)
            feeds[port.name] = values.astype(port.dtype)
        sets.append(feeds)
    done = program(path)("run", sets, threads=2, checked=False)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr
    compare(tmp_path, str(path), sets, reference)
