"""What the tests of the Numba targets share: models, inputs for them, and how answers are judged."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from types import ModuleType

import numpy as np
import onnx
from edge_cases import CASES
from operator_models import Array, Case, assert_same, by_onnxruntime, feeds, one_node

from fusile import driver
from fusile.backends.numba.module import NumbaModule
from fusile.options import make_options
from fusile.runtime.module import Value

SAMPLE = 9
"""One in as many edge cases is tried where kernels have to be compiled."""


def sample(every: bool) -> list[Case]:
    """All edge cases, or some of every family."""
    return [c for c in CASES if every or zlib.crc32(str(c).encode()) % SAMPLE == 0]


def compiled(backend: ModuleType, model: onnx.ModelProto, target: str, **options: object) -> NumbaModule:
    """A model as a module of a Numba target, without the public face."""
    made = make_options(target=target, **options)
    plan = backend.plan_of(driver.graph(model.SerializeToString(), made), made)
    module: NumbaModule = backend.module(plan, made)
    return module


def in_order(module: NumbaModule, values: Mapping[str, Array]) -> list[Value]:
    return [values[port.name] for port in module.inputs]


def judge(backend: ModuleType, target: str, case: Case, symbols: bool) -> None:
    """An edge case on a target against onnxruntime."""
    wanted = by_onnxruntime(one_node(case), feeds(case))
    module = compiled(backend, one_node(case, symbols and case.symbolic), target)
    got = [np.asarray(y) for y in module.run(in_order(module, feeds(case)))]
    close(got, wanted, max(case.tolerance, 1e-5))


def close(got: Sequence[Array], wanted: Sequence[Array], tolerance: float = 2e-5) -> None:
    largest = max((float(np.max(np.abs(y))) for y in wanted if y.size and y.dtype.kind == "f"), default=1.0)
    limit = largest if np.isfinite(largest) else 1.0
    assert_same(got, wanted, rtol=tolerance, atol=tolerance * limit)


def inputs_of(model: onnx.ModelProto, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Array]:
    """Random inputs of a model for sizes of its symbols; integers are small and not zero."""
    rng = np.random.default_rng(seed)
    out: dict[str, Array] = {}
    constants = {t.name for t in model.graph.initializer}
    for value in model.graph.input:
        if value.name in constants:
            continue
        t = value.type.tensor_type
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in t.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(t.elem_type)
        drawn = rng.integers(1, 4, shape) if dtype.kind in "iu" else rng.standard_normal(shape)
        out[value.name] = np.asarray(drawn).astype(dtype)
    return out
