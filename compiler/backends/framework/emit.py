"""What both framework backends do around their printers: the frame of the file, the tables, the folder."""

from __future__ import annotations

import ast
import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import onnx_ir as ir

from fusile.backends.framework import weights as wf
from fusile.backends.framework.code import Code, Plain, call, layout, literal
from fusile.backends.framework.common import Framework, Place, Printer, stored_axes
from fusile.backends.framework.source import signature
from fusile.errors import UsageError
from fusile.graph.tensors import Role, Weight

MODEL_FILE, WEIGHTS_FILE = "model.py", "weights.safetensors"


@dataclass(frozen=True, slots=True)
class EmitReport:
    """What was written: the files, and the tensors of the module by what they are for.

    Each list holds (name in the weights file, shape) in the order of use.
    """

    files: tuple[Path, ...]
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    buffers: tuple[tuple[str, tuple[int, ...]], ...]
    constants: tuple[tuple[str, tuple[int, ...]], ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def size(self) -> int:
        """Number of trainable elements."""
        return sum(_product(shape) for _, shape in self.parameters)


def _product(shape: Sequence[int]) -> int:
    out = 1
    for size in shape:
        out *= size
    return out


def write_folder(
    folder: Path, source: str, model: ir.Model, known: Mapping[str, Weight], notes: Sequence[str] = ()
) -> EmitReport:
    """Write model.py and weights.safetensors, both or neither. Makes the folder, and leaves none that it made
    where writing fails. Raises UsageError where the place cannot be written.
    """
    ast.parse(source)
    part = folder / (MODEL_FILE + ".part")
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(source, encoding="utf-8")
        wf.write(folder / WEIGHTS_FILE, model, known)
        os.replace(part, folder / MODEL_FILE)
    except OSError as error:  # its text may name a file that nobody asked for
        raise UsageError(
            f"The folder {str(folder)!r} cannot be written to",
            why=error.strerror or str(error),
            todo="Choose another one",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
            if made:
                folder.rmdir()  # only an empty one goes
    lists: dict[Role, list[tuple[str, tuple[int, ...]]]] = {"param": [], "buffer": [], "constant": []}
    for own, weight in known.items():
        held = model.graph.initializers[own].const_value
        assert held is not None
        shape = [int(n) for n in held.shape.numpy()]
        shape = [shape[axis] for axis in weight.perm] if weight.perm is not None else shape
        lists[weight.role].append((weight.name, tuple(shape)))
    files = (folder / MODEL_FILE, folder / WEIGHTS_FILE)
    found = (tuple(lists["param"]), tuple(lists["buffer"]), tuple(lists["constant"]))
    return EmitReport(files, *found, notes=tuple(notes))


def fill(framework: Framework, values: Mapping[str, Any]) -> str:
    """The frame of a file with its parts filled in."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fusile.templates", framework.name),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    return environment.get_template("model.py.j2").render(values)


_FRAME_NAMES = frozenset(
    (
        "CONSTANTS BUFFERS IGNORED NamedTuple PARAMETERS Path WEIGHTS abs bool dict float int isinstance"
        " len list load load_file load_weights max min print range safe_open save_file save_weights self"
        " set slice sorted str sum super tuple type zip"
    ).split()
)
"""What every emitted file imports, defines or takes from Python."""


def reserved(framework: str, own: frozenset[str]) -> frozenset[str]:
    """Names that variables of an emitted function may not have: those of the frame and of all helpers."""
    loader = jinja2.PackageLoader("fusile.templates", framework)
    helpers = {Path(name).name.removesuffix(".py.j2") for name in loader.list_templates()}
    return own | _FRAME_NAMES | helpers | {f"{name}_step" for name in helpers}


def helper_sources(framework: Framework, printer: Printer, needs: Mapping[str, Sequence[str]]) -> str:
    """The text of helper functions and of those that they call, sorted by name; then of printed programs."""
    wanted: set[str] = set()
    pending = list(printer.helpers)
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted.add(name)
            pending += needs.get(name, ())
    loader = jinja2.PackageLoader("fusile.templates", framework.name)
    environment = jinja2.Environment(loader=loader, autoescape=False)
    texts = [loader.get_source(environment, f"helpers/{name}.py.j2")[0] for name in sorted(wanted)]
    texts += ["\n".join(lines) for lines in printer.functions]
    return "\n\n".join(text.strip() + "\n" for text in texts)


# ---- parts of the file -------------------------------------------------------------------------------


def one_line(text: str, most: int = 60) -> str:
    """A name out of a model for a docstring or comment: printable, short, unable to end the string."""
    clean = "".join(c if c.isprintable() and c not in '"\\' else " " for c in text)
    clean = re.sub(r"\s+", " ", clean).strip()
    return clean if len(clean) <= most else clean[: most - 3].rstrip() + "..."


def shape_text(value: ir.Value) -> str:
    """`float32[batch, 3, 224, 224]`"""
    kind = value.dtype.name.lower() if value.dtype is not None else "tensor"
    kind = {"float": "float32", "double": "float64"}.get(kind, kind)
    if value.shape is None:
        return kind
    sizes = (str(d) if isinstance(d, int) else _dim_text(d.value or "?") for d in value.shape)
    return f"{kind}[{', '.join(sizes)}]"


def _dim_text(text: str) -> str:
    clean = one_line(text, 24) or "?"
    return clean[1:-1] if re.fullmatch(r"\([^()]*\)", clean) else clean


def forward_doc(printer: Printer) -> list[str]:
    """The docstring of the forward function: inputs and outputs with their shapes."""
    lines = ['"""', "Inputs:"]
    for var, value in zip(printer.arguments, printer.model.graph.inputs, strict=True):
        lines.append(f"    {var.hint}: {shape_text(value)}")
    lines.append("Outputs:")
    for value in printer.model.graph.outputs:
        lines.append(f"    {one_line(str(value.name), 40) or 'output'}: {shape_text(value)}")
    return [*lines, '"""']


def layer_lines(printer: Printer, indent: int) -> list[str]:
    """The attributes of the module, in the order of use."""
    out: list[str] = []
    for layer in printer.layers:
        before = f"self.{layer.attribute} = " if layer.assign else ""
        out += layout(before, layer.constructor, "", indent, {})
    return out


def method_lines(printer: Printer) -> list[str]:
    """The methods that graphs inside nodes became, each after an empty line."""
    words = printer.framework.words()
    out: list[str] = []
    for title, body, doc in printer.methods:
        body.reserved |= printer.names()
        typed = ["self", *(words.parameter(var.hint, var.tensor) for var in body.arguments)]
        out += ["", *signature(f"def {title}", typed, words.answer("tuple"), 4)]
        out += [f'        """{doc}"""', *body.lines(8)]
    return out


def table(name: str, role: str, printer: Printer) -> list[str]:
    """One of the three lists: module tensor -> where it lies in the weights file."""
    rows = [(path, weight, place) for path, (weight, place) in printer.tensors.items() if weight.role == role]
    if not rows:
        return [f"{name}: dict[str, Stored] = {{}}"]
    out = [f"{name}: dict[str, Stored] = {{"]
    for path, weight, place in rows:
        out += layout(f"{literal(path)}: ", stored(weight, place), ",", 4, {})
    return [*out, "}"]


def ignored(printer: Printer) -> list[str]:
    """A set of the file's tensors that the module has no use for; nothing where there is none."""
    used = {weight.name for weight, _ in printer.tensors.values()}
    names = [weight.name for weight in printer.weights.values() if weight.name not in used]
    if not names:
        return []
    return ["IGNORED = {", *(f"    {literal(name)}," for name in names), "}"]


def stored(weight: Weight, place: Place) -> Code:
    """`Stored(...)` of one tensor."""
    given: dict[str, Plain] = {}
    if place.part:
        given["part"] = tuple(p if isinstance(p, int) else call("slice", *p) for p in place.part)
    if place.gates:
        given["gates"] = place.gates
    axes = stored_axes(weight, place)
    if axes:
        given["axes"] = axes
    if place.shape and place.shape != _file_shape(weight, place):
        given["shape"] = place.shape
    if place.halves:
        given["halves"] = True
    return call("Stored", weight.name, **given)


def _file_shape(weight: Weight, place: Place) -> tuple[int, ...]:
    held = place.value.const_value
    assert held is not None
    shape = tuple(int(n) for n in held.shape.numpy())
    return shape if weight.perm is None else tuple(shape[axis] for axis in weight.perm)


def uses(text: str, word: str) -> bool:
    """Whether a dotted name occurs in the source."""
    return re.search(rf"(?<![\w.]){re.escape(word)}", text) is not None
