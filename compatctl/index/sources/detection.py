"""What a file or folder is, by its content, whatever its name."""

from __future__ import annotations

import re
import struct
from enum import Enum
from pathlib import Path

from compatctl.errors import InputError
from compatctl.files import os_errors, other_kind, refuse_pointer
from compatctl.notices import notice

_HEAD = 1024
_ROWS_AND_BYTES = struct.Struct("<II")


class Form(Enum):
    """A form that ``open_source`` reads."""

    HNSWLIB = "hnswlib"
    FAISS = "FAISS"
    USEARCH = "usearch"
    NPY = "numpy .npy"
    NPZ = "numpy .npz"
    PARQUET = "Parquet"
    LANCEDB = "LanceDB"
    CHROMA = "Chroma"


DATABASES = (Form.LANCEDB, Form.CHROMA)
"""Forms that are folders with tables (LanceDB) or collections (Chroma)."""

CHROMA_FILE = "chroma.sqlite3"

SUFFIXES = {
    ".faiss": Form.FAISS,
    ".usearch": Form.USEARCH,
    ".npy": Form.NPY,
    ".npz": Form.NPZ,
    ".parquet": Form.PARQUET,
    ".hnsw": Form.HNSWLIB,
}
_SQLITE = re.compile(rb"SQLite format 3\0")
_BEGINNINGS: tuple[tuple[re.Pattern[bytes], Form | str], ...] = (
    (re.compile(rb"\x93NUMPY"), Form.NPY),
    (re.compile(rb"PAR1"), Form.PARQUET),
    (re.compile(rb"PK\x03\x04.{22,250}\.npy", re.DOTALL), Form.NPZ),
    (re.compile(rb"IB[A-Za-z0-9][A-Za-z0-9+]"), "a FAISS index of binary vectors"),
    (re.compile(rb"I[A-Za-z][A-Za-z0-9][A-Za-z0-9+]"), Form.FAISS),
    (re.compile(rb"usearch"), "a usearch index without its vectors"),
    (re.compile(rb"\x80[\x02-\x05]"), "a pickle, which could run code when it is read"),
    (re.compile(rb"\s*[{[]"), "a JSON text"),
    (_SQLITE, "an SQLite database"),
    (re.compile(rb"\x89HDF\r\n\x1a\n"), "an HDF5 file"),
    (re.compile(rb"ARROW1"), "an Arrow file"),
    (re.compile(rb"PK\x03\x04"), "a zip archive"),
    (re.compile(rb"\x1f\x8b"), "a gzip archive"),
)
"""What the first bytes of a file say: a form that is read, or what else it is. The first pattern
that fits decides. FAISS writes four characters for every kind of index."""

_TIP = (
    "import reads hnswlib, FAISS and usearch indexes, .npy, .npz and Parquet files, and folders "
    "of LanceDB and Chroma; docs/indexes.md says how to export from other databases"
)


def form_of(path: Path) -> Form:
    """The form of a file or folder, by its content. A name that says another one is noticed.

    What has no known first bytes counts as hnswlib, whose reader checks its header.

    Raises:
        InputError: the file is missing, a pointer to the file, a pickle, a folder without a
            database, or of a form that is not read; the message says which.
    """
    if path.is_dir():
        database = database_of(path)
        if database is None:
            raise InputError(f"{path} is a folder{_defect(path)}, not an index", tip=_TIP)
        return database
    with os_errors("reading", path), path.open("rb") as file:
        head = file.read(_HEAD)
        refuse_pointer(path, head)
        found = next((what for first, what in _BEGINNINGS if first.match(head)), None)
        if found is None and is_usearch(path):
            found = Form.USEARCH
    if found is None and (other := other_kind(head)):
        raise InputError(f"{path} is {other[0]}, not an index", tip=other[1])
    named = SUFFIXES.get(path.suffix.lower())
    if found is None:
        if named not in {None, Form.HNSWLIB}:
            raise InputError(
                f"{path} is no {named.value if named else ''} file: it begins with {head[:8]!r}",
                tip=_TIP,
            )
        return Form.HNSWLIB
    if isinstance(found, str):
        raise InputError(f"{path} is {found}, not an index or a table of vectors", tip=_TIP)
    if named not in {None, found}:
        notice("other-form", path, "files of another form than their name says", [found.value])
    return found


def is_usearch(path: Path) -> bool:
    """Whether a file is a usearch index: it has the rows first, and its name behind them."""
    with path.open("rb") as file:
        head = file.read(_ROWS_AND_BYTES.size)
        if len(head) < _ROWS_AND_BYTES.size:
            return False
        rows, size = _ROWS_AND_BYTES.unpack(head)
        if not rows or not size or 8 + rows * size + 7 > path.stat().st_size:
            return False
        file.seek(_ROWS_AND_BYTES.size + rows * size)
        return file.read(7) == b"usearch"


def database_of(path: Path) -> Form | None:
    """The database that a folder is: Chroma by its SQLite file, LanceDB by its tables."""
    database = path / CHROMA_FILE
    if database.is_file():
        with os_errors("reading", database), database.open("rb") as file:
            return Form.CHROMA if _SQLITE.match(file.read(_HEAD)) else None
    return Form.LANCEDB if lance_tables(path) else None


def lance_tables(path: Path) -> tuple[str, ...]:
    """Names of the tables in a LanceDB folder; a folder NAME.lance is that one table."""
    if _is_lance_table(path):
        return (path.stem,)
    with os_errors("reading", path):
        return tuple(sorted(part.stem for part in path.iterdir() if _is_lance_table(part)))


def _is_lance_table(path: Path) -> bool:
    return path.suffix == ".lance" and (path / "_versions").is_dir()


def _defect(path: Path) -> str:
    """Why a folder is no database, for a message."""
    if (path / CHROMA_FILE).is_file():
        return f" whose {CHROMA_FILE} is no SQLite database, as Chroma writes it"
    if (path / "_versions").is_dir():
        return " of Lance whose name does not end in .lance, as LanceDB expects"
    if torn := sorted(part.name for part in path.glob("*.lance")):
        return f" in which {torn[0]} has no _versions, as LanceDB writes them"
    return f" without a table of LanceDB and without {CHROMA_FILE}"
