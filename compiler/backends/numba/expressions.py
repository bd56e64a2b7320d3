"""Expressions as lines of Python: shared parts get names, branches of a select stay unevaluated where they
are not chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fusile.backends.numba import scalars
from fusile.backends.numba.scalars import ATOM, CONDITIONAL, PRODUCT, SUM, Text
from fusile.escape import identifier
from fusile.ir.expr import Apply, Axis, Const, Dim, Expr, Guard, Load, const, free, nodes
from fusile.ir.loops import Buffer
from fusile.ir.types import BOOL, F32, F64, I64, DType
from fusile.passes.arithmetic import constant_power
from fusile.passes.legalise import Legaliser

WIDTH = 100
"""Columns of a line."""
LONGEST = 56
"""An operand with a longer text gets a line of its own."""
LARGEST_LITERAL = 5
"""Sizes above this are not part of a kernel's structure: kernels that differ in them alone share one
function."""


class Lines:
    """Lines of text at an indentation."""

    def __init__(self, depth: int = 0) -> None:
        self.lines: list[str] = []
        self.depth = depth

    def add(self, text: str) -> None:
        self.lines.append("    " * self.depth + text if text else "")


class Names:
    """Identifiers of one function, each thing's own."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.taken = set(taken)
        self.of: dict[object, str] = {}

    def name(self, thing: object, hint: str) -> str:
        if thing not in self.of:
            self.of[thing] = self.fresh(hint)
        return self.of[thing]

    def fresh(self, hint: str) -> str:
        return identifier(hint, self.taken)

    def release(self, thing: object) -> None:
        """The name of something that has ended may be taken again."""
        self.taken.discard(self.of.pop(thing))


@dataclass(slots=True)
class Holes:
    """Literals that may differ between kernels of one structure, by the number of their mark in the text."""

    values: list[Expr] = field(default_factory=list)

    def mark(self, value: Expr) -> str:
        self.values.append(value)
        return f"\x00{len(self.values) - 1}\x01"


Block = tuple[tuple[Expr, int], ...]
"""Where a value is needed: the selects around it and which of their arguments it is in."""


class Sharing:
    """Which parts of expressions get a line of their own, and in which branch it stands."""

    def __init__(self, roots: Sequence[Expr]) -> None:
        self.uses: dict[Expr, list[Block]] = {}
        self.homes: dict[Expr, Block] = {}
        order = _parents_first(roots)
        for r in roots:
            self.uses.setdefault(r, []).append(())
        for e in order:
            self.homes[e] = _common(self.uses[e])
            for k, c in enumerate(e.children):
                inside = self.homes[e]
                if isinstance(e, Apply) and e.op == "select" and k > 0:
                    inside = (*inside, (e, k))
                self.uses.setdefault(c, []).append(inside)
        self.named = [e for e in reversed(order) if len(self.uses[e]) > 1 and _worth_a_name(e)]
        # A select with lines in a branch is a statement, and so has a line itself.
        self.statements: set[Expr] = set()
        for e in reversed(order):
            if e in self.statements or e in set(self.named):
                self.statements.update(select for select, _ in self.homes[e])
        chosen = set(self.named) | self.statements
        self.lines = [e for e in reversed(order) if e in chosen]

    def inside(self, block: Block) -> list[Expr]:
        """What has its line in a block, operands first."""
        return [e for e in self.lines if self.homes[e] == block]


def _parents_first(roots: Sequence[Expr]) -> list[Expr]:
    order: list[Expr] = []
    seen: set[Expr] = set()

    def visit(e: Expr) -> None:
        if e in seen:
            return
        seen.add(e)
        for c in reversed(e.children):
            visit(c)
        order.append(e)

    for r in reversed(roots):
        visit(r)
    order.reverse()
    return order


def _common(blocks: Sequence[Block]) -> Block:
    first = blocks[0]
    for b in blocks[1:]:
        n = 0
        while n < min(len(first), len(b)) and first[n] == b[n]:
            n += 1
        first = first[:n]
    return first


def _worth_a_name(e: Expr) -> bool:
    if isinstance(e, Load):
        return bool(e.source.shape)
    if isinstance(e, Guard):
        return True
    if not isinstance(e, Apply):
        return False
    if e.dtype is I64 and not any(isinstance(n, (Load, Guard)) for n in nodes(e)):
        return len(nodes(e)) > 8
    return True


@dataclass(slots=True)
class Context:
    """What an expression printer needs to know of its surroundings."""

    lines: Lines
    names: Names
    use: scalars.Use
    holes: Holes | None = None
    """None: every literal is printed."""
    site: Callable[[str], int] = lambda _: 0
    sizes: Mapping[Expr, str] = field(default_factory=dict)
    """Texts of sizes that are known by the shape of an array."""
    bounds: Mapping[Expr, tuple[Expr, str]] = field(default_factory=dict)
    """For an index expression, the extent of the dimension that it indexes, and its text."""
    prefix: Mapping[Buffer, str] = field(default_factory=dict)
    """What stands before the index of a buffer that several blocks share."""
    literals: int = LARGEST_LITERAL
    """Sizes up to this are part of the structure."""
    host: bool = False
    """Whether plain Python evaluates the text, with numpy's scalars."""


