"""Loading a data set of any form: images, or texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from compatctl.data._columns import Fields, check_mapping, warn_of_hidden_words
from compatctl.data._dataset import Dataset, Item, Source, SplitRule
from compatctl.data._near import warn_of_near_equal
from compatctl.data._readers import FORMS, FORMS_WITHOUT_LABELS, rows_of
from compatctl.data._roots import AllowedRoots
from compatctl.data._rows import OPTIONAL, REQUIRED, RESERVED, WITHOUT_LABEL, Row, whole_rows
from compatctl.errors import InputError
from compatctl.notices import notice
from compatctl.progress import counted


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
    needed = REQUIRED if labelled else WITHOUT_LABEL
    optional = OPTIONAL if labelled else ("label", *OPTIONAL)
    fields = Fields(required=needed, optional=optional, mapped=columns or {}, partial=partial)
    rows = whole_rows(rows_of(path, roots, fields, FORMS), needed)
    return _read(((row.item(rule), row) for row in rows), path, roots, FORMS)


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

    def described() -> Iterator[tuple[Item, Row]]:
        nonlocal labelled
        fields = Fields(required=WITHOUT_LABEL, mapped=columns or {}, partial=True)
        rows = rows_of(path, roots, fields, FORMS_WITHOUT_LABELS)
        for row in whole_rows(rows, WITHOUT_LABEL):
            labelled += bool(row.text("label"))
            yield row.unlabelled_item(), row

    return _read(described(), path, roots, FORMS_WITHOUT_LABELS), labelled


def from_files(images: Sequence[Path]) -> Dataset:
    """Query images without a class. The id is the path as given, and may be repeated."""
    return Dataset(
        items=tuple(Item(id=str(path), label="", split="test", role="query") for path in images),
        sources=tuple(images),
    )


def from_texts(texts: Sequence[str]) -> Dataset:
    """Query texts without a class. The id is the text, and may be repeated.

    Raises:
        InputError: one has a byte that is no UTF-8, or half a character.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"a query is no text in UTF-8: {text[:80]!r}",
                tip="set the terminal to UTF-8, or write the queries into a .txt file",
            ) from None
    return Dataset(
        items=tuple(Item(id=text, label="", split="test", role="query") for text in texts),
        sources=tuple(texts),
    )


def _read(rows: Iterator[tuple[Item, Row]], path: Path, roots: AllowedRoots, forms: str) -> Dataset:
    try:
        return collect(rows, path, roots, forms)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def collect(
    rows: Iterator[tuple[Item, Row]], path: Path, roots: AllowedRoots, forms: str
) -> Dataset:
    """The data set of the rows at ``path``, each with its item.

    Raises:
        InputError: there is no row, an id is repeated, an image lies outside the ``roots``, or
            items are of different kinds.
    """
    folder = path if path.is_dir() else path.parent
    positions: dict[str, str] = {}
    items: list[Item] = []
    sources: list[Source] = []
    named: set[str] = set()
    without_role: list[str] = []
    for item, row in counted(rows, f"reading {path.name}"):
        named.update(row.record.keys() & RESERVED)
        if item.id in positions:
            raise InputError(f"{row.where}: the id {item.id!r} is already at {positions[item.id]}")
        positions[item.id] = row.where
        items.append(item)
        if item.role is None and row.record.get("split") != "train":
            without_role.append(item.id)
        sources.append(row.take(folder, roots))
        if isinstance(sources[0], str) != isinstance(sources[-1], str):
            raise InputError(
                f"{row.where}: it has a {row.content}, and the first item has another kind",
                tip="write images and texts into tables of their own",
            )
    if not items:
        raise InputError(f"{path}: there is no item in it", tip=f"data is {forms}")
    _warn_of_shared_files(path, items, sources)
    if without_role and any(item.role for item in items):
        result = "they are neither; write their role, or the split train if they only train"
        notice("no-role", path, "items without a role, where others have one", without_role, result)
    warn_of_near_equal(path, tuple(positions), {item.label for item in items})
    warn_of_hidden_words(
        [item.slices for item in items], [name for name in OPTIONAL if name not in named], path
    )
    return Dataset(items=tuple(items), sources=tuple(sources))


def _warn_of_shared_files(path: Path, items: Sequence[Item], sources: Sequence[Source]) -> None:
    """Warn of image files that several items have: each would find the other as its own copy."""
    files = [str(source) for source in sources if isinstance(source, Path)]
    if len(files) < len(sources) or len(set(files)) == len(files):
        return
    first: dict[str, int] = {}
    shared = [
        f"{items[first[file]].id!r} and {items[row].id!r}"
        for row, file in enumerate(files)
        if first.setdefault(file, row) != row
    ]
    result = "each finds its own copy; leave all but one out, if they are one"
    notice("shared-image", path, "items with the image of another", shared, result)
