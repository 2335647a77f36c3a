"""lift: the stored vectors mapped forward into an independent encoder's space: a new index.

The other way round than bridge, from the same pairs: the gallery moves, and the new encoder, as it
is, becomes the query model. Nothing but the pairs is embedded. A mapped row's model is a file of
its own: the one that embedded it, with the map behind it. Measured before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from compatctl.core.arrays import Rows
from compatctl.core.policy import Policy
from compatctl.data import Dataset
from compatctl.deployment.bulk_embedding import release_memory
from compatctl.deployment.data import load_data
from compatctl.deployment.erasure import refuse_erased_vectors
from compatctl.deployment.gallery import DeployedGallery, index_params
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.project import open_store, utc_now
from compatctl.deployment.record_files import find_record
from compatctl.encoder import refuse_unsteady
from compatctl.errors import UsageError
from compatctl.evaluation.ann import AnnQueries, measure_ann_recall
from compatctl.index import HnswIndex, build_mapped
from compatctl.manifest import Manifest, Operation
from compatctl.migration import rewrite_gate
from compatctl.migration.adapters import AUTO, Fitted, check_asked, fit
from compatctl.migration.alignment import AlignmentSet, alignment_set, pair_rows
from compatctl.migration.lift_result import Lifted, LiftMap
from compatctl.migration.lift_trial import LiftTrial, held_out, try_lift
from compatctl.migration.lifted_models import LiftedModelFile, lifted_model_files
from compatctl.migration.rewrite_gate import HeldOutQueries, Outcome
from compatctl.progress import Progress, silent
from compatctl.recipe import Project, load_policy
from compatctl.report import policy_sha256
from compatctl.store import Store, embedding_space


@dataclass(frozen=True, kw_only=True)
class LiftOptions:
    """``share``: of the gallery's items that may be pairs, by the hash of the id; ``seed``: of the
    mlp; ``training``: the new encoder's training record, where it is not beside it;
    ``forced_reason``: write whatever the gate says, and why."""

    kind: str = AUTO
    share: float = 1.0
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
    """Fit every map of the kind asked for, keep the one that finds most, map the gallery by it.

    The same command again does nothing.

    Raises:
        UsageError: an unknown kind, a share outside 0 .. 1, or the new encoder is the query model,
            or embedded rows of the gallery.
        EvidenceError: the data has no held-out query, and no reason to force was given.
        InputError: no store, bad data or model, no pair, no validation query to choose with, no
            torch for the kind mlp; or a file does not give the vectors that it would stand for.
        DamagedError: a file of the store is missing or changed.
        ConflictError: the store is locked, or moved on meanwhile: run it again.
    """
    asked = options or LiftOptions()
    check_asked(asked.kind, asked.share)
    store, policy, model = open_store(project), load_policy(project.policy), ModelFile.read(new)
    result = _as_it_is(store.manifest, model, asked)
    if _is_lifted(store, model.encoder.sha256):
        return result
    _refuse_own(store.manifest, model.encoder.sha256)
    refuse_erased_vectors(store, model.data, model.path)
    work = _Work(project=project, store=store, model=model, policy=policy, asked=asked)
    result, plan = work.tried(result, progress)
    if not result.written:
        return result
    release_memory()
    built = [work.build_mapped(plan, progress)]
    if plan.index_asked is not None:
        ann, _ = measure_ann_recall(built[0], store.manifest.index.ef_search, plan.index_asked)
        result = replace(result, ann=ann, ef_search=ann.ef_needed)
    after = work.commit(built, plan, result)
    return replace(result, generation=after.generation, index_sha256=after.index.sha256)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """The map, the files that the mapped rows are of, and queries to try the new index with."""

    fitted: Fitted
    owners: list[LiftedModelFile]
    index_asked: AnnQueries | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """One lift of which it is known that there is something to do."""

    project: Project
    store: Store
    model: ModelFile
    policy: Policy
    asked: LiftOptions

    def tried(self, result: Lifted, progress: Progress) -> tuple[Lifted, _Plan]:
        """Fit, choose and measure; beside the result what is needed to write it."""
        asked, new = self.asked, self.model
        data, gallery = load_data(self.project), DeployedGallery.open(self.store)
        seen = find_record(
            new.path,
            new.encoder,
            named=asked.training,
            candidate=self.project.candidate,
        )
        refuse_unsteady(new.encoder, data)
        pairs = pair_rows(data, gallery, asked.share, skip_bad=asked.skip_bad)
        queries = held_out(data, seen, pairs)
        self._need(len(queries))
        ground = alignment_set(
            data, gallery, new.encoder, pairs, skip_bad=asked.skip_bad, progress=progress
        )
        fitted = fit(
            ground.target,
            ground.source,
            judge=ground.lifted_recall,
            kind=asked.kind,
            seed=asked.seed,
            progress=progress,
        )
        owners = lifted_model_files(gallery, data, fitted.adapter, pairs)
        trial, index_asked = self._measured(data, gallery, queries, fitted)
        new.release()
        outcome: Outcome = trial.verdict.outcome if trial else "not measured"
        go = rewrite_gate.should_write(outcome, asked.forced_reason)
        found = replace(
            result,
            map=_told(data, ground, fitted),
            models=tuple(one.told for one in owners),
            measured=trial,
            outcome=outcome,
            skipped=ground.skipped,
            written=go and not asked.dry_run,
        )
        return found, _Plan(fitted=fitted, owners=owners, index_asked=index_asked)

    def _measured(
        self, data: Dataset, gallery: DeployedGallery, rows: Rows, fitted: Fitted
    ) -> tuple[LiftTrial | None, AnnQueries | None]:
        old, new = (
            HeldOutQueries.embedded(
                one,
                data,
                rows,
                skip_bad=self.asked.skip_bad,
                cluster=self.project.cluster,
                ignore_same=self.project.ignore_same,
            )
            for one in (gallery.encoder, self.model.encoder)
        )
        self._need(len(old.ids))
        if not len(old.ids):
            return None, None
        adapter, catalog = fitted.adapter, gallery.catalog
        return try_lift(self.store, catalog, adapter, old=old, new=new, policy=self.policy)

    def _need(self, queries: int) -> None:
        rewrite_gate.require_queries(
            queries,
            forced_reason=self.asked.forced_reason,
            without="what a lift gains cannot be measured",
        )

    def build_mapped(self, plan: _Plan, progress: Progress) -> HnswIndex:
        """The new index; all of the old one is read."""
        info = self.store.manifest.index
        return build_mapped(
            self.store.verified_path("indexes", info.sha256, fresh=True),
            index_params(info),
            info.count,
            adapter=plan.fitted.adapter,
            dim=self.model.dim,
            progress=progress,
        )

    def commit(self, built: list[HnswIndex], plan: _Plan, result: Lifted) -> Manifest:
        """The next generation. ``built`` holds the index, and is emptied before the catalogue is
        read. What was known of the old space (class registry, report) does not hold any more."""
        manifest = self.store.manifest
        with self.store.transaction(manifest, operation=Operation.LIFT) as tx:
            sha256 = tx.put("indexes", built[0].save)
            built.clear()
            shares = {one.told.of: one.candidate.put(tx, rows=one.told.rows) for one in plan.owners}
            catalog = self.store.catalog().with_models(
                {model: share.sha256 for model, share in shares.items()}
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


def _as_it_is(manifest: Manifest, model: ModelFile, asked: LiftOptions) -> Lifted:
    return Lifted(
        generation=manifest.generation,
        query_model_before=manifest.query_model,
        query_model=model.encoder.sha256,
        rows=manifest.index.count,
        dim_before=manifest.index.dim,
        dim=model.dim,
        map=None,
        models=(),
        measured=None,
        ann=None,
        ef_search=manifest.index.ef_search,
        outcome="nothing to do",
        forced_reason=asked.forced_reason,
        index_sha256=manifest.index.sha256,
        skipped=(),
        written=False,
    )


def _told(data: Dataset, ground: AlignmentSet, fitted: Fitted) -> LiftMap:
    return LiftMap(
        kind=fitted.best.kind,
        setting=fitted.best.setting,
        recall=fitted.best.recall,
        old_recall=ground.recall(ground.old_queries),
        validation_queries=len(ground.queries),
        pairs=ground.origins,
        anchors=ground.anchors(data),
        trials=fitted.trials,
        left_out=fitted.left_out,
    )


def _is_lifted(store: Store, sha256: str) -> bool:
    """Whether the gallery is in the space of the model with this digest, by an earlier lift."""
    if store.manifest.query_model != sha256:
        return False
    at = embedding_space(store, store.manifest)
    return at > 0 and store.generation(at).query_model == sha256


def _refuse_own(manifest: Manifest, sha256: str) -> None:
    rows = sum(one.rows for one in manifest.models if one.sha256 == sha256)
    if rows or manifest.query_model == sha256:
        raise UsageError(
            f"this model is deployed over the gallery as it is, and embedded {rows} of its "
            f"{manifest.index.count} rows: it searches these rows, and needs no map of them",
            tip="compatctl deploy and compatctl backfill go on; compatctl rollback undoes a deploy",
        )
