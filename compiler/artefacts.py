"""What was compiled before: the cache's entries for native modules, found without reading a model.

    model/<key>    which code and which weights a model's file has come to
                   key: the file's content, options, target, fusile itself
    code/<key>     the image, the interface, and which raw weights go where
                   key: the model's structure, options, target, fusile itself
    objects/<key>  what a .so file is linked from, under the key of the code
    weights/<key>  packed weights; key: the code, and the content that they came from

This file imports the standard library, numpy and the runtime. A session that finds everything here loads
neither the compiler nor any library that reads models.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusile import target as targets
from fusile.backends.native.module import Face, Instance, Memory, NativeModule, Saver, image_code
from fusile.light import import_onnx_ir
from fusile.options import Options
from fusile.report import Progress
from fusile.runtime import abi
from fusile.runtime.cache import Cache, key_of, open_cache
from fusile.runtime.image import load_image
from fusile.runtime.module import ModelInfo, Module
from fusile.target import TargetSpec

PACKED = "packed.weights"
_SMALL = 8 << 10
_IMAGE, _CODE, _STEPS, _CONSTANTS, _RECORD = (
    "code.image",
    "code.json",
    "steps.json",
    "constants.bin",
    "model.json",
)


def compile(source: Any, options: Options, progress: Progress) -> Module:
    """A module of the model: one that was compiled before, or a new one. See `fusile.compile`."""
    source = plain(source)
    found = find(source, options)
    if found is not None:
        return found
    if options.target == "native":
        from fusile.runtime.workers import start_workers

        start_workers(1 if _is_small(source) else None)  # they come up while the compiler is imported
    import_onnx_ir()

    from fusile import driver

    return driver.build(source, options, progress)


def find(source: Any, options: Options) -> Module | None:
    """The module of a model that was compiled before, or None. Reads nothing of the model but the state of
    its file, and its content once, to know it again.
    """
    target = target_of(options)
    if options.target != "native" or options.dump_ir is not None or not runs_here(target):
        return None
    shelf = open_shelf(source, options, target)
    record = None if shelf is None else shelf.record()
    if shelf is None or record is None:
        return None
    code = find_code(shelf.cache, record["code"])
    weights = shelf.cache.get("weights", record["weights"]) if record["weights"] else None
    if code is None or (weights is None and record["weights"]):
        return None
    packed = None if weights is None else weights.path(PACKED)
    return open_module(code, packed, options, shelf.cache, Linked(code, packed, target, source, options))


def plain(source: Any) -> Any:
    """A ModelProto as bytes, everything else as it is. One that is too large for a message stays for the
    reader.
    """
    if hasattr(source, "SerializeToString"):
        try:
            return bytes(source.SerializeToString())
        except Exception:  # protobuf's errors share no base class; the reader says what is wrong
            return source
    return bytes(source) if isinstance(source, (bytearray, memoryview)) else source


def _is_small(source: Any) -> bool:
    """Whether a model is of the size of a few kernels, which one worker compiles sooner than two start."""
    if isinstance(source, bytes):
        return len(source) < _SMALL
    if isinstance(source, (str, os.PathLike)):
        try:
            return os.stat(source).st_size < _SMALL
        except (OSError, ValueError):
            return True  # the reader says what is wrong
    return False


def target_of(options: Options) -> TargetSpec:
    """The machine that options ask for."""
    return targets.for_cpu(options.cpu, options.target_triple)


def runs_here(target: TargetSpec) -> bool:
    """Whether this machine runs code for a target."""
    here = targets.host()
    return (target.arch, target.system) == (here.arch, here.system) and here.has(*target.features)


# ---- a model's place ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where a model's entries are. `setup` is the key of options, target and fusile, `content` the digest
    of the model's file, `replaced` that of the weights that replace its own; `folder` is where files beside
    it are.
    """

    cache: Cache
    setup: str
    content: str
    replaced: str
    folder: Path | None
    state: tuple[int, ...]

    def record(self) -> dict[str, Any] | None:
        """Under which keys the model's code and weights are, where it was compiled before."""
        found = self._read(self._key())
        if found is None or "external" not in found:
            return found
        files = self.beside(found["external"])
        return None if files is None else self._read(self._key(*files.values()))

    def keep(self, code: str, weights: str | None, files: Mapping[str, str]) -> None:
        """Note the keys. `files` are the digests of the files beside the model, by their names in it."""
        if files:
            self._write(self._key(), {"external": list(files)})
        self._write(self._key(*files.values()), {"code": code, "weights": weights})

    def code_keys(self, structure: str, files: Mapping[str, str]) -> tuple[str, str]:
        """The keys of code that serves all weights of a structure, and of code that serves these alone."""
        shared = key_of("code", self.setup, structure)
        return shared, key_of("code", shared, self.content, self.replaced, *files.values())

    def weights_key(self, code: str, files: Mapping[str, str]) -> str:
        """The key of packed weights."""
        return key_of("weights", code, self.content, self.replaced, *files.values())

    def beside(self, names: Sequence[str]) -> dict[str, str] | None:
        """The digests of files beside the model by name, or None where one cannot be read."""
        found = {name: digest_of(self.folder / name, self.cache) for name in names} if self.folder else {}
        whole = {name: digest for name, digest in found.items() if digest is not None}
        return whole if len(whole) == len(names) else None

    def _key(self, *files: str) -> str:
        return key_of("model", self.setup, self.content, self.replaced, *files)

    def _read(self, key: str) -> dict[str, Any] | None:
        entry = self.cache.get("model", key)
        return None if entry is None else json.loads(entry.path(_RECORD).read_text(encoding="ascii"))

    def _write(self, key: str, record: Mapping[str, Any]) -> None:
        text = json.dumps(record)
        self.cache.put("model", key, lambda folder: _write_text(folder / _RECORD, text))


