"""backfill: re-embed a share of the gallery with the query model and build a new index.

The gain on held-out queries is measured first, because a mixed gallery can have fewer hits than one
left alone: the query model's own rows attract its queries whether they are relevant or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Bytes, Rows, as_rows
from compatctl.core.gallery_pass import GalleryPass
from compatctl.core.policy import Policy
from compatctl.data import Dataset
from compatctl.deployment.bulk_embedding import BulkEmbedding, release_memory
from compatctl.deployment.data import load_data
from compatctl.deployment.engine_gallery import require_own_rows
from compatctl.deployment.gallery import (
    DeployedGallery,
    index_params,
    load_query_model,
    stored_rows,
)
from compatctl.deployment.gallery_pass import ModelRows, gallery_pass, require_budget
from compatctl.deployment.project import open_store, utc_now
from compatctl.errors import EvidenceError, UsageError
from compatctl.evaluation.ann import AnnQueries, measure_ann_recall
from compatctl.index import HnswIndex, build_with_replacements
from compatctl.manifest import Catalog, Manifest, Operation
from compatctl.migration.backfill_forecast import (
    Forecast,
    Sample,
    SampleRows,
    Schedule,
    forecast,
)
from compatctl.migration.backfill_orders import Order, priority_of
from compatctl.migration.backfill_selection import ALTERNATIVE, BackfillRows, BackfillTarget
from compatctl.migration.rescored_service import RescoredService
from compatctl.migration.rewrite_gate import (
    HeldOutQueries,
    Outcome,
    RewriteOutcome,
    require_queries,
    should_write,
)
from compatctl.migration.rewrite_trials import (
    MixedTrial,
    backfill_queries,
    query_model_record,
    try_backfill,
)
from compatctl.progress import Progress, silent
from compatctl.recipe import Project, load_policy
from compatctl.store import Store, made_side_lock

STALE = (
    "scores that search prints are mapped by what was fitted before these rows were re-embedded: "
    "verify your threshold on the gallery as it is"
)


NO_ROWS = as_rows(())


@dataclass(frozen=True, kw_only=True)
class Backfilled(RewriteOutcome):
    """The query model embedded ``share_before`` of the ``rows``, and now ``share`` of them;
    ``share_wanted`` was requested.

    ``embedded`` rows were re-embedded (or would be, after a dry run or a refusal), in order of
    priority. Passed over are ``missing`` ids, of which the data has no image, and ``skipped`` ids,
    whose image does not decode. ``measured`` is None where there was nothing to measure.
    ``gallery_pass`` is what of the gallery went through the query model, these rows included; None
    where there was nothing to do. ``warnings`` say that the score calibration is of the rows that
    were replaced, where the hit rate dips on the way, or that re-scoring will embed less.
    """

    gallery_pass: GalleryPass | None = None
    query_model: str
    rows: int
    share_before: float
    share: float
    share_wanted: float
    embedded: int = 0
    missing: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    measured: MixedTrial | None = None
    index_sha256: str
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """What was measured and what was done, for people."""
        if self.outcome == "nothing to do":
            incomplete = self.share < self.share_wanted
            why = ", and none of the others can be embedded" if incomplete else ""
            return (
                f"nothing to do: {self.share:.4f} of {self.rows} rows are of the query model{why}; "
                f"requested: {self.share_wanted:g}"
            )
        return self._summary(
            f"rows of the query model, of {self.rows}: {self.share_before:.4f} before, "
            f"{self.share:.4f} with {self.embedded} re-embedded",
        )

    @property
    def next_step(self) -> str:
        """What to do about a refusal; empty where there was none."""
        if not self.exit_code:
            return ""
        if self.outcome == "fail" and self.measured and self.measured.rescored:
            return "another --share, or keep re-scoring the gallery as it is"
        if self.outcome == "fail":
            return (
                "another --share (half can lose where all gains: compatctl backfill --forecast "
                f"1000), or keep the gallery as it is: {ALTERNATIVE}"
            )
        return "more held-out classes and items, another --share, or a lower min_mixed_gain"


@dataclass(frozen=True, kw_only=True)
class BackfillOptions:
    """``share`` is the target share of all rows, in (0, 1]. ``order`` is the name of one, or a file
    of ids, highest priority first; ``traffic`` is the CSV of ids and counts for that order. With
    ``forced_reason`` the gallery is rewritten whatever the gate says."""

    share: float = 1.0
    order: Order | Path = Order.HASH
    traffic: Path | None = None
    forced_reason: str | None = None
    skip_bad: bool = False
    dry_run: bool = False


def backfill(
    project: Project, *, options: BackfillOptions | None = None, progress: Progress = silent
) -> Backfilled:
    """Re-embed items of other models with the query model, until it embedded the requested share.

    Running the same command again does nothing; a larger share continues where a smaller one ended.

    Raises:
        UsageError: the share is not in (0, 1], traffic without its order or the reverse, no data is
            named, or more of the gallery would pass than the project allows.
        EvidenceError: the data has no held-out query, and no reason to force was given.
        InputError: bad data, policy or order; the data has no image of the store's items.
        DamagedError: a file of the store is missing or changed.
        ConflictError: the store is locked, or has changed in the meantime: run it again.
    """
    options = options or BackfillOptions()
    store, policy = open_store(project), load_policy(project.policy)
    require_own_rows(store.manifest, "backfill")
    catalog = store.catalog()
    target = _target(store, catalog, options)
    result = _unchanged(store.manifest, target, options)
    if not target.remaining:
        return result
    data = load_data(project)
    chosen = BackfillRows.of(target, catalog, data)
    result = replace(result, missing=chosen.missing)
    if not len(chosen.rows):
        return result
    passed = _pass(project, store, catalog, chosen.rows)
    require_budget(project, passed, "backfill", tip="a smaller --share passes fewer rows; ")
    result = replace(result, gallery_pass=passed)
    queries = backfill_queries(project, store, data)
    _require_queries(len(queries), options)
    work = _Work(
        project=project,
        store=store,
        catalog=catalog,
        target=target,
        chosen=chosen,
        options=options,
        policy=policy,
    )
    return work.run(result, data, queries, progress)


@dataclass(frozen=True, kw_only=True)
class BackfillForecast:
    """Hit rate at each share, forecast from few passes; nothing is written.

    The query model embedded ``share_before`` of the ``rows``. ``forecast`` is None where there is
    nothing left to embed. ``skipped`` are ids of the sample whose image does not decode.
    """

    generation: int
    query_model: str
    rows: int
    share_before: float
    forecast: Forecast | None = None
    skipped: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where the hit rate is forecast to fall below the start."""
        return self.forecast.warnings if self.forecast else ()


