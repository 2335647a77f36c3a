"""What a policy may hold, and how each of its values becomes a rule."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace

import pytest

from compatctl.core.policy import COUNTS, FLAGS, NEVER_NULL, RANGES, Policy, Rule
from compatctl.errors import InputError

NAN, INF = float("nan"), float("inf")

GAINS = {
    "min_hit_gain": "hit_gain",
    "min_wide_hit_gain": "wide_hit_gain",
    "min_ndcg_gain": "ndcg_gain",
    "min_mrr_gain": "mrr_gain",
    "min_recall_gain": "recall_gain",
    "min_map_gain": "map_gain",
    "min_self_test_gain": "self_test_gain",
    "min_slice_gain": "slice_gain",
    "min_chain_gain": "chain_gain",
    "min_mixed_gain": "mixed_gain",
    "min_pair_tar_gain": "pair_tar_gain",
    "min_untouched_gain": "untouched_gain",
}
EVIDENCE = {
    "min_stored_share": "stored_share",
    "min_matched_share": "matched_share",
    "min_old_hit_rate": "old_hit_rate",
}
MARGINS = {"same_class_margin": "same_class", "different_class_margin": "different_class"}
LIMITS = {
    "max_negative_flips": "negative_flips",
    "max_far_ratio": "far_ratio",
    "max_frr_increase": "frr_increase",
    "max_parity_error": "parity",
    "max_latency_ratio": "latency_ratio",
}
CEILINGS = {"max_near_copies": "near_copies", "max_design_effect": "design_effect"}
NOTHING = dict.fromkeys(set(RANGES) - {*NEVER_NULL, "min_hit_gain"}) | dict.fromkeys(FLAGS, False)
"""Every key that may be null but the criterion, set to null; flags are off."""


def bad_ranges():
    """Each numeric key with a number beyond either end, a number that is none, other types."""
    for key, (low, high) in RANGES.items():
        for value in (low - 0.01, high * 1.01 + 0.01, NAN, INF, -INF, "0.1", True, [0.1]):
            yield pytest.param(key, value, id=f"{key}-{value}")
    for key in NEVER_NULL:
        yield pytest.param(key, None, id=f"{key}-None")


@pytest.mark.parametrize(("key", "value"), list(bad_ranges()))
def test_a_number_outside_its_range_is_refused(key, value):
    """A number outside its range, NaN, an infinity or another type is refused by its key."""
    with pytest.raises(InputError, match=f"policy: {key} must be a number from"):
        Policy(**{key: value})


@pytest.mark.parametrize("key", [*COUNTS, "replicates"])
@pytest.mark.parametrize("value", [0, -1, 1000.0, True, None, "1000", NAN, 10**9 + 1])
def test_a_count_is_a_positive_whole_number(key, value):
    """Counts of 0, below it or too large, fractions, booleans and null are refused by their key."""
    with pytest.raises(InputError, match=f"policy: {key} must be a whole number from"):
        Policy(**{key: value})


def test_replicates_have_a_range():
    """999 and 1,000,000 are accepted; one less and one more are refused."""
    assert Policy(replicates=999).replicates == 999
    assert Policy(replicates=1_000_000).replicates == 1_000_000
    for value in (998, 1_000_001):
        with pytest.raises(InputError, match="replicates"):
            Policy(replicates=value)


@pytest.mark.parametrize("value", [1, 2, 3, 5, 0, -2, True, "4", None, 3.5])
def test_other_formats_are_refused(value):
    """Earlier, newer and malformed formats are refused, and the known one is named."""
    with pytest.raises(InputError, match=r"policy format .* this version reads 4"):
        Policy(format=value)


@pytest.mark.parametrize("value", ["", "  ", 3, None])
def test_a_policy_has_a_name(value):
    """An empty name, or one that is no text, is refused."""
    with pytest.raises(InputError, match="a policy needs a name"):
        Policy(name=value)


def test_a_minimum_gain_of_one_is_refused():
    """No gain exceeds 1, so no candidate could meet such a policy."""
    with pytest.raises(InputError, match="min_hit_gain must be below 1"):
        Policy(min_hit_gain=1.0)
    assert Policy(min_hit_gain=0.999).min_hit_gain == 0.999


@pytest.mark.parametrize(
    ("key", "low", "high"),
    [
        ("alpha", 0.0001, 0.5),
        ("power", 0.5, 0.999),
        ("min_hit_gain", -1, 0.999),
        ("min_slice_gain", -1, 1),
        ("min_pair_tar_gain", -1, 1),
        ("different_class_margin", 0, 2),
        ("max_negative_flips", 0, 1),
        ("min_stored_share", 0, 1),
        ("max_frr_increase", 0, 1),
        ("max_parity_error", 0, 2),
        ("max_design_effect", 1, 1e6),
    ],
)
def test_a_range_includes_its_ends_and_nothing_beyond(key, low, high):
    """Both ends are accepted, as integers too; the next value beyond is refused."""
    for end, beyond in ((low, low - 1e-6), (high, high + 2e-3)):
        assert getattr(Policy(**{key: end}), key) == end
        with pytest.raises(InputError, match=key):
            Policy(**{key: beyond})


def test_every_field_is_checked():
    """Each field is a name, a format, a flag, a count or a number with a range."""
    checked = {"name", "format", "replicates", *COUNTS, *FLAGS, *RANGES}
    assert {field.name for field in fields(Policy)} == checked


def test_a_policy_survives_json():
    """A policy written to JSON and read again is the same."""
    policy = Policy(name="test", alpha=0.01, min_map_gain=-0.02, max_far_ratio=None)
    assert Policy(**json.loads(json.dumps(asdict(policy), allow_nan=False))) == policy


@pytest.mark.parametrize(("key", "check"), GAINS.items())
def test_rules_of_gains(key, check):
    """A minimum gain above 0 is a threshold, one below 0 a margin to 0, and 0 has no margin."""
    above = Policy(**NOTHING | {key: 0.02}).rules[check]
    assert above == Rule(threshold=0.02, margin=None, above=True)
    assert above.limit == 0.02
    below = Policy(**NOTHING | {key: -0.02}).rules[check]
    assert below == Rule(threshold=0.0, margin=0.02, above=True)
    assert below.limit == -0.02
    at = Policy(**NOTHING | {key: 0}).rules[check]
    assert (at.threshold, at.margin, at.above, at.limit) == (0.0, None, True, 0.0)


@pytest.mark.parametrize(("key", "check"), MARGINS.items())
def test_rules_of_inequalities(key, check):
    """An inequality is held to 0 with its margin, and to 0 exactly where the margin is 0."""
    wide = Policy(**NOTHING | {key: 0.03}).rules[check]
    assert wide == Rule(threshold=0.0, margin=0.03, above=True)
    assert wide.limit == -0.03
    exact = Policy(**NOTHING | {key: 0.0}).rules[check]
    assert (exact.threshold, exact.margin, exact.limit) == (0.0, None, 0.0)


@pytest.mark.parametrize(("key", "check"), LIMITS.items())
def test_rules_of_limits(key, check):
    """An upper limit is a threshold without a margin."""
    for value in (0, 0.5, 1):
        rule = Policy(**NOTHING | {key: value}).rules[check]
        assert rule == Rule(threshold=float(value), margin=None, above=False)
        assert rule.limit == value


def test_rule_of_the_real_index():
    """The minimum ANN recall is a lower threshold."""
    rule = Policy(**NOTHING | {"min_ann_recall": 0.95}).rules["ann_recall"]
    assert rule == Rule(threshold=0.95, margin=None, above=True)


@pytest.mark.parametrize(("key", "check"), EVIDENCE.items())
def test_rules_of_evidence_cannot_fail(key, check):
    """Checks of the evidence are inconclusive if missed."""
    rule = Policy(**NOTHING | {key: 0.5}).rules[check]
    assert rule == Rule(threshold=0.5, margin=None, above=True, may_fail=False)


def test_the_rule_of_unjudged_answers_cannot_fail():
    """The gain with unknown answers counted against the candidate may have a margin, and cannot
    fail."""
    for least, margin in ((-0.02, 0.02), (0.0, None)):
        rule = Policy(**NOTHING | {"min_unjudged_gain": least}).rules["unjudged_gain"]
        assert rule == Rule(threshold=0.0, margin=margin, above=True, may_fail=False)


def test_null_leaves_a_rule_out():
    """With every optional key None, the hit gain is the only rule, re-scored or not."""
    least = {"hit_gain", "half_warm_gain", "warm_gain"}
    assert set(Policy(**NOTHING).rules) == least
    proven = Policy(**NOTHING | {"require_proven_store": True}).rules
    assert set(proven) == {*least, "proven_store"}
    with pytest.raises(InputError, match="require_proven_store must be true or false"):
        Policy(require_proven_store=None)
    both = GAINS | MARGINS | LIMITS | EVIDENCE
    both |= CEILINGS | {"min_ann_recall": "ann_recall", "min_unjudged_gain": "unjudged_gain"}
    both |= {"max_gallery_pass": "gallery_pass"}
    for key in set(NOTHING) - set(FLAGS):
        rules = Policy(**NOTHING | {key: 2.0 if key == "max_design_effect" else 0.5}).rules
        assert set(rules) == {*least, both[key]}


@pytest.mark.parametrize("check", ["ndcg_gain", "mrr_gain", "recall_gain"])
def test_another_criterion_may_take_the_place_of_hits(check):
    """Without a limit of hits, one of another measure is the criterion; without any, no policy."""
    policy = Policy(min_hit_gain=None, **{f"min_{check}": 0.0})
    assert policy.criterion == check
    assert "hit_gain" not in policy.rules
    assert replace(policy, min_hit_gain=-0.02).criterion == "hit_gain"
    with pytest.raises(InputError, match=rf"min_{check} must be below 1"):
        Policy(**{f"min_{check}": 1.0})
    with pytest.raises(InputError, match=r"one of min_hit_gain, .* must be a number"):
        Policy(min_hit_gain=None)


def test_rules_of_the_default_policy():
    """The default policy requires a gain above 0, and its other rules are these."""
    rules = Policy().rules
    assert set(rules) == {
        "hit_gain",
        "half_warm_gain",
        "warm_gain",
        "different_class",
        "slice_gain",
        "chain_gain",
        "ann_recall",
        "far_ratio",
        "frr_increase",
        "parity",
        "untouched_gain",
        "unjudged_gain",
        "stored_share",
        "matched_share",
        "old_hit_rate",
        "proven_store",
        "training_record",
        "near_copies",
        "design_effect",
    }
    assert rules["hit_gain"] == Rule(threshold=0.0, margin=None, above=True)
