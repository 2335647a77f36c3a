"""The gate: what passes, what fails, what is inconclusive, and which sample would settle it."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatctl.core.binomial import upper_limit
from compatctl.core.compatibility import inequalities
from compatctl.core.estimate import Estimate
from compatctl.core.gate import Check, Measurement, describe_units, holm, judge
from compatctl.core.measurements import ChainEvidence, GroupEvidence, measure, measure_chain
from compatctl.core.nearest import exact_search
from compatctl.core.policy import Policy
from compatctl.core.resampling import Ratio, estimate_ratios
from compatctl.core.retrieval import evaluate
from compatctl.errors import InputError

POLICY = Policy(name="test", min_queries=100, min_classes=20)
EACH = 10
"""Queries of a class."""


def gain(changes, name="hit_gain", group="unseen", harm=-1, bounds=(-1.0, 1.0), **keywords):
    """The measurement of a gain in which each class's ten queries change by as much in all."""
    totals = np.asarray(changes, dtype=np.float64)
    ratio = Ratio(totals=totals, counts=np.full(len(totals), EACH * 1.0), bounds=bounds, harm=harm)
    (estimate,) = estimate_ratios([ratio], 1999, np.random.default_rng(0))
    rest = {
        "n": EACH * len(totals),
        "n_queries": EACH * len(totals),
        "may_decide": True,
        "detail": "Something moves by something",
    }
    return Measurement(name=name, group=group, estimate=estimate, **rest | keywords)


def number(value, name="parity", n=50, **keywords):
    """A measurement that is a plain number."""
    return Measurement(
        name=name,
        group="unseen",
        estimate=value,
        n=n,
        n_queries=n,
        may_decide=True,
        detail="Something is something",
        **keywords,
    )


def borderline(against, value=0.05, B=999, **keywords):
    """A gain of which as many of 999 replicates lie below 0 and above twice the estimate."""
    middle = np.linspace(0.01, 2 * value - 0.01, B - 2 * against)
    replicates = np.concatenate(
        [np.full(against, -0.01), middle, np.full(against, 2 * value + 0.01)]
    )
    estimate = Estimate(
        value=value, replicates=replicates, n_empty=0, n_classes=40, bounds=(-1.0, 1.0)
    )
    return replace(gain(np.ones(40), **keywords), estimate=estimate)


def changes(mean, scatter=0.2, C=40, seed=3):
    """(C,) changes of classes with exactly this mean and standard deviation a query."""
    noise = np.random.default_rng(seed).normal(size=C)
    noise = (noise - noise.mean()) / noise.std()
    return EACH * (mean + scatter * noise)


def only(verdict, name="hit_gain", group="unseen"):
    """The one check of that name and group."""
    (check,) = [entry for entry in verdict.checks if (entry.name, entry.group) == (name, group)]
    return check


BETTER, WORSE = gain(changes(0.2)), gain(changes(-0.2))


# From features to a verdict

LABELS = np.repeat(np.arange(30), EACH)
OWN = np.arange(len(LABELS))


def features(noise, seed=1):
    """(300, 40) unit rows: 30 class centres, shared by all models, plus noise of that length."""
    centres = np.random.default_rng(0).normal(size=(30, 40))
    rows = centres[LABELS] + noise * np.random.default_rng(seed).normal(size=(len(LABELS), 40))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


OLD = features(1.8)


def evidence(new, labels=LABELS, name="unseen", policy=POLICY):
    """What is measured when ``new`` queries search the gallery that ``OLD`` embedded."""

    def test(queries, gallery):
        measured = exact_search(queries, gallery, 100, OWN)
        return evaluate(measured, labels, labels, OWN, ks=(1, 5, 10))

    group = GroupEvidence(
        name=name,
        classes=labels,
        old_old=test(OLD, OLD),
        new_old=test(new, OLD),
        new_new=test(new, new),
        inequalities=inequalities(OLD, new, labels, OLD, labels, OWN),
        slices={"an even number": OWN % 2 == 0},
    )
    return measure(policy, group, lambda: np.random.default_rng(5), 1999)


