"""The table of scalar operations in LLVM IR: one row per operation and kind of type."""

from __future__ import annotations

import struct

from fusile.capabilities import INTEGER_FLOOR, INTEGER_REM, SIMPLE, Capabilities, casts_between
from fusile.capabilities import LIBM as LIBRARY
from fusile.ir.expr import Number
from fusile.ir.types import BF16, BOOL, F16, F32, F64, DType
from fusile.target import X86_64, TargetSpec

REGISTER = {BOOL: "i1", F16: "half", BF16: "i16", F32: "float", F64: "double"}
"""Bfloat16 only moves here (legalisation widens its arithmetic), as bits: LLVM would take a `select` on
`bfloat` apart into calls of a conversion that C libraries lack, on every CPU without the instructions."""
LETTER = {"i1": "i1", "half": "f16", "float": "f32", "double": "f64"}

INSTRUCTION: dict[tuple[str, str], str] = {
    ("add", "f"): "fadd",
    ("sub", "f"): "fsub",
    ("mul", "f"): "fmul",
    ("div", "f"): "fdiv",
    ("neg", "f"): "fneg",
    ("rem", "f"): "frem",
    ("add", "i"): "add",
    ("sub", "i"): "sub",
    ("mul", "i"): "mul",
    ("div", "i"): "sdiv",
    ("rem", "i"): "srem",
    ("add", "u"): "add",
    ("sub", "u"): "sub",
    ("mul", "u"): "mul",
    ("div", "u"): "udiv",
    ("rem", "u"): "urem",
    ("and", "i"): "and",
    ("or", "i"): "or",
    ("xor", "i"): "xor",
    ("and", "u"): "and",
    ("or", "u"): "or",
    ("xor", "u"): "xor",
    ("and", "b"): "and",
    ("or", "b"): "or",
    ("xor", "b"): "xor",
    ("shl", "i"): "shl",
    ("shl", "u"): "shl",
    ("shr", "i"): "ashr",
    ("shr", "u"): "lshr",
}
"""Operations that are one instruction `op type a, b`."""

COMPARE: dict[tuple[str, str], str] = {
    ("lt", "f"): "fcmp olt",
    ("le", "f"): "fcmp ole",
    ("eq", "f"): "fcmp oeq",
    ("ne", "f"): "fcmp une",
    ("lt", "i"): "icmp slt",
    ("le", "i"): "icmp sle",
    ("eq", "i"): "icmp eq",
    ("ne", "i"): "icmp ne",
    ("lt", "u"): "icmp ult",
    ("le", "u"): "icmp ule",
    ("eq", "u"): "icmp eq",
    ("ne", "u"): "icmp ne",
    ("lt", "b"): "icmp ult",
    ("le", "b"): "icmp ule",
    ("eq", "b"): "icmp eq",
    ("ne", "b"): "icmp ne",
}

INTRINSIC: dict[str, str] = {
    "sqrt": "llvm.sqrt",
    "floor": "llvm.floor",
    "ceil": "llvm.ceil",
    "trunc": "llvm.trunc",
    "round": "llvm.roundeven",
    "fma": "llvm.fma",
}
"""Float operations that are one intrinsic with a vector form that every target has."""

LIBM: frozenset[str] = frozenset(
    {"exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "tanh", "erf", "pow"}
)
"""Float operations that call libm, lane by lane, where legalisation left them (f64)."""


def capabilities(target: TargetSpec) -> Capabilities:
    """What this printer takes for a target."""
    halves = target.has("f16c") if target.arch == X86_64 else True
    return Capabilities(
        operations=SIMPLE,
        typed_operations=LIBRARY | INTEGER_REM | INTEGER_FLOOR,
        has_fma=target.has_fma,
        storage_casts=casts_between([F16]) if halves else frozenset(),
        saturating_casts=True,
    )


def register_type(t: DType) -> str:
    """The LLVM type in which a value lives in a register."""
    return REGISTER.get(t) or f"i{t.bits}"


def memory_type(t: DType) -> str:
    """The LLVM type of one element in memory."""
    return "i8" if t is BOOL else register_type(t)


def letters(llvm_type: str) -> str:
    """The suffix of an intrinsic for a scalar type."""
    return LETTER.get(llvm_type, llvm_type)


def literal(value: Number, t: DType) -> str:
    """A constant in LLVM's syntax; floats by their bits."""
    if t is BOOL:
        return "true" if value else "false"
    if t.kind in "iu":
        return str(int(value))
    if t in (F32, F64):
        number = float(value)
        if t is F32:
            try:
                number = struct.unpack("<f", struct.pack("<f", number))[0]
            except OverflowError:
                number = float("inf") if number > 0 else float("-inf")
        return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
    raise TypeError(f"no literal of type {t}: legalisation should have removed it")
