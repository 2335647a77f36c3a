"""Embed what a comparison needs with both models, and nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Rows, Vectors, as_rows
from compatctl.data import Dataset, Judgments
from compatctl.deployment.gallery import DeployedGallery, stored_vectors
from compatctl.deployment.project import open_store
from compatctl.encoder import Encoder, check_steady, embed_together
from compatctl.errors import InputError
from compatctl.evaluation.comparison import PairedEmbeddings
from compatctl.evaluation.gallery import EmbeddedRows, EvaluationGallery, stored_data_rows
from compatctl.evaluation.protocol import QueryGroup, group_rows, require_roles, same_dimension
from compatctl.evaluation.self_test import self_test_rows
from compatctl.progress import Progress
from compatctl.recipe import Project
from compatctl.store import lies_at


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedPair:
    """Both models' features of rows of a data set; stored vectors in place of the old model's."""

    old: EmbeddedRows
    """The queries, and what the store does not hold."""
    new: EmbeddedRows
    """The queries."""
    stored: EmbeddedRows
    """What the store holds of the searched rows."""
    bad: set[int]
    """Rows whose image could not be embedded."""

    def in_gallery(self, rows: Rows) -> Vectors:
        """(n, D) the stored vectors of rows (n,), and the old model's of those not stored."""
        held = self.stored.holds(rows)
        features = np.empty((len(rows), self.old.features.shape[1]), np.float32)
        features[held] = self.stored.take(rows[held])
        features[~held] = self.old.take(rows[~held])
        return features

    def paired(self, group: QueryGroup) -> PairedEmbeddings:
        """The features of a group without bad rows."""
        return PairedEmbeddings(
            old_queries=self.old.take(group.queries),
            new_queries=self.new.take(group.queries),
            old_gallery=self.in_gallery(group.gallery),
        )


def embed_pair(
    data: Dataset,
    *,
    queries: Rows,
    searched: Rows,
    encoders: tuple[Encoder, Encoder],
    gallery: DeployedGallery | None,
    skip_bad: bool,
    old_gone: bool = False,
    progress: Progress,
) -> EmbeddedPair:
    """Embed the queries with both models, and the searched rows that are not stored with the old
    one. Errors as ``Encoder.embed``.

    ``old_gone``: what has no logged vector of the old model stays without one; a searched row with
    none at all is bad.
    """
    stored = stored_vectors(gallery, data, searched) if gallery else None
    held = EmbeddedRows(
        rows=stored.rows if stored else as_rows(()),
        features=stored.vectors if stored else np.zeros((0, encoders[0].dim), np.float32),
    )
    by_old = np.union1d(queries, np.setdiff1d(searched, held.rows))
    if old_gone:
        by_old = by_old[encoders[0].can_embed(data, by_old)]
    old, new = _embed(data, encoders, (by_old, queries), skip_bad=skip_bad, progress=progress)
    bad = _bad_rows(data, by_old, (old, new))
    if old_gone:
        bad |= {int(row) for row in searched[~(held.holds(searched) | old.holds(searched))]}
    return EmbeddedPair(old=old, new=new, stored=held, bad=bad)


def _embed(
    data: Dataset,
    encoders: tuple[Encoder, Encoder],
    rows: tuple[Rows, Rows],
    *,
    skip_bad: bool,
    free: bool = False,
    progress: Progress,
) -> tuple[EmbeddedRows, EmbeddedRows]:
    """Embed rows with each encoder; an image is decoded once."""
    reports = (prefixed(progress, "old model"), prefixed(progress, "new model"))
    old, new = embed_together(encoders, data, rows, skip_bad=skip_bad, free=free, progress=reports)
    return EmbeddedRows.of(old), EmbeddedRows.of(new)


def _bad_rows(data: Dataset, rows: Rows, embedded: Sequence[EmbeddedRows]) -> set[int]:
    ids = {item for part in embedded for item in part.bad}
    return {int(row) for row in rows if data.items[row].id in ids}


