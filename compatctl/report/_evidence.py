"""Does a report hold what its own numbers say? What deploy does before it believes one.

Outcomes, p-values and the verdict are made again by ``core.gate.settle``, which ``verify`` used;
estimates are compared with their intervals, with the groups' own figures and with the sizes that
the policy asks for; and every check that the policy and the question demand has to be there. What
is changed in all of these places at once, as far as they agree, can be told by a signature or by
a new ``verify`` only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from compatctl.core.dependence import worst_design_effect
from compatctl.core.evidence import DECIDING_GROUP
from compatctl.core.gate import CHECKS_WITHOUT_INTERVAL, Check, settle
from compatctl.core.knots import knots_problem
from compatctl.core.policy import Policy, Rule
from compatctl.report._report import Group, Report
from compatctl.report._summary import summary

ROUNDING = 1e-6
"""What float32 features and the order of a sum may make of one figure in two places."""

NEXT_STEP = "compatctl deploy"
"""Of a report that passes and has a store."""

ALWAYS = (
    "recall_gain",
    "wide_recall_gain",
    "map_gain",
    "same_class",
    "different_class",
    "negative_flips",
    "design_effect",
)
"""What is measured on every set of queries."""

OWN_COUNT = frozenset(
    {
        "ann_recall",
        "untouched_gain",
        "stored_share",
        "matched_share",
        "self_test_gain",
        "mixed_gain",
    }
)
"""Checks of another number of queries, or of rows, than the group has queries."""

OF_PAIRS = ("far_ratio", "frr_increase")
"""What is measured where a threshold was given, over pairs of queries and gallery items."""

_Key = tuple[str, str]


def contradictions(report: Report) -> Iterator[str]:
    """What in a report cannot be what ``verify`` found: nothing, where it was not edited."""
    verdict = report.verdict
    rules = report.policy.rules
    attempt = report.attempt.number if report.attempt else 1
    if report.attempt and attempt != len(report.attempt.earlier) + 1:
        yield f"it is attempt {attempt}, after {len(report.attempt.earlier)} earlier ones"
    if settle(report.policy, verdict.checks, attempt=attempt) != verdict:
        yield "its outcomes are not what its own checks give"
    elif summary(verdict) != report.summary:
        yield "its summary is not that of its verdict"
    passes = verdict.outcome == "pass"
    if report.store is not None and passes != (report.next_step == NEXT_STEP):
        yield "its next step is not that of its verdict"
    if report.replicates < report.policy.replicates:
        yield f"{report.replicates} replicates, and the policy asks for {report.policy.replicates}"
    if report.seed != (report.options.get("seed") or 0):
        yield f"it was drawn with seed {report.seed}; the options say {report.options.get('seed')}"
    for check in verdict.checks:
        where = f"{check.name} of {check.group}"
        yield from (f"{where}: {what}" for what in _of_check(check, rules.get(check.name)))
        if check.name in rules and not check.may_decide and _deciding(check, report):
            yield f"{where} has a say"
    yield from _of_calibration(report)
    yield from _of_index(report)
    there = {(check.name, check.group) for check in verdict.checks}
    for name, group in sorted(_demanded(report, rules) - there):
        yield f"the check {name} of {group} is not there"
    yield from _of_groups(report)
    yield from _unsaid(report, {name for name, _ in there})


def _of_calibration(report: Report) -> Iterator[str]:
    found = report.calibration
    if (found is not None) != bool(report.options.get("calibrate")):
        yield "a calibration of scores is there without being asked for, or the other way round"
    if found is not None and (problem := knots_problem(found.knots)):
        yield f"its calibration is no score map, which {problem}"


def _of_index(report: Report) -> Iterator[str]:
    """The ef that deploy sets, and what was found at it."""
    ann = report.ann
    found = [check for check in report.verdict.checks if check.name == "ann_recall"]
    if ann is None:
        if any(check.estimate is not None for check in found):
            yield "it judges the index, and does not say at which ef"
        return
    if ann.ef_needed != ann.ef_current and ann.ef_needed not in {ef for ef, _ in ann.sweep}:
        yield f"the ef {ann.ef_needed} that it names was not tried"
    for check in found:
        if not _same(check.estimate, ann.recall_needed):
            yield f"ann_recall: the check says {check.estimate}, the index {ann.recall_needed:g}"


def _of_check(check: Check, rule: Rule | None) -> Iterator[str]:
    """Estimate, interval, p-values and sizes of one check, held against each other."""
    if check.n_classes is None and check.name not in CHECKS_WITHOUT_INTERVAL:
        yield "it has no interval"
    if check.n < 0 or check.n_queries < 0 or (check.n_classes or 0) < 0:
        yield "a number of queries or classes is below 0"
    sampled = check.n_classes is not None
    if (check.raw_p is not None) != (sampled and rule is not None):
        yield "p-values are there without a limit, or a limit without them"
    both = [one for one in (*(check.raw_p or ()), check.fail_p_at_best) if one is not None]
    if not all(0.0 <= one <= 1.0 for one in both):
        yield "a p-value does not lie between 0 and 1"
    if check.estimate is None:
        if (check.low, check.high) != (None, None):
            yield "an interval of nothing"
        return
    if not math.isfinite(check.estimate) or check.n < 1:
        yield "its estimate is of nothing"
    if not sampled:
        return
    low = -math.inf if check.low is None else check.low  # JSON has no infinity
    high = math.inf if check.high is None else check.high
    if not low <= check.estimate <= high:
        yield "its estimate lies outside of its interval"
    elif rule is not None and check.raw_p is not None:
        beyond, short = (low, high) if rule.above else (-high, -low)
        limit = rule.limit if rule.above else -rule.limit
        if check.outcome == "pass" and not beyond > limit:
            yield "it passes, and its interval does not"
        if check.outcome == "fail" and not short < limit:
            yield "it fails, and its interval does not"


def _deciding(check: Check, report: Report) -> bool:
    """Whether a check is of what decides, whatever it says itself."""
    if check.group == "pairs":
        return report.pairs is None or not report.pairs.seen
    beside = {one.name for one in report.groups if one.name != DECIDING_GROUP}
    named = check.group.split(", ")[0] if check.name == "slice_gain" else check.group
    return named not in beside


def _demanded(report: Report, rules: Mapping[str, Rule]) -> set[_Key]:
    """(name, group) of every check that the policy asks for, where there is something to ask."""
    options, unseen = report.options, DECIDING_GROUP
    found = {(name, unseen) for name in ALWAYS}
    if options.get("self_test", True):
        found |= {(name, unseen) for name in ("self_test_gain", "mixed_gain") if name in rules}
    if options.get("threshold") is not None:
        found |= {(name, unseen) for name in OF_PAIRS}
    if options.get("pairs") is not None:
        found |= {(name, "pairs") for name in ("same_class", "different_class", "pair_tar_gain")}
    if report.store is not None and report.groups and _queries(report.groups[0]):
        found.add(("ann_recall", unseen))
    if report.store is not None:
        found |= {("stored_share", unseen), ("training_record", "training")}
    if any(group.unjudged for group in report.groups[:1]):
        found.add(("unjudged_gain", unseen))
    found |= {(name, unseen) for name in ("matched_share", "old_recall")}
    if report.store is not None and report.training_record_sha256 is not None:
        found.add(("near_copies", "training"))
    if report.latency is not None or "latency_ratio" in rules:
        found.add(("latency_ratio", "latency"))
    for group in report.groups:
        found |= {(name, group.name) for name in _figures(report.policy, group)}
        found |= {("slice_gain", f"{group.name}, {name}") for name in group.slices}
    return found


def _queries(group: Group) -> int:
    return group.n_queries + group.n_without_match


def _of_groups(report: Report) -> Iterator[str]:
    """The checks of each group, held against the group's own figures."""
    checks = {(check.name, check.group): check for check in report.verdict.checks}
    names = [group.name for group in report.groups]
    if names[:1] != [DECIDING_GROUP] or len(set(names)) != len(names):
        yield "its groups do not begin with the one that decides, each once"
    requested = report.options.get("slices") or ()
    columns = {name.split("=")[0] for group in report.groups[:1] for name in group.slices}
    if not columns <= {str(name).split("=")[0] for name in requested}:
        yield "it has slices that were not asked for"
    for group in report.groups:
        figures = _figures(report.policy, group)
        for name, expected in figures.items():
            check = checks.get((name, group.name))
            if check is None:
                continue
            where = f"{name} of {group.name}"
            if not _same(check.estimate, expected):
                yield f"{where}: the check says {check.estimate}, the group {expected:g}"
            if name not in {*OF_PAIRS, *OWN_COUNT} and check.n not in {group.n_queries, 0}:
                yield f"{where}: it is of {check.n} queries, the group of {group.n_queries}"
            if check.n_classes is not None and check.n_classes > max(1, group.n_classes):
                yield f"{where}: it is of {check.n_classes} classes, the group {group.n_classes}"
        for name, n in group.slices.items():
            check = checks.get(("slice_gain", f"{group.name}, {name}"))
            if check is not None and not check.n == check.n_queries == n <= group.n_queries:
                yield f"slice_gain of {check.group}: it is of {check.n} queries, the slice of {n}"
    yield from _of_gallery(report, checks)
    for check in report.verdict.checks:
        mine = next((one for one in report.groups if one.name == check.group), None)
        if mine and check.name not in OWN_COUNT and check.n_queries != mine.n_queries:
            yield f"{check.name} of {check.group} is not of the group's {mine.n_queries} queries"


