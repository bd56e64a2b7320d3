"""Native modules as files: writing a .so with its header and wrapper, and loading one into this process."""

from __future__ import annotations

import ctypes
import functools
import json
import mmap
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusile.backends.native.module import Code, Face, Instance, Memory, NativeModule, library_code
from fusile.errors import FusileError, UsageError
from fusile.runtime import abi
from fusile.runtime.elf import is_whole
from fusile.runtime.module import ModelInfo
from fusile.target import TargetSpec, available_cores

_MARK = b"_abi_version\0"
_LONGEST_PREFIX = 200


def write(
    path: Path,
    objects: Sequence[tuple[str, bytes]],
    interface: abi.PlanInterface,
    target: TargetSpec,
    weights: Path | Memory | None,
    *,
    embed: bool = True,
    linker: str | None = None,
    threads: int | None = None,
) -> tuple[Path, ...]:
    """Write a module's library, header and wrapper, and its weights where they are not in the library.

    `threads` is how many the wrapper uses where its caller does not say.

    Answers their paths. Nothing is left behind where it fails. Raises UsageError where the place cannot be
    written or nothing can link, FusileError where the linker fails.
    """
    from fusile.runtime.shared_library import write_shared_library

    path = library_path(path)
    with tempfile.TemporaryDirectory(prefix="fusile-") as folder:
        place = weights
        if isinstance(weights, Memory):
            place = _as_file(weights, interface, Path(folder) / "packed.weights")
        assert place is None or isinstance(place, Path)
        made = write_shared_library(
            path, objects, interface, target, weights=place, embed=embed, linker=linker, threads=threads
        )
    return tuple(each for each in (made.library, made.header, made.wrapper, made.weights) if each is not None)


def library_path(path: str | os.PathLike[str]) -> Path:
    """The path of a library to write. Raises UsageError for a folder and for another kind of file."""
    place = Path(path)
    if not place.name or place.is_dir():
        raise UsageError(
            f"{str(place)!r} is a folder, and a native module is a file",
            todo=f"Call it {str(place / 'model.so')!r}",
        )
    if place.suffix not in (".so", ".dylib", ".dll"):
        raise UsageError(
            f"A native module is a library, and {place.name!r} is not the name of one",
            todo=f"Call it {place.with_suffix('.so').name!r}",
        )
    return place


def _as_file(weights: Memory, interface: abi.PlanInterface, path: Path) -> Path:
    from fusile.runtime.weights_file import new_weights_file

    with new_weights_file(path, weights.bytes, interface.layout_key) as (address, _):
        ctypes.memmove(address, weights.address, weights.bytes)
    return path


def load(path: Path, threads: int | None = None) -> NativeModule:
    """A module out of a .so file that `write` wrote; its weights are in it, or in a file of its name beside
    it.

    Loading a library runs code of it. Raises UsageError where there is no file or it is no module of
    fusile's.
    """
    if not path.is_file():
        raise UsageError(f"There is no file {str(path)!r}")
    if not is_whole(path):
        raise UsageError(
            f"{str(path)!r} cannot be loaded", why="it is shorter than its own headers say",
            todo="Copy it or compile it again",
        )  # fmt: skip
    told, code = _open(path)
    if told.get("abi") != abi.ABI_VERSION:
        raise UsageError(
            f"{str(path)!r} is a module of another version", why=f"its interface is {told.get('abi')}",
            todo="Compile the model again",
        )  # fmt: skip
    interface = abi.PlanInterface(
        name=str(told["name"]),
        inputs=_ports(told["inputs"]),
        outputs=_ports(told["outputs"]),
        symbols=tuple(told["symbols"]),
        weights_bytes=int(told["weights_bytes"]),
        layout_key=bytes.fromhex(told["layout_key"]),
        prepare_steps=int(told["prepare_steps"]),
        flags=int(told["flags"]),
        reasons=tuple(told.get("reasons", ())),
    )
    face = Face(interface.inputs, interface.outputs, ModelInfo(graph_name=interface.name))
    return NativeModule(_instance(code, path, interface), interface, face, threads or available_cores())


def _instance(code: Code, path: Path, interface: abi.PlanInterface) -> Instance:
    """An instance with the weights that are in the library, else with those in the file beside it."""
    beside = path.with_suffix(".weights")
    try:
        return Instance(code, None)
    except FusileError as error:
        if not interface.weights_bytes:
            raise
        if not beside.is_file():
            raise UsageError(
                f"The weights of {str(path)!r} are missing", todo=f"Put {beside.name!r} beside it"
            ) from error
        return Instance(code, beside)


def _open(path: Path) -> tuple[dict[str, Any], Code]:
    """What a library says of itself, and its functions. Their names begin with the library's name when it was
    written; it may have another now.
    """
    status = path.stat()
    place = _fresh_name(path.absolute(), (status.st_dev, status.st_ino, status.st_mtime_ns))
    for prefix in _prefixes(path):
        try:
            code = library_code(place, prefix)
            describe: Any = ctypes.CDLL(place)[f"{prefix}_describe"]
        except AttributeError:
            continue
        except OSError as error:
            raise UsageError(f"{str(path)!r} cannot be loaded", why=str(error)) from None
        describe.restype, describe.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        told: dict[str, Any] = json.loads(describe(None))
        return told, code
    raise UsageError(
        f"{str(path)!r} is no module of fusile's", todo="Give a .so file that `fusile compile` wrote"
    )


@functools.cache
def _fresh_name(path: Path, state: tuple[int, ...]) -> str:
    """A name of a file that no other state of it had: the loader knows libraries by name, and would answer
    with one that was in its place before. The number of states is written with /. and / between folder and
    file.
    """
    number = _fresh_name.cache_info().currsize
    return f"{path.parent}{''.join('/.' if digit == '1' else '/' for digit in f'{number:b}')}/{path.name}"


def _prefixes(path: Path) -> Iterator[str]:
    """What the functions of a library may begin with: every name in it that ends as one of them does."""
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_MARK)
        while at >= 0:
            name = data[max(0, at - _LONGEST_PREFIX) : at].rpartition(b"\0")[2]
            if re.fullmatch(rb"[a-z_][a-z0-9_]*", name):
                yield name.decode("ascii")
            at = data.find(_MARK, at + 1)


def _ports(told: Sequence[Mapping[str, Any]]) -> tuple[abi.Port, ...]:
    return tuple(abi.Port(str(p["name"]), int(p["dtype"]), tuple(p["dims"])) for p in told)
