"""The gate on evidence computed from features: what passes, what fails, what cannot be told."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from compatctl.core.compatibility import inequalities
from compatctl.core.gate import GroupEvidence, Policy, judge
from compatctl.core.retrieval import evaluate, flips, search
from compatctl.errors import InputError

CLASSES, EACH = 30, 10
LABELS = np.repeat(np.arange(CLASSES), EACH)
OWN = np.arange(CLASSES * EACH)
POLICY = Policy(name="test", min_queries=100, min_classes=20)


def features(noise, seed=1):
    """(300, 40) unit rows: 30 class centres, shared by all models, plus noise of that length."""
    centres = np.random.default_rng(0).normal(size=(CLASSES, 40))
    rows = centres[LABELS] + noise * np.random.default_rng(seed).normal(size=(len(LABELS), 40))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


OLD = features(1.8)


def evidence(new, old=OLD, labels=LABELS, name="unseen"):
    """What the program measures when ``new`` queries search the gallery that ``old`` embedded."""

    def test(queries, gallery):
        found = search(queries, gallery, 100, OWN)
        return evaluate(found, labels, labels, OWN, ks=(1, 5))

    old_old, new_old = test(old, old), test(new, old)
    return GroupEvidence(
        name=name,
        n_queries=len(new),
        n_classes=len(np.unique(labels)),
        inequalities=inequalities(old, new, labels, old, labels, OWN),
        old_old=old_old,
        new_old=new_old,
        new_new=test(new, new),
        flips=flips(old_old.hit1, new_old.hit1),
    )


def checks(verdict, group="unseen"):
    """The checks of one group by name."""
    return {check.name: check for check in verdict.checks if check.group == group}


BETTER, WORSE = evidence(features(0.6, seed=2)), evidence(features(4.0, seed=2))


def test_a_better_model_passes():
    """Tighter queries around the same centres gain recall, keep both inequalities, and pass."""
    verdict = judge(POLICY, [BETTER])
    found = checks(verdict)
    assert verdict.outcome == "pass"
    gain = found["recall_gain"]
    assert gain.estimate == BETTER.new_old.recall[1] - BETTER.old_old.recall[1] > 0.05
    assert (gain.threshold, gain.margin, gain.n) == (0.0, None, 300)
    assert (gain.low, gain.high) == (None, None)
    assert found["same_class"].estimate == BETTER.inequalities.same_gain > 0
    assert found["same_class"].n == CLASSES * EACH * (EACH - 1)
    assert found["different_class"].margin == 0.05
    assert [name for name, check in found.items() if check.decides] == [
        "recall_gain",
        "same_class",
        "different_class",
    ]


def test_a_worse_model_fails():
    """Noisier queries lose recall and same-class cosine, and one failing check is enough."""
    verdict = judge(POLICY, [WORSE])
    assert verdict.outcome == "fail"
    assert checks(verdict)["recall_gain"].outcome == "fail"
    assert checks(verdict)["same_class"].outcome == "fail"
    only_recall = judge(replace(POLICY, require_same_class=False), [WORSE])
    assert checks(only_recall)["same_class"].decides is False
    assert only_recall.outcome == "fail"


def test_an_identical_model_does_not_pass():
    """The deployed model against itself ties everywhere, and a tie is no gain."""
    verdict = judge(POLICY, [evidence(OLD.copy())])
    assert checks(verdict)["recall_gain"].estimate == 0.0
    assert checks(verdict)["recall_gain"].outcome == "fail"
    assert checks(verdict)["same_class"].outcome == "pass"
    assert verdict.outcome == "fail"


def with_recall(old, new):
    """The better model's evidence with these two recalls@1 written in."""
    return replace(
        BETTER,
        old_old=replace(BETTER.old_old, recall={1: old}),
        new_old=replace(BETTER.new_old, recall={1: new}),
        new_new=replace(BETTER.new_new, recall={1: new}),
    )


def test_a_gain_equal_to_the_threshold_is_not_above_it():
    """0.55 - 0.5 is 0.05000000000000004 in floats, and still does not exceed 0.05."""
    policy = replace(POLICY, min_recall_gain=0.05)
    assert judge(policy, [with_recall(0.5, 0.55)]).outcome == "fail"
    assert judge(policy, [with_recall(0.5, 0.551)]).outcome == "pass"


def test_a_gain_equal_to_the_least_self_test_gain_is_enough():
    """0.3 - 0.1 is 0.19999999999999998 in floats, and still reaches 0.2."""
    policy = replace(POLICY, min_self_test_gain=0.2)
    assert judge(policy, [with_recall(0.1, 0.3)]).outcome == "pass"
    assert judge(policy, [with_recall(0.1, 0.299)]).outcome == "fail"


@pytest.mark.parametrize(("gain", "outcome"), [(0.01, "pass"), (-0.05, "pass"), (-0.051, "fail")])
def test_different_classes_have_a_margin(gain, outcome):
    """(1b) passes below zero down to the margin, and fails beyond it."""
    group = replace(BETTER, inequalities=replace(BETTER.inequalities, diff_gain=gain))
    verdict = judge(POLICY, [group])
    assert checks(verdict)["different_class"].outcome == outcome
    assert verdict.outcome == outcome


def test_negative_flips_decide_only_when_limited():
    """Without a limit the share is measured; with one just below the share the model fails."""
    new = features(1.6, seed=5)
    group = evidence(new)
    share = np.mean(group.old_old.hit1 & ~group.new_old.hit1)
    assert share > 0
    measured = checks(judge(POLICY, [group]))["negative_flips"]
    assert measured.estimate == pytest.approx(share)
    assert (measured.decides, measured.threshold, measured.outcome) == (False, None, "inconclusive")
    for limit, outcome in ((share - 0.001, "fail"), (share, "pass")):
        check = checks(judge(replace(POLICY, max_negative_flips=float(limit)), [group]))
        assert check["negative_flips"].outcome == outcome
        assert check["negative_flips"].decides is True


