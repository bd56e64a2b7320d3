"""Shape arithmetic: small values that are known as expressions over dims while the source is printed.

A host array holds numbers and integer expressions over dims (`fusile.ir.expr`). Chains such as
Shape -> Gather -> Mul -> Concat -> Reshape never become tensor code; they print as `batch * 12`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from fusile.graph.recognise import integer
from fusile.ir import expr as ex

MOST = 64
"""Elements of the largest host array."""

Scalar: TypeAlias = int | float | bool | ex.Expr


@dataclass(frozen=True, eq=False, slots=True)
class HostArray:
    """Elements (numbers or expressions) in an object array, and the ONNX type they have."""

    elements: np.ndarray
    dtype: ir.DataType

    @property
    def is_constant(self) -> bool:
        return not any(isinstance(e, ex.Expr) for e in self.elements.ravel())

    @property
    def flat(self) -> list[Scalar]:
        return list(self.elements.ravel())

    def numpy(self) -> np.ndarray:
        """The constant elements in their own type."""
        return np.array(self.elements.tolist(), dtype=self.dtype.numpy()).reshape(self.elements.shape)


def array(values: Any, dtype: ir.DataType, shape: tuple[int, ...] | None = None) -> HostArray:
    """A host array of numbers or expressions."""
    flat = [_plain(v) for v in np.asarray(values, dtype=object).ravel().tolist()]
    own = np.shape(values) if shape is None else shape
    elements = np.empty(len(flat), dtype=object)
    for index, value in enumerate(flat):
        elements[index] = value
    return HostArray(elements.reshape(own), dtype)


def _plain(value: Any) -> Scalar:
    if isinstance(value, ex.Const):
        return value.value
    if isinstance(value, np.generic):
        return value.item()  # type: ignore[no-any-return]
    return value  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class HostNode:
    """A node whose known inputs are host arrays (None where absent)."""

    node: ir.Node
    inputs: Sequence[HostArray | None]

    def at(self, index: int) -> HostArray:
        """An input that must be known."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise Unknown
        return found

    def numbers(self, index: int) -> list[int]:
        """An input that must be constant integers."""
        found = self.at(index)
        if not found.is_constant:
            raise Unknown
        return [int(v) for v in found.flat]  # type: ignore[arg-type]

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] is not None


class Unknown(Exception):
    """The node's values are not known while printing."""


Rule: TypeAlias = Callable[[HostNode], Sequence[np.ndarray]]


def evaluate(node: ir.Node, inputs: Sequence[HostArray | None]) -> list[HostArray] | None:
    """The outputs of a node as host arrays, or None where they are not known or too large."""
    rule = RULES.get(node.op_type)
    if rule is None or node.domain not in ("", "fusile"):
        return None
    if any(v is not None and h is None for v, h in zip(node.inputs, inputs, strict=True)):
        return None
    try:
        results = rule(HostNode(node, inputs))
    except (Unknown, TypeError, IndexError, ValueError, ZeroDivisionError, OverflowError):
        return None
    out = []
    for value, result in zip(node.outputs, results, strict=False):
        if result.size > MOST or value.dtype is None:
            return None
        made = array(result, value.dtype, result.shape)
        if value.dtype.is_floating_point() and not made.is_constant:
            return None
        out.append(made)
    return out


def trunc_div(a: Scalar, b: Scalar) -> Scalar:
    """Integer division as ONNX does it, towards zero; floats divide."""
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    return _plain(ex.apply("div", ex.as_expr(a), ex.as_expr(b)))


def equal(a: Scalar, b: Scalar) -> Scalar:
    """a == b where that is decided, with sizes taken as positive."""
    if not isinstance(a, ex.Expr) and not isinstance(b, ex.Expr):
        return a == b
    for first, second in ((a, b), (b, a)):
        below = _plain(ex.apply("lt", ex.as_expr(first), ex.as_expr(second)))
        if below is True:
            return False
    same = _plain(ex.apply("eq", ex.as_expr(a), ex.as_expr(b)))
    return same


