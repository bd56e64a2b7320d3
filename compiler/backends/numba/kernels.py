"""Loop kernels as Python functions: one text per structure, shared by the kernels that differ in sizes
alone."""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fusile.backends.numba import scalars
from fusile.backends.numba.expressions import LARGEST_LITERAL, Context, Holes, Lines, Names, Printer, legal
from fusile.capabilities import FUNCTIONS
from fusile.ir import index as ix
from fusile.ir.expr import Apply, Axis, Const, Expr, Guard, Load, free, nodes
from fusile.ir.loops import (
    Alloc,
    Buffer,
    For,
    If,
    Kernel,
    Kind,
    Stmt,
    Store,
    accesses,
    stmt_exprs,
    walk,
    written,
)
from fusile.ir.types import I64
from fusile.passes.legalise import Legaliser

LANES = 64
"""Loops over lanes keep their number up to this: the compiler unrolls and vectorises them by it."""

RESERVED = (
    "np",
    "math",
    "cuda",
    "error",
    "numba",
    "libdevice",
    "task",
    "first",
    "last",
    "kernel",
    "helper",
    "checked",
    "minimum",
    "maximum",
    "float_mod",
    "power",
    "fmod",
    *scalars.ROUNDING.values(),
    *FUNCTIONS,
    *scalars.NUMPY_NAMES,
    *dir(builtins),
)
"""Names that generated functions use besides their own."""


@dataclass(frozen=True, eq=False, slots=True)
class Template:
    """A kernel as text with marks in place of literals that may differ between kernels of one structure.

    `before` are arguments in front of its arrays. `params` are those arrays in the order of its arguments
    (scratch arrays of a GPU included), `holes` the marks' values in the order of the text.
    """

    name: str
    doc: str
    before: tuple[str, ...]
    arrays: tuple[str, ...]
    params: tuple[Buffer, ...]
    checks: bool
    text: str
    holes: tuple[Expr, ...]

    @property
    def key(self) -> tuple[object, ...]:
        return (self.before, self.arrays, self.checks, self.text)


@dataclass(frozen=True, eq=False, slots=True)
class Function:
    """A kernel function of the module; `extra` are the values of its size arguments, one list per argument,
    by kernel."""

    name: str
    text: str
    params: tuple[Buffer, ...]
    checks: bool


@dataclass(frozen=True, eq=False, slots=True)
class Use:
    """A kernel's function and what it is called with after its arrays: sizes (host expressions)."""

    function: Function
    params: tuple[Buffer, ...]
    extra: tuple[Expr, ...]
    scratch: tuple[Buffer, ...] = ()


