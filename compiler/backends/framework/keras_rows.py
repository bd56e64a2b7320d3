"""Keras rows that compute, in words of `keras.ops`: arithmetic, comparison, activations, reductions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from fusile.backends.framework.code import Code, Name, Plain, Var, call, name, short_float
from fusile.backends.framework.common import Row
from fusile.backends.framework.refusal import Refusal
from fusile.backends.framework.site import Site
from fusile.backends.framework.words import axes_word, infix, last, logical, mean_of, sum_of, unary

DTYPES: Mapping[ir.DataType, str] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT8: "int8",
    ir.DataType.INT16: "int16",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int64",
    ir.DataType.UINT8: "uint8",
    ir.DataType.UINT16: "uint16",
    ir.DataType.UINT32: "uint32",
    ir.DataType.UINT64: "uint64",
    ir.DataType.BOOL: "bool",
}


def dtype(kind: ir.DataType) -> str:
    """The name of a type. Refuses what Keras does not have."""
    if kind not in DTYPES:
        raise Refusal(f"Keras has no type {kind.name}")
    return DTYPES[kind]


def cast_to(x: Code, kind: ir.DataType) -> Code:
    return call("ops.cast", x, dtype(kind))


def permute(x: Code, perm: Sequence[int]) -> Code:
    """Axes in another order."""
    return x if list(perm) == list(range(len(perm))) else call("ops.transpose", x, tuple(perm))


def reshape_to(x: Code, shape: tuple[int, ...]) -> Code:
    return call("ops.reshape", x, shape)


def run_list(n: Site, i: int) -> Code:
    """An input as a list of plain numbers when the module runs, outside of a traced function."""
    return n.helper("numbers")(n.tensor(i))


# ---- arithmetic --------------------------------------------------------------------------------------


def compare(function: str) -> Row:
    return lambda n: call(function, n.tensor(0), n.operand(1))


def exact(function: str, own: str) -> Row:
    """A function of two tensors; Keras computes uint64 in 32 bits, TensorFlow's own function does not."""
    plain = logical(function)
    return lambda n: logical(own)(n) if n.dtype() is ir.DataType.UINT64 else plain(n)


def variadic(function: str, neutral: float) -> Row:
    """Max and Min of any number of operands: tensors first, then numbers that change anything."""

    def row(n: Site) -> Code:
        every = range(len(n.node.inputs))
        numbers = [i for i in every if n.scalar(i) is not None]
        tensors = [i for i in every if i not in numbers] or numbers[:1]
        out = n.tensor(tensors[0])
        for i in (*tensors[1:], *(i for i in numbers if i != tensors[0])):
            if n.scalar(i) != neutral:
                word = function.replace("ops.", "tf.") if n.dtype() is ir.DataType.UINT64 else function
                out = call(word, out, n.operand(i))
        return out

    return row


def div(n: Site) -> Code:
    if n.dtype().is_integer():
        return call("tf.truncatediv", n.tensor(0), n.operand(1))
    return n.operand(0) / n.operand(1)


def mod(n: Site) -> Code:
    if n.dtype() is ir.DataType.UINT64:
        return call("tf.math.floormod", n.tensor(0), n.tensor(1))
    if not n.integer("fmod"):
        return call("ops.mod", n.tensor(0), n.operand(1))
    if n.dtype() is not ir.DataType.FLOAT16:
        return call("tf.truncatemod", n.tensor(0), n.operand(1))
    wide = [cast_to(n.tensor(i), ir.DataType.FLOAT) for i in (0, 1)]
    return cast_to(call("tf.truncatemod", *wide), ir.DataType.FLOAT16)


def power(n: Site) -> Code:
    exponent, x = n.scalar(1), n.tensor(0)
    if exponent is not None and n.rank(0) >= n.rank(1):
        if exponent == 2:
            return call("ops.square", x)
        if exponent == 0.5 and not n.dtype().is_integer():
            return call("ops.sqrt", x)
        whole = n.dtype().is_integer() and exponent == int(exponent)
        return call("ops.power", x, int(exponent) if whole else short_float(float(exponent)))
    if n.dtype(0) == n.dtype(1):
        return call("ops.power", x, n.tensor(1))
    if n.dtype(0).is_integer():
        return cast_to(call("ops.power", cast_to(x, n.dtype(1)), n.tensor(1)), n.dtype(0))
    return call("ops.power", x, cast_to(n.tensor(1), n.dtype(0)))


def cast(n: Site) -> Code:
    to = ir.DataType(n.integer("to", 1))
    return n.tensor() if to is n.dtype() else cast_to(n.tensor(), to)


