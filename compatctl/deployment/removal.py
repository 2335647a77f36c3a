"""One removal: which items leave, which files hold them, and the generation without them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from compatctl.core.arrays import Rows, as_rows
from compatctl.data import memory_bytes, warn_of_near_known
from compatctl.deployment.erasure import clean_side_files, stored_ids
from compatctl.deployment.free_vectors import delete_strangers, free_vectors_of
from compatctl.deployment.gallery import index_params
from compatctl.deployment.project import open_store, utc_now
from compatctl.deployment.rehearsal import stored_memory
from compatctl.errors import InputError
from compatctl.index import HnswIndex, build_without
from compatctl.manifest import Catalog, Erasures, Manifest, Operation
from compatctl.printable import listed
from compatctl.progress import Progress
from compatctl.recipe import Project
from compatctl.store import MODEL_FIELDS, CheckReport, Store, Transaction, sweep


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
        same_image: ids that stay and have the same image as a removed item.
        side_files: changed files beside the store.
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
    oldest_gallery: int
    same_image: tuple[str, ...]
    side_files: tuple[str, ...]
    reports: tuple[str, ...]
    deleted: int
    freed_bytes: int
    written: bool
    warnings: tuple[str, ...] = ()

    def warned(self) -> RemovalResult:
        """The result with warnings: what the user must know or do."""
        warnings = []
        if self.same_image:
            warnings.append(
                f"other items with the same content stay: {listed(self.same_image, 20)}"
            )
        if self.reports:
            warnings.append(f"{len(self.reports)} reports in the store name a removed id, and stay")
        return replace(self, warnings=tuple(warnings))


@dataclass(frozen=True, kw_only=True, eq=False)
class Removal:
    """One removal, computed from one generation."""

    project: Project
    store: Store
    ids: frozenset[str]
    missing_ok: bool

    @cached_property
    def stored(self) -> frozenset[str]:
        """The ids that a kept gallery or memory has."""
        return stored_ids(self.store, self.ids)

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
        return tuple(sorted(self.ids - self.stored - set(self.erased.matching(self.ids))))

    def refuse(self) -> None:
        if self.missing:
            known = self.catalog.ids
            warn_of_near_known("the ids", "ids", self.missing, known, told=("given", "the store"))
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
    def _restorable(self) -> tuple[Manifest, ...]:
        oldest = self.store.manifest.oldest_restorable
        return tuple(m for m in self.store.history() if m.generation >= oldest)

    def planned(self, *, dry_run: bool) -> RemovalResult:
        """The result, as far as it is known before anything is written."""
        current, memory = self.store.manifest, stored_memory(self.store, self.store.manifest)
        changes = bool(self.stored)
        return RemovalResult(
            generation=current.generation + (changes and not dry_run),
            removed=len(self.rows),
            from_memory=len(self.ids.intersection(memory.ids)) if memory is not None else 0,
            free_vectors=free_vectors_of(self.store, self.ids),
            already=len(self.ids) - len(self.stored) - len(self.missing),
            missing=self.missing,
            rows=current.index.count - len(self.rows),
            oldest_gallery=current.generation + 1 if changes else current.oldest_gallery,
            same_image=self._same_image(),
            side_files=(),
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

    def commit(self, progress: Progress) -> CheckReport:
        """Write the next generation, and then delete what only earlier generations name."""
        manifest = self.store.manifest
        built = self._built(progress) if len(self.rows) else None
        with self.store.transaction(manifest, operation=Operation.REMOVE) as tx:
            changes = self._gallery(tx, built) if built is not None else {}
            del built
            changes |= self._memory(tx)
            erased = self.erased.extended(self.ids - set(self.missing))
            tx.commit(
                operation=Operation.REMOVE,
                created_at=utc_now(),
                oldest_gallery=manifest.generation + 1,
                erasures=tx.put("erasures", erased.write),
                **{name: getattr(manifest, name) for name in MODEL_FIELDS} | changes,
            )
            delete_strangers(open_store(self.project))
            return sweep(self.store.path)

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

    def _gallery(self, tx: Transaction, built: HnswIndex) -> dict[str, Any]:
        """The manifest's entries for index, catalogue and models."""
        manifest, catalog = self.store.manifest, self.catalog.drop_rows(self.rows)
        counts = catalog.counts()
        sha256 = tx.put("indexes", built.save)
        return {
            "index": replace(manifest.index, count=len(built), sha256=sha256),
            "catalog": tx.put("catalogs", catalog.write),
            "models": tuple(
                replace(share, rows=counts.get(share.sha256, 0))
                for share in manifest.models
                if counts.get(share.sha256) or share.sha256 == manifest.query_model
            ),
        }

    def _memory(self, tx: Transaction) -> dict[str, Any]:
        memory = stored_memory(self.store, self.store.manifest)
        if memory is None or not self.ids.intersection(memory.ids):
            return {}
        data = memory_bytes(memory.without(self.ids.__contains__))
        return {"memory": tx.put("memories", lambda path: path.write_bytes(data)) if data else None}

    def clean(self, *, dry_run: bool) -> tuple[str, ...]:
        """Remove the items from the files beside the store; returns the files that changed."""
        return clean_side_files(self.project, self.ids.__contains__, dry_run=dry_run)
