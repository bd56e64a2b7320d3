"""A model on its way into the compiler: its canonical graph, what people know of it, and its raw weights."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from fusile import frontend
from fusile.artefacts import RawName
from fusile.backends.native.module import Face
from fusile.frontend.names import UNNAMED_AXES
from fusile.frontend.structure import Structure, Watch, structure
from fusile.graph.cleanup import clean_up
from fusile.graph.types import is_numeric
from fusile.ir.types import BY_CODE, numpy_dtype
from fusile.options import Options
from fusile.passes.to_tensor import defined, takes
from fusile.runtime import abi
from fusile.runtime.module import TENSOR_NAMES, Array, ModelInfo

if TYPE_CHECKING:
    from fusile.backends.native.build import Raw

_ALIGNMENT = 16
"""Of raw tensors that are packed where they lie; files align them as they like."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A canonical graph whose operators all have definitions, or are gaps.

    `unnamed` are the symbols that were made up for dimensions, with what the file calls these, `declared` the
    symbols that the file names for the dimensions of outputs, `replaced_shapes` says whether weights were
    replaced that shape the code.
    """

    model: ir.Model
    watch: Watch
    info: ModelInfo
    unnamed: Mapping[str, str | None]
    declared: Mapping[str, tuple[str | None, ...]]
    replaced_shapes: bool = False

    def raw(self, place: RawName, constants: bytes) -> Raw:
        """The bytes that a packing step takes: of an initialiser by name, or of a part of `constants`."""
        if isinstance(place, tuple):
            offset, size = place
            return lambda: constants[offset : offset + size]
        held = self.watch.tensors[place]
        dtype = numpy_dtype(BY_CODE[int(held.dtype)])

        def read() -> bytes | Array:
            array: Array = np.ascontiguousarray(held.numpy(), dtype=dtype)
            return array if array.ctypes.data % _ALIGNMENT == 0 else array.tobytes()

        return read

    def let_go(self) -> None:
        """Release the pages of mapped files that hold weights. They are read again where they are needed."""
        self.watch.let_go()


def read(source: Any, options: Options, known: Callable[[str, str], bool] = defined) -> Loaded:
    """The canonical graph of a model, with the weights that options ask for, and with operators that are not
    `known` expanded into their function bodies. Raises as `frontend.load` does.
    """
    model = frontend.load(source, dims=dict(options.dims))
    reshaping = False
    if options.weights is not None:
        from fusile import retrained  # it brings the framework backends, for their names of weights

        reshaping = retrained.replace(model, source, options)
    info = ModelInfo(
        model.graph.name or "",
        model.producer_name or "",
        model.domain or "",
        model.doc_string or "",
        model.graph.doc_string or "",
        model.model_version,
        dict(model.metadata_props),
        tuple(
            (name, f"tensor({TENSOR_NAMES[element]})", shape)
            for name, element, shape in model.meta.get(frontend.OVERRIDABLE, ())
            if element in TENSOR_NAMES
        ),
    )
    unnamed = {
        symbol: said
        for value in model.graph.inputs
        for axis, said in value.meta.get(UNNAMED_AXES, {}).items()
        if value.shape is not None and (symbol := _symbol(value.shape[axis]))
    }
    declared = {
        str(value.name): tuple(_symbol(dim) for dim in value.shape)
        for value in model.graph.outputs
        if value.shape is not None
    }
    watch = Watch(model)
    frontend.expand(model, known)
    clean_up(model)
    if "FUSILE_VERIFY" in os.environ:
        from fusile.passes import strict

        strict.check_graph("clean_up", model)
    return Loaded(model, watch, info, unnamed, declared, reshaping)


def needs_host(model: ir.Model) -> bool:
    """Whether a canonical graph has values or nodes that a tensor program does not take and the host part
    serves. Where this is False, that part is never loaded.
    """
    graph = model.graph
    if any(value.type is None for value in graph.inputs):
        return False
    if any(not is_numeric(value.type) or value.shape is None for value in graph.inputs):
        return True
    if any(value.type is not None and not is_numeric(value.type) for value in graph.outputs):
        return True
    left = [node for node in graph.all_nodes() if not takes(node)]
    if left:
        from fusile.kernels.host.registry import HOST_OPERATORS

        if any((node.domain, node.op_type) in HOST_OPERATORS for node in left):
            return True
    read = (value for node in graph.all_nodes() for value in (*node.inputs, *node.outputs))
    return any(
        value is not None and (value.dtype is ir.DataType.STRING or not _may_be_numeric(value.type))
        for value in read
    )


def _may_be_numeric(found: ir.TypeProtocol | None) -> bool:
    return found is None or is_numeric(found)


def structure_of(source: Any) -> Structure:
    """The structure of a model in a file or in bytes."""
    if isinstance(source, bytes):
        return structure(source)
    with Path(source).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return structure(data)


def face_of(loaded: Loaded, interface: abi.PlanInterface) -> Face:
    """The ports as people see them: unnamed dimensions are None, and outputs keep the symbols that the file
    gives to their sizes.
    """

    def shown(port: abi.Port, declared: tuple[str | None, ...]) -> abi.Port:
        dims = [loaded.unnamed.get(dim, dim) if isinstance(dim, str) else dim for dim in port.dims]
        if len(declared) == len(dims):
            dims = [dim if isinstance(dim, int) else name or dim for dim, name in zip(dims, declared)]
        return replace(port, dims=tuple(dims))

    return Face(
        tuple(shown(port, ()) for port in interface.inputs),
        tuple(shown(port, loaded.declared.get(port.name, ())) for port in interface.outputs),
        loaded.info,
    )


def model_name(source: Any) -> str:
    """What to call a model in reports."""
    if isinstance(source, (str, os.PathLike)):
        return Path(source).name
    return str(getattr(getattr(source, "graph", None), "name", "") or "model")


def _symbol(dim: int | ir.SymbolicDim) -> str | None:
    return dim.value if isinstance(dim, ir.SymbolicDim) else None
