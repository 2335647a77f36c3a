"""Re-scoring ranks candidates as an explicit loop does, and its rule is the one that data show."""

from __future__ import annotations

import numpy as np
import pytest

from compatctl.core.nearest import Neighbours
from compatctl.core.rescoring import (
    KnownVectors,
    MergeRule,
    fit_merge_rule,
    rescore,
    within_budget,
)
from compatctl.errors import InputError

RULE = MergeRule(weight=0.5, slope=0.7, intercept=-0.1)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random unit rows, float32."""
    rows = rng.standard_normal(shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def answers(rng: np.random.Generator, n_queries: int, columns: int) -> Neighbours:
    """First-stage answers with falling scores; some queries have fewer."""
    rows = np.array([rng.permutation(40)[:columns] for _ in range(n_queries)])
    scores = -np.sort(-rng.uniform(-1, 1, (n_queries, columns)), axis=1)
    short = np.arange(columns) >= rng.integers(1, columns + 1, (n_queries, 1))
    return Neighbours(
        rows=np.where(short, -1, rows),
        scores=np.where(short, -np.inf, scores).astype(np.float32),
    )


@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_that_of_a_loop(seed: int, k: int) -> None:
    """Known candidates score free + w first, unknown ones the line, and the tail stays below."""
    rng = np.random.default_rng(seed)
    first, queries = answers(rng, 30, 9), unit(rng, 30, 6)
    rows = np.flatnonzero(rng.random(40) < 0.5)
    vectors = unit(rng, len(rows), 6)
    free = KnownVectors(rows=rows, vectors=vectors).cosines(queries, first.rows[:, :k])
    rescored = rescore(first, free, RULE)
    result = rescored.of(first)
    known = dict(zip(rows.tolist(), vectors, strict=True))
    for q in range(30):
        scored = []
        for row, score in zip(first.rows[q, :k], first.scores[q, :k], strict=True):
            if row < 0:
                continue
            line = RULE.intercept + RULE.slope * float(score)
            cosine = float(queries[q] @ known[int(row)]) if int(row) in known else None
            scored.append((line if cosine is None else cosine + 0.5 * float(score), int(row)))
        expected = [row for _, row in sorted(scored, key=lambda pair: -pair[0])]
        tail = [int(row) for row in first.rows[q, k:] if row >= 0]
        assert [int(row) for row in result.rows[q] if row >= 0] == expected + tail
        present = rescored.scores[q][result.rows[q] >= 0]
        assert (np.diff(present) <= 0).all()
        assert np.isneginf(rescored.scores[q][result.rows[q] < 0]).all()
        cosines = dict(zip(first.rows[q].tolist(), first.scores[q].tolist(), strict=True))
        assert [cosines[int(row)] for row in result.rows[q]] == result.scores[q].tolist()


def test_without_free_vectors_nothing_moves() -> None:
    """Unknown candidates keep the order of the first stage."""
    first = answers(np.random.default_rng(0), 20, 8)
    queries = unit(np.random.default_rng(1), 20, 6)
    free = KnownVectors.none(6).cosines(queries, first.rows[:, :5])
    assert np.isnan(free).all()
    np.testing.assert_array_equal(rescore(first, free, RULE).of(first).rows, first.rows)


def test_rows_join_those_that_are_known() -> None:
    """In any order; the vectors stay with their rows, and the rows ascend."""
    vectors = unit(np.random.default_rng(2), 6, 3)
    known = KnownVectors.none(3).with_rows(np.array([7, 2]), vectors[:2])
    known = known.with_rows(np.array([9, 0, 4]), vectors[2:5])
    assert known.rows.tolist() == [0, 2, 4, 7, 9]
    np.testing.assert_array_equal(known.of(np.array([9, 7, 0])), vectors[[2, 0, 3]])


def test_a_budget_takes_the_nearest_missing_candidates() -> None:
    """The first two of those without a vector; none with a budget of 0."""
    missing = np.array([[False, True, True, True], [True, False, False, True]])
    expected = [[False, True, True, False], [True, False, False, True]]
    assert within_budget(missing, 2).tolist() == expected
    assert not within_budget(missing, 0).any()


def test_the_line_of_unknown_candidates_is_least_squares() -> None:
    """Slope and intercept equal numpy's fit of the final scores, at every weight."""
    rng = np.random.default_rng(2)
    first = rng.uniform(0, 1, (50, 6)).astype(np.float32)
    free = (0.4 * first + rng.normal(0, 0.1, first.shape)).astype(np.float32)
    free[rng.random(free.shape) < 0.3] = np.nan
    for weight in (0.0, 1.0):
        rule = fit_merge_rule(first, free, first > 0.5, [weight]).rule
        known = ~np.isnan(free)
        slope, intercept = np.polyfit(first[known], free[known] + weight * first[known], 1)
        assert (rule.slope, rule.intercept) == pytest.approx((slope, intercept), abs=1e-5)


@pytest.mark.parametrize(("noisy", "best"), [("free", 2.0), ("first", 0.0)])
def test_the_weight_follows_the_better_stage(noisy: str, best: float) -> None:
    """Where free cosines are noise the largest weight wins; where first ones are, weight 0."""
    rng = np.random.default_rng(3)
    relevant = np.zeros((2000, 5), bool)
    relevant[np.arange(2000), rng.integers(0, 5, 2000)] = True
    signal = relevant + rng.normal(0, 0.4, relevant.shape)
    noise = rng.normal(0, 0.4, relevant.shape)
    free, first = (noise, signal) if noisy == "free" else (signal, noise)
    fitted = fit_merge_rule(first.astype(np.float32), free.astype(np.float32), relevant)
    assert fitted.rule.weight == best
    assert fitted.n_queries == 2000
    assert max(dict(fitted.trials).values()) == dict(fitted.trials)[best]


def test_too_little_to_fit_is_an_error() -> None:
    """Without a right answer, and without a known candidate."""
    first, free = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="0 queries have a right answer"):
        fit_merge_rule(first, free, np.zeros((2, 3), bool))
    with pytest.raises(InputError, match="0 candidates have a free vector"):
        fit_merge_rule(first, np.full_like(free, np.nan), np.ones((2, 3), bool))
    with pytest.raises(InputError, match=r"has the weight -1.0, which is below 0"):
        MergeRule(weight=-1.0, slope=0.0, intercept=0.0)
