"""Every byte that is written: temporary file, fsync, rename, read back, fsync of the folder.

Identity is content: a blob's name is the sha256 of its bytes. A process that is killed anywhere
leaves the old file or the new one, and at most a temporary whose name starts with ``.new-``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from compatctl.errors import CompatError, ConflictError, DamagedError, InputError

TEMPORARY = ".new-"
"""How the name of every temporary file begins."""

_POLL_S = 0.05
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A published file: its digest (hex), where it is, its size in bytes."""

    sha256: str
    path: Path
    bytes: int


@contextlib.contextmanager
def clear_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a CompatError that says what was done to which file.

    Raises:
        CompatError: the disk, a quota or the file size limit is exhausted, or the device failed.
        InputError: no permission, or no such file or folder.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in _FULL:
            raise CompatError(
                f"{doing} {path}: no room ({error.strerror})",
                tip="free some space and run the command again",
            ) from error
        if error.errno in _DENIED:
            raise InputError(
                f"{doing} {where}: permission denied ({error.strerror})",
                tip="run as a user who may write there",
            ) from error
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise InputError(f"{doing} {where}: {error.strerror}") from error
        raise CompatError(f"{doing} {where}: {error.strerror or error}") from error


def sha256_bytes(data: bytes) -> str:
    """The sha256 of ``data``, as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 lower-case hex digits, read in pieces.

    Raises:
        InputError: the file is missing, a folder, or must not be read.
    """
    with clear_errors("reading", path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: another process sees the old bytes or the new ones, whole.

    Raises:
        CompatError: there was no room, no permission, or no such folder; ``path`` is as before.
        DamagedError: what was read back is not what was written.
    """
    temporary = _temporary(path.parent, path.suffix)
    with clear_errors("writing", path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
        if path.read_bytes() != data:
            raise DamagedError(f"{path}: read back other bytes than were written")


def publish(folder: Path, suffix: str, write: Callable[[Path], None]) -> Blob:
    """Let ``write`` make a file, and move it to ``folder/<sha256><suffix>``.

    ``write`` gets a path in ``folder`` where no file is yet. Where the same bytes are already
    published and intact, they stay; a damaged file of that name is replaced.

    Raises:
        CompatError: there was no room, no permission, or ``write`` made no file.
        DamagedError: what was read back from the disk is not what was written.
    """
    with clear_errors("writing into", folder):
        if not folder.is_dir():
            folder.mkdir()
            sync(folder.parent)
        temporary = _temporary(folder, suffix)
        try:
            write(temporary)
            if not temporary.is_file():
                raise CompatError(f"writing into {folder}: no file was written")
            return _settle(temporary, folder, suffix)
        finally:
            temporary.unlink(missing_ok=True)


def _settle(temporary: Path, folder: Path, suffix: str) -> Blob:
    digest = sha256_file(temporary)
    size = temporary.stat().st_size
    final = folder / f"{digest}{suffix}"
    if final.is_file() and sha256_file(final) == digest:
        # A killed process may have renamed it and not synced the folder.
        sync(final)
        sync(folder)
        return Blob(sha256=digest, path=final, bytes=size)
    sync(temporary)
    temporary.replace(final)
    if sha256_file(final) != digest:
        final.unlink()
        raise DamagedError(
            f"{final}: read back other bytes than were written", tip="is the disk failing?"
        )
    sync(folder)
    return Blob(sha256=digest, path=final, bytes=size)


def copy(source: Path, target: Path) -> None:
    """Copy a file's bytes, and nothing else of it, to a new file."""
    with clear_errors("copying", source), source.open("rb") as src, target.open("xb") as out:
        while piece := src.read(1 << 20):
            out.write(piece)


def sync(path: Path) -> None:
    """fsync a file or folder; a file's cached pages are dropped, so that a read is of the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _temporary(folder: Path, suffix: str) -> Path:
    return folder / f"{TEMPORARY}{secrets.token_hex(8)}{suffix}"


def canonical_json(value: object) -> bytes:
    """``value`` as JSON whose bytes depend on nothing else: sorted keys, ASCII, indented by 2.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    text = json.dumps(value, sort_keys=True, allow_nan=False, indent=2)
    return text.encode("ascii") + b"\n"


def read_json(path: Path, max_bytes: int, *, error: type[CompatError] = InputError) -> object:
    """The value in a JSON file of at most ``max_bytes`` bytes.

    Raises:
        InputError: the file is missing or must not be read.
        CompatError: of the class ``error``: too large, not UTF-8, not JSON, a key twice, a NaN.
    """
    with clear_errors("reading", path), path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise error(f"{path}: larger than the {max_bytes} bytes that such a file may have")
    return parse_json(data, path, error=error)


def parse_json(data: bytes, path: Path, *, error: type[CompatError] = InputError) -> object:
    """The value of JSON ``data``, strictly; ``path`` is where it was read, for the message."""
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: not JSON that can be read: {problem}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


class Lock:
    """One writer at a time: an flock(2) on ``path``, which ends with the process that holds it.

    The file stays, and names the holder for the message of those who wait.

    Args:
        path: the lock file, made where it is missing; its folder must be there.
        timeout_s: how long to wait for another holder, in seconds; 0 tries once.
        operation: what the holder does, for the others' message.

    Raises:
        ConflictError: on entering, when another process still holds it after ``timeout_s``.
    """

    def __init__(self, path: Path, timeout_s: float = 10.0, operation: str = "") -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._operation = operation
        self._fd = -1

    def __enter__(self) -> Self:
        with clear_errors("locking", self._path):
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._wait(fd)
                holder = {
                    "host": socket.gethostname(),
                    "operation": self._operation,
                    "pid": os.getpid(),
                }
                os.ftruncate(fd, 0)
                os.pwrite(fd, canonical_json(holder), 0)
            except BaseException:
                os.close(fd)
                raise
        self._fd = fd
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
        os.close(fd)

    def _wait(self, fd: int) -> None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ConflictError(
                        f"{self._path.parent} is locked by {self._holder(fd)}",
                        tip="wait until it has ended and run the command again",
                    ) from None
                time.sleep(_POLL_S)
            else:
                return

    @staticmethod
    def _holder(fd: int) -> str:
        try:
            who = json.loads(os.pread(fd, 4096, 0))
            doing = f" ({who['operation']})" if who["operation"] else ""
            return f"process {who['pid']} on {who['host']}{doing}"
        except (ValueError, KeyError, TypeError):
            return "another process"
