"""What the tests of the runtime share: a cache of their own, and the code of the hand-written plan."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import tiny_plan

from fusile.runtime.cache import Cache
from fusile.runtime.image import Image, load_image
from fusile.runtime.link import link_image
from fusile.runtime.native_support import support_objects
from fusile.runtime.workers import compile_objects
from fusile.target import TargetSpec, for_cpu, host


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def baseline() -> TargetSpec:
    """The host's architecture without its newer instructions: what valgrind understands."""
    return for_cpu("x86-64" if host().arch == "x86_64" else "armv8-a", host().triple)


@pytest.fixture(scope="session")
def tiny_object(baseline: TargetSpec) -> bytes:
    return compile_objects([tiny_plan.TEXT], baseline)[0]


@pytest.fixture(scope="session")
def tiny_image(cache: Cache, baseline: TargetSpec, tiny_object: bytes) -> Image:
    """The hand-written plan, linked and loaded."""
    return load_image(link_image([*support_objects(baseline, cache), ("plan", tiny_object)]))


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed weights 2, 4, 6, 8 as a weights file."""
    from fusile.runtime.weights_file import new_weights_file

    path = tmp_path_factory.mktemp("weights") / "tiny.weights"
    with new_weights_file(path, tiny_plan.PLAN.weights_bytes, tiny_plan.PLAN.layout_key) as (address, _):
        packed = (ctypes.c_float * 4)(2, 4, 6, 8)
        ctypes.memmove(address, packed, ctypes.sizeof(packed))
    return path
