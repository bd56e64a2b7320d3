"""Options and fixtures of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("FUSILE_VERIFY", "1")  # every level is verified after every pass

GOLDENS = Path(__file__).parent / "goldens"

# A loaded machine is no reason to fail: examples have no deadline.
settings.register_profile("fusile", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fusile")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--models", metavar="DIR", help="also run on every .onnx file in DIR")
    parser.addoption("--all", action="store_true", help="run every conformance case, not a sample of them")
    parser.addoption("--update-golden", action="store_true", help="write what the tests see as their goldens")


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The suite works on a cache of its own, and leaves the user's alone."""
    folder = tmp_path_factory.mktemp("fusile-cache")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FUSILE_CACHE_DIR", str(folder))
        environment.delenv("FUSILE_CACHE", raising=False)
        yield folder


def models_in(config: pytest.Config) -> list[Path]:
    """The .onnx files in the folder that --models names, none without it."""
    folder = config.getoption("--models")
    return sorted(Path(folder).glob("*.onnx")) if folder else []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the argument `model_path` runs once for every model of --models."""
    if "model_path" in metafunc.fixturenames:
        paths = models_in(metafunc.config)
        metafunc.parametrize("model_path", paths, ids=[path.stem for path in paths])


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Compare a text with the one stored under the test's name in tests/goldens, or store it."""
    folder = GOLDENS / request.path.stem
    name = "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in request.node.name)

    def compare(text: str, suffix: str = ".txt") -> None:
        path = folder / f"{name}{suffix}"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return
        assert path.exists(), f"{path} is missing: run pytest with --update-golden and look at the difference"
        assert text == path.read_text()

    return compare
