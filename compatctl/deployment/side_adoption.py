"""What a side table needs where an application changed rows: a batch that follows the changes.

Of a gallery that is partly in the side table, a row that the application wrote again is the
application's again. Of one that is there whole, and in the application's space, new and changed
rows are copied from the application's table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from compatctl.core.arrays import Bools, Checksums
from compatctl.engines import (
    RowChecksums,
    TableFile,
    batches_are_whole,
    erase_beside,
    growing_side_of,
    open_connection_to,
    side_of,
    side_table_name,
)
from compatctl.errors import ConflictError, UsageError
from compatctl.index import TableChanges, row_checksums
from compatctl.manifest import Catalog


@dataclass(frozen=True, kw_only=True, eq=False)
class SideChanges:
    """What becomes of the side table.

    Attributes:
        ended: ids whose rows there end. ``copied``: ids whose rows in the table are copied.
        gone: ids that the application deleted.
    """

    ended: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    @classmethod
    def of(cls, file: TableFile, changes: TableChanges, inside: frozenset[str]) -> SideChanges:
        """The changes of a file's side table, which has the ids ``inside`` of changed rows.

        Raises:
            UsageError: the gallery is in another space than the rows that the application wrote.
            ConflictError: the side table is damaged.
        """
        if file.side is None:
            return cls(gone=changes.missing)
        if changes.damaged:
            raise ConflictError(
                f"{file.location.url}: {changes.sentence()}; nobody else writes that table",
                tip="restore it from a backup, or compatctl rollback to a generation before it",
            )
        assert changes.found is not None
        new = (*changes.found.ids, *changes.changed)
        if file.side.whole and not file.side.shared and new:
            raise UsageError(
                f"add is not for rows that an application wrote after a lift: its column has "
                f"vectors of {file.side.table_dim} dimensions of the space before, and the gallery "
                f"of {file.side.dim} is in {file.side.table}; {len(new)} rows wait",
                tip="compatctl rollback to before the lift, compatctl add, and lift again; add "
                "--changed alone drops rows that are gone",
            )
        if batches_are_whole(file) and new:
            raise UsageError(
                f"add is not for rows that an application wrote after a backfill in "
                f"{file.engine}: the gallery is a collection of its own, {side_table_name(file)}, "
                f"which never changes; {len(new)} rows wait",
                tip="compatctl rollback to before it, compatctl add, and compatctl backfill; add "
                "--changed alone drops rows that are gone",
            )
        ended = (*changes.changed, *changes.missing) if not file.side.whole else ()
        return cls(
            ended=tuple(item for item in ended if item in inside),
            copied=new if file.side.whole else (),
            gone=changes.missing,
        )

    def written(
        self, file: TableFile, catalog: Catalog, table: Checksums, before: dict[str, int]
    ) -> tuple[TableFile, RowChecksums]:
        """Write the batch, and give the file and the checksums of the next generation.

        ``catalog`` (M rows) and ``table`` (M,) are of that generation; ``before``: id -> the
        checksum of its row in the side table, where it had one.

        Raises:
            ConflictError: the application wrote a copied row again meanwhile.
        """
        if file.side is None:
            return file, RowChecksums.of_table(table)
        side, values = file.side, dict(before)
        for item in (*self.ended, *self.gone):
            values.pop(item, None)
        if self.ended or self.copied:
            with open_connection_to(file.location.from_environment()) as connection:
                writer = growing_side_of(file)
                batch = writer.begin(connection)
                writer.copy(connection, batch, self.copied)
                writer.end(connection, batch, self.ended)
                side = replace(side, batches=(*side.batches, batch))
                for block in side_of(replace(file, side=side)).find(connection, self.copied):
                    checksums = row_checksums(block.vectors).tolist()
                    values |= dict(zip(block.ids, checksums, strict=True))
            self._refuse_other(catalog, table, values, file)
        in_side: Bools = np.fromiter((item in values for item in catalog.ids), bool, len(catalog))
        inside = np.flatnonzero(in_side).tolist()
        checksums = np.fromiter((values[catalog.ids[row]] for row in inside), np.uint64)
        side = replace(side, rows=len(inside), whole=bool(in_side.all()))
        return replace(file, side=side), RowChecksums(table=table, in_side=in_side, side=checksums)

    def _refuse_other(
        self, catalog: Catalog, table: Checksums, values: dict[str, int], file: TableFile
    ) -> None:
        wrong = [
            item for item in self.copied if values.get(item) != int(table[catalog.row_of[item]])
        ]
        if wrong:
            raise ConflictError(
                f"{file.location.url}: {len(wrong)} rows were written again while they were copied",
                tip="run the command again",
            )


def erase_gone(file: TableFile, ids: Sequence[str]) -> None:
    """Delete what was computed of items that the application deleted, of every generation."""
    location = file.location.from_environment()
    with open_connection_to(location) as connection:
        erase_beside(connection, location, file.id_type, ids)
