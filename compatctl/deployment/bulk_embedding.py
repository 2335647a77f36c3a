"""Embed many items and add them to an index, with little memory.

All items are embedded first, then all are indexed; many features wait on disk. So encoder and index
are never in memory together, and features never all at once.
"""

from __future__ import annotations

import ctypes
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from compatctl.data import Dataset
from compatctl.deployment.ray_embedding import RayCluster, embed_each
from compatctl.encoder import Encoder
from compatctl.files import DIGEST_BYTES, os_errors
from compatctl.index import VectorIndex
from compatctl.progress import Progress, silent

BATCH = 4096
"""How many items are embedded, and features indexed, at once."""

IN_MEMORY = 32 << 20
"""Bytes of features that are kept in memory; beyond that, all are on disk."""

_M_MMAP_THRESHOLD, _MAPPED = -3, 1 << 18
"""An option of mallopt; and the size in bytes from which arrays are mapped and unmapped."""


@dataclass(kw_only=True, eq=False)
class BulkEmbedding:
    """Features (n, D) of items, in memory or in a temporary file; a context manager.

    Attributes:
        rows: rows of the embedded items in the data set, in the order of the features.
        digests: the sha256 of their images, 32 bytes each.
        bad: ids of items whose image does not decode, or whose feature is zero or not finite.
    """

    dim: int
    rows: list[int]
    digests: bytearray
    bad: list[str]
    file: IO[bytes]

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        items: Dataset,
        *,
        skip_bad: bool = False,
        cluster: RayCluster | None = None,
        progress: Progress = silent,
    ) -> Self:
        """Embed the items, here or on a cluster.

        Raises:
            InputError: an image does not decode, or its feature is zero or not finite (unless
                ``skip_bad``), or of another length than 1; or there is no such cluster.
            CompatError: no space in the temporary folder; or workers of the cluster die.
        """
        file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        result = cls(dim=encoder.dim, rows=[], digests=bytearray(), bad=[], file=file)
        starts = range(0, len(items), BATCH)
        parts = (items.take(range(at, min(at + BATCH, len(items)))) for at in starts)
        where = cluster if starts else None

        def report(done: int) -> None:
            progress("items embedded", done, len(items))

        embedded = embed_each(encoder, parts, where, skip_bad=skip_bad, report=report)
        with closing(embedded) as blocks:
            for start, block in zip(starts, blocks, strict=True):
                result.bad += block.bad
                result.rows += (block.rows + start).tolist()
                result.digests += block.digests.tobytes()
                with os_errors("writing", Path("features, to a temporary file")):
                    result.file.write(block.features.tobytes())
                report(len(result.rows) + len(result.bad))
        return result

    def add_to(
        self,
        index: VectorIndex,
        first_key: int,
        progress: Progress = silent,
        *,
        count: int | None = None,
    ) -> None:
        """Add the first ``count`` features (default: all) under keys that start at ``first_key``.

        The index changes in memory only.

        Raises:
            InputError: a key exists already, or the dimensions differ.
        """
        self.file.seek(0)
        total = len(self.rows) if count is None else count
        for start in range(0, total, BATCH):
            n = min(BATCH, total - start)
            raw = self.file.read(n * self.dim * 4)
            features = np.frombuffer(raw, np.float32).reshape(n, self.dim)
            keys = np.arange(n, dtype=np.uint64) + np.uint64(first_key + start)
            index.add(features, keys, _from(start, total, progress))
            progress("items indexed", start + n, total)

    def image_digests(self) -> NDArray[np.uint8]:
        """The sha256 (n, 32) of the images, in the order of ``rows``."""
        return np.frombuffer(bytes(self.digests), np.uint8).reshape(-1, DIGEST_BYTES)

    def features_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """The features (n, D) at ``positions`` (n,) in ``rows``, in any order."""
        features = np.empty((len(positions), self.dim), np.float32)
        for row, position in enumerate(positions.tolist()):
            self.file.seek(position * self.dim * 4)
            features[row] = np.frombuffer(self.file.read(self.dim * 4), np.float32)
        return features

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()


def release_memory() -> None:
    """Return freed memory to the system, now and from now on.

    Otherwise glibc keeps it: without a fixed threshold, freeing a large array raises the size up to
    which glibc keeps the next one (mallopt(3)).
    """
    libc = ctypes.CDLL(None)
    trim, option = getattr(libc, "malloc_trim", None), getattr(libc, "mallopt", None)
    if trim is not None and option is not None:
        option(_M_MMAP_THRESHOLD, _MAPPED)
        trim(0)


def _from(start: int, total: int, progress: Progress) -> Progress:
    """Reports the items of one batch, after the ``start`` before it."""
    return lambda stage, done, n: progress("items indexed", start + done, total)
