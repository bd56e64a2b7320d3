"""InferenceSession and its surroundings: onnxruntime's names and behaviour over compiled modules.

Programs written against onnxruntime run with `import fusile as ort`, or unchanged under
`fusile.as_onnxruntime()`. Where the two differ, docs/decisions.md says why.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fusile.errors import FusileError, RunError, UnknownDimensionError
from fusile.options import Target
from fusile.report import silent
from fusile.runtime.module import Module, Port, Value
from fusile.session_errors import EPFail, Fail, InvalidArgument, NoSuchFile, load_error, run_error
from fusile.session_options import RunOptions, SessionOptions
from fusile.session_system import OrtMemoryInfo, cpu_memory
from fusile.session_values import IOBinding, OrtValue

FOLLOWED_VERSION = "1.32.0"
"""The onnxruntime release whose behaviour this face follows."""

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_TARGETS: Mapping[str, Target] = {CPU: "native", CUDA: "cuda"}

_NO_VERSION = 2**63 - 1
"""What onnxruntime answers for a model that does not say its version."""

ProviderOptions = dict[Any, Any]
Provider = str | tuple[str, ProviderOptions]


class _Seed:
    """What `set_seed` was last told; sessions made later start their random operators there."""

    value = 0


def set_seed(seed: int) -> None:
    """Seed the random operators of sessions made from now on."""
    _Seed.value = int(seed)


def get_available_providers() -> list[str]:
    """The providers that can run on this machine, the fastest first."""
    return [CUDA, CPU] if _cuda_works() else [CPU]


def get_all_providers() -> list[str]:
    """All providers there are, whether they can run here or not."""
    return [CUDA, CPU]


def get_device() -> str:
    """ "GPU" where CUDA kernels can run, else "CPU"."""
    return "GPU" if _cuda_works() else "CPU"


def get_version_string() -> str:
    """The onnxruntime release whose behaviour this face follows."""
    return FOLLOWED_VERSION


def get_build_info() -> str:
    """What stands behind the face."""
    return "fusile: compiled modules behind onnxruntime's interface"


def has_collective_ops() -> bool:
    """False: a session runs on one machine."""
    return False


def enable_telemetry_events() -> None:
    """There is no telemetry to enable."""


def disable_telemetry_events() -> None:
    """There is no telemetry to disable."""


def preload_dlls(cuda: bool = True, cudnn: bool = True, msvc: bool = True, directory: Any = None) -> None:
    """Nothing needs loading ahead of a session."""


def _cuda_works() -> bool:
    """Whether numba-cuda is installed and a device, or Numba's simulator, is there."""
    if importlib.util.find_spec("numba_cuda") is None:
        return False
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        return True
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except OSError:
        return False


@dataclass(frozen=True, eq=False)
class NodeArg:
    """An input or output: its name, ONNX's name of its type, and its dimensions."""

    name: str
    type: str
    shape: list[int | str | None]

    def __str__(self) -> str:
        return f"NodeArg(name={self.name!r}, type={self.type!r}, shape={self.shape!r})"


