"""The text of an emitted module: the frame of a target, filled in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np

from fusile.backends.numba.helpers import Helpers
from fusile.backends.numba.kernels import RESERVED, Dialect, Function, Library, Surroundings, Use
from fusile.backends.numba.plan import PlanPrinter, Sites, Words, tuple_text
from fusile.capabilities import FUNCTIONS
from fusile.escape import comment_text, python_string
from fusile.ir.expr import Const, Dim
from fusile.ir.loops import Kernel
from fusile.ir.plan import Plan
from fusile.ir.tensor import Tensor
from fusile.ir.text import tensor_text
from fusile.ir.types import DType, numpy_dtype
from fusile.options import Options

FRAME = (
    "json",
    "math",
    "threading",
    "Path",
    "Weights",
    "numba",
    "np",
    "ml_dtypes",
    "njit",
    "cpu_count",
    "pairwise",
    "Threads",
    "spread",
    "ThreadPoolExecutor",
    "cuda",
    "libdevice",
    "WEIGHTS",
    "kernel",
    "helper",
    "INPUTS",
    "OUTPUTS",
    "SITES",
    "SHAPES",
    "RunError",
    "new_error",
    "check",
    "require",
    "known_size",
    "prepare",
    "run",
    "Model",
    "Stored",
    "load",
    "THREADS",
    "config",
    "memory",
    "launch_blocks",
)
"""Names of the frames: nothing generated may take them."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a target brings: the folder of its templates, how kernels print, how plans print, which functions
    are expressions of ours."""

    name: str
    dialect: Dialect
    words: Words
    printed: frozenset[str]
    of_bits: bool
    imports: Callable[[Sequence[str]], list[str]]
    """Lines that bring the functions of these names."""
    host: str = ""
    """Behind the names of helpers of the host program, where it cannot call those of kernels."""


@dataclass(frozen=True, slots=True)
class Module:
    """An emitted module in parts. `kernels` gives each kernel's function; `raw` the initialisers that
    `prepare` asks for."""

    text: str
    functions: tuple[Function, ...]
    helpers: tuple[str, ...]
    imports: tuple[str, ...]
    uses: Mapping[Kernel, Use]
    raw: Mapping[str, Tensor]
    types: tuple[str, ...]


def print_module(plan: Plan, target: Target, options: Options, cache: bool) -> Module:
    """The source of a plan for a target."""
    helpers = Helpers(target.printed, target.of_bits)
    sites = Sites()
    weights = {t for t, place in plan.places.items() if place.kind == "weights"}
    surroundings = Surroundings(helpers.use, sites, lambda t: t in weights)
    library = Library(target.dialect, surroundings)
    for k in plan.kernels():
        library.add(k)
    for k in plan.prepare_kernels():
        library.add(k, literals=1)
    functions, uses = library.functions((*FRAME, *RESERVED))
    taken = (*FRAME, *RESERVED, *helpers.texts, *(f.name for f in functions))
    outside = Helpers(FUNCTIONS, suffix=target.host) if target.host else helpers
    printer = PlanPrinter(plan, uses, target.words, outside.use, taken)
    run = printer.run()
    prepare = printer.prepare()
    raw = {name: t for t, name in printer.raw.items()}
    texts = [*helpers.texts.values(), *(f.text.rstrip("\n") for f in functions)]
    imports = target.imports(sorted(helpers.imports))
    if target.host:
        texts += outside.texts.values()
        imports += host_imports(sorted(outside.imports), target.host)
    everything = "\n".join([*texts, run, prepare])
    values = {
        **_header(plan, options),
        "cache": cache,
        "helpers": bool(helpers.texts),
        "import_lines": imports,
        "type_lines": type_lines(everything),
        "sites": [python_string(s) for s in sites.numbers] if len(sites.numbers) > 1 else [],
        "functions": texts,
        "prepare": prepare,
        "run": run,
        "weights_reader": _weights_reader(raw),
        "arithmetic": "math." in everything,
    }
    text = environment(target.name).get_template("model.py.j2").render(values)
    return Module(
        text,
        tuple(functions),
        tuple(helpers.texts.values()),
        tuple(sorted(helpers.imports)),
        uses,
        raw,
        tuple(type_lines(everything)),
    )


def host_imports(names: Sequence[str], suffix: str) -> list[str]:
    """Functions of the host program, from numpy, whose numbers keep their types."""
    own = {n: n.removesuffix("_f64") for n in names}
    other = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "pow": "power"}
    plain = [f"{other.get(own[n], own[n])} as {n}{suffix}" for n in names if own[n] != "erf"]
    out = [f"from math import erf as {n}{suffix}" for n in names if own[n] == "erf"]
    return [*out, f"from numpy import {', '.join(plain)}"] if plain else out


def environment(folder: str) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("fusile.templates", folder),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )


def type_lines(text: str) -> list[str]:
    """Short names of the number types that a text uses."""
    from fusile.backends.numba.scalars import NUMPY_NAMES

    return [
        f"{short} = {name}"
        for short, name in NUMPY_NAMES.items()
        if short != "bool" and re.search(rf"(?<![\w.]){short}\(", text)
    ]


# ---- the header -------------------------------------------------------------------------------------------


def _header(plan: Plan, options: Options) -> dict[str, Any]:
    ports = [*zip((t.name for t in plan.inputs), plan.inputs, strict=True)]
    results = [*zip(plan.output_names, plan.outputs, strict=True)]
    small = [t.dtype for _, t in (*ports, *results)]
    return {
        "title": comment_text(plan.name, 60) or "model",
        "version": _version(),
        "command": command(options),
        "digest": digest(plan),
        "input_lines": [comment_text(f"{name}: {_shape(t)}") for name, t in ports],
        "output_lines": [comment_text(f"{name}: {_shape(t)}") for name, t in results],
        "input_rows": [f"({python_string(name)}, {_dtype(t.dtype)}, {_sizes(t)})" for name, t in ports],
        "output_rows": [f"({python_string(name)}, {_dtype(t.dtype)})" for name, t in results],
        "small_types": any(_dtype(t).startswith("ml_dtypes") for t in small),
        "small_floats": any(t.name == "f16" for t in small),
    }


def _version() -> str:
    from fusile import __version__

    return __version__


def command(options: Options) -> str:
    """The command line that makes this module again."""
    parts = ["fusile emit MODEL.onnx --to", options.target]
    if options.dims:
        parts.append(f"--dims {comment_text(','.join(f'{k}={v}' for k, v in options.dims.items()))}")
    if options.opt_level != 2:
        parts.append(f"-O{options.opt_level}")
    return " ".join(parts)


def digest(plan: Plan) -> str:
    """A hash of what the plan computes, weights aside."""
    from fusile.ir.plan import plan_text

    return hashlib.sha256(plan_text(plan, with_kernels=True).encode("utf-8", "surrogatepass")).hexdigest()


def _shape(t: Tensor) -> str:
    return tensor_text(t).partition(": ")[2] if ": " not in t.name else f"{t.dtype}{list(t.shape)}"


def _dtype(t: DType) -> str:
    d = numpy_dtype(t)
    if t.name == "bool":
        return "np.bool_"
    return f"np.{d.name}" if hasattr(np, d.name) else f"ml_dtypes.{d.name}"


def _sizes(t: Tensor) -> str:
    parts = [
        str(e.value) if isinstance(e, Const) else python_string(e.name) if isinstance(e, Dim) else "None"
        for e in t.shape
    ]
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


def _weights_reader(raw: Mapping[str, Tensor]) -> str:
    rows = [
        f"    {python_string(name)}: {tuple_text([repr(n) for n in t.shape])}," for name, t in raw.items()
    ]
    table = "\n".join(["SHAPES = {", *rows, "}"]) if rows else "SHAPES = {}"
    reader = (
        environment("numba")
        .get_template("weights.py.j2")
        .render(packed=any(t.dtype.bits < 8 and t.dtype.kind != "b" for t in raw.values()))
    )
    return f"{table}\n\n\n{reader.rstrip()}"
