"""Gradients of tensor programs: reverse-mode differentiation of Compute stages.

For `out[i] = sum(k) e(i, k)` the derivative of `e` by every element that it reads is an expression (A.
Griewank and A. Walther, Evaluating Derivatives, 2nd ed., chapter 3: adjoints run through the expression
backwards). An element t[j] receives the sum of those over all (i, k) where f(i, k) = j is what was read.
Where the index map f can be turned round (shifts, strides, windows, digits of a reshape), that is a sum
again, and so a matrix product's gradient is a matrix product; where it cannot (positions out of data), the
contributions are scattered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fusile.ir import index as ix
from fusile.ir.expr import (
    Apply,
    Axis,
    Expr,
    Load,
    Reduce,
    apply,
    as_expr,
    cast,
    const,
    eq,
    free,
    load,
    loads,
    nodes,
    reduce_over,
    select,
    substitute,
)
from fusile.ir.tensor import Compute, Stage, Tensor, compute, reduce_sum, reduction, scatter, stage_reads


class NotDifferentiable(Exception):
    """What has no derivative here; the reason is its message."""


def gradients(y: Tensor, xs: Sequence[Tensor]) -> list[Tensor]:
    """The derivatives of the sum of all elements of `y` by the elements of each of `xs`, which count as
    independent of each other. Zeros for what `y` does not depend on.

    Raises NotDifferentiable.
    """
    for t in (y, *xs):
        if not t.dtype.is_float:
            raise NotDifferentiable(f"{t.name} is of type {t.dtype}")
    stages, depends = _between(y, set(xs))
    parts: dict[Tensor, list[Tensor]] = {y: [compute(y.shape, lambda *_: const(1.0, y.dtype), name="one")]}
    for stage in reversed(stages):
        if not any(t in parts for t in stage.outs):
            continue
        if not isinstance(stage, Compute):
            raise NotDifferentiable(f"{stage.outs[0].name} is a recurrence or a choice by data")
        if stage.out.dtype.is_float:
            _pull(stage, _total(stage.out, parts.pop(stage.out)), depends, parts)
    return [_total(x, parts.get(x, [])) for x in xs]


def _between(y: Tensor, xs: set[Tensor]) -> tuple[list[Stage], set[Tensor]]:
    """The stages from `xs` to `y` in order, and the tensors among them that depend on `xs`."""
    depends = set(xs)
    order: list[Stage] = []
    seen: set[Stage] = set()
    stack = [(y, False)]
    while stack:
        t, done = stack.pop()
        if t in xs or t.stage is None:
            continue
        if done:
            if any(r in depends for r in stage_reads(t.stage)):
                depends.update(t.stage.outs)
                order.append(t.stage)
        elif t.stage not in seen:
            seen.add(t.stage)
            stack.append((t, True))
            stack.extend((r, False) for r in stage_reads(t.stage))
    return order, depends


def replayed(y: Tensor, given: Mapping[Tensor, Tensor]) -> Tensor:
    """`y` worked out anew, with other tensors in place of those it is made of.

    Raises NotDifferentiable where that takes more than expressions.
    """
    made = dict(given)

    def read(x: Load) -> Expr:
        return load(made[x.source], x.index) if x.source in made else x

    for stage in _between(y, set(given))[0]:
        if not isinstance(stage, Compute):
            raise NotDifferentiable(f"{stage.outs[0].name} is a recurrence or a choice by data")
        body = stage.body
        if isinstance(body, Reduce):
            body = reduce_over(body.kind, body.axes, substitute(body.body, {}, read))
        else:
            body = substitute(body, {}, read)
        again = Tensor(stage.out.name, stage.out.dtype, stage.out.shape)
        again.stage = Compute(again, stage.axes, body)
        made[stage.out] = again
    return made.get(y, y)


def _total(t: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """What a tensor's readers say about it, added up."""
    if len(parts) == 1:
        return parts[0]

    def body(*i: Expr) -> Expr:
        out: Expr = const(0.0, t.dtype)
        for n, p in enumerate(parts):
            out = p[i] if n == 0 else out + p[i]
        return out

    return compute(t.shape, body, name="gradient")


