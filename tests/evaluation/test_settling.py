"""No seed changes a verdict: close calls are drawn again, longer, with a fixed seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compatctl.core.gate import borderline_checks, judge
from compatctl.core.measurements import GroupEvidence, measure
from compatctl.core.policy import Policy
from compatctl.core.retrieval import NEVER, Retrieval
from compatctl.evaluation.adaptive_resampling import MAX_REPLICATES, adaptive_verdict, sampling
from compatctl.evaluation.comparison import GroupResult

POLICY = Policy(min_queries=1, different_class_margin=None, max_design_effect=None, replicates=999)
CLASSES, SIZE, SEEDS = 60, 6, 3


GAIN = {("hit_gain", "unseen")}


def retrieval(hits):
    """The retrieval with these first answers (Q,)."""
    return Retrieval(
        n_queries=len(hits),
        n_without_match=0,
        hit_rate={k: float(hits.mean()) for k in (1, 5)},
        map_at_k=float(hits.mean()),
        map_k=100,
        first_hit=np.where(hits, 1, NEVER),
        average_precision=hits * 1.0,
        recall={10: hits * 1.0},
        ndcg={10: hits * 1.0},
    )


def trial(seed, gain=0.09):
    """Held-out queries of which about half the samples show the gain."""
    rng = np.random.default_rng(seed)
    classes = np.repeat(np.arange(CLASSES), SIZE)
    effect = np.clip(gain + rng.uniform(-0.3, 0.3, CLASSES), -0.4, 0.4)[classes]
    old = rng.random(len(classes)) < 0.5
    toss = rng.random(len(classes))
    new = np.where(old, toss >= 0.1 + np.maximum(-effect, 0), toss < 0.1 + np.maximum(effect, 0))
    evidence = GroupEvidence(
        name="unseen", classes=classes, old_old=retrieval(old), new_old=retrieval(new)
    )
    return GroupResult(evidence=evidence, kept=np.ones(len(evidence.classes), bool))


def borderline(n):
    """Samples whose p-value lies within .004 of the level: where a draw could decide."""
    rows, seed = [], 0
    while len(rows) < n:
        seed += 1
        entry, draw = trial(seed), np.random.default_rng(0)
        found_gain = measure(POLICY, entry.evidence, lambda draw=draw: draw, 8000, GAIN)
        check = judge(POLICY, found_gain)
        if abs(check.checks[0].raw_p[0] - POLICY.alpha / 2) < 0.004:
            rows.append(entry)
    return rows


def turned(samples, judged):
    """How many of them have an outcome that depends on the seed."""
    return sum(len({judged(entry, seed) for seed in range(SEEDS)}) > 1 for entry in samples)


def test_the_outcome_of_a_close_call_does_not_depend_on_the_seed():
    """Seeds change some borderline samples at equal replicates, and none after the longer draw."""
    samples = borderline(10)

    def once(one, seed):
        how = sampling(POLICY, seed, 0, 0)
        return judge(POLICY, measure(POLICY, one.evidence, how.draw, how.replicates)).outcome

    def settled(one, seed):
        return adaptive_verdict(POLICY, [one], [], [], sampling(POLICY, seed, 0, 0)).outcome

    assert turned(samples, once) >= 3
    assert turned(samples, settled) == 0
    assert {settled(entry, 0) for entry in samples} == {"pass", "inconclusive"}


def test_only_close_calls_are_drawn_again():
    """A clear gain keeps its replicates; a close one has many more, for that check alone."""
    lengths = {}
    for gain in (0.3, 0.0):
        result = measure(POLICY, trial(1, gain).evidence, lambda: np.random.default_rng(0), 999)
        lengths[gain] = borderline_checks(POLICY, result, judge(POLICY, result))
    assert lengths == {0.3: set(), 0.0: set()}
    (close,) = borderline(1)
    result = measure(POLICY, close.evidence, lambda: np.random.default_rng(0), 999)
    assert borderline_checks(POLICY, result, judge(POLICY, result)) == {("hit_gain", "unseen")}
    only = measure(
        POLICY, close.evidence, lambda: np.random.default_rng(0), 999, {("hit_gain", "unseen")}
    )
    assert [entry.name for entry in only] == ["hit_gain"]
    assert np.array_equal(only[0].estimate.replicates, result[0].estimate.replicates)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_p_value_that_the_seed_cannot_change_is_no_close_call(side):
    """If another bound than the replicates keeps the check open, more replicates change nothing."""
    (close,) = borderline(1)
    result = measure(POLICY, close.evidence, lambda: np.random.default_rng(0), 999)
    entry = result[0].estimate
    skew = replace(entry.skew_low, shift=-1.0) if side > 0 else entry.skew_low
    held = replace(result[0], estimate=replace(entry, skew_low=skew))
    assert borderline_checks(POLICY, [held], judge(POLICY, [held])) == (
        set() if side > 0 else {("hit_gain", "unseen")}
    )


def test_the_long_draw_is_bounded():
    """It takes at most some seconds, and never fewer replicates than required."""
    from compatctl.evaluation.adaptive_resampling import CELLS, _longer

    assert _longer(100, CELLS, 2000).replicates == MAX_REPLICATES
    assert _longer(10**6, CELLS, 2000).replicates == CELLS // 10**6
    assert _longer(10**9, CELLS, 5000).replicates == 5000
