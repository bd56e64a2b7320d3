"""Expressions of Python as values, printed with the parentheses and line breaks that a formatter would leave.

A `Code` is an expression; Python's own operators, indexing and `call`, `method`, `attribute` build bigger
ones, with parentheses where precedence needs them. `layout` breaks a long line at its outermost brackets,
one item a line with a trailing comma.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, Union

import numpy as np

WIDTH = 88

_CHOICE, _COMPARE, _BIT_OR, _BIT_XOR, _BIT_AND, _SHIFT, _SUM, _PRODUCT, _SIGN, _PRIMARY = range(1, 11)
_PRECEDENCE = {
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">="), _COMPARE),
    "|": _BIT_OR,
    "^": _BIT_XOR,
    "&": _BIT_AND,
    "<<": _SHIFT,
    ">>": _SHIFT,
    "+": _SUM,
    "-": _SUM,
    **dict.fromkeys(("*", "/", "//", "%", "@"), _PRODUCT),
}


@dataclass(frozen=True, eq=False, slots=True)
class Var:
    """A value that one statement assigns. `fixed` vars keep their hint as their name (arguments)."""

    hint: str
    tensor: bool = True
    fixed: bool = False


Names: TypeAlias = Mapping[Var, str]
Plain: TypeAlias = Union["Code", int, float, bool, str, Sequence["Plain"], None]
Targets: TypeAlias = Var | tuple["Targets", ...] | None


class Code:
    """An expression. `str` arguments anywhere become string literals; names come from `name("torch.exp")`."""

    __slots__ = ()
    precedence = _PRIMARY

    @property
    def parts(self) -> tuple[Code, ...]:
        return ()

    def with_parts(self, parts: tuple[Code, ...]) -> Code:
        return self

    def text(self, names: Names) -> str:
        raise NotImplementedError

    def __add__(self, other: Plain) -> Code:
        return Binary("+", self, code(other))

    def __radd__(self, other: Plain) -> Code:
        return Binary("+", code(other), self)

    def __sub__(self, other: Plain) -> Code:
        return Binary("-", self, code(other))

    def __rsub__(self, other: Plain) -> Code:
        return Binary("-", code(other), self)

    def __mul__(self, other: Plain) -> Code:
        return Binary("*", self, code(other))

    def __rmul__(self, other: Plain) -> Code:
        return Binary("*", code(other), self)

    def __truediv__(self, other: Plain) -> Code:
        return Binary("/", self, code(other))

    def __rtruediv__(self, other: Plain) -> Code:
        return Binary("/", code(other), self)

    def __floordiv__(self, other: Plain) -> Code:
        return Binary("//", self, code(other))

    def __mod__(self, other: Plain) -> Code:
        return Binary("%", self, code(other))

    def __matmul__(self, other: Plain) -> Code:
        return Binary("@", self, code(other))

    def __neg__(self) -> Code:
        return Unary("-", self)

    def __invert__(self) -> Code:
        return Unary("~", self)

    def __getitem__(self, items: Plain | slice | tuple[object, ...]) -> Code:
        every = items if isinstance(items, tuple) else (items,)
        return Index(self, tuple(_item(item) for item in every))

    def binary(self, sign: str, other: Plain) -> Code:
        """This expression and another with an operator between them."""
        return Binary(sign, self, code(other))

    def attribute(self, attribute: str) -> Code:
        return Attribute(self, attribute)

    def method(self, method: str, *args: Plain, **kwargs: Plain) -> Code:
        return Call(Attribute(self, method), *_arguments(args, kwargs))

    def __call__(self, *args: Plain, **kwargs: Plain) -> Code:
        return Call(self, *_arguments(args, kwargs))


@dataclass(frozen=True, eq=False, slots=True)
class Name(Code):
    """The value of a Var."""

    var: Var

    def text(self, names: Names) -> str:
        return names.get(self.var, self.var.hint)


@dataclass(frozen=True, eq=False, slots=True)
class Text(Code):
    """A literal or a dotted name."""

    content: str

    @property
    def precedence(self) -> int:  # type: ignore[override]
        return _SIGN if self.content.startswith("-") else _PRIMARY

    def text(self, names: Names) -> str:
        return self.content


@dataclass(frozen=True, eq=False, slots=True)
class Attribute(Code):
    base: Code
    attribute_name: str

    @property
    def parts(self) -> tuple[Code, ...]:
        return (self.base,)

    def with_parts(self, parts: tuple[Code, ...]) -> Code:
        return Attribute(parts[0], self.attribute_name)

    def text(self, names: Names) -> str:
        base = _inside(self.base, _PRIMARY, names)
        if isinstance(self.base, Text) and base[:1].isdigit():
            base = f"({base})"
        return f"{base}.{self.attribute_name}"


@dataclass(frozen=True, eq=False, slots=True)
class Call(Code):
    function: Code
    args: tuple[Code, ...]
    keywords: tuple[str, ...] = ()
    """Names of the last arguments, in their order."""

    @property
    def parts(self) -> tuple[Code, ...]:
        return (self.function, *self.args)

    def with_parts(self, parts: tuple[Code, ...]) -> Code:
        return Call(parts[0], parts[1:], self.keywords)

    def labelled(self) -> Iterator[tuple[str, Code]]:
        """Every argument with what stands before it (`dim=` or nothing)."""
        plain = len(self.args) - len(self.keywords)
        for index, argument in enumerate(self.args):
            yield ("" if index < plain else f"{self.keywords[index - plain]}="), argument

    def text(self, names: Names) -> str:
        inner = ", ".join(label + argument.text(names) for label, argument in self.labelled())
        return f"{_inside(self.function, _PRIMARY, names)}({inner})"


@dataclass(frozen=True, eq=False, slots=True)
class Display(Code):
    """A tuple or list display."""

    items: tuple[Code, ...]
    brackets: str = "()"

    @property
    def parts(self) -> tuple[Code, ...]:
        return self.items

    def with_parts(self, parts: tuple[Code, ...]) -> Code:
        return Display(parts, self.brackets)

    def text(self, names: Names) -> str:
        inner = ", ".join(item.text(names) for item in self.items)
        if self.brackets == "()" and len(self.items) == 1:
            inner += ","
        return f"{self.brackets[0]}{inner}{self.brackets[1]}"


@dataclass(frozen=True, eq=False, slots=True)
class Unary(Code):
    sign: str
    operand: Code
    precedence = _SIGN

    @property
    def parts(self) -> tuple[Code, ...]:
        return (self.operand,)

    def with_parts(self, parts: tuple[Code, ...]) -> Code:
        return Unary(self.sign, parts[0])

    def text(self, names: Names) -> str:
        return self.sign + _inside(self.operand, _SIGN, names)


@dataclass(frozen=True, eq=False, slots=True)
class Binary(Code):
    sign: str
    left: Code
    right: Code

    @property
    def precedence(self) -> int:  # type: ignore[override]
        return _PRECEDENCE[self.sign]

    @property
    def parts(self) -> tuple[Code, ...]:
        return (self.left, self.right)

    def with_parts(self, parts: tuple[Code, ...]) -> Code:
        return Binary(self.sign, parts[0], parts[1])

    def text(self, names: Names) -> str:
        own = self.precedence
        left = _inside(self.left, own + (own == _COMPARE), names)
        return f"{left} {self.sign} {_inside(self.right, own + 1, names)}"


@dataclass(frozen=True, eq=False, slots=True)
class Ternary(Code):
    """`yes if test else no`."""

    test: Code
    yes: Code
    no: Code
    precedence = _CHOICE

    @property
    def parts(self) -> tuple[Code, ...]:
        return (self.test, self.yes, self.no)

    def with_parts(self, parts: tuple[Code, ...]) -> Code:
        return Ternary(*parts)

    def text(self, names: Names) -> str:
        test, yes = (_inside(part, _CHOICE + 1, names) for part in (self.test, self.yes))
        return f"{yes} if {test} else {self.no.text(names)}"


@dataclass(frozen=True, eq=False, slots=True)
class Index(Code):
    base: Code
    items: tuple[Code, ...]

    @property
    def parts(self) -> tuple[Code, ...]:
        return (self.base, *self.items)

    def with_parts(self, parts: tuple[Code, ...]) -> Code:
        return Index(parts[0], parts[1:])

    def text(self, names: Names) -> str:
        items = ", ".join(item.text(names) for item in self.items)
        return f"{_inside(self.base, _PRIMARY, names)}[{items}]"


@dataclass(frozen=True, eq=False, slots=True)
class Range(Code):
    """`start:stop:step` inside an index; each may be absent."""

    ends: tuple[Code | None, Code | None, Code | None]

    @property
    def parts(self) -> tuple[Code, ...]:
        return tuple(end for end in self.ends if end is not None)

    def with_parts(self, parts: tuple[Code, ...]) -> Code:
        rest = iter(parts)
        start, stop, step = (None if end is None else next(rest) for end in self.ends)
        return Range((start, stop, step))

    def text(self, names: Names) -> str:
        start, stop, step = ("" if end is None else end.text(names) for end in self.ends)
        # Formatters treat the colon as an operator beside anything but names and numbers.
        space = "" if all(_is_simple(end) for end in self.parts) else " "
        text = start + (space if start else "") + ":" + (space + stop if stop else "")
        return text if not step else f"{text}{space if stop else ''}:{space}{step}"


def name(dotted: str) -> Code:
    """A name, dotted name or other text that stands in the source as it is."""
    return Text(dotted)


def call(function: str, *args: Plain, **kwargs: Plain) -> Code:
    """A call of a function by its name; keyword arguments that are None are left out."""
    return Call(Text(function), *_arguments(args, {k: v for k, v in kwargs.items() if v is not None}))


def code(value: Plain) -> Code:
    """A plain value as an expression: numbers, strings (as literals), None, tuples and lists of such."""
    if isinstance(value, Code):
        return value
    if value is None or isinstance(value, (bool, np.bool_)):
        return Text(str(value))
    if isinstance(value, (int, np.integer)):
        return Text(str(int(value)))
    if isinstance(value, (float, np.floating)):
        return Text(_float(value))
    if isinstance(value, str):
        return Text(literal(value))
    brackets = "[]" if isinstance(value, list) else "()"
    return Display(tuple(code(item) for item in value), brackets)


def literal(content: str) -> str:
    """A Python string literal in a formatter's choice of quotes; everything unprintable is escaped."""
    body = content.encode("unicode_escape").decode("ascii")
    quote = "'" if body.count('"') > body.count("'") else '"'
    return quote + body.replace(quote, "\\" + quote) + quote


