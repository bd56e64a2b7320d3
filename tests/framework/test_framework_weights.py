"""The weights file: its header, what it refuses, and training that moves between frameworks by moving it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from framework_models import (
    FRAMEWORKS,
    Array,
    Draw,
    agrees,
    call,
    close,
    conv_net,
    emit,
    model,
    module_of,
    node,
    transformer,
)
from onnx import TensorProto
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fusile.backends.framework import weights as wf
from fusile.errors import UsageError

NETS = {"conv": conv_net, "transformer": transformer}


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, "np") as file:
        found = file.metadata()
    assert found.pop("fusile.format") == "1"
    return {name: json.loads(text) for name, text in found.items()}


@pytest.mark.parametrize("net", NETS)
def test_one_file_serves_both(net: str, tmp_path: Path) -> None:
    source, feeds = NETS[net]()
    for to in FRAMEWORKS:
        agrees(source, feeds, to, tmp_path / to)
    files = [(tmp_path / to / "weights.safetensors").read_bytes() for to in FRAMEWORKS]
    assert files[0] == files[1]


def test_header_of_a_conv_net(tmp_path: Path) -> None:
    report = emit(conv_net()[0], "torch", tmp_path)
    records = header(tmp_path / "weights.safetensors")
    folded = records["stem.0.weight.folded"]
    assert folded == {
        "initializer": "stem.0.weight",
        "perm": None,
        "role": "param",
        "folded": ["batch normalisation of unknown name"],
        "alias_of": None,
        "storage": None,
    }
    assert records["stem.0.bias.folded"]["initializer"] == "stem.0.weight_bias"
    assert {name for name, record in records.items() if record["role"] == "buffer"} == {
        "stem.1.running_mean",
        "stem.1.running_var",
    }
    assert [name for name, _ in report.buffers] == ["stem.1.running_mean", "stem.1.running_var"]
    assert not report.constants
    assert len(report.parameters) == 10


def test_names_and_layouts_of_the_source_come_back(tmp_path: Path) -> None:
    source, _ = transformer()
    emit(source, "torch", tmp_path)
    records = header(tmp_path / "weights.safetensors")
    assert records["m.attn.q.weight"]["initializer"] == "onnx::MatMul_0"
    assert records["m.attn.q.weight"]["perm"] == [1, 0]
    stored = load_file(tmp_path / "weights.safetensors")
    own = next(t for t in source.graph.initializer if t.name == "onnx::MatMul_0")
    assert np.array_equal(stored["m.attn.q.weight"], np.frombuffer(own.raw_data, "f4").reshape(16, 16).T)


@pytest.mark.parametrize("net", NETS)
def test_a_step_in_keras_moves_to_torch_and_back(net: str, tmp_path: Path) -> None:
    import keras
    import tensorflow
    import torch

    source, feeds = NETS[net]()
    modules = {}
    for to in FRAMEWORKS:
        emit(source, to, tmp_path / to)
        modules[to] = module_of(tmp_path / to)
    before = load_file(tmp_path / "keras" / "weights.safetensors")
    (x,) = feeds.values()
    trained = modules["keras"].load()
    target = Draw(5)(*call("keras", trained, [x])[0].shape)
    trained.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse")
    trained.fit(tensorflow.constant(x), target, verbose=0, batch_size=len(x))
    path = tmp_path / "trained.safetensors"
    modules["keras"].save_weights(trained, path)
    _all_learnt(modules["keras"], before, load_file(path))
    assert header(path) == header(tmp_path / "keras" / "weights.safetensors")
    moved = modules["torch"].load(path)
    close(call("torch", moved, [x]), call("keras", trained, [x]), 1e-5)

    moved.train()
    optimiser = torch.optim.SGD(moved.parameters(), 0.05)
    ((moved(torch.from_numpy(x)) - torch.from_numpy(target)) ** 2).mean().backward()
    optimiser.step()
    modules["torch"].save_weights(moved, path)
    _all_learnt(modules["torch"], before, load_file(path))
    close(call("keras", modules["keras"].load(path), [x]), call("torch", moved.eval(), [x]), 1e-5)


def _all_learnt(module: Any, before: dict[str, Array], after: dict[str, Array]) -> None:
    assert set(before) == set(after)
    # What adds the same to all scores of a query is nothing to the softmax: a key's bias has no gradient.
    learnable = {place.name for place in module.PARAMETERS.values()} - {"m.attn.k.bias"}
    assert learnable
    assert not [name for name in learnable if np.array_equal(before[name], after[name])]


@pytest.mark.parametrize("net", NETS)
def test_gradients_agree(net: str, tmp_path: Path) -> None:
    import tensorflow
    import torch

    source, feeds = NETS[net]()
    (x,) = feeds.values()
    found: dict[str, dict[str, Array]] = {}
    for to in FRAMEWORKS:
        emit(source, to, tmp_path / to)
        module = module_of(tmp_path / to)
        net_ = module.load()
        paths = module.PARAMETERS
        if to == "torch":
            net_(torch.from_numpy(x)).square().mean().backward()
            parameters = dict(net_.named_parameters())
            gradients = {path: parameters[path].grad.numpy() for path in paths}
        else:
            with tensorflow.GradientTape() as tape:
                loss = tensorflow.reduce_mean(tensorflow.square(net_(tensorflow.constant(x))))
            variables = [module.attrgetter(path)(net_) for path in paths]
            made = tape.gradient(loss, [variable.value for variable in variables])
            gradients = {
                path: np.asarray(tensorflow.convert_to_tensor(g)) for path, g in zip(paths, made, strict=True)
            }
        found[to] = {}
        for path, gradient in gradients.items():
            place = paths[path]
            stored = np.zeros(load_file(tmp_path / to / "weights.safetensors")[place.name].shape, "f4")
            tensors = (
                (torch.from_numpy(stored), torch.from_numpy(gradient))
                if to == "torch"
                else (stored, gradient)
            )
            place.write(*tensors)
            found[to][place.name] = stored
    assert found["torch"].keys() == found["keras"].keys()
    for name, gradient in found["torch"].items():
        close([found["keras"][name]], [gradient], 1e-4)


@pytest.mark.parametrize("to", FRAMEWORKS)
def test_files_that_do_not_fit_are_refused(to: str, tmp_path: Path) -> None:
    emit(conv_net()[0], to, tmp_path)
    module = module_of(tmp_path)
    good = load_file(tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", "np") as file:
        records = file.metadata()
    path = tmp_path / "other.safetensors"

    def refused(tensors: dict[str, Array]) -> str:
        save_file(tensors, path, records)
        with pytest.raises(ValueError, match="does not fit") as error:
            module.load(path)
        return str(error.value)

    assert "'dw.bias' is missing" in refused({k: v for k, v in good.items() if k != "dw.bias"})
    assert "'more' is unknown" in refused({**good, "more": np.zeros(1, "f4")})
    assert "'dw.bias' has the shape" in refused({**good, "dw.bias": np.zeros(9, "f4")})
    bare = {name.removesuffix(".folded"): tensor for name, tensor in good.items()}
    assert "'stem.0.weight' has nothing folded in" in refused(bare)
    apart = {("dw.weight.folded" if name == "dw.weight" else name): tensor for name, tensor in good.items()}
    assert "'dw.weight.folded' has" in refused(apart)


def test_an_original_module_refuses_folded_tensors(tmp_path: Path) -> None:
    import torch
    from torch import nn

    emit(conv_net()[0], "torch", tmp_path)
    path = tmp_path / "weights.safetensors"
    original = nn.ModuleDict(
        {
            "stem": nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)),
            "dw": nn.Conv2d(8, 8, 3, groups=8),
            "gate": nn.Conv2d(8, 8, 1),
            "head": nn.Linear(8, 5),
        }
    )
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    with pytest.raises(UsageError, match=r"stem\.0\.weight\.folded.*is folded"):
        wf.load_into(original, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in original.state_dict().items())


def test_an_original_module_takes_its_own_tensors(tmp_path: Path) -> None:
    import torch
    from torch import nn

    d = Draw(3)
    weights = {"a.weight": d(4, 3), "a.bias": d(4)}
    emit(
        model([node("Gemm", ["x", "a.weight", "a.bias"], transB=1)], {"x": d(2, 3)}, weights),
        "torch",
        tmp_path,
    )
    original = nn.ModuleDict({"a": nn.Linear(3, 4)})
    wf.load_into(original, tmp_path / "weights.safetensors")
    assert torch.equal(original["a"].weight, torch.from_numpy(weights["a.weight"]))


@pytest.mark.parametrize("to", FRAMEWORKS)
def test_tied_weights_are_one_tensor(to: str, tmp_path: Path) -> None:
    report = emit(transformer()[0], to, tmp_path)
    assert [name for name, _ in report.parameters].count("m.embed.weight") == 1
    module = module_of(tmp_path)
    holders = [path for path, place in module.PARAMETERS.items() if place.name == "m.embed.weight"]
    assert len(holders) == 1


def test_copies_that_began_equal_are_separate(tmp_path: Path) -> None:
    """An exporter merges biases of zeros: each layer gets its own again."""
    d = Draw(4)
    weights = {"a.weight": d(4, 3), "b.weight": d(4, 4), "a.bias": np.zeros(4, "f4"), "table": d(4)}
    nodes = [
        node("Identity", ["a.bias"], ["b.bias"]),
        node("Identity", ["table"], ["other"]),
        node("Gemm", ["x", "a.weight", "a.bias"], ["h"], transB=1),
        node("Gemm", ["h", "b.weight", "b.bias"], ["i"], transB=1),
        node("Add", ["i", "table"], ["j"]),
        node("Mul", ["j", "other"], ["y"]),
    ]
    source, feeds = model(nodes, {"x": d(2, 3)}, weights), {"x": d(2, 3)}
    agrees(source, feeds, "torch", tmp_path)
    records = header(tmp_path / "weights.safetensors")
    assert {"a.bias", "b.bias"} <= set(load_file(tmp_path / "weights.safetensors"))
    assert records["other"]["alias_of"] == "table"


def test_roles(tmp_path: Path) -> None:
    d = Draw(6)
    weights = {
        "gain": d(3, 1, 1),
        "val_1": np.arange(8, dtype="f4").reshape(8, 1),
        "val_2": d(8),
        "val_3": d(4),
        "rope.inv_freq": d(4),
        "order": np.arange(20),
        "half": np.array(0.5, "f4"),
        "block.scale.weight": np.array([2.0], "f4"),
    }
    nodes = [
        node("Mul", ["x", "gain"], ["a"]),
        node("Add", ["a", "val_1"], ["b"]),
        node("Add", ["b", "val_2"], ["c"]),
        node("Mul", ["t", "val_3"], ["d"]),
        node("Mul", ["d", "rope.inv_freq"], ["e"]),
        node("Sin", ["e"], ["f"]),
        node("Mul", ["c", "half"], ["g"]),
        node("Mul", ["g", "block.scale.weight"], ["h"]),
        node("Gather", ["f", "order"], ["i"], axis=0),
        node("ReduceSum", ["i"], ["j"]),
        node("Add", ["h", "j"], ["y"]),
    ]
    feeds = {"x": d(1, 3, 8, 8), "t": d(20, 4)}
    report = emit(model(nodes, feeds, weights), "torch", tmp_path)
    assert {name for name, _ in report.parameters} == {"gain", "val_2", "block.scale.weight"}
    assert {name for name, _ in report.buffers} == {"rope.inv_freq"}
    assert {name for name, _ in report.constants} == {"val_1", "val_3", "order"}


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(UsageError, match="no safetensors file"):
        wf.read_header(path)
    with pytest.raises(UsageError, match="cannot be read"):
        wf.read_header(tmp_path / "absent")


def test_nothing_is_left_of_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(wf, "_write", fail)
    with pytest.raises(UsageError, match="cannot be written to: full"):
        emit(conv_net()[0], "torch", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_half_precision(tmp_path: Path) -> None:
    d = Draw(8)
    weights = {"c.weight": d(4, 3, 3, 3, dtype="float16"), "c.bias": d(4, dtype="float16")}
    source = model(
        [node("Conv", ["x", "c.weight", "c.bias"], ["a"]), node("Relu", ["a"])],
        {"x": (TensorProto.FLOAT16, [1, 3, 8, 8])},
        weights,
    )
    for to in FRAMEWORKS:
        agrees(source, {"x": d(1, 3, 8, 8, dtype="float16")}, to, tmp_path / to, 1e-2)
