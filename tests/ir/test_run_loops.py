"""The interpreter of loop kernels: what it runs, and what it refuses to run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusile.errors import InternalError, RunError
from fusile.ir.expr import Expr, apply, axis, cast, const, dim, guard, load, raw_apply, select
from fusile.ir.loops import Alloc, Buffer, For, If, Kernel, Kind, Stmt, Store
from fusile.ir.run_loops import fresh, run_kernel
from fusile.ir.tensor import as_shape
from fusile.ir.types import BOOL, F32, F64, I32, I64, U8

N = dim("n")
X = Buffer("x", F32, (N,))
Y = Buffer("y", F32, (N,))
I = axis("i", N)
ONE = const(1.0, F32)


def run(*body: Stmt, n: int = 5, x: np.ndarray | None = None) -> np.ndarray:
    """y of a kernel over x, of n elements each."""
    y = fresh((n,), F32)
    k = Kernel("k", (X, Y), (N,), body)
    run_kernel(k, {X: np.arange(n, dtype=np.float32) if x is None else x, Y: y}, {N: n})
    return y


@pytest.mark.parametrize("kind", [Kind.SERIAL, Kind.PARALLEL, Kind.VECTOR, Kind.JAM])
def test_every_kind_of_loop_means_the_same_for_independent_iterations(kind: Kind) -> None:
    lane = axis("lane", 5)
    at = load(X, (lane,))
    y = run(For(lane, (If(at < 3.0, (Store(Y, (lane,), at * 2.0),)),), kind))
    np.testing.assert_array_equal(y[:3], [0, 2, 4])
    assert np.isnan(y[3:]).all(), "nothing was stored there"


def test_iterations_side_by_side_have_locals_of_their_own() -> None:
    lane, k = axis("lane", 3), axis("k", 4)
    total = Buffer("acc", F32, (), "local")
    add = Store(total, (), load(total, ()) + load(X, (lane,)) + cast(k, F32))
    body = (
        Alloc(total),
        Store(total, (), const(0.0, F32)),
        For(k, (add,)),
        Store(Y, (lane,), load(total, ())),
    )
    np.testing.assert_array_equal(run(For(lane, body, Kind.JAM), n=3), [6, 10, 14])


def test_a_statement_is_evaluated_for_all_before_any_stores() -> None:
    lane = axis("lane", 4)
    shift = Store(Y, (lane + 1,), load(Y, (lane,)) + 1.0)
    start = Store(Y, as_shape((0,)), const(0.0, F32))
    np.testing.assert_array_equal(run(start, For(lane, (shift,))), [0, 1, 2, 3, 4])
    y = run(start, For(lane, (shift,), Kind.VECTOR))
    assert y[1] == 1 and np.isnan(y[2:]).all()


def test_scratch_is_one_for_iterations_side_by_side() -> None:
    lane = axis("lane", 2)
    s = Buffer("s", F32, as_shape((2,)), "scratch")
    body = (Alloc(s), Store(s, (lane,), cast(lane, F32)), Store(Y, (lane,), load(s, (1 - lane,))))
    np.testing.assert_array_equal(run(For(lane, body, Kind.JAM), n=2), [1, 0])


def test_only_the_arm_that_is_taken_is_evaluated() -> None:
    safe = select(I + 1 < N, load(X, (I + 1,)), const(-1.0, F32))
    np.testing.assert_array_equal(run(For(I, (Store(Y, (I,), safe),)), n=3), [1, 2, -1])


def test_new_memory_shows() -> None:
    for t in (F32, F64):
        assert np.isnan(fresh((2,), t)).all()
    assert (fresh((2,), I64) == -1).all() and (fresh((2,), U8) == 255).all()
    assert fresh((0, 3), F32).shape == (0, 3) and fresh((), I32).shape == ()


def test_symbolic_sizes_of_zero_do_nothing() -> None:
    assert run(For(I, (Store(Y, (I,), ONE),)), n=0).size == 0


REFUSED: dict[str, tuple[tuple[Stmt, ...], str]] = {
    "read outside": ((For(I, (Store(Y, (I,), load(X, (I + 1,))),)),), "reads x[5]"),
    "write outside": ((For(I, (Store(Y, (I - 1,), ONE),)),), "writes y[-1]"),
    "two lanes, one element": (
        (For(axis("lane", 4), (Store(Y, as_shape((0,)), ONE),), Kind.VECTOR),),
        "iterations side by side write one element of y",
    ),
    "lanes of different lengths": (
        (For(lane := axis("lane", 3), (For(axis("k", lane + 1), ()),), Kind.JAM),),
        "runs [1, 2, 3] times",
    ),
    "memory that is not there": (
        (Store(Buffer("z", F32, ()), (), ONE),),
        "z is written where it does not exist",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_correct_kernel_does(what: str) -> None:
    body, words = REFUSED[what]
    with pytest.raises(InternalError, match=words.replace("[", r"\[").replace("]", r"\]")):
        run(*body)


def test_checked_indices_fail_the_run() -> None:
    at = guard(cast(load(X, (I,)), I64), 3, "the node")
    with pytest.raises(RunError, match=r"the node.*3 is not in 0 \.\. 2"):
        run(For(I, (Store(Y, (I,), load(X, (at,))),)))


def test_memory_of_another_shape_is_refused() -> None:
    k = Kernel("k", (X,), (N,), ())
    with pytest.raises(InternalError, match="no memory for x"):
        run_kernel(k, {}, {N: 2})
    with pytest.raises(InternalError, match=r"the shape \(3,\), not \(2,\)"):
        run_kernel(k, {X: np.zeros(3, np.float32)}, {N: 2})


SCALARS: dict[str, tuple[Expr, object]] = {
    "i64 wraps": (raw_apply("add", (const((1 << 63) - 1), const(1)), I64), -(1 << 63)),
    "division by zero": (raw_apply("floordiv", (const(7), const(0)), I64), 0),
    "truncating division": (raw_apply("div", (const(-7), const(2)), I64), -3),
    "flooring division": (raw_apply("floordiv", (const(-7), const(2)), I64), -4),
    "a cast saturates": (raw_apply("cast", (const(1e30, F32),), I32), (1 << 31) - 1),
    "bits": (raw_apply("bitcast", (const(1.0, F32),), I32), 0x3F800000),
    "a NaN on the left stays": (raw_apply("max", (const(np.nan, F32), ONE), F32), np.nan),
    "f32 rounds": (raw_apply("add", (const(1.0, F32), const(1e-9, F32)), F32), 1.0),
    "shared parts": (apply("mul", (s := cast(const(3), F32) + ONE), s), 16.0),
    "logic": (raw_apply("not", (const(True, BOOL),), BOOL), False),
}


@pytest.mark.parametrize("what", SCALARS)
def test_scalars_mean_what_the_table_says(what: str) -> None:
    e, wanted = SCALARS[what]
    out = Buffer("out", e.dtype, ())
    memory = fresh((), e.dtype)
    run_kernel(Kernel("k", (out,), (), (Store(out, (), e),)), {out: memory}, {})
    np.testing.assert_equal(memory[()].item(), wanted)


def test_errors_name_the_kernel() -> None:
    k = replace(Kernel("first", (Y,), (N,), (Store(Y, as_shape((9,)), ONE),)))
    with pytest.raises(InternalError, match="kernel first"):
        run_kernel(k, {Y: np.zeros(2, np.float32)}, {N: 2})
