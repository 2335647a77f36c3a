"""The columns of a table: known by their exact name, or by one that is read almost alike."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from compatctl.errors import InputError
from compatctl.notices import notice

_CLOSE = 0.8
"""difflib's ratio above which a name is taken for a misspelling."""

_MARKS = re.compile(r"[\W_]+")

_WORDS = {
    "role": frozenset(("query", "gallery")),
    "split": frozenset(("train", "validation", "test", "val", "valid", "dev")),
}
"""Column -> what its cells are, in any case."""


def folded(name: str) -> str:
    """A name without case, blanks, punctuation, invisible characters and the s of a plural."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return _MARKS.sub("", plain).removesuffix("s")


def known_names(
    names: Sequence[str],
    needed: Sequence[str],
    optional: Sequence[str],
    source: object,
    what: str = "columns",
) -> dict[str, str]:
    """The ``names`` that stand for another, known one: name -> known name. Warns of each.

    Also warns of names that may be a misspelling of an ``optional`` one that is missing.

    Raises:
        InputError: two names could be the same known one.
    """
    missing = [name for name in (*needed, *optional) if name not in names]
    others = [name for name in names if name not in needed and name not in optional]
    if not missing or not others:
        return {}
    renamed: dict[str, str] = {}
    for name in missing:
        similar = [other for other in others if folded(other) == folded(name)]
        if len(similar) > 1:
            raise InputError(
                f"{source}: {', '.join(map(repr, similar))} could each be {name!r}",
                tip=f"rename the one that is {name}",
            )
        renamed |= dict.fromkeys(similar, name)
    if renamed:
        pairs = [f"{name!r} as {renamed[name]}" for name in names if name in renamed]
        notice("similar-column", source, f"{what} read by a similar name", pairs)
    found = {*names, *renamed.values()}
    doubts = [
        f"{other!r}: {name}?"
        for name in optional
        if name not in found
        for other in others
        if other not in renamed and _is_close(folded(other), folded(name))
    ]
    if doubts:
        result = "they are read as slices; rename them, if they are not"
        notice("unknown-column", source, f"{what} of an unknown but close name", doubts, result)
    return renamed


def refuse_missing(names: Sequence[str], needed: Iterable[str], where: object, tip: str) -> None:
    """Raise an InputError that lists the columns found, if one of ``needed`` is not there."""
    missing = [name for name in needed if name not in names]
    if missing:
        found = ", ".join(map(repr, names[:20])) or "none"
        raise InputError(
            f"{where}: there is no column {', '.join(missing)}; its columns are {found}", tip=tip
        )


def warn_of_hidden_words(
    slices: Iterable[Mapping[str, str]], missing: Iterable[str], source: object
) -> None:
    """Warn if every item has a slice with a role (or a split) in it, and no column is so named."""
    rows = list(slices)
    for column in missing:
        words = _WORDS[column]
        named = [
            f"{name!r}: {column}?"
            for name in rows[0]
            if all(row.get(name, "").strip().casefold() in words for row in rows)
        ]
        if named:
            result = "they are read as slices; rename them, if they are not"
            notice("unknown-column", source, f"columns that hold a {column}", named, result)


def _is_close(name: str, known: str) -> bool:
    return difflib.SequenceMatcher(a=name, b=known).ratio() > _CLOSE
