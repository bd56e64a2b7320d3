"""Rules that schedule a naive kernel for a GPU.

    points   one thread per point of the domain; reductions and private arrays of a few elements stay in
             the thread
    rows     one block per point of the domain; the loops inside are shared out among its threads, one after
             another, and what they leave for each other lies in shared memory, or in memory of the block's
             own where it is too large or its size not known
    block    one block for everything: scans and scatters, whose steps follow each other

Taking a rule away leaves a slower, correct kernel: loops that are not shared out run in one thread, or in
all alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fusile.ir import index as ix
from fusile.ir.expr import Axis, Expr, apply, axis, const, free
from fusile.ir.loops import Alloc, Buffer, For, Kernel, Kind, Stmt, Store, accesses, walk, written
from fusile.ir.types import storage_bytes
from fusile.schedule.interchange import Body, drop_units, hoist, independent, raise_allocs
from fusile.schedule.numba_cpu import perfect, wrap

THREAD_BYTES = 512
"""Arrays of one thread's own, in all."""
SHARED_BYTES = 32 * 1024
"""Arrays in the shared memory of a block, in all."""
SCRATCH_BLOCKS = 64
"""Blocks of a kernel that needs memory of its own for each of them."""
MOST_BLOCKS = 1 << 16


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is started: `form` is points, rows or block, `count` the number of points or rows.

    `shared` are arrays in shared memory, `scratch` those that the caller provides for each of `blocks`;
    before the loops in `barriers` threads wait for each other, because one of them may still read what the
    loop writes.
    """

    form: str
    count: Expr
    blocks: Expr
    shared: tuple[Buffer, ...] = ()
    scratch: tuple[Buffer, ...] = ()
    barriers: frozenset[For] = frozenset()


def schedule(kernel: Kernel) -> Kernel:
    """A kernel whose loops are bound to blocks and threads; `notes["launch"]` says how to start it."""
    body = drop_units(kernel.body)
    nest = _domain(body)
    if nest is None:
        return _block(kernel, hoist(body, _may_be_empty))
    axes, inside = nest[0], hoist(nest[1], _may_be_empty)
    if _fits_thread(inside) and not _shares_work(inside):
        return _points(kernel, axes, inside)
    return _rows(kernel, axes, inside)


def _may_be_empty(loop: For) -> bool:
    return (ix.number(loop.axis.extent) or 0) == 0


def _domain(body: Body) -> tuple[list[Axis], Body] | None:
    """The independent loops around everything, or None where there are none."""
    if len(body) != 1 or not isinstance(body[0], For):
        return ([], body) if not any(isinstance(s, For) for s in body) else None
    axes, inside = perfect(body[0])
    loop = body[0]
    kept: list[Axis] = []
    for a in axes:
        if not independent(loop):
            break
        kept.append(a)
        if len(loop.body) == 1 and isinstance(loop.body[0], For):
            loop = loop.body[0]
    if not kept:
        return None
    return kept, wrap(axes[len(kept) :], inside)


def _arrays(body: Body) -> list[Buffer]:
    return [s.buffer for s in walk(body) if isinstance(s, Alloc) and s.buffer.shape]


def _bytes(b: Buffer) -> int | None:
    count = ix.number(ix.product(b.shape))
    return None if count is None else count * storage_bytes(b.dtype)


def _fits_thread(body: Body) -> bool:
    sizes = [_bytes(b) for b in _arrays(body)]
    return None not in sizes and sum(n or 0 for n in sizes) <= THREAD_BYTES


def _shares_work(body: Body) -> bool:
    """Whether there are loops inside, other than reductions, that are worth more than one thread."""
    own = set(_arrays(body))
    for s in walk(body):
        if isinstance(s, For) and (ix.number(s.axis.extent) or 64) > 8 and independent(s):
            stores = [x for x in walk(s.body) if isinstance(x, Store) and x.buffer.shape]
            if any(x.buffer not in own or s.axis in _index_axes(x) for x in stores):
                return True
    return False


def _index_axes(s: Store) -> frozenset[Expr]:
    return frozenset().union(*(free(i) for i in s.index))


# ---- the three forms -----------------------------------------------------------------------------


def _points(kernel: Kernel, axes: list[Axis], inside: Body) -> Kernel:
    count = ix.product(a.extent for a in axes)
    extra = [axis("one", const(1))] if not axes else []
    body = wrap([*axes, *extra], raise_allocs(inside), Kind.THREAD)
    return _launched(
        kernel, body, Launch("points", count, const(0)), f"thread {', '.join(a.name for a in axes)}"
    )


def _rows(kernel: Kernel, axes: list[Axis], inside: Body) -> Kernel:
    count = ix.product(a.extent for a in axes)
    allocs, rest = _split_allocs(raise_allocs(inside))
    shared, scratch = _placed(allocs)
    body = wrap(axes, (*(Alloc(b) for b in allocs), *_together(rest)), Kind.BLOCK)
    most = SCRATCH_BLOCKS if scratch else MOST_BLOCKS
    blocks = apply("max", apply("min", count, const(most)), const(1))
    launch = Launch("rows", count, blocks, shared, scratch, _barriers(body))
    return _launched(kernel, body, launch, f"block {', '.join(a.name for a in axes)}")


def _block(kernel: Kernel, body: Body) -> Kernel:
    allocs, rest = _split_allocs(raise_allocs(body))
    shared, scratch = _placed(allocs)
    together = _together(rest)
    launch = Launch("block", const(1), const(1), shared, scratch, _barriers(together))
    return _launched(kernel, (*(Alloc(b) for b in allocs), *together), launch, "one block")


def _launched(kernel: Kernel, body: Body, launch: Launch, step: str) -> Kernel:
    made = kernel.with_body(body, step)
    return replace(made, notes={**kernel.notes, "launch": launch, "blocks": launch.blocks})


def _split_allocs(body: Body) -> tuple[list[Buffer], Body]:
    return [s.buffer for s in body if isinstance(s, Alloc) and s.buffer.shape], tuple(
        s for s in body if not (isinstance(s, Alloc) and s.buffer.shape)
    )


def _placed(arrays: list[Buffer]) -> tuple[tuple[Buffer, ...], tuple[Buffer, ...]]:
    """(arrays in shared memory, arrays that the caller provides): the smallest are shared."""
    room = SHARED_BYTES
    shared: list[Buffer] = []
    for b in sorted(arrays, key=lambda b: _bytes(b) or SHARED_BYTES + 1):
        size = _bytes(b)
        if size is not None and size <= room:
            room -= size
            shared.append(b)
    return tuple(b for b in arrays if b in shared), tuple(b for b in arrays if b not in shared)


# ---- sharing out a body among the threads of a block ---------------------------------------------


def _together(body: Iterable[Stmt]) -> Body:
    """Statements that all threads of a block run: loops are shared out where their iterations are
    independent, what is left that writes arrays is one thread's, and numbers of their own are every thread's.
    """
    out: list[Stmt] = []
    for s in body:
        match s:
            case For() if not _writes_arrays(s):
                out.append(s)  # a reduction into a number: every thread has its own
            case For() if independent(s):
                out.append(_shared_out(s))
            case For() if any(
                isinstance(x, For) and independent(x) and _writes_arrays(x) for x in walk(s.body)
            ):
                out.append(replace(s, body=_together(s.body)))
            case Store() if not s.buffer.shape and s.buffer.scope != "param":
                out.append(s)
            case Alloc():
                out.append(s)
            case _:
                out.append(For(axis("alone", const(1)), (s,), Kind.THREAD))
    return tuple(out)


def _writes_arrays(s: For) -> bool:
    return any(isinstance(x, Store) and (x.buffer.shape or x.buffer.scope == "param") for x in walk(s.body))


def _shared_out(s: For) -> For:
    """The loop, and perfectly nested ones below it, as one that threads take turns in."""
    below = s.body[0] if len(s.body) == 1 else None
    if (
        isinstance(below, For)
        and s.axis not in free(below.axis.extent)
        and independent(below)
        and _writes_arrays(below)
    ):
        return For(s.axis, (_shared_out(below),), Kind.THREAD)
    return For(s.axis, s.body, Kind.THREAD)


def _barriers(body: Body) -> frozenset[For]:
    """Shared-out loops that write an array which every thread may still be reading for a number of its own.

    After a shared-out loop all threads wait for each other, so only what is read since the last one counts.
    """
    found: set[For] = set()

    def visit(stmts: Iterable[Stmt], reading: frozenset[Buffer]) -> frozenset[Buffer]:
        for s in stmts:
            match s:
                case For(kind=Kind.THREAD):
                    if reading & written(s.body):
                        found.add(s)
                    reading = frozenset()
                case For() if _writes_arrays(s):
                    reading = visit(s.body, visit(s.body, reading))
                case Alloc():
                    pass
                case _:
                    reading |= {b for b, _, write in accesses((s,)) if not write and b.shape}
        return reading

    visit(body, frozenset())
    return frozenset(found)
