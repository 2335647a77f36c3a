"""One line for each query: what old and new found first, and whether it was won or lost.

Lines are in the order of the ids within each group, so that two files can be compared line by line.
``order`` ranks the lines by what to look at first: lost queries, then those that stayed wrong.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compatctl.core.arrays import Rows
from compatctl.core.retrieval import NEVER, Retrieval
from compatctl.errors import UsageError
from compatctl.files import write_atomic
from compatctl.libraries import require_library

FORMS = (".csv", ".jsonl", ".parquet")
OUTCOMES = ("lost", "same_wrong", "won", "same_right", "no_match")
"""Outcomes of a query, in the order in which to look at them."""
_ANSWER = ("first_id", "first_label", "first_score", "rank", "ndcg")


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryAnswers:
    """What both models found for Q queries on the old gallery of G rows; a gallery label is empty
    if it is unknown."""

    group: str
    ids: Sequence[str]
    labels: Sequence[str]
    columns: Mapping[str, Sequence[str]]
    """Name -> (Q,) values of the columns that options name."""
    gallery_ids: Sequence[str]
    gallery_labels: Sequence[str]
    tests: tuple[Retrieval, Retrieval]
    """Old and new queries on the old gallery."""
    ndcg_at: int = 10
    """The k of nDCG, at which both have it."""


def check_form(path: Path | None) -> None:
    """Refuse a file of queries that could not be written, before anything is computed.

    Raises:
        UsageError: its suffix is not .csv, .jsonl or .parquet, or pyarrow is missing.
    """
    if path is None:
        return
    if path.suffix not in FORMS:
        raise UsageError(
            f"--queries writes {', '.join(FORMS)}, got {path.name}", tip="name the file so"
        )
    if path.suffix == ".parquet":
        require_library(
            "pyarrow",
            extra="parquet",
            subject=f"{path.name}: parquet",
            tip=", or name a .csv or .jsonl file",
            error=UsageError,
        )


def write_queries(path: Path | None, groups: Iterable[QueryAnswers]) -> None:
    """Write one line for each query, atomically; a query in several groups gets the first.

    A rank, from 1, is that of the first relevant item; empty (null) if none was found. Texts are
    written as they are: a program that opens the file must not run them.
    """
    if path is None:
        return
    columns: dict[str, list[Any]] = {}
    written: set[str] = set()
    for group in groups:
        new = [row for row in _by_id(group) if group.ids[row] not in written]
        written.update(group.ids[row] for row in new)
        for name, values in _columns(group).items():
            columns.setdefault(name, []).extend(values[row] for row in new)
    write_atomic(path, _FORMS[path.suffix](columns))


def _by_id(group: QueryAnswers) -> list[int]:
    return sorted(range(len(group.ids)), key=lambda row: group.ids[row])


def _columns(group: QueryAnswers) -> dict[str, Sequence[Any]]:
    old, new = (_answer(group, side) for side in (0, 1))
    outcome = _outcomes(*group.tests)
    columns: dict[str, Sequence[Any]] = {
        "id": group.ids,
        "group": [group.group] * len(group.ids),
        "label": group.labels,
        "outcome": [OUTCOMES[code] for code in outcome],
        "order": _order(outcome, group.tests, np.array(_by_id(group), np.int64)),
        **{f"old_{name}": values for name, values in zip(_ANSWER, old, strict=True)},
        **{f"new_{name}": values for name, values in zip(_ANSWER, new, strict=True)},
    }
    for name, values in group.columns.items():  # a prefix where the name is taken
        columns[f"column {name}" if name in columns else name] = values
    return columns


def _answer(group: QueryAnswers, side: int) -> tuple[Sequence[Any], ...]:
    """Ids, labels and cosines of the first answers, ranks of the first relevant ones, and nDCG."""
    test = group.tests[side]
    assert test.first_row is not None
    assert test.first_score is not None
    rows, scores = test.first_row, test.first_score
    listed = rows.tolist()
    return (
        [None if row < 0 else group.gallery_ids[row] for row in listed],
        [None if row < 0 else group.gallery_labels[row] for row in listed],
        [None if row < 0 else float(s) for row, s in zip(listed, scores.tolist(), strict=True)],
        [None if rank == NEVER else rank for rank in test.first_hit.tolist()],
        [None if math.isnan(value) else value for value in test.ndcg[group.ndcg_at].tolist()],
    )


def _outcomes(old: Retrieval, new: Retrieval) -> Rows:
    """(Q,) the position of each query's outcome in ``OUTCOMES``."""
    before, after = old.hit1, new.hit1
    code = np.select([before & ~after, ~before & ~after, ~before & after], [0, 1, 2], default=3)
    return np.where(old.has_match, code, 4).astype(np.int64)


def _order(outcome: Rows, tests: tuple[Retrieval, Retrieval], by_id: Rows) -> list[int]:
    """(Q,) ranks from 1: by outcome, then by how far the relevant item fell, then by id."""
    rank = np.empty(len(outcome), dtype=np.int64)
    rank[by_id] = np.arange(len(outcome))
    fell = np.minimum(tests[1].first_hit, 10**6) - np.minimum(tests[0].first_hit, 10**6)
    place = np.empty(len(outcome), dtype=np.int64)
    place[np.lexsort((rank, -fell, outcome))] = np.arange(len(outcome)) + 1
    return place.tolist()


def _lines(columns: Mapping[str, list[Any]]) -> Any:
    return zip(*columns.values(), strict=True)


def _csv(columns: Mapping[str, list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(_lines(columns))
    return text.getvalue().encode("utf-8", "surrogatepass")


def _jsonl(columns: Mapping[str, list[Any]]) -> bytes:
    names = list(columns)
    lines = (json.dumps(dict(zip(names, line, strict=True))) for line in _lines(columns))
    return "".join(f"{line}\n" for line in lines).encode()


def _parquet(columns: Mapping[str, list[Any]]) -> bytes:
    pa: Any = importlib.import_module("pyarrow")
    sink = pa.BufferOutputStream()
    importlib.import_module("pyarrow.parquet").write_table(pa.table(dict(columns)), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


_FORMS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
