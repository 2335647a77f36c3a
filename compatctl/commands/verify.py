"""verify: does the candidate satisfy the definition of compatibility, and does it gain?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compatctl.commands import training_record
from compatctl.commands.ann import ann_health
from compatctl.commands.context import need, open_store
from compatctl.commands.evaluation import (
    Arena,
    Features,
    Stored,
    arena_of,
    embed_rows,
    evidence,
    has_roles,
    query_rows,
    same_dimension,
    union,
    without,
)
from compatctl.commands.gallery import DeployedGallery, stored_vectors
from compatctl.commands.report import (
    AnnHealth,
    DataId,
    Group,
    ModelId,
    Report,
    StoreId,
    policy_sha256,
)
from compatctl.commands.training_record import Seen
from compatctl.core.gate import Verdict, judge
from compatctl.data import Dataset, SplitRule, load
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.files import canonical_json, sha256_bytes, write_atomic
from compatctl.progress import Progress, silent
from compatctl.recipe import Project, load_policy

NOT_CHECKED = (
    "confidence intervals of the estimates",
    "far_frr at a deployed threshold",
    "latency",
)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The evidence of every group, and what it was computed from."""

    groups: tuple[Group, ...]
    verdict: Verdict
    data: DataId
    stored: int
    ann: AnnHealth | None


