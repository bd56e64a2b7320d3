"""Tables from and to strings, and maps: the operators of ai.onnx.ml on what is no number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from fusile.kernels.host.registry import HostContext, Refused, host_op
from fusile.kernels.host.strings import texts
from fusile.kernels.registry import Malformed

Array = np.ndarray[Any, np.dtype[Any]]
ML = "ai.onnx.ml"
_NAN = object()
"""What stands for NaN among keys, of which no two are equal."""


def _keyed(values: Sequence[Any]) -> list[Any]:
    return [_NAN if v != v else v for v in values]


@lru_cache(maxsize=64)
def _first_of_each(keys: tuple[Any, ...], values: tuple[Any, ...]) -> dict[Any, Any]:
    if len(keys) != len(values):
        raise Malformed(f"{len(keys)} keys and {len(values)} values")
    return dict(zip(reversed(_keyed(keys)), reversed(values), strict=True))


def _made(values: list[Any], shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    return texts(values, shape) if dtype.hasobject else np.array(values, dtype).reshape(shape)


def _listed(*given: tuple[Any, type]) -> tuple[tuple[Any, ...], np.dtype[Any]]:
    """The one list of keys or values that a node has, and the type of its elements."""
    for values, kind in given:
        if values is None or not len(values):
            continue
        array = np.asarray(values, None if isinstance(values, np.ndarray) else kind)
        return tuple(array.ravel().tolist()), array.dtype if array.dtype.kind in "if" else np.dtype(object)
    raise Malformed("has no list of keys or of values")


@host_op("LabelEncoder", ML)
def label_encoder(
    x: Array,
    *,
    keys_tensor: Array | None = None,
    keys_strings: Sequence[str] = (),
    keys_int64s: Sequence[int] = (),
    keys_floats: Sequence[float] = (),
    values_tensor: Array | None = None,
    values_strings: Sequence[str] = (),
    values_int64s: Sequence[int] = (),
    values_floats: Sequence[float] = (),
    default_tensor: Array | None = None,
    default_string: str = "_Unused",
    default_int64: int = -1,
    default_float: float = -0.0,
) -> Array:
    """A table; the first of equal keys counts, and a NaN finds a NaN."""
    numbers = ((keys_int64s, np.int64), (keys_floats, np.float32))
    keys, _ = _listed((keys_tensor, object), (keys_strings, object), *numbers)
    results = ((values_int64s, np.int64), (values_floats, np.float32))
    values, dtype = _listed((values_tensor, object), (values_strings, object), *results)
    if default_tensor is not None and np.asarray(default_tensor).size:
        default = np.asarray(default_tensor).ravel().tolist()[0]
    else:
        default = {"O": default_string, "f": default_float}.get(dtype.kind, default_int64)
    table = _first_of_each(keys, values)
    return _made([table.get(k, default) for k in _keyed(x.ravel().tolist())], x.shape, dtype)


@host_op("CategoryMapper", ML)
def category_mapper(
    x: Array,
    *,
    cats_int64s: Sequence[int] = (),
    cats_strings: Sequence[str] = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Array:
    """Strings to integers, or integers to strings."""
    numbers, names = tuple(cats_int64s), tuple(cats_strings)
    if x.dtype.hasobject:
        table = _first_of_each(names[::-1], numbers[::-1])
        return _made([table.get(k, default_int64) for k in x.ravel().tolist()], x.shape, np.dtype(np.int64))
    table = _first_of_each(numbers[::-1], names[::-1])
    return texts([table.get(k, default_string) for k in x.ravel().tolist()], x.shape)


@host_op("ArrayFeatureExtractor", ML)
def array_feature_extractor(x: Array, indices: Array) -> Array:
    at = indices.ravel()
    if not x.ndim or not ((at >= 0) & (at < x.shape[-1])).all():
        raise Refused(f"columns {at.tolist()} of a tensor of the shape {list(x.shape)}")
    return np.take(x if x.ndim > 1 else x[None], at, axis=-1)


# ---- maps --------------------------------------------------------------------------------------------


@host_op("ZipMap", ML)
def zip_map(
    x: Array, *, classlabels_int64s: Sequence[int] = (), classlabels_strings: Sequence[str] = ()
) -> tuple[list[dict[Any, float]]]:
    """A map from labels to scores for every row."""
    labels: Sequence[Any] = classlabels_strings or classlabels_int64s
    rows = x if x.ndim == 2 else x[None]
    if rows.ndim != 2 or rows.shape[1] != len(labels):
        raise Refused(f"{len(labels)} labels for the shape {list(x.shape)}")
    return ([dict(zip(labels, row, strict=True)) for row in rows.tolist()],)


_CASTS: dict[str, tuple[Any, np.dtype[Any], Any]] = {
    "TO_FLOAT": (float, np.dtype(np.float32), 0.0),
    "TO_INT64": (int, np.dtype(np.int64), 0),
    "TO_STRING": (str, np.dtype(object), "0"),
}
MOST_DENSE = 1 << 28
"""Elements of a result whose size is an attribute."""


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.6f}"


@host_op("CastMap", ML)
def cast_map(
    x: Mapping[int, Any], *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1
) -> Array:
    """The values of a map in the order of their keys, or each at the place that its key names."""
    if cast_to not in _CASTS or map_form not in ("DENSE", "SPARSE") or not 0 <= max_map <= MOST_DENSE:
        raise Malformed(f"cast_to {cast_to!r}, map_form {map_form!r}, max_map {max_map}")
    convert, dtype, fill = _CASTS[cast_to]
    if cast_to == "TO_STRING":
        convert = _as_text
    try:
        known = {int(k): convert(v) for k, v in x.items()}
    except (ValueError, OverflowError) as error:
        raise Refused(f"a value of the map is no number: {error}") from error
    if map_form == "DENSE":
        return _made([known[k] for k in sorted(known)], (1, len(known)), dtype)
    if any(not 0 <= k < max_map for k in known):
        raise Refused(f"a key of the map is outside of 0 to {max_map - 1}")
    return _made([known.get(k, fill) for k in range(max_map)], (1, max_map), dtype)


@host_op("DictVectorizer", ML)
def dict_vectorizer(
    ctx: HostContext,
    x: Mapping[Any, Any],
    *,
    int64_vocabulary: Sequence[int] = (),
    string_vocabulary: Sequence[str] = (),
) -> Array:
    """The values of a map at the places of their keys in the vocabulary, in the type that the model declares:
    numbers of Python do not tell it.
    """
    vocabulary: Sequence[Any] = string_vocabulary or int64_vocabulary
    declared = ctx.element()
    if declared is not None:
        return _made(
            [x.get(k, "" if declared.hasobject else 0) for k in vocabulary], (1, len(vocabulary)), declared
        )
    kinds = {type(v) for v in x.values()}
    if kinds == {str}:
        return texts([x.get(k, "") for k in vocabulary], (1, len(vocabulary)))
    values = [x.get(k, 0) for k in vocabulary]
    dtype = np.result_type(*(np.asarray(v) for v in x.values())) if x else np.dtype(np.float32)
    if dtype == np.float64 and all(isinstance(v, float) for v in x.values()):
        dtype = np.dtype(np.float32)
    return np.array(values, dtype).reshape(1, len(vocabulary))
