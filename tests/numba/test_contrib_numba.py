"""ONNX Runtime's operators in Numba source for a CPU, which the same definitions make: a sample of the table."""

from __future__ import annotations

import numpy as np
import pytest
from contrib_cases import assert_close, firsts
from numba_models import compiled, in_order
from operator_models import Case, by_onnxruntime, feeds, one_node

from fusile.backends import numba_cpu

SAMPLE = frozenset(
    """
    BiasGelu RotaryEmbedding QLinearAdd QLinearConcat DynamicQuantizeMatMul MatMulNBits GatherBlockQuantized
    MurmurHash3
    """.split()
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.getoption("--all")
    metafunc.parametrize("case", [c for c in firsts(1) if every or c.op in SAMPLE], ids=str)


def test_case(case: Case) -> None:
    wanted = by_onnxruntime(one_node(case), feeds(case))
    module = compiled(numba_cpu, one_node(case, case.symbolic), "numba")
    assert_close(case, [np.asarray(y) for y in module.run(in_order(module, feeds(case)))], wanted)
