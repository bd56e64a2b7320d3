"""The one way by which names out of a model reach source text: C, Python, symbols, comments. They are
untrusted.
"""

from __future__ import annotations

import keyword
import re

_C_WORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t
    char32_t class co_await co_return co_yield compl concept const const_cast consteval constexpr
    constinit continue decltype default delete do double dynamic_cast else enum explicit export extern
    false float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr
    operator or or_eq private protected public register reinterpret_cast requires restrict return short
    signed sizeof static static_assert static_cast struct switch template this thread_local throw true
    try typedef typeid typename typeof typeof_unqual union unsigned using virtual void volatile wchar_t
    while xor xor_eq main errno NULL EOF stdin stdout stderr unix linux i386
"""
_WORDS = frozenset(_C_WORDS.split()) | frozenset(keyword.kwlist) | frozenset(keyword.softkwlist)
_LONGEST = 96


def identifier(name: str, taken: set[str]) -> str:
    """An identifier for a name: valid in C, C++ and Python and as a symbol, ASCII, no keyword, and not in
    `taken`, to which it is added.

    Names that are identifiers stay as they are where they can. The same sequence of names always gets the
    same identifiers.
    """
    words = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "unnamed"
    base = words[:_LONGEST].rstrip("_")
    if base[0].isdigit():
        base = f"n{base}"
    if base in _WORDS:
        base = f"{base}_"
    found, number = base, 2
    while found in taken:
        found, number = f"{base.rstrip('_')}_{number}", number + 1
    taken.add(found)
    return found


def c_string(text: str) -> str:
    """A C string literal, quotes and all: UTF-8, with octal escapes for everything that is not plain."""
    return f'"{"".join(_c_byte(byte) for byte in text.encode("utf-8", "surrogatepass"))}"'


def _c_byte(byte: int) -> str:
    # A question mark could begin a trigraph; three octal digits cannot swallow the digit behind them.
    return chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}"


def python_string(text: str) -> str:
    """A Python string literal, ASCII only, in the quotes that a formatter would choose."""
    quote = "'" if '"' in text and "'" not in text else '"'
    return f"{quote}{''.join(_python_character(c, quote) for c in text)}{quote}"


def _python_character(character: str, quote: str) -> str:
    if character in ("\\", quote):
        return f"\\{character}"
    return character if " " <= character <= "~" else ascii(character)[1:-1]


_BREAKS_OUT = re.compile(r'(?<=\*)/|(?<=/)\*|(?<="")"|(?<=\?\?)/|(?<=coding)[:=]', re.IGNORECASE)


def comment_text(text: str, longest: int = 200) -> str:
    """Text for one line of a C, C++ or Python comment or a docstring; what could end it, or act in it, is
    written as <hex>.

    That is: everything but printable ASCII, backslashes (they join lines), comment signs, triple quotes,
    trigraphs, Python's encoding declaration. Cut at `longest` characters.
    """
    plain = "".join(c if " " <= c <= "~" and c != "\\" else f"<{ord(c):x}>" for c in text)
    safe = _BREAKS_OUT.sub(lambda match: f"<{ord(match.group()):x}>", plain)
    return safe if len(safe) <= longest else f"{safe[: longest - 3]}..."
