"""Expressions: the closed core that every level shares.

Seven kinds of node, hash-consed, so that equal expressions are one object and `is` compares them:

    Const(value, dtype)            a literal
    Axis(name, extent, uid)        an index variable, 0 <= axis < extent, of type i64
    Dim(name)                      a symbolic size, of type i64, at least 0
    Load(source, index)            one element of a tensor (tensor program) or a buffer (loop kernels)
    Apply(op, args, dtype)         a scalar operation out of OPS
    Reduce(kind, axes, body)       sum | prod | max | min over axes; only at the root of a stage
    Guard(index, extent, site)     index, checked against 0 <= index < extent when run; site names the ONNX
                                   node

Scalar operations are total (see OPS). Integer index arithmetic is kept in a canonical polynomial form by
`fusile.ir.index`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard
from weakref import WeakValueDictionary

from fusile.ir.fold import Number as Number
from fusile.ir.fold import fold, nearest
from fusile.ir.types import BOOL, F32, F64, I64, DType


class Source(Protocol):
    """What a Load reads: a tensor or a buffer."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> DType: ...


class Expr:
    """A scalar expression. Compare with `is`; arithmetic operators build canonical expressions."""

    __slots__ = ("__weakref__", "_free", "_loads", "_poly", "_rank", "dtype")
    dtype: DType
    _free: frozenset[Expr] | None
    _loads: tuple[Load, ...] | None
    _poly: Any
    _rank: Any

    @property
    def children(self) -> tuple[Expr, ...]:
        return ()

    def __add__(self, other: Expr | Number) -> Expr:
        return apply("add", self, other)

    def __radd__(self, other: Number) -> Expr:
        return apply("add", other, self)

    def __sub__(self, other: Expr | Number) -> Expr:
        return apply("sub", self, other)

    def __rsub__(self, other: Number) -> Expr:
        return apply("sub", other, self)

    def __mul__(self, other: Expr | Number) -> Expr:
        return apply("mul", self, other)

    def __rmul__(self, other: Number) -> Expr:
        return apply("mul", other, self)

    def __truediv__(self, other: Expr | Number) -> Expr:
        return apply("div", self, other)

    def __rtruediv__(self, other: Number) -> Expr:
        return apply("div", other, self)

    def __floordiv__(self, other: Expr | Number) -> Expr:
        return apply("floordiv", self, other)

    def __mod__(self, other: Expr | Number) -> Expr:
        return apply("mod", self, other)

    def __neg__(self) -> Expr:
        return apply("neg", self)

    def __lt__(self, other: Expr | Number) -> Expr:
        return apply("lt", self, other)

    def __le__(self, other: Expr | Number) -> Expr:
        return apply("le", self, other)

    def __gt__(self, other: Expr | Number) -> Expr:
        return apply("lt", other, self)

    def __ge__(self, other: Expr | Number) -> Expr:
        return apply("le", other, self)

    def __and__(self, other: Expr | Number) -> Expr:
        return apply("and", self, other)

    def __or__(self, other: Expr | Number) -> Expr:
        return apply("or", self, other)

    def __bool__(self) -> bool:
        raise TypeError(f"the truth of the expression {self} is not known while compiling")

    def __repr__(self) -> str:
        from fusile.ir.text import expr_text

        return expr_text(self)


class Const(Expr):
    __slots__ = ("value",)
    value: Number


class Axis(Expr):
    __slots__ = ("extent", "name", "uid")
    name: str
    extent: Expr
    uid: int


class Dim(Expr):
    __slots__ = ("name",)
    name: str


class Load(Expr):
    __slots__ = ("index", "source")
    source: Any
    index: tuple[Expr, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.index


class Apply(Expr):
    __slots__ = ("args", "op")
    op: str
    args: tuple[Expr, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.args


class Reduce(Expr):
    __slots__ = ("axes", "body", "kind")
    kind: str
    axes: tuple[Axis, ...]
    body: Expr

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.body,)


class Guard(Expr):
    __slots__ = ("extent", "index", "site")
    index: Expr
    extent: Expr
    site: str

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.index, self.extent)


# ---- the operations ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpInfo:
    """A scalar operation: how many arguments, what it answers (`same` type as its arguments, `bool`, or
    `given` by the node), and in words.
    """

    arity: int
    result: str
    meaning: str