def _chosen(test: Scalar, yes: Scalar, no: Scalar) -> Scalar:
    if isinstance(test, ex.Expr):
        if yes is no:
            return yes
        raise Unknown
    return yes if test else no


def _decided(function: Callable[[Scalar, Scalar], Scalar]) -> Callable[[Scalar, Scalar], bool]:
    def wrapped(a: Scalar, b: Scalar) -> bool:
        found = _plain(function(a, b))
        if isinstance(found, ex.Expr):
            raise Unknown
        return bool(found)

    return wrapped


def _elementwise(function: Callable[..., Any]) -> Rule:
    spread = np.frompyfunc(function, function.__code__.co_argcount, 1)

    def rule(n: HostNode) -> list[np.ndarray]:
        arrays = [n.at(i).elements for i in range(len(n.node.inputs))]
        out = spread(*arrays)
        if n.at(0).is_constant and n.at(0).dtype is ir.DataType.FLOAT and not isinstance(out, bool):
            out = np.asarray(out, dtype=object)
            out = np.array(
                [np.float32(v) if isinstance(v, float) else v for v in out.ravel()], dtype=object
            ).reshape(out.shape)
        return [np.asarray(out, dtype=object)]

    return rule


def _folded(function: Callable[[Scalar, Scalar], Scalar]) -> Rule:
    """Max, Min, Sum: any number of operands."""
    spread = np.frompyfunc(function, 2, 1)

    def rule(n: HostNode) -> list[np.ndarray]:
        out = n.at(0).elements
        for i in range(1, len(n.node.inputs)):
            out = np.asarray(spread(out, n.at(i).elements), dtype=object)
        return [out]

    return rule


def _reduced(function: Callable[[Scalar, Scalar], Scalar], start: int | None) -> Rule:
    def rule(n: HostNode) -> list[np.ndarray]:
        x = n.at(0).elements
        axes = n.numbers(1) if n.has(1) else list(range(x.ndim))
        if x.ndim != 1 or [a % 1 for a in axes] != [0]:
            raise Unknown
        total: Scalar | None = start
        for element in x.tolist():
            total = element if total is None else _plain(function(total, element))
        if total is None:
            raise Unknown
        keep = integer(n.node, "keepdims", 1)
        return [np.array([total] if keep else total, dtype=object)]

    return rule


def _shape(n: HostNode) -> list[np.ndarray]:
    raise Unknown  # the printer knows the dims of values; see `Printer._shape`


def _gather(n: HostNode) -> list[np.ndarray]:
    index = np.array(n.numbers(1), dtype=np.int64).reshape(n.at(1).elements.shape)
    return [np.asarray(np.take(n.at(0).elements, index, axis=integer(n.node, "axis", 0)), dtype=object)]


def _concat(n: HostNode) -> list[np.ndarray]:
    parts = [n.at(i).elements for i in range(len(n.node.inputs))]
    return [np.concatenate(parts, axis=integer(n.node, "axis", 0))]


def _slice(n: HostNode) -> list[np.ndarray]:
    x = n.at(0).elements
    starts, stops = n.numbers(1), n.numbers(2)
    axes = n.numbers(3) if n.has(3) else list(range(len(starts)))
    steps = n.numbers(4) if n.has(4) else [1] * len(starts)
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        size = x.shape[axis]
        first = max(start + size, 0) if start < 0 else start
        last: int | None = stop + size if stop < 0 else stop
        if step < 0 and last is not None and last < 0:
            last = None
        picked: list[slice] = [slice(None)] * x.ndim
        picked[axis] = slice(min(first, size), last if last is None else max(last, 0), step)
        x = x[tuple(picked)]
    return [x]


