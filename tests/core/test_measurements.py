"""Every measurement of a group of queries, against loops over the queries."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from compatctl.core.binomial import mcnemar
from compatctl.core.compatibility import inequalities
from compatctl.core.gate import judge
from compatctl.core.measurements import (
    ChainEvidence,
    GroupEvidence,
    measure,
    measure_chain,
    measure_mixed,
)
from compatctl.core.policy import Policy
from compatctl.core.resampling import half_samples
from compatctl.core.retrieval import NEVER, Retrieval
from compatctl.core.thresholds import AcceptCounts
from compatctl.errors import InputError

Q, B = 90, 199
KS = (4, 10)
"""The k at which recall and nDCG are there."""
POLICY = Policy(name="test", hit_at=1, wide_hit_at=5, slice_min_queries=25)


def draw():
    """A new generator of one seed."""
    return np.random.default_rng(77)


def retrieval(rng, has_match, ks=(1, 5)):
    """Random outcomes of as many queries; what was not counted looks like a hit at times."""
    first = rng.choice([1, 1, 2, 3, 5, 6, NEVER], len(has_match)).astype(np.int64)
    precision = np.where(has_match, rng.random(len(has_match)), np.nan)
    kept = np.flatnonzero(has_match)
    return Retrieval(
        n_queries=len(has_match),
        n_without_match=int((~has_match).sum()),
        hit_rate={k: float(np.mean([first[i] <= k for i in kept])) for k in ks},
        map_at_k=float(np.mean([precision[i] for i in kept])),
        map_k=100,
        first_hit=first,
        average_precision=precision,
        recall={k: np.where(has_match, rng.random(len(has_match)), np.nan) for k in KS},
        ndcg={k: np.where(has_match, rng.random(len(has_match)), np.nan) for k in KS},
    )


def accepted(rng):
    """Random counts of accepted pairs, of 30 and of 400 a query."""
    return AcceptCounts(
        same_accepted=rng.integers(0, 31, Q),
        same_pairs=np.full(Q, 30),
        diff_accepted=rng.integers(0, 5, Q),
        diff_pairs=np.full(Q, 400),
    )


def group_of(seed, name="unseen"):
    """A group of 90 queries of 12 classes, one in six without anything to find."""
    rng = np.random.default_rng(seed)
    has_match = rng.random(Q) < 5 / 6
    measurements = rng.random(Q)
    return GroupEvidence(
        name=name,
        classes=rng.integers(100, 112, Q),
        old_old=retrieval(rng, has_match),
        new_old=retrieval(rng, has_match),
        new_new=retrieval(rng, has_match),
        old_mixed=retrieval(rng, has_match),
        new_mixed=retrieval(rng, has_match),
        accepts=(accepted(rng), accepted(rng)),
        ann_recall=np.where(rng.random(Q) < 0.7, measurements, np.nan),
        slices={
            "large": rng.random(Q) < 0.5,
            "small": np.arange(Q) < 20,
            "none": np.zeros(Q, bool),
        },
    )


def measured(group, policy=POLICY):
    """Measurements by check and group, each of which stands once."""
    measurements = measure(policy, group, draw, B)
    by_name = {(measurement.name, measurement.group): measurement for measurement in measurements}
    assert len(by_name) == len(measurements)
    return by_name


def counted_queries(group, mask=None):
    """Positions of the queries with something to find (and in the slice)."""
    inside = np.ones(Q, dtype=bool) if mask is None else mask
    return [i for i in range(Q) if not math.isnan(group.old_old.average_precision[i]) and inside[i]]


def check(measurement, group, values, queries):
    """Value, replicates and classes are those of a loop over the queries with class weights."""
    assert measurement.estimate.value == pytest.approx(
        np.mean([values(i) for i in queries]), abs=1e-12
    )
    classes = sorted(set(group.classes.tolist()))
    drawn = []
    for w in np.concatenate(list(half_samples(len(classes), B, draw()))):
        weights = [w[classes.index(group.classes[i])] for i in queries]
        if sum(weights):
            total = sum(weight * values(i) for weight, i in zip(weights, queries, strict=True))
            drawn.append(total / sum(weights))
    assert measurement.estimate.n_empty == B - len(drawn)
    replicates = measurement.estimate.replicates[measurement.estimate.n_empty :]
    np.testing.assert_allclose(replicates, sorted(drawn), rtol=0, atol=1e-12)
    assert measurement.estimate.n_classes == len({group.classes[i] for i in queries})


def hit(test, i, k):
    """1 where query i found an item of its class among the first k."""
    return float(test.first_hit[i] <= k)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("hit_at", "wide"), [(1, 5), (5, 1)])
def test_gains_equal_a_loop(seed, hit_at, wide):
    """Gains in hit rate at both k and on both galleries are means over queries with a match."""
    group = group_of(seed)
    policy = replace(POLICY, hit_at=hit_at, wide_hit_at=wide)
    measurements, queries = measured(group, policy), counted_queries(group)
    old, new = group.old_old, group.new_old
    expected = {
        "hit_gain": (old, new, hit_at),
        "wide_hit_gain": (old, new, wide),
        "self_test_gain": (old, group.new_new, hit_at),
        "mixed_gain": (new, group.new_mixed, hit_at),
    }
    for name, (before, after, k) in expected.items():
        measurement = measurements[name, "unseen"]
        check(
            measurement,
            group,
            lambda i, a=after, b=before, k=k: hit(a, i, k) - hit(b, i, k),
            queries,
        )
        assert measurement.estimate.value == pytest.approx(after.hit_rate[k] - before.hit_rate[k])
        assert measurement.estimate.bounds == (-1.0, 1.0)
        assert f"{after.hit_rate[k]:.4f}" in measurement.detail
        assert f"{before.hit_rate[k]:.4f}" in measurement.detail


@pytest.mark.parametrize("seed", range(3))
def test_precision_and_flips_equal_a_loop(seed):
    """The change of mAP and the share of negative flips equal a loop."""
    group = group_of(seed)
    measurements, queries = measured(group), counted_queries(group)
    old, new = group.old_old, group.new_old
    change = measurements["map_gain", "unseen"]
    check(change, group, lambda i: new.average_precision[i] - old.average_precision[i], queries)
    assert change.estimate.value == pytest.approx(new.map_at_k - old.map_at_k)
    flips = measurements["negative_flips", "unseen"]
    check(flips, group, lambda i: float(hit(old, i, 1) > hit(new, i, 1)), queries)
    assert flips.estimate.bounds == (0.0, 1.0)
    worse = sum(hit(old, i, 1) > hit(new, i, 1) for i in queries)
    better = sum(hit(old, i, 1) < hit(new, i, 1) for i in queries)
    assert group.mcnemar == mcnemar(worse, better)
    assert f"{worse / len(queries):.4f}" in flips.detail
    assert f"{better / len(queries):.4f}" in flips.detail
    assert group.n_classes == len({group.classes[i] for i in queries})


@pytest.mark.parametrize("k", [4, 10])
def test_measures_of_a_ranking_equal_a_loop(k):
    """The changes of nDCG, MRR and recall at the policy's k equal a loop over the queries."""
    group = group_of(k)
    policy = replace(POLICY, ndcg_at=k, mrr_at=k, recall_at=k)
    measurements, queries = measured(group, policy), counted_queries(group)
    old, new = group.old_old, group.new_old

    def inverse(test, i):
        return 1 / test.first_hit[i] if test.first_hit[i] <= k else 0.0

    for name, change in {
        "ndcg_gain": lambda i: new.ndcg[k][i] - old.ndcg[k][i],
        "mrr_gain": lambda i: inverse(new, i) - inverse(old, i),
        "recall_gain": lambda i: new.recall[k][i] - old.recall[k][i],
    }.items():
        check(measurements[name, "unseen"], group, change, queries)
        assert f"@{k} on the old gallery is" in measurements[name, "unseen"].detail
    with pytest.raises(InputError, match="the policy needs nDCG@7"):
        measured(group, replace(POLICY, ndcg_at=7))


