"""Vectors that a backfill embedded and has not written yet: what a killed one need not embed again.

A file of one model: a header, and records of one size that are only appended, each with a checksum.
It belongs to no generation. gc and every removal delete it: what it holds can be computed again.
One process at a time writes it, the one that holds ``backfill_lock``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from compatctl.core.arrays import Bools, Bytes, Vectors, as_features, as_rows, check_positive
from compatctl.errors import InputError
from compatctl.files import make_folder, os_errors, sync, write_atomic
from compatctl.store._layout import is_regular_file
from compatctl.store._pending_layout import (
    HEADER_BYTES,
    header,
    pending_path,
    read_dim,
    record_bytes,
)
from compatctl.store._record_file import RemovedItems, is_file_at, read_vectors, write_at
from compatctl.store._side_layout import PREFIX_BYTES
from compatctl.store._side_records import (
    Positions,
    image_marks,
    item_keys,
    no_positions,
    pack,
    words_of,
)


@dataclass(eq=False)
class PendingRows:
    """Unit vectors (n, ``dim``) float32 of one model by item and image. Use it in one thread."""

    store: Path
    model_sha256: str
    dim: int
    _file: BinaryIO | None = None
    _records: Bytes = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    _positions: Positions = field(default_factory=no_positions)
    _removed: RemovedItems = field(init=False)

    def __post_init__(self) -> None:
        self._removed = RemovedItems(self.store)

    @classmethod
    def open(cls, store: Path, model_sha256: str, dim: int) -> Self:
        """The vectors that are there; the file is made by the first append.

        A file that does not begin as one of this model and dimension counts as empty.
        """
        check_positive(dim, "dim")
        pending = cls(Path(store), model_sha256, dim)
        pending._open()
        return pending

    @classmethod
    def existing(cls, store: Path, model_sha256: str) -> Self | None:
        """The vectors of a model, of whatever dimension; None if there are none."""
        path = pending_path(store, model_sha256)
        if not is_regular_file(path):
            return None
        with os_errors("reading", path), path.open("rb") as file:
            dim = read_dim(file.read(HEADER_BYTES), model_sha256)
        return None if dim is None else cls.open(store, model_sha256, dim)

    @property
    def path(self) -> Path:
        return pending_path(self.store, self.model_sha256)

    def __len__(self) -> int:
        """The number of items with a vector."""
        return len(self._positions)

    def holds(self, ids: Sequence[str]) -> Bools:
        """(n,) which items have a vector, of whatever image."""
        return np.asarray(self._positions.find(words_of(item_keys(ids))) >= 0, bool)

    def lookup(self, ids: Sequence[str], images: Bytes) -> tuple[Vectors, Bools]:
        """The vectors (n, D) of items with these image digests (n, 32), zero where there is none,
        and (n,) which were found. A record that is not what was written is not found."""
        keys, marks = item_keys(ids), image_marks(images, len(ids))
        positions = self._positions.find(words_of(keys))
        return read_vectors(self._records, positions, keys, marks, decode=_decode, dim=self.dim)

    def append(self, ids: Sequence[str], vectors: Vectors, images: Bytes) -> None:
        """Keep vectors (n, D) of items with these image digests (n, 32), on the disk when it ends.

        An item that was removed from the store is left out: the file exists before the list of
        removed items is read, so that a removal after that deletes the file.

        Raises:
            InputError: ``vectors`` are not n finite unit rows of ``dim`` dimensions.
            CompatError: no space, or no permission.
        """
        if vectors.shape != (len(ids), self.dim):
            raise InputError(f"vectors must be ({len(ids)}, {self.dim}), got {vectors.shape}")
        as_features(vectors, "pending vectors")
        if not is_file_at(self.path, self._file):
            self._create()
        assert self._file is not None
        erased = self._removed.among(ids)
        rows = as_rows(row for row, item in enumerate(ids) if item not in erased)
        keys = item_keys(ids)
        records = self._encoded(keys[rows], image_marks(images, len(ids))[rows], vectors[rows])
        offset, data = HEADER_BYTES + self._records.size, records.tobytes()
        with os_errors("writing", self.path):
            write_at(self._file.fileno(), data, offset)
        self._map()

    def delete(self) -> None:
        """Delete the file.

        Raises:
            CompatError: no permission.
        """
        self._close()
        if is_regular_file(self.path):
            with os_errors("deleting", self.path):
                self.path.unlink()
                sync(self.path.parent)

    def _encoded(self, keys: Bytes, marks: Bytes, vectors: Vectors) -> Bytes:
        words = np.ascontiguousarray(vectors, "<f4").view(np.uint8)
        return pack(keys, marks, words, record_bytes(self.dim))

    def _create(self) -> None:
        """An empty file in place of whatever is there."""
        self._close()
        with os_errors("creating", self.path.parent):
            make_folder(self.path.parent)
        write_atomic(self.path, header(self.model_sha256, self.dim))
        self._open()

    def _open(self) -> None:
        path = self.path
        if not is_regular_file(path):
            return
        writable = os.access(path, os.W_OK)
        with os_errors("reading", path):
            file = path.open("r+b" if writable else "rb")
        if read_dim(file.read(HEADER_BYTES), self.model_sha256) != self.dim:
            file.close()
            return
        self._file = file
        self._map()

    def _map(self) -> None:
        """Map what the file holds now; the words of all keys are in memory."""
        assert self._file is not None
        width = record_bytes(self.dim)
        count = (os.fstat(self._file.fileno()).st_size - HEADER_BYTES) // width
        known = len(self._records)
        if not count:
            self._records = np.zeros((0, width), np.uint8)
            return
        shape = (count, width)
        self._records = np.memmap(self._file, np.uint8, "r", HEADER_BYTES, shape)
        words = words_of(np.array(self._records[known:, :8]))
        self._positions = self._positions.merged(Positions.of(words, known))

    def _close(self) -> None:
        file, self._file = self._file, None
        self._records, self._positions = np.zeros((0, 0), np.uint8), no_positions()
        if file is not None:
            file.close()


def _decode(records: Bytes, dim: int) -> Vectors:
    """The vectors (n, D) of records (n, R)."""
    return np.ascontiguousarray(records[:, PREFIX_BYTES : PREFIX_BYTES + 4 * dim]).view("<f4")
