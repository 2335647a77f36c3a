"""What the layers above need from an index, whatever its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from compatctl.core.arrays import Keys, Scores, Vectors
from compatctl.progress import Progress, silent


class VectorIndex(Protocol):
    """Unit rows under uint64 keys, searched by cosine. Each engine has one class of this form."""

    def __len__(self) -> int:
        """The number of rows."""

    @property
    def max_ef(self) -> int:
        """The largest ef of a search; a larger one is taken as this, and finds no more."""

    def add(self, vectors: Vectors, keys: Keys, progress: Progress = silent) -> None:
        """Add unit rows (n, D) float32 under new keys (n,): all of them or, on InputError, none."""

    def keys(self) -> Keys:
        """Every key (N,) uint64, in the order of the rows."""

    def vectors(self, keys: Keys | None = None) -> Vectors:
        """The rows (n, D) float32 of keys (n,), or all; InputError where there is none of a key."""

    def search(self, queries: Vectors, k: int, ef: int | None = None) -> tuple[Keys, Scores]:
        """Keys and cosines (Q, min(k, N)) of approximately the nearest rows, nearest first.

        ``ef`` is the effort of the search; None: as the index is set up.
        """


class BuiltIndex(VectorIndex, Protocol):
    """A new index that no generation names yet."""

    def save(self, path: Path) -> None:
        """Write the file by which a generation names it."""