@pytest.mark.parametrize("seed", range(3))
def test_real_index_equals_a_loop(seed):
    """The hit rate of the index is a mean over the searched queries."""
    group = group_of(seed)
    measurement = measured(group)["ann_recall", "unseen"]
    searched = [i for i in range(Q) if not math.isnan(group.ann_recall[i])]
    check(measurement, group, lambda i: float(group.ann_recall[i]), searched)
    assert measurement.n == len(searched) < Q


def test_the_index_check_counts_its_searched_queries():
    """The number of searched queries is compared with the minimum."""
    group = group_of(1)
    few = np.where(np.arange(Q) < 7, 1.0, np.nan)
    assert measured(replace(group, ann_recall=few))["ann_recall", "unseen"].n_queries == 7


@pytest.mark.parametrize("seed", range(3))
def test_ratio_of_false_accepts_equals_a_loop(seed):
    """The ratio of false accepts equals the ratio of FARs on the same pairs."""
    group = group_of(seed)
    measurement = measured(group)["far_ratio", "unseen"]
    before, after = group.accepts
    assert measurement.estimate.value == pytest.approx(after.far / before.far)
    classes = sorted(set(group.classes.tolist()))
    drawn = []
    for w in np.concatenate(list(half_samples(len(classes), B, draw()))):
        weights = [w[classes.index(code)] for code in group.classes]
        old = sum(u * int(n) for u, n in zip(weights, before.diff_accepted, strict=True))
        new = sum(u * int(n) for u, n in zip(weights, after.diff_accepted, strict=True))
        drawn.append(new / old if old else -math.inf)
    np.testing.assert_allclose(measurement.estimate.replicates, sorted(drawn), rtol=1e-12)
    assert measurement.estimate.bounds == (0.0, math.inf)
    assert measurement.estimate.n_classes == group.n_classes
    assert measurement.n == Q * 400