def test_a_better_model_passes():
    """A model with tighter clusters gains hit rate, keeps both inequalities, and passes."""
    verdict = judge(POLICY, evidence(features(0.6, seed=2)))
    assert verdict.outcome == "pass"
    check = only(verdict)
    assert check.outcome == "pass"
    assert 0 < check.low <= check.estimate <= check.high
    assert (check.threshold, check.margin, check.n, check.n_classes) == (0.0, None, 300, 30)
    assert check.p <= 0.025
    assert check.needed is None
    assert only(verdict, "different_class").margin == 0.05
    assert only(verdict, "same_class").low > 0
    assert only(verdict, "slice_gain", "unseen, an even number").outcome == "pass"
    deciding = {check.name for check in verdict.checks if check.decides}
    assert deciding == {"hit_gain", "different_class", "slice_gain"}


def test_a_worse_model_fails():
    """A noisier model loses hit rate, with its whole interval below 0."""
    verdict = judge(POLICY, evidence(features(4.0, seed=2)))
    assert verdict.outcome == "fail"
    check = only(verdict)
    assert check.outcome == "fail"
    assert check.low <= check.estimate <= check.high < 0


def test_an_identical_model_does_not_pass():
    """The deployed model against itself is inconclusive: ties show neither gain nor loss."""
    verdict = judge(POLICY, evidence(OLD.copy()))
    check = only(verdict)
    assert check.estimate == 0.0
    assert (check.outcome, check.p, check.needed) == ("inconclusive", 1.0, None)
    assert only(verdict, "different_class").outcome == "pass"
    assert verdict.outcome == "inconclusive"


def test_queries_without_a_match_are_no_evidence():
    """If no query has a match, nothing passes."""
    lax = Policy(name="lax", min_queries=1, min_classes=1, slice_min_queries=1)
    verdict = judge(lax, evidence(features(0.6), labels=np.arange(300), policy=lax))
    assert verdict.outcome == "inconclusive"
    check = only(verdict)
    assert (check.estimate, check.low, check.high, check.p) == (None, None, None, None)
    assert check.outcome == "inconclusive"
    assert check.detail == "Nothing was there to compare."
    assert only(verdict, "same_class").estimate is None


def test_a_group_without_queries_never_passes():
    """A group without queries is inconclusive in every check, under the most lenient policy too;
    no sentence has numbers of nothing."""
    lax = Policy(name="lax", min_queries=1, min_classes=1, min_hit_gain=-1.0, slice_min_queries=1)
    none = np.zeros((0, 40), dtype=np.float32)
    labels = np.zeros(0, dtype=np.int64)
    nothing = evaluate(exact_search(none, OLD, 100), labels, LABELS, ks=(1, 5, 10))
    group = GroupEvidence(
        name="unseen",
        classes=labels,
        old_old=nothing,
        new_old=nothing,
        inequalities=inequalities(none, none, labels, OLD, LABELS),
        slices={"nothing": np.zeros(0, dtype=bool)},
    )
    link = ChainEvidence(name="v1", classes=labels, own=nothing, new=nothing)

    def draw():
        return np.random.default_rng(0)

    measured = [*measure(lax, group, draw, 999), measure_chain(link, 1, draw, 999)]
    verdict = judge(lax, measured)
    assert verdict.outcome == "inconclusive"
    assert {check.outcome for check in verdict.checks} == {"inconclusive"}
    assert {check.n for check in verdict.checks} == {0}
    assert {check.detail for check in verdict.checks} == {"Nothing was there to compare."}


@pytest.mark.parametrize(
    ("n", "unit", "words"),
    [
        (1, "class", "1 class"),
        (2, "class", "2 classes"),
        (1, "query", "1 single query"),
        (1, "tenant", "1 value of tenant"),
        (2, "tenant", "2 values of tenant"),
        (4, "class tenant", "4 or more each of classes and values of tenant"),
    ],
)
def test_one_unit_is_singular(n, unit, words):
    """What was resampled is named in the number that there is of it."""
    assert describe_units(n, tuple(unit.split())) == words


# Outcomes


@pytest.mark.parametrize("C", [20, 1000, 20_000])
def test_no_number_of_ties_is_a_gain(C):
    """An identical model is inconclusive however many classes there are."""
    verdict = judge(POLICY, [gain(np.zeros(C))])
    assert verdict.outcome == "inconclusive"
    assert only(verdict).p == 1.0
    assert only(verdict).needed is None


