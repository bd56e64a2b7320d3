"""Steps of optimisers: new parameters and new state out of gradients, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence

from fusile.ir.expr import Expr, apply, as_expr, cast, const, select
from fusile.ir.gradient import NotDifferentiable, gradients, replayed
from fusile.ir.tensor import Tensor, compute
from fusile.ir.types import F32, F64, I64, DType
from fusile.kernels.registry import Malformed, Unsupported, op

TRAINING = "ai.onnx.preview.training"


def _groups(tensors: Sequence[Tensor], kinds: int) -> list[tuple[Tensor, ...]]:
    """Tensors that come kind by kind (all parameters, all gradients, …), as a tuple for each parameter."""
    if len(tensors) % kinds:
        raise Malformed(f"{len(tensors)} tensors are not {kinds} for each parameter")
    count = len(tensors) // kinds
    groups = [tuple(tensors[k * count + n] for k in range(kinds)) for n in range(count)]
    for group in groups:
        if any(t.dtype is not group[0].dtype or t.rank != group[0].rank for t in group):
            raise Malformed("a parameter, its gradient and its state differ in type or rank")
    return groups


def _scalar(t: Tensor) -> Expr:
    """The value of a tensor of one element."""
    return t[tuple(const(0) for _ in range(t.rank))]


def _as_number(t: Tensor, to: DType) -> Expr:
    """A scalar in the type that the factors of a step are worked out in: f64 for f64, else f32."""
    return cast(_scalar(t), F64 if to is F64 else F32)


def _regularised(x: Tensor, g: Tensor, coefficient: float) -> Tensor:
    """The gradient with that of 0.5 * coefficient * |x|^2."""
    if coefficient == 0:
        return g
    return compute(x.shape, lambda *i: x[i] * const(coefficient, x.dtype) + g[i], name="regularised")


def _results(columns: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Kind by kind, as the operators answer."""
    return tuple(t for kind in zip(*columns, strict=True) for t in kind)


@op("Adagrad", TRAINING)
def adagrad(
    rate: Tensor,
    step: Tensor,
    *tensors: Tensor,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> tuple[Tensor, ...]:
    """Gradients by the root of the sum of their squares so far (J. Duchi, E. Hazan and Y. Singer, JMLR 12,
    2011).
    """

    def update(x: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        t = x.dtype
        g = _regularised(x, g, norm_coefficient)
        sums = compute(x.shape, lambda *i: h[i] + g[i] * g[i], name="squares")
        late = _as_number(step, t)
        scale = _as_number(rate, t) / (late * const(decay_factor, late.dtype) + const(1.0, late.dtype))

        def moved(*i: Expr) -> Expr:
            return x[i] - cast(scale, t) * g[i] / (apply("sqrt", sums[i]) + const(epsilon, t))

        return compute(x.shape, moved, name="new"), sums

    return _results([update(*group) for group in _groups(tensors, 3)])


@op("Adam", TRAINING)
def adam(
    rate: Tensor,
    step: Tensor,
    *tensors: Tensor,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[Tensor, ...]:
    """Gradients by running means of themselves and of their squares (D. Kingma and J. Ba, ICLR 2015)."""

    def update(x: Tensor, g: Tensor, v: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        t = x.dtype
        g = _regularised(x, g, norm_coefficient)
        first = compute(
            x.shape, lambda *i: v[i] * const(alpha, t) + g[i] * const(1.0 - alpha, t), name="first"
        )
        second = compute(
            x.shape, lambda *i: h[i] * const(beta, t) + g[i] * g[i] * const(1.0 - beta, t), name="second"
        )

        def factor() -> Expr:
            """The rate, while the means are young corrected for their beginning at 0."""
            plain, age = _as_number(rate, t), _as_number(step, t)
            one = const(1.0, age.dtype)
            root = apply("sqrt", one - apply("pow", const(beta, age.dtype), age))
            young = plain * root / (one - apply("pow", const(alpha, age.dtype), age))
            return select(const(0.0, age.dtype) < age, young, plain)

        scale = compute((), factor, name="rate")

        def moved(*i: Expr) -> Expr:
            direction = first[i] / (apply("sqrt", second[i]) + const(epsilon, t))
            return (x[i] - cast(scale[()], t) * direction) * const(1.0 - norm_coefficient_post, t)

        return compute(x.shape, moved, name="new"), first, second

    return _results([update(*group) for group in _groups(tensors, 4)])


@op("Momentum", TRAINING)
def momentum(
    rate: Tensor,
    step: Tensor,
    *tensors: Tensor,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> tuple[Tensor, ...]:
    """Steps that keep some of their speed; with the mode "nesterov" along where they will have led to."""
    if mode not in ("standard", "nesterov"):
        raise Malformed(f"{mode!r} is no mode of Momentum")

    def update(x: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        t = x.dtype
        g = _regularised(x, g, norm_coefficient)
        started = as_expr(0) < cast(_scalar(step), I64)
        weight = select(started, const(beta, t), const(1.0, t))
        speed = compute(x.shape, lambda *i: v[i] * const(alpha, t) + weight * g[i], name="speed")

        def moved(*i: Expr) -> Expr:
            ahead = g[i] + speed[i] * const(alpha, t) if mode == "nesterov" else speed[i]
            return x[i] - cast(_as_number(rate, t), t) * ahead

        return compute(x.shape, moved, name="new"), speed

    return _results([update(*group) for group in _groups(tensors, 3)])


@op("Gradient", TRAINING)
def gradient(*tensors: Tensor, outputs: int = 1) -> tuple[Tensor, ...]:
    """The derivatives of the sum of `y` by the first of the named values, where they are as given. The inputs
    are the values given, the values named, and y.
    """
    count = len(tensors) // 2
    given, names, y = tensors[:count], tensors[count : 2 * count], tensors[2 * count]
    for x, t in zip(given, names, strict=True):
        if x.dtype is not t.dtype or x.rank != t.rank:
            raise Malformed(f"{x.name} is given for {t.name}, which has another type or rank")
    for x in given[:outputs]:
        if x.known is not None:
            raise Unsupported(
                f"the derivative by {x.name}, which is a literal", "make it an input of the model"
            )
    try:
        if any(x is not t for x, t in zip(given, names, strict=True)):
            y = replayed(y, dict(zip(names, given, strict=True)))
        return tuple(gradients(y, given)[:outputs])
    except NotDifferentiable as e:
        raise Unsupported(str(e), "take the gradient where the model was trained") from None
