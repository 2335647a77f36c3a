"""Parquet, Hugging Face's data sets on disk, and WebDataset: the items, and their images."""

from __future__ import annotations

import gc
import hashlib
import json
import random
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_kit import (
    CLASSES,
    FORMS,
    columns,
    png,
    samples,
    tar_files,
    write_parquet,
    write_saved,
    write_saved_dict,
    write_tar,
)

from compatctl.data import _parquet as parquet
from compatctl.data import load, load_unlabelled
from compatctl.data._footer import null_counts
from compatctl.errors import InputError, UsageError
from compatctl.notices import collected

LIMIT = 1 << 20


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_items_and_images(tmp_path: Path, form: str) -> None:
    """Ids with their zeros, class names, splits, slices, and the very bytes of each image."""
    items = samples(13)
    data = load(FORMS[form](tmp_path, items))
    assert sorted(data.ids) == [item.id for item in items]
    for item in items:
        row = data.row_of[item.id]
        read = data.items[row]
        assert (read.label, read.split, read.slices) == (
            item.label,
            item.split,
            {"vendor": item.vendor},
        )
        assert data.original(row, LIMIT) == item.png
        assert data.digest(row) == hashlib.sha256(item.png).hexdigest()
        assert data.read_hashed(row)[1].hex() == data.digest(row)


@pytest.mark.parametrize("form", FORMS)
def test_images_are_read_in_any_order_by_threads(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With blocks of two images and a cache of one block, each thread gets the bytes it wants."""
    items = samples(30)
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 2 * len(items[0].png))
    monkeypatch.setattr(parquet, "_CACHE", parquet.BlockCache(1))
    monkeypatch.setattr(parquet._READERS, "_most", 1)
    data = load(FORMS[form](tmp_path, items))
    expected = {item.id: item.png for item in items}
    rows = [*range(len(data))] * 3
    random.Random(0).shuffle(rows)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: data.original(row, LIMIT), rows))
    assert found == [expected[data.ids[row]] for row in rows]


def test_no_image_is_held_or_read_by_loading(tmp_path: Path) -> None:
    """Loading 64 MiB of images takes less than 2 MiB of Arrow's memory, and reading one of them
    what its row group has."""
    n, size = 64, 1 << 20
    table = {
        "id": pa.array([f"{row}" for row in range(n)]),
        "label": pa.array(["x"] * n),
        "image": pa.array([random.Random(row).randbytes(size) for row in range(n)]),
    }
    path = write_parquet(tmp_path / "big.parquet", table, rows=8)
    del table
    before = pa.total_allocated_bytes()
    data = load(path)
    assert pa.total_allocated_bytes() - before < 2 << 20
    assert data.original(40, 2 << 20) == random.Random(40).randbytes(size)
    assert pa.total_allocated_bytes() - before < 24 << 20


@pytest.mark.parametrize("form", ["parquet", "large", "struct"])
def test_loading_decodes_no_image(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The footer says that every row has one."""
    path = FORMS[form](tmp_path, samples())
    monkeypatch.delattr(parquet, "_blocks")
    assert len(load(path)) == 12


def test_null_counts_are_those_of_pyarrow(tmp_path: Path) -> None:
    """For every column and row group, in files of many types, with and without statistics."""
    n = 50
    table = columns(samples(n), "struct")
    table["maybe"] = pa.array([None if row % 7 else png(row) for row in range(n)])
    table["none"] = pa.array([None] * n, pa.binary())
    table["deep"] = pa.array([{"a": [{"b": row}], "c": None} for row in range(n)])
    table["map"] = pa.array([[("k", 1.5)]] * n, pa.map_(pa.string(), pa.float64()))
    schema = pa.table(table).schema.with_metadata({"key": "value" * 100})
    for options in ({}, {"write_statistics": False}, {"write_statistics": ["maybe"]}):
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table(table, schema=schema), path, row_group_size=8, **options)
        metadata = pq.read_metadata(path)
        for number in range(metadata.num_columns):
            chunks = [metadata.row_group(g).column(number) for g in range(metadata.num_row_groups)]
            expected = [c.statistics and c.statistics.null_count for c in chunks]
            with path.open("rb") as file:
                assert null_counts(file, chunks[0].path_in_schema) == expected


