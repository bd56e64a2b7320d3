"""The frontier of a native module: what its plan defines, what the support code gives, how memory lies.

A native module is made of three kinds of LLVM IR, linked together as an in-process image (`link.py`) or as a
`.so` (`shared_library.py`): the *kernels* and the *plan*, printed per model, and the *support code*
(`support/*.ll`), the same for all models. The support code holds the C interface (`api_create`, `api_run`,
...; a `.so` carries a prefix of its own instead of `api`): it checks the arguments, binds the symbols, makes
the outputs and the arena, and calls the plan. No text needs a triple or a data layout: the compile worker
sets both.

In process: link `native_support.support_objects` with the objects of plan and kernels (`link.link_image`),
load the image and call `fusile_create(weights path, weights, weights bytes, host, pool, &instance)`: that is
api_create with `pool.shared_pool(cache).address`. All other functions are those of the C interface.

What a plan module must define, all with `hidden` visibility (`plan_constants` prints the constants, the rest
is code):

    i32 @plan_init(ptr instance, ptr error)
        Once per instance, at its creation. 0, or a status. Most plans only return 0; one with AMX tiles calls
        @fusile_enable_amx.
    i32 @plan_shapes(ptr dims, ptr shapes, ptr error)
        dims: i64[len(symbols)], entered with the symbols that inputs bind and -1 in the others, which the
        plan may fill in (derived symbols). shapes: i64[len(outputs)][8], to be written; -1 where a dimension
        depends on data. 0, or a status after @fusile_error.
    i64 @plan_arena(ptr dims), i64 @plan_scratch(ptr dims)
        Bytes of the arena; bytes of scratch of one thread. -1 where the size overflows (see
        @fusile_size_mul).
    i32 @plan_run(ptr ctx, ptr weights, ptr inputs, ptr outputs, ptr dims, ptr arena, ptr scratch,
                  i64 scratch_stride, ptr error)
        inputs, outputs: arrays of %tensor. On entry all dims of the outputs are written as @plan_shapes said;
        outputs whose dims are all known have `data`, the others get it from @fusile_output when the plan
        knows their size. arena and scratch are aligned to 64 bytes, scratch_stride is @plan_scratch rounded
        up to 64. error: the run's record, all zeros on entry. Floating point state is set (see
        FLUSH_DENORMALS). Returns 0, or the code in the record.
    i32 @plan_prepare(ptr ctx, i32 step, ptr raw, ptr packed, ptr error)
        Packs one group of weights: raw is an array of pointers to the raw bytes of that step's initialisers,
        in the order which the plan states; packed is the start of the whole packed block (`weights_bytes`,
        aligned to 64). Any order of steps gives the same block.

What the support code gives to kernels and plan (`DECLARATIONS` is the text to put at the top of a module):

    void @fusile_parallel(ptr ctx, ptr kernel, ptr frame, i64 count, i64 grain, ptr scratch, i64 stride)
        Runs `void kernel(ptr frame, i64 begin, i64 end, ptr scratch)` over [0, count). Chunks start at
        multiples of grain and are grain long (the last may be shorter); with one thread, count <= grain or a
        pool that is taken it is one call, so results must not depend on where chunks begin. ctx is the run's
        context and says how many threads may take part; the participant w gets scratch + w * stride. May be
        called from a kernel (nested).
    void @fusile_error(ptr error, i32 code, i32 site, i64 a, i64 b)
        Sets the error record; the first one wins. code is a Status, site indexes `sites`.
    i64 @fusile_size_mul(i64, i64), i64 @fusile_size_add(i64, i64)
        Sizes >= 0. -1 ("too large") where that overflows, or where a -1 goes in.
    ptr @fusile_output(ptr ctx, i32 output, ptr dims, i32 site, ptr error)
        The data of an output whose dims are known only now: checks the capacity or allocates. Null after
        setting the error.
    ptr @fusile_temp(ptr ctx, i64 bytes, i32 site, ptr error), void @fusile_temp_free(ptr ctx, ptr memory)
        Memory of a data-dependent size, aligned to 64, freed at the end of the run at the latest. Null after
        setting the error. For the plan's own thread, not for kernels in parallel loops.
    ptr @fusile_grow(ptr ctx, ptr place, i64 used, i64 more, i32 site, ptr error)
        Room for more bytes behind the used ones of memory that grows; place holds { ptr memory, i64 capacity
        }, zeros at first, and the memory is a temporary. Null after setting the error.
    i32 @fusile_enable_amx()
        1 where this process may use AMX tiles, else 0.

A kernel's frame is an array of 8-byte slots: slot 0 points to the run's error record, then come buffer
pointers, then i64 dims.
"""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fusile.errors import UnsupportedError
from fusile.ir.types import BY_CODE

