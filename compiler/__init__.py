"""fusile: compile ONNX models to native modules, Numba kernels, PyTorch and Keras source.

    m = fusile.compile("model.onnx");  y, = m(x)            a compiled module, called with numpy arrays
    fusile.emit("model.onnx", to="torch", out="folder/")    source code to read, change and train
    fusile.InferenceSession("model.onnx").run(None, feeds)  onnxruntime's interface

Importing this loads numpy and the standard library; everything else loads when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from fusile.api import bench as bench
    from fusile.api import check as check
    from fusile.api import compile as compile
    from fusile.api import emit as emit
    from fusile.api import explain as explain
    from fusile.api import load as load
    from fusile.api import verify as verify
    from fusile.errors import DifferenceError as DifferenceError
    from fusile.errors import FusileError as FusileError
    from fusile.errors import InvalidModelError as InvalidModelError
    from fusile.errors import RunError as RunError
    from fusile.errors import UnsafeModelError as UnsafeModelError
    from fusile.errors import UnsupportedError as UnsupportedError
    from fusile.errors import UsageError as UsageError
    from fusile.options import Options as Options
    from fusile.session import InferenceSession as InferenceSession
    from fusile.session import ModelMetadata as ModelMetadata
    from fusile.session import NodeArg as NodeArg
    from fusile.session import disable_telemetry_events as disable_telemetry_events
    from fusile.session import enable_telemetry_events as enable_telemetry_events
    from fusile.session import get_all_providers as get_all_providers
    from fusile.session import get_available_providers as get_available_providers
    from fusile.session import get_build_info as get_build_info
    from fusile.session import get_device as get_device
    from fusile.session import get_version_string as get_version_string
    from fusile.session import has_collective_ops as has_collective_ops
    from fusile.session import preload_dlls as preload_dlls
    from fusile.session import set_seed as set_seed
    from fusile.session_options import ExecutionMode as ExecutionMode
    from fusile.session_options import ExecutionOrder as ExecutionOrder
    from fusile.session_options import GraphOptimizationLevel as GraphOptimizationLevel
    from fusile.session_options import RunOptions as RunOptions
    from fusile.session_options import SessionOptions as SessionOptions
    from fusile.session_options import set_default_logger_severity as set_default_logger_severity
    from fusile.session_options import set_default_logger_verbosity as set_default_logger_verbosity
    from fusile.session_system import OrtAllocatorType as OrtAllocatorType
    from fusile.session_system import OrtArenaCfg as OrtArenaCfg
    from fusile.session_system import OrtCompileApiFlags as OrtCompileApiFlags
    from fusile.session_system import OrtDeviceMemoryType as OrtDeviceMemoryType
    from fusile.session_system import OrtDeviceVendorId as OrtDeviceVendorId
    from fusile.session_system import OrtExecutionProviderDevicePolicy as OrtExecutionProviderDevicePolicy
    from fusile.session_system import OrtHardwareDeviceType as OrtHardwareDeviceType
    from fusile.session_system import OrtMemoryInfo as OrtMemoryInfo
    from fusile.session_system import OrtMemoryInfoDeviceType as OrtMemoryInfoDeviceType
    from fusile.session_system import OrtMemType as OrtMemType
    from fusile.session_system import OrtSparseFormat as OrtSparseFormat
    from fusile.session_system import OrtValueVector as OrtValueVector
    from fusile.session_system import copy_tensors as copy_tensors
    from fusile.session_system import create_and_register_allocator as create_and_register_allocator
    from fusile.session_system import create_and_register_allocator_v2 as create_and_register_allocator_v2
    from fusile.session_system import get_ep_devices as get_ep_devices
    from fusile.session_system import set_default_logger_callback as set_default_logger_callback
    from fusile.session_system import set_global_thread_pool_sizes as set_global_thread_pool_sizes
    from fusile.session_values import IOBinding as IOBinding
    from fusile.session_values import OrtDevice as OrtDevice
    from fusile.session_values import OrtValue as OrtValue

    capi: ModuleType

    def as_onnxruntime() -> ModuleType: ...


__version__ = "0.2.0"

_HOMES: dict[str, str] = {
    name: home
    for home, names in {
        "api": "compile check emit explain load verify bench",
        "errors": "FusileError UsageError UnsupportedError UnsafeModelError InvalidModelError RunError "
        "DifferenceError",
        "options": "Options",
        "session": "InferenceSession NodeArg ModelMetadata get_available_providers get_all_providers "
        "get_device get_version_string get_build_info has_collective_ops set_seed preload_dlls "
        "enable_telemetry_events disable_telemetry_events",
        "session_options": "SessionOptions RunOptions GraphOptimizationLevel ExecutionMode ExecutionOrder "
        "set_default_logger_severity set_default_logger_verbosity",
        "session_system": "OrtAllocatorType OrtArenaCfg OrtCompileApiFlags OrtDeviceMemoryType "
        "OrtDeviceVendorId OrtExecutionProviderDevicePolicy OrtHardwareDeviceType OrtMemType OrtMemoryInfo "
        "OrtMemoryInfoDeviceType OrtSparseFormat OrtValueVector copy_tensors create_and_register_allocator "
        "create_and_register_allocator_v2 get_ep_devices set_default_logger_callback "
        "set_global_thread_pool_sizes",
        "session_values": "OrtValue OrtDevice IOBinding",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    """Load what is asked for, and keep it."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"fusile.{_HOMES[name]}"), name)
    elif name == "as_onnxruntime":
        return importlib.import_module("fusile.as_onnxruntime")
    elif name == "capi":
        value = importlib.import_module("fusile.as_onnxruntime").face()["onnxruntime.capi"]
    else:
        raise AttributeError(f"module 'fusile' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "as_onnxruntime", "capi"})
