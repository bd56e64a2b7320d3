"""What a case comes to on a backend: here, or in processes of its own for whole runs.

    python tests/conformance/judge.py native numba --jobs 2

judges every case on the named backends, in processes that a crash or a hang cannot take along, and writes
`results/BACKEND.json`: the cases that do not pass, each with its reason. The support matrix is made of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import re
import sys
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path

from cases import Case, cases, difference, fits
from engines import ENGINES

RESULTS = Path(__file__).parent / "results"
SECONDS = 120
"""What a case may take before it counts as a hang."""


def verdict(case: Case, backend: str) -> str:
    """ "passed", or why not: "unsupported: …", "wrong: …", "error: …"."""
    from fusile.errors import UnsupportedError

    model, sets = case.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run = ENGINES[backend](model)
            for given, wanted in sets:
                got = run(given)
                if len(got) != len(wanted):
                    return f"wrong: {len(got)} outputs, expected {len(wanted)}"
                for k, (g, w) in enumerate(zip(got, wanted, strict=True)):
                    found = difference(g, w, case.rtol, case.atol)
                    if found is not None:
                        return f"wrong: output {k}: {found}"
        except UnsupportedError as e:
            return f"unsupported: {_short(e)}"
        except Exception as e:
            kind = "unsupported" if type(e).__name__ == "NotImplemented" else "error"
            return f"{kind}: {_short(e)}"
    return "passed"


def _short(e: BaseException) -> str:
    text = " ".join(f"{e}".split()).removeprefix("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : ")
    return text[:300] or type(e).__name__


def stored(backend: str) -> dict[str, str]:
    """The cases that did not pass in the last whole run, with their reasons."""
    path = RESULTS / f"{backend}.json"
    return dict(json.loads(path.read_text())["failed"]) if path.exists() else {}


# ---- whole runs ----------------------------------------------------------------------------------------


def _serve(backend: str, pipe: Connection) -> None:
    every = {case.key: case for case in cases()}
    while True:
        key = pipe.recv()
        if not isinstance(key, str):
            return
        case = every[key]
        pipe.send(verdict(case, backend) if fits(case, backend) else "no type")


class _Server:
    """A process that judges one case after another, and is replaced when it dies or hangs."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.start()

    def start(self) -> None:
        self.pipe, there = mp.Pipe()
        self.process = mp.get_context("spawn").Process(target=_serve, args=(self.backend, there), daemon=True)
        self.process.start()
        there.close()
        self.busy: str | None = None
        self.since = 0.0

    def give(self, key: str) -> None:
        self.busy, self.since = key, time.monotonic()
        self.pipe.send(key)

    def answer(self) -> str:
        """The verdict on the case that it is busy with."""
        try:
            found = str(self.pipe.recv())
            self.busy = None
        except EOFError:
            self.process.join()
            found = f"crash: exit {self.process.exitcode}"
            self.start()
        return found

    def hangs(self) -> bool:
        return self.busy is not None and time.monotonic() - self.since > SECONDS

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def judge(backend: str, chosen: list[str], jobs: int) -> dict[str, str]:
    """The verdicts on cases by key."""
    waiting, verdicts = list(reversed(chosen)), dict[str, str]()
    servers = [_Server(backend) for _ in range(jobs)]
    while waiting or any(s.busy for s in servers):
        for s in servers:
            if s.busy is None and waiting:
                s.give(waiting.pop())
        ready = wait([s.pipe for s in servers if s.busy], timeout=1)
        for s in servers:
            key = s.busy
            if key is None:
                continue
            if s.pipe in ready:
                verdicts[key] = s.answer()
            elif s.hangs():
                verdicts[key] = f"hang: over {SECONDS} s"
                s.stop()
                s.start()
            if key in verdicts and len(verdicts) % 100 == 0:
                print(f"{backend} {len(verdicts)} of {len(chosen)}", file=sys.stderr, flush=True)
    for s in servers:
        s.stop()
    return {key: verdicts[key] for key in chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("backends", nargs="*", default=list(ENGINES), metavar="BACKEND")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--match", help="only cases whose kind/name matches; nothing is written then")
    options = parser.parse_args()
    for backend in options.backends:
        keys = [c.key for c in cases() if re.search(options.match or "", c.key)]
        start = time.monotonic()
        verdicts = judge(backend, keys, options.jobs)
        judged = {k: v for k, v in verdicts.items() if v != "no type"}
        failed = {k: v for k, v in judged.items() if v != "passed"}
        for key, why in failed.items():
            print(f"{key}: {why}")
        kinds = Counter(v.partition(":")[0] for v in judged.values())
        print(f"{backend}: {len(judged) - len(failed)} of {len(judged)} cases pass {dict(kinds)}, "
              f"{time.monotonic() - start:.0f} s", flush=True)  # fmt: skip
        if options.match is None:
            import onnx

            RESULTS.mkdir(exist_ok=True)
            told = {"onnx": onnx.__version__, "cases": len(judged), "failed": failed}
            told["without types"] = sorted(verdicts.keys() - judged.keys())
            (RESULTS / f"{backend}.json").write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