def open_shelf(source: Any, options: Options, target: TargetSpec) -> Shelf | None:
    """The place of a model, or None: the cache is off, or there is no file and no bytes to know it by."""
    cache = open_cache()
    if not cache.persistent:
        return None
    folder: Path | None = None
    state: tuple[int, ...] = ()
    if isinstance(source, bytes):
        content: str | None = hashlib.sha256(source).hexdigest()
    elif isinstance(source, (str, os.PathLike)):
        folder, state = Path(source).parent, state_of(source)
        content = digest_of(Path(source), cache)
    else:
        return None
    replaced: str | None = ""
    if options.weights is not None:
        replaced = digest_of(Path(options.weights), cache)
    if content is None or replaced is None:
        return None
    setup = key_of(OWN_KEY, options.key(), str(options.seed), target.key)
    return Shelf(cache, setup, content, replaced, folder, state)


def state_of(source: Any) -> tuple[int, ...]:
    """What changes when a model's file does; nothing for bytes."""
    if not isinstance(source, (str, os.PathLike)):
        return ()
    try:
        status = os.stat(source)
    except (OSError, ValueError):
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def digest_of(path: Path, cache: Cache) -> str | None:
    """The digest of a plain file's content, or None where it cannot be had."""
    try:
        return cache.fingerprint(path) if stat.S_ISREG(os.stat(path).st_mode) else None
    except (OSError, ValueError):
        return None


