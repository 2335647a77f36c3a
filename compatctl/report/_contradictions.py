"""Check that a report agrees with its own numbers, before deploy accepts it.

Outcomes, p-values and the verdict are derived again by ``core.gate.settle``, which ``verify`` used.
Estimates are compared with their intervals, with the figures of the groups and with the policy's
minimum sizes. Every check that the policy and the options require must be present. Only a signature
or a new ``verify`` detects an edit that changes all of these places consistently.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from compatctl.core.dependence import worst_design_effect
from compatctl.core.gate import CHECKS_WITHOUT_INTERVAL, Check, CheckKey, settle
from compatctl.core.knots import knots_problem
from compatctl.core.measurements import DECIDING_GROUP, PARTIAL_CHECKS
from compatctl.core.policy import Policy, Rule
from compatctl.core.rescoring import rule_problem
from compatctl.report._detail_contradictions import detail_contradictions
from compatctl.report._report import FORMAT, Group, Report
from compatctl.report._summary import summary

ROUNDING = 1e-6
"""Two copies of one figure may differ by this much: float32 features, the order of a sum."""

NEXT_STEP = "compatctl deploy"
"""How the next step of a report begins that passes and has a store."""

RANKING = ("ndcg_gain", "mrr_gain", "recall_gain")
"""Checks that every report has but those of the format before."""

ALWAYS_MEASURED = (
    "hit_gain",
    "wide_hit_gain",
    "map_gain",
    "same_class",
    "different_class",
    "negative_flips",
    "design_effect",
    "matched_share",
    "old_hit_rate",
)
"""Checks that are measured on every set of queries."""

OWN_COUNT = PARTIAL_CHECKS | {"untouched_gain", "stored_share", "matched_share"}
"""Checks whose n is not the number of the group's queries."""

AT_LIMIT = "at-limit"
"""The state in place of ``cold`` where the policy lets only a share of the gallery pass."""
_STATE_PAIRS = {"cold": "new_old", "half-warm": "half_warm", "warm": "warm"}
"""State of the cache of free vectors -> the group's entry."""

PAIR_CHECKS = ("far_ratio", "frr_increase")
"""Checks that a threshold adds, over pairs of queries and gallery items."""


def contradictions(report: Report) -> Iterator[str]:
    """Each contradiction in a report; none if it is as ``verify`` wrote it."""
    verdict = report.verdict
    rules = report.policy.rules
    attempt = report.attempt.number if report.attempt else 1
    if report.attempt and attempt != len(report.attempt.earlier) + 1:
        yield f"it is attempt {attempt}, after {len(report.attempt.earlier)} earlier ones"
    if settle(report.policy, verdict.checks, attempt=attempt) != verdict:
        yield "its outcomes do not follow from its own checks"
    elif summary(verdict) != report.summary:
        yield "its summary does not fit its verdict"
    passes = verdict.outcome == "pass"
    if report.store is not None and passes != report.next_step.startswith(NEXT_STEP):
        yield "its next step does not fit its verdict"
    if report.replicates < report.policy.replicates:
        yield f"{report.replicates} replicates; the policy requires {report.policy.replicates}"
    if report.seed != (report.options.get("seed") or 0):
        yield f"it was drawn with seed {report.seed}; the options say {report.options.get('seed')}"
    for check in verdict.checks:
        name = f"{check.name} of {check.group}"
        for contradiction in _check_contradictions(check, rules.get(check.name)):
            yield f"{name}: {contradiction}"
        if check.name in rules and not check.may_decide and _in_deciding_group(check, report):
            yield f"{name} decides"
    yield from _calibration_contradictions(report)
    yield from _rescoring_contradictions(report)
    if (today := report.rescored_today) is not None:
        rows = report.store.stored_vectors if report.store else 0
        if not rows or not _same(today.kept_share, today.kept / rows):
            yield "its old answers are re-scored by a side file that is not of its store"
    yield from _gallery_pass_contradictions(report)
    yield from _index_contradictions(report)
    present = {check.key for check in verdict.checks}
    for check_name, group in sorted(_required_checks(report, rules) - present):
        yield f"the check {check_name} of {group} is missing"
    yield from _group_contradictions(report)
    yield from detail_contradictions(report)
    yield from _missing_from_not_checked(report, {check_name for check_name, _ in present})


def _calibration_contradictions(report: Report) -> Iterator[str]:
    calibration = report.calibration
    if (calibration is not None) != bool(report.options.get("calibrate")):
        yield "it has a calibration that the options do not name, or lacks one that they name"
    if calibration is not None and (problem := knots_problem(calibration.knots)):
        yield f"its calibration is not a score map, which {problem}"


