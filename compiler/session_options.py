"""SessionOptions, RunOptions and the enumerations of the session face, as onnxruntime has them."""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

from fusile import session_errors
from fusile.errors import UsageError
from fusile.options import Denormals, Options, OptLevel, Precision, Target

T = TypeVar("T")

LOGGER = logging.getLogger("fusile")


class GraphOptimizationLevel(enum.Enum):
    """How far a model is optimised. EXTENDED and LAYOUT mean ALL."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99

    def __int__(self) -> int:
        return self.value

    @property
    def opt_level(self) -> OptLevel:
        """The compiler's level: plain loops, tiled kernels, or tiled and fused ones."""
        match self:
            case GraphOptimizationLevel.ORT_DISABLE_ALL:
                return 0
            case GraphOptimizationLevel.ORT_ENABLE_BASIC:
                return 1
            case _:
                return 2


class ExecutionMode(enum.Enum):
    """Taken for compatibility: kernels run one after the other, each on all threads."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1

    def __int__(self) -> int:
        return self.value


class ExecutionOrder(enum.Enum):
    """Taken for compatibility: the order is the compiler's."""

    DEFAULT = 0
    PRIORITY_BASED = 1
    MEMORY_EFFICIENT = 2

    def __int__(self) -> int:
        return self.value


class _Setting(Generic[T]):
    """An attribute of one type with a default. A value of another type is a TypeError."""

    def __init__(self, kind: type[T], default: T) -> None:
        self.kind = kind
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, holder: None, owner: type) -> _Setting[T]: ...
    @overload
    def __get__(self, holder: _Settings, owner: type) -> T: ...
    def __get__(self, holder: _Settings | None, owner: type) -> T | _Setting[T]:
        return self if holder is None else holder._values.get(self.name, self.default)

    def __set__(self, holder: _Settings, value: T) -> None:
        if self.kind is int and not isinstance(value, bool) and hasattr(value, "__index__"):
            holder._values[self.name] = value.__index__()
        elif isinstance(value, self.kind):
            holder._values[self.name] = value
        else:
            raise TypeError(
                f"{self.name} takes a value of type {self.kind.__name__}, not {value!r} of type "
                f"{type(value).__name__}"
            )


class _Settings:
    """Holds the values of its settings and a table of free-form entries. Other attributes do not exist."""

    __slots__ = ("_entries", "_values")

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._entries: dict[str, str] = {}

    def _entry(self, key: str) -> str:
        if key not in self._entries:
            raise RuntimeError(f"{type(self).__name__} does not have configuration with key: {key}")
        return self._entries[key]


