"""Every promise that the verifiers of tensor programs and kernels check, broken once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from refusals import refused

from fusile.ir.expr import (
    Expr,
    axis,
    cast,
    const,
    dim,
    guard,
    load,
    raw_apply,
    reduce_over,
    select,
)
from fusile.ir.loops import Alloc, Buffer, For, If, Kernel, Kind, Store
from fusile.ir.tensor import (
    Carried,
    Compute,
    DimDefinition,
    Program,
    Requirement,
    Scan,
    Scatter,
    Stage,
    Tensor,
    as_shape,
    compute,
    constant,
    scan,
)
from fusile.ir.types import BOOL, F32, F64, I32, I64
from fusile.ir.verify import verify_kernel, verify_program

N = dim("n")
X = Tensor("x", F32, as_shape((N, 4)))
Y = Tensor("y", F32, as_shape((N, 4)))
I, J = axis("i", N), axis("j", 4)
LENGTH = Tensor("length", I64, ())
GOOD = Compute(Y, (I, J), X[I, J] + const(1.0, F32), "node", "Add")


def program(*stages: Stage, **changes: object) -> Program:
    made = Program("p", (X,), (stages[-1].outs[0],), ("y",), stages)
    return replace(made, **changes)  # type: ignore[arg-type]


def body(e: Expr, out: Tensor = Y) -> Compute:
    return Compute(out, (I, J), e, "node", "Add")


def scan_stage() -> Scan:
    start = Tensor("start", F32, as_shape((4,)))

    def step(t: Expr, state: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        following = compute((4,), lambda j: state[j] + X[t, j], name="following")
        return [following], [following]

    stacked, _ = scan(N, [start], step)
    stage = stacked[0].stage
    assert isinstance(stage, Scan)
    return stage


SCAN = scan_stage()
START = SCAN.carried[0].initial
INPUTS = {"inputs": (X, START)}
U = axis("u", 3)
SCATTER = Scatter(Y, (I, J), X[I, J], (U,), (const(0), U), const(1.0, F32), const(True, BOOL), "add", "node")
OTHER = Tensor("other", F32, as_shape((N, 4)))
NARROW = Tensor("narrow", F32, as_shape((N, 3)))
K = axis("k", 5)

PROGRAMS: dict[str, tuple[Callable[[], Program], tuple[str, ...]]] = {
    "read before defined": (lambda: program(body(OTHER[I, J])), ("stage 'y' of 'node'", "'other'", "before")),
    "defined twice": (lambda: program(GOOD, GOOD), ("'y'", "twice")),
    "input defined": (lambda: program(body(Y[I, J], X)), ("'y'", "before")),
    "axis not bound": (lambda: program(body(X[I, K])), ("the axis 'k' is not in scope",)),
    "size not known": (
        lambda: program(body(X[I, J] + cast(dim("m"), F32))),
        ("the dimension 'm' is not in scope",),
    ),
    "axes and shape": (lambda: program(body(NARROW[I, J], NARROW)), ("axis 'j' runs to 4", "3")),
    "number of axes": (lambda: program(Compute(Y, (I,), X[I, 0])), ("1 axes define 'y' of rank 2",)),
    "axis twice": (lambda: program(Compute(Y, (J, J), X[0, J])), ("the axis 'j' is used twice",)),
    "value type": (lambda: program(body(cast(X[I, J], F64))), ("of type f64, not f32",)),
    "reduction below the root": (
        lambda: program(body(reduce_over("sum", (K,), X[I, J]) + const(1.0, F32))),
        ("below the root",),
    ),
    "unknown reduction": (lambda: program(body(reduce_over("median", (K,), X[I, J]))), ("median",)),
    "reduction without axes": (lambda: program(body(reduce_over("sum", (), X[I, J]))), ("no axes",)),
    "reduced axis is the stage's": (
        lambda: program(body(reduce_over("sum", (J,), X[I, J]))),
        ("'j'", "twice"),
    ),
    "rank of a read": (lambda: program(body(load(X, (I,)))), ("'x' of rank 2 is read at 1 indices",)),
    "type of an index": (
        lambda: program(body(load(X, (I, cast(J, I32))))),
        ("an index into 'x' is of type i32",),
    ),
    "buffer read": (lambda: program(body(load(Buffer("b", F32, ()), ()))), ("a Buffer is read",)),
    "operand types": (
        lambda: program(body(raw_apply("add", (X[I, J], const(1)), F32))),
        ("add of different types: f32, i64",),
    ),
    "result type": (
        lambda: program(body(raw_apply("lt", (X[I, J], X[I, J]), F32))),
        ("answers f32, not bool",),
    ),
    "arity": (
        lambda: program(body(raw_apply("neg", (X[I, J], X[I, J]), F32))),
        ("takes 1 arguments, has 2",),
    ),
    "unknown operation": (
        lambda: program(body(raw_apply("gelu", (X[I, J],), F32))),
        ("'gelu' is no scalar",),
    ),
    "bits of a float": (
        lambda: program(body(raw_apply("and", (X[I, J], X[I, J]), F32))),
        ("and of type f32",),
    ),
    "width of a bitcast": (
        lambda: program(body(raw_apply("bitcast", (cast(X[I, J], F64),), F32))),
        ("64 bits",),
    ),
    "condition of a select": (
        lambda: program(body(raw_apply("select", (X[I, J], X[I, J], X[I, J]), F32))),
        ("the condition of a select is of type f32",),
    ),
    "literal out of range": (
        lambda: program(body(raw_apply("cast", (const(1 << 40, I32),), F32))),
        ("does not fit the type i32",),
    ),
    "output not defined": (lambda: program(GOOD, outputs=(OTHER,)), ("output 'other'",)),
    "names of outputs": (lambda: program(GOOD, output_names=()), ("1 outputs have 0 names",)),
    "requirement on data": (
        lambda: program(GOOD, requirements=(Requirement(X[0, 0] < 1.0, "r", "why"),)),
        ("requirement of 'r'", "only sizes"),
    ),
    "requirement of another type": (
        lambda: program(GOOD, requirements=(Requirement(N + 1, "r", "why"),)),
        ("of type i64, not bool",),
    ),
    "size defined twice": (
        lambda: program(GOOD, dim_definitions=(DimDefinition(N, const(1), "d"),)),
        ("dimension 'n' of 'd'", "twice"),
    ),
    "size out of later sizes": (
        lambda: program(
            GOOD,
            dim_definitions=(
                DimDefinition(dim("a"), dim("b") + 1, "d"),
                DimDefinition(dim("b"), N, "d"),
            ),
        ),
        ("'b' is not in scope",),
    ),
    "size out of what needs it": (
        lambda: program(
            Compute(Tensor("z", I64, (dim("c"),)), (axis("q", dim("c")),), const(1)),
            dim_definitions=(DimDefinition(dim("c"), load(_looped(), (0,)), "d"),),
        ),
        ("'d'",),
    ),
    "size out of a later stage": (
        lambda: program(
            Compute(Tensor("z", I64, (dim("c"),)), (axis("q", dim("c")),), const(1), "late"),
            Compute(LENGTH, (), cast(X[0, 0], I64), "node"),
            dim_definitions=(DimDefinition(dim("c"), load(LENGTH, ()), "d"),),
        ),
        ("'late'", "worked out from 'length', which is defined later"),
    ),
    "scatter kind": (lambda: program(replace(SCATTER, kind="sub")), ("'sub' is no update",)),
    "scatter rank": (lambda: program(replace(SCATTER, index=(U,))), ("has 1 indices",)),
    "scatter index": (lambda: program(replace(SCATTER, index=(I, U))), ("the axis 'i' is not in scope",)),
    "scatter value": (
        lambda: program(replace(SCATTER, value=const(1))),
        ("value of an update is of type i64",),
    ),
    "scatter condition": (lambda: program(replace(SCATTER, condition=const(1))), ("condition of an update",)),
    "scan state": (
        lambda: program(replace(SCAN, carried=(replace(SCAN.carried[0], initial=Y),)), **INPUTS),
        ("'y'", "before"),
    ),
    "scan state's shape": (
        lambda: program(
            GOOD,
            replace(
                SCAN,
                carried=(
                    Carried(SCAN.carried[0].now, START, SCAN.body[0].out),
                    Carried(Tensor("s", F32, as_shape((3,))), START, SCAN.body[0].out),
                ),
            ),
            **INPUTS,
        ),
        ("has the shape",),
    ),
    "scan result's shape": (
        lambda: program(
            replace(SCAN, collected=((Tensor("out", F32, as_shape((4, N))), SCAN.body[0].out),)), **INPUTS
        ),
        ("'out' has the shape",),
    ),
    "scan hands on what no step makes": (
        lambda: program(replace(SCAN, body=()), **INPUTS),
        ("'following' is handed on and no step defines it",),
    ),
    "scan of another scan's state": (
        lambda: program(
            replace(SCAN, finals=((Tensor("f", F32, as_shape((4,))), scan_stage().carried[0]),)), **INPUTS
        ),
        ("state of another scan",),
    ),
}


def _looped() -> Tensor:
    """A tensor whose shape is the size that is read from it."""
    return Tensor("z", I64, (dim("c"),))


@pytest.mark.parametrize("what", PROGRAMS)
def test_broken_programs_are_refused(what: str) -> None:
    make, words = PROGRAMS[what]
    refused(lambda: verify_program(make()), *words)


def test_good_programs_pass() -> None:
    verify_program(program(GOOD))
    verify_program(program(SCATTER))
    verify_program(program(SCAN, **INPUTS))
    held = constant(np.ones((2, 2), np.float32))
    verify_program(program(body(X[I, J] + held[0, 1])))


# ---- kernels -----------------------------------------------------------------------------------------------

A = Buffer("a", F32, as_shape((N, 4)))
B = Buffer("b", F32, as_shape((N, 4)))
L = Buffer("l", F32, as_shape((4,)), "local")
S = Buffer("s", F32, as_shape((N,)), "scratch")
LANE, TILE = axis("lane", 8), axis("tile", 4)
WIDE = Buffer("w", F32, as_shape((64,)))


def kernel(*statements: object, params: tuple[Buffer, ...] = (A, B, WIDE)) -> Kernel:
    return Kernel("k0", params, (N,), statements)  # type: ignore[arg-type]


def copy(index: tuple[Expr | int, ...] = (I, J), to: Buffer = B, value: Expr | None = None) -> Store:
    return Store(to, as_shape(index), load(A, (I, J)) if value is None else value)


def nest(*statements: object, outer: Kind = Kind.SERIAL, inner: Kind = Kind.SERIAL) -> For:
    return For(I, (For(J, statements, inner),), outer)  # type: ignore[arg-type]


ONE = const(1.0, F32)
STEP = axis("step", 8)

KERNELS: dict[str, tuple[Callable[[], Kernel], tuple[str, ...]]] = {
    "axis not bound": (lambda: kernel(For(I, (copy(),))), ("kernel k0", "the axis 'j' is not in scope")),
    "size not listed": (
        lambda: kernel(nest(copy((I, J), B, cast(dim("m"), F32)))),
        ("the dimension 'm' is not in scope",),
    ),
    "buffer not a parameter": (lambda: kernel(nest(copy()), params=(B,)), ("'a' is read where",)),
    "buffer out of scope": (
        lambda: kernel(For(I, (Alloc(L), For(J, (copy((J,), L),)))), nest(copy((J,), L))),
        ("'l' is written where",),
    ),
    "tensor in a kernel": (lambda: kernel(nest(copy((I, J), B, load(X, (I, J))))), ("a Tensor is read",)),
    "allocated twice": (lambda: kernel(Alloc(L), nest(Alloc(L))), ("'l' is allocated twice",)),
    "parameter allocated": (lambda: kernel(Alloc(A)), ("'a' is allocated twice",)),
    "local parameter": (lambda: kernel(params=(L,)), ("the parameter 'l' is local memory",)),
    "parameter twice": (lambda: kernel(params=(A, A)), ("listed twice",)),
    "local of symbolic size": (
        lambda: kernel(Alloc(Buffer("t", F32, (N,), "local"))),
        ("the local 't' has no constant shape",),
    ),
    "size out of data": (
        lambda: kernel(Alloc(Buffer("t", F32, (cast(load(A, (0, 0)), I64),), "scratch"))),
        ("only sizes may stand",),
    ),
    "constant written": (
        lambda: kernel(
            nest(copy(to=(c := Buffer("c", F32, as_shape((N, 4)), constant=True)))), params=(A, c)
        ),
        ("'c' is constant and written",),
    ),
    "rank of a store": (lambda: kernel(nest(copy((J,)))), ("'b' of rank 2 is written at 1 indices",)),
    "rank of a read": (lambda: kernel(nest(copy(value=load(A, (J,))))), ("'a' of rank 2 is read at 1",)),
    "stored type": (lambda: kernel(nest(copy(value=const(1)))), ("what is stored in 'b' is of type i64",)),
    "type of an index": (
        lambda: kernel(nest(copy((I, cast(J, I32))))),
        ("an index into 'b' is of type i32",),
    ),
    "condition": (lambda: kernel(nest(If(I, (copy(),)))), ("a condition is of type i64",)),
    "reduction": (
        lambda: kernel(nest(copy(value=reduce_over("sum", (K,), load(A, (I, J)))))),
        ("below the root",),
    ),
    "axis bound twice": (
        lambda: kernel(For(I, (For(I, (copy((I, 0)),)),))),
        ("inside another one over the same",),
    ),
    "parallel inside": (
        lambda: kernel(nest(copy(), inner=Kind.PARALLEL)),
        ("the parallel loop over 'j' is not outermost",),
    ),
    "parallel beside others": (
        lambda: kernel(For(I, (For(J, (copy(),), Kind.PARALLEL), For(K, ())), Kind.PARALLEL)),
        ("'j' is not outermost and perfectly nested",),
    ),
    "parallel beside memory of one task": (
        lambda: kernel(Alloc(S), nest(copy(), outer=Kind.PARALLEL)),
        ("beside memory of one task",),
    ),
    "parallel extents": (
        lambda: kernel(For(I, (For(axis("t", I + 1), (), Kind.PARALLEL),), Kind.PARALLEL)),
        ("the axis 'i' is not in scope",),
    ),
    "vector of symbolic size": (
        lambda: kernel(nest(copy(), outer=Kind.VECTOR)),
        ("the vector loop over 'i' has no constant extent",),
    ),
    "jam of symbolic size": (lambda: kernel(nest(copy(), outer=Kind.JAM)), ("has no constant extent",)),
    "vector in a vector": (
        lambda: kernel(
            For(TILE, (For(LANE, (Store(WIDE, (TILE * 8 + LANE,), ONE),), Kind.VECTOR),), Kind.VECTOR)
        ),
        ("inside another vector loop",),
    ),
    "extent differs between lanes": (
        lambda: kernel(For(LANE, (For(axis("t", LANE + 1), ()),), Kind.VECTOR)),
        ("differs between iterations side by side",),
    ),
    "lanes write one element": (
        lambda: kernel(For(LANE, (Store(WIDE, as_shape((0,)), ONE),), Kind.VECTOR)),
        ("the vector loop over 'lane' may meet in 'w'",),
    ),
    "tasks overlap": (
        lambda: kernel(For(TILE, (For(STEP, (Store(WIDE, (TILE * 4 + STEP,), ONE),)),), Kind.PARALLEL)),
        ("the parallel loop over 'tile' may meet in 'w'", "step"),
    ),
    "lanes read their neighbours": (
        lambda: kernel(For(LANE, (Store(WIDE, (LANE + 1,), load(WIDE, (LANE,))),), Kind.VECTOR)),
        ("may meet in 'w'",),
    ),
    "writes go where data says": (
        lambda: kernel(For(LANE, (Store(WIDE, (cast(load(WIDE, (LANE,)), I64),), ONE),), Kind.VECTOR)),
        ("may meet in 'w'",),
    ),
    "scratch of side by side iterations": (
        lambda: kernel(For(LANE, (Alloc(S), Store(S, as_shape((0,)), ONE)), Kind.JAM)),
        ("may meet in 's'",),
    ),
    "local outside of the lanes": (
        lambda: kernel(Alloc(L), For(LANE, (Store(L, as_shape((0,)), ONE),), Kind.VECTOR)),
        ("may meet in 'l'",),
    ),
}


@pytest.mark.parametrize("what", KERNELS)
def test_broken_kernels_are_refused(what: str) -> None:
    make, words = KERNELS[what]
    refused(lambda: verify_kernel(make()), *words)


INDEPENDENT: dict[str, Kernel] = {
    "elementwise": kernel(nest(copy(), outer=Kind.PARALLEL, inner=Kind.VECTOR)),
    "both axes as tasks": kernel(nest(copy(), outer=Kind.PARALLEL, inner=Kind.PARALLEL)),
    "in place": kernel(nest(copy(value=load(B, (I, J)) + 1.0), inner=Kind.VECTOR)),
    "tiles": kernel(
        For(TILE, (For(LANE, (Store(WIDE, (TILE * 8 + LANE,), ONE),), Kind.VECTOR),), Kind.PARALLEL)
    ),
    "tiles inside out": kernel(For(LANE, (For(TILE, (Store(WIDE, (TILE * 8 + LANE,), ONE),)),), Kind.VECTOR)),
    "fused loops": kernel(For(f := axis("f", N * 4), (Store(B, (f // 4, f % 4), ONE),), Kind.PARALLEL)),
    "a masked rest": kernel(
        For(
            TILE,
            (For(LANE, (If(LANE < 5, (Store(Buffer("w", F32, as_shape((4, 5))), (TILE, LANE), ONE),)),)),),
            Kind.PARALLEL,
        ),
        params=(A,),
    ),
    "each its own locals": kernel(
        For(LANE, (Alloc(L), Store(L, as_shape((0,)), ONE), Store(WIDE, (LANE,), load(L, (0,)))), Kind.JAM)
    ),
    "scratch of a task": kernel(
        For(
            I,
            (Alloc(S), Store(S, as_shape((0,)), ONE), Store(B, as_shape((I, 0)), load(S, (0,)))),
            Kind.PARALLEL,
        )
    ),
    "one iteration": kernel(For(axis("o", 1), (Store(WIDE, as_shape((0,)), ONE),), Kind.PARALLEL)),
}


@pytest.mark.parametrize("what", INDEPENDENT)
def test_independent_loops_are_recognised(what: str) -> None:
    k = INDEPENDENT[what]
    buffers = {s.buffer for s in _stores(k.body) if s.buffer.scope == "param"}
    verify_kernel(replace(k, params=tuple(dict.fromkeys((*k.params, *buffers)))))


def _stores(statements: object) -> list[Store]:
    from fusile.ir.loops import walk

    return [s for s in walk(statements) if isinstance(s, Store)]  # type: ignore[arg-type]


def test_a_condition_may_guard_an_index() -> None:
    at = guard(cast(X[I, J], I64), 4, "site")
    verify_program(program(body(select(X[I, J] < 1.0, X[I, at], const(0.0, F32)))))
