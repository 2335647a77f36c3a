"""The power law of misses: its line, and intervals that contain what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compatctl.core.power_law import (
    LEVEL,
    PowerLaw,
    compare_exponents,
    resampled_misses,
    student_quantile,
)

AMOUNTS = np.array([100.0, 200.0, 400.0])


def law(misses, amounts=AMOUNTS, spread=0.0):
    """A law through misses (P,) or (P, R), whose replicates scatter by ``spread``."""
    misses = np.asarray(misses, float).reshape(len(amounts), -1)
    noise = np.random.default_rng(0).standard_normal((500, len(amounts)))
    return PowerLaw(
        amounts=amounts,
        misses=misses,
        drawn=np.exp(np.log(misses).mean(axis=1) + spread * noise),
    )


def test_an_exact_law_is_found_with_no_doubt():
    """Exponent, prediction and amount are those of the law, and the intervals have no width."""
    exact = law(3.0 * AMOUNTS**-0.3)
    assert exact.exponent.value == pytest.approx(0.3)
    assert exact.exponent.high - exact.exponent.low < 1e-6
    assert exact.predict(800.0).value == pytest.approx(3.0 * 800.0**-0.3)
    target = 3.0 * 1000.0**-0.3
    needed = exact.amount_for(target, np.full(500, target))
    assert needed.value == pytest.approx(1000.0, rel=1e-6)
    assert needed.low == pytest.approx(needed.high, rel=1e-3)


@pytest.mark.parametrize("amounts", [AMOUNTS, np.array([5.0, 9.0, 31.0, 50.0])])
def test_the_line_is_that_of_least_squares(amounts):
    """The slope and the prediction equal numpy's on random misses of several runs."""
    misses = np.random.default_rng(1).uniform(0.2, 0.8, (len(amounts), 3))
    fitted = law(misses, amounts)
    slope, start = np.polyfit(np.log(amounts), np.log(misses).mean(axis=1), 1)
    assert fitted.exponent.value == pytest.approx(-slope)
    assert math.log(fitted.predict(7.0).value) == pytest.approx(
        min(0.0, start + slope * math.log(7.0))
    )


def test_misses_that_do_not_fall_cannot_tell_an_amount():
    """Where the interval of the exponent contains 0, no number of classes is named."""
    flat = law([0.5, 0.48, 0.5])
    assert not flat.falls
    assert flat.exponent.low < 0.0 < flat.exponent.high
    assert flat.amount_for(0.3, np.full(500, 0.3)) is None


def test_a_target_too_far_away_cannot_be_told():
    """An amount without an upper end is no answer, even where misses fall."""
    slow = law([0.5, 0.49, 0.481])
    assert slow.falls
    assert slow.amount_for(0.01, np.full(500, 0.01)) is None


def test_an_amount_may_have_no_upper_end():
    """Where a bend may end the fall, the amount has a lower end and no upper one."""
    bent = law(0.6 * np.exp(-0.2 * np.arange(3.0) + 0.01 * np.arange(3.0) ** 2))
    target = 0.6 * math.exp(-0.2 * 6)
    needed = bent.amount_for(target, np.full(500, target))
    assert needed.low < needed.value
    assert needed.high is None


def test_a_target_that_is_met_needs_no_more_than_was_tried():
    """The amount lies below the largest one."""
    steep = law([0.5, 0.4, 0.32])
    assert steep.amount_for(0.35, np.full(500, 0.35)).value < 400.0


@pytest.mark.parametrize(
    ("df", "quantile"), [(1, 3.0777), (2, 1.8856), (3, 1.6377), (4, 1.5332), (9, 1.3830)]
)
def test_the_quantiles_of_t_are_those_of_the_table(df, quantile):
    """The .9 quantiles of the published table."""
    assert student_quantile(0.9, df) == pytest.approx(quantile, abs=1e-4)


def test_replicates_weigh_whole_classes():
    """Each replicate is a mean over a half-sample: with one class missed, by an explicit loop."""
    classes = np.repeat(np.arange(6), 4)
    missed = np.stack([classes == 2, classes % 2 == 0], axis=1).astype(float)
    counted = classes != 5
    rng = np.random.default_rng(3)
    got = resampled_misses(classes, missed, counted, 64, np.random.default_rng(3))
    weights = rng.integers(0, 2**64, size=(64, 1), dtype=np.uint64)
    for row, word in zip(got, weights[:, 0], strict=True):
        kept = [c for c in range(5) if int(word) >> c & 1]
        for column, value in enumerate(row):
            queries = [q for q in range(len(classes)) if classes[q] in kept]
            expected = np.mean([missed[q, column] for q in queries]) if queries else 0.0
            assert value == pytest.approx(expected)


