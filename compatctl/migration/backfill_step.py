"""One step of a backfill: judged on held-out queries, then written as one generation.

A step is computed from one generation. Where ``compatctl add`` alone wrote newer ones, the step
takes their rows over. After any other change it is judged again, on the gallery as it is then;
nothing is embedded again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from compatctl.core.arrays import Bytes, Rows, Vectors, as_rows
from compatctl.core.gallery_pass import GalleryPass
from compatctl.core.policy import Policy
from compatctl.data import Dataset
from compatctl.deployment.bulk_embedding import BulkEmbedding, release_memory
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.gallery_pass import (
    ModelRows,
    gallery_pass,
    require_budget,
    rows_of_model,
)
from compatctl.deployment.project import open_store, utc_now
from compatctl.deployment.rewriting import replace_rows, take_over_added
from compatctl.errors import ConflictError
from compatctl.evaluation.ann import AnnQueries, measure_ann_recall
from compatctl.index import BuiltIndex
from compatctl.manifest import Catalog, Manifest, Operation
from compatctl.migration.rescored_service import RescoredService
from compatctl.migration.rewrite_gate import (
    HeldOutQueries,
    Outcome,
    RewriteOutcome,
    should_write,
)
from compatctl.migration.rewrite_trials import MixedTrial, query_model_record, try_backfill
from compatctl.progress import Progress
from compatctl.recipe import Project
from compatctl.store import Store, made_side_lock

NO_ROWS = as_rows(())

MAX_ATTEMPTS = 5
"""How often a step is judged anew because the store changed otherwise than by added rows."""

MAX_REBASES = 100
"""How often a step takes over rows that were added while it was computed."""

LOCK_WAIT_S = 120.0
"""How long a step that is computed waits for another writer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepSetting:
    """What every step of a run needs; ``model`` is the query model that it began with."""

    project: Project
    data: Dataset
    queries: HeldOutQueries
    policy: Policy
    model: str
    forced_reason: str | None
    dry_run: bool
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class StepOutcome(RewriteOutcome):
    """One step: ``embedded`` rows of the ``rows``, and the share that the query model then has.

    ``share_before`` and ``share`` are in [0, 1]. ``gallery_pass`` counts the step's rows, written
    or not. ``measured_rows``: gallery rows that were embedded only to measure. ``judge_s`` and
    ``index_s`` are seconds; ``rebased`` is how often rows were taken over that were added
    meanwhile.
    """

    rows: int
    embedded: int
    share_before: float
    share: float
    measured: MixedTrial | None
    measured_rows: int
    gallery_pass: GalleryPass
    index_sha256: str
    judge_s: float
    index_s: float = 0.0
    rebased: int = 0


class _SupersededError(ConflictError):
    """The store changed otherwise than by added rows."""


def _superseded(newest: Store) -> _SupersededError:
    return _SupersededError(
        f"{newest.name} moved on to generation {newest.manifest.generation} "
        f"({newest.manifest.operation}) while a step was computed",
        tip="run the command again: what was embedded is kept",
    )


def passed_rows(
    project: Project, store: Store, catalog: Catalog, rows: Rows, measured: Rows = NO_ROWS
) -> GalleryPass:
    """What of the gallery will have passed once the query model embedded these rows (n,), and
    others (m,) only to measure."""
    made = ModelRows.of(store, catalog, store.manifest.query_model).writing(rows)
    record = query_model_record(project, store)
    ids = [catalog.ids[row] for row in measured.tolist()]
    return gallery_pass(catalog, record, made=made, measured=ids)


def write_step(
    setting: StepSetting, ids: tuple[str, ...], embedded: BulkEmbedding
) -> StepOutcome | None:
    """Judge the step that gives the items ``ids`` (n,) their features, and write it if it passes.

    None: the store has none of the items any more, or the query model embedded them all.

    Raises:
        ConflictError: the query model changed, the store stays locked, or it kept changing.
        UsageError: re-scoring embedded rows meanwhile, and the project does not allow both.
        DamagedError: a file of the store is missing or changed.
    """
    for attempt in range(MAX_ATTEMPTS):
        store = open_store(setting.project)
        if store.manifest.query_model != setting.model:
            raise ConflictError(
                f"{store.name} has another query model since generation "
                f"{store.manifest.generation} ({store.manifest.operation})",
                tip="run the command again, to backfill with that model",
            )
        step = _Step.of(setting, store, ids, embedded)
        if not len(step.rows):
            return None
        try:
            return step.run()
        except _SupersededError:
            if attempt + 1 == MAX_ATTEMPTS:
                raise
    raise AssertionError


