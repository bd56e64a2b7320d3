"""Inputs for a model whose meaning is not known: drawn by declared types and shapes, or read from files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from fusile.dims import evaluate
from fusile.errors import UsageError, show_name, show_names
from fusile.runtime.module import Array, Port, Value

_WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")
_MAX_ELEMENTS = 2**31
_IMAGE_SIDE = 64
_OTHER_SIZE = 16
INDEX_LIMITS = (90, 8, 2, 1)
"""Ranges to draw integers from, the widest first."""

R = TypeVar("R")


def draw(
    ports: Sequence[Port], seed: int, dims: Mapping[str, int] | None = None, limit: int = INDEX_LIMITS[0]
) -> dict[str, Value]:
    """One value per input, the same for the same seed.

    Floats are normally distributed (smooth over the last two axes of images), integers lie in
    [0, limit), masks are all ones, strings are words. Symbols without a size in `dims` get a sensible
    one. Raises UsageError for inputs that are no tensors, and where a shape cannot be worked out.
    """
    generator = np.random.default_rng(seed)
    sizes = _symbols(ports, dims or {})
    return {port.name: _draw(port, generator, sizes, limit) for port in ports}


def draw_accepted(
    ports: Sequence[Port],
    seed: int,
    dims: Mapping[str, int] | None,
    accept: Callable[[dict[str, Value]], R],
    refusals: tuple[type[Exception], ...],
) -> tuple[dict[str, Value], R]:
    """Inputs that `accept` takes, and what it answered.

    Integers are often indices into tables whose size the declaration does not tell, so they are drawn
    from smaller and smaller ranges until the model takes them. The last refusal is raised.
    """
    indices = any(port.dtype is not None and _is_integer(port.dtype) for port in ports)
    for limit in INDEX_LIMITS if indices else INDEX_LIMITS[:1]:
        feeds = draw(ports, seed, dims, limit)
        try:
            return feeds, accept(feeds)
        except refusals as error:
            last = error
    raise last


def sizes_for(ports: Sequence[Port], dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The concrete shape of every tensor port: given sizes first, sensible ones for the other symbols."""
    sizes = _symbols(ports, dims)
    return {port.name: _shape(port, sizes) for port in ports if port.shape is not None}


def read_inputs(texts: Sequence[str], ports: Sequence[Port]) -> dict[str, Value]:
    """Inputs from `file.npz` and `name=file.npy` arguments.

    Nothing in the files is executed: arrays of Python objects are refused. Raises UsageError for a file
    that cannot be read and a name that the model does not have.
    """
    values: dict[str, Value] = {}
    names = [port.name for port in ports]
    for text in texts:
        if Path(text).suffix == ".npz" and Path(text).is_file():
            with _load(text) as archive:
                values.update({name: archive[name] for name in archive.files})
            continue
        name, equals, path = text.rpartition("=")
        if not equals:
            if len(names) != 1:
                raise UsageError(
                    f"{text!r} does not say which input it is for",
                    todo=f"Write NAME={text}; the names are {show_names(names)}",
                )
            name = names[0]
        values[name] = _load(path)
    for name in values:
        if name not in names:
            raise UsageError(
                f"The model has no input {show_name(name)}", todo=f"Its inputs are {show_names(names)}"
            )
    return values


def _load(path: str) -> Any:
    if not Path(path).is_file():
        raise UsageError(f"There is no file {path!r}")
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UsageError(
            f"{path!r} is no file of arrays",
            why=str(error).splitlines()[0],
            todo="Write it with np.save or np.savez",
        ) from error


def _draw(port: Port, generator: np.random.Generator, dims: Mapping[str, int], limit: int) -> Value:
    if port.dtype is None:
        raise UsageError(
            f"Input {show_name(port.name)} cannot be drawn",
            why=f"it is of type {port.type}",
            todo="Give it a value (inputs=, or --inputs with a file of arrays)",
        )
    shape = _shape(port, dims)
    return _values(port, shape, generator, limit).astype(port.dtype)


def _values(port: Port, shape: tuple[int, ...], generator: np.random.Generator, limit: int) -> Array:
    dtype = cast("np.dtype[Any]", port.dtype)
    name = port.name.lower()
    if dtype == np.dtype(object):
        return generator.choice(np.array(_WORDS, dtype=object), size=shape)
    if "mask" in name or dtype == np.dtype(bool):
        return np.ones(shape)
    if _is_integer(dtype):
        if "position" in name and shape:
            return np.broadcast_to(np.arange(shape[-1]), shape)
        if "type" in name:
            return np.zeros(shape)
        return generator.integers(0, min(limit, _largest(dtype)), size=shape)
    if dtype.kind == "c":
        return generator.standard_normal(shape) + 1j * generator.standard_normal(shape)
    if len(shape) == 4 and min(shape[2:]) >= 16:
        return _smooth(generator, shape)
    return generator.standard_normal(shape)


def _is_integer(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu" or dtype.name.lstrip("u").startswith("int")


def _largest(dtype: np.dtype[Any]) -> int:
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).max)
    bits = int(dtype.name.removeprefix("u").removeprefix("int"))
    return int(2**bits - 1 if dtype.name.startswith("u") else 2 ** (bits - 1) - 1)


def _smooth(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Noise without high frequencies over the last two axes: what networks for images react to."""
    values = generator.standard_normal(shape[:2] + tuple(max(2, size // 16) for size in shape[2:]))
    for axis in (2, 3):
        knots = values.shape[axis]
        at = np.linspace(0, knots - 1, shape[axis])
        low = np.minimum(at.astype(np.int64), knots - 2)
        weight = (at - low).reshape([-1 if place == axis else 1 for place in range(4)])
        values = np.take(values, low, axis) * (1 - weight) + np.take(values, low + 1, axis) * weight
    return values


def _symbols(ports: Sequence[Port], dims: Mapping[str, int]) -> dict[str, int]:
    """A size for every symbol that stands alone in some port, so that `past + 1` fits to `past`."""
    sizes = dict(dims)
    for port in ports:
        for axis, dim in enumerate(port.shape or ()):
            if isinstance(dim, str) and dim not in sizes and dim.isidentifier():
                sizes[dim] = _usual(port, axis)
    return sizes


def _shape(port: Port, dims: Mapping[str, int]) -> tuple[int, ...]:
    if port.shape is None:
        raise UsageError(
            f"Input {show_name(port.name)} has no known rank, so no value can be drawn",
            todo="Give it a value (inputs=, or --inputs with a file of arrays)",
        )
    shape = tuple(_size(port, axis, dim, dims) for axis, dim in enumerate(port.shape))
    elements = 1
    for size in shape:
        elements *= size
    if elements > _MAX_ELEMENTS:
        raise UsageError(
            f"Input {show_name(port.name)} would have {elements} elements",
            todo="Give smaller sizes (dims=, or --dims)",
        )
    return shape


def _size(port: Port, axis: int, dim: int | str | None, dims: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim is not None:
        if dim in dims:
            return dims[dim]
        worked_out = evaluate(dim, dims)
        if worked_out is not None:
            return worked_out
    return _usual(port, axis)


def _usual(port: Port, axis: int) -> int:
    """A sensible size for an axis of which nothing is known."""
    if axis == 0:
        return 1
    return _IMAGE_SIDE if len(port.shape or ()) == 4 and axis >= 2 else _OTHER_SIZE