OPS: dict[str, OpInfo] = {
    "add": OpInfo(2, "same", "a + b; integers wrap"),
    "sub": OpInfo(2, "same", "a - b; integers wrap"),
    "mul": OpInfo(2, "same", "a * b; integers wrap"),
    "div": OpInfo(
        2, "same", "a / b; integers truncate towards zero, x / 0 is 0, and the smallest / -1 wraps"
    ),
    "floordiv": OpInfo(2, "same", "integers: floor(a / b); x // 0 is 0"),
    "mod": OpInfo(
        2, "same", "integers and floats: a - b * floor(a / b), the sign of b; x mod 0 is 0 for integers"
    ),
    "rem": OpInfo(2, "same", "a - b * trunc(a / b), the sign of a (C's fmod); x rem 0 is 0 for integers"),
    "fma": OpInfo(3, "same", "a * b + c, rounded once where the target has the instruction"),
    "neg": OpInfo(1, "same", "-a"),
    "abs": OpInfo(1, "same", "|a|; the smallest integer stays itself"),
    "min": OpInfo(2, "same", "b where b < a, else a (so a NaN in a stays)"),
    "max": OpInfo(2, "same", "b where a < b, else a (so a NaN in a stays)"),
    "sqrt": OpInfo(1, "same", "square root; NaN below 0"),
    "floor": OpInfo(1, "same", ""),
    "ceil": OpInfo(1, "same", ""),
    "trunc": OpInfo(1, "same", ""),
    "round": OpInfo(1, "same", "to nearest, ties to even"),
    "exp": OpInfo(1, "same", ""),
    "log": OpInfo(1, "same", ""),
    "sin": OpInfo(1, "same", ""),
    "cos": OpInfo(1, "same", ""),
    "tan": OpInfo(1, "same", ""),
    "asin": OpInfo(1, "same", ""),
    "acos": OpInfo(1, "same", ""),
    "atan": OpInfo(1, "same", ""),
    "tanh": OpInfo(1, "same", ""),
    "erf": OpInfo(1, "same", ""),
    "pow": OpInfo(
        2, "same", "C's pow; integers by repeated multiplication, 0 for a negative exponent unless |a| is 1"
    ),
    "lt": OpInfo(2, "bool", "a < b; false with a NaN"),
    "le": OpInfo(2, "bool", "a <= b; false with a NaN"),
    "eq": OpInfo(2, "bool", "a = b; false with a NaN"),
    "ne": OpInfo(2, "bool", "not a = b"),
    "and": OpInfo(2, "same", "bitwise; logical on bools"),
    "or": OpInfo(2, "same", "bitwise; logical on bools"),
    "xor": OpInfo(2, "same", "bitwise; logical on bools"),
    "not": OpInfo(1, "same", "bitwise; logical on bools"),
    "shl": OpInfo(2, "same", "a << b; 0 where b is not below the width"),
    "shr": OpInfo(
        2, "same", "a >> b, with the sign on signed types; 0 or the sign where b is not below the width"
    ),
    "select": OpInfo(3, "same", "b where a else c"),
    "cast": OpInfo(
        1,
        "given",
        "to the node's type; float to integer truncates, saturates, NaN is 0; integers wrap; to "
        "bool is a != 0",
    ),
    "bitcast": OpInfo(1, "given", "the same bits as another type of the same width"),
}

REDUCTIONS: dict[str, str] = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}

_table: WeakValueDictionary[Any, Expr] = WeakValueDictionary()
_uids = itertools.count(1)


def _intern(made_of: type[Expr], dtype: DType, key: tuple[Any, ...], /, **fields: Any) -> Any:
    found = _table.get(key)
    if found is not None:
        return found
    node = object.__new__(made_of)
    node.dtype = dtype
    node._free = None
    node._loads = None
    node._poly = None
    node._rank = None
    for name, value in fields.items():
        setattr(node, name, value)
    _table[key] = node
    return node


def const(value: Number, dtype: DType = I64) -> Const:
    """A literal of a type; the value becomes one of the type's own (bool, int, or the nearest float)."""
    if dtype.kind == "b":
        value = bool(value)
    elif dtype.kind in "iu":
        value = int(value)
    else:
        value = nearest(float(value), dtype)
    # repr keeps -0.0 and 0.0 apart, and NaN equal to itself.
    key = (Const, repr(value), dtype)
    found: Const = _intern(Const, dtype, key, value=value)
    return found


