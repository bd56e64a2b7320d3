"""Bringing in onnx_ir without sympy, which takes longer to import than everything else together.

onnx_ir calculates with symbolic dimensions through sympy. fusile has arithmetic of its own for them, and
takes onnx_ir's dimensions for names. So while onnx_ir is imported, a stand-in has sympy's name; what is asked
of it later comes from the real one, which is imported at that time.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

_LOCK = threading.Lock()


class _Sympy(ModuleType):
    """sympy as soon as it is needed. Until `settled`, functions that are only looked up are put off too."""

    settled = False

    def __getattr__(self, name: str) -> Any:
        if self.settled or name.startswith("__"):
            return getattr(self._real(), name)

        def later(*arguments: Any, **named: Any) -> Any:
            function: Callable[..., Any] = getattr(self._real(), name)
            return function(*arguments, **named)

        return later

    def _real(self) -> ModuleType:
        if sys.modules.get("sympy") is self:
            del sys.modules["sympy"]
        return importlib.import_module("sympy")


def import_onnx_ir() -> None:
    """Import onnx_ir, if that has not been done, without importing sympy. Calling it again costs nothing."""
    if "onnx_ir" in sys.modules:
        return
    with _LOCK:
        spec = importlib.util.find_spec("sympy") if "sympy" not in sys.modules else None
        if "onnx_ir" in sys.modules or spec is None:
            return
        stand_in = _Sympy("sympy")
        stand_in.__spec__ = spec
        stand_in.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["sympy"] = stand_in
        try:
            importlib.import_module("onnx_ir")
        except Exception:  # a release of onnx_ir that does more with sympy at once: it is imported as usual
            for name in [name for name in sys.modules if name.partition(".")[0] == "onnx_ir"]:
                del sys.modules[name]
        finally:
            stand_in.settled = True
            if sys.modules.get("sympy") is stand_in:
                del sys.modules["sympy"]
