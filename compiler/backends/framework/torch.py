"""The PyTorch backend: a graph as an `nn.Module` with the weights file that fills it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from fusile.backends.framework import emit as em
from fusile.backends.framework import (
    quantised,
    torch_layers,
    torch_moves,
    torch_recurrent,
    torch_rows,
    torch_special,
)
from fusile.backends.framework.code import Name
from fusile.backends.framework.common import Framework, Printer
from fusile.backends.framework.control import CONTROL
from fusile.backends.framework.emit import EmitReport
from fusile.backends.framework.site import Site
from fusile.backends.framework.source import signature
from fusile.backends.framework.torch_words import TorchWords
from fusile.graph.recognise import recognise
from fusile.graph.tensors import weights
from fusile.options import Options
from fusile.passes.to_tensor import defined

RESERVED = frozenset("F Model Stored Tensor attrgetter nn torch itertools json math Callable".split())
ATTRIBUTES = frozenset(
    (
        "T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double"
        " dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter"
        " get_submodule half ipu load_state_dict modules mtia named_buffers named_children named_modules"
        " named_parameters parameters register_buffer register_module register_parameter requires_grad_"
        " set_extra_state set_submodule share_memory state_dict to to_empty train training type xpu"
        " zero_grad"
    ).split()
)
_SMALL = frozenset(
    {ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ}
)


def avoids(node: ir.Node) -> bool:
    """Whether PyTorch rounds the floats of 8 bits that a node makes unlike ONNX."""
    return any(value.dtype in _SMALL for value in node.outputs) and defined(node.domain, node.op_type)


FRAMEWORK = Framework(
    name="torch",
    rows={
        **CONTROL,
        **quantised.rows(torch_rows.dtype),
        **torch_rows.ROWS,
        **torch_moves.MOVES,
        **torch_layers.LAYERS,
        **torch_recurrent.RECURRENT,
        **torch_special.SPECIAL,
    },
    size=lambda x, axis: x.attribute("shape")[axis],
    sizes=lambda x: x.attribute("shape"),
    constant=torch_moves.constant,
    parameter=torch_layers.parameter,
    permute=torch_moves.permute,
    reshape=lambda x, shape: x.method("reshape", *shape),
    cast=torch_rows.cast_to,
    scalar=lambda size, kind: size,
    words=TorchWords,
    avoids=avoids,
    reserved=em.reserved("torch", RESERVED),
    attributes=ATTRIBUTES,
)
_NEEDS = {"resize_run": ("resize_axis",), "lstm": ("scan",), "gru": ("scan",), "rnn": ("scan",)}


def emit(model: ir.Model, folder: Path, options: Options | None = None) -> EmitReport:
    """Write `model.py` and `weights.safetensors` into a folder, both or neither.

    The graph is canonical, with shapes and types filled in; it is changed in place. Raises
    UnsupportedError with every gap at once.
    """
    recognise(model)
    known = weights(model)
    printer = Printer(model, FRAMEWORK, known, Site)
    printer.run()
    return em.write_folder(Path(folder), source(printer), model, known)


def source(printer: Printer) -> str:
    """The text of model.py."""
    body = printer.body.lines(8)
    methods = em.method_lines(printer)
    layers = em.layer_lines(printer, 8)
    names = [var.hint for var in printer.arguments]
    count = len(printer.model.graph.outputs)
    answer = "Tensor" if count == 1 else f"tuple[{', '.join(['Tensor'] * count)}]"
    answer = answer if len(answer) <= 60 else "tuple[Tensor, ...]"
    arguments = ["self", *(f"{name}: Tensor" for name in names)]
    helpers = em.helper_sources(FRAMEWORK, printer, _NEEDS)
    text = "\n".join([*body, *methods, *layers, helpers])
    tables = {
        name.lower(): em.table(name, role, printer)
        for name, role in (("PARAMETERS", "param"), ("BUFFERS", "buffer"), ("CONSTANTS", "constant"))
    }
    return em.fill(
        FRAMEWORK,
        {
            "title": em.one_line(printer.model.graph.name or "") or "model",
            "functional": em.uses(text, "F."),
            "callables": em.uses(text, "Callable["),
            "math": em.uses(text, "math."),
            "itertools": em.uses(text, "itertools."),
            "tensors": tables,
            "ignored": em.ignored(printer),
            "gates": any(place.gates or place.part for _, place in printer.tensors.values()),
            "helpers": helpers,
            "layers": layers,
            "signature": signature("def forward", arguments, f" -> {answer}:", 4),
            "doc": em.forward_doc(printer),
            "body": body,
            "methods": methods,
        },
    )


__all__ = ["FRAMEWORK", "Name", "emit"]
