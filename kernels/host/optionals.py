"""Optionals: the value itself, or None where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusile.kernels.host.registry import Refused, host_op


@host_op("Optional")
def optional(value: Any = None) -> tuple[Any]:
    return (value,)


@host_op("OptionalHasElement")
def optional_has_element(value: Any = None) -> Any:
    return np.array(value is not None)


@host_op("OptionalGetElement")
def optional_get_element(value: Any = None) -> tuple[Any]:
    if value is None:
        raise Refused("the optional has no element")
    return (value,)
