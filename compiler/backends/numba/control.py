"""Branches and loops of a plan as Python, around calls of the functions that their bodies have become."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusile.backends.numba import scalars
from fusile.escape import python_string
from fusile.ir.control import made_late
from fusile.ir.plan import Control
from fusile.ir.tensor import Branch, Loop, Tensor

if TYPE_CHECKING:
    from fusile.backends.numba.plan import PlanPrinter
    from fusile.ir.plan import Plan


def print_control(p: PlanPrinter, step: Control) -> None:
    """Print a step: its decision, and what becomes of the results."""
    for t in step.fresh:
        p.array(t)
    if isinstance(step.stage, Branch):
        _branch(p, step.stage, step.plans)
    else:
        _loop(p, step.stage, step.plans[0])
    p.release(step)


def _branch(p: PlanPrinter, s: Branch, plans: tuple[Plan, ...]) -> None:
    condition = p.words.item.format(array=p.array(s.condition))
    parts = [p.within(plan) for plan in plans]
    names = [p.names.name(object(), t.name) for t in s.results]
    calls = []
    for body, plan, part in zip(s.bodies, plans, parts, strict=True):
        given = [*(p.array(t) for t in body.captured), *(p.text(d) for d in plan.symbols)]
        calls.append((part, [*p.words.around, *given]))
    for word, (part, arguments) in zip((f"if {condition}:", "else:"), calls, strict=True):
        p.lines.add(word)
        p.lines.depth += 1
        p.add(f"{', '.join(names)}{',' if len(names) == 1 else ''} = {part}(", arguments, ")")
        p.lines.depth -= 1
    _results(p, s, list(s.results), names)


def _loop(p: PlanPrinter, s: Loop, plan: Plan) -> None:
    part = p.within(plan)
    count, going = p.names.name(object(), "count"), p.names.name(object(), "going")
    states = [p.names.name(object(), t.name) for t in s.body.own]
    rows = [p.names.name(object(), f"{t.name}_rows") for t in s.collected]
    slices = [p.names.name(object(), f"{t.name}_row") for t in s.collected]
    captured = [p.array(t) for t in s.body.captured]
    p.lines.add(f"{count} = 0")
    start = None if s.start is None else p.words.item.format(array=p.array(s.start))
    if start is not None or s.conditional:
        p.lines.add(f"{going} = {start or True}")
    for name, t in zip(states, s.initial, strict=True):
        p.lines.add(f"{name} = {p.array(t)}")
    for name in rows:
        p.lines.add(f"{name} = []")
    tests = [going] if start is not None or s.conditional else []
    tests += [] if s.trip is None else [f"{count} < {p.text(s.trip)}"]
    sizes = {d: f"{states[k]}.shape[{a}]" for d, k, a in s.moving} | {s.step: count}
    given = [sizes.get(d) or p.text(d) for d in plan.symbols]
    p.lines.add(f"while {' and '.join(tests)}:")
    p.lines.depth += 1
    p.lines.add(f"{count} += 1")
    answers = [*([going] if s.conditional else []), *states, *slices]
    targets = f"{', '.join(answers)}{',' if len(answers) == 1 else ''}"
    p.add(f"{targets} = {part}(", [*p.words.around, *states, *captured, *given], ")")
    if s.conditional:
        p.lines.add(f"{going} = {p.words.item.format(array=going)}")
    for held, one in zip(rows, slices, strict=True):
        p.lines.add(f"{held}.append({one})")
    p.lines.depth -= 1
    for k in {k for _, k, _ in s.moving}:
        p.lines.add(f"if {count} == 0:  # the state is still somebody else's")
        p.lines.add(f"    {states[k]} = {p.words.copy.format(array=states[k])}")
    for held, t in zip(rows, s.collected, strict=True):
        p.add(
            f"require(len({{row.shape for row in {held}}}) <= 1, ",
            [python_string(s.origin), python_string("what a loop collects changes its shape")],
            ")",
        )
        p.lines.add(f"{held} = {_stacked(p, s, t, held)}")
    _results(p, s, [*s.finals, *s.collected], [*states, *rows])


def _stacked(p: PlanPrinter, s: Loop, t: Tensor, rows: str) -> str:
    sizes = ["0", *("0" if e in s.defines else p.text(e) for e in t.shape[1:])]
    none = p.words.empty.format(shape=f"({', '.join(sizes)},)", dtype=scalars.numpy_name(t.dtype))
    return f"{p.words.stack.format(rows=rows)} if {rows} else {none}"


def _results(p: PlanPrinter, s: Branch | Loop, results: list[Tensor], names: list[str]) -> None:
    """Bind what was found out, fill what has a place, write sizes down."""
    for t, name in zip(results, names, strict=True):
        if made_late(t):
            p.arrays[t] = name
        else:
            p.lines.add(p.words.assign.format(to=p.array(t), array=name))
    if s.sizes is not None:
        held = p.array(s.sizes)
        for t, name in zip(results, names, strict=True):
            for d, e in enumerate(t.shape):
                if e in s.defines:
                    p.lines.add(f"{held}[{s.defines.index(e)}] = {name}.shape[{d}]")