def _rescoring_contradictions(report: Report) -> Iterator[str]:
    """Compare the rule, the states and the shares with the options, the group and the gallery."""
    entry = report.rescoring
    stated = None if entry is None else (entry.candidates, entry.passes)
    options = report.options.get("rescore"), report.options.get("passes")
    if stated != (options if options[0] is not None else None):
        yield f"it was re-scored as {stated}, and the options say {options}"
    if entry is None:
        return
    if problem := rule_problem(entry.weight, entry.slope, entry.intercept):
        yield f"its merge rule {problem}"
    hit_rates = {"first_stage": entry.first_stage}
    limited = (1.0 if (limit := report.policy.max_gallery_pass) is None else limit) < 1.0
    first, *others = _STATE_PAIRS.items()
    pairs = dict([(AT_LIMIT if limited else first[0], first[1]), *others])
    hit_rates |= {pairs.get(state.name, ""): state.hit_rate for state in entry.states}
    hit_rate = report.groups[0].hit_rate if report.groups else {}
    if set(hit_rates) != {"first_stage", *pairs.values()}:
        yield "it does not have the three states of re-scoring"
    elif any(hit_rate.get(pair) != values for pair, values in hit_rates.items()):
        yield "the hit rates of re-scoring are not those of the group"
    for state in entry.states:
        rows = report.searched.rows if report.searched else 0
        if not _same(state.passed_share, state.passed / max(1, rows)):
            yield f"the share that re-scoring passes when {state.name} is not of the searched rows"


def _gallery_pass_contradictions(report: Report) -> Iterator[str]:
    """Check the share of the gallery that passed against its counts, and against its check."""
    passed = report.gallery_pass
    checks = [check for check in report.verdict.checks if check.name == "gallery_pass"]
    if (passed is None) != (not checks):
        yield "it has a share of the gallery that passed without its check, or the reverse"
        return
    if passed is None:
        return
    if report.store is not None and passed.rows != report.store.stored_vectors:
        yield "the rows of which it counts those that passed are not those of the store"
    if not _same(passed.share, passed.passed / max(1, passed.rows)):
        yield f"gallery_pass: {passed.passed} of {passed.rows} rows are not {passed.share:g}"
    for check in checks:
        if not _same(check.estimate, passed.share):
            yield f"gallery_pass: the check says {check.estimate}, the report {passed.share:g}"


def _index_contradictions(report: Report) -> Iterator[str]:
    """Check the ef that deploy sets, and the hit rate at it."""
    ann = report.ann
    hit_rates = [check for check in report.verdict.checks if check.name == "ann_recall"]
    if ann is None:
        if any(check.estimate is not None for check in hit_rates):
            yield "it has a hit rate of the index and no ef"
        return
    if ann.ef_needed != ann.ef_current and ann.ef_needed not in {ef for ef, _ in ann.sweep}:
        yield f"the ef {ann.ef_needed} that it names is not in its sweep"
    for check in hit_rates:
        if not _same(check.estimate, ann.recall_needed):
            yield f"ann_recall: the check says {check.estimate}, the index {ann.recall_needed:g}"


def _check_contradictions(check: Check, rule: Rule | None) -> Iterator[str]:
    """Compare estimate, interval, p-values and sizes of one check."""
    if check.n_classes is None and check.name not in CHECKS_WITHOUT_INTERVAL:
        yield "it has no interval"
    if check.n < 0 or check.n_queries < 0 or (check.n_classes or 0) < 0:
        yield "a number of queries or classes is below 0"
    sampled = check.n_classes is not None
    if (check.raw_p is not None) != (sampled and rule is not None):
        yield "it has p-values without a limit, or a limit without p-values"
    p_values = [p for p in (*(check.raw_p or ()), check.fail_p_at_best) if p is not None]
    if not all(0.0 <= p <= 1.0 for p in p_values):
        yield "a p-value does not lie between 0 and 1"
    if check.estimate is None:
        if (check.low, check.high) != (None, None):
            yield "it has an interval and no estimate"
        return
    if not math.isfinite(check.estimate) or check.n < 1:
        yield "its estimate is not finite, or has no queries"
    if not sampled:
        return
    low = -math.inf if check.low is None else check.low  # JSON has no infinity
    high = math.inf if check.high is None else check.high
    if not low <= check.estimate <= high:
        yield "its estimate lies outside of its interval"
    elif rule is not None and check.raw_p is not None:
        worst, best = (low, high) if rule.above else (-high, -low)
        limit = rule.limit if rule.above else -rule.limit
        if check.outcome == "pass" and not worst > limit:
            yield "it passes, and its interval does not"
        if check.outcome == "fail" and not best < limit:
            yield "it fails, and its interval does not"


