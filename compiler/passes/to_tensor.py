"""Graph to tensor program: every node becomes the stages that its operator's definition returns."""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from fusile.dims import parse as parse_arithmetic
from fusile.errors import Gap, InvalidModelError, UnsettledError, UnsupportedError
from fusile.graph.opsets import file_opset
from fusile.graph.types import is_numeric
from fusile.ir import control
from fusile.ir import index as ix
from fusile.ir.expr import Axis, Const, Dim, Expr, Guard, Load, Reduce, as_expr, const, dim, nodes, substitute
from fusile.ir.tensor import (
    Body,
    Compute,
    Program,
    Scan,
    Stage,
    Tensor,
    as_shape,
    collect,
    compute,
    stage_reads,
)
from fusile.ir.types import BOOL, BY_CODE
from fusile.kernels import families
from fusile.kernels.precision import call_wide
from fusile.kernels.registry import Context, Malformed, Unsettled, Unsupported

MOST_KNOWN = 256
"""Tensors up to this many elements are followed as expressions over dims (shape arithmetic)."""
MOST_CONSTANT = 1024
"""Integer constants up to this many elements belong to the structure of a model; larger ones are weights."""
MOST_ASSUMED = 16
"""Walks over a graph, at most, to find out which conditions on sizes it takes for granted."""

__all__ = ["defined", "infer", "known_flags", "lower", "parse_dim", "takes"]


def defined(domain: str, name: str) -> bool:
    """Whether an operator has a definition."""
    return families.definition(domain, name) is not None


def takes(node: ir.Node) -> bool:
    """Whether the tensor program defines a node, with the graphs inside it, on tensors of numbers."""
    graphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    return defined(node.domain, node.op_type) and all(takes(inner) for graph in graphs for inner in graph)


def parse_dim(d: object) -> Expr:
    """A dimension of the graph as an expression: an int, or a symbol such as `batch` or `past + 1`."""
    if isinstance(d, int):
        return const(d)
    text = str(getattr(d, "value", d))
    tree = parse_arithmetic(text)
    return dim(text) if tree is None else _dim_of(tree)


def _dim_of(tree: ast.expr) -> Expr:
    match tree:
        case ast.Name(id=name):
            return dim(name)
        case ast.Constant(value=int(value)):
            return const(value)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _dim_of(left), _dim_of(right)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
            return a // b
    raise TypeError(f"{type(tree).__name__} is no arithmetic")


class _Behind(Exception):
    """A graph within the graph needs something that is behind a gap."""


