"""What operations on literals mean: the values that `apply` folds them to."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fusile.ir.types import BF16, BOOL, F16, F32, F64, DType, numpy_dtype

Number = int | float | bool


def _wrap(value: int, t: DType) -> int:
    if t.kind == "b":
        return int(bool(value))
    value &= (1 << t.bits) - 1
    return value - (1 << t.bits) if t.kind == "i" and value >> (t.bits - 1) else value


def _float_to_int(value: float, t: DType) -> int:
    """The stated meaning of a cast: truncate, saturate, NaN is 0."""
    if math.isnan(value):
        return 0
    low = -(1 << (t.bits - 1)) if t.kind == "i" else 0
    high = (1 << (t.bits - (t.kind == "i"))) - 1
    return low if value <= low else high if value >= high else int(value)


_INTEGER_FOLDS: dict[str, Callable[..., int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: 0 if b == 0 else (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1),
    "floordiv": lambda a, b: 0 if b == 0 else a // b,
    "mod": lambda a, b: 0 if b == 0 else a % b,
    "rem": lambda a, b: 0 if b == 0 else a - b * ((abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)),
    "neg": lambda a: -a,
    "abs": lambda a: abs(a),
    "min": lambda a, b: b if b < a else a,
    "max": lambda a, b: b if a < b else a,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "fma": lambda a, b, c: a * b + c,
}
_COMPARISONS: dict[str, Callable[[Number, Number], bool]] = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}


def fold(op: str, values: tuple[Number, ...], source: DType, result: DType) -> Number | None:
    """The value of an operation on literals, or None where folding is left to the target (inexact float
    operations).
    """
    if op in _COMPARISONS:
        return _COMPARISONS[op](values[0], values[1])
    if op == "select":
        return values[1] if values[0] else values[2]
    if op == "cast":
        return _fold_cast(values[0], source, result)
    if op == "not":
        return not values[0] if result is BOOL else _wrap(~int(values[0]), result)
    if result.kind in "iub" and op in _INTEGER_FOLDS and result.bits >= 8:
        return _wrap(_INTEGER_FOLDS[op](*(int(v) for v in values)), result)
    if result in (F32, F64):
        return _fold_float(op, values, result)
    return None


def _fold_cast(value: Number, source: DType, result: DType) -> Number | None:
    if result.kind == "b":
        return bool(value)
    if result.kind in "iu":
        return _wrap(int(value), result) if source.kind in "iub" else _float_to_int(float(value), result)
    return nearest(float(value), result) if result in (BF16, F16, F32, F64) else None


def _fold_float(op: str, values: tuple[Number, ...], result: DType) -> float | None:
    a = float(values[0])
    b = float(values[1]) if len(values) > 1 else 0.0
    if op in ("add", "sub", "mul") or (op == "div" and b != 0.0):
        exact = {"add": a + b, "sub": a - b, "mul": a * b}.get(op)
        return nearest(a / b if exact is None else exact, result)
    if op in ("neg", "abs"):
        return -a if op == "neg" else abs(a)
    if op in ("min", "max"):
        return (b if b < a else a) if op == "min" else (b if a < b else a)
    if op == "sqrt" and a >= 0:
        return nearest(math.sqrt(a), result)
    if op in ("floor", "ceil", "trunc") and math.isfinite(a):
        # Whole numbers have no -0.0, which is what becomes of it, and of ceil(-0.5).
        whole = math.floor(a) if op == "floor" else math.ceil(a) if op == "ceil" else math.trunc(a)
        return math.copysign(whole, a)
    return None


def nearest(value: float, t: DType) -> float:
    """The value of type t that is nearest to a number."""
    if t is F64 or t.kind != "f" or value in (0.0, 1.0):
        return value
    with np.errstate(over="ignore"):
        return float(np.asarray(value).astype(numpy_dtype(t)))
