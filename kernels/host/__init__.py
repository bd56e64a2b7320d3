"""Operators on strings, sequences, maps and optionals. Importing this package fills the table."""

import fusile.kernels.host.control
import fusile.kernels.host.images
import fusile.kernels.host.labels
import fusile.kernels.host.movement
import fusile.kernels.host.optionals
import fusile.kernels.host.sequences
import fusile.kernels.host.strings
import fusile.kernels.host.tokens  # noqa: F401
