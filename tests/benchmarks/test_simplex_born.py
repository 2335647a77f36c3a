"""The benchmark of two models born on one simplex: who asks, and what its table says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.common.born_data import FONTS, ImageSet, SeedImages, split_images
from benchmarks.common.born_gate import SEEN, Judge
from benchmarks.studies import simplex_born as born
from compatctl.data import Dataset, Item, Split
from compatctl.migration.routes import WEIGHTS


def _item(label: str, font: str) -> Item:
    return Item(id=f"{font}/{label}", label=label, split="train", slices={"font": font})


def _set(classes: int, split: Split = "train") -> ImageSet:
    """Characters of a split in every typeface, without pixels."""
    items = tuple(
        replace(_item(chr(0x4E00 + i), font), split=split) for i in range(classes) for font in FONTS
    )
    sources = (np.zeros((2, 2), np.uint8),) * len(items)
    return ImageSet(
        data=Dataset(items=items, sources=sources),
        column="font",
        styles=FONTS,
        held_out=2,
        elsewhere=10,
        unseen=4,
    )


def test_each_class_queries_in_two_styles_and_never_in_the_gallerys() -> None:
    """Over many characters every other typeface asks and trains."""
    given = _set(64)
    asks = {(item.label, item.slices["font"]): given.asks(item) for item in given.data.items}
    counts = {sum(asks[label, font] for font in FONTS) for label, _ in asks}
    assert counts == {2}
    for font in FONTS:
        kinds = {kind for (_, name), kind in asks.items() if name == font}
        assert kinds == ({False} if font == FONTS[0] else {False, True})


@pytest.mark.parametrize("stored_new", [True, False])
def test_nothing_that_asks_trains(stored_new: bool) -> None:
    """Deployed, new, unseen and validation classes are apart; new ones are stored or come later."""
    parts = {"train": range(40), "test": range(40, 44), "validation": range(44, 50)}
    whole = _set(50)
    split_of = {chr(0x4E00 + i): split for split, codes in parts.items() for i in codes}
    items = tuple(replace(item, split=split_of[item.label]) for item in whole.data.items)
    given = replace(whole, data=Dataset(items=items, sources=whole.data.sources))
    drawn = split_images(given, 0, 12, 8, stored_new=stored_new)
    labels, ids = np.array(drawn.everything.labels), np.array(drawn.everything.ids)
    classes = {name: {*labels[rows]} for name, rows in drawn.groups.items()}
    classes["validation"] = {*labels[drawn.validation]}
    assert {name: len(some) for name, some in classes.items()} == {
        "seen by both": 12, "new in the fine-tuning": 8, "unseen": 4, "validation": 6
    }  # fmt: skip
    assert len(set.union(*classes.values())) == 30
    asking = {*ids[np.concatenate([*drawn.groups.values(), drawn.validation])]}
    for part in (drawn.deployed, drawn.tuned, drawn.elsewhere):
        assert not asking & {*part.ids}
    stored = {*labels[drawn.gallery]}
    new = classes["new in the fine-tuning"]
    assert (new <= stored, {*labels[drawn.later]}) == (stored_new, set() if stored_new else new)
    assert {*drawn.choosing.ids} == {*ids[drawn.validation]}
    assert {*labels[drawn.validation_gallery]} == classes["validation"]


@pytest.fixture
def images() -> SeedImages:
    """Twelve characters, the gallery's image of each and two that ask."""
    fonts = (FONTS[0], "klee", "rampart")
    items = tuple(_item(chr(0x4E00 + i), font) for i in range(12) for font in fonts)
    pixels = np.zeros((2, 2), np.uint8)
    data = Dataset(items=items, sources=(pixels,) * len(items))
    asking = np.flatnonzero(np.arange(len(items)) % 3 > 0)
    parts = np.array_split(asking, len(born.GROUPS))
    return SeedImages(
        seed=3,
        everything=data,
        deployed=data,
        elsewhere=data,
        tuned=data,
        choosing=data,
        groups=dict(zip(born.GROUPS, parts, strict=True)),
        gallery=np.arange(0, len(items), 3),
        later=np.zeros(0, np.int64),
        validation=parts[2],
        validation_gallery=np.zeros(0, np.int64),
    )


def test_lines_are_hit_rates_on_the_deployed_gallery(images: SeedImages) -> None:
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
        for gallery, hit_rate in (("old on old", entry.hit_rate), (entry.model, entry.own)):
            near = (features[entry.model][rows] @ features[gallery][images.gallery].T).argmax(
                axis=1
            )
            assert hit_rate == pytest.approx((labels[images.gallery][near] == labels[rows]).mean())
        assert entry.low <= entry.gain <= entry.high
        assert entry.over_low <= entry.over_deployed <= entry.over_high
    table = "\n".join(born.table(lines))
    deployed = next(line for line in lines if (line.group, line.model) == ("unseen", "deployed"))
    row = next(line for line in table.splitlines() if line.startswith("| unseen | deployed |"))
    assert f"{deployed.gain:+.3f}" in row
    assert "| unseen | new as it came |" not in table


def test_the_judge_compares_both_models_on_the_stored_vectors(images: SeedImages) -> None:
    """By explicit products, each group; fused queries have the weight that validation prefers."""
    rng = np.random.default_rng(1)
    centres = np.repeat(rng.standard_normal((12, 16)), 3, axis=0)
    old, new = (
        as_unit(centres + noise * rng.standard_normal(centres.shape)) for noise in (1.5, 0.5)
    )
    judge, labels = Judge(images=images, old=old), np.array(images.everything.labels)

    def hit_rate(queries: np.ndarray, rows: np.ndarray) -> float:
        near = (queries[rows] @ old[images.gallery].T).argmax(axis=1)
        return float((labels[images.gallery][near] == labels[rows]).mean())

    seen = np.concatenate([images.groups[name] for name in born.GROUPS[:2]])
    for name, rows in (images.groups | {SEEN: seen}).items():
        found = judge.groups(new)[name]
        assert found["hit_rate"] == pytest.approx(hit_rate(new, rows), abs=1e-4)
        gain = hit_rate(new, rows) - hit_rate(old, rows)
        assert found["gain"] == pytest.approx(gain, abs=1e-4)
        assert found["gate"] == "inconclusive"  # too few queries
    weight, fused = judge.fused(new)
    best = max(hit_rate(as_unit((1 - w) * old + w * new), images.validation) for w in WEIGHTS)
    assert judge.validation(fused) == pytest.approx(best)
    assert np.allclose(fused, as_unit((1 - weight) * old + weight * new), atol=1e-6)


def as_unit(rows: np.ndarray) -> np.ndarray:
    """float32 rows of length 1."""
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit.astype(np.float32)
