"""Scores by norms, against the vectors themselves."""

from __future__ import annotations

import numpy as np
import pytest

from compatctl.core.norm_scores import engine_score, highest_rank, rank_by_norms
from compatctl.core.similarity import SIMILARITIES, Similarity

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((400, 5)) * RNG.uniform(0.1, 4.0, (400, 1))
NORMS = np.linalg.norm(ROWS, axis=1)
QUERIES = RNG.standard_normal((30, 5))
QUERIES /= np.linalg.norm(QUERIES, axis=1, keepdims=True)
COSINES = QUERIES @ (ROWS / NORMS[:, None]).T


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_scores_are_those_of_the_vectors_and_ranks_their_order(similarity: Similarity) -> None:
    """The cosine, the inner product and the squared distance; higher ranks are nearer."""
    expected = {
        "cosine": COSINES,
        "dot": QUERIES @ ROWS.T,
        "l2": ((QUERIES[:, None] - ROWS) ** 2).sum(axis=2),
    }[similarity]
    ranks = rank_by_norms(similarity, COSINES, NORMS)
    assert np.abs(engine_score(similarity, ranks) - expected).max() < 1e-12
    nearest_first = np.argsort(expected if similarity == "l2" else -expected, axis=1)
    assert np.array_equal(np.argsort(-ranks, axis=1), nearest_first)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_no_row_of_a_lower_cosine_ranks_above_the_bound(similarity: Similarity) -> None:
    """For positive and negative cosines; the bound is reached where norms are dense."""
    least, most = float(NORMS.min()), float(NORMS.max())
    dense = np.linspace(least, most, 2001)
    for cosine in np.linspace(-1.0, 1.0, 41):
        (bound,) = highest_rank(similarity, np.array([cosine]), least, most)
        ranks = rank_by_norms(similarity, COSINES, NORMS)
        assert (ranks[cosine >= COSINES] <= bound + 1e-12).all()
        reached = rank_by_norms(similarity, np.full(2001, cosine), dense).max()
        assert bound == pytest.approx(reached, abs=1e-4)
