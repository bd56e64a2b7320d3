"""Rules for operators that shape, move, reduce and compare tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fusile.frontend.rules import EVER, Rule, Site

Apply = Callable[[Site], None]


def renamed(op_type: str) -> Apply:
    """The operator has another name since."""

    def apply(site: Site) -> None:
        site.node.op_type = op_type

    return apply


def without(*names: str) -> Apply:
    """Attributes that said nothing about the result are gone."""
    return lambda site: site.drop(*names)


def ints_to_input(name: str, index: int = 1) -> Apply:
    """Attribute `name` is the int64 input `index` since."""

    def apply(site: Site) -> None:
        values = site.get_ints(name)
        site.drop(name)
        if values is not None:
            site.set_input(index, site.ints_constant(values, name))

    return apply


def broadcast_at_axis(site: Site) -> None:
    """Add(A, B, broadcast=1, axis=k) lays B over A from axis k on: B[..., 1, 1] under numpy's rule."""
    axis, broadcast = site.get_int("axis"), site.get_int("broadcast", 0)
    site.drop("axis", "broadcast", "consumed_inputs")
    if not broadcast or axis is None:
        return
    rank, inner = site.rank(site.input(0)), site.rank(site.input(1))
    if rank is None or inner is None:
        site.unsupported("broadcasting at an axis needs the ranks of both inputs, and the model gives none")
    trailing = rank - axis % rank - inner
    if trailing > 0:
        axes = site.ints_constant(range(inner, inner + trailing), "axes")
        site.set_input(1, site.emit("Unsqueeze", [site.required(1), axes]))


def prelu_by_channel(site: Site) -> None:
    """PRelu's slope [C] was per channel; under numpy's rule it is [C, 1, ..., 1]."""
    site.drop("consumed_inputs")
    slope, rank = site.required(1), site.rank(site.input(0))
    if slope.shape is None or rank is None:
        site.unsupported("its slope is per channel, which needs ranks that the model does not give")
    if len(slope.shape) == 1 and slope.shape[0] != 1 and rank > 2:
        axes = site.ints_constant(range(1, rank - 1), "axes")
        site.set_input(1, site.emit("Unsqueeze", [slope, axes]))


def cast_by_name(site: Site) -> None:
    """Cast(to="FLOAT") is Cast(to=1)."""
    name = (site.get_string("to") or "").upper()
    if name not in ir.DataType.__members__:
        site.unsupported(f"there is no type {name!r}")
    site.set("to", int(ir.DataType[name]))


def clip_bounds(site: Site) -> None:
    """Clip(min=a, max=b) is Clip(x, a, b). Bounds that were left out stay out: the default was no bound
    but the largest finite float, which made infinities finite; nobody asked for that."""
    x = site.required(0)
    for index, name in ((1, "min"), (2, "max")):
        bound = site.get_float(name)
        if bound is not None and abs(bound) < np.finfo(np.float32).max:
            site.set_input(index, site.like(bound, x, name))
    site.drop("min", "max", "consumed_inputs")


def concat_axis(site: Site) -> None:
    """Concat without an axis concatenated at 1."""
    site.set("axis", site.get_int("axis", 1))


def reshape_attribute(site: Site) -> None:
    """Reshape(x, shape=s) is Reshape(x, s)."""
    site.drop("consumed_inputs")
    ints_to_input("shape")(site)


def slice_attributes(site: Site) -> None:
    """Slice(x, starts, ends, axes) had attributes; without axes they were for the first dimensions."""
    for index, name in ((1, "starts"), (2, "ends"), (3, "axes")):
        ints_to_input(name, index)(site)


def pad_names(site: Site) -> None:
    """Pad's `paddings` are `pads`."""
    site.set("pads", site.get_ints("paddings"))
    site.drop("paddings")


def pad_attributes(site: Site) -> None:
    """Pad(x, pads=p, value=v) is Pad(x, p, v)."""
    site.set_input(1, site.ints_constant(site.get_ints("pads") or (), "pads"))
    value = site.get_float("value")
    if value and site.get_string("mode") in (None, "constant"):
        site.set_input(2, site.like(value, site.required(0), "value"))
    site.drop("pads", "value")


def split_attribute(site: Site) -> None:
    """Split(x, split=s) is Split(x, s)."""
    if site.input(1) is None:
        ints_to_input("split")(site)
    site.drop("split")


def split_evenly(site: Site) -> None:
    """Split without sizes is into as many equal parts as there are outputs."""
    if site.input(1) is None:
        site.set("num_outputs", len(site.node.outputs))


def split_axis(site: Site) -> None:
    """Split's axis was 0 where it was left out."""
    site.set("axis", site.get_int("axis", 0))


def topk_attribute(site: Site) -> None:
    """TopK(x, k=n) is TopK(x, [n])."""
    site.set_input(1, site.ints_constant([site.get_int("k") or 0], "k"))
    site.drop("k")


def tile_at_axis(site: Site) -> None:
    """Tile(x, tiles, axis) repeated along one axis, which was an input."""
    site.unsupported("its axis is an input", "Export the model with opset 6 or newer")


def dft_axis(site: Site) -> None:
    """DFT(x, axis=1) is DFT(x, length, 1); its default is another since."""
    site.set_input(2, site.constant(np.array(site.get_int("axis", 1), np.int64), "axis"))
    site.drop("axis")


