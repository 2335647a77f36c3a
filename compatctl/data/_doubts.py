"""Ids and labels that are hardly meant as they are written: nan, outer blanks, damaged letters.

They stay as they are; this module only names them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from compatctl.notices import MAX_NAMES, notice

_CHUNK = 65_536
_END = "\0"
"""What stands between texts that are searched together."""

_OUTER = r"[\s\u00ad\u200b-\u200d\u2060\ufeff]"
_LATER = r"[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2122]"
"""The later bytes of a letter in UTF-8, where they are read as Latin-1 or cp1252."""

_MISSING = (
    r"nan|null|none|nat|n/a|na|<na>|#n/a|#value!|#ref!|-1(?:\.0)?|[-?]+|tbd|unknown|unlabell?ed|"
    r"undefined|unspecified|uncategori[sz]ed|unassigned"
)

_DOUBTS = (
    (
        "outer-blanks",
        "with blanks or invisible characters at their ends",
        re.compile(rf"(?<={_END}){_OUTER}|{_OUTER}(?={_END})"),
        "they are compared with them",
    ),
    (
        "outer-quotes",
        "between quotation marks",
        re.compile(rf"(?<={_END})(?:=?\"[^{_END}]*\"|'[^{_END}]*')(?={_END})"),
        "they are compared with them; a table has cells in double quotes alone",
    ),
    (
        "no-value",
        "that spell a missing value",
        re.compile(rf"(?i)(?<={_END})(?:{_MISSING})(?={_END})"),
        "they are read as a name like any other; leave such items out, if it is none",
    ),
    (
        "garbled",
        "with letters that were lost or garbled in another encoding",
        re.compile(rf"\ufffd|\u00c3{_LATER}|\u00c2[\u0080-\u00bf]|\u00e2\u20ac{_LATER}"),
        "write the table in UTF-8 again, from its source",
    ),
    (
        "cut-number",
        "with a power of ten, as a spreadsheet writes long numbers",
        re.compile(rf"(?i)(?<={_END})\d(?:[.,]\d+)?e\+\d+(?={_END})"),
        "digits may be lost; write the column as text",
    ),
    (
        "control-character",
        "with control characters or line breaks",
        re.compile(r"[\x01-\x1f\x7f-\x84\x86-\x9f]"),
        "they are compared with them, and printed as escapes",
    ),
)
"""Kind of a notice, what the ids or labels have, how that is found between ends, what follows."""


def warn_of_doubts(source: object, what: str, texts: Sequence[str]) -> None:
    """Warn of ids or labels (``what``) that are doubtful by themselves, counted by their kind."""
    for kind, has, pattern, result in _DOUBTS:
        names: list[str] = []
        count = 0
        for text in _matching(pattern, texts):
            count += 1
            if len(names) < MAX_NAMES:
                names.append(ascii(text))
        if count:
            notice(kind, source, f"{what} {has}", names, result, count=count)


def _matching(pattern: re.Pattern[str], texts: Sequence[str]) -> Iterator[str]:
    """The texts in which the pattern is found; none of them is looked at if all have it not."""
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        if pattern.search(_between_ends(chunk)):
            yield from (text for text in chunk if pattern.search(_between_ends([text])))


def _between_ends(texts: Iterable[str]) -> str:
    return _END + (2 * _END).join(texts) + _END