class _Lowering:
    """One walk over a graph, or over a graph within one; collects every gap before it refuses."""

    def __init__(
        self,
        model: ir.Model,
        graph: ir.Graph,
        parent: _Lowering | None = None,
        assumed: Mapping[tuple[str, Expr], bool] | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.graph = graph
        self.parent = parent
        self.tensors: dict[str, Tensor] = {}
        self.captured: dict[Tensor, Tensor] = {}
        self.gaps: list[Gap] = parent.gaps if parent is not None else []
        self.unsettled: list[str] = parent.unsettled if parent is not None else []
        self.ctx: Context = Context("", seed, assumed=dict(assumed or {}))
        if parent is not None:
            self.ctx = Context("", parent.ctx.seed, assumed=parent.ctx.assumed)

    def run(self) -> Program:
        inputs = [self._input(v) for v in self.graph.inputs]
        outputs = self.walk(self.graph)
        if self.gaps and len(self.unsettled) == len(self.gaps):
            raise UnsettledError(self.gaps, filter(None, self.unsettled))
        if self.gaps:
            raise UnsupportedError(self.gaps)
        return self.program(inputs, outputs)

    def walk(self, graph: ir.Graph) -> list[Tensor | None]:
        """The outputs of a graph whose inputs are known; None behind a gap."""
        for v in graph.initializers.values():
            self._constant(v)
        for node in graph:
            self._node(node)
        return [self._output(v) for v in graph.outputs]

    def program(self, inputs: Sequence[Tensor], results: Sequence[Tensor | None]) -> Program:
        outputs: list[Tensor] = []
        for v, t in zip(self.graph.outputs, results, strict=True):
            assert t is not None
            # An output has memory of its own: an input, a constant or another output in its place is copied,
            # and so is what a branch or a loop finds memory for.
            elsewhere = t.stage is None or t in outputs or control.made_late(t)
            outputs.append(_copy(t, str(v.name)) if elsewhere else t)
        stages = collect([*outputs, *self._needed()], self.ctx.dim_definitions)
        self._require_sizes(stages)
        made = Program(
            self.graph.name or "model",
            (*inputs, *self.captured.values()),
            tuple(outputs),
            tuple(str(v.name) for v in self.graph.outputs),
            stages,
            tuple(self.ctx.dim_definitions),
            tuple(self.ctx.requirements),
        )
        return made if self.parent is None else replace(made, parameters=control.parameters(made))

    def _require_sizes(self, stages: Iterable[Stage]) -> None:
        """Check when run that no tensor's size is below 0, where that cannot be proven: a window may be
        larger than what it slides over.
        """
        for s in stages:
            for n in dict.fromkeys(n for t in s.outs for n in t.shape):
                if ix.number(n) is None and not ix.never_negative(ix.poly(n)):
                    self.ctx.site = s.origin
                    self.ctx.require(as_expr(0) <= n, "a size would be negative")

    def find(self, name: str) -> Tensor | None:
        """A value by its name, of this graph or of one around it."""
        t = self.tensors.get(name)
        if t is None and self.parent is not None:
            above = self.parent.find(name)
            return None if above is None else self.outer(above)
        return t

    def outer(self, t: Tensor) -> Tensor:
        """A tensor of the graph around this one, as this one's program reads it."""
        if t.data is not None:
            return t
        if t not in self.captured:
            self.captured[t] = Tensor(t.name, t.dtype, t.shape, known=t.known)
        return self.captured[t]

    def _needed(self) -> list[Tensor]:
        """Tensors that sizes read when run."""
        return [n.source for d in self.ctx.dim_definitions for n in nodes(d.value) if isinstance(n, Load)]

    def _input(self, value: ir.Value) -> Tensor:
        if value.dtype is None or value.shape is None:
            raise UnsupportedError(
                [
                    Gap(
                        "Input",
                        "",
                        str(value.name),
                        None,
                        "an input without a tensor type and a rank",
                        "give the input a shape in the model",
                    )
                ]
            )
        t = Tensor(str(value.name), BY_CODE[int(value.dtype)], as_shape(parse_dim(d) for d in value.shape))
        self.tensors[t.name] = t
        return t

    def _constant(self, value: ir.Value) -> None:
        held = value.const_value
        if held is None:
            raise InvalidModelError(f"the initialiser {value.name!r} has no data")
        shape = tuple(int(n) for n in held.shape.numpy())
        t = Tensor(str(value.name), BY_CODE[int(held.dtype)], as_shape(shape), data=held.numpy)
        size = int(np.prod(shape)) if shape else 1
        if (t.dtype.kind in "iub" and t.dtype.bits >= 8 and size <= MOST_CONSTANT) or (
            t.dtype.kind == "f" and size <= 1
        ):
            t.known = tuple(
                const(v, t.dtype)
                for v in held.numpy().astype(np.float64 if t.dtype.kind == "f" else np.int64).ravel().tolist()
            )
        self.tensors[t.name] = t

    def _node(self, node: ir.Node) -> None:
        definition = families.definition(node.domain, node.op_type)
        where = (node.op_type, node.domain, str(node.name), file_opset(self.model, node.domain))
        inputs = [None if v is None else self.find(str(v.name)) for v in node.inputs]
        if definition is None:
            self.gaps.append(Gap(*where, *_undefined(node)))
            return
        if any(v is not None and t is None for v, t in zip(node.inputs, inputs, strict=True)):
            return  # downstream of a gap that is already listed
        self.ctx.site = str(node.name)
        try:
            results = call_wide(definition, self.ctx, inputs, self._attributes(node), len(node.outputs))
        except _Behind:
            return
        except Unsupported as e:
            self.gaps.append(Gap(*where, e.reason, e.way_out))
            if isinstance(e, Unsettled):
                self.unsettled.append(e.value)
            return
        except (Malformed, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as e:
            if isinstance(e, Malformed):
                raise InvalidModelError(f"node {node.name!r} ({node.op_type}): {e}") from None
            raise InvalidModelError(
                f"node {node.name!r} ({node.op_type}) does not fit its inputs "
                f"{', '.join(map(repr, inputs))}: {e}"
            ) from e
        self._bind(node, inputs, results)

    def _bind(self, node: ir.Node, inputs: list[Tensor | None], results: tuple[Tensor | None, ...]) -> None:
        stops = {t for t in inputs if t is not None}
        for value, t in zip(node.outputs, results, strict=False):
            if t is None:
                continue
            if t not in stops:
                _name_stages(t, stops, str(node.name), node.op_type, str(value.name))
            if t.known is None:
                t.known = known_elements(t)
            self.tensors[str(value.name)] = t

    def _output(self, value: ir.Value) -> Tensor | None:
        t = self.find(str(value.name))
        if t is None and not self.gaps:
            raise InvalidModelError(f"the output {value.name!r} is not produced by any node")
        return t

    def _attributes(self, node: ir.Node) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, a in node.attributes.items():
            if a.is_ref():
                continue
            match a.type:
                case ir.AttributeType.TENSOR:
                    out[name] = a.as_tensor().numpy()
                case ir.AttributeType.INTS | ir.AttributeType.FLOATS | ir.AttributeType.STRINGS:
                    out[name] = tuple(a.value)
                case ir.AttributeType.GRAPH:
                    out[name] = _Subgraph(self, a.as_graph(), node)
                case _:
                    out[name] = a.value
        return out


class _Subgraph:
    """A graph that is an attribute of a node, for the node's definition."""

    def __init__(self, around: _Lowering, graph: ir.Graph, node: ir.Node) -> None:
        self.around, self.graph, self.node = around, graph, node

    @property
    def inputs(self) -> int:
        return len(self.graph.inputs)

    def inline(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        site = self.around.ctx.site
        self._bind(self.around, inputs)
        found = self.around.walk(self.graph)
        self.around.ctx.site = site
        return self._whole(found)

    def trace(
        self, states: Sequence[Tensor], inputs: Callable[[Callable[[Tensor], Tensor]], Sequence[Tensor]]
    ) -> Body:
        inside = _Lowering(self.around.model, self.graph, self.around)
        given = inputs(inside.outer)
        stops = {*states, *inside.captured.values()}
        for t, value in zip(given, self.graph.inputs, strict=True):
            if t in states:
                t.name = str(value.name)
            else:
                _name_stages(t, stops, str(self.node.name), self.node.op_type, str(value.name))
        self._bind(inside, given)
        made = inside.program(states, self._whole(inside.walk(self.graph)))
        return Body(made, tuple(inside.captured))

    def _bind(self, lowering: _Lowering, inputs: Sequence[Tensor]) -> None:
        for value, t in zip(self.graph.inputs, inputs, strict=True):
            lowering.tensors[str(value.name)] = t

    def _whole(self, found: Sequence[Tensor | None]) -> list[Tensor]:
        whole = [t for t in found if t is not None]
        if len(whole) < len(found):
            raise _Behind
        return whole


def _undefined(node: ir.Node) -> tuple[str, str]:
    """Why a node is no part of a tensor program, and what to do."""
    from fusile.kernels.host.registry import HOST_OPERATORS

    if (node.domain, node.op_type) in HOST_OPERATORS:
        return (
            "it runs in the host part of a process, which has no form here",
            "Run the model with fusile.compile or fusile.InferenceSession",
        )
    return (
        "fusile has no definition of this operator",
        "Replace or decompose the node before export, or ask for the operator",
    )


def _copy(t: Tensor, name: str) -> Tensor:
    out = compute(t.shape, lambda *i: t[i], name=name)
    if out.stage is not None:
        object.__setattr__(out.stage, "op", "Identity")
    return out


def _name_stages(t: Tensor, stops: set[Tensor], origin: str, op: str, name: str) -> None:
    """Say on every new stage which node it came from; the last takes the value's name, others are named under
    it.
    """
    pending = [t]
    seen: set[Tensor] = set()
    used: Counter[str] = Counter()

    def renamed(x: Tensor) -> str:
        used[x.name] += 1
        return f"{name}.{x.name}" if used[x.name] == 1 else f"{name}.{x.name}_{used[x.name]}"

    while pending:
        x = pending.pop()
        if x in seen or x in stops or x.stage is None or x.stage.origin:
            continue
        seen.add(x)
        object.__setattr__(x.stage, "origin", origin)
        object.__setattr__(x.stage, "op", op)
        for out in x.stage.outs:
            out.name = name if out is t else renamed(out)
        if isinstance(x.stage, Scan):
            for state in x.stage.carried:
                state.now.name = renamed(state.now)
            for inner in x.stage.body:
                object.__setattr__(inner, "origin", origin)
                object.__setattr__(inner, "op", op)
                inner.out.name = renamed(inner.out)
        pending.extend(stage_reads(x.stage))


def known_elements(t: Tensor) -> tuple[Expr, ...] | None:
    """The elements of a small tensor as expressions over dims, where all that it is made of is known; else
    None.
    """
    if t.known is not None:
        return t.known
    stage = t.stage
    count = ix.number(t.size)
    if (
        not isinstance(stage, Compute)
        or count is None
        or count > MOST_KNOWN
        or t.dtype.kind not in "iubf"
        or t.dtype.bits < 8
    ):
        return None
    if any(known_elements(r) is None for r in stage_reads(stage)):
        return None
    extents = [ix.number(a.extent) or 0 for a in stage.axes]
    out = []
    for at in np.ndindex(*extents):
        mapping: dict[Expr, Expr] = {a: const(n) for a, n in zip(stage.axes, at, strict=True)}
        element = _element(stage.body, mapping)
        if element is None:
            return None
        out.append(element)
    t.known = tuple(out)
    return t.known


def _element(body: Expr, mapping: Mapping[Expr, Expr]) -> Expr | None:
    failed = False

    def read(x: Load) -> Expr:
        nonlocal failed
        known = known_elements(x.source)
        flat = 0
        for i, n in zip(x.index, x.source.shape, strict=True):
            at, extent = ix.number(i), ix.number(n)
            if at is None or extent is None:
                failed = True
                return x
            flat = flat * extent + min(max(at, 0), max(extent - 1, 0))
        if known is None or flat >= len(known):
            failed = True
            return x
        return known[flat]

    if isinstance(body, Reduce):
        from fusile.ir.expr import REDUCTIONS, apply
        from fusile.ir.interpret import identity

        total: Expr = const(identity(body.kind, body.dtype), body.dtype)
        sizes = [ix.number(substitute(a.extent, mapping)) for a in body.axes]
        if math.prod(MOST_KNOWN + 1 if n is None else n for n in sizes) > MOST_KNOWN:
            return None
        for at in np.ndindex(*[n or 0 for n in sizes]):
            inner = _element(
                body.body, {**mapping, **{a: const(k) for a, k in zip(body.axes, at, strict=True)}}
            )
            if inner is None:
                return None
            total = apply(REDUCTIONS[body.kind], total, inner)
        return total
    out = substitute(body, mapping, read)
    if failed or any(isinstance(n, (Load, Axis)) for n in nodes(out)):
        return None
    if any(isinstance(n, Guard) for n in nodes(out)):
        return None
    return out


def lower(model: ir.Model, seed: int = 0) -> Program:
    """The tensor program of a canonical graph; `seed` is where random operators without a seed of their own
    start.

    Where the ranks of what follows hang on a condition on sizes, the one under which the rest of the graph
    has a meaning becomes a requirement. Raises UnsupportedError with every gap at once, UnsettledError where
    all of them close once inputs are seen, InvalidModelError for a node that cannot be.
    """
    pending: list[dict[tuple[str, Expr], bool]] = [{}]
    made: list[Program] = []
    refusal: Exception | None = None
    sites: dict[str, None] = {}
    for _ in range(MOST_ASSUMED):
        if not pending:
            break
        given = pending.pop()
        walk = _Lowering(model, model.graph, assumed=given, seed=seed)
        try:
            made.append(walk.run())
        except (InvalidModelError, UnsupportedError) as e:
            refusal = refusal or e
        assumed = walk.ctx.assumed
        sites.update((site, None) for site, _ in assumed)
        new = [key for key in assumed if key not in given]
        for k, key in enumerate(new):
            pending.append({**given, **{x: assumed[x] for x in new[:k]}, key: not assumed[key]})
    if refusal is not None and not made and not pending:
        raise refusal
    for fitting in (made, [p for p in made if _ranks_as_declared(p, model)]):
        if len(fitting) == 1 and not pending:
            return fitting[0]
    raise UnsettledError([_ambiguous(model, site) for site in sites], ())


def _ranks_as_declared(program: Program, model: ir.Model) -> bool:
    """Whether every output has as many dimensions as the model says, where it says it."""
    return all(
        v.shape is None or len(v.shape) == t.rank
        for v, t in zip(model.graph.outputs, program.outputs, strict=True)
    )


def _ambiguous(model: ir.Model, site: str) -> Gap:
    node = next(n for n in model.graph.all_nodes() if n.name == site)
    return Gap(
        node.op_type,
        node.domain,
        site,
        file_opset(model, node.domain),
        "how many dimensions follow depends on a size, and the rest of the model takes several",
        "fix the sizes that it depends on by `--dims`",
    )


def infer(model: ir.Model) -> None:
    """Fill in shape and dtype of every value of the graph from the operators' definitions.

    Values behind a gap keep what they had.
    """
    graph = model.graph
    walk = _Lowering(model, graph)
    for v in graph.inputs:
        walk._input(v)
    for v in graph.initializers.values():
        walk._constant(v)
    for node in graph:
        walk._node(node)
        for value in node.outputs:
            t = walk.tensors.get(str(value.name))
            if t is not None:
                value.dtype = ir.DataType(t.dtype.code)
                value.shape = ir.Shape([_graph_dim(e) for e in t.shape])


def known_flags(model: ir.Model) -> dict[ir.Value, bool]:
    """The truth values of a graph that follow from its constants and from the sizes that it declares."""
    walk = _Lowering(model, model.graph)
    flags: dict[ir.Value, bool] = {}
    try:
        for v in model.graph.inputs:
            if v.dtype is not None and v.shape is not None and is_numeric(v.type):
                walk._input(v)
        for v in model.graph.initializers.values():
            if is_numeric(v.type) and v.const_value is not None and v.const_value.dtype != ir.DataType.STRING:
                walk._constant(v)
        for node in model.graph:
            walk._node(node)
            for value in node.outputs:
                t = walk.tensors.get(str(value.name))
                if t is not None and t.dtype is BOOL and t.known is not None and len(t.known) == 1:
                    flag = t.known[0]
                    if isinstance(flag, Const):
                        flags[value] = bool(flag.value)
    except InvalidModelError:
        pass  # what makes the graph invalid is told where it is compiled
    return flags


def _graph_dim(e: Expr) -> int | ir.SymbolicDim:
    if isinstance(e, Const):
        return int(e.value)
    return ir.SymbolicDim(e.name if isinstance(e, Dim) else repr(e))
