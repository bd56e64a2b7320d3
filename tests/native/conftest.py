"""What the tests of native modules share: caches of their own, and ONNX Runtime's answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

Reference = Callable[[bytes | str, Mapping[str, Any]], list[Any]]


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests that do not look at it: the support code is compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache_folder(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FUSILE_CACHE", raising=False)
    monkeypatch.setenv("FUSILE_CACHE_DIR", str(shared_cache))
    return shared_cache


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


def assert_close(found: Any, wanted: Any, bound: float = 1e-4) -> None:
    """Integers are equal, floats within a share of their root mean square."""
    for mine, other in zip(found, wanted, strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, other.dtype)
        if other.dtype.kind != "f":
            np.testing.assert_array_equal(mine, other)
        elif other.size:
            scale = float(np.sqrt(np.mean(np.square(other, dtype=np.float64)))) + 1e-12
            assert float(np.abs(mine.astype(np.float64) - other).max()) <= bound * scale
