"""The log of a service in Parquet: a folder of part files, each written at once and then closed.

A Parquet file cannot be read before its end is written. So answers wait in memory until a part is
full or old enough, and the part appears under its name complete.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compatctl.data._arrow import arrow_errors, require_pyarrow
from compatctl.errors import CompatError, InputError, UsageError
from compatctl.files import make_folder, write_atomic
from compatctl.files.npz import open_regular
from compatctl.libraries import require_library

if TYPE_CHECKING:
    import pyarrow as pa

PARTS_SUFFIX = ".parquet"

PART_ROWS = 10_000
"""Answers of a part at most."""

PART_HITS = 200_000
"""Hits after which a part is closed: they are what takes memory."""

PART_S = 30.0
"""Seconds after which a part with an answer is closed: what a killed service loses at most."""

BATCH_ROWS = 1024

_TIP = "compatctl serve --log answers.parquet writes a folder of parts of a log"


def is_parts(path: Path) -> bool:
    """Whether a log is a folder of parts, or a part."""
    return path.is_dir() or path.suffix == PARTS_SUFFIX


class AnswerParts:
    """Writes answers into parts of a folder. One thread uses it.

    Several processes may write into one folder: the name of a part has the time of its writer's
    start, its process and a number.

    Attributes:
        folder: where the parts are.
        written: answers in closed parts.
        dropped: answers that could not be written.

    Raises:
        InputError: the folder cannot be made or written.
        UsageError: pyarrow is not installed.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        require_library("pyarrow", extra="parquet", subject=f"the log {folder}", error=UsageError)
        self.folder, self._clock = folder, clock
        try:
            make_folder(folder)
        except OSError as error:
            raise _not_writable(folder, error.strerror or str(error)) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _not_writable(folder, "Permission denied")
        self._writer = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{os.getpid()}"
        self._number = 0
        self._rows: list[Mapping[str, Any]] = []
        self._hits = 0
        self._began = 0.0
        self.written = 0
        self.dropped = 0

    def write(self, entries: Mapping[str, Any]) -> None:
        """Take an answer, as ``LogLine.to_json`` gives it, and close the part if it is full."""
        if not self._rows:
            self._began = self._clock()
        self._rows.append(entries)
        beside = entries.get("candidate", {})
        self._hits += len(entries["hits"]) + len(beside.get("hits", ()))
        if len(self._rows) >= PART_ROWS or self._hits >= PART_HITS:
            self._close_part()
        else:
            self.flush()

    def flush(self) -> None:
        """Close the part if it is old enough."""
        if self._rows and self._clock() - self._began >= PART_S:
            self._close_part()

    def close(self) -> None:
        """Close the last part."""
        if self._rows:
            self._close_part()

    def _close_part(self) -> None:
        rows, self._rows, self._hits = self._rows, [], 0
        self._number += 1
        path = self.folder / f"answers-{self._writer}-{self._number:06d}{PARTS_SUFFIX}"
        try:
            write_atomic(path, _as_parquet(rows))
        except (CompatError, ValueError):
            self.dropped += len(rows)
        else:
            self.written += len(rows)


def _not_writable(folder: Path, why: str) -> InputError:
    return InputError(
        f"the log {folder} cannot be written: {why}",
        tip="a log whose name ends in .parquet is a folder: name one in a folder that exists and "
        "may be written",
    )


def _as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The bytes of a part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [row.get(name) for row in rows] for name in _schema().names}
    columns["time"] = [datetime.fromisoformat(row["time"]) for row in rows]
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=_schema()), sink)
    return sink.getvalue()


def _schema() -> pa.Schema:
    """The columns of a part: the entries of a JSON line."""
    import pyarrow as pa

    hit = [("id", pa.string()), ("score", pa.float64()), ("model", pa.string())]
    answer = [
        ("generation", pa.int64()),
        ("query_model", pa.string()),
        ("hits", pa.list_(pa.struct([*hit, ("rescored", pa.bool_())]))),
    ]
    return pa.schema(
        [
            ("time", pa.timestamp("ms", tz="UTC")),
            ("query", pa.string()),
            ("side", pa.string()),
            *answer,
            ("candidate", pa.struct([*answer, ("error", pa.string())])),
        ]
    )


def part_entries(path: Path) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Each answer's place, the time of its writing in seconds, and its entries as in JSON lines.

    ``path`` is a folder of parts, or a part. What is null in a row is no entry.

    Raises:
        InputError: there are no parts; one cannot be read, or is no log.
        UsageError: pyarrow is not installed.
    """
    names = ("time", "query", "query_model", "hits", "candidate")
    for part, batch, first in _batches(path, names):
        times = batch.column("time").cast("int64").to_pylist()
        rows = batch.select(list(names[1:])).to_pylist()
        for offset, (at, row) in enumerate(zip(times, rows, strict=True)):
            beside = row.pop("candidate")
            if beside is not None:
                row["candidate"] = {
                    name: value for name, value in beside.items() if value is not None
                }
            yield f"{part}, row {first + offset}", (at or 0) / 1000, row


def part_hits(path: Path) -> Iterator[tuple[int, dict[str, int]]]:
    """Of each batch of answers: their number, and item id -> in how many places of them it stands.

    Raises:
        as ``part_entries``.
    """
    import pyarrow.compute as pc

    for _, batch, _ in _batches(path, ["hits"]):
        hits = pc.list_flatten(batch.column("hits").combine_chunks())
        counted = pc.value_counts(pc.struct_field(hits, "id")).to_pylist()
        ids = {row["values"]: row["counts"] for row in counted if row["values"] is not None}
        yield batch.num_rows, ids


def _batches(path: Path, names: Sequence[str]) -> Iterator[tuple[Path, pa.Table, int]]:
    """Some columns of each batch, with its part and the number of its first row in it."""
    require_pyarrow(path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([_schema().field(name) for name in names])
    for part in _parts(path):
        with arrow_errors(part, "Parquet"), open_regular(part) as file:
            whole = pq.ParquetFile(file)
            if missing := [name for name in names if name not in whole.schema_arrow.names]:
                raise InputError(f"{part}: no column {missing[0]}", tip=_TIP)
            first = 0
            for batch in whole.iter_batches(batch_size=BATCH_ROWS, columns=list(names)):
                table = pa.Table.from_batches([batch]).select(list(names)).cast(schema)
                yield part, table, first
                first += batch.num_rows


def _parts(path: Path) -> list[Path]:
    """The parts of a folder, oldest first; or the part itself."""
    if not path.is_dir():
        return [path]
    parts = sorted(part for part in path.glob(f"*{PARTS_SUFFIX}") if not part.name.startswith("."))
    if not parts:
        raise InputError(f"{path}: there is no part of a log", tip=_TIP)
    return parts
