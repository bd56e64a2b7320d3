"""ONNX Runtime's own operators against ONNX Runtime, by the interpreter: with fixed sizes, and with symbols
for those of the first input.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from contrib_cases import CASES, MICROSOFT
from operator_models import Array, Case, by_onnxruntime, feeds, interpreted, one_node

from fusile.frontend.rules_contrib import RULES
from fusile.kernels.registry import OPERATORS

pytest.importorskip("onnxruntime")

INEXACT = frozenset({"QLinearAdd", "QLinearMul", "QLinearSoftmax", "QLinearSigmoid"})
"""Operators whose result may miss ONNX Runtime's by one step: its kernels add and multiply floats in an order
of their own, with or without fused steps, or go through a table of floats.
"""

UNCHECKED = frozenset({"LayerNormalization", "Unique"})
"""What no kernel of ONNX Runtime's CPU runs in this domain, or another table covers."""


def assert_close(case: Case, got: list[Array], wanted: list[Array]) -> None:
    """Types and shapes the same; integers exact, or within a step for the inexact ones."""
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        if ours.dtype.kind in "biu":
            away = np.abs(ours.astype(np.int64) - theirs.astype(np.int64))
            assert int(away.max(initial=0)) <= (case.op in INEXACT)
            assert np.count_nonzero(away) <= max(1, away.size // 1000)
        else:
            finite = theirs[np.isfinite(theirs)].astype(np.float64)
            largest = max(float(np.abs(finite).max(initial=0.0)), 1e-3)
            limit = case.tolerance * (100 if ours.dtype.itemsize == 2 else 1)
            wide = [a.astype(np.float64) for a in (ours, theirs)]
            np.testing.assert_allclose(wide[0], wide[1], rtol=limit, atol=limit * largest)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("sizes", ["fixed", "symbols"])
def test_contrib(case: Case, sizes: str) -> None:
    if sizes == "symbols" and not case.symbolic:
        pytest.skip("takes fixed sizes")
    wanted = by_onnxruntime(one_node(case), feeds(case))
    got = interpreted(one_node(case, symbols=sizes == "symbols"), list(feeds(case).values()))
    assert_close(case, got, wanted)


def test_every_operator_has_five_cases() -> None:
    counts = Counter(case.op for case in CASES)
    known = {name for domain, name in OPERATORS if domain == MICROSOFT}
    known |= {rule.op_type for rule in RULES if rule.domain == MICROSOFT}
    assert {name for name in known - UNCHECKED if counts[name] < 5} <= {"SimplifiedLayerNormalization"}
