"""Folders of databases: one table or collection of several."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from compatctl.errors import InputError
from compatctl.index.sources.detection import CHROMA_FILE, Form, lance_tables
from compatctl.printable import listed

DEFAULT_DATABASE = "default_database"
"""Chroma's database of collections for which none is named."""

_COLLECTIONS = (
    "SELECT databases.name, collections.name FROM collections "
    "JOIN databases ON databases.id = collections.database_id"
)


def collection_name(database: str, name: str) -> str:
    """By what a collection of Chroma is chosen: its name, or DATABASE/NAME of another database."""
    return name if database == DEFAULT_DATABASE else f"{database}/{name}"


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
            rows = opened.execute(_COLLECTIONS).fetchall()
            return tuple(collection_name(database, name) for database, name in rows)
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
