"""The rows of a table as blocks of arrays, by COPY in binary: a million rows are never a list."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compatctl.engines.connection import Connection
from compatctl.engines.location import TableLocation
from compatctl.errors import InputError
from compatctl.printable import listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 16_384
"""Rows of a block."""
_HEADER = 4
"""Bytes before the components: the dimension and an unused number."""
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
        parts = [self._id(), sql.Identifier(self.location.vector)]
        if label:
            parts.append(sql.SQL("coalesce({}::text, '')").format(sql.Identifier(label)))
        query = sql.SQL(
            "COPY (SELECT {} FROM {} WHERE {} IS NOT NULL{}) TO STDOUT (FORMAT BINARY)"
        ).format(
            sql.SQL(", ").join(parts),
            self._table(),
            sql.Identifier(self.location.vector),
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
            sql.Identifier(self.location.vector),
            self._table(),
            sql.Identifier(self.location.id),
            sql.SQL(self.id_type),  # type: ignore[arg-type,unused-ignore]
            sql.Identifier(self.location.vector),
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
            sql.Identifier(self.location.vector), self._table()
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
        row = np.dtype([("header", f"V{_HEADER}"), ("vector", component, (self.dim,))])
        width = row.itemsize
        other = [item for item, data in zip(ids, raw, strict=True) if len(data) != width]
        if other:
            sizes = {len(data) - _HEADER for data in raw if len(data) != width}
            dims = {size // component.itemsize for size in sizes}
            raise InputError(
                f"{self.location.url}: rows have vectors of {listed(sorted(map(str, dims)))} "
                f"dimensions, not {self.dim}: {listed(other)}",
                tip="name the model that filled this column; rows of one model are a gallery",
            )
        return RowBlock(
            ids=ids,
            vectors=np.frombuffer(b"".join(raw), row)["vector"].astype(np.float32),
            labels=labels[0] if labels else None,
        )

    def _condition(self) -> Any:
        from psycopg import sql

        return sql.SQL(f" AND {self.condition}" if self.condition else "")  # type: ignore[arg-type,unused-ignore]

    def _id(self) -> Any:
        from psycopg import sql

        return sql.SQL("{}::text").format(sql.Identifier(self.location.id))

    def _table(self) -> Any:
        from psycopg import sql

        return sql.Identifier(self.location.schema, self.location.table)
