"""Dependence that is not resampled is found, and chance is not."""

from __future__ import annotations

import numpy as np
import pytest

from compatctl.core.dependence import intraclass, measure_dependence, worst_design_effect

CLASSES, SIZE = 80, 8


def rng(seed=0):
    """A generator of the given seed."""
    return np.random.default_rng(seed)


def queries(seed, users, spread):
    """Classes, users and changes of hits; ``spread`` of the effects of classes and of users."""
    draw = rng(seed)
    classes = np.repeat(np.arange(CLASSES), SIZE)
    user = draw.integers(0, users, len(classes))
    effect = sum(
        draw.uniform(-s, s, n)[at]
        for s, n, at in zip(spread, (CLASSES, users), (classes, user), strict=True)
    )
    toss = draw.random(len(classes))
    return classes, user, (toss < 0.3 + effect / 2) * 1.0 - (toss > 0.7 + effect / 2)


def found(classes, change, unit=("class",), has_match=None, **columns):
    """Column -> what is said of it."""
    every = np.ones(len(change), dtype=bool) if has_match is None else has_match
    return {
        result.column: result
        for result in measure_dependence(change, every, classes, unit, columns, rng(1))
    }


def design_effect(classes, user, change):
    """Slow: all pairs of queries that share class or user, over those that share the class."""
    beyond = change - change.mean()
    products = np.outer(beyond, beyond)
    same_class = classes[:, None] == classes
    together = products[same_class | (user[:, None] == user)].sum()
    return max(1.0, together / products[same_class].sum())


@pytest.mark.parametrize("spread", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.4), (0.2, 0.2)])
def test_the_design_effect_is_that_of_all_pairs(spread):
    """The design effect equals that of a matrix over all pairs of queries."""
    for seed in range(4):
        classes, user, change = queries(seed, 40, spread)
        result = found(classes, change, user=user)["user"]
        assert result.design_effect == pytest.approx(design_effect(classes, user, change))
        assert (result.n_units, result.used) == (40, False)


def test_correlated_users_are_reported():
    """Users that double the variance are reported in most samples."""
    strong = [
        found(c, v, user=u)["user"] for c, u, v in (queries(s, 40, (0, 0.5)) for s in range(40))
    ]
    assert np.mean([result.unmodelled for result in strong]) > 0.9
    assert np.mean([result.design_effect for result in strong]) > 2
    assert 0.05 < np.mean([result.icc for result in strong]) < 0.3
    assert worst_design_effect(strong, 20) == max(result.design_effect for result in strong)
    assert worst_design_effect(strong, 41) == 1.0


@pytest.mark.parametrize("spread", [(0.0, 0.0), (0.5, 0.0)])
def test_chance_is_not_taken_for_dependence(spread):
    """Independent columns are reported in at most 1 of 100 samples, also beside strong classes."""
    spoken = 0
    for seed in range(100):
        classes, user, change = queries(seed, 25, spread)
        few = rng(seed + 1000).integers(0, 300, len(change))
        spoken += sum(
            result.unmodelled for result in found(classes, change, user=user, few=few).values()
        )
    assert spoken <= 2


def test_resampled_columns_and_columns_within_them_are_not_reported():
    """The class, columns within it and resampled users are not reported; larger groups of classes
    are."""
    draw = rng(3)
    classes = np.repeat(np.arange(CLASSES), SIZE)
    group = classes // 4
    change = np.sign(draw.normal(size=20))[group] * (draw.random(len(classes)) < 0.8)
    columns = {"class": classes, "part": np.arange(len(classes)) // 2, "group": group}
    by = found(classes, change, **columns)
    assert [by[name].unmodelled for name in columns] == [False, False, True]
    assert by["part"].design_effect == 1.0
    assert by["class"].used
    assert by["class"].icc > 0.5
    again = found(group, change, unit=("group",), **columns)
    assert not any(result.unmodelled for result in again.values())


def test_constant_and_unique_columns_are_left_out():
    """Columns with one value, or one value per query, are left out."""
    classes, user, change = queries(5, 40, (0, 0.5))
    n = len(change)
    has_match = rng(6).random(n) < 0.7
    assert found(classes, change, one=np.zeros(n, int), each=np.arange(n)) == {}
    some = found(classes, change, has_match=has_match, user=user)["user"]
    alone = found(classes[has_match], change[has_match], user=user[has_match])["user"]
    assert some == alone
    assert found(classes, change, has_match=np.zeros(n, bool), user=user) == {}
    assert not found(classes, np.zeros(n), user=user)["user"].unmodelled


def test_the_intraclass_correlation_is_known():
    """It is 1 for equal values within units, 0 for independent ones, and else the share of variance
    between."""
    units = np.repeat(np.arange(500), 4)
    assert intraclass(rng(7).normal(size=500)[units], units) == pytest.approx(1.0)
    assert intraclass(rng(8).normal(size=2000), units) < 0.05
    mixed = rng(9).normal(size=500)[units] + rng(10).normal(size=2000) * np.sqrt(3)
    assert intraclass(mixed, units) == pytest.approx(0.25, abs=0.05)
    assert intraclass(np.zeros(2000), units) == 0.0
