"""What the host runs: steps over Python values, in a frame that holds each value until its last use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusile.errors import RunError
from fusile.host.region import Region
from fusile.kernels.host.registry import HostContext, Refused
from fusile.kernels.registry import Malformed, Operator, Unsupported, call
from fusile.runtime.module import Array

Frame = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Constant:
    """An operand that does not change."""

    value: Any


Operand = str | Constant | None
"""Where a step finds a value: its name in the frame, the value itself, or None for an absent input."""


@dataclass(frozen=True, slots=True)
class RegionStep:
    """Runs compiled code."""

    region: Region
    inputs: tuple[Operand, ...]
    outputs: tuple[str, ...]
    release: tuple[str, ...]

    def run(self, frame: Frame) -> None:
        frame.update(zip(self.outputs, self.region.run(_taken(self.inputs, frame))))


@dataclass(frozen=True, slots=True)
class NodeStep:
    """Runs one operator's definition. Its graphs are programs."""

    context: HostContext
    operator: str
    definition: Operator
    inputs: tuple[Operand, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    bodies: Mapping[str, HostProgram]
    release: tuple[str, ...]

    def run(self, frame: Frame) -> None:
        attributes = self.attributes
        if self.bodies:
            bound = {name: _Bound(p, {n: frame[n] for n in p.captured}) for name, p in self.bodies.items()}
            attributes = {**attributes, **bound}
        inputs = _taken(self.inputs, frame)
        try:
            results = call(self.definition, self.context, inputs, attributes, len(self.outputs))
        except RunError:
            raise
        except (Refused, Malformed, Unsupported) as error:
            raise self._failed(str(error)) from None
        except MemoryError as error:
            raise self._failed("there is not enough memory for its result") from error
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
            raise self._failed(f"its inputs do not fit: {error}") from error
        frame.update(zip(self.outputs, map(_tensor, results)))

    def _failed(self, why: str) -> RunError:
        return RunError(f"{self.operator} failed", node=self.context.site, why=why)


Step = RegionStep | NodeStep


@dataclass(frozen=True, slots=True)
class HostProgram:
    """The steps of one graph. `captured` are the values that it reads from around it, `kinds` for each
    output the type and the sizes of its tensors, where they have one.
    """

    formals: tuple[str, ...]
    captured: tuple[str, ...]
    steps: tuple[Step, ...]
    results: tuple[Operand, ...]
    kinds: tuple[tuple[np.dtype[Any], tuple[int, ...]] | None, ...]

    def run(self, values: Sequence[Any], around: Mapping[str, Any]) -> list[Any]:
        """The outputs for the inputs, and for what is around the graph. Raises RunError."""
        frame: Frame = {**around, **dict(zip(self.formals, values))}
        for step in self.steps:
            step.run(frame)
            for name in step.release:
                frame.pop(name, None)
        return _taken(self.results, frame)

    def constants(self) -> Iterator[Any]:
        """The constants that steps and results hold, those of inner graphs too."""
        operands = [*self.results, *(operand for step in self.steps for operand in step.inputs)]
        yield from (operand.value for operand in operands if isinstance(operand, Constant))
        for step in self.steps:
            if isinstance(step, NodeStep):
                for body in step.bodies.values():
                    yield from body.constants()


@dataclass(frozen=True, slots=True)
class _Bound:
    """A graph in a node as its operator's definition sees it (see `kernels.host.control.Body`)."""

    program: HostProgram
    around: Mapping[str, Any]

    @property
    def outputs(self) -> int:
        return len(self.program.results)

    def __call__(self, *values: Any) -> list[Any]:
        return self.program.run(values, self.around)

    def nothing(self, output: int) -> Array:
        kind = self.program.kinds[output]
        if kind is None:
            raise Refused("nothing is listed, and the model does not say of which type the elements are")
        dtype, shape = kind
        return np.zeros(shape, dtype)


def _taken(operands: Sequence[Operand], frame: Mapping[str, Any]) -> list[Any]:
    return [
        frame[operand] if type(operand) is str else operand.value if isinstance(operand, Constant) else None
        for operand in operands
    ]


def _tensor(value: Any) -> Any:
    """A scalar as a tensor, which is what numpy makes scalars of; everything else as it is."""
    if isinstance(value, str):
        return np.array(value, object)
    return np.asarray(value) if isinstance(value, (np.generic, bool, int, float)) else value