def test_the_whole_interval_decides():
    """An estimate beyond the limit whose interval is not is inconclusive, on either side."""
    for mean, outcome in (
        (0.2, "pass"),
        (0.02, "inconclusive"),
        (-0.02, "inconclusive"),
        (-0.2, "fail"),
    ):
        verdict = judge(POLICY, [gain(changes(mean))])
        check = only(verdict)
        assert (check.outcome, verdict.outcome) == (outcome, outcome)
        assert check.estimate == pytest.approx(mean)
        assert (check.low > 0, check.high < 0) == (outcome == "pass", outcome == "fail")
        assert (check.p <= 0.025) == (outcome == "pass")


def test_a_gain_at_the_limit_is_not_beyond_it():
    """A gain equal in all classes passes a limit just below it, not at it, and fails one just
    above."""
    measured = [gain(np.full(40, 1.0), harm=0)]
    for least, outcome in ((0.0999, "pass"), (0.1, "inconclusive"), (0.1001, "fail")):
        assert judge(replace(POLICY, min_hit_gain=least), measured).outcome == outcome


def test_non_inferiority_has_a_margin():
    """A negative minimum gain is a margin to the threshold 0."""
    measured = [gain(changes(-0.02))]
    for margin, outcome in ((0.2, "pass"), (0.05, "inconclusive"), (0.0, "inconclusive")):
        verdict = judge(replace(POLICY, min_hit_gain=-margin), measured)
        assert verdict.outcome == outcome
        assert (only(verdict).threshold, only(verdict).margin) == (0.0, margin or None)
    beyond = judge(replace(POLICY, min_hit_gain=-0.05), [gain(changes(-0.2))])
    assert beyond.outcome == "fail"


def test_ties_are_non_inferior_with_enough_classes():
    """An identical model is non-inferior only with enough classes to show it."""
    policy = replace(POLICY, min_hit_gain=-0.1)
    assert upper_limit(0, 20, 0.025) > 0.1 > upper_limit(0, 60, 0.025)
    few = judge(policy, [gain(np.zeros(20))])
    assert few.outcome == "inconclusive"
    assert only(few).needed.to_show == "pass"
    assert judge(policy, [gain(np.zeros(60))]).outcome == "pass"


def test_flips_have_an_upper_limit():
    """If less is better, the whole interval must lie below the limit."""
    policy = replace(POLICY, max_negative_flips=0.05)
    for share, outcome in ((0.01, "pass"), (0.045, "inconclusive"), (0.2, "fail")):
        flips = gain(
            changes(share, scatter=0.01 if share < 0.02 else 0.04),
            name="negative_flips",
            harm=0,
            bounds=(0.0, 1.0),
        )
        verdict = judge(policy, [BETTER, flips])
        assert only(verdict, "negative_flips").outcome == outcome
        assert verdict.outcome == outcome


def test_one_fail_outweighs_everything():
    """One failing check makes the verdict fail, beside passing and inconclusive ones."""
    open_one = gain(changes(0.0), name="chain_gain", group="v1", n_queries=150)
    lost = gain(changes(-0.3), name="slice_gain", group="unseen, dark")
    assert judge(POLICY, [BETTER, open_one]).outcome == "inconclusive"
    assert judge(POLICY, [BETTER, open_one, lost]).outcome == "fail"
    assert judge(POLICY, [lost, open_one, BETTER]).outcome == "fail"
    assert judge(POLICY, [BETTER]).outcome == "pass"


@pytest.mark.parametrize("name", ["half_warm_gain", "warm_gain"])
def test_warm_states_decide_by_failing_alone(name):
    """An open warm state leaves a pass, a failing one ends it, and no warm state can pass alone."""
    good, flat, bad = gain([2] * 40), gain([1, -1] * 20, name), gain([-2] * 40, name)
    assert judge(POLICY, [good]).outcome == "pass"
    open_state = judge(POLICY, [good, flat])
    assert open_state.outcome == "pass"
    assert open_state.checks[1].outcome == "inconclusive"
    assert open_state.checks[0].p == judge(POLICY, [good]).checks[0].p
    assert judge(POLICY, [good, bad]).outcome == "fail"
    assert judge(POLICY, [gain([2] * 40, name)]).outcome == "inconclusive"
    assert judge(POLICY, [gain([1, -1] * 20), gain([2] * 40, name)]).outcome == "inconclusive"


