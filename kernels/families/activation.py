"""Activation functions."""

from __future__ import annotations

import math
from collections.abc import Callable

from fusile.ir.expr import Expr, apply, cast, const, maximum, minimum, select
from fusile.ir.tensor import Tensor, compute
from fusile.kernels.families.elementwise import unary
from fusile.kernels.registry import Context, op
from fusile.kernels.shapes import broadcast, broadcast_read

Activation = Callable[[Expr], Expr]


def relu_of(v: Expr) -> Expr:
    return maximum(v, 0)


def sigmoid_of(v: Expr) -> Expr:
    return 1 / (1 + apply("exp", -v))


def tanh_of(v: Expr) -> Expr:
    return apply("tanh", v)


def softplus_of(v: Expr) -> Expr:
    """log(1 + exp(v)), without overflow."""
    return maximum(v, 0) + apply("log", 1 + apply("exp", -apply("abs", v)))


def elu_of(v: Expr, alpha: float) -> Expr:
    return select(v < 0, (apply("exp", v) - 1) * alpha, v)


def hard_sigmoid_of(v: Expr, alpha: float, beta: float) -> Expr:
    return maximum(minimum(v * alpha + beta, 1), 0)


def leaky_of(v: Expr, alpha: float) -> Expr:
    return select(v < 0, v * alpha, v)


def gelu_of(v: Expr, approximate: str) -> Expr:
    if approximate == "tanh":
        return v * 0.5 * (1 + apply("tanh", (v + v * v * v * 0.044715) * math.sqrt(2 / math.pi)))
    return v * 0.5 * (1 + apply("erf", v * math.sqrt(0.5)))


_PLAIN: dict[str, Activation] = {
    "Relu": relu_of,
    "Sigmoid": sigmoid_of,
    "Softplus": softplus_of,
    "Softsign": lambda v: v / (1 + apply("abs", v)),
    "Mish": lambda v: v * tanh_of(softplus_of(v)),
    "HardSwish": lambda v: v * hard_sigmoid_of(v, 1 / 6, 0.5),
}


def _register(name: str, f: Activation) -> None:
    @op(name)
    def definition(x: Tensor) -> Tensor:
        return unary(x, f, name.lower())


for _name, _f in _PLAIN.items():
    _register(_name, _f)


@op("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return unary(x, lambda v: leaky_of(v, alpha), "leaky_relu")


@op("PRelu")
def prelu(ctx: Context, x: Tensor, slope: Tensor) -> Tensor:
    broadcast(ctx, x.shape, slope.shape)
    return compute(x.shape, lambda *i: select(x[i] < 0, x[i] * broadcast_read(slope, i), x[i]), name="prelu")


@op("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return unary(x, lambda v: select(const(alpha, v.dtype) < v, v, const(0, v.dtype)), "thresholded_relu")


@op("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return unary(x, lambda v: elu_of(v, alpha), "elu")


@op("Selu")
def selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return unary(x, lambda v: elu_of(v, alpha) * gamma, "selu")


@op("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return unary(x, lambda v: maximum(v, 0) + minimum((apply("exp", v / alpha) - 1) * alpha, 0), "celu")


@op("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return unary(x, lambda v: hard_sigmoid_of(v, alpha, beta), "hard_sigmoid")


@op("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return unary(x, lambda v: gelu_of(v, approximate), "gelu")


@op("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return unary(x, lambda v: v * sigmoid_of(v if alpha == 1.0 else v * alpha), "swish")


@op("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    def body(v: Expr) -> Expr:
        zero, edge = const(0, v.dtype), const(lambd, v.dtype)
        if not v.dtype.is_float:
            from fusile.ir.types import F32

            wide = cast(v, F32)
            out = select(
                wide < -lambd, wide + bias, select(const(lambd, F32) < wide, wide - bias, const(0, F32))
            )
            return cast(out, v.dtype)
        return select(v < -edge, v + bias, select(edge < v, v - bias, zero))

    return unary(x, body, "shrink")
