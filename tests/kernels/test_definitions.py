"""What definitions look like: index maps that the fuser can read, symbolic sizes, refusals in words."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from operator_models import Case, one_node

import fusile.frontend
from fusile.errors import InvalidModelError, UnsupportedError
from fusile.ir import index as ix
from fusile.ir.expr import Apply, Expr, Guard, apply, cast, const, dim, loads, nodes
from fusile.ir.tensor import Compute, Program, as_shape
from fusile.ir.types import F32, I32, I64
from fusile.kernels.shapes import exact, reshape_index
from fusile.passes.to_tensor import infer, lower

N, S = dim("n"), dim("s")


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def lowered(case: Case, symbols: bool = False) -> Program:
    return lower(fusile.frontend.load(one_node(case, symbols)))


def reductions(program: Program) -> list[Compute]:
    return [s for s in program.stages if isinstance(s, Compute) and s.reduction is not None]


def has(e: Expr, *operations: str) -> bool:
    return any(isinstance(n, Apply) and n.op in operations for n in nodes(e))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((N, S, 384), (N, S, 6, 64)),
        ((N, 6, S, 64), (N * 6, S, 64)),
        ((N, S, 6, 64), (N, S, 384)),
        ((1, N, S), (N, S)),
        ((N, S), (N, 1, S, 1)),
        ((N, 2, S + 1, 64), (N * 2, S + 1, 64)),
    ],
)
def test_plain_reshapes_divide_by_no_symbol(old: tuple[Expr | int, ...], new: tuple[Expr | int, ...]) -> None:
    from fusile.ir.expr import axis

    index = [axis(f"i{k}", e) for k, e in enumerate(as_shape(new))]
    for e in reshape_index(index, as_shape(old), as_shape(new)):
        for n in nodes(e):
            if isinstance(n, Apply) and n.op in ("floordiv", "mod"):
                assert ix.number(n.args[1]) is not None


def test_grouped_query_heads_merge_back() -> None:
    total = (S * 512 + 512, S * 64 + 64)
    whole, rest = ix.split(ix.poly(total[0]), ix.poly(total[1]))
    assert (whole, rest) == ({(): 8}, {})


@pytest.mark.parametrize(
    ("detour", "straight"),
    [
        (cast(cast(N, I32), I64), N),
        (cast(apply("floor", cast(N, F32) * 2.0), I64), N * 2),
        (cast(apply("ceil", cast(N, F32) / 4.0), I64), ix.ceil_div(N, 4)),
        (cast(cast(N, F32) * 0.5, I64), N // 2),
        (cast(N, I32) + 3, N + 3),
    ],
)
def test_shape_arithmetic_takes_no_detours(detour: Expr, straight: Expr) -> None:
    assert exact(detour) is straight


def test_a_fraction_of_a_size_keeps_its_rounding() -> None:
    assert has(exact(cast(apply("round", cast(N, F32) * 0.3), I64)), "round")


def test_depthwise_sums_over_the_window_alone() -> None:
    (conv,) = reductions(
        lowered(Case("", "Conv", (zeros(1, 4, 8, 8), zeros(4, 1, 3, 3)), {"group": 4}, (1,)))
    )
    assert conv.reduction is not None
    assert [ix.number(a.extent) for a in conv.reduction.axes] == [3, 3]
    assert not has(conv.reduction.body, "select", "floordiv", "mod")


def test_padding_is_one_stage_and_none_without_padding() -> None:
    inputs = (zeros(1, 4, 8, 8), zeros(4, 4, 3, 3))
    padded = lowered(Case("", "Conv", inputs, {"pads": [1, 1, 1, 1]}, (1,)))
    assert [s.outs[0].name for s in padded.stages] == ["y0.pad", "y0"]
    assert len(lowered(Case("", "Conv", inputs, {}, (1,))).stages) == 1


def test_transposed_convolution_has_affine_maps() -> None:
    case = Case("", "ConvTranspose", (zeros(1, 4, 8, 8), zeros(4, 2, 4, 4)), {"strides": [2, 2]}, (1,))
    (conv,) = reductions(lowered(case))
    for load in loads(conv.body):
        assert not any(has(i, "floordiv", "mod", "select") for i in load.index)


@pytest.mark.parametrize("known", [True, False])
def test_gather_checks_what_it_does_not_know(known: bool) -> None:
    case = Case("", "Gather", (zeros(5, 3), np.array([0, 4])), {}, (1,) if known else ())
    (stage,) = lowered(case).stages
    assert isinstance(stage, Compute)
    assert any(isinstance(n, Guard) for n in nodes(stage.body)) is not known


def test_a_gather_out_of_range_is_refused_while_compiling() -> None:
    with pytest.raises(InvalidModelError, match="the index 5 is out of range for a size of 5"):
        lowered(Case("", "Gather", (zeros(5, 3), np.array([0, 5])), {}, (1,)))


def test_sizes_stay_symbols() -> None:
    case = Case("", "Concat", (zeros(3, 7), zeros(2, 7)), {"axis": 0})
    (out,) = lowered(case, symbols=True).outputs
    assert out.shape == (dim("n3") + 2, dim("n7"))


@pytest.mark.parametrize("declared", [1, 2])
def test_a_rank_that_depends_on_a_size_is_the_declared_one(declared: int) -> None:
    """Squeeze without axes: a dimension of a symbolic size goes where the model's output lacks it."""
    model = one_node(Case("", "Squeeze", (zeros(1, 3, 4),)), symbols=True)
    sizes = [None] * declared
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y0", onnx.TensorProto.FLOAT, sizes))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 4
    (requirement,) = (program := lower(fusile.frontend.load(model))).requirements
    assert program.outputs[0].rank == declared
    assert "n3" in repr(requirement.condition)


def test_every_gap_is_named_at_once() -> None:
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(
        [
            helper.make_node("Unknown", ["x"], ["a"], name="first", domain="here"),
            helper.make_node("Unheard", ["a"], ["y"], name="second", domain="here"),
        ],
        "gaps",
        values[:1],
        values[1:],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("here", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    with pytest.raises(UnsupportedError) as refused:
        lower(fusile.frontend.load(model))
    assert [gap.node for gap in refused.value.gaps] == ["first", "second"]


def test_infer_fills_in_shapes_and_types() -> None:
    table = numpy_helper.from_array(zeros(50, 8), "table")
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", "seq"])
    nodes_ = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(nodes_, "g", [ids], [helper.make_empty_tensor_value_info("m")], [table])
    opsets = [helper.make_opsetid("", 13)]
    model = fusile.frontend.load(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    infer(model)
    shapes = {v.name: str(v.shape) for node in model.graph for v in node.outputs}
    assert shapes == {"e": "[batch,seq,8]", "m": "[batch,8]"}


@pytest.mark.parametrize("low", [-3, 0])
def test_the_smaller_of_two_is_not_negative_only_if_both_are_not(low: int) -> None:
    from fusile.ir.expr import axis

    i = axis("i", 8)
    smaller = apply("min", i + low, const(3))
    assert ix.nonnegative(ix.poly(smaller)) is (low == 0)
