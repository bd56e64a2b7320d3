"""Writing a native module to files: model.so, model.h, model.py, and its weights inside the library or beside
it.

Linking needs a linker: the system's C compiler, one that the caller names, or the ziglang package. The files
are made in a folder of their own and moved into place together at the end, so a failure leaves nothing half
written.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jinja2

from fusile.errors import FusileError, UsageError
from fusile.escape import comment_text, identifier, python_string
from fusile.runtime import abi, elf
from fusile.runtime.module import TENSOR_NAMES
from fusile.runtime.native_support import interface_text, python_import_text, support_text
from fusile.runtime.weights_file import HEAD_BYTES, check_weights_file
from fusile.runtime.workers import compile_objects
from fusile.target import LINUX, X86_64, TargetSpec, host

_ROW_WIDTH = 83  # what is left of a formatter's 88 columns
_LARGEST_EMBEDDED = 1 << 31  # small code reaches no further
_MACHINES = {X86_64: elf.X86_64}
_FUNCTIONS = (
    "abi_version", "create", "destroy", "describe", "context_create", "context_destroy", "shapes",
    "workspace", "run", "release", "last_error", "prepare",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LibraryFiles:
    """What was written: library, header, Python wrapper, and a file of weights where there is one."""

    library: Path
    header: Path
    wrapper: Path
    weights: Path | None


@dataclass(frozen=True, slots=True)
class Linker:
    """A command that links; `driver` where it takes a C compiler's options, else it is a bare ld."""

    command: tuple[str, ...]
    driver: bool


def write_shared_library(
    path: str | os.PathLike[str],
    objects: Sequence[tuple[str, bytes]],
    plan: abi.PlanInterface,
    target: TargetSpec,
    *,
    weights: Path | None = None,
    embed: bool = True,
    linker: str | None = None,
    threads: int | None = None,
) -> LibraryFiles:
    """Writes `path` (a .so), the header and the wrapper beside it.

    `objects` are the named relocatable objects of kernels and plan; support code and interface are added
    here. `weights` is a weights file (weights_file.py) and needed where the plan has any; with `embed` it
    becomes part of the library, else it is copied to `<stem>.weights` beside it. `linker` is a program to
    link with instead of the one that is found. `threads` is how many the wrapper uses where its caller does
    not say (None: one per processor). Functions are called `<stem>_run` and so on, with the file's
    stem made an identifier. Raises FusileError where nothing can link, or the linker fails.
    """
    path = Path(path).absolute()
    if not path.parent.is_dir():
        raise UsageError(f"The folder {path.parent} does not exist", todo="Make it, or choose another -o")
    if plan.weights_bytes:
        if weights is None:
            raise UsageError(f"{plan.name!r} needs its packed weights to be written to a library")
        check_weights_file(weights, plan.weights_bytes, plan.layout_key)
    tool = find_linker(target, linker)
    inside = bool(embed and plan.weights_bytes)
    if inside and plan.weights_bytes >= _LARGEST_EMBEDDED:
        raise UsageError(
            "Weights of 2 GiB and more cannot lie in a library", todo="Write them to a file beside it"
        )
    prefix = module_prefix(path)
    files = LibraryFiles(
        path,
        path.with_suffix(".h"),
        path.with_suffix(".py"),
        path.with_suffix(".weights") if plan.weights_bytes and not inside else None,
    )
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".fusile-", dir=path.parent)
    except OSError as error:  # its text names a file that nobody asked for
        raise UsageError(
            f"The folder {str(path.parent)!r} cannot be written to",
            why=error.strerror,
            todo="Choose another one",
        ) from error
    with scratch as name:
        draft = Path(name)
        texts = [support_text(target), interface_text(prefix, embedded_weights=inside)]
        exports = [f"{prefix}_{function}" for function in _FUNCTIONS]
        if path.stem.isidentifier() and path.stem.isascii():
            texts.append(python_import_text(path.stem))
            exports.append(f"PyInit_{path.stem}")
        support = compile_objects(texts, target)
        inputs = _write_objects(
            draft, [*(data for _, data in objects), *support], target, weights if inside else None
        )
        _link(tool, draft, inputs, path.name, exports)
        beside = _Texts(plan, prefix, path, files.weights, threads)
        (draft / files.header.name).write_text(beside.header(), encoding="ascii")
        (draft / files.wrapper.name).write_text(beside.wrapper(), encoding="ascii")
        if files.weights is not None and weights is not None:
            shutil.copyfile(weights, draft / files.weights.name)
        for made in (
            files.weights,
            files.header,
            files.wrapper,
            files.library,
        ):  # the library last: it needs the others
            if made is not None:
                (draft / made.name).replace(made)
    return files


