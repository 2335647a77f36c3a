"""One removal: which items leave, which files hold them, and the generation without them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from compatctl.core.arrays import Checksums, Rows, as_rows
from compatctl.data import memory_bytes
from compatctl.deployment.erasure import (
    Traces,
    clean_side_files,
    in_gallery,
    removed_vectors,
    traces_of,
)
from compatctl.deployment.free_vectors import delete_strangers, free_vectors_of
from compatctl.deployment.gallery import index_params
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.project import open_store, utc_now
from compatctl.deployment.rehearsal import stored_memory
from compatctl.encoder import Canary, held_vectors, without_vectors
from compatctl.errors import InputError
from compatctl.index import HnswIndex, build_without, row_checksums
from compatctl.manifest import Catalog, Erasures, Manifest, ModelShare, Operation, StandIn
from compatctl.printable import listed
from compatctl.progress import Progress
from compatctl.recipe import Project
from compatctl.store import MODEL_FIELDS, CheckReport, Store, Transaction, sweep


@dataclass(frozen=True, kw_only=True)
class RewrittenModel:
    """A model whose file held ``vectors`` of removed items, and the file without them.

    ``difference``: the largest L2 distance between the two files' embeddings of the canary.
    """

    name: str
    before: str
    sha256: str
    vectors: int
    difference: float


@dataclass(frozen=True, kw_only=True)
class RemovalResult:
    """What left the store, or in a dry run what would leave.

    Attributes:
        removed: rows that left the gallery; ``rows`` remain.
        from_memory: images that left the rehearsal memory.
        free_vectors: vectors that left the side files.
        already: how many ids were erased before.
        missing: ids that the store does not have.
        oldest_gallery: earlier generations can be restored as query models only.
        erased_models: digests of models that held vectors of removed items. A ``rewritten`` file
            replaces such a model; without one, its generations cannot be restored.
        same_image: ids that stay and have the same image as a removed item.
        side_files: changed files beside the store.
        candidates: files that hold vectors of erased items; deploy refuses them.
        reports: digests of reports in the store that name a removed id, and stay.
        deleted: how many files were deleted.
    """

    generation: int
    removed: int
    from_memory: int
    free_vectors: int
    already: int
    missing: tuple[str, ...]
    rows: int
    query_model_before: str
    query_model: str
    rewritten: tuple[RewrittenModel, ...]
    oldest_gallery: int
    erased_models: tuple[str, ...]
    same_image: tuple[str, ...]
    side_files: tuple[str, ...]
    candidates: tuple[str, ...]
    reports: tuple[str, ...]
    deleted: int
    freed_bytes: int
    written: bool
    warnings: tuple[str, ...] = ()

    def warned(self) -> RemovalResult:
        """The result with warnings: what the user must know or do."""
        warnings = []
        if self.same_image:
            warnings.append(f"other items with the same image stay: {listed(self.same_image, 20)}")
        if self.query_model != self.query_model_before:
            warnings.append(
                "the query model's file was rewritten without the removed items' vectors: its "
                "embeddings differ by up to "
                f"{max(model.difference for model in self.rewritten):.3g} on the canary's images; "
                "verify measures the effect"
            )
        if self.candidates:
            warnings.append(
                f"{listed(self.candidates, 20)} holds vectors of removed items and will not be "
                "deployed: fine-tune again"
            )
        if self.reports:
            warnings.append(f"{len(self.reports)} reports in the store name a removed id, and stay")
        return replace(self, warnings=tuple(warnings))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rewrite:
    """A model that stays, its file without the removed vectors, and their checksums."""

    share: ModelShare
    file: ModelFile
    summary: RewrittenModel
    checksums: Checksums


@dataclass(frozen=True, kw_only=True, eq=False)
class Removal:
    """One removal, computed from one generation."""

    project: Project
    store: Store
    ids: frozenset[str]
    missing_ok: bool

    @cached_property
    def traces(self) -> Traces:
        return traces_of(self.store, self.ids)

    @cached_property
    def catalog(self) -> Catalog:
        return self.store.catalog()

    @cached_property
    def rows(self) -> Rows:
        """The rows of the current catalogue that leave."""
        return as_rows(row for row, item in enumerate(self.catalog.ids) if item in self.ids)

    @cached_property
    def erased(self) -> Erasures:
        """What was erased before."""
        return self.store.erasures() or Erasures.empty()

    @cached_property
    def missing(self) -> tuple[str, ...]:
        return tuple(sorted(self.ids - self.traces.ids - set(self.erased.matching(self.ids))))

    def refuse(self) -> None:
        if self.missing and not self.missing_ok:
            raise InputError(
                f"{len(self.missing)} of {len(self.ids)} ids are not in the store: "
                f"{listed(self.missing, 20)}",
                tip="nothing was removed; --missing-ok removes the others",
            )
        if len(self.rows) and len(self.rows) == len(self.catalog):
            raise InputError(
                f"all {len(self.rows)} rows would be removed: a gallery needs at least one",
                tip="delete the store's folder, and create another with compatctl init",
            )

    @cached_property
    def rewrites(self) -> tuple[_Rewrite, ...]:
        """Models that hold vectors of removed items: current ones, then those of earlier
        generations whose vectors can be taken out."""
        current = [rewrite for share in self.shares if (rewrite := self._rewrite(share))]
        return (*current, *(rewrite for rewrite in self._earlier.values() if rewrite is not None))

    @cached_property
    def _earlier(self) -> dict[str, _Rewrite | None]:
        """Digest -> rewrite of each model that only a rollback needs and that cannot stay as it is.

        None if nothing says which vectors must go.
        """
        current = self.store.manifest
        shares = {
            share.sha256: share
            for manifest in self._restorable
            if (share := current.restorable_model(manifest)) is not None
        }
        shares |= {entry.model.sha256: entry.model for entry in current.stand_ins}
        rewrites: dict[str, _Rewrite | None] = {}
        for sha256 in shares.keys() - {share.sha256 for share in self.shares}:
            try:
                rewrite = self._rewrite(shares[sha256])
            except InputError:  # nothing says whose its vectors are, or none would be left
                rewrites[sha256] = None
                continue
            if rewrite is not None:
                rewrites[sha256] = rewrite
        return rewrites

    @cached_property
    def _restorable(self) -> tuple[Manifest, ...]:
        oldest = self.store.manifest.oldest_restorable
        return tuple(m for m in self.store.history() if m.generation >= oldest)

    @cached_property
    def shares(self) -> tuple[ModelShare, ...]:
        """The models that stay, with their remaining rows."""
        manifest = self.store.manifest
        counts = self.catalog.drop_rows(self.rows).counts()
        return tuple(
            replace(share, rows=counts.get(share.sha256, 0))
            for share in manifest.models
            if counts.get(share.sha256) or share.sha256 == manifest.query_model
        )

    def _rewrite(self, share: ModelShare) -> _Rewrite | None:
        masks = removed_vectors(
            self.project,
            self.store,
            share.sha256,
            ids=self.ids,
            checksums=self.traces.checksums,
            name=share.name,
        )
        count = sum(int(removed.sum()) for removed in masks.values())
        if not count:
            return None
        path = self.store.blob_path("models", share.sha256)
        data = without_vectors(path.read_bytes(), Path(share.name), masks)
        file = ModelFile(path=Path(share.name), data=data)
        canary = Canary.read(self.store.verified_path("canaries", share.canary))
        summary = RewrittenModel(
            name=share.name,
            before=share.sha256,
            sha256=file.encoder.sha256,
            vectors=count,
            difference=canary.difference(file.encoder),
        )
        file.release()
        checksums = [
            row_checksums(table.vectors[masks[table.name]])
            for table in held_vectors(path.read_bytes(), path)
        ]
        return _Rewrite(
            share=share, file=file, summary=summary, checksums=np.concatenate(checksums)
        )

    @cached_property
    def erased_models(self) -> tuple[str, ...]:
        """Digests of all models that may not be kept, of this removal and earlier ones."""
        current = {*self._earlier, *(rewrite.summary.before for rewrite in self.rewrites)}
        return tuple(sorted(current | set(self.store.manifest.erased_models)))

    def planned(self, *, dry_run: bool) -> RemovalResult:
        """The result, as far as it is known before anything is written."""
        current, memory = self.store.manifest, stored_memory(self.store, self.store.manifest)
        changes = bool(self.traces.ids)
        rewritten = tuple(rewrite.summary for rewrite in self.rewrites) if changes else ()
        model = {model.before: model.sha256 for model in rewritten}.get(
            current.query_model, current.query_model
        )
        return RemovalResult(
            generation=current.generation + (changes and not dry_run),
            removed=len(self.rows),
            from_memory=len(self.ids.intersection(memory.ids)) if memory is not None else 0,
            free_vectors=free_vectors_of(self.store, self.ids),
            already=len(self.ids) - len(self.traces.ids) - len(self.missing),
            missing=self.missing,
            rows=current.index.count - len(self.rows),
            query_model_before=current.query_model,
            query_model=model,
            rewritten=rewritten,
            oldest_gallery=current.generation + 1 if changes else current.oldest_gallery,
            erased_models=self.erased_models if changes else current.erased_models,
            same_image=self._same_image(),
            side_files=(),
            candidates=(),
            reports=self._reports(),
            deleted=0,
            freed_bytes=0,
            written=False,
        )

    def _same_image(self) -> tuple[str, ...]:
        """Ids that stay and whose image has the same bytes as a removed item's."""
        digests, removed = self.catalog.digests, set(self.rows.tolist())
        known = self.catalog.digest_known
        images = {digests[row].tobytes() for row in removed if known[row]}
        if not images:
            return ()
        return tuple(
            item
            for row, item in enumerate(self.catalog.ids)
            if row not in removed and known[row] and digests[row].tobytes() in images
        )

    def _reports(self) -> tuple[str, ...]:
        """Digests of reports of kept generations that name a removed id."""
        names = {json.dumps(item).encode() for item in self.ids}
        names |= {json.dumps(item, ensure_ascii=False).encode() for item in self.ids}
        digests = sorted({m.report for m in self._restorable if m.report is not None})
        texts = {
            sha256: self.store.verified_path("reports", sha256).read_bytes() for sha256 in digests
        }
        return tuple(sha256 for sha256, text in texts.items() if any(n in text for n in names))

    def checksums(self) -> Checksums:
        """Checksums of removed vectors that belong to no remaining row."""
        held = [self.traces.checksums, *(rewrite.checksums for rewrite in self.rewrites)]
        checksums = np.unique(np.concatenate(held))
        stays = in_gallery(
            self.store, self.store.manifest, checksums, but=self.catalog.keys[self.rows]
        )
        erased: Checksums = checksums[~stays]
        return erased

    def commit(self, progress: Progress) -> CheckReport:
        """Write the next generation, and then delete what only earlier generations name."""
        manifest, checksums, models = self.store.manifest, self.checksums(), self.erased_models
        rewrites = self.rewrites
        built = self._built(progress) if len(self.rows) else None
        with self.store.transaction(manifest, operation=Operation.REMOVE) as tx:
            new = {rewrite.summary.before: self._put(tx, rewrite) for rewrite in rewrites}
            changes = self._gallery(tx, built, new)
            del built
            changes |= self._memory(tx)
            erased = self.erased.extended(self.ids - set(self.missing), checksums)
            tx.commit(
                operation=Operation.REMOVE,
                created_at=utc_now(),
                erased_models=models,
                stand_ins=self._stand_ins(new),
                oldest_gallery=manifest.generation + 1,
                erasures=tx.put("erasures", erased.write),
                **{name: getattr(manifest, name) for name in MODEL_FIELDS} | changes,
            )
            delete_strangers(open_store(self.project))
            return sweep(self.store.path)

    def _put(self, tx: Transaction, rewrite: _Rewrite) -> ModelShare:
        share = rewrite.share
        entry = rewrite.file.put(tx, rows=share.rows)
        return replace(entry, proven=share.proven, name=share.name)

    def _stand_ins(self, new: Mapping[str, ModelShare]) -> tuple[StandIn, ...]:
        """The replacement of each erased model: its file rewritten now, or an earlier replacement
        that may stay."""
        models = {sha256: replace(share, rows=0) for sha256, share in new.items()}
        for entry in self.store.manifest.stand_ins:
            if entry.model.sha256 in new:
                models[entry.replaces] = models[entry.model.sha256]
            elif entry.model.sha256 not in self.erased_models:
                models[entry.replaces] = entry.model
        return tuple(
            StandIn(replaces=sha256, model=model) for sha256, model in sorted(models.items())
        )

    def finish(self) -> CheckReport:
        """Delete what a killed removal left. No generation is made."""
        with self.store.transaction(self.store.manifest, operation=Operation.REMOVE):
            delete_strangers(self.store)
            return sweep(self.store.path)

    def _built(self, progress: Progress) -> HnswIndex:
        info = self.store.manifest.index
        return build_without(
            self.store.verified_path("indexes", info.sha256, fresh=True),
            index_params(info),
            info.count,
            keys=self.catalog.keys[self.rows],
            progress=progress,
        )

    def _gallery(
        self, tx: Transaction, built: HnswIndex | None, new: Mapping[str, ModelShare]
    ) -> dict[str, Any]:
        """The manifest's entries for index, catalogue and models."""
        manifest, changes = self.store.manifest, dict[str, Any]()
        if built is not None:
            sha256 = tx.put("indexes", built.save)
            changes["index"] = replace(manifest.index, count=len(built), sha256=sha256)
        shares = [new.get(share.sha256, share) for share in self.shares]
        names = {old.sha256: new.sha256 for old, new in zip(self.shares, shares, strict=True)}
        catalog = self.catalog.drop_rows(self.rows)
        if names.keys() & new.keys():
            catalog = catalog.with_models(names)
            changes["query_model"] = names[manifest.query_model]
        if len(self.rows) or "query_model" in changes:
            changes["catalog"] = tx.put("catalogs", catalog.write)
        return {**changes, "models": tuple(shares)}

    def _memory(self, tx: Transaction) -> dict[str, Any]:
        memory = stored_memory(self.store, self.store.manifest)
        if memory is None or not self.ids.intersection(memory.ids):
            return {}
        data = memory_bytes(memory.without(self.ids.__contains__))
        return {"memory": tx.put("memories", lambda path: path.write_bytes(data)) if data else None}

    def clean(self, *, dry_run: bool) -> tuple[str, ...]:
        """Remove the items from the files beside the store; returns the files that changed."""
        current = open_store(self.project).manifest
        names = {entry.replaces: entry.model.sha256 for entry in current.stand_ins}
        if dry_run and self.traces.ids:
            names |= {rewrite.summary.before: rewrite.summary.sha256 for rewrite in self.rewrites}
        return clean_side_files(self.project, self.ids.__contains__, names, dry_run=dry_run)
