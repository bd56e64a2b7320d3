"""The register tile: how many rows and vectors of a contraction are accumulated side by side.

A small cost model in cycles per step of the reduced loop, for a core that issues two fused multiply-adds and
two loads per cycle, with four cycles of latency, and reads panels from its second-level cache at about 24
bytes per cycle (measured on a server core with AVX-512).
"""

from __future__ import annotations

from dataclasses import dataclass

from fusile.ir import index as ix
from fusile.ir.expr import Expr

LATENCY = 4.0
PANEL_BYTES_PER_CYCLE = 24.0
MOST_ROWS = 14
ALIASED_ROWS = 8
"""Rows whose distance is a multiple of 4 KiB fall into one set of the first-level cache: no more of them than
half its ways leave free.
"""


@dataclass(frozen=True, slots=True)
class Registers:
    """What a tile has to fit: vector registers and their lanes (of 4 bytes)."""

    lanes: int
    count: int

    def most_rows(self, vectors: int) -> int:
        """Rows that fit beside the operands: accumulators, one vector of the panel each, one broadcast."""
        return max(1, (self.count - vectors - 1) // vectors)


def step_cycles(rows: int, vectors: int, registers: Registers) -> float:
    """Cycles of one step of the reduced loop for a tile."""
    if rows == 0:
        return 0.0
    return (
        max(
            rows * vectors / 2,
            (rows + vectors) / 2,
            LATENCY,
            vectors * registers.lanes * 4 / PANEL_BYTES_PER_CYCLE,
        )
        + 0.5
    )


def rows_cycles(extent: Expr | int, rows: int, vectors: int, registers: Registers) -> float:
    """Cycles per step over all rows, in tiles of `rows` and one smaller tile; symbolic extents count per row
    of a full tile.
    """
    n = ix.number(extent)
    if n is None:
        return step_cycles(rows, vectors, registers) / rows * 1024
    return (n // rows) * step_cycles(rows, vectors, registers) + step_cycles(n % rows, vectors, registers)


def best_rows(extent: Expr | int, vectors: int, registers: Registers, aliased: bool = False) -> int:
    """The height of the tile for a width of `vectors`."""
    most = min(registers.most_rows(vectors), MOST_ROWS, ALIASED_ROWS if aliased else MOST_ROWS)
    n = ix.number(extent)
    candidates = range(1, (most if n is None else min(most, max(n, 1))) + 1)
    return min(candidates, key=lambda h: (rows_cycles(extent, h, vectors, registers), -h))


def best_vectors(columns: Expr | int, rows: Expr | int, registers: Registers) -> int:
    """The width of the tile, in vectors: least cycles over the whole result."""
    widths = (1, 2, 3, 4) if registers.count >= 32 else (1, 2)
    n = ix.number(columns)
    needed = None if n is None else -(-n // registers.lanes)

    def price(v: int) -> float:
        h = best_rows(rows, v, registers)
        full = rows_cycles(rows, h, v, registers)
        if needed is None:
            return full / v
        rest = needed % v
        return (needed // v) * full + (
            rows_cycles(rows, best_rows(rows, rest, registers), rest, registers) if rest else 0.0
        )

    return min((v for v in widths if needed is None or v <= max(needed, 1)), key=lambda v: (price(v), v))
