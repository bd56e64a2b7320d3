"""Tensors that stay where they are stored: in the model's file, in a file beside it, or sparse.

Nothing is read before `numpy()` or `tobytes()` is called. A file is opened once, checked on the open
handle and mapped; all its tensors share the mapping, so that what was checked is what is read.
"""

from __future__ import annotations

import mmap
import ntpath
import os
import stat
from collections.abc import MutableMapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir import serde

from fusile.errors import ExternalDataError, InvalidModelError, UnsafeModelError, UsageError, show_name
from fusile.frontend.limits import MAX_ELEMENTS, MAX_SPARSE_BYTES, MAX_SPARSE_GROWTH
from fusile.frontend.wire import Buffer

Array = NDArray[Any]


def element_count(dims: Sequence[int], where: str) -> int:
    """The product of `dims`. Raises InvalidModelError for a negative one, UnsafeModelError past 2**62."""
    if any(dim < 0 for dim in dims):
        raise InvalidModelError("A tensor has a negative dimension", where=where, why=f"dims {list(dims)}")
    # Zeros do not hide an overflow: who multiplies in another order would meet it.
    if prod(dim for dim in dims if dim) > MAX_ELEMENTS:
        raise UnsafeModelError(
            "A tensor is too large", where=where, why=f"dims {list(dims)} overflow 64-bit sizes"
        )
    return prod(dims)


def byte_count(dtype: ir.DataType, count: int) -> int:
    """The bytes that `count` packed elements take: ceil(bits / 8)."""
    return -(-dtype.bitwidth * count // 8)


class _Stored(ir.TensorProtocol):
    """What both kinds of tensor share: a fixed type and shape, and a name that may change."""

    def __init__(self, dtype: ir.DataType, dims: Sequence[int], name: str, raw: Any) -> None:
        self.name: str | None = name
        self.dtype = dtype
        self.dims = tuple(dims)
        self.shape: ir.ShapeProtocol = ir.Shape(dims, frozen=True)
        self.raw = raw
        self.doc_string: str | None = None
        self.metadata_props: MutableMapping[str, str] = {}
        self.meta: MutableMapping[str, Any] = {}

    @property
    def size(self) -> int:
        return prod(self.dims)

    @property
    def nbytes(self) -> int:
        return byte_count(self.dtype, self.size)

    def numpy(self) -> Array:
        raise NotImplementedError

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        raise BufferError("stored tensors are read-only: call numpy()")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}<{self.dtype},{self.shape}>(name={self.name!r})"


class MappedTensor(_Stored):
    """A tensor whose little-endian data are `length` bytes at `offset` of a buffer, never copied.

    `buffer` is a read-only map of a file, or bytes, and `raw` the part of it; `path` is the file, if there
    is one. Arrays from `numpy()` are read-only views and may be unaligned: ONNX aligns no tensors.
    """

    def __init__(
        self,
        buffer: Buffer,
        offset: int,
        length: int,
        dtype: ir.DataType,
        shape: Sequence[int],
        *,
        name: str,
        path: Path | None = None,
    ) -> None:
        where = f"tensor {show_name(name)}"
        needed = byte_count(dtype, element_count(shape, where))
        if length != needed:
            raise InvalidModelError(
                "A tensor's data do not fit its shape",
                where=where,
                why=f"{dtype.name} {list(shape)} needs {needed} bytes and there are {length}",
            )
        if offset < 0 or offset + length > len(buffer):
            raise ExternalDataError(
                "A tensor's data end after their file",
                where=where,
                why=f"bytes {offset} to {offset + length} of {len(buffer)}",
                todo="Fetch or export the file again",
            )
        self.buffer = buffer
        self.offset = offset
        self.length = length
        self.path = path
        super().__init__(dtype, shape, name, memoryview(buffer)[offset : offset + length])

    def numpy(self) -> Array:
        if self.dtype.bitwidth < 8:
            return _unpacked(self.tobytes(), self.dtype, self.dims)
        element = np.dtype(self.dtype.numpy()).newbyteorder("<")
        if not self.length:  # numpy takes no empty buffers
            return np.empty(self.dims, element)
        count = self.length // element.itemsize
        return np.frombuffer(self.buffer, element, count, self.offset).reshape(self.dims)

    def tobytes(self) -> bytes:
        return bytes(self.raw)

    def tofile(self, file: Any) -> None:
        file.write(self.raw)


def _unpacked(data: bytes, dtype: ir.DataType, shape: Sequence[int]) -> Array:
    """Elements of less than a byte, each in a byte of its own."""
    proto = onnx.TensorProto(data_type=int(dtype), dims=shape, raw_data=data)
    return np.asarray(serde.TensorProtoTensor(proto).numpy())


