"""The text form of tensor programs: what `--dump-ir` writes and goldens compare. Deterministic for equal
programs.
"""

from __future__ import annotations

from collections.abc import Iterable

from fusile.ir.expr import Axis, Dim
from fusile.ir.loops import body_text
from fusile.ir.names import Names, comment, expr_parts, expr_text, plain
from fusile.ir.tensor import Body, Branch, Compute, Extern, Loop, Program, Scan, Scatter, Stage, Tensor

__all__ = ["expr_text", "program_text", "stage_text", "tensor_text"]


def tensor_text(t: Tensor, names: Names | None = None) -> str:
    """A tensor's name, type and shape."""
    name = plain(t.name) if names is None else names.of(t)
    return f"{name}: {t.dtype}[{', '.join(expr_text(e, names) for e in t.shape)}]"


def _axes(axes: Iterable[Axis], names: Names) -> str:
    return ", ".join(f"{names.of(a)}: {expr_text(a.extent, names)}" for a in axes)


def _note(origin: str, op: str) -> str:
    words = comment(f"{op} {origin}".strip())
    return f"    # {words}" if words else ""


def stage_text(s: Stage, indent: str = "  ", names: Names | None = None) -> str:
    """A stage on one line, or on some; axes have names of their own within it."""
    outer = names if names is not None else Names()
    for t in s.outs:
        outer.of(t)
    inner = outer.inside()
    match s:
        case Compute():
            return _compute_text(s, indent, inner)
        case Scatter():
            return _scatter_text(s, indent, inner)
        case Scan():
            return _scan_text(s, indent, inner)
        case Branch():
            return _branch_text(s, indent, outer)
        case Loop():
            return _loop_text(s, indent, outer)
        case Extern():
            return _extern_text(s, indent, inner)


def _compute_text(s: Compute, indent: str, names: Names) -> str:
    head = f"{indent}{names.of(s.out)}[{_axes(s.axes, names)}] : {s.out.dtype}"
    text, shared = expr_parts(s.body, names)
    lines = [f"{head} = {text}{_note(s.origin, s.op)}"]
    return "\n".join([*lines, *(f"{indent}    where {x}" for x in shared)])


def _scatter_text(s: Scatter, indent: str, names: Names) -> str:
    out = names.of(s.out)
    first = f"{indent}{out}[{_axes(s.axes, names)}] : {s.out.dtype} = {expr_text(s.initial, names)}"
    updates = _axes(s.updates, names)
    index = ", ".join(expr_text(i, names) for i in s.index)
    condition, value = expr_text(s.condition, names), expr_text(s.value, names)
    update = f"for ({updates}) if {condition}: {out}[{index}] {s.kind}= {value}"
    return f"{first}{_note(s.origin, s.op)}\n{indent}{update}"


def _scan_text(s: Scan, indent: str, names: Names) -> str:
    time = names.of(s.time)
    lines = [f"{indent}scan {time}: {expr_text(s.time.extent, names)}{_note(s.origin, s.op)}"]
    for c in s.carried:
        names.of(c.now)
    for b in s.body:
        names.of(b.out)
    for c in s.carried:
        lines.append(
            f"{indent}  state {tensor_text(c.now, names)} from {names.of(c.initial)} then {names.of(c.then)}"
        )
    lines += [stage_text(b, indent + "  ", names) for b in s.body]
    lines += [f"{indent}  {names.of(outer)}[{time}, …] = {names.of(inner)}" for outer, inner in s.collected]
    lines += [f"{indent}  {names.of(outer)} = last {names.of(c.now)}" for outer, c in s.finals]
    return "\n".join(lines)


def _branch_text(s: Branch, indent: str, names: Names) -> str:
    made = ", ".join(tensor_text(t, names) for t in s.outs)
    lines = [f"{indent}{made} ={_note(s.origin, s.op)}", f"{indent}if {names.of(s.condition)}:"]
    lines += _body_text(s.then, indent, names)
    return "\n".join([*lines, f"{indent}else:", *_body_text(s.other, indent, names)])


def _loop_text(s: Loop, indent: str, names: Names) -> str:
    made = ", ".join(tensor_text(t, names) for t in s.outs)
    bound = "" if s.trip is None else f" up to {expr_text(s.trip, names)}"
    start = "" if s.start is None else f" if {names.of(s.start)}"
    states = ", ".join(names.of(t) for t in s.initial)
    head = f"{indent}loop {names.of(s.step)}{bound}{start} from ({states}):"
    return "\n".join([f"{indent}{made} ={_note(s.origin, s.op)}", head, *_body_text(s.body, indent, names)])


def _body_text(body: Body, indent: str, names: Names) -> list[str]:
    """A program within a stage; what it reads from outside keeps its name there."""
    inner = names.inside()
    lines = [f"{indent}  state {tensor_text(t, inner)}" for t in body.own]
    for t, outside in zip(body.program.inputs[len(body.own) :], body.captured, strict=True):
        lines.append(f"{indent}  {inner.of(t)} = {names.of(outside)}")
    return [*lines, *(f"{indent}{line}" for line in _lines(body.program, inner))]


def _extern_text(s: Extern, indent: str, names: Names) -> str:
    lines = [f"{indent}extern {', '.join(tensor_text(t, names) for t in s.outs)}{_note(s.origin, s.op)}"]
    for t, b in zip((*s.outs, *s.reads), s.arrays, strict=True):
        lines.append(f"{indent}  {names.of(b)} is {names.of(t)}")
    return "\n".join([*lines, *body_text(s.body, indent + "  ", names)])


def program_text(p: Program) -> str:
    """A whole tensor program."""
    names = Names()
    for symbol in (e for t in p.inputs for e in t.shape if isinstance(e, Dim)):
        names.of(symbol)
    for d in p.dim_definitions:
        names.of(d.dim)
    head = [f"program {plain(p.name)}:", *(f"  input {tensor_text(t, names)}" for t in p.inputs)]
    return "\n".join([*head, *_lines(p, names)]) + "\n"


def _lines(p: Program, names: Names) -> list[str]:
    """Sizes, requirements, stages and outputs of a program."""
    lines = []
    for d in p.dim_definitions:
        lines.append(f"  dim {names.of(d.dim)} = {expr_text(d.value, names)}    # {comment(d.origin)}")
    for r in p.requirements:
        lines.append(f"  require {expr_text(r.condition, names)}    # {comment(f'{r.origin}: {r.reason}')}")
    lines += [stage_text(s, names=names) for s in p.stages]
    lines += [f"  output {plain(n)} = {names.of(t)}" for n, t in zip(p.output_names, p.outputs, strict=True)]
    return lines
