"""Axes that choose between expressions: short ones, and the low digits of long ones.

Where a body says `select(i == 0, a, select(i == 1, b, …))`, or the same of `i mod 4`, one copy of it for each
value of `i` leaves one arm each, and what the arms share is worked out once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusile.ir import index as ix
from fusile.ir.expr import Apply, Axis, Const, Expr, as_expr, axis, const, nodes
from fusile.ir.loops import For, If, Stmt, stmt_exprs, walk
from fusile.schedule.rewrites import Body, place

MOST_VALUES = 8
"""Values of one such axis or digit that get a copy each."""
MOST_COPIES = 64
"""Copies of a body, over all such axes."""

Piece = tuple[list[Axis], Body]
"""Loops, outermost first, and what is inside."""


def unrolled(axes: Sequence[Axis], body: Body) -> list[Piece]:
    """The nest with every phase axis laid out: nests one after another, together the same iterations."""
    found = _phases(axes, body)
    pieces: list[Piece] = [(list(axes), body)]
    for a, values in found.items():
        pieces = [p for piece in pieces for p in _laid_out(piece, a, values)]
    return pieces


def _phases(axes: Sequence[Axis], body: Body) -> dict[Axis, int]:
    """How many values of an axis (or of its low digit) a body tells apart."""
    if any(isinstance(s, (For, If)) for s in body):
        return {}
    found: dict[Axis, int] = {}
    for s in walk(body):
        for e in stmt_exprs(s):
            for n in nodes(e):
                phase = _phase(n)
                if phase is not None and phase[0] in axes and phase[1] <= MOST_VALUES:
                    found.setdefault(*phase)
    chosen: dict[Axis, int] = {}
    copies = 1
    for a in axes:
        if a in found and copies * found[a] <= MOST_COPIES:
            copies *= found[a]
            chosen[a] = found[a]
    return chosen


def _phase(e: Expr) -> tuple[Axis, int] | None:
    """(axis, values) where a condition compares a short axis, or the low digit of one, with a number."""
    if not (isinstance(e, Apply) and e.op == "eq" and isinstance(e.args[1], Const)):
        return None
    at = e.args[0]
    if isinstance(at, Axis):
        n = ix.number(at.extent)
        return None if n is None else (at, n)
    if isinstance(at, Apply) and at.op == "mod" and isinstance(at.args[0], Axis):
        n = ix.number(at.args[1])
        return None if n is None else (at.args[0], n)
    return None


def _laid_out(piece: Piece, a: Axis, values: int) -> list[Piece]:
    """A nest with `values` copies of its body for each value of an axis's rest, and what is left over."""
    axes, body = piece
    at = axes.index(a)

    def copies(start: Expr, count: int) -> Body:
        out: list[Stmt] = []
        for k in range(count):
            out.extend(place(body, a, start + const(k)))
        return tuple(out)

    whole, rest = a.extent // values, a.extent % values
    out: list[Piece] = []
    if ix.number(whole) == 1:
        out.append(([*axes[:at], *axes[at + 1 :]], copies(as_expr(0), values)))
    elif ix.number(whole) != 0:
        upper = axis(f"{a.name}o", whole)
        out.append(([*axes[:at], upper, *axes[at + 1 :]], copies(upper * values, values)))
    left = ix.number(rest)
    if left is None:
        lower = axis(f"{a.name}r", rest)
        out.append(([*axes[:at], lower, *axes[at + 1 :]], place(body, a, whole * values + lower)))
    elif left:
        out.append(([*axes[:at], *axes[at + 1 :]], copies(whole * values, left)))
    return out
