"""Find the first node whose value differs: interior values are made outputs in both engines and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusile.errors import show_name, show_word
from fusile.report import Progress
from fusile.runtime.module import Value, element_of
from fusile.tools.agreement import Difference, Tolerance, compare
from fusile.tools.engines import Run, reference_run, reference_session, session_port
from fusile.tools.sources import serialised

if TYPE_CHECKING:
    import onnx

_AT_ONCE = 256
_PROBES = 16

Build = Callable[[bytes], Run]


@dataclass(frozen=True, slots=True)
class NodeDifference:
    """The first node that answers differently: its inputs agree, one of its outputs does not.

    `alone` is False where the difference shows only while interior values are *not* stored, so that the
    way in which operators were put together is at fault and not one operator.
    """

    node: str
    op_type: str
    domain: str
    value: Difference
    alone: bool = True
    note: str = ""

    def __str__(self) -> str:
        operator = f"{self.domain}::{self.op_type}" if self.domain else self.op_type
        place = f"node {show_name(self.node)} ({show_word(operator)}), value {show_name(self.value.name)}"
        text = f"first difference at {place}"
        return f"{text}: {self.note}" if self.note else text

    def to_json(self) -> dict[str, Any]:
        return {
            "node": self.node,
            "op_type": self.op_type,
            "domain": self.domain,
            "value": self.value.to_json(),
            "alone": self.alone,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class _Place:
    """An interior value and the node that makes it."""

    value: str
    node: onnx.NodeProto


def locate(
    model: onnx.ModelProto,
    wrong_output: str,
    feeds: Mapping[str, Value],
    build: Build,
    tolerance: Tolerance,
    progress: Progress,
) -> NodeDifference | None:
    """The first node that differs among those that the wrong output depends on; None where none is found.

    `build` makes a Run of the engine under test from a model's bytes. The values are first all stored,
    a few hundred at a time. Storing a value also ends fusion there, so where nothing differs then, single
    values are stored, found by halving.
    """
    search = _Search(model, feeds, build, tolerance)
    places = list(_ancestors(model, wrong_output))
    for start in range(0, len(places), _AT_ONCE):
        progress("looking for the first node that differs", start, len(places))
        found = search.first_wrong(places[start : start + _AT_ONCE])
        if found is not None:
            return _told(*found, alone=True)
    low, high, best = 0, len(places), None
    for probe in range(_PROBES):
        if low >= high:
            break
        progress("looking for the first fused group that differs", probe, _PROBES)
        middle = (low + high) // 2
        found = search.first_wrong(places[middle : middle + 1])
        if found is None:
            low = middle + 1
        else:
            best, high = found, middle
    return None if best is None else _told(*best, alone=False)


@dataclass(frozen=True, slots=True)
class _Search:
    """A model under search, with the inputs on which it answers wrongly."""

    model: onnx.ModelProto
    feeds: Mapping[str, Value]
    build: Build
    tolerance: Tolerance

    def first_wrong(self, places: Sequence[_Place]) -> tuple[_Place, Difference] | None:
        """The first of some values that differs while all of them are stored."""
        extended, want = _exposed(self.model, [place.value for place in places], self.feeds)
        run = self.build(serialised(extended))
        got = dict(zip([output.name for output in extended.graph.output], run(self.feeds)))
        for place in places:
            if place.value not in want:
                continue
            difference = compare(place.value, got.get(place.value), want[place.value], self.tolerance)
            if not difference.ok:
                return place, difference
        return None


def _told(place: _Place, difference: Difference, alone: bool) -> NodeDifference:
    note = ""
    if not alone:
        note = (
            "with every interior value stored the answers agree, so the fusion around this node is at fault; "
            "-O1 compiles without it"
        )
    elif any(attribute.HasField("g") for attribute in place.node.attribute):
        note = "the node has a body of its own, whose interior was not searched"
    return NodeDifference(
        place.node.name or place.value, place.node.op_type, place.node.domain, difference, alone, note
    )


def _exposed(
    model: onnx.ModelProto, values: Sequence[str], feeds: Mapping[str, Value]
) -> tuple[onnx.ModelProto, dict[str, Value]]:
    """The model with interior values as further outputs, typed as the reference types them, and its answers.

    Values that are no tensors stay inside.
    """
    import onnx

    outputs = {output.name for output in model.graph.output}
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values if value not in outputs)
    session = reference_session(serialised(extended))
    described = session.get_outputs()
    want = dict(zip([output.name for output in described], reference_run(session)(feeds)))
    del extended.graph.output[len(outputs) :]
    for port in map(session_port, described[len(outputs) :]):
        code = element_of(port.type)
        if code is None:
            del want[port.name]
            continue
        known = port.shape is not None and len(port.shape) == want[port.name].ndim
        shape = port.shape if known else None
        extended.graph.output.append(onnx.helper.make_tensor_value_info(port.name, code, shape))
    return extended, want


def _ancestors(model: onnx.ModelProto, output: str) -> Iterator[_Place]:
    """The values that an output depends on and the output itself, producers before users."""
    producer = {value: node for node in model.graph.node for value in node.output if value}
    opened: set[int] = set()
    stack: list[tuple[str, bool]] = [(output, False)]
    while stack:
        value, finished = stack.pop()
        node = producer.get(value)
        if node is None:
            continue
        if finished:
            yield from (_Place(made, node) for made in node.output if made)
        elif id(node) not in opened:
            opened.add(id(node))
            stack.append((value, True))
            stack.extend((name, False) for name in reversed(_reads(node)))


def _reads(node: onnx.NodeProto) -> list[str]:
    """The values that a node reads, those that its bodies read included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for graph in graphs:
            for inner in graph.node:
                names.extend(_reads(inner))
    return names
