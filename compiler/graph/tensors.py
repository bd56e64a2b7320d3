"""Which initialisers are weights: their role, their name and layout in the weights file, and why.

A float initialiser is a parameter unless something says otherwise: running statistics and tensors that their
source registered as buffers are buffers; tables that only shape the computation (grids of whole and half
numbers, masks, frequencies under a sine, the mean and deviation that an input is normalised with) and
everything that is not a float are constants. Single numbers and small integer lists are no tensors at all;
they are written into the source.

Exporters rename (`val_60`, `onnx::MatMul_716`), transpose and fold. Names come back from module scopes and
from the bias beside a weight; `perm` says how the file's tensor lies relative to the initialiser.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

Role = Literal["param", "buffer", "constant"]

FOLDED = ".folded"
"""Suffix of a tensor into which something was folded: it never carries the name of the original."""
UNNAMED_NORM = "batch normalisation of unknown name"
ALIASES = "fusile.aliases"
"""Key in an initialiser's metadata: other names of the same tensor, separated by newlines."""

_LITERAL = 16
"""Integer constants up to this many elements are written into the source."""
_TABLE = 1 << 22
"""Elements above which a constant's data is not looked at."""
_FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.COMPLEX64}
)
_PACKED = {
    ir.DataType.INT4: "int4",
    ir.DataType.UINT4: "uint4",
    ir.DataType.INT2: "int2",
    ir.DataType.UINT2: "uint2",
    ir.DataType.FLOAT4E2M1: "float4e2m1",
}
_GENERIC = re.compile(
    r"(?:_?val|const|constant|arg|initializer|lifted_tensor|scalar_tensor_default|unsqueeze|tensor|t)?_?\d*"
    r"(?:\.copy\d+_*)?|onnx::.*|.*\.copy\d+_*|.*const_fold_opt.*|p2o\.helper\..*|.*/Constant(?:_\d+)?_output_0|Constant_\d+.*|fill_constant.*"
)
_BUFFER_NAME = re.compile(
    r"(?:^|[./_:])(?:buffer|inv_freq|running_mean|running_var|num_batches_tracked|moving_mean|moving_variance"
    r"|position_ids|relative_position_index|anchors?|forward_basis\w*|inverse_basis\w*)$"
)
_PARAM_NAME = re.compile(
    r"(?:^|[./_:])(?:weight|bias|gamma|beta|alpha|kernel|logit_scale|temperature|slope|[wb]_\d+)$"
)

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})

LAYER_INPUTS: Mapping[str, frozenset[int]] = {
    "Conv": frozenset({1, 2}),
    "ConvTranspose": frozenset({1, 2}),
    "Linear": frozenset({1, 2}),
    "Gemm": frozenset({1, 2}),
    "LayerNormalization": frozenset({1, 2}),
    "RMSNormalization": frozenset({1}),
    "GroupNormalization": frozenset({1, 2}),
    "InstanceNormalization": frozenset({1, 2}),
    "BatchNormalization": frozenset({1, 2, 3, 4}),
    "LSTM": frozenset({1, 2, 3, 7}),
    "GRU": frozenset({1, 2, 3}),
    "RNN": frozenset({1, 2, 3}),
    "PRelu": frozenset({1}),
}
"""Inputs that belong to a layer: a constant there is stored whatever its size."""

