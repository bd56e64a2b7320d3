"""The artefact cache: folders of files under a key, written whole or not at all, checked when read, safe for
many processes.

Place: FUSILE_CACHE_DIR, or the platform's cache folder; nobody but its owner may write there, since code is
loaded from it. FUSILE_CACHE=0 turns it off: then every entry is made anew, in a private folder that goes with
the process.

    <root>/<kind>/<key>/      one entry: its files and manifest.json (sizes, digests); the manifest's mtime is
                              the last use
    <root>/files/<identity>   content digest of a file that was hashed before (see `Cache.fingerprint`)
    <root>/tidied             its time stamp says when all entries were last looked through
    <root>/tmp/               entries being written, entries being removed
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fusile.errors import UsageError

_FORMAT = 1
_WHOLE_DIGEST = (
    32 << 20
)  # files up to this size are hashed when read; larger ones by their head, with size and mtime
_HEAD = 4096
_LIMIT_BYTES = 32 << 30  # beyond this, writing removes what was not used for longest
_STALE_SECONDS = 24 * 3600.0
_BUSY_SECONDS = 3600.0  # a younger draft may be somebody's who is still writing
_TIDY_SECONDS = 600.0  # between two looks at all entries, unless much was written: a look costs their number
_TIDY_SHARE = 64  # one part in so many of the limit is much
_SETTLED_SECONDS = 1.0  # a file changed more recently may change again within its time stamp's granularity
_MANIFEST = "manifest.json"
_TIDIED = "tidied"
_TRIES = 16
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete, checked entry."""

    folder: Path
    files: tuple[str, ...]

    def path(self, name: str) -> Path:
        """A file of the entry. Raises KeyError for one that it does not hold."""
        if name not in self.files:
            raise KeyError(name)
        return self.folder / name


@dataclass(frozen=True, slots=True)
class Usage:
    """What entries of a kind take."""

    kind: str
    entries: int
    bytes: int


