"""The plan to LLVM IR: the functions that `fusile.runtime.abi` asks of a model's module."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from fusile.backends.native import control, llvm, scalars
from fusile.backends.native.llvm import FunctionPrinter, Instance, Part, Value
from fusile.ir import alike
from fusile.ir import index as ix
from fusile.ir.expr import Axis, Dim, Expr, Load, apply, as_expr, const, free, load, nodes, substitute
from fusile.ir.loops import Buffer, For, If, Kernel, Kind, Stmt, stmt_exprs
from fusile.ir.plan import Call, Check, Control, Define, Place, Plan, PrepareStep
from fusile.ir.tensor import Tensor
from fusile.ir.types import I64, numpy_dtype, storage_bytes
from fusile.passes import access
from fusile.passes.legalise import legalise
from fusile.passes.plan_memory import bytes_of
from fusile.runtime import abi
from fusile.target import TargetSpec

TASK_WORK = 40_000
"""Simple operations that one chunk of a parallel loop should hold at least: about ten microseconds."""


@dataclass(frozen=True, slots=True)
class Printed:
    """A kernel in text: its functions, which differ from another kernel's only where the kernels do."""

    symbol: str
    parts: tuple[Part, ...]
    sites: tuple[str, ...]
    scratch: Expr


class Kernels:
    """Kernels printed so far; equal texts are one module and are compiled once."""

    def __init__(self, target: TargetSpec) -> None:
        self.target = target
        self.texts: dict[str, str] = {}
        self.printed: dict[Kernel, Printed] = {}
        self.symbols: dict[alike.Key, str] = {}

    def add(self, kernel: Kernel) -> Printed:
        if kernel not in self.printed:
            key = alike.key(kernel)
            if key not in self.symbols:
                self.symbols[key] = self._print(kernel)
            symbol = self.symbols[key]
            _, scratch = llvm.scratch_layout(kernel.body)
            own = tuple(llvm.parts(kernel, symbol))
            self.printed[kernel] = Printed(symbol, own, alike.guard_sites(kernel), scratch)
        return self.printed[kernel]

    def _print(self, kernel: Kernel) -> str:
        """The symbol of a kernel that none before is like; it is made of the text."""
        module = llvm.Module()
        placeholder = "kernel_name"
        llvm.print_kernel(module, kernel, placeholder)
        text = module.text()
        symbol = f"k_{hashlib.sha256(text.encode()).hexdigest()[:20]}"
        self.texts.setdefault(symbol, text.replace(placeholder, symbol))
        return symbol


FEW = 8
"""Iterations of a loop that a kernel decides on while it runs."""


def work(body: Sequence[Stmt]) -> Expr:
    """Simple operations that a body takes, about."""
    total: Expr = as_expr(0)
    for s in body:
        match s:
            case For():
                lanes = 8 if s.kind is Kind.VECTOR else 1
                times = _known_before(s.axis.extent)
                total = total + (times if lanes == 1 else ix.ceil_div(times, lanes)) * work(s.body)
            case If():
                total = total + work(s.body)
            case _:
                total = total + sum(access.cost(e) + 1 for e in stmt_exprs(s)[-1:])
    return total


def _known_before(extent: Expr) -> Expr:
    """How often a loop runs, as far as it is known before its kernel does: loops around it count in full,
    what the kernel works out as a few.
    """
    axes: dict[Expr, Expr] = {a: _known_before(a.extent) for a in free(extent) if isinstance(a, Axis)}
    return substitute(extent, axes, lambda x: const(FEW))


