"""Data sets on disk: the three forms, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compatctl.data import Dataset, SplitRule, from_files, load, load_unlabelled
from compatctl.errors import InputError
from compatctl.notices import collected

LABELS = ("ant", "bee", "cat", "dog", "emu", "fox", "gnu", "hen", "ibis", "jay")


def picture(seed: int, side: int = 12) -> Image.Image:
    """A deterministic RGB image."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten class folders of two images, beside things that are no images."""
    root = tmp_path / "images"
    for position, label in enumerate(LABELS):
        (root / label / "deep").mkdir(parents=True)
        picture(position).save(root / label / "a.png")
        picture(position + 100).save(root / label / "deep" / "b.JPG", format="jpeg")
    (root / "ant" / "notes.txt").write_text("not an image")
    (root / ".cache").mkdir()
    picture(0).save(root / ".cache" / "hidden.png")
    return root


def table(tmp_path: Path, text: str, name: str = "items.csv") -> Path:
    """A table beside three images."""
    (tmp_path / "img").mkdir(exist_ok=True)
    for position in range(3):
        picture(position).save(tmp_path / "img" / f"{position}.png")
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_folder_of_class_folders(folder: Path) -> None:
    """Label is the first folder, id the path within, sorted; hidden and other files stay out."""
    data = load(folder)
    assert len(data) == 20
    assert data.ids[:2] == ("ant/a.png", "ant/deep/b.JPG")
    assert list(data.ids) == sorted(data.ids)
    assert Counter(data.labels) == dict.fromkeys(LABELS, 2)
    assert data.items[0].role is None
    assert np.array_equal(np.asarray(data.read(0)), np.asarray(picture(0)))


def test_an_image_outside_every_class_folder_is_refused(folder: Path) -> None:
    """An image without a class is an error, not an item left out."""
    picture(1).save(folder / "stray.png")
    with pytest.raises(InputError, match=r"stray\.png lies in no class folder"):
        load(folder)


def test_a_csv_table_with_splits_roles_and_slices(tmp_path: Path) -> None:
    """Split and role are taken if given; other columns are slices, if they have a value."""
    path = table(
        tmp_path,
        "\ufeffid,path,label,split,role,vendor\n"
        "x,img/0.png,ant,test,query,one\n"
        'y,img/1.png,"a, b",,,\n',
    )
    data = load(path, SplitRule(train=1.0, validation=0.0))
    first, second = data.items
    assert (first.split, first.role, dict(first.slices)) == ("test", "query", {"vendor": "one"})
    assert (second.label, second.split, second.role) == ("a, b", "train", None)
    assert dict(second.slices) == {}
    assert data.filter(role="query").ids == ("x",)
    assert data.filter(split="train").ids == ("y",)
    assert np.array_equal(np.asarray(data.read(1)), np.asarray(picture(1)))


