"""Rules that schedule a naive kernel for Numba on a CPU.

Numba's LLVM vectorises an innermost loop where it runs along contiguous memory and carries nothing from one
iteration to the next. So the contiguous axis goes inside the reduction loops, with a row of accumulators;
panels of packed weights are walked one after another; outer loops become tasks. Everything is decided from
access maps and extents. Taking a rule away leaves a slower, correct kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fusile.ir import index as ix
from fusile.ir.expr import Apply, Axis, Expr, Load, const, free, nodes, substitute
from fusile.ir.loops import Alloc, Buffer, For, If, Kernel, Kind, Stmt, Store, accesses, stmt_exprs, walk
from fusile.ir.types import storage_bytes
from fusile.passes import access
from fusile.schedule.interchange import Body, drop_units, hoist, independent, most, raise_allocs, sink, split

NOMINAL = 64
"""What a symbolic size is taken to be where loops are compared."""
TYPICAL = 8
"""What a symbolic size is taken to be where the work of a kernel is guessed: often it is a batch."""
ROW_BYTES = 8192
"""The accumulators of a sunk loop should stay in the first-level cache."""
MOST_ROW_BYTES = 1 << 20
"""Above this a sunk loop would move more memory than it saves."""
WIDTHS = (1024, 512, 256, 128, 64, 32, 16)
FEWEST_LANES = 8
"""Shorter loops are not worth vectorising."""
PARALLEL_WORK = 1_000_000
"""Simple operations below which starting threads costs more than it brings."""


def schedule(kernel: Kernel) -> Kernel:
    """A kernel whose innermost loops vectorise and whose outermost loop is parallel where it is large
    enough."""
    steps: list[str] = []
    body = drop_units(kernel.body)
    if not kernel.notes.get("as_written"):
        body = _panels(body, steps)
        body = _improve(body, steps)
        body = hoist(body, _may_be_empty)
    body = _parallel(body, steps)
    return kernel.with_body(body, "; ".join(dict.fromkeys(steps)))


def size(e: Expr, nominal: int = NOMINAL) -> int:
    """A size with every symbol at a nominal value and every outer axis at 0."""
    e = most(e)
    known = ix.number(e)
    if known is not None:
        return known
    mapping: dict[Expr, Expr] = {}
    for x in free(e):
        mapping[x] = const(0) if isinstance(x, Axis) else const(nominal)
    return ix.number(substitute(e, mapping)) or nominal


def _may_be_empty(loop: For) -> bool:
    n = ix.number(loop.axis.extent)
    if n is None:
        bound = loop.axis.extent
        return not (isinstance(bound, Apply) and bound.op == "min" and loop.axis.name == "lane")
    return n == 0


# ---- panels --------------------------------------------------------------------------------------


def _panels(body: Body, steps: list[str]) -> Body:
    """Split an axis that is read as i // w and i % w, and walk panels outside the rows that share them."""
    if len(body) != 1 or not isinstance(body[0], For):
        return body
    axes, inside = perfect(body[0])
    for a in axes:
        width = _panel_width(inside, a)
        if width is None:
            continue
        steps.append(f"split {a.name} by {width}")
        halves = split(For(a, inside), width)
        lanes = halves.body[0]
        assert isinstance(lanes, For)
        tile = halves.axis
        rest = [x for x in axes if x is not a]
        shared = [x for x in rest if _with_panel(x, tile, lanes.body)]
        order = [*shared, tile, *(x for x in rest if x not in shared)]
        return drop_units(wrap(order, (lanes,)))
    return body


def perfect(loop: For) -> tuple[list[Axis], Body]:
    """The axes of perfectly nested loops from `loop` inwards, and what is inside."""
    axes = [loop.axis]
    body = loop.body
    while (
        len(body) == 1 and isinstance(body[0], For) and not any(a in free(body[0].axis.extent) for a in axes)
    ):
        axes.append(body[0].axis)
        body = body[0].body
    return axes, body


def wrap(axes: Sequence[Axis], body: Body, kind: Kind = Kind.SERIAL) -> Body:
    for a in reversed(axes):
        body = (For(a, body, kind),)
    return body