@pytest.mark.parametrize("seed", range(3))
def test_increase_of_false_rejects_equals_a_loop(seed):
    """The increase of FRR over pairs equals a loop, with classes resampled."""
    group = group_of(seed)
    measurement = measured(group)["frr_increase", "unseen"]
    before, after = group.accepts
    assert measurement.estimate.value == pytest.approx(after.frr - before.frr)
    classes = sorted(set(group.classes.tolist()))
    drawn = []
    for w in np.concatenate(list(half_samples(len(classes), B, draw()))):
        pairs = lost = 0.0
        for i, code in enumerate(group.classes):
            pairs += w[classes.index(code)] * int(before.same_pairs[i])
            lost += w[classes.index(code)] * int(before.same_accepted[i] - after.same_accepted[i])
        drawn.append(lost / pairs if pairs else -math.inf)
    np.testing.assert_allclose(measurement.estimate.replicates, sorted(drawn), rtol=1e-12)
    assert measurement.estimate.bounds == (-1.0, 1.0)
    assert measurement.n == Q * 30


def test_a_model_that_rejects_everything_has_no_false_accept_and_fails():
    """FAR falls to 0 and its ratio passes; FRR fails."""
    group = group_of(0)
    nothing = np.zeros(Q, dtype=np.int64)
    before, after = (
        replace(measurement, same_accepted=np.full(Q, count), diff_accepted=false)
        for measurement, count, false in zip(
            group.accepts, (29, 0), (group.accepts[0].diff_accepted, nothing), strict=True
        )
    )
    policy = replace(POLICY, min_queries=1, min_classes=1)
    measurements = measure(policy, replace(group, accepts=(before, after)), draw, 1999)
    checks = {
        measurement.name: measurement
        for measurement in judge(policy, measurements).checks
        if measurement.group == "unseen"
    }
    assert (checks["far_ratio"].estimate, checks["far_ratio"].outcome) == (0.0, "pass")
    rejects = checks["frr_increase"]
    assert rejects.estimate == pytest.approx(29 / 30)
    assert (rejects.outcome, rejects.decides) == ("fail", True)


def test_false_accepts_of_one_class_leave_the_ratio_open():
    """If all old false accepts are of one class, half of the replicates have no ratio."""
    group = group_of(4)
    lonely = np.where(group.classes == group.classes[0], 3, 0)
    before = replace(group.accepts[0], diff_accepted=lonely)
    measurement = measured(replace(group, accepts=(before, group.accepts[1])))[
        "far_ratio", "unseen"
    ]
    assert measurement.estimate.value == group.accepts[1].diff_accepted.sum() / lonely.sum()
    assert B / 3 < measurement.estimate.n_empty < 2 * B / 3
    assert measurement.estimate.interval(0.95) == (0.0, math.inf)


