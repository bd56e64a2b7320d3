"""What the tests of the verifiers share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fusile.errors import InternalError


def refused(check: Callable[[], None], *words: str) -> None:
    with pytest.raises(InternalError) as caught:
        check()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "bug of fusile" in message
