"""check and explain: reports of the driver as tables and sentences for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from fusile.errors import show_names, show_text, show_word
from fusile.report import CheckReport, ExplainReport, GroupNote

if TYPE_CHECKING:
    from rich.console import RenderableType

_SHOWN_REFUSALS = 40


def amount(number: int | None, unit: str = "B") -> str:
    """A count with a decimal prefix: 1.6 MB; a question mark where it is not known."""
    if number is None:
        return "?"
    value = float(number)
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if not prefix else f"{value:.1f} {prefix}{unit}"
        value /= 1000
    return f"{value:.1f} P{unit}"


def counted(number: int | str, thing: str) -> str:
    """`1 node`, `2 nodes`: a number, or one that is text by now, with what it counts."""
    return f"{number} {thing}" if str(number) == "1" else f"{number} {thing}s"


def check_lines(report: CheckReport) -> Iterator[RenderableType]:
    """A CheckReport: ports, size, operators, and what stands in the way."""
    verdict = ("can be compiled", "green") if report.supported else ("is not supported", "red")
    yield Text.assemble(f"{show_word(report.model)} ", verdict, f" for {report.target}")
    for title, ports in (("inputs", report.inputs), ("outputs", report.outputs)):
        for port in ports:
            yield Text(f"  {title[:-1]:7} {port}")
    work = (
        f"{amount(report.flops, 'FLOP')} per run" if report.flops is not None else "work depends on the sizes"
    )
    yield Text(
        f"  {counted(report.nodes, 'node')}, {counted(amount(report.parameters, '').strip(), 'parameter')} "
        f"in {amount(report.weight_bytes)}, {work}"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    table.add_column("  operator")
    table.add_column("nodes", justify="right")
    table.add_column("")
    for use in sorted(report.operators, key=lambda use: (use.supported, -use.count, use.name)):
        table.add_row(
            Text(f"  {show_word(use.name)}"), str(use.count), Text("" if use.supported else "no", "red")
        )
    yield table
    for gap in report.gaps:
        yield Text(show_text(f"  {gap}"), "red")
    for note in report.notes:
        yield Text(show_text(f"  {note}"))


def explain_lines(report: ExplainReport) -> Iterator[RenderableType]:
    """An ExplainReport: kernels with their work, why groups were made, and what was refused."""
    memory = f"{amount(report.weight_bytes)} of weights, "
    if report.arena_bytes is None:
        memory += "working memory that depends on the sizes"
    else:
        memory += f"{amount(report.arena_bytes)} of working memory"
    yield Text(
        f"{show_word(report.model)} for {report.target} at -O{report.opt_level}: "
        f"{counted(len(report.kernels), 'kernel')}, {memory}; "
        f"fusion saves {_saved(report, ' of memory traffic per run')}"
    )
    table = Table(show_lines=False)
    for column in ("kernel", "nodes", "schedule"):
        table.add_column(column, overflow="fold")
    for column in ("work", "reads", "writes"):
        table.add_column(column, justify="right")
    for kernel in report.kernels:
        table.add_row(
            Text(kernel.name),
            Text(_nodes(kernel.nodes, kernel.operators)),
            Text("\n".join(map(show_text, kernel.schedule))),
            amount(kernel.flops, "FLOP"),
            amount(kernel.bytes_read),
            amount(kernel.bytes_written),
        )
    yield table
    for group in report.groups:
        yield Text(
            f"group {group.kernel} = {show_names(group.nodes)}: {show_text(group.why)} "
            f"(saves {_saved(group)})"
        )
    for refusal in report.refusals[:_SHOWN_REFUSALS]:
        yield Text(f"no {refusal.what} of {show_names(refusal.nodes)}: {show_text(refusal.why)}")
    if len(report.refusals) > _SHOWN_REFUSALS:
        yield Text(f"and {len(report.refusals) - _SHOWN_REFUSALS} more refusals (--json lists them all)")
    for note in report.notes:
        yield Text(show_text(note))


def _saved(told: ExplainReport | GroupNote, what: str = "") -> str:
    """Saved bytes; where they depend on the sizes, those of a run with every symbolic size 1."""
    if told.saved_bytes is not None:
        return amount(told.saved_bytes) + what
    return f"{amount(told.saved_at_one)}{what} with every symbolic size 1, more with larger sizes"


def _nodes(nodes: tuple[str, ...], operators: tuple[str, ...]) -> str:
    """`Conv, Relu (conv1, relu1)`, cut where it grows long."""
    shown = ", ".join(map(show_word, operators[:8]))
    return f"{shown}{', …' if len(operators) > 8 else ''}\n{show_names(nodes, 3)}"
