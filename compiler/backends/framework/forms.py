"""Which operators a framework has a form for, and which are expanded into ONNX's definitions first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import onnx

from fusile.frontend.rules import CANONICAL_OPSET
from fusile.passes.to_tensor import defined

LOOKS_BACK = frozenset({("ai.onnx.preview.training", "Gradient")})
"""Operators whose definitions look at how their inputs were made."""


def kept(rows: Mapping[str, object]) -> Callable[[str, str], bool]:
    """Whether an operator is not expanded: it has a row, or a definition of ours that says in one function
    what ONNX's says with branches and loops.
    """

    def keep(domain: str, op_type: str) -> bool:
        return has_row(rows, domain, op_type) or (defined(domain, op_type) and _branches(domain, op_type))

    return keep


def has_row(rows: Mapping[str, object], domain: str, op_type: str) -> bool:
    """Whether a framework has a row for an operator."""
    return (op_type if domain in ("", "fusile") else f"{domain}::{op_type}") in rows


def has_form(rows: Mapping[str, object], domain: str, op_type: str) -> bool:
    """Whether a framework can print an operator: by a row, or as a tensor program."""
    if (domain, op_type) in LOOKS_BACK:
        return False
    return has_row(rows, domain, op_type) or defined(domain, op_type)


@functools.cache
def _branches(domain: str, op_type: str) -> bool:
    """Whether ONNX's definition of an operator has graphs inside nodes."""
    try:
        schema = onnx.defs.get_schema(op_type, CANONICAL_OPSET if domain == "" else 1, domain)
    except onnx.defs.SchemaError:
        return False
    found: Any = schema  # the stubs of onnx lack what is used here
    if not found.has_function:
        return False
    return any(
        item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        for node in found.function_body.node
        for item in node.attribute
    )
