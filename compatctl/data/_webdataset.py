"""WebDataset: tar files in which files of one name but different endings are one item.

A file's name up to the first dot behind the last slash is its item's key, the rest says what it is.
Images are read where they lie in the archive; nothing is unpacked.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

from compatctl.data._columns import Fields, LineKeys
from compatctl.data._folders import IMAGE_SUFFIXES, Record
from compatctl.data._lazy import FileRanges, StoredImage, StoredRow
from compatctl.data._tables import MAX_LINE_BYTES, CellBudget
from compatctl.errors import InputError
from compatctl.files import parse_json
from compatctl.files.npz import open_regular
from compatctl.notices import MAX_NAMES, notice

_BLOCK = tarfile.BLOCKSIZE
_OWN = ("id", "path")
"""Fields that an archive gives by itself, unless they are mapped to a key of the JSON."""


class TarItems:
    """The items of one or more archives, and what of them is not read."""

    def __init__(self, source: Path, fields: Fields) -> None:
        if "path" in fields.mapped and not fields.partial:
            raise InputError(
                f"{source}: path is mapped to {fields.mapped['path']!r}, and an archive holds the "
                "images itself",
                tip="leave path out of --column and of columns: in compatctl.yaml",
            )
        own = [name for name in ("id", "text") if name in fields.mapped]
        json_fields = replace(
            fields,
            required=(),
            optional=tuple(dict.fromkeys((*own, "label", *fields.optional))),
            advice="id and label may be keys of the .json files; --column NAME=KEY says which",
        )
        self._keys = LineKeys(source, json_fields)
        self._unread = _Unread(source=source)
        self._mapped = frozenset(fields.mapped)

    def rows(self, path: Path) -> Iterator[StoredRow]:
        """(position for messages, fields, image) of each item of an archive.

        Raises:
            InputError: no such file, or no tar; it is damaged or cut short; a label is no text; or
                an item has two images.
        """
        images, cells_left = FileRanges(path), CellBudget(path)
        sample = _Sample(where="", key="")
        try:
            with open_regular(path) as file:
                for member in _members(file, path):
                    key, ending = _split_name(member.name)
                    if key != sample.key:
                        if sample.files:
                            cells_left.take(len(sample.files))
                            yield self._row(sample, file, images)
                        sample = _Sample(where=f"{path}, {key}", key=key)
                    sample.files.append((ending, member.offset_data, member.size))
                if sample.files:
                    yield self._row(sample, file, images)
        except tarfile.TarError as error:
            raise InputError(
                f"{path}: not a tar archive that can be read: {error}",
                tip="fetch or write it again; a compressed one needs to be unpacked to .tar",
            ) from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error

    def end(self) -> None:
        """Tell what was not read, after the last archive.

        Raises:
            InputError: a key that is mapped is in no JSON file.
        """
        self._unread.warn()
        self._keys.refuse_unseen()

    def _row(self, sample: _Sample, file: IO[bytes], images: FileRanges) -> StoredRow:
        record: Record = {"id": sample.key}
        image: StoredImage | None = None
        label = text = None
        for ending, start, size in sample.files:
            if "." + ending.rpartition(".")[2] in IMAGE_SUFFIXES:
                if image is not None:
                    raise InputError(
                        f"{sample.where}: two images; an item has one",
                        tip="write them as two items, with names that differ before the first dot",
                    )
                image = images.add(start, size)
            elif ending == "cls":
                label = _text(file, start, size, f"{sample.where}.cls").strip()
            elif ending == "txt" and "text" not in self._mapped:
                text = _text(file, start, size, f"{sample.where}.txt")
            elif ending == "json":
                record |= self._json(file, start, size, sample.where)
            else:
                self._unread.count(f".{ending}" if ending else "no ending", sample.key)
        if "text" in self._mapped:
            image = None
        if text is not None and image is None:
            record["text"] = text
        elif text is not None:
            self._unread.count(".txt beside an image", sample.key)
        if label is not None:
            self._warn_of_another(record, label, sample.key)
            record["label"] = label
        elif self._mapped and "label" not in record:
            self._keys.refuse_unseen()  # which lists the keys that there are
        return sample.where, record, image

    def _warn_of_another(self, record: Record, label: str, key: str) -> None:
        """Count a label of .json that is not that of .cls, which wins."""
        if str(record.get("label", label)) != label:
            self._unread.count("another label in .json", key)

    def _json(self, file: IO[bytes], start: int, size: int, where: str) -> Record:
        parsed = parse_json(_bytes(file, start, size, where), where)
        if not isinstance(parsed, dict):
            raise InputError(f"{where}: its .json is no JSON object")
        record = self._keys.renamed(parsed, where)
        for name, value in list(record.items()):
            own = name in _OWN and name not in self._mapped
            if own or isinstance(value, dict | list):
                del record[name]
                self._unread.count(f"{name!r} of .json", where)
        return record


@dataclass(kw_only=True)
class _Sample:
    """The files of an item: ending, first byte and size of each."""

    where: str
    key: str
    files: list[tuple[str, int, int]] = field(default_factory=list)


@dataclass(kw_only=True)
class _Unread:
    """Parts of items that are not read: what they are -> how many, and the first of them."""

    source: Path
    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def count(self, what: str, name: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        names = self.names.setdefault(what, [])
        if len(names) < MAX_NAMES:
            names.append(name)

    def warn(self) -> None:
        for what, count in sorted(self.counts.items()):
            message = f"parts of items that are not read ({what})"
            notice("file-not-read", self.source, message, self.names[what], count=count)


def _split_name(name: str) -> tuple[str, str]:
    """The key and the ending, in lower case, of a file's name in an archive."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}".removeprefix("./"), ending.lower()


def _members(file: io.BufferedReader, path: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files of an archive that are not hidden, in order.

    Raises:
        TarError: no tar, or damaged.
        InputError: a member is sparse, or there is something else behind the last one.
    """
    passed = _Unread(source=path)
    with tarfile.open(fileobj=cast("IO[bytes]", _Bounded(file)), mode="r:") as archive:
        while (member := archive.next()) is not None:
            cast("Any", archive).members = []  # or a million of them stay in memory
            hidden = member.name.rpartition("/")[2].startswith(".")
            if member.isdir():
                continue
            if member.issparse():
                raise InputError(f"{path}: {member.name} is sparse: write the archive without -S")
            if hidden or not member.isreg():
                passed.count("hidden files" if hidden else "links and devices", member.name)
            else:
                yield member
        _check_end(file, archive.offset, path)
    passed.warn()


def _check_end(file: io.BufferedReader, offset: int, path: Path) -> None:
    """Refuse an archive that goes on where it should end; warn of one without an end."""
    file.seek(offset)
    block = file.read(_BLOCK)
    if any(block):
        raise tarfile.ReadError(f"no header of a file at byte {offset}")
    if not block:
        notice("archive-end", path, "archives that may be cut short", [path.name])


class _Bounded:
    """A file of which a header can make no one read much."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_LINE_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _text(file: IO[bytes], start: int, size: int, where: str) -> str:
    try:
        return _bytes(file, start, size, where).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text") from error


def _bytes(file: IO[bytes], start: int, size: int, where: str) -> bytes:
    if size > MAX_LINE_BYTES:
        raise InputError(f"{where}: a text of {size} bytes; at most {MAX_LINE_BYTES} are read")
    return os.pread(file.fileno(), size, start)
