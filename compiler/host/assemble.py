"""From a canonical graph to a module of the host: partition, regions compiled ahead of runs where their
inputs are known, programs of steps.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import serde

from fusile import artefacts, driver
from fusile.errors import Gap, InvalidModelError, UnsettledError, UnsupportedError
from fusile.frontend.types import declare_missing
from fusile.graph.cleanup import take_branches
from fusile.graph.opsets import file_opset
from fusile.graph.types import is_numeric
from fusile.host import values
from fusile.host.module import HostModule, without_form
from fusile.host.partition import (
    HostPart,
    RegionPart,
    captured,
    forward_identities,
    inner_graphs,
    partition,
)
from fusile.host.program import Constant, HostProgram, NodeStep, Operand, RegionStep, Step
from fusile.host.region import Compile, Known, Region, Source, Template
from fusile.ir import index as ix
from fusile.ir.tensor import Program
from fusile.kernels.host.registry import HOST_OPERATORS, HostContext
from fusile.loading import Loaded, read
from fusile.options import Options
from fusile.passes.to_tensor import known_flags, lower
from fusile.report import Progress
from fusile.runtime.module import ModelInfo, Module, Port, Signature, Value, element_of
from fusile.target import TargetSpec


def build(loaded: Loaded, options: Options, target: TargetSpec, progress: Progress) -> Module:
    """A module of a graph that needs the host part.

    Raises UnsupportedError with every gap at once, and what compiling a region raises.
    """
    inner = options.with_(dims={}, weights=None, dump_ir=None)
    counter = itertools.count()

    def compile(source: Source) -> Module:
        number = next(counter)
        folder = None if options.dump_ir is None else Path(options.dump_ir) / f"region{number}"
        own = inner.with_(dump_ir=folder) if folder else inner
        found = artefacts.find(source, own)
        return found if found is not None else driver.build(source, own, progress, region=True)

    loaded.watch.end(loaded.model)
    if not artefacts.runs_here(target):
        raise without_form(examine(loaded, options), "a file")
    return assemble(loaded, compile)


def examine(loaded: Loaded, options: Options) -> HostModule:
    """A module to be looked at: its regions are tensor programs, and cannot run. Raises as `build`."""

    def look(source: Source) -> Module:
        return _Looked(lower(read(source, options.with_(dims={}, weights=None)).model))

    loaded.watch.end(loaded.model)
    return assemble(loaded, look, copied=False)


class _Looked(Module):
    """The face of a region that is not compiled."""

    def __init__(self, program: Program) -> None:
        self.outputs = tuple(
            Port.tensor(name, t.dtype.code, [ix.number(n) for n in t.shape])
            for name, t in zip(program.output_names, program.outputs)
        )
        self.signature = Signature(())
        self.info = ModelInfo()

    def run(self, feeds: Sequence[Value]) -> list[Value]:
        raise AssertionError("what is only looked at cannot run")

    def save(
        self, path: str | os.PathLike[str], *, embed: bool = True, linker: str | None = None
    ) -> tuple[Path, ...]:
        raise AssertionError("what is only looked at cannot be saved")


def assemble(loaded: Loaded, compile: Compile, copied: bool = True) -> HostModule:
    """The module; `compile` makes its regions, out of models that hold the weights if they are `copied`."""
    while any(True for node in loaded.model.graph for _ in inner_graphs(node)):
        if not take_branches(loaded.model, known_flags(loaded.model)):
            break  # else what was inside of a branch may be known as well
    declare_missing(loaded.model)
    same = forward_identities(loaded.model)
    seen: frozenset[str] = frozenset()
    while True:
        made = _Assembly(loaded, compile, same, seen, copied)
        try:
            program, inputs, outputs = made.run()
        except _Cut as cut:
            seen |= cut.values
            continue
        return HostModule(program, inputs, outputs, loaded.info, made.host_nodes, made.open, made.regions)


class _Cut(Exception):
    """A region needs elements that it works out itself: it has to be two, one after the other."""

    def __init__(self, values: frozenset[str]) -> None:
        super().__init__()
        self.values = values


@dataclass(slots=True)
class _Assembly:
    loaded: Loaded
    compile: Compile
    same: Mapping[ir.Value, ir.Value]
    seen: frozenset[str]
    copied: bool
    known: dict[ir.Value, Known] = field(default_factory=dict)
    constants: dict[ir.Value, Constant] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    open: list[Gap] = field(default_factory=list)
    host_nodes: list[Gap] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)

    @property
    def model(self) -> ir.Model:
        return self.loaded.model

    def run(self) -> tuple[HostProgram, list[tuple[Port, ir.TypeProtocol]], list[Port]]:
        graph = self.model.graph
        for value in graph.inputs:
            self._declare(value, sure=True)
        program = self._program(graph)
        if self.gaps:
            raise UnsupportedError(self.gaps)
        inputs = []
        for value in graph.inputs:
            assert value.type is not None
            inputs.append((values.port_of(str(value.name), value.type, self._dims(value)), value.type))
        return program, inputs, [self._output(value) for value in graph.outputs]

    # ---- programs ------------------------------------------------------------------------------------

    def _program(self, graph: ir.Graph) -> HostProgram:
        results = [self._source(value) for value in graph.outputs]
        parts = partition(graph, results, self.same, self.seen)
        last = _last_uses(parts)
        kept = {str(value.name) for value in results}
        mine = [*graph.inputs, *(value for node in graph for value in node.outputs)]
        unread = {str(value.name) for value in mine} - kept - last.keys()
        steps: list[Step] = []
        for place, part in enumerate(parts):
            made = part.outputs if isinstance(part, RegionPart) else part.node.outputs
            gone = {name for name, at in last.items() if at == place and name not in kept}
            gone |= unread & {str(value.name) for value in made}
            step = (
                self._region(part, tuple(gone))
                if isinstance(part, RegionPart)
                else self._node(part, tuple(gone))
            )
            if step is not None:
                steps.append(step)
        outer = [self._source(value) for value in captured(graph)]
        return HostProgram(
            tuple(str(value.name) for value in graph.inputs),
            tuple(dict.fromkeys(str(value.name) for value in outer if not value.is_initializer())),
            tuple(steps),
            tuple(self._operand(value) for value in results),
            tuple(self._kind(value, source) for value, source in zip(graph.outputs, results)),
        )

    def _node(self, part: HostPart, release: tuple[str, ...]) -> Step | None:
        node = part.node
        definition = HOST_OPERATORS.get((node.domain, node.op_type))
        where = (node.op_type, node.domain, str(node.name), file_opset(self.model, node.domain))
        if definition is None:
            self.gaps.append(
                Gap(
                    *where,
                    _reason(node),
                    "Replace or decompose the node before export, or ask for the operator",
                )
            )
            return None
        self.host_nodes.append(Gap(*where, _in_host(node)))
        for value in node.outputs:
            self._declare(value, sure=False)
        bodies = {}
        for name, graph in inner_graphs(node):
            for value in graph.inputs:
                self._declare(value, sure=False)
            bodies[name] = self._program(graph)
        return NodeStep(
            HostContext(str(node.name), _elements(node.inputs), _elements(node.outputs)),
            node.op_type,
            definition,
            tuple(None if value is None else self._operand(self._source(value)) for value in node.inputs),
            tuple(str(value.name) for value in node.outputs),
            _attributes(node),
            bodies,
            release,
        )

    def _region(self, part: RegionPart, release: tuple[str, ...]) -> Step:
        template = Template(
            f"{self.model.graph.name or 'model'}_{len(self.regions)}",
            tuple(serde.serialize_node(node) for node in part.nodes),
            tuple(str(value.name) for value in part.inputs),
            tuple(str(value.name) for value in part.outputs),
            part.constants,
            tuple(self.model.graph.opset_imports.items()),
            self.model.ir_version,
            self.copied,
        )
        region = Region(template, self.compile)
        self.regions.append(region)
        known = [self.known[value] for value in part.inputs if value in self.known]
        for value in part.outputs:
            self._declare(value, sure=False)
        if len(known) == len(part.inputs):
            self._prepare(region, part, known)
        return RegionStep(
            region, tuple(self._operand(value) for value in part.inputs), template.outputs, release
        )

    def _prepare(self, region: Region, part: RegionPart, known: Sequence[Known]) -> None:
        """Compile a region ahead of runs, and learn what it answers."""
        sure = all(k.sure for k in known)
        try:
            module = region.prepare(known)
        except UnsettledError as error:
            made = {str(value.name) for node in part.nodes for value in node.outputs}
            if error.values & made - self.seen:
                raise _Cut(error.values & made) from None
            (self.open if region.could_settle(error) else self.gaps).extend(error.gaps)
            return
        except UnsupportedError as error:
            self.gaps += error.gaps
            return
        except InvalidModelError:
            if sure:
                raise
            return  # what was declared is wrong; a run will tell
        for value, port in zip(part.outputs, module.outputs):
            element = element_of(port.type)
            if element is not None and port.shape is not None:
                dims = tuple(n if isinstance(n, int) else None for n in port.shape)
                self.known[value] = Known(element, dims, sure)

    # ---- values --------------------------------------------------------------------------------------

    def _source(self, value: ir.Value) -> ir.Value:
        return self.same.get(value, value)

    def _operand(self, value: ir.Value) -> Operand:
        if not value.is_initializer():
            return str(value.name)
        if value not in self.constants:
            assert value.const_value is not None
            self.constants[value] = Constant(values.constant(value.const_value))
        return self.constants[value]

    def _declare(self, value: ir.Value, sure: bool) -> None:
        """Note the type and rank that the model declares. Sizes hold where a run checks them."""
        if value.shape is None or value.dtype is None or not is_numeric(value.type):
            return
        dims = [n if isinstance(n, int) else n.value for n in value.shape]
        self.known[value] = Known(int(value.dtype), tuple(dims) if sure else (None,) * len(dims), sure)

    def _kind(self, value: ir.Value, source: ir.Value) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
        found = value.type or source.type
        known = self.known.get(source)
        if isinstance(found, ir.TensorType):
            shape = value.shape if value.shape is not None else source.shape
            dims = [n if isinstance(n, int) and n >= 0 else 0 for n in shape] if shape is not None else []
            if shape is None and known is not None:
                dims = [n if isinstance(n, int) else 0 for n in known.dims]
            return values.dtype_of(int(found.dtype)), tuple(dims)
        if known is not None:
            return values.dtype_of(known.element), tuple(n if isinstance(n, int) else 0 for n in known.dims)
        return None

    def _dims(self, value: ir.Value) -> tuple[int | str | None, ...] | None:
        if value.shape is None:
            return None
        dims = [n if isinstance(n, int) else n.value for n in value.shape]
        return tuple(None if n in self.loaded.unnamed else n for n in dims)

    def _output(self, value: ir.Value) -> Port:
        """The port of an output: what the model declares, or what is known of it."""
        source = self._source(value)
        found = value.type or source.type
        known = self.known.get(source)
        name = str(value.name)
        if known is not None and (found is None or is_numeric(found)):
            declared = self._dims(value) or (None,) * len(known.dims)
            dims = known.dims
            if len(declared) == len(dims):
                dims = tuple(n if isinstance(n, int) else name or n for n, name in zip(dims, declared))
            return Port.tensor(name, known.element, dims)
        if found is None:
            raise UnsupportedError(
                Gap("Output", "", name, None, "an output without a type", "give it a type in the model")
            )
        return values.port_of(name, found, self._dims(value))


def _last_uses(parts: Sequence[HostPart | RegionPart]) -> dict[str, int]:
    """The place of the last step that reads a value, by its name."""
    last: dict[str, int] = {}
    for place, part in enumerate(parts):
        for value in part.inputs if isinstance(part, RegionPart) else part.reads:
            last[str(value.name)] = place
    return last


def _reason(node: ir.Node) -> str:
    kinds = dict.fromkeys(_kinds(node))
    if kinds:
        return f"fusile has no definition of this operator for {', '.join(kinds)}"
    return "fusile has no definition of this operator"


def _elements(declared: Iterable[ir.Value | None]) -> tuple[np.dtype[Any] | None, ...]:
    return tuple(None if value is None else values.element_of(value.type) for value in declared)


def _in_host(node: ir.Node) -> str:
    kinds = dict.fromkeys(_kinds(node))
    return f"it runs in the host part, for {', '.join(kinds)}" if kinds else "it runs in the host part"


def _kinds(node: ir.Node) -> Iterator[str]:
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.type is not None and not is_numeric(value.type):
            yield values.type_name(value.type)


def _attributes(node: ir.Node) -> Mapping[str, Any]:
    """The attributes that are no graphs: tensors as arrays, lists as tuples, strings as str."""
    out: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        match attribute.type:
            case ir.AttributeType.GRAPH | ir.AttributeType.GRAPHS:
                continue
            case ir.AttributeType.TENSOR:
                out[name] = values.constant(attribute.as_tensor())
            case ir.AttributeType.STRING:
                out[name] = values.text(attribute.value)
            case ir.AttributeType.STRINGS:
                out[name] = tuple(values.text(item) for item in attribute.value)
            case ir.AttributeType.INTS | ir.AttributeType.FLOATS:
                out[name] = tuple(attribute.value)
            case _:
                out[name] = attribute.value
    return out


__all__ = ["assemble", "build"]
