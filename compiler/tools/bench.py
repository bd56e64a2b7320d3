"""bench: fused, unfused and ONNX Runtime side by side on one model."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusile import checking
from fusile.errors import UnsupportedError, UsageError, show_text, show_word
from fusile.options import Options, check_seed
from fusile.report import Progress
from fusile.runtime.module import Port, Value
from fusile.tools.agreement import bound_for
from fusile.tools.agreement import error as distance
from fusile.tools.arrays import read_arrays, write_arrays
from fusile.tools.bench_worker import summary
from fusile.tools.engines import onnxruntime, reference_run, reference_session
from fusile.tools.inputs import INDEX_LIMITS, draw, draw_accepted, read_inputs
from fusile.tools.rounding import ALLOWANCE, condition
from fusile.tools.sources import as_file_or_bytes, model_name, weight_types

if TYPE_CHECKING:
    from rich.table import Table

_SILENCE_SECONDS = 900.0
_OURS = {"fused": 2, "unfused": 1}


@dataclass(frozen=True, slots=True)
class Row:
    """One engine: latencies in milliseconds, builds in seconds, and its distance from the reference.

    `failed` says why an engine has no time, or that its answers are too far from the reference to count.
    `cold_s` is a build with an empty cache in a fresh process, `warm_s` one with a filled cache, both
    with the first answers; `peak_mb` the peak of the process's memory while it runs. `error` is None
    where ONNX Runtime is missing.
    """

    engine: str
    median_ms: float = math.nan
    p90_ms: float = math.nan
    min_ms: float = math.nan
    runs: int = 0
    cold_s: float = math.nan
    warm_s: float = math.nan
    peak_mb: float | None = None
    error: float | None = None
    failed: str = ""


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What bench measured, and under which conditions."""

    model: str
    target: str
    threads: int
    precision: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def ok(self) -> bool:
        """Whether all engines of ours ran and were right."""
        return not any(row.failed for row in self.rows if row.engine in _OURS)

    def row(self, engine: str) -> Row | None:
        return next((row for row in self.rows if row.engine == engine), None)

    def ratio(self, slow: str, fast: str = "fused") -> float | None:
        """How many times faster one engine is than another; None where either has no time."""
        above, below = self.row(slow), self.row(fast)
        if above is None or below is None or not below.median_ms > 0 or math.isnan(above.median_ms):
            return None
        return above.median_ms / below.median_ms

    def table(self) -> Table:
        """The report as a table for a terminal."""
        from rich.table import Table
        from rich.text import Text

        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        title = Text(f"{show_word(self.model)} on {self.target}, {threads}, {self.precision}")
        failures = (f"{row.engine} failed: {row.failed}" for row in self.rows if row.failed)
        caption = Text(show_text("\n".join((*failures, *self.notes)), kept="\n"))
        table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
        table.add_column("engine")
        for column in ("median ms", "p90 ms", "min ms", "× fused", "cold s", "warm s", "peak MB", "error"):
            table.add_column(column, justify="right")
        for row in self.rows:
            if row.failed:
                table.add_row(row.engine, Text("failed", "red"))
                continue
            ratio = self.ratio(row.engine)
            table.add_row(
                row.engine,
                *(f"{value:.3f}" for value in (row.median_ms, row.p90_ms, row.min_ms)),
                "" if ratio is None else f"{ratio:.2f}",
                *("" if math.isnan(value) else f"{value:.2f}" for value in (row.cold_s, row.warm_s)),
                "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
                "" if row.error is None else f"{row.error:.1e}",
            )
        return table

    def to_json(self) -> dict[str, Any]:
        """The report as plain data; what has no value is None."""
        rows = [{name: _finite(value) for name, value in asdict(row).items()} for row in self.rows]
        return {
            "model": self.model,
            "target": self.target,
            "threads": self.threads,
            "precision": self.precision,
            "engines": rows,
            "unfused_over_fused": self.ratio("unfused"),
            "onnxruntime_over_fused": self.ratio("onnxruntime"),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure: `rounds` bursts of `burst` seconds per engine, in turn; inputs drawn or given."""

    rounds: int = 7
    burst: float = 0.25
    inputs: Mapping[str, Value] | Sequence[str] = ()
    seeds: Sequence[int] = (0, 1)

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.burst <= 60:
            raise UsageError("bench takes one round or more, and bursts of up to 60 seconds")
        for seed in self.seeds:
            check_seed(seed)


TAKEN = ("target", "dims", "threads", "precision", "cpu", "denormals", "weights", "seed")
"""The options that bench hands to its engines; the level is what it compares."""


class _Worker:
    """An engine's process."""

    def __init__(self, job: Mapping[str, Any], cache: Path) -> None:
        self._start = time.perf_counter()
        environment = {**os.environ, "FUSILE_CACHE_DIR": str(cache), "OMP_NUM_THREADS": str(job["threads"])}
        environment.pop("FUSILE_CACHE", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fusile.tools.bench_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._send(job)

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # the answer that follows tells how the process ended

    def answer(self) -> dict[str, Any]:
        """The next reply; the end of the process and too long a silence are replies, too."""
        assert self._process.stdout is not None
        hung = threading.Timer(_SILENCE_SECONDS, self._process.kill)
        hung.start()
        line = self._process.stdout.readline()
        hung.cancel()
        if line:
            reply: dict[str, Any] = json.loads(line)
            return reply
        return {"failed": f"the process ended with exit code {self._process.wait()}"}

    def built(self) -> dict[str, Any]:
        """The reply to the job; `seconds` is the time from the start of the process to the first answers."""
        reply = self.answer()
        if reply.pop("ready", False):
            reply["seconds"] = time.perf_counter() - self._start
        return reply

    def burst(self, seconds: float) -> dict[str, Any]:
        self._send({"burst": seconds})
        return self.answer()

    def stop(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def bench(source: Any, options: Options, plan: Plan, progress: Progress) -> BenchReport:
    """Time a model fused, unfused and in ONNX Runtime, and compare all answers.

    Each engine has a process of its own; they take turns in short bursts, so that a drifting machine
    slows all of them alike. Without ONNX Runtime the two others are measured and a note says so.
    """
    threads = options.threads or _cpus()
    engines = list(_OURS)
    notes = ["fusile flushes denormal numbers to zero, ONNX Runtime keeps them."]
    try:
        onnxruntime()
        engines.append("onnxruntime")
    except UsageError as missing:
        notes = [str(missing)]
    with tempfile.TemporaryDirectory(prefix="fusile_bench_") as scratch:
        folder = Path(scratch)
        path = _as_path(source, folder)
        progress("drawing inputs")
        sets, wants = _inputs(source, options, plan, "onnxruntime" in engines)
        jobs = {engine: _job(engine, path, options, threads, sets, folder) for engine in engines}
        found = _measure(jobs, plan, folder, progress)
        flat = [value for want in wants for value in want]
        bound, _ = bound_for(flat, weight_types(source), options.precision)
        away = {
            engine: _error(job["answers"], wants)
            for engine, job in jobs.items()
            if wants and "failed" not in found[engine]
        }
        if any(error > bound for error in away.values()):
            bound = max(bound, _rounding(source, sets, wants))
        rows = [_row(engine, found[engine], away.get(engine), bound) for engine in jobs]
    return BenchReport(
        model_name(source), options.target, threads, options.precision, tuple(rows), tuple(notes)
    )


def _measure(
    jobs: Mapping[str, Mapping[str, Any]], plan: Plan, folder: Path, progress: Progress
) -> dict[str, dict[str, Any]]:
    """What each engine replied: built with an empty and with a filled cache, then timed in turns."""
    found: dict[str, dict[str, Any]] = {engine: {"times": []} for engine in jobs}
    live: dict[str, _Worker] = {}
    try:
        for engine, job in jobs.items():
            progress(f"building {engine}")
            cache = folder / f"cache_{engine}"
            if engine in _OURS:
                cold = _Worker(job, cache)
                found[engine]["cold_s"] = cold.built().get("seconds", math.nan)
                cold.stop()
            live[engine] = _Worker(job, cache)
            found[engine].update(live[engine].built())
        for turn in range(plan.rounds):
            progress("timing", turn, plan.rounds)
            for engine, worker in live.items():
                if "failed" not in found[engine]:
                    reply = worker.burst(plan.burst)
                    found[engine]["times"] += reply.pop("times", [])
                    found[engine].update(reply)
    finally:
        for worker in live.values():
            worker.stop()
    return found


def _rounding(source: Any, sets: Sequence[Mapping[str, Value]], wants: Sequence[Sequence[Value]]) -> float:
    """The error that rounding alone explains, where the model multiplies it."""
    run = reference_run(reference_session(as_file_or_bytes(source)))
    shifts = [shift for feeds, want in zip(sets, wants) for shift in condition(run, feeds, want)]
    return ALLOWANCE * max(filter(math.isfinite, shifts), default=0.0)


def _row(engine: str, found: Mapping[str, Any], away: float | None, bound: float) -> Row:
    if "failed" in found:
        return Row(engine, failed=found["failed"])
    median, p90, least = summary(found["times"])
    return Row(
        engine,
        1e3 * median,
        1e3 * p90,
        1e3 * least,
        len(found["times"]),
        found.get("cold_s", found["seconds"]),
        found["seconds"],
        found.get("peak_mb"),
        away,
        "" if away is None or away <= bound else f"error {away:.1e} above {bound:g}",
    )


def _error(answers: str, wants: Sequence[Sequence[Value]]) -> float:
    """The largest distance of an engine's answers from the reference's."""
    worst = 0.0
    found = read_arrays(answers)
    for case, values in enumerate(wants):
        for place, want in enumerate(values):
            if isinstance(want, np.ndarray):
                got = found.get(f"{case}.{place}")
                same = got is not None and got.shape == want.shape and got.dtype == want.dtype
                worst = max(worst, distance(got, want) if same and got is not None else math.inf)
    return worst


def _inputs(
    source: Any, options: Options, plan: Plan, with_reference: bool
) -> tuple[list[dict[str, Value]], list[list[Value]]]:
    """Sets of inputs, and the reference's answers (none without ONNX Runtime)."""
    report = checking.check(source, options)
    if not report.supported:
        raise UnsupportedError(report.gaps)
    ports = report.inputs
    given = plan.inputs
    values = dict(given) if isinstance(given, Mapping) else read_inputs(given, ports)
    drawn = [port for port in ports if port.name not in values]
    seeds = plan.seeds if drawn else plan.seeds[:1]
    if not with_reference:
        return [
            _ordered(ports, values | draw(drawn, seed, options.dims, INDEX_LIMITS[-2])) for seed in seeds
        ], []
    run = reference_run(reference_session(as_file_or_bytes(source)))
    sets: list[dict[str, Value]] = []
    wants: list[list[Value]] = []
    for seed in seeds:
        new, want = draw_accepted(
            drawn, seed, options.dims, lambda new: run(_ordered(ports, values | new)), (UsageError,)
        )
        sets.append(_ordered(ports, values | new))
        wants.append(want)
    return sets, wants


def _ordered(ports: Sequence[Port], values: Mapping[str, Value]) -> dict[str, Value]:
    return {port.name: values[port.name] for port in ports}


def _job(
    engine: str, path: str, options: Options, threads: int, sets: Sequence[Mapping[str, Value]], folder: Path
) -> dict[str, Any]:
    """What a worker is told: the model, the options and the inputs, as plain data."""
    feeds = []
    for case, values in enumerate(sets):
        file = folder / f"feeds_{case}.npz"
        if not file.exists():
            write_arrays(file, values)
        feeds.append(str(file))
    return {
        "engine": engine,
        "model": path,
        "threads": threads,
        "feeds": feeds,
        "answers": str(folder / f"answers_{engine}.npz"),
        "options": {
            **{name: getattr(options, name) for name in TAKEN},
            "dims": dict(options.dims),
            "threads": threads,
            "opt_level": _OURS.get(engine, 2),
            "weights": None if options.weights is None else os.fspath(options.weights),
        },
    }


def _as_path(source: Any, folder: Path) -> str:
    model = as_file_or_bytes(source)
    if isinstance(model, str):
        return os.path.abspath(model)
    path = folder / "model.onnx"
    path.write_bytes(model)
    return str(path)


def _finite(value: object) -> object:
    """What JSON can say: numbers that are none become None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cpus() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
