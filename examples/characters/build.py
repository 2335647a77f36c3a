"""Build a large set of real images: characters that at least twelve typefaces draw.

    pip install numpy pillow
    python examples/characters/build.py [--packages DIR] [--out FILE]

It lists the downloads, fetches each package with ``apt-get download`` into a temporary folder
(``apt-get update`` may be needed once before), checks its SHA-256, unpacks it with
``dpkg -x``, draws the 27,484 Chinese characters of Unicode's first two blocks in 21 typefaces at
32 x 32 grey pixels, chooses the characters, and writes one ``.npz`` data set. No font program is
kept: a package is removed as soon as its typefaces are drawn. One process, one core.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from typefaces import (
    KOUZAN,
    MEGABYTE,
    RAMPART,
    SIZE,
    Package,
    Typeface,
    announce,
    arguments,
    columns,
    drawn,
    split_of,
    unpacked,
)

DESIGNS = 12
"""The minimum number of designs that must have a character."""
PLACEHOLDER = 4
"""An image shared by this many characters of a typeface is its sign for a missing one."""

GALLERY = ("noto-sans", "noto-serif", "tw-sung", "hana-mincho", "droid-sans", "zen-hei")
TRAINING = (
    "noto-sans-thin",
    "noto-sans-black",
    "noto-serif-black",
    "uming",
    "ukai",
    "cwtex-kai",
    "unifont",
)
HELD_OUT = (
    "tw-kai",
    "wenkai",
    "ipamj-mincho",
    "cwtex-ming",
    "seto",
    "rampart",
    "kouzan-brush",
    "kouzan-gyosho",
)
ORDER = (*GALLERY, *TRAINING, *HELD_OUT)
WEIGHTS = {
    "noto-sans-thin": "noto-sans",
    "noto-sans-black": "noto-sans",
    "noto-serif-black": "noto-serif",
}
"""Typefaces that are another weight of a design: they do not count towards ``DESIGNS``."""

CHINESE = 2  # the position of simplified Chinese in Noto's collections
PACKAGES = (
    Package(
        name="fonts-noto-cjk",
        licence="OFL-1.1",
        bytes=56547048,
        sha256="4a2515eb6db3978b897fef9709ed0d2b1f4c6c4df4d83d6c4ef65f71f1b1f502",
        fonts=(
            Typeface(name="noto-sans", file="NotoSansCJK-Regular.ttc", index=CHINESE),
            Typeface(name="noto-serif", file="NotoSerifCJK-Regular.ttc", index=CHINESE),
        ),
    ),
    Package(
        name="fonts-noto-cjk-extra",
        licence="OFL-1.1",
        bytes=133711728,
        sha256="5f6536c99f9b3d77a3c383c3f1544f6d49350e7f20832c4c979af0e33f603cb5",
        fonts=(
            Typeface(name="noto-sans-thin", file="NotoSansCJK-Thin.ttc", index=CHINESE),
            Typeface(name="noto-sans-black", file="NotoSansCJK-Black.ttc", index=CHINESE),
            Typeface(name="noto-serif-black", file="NotoSerifCJK-Black.ttc", index=CHINESE),
        ),
    ),
    Package(
        name="fonts-cns11643-sung",
        licence="OGDL-TW-1.0",
        bytes=52267300,
        sha256="e8a9410078063f38132b79df00196ca3108bcb90ab6bb0b00afd629eba1044c0",
        fonts=(Typeface(name="tw-sung", file="TW-Sung-98_1.ttf"),),
    ),
    Package(
        name="fonts-cns11643-kai",
        licence="OGDL-TW-1.0",
        bytes=59917200,
        sha256="c8c92e76357c0980b50d80d83674a5109a11624df83b9994c9118ad3aec31ece",
        fonts=(Typeface(name="tw-kai", file="TW-Kai-98_1.ttf"),),
    ),
    Package(
        name="fonts-hanazono",
        licence="Hanazono Font License or OFL-1.1",
        bytes=22250332,
        sha256="a6943366b4f5a6cec34221f8b4eb22555a628f0ee6ef4e3d3401cabe9363aeae",
        fonts=(Typeface(name="hana-mincho", file="HanaMinA.ttf"),),
    ),
    Package(
        name="fonts-droid-fallback",
        licence="Apache-2.0",
        bytes=1806736,
        sha256="d2096d4edde128fedf6749be2dd204a5810210a6201126d99b8d412344f71056",
        fonts=(Typeface(name="droid-sans", file="DroidSansFallbackFull.ttf"),),
    ),
    Package(
        name="fonts-wqy-zenhei",
        licence="GPL-2 with font exception, M+ licence",
        bytes=7478908,
        sha256="cfed2c29164ff2f133e40ed2046610b172b8618d174840936ac4ec9b6fd668e7",
        fonts=(Typeface(name="zen-hei", file="wqy-zenhei.ttc"),),
    ),
    Package(
        name="fonts-arphic-uming",
        licence="Arphic Public License",
        bytes=7938124,
        sha256="2676b21b90df94f23418610291b71b43720c95cdccb420b97ab56edfd3ce4cf5",
        fonts=(Typeface(name="uming", file="uming.ttc"),),
    ),
    Package(
        name="fonts-arphic-ukai",
        licence="Arphic Public License",
        bytes=8376076,
        sha256="b9db73184895b067f7911f9adbf3b137df99c2d4ec5425b4ad779a9834b7110b",
        fonts=(Typeface(name="ukai", file="ukai.ttc"),),
    ),
    Package(
        name="fonts-cwtex-kai",
        licence="GPL-2+ with document exception",
        bytes=6071412,
        sha256="7b0ac26332e88a2f4fd95af076e5a7776af4cf9578042017dafc0a59dbdb8bfc",
        fonts=(Typeface(name="cwtex-kai", file="cwkai.ttf"),),
    ),
    Package(
        name="fonts-cwtex-ming",
        licence="GPL-2+ with document exception",
        bytes=6674720,
        sha256="c6641f5d8d438d4bfa912e06204211b3d81fb167a586d09424922e0de42dac6e",
        fonts=(Typeface(name="cwtex-ming", file="cwming.ttf"),),
    ),
    Package(
        name="fonts-unifont",
        licence="GPL-2+",
        bytes=2019152,
        sha256="cd46245f1b228d1277ed2b453ce893fde1cf4bf4ec317e82b0079395bdc9c2b5",
        fonts=(Typeface(name="unifont", file="unifont.otf"),),
    ),
    Package(
        name="fonts-lxgw-wenkai",
        licence="OFL-1.1",
        bytes=51578272,
        sha256="6d1e4c4aac78ad32062aefa2c836ee4d6e58f9dcf8b3f4407c9eefe304615318",
        fonts=(Typeface(name="wenkai", file="LXGWWenKai-Regular.ttf"),),
    ),
    Package(
        name="fonts-ipamj-mincho",
        licence="IPA Font License 1.0",
        bytes=25161100,
        sha256="0dd4990be8d010f13921b1bcac2f9c684e007deae17282cd07dbbfd5b2cd08cb",
        fonts=(Typeface(name="ipamj-mincho", file="ipamjm.ttf"),),
    ),
    Package(
        name="fonts-seto",
        licence="OFL-1.1",
        bytes=7142620,
        sha256="1ce0b6124d635036d64462d7f0bece68d79608713a51d0664d4aa03da882fe2c",
        fonts=(Typeface(name="seto", file="setofont.ttf"),),
    ),
    RAMPART,
    KOUZAN,
)

Held = Mapping[str, NDArray[np.bool_]]
"""Typeface -> (N,): which of the N characters it draws."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which of N characters are in the set, and the groups that one typeface draws alike."""

    chosen: NDArray[np.bool_]
    alike: tuple[str, ...]