@dataclass(frozen=True, eq=False)
class ModelMetadata:
    """What the model says about itself."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


class InferenceSession:
    """A compiled model with onnxruntime's interface.

    Takes a path or the bytes of a model. `providers` chooses where it runs: CPUExecutionProvider is the
    native target, CUDAExecutionProvider the CUDA target. `run` may be called from any number of threads,
    and its answers are fresh arrays. Raises the errors of `fusile.capi.onnxruntime_pybind11_state`.
    """

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str],
        sess_options: SessionOptions | None = None,
        providers: Sequence[Provider] | None = None,
        provider_options: Sequence[ProviderOptions] | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(path_or_bytes, (bytes, bytearray, memoryview)):
            source: str | bytes = bytes(path_or_bytes)
            if not source:
                raise InvalidArgument("No graph was found in the protobuf.")
        elif isinstance(path_or_bytes, (str, os.PathLike)):
            source = os.fspath(path_or_bytes)
            if not os.path.exists(source):
                raise NoSuchFile(
                    f"Load model from {source} failed:Load model {source} failed. File doesn't exist"
                )
        else:
            raise TypeError(f"Unable to load from type '{type(path_or_bytes)}'")
        self._source = source
        self._options = SessionOptions() if sess_options is None else sess_options
        self._profile = (
            _Profile(self._options.profile_file_prefix) if self._options.enable_profiling else None
        )
        self._variants: dict[frozenset[str], Module] = {}
        try:
            chosen = _normalise(providers or list(self._options._providers.items()), provider_options)
        except ValueError as error:
            if not kwargs.get("enable_fallback", True):
                raise
            warnings.warn(f"{error} Falling back to {CPU}.", stacklevel=2)
            chosen = _normalise(None, None)
        self._build(*chosen)

    def _build(self, providers: list[str], provider_options: dict[str, ProviderOptions]) -> None:
        start = time.perf_counter()
        self._providers, self._provider_options = providers, provider_options
        self._module: Module = self._compile(frozenset())
        self._variants.clear()
        self._names = self._module.signature.names
        self._overridable = frozenset(name for name, _, _ in self._module.info.overridable)
        self._places = {port.name: place for place, port in enumerate(self._module.outputs)}
        if self._profile:
            named = isinstance(self._source, str)
            self._profile.add("model_loading_uri" if named else "model_loading_array", start)
            self._profile.add("session_initialization", start)

    def _compile(self, fed: frozenset[str]) -> Module:
        """The module of the model, with the initialisers in `fed` as inputs."""
        from fusile import artefacts
        from fusile.session_source import Edits, edited

        asked = self._options
        values = {name: _given(value) for name, value in asked._initializers.items()}
        edits = Edits(values, fed, asked._denotations)
        try:
            options = asked.to_options(_TARGETS[self._providers[0]], _Seed.value)
            source = edited(self._source, edits) if edits else self._source
            try:
                return artefacts.compile(source, options, silent)
            except UnknownDimensionError as error:  # overrides of names that the model has not mean nothing
                known = {name: size for name, size in options.dims.items() if name not in error.names}
                return artefacts.compile(source, replace(options, dims=known), silent)
        except FusileError as error:
            raise load_error(error, self._source) from error
        except OSError as error:  # a full disk, a cache that became unwritable
            raise Fail(f"The model could not be made ready: {error}") from error

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Value],
        run_options: RunOptions | None = None,
    ) -> list[Value]:
        """The named outputs (None: all of them) for the inputs by name, as a list.

        Raises ValueError where an input is missing, InvalidArgument for an unknown name or a wrong type
        or shape.
        """
        if run_options is not None and run_options.terminate:
            raise Fail("Exiting due to terminate flag being set to true.")
        start = time.perf_counter() if self._profile else 0.0
        try:
            feeds = [input_feed[name] for name in self._names]
        except (KeyError, TypeError):
            feeds = self._partial(input_feed)
        module = self._module
        if len(input_feed) != len(feeds):
            module = self._variant(input_feed)
            feeds = [input_feed.get(name) for name in module.signature.names]
        places = self._chosen(output_names) if output_names else None
        try:
            outputs = module.run(feeds)
        except RunError as error:
            raise run_error(error) from error
        if self._profile:
            self._profile.add("model_run", start)
        return outputs if places is None else [outputs[place] for place in places]

    def run_with_ort_values(
        self,
        output_names: Sequence[str] | None,
        input_dict_ort_values: Mapping[str, OrtValue],
        run_options: RunOptions | None = None,
    ) -> list[OrtValue]:
        """`run` on OrtValues, answering OrtValues."""
        feeds = {name: value._value for name, value in input_dict_ort_values.items()}
        return [OrtValue(answer) for answer in self.run(output_names, feeds, run_options)]

    def run_async(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Value],
        callback: Callable[[list[Value], Any, str], None],
        user_data: Any,
        run_options: RunOptions | None = None,
    ) -> None:
        """Run in a thread of its own and call back with the outputs, the user's data and an error text."""

        def work() -> None:
            try:
                outputs, error = self.run(output_names, input_feed, run_options), ""
            except Exception as failure:  # the callback is the only one who can be told
                outputs, error = [], str(failure)
            callback(outputs, user_data, error)

        threading.Thread(target=work, name="fusile-run-async").start()

    def run_with_ortvaluevector(
        self,
        run_options: RunOptions | None,
        feed_names: Sequence[str],
        feeds: Sequence[OrtValue],
        fetch_names: Sequence[str],
        fetches: list[OrtValue],
        fetch_devices: Any = None,
    ) -> None:
        """`run_with_ort_values` on values in a row; the answers are appended to `fetches`."""
        fetches += self.run_with_ort_values(fetch_names, dict(zip(feed_names, feeds)), run_options)

    def create_ortvalue_from_shape_and_type(
        self,
        shape: Sequence[int],
        element_type: Any,
        device_type: str,
        device_id: int = 0,
        vendor_id: int = -1,
    ) -> OrtValue:
        """A value of a shape and type with undefined contents."""
        return OrtValue.ortvalue_from_shape_and_type(shape, element_type, device_type, device_id)

    def io_binding(self) -> IOBinding:
        """A fresh set of bindings for `run_with_iobinding`."""
        return IOBinding(self)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: RunOptions | None = None) -> None:
        """Run on the bound inputs into the bound outputs."""
        iobinding.run(run_options)

    def get_inputs(self) -> list[NodeArg]:
        return [_node_arg(port) for port in self._module.inputs]

    def get_outputs(self) -> list[NodeArg]:
        return [_node_arg(port) for port in self._module.outputs]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """The initialisers that the model lists as inputs too. They are compiled in; the first run that feeds
        some compiles the model once more, with these as inputs.
        """
        return [NodeArg(name, kind, list(shape)) for name, kind, shape in self._module.info.overridable]

    def get_input_memory_infos(self) -> list[OrtMemoryInfo]:
        """Where each input lies: in the CPU's memory."""
        return [cpu_memory() for _ in self._module.inputs]

    def get_output_memory_infos(self) -> list[OrtMemoryInfo]:
        """Where each output lies: in the CPU's memory."""
        return [cpu_memory() for _ in self._module.outputs]

    def get_input_epdevices(self) -> list[None]:
        """None for each input: providers are not devices that can be picked."""
        return [None for _ in self._module.inputs]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        """Empty: one target computes all of the graph."""
        return []

    def get_tuning_results(self) -> list[Any]:
        """Empty: schedules are chosen when the model is compiled."""
        return []

    def set_tuning_results(self, results: Sequence[Any], *, error_on_invalid: bool = False) -> None:
        """Taken and not used, as there are none."""

    def set_ep_dynamic_options(self, options: Mapping[str, str]) -> None:
        """Taken and not used: a module has no options that change while it runs."""

    def release_captured_graph(self, graph_annotation_id: int = 0) -> None:
        """Nothing is captured."""

    def get_modelmeta(self) -> ModelMetadata:
        info = self._module.info
        return ModelMetadata(
            producer_name=info.producer_name,
            graph_name=info.graph_name,
            domain=info.domain,
            description=info.description,
            graph_description=info.graph_description,
            version=_NO_VERSION if info.version is None else info.version,
            custom_metadata_map=dict(info.metadata),
        )

    def get_providers(self) -> list[str]:
        return list(self._providers)

    def get_provider_options(self) -> dict[str, ProviderOptions]:
        return {name: dict(options) for name, options in self._provider_options.items()}

    def get_session_options(self) -> SessionOptions:
        return self._options

    def set_providers(
        self,
        providers: Sequence[Provider] | None = None,
        provider_options: Sequence[ProviderOptions] | None = None,
    ) -> None:
        """Build the session anew for other providers."""
        names, options = _normalise(providers, provider_options)
        if names[0] == self._providers[0]:
            self._providers, self._provider_options = names, options
        else:
            self._build(names, options)

    def disable_fallback(self) -> None:
        """Nothing falls back in a run."""

    def enable_fallback(self) -> None:
        """Nothing falls back in a run."""

    def end_profiling(self) -> str:
        """Write what was profiled, in Chrome's trace format; the file's name, or "" without profiling."""
        profile, self._profile = self._profile, None
        return profile.write() if profile else ""

    def get_profiling_start_time_ns(self) -> int:
        return self._profile.start_ns if self._profile else 0

    def _partial(self, input_feed: Mapping[str, Value]) -> list[Value]:
        """Feeds where some are missing: an optional input that is not given is absent."""
        given = list(input_feed.keys())
        missing = [port.name for port in self._module.inputs if port.name not in given and not port.optional]
        if missing:
            raise ValueError(f"Required inputs ({missing}) are missing from input feed ({given}).")
        return [input_feed.get(name) for name in self._names]

    def _variant(self, input_feed: Mapping[str, Value]) -> Module:
        """The module for feeds that are more than the inputs: initialisers are among them, or unknown
        names.
        """
        more = [name for name in input_feed if name not in self._names]
        for name in more:
            if name not in self._overridable:
                raise InvalidArgument(f"Invalid input name: {name}")
        if not more:
            return self._module
        fed = frozenset(more)
        if fed not in self._variants:
            self._variants[fed] = self._compile(fed)
        return self._variants[fed]

    def _chosen(self, output_names: Sequence[str]) -> list[int]:
        if isinstance(output_names, str):
            raise TypeError("run(): output_names is a list of names, not one string")
        for name in output_names:
            if name not in self._places:
                raise InvalidArgument(f"Invalid output name:{name}")
        return [self._places[name] for name in output_names]