def test_too_few_queries_are_inconclusive():
    """Below the minimum of queries nothing is decided, however large the gain."""
    for mean in (0.3, -0.3):
        measured = gain(changes(mean), n_queries=99)
        verdict = judge(POLICY, [measured])
        assert verdict.outcome == only(verdict).outcome == "inconclusive"
        assert only(verdict).detail == (
            "Something moves by something, but only 99 of the 100 required queries have a match."
        )
        assert judge(POLICY, [replace(measured, n_queries=100)]).outcome != "inconclusive"


def test_too_few_classes_are_inconclusive():
    """Below the minimum of classes nothing is decided, however many queries there are."""
    few, enough = (gain(changes(0.3, C=C), n_queries=5000) for C in (19, 20))
    verdict = judge(POLICY, [few])
    assert verdict.outcome == "inconclusive"
    assert only(verdict).detail == (
        "Something moves by something, but the queries are of 19 classes, and 20 are required."
    )
    assert judge(POLICY, [enough]).outcome == "pass"


def test_slices_have_their_own_minimum():
    """A slice needs the policy's slice_min_queries, and no minimum of classes."""
    part = {"name": "slice_gain", "group": "unseen, dark", "harm": 0}
    policy = replace(POLICY, slice_min_queries=60, min_queries=300)
    verdict = judge(policy, [BETTER, gain(changes(0.3, C=12), n_queries=60, **part)])
    assert only(verdict, "slice_gain", "unseen, dark").outcome == "pass"
    short = judge(policy, [BETTER, gain(changes(0.3, C=12), n_queries=59, **part)])
    check = only(short, "slice_gain", "unseen, dark")
    assert check.outcome == "inconclusive"
    assert "only 59 of the 60 required queries" in check.detail


def test_a_small_slice_does_not_decide():
    """A slice below the minimum is reported, and neither fails nor blocks the verdict."""
    part = gain(changes(-0.3, C=12), "slice_gain", "unseen, dark", harm=0, n_queries=30)
    verdict = judge(POLICY, [BETTER, part])
    check = only(verdict, "slice_gain", "unseen, dark")
    assert (check.decides, check.outcome) == (False, "inconclusive")
    assert check.estimate == pytest.approx(-0.3)
    assert verdict.outcome == "pass"
    enough = replace(part, n_queries=POLICY.slice_min_queries)
    assert judge(POLICY, [BETTER, enough]).outcome == "fail"


def test_only_deciding_groups_decide():
    """A failing group that may not decide is reported beside a pass; alone it gives no verdict."""
    seen = gain(changes(-0.2), group="seen", may_decide=False)
    verdict = judge(POLICY, [seen, BETTER])
    assert verdict.outcome == "pass"
    assert only(verdict, group="seen").outcome == "fail"
    assert only(verdict, group="seen").decides is False
    assert judge(POLICY, [replace(BETTER, may_decide=False)]).outcome == "inconclusive"


def test_nothing_to_decide_is_no_pass():
    """Without a measurement, or without one that has a rule, the verdict is inconclusive."""
    assert judge(POLICY, []).outcome == "inconclusive"
    assert judge(POLICY, [gain(changes(0.3), name="map_gain")]).outcome == "inconclusive"


def test_a_pass_needs_the_empirical_criterion():
    """Without a deciding hit gain the verdict is no pass, whatever else passes."""
    others = [
        gain(changes(0.3), name="different_class"),
        gain(changes(0.3), name="chain_gain", group="v1"),
        number(1e-5),
    ]
    verdict = judge(POLICY, others)
    assert {check.outcome for check in verdict.checks if check.decides} == {"pass"}
    assert verdict.outcome == "inconclusive"
    assert judge(POLICY, [*others, replace(BETTER, may_decide=False)]).outcome == "inconclusive"
    assert judge(POLICY, [*others, BETTER]).outcome == "pass"
    failing = gain(changes(-0.3), name="chain_gain", group="v2")
    assert judge(POLICY, [*others, failing]).outcome == "fail"


def test_a_check_without_a_threshold_never_decides():
    """It is measured with its interval, and does not decide."""
    shown = gain(changes(-0.3), name="map_gain")
    verdict = judge(POLICY, [BETTER, shown, number(5.0, name="latency_ratio")])
    check = only(verdict, "map_gain")
    assert check.outcome == only(verdict, "latency_ratio").outcome == "inconclusive"
    assert check.high < 0
    assert (check.threshold, check.margin, check.p, check.decides, check.needed) == (
        None,
        None,
        None,
        False,
        None,
    )
    assert verdict.outcome == "pass"
    assert judge(replace(POLICY, min_map_gain=0.0), [BETTER, shown]).outcome == "fail"


