"""Classical models against onnxruntime: with fixed sizes, and with symbols for the first input's."""

from __future__ import annotations

import classical_cases
import forest_cases
import numpy as np
import pytest
from operator_models import Case, assert_same, by_onnxruntime, feeds, interpreted, one_node

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("case", [*classical_cases.CASES, *forest_cases.CASES], ids=str)
@pytest.mark.parametrize("sizes", ["fixed", "symbols"])
def test_classical(case: Case, sizes: str) -> None:
    if sizes == "symbols" and not case.symbolic:
        pytest.skip("takes fixed sizes")
    wanted = by_onnxruntime(one_node(case), feeds(case))
    got = interpreted(one_node(case, symbols=sizes == "symbols"), list(feeds(case).values()))
    largest = max(
        (float(np.nanmax(np.abs(y))) for y in wanted if y.size and y.dtype.kind == "f"), default=1.0
    )
    limit = largest if np.isfinite(largest) else 1.0
    assert_same(got, wanted, rtol=case.tolerance, atol=case.tolerance * limit)
