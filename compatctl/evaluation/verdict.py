"""From evidence to the report: measure, judge, say it in one sentence, write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compatctl.core.arrays import Bools, Floats, ratio
from compatctl.core.gate import Verdict
from compatctl.core.measurements import GroupEvidence
from compatctl.core.policy import Policy
from compatctl.core.retrieval import Retrieval, cmc
from compatctl.evaluation.acceptance import shift_warnings, threshold_step
from compatctl.evaluation.adaptive_resampling import Sampling
from compatctl.evaluation.clusters import can_resample, dependence_warnings
from compatctl.evaluation.comparison import GroupResult
from compatctl.evaluation.exact_retrieval import CMC_MAX_K
from compatctl.evaluation.ground_truth import RelevancePairs
from compatctl.files import write_atomic
from compatctl.report import (
    NEXT_STEP,
    Group,
    Report,
    TrainingOverlapEntry,
    junit,
    markdown,
    openmetrics,
    policy_sha256,
    summary,
)

NEXT_STEPS = {
    "pass": NEXT_STEP,
    "fail": "keep the old model; other routes: gallery anchors in the recipe, compatctl fuse",
    "inconclusive": "hold out more classes and images, then verify again",
}

WITHOUT_STORE = {
    **NEXT_STEPS,
    "pass": "begin the store (compatctl init, or compatctl import) and verify against it: without "
    "one nothing can be deployed",
}

NO_STORE = ("there is no store: the gallery of the data was searched, and not the one that serves",)

EVIDENCE_STEPS = {
    "training_record": "verify a model that carries its training record; for one from elsewhere "
    "write require_training_record: false into the policy",
    "near_copies": "hold out images that are no copies of trained ones, then verify again",
    "proven_store": "verify with images of stored items in the data, or import again with --data",
    "stored_share": "verify with data whose gallery items are the store's",
    "matched_share": "hold out queries whose class has items in the gallery, by the same label to "
    "the letter, then verify again",
    "old_recall": "see whether labels, preprocessing and index belong together: the model that "
    "serves finds next to nothing",
    "unjudged_gain": "label more of the gallery, or judge more of the first answers",
    "untouched_gain": "hold out more queries of items that no training touched, then verify again",
}
"""What to do where checks of the evidence leave the verdict open."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Files that are written besides report.json; None: not wanted. ``queries`` has a line for each
    query, the others are forms of the report."""

    junit: Path | None = None
    markdown: Path | None = None
    metrics: Path | None = None
    queries: Path | None = None

    @property
    def given(self) -> tuple[Path, ...]:
        """Those that are wanted."""
        every = (self.junit, self.markdown, self.metrics, self.queries)
        return tuple(one for one in every if one is not None)


def verdict_fields(
    policy: Policy,
    verdict: Verdict,
    how: Sampling,
    trials: Sequence[GroupResult],
    next_steps: Mapping[str, str],
) -> dict[str, Any]:
    """The entries of a report that follow from the trials and the verdict."""
    return {
        "policy": policy,
        "policy_sha256": policy_sha256(policy),
        "seed": how.seed,
        "replicates": how.replicates,
        "groups": tuple(group_entry(one, policy) for one in trials),
        "verdict": verdict,
        "warnings": shift_warnings(
            trials[0].evidence.inequalities, judged=bool(trials[0].rates or trials[0].calibration)
        )
        + dependence_warnings(policy, trials[0].evidence.dependence or ()),
        "calibration": trials[0].calibration,
        "summary": summary(verdict),
        "next_step": _own_step(policy, verdict, trials) or next_steps[verdict.outcome],
    }


def write_report(report: Report, path: Path, outputs: Outputs) -> None:
    """report.json first: the other files are views of it."""
    write_atomic(path, report.to_bytes())
    for target, text in (
        (outputs.junit, junit),
        (outputs.markdown, markdown),
        (outputs.metrics, openmetrics),
    ):
        if target is not None:
            write_atomic(target, text(report))


def lost_judgments(judged: RelevancePairs, trial: GroupResult) -> tuple[str, ...]:
    """A sentence where judgments name no held-out query or no gallery item: they had no effect."""
    lost = len(judged) - trial.n_judged
    return (f"{lost} of {len(judged)} judgments: not of held-out queries and gallery",) * (lost > 0)


def _evidence_step(stands: set[str], n_queries: int) -> str:
    """What the evidence lacks, of the checks that stand in the way; more of it helps only where its
    queries have something to find."""
    if not n_queries:
        return "hold out queries of classes that were not trained on, there are none; verify again"
    steps = [step for name, step in EVIDENCE_STEPS.items() if name in stands]
    if not stands <= set(EVIDENCE_STEPS) and "matched_share" not in stands:
        steps.append(NEXT_STEPS["inconclusive"])
    return "; ".join(steps)


def _own_step(policy: Policy, verdict: Verdict, trials: Sequence[GroupResult]) -> str:
    """What to do where checks of one kind alone stand in the way; empty elsewhere."""
    stands = {check.name for check in verdict.checks if check.decides and check.outcome != "pass"}
    if stands == {"design_effect"}:
        found = trials[0].evidence.dependence or ()
        flags = [f"--cluster {one.column}" for one in found if can_resample(policy, one)]
        return f"verify again with {' '.join(flags)}"
    if verdict.outcome == "inconclusive" and stands & set(EVIDENCE_STEPS):
        return _evidence_step(stands, trials[0].evidence.old_old.n_queries)
    return threshold_step(policy, stands, trials[0].rates if trials else None)


def group_entry(trial: GroupResult, policy: Policy) -> Group:
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
    if found.subset_baseline is not None:
        pairs["old_old_subset"], pairs["new_old_subset"] = found.subset_baseline
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
