"""What check and explain tell: counts and sizes read off the graph, the tensor program and the plan."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from fusile.errors import Gap, show_word
from fusile.graph.opsets import file_opset
from fusile.ir import index as ix
from fusile.ir.expr import Dim, Expr, const, nodes, substitute
from fusile.ir.loops import Kernel, written
from fusile.ir.plan import Call, Control, Plan
from fusile.ir.tensor import Branch, Compute, Extern, Loop, Program, Scan, Scatter, Stage, Tensor
from fusile.ir.types import BY_CODE, storage_bytes
from fusile.loading import Loaded
from fusile.options import Options
from fusile.passes import access
from fusile.report import CheckReport, ExplainReport, GroupNote, KernelNote, OperatorUse, Refusal
from fusile.runtime.module import Port

if TYPE_CHECKING:
    from fusile.host.module import HostModule
    from fusile.passes.fuse import Group
    from fusile.passes.inline import Log

# ---- check -------------------------------------------------------------------------------------------


def unread(name: str, options: Options, gaps: Sequence[Gap]) -> CheckReport:
    """The report on a model that ends at the frontend."""
    counts = Counter((gap.op_type, gap.domain) for gap in gaps)
    uses = tuple(OperatorUse(op_type, domain, count, False) for (op_type, domain), count in counts.items())
    return CheckReport(name, options.target, (), (), uses, tuple(gaps))


def framework_operators(backend: str) -> Mapping[str, object]:
    """The rows of a framework backend, by operator."""
    rows: Mapping[str, object] = importlib.import_module(backend).FRAMEWORK.rows
    return rows


def framework_keeps(rows: Mapping[str, object]) -> Callable[[str, str], bool]:
    """Whether a framework's source has an operator as it is, not expanded into ONNX's definition."""
    from fusile.backends.framework.forms import kept

    return kept(rows)


def without_row(loaded: Loaded, rows: Mapping[str, object], target: str) -> tuple[Gap, ...]:
    """The nodes for whose operators a framework has neither a row nor a tensor program. What these say of
    attributes and types shows when source is written.
    """
    from fusile.backends.framework.common import no_form
    from fusile.backends.framework.forms import has_form

    return tuple(
        Gap(
            node.op_type,
            node.domain,
            str(node.name or ""),
            file_opset(loaded.model, node.domain),
            *no_form(node, target),
        )
        for node in loaded.model.graph.all_nodes()
        if not has_form(rows, node.domain, node.op_type)
    )


def check(
    name: str,
    options: Options,
    loaded: Loaded,
    program: Program | None,
    gaps: Sequence[Gap],
    hosted: HostModule | None = None,
) -> CheckReport:
    """The report on a canonical graph; `program` is what became of it where nothing stood in the way, and
    `hosted` where it needs the host part.
    """
    graph = loaded.model.graph
    refused = {(gap.op_type, gap.domain) for gap in gaps}
    counts = Counter((node.op_type, node.domain) for node in graph.all_nodes())
    held = [value.const_value for value in graph.initializers.values() if value.const_value is not None]
    parameters = [t for t in held if t.dtype.is_floating_point()]
    notes = []
    if len(loaded.model.graph) and loaded.watch.read:
        notes.append(f"{len(loaded.watch.read)} weights shape the code: it is compiled for them alone")
    notes += [] if hosted is None else _host_notes(hosted)
    return CheckReport(
        name,
        options.target,
        hosted.inputs
        if hosted
        else tuple(
            _port(value, loaded, program.inputs[k] if program else None)
            for k, value in enumerate(graph.inputs)
        ),
        hosted.outputs
        if hosted
        else tuple(
            _port(value, loaded, program.outputs[k] if program else None)
            for k, value in enumerate(graph.outputs)
        ),
        tuple(OperatorUse(op, domain, n, (op, domain) not in refused) for (op, domain), n in counts.items()),
        tuple(gaps),
        sum(_elements(t) for t in parameters),
        sum(t.nbytes for t in held if t.dtype is not ir.DataType.STRING),
        None if program is None else flops(program.stages),
        None
        if program is None
        else _total(_bytes(t) for s in program.stages if not _moves(s) for t in s.outs),
        tuple(notes),
    )


def _host_notes(hosted: HostModule) -> list[str]:
    """Sentences on what the host part does in a model that needs it."""
    counts = Counter(gap.op_type for gap in hosted.host_nodes)
    notes = []
    if counts:
        told = ", ".join(f"{show_word(op)} ({n})" for op, n in counts.most_common(8))
        notes.append(f"it needs the host part of a process, and has no form in a file: {told}")
    notes += [f"compiled when its inputs are seen: {gap}" for gap in hosted.open]
    return notes or [f"it has no form in a file: {gap}" for gap in hosted.gaps]


def _elements(tensor: ir.TensorProtocol) -> int:
    return math.prod(int(n) for n in tensor.shape.numpy())


def _port(value: ir.Value, loaded: Loaded, tensor: Tensor | None) -> Port:
    """A port as the compiled module would show it, or as the file declares it."""
    declared: list[int | str | None] | None = None
    if value.shape is not None:
        declared = [
            d if isinstance(d, int) else None if d.value in loaded.unnamed else d.value for d in value.shape
        ]
    if tensor is not None:
        sizes = [ix.number(extent) for extent in tensor.shape]
        if declared is None or len(declared) != len(sizes):
            declared = [None] * len(sizes)
        dims = [size if size is not None else dim for size, dim in zip(sizes, declared, strict=True)]
        return Port.tensor(str(value.name), tensor.dtype.code, dims)
    kind = value.dtype
    if kind is None or not isinstance(value.type, ir.TensorType) or int(kind) not in BY_CODE:
        return Port(str(value.name), str(value.type).lower(), None, None)
    return Port.tensor(str(value.name), int(kind), declared)


# ---- work and sizes ----------------------------------------------------------------------------------


def flops(stages: Iterable[Stage]) -> int | None:
    """Operations on floats of one run, about; None where sizes are open."""
    return _total(_flops(stage) for stage in stages)


def _flops(stage: Stage) -> int | None:
    match stage:
        case Compute():
            if not stage.out.dtype.is_float:
                return 0
            reduction = stage.reduction
            body = stage.body if reduction is None else reduction.body
            points = [axis.extent for axis in stage.axes]
            points += [] if reduction is None else [axis.extent for axis in reduction.axes]
            each = access.cost(body) + (reduction is not None)
            count = ix.number(ix.product(points)) if each else 0
            return None if count is None else each * count
        case Scan():
            steps, inner = ix.number(stage.time.extent), flops(stage.body)
            return None if steps is None or inner is None else steps * inner
        case Scatter():
            return 0
        case Extern():
            return None  # its loops end when the data says so
        case Branch():
            bodies = [flops(b.program.stages) for b in stage.bodies]
            return None if None in bodies else max(n or 0 for n in bodies)
        case Loop():
            bound = None if stage.trip is None else ix.number(stage.trip)
            inner = flops(stage.body.program.stages)
            return None if bound is None or inner is None else bound * inner


def _total(amounts: Iterable[int | None]) -> int | None:
    every = list(amounts)
    known = [amount for amount in every if amount is not None]
    return sum(known) if len(known) == len(every) else None


def _bytes(tensor: Tensor) -> int | None:
    size = ix.number(tensor.size)
    return None if size is None else size * storage_bytes(tensor.dtype)


def _bytes_at_one(tensor: Tensor) -> int:
    """The bytes of a tensor where every symbolic size is 1."""
    ones: dict[Expr, Expr] = {n: const(1) for n in nodes(tensor.size) if isinstance(n, Dim)}
    return max(0, ix.number(substitute(tensor.size, ones)) or 0) * storage_bytes(tensor.dtype)


def _moves(stage: Stage) -> bool:
    return isinstance(stage, Compute) and access.is_view(stage)


# ---- explain -----------------------------------------------------------------------------------------


def explain(
    name: str, options: Options, program: Program | None, groups: Sequence[Group], plan: Plan, log: Log
) -> ExplainReport:
    """The report on a plan and how it came about; `program` is the tensor program before any pass."""
    assert program is not None
    stages = {t: s for s in _every(program) for t in s.outs}
    made = [*stages.values(), *(s for group in groups for s in group.stages)]  # passes make new ones
    by_name = {t.name: s for s in made for t in s.outs}
    owner = {t: group for group in groups for t in group.outs}
    calls = list(_calls(plan))
    lying = {t.name for call in calls for v in call.variants for t in v.arguments}
    kernels: list[KernelNote] = []
    notes: list[GroupNote] = []
    for call in calls:
        last = call.variants[-1]
        group = next(
            (owner[t] for t in last.arguments if t in owner and _makes(last.kernel, last.arguments, t)), None
        )
        note = _kernel(last.kernel, last.arguments, group)
        kernels.append(note)
        if group is not None and len(note.nodes) > 1:
            notes.append(_group(note, stages, lying))
    arena = ix.number(plan.arena)
    return ExplainReport(
        name,
        options.target,
        options.opt_level,
        tuple(kernels),
        tuple(notes),
        tuple(_refusal(text, by_name) for text in dict.fromkeys(log.refused)),
        arena,
        plan.weights_bytes,
        tuple(dict.fromkeys(log.made)),
    )


def _every(program: Program) -> Iterator[Stage]:
    """The stages of a program, and of the programs within them."""
    for stage in program.stages:
        yield stage
        if isinstance(stage, (Branch, Loop)):
            for body in stage.bodies:
                yield from _every(body.program)


def _calls(plan: Plan) -> Iterator[Call]:
    """The kernel calls of a plan, and of the plans within it."""
    for step in plan.steps:
        if isinstance(step, Call):
            yield step
        elif isinstance(step, Control):
            for inner in step.plans:
                yield from _calls(inner)


def _makes(kernel: Kernel, arguments: Sequence[Tensor], tensor: Tensor) -> bool:
    made = written(kernel.body)
    return any(t is tensor and buffer in made for buffer, t in zip(kernel.params, arguments))


def _kernel(kernel: Kernel, arguments: Sequence[Tensor], group: Group | None) -> KernelNote:
    made = written(kernel.body)
    pairs = list(zip(kernel.params, arguments))
    stages = group.stages if group is not None else ()
    operators = tuple(dict.fromkeys(stage.op for stage in stages if stage.op))
    return KernelNote(
        kernel.name,
        tuple(kernel.origins),
        operators,
        tuple(kernel.schedule),
        flops(stages),
        _total(_bytes(t) for buffer, t in pairs if buffer not in made),
        _total(_bytes(t) for buffer, t in pairs if buffer in made),
    )


def _group(note: KernelNote, stages: dict[Tensor, Stage], lying: set[str]) -> GroupNote:
    """What a kernel of several nodes keeps from memory: results of its nodes that lie nowhere.

    `lying` are the names of the tensors that kernels read and write. Passes replace a tensor by one of
    another layout, but keep its name.
    """
    nodes = set(note.nodes)
    inside = [
        t
        for t, s in stages.items()
        if s.origin in nodes and "." not in t.name and t.name not in lying and not _moves(s)
    ]
    saved = _total(None if size is None else 2 * size for size in map(_bytes, inside))
    least = sum(2 * _bytes_at_one(t) for t in inside)
    kept = ", ".join(t.name for t in inside[:4]) + (f" and {len(inside) - 4} more" if len(inside) > 4 else "")
    why = (
        f"{kept} {'is' if len(inside) == 1 else 'are'} never stored"
        if inside
        else "the nodes share their loops"
    )
    return GroupNote(note.name, note.nodes, saved, why, least)


_DECISIONS = ((" is not computed with ", "fusion"), (" is stored: ", "inlining"))


def _refusal(text: str, stages: dict[str, Stage]) -> Refusal:
    """A sentence of the log, with the decision and the node that it is about as far as they can be told."""
    what, subject = "change", text.split(" ", 1)[0]
    for words, decision in _DECISIONS:
        if words in text:
            what, subject = decision, text.split(words, 1)[0]
            break
    stage = stages.get(subject)
    return Refusal(what, (stage.origin,) if stage is not None and stage.origin else (), text)
