"""Loading a data set: class folders, a table, or an ``.npz``."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import starmap
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from compatctl.data._columns import (
    NAME_TIP,
    UNREAD,
    Fields,
    LineKeys,
    check_mapping,
    warn_of_hidden_words,
)
from compatctl.data._dataset import Dataset, Item, Role, Source, Split, SplitRule
from compatctl.data._folders import class_records, image_files, warn_of_empty_folders
from compatctl.data._near import warn_of_near_equal
from compatctl.data._parquet import parquet_rows
from compatctl.data._roots import AllowedRoots
from compatctl.data._saved import arrow_rows, saved_rows
from compatctl.data._shards import folder_form, shards
from compatctl.data._tables import CellBudget, field_rows, open_table, raw_lines, text_lines
from compatctl.data._webdataset import TarItems
from compatctl.errors import InputError
from compatctl.files import parse_json
from compatctl.files.npz import read_npz

_REQUIRED = ("id", "path", "label")
_WITHOUT_LABEL = ("id", "path")
_OPTIONAL = ("split", "role")
_RESERVED = frozenset((*_REQUIRED, *_OPTIONAL, UNREAD))
_ARRAYS = {"id": "ids", "label": "labels", "path": "images", "text": "texts"}
"""Name of a field -> name of its array in an .npz file, where they differ."""
_EXPECTED = {
    "id": (
        "an id that no other item has",
        "write one, such as the file's name; it must not change between tables",
    ),
    "path": ("the image's file", "write its path, relative to the table; or leave the item out"),
    "text": ("the item's text", "write it, or leave the item out"),
    "label": (
        "the item's class",
        "write it, or leave the item out; to train on images of unknown class, name a table of "
        "them as unlabelled: FILE in the recipe of compatctl finetune",
    ),
}
"""Field that no item lacks -> what it is, and what to do without it."""
_WITHOUT = {
    "split": "the class decides, by split: in compatctl.yaml (unlabelled images train)",
    "role": "the item is both query and gallery item",
}
"""Field that an item may lack -> what holds then."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_COMPRESSED = frozenset((".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip"))
_SURROGATE = re.compile("[\ud800-\udfff]")
_FILES = (
    "a .csv, .tsv, .jsonl or .parquet table, a .txt or an .npz file, or a .tar archive of "
    "WebDataset"
)
_FORMS = f"a folder of class folders, of .parquet or .tar files, or of save_to_disk; {_FILES}"
_FORMS_WITHOUT_LABELS = f"a folder; {_FILES}"

Record = Mapping[str, object]


def load(
    path: Path,
    rule: SplitRule | None = None,
    *,
    data_root: Path | None = None,
    columns: Mapping[str, str] | None = None,
    partial: bool = False,
    labelled: bool = True,
) -> Dataset:
    """Load the data set at ``path``; no image file is opened. It has one of these forms:

    - a folder of class folders: the label is the sub-folder's name, the id the path in the folder;
      or a folder of train, val, test, query or gallery, each of which has class folders;
    - a CSV, TSV or JSONL table with the columns id, path and label, and optionally split and role.
      Every other column is a slice. Paths are relative to the table's folder;
    - an .npz file with the arrays images (N, H, W, 3) or (N, H, W) uint8, ids and labels, and
      optionally split, role, and slices;
    - a Parquet table of the same columns, where path or image may hold the encoded image; a folder
      of such tables; or a folder that Hugging Face's ``save_to_disk`` wrote;
    - a WebDataset archive (.tar), or a folder of them.

    Items are texts where a table has a column text and no path, or an .npz file an array texts (N,)
    of strings and no images; or in a .txt file, one a line: its number is the id and the label.

    ``rule`` splits items without a split. Images lie in the data's own folder or in ``data_root``.
    ``columns`` (id, path, text, label, split or role -> column) names columns that have other
    names. With ``partial`` they name those of other data, too: here only the needed ones must
    exist. Unless ``labelled``, a table needs no label: an item without one is its own class, by its
    id.

    Raises:
        InputError: there is nothing, or no item; the form is unknown; an id is repeated; an id or
            label is empty; a split or role is unknown; a column is missing; a form without columns
            has ``columns``; or an image lies outside both folders. The message names the line.
    """
    rule = rule or SplitRule()
    roots = AllowedRoots(path if path.is_dir() else path.parent, data_root)
    check_mapping(columns or {})
    needed = _REQUIRED if labelled else _WITHOUT_LABEL
    optional = _OPTIONAL if labelled else ("label", *_OPTIONAL)
    fields = Fields(required=needed, optional=optional, mapped=columns or {}, partial=partial)
    rows = _whole(_rows(path, roots, fields, _FORMS), needed)
    return _read(((row.item(rule), row) for row in rows), path, roots, _FORMS)


