"""Keras rows in words of its own, or of TensorFlow: spectra, choices among elements, chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from fusile.backends.framework.code import Code, Name, Plain, Var, call
from fusile.backends.framework.common import Row
from fusile.backends.framework.keras_rows import cast_to, dtype, run_list
from fusile.backends.framework.site import Site


def number(n: Site, i: int) -> Code:
    """An input as a number of Python."""
    array = n.host(i)
    if array is not None:
        return n.number(array)
    return run_list(n, i)[0]


def numbers(n: Site, i: int) -> Plain:
    """An input as a list of numbers of Python."""
    sizes = n.sizes(i)
    return run_list(n, i) if sizes is None else [n.size(s) for s in sizes]


def affine_grid(n: Site) -> Code:
    return n.helper("affine_grid")(n.tensor(0), numbers(n, 1), bool(n.integer("align_corners")))


def dft(n: Site) -> Code:
    length = number(n, 1) if n.has(1) else None
    axis = number(n, 2) if n.has(2) else -2
    return n.helper("dft")(n.tensor(0), length, axis, bool(n.integer("inverse")), bool(n.integer("onesided")))


def col2im(n: Site) -> Code:
    shape = n.value(1).shape
    dims = n.rank(0) if shape is None or not isinstance(shape[0], int) else shape[0]
    ones = [1] * dims
    return n.helper("col2im")(
        n.tensor(0),
        numbers(n, 1),
        numbers(n, 2),
        tuple(n.integers("strides", ones) or ones),
        tuple(n.integers("dilations", ones) or ones),
        tuple(n.integers("pads", [0] * 2 * dims) or [0] * 2 * dims),
    )


def cumulative_product(n: Site) -> Code:
    exclusive, backward = bool(n.integer("exclusive")), bool(n.integer("reverse"))
    return n.helper("cumulative_product")(n.tensor(0), number(n, 1), exclusive, backward)


def mel_weights(n: Site) -> Code:
    kind = ir.DataType(n.integer("output_datatype", 1))
    made = n.helper("mel_weights")(*(number(n, i) for i in range(5)))
    return cast_to(made, kind)


def non_max_suppression(n: Site) -> Code:
    most = number(n, 2) if n.has(2) else 0
    overlap = number(n, 3) if n.has(3) else 0.0
    words: dict[str, Plain] = {"least": number(n, 4)} if n.has(4) else {}
    if n.integer("center_point_box"):
        words["centred"] = True
    return n.helper("non_max_suppression")(n.tensor(0), n.tensor(1), most, overlap, **words)


def unique(n: Site) -> Sequence[Code | None]:
    held = n.node.attributes.get("axis")
    axis = None if held is None else held.as_int()
    if axis is not None and axis < 0:
        axis = n.axis(of=0)
    targets = tuple(Var(word) for word in ("values", "first", "inverse", "counts"))
    n.unpack(n.helper("unique")(n.tensor(0), axis, bool(n.integer("sorted", 1))), targets)
    return [Name(t) for t in targets]


# ---- chance ------------------------------------------------------------------------------------------


def _seeded(n: Site) -> dict[str, Plain]:
    return {"seed": int(n.real("seed"))} if "seed" in n.node.attributes else {}


def _drawn(n: Site, normal: bool, shape: Plain, kind: ir.DataType) -> Code:
    names = ("mean", "stddev") if normal else ("minval", "maxval")
    ends = (
        (n.real("mean", 0.0), n.real("scale", 1.0)) if normal else (n.real("low", 0.0), n.real("high", 1.0))
    )
    words: dict[str, Plain] = {
        word: end for word, end, usual in zip(names, ends, (0.0, 1.0), strict=True) if end != usual
    }
    words |= {} if kind is ir.DataType.FLOAT else {"dtype": dtype(kind)}
    return call("keras.random.normal" if normal else "keras.random.uniform", shape, **words, **_seeded(n))


def random(normal: bool) -> Row:
    def row(n: Site) -> Code:
        return _drawn(n, normal, tuple(n.integers("shape")), ir.DataType(n.integer("dtype", 1)))

    return row


def random_like(normal: bool) -> Row:
    def row(n: Site) -> Code:
        kind = ir.DataType(n.integer("dtype") or int(n.dtype()))
        return _drawn(n, normal, call("ops.shape", n.tensor(0)), kind)

    return row


def bernoulli(n: Site) -> Code:
    kind = ir.DataType(n.integer("dtype") or int(n.dtype()))
    x = n.tensor(0)
    drawn = call("keras.random.uniform", call("ops.shape", x), dtype=dtype(n.dtype()), **_seeded(n))
    return cast_to(drawn.binary("<", x), kind)


def multinomial(n: Site) -> Code:
    made = call("keras.random.categorical", n.tensor(0), n.integer("sample_size", 1), **_seeded(n))
    return cast_to(made, ir.DataType(n.integer("dtype", 6)))


def dropout(n: Site) -> Sequence[Code | None]:
    """Only reached where the file asks for dropout while it runs, or for its mask."""
    ratio: Plain = number(n, 1) if n.has(1) else 0.5
    training_: Plain = number(n, 2) if n.has(2) else False
    targets = (Var("x"), Var("kept"))
    n.unpack(n.helper("dropout")(n.tensor(0), ratio, training_), targets)
    return [Name(t) for t in targets]


SPECIAL: Mapping[str, Row] = {
    "AffineGrid": affine_grid,
    "DFT": dft,
    "Col2Im": col2im,
    "CumProd": cumulative_product,
    "MelWeightMatrix": mel_weights,
    "NonMaxSuppression": non_max_suppression,
    "Unique": unique,
    "RandomUniform": random(False),
    "RandomNormal": random(True),
    "RandomUniformLike": random_like(False),
    "RandomNormalLike": random_like(True),
    "Bernoulli": bernoulli,
    "Dropout": dropout,
    "Multinomial": multinomial,
}
