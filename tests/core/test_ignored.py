"""Ignored gallery rows: every figure against a loop over single pairs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from compatctl.core import ignored as module
from compatctl.core.class_sums import class_sums, query_sums
from compatctl.core.compatibility import inequalities, judged_inequalities
from compatctl.core.ignored import Ignored
from compatctl.core.nearest import exact_search
from compatctl.core.pair_tiles import PairTruth
from compatctl.core.resampling import estimate_diff, half_samples
from compatctl.core.retrieval import NEVER, evaluate, evaluate_judged
from compatctl.core.score_histogram import score_histogram
from compatctl.core.thresholds import count_accepts, threshold_keeping_far
from compatctl.errors import InputError

Q, G, D = 23, 37, 6


def unit(rows):
    """Rows scaled to length 1, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@dataclass
class Scene:
    """Queries and gallery rows of a few classes, and two groupings by which rows are ignored."""

    seed: int
    old: np.ndarray = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        self.old, self.new = unit(rng.normal(size=(Q, D))), unit(rng.normal(size=(Q, D)))
        self.gallery = unit(rng.normal(size=(G, D)))
        self.labels, self.gallery_labels = rng.integers(0, 4, Q), rng.integers(0, 5, G)
        self.own = rng.integers(-1, G, Q)
        self.codes = [(rng.integers(-1, n, Q), rng.integers(-1, n, G)) for n in (3, 9)]
        self.ignored = Ignored.from_groups(*self.codes, n_queries=Q, n_rows=G)
        self.pairs = {
            (q, g)
            for q in range(Q)
            for g in range(G)
            if any(a[q] >= 0 and a[q] == b[g] for a, b in self.codes)
        }
        assert len(self.pairs) > Q

    def counts(self, q, g):
        """Whether a pair counts at all."""
        return (q, g) not in self.pairs and self.own[q] != g

    def kept(self, kind=None):
        """(query, row) of every pair that counts, of one class or of two."""
        return [
            (q, g)
            for q in range(Q)
            for g in range(G)
            if self.counts(q, g) and kind in (None, bool(self.labels[q] == self.gallery_labels[g]))
        ]

    @property
    def truth(self):
        """What each pair is."""
        return PairTruth(
            query_labels=self.labels,
            gallery_labels=self.gallery_labels,
            self_row=self.own,
            ignored=self.ignored,
        )


