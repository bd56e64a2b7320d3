"""Names out of a model in source text: whatever they are, they stay names."""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize

from hypothesis import example, given
from hypothesis import strategies as st

from fusile.escape import c_string, comment_text, identifier, python_string

names = st.text(max_size=40)
EVIL = '*/ """ \\ // /* \n\r\u2028 ??/ coding: utf-7 # -*- coding=x \0 \ud800 \u202e " \' {{ x }} %s'


@given(st.lists(names, max_size=30))
@example(
    ["a", "a_2", "a", "a.", ".a", "A", "", " ", "1", "class", "class_", "class", "match", "int", "é", "日本"]
)
def test_identifiers_are_valid_and_never_collide(given_names: list[str]) -> None:
    taken: set[str] = set()
    made = [identifier(name, taken) for name in given_names]
    assert len(set(made)) == len(made)
    assert taken == set(made)
    for found in made:
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", found)
        assert found.isidentifier() and not keyword.iskeyword(found) and not keyword.issoftkeyword(found)
        assert "__" not in found
    again: set[str] = set()
    assert made == [identifier(name, again) for name in given_names]


@given(st.from_regex(r"[A-Za-z][a-z0-9]{0,10}", fullmatch=True))
def test_plain_names_stay(name: str) -> None:
    assert identifier(name, set()) in (name, f"{name}_")


def test_long_names_are_cut_and_stay_apart() -> None:
    taken: set[str] = set()
    first, second = identifier("x" * 5000, taken), identifier("x" * 5001, taken)
    assert first != second
    assert len(second) < 110


@given(names)
@example(EVIL)
def test_python_strings_read_back(text: str) -> None:
    literal = python_string(text)
    assert literal.isascii() and "\n" not in literal
    assert ast.literal_eval(literal) == text


@given(names)
@example(EVIL)
@example("1\x0023")
def test_c_strings_are_their_bytes(text: str) -> None:
    literal = c_string(text)
    assert literal.isascii() and literal.isprintable()
    body = literal[1:-1]
    assert not re.search(r'(?<!\\)(\\\\)*"', body)
    assert "??" not in body
    plain = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), body)
    assert plain.encode("latin-1") == text.encode("utf-8", "surrogatepass")


@given(names)
@example(EVIL)
@example("*/")
@example("/*/")
@example('"""""')
@example("\\")
@example("CODING:latin-1")
def test_comments_stay_comments(text: str) -> None:
    safe = comment_text(text)
    assert safe.isascii() and safe.isprintable()
    for sign in ("*/", "/*", '"""', "??/", "\\"):
        assert sign not in safe
    assert not re.search(r"coding[:=]", safe, re.IGNORECASE)
    source = f'# {safe}\nx = """{safe}."""\n'
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(source).readline)]
    assert kinds[:2] == [tokenize.COMMENT, tokenize.NL]
    assert [type(node) for node in ast.parse(source.encode("ascii")).body] == [ast.Assign]


@given(
    st.text(
        alphabet=st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='\\*/"?:='),
        max_size=60,
    )
)
def test_plain_comments_stay_as_they_are(text: str) -> None:
    assert comment_text(text) == text


def test_comments_are_cut() -> None:
    assert comment_text("x" * 500, 20) == "x" * 17 + "..."