def test_a_row_without_bytes_names_a_file(tmp_path: Path) -> None:
    """Hugging Face's struct holds bytes or a path, row by row; paths start from the table."""
    (tmp_path / "a.png").write_bytes(png(1))
    images = [{"bytes": None, "path": "a.png"}, {"bytes": png(2), "path": None}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {"id": ["a", "b"], "label": ["x", "x"], "image": pa.array(images, kind)}
    for statistics in (True, False):
        path = write_parquet(tmp_path / "t.parquet", table, write_statistics=statistics)
        data = load(path)
        assert [data.original(row, LIMIT) for row in (0, 1)] == [png(1), png(2)]
    images[0]["path"] = None
    table["image"] = pa.array(images, kind)
    with pytest.raises(InputError, match=r"row 0 \(id 'a'\): path is empty"):
        load(write_parquet(tmp_path / "t.parquet", table))
    images[0]["path"] = "/etc/hostname"
    table["image"] = pa.array(images, kind)
    with pytest.raises(InputError, match="lies outside"):
        load(write_parquet(tmp_path / "t.parquet", table))


def test_a_parquet_table_may_name_files(tmp_path: Path) -> None:
    """A column ``path`` of text is as in a CSV; a column of bytes beside it is not read, nor is the
    index of pandas."""
    (tmp_path / "a.png").write_bytes(png(3))
    table = {"id": ["1"], "path": ["a.png"], "label": ["x"], "blob": [b"1"]}
    table["__index_level_0__"] = [5]
    with collected() as notices:
        data = load(write_parquet(tmp_path / "t.parquet", table))
    assert data.original(0, LIMIT) == png(3)
    assert [(e["kind"], e["names"]) for e in notices.entries()] == [
        ("column-not-read", ["'blob' (binary)", "'__index_level_0__' (int64)"])
    ]


def test_text_is_read_whatever_arrow_calls_it(tmp_path: Path) -> None:
    """Views and long texts, which other writers of Parquet use, are ids, labels and slices."""
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        table = {
            "id": pa.array(["a", "b"], kind),
            "image": [png(1), png(2)],
            "label": pa.array(["x", "y"], kind),
            "shop": pa.array(["s", None], kind),
        }
        data = load(write_parquet(tmp_path / "t.parquet", table))
        assert (data.ids, data.labels) == (("a", "b"), ("x", "y"))
        assert [item.slices for item in data.items] == [{"shop": "s"}, {}]


def test_values_are_kept_as_they_are_written(tmp_path: Path) -> None:
    """Whole numbers, dates, decimals, truth values and categories; NaN and null are no value."""
    import datetime
    import decimal

    table = {
        "id": pa.array([7, 2**60], pa.int64()),
        "image": [png(1), png(2)],
        "label": pa.array([3, 3], pa.uint8()),
        "day": pa.array([datetime.date(2024, 2, 3), None]),
        "price": pa.array([decimal.Decimal("1.50"), None]),
        "sold": pa.array([True, None]),
        "size": pa.array([0.5, float("nan")]),
        "kind": pa.array(["NA", ""]).dictionary_encode(),
    }
    first, second = load(write_parquet(tmp_path / "t.parquet", table)).items
    assert (first.id, second.id, first.label) == ("7", str(2**60), "3")
    assert first.slices == {
        "day": "2024-02-03",
        "price": "1.50",
        "sold": "true",
        "size": "0.5",
        "kind": "NA",
    }
    assert second.slices == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": pa.array([1.0, 2.0])}, "label must be text, got 1.0"),
        ({"label": pa.array([["x"], ["y"]])}, "the column 'label' is list.*; label must be text"),
        ({"label": pa.array(["x", None])}, r"row 1 \(id 'b'\): label is empty"),
        ({"id": pa.array(["a", "a"])}, "row 1: the id 'a' is already at"),
        ({"": pa.array([1, 2])}, "a column without a name"),
        ({"id": None}, "there is no column id; its columns are 'image', 'label'"),
        ({"image": None}, "there is no column path; its columns are 'id', 'label'"),
        ({"image": pa.array([png(1), None])}, r"row 1 \(id 'b'\): path is empty"),
        ({"photo": pa.array([png(1)] * 2), "image": None, "scan": pa.array([png(1)] * 2)},
         "'photo', 'scan' are columns of images; an item has one"),
    ],
)  # fmt: skip
def test_a_bad_parquet_table_is_refused(
    tmp_path: Path, change: dict[str, pa.Array | None], message: str
) -> None:
    """Missing columns with those found, types that a field cannot have, and empty fields by row."""
    table = {"id": pa.array(["a", "b"]), "image": pa.array([png(1), png(2)])}
    table |= {"label": pa.array(["x", "y"])} | change
    table = {name: column for name, column in table.items() if column is not None}
    with pytest.raises(InputError, match=message):
        load(write_parquet(tmp_path / "t.parquet", table))


