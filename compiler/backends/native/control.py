"""Branches and loops of a plan as LLVM IR, around calls of the functions that their bodies have become.

A body writes a result where it is told, or, where only it knows the size, into a temporary that it hands out.
States of a loop alternate between the memory of the result and a second one; what a loop collects goes
straight to its place where the number of steps is known, else into memory that grows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusile.ir.control import made_late
from fusile.ir.expr import Dim, Expr, const
from fusile.ir.plan import Control
from fusile.ir.tensor import Body, Branch, Loop, Tensor
from fusile.ir.types import storage_bytes
from fusile.passes.plan_memory import bytes_of
from fusile.runtime import abi

if TYPE_CHECKING:
    from fusile.backends.native.plan import PlanPrinter, _Printer
    from fusile.ir.plan import Plan


def print_control(p: PlanPrinter, f: _Printer, step: Control, symbols: list[str], site: int) -> None:
    """Print a step; `symbols` are the functions of its bodies."""
    p.module.declare("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
    if isinstance(step.stage, Branch):
        _branch(p, f, step.stage, step.plans, symbols)
    else:
        _Loop(p, f, step.stage, step.plans[0], symbols[0], site).print()


class _Frame:
    """What a body is called with: arrays of pointers and sizes on the stack."""

    def __init__(self, f: _Printer, plan: Plan, outputs: int) -> None:
        self.f, self.plan = f, plan
        self.inputs = _array(f, "ptr", len(plan.inputs))
        self.outputs = _array(f, "ptr", outputs)
        self.shapes = _array(f, "i64", abi.MAX_RANK * outputs)
        self.dims = _array(f, "i64", len(plan.symbols))

    def capture(self, p: PlanPrinter, body: Body) -> None:
        for k, t in enumerate(body.captured, len(body.own)):
            _put(self.f, "ptr", self.inputs, k, p.where(self.f, t))

    def sizes(self, local: frozenset[Dim]) -> None:
        for k, d in enumerate(self.plan.symbols):
            if d not in local:
                _put(self.f, "i64", self.dims, k, self.f.size(d))

    def call(self, symbol: str) -> None:
        f = self.f
        code = f.emit(
            f"call i32 @{symbol}(ptr %ctx, ptr %weights, ptr {self.inputs}, ptr {self.outputs}, "
            f"ptr {self.shapes}, ptr {self.dims}, ptr %error)"
        )
        f.stop_unless(f.emit(f"icmp eq i32 {code}, 0"), [f"ret i32 {code}"])


def _array(f: _Printer, kind: str, count: int) -> str:
    """Memory on the stack, once per call of the function."""
    name = f"%{f.label('held')}"
    f.entry.append(f"  {name} = alloca [{max(1, count)} x {kind}], align 8")
    return name


def _put(f: _Printer, kind: str, array: str, at: int, value: str) -> None:
    place = f.emit(f"getelementptr {kind}, ptr {array}, i64 {at}")
    f.lines.append(f"  store {kind} {value}, ptr {place}")


def _get(f: _Printer, kind: str, array: str, at: int) -> str:
    place = f.emit(f"getelementptr {kind}, ptr {array}, i64 {at}")
    return f.emit(f"load {kind}, ptr {place}")


def _true(f: _Printer, pointer: str) -> str:
    return f.emit(f"icmp ne i8 {f.emit(f'load i8, ptr {pointer}')}, 0")


def _branch(p: PlanPrinter, f: _Printer, s: Branch, plans: tuple[Plan, ...], symbols: list[str]) -> None:
    frames = [_Frame(f, plan, len(s.results)) for plan in plans]
    for frame, body in zip(frames, s.bodies, strict=True):
        frame.outputs, frame.shapes = frames[0].outputs, frames[0].shapes
        frame.capture(p, body)
        frame.sizes(frozenset())
    for k, t in enumerate(s.results):
        _put(f, "ptr", frames[0].outputs, k, "null" if made_late(t) else p.where(f, t))
    held = None if s.sizes is None else p.where(f, s.sizes)
    then, other, done = f.label("then"), f.label("else"), f.label("chosen")
    f.lines.append(f"  br i1 {_true(f, p.where(f, s.condition))}, label %{then}, label %{other}")
    for label, frame, symbol in zip((then, other), frames, symbols, strict=True):
        f.start(label)
        frame.call(symbol)
        f.lines.append(f"  br label %{done}")
    f.start(done)
    for k, t in enumerate(s.results):
        if made_late(t):
            p.pointers["temp", p.plan.places[t].number] = _get(f, "ptr", frames[0].outputs, k)
        for d, e in enumerate(t.shape):
            if e in s.defines:
                assert held is not None
                size = _get(f, "i64", frames[0].shapes, abi.MAX_RANK * k + d)
                _put(f, "i64", held, s.defines.index(e), size)


class _Loop:
    """One loop; its state lies on the stack while it runs."""

    def __init__(self, p: PlanPrinter, f: _Printer, s: Loop, plan: Plan, symbol: str, site: int) -> None:
        self.p, self.f, self.s, self.plan, self.symbol, self.site = p, f, s, plan, symbol, site
        self.first = int(s.conditional) + len(s.initial)
        self.frame = _Frame(f, plan, self.first + len(s.collected))
        self.moves = {k for _, k, _ in s.moving}
        self.counter = _array(f, "i64", 1)
        self.going = _array(f, "i64", 1)
        self.second: dict[int, str] = {}
        self.grown = {k: _array(f, "i64", 3) for k, t in enumerate(s.collected) if made_late(t)}
        self.slices = {k: _array(f, "i64", abi.MAX_RANK) for k in self.grown}

    def print(self) -> None:
        f, s = self.f, self.s
        self._begin()
        trip = None if s.trip is None else f.size(s.trip)
        targets = {k: self.p.where(f, t) for k, t in enumerate(s.finals) if k not in self.moves}
        places = {k: self.p.where(f, t) for k, t in enumerate(s.collected) if k not in self.grown}
        bytes_each = {k: f.size(self._slice_bytes(t)) for k, t in enumerate(s.collected) if self._steady(k)}
        starts = {k: self.p.where(f, t) for k, t in enumerate(s.initial)}
        lengths = {k: f.size(_exact_bytes(t)) for k, t in enumerate(s.initial)}
        held = None if s.sizes is None else self.p.where(f, s.sizes)
        head, body, done = f.label("loop"), f.label("step"), f.label("ended")
        f.lines.append(f"  br label %{head}")
        f.start(head)
        count = f.emit(f"load i64, ptr {self.counter}")
        more = _true(f, self.going)
        if trip is not None:
            more = f.emit(f"and i1 {more}, {f.emit(f'icmp slt i64 {count}, {trip}')}")
        f.lines.append(f"  br i1 {more}, label %{body}, label %{done}")
        f.start(body)
        self._targets(count, targets, places, bytes_each)
        self.frame.call(self.symbol)
        self._advance(count, starts, bytes_each)
        f.lines.append(f"  br label %{head}")
        f.start(done)
        self._finish(count, targets, starts, lengths, held)

    # ---- before --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        f, s = self.f, self.s
        self.frame.capture(self.p, s.body)
        self.frame.sizes(s.local)
        for k, t in enumerate(s.initial):
            _put(f, "ptr", self.frame.inputs, k, self.p.where(f, t))
        for d, k, axis in s.moving:
            if d in self.plan.symbols:
                _put(f, "i64", self.frame.dims, self.plan.symbols.index(d), f.size(s.initial[k].shape[axis]))
        for k, t in enumerate(s.initial):
            if k not in self.moves:
                self.second[k] = f.temp(bytes_of(t), self.site)
        for k in self.grown:
            for n in range(3):
                _put(f, "i64", self.grown[k], n, "0")
            for n in range(abi.MAX_RANK):
                _put(f, "i64", self.slices[k], n, "0")
        f.lines.append(f"  store i64 0, ptr {self.counter}")
        f.lines.append(f"  store i64 1, ptr {self.going}")
        if s.start is not None:
            first = f.emit(f"load i8, ptr {self.p.where(f, s.start)}")
            f.lines.append(f"  store i8 {first}, ptr {self.going}")

    # ---- a step --------------------------------------------------------------------------------------

    def _targets(
        self, count: str, targets: dict[int, str], places: dict[int, str], bytes_each: dict[int, str]
    ) -> None:
        """Where the body is to write."""
        f, s = self.f, self.s
        following = f.emit(f"add i64 {count}, 1")
        f.lines.append(f"  store i64 {following}, ptr {self.counter}")
        if s.step in self.plan.symbols:
            _put(f, "i64", self.frame.dims, self.plan.symbols.index(s.step), following)
        if s.conditional:
            _put(f, "ptr", self.frame.outputs, 0, self.going)
        even = f.emit(f"icmp eq i64 {f.emit(f'and i64 {count}, 1')}, 0")
        for k in range(len(s.initial)):
            to = "null"
            if k not in self.moves:
                to = f.emit(f"select i1 {even}, ptr {targets[k]}, ptr {self.second[k]}")
            _put(f, "ptr", self.frame.outputs, int(s.conditional) + k, to)
        for k in range(len(s.collected)):
            if k in places:
                at = f.emit(f"mul i64 {count}, {bytes_each[k]}")
                to = f.emit(f"getelementptr i8, ptr {places[k]}, i64 {at}")
            else:
                to = self._room(k, bytes_each[k]) if k in bytes_each else "null"
            _put(f, "ptr", self.frame.outputs, self.first + k, to)

    def _room(self, k: int, size: str) -> str:
        """A place for `size` more bytes behind what was collected."""
        f = self.f
        used = _get(f, "i64", self.grown[k], 2)
        start = f.whole(
            f"call ptr @fusile_grow(ptr %ctx, ptr {self.grown[k]}, i64 {used}, i64 {size}, i32 {self.site}, "
            f"ptr %error)"
        )
        return f.emit(f"getelementptr i8, ptr {start}, i64 {used}")

    def _advance(self, count: str, starts: dict[int, str], bytes_each: dict[int, str]) -> None:
        """What was written is the state of the next step."""
        f, s, frame = self.f, self.s, self.frame
        at_first = f.emit(f"icmp eq i64 {count}, 0")
        for k in range(len(s.initial)):
            new = _get(f, "ptr", frame.outputs, int(s.conditional) + k)
            if k in self.moves:
                old = _get(f, "ptr", frame.inputs, k)
                dead = f.emit(f"select i1 {at_first}, ptr null, ptr {old}")
                f.lines.append(f"  call void @fusile_temp_free(ptr %ctx, ptr {dead})")
            _put(f, "ptr", frame.inputs, k, new)
        for d, k, axis in s.moving:
            if d in self.plan.symbols:
                size = _get(f, "i64", frame.shapes, abi.MAX_RANK * (int(s.conditional) + k) + axis)
                _put(f, "i64", frame.dims, self.plan.symbols.index(d), size)
        for k in self.grown:
            if k in bytes_each:
                used = f.emit(f"add i64 {_get(f, 'i64', self.grown[k], 2)}, {bytes_each[k]}")
                _put(f, "i64", self.grown[k], 2, used)
            else:
                self._append(k, at_first)

    def _append(self, k: int, at_first: str) -> None:
        """Copy a slice behind the others, which must be as large."""
        f, t = self.f, self.s.collected[k]
        size = str(storage_bytes(t.dtype))
        for d in range(t.rank - 1):
            extent = _get(f, "i64", self.frame.shapes, abi.MAX_RANK * (self.first + k) + d)
            before = _get(f, "i64", self.slices[k], d)
            same = f.emit(f"or i1 {at_first}, {f.emit(f'icmp eq i64 {extent}, {before}')}")
            f.stop_unless(
                same,
                [
                    f"call void @fusile_error(ptr %error, i32 1, i32 {self.site}, i64 {extent}, "
                    f"i64 {before})",
                    "ret i32 1",
                ],
            )
            _put(f, "i64", self.slices[k], d, extent)
            size = f.emit(f"call i64 @fusile_size_mul(i64 {size}, i64 {extent})")
        to = self._room(k, size)
        made = _get(f, "ptr", self.frame.outputs, self.first + k)
        f.lines.append(f"  call void @llvm.memcpy.p0.p0.i64(ptr {to}, ptr {made}, i64 {size}, i1 false)")
        f.lines.append(f"  call void @fusile_temp_free(ptr %ctx, ptr {made})")
        _put(f, "i64", self.grown[k], 2, f.emit(f"add i64 {_get(f, 'i64', self.grown[k], 2)}, {size}"))

    # ---- after ---------------------------------------------------------------------------------------

    def _finish(
        self,
        count: str,
        targets: dict[int, str],
        starts: dict[int, str],
        lengths: dict[int, str],
        held: str | None,
    ) -> None:
        f, s, p = self.f, self.s, self.p
        none = f.emit(f"icmp eq i64 {count}, 0")
        for k, t in enumerate(s.finals):
            last = _get(f, "ptr", self.frame.inputs, k)
            if k in self.moves:  # without a step the state is still somebody else's
                p.pointers["temp", p.plan.places[t].number] = self._copied(last, none, lengths[k])
            else:
                there = f.emit(f"icmp eq ptr {last}, {targets[k]}")
                size = f.emit(f"select i1 {there}, i64 0, i64 {lengths[k]}")
                f.lines.append(
                    f"  call void @llvm.memcpy.p0.p0.i64(ptr {targets[k]}, ptr {last}, i64 {size}, i1 false)"
                )
                f.lines.append(f"  call void @fusile_temp_free(ptr %ctx, ptr {self.second[k]})")
        for k, t in enumerate(s.collected):
            if k in self.grown:
                p.pointers["temp", p.plan.places[t].number] = f.whole(
                    f"call ptr @fusile_grow(ptr %ctx, ptr {self.grown[k]}, i64 "
                    f"{_get(f, 'i64', self.grown[k], 2)}, i64 1, i32 {self.site}, ptr %error)"
                )
        if held is not None:
            self._sizes(held, count, none)

    def _copied(self, pointer: str, none: str, size: str) -> str:
        """A state that nobody else has: itself, or a copy where there was no step."""
        f = self.f
        copy, after = f.label("copy"), f.label("copied")
        slot = _array(f, "ptr", 1)
        f.lines.append(f"  store ptr {pointer}, ptr {slot}")
        f.lines.append(f"  br i1 {none}, label %{copy}, label %{after}")
        f.start(copy)
        made = f.whole(f"call ptr @fusile_temp(ptr %ctx, i64 {size}, i32 {self.site}, ptr %error)")
        f.lines.append(f"  call void @llvm.memcpy.p0.p0.i64(ptr {made}, ptr {pointer}, i64 {size}, i1 false)")
        f.lines.append(f"  store ptr {made}, ptr {slot}")
        f.lines.append(f"  br label %{after}")
        f.start(after)
        return f.emit(f"load ptr, ptr {slot}")

    def _sizes(self, held: str, count: str, none: str) -> None:
        """Write down what the loop found out."""
        f, s = self.f, self.s
        for k, t in enumerate(s.finals):
            for d, e in enumerate(t.shape):
                if e in s.defines:
                    at = abi.MAX_RANK * (int(s.conditional) + k) + d
                    found = _get(f, "i64", self.frame.shapes, at)
                    first = f.size(s.initial[k].shape[d])
                    size = f.emit(f"select i1 {none}, i64 {first}, i64 {found}")
                    _put(f, "i64", held, _at(s, e), size)
        for k, t in enumerate(s.collected):
            for d, e in enumerate(t.shape):
                if e in s.defines:
                    _put(f, "i64", held, _at(s, e), _get(f, "i64", self.slices[k], d - 1) if d else count)

    def _steady(self, k: int) -> bool:
        """Whether all slices of what is collected have a size that is known before."""
        return all(e not in self.s.defines for e in self.s.collected[k].shape[1:])

    def _slice_bytes(self, t: Tensor) -> Expr:
        size: Expr = const(storage_bytes(t.dtype))
        for e in t.shape[1:]:
            size = size * e
        return size


def _at(s: Loop, e: Expr) -> int:
    assert isinstance(e, Dim)
    return s.defines.index(e)


def _exact_bytes(t: Tensor) -> Expr:
    return t.size * storage_bytes(t.dtype)
