"""Packages that use onnxruntime, as they are: run on it and with fusile in its place, they must answer alike.

Each program prints its answers as JSON. Packages that are not installed are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

MAGIKA = """
import json
from magika import Magika

contents = [
    b"import os\\n\\ndef main():\\n    print(os.getcwd())\\n\\nif __name__ == '__main__':\\n    main()\\n" * 3,
    b"#include <stdio.h>\\nint main(void) { printf(\\"hello\\\\n\\"); return 0; }\\n" * 4,
    b'{"name": "value", "list": [1, 2, 3], "nested": {"a": null}}' * 5,
    b"<!DOCTYPE html><html><head><title>t</title></head><body><p>text</p></body></html>" * 3,
    b"\\x89PNG\\r\\n\\x1a\\n" + bytes(range(256)) * 4,
    b"SELECT a, b FROM t WHERE a > 3 ORDER BY b; INSERT INTO t VALUES (1, 2);\\n" * 4,
]
answers = [m for m in map(Magika().identify_bytes, contents)]
print(json.dumps([[a.output.label, a.dl.label, float(a.score)] for a in answers]))
"""

SILERO = """
import json
import numpy as np
import torch
from silero_vad import get_speech_timestamps, load_silero_vad

rate = 16000
times = np.arange(3 * rate) / rate
voice = sum(np.sin(2 * np.pi * 120 * h * times + h) / h for h in range(1, 25))
voice *= (np.sin(2 * np.pi * 3 * times) > -0.3) * ((times > 0.7) & (times < 2.2))
audio = torch.from_numpy((0.2 * voice + 0.003 * np.random.default_rng(0).standard_normal(len(times)))
                         .astype(np.float32))
model = load_silero_vad(onnx=True)
probabilities = [float(model(audio[at:at + 512], rate)) for at in range(0, len(audio) - 512, 512)]
model.reset_states()
narrow = [float(model(audio[::2][at:at + 256], 8000)) for at in range(0, len(audio) // 2 - 256, 256)]
model.reset_states()
print(json.dumps([probabilities, narrow, get_speech_timestamps(audio, model)]))
"""

RAPIDOCR = """
import json
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rapidocr_onnxruntime import RapidOCR

image = Image.new("RGB", (480, 200), "white")
draw = ImageDraw.Draw(image)
font = ImageFont.load_default(36)
draw.text((20, 20), "Hello compiler 42", fill="black", font=font)
draw.text((40, 110), "native kernels", fill="navy", font=font)
result, _ = RapidOCR()(np.asarray(image))
print(json.dumps([[text, float(score), np.asarray(box).tolist()] for box, text, score in result]))
"""

BASIC_PITCH = """
import json, sys, tempfile, wave
import numpy as np
sys.modules["tensorflow"] = sys.modules["coremltools"] = None  # the package takes the first runtime it finds
from basic_pitch import ICASSP_2022_MODEL_PATH
from basic_pitch.inference import predict
from pathlib import Path

rate = 22050
times = np.arange(2 * rate) / rate
tone = np.where(times < 1, np.sin(2 * np.pi * 440 * times), np.sin(2 * np.pi * 660 * times)) * 0.5
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "tone.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(rate)
        file.writeframes((tone * 32767).astype("<i2").tobytes())
    model = Path(ICASSP_2022_MODEL_PATH).with_suffix(".onnx")
    output, _, notes = predict(path, model)
print(json.dumps([{key: np.asarray(value).mean(axis=1).tolist() for key, value in output.items()},
                  sorted([float(n[0]), float(n[1]), int(n[2])] for n in notes)]))
"""


@dataclass(frozen=True)
class Package:
    """A program, the modules that it needs, and how far its numbers may differ."""

    program: str
    needs: str
    bound: float = 1e-3


PACKAGES = {
    "magika": Package(MAGIKA, "magika click"),
    "silero-vad": Package(SILERO, "silero_vad torch packaging"),
    "rapidocr-onnxruntime": Package(
        RAPIDOCR, "rapidocr_onnxruntime cv2 pyclipper shapely yaml PIL six tqdm", 5e-3
    ),
    "basic-pitch": Package(
        BASIC_PITCH, "basic_pitch librosa mir_eval pretty_midi resampy sklearn scipy", 2e-3
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_packages_answer_as_on_onnxruntime(name: str, tmp_path: Path) -> None:
    package = PACKAGES[name]
    missing = [module for module in package.needs.split() if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    script = tmp_path / "program.py"
    script.write_text(package.program)
    theirs = _answers([sys.executable, str(script)])
    ours = _answers([sys.executable, "-m", "fusile.as_onnxruntime", str(script)])
    _compare(ours, theirs, package.bound)


def _answers(command: list[str]) -> Any:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def _compare(ours: Any, theirs: Any, bound: float, where: str = "answer") -> None:
    """Equal texts and whole numbers, numbers within the bound."""
    assert type(ours) is type(theirs), where
    if isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for place, (mine, other) in enumerate(zip(ours, theirs)):
            _compare(mine, other, bound, f"{where}[{place}]")
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            _compare(ours[key], theirs[key], bound, f"{where}[{key!r}]")
    elif isinstance(theirs, float):
        assert abs(ours - theirs) <= bound * max(1.0, abs(theirs)), f"{where}: {ours}, expected {theirs}"
    else:
        assert ours == theirs, where