class Printer:
    """Prints the expressions of a statement into its surroundings."""

    def __init__(self, context: Context, roots: Sequence[Expr]) -> None:
        self.c = context
        self.sharing = Sharing(roots)
        self.texts: dict[Expr, Text] = {}
        self.inline = 0
        self.block: Block = ()
        self._enter(())

    def _enter(self, block: Block) -> None:
        for e in self.sharing.inside(block):
            if e not in self.texts:
                self._line(e)

    def _line(self, e: Expr, hint: str = "") -> Text:
        if e in self.sharing.statements:
            assert isinstance(e, Apply)
            name = self.c.names.fresh("t")
            self._statement(e, name)
        else:
            text = self._render(e)
            name = self.c.names.fresh(hint or "t")
            self.c.lines.add(f"{name} = {text.text}")
        self.texts[e] = Text(name)
        return self.texts[e]

    def _statement(self, e: Apply, name: str) -> None:
        """if a: …; t = b  else: …; t = c"""
        lines = self.c.lines
        lines.add(f"if {self.text(e.args[0]).text}:")
        before, known = self.block, dict(self.texts)
        for k in (1, 2):
            self.block = (*self.sharing.homes[e], (e, k))
            lines.depth += 1
            self._enter(self.block)
            lines.add(f"{name} = {self.text(e.args[k]).text}")
            lines.depth -= 1
            self.texts = dict(known)
            if k == 1:
                lines.add("else:")
        self.block = before

    def text(self, e: Expr) -> Text:
        """The text of a value; long operands get lines before it."""
        found = self.texts.get(e)
        if found is not None:
            return found
        out = self._render(e)
        if (
            len(out.text) > LONGEST
            and self.inline == 0
            and isinstance(e, (Apply, Load))
            and not (e.dtype is BOOL and e.dtype is I64)
        ):
            name = self.c.names.fresh("t")
            self.c.lines.add(f"{name} = {out.text}")
            out = self.texts[e] = Text(name)
        return out

    # ---- kinds of node ------------------------------------------------------------------------------------

    def _render(self, e: Expr) -> Text:
        if e in self.c.sizes:
            return Text(self.c.sizes[e])
        if self.c.holes is not None and e.dtype is I64 and not isinstance(e, Const) and _on_host(e):
            return Text(self.c.holes.mark(e))
        match e:
            case Const():
                return self._literal(e)
            case Axis() | Dim():
                return Text(self.c.names.name(e, e.name))
            case Load():
                return Text(self._element(e.source, e.index))
            case Guard():
                index, extent = self.text(e.index), self.text(e.extent)
                return Text(
                    f"{self.c.use('checked', I64)}({index.text}, {extent.text}, {self._site(e.site)}, error)"
                )
            case Apply():
                return self._apply(e)
        raise TypeError(f"{type(e).__name__} has no Python form here: {e}")

    def _site(self, site: str) -> str:
        n = const(self.c.site(site))
        return self.c.holes.mark(n) if self.c.holes is not None else repr(n)

    def element(self, buffer: Buffer, index: Sequence[Expr]) -> str:
        return self._element(buffer, index)

    def _element(self, buffer: Buffer, index: Sequence[Expr]) -> str:
        name = self.c.names.name(buffer, buffer.name)
        if not buffer.shape and buffer.scope != "param":
            return name
        parts = [self.c.prefix[buffer]] if buffer in self.c.prefix else []
        parts += [self.text(i).text for i in index]
        out = f"{name}[{', '.join(parts) or '()'}]"
        return f"int({out})" if self.c.host and buffer.dtype.is_int else out

    def _literal(self, e: Const) -> Text:
        if self.c.holes is not None:
            if e.dtype is I64 and e.value > self.c.literals:
                return Text(self.c.holes.mark(e))
            if (
                e.dtype in (F32, F64)
                and e.value not in (0.0, 1.0, -1.0, 2.0, 0.5)
                and abs(float(e.value)) < 1e30
            ):
                return Text(self.c.holes.mark(e))
        return scalars.literal(e.value, e.dtype)

    def _apply(self, e: Apply) -> Text:
        if e.op == "pow" and isinstance(e.args[1], Const) and e.dtype in (F32, F64):
            special = constant_power(e.args[0], float(e.args[1].value))
            if special is not None:
                return self._render(special)
        if e.dtype is I64 and e.op in ("add", "mul"):
            return self._index_sum(e)
        if e.op in ("and", "le", "lt") and e.dtype is BOOL:
            chained = self._between(e)
            if chained is not None:
                return chained
        last = e.args[-1]
        divisor = last.value if isinstance(last, Const) else None
        args: list[Text] = []
        for k, a in enumerate(e.args):
            lazy = e.op == "select" and k > 0
            self.inline += lazy
            fixed = e.op in ("floordiv", "mod", "div", "rem") and e.dtype.is_int and isinstance(a, Const)
            args.append(scalars.literal(a.value, a.dtype) if fixed and isinstance(a, Const) else self.text(a))
            self.inline -= lazy
        out = scalars.operation(e.op, e.args[-1].dtype, e.dtype, args, divisor, self.c.use)
        if self.c.host and e.dtype.is_float and out.level < ATOM:
            return Text(f"{scalars.word(e.dtype).name}({out.text})")
        return out

    def _index_sum(self, e: Apply) -> Text:
        """a + b with minus signs where a term is negative."""
        a, b = e.args
        if e.op == "mul":
            if isinstance(b, Const) and b.value == -1:
                return Text(f"-{self.text(a).at(ATOM)}", scalars.SIGN)
            left, right = self.text(a), self.text(b)
            return Text(f"{left.at(PRODUCT)} * {right.at(PRODUCT + 1)}", PRODUCT)
        if isinstance(b, Const) and b.value < 0:
            return Text(f"{self.text(a).at(SUM)} - {self._literal(const(-b.value)).text}", SUM)
        if _is_negative(a) and not _is_negative(b):
            a, b = b, a
        if isinstance(b, Apply) and _is_negative(b):
            assert isinstance(b.args[1], Const)
            flipped = self.text(b.args[0])
            size = -b.args[1].value
            term = (
                flipped.at(SUM + 1)
                if size == 1
                else f"{flipped.at(PRODUCT)} * {self._literal(const(size)).text}"
            )
            return Text(f"{self.text(a).at(SUM)} - {term}", SUM)
        return Text(f"{self.text(a).at(SUM)} + {self.text(b).at(SUM + 1)}", SUM)

    def _between(self, e: Apply) -> Text | None:
        """0 <= i and i < n  as  0 <= i < n, with the array's own size where i is one of its indices."""
        if e.op == "and":
            terms = _conjuncts(e)
            texts: list[str] = []
            k = 0
            while k < len(terms):
                low, high = terms[k], terms[k + 1] if k + 1 < len(terms) else None
                if (
                    _is_op(low, "le")
                    and high is not None
                    and _is_op(high, "lt")
                    and low.children[1] is high.children[0]
                ):
                    texts.append(
                        f"{self.text(low.children[0]).text} <= {self.text(low.children[1]).text} < "
                        f"{self._bound(high)}"
                    )
                    k += 2
                else:
                    texts.append(self.text(low).at(scalars.NOT))
                    k += 1
            return Text(" and ".join(texts), scalars.AND if len(texts) > 1 else scalars.COMPARE)
        if e.op == "lt" and e.args[0] in self.c.bounds and e not in self.texts:
            return Text(f"{self.text(e.args[0]).at(scalars.BITOR)} < {self._bound(e)}", scalars.COMPARE)
        return None

    def _bound(self, e: Expr) -> str:
        index, extent = e.children
        known = self.c.bounds.get(index)
        if known is not None and known[0] is extent:
            return known[1]
        return self.text(extent).at(scalars.BITOR)