def test_one_undefined_estimate_stops_a_pass():
    """A deciding check with an undefined estimate prevents a pass."""
    nothing = replace(gain(np.zeros(40), name="chain_gain", group="v1"), n=0)
    (empty,) = estimate_ratios(
        [Ratio(totals=np.zeros(40), counts=np.zeros(40), bounds=(-1.0, 1.0))],
        1999,
        np.random.default_rng(0),
    )
    for entry in (nothing, replace(nothing, n=400, estimate=empty)):
        verdict = judge(replace(POLICY, min_chain_gain=-1.0), [BETTER, entry])
        check = only(verdict, "chain_gain", "v1")
        assert (check.estimate, check.low, check.high, check.p) == (None, None, None, None)
        assert (check.outcome, check.decides) == ("inconclusive", True)
        assert "nothing was there to compare" in check.detail.lower()
        assert verdict.outcome == "inconclusive"


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        (0.0, "pass"),
        (0.001, "pass"),
        (0.00101, "fail"),
        (5.0, "fail"),
        (math.nan, "inconclusive"),
        (math.inf, "inconclusive"),
    ],
)
def test_a_plain_number_is_held_against_the_limit(value, outcome):
    """Parity passes up to its limit and fails above; NaN never passes."""
    verdict = judge(POLICY, [BETTER, number(value)])
    check = only(verdict, "parity")
    assert verdict.outcome == check.outcome == outcome
    assert check.decides
    assert (check.low, check.high, check.p, check.n_classes, check.needed) == (None,) * 5
    assert check.estimate == (value if math.isfinite(value) else None)


def test_a_plain_number_of_nothing_is_undefined():
    """A parity error over no input is undefined, although it is 0."""
    verdict = judge(POLICY, [BETTER, number(0.0, n=0)])
    assert only(verdict, "parity").outcome == verdict.outcome == "inconclusive"


def test_a_plain_number_needs_no_minimum_of_queries():
    """Minimum sizes apply to samples; one timing is enough."""
    policy = replace(POLICY, max_latency_ratio=1.2)
    for ratio, outcome in ((1.1, "pass"), (1.2, "pass"), (1.3, "fail")):
        assert judge(policy, [BETTER, number(ratio, "latency_ratio", n=1)]).outcome == outcome


def test_a_plain_gain_has_to_exceed_its_threshold():
    """If more is better, a plain number at the limit fails and one above it passes."""
    for value, outcome in ((0.9, "fail"), (0.91, "pass")):
        verdict = judge(POLICY, [BETTER, number(value, "ann_recall")])
        assert only(verdict, "ann_recall").outcome == verdict.outcome == outcome


@pytest.mark.parametrize(("share", "outcome"), [(0.95, "pass"), (0.9499, "inconclusive")])
def test_bad_evidence_is_not_a_failure(share, outcome):
    """A missed check of the evidence is inconclusive; at the limit it passes."""
    verdict = judge(POLICY, [BETTER, number(share, "stored_share")])
    assert only(verdict, "stored_share").outcome == verdict.outcome == outcome


def test_a_failure_stands_beside_bad_evidence():
    """A failing check makes the verdict fail even if a check of the evidence is missed."""
    assert judge(POLICY, [WORSE, number(0.5, "stored_share")]).outcome == "fail"


def test_a_gain_that_unknown_answers_could_undo_is_inconclusive():
    """A gain that unknown answers could undo is inconclusive, not a failure."""
    verdict = judge(POLICY, [BETTER, gain(changes(-0.2), "unjudged_gain")])
    assert only(verdict, "unjudged_gain").outcome == verdict.outcome == "inconclusive"
    assert judge(POLICY, [BETTER, gain(changes(0.1), "unjudged_gain")]).outcome == "pass"


@pytest.mark.parametrize(("best", "outcome"), [(0.1, "inconclusive"), (-0.1, "fail")])
def test_a_failure_must_hold_in_the_best_case(best, outcome):
    """A loss that unknown answers could undo is no failure; one that they could not is."""
    loss = replace(WORSE, best_case=gain(changes(best)).estimate)
    assert judge(POLICY, [loss]).outcome == outcome


