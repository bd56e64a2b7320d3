"""Checks on a model before anything is built from it: names, tensors, nesting, types.

They run on the protobuf messages, where an error can still say what the file says. They repair what
ONNX Runtime accepts too (initialisers given twice, attributes without a type), in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, MutableSequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from fusile.errors import InvalidModelError, UnsafeModelError, show_name, show_names
from fusile.frontend.limits import MAX_DEPTH, MAX_NODES
from fusile.frontend.storage import byte_count, element_count

_ATTRIBUTE = onnx.AttributeProto
_EXTERNAL = onnx.TensorProto.EXTERNAL

# Where the single value of an attribute of each type is. Lists come second: an empty one is no sign.
_ATTRIBUTE_FIELDS: tuple[tuple[str, int], ...] = (
    ("f", _ATTRIBUTE.FLOAT),
    ("i", _ATTRIBUTE.INT),
    ("s", _ATTRIBUTE.STRING),
    ("t", _ATTRIBUTE.TENSOR),
    ("g", _ATTRIBUTE.GRAPH),
    ("sparse_tensor", _ATTRIBUTE.SPARSE_TENSOR),
    ("tp", _ATTRIBUTE.TYPE_PROTO),
)
_ATTRIBUTE_LISTS: tuple[tuple[str, int], ...] = (
    ("floats", _ATTRIBUTE.FLOATS),
    ("ints", _ATTRIBUTE.INTS),
    ("strings", _ATTRIBUTE.STRINGS),
    ("tensors", _ATTRIBUTE.TENSORS),
    ("graphs", _ATTRIBUTE.GRAPHS),
)

# Which field of TensorProto holds elements of which types, when raw_data does not.
_TYPE = ir.DataType
_TYPED_FIELDS: tuple[tuple[str, frozenset[ir.DataType]], ...] = (
    ("float_data", frozenset({_TYPE.FLOAT, _TYPE.COMPLEX64})),
    ("double_data", frozenset({_TYPE.DOUBLE, _TYPE.COMPLEX128})),
    ("int64_data", frozenset({_TYPE.INT64})),
    ("uint64_data", frozenset({_TYPE.UINT32, _TYPE.UINT64})),
)


def check_model(proto: onnx.ModelProto) -> None:
    """Check `proto` and repair it in place.

    Raises InvalidModelError or UnsafeModelError, naming nodes and values.
    """
    if not proto.HasField("graph"):
        raise InvalidModelError(
            "The file holds no ONNX graph", todo="Check that it is an .onnx file and not of another format"
        )
    _check_texts((item.domain for item in proto.opset_import), "the opset imports")
    checker = _Checker()
    checker.graph(proto.graph, (), 0, "the main graph")
    _refuse_duplicates(
        Counter(f"{item.domain}::{item.name}:{item.overload}" for item in proto.functions), "functions"
    )
    for function in proto.functions:
        checker.function(function)


def node_label(node: onnx.NodeProto) -> str:
    """How an error names a node: its name, else its operator and first output."""
    if node.name:
        return f"node {show_name(node.name)}"
    made = f" of {show_name(node.output[0])}" if node.output and node.output[0] else ""
    return f"node {show_name(node.op_type)}{made}"


def element_type(number: int, where: str) -> ir.DataType:
    """The data type with this ONNX number. Raises InvalidModelError where there is none."""
    try:
        return ir.DataType(number)
    except ValueError as error:
        raise InvalidModelError("A tensor has an unknown data type", where=where, why=str(number)) from error


@dataclass
class _Checker:
    nodes: int = 0

    def graph(self, graph: onnx.GraphProto, outer: tuple[set[str], ...], depth: int, where: str) -> None:
        if depth > MAX_DEPTH:
            raise UnsafeModelError(
                "The model's graphs are nested too deep", where=where, why=f"fusile reads {MAX_DEPTH} levels"
            )
        _keep_last(graph.initializer)
        inputs = [info.name for info in graph.input]
        stored = [tensor.name for tensor in graph.initializer]
        stored += [tensor.values.name for tensor in graph.sparse_initializer]
        made = [name for node in graph.node for name in node.output if name]
        _check_texts((graph.name, *inputs, *stored, *made), where)
        _refuse_duplicates(Counter(inputs), f"inputs of {where}")
        # An initialiser may give the default of an input, but nothing gives the name of what a node makes.
        _refuse_duplicates(Counter(made + list({*inputs, *stored})), f"values of {where}")
        if "" in inputs or "" in stored:
            raise InvalidModelError("An input or an initialiser has no name", where=where)
        for tensor in graph.initializer:
            self.tensor(tensor, f"initialiser {show_name(tensor.name)}")
        for sparse in graph.sparse_initializer:
            self.sparse(sparse, f"initialiser {show_name(sparse.values.name)}")
        for info in graph.input:
            if depth == 0 and info.name not in stored and _says_nothing(info.type):
                raise InvalidModelError(
                    "An input has elements of no type",
                    where=f"input {show_name(info.name)}",
                    todo="Declare their type",
                )
        for infos in (graph.input, graph.output, graph.value_info):
            _check_texts((info.name for info in infos), where)
            for info in infos:
                check_type(info.type, f"value {show_name(info.name)}")
                if _says_nothing(info.type):
                    info.ClearField("type")
        scope = {*inputs, *stored, *made}
        self.scoped(graph.node, (*outer, scope), depth, where)
        lost = [info.name for info in graph.output if info.name not in scope]
        if lost:
            raise InvalidModelError(
                "The graph has outputs that no node makes",
                where=where,
                why=show_names(lost),
                todo="An outer value becomes a branch's output through an Identity node" if depth else None,
            )

    def function(self, function: onnx.FunctionProto) -> None:
        _check_texts((function.domain, function.name, function.overload), "a function")
        where = f"function {show_name(f'{function.domain}::{function.name}')}"
        made = [name for node in function.node for name in node.output if name]
        _check_texts((*made, *function.input, *function.output, *function.attribute), where)
        _refuse_duplicates(Counter([*made, *function.input]), f"values of {where}")
        scope = {*made, *function.input}
        for attribute in function.attribute_proto:
            self.attribute(attribute, (), 1, where)
        self.scoped(function.node, (scope,), 0, where, in_function=True)
        lost = [name for name in function.output if name not in scope]
        if lost:
            raise InvalidModelError(
                "The function has outputs that no node makes", where=where, why=show_names(lost)
            )

    def scoped(
        self,
        nodes: Iterable[onnx.NodeProto],
        scopes: tuple[set[str], ...],
        depth: int,
        where: str,
        in_function: bool = False,
    ) -> None:
        """Check nodes whose inputs may come from any of `scopes`."""
        lost: list[str] = []
        for node in nodes:
            self.nodes += 1
            if self.nodes > MAX_NODES:
                raise UnsafeModelError("The model has too many nodes", why=f"fusile reads {MAX_NODES}")
            _check_texts((node.name, node.op_type, node.domain, node.overload, *node.input), where)
            if not node.op_type:
                raise InvalidModelError("A node has no operator", where=node_label(node))
            for name in node.input:
                if name and not any(name in scope for scope in scopes):
                    lost.append(f"{show_name(name)} at {node_label(node)}")
            for attribute in node.attribute:
                _check_texts((attribute.name, attribute.ref_attr_name), node_label(node))
            _refuse_duplicates(
                Counter(item.name for item in node.attribute), f"attributes of {node_label(node)}"
            )
            for attribute in node.attribute:
                if attribute.ref_attr_name and not in_function and depth == 0:
                    raise InvalidModelError(
                        "An attribute refers to a function's attribute outside of any function",
                        where=node_label(node),
                        why=show_name(attribute.ref_attr_name),
                    )
                self.attribute(attribute, scopes, depth + 1, node_label(node))
        if lost:
            shown = "; ".join(lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
            raise InvalidModelError(
                "Nodes read values that nothing defines: no input, no initialiser, no node",
                where=where,
                why=shown,
            )

    def attribute(
        self, attribute: onnx.AttributeProto, scopes: tuple[set[str], ...], depth: int, where: str
    ) -> None:
        where = f"{where}, attribute {show_name(attribute.name)}"
        if not attribute.type and not attribute.ref_attr_name:
            attribute.type = _guessed_type(attribute)
        kind = attribute.type
        if kind not in _ATTRIBUTE.AttributeType.values():
            raise InvalidModelError("An attribute has an unknown type", where=where, why=str(kind))
        if kind == _ATTRIBUTE.GRAPH and not attribute.ref_attr_name:
            self.graph(attribute.g, scopes, depth, f"the graph of {where}")
        for graph in attribute.graphs:
            self.graph(graph, scopes, depth, f"a graph of {where}")
        if kind == _ATTRIBUTE.TENSOR and not attribute.ref_attr_name:
            self.tensor(attribute.t, where)
        for tensor in attribute.tensors:
            self.tensor(tensor, where)
        if kind == _ATTRIBUTE.SPARSE_TENSOR:
            self.sparse(attribute.sparse_tensor, where)
        if kind == _ATTRIBUTE.TYPE_PROTO:
            check_type(attribute.tp, where)
        for item in attribute.type_protos:
            check_type(item, where)

    def sparse(self, sparse: onnx.SparseTensorProto, where: str) -> None:
        element_count(sparse.dims, where)
        self.tensor(sparse.values, where)
        self.tensor(sparse.indices, where)

    def tensor(self, tensor: onnx.TensorProto, where: str) -> None:
        dtype = element_type(tensor.data_type, where)
        if dtype == _TYPE.UNDEFINED:
            raise InvalidModelError("A tensor has no data type", where=where)
        if tensor.HasField("segment"):
            raise InvalidModelError(
                "A tensor is stored in segments, which no version of ONNX reads", where=where
            )
        count = element_count(tensor.dims, where)
        if tensor.data_location == _EXTERNAL:
            if dtype == _TYPE.STRING:
                raise InvalidModelError("Strings cannot be stored in another file", where=where)
            external_entries(tensor, where)
            return
        stored, needed, what = _stored_count(tensor, dtype, count)
        if stored != needed:
            raise InvalidModelError(
                "A tensor's data do not fit its shape",
                where=where,
                why=f"{dtype.name} {list(tensor.dims)} needs {needed} {what} and there are {stored}",
            )


def external_entries(tensor: onnx.TensorProto, where: str) -> tuple[str, int, int | None]:
    """Location, offset and length of a tensor in another file; keys that are not ONNX's are removed."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    numbers: dict[str, int | None] = {"offset": 0, "length": None}
    for name in numbers:
        text = entries.get(name, "")
        if text:
            if not (text.isascii() and text.isdigit() and len(text) < 20):
                raise InvalidModelError(
                    f"A tensor's {name} in its file is no number", where=where, why=show_name(text)
                )
            numbers[name] = int(text)
    offset, length = numbers["offset"], numbers["length"]
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value=str(offset))
    if length is not None:
        tensor.external_data.add(key="length", value=str(length))
    return location, offset or 0, length


