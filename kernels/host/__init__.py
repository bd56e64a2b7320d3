"""Operators on strings, sequences, maps and optionals. Importing this package fills the table."""

import fusile.kernels.host.control
import fusile.kernels.host.movement
import fusile.kernels.host.optionals
import fusile.kernels.host.sequences  # noqa: F401
