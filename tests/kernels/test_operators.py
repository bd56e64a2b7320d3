"""The definitions of operators against the ONNX project's node cases: a fixed sample, or all with --all."""

from __future__ import annotations

import functools
import warnings
import zlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase as NodeCase
from operator_models import assert_same

import fusile.frontend
from fusile.errors import UnsupportedError
from fusile.ir.interpret import run_program
from fusile.passes.to_tensor import defined, lower

SAMPLE = 250
REFUSED = {
    "test_training_dropout": "draws random numbers",
    **{
        f"test_bernoulli{kind}{form}": "drawn from numpy's global stream"
        for kind in ("", "_double", "_seed")
        for form in ("", "_expanded")
    },
    "test_training_dropout_default": "draws random numbers",
    "test_training_dropout_default_mask": "draws random numbers",
    "test_training_dropout_mask": "draws random numbers",
    "test_identity_sequence": "a sequence is no tensor",
    "test_identity_opt": "an optional is no tensor",
}
"""Cases of defined operators that a definition in tensors cannot hold."""
LOOSE = {"float16": (2e-3, 1e-3), "bfloat16": (2e-2, 8e-3)}
"""Relative and absolute tolerance per small type: some references round every step, others only the last."""
ATOL = {"test_dft": 1e-5, "test_stft": 2e-4}
"""Sums of many terms that cancel."""


@functools.cache
def node_cases() -> dict[str, NodeCase]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_model_tests(kind="node")}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "node_case" in metafunc.fixturenames:
        names = sorted(node_cases(), key=lambda name: zlib.crc32(name.encode()))
        if not metafunc.config.getoption("--all"):
            names = [name for name in names if _looks_defined(node_cases()[name].model)][:SAMPLE]
        metafunc.parametrize("node_case", sorted(names))


def _looks_defined(model: onnx.ModelProto) -> bool:
    return all(defined(node.domain, node.op_type) for node in model.graph.node)


def array(value: object) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def canonical(model: onnx.ModelProto) -> ir.Model:
    graph = fusile.frontend.load(model)
    fusile.frontend.expand(graph, defined)
    return graph


def with_constants(model: onnx.ModelProto, values: list[np.ndarray]) -> onnx.ModelProto:
    """The model with its small inputs fixed: axes, sizes and the like, which cases pass as inputs."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for info, value in zip(model.graph.input, values, strict=True):
        small = value.dtype.kind in "iu" and value.size < 64
        if small or value.ndim == 0 or info.name in ("roi", "scales"):
            out.graph.initializer.append(numpy_helper.from_array(value, info.name))
    return out


def test_node(node_case: str) -> None:
    case = node_cases()[node_case]
    if node_case in REFUSED:
        pytest.skip(REFUSED[node_case])
    graph = canonical(case.model)
    if not all(defined(node.domain, node.op_type) for node in graph.graph):
        pytest.skip("no definition")
    for given, wanted in case.data_sets:
        values = [array(v) for v in given]
        try:
            program = lower(graph)
        except UnsupportedError:
            program = lower(canonical(with_constants(case.model, values)))
        names = [info.name for info in case.model.graph.input]
        fed = dict(zip(names, values, strict=False))
        got = run_program(program, [fed[t.name] for t in program.inputs])
        for ours, theirs in zip(got, (array(w) for w in wanted), strict=True):
            rtol, atol = LOOSE.get(theirs.dtype.name, (case.rtol, case.atol))
            atol = max([atol, *(extra for name, extra in ATOL.items() if node_case.startswith(name))])
            assert_same([ours], [theirs], rtol, atol)
