"""power: which gain a held-out set can show, before a model is verified."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Bools
from compatctl.core.dependence import intraclass
from compatctl.core.policy import Policy
from compatctl.core.power import (
    HeldOutSet,
    PowerAssumptions,
    PowerTarget,
    UnitKind,
    min_detectable_gain,
    times_needed,
)
from compatctl.deployment.data import load_data
from compatctl.errors import InputError, UsageError
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.evaluation.feature_tables import (
    check_same,
    load_tables,
    rank_equivalent,
    read_judged,
    table_rows,
    table_truth,
)
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.judged import judgments_for
from compatctl.evaluation.options import VerifyOptions
from compatctl.evaluation.protocol import ground_truth, query_group, query_rows
from compatctl.recipe import Project, load_policy
from compatctl.report import Report, read_report

GAINS = (0.01, 0.02, 0.05)
CHANGED = (0.05, 0.15, 0.3)
"""Shares of queries whose hit changes, if not measured."""
ICCS = (0.0, 0.1, 0.3)
"""Intraclass correlations of the change, if not measured."""
OLD_HIT_RATE = 0.5
"""Hit rate of the old model, if not measured."""


@dataclass(frozen=True, kw_only=True)
class PowerOptions:
    """Settings of ``power``.

    Attributes:
        tables: up to two feature tables instead of the project's data. Two tables, or an earlier
            ``report``, give the share of queries that change.
        similarity: that of tables that do not name one: cosine, dot or l2.
        gains: of hit rate, above the policy's limit.
        cluster: columns whose values are resampled as well as classes.
    """

    tables: tuple[Path, ...] = ()
    similarity: str | None = None
    report: Path | None = None
    gains: tuple[float, ...] = GAINS
    cluster: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.tables) > 2:
            raise UsageError("power takes at most two feature tables, old and new")
        if len(self.tables) == 2 and self.report is not None:
            raise UsageError("two tables say how much queries change; leave --report out")
        if self.similarity is not None and not self.tables:
            raise UsageError("--similarity is about feature tables, and none is given")
        wrong = [gain for gain in self.gains if not 0 < gain <= 1]
        if wrong:
            raise UsageError(f"a gain lies above 0 and is at most 1, got {wrong[0]:g}")


@dataclass(frozen=True, kw_only=True)
class SampleForGain:
    """The sample that shows a gain with the policy's power; None: no sample of this kind does."""

    gain: float
    classes: int | None
    """Units of the kind with the fewest."""
    queries: int | None


@dataclass(frozen=True, kw_only=True)
class PowerRow:
    """For one share of queries whose hit changes, and one correlation by kind of unit."""

    changed: float
    icc: dict[str, float]
    least_gain: float | None
    """The smallest gain that this set shows with the policy's power; None: not even the largest."""
    needed: tuple[SampleForGain, ...]


@dataclass(frozen=True, kw_only=True)
class Power:
    """What a held-out set can show."""

    policy: str
    limit: float
    alpha: float
    power: float
    hit_at: int
    n_queries: int
    """Queries that have something to find."""
    n_classes: int
    unit: tuple[str, ...]
    """What is resampled; ``n_classes`` counts units of the kind with the fewest."""
    measured: bool
    """Whether the expected change is that of two models, and not assumed."""
    old_hit_rate: float
    rows: tuple[PowerRow, ...]
    too_few: str
    """Why the gate could decide nothing with this set; empty if it could."""


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """The held-out set, and what was measured on it or elsewhere."""

    held_out: HeldOutSet
    old_hit_rate: float | None = None
    changed: float | None = None
    icc: Mapping[str, float] = field(default_factory=dict)


def power(project: Project, options: PowerOptions | None = None) -> Power:
    """Which gain in hit@``hit_at`` the held-out queries of the data or a table can show.

    No model runs. The figures are for this check alone.

    Raises:
        InputError: data, a table or a report that cannot be read, or no query with a match.
        UsageError: options that exclude each other, or a gain out of range.
    """
    options = options or PowerOptions()
    policy = load_policy(project.policy)
    sample = _sample(project, policy, options)
    if not sample.held_out.n_queries:
        raise InputError(
            "no held-out query has anything to find",
            tip="hold out whole classes, with at least two items each",
        )
    if (rule := policy.rules.get("hit_gain")) is None:
        raise InputError(
            f"power is of the gain in hits, by which policy {policy.name} does not decide: its "
            "min_hit_gain is null",
            tip="name another policy with --policy, such as default",
        )
    target = PowerTarget(limit=rule.limit, level=policy.alpha / 2, power=policy.power)
    hit_rate = OLD_HIT_RATE if sample.old_hit_rate is None else sample.old_hit_rate
    names = [kind.name for kind in sample.held_out.kinds]
    assumptions = (
        [PowerAssumptions(changed=c, icc=dict.fromkeys(names, r), old_hit_rate=hit_rate)
         for c in CHANGED for r in ICCS]
        if sample.changed is None
        else [PowerAssumptions(changed=sample.changed, icc=sample.icc, old_hit_rate=hit_rate)]
    )  # fmt: skip
    return Power(
        policy=policy.name,
        limit=rule.limit,
        alpha=policy.alpha,
        power=policy.power,
        hit_at=policy.hit_at,
        n_queries=sample.held_out.n_queries,
        n_classes=sample.held_out.n_units,
        unit=tuple(names),
        measured=sample.changed is not None,
        old_hit_rate=hit_rate,
        rows=tuple(
            _row(sample.held_out, expected, options.gains, target, policy)
            for expected in assumptions
        ),
        too_few=_too_few(sample.held_out, policy),
    )


