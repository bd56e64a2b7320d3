"""The plan: the host program over kernels. Which kernel runs when, on which memory, for which sizes.

    Define   dim = value        a size known only now, worked out from dims and elements of tensors; refused below 0
    Check    condition          a requirement on sizes; the run fails with the node's name where it does not hold
    Call     variants           the first kernel whose guard holds (the last has none), on its tensors

Memory is said per tensor by a Place: an input, an output, packed weights, the arena, or a temporary made when its size is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Union

from fusile.ir.expr import Dim, Expr, as_expr
from fusile.ir.loops import Buffer, Kernel, kernel_text
from fusile.ir.tensor import Tensor


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """Where a tensor lies. `kind`: input | output | weights | arena | temp; `number` which input, output or temp; `offset` in bytes."""

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
    """A kernel for the sizes under which `guard` holds (None: always). `arguments` are the tensors of its parameters."""

    guard: Expr | None
    kernel: Kernel
    arguments: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """Run one kernel. `fresh` are the tensors whose memory is made just before, because their size is known only now."""

    variants: tuple[Variant, ...]
    fresh: tuple[Tensor, ...] = ()
    release: tuple[Tensor, ...] = ()


Step = Union[Define, Check, Call]


@dataclass(frozen=True, eq=False, slots=True)
class PrepareStep:
    """Packs one group of weights: `raw` initialisers in, `packed` tensors out, by calls that keep what is between in temporaries."""

    raw: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    copies: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """`symbols` are the dims that inputs bind, in order; `weights` the packed block: tensors at offsets, `weights_bytes` long."""

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

    def kernels(self) -> list[Kernel]:
        """Every kernel of the run, in order, each once."""
        return list(dict.fromkeys(v.kernel for s in self.steps if isinstance(s, Call) for v in s.variants))

    def prepare_kernels(self) -> list[Kernel]:
        return list(dict.fromkeys(v.kernel for p in self.prepare for c in p.calls for v in c.variants))


def place_text(p: Place) -> str:
    return f"{p.kind}{p.number if p.kind in ('input', 'output', 'temp') else ''}+{p.offset!r}"


def plan_text(plan: Plan, with_kernels: bool = False) -> str:
    """The text form of a plan."""
    lines = [f"plan {plan.name}({', '.join(d.name for d in plan.symbols)}): arena {plan.arena!r} bytes, weights {plan.weights_bytes} bytes"]
    for p in plan.prepare:
        lines.append(f"  prepare {', '.join(t.name for t in p.raw)}")
        lines += [f"    copy {t.name} to {place_text(plan.places[t])}" for t in p.copies]
        lines += [_call_text(c, plan, "    ") for c in p.calls]
    for s in plan.steps:
        match s:
            case Define():
                lines.append(f"  {s.dim.name} = {s.value!r}    # {s.origin}")
            case Check():
                lines.append(f"  check {s.condition!r}    # {s.origin}: {s.reason}")
            case Call():
                lines.append(_call_text(s, plan, "  "))
    if with_kernels:
        lines += [kernel_text(k) for k in plan.kernels()]
    return "\n".join(lines) + "\n"


def _call_text(c: Call, plan: Plan, indent: str) -> str:
    out = []
    for v in c.variants:
        args = ", ".join(f"{t.name}@{place_text(plan.places[t])}" if t in plan.places else t.name for t in v.arguments)
        when = f"when {v.guard!r}: " if v.guard is not None else ""
        out.append(f"{indent}{when}{v.kernel.name}({args})")
    return "\n".join(out)


def written_buffers(kernel: Kernel) -> set[Buffer]:
    from fusile.ir.loops import written

    return {b for b in written(kernel.body) if b.scope == "param"}
