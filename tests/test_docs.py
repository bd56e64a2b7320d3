"""docs/architecture.md shows what the compiler prints."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from fusile import driver
from fusile.options import Options
from fusile.target import for_cpu

HOME = Path(__file__).parent.parent / "compiler"
PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"
TRIP = """<ir_version: 9, opset_import: ["" : 18]>
trip (float[batch, 64, 56, 56] x) => (float[batch, 64, 1, 1] y) {
    conv = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, weight, bias)
    r = Relu (conv)
    y = GlobalAveragePool (r)
}"""


def shown() -> list[str]:
    """The dumps on the page: its code blocks that begin like a level's text form."""
    blocks = re.findall(r"```\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in blocks if re.match(r"program |kernel |plan | +\w+_panels\[", block)]


@pytest.fixture(scope="module")
def dump_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = onnx.parser.parse_model(TRIP)
    for name, shape in (("weight", (64, 64, 3, 3)), ("bias", (64,))):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    for node, called in zip(model.graph.node, ("conv", "relu", "pool"), strict=True):
        node.name = called
    folder = tmp_path_factory.mktemp("trip")
    target = for_cpu("x86-64-v4", "x86_64-unknown-linux-gnu")
    driver.plan(model.SerializeToString(), Options(), target, driver.Trace(folder))
    return folder


@pytest.fixture(scope="module")
def dumps(dump_folder: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(dump_folder.iterdir()))


@pytest.fixture(scope="module")
def dumped(dump_folder: Path) -> list[str]:
    """The names of the levels that are written."""
    return [path.stem.partition("_")[2] for path in dump_folder.iterdir()]


def test_the_dumps_of_the_trip_are_real(dumps: str, request: pytest.FixtureRequest) -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = [block for block in shown() if block not in dumps]
    if request.config.getoption("--update-golden"):
        for block in missing:
            head = re.split(r"[(:\[]", block, maxsplit=1)[0]
            start = [m.start() for m in re.finditer(rf"^{re.escape(head)}\b", dumps, re.MULTILINE)]
            fresh = [re.split(r"\n(?=\S)|\n\n", dumps[at:], maxsplit=1)[0].rstrip() for at in start]
            best = max(fresh, key=lambda text: len(set(text.splitlines()) & set(block.splitlines())))
            page = page.replace(block, best)
        PAGE.write_text(page, encoding="utf-8")
    else:
        assert not missing
    assert len(shown()) >= 6


ROAD = re.compile(r"^\| [^|]+ \| `([\w.]+)`(?: in `([\w/]+)\.py`)? \| [^|]+ \| ([^|]*) ?\|$", re.MULTILINE)


def test_the_road_names_functions_and_dumps_that_exist(dumped: list[str]) -> None:
    rows = ROAD.findall(PAGE.read_text(encoding="utf-8"))
    assert len(rows) >= 20
    for function, file, told in rows:
        home, _, name = function.rpartition(".")
        module = importlib.import_module(".".join(["fusile", *(file or home).split("/")]))
        assert callable(getattr(module, name)), function
        for dump in re.findall(r"`(\w+)`", told):
            assert dump in dumped


def test_the_page_names_files_that_exist() -> None:
    for name in re.findall(r"`([\w/]+\.py)`", PAGE.read_text(encoding="utf-8")):
        homes = [*HOME.rglob(name), *HOME.parent.glob(name), *HOME.parent.glob(f"kernels/**/{name}")]
        assert homes, name
