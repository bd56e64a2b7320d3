"""Native modules as files: from C under valgrind, from Python with numpy alone, whole or not there."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny_plan

from fusile.errors import FusileError, UsageError
from fusile.runtime import abi, shared_library
from fusile.runtime.shared_library import LibraryFiles, find_linker, write_shared_library
from fusile.runtime.workers import compile_objects
from fusile.target import TargetSpec, for_cpu, host

DRIVER = Path(__file__).with_name("driver.c")
ARM = for_cpu("armv8-a", "aarch64-unknown-linux-gnu")
WEIGHTS = np.array([2, 4, 6, 8], np.float32)

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture
def write(tmp_path: Path, tiny_object: bytes, baseline: TargetSpec, tiny_weights: Path) -> Any:
    def made(name: str = "tiny.so", plan: abi.PlanInterface = tiny_plan.PLAN, **options: Any) -> LibraryFiles:
        options = {"weights": tiny_weights} | options
        return write_shared_library(tmp_path / name, [("plan", tiny_object)], plan, baseline, **options)

    return made


def wrapper(files: LibraryFiles) -> ModuleType:
    spec = importlib.util.spec_from_file_location("wrapper_under_test", files.wrapper)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def expected(x: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, ...]:
    y = x * WEIGHTS
    return y, y[index], x[x > 0]


def feeds(rows: int = 50) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
    return x, np.array([0, rows - 1], np.int64)


# ---- from C


def build_driver(files: LibraryFiles, compiler: str) -> Path:
    program = files.library.with_name("driver")
    command = [compiler, "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-O1", str(DRIVER)]
    command += [
        f"-I{files.header.parent}",
        str(files.library),
        f"-Wl,-rpath,{files.library.parent}",
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)
    return program


@needs_cc
@pytest.mark.parametrize("embed", [True, False], ids=["embedded", "beside"])
def test_a_c_program_drives_the_library(write: Any, embed: bool) -> None:
    files = write(embed=embed)
    command = [str(build_driver(files, "cc"))] + ([str(files.weights)] if files.weights else [])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("fine\n", 0)


@needs_cc
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
def test_valgrind_finds_no_leak_and_no_wrong_access(write: Any) -> None:
    program = build_driver(write(), "cc")
    command = [
        "valgrind",
        "-q",
        "--error-exitcode=9",
        "--leak-check=full",
        "--show-leak-kinds=all",
        str(program),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-gcc") is None or shutil.which("qemu-aarch64") is None,
    reason="needs a cross compiler and an emulator",
)
def test_an_aarch64_library_runs_in_an_emulator(tmp_path: Path, tiny_weights: Path) -> None:
    objects = [("plan", compile_objects([tiny_plan.TEXT], ARM)[0])]
    files = write_shared_library(tmp_path / "tiny.so", objects, tiny_plan.PLAN, ARM, weights=tiny_weights)
    program = build_driver(files, "aarch64-linux-gnu-gcc")
    command = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


@needs_cc
@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_header_compiles_without_a_warning(write: Any, language: str) -> None:
    command = [
        "cc",
        "-x",
        language,
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pedantic",
        "-fsyntax-only",
        str(write().header),
    ]
    assert subprocess.run(command, capture_output=True, check=False).stderr == b""


# ---- what is in the files


@needs_cc
def test_a_library_exports_its_interface_and_needs_the_c_library_alone(write: Any) -> None:
    library = write("Some-Model v2.so").library
    text = subprocess.run(
        ["readelf", "-dW", "--dyn-syms", str(library)], capture_output=True, text=True, check=True
    ).stdout
    exported = set(re.findall(r"(?:GLOBAL|WEAK) +DEFAULT +\d+ (\S+)", text))
    assert exported == {f"some_model_v2_{name}" for name in shared_library._FUNCTIONS}
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", text))
    assert needed <= {"libc.so.6", "libpthread.so.0", "libm.so.6"}
    assert "Some-Model v2.so" in re.findall(r"\(SONAME\).*\[(.*)\]", text)


@needs_cc
def test_the_library_can_be_imported_like_the_wrapper_beside_it(write: Any) -> None:
    """Python takes tiny.so before tiny.py, so that the library hands over to it."""
    folder = write().library.parent
    code = (
        "import tiny, numpy as np\n"
        "y, *_ = tiny.load()(np.ones((1, 4), 'f4'), np.zeros(1, 'i8'))\n"
        "print(tiny.__name__, y)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout == "tiny [[2. 4. 6. 8.]]\n", done.stderr
    (folder / "tiny.py").write_text("1 / 0")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert "ZeroDivisionError" in done.stderr


@needs_cc
def test_no_path_of_this_machine_is_in_the_files(write: Any, tmp_path: Path) -> None:
    files = write(embed=False)
    for path in (files.library, files.header, files.wrapper):
        assert str(tmp_path).encode() not in path.read_bytes()
        assert b".fusile-" not in path.read_bytes()


@needs_cc
def test_the_same_module_is_written_twice_alike(write: Any) -> None:
    first = [path.read_bytes() for path in (lambda f: (f.library, f.header, f.wrapper))(write())]
    again = [path.read_bytes() for path in (lambda f: (f.library, f.header, f.wrapper))(write())]
    assert first == again


@needs_cc
def test_the_header_says_where_symbols_are_bound(write: Any) -> None:
    text = write().header.read_text()
    assert "n is axis 0 of input 0 (x)." in text
    assert "k is axis 0 of input 1 (index)." in text
    assert "z: float (1), dims [?]" in text


EVIL = '*/ int oops; /*"""\n#error\\\nimport os # coding: utf-7 \u202e'


