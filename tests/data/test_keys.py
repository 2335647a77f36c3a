"""Tables of the item behind each key: each form gives the same table, and each defect is named."""

from __future__ import annotations

import json
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from compatctl.data import KeyColumns, KeyTable, read_key_table
from compatctl.errors import InputError
from compatctl.notices import collected

KEYS = [7, 2**53 + 1, 2**64 - 1, 0]
IDS = ["007", "caf\u00e9", "a,b", "4"]
LABELS = ["shoe", "", "hat", "shoe"]
PLAIN = KeyColumns(names={})


def _csv(folder: Path) -> Path:
    path = folder / "keys.csv"
    lines = [
        "key,id,label",
        "7,007,shoe",
        f"{2**53 + 1},caf\u00e9,",
        f'{2**64 - 1},"a,b",hat',
        "0,4,shoe",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _objects() -> list[dict[str, Any]]:
    return [
        {"key": key, "id": item, "label": label}
        for key, item, label in zip(KEYS, IDS, LABELS, strict=True)
    ]


def _json_list(folder: Path) -> Path:
    return _json(folder, _objects())


def _json_map(folder: Path) -> Path:
    return _json(folder, {str(entry.pop("key")): entry for entry in _objects()})


def _json(folder: Path, content: Any) -> Path:
    path = folder / "keys.json"
    path.write_text(json.dumps(content))
    return path


def _jsonl(folder: Path) -> Path:
    path = folder / "keys.jsonl"
    path.write_text("\n".join(map(json.dumps, _objects())) + "\n")
    return path


def _sqlite(folder: Path, *, other: bool = True) -> Path:
    """Keys above 2^63 are text: SQLite's whole numbers are signed."""
    path = folder / "keys.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute('CREATE TABLE "the items" (Key, id TEXT, label TEXT)')
        rows = [
            (key if key < 2**63 else str(key), *rest)
            for key, *rest in zip(KEYS, IDS, LABELS, strict=True)
        ]
        database.executemany('INSERT INTO "the items" VALUES (?, ?, ?)', rows)
        if other:
            database.execute("CREATE TABLE prices (sku TEXT, price REAL)")
        database.commit()
    return path


def _as_rows(table: KeyTable) -> list[tuple[int, str, str]]:
    return list(zip(table.keys.tolist(), table.ids, table.labels, strict=True))


@pytest.mark.parametrize("write", [_csv, _json_list, _json_map, _jsonl, _sqlite])
def test_every_form_gives_the_same_table(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """Keys up to 2^64 - 1 are exact, leading zeros stay, and an empty label is an unknown class."""
    table = read_key_table(write(tmp_path), PLAIN)
    assert _as_rows(table) == list(zip(KEYS, IDS, LABELS, strict=True))


def test_ids_in_a_list_have_their_positions_as_keys(tmp_path: Path) -> None:
    """A JSON list of texts (which is noticed) and the lines of a text file."""
    with collected() as notices:
        table = read_key_table(_json(tmp_path, IDS), PLAIN)
    assert [entry["kind"] for entry in notices.entries()] == ["key-order"]
    (tmp_path / "ids.txt").write_text("\n".join(IDS) + "\n", encoding="utf-8")
    lines = read_key_table(tmp_path / "ids.txt", PLAIN)
    assert _as_rows(table) == _as_rows(lines) == [(n, item, "") for n, item in enumerate(IDS)]
    simple = read_key_table(_json(tmp_path, {"3": "a", "1": "b"}), PLAIN)
    assert _as_rows(simple) == [(3, "a", ""), (1, "b", "")]


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    """In CSV, JSONL and SQLite, of which a table is named where several fit."""
    names = KeyColumns(names={"key": "faiss_id", "id": "sku", "label": "kind"})
    (tmp_path / "k.csv").write_text("faiss_id,sku,kind\n5,x,shoe\n")
    (tmp_path / "k.jsonl").write_text('{"faiss_id": 5, "sku": "x", "kind": "shoe"}\n')
    with closing(sqlite3.connect(tmp_path / "k.db")) as database:
        for table in ("now", "before"):
            database.execute(f"CREATE TABLE {table} (faiss_id INTEGER, sku TEXT, kind TEXT)")
            database.execute(f"INSERT INTO {table} VALUES (5, ?, 'shoe')", (table[:1],))
        database.commit()
    for name in ("k.csv", "k.jsonl"):
        assert _as_rows(read_key_table(tmp_path / name, names)) == [(5, "x", "shoe")]
    with pytest.raises(InputError, match="before and now each have") as caught:
        read_key_table(tmp_path / "k.db", names)
    assert "--items-table" in caught.value.tip
    named = KeyColumns(names=names.names, table="now")
    assert _as_rows(read_key_table(tmp_path / "k.db", named)) == [(5, "n", "shoe")]
    rows = KeyColumns(names={"key": "rowid", "id": "sku"}, table="now")
    assert _as_rows(read_key_table(tmp_path / "k.db", rows)) == [(1, "n", "")]


def test_a_chosen_table_of_several_is_noticed(tmp_path: Path) -> None:
    """The database has another table, so which one is read is said; of one table it is not."""
    for other, kinds in ((True, ["items-table"]), (False, [])):
        folder = tmp_path / str(other)
        folder.mkdir()
        with collected() as notices:
            read_key_table(_sqlite(folder, other=other), PLAIN)
        assert [entry["kind"] for entry in notices.entries()] == kinds


def test_a_pickle_is_refused_without_reading_it_and_the_way_out_works(tmp_path: Path) -> None:
    """Nothing in it runs; the tip converts it to JSON, which is read."""
    import subprocess
    import sys

    path = tmp_path / "keys.pkl"
    path.write_bytes(pickle.dumps({3: "a", 9: "b"}))
    with pytest.raises(InputError, match="any code") as caught:
        read_key_table(path, PLAIN)
    program = caught.value.tip.partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert _as_rows(read_key_table(tmp_path / "keys.json", PLAIN)) == [(3, "a", ""), (9, "b", "")]
    for protocol in range(6):
        path.write_bytes(pickle.dumps({3: "a"}, protocol=protocol))
        with pytest.raises(InputError):
            read_key_table(path, PLAIN)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"key": 1.0, "id": "a"}], "whole number"),
        ([{"key": 1e18, "id": "a"}], "whole number"),
        ([{"key": True, "id": "a"}], "whole number"),
        ([{"key": -1, "id": "a"}], "whole number"),
        ([{"key": 2**64, "id": "a"}], "is larger than"),
        ([{"key": 1, "id": " "}], "the item's id"),
        ([{"key": 1, "id": None}], "the item's id"),
        ([{"key": 1, "id": "a"}, {"key": "1", "id": "b"}], "the key 1 is there twice"),
        ([{"key": 1, "sku": "a"}], "expected an object with 'id', got 'key', 'sku'"),
        ([{"key": 1, "id": "a"}, 3], "entry 1: expected an object"),
        ({"1": ["a"]}, "the item's id"),
        (3, "expected an object|not a table|columns"),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, content: Any, words: str) -> None:
    """With its place, what was expected and what was got."""
    with pytest.raises(InputError, match=words):
        read_key_table(_json(tmp_path, content), PLAIN)


def test_a_key_that_an_object_has_twice_is_refused(tmp_path: Path) -> None:
    """JSON readers keep the last one in silence."""
    (tmp_path / "keys.json").write_text('{"1": "a", "1": "b"}')
    with pytest.raises(InputError, match="'1' is there twice"):
        read_key_table(tmp_path / "keys.json", PLAIN)


def test_sqlite_that_has_no_such_table_lists_its_tables(tmp_path: Path) -> None:
    """Names of tables and of columns are in the message."""
    with closing(sqlite3.connect(tmp_path / "k.db")) as database:
        database.execute("CREATE TABLE prices (sku TEXT, price REAL)")
    with pytest.raises(InputError, match=r"no table has .*prices \(sku, price\)"):
        read_key_table(tmp_path / "k.db", PLAIN)
    with pytest.raises(InputError, match="no table 'items'"):
        read_key_table(tmp_path / "k.db", KeyColumns(names={}, table="items"))
    with pytest.raises(InputError, match="no SQLite database"):
        read_key_table(_csv(tmp_path), KeyColumns(names={}, table="items"))
