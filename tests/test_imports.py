"""The direction of imports: nothing in the package imports from a higher layer."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "fusile": ROOT / "compiler",
    "fusile.kernels": ROOT / "kernels",
    "fusile.templates": ROOT / "templates",
}

LAYERS = (
    ("dims", "errors", "escape", "light", "options", "target"),
    ("ir", "graph", "capabilities"),
    ("frontend", "kernels"),
    ("passes", "schedule"),
    ("backends", "runtime", "templates", "report"),
    ("artefacts", "building", "checking", "driver", "host", "loading", "reports", "retrained"),
    (
        "session",
        "session_errors",
        "session_options",
        "session_source",
        "session_system",
        "session_values",
        "tools",
    ),
    ("api", "as_onnxruntime"),
    ("cli",),
    ("__main__",),
)
"""From the bottom to the top; what stands together may import each other. The package itself is the face."""

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

LIGHT = (
    "__init__",
    "artefacts",
    "dims",
    "errors",
    "light",
    "options",
    "target",
    "session",
    "session_errors",
    "session_options",
    "session_source",
    "session_system",
    "session_values",
)
"""Modules that a session out of the cache loads: numpy and the standard library only, at the top level."""


def modules() -> list[tuple[str, Path]]:
    found = []
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            found.append((name, path))
    return found


MODULES = modules()


def imports(path: Path, only_at_load: bool = False) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, those in functions included; TYPE_CHECKING blocks are none."""
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, level=0, names=names) if module:
                yield node.lineno, module
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.ImportFrom(level=level) if level:
                raise AssertionError(f"{path}:{node.lineno}: relative import")
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                nodes.extend(node.orelse)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() if only_at_load:
                pass
            case _:
                nodes.extend(ast.iter_child_nodes(node))


def layer(module: str) -> str | None:
    """The first part of a module's name within the package: the room it is in."""
    parts = module.split(".")
    return parts[1] if parts[0] == "fusile" and len(parts) > 1 else None


def test_every_module_has_a_layer() -> None:
    rooms = {layer(name) for name, _ in MODULES} - {None}
    assert rooms <= RANK.keys(), f"without a layer: {sorted(rooms - RANK.keys())}"


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_nothing_imports_upwards(module: str, path: Path) -> None:
    here = layer(module)
    if here is None:
        return  # the package itself: the public face, which loads lazily
    upwards = [
        f"{path}:{line}: {name}"
        for line, name in imports(path)
        if (there := layer(name)) in RANK and RANK[there] > RANK[here]
    ]
    assert not upwards, "\n".join(upwards)


@pytest.mark.parametrize("name", LIGHT)
def test_the_light_modules_load_numpy_and_the_standard_library_only(name: str) -> None:
    import sys

    allowed = {*sys.stdlib_module_names, "numpy", "fusile"}
    path = FOLDERS["fusile"] / f"{name}.py"
    heavy = [
        f"{path}:{line}: {module}"
        for line, module in imports(path, only_at_load=True)
        if module.partition(".")[0] not in allowed
    ]
    assert not heavy, "\n".join(heavy)
