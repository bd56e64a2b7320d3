"""Models that somebody broke on purpose, made on the spot, and how each is refused.

Run as a script with a folder, it reads the model of every case and prints its name, seconds and peak memory.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from frontend_models import FLOAT, INT64, chain, info, model, peak_mib
from onnx import TensorProto, helper

from fusile.errors import ExternalDataError, FusileError, InvalidModelError, UnsafeModelError, UsageError

Build = Callable[[Path], "onnx.ModelProto | bytes"]
Case = tuple[Build, type[FusileError], str]
"""How to make the model (other files go into its folder), what refuses it, and a word of its message."""

NODE = helper.make_node("Add", ["x", "w"], ["y"], "add")
DATA = np.arange(2048, dtype=np.float32)


def weighted(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = model([NODE], [info("x", [1])], ["y"])
    proto.graph.initializer.append(tensor)
    return proto


def raw(dims: list[int], data: bytes, dtype: int = FLOAT) -> onnx.ModelProto:
    return weighted(TensorProto(name="w", data_type=dtype, dims=dims, raw_data=data))


def external(location: str, offset: object = 0, length: object = 8192, **more: str) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[2048], data_location=TensorProto.EXTERNAL)
    entries = {"location": location, "offset": offset, "length": length, **more}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return weighted(tensor)


def truncated(folder: Path) -> bytes:
    data = raw([2048], DATA.tobytes()).SerializeToString()
    return data[: len(data) // 2]


def half_a_number(folder: Path) -> bytes:
    return b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"


def deep_graphs(levels: int) -> Build:
    def build(folder: Path) -> bytes:
        graph = b""
        for _ in range(levels):  # AttributeProto.g in NodeProto.attribute in GraphProto.node
            attribute = _message(1, b"then_branch") + _message(6, graph) + b"\xa0\x01\x05"
            graph = _message(1, _message(4, b"If") + _message(5, attribute))
        return b"\x08\x08" + _message(7, graph)

    return build


def _message(number: int, data: bytes) -> bytes:
    length, size = len(data), b""
    while length > 0x7F:
        size += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + data


def deep_types(folder: Path) -> bytes:
    kind = b"\x0a\x02\x08\x01"
    for _ in range(5000):
        kind = _message(4, _message(1, kind))
    value = _message(1, b"x") + _message(2, kind)
    return b"\x08\x08" + _message(7, _message(11, value))


def cyclic(folder: Path) -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["x", "c"], ["a"], "one"), helper.make_node("Relu", ["a"], ["c"], "two")]
    return model(nodes, [info("x", [1])], ["c"])


def cyclic_through_a_branch(folder: Path) -> onnx.ModelProto:
    branch = helper.make_graph([helper.make_node("Relu", ["z"], ["v"], "in")], "b", [], [info("v")])
    nodes = [
        helper.make_node("If", ["c"], ["y"], "if", then_branch=branch, else_branch=branch),
        helper.make_node("Neg", ["y"], ["z"], "neg"),
    ]
    return model(nodes, [info("c", [], TensorProto.BOOL)], ["z"])


def missing_initialiser(folder: Path) -> onnx.ModelProto:
    return model([NODE], [info("x", [1])], ["y"])


def missing_output(folder: Path) -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"])], [info("x", [1])], ["elsewhere"])


def made_twice(folder: Path) -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "one"), helper.make_node("Neg", ["x"], ["y"], "two")]
    return model(nodes, [info("x", [1])], ["y"])


def calling(functions: dict[str, list[str]]) -> onnx.ModelProto:
    """Functions by name, with what each calls one after another."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    made = []
    for name, called in functions.items():
        values = ["a", *(f"v{index}" for index in range(len(called) - 1)), "b"]
        nodes = [
            helper.make_node(
                callee, [values[index]], [values[index + 1]], domain="own" if callee in functions else ""
            )
            for index, callee in enumerate(called)
        ]
        made.append(helper.make_function("own", name, ["a"], ["b"], nodes, imports))
    first = helper.make_node(next(iter(functions)), ["x"], ["y"], "call", domain="own")
    return model([first], [info("x", [1])], ["y"], functions=made, domains={"own": 1})


def function_cycle(folder: Path) -> onnx.ModelProto:
    return calling({"F": ["G"], "G": ["H"], "H": ["F"]})


def function_depth(folder: Path) -> onnx.ModelProto:
    chained = {f"F{index}": [f"F{index + 1}"] for index in range(3000)}
    return calling({**chained, "F3000": ["Relu"]})


def function_bomb(folder: Path) -> onnx.ModelProto:
    doubling = {f"F{index}": [f"F{index + 1}"] * 4 for index in range(30)}
    return calling({**doubling, "F30": ["Relu"]})


