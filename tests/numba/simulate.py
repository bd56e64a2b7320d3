"""Runs the CUDA target in Numba's simulator, in a process of its own: the simulator is chosen when Numba loads.

NUMBA_ENABLE_CUDASIM=1 python simulate.py    prints one JSON list of [what failed, why]
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

for folder in ("", "kernels", "passes", "native", "numba"):
    sys.path.append(str(Path(__file__).parents[1] / folder))

import numpy as np
from control_table import MODELS
from control_table import model as control_model
from edge_cases import CASES
from numba_models import close, compiled, in_order, inputs_of, judge
from operator_models import by_onnxruntime
from program_table import PROGRAMS, Small

from fusile.backends import numba_cuda


def program(small: Small) -> None:
    model = small.model()
    module = compiled(numba_cuda, model, "cuda")
    values = inputs_of(model, small.sizes)
    close([np.asarray(y) for y in module.run(in_order(module, values))], by_onnxruntime(model, values))


def control(name: str) -> None:
    """Branches and loops: decided on the host, their bodies on the device."""
    model = control_model(name)
    module = compiled(numba_cuda, model, "cuda")
    for values in MODELS[name][1]:
        got = module.run(in_order(module, values))
        close([np.asarray(y) for y in got], by_onnxruntime(model, values))


def refusal() -> None:
    text = "g (int64[3] i, float[5, 2] t) => (float y) { y = Gather <axis = 0> (t, i) }"
    module = compiled(numba_cuda, Small("gather", text).model(), "cuda")
    try:
        module.run([np.array([0, 7, 1]), np.zeros((5, 2), np.float32)])
    except Exception as e:
        assert "index 7 is out of range" in str(e), e
    else:
        raise AssertionError("an index out of range was not noticed")


def main() -> None:
    warnings.simplefilter("ignore")
    failed: list[tuple[str, str]] = []

    def attempt(name: str, call: object, *arguments: object) -> None:
        try:
            call(*arguments)  # type: ignore[operator]
        except Exception as e:
            failed.append((name, f"{type(e).__name__}: {str(e)[:400]}"))

    with np.errstate(all="ignore"):
        for k, case in enumerate(CASES):
            attempt(f"{case}", judge, numba_cuda, "cuda", case, k % 2 == 0)
        for small in PROGRAMS:
            attempt(f"program {small}", program, small)
        for name in MODELS:
            attempt(f"control {name}", control, name)
        attempt("an index out of range", refusal)
    print(json.dumps(failed))


if __name__ == "__main__":
    main()
