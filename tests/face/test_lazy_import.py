"""What importing fusile loads, and what its namespace holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = [
    "onnx",
    "onnx_ir",
    "numba",
    "llvmlite",
    "onnxruntime",
    "torch",
    "tensorflow",
    "keras",
    "ml_dtypes",
    "jinja2",
    "rich",
    "typer",
    "safetensors",
]


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_numpy_and_the_standard_library_only() -> None:
    code = (
        "import sys; before = set(sys.modules); import fusile; dir(fusile)\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names) - {'fusile', 'numpy'}))"
    )
    assert python(code).split() == []


@pytest.mark.parametrize("name", ["InferenceSession", "SessionOptions", "OrtValue", "compile", "Options"])
def test_names_load_nothing_heavy(name: str) -> None:
    code = f"import sys, fusile; fusile.{name}; print(*(m for m in {HEAVY} if m in sys.modules))"
    assert python(code).split() == []


def test_every_public_name_is_there() -> None:
    import fusile

    for name in dir(fusile):
        assert getattr(fusile, name) is not None or name in ("__file__",)
    with pytest.raises(AttributeError, match="no_such_name"):
        fusile.no_such_name  # type: ignore[attr-defined]  # noqa: B018


def test_fusile_takes_onnxruntimes_name() -> None:
    code = """
import fusile
module = fusile.as_onnxruntime()
import importlib.util, onnxruntime, onnxruntime as ort
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.capi import _pybind_state as C
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, NoSuchFile
assert ort is module is fusile.as_onnxruntime()
assert InferenceSession is fusile.InferenceSession is C.InferenceSession
assert tuple(map(int, ort.__version__.split("."))) > (1, 20)
assert importlib.util.find_spec("onnxruntime") is not None
assert ort.__file__.endswith("as_onnxruntime.py") and ort.capi.__file__
try:
    import onnxruntime.quantization
except ModuleNotFoundError:
    pass
try:
    InferenceSession("/nowhere.onnx")
except NoSuchFile as error:
    print(error)
"""
    assert python(code).startswith("[ONNXRuntimeError] : 3 : NO_SUCHFILE")


def test_the_name_is_not_taken_from_the_real_one() -> None:
    code = """
import onnxruntime, fusile
try:
    fusile.as_onnxruntime()
except fusile.UsageError as error:
    print(error)
"""
    assert "imported already" in python(code)


def test_verify_does_not_compare_fusile_with_itself() -> None:
    code = """
import fusile
fusile.as_onnxruntime()
from fusile.tools.engines import onnxruntime
try:
    onnxruntime()
except fusile.UsageError as error:
    print(error)
"""
    assert "no reference" in python(code)


def test_scripts_run_with_the_name_taken(tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(
        "import sys, onnxruntime, helper\n"
        "print(onnxruntime.InferenceSession.__module__, sys.argv[1:], __name__)\n"
    )
    (tmp_path / "helper.py").write_text("")
    command = [sys.executable, "-m", "fusile.as_onnxruntime", str(script), "--flag", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "fusile.session ['--flag', '1'] __main__", done.stderr
    done = subprocess.run(
        [*command[:3], "nowhere.py"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, "no script" in done.stderr) == (2, True)


def test_a_compilation_does_not_import_sympy(small_path: Path) -> None:
    code = """
import sys, fusile
fusile.check(sys.argv[1]), fusile.compile(sys.argv[1])
assert "onnx_ir" in sys.modules and "sympy" not in sys.modules
import onnx_ir, sympy
dim = onnx_ir.SymbolicDim("max(a, 3)") + 2
print(dim, isinstance(dim._expr, sympy.Expr), sympy.__version__ != "")
"""
    pytest.importorskip("sympy")
    assert python(code, str(small_path)).split()[-2:] == ["True", "True"]


def test_a_check_imports_nothing_that_compiles(small_path: Path) -> None:
    code = """
import sys, fusile
assert fusile.check(sys.argv[1]).supported
parts = "driver", "building", "schedule", "backends.native.build", "passes.lower", "host"
print([part for part in parts if f"fusile.{part}" in sys.modules])
"""
    assert python(code, str(small_path)).strip() == "[]"


def test_every_name_of_onnxruntime_is_there() -> None:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    from fusile.as_onnxruntime import face

    made = face()
    own = {"contextlib", "import_capi_exception", "DeviceReset"}
    for real, name in ((onnxruntime, "onnxruntime"), (state, "onnxruntime.capi.onnxruntime_pybind11_state")):
        missing = [n for n in dir(real) if n[0] != "_" and n not in own and not hasattr(made[name], n)]
        assert missing == [], name
    for kind in ("SessionOptions", "RunOptions", "IOBinding", "OrtValue", "OrtDevice", "InferenceSession"):
        real, mine = getattr(onnxruntime, kind), getattr(made["onnxruntime"], kind)
        missing = [n for n in dir(real) if n[0] != "_" and not hasattr(mine, n)]
        assert missing == [], kind


def test_what_fusile_has_not_says_so_when_it_is_used() -> None:
    from fusile.as_onnxruntime import face
    from fusile.session_errors import NotImplemented as Refusal

    made = face()["onnxruntime"]
    for name in ("LoraAdapter", "ModelCompiler", "SparseTensor", "register_execution_provider_library"):
        with pytest.raises(Refusal, match=f"fusile has no {name}"):
            getattr(made, name)("x")
    with pytest.raises(Refusal, match="fusile has no SparseTensor"):
        made.SparseTensor.sparse_coo_from_numpy([2], [1.0], [0], None)
