"""From evidence to the report: measure, judge, say it in one sentence, write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compatctl.commands.acceptance import shift_warnings, threshold_step
from compatctl.commands.clusters import dependence_warnings, enough
from compatctl.commands.evaluation import Judged
from compatctl.commands.settling import Sampling
from compatctl.commands.trial import CURVE, Trial
from compatctl.core.gate import Verdict
from compatctl.core.policy import Policy
from compatctl.core.retrieval import Retrieval, cmc
from compatctl.files import write_atomic
from compatctl.report import (
    NEXT_STEP,
    Group,
    Report,
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


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Files that the report is written to besides report.json; None: not wanted."""

    junit: Path | None = None
    markdown: Path | None = None
    metrics: Path | None = None

    @property
    def given(self) -> tuple[Path, ...]:
        """Those that are wanted."""
        return tuple(one for one in (self.junit, self.markdown, self.metrics) if one is not None)


def verdict_fields(
    policy: Policy,
    verdict: Verdict,
    how: Sampling,
    trials: Sequence[Trial],
    next_steps: Mapping[str, str],
) -> dict[str, Any]:
    """The entries of a report that follow from the trials and the verdict."""
    return {
        "policy": policy,
        "policy_sha256": policy_sha256(policy),
        "seed": how.seed,
        "replicates": how.replicates,
        "groups": tuple(group_of(one) for one in trials),
        "verdict": verdict,
        "warnings": shift_warnings(
            trials[0].evidence.inequalities, judged=bool(trials[0].rates or trials[0].calibration)
        )
        + dependence_warnings(policy, trials[0].evidence.dependence or ()),
        "calibration": trials[0].calibration,
        "summary": summary(verdict),
        "next_step": _own_step(policy, verdict, trials) or next_steps[verdict.outcome],
    }


def group_of(trial: Trial) -> Group:
    """The numbers of one group, without the arrays behind them."""
    found = trial.evidence
    pairs: dict[str, Retrieval] = {"old_old": found.old_old, "new_old": found.new_old}
    for name in ("new_new", "old_new", "old_mixed", "new_mixed"):
        test = getattr(found, name)
        if test is not None:
            pairs[name] = test
    both, flips = found.inequalities, found.flips
    means = {"old_old": both.old_old, "new_old": both.new_old} if both else {}
    nan = float("nan")
    return Group(
        name=found.name,
        n_queries=found.old_old.n_counted,
        n_classes=found.n_classes,
        unit=found.unit,
        n_without_match=found.old_old.n_without_match,
        recall={
            pair: {str(k): value for k, value in test.recall.items()}
            for pair, test in pairs.items()
        },
        cmc={pair: tuple(map(float, cmc(test, CURVE))) for pair, test in pairs.items()},
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
            name: int((mask & found.old_old.counted).sum()) for name, mask in found.slices.items()
        },
    )


def write(report: Report, path: Path, outputs: Outputs) -> None:
    """report.json first: the other files are views of it."""
    write_atomic(path, report.to_bytes())
    for target, text in (
        (outputs.junit, junit),
        (outputs.markdown, markdown),
        (outputs.metrics, openmetrics),
    ):
        if target is not None:
            write_atomic(target, text(report))


def lost_judgments(judged: Judged, trial: Trial) -> tuple[str, ...]:
    """A sentence where judgments name no held-out query or no gallery item: they had no effect."""
    lost = len(judged) - trial.n_judged
    return (f"{lost} of {len(judged)} judgments: not of held-out queries and gallery",) * (lost > 0)


def _own_step(policy: Policy, verdict: Verdict, trials: Sequence[Trial]) -> str:
    """What to do where one kind of check alone stands in the way; empty elsewhere."""
    stands = {check.name for check in verdict.checks if check.decides and check.outcome != "pass"}
    if stands == {"design_effect"}:
        found = trials[0].evidence.dependence or ()
        flags = [f"--cluster {one.column}" for one in found if enough(policy, one)]
        return f"verify again with {' '.join(flags)}"
    return threshold_step(policy, stands, trials[0].rates if trials else None)
