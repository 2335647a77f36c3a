"""The three forms of a data set on disk: class folders, a table, an ``.npz``."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, cast, get_args

import numpy as np

from compatctl.core.arrays import Pixels
from compatctl.data._dataset import Dataset, Item, Role, Split, SplitRule
from compatctl.data._roots import AllowedRoots
from compatctl.data._tables import CellBudget, open_table, raw_lines, text_lines
from compatctl.errors import InputError
from compatctl.files.npz import read_npz

IMAGE_SUFFIXES = frozenset(
    [
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jpeg",
        ".jpg",
        ".png",
        ".ppm",
        ".pgm",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
"""What counts as an image in a folder; other files there are left alone."""

_REQUIRED = ("id", "path", "label")
_RESERVED = frozenset((*_REQUIRED, "split", "role"))
_SURROGATE = re.compile("[\ud800-\udfff]")
_FORMS = "a folder of class folders, a .csv or .jsonl table, or an .npz file"

Record = Mapping[str, object]


def load(path: Path, rule: SplitRule | None = None, *, data_root: Path | None = None) -> Dataset:
    """The data set at ``path``; ``rule`` splits the items that do not say their split.

    A folder of class folders (label = the sub-folder's name, id = path within the folder); a CSV or
    JSONL table (columns id, path, label; split and role where known; every other column is a slice;
    path relative to the table's folder); or an .npz file (arrays images (N, H, W, 3) or (N, H, W)
    uint8, ids, labels, split, role, and slices). No image file is opened here. Images lie in the
    folder of the data, or in ``data_root``.

    Raises:
        InputError: missing, of no known form, empty, an id twice, an empty id or label, an unknown
            split or role, an image outside of both folders; the message names the line.
    """
    rule = rule or SplitRule()
    if path.is_dir():
        return _read(_folder(path, roots := AllowedRoots(path, data_root)), path, rule, roots)
    readers: dict[str, Callable[[Path], Iterator[_Row]]] = {
        ".csv": _csv,
        ".jsonl": _jsonl,
        ".npz": _npz,
    }
    if not path.exists():
        raise InputError(f"no data at {path}", tip=f"data is {_FORMS}")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is not a form of data that is known", tip=f"data is {_FORMS}")
    return _read(reader(path), path, rule, AllowedRoots(path.parent, data_root))


def from_files(images: Sequence[Path]) -> Dataset:
    """Query images without a class: id = the path as given, label empty; one may come twice."""
    return Dataset(
        items=tuple(Item(id=str(one), label="", split="test", role="query") for one in images),
        sources=tuple(images),
    )


class _Row:
    """One item before it is checked: where it stands, its fields, its image."""

    def __init__(self, where: str, record: Record, source: Path | Pixels | None = None) -> None:
        self.where = where
        self.record = record
        self.source = source

    def text(self, key: str) -> str:
        """A field as text; a missing or null one is empty."""
        value = self.record.get(key)
        if value is None:
            return ""
        if isinstance(value, str):
            if key != "path" and not value.isascii() and _SURROGATE.search(value):
                raise InputError(f"{self.where}: {key} is no text that can be written: {value!r}")
            return value
        if isinstance(value, int | float) and (key not in _RESERVED or type(value) is int):
            return json.dumps(value)
        raise InputError(f"{self.where}: {key} must be text, got {value!r}")

    def word(self, key: str, known: tuple[str, ...]) -> str | None:
        """A field that is one of ``known``, or None where it is empty."""
        value = self.text(key)
        if value and value not in known:
            raise InputError(f"{self.where}: {key} is one of {', '.join(known)}; got {value!r}")
        return value or None

    def item(self, rule: SplitRule) -> Item:
        """The checked item."""
        for key in ("id", "label"):
            if not self.text(key).strip():
                raise InputError(f"{self.where}: {key} is empty")
        item_id, label = self.text("id"), self.text("label")
        slices = {key: self.text(key) for key in sorted(self.record) if key not in _RESERVED}
        split = self.word("split", get_args(Split)) or rule.split_of(label, item_id)
        return Item(
            id=item_id,
            label=label,
            split=cast("Split", split),
            role=cast("Role | None", self.word("role", get_args(Role))),
            slices={key: value for key, value in slices.items() if value},
        )

    def image(self, folder: Path, roots: AllowedRoots) -> Path | Pixels:
        """The image's array, or its file, a relative path taken from ``folder``."""
        if self.source is not None:
            return self.source
        if not self.text("path"):
            raise InputError(f"{self.where}: path is empty")
        return roots.check(folder / self.text("path"), self.where)


def _read(rows: Iterator[_Row], path: Path, rule: SplitRule, roots: AllowedRoots) -> Dataset:
    try:
        return _collected(rows, path, rule, roots)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _collected(rows: Iterator[_Row], path: Path, rule: SplitRule, roots: AllowedRoots) -> Dataset:
    first: dict[str, str] = {}
    items, sources = [], []
    for row in rows:
        item = row.item(rule)
        if item.id in first:
            raise InputError(f"{row.where}: the id {item.id!r} is already at {first[item.id]}")
        first[item.id] = row.where
        items.append(item)
        sources.append(row.image(path.parent, roots))
    if not items:
        raise InputError(f"{path}: there is no image in it", tip=f"data is {_FORMS}")
    return Dataset(items=tuple(items), sources=tuple(sources))


def _folder(path: Path, roots: AllowedRoots) -> Iterator[_Row]:
    for file in sorted(_files(path, roots), key=lambda one: one.relative_to(path).as_posix()):
        parts = file.relative_to(path).parts
        if len(parts) == 1:
            raise InputError(
                f"{file} lies in no class folder",
                tip="put each image in a folder named as its class",
            )
        item_id = "/".join(parts)
        yield _Row(str(file), {"id": item_id, "label": parts[0]}, file)


def _files(top: Path, roots: AllowedRoots) -> Iterator[Path]:
    """Every image file that is not hidden; a linked folder is gone into, each folder once."""
    waiting, seen = [top], {roots.real(top)}
    while waiting:
        for one in waiting.pop().iterdir():
            if one.name.startswith("."):
                continue
            if one.is_dir():
                real = roots.real(roots.check(one, str(top)))
                if real in seen:
                    raise InputError(f"{top}: {one} leads to a folder that is there already")
                seen.add(real)
                waiting.append(one)
            elif one.suffix.lower() in IMAGE_SUFFIXES and one.is_file():
                yield roots.check(one, str(top))


def _csv(path: Path) -> Iterator[_Row]:
    cells_left = CellBudget(path)
    with open_table(path) as file:
        reader = csv.reader(text_lines(file, path), strict=True)
        try:
            names = next(reader, [])
            _columns(names, path)
            for cells in reader:
                where = f"{path}, line {reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise InputError(f"{where}: {len(cells)} cells under {len(names)} columns")
                cells_left.take(len(cells))
                yield _Row(where, dict(zip(names, cells, strict=True)))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}, line {reader.line_num + 1}: not CSV: {error}") from error


