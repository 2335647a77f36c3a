"""Make untrusted text safe to print on a terminal, in a log or on a page.

An id, a label or a file name may hold escape sequences, line breaks, or marks that reverse the
reading direction. A hostile name could otherwise colour, overwrite or forge a line.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks of the Unicode bidirectional algorithm (UAX 9)."""
_BREAKS = "\u2028\u2029"
_ZERO_WIDTH = "\u200b\u2060\ufeff"
"""Invisible characters. The joiner of emoji (U+200D) is harmless and stays."""


def printable(text: str, *, lines: bool = False) -> str:
    """``text`` with every character that controls a terminal escaped, such as ``\\x1b``.

    These are control characters (C0, DEL, C1), direction marks, line separators, zero-width
    characters, tags (U+E0000 to U+E007F) and lone surrogates. ``lines`` keeps line feeds.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if _harmless(char, lines) else _escaped(char) for char in text)


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = "" if len(names) <= most else f" and {len(names) - most} more"
    return ", ".join(names[:most]) + more


def quantity(number: int, one: str, many: str = "") -> str:
    """``1 row``, ``2 rows``; ``many``: the plural, if it is not ``one`` with an s."""
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"


def columns(text: str) -> int:
    """How many columns of a terminal the text takes, or more where terminals differ.

    Wide characters, as of Chinese or Japanese, take two, and those that change the one before none.
    """
    if text.isascii():
        return len(text)
    return sum(map(_columns, text))


def first_columns(text: str, most: int) -> str:
    """The longest beginning of the text in at most ``most`` columns."""
    if text.isascii():
        return text[: max(0, most)]
    room = most
    for at, char in enumerate(text):
        room -= _columns(char)
        if room < 0:
            return text[:at]
    return text


def last_columns(text: str, most: int) -> str:
    """The longest end of the text in at most ``most`` columns."""
    return first_columns(text[::-1], most)[::-1]


def _columns(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _harmless(char: str, lines: bool) -> bool:
    code = ord(char)
    if code < 0x20 or 0x7F <= code < 0xA0:
        return lines and char == "\n"
    tag = 0xE0000 <= code <= 0xE007F
    return not (tag or 0xD800 <= code <= 0xDFFF or char in _BIDI + _BREAKS + _ZERO_WIDTH)


def _escaped(char: str) -> str:
    code = ord(char)
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char)
    if short:
        return short
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
