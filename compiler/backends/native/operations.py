"""Operations on printed values, scalars and vectors alike, by the rows of `scalars`."""

from __future__ import annotations

from fusile.backends.native import scalars
from fusile.backends.native.function import Function, Value, type_of
from fusile.ir.types import BOOL, DType


def apply(f: Function, op: str, args: list[Value], dtype: DType) -> Value:
    """A scalar operation, lane by lane."""
    args = same_lanes(f, *args)
    kind, lanes = args[0].dtype.kind, args[0].lanes
    t = type_of(args[0].dtype, lanes)
    texts = [a.text for a in args]
    if (op, kind) in scalars.COMPARE:
        return Value(f.emit(f"{scalars.COMPARE[op, kind]} {t} {texts[0]}, {texts[1]}"), BOOL, lanes)
    if op == "neg" and kind == "f":
        return Value(f.emit(f"fneg {t} {texts[0]}"), dtype, lanes)
    if (op, kind) in scalars.INSTRUCTION:
        return Value(f.emit(f"{scalars.INSTRUCTION[op, kind]} {t} {', '.join(texts)}"), dtype, lanes)
    if op in ("min", "max"):
        a, b = (args[1], args[0]) if op == "min" else (args[0], args[1])
        less = apply(f, "lt", [a, b], BOOL)
        return pick(f, less, args[1], args[0])
    if op == "not":
        ones = Value("true" if dtype is BOOL else "-1", dtype)
        return apply(f, "xor", [args[0], ones], dtype)
    if op == "neg":
        return apply(f, "sub", [Value("0", dtype), args[0]], dtype)
    if op == "abs" and kind != "f":
        negative = apply(f, "lt", [args[0], Value("0", dtype)], BOOL)
        return pick(f, negative, apply(f, "neg", [args[0]], dtype), args[0])
    if op in ("floordiv", "mod") and kind in "iu":
        return _floor_division(f, op, args, dtype)
    if op == "abs":
        return _intrinsic(f, "llvm.fabs", args, dtype)
    if op in scalars.INTRINSIC and kind == "f":
        return _intrinsic(f, scalars.INTRINSIC[op], args, dtype)
    if op in scalars.LIBM and kind == "f":
        return _libm(f, op, args, dtype)
    raise TypeError(f"the native backend has no row for {op} on {dtype}: legalisation should have removed it")


def _floor_division(f: Function, op: str, args: list[Value], dtype: DType) -> Value:
    """By truncating division; divisors are not zero here (legalised)."""
    a, b = args
    if dtype.kind == "u":
        return apply(f, "div" if op == "floordiv" else "rem", args, dtype)
    rest = apply(f, "rem", [a, b], dtype)
    zero = Value("0", dtype)
    off = apply(f, "ne", [rest, zero], BOOL)
    signs = apply(f, "lt", [apply(f, "xor", [rest, b], dtype), zero], BOOL)
    wrong = apply(f, "and", [off, signs], BOOL)
    if op == "mod":
        return pick(f, wrong, apply(f, "add", [rest, b], dtype), rest)
    quotient = apply(f, "div", [a, b], dtype)
    return pick(f, wrong, apply(f, "sub", [quotient, Value("1", dtype)], dtype), quotient)


def _intrinsic(f: Function, name: str, args: list[Value], dtype: DType) -> Value:
    lanes = args[0].lanes
    t = type_of(dtype, lanes)
    suffix = (f"v{lanes}" if lanes else "") + scalars.letters(scalars.register_type(dtype))
    f.module.declare(f"declare {t} @{name}.{suffix}({', '.join([t] * len(args))})")
    return Value(
        f.emit(f"call {t} @{name}.{suffix}({', '.join(f'{t} {a.text}' for a in args)})"), dtype, lanes
    )


def _libm(f: Function, op: str, args: list[Value], dtype: DType) -> Value:
    t = type_of(dtype, 0)
    symbol = op if t == "double" else f"{op}f"
    f.module.declare(f"declare {t} @{symbol}({', '.join([t] * len(args))}) nounwind")
    lanes = args[0].lanes
    if not lanes:
        return Value(f.emit(f"call {t} @{symbol}({', '.join(f'{t} {a.text}' for a in args)})"), dtype)
    vt, out = type_of(dtype, lanes), "poison"
    for k in range(lanes):
        each = [f.emit(f"extractelement {vt} {a.text}, i32 {k}") for a in args]
        one = f.emit(f"call {t} @{symbol}({', '.join(f'{t} {x}' for x in each)})")
        out = f.emit(f"insertelement {vt} {out}, {t} {one}, i32 {k}")
    return Value(out, dtype, lanes)