def load_unlabelled(
    path: Path, *, data_root: Path | None = None, columns: Mapping[str, str] | None = None
) -> tuple[Dataset, int]:
    """Load images whose labels do not count; no image file is opened. The forms are those of
    ``load``, with two differences:

    - in a folder the images may lie anywhere, and the id begins with the folder's name, so that it
      is no other item's id by chance;
    - a table needs no label, and an .npz file no labels.

    ``columns`` may name columns that these data do not have, if they are not needed here.

    Returns the items, and how many had a label or lay in a sub-folder. Their label is empty. Their
    split is that of the table, else train.

    Raises:
        InputError: as ``load``.
    """
    roots = AllowedRoots(path if path.is_dir() else path.parent, data_root)
    labelled = 0
    check_mapping(columns or {})

    def described() -> Iterator[tuple[Item, _Row]]:
        nonlocal labelled
        fields = Fields(required=_WITHOUT_LABEL, mapped=columns or {}, partial=True)
        rows = _rows(path, roots, fields, _FORMS_WITHOUT_LABELS)
        for row in _whole(rows, _WITHOUT_LABEL):
            labelled += bool(row.text("label"))
            yield row.unlabelled_item(), row

    return _read(described(), path, roots, _FORMS_WITHOUT_LABELS), labelled


def from_files(images: Sequence[Path]) -> Dataset:
    """Query images without a class. The id is the path as given, and may be repeated."""
    return Dataset(
        items=tuple(Item(id=str(path), label="", split="test", role="query") for path in images),
        sources=tuple(images),
    )


def from_texts(texts: Sequence[str]) -> Dataset:
    """Query texts without a class. The id is the text, and may be repeated."""
    return Dataset(
        items=tuple(Item(id=text, label="", split="test", role="query") for text in texts),
        sources=tuple(texts),
    )


