"""The forms of data: which one a path has, and the rows of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.data._columns import NAME_TIP, UNREAD, Fields, LineKeys
from compatctl.data._folders import class_records, image_files, warn_of_empty_folders
from compatctl.data._parquet import parquet_rows
from compatctl.data._roots import AllowedRoots
from compatctl.data._rows import Row
from compatctl.data._saved import arrow_rows, saved_rows
from compatctl.data._shards import folder_form, shards
from compatctl.data._tables import (
    CellBudget,
    field_rows,
    header_of,
    json_object,
    open_table,
    raw_lines,
    text_lines,
)
from compatctl.data._webdataset import TarItems
from compatctl.errors import InputError
from compatctl.files import absence
from compatctl.files.npz import read_npz

_FILES = (
    "a .csv, .tsv, .jsonl or .parquet table, a .txt or an .npz file, or a .tar archive of "
    "WebDataset"
)
FORMS = f"a folder of class folders, of .parquet or .tar files, or of save_to_disk; {_FILES}"
FORMS_WITHOUT_LABELS = f"a folder; {_FILES}"

_ARRAYS = {"id": "ids", "label": "labels", "path": "images", "text": "texts"}
"""Name of a field -> name of its array in an .npz file, where they differ."""
_UNREAD_FORMS = {
    **dict.fromkeys((".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip"), "unpack it first"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV in UTF-8"),
    ".dvc": "it stands for another file: dvc pull fetches that",
    ".json": "write one object on each line, and name the file .jsonl",
}
"""Ending -> what to do."""


def rows_of(path: Path, roots: AllowedRoots, fields: Fields, forms: str) -> Iterator[Row]:
    """The rows of a data set of any form; its records have the required ``fields``."""
    if path.is_dir():
        return _folder_rows(path, roots, fields)
    readers: dict[str, Callable[[Path, Fields], Iterator[Row]]] = {
        ".csv": _csv,
        ".tsv": _csv,
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".txt": _lines,
        ".npz": _npz,
        ".parquet": _parquet,
        ".arrow": _arrow,
        ".tar": _tar,
    }
    if not path.exists():
        raise InputError(f"no data at {path}", tip=absence(path) or f"data is {forms}")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: an unknown form of data",
            tip=_UNREAD_FORMS.get(path.suffix.lower(), f"data is {forms}"),
        )
    return reader(path, fields)


def _folder_rows(top: Path, roots: AllowedRoots, fields: Fields) -> Iterator[Row]:
    """The rows of a folder: images, shards of Parquet or tar, or a saved data set."""
    form = folder_form(top)
    if form == "images":
        if fields.mapped and not fields.partial:
            raise InputError(
                f"{top}: a folder of images has no columns; the names of columns are given for "
                f"{', '.join(fields.mapped)}",
                tip="leave --column out, and columns: of compatctl.yaml",
            )
        return _folder(top, roots, labelled="label" in fields.known)
    if form == "saved":
        return starmap(Row, saved_rows(top, fields))
    files = shards(top, roots, form)
    if form == ".tar":
        return _tars(files, fields, top)
    return starmap(Row, parquet_rows(files, fields, top))


def _parquet(path: Path, fields: Fields) -> Iterator[Row]:
    return starmap(Row, parquet_rows([(path, {})], fields, path))


def _arrow(path: Path, fields: Fields) -> Iterator[Row]:
    return starmap(Row, arrow_rows(path, fields))


def _tar(path: Path, fields: Fields) -> Iterator[Row]:
    return _tars([(path, {})], fields, path)


def _tars(
    files: Sequence[tuple[Path, Mapping[str, object]]], fields: Fields, source: Path
) -> Iterator[Row]:
    items = TarItems(source, fields)
    for path, record in files:
        for where, row, image in items.rows(path):
            yield Row(where, {**record, **row}, image)
    items.end()


def _folder(path: Path, roots: AllowedRoots, *, labelled: bool) -> Iterator[Row]:
    """The images of a folder; without labels the id begins with the folder's name."""
    files = image_files(path, roots)
    paths = [file.relative_to(path).parts for file in files]
    stray = next((file for file, parts in zip(files, paths, strict=True) if len(parts) == 1), None)
    if labelled and stray is not None:
        raise InputError(
            f"{stray} lies in no class folder",
            tip="put each image into a folder named after its class",
        )
    if labelled and files:
        records = class_records(path, paths)
        warn_of_empty_folders(path, {parts[0] for parts in paths})
    else:
        records = [{"label": parts[0] if len(parts) > 1 else ""} for parts in paths]
    above = () if labelled else (path.resolve().name,)
    for file, parts, record in zip(files, paths, records, strict=True):
        yield Row(str(file), {"id": "/".join((*above, *parts)), **record}, file)


