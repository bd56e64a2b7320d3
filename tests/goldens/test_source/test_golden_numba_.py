"""g: kernels for Numba on a CPU, made by fusile 0.2.0 from an ONNX graph.

    fusile emit MODEL.onnx --to numba
    graph sha256:5c496ea1a7f01f94c3fe895a634cf1db4b4509cbdef0634aaa032f1cefddb3ab

`load()` answers a model with the weights beside this file, `load(path)` with those of another file.
Called with numpy arrays, it answers a list of numpy arrays. Import this file under one name: Numba keeps
compiled kernels beside it in `__pycache__`, by the name of the module that they belong to.

Inputs:
    x: f32[N, 3, 6, 5]
Outputs:
    y: f32[N, 8, 6, 5]
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from os import cpu_count
from pathlib import Path
from types import SimpleNamespace as Weights

import numpy as np
from numba import njit

WEIGHTS = Path(__file__).with_name("weights.safetensors") if "__file__" in globals() else None

kernel = njit(error_model="numpy", nogil=True, cache=True)
helper = njit(error_model="numpy", forceinline=True)

f32 = np.float32

# name, type, sizes (None: follows from others)
INPUTS = (
    ("x", np.float32, ("N", 3, 6, 5)),
)
OUTPUTS = (
    ("y", np.float32),
)


class RunError(RuntimeError):
    """A run failed because of its inputs; `node` is the ONNX node that could not go on."""

    def __init__(self, message, node=""):
        super().__init__(f"{message} (node {node!r})" if node else message)
        self.node = node
        self.why = message


def require(holds, node, reason):
    """Refuse sizes that do not fit."""
    if not holds:
        raise RunError(reason, node)


def known_size(value, node):
    """A size that was worked out during the run."""
    if value < 0:
        raise RunError(f"a size is negative ({value})", node)
    return int(value)


class Threads:
    """Runs kernels, shares of their tasks at the same time. Any number of callers may do so."""

    pool = ThreadPoolExecutor(cpu_count(), "kernels")  # of every model made here; starts threads when there is work

    def __init__(self, count):
        self.count = count

    def __call__(self, kernel, tasks, *arguments):
        """Run the tasks 0 to `tasks` of a kernel: one share here, one in each of the other threads."""
        shares = max(1, min(self.count, tasks))
        ends = [tasks * k // shares for k in range(1, shares + 1)]
        others = [(self.pool.submit(kernel, *share, *arguments), share) for share in pairwise(ends)]
        kernel(0, ends[0], *arguments)
        for running, share in others:
            if running.cancel():  # no thread has come to it
                kernel(*share, *arguments)
            else:
                running.result()


@helper
def maximum(a, b):
    return b if a < b else a


@kernel
def conv(out, x):
    for i0 in range(out.shape[0]):
        for i1 in range(out.shape[1]):
            for i2 in range(out.shape[2]):
                for i3 in range(out.shape[3]):
                    t = x[i0, i1, i2 - 1, i3 - 1] if 0 <= i2 - 1 < x.shape[2] and 0 <= i3 - 1 < x.shape[3] else f32(0.0)
                    out[i0, i1, i2, i3] = t


@kernel
def conv_relu(x, w1, out, w2):
    """sink i1."""
    conv = np.empty(out.shape[1], np.float32)
    for i0 in range(out.shape[0]):
        for i2 in range(out.shape[2]):
            for i3 in range(out.shape[3]):
                for i1 in range(out.shape[1]):
                    conv[i1] = f32(0.0)
                for k0 in range(3):
                    for k1 in range(3):
                        for k2 in range(3):
                            v = x[i0, k0, i2 + k1, i3 + k2]
                            for i1 in range(out.shape[1]):
                                conv[i1] += v * w1[i1, k0, k1, k2]
                for i1 in range(out.shape[1]):
                    out[i0, i1, i2, i3] = maximum(conv[i1] + w2[i1], f32(0.0))


def prepare(raw, spread):
    """The weights as kernels read them; `raw` gives an initialiser by its name."""
    w = Weights()
    w.w = raw("w")
    w.b = raw("b")
    return w


def run(w, spread, memory, x):
    """The outputs, in graph order. `memory` gives the bytes that intermediate tensors share."""
    N = x.shape[0]
    arena = memory((N * 672 + 63) // 64 * 64)
    c_pad = np.ndarray((N, 3, 8, 7), np.float32, arena, 0)
    # Conv_c
    conv(c_pad, x)
    y = np.empty((N, 8, 6, 5), np.float32)
    # Conv_c, Relu_y
    conv_relu(c_pad, w.w, y, w.b)
    return [y]


class Model:
    """The model with its weights. Threads may call it at the same time."""

    def __init__(self, raw, threads=None):
        self.spread = Threads(threads or cpu_count())
        self.weights = prepare(raw, self.spread)
        self._local = threading.local()

    def __call__(self, *inputs):
        """The outputs, in graph order, for the inputs in graph order."""
        words = self.run([_fed(value, *row) for value, row in zip(inputs, INPUTS, strict=True)])
        return [array.view(dtype) for array, (_, dtype) in zip(words, OUTPUTS, strict=True)]

    def run(self, arrays):
        """The outputs for checked inputs; types that Numba lacks as words of their size."""
        return run(self.weights, self.spread, self._memory, *arrays)

    def _memory(self, size):
        """This thread's memory for intermediate tensors, aligned to cache lines."""
        held = getattr(self._local, "memory", None)
        if held is None or held.size < size:
            block = np.empty(size + 64, np.uint8)
            start = -block.ctypes.data % 64
            held = self._local.memory = block[start : start + size]
        return held


