"""A table from elsewhere names images of its own folder, and of no other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compatctl.data import Dataset, load
from compatctl.data import _tables as tables
from compatctl.errors import InputError


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with an image for the table, and another with a picture of somebody else."""
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own / "img", other / "ant"):
        folder.mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(folder / "a.png")
    return own, other


def table(own: Path, form: str, image: str) -> Path:
    """A table of one item."""
    path = own / f"items.{form}"
    if form == "csv":
        path.write_text(f"id,path,label\nx,{image},ant\n")
    else:
        path.write_text(json.dumps({"id": "x", "path": image, "label": "ant"}) + "\n")
    return path


def refused(path: Path, where: str, data_root: Path | None = None) -> None:
    """Loading is an InputError that names the place and says what would allow it."""
    with pytest.raises(InputError, match="lies outside ") as caught:
        load(path, data_root=data_root)
    assert where in caught.value.message
    assert "--data-root FOLDER" in caught.value.tip


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_table_cannot_name_an_image_outside(places: tuple[Path, Path], form: str) -> None:
    """``..``, absolute paths and links that lead outside are refused, with the line."""
    own, other = places
    (own / "link.png").symlink_to(other / "ant" / "a.png")
    (own / "folder").symlink_to(other)
    line = f"line {2 if form == 'csv' else 1}"
    for image in (
        "../other/ant/a.png", str(other / "ant" / "a.png"), "link.png", "folder/ant/a.png", "..",
        "img/../../other/ant/a.png", "/etc/passwd", "folder/..", "img/../..", "../own2/a.png",
    ):  # fmt: skip
        refused(table(own, form, image), line)
        if "own2" not in image and image not in {"..", "/etc/passwd", "folder/..", "img/../.."}:
            assert load(table(own, form, image), data_root=other).read(0).size == (4, 4)
    for image in ("img/a.png", str(own / "img" / "a.png"), "img/../img/a.png", "./img/a.png"):
        assert load(table(own, form, image)).read(0).size == (4, 4)


def test_a_data_root_allows_only_folders_below_it(places: tuple[Path, Path]) -> None:
    """A root allows files below it, not folders whose name starts with its name."""
    own, other = places
    (own.parent / "other2").mkdir()
    refused(table(own, "csv", "../other2/a.png"), "line 2", data_root=other)


def test_links_in_class_folders(places: tuple[Path, Path]) -> None:
    """A linked image or class that leads outside is refused; within the root it is read."""
    own, other = places
    (own / "img" / "b.png").symlink_to(other / "ant" / "a.png")
    refused(own, "b.png")
    assert len(load(own, data_root=other)) == 2
    (own / "img" / "b.png").unlink()
    (own / "ant").symlink_to(other / "ant")
    refused(own, "ant")
    assert load(own, data_root=other).labels == ("ant", "img")
    (own / "again").symlink_to(own)
    with pytest.raises(InputError, match="there already"):
        load(own, data_root=other)


def test_a_pipe_is_not_an_image(places: tuple[Path, Path]) -> None:
    """A named pipe, which would block for ever, is an image that cannot be read."""
    own, _ = places
    os.mkfifo(own / "img" / "pipe.png")
    data: Dataset = load(table(own, "csv", "img/pipe.png"))
    for look in (data.read, data.digest):
        with pytest.raises(InputError, match="regular"):
            look(0)
    assert len(load(own)) == 1


def test_a_table_is_a_regular_file(tmp_path: Path) -> None:
    """A named pipe is refused at once."""
    for name in ("items.csv", "items.jsonl"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="regular"):
            load(tmp_path / name)


def test_a_table_too_large_is_not_read(tmp_path: Path) -> None:
    """A file of more than ``MAX_TABLE_BYTES``, which a hole of a disk's file makes free."""
    path = tmp_path / "items.csv"
    with path.open("wb") as file:
        file.truncate(tables.MAX_TABLE_BYTES + 1)
    with pytest.raises(InputError, match="a table has at most"):
        load(path)


@pytest.mark.parametrize("name", ["items.csv", "items.jsonl"])
def test_a_line_too_long_is_not_read(tmp_path: Path, name: str) -> None:
    """A line without end is refused by its number; a cell of 200 kB is no cell."""
    path = tmp_path / name
    path.write_bytes(b"id,path,label\n" + b"x" * (tables.MAX_LINE_BYTES + 1))
    with pytest.raises(InputError):
        load(path)
    path.write_bytes(b"x" * (tables.MAX_LINE_BYTES + 1))
    with pytest.raises(InputError, match="line 1: longer than"):
        load(path)


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "x", "path": "a", "label": "l", "n": ' + "9" * 100_000 + "}",
        '{"id": "x", "path": "a", "label": "l", "n": NaN}',
        '{"id": "x", "path": "a", "label": "l", "n": ' + "[" * 100_000 + "}",
        '{"id": "x", "id": "y", "path": "a", "label": "l"}',
    ],
    ids=["a number of 100,000 digits", "NaN", "nested 100,000 deep", "a key twice"],
)
def test_malformed_json_lines_are_refused(tmp_path: Path, line: str) -> None:
    """Each is an error that names the line."""
    path = tmp_path / "items.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match="line 1: not JSON"):
        load(path)
