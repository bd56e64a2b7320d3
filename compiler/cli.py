"""The command line: `fusile check | compile | emit | run | verify | bench | explain | cache`.

Exit codes: 0 done, 1 results differ, 2 usage, 3 the model is unsupported, 4 refused for safety, 70 a fault
in fusile itself.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import fusile
from fusile.errors import (
    FusileError,
    InternalError,
    UnsupportedError,
    UsageError,
    show_name,
    show_names,
    show_text,
)
from fusile.options import Options, check_kernel_target, make_options, parse_dim_sets, parse_dims
from fusile.report import Progress, silent

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fusile.runtime.module import Port, Value

INTERNAL_ERROR = InternalError.exit_code
INTERRUPTED = 130
_GARBAGE = (200_000, 20, 100)
"""When garbage is collected: a command makes graphs of many small objects, nearly all of which live until it
ends, and looking through them again and again takes a fifth of `fusile check`.
"""

app = typer.Typer(
    name="fusile",
    help="Compile ONNX models to native modules, Numba kernels, PyTorch and Keras source.\n\n"
    "Exit codes: 0 done, 1 results differ, 2 usage, 3 the model is unsupported, "
    "4 refused for safety, 70 a fault in fusile itself.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache_app = typer.Typer()
app.add_typer(cache_app, name="cache")


def _path(text: str) -> Path:
    """A path as it was typed. An empty one (a variable of a shell that is not set) would mean this folder."""
    if not text.strip():
        raise UsageError("The name of a file is empty", todo="Give a name, or leave the flag out")
    return Path(text)


Model = Annotated[
    Path, typer.Argument(parser=_path, metavar="MODEL", help="The ONNX file.", show_default=False)
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", parser=_path, metavar="PATH", help="Where to write.", show_default=False),
]
Dims = Annotated[str, typer.Option("--dims", metavar="batch=1,seq=128", help="Fix symbolic dimensions.")]
DimSets = Annotated[
    str,
    typer.Option("--dims", metavar="batch=1;batch=4", help="Sizes; sets with ; share one symbolic module."),
]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of a run.", show_default="all CPUs")]
BenchThreads = Annotated[int, typer.Option("--threads", help="Threads of a run.")]
Precision = Annotated[
    str, typer.Option("--precision", help="fp32, or bf16: weights of matrix work in bfloat16.")
]
Target = Annotated[str, typer.Option("--target", help="native, numba or cuda.")]
AnyTarget = Annotated[str, typer.Option("--target", help="native, numba, cuda, torch or keras.")]
Triple = Annotated[
    str | None, typer.Option("--target-triple", help="Compile for another machine.", show_default=False)
]
Cpu = Annotated[str, typer.Option("--cpu", help="native, or CPU features: avx2,fma.")]
Level = Annotated[
    int, typer.Option("-O", min=0, max=2, help="0 plain loops, 1 tiled operators, 2 fused and tiled.")
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", parser=_path, metavar="FILE", help="A safetensors file in place of the model's weights."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of drawn inputs and of random operators.")]
Seeds = Annotated[str, typer.Option("--seed", metavar="0,1,2", help="Seeds of drawn inputs, one case each.")]
Rtol = Annotated[float | None, typer.Option("--rtol", help="Relative tolerance, as in numpy.allclose.")]
Atol = Annotated[float | None, typer.Option("--atol", help="Absolute tolerance, as in numpy.allclose.")]
Bound = Annotated[
    float | None,
    typer.Option("--bound", help="Largest error over the root mean square.", show_default="by type"),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--inputs", metavar="FILE.npz|NAME=FILE.npy", help="Inputs from files; others are drawn."),
]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Show the steps with their seconds, and tracebacks of faults.")
]
DumpIr = Annotated[
    Path | None,
    typer.Option("--dump-ir", parser=_path, metavar="DIR", help="Write every level of the compiler as text."),
]
Linker = Annotated[
    str | None, typer.Option("--linker", help="The program to link with.", show_default="the C compiler")
]
WeightsBeside = Annotated[
    bool, typer.Option("--weights-beside", help="Write the weights to a file beside the library.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that fusile did not write.")]


@app.callback(invoke_without_command=True)
def fusile_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        print(f"fusile {fusile.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise UsageError("There is nothing to do", todo="Name a command; fusile --help lists them")


@app.command()
def check(
    model: Model,
    target: AnyTarget = "native",
    dims: Dims = "",
    precision: Precision = "fp32",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say whether a model can be compiled: coverage, size, what would not work and why. Reads no weights."""
    options = make_options(target=target, dims=parse_dims(dims), precision=precision)
    with _progress(verbose) as tell:
        tell("checking")
        report = fusile.check(_model(model), **_as_keywords(options))
    if as_json:
        _print_json(report.to_json())
    else:
        from fusile.tools.explain import check_lines

        _print_lines(check_lines(report))
    if not report.supported:
        raise typer.Exit(UnsupportedError.exit_code)


