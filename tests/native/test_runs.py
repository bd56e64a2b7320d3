"""Running modules in process: the same bits always, from any number of threads; errors that name the node."""

from __future__ import annotations

import gc
import os
import platform
import threading
import weakref
from pathlib import Path
from typing import Any

import ml_dtypes
import native_models as models
import numpy as np
import onnx
import onnx.parser
import pytest
from native_models import Array, Reference, assert_close, noise
from onnx import TensorProto, helper

import fusile
from fusile.backends.native.module import NativeModule, run_error
from fusile.errors import RunError
from fusile.runtime import abi
from fusile.runtime.module import FeedError

CASES: dict[str, tuple[bytes, dict[str, Array]]] = {
    "conv_net": (models.conv_net(), {"x": noise(1, 5, 3, 13, 17)}),
    "lstm": (models.lstm(), {"x": noise(2, 9, 4, 5)}),
    "nonzero": (models.nonzero(), {"x": noise(3, 90, 7)}),
    "matmuls": (models.matmuls(), {"x": noise(4, 130, 96)}),
}


def compiled(model: Any, **options: Any) -> NativeModule:
    module = fusile.compile(model, **options)
    assert isinstance(module, NativeModule)
    return module


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_any_number_of_threads_gives_the_same_bits(name: str, level: int, reference: Reference) -> None:
    model, feeds = CASES[name]
    answers = [compiled(model, threads=threads, opt_level=level)(**feeds) for threads in (1, 2, 3)]
    assert_close(answers[0], reference(model, feeds))
    for other in answers[1:]:
        for mine, theirs in zip(answers[0], other, strict=True):
            assert mine.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("target", ["native", "numba"])
def test_bf16_is_float32_over_weights_in_bfloat16(target: str) -> None:
    model, feeds = CASES["matmuls"]
    rounded = onnx.load_from_string(model)
    for tensor in rounded.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.ndim > 1 and value.size > 8:
            near = value.astype(ml_dtypes.bfloat16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(near, tensor.name))
    full, half = (fusile.compile(model, target=target, precision=p)(**feeds) for p in ("fp32", "bf16"))
    same = fusile.compile(rounded, target=target)(**feeds)
    for exact, mine, wanted in zip(full, half, same, strict=True):
        assert not np.array_equal(mine, exact)
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threads", [1, 3])
def test_callers_at_the_same_time_get_the_same_bits(name: str, threads: int) -> None:
    """Six callers on sizes of their own, again and again."""
    model, feeds = CASES[name]
    module = compiled(model, threads=threads)
    axis = 1 if name == "lstm" else 0
    cuts = [{key: value.take(range(1 + n), axis) for key, value in feeds.items()} for n in range(3)]
    wanted = [[array.tobytes() for array in module(**cut)] for cut in cuts]
    wrong: list[int] = []

    def work(number: int) -> None:
        for turn in range(25):
            cut = (number + turn) % len(cuts)
            if [array.tobytes() for array in module(**cuts[cut])] != wanted[cut]:
                wrong.append(number)

    callers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_answers_are_fresh_and_inputs_stay() -> None:
    model, feeds = CASES["matmuls"]
    module = compiled(model, threads=1)
    x = feeds["x"].copy()
    first = module(x)
    kept = [array.copy() for array in first]
    module(x + 1)
    for array, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copy)
        assert array.flags.owndata
        assert array.flags.writeable
    np.testing.assert_array_equal(x, feeds["x"])


def test_sizes_may_change_from_call_to_call(reference: Reference) -> None:
    model, feeds = CASES["nonzero"]
    module = compiled(model, threads=1)
    for rows in (90, 1, 0, 33, 90):
        cut = {"x": feeds["x"][:rows]}
        assert_close(module(**cut), reference(model, cut))


def test_read_only_unaligned_and_empty_inputs() -> None:
    module = compiled(models.gather(), threads=1)
    index = np.array([3, 10], np.int64)
    wanted = module(index)[0]
    index.flags.writeable = False
    np.testing.assert_array_equal(module(index)[0], wanted)
    raw = np.zeros(17, np.uint8)
    unaligned = raw[1:].view(np.int64)
    unaligned[:] = index
    np.testing.assert_array_equal(module(unaligned)[0], wanted)
    assert module(np.zeros(0, np.int64))[0].shape == (0, 6)


def test_an_error_names_the_node_and_leaves_the_module_usable() -> None:
    module = compiled(models.gather(), threads=1)
    with pytest.raises(
        RunError, match=r"out of range \(node 'look up'\): it is 11, and the extent 11"
    ) as raised:
        module(np.array([0, 11]))
    assert raised.value.node == "look up"
    assert module(np.array([0]))[0].shape == (1, 6)


