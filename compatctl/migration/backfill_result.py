"""What a backfill is asked for, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compatctl.core.gallery_pass import GalleryPass
from compatctl.manifest import Manifest
from compatctl.migration.backfill_budget import Amount
from compatctl.migration.backfill_curve import RunPoint
from compatctl.migration.backfill_estimate import BackfillEstimate
from compatctl.migration.backfill_gain import SAMPLE, RestGain
from compatctl.migration.backfill_orders import Order
from compatctl.migration.backfill_run import Stopped
from compatctl.migration.backfill_selection import ALTERNATIVE, BackfillTarget
from compatctl.migration.backfill_step import StepOutcome
from compatctl.migration.rewrite_gate import RewriteOutcome
from compatctl.migration.rewrite_trials import MixedTrial

STALE = (
    "scores that search prints are mapped by what was fitted before these rows were re-embedded: "
    "verify your threshold on the gallery as it is"
)


@dataclass(frozen=True, kw_only=True)
class WrittenStep:
    """One generation of a run: ``embedded`` rows, and the ``share`` of the query model then.

    ``hit_rate`` in [0, 1] is of the held-out queries; None without any.
    """

    generation: int
    embedded: int
    share: float
    hit_rate: float | None
    rebased: int


@dataclass(frozen=True, kw_only=True)
class Backfilled(RewriteOutcome):
    """The query model embedded ``share_before`` of the ``rows``, and now ``share`` of them;
    ``share_wanted`` was requested.

    ``embedded`` rows were re-embedded (or would be, after a dry run or a refusal), in order of
    priority. Passed over are ``missing`` ids, of which the data has no item, and ``skipped`` ids,
    whose content does not decode; ``unreachable`` counts all rows that the data has no item of.
    ``measured`` is of the last step, and None where there was nothing to measure.
    ``gallery_pass`` is what of the gallery went through the query model, these rows included; None
    where there was nothing to do. ``passed`` items went through it in this run, also in the part
    that was ``resumed``, those of unwritten steps included. ``steps`` were written now; ``curve``
    has the points of the whole run. ``warnings`` say that the score calibration is of the rows that
    were replaced, where the hit rate dips on the way, or that re-scoring will embed less.
    """

    gallery_pass: GalleryPass | None = None
    query_model: str
    rows: int
    share_before: float
    share: float
    share_wanted: float
    embedded: int = 0
    passed: int = 0
    missing: tuple[str, ...] = ()
    unreachable: int = 0
    skipped: tuple[str, ...] = ()
    measured: MixedTrial | None = None
    index_sha256: str
    estimate: BackfillEstimate | None = None
    steps: tuple[WrittenStep, ...] = ()
    curve: tuple[RunPoint, ...] = ()
    stopped: Stopped = "done"
    resumed: bool = False
    warnings: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """As of any rewrite; 130 after Ctrl-C, as a shell has it."""
        return 130 if self.stopped == "interrupted" else super().exit_code

    @property
    def summary(self) -> str:
        """What was measured and what was done, for people."""
        if self.stopped == "dry run" and self.outcome == "nothing to do":
            return "dry run: nothing was embedded but a sample, and nothing was written"
        if self.outcome == "nothing to do" and self.stopped == "no gain":
            rest = next((point.rest for point in self.curve if point.rest), None)
            return f"nothing was written: {rest_line(rest)}" if rest else "nothing was written"
        if self.outcome == "nothing to do":
            incomplete = self.share < self.share_wanted
            why = ", and none of the others can be embedded" if incomplete else ""
            why = ", and the budget has no room for a step" if self.stopped == "budget" else why
            return (
                f"nothing to do: {self.share:.2%} of {self.rows} rows are of the query model{why}; "
                f"requested: {self.share_wanted:.2%}"
            )
        ended = {
            "budget": "; the budget is spent",
            "no gain": "; the rest is not shown to gain",
            "interrupted": "; interrupted: the same command continues",
        }.get(self.stopped, "")
        return self._summary(
            f"rows of the query model, of {self.rows}: {self.share_before:.2%} before, "
            f"{self.share:.2%} with {self.embedded} re-embedded{ended}",
        )

    @property
    def next_step(self) -> str:
        """What to do about a refusal; empty where there was none."""
        if self.exit_code not in {3, 4}:
            return ""
        if self.outcome == "fail" and self.measured and self.measured.rescored:
            return "another --share, or keep re-scoring the gallery as it is"
        if self.outcome == "fail":
            return (
                "another --share, or larger steps (half can lose where all gains: compatctl "
                f"backfill --forecast 1000), or keep the gallery as it is: {ALTERNATIVE}"
            )
        return "more held-out classes and items, another --share, or a lower min_mixed_gain"


@dataclass(frozen=True, kw_only=True)
class BackfillOptions:
    """What a backfill is to do.

    ``share`` is the target share of all rows, in (0, 1]. ``order`` is the name of one, or a file
    of ids, highest priority first; ``traffic`` is the file of that order. ``budget`` bounds what
    passes in this run, ``step`` is the size of a step. ``until_gain``: end before the first step
    from which on the rest is not shown to gain, as ``sample`` rows show it. With one of the three
    there are several steps, else one. ``curve``: the file of the run's curve. With
    ``forced_reason`` the gallery is rewritten whatever the gate says.
    """

    share: float = 1.0
    order: Order | Path = Order.HASH
    traffic: Path | None = None
    budget: Amount | None = None
    step: Amount | None = None
    until_gain: bool = False
    sample: int = SAMPLE
    curve: Path | None = None
    forced_reason: str | None = None
    skip_bad: bool = False
    dry_run: bool = False

    @property
    def stepwise(self) -> bool:
        """Whether the run has steps, and an account that a later one continues."""
        return self.budget is not None or self.step is not None or self.until_gain

    def identity(self, model: str) -> dict[str, Any]:
        """What a run must share with an unfinished one to continue its account."""
        return {
            "model": model,
            "share": self.share,
            "order": str(self.order),
            "traffic": str(self.traffic) if self.traffic else None,
            "budget": self.budget.text if self.budget else None,
            "step": self.step.text if self.step else None,
            "until_gain": self.until_gain,
        }


def with_step(result: Backfilled, step: StepOutcome) -> Backfilled:
    """The result after one more step, written or not."""
    result = replace(
        result, outcome=step.outcome, measured=step.measured, gallery_pass=step.gallery_pass
    )
    if not step.written:
        if result.steps:
            return result
        return replace(result, embedded=step.embedded, share=step.share)
    hit_rate = step.measured.curve[-1].hit_rate if step.measured else None
    written = WrittenStep(
        generation=step.generation,
        embedded=step.embedded,
        share=step.share,
        hit_rate=hit_rate,
        rebased=step.rebased,
    )
    return replace(
        result,
        generation=step.generation,
        rows=step.rows,
        written=True,
        embedded=result.embedded + step.embedded,
        share=step.share,
        steps=(*result.steps, written),
        ann=step.ann,
        ef_search=step.ef_search,
        index_sha256=step.index_sha256,
    )


def rest_line(rest: RestGain) -> str:
    """A look at what remains, in words."""
    shown = "is shown to gain" if rest.is_shown else "is not shown to gain"
    return (
        f"the rest, up to {rest.last_share:.2%} of the rows, {shown}: {rest.gain:+.4f} "
        f"({rest.low:+.4f} to {rest.high:+.4f}) on {rest.n_queries} queries of "
        f"{rest.n_classes} classes"
    )


def step_line(step: StepOutcome) -> str:
    """A step in words."""
    state = f"generation {step.generation}" if step.written else "not written"
    trial = step.measured
    hits = "" if trial is None else f", hit@{trial.hit_at} {trial.curve[-1].hit_rate:.4f}"
    return f"{step.outcome}: {state}, {step.share:.2%} of the query model{hits}"


def unchanged(manifest: Manifest, target: BackfillTarget, options: BackfillOptions) -> Backfilled:
    share = float(target.have.mean())
    return Backfilled(
        generation=manifest.generation,
        query_model=manifest.query_model,
        rows=manifest.index.count,
        share_before=share,
        share=share,
        share_wanted=options.share,
        ef_search=manifest.index.ef_search,
        forced_reason=options.forced_reason,
        index_sha256=manifest.index.sha256,
        warnings=(STALE,) * (manifest.calibration is not None and target.remaining > 0),
    )
