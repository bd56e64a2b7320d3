"""What pyproject.toml says about the package is what the folders hold."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = {"fusile": "compiler", "fusile.kernels": "kernels", "fusile.templates": "templates"}


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert listed["package-dir"] == FOLDERS
    found = set()
    for name, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("__init__.py"):
            inner = path.parent.relative_to(ROOT / folder).parts
            found.add(".".join((name, *inner)))
    assert sorted(listed["packages"]) == sorted(found)


def test_data_beside_the_code_is_listed() -> None:
    """Every file that is no code has a pattern, and setuptools is not asked to look for more by itself."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert listed["include-package-data"] is False
    held = set()
    for package, patterns in listed["package-data"].items():
        top, _, rest = package.removeprefix("fusile.").partition(".")
        folder = ROOT / FOLDERS.get(package, f"compiler/{top}/{rest}")
        held |= {path for pattern in patterns for path in folder.glob(pattern)}
    for folder in FOLDERS.values():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert path in held, f"{path} is not installed"


def test_all_code_is_in_packages() -> None:
    for folder in FOLDERS.values():
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path} is in no package"