def _pull(stage: Compute, g: Tensor, depends: set[Tensor], parts: dict[Tensor, list[Tensor]]) -> None:
    """Hand the gradient of a stage's result on to what the stage reads."""
    r = stage.reduction
    index = tuple(as_expr(0) if ix.number(a.extent) == 1 else a for a in stage.axes)
    seed = g[index]
    axes = stage.axes
    body = stage.body
    if r is not None:
        axes, body = (*axes, *r.axes), r.body
        seed = _through(stage, seed, index)
    for x, value in _adjoints(body, seed, depends).items():
        parts.setdefault(x.source, []).append(_turned(x, axes, value))


def _through(stage: Compute, seed: Expr, index: tuple[Expr, ...]) -> Expr:
    """The gradient of each term of a reduction."""
    r = stage.reduction
    assert r is not None
    if r.kind == "sum":
        return seed
    out = stage.out[index]
    if r.kind == "prod":
        return seed * out / r.body

    def hits(*i: Expr) -> Expr:
        """How many terms are the largest: they share."""

        def hit(*k: Expr) -> Expr:
            places: dict[Expr, Expr] = dict(zip((*stage.axes, *r.axes), (*i, *k), strict=True))
            return cast(eq(substitute(r.body, places), stage.out[i]), out.dtype)

        return reduction("sum", [a.extent for a in r.axes], hit)

    count = compute(stage.out.shape, hits, name="hits")
    return select(eq(r.body, out), seed / count[index], const(0.0, out.dtype))


# ---- expressions ---------------------------------------------------------------------------------

Rule = Callable[[Apply, Expr], Sequence[Expr | None]]
"""The adjoints of an operation's arguments (None: no derivative by it), given that of its result."""


def _one(e: Expr) -> Expr:
    return const(1.0, e.dtype)


def _sign(a: Expr) -> Expr:
    zero = const(0.0, a.dtype)
    return select(zero < a, _one(a), select(a < zero, -_one(a), zero))


def _nothing(e: Expr) -> Expr:
    return const(0.0, e.dtype)


def _pow(e: Apply, g: Expr) -> Sequence[Expr]:
    a, b = e.args
    by_base = g * b * apply("pow", a, b - _one(b))
    log = apply("log", select(_nothing(a) < a, a, _one(a)))
    return by_base, g * e * log


RULES: Mapping[str, Rule] = {
    "add": lambda e, g: (g, g),
    "sub": lambda e, g: (g, -g),
    "mul": lambda e, g: (g * e.args[1], g * e.args[0]),
    "div": lambda e, g: (g / e.args[1], -(g * e / e.args[1])),
    "fma": lambda e, g: (g * e.args[1], g * e.args[0], g),
    "neg": lambda e, g: (-g,),
    "abs": lambda e, g: (g * _sign(e.args[0]),),
    "min": lambda e, g: (
        select(e.args[1] < e.args[0], _nothing(g), g),
        select(e.args[1] < e.args[0], g, _nothing(g)),
    ),
    "max": lambda e, g: (
        select(e.args[0] < e.args[1], _nothing(g), g),
        select(e.args[0] < e.args[1], g, _nothing(g)),
    ),
    "sqrt": lambda e, g: (g / (e + e),),
    "exp": lambda e, g: (g * e,),
    "log": lambda e, g: (g / e.args[0],),
    "sin": lambda e, g: (g * apply("cos", e.args[0]),),
    "cos": lambda e, g: (-(g * apply("sin", e.args[0])),),
    "tan": lambda e, g: (g * (_one(e) + e * e),),
    "asin": lambda e, g: (g / apply("sqrt", _one(e) - e.args[0] * e.args[0]),),
    "acos": lambda e, g: (-(g / apply("sqrt", _one(e) - e.args[0] * e.args[0])),),
    "atan": lambda e, g: (g / (_one(e) + e.args[0] * e.args[0]),),
    "tanh": lambda e, g: (g * (_one(e) - e * e),),
    "erf": lambda e, g: (
        g * apply("exp", -(e.args[0] * e.args[0])) * const(2.0 / math.sqrt(math.pi), e.dtype),
    ),
    "pow": _pow,
    "mod": lambda e, g: (g, -(g * apply("floor", e.args[0] / e.args[1]))),
    "rem": lambda e, g: (g, -(g * apply("trunc", e.args[0] / e.args[1]))),
    "select": lambda e, g: (
        None,
        select(e.args[0], g, _nothing(g)),
        select(e.args[0], _nothing(g), g),
    ),
    "cast": lambda e, g: (cast(g, e.args[0].dtype),),
    **{op: lambda e, g: (None,) for op in ("floor", "ceil", "trunc", "round")},
}