class _Profile:
    """Events of one session, in the format that Chrome's tracing page and Perfetto read."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lock = threading.Lock()
        self._events: list[dict[str, Any]] = []
        self._origin = time.perf_counter()
        self.start_ns = time.time_ns()

    def add(self, name: str, start: float) -> None:
        """One event from `start` until now."""
        now = time.perf_counter()
        event = {
            "cat": "Session",
            "pid": os.getpid(),
            "tid": threading.get_ident(),
            "dur": round(1e6 * (now - start)),
            "ts": round(1e6 * (start - self._origin)),
            "ph": "X",
            "name": name,
            "args": {},
        }
        with self._lock:
            self._events.append(event)

    def write(self) -> str:
        stamp = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(self.start_ns // 10**9))
        path = Path(f"{self._prefix}_{stamp}.json")
        with self._lock:
            path.write_text(json.dumps(self._events, indent=1))
        return str(path)


def _given(value: Any) -> Any:
    """The array of an initialiser that was given as an OrtValue."""
    return value.numpy() if isinstance(value, OrtValue) else np.asarray(value)


def _node_arg(port: Port) -> NodeArg:
    return NodeArg(port.name, port.type, list(port.shape or ()))


def _normalise(
    providers: Sequence[Provider] | None, provider_options: Sequence[ProviderOptions] | None
) -> tuple[list[str], dict[str, ProviderOptions]]:
    """The providers that will be used, the first one computing, with their options.

    Unknown and absent providers are dropped with a warning, as onnxruntime does it. CUDA asked for alone
    where it cannot run is an error: the answer would come from somewhere else than asked.
    """
    if not providers:
        return [CPU], {CPU: {}}
    if isinstance(providers, str) or not isinstance(providers, Sequence):
        raise ValueError("'providers' should be a sequence.")
    if provider_options is not None:
        if len(provider_options) != len(providers):
            raise ValueError(
                "'providers' and 'provider_options' should be the same length if both are given."
            )
        if not all(isinstance(options, dict) for options in provider_options):
            raise ValueError("'provider_options' values must be dicts.")
    for provider in providers:
        pair = isinstance(provider, tuple) and len(provider) == 2 and isinstance(provider[1], dict)
        if not isinstance(_name(provider) if pair else provider, str):
            raise ValueError("'providers' values must be either strings or (string, dict) tuples.")
    available = get_available_providers() if any(_name(p) == CUDA for p in providers) else [CPU]
    chosen: dict[str, ProviderOptions] = {}
    for place, provider in enumerate(providers):
        name = _name(provider)
        options = (
            provider[1] if isinstance(provider, tuple) else (provider_options or [{}] * len(providers))[place]
        )
        if name not in available:
            warnings.warn(
                f"Specified provider '{name}' is not in available provider names."
                f"Available providers: '{', '.join(available)}'",
                stacklevel=4,
            )
        elif name in chosen:
            warnings.warn(f"Duplicate provider '{name}' encountered, ignoring.", stacklevel=4)
        else:
            chosen[name] = {str(key): str(value) for key, value in options.items()}
    if not chosen and all(_name(provider) == CUDA for provider in providers):
        raise EPFail(
            f"{CUDA} was asked for alone, and no CUDA device or no numba-cuda is there: "
            f"install fusile[cuda], or add {CPU} to the providers"
        )
    chosen.setdefault(CPU, {})
    return list(chosen), chosen


def _name(provider: Provider) -> str:
    return provider[0] if isinstance(provider, tuple) else provider
