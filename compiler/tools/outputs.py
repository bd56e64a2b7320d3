"""Where results are written: nothing that fusile did not write itself is ever overwritten unasked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from fusile.backends.native.files import library_path
from fusile.errors import UsageError

_MARK = b"fusile"
_HEAD = 4096
_BINARY = (".so", ".dylib", ".dll", ".safetensors", ".o", ".weights", ".bin")


def claim(paths: Iterable[str | os.PathLike[str]], force: bool) -> None:
    """See that files may be written, before the work whose results they are to hold. Raises UsageError for a
    place that cannot be written, and for a file that somebody else wrote unless forced.

    A text file is ours where its head says so; a library or a weights file where a text file of ours
    lies beside it under the same stem, or as the model.py of the folder.
    """
    for path in map(Path, paths):
        if path.is_dir():
            raise UsageError(f"{str(path)!r} is a folder, not a file", todo="Give the name of a file with -o")
        if not path.parent.is_dir():
            raise UsageError(
                f"There is no folder {str(path.parent)!r}", todo="Make it, or give another name with -o"
            )
        _see_writable(path.parent)
        if path.exists() and not force and not _is_ours(path):
            raise UsageError(
                f"{str(path)!r} exists and was not written by fusile",
                todo="Give another name with -o, or overwrite it with --force",
            )


def claim_folder(folder: str | os.PathLike[str], names: Iterable[str], force: bool) -> Path:
    """See that a folder may receive files of these names. Who writes them makes it: a refusal of the model
    shall not leave an empty one.
    """
    if not os.fspath(folder):  # pathlib takes it for this folder
        raise UsageError("The name of the folder is empty", todo="Give the name of a folder")
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise UsageError(f"{str(place)!r} is a file, not a folder", todo="Give the name of a folder with -o")
    if place.exists():
        claim([place / name for name in names], force)
        return place
    above = next(parent for parent in place.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UsageError(
            f"The folder {str(place)!r} cannot be made",
            why=f"{str(above)!r} is a file",
            todo="Give the name of another folder with -o",
        )
    _see_writable(above)
    return place


def beside(library: str | os.PathLike[str]) -> tuple[Path, ...]:
    """A native module's library and the files that are written beside it.

    Raises UsageError for what cannot be the name of a library.
    """
    path = library_path(library)
    return (path, path.with_suffix(".h"), path.with_suffix(".py"))


def _see_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"The folder {str(folder)!r} cannot be written to",
            why="this user has no permission",
            todo="Give another place with -o",
        )


def _is_ours(path: Path) -> bool:
    if path.suffix in _BINARY:
        texts = (path.with_suffix(".h"), path.with_suffix(".py"), path.parent / "model.py")
        return any(text.is_file() and _is_ours(text) for text in texts)
    with path.open("rb") as file:
        return _MARK in file.read(_HEAD)
