"""Folders whose items lie in a few large files: which form they have, and what their names say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from compatctl.data._folders import IMAGE_SUFFIXES, Record, fields_of_split, files_ending
from compatctl.data._roots import AllowedRoots
from compatctl.errors import InputError
from compatctl.notices import notice

SHARD_SUFFIXES = (".parquet", ".tar")
SAVED_FILES = ("dataset_dict.json", "state.json")
"""Files by which a data set that Hugging Face's ``save_to_disk`` wrote is known."""

_DEPTH = 3
_FIRST_WORD = re.compile(r"[^\W\d_]+")


def folder_form(top: Path) -> str:
    """The form of a folder: ``images``, ``saved``, or the ending of its shards.

    Shards lie at most ``_DEPTH`` folders deep, and no image lies as deep as the first of them.

    Raises:
        InputError: there are shards of two forms.
        OSError: the folder cannot be read.
    """
    if any((top / name).is_file() for name in SAVED_FILES):
        return "saved"
    folders = [top]
    for _ in range(_DEPTH + 1):
        found, deeper = set(), []
        for path in (path for folder in folders for path in folder.iterdir()):
            suffix = path.suffix.lower()
            if path.name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES and path.is_file():
                return "images"
            if suffix in SHARD_SUFFIXES and path.is_file():
                found.add(suffix)
            elif path.is_dir():
                deeper.append(path)
        if len(found) > 1:
            raise InputError(
                f"{top}: {' and '.join(sorted(found))} files are two forms of data",
                tip="name the folder or the file of one of them",
            )
        if found:
            return found.pop()
        folders = deeper
    return "images"


def shards(top: Path, roots: AllowedRoots, suffix: str) -> list[tuple[Path, Record]]:
    """The files that end so, sorted, and the split or role that their names give to their items.

    Names count if every file has one: the first word of its own (``train-00000-of-00002.parquet``)
    or that of a folder. Of either there is a notice.

    Raises:
        InputError: a file lies outside the roots.
    """
    files = files_ending(top, roots, (suffix,), f"{suffix} files")
    said = [_said(path.relative_to(top)) for path in files]
    words = sorted({word for word in said if word is not None})
    if not words:
        return [(path, {}) for path in files]
    if None in said:
        result = "they are not read as such, since other files have no such name"
        notice("split-folders", top, "names of files like a split or role", words, result)
        return [(path, {}) for path in files]
    records = [fields_of_split(word) or {} for word in said if word is not None]
    pairs = {word: record for word, record in zip(said, records, strict=True) if word}
    names = [f"{word!r} as {record.get('role', record['split'])}" for word, record in pairs.items()]
    notice("split-folders", top, "names of files read as splits or roles", names)
    return list(zip(files, records, strict=True))


def _said(path: Path) -> str | None:
    """The word of a relative path that is a split or role: of the file, else of a folder."""
    first = _FIRST_WORD.match(path.name)
    words: Sequence[str] = (*([first[0]] if first else []), *reversed(path.parts[:-1]))
    return next((word for word in words if fields_of_split(word) is not None), None)
