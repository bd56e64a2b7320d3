"""The host part: graphs with strings, sequences, maps, optionals, unknown ranks, or control flow that the
tensor program does not take.

A thin interpreter runs such nodes over Python values; everything between them is compiled as regions, each
like a model of its own. Nothing imports this package for a graph that does not need it.
"""

from fusile.host.assemble import build, examine
from fusile.host.module import without_form

__all__ = ["build", "examine", "without_form"]
