"""How hard the set is, and how alike its typefaces are, by raw pixels: the figures of the README.

    python examples/characters/pixels.py [--data FILE]

Half a minute on one core.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLASSES = 1000
"""Test characters that are searched."""
COMPARED = 2000
"""Characters by which two typefaces are compared."""
REFERENCE = "noto-sans"
NEAREST = 4


def unit_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 1024) rows of norm 1 whose mean is 0, of (N, 32, 32) images."""
    rows = 255.0 - images.reshape(len(images), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9
    return rows


def print_hit_rate(data: dict[str, NDArray]) -> None:
    """hit@1 of test characters by typeface, in three galleries, as rows of a Markdown table."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(np.unique(data["labels"][data["classes"] == "test"]), CLASSES, False)
    in_gallery = data["role"] == "gallery"
    gallery, labels = unit_pixels(data["images"][in_gallery]), data["labels"][in_gallery]
    reference = data["font"][in_gallery] == REFERENCE
    galleries = (np.ones(len(labels), bool), reference, reference & np.isin(labels, chosen))
    print("| query | images | whole gallery | noto-sans | 1,000 characters of noto-sans |")
    for font in dict.fromkeys(data["font"][~in_gallery]):
        rows = np.flatnonzero((data["font"] == font) & np.isin(data["labels"], chosen))
        scores = unit_pixels(data["images"][rows]) @ gallery.T
        hit_rates = [
            np.mean(labels[part][scores[:, part].argmax(axis=1)] == data["labels"][rows])
            for part in galleries
        ]
        cells = " | ".join(f"{hit_rate:.3f}".lstrip("0") for hit_rate in hit_rates)
        print(f"| {font} | {len(rows):,} | {cells} |")


def print_nearest(data: dict[str, NDArray]) -> None:
    """The typefaces that are most alike, by the median cosine of characters that both have."""
    fonts = list(dict.fromkeys(data["font"]))
    rows = {
        font: dict(zip(data["labels"][data["font"] == font],
                       np.flatnonzero(data["font"] == font), strict=True))
        for font in fonts
    }  # fmt: skip
    held_out = set(data["font"][data["use"] == "held-out"])
    pairs = []
    for first, second in combinations(fonts, 2):
        both = sorted(rows[first].keys() & rows[second].keys())
        both = both[:: max(1, len(both) // COMPARED)][:COMPARED]
        a, b = (unit_pixels(data["images"][[rows[font][x] for x in both]])
                for font in (first, second))  # fmt: skip
        pairs.append((float(np.median((a * b).sum(axis=1))), first, second))
    pairs.sort(reverse=True)
    for cosine, first, second in pairs[:NEAREST]:
        print(f"{cosine:.2f} {first}, {second}")
    cosine, first, second = next(pair for pair in pairs if held_out & {*pair[1:]})
    print(f"nearest with a held-out typeface: {cosine:.2f} {first}, {second}")


def main() -> None:
    """Print the README's figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).parent / "data" / "characters.npz"
    parser.add_argument("--data", type=Path, default=default)
    path = parser.parse_args().data
    names = ("images", "labels", "classes", "role", "font", "use")
    with np.load(path) as file:
        data = {name: file[name] for name in names}
    print_hit_rate(data)
    print_nearest(data)


if __name__ == "__main__":
    main()
