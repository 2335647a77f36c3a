"""rollback, status and history: what reads or restores generations without opening a gallery."""

from __future__ import annotations

from dataclasses import dataclass

from compatctl.commands.context import now, open_store
from compatctl.manifest import Manifest
from compatctl.recipe import Project
from compatctl.store import Store, rollback_plan


@dataclass(frozen=True, kw_only=True)
class Status:
    """The current generation; ``shares``: a model's digest -> its share of the gallery's rows."""

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
class RolledBack:
    """``generation`` restores ``restored`` whole; nothing was embedded and no index was written."""

    generation: int
    restored: int
    query_model_before: str
    query_model: str
    index_sha256: str
    discarded_rows: int
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
    )


def history(project: Project) -> History:
    """Every generation of the store."""
    return History(generations=tuple(_line(one) for one in open_store(project).history()))


def rollback(project: Project, *, to: int | None, discard_added: bool, dry_run: bool) -> RolledBack:
    """Restore generation ``to`` (default: the one before the last deploy) as a new generation.

    Raises:
        UsageError: there is no such generation, or nothing to undo.
        ConflictError: items were added since (without ``discard_added``), or the store is locked.
        DamagedError: a file that the generation needs is gone.
    """
    store: Store = open_store(project)
    before = store.manifest
    plan = rollback_plan(store, to=to, discard_added=discard_added)
    after = before if dry_run else store.rollback(to=to, discard_added=discard_added, at=now())
    return RolledBack(
        generation=after.generation,
        restored=plan.target.generation,
        query_model_before=before.query_model,
        query_model=plan.target.query_model,
        index_sha256=plan.target.index.sha256,
        discarded_rows=plan.dropped_rows,
        written=not dry_run,
    )


def _line(manifest: Manifest) -> Generation:
    return Generation(
        generation=manifest.generation,
        operation=manifest.operation,
        created_at=manifest.created_at,
        query_model=manifest.query_model,
        index_sha256=manifest.index.sha256,
        rows=manifest.index.count,
        note=f"forced: {manifest.forced_reason}" if manifest.forced_reason else "",
    )
