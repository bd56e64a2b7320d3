"""Calls of model-local functions replaced by their bodies, with bounds on depth and size.

Every node is stamped with the opset version of where it stands before it moves (`ir.Node.version`), so
that functions of different opsets meet in one graph and are brought to one form afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from fusile.errors import InvalidModelError, UnsafeModelError, show_name
from fusile.frontend.limits import MAX_DEPTH, MAX_NODES

Identifier = tuple[str, str, str]

_LONGEST_PREFIX = 160


def stamp_versions(nodes: Iterator[ir.Node], imports: Mapping[str, int], fallback: Mapping[str, int]) -> None:
    """Give each node the version of its domain that its graph imports."""
    for node in nodes:
        node.version = imports.get(node.domain, fallback.get(node.domain))


def normal_imports(imports: Mapping[str, int]) -> dict[str, int]:
    """Opset imports with the standard domain under its one name."""
    found = {domain: version for domain, version in imports.items() if domain != "ai.onnx"}
    if "ai.onnx" in imports:
        found.setdefault("", imports["ai.onnx"])
    return found


def inline_functions(model: ir.Model) -> None:
    """Inline every call of a model-local function, in place, and drop the functions.

    Raises InvalidModelError for functions that call themselves, UnsafeModelError for calls nested deeper
    than MAX_DEPTH or more than MAX_NODES nodes.
    """
    if not model.functions:
        return
    _check_calls(model)
    waiting = [node for node in model.graph.all_nodes() if node.op_identifier() in model.functions]
    while waiting:
        call = waiting.pop()
        body = instantiate(call, model.functions[call.op_identifier()])
        waiting += [node for node in body if node.op_identifier() in model.functions]
    model.functions.clear()


def instantiate(call: ir.Node, function: ir.Function) -> list[ir.Node]:
    """Replace `call` by a copy of the function's body; returns its nodes, those of inner graphs too."""
    graph = call.graph
    assert graph is not None
    where = f"node {show_name(call.name)}, function {show_name(function.name)}"
    body = function.clone().graph
    if len(call.inputs) > len(body.inputs) or len(call.outputs) > len(body.outputs):
        raise InvalidModelError(
            "A call does not fit its function", where=where, why="too many inputs or outputs"
        )
    nodes = list(body.all_nodes())
    _prefix_names(nodes, call)
    _resolve_attributes(nodes, _arguments(call, function))
    formals, results = list(body.inputs), list(body.outputs)
    body.inputs.clear()
    body.outputs.clear()
    actual: dict[ir.Value, ir.Value | None] = {}
    for index, formal in enumerate(formals):
        actual[formal] = call.inputs[index] if index < len(call.inputs) else None
        for user, position in formal.uses():
            user.replace_input_with(position, actual[formal])
    outer = list(body)
    body.remove(outer)
    seen: set[ir.Value] = set()
    for old, result in zip(call.outputs, results):
        value = actual.get(result, result)
        if value is None:
            raise InvalidModelError("A function returns an input that its call leaves out", where=where)
        if result in actual or result in seen:  # each result is a value of its own
            copy = ir.Node("", "Identity", [value], version=1, name=f"{call.name}/identity")
            nodes.append(copy)
            outer.append(copy)
            value = copy.outputs[0]
        seen.add(result)
        take_over(old, value)
    graph.insert_before(call, outer)
    graph.remove(call, safe=True)
    return nodes


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let `new` stand wherever `old` does, under the name and with the declared type of `old`."""
    name, old.name = old.name, None
    new.name = name
    if old.type is not None:
        new.type = old.type
    if old.shape is not None:
        new.shape = old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _prefix_names(nodes: list[ir.Node], call: ir.Node) -> None:
    prefix = (call.name or call.op_type)[-_LONGEST_PREFIX:]
    for node in nodes:
        node.name = f"{prefix}/{node.name or node.op_type}"
        for value in node.outputs:
            if value.name:
                value.name = f"{prefix}/{value.name}"


def _arguments(call: ir.Node, function: ir.Function) -> dict[str, ir.Attr]:
    """The function's attributes in this call: those given, else their defaults."""
    found = {
        name: attribute for name, attribute in function.attributes.items() if attribute.value is not None
    }
    found.update(call.attributes)
    return found


def _resolve_attributes(nodes: list[ir.Node], arguments: Mapping[str, ir.Attr]) -> None:
    """Put the arguments where the body refers to them; what has no argument has no attribute."""
    for node in nodes:
        for name, attribute in tuple(node.attributes.items()):
            if not attribute.is_ref():
                continue
            argument = arguments.get(attribute.ref_attr_name or "")
            if argument is None:
                del node.attributes[name]
                continue
            value = argument.value
            if argument.type == ir.AttributeType.GRAPH:
                value = argument.as_graph().clone(allow_outer_scope_values=True)
            node.attributes[name] = ir.Attr(name, argument.type, value)


def _check_calls(model: ir.Model) -> None:
    """Check the functions' calls of each other before any is inlined."""
    calls: dict[Identifier, Counter[Identifier]] = {}
    sizes: dict[Identifier, int] = {}
    for identifier, function in model.functions.items():
        nodes = [node.op_identifier() for node in function.all_nodes()]
        calls[identifier] = Counter(name for name in nodes if name in model.functions)
        sizes[identifier] = len(nodes)
    depths: dict[Identifier, int] = {}
    for identifier in _callees_first(calls):
        depths[identifier] = 1 + max((depths[callee] for callee in calls[identifier]), default=0)
        sizes[identifier] += sum(sizes[callee] * count for callee, count in calls[identifier].items())
        if depths[identifier] > MAX_DEPTH:
            raise UnsafeModelError(
                "The model's functions call each other too deep",
                where=f"function {show_name(identifier[1])}",
                why=f"fusile reads {MAX_DEPTH} levels",
            )
    total = sum(sizes.get(node.op_identifier(), 1) for node in model.graph.all_nodes())
    if total > MAX_NODES:
        raise UnsafeModelError(
            "The model has too many nodes once its functions are inlined",
            why=f"{total}, and fusile reads {MAX_NODES}",
        )


def _callees_first(calls: Mapping[Identifier, Counter[Identifier]]) -> Iterator[Identifier]:
    """The functions, each after those it calls. Raises InvalidModelError for a cycle."""
    done: set[Identifier] = set()
    for start in calls:
        path: list[tuple[Identifier, Iterator[Identifier]]] = [(start, iter(calls[start]))]
        on_path = {start}
        while path and start not in done:
            current, rest = path[-1]
            callee = next(rest, None)
            if callee is None:
                path.pop()
                on_path.discard(current)
                done.add(current)
                yield current
            elif callee in on_path:
                cycle = [name for name, _ in path]
                cycle = [*cycle[cycle.index(callee) :], callee]
                raise InvalidModelError(
                    "The model's functions call themselves",
                    why=" -> ".join(show_name(f"{domain}::{name}") for domain, name, _ in cycle[:20]),
                )
            elif callee not in done:
                on_path.add(callee)
                path.append((callee, iter(calls[callee])))
