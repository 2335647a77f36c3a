"""Measurements for the gate: every statistic of a group of queries, from the same replicates.

A group is a set of held-out queries. Old and new queries are the same items, so every statistic is
a sum over classes of paired differences, and one resampling of classes serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from compatctl.core.arrays import Bools, Codes, Floats
from compatctl.core.binomial import mcnemar
from compatctl.core.compatibility import Inequalities
from compatctl.core.dependence import Dependence, describe_dependence, worst_design_effect
from compatctl.core.estimate import Estimate
from compatctl.core.gate import Measurement
from compatctl.core.policy import Policy
from compatctl.core.resampling import (
    Ratio,
    estimate_diff,
    estimate_ratio,
    estimate_ratios,
    estimate_same,
    hit_change,
    query_ratio,
    ratio_of,
)
from compatctl.core.retrieval import Flips, Retrieval, flips
from compatctl.core.sampling_units import count_units
from compatctl.core.thresholds import AcceptCounts
from compatctl.core.training_overlap import TrainingOverlap
from compatctl.core.unjudged import UnjudgedBounds
from compatctl.errors import InputError

DECIDING_GROUP = "unseen"

Key = tuple[str, str]
"""A check's name, and its slice or ''; in ``only``, its name and its group."""

Statistic = tuple[Ratio, int, str]
"""A statistic, the number of queries or pairs in it, and a sentence."""

PARTIAL_CHECKS = frozenset({"ann_recall", "self_test_gain", "mixed_gain"})
"""Checks on part of the queries or gallery: that part must meet the minimum of queries."""

Draw = Callable[[], np.random.Generator]
"""Returns a new generator with the same seed, so all statistics share the replicates."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupEvidence:
    """The evidence of one group of Q held-out queries."""

    name: str
    """``unseen`` decides; other groups, such as ``seen``, are only reported."""
    classes: Codes
    """(Q,) what is resampled: the queries' classes, or single queries; (Q, K): K crossed kinds."""
    old_old: Retrieval
    """Old queries on the old gallery."""
    new_old: Retrieval
    """New queries on the old gallery: the cross-test."""
    first_stage: Retrieval | None = None
    """New queries on the old gallery before re-scoring; None: ``new_old`` is not re-scored."""
    half_warm: Retrieval | None = None
    """New queries, re-scored with half of the free vectors known beforehand."""
    warm: Retrieval | None = None
    """New queries, re-scored with all free vectors known beforehand."""
    new_new: Retrieval | None = None
    """New queries on a new gallery: the self-test."""
    inequalities: Inequalities | None = None
    old_new: Retrieval | None = None
    """Old queries on a new gallery: what old clients get once everything is re-embedded."""
    old_mixed: Retrieval | None = None
    """Old queries on a gallery half of which the new model embedded."""
    new_mixed: Retrieval | None = None
    """New queries on the same gallery."""
    accepts: tuple[AcceptCounts, AcceptCounts] | None = None
    """Old and new, each at its own threshold."""
    ann_recall: Floats | None = None
    """(Q,) share of the exact neighbours that the real index finds; NaN if not searched."""
    slices: Mapping[str, Bools] = field(default_factory=dict)
    """Slice -> (Q,) the queries in it."""
    subset_baseline: tuple[Retrieval, Retrieval] | None = None
    """Old and new queries on the part of the old gallery that the new model embedded too: the
    baseline of ``new_new`` and of the mixed gallery. None: the whole gallery."""
    answerable: Bools | None = None
    """(Q,) queries that should have a match; None: all."""
    unjudged: UnjudgedBounds | None = None
    """Bounds for rows of unknown relevance; None: there are none."""
    unknown_found: Mapping[int, Bools] = field(default_factory=dict)
    """k -> (Q,) new queries with a row of unknown relevance among the first k; empty: none."""
    training_overlap: TrainingOverlap | None = None
    """None: unknown."""
    gallery_phrase: str = "on the old gallery"
    """What ``old_old`` and ``new_old`` search, as it reads in a sentence."""
    unit: tuple[str, ...] = ("class",)
    """The name of each kind of unit: ``class``, ``query``, or a column of the data."""
    dependence: tuple[Dependence, ...] | None = None
    """Dependence of the gain on the class and on columns; None if not measured."""

    @property
    def query_weights(self) -> Bools | Floats:
        """(Q,) queries in the means, weighted to the gallery's mixture of touched rows."""
        has_match = self.old_old.has_match
        overlap = self.training_overlap
        return has_match if overlap is None else overlap.weights(has_match)

    def slice_name(self, part: str) -> str:
        """The group's name, with that of a slice unless ``part`` is empty."""
        return f"{self.name}, {part}" if part else self.name

    def measurement(
        self,
        name: str,
        estimate: Estimate | float,
        detail: str,
        *,
        part: str = "",
        n: int | None = None,
        n_queries: int | None = None,
        nothing: str = Measurement.nothing,
    ) -> Measurement:
        """A measurement of this group; ``n`` and ``n_queries`` default to queries with a match."""
        matched = self.old_old.n_with_match
        return Measurement(
            name=name,
            group=self.slice_name(part),
            estimate=estimate,
            n=matched if n is None else n,
            n_queries=matched if n_queries is None else n_queries,
            may_decide=self.name == DECIDING_GROUP,
            unit=self.unit,
            detail=detail,
            nothing=nothing,
        )

    @property
    def flips(self) -> Flips:
        """From ``old_old`` to ``new_old``."""
        return flips(self.old_old.hit1, self.new_old.hit1, self.old_old.has_match)

    @property
    def n_classes(self) -> int:
        """Classes among the queries with a match; of several kinds, the fewest units."""
        return count_units(self.classes, self.old_old.has_match)

    @property
    def mcnemar(self) -> float:
        """Exact two-sided p-value of McNemar's test of the first answers."""
        flips = self.flips
        if not flips.n:
            return 1.0
        return mcnemar(round(flips.negative * flips.n), round(flips.positive * flips.n))


