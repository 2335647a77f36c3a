"""The forecast of more labelled data: which items train, and what the curves conclude."""

from __future__ import annotations

import numpy as np
import pytest

from compatctl.data import Dataset, Item
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.migration.forecast import (
    Measure,
    _amounts,
    _conclude,
    _some_images,
    first_classes,
    law_of,
)

CLASSES, EACH, QUERIES = 40, 8, 300


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Training items, and as many of the other splits."""
    items = [
        Item(id=f"{split}-{label}-{at}", label=f"{split}-{label}", split=split)
        for split in ("train", "validation", "test")
        for label in range(CLASSES)
        for at in range(EACH)
    ]
    image = np.zeros((2, 2, 3), np.uint8)
    return Dataset(items=tuple(items), sources=(image,) * len(items))


def _training(data: Dataset) -> set[str]:
    return {item.id for item in data.items if item.split == "train"}


@pytest.mark.parametrize("part", [first_classes, _some_images])
def test_parts_are_nested_and_change_nothing_else(data: Dataset, part) -> None:
    """A larger part holds a smaller one of its run; items keep their rows, and validation stays."""
    quarter, half, whole = (part(data, share, 1) for share in (0.25, 0.5, 1.0))
    assert _training(quarter) < _training(half) < _training(whole) == _training(data)
    assert _training(part(data, 0.25, 0)) != _training(quarter)
    assert quarter.ids == data.ids
    for before, after in zip(data.items, quarter.items, strict=True):
        assert after.split == before.split or (before.split, after.split) == ("train", "test")


def test_a_part_has_whole_classes_or_some_images_of_every_class(data: Dataset) -> None:
    """A quarter of the classes keeps all their images, a quarter of the images every class."""
    of_classes, of_images = first_classes(data, 0.25, 0), _some_images(data, 0.25, 0)
    for part, classes, each in ((of_classes, 10, EACH), (of_images, CLASSES, 2)):
        labels = [item.label for item in part.items if item.split == "train"]
        assert np.unique(labels, return_counts=True)[1].tolist() == [each] * classes
    sizes, cuts = _amounts(data, _some_images, "images", 2)
    assert sizes == [2.0, 4.0, 8.0]
    assert [len(datasets) for datasets in cuts] == [2, 2]


def test_data_that_cannot_be_parted_has_no_curve(data: Dataset) -> None:
    """One image a class has no quarter, and four classes have a quarter of one class."""
    rows = [row for row, item in enumerate(data.items) if item.id.endswith("-0")]
    assert _amounts(data.take(rows), _some_images, "images", 1)[0] is None
    few = [
        row for row, item in enumerate(data.items) if item.label in {f"train-{i}" for i in range(4)}
    ]
    assert _amounts(data.take(few), first_classes, "classes", 1)[0] is None


def _measure(old: float, margin: float, ceiling: float | None) -> Measure:
    labels = np.arange(QUERIES) // 3
    truth = GroundTruth(
        classes=labels,
        query_labels=labels,
        gallery_labels=labels,
        self_row=np.full(QUERIES, -1),
    )
    return Measure(
        truth=truth,
        stored=np.zeros((QUERIES, 2), np.float32),
        old_hits=_hits(old),
        margin=margin,
        ceiling=ceiling,
    )


def _hits(hit_rate: float) -> np.ndarray:
    """Queries in an order that no class shares; the first of them are found."""
    order = np.argsort(np.arange(QUERIES) * 7919 % QUERIES)
    return order < round(hit_rate * QUERIES)


def _points(amounts, start, exponent):
    return [(n, [_hits(1 - start * (n / amounts[0]) ** -exponent)]) for n in amounts]


def test_goals_and_the_better_amount_follow_from_the_curves() -> None:
    """With more classes misses fall fast, with more images not at all: classes help more, and each
    goal needs about as many as the law says."""
    hits = {
        "classes": _points([100.0, 200.0, 400.0], 0.8, 0.3),
        "images": _points([2.0, 4.0, 8.0], 0.53, 0.0),
    }
    result = _conclude(hits, _measure(0.5, 0.02, 0.2), 1, 1.0)
    assert result.more == "classes"
    for goal, hit_rate in ((result.to_pass, 0.52), (result.to_keep_half, 0.6)):
        assert goal.hit_rate == pytest.approx(hit_rate, abs=0.002)
        expected = 100 * ((1 - hit_rate) / 0.8) ** (-1 / 0.3)
        assert goal.classes.value == pytest.approx(expected, rel=0.15)
        assert goal.classes.low < expected < goal.classes.high
    assert result.classes.doubled.low < 1 - 0.8 * 8**-0.3 < result.classes.doubled.high


def test_what_nobody_can_tell_is_said() -> None:
    """Without a falling curve no goal has a number of classes; without re-embedding's gain there is
    no half of it; one curve alone has no better."""
    flat = {"classes": _points([100.0, 200.0, 400.0], 0.8, 0.0)}
    result = _conclude(flat, _measure(0.5, 0.02, None), 1, 1.0)
    assert result.to_pass.classes is None
    assert result.to_keep_half is None
    assert result.images is None
    assert result.more == "cannot tell"
    none = _conclude({}, _measure(0.5, 0.02, None), 1, 1.0)
    assert none.classes is None
    assert none.to_pass.classes is None


def test_a_law_is_of_the_queries_that_have_a_match() -> None:
    """Misses are the mean over runs, and the replicates scatter around it."""
    measure = _measure(0.5, 0.0, None)
    points = [(n, [_hits(r), _hits(r + 0.02)]) for n, r in ((1.0, 0.2), (2.0, 0.3), (4.0, 0.4))]
    law, others = law_of(points, measure.truth, [measure.old_hits])
    assert law.misses[:, 0] == pytest.approx([0.8, 0.7, 0.6], abs=0.01)
    assert law.drawn.mean(axis=0) == pytest.approx(law.misses.mean(axis=1), abs=0.01)
    assert others.mean() == pytest.approx(0.5, abs=0.01)