def _in_deciding_group(check: Check, report: Report) -> bool:
    """Whether a check belongs to a deciding group, whatever its own entry says."""
    if check.group == "pairs":
        return report.pairs is None or not report.pairs.seen
    reported_only = {group.name for group in report.groups if group.name != DECIDING_GROUP}
    group_name = check.group.split(", ")[0] if check.name == "slice_gain" else check.group
    return group_name not in reported_only


def _required_checks(report: Report, rules: Mapping[str, Rule]) -> set[CheckKey]:
    """Every check that the policy and the options require."""
    options, unseen = report.options, DECIDING_GROUP
    required = {(name, unseen) for name in ALWAYS_MEASURED}
    if report.format == FORMAT:
        required |= {(name, unseen) for name in RANKING}
    if options.get("self_test", True):
        required |= {(name, unseen) for name in ("self_test_gain", "mixed_gain") if name in rules}
    if options.get("rescore") is not None:
        required |= {("half_warm_gain", unseen), ("warm_gain", unseen)}
    if options.get("threshold") is not None:
        required |= {(name, unseen) for name in PAIR_CHECKS}
    if options.get("pairs") is not None:
        required |= {(name, "pairs") for name in ("same_class", "different_class", "pair_tar_gain")}
    if report.store is not None:
        required |= {("stored_share", unseen), ("training_record", "training")}
        if report.groups and _queries(report.groups[0]):
            required.add(("ann_recall", unseen))
        if report.training_record_sha256 is not None:
            required.add(("near_copies", "training"))
            if "gallery_pass" in rules:
                required.add(("gallery_pass", "training"))
    if any(group.unjudged for group in report.groups[:1]):
        required.add(("unjudged_gain", unseen))
    if report.latency is not None or "latency_ratio" in rules:
        required.add(("latency_ratio", "latency"))
    for group in report.groups:
        required |= {(name, group.name) for name in _figures(report.policy, group)}
        required |= {("slice_gain", f"{group.name}, {name}") for name in group.slices}
    return required


def _queries(group: Group) -> int:
    return group.n_queries + group.n_without_match


def _group_contradictions(report: Report) -> Iterator[str]:
    """Compare the checks of each group with the group's own figures."""
    checks = {check.key: check for check in report.verdict.checks}
    names = [group.name for group in report.groups]
    if names[:1] != [DECIDING_GROUP] or len(set(names)) != len(names):
        yield "its groups do not start with the deciding one, or one occurs twice"
    requested = report.options.get("slices") or ()
    columns = {name.split("=")[0] for group in report.groups[:1] for name in group.slices}
    if not columns <= {str(name).split("=")[0] for name in requested}:
        yield "it has slices that the options do not name"
    for group in report.groups:
        figures = _figures(report.policy, group)
        for name, expected in figures.items():
            check = checks.get((name, group.name))
            if check is None:
                continue
            prefix = f"{name} of {group.name}"
            if not _same(check.estimate, expected):
                yield f"{prefix}: the check says {check.estimate}, the group {expected:g}"
            if name not in {*PAIR_CHECKS, *OWN_COUNT} and check.n not in {group.n_queries, 0}:
                yield f"{prefix}: it has {check.n} queries, the group {group.n_queries}"
            if check.n_classes is not None and check.n_classes > max(1, group.n_classes):
                yield f"{prefix}: it has {check.n_classes} classes, the group {group.n_classes}"
        for name, n in group.slices.items():
            check = checks.get(("slice_gain", f"{group.name}, {name}"))
            if check is not None and not check.n == check.n_queries == n <= group.n_queries:
                yield f"slice_gain of {check.group}: it has {check.n} queries, the slice {n}"
    yield from _gallery_contradictions(report, checks)
    sizes = {group.name: group.n_queries for group in report.groups}
    for check in report.verdict.checks:
        n = sizes.get(check.group, check.n_queries)
        if check.name not in OWN_COUNT and check.n_queries != n:
            yield f"{check.name} of {check.group} does not have the group's {n} queries"


