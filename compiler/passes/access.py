"""Access maps: what a stage reads, along which axes, with which stride; and what kind of stage that makes it.

Decisions of fusion, layout and schedule come from here, never from operator names.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusile.ir import index as ix
from fusile.ir.expr import Apply, Axis, Const, Expr, Guard, Load, Reduce, free, nodes
from fusile.ir.expr import loads as loads
from fusile.ir.tensor import Compute, Tensor

EXPENSIVE = frozenset(
    {
        "exp",
        "log",
        "sin",
        "cos",
        "tan",
        "tanh",
        "erf",
        "pow",
        "asin",
        "acos",
        "atan",
        "div",
        "sqrt",
        "mod",
        "rem",
        "floordiv",
    }
)


def address(x: Load) -> Expr:
    """The row-major position of a read, in elements."""
    total: Expr = ix.expr({})
    shape = x.source.shape
    for d, i in enumerate(x.index):
        total = total + i * ix.product(shape[d + 1 :])
    return total


def stride(x: Load, at: Axis) -> int | None:
    """The stride of a read along an axis, in elements, where it is a known number; 0 where the axis does not
    matter.
    """
    if at not in free(address(x)):
        return 0
    c = ix.coefficient(address(x), at)
    return None if c is None else ix.number(c)


def reads(body: Expr) -> list[Load]:
    """The reads of a body, without those that only compute an index."""
    inner = {y for x in loads(body) for i in x.index for y in loads(i)}
    return [x for x in loads(body) if x not in inner]


def is_view(stage: Compute) -> bool:
    """Whether a stage only moves elements: its body is one read (or a constant)."""
    return isinstance(stage.body, (Load, Const))


def cost(body: Expr) -> int:
    """Rough cost of evaluating an expression once, in simple operations (index arithmetic inside reads not
    counted).
    """
    total = 0
    seen: set[Expr] = set()
    pending = [body]
    while pending:
        e = pending.pop()
        if e in seen:
            continue
        seen.add(e)
        if isinstance(e, Apply):
            total += 8 if e.op in EXPENSIVE else 1
        if not isinstance(e, Load):
            pending.extend(e.children)
    return total


def index_cost(body: Expr) -> int:
    """Divisions, remainders, selects and reads inside the indices of an expression: what makes an index map
    expensive.
    """
    total = 0
    for x in loads(body):
        for i in x.index:
            for n in nodes(i):
                if isinstance(n, Load) or (
                    isinstance(n, Apply) and n.op in ("floordiv", "mod", "div", "rem", "select", "cast")
                ):
                    total += 1
    return total


def read_depth(body: Expr) -> int:
    """The longest chain of reads of an expression in which each stands in an index of the next."""
    depth: dict[Expr, int] = {}
    pending = [body]
    while pending:
        e = pending[-1]
        waiting = [c for c in e.children if c not in depth]
        if waiting:
            pending.extend(waiting)
            continue
        pending.pop()
        depth[e] = max((depth[c] for c in e.children), default=0) + isinstance(e, Load)
    return depth[body]


def has_guard(body: Expr) -> bool:
    return any(isinstance(n, Guard) for n in nodes(body))


@dataclass(frozen=True, slots=True)
class Contraction:
    """A sum of products of two reads, which may be converted to the type of the sum. Axes by where they
    occur: `m` in `left` and the result, `n` in `right` and the result, `batch` in all three, `k` the reduced
    ones.
    """

    left: Load
    right: Load
    m: tuple[Axis, ...]
    n: tuple[Axis, ...]
    batch: tuple[Axis, ...]
    k: tuple[Axis, ...]


def contraction(stage: Compute) -> Contraction | None:
    """The stage as a contraction, or None: both operands are reused (m and n not empty), or it is a matrix
    times a vector.
    """
    r = stage.reduction
    if r is None or r.kind != "sum" or not isinstance(r.body, Apply) or r.body.op != "mul":
        return None
    left, right = map(_operand, r.body.args)
    if left is None or right is None:
        return None
    in_left, in_right = free(left), free(right)
    if any(a not in in_left or a not in in_right for a in r.axes):
        return None
    m = tuple(a for a in stage.axes if a in in_left and a not in in_right)
    n = tuple(a for a in stage.axes if a in in_right and a not in in_left)
    batch = tuple(a for a in stage.axes if a in in_left and a in in_right)
    found = Contraction(left, right, m, n, batch, r.axes)
    if m and n:
        return found
    if batch or not (m or n):
        return None
    return found if n else swapped(found)


def _operand(e: Expr) -> Load | None:
    """The read that an operand is, or is a conversion of."""
    if isinstance(e, Apply) and e.op == "cast":
        (e,) = e.args
    return e if isinstance(e, Load) else None


def swapped(c: Contraction) -> Contraction:
    return Contraction(c.right, c.left, c.n, c.m, c.batch, c.k)


def is_window(stage: Compute) -> bool:
    """Whether some read mixes an axis of the result with a reduced one in one index (a sliding window)."""
    r = stage.reduction
    if r is None:
        return False
    reduced, outer = set(r.axes), set(stage.axes)
    return any(free(i) & reduced and free(i) & outer for x in reads(r.body) for i in x.index)


def constant(t: Tensor, known: dict[Tensor, bool]) -> bool:
    """Whether a tensor's elements are given with the model, or follow from what is given. `known` holds the
    answers so far.
    """
    pending = [t]
    while pending:
        x = pending[-1]
        if x in known:
            pending.pop()
            continue
        if not isinstance(x.stage, Compute):
            known[x] = x.data is not None
            continue
        sources = {r.source for r in loads(x.stage.body)}
        waiting = [y for y in sources if y not in known]
        if waiting and all(known[y] for y in sources - set(waiting)):
            pending += waiting
        else:
            known[x] = x.data is not None or (
                bool(sources) and not waiting and all(known[y] for y in sources)
            )
    return known[t]


def reduce_of(stage: Compute) -> Reduce | None:
    return stage.reduction
