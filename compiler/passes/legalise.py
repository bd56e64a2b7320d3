"""Legalisation: scalar expressions in terms of what a kernel backend prints.

Used on the values, indices and conditions of loop kernels, as the last step before printing. Afterwards

- every operation is one that the target prints for its type (Capabilities.prints), or a cast or bitcast as
  said below;
- values of types that the target does not compute in occur only as loads, as `bitcast` from and to their
  words (small floats), as literals and `cast` from and to i8 / u8 within their range (packed integers; these
  casts change no bits), as stores, and in the casts of `storage_casts`;
- integer division and remainder have a divisor that is neither 0 nor -1, shifts an amount below the width,
  and, where the target's casts do not saturate, floats that become integers are in range: nothing that prints
  is undefined on any machine.

A load of a bool buffer stays a load of type bool (its word is a u8); `words.from_storage` and
`words.to_storage` say what words mean.
"""

from __future__ import annotations

from collections.abc import Callable

from fusile.capabilities import FUNCTIONS, Capabilities
from fusile.errors import Gap, UnsupportedError
from fusile.ir.expr import (
    Apply,
    Const,
    Expr,
    apply,
    cast,
    const,
    logical_not,
    ne,
    nodes,
    raw_apply,
    rebuild,
    select,
)
from fusile.ir.types import BF16, BOOL, F16, F32, F64, I8, I64, U8, DType
from fusile.passes import arithmetic, functions, words

_COMPARISONS = frozenset({"lt", "le", "eq", "ne"})
_SELECTING = frozenset({"select", "min", "max", "and", "or", "xor"})


def legalise(e: Expr, target: Capabilities, site: str = "") -> Expr:
    """The same value in terms of what `target` prints; the same object where nothing had to change.

    `site` names the ONNX node in errors. Raises UnsupportedError where the target lacks an operation that has
    no expansion (a function in f64 without a C library). For many expressions of one kernel keep a Legaliser,
    which shares what they have in common.
    """
    return Legaliser(target, site)(e)


def _bottom_up(e: Expr, done: dict[Expr, Expr], visit: Callable[[Expr], Expr]) -> Expr:
    """`visit` on every node not yet in `done`, children first, without recursion: fused chains are deep."""
    pending = [e]
    while pending:
        x = pending[-1]
        waiting = [c for c in x.children if c not in done] if x not in done else []
        pending.extend(waiting)
        if waiting:
            continue
        pending.pop()
        if x not in done:
            out = visit(x)
            done[x] = done[out] = out
    return done[e]


