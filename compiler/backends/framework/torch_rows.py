"""PyTorch, one row per operator without weights; layers with weights are in `torch_layers.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from fusile.backends.framework.common import Row, Site
from fusile.backends.framework.host import HostArray, Scalar
from fusile.backends.framework.source import Call, Code, Name, Plain, Var, call, code, name, short_float
from fusile.ir import expr as ex

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
    ir.DataType.FLOAT8E5M2: "torch.float8_e5m2",
}
_UNLIMITED = 10**9
"""Ends of slices from here on mean `all`: exporters write 2^63 - 1, 2^31 - 1 and 10^9."""


def dtype(kind: ir.DataType) -> Code:
    """The name of a type. Refuses what PyTorch does not have."""
    from fusile.backends.framework.common import Refusal

    if kind not in DTYPES:
        raise Refusal(f"PyTorch has no type {kind.name}")
    return name(DTYPES[kind])


def device(arguments: Sequence[Var]) -> Code | None:
    """Where new tensors go: beside the first input."""
    return Name(arguments[0]).attribute("device") if arguments else None


def plain(values: Sequence[int]) -> Plain:
    """One number where all are equal, as layers take it."""
    return int(values[0]) if len(set(values)) == 1 else tuple(int(v) for v in values)


def last(axis: int, rank: int) -> int:
    """-1 for the last axis, others as they are."""
    return -1 if axis == rank - 1 else axis


# ---- small words for rows ----------------------------------------------------------------------------


def unary(function: str) -> Row:
    return lambda n: call(function, n.tensor())


def infix(sign: str) -> Row:
    return lambda n: n.operand(0).binary(sign, n.operand(1))


def compare(sign: str) -> Row:
    return lambda n: n.tensor(0).binary(sign, n.operand(1))


def variadic(function: str, bound: str) -> Row:
    """Max and Min: `torch.maximum`, or a clamp where one side is a number."""

    def row(n: Site) -> Code:
        numbers = [i for i in range(len(n.node.inputs)) if n.scalar(i) is not None]
        neutral = float("-inf") if bound == "min" else float("inf")
        out: Code | None = None
        for i in (i for i in range(len(n.node.inputs)) if i not in numbers):
            out = n.tensor(i) if out is None else call(function, out, n.tensor(i))
        for i in numbers:
            if out is None:
                out = n.tensor(i)
            else:
                if n.scalar(i) == neutral:
                    continue
                simple = len(n.value(i).shape or ()) <= max(len(v.shape or ()) for v in n.node.inputs if v)
                out = out.method("clamp", **{bound: n.operand(i)}) if simple else call(function, out, n.tensor(i))
        assert out is not None
        return out

    return row


def logical(sign: str) -> Row:
    """An operator between two tensors, or a function of them; a constant that changes nothing is left out."""

    def row(n: Site) -> Code:
        neutral = {"And": 1.0, "Or": 0.0}.get(n.node.op_type)
        for one, other in ((0, 1), (1, 0)):
            if n.scalar(one) is not None and n.scalar(one) == neutral and n.rank(other) >= n.rank(one):
                return n.tensor(other)
        if sign.isidentifier() or "." in sign:
            return call(sign, n.tensor(0), n.tensor(1))
        return n.tensor(0).binary(sign, n.tensor(1))

    return row


# ---- arithmetic --------------------------------------------------------------------------------------


def div(n: Site) -> Code:
    if n.dtype().is_integer():
        return call("torch.div", n.tensor(0), n.operand(1), rounding_mode="trunc")
    return n.operand(0) / n.operand(1)


def mod(n: Site) -> Code:
    function = "torch.fmod" if n.integer("fmod") else "torch.remainder"
    return call(function, n.tensor(0), n.operand(1))


_NARROW = {ir.DataType.UINT16: ir.DataType.INT32, ir.DataType.UINT32: ir.DataType.INT64}
_WRAPPING = frozenset({"Add", "Sub", "Mul", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"})


def widened(row: Row) -> Row:
    """The row on a wider signed type where PyTorch has no arithmetic on an unsigned one."""

    def wide(n: Site) -> Code | Sequence[Code | None]:
        kind = n.dtype()
        to = _NARROW.get(kind)
        if kind is ir.DataType.UINT64 and n.node.op_type in _WRAPPING:
            to = ir.DataType.INT64
        if to is None:
            if kind is ir.DataType.UINT64:
                n.refuse("PyTorch has no such operation on uint64")
            return row(n)
        answer = row(n.cast(to))
        same = n.node.outputs[0].dtype is kind
        return cast_to(answer, kind) if same and isinstance(answer, Code) else answer

    return wide


def power(n: Site) -> Code:
    exponent = n.scalar(1)
    x = n.tensor(0)
    if exponent is not None and n.rank(0) >= n.rank(1):
        if exponent == 2:
            return x.method("square")
        if exponent == 0.5 and not n.dtype().is_integer():
            return x.method("sqrt")
        return x.method("pow", int(exponent) if exponent == int(exponent) else short_float(exponent))
    out = x.method("pow", n.tensor(1))
    return out if n.dtype(0) == n.dtype(1) else cast_to(out, n.dtype(0))


def cast_to(x: Code, kind: ir.DataType) -> Code:
    return x.method("to", dtype(kind))


def cast(n: Site) -> Code:
    to = ir.DataType(n.integer("to", 1))
    return n.tensor() if to is n.dtype() else cast_to(n.tensor(), to)


def cast_like(n: Site) -> Code:
    return cast_to(n.tensor(), n.dtype(1))


def clip(n: Site) -> Code:
    bounds = {}
    for index, word in ((1, "min"), (2, "max")):
        if n.has(index):
            array = n.host(index)
            bounds[word] = n.number(array) if array is not None else n.tensor(index)
    if not bounds:
        return n.tensor()
    if (n.scalar(1), n.scalar(2)) == (0.0, 6.0) and n.dtype().is_floating_point():
        return call("F.relu6", n.tensor())
    literal = n.host(1) is not None and n.host(2) is not None
    if literal:
        return n.tensor().method("clamp", *bounds.values())
    return n.tensor().method("clamp", **bounds)


def where(n: Site) -> Code:
    if n.host(1) is not None and n.host(2) is not None:
        direct = n.result_dtype() in (ir.DataType.FLOAT, ir.DataType.INT64)
        if direct and all(len((n.host(i) or n.host(1)).flat) == 1 and n.rank(i) <= n.rank(0) for i in (1, 2)):  # type: ignore[union-attr]
            return call("torch.where", n.tensor(0), *(n.number(n.host(i)) for i in (1, 2)))  # type: ignore[arg-type]
        return call("torch.where", n.tensor(0), n.tensor(1), n.tensor(2))
    return call("torch.where", n.tensor(0), n.operand(1), n.operand(2))


def einsum(n: Site) -> Code:
    return call("torch.einsum", n.string("equation"), *(n.tensor(i) for i in range(len(n.node.inputs))))


def matmul(n: Site) -> Code:
    return n.tensor(0) @ n.tensor(1)


def gemm(n: Site) -> Code:
    a, b = n.tensor(0), n.tensor(1)
    a = a.attribute("T") if n.integer("transA") else a
    b = b.attribute("T") if n.integer("transB") else b
    out = a @ b
    alpha, beta = n.real("alpha", 1.0), n.real("beta", 1.0)
    out = out if alpha == 1.0 else out * alpha
    if n.has(2):
        out = out + (n.tensor(2) if beta == 1.0 else n.tensor(2) * beta)
    return out


def sum_of(n: Site) -> Code:
    out = n.tensor(0)
    for index in range(1, len(n.node.inputs)):
        out = out + n.tensor(index)
    return out


def mean_of(n: Site) -> Code:
    return sum_of(n) / len(n.node.inputs) if len(n.node.inputs) > 1 else n.tensor()


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


def softplus(n: Site) -> Code:
    return call("F.softplus", n.tensor())


def swish(n: Site) -> Code:
    alpha = n.real("alpha", 1.0)
    if alpha == 1.0:
        return call("F.silu", n.tensor())
    x = n.tensor()
    return x * call("torch.sigmoid", x * alpha)


def gelu(n: Site) -> Code:
    tanh = n.string("approximate", "none") == "tanh"
    return call("F.gelu", n.tensor(), approximate="tanh" if tanh else None)


def shrink(n: Site) -> Code:
    x, bias, limit = n.tensor(), n.real("bias"), n.real("lambd", 0.5)
    return call("torch.where", x.binary("<", -limit), x + bias, call("torch.where", x.binary(">", limit), x - bias, 0))


def along_axis(function: str) -> Row:
    return lambda n: call(function, n.tensor(), dim=last(n.axis(), n.rank()))


def hardmax(n: Site) -> Code:
    x, axis = n.tensor(), n.axis()
    index = x.method("argmax", axis, keepdim=True)
    return call("torch.zeros_like", x).method("scatter", axis, index, 1.0)


# ---- reductions --------------------------------------------------------------------------------------


def reduction(function: Callable[[Code, tuple[Code, ...], dict[str, Plain]], Code]) -> Row:
    """A row of the Reduce* family; `function` gets x, the axes as arguments, and keepdim."""

    def row(n: Site) -> Code:
        axes = n.ints(1, "the axes of a reduction") if n.has(1) else []
        if not axes and n.integer("noop_with_empty_axes"):
            return function(n.tensor(), (code(()),), {})
        rank = n.rank()
        picked = sorted(a % rank for a in axes) if axes else list(range(rank))
        keep: dict[str, Plain] = {"keepdim": True} if n.integer("keepdims", 1) else {}
        if not rank:
            return function(n.tensor(), (), {})
        where: Plain = last(picked[0], rank) if len(picked) == 1 else tuple(picked)
        return function(n.tensor(), (code(where),), keep)

    return row


def reduce_by(method: str) -> Row:
    plain_row = reduction(lambda x, axes, keep: x.method(method, *axes, **keep))

    def row(n: Site) -> Code:
        if n.has(1) and not n.ints(1, "axes") and n.integer("noop_with_empty_axes"):
            return n.tensor()
        if method in ("amax", "amin") and 0 in [size for size in n.shape() if isinstance(size, int)]:
            return _of_nothing(n, method)
        kind = n.dtype()
        if method in ("sum", "mean") and kind.is_integer():
            if method == "mean":
                n.refuse("the mean of integers", "cast to float before and back after it")
            return reduction(lambda x, axes, keep: x.method(method, *axes, **keep, dtype=dtype(kind)))(n)  # type: ignore[return-value]
        return plain_row(n)  # type: ignore[return-value]

    return row


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


def reduce_product(n: Site) -> Code:
    rank = n.rank()
    axes = sorted((a % rank for a in n.ints(1, "axes")), reverse=True) if n.has(1) else list(range(rank))[::-1]
    x, keep = n.tensor(), bool(n.integer("keepdims", 1))
    for axis in axes:
        x = x.method("prod", last(axis, rank), **({"keepdim": True} if keep else {}))
        rank = rank if keep else rank - 1
    return cast_to(x, n.dtype()) if n.dtype().is_integer() and n.dtype() is not ir.DataType.INT64 else x


def arg(function: str) -> Row:
    def row(n: Site) -> Code:
        x, axis, keep = n.tensor(), n.axis(0), bool(n.integer("keepdims", 1))
        if n.integer("select_last_index"):
            x = x.method("flip", axis)
            found = x.method(function, axis, keepdim=keep)
            return n.dim(0, axis) - 1 - found
        return x.method(function, last(axis, n.rank()), **({"keepdim": True} if keep else {}))

    return row


def cumulative(n: Site) -> Code:
    axis = n.ints(1, "the axis of a cumulative sum")[0] % n.rank()
    x = n.tensor()
    exclusive, reverse = n.integer("exclusive"), n.integer("reverse")
    x = x.method("flip", axis) if reverse else x
    out = x.method("cumsum", last(axis, n.rank()), **_int_dtype(n))
    out = out - x if exclusive else out
    return out.method("flip", axis) if reverse else out


def _int_dtype(n: Site) -> dict[str, Plain]:
    kind = n.dtype()
    return {"dtype": dtype(kind)} if kind.is_integer() and kind is not ir.DataType.INT64 else {}


# ---- movement ----------------------------------------------------------------------------------------


def target_sizes(n: Site, index: int = 1) -> list[Plain] | None:
    """The elements of a shape input as source; zeros of Reshape become the input's own sizes."""
    sizes = n.sizes(index)
    if sizes is None:
        return None
    copied = n.node.op_type == "Reshape" and not n.integer("allowzero")
    return [n.dim(0, i) if copied and is_zero(size) else n.size(size) for i, size in enumerate(sizes)]


