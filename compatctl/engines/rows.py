"""The rows of a table as blocks of arrays, by COPY in binary: a million rows are never a list."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compatctl.engines.connection import Connection, identifier
from compatctl.engines.location import TableLocation
from compatctl.errors import InputError
from compatctl.printable import listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 16_384
"""Rows of a block."""
COMPONENT = {"vector": ">f4", "halfvec": ">f2"}


@dataclass(frozen=True, kw_only=True, eq=False)
class RowBlock:
    """Some rows: ids (n,), vectors (n, D) float32 as the table has them, labels (n,) or None."""

    ids: tuple[str, ...]
    vectors: NDArray[np.float32]
    labels: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """The rows of a table that have a vector.

    Attributes:
        vector_type: vector or halfvec. ``id_type``: of the id column, for look-ups.
        dim: D that each vector must have.
        condition: a further one, in SQL, that rows must meet; "" for all.
    """

    location: TableLocation
    id_type: str
    vector_type: str
    dim: int
    condition: str = ""

    def blocks(self, connection: Connection) -> Generator[RowBlock, None, None]:
        """Every row in blocks, in the table's order, of one snapshot.

        Raises:
            InputError: an id is NULL, or a vector has another dimension.
        """
        from psycopg import sql

        label = self.location.label
        parts = [self._id(), identifier(self.location.vector)]
        if label:
            parts.append(sql.SQL("coalesce({}::text, '')").format(identifier(label)))
        query = sql.SQL(
            "COPY (SELECT {} FROM {} WHERE {} IS NOT NULL{}) TO STDOUT (FORMAT BINARY)"
        ).format(
            sql.SQL(", ").join(parts),
            self._table(),
            identifier(self.location.vector),
            self._condition(),
        )
        with connection.cursor().copy(query) as copy:
            copy.set_types(["text", "bytea", "text"][: len(parts)])
            rows: list[Any] = []
            for row in copy.rows():
                rows.append(row)
                if len(rows) == BLOCK:
                    yield self._block(rows)
                    rows = []
        if rows:
            yield self._block(rows)

    def find(self, connection: Connection, ids: Sequence[str]) -> Iterator[RowBlock]:
        """The rows of these ids that the table has, in blocks, without labels, in any order."""
        from psycopg import sql

        query = sql.SQL(
            "SELECT {}, {} FROM {} WHERE {} = ANY(%s::text[]::{}[]) AND {} IS NOT NULL{}"
        ).format(
            self._id(),
            identifier(self.location.vector),
            self._table(),
            identifier(self.location.id),
            sql.SQL(self.id_type),  # type: ignore[arg-type,unused-ignore]
            identifier(self.location.vector),
            self._condition(),
        )
        cursor = connection.cursor(binary=True)
        for start in range(0, len(ids), BLOCK):
            rows = cursor.execute(query, (list(ids[start : start + BLOCK]),)).fetchall()
            if rows:
                yield self._block(rows)

    def count(self, connection: Connection) -> tuple[int, int]:
        """The number of rows with a vector, and of those without."""
        from psycopg import sql

        query = sql.SQL("SELECT count({0}), count(*) - count({0}) FROM {1}").format(
            identifier(self.location.vector), self._table()
        )
        with_vector, without = connection.execute(query).fetchone()
        return int(with_vector), int(without)

    def _block(self, rows: list[Any]) -> RowBlock:
        import numpy as np

        ids, raw, *labels = zip(*rows, strict=True)
        if None in ids:
            raise InputError(
                f"{self.location.url}: a row has a vector and no id",
                tip="name a column that is a key of the table: ?id=COLUMN",
            )
        component = np.dtype(COMPONENT[self.vector_type])
        row = np.dtype([("dim", ">u2"), ("unused", ">u2"), ("vector", component, (self.dim,))])
        if any(len(data) != row.itemsize for data in raw):
            raise self._unlike(ids, raw)
        read = np.frombuffer(b"".join(raw), row)
        if (read["dim"] != self.dim).any():
            raise self._unlike(ids, raw)
        return RowBlock(
            ids=ids,
            vectors=read["vector"].astype(np.float32),
            labels=labels[0] if labels else None,
        )

    def _unlike(self, ids: Sequence[str], raw: Sequence[bytes]) -> InputError:
        """The error for vectors of other dimensions, or of another type."""
        dims = [int.from_bytes(data[:2], "big") for data in raw]
        if {*dims} == {self.dim}:
            return InputError(
                f"{self.location.url}: the column {self.location.vector} is no longer of the type "
                f"{self.vector_type}, as it was when the store adopted it",
                tip="make it of that type again; or adopt it as it is, by compatctl import into "
                "another --store, with &name=OTHER in the URL",
            )
        other = [item for item, dim in zip(ids, dims, strict=True) if dim != self.dim]
        found = [str(dim) for dim in sorted({*dims} - {self.dim})]
        return InputError(
            f"{self.location.url}: rows have vectors of {listed(found)} dimensions, not "
            f"{self.dim}: {listed(other)}",
            tip="name the model that filled this column; rows of one model are a gallery",
        )

    def _condition(self) -> Any:
        from psycopg import sql

        return sql.SQL(f" AND {self.condition}" if self.condition else "")  # type: ignore[arg-type,unused-ignore]

    def _id(self) -> Any:
        from psycopg import sql

        return sql.SQL("{}::text").format(identifier(self.location.id))

    def _table(self) -> Any:

        return identifier(self.location.schema, self.location.table)
