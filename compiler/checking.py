"""What compiling a model would meet. A check ends at the tensor program, so nothing of what comes after that
is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusile import artefacts, reports
from fusile.errors import Gap, UnsettledError, UnsupportedError
from fusile.ir.tensor import Program
from fusile.loading import Loaded, model_name, needs_host, read
from fusile.options import Options
from fusile.passes.to_tensor import lower
from fusile.report import CheckReport

if TYPE_CHECKING:
    from fusile.host.module import HostModule

FRAMEWORKS: dict[str, str] = {
    "torch": "fusile.backends.framework.torch",
    "keras": "fusile.backends.framework.keras",
}
"""Targets that are source of a framework, and where their rows are."""


def check(source: Any, options: Options) -> CheckReport:
    """What compiling a model would meet. Raises for a broken or unsafe model, never for operators without a
    form here.
    """
    name, source = model_name(source), artefacts.plain(source)
    program: Program | None = None
    gaps: tuple[Gap, ...] = ()
    hosted: HostModule | None = None
    try:
        if options.target in FRAMEWORKS:
            known = reports.framework_operators(FRAMEWORKS[options.target])
            loaded = read(source, options, reports.framework_keeps(known))
            gaps = reports.without_row(loaded, known, options.target)
        else:
            loaded = read(source, options)
    except UnsupportedError as error:
        return reports.unread(name, options, error.gaps)
    if options.target not in FRAMEWORKS:
        try:
            if not needs_host(loaded.model):
                try:
                    program = lower(loaded.model)
                except UnsettledError:
                    hosted = _examined(loaded, options)
            else:
                hosted = _examined(loaded, options)
        except UnsupportedError as error:
            gaps = error.gaps
    return reports.check(name, options, loaded, program, gaps, hosted)


def _examined(loaded: Loaded, options: Options) -> HostModule:
    from fusile import host

    return host.examine(loaded, options)
