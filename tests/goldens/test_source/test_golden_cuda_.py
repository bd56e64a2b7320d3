"""g: kernels for Numba on a GPU, made by fusile 0.2.0 from an ONNX graph.

    fusile emit MODEL.onnx --to cuda
    graph sha256:722418ca4c10d86eff755602d1f04ba4bfc218baa81a23d4e0b91966fba92e16

`load()` answers a model with the weights beside this file, `load(path)` with those of another file.
Called with arrays in host or device memory, it answers a list of numpy arrays; `model.run` takes and
answers arrays on the device. With NUMBA_ENABLE_CUDASIM=1 kernels run as plain Python, without a GPU.

Inputs:
    x: f32[N, 3, 6, 5]
Outputs:
    y: f32[N, 8, 6, 5]
"""

import json
import threading
from pathlib import Path
from types import SimpleNamespace as Weights

import numba
import numpy as np
from numba import cuda

WEIGHTS = Path(__file__).with_name("weights.safetensors") if "__file__" in globals() else None
SIMULATED = bool(numba.config.ENABLE_CUDASIM)
# Threads of a block; the simulator's are threads of Python.
THREADS = 4 if SIMULATED else 256
MOST_BLOCKS = 4 if SIMULATED else 1 << 20

kernel = cuda.jit
helper = cuda.jit(device=True)

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


def blocks_for(count):
    """Blocks for that many points; threads take several where there are more."""
    return max(1, min(-(-count // THREADS), MOST_BLOCKS))


def at(arena, start, shape, dtype):
    """An array in the memory that intermediate tensors share."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return arena[start : start + size].view(dtype).reshape(shape)


def copied(array):
    """A copy on the device."""
    made = cuda.device_array(array.shape, array.dtype)
    made.copy_to_device(array)
    return made


@helper
def maximum(a, b):
    return b if a < b else a


@kernel
def conv(out, x):
    """thread i0, i1, i2, i3."""
    for point in range(cuda.grid(1), out.shape[0] * out.shape[1] * out.shape[2] * out.shape[3], cuda.gridsize(1)):
        i0 = point // (out.shape[1] * out.shape[2] * out.shape[3])
        i1 = point // (out.shape[2] * out.shape[3]) % out.shape[1]
        i2 = point // out.shape[3] % out.shape[2]
        i3 = point % out.shape[3]
        t = x[i0, i1, i2 - 1, i3 - 1] if 0 <= i2 - 1 < x.shape[2] and 0 <= i3 - 1 < x.shape[3] else f32(0.0)
        out[i0, i1, i2, i3] = t


@kernel
def conv_relu(x, w1, out, w2):
    """thread i0, i1, i2, i3."""
    for point in range(cuda.grid(1), out.shape[0] * out.shape[1] * out.shape[2] * out.shape[3], cuda.gridsize(1)):
        i0 = point // (out.shape[1] * out.shape[2] * out.shape[3])
        i1 = point // (out.shape[2] * out.shape[3]) % out.shape[1]
        i2 = point // out.shape[3] % out.shape[2]
        i3 = point % out.shape[3]
        conv = f32(0.0)
        for k0 in range(3):
            for k1 in range(3):
                for k2 in range(3):
                    conv += x[i0, k0, i2 + k1, i3 + k2] * w1[i1, k0, k1, k2]
        out[i0, i1, i2, i3] = maximum(conv + w2[i1], f32(0.0))


def prepare(raw):
    """The weights as kernels read them; `raw` gives an initialiser by its name."""
    w = Weights()
    w.w = raw("w")
    w.b = raw("b")
    return w


def run(w, memory, x):
    """The outputs, in graph order. `memory` gives the bytes that intermediate tensors share."""
    N = x.shape[0]
    arena = memory((N * 672 + 63) // 64 * 64)
    c_pad = at(arena, 0, (N, 3, 8, 7), np.float32)
    # Conv_c
    conv[blocks_for(N * 168), THREADS](c_pad, x)
    y = cuda.device_array((N, 8, 6, 5), np.float32)
    # Conv_c, Relu_y
    conv_relu[blocks_for(N * 240), THREADS](c_pad, w.w, y, w.b)
    return [y]


class Model:
    """The model with its weights on the current device. One caller at a time uses its memory."""

    def __init__(self, raw):
        self.weights = prepare(lambda name: cuda.to_device(raw(name)))
        self._guard = threading.Lock()
        self._held = None

    def __call__(self, *inputs):
        """The outputs, in graph order, for the inputs in graph order."""
        fed = [_fed(value, *row) for value, row in zip(inputs, INPUTS, strict=True)]
        return [array.view(dtype) for array, (_, dtype) in zip(self.run(fed), OUTPUTS, strict=True)]

    def run(self, arrays):
        """The outputs on the host for checked inputs; types that Numba lacks as words of their size."""
        with self._guard:
            return [array.copy_to_host() for array in self.launch([cuda.to_device(a) for a in arrays])]

    def launch(self, arrays):
        """The outputs on the device for inputs on the device."""
        return run(self.weights, self._memory, *arrays)

    def _memory(self, size):
        """Memory for intermediate tensors."""
        if self._held is None or self._held.size < size:
            self._held = None
            self._held = cuda.device_array(size, np.uint8)
        return self._held


def _fed(value, name, dtype, sizes):
    """An input as the kernels read it."""
    if hasattr(value, "__cuda_array_interface__"):
        array = cuda.as_cuda_array(value)
    else:
        array = np.ascontiguousarray(value).reshape(np.shape(value))
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


def load(path=WEIGHTS):
    """The model with the weights of a file, on the current device."""
    return Model(Stored(path))