@dataclass(frozen=True, kw_only=True, eq=False)
class ChainEvidence:
    """A version that owns rows of the gallery: its queries and the new queries on these rows."""

    name: str
    classes: Codes
    own: Retrieval
    """That version's queries on its own rows."""
    new: Retrieval
    """New queries on the same rows."""
    model: str = ""
    """The digest of the version."""
    rows: int = 0
    """How many rows it owns."""
    unit: tuple[str, ...] = ("class",)


def measure(
    policy: Policy,
    group: GroupEvidence,
    draw: Draw,
    replicates: int,
    only: Container[Key] | None = None,
) -> list[Measurement]:
    """Every measurement of a group and its slices; ``only`` keeps these names and groups.

    Raises:
        InputError: a hit rate that the policy names is missing, or the tests of the group are of
            different queries.
    """
    _check_group(policy, group)
    statistics = {
        key: statistic
        for key, statistic in _ratios(policy, group).items()
        if only is None or (key[0], group.slice_name(key[1])) in only
    }
    estimates = estimate_ratios([ratio for ratio, _, _ in statistics.values()], replicates, draw())
    measurements = [
        group.measurement(
            name,
            estimate,
            detail,
            part=part,
            n=n,
            n_queries=n if part or name in PARTIAL_CHECKS else None,
        )
        for ((name, part), (_, n, detail)), estimate in zip(
            statistics.items(), estimates, strict=True
        )
    ]
    if group.inequalities is not None:
        measurements += _cosine_measurements(group.inequalities, group, draw, replicates, only)
    if group.dependence is not None and only is None:
        effect = worst_design_effect(group.dependence, policy.min_classes)
        detail = describe_dependence(group.dependence, policy.min_classes)
        measurements.append(group.measurement("design_effect", effect, detail))
    return measurements


