"""What an engine says of a table or collection, in one form for import and for doctor."""

from __future__ import annotations

from dataclasses import dataclass

from compatctl.engines.checks import Check, table_problems
from compatctl.engines.connection import Connection
from compatctl.engines.facts import VectorIndexFacts, read_facts
from compatctl.engines.location import TableLocation
from compatctl.engines.milvus.location import CollectionLocation

Location = TableLocation | CollectionLocation


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A table or collection.

    Attributes:
        location: with what the server added: the schema, or the collection behind an alias.
        exists: whether there is such a table. ``checks``: every check of it.
        id_type, vector_type: as the engine writes them; "" where there is no such column.
        dim: of the vector column; None where it is not fixed.
        indexes: of the vector column.
        iterative_scan: whether a scan of the index goes on where rows are dropped.
    """

    location: Location
    exists: bool
    checks: tuple[Check, ...]
    id_type: str = ""
    vector_type: str = ""
    dim: int | None = None
    indexes: tuple[VectorIndexFacts, ...] = ()
    iterative_scan: bool = False

    @property
    def usable(self) -> tuple[VectorIndexFacts, ...]:
        """The indexes that a search can use."""
        return tuple(index for index in self.indexes if not index.defect)

    @property
    def errors(self) -> tuple[Check, ...]:
        """Why the table cannot be adopted."""
        return tuple(check for check in self.checks if check.fatal)


def inspect_table(
    connection: Connection, location: TableLocation, dim: int | None = None
) -> Inspection:
    """A table of PostgreSQL. ``dim``: the model's dimension, where it is known."""
    server, facts, found = read_facts(connection, location)
    return Inspection(
        location=found,
        exists=bool(facts.kind),
        checks=table_problems(found, server, facts, dim=dim),
        id_type=facts.id_type or "",
        vector_type=facts.vector_type or "",
        dim=facts.dim,
        indexes=facts.indexes,
        iterative_scan=server.iterative_scan,
    )
