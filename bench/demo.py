"""A tour on a real model: Magika, which tells what a file is from its bytes (Apache-2.0, from PyPI).

Compiles it to a native module, lets that name files of this repository through ctypes and numpy alone,
checks it against ONNX Runtime, times it fused and unfused, and writes it as PyTorch and Keras source.
Ends with 1 where an answer is wrong. `make demo` runs it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "demo"
PACKAGE = "magika==1.0.3"
INSIDE = "magika/models/standard_v3_3/"
MODEL_SHA256 = "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c"
BATCH = "unk__214"
"""What the model calls its batch dimension."""

# Run by a bare interpreter: the compiled model needs numpy, and nothing of fusile or ONNX.
STANDALONE = """
import sys
sys.modules["fusile"] = sys.modules["onnx"] = sys.modules["onnxruntime"] = None
sys.path.insert(0, sys.argv[1])
import numpy, magika
scores, = magika.load()(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], scores)
"""


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def fusile(*arguments: str) -> None:
    """Run a command of fusile's and show it; the demo ends where it fails."""
    shown = " ".join(argument.replace(f"{ROOT}/", "") for argument in arguments)
    print(f"$ fusile {shown}", flush=True)
    done = subprocess.run([str(Path(sys.executable).with_name("fusile")), *arguments], check=False)
    if done.returncode:
        sys.exit(f"demo: `fusile {shown}` ended with {done.returncode}")


def fetch() -> tuple[Path, list[str]]:
    """The model and the names of its classes, out of the package, which is neither installed nor imported."""
    model, config = WORK / "magika.onnx", WORK / "config.json"
    if not (model.exists() and config.exists()):
        wheels = WORK / "wheels"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), PACKAGE]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"demo: {PACKAGE} could not be downloaded from the package index")
        with zipfile.ZipFile(next(wheels.glob("magika-*.whl"))) as wheel:
            model.write_bytes(wheel.read(INSIDE + "model.onnx"))
            config.write_bytes(wheel.read(INSIDE + "config.min.json"))
    if hashlib.sha256(model.read_bytes()).hexdigest() != MODEL_SHA256:
        sys.exit(f"demo: {model} is not the model that {PACKAGE} holds")
    return model, json.loads(config.read_text())["target_labels_space"]


def features(content: bytes) -> np.ndarray:
    """What Magika looks at, int32[2048]: the first and last 1024 bytes, trimmed, with 256 as padding."""
    head, tail = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    seen = np.full(2048, 256, np.int32)
    seen[: len(head)] = np.frombuffer(head, np.uint8)
    seen[2048 - len(tail) :] = np.frombuffer(tail, np.uint8)
    return seen


def picture(width: int = 64, height: int = 48) -> bytes:
    """A PNG made on the spot: a colour gradient."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(
        b"\0" + bytes((x * 7 + y * 3 + 50 * channel) % 256 for x in range(width) for channel in range(3))
        for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def recognise(labels: list[str]) -> bool:
    """Ask the native module what some files are; whether it is right about all of them."""
    samples = {
        "README.md": ("markdown", (ROOT / "README.md").read_bytes()),
        "Makefile": ("makefile", (ROOT / "Makefile").read_bytes()),
        "pyproject.toml": ("toml", (ROOT / "pyproject.toml").read_bytes()),
        "bench/demo.py": ("python", Path(__file__).read_bytes()),
        ".ci/run": ("shell", (ROOT / ".ci" / "run").read_bytes()),
        "a picture drawn just now": ("png", picture()),
        "the model itself": ("onnx", (WORK / "magika.onnx").read_bytes()),
        "the module just compiled from it": ("elf", (WORK / "magika.so").read_bytes()),
    }
    np.save(WORK / "feeds.npy", np.stack([features(content) for _, content in samples.values()]))
    command = [sys.executable, "-c", STANDALONE, *map(str, (WORK, WORK / "feeds.npy", WORK / "scores.npy"))]
    if subprocess.run(command, check=False).returncode:
        return False
    right = True
    for (name, (expected, _)), scores in zip(samples.items(), np.load(WORK / "scores.npy")):
        answer = labels[int(scores.argmax())]
        mark = "" if answer == expected else f"   wrong: it is {expected}"
        right &= answer == expected
        print(f"  {name:34} {answer:10} {scores.max():7.2%}{mark}")
    return right


def show_source(to: str, needed: str, lines: int = 24) -> bool:
    """Print how the emitted module begins; whether the file is Python and holds a module of the framework."""
    path = WORK / f"magika_{to}" / "model.py"
    text = path.read_text()
    classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    if "Model" not in classes or needed not in text:
        print(f"  {path} holds no {to} module")
        return False
    start = classes["Model"].lineno - 1
    print(f"  {path.relative_to(ROOT)}, {len(text.splitlines())} lines; its module begins:")
    print("\n".join(f"    {line}" for line in text.splitlines()[start : start + lines]), flush=True)
    return True


def main() -> None:
    began = time.perf_counter()
    WORK.mkdir(parents=True, exist_ok=True)
    say("Magika tells what a file is. Its model comes from PyPI as ONNX.")
    model, labels = fetch()
    fusile("check", str(model))

    say("Compile it: a library, a C header, and a Python wrapper that needs numpy alone.")
    fusile("compile", str(model), "-o", str(WORK / "magika.so"))
    print("  What the compiled model says about some files:", flush=True)
    right = recognise(labels)

    say("Compare every output with ONNX Runtime.")
    fusile("verify", str(model), "--seed", "0,1", "--dims", f"{BATCH}=1;{BATCH}=3")

    say("What fusion and tiling bring, measured side by side.")
    fusile("bench", str(model), "--dims", f"{BATCH}=1", "--threads", "1")

    say("The same model as source code to read, change and train.")
    for to, needed in (("torch", "import torch"), ("keras", "import keras")):
        fusile("emit", str(model), "--to", to, "-o", str(WORK / f"magika_{to}"))
        right &= show_source(to, needed)

    say(f"Done in {time.perf_counter() - began:.0f} s; the files are in {WORK.relative_to(ROOT)}.")
    if not right:
        sys.exit("demo: an answer was wrong")


if __name__ == "__main__":
    main()
