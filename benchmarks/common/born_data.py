"""Images of the studies of galleries born on a simplex: which classes are deployed, new, unseen."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.common.born_docs import ELSEWHERE, HELD_OUT, LOCAL, NEW, UNSEEN
from benchmarks.common.cases import known
from compatctl.core.arrays import Rows
from compatctl.data import Dataset, Item, Preprocessing, load, prepare
from compatctl.samples import emoji_source, unpack_emoji

GALLERY = "ipa-mincho"
FONTS = (GALLERY, "ipa-gothic", "klee", "rampart", "kouzan-brush", "kouzan-gyosho")
VENDORS = ("noto", "noto-v1", "fluent-emoji-flat", "twemoji", "emojione")


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images of each class in several styles; the first of ``styles`` is the gallery's."""

    data: Dataset
    column: str
    """The column that names the style"""
    styles: tuple[str, ...]
    held_out: int
    """Styles in which a trained class asks; in the others it trains"""
    elsewhere: int
    """Classes of the model from elsewhere"""
    unseen: int

    def style(self, item: Item) -> int:
        """Its position in ``styles``."""
        return self.styles.index(item.slices[self.column])

    def asks(self, item: Item) -> bool:
        """Whether a trained class's image asks, and so does not train: by the class's hash."""
        style = self.style(item)
        if style == 0:
            return False
        first = hashlib.sha1(item.label.encode()).digest()[0]
        return (first + style) % (len(self.styles) - 1) < self.held_out


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedImages:
    """One seed's images by part."""

    seed: int
    everything: Dataset
    deployed: Dataset
    elsewhere: Dataset
    tuned: Dataset
    choosing: Dataset
    """Validation queries"""
    groups: dict[str, Rows]
    """Rows of ``everything`` that ask"""
    gallery: Rows
    """Rows of ``everything`` that are stored"""
    later: Rows
    """Rows that the next model adds: those of new classes, where these are not stored already"""
    validation: Rows
    """Rows of ``everything`` of validation classes, which ask"""
    validation_gallery: Rows
    """Rows that are searched beside ``gallery`` by the validation queries alone"""


def load_kanji(path: Path) -> ImageSet:
    """Characters in six typefaces."""
    data = load(path)
    kept = (i for i, item in enumerate(data.items) if item.slices["font"] in FONTS)
    return ImageSet(
        data=data.take(kept),
        column="font",
        styles=FONTS,
        held_out=HELD_OUT,
        elsewhere=ELSEWHERE,
        unseen=UNSEEN,
    )


def load_emoji(side: int = 32) -> ImageSet:
    """The emoji of ``examples/emoji`` by five vendors, ``side`` x ``side`` pixels (64 as drawn)."""
    size = Preprocessing(height=side, width=side, fit="stretch")
    with tempfile.TemporaryDirectory() as folder:
        unpack_emoji(emoji_source(), Path(folder))
        data = load(Path(folder) / "items.csv")
        sources = tuple(prepare(data.read(row), size) for row in range(len(data)))
    return ImageSet(
        data=Dataset(items=data.items, sources=sources),
        column="vendor",
        styles=VENDORS,
        held_out=1,
        elsewhere=300,
        unseen=351,
    )


def split_images(
    images: ImageSet, seed: int, local: int = LOCAL, new: int = NEW, *, stored_new: bool = True
) -> SeedImages:
    """The seed draws which training classes are deployed, new and elsewhere.

    ``stored_new``: whether items of the new classes are stored before a model trains on them.
    """
    data = images.data
    pool = {item.label for item in data.items if item.split == "train"}
    drawn = []
    for n in (local, new, images.elsewhere):
        drawn.append(known(pool, n / len(pool), seed))
        pool -= drawn[-1]
    deployed, added, far = drawn
    tested = {item.label for item in data.items if item.split == "test"}
    unseen = known(tested, images.unseen / len(tested), -1)
    choosing = frozenset(item.label for item in data.items if item.split == "validation")
    trains = [not images.asks(item) for item in data.items]

    def part(
        labels: frozenset[str], chosen: Sequence[bool], split: Literal["train", "validation"]
    ) -> Dataset:
        rows = [i for i, one in enumerate(data.labels) if one in labels and chosen[i]]
        return _of_split(data.take(rows), split)

    everyone = deployed | added | unseen | choosing
    used = data.take(i for i, one in enumerate(data.labels) if one in everyone)
    stored = np.array([images.style(item) == 0 for item in used.items])
    asks = np.array([images.asks(item) for item in used.items])
    labels = np.array(used.labels)

    def rows(classes: frozenset[str], kept: np.ndarray) -> Rows:
        return np.flatnonzero(np.isin(labels, sorted(classes)) & kept)

    return SeedImages(
        seed=seed,
        everything=used,
        deployed=part(deployed, trains, "train"),
        elsewhere=part(far, [True] * len(data), "train"),
        tuned=part(deployed | added, trains, "train"),
        choosing=part(choosing, [images.style(item) > 0 for item in data.items], "validation"),
        groups={
            "seen by both": rows(deployed, asks),
            "new in the fine-tuning": rows(added, asks),
            "unseen": rows(unseen, ~stored),
        },
        gallery=rows(deployed | unseen | (added if stored_new else frozenset()), stored),
        later=rows(frozenset() if stored_new else added, stored),
        validation=rows(choosing, ~stored),
        validation_gallery=rows(choosing, stored),
    )


def _of_split(data: Dataset, split: Literal["train", "validation"]) -> Dataset:
    items = tuple(replace(item, split=split, role=None) for item in data.items)
    return Dataset(items=items, sources=data.sources)
