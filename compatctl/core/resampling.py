"""Uncertainty of an estimate by resampling classes.

Items of one class are not independent, so classes are resampled. A replicate gives every class c a
weight w_c of 0 or 2, each with probability 1/2, and keeps its items together: the bootstrap with
half-sampling weights, which are exchangeable with mean and variance 1 (Praestgaard and Wellner,
Annals of Probability 21, 1993). Its percentile interval is Hartigan's (JASA 64, 1969). For
independent contributions that are symmetric about the truth it is exact for any number of classes;
the percentile, BCa and studentised intervals of the multinomial bootstrap are too short for few
classes or unequal sizes. Resampling items within a drawn class as well would count the variance
within classes twice (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8).

A replicate re-weights class sums and per-query outcomes; no search runs again. Both models share
the weights, so all comparisons are paired. The gallery is fixed.

Shapes: ``C`` classes, ``B`` replicates, ``D`` dimensions, ``S`` statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compatctl.core.arrays import Bools, Codes, Floats
from compatctl.core.class_sums import ClassSums, QuerySums
from compatctl.core.estimate import (
    Estimate,
    RareChangeBound,
    rare_change_bound,
    skew_correction,
)
from compatctl.core.sampling_units import UnitSet, crossed_moments, unit_cells, unit_sets
from compatctl.errors import InputError
from compatctl.progress import stage

_CELLS = 2**22
"""Weights held at once: 32 MiB of float64."""


def half_samples(
    n_classes: int, replicates: int, rng: np.random.Generator, *, width: int = 1
) -> Iterator[Floats]:
    """(b, C) float64 weights, 0 or 2, in blocks of ``replicates`` rows in all.

    ``width`` is the number of columns that the caller computes per row; blocks shrink to fit it.
    """
    step = max(1, min(replicates, _CELLS // max(n_classes, width, 1)))
    with stage("resampling", replicates) as part:
        for start in range(0, replicates, step):
            size = (min(step, replicates - start), -(-n_classes // 64))
            words = rng.integers(0, 2**64, size=size, dtype=np.uint64).astype("<u8", copy=False)
            bits = np.unpackbits(words.view(np.uint8), axis=1, count=n_classes, bitorder="little")
            yield np.multiply(bits, 2.0)
            part.add(size[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratio:
    """A statistic ``sum(totals) / sum(counts)`` over classes, such as a mean over queries."""

    totals: Floats
    """(C,) total of each class, or of each cell of crossed units."""
    counts: Floats
    """(C,) count of each."""
    bounds: tuple[float, float]
    """The smallest and largest possible value of the statistic."""
    kinds: Codes | None = None
    """(C, K) the units of each cell, of K crossed kinds; None: each entry is a unit."""
    class_bounds: tuple[float, float] | None = None
    """The smallest and largest mean that an unseen class could have: a query that was never found
    cannot be lost. None: ``bounds``."""
    n_classes: int | None = None
    """Resampled classes; None: those with a count."""
    harm: int = 0
    """The sign of a harmed class's total. 0: values are continuous, and no count of harmed classes
    bounds them."""


def ratio_of(
    classes: Codes,
    totals: Floats,
    counts: Floats,
    bounds: tuple[float, float],
    *,
    harm: int = 0,
    class_bounds: tuple[float, float] | None = None,
    n_classes: int | None = None,
) -> Ratio:
    """The ratio of totals (Q,) to counts (Q,) of queries.

    ``classes`` is (Q,) codes, or (Q, K) for K crossed kinds; the rest is as in ``Ratio``.
    """
    kinds, cell = unit_cells(classes)
    C = len(kinds)
    return Ratio(
        totals=np.bincount(cell, totals, minlength=C).astype(np.float64),
        counts=np.bincount(cell, counts, minlength=C).astype(np.float64),
        bounds=bounds,
        kinds=kinds if kinds.shape[1] > 1 else None,
        harm=harm,
        class_bounds=class_bounds,
        n_classes=n_classes,
    )


def query_ratio(  # noqa: PLR0917 - what a mean over queries is
    classes: Codes,
    values: Floats,
    has_match: Bools | Floats,
    bounds: tuple[float, float],
    harm: int,
    class_bounds: tuple[float, float] | None = None,
) -> Ratio:
    """The mean of the values (Q,) over queries with a match, as a ratio of sums by class.

    ``classes`` is (Q,), or (Q, K) for units that cross. ``has_match`` (Q,) may hold weights.
    """
    weights = has_match.astype(np.float64)
    return ratio_of(
        classes, values * weights, weights, bounds, harm=harm, class_bounds=class_bounds
    )


def hit_change(
    classes: Codes, before: Bools, after: Bools, has_match: Bools | Floats | None = None
) -> Ratio:
    """The change of a hit rate from one model to the other on the same queries, in [-1, 1].

    The comparison is paired: each query's difference is summed over its class and resampled. A
    class that loses more queries than it wins is harmed. ``before`` and ``after`` (Q,) are hits
    with either model or gallery; the rest is as in ``query_ratio``, ``has_match`` None for all.

    Raises:
        InputError: different lengths.
    """
    weights = np.ones(len(classes)) if has_match is None else has_match.astype(np.float64)
    if not len(classes) == len(before) == len(after) == len(weights):
        raise InputError(
            f"a change of hits needs the same queries, got {len(classes)} classes, {len(before)} "
            f"outcomes before, {len(after)} after and {len(weights)} has_match"
        )
    change = after.astype(np.float64) - before
    rate = float((before * weights).sum() / weights.sum()) if weights.any() else 0.0
    return query_ratio(classes, change, weights, (-1.0, 1.0), -1, (-rate, 1.0 - rate))


def estimate_ratios(
    ratios: Sequence[Ratio], replicates: int, rng: np.random.Generator
) -> list[Estimate]:
    """Estimates of statistics of the same C classes, from the same replicates.

    Raises:
        InputError: statistics of different numbers of classes, or fewer than one replicate.
    """
    if not ratios:
        return []
    C = len(ratios[0].totals)
    if any(len(part) != C for ratio in ratios for part in (ratio.totals, ratio.counts)):
        raise InputError("the statistics are of different numbers of classes")
    _check_replicates(replicates)
    kinds = np.arange(C)[:, None] if ratios[0].kinds is None else ratios[0].kinds
    sets = unit_sets(kinds)
    totals = np.stack([ratio.totals for ratio in ratios], axis=1).astype(np.float64)
    counts = np.stack([ratio.counts for ratio in ratios], axis=1).astype(np.float64)
    values = _quotient(totals.sum(axis=0), counts.sum(axis=0))
    drawn = [_replicates(units, totals, counts, replicates, rng) for units in kinds.T]
    if len(drawn) > 1:
        residuals = totals - np.nan_to_num(values) * counts
        scale = np.array([_scale(sets, residual) for residual in residuals.T])
        drawn = [values + scale * sum(draws - values for draws in drawn)]
    return [
        _ratio_estimate(ratio, values[s], drawn[0][:, s], kinds, sets)
        for s, ratio in enumerate(ratios)
    ]


def estimate_ratio(ratio: Ratio, replicates: int, rng: np.random.Generator) -> Estimate:
    """The estimate of one statistic, as ``estimate_ratios``."""
    return estimate_ratios([ratio], replicates, rng)[0]


def _replicates(
    units: Codes, totals: Floats, counts: Floats, replicates: int, rng: np.random.Generator
) -> Floats:
    """(B, S) statistics of half-samples of the units (C,) of one kind."""
    n = int(units.max(initial=-1)) + 1
    if n < len(units):  # cells of several kinds of units
        totals, counts = (
            np.stack([_sums(units, column) for column in part.T], axis=1)
            for part in (totals, counts)
        )
    return np.concatenate(
        [_quotient(W @ totals, W @ counts) for W in half_samples(n, replicates, rng)]
    )


def _scale(sets: Sequence[UnitSet], residuals: Floats) -> float:
    """The factor from the summed draws of each kind alone to the scatter of the crossed kinds."""
    second, _, alone = crossed_moments(sets, residuals)
    return float(np.sqrt(second / alone.sum())) if alone.sum() > 0 else 1.0


def _ratio_estimate(
    ratio: Ratio, value: float, drawn: Floats, kinds: Codes, sets: Sequence[UnitSet]
) -> Estimate:
    """The estimate of one statistic from its draws (B,)."""
    totals, counts = ratio.totals.astype(np.float64), ratio.counts.astype(np.float64)
    by_kind = [(_sums(units, totals), _sums(units, counts)) for units in kinds.T]
    n_units = min(int((n > 0).sum()) for _, n in by_kind)
    rare = [bound for t, n in by_kind if ratio.harm and (bound := rare_change_bound(t, n))]
    estimate = replace(
        _estimate(value, drawn, n_units, ratio.bounds, rare),
        n_classes=n_units if ratio.n_classes is None else ratio.n_classes,
    )
    one_sign = not totals.min(initial=0) < 0 < totals.max(initial=0)
    if rare or not (ratio.harm or one_sign) or not counts.sum():
        return estimate
    # If values are continuous and harm is not counted, no unseen unit is assumed.
    size = float(counts.sum()) / n_units if ratio.harm else 0.0
    low, high = (
        skew_correction(totals, counts, sets, size=size, worst=worst)
        for worst in ratio.class_bounds or ratio.bounds
    )
    return replace(estimate, skew_low=low, skew_high=high)


def _sums(units: Codes, values: Floats) -> Floats:
    """Sums of the values (C,) by unit."""
    return np.bincount(units, values).astype(np.float64)


def estimate_same(
    sums: ClassSums | QuerySums,
    replicates: int,
    rng: np.random.Generator,
    classes: Codes | None = None,
) -> Estimate:
    """The mean over same-class pairs of the cosine, or of its change, depending on ``sums``.

    For sums by query, ``classes`` (Q,) or (Q, K) is what is resampled; None: each query.
    """
    units = None if isinstance(sums, ClassSums) else classes
    return _estimate_mean(*sums.same, units, replicates, rng)


def _estimate_mean(
    totals: Floats, counts: Codes, units: Codes | None, replicates: int, rng: np.random.Generator
) -> Estimate:
    """The mean cosine from sums by class or query; ``units`` None: each entry is a unit."""
    units = np.arange(len(counts)) if units is None else units
    ratio = ratio_of(units, totals, counts.astype(np.float64), (-2.0, 2.0))
    return estimate_ratio(ratio, replicates, rng)


def estimate_diff(
    sums: ClassSums | QuerySums,
    replicates: int,
    rng: np.random.Generator,
    classes: Codes | None = None,
) -> Estimate:
    """The mean over different-class pairs of the cosine, or of its change, in O(B C D).

    A class is resampled with its queries and its gallery rows, so a replicate weighs the pairs of
    classes c and c' by w_c w_c'. Gallery rows of classes without a query keep the weight 1. For
    sums by query the gallery is fixed, and ``classes`` is as in ``estimate_same``.
    """
    if isinstance(sums, QuerySums):
        return _estimate_mean(*sums.diff, classes, replicates, rng)
    _check_replicates(replicates)
    nq, ng = sums.n_queries.astype(np.float64), sums.n_gallery.astype(np.float64)
    inner = np.einsum("cd,cd->c", sums.queries, sums.gallery)
    pairs = nq * ng
    first, second = sums.excluded_diff_classes.T
    drawn = []
    for W in half_samples(len(nq), replicates, rng, width=sums.queries.shape[1]):
        total = np.einsum("bd,bd->b", W @ sums.queries, W @ sums.gallery + sums.other)
        total -= W**2 @ inner
        count = (W @ nq) * (W @ ng + sums.n_other) - W**2 @ pairs
        step = max(1, _CELLS // max(len(W), 1))
        for start in range(0, len(first), step):
            part = slice(start, start + step)
            weights = W[:, first[part]] * np.where(second[part] < 0, 1.0, W[:, second[part]])
            total -= weights @ sums.excluded_diff[part]
            count -= weights.sum(axis=1)
        drawn.append(_quotient(total, count))
    means = sums.means()
    return _estimate(means.cos_diff, np.concatenate(drawn), len(nq), (-2.0, 2.0))


def estimate_pairs(
    values: Floats,
    first: Codes,
    second: Codes,
    replicates: int,
    rng: np.random.Generator,
    *,
    harm: int = 0,
) -> Estimate:
    """The mean of (P,) values of pairs between classes ``first`` and ``second``, codes from 0.

    A pair of classes a and b weighs w_a w_b, or w_a if a = b: Owen's pigeonhole bootstrap (Annals
    of Applied Statistics 1, 2007), which is conservative if hardly two pairs share a class.
    ``harm`` is as in ``Ratio``, counted by the first class, with values from -1 to 1. Codes (P, K)
    are of K kinds: each is resampled alone and the deviations are added, which is conservative if
    two pairs share units of both kinds.
    """
    _check_replicates(replicates)
    ends = [codes[:, None] if codes.ndim == 1 else codes for codes in (first, second)]
    value = float(values.mean()) if len(values) else float("nan")
    drawn = np.zeros(replicates)
    bounds = (-1.0, 1.0) if harm else (-2.0, 2.0)
    n_classes: list[int] = []
    rare: list[RareChangeBound] = []
    for a, b in zip(ends[0].T, ends[1].T, strict=True):
        C = int(max(a.max(initial=-1), b.max(initial=-1))) + 1
        n_classes.append(len(np.union1d(a, b)))
        drawn += _pair_replicates(values, a, b, half_samples(C, replicates, rng)) - value
        if harm:
            bound = rare_change_bound(_sums(a, values), _sums(a, np.ones(len(a))))
            rare += [bound] if bound else []
    return _estimate(value, value + drawn, min(n_classes), bounds, rare)


def _pair_replicates(
    values: Floats, first: Codes, second: Codes, weights: Iterator[Floats]
) -> Floats:
    """(B,) means of the values (P,) of pairs of units, one for each row of weights (B, C)."""
    one_class = first == second
    drawn = []
    for W in weights:
        step = max(1, _CELLS // max(len(values), 1))
        for start in range(0, len(W), step):
            w = W[start : start + step]
            weights_of_pairs = w[:, first] * np.where(one_class, 1.0, w[:, second])
            drawn.append(_quotient(weights_of_pairs @ values, weights_of_pairs.sum(axis=1)))
    return np.concatenate(drawn)


def _estimate(
    value: float,
    drawn: Floats,
    n_classes: int,
    bounds: tuple[float, float],
    rare: Sequence[RareChangeBound] = (),
) -> Estimate:
    """The estimate with these replicates, NaN if empty; ``rare`` has a bound per kind of unit."""
    empty = np.isnan(drawn)
    return Estimate(
        value=float(value),
        replicates=np.sort(np.where(empty, -np.inf, drawn)),
        n_empty=int(empty.sum()),
        n_classes=n_classes,
        min_p=0.5**n_classes,
        bounds=bounds,
        rare=min(rare, key=lambda bound: bound.n, default=None),
    )


def _check_replicates(replicates: int) -> None:
    if replicates < 1:
        raise InputError(f"at least one replicate is needed, got {replicates}")


def _quotient(total: Floats, count: Floats) -> Floats:
    """``total / count``, NaN if the count is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)
