"""Tables whose columns are nearly known, whose separators differ, or whose rows are uneven."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from compatctl.data import (
    csv_rows,
    load,
    load_features,
    load_unlabelled,
    read_pairs,
    read_traffic_log,
)
from compatctl.errors import InputError
from compatctl.notices import DataWarning, Notices, collected

HEAD = "id,path,label,role,split"
ROWS = ("a,a.png,x,query,test", "b,b.png,x,gallery,test", "c,c.png,y,gallery,train")


def written(tmp_path: Path, text: str, name: str = "items.csv") -> Path:
    """A table; its images are never opened."""
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def table(tmp_path: Path, head: str = HEAD, separator: str = ",", end: str = "\n") -> Path:
    """The three items under this header."""
    lines = [head, *ROWS]
    return written(tmp_path, "".join(line.replace(",", separator) + end for line in lines))


def kinds(notices: Notices) -> list[tuple[str, int]]:
    """Kind and count of each notice."""
    return [(entry["kind"], entry["count"]) for entry in notices.entries()]


@pytest.mark.parametrize(
    "head",
    [
        "id,path,label,Role,Split",
        "id,path,label,role ,\u00a0split",
        "ID,Path,LABEL,ROLE,SPLIT",
        "id,path,label,roles,splits",
        "i_d,path,label,\u200brole,split",
    ],
)
def test_a_similar_name_is_read_as_the_known_one_and_said(tmp_path: Path, head: str) -> None:
    """Case, blanks, invisible characters and a plural change no item; each is named."""
    expected = load(table(tmp_path)).items
    with collected() as notices:
        assert load(table(tmp_path, head)).items == expected
    changed = [name for name in head.split(",") if name not in HEAD.split(",")]
    (entry,) = notices.entries()
    assert (entry["kind"], entry["count"]) == ("similar-column", len(changed))
    assert all(repr(name) in entry["names"][at] for at, name in enumerate(changed))


def test_good_tables_give_no_notice(tmp_path: Path) -> None:
    """A byte order mark, CRLF and slices are read as they are written."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        path = table(tmp_path, "\ufeffid,path,label,role,split", end="\r\n")
        assert [item.role for item in load(path).items] == ["query", "gallery", "gallery"]
        load(written(tmp_path, "id,path,label,vendor,Year\na,a.png,x,one,1999\n"))


def test_two_columns_that_could_be_one_are_refused(tmp_path: Path) -> None:
    """Neither of Role and ROLE is chosen; an exact name is never replaced."""
    with pytest.raises(InputError, match="'Role', 'ROLE' could each be 'role'"):
        load(written(tmp_path, "id,path,label,Role,ROLE\na,a.png,x,query,query\n"))
    with collected() as notices:
        data = load(written(tmp_path, "id,path,label,Label\na,a.png,x,z\n"))
    assert (data.labels, data.items[0].slices) == (("x",), {"Label": "z"})
    assert notices.entries()[0]["names"] == ["'Label' beside 'label'"]


@pytest.mark.parametrize(
    ("name", "shown"), [("rolle", "'rolle': role?"), ("kind", "'kind': role?")]
)
def test_a_role_under_another_name_stays_a_slice_and_is_said(
    tmp_path: Path, name: str, shown: str
) -> None:
    """By a misspelt name, and by what the cells are."""
    with collected() as notices:
        data = load(table(tmp_path, f"id,path,label,{name},split"))
    assert data.items[0].role is None
    assert notices.entries()[0]["names"] == [shown]
    assert {kind for kind, _ in kinds(notices)} == {"unknown-column"}


def test_a_missing_column_lists_those_found(tmp_path: Path) -> None:
    """The message names what the table has."""
    with pytest.raises(InputError, match="no column path; its columns are 'id', 'file', 'label'"):
        load(written(tmp_path, "id,file,label\na,a.png,x\n"))


def test_keys_of_json_lines_and_arrays_follow_the_same_rule(tmp_path: Path) -> None:
    """Each line of JSONL by itself, and the arrays of .npz files."""
    lines = [
        {"id": "a", "path": "a.png", "Label": "x", "Role": "query"},
        {"id": "b", "path": "b.png", "label": "x", "role": "gallery"},
    ]
    with collected() as notices:
        data = load(written(tmp_path, "\n".join(map(json.dumps, lines)), "items.jsonl"))
    assert [item.role for item in data.items] == ["query", "gallery"]
    assert kinds(notices) == [("similar-column", 2)]
    arrays = {"IDs": ["a", "b"], "label": ["x", "x"], "Role": ["query", "gallery"]}
    np.savez(tmp_path / "t.npz", features=np.eye(2, dtype=np.float32), **arrays)
    with collected() as notices:
        features = load_features(tmp_path / "t.npz")
    assert (features.role, features.slices) == (("query", "gallery"), {})
    assert kinds(notices) == [("similar-column", 3)]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_known_by_the_header(tmp_path: Path, separator: str) -> None:
    """As spreadsheets of half of Europe write it, with a mark and CRLF; the notice names it."""
    expected = load(table(tmp_path)).items
    with collected() as notices:
        head = "\ufeffid,path,label,role,split"
        assert load(table(tmp_path, head, separator, "\r\n")).items == expected
    assert kinds(notices) == [("separator", 1)]


