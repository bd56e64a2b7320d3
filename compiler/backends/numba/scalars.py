"""Scalar operations as Python text that means the same under Numba on a CPU, on a GPU, and in plain Python
(the simulator).

Numba computes small integers as int64 and literals as float64, so literals carry their type and results are
brought back to theirs. What Python's operators do not say (NaN in min, division by zero, saturation, bits)
are helper functions of the emitted module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fusile.capabilities import FUNCTIONS, SIMPLE, Capabilities, casts_between
from fusile.ir.expr import Number
from fusile.ir.types import (
    BF16,
    BOOL,
    F4E2M1,
    F8E4M3FN,
    F8E4M3FNUZ,
    F8E5M2,
    F8E5M2FNUZ,
    F8E8M0,
    F16,
    F64,
    I8,
    I64,
    DType,
    storage_of,
)

CONDITIONAL, OR, AND, NOT, COMPARE, BITOR, BITXOR, BITAND, SHIFT, SUM, PRODUCT, SIGN, ATOM = range(13)
"""Precedences of Python's operators, loosest first."""

SMALL_FLOATS: tuple[DType, ...] = (F16, BF16, F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0, F4E2M1)

CAPABILITIES = Capabilities(
    operations=SIMPLE | FUNCTIONS | {"floordiv", "mod", "rem"},
    storage_casts=casts_between(SMALL_FLOATS),
    saturating_casts=True,
)
"""Everything is printed for machine types, partial operations as helpers; small floats are words with
conversions."""


@dataclass(frozen=True, slots=True)
class Text:
    """Python text and its precedence."""

    text: str
    level: int = ATOM

    def at(self, level: int) -> str:
        """The text where an operand of at least that precedence is wanted."""
        return self.text if self.level >= level else f"({self.text})"


def word(t: DType) -> DType:
    """The type in which Numba sees a value: machine types as they are, bools as bools, small floats and
    packed integers as words."""
    if t is BOOL:
        return t
    return I8 if t.kind == "i" and t.bits < 8 else storage_of(t).word


NUMPY_NAMES = {
    "bool": "np.bool_",
    "i8": "np.int8",
    "i16": "np.int16",
    "i32": "np.int32",
    "i64": "np.int64",
    "u8": "np.uint8",
    "u16": "np.uint16",
    "u32": "np.uint32",
    "u64": "np.uint64",
    "f32": "np.float32",
    "f64": "np.float64",
}
"""numpy's name of the word of a value type."""


def numpy_name(t: DType) -> str:
    return NUMPY_NAMES[word(t).name]


def literal(value: Number, t: DType) -> Text:
    """A number of a type."""
    if t is BOOL:
        return Text("True" if value else "False")
    if t.kind in "iu":
        n = int(value)
        if t is I64:
            return Text(str(n), SIGN if n < 0 else ATOM)
        return Text(f"{word(t).name}({n})")
    x = float(value)
    if math.isnan(x) or math.isinf(x):
        name = "np.nan" if math.isnan(x) else "np.inf" if x > 0 else "-np.inf"
        return Text(f"{t.name}({name})")
    if t is F64:
        return Text(repr(x), SIGN if x < 0 or repr(x).startswith("-") else ATOM)
    return Text(f"f32({_shortest(np.float32(x))})")


def _shortest(x: np.float32) -> str:
    """The shortest text that reads back as the same float32."""
    plain = 1e-4 <= abs(x) < 1e16
    return np.format_float_positional(x, unique=True, trim="0") if plain else str(x)


# ---- the table --------------------------------------------------------------------------------------------

INFIX: dict[str, tuple[str, int]] = {
    "add": ("+", SUM),
    "sub": ("-", SUM),
    "mul": ("*", PRODUCT),
    "floordiv": ("//", PRODUCT),
    "mod": ("%", PRODUCT),
    "and": ("&", BITAND),
    "or": ("|", BITOR),
    "xor": ("^", BITXOR),
    "shl": ("<<", SHIFT),
    "shr": (">>", SHIFT),
    "lt": ("<", COMPARE),
    "le": ("<=", COMPARE),
    "eq": ("==", COMPARE),
    "ne": ("!=", COMPARE),
}

ROUNDING = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "rint", "sqrt": "sqrt"}
"""Float operations that are one function of the module's imports."""

Use = Callable[[str, DType], str]
"""Tells that a helper or an imported function is needed for a type, and answers its name."""


