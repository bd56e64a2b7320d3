"""What a row or a printer raises for a node that it cannot print."""

from __future__ import annotations


class Refusal(Exception):
    """A row cannot print this node; becomes a gap in the list that the user sees."""

    def __init__(self, reason: str, way_out: str = "") -> None:
        self.reason = reason
        self.way_out = way_out
        super().__init__(reason)
