"""Tree ensembles: all samples walk down all trees by tables, and what they arrive at is added up in the order
of the trees and in the precision that ONNX Runtime has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, cast, const, eq, logical_not, ne, select
from fusile.ir.tensor import Tensor, compute, constant, scan
from fusile.ir.types import BOOL, F16, F32, F64, I64, DType
from fusile.kernels.families import forest as tables
from fusile.kernels.families.elementwise import filled, unary
from fusile.kernels.families.forest import Forest
from fusile.kernels.families.preparation import ML
from fusile.kernels.families.reduction import best_index
from fusile.kernels.families.scores import check_transform, logistic, probit, rows, table, transformed
from fusile.kernels.registry import Context, Malformed, Unsupported, op

LEVELS = 4
"""Tests that one stage takes a sample through."""
MOST_STAGES = 16
"""Stages that follow each other; deeper trees take the rest of the way in a loop."""
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")


# ---- walking -------------------------------------------------------------------------------------


class _Walk:
    """A forest's tables as tensors."""

    def __init__(self, x: Tensor, forest: Forest) -> None:
        self.x, self.forest = x, forest
        self.feature = constant(forest.feature.astype(np.int32), "feature")
        self.threshold = constant(forest.threshold, "threshold")
        # Few cases, where all tests are of one kind: it holds or it does not.
        self.uniform = forest.uniform if forest.uniform in _HOLDS else None
        child = forest.child
        if self.uniform is not None:
            no, yes = (tables._HOLDS[self.uniform].index(k) for k in (0, 1))
            child = child[:, [no, yes]]
        self.child = constant(child.astype(np.int32), "child")

    def leaves(self) -> Tensor:
        """The leaf that every sample arrives at, by tree."""
        forest, count = self.forest, self.x.shape[0]
        roots = constant(forest.roots.astype(np.int32), "roots")
        shape = (count, forest.trees)
        if not forest.depth:
            return compute(shape, lambda n, t: roots[t], name="leaf")
        stages = -(-forest.depth // LEVELS)
        ahead = min(stages, MOST_STAGES)
        at = compute(shape, lambda n, t: self.down(n, roots[t], min(LEVELS, forest.depth)), name="node")
        for k in range(1, ahead):
            at = self.further(at, min(LEVELS, forest.depth - k * LEVELS))
        if stages == ahead:
            return at

        def step(_: Expr, now: Tensor) -> tuple[list[Tensor], list[Tensor]]:
            return [self.further(now, LEVELS)], []

        _, (found,) = scan(stages - ahead, [at], step, name="walk")
        return found

    def further(self, at: Tensor, levels: int) -> Tensor:
        return compute(at.shape, lambda n, t: self.down(n, at[n, t], levels), name="node")

    def down(self, n: Expr, node: Expr, levels: int) -> Expr:
        for _ in range(levels):
            here = cast(node, I64)
            v, limit = self.x[n, cast(self.feature[here], I64)], self.threshold[here]
            node = self.child[here, self.case(v, limit)]
        return node

    def case(self, v: Expr, limit: Expr) -> Expr:
        """The column of `child` that a value and a threshold choose."""
        if self.uniform is not None:
            return select(_HOLDS[self.uniform](v, limit), const(1), const(0))
        out: Expr = const(tables.UNORDERED)
        for test, case in (
            (v < limit, tables.BELOW),
            (eq(v, limit), tables.EQUAL),
            (limit < v, tables.ABOVE),
        ):
            # At most one holds. A sum and no choice, so that nothing is read under a condition.
            out = out - cast(test, I64) * (tables.UNORDERED - case)
        return out


_HOLDS: dict[str, Any] = {
    "BRANCH_LEQ": lambda v, limit: v <= limit,
    "BRANCH_LT": lambda v, limit: v < limit,
    "BRANCH_GTE": lambda v, limit: limit <= v,
    "BRANCH_GT": lambda v, limit: limit < v,
    "BRANCH_EQ": eq,
    "BRANCH_NEQ": ne,
}


def _samples(ctx: Context, x: Tensor, forest: Forest, wide: DType) -> Tensor:
    """The samples in the type of the thresholds; all features that are tested must be there."""
    x = rows(x, wide)
    least = forest.last_feature + 1
    ctx.require(const(least) <= x.shape[1], f"a node tests feature {least - 1} of {x.shape[1]}")
    return x


def _precision(x: Tensor) -> tuple[DType, type]:
    """In what thresholds and weights are held: as the input where that is double, else single."""
    return (F64, np.float64) if x.dtype is F64 else (F32, np.float32)


# ---- adding up -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sums:
    """The sum, or extreme, of what leaves say by sample and target. `told` says whether they say anything: by
    sample where that is uncertain, else by target.
    """

    total: Tensor
    always: np.ndarray
    never: np.ndarray
    told: Tensor | None

    def has(self, n: Expr, c: Expr) -> Expr:
        """Whether leaves say anything about a target."""
        known = ix.number(c)
        if known is not None and (self.always[known] or self.never[known]):
            return const(bool(self.always[known]), BOOL)
        if self.told is None:
            return logical_not(table(self.never, "never", np.bool_)[c])
        return self.told[n, c]

    def masked(self, n: Expr, c: Expr, v: Expr) -> Expr:
        """v, or 0 for a target that leaves say nothing about."""
        return v if self.always.all() else select(self.has(n, c), v, const(0, v.dtype))


def _scores(leaf: Tensor, forest: Forest, targets: int, kind: str) -> _Sums:
    dtype = F64 if forest.weight.dtype == np.float64 else F32
    fill = {"MIN": np.inf, "MAX": -np.inf}.get(kind, 0.0)
    said = tables.said_of(forest, targets, fill)
    combine = {"MIN": "min", "MAX": "max"}.get(kind, "add")
    start = filled((leaf.shape[0], const(targets)), fill, dtype, "start")
    term, tells = _term(leaf, said, fill, dtype)
    uncertain = not (said.always | said.never).all()

    def step(tree: Expr, total: Tensor, *has: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        def added(n: Expr, c: Expr) -> Expr:
            return apply(combine, total[n, c], term(n, c, tree))

        then = [compute(total.shape, added, name="total_then")]
        for h in has:
            then.append(compute(h.shape, lambda n, c, h=h: h[n, c] | tells(n, c, tree), name="told_then"))
        return then, []

    initial = [start, filled(start.shape, False, BOOL, "silent")] if uncertain else [start]
    _, (total, *told) = scan(forest.trees, initial, step, name="ensemble")
    return _Sums(total, said.always, said.never, told[0] if told else None)


def _term(leaf: Tensor, said: tables.Said, fill: float, dtype: DType) -> tuple[Any, Any]:
    """(what the leaf of a tree counts for a target, whether it says anything about it)."""
    if said.dense is not None:
        assert said.has is not None
        weights, has = constant(said.dense, "weights"), constant(said.has, "says")
        return (
            lambda n, c, tree: weights[cast(leaf[n, tree], I64), c],
            lambda n, c, tree: has[cast(leaf[n, tree], I64), c],
        )
    assert said.slot_target is not None and said.slot_weight is not None
    which, held = constant(said.slot_target, "targets"), constant(said.slot_weight, "weights")
    slots = range(said.slot_target.shape[1])

    def term(n: Expr, c: Expr, tree: Expr) -> Expr:
        at = cast(leaf[n, tree], I64)
        out: Expr = const(fill, dtype)
        for k in slots:
            mine = select(eq(which[at, const(k)], c), held[at, const(k)], const(fill, dtype))
            out = (
                mine if not k else out + mine if fill == 0 else apply("min" if fill > 0 else "max", out, mine)
            )
        return out

    def tells(n: Expr, c: Expr, tree: Expr) -> Expr:
        at = cast(leaf[n, tree], I64)
        out: Expr = const(False, BOOL)
        for k in slots:
            out = out | eq(which[at, const(k)], c)
        return out

    return term, tells


def _of_one_target(leaf: Tensor, forest: Forest, kind: str) -> Tensor:
    """The sum, or extreme, of the first weight of every leaf; of its threshold where it has none."""
    dtype = F64 if forest.weight.dtype == np.float64 else F32
    first = forest.fallback.copy()
    first[forest.weight_leaf[::-1]] = forest.weight[::-1]
    counts = constant(first, "weights")
    fill = {"MIN": np.inf, "MAX": -np.inf}.get(kind, 0.0)
    combine = {"MIN": "min", "MAX": "max"}.get(kind, "add")
    start = filled((leaf.shape[0],), fill, dtype, "start")

    def step(tree: Expr, total: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        def body(n: Expr) -> Expr:
            return apply(combine, total[n], counts[cast(leaf[n, tree], I64)])

        return [compute(total.shape, body, name="total_then")], []

    _, (total,) = scan(forest.trees, [start], step, name="ensemble")
    return total


def _base(values: Sequence[float], tensor: np.ndarray | None, dtype: type) -> np.ndarray:
    return np.asarray(values if tensor is None else tensor, dtype).ravel()


def _regressed(
    ctx: Context,
    x: Tensor,
    forest: Forest,
    targets: int,
    kind: str,
    base: np.ndarray,
    transform: str,
    out: DType,
) -> Tensor:
    """The regression of an ensemble as [samples, targets]."""
    check_transform(transform)
    if kind not in AGGREGATES or targets < 1:
        raise Malformed(f"aggregate_function {kind!r} over {targets} targets")
    wide = F64 if forest.threshold.dtype == np.float64 else F32
    leaf = _Walk(_samples(ctx, x, forest, wide), forest).leaves()
    if targets == 1:
        if forest.weight_target.any():
            raise Malformed("a leaf counts for another than the only target")
        origin = float(base[0]) if base.size == 1 else 0.0
        total = _of_one_target(leaf, forest, kind if forest.trees else "SUM")

        def finish(n: Expr, _: Expr) -> Expr:
            v = total[n]
            if kind == "AVERAGE" and forest.trees:
                v = v / float(forest.trees)
            v = v + origin if origin else v
            return cast(probit(cast(v, F32)) if transform == "PROBIT" else v, out)

        return compute((total.shape[0], 1), finish, name="regressed")
    sums = _scores(leaf, forest, targets, kind)
    shift = table(base, "base_values", base.dtype.type) if base.size == targets else None

    def shifted(n: Expr, c: Expr) -> Expr:
        v = sums.total[n, c]
        if kind == "AVERAGE" and forest.trees:
            v = v / float(forest.trees)
        v = sums.masked(n, c, v + shift[c] if shift is not None else v)
        return v if transform == "NONE" else cast(v, F32)

    scores = transformed(compute(sums.total.shape, shifted, name="scores"), transform, by_row=True)
    return scores if scores.dtype is out else unary(scores, lambda v: cast(v, out), "regressed")


# ---- the operators -------------------------------------------------------------------------------


@op("TreeEnsembleRegressor", ML)
def tree_ensemble_regressor(
    ctx: Context,
    x: Tensor,
    *,
    aggregate_function: str = "SUM",
    base_values: Sequence[float] = (),
    base_values_as_tensor: np.ndarray | None = None,
    n_targets: int = 0,
    nodes_falsenodeids: Sequence[int] = (),
    nodes_featureids: Sequence[int] = (),
    nodes_missing_value_tracks_true: Sequence[int] = (),
    nodes_modes: Sequence[str] = (),
    nodes_nodeids: Sequence[int] = (),
    nodes_treeids: Sequence[int] = (),
    nodes_truenodeids: Sequence[int] = (),
    nodes_values: Sequence[float] = (),
    nodes_values_as_tensor: np.ndarray | None = None,
    post_transform: str = "NONE",
    target_ids: Sequence[int] = (),
    target_nodeids: Sequence[int] = (),
    target_treeids: Sequence[int] = (),
    target_weights: Sequence[float] = (),
    target_weights_as_tensor: np.ndarray | None = None,
) -> Tensor:
    _, dtype = _precision(x)
    forest = tables.of_numbered_nodes(
        dtype,
        modes=nodes_modes,
        tree_ids=nodes_treeids,
        node_ids=nodes_nodeids,
        features=nodes_featureids,
        thresholds=nodes_values if nodes_values_as_tensor is None else nodes_values_as_tensor,
        yes=nodes_truenodeids,
        no=nodes_falsenodeids,
        missing=nodes_missing_value_tracks_true,
        target_trees=target_treeids,
        target_nodes=target_nodeids,
        targets=target_ids,
        weights=target_weights if target_weights_as_tensor is None else target_weights_as_tensor,
    )
    base = _base(base_values, base_values_as_tensor, dtype)
    return _regressed(ctx, x, forest, n_targets, aggregate_function, base, post_transform, F32)


@op("TreeEnsemble", ML)
def tree_ensemble(
    ctx: Context,
    x: Tensor,
    *,
    aggregate_function: int = 1,
    leaf_targetids: Sequence[int] = (),
    leaf_weights: np.ndarray,
    membership_values: np.ndarray | None = None,
    n_targets: int = 1,
    nodes_falseleafs: Sequence[int] = (),
    nodes_falsenodeids: Sequence[int] = (),
    nodes_featureids: Sequence[int] = (),
    nodes_missing_value_tracks_true: Sequence[int] = (),
    nodes_modes: np.ndarray,
    nodes_splits: np.ndarray,
    nodes_trueleafs: Sequence[int] = (),
    nodes_truenodeids: Sequence[int] = (),
    post_transform: int = 0,
    tree_roots: Sequence[int] = (),
) -> Tensor:
    if not 0 <= aggregate_function < 4 or not 0 <= post_transform < 5:
        raise Malformed(f"aggregate_function {aggregate_function} and post_transform {post_transform}")
    _, dtype = _precision(x)
    forest = tables.of_roots(
        dtype,
        roots=tree_roots,
        modes=nodes_modes,
        features=nodes_featureids,
        thresholds=nodes_splits,
        yes=nodes_truenodeids,
        no=nodes_falsenodeids,
        yes_leaf=nodes_trueleafs,
        no_leaf=nodes_falseleafs,
        missing=nodes_missing_value_tracks_true,
        members=membership_values,
        targets=leaf_targetids,
        weights=leaf_weights,
    )
    transform = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")[post_transform]
    out = F16 if x.dtype is F16 else x.dtype
    none: np.ndarray = np.zeros(0, dtype)
    return _regressed(ctx, x, forest, n_targets, AGGREGATES[aggregate_function], none, transform, out)


@op("TreeEnsembleClassifier", ML)
def tree_ensemble_classifier(
    ctx: Context,
    x: Tensor,
    *,
    base_values: Sequence[float] = (),
    base_values_as_tensor: np.ndarray | None = None,
    class_ids: Sequence[int] = (),
    class_nodeids: Sequence[int] = (),
    class_treeids: Sequence[int] = (),
    class_weights: Sequence[float] = (),
    class_weights_as_tensor: np.ndarray | None = None,
    classlabels_int64s: Sequence[int] = (),
    classlabels_strings: Sequence[str] = (),
    nodes_falsenodeids: Sequence[int] = (),
    nodes_featureids: Sequence[int] = (),
    nodes_missing_value_tracks_true: Sequence[int] = (),
    nodes_modes: Sequence[str] = (),
    nodes_nodeids: Sequence[int] = (),
    nodes_treeids: Sequence[int] = (),
    nodes_truenodeids: Sequence[int] = (),
    nodes_values: Sequence[float] = (),
    nodes_values_as_tensor: np.ndarray | None = None,
    post_transform: str = "NONE",
) -> tuple[Tensor, Tensor]:
    if classlabels_strings:
        raise Unsupported("labels that are strings")
    check_transform(post_transform)
    classes = len(classlabels_int64s)
    if not classes:
        raise Malformed("has no labels")
    wide, dtype = _precision(x)
    forest = tables.of_numbered_nodes(
        dtype,
        modes=nodes_modes,
        tree_ids=nodes_treeids,
        node_ids=nodes_nodeids,
        features=nodes_featureids,
        thresholds=nodes_values if nodes_values_as_tensor is None else nodes_values_as_tensor,
        yes=nodes_truenodeids,
        no=nodes_falsenodeids,
        missing=nodes_missing_value_tracks_true,
        target_trees=class_treeids,
        target_nodes=class_nodeids,
        targets=class_ids,
        weights=class_weights if class_weights_as_tensor is None else class_weights_as_tensor,
    )
    base = _base(base_values, base_values_as_tensor, dtype)
    leaf = _Walk(_samples(ctx, x, forest, wide), forest).leaves()
    if classes == 1:
        return _one_class(leaf, forest, base, post_transform, classlabels_int64s)
    sums = _scores(leaf, forest, classes, "SUM")
    if classes > 2:
        return _many_classes(sums, base, post_transform, classlabels_int64s)
    held = class_weights if class_weights_as_tensor is None else class_weights_as_tensor
    one_weight = len(set(class_ids)) == 1
    model = _Binary(sums, base, post_transform, one_weight, bool((np.asarray(held) >= 0).all()))
    return model.label(classlabels_int64s), model.scores()


def _single(v: Tensor) -> Tensor:
    """Scores as single precision, in which transforms are taken and scores are put out."""
    return v if v.dtype is F32 else unary(v, lambda s: cast(s, F32), "single")


def _chosen(which: Tensor, labels: Sequence[int]) -> Tensor:
    named = table(labels, "labels", np.int64)
    return unary(which, lambda v: named[v], "label")


def _many_classes(
    sums: _Sums, base: np.ndarray, transform: str, labels: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The label of the first largest of the scores that leaves, or base values, say anything about."""
    classes, total = len(labels), sums.total
    if base.size > classes:
        raise Malformed(f"{base.size} base_values for {classes} classes")
    scores = total
    if base.size:
        shift = table(np.concatenate([base, np.zeros(classes - base.size)]), "base_values", base.dtype.type)
        scores = compute(total.shape, lambda n, c: total[n, c] + shift[c], name="scores")
    ranked = scores
    if base.size < classes and not sums.always.all():
        lowest = const(-np.inf, scores.dtype)

        def rank(n: Expr, c: Expr) -> Expr:
            return select((c < base.size) | sums.has(n, c), scores[n, c], lowest)

        ranked = compute(scores.shape, rank, name="ranked")
    label = _chosen(best_index(ranked, 1, "max", keep=False), labels)
    return label, transformed(_single(scores), transform, by_row=True)


def _one_class(
    leaf: Tensor, forest: Forest, base: np.ndarray, transform: str, labels: Sequence[int]
) -> tuple[Tensor, Tensor]:
    if base.size > 1:
        raise Malformed(f"{base.size} base_values for one class")
    total = _of_one_target(leaf, forest, "SUM")

    def score(n: Expr, _: Expr) -> Expr:
        v = cast(total[n] + float(base[0]) if base.size else total[n], F32)
        return probit(v) if transform == "PROBIT" else v

    shift = float(base[0]) if base.size else 0.0
    label = compute(total.shape, lambda n: select(total[n] + shift > 0, const(1), const(0)), name="label")
    return label, compute((total.shape[0], 1), score, name="score")


@dataclass(frozen=True, slots=True)
class _Binary:
    """Two classes. Leaves may count for the second alone, for the first alone (and mean the second), or for
    both, which the base values and the transform each take in their own way.

    `one_weight`: all weights are for one class; `positive`: none is below 0.
    """

    sums: _Sums
    base: np.ndarray
    transform: str
    one_weight: bool
    positive: bool

    def _choose(self, n: Expr, both: Expr, alone: Expr) -> Expr:
        return select(self.sums.has(n, const(1)), both, alone)

    def _first(self, n: Expr) -> Expr:
        """What leaves say about the first class, with its base value; 0 where they say nothing."""
        v = self.sums.total[n, const(0)]
        if self.base.size in (1, 2):
            v = v + float(self.base[0])
        return self.sums.masked(n, const(0), v)

    def _second(self, n: Expr) -> Expr:
        """The score of the second class where leaves say something about it."""
        if self.base.size == 2:
            return self.sums.total[n, const(0)] + float(self.base[1])
        return self.sums.total[n, const(1)]

    def label(self, labels: Sequence[int]) -> Tensor:
        limit = 0.5 if self.one_weight and self.positive else 0.0
        # Where leaves count for both classes, ONNX Runtime answers 1 and 0, whatever the labels are.
        no, yes = labels if self.one_weight else (0, 1)

        def body(n: Expr) -> Expr:
            weight = self._choose(n, self._second(n), self._first(n))
            return select(weight > limit, const(yes), const(no))

        return compute((self.sums.total.shape[0],), body, name="label")

    def scores(self) -> Tensor:
        total = self.sums.total
        two = transformed(
            _single(compute(total.shape, self._two_scores, name="pair")), self.transform, by_row=True
        )
        if self.base.size == 2:
            return two
        return compute(
            total.shape, lambda n, c: self._choose(n, two[n, c], self._opposed(n, c)), name="scores"
        )

    def _two_scores(self, n: Expr, c: Expr) -> Expr:
        second = self._second(n)
        first = self._first(n)
        if self.base.size != 2:
            return select(c < 1, first, second)
        zero = const(0, second.dtype)
        opposite = self.sums.masked(n, const(0), -second)
        return select(c < 1, self._choose(n, opposite, first), self._choose(n, second, zero))

    def _opposed(self, n: Expr, c: Expr) -> Expr:
        """The scores where leaves say nothing about the second class: what they say is its score."""
        v = cast(self._first(n), F32)
        if self.transform == "PROBIT":
            return select(c < 1, probit(v), const(0, F32))
        if not self.one_weight and self.base.size:
            return select(c < 1, v, const(0, F32))
        if self.transform == "LOGISTIC":
            return logistic(select(c < 1, -v, v))
        return select(c < 1, 1 - v if self.one_weight and self.positive else -v, v)
