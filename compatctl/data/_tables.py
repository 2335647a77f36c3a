"""Untrusted text tables: bounded in bytes, in the length of a line, and in cells."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import AnyStr, BinaryIO

from compatctl.errors import InputError
from compatctl.files.npz import open_regular

MAX_TABLE_BYTES = 4 << 30
"""Size of the largest CSV, JSONL or qrels file."""

MAX_LINE_BYTES = 1 << 20
"""Length of the longest line."""

MAX_CELLS = 100_000_000
"""Most cells of a table, which is held in memory: some 100 bytes a cell."""


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[BinaryIO]:
    """Open a table's file.

    Raises:
        OSError: it is missing, unreadable, or no regular file.
        InputError: it is larger than ``MAX_TABLE_BYTES``.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_TABLE_BYTES:
            raise InputError(f"{path}: {size} bytes; a table has at most {MAX_TABLE_BYTES}")
        yield file


def raw_lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The lines with their ends.

    Raises:
        InputError: a line is longer than ``MAX_LINE_BYTES``; the message names it.
    """
    return _bounded(file.readline, path)


def text_lines(file: BinaryIO, path: Path) -> Iterator[str]:
    """The lines as text with their ends, without a byte order mark.

    Raises:
        UnicodeDecodeError: the file is not UTF-8.
        InputError: a line is longer than ``MAX_LINE_BYTES`` characters; the message names it.
    """
    return _bounded(io.TextIOWrapper(file, encoding="utf-8-sig", newline="").readline, path)


def _bounded(readline: Callable[[int], AnyStr], path: Path) -> Iterator[AnyStr]:
    number = 0
    while line := readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes")
        yield line


class CellBudget:
    """A count of a table's cells that refuses too many."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = MAX_CELLS

    def take(self, count: int) -> None:
        """Count ``count`` more.

        Raises:
            InputError: there are more than ``MAX_CELLS``.
        """
        self._left -= count
        if self._left < 0:
            raise InputError(
                f"{self._path}: more than {MAX_CELLS} cells", tip="split it into several tables"
            )


def csv_rows(path: Path, needed: Iterable[str]) -> Iterator[tuple[str, dict[str, str | None]]]:
    """(position for messages, column -> cell) of every row of a CSV; None if a line is too short.

    Raises:
        InputError: no such file, no CSV, a missing column of ``needed``, or over the limits.
    """
    cells_left = CellBudget(path)
    try:
        with open_table(path) as file:
            reader = csv.DictReader(text_lines(file, path), strict=True)
            names = reader.fieldnames or ()
            missing = [name for name in needed if name not in names]
            if missing:
                raise InputError(f"{path}: there is no column {', '.join(missing)}")
            for row in reader:
                cells_left.take(len(row))
                yield f"{path}, line {reader.line_num}", row
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}") from error
