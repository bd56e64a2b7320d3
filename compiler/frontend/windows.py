"""Convolutions and pools with all their attributes: kernel_shape, strides, dilations, explicit pads.

SAME_UPPER and SAME_LOWER pad so that the output has ceil(size / stride) elements. With effective kernel
e = (kernel - 1) * dilation + 1 the total is max(0, (ceil(size / stride) - 1) * stride + e - size), which
is e - 1 for stride 1 whatever the size; else the size must be known. Where it is not, auto_pad stays.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from fusile.frontend.rules import Site, attribute

WINDOWED = (
    *("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv"),
    *("AveragePool", "MaxPool", "LpPool", "MaxUnpool"),
)

_WEIGHT_INDEX = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3, "DeformConv": 1}
# What stands between an initialiser and its use as a weight in quantised and in half-precision models.
_KEEPS_SHAPE = frozenset({"DequantizeLinear", "QuantizeLinear", "Cast", "CastLike", "Identity"})
_POOLS = frozenset({"AveragePool", "MaxPool", "LpPool"})


def settle_window(site: Site) -> None:
    """Fill in what one node of a windowed operator leaves to the reader, as far as it is known."""
    settle_node(site.node, site.model.graph)


def settle_node(node: ir.Node, main: ir.Graph | None) -> None:
    """The same for a node of `main`; None: the shapes of all values are inferred, not just declared."""
    weight_index = _WEIGHT_INDEX.get(node.op_type)
    kernel = _ints(node, "kernel_shape")
    if kernel is None and weight_index is not None and weight_index < len(node.inputs):
        kernel = _sizes(node.inputs[weight_index], main)
        if kernel is not None:
            _set(node, "kernel_shape", kernel)
    rank = len(kernel) if kernel is not None else None
    if rank is None and node.inputs[0] is not None and node.inputs[0].shape is not None:
        rank = len(node.inputs[0].shape) - 2
    if rank is None:
        return
    strides = _ints(node, "strides") or (1,) * rank
    dilations = _ints(node, "dilations") or (1,) * rank
    _set(node, "strides", strides)
    if node.op_type != "MaxUnpool":
        _set(node, "dilations", dilations)
    if node.op_type == "ConvTranspose":
        _settle_transposed(node, kernel, strides, dilations, main)
        return
    mode = _string(node, "auto_pad") or "NOTSET"
    if mode in ("NOTSET", "VALID"):
        pads = _ints(node, "pads") if mode == "NOTSET" else None
        _settle(node, pads or (0,) * (2 * rank), one_size=mode == "VALID")
        return
    if kernel is None:
        return
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations)]
    sizes = _sizes(node.inputs[0], main) if any(stride != 1 for stride in strides) else None
    if sizes is None and any(stride != 1 for stride in strides):
        return
    totals = [
        max(0, (-(-size // stride) - 1) * stride + extent - size)
        for size, stride, extent in zip(sizes or (1,) * rank, strides, extents)
    ]
    _settle(node, _split(totals, mode == "SAME_UPPER"), one_size=True)


def _settle(node: ir.Node, pads: Sequence[int], *, one_size: bool) -> None:
    """Give a node explicit pads. `one_size`: they were computed, so that rounding up would add an output."""
    _set(node, "pads", pads)
    if node.op_type not in ("DeformConv", "MaxUnpool"):
        node.attributes["auto_pad"] = ir.AttrString("auto_pad", "NOTSET")
    if one_size and node.op_type in _POOLS:
        node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)


def _settle_transposed(
    node: ir.Node,
    kernel: Sequence[int] | None,
    strides: Sequence[int],
    dilations: Sequence[int],
    main: ir.Graph | None,
) -> None:
    """ConvTranspose: pads are what is cut off to make the output output_shape, or size * stride for SAME."""
    rank = len(strides)
    extra = _ints(node, "output_padding") or (0,) * rank
    _set(node, "output_padding", extra)
    mode = _string(node, "auto_pad") or "NOTSET"
    wanted = _ints(node, "output_shape")
    if wanted is None and mode in ("NOTSET", "VALID"):
        pads = _ints(node, "pads") if mode == "NOTSET" else None
        _settle(node, pads or (0,) * (2 * rank), one_size=False)
        return
    if kernel is None:
        return
    # Full output less wanted output; for SAME, (size - 1) * stride + ... - size * stride loses the size.
    extents = [
        (size - 1) * dilation + 1 + more - stride
        for size, dilation, more, stride in zip(kernel, dilations, extra, strides)
    ]
    if wanted is not None:
        sizes = _sizes(node.inputs[0], main)
        if sizes is None:
            return
        extents = [
            extent + size * stride - out
            for extent, size, stride, out in zip(extents, sizes, strides, wanted[-rank:])
        ]
    node.attributes.pop("output_shape", None)
    _set(node, "output_padding", [more + max(0, -total) for more, total in zip(extra, extents)])
    _settle(node, _split([max(0, total) for total in extents], mode == "SAME_UPPER"), one_size=False)


def _split(totals: Sequence[int], odd_at_end: bool) -> list[int]:
    """Pads at the starts and at the ends; what does not halve goes to the end or to the start."""
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return [*small, *large] if odd_at_end else [*large, *small]


def _sizes(value: ir.Value | None, main: ir.Graph | None) -> tuple[int, ...] | None:
    """The spatial sizes of a tensor where they are certain.

    Shapes that a file declares for values between nodes are not: exporters and people who make a
    dimension symbolic leave old ones behind. Those of inputs and initialisers hold by definition.
    """
    while (
        value is not None and (producer := value.producer()) is not None and producer.op_type in _KEEPS_SHAPE
    ):
        value = producer.inputs[0]
    if value is None or value.shape is None:
        return None
    given = value.is_initializer() or (value.is_graph_input() and value.graph is main)
    if main is not None and not given:
        return None
    dims = value.shape[2:]
    sizes = tuple(dim for dim in dims if isinstance(dim, int) and dim >= 0)
    return sizes if len(sizes) == len(dims) else None


def _ints(node: ir.Node, name: str) -> tuple[int, ...] | None:
    found = node.attributes.get(name)
    return None if found is None else tuple(found.as_ints())


def _string(node: ir.Node, name: str) -> str | None:
    found = node.attributes.get(name)
    return None if found is None else found.as_string()


def _set(node: ir.Node, name: str, values: Sequence[int]) -> None:
    node.attributes[name] = attribute(name, list(values))
