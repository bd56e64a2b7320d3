"""Recurrent layers: the input contraction is an ordinary stage over all time, the scan holds the recurrent
part alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fusile.ir.expr import Expr, apply, cast, const, maximum, minimum, select
from fusile.ir.tensor import Tensor, compute, reduce_sum, scan
from fusile.ir.types import I64, DType
from fusile.kernels.families import activation
from fusile.kernels.families.elementwise import filled
from fusile.kernels.registry import Malformed, Unsupported, op

Activation = activation.Activation

_ACTIVATIONS: dict[str, tuple[int, Callable[..., Expr], tuple[float, ...]]] = {
    "relu": (0, activation.relu_of, ()),
    "tanh": (0, activation.tanh_of, ()),
    "sigmoid": (0, activation.sigmoid_of, ()),
    "softplus": (0, activation.softplus_of, ()),
    "softsign": (0, lambda v: v / (1 + apply("abs", v)), ()),
    "elu": (1, activation.elu_of, (1.0,)),
    "leakyrelu": (1, activation.leaky_of, (0.01,)),
    "thresholdedrelu": (1, lambda v, a: select(const(a, v.dtype) < v, v, const(0, v.dtype)), (1.0,)),
    "affine": (2, lambda v, a, b: v * a + b, (1.0, 0.0)),
    "scaledtanh": (2, lambda v, a, b: activation.tanh_of(v * b) * a, (1.0, 1.0)),
    "hardsigmoid": (2, activation.hard_sigmoid_of, (0.2, 0.5)),
}
"""Per activation: how many of alpha and beta it takes, its meaning, its defaults."""


def bound_activations(
    names: Sequence[str], alphas: Sequence[float], betas: Sequence[float], directions: int, each: int
) -> list[list[Activation]]:
    """The functions of every direction; alphas and betas are handed out in order to those that take them."""
    names = names[: directions * each]  # the defaults of the standard name those of both directions
    if len(names) != directions * each:
        raise Malformed(f"{len(names)} activations for {directions} directions of {each}")
    first, second = list(alphas), list(betas)
    found: list[Activation] = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise Unsupported(f"the activation {name!r}")
        takes, f, defaults = _ACTIVATIONS[name.lower()]
        given = [s.pop(0) if s else d for s, d in zip((first, second)[:takes], defaults, strict=True)]
        found.append(_bound(f, given))
    return [found[k * each : (k + 1) * each] for k in range(directions)]


def _bound(f: Callable[..., Expr], parameters: Sequence[float]) -> Activation:
    return lambda v: f(v, *parameters)


@dataclass(frozen=True, slots=True)
class Layer:
    """One direction of a layer, over tensors in the order [time, batch, …]."""

    x: Callable[[Expr, Expr, Expr], Expr]
    time: Expr
    batch: Expr
    width: Expr
    hidden: Expr
    w: Tensor
    r: Tensor
    b: Tensor | None
    lengths: Tensor | None
    direction: int
    reverse: bool
    functions: list[Activation]
    clip: float | None

    @property
    def kind(self) -> DType:
        """The type of the state."""
        return self.w.dtype

    def position(self, time: Expr, batch: Expr) -> Expr:
        """The time that step `time` works on; a reversed sequence starts at its own end."""
        if not self.reverse:
            return time
        if self.lengths is None:
            return self.time - 1 - time
        n = cast(self.lengths[batch], I64)
        return select(time < n, n - 1 - time, time)

    def projected(self, gates: int, biased: Callable[[Expr], Expr] | None) -> Tensor:
        """X W' over all time, plus a bias per gate row, as [time, batch, gates * hidden]."""
        rows = self.hidden * gates
        y = compute(
            (self.time, self.batch, rows),
            lambda t, n, j: reduce_sum(
                (self.width,), lambda k: self.x(t, n, k) * self.w[self.direction, j, k]
            ),
            name="projected",
        )
        return (
            y if biased is None else compute(y.shape, lambda t, n, j: y[t, n, j] + biased(j), name="biased")
        )

    def bias(self, j: Expr) -> Expr:
        """The input's bias of gate row j."""
        assert self.b is not None
        return self.b[self.direction, j]

    def recurrent_bias(self, j: Expr, gates: int) -> Expr:
        assert self.b is not None
        return self.b[self.direction, j + self.hidden * gates]

    def joined(self, given: Expr, back: Expr, row: Expr) -> Expr:
        """What the input and the state give a gate row together."""
        return given + back

    def clipped(self, v: Expr) -> Expr:
        return v if self.clip is None else minimum(maximum(v, -self.clip), self.clip)

    def recurrent(self, h: Tensor, rows: Expr, first: Expr | int = 0, name: str = "recurrent") -> Tensor:
        """h R' for `rows` rows of R from `first` on."""
        return compute(
            (self.batch, rows),
            lambda n, j: reduce_sum((self.hidden,), lambda k: h[n, k] * self.r[self.direction, j + first, k]),
            name=name,
        )

    def state(self, given: Tensor | None, layout: int) -> Tensor:
        """The initial state of this direction, zero where none is given."""
        if given is None:
            return filled((self.batch, self.hidden), 0, self.kind, "zero")
        d = const(self.direction)
        return compute(
            (self.batch, self.hidden), lambda n, j: given[(n, d, j) if layout else (d, n, j)], name="initial"
        )

    def held(self, time: Expr, new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
        """(next state, output) after a step: past its end, a sequence keeps its state and puts out 0."""
        if self.lengths is None:
            return new, new
        lengths = self.lengths
        live = compute((self.batch,), lambda n: time < cast(lengths[n], I64), name="live")
        state = compute(new.shape, lambda n, j: select(live[n], new[n, j], old[n, j]), name="held")
        return state, compute(
            new.shape, lambda n, j: select(live[n], new[n, j], const(0, new.dtype)), name="output"
        )


def layers_of(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    *,
    direction: str,
    layout: int,
    clip: float | None,
    functions: list[list[Activation]],
) -> list[Layer]:
    if x.rank != 3 or w.rank != 3 or r.rank != 3:
        raise Malformed("takes tensors of rank 3")
    time, batch = (x.shape[1], x.shape[0]) if layout else (x.shape[0], x.shape[1])

    def read(t: Expr, n: Expr, k: Expr) -> Expr:
        return x[(n, t, k) if layout else (t, n, k)]

    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    return [
        Layer(read, time, batch, x.shape[2], r.shape[2], w, r, b, lengths, k, back, functions[k], clip)
        for k, back in enumerate(ways)
    ]


def sequence_of(layers: Sequence[Layer], rows: Sequence[Tensor], layout: int) -> Tensor:
    """Y out of what the scans collected: [time, directions, batch, hidden], or with the batch first."""
    top = layers[0]

    def element(d: int, t: Expr, n: Expr, j: Expr) -> Expr:
        return rows[d][layers[d].position(t, n), n, j]

    def body(*i: Expr) -> Expr:
        t, d, n, j = (i[1], i[2], i[0], i[3]) if layout else i
        return (
            element(0, t, n, j)
            if len(layers) == 1
            else select(d < 1, element(0, t, n, j), element(1, t, n, j))
        )

    count = len(layers)
    shape = (top.batch, top.time, count, top.hidden) if layout else (top.time, count, top.batch, top.hidden)
    return compute(shape, body, name="sequence")


def last_of(layers: Sequence[Layer], finals: Sequence[Tensor], layout: int) -> Tensor:
    top = layers[0]

    def body(*i: Expr) -> Expr:
        d, n, j = (i[1], i[0], i[2]) if layout else i
        return finals[0][n, j] if len(finals) == 1 else select(d < 1, finals[0][n, j], finals[1][n, j])

    count = len(layers)
    shape = (top.batch, count, top.hidden) if layout else (count, top.batch, top.hidden)
    return compute(shape, body, name="last")


def direction_count(direction: str) -> int:
    if direction not in ("forward", "reverse", "bidirectional"):
        raise Malformed(f"the direction {direction!r}")
    return 2 if direction == "bidirectional" else 1


# ---- RNN ----


@op("RNN")
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    layout: int = 0,
) -> tuple[Tensor, ...]:
    count = direction_count(direction)
    functions = bound_activations(
        activations or ("Tanh",) * count, activation_alpha, activation_beta, count, 1
    )
    layers = layers_of(
        x, w, r, b, sequence_lens, direction=direction, layout=layout, clip=clip, functions=functions
    )
    done = [_rnn(layer, initial_h, layout) for layer in layers]
    return sequence_of(layers, [d[0] for d in done], layout), last_of(layers, [d[1] for d in done], layout)


