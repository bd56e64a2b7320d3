"""Operators without a row: their tensor programs as small functions in a framework's own operations.

A stage `T[i, j] = expression` becomes operations on whole tensors: reads become views, slices or gathers,
axes that are used as numbers become `arange`, reductions `sum` or `amax` over trailing dimensions, sums of
products `einsum`. Tensors broadcast from the right, so that axes in front which an expression does not
mention need no spelling. What differs between frameworks is in their `Words`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusile.backends.framework.code import Code, Name, Plain, Var, code, name
from fusile.backends.framework.naming import short_path, snake
from fusile.backends.framework.refusal import Refusal
from fusile.backends.framework.source import Body, signature
from fusile.backends.framework.value import Val, number_of
from fusile.backends.framework.vocabulary import Words
from fusile.escape import identifier
from fusile.ir import expr as ex
from fusile.ir import index as ix
from fusile.ir.interpret import identity
from fusile.ir.tensor import Compute, Scan, Scatter, Stage, Tensor
from fusile.ir.types import BOOL, I64, DType

MOST_LITERAL = 256
"""Elements of the largest table that stands in the source."""
MOST_NODES = 20_000
"""Expression nodes of the largest program that is printed: longer functions nobody reads."""
_LONGEST_HINT = 20
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(slots=True)
class Function:
    """One printed function: what it takes, its body, and the functions printed before it for its scans."""

    words: Words
    definitions: Mapping[ex.Expr, ex.Expr]
    reserved: frozenset[str]
    namer: Callable[[str], str]
    """A free name in the file for a function."""
    op: str = ""
    parent: Function | None = None
    body: Body = field(init=False)
    taken: dict[object, Var] = field(default_factory=dict)
    """The arguments, by the tensor or dim that they hold, in the order of first use."""
    fixed: tuple[Var, ...] = ()
    steps: list[str] = field(default_factory=list)
    """The lines of the functions that its scans repeat."""
    own: dict[Tensor, Code] = field(default_factory=dict)
    inputs: tuple[Tensor, ...] = ()
    inner: frozenset[Stage] = frozenset()
    """Of a scan's step: the stages that it repeats."""
    returns: int = 1
    _dims: dict[ex.Expr, Code] = field(default_factory=dict)
    _aranges: dict[tuple[ex.Expr, int], Code] = field(default_factory=dict)
    _count: int = 0

    _hints: set[str] = field(default_factory=set)
    _text: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.body = Body((), self.reserved)
        self._hints = set(self.reserved)

    # ---- what there is ---------------------------------------------------------------------------

    def like(self) -> Code | None:
        """A tensor beside which new ones are made."""
        first = next((v for t, v in self.taken.items() if isinstance(t, Tensor)), None)
        if first is None and self.inputs:
            self.tensor(self.inputs[0])
            return self.like()
        return None if first is None else Name(first)

    def tensor(self, t: Tensor) -> Code:
        """A tensor in the type that it is computed in."""
        found = self.own.get(t)
        if found is not None:
            return found
        if self.parent is not None and t.stage not in self.inner:
            self.parent.tensor(t)
            made: Code = Name(self._argument(t, t.name))
        elif t.stage is not None:
            self.run(t.stage)
            return self.own[t]
        elif t in self.inputs:
            made = self.words.to_held(Name(self._argument(t, t.name)), t.dtype)
            made = self.body.let(made, t.name)
        elif t.data is not None:
            made = self._table(t, np.asarray(t.data()))
        elif t.known is not None:
            made = self._elements(t)
        else:
            raise Refusal(f"{t.name} has no value")
        self.own[t] = made
        return made

    def _argument(self, key: object, hint: str) -> Var:
        var = self.taken.get(key)
        if var is None:
            var = self.taken[key] = self._fixed(hint, isinstance(key, Tensor))
        return var

    def _fixed(self, hint: str, tensor: bool = True) -> Var:
        return Var(identifier(_short(hint), self._hints), tensor, fixed=True)

    def _table(self, t: Tensor, array: np.ndarray) -> Code:
        """A table of the definition: in the source where it is small, else an argument."""
        if array.size <= MOST_LITERAL:
            return self.body.let(self.words.constant(array, t.dtype, self.like()), "table")
        return self.body.let(self.words.to_held(Name(self._argument(t, t.name)), t.dtype), t.name)

    def _elements(self, t: Tensor) -> Code:
        assert t.known is not None
        parts = [self.evaluate(e, ()) for e in t.known]
        made = self.words.stack_numbers([self.number(p, t.dtype) for p in parts], t.dtype, self.like())
        sizes = [ix.number(n) for n in t.shape]
        if len(sizes) != 1:
            made = self.words.reshape(made, tuple(code(n) for n in sizes))
        return self.body.let(made, t.name)

    # ---- sizes -----------------------------------------------------------------------------------

    def size(self, e: ex.Expr) -> Code:
        """A size as a plain number of Python."""
        found = self.evaluate(e, ())
        if found.host:
            return found.code
        return self._let_size(self.words.integer(found.code), "size")

    def _let_size(self, value: Code, hint: str) -> Code:
        return self.body.let(value, hint, tensor=False)

    def _dim(self, d: ex.Dim) -> Code:
        found = self._dims.get(d)
        if found is not None:
            return found
        if self.parent is not None:
            self.parent._dim(d)
            made: Code = Name(self._argument(d, _dim_hint(d)))
        elif d in self.definitions:
            value = self.evaluate(self.definitions[d], ())
            made = value.code if value.host else self.words.integer(value.code)
            made = self._let_size(made, _dim_hint(d))
        else:
            made = self._dim_of_inputs(d)
        self._dims[d] = made
        return made

    def _dim_of_inputs(self, d: ex.Dim) -> Code:
        for t in self.inputs:
            for axis, extent in enumerate(t.shape):
                if extent is d and t.data is None:
                    argument = Name(self._argument(t, t.name))
                    return self._let_size(self.words.size(argument, axis), _dim_hint(d))
        return Name(self._argument(d, _dim_hint(d)))

    # ---- expressions -----------------------------------------------------------------------------

    def evaluate(self, e: ex.Expr, axes: tuple[ex.Axis, ...]) -> Val:
        """An expression over all values of axes, aligned to the right."""
        memo: dict[ex.Expr, Val] = {}

        def visit(x: ex.Expr) -> Val:
            known = memo.get(x)
            if known is None:
                self._count += 1
                if self._count > MOST_NODES:
                    raise Refusal("the operator's tensor program is too long to be read as source")
                known = memo[x] = self._node(x, axes, visit)
            return known

        return visit(e)

    def _node(self, e: ex.Expr, axes: tuple[ex.Axis, ...], visit: Any) -> Val:
        match e:
            case ex.Const():
                return Val(number_of(e), host=True, const=e.value)
            case ex.Dim():
                return Val(self._dim(e), host=True)
            case ex.Axis():
                return self._axis(e, axes)
            case ex.Guard():
                return visit(e.index)  # type: ignore[no-any-return]
            case ex.Load():
                return self._load(e, axes)
            case ex.Apply():
                args = [visit(a) for a in e.args]
                made = self._apply(e, args)
                return made if made.host else made.with_code(self.body.let(made.code))
        raise Refusal(f"a tensor program holds a {type(e).__name__} that has no spelling")

    def _axis(self, a: ex.Axis, axes: tuple[ex.Axis, ...]) -> Val:
        if a not in axes:
            outer: Function | None = self
            while outer is not None:
                if a in outer._dims:
                    return Val(outer._dims[a] if outer is self else self._captured(a), host=True)
                outer = outer.parent
            raise Refusal(f"the axis {a.name} is used outside its loop")
        behind = len(axes) - 1 - axes.index(a)
        return Val(self._arange(a.extent, behind), frozenset([a]), behind + 1)

    def _captured(self, a: ex.Axis) -> Code:
        return Name(self._argument(a, a.name))

    def _arange(self, extent: ex.Expr, behind: int) -> Code:
        found = self._aranges.get((extent, behind))
        if found is None:
            if behind:
                found = self._arange(extent, 0)[(slice(None), *[None] * behind)]
            else:
                found = self.words.arange(self.size(extent), self.like())
            found = self._aranges[extent, behind] = self.body.let(found, "i")
        return found

    def _apply(self, e: ex.Apply, args: list[Val]) -> Val:
        if all(v.host for v in args):
            plain = self.words.host(e, args)
            if plain is not None:
                return Val(plain, host=True)
            args = [
                v.with_code(self.number(v, a.dtype), host=False) for v, a in zip(args, e.args, strict=True)
            ]
        if e.op == "select" and args[0].host:
            args[0] = args[0].with_code(self.number(args[0], BOOL), host=False)
        if e.op == "select" and args[1].host and args[2].host:
            args[1] = args[1].with_code(self.number(args[1], e.dtype), host=False)
        axes = frozenset().union(*(v.axes for v in args))
        made = self.words.apply(e.op, args, [a.dtype for a in e.args], e.dtype)
        return Val(made, axes, max(v.rank for v in args))

    def number(self, v: Val, kind: DType) -> Code:
        """A value as a tensor."""
        return self.words.number(v.code, kind, self.like()) if v.host else v.code

    # ---- reads -----------------------------------------------------------------------------------

    def _load(self, e: ex.Load, axes: tuple[ex.Axis, ...]) -> Val:
        source: Tensor = e.source
        if source.known is not None:
            picked = _known(source, e.index)
            if picked is not None:
                return self.evaluate(picked, axes)
        x = self.tensor(source)
        if not e.index:
            return Val(x)
        items: list[Plain | slice | None] = []
        left: list[ex.Axis] = []  # the axes of what remains, in the source's order
        lists: list[int] = []
        for at, (i, extent) in enumerate(zip(e.index, source.shape, strict=True)):
            item, a = self._item(i, extent, axes)
            items.append(item)
            if a is not None:
                left.append(a)
            elif item is None:
                lists.append(at)
        if len(set(left)) < len(left) or len(lists) > 1:
            return self._gather(e, x, axes)
        if lists:
            along = [a for a in axes if a in ex.free(e.index[lists[0]])]
            if len(along) > 1 or (along and along[0] in left):
                return self._gather(e, x, axes)
            return self._take(e, x, items, lists[0], along, axes)
        return self._view(self._indexed(x, items), left, axes)

    def _item(
        self, i: ex.Expr, extent: ex.Expr, axes: tuple[ex.Axis, ...]
    ) -> tuple[Plain | slice | None, ex.Axis | None]:
        """An index as one that plain indexing knows: a number, a slice along an axis, or (None, None)."""
        used = [a for a in axes if a in ex.free(i)]
        if not used and not ex.loads(i):
            known = self.evaluate(i, ())
            inside = isinstance(i, ex.Guard) or ix.within(i, extent) or ix.number(extent) is None
            if known.host and inside and not any(isinstance(f, ex.Axis) for f in ex.free(i)):
                return known.code, None
            return None, None
        if len(used) != 1 or ex.loads(i):
            return None, None
        (a,) = used
        if i is a and a.extent is extent:
            return slice(None), a
        step = ix.coefficient(i, a)
        stride = None if step is None else ix.number(step)
        if stride is None or stride < 1 or not ix.within(i, extent):
            return None, None
        first = i - a * stride
        if any(isinstance(f, ex.Axis) for f in ex.free(first)):
            return None, None
        last = first + (a.extent - 1) * stride + 1
        start = None if ix.number(first) == 0 else self.size(first)
        stop = None if last is extent else self.size(last)
        return slice(start, stop, None if stride == 1 else stride), a

    def _indexed(self, x: Code, items: Sequence[Plain | slice | None]) -> Code:
        kept = list(items)
        while kept and kept[-1] == slice(None):
            kept.pop()
        return x[tuple(kept)] if kept else x

    def _view(self, x: Code, left: list[ex.Axis], axes: tuple[ex.Axis, ...]) -> Val:
        """A tensor whose dimensions are axes, turned and widened to stand in their order."""
        order = sorted(range(len(left)), key=lambda k: axes.index(left[k]))
        if order != list(range(len(left))):
            x = self.words.permute(x, tuple(order))
        found = [left[k] for k in order]
        if not found:
            return Val(x)
        first = axes.index(found[0])
        rank = len(axes) - first
        if rank > len(found):
            picks = [slice(None) if a in found else None for a in axes[first:]]
            while picks and picks[-1] == slice(None):
                picks.pop()
            x = x[tuple(picks)]
        return Val(x, frozenset(found), rank)

    def _place(self, i: ex.Expr, extent: ex.Expr, axes: tuple[ex.Axis, ...]) -> Val:
        """An index that is worked out, moved inside where it may lie outside: such reads are not used."""
        found = self.evaluate(i, axes)
        if _guarded(i) or ix.within(i, extent):
            return found
        if found.host:
            found = found.with_code(self.number(found, I64), host=False)
        clipped = self.words.clip(found.code, self.size(extent))
        return found.with_code(self.body.let(clipped, "place"))

    def _take(
        self,
        e: ex.Load,
        x: Code,
        items: list[Plain | slice | None],
        at: int,
        along: list[ex.Axis],
        axes: tuple[ex.Axis, ...],
    ) -> Val:
        """A read with one index that is worked out, along at most one axis."""
        place = self._place(e.index[at], e.source.shape[at], tuple(along))
        x = self._indexed(x, [slice(None) if k == at else item for k, item in enumerate(items)])
        where = sum(isinstance(item, slice) or item is None for item in items[:at])
        left: list[ex.Axis] = []
        for k, i in enumerate(e.index):
            left += along if k == at else [a for a in axes if a in ex.free(i)]
        index = place.code if place.host or place.rank == len(along) else None
        if index is None:  # the index is one number for all values of its axis
            index, left = place.code, [a for a in left if a not in along]
        x = self.body.let(self.words.take(x, index, where, place.host))
        return self._view(x, left, axes)

    def _gather(self, e: ex.Load, x: Code, axes: tuple[ex.Axis, ...]) -> Val:
        """A read with several indices that are worked out."""
        places = [self._place(i, extent, axes) for i, extent in zip(e.index, e.source.shape, strict=True)]
        found = self.words.gather(x, [p.code for p in places])
        used = frozenset().union(*(p.axes for p in places))
        return Val(self.body.let(found), used, max(p.rank for p in places))

    # ---- stages ----------------------------------------------------------------------------------

    def whole(self, v: Val, axes: Sequence[ex.Axis], kind: DType) -> Code:
        """A value with all its axes there."""
        missing = [a for a in axes if a not in v.axes and ix.number(a.extent) != 1]
        if not missing and v.rank == len(axes):
            return self.number(v, kind)
        shape = tuple(self.size(a.extent) for a in axes)
        if v.host:
            return self.words.full(shape, v.code, kind, self.like())
        return self.words.broadcast(v.code, shape) if shape else v.code

    def run(self, stage: Stage) -> None:
        """Print a stage."""
        match stage:
            case Compute():
                self.own[stage.out] = self.body.let(self._compute(stage), stage.out.name)
            case Scatter():
                self.own[stage.out] = self.body.let(self._scatter(stage), stage.out.name)
            case Scan():
                self._scan(stage)
            case _:
                raise Refusal(f"the operator's {type(stage).__name__} stages have no spelling")

    def _compute(self, stage: Compute) -> Code:
        r, axes = stage.reduction, stage.axes
        if r is None:
            return self.whole(self.evaluate(stage.body, axes), axes, stage.out.dtype)
        contracted = self._contraction(axes, r)
        if contracted is not None:
            return contracted
        every = (*axes, *r.axes)
        found = self.evaluate(r.body, every)
        if any(a not in found.axes and ix.number(a.extent) != 1 for a in r.axes) or found.rank < len(r.axes):
            found = Val(self.whole(found, every, r.dtype), frozenset(every), len(every))
        if any(ix.number(a.extent) == 0 for a in r.axes):
            empty = Val(code(identity(r.kind, r.dtype)), host=True)
            return self.whole(empty, axes, r.dtype)
        total = self.words.reduce(r.kind, found.code, tuple(range(-len(r.axes), 0)), r.dtype)
        total = self.body.let(total)
        kept = frozenset(a for a in found.axes if a in axes)
        return self.whole(Val(total, kept, found.rank - len(r.axes)), axes, stage.out.dtype)

    def _contraction(self, axes: tuple[ex.Axis, ...], r: ex.Reduce) -> Code | None:
        """A sum of products as an einsum, which never holds all products at once."""
        body = r.body
        if r.kind != "sum" or not isinstance(body, ex.Apply) or body.op != "mul":
            return None
        if not self.words.contracts(r.dtype):
            return None
        every = (*axes, *r.axes)
        owned = [tuple(a for a in every if a in ex.free(f)) for f in body.args]
        if any(a not in owned[0] or a not in owned[1] for a in r.axes) or len(every) > len(_LETTERS):
            return None
        letter = {a: _LETTERS[k] for k, a in enumerate(every)}
        factors = [
            self.body.let(self.whole(self.evaluate(f, own), own, r.dtype))
            for f, own in zip(body.args, owned, strict=True)
        ]
        there = [a for a in axes if a in owned[0] or a in owned[1]]
        terms = ["".join(letter[a] for a in own) for own in (*owned, tuple(there))]
        made = self.words.einsum(f"{terms[0]},{terms[1]}->{terms[2]}", factors, r.dtype)
        if len(there) == len(axes):
            return made
        made = self.body.let(made)
        value = self._view(made, there, axes) if there else Val(made)
        return self.whole(value, axes, r.dtype)

    def _scatter(self, stage: Scatter) -> Code:
        initial = self.body.let(
            self.whole(self.evaluate(stage.initial, stage.axes), stage.axes, stage.out.dtype)
        )
        places = [self._update(i, stage, I64) for i in stage.index]
        value = self._update(stage.value, stage, stage.out.dtype)
        test = self.evaluate(stage.condition, stage.updates)
        where = None if test.const is True else self._update(stage.condition, stage, BOOL)
        return self.words.scatter(initial, places, value, where, stage.kind, stage.out.dtype)

    def _update(self, e: ex.Expr, stage: Scatter, kind: DType) -> Code:
        return self.body.let(self.whole(self.evaluate(e, stage.updates), stage.updates, kind))

    def _scan(self, stage: Scan) -> None:
        """A function for one step, and a loop that repeats it."""
        step = Function(self.words, self.definitions, self.reserved, self.namer, self.op, self)
        step.inner, step.inputs = frozenset(stage.body), self.inputs
        time = step._fixed("step", tensor=False)
        states = [step._fixed("state") for _ in stage.carried]
        step.fixed = (time, *states)
        step._dims[stage.time] = Name(time)
        for c, var in zip(stage.carried, states, strict=True):
            step.own[c.now] = Name(var)
        then = [step.tensor(c.then) for c in stage.carried]
        rows = [step.tensor(inner) for _, inner in stage.collected]
        step.body.result = code((tuple(then), tuple(rows)))
        title = self.namer(f"{snake(self.op)}_step")
        while title in self._hints:
            title = self.namer(f"{snake(self.op)}_step")
        self._hints.add(title)
        self.body.reserved |= {title}
        given = [self.tensor(k) if isinstance(k, Tensor) else self._outer(k) for k in step.taken]
        self.steps += [
            *step.steps,
            *step.lines(title, "One step: the states after it, and what is kept.", "tuple"),
        ]
        initial = tuple(self.tensor(c.initial) for c in stage.carried)
        count = self.size(stage.time.extent)
        extra: list[Plain] = []
        if not ix.number(stage.time.extent):
            extra = [
                tuple(
                    self.words.full(
                        (code(0), *(self.size(n) for n in inner.shape)), code(0), inner.dtype, self.like()
                    )
                    for _, inner in stage.collected
                )
            ]
        made = self.words.repeat(name(title), count, initial, tuple(given), extra)
        ends = tuple(Var("state") for _ in stage.carried)
        stacked = tuple(Var(outer.name) for outer, _ in stage.collected)
        self.body.unpack(made, (ends or None, stacked or None))
        for outer, c in stage.finals:
            self.own[outer] = Name(ends[[x.now for x in stage.carried].index(c.now)])
        for (outer, _), var in zip(stage.collected, stacked, strict=True):
            self.own[outer] = Name(var)

    def _outer(self, key: object) -> Code:
        if isinstance(key, ex.Dim):
            return self._dim(key)
        assert isinstance(key, ex.Axis)
        return self._axis(key, ()).code

    # ---- text ------------------------------------------------------------------------------------

    def lines(self, title: str, doc: str, answer: str) -> list[str]:
        """The function as source, under a name."""
        order = {t: k for k, t in enumerate(self.inputs)}
        if self.parent is None:
            places = sorted(self.taken, key=lambda key: order.get(key, len(order)))  # type: ignore[call-overload]
            self.taken = {key: self.taken[key] for key in places}
        self.body.arguments = (*self.fixed, *self.taken.values())
        typed = [self.words.parameter(v.hint, v.tensor) for v in self.body.arguments]
        head = signature(f"def {title}", typed, self.words.answer(answer), 0)
        if not self._text:
            self._text = self.body.lines(4)
        return [*head, f'    """{doc}"""', *self._text]


def _known(source: Tensor, index: Sequence[ex.Expr]) -> ex.Expr | None:
    """The element that an index of numbers picks out of a small known tensor."""
    assert source.known is not None
    if len(source.known) == 1:
        return source.known[0]
    flat = 0
    for i, n in zip(index, source.shape, strict=True):
        at, extent = ix.number(i), ix.number(n)
        if at is None or extent is None or not 0 <= at < extent:
            return None
        flat = flat * extent + at
    return source.known[flat] if flat < len(source.known) else None


def _guarded(i: ex.Expr) -> bool:
    return isinstance(i, ex.Guard)


def _short(hint: str) -> str:
    """The last words of a name."""
    parts = snake(short_path(hint)).split("_")
    while len(parts) > 1 and len("_".join(parts)) > _LONGEST_HINT:
        parts = parts[1:]
    return "_".join(parts)[-_LONGEST_HINT:]


def _dim_hint(d: ex.Dim) -> str:
    head = d.name.split("_")[0]
    return head if head.isidentifier() and len(head) < 16 and head.islower() else "size"
