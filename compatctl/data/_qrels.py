"""Relevance judgments: which items are relevant to which query, and how much.

Four forms are told apart by their first line: TREC (four columns), a table with a header (BEIR's
among them), JSON lines, and click logs, which are tables or JSON lines with weights that add up.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Bools, Floats, Rows
from compatctl.data._columns import folded
from compatctl.data._tables import (
    SEPARATORS,
    CellBudget,
    csv_rows,
    json_object,
    open_table,
    raw_lines,
    text_lines,
)
from compatctl.errors import InputError
from compatctl.files import absence
from compatctl.notices import MAX_NAMES, notice

_TREC, _TABLE, _LINES, _LOG = "TREC", "a table", "JSON lines", "a click log"
_QUERY = ("queryid", "qid", "query")
_ITEM = (
    *("corpusid", "docid", "documentid", "passageid", "pid", "itemid"),
    *("doc", "document", "item"),
)
_GRADE = (
    *("score", "grade", "relevance", "rel", "judgment", "relevant", "isrelevant"),
    *("label", "rating", "gain"),
)
_WEIGHT = ("weight", "click", "count")
"""Names of columns, as ``folded`` writes them."""
_TIP = (
    "forms: TREC (query, iteration, item, grade), a table with the header query-id, corpus-id, "
    "score, JSON lines with these keys, or a click log with query_id, item_id, weight"
)
_SHOWN = 20
"""Most columns of a message that lists those found."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgments:
    """J pairs of a query and an item that is relevant to it, and all ids that are judged."""

    form: str
    """What the file was read as."""
    query_ids: tuple[str, ...]
    """Every judged query, in the order of the file; one may have nothing relevant."""
    item_ids: tuple[str, ...]
    """Every judged item, also those that are relevant to no query."""
    query: Rows
    """(J,) positions in ``query_ids``."""
    item: Rows
    """(J,) positions in ``item_ids``."""
    grades: Floats
    """(J,) how relevant the item is, above 0."""

    def __len__(self) -> int:
        """J."""
        return len(self.grades)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(query id, item id) of every relevant pair."""
        found = zip(self.query.tolist(), self.item.tolist(), strict=True)
        return tuple((self.query_ids[query], self.item_ids[item]) for query, item in found)

    def has_relevant(self, queries: Iterable[str]) -> Bools:
        """(Q,) whether anything is judged relevant to each of the queries."""
        answered = {self.query_ids[code] for code in np.unique(self.query).tolist()}
        return np.array([query in answered for query in queries], dtype=bool)

    @classmethod
    def from_pairs(
        cls, pairs: Sequence[tuple[str, str]], grades: Sequence[float] | None = None
    ) -> Judgments:
        """Judgments of the relevant ``pairs`` (query id, item id), with ``grades`` above 0, or 1
        each."""
        queries, items = ([pair[side] for pair in pairs] for side in (0, 1))
        code = [{name: i for i, name in enumerate(dict.fromkeys(ids))} for ids in (queries, items)]
        return cls(
            form="pairs",
            query_ids=tuple(code[0]),
            item_ids=tuple(code[1]),
            query=np.array([code[0][name] for name in queries], np.int64),
            item=np.array([code[1][name] for name in items], np.int64),
            grades=np.ones(len(pairs)) if grades is None else np.array(grades, np.float64),
        )


def read_qrels(path: Path) -> Judgments:
    """Read relevance judgments; a pair is relevant if its grade is above 0.

    - *TREC*: lines of query, iteration (ignored), item and whole grade, separated by blanks.
    - *A table* with a header: columns for the query (query-id, qid ...), the item (corpus-id,
      doc_id, item_id ...) and the grade (score, relevance ...), in CSV or TSV, as BEIR has it.
    - *JSON lines*: objects with these keys.
    - *A click log*: a table or JSON lines with a weight (weight, clicks, count) instead of a grade,
      or with neither, 1 a line. Weights of a repeated pair add up.

    Of a pair that is judged twice with one grade there is a notice.

    Raises:
        InputError: no such file; an unknown header, whose columns are listed; a line of another
            form; a grade that is no number; a pair with two grades; or nothing relevant.
    """
    builder = _Builder(path)
    try:
        form = _read_into(builder, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}", tip=absence(path) or _TIP) from error
    return builder.judgments(form)


def _read_into(builder: _Builder, path: Path) -> str:
    """Read the lines, and say what form they have."""
    with open_table(path) as file:
        first = next((line for line in text_lines(file, path) if line.strip()), "")
    cells = first.split()
    if first.lstrip().startswith("{") or path.suffix.lower() in {".jsonl", ".ndjson"}:
        return _read_lines(builder, path)
    if len(cells) == 4 and _is_number(cells[3]):
        return _read_trec(builder, path)
    headers = [_cells_of(first, separator) for separator in SEPARATORS]
    for header in headers:
        if (columns := _Columns.of(header, str(path))) is not None:
            columns.warn_of_others(header, path)
            return _read_table(builder, path, columns)
    if path.suffix.lower() in {".csv", ".tsv"}:
        header = max(headers, key=len)
        more = " ..." if len(header) > _SHOWN else ""
        shown = ", ".join(map(repr, header[:_SHOWN])) + more
        raise InputError(
            f"{path}: expected a header with columns for the query, the item and the grade; its "
            f"columns are {shown or 'none'}",
            tip=_TIP,
        )
    return _read_trec(builder, path)


def _cells_of(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=separator, strict=True), [])
    except csv.Error:
        return []


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """The names of the columns; ``value`` is empty if a line stands for a weight of 1."""

    query: str
    item: str
    value: str
    weighs: bool
    """Whether the values are weights that add up."""

    @classmethod
    def of(cls, header: Sequence[str], where: str = "") -> _Columns | None:
        """By the known names; None without a query and an item.

        Raises:
            InputError: two columns could be one of them.
        """
        query, item, grade, weight = (
            _named(header, names, where) for names in (_QUERY, _ITEM, _GRADE, _WEIGHT)
        )
        if not query or not item:
            return None
        if grade and weight:
            raise InputError(
                f"{where}: expected a grade or a weight, got both, {grade!r} and {weight!r}",
                tip="leave out the one that does not count",
            )
        return cls(query=query, item=item, value=grade or weight, weighs=not grade)

    def warn_of_others(self, names: Sequence[str], path: Path) -> None:
        """Warn of columns that are not read, if one of them may be meant: there is no grade and no
        weight, or another one is known as a query, an item or a grade, too."""
        others = [name for name in names if name not in {self.query, self.item, self.value}]
        known = [name for name in others if folded(name) in {*_QUERY, *_ITEM, *_GRADE}]
        if unread := others if not self.value else known:
            counts = "" if self.value else ": each line counts 1"
            result = f"{self.query!r} is the query, {self.item!r} the item{counts}"
            shown = [*map(repr, unread)]
            notice("column-not-read", path, "columns that are not read", shown, result)


def _named(header: Sequence[str], names: Sequence[str], where: str) -> str:
    """The column with the first of the known names that one has; empty if none has."""
    for name in names:
        found = [column for column in header if folded(column) == name]
        if len(found) > 1:
            raise InputError(
                f"{where}: {', '.join(map(repr, found))} could each be the {name}",
                tip="rename or leave out all but the one that counts",
            )
        if found:
            return found[0]
    return ""


def _read_trec(builder: _Builder, path: Path) -> str:
    cells_left, iterations = CellBudget(path), set[str]()
    with open_table(path) as file:
        for number, line in enumerate(text_lines(file, path), 1):
            cells = line.split()
            cells_left.take(len(cells))
            if not cells:
                continue
            where = f"{path}, line {number}"
            if len(cells) != 4 or not _is_number(cells[3]):
                raise _no_trec(where, cells)
            iterations.add(cells[1])
            builder.add(cells[0], cells[2], float(cells[3]), number)
    if len(iterations) > 1 and builder.item_ids in {("0",), ("Q0",)}:
        raise InputError(
            f"{path}: every line has the item {builder.item_ids[0]!r}, and they have "
            f"{len(iterations)} iterations: these columns have changed places",
            tip="the columns of TREC are query, iteration, item and grade",
        )
    return _TREC


def _no_trec(where: str, cells: Sequence[str]) -> InputError:
    """The error of a line that has another form than TREC's judgments."""
    tip = _TIP
    if len(cells) == 6 and _is_number(cells[3]) and _is_number(cells[4]):
        tip = "these look like the results of a run, not like judgments; name the qrels"
    if len(cells) == 3 and _is_number(cells[2]):
        tip = "write a first line with the names of the columns: query-id, corpus-id, score"
    return InputError(
        f"{where}: expected query, iteration, item and relevance, got {' '.join(cells)[:80]!r}",
        tip=tip,
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _read_table(builder: _Builder, path: Path, columns: _Columns) -> str:
    needed = [name for name in (columns.query, columns.item, columns.value) if name]
    builder.weighs = columns.weighs
    for where, row in csv_rows(path, needed, tip=_TIP):
        value = _number(row[columns.value], columns.value, where) if columns.value else 1.0
        query, item = (_id(row[name], name, where) for name in (columns.query, columns.item))
        builder.add(query, item, value, int(where.rpartition(" ")[2]))
    return _LOG if columns.weighs else _TABLE


def _read_lines(builder: _Builder, path: Path) -> str:
    cells_left = CellBudget(path)
    by_keys: dict[tuple[str, ...], _Columns] = {}
    with open_table(path) as file:
        for number, line in enumerate(raw_lines(file, path), 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            record = json_object(line, where)
            cells_left.take(len(record))
            if (columns := by_keys.get(keys := tuple(record))) is None:
                columns = by_keys[keys] = _keys(keys, where)
                columns.warn_of_others(keys, path)
            if len({entry.value for entry in by_keys.values()}) > 1:
                raise InputError(
                    f"{where}: expected the key of the grade or weight that earlier lines have, "
                    f"got {', '.join(map(repr, keys))}"
                )
            builder.weighs = columns.weighs
            value = _number(record[columns.value], columns.value, where) if columns.value else 1.0
            query, item = (_id(record[name], name, where) for name in (columns.query, columns.item))
            builder.add(query, item, value, number)
    return f"{_LOG} in {_LINES}" if builder.weighs else _LINES


def _keys(keys: Sequence[str], where: str) -> _Columns:
    columns = _Columns.of(keys, where)
    if columns is None:
        raise InputError(
            f"{where}: expected keys for the query and the item; its keys are "
            f"{', '.join(map(repr, keys[:_SHOWN])) or 'none'}",
            tip=_TIP,
        )
    return columns


def _number(value: object, name: str, where: str) -> float:
    """A finite number, of JSON or of a cell."""
    number = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: {name} must be a number, got {value!r:.60}")
    return number


def _id(value: object, name: str, where: str) -> str:
    text = str(value) if type(value) is int else value
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: {name} must be an id, got {value!r:.60}")
    return text


class _Builder:
    """Collects judgments in columns; ids are kept once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queries: dict[str, int] = {}
        self._items: dict[str, int] = {}
        self._query, self._item, self._line = array("q"), array("q"), array("q")
        self._grade = array("d")
        self.weighs = False
        """Whether the grades of a repeated pair add up."""

    def add(self, query: str, item: str, grade: float, line: int) -> None:
        """Add a judgment of the file's ``line``."""
        self._query.append(self._queries.setdefault(query, len(self._queries)))
        self._item.append(self._items.setdefault(item, len(self._items)))
        self._grade.append(grade)
        self._line.append(line)

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Every judged item."""
        return tuple(self._items)

    def judgments(self, form: str) -> Judgments:
        """Every pair once, in the order of the file.

        Raises:
            InputError: a pair has two grades, or nothing is relevant.
        """
        query, item, line = (
            np.frombuffer(column, np.int64) if len(column) else np.zeros(0, np.int64)
            for column in (self._query, self._item, self._line)
        )
        grade = np.array(self._grade, np.float64)
        keys = query * max(1, len(self._items)) + item
        _, first, of_pair = np.unique(keys, return_index=True, return_inverse=True)
        if self.weighs:
            grade = np.bincount(of_pair, grade, minlength=len(first)).astype(np.float64)
        else:
            self._refuse_two_grades(query, item, line, grade, first[of_pair])
            grade = grade[first]
        if below := np.flatnonzero(grade < 0).tolist():
            queries, items = tuple(self._queries), tuple(self._items)
            names = [
                f"{queries[query[first[at]]]} {items[item[first[at]]]}" for at in below[:MAX_NAMES]
            ]
            what = "pairs with a grade below 0"
            result = "they count as not relevant"
            notice("negative-grade", self._path, what, names, result, count=len(below))
        kept = np.flatnonzero(grade > 0)
        kept = kept[np.argsort(first[kept])]
        if not len(kept):
            raise InputError(
                f"{self._path} (read as {form}): no pair is judged relevant, of {len(first)}",
                tip="a pair is relevant if its grade, or the sum of its weights, is above 0",
            )
        return Judgments(
            form=form,
            query_ids=tuple(self._queries),
            item_ids=tuple(self._items),
            query=query[first[kept]],
            item=item[first[kept]],
            grades=grade[kept],
        )

    def _refuse_two_grades(
        self, query: Rows, item: Rows, line: Rows, grade: Floats, first: Rows
    ) -> None:
        """Of pairs judged twice; ``first`` (n,) is where each judgment's pair came first."""
        queries, items = tuple(self._queries), tuple(self._items)
        differ = np.flatnonzero(grade != grade[first])
        if len(differ):
            at, before = int(differ[0]), int(first[differ[0]])
            raise InputError(
                f"{self._path}, line {line[at]}: {queries[query[at]]} {items[item[at]]} is judged "
                f"twice, {grade[at]:g} here and {grade[before]:g} in line {line[before]}",
                tip="leave one of the lines out; weights of a click log add up",
            )
        again = np.flatnonzero(first != np.arange(len(first)))
        if len(again):
            names = [f"{queries[query[at]]} {items[item[at]]}" for at in again[:1000].tolist()]
            notice(
                "repeated-judgment",
                self._path,
                "pairs that are judged again with the same grade",
                names,
                "each counts once",
                count=len(again),
            )
