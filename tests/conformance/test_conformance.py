"""ONNX's own cases on every backend: a fixed sample spread over all operators, or all of them with `--all`.

A case that the last whole run (`judge.py`) saw fail must still fail in that way: what has come to pass belongs
into the stored results and the support matrix.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

import pytest
from cases import Case, cases, fits
from engines import ENGINES
from judge import stored, verdict

SAMPLE = {"native": 320, "numba": 90, "torch": 120, "keras": 120}
"""Cases per backend; a case of Numba takes longest, for every kernel is compiled once more."""


def sample(count: int) -> list[Case]:
    """As many cases: one of each operator, then another of each, and so on, in an order that names decide."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in sorted(cases(), key=lambda c: hashlib.sha256(c.key.encode()).digest()):
        if case.kind != "light":
            groups[case.operator].append(case)
    rounds = [
        group[k]
        for k in range(max(map(len, groups.values())))
        for group in sorted(groups.values(), key=lambda g: hashlib.sha256(g[0].operator.encode()).digest())
        if k < len(group)
    ]
    return rounds[:count]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"backend", "case"} <= {*metafunc.fixturenames}:
        whole = metafunc.config.getoption("--all")
        rows = [(b, c) for b in ENGINES for c in (cases() if whole else sample(SAMPLE[b]))]
        metafunc.parametrize(("backend", "case"), rows, ids=[f"{b}-{c.key}" for b, c in rows])


def test_case(backend: str, case: Case) -> None:
    if not fits(case, backend):
        pytest.skip(f"{backend} has no such type")
    found, before = verdict(case, backend), stored(backend).get(case.key, "passed")
    if before == "passed":
        assert found == "passed"
    else:
        kind = before.partition(":")[0]
        assert found.partition(":")[0] == kind, f"judged as {before!r} before: store the results again"


def test_the_sample_reaches_every_operator() -> None:
    chosen = {case.operator for case in sample(SAMPLE["native"])}
    assert chosen == {case.operator for case in cases() if case.kind != "light"}
    assert len(sample(SAMPLE["native"])) >= 300
