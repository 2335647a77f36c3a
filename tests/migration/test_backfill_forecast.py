"""The forecast of a backfill on vectors of known quality, against loops and against the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from compatctl.core.arrays import Vectors, unit_rows
from compatctl.core.policy import Policy
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.migration.backfill_forecast import (
    Forecast,
    Sample,
    SampleRows,
    Schedule,
    _poisson_cdf,
    forecast,
)

CLASSES, EACH, DIM = 300, 4, 24
N = CLASSES * EACH
IDS = [f"g{n}" for n in range(N)]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A gallery's vectors by both models, and queries of every second class."""

    truth: GroundTruth
    old: Vectors
    new: Vectors
    queries: Vectors
    schedule: Schedule

    def forecast(self, size: int) -> Forecast:
        """The forecast from ``size`` rows."""
        chosen = SampleRows.choose(self.truth, IDS, np.isfinite(self.schedule.replaced_at), size)
        sample = Sample.of(
            chosen,
            self.truth.select_queries(chosen.queries),
            self.queries[chosen.queries],
            self.old,
            embedded=chosen.rows,
            features=self.new[chosen.rows],
            missing=np.zeros(0, np.int64),
        )
        return forecast(sample, self.schedule, Policy())


def case(shift: float, old_noise: float, seed: int = 0) -> Case:
    """Vectors around class centres. New vectors share a direction of size ``shift`` with the
    queries, so that they outrank old ones whatever their class."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLASSES, DIM))
    common = rng.standard_normal(DIM) * shift
    labels = np.repeat(np.arange(CLASSES), EACH)

    def rows(codes: np.ndarray, noise: float, extra: float | np.ndarray) -> Vectors:
        drawn = centres[codes] + noise * rng.standard_normal((len(codes), DIM)) + extra
        return unit_rows(drawn.astype(np.float32))

    wanted = np.repeat(np.arange(0, CLASSES, 2), 3)
    truth = GroundTruth.from_labels(
        query_ids=[f"q{n}" for n in range(len(wanted))],
        query_labels=[f"c{code}" for code in wanted],
        gallery_ids=IDS,
        gallery_labels=[f"c{code}" for code in labels],
    )
    replaced_at = (rng.permutation(N) + 1) / N
    return Case(
        truth=truth,
        old=rows(labels, old_noise, 0.0),
        new=rows(labels, 1.0, common),
        queries=rows(wanted, 1.0, common),
        schedule=Schedule(replaced_at=replaced_at, first=0.0, last=1.0),
    )


def test_with_every_row_the_curve_equals_loops() -> None:
    """Hit rate at every share, one query at a time."""
    gallery = case(0.8, 0.7)
    result = gallery.forecast(N)
    assert [point.share for point in result.curve] == [0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0]
    assert (result.passes, result.n_queries) == (N, len(gallery.queries))
    truth, replaced_at = gallery.truth, gallery.schedule.replaced_at
    for point in result.curve:
        mixed = np.where((replaced_at <= point.share)[:, None], gallery.new, gallery.old)
        first = [int(np.argmax(mixed @ query)) for query in gallery.queries]
        hits = truth.gallery_labels[first] == truth.query_labels
        assert point.hit_rate == pytest.approx(hits.mean())


def test_a_sample_keeps_the_classes_of_its_queries_whole() -> None:
    """Half at random, the rest all rows of some query classes; rows that cannot be embedded are
    never taken, and a large sample is everything."""
    truth, available = case(0.8, 0.7).truth, np.arange(N) % 17 > 0
    chosen = SampleRows.choose(truth, IDS, available, 200)
    assert 160 <= len(chosen.rows) <= 200
    assert len(chosen.at_random) == 100
    assert set(chosen.at_random) <= set(chosen.rows)
    assert available[chosen.rows].all()
    assert (np.diff(chosen.rows) > 0).all()
    for query in np.flatnonzero(chosen.queries):
        matches = np.flatnonzero((truth.gallery_labels == truth.query_labels[query]) & available)
        assert set(matches) <= set(chosen.rows)
    assert chosen.queries.sum() >= 3 * 100 // EACH * 0.8
    every = SampleRows.choose(truth, IDS, available, N)
    np.testing.assert_array_equal(every.rows, np.flatnonzero(available))
    assert every.queries.all()


@pytest.mark.parametrize(("shift", "old_noise"), [(0.8, 0.7), (1.2, 1.0), (1.5, 0.6)])
def test_a_sample_shows_where_the_whole_gallery_dips(shift: float, old_noise: float) -> None:
    """Of ten galleries, a quarter of the rows forecasts the whole gallery's gain inside of the
    interval in nine tenths, without much bias, and finds each dip that is shown there."""
    found, held, errors = [], [], []
    for seed in range(10):
        gallery = case(shift, old_noise, seed)
        whole, few = gallery.forecast(N), gallery.forecast(N // 4)
        assert few.passes <= N // 4
        dips = {point.share for point in few.dips}
        found += [point.share in dips for point in whole.curve if point.high < 0.0]
        for point, actual in zip(few.curve[1:], whole.curve[1:], strict=True):
            held.append(point.low <= actual.gain <= point.high)
            errors.append(point.gain - actual.gain)
    assert np.mean(found) > 0.9 if found else old_noise == 1.0
    assert np.mean(held) > 0.85
    assert abs(np.mean(errors)) < 0.04


def test_poisson_probabilities_are_those_of_a_loop() -> None:
    """P(at most m), also below 0 events and with none expected."""
    most, expected = np.array([-1, 0, 0, 3, 9]), np.array([1.0, 0.0, 2.5, 2.5, 40.0])
    slow = [
        sum(math.exp(-mean) * mean**count / math.factorial(count) for count in range(limit + 1))
        for limit, mean in zip(most.tolist(), expected.tolist(), strict=True)
    ]
    np.testing.assert_allclose(_poisson_cdf(most, expected), slow, rtol=1e-9)


def test_the_warning_names_the_dips_and_the_way_out() -> None:
    """Shares below the start, the deepest, and the least share from which every point gains."""
    result = case(1.5, 0.6).forecast(N)
    assert result.dips
    assert 0.0 < (result.gains_from or 0.0) <= 1.0
    assert f"{result.dips[0].share:.0%}" in result.warnings[0]
    least = f"the least share above which it is forecast to gain is {result.gains_from:.0%}"
    assert least in result.warnings[0]
    rising = replace(result, curve=tuple(replace(p, gain=p.share) for p in result.curve))
    assert (rising.warnings, rising.gains_from) == ((), 0.05)
    falling = replace(result, curve=tuple(replace(p, gain=-p.share) for p in result.curve))
    assert falling.gains_from is None
    assert "no share is forecast to gain" in falling.warnings[0]
