"""What more labelled data would give a single encoder: the recipe, trained on parts of the data.

Features are at hand, so that only heads train. Parts are nested, in the order of a hash; each run
has an order and a seed of its own. The measure is that of the route ``finetune``: the queries of
planning classes, in the whole gallery as it is.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from compatctl.core.arrays import Bools, Floats, Vectors
from compatctl.core.hash_order import hash_fraction
from compatctl.core.power_law import (
    LEVEL,
    MIN_AMOUNTS,
    PowerLaw,
    Range,
    compare_exponents,
    resampled_misses,
)
from compatctl.data import Dataset
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.migration.routes import RouteInputs, train_model
from compatctl.migration.selection import Variant
from compatctl.progress import Stage, stage

SHARES = (0.25, 0.5, 1.0)
RUNS = 2
REPLICATES = 1000

Kind = Literal["classes", "images"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """hit@1 by amount of training data. ``exponent`` is b of ``misses = a * amount^-b``,
    ``doubled`` the hit rate at twice the largest amount; each with its interval."""

    amounts: tuple[float, ...]
    hit_rates: tuple[float, ...]
    """The mean over runs"""
    exponent: Range
    doubled: Range


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A hit@1, and the number of labelled classes at which a single encoder reaches it; None if
    nobody can tell: misses are not shown to fall, or the law does not reach it. The interval may
    have no upper end."""

    hit_rate: float
    classes: Range | None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Curves over labelled classes and over images a class; None where there are too few to part.

    ``to_pass``: the gate would pass on the planning queries. ``to_keep_half``: half of
    re-embedding's gain; None if it is not shown to gain. ``more`` is what lowers the misses more
    when doubled. Every interval has the probability ``level``.
    """

    level: float
    runs: int
    classes: Curve | None
    images: Curve | None
    to_pass: Goal
    to_keep_half: Goal | None
    more: Literal["classes", "images", "cannot tell"]
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Measure:
    """What the queries search, whether old queries (Q,) were right, and the gains to reach."""

    truth: GroundTruth
    stored: Vectors
    old_hits: Bools
    margin: float
    """The gain with which the gate would pass"""
    ceiling: float | None
    """Re-embedding's gain, where it is shown"""

    def hits(self, variant: Variant) -> Bools:
        """(Q,) whether the first result is right."""
        return retrieval(self.truth, variant.queries, self.stored, (1,), map_k=1).hit1


def forecast_more_data(inputs: RouteInputs, whole: Variant, measure: Measure) -> Forecast:
    """Train on a quarter and a half of the classes, and of the images a class.

    ``whole`` is the model of the recipe on all of them. Where a recipe has lists, each part chooses
    among its trials.

    Raises:
        InputError: see ``train.train``.
    """
    start = time.monotonic()
    parts = {kind: _amounts(inputs.data, part, kind, RUNS) for kind, part in _PARTS.items()}
    cuts = [data for sizes, cuts in parts.values() if sizes for runs in cuts for data in runs]
    work = sum(map(_training_items, [*cuts, *[inputs.data] * (RUNS - 1)]))
    with stage("forecast", work, "share") as done:
        runs = _Runs(inputs=inputs, stage=done)
        wholes = [measure.hits(whole)]
        wholes += [measure.hits(runs.train(inputs.data, run)) for run in range(1, RUNS)]
        hits: dict[Kind, list[tuple[float, list[Bools]]]] = {}
        for kind, (sizes, cuts_of_kind) in parts.items():
            if sizes is None:
                continue
            points = []
            for amount, datasets in zip(sizes[:-1], cuts_of_kind, strict=True):
                trained = [runs.train(data, run) for run, data in enumerate(datasets)]
                points.append((amount, [measure.hits(variant) for variant in trained]))
            hits[kind] = [*points, (sizes[-1], wholes)]
    return _conclude(hits, measure, RUNS, round(time.monotonic() - start, 1))


def law_of(
    points: Sequence[tuple[float, Sequence[Bools]]], truth: GroundTruth, others: Sequence[Bools]
) -> tuple[PowerLaw, Floats]:
    """The law of hits (Q,) of each run at each amount, and replicates (B, len(others)) of the
    misses of other models, by the same draws of classes."""
    has_match = truth.has_match()
    means = [np.mean([~hits for hits in runs], axis=0) for _, runs in points]
    missed = np.stack([*means, *(~hits for hits in others)], axis=1).astype(np.float64)
    rng = np.random.default_rng(0)
    drawn = resampled_misses(truth.classes, missed, has_match, REPLICATES, rng)
    misses = [[1.0 - hits[has_match].mean() for hits in runs] for _, runs in points]
    law = PowerLaw(
        amounts=np.array([amount for amount, _ in points], np.float64),
        misses=np.array(misses, np.float64),
        drawn=drawn[:, : len(points)],
    )
    return law, drawn[:, len(points) :]


