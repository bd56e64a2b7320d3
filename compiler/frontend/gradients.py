"""Gradient names the values that it differentiates in its attributes; here they become its inputs, so that
they are ordered, renamed and replaced like all others.
"""

from __future__ import annotations

import onnx_ir as ir

from fusile.errors import InvalidModelError, show_name

DOMAIN = "ai.onnx.preview.training"


def tie(model: ir.Model) -> None:
    """Gradient(given…; xs, zs, y) becomes Gradient(given…, xs…, zs…, y), in place; the attributes stay, as
    names of the file.

    Raises InvalidModelError for a name that stands for nothing in the node's graph.
    """
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        found = [n for n in graph if n.op_type == "Gradient" and n.domain == DOMAIN]
        if found:
            values = _values(graph)
            for node in found:
                _tie(node, values)


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    out = {str(v.name): v for v in (*graph.initializers.values(), *graph.inputs)}
    out.update({str(v.name): v for node in graph for v in node.outputs if v.name})
    return out


def _tie(node: ir.Node, values: dict[str, ir.Value]) -> None:
    where = f"node {show_name(node.name)}"
    names = [n for key in ("xs", "zs") if key in node.attributes for n in node.attributes[key].as_strings()]
    if "y" not in node.attributes or "xs" not in node.attributes:
        raise InvalidModelError("Gradient needs its attributes xs and y", where=where)
    if len(node.inputs) == 2 * len(names) + 1:
        return  # a canonical graph
    if len(names) != len(node.inputs) or len(node.outputs) > len(node.attributes["xs"].as_strings()):
        raise InvalidModelError(
            f"Gradient names {len(names)} values and has {len(node.inputs)} inputs", where=where
        )
    tied: list[ir.Value] = []
    for name in (*names, node.attributes["y"].as_string()):
        value = values.get(name)
        if value is None:
            raise InvalidModelError(f"Gradient names {show_name(name)}, which is no value here", where=where)
        tied.append(value)
    first = len(node.inputs)
    node.resize_inputs(first + len(tied))
    for k, value in enumerate(tied):
        node.replace_input_with(first + k, value)
