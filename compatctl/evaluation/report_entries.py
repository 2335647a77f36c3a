"""The entry of a group in the report: its numbers, without the arrays behind them."""

from __future__ import annotations

import numpy as np

from compatctl.core.arrays import Bools, Floats, ratio
from compatctl.core.measurements import GroupEvidence
from compatctl.core.policy import Policy
from compatctl.core.retrieval import Retrieval, cmc
from compatctl.evaluation.comparison import CMC_MAX_K
from compatctl.evaluation.group_runs import GroupResult
from compatctl.report import Group, TrainingOverlapEntry


def group_of(trial: GroupResult, policy: Policy) -> Group:
    """The numbers of one group, without the arrays behind them."""
    found, pairs = trial.evidence, _pairs(trial.evidence)
    both, flips = found.inequalities, found.flips
    means = {"old_old": both.old_old, "new_old": both.new_old} if both else {}
    nan = float("nan")
    return Group(
        name=found.name,
        n_queries=found.old_old.n_with_match,
        n_classes=found.n_classes,
        unit=found.unit,
        n_without_match=found.old_old.n_without_match,
        recall={
            pair: {str(k): value for k, value in test.recall.items()}
            for pair, test in pairs.items()
        },
        cmc={pair: tuple(map(float, cmc(test, CMC_MAX_K))) for pair, test in pairs.items()},
        map_at_k={pair: test.map_at_k for pair, test in pairs.items()},
        map_k=found.old_old.map_k,
        negative_flips=flips.negative,
        positive_flips=flips.positive,
        mcnemar_p=found.mcnemar,
        cos_same={pair: mean.cos_same for pair, mean in means.items()},
        cos_diff={pair: mean.cos_diff for pair, mean in means.items()},
        share_same=both.share_same if both else nan,
        share_diff=both.share_diff if both else nan,
        drift_mean=both.drift_mean if both else None,
        rank_bias=trial.rank_bias,
        error_rates=trial.rates,
        operating_points=trial.points,
        dependence=found.dependence or (),
        slices={
            name: int((mask & found.old_old.has_match).sum()) for name, mask in found.slices.items()
        },
        n_same_image=int((~trial.kept).sum()),
        unjudged=found.unjudged.shares(found.old_old.has_match) if found.unjudged else {},
        training_overlap=_touched(found, policy),
    )


def _pairs(found: GroupEvidence) -> dict[str, Retrieval]:
    """Query model and gallery -> their retrieval, of those that were tried."""
    pairs: dict[str, Retrieval] = {"old_old": found.old_old, "new_old": found.new_old}
    for name in ("new_new", "old_new", "old_mixed", "new_mixed"):
        test = getattr(found, name)
        if test is not None:
            pairs[name] = test
    if found.at_hand is not None:
        pairs["old_old_at_hand"], pairs["new_old_at_hand"] = found.at_hand
    return pairs


def _touched(found: GroupEvidence, policy: Policy) -> TrainingOverlapEntry | None:
    if found.training_overlap is None:
        return None
    old, new, touched = found.old_old, found.new_old, found.training_overlap
    has_match = old.has_match
    alone = has_match & touched.untouched

    def gain(k: int) -> Floats:
        return new.hit(k).astype(np.float64) - old.hit(k)

    changes = {
        "recall_gain": gain(policy.recall_at),
        "wide_recall_gain": gain(policy.wide_recall_at),
        "map_gain": new.average_precision - old.average_precision,
        "negative_flips": (old.hit1 & ~new.hit1).astype(np.float64),
    }
    return TrainingOverlapEntry(
        of_gallery=touched.of_gallery,
        of_queries=float(touched.of_query[has_match].mean()) if has_match.any() else 0.0,
        untouched_queries=int(alone.sum()),
        untouched_recall=(_recall(old, alone, policy), _recall(new, alone, policy)),
        parts={name: touched.parts(change, has_match) for name, change in changes.items()},
    )


def _recall(test: Retrieval, queries: Bools, policy: Policy) -> float:
    return ratio(float((test.hit(policy.recall_at) & queries).sum()), int(queries.sum()))
