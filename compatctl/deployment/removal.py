"""One removal: what is to leave, what holds it, and the generation without it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from compatctl.core.arrays import Checksums
from compatctl.data import memory_bytes
from compatctl.deployment.erasure import (
    Masks,
    Traces,
    clean_side_files,
    in_gallery,
    removed_vectors,
    traces_of,
    without_ids,
)
from compatctl.deployment.gallery import index_params
from compatctl.deployment.model_file import ModelFile
from compatctl.deployment.project import open_store, utc_now
from compatctl.deployment.rehearsal import stored_memory
from compatctl.encoder import Canary, held_vectors, without_vectors
from compatctl.errors import InputError
from compatctl.index import HnswIndex, marks_of_rows, reduced
from compatctl.manifest import Catalog, Erasures, ModelShare, StandIn
from compatctl.progress import Progress
from compatctl.recipe import Project
from compatctl.store import OF_THE_MODEL, CheckReport, Store, Transaction, sweep

_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class RewrittenModel:
    """A model whose file held ``vectors`` of removed items, and the file without them.

    ``difference``: the largest L2 distance between the two files' answers to the canary's images.
    """

    name: str
    before: str
    sha256: str
    vectors: int
    difference: float


@dataclass(frozen=True, kw_only=True)
class RemovalResult:
    """What left the store; for a dry run what would.

    ``removed`` rows of the gallery and ``from_memory`` images of the rehearsal memory; ``already``
    ids were erased before; ``missing`` (ids) were not there. ``rows`` are left. Generations before
    ``whole_from`` can be restored as query models only. Where that is one of ``erased_models``
    (digests), which held vectors of removed items, the ``rewritten`` file takes its place, and the
    generation cannot be restored where there is none.
    ``same_image``: ids that stay and have the very image of a removed one. ``side_files`` beside
    the store were changed; ``candidates`` hold vectors of erased items and will not be deployed;
    ``reports`` (digests) in the store name a removed id, and stay. ``deleted`` files went.
    """

    generation: int
    removed: int
    from_memory: int
    already: int
    missing: tuple[str, ...]
    rows: int
    query_model_before: str
    query_model: str
    rewritten: tuple[RewrittenModel, ...]
    whole_from: int
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
        """The same, with what a person must know or do besides."""
        found = []
        if self.same_image:
            found.append(f"other items with the very same image stay: {listed(self.same_image)}")
        if self.query_model != self.query_model_before:
            found.append(
                "the query model's file was written again without the removed items' vectors: its "
                "answers differ by up to "
                f"{max(one.difference for one in self.rewritten):.3g} on the canary's images; "
                "verify measures what that means"
            )
        if self.candidates:
            found.append(
                f"{listed(self.candidates)} holds vectors of removed items and will not be "
                "deployed: fine-tune again"
            )
        if self.reports:
            found.append(f"{len(self.reports)} reports in the store name a removed id, and stay")
        return replace(self, warnings=tuple(found))


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = "" if len(names) <= _SHOWN else f" and {len(names) - _SHOWN} more"
    return ", ".join(names[:_SHOWN]) + more


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rewrite:
    """A model that stays, and its file without the removed vectors."""

    share: ModelShare
    candidate: ModelFile
    told: RewrittenModel
    marks: Checksums


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
    def rows(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The rows of today's catalogue that leave."""
        found = [row for row, one in enumerate(self.catalog.ids) if one in self.ids]
        return np.array(found, np.int64)

    @cached_property
    def erased(self) -> Erasures:
        """What was erased before."""
        return self.store.erasures() or Erasures.none()

    @cached_property
    def missing(self) -> tuple[str, ...]:
        return tuple(sorted(self.ids - self.traces.found - set(self.erased.holding(self.ids))))

    def refuse(self) -> None:
        if self.missing and not self.missing_ok:
            raise InputError(
                f"{len(self.missing)} of {len(self.ids)} ids are not in the store: "
                f"{listed(self.missing)}",
                tip="nothing was removed; --missing-ok removes the others",
            )
        if len(self.rows) and len(self.rows) == len(self.catalog):
            raise InputError(
                f"all {len(self.rows)} rows would go: a gallery needs one at least",
                tip="delete the store's folder, and begin another with compatctl init",
            )

    @cached_property
    def rewrites(self) -> tuple[_Rewrite, ...]:
        """The models that stay and hold vectors of removed items, by the order of the manifest;
        then those of earlier generations, where the vectors can be taken out of them."""
        today = [found for one in self.shares if (found := self._rewrite(one)) is not None]
        return (*today, *(one for one in self._way_back.values() if one is not None))

    @cached_property
    def _way_back(self) -> dict[str, _Rewrite | None]:
        """By digest, the models that only a rollback needs and that cannot stay as they are; None
        where nobody can say which vectors are to go."""
        current = self.store.manifest
        kept = [one for one in self.store.history() if one.generation >= current.oldest]
        shares = {
            model.sha256: model
            for one in kept
            if (model := current.restorable_model(one)) is not None
        }
        shares |= {one.model.sha256: one.model for one in current.stand_ins}
        found: dict[str, _Rewrite | None] = {}
        for sha256 in shares.keys() - {one.sha256 for one in self.shares}:
            try:
                made = self._rewrite(shares[sha256])
            except InputError:  # nothing says whose its vectors are, or none would be left
                found[sha256] = None
                continue
            if made is not None:
                found[sha256] = made
        return found

    @cached_property
    def shares(self) -> tuple[ModelShare, ...]:
        """The models that stay, with the rows that they then have."""
        manifest = self.store.manifest
        counts = self.catalog.without(self.rows).counts()
        return tuple(
            replace(one, rows=counts.get(one.sha256, 0))
            for one in manifest.models
            if counts.get(one.sha256) or one.sha256 == manifest.query_model
        )

    def _rewrite(self, share: ModelShare) -> _Rewrite | None:
        masks = self._masks(share.sha256, share.name)
        count = sum(int(gone.sum()) for gone in masks.values())
        if not count:
            return None
        path = self.store.path_of("models", share.sha256)
        data = without_vectors(path.read_bytes(), Path(share.name), masks)
        made = ModelFile(path=Path(share.name), data=data)
        canary = Canary.read(self.store.verified("canaries", share.canary))
        told = RewrittenModel(
            name=share.name,
            before=share.sha256,
            sha256=made.encoder.sha256,
            vectors=count,
            difference=canary.difference(made.encoder),
        )
        made.release()
        marks = [
            marks_of_rows(one.vectors[masks[one.name]])
            for one in held_vectors(path.read_bytes(), path)
        ]
        return _Rewrite(share=share, candidate=made, told=told, marks=np.concatenate(marks))

    def _masks(self, sha256: str, name: str) -> Masks:
        return removed_vectors(
            self.project,
            self.store,
            sha256,
            ids=self.ids,
            marks=self.traces.marks,
            name=name,
        )

    @cached_property
    def erased_models(self) -> tuple[str, ...]:
        """The models that may not be kept, those of before among them."""
        current = {*self._way_back, *(one.told.before for one in self.rewrites)}
        return tuple(sorted(current | set(self.store.manifest.erased_models)))

    def planned(self, *, dry_run: bool) -> RemovalResult:
        """The result as far as it is known before anything is written."""
        current, memory = self.store.manifest, stored_memory(self.store, self.store.manifest)
        goes = bool(self.traces.found)
        told = tuple(one.told for one in self.rewrites) if goes else ()
        model = {one.before: one.sha256 for one in told}.get(
            current.query_model, current.query_model
        )
        return RemovalResult(
            generation=current.generation + (goes and not dry_run),
            removed=len(self.rows),
            from_memory=len(self.ids.intersection(memory.ids)) if memory is not None else 0,
            already=len(self.ids) - len(self.traces.found) - len(self.missing),
            missing=self.missing,
            rows=current.index.count - len(self.rows),
            query_model_before=current.query_model,
            query_model=model,
            rewritten=told,
            whole_from=current.generation + 1 if goes else current.whole_from,
            erased_models=self.erased_models if goes else current.erased_models,
            same_image=self._same_image(),
            side_files=(),
            candidates=(),
            reports=self._reports(),
            deleted=0,
            freed_bytes=0,
            written=False,
        )

    def _same_image(self) -> tuple[str, ...]:
        """Ids that stay, and whose image has the very bytes of a removed one's."""
        digests, gone = self.catalog.digests, set(self.rows.tolist())
        known = self.catalog.known
        images = {digests[row].tobytes() for row in gone if known[row]}
        if not images:
            return ()
        return tuple(
            item
            for row, item in enumerate(self.catalog.ids)
            if row not in gone and known[row] and digests[row].tobytes() in images
        )

    def _reports(self) -> tuple[str, ...]:
        """Reports of kept generations in which a removed id is written."""
        names = {json.dumps(one).encode() for one in self.ids}
        names |= {json.dumps(one, ensure_ascii=False).encode() for one in self.ids}
        kept = [one for one in self.store.history() if one.generation >= self.store.manifest.oldest]
        digests = sorted({one.report for one in kept if one.report is not None})
        texts = {one: self.store.verified("reports", one).read_bytes() for one in digests}
        return tuple(one for one, text in texts.items() if any(name in text for name in names))

    def marks(self) -> Checksums:
        """Those marks of removed vectors that are of no row which stays."""
        held = [self.traces.marks, *(one.marks for one in self.rewrites)]
        marks = np.unique(np.concatenate(held))
        stays = in_gallery(self.store, self.store.manifest, marks, but=self.catalog.keys[self.rows])
        found: Checksums = marks[~stays]
        return found

    def commit(self, progress: Progress) -> CheckReport:
        """The next generation, and then the deletion of what only earlier ones name."""
        manifest, marks, models = self.store.manifest, self.marks(), self.erased_models
        rewrites = self.rewrites
        built = self._built(progress) if len(self.rows) else None
        with self.store.transaction(manifest, operation="remove") as tx:
            new = {one.told.before: self._put(tx, one) for one in rewrites}
            changes = self._gallery(tx, built, new)
            del built
            changes |= self._memory(tx)
            erased = self.erased.extended(self.ids - set(self.missing), marks)
            tx.commit(
                operation="remove",
                created_at=utc_now(),
                erased_models=models,
                stand_ins=self._stand_ins(new),
                whole_from=manifest.generation + 1,
                erased=tx.put("erasures", erased.write),
                **{name: getattr(manifest, name) for name in OF_THE_MODEL} | changes,
            )
            return sweep(self.store.path)

    def _put(self, tx: Transaction, one: _Rewrite) -> ModelShare:
        return replace(
            one.candidate.put(tx, rows=one.share.rows),
            proven=one.share.proven,
            name=one.share.name,
        )

    def _stand_ins(self, new: Mapping[str, ModelShare]) -> tuple[StandIn, ...]:
        """Of every erased model, what stands in its place: one that was written again now, or the
        one of before where that may stay."""
        found = {one: replace(model, rows=0) for one, model in new.items()}
        for one in self.store.manifest.stand_ins:
            if one.model.sha256 in new:
                found[one.of] = found[one.model.sha256]
            elif one.model.sha256 not in self.erased_models:
                found[one.of] = one.model
        return tuple(StandIn(of=one, model=model) for one, model in sorted(found.items()))

    def finish(self) -> CheckReport:
        """Delete what an earlier removal that was killed has left; no generation is made."""
        with self.store.transaction(self.store.manifest, operation="remove"):
            return sweep(self.store.path)

    def _built(self, progress: Progress) -> HnswIndex:
        info = self.store.manifest.index
        return reduced(
            self.store.verified("indexes", info.sha256, fresh=True),
            index_params(info),
            info.count,
            keys=self.catalog.keys[self.rows],
            progress=progress,
        )

    def _gallery(
        self, tx: Transaction, built: HnswIndex | None, new: Mapping[str, ModelShare]
    ) -> dict[str, Any]:
        """The manifest's entries of index, catalogue and models."""
        manifest, changes = self.store.manifest, dict[str, Any]()
        if built is not None:
            sha256 = tx.put("indexes", built.save)
            changes["index"] = replace(manifest.index, count=len(built), sha256=sha256)
        shares = [new.get(one.sha256, one) for one in self.shares]
        names = {old.sha256: new.sha256 for old, new in zip(self.shares, shares, strict=True)}
        catalog = self.catalog.without(self.rows)
        if names.keys() & new.keys():
            catalog = catalog.renamed(names)
            changes["query_model"] = names[manifest.query_model]
        if len(self.rows) or "query_model" in changes:
            changes["catalog"] = tx.put("catalogs", catalog.write)
        return {**changes, "models": tuple(shares)}

    def _memory(self, tx: Transaction) -> dict[str, Any]:
        memory = stored_memory(self.store, self.store.manifest)
        if memory is None or not self.ids.intersection(memory.ids):
            return {}
        kept = without_ids(memory, self.ids.__contains__)
        return {"memory": tx.put("memories", _writing(memory_bytes(kept))) if len(kept) else None}

    def clean(self, *, dry_run: bool) -> tuple[str, ...]:
        """Take the items out of the files beside the store too; the files changed."""
        current = open_store(self.project).manifest
        names = {one.of: one.model.sha256 for one in current.stand_ins}
        if dry_run and self.traces.found:
            names |= {one.told.before: one.told.sha256 for one in self.rewrites}
        return clean_side_files(self.project, self.ids.__contains__, names, dry_run=dry_run)


def _writing(data: bytes) -> Callable[[Path], None]:
    def write(target: Path) -> None:
        target.write_bytes(data)

    return write
