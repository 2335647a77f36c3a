"""How sure an estimate is: resampling of classes, and what it says of a threshold.

Items of one class are not independent, so the class is what is drawn. A replicate gives every class
the weight 0 or 2 by the toss of a coin and keeps the items of a drawn class together: the bootstrap
with half-sampling weights, which are exchangeable and have mean and variance 1 (Praestgaard and
Wellner, Annals of Probability 21, 1993). Its percentile interval is Hartigan's (JASA 64, 1969): for
independent contributions that are symmetric about the truth it is exact for any number of classes,
where the percentile, BCa and studentised intervals of the multinomial bootstrap are too short for
few classes or unequal sizes. Drawing items within a drawn class besides would count the scatter
within classes twice (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8).

A replicate re-weights class sums and per-query outcomes; no search runs again. Both models are in
one replicate with the same weights: all comparisons are paired. The gallery is taken as it is.

Shapes: ``C`` classes, ``B`` replicates, ``D`` dimensions, ``S`` statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compatctl.core.arrays import Bools, Codes, Floats
from compatctl.core.class_sums import ClassSums, QuerySums
from compatctl.core.estimate import SYMMETRIC, Estimate, Rare, Skew
from compatctl.errors import InputError

_CELLS = 2**22
"""Weights held at once: 32 MiB of float64."""

_FEW = 5
"""Half-samples leave five classes out with probability 1/32, more than an interval of 95% may: with
no more classes than this that changed at all, the binomial bounds what was not seen."""


def half_samples(
    n_classes: int, replicates: int, rng: np.random.Generator, *, width: int = 1
) -> Iterator[Floats]:
    """(b, C) float64 weights, 0 or 2, in blocks that add up to ``replicates`` rows.

    ``width``: columns of what the caller makes of each row; blocks shrink until that fits too.
    """
    step = max(1, min(replicates, _CELLS // max(n_classes, width, 1)))
    for start in range(0, replicates, step):
        size = (min(step, replicates - start), -(-n_classes // 64))
        words = rng.integers(0, 2**64, size=size, dtype=np.uint64).astype("<u8", copy=False)
        bits = np.unpackbits(words.view(np.uint8), axis=1, count=n_classes, bitorder="little")
        yield np.multiply(bits, 2.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratio:
    """A statistic ``sum of totals / sum of counts`` over classes, such as a mean over queries."""

    totals: Floats
    """(C,) what each class adds up to."""
    counts: Floats
    """(C,) over how many."""
    bounds: tuple[float, float]
    n_classes: int | None = None
    """Classes that were drawn; None: those with a count."""
    harm: int = 0
    """-1: a class with a negative total is harmed; 1: one with a positive; 0: values are continuous
    and no count of harmed classes bounds them."""


def class_totals(classes: Codes, values: Floats) -> Floats:
    """(C,) sums of the values (Q,) of each class, by the order of the codes (Q,), which are any."""
    _, at = np.unique(classes, return_inverse=True)
    return np.bincount(at, values).astype(np.float64)


def query_ratio(
    classes: Codes, values: Floats, counted: Bools, bounds: tuple[float, float], harm: int
) -> Ratio:
    """The mean of the values (Q,) of the counted queries (Q,) bool, as a ratio over the C classes
    of ``classes`` (Q,); ``bounds`` and ``harm`` as in ``Ratio``."""
    return Ratio(
        totals=class_totals(classes, values * counted),
        counts=class_totals(classes, counted.astype(np.float64)),
        bounds=bounds,
        harm=harm,
    )


def hit_change(classes: Codes, before: Bools, after: Bools, counted: Bools | None = None) -> Ratio:
    """The change of a hit rate from one model to the other on the same queries, in [-1, 1].

    The comparison is paired: what is summed over a class, and so resampled, is each query's own
    difference. A class that loses more queries than it wins is harmed.

    Args:
        classes: (Q,) int64 codes of the queries' classes, any; C of them differ.
        before: (Q,) bool, the query found an item of its class.
        after: (Q,) bool, the same query did with the other model, or on the other gallery.
        counted: (Q,) bool, ``Retrieval.counted`` or a part of it; None for all queries.

    Raises:
        InputError: different lengths.
    """
    kept = np.ones(len(classes), dtype=bool) if counted is None else counted
    if not len(classes) == len(before) == len(after) == len(kept):
        raise InputError(
            f"a change of hits is of the same queries, got {len(classes)} classes, {len(before)} "
            f"outcomes before, {len(after)} after and {len(kept)} counted"
        )
    return query_ratio(classes, after.astype(np.float64) - before, kept, (-1.0, 1.0), -1)


def estimate_ratios(
    ratios: Sequence[Ratio], replicates: int, rng: np.random.Generator
) -> list[Estimate]:
    """Estimates of statistics of the same C classes, by the same replicates.

    Raises:
        InputError: statistics of different numbers of classes, or fewer than one replicate.
    """
    if not ratios:
        return []
    C = len(ratios[0].totals)
    if any(len(part) != C for one in ratios for part in (one.totals, one.counts)):
        raise InputError("the statistics are of different numbers of classes")
    _check_replicates(replicates)
    totals = np.stack([one.totals for one in ratios], axis=1).astype(np.float64)
    counts = np.stack([one.counts for one in ratios], axis=1).astype(np.float64)
    drawn = np.concatenate(
        [_quotient(W @ totals, W @ counts) for W in half_samples(C, replicates, rng)]
    )
    whole = _quotient(totals.sum(axis=0), counts.sum(axis=0))
    return [
        replace(
            _estimate(whole[s], drawn[:, s], _classes(one), one.bounds, _rare(one)),
            least_p=0.5 ** int((one.counts > 0).sum()),
            skew=_skew(one),
        )
        for s, one in enumerate(ratios)
    ]


def estimate_same(
    sums: ClassSums | QuerySums, replicates: int, rng: np.random.Generator
) -> Estimate:
    """The mean over same-class pairs of the cosine, or of its change: ``sums`` says of what."""
    totals, counts = sums.same
    ratio = Ratio(totals=totals, counts=counts.astype(np.float64), bounds=(-2.0, 2.0))
    return estimate_ratios([ratio], replicates, rng)[0]


def estimate_diff(
    sums: ClassSums | QuerySums, replicates: int, rng: np.random.Generator
) -> Estimate:
    """The mean over different-class pairs of the cosine, or of its change.

    A class is drawn with its queries and its gallery rows, so a replicate weighs the pairs of
    classes c and c' by w_c w_c'; gallery rows of other classes keep the weight 1. Where
    relevance was judged, a query is a class and the gallery stays. In O(B C D).
    """
    if isinstance(sums, QuerySums):
        totals, counts = sums.diff
        one = Ratio(totals=totals, counts=counts.astype(np.float64), bounds=(-2.0, 2.0))
        return estimate_ratios([one], replicates, rng)[0]
    _check_replicates(replicates)
    nq, ng = sums.n_queries.astype(np.float64), sums.n_gallery.astype(np.float64)
    inner = np.einsum("cd,cd->c", sums.queries, sums.gallery)
    pairs = nq * ng
    first, second = sums.own_diff_at.T
    drawn = []
    for W in half_samples(len(nq), replicates, rng, width=sums.queries.shape[1]):
        total = np.einsum("bd,bd->b", W @ sums.queries, W @ sums.gallery + sums.other)
        total -= W**2 @ inner
        count = (W @ nq) * (W @ ng + sums.n_other) - W**2 @ pairs
        step = max(1, _CELLS // max(len(W), 1))
        for start in range(0, len(first), step):
            part = slice(start, start + step)
            theirs = np.where(second[part] < 0, 1.0, W[:, second[part]])
            weights = W[:, first[part]] * theirs
            total -= weights @ sums.own_diff[part]
            count -= weights.sum(axis=1)
        drawn.append(_quotient(total, count))
    means = sums.means()
    return _estimate(means.cos_diff, np.concatenate(drawn), len(nq), (-2.0, 2.0), None)


def estimate_pairs(
    values: Floats,
    first: Codes,
    second: Codes,
    replicates: int,
    rng: np.random.Generator,
    *,
    harm: int = 0,
) -> Estimate:
    """The mean of (P,) values of pairs, each between two classes given as codes from 0.

    A pair weighs w_a w_b, and w_a where both items are of class a: Owen's pigeonhole bootstrap
    (Annals of Applied Statistics 1, 2007), too wide where hardly two pairs share a class. ``harm``
    as in ``Ratio``, counted by the first class, with values from -1 to 1.
    """
    _check_replicates(replicates)
    C = int(max(first.max(initial=-1), second.max(initial=-1))) + 1
    one_class = first == second
    drawn = []
    for W in half_samples(C, replicates, rng):
        step = max(1, _CELLS // max(len(values), 1))
        for start in range(0, len(W), step):
            w = W[start : start + step]
            weights = w[:, first] * np.where(one_class, 1.0, w[:, second])
            drawn.append(_quotient(weights @ values, weights.sum(axis=1)))
    whole = float(values.mean()) if len(values) else float("nan")
    bounds = (-1.0, 1.0) if harm else (-2.0, 2.0)
    by_class = Ratio(
        totals=np.bincount(first, values, minlength=C).astype(np.float64),
        counts=np.bincount(first, minlength=C).astype(np.float64),
        bounds=bounds,
        harm=harm,
    )
    n_classes = len(np.union1d(first, second))
    return _estimate(whole, np.concatenate(drawn), n_classes, bounds, _rare(by_class))


def _estimate(
    value: float,
    drawn: Floats,
    n_classes: int,
    bounds: tuple[float, float],
    rare: Rare | None,
) -> Estimate:
    """One estimate of its replicates, which are NaN where they are empty."""
    empty = np.isnan(drawn)
    return Estimate(
        value=float(value),
        replicates=np.sort(np.where(empty, -np.inf, drawn)),
        n_empty=int(empty.sum()),
        n_classes=n_classes,
        least_p=0.5**n_classes,
        bounds=bounds,
        rare=rare,
    )


def _classes(ratio: Ratio) -> int:
    return int((ratio.counts > 0).sum()) if ratio.n_classes is None else ratio.n_classes


def _check_replicates(replicates: int) -> None:
    if replicates < 1:
        raise InputError(f"at least one replicate is needed, got {replicates}")


def _rare(ratio: Ratio) -> Rare | None:
    """Where few classes changed: how many of them for the worse, of Kish's effective number."""
    changed = int((ratio.totals != 0).sum())
    counts = np.asarray(ratio.counts, dtype=np.float64)
    if ratio.harm == 0 or changed > _FEW or counts.sum() == 0:
        return None
    fell, rose = int((ratio.totals < 0).sum()), int((ratio.totals > 0).sum())
    effective = int(counts.sum() ** 2 / (counts**2).sum())
    return Rare(fell=min(fell, effective), rose=min(rose, effective), n=effective)


def _skew(ratio: Ratio) -> Skew | None:
    """Where no class moved against the others, so that contributions cannot be symmetric."""
    total, counts = ratio.totals.sum(), ratio.counts.sum()
    if counts == 0 or _rare(ratio) or ratio.totals.min() < 0 < ratio.totals.max():
        return None
    beyond = ratio.totals - total / counts * ratio.counts
    scatter = float(np.sqrt((beyond**2).sum()))
    if scatter <= SYMMETRIC * abs(ratio.totals).sum():
        return None
    return Skew(error=scatter / counts, skewness=float(((beyond / scatter) ** 3).sum()))


def _quotient(total: Floats, count: Floats) -> Floats:
    """``total / count``, NaN where the count is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)
