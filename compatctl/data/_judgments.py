"""What people know about items: pairs of one class or of two, traffic."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from compatctl.data._tables import csv_rows, header_of, open_table, text_lines
from compatctl.errors import InputError
from compatctl.notices import notice

_COLUMNS = ("id_a", "id_b", "same")
_PAIRS_TIP = "the columns are id_a and id_b, the ids of two items, and same: 1 or 0"
_SAME = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The ids of two items, and whether the items are of one class."""

    first: str
    second: str
    same: bool


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """Read a CSV with the columns id_a, id_b and same (1 or 0, true or false).

    Raises:
        InputError: no such file, a missing column, another value, a pair of an item with itself, a
            repeated pair (in either order), or no pair; the message names the line.
    """
    seen: set[frozenset[str]] = set()
    pairs = tuple(
        _pair(row, where, seen) for where, row in csv_rows(path, _COLUMNS, tip=_PAIRS_TIP)
    )
    if not pairs:
        raise InputError(f"{path}: there is no pair in it")
    return pairs


def _pair(row: dict[str, str], where: str, seen: set[frozenset[str]]) -> Pair:
    first, second, same = (row[name].strip() for name in _COLUMNS)
    if same.lower() not in _SAME:
        raise InputError(f"{where}: same is 1 or 0, got {same!r}")
    if not first or not second or first == second:
        raise InputError(
            f"{where}: a pair is of two items, got {first!r} and {second!r}",
            tip="write the ids of two items as id_a and id_b, or leave the line out",
        )
    key = frozenset((first, second))
    if key in seen:
        raise InputError(f"{where}: the pair {first}, {second} is there twice")
    seen.add(key)
    return Pair(first=first, second=second, same=_SAME[same.lower()])


def read_traffic(path: Path) -> dict[str, float]:
    """Item id -> count, at least 0, of a CSV with the columns id and count.

    Raises:
        InputError: no such file, a missing column, an empty or repeated id, a count that is no
            number of at least 0, or no line; the message names the line.
    """
    counts: dict[str, float] = {}
    for where, row in csv_rows(path, ("id", "count"), tip="the columns are id and count"):
        item, text = row["id"].strip(), row["count"].strip()
        if not item:
            raise InputError(
                f"{where}: id is empty: expected an item's id with the count {text!r}, got "
                f"{row.get('id')!r}",
                tip="write the id, or leave the line out",
            )
        if item in counts:
            raise InputError(f"{where}: expected each id once, got {item!r} again")
        counts[item] = _count(text, where)
    if not counts:
        raise InputError(f"{path}: there is no item in it")
    return counts


def read_traffic_log(path: Path) -> dict[str, float]:
    """id -> how often it occurs, from ids, one a line, or a CSV with the column id and maybe count.

    An id may occur often. A CSV is known by its header.

    Raises:
        InputError: no such file, a count that is no number of at least 0, or no id.
    """
    counts: dict[str, float] = defaultdict(float)
    try:
        is_table = header_of(path, ("id",))
        if not is_table:
            with open_table(path) as file:
                for line in text_lines(file, path):
                    if line.strip():
                        counts[line.rstrip("\r\n")] += 1.0
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    rows = csv_rows(path, ("id",), ("count",)) if is_table else iter(())
    for number, (where, row) in enumerate(rows):
        text = row.get("count")
        if number == 0 and text is None and len(row) > 1:
            others = [repr(name) for name in row if name != "id"]
            result = "each line counts 1; the column of counts is called count"
            notice("column-not-read", path, "columns that are not read", others, result)
        counts[row["id"]] += 1.0 if text is None else _count(text, where)
    if empty := counts.pop("", 0.0):
        what = "counts of lines without an id, which are left out"
        notice("empty-id", path, what, [f"{empty:g}"])
    if not counts:
        raise InputError(
            f"{path} has no id", tip="write one id a line, or a CSV with the columns id,count"
        )
    return dict(counts)


def _count(text: str, where: str) -> float:
    try:
        count = float(text)
    except ValueError:
        count = math.nan
    if not 0.0 <= count < math.inf:
        raise InputError(f"{where}: a count is a number of at least 0, got {text!r:.40}")
    return count