SHAPE_INPUTS: Mapping[str, frozenset[int]] = {
    **dict.fromkeys(("Reshape", "Expand", "Unsqueeze", "Squeeze", "Split", "Tile", "TopK"), frozenset({1})),
    "ConstantOfShape": frozenset({0}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Pad": frozenset({1, 2, 3}),
    "Resize": frozenset({1, 2, 3}),
    "Clip": frozenset({1, 2}),
    "Range": frozenset({0, 1, 2}),
    "OneHot": frozenset({1, 2}),
    "CumSum": frozenset({1}),
    "Trilu": frozenset({1}),
    **dict.fromkeys(
        (
            "ReduceSum",
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceProd",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceSumSquare",
        ),
        frozenset({1}),
    ),
}
"""Inputs that shape the computation: constants there are written into the source."""

_ELEMENTWISE = frozenset(
    {"Mul", "Add", "Sub", "Div", "Cast", "Unsqueeze", "Reshape", "Squeeze", "Concat", "Transpose"}
)


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the weights file, and how it comes from the model.

    `perm` lists the initialiser's axes in the order of the file's; axes that it leaves out have size 1.
    None means the initialiser as it is. `folded` names what was folded into the tensor; `alias_of` is the
    name of the tensor that holds the data of this one; `storage` names the type of packed elements.
    """

    name: str
    initializer: str
    role: Role = "param"
    perm: tuple[int, ...] | None = None
    folded: tuple[str, ...] = ()
    alias_of: str | None = None
    storage: str | None = None


def is_named_buffer(name: str) -> bool:
    """Whether a tensor's name says that its source does not train it."""
    return _BUFFER_NAME.search(name) is not None


def is_generic(name: str) -> bool:
    """Whether an exporter made the name up."""
    return _GENERIC.fullmatch(name) is not None


def stored(value: ir.Value) -> bool:
    """Whether an initialiser is a tensor of the weights file; the others are written into the source."""
    held = value.const_value
    if held is None or held.dtype is ir.DataType.STRING:
        return False
    uses = [(use.node.op_type, use.idx) for use in value.uses()]
    if not value.is_graph_output() and all(index in SHAPE_INPUTS.get(op, ()) for op, index in uses):
        return False
    size = math.prod(int(n) for n in held.shape.numpy())
    if all(op in _RECURRENT and index in (5, 6) for op, index in uses) and size <= _TABLE:
        return bool(np.any(np.asarray(held.numpy())))  # an initial state of zeros is none
    if held.dtype not in _FLOATS:
        return size > _LITERAL
    if size != 1:
        return size > 1
    in_layer = any(index in LAYER_INPUTS.get(op, ()) for op, index in uses)
    return in_layer or (bool(_PARAM_NAME.search(str(value.name))) and not is_generic(str(value.name)))


def role_of(value: ir.Value) -> Role:
    """What a stored initialiser is for."""
    held = value.const_value
    assert held is not None
    uses = [(use.node, use.idx) for use in value.uses()]
    if held.dtype not in _FLOATS:
        return "constant"
    statistics = any(node.op_type == "BatchNormalization" and index in (3, 4) for node, index in uses)
    if statistics or is_named_buffer(str(value.name)):
        return "buffer"
    layered = any(index in LAYER_INPUTS.get(node.op_type, ()) for node, index in uses)
    embedding = any(node.op_type == "Gather" and index == 0 for node, index in uses)
    if layered or embedding or any(node.op_type == "MatMul" for node, _ in uses):
        return "param"
    if is_generic(str(value.name)) and _shapes_computation(value):
        return "constant"
    return "param"


def _shapes_computation(value: ir.Value) -> bool:
    uses = [(use.node, use.idx) for use in value.uses()]
    if all(_under_a_sine(node, 3) for node, _ in uses):
        return True
    if all(
        node.op_type in ("Sub", "Div") and index == 1 and _is_input(node.inputs[0]) for node, index in uses
    ):
        return True
    held = value.const_value
    assert held is not None
    if math.prod(int(n) for n in held.shape.numpy()) > _TABLE or held.dtype is ir.DataType.COMPLEX64:
        return False
    data = np.unique(np.asarray(held.numpy()).astype(np.float64))
    if not np.all(np.isfinite(data)) or bool(np.any(np.abs(data) > 1e30)):
        return True
    return data.size > 1 and bool(np.all(data * 2 == np.round(data * 2)))


def _is_input(value: ir.Value | None) -> bool:
    return value is not None and value.is_graph_input()


def _under_a_sine(node: ir.Node, depth: int) -> bool:
    """Whether everything that a node makes goes, through plain arithmetic, into sines and cosines."""
    readers = [use.node for out in node.outputs for use in out.uses()]
    if not readers or depth == 0 or node.op_type not in _ELEMENTWISE:
        return False
    return all(r.op_type in ("Sin", "Cos") or _under_a_sine(r, depth - 1) for r in readers)


# ---- names -------------------------------------------------------------------------------------------


def scopes(node: ir.Node) -> list[str]:
    """Names of the modules around a node, outermost first, as its exporter recorded them; [] if unknown."""
    recorded = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    if recorded and len(recorded) < 4096:
        try:
            found = ast.literal_eval(recorded)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = None
        if isinstance(found, list) and all(isinstance(item, str) for item in found):
            return [item for item in found[:-1] if item and not item.startswith("_empty_nn_module")]
    name = str(node.name or "")
    if not name.startswith("/") or len(name) > 4096:
        return []
    joined: list[str] = []
    before, last = "", ""
    for part in name.split("/")[1:-1]:
        # A container that is not called itself leaves its name in front of its item's: layer1, layer1.0.
        if not last or not part.startswith(last + "."):
            before = f"{joined[-1]}." if joined else ""
        joined.append(before + part)
        last = part
    return joined


def scope(node: ir.Node) -> str:
    """The dotted name of the innermost module around a node, or an empty string."""
    return next(iter(scopes(node)[::-1]), "")


def _norm_scope(node: ir.Node) -> tuple[str, ...]:
    """The batch normalisation that an exporter folded into this layer, if one was."""
    recorded = node.metadata_props.get("pkg.torch.onnx.class_hierarchy", "")
    rule = node.metadata_props.get("pkg.onnxscript.rewriter.rule_name", "")
    if "FuseBatchNorm" in rule or "batchnorm" in recorded.lower():
        return (scope(node) or UNNAMED_NORM,)
    if len(node.inputs) > 2 and all(v is not None and v.is_initializer() for v in node.inputs[1:3]):
        weight, bias = str(node.inputs[1].name), str(node.inputs[2].name)  # type: ignore[union-attr]
        if bias == f"{weight}_bias":
            return (UNNAMED_NORM,)
        if weight.startswith("onnx::Conv") and bias.startswith("onnx::Conv") and scope(node):
            return (UNNAMED_NORM,)
    return ()


def _stem(node: ir.Node, folded: bool) -> str:
    """What the names of a layer's tensors begin with: taken from a named one, else from the scope."""
    ends = {1: ".weight", 2: ".bias"}
    for index, value in enumerate(node.inputs):
        end = ends.get(index, "")
        if end and value is not None and value.is_initializer() and str(value.name).endswith(end):
            return str(value.name).removesuffix(end)
    return "" if folded else scope(node)


def _layer_names(node: ir.Node) -> Iterable[tuple[ir.Value, Weight]]:
    """Names for a layer's weight and bias where the exporter's own do not do."""
    norm = _norm_scope(node) if node.op_type in ("Conv", "ConvTranspose", "Linear") else ()
    stem = _stem(node, bool(norm)) or (scope(node) if norm == (UNNAMED_NORM,) else "")
    for index, kind in ((1, "weight"), (2, "bias")):
        value = node.inputs[index] if len(node.inputs) > index else None
        if value is None or not value.is_initializer() or not stem:
            continue
        own = str(value.name)
        if not (norm or is_generic(own)):
            continue
        perm = _perm(node, value, index) if is_generic(own) else None
        name = f"{stem}.{kind}" + (FOLDED if norm else "")
        yield value, Weight(name, own, perm=perm, folded=norm)


def _perm(node: ir.Node, value: ir.Value, index: int) -> tuple[int, ...] | None:
    shape = [int(n) for n in value.const_value.shape.numpy()] if value.const_value is not None else []
    if node.op_type == "Linear" and index == 1:
        transposed = node.attributes.get("transposed")
        return None if transposed is not None and transposed.as_int() else (1, 0)
    if node.op_type == "GroupNormalization" and len(shape) > 1:
        kept = [axis for axis, size in enumerate(shape) if size != 1]
        return tuple(kept) if len(kept) == 1 else None
    return None


_NAMED_LAYERS = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "Linear",
        "GroupNormalization",
        "LayerNormalization",
        "RMSNormalization",
        "InstanceNormalization",
    }
)


