"""Both models and what they make of a data set: the features that a comparison starts from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery, StoredVectors, stored_vectors
from compatctl.deployment.project import open_store
from compatctl.encoder import Encoder, check_steady, embed_together
from compatctl.errors import InputError
from compatctl.evaluation.comparison import PairedEmbeddings
from compatctl.evaluation.gallery import EmbeddedRows, EvaluationGallery, stored_rows_of
from compatctl.evaluation.protocol import (
    PairFeatures,
    QueryGroup,
    group_rows,
    same_dimension,
)
from compatctl.progress import Progress
from compatctl.recipe import Project


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedPair:
    """Features of both models, the rows whose image is bad, and the vectors that were stored."""

    old: PairFeatures
    new: PairFeatures
    bad: set[int]
    stored: StoredVectors | None
    old_sha256: str


def embed_pair(
    data: Dataset,
    groups: Sequence[QueryGroup],
    *,
    encoders: tuple[Encoder, Encoder],
    gallery: DeployedGallery | None,
    skip_bad: bool,
    progress: Progress,
    new_gallery: bool = True,
    extra: Rows | None = None,
) -> EmbeddedPair:
    """Features of what the groups need; nothing is embedded twice, nor what the store holds.

    Without ``new_gallery`` the new model embeds the queries only. ``extra`` rows query and are
    searched besides.
    """
    more = np.zeros(0, np.int64) if extra is None else extra
    queries = np.union1d(group_rows(groups, part="queries"), more)
    searched = np.union1d(group_rows(groups, part="gallery"), more)
    stored = stored_vectors(gallery, data, searched) if gallery else None
    lacking = searched if stored is None else np.setdiff1d(searched, stored.rows)
    by_old = np.union1d(queries, lacking)
    by_new = np.union1d(queries, searched) if new_gallery else queries
    embedded = embed_together(
        encoders,
        data,
        (by_old, by_new),
        skip_bad=skip_bad,
        progress=(prefixed(progress, "old model"), prefixed(progress, "new model")),
    )
    old_all, new_all = (
        np.full((len(data), encoder.dim), np.nan, np.float32) for encoder in encoders
    )
    for features, result in zip((old_all, new_all), embedded, strict=True):
        features[result.rows] = result.features
    old_gallery = old_all
    if stored is not None and len(stored.rows):
        old_gallery = old_all.copy()
        old_gallery[stored.rows] = stored.vectors
    ids = {item.id for result in embedded for item in result.bad}
    return EmbeddedPair(
        old=PairFeatures(query=old_all, gallery=old_gallery),
        new=PairFeatures(query=new_all, gallery=new_all),
        bad={int(row) for row in np.union1d(by_old, by_new) if data.items[row].id in ids},
        stored=stored,
        old_sha256=encoders[0].sha256,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class VerifyEmbeddings:
    """What a verification embeds: the queries (and items of pairs) by both models, the gallery that
    is searched, and by the new model that part of it whose images are at hand."""

    old: EmbeddedRows
    new: EmbeddedRows
    searched: EvaluationGallery
    new_rows: Rows | None
    """(n,) gallery rows, ascending, that the new model embedded; None: it was not to."""
    bad: set[int]
    """Rows of the data whose image could not be embedded."""
    old_sha256: str

    def paired(self, group: QueryGroup) -> PairedEmbeddings:
        """The features of one group."""
        gallery = rows = None
        if self.new_rows is not None:
            gallery = self.new.at(self.searched.of_data[self.new_rows])
            rows = self.new_rows if len(self.new_rows) < len(self.searched) else None
        return PairedEmbeddings(
            old_queries=self.old.at(group.queries),
            new_queries=self.new.at(group.queries),
            old_gallery=self.searched.vectors,
            new_gallery=gallery,
            new_rows=rows,
        )

    def stored(self, data: Dataset, rows: Rows) -> Vectors:
        """(n, D) what the old gallery holds of rows (n,) of the data; else what the old model makes
        of them."""
        at = self.searched.rows_of(data)[rows]
        found = np.empty((len(rows), self.searched.vectors.shape[1]), np.float32)
        found[at >= 0] = self.searched.vectors[at[at >= 0]]
        found[at < 0] = self.old.at(rows[at < 0])
        return found


def embed_for_verify(
    data: Dataset,
    groups: Sequence[QueryGroup],
    *,
    encoders: tuple[Encoder, Encoder],
    gallery: DeployedGallery | None,
    pairs: Rows,
    self_test: bool,
    skip_bad: bool,
    progress: Progress,
) -> VerifyEmbeddings:
    """Embed what the groups need; nothing twice, nor by the old model what the store holds.

    The gallery is the store's, all of it, and what else the data has in the role gallery.
    """
    of_data = stored_rows_of(data, gallery)
    held = of_data[of_data >= 0]
    lacking = np.setdiff1d(group_rows(groups, part="gallery"), held)
    asked = np.union1d(group_rows(groups, part="queries"), pairs)
    by_old = np.union1d(asked, lacking)
    by_new = np.union1d(asked, np.union1d(held, lacking)) if self_test else asked
    made, answers = (
        EmbeddedRows.read(result)
        for result in embed_together(
            encoders,
            data,
            (by_old, by_new),
            skip_bad=skip_bad,
            progress=(prefixed(progress, "old model"), prefixed(progress, "new model")),
        )
    )
    beside = lacking[made.holds(lacking)]
    searched = EvaluationGallery.of(
        data, gallery, EmbeddedRows(rows=beside, features=made.at(beside))
    )
    ids = {*made.bad, *answers.bad}
    at_hand = (searched.of_data >= 0) & answers.holds(searched.of_data)
    return VerifyEmbeddings(
        old=made,
        new=answers,
        searched=searched,
        new_rows=np.flatnonzero(at_hand) if self_test else None,
        bad={int(row) for row in np.union1d(by_old, by_new) if data.items[row].id in ids},
        old_sha256=encoders[0].sha256,
    )


def load_encoders(old: Path, new: Path, data: Dataset) -> tuple[Encoder, Encoder]:
    """Both encoders, of one dimension, each with one answer for one image of the data.

    Raises:
        InputError: a file that is not an encoder, or another dimension.
        UnsteadyError: an answer depends on the batch, or on chance.
    """
    pair = Encoder.load(old), Encoder.load(new)
    same_dimension(pair[0].dim, pair[1].dim)
    for encoder in pair:
        check_steady(encoder, data)
    return pair


def open_deployed(project: Project, old: Encoder) -> DeployedGallery | None:
    """The project's store, where it has one; ``old`` must be its query model.

    Raises:
        InputError: another query model, or something else lies where the store is to be: a store
            that lost its manifest, an empty folder. To search no store then would go unseen.
    """
    if not os.path.lexists(project.store):
        return None
    gallery = DeployedGallery.open(open_store(project))
    serving = gallery.manifest.query_model
    if serving != old.sha256:
        raise InputError(
            f"the old model is {old.sha256[:12]}, but the store's query model is {serving[:12]}",
            tip=f"verify against {gallery.model_path}, or name another --store",
        )
    return gallery


def prefixed(progress: Progress, name: str) -> Progress:
    """The same progress, each stage called by a model's name."""
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)
