"""Embed the items of a backfill block by block, and keep each block until its step is written."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Bools, Bytes, Rows, Vectors
from compatctl.data import Dataset
from compatctl.deployment.bulk_embedding import IN_MEMORY, BulkEmbedding
from compatctl.deployment.ray_embedding import Block, RayCluster, embed_each
from compatctl.deployment.shared_embedding import embed_shared
from compatctl.encoder import Encoder
from compatctl.engines import TableLocation
from compatctl.errors import InputError
from compatctl.files import DIGEST_BYTES, os_errors
from compatctl.progress import Progress, silent
from compatctl.store.pending_rows import PendingRows


@dataclass(frozen=True, kw_only=True, eq=False)
class StepEmbedding:
    """The ``features`` of a step, of which ``passed`` items went through the network now; the
    others were kept. ``tried``: how many of the items were reached before it had to stop."""

    features: BulkEmbedding
    passed: int
    tried: int


def embed_step(
    encoder: Encoder,
    items: Dataset,
    kept: PendingRows | None,
    *,
    block: int,
    skip_bad: bool = False,
    stop: Callable[[], bool] = lambda: False,
    cluster: RayCluster | None = None,
    queue: TableLocation | None = None,
    progress: Progress = silent,
) -> StepEmbedding:
    """Embed the items in their order, in blocks of ``block``.

    ``kept``: has vectors from before, which are taken if the item's content is the same, and keeps
    each new block; None: nothing is kept. ``stop`` is called after each block and ends the work
    if it is true. ``cluster`` embeds, instead of this process; where it is stopped, blocks that it
    had begun are lost. ``queue``: where several processes share the blocks; those that workers
    embedded and that were not reached are lost too. The features are the caller's to close.

    Raises:
        InputError: as ``BulkEmbedding.of``.
        CompatError: no space for the features.
    """
    features = _empty(encoder)
    passed = tried = known = 0
    waiting = deque[_Part]()

    def fresh() -> Iterator[Dataset]:
        for part in _parts(kept, items, block):
            waiting.append(part)
            yield items.take(part.fresh)

    def report(done: int) -> None:
        progress("items embedded", known + done, len(items))

    try:
        embedded = (
            embed_shared(encoder, fresh(), queue, skip_bad=skip_bad)
            if queue is not None and cluster is None
            else embed_each(encoder, fresh(), cluster, skip_bad=skip_bad, report=report)
        )
        with closing(embedded) as answers:
            for answer in answers:
                part = waiting.popleft()
                _take(features, part.old, part.vectors, part.digests)
                passed += _keep(items.take(part.fresh), part.fresh, answer, kept, features)
                tried, known = part.stop, known + len(part.old)
                progress("items embedded", tried, len(items))
                if stop():
                    break
    except BaseException:
        features.file.close()
        raise
    return StepEmbedding(features=features, passed=passed, tried=tried)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """A block of a step: the rows (n,) whose ``vectors`` (n, D) were kept, made of contents with
    ``digests`` (n, 32); the rows that are ``fresh``; and the row after its last one."""

    old: Rows
    vectors: Vectors
    digests: Bytes
    fresh: Rows
    stop: int


def _parts(kept: PendingRows | None, items: Dataset, block: int) -> Iterator[_Part]:
    for start in range(0, len(items), block):
        rows = np.arange(start, min(start + block, len(items)))
        old, vectors, digests = _kept(kept, items, rows)
        yield _Part(
            old=rows[old],
            vectors=vectors,
            digests=digests,
            fresh=rows[~old],
            stop=int(rows[-1]) + 1,
        )


def _empty(encoder: Encoder) -> BulkEmbedding:
    file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
    return BulkEmbedding(dim=encoder.dim, rows=[], digests=bytearray(), bad=[], file=file)


def _keep(
    part: Dataset,
    rows: Rows,
    embedded: Block,
    kept: PendingRows | None,
    features: BulkEmbedding,
) -> int:
    """Keep what became of the items of a ``part``, which are at ``rows`` (n,) of the step; how many
    have a feature."""
    features.bad += embedded.bad
    _take(features, rows[embedded.rows], embedded.features, embedded.digests)
    if kept is not None and len(embedded.rows):
        ids = [part.ids[row] for row in embedded.rows.tolist()]
        kept.append(ids, embedded.features, _contents(part, embedded.rows))
    return len(embedded.rows)


def _take(features: BulkEmbedding, rows: Rows, vectors: Vectors, digests: Bytes) -> None:
    features.rows += rows.tolist()
    features.digests += digests.tobytes()
    with os_errors("writing", Path("features, to a temporary file")):
        features.file.write(vectors.tobytes())


def _kept(kept: PendingRows | None, items: Dataset, rows: Rows) -> tuple[Bools, Vectors, Bytes]:
    """(n,) which of the items at ``rows`` (n,) have a kept vector of their present content, these
    vectors (m, D) and the digests (m, 32) of what they were made of."""
    old = np.zeros(len(rows), bool)
    if kept is None or not len(kept):
        return old, np.zeros((0, 0), np.float32), np.zeros((0, DIGEST_BYTES), np.uint8)
    held = rows[kept.holds([items.ids[row] for row in rows.tolist()])]
    readable = held[[_is_readable(items, row) for row in held.tolist()]] if len(held) else held
    digests = _contents(items, readable)
    vectors, found = kept.lookup([items.ids[row] for row in readable.tolist()], digests)
    old[np.searchsorted(rows, readable[found])] = True
    known = digests[found] * (items.modality != "vector")  # as the encoder gives them
    return old, vectors[found], known


def _is_readable(items: Dataset, row: int) -> bool:
    try:
        items.digest(row)
    except InputError:
        return False
    return True


def _contents(items: Dataset, rows: Rows) -> Bytes:
    """The digests (n, 32) of the content of the items at rows (n,)."""
    digests = b"".join(bytes.fromhex(items.digest(row)) for row in rows.tolist())
    return np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)
