"""The operators by family. Importing this package fills the operator table."""

from fusile.kernels.families import (  # noqa: F401
    activation,
    contraction,
    elementwise,
    indexing,
    linear_models,
    movement,
    ngrams,
    normalisation,
    pooling,
    preparation,
    quantised,
    recurrent,
    reduction,
    resize,
    sampling,
    signal,
    trees,
    window,
)
