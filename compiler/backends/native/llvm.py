"""Loop kernels to LLVM IR text.

The printer runs a kernel's body for a set of *instances* at once: the iterations of `jam` loops, side by
side, each over the lanes of
the enclosing `vector` loop. What does not depend on a jam axis or on the lane is computed once and shared;
serial loops inside are
printed once for all instances. There is no optimisation here beyond that sharing: it is what the loop
kinds mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fusile.backends.native import scalars
from fusile.ir import index as ix
from fusile.ir.expr import Apply, Axis, Const, Dim, Expr, Guard, Load, as_expr, const, free, nodes, substitute
from fusile.ir.loops import Alloc, Buffer, For, If, Kernel, Kind, Stmt, Store, walk, written
from fusile.ir.types import BOOL, I64, DType, storage_bytes


@dataclass(frozen=True, slots=True)
class Value:
    """A printed value: its name or literal, its type and lanes (0: a scalar)."""

    text: str
    dtype: DType
    lanes: int = 0


@dataclass(frozen=True, slots=True)
class Instance:
    """One combination of jam iterations, and the lanes (or the condition) under which it runs."""

    places: tuple[tuple[Axis, int], ...]
    mask: Value | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One function of a kernel: a parallel nest (count of its tasks) or everything in one task (count 1)."""

    symbol: str
    count: Expr
    axes: tuple[Axis, ...]
    body: tuple[Stmt, ...]


def parts(kernel: Kernel, symbol: str) -> list[Part]:
    """A kernel as functions that run one after another; parallel nests become task loops."""
    if any(isinstance(s, Alloc) for s in kernel.body) or not any(
        isinstance(s, For) and s.kind is Kind.PARALLEL for s in kernel.body
    ):
        return [Part(symbol, as_expr(1), (), kernel.body)]
    out: list[Part] = []
    for k, s in enumerate(kernel.body):
        axes: list[Axis] = []
        body: tuple[Stmt, ...] = (s,)
        while len(body) == 1 and isinstance(body[0], For) and body[0].kind is Kind.PARALLEL:
            axes.append(body[0].axis)
            body = body[0].body
        out.append(Part(f"{symbol}_{k}", ix.product(a.extent for a in axes), tuple(axes), body))
    return out


