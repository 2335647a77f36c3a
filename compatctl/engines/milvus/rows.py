"""The rows of a collection as blocks of arrays: page after page in the order of the primary key."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from compatctl.engines.milvus.answers import Answer, keys_of, values_of, vectors_of
from compatctl.engines.milvus.connection import CALL_S, DATA_S, Client
from compatctl.engines.milvus.location import CollectionLocation
from compatctl.engines.reading_ahead import read_ahead
from compatctl.engines.rows import RowBlock
from compatctl.errors import InputError
from compatctl.printable import listed

MAX_ROWS = 16_384
"""Most rows that a server gives in one answer."""
_MAX_BYTES = 32 << 20
"""Most bytes of vectors in one answer: a server sends at most 64 MiB."""
STRONG = "Strong"
"""The consistency level at which every row that was written before is seen."""


@dataclass(frozen=True, kw_only=True)
class CollectionRows:
    """The rows of a collection, all partitions together.

    Attributes:
        id_type: int64 or varchar. ``vector_type``: FLOAT_VECTOR.
        dim: D of each vector.
    """

    location: CollectionLocation
    id_type: str
    vector_type: str
    dim: int

    def blocks(self, connection: Client) -> Generator[RowBlock, None, None]:
        """Every row in blocks, by ascending primary key.

        Each page sees all rows that were written before it (level Strong). Together they are no
        snapshot: Milvus keeps none for a reader. pymilvus's own iterator is not used, as it breaks
        off at keys with quotes and backslashes. The next page comes while the caller uses one.

        Raises:
            InputError: a partition is not loaded, so that its rows are not read; or rows are hidden
                behind the same primary key, which Milvus does not prevent.
        """
        if problem := unloaded(connection, self.location.table):
            raise InputError(
                f"{self.location.url}: {problem}",
                tip="load_collection: rows elsewhere are neither read nor found",
            )
        before = self.count(connection)[0]
        label, total = self.location.label, 0
        with closing(read_ahead(self._pages(connection, label))) as pages:
            for rows in pages:
                yield self._block(rows, label=label)
                total += len(rows)
        if total != before and self.count(connection)[0] == before:
            raise InputError(
                f"{self.location.url}: the collection counts {before} rows and gives {total}: a "
                "primary key was inserted more than once, and which of its vectors is found cannot "
                "be known",
                tip="delete these keys and insert each once; upsert replaces rows",
            )

    def _pages(self, connection: Client, label: str) -> Generator[Answer, None, None]:
        """The server's answers, none of them empty."""
        size = max(1, min(MAX_ROWS, _MAX_BYTES // (4 * self.dim)))
        condition = ""
        while rows := self._query(connection, condition, label=label, limit=size):
            last = max(keys_of(rows, self.location.id))
            condition = f"{self.location.id} > {literal(last)}"
            yield rows

    def find(self, connection: Client, ids: Sequence[str]) -> Iterator[RowBlock]:
        """The rows of these ids that are there, in blocks, without labels, in any order."""
        size = max(1, min(MAX_ROWS // 4, _MAX_BYTES // (4 * self.dim)))
        whole = self.id_type == "int64"
        for start in range(0, len(ids), size):
            part = [int(item) if whole else item for item in ids[start : start + size]]
            condition = f"{self.location.id} in [{', '.join(map(literal, part))}]"
            rows = self._query(connection, condition, label="", limit=None)
            if rows:
                yield self._block(rows, label="")

    def count(self, connection: Client) -> tuple[int, int]:
        """The number of rows, and 0: every row has a vector."""
        found = connection.query(
            self.location.table,
            filter="",
            output_fields=["count(*)"],
            consistency_level=STRONG,
            timeout=DATA_S,
        )
        return int(found[0]["count(*)"]), 0

    def _query(
        self, connection: Client, condition: str, *, label: str, limit: int | None
    ) -> Answer:
        names = [self.location.id, self.location.vector, *((label,) if label else ())]
        ordered = {"limit": limit, "iterator": "True", "reduce_stop_for_best": "True"}
        answer: Answer = connection.query(
            self.location.table,
            filter=condition,
            output_fields=names,
            consistency_level=STRONG,
            timeout=DATA_S,
            strict_float32=True,  # rows as arrays; an older pymilvus gives lists
            **(ordered if limit is not None else {}),
        )
        return answer

    def _block(self, rows: Answer, *, label: str) -> RowBlock:
        vectors = vectors_of(rows, self.location.vector, self.dim)
        labels = values_of(rows, label) if label else None
        return RowBlock(
            ids=tuple(map(str, keys_of(rows, self.location.id))),
            vectors=vectors,
            labels=None if labels is None else tuple(map(_text, labels)),
        )


def unloaded(client: Client, table: str) -> str:
    """Which parts of a collection are not loaded; "" if all are."""
    whole = client.get_load_state(table, timeout=CALL_S)["state"].name
    if whole != "Loaded":
        return f"the collection is not loaded ({whole})"
    names = [
        name
        for name in client.list_partitions(table, timeout=CALL_S)
        if client.get_load_state(table, partition_name=name, timeout=CALL_S)["state"].name
        != "Loaded"
    ]
    return f"partitions of the collection are not loaded: {listed(names)}" if names else ""


def _text(value: object) -> str:
    return "" if value is None else str(value)


def literal(value: object) -> str:
    """A primary key as an expression has it."""
    return json.dumps(value, ensure_ascii=False)