class Legaliser:
    """`legalise` with a memory, for the expressions of one kernel."""

    def __init__(self, target: Capabilities, site: str = "") -> None:
        self.target = target
        self.site = site
        self._done: dict[Expr, Expr] = {}

    def __call__(self, e: Expr) -> Expr:
        return _bottom_up(e, self._done, self._visit)

    def _visit(self, e: Expr) -> Expr:
        children = tuple(self(c) for c in e.children)
        if isinstance(e, Apply) and e.dtype is I64 and e.op in arithmetic.DIVISIONS:
            proved = arithmetic.index_division(e, children[0], children[1], self.target)
            if proved is not None:
                return self._proved(e, proved)
        out = rebuild(e, children)
        if out is not e:  # simplification may have made other nodes of it
            return self(out)
        if isinstance(e, Const) and e.dtype.is_float and e.dtype not in self.target.computes:
            return words.word_of(float(e.value), e.dtype)
        if not isinstance(e, Apply):
            return e
        out = self._rewrite(e)
        return e if out is e else self(out)

    def _proved(self, e: Expr, out: Expr) -> Expr:
        """A division that needs no guard: a legal node even where its arguments do not show any more why."""
        if out is e:
            return e
        for x in nodes(out):
            if isinstance(x, Apply) and x.dtype is I64 and x.op in arithmetic.DIVISIONS:
                self._done.setdefault(x, x)
        return self(out)

    def _rewrite(self, e: Apply) -> Expr:
        """One step for a node whose arguments are legal; the node itself where it is legal."""
        if e.op == "cast":
            return self._cast(e, e.args[0])
        if e.op == "bitcast":
            return words.view(e.args[0], e.dtype)
        operand = e.args[-1].dtype
        if operand.kind in "cs":
            raise self._gap(e, "has no scalar form")
        if operand not in self.target.computes:
            return self._in_wider_type(e, operand)
        if operand.is_bool:
            return _on_bools(e, self.target)
        if operand.is_int:
            return arithmetic.on_integers(e, self.target)
        if e.op in FUNCTIONS or e.op in ("mod", "rem"):
            return self._function(e)
        return arithmetic.on_floats(e, self.target)

    def _gap(self, e: Apply, reason: str) -> UnsupportedError:
        way_out = "Compile for another target, or change the model to float32."
        return UnsupportedError(
            Gap(e.op, node=self.site, reason=f"{e.op} of {e.args[-1].dtype} {reason}", way_out=way_out)
        )

    def _function(self, e: Apply) -> Expr:
        t = e.dtype
        if e.op == "pow" and isinstance(e.args[1], Const):
            special = arithmetic.constant_power(e.args[0], float(e.args[1].value))
            if special is not None:
                return special
        if self.target.prints(e.op, t):
            return e
        if e.op in ("mod", "rem") and t in (F32, F64):
            return arithmetic.float_remainder(e)
        if t is F32:
            if e.op == "pow":
                return functions.power(e.args[0], e.args[1], self.target.has_fma)
            return functions.UNARY[e.op](e.args[0], self.target.has_fma)
        if t is F64:
            raise self._gap(e, "is a call of the C library, which this target has not")
        return cast(apply(e.op, *(cast(a, F32) for a in e.args)), t)

    # ---- types that the target does not compute in --------------------------------------------------------

    def _in_wider_type(self, e: Apply, t: DType) -> Expr:
        """An operation on values of type t, in f32 or in bytes, and back."""
        if t.is_float:
            if e.op == "select":
                return words.as_value(
                    select(e.args[0], words.as_word(e.args[1]), words.as_word(e.args[2])), t
                )
            if e.op in ("min", "max"):
                a, b = e.args
                return select(apply("lt", b, a) if e.op == "min" else apply("lt", a, b), b, a)
            if e.op in ("neg", "abs") and t in (F16, BF16):
                word = words.as_word(e.args[0])
                bits = word & const(0x7FFF, word.dtype)
                return words.as_value(
                    bits if e.op == "abs" else apply("xor", word, const(0x8000, word.dtype)), t
                )
        wide = F32 if t.is_float else _carrier(t)
        args = tuple(cast(a, wide) if a.dtype is t else a for a in e.args)
        out = apply(e.op, *args)
        return out if e.op in _COMPARISONS else cast(out, t)

    # ---- casts --------------------------------------------------------------------------------------------

    def _cast(self, e: Apply, x: Expr) -> Expr:
        source, to = x.dtype, e.dtype
        if source.kind in "cs" or to.kind in "cs":
            raise self._gap(e, f"to {to} has no scalar form")
        if to is BOOL:
            return ne(x, 0)
        if (source, to) in self.target.storage_casts:
            return e
        if source not in self.target.computes:
            return self._cast_from_word(e, x)
        if to not in self.target.computes:
            return self._cast_to_word(e, x)
        if source.is_float and to.is_int and not self.target.saturating_casts:
            return arithmetic.float_to_integer(e, self)
        return e

    def _cast_from_word(self, e: Apply, x: Expr) -> Expr:
        if x.dtype.is_float:
            wide = cast(x, F32) if (x.dtype, F32) in self.target.storage_casts else words.widen(x)
            return cast(wide, e.dtype)
        carrier = _carrier(x.dtype)
        if e.dtype is not carrier:
            return cast(cast(x, carrier), e.dtype)
        # u8(u4(x)) of an x in range
        return x.args[0] if isinstance(x, Apply) and x.op == "cast" and x.args[0].dtype is carrier else e

    def _cast_to_word(self, e: Apply, x: Expr) -> Expr:
        source, to = x.dtype, e.dtype
        if to.is_float:
            if source is F32:
                return words.narrow(x, to)
            # Two roundings may differ from one: f64 to f16 is one, to the others two, as in ml_dtypes.
            return cast(words.rounded_to_odd(x) if source is F64 and to is F16 else cast(x, F32), to)
        carrier = _carrier(to)
        if source.is_float:
            return cast(arithmetic.clamped_to_integer(x, to, carrier), to)
        if source is not carrier:
            return cast(cast(x, carrier), to)
        return e if _in_range(x, to, self) else raw_apply("cast", (_wrapped(x, to),), to)


# ---- packed integers ---------------------------------------------------------------------------------------