@needs_cc
def test_names_from_a_model_stay_names(write: Any) -> None:
    plan = tiny_plan.PLAN
    renamed = abi.PlanInterface(
        name=EVIL,
        inputs=(abi.Port(EVIL, 1, (EVIL, 4)), abi.Port("class", 7, ("k",))),
        outputs=plan.outputs,
        symbols=(EVIL, "k"),
        weights_bytes=plan.weights_bytes,
        layout_key=plan.layout_key,
    )
    files = write(plan=renamed)
    module = wrapper(files)
    assert module.INPUTS[0] == (EVIL, 1, (EVIL, 4))
    command = ["cc", "-x", "c", "-Wall", "-Werror", "-fsyntax-only", str(files.header)]
    assert subprocess.run(command, capture_output=True, check=False).stderr == b""


@needs_cc
def test_the_wrapper_is_formatted(write: Any) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("needs ruff")
    files = write()
    for command in (["format", "--check"], ["check", "--select", "E,F,I,UP"]):
        done = subprocess.run(
            [ruff, *command, "--isolated", files.wrapper], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


# ---- from Python


@needs_cc
def test_the_wrapper_takes_arrays_names_dicts_and_dlpack(write: Any) -> None:
    model = wrapper(write()).load()
    x, index = feeds()

    class Foreign:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> object:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    by_position = model(x, index)
    for answer in (
        by_position, model(x=x, index=index), model({"x": x, "index": index}), model(x, index=index),
        model(Foreign(x), Foreign(index)), model(np.asfortranarray(x), index),
    ):  # fmt: skip
        for found, wanted in zip(answer, expected(x, index)):
            np.testing.assert_array_equal(found, wanted)
    model(x * 0, index)
    np.testing.assert_array_equal(by_position[0], x * WEIGHTS)  # answers are never views of working memory


@needs_cc
def test_the_wrapper_says_what_is_wrong(write: Any) -> None:
    module = wrapper(write())
    model = module.load()
    x, index = feeds()
    with pytest.raises(RuntimeError, match=r"node 'gather/ä': an index is out of range \(50, 50\)") as caught:
        model(x, index + 1)
    error: Any = caught.value
    assert (error.node, error.code, error.a, error.b) == ("gather/ä", 2, 50, 50)
    with pytest.raises(module.ModelError, match=r"input 'x' has shape \(50, 3\), expected \('n', 4\)"):
        model(x[:, :3], index)
    with pytest.raises(module.ModelError, match="input 'x' has type float64, expected float32"):
        model(x.astype(float), index)
    with pytest.raises(module.ModelError, match=r"takes \['x', 'index'\]"):
        model(x)
    with pytest.raises(module.ModelError, match=r"takes \['x', 'index'\]"):
        model(x, index, x=x)
    with pytest.raises(module.ModelError, match="input 'x' has 9 axes"):
        model(x.reshape(50, 4, 1, 1, 1, 1, 1, 1, 1), index)


@needs_cc
def test_the_wrapper_says_which_file_is_missing_or_cut(write: Any) -> None:
    files = write(embed=False)
    module = wrapper(files)
    with pytest.raises(module.ModelError, match=r"elsewhere\.weights are missing: put them beside"):
        module.load(weights=files.library.with_name("elsewhere.weights"))
    files.weights.unlink()
    with pytest.raises(module.ModelError, match=r"tiny\.weights are missing: put them beside the library"):
        module.load()
    whole = files.library.read_bytes()
    files.library.unlink()
    with pytest.raises(module.ModelError, match=r"tiny\.so is missing: put it beside"):
        module.load()
    write(embed=False)
    files.library.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(module.ModelError, match=r"tiny\.so is cut short"):
        module.load()


@needs_cc
@pytest.mark.parametrize(("threads", "default"), [(None, 0), (3, 3)])
def test_the_wrapper_uses_the_threads_that_were_asked_for(
    write: Any, threads: int | None, default: int
) -> None:
    module = wrapper(write(threads=threads))
    assert (module.load()._threads, module.load(threads=2)._threads) == (default, 2)


@needs_cc
def test_the_wrapper_with_weights_beside_it(write: Any) -> None:
    files = write(embed=False)
    module = wrapper(files)
    x, index = feeds()
    np.testing.assert_array_equal(module.load()(x, index)[0], x * WEIGHTS)
    files.weights.write_bytes(files.weights.read_bytes()[:-1])
    with pytest.raises(module.ModelError, match=r"tiny\.weights cannot be loaded: it is cut short, or"):
        module.load()


@needs_cc
def test_calls_from_several_threads(write: Any) -> None:
    model = wrapper(write()).load(threads=2)
    wrong: list[BaseException] = []

    def caller(rows: int) -> None:
        x, index = feeds(rows)
        try:
            for _ in range(50):
                for found, wanted in zip(model(x, index), expected(x, index)):
                    np.testing.assert_array_equal(found, wanted)
        except BaseException as error:
            wrong.append(error)

    callers = [threading.Thread(target=caller, args=(10 + i,)) for i in range(6)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert not wrong


@needs_cc
def test_outputs_that_the_module_allocated_outlive_the_model(write: Any) -> None:
    model = wrapper(write()).load()
    x, index = feeds(3000)
    z = model(x, index)[2]
    del model
    np.testing.assert_array_equal(z, x[x > 0])


@needs_cc
def test_small_types_take_a_byte_each(write: Any) -> None:
    module = wrapper(write())
    for code, kind in ((21, "uint8"), (22, "int8"), (23, "uint8"), (25, "uint8"), (26, "int8")):
        assert module._TYPES[code] == kind
        assert abi.storage_bits(code) == 8
    assert [abi.storage_bits(code) for code in (1, 8, 10, 16, 99)] == [32, 0, 16, 16, 0]


# ---- linkers


@needs_cc
def test_a_bare_ld_will_do(write: Any) -> None:
    if shutil.which("ld") is None:
        pytest.skip("needs ld")
    x, index = feeds()
    model = wrapper(write(linker="ld")).load()
    np.testing.assert_array_equal(model(x, index)[0], x * WEIGHTS)


@pytest.mark.parametrize(
    ("program", "driver"),
    [("ld", False), ("ld.lld", False), ("aarch64-linux-gnu-ld", False), ("ld.gold-2.40", False),
     ("mold", False), ("gcc-12", True), ("clang", True), ("my-build", True)],
)  # fmt: skip
def test_drivers_are_told_from_bare_linkers_by_name(
    program: str, driver: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/opt/{name}")
    assert find_linker(host(), program).driver == driver


def test_without_a_linker_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'fusile\[link\]'.*--linker"):
        find_linker(host())
    with pytest.raises(UsageError, match="'my-ld' is not there"):
        find_linker(host(), "my-ld")


def test_ziglang_is_asked_where_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    command = find_linker(ARM).command
    assert command[1:] == ("-m", "ziglang", "cc", "-target", "aarch64-linux-gnu")


@needs_cc
def test_a_linker_that_fails_leaves_nothing_and_its_words_are_shown(write: Any, tmp_path: Path) -> None:
    failing = tmp_path / "bin" / "cc-that-fails"
    failing.parent.mkdir()
    failing.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    failing.chmod(0o755)
    with pytest.raises(FusileError, match="no such luck"):
        write(linker=str(failing))
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@needs_cc
def test_a_failure_keeps_the_files_that_were_there(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write()
    before = {path: path.read_bytes() for path in (files.library, files.header, files.wrapper)}
    monkeypatch.setattr(shared_library._Texts, "wrapper", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write()
    assert {path: path.read_bytes() for path in before} == before
    assert set(files.library.parent.iterdir()) == set(before)


def test_weights_must_be_this_modules(write: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs its packed weights"):
        write(weights=None)
    (tmp_path / "other").write_bytes(bytes(4096 + 64))
    with pytest.raises(FusileError, match="holds no weights of this module"):
        write(weights=tmp_path / "other")


def test_a_folder_that_is_not_there_is_named(write: Any) -> None:
    with pytest.raises(UsageError, match=r"nowhere.*does not exist"):
        write("nowhere/tiny.so")
