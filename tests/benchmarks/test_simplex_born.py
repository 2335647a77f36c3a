"""The benchmark of two models born on one simplex: who asks, and what its table says."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.studies import simplex_born as born
from compatctl.data import Dataset, Item


def _item(label: str, font: str) -> Item:
    return Item(id=f"{font}/{label}", label=label, split="train", slices={"font": font})


def test_each_character_queries_in_two_typefaces_and_never_in_the_gallerys() -> None:
    """Over many characters every other typeface asks and trains."""
    asks = {
        (label, font): born.held_out(_item(label, font))
        for label in map(chr, range(0x4E00, 0x4E40))
        for font in born.FONTS
    }
    counts = {sum(asks[label, font] for font in born.FONTS) for label, _ in asks}
    assert counts == {born.HELD_OUT}
    for font in born.FONTS:
        kinds = {split for (_, name), split in asks.items() if name == font}
        assert kinds == ({False} if font == born.GALLERY else {False, True})


@pytest.fixture
def images() -> born.SeedImages:
    """Twelve characters, the gallery's image of each and two that ask."""
    fonts = (born.GALLERY, "klee", "rampart")
    items = tuple(_item(chr(0x4E00 + i), font) for i in range(12) for font in fonts)
    pixels = np.zeros((2, 2), np.uint8)
    data = Dataset(items=items, sources=(pixels,) * len(items))
    asking = np.flatnonzero(np.arange(len(items)) % 3 > 0)
    parts = np.array_split(asking, len(born.GROUPS))
    return born.SeedImages(
        seed=3,
        everything=data,
        deployed=data,
        elsewhere=data,
        tuned=data,
        groups=dict(zip(born.GROUPS, parts, strict=True)),
        gallery=np.arange(0, len(items), 3),
    )


def test_lines_are_recalls_on_the_deployed_gallery(images: born.SeedImages) -> None:
    """Queries of each model against the stored vectors of the first; intervals hold the gain."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.standard_normal((12, 16)), 3, axis=0)
    features = {}
    for name, noise in (("old on old", 1.0), ("none", 2.0), ("deployed", 0.5), ("itself", 1.5)):
        rows = centres + noise * rng.standard_normal(centres.shape)
        features[name] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    labels = np.array(images.everything.labels)
    lines = [entry for group in born.GROUPS for entry in born.score_group(images, group, features)]
    assert len(lines) == len(born.GROUPS) * len(features)
    for entry in lines:
        rows = images.groups[entry.group]
        for gallery, recall in (("old on old", entry.recall), (entry.model, entry.own)):
            near = (features[entry.model][rows] @ features[gallery][images.gallery].T).argmax(
                axis=1
            )
            assert recall == pytest.approx((labels[images.gallery][near] == labels[rows]).mean())
        assert entry.low <= entry.gain <= entry.high
        assert entry.over_low <= entry.over_deployed <= entry.over_high
    table = "\n".join(born.table(lines))
    deployed = next(line for line in lines if (line.group, line.model) == ("unseen", "deployed"))
    row = next(line for line in table.splitlines() if line.startswith("| unseen | deployed |"))
    assert f"{deployed.gain:+.3f}" in row
    assert "| unseen | new as it came |" not in table
