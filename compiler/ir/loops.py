"""Loop kernels: order without new meaning.

    Buffer   typed, row-major memory: `param` (an argument), `local` (registers or stack of one iteration),
             `scratch` (memory of one task)
    For      a loop over an axis, 0 <= axis < extent, of a kind:
               serial    in order
               parallel  iterations are tasks; only outermost, perfectly nested ones
               vector    all iterations at once, in the lanes of one vector
               jam       all iterations side by side, each with its own locals: loops inside are run once
                         for all of them (register tile)
               block, thread   the grid of a GPU
    If       statements under a condition (lanes under a false one do nothing)
    Alloc    a local or scratch buffer, alive until the end of the enclosing statement list
    Store    buffer[index] = value; `stream` bypasses the cache where the target can

vector and jam may be given to any loop whose iterations are independent of each other; all kinds mean the
same as serial then.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fusile.ir import index as ix
from fusile.ir.expr import Axis, Dim, Expr, Load, as_expr, free, nodes, substitute
from fusile.ir.types import DType

if TYPE_CHECKING:
    from fusile.ir.names import Names


class Kind(enum.Enum):
    SERIAL = "for"
    PARALLEL = "parallel"
    VECTOR = "vector"
    JAM = "jam"
    BLOCK = "block"
    THREAD = "thread"


@dataclass(eq=False, slots=True)
class Buffer:
    """Row-major memory of `shape` elements. `scope`: param | local | scratch. `constant`: never written while
    the model runs.
    """

    name: str
    dtype: DType
    shape: tuple[Expr, ...]
    scope: str = "param"
    constant: bool = False

    def strides(self) -> tuple[Expr, ...]:
        return tuple(ix.product(self.shape[k + 1 :]) for k in range(len(self.shape)))

    def address(self, index: Iterable[Expr]) -> Expr:
        """The position of an element, in elements, as one canonical expression."""
        total: Expr = as_expr(0)
        for i, s in zip(index, self.strides(), strict=True):
            total = total + i * s
        return total

    def __repr__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(repr, self.shape))}]"


@dataclass(frozen=True, eq=False, slots=True)
class For:
    axis: Axis
    body: tuple[Stmt, ...]
    kind: Kind = Kind.SERIAL


@dataclass(frozen=True, eq=False, slots=True)
class If:
    condition: Expr
    body: tuple[Stmt, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Alloc:
    buffer: Buffer


@dataclass(frozen=True, eq=False, slots=True)
class Store:
    buffer: Buffer
    index: tuple[Expr, ...]
    value: Expr
    stream: bool = False


Stmt = For | If | Alloc | Store


@dataclass(frozen=True, eq=False, slots=True)
class Kernel:
    """A unit of work: `params` are its buffers (written ones in `writes`), `dims` its symbolic sizes.
    `schedule` lists the rewrites that made it out of the naive nest, `origins` the ONNX nodes that it
    computes.
    """

    name: str
    params: tuple[Buffer, ...]
    dims: tuple[Dim, ...]
    body: tuple[Stmt, ...]
    origins: tuple[str, ...] = ()
    schedule: tuple[str, ...] = ()
    notes: Mapping[str, object] = field(default_factory=dict)

    def with_body(self, body: Iterable[Stmt], step: str = "") -> Kernel:
        return replace(self, body=tuple(body), schedule=(*self.schedule, step) if step else self.schedule)


# ---- walking -----------------------------------------------------------------------------------------------


def walk(body: Iterable[Stmt]) -> Iterator[Stmt]:
    """Every statement, parents first."""
    for s in body:
        yield s
        if isinstance(s, (For, If)):
            yield from walk(s.body)


def stmt_exprs(s: Stmt) -> tuple[Expr, ...]:
    """The expressions that a statement itself evaluates."""
    match s:
        case Store():
            return (*s.index, s.value)
        case If():
            return (s.condition,)
        case For():
            return (s.axis.extent,)
    return s.buffer.shape


def accesses(body: Iterable[Stmt]) -> list[tuple[Buffer, tuple[Expr, ...], bool]]:
    """Every distinct access below: (buffer, index, whether it writes)."""
    found: dict[tuple[Buffer, tuple[Expr, ...], bool], None] = {}
    for s in walk(body):
        if isinstance(s, Store):
            found[(s.buffer, s.index, True)] = None
        for e in stmt_exprs(s):
            for n in nodes(e):
                if isinstance(n, Load):
                    found[(n.source, n.index, False)] = None
    return list(found)


def written(body: Iterable[Stmt]) -> set[Buffer]:
    return {s.buffer for s in walk(body) if isinstance(s, Store)}


def map_exprs(body: Iterable[Stmt], f: Callable[[Expr], Expr]) -> tuple[Stmt, ...]:
    """The same statements over changed expressions (loop extents stay)."""
    out: list[Stmt] = []
    for s in body:
        match s:
            case Store():
                out.append(replace(s, index=tuple(map(f, s.index)), value=f(s.value)))
            case If():
                out.append(If(f(s.condition), map_exprs(s.body, f)))
            case For():
                out.append(replace(s, body=map_exprs(s.body, f)))
            case Alloc():
                out.append(s)
    return tuple(out)


def substitute_stmts(
    body: Iterable[Stmt], mapping: Mapping[Expr, Expr], memory: Mapping[Buffer, Buffer] | None = None
) -> tuple[Stmt, ...]:
    """Replace axes by expressions, and buffers by those in `memory`; locals and inner axes are made anew, so
    that copies of a body do not share them.
    """
    from fusile.ir.expr import axis as new_axis

    out: list[Stmt] = []
    buffers: dict[Buffer, Buffer] = dict(memory or {})
    changes: dict[Expr, Expr] = dict(mapping)

    def expr(e: Expr) -> Expr:
        def read(x: Load) -> Expr:
            from fusile.ir.expr import load

            return load(buffers[x.source], x.index) if x.source in buffers else x

        return substitute(e, changes, read)

    def visit(s: Stmt) -> Stmt:
        match s:
            case Alloc():
                b = s.buffer
                buffers[b] = Buffer(b.name, b.dtype, tuple(map(expr, b.shape)), b.scope, b.constant)
                return Alloc(buffers[b])
            case Store():
                return replace(
                    s,
                    buffer=buffers.get(s.buffer, s.buffer),
                    index=tuple(map(expr, s.index)),
                    value=expr(s.value),
                )
            case If():
                return If(expr(s.condition), tuple(map(visit, s.body)))
            case For():
                fresh = new_axis(s.axis.name, expr(s.axis.extent))
                changes[s.axis] = fresh
                return For(fresh, tuple(map(visit, s.body)), s.kind)

    for s in body:
        out.append(visit(s))
    return tuple(out)


def with_buffers(body: Iterable[Stmt], buffers: Mapping[Buffer, Buffer]) -> tuple[Stmt, ...]:
    """The same statements on other memory; all else that they declare is made anew."""
    return substitute_stmts(body, {}, buffers)


def dims_of(body: Iterable[Stmt], buffers: Iterable[Buffer]) -> tuple[Dim, ...]:
    """The symbolic sizes that a body and its buffers' shapes mention, by name."""
    found: set[Expr] = set()
    pending: list[Expr] = [e for b in buffers for e in b.shape]
    for s in walk(body):
        pending.extend(stmt_exprs(s))
    seen: set[Expr] = set()
    while pending:
        e = pending.pop()
        for v in free(e):
            if v in seen:
                continue
            seen.add(v)
            if isinstance(v, Dim):
                found.add(v)
            elif isinstance(v, Axis):
                pending.append(v.extent)
        for n in nodes(e):
            if isinstance(n, Load) and n.source not in seen:
                pending.extend(n.source.shape)
    return tuple(sorted((d for d in found if isinstance(d, Dim)), key=lambda d: d.name))


