"""Both models and what they make of a data set: the features that a comparison starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compatctl.commands.context import need, open_store
from compatctl.commands.evaluation import (
    Arena,
    Features,
    Stored,
    embed_rows,
    same_dimension,
    union,
)
from compatctl.commands.gallery import DeployedGallery, stored_vectors
from compatctl.commands.trial import Rows
from compatctl.data import Dataset, SplitRule, load
from compatctl.encoder import Encoder, refuse_unsteady
from compatctl.errors import InputError
from compatctl.progress import Progress
from compatctl.recipe import Project


def load_data(project: Project) -> Dataset:
    """The project's data, split by its rule where the data does not say."""
    return load(need(project.data, "data"), split_rule(project), data_root=project.data_root)


def split_rule(project: Project) -> SplitRule:
    """The project's split, for data that does not say."""
    return SplitRule(
        train=project.split.train,
        validation=project.split.validation,
        hold_out_items=project.split.hold_out_items,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Both:
    """Features of both models, the rows whose image is bad, and the vectors that were stored."""

    old: Features
    new: Features
    bad: set[int]
    stored: Stored | None
    old_sha256: str


def features_of(
    data: Dataset,
    arenas: Sequence[Arena],
    *,
    encoders: tuple[Encoder, Encoder],
    gallery: DeployedGallery | None,
    skip_bad: bool,
    progress: Progress,
    new_gallery: bool = True,
    extra: Rows | None = None,
) -> Both:
    """Features of what the arenas need; nothing is embedded twice, nor what the store holds.

    Without ``new_gallery`` the new model embeds the queries only. ``extra`` rows query and are
    searched besides.
    """
    old, new = encoders
    more = np.zeros(0, np.int64) if extra is None else extra
    queries = np.union1d(union(arenas, part="queries"), more)
    searched = np.union1d(union(arenas, part="gallery"), more)
    stored = stored_vectors(gallery, data, searched) if gallery else None
    lacking = searched if stored is None else np.setdiff1d(searched, stored.rows)
    by_old = np.union1d(queries, lacking)
    by_new = np.union1d(queries, searched) if new_gallery else queries
    say = named(progress, "old model")
    old_all, bad_old = embed_rows(old, data, by_old, skip_bad=skip_bad, progress=say)
    say = named(progress, "new model")
    new_all, bad_new = embed_rows(new, data, by_new, skip_bad=skip_bad, progress=say)
    old_gallery = old_all
    if stored is not None and len(stored.rows):
        old_gallery = old_all.copy()
        old_gallery[stored.rows] = stored.vectors
    ids = {*bad_old, *bad_new}
    return Both(
        old=Features(query=old_all, gallery=old_gallery),
        new=Features(query=new_all, gallery=new_all),
        bad={int(row) for row in np.union1d(by_old, by_new) if data.items[row].id in ids},
        stored=stored,
        old_sha256=old.sha256,
    )


def load_pair(old: Path, new: Path, data: Dataset) -> tuple[Encoder, Encoder]:
    """Both encoders, of one dimension, each with one answer for one image of the data.

    Raises:
        InputError: a file that is not an encoder, or another dimension.
        UnsteadyError: an answer depends on the batch, or on chance.
    """
    pair = Encoder.load(old), Encoder.load(new)
    same_dimension(pair[0].dim, pair[1].dim)
    for encoder in pair:
        refuse_unsteady(encoder, data)
    return pair


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


def named(progress: Progress, name: str) -> Progress:
    """The same progress, each stage called by a model's name."""
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)