def _figures(policy: Policy, group: Group) -> dict[str, float]:
    """Check name -> the estimate that the figures of the group give, if they give one."""
    hit_rate, k, nan = group.hit_rate, str(policy.hit_at), float("nan")

    def gain(new: str, old: str, at_k: str = k) -> float:
        return hit_rate.get(new, {}).get(at_k, nan) - hit_rate.get(old, {}).get(at_k, nan)

    figures = {
        "hit_gain": gain("new_old", "old_old"),
        "wide_hit_gain": gain("new_old", "old_old", str(policy.wide_hit_at)),
        **_ranking_figures(policy, group),
        "map_gain": group.map_at_k.get("new_old", nan) - group.map_at_k.get("old_old", nan),
        "negative_flips": group.negative_flips,
    }
    overlap = group.training_overlap
    if overlap is not None and 0.0 < overlap.of_queries < 1.0:
        figures |= {name: overlap.mean(name, overlap.of_gallery) for name in figures}
    if group.dependence:  # of unweighted queries
        figures["design_effect"] = worst_design_effect(group.dependence, policy.min_classes)
    if group.name == DECIDING_GROUP:
        figures["old_hit_rate"] = hit_rate.get("old_old", {}).get(k, nan)
        if overlap is not None and overlap.of_gallery < 1.0:
            figures["untouched_gain"] = overlap.untouched_gain
    figures |= {
        f"{pair}_gain": gain(pair, "old_old") for pair in ("half_warm", "warm") if pair in hit_rate
    }
    subset = "_subset" if "old_old_subset" in hit_rate else ""
    if "new_new" in hit_rate:
        figures["self_test_gain"] = gain("new_new", f"old_old{subset}")
    if "new_mixed" in hit_rate:
        first = "first_stage" if not subset and "first_stage" in hit_rate else f"new_old{subset}"
        figures["mixed_gain"] = gain("new_mixed", first)
    rates = group.error_rates
    if rates is not None:
        figures["frr_increase"] = rates.frr.get("new", nan) - rates.frr.get("old", nan)
        if rates.far.get("old", 0.0) > 0:
            figures["far_ratio"] = rates.far.get("new", nan) / rates.far["old"]
    return figures


def _ranking_figures(policy: Policy, group: Group) -> dict[str, float]:
    """The gains in nDCG, MRR and recall; empty for a group of a format without them."""
    measures = {
        "ndcg_gain": (group.ndcg, policy.ndcg_at),
        "mrr_gain": (group.mrr, policy.mrr_at),
        "recall_gain": (group.recall, policy.recall_at),
    }
    nan = float("nan")
    return {
        name: means.get("new_old", {}).get(str(k), nan) - means.get("old_old", {}).get(str(k), nan)
        for name, (means, k) in measures.items()
        if means
    }


def _gallery_contradictions(report: Report, checks: Mapping[CheckKey, Check]) -> Iterator[str]:
    """Compare the counts of searched rows, and of rows that training used, with the figures."""
    searched, group = report.searched, report.groups[0]
    if report.store is not None:
        if searched is None or searched.stored != report.store.stored_vectors:
            yield "its searched rows are not those of the store"
            return
        if searched.rows != searched.stored + searched.embedded or searched.rows < 1:
            yield "its searched rows are not the sum of stored and embedded rows"
            return
    expected = {}
    if report.store is not None and searched is not None:
        expected["stored_share"] = searched.stored / searched.rows
    if report.options.get("qrels") is None:
        expected["matched_share"] = group.n_queries / max(1, _queries(group))
    for name, share in expected.items():
        check = checks.get((name, group.name))
        if check is not None and check.n > 0 and not _same(check.estimate, share):
            yield f"{name}: the check says {check.estimate}, the report {share:g}"
    if (group.training_overlap is None) != (report.training_record_sha256 is None):
        yield "it has rows that training used without a training record, or the reverse"
    overlap = group.training_overlap
    if overlap is not None and group.n_queries:
        unweighted = _figures(report.policy, replace(group, training_overlap=None))
        for name in overlap.parts:
            if not _same(overlap.mean(name, overlap.of_queries), unweighted[name]):
                yield f"{name}: it is not the mean of its touched and untouched parts"


def _same(stated: float | None, expected: float) -> bool:
    if stated is None or math.isnan(expected):
        return stated is None and math.isnan(expected)
    return abs(stated - expected) <= ROUNDING * max(1.0, abs(expected))


def _missing_from_not_checked(report: Report, checks: set[str]) -> Iterator[str]:
    options: Mapping[str, Any] = report.options
    not_checked = {
        "parity": "parity" not in checks,
        "latency": report.latency is None,
        "false accepts": options.get("threshold") is None,
        "slices": not options.get("slices"),
        "self-test": not options.get("self_test", True),
        "ANN recall": report.store is None,
        "attempts": report.attempt is None,
        "leaks": report.store is not None and report.training_record_sha256 is None,
    }
    topics = [sentence.split(":")[0] for sentence in report.not_checked]
    for topic, applies in not_checked.items():
        if applies and not any(topic in text for text in topics):
            yield f"not_checked does not name {topic}"
