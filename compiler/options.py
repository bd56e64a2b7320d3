"""What a caller may ask of a compilation: one frozen record, checked when it is made."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from fusile.errors import UsageError

Target = Literal["native", "numba", "cuda", "torch", "keras"]
Precision = Literal["fp32", "bf16"]
OptLevel = Literal[0, 1, 2]
Denormals = Literal["flush", "keep"]

TARGETS: tuple[str, ...] = get_args(Target)
KERNEL_TARGETS: tuple[str, ...] = ("native", "numba", "cuda")
SOURCE_TARGETS: tuple[str, ...] = ("torch", "keras", "numba", "cuda")

_MAX_DIM = 2**40
_MAX_THREADS = 1024
_CPU = re.compile(r"[A-Za-z0-9_.+,=-]{1,4096}")
_TRIPLE = re.compile(r"[A-Za-z0-9_.]+(-[A-Za-z0-9_.]+){1,4}")


class Dims(Mapping[str, int]):
    """Symbolic dimensions and their fixed sizes: a mapping that cannot change, and so can be hashed."""

    __slots__ = ("_sizes",)

    def __init__(self, sizes: Mapping[str, int] | None = None) -> None:
        self._sizes = {name: _size(name, size) for name, size in sorted((sizes or {}).items())}

    def __getitem__(self, name: str) -> int:
        return self._sizes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __hash__(self) -> int:
        return hash(tuple(self._sizes.items()))

    def __repr__(self) -> str:
        return f"Dims({self._sizes!r})"

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self._sizes.items())


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is to be compiled.

    `dims` fixes symbolic dimensions; the others stay arguments of the compiled module. `threads` is how
    many threads a run uses (None: the CPUs that this process may use). `opt_level` 0 is one kernel per
    operator in plain loops, 1 one kernel per operator, each tiled, 2 fused and tiled. `cpu` is "native", a
    level such as "x86-64-v3" or a list of CPU features such as "avx2,fma"; `target_triple` asks for code
    for another machine. `weights` is a safetensors file that replaces the model's own weights. `denormals`
    says whether runs flush denormal numbers to zero. `seed` is where random operators without a seed of
    their own start. `dump_ir` is a folder that receives every level of the compiler as text.

    Raises UsageError where a value makes no sense.
    """

    target: Target = "native"
    dims: Mapping[str, int] = field(default_factory=Dims)
    threads: int | None = None
    precision: Precision = "fp32"
    opt_level: OptLevel = 2
    cpu: str = "native"
    target_triple: str | None = None
    weights: str | os.PathLike[str] | None = None
    denormals: Denormals = "flush"
    seed: int = 0
    dump_ir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.dims, Dims):
            if not isinstance(self.dims, Mapping):
                raise UsageError(
                    "`dims` is not a mapping of names to sizes", todo='Write it as dims={"batch": 1}'
                )
            object.__setattr__(self, "dims", Dims(self.dims))
        _one_of("target", self.target, TARGETS)
        _one_of("precision", self.precision, get_args(Precision))
        _one_of("opt_level", self.opt_level, get_args(OptLevel))
        _one_of("denormals", self.denormals, get_args(Denormals))
        if self.threads is not None:
            _integer("threads", self.threads, 1, _MAX_THREADS)
        check_seed(self.seed)
        _text("cpu", self.cpu, _CPU, '"native", or CPU features with commas such as "avx2,fma"')
        if self.target_triple is not None:
            _text(
                "target_triple", self.target_triple, _TRIPLE, 'a triple such as "aarch64-unknown-linux-gnu"'
            )
        for name in ("weights", "dump_ir"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (str, os.PathLike)):
                raise UsageError(f"{name} is not a path", why=f"it is of type {type(value).__name__}")

    def key(self) -> str:
        """The options that shape the generated code, as one canonical line of text for the cache.

        Threads, seed, weights and dumps are not in it: code is the same for any number of threads,
        and packed weights have a key of their own.
        """
        shaping = {
            "target": self.target,
            "dims": dict(self.dims),
            "precision": self.precision,
            "opt_level": self.opt_level,
            "cpu": ",".join(sorted(self.cpu.split(","))),
            "target_triple": self.target_triple or "",
            "denormals": self.denormals,
        }
        return json.dumps(shaping, sort_keys=True, separators=(",", ":"))

    def with_(self, **changes: Any) -> Options:
        """These options with some changed, checked again."""
        _known(changes)
        return replace(self, **changes)


