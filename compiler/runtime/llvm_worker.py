"""The program of a compile worker: LLVM IR text in, object bytes out, over pipes. Run by path; imports
llvmlite and nothing of fusile.

Arguments: the folder that holds llvmlite, and the parent's process id. A request is two lengths (<QQ), the
options as JSON and the IR text; a reply is a status byte, a length (<BQ) and the object, or the error's text.
Standard output carries replies only: what LLVM prints goes to standard error. The worker ends when its input
ends or its parent is gone.
"""

import contextlib
import json
import os
import select
import signal
import struct
import sys
from collections.abc import Iterator
from io import RawIOBase
from types import ModuleType
from typing import Any

_POLL_SECONDS = 2.0


def main() -> None:
    folder, parent = sys.argv[1], int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle: it closes the pipe
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests = os.fdopen(0, "rb", buffering=0)
    sys.path.append(folder)
    sys.modules["importlib.resources"] = _Resources("importlib.resources")

    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    while _wait(requests.fileno(), parent):
        head = _read(requests, 16)
        if head is None:
            break
        lengths = struct.unpack("<QQ", head)
        options, text = (_read(requests, length) for length in lengths)
        if options is None or text is None:
            break
        try:
            status, answer = 0, _compile(llvm, json.loads(options), text.decode())
        except (RuntimeError, ValueError) as error:
            status, answer = 1, str(error).encode("utf-8", "replace")
        _write(replies, struct.pack("<BQ", status, len(answer)) + answer)
    os._exit(0)  # nothing is left to write, and taking LLVM down takes as long as a small kernel


class _Resources(ModuleType):
    """As much of importlib.resources as llvmlite finds its library with, which lies in its folder. The real
    one imports tempfile, zipfile and more, a third of the time in which a worker starts.
    """

    @staticmethod
    def files(package: str) -> "_Folder":
        return _Folder(sys.modules[package].__path__[0])

    @staticmethod
    @contextlib.contextmanager
    def as_file(path: str) -> Iterator[str]:
        yield path


class _Folder(str):
    __slots__ = ()

    def __truediv__(self, name: str) -> str:
        return os.path.join(self, name)


def _compile(llvm: Any, options: dict[str, Any], text: str) -> bytes:
    """Object bytes of one module. The module's own triple and data layout are replaced by the target's."""
    target = llvm.Target.from_triple(options["triple"])
    level = options["opt_level"]
    machine = target.create_target_machine(
        cpu=options["cpu"], features=options["features"], opt=level, reloc="pic", codemodel="default"
    )
    module = llvm.parse_assembly(text, llvm.create_context())
    module.triple = options["triple"]
    module.data_layout = str(machine.target_data)
    module.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=level)
    tuning.loop_vectorization = options["loop_vectorize"]
    tuning.slp_vectorization = options["slp_vectorize"]
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


def _wait(descriptor: int, parent: int) -> bool:
    """Waits for a request. False when the parent is gone: a forked sibling may hold the pipe open after its
    death.
    """
    while True:
        ready, _, _ = select.select([descriptor], [], [], _POLL_SECONDS)
        if ready:
            return True
        if os.getppid() != parent:
            return False


def _read(stream: RawIOBase, length: int) -> bytes | None:
    parts = []
    while length:
        part = stream.read(length)
        if not part:
            return None
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _write(stream: RawIOBase, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) or 0 :]


if __name__ == "__main__":
    main()
