"""The side files of free vectors in a store: their paths, header and sizes, without numpy.

A side file holds vectors of one model's free head for gallery items that were touched by queries.
It is a header of ``HEADER_BYTES`` and records of one size each. It belongs to no generation: what
it holds can be computed again.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from compatctl.errors import DamagedError
from compatctl.files import Lock, make_folder, os_errors, sync
from compatctl.store._layout import SIDE, SIDE_SUFFIX, is_regular_file

HEADER_BYTES = 64
KEY_BYTES = 16
"""The first bytes of the sha256 of an item's id."""
IMAGE_BYTES = 8
"""The first bytes of the sha256 of the item's image; zero if it is not known."""
CHECKSUM_BYTES = 8
PREFIX_BYTES = KEY_BYTES + IMAGE_BYTES + CHECKSUM_BYTES
"""A record's bytes before its vector."""
LOCK = "LOCK"
DAMAGED_TIP = (
    "compatctl check --gc deletes what is damaged; the vectors are computed again when queries "
    "need them"
)

_HEADER = struct.Struct("<8sII32s8s8x")
_MAGIC = b"compside"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SideFileSize:
    """Complete records of a side file, the dimension of its vectors, and its size in bytes."""

    records: int
    dim: int
    bytes: int


def side_path(root: Path, model_sha256: str) -> Path:
    """The path of a model's side file, whether or not it exists."""
    return root / SIDE / f"{model_sha256}{SIDE_SUFFIX}"


def record_bytes(dim: int) -> int:
    """The size of a record with a float16 vector of ``dim`` dimensions: a multiple of 8 bytes."""
    return PREFIX_BYTES + -(-2 * dim // 8) * 8


def side_bytes(rows: int, dim: int) -> int:
    """The size of a side file with a vector of ``dim`` dimensions for each of ``rows`` items."""
    return HEADER_BYTES + rows * record_bytes(dim)


def header(model_sha256: str, dim: int) -> bytes:
    """The first ``HEADER_BYTES`` of a side file."""
    facts = (_MAGIC, _VERSION, dim, bytes.fromhex(model_sha256))
    return _HEADER.pack(*facts, _digest(facts))


def read_header(data: bytes, path: Path) -> int:
    """The dimension of a side file's vectors.

    Raises:
        DamagedError: ``data`` is not the header that was written for a file of this name.
    """
    if len(data) == HEADER_BYTES:
        *facts, digest = _HEADER.unpack(data)
        named = path.name.removesuffix(SIDE_SUFFIX)
        intact = digest == _digest(tuple(facts)) and data[-8:] == bytes(8)
        if intact and facts[:2] == [_MAGIC, _VERSION] and facts[3].hex() == named:
            return int(facts[2])
    raise DamagedError(f"{path} does not begin as a side file of this model", tip=DAMAGED_TIP)


def side_size(root: Path, model_sha256: str) -> SideFileSize | None:
    """The size of a model's side file; None if there is none.

    Raises:
        DamagedError: its header is not what was written.
    """
    path = side_path(root, model_sha256)
    if not is_regular_file(path):
        return None
    with os_errors("reading", path), path.open("rb") as file:
        dim = read_header(file.read(HEADER_BYTES), path)
        size = path.stat().st_size
    return SideFileSize(records=(size - HEADER_BYTES) // record_bytes(dim), dim=dim, bytes=size)


def delete_damaged_side_file(root: Path, model_sha256: str) -> bool:
    """Delete a model's side file if its header is damaged; return whether it was.

    Raises:
        ConflictError: another process holds the lock of the side files.
    """
    path = side_path(root, model_sha256)
    if not is_regular_file(path):
        return False
    with side_lock(root, "check --gc"):
        try:
            side_size(root, model_sha256)
        except DamagedError:
            with os_errors("deleting", path):
                path.unlink()
                sync(path.parent)
            return True
    return False


def made_side_lock(root: Path, operation: str) -> Lock:
    """``side_lock``, whose folder is made if it is missing.

    Raises:
        CompatError: no space, or no permission.
    """
    if not (folder := root / SIDE).is_dir():
        with os_errors("creating", folder):
            make_folder(folder)
    return side_lock(root, operation)


def side_lock(root: Path, operation: str) -> Lock:
    """The lock of whoever writes a side file; the folder must exist."""
    return Lock(root / SIDE / LOCK, operation=operation)


def sweep_side(root: Path, names: Iterable[str]) -> tuple[list[Path], int]:
    """Delete these files of the folder ``SIDE`` under its lock; return them, and the bytes freed.

    Whoever writes there holds the lock, so a temporary file is a killed process's.
    """
    deleted, freed = list[Path](), 0
    paths = [root / name for name in names if Path(name).parent.name == SIDE]
    if not paths:
        return [], 0
    with side_lock(root, "check --gc"):
        for path in filter(is_regular_file, paths):
            with os_errors("deleting", path):
                freed += path.stat().st_size
                path.unlink()
            deleted.append(path)
        with os_errors("deleting in", root / SIDE):
            sync(root / SIDE)
    return deleted, freed


def _digest(facts: tuple[object, ...]) -> bytes:
    return hashlib.sha256(repr(facts).encode()).digest()[:CHECKSUM_BYTES]
