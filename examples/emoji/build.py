"""Rebuild the emoji set of this folder from five npm packages of emoji drawings.

    pip install "resvg-py==0.5.*" pillow numpy
    python examples/emoji/build.py [--packages DIR] [--out DIR]

It lists the downloads, fetches each package with ``npm pack``, checks its SHA-256, renders every
drawing at 64 x 64 pixels on white, and writes one lossless WebP sheet per vendor and ``items.csv``.
A concept is kept if all five vendors drew it and no earlier concept has the same image (several
flags are one flag). Skin tones are excluded, as they are the same concept.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

SIZE = 64
COLUMNS = 32
SKIN_TONES = frozenset({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})


@dataclass(frozen=True, kw_only=True)
class Package:
    """One vendor's npm package and its expected SHA-256."""

    vendor: str
    version: str
    licence: str
    kilobytes: int
    sha256: str

    @property
    def name(self) -> str:
        return f"@iconify-json/{self.vendor}"

    @property
    def tarball(self) -> str:
        return f"iconify-json-{self.vendor}-{self.version}.tgz"


PACKAGES = (
    Package(
        vendor="noto",
        version="1.2.9",
        licence="Apache-2.0",
        kilobytes=3103,
        sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    Package(
        vendor="noto-v1",
        version="1.2.5",
        licence="Apache-2.0",
        kilobytes=1588,
        sha256="2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    ),
    Package(
        vendor="fluent-emoji-flat",
        version="1.2.6",
        licence="MIT",
        kilobytes=1172,
        sha256="7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    Package(
        vendor="twemoji",
        version="1.2.5",
        licence="CC-BY-4.0",
        kilobytes=1556,
        sha256="19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    Package(
        vendor="emojione",
        version="1.2.3",
        licence="CC-BY-4.0",
        kilobytes=688,
        sha256="26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """The icons of one package: SVG by icon name, and the icon name of each code string."""

    svg: dict[str, str]
    name_of: dict[str, str]


def split_of(code: str) -> str:
    """Train, validation or test by the first byte of sha1(code)."""
    byte = hashlib.sha1(code.encode()).digest()[0]
    return "train" if byte < 153 else "validation" if byte < 178 else "test"


def announce() -> None:
    """List the downloads before they start."""
    total = sum(p.kilobytes for p in PACKAGES) / 1000
    print(f"Downloads {len(PACKAGES)} npm packages, {total:.1f} MB in all:")
    for p in PACKAGES:
        print(f"  {p.name}@{p.version}  {p.kilobytes / 1000:.1f} MB  {p.licence}")
    sys.stdout.flush()


def fetch(package: Package, folder: Path) -> Path:
    """The package's tarball in ``folder``, downloaded if it is missing, and checked."""
    path = folder / package.tarball
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            sys.exit(
                "npm is not installed; install Node.js, or pass the tarballs with --packages DIR"
            )
        spec = f"{package.name}@{package.version}"
        subprocess.run([npm, "pack", "--silent", spec], cwd=folder, check=True)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 != package.sha256:
        sys.exit(f"{path}: SHA-256 is {sha256}, expected {package.sha256}; not used")
    return path


def read_drawings(tarball: Path) -> Drawings:
    """SVG documents and code strings of one Iconify package."""
    with tarfile.open(tarball) as tar:

        def member(name: str) -> dict[str, object]:
            file = tar.extractfile(f"package/{name}")
            assert file is not None
            content: dict[str, object] = json.load(file)
            return content

        icons = member("icons.json")
        names = member("chars.json") if "package/chars.json" in tar.getnames() else {}
    width, height = int(icons["width"]), int(icons["height"])  # type: ignore[call-overload]
    svg = {}
    for name, icon in icons["icons"].items():  # type: ignore[attr-defined]
        box = f"0 0 {icon.get('width', width)} {icon.get('height', height)}"
        svg[name] = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{SIZE}" height="{SIZE}" viewBox="{box}">{icon["body"]}</svg>'
        )
    for name, alias in icons["aliases"].items():  # type: ignore[attr-defined]
        if set(alias) == {"parent"} and alias["parent"] in svg:
            svg.setdefault(name, svg[alias["parent"]])
    return Drawings(svg=svg, name_of={code: str(name) for code, name in names.items()})


def common_codes(sets: dict[str, Drawings]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each code string that all vendors drew, with the SVG of each vendor.

    Two packages have no table of codes; their icons are found by the Unicode short name, which the
    others use, too.
    """
    reference = sets["twemoji"].name_of
    for code in sorted(reference):
        if SKIN_TONES & set(code.split("-")):
            continue
        svgs = {}
        for vendor, drawings in sets.items():
            name = drawings.name_of.get(code) if drawings.name_of else reference[code]
            if name in drawings.svg:
                svgs[vendor] = drawings.svg[name]
        if len(svgs) == len(sets):
            yield code, svgs


def render(svg: str) -> np.ndarray:
    """One drawing as (64, 64, 3) uint8 on white."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, background="white", skip_system_fonts=True))
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def render_all(sets: dict[str, Drawings]) -> dict[str, dict[str, np.ndarray]]:
    """Code string -> vendor -> pixels, without blank and repeated images."""
    kept: dict[str, dict[str, np.ndarray]] = {}
    seen: set[tuple[str, bytes]] = set()
    for code, svgs in common_codes(sets):
        tiles = {vendor: render(svg) for vendor, svg in svgs.items()}
        keys = {(vendor, hashlib.sha256(tile.tobytes()).digest()) for vendor, tile in tiles.items()}
        shapes_ok = all(tile.shape == (SIZE, SIZE, 3) for tile in tiles.values())
        if not shapes_ok or keys & seen or any(tile.min() == tile.max() for tile in tiles.values()):
            continue
        seen |= keys
        kept[code] = tiles
    return kept


def write_sheet(tiles: list[np.ndarray], path: Path) -> None:
    """Tiles in reading order, COLUMNS per row, as lossless WebP."""
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.full((rows * SIZE, COLUMNS * SIZE, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = divmod(i, COLUMNS)
        sheet[top * SIZE : (top + 1) * SIZE, left * SIZE : (left + 1) * SIZE] = tile
    Image.fromarray(sheet).save(path, "WEBP", lossless=True, quality=100, method=6)


def write_set(kept: dict[str, dict[str, np.ndarray]], out: Path) -> None:
    """The sheets and the table that names every tile."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "items.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "label", "split", "role", "vendor", "sheet", "tile"])
        for p in PACKAGES:
            role = "gallery" if p.vendor == "noto" else "query"
            for tile, code in enumerate(kept):
                row = (f"{p.vendor}/{code}", code, split_of(code), role, p.vendor)
                table.writerow([*row, f"{p.vendor}.webp", tile])
            write_sheet([tiles[p.vendor] for tiles in kept.values()], out / f"{p.vendor}.webp")


def main() -> None:
    """Announce, fetch, check, render, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--packages", type=Path, help="folder with the tarballs, or to keep them")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    announce()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.packages or Path(temporary)
        sets = {p.vendor: read_drawings(fetch(p, folder)) for p in PACKAGES}
    kept = render_all(sets)
    write_set(kept, options.out)
    print(f"{len(kept)} concepts x {len(PACKAGES)} vendors in {options.out}")


if __name__ == "__main__":
    main()
