"""What a server says of itself, of pgvector and of a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from compatctl.engines.connection import Connection
from compatctl.engines.deployment_row import TABLE
from compatctl.engines.location import TableLocation

OPERATORS = {"cosine": "<=>", "ip": "<#>", "l2": "<->"}
"""A space -> the operator that orders by it, nearest first."""

_KINDS = {"r": "table", "p": "partitioned table", "v": "view", "m": "materialized view",
          "f": "foreign table"}  # fmt: skip
MAX_EF = 1000
"""The largest hnsw.ef_search that pgvector takes."""


@dataclass(frozen=True, kw_only=True)
class ServerFacts:
    """A server.

    Attributes:
        version: of PostgreSQL, as 180004; ``version_text`` as 18.4.
        vector: version of pgvector in the database, None where it is not created.
        schema: in which pgvector is. ``reachable``: statements find its types and operators.
        user: the role of the connection. ``read_only``: its transactions may write nothing.
    """

    version: int
    version_text: str
    vector: tuple[int, ...] | None
    schema: str
    reachable: bool
    user: str
    read_only: bool

    @property
    def iterative_scan(self) -> bool:
        """Whether an HNSW scan goes on where a filter drops rows: pgvector 0.8 or newer."""
        return self.vector is not None and self.vector >= (0, 8)

    @property
    def vector_text(self) -> str:
        """The version of pgvector as text; "" without it."""
        return ".".join(map(str, self.vector or ()))


@dataclass(frozen=True, kw_only=True)
class VectorIndexFacts:
    """An hnsw or ivfflat index of the vector column.

    ``space``: cosine, ip or l2, or the operator class if it is another. ``defect``: why a search
    cannot use it; "" if it can.
    """

    name: str
    method: str
    space: str
    m: int
    ef_construction: int
    defect: str


@dataclass(frozen=True, kw_only=True)
class TableFacts:
    """A table.

    Attributes:
        kind: table, partitioned table, view, ...; "" where there is none.
        schema: the one in which it was found.
        id_type, label_type, vector_type: as PostgreSQL writes them, without a length; None: there
            is no such column.
        id_unique: whether an index keeps ids apart. ``id_null``: whether an id may be NULL.
        dim: of the column's type; None where the type leaves it open.
        indexes: of the vector column.
        rows_hidden: policies of row-level security decide which rows the role sees.
        may_read: the role may read the table. ``may_switch``: it may write the row, or create the
            table of rows. ``may_create``: it may create tables in the schema.
    """

    kind: str
    schema: str = ""
    columns: tuple[str, ...] = ()
    id_type: str | None = None
    id_unique: bool = False
    id_null: bool = True
    label_type: str | None = None
    vector_type: str | None = None
    dim: int | None = None
    indexes: tuple[VectorIndexFacts, ...] = ()
    rows_hidden: bool = False
    may_read: bool = False
    may_switch: bool = False
    may_create: bool = False

    @property
    def usable(self) -> tuple[VectorIndexFacts, ...]:
        """The indexes that a search can use."""
        return tuple(index for index in self.indexes if not index.defect)


def read_facts(
    connection: Connection, location: TableLocation
) -> tuple[ServerFacts, TableFacts, TableLocation]:
    """The facts, and the location with the schema in which the table is."""
    server = _server(connection)
    found = connection.execute(
        "SELECT c.oid, n.nspname, c.relkind::text, has_table_privilege(c.oid, 'SELECT'), "
        "row_security_active(c.oid) "
        "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = "
        "to_regclass(CASE WHEN %(schema)s = '' THEN '' ELSE quote_ident(%(schema)s) || '.' END "
        "|| quote_ident(%(table)s)) AND c.relname = %(table)s",  # a name that is too long is cut
        {"schema": location.schema, "table": location.table},
    ).fetchone()
    if found is None:
        return server, TableFacts(kind=""), location
    oid, schema, kind, may_read, rows_hidden = found
    location = replace(location, schema=schema)
    columns = _columns(connection, oid)
    vector = columns.get(location.vector)
    id_column = columns.get(location.id)
    label = columns.get(location.label) if location.label else None
    facts = TableFacts(
        kind=_KINDS.get(kind, f"relation of kind {kind}"),
        schema=schema,
        columns=tuple(columns),
        id_type=None if id_column is None else id_column["type"],
        id_unique=id_column is not None and _is_unique(connection, oid, id_column["number"]),
        id_null=id_column is None or not id_column["not_null"],
        label_type=None if label is None else label["type"],
        vector_type=None if vector is None else vector["type"],
        dim=None if vector is None or vector["modifier"] < 1 else vector["modifier"],
        indexes=() if vector is None else _indexes(connection, oid, vector["number"]),
        rows_hidden=rows_hidden,
        may_read=may_read,
        may_switch=_may_switch(connection, schema),
        may_create=_may_create(connection, schema),
    )
    return server, facts, location


def _server(connection: Connection) -> ServerFacts:
    number, text, user, read_only = connection.execute(
        "SELECT current_setting('server_version_num')::int, current_setting('server_version'), "
        "current_user::text, current_setting('transaction_read_only')::boolean"
    ).fetchone()
    found = connection.execute(
        "SELECT e.extversion, n.nspname, to_regtype('vector') IS NOT NULL FROM pg_extension e "
        "JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    ).fetchone()
    version, schema, reachable = found or ("", "", False)
    return ServerFacts(
        version=number,
        version_text=text,
        vector=tuple(map(int, version.split("."))) if version else None,
        schema=schema,
        reachable=reachable,
        user=user,
        read_only=read_only,
    )


def _columns(connection: Connection, oid: int) -> dict[str, dict[str, Any]]:
    rows = connection.execute(
        "SELECT attname, attnum, format_type(atttypid, NULL), atttypmod, attnotnull "
        "FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        (oid,),
    )
    return {
        name: {
            "number": number,
            "type": kind.rpartition(".")[2],
            "modifier": modifier,
            "not_null": full,
        }
        for name, number, kind, modifier, full in rows
    }


def _is_unique(connection: Connection, oid: int, number: int) -> bool:
    found = connection.execute(
        "SELECT 1 FROM pg_index WHERE indrelid = %s AND indisunique AND indisvalid "
        "AND indnkeyatts = 1 AND indkey[0] = %s AND indpred IS NULL",
        (oid, number),
    )
    return found.fetchone() is not None


def _indexes(connection: Connection, oid: int, number: int) -> tuple[VectorIndexFacts, ...]:
    rows = connection.execute(
        "SELECT ic.relname, am.amname, opc.opcname, i.indisvalid, i.indpred IS NOT NULL, "
        "i.indkey[0] = 0, coalesce(ic.reloptions, '{}') FROM pg_index i "
        "JOIN pg_class ic ON ic.oid = i.indexrelid JOIN pg_am am ON am.oid = ic.relam "
        "JOIN pg_opclass opc ON opc.oid = i.indclass[0] WHERE i.indrelid = %s "
        "AND am.amname IN ('hnsw', 'ivfflat') AND i.indkey[0] IN (0, %s) ORDER BY ic.relname",
        (oid, number),
    )
    return tuple(_index(*row) for row in rows)


def _index(  # noqa: PLR0917
    name: str,
    method: str,
    opclass: str,
    valid: bool,
    partial: bool,
    expression: bool,
    options: list[str],
) -> VectorIndexFacts:
    space = opclass.removesuffix("_ops").rpartition("_")[2]
    settings = dict(option.split("=", 1) for option in options)
    defects = {
        "it is not valid: its build failed or goes on": not valid,
        "it is of an expression, and the column itself is searched": expression,
        "it is of part of the rows": partial,
        f"it ranks by {opclass}": space not in OPERATORS,
    }
    return VectorIndexFacts(
        name=name,
        method=method,
        space=space if space in OPERATORS else opclass,
        m=int(settings.get("m", 16)),
        ef_construction=int(settings.get("ef_construction", 64)),
        defect=next((defect for defect, holds in defects.items() if holds), ""),
    )


def _may_create(connection: Connection, schema: str) -> bool:
    query = "SELECT has_schema_privilege(%s, 'CREATE')"
    return bool(connection.execute(query, (schema,)).fetchone()[0])


def _may_switch(connection: Connection, schema: str) -> bool:
    may_create, may_write = connection.execute(
        "SELECT has_schema_privilege(%(schema)s, 'CREATE'), (SELECT has_table_privilege(c.oid, "
        "'SELECT') AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, "
        "'UPDATE') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %(schema)s AND c.relname = %(name)s)",
        {"schema": schema, "name": TABLE},
    ).fetchone()
    return bool(may_create if may_write is None else may_write)