@dataclass(frozen=True, kw_only=True, eq=False)
class VerifyEmbeddings:
    """What a verification embeds: queries and items of pairs with both models, what the store does
    not hold with the old one, and for the self-test the gallery, or a sample, with the new one."""

    old: EmbeddedRows
    new: EmbeddedRows
    gallery: EvaluationGallery
    new_rows: Rows | None
    """(n,) ascending gallery rows that the new model embedded; None: no self-test."""
    bad: set[int]
    """Rows of the data whose image could not be embedded."""
    old_sha256: str

    def paired(self, group: QueryGroup) -> PairedEmbeddings:
        """The features of a group without bad rows."""
        gallery = rows = None
        if self.new_rows is not None:
            gallery = self.new.take(self.gallery.data_rows[self.new_rows])
            rows = self.new_rows if len(self.new_rows) < len(self.gallery) else None
        return PairedEmbeddings(
            old_queries=self.old.take(group.queries),
            new_queries=self.new.take(group.queries),
            old_gallery=self.gallery.vectors,
            new_gallery=gallery,
            new_rows=rows,
            new_free=self.new.take_free(group.queries),
            old_free=self.old.take_free(group.queries),
        )

    def in_gallery(self, data: Dataset, rows: Rows) -> Vectors:
        """(n, D) the gallery's vectors of rows (n,) of the data, else the old model's."""
        position = self.gallery.rows_of(data)[rows]
        features = np.empty((len(rows), self.gallery.vectors.shape[1]), np.float32)
        features[position >= 0] = self.gallery.vectors[position[position >= 0]]
        features[position < 0] = self.old.take(rows[position < 0])
        return features


def embed_for_verify(
    data: Dataset,
    groups: Sequence[QueryGroup],
    *,
    encoders: tuple[Encoder, Encoder],
    gallery: DeployedGallery | None,
    pairs: Rows,
    judged: Judgments | None,
    self_test: bool,
    skip_bad: bool,
    free: bool = False,
    progress: Progress,
) -> VerifyEmbeddings:
    """Embed what the groups and the items of ``pairs`` need; ``free``: free vectors too, of models
    that give them. ``judged`` are the user's judgments, for the sample of the self-test.

    The gallery is the whole store, and every other item of the data that is searched.
    """
    stored = stored_data_rows(data, gallery)
    held = stored[stored >= 0]
    extra = np.setdiff1d(group_rows(groups, part="gallery"), held)
    queries = np.union1d(group_rows(groups, part="queries"), pairs)
    by_old = np.union1d(queries, extra)
    by_new = queries
    if self_test:
        available = np.union1d(held, extra)
        available = available[encoders[1].can_embed(data, available)]
        by_new = np.union1d(queries, self_test_rows(data, available, queries, judged))
    old, new = _embed(
        data, encoders, (by_old, by_new), skip_bad=skip_bad, free=free, progress=progress
    )
    extra = extra[old.holds(extra)]
    searched = EvaluationGallery.build(
        data, gallery, EmbeddedRows(rows=extra, features=old.take(extra))
    )
    by_both = (searched.data_rows >= 0) & new.holds(searched.data_rows)
    return VerifyEmbeddings(
        old=old,
        new=new,
        gallery=searched,
        new_rows=np.flatnonzero(by_both) if self_test else None,
        bad=_bad_rows(data, np.union1d(by_old, by_new), (old, new)),
        old_sha256=encoders[0].sha256,
    )


def load_encoders(old: Path, new: Path, data: Dataset) -> tuple[Encoder, Encoder]:
    """Both encoders, of one dimension, each with one answer for one image of the data.

    Raises:
        InputError: a file that is not an encoder, or another dimension; or as ``require_roles``.
        UnsteadyError: an answer depends on the batch, or on chance.
    """
    pair = Encoder.load(old), Encoder.load(new)
    same_dimension(pair[0].dim, pair[1].dim)
    require_roles(pair, data)
    for encoder in pair:
        check_steady(encoder, data)
    return pair


def open_deployed(project: Project, old: Encoder) -> DeployedGallery | None:
    """The project's store, or None if nothing lies there; ``old`` must be its query model.

    Raises:
        InputError: another query model, or something that is no store: a store that lost its
            manifest, an empty folder. Searching no store then would go unnoticed.
    """
    if not lies_at(project.store):
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
    """Report each stage under a model's name."""
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)
