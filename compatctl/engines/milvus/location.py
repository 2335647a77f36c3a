"""Where a collection of Milvus is: a URL without its token, and the names of its fields."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import ClassVar, Self
from urllib.parse import quote

from compatctl.engines.url import NAMES, EngineLocation, scheme_of, split_url, unknown_parameter
from compatctl.errors import UsageError

MILVUS = "milvus"
"""The name of the engine in a manifest, and the scheme of its URLs."""
TOKEN_VARIABLE = "MILVUS_TOKEN"
"""The variable that holds the token, as user:password or an API key."""
PREFIX = "compatctl"
"""What the names of the properties begin with, unless the URL says another name."""
MAX_EF = 32_768
"""The largest ef that Milvus takes."""


@dataclass(frozen=True, kw_only=True)
class CollectionLocation(EngineLocation):
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

    what: ClassVar[str] = "collection"
    form: ClassVar[str] = "milvus://HOST:PORT/DATABASE/COLLECTION?id=FIELD&vector=FIELD"
    ways: ClassVar[tuple[str, ...]] = ("host", "port", "user", "password", "secure")

    secure: str
    alias: str

    @property
    def url(self) -> str:
        """The URL without the password."""
        names = {name: getattr(self, name) for name in NAMES}
        names["name"] = "" if self.name == PREFIX else self.name
        return self.to_url(MILVUS, quote(self.table, safe=""), names | {"secure": self.secure})

    @property
    def quoted_table(self) -> str:
        """The collection's name; Milvus quotes none."""
        return self.table

    def quoted(self, table: str) -> str:
        """Another collection, as ``quoted_table`` says this one."""
        return table

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

    @classmethod
    def read(cls, text: str, where: str) -> Self:
        """What a URL says, be it complete or not; UsageError for another form."""
        url = split_url(text, where, schemes=(MILVUS,), form=cls.form)
        given = url.further()
        secure, token = given.pop("secure", ""), given.pop("token", "")
        known = (*NAMES, "secure", "token")
        if given:
            raise unknown_parameter(min(given), where, known)
        if secure not in {"", "true"}:
            raise UsageError(
                f"{where} has the parameter secure that is not true",
                tip=f"known are {', '.join(known)}",
            )
        return cls(
            host=url.host,
            port=url.port,
            user=url.user,
            database=url.database,
            secure=secure,
            table=url.table,
            alias="",
            password=token or url.password,
            **url.names(),
        )


def is_collection_url(text: str) -> bool:
    """Whether a text is the URL of a collection of Milvus."""
    return scheme_of(text) == MILVUS


def parse_collection_url(text: str) -> CollectionLocation:
    """The collection that a URL names: milvus://host:port/database/collection?id=..&vector=..

    ``label`` names a field of classes, ``name`` what the names of the properties begin with.

    Raises:
        UsageError: another form, or an unknown parameter.
    """
    location = CollectionLocation.read(text, "the URL")
    if not location.table or not location.host:
        what = "collection" if location.host else "host"
        raise UsageError(f"the URL names no {what}", tip=location.form)
    location.require_columns("field")
    return replace(location, name=location.name or PREFIX)