def _conclude(
    hits: dict[Kind, list[tuple[float, list[Bools]]]], measure: Measure, runs: int, seconds: float
) -> Forecast:
    laws = {
        kind: law_of(points, measure.truth, [measure.old_hits]) for kind, points in hits.items()
    }
    curves = {kind: _curve(law) for kind, (law, _) in laws.items()}
    by_classes = laws.get("classes")
    half = None if measure.ceiling is None else _goal(by_classes, measure, measure.ceiling / 2)
    return Forecast(
        level=LEVEL,
        runs=runs,
        classes=curves.get("classes"),
        images=curves.get("images"),
        to_pass=_goal(by_classes, measure, measure.margin),
        to_keep_half=half,
        more=_more({kind: law for kind, (law, _) in laws.items()}),
        seconds=seconds,
    )


def _curve(law: PowerLaw) -> Curve:
    misses = law.predict(2 * float(law.amounts[-1]))
    assert misses.high is not None
    return Curve(
        amounts=tuple(law.amounts.tolist()),
        hit_rates=tuple((1.0 - law.misses.mean(axis=1)).tolist()),
        exponent=law.exponent,
        doubled=Range(value=1 - misses.value, low=1 - misses.high, high=1 - misses.low),
    )


def _goal(law: tuple[PowerLaw, Floats] | None, measure: Measure, gain: float) -> Goal:
    """The classes that a gain over the old queries needs."""
    has_match = measure.truth.has_match()
    hit_rate = float(measure.old_hits[has_match].mean()) + gain
    if law is None or hit_rate >= 1.0:
        return Goal(hit_rate=hit_rate, classes=None)
    return Goal(hit_rate=hit_rate, classes=law[0].amount_for(1.0 - hit_rate, law[1][:, 0] - gain))


def _more(laws: dict[Kind, PowerLaw]) -> Literal["classes", "images", "cannot tell"]:
    if len(laws) < 2:
        return "cannot tell"
    gap = compare_exponents(laws["classes"], laws["images"])
    assert gap.high is not None
    if gap.low > 0.0 and laws["classes"].falls:
        return "classes"
    return "images" if gap.high < 0.0 and laws["images"].falls else "cannot tell"


def _amounts(
    data: Dataset, part: Callable[[Dataset, float, int], Dataset], kind: Kind, runs: int
) -> tuple[list[float] | None, list[list[Dataset]]]:
    """The amounts, the whole last, and of each part the data of every run; None if they are alike
    or a part has fewer than two classes."""
    cuts = [[part(data, share, run) for run in range(runs)] for share in SHARES[:-1]]
    sizes = [_size(datasets[0], kind) for datasets in (*cuts, [data])]
    alike = len(set(sizes)) < max(MIN_AMOUNTS, len(sizes))
    return (None if alike or _size(cuts[0][0], "classes") < 2 else sizes), cuts


def _size(data: Dataset, kind: Kind) -> float:
    """Training classes, or the mean number of training images of a class."""
    labels = [item.label for item in data.items if item.split == "train"]
    count = len(set(labels))
    return float(count) if kind == "classes" else len(labels) / max(1, count)


def first_classes(data: Dataset, share: float, run: int) -> Dataset:
    """The data in which only a share of the training classes trains; the others' items stay, as
    test items. A larger share of a run holds a smaller one."""
    labels = {item.label for item in data.items if item.split == "train"}
    order = sorted(labels, key=lambda label: hash_fraction(f"forecast {run} {label}"))
    kept = set(order[: round(share * len(order))])
    return _train_only(data, [item.label in kept for item in data.items])


def _some_images(data: Dataset, share: float, run: int) -> Dataset:
    by_class: dict[str, list[int]] = defaultdict(list)
    for row, item in enumerate(data.items):
        if item.split == "train":
            by_class[item.label].append(row)
    kept: set[int] = set()
    for rows in by_class.values():
        rows.sort(key=lambda row: hash_fraction(f"forecast {run} {data.ids[row]}"))
        kept.update(rows[: max(1, round(share * len(rows)))])
    return _train_only(data, [row in kept for row in range(len(data))])


def _train_only(data: Dataset, kept: Sequence[bool]) -> Dataset:
    items = tuple(
        item if keep or item.split != "train" else replace(item, split="test")
        for item, keep in zip(data.items, kept, strict=True)
    )
    return Dataset(items=items, sources=data.sources)


@dataclass(kw_only=True, eq=False)
class _Runs:
    """The runs of a forecast, and one stage of all, which counts the training items of each."""

    inputs: RouteInputs
    stage: Stage
    done: int = 0

    def train(self, data: Dataset, run: int) -> Variant:
        """The recipe on a part of the data, with the run's seed."""
        items = _training_items(data)

        def trained(name: str, done: int, total: int) -> None:
            if name == "training":
                self.stage(self.done + items * done // max(1, total))

        recipe = replace(self.inputs.recipe, seed=self.inputs.recipe.seed + run)
        inputs = replace(self.inputs, data=data)
        variant = train_model(inputs, recipe, inputs.trained_against, trained)
        self.done += items
        self.stage(self.done)
        return variant


def _training_items(data: Dataset) -> int:
    return sum(item.split == "train" for item in data.items)


_PARTS: dict[Kind, Callable[[Dataset, float, int], Dataset]] = {
    "classes": first_classes,
    "images": _some_images,
}
