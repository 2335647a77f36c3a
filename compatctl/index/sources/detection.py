"""What a file is, by its first bytes, whatever its name."""

from __future__ import annotations

import re
import struct
from enum import Enum
from pathlib import Path

from compatctl.errors import InputError
from compatctl.files import os_errors, refuse_pointer
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


SUFFIXES = {
    ".faiss": Form.FAISS,
    ".usearch": Form.USEARCH,
    ".npy": Form.NPY,
    ".npz": Form.NPZ,
    ".parquet": Form.PARQUET,
    ".hnsw": Form.HNSWLIB,
}
_BEGINNINGS: tuple[tuple[re.Pattern[bytes], Form | str], ...] = (
    (re.compile(rb"\x93NUMPY"), Form.NPY),
    (re.compile(rb"PAR1"), Form.PARQUET),
    (re.compile(rb"PK\x03\x04.{22,250}\.npy", re.DOTALL), Form.NPZ),
    (re.compile(rb"IB[A-Za-z0-9][A-Za-z0-9+]"), "a FAISS index of binary vectors"),
    (re.compile(rb"I[A-Za-z][A-Za-z0-9][A-Za-z0-9+]"), Form.FAISS),
    (re.compile(rb"usearch"), "a usearch index without its vectors"),
    (re.compile(rb"\x80[\x02-\x05]"), "a pickle, which could run code when it is read"),
    (re.compile(rb"\s*[{[]"), "a JSON text"),
    (re.compile(rb"SQLite format 3\0"), "an SQLite database"),
    (re.compile(rb"\x89HDF\r\n\x1a\n"), "an HDF5 file"),
    (re.compile(rb"ARROW1"), "an Arrow file"),
    (re.compile(rb"PK\x03\x04"), "a zip archive"),
    (re.compile(rb"\x1f\x8b"), "a gzip archive"),
)
"""What the first bytes of a file say: a form that is read, or what else it is. The first pattern
that fits decides. FAISS writes four characters for every kind of index."""

_TIP = (
    "import reads hnswlib, FAISS and usearch indexes, .npy, .npz and Parquet files; "
    "docs/indexes.md says how to export from other databases"
)


def form_of(path: Path) -> Form:
    """The form of a file, by its content. A name that says another one is noticed.

    What has no known first bytes counts as hnswlib, whose reader checks its header.

    Raises:
        InputError: the file is missing, a pointer to the file, a folder, a pickle, or of a form
            that is not read; the message says which.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder{_folder_of(path)}, not an index file", tip=_TIP)
    with os_errors("reading", path), path.open("rb") as file:
        head = file.read(_HEAD)
        refuse_pointer(path, head)
        found = next((what for first, what in _BEGINNINGS if first.match(head)), None)
        if found is None and is_usearch(path):
            found = Form.USEARCH
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


def _folder_of(path: Path) -> str:
    """What a folder is, for a message."""
    if (path / "chroma.sqlite3").exists():
        return " of a Chroma database"
    if any(path.glob("*.lance")) or (path / "_versions").exists():
        return " of a LanceDB database"
    return ""
