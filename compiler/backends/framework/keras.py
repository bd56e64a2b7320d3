"""The Keras backend: a graph as a `keras.Model`, with channels last inside, and its weights file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from fusile.backends.framework import emit as em
from fusile.backends.framework import (
    keras_layers,
    keras_moves,
    keras_recurrent,
    keras_rows,
    keras_special,
    keras_strings,
    quantised,
)
from fusile.backends.framework.code import Code, call, layout, name
from fusile.backends.framework.common import Framework, Printer, Row
from fusile.backends.framework.control import CONTROL
from fusile.backends.framework.emit import EmitReport
from fusile.backends.framework.keras_words import KerasWords
from fusile.backends.framework.site import Site
from fusile.backends.framework.source import signature
from fusile.graph.layout import WINDOWS, channels_last
from fusile.graph.recognise import recognise
from fusile.graph.tensors import weights
from fusile.options import Options

RESERVED = frozenset("Model Stored attrgetter keras layers np ops tf json training mask".split())
"""`training` and `mask` mean something to Keras as arguments."""
ATTRIBUTES = frozenset(
    (
        "add_loss add_metric add_variable add_weight autocast build build_from_config built call compile"
        " compile_from_config compiled compiled_loss compiled_metrics compute_dtype compute_loss"
        " compute_mask compute_metrics compute_output_shape compute_output_spec count_params"
        " distribute_reduction_method distribute_strategy dtype dtype_policy evaluate export fit"
        " from_config get_build_config get_compile_config get_config get_layer get_metrics_result"
        " get_quantization_layer_structure get_state_tree get_weights history inputs input input_dtype"
        " input_spec jit_compile layers load_own_variables load_weights loss losses make_predict_function"
        " make_test_function make_train_function metrics metrics_names metrics_variables name"
        " non_trainable_variables non_trainable_weights optimizer output outputs path predict"
        " predict_on_batch predict_step quantization_mode quantize quantized_build quantized_call"
        " rematerialized_call reset_metrics run_eagerly save save_own_variables save_weights seed"
        " set_state_tree set_weights stateless_call stateless_compute_loss stop_training summary"
        " supports_masking symbolic_call test_on_batch test_step to_json train_on_batch train_step"
        " trainable trainable_variables trainable_weights variable_dtype variables weights"
    ).split()
)


def _ranked(row: Row) -> Row:
    """A row of windows, which prints other words for other ranks: none for one that is not known."""

    def checked(n: Site) -> Code | Sequence[Code | None]:
        n.rank(0)
        return row(n)

    return checked


_PLAIN: Mapping[str, Row] = {
    **CONTROL,
    **quantised.rows(keras_rows.dtype),
    **keras_rows.ROWS,
    **keras_moves.MOVES,
    **keras_layers.LAYERS,
    **keras_recurrent.RECURRENT,
    **keras_special.SPECIAL,
    **keras_strings.STRINGS,
}
ROWS = {op: _ranked(row) if op in WINDOWS else row for op, row in _PLAIN.items()}
FRAMEWORK = Framework(
    name="keras",
    rows=ROWS,
    size=lambda x, axis: call("ops.shape", x)[axis],
    sizes=lambda x: call("ops.shape", x),
    constant=keras_moves.constant,
    parameter=keras_layers.parameter,
    permute=keras_rows.permute,
    reshape=keras_rows.reshape_to,
    cast=keras_rows.cast_to,
    scalar=keras_rows.cast_to,
    words=KerasWords,
    reserved=em.reserved("keras", RESERVED),
    attributes=ATTRIBUTES,
)
_NEEDS = {
    "resize_run": ("resize_axis",),
    "scatter_elements": ("scatter_product",),
    "put": ("scatter_product",),
    "lstm": ("steps", "by_name"),
    "gru": ("steps", "by_name"),
    "rnn": ("steps", "by_name"),
    "max_pool": ("window_pads",),
    "max_pool_indices": ("window_pads",),
    "average_pool": ("window_pads",),
}


def emit(model: ir.Model, folder: Path, options: Options | None = None) -> EmitReport:
    """Write `model.py` and `weights.safetensors` into a folder, both or neither.

    The graph is canonical, with shapes and types filled in; it is changed in place. Raises
    UnsupportedError with every gap at once.
    """
    recognise(model)
    known = weights(model)
    channels_last(model)
    printer = Printer(model, FRAMEWORK, known, Site)
    printer.run()
    return em.write_folder(Path(folder), source(printer), model, known)


def source(printer: Printer) -> str:
    """The text of model.py."""
    body = printer.body.lines(8)
    methods = em.method_lines(printer)
    layers = em.layer_lines(printer, 8)
    names = [var.hint for var in printer.arguments]
    helpers = em.helper_sources(FRAMEWORK, printer, _NEEDS)
    text = "\n".join([*body, *methods, *layers, helpers])
    tables = {
        table.lower(): em.table(table, role, printer)
        for table, role in (("PARAMETERS", "param"), ("BUFFERS", "buffer"), ("CONSTANTS", "constant"))
    }
    plain = all(
        value.dtype in (None, ir.DataType.FLOAT) or not value.dtype.is_floating_point()
        for value in printer.model.graph.inputs
    )
    return em.fill(
        FRAMEWORK,
        {
            "title": em.one_line(printer.model.graph.name or "") or "model",
            "tensorflow": em.uses(text, "tf."),
            "math": em.uses(text, "math."),
            "layers_used": em.uses(text, "layers."),
            "ops_used": em.uses(text, "ops."),
            "autocast": plain,
            "tensors": tables,
            "ignored": em.ignored(printer),
            "gates": any(place.gates or place.part for _, place in printer.tensors.values()),
            "halves": any(place.halves for _, place in printer.tensors.values()),
            "helpers": helpers,
            "layers": layers,
            "builds": _builds(printer),
            "arguments": names,
            "unpacked": _unpacked(names) if _is_tensor(printer.model.graph.inputs[:1]) else [],
            "signature": signature(
                "def call", ["self", *names[:1], *(f"{n}=None" for n in names[1:])], ":", 4
            ),
            "doc": em.forward_doc(printer),
            "body": body,
            "methods": methods,
        },
    )


def _builds(printer: Printer) -> list[str]:
    """`self.conv.build((None, None, None, 3))` for every layer with weights."""
    out: list[str] = []
    for layer in printer.layers:
        if layer.build is not None:
            out += layout("", name(f"self.{layer.attribute}.build")(layer.build), "", 8, {})
    return out


def _is_tensor(values: Sequence[ir.Value]) -> bool:
    return all(value.type is None or isinstance(value.type, ir.TensorType) for value in values)


def _unpacked(names: list[str]) -> list[str]:
    """`a, b = a`: Keras' fit hands several inputs over as one list."""
    line = f"            {', '.join(names)} = {names[0] if names else ''}"
    if len(line) <= 88:
        return [line]
    return ["            (", *(f"                {n}," for n in names), f"            ) = {names[0]}"]