def measure_chain(version: ChainEvidence, k: int, draw: Draw, replicates: int) -> Measurement:
    """The gain of new queries over a version's own queries, on the rows that version embedded.

    With fewer matched queries than the policy's ``slice_min_queries`` it does not decide, so that a
    version with a handful of rows does not leave every verdict open.

    Raises:
        InputError: hit@k is missing, or the two tests are of different queries.
    """
    _check_retrieval(f"version {version.name}", version.own, version.own, (k,))
    _check_retrieval(f"version {version.name}", version.new, version.own, (k,))
    gain = _gain(version.classes, version.own, version.new, k)
    old, new = version.own.hit_rate[k], version.new.hit_rate[k]
    return Measurement(
        name="chain_gain",
        group=version.name,
        estimate=estimate_ratio(gain, replicates, draw()),
        n=version.own.n_with_match,
        n_queries=version.own.n_with_match,
        may_decide=True,
        unit=version.unit,
        detail=f"On the rows which that version embedded, hit@{k} is {new:.4f} with new queries "
        f"and {old:.4f} with its own",
    )


def measure_mixed(
    classes: Codes,
    before: Retrieval,
    after: Retrieval,
    *,
    k: int,
    draw: Draw,
    replicates: int,
    unit: tuple[str, ...] = ("class",),
) -> Measurement:
    """The gain in hit@k of one model's queries (Q,) if rows of the gallery are re-embedded.

    ``classes`` and ``unit`` are as in ``GroupEvidence``.

    Raises:
        InputError: hit@k is missing, or the two tests are of different queries.
    """
    for retrieval in (before, after):
        _check_retrieval("the mixed gallery", retrieval, before, (k,))
    return Measurement(
        name="mixed_gain",
        group=DECIDING_GROUP,
        estimate=estimate_ratio(_gain(classes, before, after, k), replicates, draw()),
        n=before.n_with_match,
        n_queries=before.n_with_match,
        may_decide=True,
        unit=unit,
        detail=f"Hit@{k} of the query model is {after.hit_rate[k]:.4f} on the resulting gallery "
        f"and {before.hit_rate[k]:.4f} on the present one",
    )


def _ratios(policy: Policy, group: GroupEvidence) -> dict[Key, Statistic]:
    old, new, k = group.old_old, group.new_old, policy.hit_at
    n, weights, phrase = old.n_with_match, group.query_weights, group.gallery_phrase
    statistics: dict[Key, Statistic] = {}
    for name, at_k in (("hit_gain", k), ("wide_hit_gain", policy.wide_hit_at)):
        sentence = _compare(f"Hit@{at_k} {phrase}", new.hit_rate[at_k], old.hit_rate[at_k])
        statistics[name, ""] = (_gain(group.classes, old, new, at_k, weights), n, sentence)
    for name, (measure_name, after, before) in ranking_measures(policy, new, old).items():
        means = new.mean(after), old.mean(before)
        level = float(np.nan_to_num(means[1]))
        change = np.nan_to_num(after - before)
        statistics[name, ""] = (
            query_ratio(group.classes, change, weights, (-1.0, 1.0), -1, (-level, 1 - level)),
            n,
            _compare(f"{measure_name} {phrase}", *means),
        )
    flipped = (old.hit1 & ~new.hit1).astype(np.float64)
    most = _share(old.hit1, old.has_match)
    statistics["negative_flips", ""] = (
        query_ratio(group.classes, flipped, weights, (0.0, 1.0), 1, (0.0, most)),
        n,
        f"A share of {group.flips.negative:.4f} of the queries turned from right to wrong and "
        f"{group.flips.positive:.4f} from wrong to right (McNemar's exact p {group.mcnemar:.3g})",
    )
    statistics |= _other_galleries(group, k) | _rescored(group, k)
    for name, mask in group.slices.items():
        matched = mask & old.has_match
        statistics["slice_gain", name] = (
            _gain(group.classes, old, new, k, matched),
            int(matched.sum()),
            f"Hit@{k} of the queries with {name} moves from "
            f"{_share(old.hit(k), matched):.4f} to {_share(new.hit(k), matched):.4f}",
        )
    return statistics


