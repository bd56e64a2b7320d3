"""small: a PyTorch module emitted by fusile from an ONNX graph.

`load()` answers the module with the weights beside this file, `load(path)` with those
of another file; `save_weights(module, path)` writes such a file back.
"""

import json
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("weights.safetensors")


class Model(nn.Module):
    """small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem_0 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.stem_1 = nn.BatchNorm2d(8)
        self.dw = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.max_pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """
        Inputs:
            x: float32[batch, 3, 16, 16]
        Outputs:
            y: float32[batch, 5]
        """
        x = F.relu(self.stem_1(self.stem_0(x)))
        conv = F.hardswish(self.dw(x))
        global_average_pool = F.hardsigmoid(self.gate(F.adaptive_avg_pool2d(conv, 1)))
        x = self.max_pool(conv * global_average_pool + x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Stored(NamedTuple):
    """Where a tensor of the module lies in the weights file, and in which form."""

    name: str
    axes: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()

    def read(self, tensor: Tensor) -> Tensor:
        """The module's form of the file's tensor."""
        tensor = tensor.permute(self.axes) if self.axes else tensor
        return tensor.reshape(self.shape) if self.shape else tensor

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Put the module's tensor into the file's."""
        place = tensor
        if self.axes:
            order = sorted(range(len(self.axes)), key=self.axes.__getitem__)
            sizes = [place.shape[axis] for axis in self.axes]
            value = value.reshape(sizes).permute(order)
        place.copy_(value.reshape(place.shape))


# Trained tensors: name in the module -> place in the weights file.
PARAMETERS: dict[str, Stored] = {
    "stem_0.weight": Stored("stem.0.weight.folded"),
    "stem_0.bias": Stored("stem.0.bias.folded"),
    "stem_1.weight": Stored("stem.1.weight"),
    "stem_1.bias": Stored("stem.1.bias"),
    "dw.weight": Stored("dw.weight"),
    "dw.bias": Stored("dw.bias"),
    "gate.weight": Stored("gate.weight"),
    "gate.bias": Stored("gate.bias"),
    "head.weight": Stored("head.weight"),
    "head.bias": Stored("head.bias"),
}
# Running statistics and other state that is not trained.
BUFFERS: dict[str, Stored] = {
    "stem_1.running_mean": Stored("stem.1.running_mean"),
    "stem_1.running_var": Stored("stem.1.running_var"),
}
# Tables that only shape the computation.
CONSTANTS: dict[str, Stored] = {}


def load(path: str | Path = WEIGHTS) -> Model:
    """The module in evaluation mode, with the weights of a file."""
    module = Model()
    load_weights(module, path)
    return module.eval()


def load_weights(module: Model, path: str | Path) -> None:
    """Fill the module from a weights file.

    Raises ValueError, and changes nothing, where the file has other tensors than the
    module: missing, unknown, of another shape, or with another layer folded in.
    """
    places = {**PARAMETERS, **BUFFERS, **CONSTANTS}
    stored, records = load_file(path), _records(path)
    wanted = {place.name for place in places.values()}
    wrong = _differences(set(stored), wanted, records)
    loaded: dict[str, Tensor] = {}
    for name, place in places.items() if not wrong else ():
        have, want = stored[place.name], attrgetter(name)(module)
        try:
            loaded[name] = place.read(have)
        except (IndexError, RuntimeError):
            loaded[name] = have
        if loaded[name].shape != want.shape:
            wrong.append(f"{place.name!r} has the shape {tuple(have.shape)}")
    if wrong:
        raise ValueError(f"{path} does not fit this module: " + "; ".join(wrong[:8]))
    with torch.no_grad():
        for name, tensor in loaded.items():
            attrgetter(name)(module).copy_(tensor)


def _records(path: str | Path) -> dict[str, str]:
    """What the file says about each of its tensors."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _differences(have: set[str], want: set[str], records: dict[str, str]) -> list[str]:
    """Why a file with some tensors does not fit a module with others."""
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


def save_weights(module: Model, path: str | Path) -> None:
    """Write the module's tensors as a weights file: names, layouts, header as beside this file."""
    stored = {name: tensor.clone() for name, tensor in load_file(WEIGHTS).items()}
    for name, place in {**PARAMETERS, **BUFFERS, **CONSTANTS}.items():
        place.write(stored[place.name], attrgetter(name)(module).detach().cpu())
    save_file(stored, path, _records(WEIGHTS))
