"""Simulated queries that depend on each other by more than their class, and lopsided harm.

Every run is a held-out set of known truth 0, query by query, put to ``hit_change`` and
``estimate_ratios`` as the gate does: what ``coverage.py`` counts in its last two tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.common import simulate
from benchmarks.common.simulate import Generator, Numbers
from compatctl.core.estimate import Estimate
from compatctl.core.policy import Policy
from compatctl.core.resampling import Ratio, estimate_ratios, half_samples, hit_change, ratio_of
from compatctl.core.sampling_units import minimal_kinds

Row = dict[str, Any]

OLD = 0.6
"""The share that the old model finds."""


def outcomes(effect: Numbers, rng: Generator, flips: float, old: float) -> tuple[Numbers, Numbers]:
    """(Q,) found by the old and by the new model: ``effect`` (Q,) is what a query gains in the
    mean, up to losing all that was found; ``flips`` of all turn each way besides."""
    hits = rng.random(len(effect)) < old
    lose = np.clip((flips + np.maximum(-effect, 0)) / old, 0, 1)
    win = np.clip((flips + np.maximum(effect, 0)) / (1 - old), 0, 1)
    win = np.where(effect <= -old, 0.0, win)
    toss = rng.random(len(effect))
    return hits, np.where(hits, toss >= lose, toss < win)


def few_lost(classes: int, share: float, rng: Generator) -> tuple[Numbers, Numbers, Numbers]:
    """Classes (Q,), found by old and by new: 40 queries a class; a share of the classes is lost
    whole, the others win what makes up for it."""
    labels = np.repeat(np.arange(classes), 40)
    lost = rng.random(classes) < share
    effect = np.where(lost, -1.0, share * OLD / (1 - share) + rng.uniform(-0.1, 0.1, classes))
    return labels, *outcomes(effect[labels], rng, 0.05, OLD)


def large_lost(classes: int, share: float, rng: Generator) -> tuple[Numbers, Numbers, Numbers]:
    """The same of 4 queries a class, where a share of the classes is ten times as large, and loses
    half of what it found."""
    large = rng.random(classes) < share
    labels = np.repeat(np.arange(classes), np.where(large, 40, 4))
    gain = 10 * share / (1 - share) * OLD / 2
    effect = np.where(large, -OLD / 2, gain) + rng.uniform(-0.1, 0.1, classes)
    return labels, *outcomes(effect[labels], rng, 0.05, OLD)


def by_units(
    spread: tuple[float, float],
    rng: Generator,
    *,
    classes: int = 100,
    users: int = 60,
    size: int = 8,
) -> tuple[Numbers, Numbers, Numbers]:
    """Codes (Q, 2) of classes and users, found by old and by new; ``spread`` of the effects of
    classes and of users. Users have unequal numbers of queries, of any class."""
    Q = classes * size
    labels = np.repeat(np.arange(classes), size)
    user = rng.choice(users, Q, p=rng.dirichlet(np.full(users, 3.0)))
    effects = [rng.uniform(-s, s, n) for s, n in zip(spread, (classes, users), strict=True)]
    effect = effects[0][labels] + effects[1][user]
    return np.stack([labels, user], axis=1), *outcomes(effect, rng, 0.1, 0.5)


def copies(rng: Generator) -> tuple[Numbers, Numbers, Numbers]:
    """24 images, 25 near-copies each, which are found or not together."""
    image = np.repeat(np.arange(24), 25)
    old, new = (rng.random((2, 24)) < 0.5)[:, image]
    return image, old, new


def pigeonhole(codes: Numbers, change: Numbers, replicates: int, rng: Generator) -> Estimate:
    """Owen's: a query weighs the product of its units' weights; for comparison only."""
    drawn = []
    for W, V in zip(
        half_samples(int(codes[:, 0].max()) + 1, replicates, rng),
        half_samples(int(codes[:, 1].max()) + 1, replicates, rng),
        strict=True,
    ):
        w = W[:, codes[:, 0]] * V[:, codes[:, 1]]
        with np.errstate(invalid="ignore"):
            drawn.append(w @ change / w.sum(axis=1))
    rows = np.sort(np.concatenate(drawn))
    return Estimate(
        value=float(change.mean()), replicates=rows, n_empty=0, n_classes=20, bounds=(-1.0, 1.0)
    )


Made = tuple[Numbers, Numbers, Numbers]


def _cell(
    what: str, unit: str, runs: int, rng: Generator, make: Callable[[Generator], Made], **how: Any
) -> Row:
    """Coverage, false passes and fails of many runs; nominal .95, .025, .025."""
    results = []
    for _ in range(runs):
        codes, old, new = make(rng)
        results.append(_estimate(codes, old, new, rng, **how))
    covered = simulate.covered(results, 0.0)
    level = Policy().alpha / 2
    return {
        "what": what,
        "resampled": unit,
        "coverage": round(covered.coverage, 3),
        "passed": round(
            float(np.mean([estimate.p_above(0.0) <= level for estimate in results])), 3
        ),
        "failed": round(
            float(np.mean([estimate.p_below(0.0) <= level for estimate in results])), 3
        ),
        "length": round(covered.length, 3),
        "runs": runs,
    }


def _estimate(
    codes: Numbers,
    old: Numbers,
    new: Numbers,
    rng: Generator,
    *,
    columns: tuple[int, ...] | None = None,
    product: bool = False,
    plain: bool = False,
) -> Estimate:
    """By the units of some columns of the codes; ``plain``: half-samples without any correction."""
    if product:
        return pigeonhole(codes, new.astype(float) - old, 999, rng)
    if columns is not None:
        codes, _ = minimal_kinds([codes[:, at] for at in columns])
    estimate: Ratio = hit_change(codes, old, new)
    if plain:
        change = new.astype(np.float64) - old
        estimate = ratio_of(codes, change, np.ones(len(old)), (-1.0, 1.0))
    return estimate_ratios([estimate], 999, rng)[0]


def lopsided(
    classes: int,
    share: float,
    runs: int,
    rng: Generator,
    *,
    large: bool = False,
    plain: bool = False,
) -> Row:
    """One cell of harm in few or in large classes; ``plain``: half-samples alone."""
    make = large_lost if large else few_lost
    what = (
        f"{share:.0%} of {classes} classes are ten times as large and lose"
        if large
        else f"{share:.0%} of {classes} classes lost, 40 queries each"
    )
    unit = "half-samples alone" if plain else "as in the gate"
    return _cell(what, unit, runs, rng, lambda rng: make(classes, share, rng), plain=plain)


def units(spread: tuple[float, float], runs: int, rng: Generator, **how: Any) -> Row:
    """One cell of 100 classes of 8 queries by 60 users, whose effects spread so far."""
    matters = {(0, 0): "neither matters", (1, 0): "classes matter", (0, 1): "users matter"}
    what = matters.get((spread[0] > 0, spread[1] > 0), "both matter")
    names = " and ".join(("class", "user")[at] for at in how.get("columns", (0, 1)))
    unit = f"{names}, pigeonhole" if how.get("product") else names
    return _cell(what, unit, runs, rng, lambda rng: by_units(spread, rng), **how)


def lopsided_rows(runs: int, seed: int) -> Iterator[Row]:
    """Harm in few and in large classes, with and without what is done about it."""
    few = [(classes, share, False) for classes in (50, 100, 200) for share in (0.02, 0.04)]
    for classes, share, large in [*few, *((classes, 0.05, True) for classes in (60, 100, 200))]:
        for plain in (True, False):
            rng = simulate.generator(seed, f"lopsided {classes} {share} {large}")
            yield lopsided(classes, share, runs, rng, large=large, plain=plain)


def unit_rows(runs: int, seed: int) -> Iterator[Row]:
    """Users whose effects spread or not, by what is resampled; and copies of images."""
    ways: list[Row] = [{"columns": (0,)}, {"columns": (1,)}, {"columns": (0, 1)}, {"product": True}]
    for spread in ((0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.2, 0.2)):
        for how in ways:
            yield units(spread, runs, simulate.generator(seed, f"units {spread}"), **how)
    for unit, make in (("query", _alone), ("class", copies)):
        rng = simulate.generator(seed, "copies")
        yield _cell("25 copies of 24 images, judged", unit, runs, rng, make)


def _alone(rng: Generator) -> Made:
    image, old, new = copies(rng)
    return np.arange(len(image)), old, new
