"""The text form of every level: one example of each as a golden, and names that want to break out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx.parser
import pytest

from fusile import driver
from fusile.ir.expr import apply, axis, cast, const, dim, load
from fusile.ir.loops import Alloc, Buffer, For, Kernel, Kind, Store, kernel_text
from fusile.ir.plan import plan_text
from fusile.ir.tensor import Compute, Program, Tensor, as_shape
from fusile.ir.text import expr_text, program_text
from fusile.ir.types import F16, F32, I32
from fusile.options import Options
from fusile.passes import fuse
from fusile.passes.inline import Log
from fusile.passes.lower import lower as lower_group
from fusile.passes.plan_memory import arguments, build_plan
from fusile.passes.to_tensor import lower
from fusile.schedule import cpu
from fusile.target import for_cpu

MODELS = {
    "conv_relu": """<ir_version: 10, opset_import: ["": 21]>
        g (float[1, 3, 8, 8] x) => (float[1, 16, 8, 8] y)
        <float[16, 3, 3, 3] w = {WEIGHTS}, float[16] b = {BIAS}> {
            c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
            y = Relu (c)
        }""",
    "softmax": """<ir_version: 10, opset_import: ["": 21]>
        g (float[rows, columns] x) => (float[rows, columns] y) { y = Softmax <axis = -1> (x) }""",
}


def model(name: str) -> onnx.ModelProto:
    zeros = {"WEIGHTS": 16 * 27, "BIAS": 16}
    text = MODELS[name]
    for word, count in zeros.items():
        text = text.replace(word, ", ".join(["0"] * count))
    return onnx.parser.parse_model(text)


@pytest.mark.parametrize("name", MODELS)
def test_every_level_as_text(name: str, golden: Callable[..., None]) -> None:
    from fusile.ir.plan import Variant

    options = Options()
    settings = driver.Settings(options, for_cpu("x86-64-v3", "x86_64-unknown-linux-gnu"), Log())
    program = lower(driver.graph(model(name), options))
    golden(program_text(program), ".program.txt")
    for _, step in driver.PIPELINES[2]:
        program = step(program, settings)
    golden(program_text(program), ".fused.txt")
    kernels: list[Kernel] = []
    scheduled: list[Kernel] = []

    def lowered(group: fuse.Group) -> tuple[Variant, ...]:
        kernels.append(lower_group(group, f"kernel{len(kernels)}"))
        scheduled.append(cpu.schedule(kernels[-1], settings.target))
        return (Variant(None, kernels[-1], arguments(kernels[-1])),)

    plan = build_plan(program, fuse.group(program, settings.log, settings.same), lowered)
    golden("\n".join(map(kernel_text, kernels)), ".loops.txt")
    golden("\n".join(map(kernel_text, scheduled)), ".schedule.txt")
    golden(plan_text(plan), ".plan.txt")


def test_text_is_the_same_every_time() -> None:
    def text() -> str:
        return program_text(lower(driver.graph(model("softmax"), Options())))

    assert text() == text()


NASTY = 'a"b\n  output c = d    # \x1b[31m\u202e ünïcode'


def test_names_stay_on_their_line() -> None:
    x = Tensor(NASTY, F32, (dim(NASTY),))
    i = axis(NASTY, dim(NASTY))
    y = Tensor(NASTY, F32, (dim(NASTY),))
    p = Program(NASTY, (x,), (y,), (NASTY,), (Compute(y, (i,), x[i], NASTY, NASTY),))
    text = program_text(p)
    assert len(text.splitlines()) == 4 and text.isascii() and "\x1b" not in text
    a, b = Buffer(NASTY, F32, (dim(NASTY),)), Buffer(NASTY, F32, (dim(NASTY),))
    k = Kernel("k", (a, b), (dim(NASTY),), (For(i, (Store(b, (i,), load(a, (i,))),)),), (NASTY,), (NASTY,))
    text = kernel_text(k)
    assert len(text.splitlines()) == 5 and text.isascii()


def test_things_of_one_name_are_told_apart() -> None:
    x, y = Tensor("t", F32, as_shape((3,))), Tensor("t", F32, as_shape((3,)))
    i = axis("t", 3)
    text = program_text(Program("p", (x,), (y,), ("t",), (Compute(y, (i,), x[i] + x[0]),)))
    assert "t~2[t~3: 3] : f32 = (t[t~3] + t[0])" in text
    assert "output t = t~2" in text


def test_names_are_free_again_outside_their_scope() -> None:
    out = Buffer("out", F32, as_shape((4,)))

    def half() -> For:
        i, held = axis("i", 2), Buffer("held", F32, (), "local")
        body = (Alloc(held), Store(held, (), const(1.0, F32)), Store(out, (i,), load(held, ())))
        return For(i, body, Kind.JAM)

    assert kernel_text(Kernel("k", (out,), (), (half(), half()))) == (
        "kernel k(out: f32[4]):\n"
        + 2 * "  jam i in 2:\n    local held: f32[]\n    held[] = 1.0\n    out[i] = held[]\n"
    )


def test_shared_parts_are_said_once() -> None:
    x = load(Buffer("a_rather_long_name_of_a_buffer", F32, ()), ())
    e = apply("exp", x * x + 1.0)
    for _ in range(40):
        e = e * e + e
    text = expr_text(e)
    assert len(text) < 4000 and " where %1 = " in text


@pytest.mark.parametrize(
    ("e", "text"),
    [
        (const(0.1, F32), "0.1"),
        (const(0.1, F16), "f16(0.1)"),
        (const(-0.0, F32), "-0.0"),
        (const(np.inf, F32), "inf"),
        (const(7), "7"),
        (const(7, I32), "i32(7)"),
        (cast(dim("n"), F32), "f32(n)"),
        (dim("n") // 4, "(n // 4)"),
        (dim("123"), '"123"'),
    ],
)
def test_expressions_as_text(e: object, text: str) -> None:
    assert repr(e) == text
