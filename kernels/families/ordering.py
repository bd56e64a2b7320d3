"""Operators that order their elements: the largest few, different values, boxes by score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusile.ir import index as ix
from fusile.ir.expr import (
    Expr,
    apply,
    as_expr,
    cast,
    const,
    eq,
    load,
    maximum,
    ne,
    select,
)
from fusile.ir.extern import Writer, extern
from fusile.ir.loops import Buffer
from fusile.ir.tensor import Tensor, compute, reduce_sum, scan, scatter
from fusile.ir.types import BOOL, I64
from fusile.kernels import sorting
from fusile.kernels.families.elementwise import filled
from fusile.kernels.registry import Context, Malformed, op
from fusile.kernels.shapes import normal_axis, unflatten
from fusile.kernels.sorting import within


def _last(t: Tensor, axis: int, name: str) -> Tensor:
    """The tensor with an axis moved to the end."""
    if axis == t.rank - 1:
        return t
    shape = (*t.shape[:axis], *t.shape[axis + 1 :], t.shape[axis])
    return compute(shape, lambda *i: t[(*i[:axis], i[-1], *i[axis:-1])], name=name)


def _moved(i: Sequence[Expr], axis: int) -> tuple[Expr, ...]:
    """The index of an element after its axis moved to the end."""
    return (*i[:axis], *i[axis + 1 :], i[axis])


@op("TopK")
def top_k(
    ctx: Context, x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """The largest or smallest `k` along an axis in order, and where they are; of equal ones the first is
    taken first. NaN is above all numbers.
    """
    if not x.rank:
        raise Malformed("a scalar has nothing to choose from")
    at = normal_axis(axis, x.rank)
    n = x.shape[at]
    wanted = ctx.extent(ctx.values(k)[0], "k")
    ctx.require(wanted <= n, f"k is more than the {n} elements of axis {at}")
    rows = _last(x, at, "rows")
    order = _first_places(rows, wanted, bool(largest))
    shape = (*x.shape[:at], wanted, *x.shape[at + 1 :])
    indices = compute(shape, lambda *i: order[_moved(i, at)], name="indices")
    values = compute(
        shape, lambda *i: x[(*i[:at], within(order[_moved(i, at)], n), *i[at + 1 :])], name="values"
    )
    return values, indices


def _first_places(rows: Tensor, wanted: Expr, descending: bool) -> Tensor:
    """The places of at least the first `wanted` elements of each row, in order."""
    k, n = ix.number(wanted), ix.number(rows.shape[-1])
    few = k is not None and 0 < k <= sorting.MOST_KEPT and (n is None or 4 * k <= n)
    if few and k is not None and not sorting.wide(rows):
        return sorting.places_of(sorting.smallest_words(sorting.words_of(rows, descending), k))
    return sorting.argsort(rows, descending)


# ---- unique --------------------------------------------------------------------------------------


def _count_up(test: Tensor) -> Tensor:
    """For a list of bools: how many are true up to each, itself included."""
    start = filled((), 0, I64, "start")

    def step(time: Expr, total: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        then = compute((), lambda: total[()] + cast(test[time], I64), name="total")
        return [then], [then]

    (counts,), _ = scan(test.shape[0], [start], step, name="count")
    return counts


def _before(counts: Tensor, i: Expr) -> Expr:
    """The last count before a place."""
    return select(as_expr(0) < i, counts[maximum(i - 1, const(0))], const(0))


def _sorted_slices(slices: Tensor) -> Tensor:
    """The places of the slices along the first axis of a matrix, in lexicographic order."""
    n, m = slices.shape

    def write(w: Writer, out: Buffer, keys: Buffer) -> None:
        def less(w: Writer, a: Expr, b: Expr) -> Expr:
            first, decided = w.local("before", a < b, BOOL), w.local("decided", const(False, BOOL))
            with w.loop("c", m) as c, w.when(apply("not", decided.value)):
                one, two = load(keys, (a, c)), load(keys, (b, c))
                decided.set(ne(one, two))
                first.set(select(ne(one, two), one < two, first.value))
            return first.value

        other = w.array("other", [n], I64)
        sorting.merge_sort(w, out, (), other, n, less, lambda i: i)

    def meaning(keys: np.ndarray) -> list[np.ndarray]:
        return [np.lexsort(keys.T[::-1]) if keys.shape[1] else np.arange(keys.shape[0])]

    (order,) = extern([((n,), I64, "order")], [slices], write, meaning)
    return order


@op("Unique")
def unique(
    ctx: Context, x: Tensor, *, axis: int | None = None, sorted: int = 1, outputs: int = 1
) -> tuple[Tensor, ...]:
    """The different values, or slices along an axis: sorted or as they come; where each came first, which
    one every element is, and how often each comes. NaNs are alike.
    """
    if axis is None:
        items = compute((x.size, 1), lambda i, _: x[tuple(unflatten(i, x.shape))], name="flat")
        lead: tuple[Expr, ...] = ()
        tail: tuple[Expr, ...] = ()
        at = 0
    else:
        if not x.rank:
            raise Malformed("a scalar has no axis")
        at = normal_axis(axis, x.rank)
        lead, tail = x.shape[:at], x.shape[at + 1 :]
        beside = (*lead, *tail)

        def slice_of(i: Expr, c: Expr) -> Expr:
            where = unflatten(c, beside)
            return x[(*where[:at], i, *where[at:])]

        items = compute((x.shape[at], ix.product(beside)), slice_of, name="slices")
    n, m = items.shape
    keys = compute(items.shape, lambda i, c: sorting.key(items[i, c]), name="keys")
    if axis is None:
        line = compute((n,), lambda i: items[i, const(0)], name="line")
        order = sorting.argsort(line)
    else:
        order = _sorted_slices(keys)

    def place(i: Expr) -> Expr:
        return within(order[i], n)

    def opens(i: Expr) -> Expr:
        """Whether another value than before begins at a place of the sorted list."""
        before = place(maximum(i - 1, const(0)))
        differ = reduce_sum((m,), lambda c: cast(ne(keys[place(i), c], keys[before, c]), I64))
        return eq(i, const(0)) | (const(0) < differ)

    begins = compute((n,), opens, name="begins")
    group = _count_up(begins)  # 1 + the number of the value, in sorted order
    first = scatter(  # the first place in x of the value that every element has; the sort keeps their order
        lambda i: as_expr(0), (n,), (n,),
        lambda i: (within(group[i] - 1, n),), lambda i: order[i],
        condition=lambda i: begins[i], name="first",
    )  # fmt: skip
    member = scatter(
        lambda i: as_expr(0), (n,), (n,), lambda i: (place(i),), lambda i: group[i] - 1, name="member"
    )
    is_first = compute((n,), lambda i: eq(first[within(member[i], n)], i), name="is_first")
    met = _count_up(is_first)
    total = compute((), lambda: select(as_expr(0) < n, met[maximum(n - 1, const(0))], const(0)), name="total")
    count = ctx.size(total[()], "unique")
    if sorted:
        firsts = compute((count,), lambda u: first[within(u, n)], name="firsts")
        inverse = compute((n,), lambda i: member[i], name="inverse")
    else:
        firsts = scatter(
            lambda u: as_expr(0), (count,), (n,),
            lambda i: (within(met[i] - 1, count),), lambda i: i,
            condition=lambda i: is_first[i], name="firsts",
        )  # fmt: skip
        inverse = compute((n,), lambda i: met[within(first[within(member[i], n)], n)] - 1, name="inverse")

    def value(*i: Expr) -> Expr:
        if axis is None:
            return items[within(firsts[i[0]], n), const(0)]
        return x[(*i[:at], within(firsts[i[at]], n), *i[at + 1 :])]

    values = compute((*lead, count, *tail), value, name="values")
    results = [values, firsts, inverse]
    if outputs > 3:
        results.append(
            scatter(
                lambda u: as_expr(0), (count,), (n,),
                lambda i: (within(inverse[i], count),), lambda i: const(1), kind="add", name="counts",
            )
        )  # fmt: skip
    return tuple(results[:outputs])
