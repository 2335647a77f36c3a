"""Tables that name the item behind each key of an index: CSV, JSON, JSONL, SQLite, lists of ids."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compatctl.core.arrays import Keys
from compatctl.data._tables import csv_rows, header_of, open_table, text_lines
from compatctl.errors import InputError
from compatctl.files import os_errors
from compatctl.notices import notice

COLUMNS = ("key", "id", "label")
LARGEST_KEY = 2**64 - 1

_KEY = re.compile(r"[0-9]{1,20}")
_LINES = (".jsonl", ".ndjson")
_SQLITE = b"SQLite format 3\0"
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\(?[dl]p[01]\n")
_CONVERT = (
    'in the program that trusts it, write it as JSON: python -c "import json,pickle; '
    "d=pickle.load(open('keys.pkl','rb')); json.dump({str(k):str(v) for k,v in d.items()}, "
    "open('keys.json','w'))\""
)


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyTable:
    """Distinct keys (n,), with the item's id and its class ("" where unknown) of each."""

    keys: Keys
    ids: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class KeyColumns:
    """The columns of key, id and label, where they have other names; and the table of SQLite."""

    names: Mapping[str, str]
    table: str | None = None

    def of(self, column: str) -> str:
        """The name of a column in the table."""
        return self.names.get(column, column)


def read_key_table(path: Path, columns: KeyColumns) -> KeyTable:
    """Read a table of keys; its form is found by its content.

    A CSV, JSONL or SQLite table has the columns key, id and, if classes are known, label. A JSON
    text is a list of such objects, an object from key to id (or to an object with id and label), or
    a list of ids, whose keys are their positions; so are the lines of a .txt file.

    Raises:
        InputError: unreadable; a pickle; a missing column; a key that is no whole number from 0 to
            2^64 - 1, or is there twice; an empty id.
    """
    with os_errors("reading", path), path.open("rb") as file:
        head = file.read(256)
    if _PICKLE.match(head):
        raise InputError(
            f"{path}: a pickle is not read: reading it can run any code in it", tip=_CONVERT
        )
    is_sqlite = head.startswith(_SQLITE)
    if columns.table is not None and not is_sqlite:
        raise InputError(
            f"{path} is no SQLite database: there is no table {columns.table!r} to choose",
            tip="leave --items-table out",
        )
    if is_sqlite:
        return _collect(_sqlite(path, columns))
    if path.suffix.lower() == ".txt":
        return _collect(_lines(path))
    if path.suffix.lower() in _LINES:
        return _collect(_jsonl(path, columns))
    if head.lstrip()[:1] in {b"{", b"["}:
        return _collect(_json(path, columns))
    return _collect(_csv(path, columns))


_Entry = tuple[str, Any, Any, Any]
"""Where it stands, key, id and label, as they are written."""


def _collect(entries: Iterable[_Entry]) -> KeyTable:
    keys: list[int] = []
    ids: list[str] = []
    labels: list[str] = []
    for where, key, item, label in entries:
        keys.append(_key(where, key, item, label))
        ids.append(_id(where, key, item, label))
        text = "" if label is None else str(label)
        labels.append(text if text.strip() else "")
    array = np.array(keys, np.uint64)
    ordered = np.sort(array)
    if (same := ordered[1:] == ordered[:-1]).any():
        key = int(ordered[np.argmax(same)])
        raise InputError(f"{where.partition(',')[0]}: the key {key} is there twice")
    return KeyTable(keys=array, ids=tuple(ids), labels=tuple(labels))


def _key(where: str, key: Any, item: Any, label: Any) -> int:
    """The key as a number; a float of 2^53 or more is not known exactly."""
    text = str(key) if isinstance(key, int | str) and not isinstance(key, bool) else ""
    if not _KEY.fullmatch(text):
        raise _bad(where, key, item, label)
    if int(text) > LARGEST_KEY:
        raise InputError(f"{where}: the key {key} is larger than {LARGEST_KEY}")
    return int(text)


def _id(where: str, key: Any, item: Any, label: Any) -> str:
    text = str(item) if isinstance(item, int | str) and not isinstance(item, bool) else ""
    if not text.strip():
        raise _bad(where, key, item, label)
    return text


def _bad(where: str, key: Any, item: Any, label: Any) -> InputError:
    return InputError(
        f"{where}: expected a key of the index (a whole number), the item's id and its "
        f"label, got {key!r:.40}, {item!r:.40} and {label!r:.40}",
        tip="write all three; only a label may be empty: its class is then unknown",
    )


def _csv(path: Path, columns: KeyColumns) -> Iterator[_Entry]:
    key, item, label = map(columns.of, COLUMNS)
    named = "label" in columns.names
    needed, optional = ((key, item, label), ()) if named else ((key, item), (label,))
    tip = "--items-column key=NAME, id=NAME and label=NAME say which columns they are"
    for number, (where, line) in enumerate(csv_rows(path, needed, optional, tip=tip)):
        if number == 0 and label not in line:
            others = [repr(name) for name in line if name not in {key, item}]
            _warn_of_others(path, others)
        yield where, line[key], line[item], line.get(label)


def _warn_of_others(path: Path, others: Sequence[str]) -> None:
    """Warn of columns (quoted) that are not read where there is no label."""
    if others:
        result = "no label is known; --items-column label=NAME says which column it is"
        notice("column-not-read", path, "columns that are not read", others, result)


