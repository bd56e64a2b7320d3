"""The meaning of a tensor program, in numpy: the oracle that passes and printers are judged by (definitions
are judged by others' references).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fusile.errors import RunError
from fusile.ir.expr import Apply, Axis, Const, Dim, Expr, Guard, Load, Reduce, free
from fusile.ir.tensor import Branch, Compute, Extern, Loop, Program, Scan, Scatter, Stage, Tensor
from fusile.ir.types import BOOL, F32, F64, DType, numpy_dtype

Array = np.ndarray
Environment = dict[Expr, Any]


def _int_div(a: Array, b: Array, floor: bool) -> Array:
    safe = np.where(b == 0, 1, b)
    q = np.floor_divide(a, safe)
    if not floor:
        q = q + ((np.remainder(a, safe) != 0) & ((a < 0) != (safe < 0))).astype(q.dtype)
    return np.where(b == 0, 0, q).astype(a.dtype)


def _divide(a: Array, b: Array) -> Array:
    return a / b if a.dtype.kind in "fcV" else _int_div(a, b, False)


def _mod(a: Array, b: Array) -> Array:
    return (
        np.mod(a, b)
        if a.dtype.kind not in "iu"
        else np.where(b == 0, 0, np.mod(a, np.where(b == 0, 1, b))).astype(a.dtype)
    )


def _rem(a: Array, b: Array) -> Array:
    return (
        np.fmod(a, b)
        if a.dtype.kind not in "iu"
        else np.where(b == 0, 0, np.fmod(a, np.where(b == 0, 1, b))).astype(a.dtype)
    )


def _shift(a: Array, b: Array, left: bool) -> Array:
    width = a.dtype.itemsize * 8
    over = (b < 0) | (b >= width)
    safe = np.where(over, 0, b)
    shifted = np.left_shift(a, safe) if left else np.right_shift(a, safe)
    beyond = np.zeros_like(a) if left or a.dtype.kind == "u" else np.where(a < 0, -1, 0).astype(a.dtype)
    return np.where(over, beyond, shifted).astype(a.dtype)


def _power(a: Array, b: Array) -> Array:
    if a.dtype.kind not in "iu":
        return np.asarray(np.power(a, b))
    low = np.where(a == 1, 1, np.where(a == -1, np.where(b % 2 == 0, 1, -1), 0)).astype(a.dtype)
    return np.where(b < 0, low, np.power(a, np.maximum(b, 0))).astype(a.dtype)


def _choose(test: Array, yes: Array, no: Array) -> Array:
    return np.asarray(np.where(test, yes, no))


def _erf(a: Array) -> Array:
    values = np.vectorize(math.erf, otypes=[np.float64])(a.astype(np.float64))
    return np.asarray(values).astype(a.dtype)


NUMPY: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": _divide,
    "floordiv": lambda a, b: _int_div(a, b, True),
    "mod": _mod, "rem": _rem, "fma": lambda a, b, c: a * b + c, "neg": np.negative, "abs": np.abs,
    "min": lambda a, b: _choose(b < a, b, a), "max": lambda a, b: _choose(a < b, b, a),
    "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc, "round": np.rint,
    "exp": np.exp, "log": np.log, "sin": np.sin, "cos": np.cos, "tan": np.tan,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan,
    "tanh": np.tanh, "erf": _erf, "pow": _power,
    "lt": np.less, "le": np.less_equal, "eq": np.equal, "ne": np.not_equal,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "shl": lambda a, b: _shift(a, b, True), "shr": lambda a, b: _shift(a, b, False), "select": _choose,
}  # fmt: skip


def cast_array(a: Array, t: DType) -> Array:
    """The stated meaning of a cast, on arrays."""
    to = numpy_dtype(t)
    if t is BOOL:
        return np.asarray(a != 0)
    if t.is_int and (a.dtype.kind in "fV"):
        wide = a.astype(np.float64)
        low = -(2.0 ** (t.bits - 1)) if t.kind == "i" else 0.0
        high = 2.0 ** (t.bits - (t.kind == "i"))
        body = np.where(np.isnan(wide) | (wide <= low) | (wide >= high), 0, wide).astype(to)
        limits = np.iinfo(to) if t.bits >= 8 else None
        top = limits.max if limits else int(high) - 1
        return np.where(
            wide >= high, np.array(top).astype(to), np.where(wide <= low, np.array(int(low)).astype(to), body)
        )
    return a.astype(to)


def evaluate(e: Expr, env: Environment, read: Callable[[Load, list[Any]], Any]) -> Any:
    """An expression over arrays: `env` gives axes (as broadcastable index arrays) and dims, `read` the
    elements of tensors.
    """
    memo: Environment = env

    def visit(x: Expr) -> Any:
        if x in memo:
            return memo[x]
        match x:
            case Const():
                out: Any = np.asarray(x.value).astype(numpy_dtype(x.dtype))
            case Load():
                out = read(x, [visit(i) for i in x.index])
            case Guard():
                out, extent = visit(x.index), visit(x.extent)
                if np.any((out < 0) | (out >= extent)):
                    raise RunError(f"{x.site}: an index is out of range 0 .. {int(np.max(extent)) - 1}")
            case Apply(op="cast"):
                out = cast_array(np.asarray(visit(x.args[0])), x.dtype)
            case Apply(op="bitcast"):
                out = np.array(visit(x.args[0]), order="C").view(numpy_dtype(x.dtype))
            case Apply():
                out = np.asarray(NUMPY[x.op](*(np.asarray(visit(a)) for a in x.args)))
                if x.dtype is not BOOL and out.dtype != numpy_dtype(x.dtype):
                    out = out.astype(numpy_dtype(x.dtype))
            case _:
                raise TypeError(f"{type(x).__name__} has no value here: {x}")
        memo[x] = out
        return out

    with np.errstate(all="ignore"):
        return visit(e)


_REDUCERS: dict[str, Callable[..., Array]] = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}


Within = Callable[[Program, Sequence[Array], Mapping[Expr, Any]], list[Array]]
"""Runs a program within a program on its inputs and its parameters."""


class Interpreter:
    """Runs the stages of a program on numpy arrays, one after another; `within` runs the programs in them."""

    def __init__(self, dims: Mapping[Expr, int], within: Within | None = None) -> None:
        self.within: Within = within or run_program
        self.dims: Environment = dict(dims)
        self.arrays: dict[Tensor, Array] = {}
        self.fixed: Environment = {}

    def size(self, e: Expr) -> int:
        return int(evaluate(e, {**self.dims, **self.fixed}, self._read))

    def _read(self, e: Load, index: list[Any]) -> Any:
        array = self.arrays.get(e.source)
        if array is None:
            if e.source.data is not None:
                array = self.arrays[e.source] = np.asarray(e.source.data())
            elif e.source.stage is not None:
                self.run(e.source.stage)
                array = self.arrays[e.source]
            else:
                raise KeyError(f"{e.source.name} has no value")
        if not index:
            return array
        # Reads under a false select may lie outside; the value is not used.
        clipped = tuple(np.clip(i, 0, max(n - 1, 0)) for i, n in zip(index, array.shape, strict=True))
        if array.size == 0:
            return np.zeros(np.broadcast_shapes(*(np.shape(i) for i in clipped)), array.dtype)
        return array[clipped]

    def grid(self, axes: Sequence[Axis], body: Expr) -> Array:
        """`body` over all values of `axes`."""
        extents = [self.size(a.extent) for a in axes]
        env: Environment = {**self.dims, **self.fixed}
        for k, (a, n) in enumerate(zip(axes, extents, strict=True)):
            env[a] = np.arange(n, dtype=np.int64).reshape([-1 if j == k else 1 for j in range(len(axes))])
        return np.array(
            np.broadcast_to(evaluate(body, env, self._read), extents), dtype=numpy_dtype(body.dtype)
        )

    def run(self, stage: Stage) -> None:
        match stage:
            case Compute():
                self.arrays[stage.out] = self._compute(stage)
            case Scatter():
                self._scatter(stage)
            case Scan():
                self._scan(stage)
            case Branch():
                self._branch(stage)
            case Loop():
                self._loop(stage)
            case Extern():
                self._extern(stage)

    def _compute(self, stage: Compute) -> Array:
        r = stage.reduction
        if r is None:
            return self.grid(stage.axes, stage.body)
        if r.kind == "sum" and r.dtype in (F32, F64) and isinstance(r.body, Apply) and r.body.op == "mul":
            return self._contract(stage.axes, r)
        full = self.grid((*stage.axes, *r.axes), r.body)
        over = tuple(range(len(stage.axes), full.ndim))
        if r.kind in ("max", "min") and math.prod(full.shape[len(stage.axes) :]) == 0:
            return np.full(full.shape[: len(stage.axes)], identity(r.kind, stage.out.dtype), full.dtype)
        if r.kind in ("max", "min"):
            # The scalar operation, folded from its identity, passes over NaNs; numpy's would keep them.
            full = np.where(full != full, np.asarray(identity(r.kind, r.dtype)).astype(full.dtype), full)
            return np.asarray(_REDUCERS[r.kind](full, axis=over))
        return np.asarray(_REDUCERS[r.kind](full, axis=over, dtype=full.dtype))

    def _contract(self, axes: Sequence[Axis], r: Reduce) -> Array:
        """A sum of products, without ever holding all products at once."""
        assert isinstance(r.body, Apply)
        every = (*axes, *r.axes)
        number = {a: k for k, a in enumerate(every)}
        operands: list[Any] = []
        for factor in r.body.args:
            own = [a for a in every if a in free(factor)]
            operands += [self.grid(own, factor), [number[a] for a in own]]
        missing = [a for a in r.axes if not any(number[a] in labels for labels in operands[1::2])]
        if missing:
            scale = math.prod(self.size(a.extent) for a in missing)
            operands[0] = operands[0] * np.asarray(scale, operands[0].dtype)
        present = [a for a in axes if any(number[a] in labels for labels in operands[1::2])]
        out = np.einsum(*operands, [number[a] for a in present], optimize=True)
        shape = [self.size(a.extent) if a in present else 1 for a in axes]
        return np.array(np.broadcast_to(out.reshape(shape), [self.size(a.extent) for a in axes]))

    def _scatter(self, stage: Scatter) -> None:
        out = self.grid(stage.axes, stage.initial)
        index = [self.grid(stage.updates, i).ravel() for i in stage.index]
        value, test = (
            self.grid(stage.updates, stage.value).ravel(),
            self.grid(stage.updates, stage.condition).ravel(),
        )
        combine = {"add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}.get(stage.kind)
        for k in np.flatnonzero(test):
            at = tuple(i[k] for i in index)
            out[at] = value[k] if combine is None else combine(out[at], value[k])
        self.arrays[stage.out] = out

    def _scan(self, stage: Scan) -> None:
        steps = self.size(stage.time.extent)
        state = [self.grid_of(c.initial) for c in stage.carried]
        collected: list[list[Array]] = [[] for _ in stage.collected]
        for t in range(steps):
            self.fixed[stage.time] = np.int64(t)
            for c, held in zip(stage.carried, state, strict=True):
                self.arrays[c.now] = held
            for s in stage.body:
                self.run(s)
            for rows, (_, inner) in zip(collected, stage.collected, strict=True):
                rows.append(self.grid_of(inner))
            state = [self.grid_of(c.then) for c in stage.carried]
        self.fixed.pop(stage.time, None)
        for rows, (outer, inner) in zip(collected, stage.collected, strict=True):
            shape = tuple(self.size(e) for e in inner.shape)
            self.arrays[outer] = np.stack(rows) if rows else np.zeros((0, *shape), numpy_dtype(inner.dtype))
        for outer, c in stage.finals:
            self.arrays[outer] = state[[x.now for x in stage.carried].index(c.now)]

    def _branch(self, stage: Branch) -> None:
        chosen = stage.then if self.grid_of(stage.condition).ravel()[0] else stage.other
        results = self.within(chosen.program, [self.grid_of(t) for t in chosen.captured], self.dims)
        self._bind(stage, results)

    def _loop(self, stage: Loop) -> None:
        states = [self.grid_of(t) for t in stage.initial]
        captured = [self.grid_of(t) for t in stage.body.captured]
        trip = math.inf if stage.trip is None else self.size(stage.trip)
        going = stage.start is None or bool(self.grid_of(stage.start).ravel()[0])
        rows: list[list[Array]] = [[] for _ in stage.collected]
        steps = 0
        while going and steps < trip:
            steps += 1
            inside: Environment = {**self.dims, stage.step: steps}
            inside.update((d, states[k].shape[a]) for d, k, a in stage.moving)
            answers = self.within(stage.body.program, [*states, *captured], inside)
            if stage.conditional:
                going, answers = bool(answers[0].ravel()[0]), answers[1:]
            states, new = answers[: len(states)], answers[len(states) :]
            for held, a in zip(rows, new, strict=True):
                held.append(a)
        if any(len({a.shape for a in held}) > 1 for held in rows):
            raise RunError("what a loop collects changes its shape", node=stage.origin)
        stacked = [
            np.stack(held) if held else np.zeros([0] * t.rank, numpy_dtype(t.dtype))
            for held, t in zip(rows, stage.collected, strict=True)
        ]
        self._bind(stage, [*states, *stacked])

    def _bind(self, stage: Branch | Loop, results: Sequence[Array]) -> None:
        """Results, and the sizes that the stage finds out."""
        sizes: dict[Expr, int] = {}
        for t, a in zip(stage.outs, results, strict=False):
            known = [self.size(e) if e not in stage.defines else n for e, n in zip(t.shape, a.shape)]
            self.arrays[t] = a if a.size else a.reshape(known)
            sizes.update({e: n for e, n in zip(t.shape, a.shape, strict=True) if e in stage.defines})
        if stage.sizes is not None:
            self.arrays[stage.sizes] = np.array([sizes[d] for d in stage.defines], np.int64)

    def _extern(self, stage: Extern) -> None:
        answers = stage.meaning(*(self.grid_of(t) for t in stage.reads))
        for t, array in zip(stage.outs, answers, strict=True):
            shape = tuple(self.size(e) for e in t.shape)
            self.arrays[t] = np.ascontiguousarray(array, dtype=numpy_dtype(t.dtype)).reshape(shape)

    def grid_of(self, t: Tensor) -> Array:
        if t not in self.arrays:
            self.arrays[t] = np.asarray(t.data()) if t.data is not None else self._run_and_get(t)
        return self.arrays[t]

    def _run_and_get(self, t: Tensor) -> Array:
        assert t.stage is not None, f"{t.name} has no value"
        self.run(t.stage)
        return self.arrays[t]


def identity(kind: str, t: DType) -> float | int | bool:
    """The neutral element of a reduction."""
    if kind in ("sum", "prod"):
        return 0 if kind == "sum" else 1
    if t.is_bool:
        return kind == "min"
    if t.is_int:
        low, high = (
            (-(1 << (t.bits - 1)), (1 << (t.bits - 1)) - 1) if t.kind == "i" else (0, (1 << t.bits) - 1)
        )
        return low if kind == "max" else high
    return -math.inf if kind == "max" else math.inf


def bind_dims(program: Program, feeds: Sequence[Array]) -> dict[Expr, int]:
    """The values of the symbolic dims of a program's inputs. Raises RunError where a shape does not fit."""
    return bind_sizes(program.inputs, feeds)


