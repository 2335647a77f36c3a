"""Two engines behind one set of functions: each takes the side of its location.

A connection is psycopg's or a client of pymilvus; only what belongs to one engine looks into it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from compatctl.engines.checks import side_problem
from compatctl.engines.connection import (
    NO_HURRY,
    Connection,
    ConnectionPool,
    connect,
    require_psycopg,
)
from compatctl.engines.deployment_row import DeploymentRow, DeploymentTable
from compatctl.engines.facts import OPERATORS, read_facts
from compatctl.engines.inspection import Inspection, Location, inspect_table
from compatctl.engines.location import PGVECTOR, TableLocation, is_table_url, parse_table_url
from compatctl.engines.milvus.connection import ClientPool, connect_milvus, require_pymilvus
from compatctl.engines.milvus.facts import OPERATORS as METRICS
from compatctl.engines.milvus.facts import inspect_collection
from compatctl.engines.milvus.location import (
    MILVUS,
    CollectionLocation,
    is_collection_url,
    parse_collection_url,
)
from compatctl.engines.milvus.properties import DeploymentProperties
from compatctl.engines.milvus.rows import CollectionRows
from compatctl.engines.milvus.search import CollectionSearch
from compatctl.engines.milvus.side_rows import (
    SideCollections,
    erase_from_collections,
    sweep_collections,
)
from compatctl.engines.milvus.side_schema import collection_problem
from compatctl.engines.rows import RowBlock, TableRows
from compatctl.engines.search import FencedSearch, Found, Scan
from compatctl.engines.side import ID, VECTOR, SideTable, batch_table, side_name, vector_type_of
from compatctl.engines.side_rows import SideRows, erase_rows, sweep_sides
from compatctl.engines.statement import SearchStatement, application_search
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


class Side(Protocol):
    """Vectors that a store computed, beside the rows of an application.

    A batch is what one generation adds. It is not searched before that generation's file names it.
    """

    def create(self, connection: Connection) -> None:
        """Make what holds the rows, if it is not there."""

    def begin(self, connection: Connection) -> int:
        """The number of a new batch, larger than every one before."""

    def write(self, connection: Connection, batch: int, blocks: Iterable[RowBlock]) -> None:
        """Append rows to a batch."""

    def index(self, connection: Connection, batch: int, *, m: int, ef_construction: int) -> None:
        """Make the index, once the rows of a batch are there."""

    def rehearse(self, connection: Connection, vectors: NDArray[np.float32], *, m: int) -> None:
        """Write and index vectors (n, D) that nobody sees, to see how long that takes."""

    def count(self, connection: Connection, batch: int) -> int:
        """How many rows a batch has; 0 where it is gone."""

    def blocks(self, connection: Connection) -> Generator[RowBlock, None, None]:
        """Every valid row, in blocks."""

    def find(self, connection: Connection, ids: Sequence[str]) -> Iterator[RowBlock]:
        """The valid rows of these ids, in any order."""


class GrowingSide(Side, Protocol):
    """A side whose batches have some rows each, so that a small one follows the application."""

    def copy(self, connection: Connection, batch: int, ids: Sequence[str]) -> None:
        """Append the application's own rows of these ids to a batch."""

    def end(self, connection: Connection, batch: int, ids: Sequence[str]) -> None:
        """Append to a batch that the rows of these ids have ended."""


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


@contextmanager
def snapshot_of(connection: Connection, location: Location) -> Iterator[None]:
    """One snapshot for what is read in the block, where the engine has snapshots."""
    if not isinstance(location, TableLocation):
        yield
        return
    connection.execute(f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {NO_HURRY}")
    yield  # after an error the connection is closed
    connection.execute("COMMIT")


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
    """Searches of these rows, and of those in the file's side table, at one epoch; None: not
    fenced."""
    if isinstance(rows, CollectionRows):
        beside = None if file.side is None else _side_collections(file).rows()
        return CollectionSearch(rows, file.operator, epoch, beside)
    return FencedSearch(
        rows.location, file.vector_type, file.operator, epoch, file.iterative_scan, file.side
    )


def search_sql_of(file: TableFile, ef: int) -> str:
    """The statement that an application runs; "" where the engine has none."""
    if not isinstance(file.location, TableLocation):
        return ""
    statement = SearchStatement(
        location=file.location,
        vector_type=file.vector_type,
        operator=file.operator,
        side=file.side,
        fenced=True,
    )
    return application_search(statement, name=file.location.name, ef=ef)


def side_of(file: TableFile) -> Side:
    """The file's side table, reached as the environment says."""
    location = file.location.from_environment()
    assert file.side is not None
    if not isinstance(location, TableLocation):
        return _side_collections(file)
    return SideRows(location=location, id_type=file.id_type, operator=file.operator, side=file.side)


def growing_side_of(file: TableFile) -> GrowingSide:
    """The file's side table, where ``batches_are_whole`` is false."""
    side = side_of(file)
    assert isinstance(side, SideRows)
    return side


def _side_collections(file: TableFile) -> SideCollections:
    location = file.location.from_environment()
    assert file.side is not None
    assert isinstance(location, CollectionLocation)
    return SideCollections(
        location=location, id_type=file.id_type, operator=file.operator, side=file.side
    )


def new_side(file: TableFile, model: str, *, dim: int, table_dim: int, shared: bool) -> SideTable:
    """A side table without a batch, for the space that a model (its digest) began."""
    location, milvus = file.location, batches_are_whole(file)
    return SideTable(
        table=side_name(
            f"{location.table}_{location.name}" if milvus else location.name, model, plain=milvus
        ),
        vector_type=file.vector_type if milvus else vector_type_of(dim),
        dim=dim,
        table_dim=table_dim,
        shared=shared,
        whole=False,
        batches=(),
        rows=0,
    )


def batches_are_whole(file: TableFile) -> bool:
    """Whether a batch has every row of its generation: so it is where one is a collection."""
    return isinstance(file.location, CollectionLocation)


def searched_table(file: TableFile) -> tuple[str, str, str]:
    """What an application searches: the table as the engine writes it, its id and its vectors."""
    location, side = file.location, file.side
    if side is None or not side.whole:
        return location.quoted_table, location.id, location.vector
    if batches_are_whole(file):
        return side_table_name(file), location.id, location.vector
    return side_table_name(file), ID, VECTOR


def side_table_name(file: TableFile) -> str:
    """The file's side table as the engine writes it; "" without one."""
    if file.side is None:
        return ""
    if batches_are_whole(file):
        return batch_table(file.side.table, file.side.batches[-1])
    return file.location.quoted(file.side.table)


def side_refusal(connection: Connection, location: Location) -> str:
    """Why no side table can be made beside a table; "" if one can."""
    if not isinstance(location, TableLocation):
        return collection_problem(connection, location)
    server, facts, found = read_facts(connection, location)
    return side_problem(found, server, facts)


def erase_beside(
    connection: Connection, location: Location, id_type: str, ids: Sequence[str]
) -> None:
    """Delete the rows of these ids from everything that was computed beside a table."""
    if isinstance(location, TableLocation):
        erase_rows(connection, location, id_type, ids)
    else:
        erase_from_collections(connection, location, id_type, ids)


def sweep_sides_of(
    connection: Connection, location: Location, keep: Mapping[str, set[int]]
) -> tuple[str, ...]:
    """Delete what ``keep`` (a side table -> its batches) does not name; what was changed."""
    if not isinstance(location, TableLocation):
        return sweep_collections(connection, location, keep)
    return sweep_sides(connection, location, keep)
