"""Operators that move tensors of strings, compare them, or turn them into numbers and back.

Their counterparts for numbers are tensor expressions in `fusile.kernels.families`; parameters are those of
the canonical form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusile.ir.types import BY_CODE, numpy_dtype
from fusile.kernels.host.registry import Refused, host_op
from fusile.kernels.host.sequences import axis_of

Array = np.ndarray[Any, np.dtype[Any]]

MOST_ELEMENTS = 2**31
"""What a result of strings may hold: a reference takes 8 bytes, and sizes come out of the model's data."""


def _ints(x: Array | None) -> list[int]:
    return [] if x is None else [int(n) for n in x.ravel()]


def _bounded(shape: Sequence[int]) -> tuple[int, ...]:
    if any(n < 0 for n in shape) or math.prod(shape) > MOST_ELEMENTS:
        raise Refused(f"the result would have the shape {list(shape)}")
    return tuple(shape)


# ---- shapes ------------------------------------------------------------------------------------------


@host_op("Shape")
def shape(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    return np.array(x.shape[slice(*slice(start, end).indices(x.ndim)[:2])], np.int64)


@host_op("Size")
def size(x: Array) -> Array:
    return np.array(x.size, np.int64)


@host_op("Reshape")
def reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Array:
    wanted = _ints(shape)
    for axis, n in enumerate(wanted):
        if n == 0 and not allowzero:
            if axis >= x.ndim:
                raise Refused(f"there is no dimension {axis} to keep in the shape {list(x.shape)}")
            wanted[axis] = x.shape[axis]
    return x.reshape(wanted)


@host_op("Flatten")
def flatten(x: Array, *, axis: int = 1) -> Array:
    at = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))


@host_op("Squeeze")
def squeeze(x: Array, axes: Array | None = None) -> Array:
    if axes is None:
        return x.reshape([n for n in x.shape if n != 1])
    gone = {axis_of(axis, x.ndim) for axis in _ints(axes)}
    if any(x.shape[axis] != 1 for axis in gone):
        raise Refused(f"the shape {list(x.shape)} is not 1 in the dimensions {sorted(gone)}")
    return x.reshape([n for axis, n in enumerate(x.shape) if axis not in gone])


@host_op("Unsqueeze")
def unsqueeze(x: Array, axes: Array) -> Array:
    new = _ints(axes)
    return np.expand_dims(x, tuple(axis_of(axis, x.ndim + len(new)) for axis in new))


@host_op("Transpose")
def transpose(x: Array, *, perm: Sequence[int] | None = None) -> Array:
    return np.transpose(x, None if perm is None else tuple(perm))


@host_op("Expand")
def expand(x: Array, shape: Array) -> Array:
    common = _bounded(np.broadcast_shapes(x.shape, tuple(_ints(shape))))
    return np.broadcast_to(x, common).copy()


@host_op("Tile")
def tile(x: Array, repeats: Array) -> Array:
    times = _ints(repeats)
    _bounded([n * k for n, k in zip(x.shape, times)])
    return np.tile(x, times)


@host_op("Identity")
def identity(x: Any) -> tuple[Any]:
    return (x,)


# ---- joining and cutting -----------------------------------------------------------------------------


@host_op("Concat")
def concat(*inputs: Array, axis: int) -> Array:
    return np.concatenate(inputs, axis)


