"""Reductions, and what is made of them: softmax, arg-max, running sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, cast, const, eq, logical_not, select
from fusile.ir.interpret import identity
from fusile.ir.tensor import Tensor, compute, reduction, scan
from fusile.ir.types import BF16
from fusile.kernels.families.elementwise import filled, unary
from fusile.kernels.late import around, is_late, late_axes, reduced_along
from fusile.kernels.registry import Context, op
from fusile.kernels.shapes import normal_axes, normal_axis, reshaped

MOST_STEPWISE = 8
"""A softmax over up to this many bfloat16 numbers rounds its sum after each addition, as the standard's
reference does. Over many that would lose the sum altogether: it does not grow beyond 256 times its largest
term. There, and in float16, sums are float32.
"""


def reduced(
    x: Tensor,
    axes: Sequence[int],
    kind: str,
    *,
    keep: bool,
    of: Callable[[Expr], Expr] = lambda v: v,
    name: str = "reduce",
) -> Tensor:
    """`kind` of `of(x)` over axes (in ascending order); they stay with extent 1 where `keep`."""
    rest = [k for k in range(x.rank) if k not in axes]
    extents = [const(1) if k in axes else n for k, n in enumerate(x.shape) if keep or k not in axes]

    def body(*i: Expr) -> Expr:
        outer = dict(zip(rest, (i[k] for k in rest) if keep else i, strict=True))

        def element(*r: Expr) -> Expr:
            at = outer | dict(zip(axes, r, strict=True))
            return of(x[tuple(at[k] for k in range(x.rank))])

        return reduction(kind, [x.shape[k] for k in axes], element)

    return compute(extents, body, name=name)


def mean(
    x: Tensor,
    axes: Sequence[int],
    *,
    keep: bool,
    of: Callable[[Expr], Expr] = lambda v: v,
    name: str = "mean",
) -> Tensor:
    """The mean of `of(x)` over axes: one stage for the sum, one for the factor."""
    total = reduced(x, axes, "sum", keep=keep, of=of, name="sum")
    return unary(total, averaged([x.shape[k] for k in axes]), name)


def averaged(extents: Sequence[Expr]) -> Callable[[Expr], Expr]:
    """Division by the number of elements; a product where the number is a constant."""
    count = ix.product(extents)
    n = ix.number(count)

    def body(v: Expr) -> Expr:
        if n is not None and n > 0 and v.dtype.is_float:
            return v * const(1.0 / n, v.dtype)
        return v / cast(count, v.dtype)

    return body


def _axes(ctx: Context, x: Tensor, axes: Tensor | None, empty: int) -> tuple[int, ...] | None:
    """The axes that a node names, all where it names none, or None where nothing is then to be done."""
    given = ctx.numbers(axes, "the list of axes")
    if given:
        return normal_axes(given, x.rank)
    return None if empty else tuple(range(x.rank))


def _plain(kind: str) -> Callable[[Tensor, tuple[int, ...], bool], Tensor]:
    return lambda x, axes, keep: reduced(x, axes, kind, keep=keep)


def _of(
    f: Callable[[Expr], Expr], then: Callable[[Expr], Expr] | None = None
) -> Callable[[Tensor, tuple[int, ...], bool], Tensor]:
    def body(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        total = reduced(x, axes, "sum", keep=keep, of=f)
        return total if then is None else unary(total, then, "reduce")

    return body


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    top = reduced(x, axes, "max", keep=True, name="max")
    # Infinities cannot be subtracted from each other.
    shift = unary(top, lambda v: select(apply("abs", v) < math.inf, v, const(0, v.dtype)), "shift")

    def body(*i: Expr) -> Expr:
        return apply("exp", x[i] - shift[tuple(const(0) if k in axes else j for k, j in enumerate(i))])

    total = reduced(compute(x.shape, body, name="exp"), axes, "sum", keep=keep, name="sum")
    rest = [k for k in range(x.rank) if k not in axes]

    def finish(*i: Expr) -> Expr:
        at = dict(zip(range(x.rank) if keep else rest, i, strict=True))
        return apply("log", total[i]) + shift[tuple(const(0) if k in axes else at[k] for k in range(x.rank))]

    return compute(total.shape, finish, name="log_sum_exp")


_REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "ReduceSum": _plain("sum"),
    "ReduceProd": _plain("prod"),
    "ReduceMax": _plain("max"),
    "ReduceMin": _plain("min"),
    "ReduceMean": lambda x, axes, keep: mean(x, axes, keep=keep),
    "ReduceL1": _of(lambda v: apply("abs", v)),
    "ReduceL2": _of(lambda v: v * v, lambda v: apply("sqrt", v)),
    "ReduceLogSum": _of(lambda v: v, lambda v: apply("log", v)),
    "ReduceSumSquare": _of(lambda v: v * v),
    "ReduceLogSumExp": _log_sum_exp,
}
_ELEMENTWISE: dict[str, Callable[[Expr], Expr]] = {
    "ReduceL1": lambda v: apply("abs", v),
    "ReduceL2": lambda v: apply("abs", v),
    "ReduceLogSum": lambda v: apply("log", v),
    "ReduceSumSquare": lambda v: v * v,
}
"""What a reduction over no axes does to an element, where that is not nothing."""


def _register(name: str, f: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> None:
    @op(name)
    def definition(
        ctx: Context,
        x: Tensor,
        axes: Tensor | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        if axes is not None and is_late(axes):
            return reduced_along(ctx, x, axes, bool(keepdims), f)
        over = _axes(ctx, x, axes, noop_with_empty_axes)
        if not over:
            return unary(x, _ELEMENTWISE[name], "reduce") if name in _ELEMENTWISE else x
        return f(x, over, bool(keepdims))


for _name, _f in _REDUCTIONS.items():
    _register(_name, _f)


# ---- arg-max ----


def best_index(x: Tensor, axis: int, kind: str, *, last: bool = False, keep: bool = True) -> Tensor:
    """The position of the largest or smallest element along an axis: the first, or last, of equal ones."""
    best = reduced(x, [axis], kind, keep=True, name=kind)
    n = x.shape[axis]
    other = const(-1) if last else n

    def body(*i: Expr) -> Expr:
        at = list(i) if keep else [*i[:axis], const(0), *i[axis:]]
        at[axis] = const(0)

        def position(k: Expr) -> Expr:
            v, m = x[(*at[:axis], k, *at[axis + 1 :])], best[tuple(at)]
            # Written so that a NaN counts as a match: the answer is then always a position.
            return select(logical_not(v < m if kind == "max" else m < v), k, other)

        return reduction("max" if last else "min", (n,), position)

    extents = [const(1) if k == axis else e for k, e in enumerate(x.shape) if keep or k != axis]
    return compute(extents, body, name="arg" + kind)


@op("ArgMax")
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return best_index(x, normal_axis(axis, x.rank), "max", last=bool(select_last_index), keep=bool(keepdims))


@op("ArgMin")
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return best_index(x, normal_axis(axis, x.rank), "min", last=bool(select_last_index), keep=bool(keepdims))


# ---- softmax ----


def _along(t: Tensor, i: Sequence[Expr], axis: int) -> Expr:
    return t[(*i[:axis], const(0), *i[axis + 1 :])]


def softmax_over(ctx: Context, x: Tensor, axis: int) -> Tensor:
    """exp(x - max) / sum, as four stages."""
    top = reduced(x, [axis], "max", keep=True, name="max")

    def power(*i: Expr) -> Expr:
        return ctx.rounded(apply("exp", ctx.rounded(x[i] - _along(top, i, axis))))

    e = compute(x.shape, power, name="exp")
    n = ix.number(x.shape[axis])
    if ctx.half is BF16 and n is not None and n <= MOST_STEPWISE:
        total = _stepwise(ctx, e, axis, n)
    else:
        total = reduced(e, [axis], "sum", keep=True, name="sum")
    return compute(x.shape, lambda *i: e[i] / ctx.rounded(_along(total, i, axis)), name="softmax")


def _stepwise(ctx: Context, x: Tensor, axis: int, n: int) -> Tensor:
    """The sum of n elements along an axis, rounded after each addition."""

    def body(*i: Expr) -> Expr:
        out = x[(*i[:axis], const(0), *i[axis + 1 :])] if n else const(0, x.dtype)
        for k in range(1, n):
            out = ctx.rounded(out + x[(*i[:axis], const(k), *i[axis + 1 :])])
        return out

    return compute((*x.shape[:axis], const(1), *x.shape[axis + 1 :]), body, name="sum")


@op("Softmax")
def softmax(ctx: Context, x: Tensor, *, axis: int = -1) -> Tensor:
    return softmax_over(ctx, x, normal_axis(axis, x.rank))


@op("LogSoftmax")
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    at = normal_axis(axis, x.rank)
    top = reduced(x, [at], "max", keep=True, name="max")
    total = reduced(
        compute(x.shape, lambda *i: apply("exp", x[i] - _along(top, i, at)), name="exp"),
        [at],
        "sum",
        keep=True,
        name="sum",
    )
    log = unary(total, lambda v: apply("log", v), "log")
    return compute(x.shape, lambda *i: x[i] - _along(top, i, at) - _along(log, i, at), name="log_softmax")


@op("Hardmax")
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    at = normal_axis(axis, x.rank)
    best = best_index(x, at, "max")
    return compute(
        x.shape,
        lambda *i: select(eq(_along(best, i, at), i[at]), const(1, x.dtype), const(0, x.dtype)),
        name="hardmax",
    )


# ---- running totals ----


def running(x: Tensor, axis: int, kind: str, *, exclusive: bool, reverse: bool) -> Tensor:
    """The totals of all elements up to each along an axis, by a scan. `kind`: sum | prod."""
    n = x.shape[axis]
    rest = (*x.shape[:axis], *x.shape[axis + 1 :])
    start = filled(rest, identity(kind, x.dtype), x.dtype, "start")

    def step(time: Expr, total: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        at = n - 1 - time if reverse else time

        def body(*i: Expr) -> Expr:
            v = x[(*i[:axis], at, *i[axis:])]
            return total[i] + v if kind == "sum" else total[i] * v

        then = compute(rest, body, name="total")
        return [then], [compute(rest, lambda *i: total[i], name="before") if exclusive else then]

    (stacked,), _ = scan(n, [start], step, name="running")

    def place(*i: Expr) -> Expr:
        at = n - 1 - i[axis] if reverse else i[axis]
        return stacked[(at, *i[:axis], *i[axis + 1 :])]

    return stacked if axis == 0 and not reverse else compute(x.shape, place, name="cum" + kind)


def _cumulated(ctx: Context, x: Tensor, axis: Tensor, kind: str, exclusive: bool, reverse: bool) -> Tensor:
    if not is_late(axis):
        (at,) = ctx.numbers(axis, "the axis")
        return running(x, normal_axis(at, x.rank), kind, exclusive=exclusive, reverse=reverse)
    (late,) = late_axes(ctx, axis, x.rank)
    flat = reshaped(x, around(ctx, x.shape, late))
    return reshaped(running(flat, 1, kind, exclusive=exclusive, reverse=reverse), x.shape)


@op("CumSum")
def cum_sum(ctx: Context, x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulated(ctx, x, axis, "sum", bool(exclusive), bool(reverse))


@op("CumProd")
def cum_prod(ctx: Context, x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulated(ctx, x, axis, "prod", bool(exclusive), bool(reverse))
