"""Whole models from the folder that --models names, on every target; without the option nothing runs here."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

import fusile
from fusile import driver
from fusile.errors import UnsupportedError
from fusile.options import make_options
from fusile.tools.inputs import draw_accepted


def supported(path: Path, target: str) -> None:
    """Skip a model that the target refuses, with its reasons."""
    report = fusile.check(path, target=target)
    if not report.supported:
        pytest.skip("; ".join(str(gap) for gap in report.gaps))


@pytest.mark.parametrize("target", ["native", "numba", "torch", "keras"])
def test_answers_agree_with_onnxruntime(model_path: Path, target: str) -> None:
    supported(model_path, target)
    fusile.verify(model_path, target=target, seeds=(0, 1), search=False).require()


def test_answers_are_the_same_bits_for_any_number_of_threads(model_path: Path) -> None:
    supported(model_path, "native")
    alone = fusile.compile(model_path, threads=1)
    feeds, expected = draw_accepted(alone.inputs, 0, None, lambda f: alone(**f), (fusile.FusileError,))
    for threads in (2, 3):
        for got, want in zip(fusile.compile(model_path, threads=threads)(**feeds), expected):
            np.testing.assert_array_equal(got, want)


def test_cuda_kernels_compile_to_ptx(model_path: Path) -> None:
    pytest.importorskip("numba.cuda")
    numba_cuda = importlib.import_module("fusile.backends.numba_cuda")
    options = make_options(target="cuda")
    try:
        plan = numba_cuda.plan_of(driver.graph(model_path, options), options)
    except UnsupportedError as error:
        pytest.skip(str(error))
    found = numba_cuda.compile_ptx(plan)
    assert found
    for name, text in found.items():
        assert ".target sm_90" in text, name
