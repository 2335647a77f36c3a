"""Exact search and retrieval metrics, against explicit loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatctl.core import nearest, retrieval
from compatctl.core.ignored import Ignored
from compatctl.core.nearest import Neighbours, exact_search
from compatctl.core.retrieval import cmc, evaluate, evaluate_judged, flips
from compatctl.errors import InputError


def unit_rows(rng, n, d):
    """(n, d) float32 rows of length 1."""
    rows = rng.normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def ranked_by_loop(query, gallery, own):
    """Every allowed row, best first: one float64 product a row, rounded to float32, lower first."""
    scored = []
    for row in range(len(gallery)):
        if row != own:
            score = np.float32(
                math.fsum(float(a) * float(b) for a, b in zip(query, gallery[row], strict=True))
            )
            scored.append((-float(score), row))
    return [row for _, row in sorted(scored)]


def metrics_by_loop(found, query_labels, gallery_labels, own, *, ks, map_k):
    """hit rate per k, mAP@map_k and the number of queries with R = 0, one query at a time."""
    hit = {k: [] for k in ks}
    precisions, without = [], 0
    for i, label in enumerate(query_labels):
        relevant = sum(
            1 for row, other in enumerate(gallery_labels) if other == label and row != own[i]
        )
        if relevant == 0:
            without += 1
            continue
        right = [row >= 0 and gallery_labels[row] == label for row in found[i]]
        for k in ks:
            hit[k].append(any(right[:k]))
        total, seen = 0.0, 0
        for rank, is_right in enumerate(right[:map_k], start=1):
            if is_right:
                seen += 1
                total += seen / rank
        precisions.append(total / min(relevant, map_k))
    return {k: np.mean(hit[k]) for k in ks}, np.mean(precisions), without


@pytest.mark.parametrize("k", [1, 3, 40])
def test_search_equals_loop(k):
    """Rows, scores and padding equal a ranking that scores one pair at a time."""
    rng = np.random.default_rng(k)
    queries, gallery = unit_rows(rng, 9, 7), unit_rows(rng, 30, 7)
    own = np.array([-1, 0, 29, 4, -1, 4, 7, 8, 9])
    neighbours = exact_search(queries, gallery, k, self_row=own, block=4)
    assert neighbours.rows.shape == neighbours.scores.shape == (9, k)
    assert (neighbours.rows.dtype, neighbours.scores.dtype) == (np.int64, np.float32)
    for i in range(9):
        expected = ranked_by_loop(queries[i], gallery, own[i])[:k]
        assert neighbours.rows[i].tolist() == expected + [-1] * (k - len(expected))
        np.testing.assert_allclose(
            neighbours.scores[i, : len(expected)], gallery[expected] @ queries[i], atol=1e-6
        )
        assert np.isneginf(neighbours.scores[i, len(expected) :]).all()


@given(seed=st.integers(0, 10**6), k=st.integers(1, 25), block=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_ties_go_to_the_lower_row_across_the_boundary(seed, k, block):
    """With every vector stored several times, rank is by score, then by row, whatever the block."""
    rng = np.random.default_rng(seed)
    few = unit_rows(rng, 4, 33)
    gallery = few[rng.integers(0, 4, size=21)]
    queries = unit_rows(rng, 5, 33)
    neighbours = exact_search(queries, gallery, k, block=block)
    for i in range(5):
        expected = ranked_by_loop(queries[i], gallery, -1)[:k]
        assert neighbours.rows[i, : len(expected)].tolist() == expected


def test_all_rows_equal():
    """When every row ties, the first k rows are found, and the own one is skipped."""
    gallery = np.tile(unit_rows(np.random.default_rng(0), 1, 129), (1000, 1))
    neighbours = exact_search(gallery[:3], gallery, 4, self_row=np.array([-1, 0, 2]))
    assert neighbours.rows.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [0, 1, 3, 4]]


def test_answers_do_not_depend_on_block(monkeypatch):
    """One query at a time, all at once, or limited by memory: the same rows and the same bits."""
    rng = np.random.default_rng(5)
    queries, gallery = unit_rows(rng, 33, 64), unit_rows(rng, 257, 64)
    whole = exact_search(queries, gallery, 10)
    single = exact_search(queries, gallery, 10, block=1)
    monkeypatch.setattr(nearest, "_CELLS", 600)
    small = exact_search(queries, gallery, 10)
    for other in (single, small):
        assert np.array_equal(whole.rows, other.rows)
        assert np.array_equal(whole.scores, other.scores)


def test_empty_gallery_finds_nothing():
    """A gallery without rows gives -1 and -inf, and a hit rate over no query is NaN."""
    queries = unit_rows(np.random.default_rng(0), 2, 3)
    neighbours = exact_search(queries, np.zeros((0, 3), np.float32), 2)
    assert neighbours.rows.tolist() == [[-1, -1], [-1, -1]]
    assert np.isneginf(neighbours.scores).all()
    result = evaluate(neighbours, np.array([0, 1]), np.array([], dtype=np.int64))
    assert (result.n_queries, result.n_without_match, result.n_with_match) == (2, 2, 0)
    assert np.isnan(result.hit_rate[1])
    assert np.isnan(result.map_at_k)


@given(seed=st.integers(0, 10**6), map_k=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_metrics_equal_loop(seed, map_k):
    """Recall, mAP and the count of R = 0 equal the definitions written out query by query."""
    rng = np.random.default_rng(seed)
    queries, gallery = unit_rows(rng, 12, 5), unit_rows(rng, 15, 5)
    query_labels, gallery_labels = rng.integers(0, 6, 12), rng.integers(1, 7, 15)
    query_labels[0], gallery_labels[0] = 3, 3  # at least one query has something to find
    own = rng.integers(-1, 15, 12)
    own[0] = -1
    neighbours = exact_search(queries, gallery, 20, self_row=own)
    result = evaluate(
        neighbours, query_labels, gallery_labels, self_row=own, ks=(1, 5, 20), map_k=map_k
    )
    hit_rate, mean_ap, without = metrics_by_loop(
        neighbours.rows, query_labels, gallery_labels, own, ks=(1, 5, 20), map_k=map_k
    )
    assert result.hit_rate == pytest.approx(hit_rate)
    assert result.map_at_k == pytest.approx(mean_ap)
    assert result.n_without_match == without
    assert result.has_match.sum() == result.n_with_match == 12 - without
    assert np.array_equal(np.isnan(result.average_precision), ~result.has_match)


def test_average_precision_by_hand():
    """Hits at ranks 1 and 3 of R = 4: AP@3 = (1 + 2/3) / 3, and AP@10 divides by R = 4."""
    gallery_labels = np.array([7, 0, 7, 0, 7, 7])
    rows = np.array([[0, 1, 2, 3, -1, -1]])
    neighbours = Neighbours(rows=rows, scores=np.zeros((1, 6), np.float32))
    at_3 = evaluate(neighbours, np.array([7]), gallery_labels, ks=(1,), map_k=3)
    at_10 = evaluate(neighbours, np.array([7]), gallery_labels, ks=(1,), map_k=10)
    assert at_3.map_at_k == pytest.approx((1 + 2 / 3) / 3)
    assert at_10.map_at_k == pytest.approx((1 + 2 / 3) / 4)
    assert at_10.hit1.tolist() == [True]


def test_own_row_is_not_among_the_relevant():
    """A query whose only match is its own item has R = 0 and is left out."""
    features = unit_rows(np.random.default_rng(1), 3, 4)
    labels, own = np.array([0, 1, 1]), np.array([0, 1, 2])
    result = evaluate(exact_search(features, features, 3, own), labels, labels, own, ks=(1, 2))
    assert result.n_without_match == 1
    assert result.has_match.tolist() == [False, True, True]
    assert result.hit_rate[2] == 1.0


def test_map_k_defaults_to_100_or_the_gallery():
    """mAP is at 100, or at the size of a smaller gallery."""
    rng = np.random.default_rng(2)
    queries = unit_rows(rng, 2, 4)
    for size, expected in ((7, 7), (130, 100)):
        labels = np.zeros(size, np.int64)
        neighbours = exact_search(queries, unit_rows(rng, size, 4), 100)
        assert evaluate(neighbours, np.zeros(2, np.int64), labels).map_k == expected


def test_cmc_equals_the_hit_rate_at_each_k():
    """The match curve is the hit rate at every k, and never falls."""
    rng = np.random.default_rng(3)
    neighbours = exact_search(unit_rows(rng, 40, 6), unit_rows(rng, 60, 6), 12)
    query_labels, gallery_labels = rng.integers(0, 9, 40), rng.integers(0, 9, 60)
    curve = cmc(evaluate(neighbours, query_labels, gallery_labels, map_k=1), max_k=12)
    for k in range(1, 13):
        expected = np.mean(
            [query_labels[i] in gallery_labels[neighbours.rows[i, :k]] for i in range(40)]
        )
        assert curve[k - 1] == pytest.approx(expected)
    assert curve[-1] > curve[0]
    assert (np.diff(curve) >= 0).all()


def test_flips_count_both_directions():
    """Of five queries two turn wrong and one turns right; uncounted ones change the base."""
    old = np.array([True, True, True, False, False])
    new = np.array([False, False, True, True, False])
    both = flips(old, new)
    assert (both.negative, both.positive, both.n) == (0.4, 0.2, 5)
    some = flips(old, new, has_match=np.array([True, False, True, True, False]))
    assert (some.negative, some.positive, some.n) == (pytest.approx(1 / 3), pytest.approx(1 / 3), 3)
    none = flips(old[:0], new[:0])
    assert np.isnan(none.negative)
    assert none.n == 0


GOOD = unit_rows(np.random.default_rng(0), 4, 3)
NAN = GOOD.copy()
NAN[2, 1] = np.nan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NAN, GOOD, 1), "row 2 has length nan"),
        ((GOOD, NAN, 1), "gallery must be unit rows"),
        ((2 * GOOD, GOOD, 1), "row 0 has length 2"),
        ((GOOD[:, :2] / np.linalg.norm(GOOD[:, :2], axis=1)[:, None], GOOD, 1), "2 dimensions"),
        ((GOOD[0], GOOD, 1), r"\(N, D\) floats"),
        ((GOOD, np.ones((2, 3), np.int64), 1), r"\(N, D\) floats"),
        ((GOOD, GOOD, 0), "k must be"),
        ((GOOD, GOOD, True), "k must be"),
        ((GOOD, GOOD, 1, np.array([0, 1, 2, 4])), "self_row must lie"),
        ((GOOD, GOOD, 1, np.array([0, 1])), r"self_row must be \(4,\)"),
        ((GOOD, GOOD, 1, None, 0), "block must be"),
    ],
)
def test_search_refuses(arguments, message):
    """Features that are not unit rows of one dimension, and rows out of range, are refused."""
    with pytest.raises(InputError, match=message):
        exact_search(*arguments)


@pytest.mark.parametrize(
    ("rows", "keywords", "message"),
    [
        ([[0], [1]], {"ks": (1, 5), "map_k": 1}, "needs that many neighbours"),
        ([[0], [1]], {"ks": (1,)}, "needs that many neighbours"),
        ([[0, 1, 2, 3], [0, 1, 2, 4]], {}, "gallery rows 0 to 3"),
        ([[0, 1, 2, 2], [0, 1, 2, 3]], {}, "twice among the answers"),
        ([[0, 1, 2, 3], [0, 1, 2, 3]], {"self_row": np.array([-1, 1])}, "own item"),
        ([[0, 1, 2, 3], [0, 1, 2, 3]], {"ks": (0,)}, "k must be"),
    ],
)
def test_evaluate_refuses(rows, keywords, message):
    """Neighbours with too few columns, or that are no search result, are refused."""
    neighbours = Neighbours(rows=np.array(rows), scores=np.zeros(np.shape(rows), np.float32))
    with pytest.raises(InputError, match=message):
        evaluate(neighbours, np.array([0, 1]), np.array([0, 1, 0, 1]), **keywords)


def test_labels_and_shapes_are_checked():
    """Text labels, different lengths, and hits that are not bool are refused."""
    neighbours = exact_search(GOOD, GOOD, 4)
    with pytest.raises(InputError, match="integer codes"):
        evaluate(neighbours, np.array(["a", "b", "c", "d"]), np.arange(4))
    with pytest.raises(InputError, match="query_labels"):
        evaluate(neighbours, np.arange(3), np.arange(4))
    with pytest.raises(InputError, match="same queries"):
        flips(np.array([True]), np.array([True, False]))
    with pytest.raises(InputError, match="bool"):
        flips(np.array([1, 0]), np.array([True, False]))


def test_judged_relevance_equals_relevance_by_class():
    """Judging every pair of one class relevant gives the metrics by class."""
    rng = np.random.default_rng(4)
    query_labels, gallery_labels = rng.integers(0, 9, 40), rng.integers(0, 7, 60)
    neighbours = exact_search(unit_rows(rng, 40, 6), unit_rows(rng, 60, 6), 12)
    pairs = np.argwhere(query_labels[:, None] == gallery_labels[None, :])
    pairs = pairs[rng.permutation(len(pairs))]
    judged = evaluate_judged(neighbours, pairs[:, 0], pairs[:, 1], 60, ks=(1, 5), map_k=12)
    expected = evaluate(neighbours, query_labels, gallery_labels, ks=(1, 5), map_k=12)
    assert judged.hit_rate == expected.hit_rate
    assert judged.n_without_match == expected.n_without_match > 0
    np.testing.assert_array_equal(judged.average_precision, expected.average_precision)
    np.testing.assert_array_equal(judged.first_hit, expected.first_hit)


def test_bad_judgments_are_refused():
    """A pair judged twice, or a row out of range, is refused."""
    neighbours = exact_search(GOOD, GOOD, 4)
    with pytest.raises(InputError, match="judged once"):
        evaluate_judged(neighbours, np.array([0, 0]), np.array([1, 1]), 4)
    with pytest.raises(InputError, match="rows below 4"):
        evaluate_judged(neighbours, np.array([0]), np.array([4]), 4)


def measures_by_loop(found, grade_of, k):
    """nDCG@k, recall@k and reciprocal rank at k of one query: ``found`` answers, row -> grade."""
    gains = [grade_of.get(row, 0) for row in found[:k] if row >= 0]
    dcg = math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, 1))
    best = sorted(grade_of.values(), reverse=True)[:k]
    ideal = math.fsum(gain / math.log2(rank + 1) for rank, gain in enumerate(best, 1))
    ranks = [rank for rank, gain in enumerate(gains, 1) if gain > 0]
    return dcg / ideal, len(ranks) / len(grade_of), 1 / ranks[0] if ranks else 0.0


def graded(seed, Q=25, G=40):
    """Neighbours of Q queries on a small gallery with ties, and the judged pairs: query, row and
    grade 1 to 3; some queries have none, one has more relevant rows than are found."""
    rng = np.random.default_rng(seed)
    gallery = unit_rows(rng, G // 2, 5)[rng.integers(0, G // 2, G)]
    neighbours = exact_search(unit_rows(rng, Q, 5), gallery, 20)
    is_judged = rng.random((Q, G)) < rng.choice([0.0, 0.1, 0.6], Q)[:, None]
    is_judged[3] = True
    query, row = np.nonzero(is_judged)
    order = rng.permutation(len(query))
    return neighbours, query[order], row[order], rng.integers(1, 4, len(query)).astype(float)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cells", [2**22, 60])
def test_graded_measures_equal_a_loop(seed, cells, monkeypatch):
    """nDCG, recall and reciprocal rank equal a loop over the queries, in one block and in many."""
    monkeypatch.setattr(retrieval, "_CELLS", cells)
    neighbours, query, row, grade = graded(seed)
    result = evaluate_judged(neighbours, query, row, 40, grades=grade, ks=(1, 7, 20), map_k=20)
    for i in range(25):
        of = {int(r): g for q, r, g in zip(query, row, grade, strict=True) if q == i}
        for k in (1, 7, 20):
            here = result.ndcg[k][i], result.recall[k][i], result.reciprocal_rank(k)[i]
            if not of:
                assert np.isnan(here).all()
                continue
            assert here == pytest.approx(measures_by_loop(neighbours.rows[i], of, k), abs=1e-12)
            assert bool(result.hit(k)[i]) == (here[2] > 0)
    assert result.mean(result.ndcg[7]) == pytest.approx(np.nanmean(result.ndcg[7]))


def test_measures_by_class_equal_a_loop():
    """Items of the query's class have the grade 1; its own row and ignored rows have none."""
    rng = np.random.default_rng(8)
    labels, own = rng.integers(0, 6, 30), np.arange(30)
    features = unit_rows(rng, 30, 5)
    pair = np.arange(30) // 2
    ignored = Ignored.from_groups((pair, pair), n_queries=30, n_rows=30)
    neighbours = exact_search(features, features, 15, own, ignored=ignored)
    result = evaluate(neighbours, labels, labels, own, ignored=ignored, ks=(1, 10), map_k=15)
    for i in range(30):
        of = {row: 1 for row in range(30) if labels[row] == labels[i] and row not in {i, i ^ 1}}
        for k in (1, 10):
            here = result.ndcg[k][i], result.recall[k][i], result.reciprocal_rank(k)[i]
            if of:
                assert here == pytest.approx(measures_by_loop(neighbours.rows[i], of, k), abs=1e-12)
            else:
                assert np.isnan(here).all()