def _adjoints(body: Expr, seed: Expr, depends: set[Tensor]) -> dict[Load, Expr]:
    """What each read of a tensor in `depends` receives: the seed times the derivative of the body by it."""
    matters = {n for n in nodes(body) if n.dtype.is_float and any(x.source in depends for x in loads(n))}
    found: dict[Load, Expr] = {}
    adjoint: dict[Expr, Expr] = {body: seed}
    for e in _parents_first(body, matters):
        g = adjoint.get(e)
        if g is None:
            continue
        if isinstance(e, Load):
            if e.source in depends:
                found[e] = g
            continue
        if not isinstance(e, Apply) or e.op not in RULES:
            what = e.op if isinstance(e, Apply) else type(e).__name__
            raise NotDifferentiable(f"the operation {what} has no derivative")
        for a, part in zip(e.args, RULES[e.op](e, g), strict=True):
            if part is not None and a in matters:
                adjoint[a] = adjoint[a] + part if a in adjoint else part
    return found


def _parents_first(body: Expr, matters: set[Expr]) -> list[Expr]:
    """The nodes that matter, each before all of its arguments."""
    order: list[Expr] = []
    seen: set[Expr] = set()

    def visit(e: Expr) -> None:
        if e in seen or e not in matters:
            return
        seen.add(e)
        if not isinstance(e, Load):
            for c in e.children:
                visit(c)
        order.append(e)

    visit(body)
    return order[::-1]


# ---- index maps ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Solution:
    """The axes of a read, in terms of the position that it reads and of axes that are left."""

    places: dict[Expr, Expr] = field(default_factory=dict)
    conditions: list[Expr] = field(default_factory=list)

    def set(self, a: Axis, value: Expr) -> None:
        for known, e in self.places.items():
            self.places[known] = substitute(e, {a: value})
        self.conditions = [substitute(c, {a: value}) for c in self.conditions]
        self.places[a] = value


def _turned(x: Load, axes: Sequence[Axis], value: Expr) -> Tensor:
    """t[j] = the sum of `value` over all points of the axes where the read x is of t[j]."""
    t: Tensor = x.source
    wide = [a for a in axes if ix.number(a.extent) != 1]
    units: dict[Expr, Expr] = {a: as_expr(0) for a in axes if ix.number(a.extent) == 1}
    index = [substitute(i, units) for i in x.index]
    value = substitute(value, units)
    equations = _equations(index, t, wide)
    if equations is None:
        return _scattered(t, index, wide, value)

    def body(*j: Expr) -> Expr:
        solution = _solve(equations, j, t, wide)
        left = [a for a in wide if a not in solution.places]

        def term(*k: Expr) -> Expr:
            rest: dict[Expr, Expr] = dict(zip(left, k, strict=True))
            places = {a: substitute(e, rest) for a, e in solution.places.items()}
            out = substitute(value, {**rest, **places})
            for c in solution.conditions:
                out = select(substitute(c, rest), out, _nothing(out))
            return out

        return reduce_sum([a.extent for a in left], term) if left else term()

    return compute(t.shape, body, name="gradient")


def _scattered(t: Tensor, index: Sequence[Expr], axes: Sequence[Axis], value: Expr) -> Tensor:
    def at(e: Expr, u: Sequence[Expr]) -> Expr:
        return substitute(e, dict(zip(axes, u, strict=True)))

    return scatter(
        lambda *_: const(0.0, t.dtype), t.shape, [a.extent for a in axes],
        lambda *u: [at(i, u) for i in index], lambda *u: at(value, u), kind="add", name="gradient",
    )  # fmt: skip


Equation = tuple[range, Expr]
"""Dimensions whose row-major position is an expression that is linear in the axes."""


def _linear(e: Expr, axes: Sequence[Axis]) -> bool:
    rest = e
    for a in axes:
        if a in free(e):
            c = ix.coefficient(e, a)
            if c is None or free(c) & set(axes):
                return False
            rest = rest - a * c
    return not free(rest) & set(axes) and not any(isinstance(n, Load) for n in nodes(e))