def forecast_backfill(
    project: Project,
    *,
    passes: int,
    options: BackfillOptions | None = None,
    progress: Progress = silent,
) -> BackfillForecast:
    """Embed a sample of at most ``passes`` rows and forecast the hit rate at every share.

    Of the options, order, traffic and skip_bad count.

    Raises:
        UsageError: fewer than 2 passes, or more than the project allows; or as ``backfill``.
        EvidenceError: no held-out query has a match in the sample, or the store re-scores.
    """
    options = options or BackfillOptions()
    if passes < 2:
        raise UsageError(f"--forecast needs at least 2 rows, got {passes}")
    store, policy = open_store(project), load_policy(project.policy)
    require_own_rows(store.manifest, "backfill")
    _refuse_rescored(store.manifest)
    catalog, data = store.catalog(), load_data(project)
    target = _target(store, catalog, options)
    result = BackfillForecast(
        generation=store.manifest.generation,
        query_model=store.manifest.query_model,
        rows=len(catalog),
        share_before=float(target.have.mean()),
    )
    schedule = Schedule.of(target, catalog, data)
    if not schedule.shares:
        return result
    rows = backfill_queries(project, store, data)
    truth = HeldOutQueries.without_features(data, rows, project).ground_truth(catalog)
    chosen = SampleRows.choose(truth, catalog.ids, np.isfinite(schedule.replaced_at), passes)
    _require_matches(chosen)
    passed = _pass(project, store, catalog, chosen.rows)
    require_budget(project, passed, "the forecast", tip="a smaller --forecast passes fewer rows; ")
    encoder, rows = load_query_model(store, store.manifest), rows[chosen.queries]
    queries = HeldOutQueries.embed(encoder, data, rows, project, skip_bad=options.skip_bad)
    fresh = chosen.rows[schedule.replaced_at[chosen.rows] > 0.0]
    images = data.take(data.row_of[catalog.ids[row]] for row in fresh)
    embedded = encoder.embed(images, skip_bad=options.skip_bad, progress=progress)
    sample = Sample.of(
        chosen,
        queries.ground_truth(catalog),
        queries.features,
        stored_rows(store, store.manifest, catalog),
        embedded=fresh[embedded.rows],
        features=embedded.features,
        missing=np.setdiff1d(fresh, fresh[embedded.rows]),
    )
    skipped = tuple(item.id for item in embedded.bad)
    return replace(result, forecast=forecast(sample, schedule, policy), skipped=skipped)


