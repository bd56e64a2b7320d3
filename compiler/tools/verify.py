"""verify: a target's answers against ONNX Runtime's, and the first node that differs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fusile.errors import DifferenceError, FusileError, UsageError, show_name, show_text, show_word
from fusile.options import Options, check_seed
from fusile.report import Progress
from fusile.runtime.module import Value
from fusile.tools.agreement import Difference, Tolerance, bound_for, compare
from fusile.tools.engines import (
    Run,
    onnxruntime,
    reference_run,
    reference_saturates,
    reference_session,
    session_ports,
    target_run,
)
from fusile.tools.inputs import draw_accepted, read_inputs
from fusile.tools.locate import NodeDifference, locate
from fusile.tools.rounding import condition, excused
from fusile.tools.sources import as_file_or_bytes, as_proto, model_name, weight_types

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Case:
    """One set of inputs and how far each output is from the reference."""

    seed: int | None
    dims: Mapping[str, int]
    outputs: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        return all(output.ok for output in self.outputs)

    @property
    def name(self) -> str:
        drawn = "given inputs" if self.seed is None else f"seed {self.seed}"
        sizes = ", ".join(f"{show_word(name)}={size}" for name, size in self.dims.items())
        return f"{drawn}, {sizes}" if sizes else drawn


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What verify found: a case per seed and set of sizes, and where the answers part."""

    model: str
    target: str
    tolerance: Tolerance
    reason: str
    cases: tuple[Case, ...]
    first: NodeDifference | None = None
    search: str = ""

    @property
    def ok(self) -> bool:
        return all(case.ok for case in self.cases)

    def require(self) -> VerifyReport:
        """This report; raises DifferenceError where an answer differs."""
        if self.ok:
            return self
        wrong = next(output for case in self.cases for output in case.outputs if not output.ok)
        raise DifferenceError(
            f"{self.model!r} on {self.target} differs from ONNX Runtime",
            where=f"output {show_name(wrong.name)}",
            why=wrong.why or f"error {wrong.error:.2g} above {self.tolerance}",
            todo=str(self.first) if self.first else self.search or None,
        )

    def table(self) -> Table:
        """The report as a table for a terminal."""
        from rich.table import Table
        from rich.text import Text

        title = Text(f"{show_word(self.model)} on {self.target} against ONNX Runtime")
        table = Table(title=title, title_justify="left")
        for column in ("inputs", "output", "error", "largest", "where", "verdict"):
            table.add_column(column, justify="right" if column in ("error", "largest") else "left")
        for case in self.cases:
            for output in case.outputs:
                place = f"[{', '.join(map(str, output.at))}]: {output.got} for {output.want}"
                why = show_text(output.why)
                verdict = (
                    Text(f"agrees {why}".rstrip(), "green") if output.ok else Text(why or "differs", "red")
                )
                table.add_row(
                    Text(case.name),
                    Text(show_name(output.name)),
                    f"{output.error:.1e}",
                    f"{output.largest:.1e}",
                    Text("" if output.ok else show_text(place)),
                    verdict,
                )
        return table

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "model": self.model,
            "target": self.target,
            "ok": self.ok,
            "bound": self.tolerance.bound,
            "rtol": self.tolerance.rtol,
            "atol": self.tolerance.atol,
            "reason": self.reason,
            "cases": [
                {
                    "seed": case.seed,
                    "dims": dict(case.dims),
                    "outputs": [output.to_json() for output in case.outputs],
                }
                for case in self.cases
            ],
            "first_difference": self.first.to_json() if self.first else None,
            "search": self.search,
        }