def _reshape(n: HostNode) -> list[np.ndarray]:
    x, wanted = n.at(0).elements, n.numbers(1)
    if not integer(n.node, "allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return [x.reshape(wanted)]


def _unsqueeze(n: HostNode) -> list[np.ndarray]:
    x, axes = n.at(0).elements, n.numbers(1)
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = np.expand_dims(x, axis)
    return [x]


def _squeeze(n: HostNode) -> list[np.ndarray]:
    x = n.at(0).elements
    return [np.squeeze(x, tuple(n.numbers(1)) if n.has(1) else None)]


def _split(n: HostNode) -> list[np.ndarray]:
    x, axis = n.at(0).elements, integer(n.node, "axis", 0)
    if n.has(1):
        return list(np.split(x, np.cumsum(n.numbers(1))[:-1], axis=axis))
    count, step = len(n.node.outputs), -(-x.shape[axis] // len(n.node.outputs))
    return list(np.split(x, [step * i for i in range(1, count)], axis=axis))


def _cast(n: HostNode) -> list[np.ndarray]:
    x, to = n.at(0), ir.DataType(integer(n.node, "to", 1))
    if x.is_constant:
        data = x.numpy()
        if to.is_integer() and data.dtype.kind == "f" and not np.all(np.isfinite(data)):
            raise Unknown
        return [data.astype(to.numpy()).astype(object)]
    if not (to.is_integer() and x.dtype.is_integer()):
        raise Unknown
    return [x.elements]


def _constant_of_shape(n: HostNode) -> list[np.ndarray]:
    shape = n.numbers(0)
    if math.prod(shape) > MOST:
        raise Unknown
    held = n.node.attributes.get("value")
    fill = held.as_tensor().numpy().ravel()[0].item() if held is not None else 0.0
    return [np.full(shape, fill, dtype=object)]


def _range(n: HostNode) -> list[np.ndarray]:
    start, stop, step = (n.numbers(i)[0] for i in range(3))
    if n.at(0).dtype.is_floating_point() or not step or (stop - start) // step > MOST:
        raise Unknown
    return [np.array(range(start, stop, step), dtype=object)]


def _expand(n: HostNode) -> list[np.ndarray]:
    x = n.at(0).elements
    shape = np.broadcast_shapes(x.shape, tuple(n.numbers(1)))
    if math.prod(shape) > MOST:
        raise Unknown
    return [np.broadcast_to(x, shape)]


def _size(n: HostNode) -> list[np.ndarray]:
    return [np.array(n.at(0).elements.size, dtype=object)]


RULES: Mapping[str, Rule] = {
    "Identity": lambda n: [n.at(0).elements],
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Split": _split,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Expand": _expand,
    "Transpose": lambda n: [np.transpose(n.at(0).elements, _perm(n))],
    "Tile": lambda n: [np.tile(n.at(0).elements, n.numbers(1))],
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(lambda a, b: trunc_div(a, b)),
    "Neg": _elementwise(lambda a: -a),
    "Abs": _elementwise(lambda a: ex.apply("abs", a) if isinstance(a, ex.Expr) else abs(a)),
    "Floor": _elementwise(lambda a: float(math.floor(a))),
    "Ceil": _elementwise(lambda a: float(math.ceil(a))),
    "Equal": _elementwise(lambda a, b: equal(a, b)),
    "Less": _elementwise(_decided(lambda a, b: a < b)),
    "LessOrEqual": _elementwise(_decided(lambda a, b: a <= b)),
    "Greater": _elementwise(_decided(lambda a, b: a > b)),
    "GreaterOrEqual": _elementwise(_decided(lambda a, b: a >= b)),
    "Not": _elementwise(lambda a: not a),
    "And": _elementwise(lambda a, b: a and b),
    "Or": _elementwise(lambda a, b: a or b),
    "Where": _elementwise(_chosen),
    "Max": _folded(lambda a, b: _plain(ex.maximum(a, b)) if _either(a, b) else max(a, b)),
    "Min": _folded(lambda a, b: _plain(ex.minimum(a, b)) if _either(a, b) else min(a, b)),
    "ReduceProd": _reduced(lambda a, b: a * b, 1),
    "ReduceSum": _reduced(lambda a, b: a + b, 0),
}


def _either(a: Scalar, b: Scalar) -> bool:
    return isinstance(a, ex.Expr) or isinstance(b, ex.Expr)


def _perm(n: HostNode) -> list[int]:
    held = n.node.attributes.get("perm")
    return list(held.as_ints()) if held is not None else list(range(n.at(0).elements.ndim))[::-1]