def map_file(path: Path, descriptor: int) -> mmap.mmap | bytes:
    """The regular file behind `descriptor`, mapped. Empty files, which cannot be mapped, are b""."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{show_name(str(path))} is not a file")
    if not status.st_size:
        return b""
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def release_pages(buffer: Buffer) -> None:
    """Take the pages of a mapped file out of this process's memory; they stay in the system's cache."""
    if isinstance(buffer, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        buffer.madvise(mmap.MADV_DONTNEED)


class ExternalFiles:
    """The files with tensor data beside a model: those in or below `folder`, each opened once.

    A model comes from elsewhere, and it names these files. A name may not lead out of the folder,
    by its text or by links, nor to anything but a plain file with one name.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._open: dict[str, mmap.mmap | bytes] = {}

    def map(self, location: str, where: str) -> tuple[mmap.mmap | bytes, Path]:
        """The file at `location`, mapped, and its path.

        Raises UnsafeModelError for a location that leaves the folder, a link, or no plain file;
        ExternalDataError where there is no such file.
        """
        parts = _checked_parts(location, where)
        if self._folder is None:
            raise UsageError(
                "The model keeps tensors in other files",
                where=where,
                why="it was given as bytes, so that nothing says where they are",
                todo="Give the path of the model",
            )
        path = self._folder.joinpath(*parts)
        if location not in self._open:
            self._open[location] = self._map_beneath(parts, path, where)
        return self._open[location], path

    def _map_beneath(self, parts: Sequence[str], path: Path, where: str) -> mmap.mmap | bytes:
        assert self._folder is not None
        where = f"{where}, file {show_name(str(path))}"
        try:
            descriptor = _open_beneath(self._folder, parts)
        except FileNotFoundError as error:
            raise ExternalDataError(
                "A file with tensor data is missing", where=where, todo="Put it beside the model"
            ) from error
        except OSError as error:
            # ELOOP is how O_NOFOLLOW reports a link; the rest are folders, sockets, missing rights.
            raise _refused(where, f"it cannot be opened as a plain file ({error.strerror})") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _refused(where, "it is not a plain file")
            if status.st_nlink > 1:
                raise _refused(where, "it is hard-linked, so that it may be a file of somebody else")
            return map_file(path, descriptor)
        finally:
            os.close(descriptor)


def _checked_parts(location: str, where: str) -> tuple[str, ...]:
    """The folders and the file of a relative location. Refuses what could leave the model's folder."""
    where = f"{where}, location {show_name(location)}"
    if not location or "\0" in location:
        raise InvalidModelError("A tensor names no file for its data", where=where)
    # Both notations everywhere, so that a model is judged alike on every system.
    if location.startswith(("/", "\\")) or ntpath.splitdrive(location)[0] or os.path.isabs(location):
        raise _refused(where, "the path is absolute")
    if ".." in location.replace("\\", "/").split("/"):
        raise _refused(where, 'the path contains ".."')
    separators = "/\\" if os.sep == "\\" else "/"
    text = location
    for separator in separators:
        text = text.replace(separator, "/")
    parts = tuple(part for part in text.split("/") if part not in ("", "."))
    if not parts:
        raise InvalidModelError("A tensor names no file for its data", where=where)
    return parts


def _refused(where: str, why: str) -> UnsafeModelError:
    return UnsafeModelError(
        "The model reads tensor data from outside of its folder",
        where=where,
        why=why,
        todo="Put the data as a plain file into the folder of the model",
    )


def _open_beneath(folder: Path, parts: Sequence[str]) -> int:
    """A descriptor of folder/parts, following no link below `folder`."""
    no_follow = getattr(os, "O_NOFOLLOW", 0)
    binary = getattr(os, "O_BINARY", 0)
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    plain = os.O_RDONLY | no_follow | binary | getattr(os, "O_NONBLOCK", 0)
    if os.open not in os.supports_dir_fd:
        path = folder
        for part in parts:
            path = path / part
            if path.is_symlink() or getattr(path, "is_junction", bool)():
                raise OSError(0, "a link")
        return os.open(path, plain)
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | no_follow, dir_fd=at)
            os.close(at)
            at = inner
        return os.open(parts[-1], plain, dir_fd=at)
    finally:
        os.close(at)


class SparseTensor(_Stored):
    """A tensor of zeros with some elements set, made dense by `numpy()`.

    `values` is [n]; `indices` is int64 [n] of linear or [n, rank] of coordinate indices. Refused as
    unsafe where a few stored bytes stand for an enormous dense tensor.
    """

    def __init__(
        self, values: ir.TensorProtocol, indices: ir.TensorProtocol, shape: Sequence[int], *, name: str
    ) -> None:
        where = f"sparse tensor {show_name(name)}"
        dense = byte_count(values.dtype, element_count(shape, where))
        stored = values.nbytes + indices.nbytes
        if dense > max(MAX_SPARSE_BYTES, MAX_SPARSE_GROWTH * stored):
            raise UnsafeModelError(
                "A sparse tensor is too large when dense",
                where=where,
                why=f"{stored} stored bytes stand for {dense}",
            )
        count = values.shape[0] if len(values.shape) == 1 else -1
        if indices.dtype != ir.DataType.INT64 or list(indices.shape) not in ([count], [count, len(shape)]):
            raise InvalidModelError(
                "A sparse tensor's indices do not fit its values",
                where=where,
                why=f"values {values.shape}, indices {indices.dtype.name} {indices.shape}",
            )
        self.values = values
        self.indices = indices
        super().__init__(values.dtype, shape, name, values)

    def numpy(self) -> Array:
        shape = self.dims
        indices = np.asarray(self.indices.numpy())
        extents = np.array(shape if indices.ndim == 2 else [prod(shape)], np.int64)
        if indices.size and (indices.min() < 0 or (indices.reshape(-1, len(extents)) >= extents).any()):
            raise InvalidModelError(
                "A sparse tensor has an index outside of its shape",
                where=f"sparse tensor {show_name(self.name)}",
                why=f"shape {list(shape)}",
            )
        values = np.asarray(self.values.numpy())
        dense = np.zeros(shape, values.dtype)
        if indices.ndim == 2:
            dense[tuple(indices.T)] = values
        else:
            dense.reshape(-1)[indices] = values
        return dense

    def tobytes(self) -> bytes:
        return ir.Tensor(self.numpy(), dtype=self.dtype).tobytes()
