"""What a kernel backend can print: the record by which legalisation decides what to rewrite."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fusile.ir.types import BOOL, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType

MACHINE_TYPES: frozenset[DType] = frozenset({BOOL, I8, I16, I32, I64, U8, U16, U32, U64, F32, F64})
"""The value types that every present target computes in."""

CORE: frozenset[str] = frozenset(
    {
        "add",
        "sub",
        "mul",
        "div",
        "sqrt",
        "lt",
        "le",
        "eq",
        "and",
        "or",
        "xor",
        "shl",
        "shr",
        "select",
        "cast",
        "bitcast",
    }
)
"""The operations that legalisation cannot express by others: every target prints them."""

SIMPLE: frozenset[str] = CORE | {"neg", "abs", "min", "max", "floor", "ceil", "trunc", "round", "ne", "not"}
"""CORE and what instruction sets have beside it, for every type."""

INTEGER_REM: frozenset[tuple[str, DType]] = frozenset(("rem", t) for t in MACHINE_TYPES if t.is_int)
"""The remainder instruction. (Of floats, `rem` is a call or an expansion.)"""

INTEGER_FLOOR: frozenset[tuple[str, DType]] = frozenset(
    (op, t) for op in ("floordiv", "mod") for t in MACHINE_TYPES if t.is_int
)
"""Flooring division, where a printer has it. (Of floats, `mod` follows from `rem`.)"""

FUNCTIONS: frozenset[str] = frozenset(
    {"exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "tanh", "erf", "pow"}
)
"""The transcendental operations: expressions of ours in f32, calls of the C library in f64."""

LIBM: frozenset[tuple[str, DType]] = frozenset((name, F64) for name in FUNCTIONS | {"rem"})
"""What a target that can call the C library prints in f64; `rem` is its fmod."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a kernel backend computes in and prints.

    `computes`: the value types that arithmetic may have. Values of another type occur only as words in
    memory: they are loaded, stored, and viewed as bits. `operations`: the scalar operations printed for every
    type of `computes` on which they make sense; `typed_operations`: further ones for one type alone (LIBM,
    INTEGER_REM). `fma` and `ne`, say, need not be among them; CORE must be. `storage_casts`: (from, to)
    conversions that involve a type outside `computes` and yet are one instruction, such as f32 <-> f16 with
    F16C. `saturating_casts`: float to integer prints with saturation and NaN as 0; without it such casts are
    guarded.
    """

    computes: frozenset[DType] = MACHINE_TYPES
    operations: frozenset[str] = SIMPLE
    typed_operations: frozenset[tuple[str, DType]] = LIBM | INTEGER_REM
    has_fma: bool = False
    storage_casts: frozenset[tuple[DType, DType]] = frozenset()
    saturating_casts: bool = False

    def __post_init__(self) -> None:
        missing = sorted(CORE - self.operations)
        if missing:
            raise ValueError(f"a target must print {', '.join(missing)}")
        absent = sorted(str(t) for t in MACHINE_TYPES - self.computes)
        if absent:
            raise ValueError(f"a target must compute in {', '.join(absent)}")

    def prints(self, op: str, dtype: DType) -> bool:
        """Whether an operation on values of a type is printed as it is."""
        if dtype not in self.computes:
            return False
        if op == "fma":
            return self.has_fma and dtype.is_float
        return op in self.operations or (op, dtype) in self.typed_operations

    def converts(self, source: DType, to: DType) -> bool:
        """Whether a cast is printed as it is."""
        return (source in self.computes and to in self.computes) or (source, to) in self.storage_casts


def casts_between(types: Iterable[DType], other: DType = F32) -> frozenset[tuple[DType, DType]]:
    """The conversions of each type to `other` and back, for `storage_casts`."""
    return frozenset(pair for t in types for pair in ((t, other), (other, t)))
