"""Text from elsewhere, made harmless for a terminal, a log and a page: one place for all of it.

An id, a label or a file name may hold escape sequences, line breaks, or marks that turn the order
of what follows. A terminal acts on them: a hostile name could colour, overwrite or forge a line.
"""

from __future__ import annotations

_TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks of the Unicode bidirectional algorithm (UAX 9)."""
_BREAKS = "\u2028\u2029"
_HIDDEN = "\u200b\u2060\ufeff"
"""Of no width; the joiner of emoji (U+200D) stays."""


def printable(text: str, *, lines: bool = False) -> str:
    """``text`` with every character that is an order to a terminal written out, as ``\\x1b``.

    These are control characters (C0, DEL, C1), marks of direction, separators of lines and of
    nothing, tags (U+E0000 to U+E007F), and halves of characters. ``lines``: line feeds stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if _harmless(one, lines) else _written_out(one) for one in text)


def _harmless(one: str, lines: bool) -> bool:
    code = ord(one)
    if code < 0x20 or 0x7F <= code < 0xA0:
        return lines and one == "\n"
    tag = 0xE0000 <= code <= 0xE007F
    return not (tag or 0xD800 <= code <= 0xDFFF or one in _TURNING + _BREAKS + _HIDDEN)


def _written_out(one: str) -> str:
    code = ord(one)
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(one)
    if short:
        return short
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
