"""Values of a printed tensor program: an expression of Python and how its dimensions lie."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusile.backends.framework.code import Code, code, short_float
from fusile.ir import expr as ex
from fusile.ir.types import F64


@dataclass(frozen=True, slots=True)
class Val:
    """An expression over axes, aligned to the right: it has `rank` dimensions, which are the last ones of all
    axes, and an extent other than 1 only along `axes`.

    With `host` it is a plain number of Python, and `const` is that number where it is a literal.
    """

    code: Code
    axes: frozenset[ex.Axis] = frozenset()
    rank: int = 0
    host: bool = False
    const: ex.Number | None = None

    def with_code(self, made: Code, host: bool | None = None) -> Val:
        return replace(self, code=made, host=self.host if host is None else host)


def number_of(e: ex.Const) -> Code:
    """A literal, floats as short as their type allows."""
    if isinstance(e.value, float) and e.dtype is not F64:
        return code(short_float(e.value))
    return code(e.value)
