"""What classical models share: their input as rows of numbers, and what they make of scores at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fusile.ir.expr import Expr, apply, cast, const, select
from fusile.ir.tensor import Tensor, compute, constant
from fusile.ir.types import F32, DType
from fusile.kernels.families.activation import sigmoid_of
from fusile.kernels.families.elementwise import unary
from fusile.kernels.families.reduction import reduced
from fusile.kernels.registry import Malformed

TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
_NEARLY_ZERO = 1e-7
"""Scores up to this size stay zero under SOFTMAX_ZERO."""


def rows(x: Tensor, kind: DType = F32) -> Tensor:
    """The samples of a model as a matrix of one type; a vector is one sample. Raises Malformed otherwise."""
    if not 1 <= x.rank <= 2:
        raise Malformed(f"takes a matrix of samples, not rank {x.rank}")
    if x.rank == 2:
        return x if x.dtype is kind else unary(x, lambda v: cast(v, kind), "rows")
    return compute((1, x.shape[0]), lambda _, j: cast(x[j], kind), name="rows")


def table(values: Sequence[float] | np.ndarray, name: str, dtype: type = np.float32) -> Tensor:
    """Numbers of an attribute as a constant tensor."""
    return constant(np.asarray(values, dtype), name)


def logistic(v: Expr) -> Expr:
    """1 / (1 + exp(-v)), without overflow."""
    low = 1 / (1 + apply("exp", -apply("abs", v)))
    return select(v < 0, 1 - low, low)


def probit(v: Expr) -> Expr:
    """The quantile of the normal distribution by Winitzki's approximation of the inverse error function, with
    the constants that ONNX Runtime has.
    """
    y = v * 2 - 1
    log = apply("log", (1 - y) * (1 + y))
    half = log * 0.5 + 2 / (3.14159 * 0.147)
    root = apply("sqrt", apply("sqrt", half * half - log * (1 / 0.147)) - half)
    return select(y < 0, -root, root) * 1.41421356


def softmax_of_rows(scores: Tensor, *, keep_zero: bool) -> Tensor:
    """Softmax along the last axis; with `keep_zero` what is nearly zero is scaled and takes no part."""
    at = scores.rank - 1
    top = reduced(scores, [at], "max", keep=True, name="max")

    def top_of(i: Sequence[Expr]) -> Expr:
        return top[(*i[:at], const(0))]

    def counts(v: Expr) -> Expr:
        return (v > _NEARLY_ZERO) | (v < -_NEARLY_ZERO)

    def raised(*i: Expr) -> Expr:
        v = scores[i]
        grown = apply("exp", v - top_of(i))
        return select(counts(v), grown, v * apply("exp", -top_of(i))) if keep_zero else grown

    grown = compute(scores.shape, raised, name="exp")
    share = grown
    if keep_zero:
        zero = const(0, scores.dtype)
        share = compute(scores.shape, lambda *i: select(counts(scores[i]), grown[i], zero), name="share")
    total = reduced(share, [at], "sum", keep=True, name="sum")
    return compute(scores.shape, lambda *i: grown[i] / total[(*i[:at], const(0))], name="softmax")


_BY_ELEMENT: dict[str, Callable[[Expr], Expr]] = {"LOGISTIC": logistic, "PROBIT": probit}


def transformed(scores: Tensor, transform: str, by_row: bool = False) -> Tensor:
    """Scores of two or more columns after the transform. Raises Malformed for one that there is not.

    `by_row`: small probabilities are what is left to 1, as in models whose rows ONNX Runtime takes one by
    one; else they are exact.
    """
    check_transform(transform)
    if transform == "NONE":
        return scores
    if transform == "LOGISTIC" and not by_row:
        return unary(scores, sigmoid_of, "logistic")
    if transform in _BY_ELEMENT:
        return unary(scores, _BY_ELEMENT[transform], transform.lower())
    return softmax_of_rows(scores, keep_zero=transform == "SOFTMAX_ZERO")


def check_transform(transform: str) -> None:
    if transform not in TRANSFORMS:
        raise Malformed(f"the post_transform {transform!r} is none of {', '.join(TRANSFORMS)}")