def test_columns_of_other_names_serve_every_form(tmp_path: Path) -> None:
    """Parquet's columns, the features of a saved data set, and the keys of JSON in an archive."""
    items = samples()
    table = columns(items)
    renamed = {"sku": table["id"], "photo": table["image"], "kind": table["label"]}
    names = {"id": "sku", "path": "photo", "label": "kind"}
    data = load(write_parquet(tmp_path / "t.parquet", renamed), columns=names)
    assert data.labels == tuple(item.label for item in items)
    assert data.original(3, LIMIT) == items[3].png
    files = [(f"{item.id}.png", item.png) for item in items]
    files += [
        (f"{item.id}.json", json.dumps({"kind": item.label, "sku": item.vendor + item.id}).encode())
        for item in items
    ]
    path = write_tar(tmp_path / "t.tar", sorted(files))
    data = load(path, columns={"label": "kind", "id": "sku"})
    assert data.ids[0] == items[0].vendor + items[0].id
    saved = load(write_saved(tmp_path / "saved", items), columns={"label": "vendor"}, partial=True)
    assert set(saved.labels) == {"one", "two"}
    for file, given in (
        ("t.parquet", {**names, "label": "gone"}),
        ("t.tar", {"label": "gone"}),
        ("saved", {"split": "gone"}),
    ):
        with pytest.raises(InputError, match=r"no (column|key) 'gone' for"):
            load(tmp_path / file, columns=given)


def test_rows_without_ids_are_counted_only_where_hugging_face_wrote_them(tmp_path: Path) -> None:
    """Split and number, over all files of the split, with a notice; another table needs ids."""
    items = samples()
    folder = write_saved_dict(tmp_path / "saved", items)
    for split in ("train", "test"):
        for file in sorted((folder / split).glob("*.arrow")):
            table = pa.ipc.open_stream(file.read_bytes()).read_all().drop_columns(["id"])
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
                out.write_table(table)
    with collected() as notices:
        data = load(folder)
    assert data.ids == tuple(f"{split}/{n}" for split in ("train", "test") for n in range(6))
    assert [data.original(row, LIMIT) for row in range(12)] == [item.png for item in items]
    assert "ids-from-rows" in {entry["kind"] for entry in notices.entries()}


def test_a_class_without_a_name_is_refused(tmp_path: Path) -> None:
    """-1 is no class, as in the test splits of many data sets; another number is a mistake."""
    table = columns(samples(3), "struct")
    features = {"label": {"names": [*CLASSES], "_type": "ClassLabel"}}
    for number, message in ((-1, r"\(id '0002'\): label is empty"), (3, "3 in the column 'label'")):
        table["label"] = pa.array([0, 1, number])
        schema = pa.table(table).schema
        text = json.dumps({"info": {"features": features}})
        whole = pa.table(table, schema=schema.with_metadata({"huggingface": text}))
        pq.write_table(whole, tmp_path / "t.parquet")
        with pytest.raises(InputError, match=message):
            load(tmp_path / "t.parquet")


def test_files_named_like_splits_are_read_so_only_if_all_are(tmp_path: Path) -> None:
    """By the first word of a file's name or by its folder; a split of the row itself wins."""
    table = columns(samples(6))
    own = {**table, "id": pa.array([f"own{n}" for n in range(6)])}
    del table["split"]
    write_parquet(tmp_path / "a/val/0.parquet", table)
    write_parquet(tmp_path / "a/train-1.parquet", own)
    with collected() as notices:
        splits = {item.id: item.split for item in load(tmp_path / "a").items}
    assert [entry["kind"] for entry in notices.entries()] == ["split-folders"]
    assert {splits[f"{n:04d}"] for n in range(6)} == {"validation"}
    assert [splits[f"own{n}"] for n in range(6)] == ["train"] * 3 + ["test"] * 3
    (tmp_path / "a/val/0.parquet").rename(tmp_path / "a/other.parquet")
    with collected() as notices:
        load(tmp_path / "a")
    assert "not read as such" in notices.messages()[0]


