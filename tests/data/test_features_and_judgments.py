"""Feature tables, pairs and relevance judgments: what is read, what is refused and why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compatctl.data import (
    Pair,
    load,
    load_features,
    read_pairs,
    read_qrels,
    read_traffic_log,
)
from compatctl.errors import InputError
from compatctl.notices import collected

Array = NDArray[Any]


def save(folder: Path, **arrays: Any) -> Path:
    """A table of three items, with arrays replaced or, where None, left out."""
    given = {
        "ids": np.array(["a", "b", "c"]),
        "labels": np.array(["x", "x", "y"]),
        "features": np.array([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]], np.float32),
        **arrays,
    }
    path = folder / "table.npz"
    np.savez(path, **{name: entry for name, entry in given.items() if entry is not None})
    return path


def test_a_table_is_read_with_unit_rows(tmp_path: Path) -> None:
    """Ids, labels and slices come back as text; every row has length 1 and its direction."""
    more = {"vendor": np.array(["n", "", "t"]), "year": np.array([1, 2, 3])}
    table = load_features(save(tmp_path, **more), "cosine")
    assert (table.ids, table.labels, table.role) == (("a", "b", "c"), ("x", "x", "y"), None)
    assert table.slices == {"vendor": ("n", "", "t"), "year": ("1", "2", "3")}
    assert table.features.dtype == np.float32
    np.testing.assert_allclose(table.features, [[0.6, 0.8], [0, 1], [-1, 0]], atol=1e-7)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_float_type_and_order_is_read(tmp_path: Path, kind: str, order: Any) -> None:
    """Half, single, double and foreign byte order, by rows or by columns: the same rows."""
    rows = np.array([[3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]]).astype(kind)
    table = load_features(save(tmp_path, features=np.asarray(rows, order=order)), "cosine")
    assert table.features.dtype == np.float32
    np.testing.assert_allclose(table.features, [[0.6, 0.8], [0, 1], [-1, 0]], atol=1e-6)


@pytest.mark.parametrize("name", ["vectors", "embeddings"])
def test_vectors_may_have_the_name_that_tables_of_vectors_have(tmp_path: Path, name: str) -> None:
    """One array of vectors is read whatever it is called; beside ``features`` it is not taken."""
    rows = np.eye(3, dtype=np.float32)
    path = tmp_path / "named.npz"
    np.savez(path, ids=["a", "b", "c"], labels=["x", "x", "y"], **{name: rows})
    np.testing.assert_array_equal(load_features(path).features, rows)
    np.savez(path, ids=["a", "b", "c"], labels=["x", "x", "y"], features=rows, **{name: rows})
    with pytest.raises(InputError, match=name):
        load_features(path)


def test_norms_that_differ_require_a_similarity(tmp_path: Path) -> None:
    """Gallery rows of different lengths are an error without a similarity; lengths of queries
    change no ranking, and half precision rounds all lengths a little."""
    with pytest.raises(InputError, match="norms of its features differ, from 1 to 5") as got:
        load_features(save(tmp_path))
    assert "--similarity" in got.value.tip
    table = load_features(save(tmp_path, similarity=np.array("cosine")))
    np.testing.assert_allclose(np.linalg.norm(table.features, axis=1), 1.0, atol=1e-6)
    for kind in ("dot", "l2"):
        raw = load_features(save(tmp_path, similarity=np.array([kind])))
        assert (raw.similarity, raw.features[0].tolist()) == (kind, [3.0, 4.0])
        assert load_features(save(tmp_path), kind).similarity == kind
    role = np.array(["query", "query", "gallery"])
    asking = load_features(save(tmp_path, role=role))
    assert asking.similarity is None
    np.testing.assert_allclose(np.linalg.norm(asking.features, axis=1), 1.0, atol=1e-6)
    rows = np.random.default_rng(0).standard_normal((3, 512))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    assert load_features(save(tmp_path, features=rows)).similarity is None
    with pytest.raises(InputError, match="similarity is cosine, dot, l2; got 'ip'"):
        load_features(save(tmp_path, similarity=np.array("ip")))
    with pytest.raises(InputError, match="has the similarity dot, --similarity is l2"):
        load_features(save(tmp_path, similarity=np.array("dot")), "l2")


def test_many_rows_are_normalised_piece_by_piece(tmp_path: Path) -> None:
    """More rows than one piece holds, of lengths from 1e-15 to 1e15: all of length 1."""
    n = 70_000
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, 3)) * 10.0 ** rng.integers(-15, 15, (n, 1))
    names = np.arange(n)
    table = load_features(save(tmp_path, ids=names, labels=names % 7, features=rows), "cosine")
    np.testing.assert_allclose(np.linalg.norm(table.features, axis=1), 1.0, atol=1e-6)
    slow = rows[-1] / np.sqrt(sum(entry * entry for entry in rows[-1]))
    np.testing.assert_allclose(table.features[-1], slow, atol=1e-6)
    assert table.ids[-1] == str(n - 1)


def test_ids_can_be_whole_numbers(tmp_path: Path) -> None:
    """Ids of whole numbers are text; the roles are those of the array."""
    role = np.array(["query", "gallery", "query"])
    table = load_features(save(tmp_path, ids=np.array([7, 8, 2**63], np.uint64), role=role))
    assert table.ids == ("7", "8", str(2**63))
    assert table.role == ("query", "gallery", "query")


BAD_TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "no ids": ({"ids": None}, "ids"),
    "no labels": ({"labels": None}, "labels"),
    "no features": ({"features": None}, "features"),
    "none of the three": ({"ids": None, "labels": None, "features": None}, "ids, labels, features"),
    "pickled": ({"ids": np.array(["a", "b", None], dtype=object)}, "read"),
    "whole numbers as features": ({"features": np.ones((3, 2), int)}, "floats"),
    "complex features": ({"features": np.ones((3, 2), complex)}, "numbers"),
    "a row of features": ({"features": np.ones(3)}, "floats"),
    "three axes": ({"features": np.ones((3, 2, 2))}, "floats"),
    "no column": ({"features": np.ones((3, 0))}, "floats"),
    "no row": ({"features": np.ones((0, 2))}, "floats"),
    "a NaN": ({"features": np.array([[1.0, 0], [np.nan, 1], [0, 1]])}, "row 1"),
    "an infinity": ({"features": np.array([[1.0, 0], [1, 1], [0, -np.inf]])}, "row 2"),
    "a zero row": ({"features": np.array([[0.0, 0], [1, 1], [0, 1]])}, "row 0"),
    "fewer ids": ({"ids": np.array(["a", "b"])}, "ids"),
    "more labels": ({"labels": np.array(["x"] * 4)}, "labels"),
    "ids in two columns": ({"ids": np.array([["a"], ["b"], ["c"]])}, "ids"),
    "fractions as labels": ({"labels": np.array([0.5, 1.5, 2.0])}, "labels"),
    "bytes as labels": ({"labels": np.array([b"x", b"y", b"z"])}, "labels"),
    "truths as labels": ({"labels": np.array([True, False, True])}, "labels"),
    "an id twice": ({"ids": np.array(["a", "b", "a"])}, "twice"),
    "an empty id": ({"ids": np.array(["a", "", "c"])}, "row 1 has no id"),
    "an empty label": (
        {"labels": np.array(["x", " ", ""])},
        "row 1 (id 'b') has no label: expected the item's class, got ' '; 2 rows have none",
    ),
    "an empty role": ({"role": np.array(["query", "", "gallery"])}, "role"),
    "another role": ({"role": np.array(["query", "judge", "gallery"])}, "judge"),
    "a slice of another length": ({"vendor": np.array(["n"])}, "vendor"),
    "a slice of fractions": ({"size": np.array([0.5, 1.0, 2.0])}, "size"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_are_refused(tmp_path: Path, name: str) -> None:
    """Each is an input error whose message names the file and what is wrong."""
    arrays, word = BAD_TABLES[name]
    path = save(tmp_path, **arrays)
    with pytest.raises(InputError) as refused:
        load_features(path)
    assert str(path) in refused.value.message
    assert word in refused.value.message


def test_a_pickled_array_is_not_run(tmp_path: Path) -> None:
    """An object in the archive that would write a file when unpickled does not."""
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str, str]]:
            return (open, (str(marker), "w"))

    path = save(tmp_path, labels=np.array([Payload(), Payload(), Payload()], dtype=object))
    with pytest.raises(InputError):
        load_features(path)
    assert not marker.exists()


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    """No file, a folder, a text and a cut archive: the message names the path."""
    good = save(tmp_path).read_bytes()
    bad = tmp_path / "bad.npz"
    for body in (b"", b"ids,labels\n", good[:100], good[:-30]):
        bad.write_bytes(body)
        with pytest.raises(InputError, match=re.escape(str(bad))):
            load_features(bad)
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(InputError, match=re.escape(str(path))):
            load_features(path)


def test_a_single_array_is_not_a_table(tmp_path: Path) -> None:
    """A .npy file under the name .npz is an input error that names the file."""
    np.save(tmp_path / "one.npy", np.ones((3, 2)))
    path = (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_features(path)


@pytest.mark.parametrize("kind", ["table", "lines", "folder"])
def test_text_that_cannot_be_written_is_refused(tmp_path: Path, kind: str) -> None:
    """Half a character in an id or a label, which no hash and no file can hold: named."""
    if kind == "table":
        path = save(tmp_path, labels=np.array(["x", "a\ud800", "y"]))
    elif kind == "lines":
        path = tmp_path / "items.jsonl"
        path.write_text('{"id": "a\\ud800", "path": "a.png", "label": "x"}\n')
    else:
        path = tmp_path / "classes"
        image = path / "caf\udce9" / "0.png"  # a name of Latin-1 bytes
        image.parent.mkdir(parents=True)
        image.write_bytes(b"")
    with pytest.raises(InputError):
        load_features(path) if kind == "table" else load(path)


HEAD = "id_a,id_b,same\n"


def test_pairs_are_read(tmp_path: Path) -> None:
    """Every spelling of yes and no, blanks, quotes, further columns and a byte order mark."""
    path = tmp_path / "pairs.csv"
    path.write_text(
        "\ufeffsame,id_b,note,id_a\n"
        '1,b,,a\nTRUE, c ,x,a\nyes,d,,"a,1"\n0,e,,a\nFalse,f,,a\nno,g,,a\n',
        encoding="utf-8",
    )
    assert read_pairs(path) == (
        Pair(first="a", second="b", same=True),
        Pair(first="a", second="c", same=True),
        Pair(first="a,1", second="d", same=True),
        Pair(first="a", second="e", same=False),
        Pair(first="a", second="f", same=False),
        Pair(first="a", second="g", same=False),
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no line in it"),
        (HEAD, "no pair"),
        ("id_a,same\na,1\n", "id_b"),
        ("a,b,1\n", "no column"),
        (HEAD + "a,b,1\na,c,2\n", "line 3"),
        (HEAD + "a,b,\n", "line 2"),
        (HEAD + "a,b\n", "line 2"),
        (HEAD + "a,,1\n", "two items"),
        (HEAD + "a,a,1\n", "two items"),
        (HEAD + "a,b,1\nc,d,0\na,b,1\n", "line 4"),
        (HEAD + "a,b,1\nb,a,0\n", "twice"),
        (HEAD + 'a,"b,1\n', "CSV"),
    ],
)
def test_bad_pairs_are_refused(tmp_path: Path, text: str, word: str) -> None:
    """A missing column, another answer, an item with itself, a pair twice: with its line."""
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_pairs(path)
    assert str(path) in refused.value.message
    assert word in refused.value.message


def test_a_table_of_pairs_with_other_columns_is_told_the_right_ones(tmp_path: Path) -> None:
    """The columns found are in the message, those that are read in the tip."""
    path = tmp_path / "pairs.csv"
    path.write_text("left,right,same\na,b,1\n")
    with pytest.raises(InputError, match="'left', 'right'") as refused:
        read_pairs(path)
    assert "id_a and id_b" in refused.value.tip


@pytest.mark.parametrize("read", [read_pairs, read_qrels])
def test_judgments_that_are_not_text_are_refused(tmp_path: Path, read: Any) -> None:
    """No file, a folder and bytes that are no UTF-8 are input errors that name the path."""
    path = tmp_path / "bytes"
    path.write_bytes(b"id_a,id_b,same\n\xff\xfe,b,1\n")
    for bad in (path, tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=re.escape(str(bad))):
            read(bad)


def test_judgments_are_read(tmp_path: Path) -> None:
    """Blanks of any number, empty lines, grades: what is relevant is greater than 0, in order."""
    path = tmp_path / "judged.qrels"
    path.write_text("q1 0 a 1.0\n\nq1\t0\tb  0\n q2 Q0 a 3 \nq2 0 c -1\nq1 7 c 2\r\n")
    with collected() as notices:
        judged = read_qrels(path)
    (entry,) = notices.entries()
    assert (entry["kind"], entry["names"]) == ("negative-grade", ["q2 c"])
    assert judged.pairs == (("q1", "a"), ("q2", "a"), ("q1", "c"))
    assert (judged.grades.tolist(), judged.form) == ([1.0, 3.0, 2.0], "TREC")
    assert (judged.query_ids, judged.item_ids) == (("q1", "q2"), ("a", "b", "c"))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "relevant"),
        ("\n\n", "relevant"),
        ("q 0 a 0\nq 0 b -2\n", "relevant"),
        ("q a 1\n", "line 1"),
        ("q 0 a 1 2\n", "line 1"),
        ("q 0 a 1\nq 0 b yes\n", "line 2"),
        ("q 0 a inf\n", "line 1"),
        ("q a 0 1\nq b 0 1\n", "changed places"),
        ("q Q0 a 1 0.9 run\n", "line 1"),
        ("q 0 a +\n", "line 1"),
        ("q 0 a -\n", "line 1"),
        ("q 0 a 1\nr 0 a 1\nq 1 a 0\n", "line 3"),
    ],
)
def test_bad_judgments_are_refused(tmp_path: Path, text: str, word: str) -> None:
    """Another form, a pair judged twice, or nothing relevant: named with its line."""
    path = tmp_path / "judged.qrels"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_qrels(path)
    assert str(path) in refused.value.message
    assert word in refused.value.message


@pytest.mark.parametrize("grade", ["--1", "²", "9" * 5000])
def test_grades_that_are_not_whole_numbers_are_refused(tmp_path: Path, grade: str) -> None:
    """Two signs, a digit that is no decimal, and more digits than any grade has: refused."""
    path = tmp_path / "judged.qrels"
    path.write_text(f"q 0 a 1\nq 0 b {grade}\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2"):
        read_qrels(path)


def test_a_byte_order_mark_is_not_part_of_an_id(tmp_path: Path) -> None:
    """As in pairs: a file that an editor began with the mark has the ids that it shows."""
    path = tmp_path / "judged.qrels"
    path.write_text("\ufeffq 0 a 1\n", encoding="utf-8")
    assert read_qrels(path).pairs == (("q", "a"),)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_log_of_traffic_counts_how_often_an_id_occurs(tmp_path: Path, mark: str) -> None:
    """Ids, one a line, or a CSV with or without counts; an id may occur often."""
    path = tmp_path / "log"
    for text, counts in (
        ("a\r\nb c\n\na\n", {"a": 2.0, "b c": 1.0}),
        ("id\na\nb\na\n", {"a": 2.0, "b": 1.0}),
        ("count,id\n2.5,a\n1,b\n4,a\n", {"a": 6.5, "b": 1.0}),
    ):
        path.write_text(mark + text, encoding="utf-8")
        assert read_traffic_log(path) == counts
    for text, word in (("", "has no id"), ("id,count\na,x\n", "line 2: a count")):
        path.write_text(mark + text, encoding="utf-8")
        with pytest.raises(InputError, match=word):
            read_traffic_log(path)