def test_measures_are_those_of_ir_measures():
    """nDCG, MRR, recall, hit rate and, with as many answers as relevant rows, mAP equal those of
    ir_measures (trec_eval) to 1e-12, query by query."""
    ir = pytest.importorskip("ir_measures")
    ks = (1, 5, 10, 20)
    for seed in range(4):
        neighbours, query, row, grade = graded(seed)
        result = evaluate_judged(neighbours, query, row, 40, grades=grade, ks=ks, map_k=20)
        qrels = [ir.Qrel(str(q), str(r), int(g)) for q, r, g in zip(query, row, grade, strict=True)]
        run = [
            ir.ScoredDoc(str(q), str(r), -float(rank))
            for q, answers in enumerate(neighbours.rows)
            for rank, r in enumerate(answers)
        ]
        ours = {}
        for k in ks:
            ours[ir.nDCG @ k] = result.ndcg[k]
            ours[ir.RR @ k] = result.reciprocal_rank(k)
            ours[ir.R @ k] = result.recall[k]
            ours[ir.Success @ k] = result.hit(k).astype(float)
        few = np.bincount(query, minlength=25) <= 20
        ours[ir.AP @ 20] = np.where(few, result.average_precision, np.nan)
        compared = 0
        for found in ir.iter_calc(list(ours), qrels, run):
            expected = ours[found.measure][int(found.query_id)]
            if not np.isnan(expected):
                assert found.value == pytest.approx(expected, abs=1e-12), found
                compared += 1
        n_judged = len(set(query.tolist()))
        assert compared == len(ks) * 4 * n_judged + few[np.unique(query)].sum()


@pytest.mark.parametrize("grade", [0.0, -1.0, math.nan, math.inf])
def test_a_grade_that_is_not_above_zero_is_refused(grade):
    """Irrelevant pairs are left out before; a grade of them is a mistake."""
    neighbours = exact_search(GOOD, GOOD, 4)
    with pytest.raises(InputError, match="finite numbers above 0"):
        evaluate_judged(neighbours, np.array([0]), np.array([1]), 4, grades=np.array([grade]))
