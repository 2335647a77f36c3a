"""Build the kanji set of this example from nine Debian packages of Japanese fonts.

    pip install numpy pillow
    python examples/kanji/build.py [--packages DIR] [--out FILE]

It lists the downloads, fetches each package with ``apt-get download`` into a temporary folder
(``apt-get update`` may be needed once before), checks its SHA-256, unpacks it with
``dpkg -x``, draws the 2,965 characters of JIS X 0208 level 1 in ten fonts at 32 x 32 grey pixels,
and writes one ``.npz`` data set. No font program is kept: the packages are removed at the end.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from typefaces import (
    KOUZAN,
    RAMPART,
    Package,
    Typeface,
    announce,
    arguments,
    columns,
    drawn,
    split_of,
    unpacked,
)

GALLERY = "ipa-mincho"

PACKAGES = (
    Package(
        name="fonts-ipafont-mincho",
        licence="IPA Font License 1.0",
        bytes=4725736,
        sha256="6a81c96987d37d48c4e09beb55c06396d1f385f46af86de7c1bd53a82a683c45",
        fonts=(Typeface(name=GALLERY, file="ipam.ttf"),),
    ),
    Package(
        name="fonts-ipafont-gothic",
        licence="IPA Font License 1.0",
        bytes=3514948,
        sha256="5f8e0270654fec6577fffa96015067352440065c0b49bbc8b076745a6b4bf3d3",
        fonts=(Typeface(name="ipa-gothic", file="ipag.ttf"),),
    ),
    Package(
        name="fonts-vlgothic",
        licence="M+ and Sazanami licences, BSD-3-Clause",
        bytes=2238576,
        sha256="81b0a42456747e7ec2f801028b254c33f8c720a99e15140c23f0861329687448",
        fonts=(Typeface(name="vl-gothic", file="VL-Gothic-Regular.ttf"),),
    ),
    Package(
        name="fonts-klee",
        licence="OFL-1.1",
        bytes=63818724,
        sha256="5378d3169728ceb95a2ae653a64762cd8f3b82a968a4ae72bb168a034fbf4c54",
        fonts=(Typeface(name="klee", file="KleeOne-Regular.ttf"),),
    ),
    Package(
        name="fonts-motoya-l-maruberi",
        licence="Apache-2.0",
        bytes=1457580,
        sha256="22af24c8dd84ace4709b4a8e899f81e8d290c0c36c0f43c49af2c185c9988c31",
        fonts=(Typeface(name="motoya-maru", file="MTLmr3m.ttf"),),
    ),
    Package(
        name="fonts-yusei-magic",
        licence="OFL-1.1",
        bytes=8446348,
        sha256="4030d34292e317ecc9dc10a68ae309a8c27ec93f256c058d248017b5051beede",
        fonts=(Typeface(name="yusei-magic", file="YuseiMagic-Regular.ttf"),),
    ),
    Package(
        name="fonts-dotgothic16",
        licence="OFL-1.1",
        bytes=5323424,
        sha256="970fd4b56295b515788dfea8eb442e4fcffcdb57b03e80ffbcb2775f7b153dde",
        fonts=(Typeface(name="dotgothic16", file="DotGothic16-Regular.ttf"),),
    ),
    RAMPART,
    KOUZAN,
)


def characters() -> list[str]:
    """The 2,965 kanji of JIS X 0208 level 1 (rows 16 to 47), in the order of the standard."""
    cells = [(row, cell) for row in range(0xB0, 0xD0) for cell in range(0xA1, 0xFF)]
    return [bytes(cell).decode("euc_jp") for cell in cells if cell <= (0xCF, 0xD3)]


def collect(folder: Path, packages: Path | None) -> list[tuple[str, str, np.ndarray]]:
    """(font, character, image) of all fonts; packages are unpacked under ``folder``."""
    known = characters()
    return [
        (typeface.name, known[position], image)
        for typeface, file in unpacked(PACKAGES, folder, packages)
        for position, image in drawn(typeface, file, known)
    ]


def write(images: list[tuple[str, str, np.ndarray]], out: Path) -> None:
    """The data set: images, ids, labels, split, role, and the font as a slice."""
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out,
        images=np.stack([image for _, _, image in images]),
        split=np.array([split_of(character) for _, character, _ in images]),
        **columns([(font, character) for font, character, _ in images], (GALLERY,)),
    )


def main() -> None:
    """Announce, fetch, check, draw, write."""
    options = arguments(__doc__, Path(__file__).parent / "data" / "kanji.npz")
    announce(PACKAGES)
    with tempfile.TemporaryDirectory() as temporary:
        images = collect(Path(temporary), options.packages)
    write(images, options.out)
    print(f"{len(images)} images in {options.out}")


if __name__ == "__main__":
    main()
