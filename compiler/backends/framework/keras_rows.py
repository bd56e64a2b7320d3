"""Keras, one row per operator without weights, in words of `keras.ops`; layers are in `keras_layers.py`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from fusile.backends.framework.common import Printer, Refusal, Row, Site
from fusile.backends.framework.host import HostArray, Scalar
from fusile.backends.framework.source import Code, Name, Plain, Var, call, code, name, short_float
from fusile.backends.framework.torch_rows import (
    bound,
    index,
    infix,
    is_zero,
    last,
    logical,
    nested,
    same_size,
    sum_of,
    target_sizes,
)
from fusile.ir import expr as ex

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


# ---- small words for rows ----------------------------------------------------------------------------


def unary(function: str) -> Row:
    return lambda n: call(function, n.tensor())


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


def axes_word(axes: list[int], rank: int) -> Plain:
    return last(axes[0], rank) if len(axes) == 1 else tuple(axes)


# ---- arithmetic --------------------------------------------------------------------------------------


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


def mean_of(n: Site) -> Code:
    return sum_of(n) / len(n.node.inputs) if len(n.node.inputs) > 1 else n.tensor()


def round_(n: Site) -> Code:
    return call("ops.round", n.tensor())


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
    return lambda n: call(function, n.tensor(), axis=last(n.axis(), n.rank()))


def hardmax(n: Site) -> Code:
    x, axis = n.tensor(), last(n.axis(), n.rank())
    top = call("ops.argmax", x, axis=axis)
    return call("ops.one_hot", top, n.dim(0, n.axis()), axis=axis, dtype=dtype(n.dtype()))


# ---- reductions --------------------------------------------------------------------------------------


def reduced(n: Site, function: str, x: Code | None = None) -> Code:
    """One reduction over the node's axes."""
    axes = n.ints(1, "the axes of a reduction") if n.has(1) else []
    x = n.tensor() if x is None else x
    if not axes and n.integer("noop_with_empty_axes"):
        return x
    rank = n.rank()
    picked = sorted(a % rank for a in axes) if axes else list(range(rank))
    keep: dict[str, Plain] = {"keepdims": True} if n.integer("keepdims", 1) else {}
    return call(function, x, axis=axes_word(picked, rank), **keep) if rank else x


def reduction(function: str) -> Row:
    def row(n: Site) -> Code:
        if function == "ops.mean" and n.dtype().is_integer():
            n.refuse("the mean of integers", "cast to float before and back after it")
        if function in ("ops.max", "ops.min") and 0 in [size for size in n.shape() if isinstance(size, int)]:
            return of_nothing(n, function)
        out = reduced(n, function)
        whole = n.dtype().is_integer() and function in ("ops.sum", "ops.prod")
        return cast_to(out, n.dtype()) if whole and n.dtype() is not ir.DataType.INT64 else out

    return row


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
            found = cast_to(call(function, call("ops.flip", x, axis=axis), axis=axis, **keep), ir.DataType.INT64)
            return cast_to(n.dim(0, axis) - 1, ir.DataType.INT64) - found
        return cast_to(call(function, x, axis=last(axis, n.rank()), **keep), ir.DataType.INT64)

    return row


def cumulative(n: Site) -> Code:
    axis = n.ints(1, "the axis of a cumulative sum")[0] % n.rank()
    x, exclusive, reverse = n.tensor(), n.integer("exclusive"), n.integer("reverse")
    x = call("ops.flip", x, axis=axis) if reverse else x
    out = call("ops.cumsum", x, axis=last(axis, n.rank()))
    out = out - x if exclusive else out
    return call("ops.flip", out, axis=axis) if reverse else out


def top_k(n: Site) -> list[Code | None]:
    counts = n.sizes(1)
    if not counts:
        n.refuse("the number of elements that TopK keeps is computed when the model runs")
    rank, axis, x = n.rank(), n.axis(), n.tensor()
    order = [a for a in range(rank) if a != axis] + [axis]
    turned = axis != rank - 1
    x = permute(x, tuple(order)) if turned else x
    smallest = not n.integer("largest", 1)
    values, found = Var("values"), Var("indices")
    n.unpack(call("ops.top_k", -x if smallest else x, n.size(counts[0])), (values, found))
    top: Code = -Name(values) if smallest else Name(values)
    at = cast_to(Name(found), ir.DataType.INT64)
    back = tuple(order.index(a) for a in range(rank))
    return [permute(top, back), permute(at, back)] if turned else [top, at]


# ---- movement ----------------------------------------------------------------------------------------


def permute(x: Code, perm: tuple[int, ...]) -> Code:
    return x if perm == tuple(range(len(perm))) else call("ops.transpose", x, perm)