def key_of(*parts: str | bytes) -> str:
    """A key for the parts: SHA-256 over all of them with their lengths, as hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def open_cache() -> Cache:
    """The cache that the environment asks for. Raises UsageError where FUSILE_CACHE_DIR cannot serve.

    Where the platform's own cache folder cannot be written, warns once and works as with FUSILE_CACHE=0.
    """
    if os.environ.get("FUSILE_CACHE") == "0":
        return _private_cache(os.getpid(), "FUSILE_CACHE=0")
    chosen = os.environ.get("FUSILE_CACHE_DIR")
    if chosen:
        root = Path(chosen).expanduser()
        try:
            return Cache(_own_folder(root))
        except OSError as error:
            raise UsageError(
                f"The cache folder {root} cannot be used",
                why=error.strerror or str(error),
                todo="Set FUSILE_CACHE_DIR to a folder of your own, or FUSILE_CACHE=0",
            ) from error
    try:
        return Cache(_own_folder(_platform_folder()))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        return _warned_private_cache(os.getpid(), f"No cache folder can be used ({error})")


class Cache:
    """See the module. `persistent` is False where nothing is kept, and `why` says why."""

    def __init__(self, root: Path, *, persistent: bool = True, why: str = "") -> None:
        self.root = root
        self.persistent = persistent
        self.why = why

    def get(self, kind: str, key: str) -> Entry | None:
        """The entry, checked, or None. A damaged one is removed."""
        if not self.persistent:
            return None
        folder = self._folder(kind, key)
        entry = _checked(folder)
        if entry is None and folder.exists():
            self._remove(folder)
        if entry is not None:
            with contextlib.suppress(OSError):  # a cache that is read-only to this process still serves
                os.utime(folder / _MANIFEST)
        return entry

    def put(self, kind: str, key: str, fill: Callable[[Path], None]) -> Entry:
        """Makes an entry: `fill` writes plain files into the folder it is given. What it raises leaves
        nothing behind.

        Where another process was quicker its entry is kept, and is answered.
        """
        folder = self._folder(kind, key if self.persistent else f"{key[:96]}-{secrets.token_hex(8)}")
        draft = self._draft()
        try:
            fill(draft)
            _write_manifest(draft)
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            entry = self._commit(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        if self.persistent:
            self._tidy(keep=folder)
        return entry

    def get_or_put(self, kind: str, key: str, fill: Callable[[Path], None]) -> Entry:
        """The entry if there is a good one, else a new one."""
        return self.get(kind, key) or self.put(kind, key, fill)

    def fingerprint(self, path: str | os.PathLike[str]) -> str:
        """The SHA-256 of a file's content, hashed once per state of the file.

        Device, inode, size and both time stamps stand for the state; a file that changed within the last
        second is not remembered. So a warm start on a large model reads its inode, not its bytes. Raises
        OSError as `open` does.
        """
        with Path(path).open("rb") as file:
            state = _state(os.fstat(file.fileno()))
            place = self.root / "files" / key_of(state)
            known = _read_digest(place) if self.persistent else None
            if known is not None:
                return known
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
        settled = time.time() - max(after.st_mtime, after.st_ctime) >= _SETTLED_SECONDS
        if self.persistent and settled and _state(after) == state:
            self._write_file(place, digest)
        return digest

    def usage(self) -> tuple[Usage, ...]:
        """What each kind of entry takes."""
        found: dict[str, list[int]] = {}
        for entry in self._entries():
            found.setdefault(entry.kind, []).append(entry.bytes)
        return tuple(Usage(kind, len(sizes), sum(sizes)) for kind, sizes in sorted(found.items()))

    def clear(self) -> int:
        """Removes everything; answers how many bytes of entries that were."""
        freed = sum(self._remove(entry.folder) * entry.bytes for entry in self._entries())
        shutil.rmtree(self.root / "files", ignore_errors=True)
        (self.root / _TIDIED).unlink(missing_ok=True)
        self._sweep(_BUSY_SECONDS)
        return freed

    def prune(self, limit_bytes: int, *, keep: Path | None = None) -> int:
        """Removes the entries that were not used for longest until the others take `limit_bytes` at most;
        answers the bytes freed.
        """
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        total = sum(entry.bytes for entry in entries)
        freed = 0
        for entry in entries:
            if total - freed <= limit_bytes:
                break
            if entry.folder != keep and self._remove(entry.folder):
                freed += entry.bytes
        return freed

    def _folder(self, kind: str, key: str) -> Path:
        assert _PLAIN.fullmatch(kind) and kind not in ("files", "tmp"), f"kind {kind!r}"
        assert _PLAIN.fullmatch(key), f"key {key!r}"
        return self.root / kind / key

    def _draft(self) -> Path:
        draft = self.root / "tmp" / secrets.token_hex(16)
        draft.mkdir(mode=0o700, parents=True)
        return draft

    def _commit(self, draft: Path, folder: Path) -> Entry:
        names = tuple(sorted(path.name for path in draft.iterdir() if path.name != _MANIFEST))
        for _ in range(_TRIES):
            try:
                draft.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                theirs = _checked(folder)
                if theirs is not None:
                    return theirs
                self._remove(folder)
            else:
                return Entry(folder, names)
        raise OSError(f"{folder} is written and damaged by others again and again")

    def _remove(self, folder: Path) -> bool:
        """Removes an entry: out of sight at once, then file by file. Files that are mapped stay alive for
        those who map them.
        """
        doomed = self.root / "tmp" / secrets.token_hex(16)
        try:
            doomed.parent.mkdir(mode=0o700, exist_ok=True)
            folder.rename(doomed)
        except FileNotFoundError:
            return False  # another process removed it
        shutil.rmtree(doomed, ignore_errors=True)
        return True

    def _write_file(self, place: Path, text: str) -> None:
        draft = self._draft()
        try:
            (draft / "text").write_text(text, encoding="ascii")
            place.parent.mkdir(mode=0o700, exist_ok=True)
            (draft / "text").replace(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _entries(self) -> Iterator[_Found]:
        for folder in self.root.glob("*/*/"):
            if folder.parent.name in ("files", "tmp"):
                continue
            try:
                used = (folder / _MANIFEST).stat().st_mtime
                size = sum(path.stat().st_size for path in folder.iterdir())
            except OSError:  # it is being removed, or is damaged: the next `get` sees to it
                continue
            yield _Found(folder.parent.name, folder, size, used)

    def _tidy(self, keep: Path) -> None:
        if not self._wants_tidying(keep):
            return
        self._sweep(_STALE_SECONDS)
        self.prune(_LIMIT_BYTES, keep=keep)

    def _wants_tidying(self, new: Path) -> bool:
        """Whether to look at all entries, now that one was made. Notes the time if so."""
        stamp = self.root / _TIDIED
        with contextlib.suppress(OSError):
            if 0 <= time.time() - stamp.stat().st_mtime < _TIDY_SECONDS:
                size = sum(path.stat().st_size for path in new.iterdir())
                if size < _LIMIT_BYTES // _TIDY_SHARE:
                    return False
        with contextlib.suppress(OSError):
            stamp.touch(mode=0o600)
        return True

    def _sweep(self, age: float) -> None:
        """Removes what interrupted processes left in tmp."""
        for draft in (self.root / "tmp").glob("*"):
            with contextlib.suppress(OSError):
                if time.time() - draft.stat().st_mtime >= age:
                    shutil.rmtree(draft, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Found:
    kind: str
    folder: Path
    bytes: int
    used: float


def _write_manifest(folder: Path) -> None:
    """Describes the files of a draft; the first line is the digest of the rest."""
    files = {}
    for path in sorted(folder.iterdir()):
        assert path.is_file() and _PLAIN.fullmatch(path.name), f"{path} is no plain file of an entry"
        path.chmod(0o600)
        files[path.name] = _described(path)
    text = json.dumps({"format": _FORMAT, "files": files})
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / _MANIFEST).write_text(f"{digest}\n{text}", encoding="ascii")


def _described(path: Path) -> dict[str, int | str]:
    """What the manifest says of a file: for large ones the head's digest and mtime stand for the content."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size <= _WHOLE_DIGEST:
            return {"size": status.st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        head = hashlib.sha256(file.read(_HEAD)).hexdigest()
        return {"size": status.st_size, "head": head, "mtime_ns": status.st_mtime_ns}


def _checked(folder: Path) -> Entry | None:
    """The entry in a folder if its manifest is whole and its files are what the manifest says."""
    try:
        digest, _, text = (folder / _MANIFEST).read_text(encoding="ascii").partition("\n")
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            return None
        manifest = json.loads(text)
        if manifest["format"] != _FORMAT:
            return None
        if any(_described(folder / name) != expected for name, expected in manifest["files"].items()):
            return None
    except (OSError, ValueError):
        return None
    return Entry(folder, tuple(manifest["files"]))


def _state(status: os.stat_result) -> str:
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _read_digest(place: Path) -> str | None:
    try:
        text = place.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _platform_folder() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fusile"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "fusile" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusile"


def _own_folder(root: Path) -> Path:
    """The folder, made with mode 0700 if need be. Refuses one that somebody else owns or may write to: code
    is loaded from it.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(
            f"The cache folder {root} is a file", todo="Set FUSILE_CACHE_DIR to a folder"
        ) from None
    if sys.platform == "win32":
        return root
    status = root.stat()
    if status.st_uid != os.geteuid():
        raise UsageError(
            f"The cache folder {root} belongs to another user",
            why="compiled code is loaded from it",
            todo="Set FUSILE_CACHE_DIR to a folder of your own, or FUSILE_CACHE=0",
        )
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise UsageError(
            f"The cache folder {root} may be written to by other users",
            why="compiled code is loaded from it",
            todo=f"Run chmod 700 {root}, or set FUSILE_CACHE_DIR to another folder",
        )
    if not os.access(root, os.W_OK | os.X_OK):
        raise PermissionError(f"{root} is not writable")
    return root


@functools.cache
def _private_cache(process: int, why: str) -> Cache:
    """A cache that remembers nothing and goes with the process; a forked child has one of its own."""
    root = Path(tempfile.mkdtemp(prefix="fusile-"))
    cache = Cache(root, persistent=False, why=why)
    weakref.finalize(cache, _remove_of, process, root)
    return cache


def _remove_of(process: int, root: Path) -> None:
    if os.getpid() == process:
        shutil.rmtree(root, ignore_errors=True)


@functools.cache
def _warned_private_cache(process: int, reason: str) -> Cache:
    warnings.warn(
        f"{reason}, so every start compiles anew. Set FUSILE_CACHE_DIR to a folder of your own.",
        stacklevel=3,
    )
    return _private_cache(process, reason)