def verify(
    project: Project,
    *,
    old: Path,
    new: Path,
    training: Path | None = None,
    allow_seen: bool = False,
    skip_bad: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> Report:
    """Compare ``new`` with ``old`` on the held-out items of the project's data; write the report.

    Where the project has a store, the gallery is the deployed one: stored vectors are taken by item
    id, and only what is not stored is embedded by ``old``.

    Raises:
        InputError: bad data or model, held-out items that were trained on (without ``allow_seen``),
            or an old model that is not the store's query model.
    """
    policy = load_policy(project.policy)
    old_encoder, new_encoder = Encoder.load(old), Encoder.load(new)
    same_dimension(old_encoder, new_encoder)
    data = load_data(project)
    seen = training_record.find(
        new, new_encoder.sha256, named=training, candidate=project.candidate
    )
    gallery = _deployed(project, old_encoder)
    arenas = groups_of(data, seen, allow_seen=allow_seen)
    queries = union(arenas, part="queries")
    searched = union(arenas, part="gallery")
    stored = stored_vectors(gallery, data, searched) if gallery else None
    old_features, new_features, bad = features_of(
        data,
        queries,
        searched,
        old=old_encoder,
        new=new_encoder,
        stored=stored,
        skip_bad=skip_bad,
        progress=progress,
    )
    arenas = [without(arena, bad) for arena in arenas]
    found = [evidence(data, arena, old_features, new_features) for arena in arenas]
    verdict = judge(policy, found)
    queried = np.array([row for row in queries if row not in bad], np.int64)
    ann = ann_health(gallery, new_features.query[queried]) if gallery and len(queried) else None
    report = Report(
        old=ModelId(name=old.name, sha256=old_encoder.sha256, dim=old_encoder.dim),
        new=ModelId(name=new.name, sha256=new_encoder.sha256, dim=new_encoder.dim),
        data=data_id(data, np.union1d(queries, searched), bad, str(project.data)),
        store=_store_id(gallery, stored),
        policy=policy,
        policy_sha256=policy_sha256(policy),
        groups=tuple(Group.of(one) for one in found),
        verdict=verdict,
        ann=ann,
        training_record_sha256=seen.sha256 if seen else None,
        registry_sha256=seen.registry_sha256 if seen else None,
        not_checked=NOT_CHECKED + _unchecked(seen, gallery),
        summary=_summary(verdict),
        next_step=_next_step(verdict),
    )
    if not dry_run:
        write_atomic(project.report, report.to_bytes())
    return report


def load_data(project: Project) -> Dataset:
    """The project's data, split by its rule where the data does not say."""
    rule = SplitRule(
        train=project.split.train,
        validation=project.split.validation,
        hold_out_items=project.split.hold_out_items,
    )
    return load(need(project.data, "data"), rule)


def groups_of(data: Dataset, seen: Seen | None, *, allow_seen: bool) -> list[Arena]:
    """Held-out queries by what the candidate saw: unseen classes, seen classes, trained items.

    Queries whose class has a gallery anchor and the others are groups of their own besides.
    """
    held_out = query_rows(data, "test")
    if seen is None:
        return [arena_of("unseen", data, held_out)]
    anchored = {item.label for item in data.items if item.id in seen.anchor_ids}
    if not has_roles(data):  # every item queries: one that anchored must not
        keep = [row for row in held_out if data.items[row].id not in seen.anchor_ids]
        held_out = np.array(keep, np.int64)
    trained = [row for row in held_out if _trained(data, int(row), seen)]
    if trained and not allow_seen:
        names = ", ".join(data.items[row].id for row in trained[:3])
        raise InputError(
            f"{len(trained)} of {len(held_out)} held-out queries were trained on: {names} ...",
            tip="hold out other items, or pass --allow-seen to report them apart",
        )
    fresh = np.setdiff1d(held_out, np.array(trained, np.int64))
    labels = np.array([data.items[row].label in seen.classes for row in fresh], bool)
    unseen = fresh[~labels]
    groups = [arena_of("unseen", data, unseen)]
    by_anchor = np.array([data.items[row].label in anchored for row in unseen], bool)
    if by_anchor.any() and not by_anchor.all():
        groups.append(arena_of("unseen, anchored", data, unseen[by_anchor]))
        groups.append(arena_of("unseen, not anchored", data, unseen[~by_anchor]))
    if labels.any():
        groups.append(arena_of("seen", data, fresh[labels]))
    if trained:
        groups.append(arena_of("trained", data, np.array(trained, np.int64)))
    return groups


def features_of(
    data: Dataset,
    queries: np.ndarray,
    searched: np.ndarray,
    *,
    old: Encoder,
    new: Encoder,
    stored: Stored | None,
    skip_bad: bool,
    progress: Progress,
) -> tuple[Features, Features, set[int]]:
    """Features of both models, and the rows whose image was bad. Nothing is embedded twice."""
    stored_rows = stored.rows if stored else np.zeros(0, np.int64)
    by_old = np.union1d(queries, np.setdiff1d(searched, stored_rows))
    old_all, bad_old = embed_rows(
        old, data, by_old, skip_bad=skip_bad, progress=_named(progress, "old model")
    )
    old_gallery = old_all
    if stored is not None:
        old_gallery = old_all.copy()
        old_gallery[stored.rows] = stored.vectors
    by_new = np.union1d(queries, searched)
    new_all, bad_new = embed_rows(
        new, data, by_new, skip_bad=skip_bad, progress=_named(progress, "new model")
    )
    ids = {*bad_old, *bad_new}
    bad = {row for row in by_new.tolist() if data.items[row].id in ids}
    return (
        Features(query=old_all, gallery=old_gallery),
        Features(query=new_all, gallery=new_all),
        bad,
    )


def data_id(data: Dataset, rows: np.ndarray, bad: set[int], name: str) -> DataId:
    """Identity of the compared items: ids, labels, splits, roles and digests of their bytes."""
    kept = [int(row) for row in rows if int(row) not in bad]
    lines = [
        [item.id, item.label, item.split, item.role or "", data.digest(row)]
        for row, item in ((row, data.items[row]) for row in kept)
    ]
    return DataId(
        name=Path(name).name,
        sha256=sha256_bytes(canonical_json(sorted(lines))),
        items=len(kept),
        skipped=tuple(data.items[row].id for row in sorted(bad)),
    )


def _trained(data: Dataset, row: int, seen: Seen) -> bool:
    if data.items[row].id in seen.ids:
        return True
    digest = data.digest(row)
    return digest in seen.digests or digest in seen.anchor_digests


def _deployed(project: Project, old: Encoder) -> DeployedGallery | None:
    if not (project.store / "manifest.json").exists():
        return None
    gallery = DeployedGallery.open(open_store(project))
    deployed = gallery.manifest.query_model
    if deployed != old.sha256:
        raise InputError(
            f"the old model is {old.sha256[:12]}, but the store's query model is {deployed[:12]}",
            tip=f"verify against {gallery.model_path}, or name another --store",
        )
    return gallery


def _store_id(gallery: DeployedGallery | None, stored: Stored | None) -> StoreId | None:
    if gallery is None or stored is None:
        return None
    return StoreId(
        generation=gallery.manifest.generation,
        index_sha256=gallery.manifest.index.sha256,
        catalog_sha256=gallery.manifest.catalog,
        stored_vectors=len(stored.rows),
    )


def _unchecked(seen: Seen | None, gallery: DeployedGallery | None) -> tuple[str, ...]:
    record = () if seen else ("leaks: the candidate has no training record",)
    index = () if gallery else ("ANN recall: there is no store",)
    return record + index


def _named(progress: Progress, name: str) -> Progress:
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)


def _summary(verdict: Verdict) -> str:
    deciding: Sequence[str] = [
        check.name for check in verdict.checks if check.decides and check.outcome == verdict.outcome
    ]
    if verdict.outcome == "pass":
        return "The new model finds more than the old one in the gallery as it is."
    if verdict.outcome == "fail":
        return f"The new model must not be deployed: {', '.join(deciding)} failed."
    return f"The evidence does not settle it: {', '.join(deciding) or 'no check could decide'}."


def _next_step(verdict: Verdict) -> str:
    return {
        "pass": "compatctl deploy",
        "fail": "keep the old model; other routes: gallery anchors in the recipe, compatctl fuse",
    }.get(verdict.outcome, "hold out more classes and images, then verify again")


__all__ = ["Compared", "verify"]
