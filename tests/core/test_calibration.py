"""Score maps: what they keep, on real features and by construction, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compatctl.core.calibration import ScoreMap, fit_score_map
from compatctl.core.knots import MAX_KNOTS
from compatctl.core.pair_tiles import PairTruth
from compatctl.core.score_histogram import ScoreHistogram, score_histogram
from compatctl.errors import InputError

EMOJI = Path(__file__).parents[1] / "fixtures" / "features" / "emoji.npz"


def unit(rows):
    """Rows scaled to length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def sides():
    """Real features: queries of an old and of a better model of another scale, a gallery, truth."""
    with np.load(EMOJI) as archive:
        labels = np.unique(archive["labels"], return_inverse=True)[1]
        kept = labels < 200
        old = unit(archive["lite0"][kept].astype(np.float64))
        labels = labels[kept]
    means = np.stack([old[labels == code].mean(axis=0) for code in range(200)])
    better = unit(old + 0.4 * means[labels])
    new = unit(np.hstack([better, np.full((len(old), 1), 2.0)]))  # every cosine shrinks
    flat = np.hstack([old, np.zeros((len(old), 1), np.float32)])
    truth = PairTruth(query_labels=labels, gallery_labels=labels, self_row=np.arange(len(old)))
    return flat, new, flat, truth


def test_a_threshold_keeps_its_false_accepts_on_other_classes(sides):
    """A map fitted on half of the classes keeps the false accept rate on the other half."""
    old, new, gallery, truth = sides
    halves = [truth.query_labels % 2 == half for half in (0, 1)]
    counts = [
        [score_histogram(features[half], gallery, truth.select_queries(half)) for half in halves]
        for features in (old, new)
    ]
    for fitted, judged in ((0, 1), (1, 0)):
        to_old = fit_score_map(counts[0][fitted], counts[1][fitted])
        before, after = counts[0][judged], counts[1][judged]
        for threshold in (0.4, 0.5, 0.6, 0.7):
            raw = after.far[np.searchsorted(after.edges, threshold)]
            at = to_old.inverse(threshold)
            expected = before.far[np.searchsorted(before.edges, threshold)]
            kept = after.far[np.searchsorted(after.edges, at)]
            assert expected > 1e-4
            assert kept == pytest.approx(expected, rel=0.25)
            assert raw < 0.1 * expected  # without the map nothing passes


def test_no_ranking_changes(sides):
    """The map is strictly increasing."""
    old, new, gallery, truth = sides
    to_old = fit_score_map(*(score_histogram(features, gallery, truth) for features in (old, new)))
    assert len(to_old.knots) <= MAX_KNOTS
    scores = np.sort(np.unique((new[:50] @ gallery.T).reshape(-1)))
    assert (np.diff(to_old(scores)) > 0).all()
    for score in (-1.0, -0.3, 0.2, 0.5, 0.9, 1.0):
        assert to_old(to_old.inverse(score)) == pytest.approx(score, abs=1e-9)


def test_equal_scores_give_the_identity(sides):
    """The map of a model to itself is the identity, to the width of a bin."""
    old, _, gallery, truth = sides
    counts = score_histogram(old, gallery, truth)
    score_map = fit_score_map(counts, counts)
    for score in np.linspace(-1, 1, 101):
        assert float(score_map(score)) == pytest.approx(score, abs=2**-13)


def test_maps_compose():
    """A composed map equals both maps applied in turn, at every knot and at the ends."""
    first = ScoreMap(knots=((-1, -1), (0.1, 0.4), (0.3, 0.9), (1, 1)))
    second = ScoreMap(knots=((-1, -1), (0.4, -0.2), (1, 1)))
    both = first.then(second)
    for x, y in first.knots:
        assert both(x) == pytest.approx(float(second(y)))


def test_too_few_pairs_are_refused(sides):
    """Fewer than 1,000 pairs of two classes are refused."""
    old, _, gallery, truth = sides
    few = truth.select_queries(np.arange(len(old)) < 1)
    counts = score_histogram(old[:1], gallery, few)
    with pytest.raises(InputError, match="pairs of two classes") as caught:
        fit_score_map(counts, counts)
    assert "--calibrate" in caught.value.tip


def test_constant_scores_give_an_increasing_map():
    """If every pair has the same score, the map still increases."""
    counts = np.zeros(len(ScoreHistogram(same=np.zeros(0), diff=np.zeros(0)).edges), np.int64)
    first, other = counts.copy(), counts.copy()
    first[20000], other[30000] = 5000, 5000
    score_map = fit_score_map(
        ScoreHistogram(same=first, diff=first), ScoreHistogram(same=first, diff=other)
    )
    assert score_map.knots[0] == (-1, -1)
    assert float(score_map(0.9)) > float(score_map(0.8))


@pytest.mark.parametrize(
    "knots",
    [
        (),
        ((-1, -1),),
        ((-1, -1), (0.5, 0.1), (0.4, 0.2), (1, 1)),
        ((-1, -1), (0.4, 0.2), (0.5, 0.2), (1, 1)),
        ((-1, -1), (float("nan"), 0.2), (1, 1)),
        ((-1, -1), ("0", 0.2), (1, 1)),
        ((-1, -1), (0, 0, 0), (1, 1)),
        ((-1, -1), (True, 0.2), (1, 1)),
        ((-0.9, -1), (1, 1)),
        ((-1, -1), (1, 0.9)),
        tuple((x, x) for x in np.linspace(-1, 1, 65).tolist()),
    ],
)
def test_invalid_knots_are_refused(knots):
    """Knots that fall, repeat, are not numbers, are too many or miss the ends are refused."""
    with pytest.raises(InputError, match="a score map"):
        ScoreMap(knots=knots)
