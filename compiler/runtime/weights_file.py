"""Files of packed weights: a head of 4096 bytes (magic, size, layout key), then the weights as kernels read
them.

Native code maps such a file itself (support/weights.ll), so that sessions and processes share its pages.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fusile.errors import FusileError

HEAD_BYTES = 4096
_HEAD = struct.Struct("<8sq32s")
_MAGIC = b"FUSILEW1"


@contextmanager
def new_weights_file(
    path: Path, weights_bytes: int, layout_key: bytes
) -> Iterator[tuple[int, Callable[[], None]]]:
    """Makes a weights file of zeros and yields the address of its weights (64-byte aligned), to be filled,
    and a function that takes pages out of this process's memory: what was written to them is in the file.

    The address is valid within the `with` only; afterwards the file is complete. Raises OSError where the
    disk is full before anything is written through the address.
    """
    with path.open("w+b") as file:
        file.write(_HEAD.pack(_MAGIC, weights_bytes, layout_key).ljust(HEAD_BYTES, b"\0"))
        file.flush()
        whole = HEAD_BYTES + weights_bytes
        file.truncate(whole)
        _reserve(file.fileno(), whole)
        with mmap.mmap(file.fileno(), whole) as memory:
            anchor = ctypes.c_char.from_buffer(memory)
            try:
                yield ctypes.addressof(anchor) + HEAD_BYTES, lambda: _release(memory)
            finally:
                del anchor  # the map cannot be closed while something points into it


def check_weights_file(path: Path, weights_bytes: int, layout_key: bytes) -> None:
    """Raises FusileError where a file does not hold weights of this size and layout."""
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
    expected = _HEAD.pack(_MAGIC, weights_bytes, layout_key)
    if head != expected or path.stat().st_size != HEAD_BYTES + weights_bytes:
        raise FusileError(
            f"{path} holds no weights of this module",
            why="it is damaged, or was packed for another build of the model",
            todo="Compile the model again",
        )


def _release(memory: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):  # a shared map: dirty pages belong to the file
        memory.madvise(mmap.MADV_DONTNEED)


def _reserve(descriptor: int, size: int) -> None:
    """Has the file system promise the space: a full disk is an error now, not a bus error in mid-writing."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
