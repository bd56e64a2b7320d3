"""fusile under the name `onnxruntime`, for programs that import it.

`fusile.as_onnxruntime()` puts the session face into `sys.modules`, before anybody imports the real one.
`python -m fusile.as_onnxruntime SCRIPT ARGUMENTS` (or `-m MODULE`) runs a program that way, unchanged.

The name is taken in one process: children that are forked inherit it, but those that multiprocessing spawns
import the real onnxruntime. Of onnxruntime's packages only the session face is there: importing its
quantization, training, tools or transformers raises ModuleNotFoundError.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from fusile import session, session_errors, session_options, session_system, session_values
from fusile.errors import UsageError

_FACE: Mapping[str, Any] = {
    name: getattr(home, name)
    for home, names in (
        (
            session,
            "InferenceSession NodeArg ModelMetadata get_available_providers get_all_providers get_device "
            "get_version_string get_build_info has_collective_ops set_seed enable_telemetry_events "
            "disable_telemetry_events preload_dlls",
        ),
        (
            session_options,
            "SessionOptions RunOptions GraphOptimizationLevel ExecutionMode ExecutionOrder "
            "set_default_logger_severity set_default_logger_verbosity",
        ),
        (session_values, "OrtValue OrtDevice IOBinding"),
        (
            session_system,
            "OrtAllocatorType OrtMemType OrtDeviceMemoryType OrtSparseFormat OrtHardwareDeviceType "
            "OrtMemoryInfoDeviceType OrtCompileApiFlags OrtExecutionProviderDevicePolicy OrtDeviceVendorId "
            "ModelPackageWriteMode OrtArenaCfg OrtMemoryInfo OrtValueVector copy_tensors get_ep_devices "
            "set_global_thread_pool_sizes create_and_register_allocator create_and_register_allocator_v2 "
            "set_default_logger_callback",
        ),
    )
    for name in names.split()
} | dict(session_system.ABSENT)
_ERRORS: Mapping[str, Any] = {error.__name__: error for error in session_errors.ERRORS}
_STATE: Mapping[str, Any] = {
    "SessionIOBinding": session_values.IOBinding,
    "get_default_session_options": session_options.SessionOptions,
    "get_session_initializer": lambda: None,
    "get_hardware_devices": list,
    "ArenaExtendStrategy": session_system.ArenaExtendStrategy,
    "OrtCompiledModelCompatibility": session_system.OrtCompiledModelCompatibility,
    "OrtDeviceEpIncompatibilityReason": session_system.OrtDeviceEpIncompatibilityReason,
    **{member.name: member for member in session_system.ArenaExtendStrategy},
}
_COLLECTION = (
    "InferenceSession OrtValue OrtDevice IOBinding SparseTensor ModelCompiler AdapterFormat copy_tensors "
    "OrtDeviceVendorId"
).split()


def face() -> dict[str, ModuleType]:
    """The modules of the face by the names they are to be imported under."""
    state = _module("onnxruntime.capi.onnxruntime_pybind11_state", {**_FACE, **_STATE, **_ERRORS})
    collection = _module(
        "onnxruntime.capi.onnxruntime_inference_collection", {name: _FACE[name] for name in _COLLECTION}
    )
    collection.Session = session.InferenceSession  # type: ignore[attr-defined]
    collection.C = state  # type: ignore[attr-defined]
    pybind = _module("onnxruntime.capi._pybind_state", {**_FACE, **_STATE, **_ERRORS})
    validation = _module(
        "onnxruntime.capi.onnxruntime_validation",
        {
            "check_distro_info": lambda: None,
            "get_package_name_and_version_info": lambda: ("fusile", session.FOLLOWED_VERSION, None),
        },
    )
    inner = {
        "onnxruntime_pybind11_state": state,
        "onnxruntime_inference_collection": collection,
        "_pybind_state": pybind,
        "onnxruntime_validation": validation,
    }
    capi = _module("onnxruntime.capi", inner, package=True)
    outer = {
        **_FACE,
        "capi": capi,
        "__version__": session.FOLLOWED_VERSION,
        "SessionIOBinding": _FACE["IOBinding"],
        "version": session.FOLLOWED_VERSION,
        "package_name": "fusile",
        "cuda_version": None,
        "onnxruntime_validation": validation,
        "print_debug_info": lambda: print(session.get_build_info()),
    }
    top = _module("onnxruntime", outer, package=True)
    return {module.__name__: module for module in (top, capi, *inner.values())}


def as_onnxruntime() -> ModuleType:
    """Let `import onnxruntime` give fusile's session face in this process; the module is returned.

    Raises UsageError where the real onnxruntime has been imported already. Calling it again changes
    nothing.
    """
    present = sys.modules.get("onnxruntime")
    if present is not None:
        if is_face(present):
            return present
        raise UsageError(
            "onnxruntime has been imported already",
            where=str(getattr(present, "__file__", "")),
            todo="Call fusile.as_onnxruntime() before anything imports onnxruntime",
        )
    modules = face()
    sys.modules.update(modules)
    return modules["onnxruntime"]


def is_face(module: ModuleType) -> bool:
    """Whether a module called onnxruntime is fusile's face and not the real one."""
    return getattr(module, "InferenceSession", None) is session.InferenceSession


def _module(name: str, content: Mapping[str, Any], package: bool = False) -> ModuleType:
    module = ModuleType(name, "fusile's session face under onnxruntime's name.")
    module.__spec__ = ModuleSpec(name, loader=None, origin=__file__, is_package=package)
    module.__file__ = __file__  # programs print where the package lies, or look beside it
    if package:
        module.__path__ = []
    module.__dict__.update(content)
    return module


class _Callable(ModuleType):
    """Makes `fusile.as_onnxruntime` both this module, for `python -m`, and the function of the same name."""

    def __call__(self) -> ModuleType:
        return as_onnxruntime()


sys.modules[__name__].__class__ = _Callable


def main(arguments: list[str]) -> int:
    """Run a script, or a module after `-m`, with onnxruntime's name taken."""
    if not arguments or arguments[0] in ("-h", "--help") or arguments == ["-m"]:
        print("usage: python -m fusile.as_onnxruntime (SCRIPT | -m MODULE) [ARGUMENTS ...]", file=sys.stderr)
        return 0 if arguments and arguments[0] != "-m" else 2
    as_onnxruntime()
    if arguments[0] == "-m":
        if importlib.util.find_spec(arguments[1]) is None:
            print(f"fusile: there is no module {arguments[1]!r}", file=sys.stderr)
            return 2
        sys.argv = arguments[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return 0
    script = Path(arguments[0])
    if not script.is_file():
        print(f"fusile: there is no script {str(script)!r}", file=sys.stderr)
        return 2
    sys.argv = arguments
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