def weights(model: ir.Model) -> dict[str, Weight]:
    """Every tensor of the weights file by the name of its initialiser, in the order of first use.

    The graph is a recognised one. Names are unique; where two derived names meet, the initialisers' own stay.
    """
    order: dict[str, ir.Value] = {}
    derived: dict[str, Weight] = {}
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is not None and value.is_initializer() and stored(value):
                order.setdefault(str(value.name), value)
        if node.op_type in _NAMED_LAYERS:
            for value, weight in _layer_names(node):
                derived.setdefault(str(value.name), weight)
    inner = [value for graph in model.graph.subgraphs() for value in graph.outputs]
    for value in (*model.graph.outputs, *inner):
        if value.is_initializer() and stored(value):
            order.setdefault(str(value.name), value)
    count = Counter(derived[own].name if own in derived else own for own in order)
    out: dict[str, Weight] = {}
    for own, value in order.items():
        found = derived.get(own)
        held = value.const_value
        assert held is not None
        if found is None or count[found.name] > 1:
            folded = found.folded if found is not None else ()
            found = Weight(own + FOLDED if folded else own, own, folded=folded)
        out[own] = replace(found, role=role_of(value), storage=_PACKED.get(held.dtype))
    return out


def aliases(model: ir.Model, known: Mapping[str, Weight]) -> list[Weight]:
    """Records for the other names of tied tensors: `alias_of` says where the data is."""
    out = []
    names = {weight.name for weight in known.values()}
    for own, weight in known.items():
        recorded = model.graph.initializers[own].metadata_props.get(ALIASES, "")
        for other in filter(None, recorded.split("\n")):
            if other not in names:
                names.add(other)
                out.append(
                    Weight(other, own, weight.role, weight.perm, weight.folded, weight.name, weight.storage)
                )
    return out
