"""Where a collection of Milvus is: a URL without its token, and the names of its fields."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from compatctl.engines.location import URL_VARIABLE
from compatctl.errors import DamagedError, UsageError

MILVUS = "milvus"
"""The name of the engine in a manifest, and the scheme of its URLs."""
TOKEN_VARIABLE = "MILVUS_TOKEN"
"""The variable that holds the token, as user:password or an API key."""
PREFIX = "compatctl"
"""What the names of the properties begin with, unless the URL says another name."""
MAX_EF = 32_768
"""The largest ef that Milvus takes."""

_NAMES = ("id", "vector", "label", "name")
_FORM = "milvus://HOST:PORT/DATABASE/COLLECTION?id=FIELD&vector=FIELD"


@dataclass(frozen=True, kw_only=True)
class CollectionLocation:
    """A collection of Milvus, and how to connect to it.

    Attributes:
        port: "" for 19530. ``user``: "" where the token says who connects.
        secure: "true" for TLS, or "".
        table: the collection, never an alias once a server was asked; ``alias``: the alias that
            the URL named, or "".
        id, vector, label: fields; label is "" where there is none.
        name: what the names of the properties begin with.
        password: of the URL, or its token; never written, never shown.
    """

    host: str
    port: str
    user: str
    database: str
    secure: str
    table: str
    alias: str
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
        names = {name: getattr(self, name) for name in _NAMES}
        names["name"] = "" if self.name == PREFIX else self.name
        query = urlencode({**{k: v for k, v in names.items() if v}, **self._further()})
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = f"{quote(self.database, safe='')}/{quote(self.table, safe='')}"
        return f"{MILVUS}://{user}{host}{port}/{where}?{query}"

    @property
    def quoted_table(self) -> str:
        """The collection's name; Milvus quotes none."""
        return self.table

    @property
    def row(self) -> str:
        """What is switched, for messages."""
        return f"the row of the properties {self.name}.* of the collection {self.table}"

    def connection_parameters(self) -> dict[str, str]:
        """Keyword arguments of a client."""
        scheme = "https" if self.secure else "http"
        host = f"[{self.host}]" if ":" in self.host else self.host
        token = f"{self.user}:{self.password}" if self.user else self.password
        return {
            "uri": f"{scheme}://{host}:{self.port or '19530'}",
            "db_name": self.database,
            "token": token if self.password else os.environ.get(TOKEN_VARIABLE, ""),
        }

    def from_environment(self) -> CollectionLocation:
        """The same collection, reached as ``COMPATCTL_ENGINE_URL`` says, where that is set and this
        location has no password of its own.

        Raises:
            UsageError: the variable holds no such URL.
        """
        text = os.environ.get(URL_VARIABLE, "")
        if not text or self.password:
            return self
        other = _connection(text, URL_VARIABLE)
        names = ("host", "port", "user", "password", "secure")
        changes: dict[str, Any] = {name: getattr(other, name) for name in names}
        return replace(self, **changes, database=other.database or self.database)

    def to_json(self) -> dict[str, Any]:
        """The entries as JSON values, without the password."""
        entries = asdict(self)
        del entries["password"]
        return entries

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], where: str) -> Self:
        """The location of ``to_json``; DamagedError if it is something else."""
        entries = {name: raw.get(name) for name in cls.__dataclass_fields__ if name != "password"}
        if not all(isinstance(value, str) for value in entries.values()):
            raise DamagedError(f"{where}: not the location of a collection")
        return cls(**entries)  # type: ignore[arg-type]

    def _further(self) -> dict[str, str]:
        return {"secure": self.secure} if self.secure else {}


def parse_collection_url(text: str) -> CollectionLocation:
    """The collection that a URL names: milvus://host:port/database/collection?id=..&vector=..

    ``label`` names a field of classes, ``name`` what the names of the properties begin with.

    Raises:
        UsageError: another form, or an unknown parameter.
    """
    location = _connection(text, "the URL")
    if not location.table or not location.host:
        what = "collection" if location.host else "host"
        raise UsageError(f"the URL names no {what}", tip=_FORM)
    missing = [name for name in ("id", "vector") if not getattr(location, name)]
    if missing:
        raise UsageError(f"the URL does not say which field is the {missing[0]}", tip=_FORM)
    return replace(location, name=location.name or PREFIX)


def _connection(text: str, where: str) -> CollectionLocation:
    """What a URL says, be it complete or not; messages never show it, as it may hold a password."""
    try:
        parts = urlsplit(text)
        port = str(parts.port or "")
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise UsageError(f"{where} is not one that can be read: {error}", tip=_FORM) from None
    if parts.scheme != MILVUS or parts.fragment:
        raise UsageError(f"{where} is not of the form {_FORM}")
    path = [unquote(part) for part in parts.path.strip("/").split("/")]
    if len(path) > 2:
        raise UsageError(f"{where} has {len(path)} parts after the host, not 2", tip=_FORM)
    given = dict(pairs)
    if len(given) < len(pairs):
        raise UsageError(f"{where} has a parameter twice")
    named = {name: given.pop(name, "") for name in _NAMES}
    secure = given.pop("secure", "")
    password = given.pop("token", "") or unquote(parts.password or "")
    if given or secure not in {"", "true"}:
        unknown = (
            f"unknown parameter {min(given)}" if given else "parameter secure that is not true"
        )
        known = ", ".join((*_NAMES, "secure", "token"))
        raise UsageError(f"{where} has the {unknown}", tip=f"known are {known}")
    return CollectionLocation(
        host=parts.hostname or "",
        port=port,
        user=unquote(parts.username or ""),
        database=path[0],
        secure=secure,
        table=path[1] if len(path) == 2 else "",
        alias="",
        password=password,
        **named,
    )