class _Row:
    """An unchecked item: its position for messages, its fields, and its source if it is no file.

    ``content`` is the field that has what the item is: the path of an image, or a text.
    """

    def __init__(self, where: str, record: Record, source: Source | None = None) -> None:
        self.where = where
        self.record = record
        self.source = source
        is_text = source is None and "text" in record and "path" not in record
        self.content: Literal["path", "text"] = "text" if is_text else "path"

    def text(self, key: str) -> str:
        """A field as text; empty if it is missing or None."""
        value = self.record.get(key)
        if value is None:
            return ""
        if isinstance(value, str):
            if key != "path" and not value.isascii() and _SURROGATE.search(value):
                raise InputError(
                    f"{self.where}: {key} is not writable text: {value!r}",
                    tip="rename it in UTF-8; if it is, this shell is not: set PYTHONUTF8=1",
                )
            return value
        if isinstance(value, int | float) and (key not in _RESERVED or type(value) is int):
            return json.dumps(value)
        raise InputError(
            f"{self.where}: {key} must be text, got {value!r}"[:400],
            tip="write it as text, as it shall be compared: 7 and 7.0 are two labels",
        )

    def word(self, key: str, known: tuple[str, ...]) -> str | None:
        """A field that is one of ``known``, or None if it is empty."""
        value = self.text(key)
        if value and value not in known:
            raise InputError(
                f"{self.where}{self._named(key)}: {key} is one of {', '.join(known)}; got "
                f"{value!r}",
                tip=f"leave {key} empty: then {_WITHOUT[key]}",
            )
        return value or None

    def lacks(self, key: str) -> bool:
        """Whether a field is missing, or has nothing but blanks; an array needs no path, nor does
        a text."""
        key = self.content if key == "path" else key
        return (key != "path" or self.source is None) and not self.text(key).strip()

    def refusal(self, key: str, others: int) -> InputError:
        """The error of an item that lacks ``key``, as so many ``others`` do."""
        key = self.content if key == "path" else key
        expected, tip = _EXPECTED[key]
        more = f"; {others + 1} items have none" if others else ""
        got = "nothing" if self.record.get(key) is None else repr(self.record[key])
        where = f"{self.where}{self._named(key)}"
        return InputError(f"{where}: {key} is empty: expected {expected}, got {got}{more}", tip=tip)

    def _named(self, key: str) -> str:
        """By what else a message names the item."""
        other = "id" if key != "id" else "path"
        value = "" if self.lacks(other) else self.text(other)
        return f" ({other} {value!r})" if value and other in self.record else ""

    def unlabelled_item(self) -> Item:
        """The item without its label, in the row's split or else in ``train``."""
        split = self.word("split", get_args(Split)) or "train"
        return Item(id=self.text("id"), label="", split=cast("Split", split))

    def item(self, rule: SplitRule) -> Item:
        """The item, after all checks of its fields."""
        item_id = self.text("id")
        label = item_id if self.lacks("label") else self.text("label")
        described = (key for key in sorted(self.record) if key not in {*_RESERVED, self.content})
        slices = {key: self.text(key) for key in described}
        split = self.word("split", get_args(Split)) or rule.split_of(label, item_id)
        return Item(
            id=item_id,
            label=label,
            split=cast("Split", split),
            role=cast("Role | None", self.word("role", get_args(Role))),
            slices={key: value for key, value in slices.items() if value},
        )

    def take(self, folder: Path, roots: AllowedRoots) -> Source:
        """The item's source, image file or text; a relative path starts from ``folder``."""
        if self.source is not None:
            return self.source
        if self.content == "text":
            return self.text("text")
        if _URL.match(self.text("path")):
            raise InputError(
                f"{self.where}: {self.text('path')[:80]!r} is an address; images are files",
                tip="fetch the images first, and write their paths into the table",
            )
        return roots.check(folder / self.text("path"), self.where)


def _whole(rows: Iterator[_Row], required: tuple[str, ...]) -> Iterator[_Row]:
    """The rows, until one lacks a ``required`` field."""
    for row in rows:
        for key in required:
            if row.lacks(key):
                raise row.refusal(key, _count(rows, key))
        yield row


def _count(rows: Iterator[_Row], key: str) -> int:
    """How many rows lack a field, up to the first one that cannot be read."""
    count = 0
    try:
        for row in rows:
            count += row.lacks(key)
    except InputError:
        return count
    return count


def _rows(path: Path, roots: AllowedRoots, fields: Fields, forms: str) -> Iterator[_Row]:
    """The rows of a data set of any form; its records have the required ``fields``."""
    if path.is_dir():
        return _folder_rows(path, roots, fields)
    readers: dict[str, Callable[[Path, Fields], Iterator[_Row]]] = {
        ".csv": _csv,
        ".tsv": _csv,
        ".jsonl": _jsonl,
        ".txt": _lines,
        ".npz": _npz,
        ".parquet": _parquet,
        ".arrow": _arrow,
        ".tar": _tar,
    }
    if not path.exists():
        raise InputError(f"no data at {path}", tip=f"data is {forms}")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        tip = "unpack it first" if path.suffix.lower() in _COMPRESSED else f"data is {forms}"
        raise InputError(f"{path}: an unknown form of data", tip=tip)
    return reader(path, fields)


def _folder_rows(top: Path, roots: AllowedRoots, fields: Fields) -> Iterator[_Row]:
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
        return starmap(_Row, saved_rows(top, fields))
    files = shards(top, roots, form)
    if form == ".tar":
        return _tars(files, fields, top)
    return starmap(_Row, parquet_rows(files, fields, top))


def _parquet(path: Path, fields: Fields) -> Iterator[_Row]:
    return starmap(_Row, parquet_rows([(path, {})], fields, path))


def _arrow(path: Path, fields: Fields) -> Iterator[_Row]:
    return starmap(_Row, arrow_rows(path, fields))


def _tar(path: Path, fields: Fields) -> Iterator[_Row]:
    return _tars([(path, {})], fields, path)