def test_a_separator_that_the_table_says_itself_is_no_guess(tmp_path: Path) -> None:
    """The first line ``sep=;`` of Excel; the lines keep their numbers."""
    text = "sep=;\r\nid;path;label\r\na;a.png;x, y\r\nb;b.png\r\n"
    with collected() as notices, pytest.raises(InputError, match="line 4: 2 cells under 3"):
        load(written(tmp_path, text))
    assert kinds(notices) == []


def test_a_comma_is_the_separator_where_the_header_fits_it(tmp_path: Path) -> None:
    """A header that has semicolons in further names is still one of commas."""
    data = load(written(tmp_path, "id,path,label,a;b\na,a.png,x,1;2\n"))
    assert data.items[0].slices == {"a;b": "1;2"}


@pytest.mark.parametrize(("cells", "tip"), [("1,a,Vase, blue", "quotes"), ("1,a", "every cell")])
def test_a_row_with_more_or_fewer_cells_is_refused(tmp_path: Path, cells: str, tip: str) -> None:
    """Nothing is cut off or taken as empty; the message names table, line and cells."""
    path = written(tmp_path, f"key,id,label\n0,z,Cup\n{cells}\n")
    with pytest.raises(InputError, match=r"items\.csv, line 3: . cells under 3 columns") as refused:
        list(csv_rows(path, ("key", "id", "label")))
    assert cells in refused.value.message
    assert tip in refused.value.tip


def test_pairs_and_logs_follow_the_same_rule(tmp_path: Path) -> None:
    """The header of every table is read by one reader."""
    with collected() as notices:
        assert read_pairs(written(tmp_path, "ID_A;id_b;Same\na;b;1\n"))[0].same
        assert read_traffic_log(written(tmp_path, "Id;Count\na;2\n", "log.csv")) == {"a": 2.0}
    assert sorted(kinds(notices)) == [
        ("separator", 1),
        ("separator", 1),
        ("similar-column", 2),
        ("similar-column", 2),
    ]
    with pytest.raises(InputError, match=r"log\.csv, line 2: 3 cells under 2 columns"):
        read_traffic_log(written(tmp_path, "id,count\na,2,3\n", "log.csv"))


def test_without_a_command_line_a_notice_is_a_warning_of_python(tmp_path: Path) -> None:
    """A program sees it, and can turn it into an error."""
    with pytest.warns(DataWarning, match="'Role' as role"):
        load(table(tmp_path, "id,path,label,Role,split"))


SHOP = ["sku;kind;image_url;fold", "a;x;a.png;test", "b;x;b.png;train"]
NAMES = {"id": "sku", "label": "kind", "path": "image_url", "split": "fold"}


def named_forms(folder: Path) -> list[Path]:
    """The same two items under other names: CSV, TSV, JSON lines, and arrays."""
    head, *rows = (line.split(";") for line in SHOP)
    forms = [
        written(folder, "\n".join(",".join(line) for line in [head, *rows]), "shop.csv"),
        written(folder, "\n".join(SHOP), "semicolons.csv"),
        written(folder, "\n".join("\t".join(line) for line in [head, *rows]), "shop.tsv"),
        written(
            folder,
            "\n".join(json.dumps(dict(zip(head, row, strict=True))) for row in rows),
            "shop.jsonl",
        ),
    ]
    arrays = dict(zip(head, np.array(rows).T, strict=True))
    images = np.zeros((2, 4, 4), np.uint8)
    np.savez(folder / "shop.npz", **{**arrays, "image_url": images})
    return [*forms, folder / "shop.npz"]


def test_columns_of_other_names_are_read_as_the_project_says(tmp_path: Path) -> None:
    """Every form with columns, keys or arrays gives the items of the usual names, and no slices."""
    for path in named_forms(tmp_path):
        with collected() as notices:
            data = load(path, columns=NAMES)
        assert [(i.id, i.label, i.split, i.slices) for i in data.items] == [
            ("a", "x", "test", {}),
            ("b", "x", "train", {}),
        ], path
        assert {kind for kind, _ in kinds(notices)} <= {"separator"}, path


