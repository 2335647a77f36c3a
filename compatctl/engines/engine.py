"""Two engines behind one set of functions: each takes the side of its location.

A connection is psycopg's or a client of pymilvus; only what belongs to one engine looks into it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from compatctl.engines.connection import Connection, ConnectionPool, connect, require_psycopg
from compatctl.engines.deployment_row import DeploymentRow, DeploymentTable
from compatctl.engines.facts import OPERATORS
from compatctl.engines.inspection import Inspection, Location, inspect_table
from compatctl.engines.location import PGVECTOR, TableLocation, is_table_url, parse_table_url
from compatctl.engines.milvus.connection import ClientPool, connect_milvus, require_pymilvus
from compatctl.engines.milvus.facts import OPERATORS as METRICS
from compatctl.engines.milvus.facts import inspect_collection
from compatctl.engines.milvus.location import MILVUS, is_collection_url, parse_collection_url
from compatctl.engines.milvus.properties import DeploymentProperties
from compatctl.engines.milvus.rows import CollectionRows
from compatctl.engines.milvus.search import CollectionSearch
from compatctl.engines.rows import RowBlock, TableRows
from compatctl.engines.search import FencedSearch, Found, Scan
from compatctl.engines.table_file import TableFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")


class Rows(Protocol):
    """The rows of a table or collection that have a vector."""

    @property
    def id_type(self) -> str:
        """Of the id column."""

    @property
    def vector_type(self) -> str:
        """Of the vector column."""

    @property
    def location(self) -> Any:
        """Where they are."""

    def blocks(self, connection: Connection) -> Generator[RowBlock, None, None]:
        """Every row in blocks; who stops early closes it."""

    def find(self, connection: Connection, ids: Sequence[str]) -> Iterator[RowBlock]:
        """The rows of these ids, in any order."""

    def count(self, connection: Connection) -> tuple[int, int]:
        """The number of rows with a vector, and of those without."""


class Deployment(Protocol):
    """The row that an application reads."""

    def read(self) -> DeploymentRow | None:
        """The row, or None."""

    def insert(self, row: DeploymentRow) -> None:
        """Write the first row; ConflictError if there is one."""

    def swap(self, row: DeploymentRow, *, expected: DeploymentRow) -> None:
        """Replace ``expected``; ConflictError if the row is another one."""

    def elsewhere(self) -> str:
        """How the application may be led to other rows; "" if it is not."""


class EngineSearch(Protocol):
    """Searches of one table at one epoch."""

    @property
    def scans(self) -> tuple[Scan, ...]:
        """The scans to try, each where the one before found too few rows."""

    def search(
        self,
        connection: Connection,
        queries: NDArray[np.float32],
        k: int,
        ef: int,
        scan: Scan = Scan.PLAIN,
    ) -> list[Found]:
        """At most ``k`` rows for each query (Q, D); StaleEpochError at another epoch."""


class Pool(Protocol):
    """Connections to one server, for any number of threads."""

    def run(self, action: Callable[[Connection], T]) -> T:
        """What ``action`` returns of a connection."""


def is_engine_url(text: str) -> bool:
    """Whether a text is the URL of an engine, not a path."""
    return is_table_url(text) or is_collection_url(text)


def parse_url(text: str) -> Location:
    """The table or collection that a URL names; UsageError for another form."""
    return parse_collection_url(text) if is_collection_url(text) else parse_table_url(text)


def engine_of(location: Location) -> str:
    """The engine's name in a manifest."""
    return PGVECTOR if isinstance(location, TableLocation) else MILVUS


def require_engine(engine: str) -> None:
    """Refuse to go on without an engine's library, with InputError."""
    if engine == MILVUS:
        require_pymilvus()
    else:
        require_psycopg()


def open_connection_to(location: Location) -> AbstractContextManager[Connection]:
    """A connection for the block; the library's errors become InputError or CompatError."""
    return connect(location) if isinstance(location, TableLocation) else connect_milvus(location)


def pool_of(location: Location) -> Pool:
    """Connections that threads share."""
    return ConnectionPool(location) if isinstance(location, TableLocation) else ClientPool(location)


def inspect(connection: Connection, location: Location, dim: int | None = None) -> Inspection:
    """What the server says; ``dim`` is the model's, where it is known."""
    if isinstance(location, TableLocation):
        return inspect_table(connection, location, dim)
    return inspect_collection(connection, location, dim)


def rows_of(location: Location, *, id_type: str, vector_type: str, dim: int) -> Rows:
    """The rows of a table or collection."""
    if isinstance(location, TableLocation):
        return TableRows(location=location, id_type=id_type, vector_type=vector_type, dim=dim)
    return CollectionRows(location=location, id_type=id_type, vector_type=vector_type, dim=dim)


def deployment_of(location: Location) -> Deployment:
    """What is switched."""
    if isinstance(location, TableLocation):
        return DeploymentTable(location=location)
    return DeploymentProperties(location=location)


def operators_of(location: Location) -> dict[str, str]:
    """A space -> what the engine calls the order by it."""
    return OPERATORS if isinstance(location, TableLocation) else METRICS


def search_of(file: TableFile, rows: Rows, epoch: int | None) -> EngineSearch:
    """Searches of these rows at one epoch; None: not fenced."""
    if isinstance(rows, CollectionRows):
        return CollectionSearch(rows, file.operator, epoch)
    return FencedSearch(rows.location, file.vector_type, file.operator, epoch, file.iterative_scan)
