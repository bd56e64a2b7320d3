"""The opset versions that a file imports, kept beside the canonical graph, which is of another version."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

_KEY = "fusile.file_opsets"


def keep_file_opsets(model: ir.Model, imports: Mapping[str, int]) -> None:
    """Note what the file imports, for messages to people, who know their file and not the canonical form."""
    model.meta[_KEY] = dict(imports)


def file_opset(model: ir.Model, domain: str) -> int | None:
    """The version of a domain that the model's file imports, or None where that is not known."""
    kept: Mapping[str, int] = model.meta.get(_KEY, {})
    return kept.get(domain)
