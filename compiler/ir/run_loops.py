"""The meaning of loop kernels and of plans: a slow interpreter of single elements, which judges schedules and
printers.

Loops of kind `vector` and `jam` run as `fusile.ir.loops` says: their iterations go side by side, statement by
statement, each with its own locals, and a statement is evaluated for all of them before any of them stores.
All other kinds run in order. Memory that nothing has written yet holds NaN, or -1 where it is for whole
numbers. Accesses outside a buffer, two iterations side by side that store to one element, and loops that
iterations side by side would run a different number of times are bugs of fusile (InternalError); an index out
of range that the kernel checks itself is a RunError, as in native code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusile.errors import InternalError, RunError
from fusile.ir.control import made_late
from fusile.ir.expr import Apply, Axis, Const, Dim, Expr, Guard, Load
from fusile.ir.interpret import NUMPY, Array, Interpreter, bind_sizes, cast_array, evaluate
from fusile.ir.loops import Alloc, Buffer, For, If, Kernel, Kind, Stmt, Store
from fusile.ir.plan import Call, Check, Control, Define, Place, Plan, PrepareStep
from fusile.ir.tensor import Tensor, stage_reads
from fusile.ir.types import BOOL, F32, F64, I64, DType, numpy_dtype, storage_bytes

FRESH_BYTE = 0xFF
"""What every byte of new memory holds: NaN in all floating-point types, -1 in whole numbers."""

Memo = dict[Expr, Any]


@dataclass(eq=False, slots=True)
class _Lane:
    """One of the iterations that run side by side: the values of axes and dims, and the memory that it
    sees."""

    values: dict[Expr, int]
    memory: dict[Buffer, Array]


Code = Callable[[_Lane, Memo], Any]


def fresh(shape: Sequence[int], dtype: DType) -> Array:
    """New memory, filled so that reading it before writing it shows."""
    to = numpy_dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * to.itemsize
    return _block(size).view(to).reshape(tuple(shape))


def _block(size: int) -> Array:
    return np.full(size, FRESH_BYTE, np.uint8)


# ---- expressions ---------------------------------------------------------------------------------


class _Compiler:
    """Expressions to Python closures, each once. Whole numbers of type i64 are Python ints, bools Python
    bools.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.done: dict[Expr, Code] = {}

    def code(self, e: Expr) -> Callable[[_Lane], Any]:
        """What evaluates an expression for one lane."""
        inner = self._shared(e)
        return lambda lane: inner(lane, {})

    def _shared(self, root: Expr) -> Code:
        if root in self.done:
            return self.done[root]
        uses: Counter[Expr] = Counter()
        order: list[Expr] = []

        def count(x: Expr) -> None:
            uses[x] += 1
            if uses[x] == 1:
                for c in x.children:
                    count(c)
                order.append(x)

        count(root)
        made: dict[Expr, Code] = {}
        for x in order:
            code = self._node(x, [made[c] for c in x.children])
            made[x] = _remembered(x, code) if uses[x] > 1 and x.children else code
        self.done[root] = made[root]
        return made[root]

    def _node(self, e: Expr, c: list[Code]) -> Code:
        match e:
            case Const():
                value = _scalar(np.asarray(e.value).astype(numpy_dtype(e.dtype)), e.dtype)
                return lambda lane, memo: value
            case Axis() | Dim():
                return lambda lane, memo: lane.values[e]
            case Load():
                return self._load(e, c)
            case Guard():
                return self._guard(e, c)
            case Apply():
                return self._apply(e, c)
        raise InternalError(
            f"{type(e).__name__} has no value in a kernel", where=self.where, why=f"found in {e!r}"
        )

    def _load(self, e: Load, index: list[Code]) -> Code:
        buffer: Buffer = e.source
        held = _PYTHON.get(e.dtype)

        def read(lane: _Lane, memo: Memo) -> Any:
            at = tuple([i(lane, memo) for i in index])
            array = lane.memory.get(buffer)
            if array is None:
                raise InternalError(f"{buffer.name} is read where it does not exist", where=self.where)
            self.inside(buffer, array, at, "reads")
            return array[at] if held is None else held(array[at])

        return read

    def inside(self, buffer: Buffer, array: Array, at: tuple[int, ...], verb: str) -> None:
        for i, n in zip(at, array.shape, strict=True):
            if not 0 <= i < n:
                place = f"{buffer.name}[{', '.join(map(str, at))}]"
                raise InternalError(f"{verb} {place}, which has the shape {array.shape}", where=self.where)

    def _guard(self, e: Guard, c: list[Code]) -> Code:
        def checked(lane: _Lane, memo: Memo) -> int:
            index, extent = int(c[0](lane, memo)), int(c[1](lane, memo))
            if not 0 <= index < extent:
                raise RunError(
                    "An index is out of range", node=e.site, why=f"{index} is not in 0 .. {extent - 1}"
                )
            return index

        return checked

    def _apply(self, e: Apply, c: list[Code]) -> Code:
        if e.op == "select":  # only the arm that is taken has a value: the other may read outside
            test, yes, no = c
            return lambda lane, memo: yes(lane, memo) if test(lane, memo) else no(lane, memo)
        fast = _FAST_INTEGERS.get(e.op) if all(a.dtype is I64 for a in e.args) else None
        if fast is not None and len(c) == 2:
            a, b = c
            return lambda lane, memo: fast(a(lane, memo), b(lane, memo))
        if e.op in _FAST_FLOATS and all(a.dtype in (F32, F64) for a in e.args):
            quick, a, b = _FAST_FLOATS[e.op], c[0], c[1]
            return lambda lane, memo: quick(a(lane, memo), b(lane, memo))
        meaning = self._meaning(e)
        sources = [numpy_dtype(a.dtype) for a in e.args]

        def general(lane: _Lane, memo: Memo) -> Any:
            arguments = [np.asarray(x(lane, memo)).astype(t) for x, t in zip(c, sources, strict=True)]
            return _scalar(meaning(*arguments), e.dtype)

        return general

    def _meaning(self, e: Apply) -> Callable[..., Any]:
        to = numpy_dtype(e.dtype)
        match e.op:
            case "cast":
                return lambda a: cast_array(a, e.dtype)
            case "bitcast":
                return lambda a: a.view(to)
        return NUMPY[e.op]