def _figures(policy: Policy, group: Group) -> dict[str, float]:
    """Check -> its estimate by the figures of the group, of those that these say again."""
    recall, k, nan = group.recall, str(policy.recall_at), float("nan")

    def gain(new: str, old: str, at: str = k) -> float:
        return recall.get(new, {}).get(at, nan) - recall.get(old, {}).get(at, nan)

    found = {
        "recall_gain": gain("new_old", "old_old"),
        "wide_recall_gain": gain("new_old", "old_old", str(policy.wide_recall_at)),
        "map_gain": group.map_at_k.get("new_old", nan) - group.map_at_k.get("old_old", nan),
        "negative_flips": group.negative_flips,
    }
    touched = group.touched
    if touched is not None and 0.0 < touched.of_queries < 1.0:
        found |= {name: touched.mean(name, touched.of_gallery) for name in found}
    if group.dependence:  # of the queries as they are
        found["design_effect"] = worst_design_effect(group.dependence, policy.min_classes)
    if group.name == DECIDING_GROUP:
        found["old_recall"] = recall.get("old_old", {}).get(k, nan)
        if touched is not None and touched.of_gallery < 1.0:
            found["untouched_gain"] = touched.untouched_gain
    whole = "" if "old_old_at_hand" not in recall else "_at_hand"
    if "new_new" in recall:
        found["self_test_gain"] = gain("new_new", f"old_old{whole}")
    if "new_mixed" in recall:
        found["mixed_gain"] = gain("new_mixed", f"new_old{whole}")
    rates = group.error_rates
    if rates is not None:
        found["frr_increase"] = rates.frr.get("new", nan) - rates.frr.get("old", nan)
        if rates.far.get("old", 0.0) > 0:
            found["far_ratio"] = rates.far.get("new", nan) / rates.far["old"]
    return found


