"""The operators by family. Importing this package fills the operator table."""

from fusile.kernels.families import (  # noqa: F401
    activation,
    contraction,
    detection,
    drawing,
    elementwise,
    indexing,
    movement,
    normalisation,
    ordering,
    pooling,
    quantised,
    recurrent,
    reduction,
    resize,
    sampling,
    signal,
    training,
    window,
)
