"""Characters drawn from the fonts of Debian packages: what the builders of examples share."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIZE = 32
OVERSAMPLED = 4
GLYPH = 30
ABSENT = "\uffff"
MEGABYTE = 1_000_000
APT_OPTIONS = ("--quiet=2", "-o", "APT::Sandbox::User=root")


@dataclass(frozen=True, kw_only=True)
class Typeface:
    """One font of a package: its name in the data set, its file, its place in a collection."""

    name: str
    file: str
    index: int = 0


@dataclass(frozen=True, kw_only=True)
class Package:
    """A Debian package, its expected SHA-256, and the fonts taken from it."""

    name: str
    licence: str
    bytes: int
    sha256: str
    fonts: tuple[Typeface, ...]


RAMPART = Package(
    name="fonts-rampart",
    licence="OFL-1.1",
    bytes=12067608,
    sha256="b89555111a11d3efe14fc9358cb6d96c18be1c22c4004f728264cb820c6b4a11",
    fonts=(Typeface(name="rampart", file="RampartOne-Regular.ttf"),),
)
KOUZAN = Package(
    name="fonts-kouzan-mouhitsu",
    licence="public domain",
    bytes=11049332,
    sha256="924536ceff9359b99996e56cd24633df67d696a343ba46f9e3106e8cee228dbe",
    fonts=(
        Typeface(name="kouzan-brush", file="kouzan-mouhitsu.ttf"),
        Typeface(name="kouzan-gyosho", file="kouzan-mouhitsu-gyosho.ttf"),
    ),
)


def arguments(about: str | None, out: Path) -> argparse.Namespace:
    """``packages`` and ``out`` of the command line, of a script whose docstring is ``about``."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0] if about else None)
    parser.add_argument("--packages", type=Path, help="folder with the .deb files, or to keep them")
    parser.add_argument("--out", type=Path, default=out)
    return parser.parse_args()


def announce(packages: Sequence[Package]) -> None:
    """List the downloads before they start."""
    total = sum(p.bytes for p in packages) / MEGABYTE
    print(f"Downloads {len(packages)} Debian packages, {total:.0f} MB in all:")
    for p in packages:
        print(f"  {p.name:24s} {p.bytes / MEGABYTE:5.1f} MB  {p.licence}")
    sys.stdout.flush()


def fetch(package: Package, folder: Path) -> Path:
    """The package's file in ``folder``, downloaded if it is missing, and checked."""
    files = sorted(folder.glob(f"{package.name}_*.deb"))
    if not files:
        apt = shutil.which("apt-get")
        if apt is None or shutil.which("dpkg") is None:
            sys.exit("apt-get or dpkg is not installed: this script needs Debian or a relative")
        subprocess.run([apt, *APT_OPTIONS, "download", package.name], cwd=folder, check=True)
        files = sorted(folder.glob(f"{package.name}_*.deb"))
    actual = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if actual != package.sha256:
        sys.exit(
            f"{files[0].name}: SHA-256 is {actual}, expected {package.sha256}.\n"
            "Other Debian releases have other versions of this font, and the images would differ "
            "from those behind the README's figures. Debian 12 has the expected version."
        )
    return files[0]


def unpacked(
    packages: Iterable[Package], folder: Path, kept: Path | None
) -> Iterator[tuple[Typeface, Path]]:
    """Each typeface with its file, which exists until the next typeface is taken.

    Packages are read from ``kept``, or downloaded to ``folder`` and deleted after use.
    """
    for package in packages:
        file = fetch(package, kept or folder)
        into = folder / package.name
        into.mkdir()
        subprocess.run(["dpkg", "-x", str(file), str(into)], check=True)
        for typeface in package.fonts:
            yield typeface, next(into.rglob(typeface.file))
        shutil.rmtree(into)
        if kept is None:
            file.unlink()


def split_of(character: str) -> str:
    """Train, validation or test by the first byte of sha1(character)."""
    byte = hashlib.sha1(character.encode()).digest()[0]
    return "train" if byte < 153 else "validation" if byte < 178 else "test"


def draw(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """(32, 32) uint8, black on white, the glyph's box centred."""
    side = SIZE * OVERSAMPLED
    left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (side, side), 255)
    origin = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(image).text(origin, character, font=font, fill=0)
    return np.asarray(image.reduce(OVERSAMPLED))


def drawn(
    typeface: Typeface, file: Path, characters: Iterable[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """Position and image of every character that the font has, without blank and absent glyphs."""
    font = ImageFont.truetype(
        str(file),
        GLYPH * OVERSAMPLED,
        index=typeface.index,
        layout_engine=ImageFont.Layout.BASIC,  # raqm, if installed, draws differently
    )
    absent = draw(font, ABSENT).tobytes()
    for position, character in enumerate(characters):
        image = draw(font, character)
        if image.min() < image.max() and image.tobytes() != absent:
            yield position, image


def columns(
    images: Iterable[tuple[str, str]], gallery: Collection[str]
) -> dict[str, NDArray[np.str_]]:
    """The columns ids, labels, role and font of images named by (typeface, character)."""
    named = list(images)
    return {
        "ids": np.array([f"{typeface}/{character}" for typeface, character in named]),
        "labels": np.array([character for _, character in named]),
        "role": np.array(["gallery" if typeface in gallery else "query" for typeface, _ in named]),
        "font": np.array([typeface for typeface, _ in named]),
    }