def test_a_jsonl_table_reads_as_the_csv_does(tmp_path: Path) -> None:
    """Both forms of table give the same data set, digests included; null is an empty value."""
    lines = [
        {"id": "x", "path": "img/0.png", "label": "ant", "split": "test", "role": None, "year": 7},
        {"id": "y", "path": "img/1.png", "label": "bee", "split": None},
    ]
    rows = table(tmp_path, "\n".join(json.dumps(line) for line in lines), "items.jsonl")
    same = table(tmp_path, "id,path,label,split,year\nx,img/0.png,ant,test,7\ny,img/1.png,bee,,\n")
    assert load(rows).items == load(same).items
    assert load(rows).digest_all() == load(same).digest_all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\nx,ant\n", "no column path"),
        ("id,path,label,label\nx,img/0.png,ant,bee\n", "two columns of one name"),
        ("id,path,label\n", "no item in it"),
        ("", "no line in it"),
        ("id,path,label,cam,cam\nx,img/0.png,ant,1,2\n", "two columns of one name: 'cam'"),
        ("id,path,label\nx,img/0.png,ant\nid,path,label\n", "line 3: the header again"),
        ("id,path,label\nx,img/0.png,a\0nt\n", "line 2: a NUL"),
        ("<!DOCTYPE html>\n<p>404</p>\n", "it is an HTML page, not a table"),
        ("id,path,label\nx,img/0.png\n", "line 2: 2 cells under 3 columns"),
        ("id,path,label\nx,img/0.png,ant\ny,img/1.png, \n", r"line 3 \(id 'y'\): label is empty"),
        ("id,path,label\n,img/0.png,ant\n", r"line 2 \(path 'img/0.png'\): id is empty"),
        ("id,path,label\nx,,ant\n", r"line 2 \(id 'x'\): path is empty"),
        (
            "id,path,label,split\nx,img/0.png,ant,dev\n",
            r"line 2 \(id 'x'\): split is one of .*'dev'",
        ),
        (
            "id,path,label,role\nx,img/0.png,ant,index\n",
            r"line 2 \(id 'x'\): role is one of .*'index'",
        ),
        (
            "id,path,label\nx,img/0.png,ant\ny,img/1.png,ant\nx,img/2.png,bee\n",
            "line 4: the id 'x' is already at .*line 2",
        ),
        ('id,path,label\nx,"img/0.png,ant\n', "not CSV"),
    ],
)
def test_a_bad_csv_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    """Every error of a table names the line."""
    with pytest.raises(InputError, match=message):
        load(table(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"id": "x", "path": "img/0.png"}',
            "line 1: there is no key label; its keys are 'id', 'path'",
        ),
        ("\n[1]", "line 2: not a JSON object"),
        ('{"id": "x",', "line 1: not JSON"),
        ('{"id": "x", "id": "y", "path": "p", "label": "l"}', "the key 'id' is there twice"),
        ('{"id": "x", "path": "img/0.png", "label": true}', "label must be text"),
        ('{"id": "x", "path": "img/0.png", "label": "ant", "tags": [1]}', "tags must be text"),
    ],
)
def test_a_bad_jsonl_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    """A line that is not a JSON object of texts is an error that names it."""
    with pytest.raises(InputError, match=message):
        load(table(tmp_path, text, "items.jsonl"))


EMPTY = [
    ("label", " ", "line 3 (id 'y'): label is empty: expected the item's class, got ' '"),
    ("label", None, "line 3 (id 'y'): label is empty: expected the item's class, got nothing"),
    ("path", " ", "line 3 (id 'y'): path is empty: expected the image's file, got ' '"),
    ("id", "\t", "line 3 (path 'p'): id is empty: expected an id that no other item has"),
]


@pytest.mark.parametrize(("key", "value", "message"), EMPTY)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_an_item_without_a_field_is_named_with_what_to_do(
    tmp_path: Path, key: str, value: str | None, message: str, form: str
) -> None:
    """File, line, the item, what was expected and found, how many more, and the next step."""
    rows: list[dict[str, str | None]] = [
        {"id": name, "path": "p", "label": "ant", "split": None} for name in "xyzu"
    ]
    for row in rows[1:3]:
        row[key] = value
    if form == "jsonl":
        path = table(tmp_path, "\n" + "\n".join(map(json.dumps, rows)), "items.jsonl")
    else:
        cells = "\n".join(",".join(value or "" for value in row.values()) for row in rows)
        path = table(tmp_path, f"id,path,label,split\n{cells}\n")
        message = message.replace("got nothing", "got ''")
    with pytest.raises(InputError) as refused:
        load(path)
    assert refused.value.message.startswith(f"{path}, {message}")
    assert refused.value.message.endswith("; 2 items have none")
    assert "leave the item out" in refused.value.tip or key == "id"


def test_a_blank_split_says_what_an_empty_one_means(tmp_path: Path) -> None:
    """A cell of blanks is no split; the tip says what an empty cell is."""
    with pytest.raises(
        InputError, match=r"line 2 \(id 'x'\): split is one of .*; got ' '"
    ) as error:
        load(table(tmp_path, "id,path,label,split\nx,p,ant, \n"))
    assert error.value.tip.startswith("leave split empty: then the class decides")


def test_unlabelled_items_need_an_id_and_a_path(tmp_path: Path) -> None:
    """Their label may be empty; an id or path of blanks is refused by line."""
    assert load_unlabelled(table(tmp_path, "id,path,label\nx,p,\n"))[1] == 0
    with pytest.raises(InputError, match=r"line 2 \(id 'x'\): path is empty: expected"):
        load_unlabelled(table(tmp_path, "id,path\nx, \n"))


