"""Images: files are checked, memory is never writable and executable, unloading unloads."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import pytest

from fusile.runtime import image as images
from fusile.runtime.image import ImageError, load_image, read_layout
from fusile.runtime.link import link_image
from fusile.runtime.workers import compile_objects
from fusile.target import for_cpu, host

TEXT = """
declare double @cos(double)
@numbers = hidden constant [3 x i64] [i64 5, i64 6, i64 7]
define hidden i64 @number(i64 %i) {
  %place = getelementptr [3 x i64], ptr @numbers, i64 0, i64 %i
  %x = load i64, ptr %place
  ret i64 %x
}
define hidden double @cosine(double %x) {
  %y = call double @cos(double %x)
  ret double %y
}
"""


@pytest.fixture(scope="module")
def data() -> bytes:
    return link_image([("k", compile_objects([TEXT], host())[0])])


@pytest.fixture
def file(data: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "some.image"
    path.write_bytes(data)
    return path


def mappings(begin: int, size: int) -> dict[int, str]:
    """Protection of each mapping that touches a range of this process's memory."""
    found = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high, protection = re.match(r"(\w+)-(\w+) (\S+)", line).groups()  # type: ignore[union-attr]
        if int(low, 16) < begin + size and int(high, 16) > begin:
            found[int(low, 16)] = protection
    return found


def number(image: images.Image, index: int) -> int:
    return int(image.function("number", ctypes.c_int64, ctypes.c_int64)(index))


@pytest.mark.parametrize("by", ["file", "bytes"])
def test_code_runs(by: str, file: Path, data: bytes) -> None:
    image = load_image(file if by == "file" else data)
    assert [number(image, i) for i in range(3)] == [5, 6, 7]
    assert image.function("cosine", ctypes.c_double, ctypes.c_double)(0.0) == 1.0


def test_nothing_is_writable_and_code_alone_is_executable(file: Path) -> None:
    image = load_image(file)
    protections = mappings(image.base, image.bytes)
    assert set(protections.values()) == {"r-xp", "r--p"}
    assert protections[image.base] == "r-xp"
    assert mappings(image.symbol("numbers"), 1).popitem()[1] == "r--p"


def test_code_and_constants_are_backed_by_the_file(file: Path) -> None:
    image = load_image(file)
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    assert len(lines) == 2
    image.close()


def test_closing_unmaps(file: Path) -> None:
    image = load_image(file)
    base, size = image.base, image.bytes
    image.close()
    assert not mappings(base, size)
    with pytest.raises(ImageError, match="closed"):
        image.symbol("number")
    image.close()


def test_the_last_reference_unmaps_and_functions_hold_one(file: Path) -> None:
    image = load_image(file)
    function = image.function("number", ctypes.c_int64, ctypes.c_int64)
    base, size = image.base, image.bytes
    del image
    gc.collect()
    assert function(2) == 7
    assert mappings(base, size)
    del function
    gc.collect()
    assert not mappings(base, size)


def test_the_file_may_be_removed_while_it_is_loaded(file: Path) -> None:
    image = load_image(file)
    file.unlink()
    assert number(image, 1) == 6


@pytest.mark.parametrize("where", [70, -20])
def test_a_changed_byte_is_noticed(where: int, data: bytes, tmp_path: Path) -> None:
    changed = bytearray(data)
    changed[where] ^= 1
    with pytest.raises(ImageError, match="digest"):
        load_image(bytes(changed))
    (tmp_path / "x").write_bytes(changed)
    with pytest.raises(ImageError, match="digest"):
        load_image(tmp_path / "x")


def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="no image"):
        load_image(b"\x7fELF" + bytes(1000))
    with pytest.raises(ImageError, match="no image"):
        load_image(data[:40])
    with pytest.raises(ImageError, match="digest"):
        load_image(data[:-100])
    with pytest.raises(ImageError, match="cut off"):
        read_layout(data[:-100], verify=False)
    with pytest.raises(ImageError, match="version 99"):
        read_layout(data[:8] + (99).to_bytes(4, "little") + data[12:])


def test_an_image_of_another_machine_is_refused() -> None:
    other = "aarch64" if host().arch == "x86_64" else "x86_64"
    target = for_cpu("armv8-a" if other == "aarch64" else "x86-64", f"{other}-unknown-linux-gnu")
    foreign = link_image([("k", compile_objects([TEXT], target)[0])])
    with pytest.raises(ImageError, match=other):
        load_image(foreign)


def test_a_file_system_that_forbids_execution_is_no_obstacle(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = images._map, []

    def refuse_first(descriptor: int, layout: images.ImageLayout, start: int) -> images.Image:
        asked.append(descriptor)
        if len(asked) == 1:
            raise PermissionError
        return real(descriptor, layout, start)

    monkeypatch.setattr(images, "_map", refuse_first)
    assert number(load_image(file), 0) == 5
    assert len(asked) == 2
