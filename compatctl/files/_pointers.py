"""Pointers: small texts that Git LFS and git-annex leave where a large file should be."""

from __future__ import annotations

from pathlib import Path

from compatctl.errors import InputError

MAX_POINTER_BYTES = 1024
"""Most bytes of a pointer of Git LFS, by its specification."""

_POINTERS = {
    b"version https://git-lfs": ("Git LFS", "git lfs pull"),
    b"version https://hawser": ("Git LFS", "git lfs pull"),
    b"/annex/objects/": ("git-annex", "git annex get"),
}


def refuse_pointer(path: Path, data: bytes) -> None:
    """Refuse a file whose first bytes are ``data``, if it only points to the file that is meant.

    Raises:
        InputError: it is a pointer; the tip says how to fetch the file.
    """
    for begin, (system, command) in _POINTERS.items():
        if data.startswith(begin):
            raise InputError(
                f"{path}: it is a {system} pointer, not the file itself",
                tip=f"{command} fetches the file",
            )
