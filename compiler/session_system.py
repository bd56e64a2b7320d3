"""The rest of onnxruntime's names: enumerations, memory descriptions, devices, and what fusile has not.

Programs import these or look them up; few call them. What can have a meaning here has it; the others say
clearly that fusile has no such thing when they are called, not when they are imported.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusile.session_errors import NotImplemented as Refusal
from fusile.session_options import LOGGER
from fusile.session_values import OrtValue


def _enumeration(name: str, members: Mapping[str, int]) -> type[enum.IntEnum]:
    made = enum.IntEnum(name, dict(members))  # type: ignore[misc]  # the members come from a table
    made.__module__ = __name__
    return made


OrtAllocatorType = _enumeration(
    "OrtAllocatorType", {"INVALID": -1, "ORT_DEVICE_ALLOCATOR": 0, "ORT_ARENA_ALLOCATOR": 1}
)
OrtMemType = _enumeration("OrtMemType", {"CPU_INPUT": -2, "CPU_OUTPUT": -1, "CPU": -1, "DEFAULT": 0})
OrtDeviceMemoryType = _enumeration("OrtDeviceMemoryType", {"DEFAULT": 0, "HOST_ACCESSIBLE": 5})
OrtSparseFormat = _enumeration(
    "OrtSparseFormat",
    {"ORT_SPARSE_UNDEFINED": 0, "ORT_SPARSE_COO": 1, "ORT_SPARSE_CSRC": 2, "ORT_SPARSE_BLOCK_SPARSE": 4},
)
OrtHardwareDeviceType = _enumeration("OrtHardwareDeviceType", {"CPU": 0, "GPU": 1, "NPU": 2})
OrtMemoryInfoDeviceType = _enumeration("OrtMemoryInfoDeviceType", {"CPU": 0, "GPU": 1, "NPU": 3, "FPGA": 2})
OrtCompileApiFlags = _enumeration(
    "OrtCompileApiFlags", {"NONE": 0, "ERROR_IF_NO_NODES_COMPILED": 1, "ERROR_IF_OUTPUT_FILE_EXISTS": 2}
)
OrtExecutionProviderDevicePolicy = _enumeration(
    "OrtExecutionProviderDevicePolicy",
    {
        "DEFAULT": 0,
        "PREFER_CPU": 1,
        "PREFER_NPU": 2,
        "PREFER_GPU": 3,
        "MAX_PERFORMANCE": 4,
        "MAX_EFFICIENCY": 5,
        "MIN_OVERALL_POWER": 6,
    },
)
ModelPackageWriteMode = _enumeration("ModelPackageWriteMode", {"PRESERVE": 0, "DENSE": 1})
ArenaExtendStrategy = _enumeration("ArenaExtendStrategy", {"kNextPowerOfTwo": 0, "kSameAsRequested": 1})
OrtCompiledModelCompatibility = _enumeration(
    "OrtCompiledModelCompatibility",
    {
        "EP_NOT_APPLICABLE": 0,
        "EP_SUPPORTED_OPTIMAL": 1,
        "EP_SUPPORTED_PREFER_RECOMPILATION": 2,
        "EP_UNSUPPORTED": 3,
    },
)
OrtDeviceEpIncompatibilityReason = _enumeration(
    "OrtDeviceEpIncompatibilityReason",
    {
        "NONE": 0,
        "DRIVER_INCOMPATIBLE": 1,
        "DEVICE_INCOMPATIBLE": 2,
        "MISSING_DEPENDENCY": 4,
        "UNKNOWN": -(1 << 31),
    },
)
OrtDeviceVendorId = _enumeration(
    "OrtDeviceVendorId",
    {
        "NONE": 0x0000,
        "AMD": 0x1002,
        "NVIDIA": 0x10DE,
        "ARM": 0x13B5,
        "MICROSOFT": 0x1414,
        "HUAWEI": 0x19E5,
        "QUALCOMM": 0x5143,
        "INTEL": 0x8086,
    },
)


class OrtArenaCfg:
    """How an arena would grow. fusile's plans have their memory laid out, so it is taken and not used."""

    def __init__(
        self,
        max_mem: int | Mapping[str, int] = 0,
        arena_extend_strategy: int = -1,
        initial_chunk_size_bytes: int = -1,
        max_dead_bytes_per_chunk: int = -1,
    ) -> None:
        given = dict(max_mem) if isinstance(max_mem, Mapping) else {"max_mem": int(max_mem)}
        self.max_mem = given.get("max_mem", 0)
        self.arena_extend_strategy = given.get("arena_extend_strategy", arena_extend_strategy)
        self.initial_chunk_size_bytes = given.get("initial_chunk_size_bytes", initial_chunk_size_bytes)
        self.max_dead_bytes_per_chunk = given.get("max_dead_bytes_per_chunk", max_dead_bytes_per_chunk)
        self.initial_growth_chunk_size_bytes = given.get("initial_growth_chunk_size_bytes", -1)
        self.max_power_of_two_extend_bytes = given.get("max_power_of_two_extend_bytes", -1)