def _panel_width(body: Body, a: Axis) -> int | None:
    for s in walk(body):
        for e in stmt_exprs(s):
            for n in nodes(e):
                if isinstance(n, Apply) and n.op == "mod" and n.args[0] is a:
                    return ix.number(n.args[1])
    return None


def _with_panel(x: Axis, tile: Axis, body: Body) -> bool:
    """Whether what is read along the panels of `tile` also depends on another axis (a batch)."""
    return any(
        tile in _free(i) and x in _free(i)
        for b, i, write in accesses(body)
        if not write and b.scope == "param"
    )


def _free(index: Iterable[Expr]) -> frozenset[Expr]:
    return frozenset().union(*(free(i) for i in index))


# ---- which loop goes inside ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class _Inner:
    """A store, the loops around it from the outside inwards, and how often it runs."""

    store: Store
    around: tuple[For, ...]
    times: int


def _stores(body: Iterable[Stmt], around: tuple[For, ...] = (), times: int = 1) -> list[_Inner]:
    out: list[_Inner] = []
    for s in body:
        match s:
            case For():
                out += _stores(s.body, (*around, s), times * max(1, size(s.axis.extent)))
            case If():
                out += _stores(s.body, around, times)
            case Store():
                out.append(_Inner(s, around, times))
            case Alloc():
                pass
    return out


def _cost(x: _Inner, along: For, own: set[Buffer]) -> float:
    """About how long a store takes per iteration if the loop `along` were the innermost one (1: a scalar
    operation).

    `own` are the buffers that would get a row along it.
    """
    a, s = along.axis, x.store
    if s.buffer not in own and _stride(s.buffer, s.index, a) == 0:
        return 1.5  # carried from one iteration to the next
    if size(a.extent) < FEWEST_LANES:
        return 1.0
    strides = [] if s.buffer in own else [_stride(s.buffer, s.index, a)]
    for e in (*s.index, s.value):
        strides += [
            _stride(n.source, n.index, a) for n in nodes(e) if isinstance(n, Load) and n.source not in own
        ]
    if any(n not in (0, 1) for n in strides):
        return 1.0
    return 0.1


def _stride(buffer: Buffer, index: tuple[Expr, ...], a: Axis) -> int | None:
    if not buffer.shape:
        return 0
    address = buffer.address(index)
    if a not in free(address):
        return 0
    c = ix.coefficient(address, a)
    return None if c is None else ix.number(c)


def _gain(loop: For, found: list[_Inner]) -> tuple[float, set[Store]]:
    """What sinking a loop saves, and the stores that gain by it."""
    own = {s.buffer for s in walk(loop.body) if isinstance(s, Alloc)}
    total, better = 0.0, set()
    for x in found:
        if loop not in x.around or x.around[-1] is loop:
            continue
        now, then = _cost(x, x.around[-1], set()), _cost(x, loop, own)
        if then < now:
            total += x.times * (now - then)
            better.add(x.store)
    return total, better


def _improve(body: Body, steps: list[str]) -> Body:
    """Sink the loops that gain by it: for every nest the one loop, or the several inner ones, that save
    most."""
    found = _stores(body)
    chosen: dict[For, set[Store]] = {}

    def best(stmts: Iterable[Stmt]) -> tuple[float, dict[For, set[Store]]]:
        total, picks = 0.0, dict[For, set[Store]]()
        for s in stmts:
            if isinstance(s, If):
                gain, inner = best(s.body)
            elif isinstance(s, For):
                gain, inner = best(s.body)
                own, better = _gain(s, found)
                if own > gain and _width(s) and independent(s):
                    gain, inner = own, {s: better}
            else:
                continue
            total += gain
            picks.update(inner)
        return total, picks

    _, chosen = best(body)
    return _sunk(body, chosen, steps, outermost=True) if chosen else body


