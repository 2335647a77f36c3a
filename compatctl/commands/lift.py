"""lift: map the stored vectors into an independent encoder's space and build a new index.

It uses bridge's pairs the other way round: the gallery moves, and the new encoder becomes the query
model unchanged. Only the pairs are embedded. The gain is measured before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from compatctl.core.adapters import Adapter
from compatctl.core.arrays import Rows
from compatctl.core.gallery_pass import GalleryPass
from compatctl.core.policy import Policy
from compatctl.data import Dataset
from compatctl.deployment.bulk_embedding import release_memory
from compatctl.deployment.data import load_data
from compatctl.deployment.engines import open_for_write
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.gallery_pass import ModelRows, gallery_pass
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.project import utc_now
from compatctl.deployment.record_files import find_record
from compatctl.deployment.rewriting import map_rows, require_rewriting
from compatctl.deployment.rolled_back import refuse_rolled_back
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import check_steady
from compatctl.errors import EvidenceError, UsageError
from compatctl.evaluation.ann import AnnQueries, measure_ann_recall
from compatctl.index import BuiltIndex
from compatctl.manifest import Manifest, Operation
from compatctl.migration.adapters import AUTO, check_adapter_options, fit_adapter
from compatctl.migration.alignment import (
    AdapterReport,
    alignment_set,
    budgeted_pairs,
    measured_ids,
    pair_share,
)
from compatctl.migration.lifted_models import LiftedModel, LiftedModelFile, lifted_model_files
from compatctl.migration.rewrite_gate import (
    HeldOutQueries,
    Outcome,
    RewriteOutcome,
    require_queries,
    should_write,
)
from compatctl.migration.rewrite_trials import LiftTrial, lift_queries, try_lift
from compatctl.progress import Progress, silent
from compatctl.recipe import Project, load_policy
from compatctl.report import policy_sha256
from compatctl.store import Store, embedding_space

_NO_RECORD = TrainingRecord()


@dataclass(frozen=True, kw_only=True)
class Lifted(RewriteOutcome):
    """``rows`` rows of dimension ``dim_before`` that are, or would be, mapped to dimension ``dim``.

    ``models`` are the files of the mapped rows. ``map`` is None where there was nothing to do, and
    ``measured`` also where there was no held-out query. ``skipped`` are the ids of images that do
    not decode. ``gallery_pass`` is what of the gallery went through the new encoder; None where
    there was nothing to do.
    """

    gallery_pass: GalleryPass | None = None
    query_model_before: str
    query_model: str
    rows: int
    dim_before: int
    dim: int
    map: AdapterReport | None = None
    models: tuple[LiftedModel, ...] = ()
    measured: LiftTrial | None = None
    index_sha256: str
    skipped: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """What was measured and what was done, for people."""
        if self.outcome == "nothing to do":
            return "nothing to do: the gallery is lifted to this model already"
        return self._summary(
            f"{self.rows} rows of dimension {self.dim_before} "
            f"{'were' if self.written else 'would be'} mapped to {self.dim}",
        )

    @property
    def next_step(self) -> str:
        """What to do about a refusal; empty where there was none."""
        if not self.exit_code:
            return ""
        if self.outcome == "fail":
            return "keep the old model; compatctl plan tries the other routes"
        return "more held-out classes and items"


@dataclass(frozen=True, kw_only=True)
class LiftOptions:
    """``kind``, ``share``, ``seed`` and ``training`` are those of ``bridge``. With
    ``forced_reason`` the gallery is rewritten whatever the gate says."""

    kind: str = AUTO
    share: float | None = None
    seed: int = 0
    training: Path | None = None
    forced_reason: str | None = None
    skip_bad: bool = False
    dry_run: bool = False


def lift(
    project: Project,
    *,
    new: Path,
    options: LiftOptions | None = None,
    progress: Progress = silent,
) -> Lifted:
    """Fit every adapter of the requested kind, keep the best, map the gallery with it.

    Running the same command again does nothing.

    Raises:
        UsageError: an unknown kind, a share outside 0 .. 1, pairs that pass more of the gallery
            than the project allows, or the new encoder is the query model or embedded rows of the
            gallery.
        GateError: the encoder was rolled back, and no reason to force was given.
        EvidenceError: the data has no held-out query, or the store re-scores its answers, and no
            reason to force was given.
        InputError: no store, bad data or model, no pair, no validation query to choose with, no
            torch for the kind mlp; or a lifted file does not return the mapped vectors.
        DamagedError: a file of the store is missing or changed.
        ConflictError: the store is locked, or has changed in the meantime: run it again.
    """
    options = options or LiftOptions()
    store = open_for_write(project, dry_run=options.dry_run)
    require_rewriting(store, store.manifest, "lift")
    check_adapter_options(options.kind, pair_share(project, options.share))
    policy, model = (
        load_policy(project.policy),
        ModelFile.named(project, new),
    )
    result = _unchanged(store.manifest, model, options)
    if _is_lifted(store, model.encoder.sha256):
        return result
    _refuse_gallery_model(store.manifest, model.encoder.sha256)
    _refuse_rescoring(store.manifest, options)
    refuse_rolled_back(
        store,
        model.encoder.sha256,
        options.forced_reason,
        evidence="test",
        flags="lift --force",
    )
    work = _Work(project=project, store=store, model=model, policy=policy, options=options)
    result, plan = work.measure(result, progress)
    if not result.written:
        return result
    release_memory()
    built = [work.build_index(plan.adapter, progress)]
    if plan.ann_queries is not None:
        ann, _ = measure_ann_recall(built[0], store.manifest.index.ef_search, plan.ann_queries)
        result = replace(result, ann=ann, ef_search=ann.ef_needed)
    after = work.commit(built, plan.models, result)
    return replace(result, generation=after.generation, index_sha256=after.index.sha256)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """The adapter, the files of the mapped rows, and the queries that test the new index."""

    adapter: Adapter
    models: list[LiftedModelFile]
    ann_queries: AnnQueries | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """One lift that has something to do."""

    project: Project
    store: Store
    model: ModelFile
    policy: Policy
    options: LiftOptions

    def measure(self, result: Lifted, progress: Progress) -> tuple[Lifted, _Plan]:
        """Fit, choose and measure; also return what is needed to write the result."""
        options, new, skip_bad = self.options, self.model, self.options.skip_bad
        data, gallery = load_data(self.project), DeployedGallery.open(self.store)
        record = find_record(
            new.path, new.encoder, named=options.training, candidate=self.project.candidate
        )
        check_steady(new.encoder, data)
        share = pair_share(self.project, options.share)
        pairs = budgeted_pairs(self.project, data, gallery, share, record, skip_bad=skip_bad)
        queries = lift_queries(data, record, pairs)
        self._require_queries(len(queries))
        sides = data, gallery, new.encoder, pairs
        alignment = alignment_set(
            *sides, project=self.project, skip_bad=skip_bad, progress=progress
        )
        fitted = fit_adapter(
            alignment.target,
            alignment.source,
            score=alignment.lifted_hit_rate,
            kind=options.kind,
            seed=options.seed,
            progress=progress,
        )
        models = lifted_model_files(gallery, data, fitted.adapter, pairs)
        trial, ann_queries = self._try_lift(data, gallery, queries, fitted.adapter)
        new.release()
        outcome: Outcome = trial.verdict.outcome if trial else "not measured"
        fitted_on = TrainingRecord.of_pairs(data, alignment.pairs).including(record or _NO_RECORD)
        measured = {*measured_ids(data), *data.take(queries).ids}
        result = replace(
            result,
            gallery_pass=self._pass(gallery, fitted_on, measured),
            map=alignment.report(fitted, data),
            models=tuple(lifted.model for lifted in models),
            measured=trial,
            outcome=outcome,
            skipped=alignment.skipped,
            written=should_write(outcome, options.forced_reason, dry_run=options.dry_run),
        )
        return result, _Plan(adapter=fitted.adapter, models=models, ann_queries=ann_queries)

    def _pass(
        self, gallery: DeployedGallery, fitted_on: TrainingRecord, measured: set[str]
    ) -> GalleryPass:
        """What of the gallery went through the new encoder, in earlier generations too."""
        made = ModelRows.of(self.store, gallery.catalog, self.model.encoder.sha256)
        return gallery_pass(gallery.catalog, fitted_on, made=made, measured=measured)

    def _try_lift(
        self, data: Dataset, gallery: DeployedGallery, rows: Rows, adapter: Adapter
    ) -> tuple[LiftTrial | None, AnnQueries | None]:
        old, new = (
            HeldOutQueries.embed(encoder, data, rows, self.project, skip_bad=self.options.skip_bad)
            for encoder in (gallery.encoder, self.model.encoder)
        )
        self._require_queries(len(old.ids))
        if not len(old.ids):
            return None, None
        return try_lift(self.store, gallery.catalog, adapter, old=old, new=new, policy=self.policy)

    def _require_queries(self, queries: int) -> None:
        require_queries(
            queries,
            forced_reason=self.options.forced_reason,
            without="what a lift gains cannot be measured",
        )

    def build_index(self, adapter: Adapter, progress: Progress) -> BuiltIndex:
        """The new index; all of the old one is read."""
        return map_rows(
            self.store,
            self.store.catalog(),
            adapter=adapter,
            dim=self.model.dim,
            model=self.model.encoder.sha256,
            progress=progress,
        )

    def commit(
        self, built: list[BuiltIndex], models: list[LiftedModelFile], result: Lifted
    ) -> Manifest:
        """Write the next generation, without the class registry and report of the old space.

        ``built`` holds the index; it is emptied before the catalogue is read.
        """
        manifest = self.store.manifest
        with self.store.transaction(manifest, operation=Operation.LIFT) as tx:
            sha256 = tx.put(manifest.index.kind, built[0].save)
            built.clear()
            shares = {
                lifted.model.source_sha256: lifted.file.put(tx, rows=lifted.model.rows)
                for lifted in models
            }
            catalog = self.store.catalog().with_models(
                {source: share.sha256 for source, share in shares.items()}
            )
            return tx.commit(
                operation=Operation.LIFT,
                created_at=utc_now(),
                query_model=result.query_model,
                index=replace(
                    manifest.index, dim=result.dim, sha256=sha256, ef_search=result.ef_search
                ),
                catalog=tx.put("catalogs", catalog.write),
                models=(*shares.values(), self.model.put(tx, rows=0)),
                registry=None,
                policy=policy_sha256(self.policy),
                forced_reason=result.forced_reason,
            )


def _unchanged(manifest: Manifest, model: ModelFile, options: LiftOptions) -> Lifted:
    return Lifted(
        generation=manifest.generation,
        query_model_before=manifest.query_model,
        query_model=model.encoder.sha256,
        rows=manifest.index.count,
        dim_before=manifest.index.dim,
        dim=model.dim,
        ef_search=manifest.index.ef_search,
        forced_reason=options.forced_reason,
        index_sha256=manifest.index.sha256,
    )


def _is_lifted(store: Store, sha256: str) -> bool:
    """Whether an earlier lift moved the gallery into this model's space."""
    if store.manifest.query_model != sha256:
        return False
    generation = embedding_space(store, store.manifest)
    return generation > 0 and store.generation(generation).query_model == sha256


def _refuse_rescoring(manifest: Manifest, options: LiftOptions) -> None:
    """Refuse to judge against answers that are not those of today.

    Raises:
        EvidenceError: the store re-scores, and no reason to force was given.
    """
    if manifest.rescoring is not None and options.forced_reason is None:
        raise EvidenceError(
            "cannot tell what a lift gains: the store re-scores its answers today, and lift "
            "compares with the answers of its index alone",
            tip="compatctl promote makes the free vectors the index; or --force --reason '...', "
            "which is recorded",
        )


def _refuse_gallery_model(manifest: Manifest, sha256: str) -> None:
    rows = sum(share.rows for share in manifest.models if share.sha256 == sha256)
    if rows or manifest.query_model == sha256:
        raise UsageError(
            f"this model is deployed over the gallery as it is, and embedded {rows} of its "
            f"{manifest.index.count} rows: it searches these rows, and needs no map of them",
            tip="continue with compatctl deploy and compatctl backfill; compatctl rollback undoes "
            "a deploy",
        )
