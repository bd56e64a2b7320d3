"""One-node models and the two ways to run them: our interpreter, and onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import fusile.frontend
from fusile.ir.interpret import run_program
from fusile.passes.to_tensor import defined, lower

Array = np.ndarray


@dataclass(frozen=True)
class Case:
    """One node: its inputs (None where absent), attributes; those in `fixed` are its constants."""

    name: str
    op: str
    inputs: tuple[Array | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    fixed: tuple[int, ...] = ()
    outputs: int = 1
    opset: int = 21
    domain: str = ""
    version: int = 1
    """The version of the domain, where it is not the standard one."""
    symbolic: bool = True
    """Whether the sizes of the first input may also be symbols."""
    axes: tuple[int, ...] | None = None
    """Which of its sizes then are; all where None."""
    tolerance: float = 1e-5

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


def one_node(case: Case, symbols: bool = False) -> onnx.ModelProto:
    """The model of a case; with `symbols`, the sizes above 1 of its first input are named `n<size>`, or those
    at the axes of the case.
    """
    names = ["" if x is None else f"x{k}" for k, x in enumerate(case.inputs)]
    outputs = [f"y{k}" for k in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, domain=case.domain, **case.attributes)
    inputs, constants = [], []
    for k, x in enumerate(case.inputs):
        if x is None:
            continue
        if k in case.fixed:
            constants.append(numpy_helper.from_array(np.asarray(x), names[k]))
            continue
        named = range(x.ndim) if case.axes is None else case.axes
        free = {a for a in named if symbols and k == 0 and x.shape[a] > 1}
        shape: list[int | str] = [f"n{n}" if a in free else n for a, n in enumerate(x.shape)]
        inputs.append(
            helper.make_tensor_value_info(names[k], helper.np_dtype_to_tensor_dtype(x.dtype), shape)
        )
    results = [helper.make_empty_tensor_value_info(y) for y in outputs]
    graph = helper.make_graph([node], "one_node", inputs, results, constants)
    opsets = [helper.make_opsetid("", case.opset)]
    if case.domain:
        opsets.append(helper.make_opsetid(case.domain, case.version))
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def feeds(case: Case) -> dict[str, Array]:
    return {
        f"x{k}": np.asarray(x) for k, x in enumerate(case.inputs) if x is not None and k not in case.fixed
    }


def interpreted(model: onnx.ModelProto, values: Sequence[Array]) -> list[Array]:
    """The outputs of a model by our definitions and the interpreter."""
    canonical = fusile.frontend.load(model)
    fusile.frontend.expand(canonical, defined)
    return run_program(lower(canonical), values)


def by_onnxruntime(model: onnx.ModelProto, values: Mapping[str, Array]) -> list[Array]:
    """The outputs of a model by onnxruntime, unoptimised."""
    import exact_products

    return [np.asarray(y) for y in exact_products.answers(model, values)]


def assert_same(got: Sequence[Array], wanted: Sequence[Array], rtol: float, atol: float) -> None:
    """Same number of outputs, types and shapes, and values within a tolerance (exact for integers)."""
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        if ours.dtype.kind in "biu":
            np.testing.assert_array_equal(ours, theirs)
        else:
            wide = [a.astype(np.float64) for a in (ours, theirs)]
            np.testing.assert_allclose(wide[0], wide[1], rtol=rtol, atol=atol)
