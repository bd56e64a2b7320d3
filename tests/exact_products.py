"""ONNX Runtime as a reference for integer products on every CPU.

Its kernels for u8 times s8 add pairs of products in 16 bits, saturating, on x86 CPUs without VNNI (its
documentation on quantisation, "Considerations for x86 CPUs"). It is exact there as well when its optimiser
turns constant s8 weights into u8 ones, which a session option asks for.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from fusile.tools.engines import reference_saturates


def session(model: onnx.ModelProto | bytes, exact: bool) -> ort.InferenceSession:
    """A session without optimisations, or with those that make integer products exact."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # what some kernels answer depends on it
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    else:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def answers(model: onnx.ModelProto, values: Mapping[str, Any]) -> list[Any]:
    """The outputs of a model, its integer products exact."""
    if not values or not (saturates() and _multiplies_signed_bytes(model, values)):
        return list(session(model, exact=False).run(None, dict(values)))
    signed = {name: x for name, x in values.items() if np.asarray(x).dtype == np.int8}
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    inputs = [value for value in fixed.graph.input if value.name not in signed]
    del fixed.graph.input[:]
    fixed.graph.input.extend(inputs)
    fixed.graph.initializer.extend(numpy_helper.from_array(np.asarray(x), n) for n, x in signed.items())
    others = {name: x for name, x in values.items() if name not in signed}
    return list(session(fixed, exact=True).run(None, others))


@functools.cache
def saturates() -> bool:
    """Whether u8 times s8 is not exact on this CPU."""
    return reference_saturates()


def _multiplies_signed_bytes(model: onnx.ModelProto, values: Mapping[str, Any]) -> bool:
    """Whether there are signed bytes to multiply with others; two signed factors are exact as they are."""
    first, *others = (np.asarray(x).dtype for x in values.values())
    constants = any(t.data_type == TensorProto.INT8 for t in model.graph.initializer)
    return first != np.int8 and (constants or np.dtype(np.int8) in others)
