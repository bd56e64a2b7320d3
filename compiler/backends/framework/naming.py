"""Names for attributes and variables, from what the model calls its tensors and modules."""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx_ir as ir

from fusile.graph import tensors as tn

_TAIL = frozenset(
    {
        "readvariableop",
        "biasadd",
        "conv2d",
        "conv1d",
        "matmul",
        "reshape",
        "kernel",
        "bias",
        "tensordot",
        "einsum",
        "add",
        "mul",
    }
)


def short_path(text: str) -> str:
    """The telling end of a path such as `model/dense_1/BiasAdd/ReadVariableOp:0`; other names as they are."""
    if "/" not in text and ";" not in text:
        return text.removesuffix(":0").replace(":", "_")
    parts = [part for part in text.split(";")[0].removesuffix(":0").split("/") if part]
    while len(parts) > 1 and parts[-1].split(":")[0].lower() in _TAIL:
        parts.pop()
    return "_".join(parts[-2:]).replace(".", "_") or text


def common_prefix(names: Iterable[str]) -> tuple[str, ...]:
    """The leading components that all dotted names share, short of their last two."""
    split = [tuple(n.removesuffix(tn.FOLDED).split(".")) for n in names]
    dotted = [parts for parts in split if len(parts) > 1]
    if len(dotted) < 2:
        return ()
    shared = dotted[0][:-2]
    for parts in dotted:
        while shared and parts[: len(shared)] != shared:
            shared = shared[:-1]
        shared = shared[: max(0, len(parts) - 2)]
    return shared


def snake(text: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower()


def hint_of(node: ir.Node, value: ir.Value) -> str:
    """A name for a value where the natural one is taken: its module, else its operator."""
    inner = tn.scope(node).rsplit(".", 2)[-2:]
    found = inner[-1] if not inner[-1][:1].isdigit() else "_".join(inner)
    return snake(found) or _HINTS.get(node.op_type, snake(node.op_type))


_HINTS = {
    **dict.fromkeys(
        ("GroupNormalization", "LayerNormalization", "RMSNormalization", "BatchNormalization"), "norm"
    ),
    "InstanceNormalization": "norm",
    "ConstantOfShape": "filled",
    "MatMul": "product",
    "Transpose": "turned",
    "Reshape": "shaped",
}


def dim_hint(symbol: str, axis: int, rank: int) -> str:
    """A name for a size: its symbol where that reads well, else what its axis usually is."""
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z]+)*", symbol) and len(symbol) <= 24:
        return symbol
    if axis == 0:
        return "batch"
    if rank >= 4:
        return {rank - 1: "width", rank - 2: "height"}.get(axis, "channels")
    return "length" if axis == 1 else "features"
