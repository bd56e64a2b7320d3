"""Operators that draw random numbers.

They have no state. A run draws the same numbers as the run before it, and as every other run of a module
compiled with the same seed, on any backend and any number of threads. (In ONNX Runtime a session's first run
can be repeated, by a seed; its later runs go on from where the run before stopped, which takes a generator
that lives in the session and is shared by all who call it.) Whoever wants other numbers compiles with another
seed, or feeds random numbers as an input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusile.ir.expr import Expr, apply, as_expr, cast, const, minimum, select
from fusile.ir.tensor import Tensor, compute, reduce_max, reduce_sum, scan
from fusile.ir.types import BOOL, F32, F64, I64, DType
from fusile.kernels import mersenne, philox
from fusile.kernels.families.elementwise import dtype_of, filled
from fusile.kernels.registry import Context, Malformed, op
from fusile.kernels.shapes import flat_index, literal

Draw = Callable[[philox.Words, DType], Expr]


def _drawn(
    ctx: Context, shape: Sequence[Expr | int], to: DType, seed: float | None, draw: Draw, name: str
) -> Tensor:
    """A tensor of independent draws. Types below f32 are rounded from it."""
    if not to.is_float:
        raise Malformed(f"draws numbers of floating point, not of type {to}")
    extents = tuple(as_expr(n) for n in shape)
    inner = F64 if to is F64 else F32
    key = philox.key_of(seed, ctx.seed, ctx.site)
    return compute(
        extents,
        lambda *i: cast(draw(philox.words(key, flat_index(i, extents)), inner), to),
        name=name,
    )


def _between(low: float, high: float) -> Draw:
    """Even numbers, low <= x < high."""

    def draw(random: philox.Words, t: DType) -> Expr:
        return philox.uniform(random, t) * const(high - low, t) + const(low, t)

    return draw


def _around(mean: float, scale: float) -> Draw:
    return lambda random, t: philox.normal(random, t) * const(scale, t) + const(mean, t)


@op("RandomUniform")
def random_uniform(
    ctx: Context,
    *,
    shape: Sequence[int],
    dtype: int = 1,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Tensor:
    return _drawn(ctx, shape, dtype_of(dtype), seed, _between(low, high), "uniform")


@op("RandomUniformLike")
def random_uniform_like(
    ctx: Context,
    x: Tensor,
    *,
    dtype: int | None = None,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Tensor:
    to = x.dtype if dtype is None else dtype_of(dtype)
    return _drawn(ctx, x.shape, to, seed, _between(low, high), "uniform")


@op("RandomNormal")
def random_normal(
    ctx: Context,
    *,
    shape: Sequence[int],
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    return _drawn(ctx, shape, dtype_of(dtype), seed, _around(mean, scale), "normal")


@op("RandomNormalLike")
def random_normal_like(
    ctx: Context,
    x: Tensor,
    *,
    dtype: int | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    to = x.dtype if dtype is None else dtype_of(dtype)
    return _drawn(ctx, x.shape, to, seed, _around(mean, scale), "normal")


@op("Bernoulli")
def bernoulli(ctx: Context, x: Tensor, *, dtype: int | None = None, seed: float | None = None) -> Tensor:
    """1 with the probability that the element says, else 0."""
    to = x.dtype if dtype is None else dtype_of(dtype)
    inner = F64 if x.dtype is F64 else F32
    draws = _drawn(ctx, x.shape, inner, seed, _between(0.0, 1.0), "uniform")
    return compute(
        x.shape,
        lambda *i: select(draws[i] < cast(x[i], inner), const(1, to), const(0, to)),
        name="bernoulli",
    )


@op("Multinomial")
def multinomial(
    ctx: Context, x: Tensor, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None
) -> Tensor:
    """Classes drawn by the exponentials of their weights, row by row: the first whose cumulative weight is
    above an even number between 0 and the sum of all.
    """
    if x.rank != 2:
        raise Malformed(f"takes a matrix of weights, not rank {x.rank}")
    batch, classes = x.shape
    inner = F64 if x.dtype is F64 else F32
    top = compute((batch,), lambda b: reduce_max((classes,), lambda c: cast(x[b, c], inner)), name="top")
    start = filled((batch,), 0.0, inner, "start")

    def step(c: Expr, total: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        then = compute(
            (batch,), lambda b: total[b] + apply("exp", cast(x[b, c], inner) - top[b]), name="total"
        )
        return [then], [then]

    (cumulative,), (total,) = scan(classes, [start], step, name="weights")
    draws = _drawn(ctx, (batch, sample_size), inner, seed, _between(0.0, 1.0), "uniform")

    def pick(b: Expr, s: Expr) -> Expr:
        below = reduce_sum((classes,), lambda c: cast(cumulative[c, b] <= draws[b, s] * total[b], I64))
        return minimum(below, classes - 1)

    return compute((batch, sample_size), pick, name="class", dtype=dtype_of(dtype))


def _numbers(ctx: Context, x: Tensor, to: DType, seed: int | None) -> Tensor:
    """An even number for each element."""
    if seed is None:
        return _drawn(ctx, x.shape, to, None, _between(0.0, 1.0), "uniform")
    flat = mersenne.uniform(seed, x.size)
    return compute(x.shape, lambda *i: flat[flat_index(i, x.shape)], name="numbers")


@op("Dropout")
def dropout(
    ctx: Context,
    x: Tensor,
    ratio: Tensor | None = None,
    training: Tensor | None = None,
    *,
    seed: int | None = None,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """While training, elements become 0 with the probability `ratio` and the others larger, so that the mean
    stays; the mask says which are kept. With a seed the numbers are those of ONNX's own cases.
    """
    if training is None or literal(training) == 0 or literal(ratio) == 0:
        return (x, compute(x.shape, lambda *_: const(True, BOOL), name="mask"))[:outputs]
    inner = F64 if x.dtype is F64 else F32
    draws = _numbers(ctx, x, inner, seed)

    def only(t: Tensor) -> Expr:
        return t[tuple(const(0) for _ in range(t.rank))]

    chance = compute(
        (), lambda: const(0.5, inner) if ratio is None else cast(only(ratio), inner), name="ratio"
    )
    trains = compute((), lambda: only(training), name="trains")

    def kept(*i: Expr) -> Expr:
        return apply("not", trains[()]) | (cast(chance[()], draws.dtype) <= draws[i])

    mask = compute(x.shape, kept, name="mask")

    def value(*i: Expr) -> Expr:
        scale = select(trains[()], const(1.0, inner) / (const(1.0, inner) - chance[()]), const(1.0, inner))
        return select(mask[i], cast(cast(x[i], inner) * scale, x.dtype), const(0.0, x.dtype))

    return (compute(x.shape, value, name="dropout"), mask)[:outputs]