def _fed(value, name, dtype, sizes):
    """An input as the kernels read it."""
    array = np.ascontiguousarray(value).reshape(np.shape(value))  # numpy makes scalars one-dimensional
    if array.dtype != dtype:
        raise TypeError(f"input {name!r} is to be of type {np.dtype(dtype)}, not {array.dtype}")
    if array.ndim != len(sizes) or any(isinstance(n, int) and n != m for n, m in zip(sizes, array.shape)):
        raise ValueError(f"input {name!r} is to have the sizes {sizes}, not {array.shape}")
    return array


SHAPES = {
    "w": (8, 3, 3, 3),
    "b": (8,),
}


class Stored:
    """A safetensors file; called with an initialiser's name, it answers its array."""

    WORDS = {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "F16": np.uint16,
        "BF16": np.uint16,
        "U32": np.uint32,
        "I32": np.int32,
        "F32": np.float32,
        "U64": np.uint64,
        "I64": np.int64,
        "F64": np.float64,
        "F8_E4M3": np.uint8,
        "F8_E5M2": np.uint8,
        "F8_E8M0": np.uint8,
    }

    def __init__(self, path):
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        self.data = np.memmap(path, np.uint8, "r", offset=8 + size) if len(header) > 1 else np.empty(0, np.uint8)
        self.tensors = {}
        records = header.pop("__metadata__", {})
        for name, entry in header.items():
            record = json.loads(records.get(name, "{}"))
            self.tensors[record.get("initializer", name)] = entry, record

    def __call__(self, name):
        entry, record = self.tensors[name]
        start, end = entry["data_offsets"]
        array = np.asarray(self.data[start:end]).view(self.WORDS[entry["dtype"]])
        array = array.reshape(entry["shape"])
        perm = record.get("perm")
        if perm is not None:  # the file has the axes in this order; those of size 1 may be left out
            array = np.transpose(array, np.argsort(perm))
        return np.ascontiguousarray(array).reshape(SHAPES[name])


def load(path=WEIGHTS, threads=None):
    """The model with the weights of a file."""
    return Model(Stored(path), threads)
