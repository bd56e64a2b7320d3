"""Operators that prepare features for classical models: scaling, imputing, choosing, binarising."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, cast, const, eq, guard, inside, minimum, ne, select
from fusile.ir.tensor import Tensor, compute
from fusile.ir.types import F32, F64, I64, from_numpy
from fusile.kernels.families.elementwise import unary
from fusile.kernels.families.reduction import reduced
from fusile.kernels.families.scores import table
from fusile.kernels.registry import Context, Malformed, Unsupported, op
from fusile.kernels.shapes import checked_index, flat_index

ML = "ai.onnx.ml"


@op("ArrayFeatureExtractor", ML)
def array_feature_extractor(ctx: Context, x: Tensor, indices: Tensor) -> Tensor:
    """Columns along the last axis; those of a vector become a matrix of one row."""
    if not x.rank:
        raise Malformed("a scalar has no features")
    flat = indices
    if indices.rank != 1:
        flat = compute((indices.size,), lambda j: indices[_digits(j, indices.shape)], name="indices")
        flat.known = indices.known
    lead = x.shape[:-1] if x.rank > 1 else (const(1),)

    def body(*i: Expr) -> Expr:
        at = checked_index(ctx, flat, i[-1:], x.shape[-1])
        return x[(*i[:-1], at)] if x.rank > 1 else x[at]

    return compute((*lead, flat.shape[0]), body, name="features")


def _digits(flat: Expr, shape: Sequence[Expr]) -> tuple[Expr, ...]:
    """The index of the element at a row-major position."""
    found = []
    for k, n in enumerate(shape):
        digit = flat // ix.product(shape[k + 1 :])
        found.append(digit % n if k else digit)
    return tuple(found)


@op("Binarizer", ML)
def binarizer(x: Tensor, *, threshold: float = 0.0) -> Tensor:
    wide = F64 if x.dtype is F64 else F32

    def body(v: Expr) -> Expr:
        return select(cast(v, wide) > threshold, const(1, x.dtype), const(0, x.dtype))

    return unary(x, body, "binarised")


@op("FeatureVectorizer", ML)
def feature_vectorizer(ctx: Context, *xs: Tensor, inputdimensions: tuple[int, ...] = ()) -> Tensor:
    """The rows of all inputs side by side, each cut or filled with zeros to its stated width."""
    if len(inputdimensions) != len(xs) or not xs or min(inputdimensions) < 0:
        raise Malformed(f"{len(xs)} inputs and inputdimensions {inputdimensions}")
    if any(not x.rank for x in xs):
        raise Malformed("a scalar has no features")
    starts = np.cumsum([0, *inputdimensions]).tolist()
    count = const(1) if xs[0].rank == 1 else xs[0].shape[0]
    for x in xs[1:]:
        own = const(1) if x.rank == 1 else x.shape[0]
        ctx.require(eq(count, own), f"the inputs have {count} and {own} rows")

    def element(x: Tensor, n: Expr, j: Expr) -> Expr:
        if x.rank == 1:
            return cast(x[j], F32)
        return cast(x[(n, *_digits(j, x.shape[1:]))], F32)

    def body(n: Expr, j: Expr) -> Expr:
        out: Expr = const(0, F32)
        for x, start, width in reversed(list(zip(xs, starts[:-1], inputdimensions, strict=True))):
            size = x.shape[0] if x.rank == 1 else ix.product(x.shape[1:])
            k = j - start
            own = inside((k, minimum(size, const(width))))
            out = select(own, element(x, n, k), out)
        return out

    return compute((count, starts[-1]), body, name="features")


def _column(x: Tensor, i: Sequence[Expr]) -> tuple[Expr, Expr]:
    """(the position of an element among the features, how many there are): dimension 1 counts them, and
    positions repeat where there are more dimensions.
    """
    if x.rank <= 2:
        return i[-1], x.shape[-1]
    return flat_index(i, x.shape) % x.shape[1], x.shape[1]


def _per_feature(x: Tensor, values: Tensor, i: Sequence[Expr]) -> Expr:
    """The value of an attribute for an element: its feature's, or the first where they are not as many."""
    at, count = _column(x, i)
    known, given = ix.number(count), ix.number(values.size)
    if known is not None or given == 1:
        return values[at if known == given and given != 1 else const(0)]
    assert given is not None
    return select(eq(count, given), values[minimum(at, const(given - 1))], values[const(0)])


