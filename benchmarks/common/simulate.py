"""Simulated queries whose truth is known, and intervals of them: what ``coverage.py`` counts.

A *run* is one held-out set: C classes with an effect each, and queries within them. Outcomes are
drawn for many runs at once, as (R, C) sums by class.

Shapes: ``R`` runs, ``C`` classes, ``B`` replicates.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.core.compatibility import Inequalities, inequalities
from compatctl.core.estimate import Estimate
from compatctl.core.resampling import (
    Ratio,
    estimate_diff,
    estimate_ratios,
    estimate_same,
)

Numbers = NDArray[Any]
Generator = np.random.Generator

LEVEL = 0.95
REPLICATES = 2000
"""As many as the default policy's."""

BLOCK = 25
"""Runs that share their replicates, as the statistics of one group do; it saves drawing them."""

SPREAD = 0.3
"""Class effects are uniform within this of the population's gain."""

FOUND = 0.6
"""The old model finds this share."""

PRONE = 0.2
"""Negative flips fall on a few classes, whose queries flip with this probability."""


def generator(seed: int, name: str) -> Generator:
    """A stream of its own for every cell of every table, whatever else is run."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def class_sizes(kind: str, shape: tuple[int, ...], rng: Generator) -> Numbers:
    """Queries of each class: all 4, geometric of mean 8, lognormal (mean 8, far tail), or all 1."""
    if kind == "unequal":
        return rng.geometric(1 / 8, shape)
    if kind == "heavy":
        return np.ceil(rng.lognormal(np.log(4), 1.2, shape)).astype(np.int64)
    return np.full(shape, {"equal": 4, "single": 1}[kind], dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """(R, C) sums by class: what went up, what went down, of how many queries."""

    up: Numbers
    down: Numbers
    counts: Numbers
    bounds: tuple[float, float] = (-1.0, 1.0)
    harm: int = -1
    class_bounds: tuple[float, float] | None = None

    @property
    def totals(self) -> Numbers:
        """(R, C) what the statistic adds up."""
        return self.up - self.down


def hit_changes(sizes: Numbers, gain: float, rng: Generator, **background: float) -> Sample:
    """Queries that turned right, and wrong; the population's gain is ``gain``."""
    better, worse = chances(sizes.shape, gain, rng, **background)
    up = rng.binomial(sizes, better)
    down = rng.binomial(sizes - up, np.minimum(1, worse / (1 - better)))
    return Sample(up=up, down=down, counts=sizes, class_bounds=(-FOUND, 1 - FOUND))


def chances(
    shape: tuple[int, ...],
    gain: float,
    rng: Generator,
    *,
    flips: float = 0.1,
    spread: float = SPREAD,
) -> tuple[Numbers, Numbers]:
    """Each class's probabilities of turning right and wrong: ``flips`` each way and its effect."""
    effect = gain + rng.uniform(-spread, spread, shape)
    return flips + np.maximum(effect, 0), flips + np.maximum(-effect, 0)


def flips(sizes: Numbers, share: float, rng: Generator) -> Sample:
    """Queries that turned wrong, all of them in prone classes; the population's is ``share``."""
    prone = rng.random(sizes.shape) < share / PRONE
    lost = rng.binomial(sizes, np.where(prone, PRONE, 0.0))
    return Sample(up=lost, down=0 * lost, counts=sizes, bounds=(0.0, 1.0), harm=1)


def precision_changes(sizes: Numbers, gain: float, rng: Generator) -> Sample:
    """Sums of a continuous, skewed change in [-1, 1]; the population's mean is ``gain``."""
    flat = sizes.ravel()
    each = 0.8 * (rng.beta(1, 3, int(flat.sum())) - 0.25)
    sums = np.bincount(np.repeat(np.arange(len(flat)), flat), each, len(flat)).reshape(sizes.shape)
    effect = gain + rng.uniform(-0.2, 0.2, sizes.shape)
    return Sample(up=sums + effect * sizes, down=0 * sums, counts=sizes)


def estimates(sample: Sample, rng: Generator, replicates: int = REPLICATES) -> list[Estimate]:
    """One estimate a run."""
    collected: list[Estimate] = []
    for rows in blocks(len(sample.counts)):
        ratios = [
            Ratio(
                totals=t,
                counts=n,
                bounds=sample.bounds,
                harm=sample.harm,
                class_bounds=sample.class_bounds,
            )
            for t, n in zip(
                sample.totals[rows].astype(np.float64),
                sample.counts[rows].astype(np.float64),
                strict=True,
            )
        ]
        collected += estimate_ratios(ratios, replicates, rng)
    return collected


