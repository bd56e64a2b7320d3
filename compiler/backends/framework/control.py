"""Rows for graphs inside nodes, sequences and optionals: they are the same in both frameworks.

A graph inside a node becomes a method of the module: its inputs, then the values around the node that it
reads, are the arguments. If is a choice between two calls, Loop and Scan are helpers that call the method
again and again. A sequence is a list, an absent optional None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from fusile.backends.framework.code import Code, Name, Plain, Ternary, Var, call, code
from fusile.backends.framework.common import Row
from fusile.backends.framework.grams import count_grams
from fusile.backends.framework.naming import snake
from fusile.backends.framework.shapes import TAKEN
from fusile.backends.framework.site import Site


def _graph(n: Site, attribute: str) -> ir.Graph:
    return n.node.attributes[attribute].as_graph()


def _unpacked(n: Site, value: Code, count: int) -> list[Code]:
    targets = tuple(Var(snake(n.node.op_type)) for _ in range(count))
    n.unpack(value, targets)
    return [Name(t) for t in targets]


def _scalar(n: Site, i: int) -> Code | None:
    """An input as a number of Python; None where it is absent."""
    if not n.has(i):
        return None
    array = n.host(i)
    if array is not None:
        return n.printer.size(array.flat[0])
    single = n.has_rank(i) and n.rank(i) == 1
    return call("int", n.tensor(i)[0] if single else n.tensor(i))


# ---- graphs ------------------------------------------------------------------------------------------


def if_(n: Site) -> Sequence[Code | None]:
    known, taken = n.scalar(0), n.node.meta.get(TAKEN)
    if known is not None:
        taken = "then_branch" if known else "else_branch"
    if taken is not None:
        return n.printer.inlined(_graph(n, taken))
    calls = []
    for attribute in ("then_branch", "else_branch"):
        method = n.printer.method(_graph(n, attribute), attribute, single=len(n.node.outputs) == 1)
        calls.append(method.function(*method.given))
    chosen = Ternary(n.tensor(0), *calls)
    return [chosen] if len(n.node.outputs) == 1 else _unpacked(n, chosen, len(n.node.outputs))


def _empty(n: Site, first: int, axes: Sequence[int] = ()) -> Code:
    """What a loop without steps stacks: tensors of no rows."""
    out: list[Plain] = []
    words = n.printer.framework.words()
    from fusile.ir.types import BY_CODE

    for k, value in enumerate(n.node.outputs[first:]):
        if value.shape is None or value.dtype is None or not isinstance(value.type, ir.TensorType):
            return code(())
        at = (axes[k] if axes else 0) % len(value.shape)
        sizes = [d if isinstance(d, int) and a != at else 0 for a, d in enumerate(value.shape)]
        t = BY_CODE[int(value.dtype)]
        made = words.full(tuple(code(s) for s in sizes), code(0), words.held(t), None)
        out.append(words.from_held(made, t))
    return code(tuple(out))


def loop(n: Site) -> Sequence[Code | None]:
    states = len(n.node.inputs) - 2
    method = n.printer.method(_graph(n, "body"), "loop_body")
    count = _scalar(n, 0)
    keep_on: Plain = n.tensor(1) if n.has(1) and n.scalar(1) is None else n.scalar(1) != 0
    initial = tuple(n.tensor(i) for i in range(2, 2 + states))
    extra: list[Plain] = [_empty(n, states)] if len(n.node.outputs) > states else []
    made = n.helper("loop")(method.function, count, keep_on, initial, method.given, *extra)
    return _unpacked(n, made, len(n.node.outputs))


def scan(n: Site) -> Sequence[Code | None]:
    scanned = n.integer("num_scan_inputs")
    states = len(n.node.inputs) - scanned
    stacked = len(n.node.outputs) - states
    method = n.printer.method(_graph(n, "body"), "scan_body")
    initial = tuple(n.tensor(i) for i in range(states))
    sources = tuple(n.tensor(i) for i in range(states, len(n.node.inputs)))
    words: dict[str, Plain] = {}
    for word, attribute in (
        ("axes", "scan_input_axes"),
        ("backward", "scan_input_directions"),
        ("to_axes", "scan_output_axes"),
        ("to_backward", "scan_output_directions"),
    ):
        found = n.integers(attribute)
        if any(found):
            words[word] = tuple(found)
    if stacked:
        words["empty"] = _empty(n, states, n.integers("scan_output_axes"))
    made = n.helper("scan_graph")(method.function, initial, sources, method.given, **words)
    return _unpacked(n, made, len(n.node.outputs))


# ---- sequences and optionals -------------------------------------------------------------------------


def sequence_at(n: Site) -> Code:
    at = _scalar(n, 1)
    assert at is not None
    return n.tensor(0)[at]


def sequence_insert(n: Site) -> Code:
    at = _scalar(n, 2)
    return n.helper("sequence_insert")(n.tensor(0), n.tensor(1), *([] if at is None else [at]))


def sequence_erase(n: Site) -> Code:
    at = _scalar(n, 1)
    return n.helper("sequence_erase")(n.tensor(0), *([] if at is None else [at]))


def split_to_sequence(n: Site) -> Code:
    axis, keep = n.integer("axis"), bool(n.integer("keepdims", 1))
    given: Plain = 1
    if n.has(1):
        sizes = n.sizes(1)
        array = n.host(1)
        if array is None or sizes is None:
            given = n.tensor(1)
        elif array.elements.ndim == 0:
            given = n.size(sizes[0])
        else:
            given = [n.size(s) for s in sizes]
    extra: list[Plain] = [] if keep or n.has(1) else [False]
    return n.helper("split_to_sequence")(n.tensor(0), given, axis, *extra)


def concat_from_sequence(n: Site) -> Code:
    new = bool(n.integer("new_axis"))
    return n.helper("concat_from_sequence")(n.tensor(0), n.integer("axis"), new)


def optional(n: Site) -> Code:
    return n.tensor(0) if n.has(0) else code(None)


def has_element(n: Site) -> Code:
    return n.helper("has_element")(n.tensor(0) if n.has(0) else None)


CONTROL: Mapping[str, Row] = {
    "If": if_,
    "Loop": loop,
    "Scan": scan,
    "SequenceEmpty": lambda n: code([]),
    "SequenceConstruct": lambda n: code([n.tensor(i) for i in range(len(n.node.inputs))]),
    "SequenceAt": sequence_at,
    "SequenceInsert": sequence_insert,
    "SequenceErase": sequence_erase,
    "SequenceLength": lambda n: n.helper("sequence_length")(n.tensor(0)),
    "SplitToSequence": split_to_sequence,
    "ConcatFromSequence": concat_from_sequence,
    "Optional": optional,
    "OptionalHasElement": has_element,
    "TfIdfVectorizer": count_grams,
    "OptionalGetElement": lambda n: n.tensor(0),
}
