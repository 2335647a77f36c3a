"""Unknown answers and touched rows, against references that try every possibility."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from compatctl.core.arrays import NO_CLASS
from compatctl.core.class_sums import class_sums
from compatctl.core.compatibility import inequalities
from compatctl.core.ignored import Ignored
from compatctl.core.nearest import exact_search, exact_search_pieces, mixed_pieces, row_pieces
from compatctl.core.training_overlap import (
    TrainingOverlap,
    touched_share_by_class,
    touched_share_judged,
)
from compatctl.core.unjudged import bound_unjudged


def unit(rng, n, D=8):
    """(n, D) unit rows."""
    rows = rng.normal(size=(n, D)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(20))
def test_bounds_are_those_of_every_assignment(seed):
    """The bounds equal the worst and best change over every assignment of relevance."""
    rng, G, k = np.random.default_rng(seed), 8, 3
    unknown = rng.random(G) < 0.5
    known = rng.random(G) < 0.4
    old, new = (np.array([rng.permutation(G)[:5] for _ in range(6)]) for _ in range(2))
    hits = tuple((known & ~unknown)[rows[:, :k]].any(axis=1) for rows in (old, new))
    result = bound_unjudged(old, new, hits, unknown, k)
    for q in range(6):
        changes = []
        for given in product([False, True], repeat=int(unknown.sum())):
            relevant = known & ~unknown
            relevant[unknown] = given
            changes.append(int(relevant[new[q, :k]].any()) - int(relevant[old[q, :k]].any()))
        assert int(result.worst[1][q]) - int(result.worst[0][q]) == min(changes)
        assert int(result.best[1][q]) - int(result.best[0][q]) == max(changes)
        assert result.old[k][q] == unknown[old[q, :k]].sum()


def test_shares_are_of_the_counted_queries():
    """Unknown answers are counted for queries with a match, and only as many as there are rows."""
    rows = np.array([[0, 1, -1], [1, 0, -1]])
    hits = np.zeros(2, bool), np.zeros(2, bool)
    result = bound_unjudged(rows, rows[::-1], hits, np.array([True, False]), 3)
    has_match = np.array([True, False])
    assert result.shares(has_match) == {"old": {"1": 1.0, "3": 0.5}, "new": {"1": 0.0, "3": 0.5}}


@pytest.mark.parametrize("seed", range(5))
def test_touched_shares_equal_a_loop(seed):
    """The touched share of each query's relevant rows equals a loop, by class and by judgment."""
    rng = np.random.default_rng(seed)
    queries, rows = rng.integers(0, 4, 12), rng.integers(0, 4, 20)
    rows[rng.random(20) < 0.2] = NO_CLASS
    self_row = np.where(rng.random(12) < 0.5, rng.integers(0, 20, 12), -1)
    touched = rng.random(20) < 0.5
    result = touched_share_by_class(queries, rows, self_row, touched)
    pairs = [
        (q, g) for q in range(12) for g in range(20) if rows[g] == queries[q] and g != self_row[q]
    ]
    judged = touched_share_judged(*np.array(pairs).T, touched, 12)
    for q in range(12):
        flags = [touched[g] for at, g in pairs if at == q]
        expected = np.mean(flags) if flags else np.nan
        np.testing.assert_allclose((result[q], judged[q]), expected)


def test_weights_make_the_gallerys_mixture():
    """A weighted mean mixes the touched and the untouched part by the gallery's shares."""
    rng = np.random.default_rng(0)
    of_query, has_match = rng.choice([0.0, 0.5, 1.0], 50), rng.random(50) < 0.8
    values = rng.normal(size=50)
    touched = TrainingOverlap(of_query=of_query, of_gallery=0.9)
    weights = touched.weights(has_match)
    assert weights[has_match].mean() == pytest.approx(1.0)
    first, second = touched.parts(values, has_match)
    weighted = (weights * values)[has_match].sum() / weights[has_match].sum()
    assert weighted == pytest.approx(0.9 * first + 0.1 * second)
    one_kind = TrainingOverlap(of_query=np.zeros(50), of_gallery=0.9)
    assert one_kind.weights(has_match) is has_match


@pytest.mark.parametrize("seed", range(4))
def test_pieces_are_searched_as_one_gallery(seed, monkeypatch):
    """A gallery in pieces, part or mixture, gives the answers of one array, ties included."""
    monkeypatch.setattr("compatctl.core.nearest._PIECE_ROWS", 7)
    rng = np.random.default_rng(seed)
    old, new, queries = unit(rng, 40), unit(rng, 40), unit(rng, 9)
    old[20:30] = old[:10]
    half, rows = rng.random(40) < 0.5, np.flatnonzero(rng.random(40) < 0.7)
    self_row = np.where(rng.random(9) < 0.5, rng.integers(0, 40, 9), -1)
    codes = rng.integers(-1, 3, 9), rng.integers(-1, 3, 40)
    ignored = Ignored.from_groups(codes, n_queries=9, n_rows=40)
    mixture = np.where(half[:, None], new, old)
    whole = exact_search(queries, mixture, 50, self_row, ignored=ignored)
    result = exact_search_pieces(queries, mixed_pieces(old, new, half), 50, self_row, ignored)
    np.testing.assert_array_equal(result.rows, whole.rows)
    position = np.full(40, -1)
    position[rows] = np.arange(len(rows))
    flags = np.where(self_row >= 0, position[self_row], -1)
    part = ignored.remap_rows(position)
    assert {*zip(*part.pairs(slice(0, 9)), strict=True)} == {
        (q, position[g]) for q, g in zip(*ignored.pairs(slice(0, 9)), strict=True)
        if position[g] >= 0
    }  # fmt: skip
    there = exact_search(queries, old[rows], 50, flags, ignored=part)
    again = exact_search_pieces(queries, row_pieces(old, rows), 50, flags, part)
    np.testing.assert_array_equal(again.rows, there.rows)
    np.testing.assert_array_equal(again.scores, there.scores)


def test_rows_of_no_class_are_in_no_pair():
    """Means, shares and drift equal those without the rows of unknown class."""
    rng = np.random.default_rng(3)
    old, new, gallery = unit(rng, 10), unit(rng, 10), unit(rng, 30)
    labels, rows = rng.integers(0, 3, 10), rng.integers(0, 4, 30)
    lost = rng.random(30) < 0.4
    self_row = np.where(rng.random(10) < 0.6, rng.integers(0, 30, 10), -1)
    kept = np.flatnonzero(~lost)
    position = np.full(30, -1)
    position[kept] = np.arange(len(kept))
    flags = np.where(self_row >= 0, position[self_row], -1)
    result = inequalities(old, new, labels, gallery, np.where(lost, NO_CLASS, rows), self_row)
    without = inequalities(old, new, labels, gallery[kept], rows[kept], flags)
    for name in ("same_gain", "diff_gain", "share_same", "share_diff"):
        assert getattr(result, name) == pytest.approx(getattr(without, name), abs=1e-9), name
    sums = class_sums(old, labels, gallery, np.where(lost, NO_CLASS, rows), self_row)
    assert sums.means().n_diff == class_sums(old, labels, gallery[kept], rows[kept], flags).means(
    ).n_diff  # fmt: skip
