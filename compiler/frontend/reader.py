"""Reading a model: path, bytes, ModelProto or onnx_ir.Model in, an onnx_ir.Model of its own out.

Large tensors stay in the file (see `wire` and `storage`), sparse ones stay sparse until they are read,
and map types, which onnx_ir lacks, are carried around it. Nothing here knows an operator but Constant.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir import serde

from fusile.errors import FusileError, InvalidModelError, UnsafeModelError, UsageError, show_name
from fusile.frontend.limits import MAX_DEPTH, MAX_MESSAGE_BYTES
from fusile.frontend.storage import ExternalFiles, MappedTensor, SparseTensor, byte_count, map_file
from fusile.frontend.validate import check_model, external_entries
from fusile.frontend.wire import Buffer, nested_graphs, strip
from fusile.graph.proto import to_proto
from fusile.graph.types import MapType

Source = str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model

# The first bytes of files that are given for ONNX models by mistake.
_OTHER_FILES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"version https://git-lfs", "it is a Git LFS pointer: run `git lfs pull`"),
    (0, b"PK\x03\x04", "it is a zip archive: unpack it, or export the PyTorch or Keras model in it to ONNX"),
    (0, b"\x89HDF", "it is an HDF5 file: load it with Keras and export the model to ONNX"),
    (4, b"ORTM", "it is in ONNX Runtime's own format: convert it back to ONNX"),
    (4, b"TFL3", "it is a TensorFlow Lite model: convert it to ONNX"),
)


def read(source: Source) -> ir.Model:
    """The model in `source`, not yet canonical, sharing nothing that a caller could see change.

    Raises UsageError (no such file), InvalidModelError (broken), UnsafeModelError (refused).
    """
    if isinstance(source, ir.Model):
        return _adopted(source)
    if isinstance(source, onnx.ModelProto):
        return _read_buffer(_serialized(source), None, None)
    if isinstance(source, bytes | bytearray | memoryview):
        return _read_buffer(bytes(source), None, None)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return _read_buffer(_mapped(path), path, path.parent)
    raise UsageError(
        f"A model is a path, bytes, an onnx.ModelProto or an onnx_ir.Model, not {type(source).__name__}"
    )


def read_beside(data: bytes, folder: Path) -> ir.Model:
    """The model in `data`, whose other files are in a folder. Raises as `read` does."""
    return _read_buffer(data, None, folder)


def _mapped(path: Path) -> Buffer:
    """The file at `path`. Raises UsageError where there is none, InvalidModelError where it is no model."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise UsageError(f"{show_name(str(path))} cannot be opened", why=error.strerror) from error
    except ValueError as error:  # a NUL in the path
        raise UsageError(f"{show_name(str(path))} cannot be opened", why=str(error)) from error
    try:
        return map_file(path, descriptor)
    finally:
        os.close(descriptor)


def _serialized(proto: onnx.ModelProto) -> bytes:
    try:
        return bytes(proto.SerializeToString())
    except (ValueError, DecodeError) as error:
        raise UsageError(
            "The ModelProto is larger than a message can be",
            why=str(error),
            todo="Save it with external data and give its path",
        ) from error


def _read_buffer(buffer: Buffer, path: Path | None, folder: Path | None) -> ir.Model:
    where = show_name(str(path)) if path else None
    for offset, start, why in _OTHER_FILES:
        if buffer[offset : offset + len(start)] == start:
            raise InvalidModelError("The file is not an ONNX model", where=where, why=why)
    if not len(buffer):
        raise InvalidModelError("The model is empty", where=where, todo="Fetch or export the file again")
    loader = _Loader(buffer, path, ExternalFiles(folder), secrets.token_hex(16))
    proto = _parsed(strip(buffer, loader.key))
    check_model(proto)
    loader.translate(proto)
    try:
        model = serde.deserialize_model(proto)
    except FusileError:
        raise
    except Exception as error:  # whatever the library meets that the checks above let pass
        raise InvalidModelError("The model cannot be read", where=where, why=_root(error)) from error
    loader.finish(model)
    return model


