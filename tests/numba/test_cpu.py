"""Numba on a CPU against onnxruntime: operators at their edges, small models at all sizes and levels."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import pytest
from numba_models import close, compiled, in_order, inputs_of, judge, sample
from operator_models import Case, by_onnxruntime
from program_table import BY_NAME, PROGRAMS, Small

import fusile
from fusile.backends import numba_cpu
from fusile.errors import RunError, UsageError


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", sample(metafunc.config.getoption("--all")), ids=str)


def test_edge(case: Case) -> None:
    judge(numba_cpu, "numba", case, symbols=True)


def larger(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: 3 * n + 1 for name, n in sizes.items()}


@pytest.mark.parametrize("small", PROGRAMS, ids=str)
def test_one_module_serves_all_sizes(small: Small) -> None:
    model = small.model()
    module = compiled(numba_cpu, model, "numba")
    sets = [dict(small.sizes), larger(small.sizes), dict.fromkeys(small.sizes, 1)]
    if small.name == "conv_strided_add":
        sets = [{"H": 7, "P": 4}, {"H": 13, "P": 7}]
    if small.name == "gather":  # a table of one row has no row 3
        sets[-1] = {"N": 1, "S": 4}
    for sizes in sets:
        values = inputs_of(model, sizes, seed=len(sizes))
        close([np.asarray(y) for y in module.run(in_order(module, values))], by_onnxruntime(model, values))


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("name", ["depthwise", "attention", "lstm", "batch_norm"])
def test_levels_agree(name: str, level: int) -> None:
    small = BY_NAME[name]
    model = small.model()
    values = inputs_of(model, small.sizes)
    module = compiled(numba_cpu, model, "numba", opt_level=level)
    close([np.asarray(y) for y in module.run(in_order(module, values))], by_onnxruntime(model, values))


def wide_net() -> onnx.ModelProto:
    """Large enough for its loops to be parallel."""
    text = """g (float[N, 32, 40, 40] x) => (float y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Relu (c)
        m = ReduceMean <keepdims = 0> (r, last)
        y = Softmax <axis = -1> (m)
    }"""
    return Small("wide", text, {"w": (64, 32, 3, 3)}, {"last": [3]}).model()


def test_the_same_bits_for_any_number_of_threads_and_callers() -> None:
    model = wide_net()
    values = inputs_of(model, {"N": 2})
    one = compiled(numba_cpu, model, "numba", threads=1)
    assert "    spread(" in one.source
    wanted = np.asarray(one.run(in_order(one, values))[0])
    two = compiled(numba_cpu, model, "numba", threads=2)
    found: list[np.ndarray] = []

    def call() -> None:
        found.extend(np.asarray(two.run(in_order(two, values))[0]) for _ in range(3))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for c in callers:
        c.start()
    for c in callers:
        c.join()
    assert len(found) == 9
    for got in found:
        np.testing.assert_array_equal(got, wanted)


def test_equal_kernels_share_one_function() -> None:
    chain = "\n".join(
        f"c{k} = Conv <pads = [1, 1, 1, 1]> ({'x' if k == 0 else f'r{k - 1}'}, w{k})\n r{k} = Relu (c{k})"
        for k in range(4)
    )
    channels = [3, 32, 64, 64, 96]
    weights = {f"w{k}": (channels[k + 1], channels[k], 3, 3) for k in range(4)}
    model = Small("chain", f"g (float[1, 3, 9, 9] x) => (float r3) {{ {chain} }}", weights).model()
    module = compiled(numba_cpu, model, "numba")
    # Padding, contraction and packing are one function each, with a second where the layout changes; the last
    # ReLU turns its result back and stands alone.
    assert module.source.count("kernel\ndef ") <= 9
    values = inputs_of(model, {})
    close([np.asarray(y) for y in module.run(in_order(module, values))], by_onnxruntime(model, values))


def test_an_index_out_of_range_names_the_node() -> None:
    text = "g (int64[3] i, float[5, 2] t) => (float y) { y = Gather <axis = 0> (t, i) }"
    model = Small("gather", text).model()
    model.graph.node[0].name = "the lookup"
    module = compiled(numba_cpu, model, "numba")
    with pytest.raises(RunError, match="index 7 is out of range, the extent is 5") as refused:
        module.run([np.array([0, 7, 1]), np.zeros((5, 2), np.float32)])
    assert refused.value.node == "the lookup"


def test_the_public_face_compiles_for_numba() -> None:
    model = BY_NAME["mlp"].model()
    module = fusile.compile(model, target="numba")
    values = inputs_of(model, {"N": 3})
    close([np.asarray(y) for y in module(**values)], by_onnxruntime(model, values))
    with pytest.raises(UsageError, match="emit"):
        module.save("model.so")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float8e4m3fn", "int4"])
def test_types_that_numba_lacks(kind: str) -> None:
    text = f"g (float[N, 6] x) => ({kind} small, float back) {{ small = Cast <to = TO> (x) back = Cast <to = 1> (small) }}"
    code = {"float16": 10, "bfloat16": 16, "float8e4m3fn": 17, "int4": 22}[kind]
    node = onnx.parser.parse_graph(
        text.replace("TO", str(code)).replace(f"({kind} small", f"({kind}[N, 6] small")
    )
    model = onnx.helper.make_model(node, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    module = compiled(numba_cpu, model, "numba")
    x = np.array([[0.0, -1.5, 3.0, 6.9, -7.0, 0.1], [1e-3, 2.0, -3.25, 5.5, 1.0, -0.7]], np.float32)
    small, back = (np.asarray(y) for y in module.run([x]))
    wanted = x.astype(onnx.helper.tensor_dtype_to_np_dtype(code))
    np.testing.assert_array_equal(small.astype(np.float32), wanted.astype(np.float32))
    np.testing.assert_array_equal(back, wanted.astype(np.float32))
    assert small.dtype == wanted.dtype
