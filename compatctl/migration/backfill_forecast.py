"""Forecast from few passes at which shares a backfill loses, before most rows are embedded.

The query model embeds a sample: some rows at random, and all rows of some of the held-out queries'
classes. These queries then search the whole gallery at every share of the backfill, in its order.
Rows that stay have their stored vectors. Of rows that are replaced and were not embedded, the
forecast takes how many would outrank a query's best match from the scores of the random rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from compatctl.core.arrays import Bools, Codes, Floats, Rows, Scores, Vectors
from compatctl.core.hash_order import hash_key
from compatctl.core.nearest import exact_search_pieces, row_pieces
from compatctl.core.policy import Policy
from compatctl.core.resampling import estimate_ratio, ratio_of
from compatctl.core.sampling_units import count_units
from compatctl.data import Dataset
from compatctl.errors import UsageError
from compatctl.evaluation.adaptive_resampling import sampling
from compatctl.evaluation.exact_retrieval import evaluate_neighbours
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.manifest import Catalog
from compatctl.migration.backfill_selection import ALTERNATIVE, SHARES_BETWEEN, BackfillTarget


@dataclass(frozen=True, kw_only=True)
class ForecastPoint:
    """``hit_rate`` in [0, 1] where the query model embedded this ``share`` of all rows.

    ``gain`` is over the gallery as it is, with its interval ``low`` to ``high`` at the policy's
    level.
    """

    share: float
    hit_rate: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The ``curve`` of hit@``hit_at``, from the present share on.

    The query model embedded ``passes`` rows for it. ``n_queries`` held-out queries of ``n_classes``
    were measured: those whose matches were all embedded.
    """

    passes: int
    n_queries: int
    n_classes: int
    hit_at: int
    curve: tuple[ForecastPoint, ...]

    @property
    def dips(self) -> tuple[ForecastPoint, ...]:
        """The points below the start."""
        return tuple(point for point in self.curve if point.gain < 0.0)

    @property
    def gains_from(self) -> float | None:
        """The least share from which on every point gains; None: the last one does not."""
        share = None
        for point in reversed(self.curve[1:]):
            if point.gain <= 0.0:
                break
            share = point.share
        return share

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where the hit rate is forecast below the start, and from which share on it gains."""
        if not self.dips:
            return ()
        worst = min(self.dips, key=lambda point: point.gain)
        shares = ", ".join(f"{point.share:.0%}" for point in self.dips)
        gains = (
            "no share is forecast to gain"
            if self.gains_from is None
            else f"the least share above which it is forecast to gain is {self.gains_from:.0%}"
        )
        return (
            f"hit@{self.hit_at} is forecast to fall below the start at {shares} (by "
            f"{-worst.gain:.4f} at {worst.share:.0%}); {gains}; {ALTERNATIVE}",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """When a backfill replaces each row: at which share of the query model's rows, of all.

    ``replaced_at`` (N,) is 0 for rows that the model embedded already, and infinite for rows that
    the data has no image of. ``first`` and ``last`` are the present and the largest share.
    """

    replaced_at: Floats
    first: float
    last: float

    @classmethod
    def of(cls, target: BackfillTarget, catalog: Catalog, data: Dataset) -> Self:
        """The schedule of rows in the target's order."""
        shares = np.full(len(catalog), np.inf)
        shares[target.have] = 0.0
        rows = [row for row in target.order.tolist() if catalog.ids[row] in data.row_of]
        present = int(target.have.sum())
        shares[rows] = (present + 1 + np.arange(len(rows))) / len(catalog)
        first, last = (count / len(catalog) for count in (present, present + len(rows)))
        return cls(replaced_at=shares, first=first, last=last)

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares that are forecast after the present one."""
        between = tuple(share for share in SHARES_BETWEEN if self.first < share < self.last)
        return (*between, self.last) if self.last > self.first else ()


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleRows:
    """Which rows are embedded for a forecast.

    ``rows`` (n,) ascending. ``at_random`` (r,) of them are the first by the hash of the id, and
    stand for all others. ``queries`` (Q,) marks those all of whose matches with an image are in.
    """

    rows: Rows
    at_random: Rows
    queries: Bools

    @classmethod
    def choose(cls, truth: GroundTruth, ids: Sequence[str], available: Bools, size: int) -> Self:
        """About ``size`` of the ``available`` (N,) rows: half at random, half whole classes.

        Raises:
            UsageError: relevance is judged pair by pair, so that there are no classes.
        """
        if truth.judged is not None:
            raise UsageError(
                "--forecast samples classes, and gate.qrels says what is relevant pair by pair",
                tip="compatctl backfill --dry-run measures every share with the judgments",
            )
        rows, has_match = np.flatnonzero(available), truth.has_match()
        if len(rows) <= size:
            return cls(rows=rows, at_random=rows, queries=has_match)
        by_hash = sorted(rows.tolist(), key=lambda row: hash_key(ids[row]))
        at_random = np.sort(np.array(by_hash[: size // 2], np.int64))
        labels, counts = np.unique(truth.gallery_labels[rows], return_counts=True)
        size_of = dict(zip(labels.tolist(), counts.tolist(), strict=True))
        left, taken = size - len(at_random), []
        for label in np.random.default_rng(0).permutation(np.unique(truth.query_labels[has_match])):
            if (mates := size_of.get(int(label), 0)) <= left:
                left -= mates
                taken.append(label)
        chosen = available & np.isin(truth.gallery_labels, taken)
        chosen[at_random] = True
        queries = has_match & np.isin(truth.query_labels, taken)
        return cls(rows=np.flatnonzero(chosen), at_random=at_random, queries=queries)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """The queries (Q, D) that a forecast measures, with their ``truth`` in the whole gallery, whose
    vectors are ``stored`` (N, D).

    The query model's vectors ``new`` (n, D) are of ``rows`` (n,), ascending; those of ``at_random``
    (r,) among them stand for the vectors of all other rows.
    """

    queries: Vectors
    truth: GroundTruth
    stored: Vectors
    rows: Rows
    new: Vectors
    at_random: Rows

    @classmethod
    def of(
        cls,
        chosen: SampleRows,
        truth: GroundTruth,
        queries: Vectors,
        stored: Vectors,
        *,
        embedded: Rows,
        features: Vectors,
        missing: Rows,
    ) -> Self:
        """The sample of a gallery whose vectors are ``stored`` (N, D), and the ``queries`` (Q, D)
        that are measured, with their ``truth`` in it.

        The query model's ``features`` (m, D) are of the rows ``embedded`` (m,), ascending. Rows
        ``missing`` have an image that does not decode; the other chosen ones are that model's own.
        """
        rows = np.setdiff1d(chosen.rows, missing)
        new = stored[rows]
        new[np.searchsorted(rows, embedded)] = features
        return cls(
            queries=queries,
            truth=truth,
            stored=stored,
            rows=rows,
            new=new,
            at_random=np.setdiff1d(chosen.at_random, missing),
        )

    def first_hits(self, schedule: Schedule, share: float, k: int) -> Floats:
        """(Q,) the probability of a hit among the first k where the query model embedded a share.

        Rows that stay have their stored vectors, sampled ones their new vectors. Rows that are
        replaced and not in the sample would score above a query's best match as often as the random
        ones do, by ``tail``: their number is then a Poisson variable.
        """
        replaced = schedule.replaced_at <= share + 1e-9
        unknown = replaced & (schedule.replaced_at > 0.0)
        unknown[self.rows] = False
        searched = np.flatnonzero(~unknown)
        gallery = self.stored.copy()
        fresh = replaced[self.rows]
        gallery[self.rows[fresh]] = self.new[fresh]
        truth = self.truth.select_rows(searched)
        pieces = row_pieces(gallery, searched)
        nearest = exact_search_pieces(self.queries, pieces, k, truth.self_row, truth.ignored)
        first = evaluate_neighbours(truth, nearest, (k,), 1).first_hit
        hit = first <= k
        score = nearest.scores[np.arange(len(first)), np.where(hit, first - 1, 0)]
        expected = unknown.sum() * self._tail(score)
        return np.where(hit, _poisson_cdf(k - np.where(hit, first, k), expected), 0.0)

    def _tail(self, scores: Scores) -> Floats:
        """(Q,) the share of other classes' new rows that score above each query's ``scores`` (Q,).

        Scores are standardised by each query's own mean and deviation and then pooled over the
        queries, so that shares far below one row of the sample are seen.
        """
        mean, deviation, pooled = self._scores_at_random
        above = np.searchsorted(pooled, (scores - mean) / deviation, side="right")
        return 1.0 - above / max(1, len(pooled))

    @cached_property
    def _scores_at_random(self) -> tuple[Floats, Floats, Floats]:
        """(Q,) means and deviations of the scores of random rows of other classes, and all scores,
        standardised, ascending."""
        rows = self.at_random
        scores = (self.queries @ self.new[np.searchsorted(self.rows, rows)].T).astype(np.float64)
        other = self.truth.query_labels[:, None] != self.truth.gallery_labels[rows]
        count = np.maximum(1, other.sum(axis=1))
        mean = np.where(other, scores, 0.0).sum(axis=1) / count
        squares = np.where(other, (scores - mean[:, None]) ** 2, 0.0).sum(axis=1) / count
        deviation = np.sqrt(np.maximum(squares, 1e-12))
        pooled = np.sort(((scores - mean[:, None]) / deviation[:, None])[other])
        return mean, deviation, pooled


def forecast(sample: Sample, schedule: Schedule, policy: Policy) -> Forecast:
    """Hit rate of the sample's queries at each share of the schedule."""
    k, resampling = policy.hit_at, sampling(policy, 0, 0, 0)
    before = sample.first_hits(schedule, schedule.first, k)
    start = float(before.mean())
    points = [ForecastPoint(share=schedule.first, hit_rate=start, gain=0.0, low=0.0, high=0.0)]
    for share in schedule.shares:
        after = sample.first_hits(schedule, share, k)
        ones = np.ones(len(after))
        ratio = ratio_of(sample.truth.classes, after - before, ones, (-1.0, 1.0))
        estimate = estimate_ratio(ratio, resampling.replicates, resampling.draw())
        low, high = estimate.interval(1 - policy.alpha)
        hit_rate = float(after.mean())
        points.append(
            ForecastPoint(share=share, hit_rate=hit_rate, gain=hit_rate - start, low=low, high=high)
        )
    return Forecast(
        passes=int((schedule.replaced_at[sample.rows] > 0.0).sum()),
        n_queries=len(before),
        n_classes=count_units(sample.truth.classes, np.ones(len(before), bool)),
        hit_at=k,
        curve=tuple(points),
    )


def _poisson_cdf(most: Codes, expected: Floats) -> Floats:
    """(Q,) P(a Poisson variable is at most ``most`` (Q,)), given its ``expected`` value (Q,)."""
    term = np.exp(-expected)
    total = np.zeros(len(expected))
    for count in range(int(most.max(initial=0)) + 1):
        total += np.where(count <= most, term, 0.0)
        term = term * expected / (count + 1)
    return total
