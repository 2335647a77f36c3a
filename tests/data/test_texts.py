"""Data sets of texts: tables with a column text, lines of a file, arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compatctl.data import load, load_unlabelled
from compatctl.errors import InputError
from compatctl.notices import DataWarning

CSV = "id,text,label,role,lang\na,red car,x,query,en\nb,old boat,x,gallery,\n"


def test_a_table_with_a_column_text_has_texts(tmp_path: Path) -> None:
    """The text is what the item is, and no slice; other columns are as for images."""
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    data = load(path)
    assert data.modality == "text"
    assert [data.content(row) for row in range(2)] == ["red car", "old boat"]
    assert (data.ids, data.labels) == (("a", "b"), ("x", "x"))
    assert [item.slices for item in data.items] == [{"lang": "en"}, {}]
    assert [item.role for item in data.items] == ["query", "gallery"]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_the_forms_of_a_table_give_the_same_texts(tmp_path: Path, name: str) -> None:
    """CSV with semicolons, TSV and JSON lines give equal digests of the data."""
    path = tmp_path / name
    separator = {"t.csv": ";", "t.tsv": "\t"}.get(name)
    if separator:
        path.write_text(CSV.replace(",", separator))
    else:
        path.write_text(
            '{"id": "a", "text": "red car", "label": "x", "role": "query", "lang": "en"}\n'
            '{"id": "b", "text": "old boat", "label": "x", "role": "gallery"}\n'
        )
    plain = tmp_path / "plain.csv"
    plain.write_text(CSV)
    assert load(path).digest_all() == load(plain).digest_all()


def test_a_path_wins_over_a_text_beside_it(tmp_path: Path) -> None:
    """With both columns the item is the image, and the text a slice."""
    path = tmp_path / "t.csv"
    path.write_text("id,path,text,label\na,a.png,red car,x\n")
    data = load(path)
    assert data.modality == "image"
    assert data.items[0].slices == {"text": "red car"}


def test_a_mapped_text_wins_over_a_path(tmp_path: Path) -> None:
    """Where the project maps text, the items are texts, and the path is not read, with a notice."""
    path = tmp_path / "t.csv"
    path.write_text("id,path,body,label\na,a.png,red car,x\n")
    with pytest.warns(DataWarning, match="'path'") as record:
        data = load(path, columns={"text": "body"})
    assert record[0].message.kind == "column-not-read"  # type: ignore[union-attr]
    assert data.content(0) == "red car"
    assert data.items[0].slices == {}


def test_lines_of_a_file_are_texts_of_their_own_class(tmp_path: Path) -> None:
    """The id and the label of a line are its number; ends of lines are no part of the text."""
    path = tmp_path / "t.txt"
    path.write_bytes("﻿red car\r\nold, boat \n".encode())
    data = load(path)
    assert [data.content(row) for row in range(2)] == ["red car", "old, boat "]
    assert data.ids == data.labels == ("1", "2")
    unlabelled, labelled = load_unlabelled(path)
    assert (unlabelled.labels, labelled) == (("", ""), 0)


def test_an_array_of_texts(tmp_path: Path) -> None:
    """An .npz file with texts in the place of images."""
    path = tmp_path / "t.npz"
    np.savez(path, texts=np.array(["red car", "boat"]), ids=np.array(["a", "b"]), labels=[1, 2])
    data = load(path)
    assert [data.content(row) for row in range(2)] == ["red car", "boat"]
    assert data.labels == ("1", "2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "id,text,label\na, ,x\nb,car,x\n", "line 2 .*text is empty: expected the item's"),
        ("t.txt", "red\n\nblue\n", "line 2 .*text is empty"),
        ("t.txt", "", "no item in it"),
        ("t.csv", "id,label\na,x\n", "no column path"),
        ("t.jsonl", '{"id": "a", "label": "x", "text": "red"}\n{"id": "b", "label": "x", "path": '
         '"b.png"}\n', "line 2: it has a path, and the first item has another kind"),
        ("t.jsonl", '{"id": "a", "label": "x", "text": ["red"]}\n', "text must be text"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_by_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    """Empty texts, mixtures and missing columns are refused with their line."""
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load(path)