def test_a_table_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Latin-1 bytes are an error of the input, not a bug."""
    path = tmp_path / "items.csv"
    path.write_bytes("id,path,label\nx,p,café\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"not text in UTF-8; it has the bytes .*caf\\xe9"):
        load(path)
    path.write_bytes("id,path,label\nx,p,café\n".encode("utf-16"))
    with pytest.raises(InputError, match="not text in UTF-8; it has UTF-16"):
        load(path)


@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (4, 6, 5)])
def test_an_npz_of_colour_or_grey_arrays(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Arrays read as RGB; split and role columns count, further columns are slices."""
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "data.npz"
    np.savez(
        path,
        images=images,
        ids=np.array(["a", "b", "c", "d"]),
        labels=np.array([1, 1, 2, 2]),
        role=np.array(["query", "gallery", "", ""]),
        font=np.array(["f", "g", "f", "g"]),
    )
    data = load(path)
    assert data.labels == ("1", "1", "2", "2")
    assert [item.role for item in data.items] == ["query", "gallery", None, None]
    assert data.items[1].slices == {"font": "g"}
    expected = images[2] if len(shape) == 4 else np.repeat(images[2][..., None], 3, axis=2)
    assert np.array_equal(np.asarray(data.read(2)), expected)
    assert data.digest(2) == hashlib.sha256(images[2].tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.float32)}, "uint8"),
        ({"images": np.zeros((2, 4, 4, 4), np.uint8)}, "uint8"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, "must be 0 strings"),
        ({"ids": np.array(["a"])}, "ids must be 2 strings"),
        ({"ids": np.array(["a", "a"])}, "row 1: the id 'a' is already"),
        ({"labels": np.array(["a", ""])}, r"row 1 \(id 'b'\): label is empty"),
        ({"labels": np.array([0.5, 1.5])}, "must be 2 strings"),
        ({"labels": np.array(["a", None], dtype=object)}, "not an .npz file that can be read"),
        ({"split": np.array(["train", "dev"])}, r"row 1 \(id 'b'\): split is one of"),
    ],
)
def test_a_bad_npz_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """Wrong shapes, types, pickles and repeated ids are errors of the input."""
    arrays = {
        "images": np.zeros((2, 4, 4, 3), np.uint8),
        "ids": np.array(["a", "b"]),
        "labels": np.array(["x", "y"]),
        **change,
    }
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        load(path)