def test_a_folder_of_images_with_a_table_in_it_stays_one(tmp_path: Path) -> None:
    """Shards count where no image lies as deep as the first of them; two forms are refused."""
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant/a.png").write_bytes(png(1))
    write_parquet(tmp_path / "zoo/items.parquet", columns(samples(3)))
    assert load(tmp_path).labels == ("ant",)
    write_parquet(tmp_path / "hub/default/train/0.parquet", columns(samples(3)))
    assert len(load(tmp_path / "hub")) == 3
    write_tar(tmp_path / "zoo/t.tar", tar_files(samples(3)))
    with pytest.raises(InputError, match=r"\.parquet and \.tar files are two forms"):
        load(tmp_path / "zoo")


def test_parts_of_an_archive_that_are_not_read_are_counted(tmp_path: Path) -> None:
    """Texts beside an image, nested JSON, hidden files and links; the label of .cls wins."""
    files = [
        ("./x/0.png", png(1)), ("./x/0.cls", b"7\n"), ("./x/0.txt", b"a bee"),
        ("./x/0.json", b'{"label": "old", "id": 5, "tags": [1], "width": 4}'), ("._0.png", b"?"),
    ]  # fmt: skip
    path = write_tar(tmp_path / "t.tar", files)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with collected() as notices:
        data = load(path)
    assert (data.ids, data.labels, data.items[0].slices) == (("x/0",), ("7",), {"width": "4"})
    said = {entry["message"].split(": ", 1)[1].split(": 1")[0] for entry in notices.entries()}
    assert said == {
        f"parts of items that are not read ({part})"
        for part in (
            ".txt beside an image",
            "'id' of .json",
            "'tags' of .json",
            "another label in .json",
            "hidden files",
            "links and devices",
        )
    }


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    """Cut within a file or a header, or with bytes where a header should be; no item is lost."""
    content = write_tar(tmp_path / "t.tar", tar_files(samples())).read_bytes()
    path = tmp_path / "bad.tar"
    middle = len(content.rstrip(b"\0")) // 1024 * 512
    for end in (300, middle, middle + 100, middle + 512 + 37):
        path.write_bytes(content[:end])
        with collected() as notices:
            try:
                data = load(path)
            except InputError:
                continue
        assert len(data) < 12
        assert [entry["kind"] for entry in notices.entries()] == ["archive-end"]
    header = content.index(samples()[3].id.encode() + b".png")
    path.write_bytes(content[:header] + b"\xff" * 512 + content[header + 512 :])
    with pytest.raises(InputError, match="not a tar archive that can be read: no header"):
        load(path)
    path.write_bytes(b"\x1f\x8b" + content)
    with pytest.raises(InputError, match="not a tar archive"):
        load(path)
    two = write_tar(
        tmp_path / "two.tar", [("a.png", png(1)), ("a.left.jpg", png(2)), ("a.cls", b"x")]
    )
    with pytest.raises(InputError, match="two images"):
        load(two)


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_a_damaged_file_is_refused_or_gives_the_right_bytes(tmp_path: Path, form: str) -> None:
    """Flipped bytes and short files raise nothing but InputError, whatever pyarrow raises; half of
    the flips are at the end, where Parquet describes itself."""
    items = samples()
    data = FORMS[form](tmp_path, items)
    path = next(data.rglob("data-00000*.arrow")) if form == "saved" else data
    content = path.read_bytes()
    rng = random.Random(1)
    for attempt in range(300):
        broken = bytearray(content)
        if attempt % 3:
            start = len(content) * 2 // 3 if attempt % 2 else 0
            broken[rng.randrange(start, len(content))] ^= 1 << rng.randrange(8)
        else:
            del broken[rng.randrange(len(content)) :]
        path.write_bytes(bytes(broken))
        try:
            loaded = load(data)
            for row in range(len(loaded)):
                loaded.original(row, LIMIT)
        except InputError:
            continue


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """An archive or a table that is replaced between loading and reading is not read as before."""
    items = samples()
    for form in ("parquet", "tar"):
        path = FORMS[form](tmp_path, items)
        data = load(path)
        path.write_bytes(path.read_bytes() + b"\0" * 1024)
        with pytest.raises(InputError, match="changed while the command ran"):
            data.original(0, LIMIT)


def test_an_image_over_the_limit_is_refused(tmp_path: Path) -> None:
    """The bytes of an image in a larger file count as those of a file do."""
    items = samples()
    for form in FORMS:
        data = load(FORMS[form](tmp_path / form, items))
        with pytest.raises(InputError, match="bytes"):
            data.original(0, 100)


