"""Connections, and psycopg's errors as this program's."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compatctl.engines.location import URL_VARIABLE, TableLocation
from compatctl.errors import CompatError, InputError

Connection = Any
"""A connection of psycopg, in autocommit mode."""


def require_psycopg() -> None:
    """Refuse to go on without psycopg.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("psycopg") is None:
        raise InputError(
            "a table of PostgreSQL needs psycopg, which is not installed",
            tip="pip install 'compatctl[pgvector]'",
        )


@contextmanager
def connect(location: TableLocation) -> Iterator[Connection]:
    """A connection for the block; every error of psycopg in it becomes an InputError.

    Raises:
        InputError: psycopg is not installed, the server cannot be reached, or it refuses.
    """
    with postgres_errors(location):
        connection = open_connection(location)
        try:
            yield connection
        finally:
            connection.close()


def open_connection(location: TableLocation) -> Connection:
    """A connection that the caller closes; errors as ``connect``."""
    require_psycopg()
    import psycopg

    with postgres_errors(location):
        return psycopg.connect(
            autocommit=True,
            application_name="compatctl",
            **location.connection_parameters(),  # type: ignore[arg-type,unused-ignore]
        )


@contextmanager
def postgres_errors(location: TableLocation) -> Iterator[None]:
    """psycopg's errors as InputError, with the table's URL and the server's own reason."""
    require_psycopg()
    import psycopg

    try:
        yield
    except psycopg.OperationalError as error:
        raise CompatError(
            f"{location.url}: the server cannot be reached, or broke off: {_reason(error)}",
            tip="compatctl doctor URL says what is missing; a password comes from PGPASSWORD, "
            f"PGPASSFILE or {URL_VARIABLE}",
        ) from None
    except psycopg.Error as error:
        raise InputError(
            f"{location.url}: {_reason(error)}", tip="compatctl doctor URL says what is missing"
        ) from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