def characters() -> list[str]:
    """27,484 characters: CJK Unified Ideographs, then their Extension A, by code point."""
    return [chr(code) for code in (*range(0x4E00, 0x9FA6), *range(0x3400, 0x4DB6))]


def draw_all(
    folder: Path, packages: Path | None, known: list[str]
) -> tuple[dict[str, NDArray[np.bool_]], set[tuple[int, ...]]]:
    """Which characters each typeface has, and groups of positions that one of them draws alike.

    Writes one (N, 32, 32) array per typeface to ``folder``; one is in memory at a time.
    """
    held: dict[str, NDArray[np.bool_]] = {}
    alike: set[tuple[int, ...]] = set()
    for typeface, file in unpacked(PACKAGES, folder, packages):
        images = np.zeros((len(known), SIZE, SIZE), np.uint8)
        present = np.zeros(len(known), bool)
        for position, image in drawn(typeface, file, known):
            images[position], present[position] = image, True
        groups = same(images, present)
        for group in groups:
            if len(group) >= PLACEHOLDER:
                present[list(group)] = False
        alike |= {group for group in groups if len(group) < PLACEHOLDER}
        held[typeface.name] = present
        np.save(folder / f"{typeface.name}.npy", images)
        print(f"  {typeface.name:18s} {present.sum():6d} characters", flush=True)
    return held, alike