class SessionOptions(_Settings):
    """How a session is built: onnxruntime's options, and `precision` ("fp32" or "bf16").

    Options about memory patterns, arenas and executors are taken and mean nothing here; those that ask
    for something fusile does not do are refused when the session is made.
    """

    __slots__ = ("_denotations", "_dims", "_initializers", "_providers")

    enable_cpu_mem_arena = _Setting(bool, True)
    enable_mem_pattern = _Setting(bool, True)
    enable_mem_reuse = _Setting(bool, True)
    enable_profiling = _Setting(bool, False)
    execution_mode = _Setting(ExecutionMode, ExecutionMode.ORT_SEQUENTIAL)
    execution_order = _Setting(ExecutionOrder, ExecutionOrder.DEFAULT)
    graph_optimization_level = _Setting(GraphOptimizationLevel, GraphOptimizationLevel.ORT_ENABLE_ALL)
    inter_op_num_threads = _Setting(int, 0)
    intra_op_num_threads = _Setting(int, 0)
    log_severity_level = _Setting(int, -1)
    log_verbosity_level = _Setting(int, 0)
    logid = _Setting(str, "")
    optimized_model_filepath = _Setting(str, "")
    profile_file_prefix = _Setting(str, "onnxruntime_profile_")
    use_deterministic_compute = _Setting(bool, False)
    use_per_session_threads = _Setting(bool, True)
    precision = _Setting(str, "fp32")

    def __init__(self) -> None:
        super().__init__()
        self._dims: dict[str, int] = {}
        self._denotations: dict[str, int] = {}
        self._initializers: dict[str, Any] = {}
        self._providers: dict[str, dict[str, str]] = {}

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        """Fix a symbolic dimension to a size."""
        self._dims[str(name)] = int(size)

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Set a free-form entry; `session.set_denormal_as_zero` "0" keeps denormals, others do nothing."""
        self._entries[str(key)] = str(value)

    def get_session_config_entry(self, key: str) -> str:
        """The value of a free-form entry. Raises RuntimeError where it was not set."""
        return self._entry(key)

    def add_free_dimension_override_by_denotation(self, denotation: str, size: int) -> None:
        """Fix the dimensions that the model gives a denotation (such as DATA_BATCH) to a size."""
        self._denotations[str(denotation)] = int(size)

    def add_initializer(self, name: str, value: Any) -> None:
        """Put an OrtValue in the place of an initialiser. The session is compiled with it."""
        self._initializers[str(name)] = value

    def add_external_initializers(self, names: Sequence[str], values: Sequence[Any]) -> None:
        """Give the data of initialisers that the model keeps in other files, as OrtValues."""
        if len(names) != len(values):
            raise session_errors.InvalidArgument("Expecting names and values to have equal length")
        self._initializers.update(zip(map(str, names), values))

    def add_external_initializers_from_files_in_memory(
        self, names: Sequence[str], buffers: Sequence[Any], lengths: Sequence[int]
    ) -> None:
        """Refused: data beside a model are read from its folder."""
        raise session_errors.NotImplemented(
            f"Files in memory ({', '.join(map(str, names))}) are not read: give the model's path, or "
            "add_external_initializers with the tensors"
        )

    def add_provider(self, name: str, options: Mapping[str, str]) -> None:
        """Name a provider here instead of when the session is made."""
        self._providers[str(name)] = {str(key): str(value) for key, value in options.items()}

    def add_provider_for_devices(self, devices: Sequence[Any], options: Mapping[str, str]) -> None:
        """Refused: there are no devices to pick (`get_ep_devices` is empty)."""
        raise session_errors.InvalidArgument("No devices of providers are there: name the provider instead")

    def set_provider_selection_policy(self, policy: int) -> None:
        """Taken and not used: providers are named, and the first that can run is used."""

    def set_provider_selection_policy_delegate(self, delegate: object) -> None:
        """Taken and not used, as `set_provider_selection_policy`."""

    def set_ep_context_data_read_func(self, function: object) -> None:
        """Taken and not used: no model here holds contexts of providers."""

    def clear_ep_context_data_read_func(self) -> None:
        """Nothing to clear."""

    def set_load_cancellation_flag(self, value: bool) -> None:
        """Taken and not used: loading a model that was compiled before takes no time to cancel."""

    def register_custom_ops_library(self, path: str) -> None:
        """Refused: libraries of onnxruntime operators cannot be called."""
        raise session_errors.NotImplemented(
            f"The operator library {path!r} is written for onnxruntime, and fusile calls no foreign kernels: "
            "give the model a local function for the operator"
        )

    def has_providers(self) -> bool:
        """Whether providers were named here."""
        return bool(self._providers)

    def to_options(self, target: Target, seed: int) -> Options:
        """What the compiler is asked for. Raises UsageError for what it cannot do."""
        if self.optimized_model_filepath:
            raise UsageError(
                "optimized_model_filepath cannot be written",
                why="the compiled form is machine code, not an ONNX file",
                todo="Use fusile.compile(model).save(path)",
            )
        threads = self.intra_op_num_threads
        precision: Precision = self.precision  # type: ignore[assignment]  # Options checks it
        denormals: Denormals = "keep" if self._entries.get("session.set_denormal_as_zero") == "0" else "flush"
        return Options(
            target=target,
            dims=self._dims,
            threads=threads if threads > 0 else None,
            precision=precision,
            opt_level=self.graph_optimization_level.opt_level,
            denormals=denormals,
            seed=seed,
        )


class RunOptions(_Settings):
    """Options of one run. `terminate` makes the run fail before it starts."""

    __slots__ = ()

    log_severity_level = _Setting(int, -1)
    log_verbosity_level = _Setting(int, 0)
    logid = _Setting(str, "")
    only_execute_path_to_fetches = _Setting(bool, False)
    terminate = _Setting(bool, False)

    def add_active_adapter(self, adapter: object) -> None:
        """Refused: weights are an input of compilation."""
        raise session_errors.NotImplemented(
            "Adapters cannot be switched in a run: compile the adapted weights with "
            "fusile.compile(model, weights=...)"
        )

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Set a free-form entry; none changes a run."""
        self._entries[str(key)] = str(value)

    def get_run_config_entry(self, key: str) -> str:
        """The value of a free-form entry. Raises RuntimeError where it was not set."""
        return self._entry(key)


_LEVELS: Mapping[int, int] = {
    0: logging.DEBUG,
    1: logging.INFO,
    2: logging.WARNING,
    3: logging.ERROR,
    4: logging.CRITICAL,
}


def set_default_logger_severity(level: int) -> None:
    """How much the logger `fusile` says: 0 everything, 1 information, 2 warnings, 3 errors, 4 fatal ones."""
    if level not in _LEVELS:
        raise RuntimeError(f"Invalid logger severity {level}: it is none of 0 to 4")
    LOGGER.setLevel(_LEVELS[level])


def set_default_logger_verbosity(level: int) -> None:
    """Verbosity within level 0: anything above 0 says everything."""
    if level > 0:
        LOGGER.setLevel(logging.DEBUG)
