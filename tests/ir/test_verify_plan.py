"""Every promise that the verifiers of plans and graphs check, broken once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as onnx
import pytest
from refusals import refused

from fusile.graph.verify import verify_graph
from fusile.ir.expr import apply, axis, cast, const, dim, load
from fusile.ir.loops import Buffer, For, Kernel, Store
from fusile.ir.plan import Call, Check, Define, Place, Plan, PrepareStep, Step, Variant
from fusile.ir.tensor import Tensor, as_shape, constant
from fusile.ir.types import BOOL, F32, F64, I64
from fusile.ir.verify import verify_plan

N = dim("n")

# ---- plans -------------------------------------------------------------------------------------------------

V = Tensor("v", F32, as_shape((16,)))
MID = Tensor("mid", F32, as_shape((16,)))
MORE = Tensor("more", F32, as_shape((16,)))
OUT = Tensor("out", F32, as_shape((16,)))
W = constant(np.zeros(16, np.float32), "weights")
LATE = dim("late")
TEMP = Tensor("temp", F32, (LATE,))
P = axis("p", 16)


def mover(name: str, source: Tensor, to: Tensor, **changes: object) -> Call:
    """A call of a kernel that copies one tensor to another."""
    a, b = Buffer("from", source.dtype, source.shape), Buffer("to", to.dtype, to.shape)
    p = axis("p", source.shape[0])
    k = Kernel(
        name,
        (a, b),
        tuple(d for d in (LATE,) if LATE in source.shape),
        (For(p, (Store(b, (p,), load(a, (p,))),)),),
    )
    return replace(Call((Variant(None, k, (source, to)),)), **changes)  # type: ignore[arg-type]


PLACES = {
    V: Place("input", 0),
    OUT: Place("output", 0),
    MID: Place("arena", 0, const(0)),
    MORE: Place("arena", 0, const(64)),
    W: Place("weights", 0, const(0)),
    TEMP: Place("temp", 0),
}


def plan(*steps: Step, **changes: object) -> Plan:
    made = Plan(
        "p", (V,), (OUT,), ("out",), (), steps, PLACES, const(128), 64, (PrepareStep((W,), (), (W,)),)
    )
    return replace(made, **changes)  # type: ignore[arg-type]


FIRST, SECOND, LAST = mover("k1", V, MID), mover("k2", MID, MORE), mover("k3", MORE, OUT)
GUARDED = Variant(const(True, BOOL), FIRST.variants[0].kernel, (V, MID))
WEIGHTS_TWICE = constant(np.zeros(16, np.float32), "again")


def placed(**others: Place) -> dict[str, object]:
    named = {t.name: t for t in PLACES}
    return {"places": {**PLACES, **{named[name]: place for name, place in others.items()}}}


PLANS: dict[str, tuple[Callable[[], Plan], tuple[str, ...]]] = {
    "read before written": (lambda: plan(SECOND, FIRST, LAST), ("step 0 (k2)", "k2 reads 'mid' before")),
    "output never written": (lambda: plan(FIRST, SECOND), ("output 0 ('out') is never written",)),
    "no place": (
        lambda: plan(FIRST, SECOND, LAST, places={t: p for t, p in PLACES.items() if t is not MID}),
        ("'mid' has no place",),
    ),
    "overlap in the arena": (
        lambda: plan(FIRST, SECOND, LAST, **placed(more=Place("arena", 0, const(0)))),
        ("'mid' and 'more' are alive at the same time",),
    ),
    "beyond the arena": (lambda: plan(FIRST, SECOND, LAST, arena=const(100)), ("in an arena of 100 bytes",)),
    "not aligned": (
        lambda: plan(FIRST, SECOND, LAST, **placed(more=Place("arena", 0, const(68)))),
        ("starts at byte 68",),
    ),
    "input written": (lambda: plan(FIRST, mover("k", MID, V), LAST), ("k writes 'v', which is input",)),
    "weights written": (lambda: plan(FIRST, mover("k", MID, W), LAST), ("which is weights",)),
    "read and written in one place": (
        lambda: plan(mover("k0", V, OUT), mover("k", V, OUT, variants=_in_place())),
        ("are one memory",),
    ),
    "size too late": (
        lambda: plan(FIRST, SECOND, mover("k", TEMP, OUT), LAST),
        ("k needs the size 'late' too early",),
    ),
    "size defined twice": (
        lambda: plan(Define(LATE, const(1), "d"), Define(LATE, const(1), "d"), FIRST, SECOND, LAST),
        ("size 'late' of 'd'", "twice"),
    ),
    "size read too early": (
        lambda: plan(Define(LATE, cast(load(MID, (0,)), I64), "d"), FIRST, SECOND, LAST),
        ("'mid' is read before it is written",),
    ),
    "check on data": (
        lambda: plan(FIRST, Check(load(MID, (0,)) < 1.0, "c", "why"), SECOND, LAST),
        ("only sizes may stand",),
    ),
    "temporary without memory": (
        lambda: plan(Define(LATE, const(16), "d"), FIRST, mover("k", MID, TEMP), SECOND, LAST),
        ("the temporary 'temp' is used while it has no memory",),
    ),
    "temporary released twice": (
        lambda: plan(
            Define(LATE, const(16), "d"),
            FIRST,
            mover("k", MID, TEMP, fresh=(TEMP,), release=(TEMP, TEMP)),
            SECOND,
            LAST,
        ),
        ("'temp' is released while it has no memory",),
    ),
    "temporary made twice": (
        lambda: plan(
            Define(LATE, const(16), "d"), FIRST, mover("k", MID, TEMP, fresh=(TEMP, TEMP)), SECOND, LAST
        ),
        ("'temp' is given memory twice",),
    ),
    "guard missing": (
        lambda: plan(replace(FIRST, variants=(GUARDED,)), SECOND, LAST),
        ("no variant of a call holds for all sizes",),
    ),
    "guard in the wrong place": (
        lambda: plan(replace(FIRST, variants=(FIRST.variants[0], FIRST.variants[0])), SECOND, LAST),
        ("stands before other variants",),
    ),
    "number of arguments": (
        lambda: plan(replace(FIRST, variants=(replace(FIRST.variants[0], arguments=(V,)),)), SECOND, LAST),
        ("k1 takes 2 tensors, is given 1",),
    ),
    "shape of an argument": (
        lambda: plan(
            replace(FIRST, variants=(replace(FIRST.variants[0], arguments=(TEMP, MID)),)), SECOND, LAST
        ),
        ("'temp' has the shape",),
    ),
    "type of an argument": (
        lambda: plan(
            replace(
                FIRST, variants=(replace(FIRST.variants[0], arguments=(Tensor("d", F64, V.shape), MID)),)
            ),
            SECOND,
            LAST,
        ),
        ("'d' of type f64 is given as f32",),
    ),
    "weights never packed": (lambda: plan(FIRST, SECOND, LAST, prepare=()), ("no prepare step writes",)),
    "weights overlap": (
        lambda: plan(
            FIRST,
            SECOND,
            LAST,
            places={**PLACES, WEIGHTS_TWICE: Place("weights", 0, const(0))},
            prepare=(PrepareStep((W, WEIGHTS_TWICE), (), (W, WEIGHTS_TWICE)),),
        ),
        ("'weights' and 'again' overlap",),
    ),
    "weights too large": (
        lambda: plan(FIRST, SECOND, LAST, weights_bytes=60),
        ("weights end beyond 60 bytes",),
    ),
    "packing without data": (
        lambda: plan(FIRST, SECOND, LAST, prepare=(PrepareStep((V,), (), ()),)),
        ("prepare 0", "'v' is packed and has no data"),
    ),
    "packing reads what is not there": (
        lambda: plan(
            FIRST,
            SECOND,
            LAST,
            places={**PLACES, (t := Tensor("t", F32, V.shape)): Place("temp", 1)},
            prepare=(PrepareStep((W,), (mover("k", t, W),), (W,)),),
        ),
        ("prepare 0",),
    ),
    "output in the arena": (
        lambda: plan(FIRST, SECOND, LAST, **placed(out=Place("arena", 0, const(0)))),
        ("'out' lies in arena, not in output",),
    ),
    "output of another number": (
        lambda: plan(FIRST, SECOND, LAST, **placed(out=Place("output", 1))),
        ("output 0 ('out') lies where output 1 is",),
    ),
    "arena out of late sizes": (
        lambda: plan(FIRST, SECOND, LAST, arena=LATE * 64),
        ("'late' is not in scope",),
    ),
}


def _in_place() -> tuple[Variant, ...]:
    v = mover("k", V, OUT).variants[0]
    return (replace(v, arguments=(OUT, OUT)),)


@pytest.mark.parametrize("what", PLANS)
def test_broken_plans_are_refused(what: str) -> None:
    make, words = PLANS[what]
    refused(lambda: verify_plan(make()), *words)


def test_symbolic_arenas_are_tried_with_numbers() -> None:
    source, mid = Tensor("v", F32, (N,)), Tensor("mid", F32, (N,))
    more, out = Tensor("more", F32, (N,)), Tensor("out", F32, (N,))
    lines = (N * 4 + 63) // 64 * 64
    places = {
        source: Place("input", 0),
        mid: Place("arena", 0),
        more: Place("arena", 0, lines),
        out: Place("output", 0),
    }
    steps = (mover("k1", source, mid), mover("k2", mid, more), mover("k3", more, out))
    steps = tuple(
        replace(s, variants=(replace(v, kernel=replace(v.kernel, dims=(N,))),))
        for s in steps
        for v in s.variants
    )
    good = Plan("p", (source,), (out,), ("out",), (N,), steps, places, lines * 2, 0, ())
    verify_plan(good)
    small = {**places, more: Place("arena", 0, apply("max", lines - 64, const(0)))}
    refused(lambda: verify_plan(replace(good, places=small)), "alive at the same time", "n = ")


def test_good_plans_pass() -> None:
    verify_plan(plan(FIRST, SECOND, LAST))
    verify_plan(
        plan(
            Define(LATE, const(16), "d"),
            FIRST,
            mover("k", MID, TEMP, fresh=(TEMP,), release=(TEMP,)),
            SECOND,
            LAST,
        )
    )


# ---- graphs ------------------------------------------------------------------------------------------------


def value(name: str, **changes: object) -> onnx.Value:
    return onnx.Value(name=name, **changes)  # type: ignore[arg-type]


def graph_of(
    inputs: list[onnx.Value],
    nodes: list[onnx.Node],
    outputs: list[onnx.Value],
    initializers: list[onnx.Value] = (),  # type: ignore[assignment]
) -> onnx.Model:
    graph = onnx.Graph(
        inputs, outputs, nodes=nodes, initializers=initializers, name="g", opset_imports={"": 28}
    )
    return onnx.Model(graph, ir_version=10)


def test_broken_graphs_are_refused() -> None:
    x = value("x")
    first = onnx.Node("", "Relu", [x], name="first")
    second = onnx.Node("", "Neg", [first.outputs[0]], name="second")
    first.outputs[0].name, second.outputs[0].name = "a", "b"
    good = graph_of([x], [first, second], [second.outputs[0]])
    verify_graph(good, 28)
    refused(lambda: verify_graph(good, 27), "opset 28, not 27")
    second.outputs[0].name = "a"
    refused(lambda: verify_graph(good), "node 'second' (Neg)", "two values are called 'a'")
    second.outputs[0].name, second.name = "b", "first"
    refused(lambda: verify_graph(good), "two nodes have this name")
    second.name = "second"
    good.graph.remove(first)
    good.graph.append(first)
    refused(lambda: verify_graph(good), "node 'second' (Neg)", "input 0 ('a') is not defined before")


def test_graphs_with_leftovers_are_refused() -> None:
    node = onnx.Node("", "Constant", [], name="c")
    node.outputs[0].name = "k"
    refused(lambda: verify_graph(graph_of([], [node], [node.outputs[0]])), "a constant is a node")
    empty = value("w")
    relu = onnx.Node("", "Relu", [empty], name="r")
    relu.outputs[0].name = "y"
    refused(
        lambda: verify_graph(graph_of([empty], [relu], [value("z")])), "the output 'z' is defined nowhere"
    )
    other = value("u")
    reference = onnx.Node(
        "", "Relu", [other], [onnx.RefAttr("alpha", "beta", onnx.AttributeType.FLOAT)], name="q"
    )
    reference.outputs[0].name = "v"
    refused(
        lambda: verify_graph(graph_of([other], [reference], [reference.outputs[0]])), "'alpha'", "function"
    )
