"""PyTorch rows of operators for which it has words of its own: spectra, choices among elements, chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from fusile.backends.framework.code import Code, Name, Plain, Var, call
from fusile.backends.framework.common import Row
from fusile.backends.framework.site import Site
from fusile.backends.framework.special import Special
from fusile.backends.framework.torch_moves import device, run_list
from fusile.backends.framework.torch_rows import cast_to, dtype, top_k


def number(n: Site, i: int) -> Code:
    """An input as a number of Python."""
    array = n.host(i)
    return n.number(array) if array is not None else n.tensor(i).method("item")


def numbers(n: Site, i: int) -> Plain:
    """An input as a list of numbers of Python."""
    sizes = n.sizes(i)
    return run_list(n, i) if sizes is None else [n.size(s) for s in sizes]


def affine_grid(n: Site) -> Code:
    corners = bool(n.integer("align_corners"))
    return call("F.affine_grid", n.tensor(0), numbers(n, 1), align_corners=corners)


def top_k_any(n: Site) -> Code | Sequence[Code | None]:
    if n.dtype() is not ir.DataType.UINT64:
        return top_k(n)
    targets = (Var("values"), Var("indices"))
    made = n.helper("top_unsigned")(n.tensor(0), number(n, 1), n.axis(), bool(n.integer("largest", 1)))
    n.unpack(made, targets)
    return [Name(t) for t in targets]


# ---- chance ------------------------------------------------------------------------------------------


def _seeded(n: Site) -> dict[str, Plain]:
    if "seed" not in n.node.attributes:
        return {}
    return {"generator": n.helper("seeded")(n.real("seed"))}


def _drawn(n: Site, function: str, shape: Plain, kind: ir.DataType) -> Code:
    wide = ir.DataType.FLOAT if kind.bitwidth < 32 else kind
    made = call(function, shape, dtype=dtype(wide), **_seeded(n), **device(n.printer))
    if function == "torch.rand":
        low, high = n.real("low", 0.0), n.real("high", 1.0)
        made = made if high - low == 1.0 else made * (high - low)
        made = made if low == 0.0 else made + low
    else:
        scale, mean = n.real("scale", 1.0), n.real("mean", 0.0)
        made = made if scale == 1.0 else made * scale
        made = made if mean == 0.0 else made + mean
    return made if wide is kind else cast_to(made, kind)


def random(function: str) -> Row:
    def row(n: Site) -> Code:
        kind = ir.DataType(n.integer("dtype", 1))
        return _drawn(n, function, tuple(n.integers("shape")), kind)

    return row


def random_like(function: str) -> Row:
    def row(n: Site) -> Code:
        kind = ir.DataType(n.integer("dtype") or int(n.dtype()))
        return _drawn(n, function, n.tensor(0).attribute("shape"), kind)

    return row


def bernoulli(n: Site) -> Code:
    kind = ir.DataType(n.integer("dtype") or int(n.dtype()))
    made = call("torch.bernoulli", n.tensor(0), **_seeded(n))
    return made if kind is n.dtype() else cast_to(made, kind)


def multinomial(n: Site) -> Code:
    chances = n.tensor(0).method("softmax", -1)
    extra: dict[str, Plain] = {"replacement": True, **_seeded(n)}
    made = call("torch.multinomial", chances, n.integer("sample_size", 1), **extra)
    kind = ir.DataType(n.integer("dtype", 6))
    return made if kind is ir.DataType.INT64 else cast_to(made, kind)


SPECIAL: Mapping[str, Row] = {
    **Special(number, numbers, cast_to).rows(),
    "AffineGrid": affine_grid,
    "TopK": top_k_any,
    "RandomUniform": random("torch.rand"),
    "RandomNormal": random("torch.randn"),
    "RandomUniformLike": random_like("torch.rand"),
    "RandomNormalLike": random_like("torch.randn"),
    "Bernoulli": bernoulli,
    "Multinomial": multinomial,
}
