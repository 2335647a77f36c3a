"""Folders of databases: one table or collection of several."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from compatctl.errors import InputError
from compatctl.index.sources.detection import CHROMA_FILE, Form, lance_tables
from compatctl.printable import listed


def tables_of(path: Path, form: Form) -> tuple[str, ...]:
    """Names of the tables or collections of a database's folder, without the database's library.

    Raises:
        InputError: the folder cannot be read.
    """
    if form is Form.LANCEDB:
        return lance_tables(path)
    file = path / CHROMA_FILE
    try:
        # immutable: SQLite then writes nothing, not even a lock
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?immutable=1", uri=True)) as opened:
            return tuple(name for (name,) in opened.execute("SELECT name FROM collections"))
    except sqlite3.Error as error:
        raise InputError(f"{file}: its collections cannot be read: {error}") from error


def choose_table(names: Sequence[str], wanted: str | None, noun: str) -> str:
    """The table or collection (``noun``) that is meant: the one that is named, or the only one.

    Raises:
        InputError: there is none, no such one, or several and none is named.
    """
    if wanted is not None:
        if wanted not in names:
            raise InputError(
                f"there is no {noun} {wanted!r}; its {noun}s are {listed(names) or '(none)'}",
                tip="compatctl import --table NAME says which to import",
            )
        return wanted
    if not names:
        raise InputError(f"it has no {noun}", tip="name the folder that your program opens")
    if len(names) > 1:
        raise InputError(
            f"it has {len(names)} {noun}s: {listed(names)}",
            tip=f"compatctl import --table {names[0]} says which to import",
        )
    return names[0]