ABI_VERSION = 1
MAX_RANK = 8
WEIGHTS_ALIGN = 64
FLUSH_DENORMALS = 1  # PlanInterface.flags: run with denormals flushed (FTZ and DAZ); without it they are kept
COMPUTED = -(1 << 63)  # a dimension of a port that is neither fixed nor an input's symbol
REASON = -2  # `b` of an error whose `a` says which reason of the plan it has
_NAME_BYTES = 255  # longest node name in an error, as UTF-8


class Status(enum.IntEnum):
    """What every function of the C interface returns; `a` and `b` of the error are said per code."""

    OK = 0
    BAD_ARGUMENT = 1  # rank, dtype or a dim does not fit, or memory is missing: a = input, b = dim or -1;
    #                   sizes do not fit a node: a = a size or -1; b = REASON where a = which of `reasons`
    OUT_OF_RANGE = 2  # an index in the data: a = index, b = extent
    ZERO_DIVISION = 3  # division by zero, or by a size of zero
    OUT_OF_MEMORY = 4  # a = bytes
    SIZE_OVERFLOW = 5
    CAPACITY = 6  # an output's memory is too small: a = output index, b = bytes needed
    INTERNAL = 7


class Tensor(ctypes.Structure):
    """`struct tensor` of the C interface, %tensor in LLVM IR."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dims", ctypes.c_int64 * MAX_RANK),
        ("capacity", ctypes.c_int64),
    )


ALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


class Host(ctypes.Structure):
    """`struct host_v1`: what the embedding application gives; a null member means the module's own."""

    _fields_ = (
        ("size", ctypes.c_int64),
        ("alloc", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
        ("parallel_for", ctypes.c_void_p),
        ("user", ctypes.c_void_p),
    )


class ErrorReport(ctypes.Structure):
    """`struct error`: what last_error writes."""

    _fields_ = (
        ("code", ctypes.c_int32),
        ("node", ctypes.c_char * (_NAME_BYTES + 1)),
        ("a", ctypes.c_int64),
        ("b", ctypes.c_int64),
    )


class ErrorRecord(ctypes.Structure):
    """%error in LLVM IR: the record that kernels write."""

    _fields_ = (
        ("code", ctypes.c_int32),
        ("site", ctypes.c_int32),
        ("a", ctypes.c_int64),
        ("b", ctypes.c_int64),
    )


Dim = int | str | None
"""A port's dimension: fixed, a symbol, or None where it is computed or depends on data (outputs only)."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a plan: its name in the model, ONNX element type and dims."""

    name: str
    dtype: int
    dims: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class PlanInterface:
    """What the constants of a plan say.

    `symbols` are the entries of `dims`; every symbol of an input must be among them. `sites` are node names:
    the error record's site indexes them, and site 0 should be the empty name (no node). `layout_key` (32
    bytes) names the layout of the packed weights: a weights file carries it, and one made for another layout
    is refused. `reasons` are sentences on what a run may require of its sizes.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    symbols: tuple[str, ...] = ()
    sites: tuple[str, ...] = ("",)
    weights_bytes: int = 0
    layout_key: bytes = bytes(32)
    prepare_steps: int = 0
    flags: int = FLUSH_DENORMALS
    reasons: tuple[str, ...] = ()


TYPES = """\
%tensor = type { ptr, i32, i32, [8 x i64], i64 }
%error = type { i32, i32, i64, i64 }
%port = type { i32, i32, [8 x i64] }
%plan_header = type { i32, i32, i32, i32, i64, i32, i32, [32 x i8] }
"""

DECLARATIONS = """\
declare hidden void @fusile_parallel(ptr, ptr, ptr, i64, i64, ptr, i64)
declare hidden void @fusile_error(ptr, i32, i32, i64, i64)
declare hidden i64 @fusile_size_mul(i64, i64)
declare hidden i64 @fusile_size_add(i64, i64)
declare hidden ptr @fusile_output(ptr, i32, ptr, i32, ptr)
declare hidden ptr @fusile_temp(ptr, i64, i32, ptr)
declare hidden void @fusile_temp_free(ptr, ptr)
declare hidden ptr @fusile_grow(ptr, ptr, i64, i64, i32, ptr)
declare hidden i32 @fusile_enable_amx()
"""


def storage_bits(dtype: int) -> int:
    """Bits that an element of a tensor takes, by ONNX code: at least a byte; 0 for strings and unknown
    codes."""
    bits = BY_CODE[dtype].bits if dtype in BY_CODE else 0
    return max(8, bits) if bits else 0


def description(plan: PlanInterface) -> str:
    """The JSON that `describe` answers: names, ONNX element types and dims of the ports, symbols, sizes."""

    def ports(group: Sequence[Port]) -> list[dict[str, object]]:
        return [{"name": p.name, "dtype": p.dtype, "dims": list(p.dims)} for p in group]

    return json.dumps(
        {
            "abi": ABI_VERSION,
            "name": plan.name,
            "inputs": ports(plan.inputs),
            "outputs": ports(plan.outputs),
            "symbols": list(plan.symbols),
            "weights_bytes": plan.weights_bytes,
            "layout_key": plan.layout_key.hex(),
            "prepare_steps": plan.prepare_steps,
            "flags": plan.flags,
            "reasons": list(plan.reasons),
        },
        ensure_ascii=True,
    )


def plan_constants(plan: PlanInterface) -> str:
    """The constants of a plan as LLVM IR text; needs `TYPES` above it in the module.

    Defines @plan_header, @plan_inputs, @plan_outputs, @plan_dtype_bits, @plan_site_offsets, @plan_site_text
    and @plan_description. Raises UnsupportedError where a port has more than eight dimensions, an unknown
    symbol or no native storage.
    """
    sites = [_short_utf8(name) for name in plan.sites]
    offsets = [0]
    for name in sites:
        offsets.append(offsets[-1] + len(name))
    header = (
        f"i32 {len(plan.inputs)}, i32 {len(plan.outputs)}, i32 {len(plan.symbols)}, i32 {len(sites)}, "
        f"i64 {plan.weights_bytes}, i32 {plan.flags}, i32 {plan.prepare_steps}, "
        f"[32 x i8] {_bytes_text(plan.layout_key)}"
    )
    bits = [storage_bits(code) for code in range(max(BY_CODE) + 1)]
    return "\n".join(
        (
            f"@plan_header = hidden constant %plan_header {{ {header} }}",
            f"@plan_inputs = hidden constant {_ports_text(plan, plan.inputs)}",
            f"@plan_outputs = hidden constant {_ports_text(plan, plan.outputs)}",
            f"@plan_dtype_bits = hidden constant {_array_text('i8', bits + [0] * (64 - len(bits)))}",
            f"@plan_site_offsets = hidden constant {_array_text('i32', offsets)}",
            f"@plan_site_text = hidden constant {_string_text(b''.join(sites))}",
            f"@plan_description = hidden constant {_string_text(description(plan).encode() + bytes(1))}",
            "",
        )
    )


def _ports_text(plan: PlanInterface, ports: Sequence[Port]) -> str:
    rows = []
    for port in ports:
        if len(port.dims) > MAX_RANK:
            raise UnsupportedError(
                (), f"{port.name!r} has {len(port.dims)} dimensions; native modules take up to {MAX_RANK}"
            )
        if not storage_bits(port.dtype):
            raise UnsupportedError(
                (), f"{port.name!r} has element type {port.dtype}, which native modules cannot hold"
            )
        dims = [_dim_code(plan, port, dim) for dim in port.dims] + [0] * (MAX_RANK - len(port.dims))
        rows.append(f"%port {{ i32 {port.dtype}, i32 {len(port.dims)}, {_array_text('i64', dims)} }}")
    return f"[{len(rows)} x %port] [{', '.join(rows)}]"


def _dim_code(plan: PlanInterface, port: Port, dim: Dim) -> int:
    """A dimension in %port: >= 0 fixed, -1 - k the symbol k, COMPUTED otherwise."""
    if dim is None:
        return COMPUTED
    if isinstance(dim, int):
        return dim
    if dim in plan.symbols:
        return -1 - plan.symbols.index(dim)
    assert port not in plan.inputs, f"input {port.name!r}: {dim!r} is not among the symbols of the plan"
    return COMPUTED


def _short_utf8(name: str) -> bytes:
    """A node name as UTF-8, cut between characters to what an error can hold, without zero bytes."""
    raw = name.replace("\0", "?").encode("utf-8", "replace")
    return raw if len(raw) <= _NAME_BYTES else raw[:_NAME_BYTES].decode("utf-8", "ignore").encode()


def _array_text(item: str, values: Iterable[int]) -> str:
    parts = [f"{item} {value}" for value in values]
    return f"[{len(parts)} x {item}] [{', '.join(parts)}]"


def _string_text(raw: bytes) -> str:
    return f"[{len(raw)} x i8] {_bytes_text(raw)}"


def _bytes_text(raw: bytes) -> str:
    """Bytes as an LLVM string constant."""
    plain = (chr(b) if 32 <= b < 127 and b not in (0x22, 0x5C) else f"\\{b:02X}" for b in raw)
    return f'c"{"".join(plain)}"'
