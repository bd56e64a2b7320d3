"""A plan as Python: `prepare`, which lays the weights out, and `run`, which works sizes out and calls
kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fusile.backends.numba import scalars
from fusile.backends.numba.expressions import Context, Lines, Names, Printer
from fusile.backends.numba.kernels import Use
from fusile.escape import comment_text, python_string
from fusile.ir import index as ix
from fusile.ir.expr import Const, Dim, Expr, Load, load, substitute
from fusile.ir.loops import Buffer, Kernel
from fusile.ir.plan import Call, Check, Define, Plan, PrepareStep, Variant
from fusile.ir.tensor import Tensor

WIDTH = 100


@dataclass(frozen=True, slots=True)
class Words:
    """What a target prints its own way in a plan."""

    launch: Callable[[Use, Kernel, Callable[[Expr], str]], str]
    """What stands between a kernel's name and its arguments."""
    from_arena: str
    """An array in the arena: format with `shape`, `dtype` and `start`."""
    empty: str
    """An array of its own: format with `shape` and `dtype`."""
    copy: str
    """A copy of an array: format with `array`."""


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
        self.taken = tuple(taken)
        self.weights = Names(("np",))
        self.raw = raw_names(plan)

    # ---- the run ------------------------------------------------------------------------------------------

    def run(self) -> str:
        """`def run(w, memory, …)`."""
        self.lines = Lines(1)
        self.names = Names((*self.taken, "w", "memory", "arena", "error"))
        self.arrays: dict[Tensor, str] = {}
        self.outputs: dict[int, str] = {}
        plan = self.plan
        arguments = [self.names.name(t, t.name) for t in plan.inputs]
        self.arrays.update(zip(plan.inputs, arguments, strict=True))
        self._sizes()
        checked = any(u.function.checks for k, u in self.uses.items() if k in set(plan.kernels()))
        if checked:
            self.lines.add("error = new_error()")
        if ix.number(plan.arena) != 0:
            self.lines.add(f"arena = memory({self.size(plan.arena)})")
        for s in plan.steps:
            match s:
                case Define():
                    self._define(s)
                case Check():
                    condition = self._text(s.condition)
                    self._add(
                        f"require({condition}, ", [python_string(s.origin), python_string(s.reason)], ")"
                    )
                case Call():
                    self._call(s)
        results = [self._result(k, t) for k, t in enumerate(plan.outputs)]
        self._add("return [", results, "]")
        head = [f"def run(w, memory{''.join(f', {a}' for a in arguments)}):"]
        if len(head[0]) > WIDTH:
            head = ["def run(", "    w,", "    memory,", *(f"    {a}," for a in arguments), "):"]
        return "\n".join(
            [
                *head,
                '    """The outputs, in graph order. `memory` gives the bytes that '
                'intermediate tensors share."""',
                *self.lines.lines,
            ]
        )

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
                    wanted = self._text(e)
                    what = f"dimension {d} of input {t.name} is to be {e!r}"
                    self._add(
                        f"require({self.arrays[t]}.shape[{d}] == {wanted}, ", ['""', python_string(what)], ")"
                    )

    def size(self, e: Expr) -> str:
        return self._text(e)

    def _text(self, e: Expr) -> str:
        """A host expression; elements of tensors are read where they lie."""

        def read(x: Load) -> Expr:
            b = Buffer(x.source.name, x.source.dtype, x.source.shape)
            self.names.of[b] = self._array(x.source)
            return load(b, x.index)

        body = substitute(e, {}, read)
        context = Context(self.lines, self.names, self.use, host=True)
        return Printer(context, [body]).text(body).text

    def _define(self, s: Define) -> None:
        value = self._text(s.value)
        self._add(
            f"{self.names.name(s.dim, s.dim.name)} = known_size({value}, ", [python_string(s.origin)], ")"
        )

    def _call(self, s: Call) -> None:
        for t in s.fresh:
            self._fresh(t)
        several = len(s.variants) > 1
        arguments = [[self._array(t) for t in self._arguments(v)] for v in s.variants]
        for k, (v, given) in enumerate(zip(s.variants, arguments, strict=True)):
            if several:
                test = "else:" if v.guard is None else f"{'el' if k else ''}if {self._text(v.guard)}:"
                self.lines.add(test)
                self.lines.depth += 1
            self._launch(v.kernel, given, v.kernel.origins)
            if several:
                self.lines.depth -= 1
        if any(self.uses[v.kernel].function.checks for v in s.variants):
            self.lines.add("check(error)")
        dead = [self.arrays.pop(t) for t in s.release if t in self.arrays]
        if dead:
            self.lines.add(f"del {', '.join(dead)}")

    def _arguments(self, v: Variant) -> tuple[Tensor, ...]:
        return v.arguments

    def _launch(self, kernel: Kernel, arrays: Sequence[str], origins: Sequence[str]) -> None:
        use = self.uses[kernel]
        extra = [self._extra(e) for e in use.extra]
        scratch = self._scratch(use, kernel)
        given = [*arrays, *scratch, *(["error"] if use.function.checks else []), *extra]
        if origins:
            self.lines.add(f"# {comment_text(', '.join(origins), WIDTH - 10)}")
        self._add(f"{use.function.name}{self.words.launch(use, kernel, self._text)}(", given, ")")

    def _scratch(self, use: Use, kernel: Kernel) -> list[str]:
        """Memory of a kernel's own that its caller provides."""
        out = []
        for b in use.params[len(kernel.params) :]:
            shape = [self._text(n) for n in b.shape]
            count = kernel.notes["blocks"]
            assert isinstance(count, Expr)
            text = self.words.empty.format(
                shape=tuple_text([self._text(count), *shape]), dtype=scalars.numpy_name(b.dtype)
            )
            out.append(text)
        return out

    def _extra(self, e: Expr) -> str:
        return scalars.literal(e.value, e.dtype).text if isinstance(e, Const) else self._text(e)

    # ---- where tensors lie --------------------------------------------------------------------------------

    def _array(self, t: Tensor) -> str:
        """The variable of a tensor; it is made where it is first needed."""
        place = self.plan.places[t]
        if place.kind == "weights":
            return f"w.{self.weights.name(t, t.name)}"
        if t in self.arrays:
            return self.arrays[t]
        name = self.names.name(t, t.name)
        shape = tuple_text([self._text(n) for n in t.shape])
        word = scalars.numpy_name(t.dtype)
        if place.kind == "arena":
            text = self.words.from_arena.format(shape=shape, dtype=word, start=self._text(place.offset))
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
        self._add(f"{name} = {text}", [], "")
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
        self._array(t)

    def _result(self, number: int, t: Tensor) -> str:
        """An output: the array that was written, or a copy of an input or a weight that is one."""
        place = self.plan.places[t]
        if t in self.plan.inputs or t.data is not None:
            source = self.arrays[t] if t in self.plan.inputs else self._array(t)
            return self.words.copy.format(array=source)
        if place.kind == "output" and place.number != number:
            return self.words.copy.format(array=self._array(t))
        return self._array(t)

    # ---- weights ------------------------------------------------------------------------------------------

    def prepare(self) -> str:
        """`def prepare(raw)`. Call it after `run`, which says what weights are called."""
        self.lines = Lines(1)
        self.names = Names((*self.taken, "w", "raw", "error"))
        self.lines.add("w = Weights()")
        for step in self.plan.prepare:
            self._step(step)
        self.lines.add("return w")
        doc = '    """The weights as kernels read them; `raw` gives an initialiser by its name."""'
        return "\n".join(["def prepare(raw):", doc, *self.lines.lines])

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
            self._add("del ", dead, "")

    def _raw_or_made(self, t: Tensor, here: dict[Tensor, str]) -> str:
        if t.data is not None:
            return f"raw({python_string(self.raw[t])})"
        if t not in here:
            packed = self.plan.places[t].kind == "weights"
            here[t] = f"w.{self.weights.name(t, t.name)}" if packed else self.names.name(t, t.name)
            shape = tuple_text([self._text(n) for n in t.shape])
            self._add(
                f"{here[t]} = {self.words.empty.format(shape=shape, dtype=scalars.numpy_name(t.dtype))}",
                [],
                "",
            )
        return here[t]

    # ---- text ---------------------------------------------------------------------------------------------

    def _add(self, before: str, items: Sequence[str], after: str) -> None:
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