class Dialect(Protocol):
    """What a target prints its own way."""

    @property
    def static_shapes(self) -> bool:
        """Whether the sizes of local arrays have to be numbers in the text."""
        ...

    def before(self, kernel: Kernel) -> tuple[str, ...]:
        """Arguments in front of a kernel's arrays."""
        ...

    def alloc(self, p: KernelPrinter, buffer: Buffer, shape: str, word: str) -> str: ...
    def loops(self, p: KernelPrinter, s: For) -> bool:
        """Print a loop that is not serial; False where it is printed as a serial one."""
        ...

    def scratch(self, kernel: Kernel) -> tuple[Buffer, ...]:
        """Local arrays that the caller provides, shared out among blocks."""
        ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What kernels take from their module: helpers by operation, numbers of sites, and which tensors are
    weights."""

    use: scalars.Use
    site: Callable[[str], int]
    is_weight: Callable[[object], bool]


class KernelPrinter:
    """Prints one kernel. Sizes up to `literals` stay numbers in its text."""

    def __init__(self, kernel: Kernel, dialect: Dialect, surroundings: Surroundings, literals: int) -> None:
        self.kernel, self.dialect = kernel, dialect
        self.written = written(kernel.body)
        self.scratch = dialect.scratch(kernel)
        self.names = Names(RESERVED)
        self.params = (*kernel.params, *self.scratch)
        self.arrays = self._arrays(surroundings.is_weight)
        self.lines = Lines(1)
        self.holes = Holes()
        sizes: dict[Expr, str] = {}
        bounds: dict[Expr, tuple[Expr, str]] = {}
        self._shapes(sizes, bounds)
        prefix = {b: "cuda.blockIdx.x" for b in self.scratch}
        self.context = Context(
            self.lines,
            self.names,
            surroundings.use,
            self.holes,
            surroundings.site,
            sizes,
            bounds,
            prefix,
            literals,
        )
        self.legaliser = Legaliser(scalars.CAPABILITIES, kernel.origins[0] if kernel.origins else "")
        self.local_accesses = [x for x in self._accesses() if x[0].scope != "param"]

    def _arrays(self, is_weight: Callable[[object], bool]) -> tuple[str, ...]:
        """Names of the arrays by what they are for: out, w for weights, x for the rest."""
        tensors = self.kernel.notes.get("tensors", {})
        assert isinstance(tensors, dict)

        def role(b: Buffer) -> str:
            if b in self.scratch:
                return "memory"
            return "out" if b in self.written else "w" if b.constant or is_weight(tensors.get(b)) else "x"

        roles = [role(b) for b in self.params]
        seen: dict[str, int] = {}
        for b, r in zip(self.params, roles, strict=True):
            seen[r] = seen.get(r, 0) + 1
            self.names.of[b] = self.names.fresh(r if roles.count(r) == 1 else f"{r}{seen[r]}")
        return tuple(self.names.of[b] for b in self.params)

    def _shapes(self, sizes: dict[Expr, str], bounds: dict[Expr, tuple[Expr, str]]) -> None:
        for b, index, _ in self._accesses():
            if b not in self.kernel.params:
                continue
            for d, (i, n) in enumerate(zip(index, b.shape, strict=True)):
                bounds.setdefault(i, (n, f"{self.names.of[b]}.shape[{d}]"))
        for b in self.kernel.params:
            for d, n in enumerate(b.shape):
                if not isinstance(n, Const):
                    sizes.setdefault(n, f"{self.names.of[b]}.shape[{d}]")

    def _accesses(self) -> list[tuple[Buffer, tuple[Expr, ...], bool]]:
        found = accesses(self.kernel.body)
        return [x for x in found if x[2]] + [x for x in found if not x[2]]

    def template(self) -> Template:
        self.body(self.kernel.body)
        text = "\n".join(self.lines.lines)
        order = [int(n) for n in re.findall(r"\x00(\d+)\x01", text)]
        text = re.sub(r"\x00\d+\x01", "\x00", text)
        checks = any(
            isinstance(n, Guard) for s in walk(self.kernel.body) for e in stmt_exprs(s) for n in nodes(e)
        )
        return Template(
            self.kernel.name,
            "; ".join(self.kernel.schedule),
            self.dialect.before(self.kernel),
            self.arrays,
            self.params,
            checks,
            text,
            tuple(self.holes.values[n] for n in order),
        )

    # ---- statements ---------------------------------------------------------------------------------------

    def body(self, body: Iterable[Stmt]) -> None:
        for s in body:
            match s:
                case For():
                    if not self.dialect.loops(self, s):
                        self.serial(s)
                case If():
                    p = self.printer(self.legal(s.condition))
                    self.lines.add(f"if {p.text(self.legal(s.condition)).text}:")
                    self.nested(s.body)
                case Alloc():
                    self._alloc(s.buffer)
                case Store():
                    self.store(s)

    def legal(self, e: Expr) -> Expr:
        return legal(e, self.legaliser)

    def printer(self, *roots: Expr) -> Printer:
        return Printer(self.context, roots)

    def nested(self, body: Iterable[Stmt]) -> None:
        self.lines.depth += 1
        self.body(body)
        self.lines.depth -= 1

    def serial(self, s: For) -> None:
        self.lines.add(f"for {self.axis(s.axis)} in range({self.extent(s)}):")
        self.nested(s.body)
        self.names.release(s.axis)  # loops beside this one may use its name again

    def axis(self, a: Axis) -> str:
        return self.names.name(a, a.name)

    def extent(self, s: For) -> str:
        """The text of a loop's extent: the size of an array that it writes along, a small number, the size of
        another array, or an expression.
        """
        n = ix.number(s.axis.extent)
        known = self.context.bounds.get(s.axis)
        along = known[1] if known is not None and known[0] is s.axis.extent else None
        if n is not None and n <= LANES and s.axis.name == "lane":
            return str(n)
        tasks = s.kind is not Kind.SERIAL or (along is not None and along.startswith("out"))
        if n is not None and n <= self.context.literals and not (along and tasks):
            return str(n)
        return along or self.printer(s.axis.extent).text(s.axis.extent).text

    def digits(self, task: str, loops: Sequence[For], extents: Sequence[str]) -> None:
        """The axes of collapsed loops out of the number of a task."""
        for k, s in enumerate(loops):
            below = [atom(x) for x in extents[k + 1 :]]
            text = task
            if below:
                text = f"{task} // {below[0]}" if len(below) == 1 else f"{task} // ({' * '.join(below)})"
            if k:
                text = f"{text} % {atom(extents[k])}"
            self.lines.add(f"{self.axis(s.axis)} = {text}")

    def _alloc(self, b: Buffer) -> None:
        name = self.names.name(b, self._word(b))
        if not b.shape or b in self.scratch:
            return
        parts = [self._length(b, d) for d in range(len(b.shape))]
        shape = parts[0] if len(parts) == 1 else f"({', '.join(parts)})"
        self.lines.add(f"{name} = {self.dialect.alloc(self, b, shape, scalars.numpy_name(b.dtype))}")

    def _word(self, b: Buffer) -> str:
        """A local's name: the one that it was given where a definition wrote the loops itself."""
        return b.name if self.kernel.notes.get("as_written") else local_name(b)

    def _length(self, b: Buffer, d: int) -> str:
        """The text of a local's size along a dimension: that of the loop that fills it where it is one."""
        n = b.shape[d]
        if self.dialect.static_shapes:
            assert isinstance(n, Const), f"{b} has no known size"
            return str(n.value)
        for x, index, _ in self.local_accesses:
            if x is not b:
                continue
            at = index[d]
            if isinstance(at, Axis) and at.name == "lane":
                break
            known = self.context.bounds.get(at)
            if known is not None and known[0] is n:
                return known[1]
        return str(n.value) if isinstance(n, Const) else self.printer(n).text(n).text

    def store(self, s: Store) -> None:
        """buffer[index] = value, or += where the value adds to what is there."""
        self.names.name(s.buffer, self._word(s.buffer))
        index = tuple(map(self.legal, s.index))
        value = self.legal(s.value)
        update = _update(s, value)
        p = self.printer(*index, update[1] if update is not None else value)
        target = p.element(s.buffer, index)
        if update is not None:
            self.lines.add(f"{target} {update[0]}= {p.text(update[1]).text}")
        else:
            self.lines.add(f"{target} = {p.text(value).text}")