def ranking_measures(
    policy: Policy, new: Retrieval, old: Retrieval
) -> dict[str, tuple[str, Floats, Floats]]:
    """Check -> the measure's name, and its values (Q,) of new and of old queries, in [0, 1]; NaN
    without a match."""
    ndcg, mrr, recall = policy.ndcg_at, policy.mrr_at, policy.recall_at
    return {
        "ndcg_gain": (f"nDCG@{ndcg}", new.ndcg[ndcg], old.ndcg[ndcg]),
        "mrr_gain": (f"MRR@{mrr}", new.reciprocal_rank(mrr), old.reciprocal_rank(mrr)),
        "recall_gain": (f"Recall@{recall}", new.recall[recall], old.recall[recall]),
        "map_gain": (f"mAP@{old.map_k}", new.average_precision, old.average_precision),
    }


def _rescored(group: GroupEvidence, k: int) -> dict[Key, Statistic]:
    """The gains of re-scored queries once free vectors are known; empty without re-scoring."""
    statistics: dict[Key, Statistic] = {}
    for name, share in (("half_warm", "half of"), ("warm", "all")):
        test = getattr(group, name)
        if test is not None:
            hit_rates = test.hit_rate[k], group.old_old.hit_rate[k]
            phrase = f"Hit@{k} {group.gallery_phrase}, {share} free vectors known,"
            gain = _gain(group.classes, group.old_old, test, k)
            statistics[f"{name}_gain", ""] = (
                gain,
                group.old_old.n_with_match,
                _compare(phrase, *hit_rates),
            )
    return statistics


def _other_galleries(group: GroupEvidence, k: int) -> dict[Key, Statistic]:
    """Self-test, mixed gallery, real index and thresholds, if they were measured."""
    old, new = group.subset_baseline or (group.old_old, group.first_stage or group.new_old)
    n = old.n_with_match
    statistics: dict[Key, Statistic] = {}
    if group.new_new is not None:
        statistics["self_test_gain", ""] = (
            _gain(group.classes, old, group.new_new, k),
            n,
            _compare(
                f"Hit@{k} of each model on its own gallery",
                group.new_new.hit_rate[k],
                old.hit_rate[k],
            ),
        )
    if group.new_mixed is not None:
        statistics["mixed_gain", ""] = (
            _gain(group.classes, new, group.new_mixed, k),
            n,
            f"With half of the gallery embedded by the new model, hit@{k} of new queries is "
            f"{group.new_mixed.hit_rate[k]:.4f}, after {new.hit_rate[k]:.4f}",
        )
    if group.ann_recall is not None:
        searched = ~np.isnan(group.ann_recall)
        statistics["ann_recall", ""] = (
            query_ratio(group.classes, np.nan_to_num(group.ann_recall), searched, (0.0, 1.0), 0),
            int(searched.sum()),
            f"The real index finds a share of {_share(group.ann_recall, searched):.4f} of the "
            "nearest rows of new queries at the ef they need",
        )
    if group.accepts is not None:
        statistics |= _threshold_statistics(group.classes, group.n_classes, *group.accepts)
    return statistics


def _gain(
    classes: Codes, old: Retrieval, new: Retrieval, k: int, weights: Bools | Floats | None = None
) -> Ratio:
    """The difference of two hit rates at k, with ``weights``, or over queries with a match."""
    return hit_change(
        classes, old.hit(k), new.hit(k), old.has_match if weights is None else weights
    )


def _share(values: Bools | Floats, mask: Bools) -> float:
    return float(np.mean(values[mask])) if mask.any() else float("nan")


def _compare(quantity: str, new: float, old: float) -> str:
    return (
        f"{quantity} is {new:.4f} with new queries and {old:.4f} with old ones ({new - old:+.4f})"
    )