class _Printer(FunctionPrinter):
    """Straight-line code over sizes and places."""

    def __init__(self, module: llvm.Module, name: str) -> None:
        super().__init__(module, Kernel(name, (), (), ()), Part(name, as_expr(1), (), ()), ())
        self.nothing = Instance(())

    def size(self, e: Expr) -> str:
        return self.value(e, self.nothing).text

    def stop_unless(self, condition: str, otherwise: Sequence[str]) -> None:
        """Go on where an i1 holds; else print `otherwise`, which returns."""
        fine, stop = self.label("fine"), self.label("stop")
        self.lines.append(f"  br i1 {condition}, label %{fine}, label %{stop}")
        self.start(stop)
        self.lines.extend(f"  {line}" for line in otherwise)
        self.start(fine)

    def whole(self, call: str) -> str:
        """The memory that a call gives, or the end of the run."""
        made = self.emit(call)
        code = self.emit("load i32, ptr %error")
        self.stop_unless(self.emit(f"icmp ne ptr {made}, null"), [f"ret i32 {code}"])
        return made

    def temp(self, size: Expr, site: int = 0) -> str:
        """Memory for a while."""
        return self.whole(f"call ptr @fusile_temp(ptr %ctx, i64 {self.size(size)}, i32 {site}, ptr %error)")

    def finish(self, head: str, last: str) -> str:
        return "\n".join(
            [f"define hidden {head} nounwind {{", "entry:", *self.entry, *self.lines, f"  {last}", "}", ""]
        )


