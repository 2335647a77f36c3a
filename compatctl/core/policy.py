"""The policy: what a candidate must show, fixed before the result is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compatctl.errors import InputError

POLICY_FORMAT = 4

RENAMED = {
    "recall_at": "hit_at",
    "wide_recall_at": "wide_hit_at",
    "min_recall_gain": "min_hit_gain",
    "min_wide_recall_gain": "min_wide_hit_gain",
    "min_old_recall": "min_old_hit_rate",
}
"""Keys of format 3 -> keys of format 4, in which recall means another measure."""

NEW_KEYS = ("ndcg_at", "min_ndcg_gain", "mrr_at", "min_mrr_gain", "recall_at", "min_recall_gain")
"""Keys that format 3 lacks, or with another meaning."""


def upgrade_policy(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a policy of format 3 as those of today."""
    return {RENAMED.get(key, key): value for key, value in raw.items()} | {"format": POLICY_FORMAT}


COUNTS = (
    "min_queries",
    "min_classes",
    "hit_at",
    "wide_hit_at",
    "ndcg_at",
    "mrr_at",
    "recall_at",
    "slice_min_queries",
)
FLAGS = ("require_proven_store", "require_training_record")
RANGES = {
    "alpha": (0.0001, 0.5),
    "power": (0.5, 0.999),
    "min_hit_gain": (-1.0, 1.0),
    "min_wide_hit_gain": (-1.0, 1.0),
    "min_ndcg_gain": (-1.0, 1.0),
    "min_mrr_gain": (-1.0, 1.0),
    "min_recall_gain": (-1.0, 1.0),
    "min_map_gain": (-1.0, 1.0),
    "same_class_margin": (0.0, 2.0),
    "different_class_margin": (0.0, 2.0),
    "max_negative_flips": (0.0, 1.0),
    "min_self_test_gain": (-1.0, 1.0),
    "min_slice_gain": (-1.0, 1.0),
    "min_chain_gain": (-1.0, 1.0),
    "min_mixed_gain": (-1.0, 1.0),
    "min_untouched_gain": (-1.0, 1.0),
    "min_unjudged_gain": (-1.0, 1.0),
    "min_stored_share": (0.0, 1.0),
    "min_matched_share": (0.0, 1.0),
    "min_old_hit_rate": (0.0, 1.0),
    "min_ann_recall": (0.0, 1.0),
    "max_far_ratio": (0.0, 1e6),
    "max_frr_increase": (0.0, 1.0),
    "max_parity_error": (0.0, 2.0),
    "max_near_copies": (0.0, 1.0),
    "max_gallery_pass": (0.0, 1.0),
    "pair_far": (0.0, 1.0),
    "min_pair_tar_gain": (-1.0, 1.0),
    "max_latency_ratio": (0.0, 1e6),
    "max_design_effect": (1.0, 1e6),
}
"""Key -> smallest and largest value. Keys ``min_CHECK`` and ``CHECK_margin`` set a lower limit of
the check, ``max_CHECK`` an upper one."""
NEVER_NULL = ("alpha", "power", "pair_far")
CRITERIA = ("hit_gain", "ndcg_gain", "mrr_gain", "recall_gain")
"""The empirical criterion is the first of these checks that the policy decides by."""
MIN_REPLICATES, MAX_REPLICATES = 999, 1_000_000