def test_descriptions_of_a_saved_data_set_are_checked(tmp_path: Path) -> None:
    """No split or file outside of its folder, no index of rows, and no missing file."""
    folder = write_saved_dict(tmp_path / "saved", samples())
    for content, message in (
        ({"splits": ["../train"]}, "names no splits"),
        ({"splits": ["gone"]}, "state.json: cannot be read"),
    ):
        (folder / "dataset_dict.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            load(folder)
    state = folder / "train/state.json"
    for change, message in (
        ({"_data_files": [{"filename": "/etc/passwd"}]}, "names no data files"),
        ({"_indices_files": [{"filename": "i.arrow"}]}, "old version of datasets"),
    ):
        state.write_text(json.dumps({"_data_files": [{"filename": "x.arrow"}], **change}))
        with pytest.raises(InputError, match=message):
            load(folder / "train")


def test_compressed_arrow_columns_are_refused(tmp_path: Path) -> None:
    """Their images are nowhere in the file as they are."""
    folder = write_saved(tmp_path / "saved", samples(), files=1)
    file = folder / "data-00000-of-00001.arrow"
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema, options=options) as out,
    ):
        out.write_table(table)
    with pytest.raises(InputError, match="its columns are compressed"):
        load(folder)


def test_unlabelled_items_of_every_form(tmp_path: Path) -> None:
    """No label is needed, and those there are do not count."""
    for form in FORMS:
        data, ignored = load_unlabelled(FORMS[form](tmp_path / form, samples()))
        assert (len(data), set(data.labels), ignored) == (12, {""}, 12), form


def test_items_without_a_class_are_their_own_where_judgments_say_what_is_relevant(
    tmp_path: Path,
) -> None:
    """Tables and archives load without labels if they need none, and keep those they have."""
    items = samples()
    table = columns(items)
    del table["label"]
    bare = [(f"{item.id}.png", item.png) for item in items]
    for path in (
        write_parquet(tmp_path / "t.parquet", table),
        write_tar(tmp_path / "t.tar", bare),
    ):
        data = load(path, labelled=False)
        assert data.labels == data.ids
        with pytest.raises(InputError, match="label"):
            load(path)
    labelled = load(FORMS["saved"](tmp_path, items), labelled=False)
    assert labelled.labels == tuple(item.label for item in items)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A usage error that names the extra."""
    path = write_parquet(tmp_path / "t.parquet", columns(samples(3)))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="needs pyarrow") as error:
        load(path)
    assert error.value.tip == "pip install 'compatctl[parquet]'"


def test_arrays_of_a_saved_batch_that_is_a_slice(tmp_path: Path) -> None:
    """Sizes and places are right where images of very different sizes follow each other."""
    items = samples(9)
    data = load(write_saved(tmp_path / "s", items, batch=2, files=3))
    sizes = [len(data.original(row, LIMIT)) for row in range(9)]
    assert sizes == [len(item.png) for item in items]
    assert len(np.unique(sizes)) > 3


def test_texts_of_every_form(tmp_path: Path) -> None:
    """A column ``text``, a mapped one beside images, and .txt or a key of .json in an archive."""
    items = samples()
    texts = [f"{item.vendor} {item.label}é" for item in items]
    table = {"id": [item.id for item in items], "text": texts, "label": ["x"] * len(items)}
    captions = {**columns(items), "caption": pa.array(texts)}
    files = [(f"{item.id}.txt", text.encode()) for item, text in zip(items, texts, strict=True)]
    keys = [
        (f"{item.id}.json", json.dumps({"words": text, "label": "x"}).encode())
        for item, text in zip(items, texts, strict=True)
    ]
    labels = [(f"{item.id}.cls", b"x") for item in items]
    named = {"text": "caption"}
    for path, given in (
        (write_parquet(tmp_path / "t.parquet", table), None),
        (write_parquet(tmp_path / "c.parquet", captions), named),
        (write_tar(tmp_path / "t.tar", sorted(files + labels)), None),
        (write_tar(tmp_path / "j.tar", keys), {"text": "words"}),
    ):
        data = load(path, columns=given)
        assert (data.modality, [data.content(row) for row in range(12)]) == ("text", texts), path
        assert data.ids == tuple(item.id for item in items)


def test_a_data_set_that_is_gone_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    """Its blocks are dropped with it."""
    path = write_parquet(tmp_path / "t.parquet", columns(samples()))
    data = load(path)
    before = len(parquet._CACHE._blocks)
    data.original(0, LIMIT)
    assert len(parquet._CACHE._blocks) > before
    del data
    gc.collect()
    assert len(parquet._CACHE._blocks) == before
