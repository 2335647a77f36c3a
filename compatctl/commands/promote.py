"""promote: make the free vectors of a store that re-scores its index.

What the side file lacks is embedded first, and kept: an interrupted run continues where it ended.
Then the promoted state is judged on held-out queries, and only then written, as one generation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from compatctl.core.arrays import Rows
from compatctl.core.gallery_pass import GalleryPass
from compatctl.data import Dataset
from compatctl.deployment.bulk_embedding import release_memory
from compatctl.deployment.data import load_data
from compatctl.deployment.engines import RESCORED, refuse_engine
from compatctl.deployment.gallery import DeployedGallery, index_params
from compatctl.deployment.gallery_pass import ModelRows, gallery_pass, require_budget
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.project import open_store, utc_now
from compatctl.deployment.rescoring import Rescorer, rescorer_of
from compatctl.deployment.rolled_back import refuse_rolled_back
from compatctl.errors import InputError
from compatctl.evaluation.ann import AnnQueries, measure_ann_recall
from compatctl.index import HnswIndex, build_replaced
from compatctl.manifest import Manifest, Operation
from compatctl.migration.promotion import FreeRows, PromotionTrial, free_head, try_promotion
from compatctl.migration.rewrite_gate import RewriteOutcome, require_queries, should_write
from compatctl.migration.rewrite_trials import backfill_queries, query_model_record
from compatctl.printable import listed
from compatctl.progress import Progress, silent
from compatctl.recipe import Project, load_policy
from compatctl.report import policy_sha256
from compatctl.store import Store, embedding_space
from compatctl.store.side_file import SideFile


@dataclass(frozen=True, kw_only=True)
class Promoted(RewriteOutcome):
    """``rows`` rows of dimension ``dim_before`` that become, or would become, free vectors of
    dimension ``dim``.

    ``kept`` rows had a free vector before; ``embedded`` were passed now, or ``to_embed`` would be.
    ``query_model`` is the digest of the free head alone; None where it was not made.
    ``difference``: the largest L2 distance between its embeddings and the side file's vectors.
    ``measured`` is None where nothing was measured. ``gallery_pass``: what of the gallery has gone,
    or would go, through the model.
    """

    gallery_pass: GalleryPass | None = None
    query_model_before: str
    query_model: str | None = None
    rows: int
    dim_before: int
    dim: int
    kept: int = 0
    to_embed: int = 0
    embedded: int = 0
    difference: float | None = None
    measured: PromotionTrial | None = None
    index_sha256: str
    calibrated_before: bool = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user must know."""
        if not (self.written or self.outcome == "pass"):
            return ()
        scores = "scores become cosines of another space: choose thresholds again" + (
            "; the calibration of scores ends" if self.calibrated_before else ""
        )
        return (scores,)

    @property
    def summary(self) -> str:
        """What was measured and what was done, for people."""
        if self.outcome == "nothing to do":
            return "nothing to do: the index has the free vectors, and the free head alone serves"
        return self._summary(
            f"{self.rows} rows of dimension {self.dim_before} "
            f"{'are' if self.written else 'would be'} free vectors of dimension {self.dim}; "
            f"{self.kept} were in the side file, {self.embedded} embedded now"
            + (f", {self.to_embed} to embed" if self.to_embed else "")
        )

    @property
    def next_step(self) -> str:
        """What to do about a refusal; empty where there was none."""
        if self.outcome == "not measured" and self.to_embed and self.forced_reason is None:
            return "compatctl promote embeds them, keeps them, and measures before it writes"
        if not self.exit_code:
            return ""
        if self.outcome == "fail":
            return "keep re-scoring: the free vectors that were made serve it"
        return "more held-out classes and items, or a lower min_mixed_gain; free vectors are kept"


@dataclass(frozen=True, kw_only=True)
class PromoteOptions:
    """With ``forced_reason`` the index is written whatever the gate says. ``dry_run`` embeds no
    gallery item, so it measures only where the side file lacks none."""

    forced_reason: str | None = None
    skip_bad: bool = False
    dry_run: bool = False


