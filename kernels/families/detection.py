"""Choosing among overlapping boxes."""

from __future__ import annotations

import numpy as np

from fusile.ir.expr import Expr, apply, as_expr, cast, const, load, maximum, minimum, select
from fusile.ir.extern import Writer, extern
from fusile.ir.loops import Buffer
from fusile.ir.tensor import Tensor, compute, reduce_sum, scan, scatter
from fusile.ir.types import BOOL, F32, I64
from fusile.kernels import sorting
from fusile.kernels.families.elementwise import filled
from fusile.kernels.registry import Context, Malformed, op
from fusile.kernels.shapes import literal
from fusile.kernels.sorting import within


def _only(t: Tensor) -> Expr:
    """The value of a tensor of one element."""
    return t[tuple(const(0) for _ in range(t.rank))]


@op("NonMaxSuppression")
def non_max_suppression(
    ctx: Context,
    boxes: Tensor,
    scores: Tensor,
    most: Tensor | None = None,
    iou: Tensor | None = None,
    threshold: Tensor | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """Rows of (batch, class, box): of every batch and class the boxes by falling score, without those that
    overlap one before them by more than `iou`. Boxes of equal scores come in their order.
    """
    if boxes.rank != 3 or scores.rank != 3:
        raise Malformed(f"takes boxes and scores of rank 3, not {boxes.rank} and {scores.rank}")
    limit = literal(iou)
    if limit is not None and not 0 <= limit <= 1:
        raise Malformed(f"the threshold of overlap {limit} is not between 0 and 1")
    batches, classes, n = scores.shape
    wanted = as_expr(0) if most is None else maximum(ctx.values(most)[0], as_expr(0))
    room = ctx.extent(minimum(wanted, n), "boxes")

    def passes(b: Expr, c: Expr, i: Expr) -> Expr:
        return const(True, BOOL) if threshold is None else _only(threshold) < scores[b, c, i]

    counts = compute(
        (batches, classes), lambda b, c: reduce_sum((n,), lambda i: cast(passes(b, c, i), I64)), name="counts"
    )
    words = compute(scores.shape, lambda *i: sorting.word(scores[i], i[-1], descending=True), name="words")
    if threshold is not None:
        words = _kept(compute(scores.shape, passes, name="passes"), words)
    order = sorting.places_of(sorting.sort_words(words, counts))
    corners = compute(
        (batches, n, 4), lambda b, i, k: _corner(boxes, b, i, k, center_point_box), name="corners"
    )
    overlap = filled((), 0.0, F32, "iou") if iou is None else compute((), lambda: _only(iou), name="iou")
    chosen, taken = _chosen(order, counts, corners, overlap, room)
    return _rows(ctx, chosen, taken, room)


def _corner(boxes: Tensor, b: Expr, i: Expr, k: Expr, centred: int) -> Expr:
    """The least coordinates of a box and then its largest ones."""
    high, axis = k // 2, k % 2
    if centred:
        half = boxes[b, i, axis + 2] / const(2.0, boxes.dtype)
        return select(as_expr(0) < high, boxes[b, i, axis] + half, boxes[b, i, axis] - half)
    one, two = boxes[b, i, axis], boxes[b, i, axis + 2]
    return select(as_expr(0) < high, maximum(one, two), minimum(one, two))


def _kept(passes: Tensor, words: Tensor) -> Tensor:
    """The words that pass at the front of each row; LAST behind them."""

    def write(w: Writer, out: Buffer, test: Buffer, given: Buffer) -> None:
        n = given.shape[-1]
        with w.loops(given.shape[:-1]) as row:
            with w.loop("i", n) as i:
                w.store(out, (*row, i), const(sorting.LAST))
            count = w.local("count", 0)
            with w.loop("i", n) as i, w.when(load(test, (*row, i))):
                w.store(out, (*row, within(count.value, n)), load(given, (*row, i)))
                count.set(count.value + 1)

    def meaning(test: np.ndarray, given: np.ndarray) -> list[np.ndarray]:
        at = np.argsort(~test, axis=-1, kind="stable")
        rest = np.take_along_axis(test, at, axis=-1)
        return [np.where(rest, np.take_along_axis(given, at, axis=-1), sorting.LAST)]

    (out,) = extern([(words.shape, I64, "kept")], [passes, words], write, meaning)
    return out


def _chosen(
    order: Tensor, counts: Tensor, corners: Tensor, overlap: Tensor, room: Expr
) -> tuple[Tensor, Tensor]:
    """Of every batch and class the boxes that stay, at most `room`, and how many they are. A candidate is
    compared with those that stay alone.
    """
    batches, classes, n = order.shape

    def write(
        w: Writer, out: Buffer, count: Buffer, order: Buffer, counts: Buffer, box: Buffer, overlap: Buffer,
        most: Buffer,
    ) -> None:  # fmt: skip
        with w.loops((batches, classes)) as (b, c):
            taken = w.local("taken", 0)
            with w.loop("k", room) as k:
                w.store(out, (b, c, k), const(0))
            with w.loop("i", load(counts, (b, c))) as i, w.when(taken.value < load(most, ())):
                at = w.local("at", within(load(order, (b, c, within(i, n))), n)).value
                stays = w.local("stays", const(True, BOOL))
                mine = _sides(w, box, b, at)
                with w.loop("k", taken.value) as k, w.when(stays.value):
                    other = w.local("other", within(load(out, (b, c, within(k, room))), n)).value
                    stays.set(apply("not", _overlaps(w, mine, _sides(w, box, b, other), load(overlap, ()))))
                with w.when(stays.value):
                    w.store(out, (b, c, within(taken.value, room)), at)
                    taken.set(taken.value + 1)
            w.store(count, (b, c), taken.value)

    def meaning(
        order: np.ndarray, counts: np.ndarray, box: np.ndarray, overlap: np.ndarray, most: np.ndarray
    ) -> list[np.ndarray]:
        chosen = np.zeros((*counts.shape, int(most)), np.int64)
        taken = np.zeros(counts.shape, np.int64)
        for b, c in np.ndindex(*counts.shape):
            stay: list[int] = []
            for at in order[b, c, : counts[b, c]]:
                if len(stay) < most and not np.any(_shared(box[b, stay], box[b, at]) > overlap):
                    stay.append(int(at))
            chosen[b, c, : len(stay)], taken[b, c] = stay, len(stay)
        return [chosen, taken]

    most = compute((), lambda: room + 0, name="most")
    chosen, taken = extern(
        [((batches, classes, room), I64, "chosen"), ((batches, classes), I64, "taken")],
        [order, counts, corners, overlap, most], write, meaning,
    )  # fmt: skip
    return chosen, taken


def _shared(boxes: np.ndarray, one: np.ndarray) -> np.ndarray:
    """What part of the area that they cover together boxes share with one."""
    inner = np.maximum(np.minimum(boxes[:, 2:], one[2:]) - np.maximum(boxes[:, :2], one[:2]), 0).prod(axis=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (one[2:] - one[:2]).prod() - inner
    return np.where(inner > 0, inner / np.where(inner > 0, union, 1), 0)


Sides = tuple[Expr, Expr, Expr, Expr]


def _sides(w: Writer, box: Buffer, b: Expr, at: Expr) -> Sides:
    low0, low1, high0, high1 = (
        w.local(f"side{k}", load(box, (b, at, const(k))), box.dtype).value for k in range(4)
    )
    return low0, low1, high0, high1


def _overlaps(w: Writer, a: Sides, b: Sides, limit: Expr) -> Expr:
    """Whether two boxes share more of what they cover together than the limit says."""
    zero = const(0.0, limit.dtype)
    sides = [
        w.local("side", minimum(a[k + 2], b[k + 2]) - maximum(a[k], b[k]), limit.dtype).value for k in (0, 1)
    ]
    inner = w.local("inner", sides[0] * sides[1], limit.dtype).value
    size_a = w.local("size", (a[2] - a[0]) * (a[3] - a[1]), limit.dtype).value
    size_b = w.local("size", (b[2] - b[0]) * (b[3] - b[1]), limit.dtype).value
    union = w.local("union", size_a + size_b - inner, limit.dtype).value
    meet = (zero < sides[0]) & (zero < sides[1]) & (zero < size_a) & (zero < size_b) & (zero < union)
    return meet & (limit < inner / union)


def _rows(ctx: Context, chosen: Tensor, taken: Tensor, room: Expr) -> Tensor:
    """Rows of (batch, class, box), one behind another."""
    batches, classes, _ = chosen.shape
    pairs = batches * classes
    start = filled((), 0, I64, "start")

    def step(time: Expr, total: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        then = compute((), lambda: total[()] + taken[time // classes, time % classes], name="total")
        return [then], [compute((), lambda: total[()] + 0, name="before")]

    (before,), (total,) = scan(pairs, [start], step, name="count")
    n = ctx.size(total[()], "selected")

    def value(b: Expr, c: Expr, k: Expr, part: Expr) -> Expr:
        return select(part < 1, b, select(part < 2, c, chosen[b, c, k]))

    return scatter(
        lambda *_: as_expr(0), (n, 3), (batches, classes, room, 3),
        lambda b, c, k, part: (within(before[b * classes + c] + k, n), part), value,
        condition=lambda b, c, k, part: k < taken[b, c], name="selected",
    )  # fmt: skip
