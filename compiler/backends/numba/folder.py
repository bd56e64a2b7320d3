"""An emitted folder: `model.py` and the weights file that it loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fusile import frontend
from fusile.backends.framework import emit
from fusile.backends.framework.emit import EmitReport
from fusile.backends.numba.source import Target, print_module
from fusile.graph.cleanup import clean_up
from fusile.graph.tensors import Weight, weights
from fusile.ir.plan import Plan
from fusile.ir.tensor import Tensor
from fusile.options import Options
from fusile.passes.to_tensor import defined


def write_folder(
    model: ir.Model,
    folder: Path,
    options: Options,
    plan_of: Callable[[ir.Model, Options], Plan],
    target: Target,
) -> EmitReport:
    """Write both files, or neither. The graph is canonical; it is changed in place.

    Raises UnsupportedError with every operator that has no definition.
    """
    frontend.expand(model, defined)
    clean_up(model)
    plan = plan_of(model, options)
    printed = print_module(plan, target, options, cache=True)
    return emit.write_folder(folder, printed.text, model, stored_weights(model, printed.raw))


def stored_weights(model: ir.Model, raw: Mapping[str, Tensor]) -> dict[str, Weight]:
    """The initialisers that the module loads, named as in the other weights files where those have them.

    Constants that definitions made become initialisers of the graph.
    """
    known = weights(model)
    out: dict[str, Weight] = {}
    taken = {known[name].name for name in raw if name in known}
    for own, t in raw.items():
        if own in known:
            out[own] = known[own]
            continue
        if own not in model.graph.initializers:
            assert t.data is not None
            held = ir.tensor(np.ascontiguousarray(t.data()), dtype=ir.DataType(t.dtype.code), name=own)
            model.graph.initializers[own] = ir.Value(name=own, const_value=held)
        name = own
        while name in taken:
            name += ".constant"
        taken.add(name)
        out[own] = Weight(name, own, role="constant", storage=t.dtype.name if t.dtype.bits < 8 else None)
    return out