def test_ratio_without_an_old_false_accept_is_undefined():
    """Without old false accepts the ratio is undefined and does not pass."""
    group = group_of(4)
    before = replace(group.accepts[0], diff_accepted=np.zeros(Q, dtype=np.int64))
    measurement = measured(replace(group, accepts=(before, group.accepts[1])))[
        "far_ratio", "unseen"
    ]
    assert math.isnan(measurement.estimate.value)
    assert measurement.estimate.p_below(1000.0) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_slices_equal_a_loop(seed):
    """A slice is measured on its queries with a match, and does not decide below the minimum."""
    group = group_of(seed)
    policy = replace(POLICY, min_slice_gain=0.0)
    measurements = measured(group, policy)
    judged = {
        measurement.group: measurement
        for measurement in judge(policy, measurements.values()).checks
    }
    for name in ("large", "small"):
        measurement = measurements["slice_gain", f"unseen, {name}"]
        queries = counted_queries(group, group.slices[name])
        check(
            measurement,
            group,
            lambda i: hit(group.new_old, i, 1) - hit(group.old_old, i, 1),
            queries,
        )
        assert measurement.n == measurement.n_queries == len(queries)
        assert judged[measurement.group].decides == (len(queries) >= policy.slice_min_queries)
        assert name in measurement.detail
    assert not judged["unseen, small"].decides
    assert judged["unseen, large"].decides
    empty = measurements["slice_gain", "unseen, none"]
    assert math.isnan(empty.estimate.value)
    assert (empty.n, judged[empty.group].decides) == (0, False)


def test_a_slice_of_the_minimum_decides():
    """A slice of exactly the minimum decides; with one query less it does not."""
    group = group_of(0)
    n = len(counted_queries(group, group.slices["large"]))
    for least, small in ((n, False), (n + 1, True)):
        policy = replace(POLICY, slice_min_queries=least, min_slice_gain=0.0)
        measurement = measured(group, policy)["slice_gain", "unseen, large"]
        assert judge(policy, [measurement]).checks[0].decides is not small


def test_queries_without_a_match_are_left_out_everywhere():
    """Answers of queries without a match change no measurement of retrieval."""
    group = replace(group_of(5), accepts=None, ann_recall=None)

    def other(test):
        first = np.where(test.has_match, test.first_hit, 8 - test.first_hit % 7)
        return replace(test, first_hit=first)

    names = ("old_old", "new_old", "new_new", "old_mixed", "new_mixed")
    changed = replace(group, **{name: other(getattr(group, name)) for name in names})
    assert any(
        (getattr(changed, name).hit(5) != getattr(group, name).hit(5)).any() for name in names
    )
    before, after = measured(group), measured(changed)
    assert before.keys() == after.keys()
    for key, measurement in before.items():
        assert np.array_equal(measurement.estimate.replicates, after[key].estimate.replicates)
        assert (measurement.detail, measurement.n, measurement.n_queries) == (
            after[key].detail,
            after[key].n,
            after[key].n_queries,
        )
        if key[0] != "slice_gain":
            assert measurement.n == measurement.n_queries == len(counted_queries(group)) < Q


def test_what_was_not_tested_is_not_measured():
    """Without new and mixed galleries, index, thresholds and slices, four checks remain."""
    bare = GroupEvidence(
        name="unseen",
        classes=group_of(6).classes,
        old_old=group_of(6).old_old,
        new_old=group_of(6).new_old,
    )
    assert [name for name, _ in measured(bare)] == [
        "hit_gain",
        "wide_hit_gain",
        "ndcg_gain",
        "mrr_gain",
        "recall_gain",
        "map_gain",
        "negative_flips",
    ]


def scene(seed, C=None):
    """A group whose inequalities come of random features; some queries have own gallery rows.

    With C all queries and gallery rows are of as many classes.
    """
    rng = np.random.default_rng(seed)

    def rows(n):
        features = rng.normal(size=(n, 6))
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    group = group_of(seed)
    labels, gallery_labels = group.classes, rng.integers(100, 115, 40)
    if C is not None:
        labels, gallery_labels = labels % C, gallery_labels % C
        group = replace(group, classes=labels)
    own = np.full(Q, -1)
    for i in range(0, Q, 3):
        same = np.flatnonzero(gallery_labels == labels[i])
        own[i] = same[0] if len(same) else -1
    old, new, gallery = rows(Q), rows(Q), rows(40)
    both = inequalities(old, new, labels, gallery, gallery_labels, own)
    return replace(group, inequalities=both), (old, new, labels, gallery, gallery_labels, own)


