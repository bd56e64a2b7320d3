"""Small words that the rows of both frameworks are written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusile.backends.framework.code import Code, Plain, call
from fusile.backends.framework.common import Row
from fusile.backends.framework.host import Scalar
from fusile.backends.framework.site import Site
from fusile.ir import expr as ex

UNLIMITED = 10**9
"""Ends of slices from here on mean `all`: exporters write 2^63 - 1, 2^31 - 1 and 10^9."""


def unary(function: str) -> Row:
    """A function of the only input."""
    return lambda n: call(function, n.tensor())


def infix(sign: str) -> Row:
    """An operator of Python between two inputs; a number may stand on either side."""
    return lambda n: n.operand(0).binary(sign, n.operand(1))


def logical(word: str) -> Row:
    """An operator between two tensors, or a function of them; a constant that changes nothing is left out."""

    def row(n: Site) -> Code:
        neutral = {"And": 1.0, "Or": 0.0}.get(n.node.op_type)
        for one, other in ((0, 1), (1, 0)):
            if n.scalar(one) is not None and n.scalar(one) == neutral and n.rank(other) >= n.rank(one):
                return n.tensor(other)
        if "." in word:
            return call(word, n.tensor(0), n.tensor(1))
        return n.tensor(0).binary(word, n.tensor(1))

    return row


def sum_of(n: Site) -> Code:
    """The sum of all inputs."""
    out = n.tensor(0)
    for i in range(1, len(n.node.inputs)):
        out = out + n.tensor(i)
    return out


def mean_of(n: Site) -> Code:
    """The mean of all inputs."""
    return sum_of(n) / len(n.node.inputs) if len(n.node.inputs) > 1 else n.tensor()


def plain(values: Sequence[int]) -> Plain:
    """One number where all are equal, as layers take it."""
    return int(values[0]) if len(set(values)) == 1 else tuple(int(v) for v in values)


def last(axis: int, rank: int) -> int:
    """-1 for the last axis, others as they are."""
    return -1 if axis == rank - 1 else axis


def axes_word(axes: Sequence[int], rank: int) -> Plain:
    """One axis as a number, several as a tuple."""
    return last(axes[0], rank) if len(axes) == 1 else tuple(axes)


def without_defaults(given: Mapping[str, Plain], defaults: Mapping[str, Plain]) -> dict[str, Plain]:
    """Keyword arguments that differ from the framework's defaults."""
    return {word: value for word, value in given.items() if value != defaults.get(word)}


# ---- sizes -------------------------------------------------------------------------------------------


def is_number(value: Scalar) -> bool:
    """Whether a size is known while printing."""
    return not isinstance(value, ex.Expr)


def is_zero(value: Scalar) -> bool:
    return not isinstance(value, ex.Expr) and value == 0


def same_size(a: Scalar, b: Scalar) -> bool:
    """Whether two sizes are certainly equal."""
    if isinstance(a, ex.Expr) or isinstance(b, ex.Expr):
        return a is b
    return a == b


def target_sizes(n: Site, index_of: int = 1) -> list[Plain] | None:
    """The elements of a shape input as source; zeros of Reshape become the input's own sizes."""
    sizes = n.sizes(index_of)
    if sizes is None:
        return None
    copied = n.node.op_type == "Reshape" and not n.integer("allowzero")
    return [n.dim(0, i) if copied and is_zero(size) else n.size(size) for i, size in enumerate(sizes)]


def nested(elements: Sequence[Code], shape: tuple[int, ...]) -> Plain:
    """Elements as nested lists of a shape."""
    if not shape:
        return elements[0]
    step = len(elements) // shape[0]
    return [nested(elements[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


# ---- indexing ----------------------------------------------------------------------------------------


def index(x: Code, picked: Mapping[int, Plain | slice], rank: int) -> Code:
    """`x[...]` with some axes indexed; a rank of 0 is one that is not known.

    Lists are taken one axis after the other: together they would pair up.
    """
    if not picked:
        return x
    lists = [axis for axis, item in picked.items() if not isinstance(item, slice)]
    if len(lists) > 1:
        for axis in lists[1:]:
            x = index(x, {axis: picked[axis]}, rank)
        return index(x, {axis: item for axis, item in picked.items() if axis not in lists[1:]}, rank)
    low, high = min(picked), max(picked)
    if high == rank - 1 and low > 1:
        return x[(Ellipsis, *(picked.get(axis, slice(None)) for axis in range(low, rank)))]
    return x[tuple(picked.get(axis, slice(None)) for axis in range(high + 1))]


def forward_slice(n: Site, start: Scalar, stop: Scalar, step: int, axis: int) -> slice | None:
    """One axis of a slice with a positive step, or None where it takes everything."""
    size = n.shape()[axis] if n.has_rank() else None
    first: Plain = None if is_zero(start) or (is_number(start) and start <= -UNLIMITED) else n.size(start)
    beyond = is_number(stop) and (stop >= UNLIMITED or (isinstance(size, int) and stop >= size))
    end: Plain = None if beyond else n.size(stop)
    if first is None and end is None and step == 1:
        return None
    return slice(first, end, None if step == 1 else step)


def slice_arguments(n: Site) -> tuple[list[Scalar], list[Scalar], list[int], list[int]] | None:
    """Starts, ends, axes and steps of a Slice, or None where some are computed when the model runs."""
    starts, stops = n.sizes(1), n.sizes(2)
    if starts is None or stops is None:
        return None
    axes = n.constant(3) if n.has(3) else range(len(starts))
    steps = n.constant(4) if n.has(4) else [1] * len(starts)
    if axes is None or steps is None:
        return None
    known = n.has_rank() or any(a < 0 for a in axes)
    named = [int(a) % n.rank() if known else int(a) for a in axes]
    return starts, stops, named, [int(s) for s in steps]


def pad_arguments(n: Site) -> tuple[dict[int, Scalar], dict[int, Scalar]] | None:
    """Pads before and after each axis, or None where they are computed when the model runs."""
    sizes, rank = n.sizes(1), n.rank()
    given = n.constant(3) if n.has(3) else range(rank)
    if sizes is None or given is None:
        return None
    axes = [int(a) % rank for a in given]
    count = len(axes)
    return dict(zip(axes, sizes[:count], strict=True)), dict(zip(axes, sizes[count:], strict=True))


def broadcast_sizes(n: Site, sizes: Sequence[Scalar]) -> list[Scalar] | None:
    """Sizes of x broadcast against a shape, or None where they cannot be told while printing."""
    shape = n.shape()
    own: list[Scalar] = [*[1] * (len(sizes) - len(shape)), *shape]
    wanted: list[Scalar] = [*[1] * (len(shape) - len(sizes)), *sizes]
    out: list[Scalar] = []
    for have, want in zip(own, wanted, strict=True):
        if same_size(have, want) or same_size(want, 1):
            out.append(have)
        elif same_size(have, 1):
            out.append(want)
        else:
            return None
    return out


def split_arguments(n: Site) -> list[Scalar] | None:
    """The sizes of the parts of a Split, or None where they are computed when the model runs."""
    if n.has(1):
        return n.sizes(1)
    size, count = n.shape()[n.axis(0)], len(n.node.outputs)
    if not isinstance(size, int):
        return None
    step = -(-size // count)
    return [max(0, min(step, size - step * i)) for i in range(count)]