def _rnn(layer: Layer, initial: Tensor | None, layout: int) -> tuple[Tensor, Tensor]:
    bias = None if layer.b is None else (lambda j: layer.bias(j) + layer.recurrent_bias(j, 1))
    given = layer.projected(1, bias)
    (f,) = layer.functions

    def step(time: Expr, h: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        back = layer.recurrent(h, layer.hidden)
        new = compute(
            h.shape,
            lambda n, j: f(layer.clipped(given[layer.position(time, n), n, j] + back[n, j])),
            name="hidden",
        )
        state, out = layer.held(time, new, h)
        return [state], [out]

    (rows,), (final,) = scan(layer.time, [layer.state(initial, layout)], step, name="rnn")
    return rows, final


# ---- GRU ----


@op("GRU")
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    count = direction_count(direction)
    functions = bound_activations(
        activations or ("Sigmoid", "Tanh") * count, activation_alpha, activation_beta, count, 2
    )
    layers = layers_of(
        x, w, r, b, sequence_lens, direction=direction, layout=layout, clip=clip, functions=functions
    )
    done = [_gru(layer, initial_h, layout, bool(linear_before_reset)) for layer in layers]
    return sequence_of(layers, [d[0] for d in done], layout), last_of(layers, [d[1] for d in done], layout)


def _gru(layer: Layer, initial: Tensor | None, layout: int, linear: bool) -> tuple[Tensor, Tensor]:
    """Gates in the order update, reset, hidden.

    The recurrent bias of the hidden gate stays apart where the reset applies to it.
    """
    hidden = layer.hidden
    f, g = layer.functions

    def bias(j: Expr) -> Expr:
        both = layer.bias(j) + layer.recurrent_bias(j, 3)
        return select(j < hidden * 2, both, layer.bias(j)) if linear else both

    given = layer.projected(3, None if layer.b is None else bias)

    def step(time: Expr, h: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        def x(n: Expr, j: Expr, gate: int) -> Expr:
            return given[layer.position(time, n), n, j + hidden * gate]

        back = layer.recurrent(h, hidden * 3 if linear else hidden * 2)
        update = compute(h.shape, lambda n, j: f(layer.clipped(x(n, j, 0) + back[n, j])), name="update")
        reset = compute(
            h.shape, lambda n, j: f(layer.clipped(x(n, j, 1) + back[n, j + hidden])), name="reset"
        )
        if linear:

            def candidate(n: Expr, j: Expr) -> Expr:
                own = back[n, j + hidden * 2]
                if layer.b is not None:
                    own = own + layer.recurrent_bias(j + hidden * 2, 3)
                return x(n, j, 2) + reset[n, j] * own

        else:
            kept = compute(h.shape, lambda n, j: reset[n, j] * h[n, j], name="kept")
            inner = layer.recurrent(kept, hidden, hidden * 2, "candidate")

            def candidate(n: Expr, j: Expr) -> Expr:
                return x(n, j, 2) + inner[n, j]

        new = compute(
            h.shape,
            lambda n, j: (1 - update[n, j]) * g(layer.clipped(candidate(n, j))) + update[n, j] * h[n, j],
            name="hidden",
        )
        state, out = layer.held(time, new, h)
        return [state], [out]

    (rows,), (final,) = scan(layer.time, [layer.state(initial, layout)], step, name="gru")
    return rows, final


# ---- LSTM ----


@op("LSTM")
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    count = direction_count(direction)
    functions = bound_activations(
        activations or ("Sigmoid", "Tanh", "Tanh") * count, activation_alpha, activation_beta, count, 3
    )
    layers = layers_of(
        x, w, r, b, sequence_lens, direction=direction, layout=layout, clip=clip, functions=functions
    )
    done = [lstm_of(layer, initial_h, initial_c, p, layout, bool(input_forget)) for layer in layers]
    finals = [last_of(layers, [d[k] for d in done], layout) for k in (1, 2)]
    return sequence_of(layers, [d[0] for d in done], layout), *finals


def lstm_of(
    layer: Layer,
    initial_h: Tensor | None,
    initial_c: Tensor | None,
    peepholes: Tensor | None,
    layout: int,
    coupled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gates in the order input, output, forget, cell."""
    hidden = layer.hidden
    f, g, h_of = layer.functions
    bias = None if layer.b is None else (lambda j: layer.bias(j) + layer.recurrent_bias(j, 4))
    given = layer.projected(4, bias)

    def peep(k: int, c: Expr, j: Expr) -> Expr | None:
        return None if peepholes is None else peepholes[layer.direction, j + hidden * k] * c

    def step(time: Expr, h: Tensor, c: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        back = layer.recurrent(h, hidden * 4)

        def gate(n: Expr, j: Expr, k: int, seen: Expr | None) -> Expr:
            row = j + hidden * k
            v = layer.joined(given[layer.position(time, n), n, row], back[n, row], row)
            return layer.clipped(v if seen is None else v + seen)

        def cell(n: Expr, j: Expr) -> Expr:
            take = f(gate(n, j, 0, peep(0, c[n, j], j)))
            keep = 1 - take if coupled else f(gate(n, j, 2, peep(2, c[n, j], j)))
            return keep * c[n, j] + take * g(gate(n, j, 3, None))

        new_c = compute(c.shape, cell, name="cell")
        new_h = compute(
            h.shape,
            lambda n, j: f(gate(n, j, 1, peep(1, new_c[n, j], j))) * h_of(new_c[n, j]),
            name="hidden",
        )
        state, out = layer.held(time, new_h, h)
        return [state, layer.held(time, new_c, c)[0]], [out]

    start = [layer.state(initial_h, layout), layer.state(initial_c, layout)]
    (rows,), (final_h, final_c) = scan(layer.time, start, step, name="lstm")
    return rows, final_h, final_c
