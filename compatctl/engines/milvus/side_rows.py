"""Vectors that a store computed, beside a collection of Milvus: each batch is a whole collection.

Milvus neither joins nor lets a newer row hide an older one, so a batch has every row of its
generation: new vectors, or those of before, under the same keys and field names and with the other
fields of the application's rows, so that its filters go on. Its name ends in the number of the
batch. It is written, indexed and loaded before a generation names it; nobody writes it after that.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compatctl.engines.milvus.connection import CALL_S, DATA_S, Client
from compatctl.engines.milvus.location import CollectionLocation
from compatctl.engines.milvus.rows import STRONG, CollectionRows, literal
from compatctl.engines.milvus.side_schema import copied_fields, create_collection, description_of
from compatctl.engines.rows import RowBlock
from compatctl.engines.side import SideTable, batch_table
from compatctl.errors import CompatError, ConflictError
from compatctl.printable import listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PREFIX = "compatctl_"
_ROWS = 1024
"""Most rows of one call, as other fields of a row may be large."""
_MAX_BYTES = 16 << 20
"""Most bytes of vectors of one call."""
_INDEX_S = 24 * 3600.0
"""Seconds to wait for an index."""


@dataclass(frozen=True, kw_only=True)
class SideCollections:
    """The collections of one embedding space beside a collection, one for each batch."""

    location: CollectionLocation
    id_type: str
    operator: str
    side: SideTable

    def create(self, connection: Client) -> None:
        """Nothing: each batch makes a collection of its own."""

    def begin(self, connection: Client) -> int:
        """The number of a new batch: microseconds since 1970, so larger than every one before; its
        collection is made."""
        batch = time.time_ns() // 1000 + secrets.randbelow(1000)
        create_collection(connection, self.location, self._name(batch), self.side.dim)
        return batch

    def write(self, connection: Client, batch: int, blocks: Iterable[RowBlock]) -> None:
        """Append rows to a batch, with the other fields of the application's rows.

        Raises:
            ConflictError: the application has no row of an id any more.
        """
        size = max(1, min(_ROWS, _MAX_BYTES // (4 * self.side.dim)))
        fields = copied_fields(connection, self.location)
        for block in blocks:
            for start in range(0, len(block.ids), size):
                part = slice(start, start + size)
                rows = self._with_fields(connection, block.ids[part], fields)
                for row, vector in zip(rows, block.vectors[part], strict=True):
                    row[self.location.vector] = vector
                connection.insert(self._name(batch), rows, timeout=DATA_S)

    def index(self, connection: Client, batch: int, *, m: int, ef_construction: int) -> None:
        """Index and load a batch, and wait until every row of it is found.

        Raises:
            CompatError: the index is not built within a day.
        """
        name = self._name(batch)
        connection.flush(name, timeout=DATA_S)
        parameters = connection.prepare_index_params()
        parameters.add_index(
            self.location.vector,
            index_type="HNSW",
            metric_type=self.operator,
            params={"M": m, "efConstruction": ef_construction},
        )
        connection.create_index(name, parameters, timeout=DATA_S)
        self._wait_for_index(connection, name)
        connection.load_collection(name, timeout=DATA_S)
        self.count(connection, batch)  # Strong: a search that follows sees every row

    def rehearse(self, connection: Client, vectors: NDArray[np.float32], *, m: int) -> None:
        """Write and index vectors (n, D) in a collection that is dropped again, to see how long
        that takes."""
        batch = time.time_ns() // 1000
        name = self._name(batch)
        create_collection(connection, self.location, name, self.side.dim, bare=True)
        whole = self.id_type == "int64"
        try:
            for start in range(0, len(vectors), _ROWS):
                rows = [
                    {self.location.id: key if whole else str(key), self.location.vector: vector}
                    for key, vector in enumerate(vectors[start : start + _ROWS], start)
                ]
                connection.insert(name, rows, timeout=DATA_S)
            self.index(connection, batch, m=m, ef_construction=2 * m)
        finally:
            connection.drop_collection(name, timeout=CALL_S)

    def count(self, connection: Client, batch: int) -> int:
        """How many rows a batch has; 0 where its collection is gone."""
        if not connection.has_collection(self._name(batch), timeout=CALL_S):
            return 0
        return self._rows(batch).count(connection)[0]

    def blocks(self, connection: Client) -> Generator[RowBlock, None, None]:
        """Every row of the valid batch, in blocks."""
        return self.rows().blocks(connection)

    def find(self, connection: Client, ids: Sequence[str]) -> Iterator[RowBlock]:
        """The rows of these ids, in blocks, in any order."""
        return self.rows().find(connection, ids)

    def rows(self) -> CollectionRows:
        """The reader of the valid batch."""
        return self._rows(self.side.batches[-1])

    def _rows(self, batch: int) -> CollectionRows:
        return CollectionRows(
            location=replace(self.location, table=self._name(batch), label=""),
            id_type=self.id_type,
            vector_type=self.side.vector_type,
            dim=self.side.dim,
        )

    def _name(self, batch: int) -> str:
        return batch_table(self.side.table, batch)

    def _with_fields(
        self, connection: Client, ids: Sequence[str], fields: Sequence[str]
    ) -> list[dict[str, Any]]:
        """The application's rows of these ids, in their order, without vectors."""
        keys = [int(item) for item in ids] if self.id_type == "int64" else list(ids)
        found = connection.query(
            self.location.table,
            filter=_is_among(self.location, keys),
            output_fields=[self.location.id, *fields],
            consistency_level=STRONG,
            timeout=DATA_S,
        )
        rows = {row[self.location.id]: dict(row) for row in found}
        if gone := [str(key) for key in keys if key not in rows]:
            raise ConflictError(
                f"{self.location.url}: the collection has lost {len(gone)} rows that the store "
                f"adopted: {listed(gone)}",
                tip="compatctl check lists what changed; compatctl add --changed adopts it",
            )
        return [rows[key] for key in keys]

    def _wait_for_index(self, connection: Client, name: str) -> None:
        until, pause = time.monotonic() + _INDEX_S, 0.05
        while time.monotonic() < until:
            found = connection.describe_index(name, self.location.vector, timeout=CALL_S)
            if found["state"] == "Finished" and not int(found["pending_index_rows"]):
                return
            time.sleep(pause)
            pause = min(5.0, 1.5 * pause)
        raise CompatError(f"the index of {name} is not built within a day", tip="run it again")


