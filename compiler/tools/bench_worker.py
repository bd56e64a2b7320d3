"""One engine in a process of its own, for bench: builds, answers, and times itself in bursts on request.

Reads JSON lines from standard input and writes JSON lines to standard output; arrays travel in .npz files.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fusile.tools.arrays import read_arrays, write_arrays

Feeds = dict[str, Any]
Run = Callable[[Feeds], list[Any]]

_FEWEST = 4


def build_fusile(job: Mapping[str, Any]) -> Run:
    """A compiled module of ours."""
    import fusile

    module = fusile.compile(job["model"], **job["options"])
    names = module.signature.names
    return lambda feeds: module.run([feeds[name] for name in names])


def build_onnxruntime(job: Mapping[str, Any]) -> Run:
    """ONNX Runtime with all its optimisations."""
    from fusile.tools.engines import reference_session

    session = reference_session(job["model"], job["threads"], optimised=True)
    return lambda feeds: session.run(None, feeds)


BUILDS: Mapping[str, Callable[[Mapping[str, Any]], Run]] = {
    "fused": build_fusile,
    "unfused": build_fusile,
    "onnxruntime": build_onnxruntime,
}


def main() -> None:
    """Serve one job until standard input ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def reply(**message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    job = json.loads(sys.stdin.readline())
    try:
        sets: list[Feeds] = [read_arrays(path) for path in job["feeds"]]
        run = BUILDS[job["engine"]](job)
        answers = [run(feeds) for feeds in sets]
        reply(ready=True)
        _save(job["answers"], answers)
        _forget_peak()
        for line in sys.stdin:
            reply(times=_burst(run, sets, json.loads(line)["burst"]), peak_mb=_peak_mb())
    except Exception as error:  # whatever an engine raises is its result
        reply(failed=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _burst(run: Run, sets: list[Feeds], seconds: float) -> list[float]:
    """The durations of single runs, taken in turn on each set of inputs."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < _FEWEST:
        feeds = sets[len(times) % len(sets)]
        start = time.perf_counter()
        run(feeds)
        times.append(time.perf_counter() - start)
    return times


def summary(times: list[float]) -> tuple[float, float, float]:
    """Median, 90th percentile and minimum."""
    ordered = sorted(times)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))], ordered[0]


def _save(path: str, answers: list[list[Any]]) -> None:
    """The answers that are arrays, named by the set of inputs and the place."""
    write_arrays(
        path,
        {
            f"{case}.{place}": value
            for case, values in enumerate(answers)
            for place, value in enumerate(values)
            if isinstance(value, np.ndarray)
        },
    )


def _peak_mb() -> float | None:
    """The peak of this process's memory, where the system tells it."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None


def _forget_peak() -> None:
    """Start the peak anew, so that it tells of running and not of building; not every system allows it."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return


if __name__ == "__main__":
    main()
