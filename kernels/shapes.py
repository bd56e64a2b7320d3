"""Shape arithmetic that operators share: broadcasting, axes, reshaping as an index map."""

from __future__ import annotations

from collections.abc import Sequence

from fusile.ir import index as ix
from fusile.ir.expr import (
    Apply,
    Const,
    Expr,
    Load,
    Number,
    apply,
    as_expr,
    cast,
    const,
    eq,
    guard,
    inside,
    nodes,
    select,
)
from fusile.ir.tensor import Shape, Tensor, compute
from fusile.ir.types import I64
from fusile.kernels.registry import Context, Malformed

MOST_TABULATED = 1 << 20
"""Tables up to this many elements are worked out while compiling."""


def normal_axis(axis: int, rank: int) -> int:
    """An axis counted from the front. Raises Malformed outside -rank .. rank - 1."""
    if not -rank <= axis < max(rank, 1):
        raise Malformed(f"axis {axis} is outside a tensor of rank {rank}")
    return axis % rank if rank else 0


def normal_axes(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front, in ascending order. Raises Malformed for one named twice."""
    found = sorted(normal_axis(a, rank) for a in axes)
    if len(set(found)) != len(found):
        raise Malformed(f"an axis is named twice in {tuple(axes)}")
    return tuple(found)


def literal(t: Tensor | None) -> float | None:
    """The value of a one-element tensor that is a literal, else None."""
    if t is None or t.known is None or len(t.known) != 1 or not isinstance(t.known[0], Const):
        return None
    return float(t.known[0].value)


def _plainness(e: Expr) -> tuple[bool, int]:
    """Numbers before symbols before longer expressions."""
    return (ix.number(e) is None, len(nodes(e)))


def broadcast(ctx: Context, *shapes: Shape) -> Shape:
    """The common shape, as numpy broadcasts.

    Different symbols are required to be equal when run. Raises Malformed where sizes do not fit.
    """
    rank = max(len(s) for s in shapes)
    out: list[Expr] = []
    for k in range(rank):
        chosen: Expr = const(1)
        for s in shapes:
            at = k - rank + len(s)
            if at < 0 or ix.number(s[at]) == 1 or s[at] is chosen:
                continue
            if ix.number(chosen) == 1:
                chosen = s[at]
                continue
            ctx.require(
                eq(chosen, s[at]), f"the sizes {chosen} and {s[at]} of dimension {k} do not broadcast"
            )
            chosen = min(chosen, s[at], key=_plainness)
        out.append(chosen)
    return tuple(out)


def broadcast_read(t: Tensor, index: Sequence[Expr]) -> Expr:
    """The element of `t` that stands at `index` of a broadcast shape."""
    own = index[len(index) - t.rank :]
    return t[tuple(const(0) if ix.number(n) == 1 else i for i, n in zip(own, t.shape, strict=True))]


def flat_index(index: Sequence[Expr], shape: Shape) -> Expr:
    """The row-major position of an index."""
    out: Expr = as_expr(0)
    for i, n in zip(index, shape, strict=True):
        out = out * n + i
    return out


def reshape_index(index: Sequence[Expr], old: Shape, new: Shape) -> tuple[Expr, ...]:
    """The index into shape `old` of the element at `index` of shape `new`: row-major order kept.

    Dimensions are matched in groups of equal product first, so that only groups that really change meet
    division and remainder.
    """
    out: list[Expr] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = i, j
        left: Expr = as_expr(1)
        right: Expr = as_expr(1)
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left is not right:
            ln, rn = ix.number(left), ix.number(right)
            take_old = i < len(old) and (
                j >= len(new) or (ln is not None and rn is not None and ln < rn) or (_divides(left, right))
            )
            if take_old:
                left, i = left * old[i], i + 1
            elif j < len(new):
                right, j = right * new[j], j + 1
            elif i < len(old):
                left, i = left * old[i], i + 1
            else:
                break
        out.extend(unflatten(flat_index(index[b:j], new[b:j]), old[a:i]))
    return tuple(out)


def _divides(small: Expr, large: Expr) -> bool:
    """Whether `large` is visibly a multiple of `small`."""
    if ix.number(small) is not None and ix.number(large) is not None:
        return False
    whole, rest = ix.split(ix.poly(large), ix.poly(small))
    return bool(whole) and not rest


def unflatten(flat: Expr, shape: Shape) -> list[Expr]:
    """The index in `shape` of a row-major position."""
    out: list[Expr] = []
    for k, n in enumerate(shape):
        if ix.number(n) == 1:
            out.append(as_expr(0))
            continue
        below = ix.product(shape[k + 1 :])
        digit = flat // below
        if any(ix.number(m) != 1 for m in shape[:k]):
            digit = digit % n
        out.append(digit)
    return out


def reshaped(x: Tensor, shape: Shape, name: str = "reshape") -> Tensor:
    """x under another shape of as many elements, as a stage of one load; x itself where nothing changes."""
    if len(shape) == x.rank and all(a is b for a, b in zip(shape, x.shape, strict=True)):
        return x
    return compute(shape, lambda *i: x[reshape_index(i, x.shape, shape)], name=name)


def padded(
    x: Tensor,
    before: Sequence[Expr | int],
    after: Sequence[Expr | int],
    fill: Number | Expr,
    name: str = "pad",
) -> Tensor:
    """x with `fill` around its last len(before) dimensions, as one stage; x itself without any padding.

    Negative counts cut off.
    """
    lead = x.rank - len(before)
    low, high = [as_expr(p) for p in before], [as_expr(p) for p in after]
    if all(ix.number(p) == 0 for p in (*low, *high)):
        return x
    shape = (*x.shape[:lead], *(a + n + b for a, n, b in zip(low, x.shape[lead:], high, strict=True)))

    def body(*i: Expr) -> Expr:
        at = tuple(k - a for k, a in zip(i[lead:], low, strict=True))
        return select(
            inside(*zip(at, x.shape[lead:], strict=True)), x[(*i[:lead], *at)], as_expr(fill, x.dtype)
        )

    return compute(shape, body, name=name)


def checked_index(ctx: Context, indices: Tensor, at: Sequence[Expr], extent: Expr) -> Expr:
    """An element of `indices` as a position in 0 .. extent - 1: negative ones count from the end, others are
    checked when run.

    Raises Malformed for a literal that is out of range.
    """
    value = cast(indices[tuple(at)], I64)
    size, known = ix.number(extent), indices.known
    if known is not None and size is not None:
        numbers = [ix.number(cast(v, I64)) for v in known]
        if all(n is not None for n in numbers):
            worst = [n for n in numbers if n is not None and not -size <= n < size]
            if worst:
                raise Malformed(f"the index {worst[0]} is out of range for a size of {size}")
            negative = any(n is not None and n < 0 for n in numbers)
            return select(value < 0, value + extent, value) if negative else value
    if indices.dtype.kind == "u" or (
        known is not None and all(ix.nonnegative(ix.poly(cast(v, I64))) for v in known)
    ):
        return guard(value, extent, ctx.site)
    return guard(select(value < 0, value + extent, value), extent, ctx.site)


# ---- shape arithmetic as integers ----


def exact(e: Expr) -> Expr:
    """An integer made by shape arithmetic, in i64: detours through narrower integers and through floats are
    taken out.

    `i64(i32(n))` is n and `i64(floor(f32(n) * 2.0))` is n * 2. (Both differ only where a size leaves the
    narrower type, and there the model's own arithmetic means nothing.) Expressions that load data keep what
    they say.
    """
    if e.dtype.is_int and any(isinstance(n, Load) for n in nodes(e)):
        return cast(e, I64)
    found = _whole(e)
    return found if found is not None else cast(e, I64)


def _whole(e: Expr) -> Expr | None:
    """The i64 expression of the same value, where e is visibly a whole number."""
    if isinstance(e, Const):
        whole = e.dtype.is_int or (e.dtype.is_float and float(e.value).is_integer())
        return const(int(e.value)) if whole else None
    if e.dtype is I64 and not isinstance(e, Apply):
        return e
    if not isinstance(e, Apply):
        return None
    if e.op in ("cast", "floor", "ceil", "trunc", "round"):
        inner = e.args[0]
        if not (inner.dtype.is_int or inner.dtype.is_float) or not (e.dtype.is_int or e.dtype.is_float):
            return None
        found = _whole(inner)
        return found if found is not None else _quotient(inner, e.op)
    if e.op in _WHOLE_OPS or (e.op in ("div", "floordiv", "mod", "rem") and e.dtype.is_int):
        parts = [_whole(a) for a in e.args]
        known = [p for p in parts if p is not None]
        return apply(e.op, *known) if len(known) == len(parts) else None
    if e.op == "select":
        yes, no = _whole(e.args[1]), _whole(e.args[2])
        return select(e.args[0], yes, no) if yes is not None and no is not None else None
    return None


_WHOLE_OPS = frozenset({"add", "sub", "mul", "neg", "min", "max"})


def _quotient(e: Expr, rounding: str) -> Expr | None:
    """A float quotient of whole numbers rounded to one: n / 4, or n * 0.25."""
    if (
        isinstance(e, Apply)
        and e.op in ("floor", "ceil", "trunc")
        and rounding in ("cast", "trunc", "floor", "ceil")
    ):
        return _quotient(e.args[0], e.op)
    if not isinstance(e, Apply) or e.op not in ("div", "mul") or rounding == "round":
        return None
    top, factor = e.args
    if e.op == "mul" and isinstance(top, Const):
        top, factor = factor, top
    n = _whole(top)
    if n is None or not ix.nonnegative(ix.poly(n)):
        return None
    if e.op == "div":
        by = _whole(factor)
    else:
        inverse = 1.0 / float(factor.value) if isinstance(factor, Const) and factor.value else 0.5
        by = const(int(inverse)) if inverse.is_integer() else None
    if by is None or not ix.positive(ix.poly(by)):
        return None
    return ix.ceil_div(n, by) if rounding == "ceil" else n // by
