"""Weights that replace a model's own: taken by name, laid out as the header says, refused where they do not
fit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import native_models as models
import numpy as np
import onnx
import pytest
from native_models import Array, Reference, assert_close, noise
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import fusile
from fusile.errors import UsageError

FLOAT = TensorProto.FLOAT
FEEDS = {"x": noise(1, 2, 3, 13, 17)}


def emitted(model: bytes, folder: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """The weights of the emitted PyTorch module, and the file's header."""
    fusile.emit(model, "torch", folder)
    path = folder / "weights.safetensors"
    with safe_open(path, "np") as file:
        return load_file(path), file.metadata()


def replaced(model: bytes, tensors: dict[str, Array]) -> bytes:
    """The model with other initialisers."""
    proto = onnx.load_model_from_string(model)
    for tensor in proto.graph.initializer:
        if tensor.name in tensors:
            tensor.CopyFrom(numpy_helper.from_array(tensors[tensor.name], tensor.name))
    return bytes(proto.SerializeToString())


def test_trained_weights_take_the_models_place(tmp_path: Path, reference: Reference) -> None:
    model = models.conv_net()
    tensors, header = emitted(model, tmp_path / "torch")
    trained = {name: array * np.float32(1.5) + np.float32(0.01) for name, array in tensors.items()}
    save_file(trained, tmp_path / "trained.safetensors", metadata=header)
    own = {json.loads(header[name])["initializer"]: array for name, array in trained.items()}
    wanted = reference(replaced(model, own), FEEDS)
    for _ in range(2):  # compiled, and out of the cache
        module = fusile.compile(model, weights=tmp_path / "trained.safetensors")
        assert_close(module(**FEEDS), wanted)
    assert_close(fusile.compile(model)(**FEEDS), reference(model, FEEDS))


def test_any_file_is_taken_by_the_names_of_the_model(tmp_path: Path, reference: Reference) -> None:
    """A file without a header of fusile's: the names are those of the model."""
    model = models.conv_net()
    tensors, header = emitted(model, tmp_path / "torch")
    assert {json.loads(header[name])["initializer"] for name in tensors} == {"w1", "b1", "w2", "w3", "b3"}
    trained = {name: array * 2 for name, array in tensors.items()}
    save_file(trained | {"bn.num_batches_tracked": np.array(7)}, tmp_path / "plain.safetensors")
    own = {json.loads(header[name])["initializer"]: array for name, array in trained.items()}
    module = fusile.compile(model, weights=tmp_path / "plain.safetensors")
    assert_close(module(**FEEDS), reference(replaced(model, own), FEEDS))


def linear() -> bytes:
    """A product whose weight an exporter transposed and renamed."""
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["a"], name="/fc/MatMul"),
        helper.make_node("Add", ["a", "fc.bias"], ["y"], name="/fc/Add"),
    ]
    weights = {"onnx::MatMul_7": noise(1, 12, 20), "fc.bias": noise(2, 20)}
    return models.make(nodes, {"x": (FLOAT, ["n", 12])}, {"y": (FLOAT, ["n", 20])}, weights)


def test_transposed_weights_are_turned_back(tmp_path: Path, reference: Reference) -> None:
    model, x = linear(), {"x": noise(3, 4, 12)}
    tensors, header = emitted(model, tmp_path / "torch")
    assert tensors["fc.weight"].shape == (20, 12)
    assert json.loads(header["fc.weight"])["perm"] == [1, 0]
    tensors["fc.weight"] = noise(9, 20, 12)
    for number, metadata in enumerate((header, None)):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path, metadata=metadata)
        wanted = reference(replaced(model, {"onnx::MatMul_7": np.ascontiguousarray(noise(9, 20, 12).T)}), x)
        assert_close(fusile.compile(model, weights=path)(**x), wanted)


def scaled(scale: float) -> bytes:
    nodes = [helper.make_node("Mul", ["x", "logit_scale"], ["y"], name="scale")]
    weights = {"logit_scale": np.array(scale, np.float32)}
    return models.make(nodes, {"x": (FLOAT, [5])}, {"y": (FLOAT, [5])}, weights)


def test_a_trained_scalar_is_compiled_in(tmp_path: Path) -> None:
    x = noise(1, 5)
    for scale in (3.0, 4.0):
        save_file({"logit_scale": np.array(scale, np.float32)}, tmp_path / "trained.safetensors")
        module = fusile.compile(scaled(2.0), weights=tmp_path / "trained.safetensors")
        np.testing.assert_array_equal(module(x)[0], x * np.float32(scale))
    np.testing.assert_array_equal(fusile.compile(scaled(2.0))(x)[0], x * 2)


def folded(bias: str) -> bytes:
    """A convolution; under this name of its bias an exporter says that a normalisation is folded into it."""
    nodes = [helper.make_node("Conv", ["x", "conv.weight", bias], ["y"], name="/conv/Conv")]
    weights = {"conv.weight": noise(1, 8, 3, 3, 3), bias: noise(2, 8)}
    return models.make(nodes, {"x": (FLOAT, [1, 3, 8, 8])}, {"y": (FLOAT, [1, 8, 6, 6])}, weights)


def test_folded_and_original_weights_do_not_take_each_others_place(tmp_path: Path) -> None:
    whole, original = folded("conv.weight_bias"), folded("conv.bias")
    tensors, _ = emitted(whole, tmp_path / "whole")
    assert set(tensors) == {"conv.weight.folded", "conv.bias.folded"}
    fusile.compile(whole, weights=tmp_path / "whole" / "weights.safetensors")
    with pytest.raises(UsageError, match="a module that keeps them apart cannot take it"):
        fusile.compile(original, weights=tmp_path / "whole" / "weights.safetensors")
    emitted(original, tmp_path / "original")
    with pytest.raises(UsageError, match="has the normalisation after it folded in, the file has not"):
        fusile.compile(whole, weights=tmp_path / "original" / "weights.safetensors")


def changed(tensors: dict[str, Array], name: str, array: Array | None) -> dict[str, Array]:
    left = {key: value for key, value in tensors.items() if key != name}
    return left if array is None else left | {name: array}


@pytest.mark.parametrize(
    ("name", "array", "text"),
    [
        ("w1", None, "'w1' is missing"),
        ("w9", np.zeros(3, np.float32), "the module has no 'w9'"),
        ("w1", np.zeros((12, 3, 3), np.float32), "does not fit"),
        ("w1", np.zeros((12, 3, 3, 3), np.float64), "does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, name: str, array: Array | None, text: str) -> None:
    model = models.conv_net()
    tensors, header = emitted(model, tmp_path / "torch")
    names = {json.loads(header[key])["initializer"]: key for key in tensors}
    path = tmp_path / "wrong.safetensors"
    save_file(changed(tensors, names.get(name, name), array), path, metadata=header)
    with pytest.raises(UsageError, match=text.replace("'w1'", f"'{names['w1']}'")):
        fusile.compile(model, weights=path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 40, (2**40).to_bytes(8, "little"), None])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "odd.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError):
        fusile.compile(models.conv_net(), weights=path)


@pytest.mark.parametrize("perm", [[0, 0], [5, 1], [1]])
def test_a_header_that_lies_is_refused(tmp_path: Path, perm: list[int]) -> None:
    tensors, header = emitted(linear(), tmp_path / "torch")
    record: dict[str, Any] = json.loads(header["fc.weight"]) | {"perm": perm}
    path = tmp_path / "lying.safetensors"
    save_file(tensors, path, metadata=header | {"fc.weight": json.dumps(record)})
    with pytest.raises(UsageError, match="is broken"):
        fusile.compile(linear(), weights=path)