def _csv(path: Path, fields: Fields) -> Iterator[Row]:
    checked = False
    for where, record in field_rows(path, fields):
        if not checked and "" in record:
            raise InputError(f"{path}: a column without a name", tip="name it, or leave it out")
        checked = True
        yield Row(where, record)


def _jsonl(path: Path, fields: Fields) -> Iterator[Row]:
    cells_left = CellBudget(path)
    keys = LineKeys(path, fields)
    with open_table(path) as file:
        for number, line in enumerate(raw_lines(file, path), 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            record = keys.renamed(json_object(line, where), where)
            cells_left.take(len(record))
            yield Row(where, record)
    keys.refuse_unseen()


def _lines(path: Path, fields: Fields) -> Iterator[Row]:
    """The lines of a text file, each a text."""
    if fields.mapped and not fields.partial:
        raise InputError(
            f"{path}: a .txt file has a text a line, and no columns; the names of columns are "
            f"given for {', '.join(fields.mapped)}",
            tip="write a .csv table of the columns; or leave columns: of compatctl.yaml out",
        )
    labels = ("label",) if "label" in fields.required else ()
    if any(header_of(path, ("id", name)) for name in ("text", "path")):
        raise InputError(
            f"{path}: its first line is the header of a table; a .txt file has texts alone",
            tip="name it .csv",
        )
    with open_table(path) as file:
        for number, line in enumerate(text_lines(file, path), 1):
            record = dict.fromkeys(("id", *labels), str(number))
            yield Row(f"{path}, line {number}", {**record, "text": line.rstrip("\r\n")})


def _npz(path: Path, fields: Fields) -> Iterator[Row]:
    arrays = read_npz(path)
    texts = "images" not in arrays and fields.mapped.get("text", "texts") in arrays
    named = ("text" if texts else "path", "id", "label")
    needed = tuple(_ARRAYS[name] for name in named if name in {*fields.required, "text"})
    arrays_of = replace(
        fields,
        required=needed,
        optional=tuple(_ARRAYS.get(name, name) for name in fields.optional),
        mapped={_ARRAYS.get(name, name): column for name, column in fields.mapped.items()},
        advice=f"an .npz file has the arrays {', '.join(needed)}; {NAME_TIP}",
    )
    renamed = arrays_of.rename(tuple(arrays), path, "arrays")
    arrays = {renamed.get(name, name): array for name, array in arrays.items()}
    arrays.pop(UNREAD, None)
    images = arrays.pop("images", None)
    if images is None:
        yield from _records(path, arrays, len(arrays["texts"]))
        return
    colour = images.ndim == 4 and images.shape[-1] == 3
    grey = images.ndim == 3 and images.shape[-1] != 3  # else an axis of colour images is missing
    if images.dtype != np.uint8 or not (grey or colour) or 0 in images.shape[1:]:
        raise InputError(
            f"{path}: images must be (N, H, W, 3) or (N, H, W) uint8, "
            f"got {images.shape} {images.dtype}"
        )
    for row, image in zip(_records(path, arrays, len(images)), images, strict=True):
        yield Row(row.where, row.record, image)


def _records(path: Path, arrays: Mapping[str, NDArray[Any]], n: int) -> Iterator[Row]:
    """The rows of ``n`` strings of each array."""
    for key, column in arrays.items():
        if column.shape != (n,) or column.dtype.kind not in "Uiu":
            raise InputError(
                f"{path}: {key} must be {n} strings, got {column.shape} {column.dtype}"
            )
    names = {array: name for name, array in _ARRAYS.items()}
    columns = {names.get(key, key): column.tolist() for key, column in arrays.items()}
    for row in range(n):
        record = {key: column[row] for key, column in columns.items()}
        yield Row(f"{path}, row {row}", record)
