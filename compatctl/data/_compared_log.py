"""The log of a service that answered queries with two models, as ``compatctl serve`` writes it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compatctl.data._answer_parts import is_parts, part_entries
from compatctl.data._answers import MAX_LINES_NAMED
from compatctl.errors import InputError
from compatctl.files import other_kind
from compatctl.notices import notice

MAX_ANSWERS = 1000
"""Most answers of a query that are read."""

_TIP = "compatctl serve --shadow MODEL --log FILE writes such lines"


@dataclass(frozen=True, kw_only=True)
class LoggedQuery:
    """The item ids that each model answered a query with, nearest first."""

    query: str
    current: tuple[str, ...]
    candidate: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ComparedLog:
    """The queries that two models answered, each once: its newest line counts. In Parquet a row is
    a line, and the newest one has the latest time; else it is the last one.

    Attributes:
        current, candidate: digests of the models.
        queries: in the order of their first line.
        lines: all lines.
        alone: lines without an answer of the candidate.
        failed: of these, lines that say why it has none.
        repeated: lines of a query that has a newer one.
        others: lines of other models.
    """

    current: str
    candidate: str
    queries: tuple[LoggedQuery, ...]
    lines: int
    alone: int
    failed: int
    repeated: int
    others: int


def read_compared_log(path: Path, candidate: str | None = None) -> ComparedLog:
    """Read a log in which a candidate answered beside the query model: JSON lines, a folder of
    parts in Parquet, or one of these.

    ``candidate``: the digest of the candidate; None: there is only one pair of models in the log.
    A line that is cut off is left out, with a notice: the service may be writing it.

    Raises:
        InputError: the file cannot be read, a line is no such line, no line has both answers, or
            there are several pairs of models.
        UsageError: the log is in Parquet, and pyarrow is not installed.
    """
    newest: dict[tuple[str, str, str], float] = {}
    found: dict[tuple[str, str], dict[str, LoggedQuery]] = {}
    both: Counter[tuple[str, str]] = Counter()
    lines = alone = failed = 0
    for where, at, entry in part_entries(path) if is_parts(path) else _entries(path):
        lines += 1
        beside = entry.get("candidate")
        if not isinstance(beside, dict) or "hits" not in beside:
            alone += 1
            failed += isinstance(beside, dict)
            continue
        pair = _text(entry, "query_model", where), _text(beside, "query_model", where)
        query = _text(entry, "query", where)
        both[pair] += 1
        if at < newest.get((*pair, query), at):
            continue
        newest[*pair, query] = at
        found.setdefault(pair, {})[query] = LoggedQuery(
            query=query, current=_ids(entry, where), candidate=_ids(beside, where)
        )
    pair = _chosen(path, both, candidate)
    queries = tuple(found[pair].values())
    return ComparedLog(
        current=pair[0],
        candidate=pair[1],
        queries=queries,
        lines=lines,
        alone=alone,
        failed=failed,
        repeated=both[pair] - len(queries),
        others=sum(both.values()) - both[pair],
    )


def _chosen(
    path: Path, both: Mapping[tuple[str, str], int], candidate: str | None
) -> tuple[str, str]:
    pairs = [pair for pair in both if candidate is None or pair[1] == candidate]
    if not pairs:
        whose = "a candidate" if candidate is None else f"the candidate {candidate[:12]}"
        raise InputError(f"{path}: no line has an answer of {whose}", tip=_TIP)
    if len(pairs) > 1:
        named = "; ".join(
            f"{current[:12]} and {beside[:12]} ({both[current, beside]} lines)"
            for current, beside in pairs
        )
        raise InputError(
            f"{path} has answers of {len(pairs)} pairs of models: {named}",
            tip="name the candidate: compatctl verify --log FILE new.onnx; or give the lines of "
            "one query model",
        )
    return pairs[0]


def _entries(path: Path) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Each line's place, its number and entries; lines that were cut off are left out."""
    cut: list[str] = []
    count = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line.decode("utf-8"))
                except (ValueError, RecursionError):
                    is_other = number == 1 and other_kind(line[:64]) is not None
                    if is_other or (line.endswith(b"\n") and not line.startswith(b"{")):
                        raise _no_log(path, number, line) from None
                    count += 1
                    cut += [f"line {number}"] * (len(cut) < MAX_LINES_NAMED)
                    continue
                if not isinstance(entry, dict):
                    raise InputError(f"{where}: no JSON object", tip=_TIP)
                yield where, number, entry
    except OSError as error:
        raise InputError(f"{path}: the log cannot be read: {error}", tip=_TIP) from error
    if count:
        reason = "they are left out; a service was killed, its disk was full, or it is writing"
        notice("cut-line", path, "lines that are cut off", cut, reason, count=count)


def _no_log(path: Path, number: int, line: bytes) -> InputError:
    kind = other_kind(line[:64]) if number == 1 else None
    if kind is not None:
        return InputError(f"{path}: it is {kind[0]}, not a log", tip=kind[1])
    return InputError(f"{path}, line {number}: no JSON", tip=_TIP)


def _text(entry: Mapping[str, Any], name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {name} is a text, got {value!r:.80}", tip=_TIP)
    return value


def _ids(entry: Mapping[str, Any], where: str) -> tuple[str, ...]:
    hits = entry.get("hits")
    is_list = isinstance(hits, list) and len(hits) <= MAX_ANSWERS
    listed = hits if is_list and hits else []
    ids = [hit.get("id") if isinstance(hit, dict) else None for hit in listed]
    if not is_list or not all(isinstance(item, str) for item in ids) or len({*ids}) < len(ids):
        raise InputError(
            f"{where}: hits are at most {MAX_ANSWERS} objects with an id, each once", tip=_TIP
        )
    return tuple(str(item) for item in ids)
