"""The body of a function: assignments to variables, each assigned once, printed under names that read well.

`Body.lines` drops what nothing reads, gives names (a value that takes the place of a dying one takes its
name too, so a chain reads `x = ...; x = ...`), and folds single-use values into their reader where the line
stays short.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fusile.backends.framework.code import (
    WIDTH,
    Binary,
    Call,
    Code,
    Display,
    Name,
    Names,
    Targets,
    Ternary,
    Text,
    Var,
    layout,
    substitute,
    variables,
)
from fusile.escape import identifier

_DEEPEST = 3
"""How many calls a folded line may nest: more reads worse than another line."""


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
                if last[var] == index and var in names and (not var.fixed or var.hint == "x")
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
        # What a choice does not take is not worked out: it stays where it is.
        for piece in inner.parts[:1] if isinstance(inner, Ternary) else inner.parts:
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
