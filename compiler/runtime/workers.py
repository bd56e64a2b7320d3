"""Compile workers: LLVM in subprocesses, LLVM IR text in, object bytes out.

llvmlite holds one lock for all of a process, so threads gain nothing, and an LLVM error aborts its process,
which must not be the user's. The workers persist between calls, are as many as there are processors at most,
and end when they have been idle for a while, when the parent ends, or when LLVM crashes in one.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import functools
import importlib.util
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from fusile.errors import FusileError
from fusile.target import TargetSpec, available_cores

_IDLE_SECONDS = 20.0
_STDERR_SHOWN = 2000


class CompileError(FusileError):
    """LLVM refused or crashed on IR that fusile printed: a bug of fusile. `kernel` names the module, `text`
    is its IR.
    """

    def __init__(self, kernel: str, why: str, text: str) -> None:
        self.kernel = kernel
        self.text = text
        super().__init__(
            "LLVM could not compile code that fusile made",
            where=f"kernel {kernel!r}",
            why=why,
            todo="This is an error of fusile, not of the model: report it, with the IR that --dump-ir writes",
        )


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """What decides the object made of a text. Kernels come vectorised, so LLVM's own vectorisers are off
    unless asked for.
    """

    triple: str
    cpu: str
    features: str
    opt_level: int = 3
    loop_vectorize: bool = False
    slp_vectorize: bool = False

    @staticmethod
    def of(target: TargetSpec, opt_level: int = 3) -> CompileOptions:
        """The options for a target; `opt_level` is 0 to 3."""
        return CompileOptions(target.triple, target.cpu, target.feature_text, opt_level)


def compile_objects(
    texts: Sequence[str],
    target: TargetSpec,
    opt_level: int = 3,
    jobs: int | None = None,
    *,
    options: CompileOptions | None = None,
) -> list[bytes]:
    """One relocatable object (ELF, position independent) per LLVM IR text, in their order.

    Up to `jobs` workers (default: one per processor) take one text at a time, the longest first. `options`
    replaces what `target` and `opt_level` say. Raises CompileError, naming the kernel (`source_filename`, or
    the first function), for the first text that fails.
    """
    chosen = options or CompileOptions.of(target, opt_level)
    return _pool(os.getpid()).compile(texts, chosen, jobs or available_cores())


def start_workers(jobs: int | None = None) -> None:
    """Starts workers without waiting for them, so that they are up when the first kernels are printed."""
    _pool(os.getpid()).start(jobs or available_cores())


def stop_workers() -> None:
    """Ends the workers that are idle; the next compilation starts new ones."""
    _pool(os.getpid()).stop_idle()


@functools.cache
def _pool(process: int) -> _Pool:
    """The workers of a process; a forked child does not touch its parent's."""
    pool = _Pool()
    atexit.register(pool.stop_idle)
    return pool


def module_name(text: str) -> str:
    """What a module calls itself: its source_filename, else its first function."""
    found = re.search(r'^source_filename = "([^"]*)"', text, re.MULTILINE) or re.search(
        r'^define [^@\n]*@"?([^"(\s]+)', text, re.MULTILINE
    )
    return found.group(1) if found else "(unnamed)"


class _Worker:
    """One subprocess and its pipes."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("llvmlite")
        if found is None or found.origin is None or not sys.executable:
            raise FusileError(
                "No worker process for LLVM can be started",
                why="llvmlite is not installed" if sys.executable else "sys.executable is not set",
                todo="Install llvmlite; an application that embeds Python must set sys.executable",
            )
        folder = Path(found.origin).parent.parent
        script = Path(__file__).with_name("llvm_worker.py")
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        # -I -S: neither the environment nor site packages with their start-up hooks are wanted, only
        # llvmlite.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), str(folder), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    @property
    def process_id(self) -> int:
        return self._process.pid

    def compile(self, options: CompileOptions, text: str) -> bytes:
        """The object, or CompileError. After a crash the worker is unusable, see `alive`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        choices = json.dumps(asdict(options)).encode()
        body = text.encode()
        try:
            self._process.stdin.write(struct.pack("<QQ", len(choices), len(body)) + choices)
            self._process.stdin.write(body)
            self._process.stdin.flush()
            status, length = struct.unpack("<BQ", self._read(9))
            answer = self._read(length)
        except (BrokenPipeError, EOFError):
            raise CompileError(module_name(text), self._epitaph(), text) from None
        if status:
            raise CompileError(module_name(text), answer.decode("utf-8", "replace").strip(), text)
        return answer

    def _read(self, length: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(length)
        if len(data) < length:
            raise EOFError
        return data

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _epitaph(self) -> str:
        """How the worker died, with the last words of LLVM."""
        code = self._process.wait()
        try:
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        except ValueError:
            cause = f"signal {-code}"
        hint = " (out of memory?)" if code == -getattr(signal, "SIGKILL", 9) else ""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _STDERR_SHOWN))
        words = self._errors.read().decode("utf-8", "replace").strip()
        return f"the worker process died of {cause}{hint}" + (f", saying {words!r}" if words else "")

    def stop(self) -> None:
        """Ends the process and waits for it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone already, with something unsent in the buffer
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()


class _Pool:
    """Idle workers, and a clock that ends them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._clock: threading.Timer | None = None

    def compile(self, texts: Sequence[str], options: CompileOptions, jobs: int) -> list[bytes]:
        """See `compile_objects`."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        waiting = collections.deque(order)  # the longest at the right end
        objects: dict[int, bytes] = {}
        failures: dict[int, BaseException] = {}

        def work() -> None:
            index = -1
            try:
                with _Borrowed(self) as worker:
                    while not failures and (index := _take(waiting)) >= 0:
                        objects[index] = worker.compile(options, texts[index])
            except BaseException as error:  # raised below, in the caller's thread
                failures[index] = error

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(texts)) - 1)]
        for thread in threads:
            thread.start()
        if texts:
            work()
        for thread in threads:
            thread.join()
        self._wind_clock()
        if failures:
            raise failures[min(failures)]
        return [objects[index] for index in range(len(texts))]

    def start(self, jobs: int) -> None:
        """Has at least `jobs` workers, idle or on their way up."""
        with self._lock:
            self._idle += [_Worker() for _ in range(jobs - len(self._idle))]
        self._wind_clock()

    def take(self) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    return worker
                worker.stop()
        return _Worker()

    def give(self, worker: _Worker) -> None:
        if worker.alive:
            with self._lock:
                self._idle.append(worker)
        else:
            worker.stop()

    def stop_idle(self) -> None:
        """Ends all idle workers."""
        with self._lock:
            idle, self._idle = self._idle, []
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None
        for worker in idle:
            worker.stop()

    def _wind_clock(self) -> None:
        with self._lock:
            if self._clock is not None:
                self._clock.cancel()
            self._clock = threading.Timer(_IDLE_SECONDS, self.stop_idle)
            self._clock.daemon = True
            self._clock.start()


def _take(waiting: collections.deque[int]) -> int:
    try:
        return waiting.pop()
    except IndexError:  # another thread took the last one
        return -1


class _Borrowed:
    """A worker for the time of a `with`; one that is interrupted in mid-sentence is ended, not given back."""

    def __init__(self, pool: _Pool) -> None:
        self._pool = pool

    def __enter__(self) -> _Worker:
        self._worker = self._pool.take()
        return self._worker

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, CompileError):
            self._pool.give(self._worker)
        else:
            self._worker.stop()
