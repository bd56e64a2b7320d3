"""Half precision: a value of a 16-bit float type has that type's precision where it passes from one operator
to the next, and float32's inside an operator, sums above all.

A definition that knows nothing of this is called with its 16-bit inputs as float32 ones; in the stages that
it answers, reads of them become conversions of the real ones, and its float32 results are rounded. What only
moves elements moves the 16-bit ones. Roundings are casts, which no pass takes out: a kernel that computes
two operators rounds between them as if the first had stored its result.

What is worked out from weights is the exception: where a network keeps its weights in 16 bits, its values are
carried on in float32 between operators, as ONNX Runtime carries them on a processor, and are rounded where
the model says so (a Cast, an output). Less is lost, and nothing has to be converted inside loops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fusile.ir.expr import (
    Apply,
    Const,
    Expr,
    Load,
    Reduce,
    apply,
    cast,
    const,
    loads,
    reduce_over,
    substitute,
)
from fusile.ir.tensor import Compute, Scan, Scatter, Stage, Tensor, compute, stage_reads
from fusile.ir.types import BF16, F16, F32, DType
from fusile.kernels.registry import Context, Operator, call

HALVES: frozenset[DType] = frozenset({F16, BF16})


def call_wide(
    definition: Operator,
    ctx: Context,
    inputs: Sequence[Tensor | None],
    attributes: Mapping[str, Any],
    outputs: int,
) -> tuple[Tensor | None, ...]:
    """`call` for a definition on tensors, with float32 inside where inputs are 16-bit floats. Float32 results
    have the type of the first float input. Raises as `call` does.
    """
    halves = {t for t in inputs if t is not None and t.dtype in HALVES}
    if definition.keeps_types or not halves:
        return call(definition, ctx, inputs, attributes, outputs)
    first = next(t.dtype for t in inputs if t is not None and t.dtype.is_float)
    wide = {t: _placeholder(t) for t in halves}
    sizes, conditions = len(ctx.dim_definitions), len(ctx.requirements)
    carried = any(map(_carries, halves))
    ctx.half = first if first in HALVES and not carried else None
    try:
        given = [wide.get(t, t) if t is not None else None for t in inputs]
        results = call(definition, ctx, given, attributes, outputs)
    finally:
        ctx.half = None
    back = {w: t if t.unrounded is None else t.unrounded for t, w in wide.items()}
    whole = {w: t for t, w in wide.items()}
    view = _Rewriter(back)
    answered = [r if r is None else whole.get(r, r) for r in results]
    new = view.stages([r for r in answered if r is not None])
    for k in range(sizes, len(ctx.dim_definitions)):
        d = ctx.dim_definitions[k]
        new |= view.stages([x.source for x in loads(d.value) if x.source not in back])
        ctx.dim_definitions[k] = replace(d, value=view(d.value))
    for k in range(conditions, len(ctx.requirements)):
        r = ctx.requirements[k]
        ctx.requirements[k] = replace(r, condition=view(r.condition))
    if first not in HALVES:
        return tuple(answered)
    read = {t for s in new for t in stage_reads(s)}
    tensors = {t for t in inputs if t is not None}
    return tuple(
        r
        if r is None or r.dtype is not F32 or r in tensors
        else _carried_on(r, first, read)
        if carried
        else _rounded_result(r, first, read)
        for r in answered
    )


def _carries(t: Tensor) -> bool:
    """Whether what is made of a tensor is carried on in float32: of weights, or of such values."""
    return t.unrounded is not None or (t.data is not None and t.rank > 1)


def _carried_on(t: Tensor, to: DType, read: set[Tensor]) -> Tensor:
    """A float32 result in a 16-bit type, for those who need it so; others read the float32 one. Moved weights
    stay as they are.
    """
    moved = t not in read and isinstance(t.stage, Compute) and _narrowed(t.stage.body, to) is not None
    out = _rounded_result(t, to, read) if moved else compute(t.shape, lambda *i: cast(t[i], to), name=t.name)
    out.unrounded = out if moved else t
    return out


def _placeholder(t: Tensor) -> Tensor:
    """What a definition sees in place of a 16-bit input: a float32 tensor of the same elements."""
    data = t.data
    known = None if t.known is None else tuple(cast(v, F32) for v in t.known)
    return Tensor(
        t.name, F32, t.shape, data=None if data is None else lambda: data().astype(np.float32), known=known
    )


class _Rewriter:
    """Reads of placeholders as conversions of what they stand for, in expressions and in new stages."""

    def __init__(self, real: Mapping[Tensor, Tensor]) -> None:
        self.real = real
        self._copies: dict[Tensor, Tensor] = {}

    def __call__(self, e: Expr) -> Expr:
        if isinstance(e, Reduce):
            return reduce_over(e.kind, e.axes, self(e.body))
        return substitute(e, {}, self._read)

    def _read(self, x: Load) -> Expr:
        source = self.real.get(x.source)
        return x if source is None else cast(source[x.index], F32)

    def _whole(self, t: Tensor) -> Tensor:
        """A tensor that is read as a whole."""
        if t not in self.real:
            return t
        if t not in self._copies:
            source = self.real[t]
            self._copies[t] = compute(t.shape, lambda *i: cast(source[i], F32), name="wide")
        return self._copies[t]

    def stages(self, results: Sequence[Tensor]) -> set[Stage]:
        """Rewrite, in place, the new stages that lead to tensors; all of those stages."""
        found: set[Stage] = set()
        seen: set[Tensor] = set()
        pending = list(results)
        while pending:
            t = pending.pop()
            if t in seen or t.stage is None or t.stage.origin:
                continue
            seen.update(t.stage.outs)
            if any(r in self.real for r in stage_reads(t.stage)):
                self._rewrite(t.stage)
            found.add(t.stage)
            pending.extend(stage_reads(t.stage))
        return found

    def _rewrite(self, stage: Stage) -> None:
        new: Stage
        match stage:
            case Compute():
                new = replace(stage, body=self(stage.body))
            case Scatter():
                new = replace(
                    stage,
                    initial=self(stage.initial),
                    index=tuple(map(self, stage.index)),
                    value=self(stage.value),
                    condition=self(stage.condition),
                )
            case Scan():
                for inner in stage.body:
                    inner.out.stage = replace(inner, body=self(inner.body))
                body = tuple(s.out.stage for s in stage.body if isinstance(s.out.stage, Compute))
                then = {c: replace(c, initial=self._whole(c.initial)) for c in stage.carried}
                finals = tuple((t, then[c]) for t, c in stage.finals)
                new = replace(stage, carried=tuple(then.values()), body=body, finals=finals)
            case _:
                raise TypeError(f"{type(stage).__name__} keeps the types of what it is given")
        for t in stage.outs:
            t.stage = new


def _rounded_result(t: Tensor, to: DType, read: set[Tensor]) -> Tensor:
    """A float32 result in a 16-bit type: its own stage where nothing else reads it."""
    s = t.stage
    if t not in read and isinstance(s, Compute) and not isinstance(s.body, Reduce):
        out, moved = Tensor(t.name, to, t.shape), _narrowed(s.body, to)
        out.stage = replace(s, out=out, body=cast(s.body, to) if moved is None else moved)
        return out
    if t not in read and isinstance(s, Scatter) and s.kind == "set":
        first, value = _narrowed(s.initial, to), _narrowed(s.value, to)
        if first is not None and value is not None:
            out = Tensor(t.name, to, t.shape)
            out.stage = replace(s, out=out, initial=first, value=value)
            return out
    return compute(t.shape, lambda *i: cast(t[i], to), name=t.name)


def _narrowed(e: Expr, to: DType) -> Expr | None:
    """A float32 expression in a 16-bit type where it does no more than choose among values of that type."""
    if isinstance(e, Const):
        small = const(e.value, to)
        return small if repr(float(small.value)) == repr(float(e.value)) else None
    if isinstance(e, Apply) and e.op == "cast" and e.args[0].dtype is to:
        return e.args[0]
    if isinstance(e, Apply) and e.op == "select":
        yes, no = _narrowed(e.args[1], to), _narrowed(e.args[2], to)
        return None if yes is None or no is None else apply("select", e.args[0], yes, no)
    return None
