"""The operator table: every ONNX operator that fusile knows, defined once as a function that returns tensors.

    @op("Relu")
    def relu(x: Tensor) -> Tensor:
        return compute(x.shape, lambda *i: maximum(x[i], 0))

Positional parameters are the operator's inputs (`*xs` where they are variadic; an optional one has a default
or a type that admits None, and is None where it is left out); keyword-only ones are its attributes, by
ONNX's names. A first parameter called `ctx` receives the
Context, `outputs` the number of outputs that the node asks for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fusile.ir.expr import Const, Expr, apply, as_expr, cast, const, dim
from fusile.ir.tensor import Body, DimDefinition, Requirement, Tensor
from fusile.ir.types import F32, I64, DType


@dataclass(frozen=True, slots=True)
class Operator:
    """A definition: the function and how to call it."""

    domain: str
    name: str
    function: Callable[..., Any]
    takes_context: bool
    takes_outputs: bool
    attributes: frozenset[str]
    inputs: int | None
    required: tuple[int, ...]
    keeps_types: bool = False


OPERATORS: dict[tuple[str, str], Operator] = {}
F = TypeVar("F", bound=Callable[..., Any])


class Unsupported(Exception):
    """Raised by a definition for what it does not cover: `reason`, and a `way_out` for the user."""

    def __init__(self, reason: str, way_out: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.way_out = way_out


class Unsettled(Unsupported):
    """Raised by a definition for what it covers once it knows a size or the elements of a tensor: `value` is
    the name of the tensor whose elements it needs, where it is about these.
    """

    def __init__(self, reason: str, way_out: str = "", value: str = "") -> None:
        super().__init__(reason, way_out)
        self.value = value


class Malformed(Exception):
    """Raised by a definition for a node that no operator of this name can be (wrong rank, sizes that do not
    fit, …).
    """


class Subgraph(Protocol):
    """A graph that is an attribute of a node."""

    @property
    def inputs(self) -> int:
        """The number of its inputs."""
        ...

    def inline(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Its outputs, made of stages of the program around it."""
        ...

    def trace(
        self, states: Sequence[Tensor], inputs: Callable[[Callable[[Tensor], Tensor]], Sequence[Tensor]]
    ) -> Body:
        """A program of its own. `states` become the program's first inputs; `inputs(outer)` answers what the
        graph's inputs are, made of them and of outer tensors, which `outer` brings inside.
        """
        ...


@dataclass(slots=True)
class Context:
    """What a definition may ask of the program under construction. `site` is the ONNX node's name, `seed`
    where random numbers start.
    """

    site: str
    seed: int = 0
    dim_definitions: list[DimDefinition] = field(default_factory=list)
    requirements: list[Requirement] = field(default_factory=list)
    runtime: dict[Tensor, tuple[Expr, ...]] = field(default_factory=dict)
    assumed: dict[tuple[str, Expr], bool] = field(default_factory=dict)
    half: DType | None = None
    """The 16-bit float type of the values between operators, while a definition computes in float32 inside
    (see `precision.py`).
    """

    def rounded(self, v: Expr) -> Expr:
        """A value inside an operator as if it were stored between two: what the standard says of the inner
        values of an operator that it defines as a function of others.
        """
        return v if self.half is None or v.dtype is not F32 else cast(cast(v, self.half), F32)

    def size(self, value: Expr, hint: str = "n") -> Expr:
        """A size known only when run: a new symbolic dim defined as `value` (which may load tensors).

        Refused below 0 when run.
        """
        made = dim(f"{hint}_{self.site}_{len(self.dim_definitions)}")
        self.dim_definitions.append(DimDefinition(made, value, self.site))
        return made

    def assume(self, condition: Expr, usually: bool = True) -> bool:
        """Whether a condition on dims is taken to hold, where the ranks of what follows depend on it, and
        checks when run that it does or does not. Both are tried, and one is kept if the rest of the model
        has no meaning otherwise, or not the ranks that it declares.
        """
        holds = self.assumed.setdefault((self.site, condition), usually)
        self.require(
            condition if holds else apply("not", condition),
            f"shapes follow from {condition!r}, and it differs",
        )
        return holds

    def require(self, condition: Expr, reason: str) -> None:
        """Check a condition on dims when run. Raises Malformed at once where it is known to be false."""
        if isinstance(condition, Const):
            if not condition.value:
                raise Malformed(reason)
        elif all(r.condition is not condition for r in self.requirements):
            self.requirements.append(Requirement(condition, self.site, reason))

    def values(self, t: Tensor) -> tuple[Expr, ...]:
        """The elements of a small integer tensor as expressions: known ones as they are, others read when run
        (as scalars of the plan).
        """
        from fusile.ir import index as ix

        if t.known is not None:
            from fusile.kernels.shapes import exact

            return tuple(exact(v) if v.dtype.is_int else v for v in t.known)
        if t in self.runtime:
            return self.runtime[t]
        count = ix.number(t.size)
        if count is None or count > 64 or t.rank > 1 or not t.dtype.is_int:
            raise Unsettled(
                f"needs the value of {t.name} while compiling, which is worked out by the model",
                "fix the input by `--dims` or fold it into a constant",
                t.name,
            )
        indices = [(k,) if t.rank else () for k in range(count)]
        found = tuple(self._scalar(cast(t[i], I64), f"{t.name}{k}") for k, i in enumerate(indices))
        self.runtime[t] = found
        return found

    def numbers(self, t: Tensor | None, what: str) -> tuple[int, ...]:
        """The elements of an integer tensor that shapes the code itself, such as axes; none where it is
        absent.

        Raises Unsettled where they are not known while compiling.
        """
        from fusile.ir import index as ix

        if t is None:
            return ()
        if ix.number(t.size) == 0:
            return ()
        found = [ix.number(v) for v in self.values(t)] if t.known is not None else [None]
        if any(n is None for n in found):
            raise Unsettled(f"{what} ({t.name}) is not a constant", "fold the input into a constant", t.name)
        return tuple(n for n in found if n is not None)

    def floats(self, t: Tensor) -> tuple[float, ...] | None:
        """The elements of a small constant float tensor that shapes the code itself, such as scales; None
        where it is worked out.
        """
        if t.known is None and t.data is not None:
            array = t.data()
            if array.size <= 64:
                t.known = tuple(const(v, t.dtype) for v in array.astype("float64").ravel().tolist())
        if t.known is None or not all(isinstance(v, Const) for v in t.known):
            return None
        return tuple(float(v.value) for v in t.known if isinstance(v, Const))

    def extent(self, value: Expr, hint: str = "n") -> Expr:
        """A size given by an expression: itself where it is provably at least 0, else checked when run.

        Raises Malformed below 0.
        """
        from fusile.ir import index as ix

        known = ix.number(value)
        if known is not None and known < 0:
            raise Malformed(f"a size is negative: {known}")
        return value if ix.never_negative(ix.poly(value)) else self.size(value, hint)

    def _scalar(self, value: Expr, hint: str) -> Expr:
        """A value read when run that may be negative: kept as a difference of two sizes, so that dims stay at
        least 0.
        """
        up = self.size(apply("max", value, as_expr(0)), hint + "_up")
        down = self.size(apply("max", -value, as_expr(0)), hint + "_down")
        return up - down