def _says_nothing(proto: onnx.TypeProto) -> bool:
    """Whether a type is that of a tensor of undefined elements, as some exporters write of what they do not
    know.
    """
    return proto.WhichOneof("value") == "tensor_type" and proto.tensor_type.elem_type == _TYPE.UNDEFINED


def check_type(proto: onnx.TypeProto, where: str) -> None:
    """Check the element types inside a type, however nested. Raises InvalidModelError, UnsafeModelError."""
    for _ in range(MAX_DEPTH):
        kind = proto.WhichOneof("value")
        if kind in ("tensor_type", "sparse_tensor_type"):
            tensor = getattr(proto, kind)
            element_type(tensor.elem_type, where)
            _check_texts((dim.dim_param for dim in tensor.shape.dim), where)
            return
        if kind == "map_type":
            element_type(proto.map_type.key_type, where)
            proto = proto.map_type.value_type
        elif kind in ("sequence_type", "optional_type"):
            proto = getattr(proto, kind).elem_type
        else:
            return
    raise UnsafeModelError("A type is nested too deep", where=where, why=f"fusile reads {MAX_DEPTH} levels")


def _stored_count(tensor: onnx.TensorProto, dtype: ir.DataType, count: int) -> tuple[int, int, str]:
    """How much a tensor stores, how much its `count` elements need, and of what."""
    if dtype == _TYPE.STRING:
        return len(tensor.string_data), count, "strings"
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), byte_count(dtype, count), "bytes"
    for name, dtypes in _TYPED_FIELDS:
        if dtype in dtypes:
            parts = 2 if dtype in (_TYPE.COMPLEX64, _TYPE.COMPLEX128) else 1
            return len(getattr(tensor, name)), count * parts, "numbers"
    # All else is in int32_data; types of 4 and 2 bits keep a byte's worth of elements in each number.
    packed = dtype.bitwidth in (2, 4)
    return len(tensor.int32_data), byte_count(dtype, count) if packed else count, "numbers"


