"""Items into an index: all are embedded first, then all are added; many features wait on disk.

So encoder and index are never in memory together, and features never all at once.
"""

from __future__ import annotations

import ctypes
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from compatctl.data import Dataset
from compatctl.encoder import Encoder
from compatctl.files import clear_errors
from compatctl.index import HnswIndex
from compatctl.manifest import DIGEST_BYTES
from compatctl.progress import Progress, silent

AT_ONCE = 4096
"""Items that are embedded, and features that are added, at once."""

IN_MEMORY = 32 << 20
"""Bytes of features that wait in memory; more wait on disk."""

_M_MMAP_THRESHOLD, _MAPPED = -3, 1 << 18
"""mallopt's option, and the bytes from which on an array is mapped, and unmapped when freed."""


@dataclass(kw_only=True, eq=False)
class Embedding:
    """Features (n, D) of items, in memory, or in a temporary file that ends with it.

    ``rows`` are the positions of the embedded items in the data set, in the order of the features;
    ``digests`` (32 bytes each) are of their images; ``bad`` the ids of those whose image does not
    decode. Used as a context manager.
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
        progress: Progress = silent,
    ) -> Self:
        """Embed the items.

        Raises:
            InputError: an image does not decode (unless ``skip_bad``), or its row is not finite and
                of unit length.
            CompatError: there is no room in the temporary folder.
        """
        waiting = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        found = cls(dim=encoder.dim, rows=[], digests=bytearray(), bad=[], file=waiting)
        for start in range(0, len(items), AT_ONCE):
            part = np.arange(start, min(start + AT_ONCE, len(items)))
            done = encoder.embed(items.take(part), skip_bad=skip_bad)
            found.bad += [item.id for item in done.bad]
            found.rows += part[done.rows].tolist()
            found.digests += done.digests.tobytes()
            with clear_errors("writing", Path("features, to a temporary file")):
                found.file.write(done.features.tobytes())
            progress("items embedded", len(found.rows) + len(found.bad), len(items))
        return found

    def add_to(
        self,
        index: HnswIndex,
        first_key: int,
        progress: Progress = silent,
        *,
        count: int | None = None,
    ) -> None:
        """Add the features, or the first ``count`` of them, under the keys from ``first_key`` on;
        in memory only.

        Raises:
            InputError: a key is there already; the dimension is another.
        """
        self.file.seek(0)
        total = len(self.rows) if count is None else count
        for start in range(0, total, AT_ONCE):
            n = min(AT_ONCE, total - start)
            raw = self.file.read(n * self.dim * 4)
            features = np.frombuffer(raw, np.float32).reshape(n, self.dim)
            index.add(features, np.arange(n, dtype=np.uint64) + np.uint64(first_key + start))
            progress("items indexed", start + n, total)

    def image_digests(self) -> NDArray[np.uint8]:
        """The sha256 (n, 32) of the images, in the order of ``rows``."""
        return np.frombuffer(bytes(self.digests), np.uint8).reshape(-1, DIGEST_BYTES)

    def at(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """The features (n, D) at ``places`` (n,), in any order, of those in ``rows``."""
        found = np.empty((len(places), self.dim), np.float32)
        for number, place in enumerate(places.tolist()):
            self.file.seek(place * self.dim * 4)
            found[number] = np.frombuffer(self.file.read(self.dim * 4), np.float32)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.file.close()


def give_back_memory() -> None:
    """What was freed goes back to the system, and so does what is freed from now on.

    glibc keeps it otherwise, and an index comes next: without a fixed threshold every large array
    that is freed raises the size up to which glibc keeps the next one (mallopt(3)).
    """
    libc = ctypes.CDLL(None)
    trim, option = getattr(libc, "malloc_trim", None), getattr(libc, "mallopt", None)
    if trim is not None and option is not None:
        option(_M_MMAP_THRESHOLD, _MAPPED)
        trim(0)
