"""The operators by family. Importing this package fills the operator table."""

from fusile.kernels.families import (  # noqa: F401
    activation,
    contraction,
    control,
    elementwise,
    indexing,
    movement,
    normalisation,
    pooling,
    quantised,
    recurrent,
    reduction,
    resize,
    sampling,
    signal,
    window,
)
