"""Lines of Python as values: expressions, statements and a body, printed as a formatter would leave them.

A `Code` is an expression; Python's own operators, indexing and `call`, `method`, `attribute` build bigger
ones, with parentheses where precedence needs them. A `Body` is a list of assignments to `Var`s, each
assigned once; `Body.lines` drops what nothing reads, gives names (a value that takes the place of a dying
one takes its name too, so a chain reads `x = ...; x = ...`), folds single-use values into their reader
where the line stays short, and breaks long lines at brackets with a trailing comma.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, Union

import numpy as np

from fusile.escape import identifier

WIDTH = 88
_DEEPEST = 3
"""How many calls a folded line may nest: more reads worse than another line."""

_OR, _COMPARE, _BIT_OR, _BIT_XOR, _BIT_AND, _SHIFT, _SUM, _PRODUCT, _SIGN, _PRIMARY = range(1, 11)
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
Plain: TypeAlias = Union["Code", int, float, bool, str, None, Sequence["Plain"]]
Targets: TypeAlias = Var | None | tuple["Targets", ...]


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


def _float(value: float | np.floating[object]) -> str:
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
    if isinstance(part, Call) and part.args:
        head = f"{_inside(part.function, _PRIMARY, names)}("
        if len(margin + before + head) > WIDTH and before.endswith("= "):
            return [f"{margin}{before}(", *layout("", part, "", indent + 4, names), f"{margin}){after}"]
        inner, tail = list(part.labelled()), ")"
    elif isinstance(part, Display) and part.items:
        head, tail = part.brackets
        inner = [("", item) for item in part.items]
    else:
        return [line]
    lines = [margin + before + head]
    for label, argument in inner:
        lines += layout(label, argument, ",", indent + 4, names)
    return [*lines, margin + tail + after]


@dataclass(slots=True)
class Statement:
    """`targets = value`."""

    targets: Targets
    value: Code

    def vars(self) -> list[Var]:
        return list(_flat(self.targets))


def _flat(targets: Targets) -> Iterator[Var]:
    if isinstance(targets, Var):
        yield targets
    elif targets is not None:
        for target in targets:
            yield from _flat(target)


def _target_text(targets: Targets, names: Names, top: bool = True) -> str:
    if targets is None:
        return "_"
    if isinstance(targets, Var):
        return names.get(targets, "_")
    inner = ", ".join(_target_text(target, names, False) for target in targets)
    inner += "," if len(targets) == 1 else ""
    return inner if top else f"({inner})"


@dataclass(slots=True)
class Body:
    """The statements of a function and what it returns."""

    arguments: tuple[Var, ...] = ()
    reserved: frozenset[str] = frozenset()
    statements: list[Statement] = field(default_factory=list)
    result: Code = field(default_factory=lambda: Text("None"))

    def let(self, value: Code, hint: str = "x", tensor: bool = True) -> Name:
        """Assign a value to a new variable and answer its use. A plain name is answered as it is."""
        if isinstance(value, Name):
            return value
        var = Var(hint, tensor)
        self.statements.append(Statement(var, value))
        return Name(var)

    def unpack(self, value: Code, targets: Targets) -> None:
        """Assign a value to a nested tuple of variables."""
        self.statements.append(Statement(targets, value))

    def lines(self, indent: int) -> list[str]:
        """The printed body, return statement included."""
        self._drop_unread()
        names = self._names()
        self._shorten(names, indent)
        self._fold(names, indent)
        out: list[str] = []
        for statement in self.statements:
            before = f"{_target_text(statement.targets, names)} = "
            out += layout(before, statement.value, "", indent, names)
        return out + self._return(names, indent)

    def _return(self, names: Names, indent: int) -> list[str]:
        result = self.result
        if isinstance(result, Display) and result.brackets == "()" and len(result.items) > 1:
            line = " " * indent + "return " + result.text(names)[1:-1]
            if len(line) <= WIDTH:
                return [line]
        return layout("return ", result, "", indent, names)

    def _drop_unread(self) -> None:
        """Every expression is pure, so an assignment that nothing reads goes."""
        read = set(variables(self.result))
        kept: list[Statement] = []
        for statement in reversed(self.statements):
            if any(var in read for var in statement.vars()):
                statement.targets = _without_unread(statement.targets, read)
                read.update(variables(statement.value))
                kept.append(statement)
        self.statements = kept[::-1]

    def _names(self) -> dict[Var, str]:
        last: dict[Var, int] = {}
        for index, statement in enumerate(self.statements):
            for var in variables(statement.value):
                last[var] = index
        for var in variables(self.result):
            last[var] = len(self.statements)
        names = {var: var.hint for var in self.arguments}
        taken = set(self.reserved) | set(names.values())
        for index, statement in enumerate(self.statements):
            dying = [
                var
                for var in dict.fromkeys(variables(statement.value))
                if last[var] == index and not var.fixed and var in names
            ]
            for var in dying:
                taken.discard(names[var])
            for var in statement.vars():
                names[var] = _choose(var, [names[d] for d in dying if d.tensor], taken)
                taken.add(names[var])
        return names

    def _shorten(self, names: dict[Var, str], indent: int) -> None:
        """Move inner expressions of a line that cannot be broken at brackets into lines of their own."""
        out: list[Statement] = []
        for statement in self.statements:
            extra: list[Statement] = []
            before = _target_text(statement.targets, names)
            for _ in range(8):
                lines = layout(f"{before} = ", statement.value, "", indent, names)
                if all(len(line) <= WIDTH for line in lines):
                    break
                inner = _longest_inner(statement.value, names)
                if inner is None:
                    break
                var = Var("part")
                names[var] = identifier("part", set(names.values()) | self.reserved)
                extra.append(Statement(var, inner))
                statement.value = _replace(statement.value, inner, Name(var))
            out += [*extra, statement]
        self.statements = out

    def _fold(self, names: Mapping[Var, str], indent: int) -> None:
        """Print a value that only the next line reads inside that line, while the line stays short."""
        count: dict[Var, int] = {}
        for value in (*(s.value for s in self.statements), self.result):
            for var in variables(value):
                count[var] = count.get(var, 0) + 1
        out: list[Statement] = []
        for statement in self.statements:
            while out and self._folds(out[-1], statement, count, names, indent):
                assert isinstance(out[-1].targets, Var)
                statement.value = substitute(statement.value, out[-1].targets, out[-1].value)
                out.pop()
            out.append(statement)
        end = Statement(None, self.result)
        while out and self._folds(out[-1], end, count, names, indent):
            assert isinstance(out[-1].targets, Var)
            end.value = substitute(end.value, out[-1].targets, out[-1].value)
            out.pop()
        self.statements, self.result = out, end.value

    @staticmethod
    def _folds(
        first: Statement, then: Statement, count: Mapping[Var, int], names: Names, indent: int
    ) -> bool:
        var = first.targets
        if not isinstance(var, Var) or count.get(var) != 1 or var not in set(variables(then.value)):
            return False
        merged = substitute(then.value, var, first.value)
        line = f"{_target_text(then.targets, names)} = {merged.text(names)}"
        return indent + len(line) <= WIDTH and _depth(merged) <= _DEEPEST


def _without_unread(targets: Targets, read: set[Var]) -> Targets:
    if isinstance(targets, Var):
        return targets if targets in read else None
    if targets is None:
        return None
    kept = tuple(_without_unread(target, read) for target in targets)
    return kept if any(target is not None for target in kept) else None


def _choose(var: Var, dying: Sequence[str], taken: set[str]) -> str:
    """The name of a dying operand (`x` if it is among them), else `x` while it is free, else the hint."""
    if not var.tensor:
        return identifier(var.hint, taken)
    free = [name_ for name_ in dying if name_ not in taken]
    if free:
        return "x" if "x" in free else free[0]
    return "x" if "x" not in taken else identifier(var.hint, taken)


def _depth(part: Code) -> int:
    """How deep calls and operators nest; names, indices and literals are free."""
    inner = max((_depth(p) for p in part.parts), default=0)
    return inner + isinstance(part, (Call, Binary))


def _longest_inner(part: Code, names: Names) -> Code | None:
    """The longest call or operation strictly inside an expression."""
    found: list[Code] = []

    def walk(inner: Code) -> None:
        for piece in inner.parts:
            if isinstance(piece, (Call, Binary)):
                found.append(piece)
            walk(piece)

    walk(part)
    whole = len(part.text(names))
    lengths = [(len(piece.text(names)), piece) for piece in found]
    fitting = [(length, piece) for length, piece in lengths if length < 0.8 * whole] or lengths
    return max(fitting, key=lambda item: item[0])[1] if fitting else None


def _replace(part: Code, old: Code, new: Code) -> Code:
    if part is old:
        return new
    if not part.parts:
        return part
    return part.with_parts(tuple(_replace(inner, old, new) for inner in part.parts))


def signature(start: str, parameters: Iterable[str], end: str, indent: int) -> list[str]:
    """`def name(` parameters `) -> ...:` on one line, or one parameter a line with a trailing comma."""
    margin, every = " " * indent, list(parameters)
    line = f"{margin}{start}({', '.join(every)}){end}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{margin}{start}(", *(f"{margin}    {parameter}," for parameter in every), f"{margin}){end}"]