def grid_sample_mode(site: Site) -> None:
    """The modes say linear and cubic, whatever the rank."""
    modes = {"bilinear": "linear", "bicubic": "cubic"}
    mode = site.get_string("mode") or "linear"
    site.set("mode", modes.get(mode, mode))


def upsample_sides(site: Site) -> None:
    """Upsample(width_scale=w, height_scale=h) is Upsample(scales=[1, 1, h, w])."""
    height, width = site.get_float("height_scale") or 1.0, site.get_float("width_scale") or 1.0
    site.set("scales", [1.0, 1.0, height, width])
    if site.get_string("mode") == "bilinear":
        site.set("mode", "linear")
    site.drop("height_scale", "width_scale")


def upsample_attribute(site: Site) -> None:
    """Upsample(x, scales=s) is Upsample(x, s)."""
    scales = site.node.attributes["scales"].as_floats()
    site.drop("scales")
    site.set_input(1, site.constant(np.array(scales, np.float32), "scales"))


def resize_asymmetric(site: Site) -> None:
    """Upsample(x, s) and Resize(x, s) of opset 10 are Resize(x, roi, s) with coordinates x / s, rounded
    down where a dimension grows and, as ONNX Runtime does it, up where one shrinks."""
    x, scales = site.required(0), site.required(1)
    site.node.op_type = "Resize"
    site.set("coordinate_transformation_mode", "asymmetric")
    site.set("nearest_mode", "floor")
    site.set_inputs(x, None, scales)
    tensor = scales.const_value
    if site.get_string("mode") == "linear" or tensor is None:
        return
    factors = np.asarray(tensor.numpy())
    if not (factors < 1).any():
        return
    if not (factors > 1).any():
        site.set("nearest_mode", "ceil")
        return
    shrinking = site.constant(np.minimum(factors, 1), "shrinking")
    shrunk = site.emit(
        "Resize",
        [x, None, shrinking],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="ceil",
    )
    site.set_inputs(shrunk, None, site.constant(np.maximum(factors, 1), "growing"))


def resize_inputs(site: Site) -> None:
    """Resize's unused inputs were empty tensors, as they could not be left out."""
    for index in (1, 2, 3):
        value = site.input(index)
        empty = value is not None and value.const_value is not None and value.const_value.size == 0
        unused = index == 1 and site.get_string("coordinate_transformation_mode") != "tf_crop_and_resize"
        if value is not None and (empty or unused):
            site.set_input(index, None)


def label_encoder_classes(site: Site) -> None:
    """LabelEncoder of a list of names, from or to their positions, is one of keys and values."""
    names = site.node.attributes.get("classes_strings")
    x = site.required(0)
    if names is None or x.dtype is None:
        site.unsupported(
            "the model does not say whether it encodes or decodes", "Declare the type of its input"
        )
    found = list(names.as_strings())
    to_numbers = x.dtype == ir.DataType.STRING
    site.set("keys_strings" if to_numbers else "values_strings", found)
    site.set("values_int64s" if to_numbers else "keys_int64s", list(range(len(found))))
    site.drop("classes_strings")


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Greater", "Less", "Equal")
_IN_PLACE = (
    *(
        "Abs",
        "Ceil",
        "Elu",
        "Exp",
        "Floor",
        "HardSigmoid",
        "InstanceNormalization",
        "LeakyRelu",
        "Log",
        "Max",
    ),
    *("Mean", "Min", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sqrt", "Sum", "Tanh"),
)

RULES: tuple[Rule, ...] = (
    *(Rule(name, 7, broadcast_at_axis) for name in ARITHMETIC),
    *(Rule(name, 6, without("consumed_inputs")) for name in _IN_PLACE),
    Rule("PRelu", 7, prelu_by_channel),
    Rule("Cast", 6, cast_by_name),
    Rule("Clip", 11, clip_bounds),
    Rule("Concat", 4, concat_axis),
    Rule("Gemm", 7, without("broadcast")),
    Rule("Reshape", 5, reshape_attribute),
    Rule("Slice", 10, slice_attributes),
    Rule("Pad", 2, pad_names),
    Rule("Pad", 11, pad_attributes),
    Rule("Split", 2, split_axis),
    Rule("Split", 13, split_attribute),
    Rule("Split", 18, split_evenly),
    Rule("Squeeze", 13, ints_to_input("axes")),
    Rule("Unsqueeze", 13, ints_to_input("axes")),
    Rule("ReduceSum", 13, ints_to_input("axes")),
    *(Rule(f"Reduce{name}", 18, ints_to_input("axes")) for name in _REDUCTIONS),
    Rule("TopK", 10, topk_attribute),
    Rule("Tile", 6, tile_at_axis),
    Rule("DFT", 20, dft_axis),
    Rule("Scatter", EVER, renamed("ScatterElements")),
    Rule("GridSample", 20, grid_sample_mode),
    Rule("Upsample", 7, upsample_sides),
    Rule("Upsample", 9, upsample_attribute),
    Rule("Upsample", EVER, resize_asymmetric),
    Rule("Resize", 11, resize_asymmetric),
    Rule("Resize", EVER, resize_inputs),
    Rule("LabelEncoder", 2, label_encoder_classes, "ai.onnx.ml"),
)
