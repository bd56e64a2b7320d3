"""What the tests of native modules share: caches of their own, ONNX Runtime's answers, the tables of cases."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from native_models import Reference

TABLES = str(Path(__file__).parents[1] / "kernels")
if TABLES not in sys.path:
    sys.path.append(TABLES)


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("FUSILE_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(scope="session")
def reference() -> Reference:
    def answers(model: bytes | str, feeds: Mapping[str, Any]) -> list[Any]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        found: list[Any] = session.run(None, dict(feeds))
        return found

    return answers
