"""Keras rows that move data or make tensors: reshaping, slicing, gathering, padding, constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from fusile.backends.framework.code import Code, Name, Plain, Var, call, code, name, short_float
from fusile.backends.framework.common import Printer, Row
from fusile.backends.framework.host import HostArray, Scalar
from fusile.backends.framework.keras_rows import cast_to, dtype, permute, run_list
from fusile.backends.framework.site import Site
from fusile.backends.framework.words import (
    UNLIMITED,
    axes_word,
    broadcast_sizes,
    forward_slice,
    index,
    is_number,
    is_zero,
    last,
    nested,
    pad_arguments,
    same_size,
    slice_arguments,
    split_arguments,
    target_sizes,
)
from fusile.ir import expr as ex

# ---- shapes ------------------------------------------------------------------------------------------


def reshape(n: Site) -> Code:
    sizes = target_sizes(n)
    if sizes is not None:
        return call("ops.reshape", n.tensor(), tuple(sizes))
    if n.integer("allowzero"):
        return call("ops.reshape", n.tensor(), n.tensor(1))
    return n.helper("reshape")(n.tensor(), n.tensor(1))


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
    return permute(n.tensor(), n.integers("perm", range(n.rank())[::-1]))


def unsqueeze(n: Site) -> Code:
    data = n.constant(1)
    if data is None:
        return call("ops.expand_dims", n.tensor(), run_list(n, 1))
    if not n.has_rank():
        return call("ops.expand_dims", n.tensor(), tuple(int(a) for a in data.ravel()))
    rank = n.rank() + data.size
    axes = sorted(int(a) % rank for a in data.ravel())
    return call("ops.expand_dims", n.tensor(), axes_word(axes, rank)) if axes else n.tensor()


def squeeze(n: Site) -> Code:
    if not n.has(1):
        return call("ops.squeeze", n.tensor())
    data = n.constant(1)
    if data is None:
        return call("ops.squeeze", n.tensor(), call("tuple", run_list(n, 1)))
    if not n.has_rank():
        return call("ops.squeeze", n.tensor(), tuple(int(a) for a in data.ravel()))
    axes = sorted(int(a) % n.rank() for a in data.ravel())
    return call("ops.squeeze", n.tensor(), axes_word(axes, n.rank())) if axes else n.tensor()


def expand(n: Site) -> Code:
    sizes, x = n.sizes(1), n.tensor()
    if sizes is None:
        return n.helper("expand")(x, n.tensor(1))
    out = broadcast_sizes(n, sizes)
    if out is None:
        return n.helper("expand")(x, tuple(n.size(s) for s in sizes))
    shape_ = n.shape()
    if len(out) == len(shape_) and all(same_size(a, b) for a, b in zip(out, shape_, strict=True)):
        return x
    return call("ops.broadcast_to", x, tuple(n.size(size) for size in out))


def tile(n: Site) -> Code:
    sizes = n.sizes(1)
    return call("ops.tile", n.tensor(), run_list(n, 1) if sizes is None else tuple(n.size(s) for s in sizes))


# ---- pieces ------------------------------------------------------------------------------------------


def concat(n: Site) -> Code:
    parts = [n.tensor(i) for i in range(len(n.node.inputs))]
    return parts[0] if len(parts) == 1 else call("ops.concatenate", parts, axis=n.axis_word(0))


def split(n: Site) -> Sequence[Code | None]:
    axis, count = n.axis(0), len(n.node.outputs)
    sizes = split_arguments(n)
    if sizes is None:
        ends = _split_run(n, axis, count)
    elif len({str(s) for s in sizes}) == 1 and not is_zero(sizes[0]):
        ends = count
    else:
        ends, reached = [], sizes[0]
        for part in sizes[1:]:
            ends.append(n.size(reached))
            reached = reached + part
    targets = tuple(Var(f"part_{i + 1}") for i in range(count))
    n.unpack(call("ops.split", n.tensor(), ends, axis=last(axis, n.rank())), targets)
    return [Name(target) for target in targets]


def _split_run(n: Site, axis: int, count: int) -> Plain:
    if n.has(1):
        return call("np.cumsum", run_list(n, 1))[slice(None, -1)].method("tolist")
    step = n.let((n.dim(0, axis) + (count - 1)) // count, "step", tensor=False)
    return [step * i for i in range(1, count)]


def slice_(n: Site) -> Code:
    given = slice_arguments(n)
    if given is None:
        rest = [run_list(n, i) if n.has(i) else code(None) for i in range(1, len(n.node.inputs))]
        return n.helper("slice_run")(n.tensor(), *rest)
    x = n.tensor()
    picked: dict[int, Plain | slice] = {}
    for start, stop, axis, step in zip(*given, strict=True):
        if step < 0:
            x = _backward(n, x, start, stop, step, axis)
            continue
        item = forward_slice(n, start, stop, step, axis)
        if item is not None:
            picked[axis] = item
    return index(x, picked, n.rank() if n.has_rank() else 0)


def _backward(n: Site, x: Code, start: Scalar, stop: Scalar, step: int, axis: int) -> Code:
    """A slice that steps backwards: flip the axis, then slice it forwards."""
    size, rank = n.shape()[axis], n.rank()
    flipped = call("ops.flip", x, axis=axis)
    whole = is_number(start) and is_number(stop) and stop <= -UNLIMITED
    if whole and (start == -1 or start >= UNLIMITED):
        return flipped if step == -1 else index(flipped, {axis: slice(None, None, -step)}, rank)
    if not isinstance(size, int) or isinstance(start, ex.Expr) or isinstance(stop, ex.Expr):
        n.refuse("a slice steps backwards over an axis whose size is not fixed")
    first, end, _ = slice(int(start), None if stop < -size else int(stop), step).indices(size)
    return index(
        flipped, {axis: slice(size - 1 - first, size - 1 - end, None if step == -1 else -step)}, rank
    )


def gather(n: Site) -> Code:
    axis, rank, indices = n.axis(0), n.rank(), n.host(1)
    if indices is not None and indices.elements.ndim == 0:
        return index(n.tensor(), {axis: n.size(indices.flat[0])}, rank)
    if indices is not None and indices.is_constant and indices.elements.ndim == 1:
        return call("ops.take", n.tensor(), [n.size(i) for i in indices.flat], axis=axis)
    return call("ops.take", n.tensor(), n.tensor(1), axis=axis)


def _positive(n: Site, i: int, axis: int) -> Code:
    """Indices with negative ones counted from the end."""
    data = n.constant(i)
    if data is not None and np.all(data >= 0):
        return n.tensor(i)
    return call("ops.mod", n.tensor(i), cast_to(n.dim(0, axis), n.dtype(i)))


def gather_elements(n: Site) -> Code:
    axis = n.axis(0)
    return call("ops.take_along_axis", n.tensor(), _positive(n, 1, axis), axis=axis)


def scatter_elements(n: Site) -> Code:
    axis, how = n.axis(0), n.string("reduction", "none")
    return n.helper("scatter_elements")(n.tensor(0), _positive(n, 1, axis), n.tensor(2), axis, how)


def gather_nd(n: Site) -> Code:
    batch = n.integer("batch_dims")
    places = n.helper("positive_nd")(n.tensor(1), n.tensor(0), batch)
    return call("tf.gather_nd", n.tensor(0), places, batch_dims=batch or None)


def scatter_nd(n: Site) -> Code:
    words = {"none": "update", "add": "add", "max": "max", "min": "min"}
    how = n.string("reduction", "none")
    places = n.helper("positive_nd")(n.tensor(1), n.tensor(0), 0)
    if how == "mul":
        return n.helper("scatter_product")(n.tensor(0), places, n.tensor(2))
    return call(f"tf.tensor_scatter_nd_{words[how]}", n.tensor(0), places, n.tensor(2))


def trilu(n: Site) -> Code:
    upper, sizes = bool(n.integer("upper", 1)), n.sizes(1) if n.has(1) else [0]
    rows, columns = n.shape()[-2:]
    shift = sizes[0] if sizes else None
    if (
        is_zero(shift if shift is not None else 1)
        and isinstance(rows, int)
        and isinstance(columns, int)
        and rows
        and columns
    ):
        return call("ops.triu" if upper else "ops.tril", n.tensor())
    given = run_list(n, 1)[0] if shift is None else n.size(shift)
    return n.helper("triangle")(n.tensor(), given, upper)


# ---- padding, blocks ---------------------------------------------------------------------------------


def pad(n: Site) -> Code:
    given, rank, mode = pad_arguments(n), n.rank(), n.string("mode", "constant")
    fill = _fill(n)
    if given is None:
        extra: dict[str, Plain] = {"axes": run_list(n, 3)} if n.has(3) else {}
        extra |= {} if fill is None else {"fill": fill}
        return n.helper("pad_run")(n.tensor(), run_list(n, 1), mode, **extra)
    before, after = given
    every = (*before.values(), *after.values())
    if all(is_zero(s) for s in every):
        return n.tensor()
    if mode in ("constant", "reflect") and not any(is_number(s) and s < 0 for s in every):
        widths = tuple((n.size(before.get(a, 0)), n.size(after.get(a, 0))) for a in range(rank))
        if mode == "reflect":
            return call("ops.pad", n.tensor(), widths, mode="reflect")
        return call("ops.pad", n.tensor(), widths, constant_values=fill)
    pads = [n.size(sizes.get(axis, 0)) for sizes in (before, after) for axis in range(rank)]
    words: dict[str, Plain] = {} if fill is None else {"fill": fill}
    return n.helper("pad_run")(n.tensor(), pads, mode, **words)


def _fill(n: Site) -> Code | None:
    if not n.has(2) or n.scalar(2) == 0:
        return None
    array = n.host(2)
    if array is not None:
        return n.number(array)
    return call("ops.reshape", n.tensor(2), ()) if not n.has_rank(2) or n.rank(2) else n.tensor(2)


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
    kind, shape_ = array.dtype, array.elements.shape
    elements = [_element(printer, e, kind) for e in array.flat]
    if not elements:
        return call("ops.zeros", tuple(shape_), dtype=dtype(kind))
    if not array.is_constant:
        return call("ops.cast", call("ops.convert_to_tensor", nested(elements, shape_)), dtype(kind))
    if len(elements) > 4 and len({element.text({}) for element in elements}) == 1:
        return call("ops.full", tuple(shape_), elements[0], dtype=dtype(kind))
    return call("ops.convert_to_tensor", nested(elements, shape_), dtype=dtype(kind))


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
    shape_: Plain = n.tensor(0) if sizes is None else tuple(n.size(s) for s in sizes)
    if fill == 0 and kind is not ir.DataType.BOOL:
        return call("ops.zeros", shape_, dtype=dtype(kind))
    return call("ops.full", shape_, short_float(fill) if isinstance(fill, float) else fill, dtype=dtype(kind))


def range_(n: Site) -> Code:
    ends: list[Plain] = []
    for i in range(3):
        array = n.host(i)
        ends.append(n.number(array) if array is not None else n.tensor(i))
    if n.scalar(2) == 1:
        ends = ends[1:2] if n.scalar(0) == 0 else ends[:2]
    return call("ops.arange", *ends, dtype=dtype(n.result_dtype()))


def shape(n: Site) -> Code:
    """Only reached where the rank is unknown while printing."""
    start, end = n.integer("start"), n.node.attributes.get("end")
    sizes = call("tf.shape", n.tensor(), out_type=name("tf.int64"))
    if start or end is not None:
        sizes = sizes[slice(start or None, end.as_int() if end is not None else None)]
    return sizes


def eye_like(n: Site) -> Code:
    kind = ir.DataType(n.integer("dtype", int(n.dtype())))
    return call("ops.eye", n.dim(0, 0), n.dim(0, 1), k=n.integer("k") or None, dtype=dtype(kind))


def one_hot(n: Site) -> Code:
    depth, values = n.sizes(1), n.constant(2)
    if depth:
        count: Code = n.size(int(depth[0]) if isinstance(depth[0], float) else depth[0])
    else:
        count = n.let(call("int", run_list(n, 1)[0]), "depth", tensor=False)
    axis, kind = last(n.integer("axis", -1) % (n.rank() + 1), n.rank() + 1), dtype(n.result_dtype())
    picked = cast_to(n.tensor(), ir.DataType.INT64)
    places = n.let(call("ops.where", picked.binary("<", 0), picked + count, picked), "indices")
    hot = call("ops.one_hot", places, count, axis=axis, dtype=kind)
    if values is None:
        return call("ops.where", hot.binary("==", 1), n.tensor(2)[1], n.tensor(2)[0])
    off, on = (v.item() for v in values.ravel())
    if (off, on) == (0, 1):
        return hot
    ends = [call("ops.convert_to_tensor", value, dtype=kind) for value in (on, off)]
    return call("ops.where", hot.binary("==", 1), *ends)


MOVES: Mapping[str, Row] = {
    "Identity": lambda n: n.tensor(),
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Squeeze": squeeze,
    "Expand": expand,
    "Tile": tile,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Trilu": trilu,
    "Pad": pad,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Shape": shape,
    "Size": lambda n: cast_to(call("ops.size", n.tensor()), ir.DataType.INT64),
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
    "EyeLike": eye_like,
    "OneHot": one_hot,
    "NonZero": lambda n: cast_to(call("ops.stack", call("ops.nonzero", n.tensor())), ir.DataType.INT64),
}
