"""The best of several settings: its gain is not flattered, and its interval holds the true best."""

from __future__ import annotations

import numpy as np
import pytest

from compatctl.core.arrays import Bools, Codes
from compatctl.core.choice import best_setting, cross_fitted_hits, resampled_choices
from compatctl.core.resampling import estimate_ratio, hit_change


def draw_hits(
    rates: list[float], classes: int, each: int, rng: np.random.Generator
) -> tuple[Bools, Codes]:
    """(S, Q) hits at these rates, dependent within a class, and (Q,) class codes."""
    codes = np.repeat(np.arange(classes), each)
    shift = np.repeat(rng.uniform(-0.2, 0.2, classes), each)
    chance = np.clip(np.array(rates)[:, None] + shift, 0.0, 1.0)
    return rng.random((len(rates), len(codes))) < chance, codes


def halves(codes: Codes) -> list[tuple[Bools, Bools]]:
    """Even and odd classes, each choosing for the other."""
    even = codes % 2 == 0
    return [(even, ~even), (~even, even)]


def test_choices_equal_an_explicit_loop() -> None:
    """Ties go to the first setting; each query has the setting that the other half chose."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        hits, codes = draw_hits([0.5, 0.5, 0.5, 0.5], 8, 2, rng)
        folds = halves(codes)
        slow = np.zeros(len(codes), bool)
        for query in range(len(codes)):
            others = [q for q in range(len(codes)) if codes[q] % 2 != codes[query] % 2]
            counts = [sum(hits[s, q] for q in others) for s in range(4)]
            slow[query] = hits[counts.index(max(counts)), query]
        np.testing.assert_array_equal(cross_fitted_hits(hits, folds), slow)
    assert best_setting(np.array([[1, 0], [0, 1]], bool)) == 0


@pytest.mark.parametrize("crossed", [False, True])
def test_resampled_choices_equal_an_explicit_loop(crossed: bool) -> None:
    """Every replicate chooses by the hits of its classes, weighed 0 or 2; users multiply them."""
    rng = np.random.default_rng(1)
    hits, codes = draw_hits([0.3, 0.5, 0.5], 9, 4, rng)
    units = np.stack([codes, np.arange(len(codes)) % 5], axis=1) if crossed else codes
    choices = resampled_choices(hits, units, 500, np.random.default_rng(2))
    words = np.random.default_rng(2)
    kinds = units.T if crossed else [units]
    weights = np.ones((500, len(codes)))
    for column in kinds:
        size = int(column.max()) + 1
        bits = words.integers(0, 2**64, size=(500, 1), dtype=np.uint64)
        drawn = np.array([[2 * ((int(word) >> c) & 1) for c in range(size)] for word in bits[:, 0]])
        weights *= drawn[:, column]
    slow = [int(np.argmax([(row * setting).sum() for setting in hits])) for row in weights]
    assert choices.tolist() == slow


def test_the_cross_fitted_gain_of_equal_settings_is_none() -> None:
    """Nine settings as good as the old model: the best of them seems to gain, cross-fitted none
    does, and the interval holds 0 in 95% of samples."""
    rng = np.random.default_rng(3)
    naive, fitted, held = [], [], []
    for _ in range(300):
        hits, codes = draw_hits([0.4] * 10, 40, 4, rng)
        old, settings = hits[0], hits[1:]
        after = cross_fitted_hits(settings, halves(codes))
        naive.append(settings[best_setting(settings)].mean() - old.mean())
        estimate = estimate_ratio(hit_change(codes, old, after), 2000, rng)
        low, high = estimate.interval(0.95)
        fitted.append(estimate.value)
        held.append(low <= 0.0 <= high)
    error = np.std(fitted) / np.sqrt(len(fitted))
    assert np.mean(naive) > 0.03
    assert abs(np.mean(fitted)) < 4 * error
    assert np.mean(held) > 0.92


def test_the_interval_of_the_choice_holds_the_true_best() -> None:
    """Hit rate that peaks at the fifth of nine settings: 95% of the resampled choices hold it."""
    rng = np.random.default_rng(4)
    rates = [0.5 - 0.01 * (setting - 4) ** 2 for setting in range(9)]
    held = []
    for _ in range(200):
        hits, codes = draw_hits(rates, 40, 4, rng)
        choices = resampled_choices(hits, codes, 1000, rng)
        low, high = np.quantile(choices, (0.025, 0.975), method="inverted_cdf")
        held.append(low <= 4 <= high)
    assert np.mean(held) > 0.92
