"""The rows of a table of LanceDB, in a process of its own (``read_in_child``).

LanceDB gives the rows of the table's newest version, without deleted ones, batch by batch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compatctl.data import column_names, read_vector_batches
from compatctl.errors import InputError
from compatctl.index.sources.child import answer_parent, rows_path, write_names
from compatctl.index.sources.databases import choose_table
from compatctl.index.sources.detection import lance_tables
from compatctl.index.sources.tables import named

_BATCH = 8192
_READ_AHEAD = 64 << 20
"""Bytes that LanceDB reads ahead; by itself it reads 2 GB."""

_SIMILARITY = {"l2": "l2", "cosine": "cosine", "dot": "dot"}
_SOURCE_LINE = re.compile(r",? \S+\.rs:\d+:\d+")
"""Where in LanceDB's own source an error arose."""


def read(
    path: Path, scratch: Path, *, table: str | None, columns: Mapping[str, str]
) -> dict[str, Any]:
    """Write the rows and names of a table; returns the other fields of ForeignRows.

    Raises:
        InputError: no such table, or several and none is named; a missing column; vectors that are
            null or of different lengths; an index of another distance; a newer format.
        ValueError: LanceDB cannot read the table.
    """
    os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", str(_READ_AHEAD))
    import lancedb

    name = choose_table(lance_tables(path), table, "table")
    folder = path.parent if path.suffix == ".lance" and (path / "_versions").is_dir() else path
    with _lance_errors(lancedb.__version__):
        opened = lancedb.connect(str(folder)).open_table(name)
        chosen = column_names(opened.schema.names, columns, path, needed=("id", "vector"))
        kind, similarity = _index(opened, name, chosen["vector"])
        found = read_vector_batches(
            opened.search().select([*chosen.values()]).to_batches(batch_size=_BATCH),
            opened.count_rows(),
            chosen,
            source=path,
            target=rows_path(scratch),
        )
    assert found.ids is not None
    write_names(scratch, **named(found.ids, path), labels=found.labels)
    return {"kind": kind, "similarity": similarity}


def _index(opened: Any, name: str, vector: str) -> tuple[str, str | None]:
    """The kind, for the result, and what the indexes of the column rank by; None without any."""
    names = [index.name for index in opened.list_indices() if list(index.columns) == [vector]]
    found = [stats for index in names if (stats := opened.index_stats(index)) is not None]
    distances = {stats.distance_type for stats in found if stats.distance_type}
    if unknown := sorted(distances - set(_SIMILARITY)):
        raise InputError(
            f"the table {name} ranks {vector} by {unknown[0]}; cosine, dot and l2 are read",
            tip="binary codes are not the vectors themselves: import those",
        )
    kinds = ", ".join(dict.fromkeys(str(stats.index_type) for stats in found))
    similarity = _SIMILARITY[distances.pop()] if len(distances) == 1 else None
    return f"table {name}{f' ({kinds})' if kinds else ''}", similarity


@contextmanager
def _lance_errors(version: str) -> Iterator[None]:
    """LanceDB's errors as those of ``answer_parent``."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = _SOURCE_LINE.sub("", str(error)).strip()
        if "upgrade Lance" in reason:
            raise InputError(
                f"it is of a newer format than LanceDB {version} reads: {reason}",
                tip="pip install -U lancedb",
            ) from error
        raise ValueError(reason) from error


if __name__ == "__main__":
    answer_parent(read)