def _width(loop: For) -> int:
    """How many iterations of a loop to sink at once; 0 where even few would keep too much."""
    bytes_each = sum(
        storage_bytes(s.buffer.dtype) * _elements(s.buffer.shape)
        for s in walk(loop.body)
        if isinstance(s, Alloc)
    )
    n = size(loop.axis.extent)
    known = ix.number(most(loop.axis.extent))
    budget = ROW_BYTES if bytes_each <= 64 else MOST_ROW_BYTES // 4
    if known is not None and known * bytes_each <= budget:
        return known
    for w in WIDTHS:
        if (
            w <= max(n, FEWEST_LANES)
            and w * bytes_each <= budget
            and (known is None or known % w == 0 or w <= 64)
        ):
            return w
    return WIDTHS[-1] if WIDTHS[-1] * bytes_each <= MOST_ROW_BYTES else 0


def _elements(shape: Sequence[Expr]) -> int:
    total = 1
    for n in shape:
        total *= size(n)
    return total


def _sunk(
    body: Iterable[Stmt], chosen: dict[For, set[Store]], steps: list[str], outermost: bool = False
) -> Body:
    out: list[Stmt] = []
    for s in body:
        match s:
            case For() if s in chosen:
                out.extend(_sink_one(s, chosen[s], steps, outermost))
            case For() | If():
                out.append(replace(s, body=_sunk(s.body, chosen, steps)))
            case _:
                out.append(s)
    return tuple(out)


def _sink_one(loop: For, better: set[Store], steps: list[str], outermost: bool) -> Body:
    def wanted(f: For) -> bool:
        return any(s in better for s in walk(f.body))

    width = _width(loop)
    n = ix.number(most(loop.axis.extent))
    alone = outermost and sum(isinstance(s, For) for s in loop.body) > 1
    if alone and n is not None and n <= width and n > 16:
        width = 16  # tiles are the only tasks there are
    if n is not None and n <= width:
        steps.append(f"sink {loop.axis.name}")
        return sink(loop, wanted)
    steps.append(f"split {loop.axis.name} by {width}, sink the lanes")
    # A split makes statements anew, in the same order.
    marks = [s for s in walk(loop.body) if isinstance(s, Store)]
    halves = split(loop, width)
    lanes = halves.body[0]
    assert isinstance(lanes, For)
    again = [s for s in walk(lanes.body) if isinstance(s, Store)]
    moved = {new for old, new in zip(marks, again, strict=True) if old in better}
    return (replace(halves, body=sink(lanes, lambda f: any(s in moved for s in walk(f.body)))),)


# ---- tasks ---------------------------------------------------------------------------------------


def work(body: Iterable[Stmt]) -> int:
    """Simple operations of a body, about, with symbolic sizes at a typical value."""
    total = 0
    for s in body:
        match s:
            case For():
                total += size(s.axis.extent, TYPICAL) * work(s.body)
            case If():
                total += work(s.body)
            case Store():
                total += 1 + access.cost(s.value)
            case Alloc():
                pass
    return total


def _parallel(body: Body, steps: list[str]) -> Body:
    """Outer loops as tasks; arrays are made once per task.

    Which loops depends on the shape of the nest alone, so that kernels that differ in sizes stay alike: all
    that walk over rows, less the innermost of three or more, and never the loop that is vectorised.
    """
    if len(body) != 1 or not isinstance(body[0], For) or work(body) < PARALLEL_WORK:
        return raise_allocs(body)
    axes, inside = perfect(body[0])
    nest = body[0]
    free_axes: list[Axis] = []
    for a in axes:
        if not independent(nest):
            break
        free_axes.append(a)
        if len(nest.body) == 1 and isinstance(nest.body[0], For):
            nest = nest.body[0]
    if not any(isinstance(s, For) for s in inside) and len(free_axes) == len(axes) > 1:
        free_axes.pop()
    if len(free_axes) > 2:
        free_axes.pop()
    if not free_axes:
        return raise_allocs(body)
    steps.append(f"parallel {', '.join(a.name for a in free_axes)}")
    rest = [a for a in axes if a not in free_axes]
    return wrap(free_axes, raise_allocs(wrap(rest, inside)), Kind.PARALLEL)
