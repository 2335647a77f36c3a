"""A row of a data set of any form: its fields as they are read, before and after their checks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, cast, get_args

from compatctl.data._columns import UNREAD
from compatctl.data._dataset import Item, Role, Source, Split, SplitRule
from compatctl.data._folders import fields_of_split
from compatctl.data._roots import AllowedRoots
from compatctl.errors import InputError

REQUIRED = ("id", "path", "label")
WITHOUT_LABEL = ("id", "path")
OPTIONAL = ("split", "role")
RESERVED = frozenset((*REQUIRED, *OPTIONAL, UNREAD))
"""Names of columns that are no slices."""

_EXPECTED = {
    "id": (
        "an id that no other item has",
        "write one, such as the file's name; it must not change between tables",
    ),
    "path": ("the image's file", "write its path, relative to the table; or leave the item out"),
    "text": ("the item's text", "write it, or leave the item out"),
    "label": (
        "the item's class",
        "write it, or leave the item out; to train on images of unknown class, name a table of "
        "them as unlabelled: FILE in the recipe of compatctl finetune",
    ),
}
"""Field that no item lacks -> what it is, and what to do without it."""
_WITHOUT = {
    "split": "the class decides, by split: in compatctl.yaml (unlabelled images train)",
    "role": "the item is neither, or both where no item has a role",
}
"""Field that an item may lack -> what holds then."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_INVISIBLE = re.compile(r"[\s\u00ad\u200b-\u200f\u2060\ufeff]+")
_SURROGATE = re.compile("[\ud800-\udfff]")

Record = Mapping[str, object]


def is_blank(text: str) -> bool:
    """Whether a text has nothing but blanks and invisible characters."""
    plain = text.strip()
    return not (plain and (plain.isascii() or _INVISIBLE.sub("", plain)))


class Row:
    """An unchecked item: its position for messages, its fields, and its source if it is no file.

    ``content`` is the field that has what the item is: the path of an image, or a text.
    """

    def __init__(self, where: str, record: Record, source: Source | None = None) -> None:
        self.where = where
        self.record = record
        self.source = source
        is_text = source is None and "text" in record and "path" not in record
        self.content: Literal["path", "text"] = "text" if is_text else "path"

    def text(self, key: str) -> str:
        """A field as text; empty if it is missing or None."""
        value = self.record.get(key)
        if value is None:
            return ""
        if isinstance(value, str):
            if key != "path" and not value.isascii() and _SURROGATE.search(value):
                raise InputError(
                    f"{self.where}: {key} is not writable text: {value!r}",
                    tip="rename it in UTF-8; if it is, this shell is not: set PYTHONUTF8=1",
                )
            if "\0" in value:
                raise InputError(
                    f"{self.where}: {key} has a NUL character: {value[:80]!r}",
                    tip="write it again; no text has one",
                )
            return value
        if isinstance(value, int | float) and (key not in RESERVED or type(value) is int):
            return json.dumps(value)
        raise InputError(
            f"{self.where}: {key} must be text, got {value!r}"[:400],
            tip="write it as text, as it shall be compared: 7 and 7.0 are two labels",
        )

    def word(self, key: str, known: tuple[str, ...]) -> str | None:
        """A field that is one of ``known``, or None if it is empty."""
        value = self.text(key)
        if value and value not in known:
            meant = (fields_of_split(value.strip()) or {}).get(key)
            write = f"write {meant}; or " if meant in known else ""
            raise InputError(
                f"{self.where}{self._named(key)}: {key} is one of {', '.join(known)}; got "
                f"{value!r}",
                tip=f"{write}leave {key} empty: then {_WITHOUT[key]}",
            )
        return value or None

    def lacks(self, key: str) -> bool:
        """Whether a field is missing, or has nothing but blanks; an array needs no path, nor does
        a text."""
        key = self.content if key == "path" else key
        if key == "path" and self.source is not None:
            return False
        return is_blank(self.text(key))

    def refusal(self, key: str, others: int) -> InputError:
        """The error of an item that lacks ``key``, as so many ``others`` do."""
        key = self.content if key == "path" else key
        expected, tip = _EXPECTED[key]
        more = f"; {others + 1} items have none" if others else ""
        got = "nothing" if self.record.get(key) is None else repr(self.record[key])
        where = f"{self.where}{self._named(key)}"
        return InputError(f"{where}: {key} is empty: expected {expected}, got {got}{more}", tip=tip)

    def _named(self, key: str) -> str:
        """By what else a message names the item."""
        other = "id" if key != "id" else "path"
        value = "" if self.lacks(other) else self.text(other)
        return f" ({other} {value!r})" if value and other in self.record else ""

    def unlabelled_item(self) -> Item:
        """The item without its label, in the row's split or else in ``train``."""
        split = self.word("split", get_args(Split)) or "train"
        return Item(id=self.text("id"), label="", split=cast("Split", split))

    def item(self, rule: SplitRule) -> Item:
        """The item, after all checks of its fields."""
        item_id = self.text("id")
        label = item_id if self.lacks("label") else self.text("label")
        described = (key for key in sorted(self.record) if key not in {*RESERVED, self.content})
        slices = {key: self.text(key) for key in described}
        split = self.word("split", get_args(Split)) or rule.split_of(label, item_id)
        return Item(
            id=item_id,
            label=label,
            split=cast("Split", split),
            role=cast("Role | None", self.word("role", get_args(Role))),
            slices={key: value for key, value in slices.items() if value},
        )

    def take(self, folder: Path, roots: AllowedRoots) -> Source:
        """The item's source, image file or text; a relative path starts from ``folder``."""
        if self.source is not None:
            return self.source
        if self.content == "text":
            return self.text("text")
        if _URL.match(self.text("path")):
            raise InputError(
                f"{self.where}: {self.text('path')[:80]!r} is an address; images are files",
                tip="fetch the images first, and write their paths into the table",
            )
        return roots.check(folder / self.text("path"), self.where)


def whole_rows(rows: Iterator[Row], required: tuple[str, ...]) -> Iterator[Row]:
    """The rows, until one lacks a ``required`` field."""
    for row in rows:
        for key in required:
            if row.lacks(key):
                raise row.refusal(key, _count(rows, key))
        yield row


def _count(rows: Iterator[Row], key: str) -> int:
    """How many rows lack a field, up to the first one that cannot be read."""
    count = 0
    try:
        for row in rows:
            count += row.lacks(key)
    except InputError:
        return count
    return count