def is_zero(size: Scalar) -> bool:
    return not isinstance(size, ex.Expr) and size == 0


def reshape(n: Site) -> Code:
    sizes = target_sizes(n)
    if sizes is None:
        return n.helper("reshape")(n.tensor(), n.tensor(1))
    return n.tensor().method("flatten", 1) if _flattens(n) else n.tensor().method("reshape", *_or_empty(sizes))


def _or_empty(sizes: list[Plain]) -> list[Plain]:
    return sizes if sizes else [()]


def _flattens(n: Site) -> bool:
    """Whether a reshape keeps the first axis and joins the rest."""
    sizes = n.sizes(1) or []
    if len(sizes) != 2 or n.rank() < 3 or isinstance(sizes[1], ex.Expr) or sizes[1] != -1:
        return False
    return (is_zero(sizes[0]) and not n.integer("allowzero")) or sizes[0] is n.shape()[0]


def flatten(n: Site) -> Code:
    axis, rank = n.integer("axis", 1), n.rank()
    axis = axis + rank if axis < 0 else axis
    x = n.tensor()
    if axis == 0:
        return x.method("reshape", 1, -1)
    if axis == 1 and rank > 1:
        return x.method("flatten", 1) if rank > 2 else x
    if axis == rank:
        return x.method("reshape", -1, 1)
    return x.method("flatten", axis).method("flatten", 0, axis - 1)