@op("Scaler", ML)
def scaler(ctx: Context, x: Tensor, *, offset: Sequence[float] = (), scale: Sequence[float] = ()) -> Tensor:
    """(x - offset) * scale, each one number or one per feature."""
    if len(offset) != len(scale) or not scale or not x.rank:
        raise Malformed(f"{len(offset)} offsets and {len(scale)} scales for rank {x.rank}")
    count = x.shape[-1] if x.rank <= 2 else x.shape[1]
    if len(scale) != 1:
        ctx.require(eq(count, len(scale)), f"{len(scale)} scales for {count} features")
    wide = F64 if x.dtype is F64 else F32
    offsets, scales = table(offset, "offset"), table(scale, "scale")

    def body(*i: Expr) -> Expr:
        shift, factor = (cast(_per_feature(x, t, i), wide) for t in (offsets, scales))
        return cast((cast(x[i], wide) - shift) * factor, F32)

    return compute(x.shape, body, name="scaled")


@op("Imputer", ML)
def imputer(
    x: Tensor,
    *,
    imputed_value_floats: Sequence[float] = (),
    imputed_value_int64s: Sequence[int] = (),
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Tensor:
    """x with every element that is the replaced value (a NaN is a NaN) replaced: by one number, or by one per
    feature.
    """
    if not x.rank:
        raise Malformed("a scalar has no features")
    of_floats = x.dtype.is_float
    given: Sequence[float] = imputed_value_floats if of_floats else imputed_value_int64s
    if not given:
        raise Malformed(f"has no imputed values for {x.dtype}")
    values = table(given, "imputed", np.float32 if of_floats else np.int64)
    replaced = replaced_value_float if of_floats else replaced_value_int64

    def body(*i: Expr) -> Expr:
        v = x[i]
        missing = ne(v, v) if of_floats and math.isnan(replaced) else eq(v, const(replaced, x.dtype))
        return select(missing, cast(_per_feature(x, values, i), x.dtype), v)

    return compute(x.shape, body, name="imputed")


@op("Normalizer", ML)
def normalizer(x: Tensor, *, norm: str = "MAX") -> Tensor:
    """Rows divided by their largest element, their sum of magnitudes, or their length; as they are where that
    is 0.
    """
    if not 1 <= x.rank <= 2 or norm not in ("MAX", "L1", "L2"):
        raise Malformed(f"norm {norm!r} of a tensor of rank {x.rank}")
    at = x.rank - 1
    narrow = unary(x, lambda v: cast(v, F32), "features") if x.dtype is not F32 else x
    if norm == "MAX":
        total = reduced(narrow, [at], "max", keep=True, name="max")
    elif norm == "L1":
        total = reduced(narrow, [at], "sum", keep=True, of=lambda v: apply("abs", v), name="sum")
    else:
        total = reduced(narrow, [at], "sum", keep=True, of=lambda v: v * v, name="sum")

    def body(*i: Expr) -> Expr:
        v, by = narrow[i], total[(*i[:at], const(0))]
        if norm == "L2":
            length = apply("sqrt", v * v / by)
            scaled = select(v < 0, -length, length)
        else:
            scaled = v / by
        return select(ne(by, const(0, F32)), scaled, v)

    return compute(x.shape, body, name="normalised")


# ---- tables from numbers to numbers ----


def _sorted_unique(keys: np.ndarray, values: np.ndarray, last: bool) -> tuple[np.ndarray, np.ndarray]:
    """Keys in ascending order, each once, with its first (or last) value."""
    if last:
        keys, values = keys[::-1], values[::-1]
    found, first = np.unique(keys, return_index=True)
    return found, values[first]


def looked_up(v: Expr, keys: np.ndarray, values: np.ndarray, default: Expr) -> Expr:
    """The value of a key, `default` for what is none, by bisection. The keys ascend, without NaN."""
    if not keys.size:
        return default
    steps = max(1, math.ceil(math.log2(keys.size)))
    width = 1 << steps
    filled = np.concatenate([keys, np.full(width - keys.size, keys[-1])])
    results = np.concatenate([values, np.full(width - keys.size, values[-1])])
    table_of_keys = table(filled, "keys", filled.dtype.type)
    table_of_values = table(results, "values", results.dtype.type)
    at: Expr = const(0)
    for k in reversed(range(steps)):
        # A place of k more binary digits stays below the width of the tables.
        at = at + select(table_of_keys[at + (1 << k)] <= v, const(1 << k), const(0))
    return select(eq(table_of_keys[at], v), table_of_values[at], default)


def _given(
    ctx: Context, tensor: np.ndarray | None, lists: Sequence[tuple[Sequence[float], type]]
) -> np.ndarray:
    """The one list of keys or values that a node has."""
    if tensor is not None:
        return np.asarray(tensor).ravel()
    for values, kind in lists:
        if len(values):
            return np.asarray(values, kind)
    raise Unsupported("a table of strings among tensors of numbers")


@op("LabelEncoder", ML)
def label_encoder(
    ctx: Context,
    x: Tensor,
    *,
    keys_tensor: np.ndarray | None = None,
    keys_int64s: Sequence[int] = (),
    keys_floats: Sequence[float] = (),
    values_tensor: np.ndarray | None = None,
    values_int64s: Sequence[int] = (),
    values_floats: Sequence[float] = (),
    default_tensor: np.ndarray | None = None,
    default_int64: int = -1,
    default_float: float = -0.0,
) -> Tensor:
    """A table from numbers to numbers; a NaN among the keys is what a NaN looks up."""
    keys = _given(ctx, keys_tensor, [(keys_int64s, np.int64), (keys_floats, np.float32)])
    values = _given(ctx, values_tensor, [(values_int64s, np.int64), (values_floats, np.float32)])
    if keys.size != values.size or keys.dtype.kind not in "if" or values.dtype.kind not in "if":
        raise Malformed(f"{keys.size} keys of {keys.dtype} and {values.size} values of {values.dtype}")
    kind = from_numpy(values.dtype)
    if default_tensor is not None and np.asarray(default_tensor).size:
        default: float = np.asarray(default_tensor).ravel()[0].item()
    else:
        default = default_float if values.dtype.kind == "f" else default_int64
    if from_numpy(keys.dtype) is not x.dtype:
        raise Malformed(f"keys of {keys.dtype} for a tensor of {x.dtype}")
    lost = np.isnan(keys)
    of_nan = values[lost][:1]
    numbers, results = _sorted_unique(keys[~lost], values[~lost], last=False)

    def body(v: Expr) -> Expr:
        out = looked_up(v, numbers, results, const(default, kind))
        return select(ne(v, v), const(of_nan[0].item(), kind), out) if of_nan.size else out

    return unary(x, body, "encoded")


@op("OneHotEncoder", ML)
def one_hot_encoder(
    ctx: Context,
    x: Tensor,
    *,
    cats_int64s: Sequence[int] = (),
    cats_strings: Sequence[str] = (),
    zeros: int = 1,
) -> Tensor:
    """1 at the place of an element's category, on a new last axis; the last of equal categories counts.

    Unknown categories are all zeros, or refused when run where `zeros` is 0.
    """
    if cats_strings or not cats_int64s:
        raise Unsupported("categories that are strings, for a tensor of numbers")
    count = len(cats_int64s)
    cats = np.asarray(cats_int64s, np.int64)
    keys, places = _sorted_unique(cats, np.arange(count), last=True)

    at = unary(x, lambda v: looked_up(cast(v, I64), keys, places, const(-1)), "place")

    def body(*i: Expr) -> Expr:
        k = at[i[:-1]] if zeros else guard(at[i[:-1]], const(count), ctx.site)
        return select(eq(k, i[-1]), const(1, F32), const(0, F32))

    return compute((*x.shape, count), body, name="one_hot")
