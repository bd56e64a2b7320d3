"""Images: linked native code as a file, and its loading into this process. Reads with the standard library
alone.

File: a head of 64 bytes (magic, version, ELF machine, page size, length of the table, SHA-256 of all that
follows), the table as JSON (sections, slots, symbols), zeros up to a page, code, zeros up to a page,
constants. In memory code lies at 0, constants at the next page, then the slots.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import json
import mmap
import os
import platform
import struct
import sys
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fusile.errors import FusileError, UnsupportedError

_MAGIC = b"FUSIMAGE"
_VERSION = 1
_HEAD = struct.Struct("<8sIIII32s8x")  # magic, version, machine, page, table's length, digest
_MACHINES = {62: ("x86_64", "AMD64"), 183: ("aarch64", "arm64")}

_NONE, _READ, _WRITE, _EXECUTE = 0, 1, 2, 4
_PRIVATE, _FIXED, _ANONYMOUS = 0x02, 0x10, 0x20


class ImageError(FusileError):
    """An image that is damaged, of another version or machine, or that this process may not map."""


@dataclass(frozen=True, slots=True)
class Slot:
    """What a slot holds: the address of function `outside` (0 where it is missing and `weak`), or image base
    + `inside`.
    """

    outside: str
    weak: bool
    inside: int


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """Where things lie in an image's memory; code begins at 0, slots are 8 bytes each."""

    machine: int
    page: int
    text_bytes: int
    constants: int
    constants_bytes: int
    slots_at: int
    slots: tuple[Slot, ...]
    symbols: dict[str, int]

    @property
    def memory_bytes(self) -> int:
        return self.slots_at + _up(8 * len(self.slots), self.page)


def write_image(layout: ImageLayout, memory: bytes | bytearray) -> bytes:
    """The image file of a layout and its memory (code and constants, without the slots)."""
    table = json.dumps(
        {
            "text_bytes": layout.text_bytes,
            "constants": layout.constants,
            "constants_bytes": layout.constants_bytes,
            "slots_at": layout.slots_at,
            "slots": [[s.outside, s.weak, s.inside] for s in layout.slots],
            "symbols": layout.symbols,
        }
    ).encode()
    start = _up(_HEAD.size + len(table), layout.page)
    body = table + bytes(start - _HEAD.size - len(table)) + bytes(memory)
    digest = hashlib.sha256(body).digest()
    return _HEAD.pack(_MAGIC, _VERSION, layout.machine, layout.page, len(table), digest) + body


def read_layout(data: bytes | memoryview | mmap.mmap, *, verify: bool = True) -> ImageLayout:
    """The layout in an image file's bytes. Raises ImageError where they are damaged or of another version."""
    if len(data) < _HEAD.size or bytes(data[:8]) != _MAGIC:
        raise ImageError("This is no image of native code", todo="Remove it; it is made again when needed")
    _, version, machine, page, length, digest = _HEAD.unpack(data[: _HEAD.size])
    if version != _VERSION:
        raise ImageError(
            f"Native code image of version {version}, not {_VERSION}", todo="Compile the model again"
        )
    if verify and hashlib.sha256(memoryview(data)[_HEAD.size :]).digest() != digest:
        raise ImageError("A native code image is damaged: its digest differs", todo="Compile the model again")
    table = json.loads(bytes(data[_HEAD.size : _HEAD.size + length]))
    slots = tuple(Slot(*row) for row in table.pop("slots"))
    layout = ImageLayout(machine, page, slots=slots, **table)
    if len(data) < _up(_HEAD.size + length, page) + layout.constants + layout.constants_bytes:
        raise ImageError("A native code image is cut off", todo="Compile the model again")
    return layout


class Image:
    """Loaded native code. It stays in memory as long as this object lives, or until `close`.

    Whoever keeps an address out of it keeps the image too; `function` does that by itself.
    """

    def __init__(self, layout: ImageLayout, base: int) -> None:
        self.base = base
        self.bytes = layout.memory_bytes
        self.symbols = layout.symbols
        self._unmap = weakref.finalize(self, _libc().munmap, base, layout.memory_bytes)
        self._unmap.atexit = False  # at exit other threads may still be in there; the system clears up

    def symbol(self, name: str) -> int:
        """The address of a symbol. Raises KeyError where the image does not define it."""
        if not self._unmap.alive:
            raise ImageError("This native code image is closed")
        return self.base + self.symbols[name]

    def function(self, name: str, result: Any, *arguments: Any) -> Any:
        """A ctypes function over a symbol; it keeps the image in memory."""
        made = ctypes.CFUNCTYPE(result, *arguments)(self.symbol(name))
        made.image = self  # type: ignore[attr-defined]
        return made

    def close(self) -> None:
        """Removes the code from memory; no function of it may be running or be called afterwards."""
        self._unmap()


