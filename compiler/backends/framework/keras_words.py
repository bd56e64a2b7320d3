"""The words of Keras for printed tensor programs: `keras.ops`, and TensorFlow's own where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from fusile.backends.framework.code import Code, Plain, call, code
from fusile.backends.framework.refusal import Refusal
from fusile.backends.framework.torch_words import table
from fusile.backends.framework.value import Val
from fusile.backends.framework.vocabulary import Words
from fusile.ir import types as ty
from fusile.ir.types import BOOL, F32, I32, I64, DType

_NAMES = {
    ty.BOOL: "bool", ty.I8: "int8", ty.I16: "int16", ty.I32: "int32", ty.I64: "int64", ty.U8: "uint8",
    ty.U16: "uint16", ty.U32: "uint32", ty.U64: "uint64", ty.F16: "float16", ty.BF16: "bfloat16",
    ty.F32: "float32", ty.F64: "float64", ty.C64: "complex64", ty.C128: "complex128", ty.STRING: "string",
    ty.F8E4M3FN: "float8_e4m3fn", ty.F8E5M2: "float8_e5m2",
}  # fmt: skip


class KerasWords(Words):
    framework = "Keras"
    functions: ClassVar[Mapping[str, str]] = {
        **{op: f"ops.{op}" for op in "abs sqrt floor ceil trunc round exp log sin cos tan tanh erf".split()},
        "asin": "ops.arcsin",
        "acos": "ops.arccos",
        "atan": "ops.arctan",
        "pow": "ops.power",
        "mod": "ops.mod",
    }
    holds: ClassVar[Mapping[DType, DType]] = {
        **dict.fromkeys((ty.I8, ty.I16, ty.U8, ty.U16, ty.I4, ty.I2, ty.U4, ty.U2), I32),
        ty.U32: I64, ty.U64: I64, ty.F8E4M3FN: F32, ty.F8E4M3FNUZ: F32, ty.F8E5M2: F32, ty.F8E5M2FNUZ: F32,
        ty.F8E8M0: F32, ty.F4E2M1: F32,
    }  # fmt: skip
    lacks = frozenset({ty.I4, ty.I2, ty.U4, ty.U2, ty.F4E2M1, ty.F8E4M3FNUZ, ty.F8E5M2FNUZ, ty.F8E8M0})

    def type(self, t: DType) -> str:
        if t not in _NAMES:
            raise Refusal(f"Keras has no type {t.name}")
        return _NAMES[t]

    def converted(self, x: Code, t: DType) -> Code:
        return call("ops.cast", x, self.type(t))

    def bitcast(self, x: Code, a: DType, b: DType) -> Code:
        a = ty.U8 if a is BOOL else a  # TensorFlow has no bits of booleans
        own = x if self.held(a) is a and a is not ty.U8 else self.converted(x, a)
        if b is BOOL:
            return own.binary("!=", 0)
        out = call("tf.bitcast", own, self.type(b))
        return out if self.held(b) is b else self.converted(out, self.held(b))

    def where(self, test: Code, yes: Plain, no: Plain) -> Code:
        return call("ops.where", test, yes, no)

    def extreme(self, op: str, args: Sequence[Val], t: DType) -> Code:
        return call(f"ops.{op}imum", args[0].code, args[1].code)

    def function(self, op: str, parts: Sequence[Code], t: DType) -> Code:
        if op == "rem":
            return call("tf.truncatemod", *parts)
        return super().function(op, parts, t)

    def truncated(self, op: str, a: Code, b: Code) -> Code:
        return call("tf.truncatediv" if op == "div" else "tf.truncatemod", a, b)

    def inverted(self, x: Code, t: DType) -> Code:
        return call("ops.logical_not" if t is BOOL else "ops.bitwise_not", x)

    def shifted(self, x: Code, by: Code, left: bool) -> Code:
        return call("ops.left_shift" if left else "ops.right_shift", x, by)

    # ---- tensors ---------------------------------------------------------------------------------

    def size(self, x: Code, axis: int) -> Code:
        return call("ops.shape", x)[axis]

    def arange(self, n: Code, like: Code | None) -> Code:
        return call("ops.arange", n, dtype="int64")

    def number(self, value: Code, t: DType, like: Code | None) -> Code:
        return call("ops.convert_to_tensor", value, self.type(self.held(t)))

    def constant(self, array: np.ndarray, t: DType, like: Code | None) -> Code:
        if not array.size:
            return self.full(tuple(code(n) for n in array.shape), code(0), t, like)
        return call("ops.convert_to_tensor", table(array, t), self.type(self.held(t)))

    def full(self, shape: tuple[Code, ...], value: Code, t: DType, like: Code | None) -> Code:
        return call("ops.full", shape, value, dtype=self.type(self.held(t)))

    def stack_numbers(self, parts: Sequence[Code], t: DType, like: Code | None) -> Code:
        return call("ops.stack", list(parts)) if parts else self.full((code(0),), code(0), t, like)

    def reshape(self, x: Code, shape: tuple[Code, ...]) -> Code:
        return call("ops.reshape", x, shape)

    def broadcast(self, x: Code, shape: tuple[Code, ...]) -> Code:
        return call("ops.broadcast_to", x, shape)

    def permute(self, x: Code, order: tuple[int, ...]) -> Code:
        return call("ops.transpose", x, order)

    def take(self, x: Code, places: Code, axis: int, one: bool) -> Code:
        return x[(*[slice(None)] * axis, places)] if one else call("ops.take", x, places, axis=axis)

    def gather(self, x: Code, places: Sequence[Code]) -> Code:
        return self.helper("gather")(x, *places)

    def clip(self, places: Code, n: Code) -> Code:
        return call("ops.clip", places, 0, n - 1)

    def reduce(self, kind: str, x: Code, axes: tuple[int, ...], t: DType) -> Code:
        over: Plain = axes[0] if len(axes) == 1 else axes
        if t is BOOL and kind in ("max", "min"):
            return call("ops.any" if kind == "max" else "ops.all", x, axis=over)
        out = call(f"ops.{kind}", x, axis=over)
        return self.wrapped(out, t) if kind in ("sum", "prod") else out

    def einsum(self, equation: str, factors: Sequence[Code], t: DType) -> Code:
        word = "ops.einsum" if t.is_float else "tf.einsum"
        return call(word, equation, *factors)
