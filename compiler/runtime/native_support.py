"""The support code of native modules: LLVM IR texts out of `support/*.ll`, put together for a target."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

from fusile.errors import UnsupportedError
from fusile.runtime import abi
from fusile.runtime.cache import Cache, key_of
from fusile.target import AARCH64, LINUX, X86_64, TargetSpec

_FOLDER = Path(__file__).parent / "support"
_ARCHITECTURES = {X86_64: "arch_x86_64", AARCH64: "arch_aarch64"}
DEFAULT_PREFIX = "api"


def support_text(target: TargetSpec) -> str:
    """Pool, memory, errors, floating point state: what kernels, plan and interface call. One module, the same
    for all models.

    Raises UnsupportedError for an operating system without support code.
    """
    if target.system != LINUX:
        raise UnsupportedError(
            (), f"Native modules are made for Linux, not for {target.system}", todo='Use target="numba" there'
        )
    amx = "amx_linux" if target.arch == X86_64 else "amx_none"
    arch = _ARCHITECTURES[target.arch]
    return _module("support", "layout", "os_linux", arch, amx, "errors", "memory", "pool", "parallel")


def interface_text(prefix: str = DEFAULT_PREFIX, *, embedded_weights: bool = False) -> str:
    """The C interface over a plan (see abi.py). `prefix` names its functions: an identifier, as
    `escape.identifier` makes them.

    With `embedded_weights` the module takes its weights from the symbol @fusile_weights, which another object
    must define.
    """
    weights = "weights_embedded" if embedded_weights else "weights_none"
    text = _module("interface", "layout", "interface", "arguments", "outputs", "run", "weights", weights)
    return re.sub(r"@api_", f"@{prefix}_", text)


def python_import_text(name: str) -> str:
    """What makes a library importable from Python under its own name: it hands over to the wrapper beside it.
    `name` is an ASCII identifier.
    """
    text = _module("python_import", "python_import")
    return text.replace("NAME_BYTES", str(len(name) + 1)).replace("NAME", name)


def support_objects(target: TargetSpec, cache: Cache) -> list[tuple[str, bytes]]:
    """Support code and interface as named objects, ready to be linked with the objects of a plan to an in-
    process image.
    """

    def fill(folder: Path) -> None:
        from fusile.runtime.workers import compile_objects  # a warm start needs neither workers nor linker

        objects = compile_objects([support_text(target), interface_text()], target)
        for name, data in zip(("support", "interface"), objects):
            (folder / f"{name}.o").write_bytes(data)

    entry = cache.get_or_put("support", key_of("objects", version_key(), target.key), fill)
    return [(name, entry.path(f"{name}.o").read_bytes()) for name in ("support", "interface")]


def support_image(target: TargetSpec, cache: Cache) -> Path:
    """The image file of the support code alone, which the thread pool of the process runs."""

    def fill(folder: Path) -> None:
        from fusile.runtime.link import link_image

        objects = support_objects(target, cache)
        (folder / "support.image").write_bytes(link_image([pair for pair in objects if pair[0] == "support"]))

    entry = cache.get_or_put("support", key_of("image", version_key(), target.key), fill)
    return entry.path("support.image")


@functools.cache
def version_key() -> str:
    """A digest of all support texts and the ABI's version: what compiled support code depends on besides the
    target.
    """
    digest = hashlib.sha256(str(abi.ABI_VERSION).encode())
    for path in sorted(_FOLDER.glob("*.ll")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _module(name: str, *parts: str) -> str:
    texts = [(_FOLDER / f"{part}.ll").read_text(encoding="utf-8") for part in parts]
    return "\n".join([f'source_filename = "{name}"', *texts])
