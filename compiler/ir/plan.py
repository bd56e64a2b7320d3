"""The plan: the host program over kernels. Which kernel runs when, on which memory, for which sizes.

    Define   dim = value        a size known only now, worked out from dims and elements of tensors;
                                refused below 0
    Check    condition          a requirement on sizes; the run fails with the node's name where it does
                                not hold
    Call     variants           the first kernel whose guard holds (the last has none), on its tensors
    Control  stage, plans       a branch or a loop: the plans of its bodies, run as the stage says

Memory is said per tensor by a Place: an input, an output, packed weights, the arena, or a temporary made
when its size is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fusile.ir.expr import Const, Dim, Expr, as_expr
from fusile.ir.loops import Buffer, Kernel, kernel_text
from fusile.ir.names import Names, comment, expr_text, plain
from fusile.ir.tensor import Branch, Loop, Tensor
from fusile.ir.text import tensor_text


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """Where a tensor lies. `kind`: input | output | weights | arena | temp; `number` which input, output or
    temp; `offset` in bytes.
    """

    kind: str
    number: int = 0
    offset: Expr = field(default_factory=lambda: as_expr(0))


@dataclass(frozen=True, eq=False, slots=True)
class Define:
    dim: Dim
    value: Expr
    origin: str


@dataclass(frozen=True, eq=False, slots=True)
class Check:
    condition: Expr
    origin: str
    reason: str


@dataclass(frozen=True, eq=False, slots=True)
class Variant:
    """A kernel for the sizes under which `guard` holds (None: always). `arguments` are the tensors of its
    parameters.
    """

    guard: Expr | None
    kernel: Kernel
    arguments: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """Run one kernel. `fresh` are the tensors whose memory is made just before, because their size is known
    only now.
    """

    variants: tuple[Variant, ...]
    fresh: tuple[Tensor, ...] = ()
    release: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Control:
    """Run the plans of a branch's or a loop's bodies. `fresh` and `release` are as of a call; results of
    which the stage finds out the size come with memory that a body has made.
    """

    stage: Branch | Loop
    plans: tuple[Plan, ...]
    fresh: tuple[Tensor, ...] = ()
    release: tuple[Tensor, ...] = ()


Step = Define | Check | Call | Control


@dataclass(frozen=True, eq=False, slots=True)
class PrepareStep:
    """Packs one group of weights: `raw` initialisers in, `packed` tensors out, by calls that keep what is
    between in temporaries.
    """

    raw: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    copies: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """`symbols` are the dims that inputs bind, in order; `weights` the packed block: tensors at offsets,
    `weights_bytes` long.

    A plan within another is given its symbols, shares the weights of the whole, and makes the memory of the
    outputs that `makes` numbers.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    output_names: tuple[str, ...]
    symbols: tuple[Dim, ...]
    steps: tuple[Step, ...]
    places: Mapping[Tensor, Place]
    arena: Expr
    weights_bytes: int
    prepare: tuple[PrepareStep, ...]
    makes: frozenset[int] = frozenset()

    def own_kernels(self) -> list[Kernel]:
        """Every kernel that the steps themselves call, in order, each once."""
        return list(dict.fromkeys(v.kernel for s in self.steps if isinstance(s, Call) for v in s.variants))

    def kernels(self) -> list[Kernel]:
        """Every kernel of the run, those of plans within it included, each once."""
        inner = [k for p in self.inner() for k in p.kernels()]
        return list(dict.fromkeys([*self.own_kernels(), *inner]))

    def inner(self) -> list[Plan]:
        """The plans within this one."""
        return [p for s in self.steps if isinstance(s, Control) for p in s.plans]

    def prepare_kernels(self) -> list[Kernel]:
        return list(dict.fromkeys(v.kernel for p in self.prepare for c in p.calls for v in c.variants))


def place_text(p: Place, slots: Mapping[Expr, str] | None = None) -> str:
    """Where a tensor lies: `arena+64`, `input0+0`; offsets that are no numbers are named by `slots`."""
    number = p.number if p.kind in ("input", "output", "temp") else ""
    return f"{p.kind}{number}+{(slots or {}).get(p.offset) or expr_text(p.offset)}"


def plan_text(plan: Plan, with_kernels: bool = False) -> str:
    """The text form of a plan."""
    names = Names()
    symbols = ", ".join(names.of(d) for d in plan.symbols)
    size = f"arena {expr_text(plan.arena, names)} bytes, weights {plan.weights_bytes} bytes"
    lines = [f"plan {plain(plan.name)}({symbols}): {size}"]
    for k, t in enumerate(plan.inputs):
        lines.append(f"  input{k} {tensor_text(t, names)}")
    for k, (name, t) in enumerate(zip(plan.output_names, plan.outputs, strict=True)):
        lines.append(f"  output{k} {plain(name)} = {tensor_text(t, names)}")
    offsets = dict.fromkeys(p.offset for p in plan.places.values() if not isinstance(p.offset, Const))
    slots = {e: f"slot{k}" for k, e in enumerate(offsets)}
    lines += [f"  {name} = {expr_text(e, names)}" for e, name in slots.items()]

    def placed(t: Tensor) -> str:
        return f"{names.of(t)}@{place_text(plan.places[t], slots)}" if t in plan.places else names.of(t)

    for p in plan.prepare:
        lines.append(f"  prepare {', '.join(names.of(t) for t in p.raw)}")
        lines += [f"    copy {placed(t)}" for t in p.copies]
        for c in p.calls:
            lines += _call_text(c, "    ", placed, names)
    for s in plan.steps:
        match s:
            case Define():
                lines.append(f"  {names.of(s.dim)} = {expr_text(s.value, names)}    # {comment(s.origin)}")
            case Check():
                why = comment(f"{s.origin}: {s.reason}")
                lines.append(f"  check {expr_text(s.condition, names)}    # {why}")
            case Call():
                lines += _call_text(s, "  ", placed, names)
            case Control():
                lines += _control_text(s, placed)
    if with_kernels:
        lines += [kernel_text(k) for k in plan.kernels()]
    return "\n".join(lines) + "\n"


def _call_text(c: Call, indent: str, placed: Callable[[Tensor], str], names: Names) -> list[str]:
    lines = [f"{indent}make {placed(t)}" for t in c.fresh]
    for v in c.variants:
        when = f"when {expr_text(v.guard, names)}: " if v.guard is not None else ""
        lines.append(f"{indent}{when}{v.kernel.name}({', '.join(map(placed, v.arguments))})")
    return [*lines, *(f"{indent}release {placed(t)}" for t in c.release)]


def _control_text(s: Control, placed: Callable[[Tensor], str]) -> list[str]:
    lines = [f"  make {placed(t)}" for t in s.fresh]
    word = "branch" if isinstance(s.stage, Branch) else "loop"
    lines.append(f"  {word} to {', '.join(placed(t) for t in s.stage.outs)}")
    for body, plan in zip(s.stage.bodies, s.plans, strict=True):
        lines.append(f"    given {', '.join(placed(t) for t in (*s.stage.given, *body.captured))}")
        lines += [f"    {line}" for line in plan_text(plan).splitlines()]
    return [*lines, *(f"  release {placed(t)}" for t in s.release)]


def written_buffers(kernel: Kernel) -> set[Buffer]:
    from fusile.ir.loops import written

    return {b for b in written(kernel.body) if b.scope == "param"}