def _remembered(e: Expr, code: Code) -> Code:
    """Evaluated once per evaluation of the whole expression, however often it occurs in it."""

    def value(lane: _Lane, memo: Memo) -> Any:
        if e not in memo:
            memo[e] = code(lane, memo)
        return memo[e]

    return value


def _wrapped(value: int) -> int:
    return value if -(1 << 63) <= value < 1 << 63 else (value + (1 << 63)) % (1 << 64) - (1 << 63)


_FAST_INTEGERS: Mapping[str, Callable[[int, int], int]] = {
    "add": lambda a, b: _wrapped(a + b),
    "sub": lambda a, b: _wrapped(a - b),
    "mul": lambda a, b: _wrapped(a * b),
    "floordiv": lambda a, b: _wrapped(a // b) if b else 0,
    "mod": lambda a, b: a % b if b else 0,
    "min": lambda a, b: b if b < a else a,
    "max": lambda a, b: b if a < b else a,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}
_FAST_FLOATS: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "min": lambda a, b: b if b < a else a,
    "max": lambda a, b: b if a < b else a,
}


_PYTHON: Mapping[DType, Callable[[Any], Any]] = {I64: int, BOOL: bool}


def _scalar(value: Any, dtype: DType) -> Any:
    """A value as lanes hold it."""
    held = _PYTHON.get(dtype)
    return np.asarray(value).astype(numpy_dtype(dtype))[()] if held is None else held(value)


# ---- statements ----------------------------------------------------------------------------------


