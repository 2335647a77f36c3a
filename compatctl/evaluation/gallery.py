"""The gallery that queries search: every row of the store, then rows embedded for the evaluation.

The store gives the searched rows with their vectors and the catalogue's labels; the evaluation data
say who queries and what is relevant. A row that both label differently has no label here: its
vector may be of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from compatctl.core.arrays import NO_CLASS, Bools, Rows, Vectors, as_rows
from compatctl.core.measurements import DECIDING_GROUP
from compatctl.core.training_overlap import (
    TrainingOverlap,
    touched_share_by_class,
    touched_share_judged,
)
from compatctl.data import Dataset, Judgments
from compatctl.deployment.data import has_classes
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Embedded, Encoder, embed_together
from compatctl.evaluation.clusters import all_columns, columns_of
from compatctl.evaluation.ground_truth import GroundTruth, reembedded_half
from compatctl.evaluation.ignored_rows import Column, shared_columns
from compatctl.evaluation.protocol import QueryGroup
from compatctl.progress import Progress, silent


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedRows:
    """Unit features (n, D) of the ascending ``rows`` (n,) of a data set.

    ``free`` (n, D_free): the encoder's free vectors of them, if they were requested.
    """

    rows: Rows
    features: Vectors
    bad: tuple[str, ...] = ()
    """Ids whose image could not be embedded."""
    free: Vectors | None = None

    @classmethod
    def embed(
        cls,
        encoder: Encoder,
        data: Dataset,
        rows: Rows,
        *,
        skip_bad: bool = False,
        looks: bool = False,
        free: bool = False,
        progress: Progress = silent,
    ) -> Self:
        """Embed the ascending rows (n,) of the data; errors as ``Encoder.embed``."""
        (result,) = embed_together(
            (encoder,),
            data,
            (rows,),
            skip_bad=skip_bad,
            looks=looks,
            free=free,
            progress=(progress,),
        )
        return cls.of(result)

    @classmethod
    def of(cls, result: Embedded) -> Self:
        """An encoder's result on rows of a data set."""
        bad = tuple(item.id for item in result.bad)
        return cls(rows=result.rows, features=result.features, bad=bad, free=result.free)

    def holds(self, rows: Rows) -> Bools:
        """(m,) whether each of the rows (m,) has a feature."""
        return np.isin(rows, self.rows)

    def take(self, rows: Rows) -> Vectors:
        """(m, D) features of the rows (m,), each of which has one."""
        if len(rows) == len(self.rows) and np.array_equal(rows, self.rows):
            return self.features
        return self.features[np.searchsorted(self.rows, rows)]

    def take_free(self, rows: Rows) -> Vectors | None:
        """(m, D_free) free vectors of the rows (m,), each of which has one; None: not requested."""
        return None if self.free is None else self.free[np.searchsorted(self.rows, rows)]


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationGallery:
    """G rows: the store's in the catalogue's order, then those that the old model embedded."""

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    """(G,) empty where the class is unknown."""
    vectors: Vectors
    """(G, D)"""
    n_stored: int
    data_rows: Rows
    """(G,) the row of the data that is the same item, -1: none, so its image is unavailable."""
    conflicts: tuple[str, ...]
    """Ids that the data and the catalogue label differently."""

    @classmethod
    def build(cls, data: Dataset, gallery: DeployedGallery | None, extra: EmbeddedRows) -> Self:
        """The store's rows, and the ``extra`` items of the data, which the store does not hold."""
        catalog = gallery.catalog if gallery else None
        stored_ids, stored_labels = (catalog.ids, catalog.labels) if catalog else ((), ())
        data_rows = np.concatenate([stored_data_rows(data, gallery), extra.rows])
        labels, conflicts = _labels(data, stored_ids, stored_labels, data_rows)
        n, vectors = len(stored_ids), extra.features
        if gallery is not None:
            vectors = gallery.vectors(extra_capacity=len(extra.rows))
            vectors[n:] = extra.features
        return cls(
            ids=(*stored_ids, *(data.items[row].id for row in extra.rows)),
            labels=labels,
            vectors=vectors,
            n_stored=n,
            data_rows=data_rows,
            conflicts=conflicts,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def extra_ids(self) -> tuple[str, ...]:
        """Ids of the rows that are not the store's."""
        return self.ids[self.n_stored :]

    def rows_of(self, data: Dataset) -> Rows:
        """(N,) the gallery row of each row of the data, -1: it is not searched."""
        rows = np.full(len(data), -1, np.int64)
        here = np.flatnonzero(self.data_rows >= 0)
        rows[self.data_rows[here]] = here
        return rows

    def ground_truth(
        self,
        data: Dataset,
        group: QueryGroup,
        judged: Judgments | None = None,
        record: TrainingRecord | None = None,
    ) -> GroundTruth:
        """What is relevant to the group's queries, and what is unknown.

        With ``judged`` pairs only those are relevant; a row that is neither in the data nor in a
        pair is of unknown relevance. For the deciding group ``record`` says which rows training
        passed through the new model.
        """
        items = [data.items[row] for row in group.queries]
        unavailable = self.data_rows < 0
        truth = GroundTruth.from_labels(
            query_ids=[item.id for item in items],
            query_labels=[item.label for item in items],
            gallery_ids=self.ids,
            gallery_labels=self.labels,
            cluster=columns_of(data, group.queries, group.cluster),
            judged=judged,
            columns=all_columns(data, group.queries),
            slices=group.slices,
            reembedded=self._reembedded,
        )
        unjudged = truth.gallery_labels == NO_CLASS
        if judged is not None:
            judged_items = frozenset(judged.item_ids)
            in_pair = np.fromiter((item in judged_items for item in self.ids), bool, len(self))
            unjudged = unavailable & ~in_pair
        overlap = None
        if record is not None and group.name == DECIDING_GROUP:
            overlap = self._training_overlap(record, truth)
        return replace(
            truth,
            unjudged=unjudged if unjudged.any() else None,
            training_overlap=overlap,
            image_unavailable=unavailable if unavailable.any() else None,
        )

    @cached_property
    def _reembedded(self) -> Bools:
        """(G,) about half of the rows whose image is available: others cannot be re-embedded."""
        half, available = np.zeros(len(self), dtype=bool), np.flatnonzero(self.data_rows >= 0)
        half[available] = reembedded_half(self.ids[row] for row in available)
        return half

    def shared(self, data: Dataset, group: QueryGroup, names: Sequence[str]) -> dict[str, Column]:
        """``shared_columns`` of the group's queries and of the gallery."""
        return shared_columns(data, names, group.queries, self.data_rows)

    def _training_overlap(self, record: TrainingRecord, truth: GroundTruth) -> TrainingOverlap:
        """The share of each query's relevant rows that training passed through the new model, and
        the share of the rows of classes that it did not train on."""
        passed, codes = record.has_seen(self.ids), truth.gallery_labels
        trained = {label: record.knows_class(label) for label in {*self.labels}} | {"": False}
        others = passed[np.fromiter((not trained[label] for label in self.labels), bool, len(self))]
        if truth.judged is None:
            share = touched_share_by_class(truth.query_labels, codes, truth.self_row, passed)
        else:
            share = touched_share_judged(*truth.judged, passed, len(truth.query_labels))
        return TrainingOverlap(
            of_query=share, of_gallery=float(others.mean()) if len(others) else 1.0
        )


def stored_data_rows(data: Dataset, gallery: DeployedGallery | None) -> Rows:
    """(N,) the row of the data that is the item of each stored row, -1: none; empty: no store."""
    if gallery is None:
        return as_rows(())
    row_of = data.row_of
    return as_rows(row_of.get(item, -1) for item in gallery.catalog.ids)


def _labels(
    data: Dataset, stored_ids: Sequence[str], stored_labels: Sequence[str], data_rows: Rows
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(G,) labels, and the ids of the stored rows that the data label differently."""
    labels = [*stored_labels, *[""] * (len(data_rows) - len(stored_labels))]
    conflicts, own_classes = [], not has_classes(data)
    for row in np.flatnonzero(data_rows >= 0).tolist():
        label = data.labels[data_rows[row]]
        if labels[row] and own_classes:  # the store knows more
            continue
        if labels[row] not in {"", label}:
            conflicts.append(stored_ids[row])
            label = ""
        labels[row] = label
    return tuple(labels), tuple(conflicts)
