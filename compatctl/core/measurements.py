"""From query outcomes to measurements: every statistic of a group from the same replicates.

A group is a set of held-out queries. Old and new queries are the same items, so every statistic is
a sum over classes of paired differences, and one resampling of classes serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compatctl.core.arrays import Bools, Codes, Floats
from compatctl.core.binomial import mcnemar
from compatctl.core.compatibility import Inequalities
from compatctl.core.dependence import Dependence, describe_dependence, worst_design_effect
from compatctl.core.gate import Measurement
from compatctl.core.policy import Policy
from compatctl.core.resampling import (
    Ratio,
    estimate_diff,
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
"""A check's name and its slice, or ''."""

PARTIAL_CHECKS = {"ann_recall", "self_test_gain", "mixed_gain"}
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
        return has_match if overlap is None else overlap.weighted(has_match)

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
    unit: tuple[str, ...] = ("class",)


def measure(
    policy: Policy,
    group: GroupEvidence,
    draw: Draw,
    replicates: int,
    only: Container[tuple[str, str]] | None = None,
) -> list[Measurement]:
    """Every measurement of a group and its slices; ``only`` keeps these names and groups.

    Raises:
        InputError: a recall that the policy names is missing, or the tests of the group are of
            different queries.
    """
    _check_group(policy, group)
    named = {
        key: made
        for key, made in _ratios(policy, group).items()
        if only is None or (key[0], _group(group, key[1])) in only
    }
    estimates = estimate_ratios([ratio for ratio, _, _ in named.values()], replicates, draw())
    found = []
    for ((name, part), (_, n, detail)), estimate in zip(named.items(), estimates, strict=True):
        found.append(
            Measurement(
                name=name,
                group=_group(group, part),
                estimate=estimate,
                n=n,
                n_queries=n if part or name in PARTIAL_CHECKS else group.old_old.n_with_match,
                may_decide=group.name == DECIDING_GROUP,
                unit=group.unit,
                detail=detail,
            )
        )
    asked = GroupSample(
        group=group.name,
        classes=group.classes,
        unit=group.unit,
        n_queries=group.old_old.n_with_match,
        may_decide=group.name == DECIDING_GROUP,
    )
    if group.inequalities is not None:
        found += _cosine_measurements(group.inequalities, asked, draw, replicates, only)
    if group.dependence is not None and only is None:
        found.append(_design_effect(group.dependence, asked, policy.min_classes))
    return found


def _group(group: GroupEvidence, part: str) -> str:
    return f"{group.name}, {part}" if part else group.name


