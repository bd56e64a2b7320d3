"""The support matrix: every operator, its opsets, and how each backend takes it.

    python tests/conformance/support.py

writes docs/support.md out of the operator tables and of what `judge.py` has stored. A test makes the same text
and compares.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import onnx
from cases import cases
from judge import RESULTS, stored

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "support.md"
BACKENDS = ("native", "numba", "torch", "keras")
FRAMEWORKS = {"torch": "fusile.backends.framework.torch", "keras": "fusile.backends.framework.keras"}
TITLES = {
    "": "ai.onnx",
    "ai.onnx.ml": "ai.onnx.ml",
    "ai.onnx.preview": "ai.onnx.preview",
    "ai.onnx.preview.training": "ai.onnx.preview.training",
    "com.microsoft": "com.microsoft, as ONNX Runtime defines it",
}

HEAD = """\
# What is supported

Made by `python tests/conformance/support.py` out of the operator tables and of the last whole run of the ONNX
project's cases (onnx {version}); a test fails when it is stale.

| backend | cases that pass | of those whose types it has |
| --- | --- | --- |
{totals}

The CUDA source comes from the same definitions as Numba's for the CPU. In the tables, a word says how a backend
takes an operator, and the figures how many of ONNX's cases of that operator pass there:

- **kernel**: defined as a tensor program, which is compiled;
- **host**: worked on in the host part, around compiled code: strings, sequences, maps, optionals;
- **both**: a kernel on numbers, the host part on other values;
- **rewritten**: expressed by other operators when the model is read;
- **definition**: expanded into ONNX's own definition of it;
- **row**: printed in the framework's own words;
- **program**: its tensor program printed in the framework's operations;
- **no**: refused, with the node's name, before anything is compiled.
"""


def schemas() -> dict[tuple[str, str], list[int]]:
    """The opsets in which an operator was defined anew, by domain and name."""
    found: dict[tuple[str, str], set[int]] = defaultdict(set)
    for schema in onnx.defs.get_all_schemas_with_history():
        found[schema.domain, schema.name].add(schema.since_version)
    return {key: sorted(versions) for key, versions in found.items()}


def functions() -> set[tuple[str, str]]:
    """Operators that ONNX defines by others."""
    return {
        (s.domain, s.name)
        for s in onnx.defs.get_all_schemas_with_history()
        if s.has_function or s.has_context_dependent_function
    }


def kernel_word(key: tuple[str, str]) -> str:
    """How the kernel backends take an operator."""
    from fusile.frontend.canonical import rewritten
    from fusile.kernels.families import definition
    from fusile.kernels.host.registry import HOST_OPERATORS

    if definition(*key) is not None:
        return "both" if key in HOST_OPERATORS else "kernel"
    if key in HOST_OPERATORS:
        return "host"
    if rewritten(*key):
        return "rewritten"
    return "definition" if key in functions() else "no"


def framework_word(key: tuple[str, str], rows: Mapping[str, object]) -> str:
    """How a framework's source takes an operator."""
    from fusile.backends.framework.forms import has_form, has_row
    from fusile.frontend.canonical import rewritten

    if has_row(rows, *key):
        return "row"
    if has_form(rows, *key):
        return "program"
    if rewritten(*key):
        return "rewritten"
    return "definition" if key in functions() else "no"


def counts(backend: str) -> dict[str, tuple[int, int]]:
    """Passed and all cases of a backend by operator. Cases that hold an operator's definition in its place,
    and whole models, belong to none.
    """
    failed, types = stored(backend), without_types(backend)
    if not (RESULTS / f"{backend}.json").exists():
        return {}
    found: dict[str, tuple[int, int]] = {}
    for case in cases():
        if case.kind == "node" and "_expanded" not in case.name and case.key not in types:
            good, every = found.get(case.operator, (0, 0))
            found[case.operator] = (good + (case.key not in failed), every + 1)
    return found


def without_types(backend: str) -> set[str]:
    """The cases whose types a backend does not have."""
    path = RESULTS / f"{backend}.json"
    return set(json.loads(path.read_text()).get("without types", ())) if path.exists() else set()


def text() -> str:
    """The whole document."""
    from fusile.reports import framework_operators

    rows = {name: framework_operators(home) for name, home in FRAMEWORKS.items()}
    figures = {backend: counts(backend) for backend in BACKENDS}
    lines = [HEAD.format(version=onnx.__version__, totals="\n".join(map(_total, BACKENDS)))]
    every = schemas()
    for key in _contributed():
        every.setdefault(key, [1])
    for domain, title in TITLES.items():
        lines += [f"## {title}", "", "| operator | defined in opset | native | numba | torch | keras |"]
        lines.append("| --- | --- | --- | --- | --- | --- |")
        for key in sorted(k for k in every if k[0] == domain):
            name = f"{domain}::{key[1]}" if domain else key[1]
            words = {b: kernel_word(key) if b not in rows else framework_word(key, rows[b]) for b in BACKENDS}
            cells = [_cell(words[b], figures[b].get(name)) for b in BACKENDS]
            lines.append(f"| {key[1]} | {', '.join(map(str, every[key]))} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["## Cases that do not pass", ""]
    for backend in BACKENDS:
        lines += [f"### {backend}", "", *_reasons(backend), ""]
    return "\n".join(lines).rstrip() + "\n"


def _contributed() -> list[tuple[str, str]]:
    """The operators of ONNX Runtime that are taken."""
    from fusile.frontend.canonical import rewritten_operators
    from fusile.kernels.families import load_all
    from fusile.kernels.host.registry import HOST_OPERATORS
    from fusile.kernels.registry import OPERATORS

    load_all()
    known = {*OPERATORS, *HOST_OPERATORS, *rewritten_operators()}
    return [key for key in known if key[0] == "com.microsoft"]


def _total(backend: str) -> str:
    path = RESULTS / f"{backend}.json"
    told = json.loads(path.read_text()) if path.exists() else {"cases": 0, "failed": {}}
    good = told["cases"] - len(told["failed"])
    return f"| {backend} | {good} | {told['cases']} |"


def _cell(word: str, figures: tuple[int, int] | None) -> str:
    return word if figures is None else f"{word}, {figures[0]} of {figures[1]}"


def _reasons(backend: str) -> list[str]:
    """The cases that do not pass, those with one reason together."""
    together: dict[str, list[str]] = defaultdict(list)
    for key, why in stored(backend).items():
        together[_plain(why)].append(key)
    if not together:
        return ["None."]
    return [f"- {', '.join(f'`{key}`' for key in keys)}: {why}" for why, keys in sorted(together.items())]


def _plain(why: str) -> str:
    return why.replace("|", "/").replace("<", "‹").replace(">", "›")


def main() -> None:
    DOCUMENT.write_text(text(), encoding="utf-8")
    print(f"{DOCUMENT.name}: {len(schemas())} operators")


if __name__ == "__main__":
    main()
