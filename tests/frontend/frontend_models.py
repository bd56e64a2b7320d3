"""Small models for the tests of the frontend, and running them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64

Values = list[Any]


def info(
    name: str, shape: Sequence[int | str | None] | None = None, dtype: int = FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str | onnx.ValueInfoProto],
    *,
    opset: int = 18,
    weights: Mapping[str, np.ndarray] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model of one graph. Outputs given by name are of unknown type."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        list(inputs),
        [out if isinstance(out, onnx.ValueInfoProto) else onnx.ValueInfoProto(name=out) for out in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, version) for domain, version in (domains or {}).items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))


def peak_mib() -> int:
    """The most memory that this process has had, in MiB. What getrusage says includes the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def chain(length: int = 3, opset: int = 18) -> onnx.ModelProto:
    """x -> Relu -> ... -> y."""
    names = ["x", *(f"v{index}" for index in range(length - 1)), "y"]
    nodes = [helper.make_node("Relu", [names[i]], [names[i + 1]], f"n{i}") for i in range(length)]
    return model(nodes, [info("x", [2, 3])], [info("y", [2, 3])], opset=opset)


def run(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> Values:
    """The model's outputs from ONNX Runtime without optimisations; from ONNX's reference where it has a gap.

    ONNX Runtime lags behind with kernels of the newest versions; where those differ in types alone, it runs
    them under an older opset.
    """
    import onnx.reference  # here, as the tests of memory want none of this

    error: Exception | None = None
    for opset in (None, 25, 21, 18):
        candidate = onnx.ModelProto()
        candidate.CopyFrom(proto)
        for item in candidate.opset_import:
            if opset and not item.domain:
                item.version = min(opset, item.version)
        try:
            return _run_onnxruntime(candidate, feeds)
        except Exception as failure:  # the library's own classes are not public
            error = error or failure
    try:
        return list(onnx.reference.ReferenceEvaluator(proto).run(None, dict(feeds)))
    except Exception:
        assert error is not None
        raise error from None


def _run_onnxruntime(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> Values:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feeds)))


def assert_same(got: Any, wanted: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Equal up to rounding, through lists, with None for an absent optional."""
    if isinstance(wanted, list | tuple):
        if not isinstance(got, list | tuple):
            got = [got]
        if len(got) == 1 and len(wanted) != 1 and isinstance(got[0], list):
            got = got[0]  # the reference wraps an optional sequence once more
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted):
            assert_same(one, other, rtol, atol)
        return
    if wanted is None or isinstance(wanted, dict):
        assert got == wanted
        return
    if isinstance(got, list) and len(got) == 1:
        got = got[0]
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape
    if wanted.dtype.kind in "OUS":
        assert got.astype(str).tolist() == wanted.astype(str).tolist()
    elif wanted.dtype.kind == "c":
        np.testing.assert_allclose(got, wanted, rtol, atol)
    else:
        np.testing.assert_allclose(got.astype(np.float64), wanted.astype(np.float64), rtol, atol)