def _check_group(policy: Policy, group: GroupEvidence) -> None:
    ks = (policy.hit_at, policy.wide_hit_at)
    whole = ("old_old", "new_old", "half_warm", "warm")
    for name in (*whole, "new_new", "old_new", "old_mixed", "new_mixed"):
        retrieval, baseline = getattr(group, name), group.old_old
        if name not in whole and group.subset_baseline is not None:
            baseline = group.subset_baseline[0]
        if retrieval is not None:
            _check_retrieval(f"group {group.name}", retrieval, baseline, ks)
    for retrieval in (group.old_old, group.new_old):
        measures = {"nDCG": (policy.ndcg_at, retrieval.ndcg)}
        measures["recall"] = policy.recall_at, retrieval.recall
        for measure_name, (k, computed) in measures.items():
            if k not in computed:
                raise InputError(
                    f"group {group.name}: the policy needs {measure_name}@{k}, but it was computed "
                    f"at {', '.join(map(str, computed))}"
                )


def _check_retrieval(
    name: str, retrieval: Retrieval, baseline: Retrieval, ks: tuple[int, ...]
) -> None:
    for k in ks:
        if k not in retrieval.hit_rate:
            computed = ", ".join(map(str, retrieval.hit_rate))
            raise InputError(
                f"{name}: the policy needs hit@{k}, but the hit rate was computed at {computed}"
            )
    if not np.array_equal(retrieval.has_match, baseline.has_match):
        raise InputError(f"{name}: the retrievals are of different queries")


def _threshold_statistics(
    classes: Codes, n_classes: int, before: AcceptCounts, after: AcceptCounts
) -> dict[Key, Statistic]:
    """Statistics of the deployed thresholds.

    ``far_ratio`` is FAR(after) / FAR(before), ``frr_increase`` is FRR(after) - FRR(before), over
    the same pairs. ``classes`` is (Q,) or (Q, K); ``n_classes`` of them have a match.
    """
    detail = (
        "The false accept rate at the thresholds used moves from "
        f"{before.far:.3g} to {after.far:.3g}, the false reject rate from {before.frr:.4f} to "
        f"{after.frr:.4f}"
    )
    new, old = (counts.diff_accepted.astype(np.float64) for counts in (after, before))
    far = ratio_of(classes, new, old, (0.0, float("inf")), n_classes=n_classes)
    rejected = (before.same_accepted - after.same_accepted).astype(np.float64)
    same_pairs = before.same_pairs.astype(np.float64)
    class_bounds = (-before.frr, 1.0 - before.frr) if same_pairs.sum() else None
    frr = ratio_of(classes, rejected, same_pairs, (-1.0, 1.0), harm=1, class_bounds=class_bounds)
    undefined = "" if before.far > 0 else "; a ratio to no false accept is not defined"
    return {
        ("far_ratio", ""): (far, int(before.diff_pairs.sum()), detail + undefined),
        ("frr_increase", ""): (frr, int(before.same_pairs.sum()), detail),
    }


def _cosine_measurements(
    inequalities: Inequalities,
    group: GroupEvidence,
    draw: Draw,
    replicates: int,
    only: Container[Key] | None,
) -> Iterator[Measurement]:
    """The change of the mean cosine to items of the same class (1a) and of other classes (1b)."""
    if only is None or ("same_class", group.name) in only:
        yield group.measurement(
            "same_class",
            estimate_same(inequalities.sums, replicates, draw(), group.classes),
            "The mean cosine to old gallery items of the query's class moves by "
            f"{inequalities.same_gain:+.5f} from old to new queries, and should not fall (1a)",
            n=inequalities.new_old.n_same,
        )
    if only is None or ("different_class", group.name) in only:
        yield group.measurement(
            "different_class",
            estimate_diff(inequalities.sums.negated(), replicates, draw(), group.classes),
            "The mean cosine to old gallery items of other classes moves by "
            f"{-inequalities.diff_gain:+.5f} from old to new queries, "
            "and may rise by a margin (1b)",
            n=inequalities.new_old.n_diff,
        )
