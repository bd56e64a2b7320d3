"""Rows for linear quantisation in whole numbers: they are the same in both frameworks.

Blocks, small floats and mixed types are left to the operators' definitions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx_ir as ir

from fusile.backends.framework.code import Code, Plain
from fusile.backends.framework.common import Row
from fusile.backends.framework.site import Site

_WHOLE = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16})
_MORE = _WHOLE | {ir.DataType.INT32}


def _axis(n: Site) -> list[Plain]:
    """The axis along which scales lie, where there is more than one."""
    shape = n.value(1).shape
    if shape is None or n.integer("block_size") or len(shape) > 1:
        n.refuse("scales of blocks")
    if not len(shape) or math.prod(s if isinstance(s, int) else 2 for s in shape) == 1:
        return []
    return [n.integer("axis", 1) % n.rank()]


def quantize(kind_name: Callable[[ir.DataType], Plain]) -> Row:
    def row(n: Site) -> Code:
        kind, scale = n.result_dtype(), n.value(1).dtype
        if kind not in _WHOLE or n.dtype() is not scale or n.integer("precision"):
            n.refuse("quantisation to this type")
        point = n.tensor(2) if n.has(2) else None
        axis = _axis(n)
        return n.helper("quantize")(n.tensor(0), n.tensor(1), point, kind_name(kind), *axis)

    return row


def dequantize(n: Site) -> Code:
    if n.dtype() not in _MORE or n.result_dtype() is not n.value(1).dtype:
        n.refuse("dequantisation of this type")
    axis = _axis(n)
    point: list[Plain] = [n.tensor(2)] if n.has(2) else [None] if axis else []
    return n.helper("dequantize")(n.tensor(0), n.tensor(1), *point, *axis)


def rows(kind_name: Callable[[ir.DataType], Plain]) -> Mapping[str, Row]:
    """The table; `kind_name` spells a type."""
    return {"QuantizeLinear": quantize(kind_name), "DequantizeLinear": dequantize}
