"""Where a table of PostgreSQL is: a URL without its password, and the names of its columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self
from urllib.parse import quote, unquote

from compatctl.engines.url import NAMES, EngineLocation, scheme_of, split_url, unknown_parameter
from compatctl.errors import DamagedError, UsageError

PGVECTOR = "pgvector"
"""The name of the engine in a manifest."""

_SCHEMES = ("postgresql", "postgres")
_LIBPQ = (
    "application_name", "channel_binding", "connect_timeout", "gssencmode", "host", "keepalives",
    "keepalives_count", "keepalives_idle", "keepalives_interval", "options", "passfile", "port",
    "require_auth", "service", "sslcert", "sslcrl", "sslkey", "sslmode", "sslrootcert",
    "target_session_attrs", "tcp_user_timeout", "user",
)  # fmt: skip
"""What else a URL may say: parameters of libpq that hold no secret."""


@dataclass(frozen=True, kw_only=True)
class TableLocation(EngineLocation):
    """A table of PostgreSQL, and how to connect to it.

    Attributes:
        host, port, user, database: "" where libpq's default (PGHOST, PGUSER, ...) applies.
        parameters: further parameters of libpq, in order of their names.
        schema: "" before the server said in which schema of the search path the table is.
        name: of the row of ``compatctl_deployment``.
    """

    what: ClassVar[str] = "table"
    form: ClassVar[str] = "postgresql://USER@HOST:PORT/DATABASE/TABLE?id=COLUMN&vector=COLUMN"
    ways: ClassVar[tuple[str, ...]] = ("host", "port", "user", "password", "parameters")

    parameters: tuple[tuple[str, str], ...]
    schema: str

    @property
    def url(self) -> str:
        """The URL without the password."""
        parts = [quote(name, safe="").replace(".", "%2E") for name in (self.schema, self.table)]
        table = ".".join(part for part in parts if part)
        names = {name: getattr(self, name) for name in NAMES}
        return self.to_url("postgresql", table, names | dict(self.parameters))

    @property
    def quoted_table(self) -> str:
        """The table as SQL writes it: schema and name, each quoted where it must be."""
        return self.quoted(self.table)

    def quoted(self, table: str) -> str:
        """A table of the same schema as SQL writes it."""
        return ".".join(_quoted(name) for name in (self.schema, table) if name)

    @property
    def row(self) -> str:
        """What is switched, for messages."""
        return f"the row {self.name!r} of compatctl_deployment"

    def connection_parameters(self) -> dict[str, str]:
        """Keyword arguments of a connection; without a password libpq looks for one itself."""
        known = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "dbname": self.database,
            "password": self.password,
        }
        given = {name: value for name, value in known.items() if value}
        own = {"connect_timeout": "10", "application_name": "compatctl"}
        return {**own, **dict(self.parameters), **given}

    def to_json(self) -> dict[str, Any]:
        """The entries as JSON values, without the password."""
        return {**super().to_json(), "parameters": dict(self.parameters)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], where: str) -> Self:
        """The location of ``to_json``; DamagedError if it is something else."""
        parameters = raw.get("parameters")
        if not isinstance(parameters, dict) or not all(
            isinstance(value, str) for value in parameters.values()
        ):
            raise DamagedError(f"{where}: not the location of a {cls.what}")
        plain = super().from_json({**raw, "parameters": ""}, where)
        return replace(plain, parameters=tuple(sorted(parameters.items())))

    @classmethod
    def read(cls, text: str, where: str) -> Self:
        """What a URL says, be it complete or not; UsageError for another form."""
        url = split_url(text, where, schemes=_SCHEMES, form=cls.form)
        given = url.further()
        password = given.pop("password", "") or url.password
        if unknown := sorted(given.keys() - {*_LIBPQ}):
            raise unknown_parameter(unknown[0], where, (*NAMES, *_LIBPQ))
        schema, dot, table = url.written.rpartition(".")  # a dot of a name is written as %2E
        return cls(
            host=url.host,
            port=url.port,
            user=url.user,
            database=url.database,
            parameters=tuple(sorted(given.items())),
            schema=unquote(schema) if dot else "",
            table=unquote(table),
            password=password,
            **url.names(),
        )


_RESERVED = (
    " all analyse analyze and any array as asc asymmetric authorization binary both case cast "
    "check collate collation column concurrently constraint create cross current_catalog "
    "current_date current_role current_schema current_time current_timestamp current_user default "
    "deferrable desc distinct do else end except false fetch for foreign freeze from full grant "
    "group having ilike in initially inner intersect into is isnull join lateral leading left "
    "like limit localtime localtimestamp natural not notnull null offset on only or order outer "
    "overlaps placing primary references returning right select session_user similar some "
    "symmetric system_user table tablesample then to trailing true union unique user using "
    "variadic verbose when where window with "
)
"""The words of SQL that name a table only when they are quoted (pg_get_keywords of version 18)."""


def _quoted(name: str) -> str:
    plain = re.fullmatch(r"[a-z_][a-z0-9_$]*", name) is not None and f" {name} " not in _RESERVED
    return name if plain else '"' + name.replace('"', '""') + '"'


def is_table_url(text: str) -> bool:
    """Whether a text is the URL of a table of PostgreSQL."""
    return scheme_of(text) in _SCHEMES


def parse_table_url(text: str) -> TableLocation:
    """The table that a URL names, of the form postgresql://user@host:port/db/table?id=..&vector=..

    A table may be named schema.table. ``label`` names a column of classes, ``name`` the row of
    ``compatctl_deployment`` (default: the table's name). Other parameters are libpq's.

    Raises:
        UsageError: another form, or an unknown parameter.
    """
    location = TableLocation.read(text, "the URL")
    if not location.table or not location.database:
        what = "table" if location.database else "database"
        raise UsageError(f"the URL names no {what}", tip=location.form)
    location.require_columns("column")
    return replace(location, name=location.name or location.table)
