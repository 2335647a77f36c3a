"""Embed the blocks of a backfill in several processes, which share a queue in PostgreSQL.

The backfill itself embeds too: without a worker it takes block after block. A worker has the same
store and data; it embeds a block only where its items have the content that the backfill saw.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from compatctl.core.arrays import Bytes
from compatctl.data import Dataset
from compatctl.deployment.ray_embedding import Block, embed_block
from compatctl.encoder import Encoder
from compatctl.engines import BlockQueue, QueuedBlock, TableLocation, block_queue
from compatctl.errors import CompatError, InputError
from compatctl.files import DIGEST_BYTES
from compatctl.manifest import Manifest
from compatctl.store import Store, table_file

if TYPE_CHECKING:
    from collections.abc import Iterable

AHEAD = 16
"""Blocks that are in the queue at once."""

_POLL_S = 0.05
"""Seconds between two looks at the queue."""


def queue_location(store: Store, manifest: Manifest) -> TableLocation | None:
    """Where the queue of a store's backfill is; None where its engine has none."""
    file = table_file(store.path, manifest)
    if file is None or not isinstance(file.location, TableLocation):
        return None
    return file.location.from_environment()


def embed_shared(
    encoder: Encoder, parts: Iterable[Dataset], location: TableLocation, *, skip_bad: bool
) -> Generator[Block, None, None]:
    """Embed each of the parts, here or in a worker, in their order. Close it to leave early.

    Raises:
        InputError: as ``Encoder.embed``. CompatError: the server cannot be reached.
    """
    with block_queue(location, encoder.sha256) as queue:
        if not queue.begin():  # another process has the queue: its workers are not ours
            for part in parts:
                yield embed_block(encoder, part, skip_bad=skip_bad)
            return
        try:
            yield from _Shared(encoder=encoder, queue=queue, skip_bad=skip_bad).blocks(iter(parts))
        finally:
            queue.clear()


@dataclass(kw_only=True, eq=False)
class _Shared:
    """The blocks of a step that wait: number -> items; and those that were embedded here early."""

    encoder: Encoder
    queue: BlockQueue
    skip_bad: bool
    waiting: dict[int, Dataset] = field(default_factory=dict)
    done: dict[int, Block] = field(default_factory=dict)

    def blocks(self, parts: Iterator[Dataset]) -> Iterator[Block]:
        number = 0
        while True:
            while len(self.waiting) < AHEAD and (part := next(parts, None)) is not None:
                self._put(number, part)
                number += 1
            if not self.waiting:
                return
            first = next(iter(self.waiting))
            yield self._block(first)
            del self.waiting[first]

    def _put(self, number: int, part: Dataset) -> None:
        self.waiting[number] = part
        if not len(part):
            self.done[number] = embed_block(self.encoder, part, skip_bad=self.skip_bad)
            return
        digests = contents(part).tobytes()
        block = QueuedBlock(number=number, ids=part.ids, digests=digests, skip_bad=self.skip_bad)
        self.queue.put(block)

    def _block(self, number: int) -> Block:
        """The answer to a block. While another process embeds it, this one embeds later ones."""
        while number not in self.done:
            if (raw := self.queue.take(number)) is not None:
                block = read_block(raw)
                self.waiting[number].remember(block.rows, block.digests)
                return block
            with self.queue.claimed([*self.waiting]) as claimed:
                if claimed is not None:
                    items = self.waiting[claimed.number]
                    self.done[claimed.number] = embed_block(
                        self.encoder, items, skip_bad=self.skip_bad
                    )
                    self.queue.drop(claimed.number)
            if claimed is None:
                time.sleep(_POLL_S)
        return self.done.pop(number)


@dataclass(frozen=True, kw_only=True)
class Worked:
    """What a worker did: ``blocks`` of ``items`` in all."""

    blocks: int = 0
    items: int = 0


def work(encoder: Encoder, data: Dataset, location: TableLocation, *, idle_s: float) -> Worked:
    """Embed blocks of the queue until there was none for ``idle_s`` seconds, or Ctrl-C.

    Raises:
        InputError: an item of a block is not in the data, or has another content, or does not
            decode. The block stays in the queue, for another process.
        CompatError: the server cannot be reached.
    """
    blocks = items = 0
    with block_queue(location, encoder.sha256) as queue:
        since = time.monotonic()
        try:
            while time.monotonic() - since < idle_s:
                if (embedded := _one(encoder, data, queue)) is None:
                    time.sleep(_POLL_S)
                    continue
                blocks, items, since = blocks + 1, items + embedded, time.monotonic()
        except KeyboardInterrupt:
            pass
    return Worked(blocks=blocks, items=items)


def _one(encoder: Encoder, data: Dataset, queue: BlockQueue) -> int | None:
    """Embed one block; how many items it has, or None where there is no block."""
    if not queue.exists:
        return None
    with queue.claimed() as claimed:
        if claimed is None:
            return None
        missing = [item for item in claimed.ids if item not in data.row_of]
        if missing:
            raise InputError(
                f"the data of this worker have no item {missing[0]}, which the backfill embeds",
                tip="give the worker the data of the backfill: --data",
            )
        part = data.take([data.row_of[item] for item in claimed.ids])
        if contents(part).tobytes() != claimed.digests:
            raise InputError(
                "items of the data of this worker have another content than those of the backfill",
                tip="give the worker the data of the backfill: --data",
            )
        block = embed_block(encoder, part, skip_bad=claimed.skip_bad)
        queue.answer(claimed.number, write_block(block))
        return len(claimed.ids)


def contents(items: Dataset) -> Bytes:
    """The sha256 (n, 32) of the content of each item; zero where it cannot be read."""
    digests = np.zeros((len(items), DIGEST_BYTES), np.uint8)
    for row in range(len(items)):
        try:
            digests[row] = np.frombuffer(bytes.fromhex(items.digest(row)), np.uint8)
        except CompatError:
            continue
    return digests


def write_block(block: Block) -> bytes:
    """A block as bytes: one line of JSON, then its arrays."""
    line = json.dumps({"shape": block.features.shape, "bad": block.bad}).encode()
    rows, features = block.rows.astype("<i8").tobytes(), block.features.astype("<f4").tobytes()
    return line + b"\n" + rows + block.digests.tobytes() + features


def read_block(raw: bytes) -> Block:
    """The block of ``write_block``."""
    line, _, rest = raw.partition(b"\n")
    entries = json.loads(line)
    n, dim = entries["shape"]
    digests = np.frombuffer(rest, np.uint8, n * DIGEST_BYTES, 8 * n).reshape(n, DIGEST_BYTES)
    features = np.frombuffer(rest, "<f4", n * dim, (8 + DIGEST_BYTES) * n).reshape(n, dim)
    return Block(
        rows=np.frombuffer(rest, "<i8", n).astype(np.int64),
        features=features.astype(np.float32),
        digests=digests.copy(),
        bad=tuple(entries["bad"]),
    )
