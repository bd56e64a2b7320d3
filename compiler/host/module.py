"""A module whose graph holds values of the host, behind the same face as every other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from fusile.errors import Gap, UnsupportedError
from fusile.host.program import HostProgram
from fusile.host.region import Region
from fusile.host.values import fresh, settled
from fusile.runtime.module import ModelInfo, Module, Port, Signature, Value


class HostModule(Module):
    """Runs a host program. `host_nodes` are the nodes that it runs itself, `open` those that are compiled
    once their inputs are seen, and why; `regions` is what is compiled.
    """

    def __init__(
        self,
        program: HostProgram,
        inputs: Sequence[tuple[Port, ir.TypeProtocol]],
        outputs: Sequence[Port],
        info: ModelInfo,
        host_nodes: Sequence[Gap],
        open: Sequence[Gap],
        regions: Sequence[Region],
    ) -> None:
        self.signature = Signature([port for port, _ in inputs])
        self.outputs = tuple(outputs)
        self.info = info
        self.host_nodes = tuple(host_nodes)
        self.open = tuple(open)
        self.regions = tuple(regions)
        self._types = tuple(found for _, found in inputs)
        self._program = program
        self._constants = tuple(program.constants())

    def run(self, feeds: Sequence[Value]) -> list[Value]:
        checked = self.signature.check(feeds)
        ready = [
            settled(value, found, name)
            for value, found, name in zip(checked, self._types, self.signature.names)
        ]
        return fresh(self._program.run(ready, {}), (*ready, *self._constants))

    def save(
        self, path: str | os.PathLike[str], *, embed: bool = True, linker: str | None = None
    ) -> tuple[Path, ...]:
        raise without_form(self, "a file")

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Why the graph needs the host part: nodes, or else inputs that ask for it, or else outputs."""
        return (
            (*self.host_nodes, *self.open)
            or tuple(gap for port in self.inputs if (gap := _asked_for("Input", port)))
            or tuple(gap for port in self.outputs if (gap := _asked_for("Output", port)))
        )


def _asked_for(kind: str, port: Port) -> Gap | None:
    """Why a port asks for the host part; None where it is a tensor of numbers whose rank is known."""
    if port.dtype is None or port.dtype.hasobject:
        way_out = "Leave it out of the model" if kind == "Input" else ""
        return Gap(kind, "", port.name, None, f"{port.type} is a value of the host part", way_out)
    if port.shape is None:
        reason = f"{port.type} of unknown rank, for which the model is compiled once it is seen"
        return Gap(kind, "", port.name, None, reason, "Give it a shape in the model")
    return None


def without_form(module: HostModule, what: str) -> UnsupportedError:
    """The error for a graph that needs the host part, and shall become `what`."""
    return UnsupportedError(
        module.gaps,
        f"The model needs the host part of a process, which has no form in {what}",
        todo="Run it in a process with fusile.compile or fusile.InferenceSession",
    )