def clip(n: Site) -> Code:
    ends: dict[int, Code] = {}
    for i in (1, 2):
        if n.has(i):
            array = n.host(i)
            ends[i] = n.number(array) if array is not None else n.tensor(i)
    if (n.scalar(1), n.scalar(2)) == (0.0, 6.0) and n.dtype().is_floating_point():
        return call("ops.relu6", n.tensor())
    if n.host(1) is not None and n.host(2) is not None:
        return call("ops.clip", n.tensor(), ends[1], ends[2])
    out = n.tensor()
    out = call("ops.maximum", out, ends[1]) if 1 in ends else out
    return call("ops.minimum", out, ends[2]) if 2 in ends else out


def where(n: Site) -> Code:
    numbers = [n.host(1), n.host(2)]
    if all(a is not None and len(a.flat) == 1 and a.elements.ndim <= n.rank(0) for a in numbers):
        if n.result_dtype() is ir.DataType.FLOAT:
            return call("ops.where", n.tensor(0), *(n.number(a) for a in numbers if a is not None))
        return call("ops.where", n.tensor(0), n.tensor(1), n.tensor(2))
    return call("ops.where", n.tensor(0), n.operand(1), n.operand(2))


def einsum(n: Site) -> Code:
    return call("ops.einsum", n.string("equation"), *(n.tensor(i) for i in range(len(n.node.inputs))))


def gemm(n: Site) -> Code:
    a, b = n.tensor(0), n.tensor(1)
    a = call("ops.transpose", a) if n.integer("transA") else a
    b = call("ops.transpose", b) if n.integer("transB") else b
    out = call("ops.matmul", a, b)
    alpha, beta = n.real("alpha", 1.0), n.real("beta", 1.0)
    out = out if alpha == 1.0 else out * alpha
    if n.has(2):
        out = out + (n.tensor(2) if beta == 1.0 else n.tensor(2) * beta)
    return out


# ---- activations -------------------------------------------------------------------------------------