def _refuse_rescored(manifest: Manifest) -> None:
    if manifest.rescoring is not None:
        raise EvidenceError(
            "the store re-scores its answers, and a forecast is of the index alone: it cannot say "
            "what a backfill changes of what is served",
            tip="compatctl backfill --dry-run --share S measures it, re-scored; it embeds the rows",
        )


def _require_matches(chosen: SampleRows) -> None:
    if not chosen.queries.any():
        raise EvidenceError(
            "no held-out query has a match in the sample: a backfill cannot be forecast",
            tip="give items of the test split (role query), or a larger --forecast",
        )


def _pass(
    project: Project, store: Store, catalog: Catalog, rows: Rows, measured: Rows = NO_ROWS
) -> GalleryPass:
    """What of the gallery will have passed once the query model embedded these rows (n,), and
    others (m,) only to measure."""
    made = ModelRows.of(store, catalog, store.manifest.query_model).writing(rows)
    record = query_model_record(project, store)
    ids = [catalog.ids[row] for row in measured.tolist()]
    return gallery_pass(catalog, record, made=made, measured=ids)


def _target(store: Store, catalog: Catalog, options: BackfillOptions) -> BackfillTarget:
    """The rows to re-embed, in the order that the options name.

    Raises:
        UsageError: a share outside (0, 1], or an order by traffic without it, or the reverse.
        InputError: a bad file of ids or counts.
        DamagedError: as ``stored_rows``.
    """
    stored = partial(stored_rows, store, store.manifest, catalog)
    priority = priority_of(options.order, catalog, stored, traffic=options.traffic)
    return BackfillTarget.of(catalog, store.manifest.query_model, options.share, priority)


