"""The operators by family. Importing this package fills the operator table."""

from fusile.kernels.families import (  # noqa: F401
    activation,
    contraction,
    elementwise,
    indexing,
    movement,
    normalisation,
    pooling,
    recurrent,
    reduction,
    resize,
    window,
)
