"""PyTorch rows that move data or make tensors: reshaping, slicing, gathering, padding, constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from fusile.backends.framework.code import Code, Name, Plain, Var, call, code, short_float
from fusile.backends.framework.common import Printer, Row
from fusile.backends.framework.host import HostArray, Scalar
from fusile.backends.framework.site import Site
from fusile.backends.framework.torch_rows import cast_to, dtype
from fusile.backends.framework.words import (
    UNLIMITED,
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


def permute(x: Code, perm: Sequence[int]) -> Code:
    """Axes in another order: a swap of two is a transpose."""
    moved = [i for i, p in enumerate(perm) if i != p]
    if not moved:
        return x
    return x.method("transpose", *moved) if len(moved) == 2 else x.method("permute", *perm)


def run_list(n: Site, i: int) -> Code:
    """An input as a list of plain numbers when the module runs."""
    return n.tensor(i).method("tolist")


def device(printer: Printer) -> dict[str, Plain]:
    """Where new tensors go: beside the first input."""
    return {"device": Name(printer.arguments[0]).attribute("device")} if printer.arguments else {}


# ---- shapes ------------------------------------------------------------------------------------------


def reshape(n: Site) -> Code:
    sizes = target_sizes(n)
    if sizes is None:
        if n.integer("allowzero"):
            return n.tensor().method("reshape", run_list(n, 1))
        return n.helper("reshape")(n.tensor(), n.tensor(1))
    if _flattens(n):
        return n.tensor().method("flatten", 1)
    return n.tensor().method("reshape", *(sizes or [()]))


def _flattens(n: Site) -> bool:
    """Whether a reshape keeps the first axis and joins the rest."""
    sizes = n.sizes(1) or []
    if len(sizes) != 2 or n.rank() < 3 or not same_size(sizes[1], -1):
        return False
    return (is_zero(sizes[0]) and not n.integer("allowzero")) or same_size(sizes[0], n.shape()[0])


def flatten(n: Site) -> Code:
    axis, rank = n.integer("axis", 1), n.rank()
    axis = axis + rank if axis < 0 else axis
    x = n.tensor()
    if axis == 0:
        return x.method("reshape", 1, -1)
    if axis == rank:
        return x.method("reshape", -1, 1)
    if axis == 1:
        return x.method("flatten", 1) if rank > 2 else x
    return x.method("flatten", axis).method("flatten", 0, axis - 1)


def transpose(n: Site) -> Code:
    return permute(n.tensor(), n.integers("perm", range(n.rank())[::-1]))


def unsqueeze(n: Site) -> Code:
    axes = n.constant(1)
    if axes is None:
        return n.helper("unsqueeze")(n.tensor(), run_list(n, 1))
    if not n.has_rank():
        return n.helper("unsqueeze")(n.tensor(), [int(a) for a in axes.ravel()])
    rank, x = n.rank() + axes.size, n.tensor()
    for axis in sorted(int(a) % rank for a in axes.ravel()):
        x = x.method("unsqueeze", last(axis, rank) if axes.size == 1 else axis)
    return x


def squeeze(n: Site) -> Code:
    if not n.has(1):
        return n.tensor().method("squeeze")
    data = n.constant(1)
    if data is None:
        return n.tensor().method("squeeze", call("tuple", run_list(n, 1)))
    if not n.has_rank():
        return n.tensor().method("squeeze", tuple(int(a) for a in data.ravel()))
    axes = sorted(int(a) % n.rank() for a in data.ravel())
    if not axes:
        return n.tensor()
    return n.tensor().method("squeeze", last(axes[0], n.rank()) if len(axes) == 1 else tuple(axes))


def expand(n: Site) -> Code:
    sizes, x = n.sizes(1), n.tensor()
    out = None if sizes is None else broadcast_sizes(n, sizes)
    if out is None:
        given: Plain = run_list(n, 1) if sizes is None else tuple(n.size(s) for s in sizes)
        return call("torch.broadcast_to", x, call("torch.broadcast_shapes", x.attribute("shape"), given))
    shape = n.shape()
    lead = len(out) - len(shape)
    if not lead and all(same_size(a, b) for a, b in zip(out, shape, strict=True)):
        return x
    kept = [size if i < lead or not same_size(size, shape[i - lead]) else -1 for i, size in enumerate(out)]
    kept = [1 if same_size(size, 1) else k for size, k in zip(out, kept, strict=True)]
    return x.method("expand", *(n.size(size) for size in kept))


def tile(n: Site) -> Code:
    sizes = n.sizes(1)
    if not sizes:
        return call("torch.tile", n.tensor(), run_list(n, 1) if sizes is None else ())
    return n.tensor().method("repeat", *(n.size(s) for s in sizes))


# ---- pieces ------------------------------------------------------------------------------------------


def concat(n: Site) -> Code:
    parts = [n.tensor(i) for i in range(len(n.node.inputs))]
    return parts[0] if len(parts) == 1 else call("torch.cat", tuple(parts), dim=n.axis_word(0))


def split(n: Site) -> Sequence[Code | None]:
    axis, count = n.axis(0), len(n.node.outputs)
    sizes, at = split_arguments(n), last(axis, n.rank())
    if sizes is not None and len({str(s) for s in sizes}) == 1 and not is_zero(sizes[0]):
        value = n.tensor().method(
            "split" if n.has(1) else "chunk", n.size(sizes[0]) if n.has(1) else count, at
        )
    elif sizes is not None:
        value = n.tensor().method("split", [n.size(s) for s in sizes], at)
    elif n.has(1):
        value = n.tensor().method("split", run_list(n, 1), at)
    else:
        step = n.let((n.dim(0, axis) + (count - 1)) // count, "step", tensor=False)
        value = n.tensor().method("split", step, at)
    targets = tuple(Var(f"part_{i + 1}") for i in range(count))
    n.unpack(value, targets)
    return [Name(target) for target in targets]


def slice_(n: Site) -> Code:
    given = slice_arguments(n)
    if given is None:
        rest = [run_list(n, i) if n.has(i) else code(None) for i in range(1, len(n.node.inputs))]
        return n.helper("slice_run")(n.tensor(), *rest)
    picked: dict[int, Plain | slice] = {}
    for start, stop, axis, step in zip(*given, strict=True):
        item = (
            forward_slice(n, start, stop, step, axis) if step > 0 else _backward(n, start, stop, step, axis)
        )
        if item is not None:
            picked[axis] = item
    return index(n.tensor(), picked, n.rank() if n.has_rank() else 0)


def _backward(n: Site, start: Scalar, stop: Scalar, step: int, axis: int) -> Code:
    """Places counted down: PyTorch has no negative steps."""
    first = None if same_size(start, -1) or (is_number(start) and start >= UNLIMITED) else n.size(start)
    end = None if is_number(stop) and stop <= -UNLIMITED else n.size(stop)
    return call("list", call("range", n.dim(0, axis))[slice(first, end, step)])


def gather(n: Site) -> Code:
    axis, rank, indices = n.axis(0), n.rank(), n.host(1)
    if indices is not None and indices.elements.ndim == 0:
        return index(n.tensor(), {axis: n.size(indices.flat[0])}, rank)
    if indices is not None and indices.is_constant and indices.elements.ndim == 1:
        return index(n.tensor(), {axis: [n.size(i) for i in indices.flat]}, rank)
    return index(n.tensor(), {axis: n.tensor(1)}, rank)


def _positive(n: Site, i: int, axis: int) -> Code:
    """Indices with negative ones counted from the end."""
    data = n.constant(i)
    found = n.tensor(i) if n.dtype(i) is ir.DataType.INT64 else cast_to(n.tensor(i), ir.DataType.INT64)
    return found if data is not None and np.all(data >= 0) else found % n.dim(0, axis)


def gather_elements(n: Site) -> Code:
    axis = n.axis(0)
    return n.tensor().method("gather", last(axis, n.rank()), _positive(n, 1, axis))


def scatter_elements(n: Site) -> Code:
    axis, how = n.axis(0), n.string("reduction", "none")
    indices, at = _positive(n, 1, axis), last(axis, n.rank())
    if how == "none":
        return n.tensor().method("scatter", at, indices, n.tensor(2))
    words = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return n.tensor().method("scatter_reduce", at, indices, n.tensor(2), words[how])


def gather_nd(n: Site) -> Code:
    return n.helper("gather_nd")(n.tensor(0), n.tensor(1), n.integer("batch_dims"))


def scatter_nd(n: Site) -> Code:
    return n.helper("scatter_nd")(n.tensor(0), n.tensor(1), n.tensor(2), n.string("reduction", "none"))


def trilu(n: Site) -> Code:
    shift: Plain = 0
    if n.has(1):
        sizes = n.sizes(1)
        shift = n.size(sizes[0]) if sizes else n.tensor(1).method("item")
        shift = 0 if sizes and is_zero(sizes[0]) else shift
    function = "torch.triu" if n.integer("upper", 1) else "torch.tril"
    return call(function, n.tensor(), *([] if shift == 0 else [shift]))


# ---- padding, blocks ---------------------------------------------------------------------------------

_PAD_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def pad(n: Site) -> Code:
    given, mode = pad_arguments(n), n.string("mode", "constant")
    if given is None:
        extra: dict[str, Plain] = {"axes": run_list(n, 3)} if n.has(3) else {}
        extra |= {"fill": n.tensor(2).method("item")} if n.has(2) else {}
        return n.helper("pad_run")(n.tensor(), run_list(n, 1), mode, **extra)
    before, after = given
    used = [a for a in before if not (is_zero(before[a]) and is_zero(after[a]))]
    if not used:
        return n.tensor()
    if mode != "constant":
        return _pad_copied(n, before, after, used, mode)
    pads = _pad_list(n, before, after, min(used))
    if not n.has(2) or n.scalar(2) == 0:
        return call("F.pad", n.tensor(), pads)
    array = n.host(2)
    value = n.number(array) if array is not None else n.tensor(2).method("item")
    return call("F.pad", n.tensor(), pads, value=value)


def _pad_list(n: Site, before: Mapping[int, Scalar], after: Mapping[int, Scalar], first: int) -> Plain:
    out: list[Plain] = []
    for axis in reversed(range(first, n.rank())):
        out += [n.size(before.get(axis, 0)), n.size(after.get(axis, 0))]
    return tuple(out)


def _pad_copied(
    n: Site, before: Mapping[int, Scalar], after: Mapping[int, Scalar], used: list[int], mode: str
) -> Code:
    """PyTorch copies along at most the last three axes, under one or two others; the rest is a helper's."""
    rank = n.rank()
    negative = any(is_number(s) and s < 0 for s in (*before.values(), *after.values()))
    for count in (1, 2, 3):
        if rank - count in (1, 2) and min(used) >= rank - count and not negative:
            return call("F.pad", n.tensor(), _pad_list(n, before, after, rank - count), mode=_PAD_MODES[mode])
    pads = [n.size(sizes.get(axis, 0)) for sizes in (before, after) for axis in range(rank)]
    return n.helper("pad_run")(n.tensor(), pads, mode)


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