def _is_negative(e: Expr) -> bool:
    """Whether an index expression is a product with a negative number."""
    return isinstance(e, Apply) and e.op == "mul" and isinstance(e.args[1], Const) and e.args[1].value < 0


def _is_op(e: Expr, op: str) -> bool:
    return isinstance(e, Apply) and e.op == op and e.args[0].dtype is I64


def _conjuncts(e: Expr) -> list[Expr]:
    if isinstance(e, Apply) and e.op == "and" and e.dtype is BOOL:
        return [*_conjuncts(e.args[0]), *_conjuncts(e.args[1])]
    return [e]


def _on_host(e: Expr) -> bool:
    """Whether an expression is made of sizes alone."""
    return (
        bool(free(e))
        and all(isinstance(x, Dim) for x in free(e))
        and not any(isinstance(n, (Load, Guard)) for n in nodes(e))
    )


_MACHINE = scalars.CAPABILITIES.computes


def needs_legalising(e: Expr) -> bool:
    """Whether an expression computes with types that Numba does not have."""
    return any(isinstance(n, (Apply, Const)) and _foreign(n) for n in nodes(e))


def _foreign(n: Expr) -> bool:
    if n.dtype not in _MACHINE:
        return True
    return any(c.dtype not in _MACHINE for c in n.children)


def legal(e: Expr, legaliser: Legaliser) -> Expr:
    """The expression in types that Numba has."""
    return legaliser(e) if needs_legalising(e) else e


def python_type(t: DType) -> str:
    return scalars.numpy_name(t)


__all__ = [
    "CONDITIONAL",
    "Context",
    "Holes",
    "Lines",
    "Names",
    "Printer",
    "legal",
    "needs_legalising",
    "python_type",
]
