"""Panels: the operand of a contraction that runs along the vector axis is read from panels of that many
columns, contiguous in the order of the inner loop. Panels of weights are made once, when the module is built.

A rewrite at the level of the tensor program, before loops exist.
"""

from __future__ import annotations

from collections.abc import Sequence

from fusile.ir import index as ix
from fusile.ir.expr import (
    Axis,
    Expr,
    Load,
    as_expr,
    axis,
    cast,
    const,
    free,
    load,
    reduce_over,
    select,
    substitute,
)
from fusile.ir.tensor import Compute, Program, Scan, Stage, Tensor
from fusile.ir.types import BF16, F32, DType
from fusile.passes import access
from fusile.passes.inline import Log
from fusile.schedule.tiles import Registers, best_vectors


def oriented(stage: Compute) -> access.Contraction | None:
    """A contraction with the operand of the vector axis on the right: the n axis innermost in the result,
    contiguous on the right or constant.
    """
    c = access.contraction(stage)
    if c is None:
        return None
    last = next((a for a in reversed(stage.axes) if ix.number(a.extent) != 1), None)
    options = [x for x in (c, access.swapped(c)) if last in x.n]
    return options[0] if options else None


def panel_width(s: Compute, c: access.Contraction, last: Axis, registers: Registers) -> int:
    """The panel width for a contraction, in elements: that of the register tile which takes least time."""
    rows = [a for a in c.m if ix.number(a.extent) != 1]
    # Neighbouring axes that the left operand walks in step can be one axis of the tile; others are tiled
    # alone.
    extent: Expr | int = rows[-1].extent if rows else 1
    if len(rows) > 1 and not access.is_window(s):
        known = [ix.number(a.extent) for a in rows]
        numbers = [n for n in known if n is not None]
        extent = ix.product(numbers) if numbers else extent
    return best_vectors(last.extent, extent, registers) * registers.lanes


def pack(program: Program, registers: Registers, log: Log, precision: str = "fp32") -> Program:
    """Give every contraction a right operand in panels or contiguous along its vector axis.

    With the precision "bf16", panels of float32 weights hold bfloat16: half the memory to read. Products and
    sums stay float32.
    """
    narrow = BF16 if precision == "bf16" else F32
    out: list[Stage] = []
    packed: dict[tuple[object, ...], Tensor] = {}
    known: dict[Tensor, bool] = {}
    for s in program.stages:
        if isinstance(s, Scan):
            out.extend(_packed_scan(s, registers, packed, log, narrow))
            continue
        if not isinstance(s, Compute):
            out.append(s)
            continue
        c = oriented(s)
        if c is None:
            out.extend(_lane_innermost(s, packed))
            continue
        last = next(a for a in reversed(s.axes) if ix.number(a.extent) != 1)
        constant = access.constant(c.right.source, known)
        if not constant and access.stride(c.right, last) != 1 and access.is_window(s):
            out.extend(_turned(s, c, last, packed))
            log.made.append(
                f"{c.right.source.name} is turned for {s.out.name}, which runs along another of its "
                f"dimensions"
            )
        elif constant or access.stride(c.right, last) != 1:
            stages = _packed(s, c, last, registers, packed, narrow)
            out.extend(stages)
            log.made.append(f"{c.right.source.name} is packed into panels for {s.out.name}")
        else:
            out.append(s)
    return program.with_stages(out)