def _equations(index: Sequence[Expr], t: Tensor, axes: Sequence[Axis]) -> list[Equation] | None:
    """The index map as linear equations: dimension by dimension, digits of one number together. None where
    there are others.
    """
    out: list[Equation] = []
    d = 0
    while d < len(index):
        for end in range(d + 1, len(index) + 1):
            flat: Expr = as_expr(0)
            for i, n in zip(index[d:end], t.shape[d:end], strict=True):
                flat = flat * n + i
            if _linear(flat, axes):
                out.append((range(d, end), flat))
                d = end
                break
        else:
            return None
    return out


def _solve(equations: Sequence[Equation], j: Sequence[Expr], t: Tensor, axes: Sequence[Axis]) -> _Solution:
    """Axes from equations: first those that determine theirs, then windows."""
    solution = _Solution()
    waiting = list(equations)
    for windows in (False, True):
        for equation in list(waiting):
            dims, e = equation
            e = substitute(e, solution.places)
            open_ = [a for a in axes if a in free(e) and a not in solution.places]
            strides = {a: _stride(e, a) for a in open_}
            chain = _digits(open_, strides)
            if chain is None and not windows:
                continue
            waiting.remove(equation)
            where: Expr = as_expr(0)
            for k in dims:
                where = where * t.shape[k] + j[k]
            rest = e
            for a in open_:
                rest = rest - a * strides[a]
            if not open_:
                solution.conditions.append(eq(where, rest))
            elif chain is not None:
                whole = ix.product(t.shape[k] for k in dims)
                _by_digits(solution, chain, strides, where - rest, ix.number(rest) == 0, whole)
            else:
                _by_window(solution, open_, strides, where, e)
    return solution


def _stride(e: Expr, a: Axis) -> Expr:
    found = ix.coefficient(e, a)
    assert found is not None
    return found


def _digits(axes: Sequence[Axis], strides: Mapping[Axis, Expr]) -> list[Axis] | None:
    """The axes from the innermost outwards, where they are the digits of a number: each stride is the one
    before it times that axis's extent. None where they are not.
    """
    left = list(axes)
    order: list[Axis] = []
    while left:
        if not order:
            least = [a for a in left if ix.number(strides[a]) is not None]
            if not least:
                first = left[0] if len(left) == 1 else None
            else:
                first = min(least, key=lambda a: abs(ix.number(strides[a]) or 0))
            if first is None:
                return None
        else:
            last = order[-1]
            wanted = ix.poly(strides[last] * last.extent)
            first = next((a for a in left if ix.poly(strides[a]) == wanted), None)
            if first is None:
                return None
        order.append(first)
        left.remove(first)
    return order


def _by_digits(
    solution: _Solution,
    chain: Sequence[Axis],
    strides: Mapping[Axis, Expr],
    where: Expr,
    aligned: bool,
    whole: Expr,
) -> None:
    """Axes that are the digits of a number: unless they count through all of its values, it may have none."""
    if not chain:
        return
    first = strides[chain[0]]
    if (ix.number(first) or 0) < 0:
        where, first = -where, -first
    out = where
    complete = (
        aligned and ix.number(first) == 1 and ix.poly(ix.product(a.extent for a in chain)) == ix.poly(whole)
    )
    if ix.number(first) != 1:
        solution.conditions.append(eq(where % first, 0))
        out = where // first
    if not complete:
        solution.conditions.append(as_expr(0) <= out)
        solution.conditions.append(out < ix.product(a.extent for a in chain))
    for k, a in enumerate(chain):
        solution.set(a, out if k == len(chain) - 1 else out % a.extent)
        out = out // a.extent


def _by_window(
    solution: _Solution, axes: Sequence[Axis], strides: Mapping[Axis, Expr], where: Expr, e: Expr
) -> None:
    """One axis of a window out of the others, over which the sum goes."""
    a = axes[0]
    stride = strides[a]
    left = where - (e - a * stride)
    if (ix.number(stride) or 0) < 0:
        left, stride = -left, -stride
    if ix.number(stride) != 1:
        solution.conditions.append(eq(left % stride, 0))
    at = left // stride
    solution.conditions.append((as_expr(0) <= at) & (at < a.extent))
    solution.set(a, at)


__all__ = ["NotDifferentiable", "gradients", "replayed"]
