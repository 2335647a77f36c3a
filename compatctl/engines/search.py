"""Search of a table that is fenced by the epoch, in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compatctl.engines.connection import Connection
from compatctl.engines.deployment_row import TABLE
from compatctl.engines.facts import MAX_EF
from compatctl.engines.location import TableLocation
from compatctl.errors import ConflictError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Found = list[tuple[str, float]]
"""Ids and distances of one query, nearest first."""


class StaleEpochError(ConflictError):
    """The row has another epoch than the one for which the query was embedded."""


class FencedSearch:
    """Searches of one table at one epoch.

    A query that another model embedded, because the row was switched meanwhile, finds nothing: the
    condition on the epoch is part of the statement, and so of its snapshot.
    """

    def __init__(
        self,
        location: TableLocation,
        vector_type: str,
        operator: str,
        epoch: int | None,
        iterative_scan: bool,
    ) -> None:
        self._location = location
        self._epoch = epoch
        self._iterative = iterative_scan
        self._statement = _statement(location, vector_type, operator, fenced=epoch is not None)

    def search(
        self,
        connection: Connection,
        queries: NDArray[np.float32],
        k: int,
        ef: int,
        exact: bool = False,
    ) -> list[Found]:
        """At most ``k`` rows for each query (Q, D): fewer where the scan found fewer.

        ``exact``: without any index. Without an epoch the search is not fenced.

        Raises:
            StaleEpochError: the row has another epoch by now, or is gone.
        """
        answers: list[Found] = []
        with connection.transaction():
            for setting, value in self._settings(k, ef, exact=exact):
                connection.execute("SELECT set_config(%s, %s, true)", (setting, value))
            cursor = connection.cursor(binary=True)
            for query in queries.tolist():
                values: dict[str, Any] = {"q": query, "k": k, "epoch": self._epoch}
                values["name"] = self._location.name
                answers.append(cursor.execute(self._statement, values, prepare=True).fetchall())
        if self._epoch is not None and not all(answers):
            self._refuse_stale(connection)
        return answers

    def _settings(self, k: int, ef: int, *, exact: bool) -> Sequence[tuple[str, str]]:
        if exact:
            return (("enable_indexscan", "off"),)
        ordered = [("hnsw.ef_search", str(min(max(ef, k), MAX_EF)))]
        return (*ordered, *(("hnsw.iterative_scan", "strict_order"),) * self._iterative)

    def _refuse_stale(self, connection: Connection) -> None:
        from psycopg import sql

        query = sql.SQL("SELECT epoch FROM {} WHERE name = %s").format(
            sql.Identifier(self._location.schema, TABLE)
        )
        found = connection.execute(query, (self._location.name,)).fetchone()
        if found is None or found[0] != self._epoch:
            now = "is gone" if found is None else f"is at epoch {found[0]}"
            raise StaleEpochError(
                f"the row {self._location.name!r} of {TABLE} {now}, and the query was embedded for "
                f"epoch {self._epoch}",
                tip="read the row again, embed the query again with its model, and search again; "
                "compatctl check says how the row and the store differ",
            )


def _statement(location: TableLocation, vector_type: str, operator: str, *, fenced: bool) -> Any:
    from psycopg import sql

    fence = sql.SQL("(SELECT epoch FROM {} WHERE name = %(name)s) = %(epoch)s AND ").format(
        sql.Identifier(location.schema, TABLE)
    )
    return sql.SQL(
        "SELECT {id}::text, {vector} {by} %(q)s::float8[]::{type} FROM {table} WHERE {fence}"
        "{vector} IS NOT NULL ORDER BY {vector} {by} %(q)s::float8[]::{type} LIMIT %(k)s"
    ).format(
        id=sql.Identifier(location.id),
        vector=sql.Identifier(location.vector),
        by=sql.SQL(operator),  # type: ignore[arg-type,unused-ignore]
        type=sql.SQL(vector_type),  # type: ignore[arg-type,unused-ignore]
        table=sql.Identifier(location.schema, location.table),
        fence=fence if fenced else sql.SQL(""),
    )