OPTIONS: tuple[str, ...] = tuple(option.name for option in fields(Options))
"""The names of all options."""


def check_seed(seed: object) -> None:
    """Raises UsageError for what cannot be a seed, of random operators or of drawn inputs."""
    _integer("seed", seed, 0, 2**63 - 1)


def check_kernel_target(target: object, instead: str) -> None:
    """Raises UsageError for a target that has no modules to run. `instead` says how a target for source code
    is used.
    """
    if target in KERNEL_TARGETS:
        return
    if target in SOURCE_TARGETS:
        raise UsageError(f"{target!r} is a target for source code", todo=instead)
    _one_of("target", target, KERNEL_TARGETS)


def make_options(**values: Any) -> Options:
    """Options out of keyword arguments; UsageError for a name that is no option lists those there are."""
    _known(values)
    return Options(**values)


def make_options_of(
    tool: str, taken: Sequence[str], own: Sequence[str], values: Mapping[str, Any]
) -> Options:
    """Options of a tool that looks at those in `taken` only and has `own` arguments beside them. Raises
    UsageError for others.
    """
    for name in values:
        if name not in taken:
            raise UsageError(
                f"{name!r} is no option of {tool}", todo=f"Its options are {', '.join([*own, *taken])}"
            )
    return make_options(**values)


def parse_dims(text: str) -> dict[str, int]:
    """`batch=1,seq=128` as a dict. A name may hold anything but a comma; the last `=` ends it."""
    sizes: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, size = part.rpartition("=")
        name = name.strip()
        if not equals or not name:
            raise UsageError(f"{part!r} gives no dimension a size", todo="Write it as batch=1,seq=128")
        if name in sizes:
            raise UsageError(f"Dimension {name!r} is given twice")
        try:
            sizes[name] = _size(name, int(size))
        except ValueError:
            raise UsageError(
                f"Dimension {name!r} has no whole number as its size", why=f"it is {size!r}"
            ) from None
    return sizes


def parse_dim_sets(text: str) -> list[dict[str, int]]:
    """`batch=1,seq=7;batch=3,seq=40` as a list of dicts; an empty text is no set at all."""
    return [parse_dims(part) for part in text.split(";") if part.strip()]


def _known(values: Mapping[str, Any]) -> None:
    for name in values:
        if name not in OPTIONS:
            raise UsageError(f"{name!r} is no option", todo=f"The options are {', '.join(OPTIONS)}")


def _size(name: str, size: object) -> int:
    if not isinstance(name, str) or not name:
        raise UsageError("A dimension has no name", why=f"it is {name!r}")
    if isinstance(size, bool) or not hasattr(size, "__index__"):
        raise UsageError(f"Dimension {name!r} has no whole number as its size", why=f"it is {size!r}")
    number: int = size.__index__()
    if not 0 <= number <= _MAX_DIM:
        raise UsageError(f"Dimension {name!r} is out of range", why=f"{number} is not in 0 ... {_MAX_DIM}")
    return number


def _one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    if type(value) not in {type(choice) for choice in choices} or value not in choices:
        raise UsageError(
            f"{name}={value!r} is not known", todo=f"Choose one of {', '.join(map(str, choices))}"
        )


def _integer(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise UsageError(f"{name}={value!r} is not a whole number from {low} to {high}")


def _text(name: str, value: object, pattern: re.Pattern[str], meant: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise UsageError(f"{name}={value!r} is not understood", todo=f"Give {meant}")
