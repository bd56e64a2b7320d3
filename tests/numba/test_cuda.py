"""Numba on a GPU: every operator and model in the simulator, and kernels as PTX; neither needs a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numba_models import close, compiled, in_order, inputs_of
from operator_models import by_onnxruntime
from program_table import BY_NAME, Small

from fusile import driver
from fusile.backends import numba_cuda
from fusile.errors import UsageError
from fusile.ir.loops import For, Kind, walk
from fusile.options import Options, make_options

pytest.importorskip("numba.cuda")


def on_a_gpu() -> bool:
    from numba import cuda

    return bool(cuda.is_available())


def test_everything_in_the_simulator() -> None:
    script = Path(__file__).with_name("simulate.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    failed = json.loads(done.stdout.strip().splitlines()[-1])
    assert not failed, "\n".join(f"{name}: {why}" for name, why in failed)


CONV_NET = Small(
    "conv_net",
    """g (float[N, 3, 16, 16] x) => (float y) {
        c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)
        h = HardSwish (c)
        d = Conv <pads = [1, 1, 1, 1], group = 8> (h, v)
        r = Relu (d)
        p = GlobalAveragePool (r)
        f = Flatten (p)
        y = Gemm (f, m)
    }""",
    {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 1, 3, 3), "m": (8, 10)},
)
TRANSFORMER = Small(
    "transformer",
    """g (int64[N, S] i, float[S, 8] p) => (float y) {
        e = Gather <axis = 0> (table, i)
        x = Add (e, p)
        n = LayerNormalization <axis = -1> (x, scale, bias)
        q = MatMul (n, wq)
        k = MatMul (n, wk)
        v = MatMul (n, wv)
        qh = Reshape (q, heads)
        kh = Reshape (k, heads)
        vh = Reshape (v, heads)
        qt = Transpose <perm = [0, 2, 1, 3]> (qh)
        kt = Transpose <perm = [0, 2, 3, 1]> (kh)
        vt = Transpose <perm = [0, 2, 1, 3]> (vh)
        s = MatMul (qt, kt)
        a = Softmax <axis = -1> (s)
        o = MatMul (a, vt)
        t = Transpose <perm = [0, 2, 1, 3]> (o)
        r = Reshape (t, flat)
        z = Add (r, x)
        g1 = MatMul (z, w1)
        g2 = Gelu (g1)
        y = MatMul (g2, w2)
    }""",
    {"table": (20, 8), "scale": (8,), "bias": (8,), "wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "w1": (8, 32), "w2": (32, 8)},
    {"heads": [0, 0, 2, 4], "flat": [0, 0, 8]},
)  # fmt: skip


ORDERED = Small(
    "ordered",
    """g (float[N, S] x, float[1, S, 4] boxes, float[1, N, S] scores) => (float v, int64 i, float u, int64 s) {
        v, i = TopK (x, many)
        few, _i = TopK (x, two)
        u, _f, _n, _c = Unique <axis = 1> (few)
        s = NonMaxSuppression (boxes, scores, many, half, half)
    }""",
    numbers={"many": [40], "two": [2], "half": [0.5]},
)


@pytest.mark.parametrize("small", [CONV_NET, TRANSFORMER, BY_NAME["lstm"], ORDERED], ids=str)
def test_kernels_compile_to_ptx_without_a_gpu(small: Small) -> None:
    options = make_options(target="cuda")
    plan = numba_cuda.plan_of(driver.graph(small.model().SerializeToString(), options), options)
    found = numba_cuda.compile_ptx(plan)
    assert found
    for name, text in found.items():
        assert ".target sm_90" in text, name
        assert ".visible .entry" in text, name


def test_rows_are_blocks_and_points_are_threads() -> None:
    options = Options(target="cuda")
    model = BY_NAME["softmax"].model().SerializeToString()
    plan = numba_cuda.plan_of(driver.graph(model, options), options)
    kinds = {s.kind for k in plan.kernels() for s in walk(k.body) if isinstance(s, For)}
    assert Kind.THREAD in kinds
    assert Kind.BLOCK in kinds
    conv = BY_NAME["conv_relu"].model().SerializeToString()
    plan = numba_cuda.plan_of(driver.graph(conv, options), options)
    assert all(
        s.kind in (Kind.THREAD, Kind.SERIAL)
        for k in plan.kernels()
        for s in walk(k.body)
        if isinstance(s, For)
    )


@pytest.mark.skipif(on_a_gpu(), reason="there is a GPU")
def test_without_a_gpu_the_way_out_is_named() -> None:
    with pytest.raises(UsageError, match="NUMBA_ENABLE_CUDASIM"):
        compiled(numba_cuda, BY_NAME["softmax"].model(), "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not on_a_gpu(), reason="there is no GPU")
@pytest.mark.parametrize("small", [CONV_NET, BY_NAME["lstm"], BY_NAME["softmax"]], ids=str)
def test_on_a_gpu(small: Small) -> None:
    model: onnx.ModelProto = small.model()
    module = compiled(numba_cuda, model, "cuda")
    values = inputs_of(model, {"N": 2, "S": 5})
    close([np.asarray(y) for y in module.run(in_order(module, values))], by_onnxruntime(model, values), 1e-4)
