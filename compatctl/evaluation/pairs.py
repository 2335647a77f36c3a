"""The user's pairs, as in face verification: both models on exactly these pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Bools, Floats, Rows, Vectors
from compatctl.core.class_sums import row_products
from compatctl.core.estimate import Estimate
from compatctl.core.gate import Measurement
from compatctl.core.measurements import Draw
from compatctl.core.policy import Policy
from compatctl.core.resampling import estimate_pairs
from compatctl.core.thresholds import (
    Roc,
    crossvalidated_accuracy,
    equal_error_rate,
    roc,
    tar_at_far,
)
from compatctl.data import read_pairs, warn_of_near_known
from compatctl.errors import InputError
from compatctl.evaluation.adaptive_resampling import PAIRS
from compatctl.evaluation.clusters import resampling_units
from compatctl.notices import MAX_NAMES, notice
from compatctl.printable import listed
from compatctl.report import PairsResult

FOLDS = 10
FARS = (0.0001, 0.001, 0.01, 0.1)
POINTS = 100
MIN_PAIRS = FOLDS
"""Pairs of each kind: one for each fold."""


def resolve_pairs(path: Path, row: Mapping[str, int]) -> tuple[Rows, Rows, Bools]:
    """Rows of both items of every pair of the file, and whether they are of one class.

    ``row``: item id -> row of the data.

    Raises:
        InputError: the file cannot be read; an id that the data does not have, after a notice if it
            nearly has it; or too few pairs of either kind.
    """
    pairs = read_pairs(path)
    named = dict.fromkeys(item for pair in pairs for item in (pair.first, pair.second))
    if unknown := [item for item in named if item not in row]:
        warn_of_near_known(path, "ids", unknown, tuple(row), told=("paired", "the data"))
        raise InputError(
            f"{path}: {len(unknown)} ids of its pairs are not in the data: {listed(unknown, 3)}",
            tip="the ids in the pairs must be those of the data",
        )
    same = np.array([pair.same for pair in pairs], bool)
    if min(same.sum(), (~same).sum()) < MIN_PAIRS:
        raise InputError(
            f"the pairs need at least {MIN_PAIRS} of each kind, got {same.sum()} of one class and "
            f"{(~same).sum()} of two"
        )
    first, second = (
        np.array([row[getattr(pair, side)] for pair in pairs], np.int64)
        for side in ("first", "second")
    )
    return first, second, same


def warn_of_other_classes(
    path: Path, pairs: tuple[Rows, Rows, Bools], ids: Sequence[str], labels: Sequence[str]
) -> None:
    """A notice of pairs (rows of both items, whether of one class) that contradict the labels of
    the data (N,); data in which each item is its own class contradict nothing."""
    if all(label == item for item, label in zip(ids, labels, strict=True)):
        return
    rows = zip(*(column.tolist() for column in pairs), strict=True)
    names = [f"{ids[a]} {ids[b]}" for a, b, same in rows if (labels[a] == labels[b]) != same]
    if names:
        result = "the pairs count as they are written; same is 1 for two items of one class"
        what = "pairs that contradict the labels of the data"
        notice("pair-differs", path, what, names[:MAX_NAMES], result, count=len(names))


def measure_pairs(
    policy: Policy,
    *,
    queries: tuple[Vectors, Vectors],
    gallery: Vectors,
    rows: tuple[Rows, Rows, Bools],
    labels: Sequence[str],
    cluster: Mapping[str, Sequence[str]],
    draw: Draw,
    replicates: int,
) -> tuple[list[Measurement], PairsResult]:
    """Inequalities, accuracy, TAR and ROC; the first item of a pair queries, the second is stored.

    ``queries``: old and new features (N, D); ``gallery``: the old ones. The classes of both items
    are resampled, and the units of the ``cluster`` columns (name -> N values).
    """
    first, second, same = rows
    old, new = (row_products(features, first, gallery, second) for features in queries)
    used = np.concatenate([first, second])
    codes = np.unique([labels[row] for row in used], return_inverse=True)[1].astype(np.int64)
    units = resampling_units(
        codes, {name: [of[row] for row in used] for name, of in cluster.items()}
    )
    a, b = units.classes[: len(first)], units.classes[len(first) :]

    def estimate(values: Floats, kind: Bools, harm: int = 0) -> Estimate:
        return estimate_pairs(values[kind], a[kind], b[kind], replicates, draw(), harm=harm)

    def measured(name: str, value: Estimate, n: int, detail: str) -> Measurement:
        return Measurement(
            name=name,
            group=PAIRS,
            estimate=value,
            n=n,
            n_queries=n,
            may_decide=True,
            unit=units.unit,
            detail=detail,
        )

    curves = roc(old, same), roc(new, same)
    gained, far = _accepted_gain(policy, curves, old, new)
    change = new - old
    checks = [
        measured("same_class", estimate(change, same), int(same.sum()),
                     "The mean cosine of the given pairs of one class moves by "
                     f"{change[same].mean():+.5f}, and should not fall (1a)"),
        measured("different_class", estimate(-change, ~same), int((~same).sum()),
                     "The mean cosine of the given pairs of two classes moves by "
                     f"{change[~same].mean():+.5f}, and may rise by a margin (1b)"),
        measured("pair_tar_gain", estimate(gained, same, -1), int(same.sum()) if far else 0,
                     f"Pairs of one class accepted at FAR {policy.pair_far:g}: their share moves "
                     f"{gained[same].mean():+.4f}"),
    ]  # fmt: skip
    return checks, _result(old, new, same, curves)


def _accepted_gain(
    policy: Policy, curves: tuple[Roc, Roc], old: Floats, new: Floats
) -> tuple[Floats, bool]:
    """(P,) accepted by new less accepted by old, each at its threshold; whether FAR resolves."""
    points = [tar_at_far(curve, policy.pair_far) for curve in curves]
    gained = (new >= points[1].threshold).astype(np.float64) - (old >= points[0].threshold)
    return gained, all(point.resolved for point in points)


def _result(old: Floats, new: Floats, same: Bools, curves: tuple[Roc, Roc]) -> PairsResult:
    folds = np.zeros(len(same), np.int64)
    for kind in (same, ~same):  # spread both kinds over all folds
        folds[kind] = np.arange(kind.sum()) % FOLDS
    names = ("old", "new")
    scores = dict(zip(names, (old, new), strict=True))
    named = dict(zip(names, curves, strict=True))
    return PairsResult(
        n_same=int(same.sum()),
        n_diff=int((~same).sum()),
        accuracy={
            name: crossvalidated_accuracy(values, same, folds) for name, values in scores.items()
        },
        equal_error_rate={name: equal_error_rate(curve) for name, curve in named.items()},
        tar={name: {f"{far:g}": _tar(curve, far) for far in FARS} for name, curve in named.items()},
        roc={name: _points(curve) for name, curve in named.items()},
    )


def _tar(curve: Roc, far: float) -> float | None:
    point = tar_at_far(curve, far)
    return point.tar if point.resolved else None


def _points(curve: Roc) -> tuple[tuple[float, float], ...]:
    """At most ``POINTS`` points of the curve, with both ends."""
    kept = np.unique(np.linspace(0, len(curve.far) - 1, POINTS).round().astype(int))
    return tuple((float(curve.far[i]), float(curve.tar[i])) for i in kept)