@pytest.mark.parametrize("name", ["id", "label", "path", "split"])
def test_a_mapped_column_that_is_not_there_is_refused_with_those_found(
    tmp_path: Path, name: str
) -> None:
    """Optional ones too, in every form; only lines of JSON may each lack an optional key."""
    for path in named_forms(tmp_path):
        with pytest.raises(InputError, match=r"there is no (column|key|array) 'gone' for") as error:
            load(path, columns={**NAMES, name: "gone"})
        assert "'sku'" in error.value.message, path
        assert "--column" in error.value.tip, path
    lines = ['{"id": "a", "path": "a", "label": "x", "fold": "test"}']
    lines.append('{"id": "b", "path": "b", "label": "x"}')
    data = load(written(tmp_path, "\n".join(lines), "some.jsonl"), columns={"split": "fold"})
    assert data.items[0].split == "test"


def test_other_data_of_a_project_need_only_the_columns_that_every_item_has(tmp_path: Path) -> None:
    """With ``partial`` an optional mapped column may be missing, and unlabelled data need none."""
    path = written(tmp_path, "sku,path\na,a.png\n")
    names = {"id": "sku", "label": "kind", "split": "fold"}
    assert load_unlabelled(path, columns=names)[0].ids == ("a",)
    labelled = written(tmp_path, "sku,kind,path\na,x,a.png\n")
    assert load(labelled, columns=names, partial=True).labels == ("x",)
    with pytest.raises(InputError, match="'fold' for split"):
        load(labelled, columns=names)


def test_a_column_has_one_meaning(tmp_path: Path) -> None:
    """Two names for a column, a column that is another field, and an unknown name are refused."""
    path = written(tmp_path, "id,path,label,split\na,a.png,x,test\n")
    for names, message in (
        ({"id": "path", "path": "path"}, "'path' is mapped to two names"),
        ({"id": "label"}, "'label' is mapped to id, and is label by its own name"),
        ({"ids": "label"}, "'ids' is no name of a field"),
    ):
        with pytest.raises(InputError, match=message):
            load(path, columns=names)
    swapped = load(path, columns={"id": "label", "label": "id"})
    assert (swapped.ids, swapped.labels) == (("x",), ("a",))


def test_a_column_whose_name_is_mapped_away_is_said(tmp_path: Path) -> None:
    """The column ``id`` beside a mapped one is read as nothing, with a notice."""
    path = written(tmp_path, "id,sku,path,label\n1,a,a.png,x\n")
    with collected() as notices:
        data = load(path, columns={"id": "sku"})
    assert (data.ids, data.items[0].slices) == (("a",), {})
    assert kinds(notices) == [("column-not-read", 1)]


def test_a_folder_has_no_columns(tmp_path: Path) -> None:
    """Names of columns for class folders are refused, not ignored."""
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="a folder of images has no columns"):
        load(tmp_path, columns={"id": "sku"})


def test_a_label_without_one_text_and_an_address_are_refused(tmp_path: Path) -> None:
    """A float is no label, and nothing is fetched; ``NA`` and leading zeros are text."""
    line = {"id": "007", "path": "a.png", "label": "NA"}
    data = load(written(tmp_path, json.dumps(line), "t.jsonl"))
    table = load(written(tmp_path, "id,path,label\n007,a.png,NA\n"))
    assert data.items == table.items
    assert (table.ids, table.labels) == (("007",), ("NA",))
    for change, message, tip in (
        ({"label": 7.0}, "label must be text, got 7.0", "two labels"),
        ({"path": "https://a.b/c.png"}, "'https://a.b/c.png' is an address", "fetch the images"),
    ):
        with pytest.raises(InputError, match=message) as error:
            load(written(tmp_path, json.dumps({**line, **change}), "t.jsonl"))
        assert tip in error.value.tip


@pytest.mark.parametrize(
    ("column", "value", "meant"),
    [
        ("split", "val", "validation"),
        ("split", "Train ", "train"),
        ("split", "eval", "test"),
        ("role", "Query", "query"),
        ("role", "queries", "query"),
    ],
)
def test_a_word_that_is_nearly_a_split_or_role_is_refused_with_it(
    tmp_path: Path, column: str, value: str, meant: str
) -> None:
    """The tip says the word to write; nothing is guessed, and another word has no such tip."""
    for word, starts in ((value, f"write {meant}; or leave"), ("later", f"leave {column}")):
        path = written(tmp_path, f"id,path,label,{column}\na,a.png,x,{word}\n")
        with pytest.raises(InputError, match=f"{column} is one of") as refused:
            load(path)
        assert refused.value.tip.startswith(starts)


def test_images_without_an_axis_are_refused(tmp_path: Path) -> None:
    """(N, H, 3) is no row of grey images of three pixels."""
    np.savez(tmp_path / "t.npz", ids=["a"], labels=["x"], images=np.zeros((1, 8, 3), np.uint8))
    with pytest.raises(InputError, match=r"images must be \(N, H, W, 3\)"):
        load(tmp_path / "t.npz")
