"""rollback, status and history: what reads or restores generations without opening a gallery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compatctl.deployment.project import open_store, utc_now
from compatctl.errors import UsageError
from compatctl.manifest import Manifest
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import Store, manifest_digest, restore, rollback_plan, space_of

AddedItemsPolicy = Literal["auto", "keep", "drop"]
"""What becomes of items that were indexed after the generation that a rollback restores."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """The current generation; ``shares``: a model's digest -> its share of the gallery's rows.

    ``calibrated``: ``search`` maps the query model's scores to the scale of an earlier one.
    ``registry`` and ``memory`` are the digests of the class registry and of the rehearsal memory.
    ``proven`` is false where rows were adopted and never compared with what their model makes.
    ``head`` is the digest of the generation, which pins every one before it; ``oldest`` the first
    generation that can be restored, and ``whole_from`` the first whose gallery can: items were
    erased since the ones before it.
    """

    store: str
    generation: int
    operation: str
    created_at: str
    query_model: str
    rows: int
    dim: int
    shares: dict[str, float]
    index_sha256: str
    ef_search: int
    report: str | None
    forced_reason: str | None
    again_reason: str | None
    registry: str | None
    memory: str | None
    proven: bool
    calibrated: bool
    head: str
    oldest: int
    whole_from: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user must know."""
        unseen = "the index was adopted and never compared with what its model makes"
        return () if self.proven else (f"{unseen}: compatctl verify compares them",)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One line of the history."""

    generation: int
    operation: str
    created_at: str
    query_model: str
    index_sha256: str
    rows: int
    note: str


@dataclass(frozen=True, kw_only=True)
class History:
    """Every generation, oldest first."""

    generations: tuple[Generation, ...]


@dataclass(frozen=True, kw_only=True)
class RollbackResult:
    """``generation`` restores ``restored``; no item is lost without being named.

    Of the ``added`` items that were indexed since then, ``kept`` keep their vectors,
    ``re_embedded`` were embedded by the restored model, and ``dropped`` (ids) are no longer in the
    index; a rollback to generation ``before`` brings them back. ``reverted`` items (ids) have the
    vector and class of then again, though their image or class was another one today: compatctl add
    --changed brings them up to date. ``written`` is false for a dry run, and where the store was as
    asked already.
    """

    generation: int
    before: int
    restored: int
    query_model_before: str
    query_model: str
    index_sha256: str
    added: int
    kept: int
    re_embedded: int
    dropped: tuple[str, ...]
    reverted: tuple[str, ...]
    written: bool


def status(project: Project) -> Status:
    """Which model answers, over which gallery."""
    manifest = open_store(project).manifest
    rows = max(1, manifest.index.count)
    return Status(
        store=str(project.store),
        generation=manifest.generation,
        operation=manifest.operation,
        created_at=manifest.created_at,
        query_model=manifest.query_model,
        rows=manifest.index.count,
        dim=manifest.index.dim,
        shares={model.sha256: model.rows / rows for model in manifest.models},
        index_sha256=manifest.index.sha256,
        ef_search=manifest.index.ef_search,
        report=manifest.report,
        forced_reason=manifest.forced_reason,
        again_reason=manifest.again_reason,
        registry=manifest.registry,
        memory=manifest.memory,
        proven=all(one.proven for one in manifest.models if one.rows),
        calibrated=manifest.calibration is not None,
        head=manifest_digest(manifest),
        oldest=manifest.oldest,
        whole_from=manifest.whole_from,
    )


def history(project: Project) -> History:
    """Every generation of the store."""
    return History(generations=tuple(_generation(one) for one in open_store(project).history()))


def rollback(
    project: Project,
    *,
    to: int | None,
    added: AddedItemsPolicy = "auto",
    dry_run: bool,
    progress: Progress = silent,
) -> RollbackResult:
    """Restore generation ``to`` (default: the one before the last deploy) as a new generation.

    ``added`` says what becomes of items that were indexed since: ``auto`` keeps those whose vectors
    are of a model that the target has, and embeds the others with the restored model; ``keep``
    restores the query model and leaves every row as it is; ``drop`` restores the gallery whole.
    Where items were erased since, only the query model is restored, over the rows of today.

    Raises:
        UsageError: there is no such generation, nothing to undo, or ``keep`` across a lift.
        ConflictError: items to embed again are not in the project's data; or the store is locked.
        DamagedError: a file that the generation needs is gone.
    """
    store = open_store(project)
    before = store.manifest
    plan = rollback_plan(store, to=to)
    model = before.restorable_model(plan.target)
    moved = _Outcome(after=before)
    if not plan.done:
        if not plan.gallery:
            moved = _roll_back_model(store, plan.target, added, dry_run=dry_run)
        elif plan.target.catalog == before.catalog:
            moved = _Outcome(after=before if dry_run else restore(store, plan.target, at=utc_now()))
        else:
            moved = _roll_back_gallery(
                project, store, plan.target, added, dry_run=dry_run, progress=progress
            )
    return RollbackResult(
        generation=moved.after.generation,
        before=before.generation,
        restored=plan.target.generation,
        query_model_before=before.query_model,
        query_model=model.sha256 if model else plan.target.query_model,
        index_sha256=moved.after.index.sha256,
        added=moved.kept + moved.re_embedded + len(moved.dropped),
        kept=moved.kept,
        re_embedded=moved.re_embedded,
        dropped=moved.dropped,
        reverted=moved.reverted,
        written=not dry_run and not plan.done,
    )


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    after: Manifest
    kept: int = 0
    re_embedded: int = 0
    dropped: tuple[str, ...] = ()
    reverted: tuple[str, ...] = ()


def _roll_back_model(
    store: Store, target: Manifest, keeping: AddedItemsPolicy, *, dry_run: bool
) -> _Outcome:
    """The rollback to a generation whose gallery held items that were erased since."""
    from compatctl.deployment.carry_over import rollback_after_erasure

    after, foreign = rollback_after_erasure(
        store, target, keep=keeping == "keep", drop=keeping == "drop", dry_run=dry_run
    )
    return _Outcome(after=after, kept=foreign)


def _roll_back_gallery(
    project: Project,
    store: Store,
    target: Manifest,
    keeping: AddedItemsPolicy,
    *,
    dry_run: bool,
    progress: Progress,
) -> _Outcome:
    """The rollback where the galleries differ; what it needs is loaded here, and only then."""
    from compatctl.deployment.carry_over import (
        AddedItems,
        rollback_query_model,
        rollback_with_items,
    )

    added = AddedItems.since(store, target)
    known, foreign = len(added.known), len(added.foreign)
    if keeping == "keep" and space_of(store, store.manifest) != space_of(store, target):
        raise UsageError(
            f"the gallery was lifted between generation {target.generation} and now: the query "
            "model of then cannot search the rows of now",
            tip="--added auto with --data embeds the items added since again; --added drop "
            "restores the gallery at once and names them",
        )
    if keeping == "keep":
        after = store.manifest if dry_run else rollback_query_model(store, target)
        return _Outcome(after=after, kept=known + foreign)
    if keeping == "drop" or not known + foreign:
        after = store.manifest if dry_run else restore(store, target, at=utc_now())
        dropped = (*added.ids(added.known), *added.ids(added.foreign))
        return _Outcome(after=after, dropped=dropped, reverted=added.reverted)
    after = rollback_with_items(project, store, target, added, dry_run=dry_run, progress=progress)
    return _Outcome(after=after, kept=known, re_embedded=foreign, reverted=added.reverted)


def _generation(manifest: Manifest) -> Generation:
    reasons = {"forced": manifest.forced_reason, "again": manifest.again_reason}
    return Generation(
        generation=manifest.generation,
        operation=manifest.operation,
        created_at=manifest.created_at,
        query_model=manifest.query_model,
        index_sha256=manifest.index.sha256,
        rows=manifest.index.count,
        note="; ".join(f"{why}: {reason}" for why, reason in reasons.items() if reason),
    )
