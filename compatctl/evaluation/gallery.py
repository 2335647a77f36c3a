"""The gallery that queries search: every row of the store, and what is embedded beside it.

The store says what is searched, with its stored vectors and the catalogue's labels; the evaluation
data says who queries and what is relevant. A row that both label differently has no label here:
nobody can know whether the vector is of what the data says, or of what the catalogue says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from compatctl.core.arrays import NO_CLASS, Bools, Rows, Vectors, as_rows
from compatctl.core.measurements import DECIDING_GROUP
from compatctl.core.training_overlap import (
    TrainingOverlap,
    trained_share_by_class,
    trained_share_judged,
)
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Embedded, Encoder, embed_together
from compatctl.evaluation.clusters import all_columns, column_codes, columns_of, resampling_units
from compatctl.evaluation.ground_truth import GroundTruth, reembedded_half
from compatctl.evaluation.ignored_rows import Column, shared_columns
from compatctl.evaluation.protocol import QueryGroup, RelevancePairs, judged_rows
from compatctl.progress import Progress, silent


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedRows:
    """Unit features (n, D) of ascending ``rows`` (n,) of a data set; ``bad``: ids that failed."""

    rows: Rows
    features: Vectors
    bad: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        data: Dataset,
        rows: Rows,
        *,
        skip_bad: bool = False,
        progress: Progress = silent,
    ) -> Self:
        """The rows (n,), ascending, less those that failed; errors as ``Encoder.embed``."""
        (result,) = embed_together(
            (encoder,), data, (rows,), skip_bad=skip_bad, progress=(progress,)
        )
        return cls.read(result)

    @classmethod
    def read(cls, result: Embedded) -> Self:
        """An encoder's result on rows of a data set."""
        bad = tuple(item.id for item in result.bad)
        return cls(rows=result.rows, features=result.features, bad=bad)

    def holds(self, rows: Rows) -> Bools:
        """(m,) whether there is a feature of each of the rows (m,)."""
        return np.isin(rows, self.rows)

    def at(self, rows: Rows) -> Vectors:
        """(m, D) features of rows (m,), all of which it holds."""
        if len(rows) == len(self.rows) and np.array_equal(rows, self.rows):
            return self.features
        return self.features[np.searchsorted(self.rows, rows)]


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationGallery:
    """G rows: those of the store in the catalogue's order, then those embedded by the old model.

    ``labels``: "" where nobody knows. ``of_data`` (G,): the row of the data that is the same item,
    -1: none, so that its image is not at hand. ``conflicts``: ids that the data and the catalogue
    label differently. ``names``: every label of the gallery and of the data, in their order.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    vectors: Vectors
    n_stored: int
    of_data: Rows
    conflicts: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, data: Dataset, gallery: DeployedGallery | None, beside: EmbeddedRows) -> Self:
        """The store's rows, and ``beside`` them items of the data that the store does not hold."""
        stored_ids = gallery.catalog.ids if gallery else ()
        of_data = np.concatenate([stored_rows_of(data, gallery), beside.rows])
        theirs = gallery.catalog.labels if gallery else ()
        labels, conflicts = _labels(data, stored_ids, theirs, of_data)
        n, vectors = len(stored_ids), beside.features
        if gallery is not None:
            vectors = gallery.vectors(extra_capacity=len(beside.rows))
            vectors[n:] = beside.features
        return cls(
            ids=(*stored_ids, *(data.items[row].id for row in beside.rows)),
            labels=labels,
            vectors=vectors,
            n_stored=n,
            of_data=of_data,
            conflicts=conflicts,
            names=tuple(sorted({*labels, *data.labels} - {""})),
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def beside(self) -> tuple[str, ...]:
        """Ids of the rows that are not the store's."""
        return self.ids[self.n_stored :]

    @cached_property
    def codes(self) -> Rows:
        """(G,) class codes, the place of the label among ``names``, or ``NO_CLASS``."""
        code = self._code | {"": NO_CLASS}
        return as_rows(code[label] for label in self.labels)

    @cached_property
    def _code(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(self.names)}

    def rows_of(self, data: Dataset) -> Rows:
        """(N,) the gallery row of each row of the data, -1: it is not searched."""
        found = np.full(len(data), -1, np.int64)
        here = np.flatnonzero(self.of_data >= 0)
        found[self.of_data[here]] = here
        return found

    def truth(
        self,
        data: Dataset,
        group: QueryGroup,
        judged: RelevancePairs | None,
        seen: TrainingRecord | None,
    ) -> GroundTruth:
        """What is relevant to the group's queries, and what nobody knows.

        With ``judged`` pairs relevance is theirs alone, and a row that the data does not hold and
        that no pair names is of unknown relevance. ``seen`` says which rows were touched, for the
        group that decides.
        """
        query_labels = as_rows(self._code[data.labels[row]] for row in group.queries)
        self_row = self.rows_of(data)[group.queries]
        pairs = asked = None
        unjudged = self.codes == NO_CLASS
        if judged is not None:
            names = [data.items[row].id for row in group.queries]
            pairs = judged_rows(judged, names, self.ids)
            ever = {query for query, _ in judged}
            asked = np.array([name in ever for name in names], bool)
            named = {item for _, item in judged}
            unjudged = self.of_data < 0
            unjudged &= ~np.fromiter((one in named for one in self.ids), bool, len(self))
        touched = None
        if seen is not None and group.name == DECIDING_GROUP:
            touched = self._touched(seen, query_labels, self_row, pairs)
        columns = columns_of(data, group.queries, group.cluster)
        units = resampling_units(query_labels, columns, judged=judged is not None)
        return GroundTruth(
            classes=units.classes,
            query_labels=query_labels,
            gallery_labels=self.codes,
            self_row=self_row,
            judged=pairs,
            reembedded=self.reembedded,
            slices=group.slices,
            unit=units.unit,
            columns=column_codes(query_labels, all_columns(data, group.queries)),
            asked=asked,
            unjudged=unjudged if unjudged.any() else None,
            training_overlap=touched,
            unseen_image=None if (self.of_data >= 0).all() else self.of_data < 0,
        )

    def shared(self, data: Dataset, group: QueryGroup, names: Sequence[str]) -> dict[str, Column]:
        """``shared_columns`` of the group's queries and of the searched rows."""
        return shared_columns(data, names, group.queries, self.of_data)

    @cached_property
    def reembedded(self) -> Bools:
        """(G,) about half of the rows whose image is at hand: the others cannot be re-embedded."""
        found = np.zeros(len(self), dtype=bool)
        here = np.flatnonzero(self.of_data >= 0)
        found[here] = reembedded_half(self.ids[row] for row in here)
        return found

    def _touched(
        self,
        seen: TrainingRecord,
        query_labels: Rows,
        self_row: Rows,
        judged: tuple[Rows, Rows] | None,
    ) -> TrainingOverlap:
        """Which share of each query's relevant rows training passed through the new model, and of
        the rows that can be relevant to any of them: those of classes that it did not train on."""
        rows = seen.has_seen(self.ids)
        trained = as_rows(at for at, name in enumerate(self.names) if seen.knows_class(name))
        others = rows[~np.isin(self.codes, trained)]
        if judged is None:
            of_query = trained_share_by_class(query_labels, self.codes, self_row, rows)
        else:
            of_query = trained_share_judged(*judged, rows, len(query_labels))
        share = float(others.mean()) if len(others) else 1.0
        return TrainingOverlap(of_query=of_query, of_gallery=share)


def stored_rows_of(data: Dataset, gallery: DeployedGallery | None) -> Rows:
    """(N,) the row of the data that is the item of each stored row, -1: none; empty: no store."""
    if gallery is None:
        return as_rows(())
    return places(gallery.catalog.ids, data.row_of)


def places(ids: Iterable[str], of: Mapping[str, int]) -> Rows:
    """What ``of`` says of each id, -1 where it says nothing: one look at each, and no second map
    of as many ids as a large gallery has."""
    return as_rows(of.get(one, -1) for one in ids)


def _labels(
    data: Dataset, stored_ids: tuple[str, ...], theirs: tuple[str, ...], of_data: Rows
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(G,) the label of each row, and the ids of the stored rows that are labelled differently."""
    found, conflicts = [*theirs, *[""] * (len(of_data) - len(theirs))], []
    for row in np.flatnonzero(of_data >= 0):
        label = data.labels[of_data[row]]
        if found[row] not in {"", label}:
            conflicts.append(stored_ids[row])
            label = ""
        found[row] = label
    return tuple(found), tuple(conflicts)
