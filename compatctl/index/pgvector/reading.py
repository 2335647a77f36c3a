"""Every row of a table, compared with the rows that a store adopted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from compatctl.core.arrays import Bools, Checksums, Rows, Vectors
from compatctl.engines import RowBlock, TableFile, TableRows, connect
from compatctl.errors import InputError
from compatctl.index.rows import row_checksums
from compatctl.printable import listed
from compatctl.progress import Progress, silent

MAX_NAMES = 1000
"""Most ids of new rows that are kept."""


@dataclass(frozen=True, kw_only=True)
class TableChanges:
    """How a table differs from the rows that were adopted, by one snapshot of all its rows.

    Attributes:
        new: rows with a vector that were not adopted; ``new_ids`` are the first of them.
        missing, changed: ids of adopted rows that are gone or have no vector any more, and of those
            with another vector. Who changed them cannot be known: the application, or a fault.
    """

    new: int
    new_ids: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def lost(self) -> int:
        """Adopted rows that are not as they were."""
        return len(self.missing) + len(self.changed)

    def sentence(self) -> str:
        """What changed, with ids."""
        parts = [
            f"{len(ids)} rows {what}: {listed(ids)}"
            for what, ids in (("are gone", self.missing), ("have another vector", self.changed))
            if ids
        ]
        return "; ".join(parts)


def table_rows(file: TableFile, dim: int) -> TableRows:
    """The reader of a table's rows, reached as the environment says."""
    return TableRows(
        location=file.location.from_environment(),
        id_type=file.id_type,
        vector_type=file.vector_type,
        dim=dim,
    )


def unit_directions(file: TableFile, rows: Vectors) -> Vectors:
    """Rows (n, D) as the engine ranks them: divided by their norms where it ranks by the cosine."""
    if file.operator != "<=>":
        return rows
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    unit: Vectors = (rows / np.maximum(norms, 1e-30)).astype(np.float32)
    return unit


@dataclass(kw_only=True, eq=False)
class _Comparison:
    """The rows that were met; ``into`` (N, D) takes their unit vectors, where it is given."""

    file: TableFile
    row_of: Mapping[str, int]
    checksums: Checksums
    into: Vectors | None
    seen: Bools
    changed: Bools
    new: int = 0
    new_ids: list[str] = field(default_factory=list)

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
        self.changed[at] = row_checksums(vectors) != self.checksums[at]
        if self.into is not None:
            self.into[at] = unit_directions(self.file, vectors)
        self.new += int((~known).sum())
        room = MAX_NAMES - len(self.new_ids)
        self.new_ids += [block.ids[row] for row in np.flatnonzero(~known)[:room].tolist()]


def compare_table(
    file: TableFile,
    ids: Sequence[str],
    row_of: Mapping[str, int],
    checksums: Checksums,
    *,
    dim: int,
    into: Vectors | None = None,
    progress: Progress = silent,
) -> TableChanges:
    """Read every row of the table once, in blocks, and compare it with what was adopted.

    Args:
        ids: of the adopted rows (N,); ``row_of``: id -> its row; ``checksums`` (N,).
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
    )
    reader = table_rows(file, dim)
    done = 0
    with connect(reader.location) as connection:
        for block in reader.blocks(connection):
            found.take(block)
            done += len(block.ids)
            progress("reading the table", min(done, n), n)
    progress("reading the table", n, n)
    return TableChanges(
        new=found.new,
        new_ids=tuple(found.new_ids),
        missing=tuple(ids[row] for row in np.flatnonzero(~found.seen).tolist()),
        changed=tuple(ids[row] for row in np.flatnonzero(found.changed).tolist()),
    )
