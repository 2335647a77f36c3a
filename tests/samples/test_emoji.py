"""The emoji set of examples/emoji, and its unpacking."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compatctl.errors import InputError
from compatctl.samples import COLUMNS, TILE, emoji_source, unpack_emoji

SOURCE = Path(__file__).parents[2] / "examples" / "emoji"
PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _split_of(code: str) -> str:
    byte = hashlib.sha1(code.encode()).digest()[0]
    return "train" if byte < 153 else "validation" if byte < 178 else "test"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of the set, unpacked once for this module."""
    return unpack_emoji(SOURCE, tmp_path_factory.mktemp("emoji"))


def test_the_set_is_found_and_is_small() -> None:
    """The installed set is that of the checkout, and smaller than 6 MB."""
    folder = emoji_source()
    assert (folder / "items.csv").read_bytes() == (SOURCE / "items.csv").read_bytes()
    assert sum(file.stat().st_size for file in SOURCE.iterdir()) < 6_000_000


def test_every_concept_is_drawn_by_every_vendor() -> None:
    """Each of at least 1,000 concepts is drawn once by each of five vendors; ids are unique."""
    rows = _rows(SOURCE / "items.csv")
    codes = {row["label"] for row in rows}
    assert len(codes) >= 1000
    assert {(row["vendor"], row["label"]) for row in rows} == {
        (vendor, code) for vendor in PACKAGES for code in codes
    }
    assert len({row["id"] for row in rows}) == len(rows) == len(codes) * len(PACKAGES)


def test_splits_and_roles_follow_their_rules() -> None:
    """Splits follow the first byte of sha1(code); noto is the gallery, the others are queries."""
    for row in _rows(SOURCE / "items.csv"):
        assert row["id"] == f"{row['vendor']}/{row['label']}"
        assert row["split"] == _split_of(row["label"])
        assert row["role"] == ("gallery" if row["vendor"] == "noto" else "query")


def test_no_drawing_stands_for_two_concepts() -> None:
    """A sheet has one tile for each row of the table, none blank and none twice."""
    rows = _rows(SOURCE / "items.csv")
    for sheet, count in Counter(row["sheet"] for row in rows).items():
        pixels = np.asarray(Image.open(SOURCE / sheet).convert("RGB"))
        down, across = pixels.shape[0] // TILE, pixels.shape[1] // TILE
        grid = pixels.reshape(down, TILE, across, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
        tiles = [int(row["tile"]) for row in rows if row["sheet"] == sheet]
        assert tiles == list(range(count))
        assert len(grid) - across < count <= len(grid)
        assert len({tile.tobytes() for tile in grid[:count]}) == count
        assert all(tile.min() < tile.max() for tile in grid[:count])


def test_every_licence_is_named() -> None:
    """LICENSES.md names each sheet, its package and its licence, and has the MIT text."""
    text = (SOURCE / "LICENSES.md").read_text(encoding="utf-8")
    for vendor, package in PACKAGES.items():
        line = next(row for row in text.splitlines() if row.startswith(f"| `{vendor}.webp`"))
        assert package in line
        assert any(licence in line for licence in ("Apache-2.0", "MIT", "CC-BY-4.0"))
    for phrase in ("licenses/by/4.0", "LICENSE-2.0", "Permission is hereby granted", "64 x 64"):
        assert phrase in text
    code_points = {row["label"] for row in _rows(SOURCE / "items.csv")}
    assert f"{len(code_points):,}" in text


def test_share_alike_drawings_are_left_out() -> None:
    """The set contains nothing of OpenMoji (CC-BY-SA)."""
    for file in SOURCE.iterdir():
        assert "openmoji" not in file.name.lower()
        if file.suffix in {".csv", ".md", ".py", ".yaml"}:
            assert "openmoji" not in file.read_text(encoding="utf-8").lower()


def test_unpacked_images_are_the_sheets_tiles(unpacked: Path) -> None:
    """The written table keeps id, label, split, role and vendor; each image is its tile."""
    before, after = _rows(SOURCE / "items.csv"), _rows(unpacked)
    assert tuple(after[0]) == COLUMNS
    kept = [name for name in COLUMNS if name != "path"]
    assert [[row[name] for name in kept] for row in after] == [
        [row[name] for name in kept] for row in before
    ]
    for row, tile in list(zip(after, before, strict=True))[::97]:
        sheet = np.asarray(Image.open(SOURCE / tile["sheet"]).convert("RGB"))
        top, left = divmod(int(tile["tile"]), sheet.shape[1] // TILE)
        expected = sheet[top * TILE : (top + 1) * TILE, left * TILE : (left + 1) * TILE]
        with Image.open(unpacked.parent / row["path"]) as image:
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), expected)


def test_unpacking_says_what_is_missing(tmp_path: Path) -> None:
    """A missing table, column or sheet is an InputError that names it."""
    with pytest.raises(InputError, match=r"items\.csv"):
        unpack_emoji(tmp_path, tmp_path)
    (tmp_path / "items.csv").write_text("id,label\na,b\n")
    with pytest.raises(InputError, match="no column role, sheet"):
        unpack_emoji(tmp_path, tmp_path)
    (tmp_path / "items.csv").write_text(
        "id,label,split,role,vendor,sheet,tile\nv/a,a,test,query,v,v.webp,0\n"
    )
    with pytest.raises(InputError, match=r"v\.webp"):
        unpack_emoji(tmp_path, tmp_path / "out")


def test_a_tile_outside_its_sheet_is_named(tmp_path: Path) -> None:
    """A row whose tile is outside the sheet is an InputError that names the item."""
    Image.new("RGB", (TILE, TILE)).save(tmp_path / "v.webp", lossless=True)
    (tmp_path / "items.csv").write_text(
        "id,label,split,role,vendor,sheet,tile\nv/a,a,test,query,v,v.webp,1\n"
    )
    with pytest.raises(InputError, match="v/a is tile 1"):
        unpack_emoji(tmp_path, tmp_path / "out")
