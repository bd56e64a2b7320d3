"""A plan as Python: `prepare`, which lays the weights out, and `run`, which works sizes out and calls
kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fusile.backends.numba import control, scalars
from fusile.backends.numba.expressions import Context, Lines, Names, Printer, legal
from fusile.backends.numba.kernels import Use
from fusile.escape import comment_text, python_string
from fusile.ir import index as ix
from fusile.ir.expr import Const, Dim, Expr, Load, load, nodes, substitute
from fusile.ir.loops import Buffer, Kernel
from fusile.ir.plan import Call, Check, Control, Define, Plan, PrepareStep, Variant
from fusile.ir.tensor import Tensor
from fusile.passes.legalise import Legaliser

WIDTH = 100


@dataclass(frozen=True, slots=True)
class Words:
    """What a target prints its own way in a plan."""

    launch: Callable[[Use, Kernel, Callable[[Expr], str]], tuple[str, list[str]]]
    """What is called for a kernel, and with which arguments before those of the kernel."""
    around: tuple[str, ...]
    """What the functions of a plan are given besides tensors and sizes, first the weights."""
    from_arena: str
    """An array in the arena: format with `shape`, `dtype` and `start`."""
    empty: str
    """An array of its own: format with `shape` and `dtype`."""
    copy: str
    """A copy of an array: format with `array`."""
    assign: str
    """Fill an array from another one: format with `to` and `array`."""
    item: str
    """The number in an array of one element: format with `array`."""
    stack: str
    """An array of the arrays in a list: format with `rows`."""


class Sites:
    """The ONNX nodes that kernels may complain about, by number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {"": 0}

    def __call__(self, site: str) -> int:
        return self.numbers.setdefault(site, len(self.numbers))


