"""Untrusted text tables: bounded in bytes, in the length of a line, and in cells."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import AnyStr, BinaryIO

from compatctl.data._columns import Fields, folded
from compatctl.errors import InputError
from compatctl.files.npz import open_regular
from compatctl.notices import notice

MAX_TABLE_BYTES = 4 << 30
"""Size of the largest CSV, JSONL or qrels file."""

MAX_LINE_BYTES = 1 << 20
"""Length of the longest line."""

MAX_CELLS = 100_000_000
"""Most cells of a table, which is held in memory: some 100 bytes a cell."""

SEPARATORS = (",", ";", "\t", "|")
"""What may separate cells; a comma, if the header fits it."""

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SAYS_SEPARATOR = re.compile(r"sep=(.)\s*")


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


def csv_rows(
    path: Path,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    *,
    tip: str = "",
) -> Iterator[tuple[str, dict[str, str]]]:
    """(position for messages, column -> cell) of every row of a CSV, as ``field_rows``.

    Raises:
        InputError: as ``field_rows``.
    """
    fields = Fields(required=tuple(needed), optional=tuple(optional), advice=tip)
    return field_rows(path, fields)


def field_rows(path: Path, fields: Fields) -> Iterator[tuple[str, dict[str, str]]]:
    """(position for messages, name -> cell) of every row of a CSV that is not empty.

    Cells are separated by commas; or by semicolons, tabs or bars, if only so the header has the
    required columns, or by what a first line ``sep=;`` says; in a .tsv file by tabs. Of a separator
    that is guessed there is a notice, and of columns that are (see ``Fields.rename``).

    Raises:
        InputError: no such file, or no CSV; a missing column; two columns of one field; a row with
            more or fewer cells than the header; or over the limits.
    """
    cells_left = CellBudget(path)
    number = 0
    try:
        with open_table(path) as file:
            lines = text_lines(file, path)
            wanted = [fields, fields.for_names([fields.column("text")])]
            columns = [[*map(part.column, part.required)] for part in wanted]
            separator, header, before = _header(lines, path, columns)
            reader = csv.reader(chain([header], lines), strict=True, delimiter=separator)
            names = next(reader, [])
            fields = fields.for_names(names)
            renamed = fields.rename(names, path)
            names = [renamed.get(name, name) for name in names]
            if any(names.count(name) > 1 for name in fields.known):
                raise InputError(f"{path}: two columns of one name: {', '.join(names)}")
            number = before + 1
            for cells in reader:
                number = before + reader.line_num
                if len(cells) != len(names):
                    if not cells:
                        continue
                    raise _uneven(f"{path}, line {number}", cells, names, separator)
                cells_left.take(len(cells))
                yield f"{path}, line {number}", dict(zip(names, cells, strict=True))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        found = "UTF-16" if error.object[:2] in _UTF_16 else f"the bytes {_bytes_at(error)}"
        message = f"{path}: not CSV in UTF-8; it has {found}"
        raise InputError(message, tip="save it as CSV in UTF-8") from error
    except csv.Error as error:
        message = f"{path}, line {number + 1}: not CSV: {error}"
        raise InputError(message, tip="look at the quotes in and before this line") from error


def header_of(path: Path, needed: Sequence[str]) -> bool:
    """Whether the first line is a header with the columns ``needed``, by name or a similar one.

    Raises:
        OSError: no such file, or it is unreadable.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open_table(path) as file:
        first = next(text_lines(file, path), "")
        if _SAYS_SEPARATOR.fullmatch(first):
            return True
        names = {folded(name) for name in needed}
        return any(_count_of(first, sep, needed) == len(names) for sep in SEPARATORS)


def _header(
    lines: Iterator[str], path: Path, needed: Sequence[Sequence[str]]
) -> tuple[str, str, int]:
    """The separator of the table's cells, its header, and how many lines come before that."""
    first = next(lines, "")
    if said := _SAYS_SEPARATOR.fullmatch(first):
        return said[1], next(lines, ""), 1
    if path.suffix.lower() == ".tsv":
        return "\t", first, 0
    counts = [max(_count_of(first, each, names) for names in needed) for each in SEPARATORS]
    separator = SEPARATORS[counts.index(max(counts))]  # without all of them an error follows
    if separator != ",":
        notice("separator", path, "separators of cells that are no comma", [repr(separator)])
    return separator, first, 0


def _bytes_at(error: UnicodeDecodeError) -> str:
    """The bytes that are no UTF-8, with some before them."""
    return repr(error.object[max(0, error.start - 20) : error.end])


def _count_of(header: str, separator: str, needed: Sequence[str]) -> int:
    """How many of the columns ``needed`` the header has, by name or a similar one."""
    try:
        cells = next(csv.reader([header], delimiter=separator, strict=True), [])
    except csv.Error:
        return 0
    return len({folded(name) for name in needed} & {folded(cell) for cell in cells})


def _uneven(where: str, cells: list[str], names: list[str], separator: str) -> InputError:
    return InputError(
        f"{where}: {len(cells)} cells under {len(names)} columns, which are separated by "
        f"{separator!r}: {separator.join(cells)[:80]!r}",
        tip=f'put a cell with {separator!r} in it in quotes, as in "a{separator}b"',
    )
