"""Connections, and psycopg's errors as this program's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from compatctl.engines.location import TableLocation
from compatctl.engines.url import URL_VARIABLE
from compatctl.errors import CompatError, InputError
from compatctl.libraries import require_library

T = TypeVar("T")
Connection = Any
"""A connection of psycopg, in autocommit mode."""


def require_psycopg() -> None:
    """Refuse to go on without psycopg.

    Raises:
        InputError: it is not installed, or does not load.
    """
    require_library("psycopg", extra="pgvector", subject="a table of PostgreSQL")


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

    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # it logs what follows an error
    with postgres_errors(location):
        return psycopg.connect(
            autocommit=True,
            **location.connection_parameters(),  # type: ignore[arg-type,unused-ignore]
        )


@contextmanager
def postgres_errors(location: TableLocation) -> Iterator[None]:
    """psycopg's errors as InputError, with the table's URL and the server's own reason."""
    require_psycopg()
    import psycopg

    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        raise CompatError(
            f"{location.url}: the server ended a statement: {_reason(error)}",
            tip="where a statement_timeout of the role or the database is too short for this, the "
            "environment variable PGOPTIONS='-c statement_timeout=0' lifts it",
        ) from None
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


def identifier(*parts: str) -> Any:
    """The name of a table or column as SQL writes it: schema and table, or table and column.

    psycopg takes a % for a placeholder in every statement with parameters, also in a quoted name.
    So a name with one is written with an escape, which every statement takes.
    """
    from psycopg import sql

    names = [_escaped(part) if "%" in part else sql.Identifier(part) for part in parts]
    return sql.SQL(".").join(names)


def _escaped(name: str) -> Any:
    """A name as U&"...", without a %."""
    from psycopg import sql

    plain = name.replace("\\", "\\\\").replace('"', '""').replace("%", "\\0025")
    return sql.SQL(f'U&"{plain}"')  # type: ignore[arg-type,unused-ignore]


def sql_of(text: str, **parts: Any) -> Any:
    """A statement with what is composed of quoted names in the places of {NAME}."""
    from psycopg import sql

    return sql.SQL(text).format(**parts)  # type: ignore[arg-type,unused-ignore]


NO_HURRY = (
    "SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN "
    "('idle_in_transaction_session_timeout', 'transaction_timeout')"
)
"""Lets a transaction last while this process computes, whatever the role's settings are."""


class ConnectionPool:
    """Idle connections to one server, for any number of threads: each call has one of its own."""

    def __init__(self, location: TableLocation) -> None:
        self._location = location
        self._idle: list[Connection] = []

    def run(self, action: Callable[[Connection], T]) -> T:
        """What ``action`` returns of a connection. Where an idle one was broken off, as by a server
        that was started again, it runs once more on a new one.

        Raises:
            InputError, CompatError: as ``connect``.
        """
        require_psycopg()
        import psycopg

        with postgres_errors(self._location):
            try:
                connection = self._idle.pop()  # atomic
            except IndexError:
                return self._use(open_connection(self._location), action)
            try:
                return self._use(connection, action)
            except psycopg.OperationalError:
                self.close()
                return self._use(open_connection(self._location), action)

    def close(self) -> None:
        """Close the idle connections; a later call opens new ones."""
        while self._idle:
            self._idle.pop().close()

    def __del__(self) -> None:
        self.close()

    def _use(self, connection: Connection, action: Callable[[Connection], T]) -> T:
        try:
            result = action(connection)
        except BaseException as error:
            if isinstance(error, CompatError) and not connection.closed:
                self._idle.append(connection)
            else:
                connection.close()
            raise
        self._idle.append(connection)
        return result


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
