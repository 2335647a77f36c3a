"""The predicted power equals that of the gate in simulations."""

from __future__ import annotations

import numpy as np
import pytest

from compatctl.core.power import (
    HeldOutSet,
    PowerAssumptions,
    PowerTarget,
    min_detectable_gain,
    pass_probability,
    times_needed,
)
from compatctl.core.resampling import estimate_ratios, hit_change

ASKED = PowerTarget(limit=0.0, level=0.025, power=0.8)
RUNS = 200


def held_out(classes, size):
    """A set of equal classes."""
    labels = np.repeat(np.arange(classes), size)
    return HeldOutSet.from_codes(labels, ("class",), np.ones(len(labels), dtype=bool))


def passes(codes, gain, spread, flips, runs=RUNS):
    """Share of simulated verifications that pass, and the mean share of queries that change.

    ``spread``: of the effects of each kind of unit, uniform within it; old queries find a half.
    """
    rng = np.random.default_rng(7)
    passed = changed = 0.0
    for _ in range(runs):
        effect = gain + sum(
            rng.uniform(-s, s, column.max() + 1)[column]
            for s, column in zip(spread, codes.T, strict=True)
        )
        old = rng.random(len(codes)) < 0.5
        toss = rng.random(len(codes))
        lose, win = (2 * (flips + np.maximum(sign * effect, 0)) for sign in (-1, 1))
        new = np.where(old, toss >= lose, toss < win)
        estimate = estimate_ratios([hit_change(codes, old, new)], 999, rng)[0]
        passed += estimate.p_above(0.0) <= ASKED.level
        changed += (old != new).mean()
    return passed / runs, changed / runs


@pytest.mark.parametrize(
    ("classes", "size", "gain", "flips", "spread"),
    [
        (60, 5, 0.08, 0.1, 0.0),
        (100, 8, 0.05, 0.1, 0.2),
        (60, 20, 0.05, 0.08, 0.25),
        (100, 40, 0.025, 0.05, 0.1),
    ],
)
def test_the_promised_power_is_that_of_the_gate(classes, size, gain, flips, spread):
    """For few and many queries per class, alike or not, the power is within .1 of simulations."""
    codes = np.repeat(np.arange(classes), size)[:, None]
    actual, changed = passes(codes, gain, (spread,), flips)
    icc = spread**2 / 3 / (changed - gain**2)
    scatter = PowerAssumptions(changed=changed, icc={"class": icc}, old_hit_rate=0.5)
    assert pass_probability(held_out(classes, size), scatter, gain, ASKED) == pytest.approx(
        actual, abs=0.1
    )


def test_crossed_units_count_each():
    """If effects of classes and users add up, the power is that of both."""
    rng = np.random.default_rng(1)
    codes = np.stack([np.repeat(np.arange(80), 8), rng.integers(0, 40, 640)], axis=1)
    actual, changed = passes(codes, 0.08, (0.15, 0.15), 0.1)
    icc = dict.fromkeys(("class", "user"), 0.15**2 / 3 / (changed - 0.08**2))
    both = HeldOutSet.from_codes(codes, ("class", "user"), np.ones(640, dtype=bool))
    scatter = PowerAssumptions(changed=changed, icc=icc, old_hit_rate=0.5)
    assert pass_probability(both, scatter, 0.08, ASKED) == pytest.approx(actual, abs=0.1)
    alone = HeldOutSet.from_codes(codes[:, 0], ("class",), np.ones(640, dtype=bool))
    assert pass_probability(alone, scatter, 0.08, ASKED) > actual + 0.1


def test_what_is_needed_has_the_power():
    """At the minimum detectable gain and at the times needed, the pass probability is the power."""
    sample = held_out(80, 10)
    scatter = PowerAssumptions(changed=0.2, icc={"class": 0.1}, old_hit_rate=0.6)
    least = min_detectable_gain(sample, scatter, ASKED)
    assert 0 < least < 0.2
    assert pass_probability(sample, scatter, least, ASKED) == pytest.approx(0.8, abs=1e-6)
    for gain in (0.01, 0.02, 0.05):
        times = times_needed(sample, scatter, gain, ASKED)
        assert pass_probability(sample, scatter, gain, ASKED, times) == pytest.approx(0.8, abs=1e-6)
        assert (times < 1) == (gain > least)


def test_gains_that_no_set_can_show():
    """A gain above the share of changed queries, or above what is left to find, gives None."""
    sample = held_out(80, 10)
    few = PowerAssumptions(changed=0.02, icc={}, old_hit_rate=0.5)
    assert times_needed(sample, few, 0.03, ASKED) is None
    assert min_detectable_gain(held_out(5, 2), few, ASKED) is None
    assert (
        min_detectable_gain(sample, PowerAssumptions(changed=0.2, icc={}, old_hit_rate=1.0), ASKED)
        is None
    )
    none = HeldOutSet.from_codes(np.zeros(0, int), ("class",), np.zeros(0, bool))
    assert (none.n_queries, pass_probability(none, few, 0.01, ASKED)) == (0, 0.0)


def test_dependence_and_size_cost_power():
    """More queries per class help less if they are alike; unequal classes help less than equal
    ones."""
    scatter = [
        PowerAssumptions(changed=0.2, icc={"class": r}, old_hit_rate=0.5) for r in (0.0, 0.3)
    ]
    small, large = held_out(60, 5), held_out(60, 50)
    gained = [
        min_detectable_gain(small, s, ASKED) / min_detectable_gain(large, s, ASKED) for s in scatter
    ]
    assert gained[0] > 2
    assert 1.3 > gained[1] > 1
    sizes = np.append(np.ones(59, int), 241)
    unequal = HeldOutSet.from_codes(
        np.repeat(np.arange(60), sizes), ("class",), np.ones(300, dtype=bool)
    )
    assert unequal.kinds[0].size == pytest.approx((sizes**2).sum() / 300)
    assert unequal.design_effect({"class": 0.3}) > 10 * small.design_effect({"class": 0.3})
    assert pass_probability(unequal, scatter[1], 0.1, ASKED) < pass_probability(
        small, scatter[1], 0.1, ASKED
    )
