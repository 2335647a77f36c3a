"""Durable writes: temporary file, fsync, rename, read back, fsync of the folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from compatctl.errors import CompatError, DamagedError, InputError, UsageError
from compatctl.files._errors import os_errors
from compatctl.progress import stage

TEMPORARY = ".new-"
"""Prefix of the name of every temporary file."""

DIGEST_BYTES = 32
"""The size of a sha256."""

FOLDER_MODE = 0o775
"""Mode of new folders, before the umask: not writable for everybody."""

_NO_MODES = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}
"""Errors of chmod on a file system without modes."""

_OPEN_FILES = {"/dev", "/dev/fd", "/proc/self/fd"}
"""Folders whose links name open files, such as /dev/stdout."""

_WATCHED, _PIECE = 1 << 25, 1 << 20
"""Bytes of a file from which progress is shown, and those that are read at once."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A file named by its digest: digest (hex), path, size in bytes."""

    sha256: str
    path: Path
    bytes: int


def sha256_bytes(data: bytes) -> str:
    """The sha256 of ``data``, as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, as 64 lower-case hex digits, read in pieces.

    Raises:
        InputError: the file is missing, a folder, or must not be read.
    """
    with os_errors("reading", path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < _WATCHED:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        with stage(f"reading every byte of {path.name}", size, "bytes") as part:
            while piece := file.read(_PIECE):
                digest.update(piece)
                part.add(len(piece))
        return digest.hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the content of ``path``; other processes see all old bytes or all new ones.

    The file is not writable for everybody, whatever the umask. A pipe or a device such as
    /dev/stdout and /dev/null is written to, and stays what it is.

    Raises:
        CompatError: no space, no permission, or no such folder; ``path`` is unchanged.
        InputError: a folder is there, or a disk.
        DamagedError: the bytes read back are not those written.
    """
    if _is_stream(path):
        _pass_on(path, data)
        return
    temporary = _temporary(path.parent, path.suffix)
    with os_errors("writing", path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
            _withdraw(temporary, stat.S_IWOTH)
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
        if path.read_bytes() != data:
            raise DamagedError(f"{path}: read back other bytes than were written")


def require_place(path: Path) -> None:
    """Refuse a path at which no file can be written, before work that would be lost.

    Raises:
        InputError: its folder does not exist or must not be written to, or it is a folder itself.
    """
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} to")
    if path.is_dir():
        raise InputError(f"{path} is a folder, and a file is to be written", tip="name a file")
    effective = os.access in os.supports_effective_ids
    writable = os.access(path.parent, os.W_OK | os.X_OK, effective_ids=effective)
    if not writable and not _is_stream(path):
        raise InputError(
            f"writing {path}: permission denied in {path.parent}",
            tip="name a file in a folder that you may write to",
        )


def refuse_replacing(target: Path, inputs: Iterable[Path | None]) -> None:
    """Refuse to write to a file that the command reads; None is no file.

    Raises:
        UsageError: ``target`` is one of the ``inputs``, maybe by a link.
    """
    read = [path for path in inputs if path is not None]
    same = target.exists() and any(path.exists() and target.samefile(path) for path in read)
    if same or target.absolute() in [path.absolute() for path in read]:
        raise UsageError(
            f"{target} would be replaced, and the command reads it",
            tip="name another file to write to",
        )


def _is_stream(path: Path) -> bool:
    """Whether something is there that a rename would replace by a file, and that is none: a pipe, a
    device, or the name of an open file of this process."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if stat.S_ISREG(mode):
        return path.is_symlink() and str(path.absolute().parent) in _OPEN_FILES
    if stat.S_ISDIR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise InputError(f"{path} is no file that can be written", tip="name a file")
    return True


def _pass_on(path: Path, data: bytes) -> None:
    """Write to a pipe or a device; a pipe that nobody reads is an error, not a wait."""
    with os_errors("writing", path):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(fd, "wb") as file:
            os.set_blocking(fd, True)
            file.write(data)


def append(path: Path, data: bytes) -> None:
    """Add to the end of a file that others write too, and create it if there is none.

    Raises:
        CompatError: no space, no permission, or no such folder.
    """
    with os_errors("writing", path), path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_blob(folder: Path, suffix: str, write: Callable[[Path], object]) -> Blob:
    """Have ``write`` make a file, and move it to ``folder/<sha256><suffix>``, read-only.

    ``write`` gets the path of a new file in ``folder``. An intact file of the same name stays; a
    damaged one is replaced.

    Raises:
        CompatError: no space, no permission, or ``write`` made no file.
        DamagedError: the bytes read back are not those written.
    """
    with os_errors("writing into", folder):
        make_folder(folder)
        temporary = _temporary(folder, suffix)
        try:
            write(temporary)
            if not temporary.is_file():
                raise CompatError(f"writing into {folder}: no file was written")
            return _settle(temporary, folder, suffix)
        finally:
            temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder unless it exists, and sync its parent.

    The parent is synced even if the folder exists: a killed process may have made it unsynced.
    """
    folder.mkdir(mode=FOLDER_MODE, exist_ok=True)  # another process may make it at this instant
    sync(folder.parent)


def make_folders(folder: Path) -> None:
    """Make a folder of the user's choice and those above it, unless they exist.

    Raises:
        InputError: no permission, or a file is in the way.
    """
    with os_errors("creating", folder):
        folder.mkdir(parents=True, exist_ok=True)


def _settle(temporary: Path, folder: Path, suffix: str) -> Blob:
    digest = sha256_file(temporary)
    size = temporary.stat().st_size
    final = folder / f"{digest}{suffix}"
    if final.is_file() and not final.is_symlink() and sha256_file(final) == digest:
        # A killed process may have renamed it without syncing the folder.
        sync(final)
        sync(folder)
        return Blob(sha256=digest, path=final, bytes=size)
    _withdraw(temporary, stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
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
    """Copy a file's bytes, without its metadata, to a new file."""
    with os_errors("copying", source), source.open("rb") as src, target.open("xb") as out:
        while piece := src.read(1 << 20):
            out.write(piece)


def sync(path: Path) -> None:
    """fsync a file or folder, and drop its cached pages so that a read comes from the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        else:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _withdraw(path: Path, bits: int) -> None:
    """Remove permission bits from a file."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & bits:
        try:
            path.chmod(mode & ~bits)
        except OSError as error:
            if error.errno not in _NO_MODES:
                raise


def _temporary(folder: Path, suffix: str) -> Path:
    return folder / f"{TEMPORARY}{secrets.token_hex(8)}{suffix}"