def test_sizes_that_contradict_each_other_are_said() -> None:
    model = models.make(
        [helper.make_node("Add", ["a", "b"], ["c"], name="add")],
        {"a": (TensorProto.FLOAT, [None]), "b": (TensorProto.FLOAT, [None])},
        {"c": (TensorProto.FLOAT, [None])},
        {},
    )
    module = compiled(model)
    assert [port.shape for port in (*module.inputs, *module.outputs)] == [(None,)] * 3
    np.testing.assert_array_equal(module(noise(1, 4), noise(2, 4))[0], noise(1, 4) + noise(2, 4))
    with pytest.raises(RunError, match="Sizes do not fit together"):
        module(noise(1, 4), noise(2, 3))


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "uint2", "float4_e2m1fn"])
@pytest.mark.parametrize("target", ["native", "numba"])
def test_elements_below_eight_bits(name: str, target: str) -> None:
    """As weights, as inputs whatever is in the upper bits of their bytes, and as outputs; sizes with a rest."""
    dtype = np.dtype(getattr(ml_dtypes, name))
    code = helper.np_dtype_to_tensor_dtype(dtype)
    node = helper.make_node
    weights = np.random.default_rng(3).integers(0, 4, (5, 7)).astype(np.uint8).view(dtype)
    graph = helper.make_graph(
        [
            node("Cast", ["w"], ["a"], to=TensorProto.FLOAT),
            node("Cast", ["x"], ["b"], to=TensorProto.FLOAT),
            node("Mul", ["a", "b"], ["y"]),
            node("Cast", ["y"], ["z"], to=code),
        ],
        "small",
        [helper.make_tensor_value_info("x", code, ["n", 7])],
        [helper.make_tensor_value_info(y, t, ["n", 7]) for y, t in (("y", TensorProto.FLOAT), ("z", code))],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
    x = np.random.default_rng(4).integers(0, 256, (5, 7)).astype(np.uint8)
    x = x & 15 if name.startswith("float") else x
    y, z = fusile.compile(model, target=target)(x.view(dtype))
    wanted = weights.astype(np.float32) * x.view(dtype).astype(np.float32)
    np.testing.assert_array_equal(y, wanted)
    limits = ml_dtypes.finfo(dtype) if name.startswith("float") else ml_dtypes.iinfo(dtype)
    inside = (wanted >= float(limits.min)) & (wanted <= float(limits.max))
    np.testing.assert_array_equal(z[inside].view(np.uint8), wanted[inside].astype(dtype).view(np.uint8))


@pytest.mark.parametrize("op", ["LeakyRelu", "Where"])
def test_chains_of_selects_are_printed_once(op: str, reference: Reference) -> None:
    """Sizes with a rest, which is read under a mask; every link reads the one before in both of its arms."""
    node = helper.make_node
    links = [("x" if k == 0 else f"v{k - 1}", f"v{k}") for k in range(24)]
    if op == "Where":
        chain = [
            made
            for k, (a, y) in enumerate(links)
            for made in (
                node("Mul", [a, "half"], [f"m{k}"]),
                node("Less", ["x", f"at{k}"], [f"c{k}"]),
                node("Where", [f"c{k}", f"m{k}", a], [y]),
            )
        ]
    else:
        chain = [node("LeakyRelu", [a], [y], alpha=0.9) for a, y in links]
    weights = {f"at{k}": np.array(k / 12 - 1, np.float32) for k in range(24)}
    model = models.make(
        chain,
        {"x": (TensorProto.FLOAT, ["n"])},
        {"v23": (TensorProto.FLOAT, ["n"])},
        {"half": np.array(0.5, np.float32), **weights} if op == "Where" else {},
    )
    feeds = {"x": noise(5, 37)}
    assert_close(compiled(model)(**feeds), reference(model, feeds), 1e-6)


def test_symbols_are_checked_before_the_run() -> None:
    with pytest.raises(FeedError, match="wrong shape"):
        compiled(models.conv_net())(np.zeros((1, 4, 13, 17), np.float32))


@pytest.mark.parametrize("code", list(abi.Status)[1:])
def test_every_status_is_a_sentence(code: abi.Status) -> None:
    error = run_error(int(code), "the node", 5, 7, ["x"])
    assert error.node == "the node"
    assert "(node 'the node')" in str(error)
    assert str(run_error(1, "", 0, 2, ["x"])) == (
        "Sizes do not fit together: dimension 2 of input 'x' contradicts the others. "
        "Look at the shapes fed to the model."
    )


def test_denormals_are_flushed_or_kept_and_the_callers_state_stays() -> None:
    model = models.make(
        [helper.make_node("Mul", ["x", "w"], ["y"], name="mul")],
        {"x": (TensorProto.FLOAT, [16])},
        {"y": (TensorProto.FLOAT, [16])},
        {"w": np.full(16, 0.5, np.float32)},
    )
    tiny = np.full(16, 1e-38, np.float32)
    assert not compiled(model)(tiny)[0].any()
    assert compiled(model, denormals="keep")(tiny)[0].all()
    assert (tiny * np.float32(0.5)).all()


def test_modules_go_when_nobody_holds_them() -> None:
    module = compiled(models.matmuls(), threads=2)
    module(noise(1, 3, 96))
    instance, context = weakref.ref(module._instance), weakref.ref(module._idle[0]._context)
    del module
    gc.collect()
    assert instance() is None
    assert context() is None


def test_idle_contexts_are_no_more_than_processors() -> None:
    module = compiled(models.matmuls(), threads=1)
    barrier = threading.Barrier(12)

    def work() -> None:
        barrier.wait()
        for _ in range(5):
            module(noise(1, 40, 96))

    callers = [threading.Thread(target=work) for _ in range(12)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert 1 <= len(module._idle) <= len(os.sched_getaffinity(0))


def test_a_forked_child_runs_too() -> None:
    module = compiled(models.matmuls(), threads=2)
    x = noise(1, 64, 96)
    wanted = module(x)[0].tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if module(x)[0].tobytes() == wanted else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert module(x)[0].tobytes() == wanted


def test_sessions_share_one_pool() -> None:
    before = len(os.listdir("/proc/self/task"))
    modules = [compiled(models.matmuls(seed), threads=3) for seed in range(0, 40, 10)]
    for module in modules:
        module(noise(1, 400, 96))
    assert len(os.listdir("/proc/self/task")) - before <= 2 + 1  # two helpers, and a clock of the compiler's


def test_ports_and_what_the_model_says_of_itself() -> None:
    model = onnx.load_model_from_string(models.conv_net())
    model.producer_name, model.model_version = "somebody", 3
    model.graph.input[0].type.tensor_type.shape.dim[2].Clear()
    module = compiled(model)
    assert module.inputs[0].shape == ("batch", 3, None, 17)
    assert (module.info.producer_name, module.info.version, module.info.graph_name) == ("somebody", 3, "made")


def test_a_program_without_the_cache_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Reference
) -> None:
    monkeypatch.setenv("FUSILE_CACHE", "0")
    model, feeds = CASES["conv_net"]
    module = compiled(model, threads=2)
    assert_close(module(**feeds), reference(model, feeds))
    files = module.save(tmp_path / "model.so", embed=False)
    assert [file.name for file in files] == ["model.so", "model.h", "model.py", "model.weights"]
    loaded = fusile.load(tmp_path / "model.so")
    assert_close(loaded(**feeds), module(**feeds), 0)


def test_what_a_node_requires_of_sizes_is_said_when_it_does_not_hold() -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]>
    g (float[5] x, int64[1] k) => (float[M] y, int64[M] i) { y, i = TopK (x, k) }"""
    module = fusile.compile(onnx.parser.parse_model(text))
    with pytest.raises(RunError, match="k is more than the 5 elements"):
        module.run([np.zeros(5, np.float32), np.array([6])])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the CPU is named by features of x86-64")
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_sixteen_bit_floats_on_a_cpu_without_their_instructions(name: str) -> None:
    """What LLVM calls for a conversion there is in no C library, so nothing may be left to it: not the choice
    between two values, and not a size that comes out of them."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 13, opset_import: ["": 27]>
        g ({name}[N] x, {name}[N] y, bool[N] c, {name} limit, int64[K] i)
          => ({name}[N] chosen, {name}[N] total, {name}[M] counted, {name}[K, 4] hot)
          <float f0 = {{0}}, float f1 = {{1}}, float[2] f2 = {{2, 3}}, int64 depth = {{4}}> {{
            zero = CastLike (f0, limit)
            one = CastLike (f1, limit)
            ends = CastLike (f2, limit)
            chosen = Where (c, x, y)
            total = Add (x, y)
            counted = Range (zero, limit, one)
            hot = OneHot (i, depth, ends)
        }}"""
    )
    kind = np.dtype(getattr(ml_dtypes, name, name))
    x, y = noise(1, 40).astype(kind), noise(2, 40).astype(kind)
    c, i = noise(3, 40) > 0, np.array([0, 3, -1])
    module = fusile.compile(model, cpu="sse4.2")
    chosen, total, counted, hot = (np.asarray(out) for out in module(x, y, c, np.asarray(5, kind), i))
    np.testing.assert_array_equal(chosen, np.where(c, x, y))
    np.testing.assert_array_equal(total, x + y)
    np.testing.assert_array_equal(counted, np.arange(5).astype(kind))
    np.testing.assert_array_equal(hot, np.where(np.eye(4)[i] > 0, 3, 2).astype(kind))