def _simulate(rng, *, runs, noise, bend, queries=90, points=3, steps=1):
    """Whether the interval of a prediction from n to 2n contains the true misses of one run.

    ``steps``: to 4n, 8n and so on.

    Classes of queries have their own difficulty, and a class that is easy is so at every amount.
    ``noise`` is a run's; ``bend`` curves the line of log misses.
    """
    x = np.arange(points + steps, dtype=float)
    b, start = rng.uniform(0.05, 0.3), rng.uniform(0.4, 0.8)
    mean = start * np.exp(-b * math.log(2) * x - bend * x**2)
    truth = mean[:, None] * np.exp(noise * rng.standard_normal((points + steps, runs)))
    difficulty = rng.uniform(0.0, 1.0, queries)
    chance = 2 * difficulty * np.minimum(truth[:points, :, None], 0.5)
    chance += np.maximum(truth[:points, :, None] - 0.5, 0.0) * 2 * (1 - difficulty)
    classes = np.repeat(np.arange(queries), 4)
    missed = rng.random((points, runs, len(classes))) < chance[:, :, classes].clip(0, 1)
    drawn = resampled_misses(
        classes,
        missed.mean(axis=1).T.astype(float),
        np.ones(len(classes), bool),
        200,
        rng,
    )
    amounts = 100.0 * 2.0 ** x[:points]
    fitted = PowerLaw(amounts=amounts, misses=missed.mean(axis=2), drawn=drawn)
    predicted = fitted.predict(100.0 * 2.0 ** x[-1])
    return predicted.low <= truth[-1, 0] <= predicted.high


@pytest.mark.parametrize(
    ("runs", "noise", "bend", "points"),
    [(1, 0.0, 0.0, 3), (1, 0.03, 0.0, 3), (2, 0.03, 0.0, 3), (1, 0.03, 0.02, 3), (2, 0.01, 0.02, 3),
     (3, 0.05, -0.01, 3), (2, 0.03, 0.01, 4)],
)  # fmt: skip
def test_a_prediction_at_twice_the_amount_holds_in_eight_of_ten_cases(runs, noise, bend, points):
    """The interval contains the truth as often as it says: with noise of queries, of runs, and
    where the law is not exact."""
    rng = np.random.default_rng(17)
    cases = 400
    held = sum(
        _simulate(rng, runs=runs, noise=noise, bend=bend, points=points) for _ in range(cases)
    )
    slack = 2 * math.sqrt(LEVEL * (1 - LEVEL) / cases)
    assert held / cases >= LEVEL - slack


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize(("noise", "bend"), [(0.0, 0.0), (0.03, 0.0), (0.01, 0.02), (0.01, -0.01)])
def test_a_prediction_far_away_holds_where_the_law_bends(steps, noise, bend):
    """At four and eight times the amount, with a law that is a line and one that is not."""
    rng, cases = np.random.default_rng(23), 250
    held = sum(_simulate(rng, runs=2, noise=noise, bend=bend, steps=steps) for _ in range(cases))
    slack = 2 * math.sqrt(LEVEL * (1 - LEVEL) / cases)
    assert held / cases >= LEVEL - slack


def test_the_bend_is_that_of_a_square():
    """Where misses bend and nothing else is in doubt, the interval ends at least at the parabola
    through the three points, from four times the amount on."""
    bent = law(0.6 * np.exp(-0.2 * np.arange(3.0) - 0.02 * np.arange(3.0) ** 2))
    for times, steps in ((4, 4.0), (16, 6.0)):
        true = 0.6 * math.exp(-0.2 * steps - 0.02 * steps**2)
        assert bent.predict(400.0 * times).low == pytest.approx(true, rel=1e-3)


def test_a_difference_of_exponents_is_found_as_often_as_its_level_says():
    """Of two equal laws, one is named the better in at most two of ten cases."""
    rng, wrong = np.random.default_rng(5), 0
    for _ in range(400):
        first, second = (
            law(0.6 * (AMOUNTS / 100) ** -0.2 * np.exp(0.03 * rng.standard_normal(3)))
            for _ in range(2)
        )
        gap = compare_exponents(first, second)
        wrong += not gap.low <= 0.0 <= gap.high
    assert wrong / 400 <= 1 - LEVEL + 0.04


@pytest.mark.parametrize("amounts", [[100.0, 200.0], [100.0, 100.0, 200.0], [0.0, 1.0, 2.0]])
def test_fewer_than_three_amounts_are_no_law(amounts):
    """Two points have no distance from a line, and say nothing of its error."""
    with pytest.raises(ValueError, match="at least 3"):
        law(np.full(len(amounts), 0.5), np.array(amounts))
