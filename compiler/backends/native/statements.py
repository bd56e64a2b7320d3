"""Statements of a function: loops, branches, and the instances that run through them side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from fusile.backends.native.function import Function, Instance, Value
from fusile.backends.native.operations import both
from fusile.backends.native.values import Values
from fusile.ir import index as ix
from fusile.ir.expr import Axis
from fusile.ir.loops import Alloc, For, If, Kind, Stmt, Store, walk
from fusile.ir.types import I64

SHORT_LOOP = 8
"""Iterations up to which LLVM may lay a loop out flat, and the loop around it as well."""


def _around_a_long_loop(loop: For) -> bool:
    """Whether a loop is around one that stays a loop. Laying out such a loop flat makes copies of what is
    inside and mixes their registers: accumulators spill in the innermost loop.
    """
    serial = (s for s in walk(loop.body) if isinstance(s, For) and s.kind is Kind.SERIAL)
    return any((ix.number(s.axis.extent) or SHORT_LOOP + 1) > SHORT_LOOP for s in serial)


class Statements:
    """Prints statements into a function, each once for all instances or once for each."""

    def __init__(self, f: Function, values: Values) -> None:
        self.f, self.values, self.memory = f, values, values.memory

    def run(self, body: Iterable[Stmt], instances: list[Instance]) -> None:
        for s in body:
            match s:
                case Alloc():
                    self.memory.alloc(s.buffer, instances)
                case Store():
                    for i in instances:
                        self.memory.store(s, i)
                    self.memory.changed((s.buffer,))
                case If():
                    self._if(s, instances)
                case For(kind=Kind.JAM):
                    self._jam(s, instances)
                case For(kind=Kind.VECTOR):
                    self._vector(s, instances)
                case For():
                    self._loop(s, instances)

    def tasks(self, axes: Sequence[Axis], body: Iterable[Stmt]) -> None:
        """for task in begin .. end: the digits of the task number are the parallel axes."""
        f, instances = self.f, [Instance(())]
        with self._counting(("task", "work", "done"), "%begin", "%end", "nsw") as rest:
            for level, a in reversed(list(enumerate(axes))):
                self.values.depth[a] = level
                if level == 0:
                    f.memo.put(a, rest)
                    break
                extent = self.values.value(a.extent, instances[0])
                digit = f.emit(f"urem {rest.typed}, {extent.text}")
                f.memo.put(a, Value(digit, I64))
                rest = Value(f.emit(f"udiv {rest.typed}, {extent.text}"), I64)
            self.run(body, instances)

    def _jam(self, s: For, instances: list[Instance]) -> None:
        n = ix.number(s.axis.extent)
        assert n is not None, f"the jam loop over {s.axis.name} needs a fixed extent"
        self.run(s.body, [Instance((*i.places, (s.axis, k)), i.mask) for i in instances for k in range(n)])

    def _vector(self, s: For, instances: list[Instance]) -> None:
        f = self.f
        n = ix.number(s.axis.extent)
        assert n is not None and f.vector is None, (
            f"the vector loop over {s.axis.name} needs a fixed extent and no other around it"
        )
        f.vector, f.lanes = s.axis, n
        with f.memo.inner():
            numbers = ", ".join(f"i64 {k}" for k in range(n))
            f.memo.put(s.axis, Value(f"<{numbers}>", I64, n))
            self.run(s.body, instances)
        f.vector, f.lanes = None, 0

    def _loop(self, s: For, instances: list[Instance]) -> None:
        f = self.f
        if ix.number(s.axis.extent) == 1:
            with f.memo.inner():
                f.memo.put(s.axis, Value("0", I64))
                self.run(s.body, instances)
            return
        extent = self.values.value(s.axis.extent, instances[0])
        assert not extent.lanes, f"the extent of the loop over {s.axis.name} differs between lanes"
        kept = ", !llvm.loop !3" if _around_a_long_loop(s) else ""
        with self._counting(("loop", "body", "exit"), "0", extent.text, "nuw nsw", kept) as counter:
            self.memory.forget(s.body)
            self.values.depth[s.axis] = len(f.memo.stack)
            f.memo.put(s.axis, counter)
            self.run(s.body, instances)
            self.memory.forget(s.body)

    @contextmanager
    def _counting(
        self, names: tuple[str, str, str], first: str, end: str, flags: str, metadata: str = ""
    ) -> Iterator[Value]:
        """The blocks of a loop over numbers from `first` below `end`; what is printed inside is its body."""
        f = self.f
        head, body, done = (f.label(name) for name in names)
        before = f.block
        f.lines.append(f"  br label %{head}")
        f.start(head)
        at = len(f.lines)
        f.lines.append("")  # the counter: which block comes back here is known at the end
        counter, following = f.name(), f.name()
        more = f.emit(f"icmp slt i64 {counter}, {end}")
        f.lines.append(f"  br i1 {more}, label %{body}, label %{done}")
        f.start(body)
        with f.memo.inner():
            yield Value(counter, I64)
        f.lines.append(f"  {following} = add {flags} i64 {counter}, 1")
        f.lines.append(f"  br label %{head}{metadata}")
        f.lines[at] = f"  {counter} = phi i64 [ {first}, %{before} ], [ {following}, %{f.block} ]"
        f.start(done)

    def _if(self, s: If, instances: list[Instance]) -> None:
        f = self.f
        tests = [self.values.value(s.condition, i) for i in instances]
        if tests[0].lanes:
            narrowed = [Instance(i.places, both(f, i.mask, t)) for i, t in zip(instances, tests, strict=True)]
            with f.memo.inner():
                self.run(s.body, narrowed)
            return
        if all(t.text == tests[0].text for t in tests):
            self._branch(s, tests[0], instances)
        else:
            for i, t in zip(instances, tests, strict=True):
                self._branch(s, t, [i])

    def _branch(self, s: If, test: Value, instances: list[Instance]) -> None:
        f = self.f
        body, done = f.label("then"), f.label("end")
        f.lines.append(f"  br i1 {test.text}, label %{body}, label %{done}")
        f.start(body)
        with f.memo.inner():
            self.run(s.body, instances)
        self.memory.forget(s.body)
        f.lines.append(f"  br label %{done}")
        f.start(done)