def short_float(value: float) -> float:
    """The shortest decimal that float32 rounds to the same number, for values that come from float32."""
    if not math.isfinite(value) or abs(value) > 3.4e38:
        return value
    single = np.float32(value)
    return float(str(single)) if float(single) == value else value


def _float(value: float | np.floating[Any]) -> str:
    number = float(str(value)) if isinstance(value, np.floating) else float(value)
    if math.isnan(number):
        return 'float("nan")'
    if math.isinf(number):
        return 'float("inf")' if number > 0 else 'float("-inf")'
    return repr(number).replace("e+", "e")


def _arguments(
    args: tuple[Plain, ...], kwargs: Mapping[str, Plain]
) -> tuple[tuple[Code, ...], tuple[str, ...]]:
    return tuple(code(a) for a in (*args, *kwargs.values())), tuple(kwargs)


def _item(item: object) -> Code:
    if isinstance(item, slice):
        start, stop, step = (None if end is None else code(end) for end in (item.start, item.stop, item.step))
        return Range((start, stop, step))
    if item is Ellipsis:
        return Text("...")
    return code(item)  # type: ignore[arg-type]


def _inside(part: Code, least: int, names: Names) -> str:
    text = part.text(names)
    return text if part.precedence >= least else f"({text})"


def _is_simple(part: Code) -> bool:
    if isinstance(part, Unary):
        return _is_simple(part.operand)
    return isinstance(part, Name) or (isinstance(part, Text) and "." not in part.content)


