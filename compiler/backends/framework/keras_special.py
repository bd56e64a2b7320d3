"""Keras rows in words of its own, or of TensorFlow: spectra, choices among elements, chance."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from fusile.backends.framework.code import Code, Plain, call
from fusile.backends.framework.common import Row
from fusile.backends.framework.keras_rows import cast_to, dtype, run_list
from fusile.backends.framework.site import Site
from fusile.backends.framework.special import Special


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


SPECIAL: Mapping[str, Row] = {
    **Special(number, numbers, cast_to).rows(),
    "AffineGrid": affine_grid,
    "RandomUniform": random(False),
    "RandomNormal": random(True),
    "RandomUniformLike": random_like(False),
    "RandomNormalLike": random_like(True),
    "Bernoulli": bernoulli,
    "Multinomial": multinomial,
}