def sparse_bomb(folder: Path) -> onnx.ModelProto:
    values = helper.make_tensor("w", FLOAT, [1], [1.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("", INT64, [1], [0]), [2**15, 2**15])
    proto = missing_initialiser(folder)
    proto.graph.sparse_initializer.append(sparse)
    return proto


def linked(folder: Path, kind: str) -> onnx.ModelProto:
    secret = folder / "outside" / "secret"
    secret.parent.mkdir()
    secret.write_bytes(DATA.tobytes())
    inner = folder / "model"
    inner.mkdir(exist_ok=True)
    match kind:
        case "symbolic":
            (inner / "weights").symlink_to(secret)
        case "hard":
            os.link(secret, inner / "weights")
        case "folder":
            (inner / "weights").symlink_to(secret.parent)
            return external("weights/secret")
        case "pipe":
            os.mkfifo(inner / "weights")
        case "directory":
            (inner / "weights").mkdir()
    return external("weights")


def short_file(folder: Path) -> onnx.ModelProto:
    (folder / "model" / "weights").write_bytes(b"\0" * 100)
    return external("weights")


def broken_text(folder: Path) -> bytes:
    return chain().SerializeToString().replace(b"Relu", b"R\xff\xfeu")


def of(proto: Callable[[], onnx.ModelProto]) -> Build:
    return lambda folder: proto()


INVALID, UNSAFE, USAGE = InvalidModelError, UnsafeModelError, UsageError

CASES: dict[str, Case] = {
    "truncated": (truncated, INVALID, "truncated"),
    "random bytes": (lambda folder: np.random.default_rng(0).bytes(5000), INVALID, "not an ONNX"),
    "zeros": (lambda folder: bytes(5000), INVALID, "not an ONNX"),
    "text": (lambda folder: b"hello, this is no model at all", INVALID, "ONNX"),
    "endless number": (half_a_number, INVALID, "truncated"),
    "no graph": (of(onnx.ModelProto), INVALID, "empty"),
    "only a version": (lambda folder: b"\x08\x08", INVALID, "no ONNX graph"),
    "broken text": (broken_text, INVALID, ""),
    "deep graphs": (deep_graphs(70), UNSAFE, "nested too deep"),
    "very deep graphs": (deep_graphs(3000), UNSAFE, "nested too deep"),
    "deep types": (deep_types, INVALID, ""),
    "cycle": (cyclic, INVALID, "'one' -> 'two' -> 'one'"),
    "cycle through a branch": (cyclic_through_a_branch, INVALID, "'neg'"),
    "missing initialiser": (missing_initialiser, INVALID, "'w' at node 'add'"),
    "missing output": (missing_output, INVALID, "'elsewhere'"),
    "made twice": (made_twice, INVALID, "'y'"),
    "function cycle": (function_cycle, INVALID, "'own::F' -> 'own::G' -> 'own::H' -> 'own::F'"),
    "function depth": (function_depth, UNSAFE, "too deep"),
    "function bomb": (function_bomb, UNSAFE, "too many nodes"),
    "too few bytes": (of(lambda: raw([2048], DATA.tobytes()[:-4])), INVALID, "8192 bytes and there are 8188"),
    "too many bytes": (of(lambda: raw([2], DATA.tobytes())), INVALID, "8 bytes and there are 8192"),
    "few bytes, small": (of(lambda: raw([2], b"\0" * 7)), INVALID, "8 bytes and there are 7"),
    "no data": (of(lambda: raw([10**10], b"", TensorProto.BFLOAT16)), INVALID, "there are 0"),
    "overflowing dims": (of(lambda: raw([2**32, 2**32], DATA.tobytes())), UNSAFE, "overflow"),
    "overflow times zero": (of(lambda: raw([2**62, 2**62, 0], b"")), UNSAFE, "overflow"),
    "negative dims": (of(lambda: raw([-1, -2048], DATA.tobytes())), INVALID, "negative"),
    "unknown type": (of(lambda: raw([1], b"\0", 99)), INVALID, "unknown data type"),
    "no type": (of(lambda: raw([1], b"\0", 0)), INVALID, "no data type"),
    "sparse bomb": (sparse_bomb, UNSAFE, "too large when dense"),
    "parent folder": (of(lambda: external("../outside/secret")), UNSAFE, '"..".'),
    "parent inside": (of(lambda: external("a/../../secret")), UNSAFE, '"..".'),
    "parent, other slashes": (of(lambda: external("a\\..\\..\\secret")), UNSAFE, '"..".'),
    "absolute": (of(lambda: external("/etc/passwd")), UNSAFE, "absolute"),
    "drive": (of(lambda: external("C:\\secret")), UNSAFE, "absolute"),
    "share": (of(lambda: external("\\\\host\\secret")), UNSAFE, "absolute"),
    "symbolic link": (lambda folder: linked(folder, "symbolic"), UNSAFE, "plain file"),
    "hard link": (lambda folder: linked(folder, "hard"), UNSAFE, "hard-linked"),
    "linked folder": (lambda folder: linked(folder, "folder"), UNSAFE, "plain file"),
    "pipe": (lambda folder: linked(folder, "pipe"), UNSAFE, "plain file"),
    "directory": (lambda folder: linked(folder, "directory"), UNSAFE, "plain file"),
    "missing file": (of(lambda: external("weights")), ExternalDataError, "missing"),
    "no location": (of(lambda: external("")), INVALID, "no file"),
    "NUL in location": (of(lambda: external("a\0b")), INVALID, "no file"),
    "only dots": (of(lambda: external("./.")), INVALID, "no file"),
    "short file": (short_file, ExternalDataError, "after their file"),
    "negative offset": (of(lambda: external("weights", -8192)), INVALID, "offset"),
    "negative length": (of(lambda: external("weights", 0, -1)), INVALID, "length"),
    "huge offset": (of(lambda: external("weights", 10**30)), INVALID, "offset"),
    "injected key": (of(lambda: external("../w", __class__="x", name="x")), UNSAFE, '"..".'),
}


def write(name: str, folder: Path) -> Path:
    """Make the model of a case in `folder`; the path of its file."""
    inner = folder / "model"
    inner.mkdir(parents=True)
    made = CASES[name][0](folder)
    path = inner / "model.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return path


def main(folder: Path) -> None:
    from fusile.frontend import load

    for name in CASES:
        start = time.perf_counter()
        try:
            load(folder / name / "model" / "model.onnx")
        except FusileError:
            seconds = time.perf_counter() - start
            print(f"{name}\t{seconds:.3f}\t{peak_mib()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