def same(images: NDArray[np.uint8], present: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """Groups of two or more positions whose (32, 32) images are equal."""
    positions: dict[bytes, list[int]] = {}
    for position in np.flatnonzero(present).tolist():
        positions.setdefault(hashlib.sha1(images[position].tobytes()).digest(), []).append(position)
    return [tuple(group) for group in positions.values() if len(group) > 1]


def choose(held: Held, alike: set[tuple[int, ...]], known: list[str]) -> Choice:
    """The characters that ``DESIGNS`` designs and every gallery typeface have, each image once.

    Of characters that some typeface draws alike, only the first by position stays.
    """
    designs = sum(
        present.astype(np.int64) for typeface, present in held.items() if typeface not in WEIGHTS
    )
    chosen = (designs >= DESIGNS) & np.all([held[typeface] for typeface in GALLERY], axis=0)
    dropped = []
    for group in sorted(alike):
        left = [position for position in group if chosen[position]]
        if len(left) > 1:
            dropped.append("".join(known[position] for position in left))
            chosen[left[1:]] = False
    return Choice(chosen=chosen, alike=tuple(dropped))


def split_in(typeface: str, character: str) -> str | None:
    """The split of one image, by its class and its typeface; None where it is not in the set.

    Nothing is trained or chosen with a held-out typeface: its training characters are test items of
    seen classes, its validation characters are left out.
    """
    split = split_of(character)
    if typeface not in HELD_OUT:
        return split
    return None if split == "validation" else "test"


def rows(held: Held, chosen: NDArray[np.bool_], known: list[str]) -> list[tuple[str, int]]:
    """Typeface and position of each image: the gallery first, typeface by typeface."""
    return [
        (typeface, position)
        for typeface in ORDER
        for position in np.flatnonzero(held[typeface] & chosen).tolist()
        if split_in(typeface, known[position]) is not None
    ]


def images_of(items: list[tuple[str, int]], folder: Path) -> NDArray[np.uint8]:
    """(M, 32, 32) images of these rows, on disk: no more than one typeface is in memory."""
    shape = (len(items), SIZE, SIZE)
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    counts = Counter(typeface for typeface, _ in items)
    start = 0
    for typeface in ORDER:
        stop = start + counts[typeface]
        source = np.load(folder / f"{typeface}.npy", mmap_mode="r")
        images[start:stop] = source[[position for _, position in items[start:stop]]]
        start = stop
    return images


def use_of(typeface: str) -> str:
    """What a typeface is for: gallery, training or held-out."""
    return "gallery" if typeface in GALLERY else "training" if typeface in TRAINING else "held-out"


def write(
    images: NDArray[np.uint8], items: list[tuple[str, int]], known: list[str], out: Path
) -> None:
    """The data set: images, ids, labels, split, role; the slices font, design, use and classes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    named = [(typeface, known[position]) for typeface, position in items]
    np.savez_compressed(
        out,
        images=images,
        split=np.array([split_in(*names) or "" for names in named]),
        design=np.array([WEIGHTS.get(typeface, typeface) for typeface, _ in named]),
        use=np.array([use_of(typeface) for typeface, _ in named]),
        classes=np.array([split_of(character) for _, character in named]),
        **columns(named, GALLERY),
    )


def main() -> None:
    """Announce, fetch, check, draw, choose, write."""
    options = arguments(__doc__, Path(__file__).parent / "data" / "characters.npz")
    announce(PACKAGES)
    known = characters()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        held, alike = draw_all(folder, options.packages, known)
        choice = choose(held, alike, known)
        items = rows(held, choice.chosen, known)
        images = images_of(items, folder)
        write(images, items, known, options.out)
        digest = hashlib.sha256(images).hexdigest()
    gallery = sum(typeface in GALLERY for typeface, _ in items)
    megabytes = options.out.stat().st_size / MEGABYTE
    print(f"Drawn alike by one typeface, only the first kept: {' '.join(choice.alike)}")
    print(f"{choice.chosen.sum()} characters, {len(ORDER)} typefaces, {len(items)} images,")
    print(f"{gallery} of them in the gallery; {megabytes:.0f} MB in {options.out}")
    print(f"SHA-256 of the images: {digest}")


if __name__ == "__main__":
    main()
