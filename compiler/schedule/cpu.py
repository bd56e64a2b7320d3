"""Rules that schedule a naive kernel for a CPU: which axis runs along the lanes, which iterations share
registers, which become tasks.

Everything is decided from access maps, extents and the target's registers and caches. Taking a rule away
leaves a slower, correct kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from fusile.ir import index as ix
from fusile.ir.expr import Apply, Axis, Expr, Load, as_expr, axis, free, nodes, substitute
from fusile.ir.loops import Alloc, Buffer, For, If, Kernel, Kind, Stmt, Store, accesses, walk, written
from fusile.ir.types import storage_bytes
from fusile.schedule.phases import unrolled
from fusile.schedule.rewrites import (
    Body,
    ScheduleError,
    boundaries,
    check_independent,
    collapse,
    partition,
    place,
    simplify,
    split,
    stride,
    tile,
    vectorise,
)
from fusile.schedule.tiles import Registers, best_rows
from fusile.target import TargetSpec

TASK_ELEMENTS = 2048
"""Elements of an elementwise loop that one task handles at least."""
LEAST_ELEMENTS = 128
"""Elements for which it pays to find out from the number of a task where they lie."""
ENOUGH_TASKS = 16
"""Tasks that keep a few threads busy to the end."""
MOST_KEPT = 16
"""Elements that an iteration may keep to itself where iterations run side by side in lanes."""
LEAST_STRIDE = 8
"""Elements between neighbouring lanes of a read from which on each lane has a cache line of its own."""
MOST_PIECES = 9
"""Into how many loops one with conditions on its axis may be cut."""
STREAM_BYTES = 1 << 25
"""Elementwise results above this size do not stay in a cache until they are read: they are written
around it.
"""


def schedule(kernel: Kernel, target: TargetSpec) -> Kernel:
    """A kernel in which every loop has its place: tasks, register tile, lanes."""
    m = Registers(target.vector_bytes // 4, target.vector_registers)
    steps: list[str] = []
    body = kernel.body
    if any(isinstance(s, Alloc) for s in body) or any(not isinstance(s, For) for s in body) or _ordered(body):
        out = inner(body, m, steps)
    else:
        out = tuple(x for s in body if isinstance(s, For) for x in nest(s, m, steps))
    return kernel.with_body(simplify(out), "; ".join(dict.fromkeys(steps)))


NOMINAL = 64
"""What a symbolic size is taken to be where only its order of magnitude matters."""

Position = Callable[[Expr], Expr]
"""Where in an axis a place in the tile lies."""
Columns = tuple[Position, int, Expr | None, Axis | None]
"""One way to cover the lane axis: position, vectors side by side, limit of the mask, loop over tiles."""

Variants = tuple[tuple[Expr | None, Kernel], ...]


def variants(kernel: Kernel, target: TargetSpec, aligned: Callable[[Buffer], bool]) -> Variants:
    """The kernels for a naive one, each with the sizes for which it is meant: the last takes all.

    An elementwise kernel whose result outgrows the caches writes it with streaming stores; where its size
    is symbolic, that is a variant of its own. `aligned` says which buffers begin at a multiple of 64 bytes.
    """
    usual = schedule(kernel, target)
    flowing = streamed(usual, aligned, target)
    if flowing is None:
        return ((None, usual),)
    size: Expr = as_expr(0)
    for b in written(flowing.body):
        size = size + ix.product(b.shape) * storage_bytes(b.dtype)
    known = ix.number(size)
    if known is not None:
        return ((None, flowing if known >= STREAM_BYTES else usual),)
    if (ix.number(substitute(size, {d: as_expr(NOMINAL) for d in free(size)})) or 0) < STREAM_BYTES:
        return ((None, usual),)
    return ((as_expr(STREAM_BYTES) <= size, flowing), (None, usual))


def streamed(kernel: Kernel, aligned: Callable[[Buffer], bool], target: TargetSpec) -> Kernel | None:
    """The kernel with streaming stores wherever whole aligned vectors leave it; None where none do, or where
    it reads what it writes.
    """
    lanes = target.vector_bytes // 4
    results = written(kernel.body)
    if any(not write and b in results for b, _, write in accesses(kernel.body)) or any(
        isinstance(s, Alloc) for s in walk(kernel.body)
    ):
        return None
    found = False

    def visit(body: Body, lane: Axis | None, masked: bool) -> Body:
        nonlocal found
        out: list[Stmt] = []
        for s in body:
            match s:
                case For():
                    out.append(
                        replace(s, body=visit(s.body, s.axis if s.kind is Kind.VECTOR else lane, masked))
                    )
                case If():
                    out.append(If(s.condition, visit(s.body, lane, True)))
                case Store() if (
                    lane is not None and not masked and aligned(s.buffer) and _whole_vector(s, lane, lanes)
                ):
                    found = True
                    out.append(replace(s, stream=True))
                case _:
                    out.append(s)
        return tuple(out)

    body = visit(kernel.body, None, False)
    return kernel.with_body(body, "stream the result") if found else None


def _whole_vector(s: Store, lane: Axis, lanes: int) -> bool:
    """Whether a store writes a full vector whose position is a multiple of its length."""
    if s.buffer.dtype.bits != 32 or ix.number(lane.extent) != lanes or stride(s.buffer, s.index, lane) != 1:
        return False
    return all(
        c % lanes == 0 for monomial, c in ix.poly(s.buffer.address(s.index)).items() if lane not in monomial
    )


def _ordered(body: Body) -> bool:
    """Whether the outermost loops must run one after another in one task (scatters, scans)."""
    for s in body:
        if isinstance(s, For):
            try:
                check_independent(s)
            except ScheduleError:
                return True
    return len(body) > 1


def perfect(loop: For) -> tuple[list[Axis], Body]:
    """The axes of perfectly nested loops from `loop` inwards, and what is inside."""
    axes = [loop.axis]
    body = loop.body
    while len(body) == 1 and isinstance(body[0], For):
        axes.append(body[0].axis)
        body = body[0].body
    return axes, body


def wrap(axes: Sequence[Axis], body: Body, kind: Kind = Kind.SERIAL) -> Body:
    for a in reversed(axes):
        body = (For(a, body, kind),)
    return body


# ---- whole nests ---------------------------------------------------------------------------------


def nest(loop: For, m: Registers, steps: list[str]) -> Body:
    """Schedule a nest of independent loops around the stages of a kernel."""
    loop = _collapsed(loop)
    axes, body = perfect(loop)
    along = None if _keeps_rows(body) else _lane_axis(axes, body)
    reduces = any(isinstance(s, For) for s in body)
    if along is None:
        return _rows(axes, body, m, steps)
    if not reduces:
        return _elementwise(axes, body, along, m, steps)
    return _tiled(axes, body, along, m, steps)


def _keeps_rows(body: Body) -> bool:
    """Whether iterations keep more to themselves than registers hold for many of them side by side."""
    return any(
        isinstance(s, Alloc) and (ix.number(ix.product(s.buffer.shape)) or MOST_KEPT + 1) > MOST_KEPT
        for s in walk(body)
    )


def _collapsed(loop: For) -> For:
    """Join neighbouring loops wherever every access stays linear: fewer loops, longer vectors, more choice
    for tiles.
    """
    inner_loop = loop
    path: list[Axis] = []
    while len(inner_loop.body) == 1 and isinstance(inner_loop.body[0], For):
        joined = collapse(inner_loop) if _worth_joining(inner_loop) else None
        if joined is not None:
            inner_loop = joined
            if path:
                return _collapsed(_rebuilt(path, inner_loop))
            continue
        path.append(inner_loop.axis)
        below = inner_loop.body[0]
        assert isinstance(below, For)
        inner_loop = below
    return _rebuilt(path, inner_loop)


def _worth_joining(loop: For) -> bool:
    """Not a symbolic extent with a number around a reduction: tiles that fit the number exactly are worth
    more.
    """
    below = loop.body[0]
    assert isinstance(below, For)
    alike = (ix.number(loop.axis.extent) is None) == (ix.number(below.axis.extent) is None)
    return alike or not any(isinstance(s, For) for s in perfect(loop)[1])


def _rebuilt(path: Sequence[Axis], loop: For) -> For:
    for a in reversed(path):
        loop = For(a, (loop,))
    return loop


def _results(body: Body) -> list[Store]:
    """Stores that leave the kernel."""
    return [s for s in walk(body) if isinstance(s, Store) and s.buffer.scope == "param"]


def _lane_axis(axes: Sequence[Axis], body: Body) -> Axis | None:
    """The shared axis along which all results are contiguous."""
    for a in reversed(axes):
        if ix.number(a.extent) == 1:
            continue
        if all(stride(s.buffer, s.index, a) == 1 for s in _results(body)):
            return a
        if any(stride(s.buffer, s.index, b) == 1 for s in _results(body) for b in _inner_axes(body)):
            return None
    return None


def _inner_axes(body: Body) -> list[Axis]:
    return [s.axis for s in walk(body) if isinstance(s, For)]


def _elementwise(axes: list[Axis], body: Body, along: Axis, m: Registers, steps: list[str]) -> Body:
    """Elementwise kernels: tasks of a few thousand elements, vectors inside; cut where conditions change."""
    pieces = unrolled([a for a in axes if a is not along], body)
    if len(pieces) > 1 or pieces[0][1] is not body:
        steps.append("lay out the phases")
    return tuple(s for outer, inside in pieces for s in _flat(outer, inside, along, m, steps))


def _flat(outer: list[Axis], body: Body, along: Axis, m: Registers, steps: list[str]) -> Body:
    """One elementwise nest without phases."""
    across = _across(outer, body, along)
    if across is not None:
        # What lies side by side in memory is read by the same few vectors, while it is in the cache.
        outer = [a for a in outer if a is not across]
        body = (For(across, body),)
        steps.append(f"{across.name} inside {along.name}")
    loop = For(along, body)
    cuts = boundaries(loop) if ix.number(along.extent) is not None else []
    parts: Body = partition(loop, cuts) if cuts and len(cuts) < MOST_PIECES else (loop,)
    if len(parts) > 1:
        steps.append(f"partition {along.name} at {', '.join(map(str, cuts))}")
    steps.append(f"vectorise {along.name} by {m.lanes}")
    jam = 2 if len(body) == 1 else 1
    out: list[Stmt] = []
    for piece in parts:
        assert isinstance(piece, For)
        n = ix.number(piece.axis.extent)
        if not outer and (n is None or n > 2 * TASK_ELEMENTS):
            for part in split(piece, TASK_ELEMENTS, Kind.PARALLEL):
                assert isinstance(part, For)
                if part.kind is Kind.PARALLEL:
                    inside = part.body[0]
                    assert isinstance(inside, For)
                    out.append(replace(part, body=vectorise(inside, m.lanes, jam)))
                else:
                    out.extend(vectorise(part, m.lanes, jam))
        else:
            out.extend(vectorise(piece, m.lanes, jam))
    if across is None:
        return tasks(outer, tuple(out), steps) if outer else tuple(out)
    nests: list[Stmt] = []
    for s in out:
        if isinstance(s, For) and s.kind is Kind.SERIAL:
            nests.extend(tasks([*outer, s.axis], s.body, steps))
        else:
            nests.extend(tasks(outer, (s,), steps))
    return tuple(nests)


def _across(outer: Sequence[Axis], body: Body, along: Axis) -> Axis | None:
    """The axis along which a read is contiguous that strides far along the lanes (a transposing copy)."""
    for b, index, write in accesses(body):
        if write or b.scope != "param" or (stride(b, index, along) or 0) < LEAST_STRIDE:
            continue
        for a in outer:
            if ix.number(a.extent) != 1 and stride(b, index, a) == 1:
                return a
    return None


def tasks(axes: Sequence[Axis], body: Body, steps: list[str]) -> Body:
    """Outer loops as tasks: as many of them as leave enough work inside each, or as it takes to have enough
    tasks where a symbolic size turns out to be one.
    """
    parallel: list[Axis] = []
    rest = list(axes)
    count = 1
    while rest:
        inside = _amount(wrap(rest[1:], body))
        least = TASK_ELEMENTS // 2 if count >= ENOUGH_TASKS else LEAST_ELEMENTS
        if parallel and inside < least:
            break
        count *= ix.number(rest[0].extent) or 1
        parallel.append(rest.pop(0))
    if parallel:
        steps.append(f"parallel {', '.join(a.name for a in parallel)}")
    return wrap(parallel, wrap(rest, body), Kind.PARALLEL)


def _amount(body: Body) -> int:
    """About how many elements a body works on; symbolic sizes count as 64."""
    total = 0
    for s in body:
        match s:
            case For():
                total += (ix.number(s.axis.extent) or NOMINAL) * _amount(s.body)
            case If():
                total += _amount(s.body)
            case Store():
                total += 1
    return total


# ---- tiles ---------------------------------------------------------------------------------------


def _tiled(axes: list[Axis], body: Body, along: Axis, m: Registers, steps: list[str]) -> Body:
    """Reductions with a contiguous result: a register tile of vectors along one axis and iterations of
    another that share what they read.
    """
    vectors = _vectors(along, body, m)
    row = _row_axis(axes, body, along)
    order = _order(axes, body, along, row)
    out: list[Stmt] = []
    for at, jam, limit, panels in _columns(along, m.lanes, vectors):
        rows: Body
        inside = For(along, body)
        if row is None:
            cells = tile(inside, at, m.lanes, jam, limit)
            steps.append(f"vectorise {along.name} by {m.lanes}, jam {jam}")
            rows = cells
        else:
            high = _height(row, jam, m, body)
            steps.append(f"tile {row.name} x {along.name} as {high} x {jam} vectors of {m.lanes}")
            rows = _split_rows(For(row, (inside,)), high, at, m.lanes, jam, limit)
        before = [a for a in order if a is not row]
        if panels is None:
            out.extend(tasks([a for a in before if a is not along], rows, steps))
        else:
            place_of = [panels if a is along else a for a in before]
            out.extend(tasks(place_of, rows, steps))
    return tuple(out)


def _vectors(along: Axis, body: Body, m: Registers) -> int:
    """How many vectors of a tile lie side by side: the panel width where an operand is packed, else by the
    extent.
    """
    widths: set[int] = set()
    for _, index, write in accesses(body):
        for e in (e for i in index for e in nodes(i)):
            if not write and isinstance(e, Apply) and e.op == "mod" and e.args[0] is along:
                widths.add(ix.number(e.args[1]) or 0)
    packed = [w for w in widths if w and w % m.lanes == 0]
    if packed:
        return min(packed) // m.lanes
    n = ix.number(along.extent)
    most = 4 if m.count >= 32 else 2
    if not _shares(body, along):
        most = 2
    return most if n is None else max(1, min(most, -(-n // m.lanes)))


def _shares(body: Body, along: Axis) -> bool:
    """Whether a read inside a reduction does not depend on the lane axis."""
    return any(
        not write and b.scope == "param" and along not in free(b.address(i))
        for b, i, write in _reduced_accesses(body)
    )


def _reduced_accesses(body: Body) -> list[tuple[Buffer, tuple[Expr, ...], bool]]:
    return [x for s in body if isinstance(s, For) and _accumulates(s) for x in accesses(s.body)]


def _accumulates(loop: For) -> bool:
    """Whether a loop folds values into something that it also reads."""
    return any(
        isinstance(s, Store) and any(isinstance(n, Load) and n.source is s.buffer for n in nodes(s.value))
        for s in walk(loop.body)
    )


def _after(start: Expr) -> Position:
    """Places of a tile that begins at `start`."""
    return lambda at: start + at


def _columns(along: Axis, lanes: int, vectors: int) -> Iterator[Columns]:
    """How the lane axis is covered: (position in the axis of a place in the tile, vectors, limit of the mask,
    loop over tiles).
    """
    n = along.extent
    step = lanes * vectors
    whole, rest = n // step, n % step
    if ix.number(whole) != 0:
        panel = axis(f"{along.name}o", whole)
        yield _after(panel * step), vectors, None, panel
    if ix.number(rest) == 0:
        return
    left = ix.number(rest)
    if left is not None:
        yield _after(whole * step), -(-left // lanes), (n if left % lanes else None), None
    else:
        panel = axis(f"{along.name}r", ix.ceil_div(rest, lanes))
        yield _after(whole * step + panel * lanes), 1, n, panel


def _row_axis(axes: Sequence[Axis], body: Body, along: Axis) -> Axis | None:
    """The axis whose iterations share what they read along the lanes: innermost first, not worth it for one
    iteration.
    """
    found = _reduced_accesses(body)
    for a in reversed(axes):
        if a is along or ix.number(a.extent) == 1:
            continue
        shared = [
            i
            for b, i, write in found
            if not write and b.scope == "param" and b.shape and a not in free(b.address(i))
        ]
        if shared:
            return a
    return None


def _height(row: Axis, vectors: int, m: Registers, body: Body) -> int:
    """Rows of a register tile: most work per read, least waste at the end."""
    if not _shares(body, row):
        n = ix.number(row.extent)
        return min(4, n or 4)
    return best_rows(row.extent, vectors, m, _aliased(row, body))


def _aliased(row: Axis, body: Body) -> bool:
    """Whether rows lie at distances that fall into one set of the first-level cache."""
    for b, index, write in _reduced_accesses(body):
        step = None if write else stride(b, index, row)
        if step and step * storage_bytes(b.dtype) % 4096 == 0:
            return True
    return False


def _split_rows(loop: For, high: int, at: Position, lanes: int, jam: int, limit: Expr | None) -> Body:
    """Rows in tiles of `high`; the rest in one smaller tile where it is a number, else in halves down to
    single rows.
    """
    row = loop.axis
    inside = loop.body[0]
    assert isinstance(inside, For)
    out: list[Stmt] = []
    done: Expr = as_expr(0)
    rest: Expr = row.extent
    heights = [high]
    while ix.number(row.extent) is None and heights[-1] > 1:
        heights.append(heights[-1] // 2)
    for h in heights:
        count = rest // h
        if ix.number(count) != 0:
            out.extend(_row_tiles(row, inside, done, count, h, at, lanes, jam, limit))
        done, rest = done + count * h, rest % h
    left = ix.number(rest)
    if left:
        out.extend(_row_tiles(row, inside, done, as_expr(1), left, at, lanes, jam, limit))
    return tuple(out)


def _row_tiles(
    row: Axis,
    inside: For,
    start: Expr,
    count: Expr,
    high: int,
    at: Position,
    lanes: int,
    jam: int,
    limit: Expr | None,
) -> Body:
    ro, ri = axis(f"{row.name}o", count), axis(f"{row.name}i", high)
    body = place(inside.body, row, start + ro * high + ri)
    cells = tile(For(inside.axis, body), at, lanes, jam, limit)
    return (For(ro, (For(ri, cells, Kind.JAM),) if high > 1 else place(cells, ri, as_expr(0))),)


def _order(axes: Sequence[Axis], body: Body, along: Axis, row: Axis | None) -> list[Axis]:
    """Batch-like axes outermost, then panels of the lane axis, then the other rows: a panel stays in cache
    while rows pass.
    """
    lane_reads = [
        (b, i)
        for b, i, write in _reduced_accesses(body)
        if not write and b.scope == "param" and b.shape and along in free(b.address(i))
    ]
    outer = [
        a
        for a in axes
        if a is not along and a is not row and any(a in free(b.address(i)) for b, i in lane_reads)
    ]
    others = [a for a in axes if a is not along and a is not row and a not in outer]
    return [*outer, along, *others, *([row] if row is not None else [])]


# ---- rows ----------------------------------------------------------------------------------------


def _rows(axes: list[Axis], body: Body, m: Registers, steps: list[str]) -> Body:
    """Kernels whose shared axes are rows: the loops inside a row are vectorised one by one."""
    return tasks(axes, inner(body, m, steps), steps)


def inner(body: Body, m: Registers, steps: list[str]) -> Body:
    """Vectorise the innermost contiguous loops of a body that runs in one task."""
    out: list[Stmt] = []
    for s in body:
        if isinstance(s, For):
            out.extend(_inner_loop(s, m, steps))
        elif isinstance(s, If):
            out.append(If(s.condition, inner(s.body, m, steps)))
        else:
            out.append(s)
    return tuple(out)


def _inner_loop(loop: For, m: Registers, steps: list[str]) -> Body:
    """One loop: along the lanes if its iterations are independent and what it writes is contiguous."""
    if _vectorisable(loop):
        steps.append(f"vectorise {loop.axis.name} by {m.lanes}")
        return vectorise(loop, m.lanes, 4)
    return (replace(loop, body=inner(loop.body, m, steps)),)


def _vectorisable(loop: For) -> bool:
    try:
        check_independent(loop)
    except ScheduleError:
        return False
    own = {s.buffer for s in walk(loop.body) if isinstance(s, Alloc)}
    outside = [s for s in walk(loop.body) if isinstance(s, Store) and s.buffer not in own]
    inside = {s.axis for s in walk(loop.body) if isinstance(s, For)}
    return bool(outside) and all(
        stride(s.buffer, s.index, loop.axis) == 1 and not any(a in free(i) for a in inside for i in s.index)
        for s in outside
    )
