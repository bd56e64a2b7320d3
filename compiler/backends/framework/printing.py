"""A node printed as its tensor program: the call of a function that is put into the emitted file."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from fusile.backends.framework.code import Code, Name, Var, code
from fusile.backends.framework.common import no_form
from fusile.backends.framework.forms import LOOKS_BACK
from fusile.backends.framework.naming import snake
from fusile.backends.framework.programs import Function
from fusile.backends.framework.refusal import Refusal
from fusile.backends.framework.site import Site
from fusile.graph.layout import first_order, last_order
from fusile.ir import expr as ex
from fusile.ir.tensor import Tensor, as_shape
from fusile.ir.types import BY_CODE
from fusile.kernels import families
from fusile.kernels.registry import Context, Malformed, Operator, Unsupported, call
from fusile.passes.to_tensor import parse_dim


def program(n: Site) -> Sequence[Code | None]:
    """The outputs of a node as its definition says them. Refuses what has none, or one without a spelling."""
    node = n.node
    definition = families.definition(node.domain, node.op_type)
    if definition is None:
        raise Refusal(*no_form(node, n.printer.framework.name))
    if (node.domain, node.op_type) in LOOKS_BACK:
        raise Refusal(
            "its definition looks at how its inputs were made, which a function of them cannot",
            "differentiate the emitted module with the framework's own means",
        )
    inputs = [_input(n, i, label) for i, label in enumerate(_labels(definition, len(node.inputs)))]
    ctx = Context(str(node.name or node.op_type))
    try:
        results = call(definition, ctx, inputs, _attributes(node), len(node.outputs))
    except Unsupported as refused:
        raise Refusal(refused.reason, refused.way_out) from None
    except (Malformed, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise Refusal(f"its inputs do not fit its definition: {error}") from None
    wanted = [k for k, t in enumerate(results[: len(node.outputs)]) if t is not None and n.used(k)]
    answer: list[Code | None] = [None] * len(node.outputs)
    made = _function(n, ctx, inputs, [_checked(results[k]) for k in wanted])
    for k, found in zip(wanted, made, strict=True):
        turned = k == 0 and n.channels_last
        answer[k] = n.printer.framework.permute(found, last_order(results[k].rank)) if turned else found
    return answer


def _attributes(node: ir.Node) -> dict[str, Any]:
    """The attributes of a node as definitions take them."""
    out: dict[str, Any] = {}
    for word, held in node.attributes.items():
        match held.type:
            case ir.AttributeType.TENSOR:
                out[word] = held.as_tensor().numpy()
            case ir.AttributeType.INTS | ir.AttributeType.FLOATS | ir.AttributeType.STRINGS:
                out[word] = tuple(held.value)
            case ir.AttributeType.GRAPH | ir.AttributeType.GRAPHS:
                raise Refusal("the graph inside it has no spelling as a tensor program")
            case _:
                out[word] = held.value
    return out


def _checked(t: object) -> Tensor:
    if not isinstance(t, Tensor):
        raise Refusal("its result is no tensor")
    return t


def _labels(definition: Operator, count: int) -> list[str]:
    """What the definition calls its inputs."""
    words = [
        p.name
        for p in inspect.signature(definition.function).parameters.values()
        if p.kind is not p.KEYWORD_ONLY
    ][definition.takes_context :]
    return [words[i] if i < len(words) else f"{words[-1] if words else 'x'}{i + 1}" for i in range(count)]


def _input(n: Site, i: int, label: str) -> Tensor | None:
    """An input as a tensor of the program: its type, its sizes, and its elements where they are known."""
    value = n.node.inputs[i]
    if value is None:
        return None
    host = n.printer.host(value)
    if host is not None:
        kind = BY_CODE[int(host.dtype)]
        t = Tensor(label, kind, as_shape(host.elements.shape))
        t.known = tuple(ex.as_expr(e, kind) for e in host.flat)
        if host.is_constant:
            t.data = host.numpy
        return t
    if value.dtype is None:
        raise Refusal(f"the type of input {i} is not known")
    if value.shape is None:
        raise Refusal(f"the rank of input {i} is not known", "give the model's inputs shapes")
    sizes = n.onnx_shape(i) if i == 0 else n.shape(i)
    t = Tensor(
        label, BY_CODE[int(value.dtype)], as_shape(parse_dim(s) if isinstance(s, int) else s for s in sizes)
    )
    held = value.const_value if value.is_initializer() else None
    if held is not None:
        t.data = held.numpy
    return t


def _function(n: Site, ctx: Context, inputs: Sequence[Tensor | None], results: list[Tensor]) -> list[Code]:
    """Print the function, once for all nodes that need the same one; the call of it."""
    printer = n.printer
    words = printer.framework.words()
    own = tuple(t for t in inputs if t is not None and t.known is None)
    f = Function(
        words,
        {d.dim: d.value for d in ctx.dim_definitions},
        printer.framework.reserved,
        printer.function_name,
        n.node.op_type,
        inputs=own,
    )
    made = tuple(words.from_held(f.tensor(t), t.dtype) for t in results)
    f.body.result = made[0] if len(made) == 1 else code(made)
    answer = "Tensor" if len(made) == 1 else "tuple[Tensor, ...]"
    op = n.node.op_type
    title = printer.function(
        snake(op), lambda name: f.lines(name, f"ONNX's {op}, as a tensor program.", answer), f.steps
    )
    for helper in words.used:
        printer.helpers[helper] = None
    given = [_given(n, inputs, key) for key in f.taken]
    called = title(*given)
    if len(made) == 1:
        return [called]
    targets = tuple(Var(f"{snake(op)}_{k}") for k in range(len(made)))
    n.unpack(called, targets)
    return [Name(t) for t in targets]


def _given(n: Site, inputs: Sequence[Tensor | None], key: object) -> Code:
    if not isinstance(key, Tensor):
        assert isinstance(key, ex.Expr)
        return n.printer.size(key)
    if all(t is not key for t in inputs):
        assert key.data is not None
        return n.printer.table(key.data(), ir.DataType(key.dtype.code))
    i = next(k for k, t in enumerate(inputs) if t is key)
    x = n.tensor(i)
    return n.printer.framework.permute(x, first_order(key.rank)) if i == 0 and n.channels_last else x
