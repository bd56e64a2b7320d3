"""small: a Keras model emitted by fusile from an ONNX graph.

`load()` answers the model with the weights beside this file, `load(path)` with those of
another file; `save_weights(model, path)` writes such a file back.
"""

import json
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import layers, ops
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

WEIGHTS = Path(__file__).with_name("weights.safetensors")


class Model(keras.Model):
    """small."""

    def __init__(self):
        super().__init__()
        self.stem_0 = layers.Conv2D(8, 3, strides=2)
        self.stem_1 = layers.BatchNormalization(momentum=0.9, epsilon=1e-05)
        self.dw = layers.DepthwiseConv2D(3, padding="same")
        self.gate = layers.Conv2D(8, 1)
        self.max_pool = layers.MaxPooling2D(2, strides=2)
        self.head = layers.Dense(5)
        self.build()

    def build(self, input_shape=None):
        """Make the variables of every layer."""
        self.stem_0.build((None, None, None, 3))
        self.stem_1.build((None, None, None, 8))
        self.dw.build((None, None, None, 8))
        self.gate.build((None, None, None, 8))
        self.head.build((None, 8))
        self.built = True

    def call(self, x):
        """
        Inputs:
            x: float32[batch, 3, 16, 16]
        Outputs:
            y: float32[batch, 5]
        """
        batch = ops.shape(x)[0]
        x = ops.transpose(x, (0, 2, 3, 1))
        x = self.stem_1(self.stem_0(ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))))
        x = ops.relu(x)
        conv = ops.hard_swish(self.dw(x))
        global_average_pool = self.gate(ops.mean(conv, axis=(1, 2), keepdims=True))
        x = conv * ops.hard_sigmoid(global_average_pool) + x
        x = ops.mean(self.max_pool(x), axis=(1, 2), keepdims=True)
        return self.head(ops.reshape(x, (batch, -1)))


class Stored(NamedTuple):
    """Where a variable of the model lies in the weights file, and in which form."""

    name: str
    axes: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()

    def read(self, tensor: np.ndarray) -> np.ndarray:
        """The model's form of the file's tensor."""
        tensor = tensor.transpose(self.axes) if self.axes else tensor
        return tensor.reshape(self.shape) if self.shape else tensor

    def write(self, tensor: np.ndarray, value: np.ndarray) -> None:
        """Put the model's variable into the file's tensor."""
        place = tensor
        if self.axes:
            sizes = [place.shape[axis] for axis in self.axes]
            value = value.reshape(sizes).transpose(np.argsort(self.axes))
        place[...] = value.reshape(place.shape)


# Trained variables: name in the model -> place in the weights file.
PARAMETERS: dict[str, Stored] = {
    "stem_0.kernel": Stored("stem.0.weight.folded", axes=(2, 3, 1, 0)),
    "stem_0.bias": Stored("stem.0.bias.folded"),
    "stem_1.gamma": Stored("stem.1.weight"),
    "stem_1.beta": Stored("stem.1.bias"),
    "dw.kernel": Stored("dw.weight", axes=(2, 3, 0, 1)),
    "dw.bias": Stored("dw.bias"),
    "gate.kernel": Stored("gate.weight", axes=(2, 3, 1, 0)),
    "gate.bias": Stored("gate.bias"),
    "head.kernel": Stored("head.weight", axes=(1, 0)),
    "head.bias": Stored("head.bias"),
}
# Running statistics and other state that is not trained.
BUFFERS: dict[str, Stored] = {
    "stem_1.moving_mean": Stored("stem.1.running_mean"),
    "stem_1.moving_variance": Stored("stem.1.running_var"),
}
# Tables that only shape the computation.
CONSTANTS: dict[str, Stored] = {}


def load(path: str | Path = WEIGHTS) -> Model:
    """The model with the weights of a file."""
    model = Model()
    load_weights(model, path)
    return model


def load_weights(model: Model, path: str | Path) -> None:
    """Fill the model from a weights file.

    Raises ValueError, and changes nothing, where the file has other tensors than the
    model: missing, unknown, of another shape, or with another layer folded in.
    """
    places = {**PARAMETERS, **BUFFERS, **CONSTANTS}
    stored, records = load_file(path), _records(path)
    wanted = {place.name for place in places.values()}
    wrong = _differences(set(stored), wanted, records)
    loaded = {}
    for name, place in places.items() if not wrong else ():
        have, want = stored[place.name], attrgetter(name)(model)
        try:
            loaded[name] = place.read(have)
        except (IndexError, ValueError):
            loaded[name] = have
        if loaded[name].shape != tuple(want.shape):
            wrong.append(f"{place.name!r} has the shape {have.shape}")
    if wrong:
        raise ValueError(f"{path} does not fit this model: " + "; ".join(wrong[:8]))
    for name, tensor in loaded.items():
        attrgetter(name)(model).assign(tensor)


def _records(path: str | Path) -> dict[str, str]:
    """What the file says about each of its tensors."""
    with safe_open(path, "np") as file:
        return file.metadata() or {}


def _differences(have: set[str], want: set[str], records: dict[str, str]) -> list[str]:
    """Why a file with some tensors does not fit a model with others."""
    wrong, known = [], set()
    about = {name: json.loads(records[name]) for name in have & set(records)}
    for name in sorted(want - have):
        folded, bare = f"{name}.folded", name.removesuffix(".folded")
        if folded in have:
            into = ", ".join(about.get(folded, {}).get("folded", [])) or "another layer"
            wrong.append(f"{folded!r} has {into} folded in, which stands apart here")
            known.add(folded)
        elif bare in have:
            wrong.append(f"{bare!r} has nothing folded in, {name!r} here has")
            known.add(bare)
        else:
            wrong.append(f"{name!r} is missing")
    return wrong + [f"{name!r} is unknown" for name in sorted(have - want - known)]


def save_weights(model: Model, path: str | Path) -> None:
    """Write the model's variables as a weights file: names, layouts, header as beside this file."""
    stored = {name: tensor.copy() for name, tensor in load_file(WEIGHTS).items()}
    for name, place in {**PARAMETERS, **BUFFERS, **CONSTANTS}.items():
        value = keras.ops.convert_to_numpy(attrgetter(name)(model))
        place.write(stored[place.name], value)
    save_file(stored, path, _records(WEIGHTS))
