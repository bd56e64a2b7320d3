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
        self.embed = nn.Embedding(30, 16)
        self.attn_q = nn.Linear(16, 16)
        self.attn_k = nn.Linear(16, 16)
        self.attn_v = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, ids: Tensor) -> Tensor:
        """
        Inputs:
            ids: int64[batch, seq]
        Outputs:
            y: float32[batch, seq, 30]
        """
        batch, seq = ids.shape
        x = self.embed(ids)
        q = self.attn_q(x).reshape(batch, seq, 2, 8).transpose(1, 2)
        k = self.attn_k(x).reshape(batch, seq, 2, 8).permute(0, 2, 3, 1)
        v = self.attn_v(x).reshape(batch, seq, 2, 8).transpose(1, 2)
        q = torch.softmax(q @ k * 0.25, dim=-1)
        q = (q @ v).transpose(1, 2).reshape(batch, seq, 16)
        return F.linear(self.norm(q + x), self.embed.weight)


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
    "embed.weight": Stored("m.embed.weight"),
    "attn_q.weight": Stored("m.attn.q.weight"),
    "attn_q.bias": Stored("m.attn.q.bias"),
    "attn_k.weight": Stored("m.attn.k.weight"),
    "attn_k.bias": Stored("m.attn.k.bias"),
    "attn_v.weight": Stored("m.attn.v.weight"),
    "attn_v.bias": Stored("m.attn.v.bias"),
    "norm.weight": Stored("m.norm.weight"),
    "norm.bias": Stored("m.norm.bias"),
}
# Running statistics and other state that is not trained.
BUFFERS: dict[str, Stored] = {}
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
