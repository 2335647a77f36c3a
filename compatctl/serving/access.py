"""Who may ask the service: by its names, from its own page, with the token."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from fastapi import Request


class RefusedError(Exception):
    """An answer that is an error: the HTTP status, a word for programs, a text for people."""

    def __init__(self, *, status: int, error: str, message: str) -> None:
        super().__init__(message)
        self.status, self.error, self.message = status, error, message


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask.

    Attributes:
        token: what callers send as ``Authorization: Bearer``; None: nobody needs one.
        hosts: the names and addresses that a caller may have reached the service by, in small
            letters, so that no page of another site asks under its own name; None: any.
    """

    token: str | None
    hosts: frozenset[str] | None = None


def check_access(request: Request, access: Access) -> None:
    """Refuse another name of the service, a page of another site, and who has no token.

    Raises:
        RefusedError: for each of these.
    """
    host = request.headers.get("host", "")
    if access.hosts is not None and _name_of(host) not in access.hosts:
        raise RefusedError(
            status=400, error="host", message="this name is not one that the service answers to"
        )
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise RefusedError(status=403, error="origin", message="pages of other sites may not ask")
    if access.token is None or request.url.path in ("/", "/healthz", "/readyz"):
        return
    given = request.headers.get("authorization", "").encode("utf-8", "replace")
    if not hmac.compare_digest(given, f"Bearer {access.token}".encode()):
        raise RefusedError(
            status=401, error="token", message="send the token: Authorization: Bearer TOKEN"
        )


def _name_of(host: str) -> str:
    """The name or address of a Host header, without its port and brackets."""
    name, sign, port = host.rpartition(":")
    return (name if sign and port.isdecimal() else host).strip("[]").lower()
