"""Sizes that are worked out when run: what they are made of comes before them, what they have to fit before
their use.
"""

from __future__ import annotations

import onnx.parser
import pytest

from fusile import driver
from fusile.ir.expr import free, loads
from fusile.ir.plan import Call, Check, Define, Plan
from fusile.options import make_options
from fusile.target import host

MODELS = {
    "parts": """g (float[6] x, int64[2] sizes) => (float[a] y, float[b] z) {
        y, z = Split <axis = 0> (x, sizes)
    }""",
    "a number worked out beside its use": """g (int32 n) => (float[m] y) {
        size = Cast <to = 1> (n)
        zero = Constant <value_float = 0.0> ()
        one = Constant <value_float = 1.0> ()
        steps = Range (zero, size, one)
        y = Div (steps, size)
    }""",
    "a shape": """g (float[2, 3] x, int64[1] shape) => (float[n] y) { y = Reshape (x, shape) }""",
}


def plan_of(name: str, level: int) -> Plan:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {MODELS[name]}')
    options = make_options(opt_level=level)
    return driver.plan(model.SerializeToString(), options, host(), driver.Trace())


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_sizes_come_after_what_they_are_made_of(name: str, level: int) -> None:
    plan = plan_of(name, level)
    made = set(plan.inputs)
    sizes = set(plan.symbols)
    for step in plan.steps:
        match step:
            case Define():
                assert {x.source for x in loads(step.value)} <= made
                assert free(step.value) <= sizes
                sizes.add(step.dim)
            case Check():
                assert free(step.condition) <= sizes
            case Call():
                made |= {t for v in step.variants for t in v.arguments}


@pytest.mark.parametrize("name", ["parts", "a shape"])
def test_sizes_are_checked_before_memory_is_read_by_them(name: str) -> None:
    kinds = [type(step) for step in plan_of(name, 2).steps]
    assert kinds.index(Check) < kinds.index(Call)
    assert kinds.count(Check) == 1
