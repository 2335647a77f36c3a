"""Intervals cover the truth and verdicts err as rarely as they claim, in simulations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.common import dependence, simulate
from benchmarks.studies import coverage as benchmark
from compatctl.core.estimate import Estimate
from compatctl.core.policy import Policy

ALPHA = Policy().alpha
RUNS = 1000


def _gains(kind: str, classes: int, gain: float = 0.0) -> list[Estimate]:
    """Estimates of a hit gain; the stream is the cell's own."""
    rng = simulate.generator(1, f"{kind} {classes} {gain}")
    sizes = simulate.class_sizes(kind, (RUNS, classes), rng)
    return simulate.estimates(simulate.hit_changes(sizes, gain, rng), rng)


def _assert_covers(rates: list[Estimate], truth: float) -> None:
    """At least 95% of the intervals hold the truth, within three Monte-Carlo standard errors."""
    covered = simulate.covered(rates, truth)
    assert covered.coverage >= 0.95 - 3 * covered.error, covered


def _shrunk(rates: list[Estimate]) -> list[Estimate]:
    """The same estimates with replicates half as far away, and nothing that guards them."""
    return [
        replace(rate, replicates=(rate.value + rate.replicates) / 2, skew_low=None, skew_high=None)
        for rate in rates
    ]


@pytest.mark.parametrize("gain", [0.0, 0.1])
@pytest.mark.parametrize(("kind", "classes"), [("equal", 20), ("unequal", 20), ("heavy", 50)])
def test_intervals_of_a_gain_hold_the_truth(kind: str, classes: int, gain: float) -> None:
    """Few classes, unequal ones, and a few large ones among many small."""
    _assert_covers(_gains(kind, classes, gain), gain)


@pytest.mark.parametrize(("kind", "classes"), [("equal", 20), ("unequal", 20), ("heavy", 50)])
def test_intervals_that_are_too_short_are_caught(kind: str, classes: int) -> None:
    """With replicates at half the distance, the coverage assertion fails."""
    with pytest.raises(AssertionError, match="Coverage"):
        _assert_covers(_shrunk(_gains(kind, classes)), 0.0)


