"""Images inside larger files, such as archives and tables: their bytes are read when needed.

Nothing of an image is in memory but where it lies.
"""

from __future__ import annotations

import io
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from compatctl.errors import InputError
from compatctl.files.npz import open_regular

CACHE_BYTES = 256 << 20
"""Most bytes of decoded blocks that ``BlockCache`` keeps, beside the one that is in use."""

MAX_OPEN = 64
"""Most files that are kept open."""

_CHANGED_TIP = "run it again when nothing writes to the data"

Stamp = tuple[int, int, int]
"""Device's inode, size in bytes and time of change in ns of a file."""


class Container(Protocol):
    """A file that holds images, by their positions from 0."""

    def read(self, position: int, max_bytes: int) -> bytes:
        """The bytes of an encoded image.

        Raises:
            InputError: it cannot be read, has more than ``max_bytes``, or the file changed.
        """
        ...

    def where(self, position: int) -> str:
        """The file and the place of an image in it, for messages."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class StoredImage:
    """The encoded image at ``position`` of a file of several. Threads may read it."""

    container: Container
    position: int

    def read(self, max_bytes: int) -> bytes:
        """Its bytes; raises InputError as ``Container.read``."""
        return self.container.read(self.position, max_bytes)

    def open(self, max_bytes: int) -> io.BytesIO:
        """Its bytes as a file; raises InputError as ``Container.read``."""
        return io.BytesIO(self.read(max_bytes))

    def __str__(self) -> str:
        return self.container.where(self.position)


StoredRow = tuple[str, dict[str, object], StoredImage | None]
"""A row of a table or archive: its place for messages, its fields, and its image, if it has one."""


class RowCounter:
    """Gives ids to rows without one: their number among those of one ``prefix``."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def counted(
        self, rows: Iterable[StoredRow], record: Mapping[str, object], prefix: str
    ) -> Iterator[StoredRow]:
        """The rows with an id, and with the fields of ``record`` where they have none."""
        number = self._counts.get(prefix, 0)
        for where, row, image in rows:
            row.setdefault("id", f"{prefix}{number}")
            number += 1
            for name, value in record.items():
                if row.get(name) is None:
                    row[name] = value
            yield where, row, image
        self._counts[prefix] = number


class FileRanges:
    """Images that each lie in one piece in a file: N starts and N sizes, in bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts, self._sizes = array("q"), array("q")
        with open_regular(path) as file:
            self._stamp = stamp_of(file)

    def add(self, start: int, size: int) -> StoredImage:
        """The image of ``size`` bytes from ``start``."""
        self._starts.append(start)
        self._sizes.append(size)
        return StoredImage(self, len(self._starts) - 1)

    def read(self, position: int, max_bytes: int) -> bytes:
        """See ``Container``."""
        start, size = self._starts[position], self._sizes[position]
        if size > max_bytes:
            raise InputError(f"{self.where(position)}: {size} bytes; at most {max_bytes} are read")
        try:
            file = _opened(self._path, self._stamp)
            data = os.pread(file.fileno(), size, start)
        except OSError as error:
            message = f"{self._path}: cannot be read: {error.strerror or error}"
            raise InputError(message) from error
        if len(data) < size:
            raise changed(self._path)
        return data

    def __str__(self) -> str:
        return str(self._path)

    def where(self, position: int) -> str:
        """See ``Container``."""
        return f"{self._path}, byte {self._starts[position]}"


def stamp_of(file: io.BufferedReader) -> Stamp:
    """What tells an open file from another one, or from itself after a change."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def changed(path: Path) -> InputError:
    """The error of a file that is no longer what it was when it was indexed."""
    return InputError(f"{path} changed while the command ran", tip=_CHANGED_TIP)


@lru_cache(maxsize=MAX_OPEN)
def _opened(path: Path, stamp: Stamp) -> io.BufferedReader:
    """The open file. A file that falls out of the cache closes when no thread uses it any more."""
    file = open_regular(path)
    if stamp_of(file) != stamp:
        file.close()
        raise changed(path)
    return file


BlockKey = tuple[object, int, int]
"""An owner, and the numbers of a block of it."""


class BlockCache:
    """Decoded blocks by key, the least recently used dropped beyond ``max_bytes``.

    An owner is an object that stands for a file; its blocks are dropped by ``drop``.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._blocks: OrderedDict[BlockKey, tuple[Any, int]] = OrderedDict()
        self._lock = threading.RLock()  # the end of an owner may interrupt any method

    def get(self, key: BlockKey) -> Any | None:
        """The block, or None."""
        with self._lock:
            if key not in self._blocks:
                return None
            self._blocks.move_to_end(key)
            return self._blocks[key][0]

    def drop(self, owner: object) -> None:
        """Drop all blocks of an owner."""
        with self._lock:
            for key in [key for key in self._blocks if key[0] is owner]:
                self._bytes -= self._blocks.pop(key)[1]

    def put(self, key: BlockKey, block: Any, size: int) -> None:
        """Keep a block of ``size`` bytes, and drop others; the newest one always stays."""
        with self._lock:
            _, before = self._blocks.pop(key, (None, 0))
            self._blocks[key] = (block, size)
            self._bytes += size - before
            while self._bytes > self._max_bytes and len(self._blocks) > 1:
                _, (_, dropped) = self._blocks.popitem(last=False)
                self._bytes -= dropped