@dataclass(frozen=True, slots=True)
class Question:
    """What to verify a model on.

    `seeds` and `dim_sets` draw inputs, one case per pair; `inputs` (values by name, or file arguments)
    replace drawn ones. The bound is chosen by the types in the model unless one is given.
    """

    seeds: Sequence[int] = (0,)
    dim_sets: Sequence[Mapping[str, int]] = ()
    inputs: Mapping[str, Value] | Sequence[str] = ()
    bound: float | None = None
    rtol: float | None = None
    atol: float | None = None
    search: bool = True

    def __post_init__(self) -> None:
        if not self.seeds:
            raise UsageError("There are no seeds to draw inputs with", todo="Give at least one")
        for seed in self.seeds:
            check_seed(seed)
        for name in ("bound", "rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not value >= 0:  # not even a NaN
                raise UsageError(f"{name}={value!r} is no bound for an error", todo="Give 0 or more")


def verify(source: Any, options: Options, question: Question, progress: Progress) -> VerifyReport:
    """Compare a model on a target with ONNX Runtime, its optimisations off.

    One set of sizes is compiled in; with several, one module with symbolic dimensions serves all. Where the
    bound is the usual one, a difference that rounding alone explains is agreement (see tools/rounding.py). On
    any other the first node that differs is looked for. Our own reader sees the model before ONNX Runtime
    does, and raises as `compile` does. Raises UsageError where ONNX Runtime is missing or refuses the model
    or its inputs.
    """
    sets: list[Mapping[str, int]] = list(question.dim_sets) or [options.dims]
    if len(sets) == 1:
        options = options.with_(dims=sets[0])
    onnxruntime()  # without a reference there is no need to compile
    progress("compiling")
    answer = target_run(source, options, progress)
    progress("loading the reference")
    reference = reference_session(as_file_or_bytes(source))
    asked = _feeds(reference, question, sets, progress)
    tolerance, reason = _tolerance(source, question, [want for *_, want in asked], options)
    names = [output.name for output in reference.get_outputs()]
    cases: list[Case] = []
    for seed, dims, feeds, want in asked:
        progress("comparing", len(cases), len(asked))
        got = answer(feeds)
        if len(got) != len(want):
            raise DifferenceError(f"The target has {len(got)} outputs and the reference {len(want)}")
        rows = (compare(name, mine, theirs, tolerance) for name, mine, theirs in zip(names, got, want))
        case = Case(seed, dims, tuple(rows))
        if not case.ok and reason != _GIVEN:
            shifts = condition(reference_run(reference), feeds, want)
            case = replace(case, outputs=tuple(map(excused, case.outputs, shifts)))
        cases.append(case)
    first, search = None, ""
    wrong = next((place for place, case in enumerate(cases) if not case.ok), None)
    if wrong is not None and question.search:
        first, search = _search(source, options, cases[wrong], asked[wrong][2], tolerance, progress)
    if wrong is not None and "int8" in weight_types(source) and reference_saturates():
        search = f"{search} {_SATURATING}".strip()
    return VerifyReport(model_name(source), options.target, tolerance, reason, tuple(cases), first, search)


_SATURATING = (
    "ONNX Runtime's sums of products of u8 and s8 saturate on this CPU, which lacks VNNI: it may be the one "
    "that is wrong."
)

_GIVEN = "given"
"""The reason for a tolerance that the caller chose."""

_Asked = tuple["int | None", Mapping[str, int], dict[str, Value], list[Value]]


def _feeds(
    reference: Any, question: Question, sets: Sequence[Mapping[str, int]], progress: Progress
) -> list[_Asked]:
    """Inputs and the reference's answers, per seed and set of sizes."""
    ports = session_ports(reference)
    run = reference_run(reference)
    given = question.inputs
    values = dict(given) if isinstance(given, Mapping) else read_inputs(given, ports)
    drawn = [port for port in ports if port.name not in values]
    if not drawn:
        return [(None, {}, values, run(values))]
    asked: list[_Asked] = []
    for dims in sets:
        for seed in question.seeds:
            progress("asking the reference", len(asked), len(sets) * len(question.seeds))
            _, (feeds, want) = draw_accepted(
                drawn, seed, dims, lambda new: _ask(run, ports, values | new), (UsageError,)
            )
            asked.append((seed, dims, feeds, want))
    return asked


def _ask(run: Run, ports: Sequence[Any], values: Mapping[str, Value]) -> tuple[dict[str, Value], list[Value]]:
    ordered = {port.name: values[port.name] for port in ports}
    return ordered, run(ordered)


def _tolerance(
    source: Any, question: Question, wants: Sequence[Sequence[Value]], options: Options
) -> tuple[Tolerance, str]:
    if question.rtol is not None or question.atol is not None:
        return Tolerance(rtol=question.rtol, atol=question.atol), _GIVEN
    if question.bound is not None:
        return Tolerance(question.bound), _GIVEN
    flat = [value for want in wants for value in want]
    bound, reason = bound_for(flat, weight_types(source), options.precision)
    return Tolerance(bound), reason


def _search(
    source: Any,
    options: Options,
    case: Case,
    feeds: Mapping[str, Value],
    tolerance: Tolerance,
    progress: Progress,
) -> tuple[NodeDifference | None, str]:
    """Where the answers part, or why that could not be found."""
    wrong = next(output for output in case.outputs if not output.ok)
    if isinstance(source, (str, os.PathLike)) and os.path.getsize(source) > 2**31 - 1:
        return None, "The model is too large to be searched for the first node that differs."
    try:
        found = locate(
            as_proto(source),
            wrong.name,
            feeds,
            lambda model: target_run(model, options, progress),
            tolerance,
            progress,
        )
    except FusileError as error:
        return None, f"The first node that differs could not be found: {error}"
    return found, "" if found else "No single node differs: the answers of the same inputs vary between runs."