def module_prefix(path: Path) -> str:
    """What the functions of a library begin with: its stem as an identifier in lower case."""
    return identifier(re.sub(r"\.so.*$", "", path.name).lower(), set())


def find_linker(target: TargetSpec, chosen: str | None = None) -> Linker:
    """The linker to use for a target: the chosen one, else a C compiler for it, else the ziglang package.

    Raises UsageError where there is none, saying what to do.
    """
    if target.system != LINUX:
        raise UsageError(f"Libraries are written for Linux, not for {target.system}")
    if chosen is not None:
        found = shutil.which(chosen)
        if found is None:
            raise UsageError(f"The linker {chosen!r} is not there, or cannot be run")
        stem = Path(found).name
        driver = not re.fullmatch(r"(.*-)?(ld|ld\.\w+|lld|mold|wild)(-[\d.]+)?", stem)
        return Linker((found, "cc") if stem == "zig" else (found,), driver)
    cross = target.arch != host().arch
    names = [f"{target.arch}-linux-gnu-gcc"] if cross else ["cc", "gcc", "clang"]
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return Linker((found,), True)
    if importlib.util.find_spec("ziglang") is not None:
        triple = f"{target.arch}-linux-gnu"
        return Linker((sys.executable, "-m", "ziglang", "cc", "-target", triple), True)
    raise UsageError(
        "Writing a .so needs a linker, and none was found",
        why=f"looked for {', '.join(names)} and the ziglang package",
        todo="Install a C compiler, or run pip install 'fusile[link]', or name one with --linker",
    )


def _write_objects(
    draft: Path, objects: Sequence[bytes], target: TargetSpec, weights: Path | None
) -> list[str]:
    """Writes all objects into the draft folder; answers their file names."""
    names: list[str] = []
    for data in objects:
        names.append(f"{len(names)}.o")
        (draft / names[-1]).write_bytes(data)
    if weights is not None:
        names.append("weights.o")
        size = weights.stat().st_size - HEAD_BYTES
        head, tail = elf.data_object(_MACHINES.get(target.arch, elf.AARCH64), "fusile_weights", size)
        with (draft / "weights.o").open("wb") as out, weights.open("rb") as packed:
            out.write(head)
            packed.seek(HEAD_BYTES)
            shutil.copyfileobj(packed, out, 1 << 20)
            out.write(tail)
    return names


