"""history: every generation of a store."""

from __future__ import annotations

from dataclasses import dataclass

from compatctl.deployment.project import open_store
from compatctl.deployment.query_model_pass import QueryModelPass, passes
from compatctl.manifest import Manifest
from compatctl.recipe import Project


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One line of the history. ``gallery_pass`` is what of the gallery its query model passed,
    unknown where gc dropped the report."""

    gallery_pass: QueryModelPass
    generation: int
    operation: str
    created_at: str
    query_model: str
    query_model_name: str
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
    store = open_store(project)
    manifests = store.history()
    return History(generations=tuple(map(_generation, manifests, passes(store, manifests))))


def _generation(manifest: Manifest, passed: QueryModelPass) -> Generation:
    reasons = {"forced": manifest.forced_reason, "again": manifest.again_reason}
    return Generation(
        gallery_pass=passed,
        generation=manifest.generation,
        operation=manifest.operation,
        created_at=manifest.created_at,
        query_model=manifest.query_model,
        query_model_name=manifest.query_share.name,
        index_sha256=manifest.index.sha256,
        rows=manifest.index.count,
        note="; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason),
    )