def promote(
    project: Project, *, options: PromoteOptions | None = None, progress: Progress = silent
) -> Promoted:
    """Embed what the side file lacks, judge the promoted state, and write it.

    Running the same command again does nothing.

    Raises:
        UsageError: the query model's answers are not re-scored, or the project does not let the
            whole gallery pass.
        GateError: the promotion was rolled back, and no reason to force was given.
        EvidenceError: the data has no held-out query, and no reason to force was given.
        InputError: a gallery item has no free vector and no image as it was indexed; or the free
            head alone gives other vectors than the side file has.
        DamagedError: a file of the store is missing or changed.
        ConflictError: the store is locked, or has changed in the meantime: run it again.
    """
    options = options or PromoteOptions()
    store = open_store(project)
    refuse_engine(store.manifest, "promote", RESCORED)
    gallery = DeployedGallery.open(store)
    result = _unchanged(store.manifest, options)
    if _is_promoted(store):
        return result
    data = load_data(project)
    rescorer = rescorer_of(project, gallery, data)
    assert isinstance(rescorer.cache, SideFile)
    passed = _pass(project, gallery)
    require_budget(project, passed, "promote")
    free = FreeRows(side=rescorer.cache, catalog=gallery.catalog)
    missing = free.missing()
    queries = backfill_queries(project, store, data)
    require_queries(
        len(queries),
        forced_reason=options.forced_reason,
        without="what a promotion gains cannot be measured",
    )
    rescorer.find_images(missing)
    _refuse_missing(gallery, rescorer)
    result = replace(
        result,
        outcome="not measured",
        gallery_pass=passed,
        dim=gallery.encoder.free_dim or 0,
        kept=result.rows - len(missing),
        to_embed=len(missing) if options.dry_run else 0,
    )
    if options.dry_run and len(missing):
        return result
    result = replace(result, embedded=rescorer.fill_all(missing, progress))
    _refuse_missing(gallery, rescorer)
    work = _Work(project=project, gallery=gallery, free=free, options=options)
    return work.run(result, data, queries, progress)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """One promotion whose side file lacks nothing."""

    project: Project
    gallery: DeployedGallery
    free: FreeRows
    options: PromoteOptions

    def run(self, result: Promoted, data: Dataset, queries: Rows, progress: Progress) -> Promoted:
        """Measure, and write if the gate passes or is overruled."""
        policy = load_policy(self.project.policy)
        model, difference = free_head(self.gallery, data, self.free)
        result = replace(result, query_model=model.encoder.sha256, difference=difference)
        model.release()
        refuse_rolled_back(
            self.gallery.store,
            model.encoder.sha256,
            self.options.forced_reason,
            evidence="test",
            flags="promote --force",
        )
        ann_queries: AnnQueries | None = None
        if len(queries):
            tried = try_promotion(
                self.gallery,
                self.free,
                data=data,
                rows=queries,
                project=self.project,
                policy=policy,
                skip_bad=self.options.skip_bad,
            )
            if tried is not None:
                trial, ann_queries = tried
                result = replace(result, measured=trial, outcome=trial.check.outcome)
        reason, dry_run = self.options.forced_reason, self.options.dry_run
        if not should_write(result.outcome, reason, dry_run=dry_run):
            return result
        release_memory()
        built = [self._build_index(result.dim, progress)]
        result = replace(result, written=True)
        if ann_queries is not None:
            ann, _ = measure_ann_recall(built[0], result.ef_search, ann_queries)
            result = replace(result, ann=ann, ef_search=ann.ef_needed)
        after = self._commit(built, model, policy_sha256(policy), result)
        return replace(result, generation=after.generation, index_sha256=after.index.sha256)

    def _build_index(self, dim: int, progress: Progress) -> HnswIndex:
        """The index of the free vectors, under the keys of the old one, in its order."""
        store, info = self.gallery.store, self.gallery.manifest.index
        return build_replaced(
            store.verified_path("indexes", info.sha256, fresh=True),
            index_params(info),
            info.count,
            keys=self.gallery.catalog.keys,
            rows_at=self.free.take,
            dim=dim,
            progress=progress,
        )

    def _commit(
        self, built: list[HnswIndex], model: ModelFile, policy: str, result: Promoted
    ) -> Manifest:
        """Write the next generation, without the class registry and report of the old space.

        ``built`` holds the index; it is emptied before the catalogue is changed.
        """
        store, manifest = self.gallery.store, self.gallery.manifest
        with store.transaction(manifest, operation=Operation.PROMOTE) as tx:
            sha256 = tx.put("indexes", built[0].save)
            built.clear()
            share = model.put(tx, rows=result.rows)
            catalog = replace(
                self.gallery.catalog,
                models=(share.sha256,),
                model_of=np.zeros(result.rows, np.int32),
            )
            return tx.commit(
                operation=Operation.PROMOTE,
                created_at=utc_now(),
                query_model=share.sha256,
                index=replace(
                    manifest.index, dim=result.dim, sha256=sha256, ef_search=result.ef_search
                ),
                catalog=tx.put("catalogs", catalog.write),
                models=(share,),
                registry=None,
                policy=policy,
                forced_reason=result.forced_reason,
            )


def _unchanged(manifest: Manifest, options: PromoteOptions) -> Promoted:
    return Promoted(
        generation=manifest.generation,
        query_model_before=manifest.query_model,
        rows=manifest.index.count,
        dim_before=manifest.index.dim,
        dim=manifest.index.dim,
        ef_search=manifest.index.ef_search,
        forced_reason=options.forced_reason,
        index_sha256=manifest.index.sha256,
        calibrated_before=manifest.calibration is not None,
    )


def _is_promoted(store: Store) -> bool:
    """Whether the query model is the free head that a promotion of this gallery made."""
    generation = embedding_space(store, store.manifest)
    if not generation:
        return False
    made = store.generation(generation)
    return made.operation == Operation.PROMOTE and made.query_model == store.manifest.query_model


def _pass(project: Project, gallery: DeployedGallery) -> GalleryPass:
    """What of the gallery will have passed: every row."""
    catalog = gallery.catalog
    made = ModelRows.of(gallery.store, catalog, gallery.manifest.query_model)
    return gallery_pass(
        catalog,
        query_model_record(project, gallery.store),
        made=made.writing(np.arange(len(catalog))),
    )


def _refuse_missing(gallery: DeployedGallery, rescorer: Rescorer) -> None:
    """Refuse a promotion that would leave rows without a free vector: spaces are never mixed.

    Raises:
        InputError: the data has no image of such rows, or not the one that was indexed.
    """
    if len(rows := rescorer.missing):
        ids = [gallery.catalog.ids[row] for row in rows.tolist()]
        raise InputError(
            f"{len(ids)} gallery items have no free vector, and the data does not have them as "
            f"they were indexed, or they do not decode: {listed(ids)}",
            tip="--data with them; compatctl add --changed takes changed ones; compatctl "
            "remove erases items",
        )