def _packed(
    s: Compute,
    c: access.Contraction,
    last: Axis,
    registers: Registers,
    done: dict[tuple[object, ...], Tensor],
    narrow: DType,
) -> list[Stage]:
    """Stages: panels[batch…, n0, k…, n1] = right, then the contraction over the panels. Float32 weights are
    kept in the type `narrow`.
    """
    width = panel_width(s, c, last, registers)
    r = s.reduction
    assert r is not None
    order = _inner_order(c)
    outer = [a for a in (*c.batch, *c.n) if a is not last and a in free(c.right)]
    fresh: dict[Expr, Axis] = {a: axis(a.name, a.extent) for a in (*outer, *order)}
    tile, lane = axis(last.name, ix.ceil_div(last.extent, width)), axis("lane", width)
    at = tile * width + lane
    value: Expr = substitute(c.right, {**fresh, last: at})
    if ix.number(last.extent) is None or (ix.number(last.extent) or 0) % width:
        value = select(at < last.extent, value, as_expr(0, value.dtype))
    axes = (*(fresh[a] for a in outer), tile, *(fresh[a] for a in order), lane)
    kept = narrow if c.right.source.data is not None and c.right.dtype is F32 else c.right.dtype
    value = cast(value, kept)
    key = (c.right.source, width, *_shape_key(c.right, (*outer, *order, last)))
    stages: list[Stage] = []
    panels = done.get(key)
    if panels is None:
        panels = Tensor(f"{c.right.source.name}_panels", kept, tuple(a.extent for a in axes))
        stages.append(Compute(panels, axes, value, s.origin, s.op))
        panels.stage = stages[0]
        done[key] = panels
    read = cast(load(panels, (*outer, last // width, *order, last % width)), c.right.dtype)
    body = reduce_over("sum", tuple(order), substitute(r.body, {c.right: read}))
    stages.append(Compute(s.out, s.axes, body, s.origin, s.op))
    return stages


def _turned(
    s: Compute, c: access.Contraction, last: Axis, done: dict[tuple[object, ...], Tensor]
) -> list[Stage]:
    """A copy of the right operand with the dimension of the lane axis innermost, for a window that panels
    would repeat many times.
    """
    source = c.right.source
    along = [d for d, i in enumerate(c.right.index) if last in free(i)]
    if len(along) != 1 or along[0] == source.rank - 1:
        return [s]
    order = (*(d for d in range(source.rank) if d != along[0]), along[0])
    key = (source, -1, order)
    stages: list[Stage] = []
    if key not in done:
        fresh = [axis(f"i{d}", n) for d, n in enumerate(source.shape)]
        turned = Tensor(f"{source.name}_turned", source.dtype, tuple(source.shape[d] for d in order))
        turned.stage = Compute(turned, tuple(fresh[d] for d in order), load(source, fresh), s.origin, s.op)
        stages.append(turned.stage)
        done[key] = turned
    assert s.reduction is not None
    body = substitute(s.reduction.body, {c.right: load(done[key], tuple(c.right.index[d] for d in order))})
    return [*stages, Compute(s.out, s.axes, reduce_over("sum", s.reduction.axes, body), s.origin, s.op)]


def _packed_scan(
    s: Scan, registers: Registers, done: dict[tuple[object, ...], Tensor], log: Log, narrow: DType
) -> list[Stage]:
    """A scan whose steps read weights in panels, which are made before it."""
    before: list[Stage] = []
    body: list[Compute] = []
    for b in s.body:
        c = oriented(b)
        last = next((a for a in reversed(b.axes) if ix.number(a.extent) != 1), None)
        if (
            c is not None
            and last is not None
            and c.right.source.data is not None
            and s.time not in free(c.right)
        ):
            *panels, packed = _packed(b, c, last, registers, done, narrow)
            before.extend(panels)
            assert isinstance(packed, Compute)
            b = packed
            log.made.append(f"{c.right.source.name} is packed into panels for {b.out.name}")
        body.append(b)
    return [*before, Scan(s.time, s.carried, tuple(body), s.collected, s.finals, s.origin, s.op)]


def _lane_innermost(s: Compute, done: dict[tuple[object, ...], Tensor]) -> list[Stage]:
    """Weights of other reductions with the axis along which the result is contiguous as their innermost
    dimension.
    """
    r = s.reduction
    last = next((a for a in reversed(s.axes) if ix.number(a.extent) != 1), None)
    if r is None or last is None:
        return [s]
    stages: list[Stage] = []
    replaced: dict[Expr, Expr] = {}
    for x in access.reads(r.body):
        if x.source.data is None or access.stride(x, last) in (0, 1, None):
            continue
        order = [a for a in (*s.axes, *r.axes) if a is not last and a in free(x)]
        key = (x.source, 0, *_shape_key(x, (*order, last)))
        if key not in done:
            fresh: dict[Expr, Axis] = {a: axis(a.name, a.extent) for a in (*order, last)}
            moved = Tensor(f"{x.source.name}_lanes", x.dtype, tuple(a.extent for a in fresh.values()))
            moved.stage = Compute(moved, tuple(fresh.values()), substitute(x, fresh), s.origin, s.op)
            stages.append(moved.stage)
            done[key] = moved
        replaced[x] = load(done[key], (*order, last))
    body = reduce_over(r.kind, r.axes, substitute(r.body, replaced)) if replaced else r
    return [*stages, Compute(s.out, s.axes, body, s.origin, s.op)]


def _shape_key(x: Load, axes: Sequence[Axis]) -> list[object]:
    """Equal for reads that pack alike: index expressions in terms of the positions of axes."""
    places: dict[Expr, Expr] = {a: load(_PLACE, (const(n), a.extent)) for n, a in enumerate(axes)}
    return [substitute(i, places) for i in x.index]


_PLACE = Tensor("place", as_expr(0).dtype, (as_expr(0), as_expr(0)))


def _inner_order(c: access.Contraction) -> list[Axis]:
    """Reduced axes, those along which the left operand strides widest first."""

    def width(a: Axis) -> int:
        n = access.stride(c.left, a)
        return 1 << 40 if n is None else n

    return sorted(c.k, key=lambda a: -width(a))
