"""Values of expressions: each is printed once, where it is first needed, for all instances that share it."""

from __future__ import annotations

from collections.abc import Mapping

from fusile.backends.native import scalars
from fusile.backends.native.function import Function, Instance, Value
from fusile.backends.native.memory import Memory, safe
from fusile.backends.native.operations import (
    any_lane,
    apply,
    bitcast,
    both,
    cast,
    first_lane,
    pick,
    same_lanes,
)
from fusile.ir import index as ix
from fusile.ir.expr import Apply, Axis, Const, Dim, Expr, Guard, Load, nodes
from fusile.ir.loops import Buffer
from fusile.ir.types import BOOL, I64


class Values:
    """Prints expressions into a function, and with them the loads that they hold."""

    def __init__(self, f: Function, offsets: Mapping[Buffer, Expr]) -> None:
        self.f = f
        self.memory = Memory(f, self.value, offsets)
        self.depth: dict[Axis, int] = {}
        """How many loops are around the loop over an axis."""
        self.agreed: dict[Expr, set[Expr]] = {}
        """What both arms of a select need, by the select."""
        self.sites: dict[str, str] = {}
        """The numbers of the ONNX nodes whose indices are checked, as values of the function."""

    def value(self, e: Expr, i: Instance) -> Value:
        """Print what is not printed yet of an expression, for one instance."""
        if isinstance(e, Const):
            return Value(scalars.literal(e.value, e.dtype), e.dtype)
        if isinstance(e, Axis):
            for a, k in i.places:
                if a is e:
                    return Value(str(k), I64)
        if isinstance(e, (Axis, Dim)):
            found = self.f.memo.get(e)
            assert found is not None, f"{e.name} has no value in {self.f.symbol}"
            return found
        needs = self.memory.depends(e)
        place, version = tuple(k for a, k in i.places if a in needs), self._versions(e)
        mask = i.mask.text if i.mask and _reads(e) else ""
        under: str | None = mask
        while under is not None:  # what was read for more lanes serves these too
            found = self.f.memo.get((e, place, version, under))
            if found is not None:
                return found
            under = self.f.wider.get(under)
        return self.f.memo.put((e, place, version, mask), self._print(e, i))

    def _versions(self, e: Expr) -> tuple[int, ...]:
        versions = self.memory.versions
        return tuple(
            versions.get(n.source, 0) for n in nodes(e) if isinstance(n, Load) and n.source in versions
        )

    def _print(self, e: Expr, i: Instance) -> Value:
        match e:
            case Load():
                return self.memory.load(e, i)
            case Guard():
                return self._guard(e, i)
            case Apply(op="select"):
                return self._select(e, i)
            case Apply(op="cast"):
                return cast(self.f, self.value(e.args[0], i), e.dtype)
            case Apply(op="bitcast"):
                return bitcast(self.f, self.value(e.args[0], i), e.dtype)
            case Apply() if (
                e.dtype is I64 and e.op in ("floordiv", "mod") and ix.nonnegative(ix.poly(e.args[0]))
            ):
                a, b = same_lanes(self.f, *(self.value(x, i) for x in e.args))
                word = "udiv" if e.op == "floordiv" else "urem"
                return Value(self.f.emit(f"{word} {a.typed}, {b.text}"), I64, a.lanes)
            case Apply() if e.dtype is I64 and e.op in ("add", "mul"):
                return self._index(e, i)
            case Apply():
                return apply(self.f, e.op, [self.value(a, i) for a in e.args], e.dtype)
        raise TypeError(f"{type(e).__name__} cannot be printed: {e}")

    def _index(self, e: Expr, i: Instance) -> Value:
        """A polynomial, summed from the outermost loop inwards, so that what is invariant comes first."""
        f = self.f

        def level(term: tuple[tuple[Expr, ...], int]) -> int:
            axes = [a for x in term[0] for a in self.memory.depends(x)]
            inner = [self.depth.get(a, 0) for a in axes if isinstance(a, Axis)]
            return (1000 if f.vector in axes else 0) + max(inner, default=-1)

        total: Value | None = None
        for monomial, factor in sorted(ix.poly(e).items(), key=level):
            term: Value | None = None
            for atom in monomial:
                v = self.value(atom, i)
                term = v if term is None else apply(f, "mul", [term, v], I64)
            if term is None:
                term = Value(str(factor), I64)
            elif factor != 1:
                term = apply(f, "mul", [term, Value(str(factor), I64)], I64)
            total = term if total is None else apply(f, "add", [total, term], I64)
        return total or Value("0", I64)

    def _select(self, e: Apply, i: Instance) -> Value:
        """Reads in an arm happen only where it is taken, unless they are provably inside their buffers or
        both arms need them.
        """
        test = self.value(e.args[0], i)
        risky = [_is_risky(arm) for arm in e.args[1:]]
        if all(risky):
            # Once for all lanes: read again in each arm, a chain of selects would double with every link.
            shared = self._agreed(e)
            for n in nodes(e.args[1]):
                if n in shared and _reads(n):
                    self.value(n, i)
        arms = []
        for arm, wanted, alone in zip(e.args[1:], (True, False), risky, strict=True):
            if alone:
                taken = test if wanted else apply(self.f, "not", [test], BOOL)
                arms.append(self.value(arm, Instance(i.places, both(self.f, i.mask, taken))))
            else:
                arms.append(self.value(arm, i))
        return pick(self.f, test, arms[0], arms[1])

    def _certain(self, e: Expr) -> set[Expr]:
        """The parts of an expression that are worked out whichever arms its selects take."""
        found: set[Expr] = set()
        pending = [e]
        while pending:
            x = pending.pop()
            if x in found:
                continue
            found.add(x)
            if isinstance(x, Apply) and x.op == "select":
                pending.append(x.args[0])
                found |= self._agreed(x)
            else:
                pending.extend(x.children)
        return found

    def _agreed(self, e: Apply) -> set[Expr]:
        """What both arms of a select need."""
        known = self.agreed.get(e)
        if known is None:
            known = self.agreed[e] = self._certain(e.args[1]) & self._certain(e.args[2])
        return known

    def _guard(self, e: Guard, i: Instance) -> Value:
        """The index where it is inside, else 0 after setting the error."""
        f = self.f
        index, extent = same_lanes(f, self.value(e.index, i), self.value(e.extent, i))
        outside = Value(f.emit(f"icmp uge {index.typed}, {extent.text}"), BOOL, index.lanes)
        answer = pick(f, outside, Value("0", I64), index)
        bad = outside if i.mask is None else both(f, i.mask, outside)
        fail, fine = f.label("fail"), f.label("fine")
        some = any_lane(f, bad) if bad.lanes else bad
        f.lines.append(f"  br i1 {some.text}, label %{fail}, label %{fine}, !prof !2")
        f.start(fail)
        first_index, first_extent = index.text, extent.text
        if index.lanes:
            lane = first_lane(f, bad) if bad.lanes else "i32 0"
            first_index = f.emit(f"extractelement {index.typed}, {lane}")
            first_extent = f.emit(f"extractelement {extent.typed}, {lane}")
        site = f.emit(f"trunc i64 {self.sites[e.site]} to i32")
        f.lines.append(
            f"  call void @fusile_error(ptr %error, i32 2, i32 {site}, i64 {first_index}, i64 {first_extent})"
        )
        f.lines.append(f"  br label %{fine}")
        f.start(fine)
        return answer


def _reads(e: Expr) -> bool:
    """Whether an expression has something that a mask keeps from happening."""
    return any(isinstance(n, (Load, Guard)) for n in nodes(e))


def _is_risky(arm: Expr) -> bool:
    """Whether an arm of a select reads what may not be there unless it is taken."""
    return any(isinstance(n, Guard) or (isinstance(n, Load) and not safe(n)) for n in nodes(arm))
