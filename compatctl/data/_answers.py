"""The log of a service, JSON lines or parts in Parquet, counted item by item."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from compatctl.data._answer_parts import is_parts, part_hits
from compatctl.data._tables import MAX_LINE_BYTES
from compatctl.errors import InputError
from compatctl.files.npz import open_regular
from compatctl.notices import notice

MAX_LINES_NAMED = 20
"""Unreadable lines whose numbers a notice names; all are counted."""

FORM = "one answer a line: an object with the list hits, whose entries are objects with an id"


def is_answer_log(path: Path) -> bool:
    """Whether it is a folder or in Parquet, or its first line that is not empty begins a JSON
    object.

    Raises:
        InputError: the file is missing or must not be read.
    """
    if is_parts(path):
        return True
    try:
        with open_regular(path) as file:
            for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
                if text := line.removeprefix(b"\xef\xbb\xbf").strip():
                    return text.startswith(b"{")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    return False


def read_answer_log(path: Path, counts_as: Callable[[str], bool]) -> dict[str, float]:
    """Item id -> in how many places of the answers it stands, of a log of any size.

    A line is an object whose ``hits`` is a list of objects with an ``id``; other keys are not read.
    Only ids for which ``counts_as`` is true are kept, so that memory is that of their counts. A
    line that is no such object is left out with a notice: the service may be writing the last one.

    Raises:
        InputError: the file cannot be read, or no line is an answer.
        UsageError: the log is in Parquet, and pyarrow is not installed.
    """
    if is_parts(path):
        return _read_parts(path, counts_as)
    counts: dict[str, float] = {}
    answers, unread, foreign, named = 0, 0, 0, list[str]()
    try:
        with open_regular(path) as file:
            for number, line in enumerate(_lines(file), 1):
                ids = _ids(line)
                if ids is None:
                    unread += 1
                    named += [f"line {number}"] * (len(named) < MAX_LINES_NAMED)
                    continue
                answers += 1
                for item in ids:
                    if item in counts or counts_as(item):
                        counts[item] = counts.get(item, 0.0) + 1.0
                    else:
                        foreign += 1
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not answers:
        raise InputError(f"{path}: no line is an answer", tip=FORM)
    _tell(path, unread, named, foreign)
    return counts


def _read_parts(path: Path, counts_as: Callable[[str], bool]) -> dict[str, float]:
    """``read_answer_log`` of a log in Parquet."""
    counts: dict[str, float] = {}
    answers = foreign = 0
    for number, hits in part_hits(path):
        answers += number
        for item, count in hits.items():
            if item in counts or counts_as(item):
                counts[item] = counts.get(item, 0.0) + count
            else:
                foreign += count
    if not answers:
        raise InputError(f"{path}: no row is an answer")
    _tell(path, 0, [], foreign)
    return counts


def _tell(path: Path, unread: int, named: list[str], foreign: int) -> None:
    if unread:
        what = "lines that are no answers, which are left out"
        notice("answer-not-read", path, what, named, FORM, count=unread)
    if foreign:
        what = "hits of items that the store lacks, which are left out"
        notice("unknown-hit", path, what, [f"{foreign} hits"], count=foreign)


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines that are not empty; None for one that is longer than ``MAX_LINE_BYTES``."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield None
        elif line.strip():
            yield line


def _ids(line: bytes | None) -> list[str] | None:
    """The ids of an answer; None if the line is none."""
    try:
        hits = json.loads((line or b"").removeprefix(b"\xef\xbb\xbf"))["hits"]
        ids = [hit["id"] for hit in hits]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return ids if all(isinstance(item, str) for item in ids) else None
