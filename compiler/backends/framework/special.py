"""Rows that both frameworks have, each by a helper of one name: spectra, choices among elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fusile.backends.framework.code import Code, Name, Plain, Var
from fusile.backends.framework.common import Row
from fusile.backends.framework.site import Site


@dataclass(frozen=True, slots=True)
class Special:
    """The rows, over what a framework calls its own way: an input as a number of Python, an input as a list
    of them, a cast.
    """

    number: Callable[[Site, int], Code]
    numbers: Callable[[Site, int], Plain]
    cast_to: Callable[[Code, ir.DataType], Code]

    def rows(self) -> Mapping[str, Row]:
        return {
            "DFT": self.dft,
            "Col2Im": self.col2im,
            "CumProd": self.cumulative_product,
            "MelWeightMatrix": self.mel_weights,
            "NonMaxSuppression": self.non_max_suppression,
            "Unique": self.unique,
            "Dropout": self.dropout,
        }

    def dft(self, n: Site) -> Code:
        length = self.number(n, 1) if n.has(1) else None
        axis = self.number(n, 2) if n.has(2) else -2
        inverse, half = bool(n.integer("inverse")), bool(n.integer("onesided"))
        return n.helper("dft")(n.tensor(0), length, axis, inverse, half)

    def col2im(self, n: Site) -> Code:
        shape = n.value(1).shape
        dims = n.rank(0) if shape is None or not isinstance(shape[0], int) else shape[0]
        ones = [1] * dims
        return n.helper("col2im")(
            n.tensor(0),
            self.numbers(n, 1),
            self.numbers(n, 2),
            tuple(n.integers("strides", ones) or ones),
            tuple(n.integers("dilations", ones) or ones),
            tuple(n.integers("pads", [0] * 2 * dims) or [0] * 2 * dims),
        )

    def cumulative_product(self, n: Site) -> Code:
        exclusive, backward = bool(n.integer("exclusive")), bool(n.integer("reverse"))
        return n.helper("cumulative_product")(n.tensor(0), self.number(n, 1), exclusive, backward)

    def mel_weights(self, n: Site) -> Code:
        made = n.helper("mel_weights")(*(self.number(n, i) for i in range(5)))
        return self.cast_to(made, ir.DataType(n.integer("output_datatype", 1)))

    def non_max_suppression(self, n: Site) -> Code:
        most = self.number(n, 2) if n.has(2) else 0
        overlap = self.number(n, 3) if n.has(3) else 0.0
        words: dict[str, Plain] = {"least": self.number(n, 4)} if n.has(4) else {}
        if n.integer("center_point_box"):
            words["centred"] = True
        return n.helper("non_max_suppression")(n.tensor(0), n.tensor(1), most, overlap, **words)

    def unique(self, n: Site) -> Sequence[Code | None]:
        held = n.node.attributes.get("axis")
        axis = None if held is None else held.as_int()
        if axis is not None and axis < 0:
            axis = n.axis(of=0)
        targets = tuple(Var(word) for word in ("values", "first", "inverse", "counts"))
        n.unpack(n.helper("unique")(n.tensor(0), axis, bool(n.integer("sorted", 1))), targets)
        return [Name(t) for t in targets]

    def dropout(self, n: Site) -> Sequence[Code | None]:
        """Only reached where the file asks for dropout while it runs, or for its mask."""
        ratio: Plain = self.number(n, 1) if n.has(1) else 0.5
        training: Plain = self.number(n, 2) if n.has(2) else False
        targets = (Var("x"), Var("kept"))
        n.unpack(n.helper("dropout")(n.tensor(0), ratio, training), targets)
        return [Name(t) for t in targets]