def _of_gallery(report: Report, checks: Mapping[_Key, Check]) -> Iterator[str]:
    """What is said of the searched rows and of those that training touched, against the figures."""
    searched, group = report.searched, report.groups[0]
    if report.store is not None:
        if searched is None or searched.stored != report.store.stored_vectors:
            yield "it does not say that the store's rows were searched"
            return
        if searched.rows != searched.stored + searched.embedded or searched.rows < 1:
            yield "its searched rows are not those of the store and those embedded"
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
    if (group.touched is None) != (report.training_record_sha256 is None):
        yield "what it says of touched rows is not what a training record says"
    if group.touched is not None and group.n_queries:
        plain = _figures(report.policy, replace(group, touched=None))
        for name in group.touched.parts:
            if not _same(group.touched.mean(name, group.touched.of_queries), plain[name]):
                yield f"{name}: its touched and untouched parts do not make it"


def _same(stated: float | None, expected: float) -> bool:
    if stated is None or math.isnan(expected):
        return stated is None and math.isnan(expected)
    return abs(stated - expected) <= ROUNDING * max(1.0, abs(expected))


def _unsaid(report: Report, checks: set[str]) -> Iterator[str]:
    """What was not checked, and is not said to be: the entry ``not_checked`` was shortened."""
    options: Mapping[str, Any] = report.options
    missing = {
        "parity": "parity" not in checks,
        "latency": report.latency is None,
        "false accepts": options.get("threshold") is None,
        "slices": not options.get("slices"),
        "self-test": not options.get("self_test", True),
        "ANN recall": report.store is None,
        "attempts": report.attempt is None,
        "leaks": report.store is not None and report.training_record_sha256 is None,
    }
    for word, lacks in missing.items():
        if lacks and not any(word in sentence.split(":")[0] for sentence in report.not_checked):
            yield f"it does not say that {word} was not checked"
