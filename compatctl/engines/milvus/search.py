"""Search of a collection, fenced by the epoch of its properties."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from compatctl.engines.milvus.connection import CALL_S, DATA_S, Client
from compatctl.engines.milvus.location import MAX_EF, CollectionLocation
from compatctl.engines.milvus.properties import read_row
from compatctl.engines.milvus.rows import MAX_ROWS, CollectionRows
from compatctl.engines.search import Found, Scan, StaleEpochError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = "Bounded"
"""The consistency level of searches: they may miss what was written seconds ago.
Strong waits for the server's clock."""
_ANSWERS = 500_000
"""Most rows that one call answers."""


class CollectionSearch:
    """Searches of one collection at one epoch.

    Milvus has no condition on a property. The properties are read after each search: as epochs only
    grow, a collection that is at the epoch for which the query was embedded after the search was so
    during it. The collection itself is searched, never an alias, which may lead elsewhere. Where
    every row is in a collection beside it (``side``), that one is searched: it never changes.
    """

    def __init__(
        self,
        rows: CollectionRows,
        operator: str,
        epoch: int | None,
        side: CollectionRows | None = None,
    ) -> None:
        self._rows = side or rows
        self._searched: CollectionLocation = self._rows.location
        self._location: CollectionLocation = rows.location
        self._operator = operator
        self._epoch = epoch
        self._hnsw: bool | None = None

    @property
    def scans(self) -> tuple[Scan, ...]:
        """The scans to try, each where the one before found too few rows."""
        return (Scan.PLAIN, Scan.EXACT)

    def search(
        self,
        connection: Client,
        queries: NDArray[np.float32],
        k: int,
        ef: int,
        scan: Scan = Scan.PLAIN,
    ) -> list[Found]:
        """At most ``k`` rows for each query (Q, D): fewer where the index found fewer.

        Scan.EXACT: every row is read and compared. Without an epoch the search is not fenced.

        Raises:
            StaleEpochError: the properties have another epoch by now, or are gone.
        """
        from pymilvus.exceptions import MilvusException

        try:
            if scan is Scan.EXACT or k > MAX_ROWS:
                answers = self._exact(connection, queries, k)
            else:
                answers = self._approximate(connection, queries, k, ef)
        except MilvusException:
            if self._epoch is not None:
                self._refuse_stale(connection)  # a collection that gc dropped since
            raise
        if self._epoch is not None:
            self._refuse_stale(connection)
        return answers

    def _approximate(
        self, connection: Client, queries: NDArray[np.float32], k: int, ef: int
    ) -> list[Found]:
        parameters: dict[str, Any] = {"metric_type": self._operator, "params": {}}
        if self._is_hnsw(connection):
            parameters["params"]["ef"] = min(max(ef, k), MAX_EF)
        answers: list[Found] = []
        size = max(1, min(1000, _ANSWERS // k))
        for start in range(0, len(queries), size):
            found = connection.search(
                self._searched.table,
                data=queries[start : start + size],
                anns_field=self._searched.vector,
                limit=k,
                search_params=parameters,
                consistency_level=LEVEL,
                timeout=DATA_S,
            )
            answers += [
                [(str(item), self._distance(value)) for item, value in _pairs(hits)]
                for hits in found
            ]
        return answers

    def _exact(self, connection: Client, queries: NDArray[np.float32], k: int) -> list[Found]:
        import numpy as np

        ids: list[str] = []
        best = np.full((len(queries), 0), 0, np.int64)
        distances = np.zeros((len(queries), 0))
        with closing(self._rows.blocks(connection)) as blocks:
            for block in blocks:
                new = self._distances(queries, block.vectors)
                numbers = np.arange(len(ids), len(ids) + len(block.ids))
                ids += block.ids
                distances = np.hstack([distances, new])
                best = np.hstack([best, np.broadcast_to(numbers, new.shape)])
                order = np.argsort(distances, axis=1, kind="stable")[:, :k]
                distances = np.take_along_axis(distances, order, axis=1)
                best = np.take_along_axis(best, order, axis=1)
        return [
            [(ids[row], distance) for row, distance in zip(rows, values, strict=True)]
            for rows, values in zip(best.tolist(), distances.tolist(), strict=True)
        ]

    def _distances(
        self, queries: NDArray[np.float32], rows: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Distances (Q, n): smaller is nearer."""
        import numpy as np

        products: NDArray[np.float64] = queries.astype(np.float64) @ rows.astype(np.float64).T
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        lengths = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
        if self._operator == "IP":
            found = -products
        elif self._operator == "COSINE":
            found = 1.0 - products / np.maximum(lengths * norms, 1e-30)
        else:
            found = np.sqrt(np.maximum(lengths**2 + norms**2 - 2.0 * products, 0.0))
        return found

    def _distance(self, value: float) -> float:
        """A server's score as a distance: it gives cosines, products, or squared L2 distances."""
        if self._operator == "L2":
            return float(max(value, 0.0) ** 0.5)
        return float(-value if self._operator == "IP" else 1.0 - value)

    def _is_hnsw(self, connection: Client) -> bool:
        """Whether the index takes ef; asked once."""
        if self._hnsw is None:
            names = connection.list_indexes(
                self._searched.table, field_name=self._searched.vector, timeout=CALL_S
            )
            kinds = [
                connection.describe_index(self._searched.table, name, timeout=CALL_S)
                for name in names
            ]
            self._hnsw = any(kind and kind["index_type"] == "HNSW" for kind in kinds)
        return self._hnsw

    def _refuse_stale(self, connection: Client) -> None:
        row = read_row(self._location, connection)
        if row is None or row.epoch != self._epoch:
            now = "is gone" if row is None else f"is at epoch {row.epoch}"
            raise StaleEpochError(
                f"{self._location.row} {now}, and the query was embedded for epoch {self._epoch}",
                tip="read the row again, embed the query again with its model, and search again; "
                "compatctl check says how the row and the store differ",
            )


def _pairs(hits: Any) -> list[tuple[Any, float]]:
    return list(zip(hits.ids, hits.distances, strict=True))