def constant(printer: Printer, array: HostArray) -> Code:
    """A tensor of numbers that stand in the source, beside the first input."""
    kind, shape = array.dtype, array.elements.shape
    elements = [_element(printer, e, kind) for e in array.flat]
    extra: dict[str, Plain] = {}
    if kind not in (ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.BOOL) or not elements:
        extra["dtype"] = dtype(kind)
    extra |= device(printer)
    if not elements:
        return call("torch.zeros", tuple(shape), **extra)
    if len(elements) > 4 and array.is_constant and len({element.text({}) for element in elements}) == 1:
        return call("torch.full", tuple(shape), elements[0], **extra)
    return call("torch.tensor", nested(elements, shape), **extra)


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
    shape_: Plain = run_list(n, 0) if sizes is None else tuple(n.size(s) for s in sizes)
    extra: dict[str, Plain] = {} if kind is ir.DataType.FLOAT else {"dtype": dtype(kind)}
    extra |= device(n.printer)
    if fill == 0 and kind is not ir.DataType.BOOL:
        return call("torch.zeros", shape_, **extra)
    return call("torch.full", shape_, short_float(fill) if isinstance(fill, float) else fill, **extra)


def range_(n: Site) -> Code:
    ends: list[Plain] = []
    for i in range(3):
        array = n.host(i)
        ends.append(n.number(array) if array is not None else n.tensor(i).method("item"))
    if n.scalar(2) == 1:
        ends = ends[1:2] if n.scalar(0) == 0 else ends[:2]
    kind = n.result_dtype()
    extra: dict[str, Plain] = {} if kind is ir.DataType.INT64 else {"dtype": dtype(kind)}
    return call("torch.arange", *ends, **extra, **device(n.printer))


