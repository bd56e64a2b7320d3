"""What FUSILE_VERIFY does: broken passes are named, and so is what they changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from program_table import BY_NAME

from fusile import driver
from fusile.errors import InternalError
from fusile.ir.expr import apply, const, load
from fusile.ir.loops import Kernel, Store, map_exprs
from fusile.ir.tensor import Compute, Program
from fusile.ir.types import F32, I64
from fusile.options import Options
from fusile.passes import fuse, strict
from fusile.passes.inline import Log
from fusile.passes.lower import lower as lower_group
from fusile.passes.to_tensor import lower


def program(name: str) -> Program:
    return lower(driver.graph(BY_NAME[name].model(), Options()))


def kernel() -> Kernel:
    groups = fuse.group(program("softmax"), Log(), lambda a, b: True)
    return lower_group(groups[0], "kernel0")


def lost_stage(p: Program) -> Program:
    return replace(p, stages=p.stages[1:])


def off_by_one(p: Program) -> Program:
    last = p.stages[-1]
    assert isinstance(last, Compute)
    return replace(p, stages=(*p.stages[:-1], replace(last, body=apply("add", last.body, const(0.5, F32)))))


def test_levels_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, level in {"0": 0, "1": 1, "2": 2, "": 0, "yes": 0}.items():
        monkeypatch.setenv("FUSILE_VERIFY", text)
        assert strict.level() == level
    monkeypatch.delenv("FUSILE_VERIFY")
    assert strict.level() == 0


def test_a_pass_that_breaks_a_promise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    p = program("softmax")
    monkeypatch.setenv("FUSILE_VERIFY", "0")
    strict.check_program("lose", p, lost_stage(p))
    monkeypatch.setenv("FUSILE_VERIFY", "1")
    with pytest.raises(InternalError, match=r"After lose: .* is read before it is defined"):
        strict.check_program("lose", p, lost_stage(p))


def test_a_pass_that_changes_an_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    p = program("softmax")
    monkeypatch.setenv("FUSILE_VERIFY", "1")
    strict.check_program("nudge", p, off_by_one(p))
    monkeypatch.setenv("FUSILE_VERIFY", "2")
    with pytest.raises(InternalError, match=r"After nudge: 'y' is another than before: .* elements differ"):
        strict.check_program("nudge", p, off_by_one(p))


def test_the_driver_checks_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSILE_VERIFY", "1")
    monkeypatch.setitem(driver.PIPELINES, 0, (("lose", lambda p, s: lost_stage(p)),))
    options = Options(opt_level=0)
    with pytest.raises(InternalError, match="After lose"):
        driver.plan(BY_NAME["softmax"].model(), options, driver.target_of(options), driver.Trace())


def test_a_rewrite_that_changes_what_is_stored_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSILE_VERIFY", "2")
    before = kernel()
    doubled = map_exprs(before.body, lambda e: e if e.dtype is I64 else e * 2.0)
    with pytest.raises(InternalError, match=r"After double, kernel0: .* is another than before"):
        strict.check_kernel("double", before, before.with_body(doubled))
    strict.check_kernel("nothing", before, before.with_body(before.body))


def test_a_rewrite_that_leaves_its_buffers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSILE_VERIFY", "2")
    before = kernel()
    x, y = before.params[0], before.params[-1]
    beyond = Store(y, tuple(n - n for n in y.shape), load(x, x.shape))
    with pytest.raises(InternalError, match="reads x"):
        strict.check_kernel("leave", before, before.with_body((*before.body, beyond)))


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([1.0, 2.0], [1.0, 2.0], ""),
        ([1.0, np.nan], [1.0, np.nan], ""),
        ([1.0, np.inf], [1.0, np.inf], ""),
        ([1.0, 2.0], [1.0, 2.00001], ""),
        ([1.0, 2.0], [1.0, 2.0999], "1 of 2 elements differ, the first at [1]: 2.0 became 2.09"),
        ([1.0, np.nan], [1.0, 2.0], "the first at [1]: nan became 2.0"),
        ([1.0], [1.0, 2.0], "float32[1] became float32[2]"),
    ],
)
def test_differences_in_words(a: list[float], b: list[float], words: str) -> None:
    found = strict.difference(np.asarray(a, np.float32), np.asarray(b, np.float32))
    assert (words in found) if words else not found


def test_whole_numbers_agree_exactly() -> None:
    assert strict.difference(np.arange(3), np.arange(3)) == ""
    assert "became 7" in strict.difference(np.arange(3), np.asarray([0, 1, 7]))
