"""rollback: restore an earlier generation, with or without the items added since."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compatctl.deployment.engines import in_engine, open_for_write
from compatctl.deployment.project import utc_now
from compatctl.errors import ConflictError, UsageError
from compatctl.manifest import Manifest
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import Store, embedding_space, restore, rollback_plan

if TYPE_CHECKING:
    from compatctl.deployment.carry_over import AddedItemsPolicy


@dataclass(frozen=True, kw_only=True)
class RollbackResult:
    """``generation`` restores generation ``restored``. Nothing disappears silently.

    Attributes:
        before: the generation that was current; a rollback to it undoes this one.
        added: items that were indexed after the restored generation. Of these, ``kept`` keep
            their vectors, ``re_embedded`` were embedded with the restored model, and ``dropped``
            (ids) left the index.
        reverted: ids of items that had another image or class before the rollback. They have the
            restored vector and class again; ``compatctl add --changed`` brings them up to date.
        written: false for a dry run, and if the store was in the requested state already.
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


def rollback(
    project: Project,
    *,
    to: int | None,
    added: AddedItemsPolicy = "auto",
    dry_run: bool,
    progress: Progress = silent,
) -> RollbackResult:
    """Restore generation ``to`` as a new generation. Default: the one before the last deploy.

    If items were erased since, only the query model is restored, over the current rows.

    Args:
        added: what happens to items that were indexed since. ``auto`` keeps the vectors of models
            that the target has too, and embeds the other items with the restored model; ``keep``
            restores the query model and leaves every row as it is; ``drop`` restores the whole
            gallery.

    Raises:
        UsageError: no such generation, nothing to undo, or ``keep`` across a lift or a promotion.
        ConflictError: the project's data lacks items to re-embed; or the store is locked.
        DamagedError: a file that the generation needs is missing.
    """
    store = open_for_write(project, dry_run=dry_run)
    before = store.manifest
    plan = rollback_plan(store, to=to)
    outcome = _Outcome(after=before)
    if not plan.already_restored:
        if not plan.gallery:
            outcome = _roll_back_model(store, plan.target, added, dry_run=dry_run)
        elif in_engine(before) and plan.target.index.sha256 != before.index.sha256:
            outcome = _roll_back_in_engine(
                project, store, plan.target, added, dry_run=dry_run, progress=progress
            )
        elif plan.target.catalog == before.catalog:
            after = plan.target if dry_run else restore(store, plan.target, created_at=utc_now())
            outcome = _Outcome(after=after)
        else:
            outcome = _roll_back_gallery(
                project, store, plan.target, added, dry_run=dry_run, progress=progress
            )
    return RollbackResult(
        generation=before.generation + (not plan.already_restored),
        before=before.generation,
        restored=plan.target.generation,
        query_model_before=before.query_model,
        query_model=plan.target.query_model,
        index_sha256=outcome.after.index.sha256,
        added=outcome.kept + outcome.re_embedded + len(outcome.dropped),
        kept=outcome.kept,
        re_embedded=outcome.re_embedded,
        dropped=outcome.dropped,
        reverted=outcome.reverted,
        written=not dry_run and not plan.already_restored,
    )


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """``after``: the state that is written; in a dry run, one with its index where that exists."""

    after: Manifest
    kept: int = 0
    re_embedded: int = 0
    dropped: tuple[str, ...] = ()
    reverted: tuple[str, ...] = ()


def _roll_back_model(
    store: Store, target: Manifest, policy: AddedItemsPolicy, *, dry_run: bool
) -> _Outcome:
    """Roll back to a generation whose gallery held items that were erased since."""
    from compatctl.deployment.carry_over import rollback_after_erasure

    after, foreign = rollback_after_erasure(store, target, policy, dry_run=dry_run)
    return _Outcome(after=after, kept=foreign)


def _roll_back_in_engine(
    project: Project,
    store: Store,
    target: Manifest,
    policy: AddedItemsPolicy,
    *,
    dry_run: bool,
    progress: Progress,
) -> _Outcome:
    """Restore what is searched over an application's table, whose own rows stay as they are.

    Where the same rows are adopted, the whole gallery is restored: the side table and its batches
    that the target names. Rows that were adopted since are embedded by its query model, or, where
    the side table is the same, left as they are.
    """
    from compatctl.deployment.carry_over import rollback_query_model
    from compatctl.deployment.side_rollback import SideRollback
    from compatctl.deployment.sides import has_same_rows, has_same_side

    before = store.manifest
    one_space = embedding_space(store, before) == embedding_space(store, target)
    if has_same_rows(store, target) and not (policy == "keep" and one_space):
        return _Outcome(after=target if dry_run else restore(store, target, created_at=utc_now()))
    if policy == "drop":
        raise UsageError(
            "--added drop would delete rows of a table that the application owns",
            tip="--added keep restores the query model and leaves every row as it is",
        )
    if policy == "keep" and not one_space:
        raise UsageError(
            f"the gallery was lifted between generation {target.generation} and now: its query "
            "model cannot search the current rows",
            tip="--added auto with --data embeds the rows that were adopted since",
        )
    if policy == "keep" or (one_space and has_same_side(store, target)):
        _refuse_foreign(before, target, policy)
        after = before if dry_run else rollback_query_model(store, target)
        return _Outcome(after=after, kept=max(0, before.index.count - target.index.count))
    back = SideRollback.of(store, target)
    after = before if dry_run else back.commit(project, progress)
    return _Outcome(after=after, re_embedded=len(back.fresh))


def _refuse_foreign(current: Manifest, target: Manifest, policy: AddedItemsPolicy) -> None:
    known = {model.sha256 for model in target.models}
    foreign = sum(model.rows for model in current.models if model.sha256 not in known)
    if foreign and policy != "keep":
        raise ConflictError(
            f"{foreign} rows of the table are of models that generation {target.generation} does "
            "not have, and were never verified against its query model",
            tip="--added keep restores the query model and leaves every row as it is",
        )


def _roll_back_gallery(
    project: Project,
    store: Store,
    target: Manifest,
    policy: AddedItemsPolicy,
    *,
    dry_run: bool,
    progress: Progress,
) -> _Outcome:
    """Roll back to a generation with another gallery."""
    from compatctl.deployment.carry_over import (
        AddedItems,
        rollback_query_model,
        rollback_with_items,
    )

    added = AddedItems.since(store, target)
    known, foreign = len(added.known), len(added.foreign)
    if policy == "keep" and embedding_space(store, store.manifest) != embedding_space(
        store, target
    ):
        raise UsageError(
            f"the gallery was lifted or promoted between generation {target.generation} and now: "
            f"the query model of generation {target.generation} cannot search the current rows",
            tip="--added auto with --data re-embeds the items added since; --added drop restores "
            "the gallery at once and lists them",
        )
    if policy == "keep":
        after = store.manifest if dry_run else rollback_query_model(store, target)
        return _Outcome(after=after, kept=known + foreign)
    if policy == "drop" or not known + foreign:
        after = target if dry_run else restore(store, target, created_at=utc_now())
        dropped = (*added.ids(added.known), *added.ids(added.foreign))
        return _Outcome(after=after, dropped=dropped, reverted=added.reverted)
    after = rollback_with_items(project, store, target, added, dry_run=dry_run, progress=progress)
    return _Outcome(after=after, kept=known, re_embedded=foreign, reverted=added.reverted)