def hard_sigmoid(n: Site) -> Code:
    alpha, beta = n.real("alpha", 0.2), n.real("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return call("ops.hard_sigmoid", n.tensor())
    return call("ops.clip", n.tensor() * alpha + beta, 0.0, 1.0)


def prelu(n: Site) -> Code:
    x = n.tensor(0)
    return call("ops.where", x.binary("<", 0), x * n.tensor(1), x)


def swish(n: Site) -> Code:
    alpha, x = n.real("alpha", 1.0), n.tensor()
    return call("ops.silu", x) if alpha == 1.0 else x * call("ops.sigmoid", x * alpha)


def gelu(n: Site) -> Code:
    return call("ops.gelu", n.tensor(), approximate=n.string("approximate", "none") == "tanh")


def selu(n: Site) -> Code:
    alpha, gamma, x = n.real("alpha", 1.67326319), n.real("gamma", 1.05070102), n.tensor()
    if abs(alpha - 1.6732632) < 1e-5 and abs(gamma - 1.0507010) < 1e-5:
        return call("ops.selu", x)
    return call("ops.elu", x, alpha) * gamma


def thresholded(n: Site) -> Code:
    x = n.tensor()
    return call("ops.where", x.binary(">", n.real("alpha", 1.0)), x, call("ops.zeros_like", x))


def shrink(n: Site) -> Code:
    x, bias, limit = n.tensor(), n.real("bias"), n.real("lambd", 0.5)
    low = call("ops.where", x.binary(">", limit), x - bias, call("ops.zeros_like", x))
    return call("ops.where", x.binary("<", -limit), x + bias, low)


def along_axis(function: str) -> Row:
    return lambda n: call(function, n.tensor(), axis=n.axis_word())


def hardmax(n: Site) -> Code:
    x, axis = n.tensor(), n.axis_word()
    top = call("ops.argmax", x, axis=axis)
    return call("ops.one_hot", top, n.dim(0, n.axis()), axis=axis, dtype=dtype(n.dtype()))


# ---- reductions --------------------------------------------------------------------------------------


def _same(x: Code) -> Code:
    return x


def reduction(
    function: str, before: Callable[[Code], Code] = _same, after: Callable[[Code], Code] = _same
) -> Row:
    """`after(function(before(x), axes))` of the Reduce* family."""

    def row(n: Site) -> Code:
        kind, x = n.dtype(), before(n.tensor())
        if function == "ops.mean" and kind.is_integer():
            n.refuse("the mean of integers", "cast to float before and back after it")
        sizes = n.shape() if n.value(0).shape is not None else []
        if function in ("ops.max", "ops.min") and 0 in [s for s in sizes if isinstance(s, int)]:
            return of_nothing(n, function)
        out = after(_reduced(n, x, function))
        widens = kind.is_integer() and kind is not ir.DataType.INT64 and function in ("ops.sum", "ops.prod")
        return cast_to(out, kind) if widens else out

    return row


def _reduced(n: Site, x: Code, function: str) -> Code:
    data = n.constant(1) if n.has(1) else None
    keep, noop = bool(n.integer("keepdims", 1)), bool(n.integer("noop_with_empty_axes"))
    if n.has(1) and data is None:
        return n.helper("reduce_run")(name(function), x, run_list(n, 1), keep, noop)
    if data is not None and not n.has_rank():
        return n.helper("reduce_run")(name(function), x, [int(a) for a in data.ravel()], keep, noop)
    rank = n.rank()
    axes = sorted(int(a) % rank for a in data.ravel()) if data is not None else []
    if (not axes and noop) or not rank:
        return x
    words: dict[str, Plain] = {"keepdims": True} if keep else {}
    return call(function, x, axis=axes_word(axes or range(rank), rank), **words)


def of_nothing(n: Site, function: str) -> Code:
    """The maximum or minimum over no elements: the least or greatest value of the type."""
    kind, made = n.dtype(), n.node.outputs[0]
    if made.shape is None:
        n.refuse("the rank of the result is not known")
    sizes = tuple(n.size(n.printer.dim(made, axis)) for axis in range(len(made.shape)))
    if kind is ir.DataType.BOOL:
        return call("ops.full", sizes, function == "ops.min", dtype="bool")
    if not kind.is_floating_point():
        n.refuse("the maximum or minimum over no integers")
    return call("ops.full", sizes, float("-inf" if function == "ops.max" else "inf"), dtype=dtype(kind))


def arg(function: str) -> Row:
    def row(n: Site) -> Code:
        x, axis = n.tensor(), n.axis(0)
        keep: dict[str, Plain] = {"keepdims": True} if n.integer("keepdims", 1) else {}
        if n.integer("select_last_index"):
            found = cast_to(
                call(function, call("ops.flip", x, axis=axis), axis=axis, **keep), ir.DataType.INT64
            )
            return cast_to(n.dim(0, axis) - 1, ir.DataType.INT64) - found
        return cast_to(call(function, x, axis=last(axis, n.rank()), **keep), ir.DataType.INT64)

    return row


def cumulative(n: Site) -> Code:
    data, x = n.constant(1), n.tensor()
    axis: Plain = run_list(n, 1)[0] if data is None else last(int(data.ravel()[0]) % n.rank(), n.rank())
    exclusive, reverse = n.integer("exclusive"), n.integer("reverse")
    x = call("ops.flip", x, axis=axis) if reverse else x
    out = call("ops.cumsum", x, axis=axis)
    out = out - x if exclusive else out
    return call("ops.flip", out, axis=axis) if reverse else out


def top_k(n: Site) -> Sequence[Code | None]:
    counts = n.sizes(1)
    count = n.size(counts[0]) if counts else run_list(n, 1)[0]
    rank, axis, x = n.rank(), n.axis(), n.tensor()
    order = [a for a in range(rank) if a != axis] + [axis]
    turned = axis != rank - 1
    x = permute(x, tuple(order)) if turned else x
    smallest = not n.integer("largest", 1)
    values, found = Var("values"), Var("indices")
    n.unpack(call("ops.top_k", -x if smallest else x, count), (values, found))
    top: Code = -Name(values) if smallest else Name(values)
    at = cast_to(Name(found), ir.DataType.INT64)
    back = tuple(order.index(a) for a in range(rank))
    return [permute(top, back), permute(at, back)] if turned else [top, at]


def is_inf(n: Site) -> Code:
    x = n.tensor()
    negative, positive_ = n.integer("detect_negative", 1), n.integer("detect_positive", 1)
    if negative and positive_:
        return call("ops.isinf", x)
    if not negative and not positive_:
        return call("ops.zeros_like", x, dtype="bool")
    return call("ops.equal", x, float("inf") if positive_ else float("-inf"))


def bit_shift(n: Site) -> Code:
    return n.helper("bit_shift")(n.tensor(0), n.tensor(1), n.string("direction") == "LEFT")


def lp_norm(n: Site) -> Code:
    x, axis = n.tensor(), n.axis_word()
    norm = n.let(call("ops.norm", x, ord=n.integer("p", 2), axis=axis, keepdims=True), "norm")
    return call("ops.divide_no_nan", x, norm)


def mean_variance(n: Site) -> Code:
    axes, x = tuple(n.integers("axes", (0, 2, 3))), n.tensor()
    mean = n.let(call("ops.mean", x, axis=axes, keepdims=True), "mean")
    square = call("ops.mean", call("ops.square", x), axis=axes, keepdims=True)
    return (x - mean) / (call("ops.sqrt", square - call("ops.square", mean)) + 1e-9)


ROWS: Mapping[str, Row] = {
    # arithmetic
    "Add": infix("+"),
    "Sub": infix("-"),
    "Mul": infix("*"),
    "Div": div,
    "Mod": mod,
    "Pow": power,
    "Neg": lambda n: -n.tensor(),
    "Reciprocal": unary("ops.reciprocal"),
    "Max": variadic("ops.maximum", float("-inf")),
    "Min": variadic("ops.minimum", float("inf")),
    "Sum": sum_of,
    "Mean": mean_of,
    "MatMul": lambda n: call("ops.matmul", n.tensor(0), n.tensor(1)),
    "Gemm": gemm,
    "Einsum": einsum,
    "Det": unary("ops.det"),
    **{
        op: unary(f"ops.{op.lower()}")
        for op in "Abs Ceil Cos Cosh Erf Exp Floor Log Round Sigmoid Sign Sin Sinh Sqrt Tan Tanh".split()
    },
    **{op: unary(f"ops.arc{op[1:].lower()}") for op in "Acos Acosh Asin Asinh Atan Atanh".split()},
    "IsNaN": unary("ops.isnan"),
    "IsInf": is_inf,
    # comparison and logic
    "Equal": compare("ops.equal"),
    "Less": compare("ops.less"),
    "LessOrEqual": compare("ops.less_equal"),
    "Greater": compare("ops.greater"),
    "GreaterOrEqual": compare("ops.greater_equal"),
    "And": logical("ops.logical_and"),
    "Or": logical("ops.logical_or"),
    "Xor": logical("ops.logical_xor"),
    "Not": unary("ops.logical_not"),
    "BitwiseAnd": exact("ops.bitwise_and", "tf.bitwise.bitwise_and"),
    "BitwiseOr": exact("ops.bitwise_or", "tf.bitwise.bitwise_or"),
    "BitwiseXor": exact("ops.bitwise_xor", "tf.bitwise.bitwise_xor"),
    "BitwiseNot": unary("ops.bitwise_not"),
    "BitShift": bit_shift,
    "Where": where,
    # activations
    "Relu": unary("ops.relu"),
    "LeakyRelu": lambda n: call("ops.leaky_relu", n.tensor(), n.real("alpha", 0.01)),
    "PRelu": prelu,
    "Elu": lambda n: call("ops.elu", n.tensor(), n.real("alpha", 1.0)),
    "Celu": lambda n: call("ops.celu", n.tensor(), n.real("alpha", 1.0)),
    "Selu": selu,
    "Gelu": gelu,
    "Swish": swish,
    "Mish": lambda n: n.tensor() * call("ops.tanh", call("ops.softplus", n.tensor())),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": unary("ops.hard_swish"),
    "Softplus": unary("ops.softplus"),
    "Softsign": unary("ops.softsign"),
    "ThresholdedRelu": thresholded,
    "Shrink": shrink,
    "Clip": clip,
    "Softmax": along_axis("ops.softmax"),
    "LogSoftmax": along_axis("ops.log_softmax"),
    "Hardmax": hardmax,
    # reductions
    "ReduceSum": reduction("ops.sum"),
    "ReduceMean": reduction("ops.mean"),
    "ReduceMax": reduction("ops.max"),
    "ReduceMin": reduction("ops.min"),
    "ReduceProd": reduction("ops.prod"),
    "ReduceL1": reduction("ops.sum", name("ops.abs")),
    "ReduceL2": reduction("ops.sum", name("ops.square"), name("ops.sqrt")),
    "ReduceSumSquare": reduction("ops.sum", name("ops.square")),
    "ReduceLogSum": reduction("ops.sum", after=name("ops.log")),
    "ReduceLogSumExp": reduction("ops.logsumexp"),
    "ArgMax": arg("ops.argmax"),
    "ArgMin": arg("ops.argmin"),
    "CumSum": cumulative,
    "TopK": top_k,
    "Cast": cast,
    "CastLike": lambda n: cast_to(n.tensor(), n.dtype(1)),
    # normalisation without weights
    "LpNormalization": lp_norm,
    "MeanVarianceNormalization": mean_variance,
}