class _Machine:
    """Runs the statements of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.where = f"kernel {kernel.name}"
        self.compiler = _Compiler(self.where)
        self.codes: dict[Expr, Callable[[_Lane], Any]] = {}

    def value(self, e: Expr, lane: _Lane) -> Any:
        code = self.codes.get(e)
        if code is None:
            code = self.codes[e] = self.compiler.code(e)
        return code(lane)

    def run(self, body: Iterable[Stmt], lanes: list[_Lane]) -> None:
        for s in body:
            match s:
                case Alloc():
                    self._alloc(s.buffer, lanes)
                case Store():
                    self._store(s, lanes)
                case If():
                    inside = [lane for lane in lanes if self.value(s.condition, lane)]
                    if inside:
                        self.run(s.body, inside)
                case For(kind=Kind.VECTOR | Kind.JAM):
                    self._side_by_side(s, lanes)
                case For():
                    for k in range(self._count(s, lanes)):
                        for lane in lanes:
                            lane.values[s.axis] = k
                        self.run(s.body, lanes)

    def _count(self, s: For, lanes: list[_Lane]) -> int:
        counts = {int(self.value(s.axis.extent, lane)) for lane in lanes}
        if len(counts) != 1:
            raise InternalError(
                f"the loop over {s.axis.name} runs {sorted(counts)} times in iterations side by side",
                where=self.where,
            )
        return counts.pop()

    def _side_by_side(self, s: For, lanes: list[_Lane]) -> None:
        count = self._count(s, lanes)
        every = [_Lane({**x.values, s.axis: k}, dict(x.memory)) for k in range(count) for x in lanes]
        self.run(s.body, every)

    def _alloc(self, b: Buffer, lanes: list[_Lane]) -> None:
        # The scratch memory of a task is one for all iterations side by side, their locals are not.
        shared: Array | None = None
        for lane in lanes:
            if shared is None or b.scope == "local":
                shared = fresh([int(self.value(n, lane)) for n in b.shape], b.dtype)
            lane.memory[b] = shared

    def _store(self, s: Store, lanes: list[_Lane]) -> None:
        places: list[tuple[Array, tuple[int, ...], Any]] = []
        for lane in lanes:
            at = tuple(self.value(i, lane) for i in s.index)
            array = lane.memory.get(s.buffer)
            if array is None:
                raise InternalError(f"{s.buffer.name} is written where it does not exist", where=self.where)
            self.compiler.inside(s.buffer, array, at, "writes")
            places.append((array, at, self.value(s.value, lane)))
        if len(lanes) > 1 and len({(id(array), at) for array, at, _ in places}) < len(places):
            raise InternalError(
                f"iterations side by side write one element of {s.buffer.name}", where=self.where
            )
        for array, at, value in places:
            array[at] = value


def run_kernel(kernel: Kernel, arrays: Mapping[Buffer, Array], dims: Mapping[Dim, int]) -> None:
    """Run a kernel on its parameters' memory, in place.

    Raises RunError for an index that the kernel checks, InternalError for what no correct kernel does, and
    for memory whose shape is not the buffer's.
    """
    missing = [b.name for b in kernel.params if b not in arrays]
    if missing:
        raise InternalError(f"no memory for {', '.join(missing)}", where=f"kernel {kernel.name}")
    machine = _Machine(kernel)
    lane = _Lane({d: int(n) for d, n in dims.items()}, {b: arrays[b] for b in kernel.params})
    for b in kernel.params:
        shape = tuple(int(machine.value(n, lane)) for n in b.shape)
        if arrays[b].shape != shape:
            raise InternalError(
                f"the memory of {b.name} has the shape {arrays[b].shape}, not {shape}", where=machine.where
            )
    with np.errstate(all="ignore"):
        machine.run(kernel.body, [lane])


# ---- plans ---------------------------------------------------------------------------------------


class _Host:
    """Runs the steps of a plan on blocks of bytes, one per input, output and temporary, one for weights and
    one arena.
    """

    def __init__(self, plan: Plan, dims: Mapping[Expr, int]) -> None:
        self.plan = plan
        self.dims: dict[Expr, Any] = {d: np.int64(n) for d, n in dims.items()}
        self.blocks: dict[tuple[str, int], Array] = {}

    def size(self, e: Expr) -> int:
        return int(evaluate(e, dict(self.dims), self._element))

    def _element(self, x: Load, index: list[Any]) -> Any:
        return self.view(x.source)[tuple(int(i) for i in index)]

    def bytes_of(self, t: Tensor) -> int:
        return int(np.prod(self.shape(t), dtype=np.int64)) * storage_bytes(t.dtype)

    def shape(self, t: Tensor) -> tuple[int, ...]:
        return tuple(self.size(n) for n in t.shape)

    def view(self, t: Tensor) -> Array:
        """The memory of a tensor, as an array of its shape."""
        place = self.plan.places.get(t)
        if place is None:
            raise InternalError(f"{t.name} has no place", where=f"plan {self.plan.name}")
        block = self.blocks.get((place.kind, place.number))
        if block is None:
            raise InternalError(
                f"{t.name} is used while {place.kind}{place.number} does not exist",
                where=f"plan {self.plan.name}",
            )
        return self._part(t, block, place)

    def _part(self, t: Tensor, block: Array, place: Place) -> Array:
        start, size = self.size(place.offset), self.bytes_of(t)
        if start < 0 or start + size > block.nbytes:
            raise InternalError(
                f"{t.name} takes the bytes {start} .. {start + size} of {block.nbytes}",
                where=f"plan {self.plan.name}",
            )
        part: Array = block[start : start + size].view(numpy_dtype(t.dtype)).reshape(self.shape(t))
        return part

    def call(self, call: Call, view: Callable[[Tensor], Array]) -> None:
        for v in call.variants:
            if v.guard is None or self.size(v.guard):
                pairs = zip(v.kernel.params, v.arguments, strict=True)
                arrays = {b: _as_buffer(view(t), b) for b, t in pairs}
                run_kernel(v.kernel, arrays, {d: self.dims[d] for d in v.kernel.dims})
                return
        raise InternalError("no variant of a call fits", where=f"plan {self.plan.name}")

    def prepare(self, step: PrepareStep) -> None:
        """Pack one group of weights."""
        raw = {t: np.asarray(t.data()) for t in step.raw if t.data is not None}
        for t in step.copies:
            self.view(t)[...] = raw[t]
        temps: dict[Tensor, Array] = {}

        def view(t: Tensor) -> Array:
            if t in raw:
                return raw[t]
            if self.plan.places[t].kind == "weights":
                return self.view(t)
            if t not in temps:
                temps[t] = fresh(self.shape(t), t.dtype)
            return temps[t]

        for c in step.calls:
            self.call(c, view)

    def run(self) -> None:
        for s in self.plan.steps:
            match s:
                case Define():
                    n = self.dims[s.dim] = self.size(s.value)
                    if n < 0:
                        raise RunError(f"a size is negative ({n})", node=s.origin)
                case Check():
                    if not self.size(s.condition):
                        raise RunError(s.reason, node=s.origin)
                case Call():
                    for t in s.fresh:
                        place = self.plan.places[t]
                        self.blocks[place.kind, place.number] = _block(self.bytes_of(t))
                    self.call(s, self.view)
                    for t in s.release:
                        place = self.plan.places[t]
                        del self.blocks[place.kind, place.number]
                case Control():
                    self._control(s)

    def _control(self, s: Control) -> None:
        """A branch or a loop as the interpreter of programs runs it, with plans for its bodies."""
        plans = {id(b.program): p for b, p in zip(s.stage.bodies, s.plans, strict=True)}
        machine = Interpreter(self.dims, lambda p, feeds, given: _run_inner(plans[id(p)], feeds, given, self))
        for t in stage_reads(s.stage):
            machine.arrays[t] = self.view(t).copy()
        machine.run(s.stage)
        for t in s.fresh:
            place = self.plan.places[t]
            self.blocks[place.kind, place.number] = _block(self.bytes_of(t))
        for t in s.stage.outs:
            place = self.plan.places[t]
            if made_late(t):
                self.blocks[place.kind, place.number] = _as_bytes(machine.arrays[t], t)
            else:
                self.view(t)[...] = machine.arrays[t]
        for t in s.release:
            place = self.plan.places[t]
            del self.blocks[place.kind, place.number]


def _as_buffer(a: Array, b: Buffer) -> Array:
    """Memory of a tensor as a kernel sees it, which may keep a type in words of another of the same width."""
    to = numpy_dtype(b.dtype)
    return a if a.dtype == to else a.view(to)


def _as_bytes(a: Array, t: Tensor) -> Array:
    return np.frombuffer(np.ascontiguousarray(a, dtype=numpy_dtype(t.dtype)).tobytes(), np.uint8).copy()


def _known(e: Expr, dims: Mapping[Expr, Any]) -> bool:
    from fusile.ir.expr import free, loads

    return not loads(e) and all(d in dims for d in free(e))


def run_plan(plan: Plan, feeds: Sequence[Array]) -> list[Array]:
    """The outputs of a plan on numpy inputs, in order; weights are packed first.

    Raises RunError for feeds that do not fit and for what the data does, InternalError for what no correct
    plan does.
    """
    host = _Host(plan, bind_sizes(plan.inputs, feeds))
    host.blocks["weights", 0] = _block(plan.weights_bytes)
    for p in plan.prepare:
        host.prepare(p)
    return _run(host, feeds)


def _run_inner(plan: Plan, feeds: Sequence[Array], given: Mapping[Expr, Any], around: _Host) -> list[Array]:
    """A plan within a plan, on the weights of the whole."""
    host = _Host(plan, {d: int(given[d]) for d in plan.symbols})
    host.blocks["weights", 0] = around.blocks["weights", 0]
    return _run(host, feeds)


def _run(host: _Host, feeds: Sequence[Array]) -> list[Array]:
    plan = host.plan
    for k, (t, a) in enumerate(zip(plan.inputs, feeds, strict=True)):
        host.blocks["input", k] = _as_bytes(a, t)
    early = dict(host.dims)
    for s in plan.steps:
        if isinstance(s, Define) and _known(s.value, early):
            early[s.dim] = np.int64(evaluate(s.value, dict(early), host._element))
    host.blocks["arena", 0] = _block(int(evaluate(plan.arena, dict(early), host._element)))
    late = {
        plan.places[t].number
        for s in plan.steps
        if isinstance(s, (Call, Control))
        for t in s.fresh
        if plan.places[t].kind == "output"
    }
    for k, t in enumerate(plan.outputs):
        if k not in late:
            shape = [int(evaluate(n, dict(early), host._element)) for n in t.shape]
            host.blocks["output", k] = _block(int(np.prod(shape, dtype=np.int64)) * storage_bytes(t.dtype))
    host.run()
    out = []
    for k, t in enumerate(plan.outputs):
        out.append(host.blocks["output", k].view(numpy_dtype(t.dtype)).reshape(host.shape(t)).copy())
    return out
