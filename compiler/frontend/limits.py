"""What the reader accepts at most. A model past one of these is refused, before memory is spent on it."""

from __future__ import annotations

MAX_DEPTH = 64
"""Levels of graphs within graphs, of functions calling functions, and of types within types."""

MAX_NODES = 1_000_000
"""Nodes of a model once its functions are inlined."""

MAX_ELEMENTS = 2**62
"""Elements of one tensor: their count, and the bytes they take, stay inside 64 bits."""

MAX_SPARSE_BYTES = 64 * 2**20
"""A sparse tensor may be this large when dense, whatever it holds."""

MAX_SPARSE_GROWTH = 1024
"""Past that, it may be this many times larger when dense than it is stored."""

MAPPED_BYTES = 1024
"""Tensor data in the model file from this size on are mapped and not copied."""

MAX_MESSAGE_BYTES = 2**31 - 1
"""What remains of a model without its mapped tensors: protobuf's own limit."""
