"""Linear classifiers and regressors, and support vector machines, as ONNX Runtime computes them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from fusile.ir.expr import Expr, apply, cast, const, eq, maximum, minimum, select
from fusile.ir.tensor import Tensor, compute, constant, reduce_max, reduce_sum, scan
from fusile.ir.types import BOOL, F32, F64
from fusile.kernels.families.elementwise import filled, unary
from fusile.kernels.families.preparation import ML
from fusile.kernels.families.reduction import best_index
from fusile.kernels.families.scores import check_transform, logistic, probit, rows, table, transformed
from fusile.kernels.registry import Context, Malformed, Unsupported, op


def _features(ctx: Context, x: Tensor, count: int, total: int) -> None:
    """Check that `total` numbers are `count` for each feature of x."""
    if count < 1 or total < 1 or total % count:
        raise Malformed(f"{total} numbers for {count} rows of coefficients")
    ctx.require(eq(x.shape[1], total // count), f"takes {total // count} features, not {x.shape[1]}")


def _products(x: Tensor, rows_of: np.ndarray, name: str) -> Tensor:
    """x R', for a matrix R of constants."""
    weights = constant(rows_of.astype(np.float32), "coefficients")
    shape = (x.shape[0], len(rows_of))
    return compute(
        shape, lambda n, c: reduce_sum((x.shape[1],), lambda k: x[n, k] * weights[c, k]), name=name
    )


def _labelled(which: Tensor, labels: Sequence[int]) -> Tensor:
    """The labels at the positions in a vector."""
    named = table(labels, "labels", np.int64)
    if list(labels) == list(range(len(labels))):
        return which
    last = len(labels) - 1
    return unary(which, lambda v: named[maximum(minimum(v, const(last)), const(0))], "label")


def _winner(scores: Tensor) -> Tensor:
    """The column of the first largest score of every row."""
    return best_index(scores, 1, "max", keep=False)


def _side_by_side(score: Tensor, transform: str, opposite: bool) -> Tensor:
    """Two columns from the one score of a binary model: what is left to 1 and it, or its opposite and it."""

    def body(n: Expr, c: Expr) -> Expr:
        v = score[n, const(0)]
        if transform == "LOGISTIC":
            return logistic(select(c < 1, -v, v))
        if transform == "PROBIT":
            v = probit(v)
        return select(c < 1, -v if opposite else 1 - v, v)

    return compute((score.shape[0], 2), body, name="scores")


@op("LinearClassifier", ML)
def linear_classifier(
    ctx: Context,
    x: Tensor,
    *,
    coefficients: Sequence[float] = (),
    intercepts: Sequence[float] = (),
    classlabels_ints: Sequence[int] = (),
    classlabels_strings: Sequence[str] = (),
    post_transform: str = "NONE",
) -> tuple[Tensor, Tensor]:
    """The label of the best of `intercepts` scores, or of the sign of the only one; and the scores."""
    if classlabels_strings:
        raise Unsupported("labels that are strings")
    check_transform(post_transform)
    x = rows(x)
    targets = len(intercepts) or len(classlabels_ints)
    _features(ctx, x, targets, len(coefficients))
    by_class = np.asarray(coefficients, np.float32).reshape(targets, -1)
    raw = products = _products(x, by_class, "products")
    if intercepts:
        shift = table(intercepts, "intercepts")
        raw = compute(products.shape, lambda n, c: products[n, c] + shift[c], name="raw")
    if targets > 1:
        if len(classlabels_ints) < targets:
            raise Malformed(f"{len(classlabels_ints)} labels for {targets} scores")
        return _labelled(_winner(raw), classlabels_ints), transformed(raw, post_transform)
    first, second = classlabels_ints if len(classlabels_ints) == 2 else (0, 1)
    label = compute(
        (x.shape[0],), lambda n: select(raw[n, const(0)] > 0, const(second), const(first)), name="label"
    )
    if len(classlabels_ints) == 2:
        return label, _side_by_side(raw, post_transform, opposite=False)
    return label, unary(raw, probit, "probit") if post_transform == "PROBIT" else raw


