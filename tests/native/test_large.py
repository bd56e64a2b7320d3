"""A model larger than memory should be asked for: weights in a file beside it, mapped, never held twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

MEGABYTE = 1 << 20
LAYERS, WIDTH = 12, 8192  # 3 GiB of floats
SMALL = (12, 256)
SPARE = 500 * MEGABYTE

RUN = """
import re, sys
import numpy as np
import fusile

layers, width = int(sys.argv[2]), int(sys.argv[3])
session = fusile.InferenceSession(sys.argv[1])
x = np.linspace(-1, 1, width, dtype=np.float32).reshape(1, width)
y = session.run(None, {"x": x})[0]
np.save(sys.argv[4], y)
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read()).group(1))
"""


def _model(folder: Path, layers: int, width: int) -> Path:
    """`layers` products with a square matrix each and an addition; data in one file, in order."""
    tile = np.random.default_rng(0).standard_normal((256, width)).astype(np.float32) / width
    tensors = []
    with (folder / "weights.bin").open("wb") as file:
        for layer in range(layers):
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=(width, width))
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", "weights.bin"),
                ("offset", file.tell()),
                ("length", 4 * width * width),
            ):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            for row in range(0, width, 256):
                file.write((tile * (1 + 0.001 * layer - 0.00001 * row)).tobytes())
    nodes = []
    for layer in range(layers):
        source = "x" if layer == 0 else f"t{layer - 1}"
        nodes += [
            helper.make_node("MatMul", [source, f"w{layer}"], [f"m{layer}"]),
            helper.make_node("Add", [f"m{layer}", "x"], [f"t{layer}" if layer < layers - 1 else "y"]),
        ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in "xy"]
    graph = helper.make_graph(nodes, "large", ports[:1], ports[1:], tensors)
    path = folder / "model.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def _expected(folder: Path, layers: int, width: int) -> np.ndarray:
    weights = np.memmap(folder / "weights.bin", np.float32, "r", shape=(layers, width, width))
    x = np.linspace(-1, 1, width, dtype=np.float32).reshape(1, width)
    y = x
    for layer in range(layers):
        y = y @ weights[layer] + x
    return y


def _run(path: Path, layers: int, width: int, folder: Path, *, cached: bool) -> tuple[np.ndarray, int]:
    """The answer of a fresh process, and the most memory that it had."""
    answer = folder / "y.npy"
    command = [sys.executable, "-c", RUN, str(path), str(layers), str(width), str(answer)]
    environment = os.environ | {"FUSILE_CACHE_DIR": str(folder / "cache")}
    environment["FUSILE_CACHE"] = "1" if cached else "0"
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return np.load(answer), int(done.stdout) * 1024


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "width"), [SMALL, (LAYERS, WIDTH)], ids=["small", "3 GB"])
def test_memory_stays_within_the_weights(layers: int, width: int, tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("the peak of memory is read from /proc")
    size = 4 * layers * width * width
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if shutil.disk_usage(tmp_path).free < 3 * size or free < 1.5 * size:
        pytest.skip("not enough disk or memory")
    try:
        path = _model(tmp_path, layers, width)
        want = _expected(tmp_path, layers, width)
        for start in ("cold", "warm", "no cache"):
            got, peak = _run(path, layers, width, tmp_path, cached=start != "no cache")
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * float(np.abs(want).max()))
            print(f"{start}: peak {peak // MEGABYTE} MB for {size // MEGABYTE} MB of weights")
            assert peak <= size + SPARE, f"{peak // MEGABYTE} MB for {size // MEGABYTE} MB of weights"
    finally:
        for large in (tmp_path / "weights.bin", tmp_path / "cache"):
            shutil.rmtree(large, ignore_errors=True) if large.is_dir() else large.unlink(missing_ok=True)


def test_raw_data_at_any_offset_are_packed_alike(tmp_path: Path) -> None:
    """Files align tensors as they like."""
    import fusile

    values = np.random.default_rng(1).standard_normal((65, 33)).astype(np.float32)
    answers = []
    for shift in (0, 1, 2, 4, 17, 64):
        (tmp_path / "w.bin").write_bytes(bytes(shift) + values.tobytes())
        tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=values.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", shift), ("length", values.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 65])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 33])],
            [tensor],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
        module = fusile.compile(tmp_path / "m.onnx")
        answers.append(np.asarray(module(np.ones((3, 65), np.float32))))
    for answer in answers:
        np.testing.assert_allclose(answer.reshape(3, 33), np.ones((3, 65)) @ values, rtol=1e-4, atol=1e-4)
