"""Orders of a gallery's rows equal explicit loops, in blocks of any size."""

from __future__ import annotations

import numpy as np
import pytest

from compatctl.core import gallery_order
from compatctl.core.arrays import NO_CLASS, unit_rows
from compatctl.core.gallery_order import answer_doubt, hubness, mean_distance, uncertainty

N = 40


@pytest.fixture(params=[2**22, 16])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """(N, 6) unit rows, computed in one block or in many."""
    monkeypatch.setattr(gallery_order, "_CELLS", request.param)
    return unit_rows(np.random.default_rng(0).standard_normal((N, 6)).astype(np.float32))


def labels() -> np.ndarray:
    """Classes of many rows, one class of one row, one row of unknown class."""
    codes = np.random.default_rng(1).integers(0, 5, N) * 7
    codes[3], codes[8] = 99, NO_CLASS
    return codes


def unit(row: np.ndarray) -> np.ndarray:
    """The row at unit length."""
    return row / np.linalg.norm(row)


def test_hubness_counts_the_ten_nearest(rows: np.ndarray) -> None:
    """Each query's ten nearest other rows, one at a time."""
    queries = np.arange(0, N, 3)
    counts = np.zeros(N)
    for query in queries:
        cosines = rows @ rows[query]
        cosines[query] = -np.inf
        counts[np.argsort(-cosines)[:10]] += 1
    np.testing.assert_array_equal(hubness(rows, queries), counts)


def test_the_distance_is_to_the_own_mean(rows: np.ndarray) -> None:
    """A row alone in its class lies on its mean; a row of unknown class has the median."""
    codes = labels()
    slow = np.full(N, np.nan)
    for row in range(N):
        if codes[row] != NO_CLASS:
            slow[row] = 1 - rows[row] @ unit(rows[codes == codes[row]].sum(axis=0))
    slow[8] = np.nanmedian(slow)
    np.testing.assert_allclose(mean_distance(rows, codes), slow, atol=1e-6)
    assert slow[3] == pytest.approx(0.0, abs=1e-6)


def test_uncertainty_is_the_margin_of_another_class(rows: np.ndarray) -> None:
    """A row alone in its class lies on its mean; one of unknown class has the median; of one class
    alone nothing is known."""
    codes = labels()
    slow = np.full(N, np.nan)
    for row in range(N):
        if codes[row] != NO_CLASS:
            cosines = {
                code: rows[row] @ unit(rows[codes == code].sum(axis=0))
                for code in set(codes.tolist()) - {NO_CLASS}
            }
            own = cosines.pop(codes[row])
            slow[row] = max(cosines.values()) - own
    slow[8] = np.nanmedian(slow)
    np.testing.assert_allclose(uncertainty(rows, codes), slow, atol=1e-6)
    assert not uncertainty(rows, np.zeros(N, np.int64)).any()


def test_the_doubt_of_an_answer_is_its_smallest_lead(rows: np.ndarray) -> None:
    """Each query's first two answers, one at a time; a row that is never among them has 0."""
    queries, slow = np.arange(0, N, 3), np.zeros(N)
    for query in queries:
        cosines = rows @ rows[query]
        cosines[query] = -np.inf
        first, second = np.argsort(-cosines)[:2]
        for row in (first, second):
            slow[row] = max(slow[row], 2 - (cosines[first] - cosines[second]))
    np.testing.assert_allclose(answer_doubt(rows, queries), slow, atol=1e-6)
    assert (slow == 0).any()