class PlanPrinter:
    """Prints the module of a plan; kernels go to `kernels`."""

    def __init__(self, plan: Plan, kernels: Kernels, flags: int = abi.FLUSH_DENORMALS) -> None:
        self.plan, self.kernels, self.flags = plan, kernels, flags
        self.module = llvm.Module()
        self.sites: dict[str, int] = {"": 0}
        self.reasons: dict[str, int] = {}
        self.bodies: list[str] = []
        computed = [
            e for t in plan.inputs for e in t.shape if ix.number(e) is None and not isinstance(e, Dim)
        ]
        self.extra = list(dict.fromkeys(computed))
        self.symbols: list[Expr] = [*plan.symbols, *self.extra]

    def site(self, name: str) -> int:
        return self.sites.setdefault(name, len(self.sites))

    def text(self) -> str:
        """The whole module, its constants included."""
        functions = [
            "define hidden i32 @plan_init(ptr %instance, ptr %error) nounwind {\n  ret i32 0\n}\n",
            self._shapes(), self._arena(), self._scratch(), self._run(), self._prepare(), *self.bodies,
        ]  # fmt: skip
        constants = abi.plan_constants(self.interface())
        return "\n".join(
            [
                abi.TYPES,
                abi.DECLARATIONS,
                *self.module.declarations,
                constants,
                *functions,
                *llvm.METADATA,
                "",
            ]
        )

    def interface(self) -> abi.PlanInterface:
        p = self.plan
        known = set(self.symbols)

        def port(name: str, t: Tensor) -> abi.Port:
            dims: list[int | str | None] = []
            for e in t.shape:
                n = ix.number(e)
                dims.append(
                    n
                    if n is not None
                    else repr(e)
                    if e in known and not isinstance(e, Dim)
                    else e.name
                    if isinstance(e, Dim)
                    else None
                )
            return abi.Port(name, t.dtype.code, tuple(dims))

        names = tuple(e.name if isinstance(e, Dim) else repr(e) for e in self.symbols)
        layout = hashlib.sha256(
            repr(
                [
                    (self.plan.places[t].offset, t.dtype, t.shape)
                    for s in p.prepare
                    for t in (*s.copies, *_made(s))
                ]
            ).encode()
        )
        return abi.PlanInterface(
            p.name,
            tuple(port(t.name, t) for t in p.inputs),
            tuple(port(n, t) for n, t in zip(p.output_names, p.outputs, strict=True)),
            names,
            tuple(self.sites),
            p.weights_bytes,
            layout.digest(),
            len(p.prepare),
            self.flags,
            tuple(self.reasons),
        )

    def _start(self, name: str, dims: str = "%dims") -> _Printer:
        """A printer that knows the input's symbols."""
        f = _Printer(self.module, name)
        for k, e in enumerate(self.symbols):
            f.entry.append(f"  %sym{k}_at = getelementptr i64, ptr {dims}, i64 {k}")
            f.entry.append(f"  %sym{k} = load i64, ptr %sym{k}_at")
            if isinstance(e, Dim):
                f.memo.put(e, Value(f"%sym{k}", I64))
        return f

    def _early_definitions(self, f: _Printer) -> set[Expr]:
        """Sizes defined from sizes alone, as far as they go; answers every symbol that has a value then."""
        known: set[Expr] = {e for e in self.symbols if isinstance(e, Dim)}
        for s in self.plan.steps:
            if isinstance(s, Define) and not access.loads(s.value) and all(d in known for d in free(s.value)):
                f.memo.put(s.dim, f.value(s.value, f.nothing))
                known.add(s.dim)
        return known

    def _shapes(self) -> str:
        f = self._start("plan_shapes")
        for k, e in enumerate(self.extra, len(self.plan.symbols)):
            same = f.emit(f"icmp eq i64 %sym{k}, {f.size(e)}")
            where = next(n for n, t in enumerate(self.plan.inputs) if e in t.shape)
            f.stop_unless(
                same,
                [
                    f"call void @fusile_error(ptr %error, i32 1, i32 0, i64 {where}, i64 "
                    f"{self.plan.inputs[where].shape.index(e)})",
                    "ret i32 1",
                ],
            )
        known = self._early_definitions(f)
        for k, t in enumerate(self.plan.outputs):
            for d, e in enumerate(t.shape):
                ready = all(x in known for x in free(e))
                at = f.emit(f"getelementptr i64, ptr %shapes, i64 {abi.MAX_RANK * k + d}")
                f.lines.append(f"  store i64 {f.size(e) if ready else -1}, ptr {at}")
        return f.finish("i32 @plan_shapes(ptr %dims, ptr %shapes, ptr %error)", "ret i32 0")

    def _arena(self) -> str:
        f = self._start("plan_arena")
        self._early_definitions(f)
        return f.finish("i64 @plan_arena(ptr %dims)", f"ret i64 {f.size(self.plan.arena)}")

    def _early_kernels(self) -> Expr:
        """The largest scratch memory of a task, over kernels whose sizes are known from the inputs."""
        known = set(self.plan.symbols)
        total: Expr = as_expr(0)
        for k in self.plan.own_kernels():
            need = self.kernels.add(k).scratch
            if all(d in known for d in free(need)):
                total = apply("max", total, need)
        return total

    def _scratch(self) -> str:
        f = self._start("plan_scratch")
        return f.finish("i64 @plan_scratch(ptr %dims)", f"ret i64 {f.size(self._early_kernels())}")

    # ---- the run ---------------------------------------------------------------------------------

    def _run(self) -> str:
        f = self._start("plan_run")
        self._body(f)
        return f.finish(
            "i32 @plan_run(ptr %ctx, ptr %weights, ptr %inputs, ptr %outputs, ptr %dims, ptr "
            "%arena, ptr %scratch, i64 %stride, ptr %error)",
            "ret i32 0",
        )

    _input, _output = "getelementptr %tensor, ptr %inputs, i64 ", "getelementptr %tensor, ptr %outputs, i64 "

    def _body(self, f: _Printer) -> None:
        """The steps, on the memory that the function is given."""
        slots = max((self._slots(k) for k in self.plan.own_kernels()), default=1)
        f.entry.append(f"  %frame = alloca [{slots} x i64], align 64")
        f.entry.append(f"  %shape = alloca [{abi.MAX_RANK} x i64], align 8")
        f.entry.append("  store ptr %error, ptr %frame")
        for k in range(len(self.plan.inputs)):
            f.entry.append(f"  %in{k}_at = {self._input}{k}")
            f.entry.append(f"  %in{k} = load ptr, ptr %in{k}_at")
        late = {
            self.plan.places[t].number
            for s in self.plan.steps
            if isinstance(s, (Call, Control))
            for t in s.fresh
            if self.plan.places[t].kind == "output"
        }
        self.pointers: dict[tuple[str, int], str] = {
            ("input", k): f"%in{k}" for k in range(len(self.plan.inputs))
        }
        for k in range(len(self.plan.outputs)):
            if k not in late:
                f.entry.append(f"  %out{k}_at = {self._output}{k}")
                f.entry.append(f"  %out{k} = load ptr, ptr %out{k}_at")
                self.pointers["output", k] = f"%out{k}"
        self.pointers["weights", 0], self.pointers["arena", 0] = "%weights", "%arena"
        for s in self.plan.steps:
            match s:
                case Define():
                    self._define(f, s)
                case Check():
                    self._check(f, s)
                case Call():
                    self._call(f, s)
                case Control():
                    self._control(f, s)

    def _check(self, f: _Printer, s: Check) -> None:
        held = f.value(self._legal(s.condition), f.nothing).text
        reason = self.reasons.setdefault(s.reason, len(self.reasons))
        site = self.site(s.origin)
        f.stop_unless(
            held,
            [
                f"call void @fusile_error(ptr %error, i32 1, i32 {site}, i64 {reason}, i64 {abi.REASON})",
                "ret i32 1",
            ],
        )

    def _control(self, f: _Printer, s: Control) -> None:
        site = self.site(s.stage.origin)
        for t in s.fresh:
            self._make(f, t, site)
        symbols = []
        for plan in s.plans:
            symbols.append(f"plan_inner{len(self.bodies)}")
            self.bodies.append("")
            number = len(self.bodies) - 1
            self.bodies[number] = InnerPrinter(plan, self).function(symbols[-1])
        control.print_control(self, f, s, symbols, site)
        self._release(f, s)

    def where(self, f: _Printer, t: Tensor) -> str:
        """The pointer to a tensor."""
        return self._where(f, self.plan.places[t])

    def _slots(self, kernel: Kernel) -> int:
        return 1 + len(kernel.params) + len(kernel.dims) + len(self.kernels.add(kernel).sites)

    def _where(self, f: _Printer, place: Place) -> str:
        base = self.pointers[place.kind, place.number]
        offset = f.size(place.offset)
        return base if offset == "0" else f.emit(f"getelementptr i8, ptr {base}, i64 {offset}")

    def _legal(self, e: Expr) -> Expr:
        """What the plan works out itself; sizes may come from floats of any type."""
        if not any(n.dtype.is_float for n in nodes(e)):
            return e
        return legalise(e, scalars.capabilities(self.kernels.target))

    def _define(self, f: _Printer, s: Define) -> None:
        def read(x: Load) -> Expr:
            b = Buffer(x.source.name, x.source.dtype, x.source.shape)
            f.pointers[b] = self._where(f, self.plan.places[x.source])
            f.written.add(b)
            return load(b, x.index)

        v = f.value(self._legal(substitute(s.value, {}, read)), f.nothing)
        fine = f.emit(f"icmp sge i64 {v.text}, 0")
        f.stop_unless(
            fine,
            [
                f"call void @fusile_error(ptr %error, i32 1, i32 {self.site(s.origin)}, i64 "
                f"{v.text}, i64 -1)",
                "ret i32 1",
            ],
        )
        f.memo.put(s.dim, v)

    def _call(self, f: _Printer, s: Call) -> None:
        site = self.site(s.variants[0].kernel.origins[0] if s.variants[0].kernel.origins else "")
        for t in s.fresh:
            self._make(f, t, site)
        done = f.label("called") if len(s.variants) > 1 else ""
        for v in s.variants:
            following = ""
            if v.guard is not None:
                chosen, following = f.label("variant"), f.label("next")
                f.lines.append(
                    f"  br i1 {f.value(v.guard, f.nothing).text}, label %{chosen}, label %{following}"
                )
                f.start(chosen)
            f.memo.stack.append({})
            self._launch(f, v.kernel, [self._where(f, self.plan.places[t]) for t in v.arguments])
            f.memo.stack.pop()
            if done:
                f.lines.append(f"  br label %{done}")
                f.start(following or done)
        if any(self.kernels.add(v.kernel).sites for v in s.variants):
            code = f.emit("load i32, ptr %error")
            f.stop_unless(f.emit(f"icmp eq i32 {code}, 0"), [f"ret i32 {code}"])
        self._release(f, s)

    def _release(self, f: _Printer, s: Call | Control) -> None:
        for t in s.release:
            f.lines.append(
                f"  call void @fusile_temp_free(ptr %ctx, ptr "
                f"{self.pointers['temp', self.plan.places[t].number]})"
            )

    def _make(self, f: _Printer, t: Tensor, site: int) -> None:
        place = self.plan.places[t]
        made = (
            self._new_output(f, place.number, site) if place.kind == "output" else f.temp(bytes_of(t), site)
        )
        self.pointers[place.kind, place.number] = made

    def _new_output(self, f: _Printer, number: int, site: int) -> str:
        """Memory for an output whose size is known only now."""
        for d, e in enumerate(self.plan.outputs[number].shape):
            at = f.emit(f"getelementptr i64, ptr %shape, i64 {d}")
            f.lines.append(f"  store i64 {f.size(e)}, ptr {at}")
        return f.whole(f"call ptr @fusile_output(ptr %ctx, i32 {number}, ptr %shape, i32 {site}, ptr %error)")

    def _launch(self, f: _Printer, kernel: Kernel, pointers: Sequence[str]) -> None:
        printed = self.kernels.add(kernel)
        values = [("ptr", p) for p in pointers]
        values += [("i64", f.size(d)) for d in kernel.dims]
        values += [("i64", str(self.site(x))) for x in printed.sites]
        for k, (t, v) in enumerate(values, 1):
            at = f.emit(f"getelementptr i64, ptr %frame, i64 {k}")
            f.lines.append(f"  store {t} {v}, ptr {at}")
        own = (
            all(d in set(self.plan.symbols) for d in free(printed.scratch))
            and "%scratch" in self._scratch_name
        )
        memory = self._scratch_name
        if not own and ix.number(printed.scratch) != 0:
            memory = f.temp(printed.scratch)
        for part in printed.parts:
            self.module.declare(f"declare hidden void @{part.symbol}(ptr, i64, i64, ptr)")
            if part.axes and own:
                grain = apply("max", const(TASK_WORK) // (work(part.body) + 1), const(1))
                f.lines.append(
                    f"  call void @fusile_parallel(ptr %ctx, ptr @{part.symbol}, ptr %frame, i64 "
                    f"{f.size(part.count)}, i64 {f.size(grain)}, ptr %scratch, i64 %stride)"
                )
            else:
                f.lines.append(
                    f"  call void @{part.symbol}(ptr %frame, i64 0, i64 {f.size(part.count)}, ptr {memory})"
                )
        if memory != self._scratch_name:
            f.lines.append(f"  call void @fusile_temp_free(ptr %ctx, ptr {memory})")

    _scratch_name = "%scratch"

    # ---- packing weights -------------------------------------------------------------------------

    def _prepare(self) -> str:
        f = _Printer(self.module, "plan_prepare")
        slots = max((self._slots(k) for k in self.plan.prepare_kernels()), default=1)
        f.entry.append(f"  %frame = alloca [{slots} x i64], align 64")
        f.entry.append("  store ptr %error, ptr %frame")
        self._scratch_name = "null"
        labels = [f.label("step") for _ in self.plan.prepare]
        cases = " ".join(f"i32 {k}, label %{name}" for k, name in enumerate(labels))
        f.lines.append(f"  switch i32 %step, label %finish [ {cases} ]")
        for name, step in zip(labels, self.plan.prepare, strict=True):
            f.start(name)
            f.memo.stack.append({})
            self._prepare_step(f, step)
            f.memo.stack.pop()
            f.lines.append("  br label %finish")
        f.start("finish")
        self._scratch_name = "%scratch"
        return f.finish(
            "i32 @plan_prepare(ptr %ctx, i32 %step, ptr %raw, ptr %packed, ptr %error)", "ret i32 0"
        )

    def _prepare_step(self, f: _Printer, step: PrepareStep) -> None:
        raw: dict[Tensor, str] = {}
        for k, t in enumerate(step.raw):
            at = f.emit(f"getelementptr ptr, ptr %raw, i64 {k}")
            raw[t] = f.emit(f"load ptr, ptr {at}")
        for t in step.copies:
            to = f.emit(f"getelementptr i8, ptr %packed, i64 {f.size(self.plan.places[t].offset)}")
            size = (ix.number(t.size) or 0) * storage_bytes(t.dtype)
            self.module.declare("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
            f.lines.append(
                f"  call void @llvm.memcpy.p0.p0.i64(ptr {to}, ptr {raw[t]}, i64 {size}, i1 false)"
            )
        temps: dict[Tensor, str] = {}
        for call in step.calls:
            v = call.variants[0]
            pointers = []
            for t in v.arguments:
                if t.data is not None:
                    pointers.append(raw[t])
                elif self.plan.places[t].kind == "weights":
                    pointers.append(
                        f.emit(f"getelementptr i8, ptr %packed, i64 {f.size(self.plan.places[t].offset)}")
                    )
                else:
                    if t not in temps:
                        temps[t] = f.temp(bytes_of(t))
                    pointers.append(temps[t])
            self._launch(f, v.kernel, pointers)
        for p in temps.values():
            f.lines.append(f"  call void @fusile_temp_free(ptr %ctx, ptr {p})")


class InnerPrinter(PlanPrinter):
    """Prints the plan of a branch or of a loop's body as a function of its own:

        i32 @plan_inner0(ptr ctx, ptr weights, ptr inputs, ptr outputs, ptr shapes, ptr dims, ptr error)

    inputs and outputs are arrays of pointers. For outputs that the plan makes the memory of, it writes the
    pointer, and the shape into shapes: i64[outputs][8]. dims are the plan's symbols.
    """

    _input, _output = "getelementptr ptr, ptr %inputs, i64 ", "getelementptr ptr, ptr %outputs, i64 "

    def __init__(self, plan: Plan, around: PlanPrinter) -> None:
        super().__init__(plan, around.kernels, around.flags)
        self.module, self.sites, self.bodies = around.module, around.sites, around.bodies
        self.reasons = around.reasons
        self.symbols = list(plan.symbols)

    def function(self, symbol: str) -> str:
        f = self._start(symbol)
        self._early_definitions(f)
        arena, scratch = self.plan.arena, self._early_kernels()
        owned = []
        if ix.number(arena) != 0:
            f.lines.append(f"  %arena = getelementptr i8, ptr {f.temp(arena)}, i64 0")
            owned.append("%arena")
        if ix.number(scratch) != 0:
            threads = f.emit("load i32, ptr %ctx")
            wide = f.emit(f"zext i32 {threads} to i64")
            f.lines.append(f"  %stride = add i64 {f.size((scratch + 63) // 64 * 64)}, 0")
            size = f.emit(f"call i64 @fusile_size_mul(i64 {wide}, i64 %stride)")
            made = f.whole(f"call ptr @fusile_temp(ptr %ctx, i64 {size}, i32 0, ptr %error)")
            f.lines.append(f"  %scratch = getelementptr i8, ptr {made}, i64 0")
            owned.append("%scratch")
        else:
            f.lines.append("  %stride = add i64 0, 0")
            f.lines.append("  %scratch = getelementptr i8, ptr null, i64 0")
        self._body(f)
        f.lines += [f"  call void @fusile_temp_free(ptr %ctx, ptr {p})" for p in owned]
        return f.finish(
            f"i32 @{symbol}(ptr %ctx, ptr %weights, ptr %inputs, ptr %outputs, ptr %shapes, ptr %dims, "
            f"ptr %error)",
            "ret i32 0",
        )

    def _new_output(self, f: _Printer, number: int, site: int) -> str:
        t = self.plan.outputs[number]
        for d, e in enumerate(t.shape):
            at = f.emit(f"getelementptr i64, ptr %shapes, i64 {abi.MAX_RANK * number + d}")
            f.lines.append(f"  store i64 {f.size(e)}, ptr {at}")
        made = f.temp(bytes_of(t), site)
        at = f.emit(f"getelementptr ptr, ptr %outputs, i64 {number}")
        f.lines.append(f"  store ptr {made}, ptr {at}")
        return made


def _made(step: PrepareStep) -> list[Tensor]:
    return [t for c in step.calls for v in c.variants for t in v.arguments if t.data is None]


def raw_bytes(t: Tensor) -> bytes:
    """The bytes of an initialiser as kernels read them."""
    import numpy as np

    assert t.data is not None
    return np.ascontiguousarray(t.data(), dtype=numpy_dtype(t.dtype)).tobytes()
