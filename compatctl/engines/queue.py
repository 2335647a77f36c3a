"""Blocks of items that several processes embed for one backfill: a queue in PostgreSQL.

Who embeds a block holds its row locked (FOR UPDATE SKIP LOCKED), and the others pass over it. The
lock ends with the connection, so the block of a process that was killed is free again. An answer
stays in its row until the backfill takes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from compatctl.engines.connection import NO_HURRY, Connection, connect, identifier, sql_of
from compatctl.engines.location import TableLocation

QUEUE = "compatctl_queue"
_CREATE = """
CREATE TABLE IF NOT EXISTS {table} (
    name text NOT NULL,
    block bigint NOT NULL,
    model text NOT NULL,
    skip_bad boolean NOT NULL,
    ids text[] NOT NULL,
    digests bytea NOT NULL,
    answer bytea,
    PRIMARY KEY (name, block)
)
"""


@dataclass(frozen=True, kw_only=True)
class QueuedBlock:
    """A block that is locked for whoever claimed it.

    Attributes:
        number: of the block in its step.
        ids: of its items, n. ``digests``: the sha256 of the content of each, n x 32 bytes.
    """

    number: int
    ids: tuple[str, ...]
    digests: bytes
    skip_bad: bool


class BlockQueue:
    """The blocks of the backfill of one row of ``compatctl_deployment`` that one model embeds, over
    an open connection."""

    def __init__(self, connection: Connection, location: TableLocation, model: str) -> None:

        self._connection = connection
        self._key = {"name": location.name, "model": model}
        self._table = identifier(location.schema, QUEUE)
        self._where = (location.schema, QUEUE)

    @property
    def exists(self) -> bool:
        """Whether there is a table of blocks."""
        text = "SELECT to_regclass(quote_ident(%s) || '.' || quote_ident(%s))"
        return self._connection.execute(text, self._where).fetchone()[0] is not None

    def begin(self) -> bool:
        """Make an empty queue, unless another process has one; it has it until it disconnects."""
        text = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
        lock = json.dumps([*self._where, self._key["name"]])
        if not self._connection.execute(text, (lock,)).fetchone()[0]:
            return False
        if not self.exists:
            self._run(_CREATE)
        self.clear()
        return True

    def clear(self) -> None:
        """Delete every block."""
        if self.exists:
            self._run("DELETE FROM {table} WHERE name = %(name)s")

    def put(self, block: QueuedBlock) -> None:
        """Add a block."""
        self._run(
            "INSERT INTO {table} (name, block, model, skip_bad, ids, digests) "
            "VALUES (%(name)s, %(block)s, %(model)s, %(skip)s, %(ids)s, %(digests)s)",
            block=block.number,
            skip=block.skip_bad,
            ids=list(block.ids),
            digests=block.digests,
        )

    def take(self, number: int) -> bytes | None:
        """The answer to a block, which is then deleted; None where there is none yet."""
        found = self._run(
            "DELETE FROM {table} WHERE name = %(name)s AND block = %(block)s "
            "AND answer IS NOT NULL RETURNING answer",
            block=number,
        ).fetchone()
        return None if found is None else bytes(found[0])

    @contextmanager
    def claimed(self, numbers: Sequence[int] | None = None) -> Iterator[QueuedBlock | None]:
        """A block that nobody embeds, the first of ``numbers`` or of all, for this process alone
        while the block of code runs; None where there is none."""
        among = "" if numbers is None else "AND block = ANY (%(numbers)s) "
        with self._connection.transaction():
            self._connection.execute(NO_HURRY)
            found = self._run(
                "SELECT block, ids, digests, skip_bad FROM {table} WHERE name = %(name)s AND "
                f"model = %(model)s AND answer IS NULL {among}"
                "ORDER BY block LIMIT 1 FOR UPDATE SKIP LOCKED",
                numbers=list(numbers or ()),
            ).fetchone()
            if found is None:
                yield None
                return
            number, ids, digests, skip = found
            yield QueuedBlock(number=number, ids=tuple(ids), digests=bytes(digests), skip_bad=skip)

    def answer(self, number: int, answer: bytes) -> None:
        """Write the answer to a claimed block."""
        self._run(
            "UPDATE {table} SET answer = %(answer)s WHERE name = %(name)s AND block = %(block)s",
            block=number,
            answer=answer,
        )

    def drop(self, number: int) -> None:
        """Delete a claimed block, whose answer stays in this process."""
        self._run("DELETE FROM {table} WHERE name = %(name)s AND block = %(block)s", block=number)

    def _run(self, text: str, **values: Any) -> Any:
        return self._connection.execute(sql_of(text, table=self._table), {**self._key, **values})


@contextmanager
def block_queue(location: TableLocation, model: str) -> Iterator[BlockQueue]:
    """The queue of a table's row for a model, over a connection of its own.

    Raises:
        InputError, CompatError: as ``connect``.
    """
    with connect(location) as connection:
        yield BlockQueue(connection, location, model)