@op("LinearRegressor", ML)
def linear_regressor(
    ctx: Context,
    x: Tensor,
    *,
    coefficients: Sequence[float] = (),
    intercepts: Sequence[float] = (),
    targets: int = 1,
    post_transform: str = "NONE",
) -> Tensor:
    check_transform(post_transform)
    x = rows(x)
    _features(ctx, x, targets, len(coefficients))
    products = _products(x, np.asarray(coefficients, np.float32).reshape(targets, -1), "products")
    scores = products
    if len(intercepts) == targets:
        shift = table(intercepts, "intercepts")
        scores = compute(products.shape, lambda n, c: products[n, c] + shift[c], name="scores")
    if targets == 1:
        return unary(scores, probit, "probit") if post_transform == "PROBIT" else scores
    return transformed(scores, post_transform)


# ---- support vector machines ---------------------------------------------------------------------

KERNELS = ("LINEAR", "POLY", "RBF", "SIGMOID")


def _kernel(x: Tensor, vectors: np.ndarray, kind: str, params: Sequence[float], shift: float = 0.0) -> Tensor:
    """The kernel of every sample with every support vector; `shift` is added to products of LINEAR."""
    if kind not in KERNELS:
        raise Malformed(f"the kernel_type {kind!r} is none of {', '.join(KERNELS)}")
    if params and len(params) < 3:
        raise Malformed(f"{len(params)} kernel_params, not three")
    gamma, coef0, degree = params[:3] if params else (0.0, 0.0, 0.0)
    if kind == "RBF":
        held = constant(vectors.astype(np.float32), "vectors")

        def distance(n: Expr, v: Expr) -> Expr:
            return reduce_sum((x.shape[1],), lambda k: (x[n, k] - held[v, k]) * (x[n, k] - held[v, k]))

        apart = compute((x.shape[0], len(vectors)), distance, name="distance")
        return unary(apart, lambda d: apply("exp", d * -gamma), "kernel")
    products = _products(x, vectors, "products")

    def body(v: Expr) -> Expr:
        if kind == "LINEAR":
            return v + shift if shift else v
        v = v * gamma + coef0
        if kind == "SIGMOID":
            return apply("tanh", v)
        if degree in (2.0, 3.0):
            return v * v if degree == 2.0 else v * v * v
        return apply("pow", v, const(degree, F32))

    return unary(products, body, "kernel")


@op("SVMRegressor", ML)
def svm_regressor(
    ctx: Context,
    x: Tensor,
    *,
    coefficients: Sequence[float] = (),
    kernel_params: Sequence[float] = (),
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    rho: Sequence[float] = (),
    support_vectors: Sequence[float] = (),
) -> Tensor:
    """The decision function as a column; its sign, 1 or -1, for a one-class model."""
    x = rows(x)
    if not rho or not coefficients:
        raise Malformed("has no coefficients or no rho")
    if n_supports > 0:
        if len(coefficients) < n_supports:
            raise Malformed(f"{len(coefficients)} coefficients for {n_supports} support vectors")
        _features(ctx, x, n_supports, len(support_vectors))
        vectors = np.asarray(support_vectors, np.float32).reshape(n_supports, -1)
        kernel = _kernel(x, vectors, kernel_type, kernel_params)
        total = _products(kernel, np.asarray([coefficients[:n_supports]]), "sum")
        scores = unary(total, lambda v: v + rho[0], "scores")
    else:
        _features(ctx, x, 1, len(coefficients))
        scores = _kernel(x, np.asarray([coefficients]), "LINEAR", (), rho[0])
    if not one_class:
        return scores
    return unary(scores, lambda v: select(v > 0, const(1, F32), const(-1, F32)), "side")


