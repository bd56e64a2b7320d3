"""Control flow. A graph that a node holds comes as a Body: a function from its inputs to its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from fusile.kernels.host.registry import Refused, host_op
from fusile.kernels.host.sequences import axis_of, number

Array = np.ndarray[Any, np.dtype[Any]]


class Body(Protocol):
    """A graph inside a node, with the values that it reads from around the node put in."""

    def __call__(self, *values: Any) -> list[Any]:
        """Its outputs in order."""
        ...

    def nothing(self, output: int) -> Array:
        """A tensor of an output's type and, with sizes of 0 where they are unknown, of its shape; it stands
        for the elements of an empty list of them.
        """
        ...

    @property
    def outputs(self) -> int:
        """How many outputs it has."""
        ...


@host_op("If")
def if_(condition: Array, *, then_branch: Body, else_branch: Body) -> tuple[Any, ...]:
    return tuple(then_branch() if _truth(condition) else else_branch())


@host_op("Loop")
def loop(
    trip_count: Array | None = None, condition: Array | None = None, *carried: Any, body: Body
) -> tuple[Any, ...]:
    """Runs while the condition holds and the count is not reached; what an iteration lists is stacked."""
    count = None if trip_count is None else number(trip_count, "the trip count")
    going = condition is None or _truth(condition)
    state = list(carried)
    listed: list[list[Array]] = [[] for _ in range(body.outputs - 1 - len(state))]
    k = 0
    while going and (count is None or k < count):
        test, *results = body(np.array(k, np.int64), np.array(True), *state)
        going = _truth(test)
        state = results[: len(state)]
        for values, value in zip(listed, results[len(state) :]):
            values.append(value)
        k += 1
    first = 1 + len(state)
    return (*state, *(_stacked(values, body, first + n, 0) for n, values in enumerate(listed)))


@host_op("Scan")
def scan(
    *inputs: Any,
    body: Body,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] = (),
    scan_input_directions: Sequence[int] = (),
    scan_output_axes: Sequence[int] = (),
    scan_output_directions: Sequence[int] = (),
) -> tuple[Any, ...]:
    """Runs over slices of the scanned inputs; what an iteration lists is stacked."""
    split = len(inputs) - num_scan_inputs
    state, scanned = list(inputs[:split]), inputs[split:]
    axes = [axis_of(axis, x.ndim) for axis, x in zip(_padded(scan_input_axes, len(scanned)), scanned)]
    lengths = {x.shape[axis] for x, axis in zip(scanned, axes)}
    if len(lengths) != 1:
        raise Refused(f"the scanned inputs have the lengths {sorted(lengths)}")
    moved = [np.moveaxis(x, axis, 0) for x, axis in zip(scanned, axes)]
    turned = [
        x[::-1] if direction else x
        for x, direction in zip(moved, _padded(scan_input_directions, len(scanned)))
    ]
    listed: list[list[Array]] = [[] for _ in range(body.outputs - split)]
    for k in range(lengths.pop()):
        results = body(*state, *(x[k : k + 1].reshape(x.shape[1:]) for x in turned))
        state = results[:split]
        for values, value in zip(listed, results[split:]):
            values.append(value)
    out_axes = _padded(scan_output_axes, len(listed))
    out_directions = _padded(scan_output_directions, len(listed))
    return (
        *state,
        *(
            _stacked(values[::-1] if direction else values, body, split + n, axis)
            for n, (values, axis, direction) in enumerate(zip(listed, out_axes, out_directions))
        ),
    )


def _truth(condition: Array) -> bool:
    if condition.size != 1:
        raise Refused(f"the condition is one truth value, and has the shape {list(condition.shape)}")
    return bool(condition.reshape(())[()])


def _padded(given: Sequence[int], count: int) -> list[int]:
    return [*given, *[0] * (count - len(given))]


def _stacked(values: Sequence[Array], body: Body, output: int, axis: int) -> Array:
    """The values of all iterations along a new axis."""
    if not values:
        empty = body.nothing(output)
        shape = list(empty.shape)
        shape.insert(axis_of(axis, empty.ndim + 1), 0)
        return np.empty(shape, empty.dtype)
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        shown = ", ".join(str(list(shape)) for shape in sorted(shapes)[:4])
        raise Refused(f"the iterations list tensors of different shapes: {shown}")
    return np.stack(values, axis_of(axis, values[0].ndim + 1))