def shape(n: Site) -> Code:
    """Only reached where the rank is unknown while printing."""
    start, end = n.integer("start"), n.node.attributes.get("end")
    sizes = n.tensor().attribute("shape")
    if start or end is not None:
        sizes = sizes[slice(start or None, end.as_int() if end is not None else None)]
    return call("torch.tensor", sizes, **device(n.printer))


def eye_like(n: Site) -> Code:
    kind = ir.DataType(n.integer("dtype", int(n.dtype())))
    x, shift = n.tensor(), n.integer("k")
    ones = call("torch.ones", x.attribute("shape"), dtype=dtype(kind), device=x.attribute("device"))
    return call("torch.triu", call("torch.tril", ones, shift), shift)


def one_hot(n: Site) -> Code:
    axis, rank = n.integer("axis", -1), n.rank() + 1
    depth, values = n.sizes(1), n.constant(2)
    if depth:
        count: Code = n.size(int(depth[0]) if isinstance(depth[0], float) else depth[0])
    else:
        count = n.let(call("int", n.tensor(1).method("item")), "depth", tensor=False)
    spread = [-1 if a == axis % rank else 1 for a in range(rank)]
    picked = n.let(cast_to(n.tensor(), ir.DataType.INT64).method("unsqueeze", axis), "indices")
    every = call("torch.arange", count, device=picked.attribute("device")).method("reshape", *spread)
    match = picked.binary("==", every).binary("|", (picked + count).binary("==", every))
    kind = dtype(n.result_dtype())
    if values is None:
        return call("torch.where", match, n.tensor(2)[1], n.tensor(2)[0])
    off, on = (v.item() for v in values.ravel())
    return (
        match.method("to", kind)
        if (off, on) == (0, 1)
        else call("torch.where", match, on, off).method("to", kind)
    )


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
    "Size": lambda n: call("torch.tensor", n.tensor().method("numel"), **device(n.printer)),
    "ConstantOfShape": constant_of_shape,
    "Range": range_,
    "EyeLike": eye_like,
    "OneHot": one_hot,
    "NonZero": lambda n: n.tensor().method("nonzero").attribute("T"),
}