@op("SVMClassifier", ML)
def svm_classifier(
    ctx: Context,
    x: Tensor,
    *,
    classlabels_ints: Sequence[int] = (),
    classlabels_strings: Sequence[str] = (),
    coefficients: Sequence[float] = (),
    kernel_params: Sequence[float] = (),
    kernel_type: str = "LINEAR",
    post_transform: str = "NONE",
    prob_a: Sequence[float] = (),
    prob_b: Sequence[float] = (),
    rho: Sequence[float] = (),
    support_vectors: Sequence[float] = (),
    vectors_per_class: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """The label that wins most duels of two classes, and the scores: of the duels, or probabilities."""
    if classlabels_strings:
        raise Unsupported("labels that are strings")
    check_transform(post_transform)
    x = rows(x)
    classes, duels = len(classlabels_ints), len(classlabels_ints) * (len(classlabels_ints) - 1) // 2
    vectors = sum(vectors_per_class)
    if not classes or not coefficients or not rho or len(prob_a) != len(prob_b):
        raise Malformed("lacks labels, coefficients, rho, or one of prob_a and prob_b")
    if not vectors:
        _features(ctx, x, classes, len(coefficients))
        raw = _kernel(x, np.asarray(coefficients).reshape(classes, -1), "LINEAR", (), rho[0])
        return _by_score(raw, classlabels_ints, coefficients, bool(prob_a)), transformed(raw, post_transform)
    if (
        len(vectors_per_class) != classes
        or min(vectors_per_class) < 0
        or len(coefficients) < (classes - 1) * vectors
        or len(rho) < duels
        or classes < 2
        or (prob_a and len(prob_a) < duels)
    ):
        raise Malformed(
            f"{classes} labels, support vectors per class {tuple(vectors_per_class)}, {len(coefficients)} "
            f"coefficients, {len(rho)} rho and {len(prob_a)} prob_a do not fit each other"
        )
    _features(ctx, x, vectors, len(support_vectors))
    held = np.asarray(support_vectors, np.float32).reshape(vectors, -1)
    kernel = _kernel(x, held, kernel_type, kernel_params)
    by_duel = _duel_weights(np.asarray(coefficients, np.float32), vectors_per_class)
    weights = constant(by_duel, "weights")
    shift = table(rho[:duels], "rho", np.float64)
    wide = compute(
        (x.shape[0], duels),
        lambda n, d: reduce_sum((vectors,), lambda k: cast(kernel[n, k] * weights[d, k], F64)),
        name="duel",
    )
    exact = compute(wide.shape, lambda n, d: wide[n, d] + shift[d], name="duel")
    scores = unary(exact, lambda v: cast(v, F32), "duel_scores")
    label = _labelled(_most_votes(exact, classes), classlabels_ints)
    if prob_a:
        return label, transformed(_probabilities(scores, classes, prob_a, prob_b), post_transform)
    if classes == 2:
        return label, _side_by_side(scores, post_transform, opposite=post_transform == "NONE")
    return label, transformed(scores, post_transform)


def _by_score(raw: Tensor, labels: Sequence[int], coefficients: Sequence[float], sure: bool) -> Tensor:
    """The label of a linear machine: the best score's; of two classes the second wherever the best score is
    above 0, or at least half where no coefficient is negative.
    """
    best = _winner(raw)
    if len(labels) != 2 or sure:
        return _labelled(best, labels)
    positive = min(coefficients) >= 0

    def body(n: Expr) -> Expr:
        top = maximum(raw[n, const(0)], raw[n, const(1)])
        wins = top >= 0.5 if positive else top > 0
        return select(wins, const(1), best[n])

    return _labelled(compute((raw.shape[0],), body, name="choice"), labels)


def _duel_weights(coefficients: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """[duels, vectors]: what each support vector counts in the duel of two classes. Those of a third class
    count nothing.
    """
    classes, vectors = len(sizes), sum(sizes)
    by_row = coefficients[: (classes - 1) * vectors].reshape(classes - 1, vectors)
    starts = np.cumsum([0, *sizes])
    pairs = list(combinations(range(classes), 2))
    if len(pairs) * vectors > 1 << 26:
        raise Unsupported(f"{len(pairs)} duels of classes over {vectors} support vectors")
    out = np.zeros((len(pairs), vectors), np.float32)
    for d, (i, j) in enumerate(pairs):
        own, other = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
        out[d, own] = by_row[j - 1, own]
        out[d, other] = by_row[i, other]
    return out


def _most_votes(duels: Tensor, classes: int) -> Tensor:
    """The first class that wins most duels."""
    pairs = list(combinations(range(classes), 2))
    first = table([i for i, _ in pairs], "first", np.int64)
    second = table([j for _, j in pairs], "second", np.int64)

    def votes(n: Expr, c: Expr) -> Expr:
        def vote(d: Expr) -> Expr:
            winner = select(duels[n, d] > 0, first[d], second[d])
            return select(eq(winner, c), const(1), const(0))

        return reduce_sum((len(pairs),), vote)

    return _winner(compute((duels.shape[0], classes), votes, name="votes"))


_MOST_ROUNDS = 100


def _probabilities(scores: Tensor, classes: int, a: Sequence[float], b: Sequence[float]) -> Tensor:
    """Probabilities of classes out of those of duels: T.-F. Wu, C.-J. Lin and R. C. Weng, Probability
    Estimates for Multi-class Classification by Pairwise Coupling, algorithm 2, in float32 and with the
    stopping rule that libsvm has.
    """
    place = np.zeros((classes, classes), np.int64)
    for d, (i, j) in enumerate(combinations(range(classes), 2)):
        place[i, j] = place[j, i] = d
    at, slope, level = constant(place, "duel_of"), table(a, "prob_a"), table(b, "prob_b")
    count = scores.shape[0]

    def won(n: Expr, d: Expr) -> Expr:
        p = 1 - logistic(scores[n, d] * slope[d] + level[d])
        return minimum(maximum(p, 1e-7), float(np.float32(1) - np.float32(1e-7)))

    first_wins = compute(scores.shape, won, name="first_wins")

    def pairwise(n: Expr, i: Expr, j: Expr) -> Expr:
        p = first_wins[n, at[i, j]]
        return select(i < j, p, 1 - p)

    pair = compute((count, classes, classes), pairwise, name="pair")

    def squares(n: Expr, i: Expr) -> Expr:
        return reduce_sum(
            (classes,), lambda j: select(eq(i, j), const(0, F32), pair[n, j, i] * pair[n, j, i])
        )

    diagonal = compute((count, classes), squares, name="diagonal")

    def entry(n: Expr, i: Expr, j: Expr) -> Expr:
        return select(eq(i, j), diagonal[n, i], -(pair[n, j, i] * pair[n, i, j]))

    q = compute(pair.shape, entry, name="q")
    start = filled((count, const(classes)), 1 / classes, F32, "uniform")
    zeros = filled((count, const(classes)), 0, F32, "qp")
    none, busy = filled((count,), 0, F32, "pqp"), filled((count,), False, BOOL, "done")

    def step(
        time: Expr, p: Tensor, qp: Tensor, pqp: Tensor, done: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """One class of one round. A round begins with fresh products, and with a look whether all is done."""
        k = time % classes
        fresh = eq(k, const(0))
        product = compute(
            qp.shape, lambda n, i: reduce_sum((classes,), lambda j: q[n, i, j] * p[n, j]), name="product"
        )
        now = compute(qp.shape, lambda n, i: select(fresh, product[n, i], qp[n, i]), name="qp_now")
        weighed = compute(
            (count,), lambda n: reduce_sum((classes,), lambda i: p[n, i] * product[n, i]), name="weighed"
        )
        total = compute((count,), lambda n: select(fresh, weighed[n], pqp[n]), name="pqp_now")
        error = compute(
            (count,),
            lambda n: reduce_max((classes,), lambda i: apply("abs", now[n, i] - total[n])),
            name="error",
        )
        limit = float(np.float32(0.005) / np.float32(classes))
        ended = compute((count,), lambda n: done[n] | (fresh & (error[n] < limit)), name="ended")
        change = compute((count,), lambda n: (total[n] - now[n, k]) / q[n, k, k], name="change")

        def moved(n: Expr, i: Expr) -> Expr:
            grown = select(eq(i, k), p[n, i] + change[n], p[n, i])
            return select(ended[n], p[n, i], grown / (1 + change[n]))

        def qp_then(n: Expr, i: Expr) -> Expr:
            return (now[n, i] + change[n] * q[n, k, i]) / (1 + change[n])

        def pqp_then(n: Expr) -> Expr:
            d = change[n]
            return (total[n] + d * (d * q[n, k, k] + now[n, k] * 2)) / (1 + d) / (1 + d)

        then = [
            compute(p.shape, moved, name="p_then"),
            compute(qp.shape, qp_then, name="qp_then"),
            compute((count,), pqp_then, name="pqp_then"),
            ended,
        ]
        return then, []

    _, (found, *_rest) = scan(_MOST_ROUNDS * classes, [start, zeros, none, busy], step, name="coupling")
    return found