EVIDENCE_CHECKS = frozenset(
    {
        "unjudged_gain",
        "stored_share",
        "matched_share",
        "old_hit_rate",
        "proven_store",
        "training_record",
        "near_copies",
        "design_effect",
    }
)
"""Checks of the evidence itself: they pass or are inconclusive, and never fail."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a candidate must show; construction checks every threshold.

    A minimum gain below 0 makes its check one of non-inferiority with that margin. A check whose
    key is None is measured and shown, and does not decide.

    Raises:
        InputError: a value of another type or outside its range, or another format.
    """

    name: str = "default"
    format: int = POLICY_FORMAT
    alpha: float = 0.05
    """Intervals have confidence 1 - alpha, and a check passes if its whole interval lies beyond the
    limit. So a candidate at the limit passes with probability alpha / 2."""
    power: float = 0.8
    """Probability with which the needed number of classes would settle an open check."""
    replicates: int = 2000
    """Resampled sets of classes, 999 to 1,000,000; more are drawn if many checks decide."""
    min_queries: int = 200
    """Queries with a match, >= 1; a check with fewer is inconclusive."""
    min_classes: int = 20
    """Classes among the queries, >= 1; a check with fewer is inconclusive."""
    hit_at: int = 1
    """The k of the hit rate that decides, >= 1."""
    min_hit_gain: float | None = 0.0
    """hit rate(new, old) - hit rate(old, old) must exceed this, in [-1, 1); None only if another
    of ``CRITERIA`` decides."""
    wide_hit_at: int = 5
    """The k of a second hit rate, >= 1."""
    min_wide_hit_gain: float | None = None
    ndcg_at: int = 10
    """The k of nDCG, with the grades of judgments as gains, >= 1."""
    min_ndcg_gain: float | None = None
    """The gain in nDCG@k must exceed this, in [-1, 1); the same of the two below."""
    mrr_at: int = 10
    """The k of the mean reciprocal rank, >= 1."""
    min_mrr_gain: float | None = None
    recall_at: int = 10
    """The k of recall, the share of a query's relevant items that are found, >= 1."""
    min_recall_gain: float | None = None
    min_map_gain: float | None = None
    """The same of mAP@100."""
    same_class_margin: float | None = None
    """(1a): the mean cosine to items of the same class may fall by this at most, in [0, 2]."""
    different_class_margin: float | None = 0.05
    """(1b): the mean cosine to items of other classes may rise by this at most, in [0, 2]."""
    max_negative_flips: float | None = None
    """Largest share of queries that turn from right to wrong, in [0, 1]."""
    min_self_test_gain: float | None = None
    """hit rate(new, new) - hit rate(old, old) must exceed this."""
    slice_min_queries: int = 100
    """Slices, and versions in the gallery, with fewer queries are shown and do not decide, >= 1."""
    min_slice_gain: float | None = -0.1
    """The gain in hit rate of every slice must exceed this."""
    min_chain_gain: float | None = -0.05
    """The gain on the rows of every version in the gallery, over that version's own queries."""
    min_mixed_gain: float | None = None
    """hit rate(new, half re-embedded) - hit rate(new, old) must exceed this."""
    min_untouched_gain: float | None = -0.05
    """The gain of the queries all of whose matches are rows that no training passed through the new
    model must exceed this."""
    min_unjudged_gain: float | None = 0.0
    """The gain if every first answer of unknown relevance counts against the new model must exceed
    this, or the verdict is inconclusive."""
    min_stored_share: float | None = 0.95
    """Share of the searched rows that are the store's own; below it the verdict is inconclusive."""
    min_matched_share: float | None = 0.5
    """Share of the held-out queries with a match; below it the verdict is inconclusive."""
    min_old_hit_rate: float | None = 0.05
    """hit rate(old, old); below it something is wrong, and the verdict is inconclusive."""
    require_proven_store: bool = True
    """An imported index must agree with what its model returns for some images; without images the
    verdict is inconclusive."""
    min_ann_recall: float | None = 0.9
    """ANN recall@10 of the new queries on the real index at the ef they need."""
    max_far_ratio: float | None = 1.5
    """New false accept rate over the old one at the thresholds used, >= 0."""
    max_frr_increase: float | None = 0.05
    """New false reject rate less the old one at the thresholds used, in [0, 1]."""
    pair_far: float = 0.001
    """The false accept rate at which pairs given by the user are compared, in [0, 1]."""
    min_pair_tar_gain: float | None = None
    """The gain in the true accept rate at that rate must exceed this."""
    max_parity_error: float | None = 0.001
    """Largest difference between the ONNX file and what was trained."""
    require_training_record: bool = True
    """Without a record of what the new model was trained on, the verdict is inconclusive."""
    max_near_copies: float | None = 0.1
    """Largest share of held-out queries that nearly equal a trained item, as image or as vector;
    above it the verdict is inconclusive. These queries never decide."""
    max_gallery_pass: float | None = field(default=None, metadata={"optional": True})
    """Largest share of the gallery's rows that the candidate passed, labelled training items aside.
    The project gives it (``max_gallery_pass`` of compatctl.yaml); a policy file does not."""
    max_latency_ratio: float | None = None
    """Median time of the new encoder over that of the old one."""
    max_design_effect: float | None = 1.5
    """Variance of the gain with one more column resampled, over that without; above it the
    verdict is inconclusive."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(f"a policy needs a name, got {self.name!r}")
        _check_format(self.format)
        for flag in FLAGS:
            if not isinstance(getattr(self, flag), bool):
                raise InputError(
                    f"policy: {flag} must be true or false, got {getattr(self, flag)!r}"
                )
        for count in COUNTS:
            _check_number(count, getattr(self, count), 1, 10**9, whole=True)
        _check_number("replicates", self.replicates, MIN_REPLICATES, MAX_REPLICATES, whole=True)
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None or name in NEVER_NULL:
                _check_number(name, value, low, high)
        for check in CRITERIA:
            if (getattr(self, f"min_{check}") or 0.0) >= 1:
                raise InputError(f"policy: min_{check} must be below 1: no gain exceeds it")
        if all(getattr(self, f"min_{check}") is None for check in CRITERIA):
            keys = ", ".join(f"min_{check}" for check in CRITERIA)
            raise InputError(f"policy: one of {keys} must be a number, got null for all")

    @property
    def criterion(self) -> str:
        """The check of ``CRITERIA`` without which nothing passes."""
        return next(check for check in CRITERIA if getattr(self, f"min_{check}") is not None)

    @property
    def rules(self) -> dict[str, Rule]:
        """Check name -> how the policy judges it; checks that it only measures are not in it."""
        rules = {}
        for key in RANGES:
            value = getattr(self, key)
            if value is None:
                continue
            if key.startswith("min_"):
                rules[key.removeprefix("min_")] = _gain(float(value))
            elif key.endswith("_margin"):
                rules[key.removesuffix("_margin")] = _gain(-float(value))
            elif key.startswith("max_"):
                check = key.removeprefix("max_").removesuffix("_error")
                rules[check] = Rule(threshold=float(value), margin=None, above=False)
        for check in ("half_warm_gain", "warm_gain"):
            rules[check] = _gain(float(self.min_hit_gain or 0.0))
        if self.require_proven_store:
            rules["proven_store"] = _gain(1.0)
        if self.require_training_record:
            rules["training_record"] = _gain(0.5)
        return {
            check: replace(rule, may_fail=check not in EVIDENCE_CHECKS)
            for check, rule in rules.items()
        }


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one check is judged: the estimate must lie beyond ``threshold - margin``."""

    threshold: float
    margin: float | None
    above: bool
    """Whether more is better."""
    may_fail: bool = True
    """False for checks of the evidence itself: if one is missed, the verdict is inconclusive."""

    @property
    def limit(self) -> float:
        """``threshold - margin``: what the interval must lie beyond."""
        return self.threshold - (self.margin or 0.0)


def _gain(least: float) -> Rule:
    """The rule for a minimum gain; a minimum below 0 is a margin to the threshold 0."""
    if least > 0:
        return Rule(threshold=float(least), margin=None, above=True)
    return Rule(threshold=0.0, margin=float(-least) if least < 0 else None, above=True)


def _check_format(value: object) -> None:
    if isinstance(value, bool) or value != POLICY_FORMAT:
        raise InputError(
            f"policy format {value!r} is not known, this version reads {POLICY_FORMAT}",
            tip="compare with the shipped policies, which explain every key",
        )


def _check_number(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        kind = "whole number" if whole else "number"
        raise InputError(
            f"policy: {name} must be a {kind} from {low:.10g} to {high:.10g}, got {value!r}"
        )