@pytest.mark.parametrize("classes", [20, 200])
def test_intervals_of_rare_flips_hold_the_truth(classes: int) -> None:
    """Two flips in 1,000 queries: most runs see none, and their interval is no point at 0."""
    rng = simulate.generator(1, f"flips {classes}")
    sizes = simulate.class_sizes("equal", (RUNS // 2, classes), rng)
    rates = simulate.estimates(simulate.flips(sizes, 0.002, rng), rng)
    _assert_covers(rates, 0.002)
    unguarded = [replace(rate, rare=None) for rate in rates]
    with pytest.raises(AssertionError, match="Coverage"):
        _assert_covers(unguarded, 0.002)


@pytest.mark.parametrize(("roles", "kind"), [(False, "unequal"), (True, "equal")])
def test_intervals_of_mean_cosines_hold_the_truth(roles: bool, kind: str) -> None:
    """From features: every item query and gallery item at once, or each of them one."""
    rng = simulate.generator(1, f"cosines {roles}")
    both = simulate.cosine_estimates(50, kind, roles, 300, rng=rng, replicates=999)
    for rates, truth in zip(both, simulate.true_gains(), strict=True):
        _assert_covers(rates, truth)
        with pytest.raises(AssertionError, match="Coverage"):
            _assert_covers(_shrunk(rates), truth)


@pytest.mark.parametrize("kind", ["equal", "heavy"])
@pytest.mark.parametrize("what", [0, 1])
def test_a_check_at_its_limit_rarely_passes(what: int, kind: str) -> None:
    """At no gain, or at a loss of exactly the margin, about .025 of the runs pass."""
    assert benchmark.false_passes(what, kind, 50, 400, 1)["passed"] <= ALPHA


def test_a_gate_on_short_intervals_would_pass_too_often() -> None:
    """Intervals of half the length give too many false passes."""
    policy, rates = Policy(**benchmark.OPEN), _gains("equal", 50)
    sound, short = (
        sum(check.outcome == "pass" for check in benchmark.decided(those, policy, 200)) / RUNS
        for those in (rates, _shrunk(rates))
    )
    assert sound <= ALPHA < short


def test_many_slices_at_their_limit_do_not_add_up() -> None:
    """With Holm, eleven checks at their limit err as rarely as one; without, more often."""
    rates = benchmark.family(150, 1)
    assert rates["any_passes"] <= ALPHA
    assert rates["any_fails"] <= ALPHA
    assert rates["any_passes_unadjusted"] > 2 * ALPHA


def test_a_gain_of_a_tenth_is_seen_with_200_classes() -> None:
    """A gain of .1 passes in nine of ten runs with 200 classes, and in fewer with 50."""
    assert benchmark.power(0.1, 200, 400, 1)["passed"] >= 0.9
    assert benchmark.power(0.1, 50, 400, 1)["passed"] < 0.9


@pytest.mark.parametrize(("gain", "kind"), [(0.1, "equal"), (0.1, "heavy"), (-0.1, "equal")])
def test_the_needed_classes_settle_an_open_check(gain: float, kind: str) -> None:
    """A sample of the needed size settles the check in about four of five runs."""
    rates = benchmark.needed(gain, kind, 20, RUNS, 1)
    assert rates["classes"] > 20
    assert rates["to_show"] == ("pass" if gain > 0 else "fail")
    assert 0.7 <= rates["settled"] <= 0.9


@pytest.mark.parametrize(
    ("classes", "share", "large"), [(100, 0.04, False), (100, 0.02, False), (100, 0.05, True)]
)
def test_harm_in_few_or_in_large_classes_rarely_passes(
    classes: int, share: float, large: bool
) -> None:
    """At most .035 of runs pass a truth of 0, and half-samples alone pass twice as many."""
    passed = {}
    for plain in (False, True):
        rng = simulate.generator(1, f"{classes} {share} {large}")
        cell = dependence.lopsided(classes, share, 400, rng, large=large, plain=plain)
        passed[plain] = cell["passed"]
        assert cell["failed"] <= 0.035
    assert passed[False] <= 0.035
    assert passed[True] >= max(0.05, 2 * passed[False])


def test_the_skew_correction_costs_little_for_symmetric_changes() -> None:
    """For equal classes of four queries, intervals are less than a tenth longer than without it."""
    for classes in (20, 50, 200):
        rates = _gains("equal", classes)
        alone = [replace(rate, skew_low=None, skew_high=None) for rate in rates]
        lengths = [simulate.covered(those, 0.0).length for those in (rates, alone)]
        assert 1.0 <= lengths[0] / lengths[1] < 1.1


def test_crossed_users_are_covered_if_resampled() -> None:
    """If users matter and classes do not, resampling classes alone is far too short; both together
    cover."""
    cells = [
        dependence.units((0.0, 0.4), 250, simulate.generator(1, "users"), columns=columns)
        for columns in ((0,), (0, 1))
    ]
    assert cells[0]["coverage"] < 0.85
    assert cells[0]["passed"] > 2 * ALPHA
    assert cells[1]["coverage"] >= 0.95 - 3 * (0.95 * 0.05 / 250) ** 0.5
    assert cells[1]["passed"] <= ALPHA


def test_resampling_an_independent_column_costs_little() -> None:
    """Neither matters: crossing users with classes lengthens the interval by a sixth at most."""
    lengths = [
        dependence.units((0.0, 0.0), 60, simulate.generator(1, "neither"), columns=columns)[
            "length"
        ]
        for columns in ((0,), (0, 1))
    ]
    assert lengths[1] < 1.17 * lengths[0]


def test_half_sampling_covers_where_the_multinomial_bootstrap_does_not() -> None:
    """Ten classes, few of them large: BCa is too short on the same data, percentiles shorter."""
    rng = simulate.generator(1, "compare")
    by = simulate.alternatives(simulate.hit_changes, 0.0, "heavy", 10, runs=500, rng=rng)
    assert not by["half-sampling"].short
    assert by["BCa"].short
    assert by["percentile"].coverage < by["half-sampling"].coverage


def test_tables_are_repeatable() -> None:
    """The same seed gives the same table, another seed another."""
    first, again, other = (next(benchmark.coverage_rows(50, seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert "| hit gain 0 | equal |" in benchmark.grid([first], ("what", "sizes"), "{runs}")[2]