def transpose(n: Site) -> Code:
    rank = n.rank()
    return permute(n.tensor(), tuple(n.integers("perm", range(rank)[::-1])))


def permute(x: Code, perm: tuple[int, ...]) -> Code:
    """Axes in another order: a swap of two is a transpose."""
    moved = [i for i, p in enumerate(perm) if i != p]
    if not moved:
        return x
    if len(moved) == 2:
        return x.method("transpose", *moved)
    return x.method("permute", *perm)


def unsqueeze(n: Site) -> Code:
    axes = n.ints(1, "the axes of an unsqueeze")
    rank = n.rank() + len(axes)
    x = n.tensor()
    for axis in sorted(a % rank for a in axes):
        x = x.method("unsqueeze", last(axis, rank) if len(axes) == 1 else axis)
    return x


def squeeze(n: Site) -> Code:
    if not n.has(1):
        return n.tensor().method("squeeze")
    axes = sorted(a % n.rank() for a in n.ints(1, "the axes of a squeeze"))
    return n.tensor().method("squeeze", last(axes[0], n.rank()) if len(axes) == 1 else tuple(axes)) if axes else n.tensor()


def concat(n: Site) -> Code:
    parts = [n.tensor(i) for i in range(len(n.node.inputs))]
    return parts[0] if len(parts) == 1 else call("torch.cat", tuple(parts), dim=last(n.axis(0), n.rank()))


