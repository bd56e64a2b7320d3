"""What an expression must be on every level: typed as its operations say, over names that are in scope."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NoReturn

from fusile.errors import InternalError, show_name
from fusile.ir import index as ix
from fusile.ir.expr import OPS, Apply, Axis, Const, Dim, Expr, Guard, Load, Reduce, free, nodes
from fusile.ir.types import BOOL, I64

_SHOWN = 200
_BITWISE = frozenset({"and", "or", "xor", "not", "shl", "shr"})

OnLoad = Callable[[Load], None]


def fail(where: str, what: str, why: str = "") -> NoReturn:
    raise InternalError(what, where=where, why=why or None)


def named(name: str) -> str:
    """A name out of a model, for an error."""
    return show_name(name)


def shown(e: object) -> str:
    """An expression or a statement for an error, cut where it is long."""
    text = repr(e)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def check_expr(e: Expr, scope: Iterable[Expr], where: str, on_load: OnLoad | None = None) -> None:
    """An expression is typed, names only axes and dims in `scope`, and reads only what `on_load` lets pass
    (None: nothing).

    Raises InternalError.
    """
    lost = free(e) - frozenset(scope)
    if lost:
        one = min(lost, key=lambda x: getattr(x, "name", ""))
        word = "dimension" if isinstance(one, Dim) else "axis"
        fail(where, f"the {word} {named(getattr(one, 'name', ''))} is not in scope", f"found in {shown(e)}")
    for n in nodes(e):
        match n:
            case Const():
                _check_const(n, where)
            case Load():
                _check_index(n, where)
                if on_load is None:
                    fail(
                        where,
                        f"{named(n.source.name)} is read where only sizes may stand",
                        f"found in {shown(e)}",
                    )
                on_load(n)
            case Apply():
                _check_apply(n, where)
            case Guard():
                if n.index.dtype is not I64 or n.extent.dtype is not I64:
                    fail(where, "a checked index is not of type i64", shown(n))
            case Reduce():
                fail(where, "a reduction stands below the root of an expression", shown(e))


def check_size(e: Expr, dims: Iterable[Expr], where: str) -> None:
    """An extent: of type i64, over dims alone."""
    if e.dtype is not I64:
        fail(where, f"a size is of type {e.dtype}", shown(e))
    check_expr(e, dims, where)


def check_type(e: Expr, dtype: object, what: str, where: str) -> None:
    if e.dtype is not dtype:
        fail(where, f"{what} is of type {e.dtype}, not {dtype}", shown(e))


def same_size(a: Expr, b: Expr) -> bool:
    """Whether two extents are the same expression, whatever their form."""
    return a is b or ix.poly(a) == ix.poly(b)


def _check_const(c: Const, where: str) -> None:
    kinds = {"b": bool, "i": int, "u": int, "f": float}
    wanted = kinds.get(c.dtype.kind)
    if wanted is not None and type(c.value) is not wanted:
        fail(where, f"a literal of type {c.dtype} holds {c.value!r}")
    if c.dtype.is_int:
        low = -(1 << (c.dtype.bits - 1)) if c.dtype.kind == "i" else 0
        if not low <= c.value < low + (1 << c.dtype.bits):
            fail(where, f"the literal {c.value} does not fit the type {c.dtype}")


def _check_index(x: Load, where: str) -> None:
    rank = len(x.source.shape)
    if len(x.index) != rank:
        fail(where, f"{named(x.source.name)} of rank {rank} is read at {len(x.index)} indices", shown(x))
    if x.dtype is not x.source.dtype:
        fail(where, f"{named(x.source.name)} of type {x.source.dtype} is read as {x.dtype}", shown(x))
    for i in x.index:
        check_type(i, I64, f"an index into {named(x.source.name)}", where)


def _check_apply(n: Apply, where: str) -> None:
    info = OPS.get(n.op)
    if info is None:
        fail(where, f"{n.op!r} is no scalar operation")
    if len(n.args) != info.arity:
        fail(where, f"{n.op} takes {info.arity} arguments, has {len(n.args)}", shown(n))
    typed = n.args[1:] if n.op == "select" else n.args
    if n.op == "select":
        check_type(n.args[0], BOOL, "the condition of a select", where)
    if any(a.dtype is not typed[0].dtype for a in typed):
        fail(where, f"{n.op} of different types: {', '.join(str(a.dtype) for a in typed)}", shown(n))
    expected = {"same": typed[0].dtype, "bool": BOOL}.get(info.result, n.dtype)
    if n.dtype is not expected:
        fail(where, f"{n.op} of {typed[0].dtype} answers {n.dtype}, not {expected}", shown(n))
    if n.op in _BITWISE and typed[0].dtype.kind not in "biu":
        fail(where, f"{n.op} of type {typed[0].dtype}", shown(n))
    if n.op == "bitcast" and n.dtype.bits != typed[0].dtype.bits:
        fail(where, f"the {typed[0].dtype.bits} bits of {typed[0].dtype} are read as {n.dtype}", shown(n))


def check_axes(axes: Iterable[Axis], where: str) -> None:
    """No axis twice."""
    seen: set[Axis] = set()
    for a in axes:
        if a in seen:
            fail(where, f"the axis {named(a.name)} is used twice")
        seen.add(a)
