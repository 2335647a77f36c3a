"""The URL of an engine's table: what all engines' URLs have in common, and never the password.

A message of this module shows no part of a URL that may belong to a password: one whose / ? # or @
is not written as %2F %3F %23 %40 moves the borders of every other part.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from compatctl.errors import DamagedError, UsageError

URL_VARIABLE = "COMPATCTL_ENGINE_URL"
"""The variable whose URL says how to connect, in the place of the one that the store names."""

NAMES = ("id", "vector", "label", "name")
"""What the URL of every engine may say as parameters."""

_ENCODED = "in a password, write / ? # @ as %2F %3F %23 %40"


@dataclass(frozen=True, kw_only=True)
class EngineUrl:
    """The parts of a URL, decoded, be it complete or not.

    Attributes:
        database, table: "" where the path does not say it. ``written``: the table as it was
            written, not decoded.
        parameters: what follows the question mark, each once.
    """

    host: str
    port: str
    user: str
    password: str = field(repr=False)
    database: str
    table: str
    written: str
    parameters: Mapping[str, str] = field(repr=False)

    def names(self) -> dict[str, str]:
        """The parameters that every engine has, "" where one is not given."""
        return {name: self.parameters.get(name, "") for name in NAMES}

    def further(self) -> dict[str, str]:
        """The other parameters."""
        return {key: value for key, value in self.parameters.items() if key not in NAMES}


def scheme_of(text: str) -> str:
    """The scheme of a URL, in small letters; "" for what is none. A slash may be missing."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text)
    return found[1].lower() if found else ""


def split_url(text: str, where: str, *, schemes: Collection[str], form: str) -> EngineUrl:
    """The parts of a URL of one of these schemes. ``where`` names it in messages.

    Raises:
        UsageError: another form, or a parameter that is given twice.
    """
    if scheme_of(text) not in schemes or "://" not in text:
        raise UsageError(f"{where} is not of the form {form}")
    try:
        parts = urlsplit(text)
        port = str(parts.port or "")
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise UsageError(
            f"{where} is not one that can be read", tip=f"{form}; {_ENCODED}"
        ) from None
    behind = parts.path if parts.username else parts.path + parts.query
    if parts.fragment or "@" in behind:
        raise UsageError(f"{where} is not of the form {form}", tip=_ENCODED)
    written = parts.path.strip("/").split("/")
    path = [unquote(part) for part in written]
    if len(path) > 2:
        raise UsageError(f"{where} has {len(path)} parts after the host, not 2", tip=form)
    if len(dict(pairs)) < len(pairs):
        raise UsageError(f"{where} has a parameter twice")
    return EngineUrl(
        host=parts.hostname or "",
        port=port,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=path[0],
        table=path[1] if len(path) == 2 else "",
        written=written[1] if len(path) == 2 else "",
        parameters=dict(pairs),
    )


def unknown_parameter(name: str, where: str, known: Collection[str]) -> UsageError:
    """The error for a parameter that an engine does not know."""
    shown = f" {name}" if re.fullmatch(r"[A-Za-z_-]{1,40}", name) else ""
    return UsageError(
        f"{where} has an unknown parameter{shown}", tip=f"known are {', '.join(known)}"
    )


@dataclass(frozen=True, kw_only=True)
class EngineLocation(ABC):
    """Where rows are, and how to connect: what the locations of all engines have.

    Attributes:
        host, port, user, database: "" where the engine's default applies.
        table: that has the rows. ``id``, ``vector``, ``label``: its columns; label may be "".
        name: of what is switched.
        password: of the URL that was given; never written, never shown.
    """

    what: ClassVar[str]
    """The word for a table in messages."""
    form: ClassVar[str]
    """The form of a URL, for messages."""
    ways: ClassVar[tuple[str, ...]]
    """The entries, beside the database, that ``from_environment`` replaces."""

    host: str
    port: str
    user: str
    database: str
    table: str
    id: str
    vector: str
    label: str
    name: str
    password: str = field(default="", repr=False, compare=False)

    @classmethod
    @abstractmethod
    def read(cls, text: str, where: str) -> Self:
        """What a URL says, be it complete or not; UsageError for another form."""

    def from_environment(self) -> Self:
        """The same rows, reached as ``COMPATCTL_ENGINE_URL`` says, where that is set and this
        location has no password of its own.

        Raises:
            UsageError: the variable holds no such URL.
        """
        text = os.environ.get(URL_VARIABLE, "")
        if not text or self.password:
            return self
        other = self.read(text, URL_VARIABLE)
        changes: dict[str, Any] = {name: getattr(other, name) for name in self.ways}
        return replace(self, **changes, database=other.database or self.database)

    def require_same_way(self) -> None:
        """Refuse a variable that contradicts this location, which a command line names: rows would
        be read here and switched there.

        Raises:
            UsageError: ``COMPATCTL_ENGINE_URL`` names another host, port, user or database, or
                holds no such URL.
        """
        there = self.from_environment()
        for name in ("host", "port", "user", "database"):
            here = getattr(self, name)
            if here and getattr(there, name) not in {"", here}:
                raise UsageError(
                    f"the URL names the {name} {here}, and {URL_VARIABLE} names "
                    f"{getattr(there, name)}",
                    tip=f"unset {URL_VARIABLE}, or leave the {name} out of the URL",
                )

    def to_json(self) -> dict[str, Any]:
        """The entries as JSON values, without the password."""
        entries = asdict(self)
        del entries["password"]
        return entries

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], where: str) -> Self:
        """The location of ``to_json``; DamagedError if it is something else."""
        names = [entry.name for entry in fields(cls) if entry.name != "password"]
        entries = {name: raw.get(name) for name in names}
        if not all(isinstance(value, str) for value in entries.values()):
            raise DamagedError(f"{where}: not the location of a {cls.what}")
        return cls(**entries)  # type: ignore[arg-type]

    def require_columns(self, column: str) -> None:
        """Refuse a URL without the columns of ids and vectors; ``column`` is the engine's word."""
        for name in ("id", "vector"):
            if not getattr(self, name):
                raise UsageError(
                    f"the URL does not say which {column} is the {name}", tip=self.form
                )

    def to_url(self, scheme: str, path: str, parameters: Mapping[str, str]) -> str:
        """A URL without the password; parameters that are "" are left out."""
        user = f"{quote(self.user, safe='')}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        query = urlencode({name: value for name, value in parameters.items() if value})
        return f"{scheme}://{user}{host}{port}/{quote(self.database, safe='')}/{path}?{query}"
