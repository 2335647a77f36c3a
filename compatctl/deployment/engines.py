"""What a store whose rows are in an engine can do, and what is refused; no numpy is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from compatctl.deployment.project import open_store
from compatctl.engines import open_connection_to, rows_of
from compatctl.errors import CompatError, UsageError
from compatctl.manifest import Manifest
from compatctl.recipe import Project
from compatctl.store import Store, recover, row_problems, table_file

ANSWERS = "the application searches with one statement of its own, which re-scores nothing"
"""Why re-scoring is refused."""
RESCORED = "it takes the free vectors that re-scoring kept, and the application re-scores nothing"
"""Why a promotion is refused."""


def in_engine(manifest: Manifest) -> bool:
    """Whether the rows of a generation are in an engine, not in a file of the store."""
    return manifest.index.kind == "tables"


def refuse_engine(manifest: Manifest, what: str, reason: str, tip: str = "") -> None:
    """Refuse what an engine cannot do.

    Raises:
        UsageError: the rows are in an engine; ``what`` is the command, ``reason`` why not.
    """
    if in_engine(manifest):
        raise UsageError(
            f"{what} is not for a store whose rows are in {manifest.index.engine}: {reason}",
            tip=tip or "docs/engines.md lists what each engine can do",
        )


def open_for_write(project: Project, *, dry_run: bool = False) -> Store:
    """The project's store, after a commit that was cut off between an engine's row and the
    manifest was completed; ``dry_run`` completes nothing.

    Raises:
        ConflictError: the row and the store contradict each other, or the store is locked.
        CompatError: the engine cannot be reached.
    """
    store = open_store(project)
    if dry_run or not in_engine(store.manifest):
        return store
    recover(store.path)
    return open_store(project)


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """The table of a store, as it is now.

    Attributes:
        table: its URL, without a password. ``row``: the name in compatctl_deployment.
        rows: rows with a vector; ``without_vector``: the others. None: the server is not reached.
        adopted: how many rows the store adopted. Whether these are the same rows with the same
            vectors only ``check`` knows, which reads them all.
        side_table: the table beside it that has ``side_rows`` of the adopted rows; "" without one.
        problems: how the row differs from the store, or why it is not known.
    """

    engine: str
    table: str
    row: str
    rows: int | None
    without_vector: int | None
    adopted: int
    side_table: str
    side_rows: int
    problems: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user must know."""
        if self.rows is None or self.rows == self.adopted:
            return self.problems
        other = (
            f"the table has {self.rows} rows with a vector, and the store adopted {self.adopted}: "
            "compatctl check lists the difference, compatctl add adopts it"
        )
        return (*self.problems, other)


def engine_status(store: Store) -> EngineStatus | None:
    """The state of a store's table; None where a file has the rows."""
    manifest = store.manifest
    file = table_file(store.path, manifest)
    if file is None:
        return None
    counts: tuple[int | None, int | None] = (None, None)
    try:
        location = file.location.from_environment()
        reader = rows_of(
            location,
            id_type=file.id_type,
            vector_type=file.vector_type,
            dim=manifest.index.dim,
        )
        problems = row_problems(store.path, manifest)
        with open_connection_to(location) as connection:
            counts = reader.count(connection)
    except CompatError as error:
        problems = [error.message]
    return EngineStatus(
        engine=manifest.index.engine,
        table=file.location.url,
        row=file.location.name,
        rows=counts[0],
        without_vector=counts[1],
        adopted=manifest.index.count,
        side_table="" if file.side is None else file.location.quoted(file.side.table),
        side_rows=0 if file.side is None else file.side.rows,
        problems=tuple(problems),
    )
