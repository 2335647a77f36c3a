"""history: every generation of a store."""

from __future__ import annotations

from dataclasses import dataclass

from compatctl.deployment.project import open_store
from compatctl.manifest import Manifest
from compatctl.recipe import Project


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


def history(project: Project) -> History:
    """List every generation of the store, oldest first.

    Raises:
        InputError: there is no store.
        DamagedError: a manifest is missing or cannot be read.
    """
    manifests = open_store(project).history()
    return History(generations=tuple(_generation(manifest) for manifest in manifests))


def _generation(manifest: Manifest) -> Generation:
    reasons = {"forced": manifest.forced_reason, "again": manifest.again_reason}
    return Generation(
        generation=manifest.generation,
        operation=manifest.operation,
        created_at=manifest.created_at,
        query_model=manifest.query_model,
        index_sha256=manifest.index.sha256,
        rows=manifest.index.count,
        note="; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason),
    )