def test_missing_and_unknown_data_are_refused(tmp_path: Path) -> None:
    """A missing path, an unknown form, an empty folder and a broken archive each say so."""
    for name, content, message in (
        ("missing", None, "no data at"),
        ("notes.doc", b"x", "an unknown form of data"),
        ("data.npz", b"PK\x03\x04 cut off", "not an .npz"),
        ("empty.npz", b"", "not an .npz"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load(path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no item in it"):
        load(tmp_path / "none")


def test_the_split_is_the_hash_of_the_class(folder: Path) -> None:
    """Splits follow sha1 of the label, so that no class is in two, and no run differs."""
    data = load(folder, SplitRule(train=0.5, validation=0.2))
    for item in data.items:
        position = int.from_bytes(hashlib.sha1(item.label.encode()).digest()[:8], "big") / 2**64
        assert item.split == (
            "train" if position < 0.5 else "validation" if position < 0.7 else "test"
        )
    parts = [set(data.filter(split=split).labels) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(LABELS)


def test_held_out_items_are_of_training_classes(folder: Path) -> None:
    """hold_out_items moves items, never classes, and only out of train."""
    plain = load(folder, SplitRule(train=0.7, validation=0.1))
    held = load(folder, SplitRule(train=0.7, validation=0.1, hold_out_items=0.5))
    moved = [
        (a.split, b.split)
        for a, b in zip(plain.items, held.items, strict=True)
        if a.split != b.split
    ]
    assert moved
    assert set(moved) == {("train", "test")}
    assert set(held.filter(split="train").labels) & set(held.filter(split="test").labels)


@pytest.mark.parametrize(
    "shares", [{"train": -0.1}, {"train": 0.8, "validation": 0.3}, {"hold_out_items": 1.5}]
)
def test_invalid_shares_are_refused(shares: dict[str, float]) -> None:
    """Shares lie in 0 .. 1 and train + validation is at most 1."""
    with pytest.raises(InputError, match="split:"):
        SplitRule(**shares)


def test_take_keeps_the_given_order_and_copies_no_image(tmp_path: Path) -> None:
    """Rows come in the order given, with their own images, which are views of one array."""
    images = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    np.savez(
        tmp_path / "d.npz", images=images, ids=np.array(list("abc")), labels=np.array(list("xyz"))
    )
    data = load(tmp_path / "d.npz")
    some = data.take(np.array([2, 0]))
    assert some.ids == ("c", "a")
    assert some.digest(0) == data.digest(2)
    assert some.sources[0] is data.sources[2]


def test_digest_all_sees_pixels_labels_and_splits_but_not_the_order(folder: Path) -> None:
    """The data set's identity changes with any image or label, and with nothing else."""
    data = load(folder)
    assert data.take(range(19, -1, -1)).digest_all() == data.digest_all()
    assert load(folder, SplitRule(train=0.0)).digest_all() != data.digest_all()
    before = data.digest_all()
    picture(999).save(folder / "bee" / "a.png")
    assert load(folder).digest_all() != before


def test_readable_leaves_out_what_does_not_decode(folder: Path) -> None:
    """Images that do not decode are left out, and their ids are returned."""
    (folder / "cat" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    good, bad = load(folder).readable()
    assert bad == ("cat/a.png",)
    assert len(good) == 19


def test_from_files_makes_queries(tmp_path: Path) -> None:
    """Single images are queries without a label; a missing one is named when it is read."""
    picture(5).save(tmp_path / "q.png")
    data: Dataset = from_files([tmp_path / "q.png", tmp_path / "gone.png"])
    assert data.items[0].role == "query"
    assert data.read(0).size == (12, 12)
    for use in (data.read, data.digest):
        with pytest.raises(InputError, match=r"gone\.png: cannot be read: No such file"):
            use(1)


def test_images_without_labels_may_lie_anywhere_in_a_folder(folder: Path) -> None:
    """Ids begin with the folder's name; labels are counted and dropped; no image is an error."""
    picture(50).save(folder / "loose.png")
    data, labelled = load_unlabelled(folder)
    assert (len(data), labelled) == (21, 20)
    assert set(data.labels) == {""}
    assert {"images/loose.png", "images/ant/deep/b.JPG"} < set(data.ids)
    assert {item.split for item in data.items} == {"train"}
    (folder / "none").mkdir()
    with pytest.raises(InputError, match="no item in it"):
        load_unlabelled(folder / "none")


def test_a_table_of_images_without_labels(tmp_path: Path) -> None:
    """id and path suffice; a label is dropped, a split is kept; .jsonl and .npz are alike."""
    path = table(tmp_path, "id,path,split\na,img/0.png,\nb,img/1.png,test\n")
    data, labelled = load_unlabelled(path)
    assert (data.ids, labelled) == (("a", "b"), 0)
    assert [item.split for item in data.items] == ["train", "test"]
    text = '{"id": "a", "path": "img/0.png", "label": "ant"}\n{"id": "b", "path": "img/1.png"}\n'
    data, labelled = load_unlabelled(table(tmp_path, text, "items.jsonl"))
    assert (data.labels, labelled) == (("", ""), 1)
    np.savez(tmp_path / "items.npz", images=np.zeros((2, 4, 4), np.uint8), ids=np.array(["a", "b"]))
    assert load_unlabelled(tmp_path / "items.npz")[0].ids == ("a", "b")
    with pytest.raises(InputError, match="no column path"):
        load_unlabelled(table(tmp_path, "id,label\na,ant\n"))
    with pytest.raises(InputError, match="no column label"):
        load(table(tmp_path, "id,path\na,img/0.png\n"))


def test_items_without_a_role_among_others_are_named(tmp_path: Path) -> None:
    """Where others have a role they are neither queries nor gallery items, and a notice says so;
    those that are written to train only are meant so, and where no item has a role all are both."""
    path = table(
        tmp_path,
        "id,path,label,split,role\na,a.png,x,test,query\nb,b.png,x,test,gallery\n"
        "c,c.png,x,test,\nd,d.png,x,,\ne,e.png,x,train,\n",
    )
    with collected() as notices:
        load(path)
    (entry,) = notices.entries()
    assert (entry["kind"], entry["names"]) == ("no-role", ["c", "d"])
    for role in ("query", "gallery"):
        path.write_text(path.read_text().replace(f",{role}\n", ",\n"))
    with collected() as notices:
        load(path)
    assert notices.entries() == []


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_json_lines_in_another_encoding_are_refused_as_such(tmp_path: Path, encoding: str) -> None:
    """The message speaks of the encoding, not of JSON."""
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": "a", "path": "a.png", "label": "café"}\n', encoding=encoding)
    with pytest.raises(InputError, match="line 1: not text in UTF-8") as error:
        load(path)
    assert error.value.tip == "save it as UTF-8"
