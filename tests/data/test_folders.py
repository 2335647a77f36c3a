"""Folders: what is read, what is passed over and said, and what the folders' names mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compatctl.data import load, load_unlabelled
from compatctl.encoder import Encoder
from compatctl.errors import DamagedError, InputError
from compatctl.files import parse_json, read_json
from compatctl.index import read_header
from compatctl.notices import collected

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
FILES = ["1.png", "t.csv", "t.jsonl", "t.npz", "m.onnx", "i.bin", "p.json"]


def draw(top: Path, *names: str) -> Path:
    """Images of these names in ``top``."""
    for seed, name in enumerate(names):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, format="png")
    return top


def found(top: Path) -> tuple[list[tuple[str, str]], list[tuple[str, int, list[str]]]]:
    """(id, label) of the items, and (kind, count, names) of the notices."""
    with collected() as notices:
        data = load(top)
    said = [(entry["kind"], entry["count"], entry["names"]) for entry in notices.entries()]
    return list(zip(data.ids, data.labels, strict=True)), said


def test_files_that_are_not_read_are_counted_and_named_by_ending(tmp_path: Path) -> None:
    """Formats that are not read, notes, broken links and hidden images; not hidden other files."""
    top = draw(tmp_path / "d", "a/1.png", "b/2.JPG", "b/.3.png")
    for name in ("a/IMG_1.HEIC", "b/IMG_2.heic", "b/notes", "a/.DS_Store"):
        (top / name).write_bytes(b"\0\0\0\x18ftypheic")
    (top / "a" / "gone.png").symlink_to(top / "a" / "nothing.png")
    items, said = found(top)
    assert items == [("a/1.png", "a"), ("b/2.JPG", "b")]
    assert said == [
        ("file-not-read", 2, ["a/IMG_1.HEIC", "b/IMG_2.heic"]),
        ("file-not-read", 1, ["b/notes"]),
        ("file-not-read", 1, ["b/.3.png"]),
        ("file-not-read", 1, ["a/gone.png"]),
    ]
    with collected() as notices:
        load_unlabelled(top)
    assert len(notices.entries()) == 4
    assert "(.heic): 2 (a/IMG_1.HEIC, b/IMG_2.heic)" in " ".join(notices.messages())


def test_a_class_folder_without_an_image_is_said(tmp_path: Path) -> None:
    """Its class is not in the data."""
    top = draw(tmp_path / "d", "a/1.png", "b/2.png")
    (top / "c" / "deep").mkdir(parents=True)
    assert found(top)[1] == [("empty-folder", 1, ["'c'"])]


def test_folders_named_like_splits_are_splits(tmp_path: Path) -> None:
    """Labels are the folders below; an id keeps the whole path."""
    top = draw(tmp_path / "d", "train/a/1.png", "Val/a/1.png", "test/b/x/1.png", "train/b/2.png")
    with collected() as notices:
        data = load(top)
    assert [(item.id, item.label, item.split) for item in data.items] == [
        ("Val/a/1.png", "a", "validation"),
        ("test/b/x/1.png", "b", "test"),
        ("train/a/1.png", "a", "train"),
        ("train/b/2.png", "b", "train"),
    ]
    (entry,) = notices.entries()
    assert entry["names"] == ["'Val' as validation", "'test' as test", "'train' as train"]


def test_folders_named_like_roles_are_roles_of_test_items(tmp_path: Path) -> None:
    """query and gallery, as in re-identification."""
    top = draw(tmp_path / "d", "train/a/1.png", "query/b/1.png", "gallery/b/2.png")
    with collected():
        data = load(top)
    assert [(item.label, item.split, item.role) for item in data.items] == [
        ("b", "test", "gallery"),
        ("b", "test", "query"),
        ("a", "train", None),
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("train/1.png", "val/2.png"),
        ("train/a/1.png", "val/a/2.png", "extra/a/3.png"),
        ("train/a/1.png", "test/1.png"),
        ("cup/train/1.png", "cup/test/2.png", "jar/train/1.png"),
        ("train2017/a/1.png", "val2017/a/2.png"),
        ("train_set/a/1.png", "test_set/a/2.png"),
        ("trainval/a/1.png", "tests/a/2.png"),
        ("bounding_box_train/1.png", "query/2.png"),
    ],
)
def test_folders_that_may_be_splits_stay_classes_and_are_said(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    """Images without a class below, or a folder that is no split: nothing is guessed."""
    items, said = found(draw(tmp_path / "d", *names))
    assert [label for _, label in items] == [name.split("/")[0] for name in sorted(names)]
    assert [kind for kind, _, _ in said] == ["split-folders"]


@pytest.mark.parametrize(
    ("names", "notices"),
    [
        (("images/a/1.png", "images/b/2.png"), 1),
        (("2023/a/1.png", "2023/b/1.png", "2024/a/1.png", "2024/b/1.png", "2024/c/1.png"), 1),
        (("train/images/a/1.png", "train/images/b/1.png"), 1),
        (("train/images/1.png", "val/images/2.png"), 1),
        (("Images/1.png", "cup/2.png"), 1),
        (("photos/2024/a/1.png", "photos/2024/b/1.png"), 1),
        (("a/x/y/cup/1.png", "a/x/y/jar/1.png"), 1),
        (
            (
                "north/shots/a/1.png",
                "north/shots/b/1.png",
                "south/shots/a/1.png",
                "south/shots/b/1.png",
                "south/shots/c/1.png",
            ),
            1,
        ),
        (("cup/shots/1.png", "jar/shots/1.png"), 0),
        (("cup/shots/left/1.png", "jar/shots/right/1.png"), 0),
        (("imagery/1.png", "contest/2.png"), 0),
        (("cup/front/1.png", "cup/back/1.png", "jar/front/1.png", "jar/back/1.png"), 0),
        (("cup/1.png", "cup/deep/2.png", "test/1.png"), 0),
    ],
)
def test_a_folder_above_the_class_folders_is_said(
    tmp_path: Path, names: tuple[str, ...], notices: int
) -> None:
    """One folder of folders, or few whose folders repeat; views of objects are no such thing."""
    items, said = found(draw(tmp_path / "d", *names))
    depth = names[0].startswith("train/")
    assert {label for _, label in items} == {name.split("/")[depth] for name in names}
    assert [kind for kind, _, _ in said if kind == "nested-folders"] == ["nested-folders"] * notices


@pytest.mark.parametrize(
    ("pointer", "tip"), [(LFS, "git lfs pull"), (b"/annex/objects/SHA256E-s5\n", "git annex get")]
)
@pytest.mark.parametrize(
    "name", ["1.png", "t.csv", "t.jsonl", "t.npz", "m.onnx", "i.bin", "p.json"]
)
def test_a_pointer_to_a_file_is_named_as_such(
    tmp_path: Path, name: str, pointer: bytes, tip: str
) -> None:
    """Images, tables, models, indexes and JSON: the message says how to fetch the file."""
    path = tmp_path / "d" / "a" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(pointer)
    with pytest.raises(DamagedError, match=r"is a .* pointer"):
        parse_json(pointer, path, error=DamagedError)
    readers = {
        "1.png": lambda: load(tmp_path / "d").read(0),
        "m.onnx": lambda: Encoder.load(path),
        "i.bin": lambda: read_header(path),
        "p.json": lambda: read_json(path, 1000),
    }
    with pytest.raises(InputError, match=rf"{name}: it is a .* pointer") as refused:
        readers.get(name, lambda: load(path))()
    assert tip in refused.value.tip


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.npz", "m.onnx", "p.json"])
def test_a_missing_file_says_where_it_is_if_that_is_known(tmp_path: Path, name: str) -> None:
    """A file of DVC stands beside it, or it is a link of git-annex whose target is not there."""
    path = tmp_path / name
    reader = {"m.onnx": Encoder.load, "p.json": lambda file: read_json(file, 1000)}.get(name, load)
    (tmp_path / f"{name}.dvc").write_text("outs:\n")
    with pytest.raises(InputError) as refused:
        reader(path)
    assert "dvc pull" in refused.value.tip
    (tmp_path / f"{name}.dvc").unlink()
    path.symlink_to("../.git/annex/objects/xX/yY/SHA256E-s5/SHA256E-s5")
    with pytest.raises(InputError) as refused:
        reader(path)
    assert "git annex get" in refused.value.tip


def test_a_link_of_git_annex_written_as_a_text_is_a_pointer(tmp_path: Path) -> None:
    """As Git writes a link where the system has none."""
    (tmp_path / "t.csv").write_text("../.git/annex/objects/xX/yY/SHA256E-s5--a.csv/SHA256E-s5.csv")
    with pytest.raises(InputError, match=r"t\.csv: it is a git-annex pointer"):
        load(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("path", "tip"),
    [("im\\a.png", "with / between"), ("a.png ", "as it is written"), ("'a.png'", "as it is")],
)
def test_a_path_that_is_written_for_another_system_says_so(
    tmp_path: Path, path: str, tip: str
) -> None:
    """Backslashes, blanks and quotes around the path of an image that is not there."""
    draw(tmp_path, "a.png")
    (tmp_path / "t.csv").write_text(f"id,path,label\na,{path},x\n")
    with pytest.raises(InputError, match="cannot be read") as refused:
        load(tmp_path / "t.csv").read(0)
    assert tip in refused.value.tip
