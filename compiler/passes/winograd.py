"""Convolutions with windows of three by fewer multiplications.

The filtering algorithms F(m, 3) of S. Winograd ("Arithmetic Complexity of Computations", 1980), nested over
the dimensions as in A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): a tile
of m outputs per dimension takes m + 2 products for each pair of channels, where the definition takes 3 m.

    V[u, t, c] = B of the tile t of x         input transform
    U[u, c, o] = G of the filter              worked out when the module is built
    M[u, t, o] = sum(c) V[u, t, c] * U[u, c, o]
    y          = A of M[., t, o]              output transform

A rewrite of tensor programs: three stages for one, each scheduled like any other. Condition: float32, stride
and dilation 1, filters that follow from the weights, channels in one piece. Error: the rounding errors of the
result grow by less than 8 for m = 4 against the direct sum, by less than 3 for m = 2 (measured in
tests/passes/test_winograd.py, root mean square over random data; the points below were chosen for it).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from fusile.ir import index as ix
from fusile.ir.expr import (
    Axis,
    Expr,
    Load,
    as_expr,
    axis,
    const,
    eq,
    free,
    load,
    reduce_over,
    select,
    substitute,
)
from fusile.ir.tensor import Compute, Program, Stage, Tensor
from fusile.ir.types import F32
from fusile.passes import access
from fusile.passes.inline import Log, consumers

TAPS = 3
POINTS: dict[int, tuple[Fraction, ...]] = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
}
"""Interpolation points by the outputs of a tile; infinity is the last. Opposite points share sums."""

NOMINAL = 64
"""What a symbolic size is taken to be where costs are compared."""
MOVE = 16
"""Multiplications in the time of one element that passes a transform: read, worked on, written and read."""
FETCH = 4
"""Multiplications in the time of one byte of weights that comes from far away."""
GAIN = 1.15
"""By how much the estimate has to be better than that of the direct sum."""

Matrix = tuple[tuple[Fraction, ...], ...]
Table = dict[tuple[int, ...], Expr]


@dataclass(frozen=True, slots=True)
class Transforms:
    """The matrices of F(m, 3): outputs (m × n), filter (n × 3) and inputs (n × n), n = m + 2."""

    outputs: Matrix
    filters: Matrix
    inputs: Matrix


def transforms(m: int) -> Transforms:
    """The matrices for the points of F(m, 3), by Lagrange interpolation (Winograd 1980, chapter IV)."""
    points = POINTS[m]
    n = len(points) + 1

    def monic(roots: Sequence[Fraction]) -> list[Fraction]:
        c = [Fraction(1)]
        for q in roots:
            c = [a - q * b for a, b in zip([Fraction(0), *c], [*c, Fraction(0)], strict=True)]
        return c

    inputs: list[tuple[Fraction, ...]] = []
    filters: list[tuple[Fraction, ...]] = []
    for p in points:
        others = [q for q in points if q != p]
        inputs.append((*monic(others), Fraction(0)))
        scale = Fraction(1)
        for q in others:
            scale *= p - q
        filters.append(tuple(p**k / scale for k in range(TAPS)))
    inputs.append(tuple(monic(points)))
    filters.append((*(Fraction(0),) * (TAPS - 1), Fraction(1)))
    last = [Fraction(int(i == m - 1)) for i in range(m)]
    outputs = tuple((*(p**i for p in points), last[i]) for i in range(m))
    assert len(inputs[0]) == n
    return Transforms(outputs, tuple(filters), tuple(inputs))


# ---- the rewrite -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Window:
    """A convolution: the reads of data and filter, the dimensions along which the former slides, each with
    the axis of the result and the tap that it adds, the reduced channel, and the one of the result.
    """

    left: Load
    right: Load
    spatial: dict[int, tuple[Axis, Axis]]
    channel: Axis
    column: Axis


def winograd(program: Program, log: Log) -> Program:
    """Rewrite every convolution that gains by it."""
    readers = consumers(program.stages)
    kept = set(program.outputs) | {x.source for d in program.dim_definitions for x in access.loads(d.value)}
    out: list[Stage] = []
    inlined: set[Stage] = set()
    known: dict[Tensor, bool] = {}
    for s in program.stages:
        w = _window(s, known) if isinstance(s, Compute) else None
        m = None if w is None else _tile(w)
        if not isinstance(s, Compute) or w is None or m is None:
            out.append(s)
            continue
        border = w.left.source.stage
        alone = readers[w.left.source] == [s] and w.left.source not in kept
        if not (alone and isinstance(border, Compute) and border.reduction is None):
            border = None
        stages, used = _rewritten(s, w, m, border)
        if used and border is not None:
            inlined.add(border)
        out.extend(stages)
        size = " x ".join([str(m)] * len(w.spatial))
        log.made.append(f"{s.out.name} is computed in tiles of {size} by Winograd's algorithm")
    return program.with_stages([s for s in out if s not in inlined])


def _window(s: Compute, known: dict[Tensor, bool]) -> _Window | None:
    """The stage as a convolution with taps of three over one or two dimensions; None where it is none."""
    c = access.contraction(s)
    if c is None or c.batch or s.out.dtype is not F32:
        return None
    for one in (c, access.swapped(c)):
        slides = any(not isinstance(i, Axis) and ix.number(i) != 0 for i in one.left.index)
        if slides and access.constant(one.right.source, known):
            break
    else:
        return None
    left, right = one.left, one.right
    if left.dtype is not F32 or right.dtype is not F32 or len(one.n) != 1:
        return None
    if not all(isinstance(i, Axis) or ix.number(i) == 0 for i in right.index):
        return None
    spatial: dict[int, tuple[Axis, Axis]] = {}
    for d, i in enumerate(left.index):
        if isinstance(i, Axis) or ix.number(i) == 0:
            continue
        position = [a for a in one.m if a in free(i)]
        tap = [a for a in one.k if a in free(i)]
        if len(position) != 1 or len(tap) != 1 or i is not position[0] + tap[0]:
            return None
        if ix.number(tap[0].extent) != TAPS:
            return None
        spatial[d] = (position[0], tap[0])
    taps = {tap for _, tap in spatial.values()}
    channels = tuple(a for a in one.k if a not in taps)
    if not 1 <= len(spatial) <= 2 or len(taps) != len(spatial) or len(channels) != 1:
        return None
    return _Window(left, right, spatial, channels[0], one.n[0])


def _tile(w: _Window) -> int | None:
    """The outputs of a tile per dimension that take the least time, by counted multiplications, elements that
    pass the transforms, and bytes of weights; None for the direct sum.
    """

    def size(n: Expr) -> int:
        known = ix.number(n)
        return NOMINAL if known is None else known

    cells = [size(a.extent) for a, _ in w.spatial.values()]
    positions = {a for a, _ in w.spatial.values()}
    others = [i for i in w.left.index if isinstance(i, Axis) and i is not w.channel and i not in positions]
    batch = math.prod(ix.number(a.extent) or 1 for a in others)  # one image is what gains least
    inner, columns = size(w.channel.extent), size(w.column.extent)
    dims = len(cells)
    direct = TAPS**dims * inner * columns * (batch * math.prod(cells) + 4 * FETCH)
    best: tuple[float, int | None] = (direct / GAIN, None)
    for m in POINTS:
        products = (m + TAPS - 1) ** dims
        tiles = batch * math.prod(-(-n // m) for n in cells)
        price = products * (
            tiles * (inner * columns + MOVE * (inner + columns)) + 4 * FETCH * inner * columns
        )
        best = min(best, (price, m), key=lambda x: x[0])
    return best[1]


def _rewritten(s: Compute, w: _Window, m: int, border: Compute | None) -> tuple[list[Stage], bool]:
    """The stages of the algorithm, and whether they take the place of `border`, which makes the data."""
    t = transforms(m)
    n = m + TAPS - 1
    dims = list(w.spatial)
    tiles = {d: axis(f"t{k}", ix.ceil_div(w.spatial[d][0].extent, m)) for k, d in enumerate(dims)}
    corners = list(itertools.product(range(n), repeat=len(dims)))
    stages: list[Stage] = []

    data, used = _whole_tiles(s, w, m, tiles, border, stages)

    def added(name: str, axes: Sequence[Axis], body: Expr) -> Tensor:
        made = Tensor(f"{s.out.name}_{name}", F32, tuple(a.extent for a in axes))
        made.stage = Compute(made, tuple(axes), body, s.origin, s.op)
        stages.append(made.stage)
        return made

    def points() -> list[Axis]:
        return [axis(f"u{k}", n) for k in range(len(dims))]

    # V: where x slides, its tiles; elsewhere its own axes, made anew
    fresh: dict[Expr, Axis] = {
        i: axis(i.name, i.extent)
        for d, i in enumerate(w.left.index)
        if d not in w.spatial and isinstance(i, Axis)
    }
    index = [fresh.get(i, i) for i in w.left.index]

    def read(at: tuple[int, ...]) -> Expr:
        place = dict(zip(dims, at, strict=True))
        return load(data, [tiles[d] * m + place[d] if d in place else i for d, i in enumerate(index)])

    u = points()
    table = _along_all(t.inputs, {at: read(at) for at in corners}, len(dims))
    held = [tiles.get(d, i) for d, i in enumerate(index)]
    places = [i for i in held if isinstance(i, Axis)]
    v = added("tiles", (*u, *places), _choose(u, table))

    # U: filters, with the column innermost
    inner, column = w.channel, w.column
    c, o = axis(inner.name, inner.extent), axis(column.name, column.extent)
    taps = [tap for _, tap in w.spatial.values()]
    filters: Table = {
        at: substitute(w.right, {inner: c, column: o, **{a: const(k) for a, k in zip(taps, at, strict=True)}})
        for at in itertools.product(range(TAPS), repeat=len(dims))
    }
    u = points()
    wide = added("filters", (*u, c, o), _choose(u, _along_all(t.filters, filters, len(dims))))

    # M: one product of matrices per point, over the axes of the result with tiles in place of positions
    u = points()
    position = {w.spatial[d][0]: axis(tiles[d].name, tiles[d].extent) for d in dims}
    axes = [position[a] if a in position else axis(a.name, a.extent) for a in s.axes]
    mine: dict[Expr, Expr] = dict(zip(s.axes, axes, strict=True))
    k = axis(inner.name, inner.extent)
    mine[inner] = k
    at_left: list[Expr] = [
        position[w.spatial[d][0]] if d in tiles else substitute(i, mine)
        for d, i in enumerate(w.left.index)
        if d in tiles or isinstance(i, Axis)
    ]
    product = load(v, (*u, *at_left)) * load(wide, (*u, k, mine[column]))
    products = added("products", (*u, *axes), reduce_over("sum", (k,), product))

    # y, in the place of the stage
    positions = [w.spatial[d][0] for d in dims]
    at = [a // m if a in position else a for a in s.axes]
    back: Table = {x: load(products, (*map(const, x), *at)) for x in corners}
    result = _choose([a % m for a in positions], _along_all(t.outputs, back, len(dims)))
    last = Compute(s.out, s.axes, result, s.origin, s.op)
    s.out.stage = last
    return [*stages, last], used


def _whole_tiles(
    s: Compute, w: _Window, m: int, tiles: dict[int, Axis], border: Compute | None, stages: list[Stage]
) -> tuple[Tensor, bool]:
    """The data with zeros up to whole tiles, and whether it takes the place of the stage that made it."""
    source = w.left.source
    wanted = {d: t.extent * m + (TAPS - 1) for d, t in tiles.items()}
    if all(wanted[d] is source.shape[d] for d in wanted):
        return source, False
    axes = [axis(f"i{d}", wanted.get(d, n)) for d, n in enumerate(source.shape)]
    within: Expr | None = None
    for d in wanted:
        test = axes[d] < source.shape[d]
        within = test if within is None else within & test
    assert within is not None
    value: Expr = load(source, axes)
    if border is not None:
        value = substitute(border.body, dict(zip(border.axes, axes, strict=True)))
    made = Tensor(f"{source.name}_whole", F32, tuple(a.extent for a in axes))
    made.stage = Compute(made, tuple(axes), select(within, value, as_expr(0.0, F32)), s.origin, s.op)
    stages.append(made.stage)
    return made, border is not None


# ---- transforms as expressions ---------------------------------------------------------------------------


def _along_all(matrix: Matrix, table: Table, rank: int) -> Table:
    """The matrix applied along every dimension of a table, one after another."""
    for d in range(rank):
        made: Table = {}
        lines: dict[tuple[int, ...], list[Expr]] = {}
        for at in sorted(table, key=lambda x: x[d]):
            lines.setdefault((*at[:d], *at[d + 1 :]), []).append(table[at])
        for rest, line in lines.items():
            for k, value in enumerate(_apply(matrix, line)):
                made[(*rest[:d], k, *rest[d:])] = value
        table = made
    return table


def _apply(matrix: Matrix, line: Sequence[Expr]) -> list[Expr]:
    """The matrix times a vector of expressions. Two rows that differ in the signs of some columns alone share
    the sums of both parts, and two columns that differ in the signs of some rows alone their sum and
    difference.
    """
    columns = list(zip(*matrix, strict=True))
    done: set[int] = set()
    terms: list[list[tuple[Fraction, Expr]]] = [[] for _ in matrix]
    for a, b in itertools.combinations(range(len(columns)), 2):
        x, y = columns[a], columns[b]
        if {a, b} & done or any(abs(p) != abs(q) for p, q in zip(x, y, strict=True)) or not any(x):
            continue
        done |= {a, b}
        both, apart = line[a] + line[b], line[a] - line[b]
        for i, (p, q) in enumerate(zip(x, y, strict=True)):
            if p:
                terms[i].append((p, both if p == q else apart))
    for a in range(len(columns)):
        if a not in done:
            for i, p in enumerate(columns[a]):
                if p:
                    terms[i].append((p, line[a]))
    out: list[Expr | None] = [None] * len(matrix)
    for i, j in itertools.combinations(range(len(matrix)), 2):
        alike = [p for p in terms[i] if p in terms[j]]
        signs = [p for p in terms[i] if (-p[0], p[1]) in terms[j]]
        if out[i] is None and out[j] is None and alike and signs and len(alike) + len(signs) == len(terms[i]):
            even, odd = _sum(alike), _sum(signs)
            out[i], out[j] = even + odd, even - odd
    return [_sum(t) if e is None else e for e, t in zip(out, terms, strict=True)]


def _sum(terms: Sequence[tuple[Fraction, Expr]]) -> Expr:
    total: Expr | None = None
    for c, x in sorted(terms, key=lambda t: abs(t[0]) != 1):  # what needs no factor first: the rest is fma
        if total is None:
            total = x if c == 1 else -x if c == -1 else x * float(c)
        elif abs(c) == 1:
            total = total + x if c == 1 else total - x
        else:
            total = total + x * float(c)
    assert total is not None
    return total


def _choose(at: Sequence[Expr], table: Table) -> Expr:
    """The entry of a table at the values of some indices."""
    first, rest = at[0], at[1:]
    count = 1 + max(x[0] for x in table)

    def entry(k: int) -> Expr:
        below = {x[1:]: e for x, e in table.items() if x[0] == k}
        return _choose(rest, below) if rest else below[()]

    out = entry(count - 1)
    for k in range(count - 2, -1, -1):
        out = select(eq(first, k), entry(k), out)
    return out
