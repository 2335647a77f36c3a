"""From evidence and verdict to the report: its entries, the next step, and the files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from compatctl.core.arrays import Bools, Floats, ratio
from compatctl.core.gate import Verdict
from compatctl.core.measurements import GroupEvidence, ranking_measures
from compatctl.core.policy import Policy
from compatctl.core.retrieval import Retrieval, cmc
from compatctl.data import Dataset, Judgments
from compatctl.evaluation.acceptance import shift_warnings, threshold_step
from compatctl.evaluation.adaptive_resampling import Sampling
from compatctl.evaluation.clusters import can_resample, dependence_warnings
from compatctl.evaluation.comparison import GroupResult
from compatctl.evaluation.exact_retrieval import CMC_MAX_K
from compatctl.evaluation.query_report import check_form
from compatctl.files import append, write_atomic
from compatctl.printable import listed
from compatctl.recipe import Project
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
    "fail": "keep the old model, or fuse both: compatctl fuse",
    "inconclusive": "hold out more classes and items, then verify again",
}

NOT_MAPPED = "map the new model into the gallery's space (compatctl bridge), or keep the old one"
"""What to do with a model that was made without the gallery, as one without a record was."""

FUSED_LOSES = "keep the old model, or compare the other routes: compatctl plan"
"""What to do with a model that is fused with the old one already."""

OLD_MODEL_GONE = (
    "rank the first answers again by the new model's own vectors (compatctl verify --rescore 10), "
    "or embed the gallery with it: compatctl init"
)
"""What is left where the old model can neither be kept nor fused."""

WITHOUT_STORE = {
    **NEXT_STEPS,
    "pass": "create the store (compatctl init or compatctl import) and verify against it: without "
    "one nothing can be deployed",
}

NO_STORE = ("there is no store: the gallery of the data was searched, not a deployed one",)

EVIDENCE_STEPS = {
    "training_record": "verify a model that carries its training record; for one from elsewhere "
    "write require_training_record: false into the policy",
    "near_copies": "hold out items that are no copies of trained ones, then verify again",
    "proven_store": "verify with stored items in the data, or import again with --data",
    "stored_share": "verify with data whose gallery items are the store's",
    "matched_share": "hold out queries whose class has items in the gallery, by the same label to "
    "the letter, then verify again",
    "old_hit_rate": "check that labels, preprocessing and index belong together: the deployed "
    "model finds next to nothing",
    "unjudged_gain": "label more of the gallery, or judge more of the first answers",
    "untouched_gain": "hold out more queries of items that no training touched, then verify again",
}
"""What to do if these checks leave the verdict open."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Files to write in addition to report.json. ``queries`` has a line for each query; the others
    are forms of the report."""

    junit: Path | None = None
    markdown: Path | None = None
    metrics: Path | None = None
    queries: Path | None = None
    html: Path | None = None

    def within(self, project: Project) -> Outputs:
        """These files, and the project's where one is not given."""
        names = (field.name for field in fields(self))
        return Outputs(**{name: getattr(self, name) or getattr(project, name) for name in names})

    def check(self) -> None:
        """Refuse files that could not be written, before anything is computed.

        Raises:
            UsageError: a library is missing, or a suffix is not one of a form that is written.
        """
        check_form(self.queries)
        if self.html is not None:
            from compatctl.report.page import require_page

            require_page()

    @property
    def given(self) -> tuple[Path, ...]:
        """Those to write."""
        paths = (self.junit, self.markdown, self.metrics, self.queries, self.html)
        return tuple(path for path in paths if path)


def verdict_fields(
    policy: Policy,
    verdict: Verdict,
    draws: Sampling,
    results: Sequence[GroupResult],
    next_steps: Mapping[str, str],
) -> dict[str, Any]:
    """The report's entries that follow from the results and the verdict."""
    first = results[0]
    return {
        "policy": policy,
        "policy_sha256": policy_sha256(policy),
        "seed": draws.seed,
        "replicates": draws.replicates,
        "groups": tuple(group_entry(result, policy) for result in results),
        "verdict": verdict,
        "warnings": shift_warnings(
            first.evidence.inequalities, judged=bool(first.rates or first.calibration)
        )
        + dependence_warnings(policy, first.evidence.dependence or ()),
        "calibration": first.calibration,
        "summary": summary(verdict),
        "next_step": _next_step(policy, verdict, first) or next_steps[verdict.outcome],
    }


