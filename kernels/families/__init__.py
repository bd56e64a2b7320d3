"""The operators by family, a module each: importing one fills the operator table with what it defines."""

from __future__ import annotations

import functools
import importlib

from fusile.kernels.registry import OPERATORS, Operator

FAMILIES: dict[str, tuple[str, ...]] = {
    "": (
        "activation",
        "contraction",
        "control",
        "detection",
        "drawing",
        "elementwise",
        "indexing",
        "movement",
        "ngrams",
        "normalisation",
        "ordering",
        "pooling",
        "quantised",
        "recurrent",
        "reduction",
        "resize",
        "sampling",
        "signal",
        "window",
    ),
    "ai.onnx.ml": ("linear_models", "preparation", "trees"),
    "ai.onnx.preview.training": ("training",),
    "com.microsoft": (
        "contrib_attention",
        "contrib_blocks",
        "contrib_gqa",
        "contrib_hybrid",
        "contrib_linear",
        "contrib_qlinear",
        "contrib_qmatmul",
        "contrib_recurrent",
        "contrib_tensor",
    ),
}
"""The modules whose definitions are of a domain."""


@functools.cache
def load(domain: str) -> None:
    """Have the definitions of a domain in the table. A model pays for the import of those it uses."""
    for name in FAMILIES.get(domain, ()):
        importlib.import_module(f"{__name__}.{name}")


def load_all() -> None:
    """Have every definition in the table."""
    for domain in FAMILIES:
        load(domain)


def definition(domain: str, name: str) -> Operator | None:
    """The definition of an operator, None where it has none."""
    load(domain)
    return OPERATORS.get((domain, name))
