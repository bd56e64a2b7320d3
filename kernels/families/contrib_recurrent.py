"""ONNX Runtime's LSTM with weights of 8 bits: its inputs are quantised over their own range as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fusile.ir.expr import Expr, cast, const, select
from fusile.ir.tensor import Tensor, compute, reduce_sum
from fusile.ir.types import F32, I32, I64, DType
from fusile.kernels.families.contrib_qlinear import MICROSOFT
from fusile.kernels.families.quantised import dynamic_quantize_linear
from fusile.kernels.families.recurrent import (
    Layer,
    bound_activations,
    direction_count,
    last_of,
    layers_of,
    lstm_of,
    sequence_of,
)
from fusile.kernels.families.reduction import reduced
from fusile.kernels.registry import op


@dataclass(frozen=True, slots=True)
class QuantisedLayer(Layer):
    """A direction whose weights are bytes [directions, in, 4 * hidden] with a scale and a zero point for all
    or per column.
    """

    sequence: Tensor
    w_scale: Tensor
    w_zero: Tensor
    r_scale: Tensor
    r_zero: Tensor

    @property
    def kind(self) -> DType:
        return F32

    def _entry(self, t: Tensor, j: Expr) -> Expr:
        d = const(self.direction)
        return t[d] if t.rank == 1 else t[d, j]

    def _product(
        self, left: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, depth: Expr, name: str
    ) -> Tensor:
        """left times the weight: an exact sum of bytes, then one factor."""
        low, step, point = dynamic_quantize_linear(left)
        columns = weight.shape[2]
        a = compute(low.shape, lambda *i: cast(low[i], I32) - cast(point[()], I32), name="bytes")
        b = compute(
            weight.shape,
            lambda d, k, j: cast(weight[d, k, j], I32) - cast(self._entry(zero, j), I32),
            name="centred",
        )
        total = compute(
            (*left.shape[:-1], columns),
            lambda *i: reduce_sum((depth,), lambda k: a[(*i[:-1], k)] * b[self.direction, k, i[-1]]),
            name="product",
        )
        return compute(
            total.shape,
            lambda *i: cast(total[i], F32) * (step[()] * self._entry(scale, i[-1])),
            name=name,
        )

    def projected(self, gates: int, biased: Callable[[Expr], Expr] | None) -> Tensor:
        """Without the bias: a quantised state is so sensitive that sums are taken in ONNX Runtime's order."""
        return self._product(self.sequence, self.w, self.w_scale, self.w_zero, self.width, "projected")

    def joined(self, given: Expr, back: Expr, row: Expr) -> Expr:
        if self.b is None:
            return given + back
        return (given + back) + (self.bias(row) + self.recurrent_bias(row, 4))

    def recurrent(self, h: Tensor, rows: Expr, first: Expr | int = 0, name: str = "recurrent") -> Tensor:
        return self._product(h, self.r, self.r_scale, self.r_zero, self.hidden, name)


def _within(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x with zeros past the end of the longest sequence: what stands there has no part in its range."""
    if lengths is None:
        return x
    longest = reduced(lengths, [0], "max", keep=False, name="longest")
    return compute(
        x.shape,
        lambda t, n, k: select(t < cast(longest[()], I64), x[t, n, k], const(0, x.dtype)),
        name="within",
    )


@op("DynamicQuantizeLSTM", MICROSOFT)
def dynamic_quantize_lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    sequence_lens: Tensor | None,
    initial_h: Tensor | None,
    initial_c: Tensor | None,
    p: Tensor | None,
    w_scale: Tensor,
    w_zero: Tensor,
    r_scale: Tensor,
    r_zero: Tensor,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    input_forget: int = 0,
) -> tuple[Tensor, ...]:
    """The state of all sequences is quantised together at every step."""
    count = direction_count(direction)
    names = activations or ("Sigmoid", "Tanh", "Tanh") * count
    functions = bound_activations(names, activation_alpha, activation_beta, count, 3)
    plain = layers_of(
        x, w, r, b, sequence_lens, direction=direction, layout=0, clip=clip, functions=functions
    )
    sequence = _within(x, sequence_lens)
    layers = [_quantised(layer, r, sequence, (w_scale, w_zero, r_scale, r_zero)) for layer in plain]
    done = [lstm_of(layer, initial_h, initial_c, p, 0, bool(input_forget)) for layer in layers]
    finals = [last_of(layers, [d[k] for d in done], 0) for k in (1, 2)]
    return sequence_of(layers, [d[0] for d in done], 0), *finals


def _quantised(layer: Layer, r: Tensor, sequence: Tensor, parameters: Sequence[Tensor]) -> QuantisedLayer:
    given: dict[str, Any] = {f.name: getattr(layer, f.name) for f in fields(Layer)}
    given |= zip(("w_scale", "w_zero", "r_scale", "r_zero"), parameters, strict=True)
    return QuantisedLayer(**given | {"hidden": r.shape[1], "sequence": sequence})
