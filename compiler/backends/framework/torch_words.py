"""The words of PyTorch for printed tensor programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from fusile.backends.framework.code import Code, Plain, call, code, name, short_float
from fusile.backends.framework.refusal import Refusal
from fusile.backends.framework.value import Val
from fusile.backends.framework.vocabulary import Words
from fusile.ir import types as ty
from fusile.ir.types import BOOL, F32, F64, I8, I32, I64, U8, DType

_NAMES = {
    ty.BOOL: "bool", ty.I8: "int8", ty.I16: "int16", ty.I32: "int32", ty.I64: "int64", ty.U8: "uint8",
    ty.U16: "uint16", ty.U32: "uint32", ty.U64: "uint64", ty.F16: "float16", ty.BF16: "bfloat16",
    ty.F32: "float32", ty.F64: "float64", ty.C64: "complex64", ty.C128: "complex128",
    ty.F8E4M3FN: "float8_e4m3fn", ty.F8E4M3FNUZ: "float8_e4m3fnuz", ty.F8E5M2: "float8_e5m2",
    ty.F8E5M2FNUZ: "float8_e5m2fnuz", ty.F8E8M0: "float8_e8m0fnu",
}  # fmt: skip


class TorchWords(Words):
    framework = "PyTorch"
    functions: ClassVar[Mapping[str, str]] = {
        **{
            op: f"torch.{op}"
            for op in (
                "abs sqrt floor ceil trunc round exp log sin cos tan asin acos atan tanh erf pow".split()
            )
        },
        "mod": "torch.remainder",
        "rem": "torch.fmod",
    }
    holds: ClassVar[Mapping[DType, DType]] = {
        ty.U16: I32, ty.U32: I64, ty.U64: I64, ty.I4: I8, ty.I2: I8, ty.U4: U8, ty.U2: U8,
        ty.F8E4M3FN: F32, ty.F8E4M3FNUZ: F32, ty.F8E5M2: F32, ty.F8E5M2FNUZ: F32, ty.F8E8M0: F32,
        ty.F4E2M1: F32,
    }  # fmt: skip
    lacks = frozenset({ty.I4, ty.I2, ty.U4, ty.U2, ty.F4E2M1, ty.STRING})

    def type(self, t: DType) -> Code:
        if t not in _NAMES:
            raise Refusal(f"PyTorch has no type {t.name}")
        return name(f"torch.{_NAMES[t]}")

    def converted(self, x: Code, t: DType) -> Code:
        return x.method("to", self.type(t))

    def rounded(self, x: Code, t: DType) -> Code:
        if t is ty.F8E4M3FN:  # PyTorch saturates, the type has a NaN for what is too large
            x = call("torch.where", x.method("abs").binary(">", 464), float("nan"), x)
        return super().rounded(x, t)

    def bitcast(self, x: Code, a: DType, b: DType) -> Code:
        own = x if self.held(a) is a else self.converted(x, a)
        out = own.method("view", self.type(b))
        return out if self.held(b) is b else self.converted(out, self.held(b))

    def where(self, test: Code, yes: Plain, no: Plain) -> Code:
        return call("torch.where", test, yes, no)

    def extreme(self, op: str, args: Sequence[Val], t: DType) -> Code:
        first, second = args
        if first.host:
            first, second = second, first
        if second.host:
            return first.code.method("clamp", **{"min" if op == "max" else "max": second.code})
        return call(f"torch.{op}imum", first.code, second.code)

    def truncated(self, op: str, a: Code, b: Code) -> Code:
        return call("torch.div", a, b, rounding_mode="trunc") if op == "div" else call("torch.fmod", a, b)

    # ---- tensors ---------------------------------------------------------------------------------

    def size(self, x: Code, axis: int) -> Code:
        return x.attribute("shape")[axis]

    def _beside(self, like: Code | None) -> dict[str, Plain]:
        return {} if like is None else {"device": like.attribute("device")}

    def arange(self, n: Code, like: Code | None) -> Code:
        return call("torch.arange", n, **self._beside(like))

    def _typed(self, t: DType, like: Code | None) -> dict[str, Plain]:
        return {"dtype": self.type(self.held(t)), **self._beside(like)}

    def number(self, value: Code, t: DType, like: Code | None) -> Code:
        return call("torch.tensor", value, **self._typed(t, like))

    def constant(self, array: np.ndarray, t: DType, like: Code | None) -> Code:
        return call("torch.tensor", table(array, t), **self._typed(t, like))

    def full(self, shape: tuple[Code, ...], value: Code, t: DType, like: Code | None) -> Code:
        return call("torch.full", shape, value, **self._typed(t, like))

    def stack_numbers(self, parts: Sequence[Code], t: DType, like: Code | None) -> Code:
        return call("torch.stack", tuple(parts)) if parts else self.full((code(0),), code(0), t, like)

    def reshape(self, x: Code, shape: tuple[Code, ...]) -> Code:
        return x.method("reshape", shape)

    def broadcast(self, x: Code, shape: tuple[Code, ...]) -> Code:
        return x.method("expand", *shape)

    def permute(self, x: Code, order: tuple[int, ...]) -> Code:
        if sum(i != p for i, p in enumerate(order)) == 2:
            return x.method("transpose", *(i for i, p in enumerate(order) if i != p))
        return x.method("permute", *order)

    def take(self, x: Code, places: Code, axis: int, one: bool) -> Code:
        return x[(*[slice(None)] * axis, places)]

    def gather(self, x: Code, places: Sequence[Code]) -> Code:
        return x[tuple(places)]

    def clip(self, places: Code, n: Code) -> Code:
        return places.method("clamp", 0, n - 1)

    def reduce(self, kind: str, x: Code, axes: tuple[int, ...], t: DType) -> Code:
        over: Plain = axes[0] if len(axes) == 1 else axes
        if kind in ("max", "min"):
            return x.method(f"a{kind}", over)
        exact: dict[str, Plain] = {} if t.is_float else {"dtype": self.type(self.held(t))}
        if kind == "sum":
            return self.wrapped(x.method("sum", over, **exact), t)
        for _ in axes:
            x = x.method("prod", -1, **exact)
        return self.wrapped(x, t)

    def einsum(self, equation: str, factors: Sequence[Code], t: DType) -> Code:
        return call("torch.einsum", equation, *factors)

    # ---- text ------------------------------------------------------------------------------------

    def parameter(self, hint: str, tensor: bool) -> str:
        return f"{hint}: {'Tensor' if tensor else 'int'}"

    def answer(self, text: str) -> str:
        return f" -> {text}:"


def table(array: np.ndarray, t: DType) -> Plain:
    """The elements of an array as nested lists of literals."""
    if array.ndim:
        return [table(row, t) for row in array]
    value = array.item()
    if t.is_float and t is not F64 and math.isfinite(float(value)):
        return short_float(float(value))
    return value if t is BOOL else float(value) if t.is_float else value


def of_onnx(kind: ir.DataType) -> DType:
    """A type of the graph as one of tensor programs."""
    return ty.BY_CODE[int(kind)]