def test_untouched_rows_need_queries_of_their_own():
    """Too few queries of untouched rows make the verdict inconclusive; a small slice does not."""
    few = gain(changes(0.2, C=9), "untouched_gain")
    check = only(judge(POLICY, [BETTER, few]), "untouched_gain")
    assert (check.outcome, check.decides) == ("inconclusive", True)
    enough = gain(changes(0.2, C=10), "untouched_gain", harm=0)
    assert judge(POLICY, [BETTER, enough]).outcome == "pass"


def test_a_repeated_check_is_refused():
    """One check of one group twice is refused; the same check of two groups is not."""
    with pytest.raises(InputError, match=r"judged once.*hit_gain"):
        judge(POLICY, [BETTER, WORSE])
    assert len(judge(POLICY, [BETTER, replace(WORSE, group="seen")]).checks) == 2


def test_checks_keep_their_order():
    """Every measurement gives one check, in the order given, whichever decide."""
    measured = [
        number(0.0),
        WORSE,
        gain(changes(0.1), name="map_gain"),
        replace(BETTER, group="seen"),
    ]
    actual = [(check.name, check.group) for check in judge(POLICY, iter(measured)).checks]
    assert actual == [(entry.name, entry.group) for entry in measured]


# Several checks


def holm_by_definition(p):
    """The largest, over all p up to one's own, of p times the number of those not smaller."""
    return [
        min(1.0, max(other * sum(third >= other for third in p) for other in p if other <= own))
        for own in p
    ]


def rejected_step_by_step(p, alpha):
    """Positions that the step-down procedure rejects: smallest first, until one is too large."""
    left, measured = list(range(len(p))), set()
    while left:
        at = min(left, key=lambda i: p[i])
        if p[at] * len(left) > alpha:
            break
        measured.add(at)
        left.remove(at)
    return measured


P_VALUES = st.lists(
    st.floats(1e-6, 1) | st.sampled_from([0.01, 0.0125, 0.02, 0.025, 0.5, 1.0]), max_size=9
)


def test_holm_by_hand():
    """Adjusted p-values equal a textbook example, in the given order, and never fall."""
    assert holm([]) == []
    assert holm([0.3]) == [0.3]
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, 0.02, 0.02]) == pytest.approx([0.06, 0.06, 0.06])
    assert holm([0.9, 0.01, 0.6]) == pytest.approx([1.0, 0.03, 1.0])


@given(p=P_VALUES)
@settings(max_examples=150, deadline=None)
def test_holm_equals_its_definition(p):
    """Adjusted values follow the definition: at least the raw ones, at most Bonferroni's."""
    actual = holm(p)
    assert actual == pytest.approx(holm_by_definition(p))
    for raw, adjusted in zip(p, actual, strict=True):
        assert raw <= adjusted <= min(1.0, len(p) * raw)


@given(p=P_VALUES, alpha=st.sampled_from([0.0123, 0.026, 0.051, 0.31]))
@settings(max_examples=150, deadline=None)
def test_holm_rejects_what_the_procedure_rejects(p, alpha):
    """An adjusted value is at most alpha exactly if the step-down procedure rejects."""
    assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= alpha} == rejected_step_by_step(
        p, alpha
    )