def _carrier(t: DType) -> DType:
    """The byte type that computes for a packed integer type."""
    return U8 if t.kind == "u" else I8


def _wrapped(x: Expr, t: DType) -> Expr:
    """A byte brought into the range of a packed type."""
    if t.kind == "u":
        return x & const((1 << t.bits) - 1, x.dtype)
    up = const(8 - t.bits, x.dtype)
    return apply("shr", apply("shl", x, up), up)


def _in_range(x: Expr, t: DType, legal: Callable[[Expr], Expr]) -> bool:
    """Whether a byte is visibly within the range of a packed type."""
    if isinstance(x, Const):
        low, high = (0, 1 << t.bits) if t.kind == "u" else (-(1 << (t.bits - 1)), 1 << (t.bits - 1))
        return low <= x.value < high
    if not isinstance(x, Apply):
        return False
    if x.op == "cast":
        inner = x.args[0].dtype
        if inner.is_float:
            return arithmetic.is_clamped(x, (t,), legal)
        return (inner.is_bool and t.kind == "u") or (inner.kind == t.kind and inner.bits <= t.bits)
    if x.op in _SELECTING and all(_in_range(a, t, legal) for a in x.args[-2:]):
        return True
    if t.kind == "u":
        return x.op == "and" and any(isinstance(a, Const) and a.value < (1 << t.bits) for a in x.args)
    least = 8 - t.bits
    return x.op == "shr" and isinstance(x.args[1], Const) and x.args[1].value >= least


# ---- bools -------------------------------------------------------------------------------------------------


def _on_bools(e: Apply, target: Capabilities) -> Expr:
    if target.prints(e.op, BOOL) and e.op not in ("min", "max", "lt", "le", "add", "mul"):
        return e
    a, b = e.args[0], e.args[-1]
    match e.op:
        case "not":
            return apply("xor", a, True)
        case "ne":
            return apply("xor", a, b)
        case "min" | "mul":
            return a & b
        case "max" | "add":
            return a | b
        case "lt":
            return logical_not(a) & b
        case "le":
            return logical_not(a) | b
    raise UnsupportedError(
        Gap(e.op, reason=f"{e.op} has no meaning on bools", way_out="Cast to a number first.")
    )


# ---- fusing multiplications into additions -----------------------------------------------------------------


def contract(e: Expr) -> Expr:
    """Sums of products in f32 and f64 as fma: a*b + c, a*b - c and c - a*b, updates of an accumulator among
    them.

    The product is not rounded any more, which is the one liberty with float arithmetic that every target may
    take. For targets that have the instruction; a product that is used elsewhere too is computed there by
    itself. The same object where there is nothing to fuse.
    """
    memo: dict[Expr, Expr] = {}

    def visit(x: Expr) -> Expr:
        out = rebuild(x, tuple(memo[c] for c in x.children))
        return _fused(out) if isinstance(out, Apply) and out.dtype in (F32, F64) else out

    return _bottom_up(e, memo, visit)


def _fused(e: Apply) -> Expr:
    if e.op not in ("add", "sub"):
        return e
    a, b = e.args
    if isinstance(b, Apply) and b.op == "mul":
        # c - a*b = (-a)*b + c
        left = b.args[0] if e.op == "add" else apply("neg", b.args[0])
        return apply("fma", left, b.args[1], a)
    if isinstance(a, Apply) and a.op == "mul":
        return apply("fma", a.args[0], a.args[1], b if e.op == "add" else apply("neg", b))
    return e


# ---- the check ---------------------------------------------------------------------------------------------


def violations(e: Expr, target: Capabilities) -> list[str]:
    """What of an expression the target cannot print, in words; empty after `legalise`."""
    found = []
    for x in nodes(e):
        if isinstance(x, Const) and x.dtype.is_float and x.dtype not in target.computes:
            found.append(f"the literal {x} of type {x.dtype}")
        if not isinstance(x, Apply):
            continue
        operand = x.args[-1].dtype
        if x.op == "cast":
            packed = operand.bits < 8 or x.dtype.bits < 8
            if not target.converts(operand, x.dtype) and not (
                packed and _carrier(operand) is _carrier(x.dtype)
            ):
                found.append(f"the cast of {operand} to {x.dtype}")
        elif x.op != "bitcast" and not target.prints(x.op, operand):
            found.append(f"{x.op} of {operand}")
    return found