def _is_among(location: CollectionLocation, keys: Sequence[object]) -> str:
    """The condition that a row's key is one of these."""
    return f"{location.id} in [{', '.join(map(literal, keys))}]"


def sweep_collections(
    connection: Client, location: CollectionLocation, keep: Mapping[str, set[int]]
) -> tuple[str, ...]:
    """Drop the collections that were made beside a collection and that ``keep`` (the name of a side
    table -> its batches) does not name; their names."""
    kept = {batch_table(table, batch) for table, batches in keep.items() for batch in batches}
    swept = [name for name in side_collections(connection, location) if name not in kept]
    for name in swept:
        connection.drop_collection(name, timeout=CALL_S)
    return tuple(swept)


def erase_from_collections(
    connection: Client, location: CollectionLocation, id_type: str, ids: Sequence[str]
) -> None:
    """Delete the rows of these ids from every collection that was made beside a collection.

    pymilvus's own list of ids writes a key as it is, so that one with a quote ends the expression.
    """
    keys = [int(item) for item in ids] if id_type == "int64" else list(ids)
    for name in side_collections(connection, location):
        for start in range(0, len(keys), _ROWS):
            part = keys[start : start + _ROWS]
            connection.delete(name, filter=_is_among(location, part), timeout=DATA_S)


def side_collections(connection: Client, location: CollectionLocation) -> tuple[str, ...]:
    """The collections that were made beside a collection, valid or not."""
    names = [name for name in connection.list_collections() if name.startswith(_PREFIX)]
    told = description_of(location)
    return tuple(
        name
        for name in sorted(names)
        if connection.describe_collection(name, timeout=CALL_S)["description"] == told
    )
