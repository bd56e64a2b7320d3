"""One LLVM function under construction: its text, and the values that it already has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fusile.backends.native import scalars
from fusile.ir.expr import Axis
from fusile.ir.loops import Buffer
from fusile.ir.types import DType

METADATA = (
    "!0 = !{}",
    "!1 = !{i32 1}",
    '!2 = !{!"branch_weights", i32 1, i32 2000}',
    "!3 = distinct !{!3, !4}",
    '!4 = !{!"llvm.loop.unroll.disable"}',
)
"""!0 marks loads from memory that nobody writes, !1 streaming stores, !2 branches that are hardly taken, !3
loops that stay loops.
"""


@dataclass(frozen=True, slots=True)
class Value:
    """A printed value: its name or literal, its type and lanes (0: a scalar)."""

    text: str
    dtype: DType
    lanes: int = 0

    @property
    def typed(self) -> str:
        return f"{type_of(self.dtype, self.lanes)} {self.text}"


@dataclass(frozen=True, slots=True)
class Instance:
    """One combination of jam iterations, and the lanes (or the condition) under which it runs."""

    places: tuple[tuple[Axis, int], ...]
    mask: Value | None = None


def sized(scalar: str, lanes: int) -> str:
    """A type in LLVM's syntax, as a vector where it has lanes."""
    return f"<{lanes} x {scalar}>" if lanes else scalar


def type_of(t: DType, lanes: int) -> str:
    """The LLVM type of a value in registers."""
    return sized(scalars.register_type(t), lanes)


class Module:
    """Text of one LLVM module: functions and the declarations that they need."""

    def __init__(self) -> None:
        self.declarations: dict[str, None] = {}
        self.functions: list[str] = []

    def declare(self, text: str) -> None:
        self.declarations[text] = None

    def text(self) -> str:
        head = ["declare hidden void @fusile_error(ptr, i32, i32, i64, i64)", *self.declarations]
        return "\n".join([*head, "", *self.functions, *METADATA, ""])


class Scopes:
    """Values already printed, by scope: what is made inside a loop or branch is not seen outside."""

    def __init__(self) -> None:
        self.stack: list[dict[object, Value]] = [{}]

    def get(self, key: object) -> Value | None:
        for scope in reversed(self.stack):
            if key in scope:
                return scope[key]
        return None

    def put(self, key: object, value: Value) -> Value:
        self.stack[-1][key] = value
        return value

    @contextmanager
    def inner(self) -> Iterator[None]:
        self.stack.append({})
        yield
        self.stack.pop()


class Function:
    """Lines of one function, and what is known where the next of them goes."""

    def __init__(self, module: Module, symbol: str, written: set[Buffer]) -> None:
        self.module, self.symbol = module, symbol
        self.entry: list[str] = []
        self.lines: list[str] = []
        self.block = "entry"
        self.temporaries = 0
        self.memo = Scopes()
        self.vector: Axis | None = None
        self.lanes = 0
        """The vector loop that is being printed, and how many iterations it has (0: none)."""
        self.pointers: dict[Buffer, str] = {}
        """Where parameters and scratch buffers begin."""
        self.wider: dict[str, str] = {}
        """The mask that a mask was made from by a further condition ("": all lanes)."""
        self.written = written
        """Buffers that are stored to: other parameters do not change while the function runs."""

    def name(self) -> str:
        self.temporaries += 1
        return f"%v{self.temporaries}"

    def label(self, hint: str) -> str:
        self.temporaries += 1
        return f"{hint}{self.temporaries}"

    def emit(self, text: str) -> str:
        """An instruction that has a result; answers the result's name."""
        out = self.name()
        self.lines.append(f"  {out} = {text}")
        return out

    def start(self, label: str) -> None:
        """What follows is the block of this label."""
        self.lines.append(f"{label}:")
        self.block = label

    def reserve(self, what: str) -> str:
        """Memory of the function's own; answers the name of its address."""
        slot = f"%a{self.temporaries}"
        self.temporaries += 1
        self.entry.append(f"  {slot} = alloca {what}, align 64")
        return slot