def axis(name: str, extent: Expr | int) -> Axis:
    """A new index variable; every call makes a distinct one."""
    uid = next(_uids)
    made: Axis = _intern(Axis, I64, (Axis, uid), name=name, extent=as_expr(extent), uid=uid)
    return made


def dim(name: str) -> Dim:
    """The symbolic size of that name."""
    made: Dim = _intern(Dim, I64, (Dim, name), name=name)
    return made


def load(source: Source, index: Iterable[Expr | int]) -> Load:
    """One element of `source`."""
    idx = tuple(as_expr(i) for i in index)
    made: Load = _intern(Load, source.dtype, (Load, id(source), source, idx), source=source, index=idx)
    return made


def reduce_over(kind: str, axes: Iterable[Axis], body: Expr) -> Reduce:
    ax = tuple(axes)
    made: Reduce = _intern(Reduce, body.dtype, (Reduce, kind, ax, body), kind=kind, axes=ax, body=body)
    return made


def guard(index: Expr, extent: Expr | int, site: str) -> Expr:
    """`index`, checked when run, unless it is provably within 0 <= index < extent."""
    from fusile.ir import index as ix

    extent = as_expr(extent)
    # Without an axis nothing says that the extent is not 0 when this runs.
    inside_loop = any(isinstance(x, Axis) for x in free(index))
    apart = inside_loop or (ix.above_zero(extent - index) and ix.above_zero(index + 1))
    if apart and ix.within(index, extent):
        return index
    made: Expr = _intern(Guard, I64, (Guard, index, extent, site), index=index, extent=extent, site=site)
    return made


def as_expr(value: Expr | Number, like: DType = I64) -> Expr:
    return value if isinstance(value, Expr) else const(value, like)


def raw_apply(op: str, args: tuple[Expr, ...], dtype: DType) -> Expr:
    """The node itself, without simplification."""
    made: Expr = _intern(Apply, dtype, (Apply, op, args, dtype), op=op, args=args)
    return made


def apply(op: str, *values: Expr | Number, dtype: DType | None = None) -> Expr:
    """A scalar operation, simplified. Plain numbers take the type of the expression beside them. Raises
    TypeError on a type mismatch.
    """
    info = OPS[op]
    like = next((v.dtype for v in reversed(values) if isinstance(v, Expr)), I64)
    if op == "select":
        args = (as_expr(values[0], BOOL), *(as_expr(v, like) for v in values[1:]))
        if args[0].dtype is not BOOL:
            raise TypeError(f"select by a condition of type {args[0].dtype}")
        typed = args[1:]
    else:
        args = tuple(as_expr(v, like) for v in values)
        typed = args
    if len(args) != info.arity:
        raise TypeError(f"{op} takes {info.arity} arguments, not {len(args)}")
    if any(a.dtype is not typed[0].dtype for a in typed):
        raise TypeError(f"{op} of different types: {', '.join(str(a.dtype) for a in typed)}")
    result = dtype if info.result == "given" else BOOL if info.result == "bool" else typed[0].dtype
    assert result is not None, f"{op} needs a result type"
    return _simplified(op, args, result)


def _simplified(op: str, args: tuple[Expr, ...], dtype: DType) -> Expr:
    from fusile.ir import index as ix

    if all(isinstance(a, Const) for a in args):
        folded = fold(op, tuple(a.value for a in args if isinstance(a, Const)), args[0].dtype, dtype)
        if folded is not None:
            return const(folded, dtype)
    if op == "select":
        test, yes, no = args
        if isinstance(test, Const):
            return yes if test.value else no
        if yes is no:
            return yes
        return raw_apply(op, args, dtype)
    if op == "cast":
        if args[0].dtype is dtype:
            return args[0]
        if _widens(args[0]) and args[0].args[0].dtype is dtype:
            return args[0].args[0]
    if dtype is I64 and op in ix.POLYNOMIAL:
        return ix.arithmetic(op, args)
    if op in ("lt", "le", "eq", "ne") and args[0].dtype is I64:
        known = ix.compare(op, *args)
        if known is not None:
            return const(known, BOOL)
    if dtype is BOOL and op in ("and", "or"):
        absorbing = op == "or"
        for a, b in (args, args[::-1]):
            if isinstance(a, Const):
                return a if bool(a.value) is absorbing else b
        if args[0] is args[1]:
            return args[0]
    if op in ("mul", "div") and isinstance(args[1], Const) and args[1].value == 1:
        return args[0]
    if op == "mul" and isinstance(args[0], Const) and args[0].value == 1:
        return args[1]
    if op == "add" and dtype.is_int:
        for a, b in (args, args[::-1]):
            if isinstance(a, Const) and a.value == 0:
                return b
    return raw_apply(op, args, dtype)