def write_report(
    report: Report,
    path: Path,
    outputs: Outputs,
    *,
    seconds: float | None = None,
    data: Dataset | None = None,
) -> None:
    """Write report.json first: the other files are views of it.

    The page of a job on GitHub has a section for each step: where ``outputs.markdown`` is its file,
    the summary is added to it. Other files are replaced. ``seconds``: what verify took. ``data``:
    items that the HTML page shows; None: it names them.
    """
    write_atomic(path, report.to_bytes())
    if outputs.junit is not None:
        write_atomic(outputs.junit, junit(report, seconds=seconds))
    if outputs.markdown is not None:
        page = os.environ.get("GITHUB_STEP_SUMMARY")
        if page and outputs.markdown.resolve() == Path(page).resolve():
            append(outputs.markdown, b"\n" + markdown(report))
        else:
            write_atomic(outputs.markdown, markdown(report))
    if outputs.metrics is not None:
        write_atomic(outputs.metrics, openmetrics(report))
    if outputs.html is not None:
        from compatctl.report.page import ItemViews, report_page

        write_atomic(outputs.html, report_page(report, items=ItemViews(data)).content)


def judgment_notes(
    judged: Judgments | None, result: GroupResult, policy: Policy
) -> tuple[str, ...]:
    """Which judgments have no effect: those not of a held-out query and a gallery item, and grades
    where the policy does not decide by nDCG."""
    if judged is None:
        return ()
    lost, notes = len(judged) - result.n_judged, []
    if lost:
        notes.append(
            f"{lost} of {len(judged)} judgments, read as {judged.form}: not of held-out queries "
            "and gallery"
        )
    if policy.min_ndcg_gain is None and len(np.unique(judged.grades)) > 1:
        notes.append(
            f"grades of judgments ({judged.grades.min():g} to {judged.grades.max():g}): nDCG is "
            "measured and does not decide; policy key min_ndcg_gain"
        )
    return tuple(notes)


def small_slices(policy: Policy, verdict: Verdict) -> tuple[str, ...]:
    """A note of the slices that have too few queries to decide; none where all have enough."""
    names = [
        check.group.split(", ", 1)[-1]
        for check in verdict.checks
        if check.name == "slice_gain" and check.n_queries < policy.slice_min_queries
    ]
    few = f"slices with fewer than {policy.slice_min_queries} queries (slice_min_queries)"
    return (f"{few}: {listed(names)}",) if names else ()


def _next_step(policy: Policy, verdict: Verdict, result: GroupResult) -> str:
    """What to do if checks of one kind alone did not pass; else empty."""
    failed = {check.name for check in verdict.checks if check.decides and check.outcome != "pass"}
    if failed == {"design_effect"}:
        columns = result.evidence.dependence or ()
        flags = [f"--cluster {column.column}" for column in columns if can_resample(policy, column)]
        return f"verify again with {' '.join(flags)}"
    if verdict.outcome == "inconclusive" and failed & set(EVIDENCE_STEPS):
        return _evidence_step(failed, result.evidence.old_old.n_queries)
    return threshold_step(policy, failed, result.rates)


def _evidence_step(failed: set[str], n_queries: int) -> str:
    """What evidence is missing; more queries help only if they have something to find."""
    if not n_queries:
        return "hold out queries of classes that were not trained on, there are none; verify again"
    steps = [step for name, step in EVIDENCE_STEPS.items() if name in failed]
    if not failed <= set(EVIDENCE_STEPS) and "matched_share" not in failed:
        steps.append(NEXT_STEPS["inconclusive"])
    return "; ".join(steps)