def _jsonl(path: Path) -> Iterator[_Row]:
    cells_left = CellBudget(path)
    with open_table(path) as file:
        for number, line in enumerate(raw_lines(file, path), 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line, object_pairs_hook=_pairs, parse_constant=_no_number)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise InputError(f"{where}: not a JSON object")
            missing = [name for name in _REQUIRED if name not in record]
            if missing:
                raise InputError(f"{where}: there is no {', '.join(missing)}")
            cells_left.take(len(record))
            yield _Row(where, record)


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key is there twice")
    return record


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _columns(names: list[str], path: Path) -> None:
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        raise InputError(
            f"{path}: there is no column {', '.join(missing)}",
            tip="a table has the columns id, path, label; split and role where known",
        )
    if len(set(names)) < len(names) or "" in names:
        raise InputError(f"{path}: a column without a name, or two of the same name")


def _npz(path: Path) -> Iterator[_Row]:
    arrays = read_npz(path)
    missing = [name for name in ("images", "ids", "labels") if name not in arrays]
    if missing:
        raise InputError(f"{path}: there is no array {', '.join(missing)}")
    images = arrays.pop("images")
    grey, colour = images.ndim == 3, images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (grey or colour) or 0 in images.shape[1:]:
        raise InputError(
            f"{path}: images must be (N, H, W, 3) or (N, H, W) uint8, "
            f"got {images.shape} {images.dtype}"
        )
    for key, column in arrays.items():
        if column.shape != (len(images),) or column.dtype.kind not in "Uiu":
            raise InputError(
                f"{path}: {key} must be {len(images)} strings, got {column.shape} {column.dtype}"
            )
    names = {"ids": "id", "labels": "label"}
    columns = {names.get(key, key): column.tolist() for key, column in arrays.items()}
    for row in range(len(images)):
        record = {key: column[row] for key, column in columns.items()}
        yield _Row(f"{path}, row {row}", record, images[row])
