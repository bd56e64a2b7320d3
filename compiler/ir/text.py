"""The text form of every level: what `--dump-ir` writes and goldens compare. Deterministic for equal programs."""

from __future__ import annotations

from fusile.ir.expr import Apply, Axis, Const, Dim, Expr, Guard, Load, Reduce
from fusile.ir.tensor import Compute, Program, Scan, Scatter, Stage, Tensor
from fusile.ir.types import BOOL, I64

_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "lt": "<", "le": "<=", "eq": "==", "ne": "!=",
    "and": "&", "or": "|", "xor": "^", "shl": "<<", "shr": ">>",
}  # fmt: skip


def expr_text(e: Expr) -> str:
    """An expression in infix form; types are shown where a literal or a cast would leave them open."""
    match e:
        case Const():
            if e.dtype is I64 or e.dtype is BOOL:
                return str(e.value)
            return f"{e.value!r}" if e.dtype.name == "f32" else f"{e.dtype}({e.value!r})"
        case Axis() | Dim():
            return e.name
        case Load():
            return f"{e.source.name}[{', '.join(map(expr_text, e.index))}]"
        case Guard():
            return f"guard({expr_text(e.index)}, {expr_text(e.extent)})"
        case Reduce():
            axes = ", ".join(f"{a.name}: {expr_text(a.extent)}" for a in e.axes)
            return f"{e.kind}({axes}) {expr_text(e.body)}"
        case Apply():
            args = [expr_text(a) for a in e.args]
            if e.op in _INFIX:
                return f"({args[0]} {_INFIX[e.op]} {args[1]})"
            if e.op in ("cast", "bitcast"):
                return f"{e.dtype}({args[0]})" if e.op == "cast" else f"bits_{e.dtype}({args[0]})"
            return f"{e.op}({', '.join(args)})"
    raise TypeError(f"no text form for {type(e).__name__}")


def tensor_text(t: Tensor) -> str:
    return f"{t.name}: {t.dtype}[{', '.join(map(expr_text, t.shape))}]"


def stage_text(s: Stage, indent: str = "  ") -> str:
    note = f"    # {s.op} {s.origin}".rstrip() if s.op else ""
    match s:
        case Compute():
            axes = ", ".join(f"{a.name}: {expr_text(a.extent)}" for a in s.axes)
            return f"{indent}{s.out.name}[{axes}] : {s.out.dtype} = {expr_text(s.body)}{note}"
        case Scatter():
            axes = ", ".join(f"{a.name}: {expr_text(a.extent)}" for a in s.axes)
            ups = ", ".join(f"{a.name}: {expr_text(a.extent)}" for a in s.updates)
            idx = ", ".join(map(expr_text, s.index))
            return (
                f"{indent}{s.out.name}[{axes}] : {s.out.dtype} = {expr_text(s.initial)}{note}\n"
                f"{indent}for ({ups}) if {expr_text(s.condition)}: {s.out.name}[{idx}] {s.kind}= {expr_text(s.value)}"
            )
        case Scan():
            lines = [f"{indent}scan {s.time.name}: {expr_text(s.time.extent)}{note}"]
            lines += [
                f"{indent}  state {tensor_text(c.now)} from {c.initial.name} then {c.then.name}"
                for c in s.carried
            ]
            lines += [stage_text(b, indent + "  ") for b in s.body]
            lines += [
                f"{indent}  {outer.name}[{s.time.name}, …] = {inner.name}" for outer, inner in s.collected
            ]
            lines += [f"{indent}  {outer.name} = last {c.now.name}" for outer, c in s.finals]
            return "\n".join(lines)


def program_text(p: Program) -> str:
    """A whole tensor program."""
    lines = [f"program {p.name}:"]
    lines += [f"  input {tensor_text(t)}" for t in p.inputs]
    lines += [f"  dim {d.dim.name} = {expr_text(d.value)}    # {d.origin}" for d in p.dim_definitions]
    lines += [f"  require {expr_text(r.condition)}    # {r.origin}: {r.reason}" for r in p.requirements]
    lines += [stage_text(s) for s in p.stages]
    lines += [f"  output {name} = {t.name}" for name, t in zip(p.output_names, p.outputs, strict=True)]
    return "\n".join(lines) + "\n"
