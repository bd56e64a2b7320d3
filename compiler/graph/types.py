"""Types of values: the one that onnx_ir has no class for, and which of them are tensors of numbers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class MapType:
    """A map from keys, integers or strings, to values of one type. Stands where onnx_ir has its types."""

    key: ir.DataType
    value: ir.TypeProtocol
    denotation: str | None = None

    @property
    def elem_type(self) -> ir.TypeProtocol:
        return self.value

    @property
    def dtype(self) -> ir.DataType:
        return self.value.dtype

    def __str__(self) -> str:
        return f"Map({self.key.name},{self.value})"


def is_numeric(found: ir.TypeProtocol | None) -> bool:
    """Whether a type is that of dense tensors of numbers, which a tensor program holds. False for None."""
    return isinstance(found, ir.TensorType) and found.dtype not in (
        ir.DataType.STRING,
        ir.DataType.UNDEFINED,
    )