class PlanPrinter:
    """Prints the functions of a plan."""

    def __init__(
        self, plan: Plan, uses: Mapping[Kernel, Use], words: Words, use: scalars.Use, taken: Iterable[str]
    ) -> None:
        self.plan, self.uses, self.words, self.use = plan, uses, words, use
        self.parts = [f"part{k + 1}" for k in range(_count(plan))]
        self.taken = (*taken, *self.parts)
        self.weights = Names(("np",))
        self.raw = raw_names(plan)
        self.inner: list[str] = []

    # ---- the run ------------------------------------------------------------------------------------------

    def run(self) -> str:
        """`def run(w, …, memory, …)`."""
        arguments = self._begin()
        self._sizes()
        plan = self.plan
        if ix.number(plan.arena) != 0:
            self.lines.add(f"arena = memory({self.size(plan.arena)})")
        doc = "The outputs, in graph order. `memory` gives the bytes that intermediate tensors share."
        main = self._function("run", [*self.words.around, "memory", *arguments], doc)
        return "\n\n\n".join([*self.inner, main])

    def part(self, name: str) -> str:
        """The body of a branch or of a loop: a function of its inputs and then of its sizes."""
        arguments = self._begin()
        sizes = [self.names.name(d, d.name) for d in self.plan.symbols]
        if ix.number(self.plan.arena) != 0:
            size = f"({self.size(self.plan.arena)},)"
            self.lines.add(f"arena = {self.words.empty.format(shape=size, dtype='np.uint8')}")
        doc = "A part of the run that is taken when needed."
        return self._function(name, [*self.words.around, *arguments, *sizes], doc)

    def _begin(self) -> list[str]:
        """Start a function; the names of its inputs."""
        self.lines = Lines(1)
        self.names = Names((*self.taken, *self.words.around, "memory", "arena", "error"))
        self.arrays: dict[Tensor, str] = {}
        self.outputs: dict[int, str] = {}
        arguments = [self.names.name(t, t.name) for t in self.plan.inputs]
        self.arrays.update(zip(self.plan.inputs, arguments, strict=True))
        if any(self.uses[k].function.checks for k in self.plan.own_kernels()):
            self.lines.add("error = new_error()")
        return arguments

    def _function(self, name: str, arguments: Sequence[str], doc: str) -> str:
        plan = self.plan
        for s in plan.steps:
            match s:
                case Define():
                    self._define(s)
                case Check():
                    condition = self.text(s.condition)
                    self.add(
                        f"require({condition}, ", [python_string(s.origin), python_string(s.reason)], ")"
                    )
                case Call():
                    self._call(s)
                case Control():
                    control.print_control(self, s)
        results = [self._result(k, t) for k, t in enumerate(plan.outputs)]
        self.add("return [", results, "]")
        head = [f"def {name}({', '.join(arguments)}):"]
        if len(head[0]) > WIDTH:
            head = [f"def {name}(", *(f"    {a}," for a in arguments), "):"]
        return "\n".join([*head, f'    """{doc}"""', *self.lines.lines])

    def _sizes(self) -> None:
        """Symbols of the inputs' shapes, and what must hold between them."""
        known: set[Expr] = set()
        for t in self.plan.inputs:
            for d, e in enumerate(t.shape):
                if isinstance(e, Dim) and e not in known:
                    known.add(e)
                    self.lines.add(f"{self.names.name(e, e.name)} = {self.arrays[t]}.shape[{d}]")
        for t in self.plan.inputs:
            for d, e in enumerate(t.shape):
                if not isinstance(e, (Dim, Const)):
                    wanted = self.text(e)
                    what = f"dimension {d} of input {t.name} is to be {e!r}"
                    self.add(
                        f"require({self.arrays[t]}.shape[{d}] == {wanted}, ", ['""', python_string(what)], ")"
                    )

    def size(self, e: Expr) -> str:
        return self.text(e)

    def text(self, e: Expr) -> str:
        """A host expression; elements of tensors are read where they lie."""

        def read(x: Load) -> Expr:
            b = Buffer(x.source.name, x.source.dtype, x.source.shape)
            self.names.of[b] = self.array(x.source)
            return load(b, x.index)

        body = substitute(e, {}, read)
        if any(n.dtype.is_float for n in nodes(body)):  # not every type of the model is one of numpy's
            body = legal(body, Legaliser(scalars.CAPABILITIES))
        context = Context(self.lines, self.names, self.use, host=True)
        return Printer(context, [body]).text(body).text

    def _define(self, s: Define) -> None:
        value = self.text(s.value)
        self.add(
            f"{self.names.name(s.dim, s.dim.name)} = known_size({value}, ", [python_string(s.origin)], ")"
        )

    def _call(self, s: Call) -> None:
        for t in s.fresh:
            self._fresh(t)
        several = len(s.variants) > 1
        arguments = [[self.array(t) for t in self._arguments(v)] for v in s.variants]
        for k, (v, given) in enumerate(zip(s.variants, arguments, strict=True)):
            if several:
                test = "else:" if v.guard is None else f"{'el' if k else ''}if {self.text(v.guard)}:"
                self.lines.add(test)
                self.lines.depth += 1
            self._launch(v.kernel, given, v.kernel.origins)
            if several:
                self.lines.depth -= 1
        if any(self.uses[v.kernel].function.checks for v in s.variants):
            self.lines.add("check(error)")
        self.release(s)

    def release(self, s: Call | Control) -> None:
        dead = [self.arrays.pop(t) for t in s.release if t in self.arrays]
        if dead:
            self.lines.add(f"del {', '.join(dead)}")

    def within(self, plan: Plan) -> str:
        """Print a plan within this one; the name of its function."""
        name = self.parts.pop(0)
        printer = PlanPrinter(plan, self.uses, self.words, self.use, self.taken)
        printer.parts, printer.weights, printer.inner = self.parts, self.weights, self.inner
        printer.taken = self.taken
        self.inner.append(printer.part(name))
        return name

    def _arguments(self, v: Variant) -> tuple[Tensor, ...]:
        return v.arguments

    def _launch(self, kernel: Kernel, arrays: Sequence[str], origins: Sequence[str]) -> None:
        use = self.uses[kernel]
        extra = [self._extra(e) for e in use.extra]
        scratch = self._scratch(use, kernel)
        given = [*arrays, *scratch, *(["error"] if use.function.checks else []), *extra]
        if origins:
            self.lines.add(f"# {comment_text(', '.join(origins), WIDTH - 10)}")
        called, before = self.words.launch(use, kernel, self.text)
        self.add(f"{called}(", [*before, *given], ")")

    def _scratch(self, use: Use, kernel: Kernel) -> list[str]:
        """Memory of a kernel's own that its caller provides."""
        out = []
        for b in use.params[len(kernel.params) :]:
            shape = [self.text(n) for n in b.shape]
            count = kernel.notes["blocks"]
            assert isinstance(count, Expr)
            text = self.words.empty.format(
                shape=tuple_text([self.text(count), *shape]), dtype=scalars.numpy_name(b.dtype)
            )
            out.append(text)
        return out

    def _extra(self, e: Expr) -> str:
        return scalars.literal(e.value, e.dtype).text if isinstance(e, Const) else self.text(e)

    # ---- where tensors lie --------------------------------------------------------------------------------

    def array(self, t: Tensor) -> str:
        """The variable of a tensor; it is made where it is first needed."""
        place = self.plan.places[t]
        if place.kind == "weights":
            return f"w.{self.weights.name(t, t.name)}"
        if t in self.arrays:
            return self.arrays[t]
        name = self.names.name(t, t.name)
        shape = tuple_text([self.text(n) for n in t.shape])
        word = scalars.numpy_name(t.dtype)
        if place.kind == "arena":
            text = self.words.from_arena.format(shape=shape, dtype=word, start=self.text(place.offset))
        elif place.kind == "input":
            text = f"{self.arrays[self.plan.inputs[place.number]]}.reshape({shape})"
        elif place.kind == "output":
            text = self._output(place.number, t, shape, word)
        else:
            home = next((x for x in self.arrays if self.plan.places.get(x) is place), None)
            text = (
                f"{self.arrays[home]}.reshape({shape})"
                if home is not None
                else self.words.empty.format(shape=shape, dtype=word)
            )
        self.add(f"{name} = {text}", [], "")
        self.arrays[t] = name
        return name

    def _output(self, number: int, t: Tensor, shape: str, word: str) -> str:
        """An output's array, made when one of the tensors that lie there is first needed."""
        made = self.outputs.get(number)
        if made is None:
            self.outputs[number] = self.names.name(t, t.name)
            return self.words.empty.format(shape=shape, dtype=word)
        return f"{made}.reshape({shape})"

    def _fresh(self, t: Tensor) -> None:
        self.array(t)

    def _result(self, number: int, t: Tensor) -> str:
        """An output: the array that was written, or a copy of an input or a weight that is one."""
        place = self.plan.places[t]
        if t in self.plan.inputs or t.data is not None:
            source = self.arrays[t] if t in self.plan.inputs else self.array(t)
            return self.words.copy.format(array=source)
        if place.kind == "output" and place.number != number:
            return self.words.copy.format(array=self.array(t))
        return self.array(t)

    # ---- weights ------------------------------------------------------------------------------------------

    def prepare(self) -> str:
        """`def prepare(raw, …)`. Call it after `run`, which says what weights are called."""
        self.lines = Lines(1)
        self.names = Names((*self.taken, *self.words.around, "raw", "error"))
        self.lines.add("w = Weights()")
        for step in self.plan.prepare:
            self._step(step)
        self.lines.add("return w")
        doc = '    """The weights as kernels read them; `raw` gives an initialiser by its name."""'
        arguments = ", ".join(["raw", *self.words.around[1:]])
        return "\n".join([f"def prepare({arguments}):", doc, *self.lines.lines])

    def _step(self, step: PrepareStep) -> None:
        for t in step.copies:
            self.lines.add(f"w.{self.weights.name(t, t.name)} = raw({python_string(self.raw[t])})")
        here: dict[Tensor, str] = {}
        for call in step.calls:
            v = call.variants[0]
            arrays: list[str] = []
            for t in v.arguments:
                arrays.append(self._raw_or_made(t, here))
            self._launch(v.kernel, arrays, ())
        dead = [n for t, n in here.items() if not n.startswith("w.")]
        if dead:
            self.add("del ", dead, "")

    def _raw_or_made(self, t: Tensor, here: dict[Tensor, str]) -> str:
        if t.data is not None:
            return f"raw({python_string(self.raw[t])})"
        if t not in here:
            packed = self.plan.places[t].kind == "weights"
            here[t] = f"w.{self.weights.name(t, t.name)}" if packed else self.names.name(t, t.name)
            shape = tuple_text([self.text(n) for n in t.shape])
            self.add(
                f"{here[t]} = {self.words.empty.format(shape=shape, dtype=scalars.numpy_name(t.dtype))}",
                [],
                "",
            )
        return here[t]

    # ---- text ---------------------------------------------------------------------------------------------

    def add(self, before: str, items: Sequence[str], after: str) -> None:
        """A line, or several where it is long: one item after another, broken at commas."""
        line = f"{before}{', '.join(items)}{after}"
        room = WIDTH - 4 * self.lines.depth
        if len(line) <= room or not items or before[-1:] not in "([":
            self.lines.add(line)
            return
        self.lines.add(before)
        row = ""
        self.lines.depth += 1
        for item in items:
            if row and len(row) + len(item) + 2 > room - 4:
                self.lines.add(row)
                row = ""
            row += f"{' ' if row else ''}{item},"
        self.lines.add(row)
        self.lines.depth -= 1
        self.lines.add(after)


def _count(plan: Plan) -> int:
    return sum(1 + _count(p) for p in plan.inner())


def raw_names(plan: Plan) -> dict[Tensor, str]:
    """Names for the tensors that `prepare` starts from, each its own: constants that definitions make may
    share one."""
    out: dict[Tensor, str] = {}
    taken: set[str] = set()
    for step in plan.prepare:
        for t in (*step.copies, *step.raw):
            if t in out:
                continue
            name, n = t.name, 1
            while name in taken:
                n += 1
                name = f"{t.name}~{n}"
            taken.add(name)
            out[t] = name
    return out


def tuple_text(parts: Sequence[str]) -> str:
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


__all__ = ["PlanPrinter", "Sites", "Words", "raw_names", "tuple_text"]
