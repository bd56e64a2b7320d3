"""ONNX Runtime's own operators against ONNX Runtime, by the interpreter: with fixed sizes, and with symbols
for those of the first input.
"""

from __future__ import annotations

from collections import Counter

import pytest
from contrib_cases import CASES, MICROSOFT, assert_close
from operator_models import Case, by_onnxruntime, feeds, interpreted, one_node

from fusile.frontend.rules_contrib import RULES
from fusile.kernels import families
from fusile.kernels.registry import OPERATORS

pytest.importorskip("onnxruntime")

UNCHECKED = frozenset({"LayerNormalization", "Unique"})
"""What no kernel of ONNX Runtime's CPU runs in this domain, or another table covers."""


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("sizes", ["fixed", "symbols"])
def test_contrib(case: Case, sizes: str) -> None:
    if sizes == "symbols" and not case.symbolic:
        pytest.skip("takes fixed sizes")
    wanted = by_onnxruntime(one_node(case), feeds(case))
    got = interpreted(one_node(case, symbols=sizes == "symbols"), list(feeds(case).values()))
    assert_close(case, got, wanted)


def test_every_operator_has_five_cases() -> None:
    families.load_all()
    counts = Counter(case.op for case in CASES)
    known = {name for domain, name in OPERATORS if domain == MICROSOFT}
    known |= {rule.op_type for rule in RULES if rule.domain == MICROSOFT}
    assert {name for name in known - UNCHECKED if counts[name] < 5} <= {"SimplifiedLayerNormalization"}