class OrtMemoryInfo:
    """Where memory lies: here always the CPU's."""

    def __init__(self, name: str, allocator_type: int, device_id: int, mem_type: int) -> None:
        self.name = name
        self.allocator_type = OrtAllocatorType(allocator_type)
        self.device_id = device_id
        self.mem_type = OrtMemType(mem_type)
        self.device_mem_type = OrtDeviceMemoryType["DEFAULT"]
        self.device_vendor_id = 0


def cpu_memory() -> OrtMemoryInfo:
    """The memory that inputs and outputs of sessions are in."""
    return OrtMemoryInfo("Cpu", 0, 0, 0)


class OrtValueVector(list[OrtValue]):
    """Values in a row, as `run_with_ortvaluevector` takes and fills them."""

    push_back = list.append

    def reserve(self, count: int) -> None:
        """Nothing to do: the list grows by itself."""

    def shrink_to_fit(self) -> None:
        """Nothing to do."""


def copy_tensors(src: Sequence[OrtValue], dst: Sequence[OrtValue], stream: Any = None) -> None:
    """Copy tensors into others of the same size. Raises RuntimeError where a size differs."""
    if len(src) != len(dst):
        raise RuntimeError(f"copy_tensors takes as many targets as sources, not {len(dst)} for {len(src)}")
    for value, target in zip(src, dst):
        target.update_inplace(value.numpy())


def get_ep_devices() -> list[Any]:
    """None: providers are not devices that can be picked one by one."""
    return []


def set_global_thread_pool_sizes(intra_op_num_threads: int = 0, inter_op_num_threads: int = 0) -> None:
    """Taken and not used: a session says how many threads it works on, and all share the process's pool."""


def create_and_register_allocator(memory: OrtMemoryInfo, arena: OrtArenaCfg | None = None) -> None:
    """Taken and not used: a plan's memory is laid out when it is compiled."""


def create_and_register_allocator_v2(
    provider: str, memory: OrtMemoryInfo, options: Mapping[str, str], arena: OrtArenaCfg | None = None
) -> None:
    """Taken and not used, as `create_and_register_allocator`."""


class _Told(logging.Handler):
    def __init__(self, callback: Callable[..., None]) -> None:
        super().__init__()
        self.callback = callback

    def emit(self, record: logging.LogRecord) -> None:
        severity = min(4, max(0, record.levelno // 10 - 1))
        self.callback(
            severity, record.name, "fusile", f"{record.filename}:{record.lineno}", record.getMessage()
        )


def set_default_logger_callback(callback: Callable[..., None] | None, severity: int = 2) -> None:
    """Hand what the logger `fusile` says to a function of severity, category, id, place and text; None ends
    that.
    """
    from fusile.session_options import set_default_logger_severity

    for handler in [handler for handler in LOGGER.handlers if isinstance(handler, _Told)]:
        LOGGER.removeHandler(handler)
    set_default_logger_severity(severity)
    if callback is not None:
        LOGGER.addHandler(_Told(callback))


class _AbsentType(type):
    """Lets the class methods of what is absent say so too."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return cls


class _Absent(metaclass=_AbsentType):
    """Something of onnxruntime's that fusile has not. Making one, or calling it, says so."""

    why = ""

    def __init__(self, *arguments: object, **named: object) -> None:
        raise Refusal(f"fusile has no {type(self).__name__}: {self.why}")


_ABSENT: Mapping[str, str] = {
    "AdapterFormat LoraAdapter": "give the model its adapted weights with fusile.compile(model, weights=...)",
    "ModelCompiler ModelPackage ModelPackageComponentContext ModelPackageContext ModelPackageOptions "
    "get_compatibility_info_from_model get_compatibility_info_from_model_bytes": (
        "fusile.compile(model).save(path) writes compiled models"
    ),
    "OrtEpAssignedNode OrtEpAssignedSubgraph OrtEpContextData OrtEpContextDataBuffer OrtEpDevice "
    "OrtHardwareDevice OrtSyncStream OrtExternalInitializerInfo "
    "get_hardware_device_ep_incompatibility_details get_model_compatibility_for_ep_devices "
    "SessionObjectInitializer": ("its providers are targets of the compiler"),
    "SparseTensor SparseCooView SparseCsrView SparseBlockSparseView": "feed the tensor dense",
    "register_execution_provider_library unregister_execution_provider_library": (
        "its providers are targets of the compiler, and foreign libraries cannot be called"
    ),
    "get_all_operator_schema get_all_opkernel_def get_registered_ep_kernel_defs opkernel schemadef": (
        "docs/support.md lists the operators, and `fusile check` says what a model needs"
    ),
    "quantize_matmul_2bits quantize_matmul_4bits quantize_matmul_8bits quantize_matmul_bnb4 "
    "quantize_qdq_matmul_2bits quantize_qdq_matmul_4bits pack_fp4_weights_for_cuda_moe_gemm": (
        "quantise with onnxruntime and compile the model that it writes"
    ),
}
ABSENT: Mapping[str, type] = {
    name: type(name, (_Absent,), {"why": why, "__module__": __name__})
    for names, why in _ABSENT.items()
    for name in names.split()
}
"""Names that can be imported and not used."""