def _guessed_type(attribute: onnx.AttributeProto) -> onnx.AttributeProto.AttributeType:
    """The type of an attribute that does not say it, as files of the first IR version do not."""
    for name, kind in _ATTRIBUTE_FIELDS:
        if attribute.HasField(name):
            return kind  # type: ignore[return-value]
    for name, kind in _ATTRIBUTE_LISTS:
        if len(getattr(attribute, name)):
            return kind  # type: ignore[return-value]
    return _ATTRIBUTE.INTS


def _keep_last(initializers: MutableSequence[onnx.TensorProto]) -> None:
    """Of initialisers with one name, keep the last, as ONNX Runtime does."""
    last = {tensor.name: index for index, tensor in enumerate(initializers)}
    for index in range(len(initializers) - 1, -1, -1):
        if last[initializers[index].name] != index:
            del initializers[index]


def _check_texts(texts: Iterable[str | bytes], where: str) -> None:
    """Protobuf gives bytes for text that is not UTF-8."""
    for text in texts:
        if not isinstance(text, str):
            raise InvalidModelError("A name is not UTF-8 text", where=where, why=repr(text[:80]))


def _refuse_duplicates(counts: Mapping[str, int], what: str) -> None:
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise InvalidModelError(f"Names occur twice among the {what}", why=show_names(twice))
