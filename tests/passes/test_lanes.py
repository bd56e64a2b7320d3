"""Reductions over lanes: what lies side by side in memory is read side by side."""

from __future__ import annotations

from program_table import BY_NAME

from fusile import driver
from fusile.ir.expr import loads
from fusile.ir.tensor import Compute
from fusile.options import Options
from fusile.passes import access
from fusile.target import for_cpu


def test_channels_of_a_group_are_lanes_where_channels_are_innermost() -> None:
    trace = driver.Trace()
    options = Options(dims={"N": 1})
    program, _ = driver.tensor_program(
        BY_NAME["group_norm"].model(), options, for_cpu("x86-64-v3", "x86_64-unknown-linux-gnu"), trace
    )
    in_lanes = [s for s in program.stages if isinstance(s, Compute) and s.out.name.endswith("_lanes")]
    assert in_lanes
    for s in in_lanes:
        assert s.reduction is not None
        whole = max(loads(s.reduction.body), key=lambda x: x.source.rank)
        assert access.stride(whole, s.axes[-1]) == 1
