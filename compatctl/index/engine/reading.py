"""Every row of a table, compared with the rows that a store adopted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from compatctl.core.arrays import Bools, Checksums, Rows, Vectors
from compatctl.engines import (
    Connection,
    RowBlock,
    RowChecksums,
    TableFile,
    open_connection_to,
    rows_of,
    side_of,
    snapshot_of,
)
from compatctl.engines import Rows as EngineRows
from compatctl.errors import InputError
from compatctl.index.rows import row_checksums
from compatctl.printable import listed
from compatctl.progress import Progress, silent

MAX_NAMES = 1000
"""Most ids of new rows that are kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RowsNow:
    """The rows of a table as they are now.

    Attributes:
        ids, labels: of the n new rows; a label is "" where the table has none.
        new_checksums: (n,). ``checksums``: (N,) of the adopted rows, as they are now.
        labels_now: (N,) of the adopted rows; None without a column of labels.
        zero: ids of new and changed rows whose vector is zero.
        least, most: the norms of the new and changed rows; inf and 0 without any.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    new_checksums: Checksums
    checksums: Checksums
    labels_now: tuple[str, ...] | None
    zero: tuple[str, ...]
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class TableChanges:
    """How a table differs from the rows that were adopted, by one snapshot of all its rows.

    Attributes:
        new: rows with a vector that were not adopted; ``new_ids`` are the first of them.
        found: what adopting the changes needs, if it was asked for.
        missing, changed: ids of adopted rows that are gone or have no vector any more, and of those
            with another vector. Who changed them cannot be known: the application, or a fault.
        damaged: ids of rows that the side table lacks or has with another vector. Nobody but the
            store writes them.
    """

    new: int
    new_ids: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    damaged: tuple[str, ...] = ()
    found: RowsNow | None = field(default=None, repr=False)

    @property
    def lost(self) -> int:
        """Adopted rows that are not as they were."""
        return len(self.missing) + len(self.changed) + len(self.damaged)

    def sentence(self) -> str:
        """What changed, with ids."""
        parts = [
            f"{len(ids)} rows {what}: {listed(ids)}"
            for what, ids in (
                ("are gone", self.missing),
                ("have another vector", self.changed),
                ("of the side table are gone or have another vector", self.damaged),
            )
            if ids
        ]
        return "; ".join(parts)


def table_rows(file: TableFile, dim: int) -> EngineRows:
    """The reader of the application's rows, reached as the environment says; ``dim`` is that of the
    gallery."""
    return rows_of(
        file.location.from_environment(),
        id_type=file.id_type,
        vector_type=file.vector_type,
        dim=file.table_dim(dim),
    )


def unit_directions(file: TableFile, rows: Vectors) -> Vectors:
    """Rows (n, D) as the engine ranks them: divided by their norms where it ranks by the cosine."""
    if file.space != "cosine":
        return rows
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    unit: Vectors = (rows / np.maximum(norms, 1e-30)[:, None]).astype(np.float32)
    return unit


@dataclass(kw_only=True, eq=False)
class _Collected:
    """What ``RowsNow`` has, while the blocks come."""

    checksums: Checksums
    labels_now: list[str]
    has_labels: bool = False
    ids: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    new_checksums: list[Checksums] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)
    least: float = np.inf
    most: float = 0.0

    @classmethod
    def of(cls, checksums: Checksums) -> _Collected:
        return cls(checksums=checksums.copy(), labels_now=[""] * len(checksums))

    def take(self, block: RowBlock, rows: Rows, checksums: Checksums, changed: Bools) -> None:
        known = rows >= 0
        self.checksums[rows[known]] = checksums
        fresh = ~known
        fresh[known] = changed[rows[known]]
        norms = np.linalg.norm(block.vectors[fresh].astype(np.float64), axis=1)
        if len(norms):
            self.least = min(self.least, float(norms.min()))
            self.most = max(self.most, float(norms.max()))
            places = np.flatnonzero(fresh)[norms == 0.0]
            self.zero += [block.ids[place] for place in places.tolist()]
        new = np.flatnonzero(~known)
        self.ids += [block.ids[place] for place in new.tolist()]
        self.new_checksums.append(row_checksums(block.vectors[new]))
        if block.labels is None:
            self.labels += [""] * len(new)
            return
        self.has_labels = True
        self.labels += [block.labels[place] for place in new.tolist()]
        for place in np.flatnonzero(known).tolist():
            self.labels_now[rows[place]] = block.labels[place]

    def rows(self) -> RowsNow:
        joined = np.concatenate([np.zeros(0, np.uint64), *self.new_checksums])
        return RowsNow(
            ids=tuple(self.ids),
            labels=tuple(self.labels),
            new_checksums=joined,
            checksums=self.checksums,
            labels_now=tuple(self.labels_now) if self.has_labels else None,
            zero=tuple(self.zero),
            least=self.least,
            most=self.most,
        )


@dataclass(kw_only=True, eq=False)
class _Comparison:
    """The rows that were met; ``into`` (N, D) takes the unit vectors of those that are searched,
    where it is given."""

    file: TableFile
    row_of: Mapping[str, int]
    checksums: RowChecksums
    into: Vectors | None
    seen: Bools
    changed: Bools
    intact: Bools
    new: int = 0
    new_ids: list[str] = field(default_factory=list)
    collected: _Collected | None = None

    def take(self, block: RowBlock) -> None:
        rows: Rows = np.fromiter(map(self.row_of.get, block.ids, repeat(-1)), np.int64)
        known = rows >= 0
        at = rows[known]
        if self.seen[at].any() or len(np.unique(at)) < len(at):
            raise InputError(
                f"{self.file.location.url}: an id is there twice",
                tip="name a column that is a key of the table, or mend the rows",
            )
        self.seen[at] = True
        vectors = block.vectors[known]
        checksums = row_checksums(vectors)
        self.changed[at] = checksums != self.checksums.table[at]
        if self.collected is not None:
            self.collected.take(block, rows, checksums, self.changed)
        if self.into is not None:
            own = ~self.checksums.in_side[at]
            if own.any():
                self.into[at[own]] = unit_directions(self.file, vectors[own])
        self.new += int((~known).sum())
        room = MAX_NAMES - len(self.new_ids)
        self.new_ids += [block.ids[row] for row in np.flatnonzero(~known)[:room].tolist()]

    def take_side(self, block: RowBlock) -> None:
        """The rows of a block of the side table; those of ids that the generation lacks, or has in
        the application's table, are another generation's."""
        rows: Rows = np.fromiter(map(self.row_of.get, block.ids, repeat(-1)), np.int64)
        mine = rows >= 0
        mine[mine] = self.checksums.in_side[rows[mine]]
        at = rows[mine]
        place = np.cumsum(self.checksums.in_side) - 1
        good = row_checksums(block.vectors[mine]) == self.checksums.side[place[at]]
        self.intact[at] = good
        if self.into is not None:
            self.into[at] = unit_directions(self.file, block.vectors[mine])


def compare_table(
    file: TableFile,
    ids: Sequence[str],
    row_of: Mapping[str, int],
    checksums: RowChecksums,
    *,
    dim: int,
    into: Vectors | None = None,
    collect: bool = False,
    progress: Progress = silent,
) -> TableChanges:
    """Read every row of the table once, in blocks, and of its side table in the same snapshot, and
    compare them with what was adopted and written.

    Args:
        ids: of the adopted rows (N,); ``row_of``: id -> its row; ``checksums`` of them.
        dim: D of the gallery.
        collect: also return what adopting the changes needs, which takes memory for each new row.
        into: (N or more, D) float32 that takes the unit vectors of the adopted rows.

    Raises:
        InputError: an id is there twice, or a vector has another dimension.
        CompatError: the server cannot be reached.
    """
    n = len(ids)
    found = _Comparison(
        file=file,
        row_of=row_of,
        checksums=checksums,
        into=into,
        seen=np.zeros(n, bool),
        changed=np.zeros(n, bool),
        intact=~checksums.in_side,
        collected=_Collected.of(checksums.table) if collect else None,
    )
    reader = table_rows(file, dim)
    with open_connection_to(reader.location) as connection, snapshot_of(connection, file.location):
        _read_all(found, reader, connection, progress)
    return TableChanges(
        new=found.new,
        new_ids=tuple(found.new_ids),
        missing=tuple(ids[row] for row in np.flatnonzero(~found.seen).tolist()),
        changed=tuple(ids[row] for row in np.flatnonzero(found.changed).tolist()),
        damaged=tuple(ids[row] for row in np.flatnonzero(~found.intact).tolist()),
        found=found.collected.rows() if found.collected is not None else None,
    )


def _read_all(
    found: _Comparison, reader: EngineRows, connection: Connection, progress: Progress
) -> None:
    """Take every row of the table, and every one of the side table."""
    done, n = 0, len(found.seen)
    with closing(reader.blocks(connection)) as blocks:
        for block in blocks:
            found.take(block)
            done += len(block.ids)
            progress("reading the table", min(done, n), n)
    progress("reading the table", n, n)
    if found.file.side is None:
        return
    with closing(side_of(found.file).blocks(connection)) as blocks:
        for block in blocks:
            found.take_side(block)
