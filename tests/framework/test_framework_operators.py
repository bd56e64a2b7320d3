"""Every row of both frameworks against ONNX Runtime: a table of one-node models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from framework_models import FRAMEWORKS, Array, Draw, agrees, model, node

D = Draw(7)
I64 = np.int64


@dataclass(frozen=True)
class Case:
    """One node: inputs that are fed, inputs that are constants, attributes."""

    name: str
    op: str
    fed: Sequence[Array]
    constants: Mapping[int, Array] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 21
    bound: float = 1e-5


def ints(*values: int) -> Array:
    return np.array(values, dtype=I64)


def case(name: str, fed: Sequence[Array], constants: Mapping[int, Array] | None = None, **rest: Any) -> Case:
    """`Op` or `Op_variant`; rest are attributes and the fields outputs, opset and bound."""
    fields = {word: rest.pop(word) for word in ("outputs", "opset", "bound") if word in rest}
    return Case(name, name.split("_")[0], fed, constants or {}, rest, **fields)


X, Y, P = D(2, 3, 4), D(2, 3, 4), D.positive(2, 3, 4)
IMAGE, SIGNAL, VOLUME = D(2, 4, 9, 8), D(2, 4, 11), D(1, 2, 5, 6, 4)
N = D.integers(1, 9, 2, 3, 4)
B = N > 4

UNARY = [
    case(op, [X])
    for op in (
        "Abs Atan Ceil Cos Elu Erf Exp Floor HardSigmoid HardSwish Identity LeakyRelu Neg Relu Selu Sigmoid Sign Sin"
        " Softplus Softsign Tan Tanh Round Celu ThresholdedRelu Mish Gelu LogSoftmax Softmax Hardmax IsNaN IsInf"
        " ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSumExp ReduceSumSquare"
        " ArgMax ArgMin Size Shape Shrink LpNormalization"
    ).split()
] + [case(op, [P]) for op in "Log Sqrt Reciprocal ReduceLogSum".split()]

BINARY = [
    *(case(op, [X, Y]) for op in "Add Sub Mul Div Max Min".split()),
    *(
        case(op, [N, N.T.reshape(2, 3, 4)])
        for op in "Add_int Sub_int Mul_int Div_int Mod_int Equal_int Less_int".split()
    ),
    *(case(op, [X, Y]) for op in "Equal Less LessOrEqual Greater GreaterOrEqual".split()),
    *(case(op, [B, ~B]) for op in "And Or Xor".split()),
    case("Not", [B]),
    case("Div_negative", [np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])]),
    case("Mod_float", [X, P], fmod=1),
    case("Pow", [P, Y]),
    case("Pow_square", [X], {1: np.array(2.0, dtype=np.float32)}),
    case("Pow_cube", [X], {1: np.array([3.0], dtype=np.float32)}),
    case("Add_scalar_first", [X], {0: np.array(2.5, dtype=np.float32)}),
    case("Sub_weight", [X], {0: D(3, 1)}),
    case("Max_number", [X], {1: np.array(0.1, dtype=np.float32)}),
    case("Min_three", [X, Y, P]),
    case("Sum", [X, Y, P]),
    case("Mean", [X, Y]),
    case("Where", [B, X, Y]),
    case(
        "Where_numbers", [B], {1: np.array(0, dtype=np.float32), 2: np.array(-3.4028235e38, dtype=np.float32)}
    ),
    case("PRelu", [X], {1: D.positive(3, 1)}),
    case("Clip", [X], {1: np.array(-0.5, dtype=np.float32), 2: np.array(0.5, dtype=np.float32)}),
    case("Clip_six", [X * 9], {1: np.array(0, dtype=np.float32), 2: np.array(6, dtype=np.float32)}),
    case("MatMul", [D(2, 3, 4), D(2, 4, 5)]),
    case("MatMul_weight", [D(2, 3, 4)], {1: D(4, 5)}),
    case("Gemm", [D(3, 4)], {1: D(5, 4), 2: D(5)}, transB=1),
    case("Gemm_scaled", [D(4, 3)], {1: D(4, 5), 2: D(3, 1)}, transA=1, alpha=0.5, beta=2.0),
    case("Einsum", [D(2, 3, 4), D(2, 4, 5)], equation="bij,bjk->bik"),
    case("Cast", [X], to=7),
    case("Cast_bool", [X], to=9),
    case("CumSum", [X], {1: np.array(1, dtype=I64)}),
    case("CumSum_back", [X], {1: np.array(-1, dtype=I64)}, exclusive=1, reverse=1),
    case("TopK", [X], {1: ints(2)}, outputs=2),
    case("TopK_axis", [X], {1: ints(2)}, outputs=2, axis=1, largest=0),
    case("BitShift", [N.astype(np.uint8), N.astype(np.uint8) % 4], direction="LEFT"),
]

REDUCED = [
    case("ReduceMean_axes", [X], {1: ints(1, 2)}, keepdims=0),
    case("ReduceSum_last", [X], {1: ints(-1)}),
    case("ReduceSum_int", [N.astype(np.int32)], {1: ints(0)}),
    case("ReduceSum_noop", [X], {1: ints()}, noop_with_empty_axes=1),
    case("ReduceMax_axis", [X], {1: ints(1)}, keepdims=0),
    case("ReduceProd_axes", [X], {1: ints(0, 2)}),
    case("Softmax_middle", [X], axis=1),
    case("ArgMax_last", [N], axis=1, keepdims=0, select_last_index=1),
]

MOVED = [
    case("Reshape", [X], {1: ints(0, -1)}),
    case("Reshape_zero", [X], {1: ints(4, 0, -1)}),
    case("Flatten", [IMAGE], axis=2),
    case("Flatten_first", [IMAGE], axis=0),
    case("Transpose", [IMAGE], perm=[0, 2, 3, 1]),
    case("Unsqueeze", [X], {1: ints(0, -1)}),
    case("Squeeze", [D(1, 3, 1)], {1: ints(0)}),
    case("Expand", [D(3, 1)], {1: ints(2, 1, 4)}),
    case("Tile", [X], {1: ints(1, 2, 3)}),
    case("Concat", [X, Y], axis=1),
    case("Concat_weight", [X], {0: D(2, 5, 4)}, axis=-2),
    case("Split", [IMAGE], outputs=2, axis=1, num_outputs=2),
    case("Split_sizes", [X], {1: ints(1, 3)}, outputs=2, axis=2),
    case("Split_uneven", [D(7)], outputs=3, num_outputs=3),
    case("Slice", [IMAGE], {1: ints(1, -3), 2: ints(2**62, -1), 3: ints(2, 3), 4: ints(2, 1)}),
    case("Slice_back", [X], {1: ints(-1), 2: ints(-(2**62)), 3: ints(2), 4: ints(-1)}),
    case("Slice_steps_back", [D(9)], {1: ints(7), 2: ints(1), 3: ints(0), 4: ints(-2)}),
    case("Gather", [X], {1: np.array([[0, 2], [1, -1]])}, axis=1),
    case("Gather_one", [X], {1: np.array(-1)}, axis=2),
    case("Gather_fed", [X, np.array([[1, 0], [-1, 2]])], axis=1),
    case("Gather_embedding", [D.integers(0, 9, 2, 5)], {0: D(9, 6)}),
    case("GatherElements", [X, D.integers(-3, 3, 2, 2, 4)], axis=1),
    case("GatherND", [X, D.integers(0, 2, 3, 2)]),
    case("GatherND_batch", [X, D.integers(0, 3, 2, 1)], batch_dims=1),
    case("ScatterElements", [X, ints(0, 1, 1, 0).reshape(1, 1, 4), D(1, 1, 4)], axis=1),
    case("ScatterElements_add", [X, ints(0, 1, 1, 0).reshape(1, 1, 4), D(1, 1, 4)], axis=1, reduction="add"),
    case("ScatterND", [X, np.array([[0], [-1]]), D(2, 3, 4)]),
    case("ScatterND_mul", [X, np.array([[1], [1]]), D(2, 3, 4)], reduction="mul"),
    case("Pad", [X], {1: ints(0, 1, 2, 0, 0, 1)}),
    case("Pad_value", [X], {1: ints(1, 2), 2: np.array(3, dtype=np.float32), 3: ints(-1)}),
    case("Pad_negative", [X], {1: ints(0, -1, 1, 0, 0, -2)}),
    case("Pad_reflect", [IMAGE], {1: ints(0, 0, 2, 1, 0, 0, 1, 3)}, mode="reflect"),
    case("Pad_reflect_first", [X], {1: ints(1, 0, 1, 1, 0, 0)}, mode="reflect"),
    case("Pad_edge", [X], {1: ints(0, 2, 1, 0, 0, 3)}, mode="edge"),
    case("Pad_wrap", [X], {1: ints(0, 2, 1, 0, 1, 0)}, mode="wrap"),
    case("Trilu", [D(4, 5)], {1: np.array(1)}, upper=1),
    case("Trilu_lower", [D(2, 4, 5)], upper=0),
    case("DepthToSpace", [D(1, 8, 2, 3)], blocksize=2),
    case("DepthToSpace_crd", [D(1, 8, 2, 3)], blocksize=2, mode="CRD"),
    case("SpaceToDepth", [D(1, 2, 4, 6)], blocksize=2),
    case(
        "OneHot", [D.integers(-3, 3, 2, 3)], {1: ints(4), 2: np.array([0.5, 2.0], dtype=np.float32)}, axis=1
    ),
    case("EyeLike", [D(3, 4)], k=1),
    case("NonZero", [B.astype(np.float32)]),
    case("Range", [np.array(1), np.array(9), np.array(2)]),
    case("ConstantOfShape", [ints(2, 3)]),
]

LAYERS = [
    case("Conv", [IMAGE], {1: D(6, 4, 3, 3), 2: D(6)}, pads=[1, 1, 1, 1]),
    case("Conv_strided", [IMAGE], {1: D(6, 4, 3, 3)}, pads=[1, 1, 1, 1], strides=[2, 2]),
    case("Conv_uneven", [IMAGE], {1: D(6, 4, 2, 3), 2: D(6)}, pads=[1, 0, 0, 2], strides=[1, 2]),
    case("Conv_groups", [IMAGE], {1: D(6, 2, 3, 3), 2: D(6)}, group=2),
    case("Conv_depthwise", [IMAGE], {1: D(8, 1, 3, 3), 2: D(8)}, group=4, pads=[1, 1, 1, 1]),
    case("Conv_depthwise_uneven", [IMAGE], {1: D(4, 1, 3, 3)}, group=4, pads=[1, 1, 1, 1], strides=[2, 1]),
    case("Conv_dilated", [IMAGE], {1: D(6, 4, 3, 3), 2: D(6)}, dilations=[2, 1], strides=[2, 1]),
    case("Conv_same", [IMAGE], {1: D(6, 4, 3, 3)}, auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv_same_lower", [IMAGE], {1: D(6, 4, 4, 4)}, auto_pad="SAME_LOWER", strides=[2, 3]),
    case("Conv_1d", [SIGNAL], {1: D(6, 4, 3), 2: D(6)}, pads=[1, 2]),
    case("Conv_3d", [VOLUME], {1: D(3, 2, 2, 3, 2), 2: D(3)}, strides=[2, 1, 1]),
    case("Conv_fed", [IMAGE, D(6, 4, 3, 3)]),
    case("ConvTranspose", [IMAGE], {1: D(4, 5, 3, 3), 2: D(5)}, strides=[2, 2], pads=[1, 1, 1, 1]),
    case("ConvTranspose_out", [IMAGE], {1: D(4, 5, 3, 3), 2: D(5)}, strides=[2, 2], output_padding=[1, 1]),
    case("ConvTranspose_uneven", [IMAGE], {1: D(4, 5, 2, 4)}, strides=[2, 3], pads=[0, 1, 1, 0]),
    case("ConvTranspose_groups", [IMAGE], {1: D(4, 3, 3, 3), 2: D(6)}, group=2, dilations=[1, 2]),
    case("ConvTranspose_small", [IMAGE], {1: D(4, 5, 1, 2)}, strides=[3, 3]),
    case("ConvTranspose_shape", [IMAGE], {1: D(4, 5, 3, 3)}, strides=[2, 2], output_shape=[17, 18]),
    case("ConvTranspose_same", [IMAGE], {1: D(4, 5, 3, 3)}, strides=[2, 2], auto_pad="SAME_UPPER"),
    case("ConvTranspose_1d", [SIGNAL], {1: D(4, 5, 4), 2: D(5)}, strides=[2]),
    case("BatchNormalization", [IMAGE], {1: D.positive(4), 2: D(4), 3: D(4), 4: D.positive(4)}),
    case(
        "BatchNormalization_flat",
        [D(5, 4)],
        {1: D.positive(4), 2: D(4), 3: D(4), 4: D.positive(4)},
        epsilon=1e-3,
    ),
    case("LayerNormalization", [X], {1: D(4), 2: D(4)}),
    case("LayerNormalization_two", [X], {1: D(3, 4)}, axis=1, epsilon=1e-3),
    case("InstanceNormalization", [IMAGE], {1: D(4), 2: D(4)}),
    case("GroupNormalization", [IMAGE], {1: D(4), 2: D(4)}, num_groups=2),
    case("RMSNormalization", [X], {1: D(4)}, opset=23, bound=1e-4),
    case("LRN", [IMAGE], size=3, alpha=0.1, beta=0.7, bias=1.5),
    case("MaxPool", [IMAGE], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("MaxPool_ceil", [IMAGE], kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1),
    case("MaxPool_dilated", [IMAGE], kernel_shape=[2, 2], dilations=[3, 2]),
    case("MaxPool_same", [IMAGE], kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    case("MaxPool_indices", [IMAGE], kernel_shape=[2, 2], strides=[2, 2], outputs=2),
    case("MaxPool_1d", [SIGNAL], kernel_shape=[3], pads=[2, 0]),
    case("AveragePool", [IMAGE], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("AveragePool_counted", [IMAGE], kernel_shape=[3, 3], pads=[2, 0, 1, 1], count_include_pad=1),
    case("AveragePool_uneven", [IMAGE], kernel_shape=[3, 2], pads=[1, 0, 0, 1], strides=[2, 1]),
    case("AveragePool_ceil", [IMAGE], kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1),
    case("GlobalAveragePool", [IMAGE]),
    case("GlobalMaxPool", [SIGNAL]),
    case("GlobalLpPool", [IMAGE], p=2),
]


def resized(name: str, scales: Sequence[float] = (), sizes: Sequence[int] = (), **rest: Any) -> Case:
    given = {2: np.array(scales, dtype=np.float32)} if scales else {3: np.array(sizes, dtype=I64)}
    return case(f"Resize_{name}", [IMAGE], given, **rest)


RESIZED = [
    resized("twice", [1, 1, 2, 2], nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
    resized("half_pixel", [1, 1, 2, 3]),
    resized("sizes", sizes=[2, 4, 5, 13], nearest_mode="ceil"),
    resized("linear", [1, 1, 2, 2], mode="linear"),
    resized("linear_down", sizes=[2, 4, 4, 5], mode="linear"),
    resized(
        "linear_corners", sizes=[2, 4, 12, 10], mode="linear", coordinate_transformation_mode="align_corners"
    ),
    resized("linear_asymmetric", [1, 1, 2, 1.5], mode="linear", coordinate_transformation_mode="asymmetric"),
    resized("cubic", [1, 1, 2, 2], mode="cubic"),
    resized("cubic_other", [1, 1, 1.5, 2], mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    resized(
        "pytorch", sizes=[2, 4, 3, 4], mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
    ),
]


def recurrent(op: str, gates: int, directions: int = 1, bias: bool = True, **rest: Any) -> Case:
    hidden, width, batch, steps = 4, 3, 2, 5
    variant = rest.pop("variant", "")
    states = rest.pop("states", ())
    constants = {
        1: D(directions, gates * hidden, width) * 0.5,
        2: D(directions, gates * hidden, hidden) * 0.5,
    }
    constants |= {3: D(directions, 2 * gates * hidden) * 0.5} if bias else {}
    constants |= {index: D(directions, batch, hidden) for index in states}
    name = f"{op}_{variant}" if variant else op
    return case(
        name,
        [D(steps, batch, width)],
        constants,
        hidden_size=hidden,
        outputs=3 if op == "LSTM" else 2,
        **rest,
    )


RECURRENT = [
    recurrent("LSTM", 4),
    recurrent("LSTM", 4, 2, direction="bidirectional", states=(5, 6), variant="both"),
    recurrent("LSTM", 4, bias=False, direction="reverse", variant="reverse"),
    recurrent("LSTM", 4, clip=0.3, variant="clip"),
    recurrent("LSTM", 4, activations=["Sigmoid", "Relu", "Tanh"], variant="relu"),
    recurrent("GRU", 3, linear_before_reset=1),
    recurrent("GRU", 3, 2, direction="bidirectional", linear_before_reset=1, states=(5,), variant="both"),
    recurrent("GRU", 3, variant="reset_before"),
    recurrent("RNN", 1),
    recurrent("RNN", 1, activations=["Relu"], direction="reverse", variant="relu"),
]

CASES = [*UNARY, *BINARY, *REDUCED, *MOVED, *LAYERS, *RESIZED, *RECURRENT]


@pytest.mark.parametrize("to", FRAMEWORKS)
@pytest.mark.parametrize("given", CASES, ids=lambda given: given.name)
def test_row_agrees(given: Case, to: str, tmp_path: Path) -> None:
    count = max([len(given.fed) + len(given.constants), *(index + 1 for index in given.constants)])
    fed = iter(enumerate(given.fed))
    feeds: dict[str, Array] = {}
    weights: dict[str, Array] = {}
    names = []
    for index in range(count):
        if index in given.constants:
            names.append(f"w{index}")
            weights[names[-1]] = given.constants[index]
            continue
        place, value = next(fed, (None, None))
        names.append("" if value is None else f"x{place}")
        if value is not None:
            feeds[names[-1]] = value
    outputs = [f"y{i}" for i in range(given.outputs)]
    made = model(
        [node(given.op, names, outputs, **given.attributes)], feeds, weights, outputs, opset=given.opset
    )
    agrees(made, feeds, to, tmp_path, given.bound)


def test_every_row_is_in_the_table() -> None:
    """A row without a case here is one that the ONNX project's own cases cover, or one of ours."""
    from fusile.backends.framework import keras, torch

    covered = {given.op for given in CASES}
    elsewhere = {
        *(
            "Acos Acosh Asin Asinh Atanh Cosh Sinh BitwiseAnd BitwiseOr BitwiseXor BitwiseNot CastLike Det".split()
        ),
        *("Linear Swish LpPool MeanVarianceNormalization".split()),
        *(  # in test_framework_programs.py
            "If Loop Scan SequenceEmpty SequenceConstruct SequenceAt SequenceInsert SequenceErase"
            " SequenceLength SplitToSequence ConcatFromSequence Optional OptionalHasElement"
            " OptionalGetElement TfIdfVectorizer AffineGrid DFT Col2Im CumProd MelWeightMatrix"
            " NonMaxSuppression Unique Dropout QuantizeLinear DequantizeLinear StringConcat"
            " StringNormalizer StringSplit RegexFullMatch ai.onnx.ml::LabelEncoder ImageDecoder"
        ).split(),
        *("RandomUniform RandomNormal RandomUniformLike RandomNormalLike Bernoulli Multinomial".split()),
    }
    for backend in (torch, keras):
        assert set(backend.FRAMEWORK.rows) - covered - elsewhere == set()