def blocks(runs: int) -> Iterator[slice]:
    """Slices of BLOCK runs."""
    return (slice(first, min(first + BLOCK, runs)) for first in range(0, runs, BLOCK))


DIM = 16


def features(labels: Numbers, classes: int, rng: Generator) -> tuple[Numbers, Numbers]:
    """Unit rows by an old and a new model; classes differ in place and in how the new moves them.

    All rows share a direction, so that different classes are not at right angles; the new model
    weakens it and draws items to their class, more in some classes than in others.
    """
    shared = np.zeros(DIM)
    shared[0] = 1.0
    centre = shared + rng.normal(0, 1 / np.sqrt(DIM), (classes, DIM))
    push = 0.4 * centre * rng.uniform(0, 1, (classes, 1)) - 0.2 * shared
    push += rng.normal(0, 0.3 / np.sqrt(DIM), (classes, DIM))
    old = centre[labels] + rng.normal(0, 0.8 / np.sqrt(DIM), (len(labels), DIM))
    new = old + push[labels] + rng.normal(0, 0.3 / np.sqrt(DIM), (len(labels), DIM))
    return unit(old), unit(new)


def unit(rows: Numbers) -> Numbers:
    """Rows of length 1."""
    scaled: Numbers = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def compared(sizes: Numbers, roles: bool, rng: Generator) -> Inequalities:
    """The inequalities of one run. With roles, a class has as many gallery items as queries, and
    they are others; without, every item is both and is left out of its own search."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    Q = len(labels)
    everything = np.concatenate([labels, labels]) if roles else labels
    old, new = features(everything, len(sizes), rng)
    gallery = slice(Q, None) if roles else slice(None)
    own = None if roles else np.arange(Q)
    return inequalities(
        old[:Q], new[:Q], labels, old[gallery], everything[gallery], own, shares=False
    )


@cache
def true_gains() -> tuple[float, float]:
    """The change of the same-class and of the different-class cosine in the population: one draw
    of 100,000 classes, whose error is a twentieth of that of 200 classes."""
    both = compared(np.full(100_000, 4), False, generator(0, "population"))
    return both.same_gain, -both.diff_gain


def cosine_estimates(
    classes: int, kind: str, roles: bool, runs: int, *, rng: Generator, replicates: int = REPLICATES
) -> tuple[list[Estimate], list[Estimate]]:
    """Estimates of the same-class and of the different-class change of cosine."""
    same, diff = [], []
    for _ in range(runs):
        sums = compared(class_sizes(kind, (classes,), rng), roles, rng).sums
        same.append(estimate_same(sums, replicates, rng))
        diff.append(estimate_diff(sums, replicates, rng))
    return same, diff


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often intervals held the truth."""

    coverage: float
    truth_above: float
    """Share of runs whose whole interval lay below the truth."""
    truth_below: float
    length: float
    runs: int

    @property
    def error(self) -> float:
        """Monte-Carlo standard error of the coverage, were it the nominal one."""
        return math.sqrt(LEVEL * (1 - LEVEL) / self.runs)

    @property
    def short(self) -> bool:
        """Whether the coverage is below the nominal one by more than chance explains."""
        return self.coverage < LEVEL - 3 * self.error


def covered(found: Sequence[Estimate], truth: float) -> Coverage:
    """Coverage of the intervals of estimates."""
    return counted(np.array([estimate.interval(LEVEL) for estimate in found]), truth)


def counted(intervals: Numbers, truth: float) -> Coverage:
    """Coverage of (R, 2) intervals."""
    low, high = intervals.T
    above, below = float((high < truth).mean()), float((low > truth).mean())
    return Coverage(
        coverage=1 - above - below,
        truth_above=above,
        truth_below=below,
        length=float((high - low).mean()),
        runs=len(intervals),
    )


# The alternatives, for comparison only. Each gives (R, 2) intervals of one block of runs.


def half_sampled(sample: Sample, rng: Generator) -> Numbers:
    """What compatctl does."""
    return np.array([estimate.interval(LEVEL) for estimate in estimates(sample, rng)])