def _widens(e: Expr) -> TypeGuard[Apply]:
    """Whether an expression is a small float as a larger one, which loses nothing."""
    if not (isinstance(e, Apply) and e.op == "cast" and e.args[0].dtype.is_float):
        return False
    return e.dtype is F64 or (e.dtype is F32 and e.args[0].dtype is not F64)


# ---- walking -----------------------------------------------------------------------------------------------


def free(e: Expr) -> frozenset[Expr]:
    """The axes and dims that an expression depends on (axes bound by a Reduce inside it excluded)."""
    known = e._free
    if known is not None:
        return known
    if isinstance(e, (Axis, Dim)):
        found: frozenset[Expr] = frozenset([e])
    else:
        found = frozenset().union(*(free(c) for c in e.children)) if e.children else frozenset()
        if isinstance(e, Reduce):
            found -= frozenset(e.axes)
    e._free = found
    return found


def rebuild(e: Expr, children: tuple[Expr, ...]) -> Expr:
    """The same node over other children, simplified anew; the same object when nothing changed."""
    if all(a is b for a, b in zip(children, e.children, strict=True)):
        return e
    match e:
        case Load():
            return load(e.source, children)
        case Apply():
            return apply(e.op, *children, dtype=e.dtype)
        case Reduce():
            return reduce_over(e.kind, e.axes, children[0])
        case Guard():
            return guard(children[0], children[1], e.site)
    return e


def substitute(e: Expr, mapping: Mapping[Expr, Expr], on_load: Callable[[Load], Expr] | None = None) -> Expr:
    """Replace nodes by `mapping`, bottom up; `on_load` may replace each rebuilt Load."""
    memo: dict[Expr, Expr] = dict(mapping)

    def visit(x: Expr) -> Expr:
        done = memo.get(x)
        if done is not None:
            return done
        out = x
        if isinstance(x, Apply) and x.op == "select" and isinstance(test := visit(x.args[0]), Const):
            out = visit(x.args[1 if test.value else 2])  # the other arm may be large
        elif x.children:
            out = rebuild(x, tuple(visit(c) for c in x.children))
        if on_load is not None and isinstance(out, Load):
            out = on_load(out)
        memo[x] = out
        return out

    return visit(e)


def loads(e: Expr) -> list[Load]:
    """Every distinct Load below an expression, outer ones first."""
    if e._loads is not None:
        return list(e._loads)
    seen: dict[Expr, None] = {}

    def visit(x: Expr) -> None:
        if x in seen:
            return
        seen[x] = None
        for c in x.children:
            visit(c)

    visit(e)
    e._loads = tuple(x for x in seen if isinstance(x, Load))
    return list(e._loads)


def nodes(e: Expr) -> list[Expr]:
    """Every distinct node of an expression, parents first."""
    seen: dict[Expr, None] = {}

    def visit(x: Expr) -> None:
        if x in seen:
            return
        seen[x] = None
        for c in x.children:
            visit(c)

    visit(e)
    return list(seen)


# ---- words for definitions -----------------------------------------------------------------------


def select(test: Expr, yes: Expr | Number, no: Expr | Number) -> Expr:
    like = yes.dtype if isinstance(yes, Expr) else no.dtype if isinstance(no, Expr) else I64
    return apply("select", test, as_expr(yes, like), as_expr(no, like))


def cast(e: Expr, dtype: DType) -> Expr:
    return apply("cast", e, dtype=dtype)


def eq(a: Expr, b: Expr | Number) -> Expr:
    return apply("eq", a, b)


def ne(a: Expr, b: Expr | Number) -> Expr:
    return apply("ne", a, b)


def minimum(a: Expr | Number, b: Expr | Number) -> Expr:
    return apply("min", a, b)


def maximum(a: Expr | Number, b: Expr | Number) -> Expr:
    return apply("max", a, b)


def logical_not(a: Expr) -> Expr:
    return apply("not", a)


def inside(*checks: tuple[Expr, Expr | int]) -> Expr:
    """True where 0 <= index < extent for every pair."""
    out: Expr = const(True, BOOL)
    for i, n in checks:
        out = out & (as_expr(0) <= i) & (i < n)
    return out
