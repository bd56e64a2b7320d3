"""How far rounding alone moves a model's answers.

Some models multiply small differences: networks with drawn weights, long recurrences, differences of nearly
equal sums. Two correct engines then differ by more than any fixed bound. What the reference itself answers
when every input moves by one unit in the last place tells how much that is (the condition of the problem; N.
Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 1.6).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fusile.runtime.module import Value
from fusile.tools.agreement import Difference, Tolerance, compare
from fusile.tools.engines import Run

TRIES = 4
"""Draws of which inputs move up and which move down."""
ALLOWANCE = 4.0
"""An engine rounds in every node, not in the inputs alone: how much further it may move an answer."""


def moved(value: Value, generator: np.random.Generator) -> Value:
    """The value with every float one unit in the last place up or down."""
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return value
    up = generator.random(value.shape) < 0.5
    to: Any = np.where(up, np.inf, -np.inf).astype(value.dtype)
    return np.asarray(np.nextafter(value, to))


def condition(reference: Run, feeds: Mapping[str, Value], want: Sequence[Value]) -> list[float]:
    """The error, per output, that one rounding of the inputs makes in the reference's own answer."""
    furthest = [0.0] * len(want)
    for seed in range(TRIES):
        generator = np.random.default_rng(seed)
        answers = reference({name: moved(value, generator) for name, value in feeds.items()})
        for place, (other, usual) in enumerate(zip(answers, want)):
            furthest[place] = max(furthest[place], compare("", other, usual, Tolerance()).error)
    return furthest


def excused(output: Difference, shift: float) -> Difference:
    """An output that differs, taken as agreeing where rounding alone explains the difference."""
    if output.ok or not math.isfinite(output.error) or not output.error <= ALLOWANCE * shift < math.inf:
        return output
    return replace(
        output, ok=True, why=f"to rounding: one unit in the last place of the inputs moves it by {shift:.1e}"
    )
