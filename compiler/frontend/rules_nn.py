"""Rules for the operators of neural networks: normalisation, dropout, softmax, recurrence, windows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fusile.frontend.resolve import softmax_axis
from fusile.frontend.rules import EVER, Rule, Site
from fusile.frontend.rules_tensor import without
from fusile.frontend.windows import WINDOWED, settle_window


def batch_norm_by_element(site: Site) -> None:
    """BatchNormalization(spatial=0) has statistics per element: (x - mean) / sqrt(var + e) * scale + b."""
    spatial = site.get_int("spatial", 1)
    site.drop("spatial", "is_test", "consumed_inputs")
    if spatial:
        return
    if any(site.used(index) for index in range(1, 5)):
        site.unsupported("training with statistics per element (spatial=0)", "Export the model for inference")
    x, scale, bias, mean, var = (site.required(index) for index in range(5))
    epsilon = site.like(site.get_float("epsilon") or 1e-5, x, "epsilon")
    deviation = site.emit("Sqrt", [site.emit("Add", [var, epsilon])])
    normal = site.emit("Div", [site.emit("Sub", [x, mean]), deviation])
    site.replace(site.emit("Add", [site.emit("Mul", [normal, scale]), bias]))


def batch_norm_mode(site: Site) -> None:
    """BatchNormalization trained where its statistics were read; training_mode says so since."""
    if site.used(3) or site.used(4):
        site.unsupported("its saved mean and variance are read", "Export the model for inference")
    if site.used(1) or site.used(2):
        site.set("training_mode", 1)
        site.trim_outputs(3)


def batch_norm_outputs(site: Site) -> None:
    """For inference BatchNormalization has one output."""
    if not site.get_int("training_mode", 0) and not site.used(1) and not site.used(2):
        site.trim_outputs(1)


def dropout_test_flag(site: Site) -> None:
    """Dropout(is_test=0) trained."""
    trains = not site.get_int("is_test", 0)
    site.drop("is_test", "consumed_inputs")
    if trains:
        ratio = site.get_float("ratio")
        site.set_input(1, site.constant(np.array(0.5 if ratio is None else ratio, np.float32), "ratio"))
        site.set_input(2, site.constant(np.array(True), "training_mode"))


def dropout_mask(site: Site) -> None:
    """Dropout's mask had the type of the data, and is boolean since."""
    if not site.used(1):
        return
    x = site.required(0)
    y, mask = site.emit_many("Dropout", list(site.node.inputs), 2)
    site.replace(y, site.emit("CastLike", [mask, x]))


def dropout_ratio(site: Site) -> None:
    """Dropout without a training mode was for inference, whatever its ratio."""
    site.drop("ratio")


def dropout_identity(site: Site) -> None:
    """Dropout for inference is Identity, where nothing reads its mask of ones."""
    mode = site.input(2)
    known = mode is None or (mode.const_value is not None and not mode.const_value.numpy().any())
    if not known or site.used(1):
        return
    site.set_inputs(site.required(0))
    site.drop(*site.node.attributes)
    site.trim_outputs(1)
    site.node.op_type = "Identity"


def softmax_flattened(site: Site) -> None:
    """Softmax(x, axis=k) was over all dimensions from k on, as if flattened to two dimensions."""
    x, axis = site.required(0), site.get_int("axis", 1)
    assert axis is not None
    if x.shape is not None:
        single = softmax_axis(x.shape, axis)
        if single is not None:
            site.set("axis", single)
            return
    shape = site.emit("Shape", [x])
    flat = site.emit("Flatten", [x], axis=axis)
    result = site.emit(site.node.op_type, [flat], axis=-1)
    site.replace(site.emit("Reshape", [result, shape], allowzero=1))