@host_op("Split")
def split(
    x: Array, sizes: Array | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int = 1
) -> tuple[Array, ...]:
    at = axis_of(axis, x.ndim)
    length = x.shape[at]
    if sizes is None:
        each = -(-length // (num_outputs or outputs))
        cuts = [min(each * k, length) for k in range(1, num_outputs or outputs)]
    else:
        if sum(_ints(sizes)) != length:
            raise Refused(f"the sizes {_ints(sizes)} do not add up to {length}")
        cuts = [int(n) for n in np.cumsum(_ints(sizes))[:-1]]
    return tuple(np.split(x, cuts, at))


@host_op("Slice")
def slice_(
    x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    places = _ints(axes) if axes is not None else list(range(starts.size))
    strides = _ints(steps) if steps is not None else [1] * len(places)
    cut = [slice(None)] * x.ndim
    for start, end, axis, step in zip(_ints(starts), _ints(ends), places, strides):
        if step == 0:
            raise Refused("a step is 0")
        at = axis_of(axis, x.ndim)
        n = x.shape[at]
        first = start + n if start < 0 else start
        last = end + n if end < 0 else end
        if step > 0:
            cut[at] = slice(min(max(first, 0), n), min(max(last, 0), n), step)
        else:
            last = min(max(last, -1), n - 1)
            cut[at] = slice(min(max(first, 0), n - 1), None if last < 0 else last, step)
    return x[tuple(cut)]


@host_op("Compress")
def compress(x: Array, condition: Array, *, axis: int | None = None) -> Array:
    if axis is None:
        flat = x.ravel()
        return flat[np.flatnonzero(condition[: flat.size])]
    at = axis_of(axis, x.ndim)
    return np.take(x, np.flatnonzero(condition[: x.shape[at]]), at)


@host_op("Pad")
def pad(
    x: Array,
    pads: Array,
    constant_value: Array | None = None,
    axes: Array | None = None,
    *,
    mode: str = "constant",
) -> Array:
    places = [axis_of(axis, x.ndim) for axis in _ints(axes)] if axes is not None else list(range(x.ndim))
    amounts, count = _ints(pads), len(places)
    if len(amounts) != 2 * count:
        raise Refused(f"{count} dimensions need {2 * count} pads, and there are {len(amounts)}")
    out = x
    for axis, before, after in zip(places, amounts[:count], amounts[count:]):
        n = out.shape[axis]
        _bounded([*out.shape[:axis], n + before + after, *out.shape[axis + 1 :]])
        at = np.arange(-before, n + after)
        if mode == "constant":
            inside = (at >= 0) & (at < n)
            fill = "" if constant_value is None else constant_value.reshape(())[()]
            grown = np.full((*out.shape[:axis], len(at), *out.shape[axis + 1 :]), fill, out.dtype)
            grown[(slice(None),) * axis + (inside,)] = np.take(out, at[inside], axis)
            out = grown
        else:
            if n == 0:
                raise Refused("nothing can be repeated out of an empty dimension")
            turn = max(2 * (n - 1), 1)
            places_of = {
                "edge": np.clip(at, 0, n - 1),
                "wrap": at % n,
                "reflect": (n - 1) - np.abs((n - 1) - at % turn) if n > 1 else np.zeros_like(at),
            }
            out = np.take(out, places_of[mode], axis)
    return out


# ---- reading by index --------------------------------------------------------------------------------


def _within(indices: Array, length: int) -> Array:
    """Indices from 0 up; negative ones count from the end."""
    if indices.size and (int(indices.min()) < -length or int(indices.max()) >= length):
        raise Refused(f"an index is outside of a dimension of {length}")
    return np.where(indices < 0, indices + length, indices)


@host_op("Gather")
def gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    at = axis_of(axis, x.ndim)
    return np.asarray(np.take(x, _within(indices, x.shape[at]), at))


@host_op("GatherElements")
def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    at = axis_of(axis, x.ndim)
    return x[_points(x, indices, at)]


@host_op("GatherND")
def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    depth = indices.shape[-1]
    batch = x.shape[:batch_dims]
    rows = math.prod(batch)
    flat = x.reshape(rows, *x.shape[batch_dims:])
    points = indices.reshape(rows, -1, depth)
    at = tuple(_within(points[..., k], x.shape[batch_dims + k]) for k in range(depth))
    found = flat[(np.arange(rows)[:, None], *at)] if depth else np.repeat(flat[:, None], points.shape[1], 1)
    return found.reshape(*indices.shape[:-1], *x.shape[batch_dims + depth :])


@host_op("ScatterElements")
def scatter_elements(
    x: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none"
) -> Array:
    _plain(reduction)
    out = x.copy()
    out[_points(x, indices, axis_of(axis, x.ndim))] = updates
    return out


@host_op("ScatterND")
def scatter_nd(x: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    _plain(reduction)
    out = x.copy()
    out[tuple(_within(indices[..., k], x.shape[k]) for k in range(indices.shape[-1]))] = updates
    return out


def _plain(reduction: str) -> None:
    if reduction != "none":
        raise Refused(f"strings cannot be reduced by {reduction}")


def _points(x: Array, indices: Array, axis: int) -> tuple[Array, ...]:
    """The places that indices along one axis mean, as one array of coordinates for each dimension."""
    if indices.ndim != x.ndim:
        raise Refused(f"indices of {indices.ndim} dimensions for {x.ndim}")
    at: list[Array] = list(np.indices(indices.shape, sparse=True))
    at[axis] = _within(indices, x.shape[axis])
    return tuple(at)


@host_op("ReverseSequence")
def reverse_sequence(x: Array, lengths: Array, *, batch_axis: int = 1, time_axis: int = 0) -> Array:
    moved = np.moveaxis(x, (batch_axis, time_axis), (0, 1)).copy()
    for row, length in enumerate(_ints(lengths)):
        moved[row, :length] = moved[row, :length][::-1].copy()
    return np.moveaxis(moved, (0, 1), (batch_axis, time_axis))


# ---- by element --------------------------------------------------------------------------------------


@host_op("Where")
def where(condition: Array, x: Array, y: Array) -> Array:
    _bounded(np.broadcast_shapes(condition.shape, x.shape, y.shape))
    return np.asarray(np.where(condition, x, y), x.dtype)


@host_op("Equal")
def equal(x: Array, y: Array) -> Array:
    return np.asarray(x == y, np.bool_)


@host_op("NonZero")
def non_zero(x: Array) -> Array:
    return np.array(np.nonzero(x), np.int64).reshape(x.ndim, -1)


@host_op("OneHot")
def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    count = int(depth.ravel()[0])
    at = axis_of(axis, indices.ndim + 1)
    _bounded([*indices.shape, count])
    wanted = np.expand_dims(np.where(indices < 0, indices + count, indices), at)
    steps = np.arange(count).reshape([count if k == at else 1 for k in range(indices.ndim + 1)])
    return np.asarray(np.where(wanted == steps, values[1], values[0]), values.dtype)


@host_op("Unique")
def unique(x: Array, *, axis: int | None = None, sorted: int = 1) -> tuple[Array, Array, Array, Array]:
    """The different entries with the first place, the way back, and the count of each."""
    lines = x.reshape(x.size, 1) if axis is None else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    keys = [tuple(line) for line in lines]
    first: dict[tuple[Any, ...], int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    order = __builtins_sorted(first) if sorted else list(first)
    rank = {key: k for k, key in enumerate(order)}
    places = np.array([first[key] for key in order], np.int64)
    back = np.array([rank[key] for key in keys], np.int64)
    counts = np.bincount(back, minlength=len(order)).astype(np.int64)
    found = x.ravel()[places] if axis is None else np.take(x, places, axis)
    return found, places, back, counts


__builtins_sorted = sorted


# ---- strings and numbers -----------------------------------------------------------------------------

_WHOLE = re.compile(r"\s*[+-]?\d+\s*")
_LONGEST_NUMBER = 400
"""No number needs more characters, and turning longer texts into integers takes quadratic time."""


@host_op("Cast")
def cast(x: Array, *, to: int) -> Array:
    """To text: whole numbers plainly, others in at most eight significant digits, NaN, INF and -INF. Out of
    text: whatever reads as a number.
    """
    if to == 8:
        return _to_text(x)
    return _from_text(x, numpy_dtype(BY_CODE[to]))


@host_op("CastLike")
def cast_like(x: Array, like: Array) -> Array:
    return _to_text(x) if like.dtype == object else _from_text(x, like.dtype)


def _to_text(x: Array) -> Array:
    if x.dtype == object:
        return x
    out = np.empty(x.shape, object)
    if x.dtype.kind in "iub" or _is_whole(x.dtype):
        out.ravel()[:] = [str(int(v)) for v in x.ravel()]
    else:
        out.ravel()[:] = [_digits(float(v)) for v in x.ravel()]
    return out


def _is_whole(dtype: np.dtype[Any]) -> bool:
    return "int" in dtype.name


def _digits(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "INF" if value > 0 else "-INF"
    return f"{value:.8g}"


def _from_text(x: Array, dtype: np.dtype[Any]) -> Array:
    if dtype == np.bool_:
        return np.array([bool(_integer(text)) for text in x.ravel()], np.bool_).reshape(x.shape)
    if dtype.kind in "iu" or _is_whole(dtype):
        numbers = [_integer(text) for text in x.ravel()]
        try:
            return (
                np.array(numbers, np.uint64 if dtype == np.uint64 else np.int64)
                .astype(dtype)
                .reshape(x.shape)
            )
        except OverflowError:
            raise Refused(f"a number does not fit {dtype}") from None
    floats = np.array([_float(text) for text in x.ravel()], np.float64).reshape(x.shape)
    with np.errstate(over="ignore"):
        return floats.astype(dtype)


def _integer(text: str) -> int:
    if len(text) <= _LONGEST_NUMBER and _WHOLE.fullmatch(text):
        return int(text)
    value = _float(text)
    if not math.isfinite(value):
        raise Refused(f"{text!r} is no whole number")
    return int(value)


def _float(text: str) -> float:
    try:
        if "_" not in text and len(text) <= _LONGEST_NUMBER:
            return float(text)
    except ValueError:
        pass
    raise Refused(f"{text[:80]!r} is no number")
