"""Data sets of vectors: the items of one or more tables, each with a vector in each space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from compatctl.data._columns import Fields
from compatctl.data._content import ItemVectors, SpaceVectors
from compatctl.data._dataset import Dataset, Item, SplitRule
from compatctl.data._load import collect
from compatctl.data._readers import rows_of
from compatctl.data._roots import AllowedRoots
from compatctl.data._rows import Row, whole_rows
from compatctl.data._vectors import FORMS, VectorTable, load_vectors
from compatctl.errors import InputError
from compatctl.notices import notice
from compatctl.progress import counted


def load_vector_items(
    tables: Mapping[str, Path],
    rule: SplitRule | None = None,
    *,
    data: Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> Dataset:
    """Items whose content is their vectors, by the space's name -> the table's file.

    ``data``, a table with the column id and optionally label, split, role and slices, says which
    items there are. Without it they are those of all tables, which then say label, split and role.
    Where nothing says labels, each item is a class of its own, and gallery items do not train.

    Raises:
        InputError: a table cannot be read, two contradict each other, or an item has no vector;
            else as ``load``.
    """
    loaded = {space: load_vectors(path) for space, path in tables.items()}
    path = data or next(iter(tables.values()))
    roots = AllowedRoots(path.parent, None)
    if data is None:
        rows = [Row(where, record) for where, record in _records(loaded)]
    else:
        fields = Fields(required=("id",), optional=_OPTIONAL, mapped=columns or {}, partial=True)
        records = rows_of(data, roots, fields, "a table with the column id")
        rows = [*counted(records, f"reading {data.name}")]
        _warn_of_unnamed(loaded, data, {row.text("id") for row in rows})
    if not any(row.text("label") for row in rows):
        for row in rows:
            row.record = _as_own_class(row)
    whole = whole_rows(iter(rows), ("id", "label"))
    return collect(_items(whole, rows, loaded, rule or SplitRule()), path, roots, FORMS)


_OPTIONAL = ("label", "split", "role")


def _records(tables: Mapping[str, VectorTable]) -> Iterator[tuple[str, dict[str, str]]]:
    """(position for messages, fields) of every item of the tables.

    Raises:
        InputError: two tables say different things of an item.
    """
    records: dict[str, dict[str, str]] = {}
    for table in tables.values():
        for row, item in enumerate(table.ids):
            record = records.setdefault(item, {"id": item})
            for name, column in table.columns.items():
                if record.setdefault(name, column[row]) != column[row]:
                    raise InputError(
                        f"{table.path}: {name} of {item!r} is {column[row]!r}, and in another "
                        f"table it is {record[name]!r}",
                        tip="describe the items in a table of their own: --data FILE",
                    )
    names = ", ".join(table.path.name for table in tables.values())
    return ((f"{names}, item {item!r}", record) for item, record in records.items())


def _as_own_class(row: Row) -> dict[str, object]:
    """The fields of an item without a label: it is a class of its own, and a gallery item is not
    a labelled training item."""
    record = {**row.record, "label": row.text("id")}
    if row.text("role") == "gallery" and not row.text("split"):
        record["split"] = "test"
    return record


def _items(
    whole: Iterator[Row], rows: list[Row], tables: Mapping[str, VectorTable], rule: SplitRule
) -> Iterator[tuple[Item, Row]]:
    """Each item, its row with its vectors as the source."""
    ids = [row.text("id") for row in rows]
    spaces = {
        space: SpaceVectors(table=table.vectors, rows=table.rows_of(ids))
        for space, table in tables.items()
    }
    for position, row in enumerate(whole):
        if all(space.rows[position] < 0 for space in spaces.values()):
            raise InputError(
                f"{row.where}: there is no vector of {ids[position]!r} in any table",
                tip="embed the item, or leave it out of the data",
            )
        row.source = ItemVectors(spaces, position)
        yield row.item(rule), row


def _warn_of_unnamed(tables: Mapping[str, VectorTable], data: Path, named: set[str]) -> None:
    """Warn of vectors of items that the data does not name."""
    for table in tables.values():
        left_out = [item for item in table.ids if item not in named]
        if left_out:
            notice("unnamed-vector", table.path, f"vectors of ids that {data.name} lacks", left_out)