def _lines(path: Path) -> Iterator[_Entry]:
    try:
        if header_of(path, COLUMNS[:2]):
            raise InputError(
                f"{path}: its first line is the header of a table; a .txt file has ids alone",
                tip="name it .csv",
            )
        with open_table(path) as file:
            for number, line in enumerate(text_lines(file, path)):
                yield f"{path}, line {number + 1}", number, line.rstrip("\r\n"), ""
    except OSError as error:
        raise InputError(f"{path}: cannot be read as lines: {error}") from error


def _jsonl(path: Path, columns: KeyColumns) -> Iterator[_Entry]:
    try:
        with open_table(path) as file:
            for number, line in enumerate(text_lines(file, path), 1):
                where = f"{path}, line {number}"
                if line.strip():
                    yield (where, *_fields(where, _parsed(line, where), columns))
    except OSError as error:
        raise InputError(f"{path}: cannot be read as JSON lines: {error}") from error


def _json(path: Path, columns: KeyColumns) -> Iterator[_Entry]:
    try:
        with open_table(path) as file:
            content = _parsed(file.read().decode("utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON in UTF-8: {error}") from error
    if isinstance(content, dict):
        for key, value in content.items():
            is_object = isinstance(value, dict)
            item, label = _item(value, columns) if is_object else (value, None)
            yield f"{path}, key {key!r:.40}", key, item, label
        return
    is_ids = isinstance(content, list) and not any(isinstance(e, dict | list) for e in content)
    if is_ids:
        first = [str(entry) for entry in content[:3]]
        result = "their positions, from 0, are taken as keys of the index"
        notice("key-order", path, "ids in a list", first, result, count=len(content))
    for position, entry in enumerate(content):
        where = f"{path}, entry {position}"
        yield (where, position, entry, None) if is_ids else (
            where, *_fields(where, entry, columns)
        )  # fmt: skip


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, where))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in content if names.count(name) > 1)
        raise InputError(f"{where}: the key {twice!r} is there twice")
    return content


def _fields(where: str, entry: Any, columns: KeyColumns) -> tuple[Any, Any, Any]:
    """Key, id and label of an object."""
    names = list(entry) if isinstance(entry, dict) else []
    missing = [columns.of(column) for column in COLUMNS[:2] if columns.of(column) not in names]
    if missing:
        found = ", ".join(map(repr, names[:20])) if names else f"{entry!r:.60}"
        raise InputError(
            f"{where}: expected an object with {' and '.join(map(repr, missing))}, got {found}",
            tip="--items-column key=NAME and --items-column id=NAME say which fields they are",
        )
    return (entry[columns.of("key")], *_item(entry, columns))


def _item(entry: Mapping[str, Any], columns: KeyColumns) -> tuple[Any, Any]:
    return entry.get(columns.of("id")), entry.get(columns.of("label"))


def _sqlite(path: Path, columns: KeyColumns) -> Iterator[_Entry]:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            table, names = _sqlite_table(path, database, columns)
            selected = ", ".join("NULL" if name is None else _quoted(name) for name in names)
            for number, row in enumerate(
                database.execute(f"SELECT {selected} FROM {_quoted(table)}"), 1
            ):
                yield (f"{path}, table {table}, row {number}", *row)
    except sqlite3.Error as error:
        raise InputError(f"{path}: the SQLite database cannot be read: {error}") from error


def _sqlite_table(
    path: Path, database: sqlite3.Connection, columns: KeyColumns
) -> tuple[str, list[str | None]]:
    """The table, and its columns of key, id and label (None: it has no label)."""
    query = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name"
    tables = [name for (name,) in database.execute(query) if not name.startswith("sqlite_")]
    of_table = {
        name: [row[1] for row in database.execute(f"PRAGMA table_info({_quoted(name)})")]
        for name in tables
    }
    described = "; ".join(f"{name} ({', '.join(of_table[name])})" for name in tables[:10])
    if columns.table is not None and columns.table not in of_table:
        raise InputError(f"{path}: there is no table {columns.table!r}; its tables: {described}")
    candidates = tables if columns.table is None else [columns.table]
    fitting = {
        name: names for name in candidates if (names := _sqlite_columns(of_table[name], columns))
    }
    if len(fitting) != 1:
        which = "no table has" if not fitting else f"{' and '.join(fitting)} each have"
        raise InputError(
            f"{path}: {which} the columns {columns.of('key')} and {columns.of('id')}; its tables: "
            f"{described}",
            tip="--items-table NAME, --items-column key=NAME and --items-column id=NAME say which",
        )
    ((table, chosen),) = fitting.items()
    if columns.table is None and len(tables) > 1:
        notice("items-table", path, "tables that are taken for the items", [table])
    return table, chosen


def _sqlite_columns(names: Sequence[str], columns: KeyColumns) -> list[str | None]:
    """The table's names of key, id and label; empty if it has no key or no id."""
    lower = {name.lower(): name for name in names} | {"rowid": "rowid"}
    chosen: list[str | None] = []
    for column in COLUMNS:
        found = lower.get(columns.of(column).lower())
        if found is None and (column != "label" or column in columns.names):
            return []
        chosen.append(found)
    return chosen


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
