"""Counts of scores, and judged pairs in every count of pairs, against loops over the pairs."""

from __future__ import annotations

import numpy as np
import pytest

from compatctl.core.pair_tiles import PairTruth
from compatctl.core.score_histogram import score_histogram
from compatctl.core.thresholds import count_accepts, threshold_keeping_far

Q, G = 13, 17


def unit(rows):
    """Rows scaled to length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def scene(seed, judged):
    """Queries, gallery, what is relevant to what, and every pair that counts by a loop."""
    rng = np.random.default_rng(seed)
    queries, gallery = unit(rng.normal(size=(Q, 6))), unit(rng.normal(size=(G, 6)))
    labels, gallery_labels = rng.integers(0, 3, Q), rng.integers(0, 3, G)
    own = rng.integers(-1, G, Q)
    chosen = np.argwhere(rng.random((Q, G)) < 0.2).tolist()
    cells = [(q, g) for q, g in chosen if own[q] != g]
    truth = PairTruth(
        query_labels=labels,
        gallery_labels=gallery_labels,
        self_row=own,
        judged=tuple(np.array(cells).T) if judged else None,
    )
    scores = queries @ gallery.T
    pairs = []
    for q in range(Q):
        for g in range(G):
            alike = bool(labels[q] == gallery_labels[g])
            relevant = (q, g) in cells if judged else alike
            if g != own[q] and (relevant or not alike):
                pairs.append((q, float(scores[q, g]), relevant))
    return queries, gallery, truth, pairs


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("block", [4, 1024])
def test_counts_at_every_edge_equal_a_loop(judged, block):
    """FAR and FRR at every edge equal shares of single pairs exactly."""
    queries, gallery, truth, pairs = scene(1, judged)
    histogram = score_histogram(queries, gallery, truth, block=block)
    same = np.array([score for _, score, kind in pairs if kind])
    diff = np.array([score for _, score, kind in pairs if not kind])
    assert (histogram.same.sum(), histogram.diff.sum()) == (len(same), len(diff))
    for at in np.random.default_rng(2).integers(0, len(histogram.edges), 300):
        edge = histogram.edges[at]
        assert histogram.far[at] == pytest.approx((diff >= edge).mean(), abs=1e-12)
        assert histogram.frr[at] == pytest.approx((same < edge).mean(), abs=1e-12)


@pytest.mark.parametrize("judged", [False, True])
def test_the_threshold_of_a_false_accept_rate_is_the_lowest_edge(judged):
    """The edge keeps the FAR, the edge below does not, and the FRR is that of the pairs."""
    queries, gallery, truth, pairs = scene(3, judged)
    histogram = score_histogram(queries, gallery, truth)
    same = np.array([score for _, score, kind in pairs if kind])
    diff = np.array([score for _, score, kind in pairs if not kind])
    for far in (0.05, 0.3, 0.8):
        at, frr = histogram.at_far(far)
        assert (diff >= at).mean() <= far < (diff >= at - 2**-14).mean()
        assert frr == pytest.approx((same < at).mean(), abs=1e-12)
    assert histogram.at_far(0.5 / len(diff)) is None  # no pair is so small a share


def test_scores_on_an_edge_are_in_the_bin_above_it():
    """Exact halves, quarters, zeros and -1 are in the bin above their edge."""
    queries = np.array([[1, 0], [0, 1]], np.float32)
    gallery = np.array([[1, 0], [-1, 0], [0, -1], [0.6, 0.8]], np.float32)
    truth = PairTruth(query_labels=np.zeros(2, np.int64), gallery_labels=np.ones(4, np.int64))
    histogram = score_histogram(queries, gallery, truth)
    for edge, expected in ((1.0, 1), (0.0, 6), (-1.0, 8), (2**-14, 3)):
        at = int(np.flatnonzero(histogram.edges == edge)[0])
        assert histogram.far[at] * 8 == expected


def test_an_empty_histogram_has_no_operating_point():
    """Without pairs of both kinds there is no point."""
    row = np.array([[1, 0]], np.float32)
    truth = PairTruth(query_labels=np.zeros(1, np.int64), gallery_labels=np.zeros(1, np.int64))
    assert score_histogram(row, row, truth).at_far(0.5) is None


@pytest.mark.parametrize("block", [3, 1024])
def test_judged_pairs_define_frr(block):
    """With judgments FRR is over judged pairs; other pairs of one label are in no rate."""
    queries, gallery, truth, pairs = scene(4, judged=True)
    accepts = count_accepts(queries, gallery, truth, 0.2, block=block)
    expected = np.zeros((4, Q), int)
    for q, score, kind in pairs:
        expected[0 if kind else 2, q] += score >= 0.2
        expected[1 if kind else 3, q] += 1
    counts = np.array(
        [accepts.same_accepted, accepts.same_pairs, accepts.diff_accepted, accepts.diff_pairs]
    )
    assert counts.tolist() == expected.tolist()
    diff = np.sort([score for _, score, kind in pairs if not kind])[::-1].astype(np.float32)
    keeping = threshold_keeping_far(queries, gallery, truth, 5, block=block)
    assert keeping == float(np.nextafter(diff[5], np.float32(np.inf)))
