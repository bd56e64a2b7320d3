"""Types: what a number means (a value type) and how its bits lie in memory (a storage).

A value type says what a scalar computes as; a storage says in which machine word it is kept and how many
share one. Float16 is kept in 16-bit words, bool in bytes, int4 two to a byte. Backends state which value
types they compute in; legalisation inserts the conversions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """A scalar value type. `kind` is one of b(ool), i(nt), u(nsigned), f(loat), c(omplex), s(tring); `code`
    is ONNX's number.
    """

    name: str
    kind: str
    bits: int
    code: int

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_int(self) -> bool:
        return self.kind in "iu"

    @property
    def is_bool(self) -> bool:
        return self.kind == "b"


@dataclass(frozen=True, slots=True)
class Storage:
    """How scalars lie in memory: `lanes` of them in one word of `word` type."""

    word: DType
    lanes: int = 1

    @property
    def word_bytes(self) -> int:
        return self.word.bits // 8


BOOL = DType("bool", "b", 8, 9)
I2 = DType("i2", "i", 2, 26)
I4 = DType("i4", "i", 4, 22)
I8 = DType("i8", "i", 8, 3)
I16 = DType("i16", "i", 16, 5)
I32 = DType("i32", "i", 32, 6)
I64 = DType("i64", "i", 64, 7)
U2 = DType("u2", "u", 2, 25)
U4 = DType("u4", "u", 4, 21)
U8 = DType("u8", "u", 8, 2)
U16 = DType("u16", "u", 16, 4)
U32 = DType("u32", "u", 32, 12)
U64 = DType("u64", "u", 64, 13)
F4E2M1 = DType("f4e2m1", "f", 4, 23)
F8E4M3FN = DType("f8e4m3fn", "f", 8, 17)
F8E4M3FNUZ = DType("f8e4m3fnuz", "f", 8, 18)
F8E5M2 = DType("f8e5m2", "f", 8, 19)
F8E5M2FNUZ = DType("f8e5m2fnuz", "f", 8, 20)
F8E8M0 = DType("f8e8m0", "f", 8, 24)
BF16 = DType("bf16", "f", 16, 16)
F16 = DType("f16", "f", 16, 10)
F32 = DType("f32", "f", 32, 1)
F64 = DType("f64", "f", 64, 11)
C64 = DType("c64", "c", 64, 14)
C128 = DType("c128", "c", 128, 15)
STRING = DType("string", "s", 0, 8)

ALL: tuple[DType, ...] = (
    BOOL,
    I2,
    I4,
    I8,
    I16,
    I32,
    I64,
    U2,
    U4,
    U8,
    U16,
    U32,
    U64,
    F4E2M1,
    F8E4M3FN,
    F8E4M3FNUZ,
    F8E5M2,
    F8E5M2FNUZ,
    F8E8M0,
    BF16,
    F16,
    F32,
    F64,
    C64,
    C128,
    STRING,
)
BY_NAME: dict[str, DType] = {t.name: t for t in ALL}
BY_CODE: dict[int, DType] = {t.code: t for t in ALL}

_UNSIGNED = {8: U8, 16: U16, 32: U32, 64: U64}
_NUMPY_NAMES = {
    BOOL: "bool",
    I8: "int8",
    I16: "int16",
    I32: "int32",
    I64: "int64",
    U8: "uint8",
    U16: "uint16",
    U32: "uint32",
    U64: "uint64",
    F16: "float16",
    F32: "float32",
    F64: "float64",
    C64: "complex64",
    C128: "complex128",
    STRING: "object",
}
_ML_DTYPES_NAMES = {
    BF16: "bfloat16",
    I4: "int4",
    U4: "uint4",
    I2: "int2",
    U2: "uint2",
    F4E2M1: "float4_e2m1fn",
    F8E4M3FN: "float8_e4m3fn",
    F8E4M3FNUZ: "float8_e4m3fnuz",
    F8E5M2: "float8_e5m2",
    F8E5M2FNUZ: "float8_e5m2fnuz",
    F8E8M0: "float8_e8m0fnu",
}


def storage_of(t: DType) -> Storage:
    """The storage in which tensors of a value type are kept; strings have none."""
    if t.kind == "s":
        raise TypeError("strings have no storage in native memory")
    if t.bits < 8:
        return Storage(U8, 8 // t.bits)
    if t in (BF16, F16) or (t.kind == "f" and t.bits == 8):
        return Storage(_UNSIGNED[t.bits])
    return Storage(U8 if t is BOOL else t)


def storage_bytes(t: DType) -> int:
    """Bytes per scalar where one is kept per word (packed types round up)."""
    return max(1, t.bits // 8)


def numpy_dtype(t: DType) -> np.dtype:
    """The numpy dtype that carries a value type in and out (ml_dtypes for the small ones)."""
    if t in _NUMPY_NAMES:
        return np.dtype(_NUMPY_NAMES[t])
    import ml_dtypes

    found: np.dtype = np.dtype(getattr(ml_dtypes, _ML_DTYPES_NAMES[t]))
    return found


_BY_NUMPY = {v: k for k, v in _NUMPY_NAMES.items()} | {v: k for k, v in _ML_DTYPES_NAMES.items()}


def from_numpy(dtype: np.dtype) -> DType:
    """The value type of a numpy dtype. Raises TypeError for one that ONNX does not have."""
    if dtype.kind in "US":
        return STRING
    try:
        return _BY_NUMPY[dtype.name]
    except KeyError:
        raise TypeError(f"ONNX has no element type for numpy's {dtype}") from None