def _files(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            if entry.name != "__pycache__":
                yield from _files(entry.path)
        elif entry.name.endswith((".py", ".ll")):
            yield entry.path, entry.stat()


def _own_key() -> str:
    digest = hashlib.sha256()
    kernels = importlib.util.find_spec("fusile.kernels")
    roots = [os.path.dirname(__file__), *(kernels.submodule_search_locations or () if kernels else ())]
    for root in roots:
        for path, status in _files(root):
            digest.update(f"{path[len(root) :]}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


OWN_KEY = _own_key()
"""What stands for fusile itself: names, sizes and times of its files, so that a changed compiler never
answers with code of the one before. Taken before the compiler is imported: a change from then on must not
count as its own.
"""


# ---- code --------------------------------------------------------------------------------------------

RawName = str | tuple[int, int]
"""Where the raw bytes of a packing step's tensor are: an initialiser's name, or offset and size among
constants.
"""


@dataclass(frozen=True, slots=True)
class Code:
    """Compiled code with what is known of it. `key` and `folder` say where the cache has it, `image` is its
    file or its bytes.
    """

    image: Path | bytes
    interface: abi.PlanInterface
    face: Face
    key: str = ""
    folder: Path | None = None

    def steps(self) -> tuple[list[list[RawName]], bytes]:
        """Which raw tensors each packing step takes, and the constants among them. For code out of the
        cache.
        """
        assert self.folder is not None
        steps = json.loads((self.folder / _STEPS).read_text(encoding="ascii"))
        found = [[tuple(raw) if isinstance(raw, list) else raw for raw in step] for step in steps]
        return found, (self.folder / _CONSTANTS).read_bytes()


def find_code(cache: Cache, key: str) -> Code | None:
    """Code that the cache holds."""
    entry = cache.get("code", key)
    if entry is None:
        return None
    told = json.loads(entry.path(_CODE).read_text(encoding="ascii"))
    face = Face(_ports(told["inputs"]), _ports(told["outputs"]), ModelInfo(**told["info"]))
    return Code(entry.path(_IMAGE), _interface(told["interface"]), face, key, entry.folder)


def keep_code(
    cache: Cache, key: str, code: Code, objects: Sequence[tuple[str, bytes]],
    steps: Sequence[Sequence[RawName]], constants: bytes,
) -> Code:  # fmt: skip
    """Put code into the cache, and what a .so file is linked from beside it."""
    image = code.image
    assert isinstance(image, bytes)
    told = {
        "interface": asdict(code.interface) | {"layout_key": code.interface.layout_key.hex()},
        "inputs": [asdict(port) for port in code.face.inputs],
        "outputs": [asdict(port) for port in code.face.outputs],
        "info": asdict(code.face.info),
    }

    def fill(folder: Path) -> None:
        (folder / _IMAGE).write_bytes(image)
        (folder / _CONSTANTS).write_bytes(constants)
        _write_text(folder / _CODE, json.dumps(told))
        _write_text(folder / _STEPS, json.dumps(steps))

    def fill_objects(folder: Path) -> None:
        for number, (_, data) in enumerate(objects):
            (folder / f"{number}.o").write_bytes(data)
        _write_text(folder / "names.json", json.dumps([name for name, _ in objects]))

    cache.put("objects", key, fill_objects)
    entry = cache.put("code", key, fill)
    return Code(entry.path(_IMAGE), code.interface, code.face, key, entry.folder)


def _ports(told: Sequence[Mapping[str, Any]]) -> tuple[abi.Port, ...]:
    return tuple(abi.Port(port["name"], port["dtype"], tuple(port["dims"])) for port in told)


def _interface(told: Mapping[str, Any]) -> abi.PlanInterface:
    lists = {name: tuple(told[name]) for name in ("symbols", "sites", "reasons")}
    ports = {name: _ports(told[name]) for name in ("inputs", "outputs")}
    return abi.PlanInterface(**{**told, **lists, **ports, "layout_key": bytes.fromhex(told["layout_key"])})


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="ascii")


# ---- modules -----------------------------------------------------------------------------------------


def open_module(
    code: Code, weights: Path | Memory | None, options: Options, cache: Cache, saver: Saver
) -> NativeModule:
    """A module of compiled code and packed weights. With more than one thread it works on the process's
    pool.
    """
    threads = options.threads or targets.available_cores()
    pool = None
    if threads > 1:
        from fusile.runtime.pool import shared_pool

        pool = shared_pool(cache).address
    image = load_image(code.image, verify=False)  # the cache has checked it, or it was made just now
    return NativeModule(Instance(image_code(image), weights, pool), code.interface, code.face, threads, saver)


@dataclass(frozen=True, slots=True)
class Linked:
    """Writes a module to files: linked from `objects`, or what the cache has, or what is compiled again."""

    code: Code
    weights: Path | Memory | None
    target: TargetSpec
    source: Any
    options: Options
    objects: tuple[tuple[str, bytes], ...] = field(default=())

    def __post_init__(self) -> None:
        if not isinstance(self.source, (str, os.PathLike)):  # a module shall not keep a whole model in memory
            object.__setattr__(self, "source", None)

    def __call__(
        self, path: str | os.PathLike[str], *, embed: bool = True, linker: str | None = None
    ) -> tuple[Path, ...]:
        from fusile.backends.native import files

        objects = self.objects or self._cached() or self._again()
        return files.write(
            Path(path), objects, self.code.interface, self.target, self.weights, embed=embed, linker=linker,
            threads=self.options.threads,
        )  # fmt: skip

    def _cached(self) -> tuple[tuple[str, bytes], ...]:
        entry = open_cache().get("objects", self.code.key) if self.code.key else None
        if entry is None:
            return ()
        names = json.loads(entry.path("names.json").read_text(encoding="ascii"))
        return tuple((name, entry.path(f"{n}.o").read_bytes()) for n, name in enumerate(names))

    def _again(self) -> tuple[tuple[str, bytes], ...]:
        from fusile import driver

        return driver.objects(self.source, self.options, self.code.interface)
