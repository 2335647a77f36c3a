"""The one row that an application reads: which model embeds its queries, at which epoch.

The row is the switch. It changes by one UPDATE that names the epoch and the manifest that it
expects, so of two writers one wins. The epoch is the generation of the store.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from compatctl.engines.connection import Connection, connect, identifier
from compatctl.engines.location import TableLocation
from compatctl.errors import ConflictError, InputError

TABLE = "compatctl_deployment"

_CREATE = """
CREATE TABLE IF NOT EXISTS {table} (
    name text PRIMARY KEY,
    epoch bigint NOT NULL,
    query_model text NOT NULL,
    model_name text NOT NULL,
    search_table text NOT NULL,
    id_column text NOT NULL,
    vector_column text NOT NULL,
    operator text NOT NULL,
    ef_search integer NOT NULL,
    calibration jsonb,
    previous_epoch bigint,
    manifest text NOT NULL,
    switched_at timestamptz NOT NULL,
    search_sql text NOT NULL DEFAULT '',
    side_table text NOT NULL DEFAULT '',
    side_batches bigint[] NOT NULL DEFAULT '{{}}'
)
"""
_ADD = (
    "ALTER TABLE {table} ADD search_sql text NOT NULL DEFAULT '', "
    "ADD side_table text NOT NULL DEFAULT '', ADD side_batches bigint[] NOT NULL DEFAULT '{{}}'"
)
"""What a table of before side tables lacks."""
_ADDED = ("search_sql", "side_table", "side_batches")
_COLUMNS = (
    "epoch", "query_model", "model_name", "search_table", "id_column", "vector_column", "operator",
    "ef_search", "calibration", "previous_epoch", "manifest", "search_sql", "side_table",
    "side_batches", "switched_at",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DeploymentRow:
    """What an application reads.

    Attributes:
        epoch: the generation of the store; ``previous_epoch``: the one before, None for the first.
        query_model: digest of the model that embeds queries; ``model_name`` is for people.
        search_table: schema.table, quoted where SQL needs it; ``id_column``, ``vector_column``.
        operator: of the order: <=>, <#> or <->.
        ef_search: what hnsw.ef_search is to be, at most 1,000.
        calibration: knots (score, mapped score) of a score map, or None.
        manifest: digest of the generation's manifest.
        switched_at: ISO 8601, UTC.
        search_sql: the whole search, fenced, with $1 the query, $2 the number of rows and $3 the
            epoch; "" where the engine has no such statement.
        side_table: schema.table of the vectors that a store computed; "" without any.
        side_batches: the batches of it that are valid.
    """

    epoch: int
    query_model: str
    model_name: str
    search_table: str
    id_column: str
    vector_column: str
    operator: str
    ef_search: int
    calibration: tuple[tuple[float, float], ...] | None
    previous_epoch: int | None
    manifest: str
    switched_at: str
    search_sql: str = ""
    side_table: str = ""
    side_batches: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DeploymentTable:
    """The row of one table, in the schema of that table."""

    location: TableLocation

    def read(self) -> DeploymentRow | None:
        """The row, or None where there is none.

        Raises:
            CompatError: the server cannot be reached; InputError: it refuses.
        """
        with connect(self.location) as connection:
            return self._read(connection)

    def create(self) -> None:
        """Create the table of rows, if it is not there."""
        with connect(self.location) as connection:
            self._prepare(connection)

    def insert(self, row: DeploymentRow) -> None:
        """Write the first row.

        Raises:
            ConflictError: there is one of that name.
        """
        statement = (
            "INSERT INTO {table} (name, " + ", ".join(_COLUMNS) + ") VALUES (%s"
            + ", %s" * len(_COLUMNS) + ") ON CONFLICT (name) DO NOTHING"
        )  # fmt: skip
        values = (self.location.name, *_values(row))
        with connect(self.location) as connection:
            self._prepare(connection)
            done = connection.execute(_sql(statement, table=self.table_name), values)
        if done.rowcount != 1:
            raise ConflictError(
                f"{TABLE} has a row named {self.location.name!r} already: another store switches "
                f"{self.location.table}",
                tip="go on with that store; or &name=OTHER in the URL makes another row",
            )

    def swap(self, row: DeploymentRow, *, expected: DeploymentRow) -> None:
        """Replace ``expected`` by ``row`` in one statement.

        Raises:
            ConflictError: the row is another one by now.
        """
        changes = ", ".join(f"{name} = %s" for name in _COLUMNS)
        statement = (
            f"UPDATE {{table}} SET {changes} WHERE name = %s AND epoch = %s AND manifest = %s"
        )
        where = (self.location.name, expected.epoch, expected.manifest)
        with connect(self.location) as connection:
            self._prepare(connection)
            done = connection.execute(
                _sql(statement, table=self.table_name), (*_values(row), *where)
            )
        if done.rowcount != 1:
            raise ConflictError(
                f"the row {self.location.name!r} of {TABLE} is no longer that of epoch "
                f"{expected.epoch}: somebody else switched it",
                tip="compatctl check says how the row and the store differ",
            )

    def elsewhere(self) -> str:
        """Nothing leads the application elsewhere: the row names the table."""
        return ""

    @property
    def table_name(self) -> tuple[str, str]:
        """The schema and the name of the table of rows."""
        return self.location.schema, TABLE

    def _prepare(self, connection: Connection) -> None:
        """Create the table of rows, or the columns that an older one lacks."""
        columns = self._columns(connection)
        if not columns:
            connection.execute(_sql(_CREATE, table=self.table_name))
        elif "search_sql" not in columns:
            connection.execute(_sql(_ADD, table=self.table_name))

    def _columns(self, connection: Connection) -> set[str]:
        """The columns of the table of rows; none where there is no such table.

        Raises:
            InputError: a table of that name has other columns.
        """
        found = connection.execute(
            "SELECT a.attname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid "
            "JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped",
            self.table_name,
        )
        columns = {name for (name,) in found.fetchall()}
        if columns and not columns >= {*_COLUMNS} - {*_ADDED}:
            raise InputError(
                f"{self.location.url}: {self.location.quoted(TABLE)} is there and is none of "
                "compatctl: it has other columns",
                tip="rename it: the row that the application reads is in a table of this name",
            )
        return columns

    def _read(self, connection: Connection) -> DeploymentRow | None:
        columns = self._columns(connection)
        if not columns:
            return None
        known = [name for name in _COLUMNS[:-1] if name in columns]
        names = ", ".join(known)
        found = connection.execute(
            _sql(
                f"SELECT {names}, to_char(switched_at AT TIME ZONE 'UTC', "
                '\'YYYY-MM-DD"T"HH24:MI:SS"Z"\') FROM {table} WHERE name = %s',
                table=self.table_name,
            ),
            (self.location.name,),
        ).fetchone()
        if found is None:
            return None
        entries: dict[str, Any] = dict(zip((*known, "switched_at"), found, strict=True))
        knots = entries.pop("calibration")
        entries["side_batches"] = tuple(entries.get("side_batches", ()))
        return DeploymentRow(**entries, calibration=knots and tuple(map(tuple, knots)))


def _values(row: DeploymentRow) -> tuple[Any, ...]:
    knots = None if row.calibration is None else json.dumps(row.calibration)
    values = {name: getattr(row, name) for name in _COLUMNS} | {
        "calibration": knots,
        "side_batches": list(row.side_batches),
    }
    return tuple(values.values())


def _sql(statement: str, **names: tuple[str, ...]) -> Any:
    """A statement with quoted names in the places of {NAME}."""
    from psycopg import sql

    return sql.SQL(statement).format(  # type: ignore[arg-type,unused-ignore]
        **{name: identifier(*parts) for name, parts in names.items()}
    )
