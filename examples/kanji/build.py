"""Build the kanji set of this example from nine Debian packages of Japanese fonts.

    pip install numpy pillow
    python examples/kanji/build.py [--packages DIR] [--out FILE]

It lists the downloads, fetches each package with ``apt-get download`` into a temporary folder
(``apt-get update`` may be needed once before), checks its SHA-256, unpacks it with
``dpkg -x``, draws the 2,965 characters of JIS X 0208 level 1 in ten fonts at 32 x 32 grey pixels,
and writes one ``.npz`` data set. No font program is kept: the packages are removed at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 32
OVERSAMPLED = 4
GLYPH = 30
GALLERY = "ipa-mincho"
ABSENT = "\uffff"
MEGABYTE = 1_000_000
APT_OPTIONS = ("--quiet=2", "-o", "APT::Sandbox::User=root")


@dataclass(frozen=True, kw_only=True)
class Package:
    """A Debian package, its expected SHA-256, and the fonts taken from it."""

    name: str
    licence: str
    bytes: int
    sha256: str
    fonts: tuple[tuple[str, str], ...]
    """(name in the data set, file name)"""


PACKAGES = (
    Package(
        name="fonts-ipafont-mincho",
        licence="IPA Font License 1.0",
        bytes=4725736,
        sha256="6a81c96987d37d48c4e09beb55c06396d1f385f46af86de7c1bd53a82a683c45",
        fonts=((GALLERY, "ipam.ttf"),),
    ),
    Package(
        name="fonts-ipafont-gothic",
        licence="IPA Font License 1.0",
        bytes=3514948,
        sha256="5f8e0270654fec6577fffa96015067352440065c0b49bbc8b076745a6b4bf3d3",
        fonts=(("ipa-gothic", "ipag.ttf"),),
    ),
    Package(
        name="fonts-vlgothic",
        licence="M+ and Sazanami licences, BSD-3-Clause",
        bytes=2238576,
        sha256="81b0a42456747e7ec2f801028b254c33f8c720a99e15140c23f0861329687448",
        fonts=(("vl-gothic", "VL-Gothic-Regular.ttf"),),
    ),
    Package(
        name="fonts-klee",
        licence="OFL-1.1",
        bytes=63818724,
        sha256="5378d3169728ceb95a2ae653a64762cd8f3b82a968a4ae72bb168a034fbf4c54",
        fonts=(("klee", "KleeOne-Regular.ttf"),),
    ),
    Package(
        name="fonts-motoya-l-maruberi",
        licence="Apache-2.0",
        bytes=1457580,
        sha256="22af24c8dd84ace4709b4a8e899f81e8d290c0c36c0f43c49af2c185c9988c31",
        fonts=(("motoya-maru", "MTLmr3m.ttf"),),
    ),
    Package(
        name="fonts-yusei-magic",
        licence="OFL-1.1",
        bytes=8446348,
        sha256="4030d34292e317ecc9dc10a68ae309a8c27ec93f256c058d248017b5051beede",
        fonts=(("yusei-magic", "YuseiMagic-Regular.ttf"),),
    ),
    Package(
        name="fonts-dotgothic16",
        licence="OFL-1.1",
        bytes=5323424,
        sha256="970fd4b56295b515788dfea8eb442e4fcffcdb57b03e80ffbcb2775f7b153dde",
        fonts=(("dotgothic16", "DotGothic16-Regular.ttf"),),
    ),
    Package(
        name="fonts-rampart",
        licence="OFL-1.1",
        bytes=12067608,
        sha256="b89555111a11d3efe14fc9358cb6d96c18be1c22c4004f728264cb820c6b4a11",
        fonts=(("rampart", "RampartOne-Regular.ttf"),),
    ),
    Package(
        name="fonts-kouzan-mouhitsu",
        licence="public domain",
        bytes=11049332,
        sha256="924536ceff9359b99996e56cd24633df67d696a343ba46f9e3106e8cee228dbe",
        fonts=(
            ("kouzan-brush", "kouzan-mouhitsu.ttf"),
            ("kouzan-gyosho", "kouzan-mouhitsu-gyosho.ttf"),
        ),
    ),
)


def announce() -> None:
    """List the downloads before they start."""
    total = sum(p.bytes for p in PACKAGES) / MEGABYTE
    print(f"Downloads {len(PACKAGES)} Debian packages, {total:.0f} MB in all:")
    for p in PACKAGES:
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
    sha256 = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if sha256 != package.sha256:
        sys.exit(
            f"{files[0].name}: SHA-256 is {sha256}, expected {package.sha256}.\n"
            "Other Debian releases have other versions of this font, and the images would differ "
            "from those behind the README's figures. Debian 12 has the expected version."
        )
    return files[0]


def characters() -> list[str]:
    """The 2,965 kanji of JIS X 0208 level 1 (rows 16 to 47), in the order of the standard."""
    cells = [(row, cell) for row in range(0xB0, 0xD0) for cell in range(0xA1, 0xFF)]
    return [bytes(cell).decode("euc_jp") for cell in cells if cell <= (0xCF, 0xD3)]


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


def draw_font(name: str, file: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """(font, character, image) for every character that the font has."""
    font = ImageFont.truetype(str(file), GLYPH * OVERSAMPLED)
    absent = draw(font, ABSENT).tobytes()
    for character in characters():
        image = draw(font, character)
        if image.min() < image.max() and image.tobytes() != absent:
            yield name, character, image


def collect(folder: Path, packages: Path) -> list[tuple[str, str, np.ndarray]]:
    """All images of all fonts; packages are unpacked under ``folder``."""
    images = []
    for package in PACKAGES:
        into = folder / package.name
        into.mkdir()
        subprocess.run(["dpkg", "-x", str(fetch(package, packages)), str(into)], check=True)
        for name, file in package.fonts:
            images += draw_font(name, next(into.rglob(file)))
    return images


def write(images: list[tuple[str, str, np.ndarray]], out: Path) -> None:
    """The data set: images, ids, labels, split, role, and the font as a slice."""
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out,
        images=np.stack([image for _, _, image in images]),
        ids=np.array([f"{font}/{character}" for font, character, _ in images]),
        labels=np.array([character for _, character, _ in images]),
        split=np.array([split_of(character) for _, character, _ in images]),
        role=np.array(["gallery" if font == GALLERY else "query" for font, _, _ in images]),
        font=np.array([font for font, _, _ in images]),
    )


def main() -> None:
    """Announce, fetch, check, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--packages", type=Path, help="folder with the .deb files, or to keep them")
    default = Path(__file__).parent / "data" / "kanji.npz"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()
    announce()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = collect(folder, options.packages or folder)
    write(images, options.out)
    print(f"{len(images)} images in {options.out}")


if __name__ == "__main__":
    main()
