"""The statement that searches a generation's rows: in the application's table, in a side table, or
in both, with the epoch as a condition, so that all of it is of one snapshot.

What it needs of other rows is asked in scalar subqueries. PostgreSQL never makes joins of them, so
that each branch is a scan of its HNSW index in the order of the distance, with a filter. A filter
drops rows, so the scan is one that goes on (``hnsw.iterative_scan``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compatctl.engines.connection import identifier, sql_of
from compatctl.engines.deployment_row import TABLE
from compatctl.engines.location import TableLocation
from compatctl.engines.side import BATCH, ID, VECTOR, SideTable

ITERATIVE = "set_config('hnsw.iterative_scan', 'strict_order', true) IS NOT NULL"
"""A condition that holds, and makes a scan of the statement's transaction go on."""


@dataclass(frozen=True, kw_only=True)
class Placeholders:
    """How the statement names its parameters: ``query`` with its cast to a vector, ``k``, the
    ``epoch``, the ``name`` of the row, and the effort ``ef`` as text."""

    query: str
    k: str
    epoch: str
    name: str
    ef: str


@dataclass(frozen=True, kw_only=True)
class SearchStatement:
    """A search of the rows of one generation.

    Attributes:
        vector_type, operator: of the application's column, and of the order.
        side: the side table that has some of the rows, or all.
        fenced: whether the epoch is a condition.
    """

    location: TableLocation
    vector_type: str
    operator: str
    side: SideTable | None
    fenced: bool

    def sql(self, names: Placeholders) -> Any:
        """The statement: ids as text and distances, at most k, nearest first."""
        if self.side is None:
            return self._table(names, "")
        if self.side.whole:
            return self._side(names, self.side)
        both = (
            "SELECT id, distance FROM (({table}) UNION ALL ({side})) AS found "
            f"ORDER BY distance LIMIT {names.k}"
        )
        table = self._table(names, "AND {ended} IS NOT TRUE ")
        return sql_of(both, table=table, side=self._side(names, self.side))

    def _table(self, names: Placeholders, condition: str) -> Any:
        """The search of the application's rows; ``condition`` leaves out those of the side."""
        text = (
            "SELECT {id}::text AS id, {vector} {by} {q} AS distance FROM {table} WHERE {fence} AND "
            f"{{vector}} IS NOT NULL {condition}ORDER BY {{vector}} {{by}} {{q}} LIMIT {names.k}"
        )
        where = self.location
        return self._format(
            text,
            names,
            self.vector_type,
            id=(where.table, where.id),
            vector=(where.table, where.vector),
            table=(where.schema, where.table),
        )

    def _side(self, names: Placeholders, side: SideTable) -> Any:
        """The search of the valid rows of the side table that the application still has."""
        newest = "" if len(side.batches) == 1 else "AND {newest} "
        text = (
            "SELECT {id}::text AS id, {vector} {by} {q} AS distance FROM {table} WHERE {fence} AND "
            f"{{vector}} IS NOT NULL AND {{valid}} {newest}AND {{there}} "
            f"ORDER BY {{vector}} {{by}} {{q}} LIMIT {names.k}"
        )
        where = self.location
        return self._format(
            text,
            names,
            side.vector_type,
            id=(side.table, ID),
            vector=(side.table, VECTOR),
            table=(where.schema, side.table),
        )

    def _format(
        self, text: str, names: Placeholders, vector_type: str, **columns: tuple[str, ...]
    ) -> Any:

        parts: dict[str, Any] = {name: identifier(*path) for name, path in columns.items()}
        parts |= self._beside(parts["id"])
        return sql_of(
            text,
            by=sql_of(self.operator),
            q=sql_of(f"{names.query}::{vector_type}"),
            fence=self._fence(names),
            **parts,
        )

    def _beside(self, column: Any) -> dict[str, Any]:
        """The conditions on the other table, for a branch whose id is in ``column``."""

        if self.side is None:
            return {}
        where, side = self.location, self.side
        batches = sql_of(",".join(map(str, side.batches)))
        names: dict[str, Any] = {
            "id": column,
            "batch": identifier(side.table, BATCH),
            "batches": sql_of("'{{{batches}}}'::bigint[]", batches=batches),
            "side": identifier(where.schema, side.table),
            "rows": identifier(where.schema, where.table),
            "row_id": identifier(where.table, where.id),
            "row_vector": identifier(where.table, where.vector),
        }
        return {
            "valid": sql_of("{batch} = ANY ({batches})", **names),
            "newest": sql_of(_NEWEST, **names),
            "there": sql_of(_THERE, **names),
            "ended": sql_of(_IN_SIDE, **names),
        }

    def _fence(self, names: Placeholders) -> Any:
        """The first condition. It is evaluated once, before the scan begins, so that the scan uses
        the settings that are made there, for this statement's transaction alone."""

        effort = f"set_config('hnsw.ef_search', {names.ef}, true) IS NOT NULL"
        settings = f"{effort} AND {ITERATIVE}" if self.side is not None else effort
        if not self.fenced:
            return sql_of(f"(SELECT {settings})")
        text = f"SELECT epoch FROM {{row}} WHERE name = {names.name} AND {settings}"
        row = identifier(self.location.schema, TABLE)
        return sql_of(f"({text}) = {names.epoch}", row=row)


_NEWEST = (
    "{batch} = (SELECT newer.batch FROM {side} newer WHERE newer.id = {id} "
    "AND newer.batch = ANY ({batches}) ORDER BY newer.batch DESC LIMIT 1)"
)
"""Whether a row of the side table is the newest valid one of its id."""
_THERE = "(SELECT {row_vector} IS NOT NULL FROM {rows} WHERE {row_id} = {id} LIMIT 1)"
"""Whether the application still has the item."""
_IN_SIDE = (
    "(SELECT compatctl_own.embedding IS NOT NULL FROM {side} compatctl_own WHERE "
    "compatctl_own.id = {row_id} AND compatctl_own.batch = ANY ({batches}) "
    "ORDER BY compatctl_own.batch DESC LIMIT 1)"
)
"""Whether the side table has the row of an id of the application's table."""


def application_search(statement: SearchStatement, *, name: str, ef: int) -> str:
    """The statement as an application runs it: $1 is the query, $2 how many rows, $3 the epoch."""
    quoted = "'" + name.replace("'", "''").replace("{", "{{").replace("}", "}}") + "'"
    names = Placeholders(
        query="$1::vector",
        k="$2::bigint",
        epoch="$3::bigint",
        name=quoted,
        ef=f"greatest({ef}, least($2::bigint, 1000))::text",
    )
    return str(statement.sql(names).as_string(None))