@pytest.mark.parametrize("seed", range(3))
def test_all_views_of_ignored_pairs_agree(seed, monkeypatch):
    """Windows, blocks, membership, selected queries and row ranges agree with a loop."""
    scene = Scene(seed)
    for first, last, top, stop in ((0, None, 0, Q), (5, 21, 3, 11), (36, 99, 0, Q), (7, 7, 0, 4)):
        query, row = scene.ignored.pairs(slice(top, stop), first, last)
        answers = list(zip(query.tolist(), row.tolist(), strict=True))
        end = G if last is None else last
        expected = [(q - top, g) for q, g in scene.pairs if top <= q < stop and first <= g < end]
        assert answers == sorted(expected)
    for most in (1, 10, 10**6):
        monkeypatch.setattr(module, "_CELLS", most)
        blocks = list(scene.ignored.blocks())
        assert (len(blocks) > 1) == (most < 10**6)
        pairs = [pair for q, g in blocks for pair in zip(q.tolist(), g.tolist(), strict=True)]
        assert pairs == sorted(scene.pairs)
    rows = np.tile(np.arange(-1, G), (Q, 1))
    held = scene.ignored.contains(rows)
    assert {(q, g - 1) for q, g in np.argwhere(held).tolist()} == scene.pairs
    some, window = np.arange(Q) % 3 == 0, scene.ignored.row_range(10, 30).row_range(2, 9)
    part = window.select_queries(some)
    expected = {(q // 3, g - 12) for q, g in scene.pairs if q % 3 == 0 and 12 <= g < 19}
    assert set(zip(*map(np.ndarray.tolist, part.pairs(slice(None))), strict=True)) == expected
    rows = np.array([1, 2, 5, 6])
    position = np.full(7, -1)
    position[rows] = np.arange(len(rows))
    few = window.remap_rows(position)
    wanted_few = {(q, rows.tolist().index(g - 12)) for q, g in scene.pairs if g - 12 in rows}
    assert set(zip(*map(np.ndarray.tolist, few.pairs(slice(None))), strict=True)) == wanted_few
    assert part.contains(np.tile(np.arange(7), (some.sum(), 1))).sum() == len(expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block", [4, 1024])
def test_ignored_rows_are_never_answers(seed, block):
    """The k nearest rows are those of a sorted list without ignored rows, ties included."""
    scene = Scene(seed)
    answers = exact_search(scene.old, scene.gallery, 12, scene.own, block, ignored=scene.ignored)
    scores = scene.old.astype(np.float64) @ scene.gallery.T.astype(np.float64)
    for q in range(Q):
        rows = [g for g in range(G) if scene.counts(q, g)]
        expected = sorted(rows, key=lambda g, q=q: -scores[q, g])[:12]
        assert [g for g in answers.rows[q].tolist() if g >= 0] == expected


@pytest.mark.parametrize("n", [3, 400])
def test_ignored_rows_are_never_answers_in_many_tiles(n, monkeypatch):
    """The same holds over many tiles, and if a group is most of the gallery."""
    from compatctl.core import nearest

    monkeypatch.setattr(nearest, "_CELLS", 2**10)
    rng = np.random.default_rng(0)
    queries, gallery = unit(rng.normal(size=(40, D))), unit(rng.normal(size=(3000, D)))
    a, b = rng.integers(0, n, 40), rng.integers(0, n, 3000)
    answers = exact_search(
        queries,
        gallery,
        5,
        None,
        16,
        ignored=Ignored.from_groups((a, b), n_queries=40, n_rows=3000),
    )
    scores = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    scores[a[:, None] == b[None]] = -2
    assert answers.rows.tolist() == np.argsort(-scores, axis=1, kind="stable")[:, :5].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_hit_rate_and_precision_exclude_ignored_rows(seed):
    """First hits, average precision and R equal a loop without ignored rows."""
    scene = Scene(seed)
    sides = scene.labels, scene.gallery_labels, scene.own
    answers = exact_search(scene.old, scene.gallery, G, scene.own, ignored=scene.ignored)
    result = evaluate(answers, *sides, ignored=scene.ignored, ks=(1, 5), map_k=10)
    scores = scene.old.astype(np.float64) @ scene.gallery.T.astype(np.float64)
    without = 0
    for q in range(Q):
        rows = [g for g in range(G) if scene.counts(q, g)]
        rows.sort(key=lambda g, q=q: -scores[q, g])
        right = [scene.gallery_labels[g] == scene.labels[q] for g in rows]
        without += not any(right)
        assert result.first_hit[q] == (right.index(True) + 1 if any(right) else NEVER)
        if any(right):
            at = [i for i in range(min(10, len(right))) if right[i]]
            expected = sum(sum(right[: i + 1]) / (i + 1) for i in at) / min(sum(right), 10)
            assert result.average_precision[q] == pytest.approx(expected)
    assert result.n_without_match == without
    with pytest.raises(InputError, match="an item that it ignores"):
        evaluate(
            exact_search(scene.old, scene.gallery, G, scene.own), *sides, ignored=scene.ignored
        )


@pytest.mark.parametrize("block", [5, 2048])
def test_inequalities_exclude_ignored_pairs(block):
    """Means, shares and drift equal loops without ignored pairs."""
    scene = Scene(4)
    result = inequalities(
        scene.old,
        scene.new,
        scene.labels,
        scene.gallery,
        scene.gallery_labels,
        scene.own,
        ignored=scene.ignored,
        block=block,
    )
    old, new = (
        features.astype(float) @ scene.gallery.T.astype(float)
        for features in (scene.old, scene.new)
    )
    for kind, name in ((True, "same"), (False, "diff")):
        pairs = tuple(np.array(scene.kept(kind)).T)
        assert getattr(result.old_old, f"cos_{name}") == pytest.approx(old[pairs].mean(), abs=1e-6)
        assert getattr(result.new_old, f"cos_{name}") == pytest.approx(new[pairs].mean(), abs=1e-6)
        assert getattr(result.old_old, f"n_{name}") == len(pairs[0])
        holds = (new - old)[pairs] >= 0 if kind else (new - old)[pairs] <= 0
        assert getattr(result, f"share_{name}") == pytest.approx(holds.mean())
    own = [(q, g) for q, g in enumerate(scene.own) if g >= 0]
    assert result.drift_mean == pytest.approx(1 - np.mean([new[pair] for pair in own]), abs=1e-6)
    estimate = estimate_diff(result.sums, 50, np.random.default_rng(1))
    codes = np.unique(scene.labels)
    expected = []
    for w in np.concatenate(list(half_samples(len(codes), 50, np.random.default_rng(1)))):
        weight = dict(zip(codes.tolist(), w.tolist(), strict=True))
        total = n = 0.0
        for q, g in scene.kept(False):
            pair = weight[scene.labels[q]] * weight.get(int(scene.gallery_labels[g]), 1.0)
            total, n = total + pair * (new - old)[q, g], n + pair
        expected.append(total / n if n else -np.inf)
    np.testing.assert_allclose(estimate.replicates, sorted(expected), atol=1e-6)


def test_judged_metrics_exclude_ignored_pairs():
    """Sums by query, hit rate and precision with judgments equal loops without ignored pairs."""
    scene = Scene(5)
    rng = np.random.default_rng(6)
    judged = np.array([pair for pair in scene.kept() if rng.random() < 0.1])
    sums = query_sums(scene.old, scene.gallery, *judged.T, scene.own, scene.ignored)
    scores = scene.old.astype(float) @ scene.gallery.T.astype(float)
    relevant = {tuple(pair) for pair in judged.tolist()}
    for q in range(Q):
        here = [g for g in range(G) if scene.counts(q, g)]
        same = [scores[q, g] for g in here if (q, g) in relevant]
        diff = [scores[q, g] for g in here if (q, g) not in relevant]
        assert (sums.same[1][q], sums.diff[1][q]) == (len(same), len(diff))
        assert (sums.same[0][q], sums.diff[0][q]) == pytest.approx((sum(same), sum(diff)), abs=1e-5)
    result = judged_inequalities(
        scene.old, scene.new, scene.gallery, *judged.T, scene.own, ignored=scene.ignored
    )
    assert result.old_old.n_same == len(judged)
    answers = exact_search(scene.old, scene.gallery, G, scene.own, ignored=scene.ignored)
    right = evaluate_judged(answers, *judged.T, G, ks=(1,))
    for q in range(Q):
        here = sorted((g for g in range(G) if scene.counts(q, g)), key=lambda g, q=q: -scores[q, g])
        hits = [rank for rank, g in enumerate(here, 1) if (q, g) in relevant]
        assert right.first_hit[q] == (hits[0] if hits else NEVER)


@pytest.mark.parametrize("block", [4, 1024])
def test_thresholds_exclude_ignored_pairs(block):
    """Accepted pairs, the threshold that keeps their number, and histograms equal loops."""
    scene = Scene(7)
    result = count_accepts(scene.old, scene.gallery, scene.truth, 0.1, block=block)
    scores = scene.old @ scene.gallery.T
    expected = np.zeros((4, Q), int)
    for at, kind in ((0, True), (2, False)):
        for q, g in scene.kept(kind):
            expected[at, q] += scores[q, g] >= 0.1
            expected[at + 1, q] += 1
    counts = np.array(
        [result.same_accepted, result.same_pairs, result.diff_accepted, result.diff_pairs]
    )
    assert counts.tolist() == expected.tolist()
    diff = np.sort([scores[pair] for pair in scene.kept(False)])[::-1]
    keeping = threshold_keeping_far(scene.old, scene.gallery, scene.truth, 9, block=block)
    assert keeping == pytest.approx(float(diff[9]), abs=1e-6)
    answers = score_histogram(scene.old, scene.gallery, scene.truth, block=block)
    assert (answers.same.sum(), answers.diff.sum()) == (len(scene.kept(True)), len(diff))


def test_groups_without_shared_codes_ignore_nothing():
    """Negative codes, and codes that no gallery row has, ignore no row."""
    scene = Scene(8)
    none = Ignored.from_groups(
        (np.full(Q, -1), np.full(G, -1)),
        (np.arange(Q), np.arange(G) + Q),
        n_queries=Q,
        n_rows=G,
    )
    sides = scene.old, scene.labels, scene.gallery, scene.gallery_labels
    assert [len(query) for query, _ in none.blocks()] == [0]
    answers = exact_search(scene.old, scene.gallery, 9, scene.own, ignored=none)
    assert np.array_equal(answers.rows, exact_search(scene.old, scene.gallery, 9, scene.own).rows)
    rates = [
        count_accepts(scene.old, scene.gallery, replace(scene.truth, ignored=ignored), 0.0).far
        for ignored in (none, None)
    ]
    assert rates[0] == rates[1]
    plain = inequalities(scene.old, scene.new, *sides[1:])
    assert inequalities(scene.old, scene.new, *sides[1:], ignored=none) == plain
    assert plain.old_old == class_sums(*sides).means()


def test_more_queries_ignore_nothing():
    """Queries that are added at the end find what they find alone, the others what they found."""
    scene = Scene(3)
    queries = np.concatenate([scene.new, scene.new[:5]])
    own = np.concatenate([scene.own, np.full(5, -1)])
    both = exact_search(queries, scene.gallery, 7, own, ignored=scene.ignored.with_queries(5))
    first = exact_search(scene.new, scene.gallery, 7, scene.own, ignored=scene.ignored)
    alone = exact_search(scene.new[:5], scene.gallery, 7)
    np.testing.assert_array_equal(both.rows[:Q], first.rows)
    np.testing.assert_array_equal(both.rows[Q:], alone.rows)
