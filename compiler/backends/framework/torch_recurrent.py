"""PyTorch rows of LSTM, GRU and RNN: the layer where it can express the node, else the steps written out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusile.backends.framework.code import Code, Name, Plain, Var, call, code, short_float
from fusile.backends.framework.common import Place, Row
from fusile.backends.framework.site import Site
from fusile.backends.framework.torch_layers import typed
from fusile.backends.framework.torch_moves import permute
from fusile.backends.framework.windows import (
    activations,
    is_zero_state,
    plain_activations,
    recurrent_stem,
)

_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""ONNX's gates (i o f c, z r h) in PyTorch's order (i f g o, r z n)."""


def recurrent(n: Site) -> Sequence[Code | None]:
    kind = n.node.op_type
    places = _recurrent_places(n, kind)
    if places is None:
        return recurrent_helper(n)
    both, backward = n.string("direction", "forward") == "bidirectional", n.string("direction") == "reverse"
    hidden, first = n.fixed(2, 2), bool(n.integer("layout"))
    settings: dict[str, Plain] = {"bidirectional": True} if both else {}
    if kind == "RNN" and activations(n)[:1] == ["relu"]:
        settings["nonlinearity"] = "relu"
    settings |= {} if n.has(3) else {"bias": False}
    settings |= {"batch_first": True} if first else {}
    made = call(f"nn.{kind}", n.fixed(1, 2), hidden, **settings, **typed(n.dtype(1)))
    layer = n.layer(recurrent_stem(n), made, places)
    if layer is None:
        return recurrent_helper(n)
    x = n.tensor().method("flip", 1 if first else 0) if backward else n.tensor()
    state = _state(n, kind, first)
    y, h, c = Var("outputs"), Var("hidden"), Var("cell")
    n.unpack(layer(x, *([state] if state is not None else [])), (y, (h, c) if kind == "LSTM" else h))
    out: Code = Name(y).method("flip", 1 if first else 0) if backward else Name(y)
    if n.node.domain != "fusile":
        out = out.method("unflatten", -1, (2, hidden)) if both else out.method("unsqueeze", 2)
        out = out if first else out.method("transpose", 1, 2)
    ends = [permute(Name(v), (1, 0, 2)) if first else Name(v) for v in (h, c)]
    return [out, ends[0], ends[1] if kind == "LSTM" else None][: len(n.node.outputs)]


def _recurrent_places(n: Site, kind: str) -> dict[str, Place] | None:
    """Where the weights of `nn.LSTM` and its like lie, or None where that layer cannot express the node."""
    directions = 2 if n.string("direction", "forward") == "bidirectional" else 1
    acts, normal = activations(n), plain_activations(kind) * directions
    relu = kind == "RNN" and acts == ["relu"] * directions
    plain_form = (not acts or acts == normal or relu) and n.node.attributes.get("clip") is None
    plain_form &= not n.integer("input_forget") and not n.has(4) and not n.has(7)
    plain_form &= kind != "GRU" or bool(n.integer("linear_before_reset"))
    if not plain_form:
        return None
    gates, rows = _GATES[kind], n.fixed(1, 1)
    order = gates if len(gates) > 1 else ()
    out = {}
    for d in range(directions):
        end = "_l0_reverse" if d else "_l0"
        out[f"weight_ih{end}"] = Place(n.value(1), part=(d,), gates=order)
        out[f"weight_hh{end}"] = Place(n.value(2), part=(d,), gates=order)
        if n.has(3):
            out[f"bias_ih{end}"] = Place(n.value(3), part=(d, (0, rows)), gates=order)
            out[f"bias_hh{end}"] = Place(n.value(3), part=(d, (rows, 2 * rows)), gates=order)
    return out


def _state(n: Site, kind: str, first: bool) -> Code | None:
    """The initial state, where it is more than zeros."""
    indices = [i for i in ((5, 6) if kind == "LSTM" else (5,)) if n.has(i)]
    if all(is_zero_state(n.printer, n.value(i)) for i in indices):
        return None
    states = []
    for i in (5, 6) if kind == "LSTM" else (5,):
        state = n.tensor(i) if n.has(i) else call("torch.zeros_like", n.tensor(indices[0]))
        states.append(permute(state, (1, 0, 2)) if first else state)
    return code(tuple(states)) if kind == "LSTM" else states[0]


def recurrent_helper(n: Site) -> Sequence[Code | None]:
    """A recurrence that no layer has: written out, one direction at a time."""
    kind, directions = n.node.op_type, n.fixed(2, 0)
    acts = activations(n) or plain_activations(kind) * directions
    if not set(acts) <= {"sigmoid", "tanh", "relu"}:
        n.refuse(f"activations {', '.join(acts)} in a recurrence")
    per = len(acts) // directions
    nested = tuple(tuple(acts[d * per : (d + 1) * per]) for d in range(directions))
    held = n.node.attributes.get("clip")
    x = permute(n.tensor(), (1, 0, 2)) if n.integer("layout") else n.tensor()
    given: dict[str, Plain] = {"bias": n.tensor(3)} if n.has(3) else {}
    given |= {"lengths": n.tensor(4)} if n.has(4) else {}
    for index, word in ((5, "hidden"), (6, "cell")):
        if n.has(index) and (index == 5 or kind == "LSTM") and not is_zero_state(n.printer, n.value(index)):
            given[word] = permute(n.tensor(index), (1, 0, 2)) if n.integer("layout") else n.tensor(index)
    if kind == "LSTM":
        given |= {"peepholes": n.tensor(7)} if n.has(7) else {}
        given |= {"coupled": True} if n.integer("input_forget") else {}
    given |= {"reset_after": True} if kind == "GRU" and n.integer("linear_before_reset") else {}
    given |= {"clip": short_float(held.as_float())} if held is not None else {}
    direction = n.string("direction", "forward")
    call_ = n.helper(kind.lower())(x, n.tensor(1), n.tensor(2), nested, direction, **given)
    targets = [Var("outputs"), Var("hidden"), Var("cell")][: 3 if kind == "LSTM" else 2]
    n.unpack(call_, tuple(targets))
    y: Code = Name(targets[0])
    if n.node.domain == "fusile":
        y = y.method("transpose", 1, 2).method("flatten", 2)
    elif n.integer("layout"):
        y = y.method("permute", 2, 0, 1, 3)
    ends = [permute(Name(t), (1, 0, 2)) if n.integer("layout") else Name(t) for t in targets[1:]]
    return [y, *ends][: len(n.node.outputs)]


RECURRENT: Mapping[str, Row] = {"LSTM": recurrent, "GRU": recurrent, "RNN": recurrent}
