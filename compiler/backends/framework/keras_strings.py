"""Keras rows for strings and files, in TensorFlow's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from fusile.backends.framework.code import Code, Name, Plain, Var, call, name
from fusile.backends.framework.common import Row
from fusile.backends.framework.keras_rows import ROWS, dtype
from fusile.backends.framework.site import Site


def _strings(n: Site, attribute: str) -> list[str]:
    held = n.node.attributes.get(attribute)
    return [] if held is None else [_text(s) for s in held.value]


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def normalize(n: Site) -> Code:
    sensitive = bool(n.integer("is_case_sensitive"))
    change = n.string("case_change_action", "NONE")
    return n.helper("normalize_strings")(n.tensor(0), _strings(n, "stopwords"), sensitive, change)


def split(n: Site) -> Sequence[Code | None]:
    most = n.integer("maxsplit", -1)
    targets = (Var("pieces"), Var("counts"))
    made = n.helper("split_strings")(n.tensor(0), n.string("delimiter") or None, most)
    n.unpack(made, targets)
    return [Name(t) for t in targets]


def encode_labels(n: Site) -> Code:
    found: dict[str, Code] = {}
    for side in ("keys", "values"):
        found[side] = _table(n, side)
    held = n.node.attributes.get("default_tensor")
    default: Plain
    kind = n.result_dtype()
    if held is not None:
        default = _element(held.as_tensor().numpy().ravel()[0])
    elif kind is ir.DataType.STRING:
        default = n.string("default_string", "_Unused")
    elif kind.is_floating_point():
        default = n.real("default_float", -0.0)
    else:
        default = n.integer("default_int64", -1)
    last = call("tf.constant", default, _type(kind))
    return n.helper("encode_labels")(n.tensor(0), found["keys"], found["values"], last)


def _type(kind: ir.DataType) -> Plain:
    return "string" if kind is ir.DataType.STRING else dtype(kind)


def _element(value: object) -> Plain:
    if isinstance(value, (bytes, str)):
        return _text(value)
    return value.item() if hasattr(value, "item") else value  # type: ignore[return-value]


def _table(n: Site, side: str) -> Code:
    kind = n.dtype() if side == "keys" else n.result_dtype()
    for ending in ("tensor", "strings", "int64s", "floats"):
        held = n.node.attributes.get(f"{side}_{ending}")
        if held is None:
            continue
        if ending == "tensor":
            elements: list[Plain] = [_element(v) for v in held.as_tensor().numpy().ravel()]
        elif ending == "strings":
            elements = list(_strings(n, f"{side}_{ending}"))
        else:
            elements = [_element(v) for v in held.value]
        return call("tf.constant", elements, _type(kind))
    n.refuse(f"the label encoder has no {side}")


def decode_image(n: Site) -> Code:
    return n.helper("decode_image")(n.tensor(0), n.string("pixel_format", "RGB"))


def cast_string(plain: Row) -> Row:
    """Cast, also from strings and to them."""

    def row(n: Site) -> Code | Sequence[Code | None]:
        to = ir.DataType(n.integer("to", 1)) if n.node.op_type == "Cast" else n.dtype(1)
        if to is n.dtype():
            return n.tensor()
        if to is ir.DataType.STRING:
            return call("tf.strings.as_string", n.tensor())
        if n.dtype() is ir.DataType.STRING:
            wide = (
                to
                if to in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.INT64)
                else None
            )
            kind = "float64" if wide is None else dtype(wide)
            made = call("tf.strings.to_number", n.tensor(), name(f"tf.{kind}"))
            return made if wide is not None else call("ops.cast", made, dtype(to))
        return plain(n)

    return row


STRINGS: Mapping[str, Row] = {
    "StringConcat": lambda n: n.tensor(0) + n.tensor(1),
    "StringNormalizer": normalize,
    "StringSplit": split,
    "RegexFullMatch": lambda n: call("tf.strings.regex_full_match", n.tensor(0), n.string("pattern")),
    "ai.onnx.ml::LabelEncoder": encode_labels,
    "ImageDecoder": decode_image,
    "Cast": cast_string(ROWS["Cast"]),
    "CastLike": cast_string(ROWS["CastLike"]),
}
