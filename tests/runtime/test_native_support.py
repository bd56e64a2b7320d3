"""Support code from the cache, weights files, and the hand-written plan called in process."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tiny_plan

from fusile.errors import FusileError, UnsupportedError
from fusile.runtime import abi, native_support
from fusile.runtime.cache import Cache
from fusile.runtime.image import Image
from fusile.runtime.pool import shared_pool
from fusile.runtime.weights_file import check_weights_file, new_weights_file
from fusile.target import TargetSpec, host


def test_support_code_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    first = native_support.support_objects(host(), cache)
    image = native_support.support_image(host(), cache)
    monkeypatch.setattr("fusile.runtime.workers.compile_objects", None)
    assert native_support.support_objects(host(), cache) == first
    assert native_support.support_image(host(), cache) == image
    assert [name for name, _ in first] == ["support", "interface"]


def test_other_systems_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="not for windows"):
        native_support.support_text(TargetSpec("x86_64-pc-windows-elf", "x86-64"))


def test_a_prefix_names_the_interface() -> None:
    text = native_support.interface_text("my_model")
    assert "@my_model_run(" in text
    assert "@api_" not in text


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_plan_in_process_with_the_shared_pool(
    tiny_image: Image, tiny_weights: Path, cache: Cache, threads: int
) -> None:
    pointer, number, wide = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    create = tiny_image.function(
        "fusile_create", number, ctypes.c_char_p, pointer, wide, pointer, pointer, pointer
    )
    instance = pointer()
    path = bytes(tiny_weights)
    assert create(path, None, 0, None, shared_pool(cache).address, ctypes.byref(instance)) == 0
    context = tiny_image.function("api_context_create", pointer, pointer, number)(instance, threads)
    x = np.arange(400, dtype=np.float32).reshape(100, 4)
    index = np.array([99], np.int64)
    inputs = (abi.Tensor * 2)(
        abi.Tensor(x.ctypes.data, 1, 2, (wide * 8)(100, 4)),
        abi.Tensor(index.ctypes.data, 7, 1, (wide * 8)(1)),
    )
    outputs = (abi.Tensor * 3)()
    run = tiny_image.function("api_run", number, pointer, pointer, pointer, pointer)
    assert run(instance, context, inputs, outputs) == 0
    y = np.ctypeslib.as_array(ctypes.cast(outputs[0].data, ctypes.POINTER(ctypes.c_float)), (100, 4))
    np.testing.assert_array_equal(y, x * np.array([2, 4, 6, 8], np.float32))
    assert shared_pool(cache).threads >= threads
    for output in outputs:
        tiny_image.function("api_release", None, pointer, pointer)(instance, output.data)
    tiny_image.function("api_context_destroy", None, pointer)(context)
    tiny_image.function("api_destroy", None, pointer)(instance)


def test_the_description_is_the_plans(tiny_image: Image) -> None:
    describe = tiny_image.function("api_describe", ctypes.c_char_p, ctypes.c_void_p)
    assert describe(None).decode() == abi.description(tiny_plan.PLAN)


def test_a_warm_start_needs_no_llvm(cache: Cache) -> None:
    native_support.support_image(host(), cache)
    script = f"""
    import sys
    from pathlib import Path
    from fusile.runtime.cache import Cache
    from fusile.runtime.pool import shared_pool
    assert shared_pool(Cache(Path({str(cache.root)!r}))).address
    heavy = {{"llvmlite", "onnx", "onnx_ir", "numba", "jinja2", "onnxruntime"}} & set(sys.modules)
    assert not heavy, heavy
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# ---- constants of a plan


def test_ports_that_native_code_cannot_hold_are_refused() -> None:
    for port, says in (
        (abi.Port("deep", 1, (2,) * 9), "'deep' has 9 dimensions"),
        (abi.Port("words", 8, (1,)), "'words' has element type 8"),
    ):
        with pytest.raises(UnsupportedError, match=says):
            abi.plan_constants(abi.PlanInterface("p", (port,), ()))


def test_node_names_are_cut_between_characters() -> None:
    assert abi._short_utf8("ä" * 200) == ("ä" * 127).encode()
    assert abi._short_utf8("a\0b") == b"a?b"
    assert abi._short_utf8("\ud800") == b"?"


# ---- weights files


def test_weights_files_are_checked(tmp_path: Path) -> None:
    path, key = tmp_path / "w", b"k" * 32
    with new_weights_file(path, 1000, key) as (address, _):
        assert address % 64 == 0
        ctypes.memset(address, 7, 1000)
    assert path.read_bytes()[4096:] == b"\7" * 1000
    check_weights_file(path, 1000, key)
    for size, layout in ((999, key), (1000, b"x" * 32)):
        with pytest.raises(FusileError, match="another build"):
            check_weights_file(path, size, layout)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FusileError, match="damaged"):
        check_weights_file(path, 1000, key)


def test_a_weights_file_without_weights(tmp_path: Path) -> None:
    with new_weights_file(tmp_path / "w", 0, bytes(32)):
        pass
    check_weights_file(tmp_path / "w", 0, bytes(32))
