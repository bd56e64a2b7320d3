"""Contractions: sums of products over shared indices."""

from __future__ import annotations

from collections.abc import Sequence

from fusile.ir import index as ix
from fusile.ir.expr import Expr, apply, cast, const, eq, logical_not, maximum, minimum, select
from fusile.ir.tensor import Shape, Tensor, compute, reduce_sum, reduction, scan
from fusile.kernels.registry import Context, Malformed, op
from fusile.kernels.shapes import broadcast, broadcast_read


@op("MatMul")
def matmul(ctx: Context, a: Tensor, b: Tensor) -> Tensor:
    """[…, m, k] times […, k, n]; vectors lose the dimension that they lack."""
    if not a.rank or not b.rank:
        raise Malformed("scalars have no matrix product")
    deep = a.shape[-1]
    ctx.require(eq(deep, b.shape[-2 if b.rank > 1 else 0]), f"the inner sizes of {a} and {b} differ")
    batch = broadcast(ctx, a.shape[:-2], b.shape[:-2])
    rows, columns = a.shape[-2:-1], b.shape[-1:] if b.rank > 1 else ()

    def body(*i: Expr) -> Expr:
        lead = i[: len(batch)]
        row = i[len(batch) : len(batch) + len(rows)]
        column = i[len(i) - len(columns) :] if columns else ()
        return reduce_sum(
            (deep,),
            lambda k: _at(a, lead, (*row, k), len(rows) + 1) * _at(b, lead, (k, *column), 1 + len(columns)),
        )

    return compute((*batch, *rows, *columns), body, name="matmul")


def _at(t: Tensor, lead: Sequence[Expr], last: tuple[Expr, ...], width: int) -> Expr:
    """An element of a stack of matrices whose stacking dimensions broadcast."""
    own = lead[len(lead) - (t.rank - width) :]
    fixed = tuple(const(0) if ix.number(n) == 1 else i for i, n in zip(own, t.shape, strict=False))
    return t[(*fixed, *last)]


