"""docs/support.md says what the operator tables and the stored results say."""

from __future__ import annotations

from support import DOCUMENT, text


def test_the_support_matrix_is_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == text(), "run `python tests/conformance/support.py`"
