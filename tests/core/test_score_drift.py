"""Drift of scores: the distance against a slow one, false alarms and power by simulation."""

from __future__ import annotations

import numpy as np

from compatctl.core.score_drift import LIMIT, WINDOW, ScoreDrift, ks_distance


def test_the_distance_is_that_of_a_slow_count() -> None:
    """The largest difference of the shares at or below each value, with ties."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 12, 30) / 12, rng.integers(0, 15, 40) / 12
        slow = max(
            abs(
                sum(x <= value for x in first) / len(first)
                - sum(x <= value for x in second) / len(second)
            )
            for value in [*first, *second]
        )
        assert abs(ks_distance(first, second) - slow) < 1e-12


def _run(draw: np.ndarray) -> ScoreDrift:
    drift = ScoreDrift()
    for score in draw:
        drift.add(float(score))
    return drift


def test_there_is_no_alarm_without_a_change_and_none_before_two_windows() -> None:
    """In 300 runs of four windows of one distribution; nan does not count."""
    rng = np.random.default_rng(1)
    early = _run(rng.normal(0.7, 0.1, 2 * WINDOW - 1))
    early.add(float("nan"))
    assert early.distance is None
    assert not early.has_drifted
    runs = [_run(rng.normal(0.7, 0.1, 4 * WINDOW)) for _ in range(300)]
    assert not any(run.has_drifted for run in runs)
    assert max(run.distance or 1.0 for run in runs) < LIMIT


def test_a_change_of_two_thirds_of_a_deviation_is_an_alarm() -> None:
    """Its distance is .26; at least 95 of 100 such changes are seen one window later."""
    rng = np.random.default_rng(2)
    seen = 0
    for _ in range(100):
        before, after = rng.normal(0.7, 0.1, WINDOW), rng.normal(0.7 - 0.0667, 0.1, WINDOW)
        seen += _run(np.concatenate([before, after])).has_drifted
    assert seen >= 95
