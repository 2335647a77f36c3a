"""Reading data sets from disk, with the line and the item in every complaint."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from compatctl.data.dataset import ROLES, SPLITS, Dataset, Item, Role, Split, SplitRule
from compatctl.errors import InputError

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
NAMED = ("id", "path", "label", "split", "role")
Record = Mapping[str, str]


def load(path: Path, rule: SplitRule | None = None) -> Dataset:
    """A folder of class folders, a ``.csv`` or ``.jsonl`` table, or an ``.npz`` of inputs.

    Table columns: ``id, path, label``, optionally ``split`` and ``role``; every other column is a
    slice. Arrays of an .npz: ``images`` (N, H, W, 3) or (N, H, W) uint8, ``ids``, ``labels``,
    optionally ``split`` and ``role``. ``rule`` splits what says nothing itself.

    Raises:
        InputError: the path is missing or empty, a line is incomplete, an id is there twice.
    """
    rule = rule or SplitRule()
    if path.is_dir():
        return _folder(path, rule)
    if not path.is_file():
        raise InputError(f"no data at {path}", tip="give a folder, a .csv, a .jsonl or an .npz")
    if path.suffix == ".npz":
        return _arrays(path, rule)
    if path.suffix in {".csv", ".jsonl"}:
        return _table(path, rule)
    raise InputError(
        f"{path}: unknown kind of data {path.suffix!r}",
        tip="give a folder, a .csv, a .jsonl or .npz",
    )


def from_files(paths: Sequence[Path]) -> Dataset:
    """Single images without labels, each its own item; ids are the paths as given.

    Raises:
        InputError: a file is missing.
    """
    for path in paths:
        if not path.is_file():
            raise InputError(f"no image at {path}")
    items = tuple(Item(id=str(path), label="", split="test", role="query") for path in paths)
    return Dataset(items=items, paths=tuple(paths))


def _folder(path: Path, rule: SplitRule) -> Dataset:
    found: list[tuple[Item, Path]] = []
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix.lower() in IMAGES:
                item_id = file.relative_to(path).as_posix()
                split = rule.split_of(folder.name, item_id)
                found.append((Item(id=item_id, label=folder.name, split=split), file))
    if not found:
        raise InputError(
            f"{path}: no image in any class folder",
            tip="expected one sub-folder for each class, with images in it",
        )
    return Dataset(items=tuple(item for item, _ in found), paths=tuple(file for _, file in found))


def _table(path: Path, rule: SplitRule) -> Dataset:
    lines = _csv_lines(path) if path.suffix == ".csv" else _json_lines(path)
    items, files = [], []
    seen: dict[str, str] = {}
    for where, record in lines:
        items.append(_item(record, where, rule, seen))
        file = Path(_text(record, "path", where))
        files.append(path.parent / file)
    if not items:
        raise InputError(f"{path}: the table has no lines")
    return Dataset(items=tuple(items), paths=tuple(files))


def _csv_lines(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in NAMED[:3] if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f"{path}: the column {missing[0]!r} is missing; it has {reader.fieldnames}"
                )
            for record in reader:
                where = f"{path}, line {reader.line_num}"
                if None in record or None in record.values():
                    raise InputError(f"{where}: not as many cells as the header has columns")
                yield where, record
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV table in UTF-8: {error}") from None


def _json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{where}: not JSON: {error}") from None
        if not isinstance(record, dict) or not all(isinstance(v, str) for v in record.values()):
            raise InputError(f"{where}: expected one object whose values are all texts")
        yield where, record


def _item(record: Record, where: str, rule: SplitRule, seen: dict[str, str]) -> Item:
    item_id, label = _text(record, "id", where), _text(record, "label", where)
    if item_id in seen:
        raise InputError(f"{where}: the id {item_id!r} is there already: {seen[item_id]}")
    seen[item_id] = where
    split = _one_of(record.get("split"), SPLITS, "split", where)
    role = _one_of(record.get("role"), ROLES, "role", where)
    return Item(
        id=item_id,
        label=label,
        split=cast(Split, split) or rule.split_of(label, item_id),
        role=cast(Role, role),
        slices={name: value for name, value in record.items() if name not in NAMED},
    )


def _text(record: Record, name: str, where: str) -> str:
    value = record.get(name)
    if not value:
        raise InputError(f"{where}: {name} is {'empty' if value == '' else 'missing'}")
    return value


def _one_of(value: str | None, known: tuple[str, ...], name: str, where: str) -> str | None:
    if value in (None, ""):
        return None
    if value not in known:
        raise InputError(f"{where}: {name} must be one of {', '.join(known)}, got {value!r}")
    return value


def _arrays(path: Path, rule: SplitRule) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as file:
            columns: dict[str, Any] = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not an .npz that can be read: {error}") from None
    missing = [name for name in ("images", "ids", "labels") if name not in columns]
    if missing:
        raise InputError(f"{path}: the array {missing[0]!r} is missing; it has {sorted(columns)}")
    pixels = columns.pop("images")
    shaped = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)
    if pixels.dtype != np.uint8 or not shaped or not len(pixels):
        raise InputError(
            f"{path}: images must be (N, H, W, 3) or (N, H, W) uint8, N > 0; got "
            f"{pixels.shape} {pixels.dtype}"
        )
    for name, column in columns.items():
        if column.shape != (len(pixels),) or column.dtype.kind != "U":
            raise InputError(
                f"{path}: {name} must be {len(pixels)} texts, got {column.shape} {column.dtype}"
            )
    seen: dict[str, str] = {}
    items = tuple(
        _item(record, f"{path}, row {row}", rule, seen)
        for row, record in enumerate(_records(columns, len(pixels)))
    )
    return Dataset(items=items, pixels=pixels, rows=np.arange(len(pixels)))


def _records(columns: Mapping[str, Any], count: int) -> Iterable[Record]:
    named = {
        ("id" if k == "ids" else "label" if k == "labels" else k): v for k, v in columns.items()
    }
    for row in range(count):
        yield {name: str(column[row]) for name, column in named.items()}