def group_entry(result: GroupResult, policy: Policy) -> Group:
    """The report's entry of a group: figures without the arrays behind them."""
    evidence, pairs = result.evidence, _pairs(result.evidence)
    inequality, flips = evidence.inequalities, evidence.flips
    means = {}
    if inequality:
        means = {"old_old": inequality.old_old, "new_old": inequality.new_old}
    nan = float("nan")
    return Group(
        name=evidence.name,
        n_queries=evidence.old_old.n_with_match,
        n_classes=evidence.n_classes,
        unit=evidence.unit,
        n_without_match=evidence.old_old.n_without_match,
        hit_rate={
            pair: {str(k): value for k, value in test.hit_rate.items()}
            for pair, test in pairs.items()
        },
        **_ranking_means(pairs),
        cmc={pair: tuple(map(float, cmc(test, CMC_MAX_K))) for pair, test in pairs.items()},
        map_at_k={pair: test.map_at_k for pair, test in pairs.items()},
        map_k=evidence.old_old.map_k,
        negative_flips=flips.negative,
        positive_flips=flips.positive,
        mcnemar_p=evidence.mcnemar,
        cos_same={pair: mean.cos_same for pair, mean in means.items()},
        cos_diff={pair: mean.cos_diff for pair, mean in means.items()},
        share_same=inequality.share_same if inequality else nan,
        share_diff=inequality.share_diff if inequality else nan,
        drift_mean=inequality.drift_mean if inequality else None,
        rank_bias=result.rank_bias,
        error_rates=result.rates,
        operating_points=result.points,
        dependence=evidence.dependence or (),
        slices={
            name: int((mask & evidence.old_old.has_match).sum())
            for name, mask in evidence.slices.items()
        },
        n_same_image=int((~result.kept).sum()),
        unjudged=evidence.unjudged.shares(evidence.old_old.has_match) if evidence.unjudged else {},
        training_overlap=_training_overlap(evidence, policy),
    )


def _ranking_means(pairs: Mapping[str, Retrieval]) -> dict[str, Any]:
    """The report's entries of recall, nDCG and MRR."""
    return {
        "recall": _by_k(pairs, lambda test: test.recall),
        "ndcg": _by_k(pairs, lambda test: test.ndcg),
        "mrr": _by_k(pairs, lambda test: {k: test.reciprocal_rank(k) for k in test.ndcg}),
    }


def _by_k(
    pairs: Mapping[str, Retrieval], values: Callable[[Retrieval], Mapping[int, Floats]]
) -> dict[str, dict[str, float]]:
    """Query model and gallery -> k -> the mean of a measure's values (Q,)."""
    return {
        pair: {str(k): test.mean(by_query) for k, by_query in values(test).items()}
        for pair, test in pairs.items()
    }


def _pairs(evidence: GroupEvidence) -> dict[str, Retrieval]:
    """Query model and gallery -> their retrieval, if tested."""
    pairs: dict[str, Retrieval] = {"old_old": evidence.old_old, "new_old": evidence.new_old}
    rescored = ("first_stage", "half_warm", "warm")
    for name in (*rescored, "new_new", "old_new", "old_mixed", "new_mixed"):
        test = getattr(evidence, name)
        if test is not None:
            pairs[name] = test
    if evidence.subset_baseline is not None:
        pairs["old_old_subset"], pairs["new_old_subset"] = evidence.subset_baseline
    return pairs


def _training_overlap(evidence: GroupEvidence, policy: Policy) -> TrainingOverlapEntry | None:
    if evidence.training_overlap is None:
        return None
    old, new, touched = evidence.old_old, evidence.new_old, evidence.training_overlap
    has_match = old.has_match
    alone = has_match & touched.untouched

    def gain(k: int) -> Floats:
        return new.hit(k).astype(np.float64) - old.hit(k)

    changes = {
        "hit_gain": gain(policy.hit_at),
        "wide_hit_gain": gain(policy.wide_hit_at),
        "negative_flips": (old.hit1 & ~new.hit1).astype(np.float64),
    }
    measures = ranking_measures(policy, new, old)
    changes |= {name: after - before for name, (_, after, before) in measures.items()}
    return TrainingOverlapEntry(
        of_gallery=touched.of_gallery,
        of_queries=float(touched.of_query[has_match].mean()) if has_match.any() else 0.0,
        untouched_queries=int(alone.sum()),
        untouched_hit_rate=(_hit_rate(old, alone, policy), _hit_rate(new, alone, policy)),
        parts={name: touched.parts(change, has_match) for name, change in changes.items()},
    )


def _hit_rate(test: Retrieval, queries: Bools, policy: Policy) -> float:
    return ratio(float((test.hit(policy.hit_at) & queries).sum()), int(queries.sum()))
