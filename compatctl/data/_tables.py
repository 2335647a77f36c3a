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
from typing import Any, AnyStr, BinaryIO

from compatctl.data._columns import UNREAD, Fields, folded
from compatctl.errors import InputError
from compatctl.files import absence, other_kind, parse_json
from compatctl.files.npz import open_regular
from compatctl.notices import MAX_NAMES, notice

MAX_TABLE_BYTES = 4 << 30
"""Size of the largest CSV, JSONL or qrels file."""

MAX_LINE_BYTES = 1 << 20
"""Length of the longest line."""

MAX_CELLS = 100_000_000
"""Most cells of a table, which is held in memory: some 100 bytes a cell."""

SEPARATORS = (",", ";", "\t", "|")
"""What may separate cells; a comma, if the header fits it."""

_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order mark -> encoding; the longer ones first."""
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
        InputError: the file is not UTF-8; a line is longer than ``MAX_LINE_BYTES`` characters, or
            has a NUL. The message says what the file is, or names the line.
    """
    wrapped = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        for number, line in enumerate(_bounded(wrapped.readline, path), 1):
            if "\0" in line:
                raise InputError(
                    f"{path}, line {number}: a NUL character, which no text has",
                    tip="if the file is UTF-16, save it as UTF-8; else write it again",
                )
            yield line
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from error


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        InputError: it is none; the message begins with ``where``.
    """
    try:
        parsed = parse_json(line.removeprefix(codecs.BOM_UTF8), where)
    except InputError as error:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as reason:
            raise _not_utf8(where, reason) from reason
        tip = error.tip or "write one whole object on each line, without commas between them"
        raise InputError(str(error), tip=tip) from None
    if not isinstance(parsed, dict):
        raise InputError(
            f"{where}: not a JSON object", tip="write one whole object on each line, and no list"
        )
    return parsed


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

    Cells are separated by commas, in a .tsv file by tabs; or by another of ``SEPARATORS``, if only
    so the header has the required columns, or by what a first line ``sep=;`` says. Of a separator
    that is guessed there is a notice, and of columns that are (see ``Fields.rename``); and so there
    is of line breaks in cells, unless a text has them.

    Raises:
        InputError: no such file, or no CSV; a missing column; two columns of one name; a row with
            more or fewer cells than the header; the header again; or over the limits.
    """
    try:
        with open_table(path) as file:
            yield from _rows_of(text_lines(file, path), path, fields)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot be read: {reason}", tip=absence(path)) from error


