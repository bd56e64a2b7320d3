"""The operators on values that are no numbers: each defined once as a function from values to values.

    @host_op("StringConcat")
    def string_concat(x: Array, y: Array) -> Array:
        return x + y

A value is a numpy array (of dtype object where the elements are strings), a list for a sequence, a dict for
a map, None for an absent optional. Parameters follow the rules of `fusile.kernels.registry`: positional ones
are the operator's inputs, keyword-only ones its attributes (strings as str), `ctx` receives the HostContext,
`outputs` the number of outputs. A function answers a value, or a tuple of them; it never changes its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from fusile.kernels.registry import Operator, described

HOST_OPERATORS: dict[tuple[str, str], Operator] = {}
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class HostContext:
    """What a definition may ask: `site` is the ONNX node's name, `inputs` and `outputs` the types of the
    elements that the model declares for its values (for a sequence, an optional or a map those inside), None
    where it says nothing.
    """

    site: str
    inputs: tuple[np.dtype[Any] | None, ...] = ()
    outputs: tuple[np.dtype[Any] | None, ...] = ()

    def element(self) -> np.dtype[Any] | None:
        """The type of the elements of the one output of an operator that keeps the type of its input."""
        return next((found for found in (*self.outputs[:1], *self.inputs[:1]) if found is not None), None)


class Refused(Exception):
    """Raised by a definition when its values do not fit (an index out of range, text that is no number, …);
    the message becomes a RunError that names the node.
    """


def host_op(name: str, domain: str = "") -> Callable[[F], F]:
    """Register a definition under an ONNX operator's name. An operator may stand here and among the tensor
    operators: this one serves the values that a tensor program cannot hold.
    """

    def register(function: F) -> F:
        HOST_OPERATORS[(domain, name)] = described(domain, name, function)
        return function

    return register
