"""backfill: a share of the gallery, re-embedded by the query model: a new index, measured before.

The gain on held-out queries is measured first, because a mixed gallery can find less than one that
is left alone: the query model's own rows attract its queries whether they are right or not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Rows
from compatctl.core.policy import Policy
from compatctl.data import Dataset
from compatctl.deployment.bulk_embedding import BulkEmbedding, release_memory
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import index_params, load_query_model
from compatctl.deployment.project import open_store, utc_now
from compatctl.evaluation.ann import AnnQueries, measure_ann_recall
from compatctl.index import HnswIndex, build_with_replacements
from compatctl.manifest import Catalog, Manifest, Operation
from compatctl.migration import rewrite_gate
from compatctl.migration.backfill_selection import BackfillRows, BackfillTarget, priority_ids
from compatctl.migration.backfill_trial import MixedTrial, held_out, try_mixed
from compatctl.migration.rewrite_gate import HeldOutQueries, Outcome, RewriteOutcome
from compatctl.progress import Progress, silent
from compatctl.recipe import Project, load_policy
from compatctl.store import Store

STALE = (
    "scores that search prints are mapped by what was fitted before these rows were re-embedded: "
    "verify your threshold on the gallery as it is"
)


@dataclass(frozen=True, kw_only=True)
class Backfilled(RewriteOutcome):
    """``share`` of the ``rows`` are of the query model; ``share_before`` were, ``share_wanted`` are
    asked for.

    ``embedded`` rows were re-embedded (for a dry run and a refusal: would be), most wanted first;
    ``missing`` (ids) were passed over because the data has no image of them, ``skipped`` because
    theirs does not decode. ``measured`` is None where there was nothing to measure.
    ``warnings``: where scores are calibrated, by rows that these took the place of.
    """

    query_model: str
    rows: int
    share_before: float
    share: float
    share_wanted: float
    embedded: int
    missing: tuple[str, ...]
    skipped: tuple[str, ...]
    measured: MixedTrial | None
    index_sha256: str
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """What was found and what was done, for people."""
        if self.outcome == "nothing to do":
            left = self.share < self.share_wanted
            why = ", and of the others no image can be embedded" if left else ""
            return (
                f"nothing to do: {self.share:.4f} of {self.rows} rows are of the query model{why}; "
                f"asked for: {self.share_wanted:g}"
            )
        return self._summary(
            f"rows of the query model, of {self.rows}: {self.share_before:.4f} before, "
            f"{self.share:.4f} with {self.embedded} re-embedded",
        )

    @property
    def next_step(self) -> str:
        """What can be done about a refusal; empty where there was none."""
        if not self.exit_code:
            return ""
        if self.outcome == "fail":
            return "another --share: a half can lose where the whole gains; or leave it as it is"
        return "more held-out classes and images, another --share, or a lower min_mixed_gain"


@dataclass(frozen=True, kw_only=True)
class BackfillOptions:
    """``share`` of all rows, above 0 and at most 1; ``order``: a file of ids, the most wanted
    first; ``forced_reason``: write whatever the gate says, and why."""

    share: float = 1.0
    order: Path | None = None
    forced_reason: str | None = None
    skip_bad: bool = False
    dry_run: bool = False


def backfill(
    project: Project, *, options: BackfillOptions | None = None, progress: Progress = silent
) -> Backfilled:
    """Re-embed items that another model than the query model embedded, until the share is reached.

    The same command again does nothing; a larger share goes on where a smaller one ended.

    Raises:
        UsageError: the share is not in (0, 1], or no data is named.
        EvidenceError: the data has no held-out query, and no reason to force was given.
        InputError: bad data, policy or order; the data has no image of the store's items.
        DamagedError: a file of the store is missing or changed.
        ConflictError: the store is locked, or moved on meanwhile: run it again.
    """
    asked = options or BackfillOptions()
    store, policy = open_store(project), load_policy(project.policy)
    catalog = store.catalog()
    wanted = BackfillTarget.of(
        catalog, store.manifest.query_model, asked.share, priority_ids(asked.order)
    )
    result = _as_it_is(store.manifest, wanted, asked)
    if not wanted.remaining:
        return result
    data = load_data(project)
    chosen = BackfillRows.of(wanted, catalog, data)
    result = replace(result, missing=chosen.missing)
    if not len(chosen.rows):
        return result
    rows = held_out(project, store, data)
    _need(len(rows), asked)
    work = _Work(
        store=store,
        catalog=catalog,
        wanted=wanted,
        chosen=chosen,
        asked=asked,
        cluster=project.cluster,
        ignore_same=project.ignore_same,
    )
    return work.run(result, data, rows, policy, progress)


def _need(queries: int, asked: BackfillOptions) -> None:
    rewrite_gate.require_queries(
        queries,
        forced_reason=asked.forced_reason,
        without="what a backfill gains cannot be measured, and a mixed gallery can find less than "
        "one that is left alone",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """One backfill of which it is known what to embed."""

    store: Store
    catalog: Catalog
    wanted: BackfillTarget
    chosen: BackfillRows
    asked: BackfillOptions
    cluster: tuple[str, ...]
    ignore_same: tuple[str, ...]

    def run(
        self, result: Backfilled, data: Dataset, queries: Rows, policy: Policy, progress: Progress
    ) -> Backfilled:
        """Embed, measure, and write where that is to be."""
        skip_bad, manifest = self.asked.skip_bad, self.store.manifest
        encoder = load_query_model(self.store, manifest)
        asking = HeldOutQueries.embedded(
            encoder,
            data,
            queries,
            skip_bad=skip_bad,
            cluster=self.cluster,
            ignore_same=self.ignore_same,
        )
        _need(len(asking.ids), self.asked)
        with BulkEmbedding.of(
            encoder, self.chosen.items, skip_bad=skip_bad, progress=progress
        ) as done:
            del encoder
            release_memory()
            result = replace(result, skipped=tuple(done.bad))
            if not done.rows:
                return result
            result, index_asked = self._measured(result, done, asking, policy)
            if not result.written:
                return result
            release_memory()
            rows = self.chosen.rows[done.rows]
            built = [self._rebuilt(rows, done, progress)]
        if index_asked is not None:
            ann, _ = measure_ann_recall(built[0], manifest.index.ef_search, index_asked)
            result = replace(result, ann=ann, ef_search=ann.ef_needed)
        after = _commit(self.store, built, rows, done.image_digests(), result)
        return replace(result, generation=after.generation, index_sha256=after.index.sha256)

    def _measured(
        self, result: Backfilled, done: BulkEmbedding, asking: HeldOutQueries, policy: Policy
    ) -> tuple[Backfilled, AnnQueries | None]:
        """The result with what was measured, and whether it is to be written."""
        trial: MixedTrial | None = None
        index_asked: AnnQueries | None = None
        if len(asking.ids):
            trial, index_asked = try_mixed(
                self.store,
                self.catalog,
                have=self.wanted.have,
                rows=self.chosen.rows[done.rows],
                done=done,
                queries=asking,
                policy=policy,
            )
        outcome: Outcome = trial.check.outcome if trial else "not measured"
        go = rewrite_gate.should_write(outcome, self.asked.forced_reason)
        found = replace(
            result,
            embedded=len(done.rows),
            share=(int(self.wanted.have.sum()) + len(done.rows)) / len(self.catalog),
            measured=trial,
            outcome=outcome,
            written=go and not self.asked.dry_run,
        )
        return found, index_asked

    def _rebuilt(self, rows: Rows, done: BulkEmbedding, progress: Progress) -> HnswIndex:
        """The index with ``rows`` (n,) of the catalogue replaced; all of the old one is read."""
        info = self.store.manifest.index
        return build_with_replacements(
            self.store.verified_path("indexes", info.sha256, fresh=True),
            index_params(info),
            info.count,
            keys=self.catalog.keys[rows],
            rows_at=done.features_at,
            progress=progress,
        )


def _as_it_is(manifest: Manifest, wanted: BackfillTarget, asked: BackfillOptions) -> Backfilled:
    share = float(wanted.have.mean())
    return Backfilled(
        generation=manifest.generation,
        query_model=manifest.query_model,
        rows=manifest.index.count,
        share_before=share,
        share=share,
        share_wanted=asked.share,
        embedded=0,
        missing=(),
        skipped=(),
        measured=None,
        ann=None,
        ef_search=manifest.index.ef_search,
        outcome="nothing to do",
        forced_reason=asked.forced_reason,
        index_sha256=manifest.index.sha256,
        warnings=(STALE,) * (manifest.calibration is not None and wanted.remaining > 0),
        written=False,
    )


def _commit(
    store: Store,
    built: list[HnswIndex],
    rows: Rows,
    digests: NDArray[np.uint8],
    result: Backfilled,
) -> Manifest:
    """The next generation. ``built`` holds the index, and is emptied before the catalogue is
    changed. Models that no row is left of are let go; a reason is added to the query model's."""
    manifest = store.manifest
    model = manifest.query_model
    why = result.forced_reason
    reasons = [manifest.forced_reason, why and f"backfill: {why}"]
    with store.transaction(manifest, operation=Operation.BACKFILL) as tx:
        sha256 = tx.put("indexes", built[0].save)
        built.clear()
        catalog = store.catalog().reassigned(rows, model, digests)
        counts = catalog.counts()
        return tx.commit(
            operation=Operation.BACKFILL,
            created_at=utc_now(),
            index=replace(manifest.index, sha256=sha256, ef_search=result.ef_search),
            catalog=tx.put("catalogs", catalog.write),
            models=tuple(
                replace(one, rows=counts[one.sha256])
                for one in manifest.models
                if counts.get(one.sha256) or one.sha256 == model
            ),
            forced_reason="; ".join(one for one in reasons if one) or None,
        )