def _rows_of(
    lines: Iterator[str], path: Path, fields: Fields
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table's lines."""
    cells_left, breaks = CellBudget(path), _LineBreaks(path)
    wanted = [fields, fields.for_names([fields.column("text")])]
    columns = [[*map(part.column, part.required)] for part in wanted]
    separator, header, number = _header(lines, path, columns)
    before = number
    reader = csv.reader(chain([header], lines), strict=True, delimiter=separator)
    try:
        head = next(reader, [])
        names = _names_of(head, path, fields)
        number = before + reader.line_num
        for cells in reader:
            begin, number = number + 1, before + reader.line_num
            if len(cells) != len(names):
                if not cells:
                    continue
                raise _uneven(f"{path}, line {number}", cells, names, separator)
            if cells == head and len(cells) > 1:
                raise InputError(
                    f"{path}, line {number}: the header again, among the rows",
                    tip="where tables are joined, leave out the headers of all but the first",
                )
            cells_left.take(len(cells))
            row = dict(zip(names, cells, strict=True))
            if number > begin:
                breaks.look(row, begin, separator)
            yield f"{path}, line {number}", row
    except csv.Error as error:
        message = f"{path}, line {number + 1}: not CSV: {error}"
        raise InputError(message, tip="look at the quotes in and before this line") from error
    breaks.warn()


def _names_of(head: Sequence[str], path: Path, fields: Fields) -> list[str]:
    """The names of fields and slices under which the cells stand."""
    fields = fields.for_names(head)
    renamed = fields.rename(head, path)
    names = [renamed.get(name, name) for name in head]
    twice = [name for name in names if names.count(name) > 1 and name != UNREAD]
    if twice and twice[0]:
        raise InputError(
            f"{path}: two columns of one name: {twice[0]!r}; its columns are "
            f"{', '.join(map(repr, head))}",
            tip="rename or leave out one of them",
        )
    return names


class _LineBreaks:
    """Cells with a line break in them: maybe of a quote that was never closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: list[str] = []
        self._count = 0

    def look(self, row: dict[str, str], line: int, separator: str) -> None:
        """Remember the cells of a row that begins in ``line``. A text may have line breaks, but
        not a line that looks like a row."""
        for name, cell in row.items():
            parts = cell.splitlines()
            rows = any(part.count(separator) >= len(row) - 1 > 0 for part in parts[1:])
            if len(parts) > 1 and (name != "text" or rows):
                self._count += 1
                if len(self._names) < MAX_NAMES:
                    self._names.append(f"line {line}: {name}")

    def warn(self) -> None:
        """Give the notice, if there is a cell."""
        if self._count:
            result = "if a quote is not closed there, the rows after it are lost in the cell"
            notice(
                "line-break", self._path, "cells with line breaks", self._names, result,
                count=self._count,
            )  # fmt: skip


def header_of(path: Path, needed: Sequence[str]) -> bool:
    """Whether the first line is a header with the columns ``needed``, by name or a similar one.

    Raises:
        OSError: no such file, or it is unreadable.
        InputError: it is not UTF-8.
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
    before, first = 0, next(lines, "")
    while first and not first.strip():
        before, first = before + 1, next(lines, "")
    if said := _SAYS_SEPARATOR.fullmatch(first):
        return said[1], next(lines, ""), before + 1
    if not first:
        raise InputError(f"{path}: there is no line in it", tip="write it, or fetch it, again")
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    ordered = [usual, *(each for each in SEPARATORS if each != usual)]
    counts = [max(_count_of(first, each, names) for names in needed) for each in ordered]
    separator = ordered[counts.index(max(counts))]  # without all of them an error follows
    if not max(counts) and (found := other_kind(first.encode()[:256])):
        raise InputError(f"{path}: it is {found[0]}, not a table", tip=found[1])
    if separator != usual:
        what = f"separators of cells that are no {'tab' if usual != ',' else 'comma'}"
        notice("separator", path, what, [repr(separator)])
    return separator, first, before


def _not_utf8(path: Path | str, error: UnicodeDecodeError) -> InputError:
    """The error of a text with other bytes than UTF-8."""
    if found := other_kind(error.object):
        return InputError(f"{path}: it is {found[0]}, not a table", tip=found[1])
    marks = [name for mark, name in _ENCODINGS.items() if error.object.startswith(mark)]
    shown = repr(error.object[max(0, error.start - 20) : error.end])
    return InputError(
        f"{path}: not text in UTF-8; it has {marks[0] if marks else f'the bytes {shown}'}",
        tip="save it as UTF-8",
    )


def _count_of(header: str, separator: str, needed: Sequence[str]) -> int:
    """How many of the columns ``needed`` the header has, by name or a similar one."""
    try:
        cells = next(csv.reader([header], delimiter=separator, strict=True), [])
    except csv.Error:
        return 0
    return len({folded(name) for name in needed} & {folded(cell) for cell in cells})


def _uneven(where: str, cells: list[str], names: list[str], separator: str) -> InputError:
    tip = f'put a cell with {separator!r} in it in quotes, as in "a{separator}b"'
    if len(cells) < len(names):
        tip = f"write every cell, an empty one too, with {separator!r} between two of them"
    return InputError(
        f"{where}: {len(cells)} cells under {len(names)} columns, which are separated by "
        f"{separator!r}: {separator.join(cells)[:80]!r}",
        tip=tip,
    )