def bind_sizes(inputs: Sequence[Tensor], feeds: Sequence[Array]) -> dict[Expr, int]:
    """The values of the symbolic dims of `inputs`. Raises RunError where a shape does not fit."""
    dims: dict[Expr, int] = {}
    for t, a in zip(inputs, feeds, strict=True):
        if a.ndim != t.rank:
            raise RunError(f"input {t.name} has rank {t.rank}, was fed rank {a.ndim}")
        for e, n in zip(t.shape, a.shape, strict=True):
            if isinstance(e, Dim):
                dims.setdefault(e, n)
    for t, a in zip(inputs, feeds, strict=True):
        for k, (e, n) in enumerate(zip(t.shape, a.shape, strict=True)):
            if int(evaluate(e, dict(dims), lambda *_: None)) != n:
                raise RunError(f"input {t.name}, dimension {k}: expected {e}, was fed {n}")
    return dims


def run_program(
    program: Program, feeds: Sequence[Array], given: Mapping[Expr, Any] | None = None
) -> list[Array]:
    """The outputs of a program on numpy inputs, in order; `given` are its parameters."""
    dims: dict[Expr, Any] = {d: np.int64((given or {})[d]) for d in program.parameters}
    machine = Interpreter(dims or bind_dims(program, feeds))
    machine.arrays.update(zip(program.inputs, feeds, strict=True))
    for d in program.dim_definitions:
        machine.dims[d.dim] = np.int64(machine.size(d.value))
        if machine.dims[d.dim] < 0:
            raise RunError(f"{d.origin}: a size is negative ({machine.dims[d.dim]})")
    for r in program.requirements:
        if not bool(evaluate(r.condition, {**machine.dims}, machine._read)):
            raise RunError(f"{r.origin}: {r.reason}")
    for s in program.stages:
        machine.run(s)
    return [machine.grid_of(t) for t in program.outputs]
