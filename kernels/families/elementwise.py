"""Elementwise operators: arithmetic, comparisons, logic, rounding, trigonometry, types."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fusile.ir import index as ix
from fusile.ir.expr import Const, Expr, apply, as_expr, cast, const, eq, maximum, minimum, ne, select
from fusile.ir.tensor import Tensor, compute
from fusile.ir.types import BOOL, BY_CODE, F8E8M0, F32, I32, I64, U8, U32, DType, from_numpy
from fusile.kernels.registry import Context, Malformed, Unsupported, op
from fusile.kernels.shapes import broadcast, broadcast_read, literal

Scalar = Callable[..., Expr]


def unary(x: Tensor, f: Callable[[Expr], Expr], name: str) -> Tensor:
    """f over every element."""
    return compute(x.shape, lambda *i: f(x[i]), name=name)


def pointwise(ctx: Context, tensors: tuple[Tensor, ...], f: Scalar, name: str) -> Tensor:
    """f over tensors, broadcast as numpy does."""
    shape = broadcast(ctx, *(t.shape for t in tensors))
    return compute(shape, lambda *i: f(*(broadcast_read(t, i) for t in tensors)), name=name)


def binary(ctx: Context, a: Tensor, b: Tensor, f: Callable[[Expr, Expr], Expr], name: str) -> Tensor:
    """f over two tensors, broadcast as numpy does."""
    return pointwise(ctx, (a, b), f, name)


def is_nan(v: Expr) -> Expr:
    return ne(v, v)


def sign(v: Expr) -> Expr:
    """-1, 0 or 1; a NaN stays."""
    zero = const(0, v.dtype)
    negative = (
        zero if v.dtype.kind == "u" else select(v < zero, const(-1, v.dtype), v if v.dtype.is_float else zero)
    )
    return select(zero < v, const(1, v.dtype), negative)


# ---- tables ----

_UNARY_OPS = {
    "Neg": "neg", "Abs": "abs", "Sqrt": "sqrt", "Exp": "exp", "Log": "log", "Sin": "sin", "Cos": "cos",
    "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Tanh": "tanh", "Erf": "erf",
    "Floor": "floor", "Ceil": "ceil", "Round": "round", "Not": "not", "BitwiseNot": "not",
}  # fmt: skip
_BINARY_OPS = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "And": "and", "Or": "or", "Xor": "xor", "Less": "lt",
    "LessOrEqual": "le", "Equal": "eq", "BitwiseAnd": "and", "BitwiseOr": "or", "BitwiseXor": "xor",
}  # fmt: skip


def _acosh(v: Expr) -> Expr:
    return apply("log", v + apply("sqrt", v * v - 1))


def _asinh(v: Expr) -> Expr:
    a = apply("abs", v)
    return sign(v) * apply("log", a + apply("sqrt", a * a + 1))


def _atanh(v: Expr) -> Expr:
    return apply("log", (v + 1) / (1 - v)) * 0.5


_UNARY: dict[str, Callable[[Expr], Expr]] = {
    "Reciprocal": lambda v: 1 / v,
    "Sign": sign,
    "IsNaN": is_nan,
    "Sinh": lambda v: (apply("exp", v) - apply("exp", -v)) * 0.5,
    "Cosh": lambda v: (apply("exp", v) + apply("exp", -v)) * 0.5,
    "Acosh": _acosh,
    "Asinh": _asinh,
    "Atanh": _atanh,
}
_BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "Greater": lambda a, b: b < a,
    "GreaterOrEqual": lambda a, b: b <= a,
    "Div": lambda a, b: divide(a, b),
}


def divide(a: Expr, b: Expr) -> Expr:
    """a / b; a power of two as divisor becomes an exact product."""
    if (
        isinstance(b, Const)
        and b.dtype.is_float
        and math.isfinite(b.value)
        and abs(math.frexp(b.value)[0]) == 0.5
    ):
        return a * const(1.0 / b.value, b.dtype)
    return a / b


def _register_unary(name: str, f: Callable[[Expr], Expr]) -> None:
    @op(name)
    def definition(x: Tensor) -> Tensor:
        return unary(x, f, name.lower())


def _register_binary(name: str, f: Callable[[Expr, Expr], Expr]) -> None:
    @op(name)
    def definition(ctx: Context, a: Tensor, b: Tensor) -> Tensor:
        return binary(ctx, a, b, f, name.lower())


def _scalar(operation: str) -> Scalar:
    return lambda *v: apply(operation, *v)


def _register() -> None:
    for name, operation in _UNARY_OPS.items():
        _register_unary(name, _scalar(operation))
    for name, operation in _BINARY_OPS.items():
        _register_binary(name, _scalar(operation))
    for name, f in _UNARY.items():
        _register_unary(name, f)
    for name, g in _BINARY.items():
        _register_binary(name, g)


_register()


# ---- several inputs ----


def _either(kind: str, a: Expr, b: Expr) -> Expr:
    """The larger or smaller of two, a NaN on either side winning."""
    if isinstance(a, Const):
        a, b = b, a
    out = apply(kind, a, b)
    return out if isinstance(b, Const) or not b.dtype.is_float else select(is_nan(b), b, out)


def _fold(
    ctx: Context, tensors: tuple[Tensor | None, ...], f: Callable[[Expr, Expr], Expr], name: str
) -> Tensor:
    given = tuple(t for t in tensors if t is not None)
    if len(given) == 1:
        return given[0]

    def body(*v: Expr) -> Expr:
        out = v[0]
        for w in v[1:]:
            out = f(out, w)
        return out

    return pointwise(ctx, given, body, name)


@op("Max")
def max_(ctx: Context, *xs: Tensor) -> Tensor:
    return _fold(ctx, xs, lambda a, b: _either("max", a, b), "max")


@op("Min")
def min_(ctx: Context, *xs: Tensor) -> Tensor:
    return _fold(ctx, xs, lambda a, b: _either("min", a, b), "min")


@op("Sum")
def sum_(ctx: Context, *xs: Tensor) -> Tensor:
    return _fold(ctx, xs, lambda a, b: a + b, "sum")


@op("Mean")
def mean(ctx: Context, *xs: Tensor) -> Tensor:
    total = _fold(ctx, xs, lambda a, b: a + b, "sum")
    return unary(total, lambda v: divide(v, const(len(xs), v.dtype)), "mean") if len(xs) > 1 else total


@op("Where")
def where(ctx: Context, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    if x.dtype.kind == "s":
        raise Unsupported("Where on strings", "strings are not compiled")
    return pointwise(ctx, (condition, x, y), lambda c, a, b: select(c, a, b), "where")


@op("Pow")
def power(ctx: Context, x: Tensor, y: Tensor) -> Tensor:
    exponent = literal(y)
    if x.dtype.is_float and exponent in _POWERS:
        out = unary(x, _POWERS[exponent], "pow")
        shape = broadcast(ctx, x.shape, y.shape)
        return out if len(shape) == x.rank else compute(shape, lambda *i: broadcast_read(out, i), name="pow")

    def body(a: Expr, b: Expr) -> Expr:
        if b.dtype is a.dtype or a.dtype.is_float:
            return apply("pow", a, cast(b, a.dtype))
        if b.dtype.is_float:
            return cast(apply("pow", cast(a, b.dtype), b), a.dtype)
        return apply("pow", a, cast(b, a.dtype))

    return binary(ctx, x, y, body, "pow")


_POWERS: dict[float | None, Callable[[Expr], Expr]] = {
    1.0: lambda v: v,
    2.0: lambda v: v * v,
    3.0: lambda v: v * v * v,
    4.0: lambda v: (v * v) * (v * v),
    0.5: lambda v: apply("sqrt", v),
    -1.0: lambda v: 1 / v,
    -2.0: lambda v: 1 / (v * v),
    -0.5: lambda v: 1 / apply("sqrt", v),
}


@op("Mod")
def mod(ctx: Context, a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return binary(ctx, a, b, lambda v, w: apply("rem" if fmod else "mod", v, w), "mod")


@op("BitShift")
def bit_shift(ctx: Context, x: Tensor, y: Tensor, *, direction: str = "LEFT") -> Tensor:
    return binary(ctx, x, y, lambda v, w: apply("shl" if direction == "LEFT" else "shr", v, w), "shift")


@op("IsInf")
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    def body(v: Expr) -> Expr:
        up = eq(v, const(math.inf, v.dtype)) if detect_positive else const(False, BOOL)
        return up | eq(v, const(-math.inf, v.dtype)) if detect_negative else up

    return unary(x, body, "isinf")


@op("Clip")
def clip(
    x: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    *,
    min: float | None = None,
    max: float | None = None,
) -> Tensor:
    def bound(t: Tensor | None, attribute: float | None) -> Expr | None:
        if t is None:
            return None if attribute is None else const(attribute, x.dtype)
        return t[tuple(const(0) for _ in range(t.rank))]

    def body(v: Expr) -> Expr:
        least, most = bound(low, min), bound(high, max)
        v = v if least is None else maximum(v, least)
        return v if most is None else minimum(v, most)

    return unary(x, body, "clip")


# ---- types ----

_LARGEST = {"f8e4m3fn": 448.0, "f8e4m3fnuz": 240.0, "f8e5m2": 57344.0, "f8e5m2fnuz": 57344.0, "f4e2m1": 6.0}


def converted(v: Expr, to: DType, saturate: bool = True) -> Expr:
    """v as another type, as Cast means it: small floats saturate where asked."""
    if to.kind in "iu" and to.bits < 8 and v.dtype.is_float:
        return cast(cast(v, I32), to)  # the low bits, as the standard's reference does
    if to.name in _LARGEST and v.dtype is not to and (saturate or to.bits < 8):
        top = _LARGEST[to.name]
        wide = v if v.dtype.bits >= 32 and v.dtype.is_float else cast(v, F32)
        v = minimum(maximum(wide, const(-top, wide.dtype)), const(top, wide.dtype))
    return cast(v, to)


def _exponent_only(v: Expr, how: str, saturate: bool) -> Expr:
    """v as a power of two kept in 8 bits: the exponent of a float32, rounded `up`, `down` or to the
    `nearest`.
    """
    bits = apply("bitcast", v if v.dtype is F32 else cast(v, F32), dtype=U32)
    exponent, mantissa = apply("shr", bits, 23) & 0xFF, bits & 0x7FFFFF
    half = const(0x400000, U32)
    more = {"up": const(0, U32) < mantissa, "down": const(False, BOOL)}.get(how, half <= mantissa)
    top = const(0xFE if saturate else 0xFF, U32)
    rounded = minimum(select(more, exponent + 1, exponent), top)
    whole = select(eq(exponent, const(0xFF, U32)) & (const(0, U32) < mantissa), const(0xFF, U32), rounded)
    return apply("bitcast", cast(whole, U8), dtype=F8E8M0)


def dtype_of(code: int) -> DType:
    """The value type of an ONNX element type code.

    Raises Unsupported for strings, Malformed for a code that is none.
    """
    if code not in BY_CODE:
        raise Malformed(f"{code} is not an element type")
    if BY_CODE[code].kind in "sc":
        raise Unsupported(f"tensors of {BY_CODE[code]} are not compiled", "change the model to use numbers")
    return BY_CODE[code]


@op("Cast", keeps_types=True)
def cast_(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    if x.dtype.kind == "s":
        raise Unsupported("Cast from strings", "strings are not compiled")
    kind = dtype_of(to)
    if x.dtype is kind:
        return x
    if kind is F8E8M0:
        return unary(x, lambda v: _exponent_only(v, round_mode, bool(saturate)), "cast")
    return unary(x, lambda v: converted(v, kind, bool(saturate)), "cast")


@op("CastLike", keeps_types=True)
def cast_like(x: Tensor, target: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return cast_(x, to=target.dtype.code, saturate=saturate, round_mode=round_mode)


@op("BitCast", keeps_types=True)
def bit_cast(x: Tensor, *, to: int) -> Tensor:
    kind = dtype_of(to)
    if kind.bits != x.dtype.bits:
        raise Unsupported(f"the bits of {x.dtype} as {kind}, of another width", "use types of one width")
    return x if kind is x.dtype else unary(x, lambda v: apply("bitcast", v, dtype=kind), "bitcast")


@op("Identity")
def identity(x: Tensor) -> Tensor:
    return x


def filled(shape: tuple[Expr, ...], value: float | bool, dtype: DType, name: str = "filled") -> Tensor:
    """A tensor of one value."""
    return compute(shape, lambda *_: const(value, dtype), name=name)


@op("ConstantOfShape")
def constant_of_shape(ctx: Context, shape: Tensor, *, value: np.ndarray | None = None) -> Tensor:
    array = np.zeros(1, np.float32) if value is None else np.asarray(value)
    extents = tuple(ctx.extent(v) for v in ctx.values(shape))
    kind = from_numpy(array.dtype)
    return filled(extents, array.astype(object).ravel()[0], kind, "full")


@op("Range")
def range_(ctx: Context, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, last, step = (t[tuple(const(0) for _ in range(t.rank))] for t in (start, limit, delta))
    if start.dtype.is_int:
        (begin,), (end,), (by,) = ctx.values(start), ctx.values(limit), ctx.values(delta)
        width = ix.number(by)
        if width == 0:
            raise Malformed("the step of a range is 0")
        if width is not None:
            count = maximum(
                ix.ceil_div(end - begin, width) if width > 0 else ix.ceil_div(begin - end, -width), as_expr(0)
            )
        else:
            down = select(by < 0, const(-1), const(1))
            count = maximum(ix.ceil_div((end - begin) * down, maximum(by * down, 1)), as_expr(0))
        first, step = cast(begin, start.dtype), cast(by, start.dtype)
    else:
        number = literal(start), literal(limit), literal(delta)
        if None not in number:
            count = const(max(0, math.ceil((number[1] - number[0]) / number[2])))  # type: ignore[operator]
        else:
            needed = maximum(cast(apply("ceil", (last - first) / step), I64), as_expr(0))
            count = ctx.size(needed, "range")
    return compute((count,), lambda i: first + cast(i, start.dtype) * step, name="range")