def variables(part: Code) -> Iterator[Var]:
    """Every use of a variable, from left to right."""
    if isinstance(part, Name):
        yield part.var
    for inner in part.parts:
        yield from variables(inner)


def substitute(part: Code, var: Var, by: Code) -> Code:
    """The expression with one variable replaced."""
    if isinstance(part, Name):
        return by if part.var is var else part
    if not part.parts:
        return part
    return part.with_parts(tuple(substitute(inner, var, by) for inner in part.parts))


def layout(before: str, part: Code, after: str, indent: int, names: Names) -> list[str]:
    """`before part after` as lines: one if it fits, else broken at the outermost brackets."""
    margin = " " * indent
    line = margin + before + part.text(names) + after
    if len(line) <= WIDTH:
        return [line]
    if isinstance(part, Ternary):
        return [
            f"{margin}{before}(",
            *layout("", part.yes, "", indent + 4, names),
            *layout("if ", part.test, "", indent + 4, names),
            *layout("else ", part.no, "", indent + 4, names),
            f"{margin}){after}",
        ]
    if isinstance(part, Call) and part.args:
        head = f"{_inside(part.function, _PRIMARY, names)}("
        if len(margin + before + head) > WIDTH and before.endswith("= "):
            return [f"{margin}{before}(", *layout("", part, "", indent + 4, names), f"{margin}){after}"]
        inner, tail = list(part.labelled()), ")"
    elif isinstance(part, Display) and part.items:
        head, tail = part.brackets[0], part.brackets[1]
        inner = [("", item) for item in part.items]
    else:
        return [line]
    lines = [margin + before + head]
    for label, argument in inner:
        lines += layout(label, argument, ",", indent + 4, names)
    return [*lines, margin + tail + after]
