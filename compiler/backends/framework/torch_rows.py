"""PyTorch rows that compute: arithmetic, comparison, activations, reductions. One row per operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from fusile.backends.framework.code import Code, Name, Plain, Var, call, name, short_float
from fusile.backends.framework.common import Row
from fusile.backends.framework.refusal import Refusal
from fusile.backends.framework.site import Site
from fusile.backends.framework.words import axes_word, index, infix, last, logical, mean_of, sum_of, unary

DTYPES: Mapping[ir.DataType, str] = {
    ir.DataType.FLOAT: "torch.float32",
    ir.DataType.DOUBLE: "torch.float64",
    ir.DataType.FLOAT16: "torch.float16",
    ir.DataType.BFLOAT16: "torch.bfloat16",
    ir.DataType.INT8: "torch.int8",
    ir.DataType.INT16: "torch.int16",
    ir.DataType.INT32: "torch.int32",
    ir.DataType.INT64: "torch.int64",
    ir.DataType.UINT8: "torch.uint8",
    ir.DataType.UINT16: "torch.uint16",
    ir.DataType.UINT32: "torch.uint32",
    ir.DataType.UINT64: "torch.uint64",
    ir.DataType.BOOL: "torch.bool",
    ir.DataType.COMPLEX64: "torch.complex64",
    ir.DataType.COMPLEX128: "torch.complex128",
    ir.DataType.FLOAT8E4M3FN: "torch.float8_e4m3fn",
    ir.DataType.FLOAT8E4M3FNUZ: "torch.float8_e4m3fnuz",
    ir.DataType.FLOAT8E5M2: "torch.float8_e5m2",
    ir.DataType.FLOAT8E5M2FNUZ: "torch.float8_e5m2fnuz",
}


def dtype(kind: ir.DataType) -> Code:
    """The name of a type. Refuses what PyTorch does not have."""
    if kind not in DTYPES:
        raise Refusal(f"PyTorch has no type {kind.name}")
    return name(DTYPES[kind])


def cast_to(x: Code, kind: ir.DataType) -> Code:
    return x.method("to", dtype(kind))


def cast(n: Site) -> Code:
    to = ir.DataType(n.integer("to", 1))
    return n.tensor() if to is n.dtype() else cast_to(n.tensor(), to)


# ---- types that PyTorch does not compute in ----------------------------------------------------------

_NARROW = {ir.DataType.UINT16: ir.DataType.INT32, ir.DataType.UINT32: ir.DataType.INT64}
_WRAPPING = frozenset({"Add", "Sub", "Mul", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"})
_WIDENED = frozenset(
    "Add Sub Mul Div Mod Max Min Less LessOrEqual Greater GreaterOrEqual BitwiseAnd BitwiseOr BitwiseXor"
    " BitwiseNot BitShift".split()
)


def widened(row: Row) -> Row:
    """The row on a wider signed type where PyTorch has no arithmetic on an unsigned one."""

    def wide(n: Site) -> Code | Sequence[Code | None]:
        kind = n.value(0).dtype
        if kind not in (*_NARROW, ir.DataType.UINT64):
            return row(n)
        to = _NARROW.get(kind)
        if kind is ir.DataType.UINT64:
            if n.node.op_type not in _WRAPPING:
                n.refuse("PyTorch has no such operation on uint64", "cast to int64 before it")
            to = ir.DataType.INT64
        assert to is not None
        answer = row(n.cast(to))
        same = n.node.outputs[0].dtype is kind
        return cast_to(answer, kind) if same and isinstance(answer, Code) else answer

    return wide


# ---- arithmetic --------------------------------------------------------------------------------------


def compare(sign: str) -> Row:
    return lambda n: n.tensor(0).binary(sign, n.operand(1))


def extreme(function: str, bound: str, neutral: float) -> Row:
    """Max and Min of any number of operands: tensors first, then numbers, which are bounds of a clamp."""

    def row(n: Site) -> Code:
        every = range(len(n.node.inputs))
        numbers = [i for i in every if n.scalar(i) is not None]
        tensors = [i for i in every if i not in numbers] or numbers[:1]
        out, rank = n.tensor(tensors[0]), max(n.rank(i) for i in tensors)
        for i in tensors[1:]:
            out = call(function, out, n.tensor(i))
        for i in numbers:
            if n.scalar(i) == neutral or i in tensors:
                continue
            simple = n.rank(i) <= rank
            out = out.method("clamp", **{bound: n.operand(i)}) if simple else call(function, out, n.tensor(i))
        return out

    return row


def div(n: Site) -> Code:
    if n.dtype().is_integer():
        return call("torch.div", n.tensor(0), n.operand(1), rounding_mode="trunc")
    return n.operand(0) / n.operand(1)


def mod(n: Site) -> Code:
    return call("torch.fmod" if n.integer("fmod") else "torch.remainder", n.tensor(0), n.operand(1))


def power(n: Site) -> Code:
    exponent, x = n.scalar(1), n.tensor(0)
    if exponent is not None and n.rank(0) >= n.rank(1):
        if exponent == 2:
            return x.method("square")
        if exponent == 0.5 and not n.dtype().is_integer():
            return x.method("sqrt")
        return x.method("pow", int(exponent) if exponent == int(exponent) else short_float(exponent))
    out = x.method("pow", n.tensor(1))
    return out if n.dtype(0) == n.dtype(1) else cast_to(out, n.dtype(0))


def clip(n: Site) -> Code:
    bounds: dict[str, Plain] = {}
    for i, word in ((1, "min"), (2, "max")):
        if n.has(i):
            array = n.host(i)
            bounds[word] = n.number(array) if array is not None else n.tensor(i)
    if not bounds:
        return n.tensor()
    if (n.scalar(1), n.scalar(2)) == (0.0, 6.0) and n.dtype().is_floating_point():
        return call("F.relu6", n.tensor())
    if n.host(1) is not None and n.host(2) is not None:
        return n.tensor().method("clamp", *bounds.values())
    if len(bounds) == 2 and (n.host(1) is None) != (n.host(2) is None):  # a number beside a tensor
        return n.tensor().method("clamp", min=bounds["min"]).method("clamp", max=bounds["max"])
    return n.tensor().method("clamp", **bounds)


def where(n: Site) -> Code:
    numbers = [n.host(1), n.host(2)]
    if all(a is not None and len(a.flat) == 1 and a.elements.ndim <= n.rank(0) for a in numbers):
        if n.result_dtype() in (ir.DataType.FLOAT, ir.DataType.INT64):
            return call("torch.where", n.tensor(0), *(n.number(a) for a in numbers if a is not None))
        return call("torch.where", n.tensor(0), n.tensor(1), n.tensor(2))
    return call("torch.where", n.tensor(0), n.operand(1), n.operand(2))


def einsum(n: Site) -> Code:
    return call("torch.einsum", n.string("equation"), *(n.tensor(i) for i in range(len(n.node.inputs))))


def gemm(n: Site) -> Code:
    a, b = n.tensor(0), n.tensor(1)
    out = (a.attribute("T") if n.integer("transA") else a) @ (b.attribute("T") if n.integer("transB") else b)
    alpha, beta = n.real("alpha", 1.0), n.real("beta", 1.0)
    out = out if alpha == 1.0 else out * alpha
    if n.has(2):
        out = out + (n.tensor(2) if beta == 1.0 else n.tensor(2) * beta)
    return out


def is_inf(n: Site) -> Code:
    negative, positive = n.integer("detect_negative", 1), n.integer("detect_positive", 1)
    if not negative and not positive:
        return call("torch.zeros_like", n.tensor(), dtype=name("torch.bool"))
    return call(
        "torch.isinf" if negative and positive else "torch.isposinf" if positive else "torch.isneginf",
        n.tensor(),
    )


def bit_shift(n: Site) -> Code:
    left = n.string("direction") == "LEFT"
    return call("torch.bitwise_left_shift" if left else "torch.bitwise_right_shift", n.tensor(0), n.tensor(1))


# ---- activations -------------------------------------------------------------------------------------


def hard_sigmoid(n: Site) -> Code:
    alpha, beta = n.real("alpha", 0.2), n.real("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return call("F.hardsigmoid", n.tensor())
    return (n.tensor() * alpha + beta).method("clamp", 0, 1)


def prelu(n: Site) -> Code:
    x = n.tensor(0)
    return call("torch.where", x.binary("<", 0), x * n.tensor(1), x)


def thresholded(n: Site) -> Code:
    x = n.tensor()
    return call("torch.where", x.binary(">", n.real("alpha", 1.0)), x, 0.0)


def selu(n: Site) -> Code:
    alpha, gamma = n.real("alpha", 1.67326319), n.real("gamma", 1.05070102)
    if abs(alpha - 1.6732632) < 1e-5 and abs(gamma - 1.0507010) < 1e-5:
        return call("F.selu", n.tensor())
    return call("F.elu", n.tensor(), alpha) * gamma


def swish(n: Site) -> Code:
    alpha, x = n.real("alpha", 1.0), n.tensor()
    return call("F.silu", x) if alpha == 1.0 else x * call("torch.sigmoid", x * alpha)


def gelu(n: Site) -> Code:
    tanh = n.string("approximate", "none") == "tanh"
    return call("F.gelu", n.tensor(), approximate="tanh" if tanh else None)


def shrink(n: Site) -> Code:
    x, bias, limit = n.tensor(), n.real("bias"), n.real("lambd", 0.5)
    above = call("torch.where", x.binary(">", limit), x - bias, 0)
    return call("torch.where", x.binary("<", -limit), x + bias, above)


def along_axis(function: str) -> Row:
    return lambda n: call(function, n.tensor(), dim=n.axis_word())


def hardmax(n: Site) -> Code:
    x, axis = n.tensor(), n.axis()
    top = x.method("argmax", axis, keepdim=True)
    return call("torch.zeros_like", x).method("scatter", axis, top, 1.0)


# ---- reductions --------------------------------------------------------------------------------------


def _same(x: Code) -> Code:
    return x


def reduction(
    method: str, before: Callable[[Code], Code] = _same, after: Callable[[Code], Code] = _same
) -> Row:
    """`after(before(x).method(axes))` of the Reduce* family."""

    def row(n: Site) -> Code:
        kind, x = n.dtype(), before(n.tensor())
        if method == "mean" and kind.is_integer():
            n.refuse("the mean of integers", "cast to float before and back after it")
        if method in ("amax", "amin") and 0 in [s for s in _shape_if_known(n) if isinstance(s, int)]:
            return _of_nothing(n, method)
        out = after(_reduced(n, x, method))
        widens = kind.is_integer() and kind is not ir.DataType.INT64 and method in ("sum", "prod")
        return cast_to(out, kind) if widens else out

    return row


def _shape_if_known(n: Site) -> Sequence[object]:
    return n.shape() if n.value(0).shape is not None else []


def _reduced(n: Site, x: Code, method: str) -> Code:
    data = n.constant(1) if n.has(1) else None
    keep, noop = bool(n.integer("keepdims", 1)), bool(n.integer("noop_with_empty_axes"))
    if n.has(1) and data is None:
        return n.helper("reduce_run")(x, method, n.tensor(1).method("tolist"), keep, noop)
    if data is not None and not n.has_rank():
        return n.helper("reduce_run")(x, method, [int(a) for a in data.ravel()], keep, noop)
    rank = n.rank()
    axes = sorted(int(a) % rank for a in data.ravel()) if data is not None else []
    if (not axes and noop) or not rank:
        return x
    axes = axes or list(range(rank))
    words: dict[str, Plain] = {"keepdim": True} if keep else {}
    if method != "prod" or len(axes) == 1:
        return x.method(method, axes_word(axes, rank), **words)
    for axis in reversed(axes):  # prod takes one axis at a time
        x = x.method(method, axis, **words)
    return x


def _of_nothing(n: Site, method: str) -> Code:
    """The maximum or minimum over no elements: the least or greatest value of the type."""
    kind, made = n.dtype(), n.node.outputs[0]
    if made.shape is None:
        n.refuse("the rank of the result is not known")
    sizes = tuple(n.size(n.printer.dim(made, axis)) for axis in range(len(made.shape)))
    if kind is ir.DataType.BOOL:
        return call("torch.full", sizes, method == "amin")
    if not kind.is_floating_point():
        n.refuse("the maximum or minimum over no integers")
    return call("torch.full", sizes, float("-inf" if method == "amax" else "inf"), dtype=dtype(kind))


def arg(method: str) -> Row:
    def row(n: Site) -> Code:
        x, axis = n.tensor(), n.axis(0)
        keep: dict[str, Plain] = {"keepdim": True} if n.integer("keepdims", 1) else {}
        if n.integer("select_last_index"):
            return n.dim(0, axis) - 1 - x.method("flip", axis).method(method, axis, **keep)
        return x.method(method, last(axis, n.rank()), **keep)

    return row


def cumulative(n: Site) -> Code:
    data, kind, x = n.constant(1), n.dtype(), n.tensor()
    axis: Plain = (
        n.tensor(1).method("item") if data is None else last(int(data.ravel()[0]) % n.rank(), n.rank())
    )
    exclusive, reverse = n.integer("exclusive"), n.integer("reverse")
    x = x.method("flip", axis) if reverse else x
    keeps = kind.is_integer() and kind is not ir.DataType.INT64
    out = x.method("cumsum", axis, **({"dtype": dtype(kind)} if keeps else {}))
    out = out - x if exclusive else out
    return out.method("flip", axis) if reverse else out


def top_k(n: Site) -> Sequence[Code | None]:
    counts = n.sizes(1)
    count = n.size(counts[0]) if counts else n.tensor(1).method("item")
    axis, rank = n.axis(), n.rank()
    if n.dtype() in (*_NARROW, ir.DataType.UINT64):
        n.refuse(f"PyTorch does not sort {n.dtype().name.lower()}")
    # A stable sort, not topk: of equal elements ONNX takes the first.
    values, places = Var("values"), Var("indices")
    extra: dict[str, Plain] = {"descending": True} if n.integer("largest", 1) else {}
    n.unpack(call("torch.sort", n.tensor(), dim=last(axis, rank), **extra, stable=True), (values, places))
    return [index(Name(t), {axis: slice(None, count)}, rank) for t in (values, places)]


def lp_norm(n: Site) -> Code:
    x, axis = n.tensor(), n.axis_word()
    norm = n.let(x.method("norm", n.integer("p", 2), axis, keepdim=True), "norm")
    return call("torch.where", norm.binary("==", 0), 0.0, x / norm)


def mean_variance(n: Site) -> Code:
    axes, x = tuple(n.integers("axes", (0, 2, 3))), n.tensor()
    mean = n.let(x.method("mean", axes, keepdim=True), "mean")
    square = x.method("square").method("mean", axes, keepdim=True)
    return (x - mean) / ((square - mean.method("square")).method("sqrt") + 1e-9)


_PLAIN: dict[str, Row] = {
    # arithmetic
    "Add": infix("+"),
    "Sub": infix("-"),
    "Mul": infix("*"),
    "Div": div,
    "Mod": mod,
    "Pow": power,
    "Neg": lambda n: -n.tensor(),
    "Reciprocal": unary("torch.reciprocal"),
    "Max": extreme("torch.maximum", "min", float("-inf")),
    "Min": extreme("torch.minimum", "max", float("inf")),
    "Sum": sum_of,
    "Mean": mean_of,
    "MatMul": lambda n: n.tensor(0) @ n.tensor(1),
    "Gemm": gemm,
    "Einsum": einsum,
    "Det": unary("torch.det"),
    **{
        op: unary(f"torch.{op.lower()}")
        for op in (
            "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Erf Exp Floor IsNaN Log Round Sigmoid"
            " Sign Sin Sinh Sqrt Tan Tanh"
        ).split()
    },
    "IsInf": is_inf,
    # comparison and logic
    "Equal": compare("=="),
    "Less": compare("<"),
    "LessOrEqual": compare("<="),
    "Greater": compare(">"),
    "GreaterOrEqual": compare(">="),
    "And": logical("&"),
    "Or": logical("|"),
    "Xor": logical("^"),
    "Not": lambda n: ~n.tensor(),
    "BitwiseAnd": logical("&"),
    "BitwiseOr": logical("|"),
    "BitwiseXor": logical("^"),
    "BitwiseNot": lambda n: ~n.tensor(),
    "BitShift": bit_shift,
    "Where": where,
    # activations
    "Relu": unary("F.relu"),
    "LeakyRelu": lambda n: call("F.leaky_relu", n.tensor(), n.real("alpha", 0.01)),
    "PRelu": prelu,
    "Elu": lambda n: call("F.elu", n.tensor(), n.real("alpha", 1.0)),
    "Celu": lambda n: call("F.celu", n.tensor(), n.real("alpha", 1.0)),
    "Selu": selu,
    "Gelu": gelu,
    "Swish": swish,
    "Mish": unary("F.mish"),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": unary("F.hardswish"),
    "Softplus": unary("F.softplus"),
    "Softsign": unary("F.softsign"),
    "ThresholdedRelu": thresholded,
    "Shrink": shrink,
    "Clip": clip,
    "Softmax": along_axis("torch.softmax"),
    "LogSoftmax": along_axis("torch.log_softmax"),
    "Hardmax": hardmax,
    "LpNormalization": lp_norm,
    "MeanVarianceNormalization": mean_variance,
    # reductions
    "ReduceSum": reduction("sum"),
    "ReduceMean": reduction("mean"),
    "ReduceMax": reduction("amax"),
    "ReduceMin": reduction("amin"),
    "ReduceProd": reduction("prod"),
    "ReduceL1": reduction("sum", lambda x: x.method("abs")),
    "ReduceL2": reduction("sum", lambda x: x.method("square"), lambda x: x.method("sqrt")),
    "ReduceSumSquare": reduction("sum", lambda x: x.method("square")),
    "ReduceLogSum": reduction("sum", after=lambda x: x.method("log")),
    "ReduceLogSumExp": reduction("logsumexp"),
    "ArgMax": arg("argmax"),
    "ArgMin": arg("argmin"),
    "CumSum": cumulative,
    "TopK": top_k,
    # types
    "Cast": cast,
    "CastLike": lambda n: cast_to(n.tensor(), n.dtype(1)),
}
ROWS: Mapping[str, Row] = {op: widened(row) if op in _WIDENED else row for op, row in _PLAIN.items()}
