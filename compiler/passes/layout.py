"""Layouts: the order of a tensor's dimensions in memory, chosen over the whole program.

A tensor is stored row-major; another layout is another tensor with its dimensions permuted, which the
defining stage writes and all readers read. Contractions whose reduced channel lies outside their spatial
axes (convolutions over NCHW data), and sliding windows, ask for the channel to be innermost; stages that
run over equal indices hand the wish on. Inputs and outputs of the program keep their order.
"""

from __future__ import annotations

from fusile.ir import index as ix
from fusile.ir.expr import Axis, Expr, Load, as_expr, axis, free, load, substitute
from fusile.ir.tensor import Compute, Program, Stage, Tensor, stage_reads
from fusile.passes import access
from fusile.passes.inline import Log

Order = tuple[int, ...]
FEWEST_COLUMNS = 12
"""With fewer columns than this (most of a vector), a contraction runs along its spatial axis instead."""

FEWEST_CHANNELS = 5
"""With fewer channels than this, data stays in planes: turning it costs more than reading them singly."""


class _Classes:
    """Union-find over tensors that want the same order of dimensions."""

    def __init__(self) -> None:
        self.parent: dict[Tensor, Tensor] = {}
        self.wish: dict[Tensor, Order] = {}

    def find(self, t: Tensor) -> Tensor:
        root = t
        while (up := self.parent.setdefault(root, root)) is not root:
            root = up
        while self.parent[t] is not root:
            self.parent[t], t = root, self.parent[t]
        return root

    def join(self, a: Tensor, b: Tensor) -> None:
        x, y = self.find(a), self.find(b)
        if x is y:
            return
        self.parent[y] = x
        if y in self.wish:
            self.wish.setdefault(x, self.wish[y])

    def ask(self, t: Tensor, order: Order) -> None:
        self.wish.setdefault(self.find(t), order)

    def order(self, t: Tensor) -> Order | None:
        return self.wish.get(self.find(t))


def choose(program: Program, log: Log) -> Program:
    """Permute the dimensions of intermediate tensors so that channels are innermost where contractions and
    windows want them.
    """
    classes = _Classes()
    fixed = {*program.inputs, *program.outputs}
    fixed |= {x.source for d in program.dim_definitions for x in access.loads(d.value)}
    for s in program.stages:
        if isinstance(s, Compute):
            _link(s, classes, fixed)
        else:
            fixed |= {*s.outs, *stage_reads(s)}
    for s in program.stages:
        if isinstance(s, Compute):
            _ask(s, classes)
    return _apply(program, classes, fixed, log)


def merge_columns(program: Program, log: Log) -> Program:
    """Contractions with constant weights and several n axes get one: `T[…, o, r, s]` becomes `T[…, (o R + r)
    S + s]`.

    A register tile runs along one axis; short axes (the phases of a transposed convolution) would leave
    its lanes empty.
    """
    fixed = {*program.outputs} | {x.source for d in program.dim_definitions for x in access.loads(d.value)}
    for s in program.stages:
        if not isinstance(s, Compute):
            fixed |= set(stage_reads(s))
    moved: dict[Tensor, tuple[Tensor, tuple[int, ...], tuple[int, ...]]] = {}

    def read(x: Load) -> Expr:
        if x.source not in moved:
            return x
        to, kept, merged = moved[x.source]
        at: Expr = as_expr(0)
        for d in merged:
            at = at * x.source.shape[d] + x.index[d]
        return load(to, (*(x.index[d] for d in kept), at))

    out: list[Stage] = []
    for s in program.stages:
        if not isinstance(s, Compute):
            out.append(s)
            continue
        s = Compute(s.out, s.axes, substitute(s.body, {}, read), s.origin, s.op)
        c = access.contraction(s)
        columns = (
            [] if c is None else [d for d, a in enumerate(s.axes) if a in c.n and ix.number(a.extent) != 1]
        )
        total = ix.number(ix.product(s.axes[d].extent for d in columns))
        if c is None or s.out in fixed or len(columns) < 2 or total is None or c.right.source.data is None:
            out.append(s)
            continue
        kept = tuple(d for d in range(len(s.axes)) if d not in columns)
        column = axis("column", total)
        places: dict[Expr, Expr] = {}
        rest: Expr = column
        for d in reversed(columns):
            places[s.axes[d]] = rest % s.axes[d].extent
            rest = rest // s.axes[d].extent
        axes = (*(s.axes[d] for d in kept), column)
        t = Tensor(s.out.name, s.out.dtype, tuple(a.extent for a in axes))
        moved[s.out] = (t, kept, tuple(columns))
        made = Compute(t, axes, substitute(s.body, places), s.origin, s.op)
        t.stage = made
        out.append(made)
        log.made.append(f"{s.out.name} has its {len(columns)} column axes in one")
    return program.with_stages(out)


