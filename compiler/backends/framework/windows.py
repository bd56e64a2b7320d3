"""What sliding windows, resizing and recurrences mean, worked out once for both frameworks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fusile.backends.framework.code import Plain, call, short_float
from fusile.backends.framework.common import Printer
from fusile.backends.framework.host import Scalar
from fusile.backends.framework.site import Site
from fusile.backends.framework.words import without_defaults
from fusile.graph.tensors import scope
from fusile.ir import expr as ex


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window over the spatial axes. `same` is an auto_pad whose pads depend on sizes when run."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]
    same: str = ""

    @property
    def dims(self) -> int:
        return len(self.kernel)


def window(n: Site) -> Window:
    """The window of a convolution or pooling."""
    kernel = n.integers("kernel_shape")
    if not kernel:
        kernel = [n.fixed(1, axis) for axis in range(2, n.rank(1))]
    dims = len(kernel)
    strides, dilations = n.integers("strides", [1] * dims), n.integers("dilations", [1] * dims)
    pads, auto = n.integers("pads", [0] * 2 * dims), n.string("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        fixed = _same_pads(n, kernel, strides, dilations, auto)
        if fixed is None:
            return Window(kernel, strides, dilations, [0] * dims, [0] * dims, auto)
        pads = fixed
    return Window(kernel, strides, dilations, pads[:dims], pads[dims:])


def _same_pads(
    n: Site, kernel: list[int], strides: list[int], dilations: list[int], auto: str
) -> list[int] | None:
    if n.node.op_type == "ConvTranspose":
        return None
    sizes, totals = n.onnx_shape(), []
    for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        size = sizes[axis + 2]
        reach = (k - 1) * d + 1
        if s == 1:
            totals.append(reach - 1)
        elif isinstance(size, int):
            totals.append(max(0, (-(-size // s) - 1) * s + reach - size))
        else:
            return None
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return small + large if auto == "SAME_UPPER" else large + small


@dataclass(frozen=True, slots=True)
class ResizePlan:
    """A resize of some axes, either by fixed scales or to sizes."""

    axes: list[int]
    mode: str
    nearest: str
    coordinates: str
    antialias: bool
    scales: list[float] | None
    sizes: list[Scalar] | None
    cubic: float
    exclude_outside: bool
    outside: float
    roi: list[float]
    common: float | None = None
    """The scale of all axes, where the aspect ratio is kept."""

    @property
    def to_one(self) -> bool:
        """Whether an axis may become a single element."""
        if self.scales is not None:
            return any(s < 1 for s in self.scales)
        return any(isinstance(s, ex.Expr) or s == 1 for s in self.sizes or ())

    @property
    def simple(self) -> bool:
        """Whether no rarely used setting is on."""
        usual = self.mode != "cubic" or abs(self.cubic + 0.75) < 1e-6
        whole = (
            self.scales is None
            or self.coordinates != "align_corners"
            or all(s == int(s) for s in self.scales)
        )
        return (
            usual
            and whole
            and self.common is None
            and not self.antialias
            and not self.exclude_outside
            and self.coordinates != "tf_crop_and_resize"
        )

    def kind(self) -> tuple[str, str, str]:
        """Mode, rounding and coordinates, with equal meanings brought together."""
        coordinates = (
            "half_pixel" if self.coordinates == "pytorch_half_pixel" and not self.to_one else self.coordinates
        )
        if self.mode != "nearest":
            return self.mode, "", coordinates
        whole = self.scales is not None and all(s >= 1 and s == int(s) for s in self.scales)
        if whole and coordinates in ("half_pixel", "half_pixel_symmetric"):
            return "nearest", "floor", "asymmetric"  # no ties: (i + 0.5) / s - 0.5 rounds to floor(i / s)
        return self.mode, self.nearest, coordinates


def resize_plan(n: Site) -> ResizePlan | None:
    """What a Resize does, without axes that keep their size; None where that is computed when run."""
    rank = n.rank()
    axes = [a % rank for a in n.integers("axes", range(rank))]
    scales = _floats(n, 2)
    sizes = n.sizes(3) if n.has(3) else None
    crops = n.string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    if (not scales and sizes is None) or (crops and n.constant(1) is None):
        return None
    shape = n.onnx_shape()
    common = None
    if sizes is not None and not scales:
        common, sizes = _kept_ratio(n, sizes, [shape[a] for a in axes])
    if scales:
        kept = [i for i, s in enumerate(scales) if s != 1.0]
    else:
        assert sizes is not None
        kept = [
            i
            for i, s in enumerate(sizes)
            if not (s is shape[axes[i]] or (not _open(s) and s == shape[axes[i]]))
        ]
    crop = n.string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    kept = list(range(len(axes))) if crop else kept
    roi = _floats(n, 1) if crop else []
    return ResizePlan(
        [axes[i] for i in kept],
        n.string("mode", "nearest"),
        n.string("nearest_mode", "round_prefer_floor"),
        n.string("coordinate_transformation_mode", "half_pixel"),
        bool(n.integer("antialias")),
        [scales[i] for i in kept] if scales else None,
        [sizes[i] for i in kept] if sizes is not None and not scales else None,
        n.real("cubic_coeff_a", -0.75),
        bool(n.integer("exclude_outside")),
        n.real("extrapolation_value"),
        [v for i in kept for v in (roi[i], roi[i + len(axes)])] if crop else [],
        common,
    )


def _kept_ratio(n: Site, sizes: list[Scalar], shape: Sequence[Scalar]) -> tuple[float | None, list[Scalar]]:
    """The one scale and the sizes of a resize that keeps the aspect ratio."""
    policy = n.string("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return None, sizes
    if any(_open(size) for size in (*sizes, *shape)):
        n.refuse("a resize that keeps the aspect ratio of sizes that are not fixed")
    ratios = [float(to) / float(own) for to, own in zip(sizes, shape, strict=True)]  # type: ignore[arg-type]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return scale, [int(scale * float(own) + 0.5) for own in shape]  # type: ignore[arg-type]


def _open(size: Scalar) -> bool:
    return isinstance(size, ex.Expr)


def _floats(n: Site, index: int) -> list[float]:
    data = n.constant(index) if n.has(index) else None
    return [] if data is None else [short_float(float(v)) for v in data.ravel()]


def resize_settings(n: Site) -> dict[str, Plain]:
    """The options of the helper `resize_axis` that are not its defaults, the same for all axes."""
    mode = n.string("mode", "nearest")
    options: dict[str, Plain] = {"mode": mode}
    given: dict[str, Plain] = {
        "coordinates": n.string("coordinate_transformation_mode", "half_pixel"),
        "nearest": n.string("nearest_mode", "round_prefer_floor")
        if mode == "nearest"
        else "round_prefer_floor",
        "cubic": n.real("cubic_coeff_a", -0.75) if mode == "cubic" else -0.75,
        "antialias": bool(n.integer("antialias")),
        "exclude_outside": bool(n.integer("exclude_outside")),
        "outside": n.real("extrapolation_value"),
    }
    usual: dict[str, Plain] = {
        "coordinates": "half_pixel",
        "nearest": "round_prefer_floor",
        "cubic": -0.75,
        "antialias": False,
        "exclude_outside": False,
        "outside": 0.0,
    }
    return options | without_defaults(given, usual)


def axis_options(n: Site, plan: ResizePlan, position: int) -> tuple[Plain, dict[str, Plain]]:
    """The size of one resized axis and the options of the helper `resize_axis` that are not its defaults."""
    axis, options = plan.axes[position], resize_settings(n)
    if plan.roi:
        options["roi"] = tuple(plan.roi[2 * position : 2 * position + 2])
    if plan.scales is None:
        assert plan.sizes is not None
        options |= {} if plan.common is None else {"scale": plan.common}
        return n.size(plan.sizes[position]), options
    scale = plan.scales[position]
    size = n.onnx_shape()[axis]
    options["scale"] = scale
    if isinstance(size, int):
        return int(np.floor(size * scale)), options
    if scale == int(scale):
        return n.size(size * int(scale)), options
    return call("int", n.size(size) * scale), options


def is_zero_state(printer: Printer, value: ir.Value | None, depth: int = 8) -> bool:
    """Whether a value is zeros whatever the input: made by ConstantOfShape and only moved since."""
    if value is None or depth == 0:
        return False
    held = value.const_value if value.is_initializer() else None
    if held is not None:
        return held.size <= 1 << 16 and not np.any(np.asarray(held.numpy()))
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or not np.any(fill.as_tensor().numpy())
    moves = ("Slice", "Reshape", "Transpose", "Expand", "Identity", "Unsqueeze", "Squeeze", "Concat", "Cast")
    if node.op_type not in moves:
        return False
    parts = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return all(is_zero_state(printer, part, depth - 1) for part in parts)


def normalised(n: Site) -> list[int]:
    """Sizes of the axes that a layer norm normalises; its weight has those that the input leaves open."""
    axis, sizes = n.axis(-1), n.shape()
    own = n.shape(1) if n.has(1) else []
    out = []
    for index in range(axis, n.rank()):
        size = sizes[index]
        if not isinstance(size, int):
            other = own[index - n.rank()] if n.rank() - index <= len(own) else None
            if not isinstance(other, int):
                n.refuse(f"the size of the normalised axis {index} is not fixed")
            size = other
        out.append(size)
    return out


_PLAIN_ACTIVATIONS = {
    "LSTM": ["sigmoid", "tanh", "tanh"],
    "GRU": ["sigmoid", "tanh"],
    "RNN": ["tanh"],
}


def recurrent_stem(n: Site) -> str:
    """Recurrent weights are stacked under made-up names: the scope tells more."""
    return scope(n.node) or n.stem(1)


def plain_activations(kind: str) -> list[str]:
    """What ONNX's recurrent operators use unless told otherwise, in one direction."""
    return list(_PLAIN_ACTIVATIONS[kind])


def activations(n: Site) -> list[str]:
    """The activations of a recurrence, as many as its directions need; the schema's default lists more."""
    held = n.node.attributes.get("activations")
    directions = 2 if n.string("direction", "forward") == "bidirectional" else 1
    count = directions * len(_PLAIN_ACTIVATIONS[n.node.op_type])
    return [] if held is None else [a.lower() for a in held.as_strings()][:count]
