"""Ids and labels that people take for one, and that are compared as two.

Texts are compared as they are written, byte by byte. This module only finds those that differ in
nothing but their Unicode form, case, blanks, invisible characters, dashes, apostrophes, letters of
one look, or how a number or a path is spelt: a Mac writes é as two characters, a word processor
makes dashes of hyphens, a spreadsheet turns 007 into 7, 7 into 7.0 and 1000 into 1E+03.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from compatctl.data._doubts import warn_of_doubts
from compatctl.notices import notice

_CHUNK = 65_536
_END = "\0"
"""What separates texts that are brought into one form together."""

_INVISIBLE = re.compile("[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufe00-\ufe0f\ufeff]")
_BLANK = re.compile(r"\s")
_BEFORE_NO_DIGIT = re.compile(r"\s+(?!\d)")
_AFTER_NO_DIGIT = re.compile(r"(?<!\d)\s+")
_LEADING_ZEROS = re.compile(r"0(?<![^\W_]0)(?<![.,]0)0*(?=\d+(?![^\W_]))")
"""Of a run of digits with neither letter nor decimal point before it, and no letter after."""
_FLOAT = re.compile(rf"(?<={_END})(\d+)\.0+(?={_END})")
"""A whole number with a decimal point, as pandas writes a column that has gaps."""

_POWER = re.compile(rf"(?<={_END})(\d)(?:\.(\d+))?e\+?(\d\d?)(?={_END})")
"""A number with a power of ten, as spreadsheets write long ones."""
_HERE = re.compile(rf"(?<={_END})(?:\./)+")
"""The folder itself at the begin of a path."""
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_APOSTROPHES = "\u2018\u2019\u02bc\u2032"
_LETTERS = "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u03bf\u03b1\u03c1"
_LOOKS = str.maketrans(
    {**dict.fromkeys(_DASHES, "-"), **dict.fromkeys(_APOSTROPHES, "'")}
    | dict(zip(_LETTERS, "aeopcyxijsoap", strict=True))
)
"""Dashes, apostrophes, and small letters of Cyrillic and Greek -> the ASCII that looks so."""

WHAT = "that differ only in Unicode form, case, blanks, marks or the spelling of a number"


def forms(texts: Sequence[str]) -> Iterator[str]:
    """The form of each text: equal for texts that people take for one."""
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        formed = _form(_END + (2 * _END).join(chunk) + _END)[1:-1].split(2 * _END)
        whole = len(formed) == len(chunk)
        yield from formed if whole else [_form(_END + text + _END)[1:-1] for text in chunk]


def _form(text: str) -> str:
    """The form of texts between ``_END``."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).casefold()
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text)).translate(_LOOKS)
    text = text.casefold().replace("\\", "/")
    if "./" in text:
        text = _HERE.sub("", text)
    if _BLANK.search(text):
        text = _AFTER_NO_DIGIT.sub("", _BEFORE_NO_DIGIT.sub("", text))
        text = _BLANK.sub(" ", text)
    if ".0" in text:
        text = _FLOAT.sub(r"\1", text)
    if "e" in text:
        text = _POWER.sub(_whole, text)
    return _LEADING_ZEROS.sub("", text) if "0" in text else text


def _whole(power: re.Match[str]) -> str:
    """A number with a power of ten in digits, if it is whole."""
    first, decimals, exponent = power[1], power[2] or "", int(power[3])
    decimals = decimals.rstrip("0")
    if len(decimals) > exponent:
        return power[0]
    return first + decimals.ljust(exponent, "0")


def near_equal(texts: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of different ``texts`` with one form, in the order of the texts. 8 bytes a text."""
    distinct = texts if isinstance(texts, tuple) else tuple(sorted(texts))
    hashes = np.fromiter(map(hash, forms(distinct)), np.int64, len(distinct))
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return []
    suspects = [distinct[row] for row in np.flatnonzero(np.isin(hashes, repeated))]
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for text, form in zip(suspects, forms(suspects), strict=True):
        groups[form][text] = None
    return [tuple(group) for group in groups.values() if len(group) > 1]


def near_pairs(new: Sequence[str], known: Sequence[str]) -> list[tuple[str, str]]:
    """(new, known) texts that differ and have one form; at most one pair for each new text."""
    form_of = dict(zip(forms(new), new, strict=True))
    return [
        (form_of.pop(form), text)
        for text, form in zip(known, forms(known), strict=True)
        if form in form_of and form_of[form] != text
    ]


def warn_of_near_equal(source: object, ids: Sequence[str], labels: Iterable[str]) -> None:
    """Warn of ids, and of labels, that are near-equal among themselves, or doubtful by themselves
    (``_doubts``). They stay as they are."""
    for kind, texts in (("ids", tuple(ids)), ("labels", tuple(sorted(set(labels))))):
        warn_of_doubts(source, kind, texts)
        if groups := near_equal(texts):
            _warn(kind, source, f"{kind} {WHAT}", groups)


def warn_of_near_values(
    source: object, columns: Mapping[str, Iterable[str]], *, grouping: Iterable[str] = ()
) -> None:
    """Warn of values of a column that are near-equal; in the ``grouping`` columns, where items
    without a value share it with none, also of doubtful ones, such as nan."""
    for name, values in columns.items():
        texts = tuple(sorted({*values} - {""}))
        what = f"values of the column {name}"
        if name in grouping:
            warn_of_doubts(source, what, texts)
        if groups := near_equal(texts):
            _warn("values", source, f"{what} {WHAT}", groups)


def warn_of_near_known(
    source: object,
    kind: str,
    new: Sequence[str],
    known: Sequence[str],
    *,
    told: tuple[str, str] = ("new", "the store"),
) -> None:
    """Warn of ``new`` ids or labels (``kind``) that are near-equal to known ones; ``told``: what
    both are in the sentence."""
    if pairs := near_pairs(new, known):
        _warn(kind, source, f"{told[0]} {kind} {WHAT} from those of {told[1]}", pairs)


def _warn(kind: str, source: object, what: str, groups: Sequence[Sequence[str]]) -> None:
    names = [" and ".join(map(_shown(group), group)) for group in groups]
    result = f"they count as different {kind}; write them one way, if they are one"
    notice(f"near-equal-{kind}", source, what, names, result)


def _shown(group: Sequence[str]) -> Callable[[str], str]:
    """How to show texts so that one sees how they differ."""
    looks = {_INVISIBLE.sub("", unicodedata.normalize("NFC", text)) for text in group}
    blanks = any(_BLANK.search(text.replace(" ", "")) for text in group)
    return ascii if blanks or len(looks) < len(group) else repr