def operation(op: str, t: DType, result: DType, args: list[Text], divisor: Number | None, use: Use) -> Text:
    """An operation on values of type `t`. `divisor` is the value of the last argument where that is a
    literal."""
    if op == "cast":
        return _cast(t, result, args[0], use)
    if op == "bitcast":
        return _bitcast(t, result, args[0], use)
    if op == "select":
        test, yes, no = args
        return Text(f"{yes.at(OR)} if {test.at(OR)} else {no.at(CONDITIONAL)}", CONDITIONAL)
    if t.is_bool:
        return _on_bools(op, args)
    if op in ("lt", "le", "eq", "ne"):
        return _infix(op, args)
    if op == "fma":
        product = _typed(t, _infix("mul", args[:2]))
        return _typed(t, _infix("add", [product, args[2]]))
    if op == "neg":
        return (
            _typed(t, Text(f"-{args[0].at(SIGN)}", SIGN))
            if t.kind != "u"
            else _typed(t, _infix("sub", [Text("0"), args[0]]))
        )
    if op == "abs":
        return args[0] if t.kind == "u" else _typed(t, Text(f"abs({args[0].text})"))
    if op in ("min", "max") and t is I64:
        return Text(f"{op}({args[0].text}, {args[1].text})")
    if t.is_int:
        return _on_integers(op, t, args, divisor, use)
    if op == "div":
        return Text(f"{args[0].at(PRODUCT)} / {args[1].at(SIGN)}", PRODUCT)
    if op in ("add", "sub", "mul"):
        return _infix(op, args)
    if op in ROUNDING:
        return _call(use(ROUNDING[op], t), args)
    return _call(use(op, t), args)


def _on_integers(op: str, t: DType, args: list[Text], divisor: Number | None, use: Use) -> Text:
    match op:
        case "floordiv" | "mod" if divisor is not None and divisor > 0:
            return _typed(t, _infix(op, args))
        case "div" | "rem" if divisor is not None and divisor > 0 and t.kind == "u":
            return _typed(t, _infix("floordiv" if op == "div" else "mod", args))
        case "shl" | "shr" if divisor is not None and 0 <= divisor < t.bits:
            return _typed(t, _infix(op, args))
        case "add" | "sub" | "mul" | "and" | "or" | "xor":
            return _typed(t, _infix(op, args))
        case "not":
            return _typed(t, Text(f"~{args[0].at(SIGN)}", SIGN))
        case "floor" | "ceil" | "trunc" | "round":
            return args[0]
    return _call(use(op, t), args)


def _on_bools(op: str, args: list[Text]) -> Text:
    match op:
        case "and" | "min" | "mul":
            return Text(f"{args[0].at(AND)} and {args[1].at(NOT)}", AND)
        case "or" | "max" | "add":
            return Text(f"{args[0].at(OR)} or {args[1].at(AND)}", OR)
        case "xor" | "ne":
            return _infix("ne", args)
        case "eq":
            return _infix("eq", args)
        case "not":
            return Text(f"not {args[0].at(NOT)}", NOT)
        case "lt":
            return Text(f"not {args[0].at(NOT)} and {args[1].at(NOT)}", AND)
        case "le":
            return Text(f"not {args[0].at(NOT)} or {args[1].at(AND)}", OR)
    raise TypeError(f"{op} has no meaning on bools")


def _infix(op: str, args: list[Text]) -> Text:
    sign, level = INFIX[op]
    loose = level + 1 if level != COMPARE else BITOR
    left = level if level != COMPARE else BITOR
    return Text(f"{args[0].at(left)} {sign} {args[1].at(loose)}", level)


def _typed(t: DType, e: Text) -> Text:
    """A result that Numba computes as int64, in its own type."""
    return e if t.is_float or t is I64 else Text(f"{t.name}({e.text})")


def _call(name: str, args: list[Text]) -> Text:
    return Text(f"{name}({', '.join(a.text for a in args)})")


def _cast(t: DType, to: DType, x: Text, use: Use) -> Text:
    if t is to:
        return x
    if to is BOOL:
        zero = literal(0, t)
        return Text(f"{x.at(BITOR)} != {zero.text}", COMPARE)
    if t in SMALL_FLOATS or to in SMALL_FLOATS:
        return _call(use(f"{t.name}_to_{to.name}", t), [x])
    if t.is_float and to.is_int:
        return _call(use(f"to_{to.name}", t), [x])
    if word(t) is word(to):
        return x  # packed integers lie in the words of their carriers
    return Text(f"{word(to).name}({x.text})")


def _bitcast(t: DType, to: DType, x: Text, use: Use) -> Text:
    a, b = word(t), word(to)
    if a is b:
        return x
    if a.is_float or b.is_float:
        return _call(use(f"{b.name}_of_bits" if b.is_float else f"bits_{b.name}", a), [x])
    return Text(f"{b.name}({x.text})")
