"""The words that printed tensor programs are written in, as far as they are the same in all frameworks.

A type that a framework does not compute in is *held* in a wider one: unsigned integers in signed ones, with
their high bits cut off after each operation, small floats in float32, rounded after each operation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from fusile.backends.framework.code import Code, Plain, Ternary, call, code, name
from fusile.backends.framework.refusal import Refusal
from fusile.backends.framework.value import Val
from fusile.ir import expr as ex
from fusile.ir.types import BOOL, I32, I64, U64, DType

_INFIX = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^", "lt": "<", "le": "<="}
_COMPARE = {**_INFIX, "eq": "==", "ne": "!="}
_LEAST = -(1 << 63)


class Words(ABC):
    """Tensor operations as source. Shapes are tuples of source; `like` is a tensor beside which new ones are
    made. Types are those of the values in the program; what is passed in and out is in its held type.
    """

    framework = ""
    functions: ClassVar[Mapping[str, str]] = {}
    """Scalar operations that are functions of one or two tensors."""
    holds: ClassVar[Mapping[DType, DType]] = {}
    lacks: frozenset[DType] = frozenset()
    """Types that tensors of the framework do not have."""

    # ---- types -----------------------------------------------------------------------------------

    def held(self, t: DType) -> DType:
        """The type in which values of a type are computed."""
        return self.holds.get(t, t)

    @abstractmethod
    def type(self, t: DType) -> Plain:
        """The name of a type of the framework."""

    @abstractmethod
    def converted(self, x: Code, t: DType) -> Code:
        """A tensor in another type of the framework, whose values fit."""

    def stored(self, t: DType) -> DType:
        """The type in which tensors of a type lie between functions."""
        return self.held(t) if t in self.lacks else t

    def to_held(self, x: Code, t: DType) -> Code:
        return x if self.held(t) is self.stored(t) else self.converted(x, self.held(t))

    def from_held(self, x: Code, t: DType) -> Code:
        return x if self.held(t) is self.stored(t) else self.converted(x, self.stored(t))

    def wrapped(self, x: Code, t: DType) -> Code:
        """The value of a type that a result in the held type means."""
        held = self.held(t)
        if held is t or (t.is_int and held.bits == t.bits):
            return x
        if t.is_float:
            return self.rounded(x, t)
        if t.kind == "u":
            return x.binary("&", (1 << t.bits) - 1)
        half = 1 << (t.bits - 1)
        return (x + half).binary("&", 2 * half - 1) - half

    def rounded(self, x: Code, t: DType) -> Code:
        """A float held in a wider type, rounded to its own."""
        if t in self.lacks:
            raise Refusal(f"{self.framework} has no type {t.name}")
        return self.converted(self.converted(x, t), self.held(t))

    def cast(self, x: Code, a: DType, b: DType) -> Code:
        """The stated meaning of a cast; floats outside an integer type's range are the framework's affair."""
        if b is BOOL:
            return x.binary("!=", 0)
        if a is U64 and b.is_float:
            wide = self.converted(x, self.held(b))
            return self.where(x.binary("<", 0), wide + 18446744073709551616.0, wide)
        out = x if self.held(a) is self.held(b) else self.converted(x, self.held(b))
        if b.is_float:
            narrower = b.bits < a.bits or b.bits == 8 or not a.is_float
            return self.rounded(out, b) if self.held(b) is not b and narrower else out
        if a.is_int and b.is_int and not _fits(a, b):
            return self.wrapped(out, b)
        return out

    @abstractmethod
    def bitcast(self, x: Code, a: DType, b: DType) -> Code: ...

    # ---- plain numbers ---------------------------------------------------------------------------

    def integer(self, x: Code) -> Code:
        """The only element of a tensor as a number of Python."""
        return call("int", x)

    def host(self, e: ex.Apply, args: Sequence[Val]) -> Code | None:
        """Arithmetic on sizes in plain Python; None where it needs the rounding of a tensor's type."""
        if any(a.dtype not in (I64, BOOL) for a in e.args) or e.dtype not in (I64, BOOL):
            return None
        parts = [a.code for a in args]
        if e.op in ("min", "max"):
            return name(e.op)(*parts)
        if e.op in ("neg", "abs"):
            return -parts[0] if e.op == "neg" else name("abs")(parts[0])
        if e.op == "select":
            return Ternary(parts[0], parts[1], parts[2])
        if e.op == "cast":
            return parts[0]
        if e.op == "not":
            return parts[0].binary("^", True) if e.dtype is BOOL else ~parts[0]
        signs = {**_COMPARE, "floordiv": "//", "mod": "%"}
        if e.op == "sub" or (e.op == "add" and isinstance(args[1].const, int) and args[1].const < 0):
            return parts[0] - (parts[1] if e.op == "sub" else -int(args[1].const or 0))
        return parts[0].binary(signs[e.op], parts[1]) if e.op in signs else None

    # ---- operations ------------------------------------------------------------------------------

    def apply(self, op: str, args: Sequence[Val], kinds: Sequence[DType], out: DType) -> Code:
        """A scalar operation on tensors; numbers may stand in place of all but one."""
        parts, t = [v.code for v in args], kinds[0]
        if op == "cast":
            return self.cast(parts[0], t, out)
        if op == "bitcast":
            return self.bitcast(parts[0], t, out)
        if op == "select":
            return self.where(parts[0], parts[1], parts[2])
        if t is U64 and op in ("lt", "le", "min", "max"):
            return self._unsigned(op, parts)
        if t is U64 and op in ("div", "floordiv", "mod", "rem"):
            return self.unsigned_divide(parts[0], parts[1], op in ("mod", "rem"))
        if op in _COMPARE:
            return self._infix(op, args, t, out)
        if op == "neg":
            return self.wrapped(-parts[0], out)
        if op == "not":
            return self.wrapped(self.inverted(parts[0], t), out)
        if op == "fma":
            return self.wrapped(parts[0] * parts[1] + parts[2], out)
        if op in ("shl", "shr"):
            return self._shift(op, args, t)
        if op in ("min", "max"):
            return self.extreme(op, args, t)
        if op in ("div", "floordiv", "mod", "rem"):
            return self.wrapped(self._divided(op, args, t), out)
        return self.wrapped(self.function(op, parts, t), out)

    def _infix(self, op: str, args: Sequence[Val], t: DType, out: DType) -> Code:
        first, second = args
        if op == "add" and isinstance(second.const, (int, float)) and second.const < 0 and t is I64:
            return first.code - -int(second.const)
        if t is BOOL and second.const is not None and op in ("eq", "ne"):
            return first.code if second.const == (op == "eq") else self.inverted(first.code, t)
        made = first.code.binary(_COMPARE[op], second.code)
        return self.wrapped(made, out) if op in ("add", "sub", "mul") else made

    def _unsigned(self, op: str, parts: Sequence[Code]) -> Code:
        """Order of unsigned words that are held in signed ones."""
        a, b = (p.binary("^", _LEAST) for p in parts)
        if op in ("lt", "le"):
            return a.binary(_INFIX[op], b)
        first, second = (b, a) if op == "min" else (a, b)
        return self.where(first.binary("<", second), parts[1], parts[0])

    def _shift(self, op: str, args: Sequence[Val], t: DType) -> Code:
        x, by = args[0].code, args[1].code
        known = args[1].const
        made = self.shifted(x, by, op == "shl")
        if op == "shl":
            made = self.wrapped(made, t)
        elif t is U64:
            if isinstance(known, int):
                made = made.binary("&", (1 << (64 - known)) - 1) if known else made
            else:  # the sign comes in at the top and is masked out
                signs = self.shifted(self.shifted(x.binary("|", -1), 63 - by, True), code(1), True)
                made = made.binary("&", self.inverted(signs, t))
        if isinstance(known, int) and 0 <= known < t.bits:
            return made
        inside = by.binary(">=", 0).binary("&", by.binary("<", t.bits))
        if op == "shl" or t.kind == "u":
            return self.where(inside, made, 0)
        return self.where(inside, made, -self.converted(x.binary("<", 0), self.held(t)))

    def _divided(self, op: str, args: Sequence[Val], t: DType) -> Code:
        a, b = args[0].code, args[1].code
        if t.is_float:
            return a / b if op == "div" else self.function(op, (a, b), t)
        known = args[1].host  # sizes and numbers, which are not 0
        if not known:
            zero = b.binary("==", 0)
            b = self.where(zero, 1, b)
            made = self.integer_division(op, a, b)
            return self.where(zero, 0, made)
        return self.integer_division(op, a, b)

    def integer_division(self, op: str, a: Code, b: Code) -> Code:
        """div truncates, floordiv and mod floor, rem has the sign of a."""
        if op in ("floordiv", "mod"):
            return a // b if op == "floordiv" else a % b
        return self.truncated(op, a, b)

    @abstractmethod
    def truncated(self, op: str, a: Code, b: Code) -> Code: ...

    def unsigned_divide(self, a: Code, b: Code, remainder: bool) -> Code:
        return self.helper("unsigned_divide")(a, b)[int(remainder)]

    def function(self, op: str, parts: Sequence[Code], t: DType) -> Code:
        if op not in self.functions:
            raise Refusal(f"{self.framework} has no word for {op!r}")
        return call(self.functions[op], *parts)

    def inverted(self, x: Code, t: DType) -> Code:
        return ~x

    def shifted(self, x: Code, by: Code, left: bool) -> Code:
        return x.binary("<<" if left else ">>", by)

    @abstractmethod
    def where(self, test: Code, yes: Plain, no: Plain) -> Code: ...

    @abstractmethod
    def extreme(self, op: str, args: Sequence[Val], t: DType) -> Code: ...

    # ---- tensors ---------------------------------------------------------------------------------

    @abstractmethod
    def size(self, x: Code, axis: int) -> Code: ...

    @abstractmethod
    def arange(self, n: Code, like: Code | None) -> Code: ...

    @abstractmethod
    def number(self, value: Code, t: DType, like: Code | None) -> Code:
        """A number as a tensor without dimensions."""

    @abstractmethod
    def constant(self, array: np.ndarray, t: DType, like: Code | None) -> Code:
        """A table that stands in the source, in its held type."""

    @abstractmethod
    def full(self, shape: tuple[Code, ...], value: Code, t: DType, like: Code | None) -> Code: ...

    @abstractmethod
    def stack_numbers(self, parts: Sequence[Code], t: DType, like: Code | None) -> Code: ...

    @abstractmethod
    def reshape(self, x: Code, shape: tuple[Code, ...]) -> Code: ...

    @abstractmethod
    def broadcast(self, x: Code, shape: tuple[Code, ...]) -> Code: ...

    @abstractmethod
    def permute(self, x: Code, order: tuple[int, ...]) -> Code: ...

    @abstractmethod
    def take(self, x: Code, places: Code, axis: int, one: bool) -> Code:
        """Elements along one axis: at a list of places, or with `one` at a number."""

    @abstractmethod
    def gather(self, x: Code, places: Sequence[Code]) -> Code:
        """Elements at places that broadcast, one index for each axis."""

    @abstractmethod
    def clip(self, places: Code, n: Code) -> Code: ...

    @abstractmethod
    def reduce(self, kind: str, x: Code, axes: tuple[int, ...], t: DType) -> Code: ...

    def contracts(self, t: DType) -> bool:
        """Whether sums of products of this type have a word of their own."""
        return (t.is_float and self.held(t) is t) or t in (I32, I64)

    @abstractmethod
    def einsum(self, equation: str, factors: Sequence[Code], t: DType) -> Code: ...

    def scatter(
        self, x: Code, places: Sequence[Code], value: Code, where: Code | None, kind: str, t: DType
    ) -> Code:
        extra: dict[str, Plain] = {} if where is None else {"where": where}
        return self.helper("put")(x, tuple(places), value, kind, **extra)

    def repeat(
        self,
        step: Code,
        count: Code,
        state: tuple[Code, ...],
        given: tuple[Code, ...],
        extra: Sequence[Plain],
    ) -> Code:
        """A loop over a function: answers (states, stacked rows)."""
        return self.helper("repeat")(step, count, state, given, *extra)

    # ---- text ------------------------------------------------------------------------------------

    def parameter(self, hint: str, tensor: bool) -> str:
        return hint

    def answer(self, text: str) -> str:
        return ":"

    def helper(self, word: str) -> Code:
        """A function out of the templates, noted as used."""
        self.used[word] = None
        return name(word)

    def __init__(self) -> None:
        self.used: dict[str, None] = {}


def _fits(a: DType, b: DType) -> bool:
    """Whether every value of one integer type is one of another."""
    if a.kind == b.kind:
        return a.bits <= b.bits
    return a.kind == "u" and a.bits < b.bits
