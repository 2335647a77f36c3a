"""What every reader of another engine's file returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Keys, Vectors
from compatctl.core.similarity import Similarity

BLOCK = 65_536
"""Rows that are read at once."""

M = 16
EF_CONSTRUCTION = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignRows:
    """N rows as another engine holds them, before they are normalised.

    Attributes:
        engine: what wrote the file: hnswlib, FAISS, usearch, numpy, Parquet.
        kind: the structure in it, by the engine's own name.
        similarity: what the engine ranks by; None if the file does not say.
        rows: (N, D) of any floating type, mostly mapped from a file: read it in blocks.
        keys: (N,) distinct whole numbers >= 0 that the file gives its rows; None if it has ids.
        ids: N texts, if the file names its items itself.
        labels: N classes, "" where there is none; None if the file has none.
        lossy: why the rows are not those that were indexed; "" if they are.
        M, ef_construction: the settings of the file's own HNSW graph, where it has one.
        dropped: (n,) keys of rows that are marked deleted and left out.
    """

    engine: str
    kind: str
    similarity: Similarity | None
    rows: NDArray[np.floating[Any]]
    keys: Keys | None = None
    ids: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    lossy: str = ""
    M: int = M
    ef_construction: int = EF_CONSTRUCTION
    dropped: Keys | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dim(self) -> int:
        """D of a row."""
        return int(self.rows.shape[1])

    def key_of(self, row: int) -> str:
        """The name of a row for messages."""
        if self.ids is not None:
            return f"id {self.ids[row]!r}"
        return f"key {row if self.keys is None else self.keys[row]}"

    def blocks(self) -> Iterator[tuple[int, Vectors]]:
        """The first row and a float32 copy (n, D) of each block; what float32 cannot hold becomes
        infinite."""
        for start in range(0, len(self), BLOCK):
            with np.errstate(over="ignore"):
                block = np.array(self.rows[start : start + BLOCK], np.float32, order="C")
            yield start, block
