"""What the driver tells about a model: whether it can be compiled, and what compiling made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from fusile.errors import Gap
from fusile.runtime.module import Port


class Progress(Protocol):
    """Told at the start of each stage of long work, and as it gets on; `total` 0 means that it is unknown."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


def silent(stage: str, done: int = 0, total: int = 0) -> None:
    """A Progress that says nothing."""


@dataclass(frozen=True, slots=True)
class OperatorUse:
    """How often a model uses an operator, and whether the target can compile every use."""

    op_type: str
    domain: str
    count: int
    supported: bool = True

    @property
    def name(self) -> str:
        return f"{self.domain}::{self.op_type}" if self.domain else self.op_type


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What compiling a model would meet, found without reading its weights.

    `flops` and `activation_bytes` are None where symbolic dimensions leave them open; `notes` are
    sentences about anything else worth knowing.
    """

    model: str
    target: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operators: tuple[OperatorUse, ...]
    gaps: tuple[Gap, ...] = ()
    parameters: int = 0
    weight_bytes: int = 0
    flops: int | None = None
    activation_bytes: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def supported(self) -> bool:
        return not self.gaps

    @property
    def nodes(self) -> int:
        return sum(use.count for use in self.operators)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            **asdict(self),
            "inputs": ports_json(self.inputs),
            "outputs": ports_json(self.outputs),
            "supported": self.supported,
            "nodes": self.nodes,
        }


@dataclass(frozen=True, slots=True)
class KernelNote:
    """One kernel: the ONNX nodes it computes, the schedule as text, and its work for one run.

    Bytes and operations are None where symbolic dimensions leave them open.
    """

    name: str
    nodes: tuple[str, ...]
    operators: tuple[str, ...]
    schedule: tuple[str, ...] = ()
    flops: int | None = None
    bytes_read: int | None = None
    bytes_written: int | None = None


@dataclass(frozen=True, slots=True)
class GroupNote:
    """Stages that fusion put together: the kernel they became, what that saves, and why it pays.

    `saved_bytes` is None where symbolic dimensions leave it open, `saved_at_one` what it is where they are 1.
    """

    kernel: str
    nodes: tuple[str, ...]
    saved_bytes: int | None
    why: str
    saved_at_one: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that was considered and not done, with the reason as a sentence.

    `what` names the decision ("fuse", "tile", "layout", "bf16"), `nodes` the ONNX nodes it is about.
    """

    what: str
    nodes: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class ExplainReport:
    """What compiling a model made of it, and why."""

    model: str
    target: str
    opt_level: int
    kernels: tuple[KernelNote, ...]
    groups: tuple[GroupNote, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    arena_bytes: int | None = None
    weight_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def saved_bytes(self) -> int | None:
        """Bytes per run that fusion neither stores nor loads; None where symbolic sizes leave it open."""
        known = [group.saved_bytes for group in self.groups if group.saved_bytes is not None]
        return sum(known) if len(known) == len(self.groups) else None

    @property
    def saved_at_one(self) -> int:
        """The saved bytes where every symbolic dimension is 1."""
        return sum(group.saved_at_one for group in self.groups)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {**asdict(self), "saved_bytes": self.saved_bytes, "saved_at_one": self.saved_at_one}


def ports_json(ports: Sequence[Port]) -> list[dict[str, Any]]:
    """Ports as plain data."""
    return [
        {"name": port.name, "type": port.type, "shape": None if port.shape is None else list(port.shape)}
        for port in ports
    ]
