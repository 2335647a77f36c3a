"""Ids, labels, cells and rows that are read as they are written, and hardly meant so: named."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from compatctl.data import (
    KeyColumns,
    load,
    load_features,
    load_vectors,
    read_key_table,
    read_qrels,
    read_traffic_log,
)
from compatctl.data._doubts import _DOUBTS, _END, warn_of_doubts
from compatctl.data._vector_rows import warn_of_equal_rows
from compatctl.errors import InputError
from compatctl.notices import collected, refused

DOUBTFUL = {
    "outer-blanks": ["cup ", "\u00a0cup", "cup\u200b", " cup"],
    "outer-quotes": ["'007'", '="007"', '"a"'],
    "no-value": [
        "nan",
        "NaN",
        "None",
        "NULL",
        "N/A",
        "<NA>",
        "#N/A",
        "-1",
        "?",
        "Unknown",
        "unlabeled",
    ],
    "garbled": ["caf\u00c3\u00a9", "caf\ufffd", "it\u00e2\u20ac\u2122s", "gr\u00c3\u00bcn"],
    "cut-number": ["4.00638E+12", "1e+05", "4,00638E+12"],
    "control-character": ["a\x1b[31mb", "a\nb", "a\x7fb"],
}
PLAIN = ["cup", "na\u00efve", "caf\u00e9", "nancy", "1e3", "7", "a b", "\u65e5\u672c", "\u00c3"]


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_doubtful_texts_are_counted_and_named(kind: str) -> None:
    """Among many others, and only by their own kind."""
    many = [f"item {number}" for number in range(70_000)]
    with collected() as notices:
        warn_of_doubts("t.csv", "ids", [*many, *DOUBTFUL[kind], *PLAIN])
    (entry,) = notices.entries()
    assert (entry["kind"], entry["count"]) == (kind, len(DOUBTFUL[kind]))
    assert entry["names"] == [*map(ascii, DOUBTFUL[kind])]


def test_texts_are_found_as_each_by_itself() -> None:
    """Searching many texts at once finds those that a search of each finds."""
    texts = [*PLAIN, *(text for group in DOUBTFUL.values() for text in group)] * 3
    with collected() as notices:
        warn_of_doubts("t", "labels", texts)
    found = {entry["kind"]: entry["count"] for entry in notices.entries()}
    slow = {
        kind: sum(bool(re.search(pattern, f"{_END}{text}{_END}")) for text in texts)
        for kind, _, pattern, _ in _DOUBTS
    }
    assert found == slow


def test_labels_of_every_reader_are_looked_at(tmp_path: Path) -> None:
    """A table, features, vectors; with --strict the first is an error."""
    table = tmp_path / "t.csv"
    table.write_text("id,path,label\na,a.png,nan\nb,b.png,x\n")
    rows = np.eye(2, dtype=np.float32)
    np.savez(tmp_path / "f.npz", ids=["a", "b"], labels=["nan", "x"], features=rows)
    np.savez(tmp_path / "v.npz", ids=["a", "b"], labels=["nan", "x"], vectors=rows)
    for read in (
        lambda: load(table),
        lambda: load_features(tmp_path / "f.npz"),
        lambda: load_vectors(tmp_path / "v.npz"),
    ):
        with collected() as notices:
            read()
        assert [entry["kind"] for entry in notices.entries()] == ["no-value"]
    with pytest.raises(InputError, match="spell a missing value"), refused(strict=True):
        load(table)


def test_a_quote_that_swallows_rows_is_named(tmp_path: Path) -> None:
    """A label over three lines; a text may have lines, but none that looks like a row."""
    table = tmp_path / "t.csv"
    table.write_text('id,path,label\na,a.png,"x\nb,b.png,x\nc,c.png,y"\nd,d.png,y\n')
    with collected() as notices:
        assert len(load(table)) == 2
    assert ("line-break", ["line 2: label"]) in [
        (entry["kind"], entry["names"]) for entry in notices.entries()
    ]
    table.write_text('id,label,text\na,x,"two\nlines"\nb,x,"say\nc,x,no\nd,x,go"\n')
    with collected() as notices:
        load(table)
    assert [(entry["kind"], entry["names"]) for entry in notices.entries()] == [
        ("line-break", ["line 4: text"])
    ]


def test_items_that_share_an_image_are_named(tmp_path: Path) -> None:
    """Two ids of one file: each would find its own copy."""
    table = tmp_path / "t.csv"
    table.write_text("id,path,label\na,a.png,x\nb,./a.png,y\nc,a.png,x\n")
    with collected() as notices:
        load(table)
    (entry,) = notices.entries()
    assert (entry["kind"], entry["names"]) == ("shared-image", ["'a' and 'b'", "'a' and 'c'"])


@pytest.mark.parametrize("equal", [4, 40])
def test_rows_with_one_vector_are_counted(tmp_path: Path, equal: int) -> None:
    """Above a tenth, as a loop counts them; a few copies are no notice."""
    rows = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    rows[30 : 30 + equal] = rows[30]
    rows[30 : 30 + equal] += np.float32(1e-7) * rows[:equal]  # as of another place in a batch
    rows[0] = rows[1]
    with collected() as notices:
        warn_of_equal_rows(tmp_path, rows)
    most = max(sum(bool((abs(row - other) < 1e-5).all()) for other in rows) for row in rows)
    assert [entry["count"] for entry in notices.entries()] == ([most] if equal == 40 else [])


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (1e300, "too large for single precision: its largest number is"),
        (1e-300, "too small for single precision: its largest number is"),
        (0.0, "is zero"),
        (np.nan, "2 of its 2 numbers are NaN"),
        (np.inf, "1 of its 2 numbers are infinite"),
    ],
)
def test_an_unusable_vector_is_said_to_be_what_it_is(
    tmp_path: Path, scale: float, words: str
) -> None:
    """In float64, which single precision cannot hold; no warning of numpy is shown."""
    row = np.array([1.0, 0.5]) * scale if np.isfinite(scale) or np.isnan(scale) else [scale, 1.0]
    rows = np.array([[1.0, 2.0], row])
    np.savez(tmp_path / "v.npz", ids=["a", "b"], vectors=rows)
    np.savez(tmp_path / "f.npz", ids=["a", "b"], labels=["x", "x"], features=rows)
    with pytest.raises(InputError, match=words):
        load_vectors(tmp_path / "v.npz")
    with pytest.raises(InputError, match=words):
        load_features(tmp_path / "f.npz", "cosine")


def test_a_similarity_of_each_row_is_one_similarity(tmp_path: Path) -> None:
    """It is no slice; two of them are refused; of vectors, which compare by the cosine, named."""
    table = {"ids": ["a", "b"], "labels": ["x", "y"]}
    rows = np.array([[1, 0], [0, 9]], np.float32)
    np.savez(tmp_path / "f.npz", **table, features=rows, similarity=["dot", "dot"])
    features = load_features(tmp_path / "f.npz")
    assert (features.similarity, features.slices) == ("dot", {})
    np.savez(tmp_path / "g.npz", **table, features=rows, similarity=["dot", "l2"])
    with pytest.raises(InputError, match="one text for all rows, got dot, l2"):
        load_features(tmp_path / "g.npz")
    np.savez(tmp_path / "v.npz", **table, vectors=rows, similarity="dot")
    with collected() as notices:
        load_vectors(tmp_path / "v.npz")
    assert [entry["kind"] for entry in notices.entries()] == ["similarity"]


def test_columns_that_change_what_a_line_counts_are_named(tmp_path: Path) -> None:
    """Judgments, logs and keys without a known grade, count or label say what they leave out."""
    cases = {
        "q.csv": ("query_id,doc_id,rank\nq,d,1\n", read_qrels, "'rank'"),
        "r.csv": ("query_id,doc_id,pid,score\nq,d,e,1\n", read_qrels, "'pid'"),
        "l.csv": ("id,views\na,100\n", read_traffic_log, "'views'"),
        "k.csv": (
            "key,id,category\n0,a,x\n",
            lambda path: read_key_table(path, KeyColumns(names={})),
            "'category'",
        ),
    }
    for name, (text, read, column) in cases.items():
        (tmp_path / name).write_text(text)
        with collected() as notices:
            read(tmp_path / name)  # type: ignore[operator]
        assert [(entry["kind"], entry["names"]) for entry in notices.entries()] == [
            ("column-not-read", [column])
        ]


def test_a_label_of_a_judgment_is_its_grade(tmp_path: Path) -> None:
    """A pair with the label 0 is not relevant."""
    path = tmp_path / "q.csv"
    path.write_text("query_id,doc_id,label\nq,a,0\nq,b,1\n")
    assert read_qrels(path).pairs == (("q", "b"),)


def test_a_table_under_the_name_of_lines_is_refused(tmp_path: Path) -> None:
    """Texts and keys, one a line, begin with no header."""
    path = tmp_path / "t.txt"
    path.write_text("id,text,label\na,hello,x\n")
    with pytest.raises(InputError, match="header of a table") as error:
        load(path)
    assert ".csv" in error.value.tip
    path.write_text("key,id,label\n0,a,x\n")
    with pytest.raises(InputError, match="header of a table"):
        read_key_table(path, KeyColumns(names={}))


def test_a_text_of_invisible_characters_is_empty(tmp_path: Path) -> None:
    """Zero-width blanks alone are no text."""
    path = tmp_path / "t.csv"
    path.write_text("id,text,label\na,\u200b\ufeff,x\n", encoding="utf-8")
    with pytest.raises(InputError, match="text is empty"):
        load(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\n".encode("utf-16"), "it has UTF-16"),
        ("a\n".encode("utf-32"), "it has UTF-32"),
        ("caf\u00e9\n".encode("latin-1"), r"the bytes b'caf\\xe9'"),
        (b"\x1f\x8b\x08\x00", "it is a gzip file"),
        ("a\n".encode("utf-16-le"), "line 1: a NUL character"),
    ],
    ids=["utf-16", "utf-32", "latin-1", "gzip", "no-mark"],
)
def test_a_text_in_another_encoding_is_named_by_every_reader(
    tmp_path: Path, content: bytes, words: str
) -> None:
    """Lines of texts, of keys and of judgments, logs and tables: one message."""
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    table = tmp_path / "t.csv"
    table.write_bytes(content)
    for read in (
        lambda: load(path),
        lambda: load(table),
        lambda: read_key_table(path, KeyColumns(names={})),
        lambda: read_qrels(path),
        lambda: read_traffic_log(path),
    ):
        with pytest.raises(InputError, match=words):
            read()
