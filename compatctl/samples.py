"""The emoji set that comes with the package: where it is, and how its sheets become image files.

Pillow otherwise lives in ``data.py``; here it is imported inside the functions, because the sheets
are unpacked once, before there is a data set to read.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compatctl.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

TILE = 64
COLUMNS = ("id", "path", "label", "split", "role", "vendor")


def emoji_source() -> Path:
    """The folder with ``items.csv`` and the sheets: inside the package, else in the checkout.

    Raises:
        InputError: neither is there.
    """
    package = Path(__file__).resolve().parent
    candidates = (package / "demo_data" / "emoji", package.parent / "examples" / "emoji")
    for folder in candidates:
        if (folder / "items.csv").is_file():
            return folder
    raise InputError(
        "the demo's images are not installed: no items.csv in "
        + " nor in ".join(str(folder) for folder in candidates),
        tip="install compatctl from its wheel, or run it in a full checkout",
    )


def unpack_emoji(source: Path, target: Path) -> Path:
    """Write ``target/images/<vendor>/<code>.png`` and ``target/items.csv``; return the table.

    ``source`` has ``items.csv`` (id, label, split, role, vendor, sheet, tile) and the sheets:
    tiles of 64 x 64 pixels in reading order. The written table has ``COLUMNS``, its paths
    relative to itself.

    Raises:
        InputError: the table or a sheet is missing, unreadable, or they disagree.
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


def _read_table(path: Path) -> Sequence[Mapping[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    needed = {*COLUMNS, "sheet", "tile"} - {"path"}
    missing = needed - set(rows[0] if rows else ())
    if missing:
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}")
    return rows


def _unpack_sheet(
    sheet: Path, rows: Sequence[Mapping[str, str]], target: Path
) -> list[dict[str, str]]:
    """Write the tiles of one sheet; the rows come back with their ``path``."""
    image = _open_sheet(sheet)
    across, down = image.width // TILE, image.height // TILE
    done = []
    for row in rows:
        top, left = divmod(int(row["tile"]), across)
        if top >= down:
            raise InputError(f"{sheet}: {row['id']} is tile {row['tile']}, the sheet ends before")
        path = f"images/{row['vendor']}/{row['label']}.png"
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        box = (left * TILE, top * TILE, (left + 1) * TILE, (top + 1) * TILE)
        image.crop(box).save(target / path, compress_level=1)
        done.append({**row, "path": path})
    return done


def _open_sheet(path: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path}: not a readable image: {error}") from error