@given(p=P_VALUES, order=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_holm_does_not_depend_on_the_order(p, order):
    """Shuffled p-values get the same adjusted values."""
    at = list(range(len(p)))
    order.shuffle(at)
    actual = holm(p)
    assert holm([p[i] for i in at]) == [actual[i] for i in at]
    ranked = sorted(range(len(p)), key=lambda i: p[i])
    assert all(actual[a] <= actual[b] for a, b in pairwise(ranked))


def test_two_borderline_checks_do_not_pass_together():
    """p = 0.02 passes alone, but not in two such checks; beside a clear check it passes."""
    entry = borderline(19)
    other = replace(entry, name="chain_gain", group="v1")
    policy = replace(POLICY, min_chain_gain=0.0)
    alone = judge(policy, [entry])
    assert alone.outcome == "pass"
    assert only(alone).p == pytest.approx(0.02)
    both = judge(policy, [entry, other])
    assert {check.outcome for check in both.checks} == {"inconclusive"}
    assert {check.p for check in both.checks} == {0.04}
    clear = replace(gain(changes(0.5)), name="chain_gain", group="v1")
    not_deciding = judge(policy, [entry, clear])
    assert not_deciding.outcome == "pass"
    assert only(not_deciding).p == pytest.approx(0.02)


def test_two_borderline_checks_do_not_fail_together():
    """p-values of failing are adjusted like those of passing."""
    policy = replace(POLICY, min_hit_gain=0.1, min_chain_gain=0.1)
    entry = borderline(19, value=0.05)
    other = replace(entry, name="chain_gain", group="v1")
    assert judge(policy, [entry]).outcome == "fail"
    assert judge(policy, [entry, other]).outcome == "inconclusive"


def test_passing_and_failing_are_adjusted_separately():
    """p-values of passing and of failing are two families."""
    up = borderline(9)
    mirrored = replace(up.estimate, value=-0.05, replicates=-up.estimate.replicates[::-1])
    down = replace(up, name="chain_gain", group="v1", estimate=mirrored)
    verdict = judge(replace(POLICY, min_chain_gain=0.0), [up, down])
    assert only(verdict).p == pytest.approx(0.02)
    assert only(verdict).outcome == "pass"
    assert only(verdict, "chain_gain", "v1").outcome == "fail"


def test_what_does_not_decide_adjusts_nothing():
    """Reported checks, other groups, small slices and plain numbers do not change the p-values."""
    entry = borderline(19)
    not_deciding = [
        replace(entry, name="map_gain"),
        replace(entry, group="seen", may_decide=False),
        replace(entry, name="slice_gain", group="unseen, dark", n_queries=30),
        number(0.0),
    ]
    verdict = judge(replace(POLICY, min_slice_gain=0.0), [entry, *not_deciding])
    assert only(verdict).p == pytest.approx(0.02)
    assert only(verdict, group="seen").p == pytest.approx(0.02)
    assert verdict.outcome == "pass"


@given(
    means=st.lists(st.floats(-0.12, 0.12), min_size=1, max_size=4),
    least=st.sampled_from([-0.05, 0.0, 0.03]),
)
@settings(max_examples=30, deadline=None)
def test_a_check_passes_only_beyond_its_limit(means, least):
    """With any number of checks, one that passes or fails has its interval beyond the limit."""
    measured = [
        gain(changes(mean, seed=i), name="chain_gain" if i else "hit_gain", group=f"g{i}")
        for i, mean in enumerate(means)
    ]
    verdict = judge(replace(POLICY, min_hit_gain=least, min_chain_gain=least), measured)
    for check in verdict.checks:
        assert check.low <= check.estimate <= check.high
        assert check.outcome != "pass" or check.low > least
        assert check.outcome != "fail" or check.high < least
    outcomes = {check.outcome for check in verdict.checks}
    expected = "fail" if "fail" in outcomes else "pass" if outcomes == {"pass"} else "inconclusive"
    assert verdict.outcome == expected


# How much more would tell


def test_needed_classes_grow_as_the_effect_shrinks():
    """Half the effect needs four times the classes, at the same number of queries per class."""
    measured = [gain(changes(mean), harm=0) for mean in (0.04, 0.02, 0.01)]
    needed = [only(judge(POLICY, [entry])).needed for entry in measured]
    assert all(entry.to_show == "pass" for entry in needed)
    classes = [entry.classes for entry in needed]
    assert classes[1] / classes[0] == pytest.approx(4, rel=0.1)
    assert classes[2] / classes[1] == pytest.approx(4, rel=0.1)
    textbook = (1.96 + 0.8416) ** 2 * (0.2 / 0.02) ** 2
    assert classes[1] == pytest.approx(textbook, rel=0.15)
    assert [entry.queries for entry in needed] == [EACH * entry.classes for entry in needed]


def test_needed_power_and_confidence():
    """More power or more confidence takes more classes."""
    measured = [gain(changes(0.02))]

    def classes(**keywords):
        return only(judge(replace(POLICY, **keywords), measured)).needed.classes

    assert classes(power=0.5) < classes(power=0.8) < classes(power=0.95)
    assert classes(alpha=0.1) < classes(alpha=0.05) < classes(alpha=0.01)


def test_needed_names_the_outcome_that_would_be_shown():
    """On the far side of the limit more classes would show a fail, whichever side is better."""
    assert only(judge(POLICY, [gain(changes(-0.02))])).needed.to_show == "fail"
    flips = {"name": "negative_flips", "harm": 0, "bounds": (0.0, 1.0)}
    policy = replace(POLICY, max_negative_flips=0.1)
    for share, shown in ((0.09, "pass"), (0.11, "fail")):
        verdict = judge(policy, [BETTER, gain(changes(share), **flips)])
        assert only(verdict, "negative_flips").needed.to_show == shown


def test_needed_is_at_least_the_present_and_the_policys_size():
    """It is at least the policy's minimum, and more than the present sample."""
    few = only(judge(POLICY, [gain(changes(0.3, C=12))])).needed
    assert (few.classes, few.queries) == (20, 200)
    policy = replace(POLICY, min_queries=100_000)
    short = only(judge(policy, [gain(changes(0.3, C=40))])).needed
    assert (short.classes, short.queries) == (41, 100_000)
    assert short.to_show == "pass"


def test_an_effect_of_zero_has_no_needed_size():
    """At the limit, or so close that 10^9 classes are not enough, it is None."""
    assert only(judge(POLICY, [gain(np.tile([1.0, -1.0], 20))])).needed is None
    assert only(judge(POLICY, [gain(changes(1e-9))])).needed is None
    assert only(judge(POLICY, [gain(changes(1e-4))])).needed.classes > 10**6


def test_only_open_checks_have_a_needed_size():
    """A settled check, one without a rule and one without an estimate have none."""
    assert only(judge(POLICY, [BETTER])).needed is None
    assert only(judge(POLICY, [WORSE])).needed is None
    shown = judge(POLICY, [BETTER, gain(changes(0.02), name="map_gain")])
    assert only(shown, "map_gain").needed is None
    assert only(judge(POLICY, [replace(gain(changes(0.02)), n=0)])).needed is None


def test_an_unknown_spread_has_no_needed_size():
    """Two classes of an unbounded ratio have no spread, and so no needed size."""
    ratio = gain([20.0, 11.0], name="far_ratio", harm=0, bounds=(0.0, math.inf))
    check = only(judge(POLICY, [BETTER, ratio]), "far_ratio")
    assert (check.outcome, check.needed, check.high) == ("inconclusive", None, math.inf)


@pytest.mark.parametrize("mean", [0.04, 0.06])
def test_needed_classes_settle_the_check(mean):
    """With as many classes as are needed, about four in five new samples show the gain.

    200 samples with a probability of 0.8 lie between 0.70 and 0.89 in 998 of 1000 cases.
    """
    needed = only(judge(POLICY, [gain(changes(mean, C=30, seed=4))])).needed.classes
    rng = np.random.default_rng(6)
    passed = 0
    for _ in range(200):
        totals = EACH * (mean + 0.2 * rng.normal(size=needed))
        passed += judge(POLICY, [gain(totals)]).outcome == "pass"
    assert 0.70 < passed / 200 < 0.89


# What is written


def every_type(value):
    """The exact types of all that a nested value holds."""
    if isinstance(value, dict):
        return {str} & set(map(type, value)) | set().union(*map(every_type, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(every_type, value))
    return {type(value)}


@pytest.mark.parametrize("new", [features(0.6, seed=2), OLD.copy(), features(4.0, seed=2)])
@pytest.mark.parametrize("labels", [LABELS, np.arange(300)])
def test_verdicts_hold_python_values(new, labels):
    """A verdict holds strings, numbers, booleans and None, and nothing of numpy."""
    measured = [*evidence(new, labels=labels), number(np.float64(0.0), n=np.int64(3))]
    plain = asdict(judge(POLICY, measured))
    assert every_type(plain) <= {str, int, float, bool, type(None)}
    assert {Check.__annotations__.keys() == entry.keys() for entry in plain["checks"]} == {True}


def test_an_open_check_holds_python_values():
    """So does an open check, with its needed size, counts and p-values."""
    plain = asdict(judge(POLICY, [gain(changes(0.02))]))
    assert every_type(plain) <= {str, int, float, bool, type(None)}
    assert set(plain["checks"][0]["needed"]) == {"classes", "queries", "to_show"}


def test_every_detail_is_one_sentence():
    """Each check explains itself in one sentence, with the numbers that it compared."""
    measured = evidence(features(0.6, seed=2))
    for policy in (POLICY, replace(POLICY, min_queries=1000), replace(POLICY, min_classes=31)):
        for check, entry in zip(judge(policy, measured).checks, measured, strict=True):
            assert check.detail[0].isupper() or check.detail.startswith(("mAP@100 ", "nDCG@10 "))
            assert check.detail.startswith(entry.detail)
            assert check.detail.endswith(".")
            assert ". " not in check.detail
