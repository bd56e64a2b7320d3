"""The cache: whole or not at all, checked, private, and safe for processes that race."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fusile.errors import UsageError
from fusile.runtime import cache as caches
from fusile.runtime.cache import Cache, Entry, key_of, open_cache

KEY = key_of("some", b"key")


@pytest.fixture
def store(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "root")


def writing(**files: bytes) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name, data in files.items():
            (folder / name).write_bytes(data)

    return fill


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def age(entry: Entry, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(entry.folder / "manifest.json", (then, then))


# ---- entries


def test_what_is_put_is_got(store: Cache) -> None:
    assert store.get("code", KEY) is None
    made = store.put("code", KEY, writing(image=b"code", notes=b"text"))
    found = store.get("code", KEY)
    assert found == made
    assert found is not None and found.files == ("image", "notes")
    assert found.path("image").read_bytes() == b"code"
    with pytest.raises(KeyError):
        found.path("manifest.json")
    assert store.get("weights", KEY) is None


def test_keys_depend_on_where_parts_end() -> None:
    assert key_of("ab", "c") != key_of("a", "bc") != key_of("abc")
    assert key_of("a", b"b") == key_of(b"a", "b")


def test_a_filling_that_fails_leaves_nothing(store: Cache) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        store.put("code", KEY, fill)
    assert store.get("code", KEY) is None
    assert everything(store.root) == set()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "image").write_bytes(b"c0de"),
        lambda folder: (folder / "image").write_bytes(b"code and more"),
        lambda folder: (folder / "image").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:-3]),
    ],
)
def test_damaged_entries_go_and_are_made_again(store: Cache, damage: Callable[[Path], object]) -> None:
    damage(store.put("code", KEY, writing(image=b"code")).folder)
    assert store.get("code", KEY) is None
    assert everything(store.root) == {"tidied"}
    again = store.get_or_put("code", KEY, writing(image=b"code"))
    assert again.path("image").read_bytes() == b"code"
    assert store.get("code", KEY) is not None


def test_a_damaged_entry_in_the_way_is_replaced(store: Cache) -> None:
    made = store.put("code", KEY, writing(image=b"code"))
    made.path("image").write_bytes(b"junk")
    again = store.put("code", KEY, writing(image=b"code"))
    assert again.path("image").read_bytes() == b"code"


def test_entries_of_another_format_are_made_again(store: Cache) -> None:
    made = store.put("code", KEY, writing(image=b"code"))
    text = json.dumps({"format": 99, "files": {}})
    digest = hashlib.sha256(text.encode()).hexdigest()
    (made.folder / "manifest.json").write_text(f"{digest}\n{text}")
    assert store.get("code", KEY) is None


def test_large_files_are_known_by_head_size_and_time(store: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "_WHOLE_DIGEST", 10_000)

    def rewritten(change: Callable[[bytearray], None], keep_time: bool) -> Entry | None:
        path = store.get_or_put("weights", KEY, writing(weights=bytes(20_000))).path("weights")
        status, data = path.stat(), bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)
        if keep_time:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return store.get("weights", KEY)

    assert rewritten(lambda data: None, keep_time=True) is not None
    assert rewritten(lambda data: None, keep_time=False) is None
    assert rewritten(lambda data: data.__setitem__(7, 1), keep_time=True) is None
    assert rewritten(lambda data: data.extend(b"x"), keep_time=True) is None


@pytest.mark.parametrize("key", ["", "..", "a/b", "x" * 200, ".hidden"])
def test_keys_are_plain_names(store: Cache, key: str) -> None:
    with pytest.raises(AssertionError):
        store.get("code", key)
    with pytest.raises(AssertionError):
        store.get(key, KEY)


def test_the_other_process_was_quicker(store: Cache) -> None:
    def fill(folder: Path) -> None:
        Cache(store.root).put("code", KEY, writing(image=b"theirs"))
        (folder / "image").write_bytes(b"ours")

    assert store.put("code", KEY, fill).path("image").read_bytes() == b"theirs"
    assert not list((store.root / "tmp").iterdir())


RACE = """
    import sys
    from pathlib import Path
    from fusile.runtime.cache import Cache
    cache, done = Cache(Path(sys.argv[1])), 0
    def fill(folder):
        for name in ("a", "b", "c"):
            (folder / name).write_bytes(name.encode() * 50_000)
    for turn in range(150):
        key = f"k{turn % 5}"
        entry = cache.get_or_put("code", key, fill)
        try:
            data = [entry.path(name).read_bytes() for name in "abc"]
        except FileNotFoundError:  # the other process removed it after we looked
            continue
        assert data == [name.encode() * 50_000 for name in "abc"]
        done += 1
        if turn % 7 == 0:
            cache.prune(150_000)
        if turn % 31 == 0:
            cache.clear()
    print(done)
