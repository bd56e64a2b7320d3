"""Keras rows of LSTM, GRU and RNN: the layer where it can express the node, else the steps written out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusile.backends.framework.code import Code, Name, Plain, Var, call, code, short_float
from fusile.backends.framework.common import Place, Row
from fusile.backends.framework.keras_layers import typed
from fusile.backends.framework.keras_rows import permute
from fusile.backends.framework.site import Site
from fusile.backends.framework.windows import activations, is_zero_state, plain_activations, recurrent_stem
from fusile.backends.framework.words import index

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (), "RNN": ()}
"""ONNX's gates (i o f c, z r h) in Keras' order (i f c o, z r h)."""
_LAYER = {"LSTM": "layers.LSTM", "GRU": "layers.GRU", "RNN": "layers.SimpleRNN"}


def recurrent(n: Site) -> Sequence[Code | None]:
    kind = n.node.op_type
    places = _recurrent_places(n, kind)
    if places is None:
        return recurrent_helper(n)
    both, backward = n.string("direction", "forward") == "bidirectional", n.string("direction") == "reverse"
    hidden, batch_first = n.fixed(2, 2), bool(n.integer("batch_first") or n.integer("layout"))
    settings: dict[str, Plain] = {"return_sequences": True, "return_state": True}
    settings |= {"activation": "relu"} if kind == "RNN" and activations(n)[:1] == ["relu"] else {}
    settings |= {} if n.has(3) else {"use_bias": False}
    settings |= {"reset_after": False} if kind == "GRU" and not n.integer("linear_before_reset") else {}
    settings |= {"go_backwards": True} if backward else {}
    made = call(_LAYER[kind], hidden, **settings, **typed(n.dtype(1)))
    made = call("layers.Bidirectional", made) if both else made
    layer = n.layer(recurrent_stem(n), made, places, (None, None, n.fixed(1, 2)))
    if layer is None:
        return recurrent_helper(n)
    x = n.tensor() if batch_first else permute(n.tensor(), (1, 0, 2))
    state = _state(n, kind, 2 if both else 1)
    given: dict[str, Plain] = {} if state is None else {"initial_state": state}
    y = Var("outputs")
    ends = [
        [Var(w) for w in (("hidden", "cell") if kind == "LSTM" else ("hidden",))]
        for _ in range(2 if both else 1)
    ]
    n.unpack(layer(x, **given), (y, *(v for pair in ends for v in pair)))
    out: Code = call("ops.flip", Name(y), axis=1) if backward else Name(y)
    first = bool(n.integer("layout"))
    if n.node.domain != "fusile":  # [batch, time, directions * hidden] -> ONNX's own form
        out = call("ops.reshape", out, (n.dim(0, 0 if first else 1), -1, len(ends), hidden))
        out = out if first else call("ops.transpose", out, (1, 2, 0, 3))
    finals = [_stacked([Name(pair[i]) for pair in ends], 1 if first else 0) for i in range(len(ends[0]))]
    return [out, *finals][: len(n.node.outputs)]


def _stacked(parts: list[Code], axis: int) -> Code:
    return (
        call("ops.expand_dims", parts[0], axis)
        if len(parts) == 1
        else call("ops.stack", list(parts), axis=axis)
    )


def _recurrent_places(n: Site, kind: str) -> dict[str, Place] | None:
    """Where the weights of a Keras layer lie, or None where that layer cannot express the node."""
    directions = 2 if n.string("direction", "forward") == "bidirectional" else 1
    acts, normal = activations(n), plain_activations(kind) * directions
    relu = kind == "RNN" and acts == ["relu"] * directions
    plain_form = (not acts or acts == normal or relu) and n.node.attributes.get("clip") is None
    if not plain_form or n.integer("input_forget") or n.has(4) or n.has(7):
        return None
    rows, gates = n.fixed(1, 1), _GATES[kind]
    out = {}
    for d in range(directions):
        path = ("forward_layer.cell.", "backward_layer.cell.")[d] if directions == 2 else "cell."
        out[f"{path}kernel"] = Place(n.value(1), part=(d,), gates=gates, axes=(1, 0))
        out[f"{path}recurrent_kernel"] = Place(n.value(2), part=(d,), gates=gates, axes=(1, 0))
        if n.has(3) and kind == "GRU" and n.integer("linear_before_reset"):
            out[f"{path}bias"] = Place(n.value(3), part=(d,), shape=(2, rows))
        elif n.has(3):
            out[f"{path}bias"] = Place(n.value(3), part=(d,), gates=gates, halves=True)
    return out


def _state(n: Site, kind: str, directions: int) -> Code | None:
    """The initial states as Keras takes them, where they are more than zeros."""
    wanted = (5, 6) if kind == "LSTM" else (5,)
    indices = [i for i in wanted if n.has(i)]
    if all(is_zero_state(n.printer, n.value(i)) for i in indices):
        return None
    states: list[Plain] = []
    axis = 1 if n.integer("layout") else 0
    for d in range(directions):
        for i in wanted:
            whole = n.tensor(i) if n.has(i) else call("ops.zeros_like", n.tensor(indices[0]))
            states.append(index(whole, {axis: d}, 3))
    return code(states)


def recurrent_helper(n: Site) -> Sequence[Code | None]:
    """A recurrence that no layer has: written out, one direction at a time."""
    kind, directions = n.node.op_type, n.fixed(2, 0)
    acts = activations(n) or plain_activations(kind) * directions
    if not set(acts) <= {"sigmoid", "tanh", "relu"}:
        n.refuse(f"activations {', '.join(acts)} in a recurrence")
    per = len(acts) // directions
    words = tuple(tuple(acts[d * per : (d + 1) * per]) for d in range(directions))
    held, layout = n.node.attributes.get("clip"), bool(n.integer("layout"))
    turned = layout or bool(n.integer("batch_first"))
    x = permute(n.tensor(), (1, 0, 2)) if turned else n.tensor()
    given: dict[str, Plain] = {"bias": n.tensor(3)} if n.has(3) else {}
    given |= {"lengths": n.tensor(4)} if n.has(4) else {}
    for i, word in ((5, "hidden"), (6, "cell")):
        if n.has(i) and (i == 5 or kind == "LSTM") and not is_zero_state(n.printer, n.value(i)):
            given[word] = permute(n.tensor(i), (1, 0, 2)) if layout else n.tensor(i)
    if kind == "LSTM":
        given |= {"peepholes": n.tensor(7)} if n.has(7) else {}
        given |= {"coupled": True} if n.integer("input_forget") else {}
    given |= {"reset_after": True} if kind == "GRU" and n.integer("linear_before_reset") else {}
    given |= {"clip": short_float(held.as_float())} if held is not None else {}
    call_ = n.helper(kind.lower())(
        x, n.tensor(1), n.tensor(2), words, n.string("direction", "forward"), **given
    )
    targets = [Var("outputs"), Var("hidden"), Var("cell")][: 3 if kind == "LSTM" else 2]
    n.unpack(call_, tuple(targets))
    y: Code = Name(targets[0])  # [time, directions, batch, hidden]
    if n.node.domain == "fusile":
        y = call("ops.transpose", y, (2, 0, 1, 3) if turned else (0, 2, 1, 3))
        sizes = (n.dim(0, 0), n.dim(0, 1), directions * n.fixed(2, 2))
        y = call("ops.reshape", y, sizes)
    elif layout:
        y = call("ops.transpose", y, (2, 0, 1, 3))
    ends = [permute(Name(t), (1, 0, 2)) if layout else Name(t) for t in targets[1:]]
    return [y, *ends][: len(n.node.outputs)]


RECURRENT: Mapping[str, Row] = {"LSTM": recurrent, "GRU": recurrent, "RNN": recurrent}
