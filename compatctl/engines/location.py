"""Where a table is: a URL without its password, and the names of table and columns."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from compatctl.errors import DamagedError, UsageError

PGVECTOR = "pgvector"
"""The name of the engine in a manifest."""

URL_VARIABLE = "COMPATCTL_ENGINE_URL"
"""The variable whose URL says how to connect, in the place of the one that the store names."""

_SCHEMES = ("postgresql", "postgres")
_NAMES = ("id", "vector", "label", "name")
_LIBPQ = (
    "connect_timeout", "host", "options", "passfile", "port", "service", "sslcert", "sslkey",
    "sslmode", "sslrootcert", "target_session_attrs", "user",
)  # fmt: skip
"""What else a URL may say: parameters of libpq that hold no secret."""
_FORM = "postgresql://USER@HOST:PORT/DATABASE/TABLE?id=COLUMN&vector=COLUMN"


@dataclass(frozen=True, kw_only=True)
class TableLocation:
    """A table of PostgreSQL, and how to connect to it.

    Attributes:
        host, port, user, database: "" where libpq's default (PGHOST, PGUSER, ...) applies.
        parameters: further parameters of libpq, in order of their names.
        schema: "" before the server said in which schema of the search path the table is.
        id, vector, label: columns; label is "" where there is none.
        name: of the row of ``compatctl_deployment``.
        password: of the URL that was given; never written, never shown.
    """

    host: str
    port: str
    user: str
    database: str
    parameters: tuple[tuple[str, str], ...]
    schema: str
    table: str
    id: str
    vector: str
    label: str
    name: str
    password: str = field(default="", repr=False, compare=False)

    @property
    def url(self) -> str:
        """The URL without the password."""
        user = f"{quote(self.user, safe='')}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        table = f"{self.schema}.{self.table}" if self.schema else self.table
        names = {name: getattr(self, name) for name in _NAMES if getattr(self, name)}
        query = urlencode([*names.items(), *self.parameters])
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = f"{quote(self.database, safe='')}/{quote(table, safe='.')}"
        return f"postgresql://{user}{host}{port}/{where}?{query}"

    @property
    def quoted_table(self) -> str:
        """The table as SQL writes it: schema and name, each quoted where it must be."""
        return ".".join(_quoted(name) for name in (self.schema, self.table) if name)

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
        return {"connect_timeout": "10", **dict(self.parameters), **given}

    def from_environment(self) -> TableLocation:
        """The same table, reached as ``COMPATCTL_ENGINE_URL`` says, where that is set and this
        location has no password of its own.

        Raises:
            UsageError: the variable holds no such URL.
        """
        text = os.environ.get(URL_VARIABLE, "")
        if not text or self.password:
            return self
        other = _connection(text, URL_VARIABLE)
        names = ("host", "port", "user", "password", "parameters")
        changes: dict[str, Any] = {name: getattr(other, name) for name in names}
        return replace(self, **changes, database=other.database or self.database)

    def to_json(self) -> dict[str, Any]:
        """The entries as JSON values, without the password."""
        entries = asdict(self)
        del entries["password"]
        return {**entries, "parameters": dict(self.parameters)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], where: str) -> Self:
        """The location of ``to_json``; DamagedError if it is something else."""
        entries = {name: raw.get(name) for name in cls.__dataclass_fields__ if name != "password"}
        parameters = entries.pop("parameters")
        is_text = all(isinstance(value, str) for value in entries.values())
        if not is_text or not isinstance(parameters, dict):
            raise DamagedError(f"{where}: not the location of a table")
        if not all(isinstance(value, str) for value in parameters.values()):
            raise DamagedError(f"{where}: not the location of a table")
        return cls(**entries, parameters=tuple(sorted(parameters.items())))  # type: ignore[arg-type]


def _quoted(name: str) -> str:
    plain = re.fullmatch(r"[a-z_][a-z0-9_$]*", name) is not None
    return name if plain else '"' + name.replace('"', '""') + '"'


def is_table_url(text: str) -> bool:
    """Whether a text is the URL of a table of PostgreSQL."""
    return text.partition("://")[0] in _SCHEMES and "://" in text


def parse_table_url(text: str) -> TableLocation:
    """The table that a URL names, of the form postgresql://user@host:port/db/table?id=..&vector=..

    A table may be named schema.table. ``label`` names a column of classes, ``name`` the row of
    ``compatctl_deployment`` (default: the table's name). Other parameters are libpq's.

    Raises:
        UsageError: another form, or an unknown parameter.
    """
    location = _connection(text, "the URL")
    if not location.table or not location.database:
        raise UsageError(
            f"the URL names no {'table' if location.database else 'database'}", tip=f"{_FORM}"
        )
    missing = [name for name in ("id", "vector") if not getattr(location, name)]
    if missing:
        raise UsageError(f"the URL does not say which column is the {missing[0]}", tip=_FORM)
    return replace(location, name=location.name or location.table)


def _connection(text: str, where: str) -> TableLocation:
    """What a URL says, be it complete or not; messages never show it, as it may hold a password."""
    try:
        parts = urlsplit(text)
        port = str(parts.port or "")
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise UsageError(f"{where} is not one that can be read: {error}", tip=_FORM) from None
    if parts.scheme not in _SCHEMES or parts.fragment:
        raise UsageError(f"{where} is not of the form {_FORM}")
    path = [unquote(part) for part in parts.path.strip("/").split("/")]
    if len(path) > 2:
        raise UsageError(f"{where} has {len(path)} parts after the host, not 2", tip=_FORM)
    given = dict(pairs)
    if len(given) < len(pairs):
        raise UsageError(f"{where} has a parameter twice")
    named = {name: given.pop(name, "") for name in _NAMES}
    password = given.pop("password", "") or unquote(parts.password or "")
    if unknown := sorted(given.keys() - {*_LIBPQ}):
        raise UsageError(
            f"{where} has the unknown parameter {unknown[0]}",
            tip=f"known are {', '.join((*_NAMES, *_LIBPQ))}",
        )
    schema, dot, table = (path[1] if len(path) == 2 else "").rpartition(".")
    return TableLocation(
        host=parts.hostname or "",
        port=port,
        user=unquote(parts.username or ""),
        database=path[0],
        parameters=tuple(sorted(given.items())),
        schema=schema if dot else "",
        table=table,
        password=password,
        **named,
    )