def reshape_to(x: Code, shape: tuple[int, ...]) -> Code:
    return call("ops.reshape", x, shape)


def reshape(n: Site) -> Code:
    sizes = target_sizes(n)
    if sizes is None:
        if n.integer("allowzero"):
            return call("ops.reshape", n.tensor(), n.tensor(1))
        return n.helper("reshape")(n.tensor(), n.tensor(1))
    return call("ops.reshape", n.tensor(), tuple(sizes))


def flatten(n: Site) -> Code:
    axis, rank = n.integer("axis", 1), n.rank()
    axis = axis + rank if axis < 0 else axis
    x = n.tensor()
    if axis == 0:
        return call("ops.reshape", x, (1, -1))
    if axis == rank:
        return call("ops.reshape", x, (-1, 1))
    if axis == 1:
        return x if rank == 2 else call("ops.reshape", x, (n.dim(0, 0), -1))
    rest = ex.as_expr(1)
    for size in n.shape()[axis:]:
        rest = rest * size
    return call("ops.reshape", x, (-1, n.size(rest)))


def transpose(n: Site) -> Code:
    return permute(n.tensor(), tuple(n.integers("perm", range(n.rank())[::-1])))


def unsqueeze(n: Site) -> Code:
    axes = n.ints(1, "the axes of an unsqueeze")
    rank = n.rank() + len(axes)
    picked = sorted(a % rank for a in axes)
    return call("ops.expand_dims", n.tensor(), axes_word(picked, rank)) if picked else n.tensor()


def squeeze(n: Site) -> Code:
    if not n.has(1):
        return call("ops.squeeze", n.tensor())
    axes = sorted(a % n.rank() for a in n.ints(1, "the axes of a squeeze"))
    return call("ops.squeeze", n.tensor(), axes_word(axes, n.rank())) if axes else n.tensor()


def concat(n: Site) -> Code:
    parts = [n.tensor(i) for i in range(len(n.node.inputs))]
    return parts[0] if len(parts) == 1 else call("ops.concatenate", list(parts), axis=last(n.axis(0), n.rank()))