def measure_chain(link: ChainEvidence, k: int, draw: Draw, replicates: int) -> Measurement:
    """The gain of new queries over a version's own queries, on the rows that version embedded.

    With fewer matched queries than the policy's ``slice_min_queries`` it does not decide, so that a
    version with a handful of rows does not leave every verdict open.

    Raises:
        InputError: recall@k is missing, or the two tests are of different queries.
    """
    _check_test(f"version {link.name}", link.own, link.own, (k,))
    _check_test(f"version {link.name}", link.new, link.own, (k,))
    gain = _gain(link.classes, link.own, link.new, k)
    old, new = link.own.recall[k], link.new.recall[k]
    return Measurement(
        name="chain_gain",
        group=link.name,
        estimate=estimate_ratios([gain], replicates, draw())[0],
        n=link.own.n_with_match,
        n_queries=link.own.n_with_match,
        may_decide=True,
        unit=link.unit,
        detail=f"On the rows which that version embedded, recall@{k} is {new:.4f} with new queries "
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
    """The gain in recall@k of one model's queries (Q,) if rows of the gallery are re-embedded.

    ``classes`` and ``unit`` are as in ``GroupEvidence``.

    Raises:
        InputError: recall@k is missing, or the two tests are of different queries.
    """
    for test in (before, after):
        _check_test("the mixed gallery", test, before, (k,))
    return Measurement(
        name="mixed_gain",
        group=DECIDING_GROUP,
        estimate=estimate_ratios([_gain(classes, before, after, k)], replicates, draw())[0],
        n=before.n_with_match,
        n_queries=before.n_with_match,
        may_decide=True,
        unit=unit,
        detail=f"Recall@{k} of the query model is {after.recall[k]:.4f} on the gallery that would "
        f"result and {before.recall[k]:.4f} on the one that is there",
    )


def _ratios(policy: Policy, group: GroupEvidence) -> dict[Key, tuple[Ratio, int, str]]:
    """(Check, slice) -> statistic, n and a sentence."""
    old, new, k = group.old_old, group.new_old, policy.recall_at
    n = old.n_with_match
    found: dict[Key, tuple[Ratio, int, str]] = {}
    for name, at in (("recall_gain", k), ("wide_recall_gain", policy.wide_recall_at)):
        sentence = _two(f"Recall@{at} {group.gallery_phrase}", new.recall[at], old.recall[at])
        found[name, ""] = (_gain(group.classes, old, new, at, group.query_weights), n, sentence)
    change = np.nan_to_num(new.average_precision - old.average_precision)
    found_at = float(np.nan_to_num(old.map_at_k))
    found["map_gain", ""] = (
        query_ratio(
            group.classes, change, group.query_weights, (-1.0, 1.0), -1, (-found_at, 1 - found_at)
        ),
        n,
        _two(f"mAP@{old.map_k} {group.gallery_phrase}", new.map_at_k, old.map_at_k),
    )
    lost = (old.hit1 & ~new.hit1).astype(np.float64)
    found["negative_flips", ""] = (
        query_ratio(
            group.classes,
            lost,
            group.query_weights,
            (0.0, 1.0),
            1,
            (0.0, _share(old.hit1, old.has_match)),
        ),
        n,
        f"A share of {group.flips.negative:.4f} of the queries turned from right to wrong and "
        f"{group.flips.positive:.4f} from wrong to right (McNemar's exact p {group.mcnemar:.3g})",
    )
    found |= _other_galleries(group, k)
    for name, mask in group.slices.items():
        found["slice_gain", name] = (
            _gain(group.classes, old, new, k, mask & old.has_match),
            int((mask & old.has_match).sum()),
            f"Recall@{k} of the queries with {name} moves from "
            f"{_share(old.hit(k), old.has_match & mask):.4f} to "
            f"{_share(new.hit(k), old.has_match & mask):.4f}",
        )
    return found


def _other_galleries(group: GroupEvidence, k: int) -> dict[Key, tuple[Ratio, int, str]]:
    """Self-test, mixed gallery, real index and thresholds, if they were measured."""
    old, new = group.subset_baseline or (group.old_old, group.new_old)
    n = old.n_with_match
    found: dict[Key, tuple[Ratio, int, str]] = {}
    if group.new_new is not None:
        found["self_test_gain", ""] = (
            _gain(group.classes, old, group.new_new, k),
            n,
            _two(f"Recall@{k} of each model on its own gallery", group.new_new.recall[k],
                 old.recall[k]),
        )  # fmt: skip
    if group.new_mixed is not None:
        found["mixed_gain", ""] = (
            _gain(group.classes, new, group.new_mixed, k),
            n,
            f"With half of the gallery embedded by the new model, recall@{k} of new queries is "
            f"{group.new_mixed.recall[k]:.4f}, after {new.recall[k]:.4f}",
        )
    if group.ann_recall is not None:
        asked = ~np.isnan(group.ann_recall)
        found["ann_recall", ""] = (
            query_ratio(group.classes, np.nan_to_num(group.ann_recall), asked, (0.0, 1.0), 0),
            int(asked.sum()),
            f"The real index finds a share of {_share(group.ann_recall, asked):.4f} of the nearest "
            "rows of new queries at the ef they need",
        )
    if group.accepts is not None:
        found |= _threshold_statistics(group.classes, group.n_classes, *group.accepts)
    return found


def _gain(
    classes: Codes, old: Retrieval, new: Retrieval, k: int, kept: Bools | Floats | None = None
) -> Ratio:
    """The difference of two hit rates at k over the queries with a match, or those of ``kept``."""
    return hit_change(classes, old.hit(k), new.hit(k), old.has_match if kept is None else kept)


def _share(values: Bools | Floats, where: Bools) -> float:
    return float(np.mean(values[where])) if where.any() else float("nan")


def _two(what: str, new: float, old: float) -> str:
    return f"{what} is {new:.4f} with new queries and {old:.4f} with old ones ({new - old:+.4f})"


def _check_group(policy: Policy, group: GroupEvidence) -> None:
    ks = (policy.recall_at, policy.wide_recall_at)
    for name in ("old_old", "new_old", "new_new", "old_new", "old_mixed", "new_mixed"):
        test, first = getattr(group, name), group.old_old
        if name not in {"old_old", "new_old"} and group.subset_baseline is not None:
            first = group.subset_baseline[0]
        if test is not None:
            _check_test(f"group {group.name}", test, first, ks)


def _check_test(where: str, test: Retrieval, first: Retrieval, ks: tuple[int, ...]) -> None:
    for k in ks:
        if k not in test.recall:
            computed = ", ".join(str(k) for k in test.recall)
            raise InputError(
                f"{where}: the policy asks for recall@{k}, "
                f"but the evidence holds recall at {computed}"
            )
    if not np.array_equal(test.has_match, first.has_match):
        raise InputError(f"{where}: not every test was made on the same queries")


def _threshold_statistics(
    classes: Codes, n_classes: int, before: AcceptCounts, after: AcceptCounts
) -> dict[tuple[str, str], tuple[Ratio, int, str]]:
    """(Check, "") -> statistic, number of pairs and a sentence.

    ``far_ratio`` is FAR(after) / FAR(before), ``frr_increase`` is FRR(after) - FRR(before), over
    the same pairs. ``classes`` is (Q,) or (Q, K); ``n_classes`` of them have a match.
    """
    detail = (
        "The false accept rate at the thresholds used moves from "
        f"{before.far:.3g} to {after.far:.3g}, the false reject rate from {before.frr:.4f} to "
        f"{after.frr:.4f}"
    )
    new, old = (side.diff_accepted.astype(np.float64) for side in (after, before))
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


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupSample:
    """A group of queries and what is resampled of it."""

    group: str
    classes: Codes
    """(Q,), or (Q, K) for K crossed kinds of units."""
    unit: tuple[str, ...]
    n_queries: int
    """Queries with a match."""
    may_decide: bool


def _cosine_measurements(
    inequalities: Inequalities,
    sample: GroupSample,
    draw: Callable[[], np.random.Generator],
    replicates: int,
    only: Container[tuple[str, str]] | None = None,
) -> list[Measurement]:
    """The change of the mean cosine to items of the same class (1a) and of other classes (1b).

    ``only`` keeps the measurements with these names and groups.
    """

    def measure(name: str, negated: bool, n: int, detail: str) -> Measurement:
        sums = inequalities.sums.negated() if negated else inequalities.sums
        estimate = estimate_diff if negated else estimate_same
        return Measurement(
            name=name,
            group=sample.group,
            estimate=estimate(sums, replicates, draw(), sample.classes),
            n=n,
            n_queries=sample.n_queries,
            may_decide=sample.may_decide,
            unit=sample.unit,
            detail=detail,
        )

    checks = {
        "same_class": (
            False,
            inequalities.new_old.n_same,
            "The mean cosine to old gallery items of the query's class moves by "
            f"{inequalities.same_gain:+.5f} from old to new queries, and should not fall (1a)",
        ),
        "different_class": (
            True,
            inequalities.new_old.n_diff,
            "The mean cosine to old gallery items of other classes moves by "
            f"{-inequalities.diff_gain:+.5f} from old to new queries, "
            "and may rise by a margin (1b)",
        ),
    }
    return [
        measure(name, *arguments)
        for name, arguments in checks.items()
        if only is None or (name, sample.group) in only
    ]


def _design_effect(
    dependences: Sequence[Dependence], sample: GroupSample, min_classes: int
) -> Measurement:
    """The design effect of the column on which queries depend most."""
    return Measurement(
        name="design_effect",
        group=sample.group,
        estimate=worst_design_effect(dependences, min_classes),
        n=sample.n_queries,
        n_queries=sample.n_queries,
        may_decide=sample.may_decide,
        detail=describe_dependence(dependences, min_classes),
    )
