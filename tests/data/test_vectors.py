"""Tables of vectors are read alike in every form, and refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compatctl.core.arrays import Vectors
from compatctl.data import Dataset, ItemVectors, load_vector_items, load_vectors
from compatctl.errors import InputError
from compatctl.notices import collected

IDS = [f"i{number}" for number in range(5)]
LABELS = list("aabbc")
VECTORS: Vectors = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)


def _npz(path: Path) -> Path:
    np.savez(path.with_suffix(".npz"), ids=IDS, vectors=VECTORS, labels=LABELS)
    return path.with_suffix(".npz")


def _parquet(path: Path) -> Path:
    columns = {"id": IDS, "embedding": [list(map(float, row)) for row in VECTORS], "label": LABELS}
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"), row_group_size=2)
    return path.with_suffix(".parquet")


def _parquet_of_fixed_lists(path: Path) -> Path:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), 7)
    columns = {"id": IDS, "vector": vectors, "label": LABELS}
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def _jsonl(path: Path) -> Path:
    lines = [
        json.dumps({"id": item, "embedding": list(map(float, row)), "label": label})
        for item, row, label in zip(IDS, VECTORS, LABELS, strict=True)
    ]
    path.with_suffix(".jsonl").write_text("\n".join(lines))
    return path.with_suffix(".jsonl")


@pytest.mark.parametrize("write", [_npz, _parquet, _parquet_of_fixed_lists, _jsonl])
def test_every_form_gives_the_same_table(write: Callable[[Path], Path], tmp_path: Path) -> None:
    """Ids, labels and vectors are those that were written, and vectors keep their lengths."""
    table = load_vectors(write(tmp_path / "t"))
    assert table.ids == tuple(IDS)
    assert table.columns["label"] == tuple(LABELS)
    np.testing.assert_allclose(table.vectors, VECTORS, rtol=1e-6)


def test_npy_has_its_ids_beside(tmp_path: Path) -> None:
    """The ids of NAME.npy are the lines of NAME.ids.txt; without it, the message says so."""
    np.save(tmp_path / "t.npy", VECTORS)
    with pytest.raises(InputError, match="vectors without ids") as refused:
        load_vectors(tmp_path / "t.npy")
    assert "t.ids.txt" in refused.value.tip
    (tmp_path / "t.ids.txt").write_text("\n".join(IDS) + "\n")
    table = load_vectors(tmp_path / "t.npy")
    assert table.ids == tuple(IDS)
    np.testing.assert_array_equal(table.vectors, VECTORS)
    (tmp_path / "t.ids.txt").write_text("\n".join(IDS[:4]))
    np.save(tmp_path / "t.npy", VECTORS[:, :6])
    with pytest.raises(InputError, match=r"has 4 ids, t\.npy has 5 vectors"):
        load_vectors(tmp_path / "t.npy")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": IDS}, "none of its arrays ids can be the vectors"),
        ({"ids": IDS, "vectors": VECTORS, "features": VECTORS}, "vectors and features of its"),
        ({"vectors": VECTORS}, "there is no array ids"),
        ({"ids": IDS, "vectors": VECTORS.ravel()}, r"must be \(N, D\) numbers, got \(35,\)"),
        ({"ids": IDS, "vectors": VECTORS * np.array([[1, 1, 0, 1, 1]]).T}, "of 'i2' is zero"),
        ({"ids": [*IDS[:4], "i0"], "vectors": VECTORS}, "1 ids are there twice"),
        ({"ids": [*IDS[:4], " "], "vectors": VECTORS}, "row 4 has no id"),
        ({"ids": IDS[:4], "vectors": VECTORS}, "ids must be 5 texts"),
    ],
)
def test_a_bad_table_is_refused_by_name(
    arrays: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The message says what is wrong, and in which row."""
    np.savez(tmp_path / "t.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        load_vectors(tmp_path / "t.npz")


def test_mixed_dimensions_are_refused(tmp_path: Path) -> None:
    """Lists of different lengths are of two models: the line of JSONL is named, the row of
    Parquet."""
    lines = [{"id": "a", "vector": [1, 2]}, {"id": "b", "vector": [1, 2, 3]}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match="line 2: a vector of 3 dimensions; the first has 2"):
        load_vectors(tmp_path / "t.jsonl")
    pq.write_table(
        pa.table({"id": ["a", "b"], "vector": [[1.0, 2.0], [1.0, 2.0, 3.0]]}),
        tmp_path / "t.parquet",
    )
    with pytest.raises(InputError, match="the vector in row 1 has 3 components"):
        load_vectors(tmp_path / "t.parquet")


def test_another_column_of_lists_is_left_out_of_parquet(tmp_path: Path) -> None:
    """Lists of tags of different lengths are no vectors, and no reason to refuse the table."""
    columns = {"id": ["a", "b"], "vector": [[1.0, 2.0], [2.0, 1.0]], "tags": [["x"], ["x", "y"]]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with collected() as notices:
        table = load_vectors(tmp_path / "t.parquet")
    assert (table.ids, dict(table.columns)) == (("a", "b"), {})
    (entry,) = notices.entries()
    assert (entry["kind"], "'tags'" in entry["message"]) == ("column-not-read", True)


def test_keys_of_json_lines_are_found_as_in_other_forms(tmp_path: Path) -> None:
    """``labels`` and ``Label`` are the label, with a notice; nested values are left out, named."""
    lines = [
        {"ID": "a", "Embedding": [1, 2], "labels": "x", "payload": {"n": 1}},
        {"ID": "b", "Embedding": [2, 1], "Label": "y"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with collected() as notices:
        table = load_vectors(tmp_path / "t.jsonl")
    assert (table.ids, dict(table.columns)) == (("a", "b"), {"label": ("x", "y")})
    assert {entry["kind"] for entry in notices.entries()} == {"similar-column", "column-not-read"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"id": True}, "id must be text or a whole number, got True"),
        ({"id": 1.0}, "id must be text or a whole number, got 1.0"),
        ({"label": 1.0}, "label must be text or a whole number, got 1.0"),
        ({"id": "a\0"}, "the id of row 0 is no text"),
        ({"id": "\ud800"}, "the id of row 0 is no text"),
        ({"vector": [10**400, 1]}, "line 1: a number of the vector is too large"),
        ({"vector": "[1, 2]"}, r"vector must be a list of numbers, got '\[1, 2\]'"),
    ],
    ids=ascii,
)
def test_values_of_another_kind_are_refused(
    tmp_path: Path, value: dict[str, object], words: str
) -> None:
    """A float or a truth value has no one text; no number is too large for a message."""
    line = {"id": "a", "vector": [1, 2], "label": "x", **value}
    (tmp_path / "t.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=words):
        load_vectors(tmp_path / "t.jsonl")


def test_ids_of_bytes_are_refused(tmp_path: Path) -> None:
    """A column of UUIDs in bytes has no text of its own."""
    ids = pa.array([b"\1" * 16, b"\2" * 16], pa.binary(16))
    pq.write_table(pa.table({"id": ids, "vector": [[1.0], [2.0]]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="id must be text or a whole number"):
        load_vectors(tmp_path / "t.parquet")


def test_two_arrays_of_labels_are_refused(tmp_path: Path) -> None:
    """Neither ``label`` nor ``labels`` is chosen."""
    np.savez(tmp_path / "t.npz", ids=IDS, vectors=VECTORS, labels=LABELS, label=LABELS[::-1])
    with pytest.raises(InputError, match="'label' and 'labels'"):
        load_vectors(tmp_path / "t.npz")


def test_vectors_of_whole_numbers_are_said_to_be_such(tmp_path: Path) -> None:
    """Packed bits look like numbers."""
    packed = np.packbits(VECTORS > 0, axis=1) + np.uint8(1)
    np.savez(tmp_path / "t.npz", ids=IDS, vectors=packed)
    with collected() as notices:
        load_vectors(tmp_path / "t.npz")
    assert notices.entries()[0]["names"] == ["uint8"]


def test_ids_beside_an_array_end_at_line_feeds_alone(tmp_path: Path) -> None:
    """A line separator in an id moves no other id; a byte order mark is no part of the first."""
    np.save(tmp_path / "t.npy", VECTORS)
    ids = ["a\u2028b", *IDS[1:]]
    (tmp_path / "t.ids.txt").write_text("\ufeff" + "\r\n".join(ids), encoding="utf-8")
    assert load_vectors(tmp_path / "t.npy").ids == tuple(ids)


def test_an_unknown_form_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    """The tip lists the forms."""
    (tmp_path / "t.txt").write_text("x")
    for name, message in (("t.txt", "an unknown form"), ("u.npz", "no table of vectors at")):
        with pytest.raises(InputError, match=message) as refused:
            load_vectors(tmp_path / name)
        assert ".parquet" in refused.value.tip


def _tables(tmp_path: Path) -> dict[str, Path]:
    """Two tables of different dimensions; the second has not the last two items, and one more."""
    np.savez(tmp_path / "old.npz", ids=IDS, vectors=VECTORS, labels=LABELS)
    other = np.concatenate([VECTORS[:3, :4], VECTORS[:1, :4]])
    np.savez(tmp_path / "new.npz", ids=[*IDS[:3], "i9"], vectors=other, labels=list("aabz"))
    return {"old": tmp_path / "old.npz", "new": tmp_path / "new.npz"}


def _vector(data: Dataset, item: str, space: str) -> Vectors:
    content = data.content(data.row_of[item])
    assert isinstance(content, ItemVectors)
    return content.take(space)


def test_items_of_two_tables_are_joined_by_id(tmp_path: Path) -> None:
    """Each item has its own vector in each space, whatever the order of the tables; what a space
    lacks is named when it is needed."""
    data = load_vector_items(_tables(tmp_path))
    assert data.modality == "vector"
    assert data.ids == (*IDS, "i9")
    np.testing.assert_array_equal(_vector(data, "i2", "new"), VECTORS[2, :4])
    np.testing.assert_array_equal(_vector(data, "i9", "new"), VECTORS[0, :4])
    np.testing.assert_array_equal(_vector(data, "i4", "old"), VECTORS[4])
    with pytest.raises(InputError, match="there is no vector of 'new'"):
        _vector(data, "i4", "new")
    with pytest.raises(InputError, match="there are no vectors of 'third'"):
        _vector(data, "i4", "third")


def test_data_describe_the_items_of_vectors(tmp_path: Path) -> None:
    """A table of items says which there are; vectors of others are counted and named."""
    items = tmp_path / "items.csv"
    items.write_text("id,label,split,role,tenant\ni1,a,test,query,x\ni3,b,train,gallery,y\n")
    with collected() as notices:
        data = load_vector_items(_tables(tmp_path), data=items)
    assert data.ids == ("i1", "i3")
    assert [item.role for item in data.items] == ["query", "gallery"]
    assert data.items[0].slices == {"tenant": "x"}
    assert {entry["kind"]: entry["count"] for entry in notices.entries()} == {"unnamed-vector": 3}
    items.write_text("id,label\ni1,a\nnobody,b\n")
    with pytest.raises(InputError, match="there is no vector of 'nobody' in any table"):
        load_vector_items(_tables(tmp_path), data=items)


def test_tables_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    """Two labels of one item are no guess of ours."""
    tables = _tables(tmp_path)
    np.savez(tables["new"], ids=IDS[:1], vectors=VECTORS[:1, :4], labels=["b"])
    with pytest.raises(InputError, match="label of 'i0' is 'b', and in another table it is 'a'"):
        load_vector_items(tables)


def test_without_labels_each_item_is_a_class_and_the_gallery_does_not_train(tmp_path: Path) -> None:
    """No gallery item counts as a labelled training item where nobody labelled anything."""
    roles = ["gallery", "gallery", "gallery", "query", "query"]
    np.savez(tmp_path / "t.npz", ids=IDS, vectors=VECTORS, role=roles)
    data = load_vector_items({"t": tmp_path / "t.npz"})
    assert data.labels == data.ids
    assert {item.split for item in data.items if item.role == "gallery"} == {"test"}


def test_the_digest_of_an_item_covers_its_vectors_in_all_spaces(tmp_path: Path) -> None:
    """Equal vectors have equal digests, and another vector in any space gives another one."""
    tables = _tables(tmp_path)
    before = load_vector_items(tables)
    np.savez(
        tables["new"],
        ids=IDS,
        vectors=np.concatenate([VECTORS[:2, :4], VECTORS[:1, :4], VECTORS[3:, :4]]),
        labels=LABELS,
    )
    after = load_vector_items(tables)
    same = [before.digest(before.row_of[i]) == after.digest(after.row_of[i]) for i in IDS]
    assert same == [True, True, False, False, False]