def test_inequalities_equal_a_loop():
    """(1a) and (1b) are the mean change over pairs, and more is better for both."""
    group, (old, new, labels, gallery, gallery_labels, own) = scene(7)
    measurements = measured(group)
    changes = {True: [], False: []}
    for i in range(Q):
        for j in range(40):
            if j != own[i]:
                moved = float((new[i] - old[i]) @ gallery[j])
                changes[bool(labels[i] == gallery_labels[j])].append(moved)
    same, diff = measurements["same_class", "unseen"], measurements["different_class", "unseen"]
    assert same.estimate.value == pytest.approx(np.mean(changes[True]), abs=1e-11)
    assert diff.estimate.value == pytest.approx(-np.mean(changes[False]), abs=1e-11)
    assert (same.n, diff.n) == (len(changes[True]), len(changes[False]))
    assert same.estimate.value == pytest.approx(group.inequalities.same_gain, abs=1e-11)
    assert diff.estimate.value == pytest.approx(group.inequalities.diff_gain, abs=1e-11)
    for measurement in (same, diff):
        assert measurement.n_queries == len(counted_queries(group))
        assert measurement.may_decide
        assert np.all(np.diff(measurement.estimate.replicates) >= 0)


@pytest.mark.parametrize("C", [None, 3, 7])
def test_the_second_inequality_is_negated(C):
    """Swapping old and new mirrors (1b), also with empty replicates."""
    group, (old, new, labels, gallery, gallery_labels, own) = scene(8, C)
    back = inequalities(new, old, labels, gallery, gallery_labels, own)
    measurement = measured(group)["different_class", "unseen"].estimate
    other = measured(replace(group, inequalities=back))["different_class", "unseen"].estimate
    assert measurement.value == pytest.approx(-other.value, abs=1e-12)
    assert len(measurement.replicates) == len(other.replicates) == B
    assert (measurement.n_empty > 0, measurement.n_empty) == (C is not None, other.n_empty)
    low, high = measurement.interval(0.9)
    assert low <= measurement.value <= high
    assert other.interval(0.9) == pytest.approx((-high, -low), abs=1e-12)
    for t in (-0.03, 0.001, 0.02):
        assert measurement.p_above(t) == other.p_below(-t)


def test_only_unseen_queries_decide():
    """Other groups get the same measurements, and do not decide."""
    unseen, _ = scene(9)
    measurements, other = measured(unseen), measured(replace(unseen, name="seen"))
    assert all(measurement.may_decide for measurement in measurements.values())
    assert not any(measurement.may_decide for measurement in other.values())
    assert [name for name, _ in measurements] == [name for name, _ in other]
    assert all(group.startswith("seen") for _, group in other)
    for measurement, same in zip(measurements.values(), other.values(), strict=True):
        assert np.array_equal(measurement.estimate.replicates, same.estimate.replicates)


def test_a_missing_hit_rate_is_refused():
    """Both hit rates of the policy are needed in every retrieval of the group."""
    group = group_of(10)
    for searched in ({"hit_at": 3}, {"wide_hit_at": 3}):
        with pytest.raises(InputError, match="hit@3, but the hit rate was computed at 1, 5"):
            measure(replace(POLICY, **searched), group, draw, B)
    for name in ("old_old", "new_old", "new_new", "old_mixed", "new_mixed"):
        part = replace(getattr(group, name), hit_rate={1: 0.5})
        with pytest.raises(InputError, match="hit@5, but the hit rate was computed at 1"):
            measure(POLICY, replace(group, **{name: part}), draw, B)