@op("Gemm")
def gemm(
    ctx: Context,
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha * A' B' + beta * C, with A' and B' transposed where asked."""
    if a.rank != 2 or b.rank != 2:
        raise Malformed(f"takes matrices, not ranks {a.rank} and {b.rank}")
    m, k = a.shape[::-1] if transA else a.shape
    k2, n = b.shape[::-1] if transB else b.shape
    ctx.require(eq(k, k2), f"the inner sizes of {a} and {b} differ")

    def product(i: Expr, j: Expr) -> Expr:
        return reduce_sum((k,), lambda r: a[(r, i) if transA else (i, r)] * b[(j, r) if transB else (r, j)])

    y = compute((m, n), product, name="product")
    if c is None and alpha == 1.0:
        return y
    if c is not None:
        broadcast(ctx, c.shape, y.shape)

    def finish(*i: Expr) -> Expr:
        out = y[i] if alpha == 1.0 else _scaled(y[i], alpha)
        if c is None or beta == 0.0:
            return out
        added = broadcast_read(c, i)
        return out + (added if beta == 1.0 else _scaled(added, beta))

    return compute((m, n), finish, name="gemm")


def _scaled(v: Expr, factor: float) -> Expr:
    if v.dtype.is_float or factor.is_integer():
        return v * const(factor, v.dtype)
    from fusile.ir.types import F32

    return cast(cast(v, F32) * factor, v.dtype)


# ---- Einsum ----


def _terms(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """The labels of every input and of the output; the dimensions under an ellipsis are labelled `.0`, `.1`,
    … from the right.
    """
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    sources = left.split(",")
    if len(sources) != len(ranks):
        raise Malformed(f"the equation {equation!r} has {len(sources)} inputs, the node {len(ranks)}")
    inputs = [_labels(s, r) for s, r in zip(sources, ranks, strict=True)]
    every = [x for labels in inputs for x in labels]
    dots = sorted({x for x in every if x.startswith(".")}, key=lambda x: -int(x[1:]))
    if arrow:
        before, ellipsis, after = right.partition("...")
        output = [*before, *dots, *after] if ellipsis else list(right)
    else:
        output = dots + sorted(x for x in set(every) if every.count(x) == 1 and not x.startswith("."))
    unknown = set(output) - set(every)
    if unknown:
        raise Malformed(f"the labels {sorted(unknown)} of the result of {equation!r} occur in no input")
    return inputs, output


def _labels(text: str, rank: int) -> list[str]:
    before, ellipsis, after = text.partition("...")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not ellipsis):
        raise Malformed(f"the term {text!r} does not fit a tensor of rank {rank}")
    return [*before, *(f".{k}" for k in reversed(range(hidden))), *after]


def _extents(ctx: Context, tensors: Sequence[Tensor], labels: Sequence[Sequence[str]]) -> dict[str, Expr]:
    out: dict[str, Expr] = {}
    for t, own in zip(tensors, labels, strict=True):
        for label, n in zip(own, t.shape, strict=True):
            (out[label],) = broadcast(ctx, (out.get(label, const(1)),), (n,))
    return out


def _contract(
    ctx: Context, tensors: Sequence[Tensor], labels: Sequence[Sequence[str]], output: Sequence[str]
) -> Tensor:
    """The sum over all labels that the output lacks of the product of the tensors."""
    extents = _extents(ctx, tensors, labels)
    summed = [x for x in extents if x not in output]

    def body(*i: Expr) -> Expr:
        def product(*k: Expr) -> Expr:
            at = dict(zip(output, i, strict=True)) | dict(zip(summed, k, strict=True))
            out: Expr | None = None
            for t, own in zip(tensors, labels, strict=True):
                v = t[
                    tuple(const(0) if ix.number(n) == 1 else at[x] for x, n in zip(own, t.shape, strict=True))
                ]
                out = v if out is None else out * v
            assert out is not None
            return out

        return reduce_sum([extents[x] for x in summed], product) if summed else product()

    shape: Shape = tuple(extents[x] for x in output)
    return compute(shape, body, name="einsum")


@op("Einsum")
def einsum(ctx: Context, *xs: Tensor, equation: str) -> Tensor:
    labels, output = _terms(equation, [x.rank for x in xs])
    tensors = list(xs)
    while len(tensors) > 2:  # two at a time, keeping what later terms need
        later = {x for own in labels[2:] for x in own} | set(output)
        kept = list(dict.fromkeys(x for x in (*labels[0], *labels[1]) if x in later))
        tensors[:2] = [_contract(ctx, tensors[:2], labels[:2], kept)]
        labels[:2] = [kept]
    return _contract(ctx, tensors, labels, output)


# ---- determinants ----


@op("Det")
def det(ctx: Context, x: Tensor) -> Tensor:
    """Elimination with row exchanges, a column per step of a scan; the state is the matrix and the product of
    pivots so far.
    """
    if x.rank < 2:
        raise Malformed(f"takes matrices, not rank {x.rank}")
    n = x.shape[-1]
    ctx.require(eq(n, x.shape[-2]), f"a matrix of {x.shape[-2]} rows and {n} columns has no determinant")
    lead = x.shape[:-2]
    matrix = compute(x.shape, lambda *i: x[i], name="matrix")
    one = compute(lead, lambda *_: const(1, x.dtype), name="one")

    def step(time: Expr, a: Tensor, done: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        def below(i: Sequence[Expr], r: Expr) -> Expr:
            return select(r < time, const(-1, x.dtype), apply("abs", a[(*i, r, time)]))

        best = compute(lead, lambda *i: reduction("max", (n,), lambda r: below(i, r)), name="best")
        row = compute(
            lead,
            lambda *i: reduction("min", (n,), lambda r: select(logical_not(below(i, r) < best[i]), r, n - 1)),
            name="row",
        )

        def swapped(*i: Expr) -> Expr:
            *b, r, c = i
            source = select(eq(r, time), row[tuple(b)], select(eq(r, row[tuple(b)]), time, r))
            return a[(*b, minimum(maximum(source, const(0)), n - 1), c)]

        p = compute(a.shape, swapped, name="swapped")

        def eliminated(*i: Expr) -> Expr:
            *b, r, c = i
            pivot = p[(*b, time, time)]
            factor = select(eq(pivot, const(0, x.dtype)), const(0, x.dtype), p[(*b, r, time)] / pivot)
            return select(time < r, p[i] - factor * p[(*b, time, c)], p[i])

        def product(*i: Expr) -> Expr:
            v = done[i] * p[(*i, time, time)]
            return select(eq(row[i], time), v, -v)

        return [compute(a.shape, eliminated, name="eliminated"), compute(lead, product, name="product")], []

    _, finals = scan(n, [matrix, one], step, name="det")
    return finals[1]
