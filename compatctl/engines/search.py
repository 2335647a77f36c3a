"""Search of a table that is fenced by the epoch, in one statement."""

from __future__ import annotations

from contextlib import nullcontext
from enum import Enum
from typing import TYPE_CHECKING, Any

from compatctl.engines.connection import Connection, identifier
from compatctl.engines.deployment_row import TABLE
from compatctl.engines.facts import MAX_EF
from compatctl.engines.location import TableLocation
from compatctl.engines.side import SideTable
from compatctl.engines.statement import Placeholders, SearchStatement
from compatctl.errors import ConflictError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SENT_AT_ONCE = 64
"""Queries of one transaction."""
_NAMES = Placeholders(
    query="%(q)b::float8[]", k="%(k)s", epoch="%(epoch)s", name="%(name)s", ef="%(ef)s"
)
Found = list[tuple[str, float]]
"""Ids and distances of one query, nearest first."""


class Scan(Enum):
    """How a table is searched, and the setting for it. An index scan ends after ef rows, of which
    some may be dead: an iterative one goes on, an exact one reads the table."""

    PLAIN = ""
    ITERATIVE = "hnsw.iterative_scan = strict_order"
    EXACT = "enable_indexscan = off"


class StaleEpochError(ConflictError):
    """The row has another epoch than the one for which the query was embedded."""


class FencedSearch:
    """Searches of one table at one epoch.

    A query that another model embedded, because the row was switched meanwhile, finds nothing: the
    condition on the epoch is part of the statement, and so of its snapshot.
    """

    def __init__(  # noqa: PLR0917
        self,
        location: TableLocation,
        vector_type: str,
        operator: str,
        epoch: int | None,
        iterative_scan: bool,
        side: SideTable | None = None,
    ) -> None:
        self._location = location
        self._epoch = epoch
        self._iterative = iterative_scan
        self._goes_on = side is not None
        self._statement = SearchStatement(
            location=location,
            vector_type=vector_type,
            operator=operator,
            side=side,
            fenced=epoch is not None,
        ).sql(_NAMES)

    @property
    def scans(self) -> tuple[Scan, ...]:
        """The scans to try, each where the one before found too few rows."""
        several = self._iterative and not self._goes_on  # else its own statement goes on
        return tuple(Scan) if several else (Scan.PLAIN, Scan.EXACT)

    def search(
        self,
        connection: Connection,
        queries: NDArray[np.float32],
        k: int,
        ef: int,
        scan: Scan = Scan.PLAIN,
    ) -> list[Found]:
        """At most ``k`` rows for each query (Q, D): fewer where the scan found fewer.

        Without an epoch the search is not fenced.

        Raises:
            StaleEpochError: the row has another epoch by now, or is gone.
        """
        from psycopg.errors import UndefinedTable

        try:
            answers = self._answers(connection, queries, k, ef, scan)
        except UndefinedTable:
            if self._epoch is not None:
                connection.rollback()
                self._refuse_stale(connection)  # a side table that gc dropped since
            raise
        if self._epoch is not None and not all(answers):
            self._refuse_stale(connection)
        return answers

    def _answers(
        self, connection: Connection, queries: NDArray[np.float32], k: int, ef: int, scan: Scan
    ) -> list[Found]:
        answers: list[Found] = []
        fixed = {"k": k, "epoch": self._epoch, "name": self._location.name}
        fixed["ef"] = str(min(max(ef, k), MAX_EF))
        for start in range(0, len(queries), _SENT_AT_ONCE):
            part = queries[start : start + _SENT_AT_ONCE].tolist()
            answers += self._send(connection, [{**fixed, "q": query} for query in part], scan)
        return answers

    def _send(
        self, connection: Connection, parameters: list[dict[str, Any]], scan: Scan
    ) -> list[Found]:
        """The answers of some queries, which are sent together. After an error the connection is of
        no further use.

        A setting ends with its transaction: a pool of connections between here and the server
        never sees it.
        """
        from psycopg import Pipeline

        several = len(parameters) > 1 or scan is not Scan.PLAIN
        together = connection.pipeline() if several and Pipeline.is_supported() else nullcontext()
        cursors = [connection.cursor(binary=True) for _ in parameters]
        with together:  # psycopg's own transaction() would wait for an answer to each part
            if scan is not Scan.PLAIN:
                connection.execute("BEGIN", prepare=True)
                connection.execute(f"SET LOCAL {scan.value}", prepare=True)
            for cursor, values in zip(cursors, parameters, strict=True):
                cursor.execute(self._statement, values, prepare=True)
            if scan is not Scan.PLAIN:
                connection.execute("COMMIT", prepare=True)
        return [cursor.fetchall() for cursor in cursors]

    def _refuse_stale(self, connection: Connection) -> None:
        from psycopg import sql

        query = sql.SQL("SELECT epoch FROM {} WHERE name = %s").format(
            identifier(self._location.schema, TABLE)
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
