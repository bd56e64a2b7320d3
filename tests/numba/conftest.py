"""The tables of other folders' tests serve here too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
for folder in ("kernels", "passes"):
    if str(TESTS / folder) not in sys.path:
        sys.path.append(str(TESTS / folder))

pytest.importorskip("onnxruntime")