def described(domain: str, name: str, function: Callable[..., Any], keeps_types: bool = False) -> Operator:
    """How to call a definition, read off its code: hundreds are described whenever a model is compiled, which
    `inspect.signature` would take a while for.
    """
    code = function.__code__
    names = code.co_varnames
    takes_context = names[: code.co_argcount][:1] == ("ctx",)
    positional = names[takes_context : code.co_argcount]
    with_default = set(positional[len(positional) - len(function.__defaults__ or ()) :])
    attributes = set(names[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])
    variadic = code.co_flags & inspect.CO_VARARGS
    return Operator(
        domain,
        name,
        function,
        takes_context,
        "outputs" in attributes,
        frozenset(attributes - {"outputs"}),
        None if variadic else len(positional),
        tuple(k for k, p in enumerate(positional) if p not in with_default and not _admits_none(function, p)),
        keeps_types,
    )


def _admits_none(function: Callable[..., Any], parameter: str) -> bool:
    """Whether a parameter's type, which is text where annotations are postponed, has None in it."""
    return "None" in str(function.__annotations__.get(parameter, ""))


def op(name: str, domain: str = "", *, keeps_types: bool = False) -> Callable[[F], F]:
    """Register a definition under an ONNX operator's name. With `keeps_types` it is given 16-bit floats as
    they are and says itself in which type it computes (see `precision.py`).
    """

    def register(function: F) -> F:
        OPERATORS[(domain, name)] = described(domain, name, function, keeps_types)
        return function

    return register


def call(
    definition: Operator,
    ctx: Any,
    inputs: Sequence[Any],
    attributes: Mapping[str, Any],
    outputs: int,
) -> tuple[Any, ...]:
    """Run a definition on its inputs: tensors, or values of the host. Raises Malformed or Unsupported."""
    given = list(inputs)
    if definition.inputs is not None:
        if any(x is not None for x in given[definition.inputs :]):
            raise Malformed(f"takes at most {definition.inputs} inputs, has {len(given)}")
        given = given[: definition.inputs]
    if any(k >= len(given) or given[k] is None for k in definition.required):
        raise Malformed(
            f"takes at least {len(definition.required)} inputs, has {sum(x is not None for x in given)}"
        )
    keywords = {k: v for k, v in attributes.items() if k in definition.attributes}
    if definition.takes_outputs:
        keywords["outputs"] = outputs
    result = definition.function(*([ctx] if definition.takes_context else []), *given, **keywords)
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)
