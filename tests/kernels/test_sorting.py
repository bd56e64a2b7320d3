"""Sorting, judged by numpy: every type, ties, NaNs, no elements, one, and many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from operator_models import Array

import fusile
from fusile.ir.expr import dim
from fusile.ir.interpret import run_program
from fusile.ir.tensor import Program, Tensor, as_shape, collect
from fusile.ir.types import I64
from fusile.ir.verify import verify_program
from fusile.kernels import sorting
from fusile.passes import fuse, strict
from fusile.passes.inline import Log
from fusile.passes.lower import lower

TYPES = (
    np.float16, np.float32, np.float64, np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64,
)  # fmt: skip


def drawn(dtype: Any, shape: tuple[int, ...]) -> Array:
    """Numbers over the whole range of a type, many of them equal; NaNs, infinities and both zeros."""
    rng = np.random.default_rng([np.dtype(dtype).num, *shape])
    if np.dtype(dtype).kind == "f":
        x = rng.integers(-9, 9, shape).astype(dtype)
        x[x == 3], x[x == 2] = np.nan, -np.inf
        x[x == 0] *= rng.choice([-1, 1], np.count_nonzero(x == 0)).astype(dtype)
        return x
    limits = np.iinfo(dtype)
    x = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    return np.asarray(np.where(rng.random(shape) < 0.4, x, (x % 5).astype(dtype)), dtype)


def order(x: Array, largest: bool) -> Array:
    """The places of the elements in order; of equal ones the first comes first."""
    if not largest:
        return np.argsort(x, axis=-1, kind="stable")
    return x.shape[-1] - 1 - np.argsort(x[..., ::-1], axis=-1, kind="stable")[..., ::-1]


@pytest.fixture(scope="module")
def modules() -> dict[tuple[Any, int, bool], Any]:
    return {}


def top(modules: dict[tuple[Any, int, bool], Any], x: Array, k: int, largest: bool) -> list[Array]:
    """TopK of the last of two axes of any size, natively."""
    key = (x.dtype, k, largest)
    if key not in modules:
        element = helper.np_dtype_to_tensor_dtype(x.dtype)
        graph = helper.make_graph(
            [helper.make_node("TopK", ["x", "k"], ["y", "i"], largest=int(largest))],
            "top",
            [helper.make_tensor_value_info("x", element, ["n", "m"])],
            [
                helper.make_tensor_value_info(n, t, None)
                for n, t in (("y", element), ("i", TensorProto.INT64))
            ],
            [helper.make_tensor("k", TensorProto.INT64, [1], [k])] if k else [],
        )
        if not k:
            graph.input.append(helper.make_tensor_value_info("k", TensorProto.INT64, [1]))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
        modules[key] = fusile.compile(model)
    feeds = [x] if k else [x, np.array([x.shape[-1]])]
    return [np.asarray(y) for y in modules[key].run(feeds)]


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_all_elements_in_order(modules: dict[Any, Any], dtype: Any, largest: bool) -> None:
    for n in (0, 1, 2, 15, 16, 17, 33, 64, 65, 1000):
        x = drawn(dtype, (3, n))
        values, places = top(modules, x, 0, largest)
        np.testing.assert_array_equal(places, order(x, largest))
        np.testing.assert_array_equal(values, np.take_along_axis(x, places, -1))


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_the_first_few(modules: dict[Any, Any], dtype: Any) -> None:
    for n in (5, 16, 100, 5000):
        x = drawn(dtype, (2, n))
        values, places = top(modules, x, 5, True)
        np.testing.assert_array_equal(places, order(x, True)[:, :5])
        np.testing.assert_array_equal(values, np.take_along_axis(x, places, -1))


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_many(modules: dict[Any, Any], dtype: Any) -> None:
    x = drawn(dtype, (1, 100_000))
    np.testing.assert_array_equal(top(modules, x, 0, False)[1], order(x, False))


def test_more_than_there_are_is_refused(modules: dict[Any, Any]) -> None:
    with pytest.raises(fusile.RunError, match="Sizes do not fit"):
        top(modules, drawn(np.float32, (2, 4)), 5, True)


@pytest.mark.parametrize("lengths", [False, True])
def test_loops_mean_what_numpy_says(lengths: bool) -> None:
    """The loops of the sort, run one by one, and its meaning in numpy answer alike."""
    n, m = dim("n"), dim("m")
    words = Tensor("words", I64, (n, m))
    count = Tensor("count", I64, (n,))
    inputs = (words, count) if lengths else (words,)
    out = sorting.sort_words(*inputs)
    program = Program("sort", inputs, (out,), ("out",), collect([out]))
    verify_program(program)
    (group,) = fuse.group(program, Log(), lambda a, b: True)
    assert strict.same_group(group, lower(group, "sort")) > 0


def test_ranges_of_rows() -> None:
    x = np.random.default_rng(0).integers(-99, 99, (3, 40))
    words, count = Tensor("words", I64, as_shape(x.shape)), Tensor("count", I64, as_shape([3]))
    out = sorting.sort_words(words, count)
    program = Program("sort", (words, count), (out,), ("out",), collect([out]))
    (got,) = run_program(program, [x, np.array([0, 7, 40])])
    assert (got[0] == sorting.LAST).all()
    np.testing.assert_array_equal(got[1, :7], np.sort(x[1, :7]))
    np.testing.assert_array_equal(got[2], np.sort(x[2]))
