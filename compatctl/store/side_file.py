"""The side file of a model: free vectors of gallery items, made at the first touch and kept.

Records are only appended. A lookup compares each record's checksum, so an append that was cut off
is never served. Vectors are kept as float16: half of the disk and of the mapping; a cosine changes
by less than 0.001.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from compatctl.core.arrays import (
    Bools,
    Bytes,
    Rows,
    Vectors,
    Words,
    as_features,
    as_rows,
    check_positive,
)
from compatctl.errors import InputError
from compatctl.files import TEMPORARY, os_errors, sync, write_atomic
from compatctl.store._layout import is_regular_file
from compatctl.store._record_file import BLOCK, RemovedItems, is_file_at, read_vectors, write_at
from compatctl.store._side_layout import (
    HEADER_BYTES,
    header,
    made_side_lock,
    read_header,
    record_bytes,
    side_bytes,
    side_lock,
    side_path,
    side_size,
)
from compatctl.store._side_records import (
    Positions,
    decode,
    encode,
    image_marks,
    intact,
    is_of,
    item_keys,
    no_positions,
    words_of,
)


@dataclass(eq=False)
class SideFile:
    """The free vectors of one model, kept by item. Use one object in one thread.

    Several processes may append and look up at once. What one appends, another finds at its next
    lookup. Reading writes nothing; the file is made by the first append.
    """

    store: Path
    model_sha256: str
    dim: int
    max_bytes: int | None
    allowed: Callable[[], int] | None = None
    """How many more vectors an append may write, counted under its lock; None: no limit."""
    _file: BinaryIO | None = None
    _mapping: Bytes = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    _older: Positions = field(default_factory=no_positions)
    _newer: Positions = field(default_factory=no_positions)
    _removed: RemovedItems = field(init=False)

    def __post_init__(self) -> None:
        self._removed = RemovedItems(self.store)

    @classmethod
    def open(cls, store: Path, model_sha256: str, dim: int, max_bytes: int | None = None) -> Self:
        """The side file of a model whose free vectors have ``dim`` dimensions.

        ``max_bytes``: an append that would make the file larger writes only what fits. About 12
        bytes an item are in memory; the vectors are mapped.

        Raises:
            DamagedError: the file's header is not what was written.
            InputError: it has vectors of another dimension.
        """
        check_positive(dim, "dim")
        side = cls(Path(store), model_sha256, dim, max_bytes)
        side.refresh()
        return side

    @classmethod
    def existing(cls, store: Path, model_sha256: str) -> Self | None:
        """The side file of a model, without a limit; None if there is none.

        Raises:
            DamagedError: the file's header is not what was written.
        """
        size = side_size(store, model_sha256)
        return None if size is None else cls.open(store, model_sha256, size.dim)

    @property
    def path(self) -> Path:
        return side_path(self.store, self.model_sha256)

    @property
    def count(self) -> int:
        """How many items have a vector."""
        return len(self._older) + int((self._older.find(self._newer.words) < 0).sum())

    @property
    def bytes(self) -> int:
        """The size of the file; 0 without one."""
        return self.path.stat().st_size if is_regular_file(self.path) else 0

    @property
    def full(self) -> bool:
        """Whether ``max_bytes`` leaves no room for another vector."""
        return self._room() == 0

    def refresh(self) -> None:
        """Take notice of what other processes appended or removed.

        Raises:
            DamagedError: the file's header is not what was written.
        """
        if not is_file_at(self.path, self._file):
            self.close()
            self._open()
        if self._file is None:
            return
        known = len(self._mapping)
        count = (os.fstat(self._file.fileno()).st_size - HEADER_BYTES) // record_bytes(self.dim)
        if count > known:
            self._map(count)
            words = np.ascontiguousarray(self._mapping[known:, :8]).view("<u8")[:, 0]
            self._newer = self._newer.merged(Positions.of(words, known))
            if len(self._newer) > BLOCK:
                self._older, self._newer = self._older.merged(self._newer), no_positions()

    def lookup(self, ids: Sequence[str], images: Bytes | None = None) -> tuple[Vectors, Bools]:
        """The free vectors (n, D) of items, zero where there is none, and (n,) which were found.

        ``images`` (n, 32) uint8: the sha256 of the items' images, as the catalogue has them. A
        vector of another image is not found. Default: images are not compared.
        """
        return self.lookup_keys(item_keys(ids), images)

    def lookup_keys(self, keys: Bytes, images: Bytes | None = None) -> tuple[Vectors, Bools]:
        """``lookup`` by the ``item_keys`` (n, 16) of items: no loop over items runs in Python."""
        self.refresh()
        marks = None if images is None else image_marks(images, len(keys))
        return read_vectors(
            self._mapping, self._find(keys), keys, marks, decode=decode, dim=self.dim
        )

    def holds(self, ids: Sequence[str]) -> Bools:
        """(n,) which items have a vector, of whatever image. Nothing of it is read."""
        self.refresh()
        return np.asarray(self._find(item_keys(ids)) >= 0, bool)

    @property
    def writable(self) -> bool:
        """Whether this process may append: the permissions allow it, and there is room."""
        folder = self.path.parent
        return os.access(folder if folder.is_dir() else self.store, os.W_OK) and not self.full

    def append(self, ids: Sequence[str], vectors: Vectors, images: Bytes | None = None) -> int:
        """Keep vectors (n, D) of items; return how many were written.

        Not written: an item that has a vector of the same image; an item that was removed from the
        store; what ``max_bytes`` and ``allowed`` leave no room for.

        Raises:
            InputError: ``vectors`` are not n finite unit rows of ``dim`` dimensions.
            ConflictError: another process holds the lock of the side files.
            CompatError: no space, or no permission.
        """
        if vectors.shape != (len(ids), self.dim):
            raise InputError(f"free vectors must be ({len(ids)}, {self.dim}), got {vectors.shape}")
        if not len(ids):
            return 0
        as_features(vectors, "free vectors")
        keys, marks = item_keys(ids), image_marks(images, len(ids))
        with made_side_lock(self.store, "keeping free vectors"):
            self.refresh()
            rows = self._new_rows(ids, keys, marks)[: self._room()]
            if len(rows) and self.allowed is not None:
                rows = rows[: self.allowed()]
            if len(rows):
                self._write(encode(keys[rows], marks[rows], vectors[rows]))
        self.refresh()
        return len(rows)

    def remove(self, ids: Sequence[str]) -> int:
        """Write the file again without these items; return how many of them had a vector.

        The bytes are gone from the file system's files when this returns; so is what an append
        that was cut off left, and what is damaged.

        Raises:
            ConflictError: another process holds the lock of the side files.
            CompatError: no space, or no permission; the file is unchanged.
        """
        return self._rewrite(item_keys(ids), drop=True)

    def retain(self, ids: Sequence[str]) -> int:
        """``remove`` all items but these."""
        return self._rewrite(item_keys(ids), drop=False)

    def damaged(self) -> int:
        """How many records of the file are not what was written; each is read."""
        self.refresh()
        blocks = range(0, len(self._mapping), BLOCK)
        return sum(int((~intact(self._mapping[at : at + BLOCK])).sum()) for at in blocks)

    def strangers(self, ids: Sequence[str]) -> int:
        """How many intact records are of other items than these."""
        self.refresh()
        known = np.sort(words_of(item_keys(ids)))
        return sum(int((good & ~_among(words_of(block), known)).sum()) for block, good in self)

    def close(self) -> None:
        """Let go of the mapping; the next use opens the file again."""
        file, self._file = self._file, None
        self._mapping = np.zeros((0, record_bytes(self.dim)), np.uint8)
        self._older, self._newer = no_positions(), no_positions()
        if file is not None:
            file.close()

    def __iter__(self) -> Iterator[tuple[Bytes, Bools]]:
        """Blocks of records (b, R), and which are intact (b,)."""
        for start in range(0, len(self._mapping), BLOCK):
            block = self._mapping[start : start + BLOCK]
            yield block, intact(block)

    def _open(self) -> None:
        path = self.path
        if not is_regular_file(path):
            return
        with os_errors("reading", path):
            file = path.open("rb")
        try:
            dim = read_header(file.read(HEADER_BYTES), path)
            if dim != self.dim:
                raise InputError(
                    f"{path} has vectors of {dim} dimensions, the model's free output {self.dim}"
                )
        except BaseException:
            file.close()
            raise
        self._file = file

    def _map(self, count: int) -> None:
        assert self._file is not None
        size, length = record_bytes(self.dim), side_bytes(count, self.dim)
        mapped = mmap.mmap(self._file.fileno(), length, access=mmap.ACCESS_READ)
        flat = np.frombuffer(mapped, np.uint8, count * size, HEADER_BYTES)
        self._mapping = flat.reshape(count, size)

    def _find(self, keys: Bytes) -> Rows:
        words = words_of(keys)
        newer = self._newer.find(words)
        return np.where(newer >= 0, newer, self._older.find(words))

    def _room(self) -> int | None:
        """How many records may be appended; None without a limit."""
        if self.max_bytes is None:
            return None
        held = side_bytes(len(self._mapping), self.dim)
        return max(0, (self.max_bytes - held) // record_bytes(self.dim))

    def _new_rows(self, ids: Sequence[str], keys: Bytes, marks: Bytes) -> Rows:
        """The positions in ``ids`` of what is to be written, each item once."""
        positions = self._find(keys)
        new = positions < 0
        records = self._mapping[positions[~new]]
        new[~new] = ~(is_of(records, keys[~new], marks[~new]) & intact(records))
        first = np.zeros(len(ids), bool)
        first[np.unique(words_of(keys), return_index=True)[1]] = True
        rows = np.flatnonzero(new & first)
        erased = self._removed.among([ids[row] for row in rows.tolist()])
        return as_rows(row for row in rows.tolist() if ids[row] not in erased) if erased else rows

    def _write(self, records: Bytes) -> None:
        """Write records behind the last complete one; what was cut off there is overwritten."""
        path, data = self.path, records.tobytes()
        if self._file is None:
            write_atomic(path, header(self.model_sha256, self.dim))
        offset = side_bytes(len(self._mapping), self.dim)
        with os_errors("writing", path):
            fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                write_at(fd, data, offset)
            finally:
                os.close(fd)

    def _rewrite(self, keys: Bytes, *, drop: bool) -> int:
        """Write the file again without, or only with, the items of ``keys``."""
        if not self.path.parent.is_dir():
            return 0
        named = np.sort(words_of(keys))
        with side_lock(self.store, "removing free vectors"):
            for left in self.path.parent.glob(f"{TEMPORARY}*"):  # of killed processes
                left.unlink()
            self.refresh()
            if self._file is None:
                return 0
            newest = np.zeros(len(self._mapping), bool)
            newest[self._older.at] = True
            newest[self._newer.at] = True
            newest[self._older.at[self._newer.find(self._older.words) >= 0]] = False
            good = np.concatenate([good for _, good in self] or [np.zeros(0, bool)])
            among = _among(words_of(self._mapping), named)
            kept = newest & good & (among != drop)
            size = os.fstat(self._file.fileno()).st_size
            if not kept.all() or size != side_bytes(len(kept), self.dim):
                self._replace(np.flatnonzero(kept))
            self.refresh()
            return int((newest & good).sum() - kept.sum())

    def _replace(self, rows: Rows) -> None:
        """Replace the file by one with only these records; without records, delete it."""
        path = self.path
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}")
        with os_errors("writing", path):
            try:
                if len(rows):
                    with temporary.open("xb") as file:
                        file.write(header(self.model_sha256, self.dim))
                        for start in range(0, len(rows), BLOCK):
                            file.write(self._mapping[rows[start : start + BLOCK]].tobytes())
                    sync(temporary)
                    temporary.replace(path)
                else:
                    path.unlink()
            finally:
                temporary.unlink(missing_ok=True)
            sync(path.parent)


def _among(words: Words, ordered: Words) -> Bools:
    """(n,): whether each word is one of the ascending words (m,)."""
    if not len(ordered):
        return np.zeros(len(words), bool)
    nearest = np.minimum(np.searchsorted(ordered, words), len(ordered) - 1)
    return np.asarray(ordered[nearest] == words, bool)
