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

NEXT_STEPS = {
    "pass": "compatctl deploy",
    "fail": "keep the old model; other routes: gallery anchors in the recipe, compatctl fuse",
    "inconclusive": "hold out more classes and images, then verify again",
}


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
    old_encoder, new_encoder = load_pair(old, new)
    data = load_data(project)
    sha256 = new_encoder.sha256
    seen = training_record.find(new, sha256, named=training, candidate=project.candidate)
    gallery = deployed(project, old_encoder)
    arenas = groups_of(data, seen, allow_seen=allow_seen)
    both = features_of(
        data,
        arenas,
        old=old_encoder,
        new=new_encoder,
        gallery=gallery,
        skip_bad=skip_bad,
        progress=progress,
    )
    found = [evidence(data, without(one, both.bad), both.old, both.new) for one in arenas]
    verdict = judge(policy, found)
    report = Report(
        old=model_id(old, old_encoder),
        new=model_id(new, new_encoder),
        data=data_id(data, arenas, both.bad, project.data),
        store=_store_id(gallery, both.stored),
        policy=policy,
        policy_sha256=policy_sha256(policy),
        groups=tuple(Group.of(one) for one in found),
        verdict=verdict,
        ann=_ann(gallery, both, arenas),
        training_record_sha256=seen.sha256 if seen else None,
        registry_sha256=seen.registry_sha256 if seen else None,
        not_checked=NOT_CHECKED + _unchecked(seen, gallery),
        summary=_summary(verdict),
        next_step=NEXT_STEPS[verdict.outcome],
    )
    if not dry_run:
        write_atomic(project.report, report.to_bytes())
    return report


def load_data(project: Project) -> Dataset:
    """The project's data, split by its rule where the data does not say."""
    return load(need(project.data, "data"), split_rule(project))


def split_rule(project: Project) -> SplitRule:
    """The project's split, for data that does not say."""
    return SplitRule(
        train=project.split.train,
        validation=project.split.validation,
        hold_out_items=project.split.hold_out_items,
    )


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Both:
    """Features of both models, the rows whose image is bad, and how many vectors were stored."""

    old: Features
    new: Features
    bad: set[int]
    stored: int


def features_of(
    data: Dataset,
    arenas: Sequence[Arena],
    *,
    old: Encoder,
    new: Encoder,
    gallery: DeployedGallery | None,
    skip_bad: bool,
    progress: Progress,
    new_gallery: bool = True,
) -> Both:
    """Features of what the arenas need; nothing is embedded twice, nor what the store holds.

    Without ``new_gallery`` the new model embeds the queries only.
    """
    queries, searched = union(arenas, part="queries"), union(arenas, part="gallery")
    stored = stored_vectors(gallery, data, searched) if gallery else None
    by_old = queries
    if stored is None or len(stored.rows) < len(searched):
        lacking = searched if stored is None else np.setdiff1d(searched, stored.rows)
        by_old = np.union1d(queries, lacking)
    by_new = np.union1d(queries, searched) if new_gallery else queries
    say = named(progress, "old model")
    old_all, bad_old = embed_rows(old, data, by_old, skip_bad=skip_bad, progress=say)
    say = named(progress, "new model")
    new_all, bad_new = embed_rows(new, data, by_new, skip_bad=skip_bad, progress=say)
    old_gallery = old_all.copy()
    if stored is not None:
        old_gallery[stored.rows] = stored.vectors
    ids = {*bad_old, *bad_new}
    return Both(
        old=Features(query=old_all, gallery=old_gallery),
        new=Features(query=new_all, gallery=new_all),
        bad={int(row) for row in np.union1d(by_old, by_new) if data.items[row].id in ids},
        stored=len(stored.rows) if stored else 0,
    )


def load_pair(old: Path, new: Path) -> tuple[Encoder, Encoder]:
    """Both encoders, of one dimension."""
    pair = Encoder.load(old), Encoder.load(new)
    same_dimension(*pair)
    return pair


def model_id(path: Path, encoder: Encoder) -> ModelId:
    """A model as the report names it."""
    return ModelId(name=path.name, sha256=encoder.sha256, dim=encoder.dim)


def data_id(data: Dataset, arenas: Sequence[Arena], bad: set[int], source: Path | None) -> DataId:
    """Identity of the compared items: ids, labels, splits, roles and digests of their bytes."""
    rows = np.union1d(union(arenas, part="queries"), union(arenas, part="gallery"))
    kept = [int(row) for row in rows if int(row) not in bad]
    lines = [
        [item.id, item.label, item.split, item.role or "", data.digest(row)]
        for row, item in ((row, data.items[row]) for row in kept)
    ]
    return DataId(
        name=source.name if source else "",
        sha256=sha256_bytes(canonical_json(sorted(lines))),
        items=len(kept),
        skipped=tuple(data.items[row].id for row in sorted(bad)),
    )


def _trained(data: Dataset, row: int, seen: Seen) -> bool:
    if data.items[row].id in seen.ids:
        return True
    digest = data.digest(row)
    return digest in seen.digests or digest in seen.anchor_digests


def deployed(project: Project, old: Encoder) -> DeployedGallery | None:
    """The project's store, where it has one; ``old`` must be its query model."""
    if not (project.store / "manifest.json").exists():
        return None
    gallery = DeployedGallery.open(open_store(project))
    serving = gallery.manifest.query_model
    if serving != old.sha256:
        raise InputError(
            f"the old model is {old.sha256[:12]}, but the store's query model is {serving[:12]}",
            tip=f"verify against {gallery.model_path}, or name another --store",
        )
    return gallery


def _ann(gallery: DeployedGallery | None, both: Both, arenas: Sequence[Arena]) -> AnnHealth | None:
    asked = [row for row in union(arenas, part="queries") if row not in both.bad]
    return ann_health(gallery, both.new.query[asked]) if gallery and asked else None


def _store_id(gallery: DeployedGallery | None, stored: int) -> StoreId | None:
    if gallery is None:
        return None
    return StoreId(
        generation=gallery.manifest.generation,
        index_sha256=gallery.manifest.index.sha256,
        catalog_sha256=gallery.manifest.catalog,
        stored_vectors=stored,
    )


def _unchecked(seen: Seen | None, gallery: DeployedGallery | None) -> tuple[str, ...]:
    record = () if seen else ("leaks: the candidate has no training record",)
    index = () if gallery else ("ANN recall: there is no store",)
    return record + index


def named(progress: Progress, name: str) -> Progress:
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