def split(n: Site) -> list[Code | None]:
    axis, count = n.axis(0), len(n.node.outputs)
    size = n.shape()[axis]
    at: dict[str, Plain] = {"axis": last(axis, n.rank())}
    ends: Plain
    if n.has(1):
        sizes = n.sizes(1)
        if sizes is None:
            n.refuse("the sizes of a split are computed when the model runs")
        total: list[Plain] = []
        reached: Scalar = 0
        for part in sizes[:-1]:
            reached = reached + part
            total.append(n.size(reached))
        same = len(set(map(str, sizes))) == 1
        ends = count if same else total
    elif isinstance(size, int):
        step = -(-size // count)
        ends = count if step * count == size else [step * i for i in range(1, count)]
    else:
        step_ = n.let((n.dim(0, axis) + (count - 1)) // count, "step", tensor=False)
        ends = [step_ * i for i in range(1, count)]
    targets = tuple(Var(f"part_{i + 1}") for i in range(count))
    n.unpack(call("ops.split", n.tensor(), ends, **at), targets)
    return [Name(target) for target in targets]


def slice_(n: Site) -> Code:
    rank, starts, stops = n.rank(), n.sizes(1), n.sizes(2)
    if starts is None or stops is None:
        return _slice_run(n)
    axes = [a % rank for a in n.ints(3, "the axes of a slice")] if n.has(3) else list(range(len(starts)))
    steps = n.ints(4, "the steps of a slice") if n.has(4) else [1] * len(starts)
    x = n.tensor()
    picked: dict[int, Plain | slice] = {}
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        if step > 0:
            item = slice_forward(n, start, stop, step, axis)
            if item is not None:
                picked[axis] = item
        else:
            x = _slice_back(n, x, start, stop, step, axis)
    return index(x, picked, rank)


def slice_forward(n: Site, start: Scalar, stop: Scalar, step: int, axis: int) -> Plain | slice | None:
    """One axis of a slice, or None where it takes everything."""
    from fusile.backends.framework.torch_rows import slice_item

    return slice_item(n, start, stop, step, axis)


def _slice_back(n: Site, x: Code, start: Scalar, stop: Scalar, step: int, axis: int) -> Code:
    """A slice that steps backwards: flip the axis, then slice it forwards."""
    size = n.shape()[axis]
    everything = not isinstance(start, ex.Expr) and start in (-1,) and not isinstance(stop, ex.Expr) and stop < -(10**9)
    flipped = call("ops.flip", x, axis=axis)
    if everything or (isinstance(size, int) and is_number(start) and start >= size - 1 and is_number(stop) and stop < -size):
        return flipped if step == -1 else index(flipped, {axis: slice(None, None, -step)}, n.rank())
    if not isinstance(size, int) or not is_number(start) or not is_number(stop):
        n.refuse("a slice steps backwards over an axis whose size is not fixed")
    first, end, _ = slice(int(start), None if stop < -size else int(stop), step).indices(size)
    return index(flipped, {axis: slice(size - 1 - first, size - 1 - end, None if step == -1 else -step)}, n.rank())


def is_number(value: Scalar) -> bool:
    return not isinstance(value, ex.Expr)


def _slice_run(n: Site) -> Code:
    """A slice whose ends are computed by the model."""
    rank = n.rank()
    axes = [a % rank for a in n.ints(3, "the axes of a slice")] if n.has(3) else list(range(n.fixed(1, 0)))
    steps = n.ints(4, "the steps of a slice") if n.has(4) else [1] * len(axes)
    if any(step < 1 for step in steps):
        n.refuse("a slice steps backwards between ends that are computed when the model runs")
    starts, stops = n.let(n.tensor(1), "starts"), n.let(n.tensor(2), "stops")
    picked: dict[int, Plain | slice] = {
        axis: slice(starts[i], stops[i], None if step == 1 else step)
        for i, (axis, step) in enumerate(zip(axes, steps, strict=True))
    }
    return index(n.tensor(), picked, rank)


def gather(n: Site) -> Code:
    axis, rank, indices = n.axis(0), n.rank(), n.host(1)
    if indices is not None and indices.elements.ndim == 0:
        return index(n.tensor(), {axis: n.size(indices.flat[0])}, rank)
    if indices is not None and indices.is_constant and indices.elements.ndim == 1:
        return call("ops.take", n.tensor(), [int(i) for i in indices.flat], axis=axis)  # type: ignore[arg-type]
    return call("ops.take", n.tensor(), n.tensor(1), axis=axis)


def positive(n: Site, index_of: int, axis: int) -> Code:
    """Indices with negative ones counted from the end."""
    data = n.constant(index_of)
    if data is not None and np.all(data >= 0):
        return n.tensor(index_of)
    size = cast_to(n.dim(0, axis), n.dtype(index_of))
    return call("ops.mod", n.tensor(index_of), size)


def gather_elements(n: Site) -> Code:
    axis = n.axis(0)
    return call("ops.take_along_axis", n.tensor(), positive(n, 1, axis), axis=axis)


def scatter_elements(n: Site) -> Code:
    how = n.string("reduction", "none")
    return n.helper("scatter_elements")(n.tensor(0), positive(n, 1, n.axis(0)), n.tensor(2), n.axis(0), how)


def gather_nd(n: Site) -> Code:
    return call("tf.gather_nd", n.tensor(0), n.helper("positive_nd")(n.tensor(1), n.tensor(0), n.integer("batch_dims")), batch_dims=n.integer("batch_dims") or None)


def scatter_nd(n: Site) -> Code:
    words = {"none": "update", "add": "add", "max": "max", "min": "min"}
    how = n.string("reduction", "none")
    at = n.helper("positive_nd")(n.tensor(1), n.tensor(0), 0)
    if how == "mul":
        return n.helper("scatter_product")(n.tensor(0), at, n.tensor(2))
    return call(f"tf.tensor_scatter_nd_{words[how]}", n.tensor(0), at, n.tensor(2))


def expand(n: Site) -> Code:
    sizes, x, shape = n.sizes(1), n.tensor(), n.shape()
    if sizes is None:
        return n.helper("expand")(x, n.tensor(1))
    own: list[Scalar] = [1] * (len(sizes) - len(shape)) + list(shape)
    wanted: list[Scalar] = [1] * (len(shape) - len(sizes)) + list(sizes)
    out: list[Scalar] = []
    for have, want in zip(own, wanted, strict=True):
        if same_size(have, want) or same_size(want, 1):
            out.append(have)
        elif same_size(have, 1):
            out.append(want)
        else:
            return n.helper("expand")(x, tuple(n.size(s) for s in sizes))
    if len(out) == len(shape) and all(same_size(a, b) for a, b in zip(out, shape, strict=True)):
        return x
    return call("ops.broadcast_to", x, tuple(n.size(size) for size in out))


def tile(n: Site) -> Code:
    sizes = n.sizes(1)
    return call("ops.tile", n.tensor(), n.tensor(1) if sizes is None else tuple(n.size(s) for s in sizes))


def pad(n: Site) -> Code:
    sizes, rank, mode = n.sizes(1), n.rank(), n.string("mode", "constant")
    if sizes is None or (n.has(3) and n.constant(3) is None):
        n.refuse("the padding is computed when the model runs", "make the pads constants of the model")
    axes = [a % rank for a in n.ints(3, "axes")] if n.has(3) else list(range(rank))
    before = dict(zip(axes, sizes[: len(axes)], strict=True))
    after = dict(zip(axes, sizes[len(axes) :], strict=True))
    x = n.tensor()
    numbers = [s for s in (*before.values(), *after.values()) if is_number(s)]
    if any(s < 0 for s in numbers):  # type: ignore[operator]
        x = index(x, {a: slice(_crop(before[a]), _crop_end(after[a])) for a in axes if _crops(before[a], after[a])}, rank)
        before = {a: 0 if is_number(s) and s < 0 else s for a, s in before.items()}  # type: ignore[operator]
        after = {a: 0 if is_number(s) and s < 0 else s for a, s in after.items()}  # type: ignore[operator]
    if all(is_zero(s) for s in (*before.values(), *after.values())):
        return x
    widths = tuple((n.size(before.get(a, 0)), n.size(after.get(a, 0))) for a in range(rank))
    if mode == "constant":
        value = None
        if n.has(2) and n.scalar(2) != 0:
            array = n.host(2)
            value = n.number(array) if array is not None else n.tensor(2)
        return call("ops.pad", x, widths, constant_values=value)
    if mode == "reflect":
        return call("ops.pad", x, widths, mode="reflect")
    return n.helper("pad_copied")(x, widths, mode)


def _crops(before: Scalar, after: Scalar) -> bool:
    return any(is_number(s) and s < 0 for s in (before, after))  # type: ignore[operator]


def _crop(size: Scalar) -> Plain:
    return -int(size) if is_number(size) and size < 0 else None  # type: ignore[operator, arg-type]


def _crop_end(size: Scalar) -> Plain:
    return int(size) if is_number(size) and size < 0 else None  # type: ignore[operator, arg-type]


def trilu(n: Site) -> Code:
    shift: Scalar = 0
    if n.has(1):
        sizes = n.sizes(1)
        if not sizes:
            n.refuse("the diagonal of a triangle is computed when the model runs")
        shift = sizes[0]
    rows, columns = n.shape()[-2:]
    if is_number(shift) and isinstance(rows, int) and isinstance(columns, int):
        shift = max(-rows, min(columns, int(shift)))  # type: ignore[arg-type]
        least = 1 if n.integer("upper", 1) else 0
        shift = min(max(shift, least - rows), columns - 1 + least)
    function = "ops.triu" if n.integer("upper", 1) else "ops.tril"
    return call(function, n.tensor(), k=None if is_zero(shift) else n.size(shift))


def depth_to_space(n: Site) -> Code:
    """Channels lie last: [N, H, W, b, b, C] or [N, H, W, C, b, b] becomes [N, H, b, W, b, C]."""
    block, x = n.integer("blocksize"), n.tensor()
    height, width, channels = n.dim(0, 1), n.dim(0, 2), n.fixed(0, 3) // block**2
    if n.string("mode", "DCR") == "CRD":
        x = call("ops.reshape", x, (-1, height, width, channels, block, block))
        x = call("ops.transpose", x, (0, 1, 4, 2, 5, 3))
    else:
        x = call("ops.reshape", x, (-1, height, width, block, block, channels))
        x = call("ops.transpose", x, (0, 1, 3, 2, 4, 5))
    return call("ops.reshape", x, (-1, height * block, width * block, channels))


def space_to_depth(n: Site) -> Code:
    block, x = n.integer("blocksize"), n.tensor()
    height, width, channels = n.dim(0, 1), n.dim(0, 2), n.fixed(0, 3)
    crd = n.string("mode", "DCR") == "CRD"
    x = call("ops.reshape", x, (-1, height // block, block, width // block, block, channels))
    x = call("ops.transpose", x, (0, 1, 3, 5, 2, 4) if crd else (0, 1, 3, 2, 4, 5))
    return call("ops.reshape", x, (-1, height // block, width // block, channels * block**2))


# ---- making tensors ----------------------------------------------------------------------------------


def constant(printer: Printer, array: HostArray) -> Code:
    """A tensor of numbers that stand in the source."""
    kind = array.dtype
    elements = [_element(printer, e, kind) for e in array.flat]
    shape = array.elements.shape
    if not elements:
        return call("ops.zeros", tuple(shape), dtype=dtype(kind))
    if not array.is_constant:
        return call("ops.cast", call("ops.convert_to_tensor", nested(elements, shape)), dtype(kind))
    if len(elements) > 4 and len({element.text({}) for element in elements}) == 1:
        return call("ops.full", tuple(shape), elements[0], dtype=dtype(kind))
    return call("ops.convert_to_tensor", nested(elements, shape), dtype=dtype(kind))


def _element(printer: Printer, element: Scalar, kind: ir.DataType) -> Code:
    if isinstance(element, float) and kind is not ir.DataType.DOUBLE:
        return code(short_float(element))
    return printer.size(element)


def constant_of_shape(n: Site) -> Code:
    held = n.node.attributes.get("value")
    tensor = held.as_tensor() if held is not None else None
    kind = tensor.dtype if tensor is not None else ir.DataType.FLOAT
    fill = tensor.numpy().ravel()[0].item() if tensor is not None else 0.0
    sizes = n.sizes(0)
    shape: Plain = n.tensor(0) if sizes is None else tuple(n.size(s) for s in sizes)
    if fill == 0 and kind is not ir.DataType.BOOL:
        return call("ops.zeros", shape, dtype=dtype(kind))
    return call("ops.full", shape, short_float(fill) if isinstance(fill, float) else fill, dtype=dtype(kind))


def range_(n: Site) -> Code:
    ends: list[Plain] = []
    for i in range(3):
        array = n.host(i)
        ends.append(n.number(array) if array is not None else n.tensor(i))
    if n.scalar(2) == 1:
        ends = ends[1:2] if n.scalar(0) == 0 else ends[:2]
    return call("ops.arange", *ends, dtype=dtype(n.result_dtype()))


def shape(n: Site) -> Code:
    start, end = n.integer("start"), n.node.attributes.get("end")
    sizes = call("tf.shape", n.tensor(), out_type=name("tf.int64"))
    if start or end is not None:
        sizes = sizes[slice(start or None, end.as_int() if end is not None else None)]
    return sizes


def size(n: Site) -> Code:
    return cast_to(call("ops.size", n.tensor()), ir.DataType.INT64)


def eye_like(n: Site) -> Code:
    kind = ir.DataType(n.integer("dtype", int(n.dtype())))
    return call("ops.eye", n.dim(0, 0), n.dim(0, 1), k=n.integer("k") or None, dtype=dtype(kind))


def one_hot(n: Site) -> Code:
    depth, values = n.sizes(1), n.constant(2)
    if depth is None or values is None:
        n.refuse("the depth or the values of a one-hot encoding are computed when the model runs")
    count = n.size(int(depth[0]) if isinstance(depth[0], float) else depth[0])
    off, on = (v.item() for v in values.ravel())
    axis, kind = n.integer("axis", -1), dtype(n.result_dtype())
    picked = cast_to(n.tensor(), ir.DataType.INT64)
    at = n.let(call("ops.where", picked.binary("<", 0), picked + count, picked), "indices")
    hot = call("ops.one_hot", at, count, axis=axis, dtype=kind)
    if (off, on) == (0, 1):
        return hot
    ends = [call("ops.convert_to_tensor", value, dtype=kind) for value in (on, off)]
    return call("ops.where", hot.binary("==", 1), *ends)


def non_zero(n: Site) -> Code:
    return call("ops.cast", call("ops.stack", call("ops.nonzero", n.tensor())), "int64")


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
    x, axis = n.tensor(), last(n.axis(), n.rank())
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
        for op in "Abs Ceil Cos Cosh Erf Exp Floor Log Sigmoid Sign Sin Sinh Sqrt Tan Tanh".split()
    },
    **{op: unary(f"ops.arc{op[1:].lower()}") for op in "Acos Acosh Asin Asinh Atan Atanh".split()},
    "Round": round_,
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
    "ReduceL1": lambda n: reduced(n, "ops.sum", call("ops.abs", n.tensor())),
    "ReduceL2": lambda n: call("ops.sqrt", reduced(n, "ops.sum", call("ops.square", n.tensor()))),
    "ReduceSumSquare": lambda n: reduced(n, "ops.sum", call("ops.square", n.tensor())),
    "ReduceLogSum": lambda n: call("ops.log", reduced(n, "ops.sum")),
    "ReduceLogSumExp": lambda n: reduced(n, "ops.logsumexp"),
    "ArgMax": arg("ops.argmax"),
    "ArgMin": arg("ops.argmin"),
    "CumSum": cumulative,
    "TopK": top_k,
    # movement
    "Identity": lambda n: n.tensor(),
    "Cast": cast,
    "CastLike": lambda n: cast_to(n.tensor(), n.dtype(1)),
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
