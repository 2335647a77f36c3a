"""New vectors of a gallery in an engine: a batch of a side table, and the file that names it.

The batch is written before the generation that names it, so nobody searches it yet; its index is
the server's own, and recall is measured on it. A command that is killed leaves the batch behind,
and ``check --gc`` drops it. So a commit first counts its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Checksums, Keys, Rows, Vectors
from compatctl.engines import (
    Connection,
    RowBlock,
    RowChecksums,
    SideTable,
    TableFile,
    open_connection_to,
    side_of,
)
from compatctl.errors import ConflictError
from compatctl.index.engine.index import EngineIndex
from compatctl.index.hnswlib.rebuilding import RowsAt
from compatctl.index.rows import check_unit, row_checksums
from compatctl.notices import notice
from compatctl.progress import Progress, silent

BLOCK = 4096
"""Rows that are written at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EngineRows:
    """The rows of a generation in an engine: its ``file``, the ``checksums`` of its rows, and their
    ``ids`` (N,) and ``keys`` (N,); ``row_of``: id -> row."""

    file: TableFile
    checksums: RowChecksums
    ids: Sequence[str]
    row_of: Mapping[str, int]
    keys: Keys

    def with_side(
        self, side: SideTable, rows: Rows, checksums: Checksums, ended: Rows
    ) -> EngineRows:
        """The same rows, of which ``rows`` (n,) are in a side table with these ``checksums`` (n,),
        and those of ``ended`` (m,) no longer."""
        before = self.checksums
        in_side, every = before.in_side.copy(), np.zeros(len(self.ids), np.uint64)
        every[in_side] = before.side
        in_side[rows], every[rows] = True, checksums
        in_side[ended] = False
        new = replace(side, rows=int(in_side.sum()), whole=bool(in_side.all()))
        return replace(
            self,
            file=replace(self.file, side=new),
            checksums=RowChecksums(table=before.table, in_side=in_side, side=every[in_side]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class WrittenBatch:
    """A batch of a side table: the rows ``ids`` (n,) with ``checksums`` (n,).

    ``side``: the table with its earlier batches.
    """

    side: SideTable
    batch: int
    ids: tuple[str, ...]
    checksums: Checksums

    def applied(self, rows: EngineRows) -> EngineRows:
        """The rows of a generation once the batch is valid; all of its ids are among them."""
        at = np.fromiter((rows.row_of[item] for item in self.ids), np.int64, len(self.ids))
        side = replace(self.side, batches=(*self.side.batches, self.batch))
        return rows.with_side(side, at, self.checksums, np.zeros(0, np.int64))

    def require(self, file: TableFile) -> None:
        """Refuse to name a batch that is not whole.

        Raises:
            ConflictError: ``check --gc`` of another process dropped it, or its rows were deleted.
        """
        side = side_of(replace(file, side=self.side))
        with open_connection_to(file.location.from_environment()) as connection:
            found = side.count(connection, self.batch)
        if found != len(self.ids):
            raise ConflictError(
                f"the batch {self.batch} of {self.side.table} has {found} rows, and "
                f"{len(self.ids)} were written",
                tip="check --gc dropped it while the command ran: run the command again",
            )


class BuiltTable(EngineIndex):
    """The rows of a generation that is not committed, searched without a fence."""

    def __init__(
        self, rows: EngineRows, written: WrittenBatch, *, dim: int, ef_search: int
    ) -> None:
        after = written.applied(rows)
        super().__init__(
            after.file,
            ids=after.ids,
            row_of=after.row_of,
            keys=after.keys,
            dim=dim,
            epoch=None,
            ef_search=ef_search,
            in_side=after.checksums.in_side,
        )
        self.written = written
        self._checksums = after.checksums

    def rebased(self, rows: EngineRows) -> BuiltTable:
        """The same batch over the rows of a newer generation, which has rows added."""
        return BuiltTable(rows, self.written, dim=self._dim, ef_search=self._ef)

    def save(self, path: Path) -> None:
        """Write the file by which a generation names the rows.

        Raises:
            ConflictError: the batch is no longer whole.
        """
        self.written.require(self.file)
        self.file.write(path, self._checksums)


@dataclass(frozen=True, kw_only=True)
class SideParams:
    """``m`` and ``ef_construction`` of a side table's index; ``ef_search`` is the gallery's."""

    m: int
    ef_construction: int
    ef_search: int


def write_side(
    rows: EngineRows,
    side: SideTable,
    chosen: Rows,
    *,
    rows_at: RowsAt,
    params: SideParams,
    progress: Progress = silent,
) -> BuiltTable:
    """Write new unit vectors of the rows ``chosen`` (n,) as a batch of ``side``; no generation
    names it yet. ``rows_at`` gives those at some positions (m,) among them.

    Raises:
        InputError: a vector is not finite or not of unit length; or the server refuses.
        CompatError: the server cannot be reached.
    """
    file = replace(rows.file, side=side)
    writer = side_of(file)
    checksums = np.zeros(len(chosen), np.uint64)
    ids = tuple(rows.ids[row] for row in chosen.tolist())

    def blocks() -> Iterator[RowBlock]:
        for start in range(0, len(ids), BLOCK):
            positions = np.arange(start, min(start + BLOCK, len(ids)))
            vectors = _as_stored(side, rows_at(positions), start)
            checksums[positions] = row_checksums(vectors)
            progress("writing the side table", start, len(ids))
            yield RowBlock(ids=ids[start : start + len(positions)], vectors=vectors, labels=None)

    def write(connection: Connection) -> int:
        writer.create(connection)
        batch = writer.begin(connection)
        writer.write(connection, batch, blocks())
        progress("writing the side table", len(ids), len(ids))
        writer.index(connection, batch, m=params.m, ef_construction=params.ef_construction)
        return batch

    with open_connection_to(file.location.from_environment()) as connection:
        batch = write(connection)
    if not side.is_indexed:
        notice("no-index", side.table, "indexes of the side table", ["none"],
               f"hnsw takes fewer dimensions than {side.dim}: every search reads the whole table",
               count=0)  # fmt: skip
    written = WrittenBatch(side=side, batch=batch, ids=ids, checksums=checksums)
    return BuiltTable(rows, written, dim=side.dim, ef_search=params.ef_search)


def _as_stored(side: SideTable, vectors: Vectors, first: int) -> Vectors:
    """Vectors (n, D) as the table gives them back."""
    check_unit(vectors, "new row", first=first)
    if side.vector_type == "halfvec":
        return vectors.astype(np.float16).astype(np.float32)
    return np.ascontiguousarray(vectors, np.float32)