def _row(
    held_out: HeldOutSet,
    expected: PowerAssumptions,
    gains: Sequence[float],
    target: PowerTarget,
    policy: Policy,
) -> PowerRow:
    too_few = _too_few(held_out, policy)
    return PowerRow(
        changed=expected.changed,
        icc=dict(expected.icc),
        least_gain=None if too_few else min_detectable_gain(held_out, expected, target),
        needed=tuple(_sample_for_gain(held_out, expected, gain, target, policy) for gain in gains),
    )


def _sample_for_gain(
    held_out: HeldOutSet,
    expected: PowerAssumptions,
    gain: float,
    target: PowerTarget,
    policy: Policy,
) -> SampleForGain:
    times = times_needed(held_out, expected, gain, target)
    if times is None:
        return SampleForGain(gain=gain, classes=None, queries=None)
    classes = max(math.ceil(held_out.n_units * times), policy.min_classes)
    each = held_out.n_queries / held_out.n_units
    queries = max(math.ceil(classes * each), policy.min_queries)
    return SampleForGain(gain=gain, classes=classes, queries=queries)


def _too_few(held_out: HeldOutSet, policy: Policy) -> str:
    if held_out.n_queries < policy.min_queries:
        return f"{held_out.n_queries} queries, and the policy asks for {policy.min_queries}"
    if held_out.n_units < policy.min_classes:
        return f"{held_out.n_units} classes or units, and the policy asks for {policy.min_classes}"
    return ""


def _sample(project: Project, policy: Policy, options: PowerOptions) -> _Sample:
    cluster = options.cluster or project.cluster
    earlier = (
        None
        if options.report is None
        else _report_sample(read_report(options.report, earlier=True).report)
    )
    if options.tables:
        options = replace(options, cluster=cluster)
        return _table_sample(options, policy, earlier, project.gate.qrels)
    if earlier is not None and project.source is None:
        return earlier
    data = load_data(project)
    group = query_group("power", data, query_rows(data, "test"), (), cluster)
    truth = ground_truth(data, group, judgments_for(project.gate.qrels, data, group.queries))
    held_out = HeldOutSet.from_codes(truth.classes, truth.unit, truth.has_match())
    return _with_earlier(held_out, earlier)


def _with_earlier(held_out: HeldOutSet, earlier: _Sample | None) -> _Sample:
    """The set, with what an earlier report says of the models."""
    return replace(earlier, held_out=held_out) if earlier else _Sample(held_out=held_out)


def _table_sample(
    options: PowerOptions, policy: Policy, earlier: _Sample | None, qrels: Path | None
) -> _Sample:
    paths = options.tables
    tables, similarity = load_tables(paths, options.similarity, labelled=qrels is None)
    if len(tables) == 2:
        check_same(tables[0], tables[1], paths[0], paths[1], options.cluster)
    queries, gallery = table_rows(tables[0], paths[0])
    judged = read_judged(tables[0], qrels)
    truth = table_truth(tables[0], queries, gallery, judged, VerifyOptions(cluster=options.cluster))
    query_rows, searched = rank_equivalent(tables, queries, gallery, similarity, galleries=1)
    tests = [retrieval(truth, rows, searched[0], (policy.hit_at,), 1) for rows in query_rows]
    old, k = tests[0], policy.hit_at
    sample = _with_earlier(HeldOutSet.from_codes(truth.classes, truth.unit, old.has_match), earlier)
    sample = replace(sample, old_hit_rate=old.hit_rate[k], changed=sample.changed or None)
    if len(tests) < 2 or not old.has_match.any():
        return sample
    change = (tests[1].hit(k).astype(np.float64) - old.hit(k))[old.has_match]
    icc = _iccs(change, truth, old.has_match)
    return replace(sample, changed=float(np.abs(change).mean()) or None, icc=icc)


def _iccs(change: np.ndarray, truth: GroundTruth, has_match: Bools) -> dict[str, float]:
    """Intraclass correlation by kind of unit; 0 if each unit has one query."""
    columns = truth.classes[:, None] if truth.classes.ndim == 1 else truth.classes
    iccs = {}
    for name, column in zip(truth.unit, columns[has_match].T, strict=True):
        units = np.unique(column, return_inverse=True)[1]
        n = int(units.max(initial=-1)) + 1
        iccs[name] = intraclass(change, units) if 1 < n < len(change) else 0.0
    return iccs


def _report_sample(report: Report) -> _Sample:
    """The deciding group of an earlier report, at hit@1 whatever ``hit_at`` is."""
    group = report.groups[0]
    iccs = {column.column: column.icc for column in group.dependence}
    size = group.n_queries / max(group.n_classes, 1)
    return _Sample(
        held_out=HeldOutSet(
            n_queries=group.n_queries,
            kinds=tuple(UnitKind(name=name, n=group.n_classes, size=size) for name in group.unit),
        ),
        old_hit_rate=group.hit_rate["old_old"]["1"],
        changed=group.negative_flips + group.positive_flips or None,
        icc={name: iccs.get(name, 0.0) for name in group.unit} | iccs,
    )