# ---- text ----------------------------------------------------------------------------------------


def kernel_text(k: Kernel) -> str:
    """The text form of a kernel. Names are unique where they are seen together."""
    from fusile.ir.names import Names, comment

    names = Names()
    for d in k.dims:
        names.of(d)
    params = ", ".join(_buffer_text(b, names) for b in k.params)
    dims = f"; {', '.join(names.of(d) for d in k.dims)}" if k.dims else ""
    lines = [f"kernel {k.name}({params}{dims}):"]
    if k.origins:
        lines.append(f"  # computes {', '.join(map(comment, k.origins))}")
    if k.schedule:
        lines.append(f"  # schedule {comment('; '.join(k.schedule))}")
    _body_text(k.body, "  ", names, lines)
    return "\n".join(lines) + "\n"


def _buffer_text(b: Buffer, names: Names) -> str:
    from fusile.ir.names import expr_text

    constant = "constant " if b.constant else ""
    return f"{constant}{names.of(b)}: {b.dtype}[{', '.join(expr_text(n, names) for n in b.shape)}]"


def body_text(body: Iterable[Stmt], indent: str, names: Names) -> list[str]:
    """Statements line by line."""
    lines: list[str] = []
    _body_text(body, indent, names, lines)
    return lines


def _body_text(body: Iterable[Stmt], indent: str, outer: Names, lines: list[str]) -> None:
    """Statements line by line; what they declare has its name up to the end of the list."""
    from fusile.ir.names import expr_parts, expr_text

    names = outer.inside()

    def line(head: str, e: Expr, tail: str = "") -> None:
        text, shared = expr_parts(e, names)
        lines.append(f"{indent}{head}{text}{tail}")
        lines.extend(f"{indent}    where {x}" for x in shared)

    for s in body:
        match s:
            case For():
                inner = names.inside()
                line(f"{s.kind.value} {inner.of(s.axis)} in ", s.axis.extent, ":")
                _body_text(s.body, indent + "  ", inner, lines)
            case If():
                line("if ", s.condition, ":")
                _body_text(s.body, indent + "  ", names, lines)
            case Alloc():
                lines.append(f"{indent}{s.buffer.scope} {_buffer_text(s.buffer, names)}")
            case Store():
                index = ", ".join(expr_text(i, names) for i in s.index)
                line(f"{names.of(s.buffer)}[{index}] {'=stream=' if s.stream else '='} ", s.value)