@dataclass(kw_only=True, eq=False)
class _Step:
    """A step on one generation: ``rows`` (n,) of the catalogue get the features at ``positions``
    (n,)."""

    setting: StepSetting
    store: Store
    catalog: Catalog
    rows: Rows
    positions: Rows
    embedded: BulkEmbedding
    rebased: int = 0

    @classmethod
    def of(
        cls, setting: StepSetting, store: Store, ids: tuple[str, ...], embedded: BulkEmbedding
    ) -> _Step:
        catalog = store.catalog()
        row_of, own = catalog.row_of, rows_of_model(catalog, setting.model)
        rows = as_rows(row_of.get(item, -1) for item in ids)
        wanted = (rows >= 0) & ~own[rows]
        return cls(
            setting=setting,
            store=store,
            catalog=catalog,
            rows=rows[wanted],
            positions=np.flatnonzero(wanted),
            embedded=embedded,
        )

    def run(self) -> StepOutcome:
        """Judge, and write if the gate passes or is overruled."""
        result, ann_queries = self._judged()
        if not result.written:
            return result
        release_memory()
        began = time.monotonic()
        built = [self._build()]
        if ann_queries is not None:
            ef = self.store.manifest.index.ef_search
            ann, _ = measure_ann_recall(built[0], ef, ann_queries)
            result = replace(result, ann=ann, ef_search=ann.ef_needed)
        after = self._written(built, result)
        return replace(
            result,
            generation=after.generation,
            rows=after.index.count,
            share=after.query_share.rows / after.index.count,
            ef_search=after.index.ef_search,
            index_sha256=after.index.sha256,
            index_s=time.monotonic() - began,
            rebased=self.rebased,
        )

    def _features_at(self, positions: Rows) -> Vectors:
        return self.embedded.features_at(self.positions[positions])

    @property
    def _digests(self) -> Bytes:
        return self.embedded.image_digests()[self.positions]

    def _judged(self) -> tuple[StepOutcome, AnnQueries | None]:
        """The step with what was measured, and whether to write it."""
        setting, manifest = self.setting, self.store.manifest
        began, have = time.monotonic(), rows_of_model(self.catalog, setting.model)
        trial: MixedTrial | None = None
        ann_queries: AnnQueries | None = None
        measured = NO_ROWS
        if len(setting.queries.ids):
            service = self._service()
            trial, ann_queries = try_backfill(
                self.store,
                self.catalog,
                have=have,
                rows=self.rows,
                features_at=self._features_at,
                queries=setting.queries,
                policy=setting.policy,
                service=service,
            )
            measured = NO_ROWS if service is None else service.measured
        outcome: Outcome = trial.check.outcome if trial else "not measured"
        return StepOutcome(
            generation=manifest.generation,
            outcome=outcome,
            forced_reason=setting.forced_reason,
            written=should_write(outcome, setting.forced_reason, dry_run=setting.dry_run),
            ef_search=manifest.index.ef_search,
            rows=len(self.catalog),
            embedded=len(self.rows),
            share_before=float(have.mean()),
            share=(int(have.sum()) + len(self.rows)) / len(self.catalog),
            measured=trial,
            measured_rows=len(measured),
            gallery_pass=passed_rows(
                setting.project, self.store, self.catalog, self.rows, measured
            ),
            index_sha256=manifest.index.sha256,
            judge_s=time.monotonic() - began,
        ), ann_queries

    def _service(self) -> RescoredService | None:
        setting = self.setting
        return RescoredService.of(
            setting.project,
            DeployedGallery.open(self.store),
            setting.data,
            queries=setting.queries.free,
            rows=self.rows,
            digests=self._digests,
            progress=setting.progress,
        )

    def _build(self) -> BuiltIndex:
        """The index with the rows replaced; of a file all of the old one is read."""
        return replace_rows(
            self.store,
            self.catalog,
            self.rows,
            rows_at=self._features_at,
            progress=self.setting.progress,
        )

    def _written(self, built: list[BuiltIndex], result: StepOutcome) -> Manifest:
        """The next generation; rows that were added since are taken over first.

        ``built`` holds the index; it is emptied when it is saved.

        Raises:
            ConflictError: another writer holds the lock; ``_SupersededError``: it changed more.
        """
        while True:
            try:
                return self._commit(built, result)
            except ConflictError:
                newest = open_store(self.setting.project)
                if newest.manifest == self.store.manifest or self.rebased == MAX_REBASES:
                    raise
                if not built:  # a bucket refuses at the end, once the index is saved
                    raise _superseded(newest) from None
                built[0] = self._take_over(newest, built[0])
                self.rebased += 1

    def _take_over(self, newest: Store, index: BuiltIndex) -> BuiltIndex:
        """Move on to a newer generation whose catalogue is this one with rows added at the end."""
        grown = newest.catalog()
        if not _only_added(self.store, self.catalog, newest, grown):
            raise _superseded(newest)
        after = take_over_added(index, newest, grown, len(self.catalog))
        if after is None:
            raise _superseded(newest)
        self.store, self.catalog = newest, grown
        return after

    def _commit(self, built: list[BuiltIndex], result: StepOutcome) -> Manifest:
        """Write the next generation. Models with no remaining rows are dropped; a reason is
        appended. ``built`` is emptied before the catalogue is changed."""
        store, manifest, model = self.store, self.store.manifest, self.setting.model
        before, reason = manifest.forced_reason or "", result.forced_reason
        reasons = [before, f"backfill: {reason}" if reason else ""]
        if before.endswith(reasons[1]):  # of the step before
            reasons.pop()
        with store.transaction(manifest, operation=Operation.BACKFILL, timeout_s=LOCK_WAIT_S) as tx:
            sha256 = tx.put(manifest.index.kind, built[0].save)
            built.clear()
            catalog = self.catalog.reassigned(self.rows, model, self._digests)
            counts = catalog.counts()
            ef_search = max(result.ef_search, manifest.index.ef_search)
            with self._within_budget():
                return tx.commit(
                    operation=Operation.BACKFILL,
                    created_at=utc_now(),
                    index=replace(manifest.index, sha256=sha256, ef_search=ef_search),
                    catalog=tx.put("catalogs", catalog.write),
                    models=tuple(
                        replace(share, rows=counts[share.sha256])
                        for share in manifest.models
                        if counts.get(share.sha256) or share.sha256 == model
                    ),
                    forced_reason="; ".join(filter(None, reasons)) or None,
                )

    @contextmanager
    def _within_budget(self) -> Iterator[None]:
        """Keep re-scoring from embedding more while the rows are written; it may have done so
        since the backfill began."""
        project = self.setting.project
        if self.store.manifest.rescoring is None or project.max_gallery_pass >= 1.0:
            yield
            return
        with made_side_lock(self.store.path, "backfill"):
            passed = passed_rows(project, self.store, self.catalog, self.rows)
            subject = "backfill, beside what re-scoring embedded meanwhile,"
            require_budget(project, passed, subject, tip="run it again with less; ")
            yield


def _only_added(store: Store, catalog: Catalog, newest: Store, grown: Catalog) -> bool:
    """Whether the generations since ``store`` only added rows behind those of its catalogue."""
    n, since = len(catalog), newest.history()[store.manifest.generation :]
    if any(state.operation not in {Operation.ADD, Operation.GC} for state in since):
        return False
    before = np.array(catalog.models)[catalog.model_of]
    return (
        len(grown) >= n
        and newest.manifest.query_model == store.manifest.query_model
        and grown.ids[:n] == catalog.ids
        and np.array_equal(grown.keys[:n], catalog.keys)
        and np.array_equal(grown.digests[:n], catalog.digests)
        and np.array_equal(np.array(grown.models)[grown.model_of[:n]], before)
    )