def scratch_layout(body: Iterable[Stmt]) -> tuple[dict[Buffer, Expr], Expr]:
    """Byte offsets of scratch buffers in the scratch memory of a task, and its size."""
    total: Expr = as_expr(0)
    offsets: dict[Buffer, Expr] = {}
    for s in walk(body):
        if isinstance(s, Alloc) and s.buffer.scope == "scratch":
            offsets[s.buffer] = total
            size = ix.product(s.buffer.shape) * storage_bytes(s.buffer.dtype)
            total = total + ((size + 127) // 64) * 64
    return offsets, total


METADATA = ("!0 = !{}", "!1 = !{i32 1}", '!2 = !{!"branch_weights", i32 1, i32 2000}')
"""!0 marks loads from memory that nobody writes, !1 streaming stores, !2 branches that are hardly taken."""


class Module:
    """Text of one LLVM module: functions and the declarations that they need."""

    def __init__(self) -> None:
        self.declarations: dict[str, None] = {}
        self.functions: list[str] = []

    def declare(self, text: str) -> None:
        self.declarations[text] = None

    def text(self) -> str:
        head = ["declare hidden void @fusile_error(ptr, i32, i32, i64, i64)", *self.declarations]
        return "\n".join([*head, "", *self.functions, *METADATA, ""])


class _Scopes:
    """Values already printed, by scope: what is made inside a loop or branch is not seen outside."""

    def __init__(self) -> None:
        self.stack: list[dict[object, Value]] = [{}]

    def get(self, key: object) -> Value | None:
        for scope in reversed(self.stack):
            if key in scope:
                return scope[key]
        return None

    def put(self, key: object, value: Value) -> Value:
        self.stack[-1][key] = value
        return value


class FunctionPrinter:
    """Prints one part of a kernel as a function `void name(ptr frame, i64 begin, i64 end, ptr scratch)`."""

    def __init__(self, module: Module, kernel: Kernel, part: Part, sites: Sequence[str]) -> None:
        self.module, self.kernel, self.part = module, kernel, part
        self.sites = list(sites)
        self.lines: list[str] = []
        self.entry: list[str] = []
        self.temporaries = 0
        self.memo = _Scopes()
        self.vector: Axis | None = None
        self.lanes = 0
        self.pointers: dict[Buffer, str] = {}
        self.kept: dict[tuple[Buffer, tuple[tuple[Axis, int], ...]], str] = {}
        self.kept_lanes: dict[Buffer, Axis | None] = {}
        self.kept_axes: dict[Buffer, tuple[Axis, ...]] = {}
        self.version: dict[Buffer, int] = {}
        self.written = written(kernel.body)
        self.offsets, _ = scratch_layout(kernel.body)
        self.depends_memo: dict[Expr, frozenset[Expr]] = {}
        self.depth: dict[Axis, int] = {}
        self.wider: dict[str, str] = {}
        self.agreed: dict[Expr, set[Expr]] = {}
        self.block = "entry"

    # ---- text ----------------------------------------------------------------------------------------------
    # --------------------

    def name(self) -> str:
        self.temporaries += 1
        return f"%v{self.temporaries}"

    def label(self, hint: str) -> str:
        self.temporaries += 1
        return f"{hint}{self.temporaries}"

    def emit(self, text: str) -> str:
        out = self.name()
        self.lines.append(f"  {out} = {text}")
        return out

    def start(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.block = label

    def type_of(self, t: DType, lanes: int) -> str:
        return self.sized(scalars.register_type(t), lanes)

    @staticmethod
    def sized(scalar: str, lanes: int) -> str:
        return f"<{lanes} x {scalar}>" if lanes else scalar

    def typed(self, v: Value) -> str:
        return f"{self.type_of(v.dtype, v.lanes)} {v.text}"

    # ---- the function --------------------------------------------------------------------------------------
    # -----------------------

    def function(self) -> str:
        self._frame()
        everything = [Instance(())]
        if self.part.axes:
            self._tasks(everything)
        else:
            self.run(self.part.body, everything)
        if any(isinstance(s, Store) and s.stream for s in walk(self.part.body)):
            # Streaming stores are not ordered by what ends a parallel loop.
            self.lines.append("  fence seq_cst")
        arguments = "ptr noalias %frame, i64 %begin, i64 %end, ptr noalias %scratch"
        head = f"define hidden void @{self.part.symbol}({arguments}) nounwind {{"
        return "\n".join([head, "entry:", *self.entry, *self.lines, "  ret void", "}", ""])

    def _slot(self, k: int, llvm_type: str, name: str) -> None:
        self.entry.append(f"  {name}_at = getelementptr i64, ptr %frame, i64 {k}")
        self.entry.append(f"  {name} = load {llvm_type}, ptr {name}_at, align 8, !invariant.load !0")

    def _frame(self) -> None:
        self._slot(0, "ptr", "%error")
        k = 1
        for b in self.kernel.params:
            self._slot(k, "ptr", f"%p{k}")
            self.pointers[b] = f"%p{k}"
            k += 1
        for d in self.kernel.dims:
            self._slot(k, "i64", f"%d{k}")
            self.memo.put(d, Value(f"%d{k}", I64))
            k += 1
        self.site_values: dict[str, str] = {}
        for site in self.sites:
            self._slot(k, "i64", f"%s{k}")
            self.site_values[site] = f"%s{k}"
            k += 1

    def _tasks(self, instances: list[Instance]) -> None:
        """for task in begin .. end: the digits of the task number are the parallel axes."""
        head, body, done = self.label("task"), self.label("work"), self.label("done")
        before = self.block
        self.lines.append(f"  br label %{head}")
        self.start(head)
        task, following = self.name(), self.name()
        at = len(self.lines)
        self.lines.append("")
        more = self.emit(f"icmp slt i64 {task}, %end")
        self.lines.append(f"  br i1 {more}, label %{body}, label %{done}")
        self.start(body)
        self.memo.stack.append({})
        rest = Value(task, I64)
        for level, a in reversed(list(enumerate(self.part.axes))):
            self.depth[a] = level
            if level == 0:
                self.memo.put(a, rest)
                break
            extent = self.value(a.extent, instances[0])
            digit = self.emit(f"urem i64 {rest.text}, {extent.text}")
            self.memo.put(a, Value(digit, I64))
            rest = Value(self.emit(f"udiv i64 {rest.text}, {extent.text}"), I64)
        self.run(self.part.body, instances)
        self.memo.stack.pop()
        self.lines.append(f"  {following} = add nsw i64 {task}, 1")
        self.lines.append(f"  br label %{head}")
        self.lines[at] = f"  {task} = phi i64 [ %begin, %{before} ], [ {following}, %{self.block} ]"
        self.start(done)

    # ---- statements ----------------------------------------------------------------------------------------
    # -------------------------

    def run(self, body: Iterable[Stmt], instances: list[Instance]) -> None:
        for s in body:
            match s:
                case Alloc():
                    self._alloc(s.buffer, instances)
                case Store():
                    for i in instances:
                        self._store(s, i)
                    self.version[s.buffer] = self.version.get(s.buffer, 0) + 1
                case If():
                    self._if(s, instances)
                case For(kind=Kind.JAM):
                    n = ix.number(s.axis.extent)
                    assert n is not None, f"the jam loop over {s.axis.name} needs a fixed extent"
                    self.run(
                        s.body,
                        [Instance((*i.places, (s.axis, k)), i.mask) for i in instances for k in range(n)],
                    )
                case For(kind=Kind.VECTOR):
                    self._vector(s, instances)
                case For():
                    self._loop(s, instances)

    def _vector(self, s: For, instances: list[Instance]) -> None:
        n = ix.number(s.axis.extent)
        assert n is not None and self.vector is None, (
            f"the vector loop over {s.axis.name} needs a fixed extent and no other around it"
        )
        self.vector, self.lanes = s.axis, n
        self.memo.stack.append({})
        numbers = ", ".join(f"i64 {k}" for k in range(n))
        self.memo.put(s.axis, Value(f"<{numbers}>", I64, n))
        self.run(s.body, instances)
        self.memo.stack.pop()
        self.vector, self.lanes = None, 0

    def _loop(self, s: For, instances: list[Instance]) -> None:
        if ix.number(s.axis.extent) == 1:
            self.memo.stack.append({})
            self.memo.put(s.axis, Value("0", I64))
            self.run(s.body, instances)
            self.memo.stack.pop()
            return
        extent = self.value(s.axis.extent, instances[0])
        assert not extent.lanes, f"the extent of the loop over {s.axis.name} differs between lanes"
        head, body, done = self.label("loop"), self.label("body"), self.label("exit")
        before = self.block
        self.lines.append(f"  br label %{head}")
        self.start(head)
        at = len(self.lines)
        self.lines.append("")
        counter, following = self.name(), self.name()
        more = self.emit(f"icmp slt i64 {counter}, {extent.text}")
        self.lines.append(f"  br i1 {more}, label %{body}, label %{done}")
        self.start(body)
        self._forget(s.body)
        self.memo.stack.append({})
        self.depth[s.axis] = len(self.memo.stack)
        self.memo.put(s.axis, Value(counter, I64))
        self.run(s.body, instances)
        self.memo.stack.pop()
        self._forget(s.body)
        self.lines.append(f"  {following} = add nuw nsw i64 {counter}, 1")
        self.lines.append(f"  br label %{head}")
        self.lines[at] = f"  {counter} = phi i64 [ 0, %{before} ], [ {following}, %{self.block} ]"
        self.start(done)

    def _forget(self, body: Iterable[Stmt]) -> None:
        """What was read from buffers that a body writes is not known around it."""
        for b in written(body):
            self.version[b] = self.version.get(b, 0) + 1

    def _if(self, s: If, instances: list[Instance]) -> None:
        tests = [self.value(s.condition, i) for i in instances]
        if tests[0].lanes:
            narrowed = [
                Instance(i.places, self._both(i.mask, t)) for i, t in zip(instances, tests, strict=True)
            ]
            self.memo.stack.append({})
            self.run(s.body, narrowed)
            self.memo.stack.pop()
            return
        alike = all(t.text == tests[0].text for t in tests)
        for chosen, test in (
            [(instances, tests[0])] if alike else [([i], t) for i, t in zip(instances, tests, strict=True)]
        ):
            body, done = self.label("then"), self.label("end")
            self.lines.append(f"  br i1 {test.text}, label %{body}, label %{done}")
            self.start(body)
            self.memo.stack.append({})
            self.run(s.body, chosen)
            self.memo.stack.pop()
            self._forget(s.body)
            self.lines.append(f"  br label %{done}")
            self.start(done)

    def _both(self, a: Value | None, b: Value) -> Value:
        """A mask narrowed by a condition."""
        if a is None:
            self.wider[b.text] = ""
            return b
        within = a.text
        a, b = self._same_lanes(a, b)
        both = Value(self.emit(f"and {self.type_of(BOOL, a.lanes)} {a.text}, {b.text}"), BOOL, a.lanes)
        self.wider[both.text] = within
        return both

    def _alloc(self, b: Buffer, instances: list[Instance]) -> None:
        if b.scope == "scratch":
            offset = self.value(self.offsets[b], Instance(()))
            self.pointers[b] = self.emit(f"getelementptr i8, ptr %scratch, i64 {offset.text}")
            return
        count = ix.number(ix.product(b.shape))
        assert count is not None, f"the local buffer {b.name} needs a fixed size"
        self.kept_lanes[b] = self.vector
        self.kept_axes[b] = tuple(a for a, _ in instances[0].places)
        element = self.sized(scalars.memory_type(b.dtype), self.lanes if self.vector is not None else 0)
        for i in instances:
            slot = f"%a{self.temporaries}"
            self.temporaries += 1
            self.entry.append(f"  {slot} = alloca [{max(count, 1)} x {element}], align 64")
            self.kept[(b, i.places)] = slot

    # ---- expressions ---------------------------------------------------------------------------------------
    # -------------------------

    def depends(self, e: Expr) -> frozenset[Expr]:
        """The axes that an expression's value depends on, those around the locals that it reads included."""
        known = self.depends_memo.get(e)
        if known is None:
            found = set(free(e))
            for n in nodes(e):
                if isinstance(n, Load) and n.source in self.kept_axes:
                    found |= set(self.kept_axes[n.source])
                    lane = self.kept_lanes[n.source]
                    if lane is not None:
                        found.add(lane)
            known = self.depends_memo[e] = frozenset(found)
        return known

    def value(self, e: Expr, i: Instance) -> Value:
        """Print what is not printed yet of an expression, for one instance."""
        if isinstance(e, Const):
            return Value(scalars.literal(e.value, e.dtype), e.dtype)
        if isinstance(e, Axis):
            for a, k in i.places:
                if a is e:
                    return Value(str(k), I64)
        if isinstance(e, (Axis, Dim)):
            found = self.memo.get(e)
            assert found is not None, f"{e.name} has no value in {self.part.symbol}"
            return found
        needs = self.depends(e)
        place, version = tuple(k for a, k in i.places if a in needs), self._versions(e)
        mask = i.mask.text if i.mask and self._reads(e) else ""
        under: str | None = mask
        while under is not None:  # what was read for more lanes serves these too
            found = self.memo.get((e, place, version, under))
            if found is not None:
                return found
            under = self.wider.get(under)
        return self.memo.put((e, place, version, mask), self._print(e, i))

    def _reads(self, e: Expr) -> bool:
        return any(isinstance(n, (Load, Guard)) for n in nodes(e))

    def _versions(self, e: Expr) -> tuple[int, ...]:
        return tuple(
            self.version.get(n.source, 0)
            for n in nodes(e)
            if isinstance(n, Load) and n.source in self.version
        )

    def _print(self, e: Expr, i: Instance) -> Value:
        match e:
            case Load():
                return self._load(e, i)
            case Guard():
                return self._guard(e, i)
            case Apply(op="select"):
                return self._select(e, i)
            case Apply(op="cast"):
                return self._cast(self.value(e.args[0], i), e.dtype)
            case Apply(op="bitcast"):
                v = self.value(e.args[0], i)
                return Value(
                    self.emit(f"bitcast {self.typed(v)} to {self.type_of(e.dtype, v.lanes)}"),
                    e.dtype,
                    v.lanes,
                )
            case Apply() if (
                e.dtype is I64 and e.op in ("floordiv", "mod") and ix.nonnegative(ix.poly(e.args[0]))
            ):
                a, b = self._same_lanes(*(self.value(x, i) for x in e.args))
                word = "udiv" if e.op == "floordiv" else "urem"
                return Value(self.emit(f"{word} {self.typed(a)}, {b.text}"), I64, a.lanes)
            case Apply() if e.dtype is I64 and e.op in ("add", "mul"):
                return self._index(e, i)
            case Apply():
                return self._apply(e.op, [self.value(a, i) for a in e.args], e.dtype)
        raise TypeError(f"{type(e).__name__} cannot be printed: {e}")

    def _index(self, e: Expr, i: Instance) -> Value:
        """A polynomial, summed from the outermost loop inwards, so that what is invariant comes first."""

        def level(term: tuple[tuple[Expr, ...], int]) -> int:
            inner = [self.depth.get(a, 0) for x in term[0] for a in self.depends(x) if isinstance(a, Axis)]
            return (1000 if self.vector in {a for x in term[0] for a in self.depends(x)} else 0) + max(
                inner, default=-1
            )

        total: Value | None = None
        for monomial, factor in sorted(ix.poly(e).items(), key=level):
            term: Value | None = None
            for atom in monomial:
                v = self.value(atom, i)
                term = v if term is None else self._apply("mul", [term, v], I64)
            if term is None:
                term = Value(str(factor), I64)
            elif factor != 1:
                term = self._apply("mul", [term, Value(str(factor), I64)], I64)
            total = term if total is None else self._apply("add", [total, term], I64)
        return total or Value("0", I64)

    def _same_lanes(self, *values: Value) -> list[Value]:
        lanes = max(v.lanes for v in values)
        return [v if v.lanes == lanes else self._splat(v, lanes) for v in values]

    def _splat(self, v: Value, lanes: int) -> Value:
        key = ("splat", v.text, v.dtype, lanes)
        found = self.memo.get(key)
        if found is not None:
            return found
        t, vt = self.type_of(v.dtype, 0), self.type_of(v.dtype, lanes)
        if not v.text.startswith("%"):
            return Value(f"<{', '.join([f'{t} {v.text}'] * lanes)}>", v.dtype, lanes)
        one = self.emit(f"insertelement {vt} poison, {t} {v.text}, i32 0")
        return self.memo.put(
            key,
            Value(
                self.emit(f"shufflevector {vt} {one}, {vt} poison, <{lanes} x i32> zeroinitializer"),
                v.dtype,
                lanes,
            ),
        )

    def _apply(self, op: str, args: list[Value], dtype: DType) -> Value:
        args = self._same_lanes(*args)
        kind, lanes = args[0].dtype.kind, args[0].lanes
        t = self.type_of(args[0].dtype, lanes)
        texts = [a.text for a in args]
        if (op, kind) in scalars.COMPARE:
            return Value(self.emit(f"{scalars.COMPARE[op, kind]} {t} {texts[0]}, {texts[1]}"), BOOL, lanes)
        if op == "neg" and kind == "f":
            return Value(self.emit(f"fneg {t} {texts[0]}"), dtype, lanes)
        if (op, kind) in scalars.INSTRUCTION:
            return Value(self.emit(f"{scalars.INSTRUCTION[op, kind]} {t} {', '.join(texts)}"), dtype, lanes)
        if op in ("min", "max"):
            order = "lt"
            a, b = (args[1], args[0]) if op == "min" else (args[0], args[1])
            less = self._apply(order, [a, b], BOOL)
            return self._pick(less, args[1], args[0])
        if op == "not":
            ones = Value("true" if dtype is BOOL else "-1", dtype)
            return self._apply("xor", [args[0], ones], dtype)
        if op == "neg":
            return self._apply("sub", [Value("0", dtype), args[0]], dtype)
        if op == "abs" and kind != "f":
            return self._pick(
                self._apply("lt", [args[0], Value("0", dtype)], BOOL),
                self._apply("neg", [args[0]], dtype),
                args[0],
            )
        if op in ("floordiv", "mod") and kind in "iu":
            return self._floor_division(op, args, dtype)
        if op == "abs":
            return self._call("llvm.fabs", args, dtype)
        if op in scalars.INTRINSIC and kind == "f":
            return self._call(scalars.INTRINSIC[op], args, dtype)
        if op in scalars.LIBM and kind == "f":
            return self._libm(op, args, dtype)
        raise TypeError(
            f"the native backend has no row for {op} on {dtype}: legalisation should have removed it"
        )

    def _floor_division(self, op: str, args: list[Value], dtype: DType) -> Value:
        """By truncating division; divisors are not zero here (legalised)."""
        a, b = args
        if dtype.kind == "u":
            return self._apply("div" if op == "floordiv" else "rem", args, dtype)
        rest = self._apply("rem", [a, b], dtype)
        zero = Value("0", dtype)
        off = self._apply("ne", [rest, zero], BOOL)
        signs = self._apply("lt", [self._apply("xor", [rest, b], dtype), zero], BOOL)
        wrong = self._apply("and", [off, signs], BOOL)
        if op == "mod":
            return self._pick(wrong, self._apply("add", [rest, b], dtype), rest)
        quotient = self._apply("div", [a, b], dtype)
        return self._pick(wrong, self._apply("sub", [quotient, Value("1", dtype)], dtype), quotient)

    def _call(self, intrinsic: str, args: list[Value], dtype: DType) -> Value:
        lanes = args[0].lanes
        t = self.type_of(dtype, lanes)
        suffix = (f"v{lanes}" if lanes else "") + scalars.letters(scalars.register_type(dtype))
        self.module.declare(f"declare {t} @{intrinsic}.{suffix}({', '.join([t] * len(args))})")
        return Value(
            self.emit(f"call {t} @{intrinsic}.{suffix}({', '.join(f'{t} {a.text}' for a in args)})"),
            dtype,
            lanes,
        )

    def _libm(self, op: str, args: list[Value], dtype: DType) -> Value:
        t = self.type_of(dtype, 0)
        symbol = op if t == "double" else f"{op}f"
        self.module.declare(f"declare {t} @{symbol}({', '.join([t] * len(args))}) nounwind")
        lanes = args[0].lanes
        if not lanes:
            return Value(self.emit(f"call {t} @{symbol}({', '.join(f'{t} {a.text}' for a in args)})"), dtype)
        vt, out = self.type_of(dtype, lanes), "poison"
        for k in range(lanes):
            each = [self.emit(f"extractelement {vt} {a.text}, i32 {k}") for a in args]
            one = self.emit(f"call {t} @{symbol}({', '.join(f'{t} {x}' for x in each)})")
            out = self.emit(f"insertelement {vt} {out}, {t} {one}, i32 {k}")
        return Value(out, dtype, lanes)

    def _pick(self, test: Value, yes: Value, no: Value) -> Value:
        test, yes, no = self._same_lanes(test, yes, no)
        return Value(
            self.emit(f"select {self.typed(test)}, {self.typed(yes)}, {self.typed(no)}"), yes.dtype, yes.lanes
        )

    def _cast(self, v: Value, to: DType) -> Value:
        if v.dtype is to:
            return v
        source, target = self.type_of(v.dtype, v.lanes), self.type_of(to, v.lanes)
        if to is BOOL:
            return self._apply("ne", [v, Value(scalars.literal(0, v.dtype), v.dtype)], BOOL)
        a, b = v.dtype.kind, to.kind
        if a == "f" and b == "f":
            word = "fpext" if to.bits > v.dtype.bits else "fptrunc"
        elif a == "f":
            intrinsic = "llvm.fptosi.sat" if b == "i" else "llvm.fptoui.sat"
            lane = f"v{v.lanes}" if v.lanes else ""
            ends = ".".join(lane + scalars.letters(scalars.register_type(t)) for t in (to, v.dtype))
            self.module.declare(f"declare {target} @{intrinsic}.{ends}({source})")
            return Value(self.emit(f"call {target} @{intrinsic}.{ends}({source} {v.text})"), to, v.lanes)
        elif b == "f":
            word = "sitofp" if a == "i" else "uitofp"
        elif to.bits == v.dtype.bits and v.dtype is not BOOL:
            return Value(v.text, to, v.lanes)
        else:
            word = (
                "trunc" if to.bits < v.dtype.bits and v.dtype is not BOOL else "sext" if a == "i" else "zext"
            )
        return Value(self.emit(f"{word} {source} {v.text} to {target}"), to, v.lanes)

    # ---- memory --------------------------------------------------------------------------------------------
    # -------------------------

    def _select(self, e: Apply, i: Instance) -> Value:
        """Reads in an arm happen only where the arm is taken, unless they are provably inside their buffers
        or both arms need them.
        """
        test = self.value(e.args[0], i)
        risky = [self._is_risky(arm) for arm in e.args[1:]]
        if all(risky):
            # Once for all lanes: read again in each arm, a chain of selects would double with every link.
            shared = self._agreed(e)
            for n in nodes(e.args[1]):
                if n in shared and self._reads(n):
                    self.value(n, i)
        arms = []
        for arm, wanted, alone in zip(e.args[1:], (True, False), risky, strict=True):
            if alone:
                taken = test if wanted else self._apply("not", [test], BOOL)
                arms.append(self.value(arm, Instance(i.places, self._both(i.mask, taken))))
            else:
                arms.append(self.value(arm, i))
        return self._pick(test, arms[0], arms[1])

    def _is_risky(self, arm: Expr) -> bool:
        return any(isinstance(n, Guard) or (isinstance(n, Load) and not self._safe(n)) for n in nodes(arm))

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

    def _safe(self, x: Load) -> bool:
        return all(ix.within(at, n) for at, n in zip(x.index, x.source.shape, strict=True))

    def _pointer(self, b: Buffer, address: Expr, i: Instance) -> str:
        """The address of an element: what varies, then the constant part as a displacement."""
        p = dict(ix.poly(address))
        offset = p.pop((), 0)
        base = self._base(b, i)
        t = scalars.memory_type(b.dtype)
        if p:
            rest = self.value(ix.expr(p), i)
            assert not rest.lanes
            key = ("pointer", base, rest.text)
            found = self.memo.get(key)
            base = (
                found
                or self.memo.put(
                    key, Value(self.emit(f"getelementptr inbounds {t}, ptr {base}, i64 {rest.text}"), I64)
                )
            ).text
        return self.emit(f"getelementptr inbounds {t}, ptr {base}, i64 {offset}") if offset else base

    def _flat(self, b: Buffer, index: tuple[Expr, ...], i: Instance) -> tuple[Expr, int | None]:
        """The position of an access with this instance's jam places put in, and its stride along the lanes
        (None: not linear).
        """
        address = b.address(index)
        places: dict[Expr, Expr] = {a: const(k) for a, k in i.places}
        if places:
            address = substitute(address, places)
        if self.vector is None or self.vector not in self.depends(address):
            return address, 0
        c = ix.coefficient(address, self.vector)
        stride = None if c is None else ix.number(c)
        if stride == 1:
            return substitute(address, {self.vector: const(0)}), 1
        return address, None

    def _align(self, b: Buffer) -> int:
        return storage_bytes(b.dtype)

    def _load(self, e: Load, i: Instance) -> Value:
        b: Buffer = e.source
        if b in self.kept_axes and self._per_lane(b):
            return self._load_kept(b, e.index, i)
        mask = i.mask if i.mask is not None and not self._safe(e) else None
        address, stride = self._flat(b, e.index, i)
        t = scalars.memory_type(b.dtype)
        note = "" if b in self.written or b.scope != "param" else ", !invariant.load !0"
        if stride == 0:
            if mask is not None and mask.lanes:
                mask = self._any(mask)
            if mask is not None:
                where = self.value(address, i)
                where = self._pick(mask, where, Value("0", I64))
                pointer = self.emit(f"getelementptr inbounds {t}, ptr {self._base(b, i)}, i64 {where.text}")
            else:
                pointer = self._pointer(b, address, i)
            return self._from_memory(
                self.emit(f"load {t}, ptr {pointer}, align {self._align(b)}{note}"), b.dtype, 0
            )
        vt = self.sized(t, self.lanes)
        if stride == 1 and mask is None:
            pointer = self._pointer(b, address, i)
            return self._from_memory(
                self.emit(f"load {vt}, ptr {pointer}, align {self._align(b)}{note}"), b.dtype, self.lanes
            )
        if stride == 1 and mask is not None and mask.lanes:
            pointer = self._pointer(b, address, i)
            return self._from_memory(self._masked("load", vt, pointer, mask, b), b.dtype, self.lanes)
        return self._gather(b, address, stride, mask, i)

    def _gather(self, b: Buffer, address: Expr, stride: int | None, mask: Value | None, i: Instance) -> Value:
        if stride == 1 and self.vector is not None:
            address = address + self.vector
        where = self._same_lanes(self.value(address, i), Value("0", I64, self.lanes))[0]
        t, vt = scalars.memory_type(b.dtype), self.sized(scalars.memory_type(b.dtype), self.lanes)
        pointers = self.emit(f"getelementptr {t}, ptr {self._base(b, i)}, <{self.lanes} x i64> {where.text}")
        full = self._full(mask)
        name = f"llvm.masked.gather.v{self.lanes}{scalars.letters(t)}.v{self.lanes}p0"
        m = f"<{self.lanes} x i1>"
        self.module.declare(f"declare {vt} @{name}(<{self.lanes} x ptr>, i32, {m}, {vt})")
        out = self.emit(
            f"call {vt} @{name}(<{self.lanes} x ptr> {pointers}, i32 {self._align(b)}, {m} {full}, "
            f"{vt} zeroinitializer)"
        )
        return self._from_memory(out, b.dtype, self.lanes)

    def _full(self, mask: Value | None) -> str:
        if mask is None:
            return f"<{', '.join(['i1 true'] * self.lanes)}>"
        return self._same_lanes(mask, Value("", BOOL, self.lanes))[0].text if not mask.lanes else mask.text

    def _any(self, mask: Value) -> Value:
        word = self.emit(f"bitcast <{mask.lanes} x i1> {mask.text} to i{mask.lanes}")
        return Value(self.emit(f"icmp ne i{mask.lanes} {word}, 0"), BOOL)

    def _first(self, mask: Value) -> str:
        """The number of the first lane of a mask that has one, typed."""
        word = self.emit(f"bitcast <{mask.lanes} x i1> {mask.text} to i{mask.lanes}")
        self.module.declare(f"declare i{mask.lanes} @llvm.cttz.i{mask.lanes}(i{mask.lanes}, i1)")
        first = self.emit(f"call i{mask.lanes} @llvm.cttz.i{mask.lanes}(i{mask.lanes} {word}, i1 true)")
        return f"i{mask.lanes} {first}"

    def _masked(self, what: str, vt: str, pointer: str, mask: Value, b: Buffer, value: str = "") -> str:
        m, name = (
            f"<{self.lanes} x i1>",
            f"llvm.masked.{what}.v{self.lanes}{scalars.letters(scalars.memory_type(b.dtype))}.p0",
        )
        if what == "load":
            self.module.declare(f"declare {vt} @{name}(ptr, i32, {m}, {vt})")
            return self.emit(
                f"call {vt} @{name}(ptr {pointer}, i32 {self._align(b)}, {m} {mask.text}, {vt} "
                f"zeroinitializer)"
            )
        self.module.declare(f"declare void @{name}({vt}, ptr, i32, {m})")
        self.lines.append(
            f"  call void @{name}({vt} {value}, ptr {pointer}, i32 {self._align(b)}, {m} {mask.text})"
        )
        return ""

    def _from_memory(self, text: str, t: DType, lanes: int) -> Value:
        if t is not BOOL:
            return Value(text, t, lanes)
        zero = "zeroinitializer" if lanes else "0"
        return Value(self.emit(f"icmp ne {self.sized('i8', lanes)} {text}, {zero}"), BOOL, lanes)

    def _to_memory(self, v: Value) -> str:
        if v.dtype is not BOOL:
            return v.text
        return self.emit(f"zext {self.typed(v)} to {self.sized('i8', v.lanes)}")

    def _base(self, b: Buffer, i: Instance) -> str:
        """Where a buffer begins, for one instance."""
        own = self.kept_axes.get(b)
        return (
            self.pointers[b]
            if own is None
            else self.kept[(b, tuple((a, k) for a, k in i.places if a in own))]
        )

    def _per_lane(self, b: Buffer) -> bool:
        """Whether every lane has a local buffer of its own."""
        return self.kept_lanes[b] is not None

    def _kept_pointer(self, b: Buffer, index: tuple[Expr, ...], i: Instance) -> str:
        """The element of a per-lane local buffer: a vector with one value for each lane."""
        address, stride = self._flat(b, index, i)
        assert stride == 0, f"the place in the local buffer {b.name} differs between lanes"
        if not b.shape:
            return self._base(b, i)
        element = self.sized(scalars.memory_type(b.dtype), self.lanes)
        return self.emit(
            f"getelementptr inbounds {element}, ptr {self._base(b, i)}, i64 "
            f"{self.value(address, Instance(i.places)).text}"
        )

    def _load_kept(self, b: Buffer, index: tuple[Expr, ...], i: Instance) -> Value:
        vt = self.sized(scalars.memory_type(b.dtype), self.lanes)
        return self._from_memory(
            self.emit(f"load {vt}, ptr {self._kept_pointer(b, index, i)}, align {self._align(b)}"),
            b.dtype,
            self.lanes,
        )

    def _store(self, s: Store, i: Instance) -> None:
        b = s.buffer
        v = self.value(s.value, i)
        note = ", !nontemporal !1" if s.stream else ""
        if b in self.kept_axes and self._per_lane(b):
            pointer = self._kept_pointer(b, s.index, i)
            v = self._same_lanes(v, Value("", BOOL, self.lanes))[0]
            vt = self.sized(scalars.memory_type(b.dtype), self.lanes)
            if i.mask is not None and i.mask.lanes:
                self._masked("store", vt, pointer, i.mask, b, self._to_memory(v))
            else:
                self.lines.append(f"  store {vt} {self._to_memory(v)}, ptr {pointer}, align {self._align(b)}")
            return
        address, stride = self._flat(b, s.index, i)
        if stride == 0 and not v.lanes:
            pointer = self._pointer(b, address, i)
            self.lines.append(
                f"  store {scalars.memory_type(b.dtype)} {self._to_memory(v)}, ptr {pointer}, align "
                f"{self._align(b)}{note}"
            )
            return
        v = self._same_lanes(v, Value("", BOOL, self.lanes))[0]
        vt = self.sized(scalars.memory_type(b.dtype), self.lanes)
        if stride == 1:
            pointer = self._pointer(b, address, i)
            if i.mask is not None:
                self._masked(
                    "store", vt, pointer, Value(self._full(i.mask), BOOL, self.lanes), b, self._to_memory(v)
                )
            else:
                align = self.lanes * storage_bytes(b.dtype) if s.stream else self._align(b)
                self.lines.append(f"  store {vt} {self._to_memory(v)}, ptr {pointer}, align {align}{note}")
            return
        assert stride is None, f"all lanes write one element of {b.name}"
        self._scatter(b, address, v, i)

    def _scatter(self, b: Buffer, address: Expr, v: Value, i: Instance) -> None:
        where = self.value(address, i)
        t, vt, m = (
            scalars.memory_type(b.dtype),
            self.sized(scalars.memory_type(b.dtype), self.lanes),
            f"<{self.lanes} x i1>",
        )
        pointers = self.emit(f"getelementptr {t}, ptr {self._base(b, i)}, <{self.lanes} x i64> {where.text}")
        name = f"llvm.masked.scatter.v{self.lanes}{scalars.letters(t)}.v{self.lanes}p0"
        self.module.declare(f"declare void @{name}({vt}, <{self.lanes} x ptr>, i32, {m})")
        full = self._full(i.mask)
        self.lines.append(
            f"  call void @{name}({vt} {self._to_memory(v)}, <{self.lanes} x ptr> {pointers}, i32 "
            f"{self._align(b)}, {m} {full})"
        )

    def _guard(self, e: Guard, i: Instance) -> Value:
        """The index where it is inside, else 0 after setting the error."""
        index, extent = self._same_lanes(self.value(e.index, i), self.value(e.extent, i))
        lanes = index.lanes
        t = self.type_of(I64, lanes)
        outside = Value(self.emit(f"icmp uge {t} {index.text}, {extent.text}"), BOOL, lanes)
        safe = self._pick(outside, Value("0", I64), index)
        bad = outside
        if i.mask is not None:
            bad = self._both(i.mask, outside)
        fail, fine = self.label("fail"), self.label("fine")
        some = self._any(bad) if bad.lanes else bad
        self.lines.append(f"  br i1 {some.text}, label %{fail}, label %{fine}, !prof !2")
        self.start(fail)
        first_index, first_extent = index.text, extent.text
        if lanes:
            lane = self._first(bad) if bad.lanes else "i32 0"
            first_index = self.emit(f"extractelement {t} {index.text}, {lane}")
            first_extent = self.emit(f"extractelement {t} {extent.text}, {lane}")
        site = self.emit(f"trunc i64 {self.site_values[e.site]} to i32")
        self.lines.append(
            f"  call void @fusile_error(ptr %error, i32 2, i32 {site}, i64 {first_index}, i64 {first_extent})"
        )
        self.lines.append(f"  br label %{fine}")
        self.start(fine)
        return safe


def guard_sites(kernel: Kernel) -> tuple[str, ...]:
    """The ONNX nodes whose indices a kernel checks, in order of appearance."""
    from fusile.ir.loops import stmt_exprs

    found: dict[str, None] = {}
    for s in walk(kernel.body):
        for e in stmt_exprs(s):
            for n in nodes(e):
                if isinstance(n, Guard):
                    found[n.site] = None
    return tuple(found)


def print_kernel(module: Module, kernel: Kernel, symbol: str) -> list[Part]:
    """Print a legal kernel into a module; answers its parts in the order in which they run."""
    found = parts(kernel, symbol)
    sites = guard_sites(kernel)
    for part in found:
        module.functions.append(FunctionPrinter(module, kernel, part, sites).function())
    return found


__all__ = [
    "FunctionPrinter",
    "Instance",
    "Module",
    "Part",
    "Value",
    "guard_sites",
    "parts",
    "print_kernel",
    "scratch_layout",
]
