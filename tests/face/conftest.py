"""Small models for the tests of the public face.

With FUSILE_TEST_DRIVER=fake ONNX Runtime stands behind the face, so that the face is judged alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

if os.environ.get("FUSILE_TEST_DRIVER") == "fake":
    import fusile

    stand_in = ModuleType("fusile.driver")
    sys.modules["fusile.driver"] = stand_in
    fusile.__dict__["driver"] = stand_in
    from face_fakes import FakeDriver

    import fusile.artefacts

    # What was compiled before would be answered without the driver.
    fusile.artefacts.find = lambda source, options: None  # type: ignore[assignment]
    for method in ("compile", "build", "check", "explain", "load"):
        setattr(stand_in, method, getattr(FakeDriver(), method))


@pytest.fixture(scope="session")
def small() -> onnx.ModelProto:
    """z = relu(x + w), y = x + w, with a symbolic first dimension and all the metadata there is."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "w"], ["y"], name="add"),
            helper.make_node("Relu", ["y"], ["z"], name="relu"),
        ],
        "small graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3]),
        ],
        [numpy_helper.from_array(np.array([1, -2, 3], np.float32), "w")],
        doc_string="what the graph does",
    )
    model = helper.make_model(
        graph,
        producer_name="a producer",
        domain="org.example",
        doc_string="what the model does",
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    model.model_version = 7
    helper.set_model_props(model, {"key": "value"})
    return model


@pytest.fixture(scope="session")
def small_bytes(small: onnx.ModelProto) -> bytes:
    return bytes(small.SerializeToString())


@pytest.fixture
def small_path(small_bytes: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    path.write_bytes(small_bytes)
    return path


def one_node_model(op_type: str, domain: str = "", name: str = "the node", value: str = "y") -> bytes:
    """A model of one node over float[2, 3]."""
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x"], [value], name=name, domain=domain)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, [2, 3])],
    )
    imports = [helper.make_opsetid("", 18)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    return bytes(helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString())


@pytest.fixture
def node_model() -> object:
    return one_node_model
