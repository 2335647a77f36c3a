"""Where images may lie: a table from elsewhere must not name arbitrary files of this machine."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from compatctl.errors import InputError

_OPEN_ENDS = {"", ".."}


class AllowedRoots:
    """The folders in which images may lie: the data's own, and ``data_root``.

    Links and ``..`` are resolved before the comparison.
    """

    def __init__(self, own: Path, data_root: Path | None = None) -> None:
        folders = [own] if data_root is None else [own, data_root]
        self._roots = tuple(os.path.realpath(folder) for folder in folders)
        self._begin = tuple(f"{root.rstrip('/')}/" for root in self._roots)
        self._folder = lru_cache(maxsize=1 << 16)(os.path.realpath)

    def check(self, file: Path, where: str) -> Path:
        """Return ``file``.

        Raises:
            InputError: it lies outside the folders; the message begins with ``where``.
        """
        real = self.real(file)
        if real not in self._roots and not real.startswith(self._begin):
            raise InputError(
                f"{where}: {file} lies outside {' and '.join(self._roots)}",
                tip="--data-root FOLDER allows images in another folder",
            )
        return file

    def real(self, file: Path) -> str:
        """The path with links resolved; unresolved if it cannot be a file's name."""
        try:
            if file.name in _OPEN_ENDS or file.is_symlink():
                return os.path.realpath(file)
            return f"{self._folder(file.parent).rstrip('/')}/{file.name}"
        except ValueError:  # a NUL or half a character: opening it raises
            return os.path.normpath(Path.cwd() / file)
