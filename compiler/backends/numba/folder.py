"""An emitted folder: `model.py` and the weights file that it loads."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from fusile import frontend
from fusile.backends.framework import weights as weights_file
from fusile.backends.framework.emit import MODEL_FILE, WEIGHTS_FILE, EmitReport
from fusile.backends.numba.source import Target, print_module
from fusile.graph.cleanup import clean_up
from fusile.graph.tensors import Weight, weights
from fusile.ir.plan import Plan
from fusile.ir.tensor import Tensor
from fusile.options import Options
from fusile.passes.to_tensor import defined


def write_folder(
    model: ir.Model, folder: Path, options: Options, plan_of: Callable[[ir.Model, Options], Plan], target: Target
) -> EmitReport:
    """Write both files, or neither. The graph is canonical; it is changed in place.

    Raises UnsupportedError with every operator that has no definition.
    """
    frontend.expand(model, defined)
    clean_up(model)
    plan = plan_of(model, options)
    printed = print_module(plan, target, options, cache=True)
    ast.parse(printed.text)
    known = stored_weights(model, printed.raw)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / (MODEL_FILE + ".part")
    try:
        part.write_text(printed.text, encoding="utf-8")
        weights_file.write(folder / WEIGHTS_FILE, model, known)
        os.replace(part, folder / MODEL_FILE)
    finally:
        part.unlink(missing_ok=True)
    lists: dict[str, list[tuple[str, tuple[int, ...]]]] = {"param": [], "buffer": [], "constant": []}
    for own, weight in known.items():
        held = model.graph.initializers[own].const_value
        assert held is not None
        shape = [int(n) for n in held.shape.numpy()]
        lists[weight.role].append((weight.name, tuple(shape[a] for a in weight.perm) if weight.perm is not None else tuple(shape)))
    files = (folder / MODEL_FILE, folder / WEIGHTS_FILE)
    return EmitReport(files, *(tuple(lists[role]) for role in ("param", "buffer", "constant")))


def stored_weights(model: ir.Model, raw: tuple[Tensor, ...]) -> dict[str, Weight]:
    """The initialisers that the module loads, named as in the other weights files where those have them."""
    known = weights(model)
    out: dict[str, Weight] = {}
    taken = {known[t.name].name for t in raw if t.name in known}
    for t in raw:
        if t.name in known:
            out[t.name] = known[t.name]
            continue
        name = t.name
        while name in taken:
            name += ".constant"
        taken.add(name)
        out[t.name] = Weight(name, t.name, role="constant", storage=t.dtype.name if t.dtype.bits < 8 else None)
    return out