@pytest.mark.parametrize("name", ["new_old", "new_new", "old_new", "old_mixed", "new_mixed"])
def test_retrievals_of_different_queries_are_refused(name):
    """More, fewer or other queries with a match are refused."""
    group = group_of(11)
    rng = np.random.default_rng(12)
    turned = np.roll(group.old_old.has_match, 1)
    assert turned.sum() == group.old_old.n_with_match
    for has_match in (
        turned,
        group.old_old.has_match[:-1],
        np.append(group.old_old.has_match, True),
    ):
        with pytest.raises(
            InputError, match="group unseen: the retrievals are of different queries"
        ):
            measure(POLICY, replace(group, **{name: retrieval(rng, has_match)}), draw, B)


def test_no_query_at_all_is_measured_as_undefined():
    """A group without queries has every statistic, and all are NaN."""
    none = np.zeros(0)
    nothing = Retrieval(
        n_queries=0,
        n_without_match=0,
        hit_rate={1: math.nan, 5: math.nan},
        map_at_k=math.nan,
        map_k=100,
        first_hit=none.astype(np.int64),
        average_precision=none,
        recall={10: none},
        ndcg={10: none},
    )
    group = GroupEvidence(
        name="unseen", classes=none.astype(np.int64), old_old=nothing, new_old=nothing
    )
    assert (group.mcnemar, group.n_classes) == (1.0, 0)
    for measurement in measured(group).values():
        assert math.isnan(measurement.estimate.value)
        assert (measurement.n, measurement.n_queries, measurement.estimate.n_classes) == (0, 0, 0)


@pytest.mark.parametrize("k", [1, 5])
def test_chain_equals_a_loop(k):
    """The gain on a version's rows over its own queries equals a loop, and decides."""
    group = group_of(13)
    link = ChainEvidence(name="v1", classes=group.classes, own=group.old_old, new=group.new_old)
    measurement = measure_chain(link, k, draw, B)
    check(
        measurement,
        group,
        lambda i: hit(link.new, i, k) - hit(link.own, i, k),
        counted_queries(group),
    )
    assert (measurement.name, measurement.group, measurement.may_decide) == (
        "chain_gain",
        "v1",
        True,
    )
    assert measurement.n == measurement.n_queries == len(counted_queries(group))
    assert f"hit@{k} is {link.new.hit_rate[k]:.4f}" in measurement.detail
    assert f"{link.own.hit_rate[k]:.4f} with its own" in measurement.detail


def test_a_version_with_few_matched_queries_does_not_decide():
    """Below the minimum it does not decide; the estimate is the same."""
    group = group_of(13)
    link = ChainEvidence(name="v1", classes=group.classes, own=group.old_old, new=group.new_old)
    measurement = measure_chain(link, 1, draw, B)
    few, enough = (
        judge(Policy(slice_min_queries=least), [measurement]).checks[0]
        for least in (measurement.n + 1, measurement.n)
    )
    assert (few.decides, enough.decides, few.n) == (False, True, len(counted_queries(group)))
    assert few.estimate == enough.estimate


def test_the_gain_of_re_embedding_equals_a_loop():
    """The gain of one model's queries between two galleries equals a loop, replicates included."""
    group = group_of(16)
    before, after, k = group.new_old, group.new_mixed, 5
    measurement = measure_mixed(group.classes, before, after, k=k, draw=draw, replicates=B)
    queries = counted_queries(group)
    check(measurement, group, lambda i: hit(after, i, k) - hit(before, i, k), queries)
    assert (measurement.name, measurement.may_decide, measurement.n, measurement.n_queries) == (
        "mixed_gain",
        True,
        len(queries),
        len(queries),
    )
    assert f"{after.hit_rate[k]:.4f} on the resulting gallery" in measurement.detail
    with pytest.raises(InputError, match="hit@3"):
        measure_mixed(group.classes, before, after, k=3, draw=draw, replicates=B)


def test_chain_on_different_queries_is_refused():
    """Different queries, or a missing hit rate, are refused."""
    group = group_of(14)
    rng = np.random.default_rng(15)
    other = retrieval(rng, np.roll(group.old_old.has_match, 1))
    link = ChainEvidence(name="v1", classes=group.classes, own=group.old_old, new=other)
    with pytest.raises(InputError, match="v1"):
        measure_chain(link, 1, draw, B)
    with pytest.raises(InputError, match="hit@3"):
        measure_chain(replace(link, new=group.new_old), 3, draw, B)