def collapsed(s: For) -> tuple[list[For], tuple[Stmt, ...]]:
    """Perfectly nested loops of one kind from `s` inwards, and what is inside."""
    loops = [s]
    while len(loops[-1].body) == 1:
        below = loops[-1].body[0]
        if (
            not isinstance(below, For)
            or below.kind is not s.kind
            or any(x.axis in free(below.axis.extent) for x in loops)
        ):
            break
        loops.append(below)
    return loops, loops[-1].body


def atom(text: str) -> str:
    return text if re.fullmatch(r"[\w.\[\]\x00\x01]+", text) else f"({text})"


def _update(s: Store, value: Expr) -> tuple[str, Expr] | None:
    """The sign and the operand of `x = x + e`, in types that keep theirs."""
    if (
        not isinstance(value, Apply)
        or value.op not in ("add", "mul", "sub")
        or not (value.dtype.is_float or value.dtype is I64)
    ):
        return None
    old, new = value.args
    if isinstance(old, Load) and old.source is s.buffer and old.index == s.index and value.dtype is not I64:
        return {"add": "+", "mul": "*", "sub": "-"}[value.op], new
    return None


_PLAIN = re.compile(r"\.([a-z_]+)$")
_INNER_WORDS = {"sum": "total", "max": "largest", "min": "smallest"}


def local_name(b: Buffer) -> str:
    """A short name of a local, the same for equal kernels of different nodes: definitions name their inner
    tensors, models the others."""
    found = _PLAIN.search(b.name.removesuffix("_acc"))
    if found is None:
        return b.name if b.name in ("v", "at") else "acc"
    return _INNER_WORDS.get(found.group(1), found.group(1))


# ---- sharing ----------------------------------------------------------------------------------------------