def _require_queries(queries: int, options: BackfillOptions) -> None:
    require_queries(
        queries,
        forced_reason=options.forced_reason,
        without="what a backfill gains cannot be measured, and a mixed gallery can find less than "
        "one that is left alone",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """One backfill that has something to embed."""

    project: Project
    store: Store
    catalog: Catalog
    target: BackfillTarget
    chosen: BackfillRows
    options: BackfillOptions
    policy: Policy

    def run(
        self, result: Backfilled, data: Dataset, query_rows: Rows, progress: Progress
    ) -> Backfilled:
        """Embed, measure, and write if the gate passes or is overruled."""
        skip_bad, manifest = self.options.skip_bad, self.store.manifest
        encoder = load_query_model(self.store, manifest)
        queries = HeldOutQueries.embed(
            encoder,
            data,
            query_rows,
            self.project,
            skip_bad=skip_bad,
            free=manifest.rescoring is not None,
        )
        _require_queries(len(queries.ids), self.options)
        with BulkEmbedding.of(
            encoder, self.chosen.items, skip_bad=skip_bad, progress=progress
        ) as embedded:
            del encoder
            release_memory()
            result = replace(result, skipped=tuple(embedded.bad))
            if not embedded.rows:
                return result
            result, ann_queries = self._measure(result, data, embedded, queries, progress)
            if not result.written:
                return result
            release_memory()
            rows = self.chosen.rows[embedded.rows]
            built = [self._build_index(rows, embedded, progress)]
        if ann_queries is not None:
            ann, _ = measure_ann_recall(built[0], manifest.index.ef_search, ann_queries)
            result = replace(result, ann=ann, ef_search=ann.ef_needed)
        after = self._commit(built, rows, embedded.image_digests(), result)
        return replace(result, generation=after.generation, index_sha256=after.index.sha256)

    def _measure(
        self,
        result: Backfilled,
        data: Dataset,
        embedded: BulkEmbedding,
        queries: HeldOutQueries,
        progress: Progress,
    ) -> tuple[Backfilled, AnnQueries | None]:
        """The result with what was measured, and whether to write it."""
        trial: MixedTrial | None = None
        ann_queries: AnnQueries | None = None
        if len(queries.ids):
            rows = self.chosen.rows[embedded.rows]
            service = RescoredService.of(
                self.project,
                DeployedGallery.open(self.store),
                data,
                queries=queries.free,
                rows=rows,
                digests=embedded.image_digests(),
                progress=progress,
            )
            trial, ann_queries = try_backfill(
                self.store,
                self.catalog,
                have=self.target.have,
                rows=rows,
                embedded=embedded,
                queries=queries,
                policy=self.policy,
                service=service,
            )
            if service is not None:
                passed = _pass(self.project, self.store, self.catalog, rows, service.measured)
                result = replace(result, gallery_pass=passed)
        outcome: Outcome = trial.check.outcome if trial else "not measured"
        result = replace(
            result,
            embedded=len(embedded.rows),
            share=(int(self.target.have.sum()) + len(embedded.rows)) / len(self.catalog),
            measured=trial,
            warnings=result.warnings + (trial.warnings if trial else ()),
            outcome=outcome,
            written=should_write(outcome, self.options.forced_reason, dry_run=self.options.dry_run),
        )
        return result, ann_queries

    def _build_index(self, rows: Rows, embedded: BulkEmbedding, progress: Progress) -> HnswIndex:
        """The index with ``rows`` (n,) of the catalogue replaced; all of the old one is read."""
        info = self.store.manifest.index
        return build_with_replacements(
            self.store.verified_path("indexes", info.sha256, fresh=True),
            index_params(info),
            info.count,
            keys=self.catalog.keys[rows],
            rows_at=embedded.features_at,
            progress=progress,
        )

    def _commit(
        self, built: list[HnswIndex], rows: Rows, digests: Bytes, result: Backfilled
    ) -> Manifest:
        """Write the next generation. Models with no remaining rows are dropped; a reason is
        appended. ``built`` holds the index; it is emptied before the catalogue is changed.

        Raises:
            UsageError: re-scoring embedded rows meanwhile, and the project does not allow both.
        """
        store, manifest = self.store, self.store.manifest
        model, reason = manifest.query_model, result.forced_reason
        reasons = [manifest.forced_reason, reason and f"backfill: {reason}"]
        with store.transaction(manifest, operation=Operation.BACKFILL) as tx:
            sha256 = tx.put("indexes", built[0].save)
            built.clear()
            catalog = store.catalog().reassigned(rows, model, digests)
            counts = catalog.counts()
            with self._within_budget(rows):
                return tx.commit(
                    operation=Operation.BACKFILL,
                    created_at=utc_now(),
                    index=replace(manifest.index, sha256=sha256, ef_search=result.ef_search),
                    catalog=tx.put("catalogs", catalog.write),
                    models=tuple(
                        replace(share, rows=counts[share.sha256])
                        for share in manifest.models
                        if counts.get(share.sha256) or share.sha256 == model
                    ),
                    forced_reason="; ".join(filter(None, reasons)) or None,
                )

    @contextmanager
    def _within_budget(self, rows: Rows) -> Iterator[None]:
        """Keep re-scoring from embedding more while the rows (n,) are written; it may have done so
        since the backfill began."""
        if self.store.manifest.rescoring is None or self.project.max_gallery_pass >= 1.0:
            yield
            return
        with made_side_lock(self.store.path, "backfill"):
            passed = _pass(self.project, self.store, self.catalog, rows)
            subject = "backfill, beside what re-scoring embedded meanwhile,"
            require_budget(self.project, passed, subject, tip="run it again with less; ")
            yield


def _unchanged(manifest: Manifest, target: BackfillTarget, options: BackfillOptions) -> Backfilled:
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