def group_norm_by_channel(site: Site) -> None:
    """GroupNormalization's scale and bias were [groups], and are [channels] since."""
    x, groups = site.required(0), site.get_int("num_groups")
    assert groups is not None
    shape = site.emit("Shape", [x], start=1, end=2)
    counts = site.ints_constant([groups], "groups")
    per_group = site.emit("Concat", [counts, site.emit("Div", [shape, counts])], axis=0)
    column, all_of = site.ints_constant([-1, 1], "column"), site.ints_constant([-1], "all")
    for index in (1, 2):
        value = site.emit("Reshape", [site.required(index), column])
        value = site.emit("Expand", [value, per_group])
        site.set_input(index, site.emit("Reshape", [value, all_of]))


def roi_align_coordinates(site: Site) -> None:
    """RoiAlign did not move its boxes by half a pixel."""
    site.set("coordinate_transformation_mode", "output_half_pixel")


def integer_power(site: Site) -> None:
    """The p of LpPool is an integer since."""
    power = site.get_float("p")
    site.set("p", 2 if power is None else int(power))


def scan_over_batch(site: Site) -> None:
    """Scan of opset 8 worked along axis 1, once for every entry of axis 0: it is a Scan in a Scan."""
    if site.input(0) is not None:
        site.unsupported("its sequence lengths", "Export the model with opset 9 or newer")
    inputs = [site.required(index) for index in range(1, len(site.node.inputs))]
    scanned = site.get_int("num_scan_inputs") or 0
    body = site.node.attributes["body"].as_graph()
    directions = site.get_ints("directions")
    states = len(inputs) - scanned
    entries = [
        ir.Value(name=site.names.value(f"{site.node.name}/entry"), type=value.type) for value in inputs
    ]
    inner = ir.Node(
        "",
        "Scan",
        entries,
        [ir.AttrGraph("body", body), ir.AttrInt64("num_scan_inputs", scanned)],
        num_outputs=len(site.node.outputs),
        version=EVER - 1,
        name=site.names.node(f"{site.node.name}/sequence"),
    )
    if directions is not None:
        inner.attributes["scan_input_directions"] = ir.AttrInt64s("scan_input_directions", directions)
    for value in inner.outputs:
        value.name = site.names.value(f"{site.node.name}/result")
    del site.node.attributes["body"]
    graph = ir.Graph(entries, list(inner.outputs), nodes=[inner], name=f"{site.node.name}/batch")
    assert states >= 0
    outer = site.emit_many("Scan", inputs, len(inner.outputs), body=graph, num_scan_inputs=len(inputs))
    site.emitted.append(inner)
    site.replace(*outer)


def constant_of_shape_value(site: Site) -> None:
    """ConstantOfShape without a value is of float zeros."""
    if "value" not in site.node.attributes:
        zero = ir.tensor(np.zeros(1, np.float32), name="value")
        site.node.attributes["value"] = ir.AttrTensor("value", zero)


RULES: tuple[Rule, ...] = (
    Rule("BatchNormalization", 9, batch_norm_by_element),
    Rule("BatchNormalization", 14, batch_norm_mode),
    Rule("BatchNormalization", EVER, batch_norm_outputs),
    Rule("Dropout", 7, dropout_test_flag),
    Rule("Dropout", 10, dropout_mask),
    Rule("Dropout", 12, dropout_ratio),
    Rule("Dropout", EVER, dropout_identity),
    *(Rule(name, 13, softmax_flattened) for name in ("Softmax", "LogSoftmax", "Hardmax")),
    Rule("GroupNormalization", 21, group_norm_by_channel),
    Rule("RoiAlign", 16, roi_align_coordinates),
    *(Rule(name, 7, without("output_sequence")) for name in ("RNN", "GRU", "LSTM")),
    *(Rule(name, 2, integer_power) for name in ("LpPool", "GlobalLpPool")),
    Rule("Scan", 9, scan_over_batch),
    Rule("ConstantOfShape", EVER, constant_of_shape_value),
    *(Rule(name, EVER, settle_window) for name in WINDOWED),
)