def _link(linker: Linker, draft: Path, inputs: Sequence[str], name: str, exports: Sequence[str]) -> None:
    """Links in the draft folder, with paths relative to it, so that no path of the machine gets into the
    library.
    """
    listed = " ".join(f"{export};" for export in exports)
    (draft / "exports.map").write_text(f"{{ global: {listed} local: *; }};\n", encoding="ascii")
    options = [
        "-soname",
        name,
        "--version-script=exports.map",
        "-z",
        "noexecstack",
        "-z",
        "now",
        "--build-id=none",
    ]
    if linker.driver:  # -Xlinker, since -Wl would split a name at its commas
        driven = [*options, "--as-needed", "--no-undefined"]
        options = [
            "-nostartfiles",
            *(word for each in driven for word in ("-Xlinker", each)),
            "-lm",
            "-lpthread",
        ]
    (draft / "inputs.txt").write_text("".join(f"{each}\n" for each in inputs), encoding="ascii")
    command = [*linker.command, "-shared", "-o", "library.out", "@inputs.txt", *options]
    environment = os.environ | {"ZIG_LOCAL_CACHE_DIR": str(draft / "zig"), "LC_ALL": "C"}
    done = subprocess.run(
        command, cwd=draft, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise FusileError(
            f"{linker.command[0]} could not link the module",
            why=(done.stderr or done.stdout).strip()[-2000:] or f"exit code {done.returncode}",
            todo="Name another linker with --linker",
        )
    library = draft / "library.out"
    library.chmod(0o755)
    library.rename(draft / name)


@dataclass(frozen=True, slots=True)
class _Texts:
    """What goes into header and wrapper; names of the model pass through escape.py here."""

    plan: abi.PlanInterface
    prefix: str
    path: Path
    weights: Path | None
    threads: int | None = None

    def header(self) -> str:
        plan = self.plan
        note = "The weights are in the library: weights_path and weights may be null."
        if self.weights is not None:
            name = comment_text(self.weights.name)
            note = f"weights_path is that of {name}; or its content from byte {HEAD_BYTES} on by address."
        elif not plan.weights_bytes:
            note = "The module has no weights: weights_path and weights are null."
        return _template("native/model.h.j2").render(
            title=f"{comment_text(plan.name)}: a native module",
            version=_version(),
            notes=self._symbol_notes(),
            guard=f"{self.prefix.upper()}_H",
            upper=self.prefix.upper(),
            prefix=self.prefix,
            inputs=[_port_text(port) for port in plan.inputs],
            outputs=[_port_text(port) for port in plan.outputs],
            weights_note=note,
        )

    def wrapper(self) -> str:
        plan = self.plan
        taken = {"model"}
        arguments = ", ".join(identifier(port.name, taken) for port in plan.inputs)
        results = ", ".join(identifier(port.name, taken) for port in plan.outputs[:4])
        if len(plan.outputs) > 4:
            results += ", *others"
        elif len(plan.outputs) == 1:
            results += ","
        return _template("native/model.py.j2").render(
            title=f"{comment_text(plan.name)}: a native module.",
            version=_version(),
            module=identifier(self.path.stem, set()),
            example=f"{results} = model({arguments})" if results else f"model({arguments})",
            inputs=[_port_text(port) for port in plan.inputs],
            outputs=[_port_text(port) for port in plan.outputs],
            library=python_string(self.path.name),
            weights=python_string(self.weights.name) if self.weights else "None",
            prefix=python_string(self.prefix),
            threads=str(self.threads or 0),
            input_rows=[_port_row(port) for port in plan.inputs],
            output_rows=[_port_row(port) for port in plan.outputs],
        )

    def _symbol_notes(self) -> list[str]:
        """Where each symbolic dim is bound: the input and axis that say it first."""
        notes = []
        for symbol in self.plan.symbols:
            places = [
                f"axis {axis} of input {number} ({comment_text(port.name, 60)})"
                for number, port in enumerate(self.plan.inputs)
                for axis, dim in enumerate(port.dims)
                if dim == symbol
            ]
            if places:
                notes.append(f"{comment_text(symbol, 60)} is {' and '.join(places)}.")
        return notes


def _port_text(port: abi.Port) -> str:
    dims = ", ".join("?" if dim is None else comment_text(str(dim), 60) for dim in port.dims)
    kind = TENSOR_NAMES.get(port.dtype, "type")
    return f"{comment_text(port.name, 80)}: {kind} ({port.dtype}), dims [{dims}]"


def _port_row(port: abi.Port) -> str:
    """A port as a Python tuple."""
    dims = [python_string(dim) if isinstance(dim, str) else str(dim) for dim in port.dims]
    shape = f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"
    row = (python_string(port.name), str(port.dtype), shape)
    line = f"({', '.join(row)})"
    if len(line) <= _ROW_WIDTH:
        return line
    return "(\n" + "".join(f"        {part},\n" for part in row) + "    )"


def _template(name: str) -> jinja2.Template:
    loader = jinja2.PackageLoader("fusile.templates", "")
    environment = jinja2.Environment(
        loader=loader,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def _version() -> str:
    try:
        return version("fusile")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "(checkout)"