def _tars(
    files: Sequence[tuple[Path, Mapping[str, object]]], fields: Fields, source: Path
) -> Iterator[_Row]:
    items = TarItems(source, fields)
    for path, record in files:
        for where, row, image in items.rows(path):
            yield _Row(where, {**record, **row}, image)
    items.end()


def _read(
    rows: Iterator[tuple[Item, _Row]], path: Path, roots: AllowedRoots, forms: str
) -> Dataset:
    try:
        return _collect(rows, path, roots, forms)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _collect(
    rows: Iterator[tuple[Item, _Row]], path: Path, roots: AllowedRoots, forms: str
) -> Dataset:
    folder = path if path.is_dir() else path.parent
    positions: dict[str, str] = {}
    items: list[Item] = []
    sources: list[Source] = []
    named: set[str] = set()
    for item, row in rows:
        named.update(row.record.keys() & _RESERVED)
        if item.id in positions:
            raise InputError(f"{row.where}: the id {item.id!r} is already at {positions[item.id]}")
        positions[item.id] = row.where
        items.append(item)
        sources.append(row.take(folder, roots))
        if isinstance(sources[0], str) != isinstance(sources[-1], str):
            raise InputError(
                f"{row.where}: it has a {row.content}, and the first item has another kind",
                tip="write images and texts into tables of their own",
            )
    if not items:
        raise InputError(f"{path}: there is no item in it", tip=f"data is {forms}")
    warn_of_near_equal(path, tuple(positions), {item.label for item in items})
    warn_of_hidden_words(
        [item.slices for item in items], [name for name in _OPTIONAL if name not in named], path
    )
    return Dataset(items=tuple(items), sources=tuple(sources))


def _folder(path: Path, roots: AllowedRoots, *, labelled: bool) -> Iterator[_Row]:
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
        yield _Row(str(file), {"id": "/".join((*above, *parts)), **record}, file)


def _csv(path: Path, fields: Fields) -> Iterator[_Row]:
    checked = False
    for where, record in field_rows(path, fields):
        if not checked and "" in record:
            raise InputError(f"{path}: a column without a name", tip="name it, or leave it out")
        checked = True
        yield _Row(where, record)


def _jsonl(path: Path, fields: Fields) -> Iterator[_Row]:
    cells_left = CellBudget(path)
    keys = LineKeys(path, fields)
    with open_table(path) as file:
        for number, line in enumerate(raw_lines(file, path), 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            parsed = parse_json(line.removeprefix(codecs.BOM_UTF8), where)
            if not isinstance(parsed, dict):
                raise InputError(f"{where}: not a JSON object")
            record = keys.renamed(parsed, where)
            cells_left.take(len(record))
            yield _Row(where, record)
    keys.refuse_unseen()


def _lines(path: Path, fields: Fields) -> Iterator[_Row]:
    """The lines of a text file, each a text."""
    if fields.mapped and not fields.partial:
        raise InputError(
            f"{path}: a .txt file has a text a line, and no columns; the names of columns are "
            f"given for {', '.join(fields.mapped)}",
            tip="write a .csv table of the columns; or leave columns: of compatctl.yaml out",
        )
    labels = ("label",) if "label" in fields.required else ()
    try:
        with open_table(path) as file:
            for number, line in enumerate(text_lines(file, path), 1):
                record = dict.fromkeys(("id", *labels), str(number))
                yield _Row(f"{path}, line {number}", {**record, "text": line.rstrip("\r\n")})
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not text in UTF-8: {error.reason}", tip="save it as UTF-8"
        ) from error


def _npz(path: Path, fields: Fields) -> Iterator[_Row]:
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
    grey, colour = images.ndim == 3, images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (grey or colour) or 0 in images.shape[1:]:
        raise InputError(
            f"{path}: images must be (N, H, W, 3) or (N, H, W) uint8, "
            f"got {images.shape} {images.dtype}"
        )
    for row, image in zip(_records(path, arrays, len(images)), images, strict=True):
        yield _Row(row.where, row.record, image)


def _records(path: Path, arrays: Mapping[str, NDArray[Any]], n: int) -> Iterator[_Row]:
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
        yield _Row(f"{path}, row {row}", record)
