"""Errors of the operating system, as errors that a user can act on."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from compatctl.errors import CompatError, InputError
from compatctl.files._pointers import absence

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISPLACED = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


@contextlib.contextmanager
def temporary_folder_errors() -> Iterator[None]:
    """Say that there is no folder for temporary files, where that is why the block failed.

    Raises:
        InputError: there is none that can be written.
    """
    try:
        yield
    except FileNotFoundError as error:
        import tempfile

        try:
            tempfile.gettempdir()
        except FileNotFoundError:
            raise InputError(
                "no folder for temporary files can be written",
                tip="set TMPDIR to a folder that can be written, with some space",
            ) from error
        raise


@contextlib.contextmanager
def os_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an OSError into a CompatError that names the file and what was done to it.

    Raises:
        CompatError: the disk, a quota or the file size limit is full, or the device failed.
        InputError: no permission, no such file or folder, or the other of the two.
    """
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or path
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
        if isinstance(error, _MISPLACED):
            tip = absence(Path(os.fsdecode(where)))
            raise InputError(f"{doing} {where}: {error.strerror}", tip=tip) from error
        raise CompatError(
            f"{doing} {where}: {error.strerror or error}",
            tip="look at the disk, and run the command again",
        ) from error
