"""Rules for classical models: what they do with strings becomes a table, so that the rest is numbers."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from fusile.frontend.rules import EVER, Rule, Site, attribute

_ML = "ai.onnx.ml"
_STRING = ir.TensorType(ir.DataType.STRING)
_TABLE_VERSION = 4
"""A version of LabelEncoder with lists of keys and values."""


def _strings(site: Site, name: str) -> list[str]:
    found = site.node.attributes.get(name)
    return [] if found is None else list(found.as_strings())


def numbered_labels(integers: str) -> Callable[[Site], None]:
    """A classifier of labels that are strings becomes one of their numbers and a table; `integers` is the
    attribute for labels that are integers.
    """

    def apply(site: Site) -> None:
        labels = _strings(site, "classlabels_strings")
        if not labels:
            site.drop("classlabels_strings")
            return
        intercepts = site.node.attributes.get("intercepts")
        if intercepts is not None and len(intercepts.as_floats()) == 1 and len(labels) != 2:
            labels = ["0", "1"]  # what a model of one score answers that does not name both classes
        kept = [a for n, a in site.node.attributes.items() if n not in ("classlabels_strings", integers)]
        made = [*kept, attribute(integers, list(range(len(labels))))]
        node = site.node
        number, *scores = site.emit_node(
            _ML, node.op_type, node.version, node.inputs, made, len(node.outputs)
        )
        table = [
            attribute("keys_int64s", list(range(len(labels)))),
            attribute("values_strings", labels),
        ]
        (label,) = site.emit_node(_ML, "LabelEncoder", _TABLE_VERSION, [number], table)
        label.type = _STRING
        site.replace(label, *scores)

    return apply


def numbered_categories(site: Site) -> None:
    """OneHotEncoder of strings is a table of their numbers, and one of numbers."""
    names = _strings(site, "cats_strings")
    if not names:
        site.drop("cats_strings")
        return
    numbers = list(range(len(names)))
    # Of equal categories the last counts, of equal keys the first.
    table = [attribute("keys_strings", names[::-1]), attribute("values_int64s", numbers[::-1])]
    (number,) = site.emit_node(_ML, "LabelEncoder", _TABLE_VERSION, site.node.inputs, table)
    site.set_inputs(number)
    site.drop("cats_strings")
    site.set("cats_int64s", numbers)


def table_of_names(site: Site) -> None:
    """A table that answers strings says so, where the file does not."""
    made, tensor = site.node.outputs[0], site.node.attributes.get("values_tensor")
    named = bool(_strings(site, "values_strings"))
    if made.type is None and (named or (tensor and tensor.as_tensor().dtype == ir.DataType.STRING)):
        made.type = _STRING


RULES: tuple[Rule, ...] = (
    Rule("TreeEnsembleClassifier", EVER, numbered_labels("classlabels_int64s"), _ML),
    Rule("LinearClassifier", EVER, numbered_labels("classlabels_ints"), _ML),
    Rule("SVMClassifier", EVER, numbered_labels("classlabels_ints"), _ML),
    Rule("OneHotEncoder", EVER, numbered_categories, _ML),
    Rule("LabelEncoder", EVER, table_of_names, _ML),
)
