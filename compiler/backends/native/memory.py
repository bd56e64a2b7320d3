"""Buffers of a function: where they lie, and loads and stores of their elements.

Parameters and scratch buffers have one address. A local buffer is as often there as the jam iterations around
it, and where a `vector` loop is around it as well, its elements are vectors: one value for each lane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from fusile.backends.native import scalars
from fusile.backends.native.function import Function, Instance, Value, sized
from fusile.backends.native.operations import any_lane, pick, splat
from fusile.ir import index as ix
from fusile.ir.expr import Axis, Expr, Load, const, free, nodes, substitute
from fusile.ir.loops import Buffer, Stmt, Store, written
from fusile.ir.types import BOOL, I64, DType, storage_bytes

Places = tuple[tuple[Axis, int], ...]


def safe(x: Load) -> bool:
    """Whether a load is inside its buffer, whatever its axes are."""
    return all(ix.within(at, n) for at, n in zip(x.index, x.source.shape, strict=True))


def _element(b: Buffer, lanes: int) -> str:
    """The LLVM type of an element in memory, or of as many as there are lanes."""
    return sized(scalars.memory_type(b.dtype), lanes)


class Memory:
    """Prints accesses; `value` prints what they need of expressions, for one instance."""

    def __init__(
        self, f: Function, value: Callable[[Expr, Instance], Value], offsets: Mapping[Buffer, Expr]
    ) -> None:
        self.f, self.value = f, value
        self.offsets = offsets
        self.kept: dict[tuple[Buffer, Places], str] = {}
        self.kept_lanes: dict[Buffer, Axis | None] = {}
        self.kept_axes: dict[Buffer, tuple[Axis, ...]] = {}
        self.versions: dict[Buffer, int] = {}
        self._depends: dict[Expr, frozenset[Expr]] = {}

    # ---- buffers ---------------------------------------------------------------------------------

    def alloc(self, b: Buffer, instances: list[Instance]) -> None:
        f = self.f
        if b.scope == "scratch":
            offset = self.value(self.offsets[b], Instance(()))
            f.pointers[b] = f.emit(f"getelementptr i8, ptr %scratch, i64 {offset.text}")
            return
        count = ix.number(ix.product(b.shape))
        assert count is not None, f"the local buffer {b.name} needs a fixed size"
        self.kept_lanes[b] = f.vector
        self.kept_axes[b] = tuple(a for a, _ in instances[0].places)
        for i in instances:
            self.kept[(b, i.places)] = f.reserve(f"[{max(count, 1)} x {_element(b, f.lanes)}]")

    def _base(self, b: Buffer, i: Instance) -> str:
        """Where a buffer begins, for one instance."""
        own = self.kept_axes.get(b)
        if own is None:
            return self.f.pointers[b]
        return self.kept[(b, tuple((a, k) for a, k in i.places if a in own))]

    def _per_lane(self, b: Buffer) -> bool:
        """Whether every lane has a buffer of its own."""
        return self.kept_lanes.get(b) is not None

    def depends(self, e: Expr) -> frozenset[Expr]:
        """The axes that an expression's value depends on, those around the locals that it reads included."""
        known = self._depends.get(e)
        if known is None:
            found = set(free(e))
            for n in nodes(e):
                if isinstance(n, Load) and n.source in self.kept_axes:
                    found |= set(self.kept_axes[n.source])
                    lane = self.kept_lanes[n.source]
                    if lane is not None:
                        found.add(lane)
            known = self._depends[e] = frozenset(found)
        return known

    def changed(self, buffers: Iterable[Buffer]) -> None:
        """What was read from these buffers is not known any more."""
        for b in buffers:
            self.versions[b] = self.versions.get(b, 0) + 1

    def forget(self, body: Iterable[Stmt]) -> None:
        """What was read from buffers that a body writes is not known around it."""
        self.changed(written(body))

    # ---- addresses -------------------------------------------------------------------------------

    def _flat(self, b: Buffer, index: tuple[Expr, ...], i: Instance) -> tuple[Expr, int | None]:
        """The position of an access with this instance's jam places put in, and its stride along the lanes
        (None: not linear).
        """
        address = b.address(index)
        places: dict[Expr, Expr] = {a: const(k) for a, k in i.places}
        if places:
            address = substitute(address, places)
        lane = self.f.vector
        if lane is None or lane not in self.depends(address):
            return address, 0
        c = ix.coefficient(address, lane)
        stride = None if c is None else ix.number(c)
        if stride == 1:
            rest = substitute(address, {lane: const(0)})
            # A local buffer in an index may hold a value for each lane.
            return (address, None) if lane in self.depends(rest) else (rest, 1)
        return address, None

    def _pointer(self, b: Buffer, address: Expr, i: Instance) -> str:
        """The address of an element: what varies, then the constant part as a displacement."""
        f = self.f
        p = dict(ix.poly(address))
        offset = p.pop((), 0)
        base = self._base(b, i)
        t = scalars.memory_type(b.dtype)
        if p:
            rest = self.value(ix.expr(p), i)
            assert not rest.lanes
            key = ("pointer", base, rest.text)
            found = f.memo.get(key)
            if found is None:
                varying = f.emit(f"getelementptr inbounds {t}, ptr {base}, i64 {rest.text}")
                found = f.memo.put(key, Value(varying, I64))
            base = found.text
        return f.emit(f"getelementptr inbounds {t}, ptr {base}, i64 {offset}") if offset else base

    def _pointers(self, b: Buffer, where: Value, i: Instance) -> str:
        """The addresses of one element for each lane."""
        f, t = self.f, scalars.memory_type(b.dtype)
        return f.emit(f"getelementptr {t}, ptr {self._base(b, i)}, <{f.lanes} x i64> {where.text}")

    def _kept_pointer(self, b: Buffer, index: tuple[Expr, ...], i: Instance) -> str:
        """The element of a per-lane local buffer: a vector with one value for each lane."""
        address, stride = self._flat(b, index, i)
        assert stride == 0, f"the place in the local buffer {b.name} differs between lanes"
        base = self._base(b, i)
        if not b.shape:
            return base
        at = self.value(address, Instance(i.places)).text
        return self.f.emit(f"getelementptr inbounds {_element(b, self.f.lanes)}, ptr {base}, i64 {at}")

    # ---- loads -----------------------------------------------------------------------------------

    def load(self, e: Load, i: Instance) -> Value:
        b: Buffer = e.source
        if self._per_lane(b):
            return self._read(b, self.f.lanes, self._kept_pointer(b, e.index, i))
        mask = i.mask if i.mask is not None and not safe(e) else None
        address, stride = self._flat(b, e.index, i)
        note = "" if b in self.f.written or b.scope != "param" else ", !invariant.load !0"
        if stride == 0 and mask is None:
            return self._read(b, 0, self._pointer(b, address, i), note)
        if stride == 0 and mask is not None:
            return self._load_if(b, address, mask, i, note)
        if stride == 1 and mask is None:
            return self._read(b, self.f.lanes, self._pointer(b, address, i), note)
        if stride == 1 and mask is not None and mask.lanes:
            return self._masked_load(b, self._pointer(b, address, i), mask)
        return self._gather(b, address, stride, mask, i)

    def _read(self, b: Buffer, lanes: int, pointer: str, note: str = "") -> Value:
        text = f"load {_element(b, lanes)}, ptr {pointer}, align {storage_bytes(b.dtype)}{note}"
        return self._from_memory(self.f.emit(text), b.dtype, lanes)

    def _load_if(self, b: Buffer, address: Expr, mask: Value, i: Instance, note: str) -> Value:
        """One element for all lanes; the buffer's first where no lane asks for it."""
        f = self.f
        if mask.lanes:
            mask = any_lane(f, mask)
        where = pick(f, mask, self.value(address, i), Value("0", I64))
        t = scalars.memory_type(b.dtype)
        pointer = f.emit(f"getelementptr inbounds {t}, ptr {self._base(b, i)}, i64 {where.text}")
        return self._read(b, 0, pointer, note)

    def _masked_load(self, b: Buffer, pointer: str, mask: Value) -> Value:
        f, vt, m = self.f, _element(b, self.f.lanes), f"<{self.f.lanes} x i1>"
        name = f"llvm.masked.load.{self._letters(b)}.p0"
        f.module.declare(f"declare {vt} @{name}(ptr, i32, {m}, {vt})")
        given = f"ptr {pointer}, i32 {storage_bytes(b.dtype)}, {m} {mask.text}, {vt} zeroinitializer"
        return self._from_memory(f.emit(f"call {vt} @{name}({given})"), b.dtype, f.lanes)

    def _gather(self, b: Buffer, address: Expr, stride: int | None, mask: Value | None, i: Instance) -> Value:
        f, vt, m = self.f, _element(b, self.f.lanes), f"<{self.f.lanes} x i1>"
        if stride == 1 and f.vector is not None:
            address = address + f.vector
        pointers = self._pointers(b, splat(f, self.value(address, i), f.lanes), i)
        full = self._full(mask)
        name = f"llvm.masked.gather.{self._letters(b)}.v{f.lanes}p0"
        f.module.declare(f"declare {vt} @{name}(<{f.lanes} x ptr>, i32, {m}, {vt})")
        given = (
            f"<{f.lanes} x ptr> {pointers}, i32 {storage_bytes(b.dtype)}, {m} {full}, {vt} zeroinitializer"
        )
        return self._from_memory(f.emit(f"call {vt} @{name}({given})"), b.dtype, f.lanes)

    def _from_memory(self, text: str, t: DType, lanes: int) -> Value:
        if t is not BOOL:
            return Value(text, t, lanes)
        zero = "zeroinitializer" if lanes else "0"
        return Value(self.f.emit(f"icmp ne {sized('i8', lanes)} {text}, {zero}"), BOOL, lanes)

    # ---- stores ----------------------------------------------------------------------------------

    def store(self, s: Store, i: Instance) -> None:
        f, b = self.f, s.buffer
        v = self.value(s.value, i)
        if self._per_lane(b):
            pointer = self._kept_pointer(b, s.index, i)
            v = splat(f, v, f.lanes)
            if i.mask is not None and i.mask.lanes:
                self._masked_store(b, v, pointer, i.mask.text)
            else:
                self._write(b, v, pointer, storage_bytes(b.dtype))
            return
        address, stride = self._flat(b, s.index, i)
        note = ", !nontemporal !1" if s.stream else ""
        if stride == 0 and not v.lanes:
            self._write(b, v, self._pointer(b, address, i), storage_bytes(b.dtype), note)
            return
        v = splat(f, v, f.lanes)
        if stride == 1:
            pointer = self._pointer(b, address, i)
            if i.mask is not None:
                self._masked_store(b, v, pointer, self._full(i.mask))
            else:
                # Streaming stores exist for whole aligned vectors only.
                align = storage_bytes(b.dtype) * (f.lanes if s.stream else 1)
                self._write(b, v, pointer, align, note)
            return
        assert stride is None, f"all lanes write one element of {b.name}"
        self._scatter(b, v, address, i)

    def _write(self, b: Buffer, v: Value, pointer: str, align: int, note: str = "") -> None:
        text = self._to_memory(v)
        self.f.lines.append(f"  store {_element(b, v.lanes)} {text}, ptr {pointer}, align {align}{note}")

    def _masked_store(self, b: Buffer, v: Value, pointer: str, mask: str) -> None:
        f, vt, m = self.f, _element(b, self.f.lanes), f"<{self.f.lanes} x i1>"
        text = self._to_memory(v)
        name = f"llvm.masked.store.{self._letters(b)}.p0"
        f.module.declare(f"declare void @{name}({vt}, ptr, i32, {m})")
        given = f"{vt} {text}, ptr {pointer}, i32 {storage_bytes(b.dtype)}, {m} {mask}"
        f.lines.append(f"  call void @{name}({given})")

    def _scatter(self, b: Buffer, v: Value, address: Expr, i: Instance) -> None:
        f, vt, m = self.f, _element(b, self.f.lanes), f"<{self.f.lanes} x i1>"
        pointers = self._pointers(b, self.value(address, i), i)
        name = f"llvm.masked.scatter.{self._letters(b)}.v{f.lanes}p0"
        f.module.declare(f"declare void @{name}({vt}, <{f.lanes} x ptr>, i32, {m})")
        full = self._full(i.mask)
        text = self._to_memory(v)
        given = f"{vt} {text}, <{f.lanes} x ptr> {pointers}, i32 {storage_bytes(b.dtype)}, {m} {full}"
        f.lines.append(f"  call void @{name}({given})")

    def _to_memory(self, v: Value) -> str:
        if v.dtype is not BOOL:
            return v.text
        return self.f.emit(f"zext {v.typed} to {sized('i8', v.lanes)}")

    # ---- vector accesses -------------------------------------------------------------------------

    def _letters(self, b: Buffer) -> str:
        """The part of an intrinsic's name for a vector of elements."""
        return f"v{self.f.lanes}{scalars.letters(scalars.memory_type(b.dtype))}"

    def _full(self, mask: Value | None) -> str:
        """A mask with lanes."""
        if mask is None:
            return f"<{', '.join(['i1 true'] * self.f.lanes)}>"
        return splat(self.f, mask, self.f.lanes).text