def within_operators(program: Program, log: Log) -> Program:
    """Contractions that want their channels innermost get copies of their own: one of the operand in, one of
    the result out.

    The tensors between operators keep the layout of the model: what an operator costs where none is fused
    with its neighbours.
    """
    out: list[Stage] = []
    for s in program.stages:
        c = access.contraction(s) if isinstance(s, Compute) else None
        chosen = (
            [(one, order) for one in (c, access.swapped(c)) if (order := _data_order(one)) is not None]
            if c is not None
            else []
        )
        if not isinstance(s, Compute) or not chosen or chosen[0][0].left.source.data is not None:
            out.append(s)
            continue
        one, order = chosen[0]
        columns = ix.number(ix.product(a.extent for a in one.n))
        if columns is not None and columns < FEWEST_COLUMNS:
            out.append(s)
            continue
        source = one.left.source
        fresh = [axis(a, n) for a, n in zip((f"i{d}" for d in range(source.rank)), source.shape, strict=True)]
        turned = Tensor(f"{source.name}_turned", source.dtype, tuple(source.shape[d] for d in order))
        turned.stage = Compute(turned, tuple(fresh[d] for d in order), load(source, fresh), s.origin, s.op)
        back = _result_order(s, one)
        inner = Tensor(f"{s.out.name}_turned", s.out.dtype, tuple(s.out.shape[d] for d in back))
        body = substitute(s.body, {one.left: load(turned, tuple(one.left.index[d] for d in order))})
        inner.stage = Compute(inner, tuple(s.axes[d] for d in back), body, s.origin, s.op)
        last = [axis(a.name, a.extent) for a in s.axes]
        outer = Compute(s.out, tuple(last), load(inner, tuple(last[d] for d in back)), s.origin, s.op)
        s.out.stage = outer
        out.extend((turned.stage, inner.stage, outer))
        log.made.append(f"{s.out.name} is computed with its channels innermost, between copies")
    return program.with_stages(out)


def _link(stage: Compute, classes: _Classes, fixed: set[Tensor]) -> None:
    """Tensors read along the stage's own axes, dimension by dimension, go together with its result."""
    if access.contraction(stage) is not None or stage.out in fixed:
        return
    outer = set(stage.axes)
    for x in access.reads(stage.body):
        t = x.source
        if t.data is not None or t in fixed or t.rank != stage.out.rank or t.rank < 3:
            continue
        aligned = all((free(i) & outer) <= {a} for i, a in zip(x.index, stage.axes, strict=True)) and any(
            free(i) & outer for i in x.index
        )
        if aligned:
            classes.join(stage.out, t)


def _ask(stage: Compute, classes: _Classes) -> None:
    c = access.contraction(stage)
    if c is not None:
        for one in (c, access.swapped(c)):
            order = _data_order(one)
            if order is not None and one.left.source.data is None:
                columns = ix.number(ix.product(a.extent for a in one.n))
                if columns is not None and columns < FEWEST_COLUMNS:
                    return
                reduced = ix.number(one.left.source.shape[order[-1]])
                if reduced is None or reduced >= FEWEST_CHANNELS:
                    classes.ask(one.left.source, order)
                classes.ask(stage.out, _result_order(stage, one))
                return
    elif access.is_window(stage) and stage.reduction is not None:
        for x in access.reads(stage.reduction.body):
            if x.source.data is None and x.source.rank == stage.out.rank >= 3:
                windowed = tuple(_mixes(i, stage) for i in x.index)
                plain = [d for d, w in enumerate(windowed) if not w]
                if any(windowed) and plain and not windowed[0]:
                    order = (plain[0], *(d for d, w in enumerate(windowed) if w), *plain[1:])
                    classes.ask(x.source, order)
                    classes.ask(stage.out, order)


def _mixes(index: Expr, stage: Compute) -> bool:
    r = stage.reduction
    return r is not None and bool(free(index) & set(r.axes)) and bool(free(index) & set(stage.axes))


def _data_order(c: access.Contraction) -> Order | None:
    """The order that puts the reduced dimensions of `left` last, where they lie outside some of its m
    dimensions now.
    """
    m, k = set(c.m), set(c.k)
    x = c.left
    if x.source.rank < 3:
        return None
    free_dims = [d for d, i in enumerate(x.index) if free(i) & m]
    reduced = [d for d, i in enumerate(x.index) if not free(i) & m and free(i) & k]
    if len(reduced) != 1 or not any(d > reduced[0] for d in free_dims):
        return None
    others = [d for d in range(len(x.index)) if d not in reduced]
    return (*others, *reduced)


def _result_order(stage: Compute, c: access.Contraction) -> Order:
    """Spatial axes in their order, then batch axes that come with the channels, then the n axes."""
    n = [d for d, a in enumerate(stage.axes) if a in c.n]
    first = min((d for d, a in enumerate(stage.axes) if a in c.m), default=0)
    batch = [d for d, a in enumerate(stage.axes) if a in c.batch]
    lead = [d for d in batch if d < first]
    rest = [d for d in range(len(stage.axes)) if d not in n and d not in batch]
    return (*lead, *rest, *(d for d in batch if d not in lead), *n)


def _apply(program: Program, classes: _Classes, fixed: set[Tensor], log: Log) -> Program:
    moved: dict[Tensor, tuple[Tensor, Order]] = {}

    def relaid(t: Tensor) -> tuple[Tensor, Order] | None:
        if t in moved:
            return moved[t]
        order = classes.order(t)
        if t in fixed or t.data is not None or t.stage is None or order is None or len(order) != t.rank:
            return None
        if order == tuple(range(t.rank)) or not isinstance(t.stage, Compute):
            return None
        moved[t] = (Tensor(t.name, t.dtype, tuple(t.shape[d] for d in order)), order)
        log.made.append(f"{t.name} is stored with its dimensions in the order {order}")
        return moved[t]

    def read(x: Load) -> Expr:
        to = relaid(x.source)
        return x if to is None else load(to[0], tuple(x.index[d] for d in to[1]))

    def change(e: Expr) -> Expr:
        return substitute(e, {}, read)

    out: list[Stage] = []
    for s in program.stages:
        match s:
            case Compute():
                to = relaid(s.out)
                axes: tuple[Axis, ...] = s.axes if to is None else tuple(s.axes[d] for d in to[1])
                new = Compute(s.out if to is None else to[0], axes, change(s.body), s.origin, s.op)
                new.out.stage = new
                out.append(new)
            case _:
                out.append(s)
    return program.with_stages(out)