@app.command()
def compile(
    model: Model,
    output: Output = None,
    target: Target = "native",
    dims: Dims = "",
    threads: Threads = None,
    precision: Precision = "fp32",
    cpu: Cpu = "native",
    target_triple: Triple = None,
    level: Level = 2,
    weights: Weights = None,
    weights_beside: WeightsBeside = False,
    linker: Linker = None,
    dump_ir: DumpIr = None,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compile a model into a native module (model.so, model.h, model.py), or into Numba kernels."""
    check_kernel_target(target, f"Use fusile emit MODEL --to {target}")
    options = make_options(
        target=target,
        dims=parse_dims(dims),
        threads=threads,
        precision=precision,
        cpu=cpu,
        target_triple=target_triple,
        opt_level=level,
        weights=weights,
        dump_ir=dump_ir,
    )
    _model(model)
    if options.target != "native":
        _emit(model, target, output, options, force, as_json, verbose)
        return
    from fusile.tools.outputs import beside, claim

    place = output or Path(model.with_suffix(".so").name)
    claim([*beside(place), *([place.with_suffix(".weights")] if weights_beside else [])], force)
    start = time.perf_counter()
    with _progress(verbose) as tell:
        module = fusile.compile(model, progress=tell, **_as_keywords(options))
        tell("writing the module")
        written = module.save(place, embed=not weights_beside, linker=linker)
    _print_written(written, time.perf_counter() - start, as_json)


@app.command()
def emit(
    model: Model,
    to: Annotated[str, typer.Option("--to", help="torch, keras, numba or cuda.", show_default=False)],
    output: Output = None,
    dims: Dims = "",
    precision: Precision = "fp32",
    level: Level = 2,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a model as source code to read, change and train, into a folder."""
    options = make_options(dims=parse_dims(dims), precision=precision, opt_level=level)
    _emit(model, to, output, options, force, as_json, verbose)


@app.command()
def run(
    context: typer.Context,
    model: Annotated[
        Path,
        typer.Argument(
            parser=_path, metavar="MODEL", help="An ONNX file, or a compiled .so.", show_default=False
        ),
    ],
    inputs: Inputs = None,
    seed: Seed = 0,
    output: Output = None,
    target: Target = "native",
    dims: Dims = "",
    threads: Threads = None,
    precision: Precision = "fp32",
    level: Level = 2,
    weights: Weights = None,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a model on arrays from files, or on drawn ones, and print the outputs or write them as .npz."""
    from fusile.tools.arrays import write_npz
    from fusile.tools.inputs import draw_accepted, read_inputs
    from fusile.tools.outputs import claim

    sizes = parse_dims(dims)
    check_kernel_target(target, f"Use fusile emit MODEL --to {target}")
    if output is not None:
        if output.suffix != ".npz":
            raise UsageError(f"Outputs are written as .npz, not as {show_name(output.name)}")
        claim([output], force)
    with _progress(verbose) as tell:
        if model.suffix in (".so", ".dylib", ".dll"):
            _refuse_build_flags(context, model)
            module = fusile.load(_model(model), threads=threads)
            _refuse_fixed_dims(sizes, module.inputs, model)
        else:
            options = make_options(
                target=target, dims=sizes, threads=threads, precision=precision, opt_level=level,
                weights=weights, seed=seed,
            )  # fmt: skip
            module = fusile.compile(_model(model), progress=tell, **_as_keywords(options))
        given = read_inputs(inputs or [], module.inputs)
        drawn = [port for port in module.inputs if port.name not in given and not port.optional]
        tell("running")
        _, outputs = draw_accepted(drawn, seed, sizes, lambda new: module(**given, **new), (fusile.RunError,))
    for port in drawn:
        _note(f"input {show_name(port.name)} was drawn (seed {seed})")
    answers = dict(zip([port.name for port in module.outputs], outputs))
    if output is not None:
        write_npz(output, answers)
        _note(f"wrote {output}")
    elif as_json:
        _print_json({name: _plain(value) for name, value in answers.items()})
    else:
        _print_values(module.outputs, outputs)


@app.command()
def verify(
    model: Model,
    target: AnyTarget = "native",
    dims: DimSets = "",
    seeds: Seeds = "0",
    inputs: Inputs = None,
    rtol: Rtol = None,
    atol: Atol = None,
    bound: Bound = None,
    threads: Threads = None,
    precision: Precision = "fp32",
    cpu: Cpu = "native",
    level: Level = 2,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare a target with ONNX Runtime, and find the first node that differs.

    Needs ONNX Runtime, which the extra "verify" installs.
    """
    with _progress(verbose) as tell:
        report = fusile.verify(
            _model(model),
            seeds=_whole_numbers(seeds),
            dim_sets=parse_dim_sets(dims),
            inputs=inputs or [],
            bound=bound,
            rtol=rtol,
            atol=atol,
            progress=tell,
            target=target,
            threads=threads,
            precision=precision,
            cpu=cpu,
            opt_level=level,
        )
    if as_json:
        _print_json(report.to_json())
    else:
        bound_text = f"agreement is an error of at most {report.tolerance} ({report.reason})"
        found = [str(part) for part in (report.first, report.search) if part]
        _print_lines([report.table(), bound_text, *found])
    if not report.ok:
        raise typer.Exit(fusile.DifferenceError.exit_code)


@app.command()
def bench(
    model: Model,
    target: Target = "native",
    dims: Dims = "",
    threads: BenchThreads = 1,
    precision: Precision = "fp32",
    cpu: Cpu = "native",
    inputs: Inputs = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Bursts per engine.")] = 7,
    burst: Annotated[float, typer.Option("--burst", help="Seconds per burst.")] = 0.25,
    weights: Weights = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Time a model fused, unfused and in ONNX Runtime, side by side, and compare the answers."""
    with _progress(verbose) as tell:
        report = fusile.bench(
            _model(model),
            rounds=rounds,
            burst=burst,
            inputs=inputs or [],
            progress=tell,
            target=target,
            dims=parse_dims(dims),
            threads=threads,
            precision=precision,
            cpu=cpu,
            weights=weights,
        )
    if as_json:
        _print_json(report.to_json())
    else:
        _print_lines([report.table()])
    if not report.ok:
        raise typer.Exit(fusile.DifferenceError.exit_code)


@cache_app.callback(invoke_without_command=True)
def cache(context: typer.Context, as_json: Json = False) -> None:
    """Where the artefact cache is and how much it holds; `clear` empties it."""
    if context.invoked_subcommand is not None:
        return
    from fusile.runtime.cache import open_cache
    from fusile.tools.explain import amount

    store = open_cache()
    usage = store.usage()
    if as_json:
        entries = [{"kind": use.kind, "entries": use.entries, "bytes": use.bytes} for use in usage]
        _print_json(
            {"folder": str(store.root), "persistent": store.persistent, "why": store.why, "usage": entries}
        )
        return
    print(store.root if store.persistent else f"nothing is kept between runs: {show_text(store.why)}")
    for use in usage:
        entries_text = "1 entry" if use.entries == 1 else f"{use.entries} entries"
        print(f"  {use.kind}: {entries_text}, {amount(use.bytes)}")


@cache_app.command("clear")
def cache_clear(as_json: Json = False) -> None:
    """Remove everything from the cache."""
    from fusile.runtime.cache import open_cache
    from fusile.tools.explain import amount

    freed = open_cache().clear()
    if as_json:
        _print_json({"freed_bytes": freed})
    else:
        print(f"freed {amount(freed)}")


@app.command()
def explain(
    model: Model,
    target: Target = "native",
    dims: Dims = "",
    precision: Precision = "fp32",
    cpu: Cpu = "native",
    level: Level = 2,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Print kernels and fusion groups, the bytes they save, and every refusal with its reason."""
    with _progress(verbose) as tell:
        tell("compiling")
        report = fusile.explain(
            _model(model),
            target=target,
            dims=parse_dims(dims),
            precision=precision,
            cpu=cpu,
            opt_level=level,
        )
    if as_json:
        _print_json(report.to_json())
    else:
        from fusile.tools.explain import explain_lines

        _print_lines(explain_lines(report))


def _emit(
    model: Path,
    to: str,
    output: Path | None,
    options: Options,
    force: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    start = time.perf_counter()
    place = output or Path(f"{model.stem}_{to}")
    with _progress(verbose) as tell:
        tell(f"writing {to} source")
        report = fusile.emit(
            _model(model), to, place, force=force, **_as_keywords(options, without=("target",))
        )
    seconds = time.perf_counter() - start
    lists = {"parameters": report.parameters, "buffers": report.buffers, "constants": report.constants}
    if as_json:
        files = [str(path) for path in report.files]
        _print_json({"written": files, "seconds": seconds, **lists, "notes": report.notes})
        return
    _print_written(report.files, seconds, False)
    for kind, tensors in lists.items():
        print(f"{kind} ({len(tensors)}): {show_names((name for name, _ in tensors), 6)}")
    for note in report.notes:
        print(show_text(note))


def _as_keywords(options: Options, without: Sequence[str] = ()) -> dict[str, Any]:
    """Checked options as keyword arguments of the public functions."""
    return {name: getattr(options, name) for name in options.__slots__ if name not in without}


def _model(path: Path) -> Path:
    if not path.is_file():
        why = "it is a folder" if path.is_dir() else None
        raise UsageError(f"There is no file {str(path)!r}", why=why)
    return path


_BUILD_FLAGS = {"target": "--target", "precision": "--precision", "level": "-O", "weights": "--weights"}


def _refuse_build_flags(context: typer.Context, library: Path) -> None:
    """A compiled library is what it was compiled to be; flags that ask for something else are no wishes."""
    given = [
        flag
        for name, flag in _BUILD_FLAGS.items()
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    ]
    if given:
        raise UsageError(
            f"{' and '.join(given)} cannot be chosen for {str(library)!r}",
            why="a compiled module already has these fixed",
            todo="Leave them out, or compile the model again with them",
        )


def _refuse_fixed_dims(sizes: Iterable[str], ports: Sequence[Port], library: Path) -> None:
    """Sizes are for drawn inputs here: only dimensions that the module leaves open have any."""
    texts = [dim for port in ports for dim in port.shape or () if isinstance(dim, str)]
    open_dims = {*texts, *(word for text in texts for word in re.findall(r"\w+", text))}
    fixed = [name for name in sizes if name not in open_dims]
    if fixed:
        raise UsageError(
            f"--dims gives a size to {show_names(fixed)}, which {str(library)!r} does not leave open",
            why="a compiled module already has its sizes fixed",
            todo=f"Its open dimensions are {show_names(sorted(set(texts)))}" if texts else "Leave it out",
        )


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()] or [0]
    except ValueError:
        raise UsageError(f"{text!r} is no list of whole numbers", todo="Write it as 0,1,2") from None


class _Steps:
    """A Progress that says each step with its seconds once it is over."""

    def __init__(self) -> None:
        self._stage = ""
        self._start = 0.0

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        if stage != self._stage:
            self.end()
            self._stage, self._start = stage, time.perf_counter()

    def end(self) -> None:
        if self._stage:
            _note(f"{self._stage}: {time.perf_counter() - self._start:.2f} s")
        self._stage = ""


@contextmanager
def _progress(verbose: bool) -> Iterator[Progress]:
    """The steps and their seconds on standard error where they were asked for, else a progress line while it
    is a terminal, else nothing.
    """
    if verbose:
        steps = _Steps()
        try:
            yield steps
        finally:
            steps.end()
        return
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(stage: str, done: int = 0, total: int = 0) -> None:
            bar.update(task, description=f"{stage} {done}/{total}" if total else stage)

        yield tell


def _note(text: str) -> None:
    print(f"fusile: {text}", file=sys.stderr)


def _print_json(plain: object) -> None:
    print(json.dumps(plain, indent=1, default=str))


def _print_lines(lines: Iterable[RenderableType]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 160)
    for line in lines:
        if line != "":
            shown = Text(show_text(line, kept="\n")) if isinstance(line, str) else line
            console.print(shown, highlight=False)


def _print_written(written: Sequence[Path], seconds: float, as_json: bool) -> None:
    sizes = {str(path): path.stat().st_size for path in written}
    if as_json:
        _print_json({"written": sizes, "seconds": seconds})
        return
    from fusile.tools.explain import amount

    for path, size in sizes.items():
        print(f"{path}  {amount(size)}")
    _note(f"done in {seconds:.1f} s")


def _print_values(ports: Sequence[Port], values: Sequence[Value]) -> None:
    import numpy as np

    with np.printoptions(threshold=64, edgeitems=4, precision=6):
        for port, value in zip(ports, values):
            shape = f"[{', '.join(map(str, value.shape))}]" if isinstance(value, np.ndarray) else ""
            print(f"{show_name(port.name)}: {port.type}{shape}\n{value}")


def _plain(value: Value) -> Any:
    """A value as JSON has it; numbers that JSON lacks become text."""
    import numpy as np

    if isinstance(value, np.ndarray):
        kind = value.dtype.kind
        array = value.astype(np.float32) if kind == "V" else value
        return array.astype(str).tolist() if kind == "c" else array.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def main() -> NoReturn:
    """Run the command line and leave with its exit code; users see messages, never tracebacks."""
    gc.set_threshold(*_GARBAGE)
    try:
        app()
    except SystemExit as left:
        # The parser of the command line has printed its refusal, which is where its exit came from.
        refusal = getattr(left.__context__, "format_message", None)
        if refusal is not None:
            _tell_json(refusal(), int(left.code or 0))
        raise
    except FusileError as error:
        gaps = error.gaps if isinstance(error, UnsupportedError) else ()
        _fail("error", str(error), error.exit_code, **({"gaps": list(map(asdict, gaps))} if gaps else {}))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        _fail("error", f"{error.filename or 'the system'}: {error.strerror or error}", UsageError.exit_code)
    except MemoryError:
        _fail("error", "there is not enough memory for this model", UsageError.exit_code)
    except Exception as error:  # the last line of defence: whatever is a fault of ours
        if {"-v", "--verbose"} & set(sys.argv):
            traceback.print_exc()
        _fail(
            "internal error",
            f"{type(error).__name__}: {error}\n"
            "This is a fault in fusile. The same command with -v shows where it happened.",
            INTERNAL_ERROR,
        )
    sys.exit(0)


def _fail(kind: str, text: str, code: int, **more: Any) -> NoReturn:
    """Leave with a message on standard error, and as JSON on standard output where that was asked for."""
    shown = show_text(f"{kind}: {text}", kept="\n")  # a model's strings may hold control signs
    print(f"fusile: {shown}", file=sys.stderr)
    _tell_json(text, code, **more)
    sys.exit(code)


def _tell_json(text: str, code: int, **more: Any) -> None:
    if "--json" in sys.argv:
        _print_json({"ok": False, "error": text, "exit": code, **more})


if __name__ == "__main__":
    main()