def split(n: Site) -> list[Code | None]:
    axis, count = n.axis(0), len(n.node.outputs)
    targets = [Var(f"part_{i + 1}") for i in range(count)]
    at = last(axis, n.rank())
    if n.has(1):
        sizes = n.sizes(1)
        if sizes is None:
            value = n.tensor().method("split", n.tensor(1).method("tolist"), at)
        elif len(set(map(str, sizes))) == 1 and not is_zero(sizes[0]):
            value = n.tensor().method("split", n.size(sizes[0]), at)
        else:
            value = n.tensor().method("split", [n.size(s) for s in sizes], at)
    else:
        size = n.shape()[axis]
        if isinstance(size, int) and -(-size // count) * (count - 1) < size:
            value = n.tensor().method("chunk", count, at)
        else:
            step = n.let((n.dim(0, axis) + (count - 1)) // count, "step", tensor=False)
            value = n.tensor().method("split", step, at)
    n.unpack(value, tuple(targets))
    return [Name(target) for target in targets]


def slice_(n: Site) -> Code:
    rank = n.rank()
    starts, stops = n.sizes(1), n.sizes(2)
    if starts is None or stops is None:
        return _slice_run(n)
    axes = [a % rank for a in n.ints(3, "the axes of a slice")] if n.has(3) else list(range(len(starts)))
    steps = n.ints(4, "the steps of a slice") if n.has(4) else [1] * len(starts)
    picked: dict[int, Plain | slice] = {}
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        item = slice_item(n, start, stop, step, axis)
        if item is not None:
            picked[axis] = item
    return index(n.tensor(), picked, rank)


def slice_item(n: Site, start: Scalar, stop: Scalar, step: int, axis: int) -> Plain | slice | None:
    """One axis of a slice as an index, or None where it takes everything."""
    size = n.shape()[axis]
    beyond = isinstance(size, int) and not isinstance(stop, ex.Expr) and stop >= size
    first, end = bound(n, start), None if beyond else bound(n, stop)
    if step > 0:
        first = None if is_zero(start) else first
        if not isinstance(start, ex.Expr) and start <= -_UNLIMITED:
            first = None
        if first is None and end is None and step == 1:
            return None
        return slice(first, end, None if step == 1 else step)
    if not isinstance(start, ex.Expr) and start == -1:
        first = None
    if not isinstance(stop, ex.Expr) and stop <= -_UNLIMITED:
        end = None
    every = call("range", n.dim(0, axis))[slice(first, end, step)]
    return call("list", every)


def bound(n: Site, size: Scalar) -> Plain:
    """An end of a slice: None where it reaches past every size."""
    if not isinstance(size, ex.Expr) and size >= _UNLIMITED:
        return None
    return n.size(size)


def index(x: Code, picked: Mapping[int, Plain | slice], rank: int) -> Code:
    """`x[...]` with some axes indexed. Lists are taken one axis after the other: together they would pair up."""
    if not picked:
        return x
    lists = [axis for axis, item in picked.items() if not isinstance(item, slice)]
    if len(lists) > 1:
        for axis in lists[1:]:
            x = index(x, {axis: picked[axis]}, rank)
        return index(x, {axis: item for axis, item in picked.items() if axis not in lists[1:]}, rank)
    low, high = min(picked), max(picked)
    if high == rank - 1 and low > 1:
        return x[(Ellipsis, *(picked.get(axis, slice(None)) for axis in range(low, rank)))]
    return x[tuple(picked.get(axis, slice(None)) for axis in range(high + 1))]


def _slice_run(n: Site) -> Code:
    """A slice whose ends are computed by the model."""
    axes = [a % n.rank() for a in n.ints(3, "the axes of a slice")] if n.has(3) else list(range(n.fixed(1, 0)))
    steps = n.ints(4, "the steps of a slice") if n.has(4) else [1] * len(axes)
    if any(step < 1 for step in steps):
        n.refuse("a slice steps backwards between ends that are computed when the model runs")
    starts, stops = n.let(n.tensor(1), "starts"), n.let(n.tensor(2), "stops")
    picked: dict[int, Plain | slice] = {}
    for i, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        picked[axis] = slice(starts[i].method("item"), stops[i].method("item"), None if step == 1 else step)
    return index(n.tensor(), picked, n.rank())


def gather(n: Site) -> Code:
    axis, rank = n.axis(0), n.rank()
    indices = n.host(1)
    if indices is not None and indices.elements.ndim == 0:
        return index(n.tensor(), {axis: n.size(indices.flat[0])}, rank)
    if indices is not None and indices.is_constant and indices.elements.ndim == 1:
        return index(n.tensor(), {axis: [int(i) for i in indices.flat]}, rank)  # type: ignore[arg-type]
    picked = n.tensor(1)
    if n.dtype(1) is not ir.DataType.INT64 and n.dtype(1) is not ir.DataType.INT32:
        picked = cast_to(picked, ir.DataType.INT64)
    return index(n.tensor(), {axis: picked}, rank)


def gather_elements(n: Site) -> Code:
    axis = n.axis(0)
    return n.tensor().method("gather", last(axis, n.rank()), _positive(n, 1, axis))


def _positive(n: Site, index_of: int, axis: int) -> Code:
    """Indices with negative ones counted from the end."""
    data = n.constant(index_of)
    if data is not None and np.all(data >= 0):
        return n.tensor(index_of)
    found = n.tensor(index_of)
    found = found if n.dtype(index_of) is ir.DataType.INT64 else cast_to(found, ir.DataType.INT64)
    return found % n.dim(0, axis)


def scatter_elements(n: Site) -> Code:
    axis, how = n.axis(0), n.string("reduction", "none")
    indices = _positive(n, 1, axis)
    if how == "none":
        return n.tensor().method("scatter", last(axis, n.rank()), indices, n.tensor(2))
    words = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return n.tensor().method("scatter_reduce", last(axis, n.rank()), indices, n.tensor(2), words[how])


def gather_nd(n: Site) -> Code:
    return n.helper("gather_nd")(n.tensor(0), n.tensor(1), n.integer("batch_dims"))


def scatter_nd(n: Site) -> Code:
    how = n.string("reduction", "none")
    return n.helper("scatter_nd")(n.tensor(0), n.tensor(1), n.tensor(2), how)


def expand(n: Site) -> Code:
    sizes = n.sizes(1)
    x, shape = n.tensor(), n.shape()
    if sizes is None:
        shape_code = call("torch.broadcast_shapes", x.attribute("shape"), n.tensor(1).method("tolist"))
        return call("torch.broadcast_to", x, shape_code)
    own: list[Scalar] = [1] * (len(sizes) - len(shape)) + list(shape)
    wanted: list[Scalar] = [1] * (len(shape) - len(sizes)) + list(sizes)
    if all(have is want or have == 1 or same_size(want, 1) or same_size(have, want) for have, want in zip(own, wanted, strict=True)):
        kept = [-1 if same_size(want, 1) and not same_size(have, 1) else want for have, want in zip(own, wanted, strict=True)]
        lead = len(wanted) - len(shape)
        moved = any(not same_size(have, want) and want != -1 for have, want in zip(own, kept, strict=True)) or lead
        return x.method("expand", *(n.size(size) for size in kept)) if moved else x
    shape_code = call("torch.broadcast_shapes", x.attribute("shape"), tuple(n.size(s) for s in sizes))
    return call("torch.broadcast_to", x, shape_code)


def same_size(a: Scalar, b: Scalar) -> bool:
    if isinstance(a, ex.Expr) or isinstance(b, ex.Expr):
        return a is b
    return a == b


def tile(n: Site) -> Code:
    sizes = n.sizes(1)
    repeats = n.tensor(1).method("tolist") if sizes is None else code(tuple(n.size(s) for s in sizes))
    return n.tensor().method("repeat", *repeats.parts) if sizes else call("torch.tile", n.tensor(), repeats)


def pad(n: Site) -> Code:
    sizes, rank = n.sizes(1), n.rank()
    mode = n.string("mode", "constant")
    if sizes is None or (n.has(3) and n.constant(3) is None):
        n.refuse("the padding is computed when the model runs", "make the pads constants of the model")
    axes = [a % rank for a in n.ints(3, "axes")] if n.has(3) else list(range(rank))
    before = dict(zip(axes, sizes[: len(axes)], strict=True))
    after = dict(zip(axes, sizes[len(axes) :], strict=True))
    used = [a for a in axes if not (is_zero(before[a]) and is_zero(after[a]))]
    if not used:
        return n.tensor()
    if mode == "constant":
        value = {} if not n.has(2) or n.scalar(2) == 0 else {"value": _pad_value(n)}
        return call("F.pad", n.tensor(), _pad_list(n, before, after, min(used), rank), **value)
    return _pad_copied(n, before, after, used, {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode])


def _pad_value(n: Site) -> Code:
    array = n.host(2)
    return n.number(array) if array is not None else n.tensor(2).method("item")


def _pad_list(n: Site, before: Mapping[int, Scalar], after: Mapping[int, Scalar], first: int, rank: int) -> Plain:
    out: list[Plain] = []
    for axis in reversed(range(first, rank)):
        out += [n.size(before.get(axis, 0)), n.size(after.get(axis, 0))]
    return tuple(out)


def _pad_copied(n: Site, before: Mapping[int, Scalar], after: Mapping[int, Scalar], used: list[int], mode: str) -> Code:
    """Reflecting modes pad at most the last three axes, under one or two others."""
    rank, x = n.rank(), n.tensor()
    if any(not isinstance(s, ex.Expr) and s < 0 for s in (*before.values(), *after.values())):
        n.refuse(f"negative pads with mode {mode!r}")
    for lead in range(3):
        for count in (1, 2, 3):
            if rank + lead - count in (1, 2) and min(used) >= rank - count >= 0:
                pads = _pad_list(n, before, after, rank - count, rank)
                boxed = x[(None,) * lead] if lead else x
                out = call("F.pad", boxed, pads, mode=mode)
                return out[(0,) * lead] if lead else out
    n.refuse(f"mode {mode!r} over axes {used} of a value of rank {rank}")


def trilu(n: Site) -> Code:
    shift = n.sizes(1)[0] if n.has(1) and n.sizes(1) else 0  # type: ignore[index]
    function = "torch.triu" if n.integer("upper", 1) else "torch.tril"
    return call(function, n.tensor(), *([] if is_zero(shift) else [n.size(shift)]))


def depth_to_space(n: Site) -> Code:
    block, x = n.integer("blocksize"), n.tensor()
    if n.string("mode", "DCR") == "CRD":
        return call("F.pixel_shuffle", x, block)
    x = x.method("unflatten", 1, (block, block, -1)).method("permute", 0, 3, 4, 1, 5, 2)
    return x.method("flatten", 4, 5).method("flatten", 2, 3)


def space_to_depth(n: Site) -> Code:
    block, x = n.integer("blocksize"), n.tensor()
    if n.string("mode", "DCR") == "CRD":
        return call("F.pixel_unshuffle", x, block)
    x = x.method("unflatten", 3, (-1, block)).method("unflatten", 2, (-1, block))
    return x.method("permute", 0, 3, 5, 1, 2, 4).method("flatten", 1, 3)


# ---- making tensors ----------------------------------------------------------------------------------


def constant(printer: object, array: HostArray) -> Code:
    """A tensor of numbers that stand in the source, beside the first input."""
    from fusile.backends.framework.common import Printer

    assert isinstance(printer, Printer)
    kind = array.dtype
    elements = [_element(printer, e, kind) for e in array.flat]
    extra: dict[str, Plain] = {}
    if kind not in (ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.BOOL) or not elements:
        extra["dtype"] = dtype(kind)
    where_ = device(printer.arguments)
    extra |= {"device": where_} if where_ is not None else {}
    shape = array.elements.shape
    texts = {element.text({}) for element in elements}
    if len(elements) > 4 and len(texts) == 1 and array.is_constant:
        return call("torch.full", tuple(shape), elements[0], **extra)
    if not elements:
        return call("torch.zeros", tuple(shape), **extra)
    return call("torch.tensor", nested(elements, shape), **extra)


def _element(printer: object, element: Scalar, kind: ir.DataType) -> Code:
    if isinstance(element, float) and kind is not ir.DataType.DOUBLE:
        return code(short_float(element))
    return printer.size(element)  # type: ignore[attr-defined, no-any-return]


def nested(elements: list[Code], shape: tuple[int, ...]) -> Plain:
    if not shape:
        return elements[0]
    step = len(elements) // shape[0]
    return [nested(elements[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def constant_of_shape(n: Site) -> Code:
    held = n.node.attributes.get("value")
    tensor = held.as_tensor() if held is not None else None
    kind = tensor.dtype if tensor is not None else ir.DataType.FLOAT
    fill = tensor.numpy().ravel()[0].item() if tensor is not None else 0.0
    sizes = n.sizes(0)
    shape: Plain = n.tensor(0).method("tolist") if sizes is None else tuple(n.size(s) for s in sizes)
    extra: dict[str, Plain] = {"dtype": dtype(kind)} if kind is not ir.DataType.FLOAT else {}
    where_ = device(n.printer.arguments)
    extra |= {"device": where_} if where_ is not None else {}
    if fill == 0 and kind is not ir.DataType.BOOL:
        return call("torch.zeros", shape, **extra)
    return call("torch.full", shape, short_float(fill) if isinstance(fill, float) else fill, **extra)


def range_(n: Site) -> Code:
    ends: list[Plain] = []
    for i in range(3):
        array = n.host(i)
        ends.append(n.number(array) if array is not None else n.tensor(i).method("item"))
    if n.scalar(2) == 1:
        ends = ends[1:2] if n.scalar(0) == 0 else ends[:2]
    extra: dict[str, Plain] = {}
    if n.result_dtype() is not ir.DataType.INT64:
        extra["dtype"] = dtype(n.result_dtype())
    where_ = device(n.printer.arguments)
    return call("torch.arange", *ends, **extra, **({"device": where_} if where_ is not None else {}))


def shape(n: Site) -> Code:
    """Only reached where the rank is unknown."""
    start, end = n.integer("start"), n.node.attributes.get("end")
    sizes = n.tensor().attribute("shape")
    if start or end is not None:
        sizes = sizes[slice(start or None, end.as_int() if end is not None else None)]
    where_ = device(n.printer.arguments)
    return call("torch.tensor", sizes, **({"device": where_} if where_ is not None else {}))


def size(n: Site) -> Code:
    return call("torch.tensor", n.tensor().method("numel"))


def eye_like(n: Site) -> Code:
    kind = ir.DataType(n.integer("dtype", int(n.dtype())))
    x = n.tensor()
    ones = call("torch.ones", x.attribute("shape"), dtype=dtype(kind), device=x.attribute("device"))
    shift = n.integer("k")
    return call("torch.triu", call("torch.tril", ones, shift), shift)


def one_hot(n: Site) -> Code:
    axis, rank = n.integer("axis", -1), n.rank() + 1
    depth, values = n.sizes(1), n.constant(2)
    if depth is None or values is None:
        n.refuse("the depth or the values of a one-hot encoding are computed when the model runs")
    count = n.size(int(depth[0]) if isinstance(depth[0], float) else depth[0])
    shape_ = [1] * rank
    shape_[axis % rank] = -1
    picked = n.let(cast_to(n.tensor(), ir.DataType.INT64).method("unsqueeze", axis), "indices")
    every = call("torch.arange", count, device=picked.attribute("device")).method("reshape", *shape_)
    match = picked.binary("==", every).binary("|", (picked + count).binary("==", every))
    off, on = (v.item() for v in values.ravel())
    kind = dtype(n.result_dtype())
    return match.method("to", kind) if (off, on) == (0, 1) else call("torch.where", match, on, off).method("to", kind)


def top_k(n: Site) -> list[Code | None]:
    counts = n.sizes(1)
    count = n.size(counts[0]) if counts else n.tensor(1).method("item")
    axis = n.axis()
    if n.dtype() in (*_NARROW, ir.DataType.UINT64):
        n.refuse(f"PyTorch does not sort {n.dtype().name.lower()}")
    # A stable sort, not topk: of equal elements ONNX takes the first.
    targets = (Var("values"), Var("indices"))
    extra: dict[str, Plain] = {"descending": True} if n.integer("largest", 1) else {}
    n.unpack(call("torch.sort", n.tensor(), dim=last(axis, n.rank()), **extra, stable=True), targets)
    return [index(Name(t), {axis: slice(None, count)}, n.rank()) for t in targets]


def non_zero(n: Site) -> Code:
    return n.tensor().method("nonzero").attribute("T")


def is_inf(n: Site) -> Code:
    negative, positive = n.integer("detect_negative", 1), n.integer("detect_positive", 1)
    function = "torch.isinf" if negative and positive else "torch.isposinf" if positive else "torch.isneginf"
    return call(function, n.tensor()) if negative or positive else call("torch.zeros_like", n.tensor(), dtype=name("torch.bool"))


def bit_shift(n: Site) -> Code:
    function = "torch.bitwise_left_shift" if n.string("direction") == "LEFT" else "torch.bitwise_right_shift"
    return call(function, n.tensor(0), n.tensor(1))


def lp_norm(n: Site) -> Code:
    x, axis = n.tensor(), last(n.axis(), n.rank())
    norm = n.let(x.method("norm", n.integer("p", 2), axis, keepdim=True), "norm")
    return call("torch.where", norm.binary("==", 0), 0.0, x / norm)


def mean_variance(n: Site) -> Code:
    axes = tuple(n.integers("axes", (0, 2, 3)))
    x = n.tensor()
    mean = x.method("mean", axes, keepdim=True)
    square = x.method("square").method("mean", axes, keepdim=True)
    return (x - mean) / ((square - mean.method("square")).method("sqrt") + 1e-9)


def _method(word: str, *args: Plain) -> Row:
    return lambda n: n.tensor().method(word, *args)


ROWS: dict[str, Row] = {
    # arithmetic
    "Add": infix("+"),
    "Sub": infix("-"),
    "Mul": infix("*"),
    "Div": div,
    "Mod": mod,
    "Pow": power,
    "Neg": lambda n: -n.tensor(),
    "Reciprocal": unary("torch.reciprocal"),
    "Max": variadic("torch.maximum", "min"),
    "Min": variadic("torch.minimum", "max"),
    "Sum": sum_of,
    "Mean": mean_of,
    "MatMul": matmul,
    "Gemm": gemm,
    "Einsum": einsum,
    "Det": unary("torch.det"),
    **{
        op: unary(f"torch.{op.lower()}")
        for op in (
            "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Erf Exp Floor Log Sigmoid Sign Sin Sinh Sqrt Tan Tanh"
        ).split()
    },
    "Round": unary("torch.round"),
    "IsNaN": unary("torch.isnan"),
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
    "Selu": lambda n: _selu(n),
    "Gelu": gelu,
    "Swish": swish,
    "Mish": unary("F.mish"),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": unary("F.hardswish"),
    "Softplus": softplus,
    "Softsign": unary("F.softsign"),
    "ThresholdedRelu": thresholded,
    "Shrink": shrink,
    "Clip": clip,
    "Softmax": along_axis("torch.softmax"),
    "LogSoftmax": along_axis("torch.log_softmax"),
    "Hardmax": hardmax,
    # reductions
    "ReduceSum": reduce_by("sum"),
    "ReduceMean": reduce_by("mean"),
    "ReduceMax": reduce_by("amax"),
    "ReduceMin": reduce_by("amin"),
    "ReduceProd": reduce_product,
    "ReduceL1": reduction(lambda x, axes, keep: x.method("abs").method("sum", *axes, **keep)),
    "ReduceL2": reduction(lambda x, axes, keep: x.method("square").method("sum", *axes, **keep).method("sqrt")),
    "ReduceSumSquare": reduction(lambda x, axes, keep: x.method("square").method("sum", *axes, **keep)),
    "ReduceLogSum": reduction(lambda x, axes, keep: x.method("sum", *axes, **keep).method("log")),
    "ReduceLogSumExp": reduction(lambda x, axes, keep: x.method("logsumexp", *axes, **keep)),
    "ArgMax": arg("argmax"),
    "ArgMin": arg("argmin"),
    "CumSum": cumulative,
    "TopK": top_k,
    # movement
    "Identity": lambda n: n.tensor(),
    "Cast": cast,
    "CastLike": cast_like,
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Squeeze": squeeze,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Expand": expand,
    "Tile": tile,
    "Pad": pad,
    "Trilu": trilu,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    # making tensors
    "Shape": shape,
    "Size": size,
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
    "EyeLike": eye_like,
    "OneHot": one_hot,
    "NonZero": non_zero,
    # normalisation without weights
    "LpNormalization": lp_norm,
    "MeanVarianceNormalization": mean_variance,
}
for _op in (
    "Add Sub Mul Div Mod Max Min Less LessOrEqual Greater GreaterOrEqual BitwiseAnd BitwiseOr BitwiseXor"
    " BitwiseNot BitShift"
).split():
    ROWS[_op] = widened(ROWS[_op])


def _selu(n: Site) -> Code:
    alpha, gamma = n.real("alpha", 1.67326319), n.real("gamma", 1.05070102)
    if abs(alpha - 1.6732632) < 1e-5 and abs(gamma - 1.0507010) < 1e-5:
        return call("F.selu", n.tensor())
    return call("F.elu", n.tensor(), alpha) * gamma


__all__ = ["ROWS", "Call"]
