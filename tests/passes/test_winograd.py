"""Winograd's algorithm: the matrices in exact arithmetic, the rewritten convolutions against numpy in float64."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import fusile
from fusile import driver
from fusile.ir.tensor import Program
from fusile.options import Options
from fusile.passes import winograd
from fusile.target import for_cpu

Array = np.ndarray


def times(matrix: winograd.Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


@pytest.mark.parametrize("m", winograd.POINTS)
def test_the_matrices_filter_exactly(m: int) -> None:
    draw = np.random.default_rng(m)
    t = winograd.transforms(m)
    for _ in range(20):
        x = [Fraction(int(v)) for v in draw.integers(-9, 10, m + 2)]
        g = [Fraction(int(v)) for v in draw.integers(-9, 10, 3)]
        product = [a * b for a, b in zip(times(t.inputs, x), times(t.filters, g), strict=True)]
        assert times(t.outputs, product) == [sum(x[i + k] * g[k] for k in range(3)) for i in range(m)]


def model(
    channels: int, filters: int, space: tuple[int | str, ...], pads: int = 1, *, seed: int = 0, batch: int = 1
) -> onnx.ModelProto:
    """A Conv with windows of three and a Relu."""
    draw = np.random.default_rng(seed)
    rank = len(space)
    w = draw.standard_normal((filters, channels, *(3,) * rank)).astype(np.float32)
    w /= np.sqrt(channels * 3**rank)
    b = draw.standard_normal(filters).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[pads] * (2 * rank), name="conv"),
        helper.make_node("Relu", ["c"], ["y"], name="relu"),
    ]
    x = helper.make_tensor_value_info("x", 1, [batch, channels, *space])
    y = helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph(
        nodes, "g", [x], [y], [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def weights(m: onnx.ModelProto) -> tuple[Array, Array]:
    w, b = (numpy_helper.to_array(t) for t in m.graph.initializer)
    return w, b


def convolution(x: Array, w: Array, b: Array, pads: int) -> Array:
    """In float64: the sum of one product of matrices per tap."""
    rank = x.ndim - 2
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *[(pads, pads)] * rank])
    out = [n - 2 for n in x.shape[2:]]
    y = np.zeros((x.shape[0], w.shape[0], *out))
    for tap in itertools.product(range(3), repeat=rank):
        window = x[(slice(None), slice(None), *(slice(k, k + n) for k, n in zip(tap, out, strict=True)))]
        y += np.einsum("bc...,oc->bo...", window, w[(slice(None), slice(None), *tap)].astype(np.float64))
    return y + b.reshape(-1, *(1,) * rank)


def program(m: onnx.ModelProto, cpu: str = "x86-64-v3") -> tuple[Program, list[str]]:
    trace = driver.Trace()
    made, _ = driver.tensor_program(m, Options(), for_cpu(cpu, "x86_64-unknown-linux-gnu"), trace)
    return made, [line for line in trace.log.made if "Winograd" in line]


@pytest.mark.parametrize(
    ("space", "pads", "batch"),
    [
        ((12, 12), 1, 1),
        ((14, 9), 1, 2),
        ((7, 23), 0, 1),
        ((6, 5), 2, 1),
        ((40,), 1, 2),
        ((37,), 0, 1),
        ((4, 4), 1, 9),
    ],
    ids=str,
)
@pytest.mark.parametrize("tile", winograd.POINTS)
@pytest.mark.parametrize("cpu", ["x86-64-v3", None], ids=["v3", "native"])
def test_it_convolves(
    space: tuple[int, ...], pads: int, batch: int, tile: int, cpu: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "POINTS", {tile: winograd.POINTS[tile]})
    monkeypatch.setattr(winograd, "GAIN", 1e-9)
    monkeypatch.setenv("FUSILE_CACHE", "0")
    m = model(24, 40, space, pads, batch=batch)
    assert program(m)[1]
    x = np.random.default_rng(1).standard_normal((batch, 24, *space)).astype(np.float32)
    compiled = fusile.compile(m, **({} if cpu is None else {"cpu": cpu}))
    wanted = np.maximum(convolution(x, *weights(m), pads), 0)
    np.testing.assert_allclose(compiled(x)[0], wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("space", [(6, 5), (8,), ("height", "width")], ids=str)
def test_every_level_keeps_the_meaning(space: tuple[int | str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs and kernels are interpreted before and after each step (`FUSILE_VERIFY=2`)."""
    monkeypatch.setattr(winograd, "GAIN", 1e-9)
    monkeypatch.setenv("FUSILE_VERIFY", "2")
    monkeypatch.setenv("FUSILE_CACHE", "0")
    m = model(3, 5, space)
    assert program(m)[1]
    assert fusile.compile(m, cpu="x86-64-v3")


def test_one_module_takes_every_size() -> None:
    m = model(32, 48, ("height", "width"))
    assert program(m)[1]
    compiled = fusile.compile(m)
    for height, width in itertools.product((1, 2, 4, 7, 8, 17), (1, 3, 4, 6, 21)):
        x = np.random.default_rng(height).standard_normal((1, 32, height, width)).astype(np.float32)
        wanted = np.maximum(convolution(x, *weights(m), 1), 0)
        np.testing.assert_allclose(compiled(x)[0], wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("channels", "space", "growth"), [(256, (32, 32), 8.0), (256, (4, 4), 3.0)], ids=["four", "two"]
)
def test_rounding_errors_grow_by_what_is_stated(
    channels: int, space: tuple[int, int], growth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root mean square over the outputs, against the direct sum by the same compiler."""
    m = model(channels, 32, space, batch=8)
    x = np.maximum(np.random.default_rng(2).standard_normal((8, channels, *space)), 0).astype(np.float32)
    wanted = np.maximum(convolution(x, *weights(m), 1), 0)
    if space == (4, 4):
        monkeypatch.setattr(winograd, "POINTS", {2: winograd.POINTS[2]})

    def error() -> float:
        got = fusile.compile(m)(x)[0]
        return float(np.sqrt(np.mean((got - wanted) ** 2)) / np.sqrt(np.mean(wanted**2)))

    monkeypatch.setenv("FUSILE_CACHE", "0")
    fast = error()
    monkeypatch.setattr(winograd, "GAIN", 1e9)
    direct = error()
    assert 0 < direct < fast < growth * direct
    assert fast < 3e-6


@pytest.mark.parametrize(
    ("channels", "filters", "space", "attributes"),
    [
        (3, 8, (32, 32), {}),
        (32, 32, (16, 16), {"strides": [2, 2]}),
        (32, 32, (16, 16), {"dilations": [2, 2]}),
        (32, 32, (16, 16), {"group": 32}),
        (512, 512, (1, 1), {}),
    ],
    ids=["few channels", "strides", "dilations", "depthwise", "one tile"],
)
def test_it_is_left_where_it_does_not_pay(
    channels: int, filters: int, space: tuple[int, int], attributes: dict[str, object]
) -> None:
    m = model(channels // int(str(attributes.get("group", 1))), filters, space)
    m.graph.input[0].type.tensor_type.shape.dim[1].dim_value = channels
    for key, value in attributes.items():
        m.graph.node[0].attribute.append(helper.make_attribute(key, value))
    assert not program(m)[1]