def load_image(source: str | os.PathLike[str] | bytes, *, verify: bool = True) -> Image:
    """Maps an image, file-backed: code readable and executable, constants and filled slots readable.

    `verify` checks the digest first. Raises ImageError for a damaged or foreign image, or where an outside
    function is missing.
    """
    if sys.platform != "linux":
        raise UnsupportedError((), "Native modules load on Linux only", todo='Use target="numba" here')
    if isinstance(source, bytes):
        return _load_bytes(source, verify)
    path = Path(source)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        layout = read_layout(data, verify=verify)
        try:
            return _map(file.fileno(), layout, _start(data, layout))
        except PermissionError:  # a file system mounted noexec
            contents = bytes(data)
    return _load_bytes(contents, verify=False)


def _load_bytes(data: bytes, verify: bool) -> Image:
    layout = read_layout(data, verify=verify)
    with _unnamed_file() as file:
        file.write(data)
        file.flush()
        try:
            return _map(file.fileno(), layout, _start(data, layout))
        except PermissionError as error:
            raise ImageError("This process may not load native code", why=str(error)) from None


def _unnamed_file() -> IO[bytes]:
    """A file in memory where there is that, else a temporary one."""
    try:
        return os.fdopen(os.memfd_create("fusile"), "w+b")
    except OSError:
        return tempfile.TemporaryFile()


def _start(data: bytes | mmap.mmap, layout: ImageLayout) -> int:
    """Where code begins in the file."""
    length: int = _HEAD.unpack(data[: _HEAD.size])[4]
    return _up(_HEAD.size + length, layout.page)


def _map(descriptor: int, layout: ImageLayout, start: int) -> Image:
    if platform.machine() not in _MACHINES[layout.machine]:
        raise ImageError(
            f"A native code image for {_MACHINES[layout.machine][0]} cannot be loaded on {platform.machine()}"
        )
    addresses = [_outside(slot) for slot in layout.slots]
    base = _mmap(0, layout.memory_bytes, _NONE, _PRIVATE | _ANONYMOUS, -1, 0)
    image = Image(layout, base)  # from here on what is mapped goes with it
    _mmap(base, layout.text_bytes, _READ | _EXECUTE, _PRIVATE | _FIXED, descriptor, start)
    if layout.constants_bytes:
        at = base + layout.constants
        _mmap(at, layout.constants_bytes, _READ, _PRIVATE | _FIXED, descriptor, start + layout.constants)
    if addresses:
        at = base + layout.slots_at
        _mmap(at, 8 * len(addresses), _READ | _WRITE, _PRIVATE | _FIXED | _ANONYMOUS, -1, 0)
        values = [
            base + s.inside if address is None else address for s, address in zip(layout.slots, addresses)
        ]
        ctypes.memmove(at, struct.pack(f"<{len(values)}Q", *values), 8 * len(values))
        if _libc().mprotect(at, 8 * len(addresses), _READ):
            raise ImageError(
                "The slots of native code cannot be protected", why=os.strerror(ctypes.get_errno())
            )
    return image


def _outside(slot: Slot) -> int | None:
    """The address of a slot's outside function; None for a slot that points into the image."""
    if not slot.outside:
        return None
    for library in _libraries():
        try:
            function = library[slot.outside]
        except AttributeError:
            continue
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    if slot.weak:
        return 0
    raise ImageError(
        f"Native code needs the function {slot.outside!r}, which the C library of this system lacks"
    )


def _mmap(address: int, length: int, protection: int, flags: int, descriptor: int, offset: int) -> int:
    place = _libc().mmap(address, length, protection, flags, descriptor, offset)
    if place == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        if number in (errno.EPERM, errno.EACCES):
            raise PermissionError(number, os.strerror(number))
        raise ImageError("Native code cannot be mapped into memory", why=os.strerror(number))
    return int(place)


@functools.cache
def _libraries() -> tuple[ctypes.CDLL, ...]:
    """Where outside functions are looked up: this process (it has the C library), and the mathematics library
    beside it.
    """
    found = [_libc()]
    for name in ("libm.so.6", "libm.so"):
        try:
            found.append(ctypes.CDLL(name))
            break
        except OSError:  # musl has libm in its C library
            continue
    return tuple(found)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    c = ctypes
    libc.mmap.restype = c.c_void_p
    libc.mmap.argtypes = (c.c_void_p, c.c_size_t, c.c_int, c.c_int, c.c_int, c.c_long)
    libc.munmap.argtypes = (c.c_void_p, c.c_size_t)
    libc.mprotect.argtypes = (c.c_void_p, c.c_size_t, c.c_int)
    return libc


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