def cast(f: Function, v: Value, to: DType) -> Value:
    """A value in another type; floats saturate on their way to integers."""
    if v.dtype is to:
        return v
    source, target = type_of(v.dtype, v.lanes), type_of(to, v.lanes)
    if to is BOOL:
        return apply(f, "ne", [v, Value(scalars.literal(0, v.dtype), v.dtype)], BOOL)
    a, b = v.dtype.kind, to.kind
    if a == "f" and b == "f":
        word = "fpext" if to.bits > v.dtype.bits else "fptrunc"
    elif a == "f":
        intrinsic = "llvm.fptosi.sat" if b == "i" else "llvm.fptoui.sat"
        lane = f"v{v.lanes}" if v.lanes else ""
        ends = ".".join(lane + scalars.letters(scalars.register_type(t)) for t in (to, v.dtype))
        f.module.declare(f"declare {target} @{intrinsic}.{ends}({source})")
        return Value(f.emit(f"call {target} @{intrinsic}.{ends}({source} {v.text})"), to, v.lanes)
    elif b == "f":
        word = "sitofp" if a == "i" else "uitofp"
    elif to.bits == v.dtype.bits and v.dtype is not BOOL:
        return Value(v.text, to, v.lanes)
    elif to.bits < v.dtype.bits and v.dtype is not BOOL:
        word = "trunc"
    else:
        word = "sext" if a == "i" else "zext"
    return Value(f.emit(f"{word} {source} {v.text} to {target}"), to, v.lanes)


def bitcast(f: Function, v: Value, to: DType) -> Value:
    return Value(f.emit(f"bitcast {v.typed} to {type_of(to, v.lanes)}"), to, v.lanes)


def pick(f: Function, test: Value, yes: Value, no: Value) -> Value:
    """One of two values that are both known."""
    test, yes, no = same_lanes(f, test, yes, no)
    return Value(f.emit(f"select {test.typed}, {yes.typed}, {no.typed}"), yes.dtype, yes.lanes)


# ---- lanes and masks -----------------------------------------------------------------------------


def same_lanes(f: Function, *values: Value) -> list[Value]:
    """The values with as many lanes as the widest of them has."""
    lanes = max(v.lanes for v in values)
    return [splat(f, v, lanes) for v in values]


def splat(f: Function, v: Value, lanes: int) -> Value:
    """A scalar in every lane; a vector that has them stays."""
    if v.lanes == lanes:
        return v
    key = ("splat", v.text, v.dtype, lanes)
    found = f.memo.get(key)
    if found is not None:
        return found
    t, vt = type_of(v.dtype, 0), type_of(v.dtype, lanes)
    if not v.text.startswith("%"):
        return Value(f"<{', '.join([f'{t} {v.text}'] * lanes)}>", v.dtype, lanes)
    one = f.emit(f"insertelement {vt} poison, {t} {v.text}, i32 0")
    every = f.emit(f"shufflevector {vt} {one}, {vt} poison, <{lanes} x i32> zeroinitializer")
    return f.memo.put(key, Value(every, v.dtype, lanes))


def both(f: Function, a: Value | None, b: Value) -> Value:
    """A mask narrowed by a condition; no mask holds everywhere."""
    if a is None:
        f.wider[b.text] = ""
        return b
    within = a.text
    a, b = same_lanes(f, a, b)
    narrowed = Value(f.emit(f"and {a.typed}, {b.text}"), BOOL, a.lanes)
    f.wider[narrowed.text] = within
    return narrowed


def any_lane(f: Function, mask: Value) -> Value:
    """Whether a mask holds in some lane."""
    word = f.emit(f"bitcast {mask.typed} to i{mask.lanes}")
    return Value(f.emit(f"icmp ne i{mask.lanes} {word}, 0"), BOOL)


def first_lane(f: Function, mask: Value) -> str:
    """The number of the first lane of a mask that has one, typed."""
    t = f"i{mask.lanes}"
    word = f.emit(f"bitcast {mask.typed} to {t}")
    f.module.declare(f"declare {t} @llvm.cttz.{t}({t}, i1)")
    return f"{t} {f.emit(f'call {t} @llvm.cttz.{t}({t} {word}, i1 true)')}"