@pytest.mark.parametrize("group", [BETTER, WORSE])
@pytest.mark.parametrize("asked", [{"min_queries": 301}, {"min_classes": 31}])
def test_too_little_evidence_is_inconclusive(group, asked):
    """One query or class short of the policy, neither a better nor a worse model is told apart."""
    verdict = judge(replace(POLICY, **asked), [group])
    assert verdict.outcome == "inconclusive"
    assert {check.outcome for check in verdict.checks} == {"inconclusive"}
    assert "only 300 of the 301" in verdict.checks[0].detail or "30 classes" in (
        verdict.checks[0].detail
    )


def test_queries_without_a_match_are_no_evidence():
    """Queries whose class has no other item do not count towards the least number of queries."""
    labels = LABELS.copy()
    labels[:150] = np.arange(1000, 1150)
    group = evidence(features(0.6, seed=2), labels=labels)
    assert group.n_queries == 300
    assert judge(replace(POLICY, min_queries=150), [group]).outcome == "pass"
    assert judge(replace(POLICY, min_queries=151), [group]).outcome == "inconclusive"


def test_undefined_estimates_are_inconclusive():
    """With every class a single item nothing can be found, no estimate is a number, none passes."""
    group = evidence(features(0.6, seed=2), labels=np.arange(300))
    verdict = judge(Policy(name="lax", min_queries=1, min_classes=1), [group])
    found = checks(verdict)
    assert verdict.outcome == "inconclusive"
    assert found["recall_gain"].estimate is None
    assert found["recall_gain"].outcome == "inconclusive"
    assert found["same_class"].estimate is None
    assert found["different_class"].outcome == "inconclusive"


def test_one_undefined_estimate_stops_a_pass():
    """A NaN in (1b) alone keeps an otherwise passing model from passing."""
    group = replace(BETTER, inequalities=replace(BETTER.inequalities, diff_gain=float("nan")))
    assert judge(POLICY, [group]).outcome == "inconclusive"


def test_a_fail_outweighs_an_inconclusive_check():
    """A lost recall is a fail although another check cannot be told."""
    group = replace(WORSE, inequalities=replace(WORSE.inequalities, diff_gain=float("nan")))
    assert judge(POLICY, [group]).outcome == "fail"


def test_only_unseen_classes_decide():
    """A failing group of seen classes is reported; without unseen ones there is no verdict."""
    seen = replace(WORSE, name="seen")
    verdict = judge(POLICY, [seen, BETTER])
    assert verdict.outcome == "pass"
    assert checks(verdict, "seen")["recall_gain"].outcome == "fail"
    assert not any(check.decides for check in checks(verdict, "seen").values())
    assert judge(POLICY, [replace(BETTER, name="seen")]).outcome == "inconclusive"
    assert judge(POLICY, []).outcome == "inconclusive"


def test_recall_at_chooses_the_deciding_k():
    """The policy's k is what is compared, and a k that was not computed is refused."""
    check = checks(judge(replace(POLICY, recall_at=5), [BETTER]))["recall_gain"]
    assert check.estimate == BETTER.new_old.recall[5] - BETTER.old_old.recall[5]
    with pytest.raises(InputError, match="recall@10, but the evidence holds recall at 1, 5"):
        judge(replace(POLICY, recall_at=10), [BETTER])


def test_evidence_must_be_of_one_piece():
    """A group given twice, or old and new tested on different queries, is refused."""
    with pytest.raises(InputError, match="judged once"):
        judge(POLICY, [BETTER, WORSE])
    fewer = replace(BETTER.old_old, n_queries=299)
    with pytest.raises(InputError, match="same queries"):
        judge(POLICY, [replace(BETTER, old_old=fewer)])


@pytest.mark.parametrize("group", [BETTER, evidence(features(0.6), labels=np.arange(300))])
def test_verdict_and_policy_are_plain_json(group):
    """Both survive a strict JSON round trip, undefined estimates included."""
    verdict = judge(POLICY, [group])
    text = json.dumps(asdict(verdict), allow_nan=False)
    back = json.loads(text)
    assert back["outcome"] == verdict.outcome
    assert back["checks"][0]["estimate"] == verdict.checks[0].estimate
    assert Policy(**json.loads(json.dumps(asdict(POLICY), allow_nan=False))) == POLICY


def test_every_detail_is_one_sentence():
    """Each check explains itself in one sentence, with the numbers that it compared."""
    verdict = judge(POLICY, [BETTER])
    for check in verdict.checks:
        assert check.detail[0].isupper()
        assert check.detail.endswith(".")
        assert ". " not in check.detail
    assert f"{BETTER.new_old.recall[1]:.4f}" in verdict.checks[0].detail


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", 3),
        ("format", 2),
        ("format", True),
        ("min_queries", 0),
        ("min_queries", 10.0),
        ("min_classes", True),
        ("recall_at", 0),
        ("min_recall_gain", -0.01),
        ("min_recall_gain", 1.0),
        ("min_recall_gain", float("nan")),
        ("min_recall_gain", "0.1"),
        ("require_same_class", 1),
        ("different_class_margin", -0.1),
        ("different_class_margin", 2.1),
        ("different_class_margin", None),
        ("max_negative_flips", 1.1),
        ("max_negative_flips", True),
        ("min_self_test_gain", -1.5),
        ("min_self_test_gain", float("inf")),
    ],
)
def test_policy_refuses(field, value):
    """A threshold of another type or outside its range is named when the policy is made."""
    with pytest.raises(InputError, match=field):
        Policy(**{"name": "test", field: value})
