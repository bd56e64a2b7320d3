"""Sequences: lists of tensors (of maps, where ONNX allows it). An operator answers a new list and leaves the
elements where they are; it stands in a tuple, because a list of results is one of several values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusile.kernels.host.registry import Refused, host_op

Array = np.ndarray[Any, np.dtype[Any]]
Sequence = list[Any]


def number(x: Array, what: str) -> int:
    """The one integer in a tensor."""
    if x.size != 1:
        raise Refused(f"{what} is one number, and has the shape {list(x.shape)}")
    return int(x.reshape(())[()])


def _place(position: Array, length: int) -> int:
    """A position in a sequence from 0 up; negative ones count from the end."""
    at = number(position, "the position")
    if not -length <= at < length:
        raise Refused(f"position {at} is outside of a sequence of {length}")
    return at % length


@host_op("SequenceEmpty")
def sequence_empty() -> tuple[Sequence]:
    return ([],)


@host_op("SequenceConstruct")
def sequence_construct(*elements: Any) -> tuple[Sequence]:
    return (list(elements),)


@host_op("SequenceAt")
def sequence_at(sequence: Sequence, position: Array) -> Any:
    return (sequence[_place(position, len(sequence))],)


@host_op("SequenceInsert")
def sequence_insert(sequence: Sequence, element: Any, position: Array | None = None) -> tuple[Sequence]:
    length = len(sequence)
    at = length if position is None else number(position, "the position")
    if not -length <= at <= length:
        raise Refused(f"nothing can be inserted at {at} into a sequence of {length}")
    at += length if at < 0 else 0
    return ([*sequence[:at], element, *sequence[at:]],)


@host_op("SequenceErase")
def sequence_erase(sequence: Sequence, position: Array | None = None) -> tuple[Sequence]:
    if not sequence:
        raise Refused("the sequence is empty")
    at = len(sequence) - 1 if position is None else _place(position, len(sequence))
    return ([*sequence[:at], *sequence[at + 1 :]],)


@host_op("SequenceLength")
def sequence_length(sequence: Sequence) -> Array:
    return np.array(len(sequence), np.int64)


@host_op("SplitToSequence")
def split_to_sequence(
    x: Array, split: Array | None = None, *, axis: int = 0, keepdims: int = 1
) -> tuple[Sequence]:
    """Pieces of one size, the last of what is left, or of the sizes in `split`; without it, of size 1."""
    at = axis_of(axis, x.ndim)
    length = x.shape[at]
    if split is None:
        pieces = [np.take(x, [k], at) for k in range(length)]
        return ([piece if keepdims else piece.reshape(x.shape[:at] + x.shape[at + 1 :]) for piece in pieces],)
    if split.ndim == 0 or (split.ndim == 1 and split.size == 1 and int(split[0]) != length):
        size = number(split, "the split")
        if size <= 0:
            raise Refused(f"a piece cannot have the size {size}")
        sizes = [size] * (length // size) + ([length % size] if length % size else [])
    else:
        sizes = [int(n) for n in split.ravel()]
        if min(sizes, default=0) < 0 or sum(sizes) != length:
            raise Refused(f"the sizes {sizes} do not add up to {length}")
    ends = np.cumsum(sizes)
    before: tuple[slice, ...] = (slice(None),) * at
    pieces = [x[(*before, slice(int(end) - size, int(end)))] for end, size in zip(ends, sizes)]
    return ([np.ascontiguousarray(piece).reshape(piece.shape) for piece in pieces],)


@host_op("ConcatFromSequence")
def concat_from_sequence(sequence: Sequence, *, axis: int, new_axis: int = 0) -> Array:
    if not sequence:
        raise Refused("the sequence is empty")
    rank = sequence[0].ndim + bool(new_axis)
    at = axis_of(axis, rank)
    if any(x.ndim != sequence[0].ndim for x in sequence):
        raise Refused(f"the elements have the shapes {[list(x.shape) for x in sequence[:8]]}")
    result: Array = np.stack(sequence, at) if new_axis else np.concatenate(sequence, at)
    return result


def axis_of(axis: int, rank: int) -> int:
    """An axis from 0 up."""
    if not -rank <= axis < rank:
        raise Refused(f"there is no axis {axis} in {rank} dimensions")
    return axis % rank
