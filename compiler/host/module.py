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
        raise without_file((*self.host_nodes, *self.open))


def without_file(gaps: Sequence[Gap]) -> UnsupportedError:
    """The error for a graph that needs the host part, because of `gaps`, and shall become a file."""
    return UnsupportedError(
        gaps,
        "The model needs a process to run in, and has no form in a file"
        if gaps
        else "The model has inputs of unknown rank: it is compiled once they are seen, and never to a file",
        todo="Run it in a process with fusile.compile or fusile.InferenceSession",
    )