"""


def test_processes_that_race_never_see_half_an_entry(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(RACE), str(tmp_path / "root")]
    racers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for racer in racers:
        out, errors = racer.communicate(timeout=120)
        assert racer.returncode == 0, errors
        assert int(out) > 50


# ---- keeping house


def test_usage_prune_and_clear(store: Cache) -> None:
    entries = [store.put("code", f"k{i}", writing(image=bytes(10_000))) for i in range(4)]
    store.put("weights", "w", writing(weights=bytes(50_000)))
    for i, entry in enumerate(entries):
        age(entry, 1000 - i)
    store.get("code", "k0")  # used now, so the last to go
    usage = {use.kind: (use.entries, use.bytes) for use in store.usage()}
    assert usage["code"][0] == 4 and usage["weights"][0] == 1
    assert 40_000 < usage["code"][1] < 42_000
    freed = store.prune(usage["weights"][1] + 25_000)
    assert 20_000 < freed < 22_000
    assert [store.get("code", f"k{i}") is not None for i in range(4)] == [True, False, False, True]
    assert store.clear() > 70_000
    assert store.usage() == ()
    assert everything(store.root) == set()


def test_what_was_just_written_is_not_pruned(store: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "_LIMIT_BYTES", 5_000)
    store.put("code", "old", writing(image=bytes(4_000)))
    entry = store.put("code", "new", writing(image=bytes(10_000)))
    assert entry.path("image").exists()
    assert store.get("code", "old") is None


def test_small_entries_do_not_each_look_at_all_others(store: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Cache] = []
    monkeypatch.setattr(Cache, "prune", lambda self, limit, keep: looks.append(self))
    for number in range(5):
        store.put("code", f"k{number}", writing(image=b"code"))
    assert len(looks) == 1
    os.utime(store.root / "tidied", (time.time() - 3600,) * 2)
    store.put("code", "later", writing(image=b"code"))
    assert len(looks) == 2


def test_leftovers_of_interrupted_processes_go_after_a_day(
    store: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_TIDY_SECONDS", 0.0)
    store.put("code", KEY, writing(image=b"code"))
    for name, seconds in (("fresh", 60), ("stale", 2 * 24 * 3600)):
        left = store.root / "tmp" / name
        left.mkdir()
        os.utime(left, (time.time() - seconds,) * 2)
    store.put("code", "other", writing(image=b"code"))
    assert [path.name for path in (store.root / "tmp").iterdir()] == ["fresh"]


# ---- fingerprints


def test_fingerprints_are_content_and_hashed_once(
    store: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_SETTLED_SECONDS", 0.0)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"model")
    expected = hashlib.sha256(b"model").hexdigest()
    assert store.fingerprint(path) == expected
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)  # a second look must not read the file
        assert store.fingerprint(path) == expected
        assert Cache(store.root).fingerprint(str(path)) == expected
    (tmp_path / "link.onnx").symlink_to(path)
    assert store.fingerprint(tmp_path / "link.onnx") == expected


@pytest.mark.parametrize("change", ["content", "touch", "replace"])
def test_changed_files_are_hashed_again(
    store: Cache, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_SETTLED_SECONDS", 0.0)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"model")
    store.fingerprint(path)
    status = path.stat()
    time.sleep(0.02)
    if change == "replace":
        (tmp_path / "new").write_bytes(b"lemod")
        os.utime(tmp_path / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
        (tmp_path / "new").replace(path)
    elif change == "content":
        path.write_bytes(b"lemod")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # the mtime lies, the ctime does not
    else:
        path.touch()
    assert store.fingerprint(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_that_changed_just_now_are_not_remembered(store: Cache, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"model")
    store.fingerprint(path)
    assert not (store.root / "files").exists()


def test_a_damaged_memory_is_not_believed(
    store: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_SETTLED_SECONDS", 0.0)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"model")
    expected = store.fingerprint(path)
    (remembered,) = (store.root / "files").iterdir()
    remembered.write_text("nonsense")
    assert store.fingerprint(path) == expected


def test_a_file_that_is_not_there_is_the_callers_affair(store: Cache, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.fingerprint(tmp_path / "absent")


# ---- where it lies


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_environment_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSILE_CACHE", raising=False)
    monkeypatch.setenv("FUSILE_CACHE_DIR", str(tmp_path / "a" / "b"))
    cache = open_cache()
    assert cache.root == tmp_path / "a" / "b"
    assert cache.persistent
    entry = cache.put("code", KEY, writing(image=b"code"))
    assert [mode(path) for path in (cache.root, entry.folder.parent, entry.folder)] == [0o700] * 3
    assert mode(entry.path("image")) == 0o600
    assert open_cache().get("code", KEY) == entry


def test_the_default_is_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FUSILE_CACHE", "FUSILE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert open_cache().root == tmp_path / "fusile"


def test_folders_that_others_may_write_to_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUSILE_CACHE", raising=False)
    monkeypatch.setenv("FUSILE_CACHE_DIR", str(tmp_path))
    tmp_path.chmod(0o777)
    with pytest.raises(UsageError, match=r"written to by other users.*chmod 700"):
        open_cache()
    tmp_path.chmod(0o755)
    assert open_cache().root == tmp_path


def test_folders_of_other_users_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSILE_CACHE", raising=False)
    monkeypatch.setenv("FUSILE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(UsageError, match="belongs to another user"):
        open_cache()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSILE_CACHE", raising=False)
    monkeypatch.setenv("FUSILE_CACHE_DIR", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        open_cache()


def test_a_chosen_folder_that_cannot_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUSILE_CACHE", raising=False)
    monkeypatch.setenv("FUSILE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cache cannot be used: Not a directory.*FUSILE_CACHE=0"):
        open_cache()


def test_turned_off_it_remembers_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FUSILE_CACHE", "0")
    monkeypatch.setenv("FUSILE_CACHE_DIR", str(tmp_path / "never"))
    cache = open_cache()
    assert not cache.persistent
    first = cache.put("code", KEY, writing(image=b"one"))
    assert cache.get("code", KEY) is None
    second = cache.get_or_put("code", KEY, writing(image=b"two"))
    assert first.path("image").read_bytes() == b"one"  # who holds an entry keeps it
    assert second.path("image").read_bytes() == b"two"
    assert not (tmp_path / "never").exists()


def test_turned_off_its_folder_goes_with_the_process_and_not_with_its_children(tmp_path: Path) -> None:
    script = """
    import os
    from fusile.runtime.cache import open_cache
    cache = open_cache()
    entry = cache.put("code", "k", lambda folder: (folder / "image").write_bytes(b"code"))
    if os.fork() == 0:
        raise SystemExit
    os.wait()
    assert entry.path("image").exists()
    print(cache.root)
    """
    environment = os.environ | {"FUSILE_CACHE": "0", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_cannot_be_written_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FUSILE_CACHE", "FUSILE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="FUSILE_CACHE_DIR") as caught:
        first = open_cache()
        assert open_cache() is first
    assert len(caught) == 1
    assert not first.persistent