def multinomial(sample: Sample, rng: Generator) -> dict[str, Numbers]:
    """Percentile, BCa and studentised intervals, by the same draws of classes with replacement."""
    T, n = sample.totals.astype(np.float64), sample.counts.astype(np.float64)
    C = T.shape[1]
    W = rng.multinomial(C, np.full(C, 1 / C), size=REPLICATES).astype(np.float64)
    drawn = (W @ T.T) / (W @ n.T)
    value = T.sum(axis=1) / n.sum(axis=1)
    residual = T - value[:, None] * n
    error = np.sqrt((residual**2).sum(axis=1)) / n.sum(axis=1)
    squares = W @ (T**2).T - 2 * drawn * (W @ (T * n).T) + drawn**2 * (W @ (n**2).T)
    errors = np.sqrt(np.maximum(squares, 0)) / (W @ n.T)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num((drawn - value) / errors, nan=0.0)
    t = np.sort(t, axis=0)
    low, high = _places(REPLICATES)
    studentised = np.stack([value - t[high] * error, value - t[low] * error], axis=1)
    ordered = np.sort(drawn, axis=0)
    return {
        "percentile": np.stack([ordered[low], ordered[high]], axis=1),
        "BCa": _bca(ordered, value, T, n),
        "studentised": np.clip(studentised, *sample.bounds),
    }


def _bca(ordered: Numbers, value: Numbers, T: Numbers, n: Numbers) -> Numbers:
    """Bias-corrected and accelerated, by the jackknife of classes (Efron, JASA 82, 1987)."""
    without = (T.sum(axis=1, keepdims=True) - T) / (n.sum(axis=1, keepdims=True) - n)
    away = without.mean(axis=1, keepdims=True) - without
    scatter = np.sqrt((away**2).sum(axis=1, keepdims=True))
    speed = ((away / np.where(scatter > 0, scatter, 1.0)) ** 3).sum(axis=1) / 6
    normal, B = NormalDist(), len(ordered)
    out = []
    for column, centre, a in zip(ordered.T, value, speed, strict=True):
        below = ((column < centre).sum() + (column <= centre).sum()) / 2
        bias = normal.inv_cdf(min(max(float(below) / B, 0.5 / B), 1 - 0.5 / B))
        ends = []
        for z in (normal.inv_cdf((1 - LEVEL) / 2), normal.inv_cdf((1 + LEVEL) / 2)):
            level = normal.cdf(bias + (bias + z) / (1 - a * (bias + z)))
            ends.append(column[min(B - 1, max(0, int(level * (B + 1)) - 1))])
        out.append(ends)
    return np.array(out)


def two_stage(sample: Sample, rng: Generator) -> Numbers:
    """Classes with replacement, then queries with replacement within each class drawn."""
    C = sample.counts.shape[1]
    W = rng.multinomial(C, np.full(C, 1 / C), size=REPLICATES // 2)
    low, high = _places(len(W))
    out = []
    for up, down, n in zip(sample.up, sample.down, sample.counts, strict=True):
        size = W * n
        ups = rng.binomial(size, up / n)
        downs = rng.binomial(size - ups, down / np.maximum(n - up, 1))
        drawn = np.sort((ups - downs).sum(axis=1) / size.sum(axis=1))
        out.append((drawn[low], drawn[high]))
    return np.array(out)


def _places(B: int) -> tuple[int, int]:
    """Where the ends of the interval stand among B ordered replicates."""
    k = int((1 - LEVEL) / 2 * (B + 1) + 1e-9)
    return k - 1, B - k


Draw = Callable[[Numbers, float, Generator], Sample]


def alternatives(
    draw: Draw, truth: float, kind: str, classes: int, *, runs: int, rng: Generator
) -> dict[str, Coverage]:
    """Coverage of every method on the same simulated data."""
    collected: dict[str, list[Numbers]] = {}
    for rows in blocks(runs):
        sizes = class_sizes(kind, (rows.stop - rows.start, classes), rng)
        sample = draw(sizes, truth, rng)
        by = {"half-sampling": half_sampled(sample, rng), **multinomial(sample, rng)}
        for name, ends in {**by, "two-stage": two_stage(sample, rng)}.items():
            collected.setdefault(name, []).append(ends)
    return {name: counted(np.concatenate(parts), truth) for name, parts in collected.items()}
