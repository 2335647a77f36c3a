"""The file of a backfill's unfinished step: its path, header and size, without numpy."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

from compatctl.files import os_errors
from compatctl.store._layout import BACKFILL, PENDING_SUFFIX, is_regular_file
from compatctl.store._side_layout import CHECKSUM_BYTES, PREFIX_BYTES

_HEADER = struct.Struct("<8sII32s8s8x")
_MAGIC, _VERSION = b"comppend", 1
HEADER_BYTES = _HEADER.size


def pending_path(root: Path, model_sha256: str) -> Path:
    """The path of a model's file, whether or not it exists."""
    return root / BACKFILL / f"{model_sha256}{PENDING_SUFFIX}"


def record_bytes(dim: int) -> int:
    """The size of a record with a float32 vector of ``dim`` dimensions."""
    return PREFIX_BYTES + 4 * dim


def header(model_sha256: str, dim: int) -> bytes:
    """The first ``HEADER_BYTES`` of a file."""
    facts = (_MAGIC, _VERSION, dim, bytes.fromhex(model_sha256))
    return _HEADER.pack(*facts, _digest(facts))


def read_dim(data: bytes, model_sha256: str) -> int | None:
    """The dimension that a header states; None if it is not one of this model."""
    if len(data) < HEADER_BYTES:
        return None
    *facts, digest = _HEADER.unpack(data)
    written = (_MAGIC, _VERSION, facts[2], bytes.fromhex(model_sha256))
    return int(facts[2]) if tuple(facts) == written and digest == _digest(written) else None


def pending_count(root: Path, model_sha256: str) -> int:
    """How many whole records a model's file has; 0 without one."""
    path = pending_path(root, model_sha256)
    if not is_regular_file(path):
        return 0
    with os_errors("reading", path), path.open("rb") as file:
        dim = read_dim(file.read(HEADER_BYTES), model_sha256)
        size = path.stat().st_size
    return 0 if dim is None else (size - HEADER_BYTES) // record_bytes(dim)


def _digest(facts: tuple[object, ...]) -> bytes:
    return hashlib.sha256(repr(facts).encode()).digest()[:CHECKSUM_BYTES]