def _root(error: BaseException) -> str:
    """The innermost cause of an error, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__


def _parsed(data: bytes) -> onnx.ModelProto:
    if len(data) > MAX_MESSAGE_BYTES:
        raise UnsafeModelError(
            "The model is larger than a message can be", why=f"{len(data)} bytes without its large tensors"
        )
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        if nested_graphs(data) > MAX_DEPTH // 4:  # protobuf gives up at some 30 graphs in each other
            raise UnsafeModelError("The model's graphs are nested too deep") from error
        raise InvalidModelError(
            "The model is truncated or is not an ONNX file",
            why=str(error),
            todo="Fetch or export the file again",
        ) from error
    return proto


@dataclass
class _Loader:
    """One model on its way from protobuf to onnx_ir: what onnx_ir cannot hold is kept here meanwhile."""

    buffer: Buffer
    path: Path | None
    files: ExternalFiles
    key: str
    sparse: list[SparseTensor] = field(default_factory=list)
    types: list[ir.TypeProtocol] = field(default_factory=list)

    @property
    def sparse_key(self) -> str:
        return f"{self.key}/sparse"

    def translate(self, proto: onnx.ModelProto) -> None:
        """Replace sparse tensors by external ones and map types by a note, in place."""
        for graph in _graphs(proto):
            for sparse in graph.sparse_initializer:
                graph.initializer.append(self._placeholder(sparse, sparse.values.name))
            del graph.sparse_initializer[:]
            for infos in (graph.input, graph.output, graph.value_info):
                for info in infos:
                    self._set_type_aside(info)
            self._translate_nodes(graph.node)
        for function in proto.functions:
            self._translate_nodes(function.node)
            for info in function.value_info:
                self._set_type_aside(info)

    def finish(self, model: ir.Model) -> None:
        """Give every tensor its data and every value its type, in place."""
        _decode_notes(model)
        model.device_configurations = ()
        for graph in (*model.graphs(), *(function.graph for function in model.functions.values())):
            _decode_notes(graph)
            for value in _values(graph):
                index = value.metadata_props.pop(self.key, None) if value.metadata_props else None
                if index is not None:
                    value.type = self.types[int(index)]
                if value.type is None:
                    value.shape = None  # of what is unknown
                if isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value = self._stored(value.const_value)
            for node in graph:
                _decode_notes(node)
                node.device_configurations = ()
                for attribute in tuple(node.attributes.values()):
                    self._finish_attribute(node, attribute)

    def _finish_attribute(self, node: ir.Node, attribute: ir.Attr) -> None:
        if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
            node.attributes[attribute.name] = ir.AttrTensor(attribute.name, self._stored(attribute.value))
        elif attribute.type == ir.AttributeType.TENSORS and not attribute.is_ref():
            tensors = [
                self._stored(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor
                for tensor in attribute.value
            ]
            node.attributes[attribute.name] = ir.AttrTensors(attribute.name, tensors)

    def _stored(self, tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        """The tensor behind an external reference: ours into the model's file, or the model's own."""
        location, offset, name = str(tensor.location), tensor.offset or 0, tensor.name or ""
        if location == self.sparse_key:
            found = self.sparse[offset]
            found.name = name
            return found
        if location == self.key:
            buffer, path, length = self.buffer, self.path, tensor.length or 0
        else:
            return _external(tensor, self.files)
        return MappedTensor(buffer, offset, length, tensor.dtype, _ints(tensor), name=name, path=path)

    def _translate_nodes(self, nodes: Any) -> None:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.SPARSE_TENSOR and not attribute.ref_attr_name:
                    tensor = self._placeholder(attribute.sparse_tensor, "")
                    attribute.ClearField("sparse_tensor")
                    attribute.t.CopyFrom(tensor)
                    attribute.type = onnx.AttributeProto.TENSOR
                    if (
                        attribute.name == "sparse_value"
                    ):  # Constant's: its value is a plain tensor from here on
                        attribute.name = "value"

    def _placeholder(self, sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
        values, indices = (self._part(part) for part in (sparse.values, sparse.indices))
        self.sparse.append(SparseTensor(values, indices, list(sparse.dims), name=name))
        tensor = onnx.TensorProto(name=name, dims=sparse.dims, data_type=sparse.values.data_type)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=self.sparse_key)
        tensor.external_data.add(key="offset", value=str(len(self.sparse) - 1))
        return tensor

    def _part(self, tensor: onnx.TensorProto) -> ir.TensorProtocol:
        """The values or the indices of a sparse tensor."""
        found = serde.deserialize_tensor(tensor)
        return self._stored(found) if isinstance(found, ir.ExternalTensor) else found

    def _set_type_aside(self, info: onnx.ValueInfoProto) -> None:
        if not _has_map(info.type):
            return
        self.types.append(_type_with_map(info.type))
        info.ClearField("type")
        info.metadata_props.add(key=self.key, value=str(len(self.types) - 1))


def _external(tensor: ir.ExternalTensor, files: ExternalFiles) -> MappedTensor:
    """A tensor in a file beside the model, mapped."""
    where = f"tensor {show_name(tensor.name)}"
    proto = onnx.TensorProto(name=tensor.name or "", dims=_ints(tensor), data_type=int(tensor.dtype))
    for key, value in (
        ("location", tensor.location),
        ("offset", tensor.offset),
        ("length", tensor.length),
    ):
        if value is not None:
            proto.external_data.add(key=key, value=str(value))
    location, offset, length = external_entries(proto, where)
    buffer, path = files.map(location, where)
    if length is None:
        length = byte_count(tensor.dtype, tensor.size)
    return MappedTensor(
        buffer, offset, length, tensor.dtype, _ints(tensor), name=tensor.name or "", path=path
    )


def _ints(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    return tuple(int(dim) for dim in tensor.shape.numpy())


def _adopted(source: ir.Model) -> ir.Model:
    """A copy of a model that is in onnx_ir already, whose tensors can be renamed without the original."""
    try:
        model = source.clone()
    except RuntimeError:  # only sorted graphs can be cloned
        return _read_buffer(_serialized(to_proto(source)), None, None)
    folders: dict[str, ExternalFiles] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None:
                raise InvalidModelError("An initialiser has no data", where=f"value {show_name(value.name)}")
            if isinstance(tensor, ir.ExternalTensor):
                base = os.fspath(tensor.base_dir) or "."
                files = folders.setdefault(base, ExternalFiles(Path(base)))
                value.const_value = _external(tensor, files)
            else:
                value.const_value = _renamable(tensor, value.name)
    return model


def _renamable(tensor: ir.TensorProtocol, name: str | None) -> ir.LazyTensor:
    """The same tensor under a name of its own."""
    return ir.LazyTensor(lambda: tensor, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=name, cache=True)


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """All graphs of a model, those inside of nodes and functions too. Their nesting has been checked."""
    waiting = [proto.graph]
    pending: list[Any] = [function.node for function in proto.functions]
    while waiting or pending:
        if waiting:
            graph = waiting.pop()
            yield graph
            pending.append(graph.node)
        for nodes in pending:
            for node in nodes:
                for attribute in node.attribute:
                    if attribute.type == onnx.AttributeProto.GRAPH and not attribute.ref_attr_name:
                        waiting.append(attribute.g)
                    waiting.extend(attribute.graphs)
        pending.clear()


def _decode_notes(item: Any) -> None:
    """Make text of the notes of a model, graph or node that are not UTF-8, which protobuf gives as bytes."""
    if isinstance(item.doc_string, bytes):
        item.doc_string = item.doc_string.decode(errors="replace")
    notes = dict(item.metadata_props)
    if any(isinstance(text, bytes) for pair in notes.items() for text in pair):
        item.metadata_props.clear()
        item.metadata_props.update({_text(key): _text(value) for key, value in notes.items()})


def _text(text: str | bytes) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _has_map(proto: onnx.TypeProto) -> bool:
    kind = proto.WhichOneof("value")
    while kind in ("sequence_type", "optional_type"):
        proto = getattr(proto, kind).elem_type
        kind = proto.WhichOneof("value")
    return bool(kind == "map_type")


def _type_with_map(proto: onnx.TypeProto) -> ir.TypeProtocol:
    """The onnx_ir type of a type with a map in it."""
    kind = proto.WhichOneof("value")
    if kind == "sequence_type":
        return ir.SequenceType(_type_with_map(proto.sequence_type.elem_type))
    if kind == "optional_type":
        return ir.OptionalType(_type_with_map(proto.optional_type.elem_type))
    if kind == "map_type":
        found = MapType(ir.DataType(proto.map_type.key_type), _type_with_map(proto.map_type.value_type))
        return cast(ir.TypeProtocol, found)
    plain = serde.deserialize_type_proto_for_type(proto)
    if plain is None:
        raise InvalidModelError("A map has no type for its values", where=kind)
    return plain
