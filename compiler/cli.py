"""The command line: `fusile check | compile | emit | run | verify | bench | explain | cache`.

Exit codes: 0 done, 1 results differ, 2 usage, 3 the model is unsupported, 4 refused for safety.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import fusile
from fusile.errors import FusileError, UnsupportedError, UsageError, show_name, show_names
from fusile.options import KERNEL_TARGETS, Options, make_options, parse_dim_sets, parse_dims
from fusile.report import Progress, silent

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fusile.runtime.module import Port, Value

INTERNAL_ERROR = 70
INTERRUPTED = 130

app = typer.Typer(
    name="fusile",
    help="Compile ONNX models to native modules, Numba kernels, PyTorch and Keras source.\n\n"
    "Exit codes: 0 done, 1 results differ, 2 usage, 3 the model is unsupported, 4 refused for safety.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache_app = typer.Typer()
app.add_typer(cache_app, name="cache")

Model = Annotated[Path, typer.Argument(help="The ONNX file.", show_default=False)]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Where to write.", show_default=False)]
Dims = Annotated[str, typer.Option("--dims", metavar="batch=1,seq=128", help="Fix symbolic dimensions.")]
DimSets = Annotated[
    str,
    typer.Option("--dims", metavar="batch=1;batch=4", help="Sizes; sets with ; share one symbolic module."),
]
Threads = Annotated[int | None, typer.Option("--threads", help="Threads of a run.", show_default="all CPUs")]
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
    Path | None, typer.Option("--weights", help="A safetensors file in place of the model's weights.")
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
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more, and show tracebacks of faults.")]
DumpIr = Annotated[
    Path | None, typer.Option("--dump-ir", metavar="DIR", help="Write every level of the compiler as text.")
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
    _begin(verbose)
    options = make_options(target=target, dims=parse_dims(dims), precision=precision)
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
    _begin(verbose)
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
    if options.target not in KERNEL_TARGETS:
        raise UsageError(
            f"{target!r} is a target for source code", todo=f"Use fusile emit MODEL --to {target}"
        )
    if options.target != "native":
        _emit(model, target, output, options, force, as_json)
        return
    from fusile.tools.outputs import beside, claim

    place = output or Path(model.with_suffix(".so").name)
    claim([*beside(place), *([place.with_suffix(".weights")] if weights_beside else [])], force)
    start = time.perf_counter()
    with _progress() as tell:
        module = fusile.compile(_model(model), progress=tell, **_as_keywords(options))
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
    _begin(verbose)
    options = make_options(dims=parse_dims(dims), precision=precision, opt_level=level)
    _emit(model, to, output, options, force, as_json)


@app.command()
def run(
    model: Annotated[Path, typer.Argument(help="An ONNX file, or a compiled .so.", show_default=False)],
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
    _begin(verbose)
    from fusile.tools.arrays import write_npz
    from fusile.tools.inputs import draw_accepted, read_inputs
    from fusile.tools.outputs import claim

    sizes = parse_dims(dims)
    if output is not None:
        if output.suffix != ".npz":
            raise UsageError(f"Outputs are written as .npz, not as {show_name(output.name)}")
        claim([output], force)
    with _progress() as tell:
        if model.suffix in (".so", ".dylib", ".dll"):
            module = fusile.load(_model(model))
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
    """Compare a target with ONNX Runtime, and find the first node that differs. Needs fusile[verify]."""
    _begin(verbose)
    with _progress() as tell:
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
        _print_lines([report.table(), bound_text, str(report.first or report.search)])
    if not report.ok:
        raise typer.Exit(fusile.DifferenceError.exit_code)


@app.command()
def bench(
    model: Model,
    target: Target = "native",
    dims: Dims = "",
    threads: Threads = 1,
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
    _begin(verbose)
    with _progress() as tell:
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
        _print_json({"folder": str(store.root), "persistent": store.persistent, "usage": entries})
        return
    print(store.root if store.persistent else "the cache is turned off (FUSILE_CACHE=0)")
    for use in usage:
        print(f"  {use.kind}: {use.entries} entries, {amount(use.bytes)}")


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
    _begin(verbose)
    options = make_options(
        target=target, dims=parse_dims(dims), precision=precision, cpu=cpu, opt_level=level
    )
    with _progress() as tell:
        tell("compiling")
        report = fusile.explain(_model(model), **_as_keywords(options))
    if as_json:
        _print_json(report.to_json())
    else:
        from fusile.tools.explain import explain_lines

        _print_lines(explain_lines(report))


def _emit(model: Path, to: str, output: Path | None, options: Options, force: bool, as_json: bool) -> None:
    start = time.perf_counter()
    place = output or Path(f"{model.stem}_{to}")
    with _progress() as tell:
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
        print(note)


def _as_keywords(options: Options, without: Sequence[str] = ()) -> dict[str, Any]:
    """Checked options as keyword arguments of the public functions."""
    return {name: getattr(options, name) for name in options.__slots__ if name not in without}


def _model(path: Path) -> Path:
    if not path.is_file():
        why = "it is a folder" if path.is_dir() else None
        raise UsageError(f"There is no file {str(path)!r}", why=why)
    return path


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()] or [0]
    except ValueError:
        raise UsageError(f"{text!r} is no list of whole numbers", todo="Write it as 0,1,2") from None


@contextmanager
def _progress() -> Iterator[Progress]:
    """A progress line on standard error while it is a terminal; otherwise nothing."""
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


def _begin(verbose: bool) -> None:
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")


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
            console.print(Text(line) if isinstance(line, str) else line, highlight=False)


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
    try:
        app()
    except FusileError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        _say(f"error: {error.filename or 'the system'}: {error.strerror or error}")
        sys.exit(UsageError.exit_code)
    except MemoryError:
        _say("error: there is not enough memory for this model")
        sys.exit(UsageError.exit_code)
    except Exception as error:  # the last line of defence: whatever is a fault of ours
        if {"-v", "--verbose"} & set(sys.argv):
            traceback.print_exc()
        _say(
            f"internal error: {type(error).__name__}: {error}\n"
            "This is a fault in fusile. The same command with -v shows where it happened."
        )
        sys.exit(INTERNAL_ERROR)
    sys.exit(0)


def _say(text: str) -> None:
    """A message on standard error, without control characters that a model's strings may hold."""
    shown = "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)
    print(f"fusile: {shown}", file=sys.stderr)


if __name__ == "__main__":
    main()