class Library:
    """The kernel functions of a module: kernels of one structure share one."""

    def __init__(self, dialect: Dialect, surroundings: Surroundings) -> None:
        self.dialect, self.surroundings = dialect, surroundings
        self.groups: dict[tuple[object, ...], list[tuple[Kernel, Template]]] = {}
        self.found: set[Kernel] = set()

    def add(self, kernel: Kernel, literals: int = LARGEST_LITERAL) -> None:
        """Take in a kernel; sizes above `literals` do not keep it apart from others."""
        if kernel in self.found:
            return
        self.found.add(kernel)
        t = KernelPrinter(kernel, self.dialect, self.surroundings, literals).template()
        self.groups.setdefault(t.key, []).append((kernel, t))

    def functions(self, taken: Iterable[str]) -> tuple[list[Function], dict[Kernel, Use]]:
        """Every function, in the order of first use, and how each kernel is called."""
        names = Names(taken)
        functions: list[Function] = []
        uses: dict[Kernel, Use] = {}
        for members in self.groups.values():
            function, extras = _merged(members, names.fresh(members[0][1].name))
            functions.append(function)
            for (kernel, t), extra in zip(members, extras, strict=True):
                uses[kernel] = Use(function, t.params, extra, self.dialect.scratch(kernel))
        return functions, uses


def _merged(members: list[tuple[Kernel, Template]], name: str) -> tuple[Function, list[tuple[Expr, ...]]]:
    """One function for kernels of one structure: literals on which all agree stay, the others are
    arguments."""
    first = members[0][1]
    columns = list(zip(*(t.holes for _, t in members), strict=True))
    arguments: dict[tuple[Expr, ...], str] = {}
    texts: list[str] = []
    inner = Names(set(re.findall(r"[A-Za-z_]\w*", first.text)) | set(RESERVED) | set(first.arrays))
    for column in columns:
        head = column[0]
        if isinstance(head, Const) and all(c is head for c in column):
            texts.append(scalars.literal(head.value, head.dtype).text)
        else:
            if column not in arguments:
                arguments[column] = inner.fresh("size" if head.dtype is I64 else "number")
            texts.append(arguments[column])
    pieces = first.text.split("\x00")
    body = pieces[0] + "".join(x + y for x, y in zip(texts, pieces[1:], strict=True))
    params = [*first.before, *first.arrays, *(["error"] if first.checks else []), *arguments.values()]
    head_text = signature(name, params)
    doc = f'    """{first.doc}."""\n' if first.doc else ""
    text = f"@kernel\n{head_text}\n{doc}{body}\n"
    extras = [tuple(column[k] for column in arguments) for k in range(len(members))]
    return Function(name, text, first.params, first.checks), extras


def signature(name: str, params: Sequence[str], width: int = 100) -> str:
    """`def name(…):`, on several lines where it is long."""
    line = f"def {name}({', '.join(params)}):"
    if len(line) <= width:
        return line
    rows: list[str] = []
    row = "   "
    for p in params:
        if len(row) + len(p) + 2 > width:
            rows.append(row)
            row = "   "
        row += f" {p},"
    return "\n".join([f"def {name}(", *rows, row, "):"])


# ---- the CPU ----------------------------------------------------------------------------------------------


def tasks(kernel: Kernel) -> Expr | None:
    """How many tasks a kernel has that may run at the same time; None where it is not one nest of them."""
    outer = kernel.body[0] if len(kernel.body) == 1 else None
    if not isinstance(outer, For) or outer.kind is not Kind.PARALLEL:
        return None
    return ix.product(s.axis.extent for s in collapsed(outer)[0])


@dataclass(frozen=True, slots=True)
class Cpu:
    """Numba on a CPU: a kernel with tasks is called for those from `first` on, before `last`; locals are
    numpy arrays."""

    static_shapes: bool = False

    def before(self, kernel: Kernel) -> tuple[str, ...]:
        return () if tasks(kernel) is None else ("first", "last")

    def alloc(self, p: KernelPrinter, buffer: Buffer, shape: str, word: str) -> str:
        return f"np.empty({shape}, {word})"

    def loops(self, p: KernelPrinter, s: For) -> bool:
        if p.kernel.body != (s,) or tasks(p.kernel) is None:
            return False
        loops, inside = collapsed(s)
        task = p.axis(s.axis) if len(loops) == 1 else "task"
        p.lines.add(f"for {task} in range(first, last):")
        p.lines.depth += 1
        if len(loops) > 1:
            p.digits("task", loops, [p.extent(x) for x in loops])
        p.body(inside)
        p.lines.depth -= 1
        return True

    def scratch(self, kernel: Kernel) -> tuple[Buffer, ...]:
        return ()
