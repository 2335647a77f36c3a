"""Where a project ends re-scoring, and where it would have ended when it was judged; light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from compatctl.deployment.query_model_pass import RESCORED, QueryModelPass, model_report
from compatctl.manifest import Manifest
from compatctl.recipe import PROJECT_FILE, Project
from compatctl.store import Store, is_in_bucket


@dataclass(frozen=True, kw_only=True)
class RescoringLimit:
    """How many gallery rows may pass where answers are re-scored.

    Attributes:
        share: ``max_gallery_pass`` of the project now, in [0, 1].
        judged_share: that of the project when the deployed report judged re-scoring; None: unknown.
        rows_allowed: so many rows may pass now.
        rows_passed: so many passed, at most.
        exact: whether ``rows_passed`` is that number and no bound; an item with free vectors of two
            images counts twice.
        in_bucket: whether the store lies in a bucket: then nothing more may pass while ``share`` is
            below 1, because each machine keeps free vectors of its own and counts only those.
    """

    share: float
    judged_share: float | None
    rows_allowed: int
    rows_passed: int
    exact: bool
    in_bucket: bool = False

    @classmethod
    def of(
        cls, project: Project, store: Store, manifest: Manifest, passed: QueryModelPass
    ) -> Self | None:
        """That of a store; None: its answers are not re-scored.

        Raises:
            DamagedError: the report is missing or changed.
        """
        if manifest.rescoring is None:
            return None
        report, rows = model_report(store, manifest) or {}, manifest.index.count
        policy = report.get("policy")
        judged = policy.get("max_gallery_pass") if isinstance(policy, dict) else None
        known = min(rows, sum(passed.by.values())) if passed.passed is None else passed.passed
        return cls(
            share=project.max_gallery_pass,
            judged_share=float(judged) if isinstance(judged, int | float) else None,
            rows_allowed=project.allowed_rows(rows),
            rows_passed=known,
            in_bucket=is_in_bucket(store.path),
            exact=passed.passed is not None and (passed.exact or not passed.by.keys() - {RESCORED}),
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """That the limit was lowered since re-scoring was judged, and that it is reached."""
        if self.in_bucket and self.share < 1.0:
            return (
                f"re-scoring embeds no images: max_gallery_pass is {self.share:g} in "
                f"{PROJECT_FILE}, and machines that share a store in a bucket cannot count "
                "together what passed; with 1.0 there is nothing to count",
            )
        reached = self.rows_passed >= self.rows_allowed and self.share < 1.0
        lowered = self.judged_share is not None and self.share < self.judged_share
        if not reached and not lowered:
            return ()
        ends = "re-scoring has ended" if reached else "re-scoring ends earlier than it was judged"
        counted = f"{'' if self.exact else 'at most '}{self.rows_passed} passed"
        text = (
            f"{ends}: max_gallery_pass is {self.share:g} in {PROJECT_FILE}, so that "
            f"{self.rows_allowed} rows may pass, and {counted}"
        )
        if reached:
            text += "; search and warm embed no more, and use only the free vectors that are kept"
        if lowered:
            text += (
                f"; the deployed report judged it with {self.judged_share:g}: set that again, or "
                "roll back, verify and deploy"
            )
        return (text,)
